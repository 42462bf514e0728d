//! The `longhaul` program: see `longhaul::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    longhaul::sys::one_heap();
    ExitCode::from(longhaul::cli::run(std::env::args_os()))
}
