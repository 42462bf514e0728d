//! The `longhaul` program: see `longhaul::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(longhaul::cli::run(std::env::args_os()))
}
