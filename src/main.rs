//! The `longhaul` program: see `longhaul::cli`.

use longhaul::sys;
use std::process::ExitCode;

fn main() -> ExitCode {
    sys::start::require_cpu();
    // Tokens and keys lie in memory: neither a core file nor another process of the same user gets to see them. Both
    // calls may be refused by a sandbox, and then the program works as well as before.
    let _ = sys::set_dumpable(false);
    // A file that may not grow is an error like others, to be said in a sentence.
    sys::ignore_file_size_signal();
    let _ = sys::start::raise_descriptor_limit();
    sys::one_heap();
    ExitCode::from(longhaul::cli::run(std::env::args_os()))
}
