//! `longhaul bench matrix`: streams x congestion control x block over a path, taking turns, kept as a dated run.

mod sweep;

use super::{parse_seconds, round_trip};
use crate::cli::cp::{PeerArgs, parse_block, parse_peer};
use crate::cli::fail::{Fail, finish, printable, say, show};
use crate::cli::picture::{Line, svg};
use crate::cli::probe::{Direction, Names, parse_direction, parse_names};
use crate::cli::trials::Trials;
use crate::clock;
use crate::control::url::PeerUrl;
use crate::doctor::gather::gather;
use crate::engine::probe::{ProbeSpec, Trial};
use crate::engine::spec::TransferOptions;
use crate::limits::MAX_STREAMS;
use crate::profile::Day;
use crate::units::{BitRate, write_size, write_span};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use sweep::{Cell, Row, best, cells, order, table};

/// Handshakes, ticket and the last bytes of a trial, beside its seconds.
const AROUND: Duration = Duration::from_millis(300);
/// Runs of one host and day that are told apart by a number.
const RUNS_OF_A_DAY: u32 = 1000;

/// Arguments of `bench matrix`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The agent: a host, or `lh://host[:port]`
    #[arg(value_name = "PEER")]
    pub target: String,
    /// Numbers of streams
    #[arg(long, value_name = "LIST", default_value = "1,4,16", value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_STREAMS)))]
    pub streams: Vec<u16>,
    /// Congestion controls of the sender
    #[arg(long, value_name = "LIST", default_value = "cubic,bbr", value_parser = parse_names)]
    pub congestion: Names,
    /// Blocks: powers of two from 64KiB to 1MiB
    #[arg(long, value_name = "LIST", default_value = "256KiB,1MiB", value_delimiter = ',', value_parser = parse_block)]
    pub block: Vec<u32>,
    /// How long each run sends, s
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    pub seconds: Duration,
    /// How often every setting has its turn
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// pull: the agent sends; push: this host does
    #[arg(long, value_name = "pull|push", default_value = "pull", value_parser = parse_direction)]
    pub direction: Direction,
    /// Where the run's directory DATE-HOST is made
    #[arg(long, value_name = "DIR", default_value = "tuning/runs")]
    pub out: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// Agents and tokens.
    #[command(flatten)]
    pub peer: PeerArgs,
}

impl Args {
    /// What repeats it, without what is secret or a matter of one machine.
    fn command(&self) -> String {
        let list = |items: Vec<String>| items.join(",");
        let direction = if self.direction == Direction::Pull { "pull" } else { "push" };
        format!(
            "longhaul bench matrix {} --streams {} --congestion {} --block {} --seconds {} --rounds {} --direction {direction}",
            self.target,
            list(self.streams.iter().map(u16::to_string).collect()),
            self.congestion.0.join(","),
            list(self.block.iter().map(|block| write_size((*block).into())).collect()),
            self.seconds.as_secs_f64(),
            self.rounds,
        )
    }
}

/// Runs the command. The exit code.
pub fn run(args: Args) -> u8 {
    finish(args.json, execute(&args))
}

fn execute(args: &Args) -> Result<u8, Fail> {
    let url = parse_peer(&args.target)?;
    let rtt_us = round_trip(&url)?;
    let cells = cells(&args.streams, &args.congestion.0, &args.block);
    let turns = order(cells.len(), args.rounds);
    let tell = |text: &str| if args.json { eprint!("{text}") } else { say(text) };
    let in_all = (args.seconds + AROUND + Duration::from_micros(rtt_us) * 10) * turns.len() as u32;
    tell(&format!(
        "{} settings, {} rounds, {} in all; round trip {}\n",
        cells.len(),
        args.rounds,
        write_span(Duration::from_secs(in_all.as_secs().max(1))),
        write_span(Duration::from_micros(rtt_us.max(1)))
    ));
    let before = load();
    let dir = directory(&args.out)?;
    let rows = sweep_all(args, &url, cells, &turns, &dir, &tell)?;
    let Some(chosen) = best(&rows) else {
        return Err(Fail::new(5, format!("no run worked: {} has what was said", show(&dir))));
    };
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(|error| Fail::io("write", &path, &error))
    };
    write("README.md", &page(args, &rows, rtt_us, (&before, &load())))?;
    write("rates.svg", &picture(args, &rows))?;
    let said =
        format!("best: {} at {}; the run is in {}\n", rows[chosen].cell, BitRate(rows[chosen].median()), show(&dir));
    if args.json {
        let document = json!({
            "command": args.command(), "directory": dir.display().to_string(), "rtt_us": rtt_us,
            "best": rows[chosen].json(), "settings": rows.iter().map(Row::json).collect::<Vec<_>>(), "exit_code": 0,
        });
        say(&format!("{document}\n"));
    } else {
        say(&format!("\n{}\n{said}", table(&rows)));
    }
    Ok(0)
}

/// Every turn, each a line of `lines.jsonl` when it is through.
fn sweep_all(
    args: &Args,
    url: &PeerUrl,
    cells: Vec<Cell>,
    turns: &[(u32, usize)],
    dir: &Path,
    tell: &dyn Fn(&str),
) -> Result<Vec<Row>, Fail> {
    let path = dir.join("lines.jsonl");
    let failed = |error: std::io::Error| Fail::io("write", &path, &error);
    let mut lines = File::create(&path).map_err(failed)?;
    let agent_sends = args.direction == Direction::Pull;
    let trials = Trials::start(args.peer.client(url, agent_sends)?)?;
    let mut rows: Vec<Row> = cells.into_iter().map(Row::new).collect();
    for (turn, (round, index)) in turns.iter().enumerate() {
        let row = &mut rows[*index];
        let options = TransferOptions {
            congestion: Some(row.cell.congestion.clone()),
            block: row.cell.block,
            ..TransferOptions::default()
        };
        let duration_ms = args.seconds.as_millis() as u32;
        let outcome = trials.run(ProbeSpec { agent_sends, streams: row.cell.streams, duration_ms, options });
        let line = match &outcome {
            // The first failure of all is the answer; a later one is that run's.
            Err(error) if turn == 0 => return Err(error.clone().into()),
            Err(error) => json!({ "error": error.to_string() }),
            Ok(trial) => described(trial),
        };
        let mut line = line;
        for (key, value) in
            [("round", json!(round)), ("streams", json!(row.cell.streams)), ("block", json!(row.cell.block))]
        {
            line[key] = value;
        }
        line["congestion"] = json!(row.cell.congestion);
        line["unix_time"] = json!(clock::unix_now());
        writeln!(lines, "{line}").and_then(|()| lines.flush()).map_err(failed)?;
        tell(&match outcome {
            Ok(trial) => {
                let rate = BitRate(trial.rate());
                let refused = row.add(trial);
                let refused = if refused { ": another congestion control was in force, not counted" } else { "" };
                format!("  {round} {:<24} {rate}{refused}\n", row.cell.to_string())
            }
            Err(error) => format!("  {round} {:<24} failed: {}\n", row.cell.to_string(), printable(&error.to_string())),
        });
    }
    trials.end();
    Ok(rows)
}

fn described(trial: &Trial) -> Value {
    let bytes: u64 = trial.samples.iter().map(|(_, bytes)| bytes).sum();
    json!({
        "bits_per_second": trial.rate(), "bytes": bytes, "duration_us": trial.samples.last().map_or(0, |(at, _)| *at),
        "congestion_in_force": trial.congestion, "sent_again": trial.sender.loss(), "rtt_us": trial.sender.rtt_us,
        "min_rtt_us": trial.sender.min_rtt_us, "mtu": trial.mtu, "agent_cpu_ns": trial.peer_cpu_ns, "samples": trial.samples,
        "notes": trial.notes,
    })
}

/// OUT/DATE-HOST, or with a number behind it where that day's is taken.
fn directory(out: &Path) -> Result<PathBuf, Fail> {
    std::fs::create_dir_all(out).map_err(|error| Fail::io("make", out, &error))?;
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let sound = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name = format!("{}-{}", Day::of_unix(clock::unix_now()), host.chars().map(sound).collect::<String>());
    for number in 1..RUNS_OF_A_DAY {
        let dir = out.join(if number == 1 { name.clone() } else { format!("{name}-{number}") });
        match std::fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Fail::io("make", &dir, &error)),
        }
    }
    Err(Fail::usage(format!("{}: a thousand runs of {name} are there", show(out))))
}

/// The load of this host, as the kernel keeps it: of the last minute.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

fn page(args: &Args, rows: &[Row], rtt_us: u64, load: (&str, &str)) -> String {
    let facts = gather(None);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1)).unwrap_or("unknown processor");
    let congestion = facts.sysctls.get("net.ipv4.tcp_congestion_control").cloned().unwrap_or_default();
    format!(
        "# {}, to {}\n\n`{}`\n\nlonghaul {}, {} cores ({}), kernel {}, congestion control of the system {congestion}, load {} before and {} \
         after, round trip {}. Settings took turns, {} rounds; a rate is that of the later part of a run of {} s, at the \
         receiver. `lines.jsonl` has every run, `rates.svg` the median run of each setting over time; the best is marked.\n\n{}",
        Day::of_unix(clock::unix_now()),
        printable(&args.target),
        printable(&args.command()),
        env!("CARGO_PKG_VERSION"),
        facts.cores,
        model.trim(),
        facts.kernel,
        load.0,
        load.1,
        write_span(Duration::from_micros(rtt_us.max(1))),
        args.rounds,
        args.seconds.as_secs_f64(),
        table(rows)
    )
}

fn picture(args: &Args, rows: &[Row]) -> String {
    let chosen = best(rows);
    let lines: Vec<Line<'_>> = rows
        .iter()
        .enumerate()
        .filter_map(|(index, row)| {
            let run = row.median_run()?;
            let label = format!("{}: {}", row.cell, BitRate(row.median()));
            Some(Line { label, samples: &run.samples, chosen: chosen == Some(index) })
        })
        .collect();
    svg(&lines, &format!("{}: median run of each setting", args.target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_never_writes_over_another() {
        let out = tempfile::tempdir().unwrap();
        let below = out.path().join("a/b");
        let (one, two) = (directory(&below).unwrap(), directory(&below).unwrap());
        assert!(one.is_dir() && two.is_dir() && one != two);
        let (one, two) = (one.file_name().unwrap().to_str().unwrap(), two.file_name().unwrap().to_str().unwrap());
        assert_eq!(two, format!("{one}-2"));
        assert!(one.starts_with(&Day::of_unix(clock::unix_now()).to_string()), "{one}");
    }
}
