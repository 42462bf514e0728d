//! `longhaul pki`: a private authority for the certificates of one service's agents.

use super::fail::{Fail, finish, say, show};
use crate::control::pki::{self, CA_CERTIFICATE, CA_DAYS, DAYS, PkiError};
use crate::control::state::StateError;
use crate::control::tls::TlsError;
use clap::Subcommand;
use std::io;
use std::path::PathBuf;

/// A private authority for the certificates of agents.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes an authority: DIR/ca-cert.pem, which agents trust, and DIR/ca-key.pem, which stays where it is
    Init {
        /// Made if missing
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// How long it counts
        #[arg(long, value_name = "N", default_value_t = CA_DAYS)]
        days: u32,
    },
    /// Issues a certificate for an agent: OUT/NAME-cert.pem and OUT/NAME-key.pem, for --tls-cert and --tls-key
    Issue {
        /// The agent's name
        name: String,
        /// The authority's directory
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// A name or address under which it is dialled; may be repeated
        #[arg(long = "host", value_name = "HOST", required = true)]
        hosts: Vec<String>,
        /// How long it counts
        #[arg(long, value_name = "N", default_value_t = DAYS)]
        days: u32,
        /// Where to; an existing directory
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
}

impl From<PkiError> for Fail {
    fn from(error: PkiError) -> Self {
        let code = match &error {
            PkiError::Host(_) | PkiError::Name(_) | PkiError::Days => super::fail::USAGE,
            PkiError::State(state) | PkiError::Tls(TlsError::State(state)) => match state {
                StateError::Owner { .. } | StateError::Exposed { .. } => super::fail::DENIED,
                StateError::Io { source, .. } => match source.kind() {
                    io::ErrorKind::NotFound => super::fail::NOT_FOUND,
                    io::ErrorKind::PermissionDenied => super::fail::DENIED,
                    _ => super::fail::PERMANENT,
                },
                _ => super::fail::PERMANENT,
            },
            _ => super::fail::PERMANENT,
        };
        Self::new(code, error.to_string())
    }
}

/// Runs the command.
pub fn run(args: Args) -> u8 {
    finish(false, execute(args.command))
}

fn execute(command: Command) -> Result<u8, Fail> {
    match command {
        Command::Init { dir, days } => {
            let (fingerprint, until) = pki::init(&dir, days)?;
            say(&format!("{}\n  fingerprint {fingerprint}\n  until       {until}\n", show(&dir.join(CA_CERTIFICATE))));
        }
        Command::Issue { name, dir, hosts, days, out } => {
            let issued = pki::issue(&dir, &name, &hosts, days, &out)?;
            say(&format!(
                "{}\n{}\n  fingerprint {}\n  until       {}\n",
                show(&issued.certificate),
                show(&issued.key),
                issued.fingerprint,
                issued.until
            ));
        }
    }
    Ok(0)
}
