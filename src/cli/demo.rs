//! `longhaul demo`: not in this build yet.

/// Takes nothing yet.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Says that the command is missing.
pub fn run(_args: Args) -> u8 {
    super::fail(super::EXIT_OTHER, &"`demo` is not in this build")
}
