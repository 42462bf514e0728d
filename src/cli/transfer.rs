//! `longhaul transfer`: what an agent moves, and changes to it while it runs.

use super::cp::{PeerArgs, parse_peer};
use super::fail::{Fail, finish, printable, say};
use super::report::shares;
use super::service::{say_json, table};
use crate::control::client::PeerClient;
use crate::control::messages::TransferView;
use crate::engine::error::TransferError;
use crate::engine::spec::{Priority, Steer};
use crate::units::{BitRate, Bytes, parse_rate};
use clap::{ArgGroup, Subcommand};

/// What an agent moves: lists, shows, changes and stops it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Running transfers and the last ended ones, at either end
    List {
        #[command(flatten)]
        at: At,
    },
    /// One transfer
    Show {
        #[command(flatten)]
        at: At,
        /// Its id
        id: String,
    },
    /// Changes a running transfer. Either end can be asked; the destination decides
    #[command(group(ArgGroup::new("change").required(true).multiple(true).args(["rate", "streams", "priority"])))]
    Set {
        #[command(flatten)]
        at: At,
        /// Its id
        id: String,
        /// Cap over all streams instead of the one it was started with; `none` lifts it
        #[arg(long, value_name = "RATE|none", value_parser = parse_cap)]
        rate: Option<u64>,
        /// Data streams
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(crate::limits::MAX_STREAMS)))]
        streams: Option<u16>,
        /// Against other transfers of the same agent
        #[arg(long, value_name = "P")]
        priority: Option<Priority>,
    },
}

/// Which agent.
#[derive(Debug, Clone, clap::Args)]
struct At {
    /// The agent: a host, or `lh://host[:port]`
    #[arg(value_name = "PEER")]
    agent: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    peer: PeerArgs,
}

fn parse_cap(text: &str) -> Result<u64, String> {
    if text == "none" { Ok(0) } else { parse_rate(text).map_err(|error| error.to_string()) }
}

impl At {
    fn client(&self) -> Result<PeerClient, Fail> {
        self.peer.client(&parse_peer(&self.agent)?, false)
    }
}

/// Runs the command. The exit code.
pub fn run(args: Args) -> u8 {
    let json = match &args.command {
        Command::List { at } | Command::Show { at, .. } | Command::Set { at, .. } => at.json,
    };
    let done = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Fail::new(1, format!("cannot start: {error}")))?;
        runtime.block_on(execute(args.command))
    };
    finish(json, done())
}

async fn execute(command: Command) -> Result<u8, Fail> {
    match command {
        Command::List { at } => {
            let all = at.client()?.transfers().await?;
            if at.json {
                say_json(&all);
            } else {
                let heads = ["ID", "STATE", "ROLE", "DONE", "RATE", "STREAMS", "PRIORITY", "LIMITED BY", "PATH"];
                say(&table(heads, all.iter().map(row)));
            }
        }
        Command::Show { at, id } => show(&at, &at.client()?.transfer(&id).await?),
        Command::Set { at, id, rate, streams, priority } => {
            let client = at.client()?;
            let change = Steer { rate, streams, priority };
            client.steer(&id, &change).await?;
            show(&at, &after(&client, &id).await?);
        }
    }
    Ok(0)
}

/// As it is a moment later: the other end may have to be told first.
async fn after(client: &PeerClient, id: &str) -> Result<TransferView, TransferError> {
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    client.transfer(id).await
}

fn state(view: &TransferView) -> String {
    view.report
        .as_ref()
        .map_or_else(|| view.snapshot.phase.clone(), |report| format!("{:?}", report.verdict).to_uppercase())
}

fn cap(view: &TransferView) -> String {
    view.snapshot.rate.map_or_else(|| "no cap".to_owned(), |rate| BitRate(rate).to_string())
}

fn priority(view: &TransferView) -> String {
    format!("{:?}", view.snapshot.priority).to_lowercase()
}

/// What held it back, in the last second or, once it has ended, in all.
fn limiter(view: &TransferView, most: usize) -> String {
    let all = view.report.as_ref().map_or(&view.snapshot.limiter_shares, |report| &report.limiter_shares);
    let told = shares(all, most);
    if told.is_empty() { "-".to_owned() } else { told }
}

fn row(view: &TransferView) -> [String; 9] {
    let shot = &view.snapshot;
    [
        view.id.clone().unwrap_or_else(|| "-".to_owned()),
        state(view),
        view.role.clone(),
        format!("{} of {}", Bytes(shot.bytes), Bytes(shot.total_bytes)),
        cap(view),
        shot.streams.to_string(),
        priority(view),
        limiter(view, 1),
        view.path.clone(),
    ]
}

fn show(at: &At, view: &TransferView) {
    if at.json {
        return say_json(view);
    }
    let [id, state, role, done, rate, streams, priority, _, path] = row(view);
    let line = |name: &str, value: &str| format!("{name:<12}{}\n", printable(value));
    let all = [("id", id), ("state", state), ("role", role), ("path", path), ("done", done)];
    let settings = [("rate", rate), ("streams", streams), ("priority", priority), ("limited by", limiter(view, 4))];
    say(&all.iter().chain(&settings).map(|(name, value)| line(name, value)).collect::<String>());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_limits_it_is_the_last_seconds_and_then_the_reports() {
        let shares = |all: &[(&str, f64)]| all.iter().map(|(word, share)| ((*word).to_owned(), *share)).collect();
        let mut view: TransferView = serde_json::from_value(serde_json::json!({
            "id": "i", "transfer": null, "principal": "p", "role": "source", "peer": null, "local": null, "path": "/x",
            "snapshot": {"bytes": 1, "total_bytes": 2, "files": 0, "total_files": 1, "scanned": true, "streams": 8, "phase": "moving"},
            "report": null
        }))
        .expect("an older agent tells no limiter");
        assert_eq!(row(&view)[7], "-");
        view.snapshot.limiter_shares = shares(&[("network", 0.8), ("source cpu", 0.2)]);
        assert_eq!(row(&view)[7], "network 80 %");
        assert_eq!(limiter(&view, 4), "network 80 %, source cpu 20 %");
        let limiter_shares = shares(&[("destination disk", 1.0)]);
        view.report = Some(crate::engine::spec::Report { limiter_shares, ..Default::default() });
        assert_eq!(limiter(&view, 4), "destination disk 100 %");
    }

    #[test]
    fn caps_as_typed() {
        assert_eq!((parse_cap("none"), parse_cap("500Mbit")), (Ok(0), Ok(500_000_000)));
        assert!(parse_cap("fast").is_err() && parse_cap("0").is_err());
    }
}
