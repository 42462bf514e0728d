//! The command line: one file per command. Exit codes are 0 ok, 1 other, 2 usage, 3 partial, 4 not found, 5
//! retryable, 6 verification failed, 7 permanent, 10 denied, 11 wait timed out, 130 interrupted.

pub mod agent;
pub mod bench;
pub mod catalog;
pub mod clean;
pub mod cp;
pub mod cp_manifest;
pub mod demo;
pub mod demo_agent;
pub mod demo_service;
pub mod demo_tree;
pub mod doctor;
pub mod fail;
pub mod journal;
pub mod manifest_file;
pub mod operands;
pub mod picture;
pub mod pki;
pub mod probe;
pub mod progress;
pub mod report;
pub mod request;
pub mod service;
pub mod tape;
pub mod third_party;
pub mod token;
pub mod transfer;
pub mod tree;
pub mod trials;
pub mod tuning;
pub mod verify;

use clap::{Parser, Subcommand};
use std::ffi::OsString;

/// Moves science data between data transfer nodes: verified, encrypted, resumable.
#[derive(Debug, Parser)]
#[command(name = "longhaul", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// One value in a process: its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Subcommand)]
enum Command {
    /// Moves a real tree between two agents on loopback, then runs a whole service, and shows what happens
    Demo(demo::Args),
    /// Copies files and trees; repeating an interrupted copy resumes it
    Cp(cp::Args),
    /// Serves a directory to other hosts
    Agent(agent::Args),
    /// Removes part files and journals that nobody uses any more
    Clean(clean::Args),
    /// Prints a transfer's journal
    Journal(journal::Args),
    /// Checks a tree against its manifest
    Verify(verify::Args),
    /// Makes, lists and revokes tokens
    Token(token::Args),
    /// Asks a main for transfers, and steers them
    Request(request::Args),
    /// Which files a main knows, and which agents have them
    Catalog(catalog::Args),
    /// A private authority for the certificates of agents
    Pki(pki::Args),
    #[command(hide = true)]
    Tape(tape::Args),
    /// Measures the path to an agent and writes a profile
    Probe(probe::Args),
    /// Measures the parts of a transfer and the whole, and names what holds it back
    Bench(bench::Args),
    /// Audits this host and the way to a peer; changes nothing
    Doctor(doctor::Args),
    /// What an agent moves, and changes to it while it runs
    Transfer(transfer::Args),
}

/// Clap's own code for a command line that cannot be meant.
pub const EXIT_USAGE: u8 = 2;
/// Anything that has no code of its own.
pub const EXIT_OTHER: u8 = 1;

/// Parses `args` (the program's name first) and runs the command. The exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // --help and --version are no mistake.
            return if error.use_stderr() { EXIT_USAGE } else { 0 };
        }
    };
    match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Cp(args) => cp::run(args),
        Command::Agent(args) => agent::run(args),
        Command::Clean(args) => clean::run(args),
        Command::Journal(args) => journal::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Token(args) => token::run(args),
        Command::Request(args) => request::run(args),
        Command::Catalog(args) => catalog::run(args),
        Command::Pki(args) => pki::run(args),
        Command::Tape(args) => tape::run(args),
        Command::Probe(args) => probe::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Transfer(args) => transfer::run(args),
    }
}

/// Says what went wrong on stderr, once, and passes the exit code on.
pub fn fail(code: u8, what: &dyn std::fmt::Display) -> u8 {
    eprintln!("longhaul: {what}");
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run_with(args: &[&str]) -> u8 {
        run(std::iter::once("longhaul").chain(args.iter().copied()).map(OsString::from))
    }

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
        let names: Vec<_> = Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
        let all = [
            "demo", "cp", "agent", "clean", "journal", "verify", "token", "request", "catalog", "pki", "tape", "probe",
            "bench", "doctor", "transfer",
        ];
        assert_eq!(names, all);
    }

    #[test]
    fn usage_is_2_and_help_is_0() {
        assert_eq!(run_with(&["fly"]), EXIT_USAGE);
        assert_eq!(run_with(&["agent", "--no-such-flag"]), EXIT_USAGE);
        assert_eq!(run_with(&["--version"]), 0);
        assert_eq!(run_with(&["agent", "--help"]), 0);
    }
}
