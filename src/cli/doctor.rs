//! `longhaul doctor`: audits this host, and the way to a peer. Changes nothing.

use super::cp::parse_peer;
use super::fail::{Fail, finish, printable, say};
use super::report::count;
use crate::control::url::DATA_PORT;
use crate::doctor::gather::{gather, reach};
use crate::doctor::{Finding, Level, Target, check};
use crate::units::{parse_rate, parse_span};
use std::fmt::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `doctor`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// An agent to look at the way to: a host, or `lh://host[:port]`
    #[arg(long, value_name = "PEER")]
    pub peer: Option<String>,
    /// The peer's data port; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = DATA_PORT)]
    pub data_port: u16,
    /// A directory whose storage is looked at as well
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// The rate that this host is to be good for [default: its interface's]
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub rate: Option<u64>,
    /// The round trip that it is to be good for [default: the peer's, else 100ms]
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub rtt: Option<Duration>,
    /// Show what is fine as well
    #[arg(long)]
    pub all: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Exit code when something is wrong.
const WRONG: u8 = 1;

/// Runs the command. The exit code: 0, or 1 if something is wrong.
pub fn run(args: Args) -> u8 {
    finish(args.json, execute(&args))
}

fn execute(args: &Args) -> Result<u8, Fail> {
    let mut facts = gather(args.root.as_deref());
    if let Some(name) = &args.peer {
        let url = parse_peer(name)?;
        let found = (url.host.as_str(), url.port).to_socket_addrs();
        let addresses: Vec<SocketAddr> = found.map(Iterator::collect).unwrap_or_default();
        facts.peer = Some(reach(&url.host, &addresses, (args.data_port != 0).then_some(args.data_port)));
    }
    let target = Target::of(&facts, args.rate, args.rtt);
    let findings = check(&facts, &target);
    let code = if findings.iter().any(|finding| finding.level == Level::Wrong) { WRONG } else { 0 };
    if args.json {
        let document = serde_json::json!({ "target": target, "findings": findings, "facts": facts, "exit_code": code });
        say(&format!("{document}\n"));
    } else {
        say(&text(&findings, &target, args.all));
    }
    Ok(code)
}

/// What was found, the worst first.
fn text(findings: &[Finding], target: &Target, all: bool) -> String {
    let number = |level| findings.iter().filter(|finding| finding.level == level).count() as u64;
    let mut out = format!("For {target}: ");
    let (wrong, advice, unknown, fine) =
        (number(Level::Wrong), number(Level::Advice), number(Level::Unknown), number(Level::Fine));
    let _ = writeln!(
        out,
        "{wrong} wrong, {} of advice, {unknown} not to be seen from here, {fine} fine.",
        count(advice, "piece")
    );
    // What is fine comes first, in short lines: the end of a long text is what stays on the screen.
    let shown = |finding: &&Finding| all && finding.level == Level::Fine;
    let others = findings.iter().filter(|finding| finding.level != Level::Fine);
    for finding in findings.iter().filter(shown).chain(others) {
        let Finding { level, topic, measured, wanted, why, source, command } = finding;
        let word = match level {
            Level::Wrong => "WRONG",
            Level::Advice => "advice",
            Level::Unknown => "unknown",
            Level::Fine => "fine",
        };
        if *level == Level::Fine {
            let _ = writeln!(out, "{word:<8}{topic}: {}", printable(measured));
            continue;
        }
        let _ = writeln!(out, "\n{word:<8}{topic}: {}", printable(measured));
        let _ = writeln!(out, "  wanted  {wanted}");
        let _ = writeln!(out, "  why     {why} [{source}]");
        if let Some(command) = command {
            let _ = writeln!(out, "  do      {}", printable(command));
        }
    }
    if wrong + advice > 0 {
        out.push_str("\n`scripts/host-tune.sh apply` sets what is a sysctl, and keeps the old values for `revert`.\n");
    }
    out
}
