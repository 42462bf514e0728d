//! `longhaul bench`: the parts of a transfer one by one, the whole, and which part holds it back.

mod iperf;
mod matrix;
mod net;
mod parts;
mod space;
mod table;
mod whole;

use super::cp::{PeerArgs, parse_block, parse_congestion, parse_peer, parse_switch};
use super::fail::{Fail, finish, say, show};
use super::picture::{Line, svg};
use super::probe::{Direction, parse_direction};
use super::trials::Trials;
use crate::clock;
use crate::control::url::PeerUrl;
use crate::doctor::gather::{gather, reach};
use crate::engine::bench::{self, BenchError, CpuSpec, DiskSpec, Measured, Work};
use crate::engine::error::Class;
use crate::engine::probe::{DURATION_MAX_MS, ProbeSpec, Trial};
use crate::engine::session::default_streams;
use crate::engine::spec::{IoChoice, Report, TransferOptions};
use crate::limits::MAX_STREAMS;
use crate::relpath::RelPath;
use crate::units::{BitRate, Bytes, parse_size};
use parts::{Cpu, Kind, Part, bottleneck, headline, share};
use serde_json::{Value, json};
use space::{NAME, Space};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use whole::WholeSpec;

/// Threads of a transfer are one for each core, at most so many.
const THREADS_MAX: usize = 8;
/// A part that needs no I/O is known after a share of the time of the others.
const CPU_SHARE: u32 = 4;
/// A transfer is stopped after so many times the time of a part.
const WHOLE_TIMES: u32 = 10;
/// Seconds of a part, least and most: a ticket lets a path be kept busy for no longer.
const SECONDS: std::ops::RangeInclusive<f64> = 0.2..=DURATION_MAX_MS as f64 / 1e3;
/// Seconds of an interval; samples come ten times a second.
const INTERVAL: std::ops::RangeInclusive<f64> = 0.1..=60.0;

/// What else `bench` does.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Streams x congestion control x block over a path, taking turns; writes DATE-HOST/ with lines, a table and a picture
    Matrix(matrix::Args),
}

/// Arguments of `bench`.
#[derive(Debug, Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Another bench.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The network alone: to an agent, or between two processes here
    #[arg(long, value_name = "PEER", num_args = 0..=1)]
    pub net: Option<Option<String>>,
    /// Storage alone, below DIR [default: --dir]
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    pub disk: Option<Option<PathBuf>>,
    /// Digest and cipher alone
    #[arg(long)]
    pub cpu: bool,
    /// End to end alone: a file of an agent (`lh://host/file`), or one of an agent here
    #[arg(long, value_name = "URL", num_args = 0..=1)]
    pub end_to_end: Option<Option<String>>,
    /// Every part, as without any of these; with PEER the network and the end to end (`lh://host/file`) are those to that agent
    #[arg(long, value_name = "PEER", num_args = 0..=1, conflicts_with_all = ["net", "disk", "cpu", "end_to_end"])]
    pub all: Option<Option<String>>,
    /// Where files are made, and removed again
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// End to end between two processes here, where from: real (a file made below --dir), synthetic (made up, no file), or a FILE
    #[arg(long, value_name = "real|synthetic|FILE", default_value = "real")]
    pub source: PathBuf,
    /// End to end, where to: real (below --dir) or synthetic (verified and thrown away)
    #[arg(long, value_name = "real|synthetic", default_value = "real", value_parser = ["real", "synthetic"])]
    pub destination: String,
    /// Bytes of a made file; of a synthetic one as many as you like, and --seconds for them
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_size)]
    pub size: u64,
    /// How long each part is measured, s
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = parse_seconds)]
    pub seconds: Duration,
    /// Intervals of the document, s
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    pub interval: Duration,
    /// TCP streams [default: 2 below 1 ms of round trip, else 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_STREAMS)))]
    pub streams: Option<u16>,
    /// Unit of one I/O: a power of two from 64KiB to 1MiB
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = parse_block)]
    pub block: u32,
    /// TCP congestion control of the sender
    #[arg(long, value_name = "NAME", value_parser = parse_congestion)]
    pub congestion: Option<String>,
    /// on or off, for digest and cipher and for the end to end
    #[arg(long, value_name = "on|off", default_value = "on", action = clap::ArgAction::Set, value_parser = parse_switch)]
    pub encrypt: bool,
    /// Of the network: pull, the agent sends; push, this host does
    #[arg(long, value_name = "pull|push", default_value = "pull", value_parser = parse_direction)]
    pub direction: Direction,
    /// Write the rates over time as a picture
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Print one JSON document, a superset of iperf3's
    #[arg(long)]
    pub json: bool,
    /// Agents and tokens.
    #[command(flatten)]
    pub peer: PeerArgs,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    seconds(text, SECONDS)
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    seconds(text, INTERVAL)
}

fn seconds(text: &str, range: std::ops::RangeInclusive<f64>) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "a number of seconds".to_owned())?;
    if !range.contains(&number) {
        return Err(format!("{} to {} seconds", range.start(), range.end()));
    }
    Ok(Duration::from_secs_f64(number))
}

/// What is to be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Which {
    cpu: bool,
    disk: bool,
    net: bool,
    whole: bool,
}

impl Args {
    fn which(&self) -> Which {
        let named = Which {
            cpu: self.cpu,
            disk: self.disk.is_some(),
            net: self.net.is_some(),
            whole: self.end_to_end.is_some(),
        };
        match named {
            Which { cpu: false, disk: false, net: false, whole: false } => {
                Which { cpu: true, disk: true, net: true, whole: true }
            }
            named => named,
        }
    }

    /// The agent that was named, if one was.
    fn url(&self) -> Result<Option<PeerUrl>, Fail> {
        let named = [&self.all, &self.net, &self.end_to_end].into_iter().flatten().flatten();
        let mut urls: Vec<PeerUrl> = named.map(|name| parse_peer(name)).collect::<Result<_, _>>()?;
        // The one with a file, if both are named.
        urls.sort_by_key(|url| !names_file(url));
        if urls.windows(2).any(|two| (&two[0].host, two[0].port) != (&two[1].host, two[1].port)) {
            return Err(Fail::usage("--net and --end-to-end name two agents: one bench has one path"));
        }
        Ok(urls.into_iter().next())
    }

    fn options(&self, streams: Option<u16>) -> TransferOptions {
        TransferOptions {
            streams,
            block: self.block,
            congestion: self.congestion.clone(),
            encrypt: Some(self.encrypt),
            ..TransferOptions::default()
        }
    }
}

/// Runs the command. The exit code.
pub fn run(args: Args) -> u8 {
    match args.command {
        Some(Command::Matrix(args)) => matrix::run(args),
        None => finish(args.json, execute(&args)),
    }
}

fn execute(args: &Args) -> Result<u8, Fail> {
    let bench = Bench::plan(args)?;
    let began = clock::unix_now();
    let found = bench.measure();
    bench.space.give_way_to_signals();
    let found = found?;
    if let Some(path) = &args.svg {
        let lines: Vec<Line<'_>> = found
            .parts
            .iter()
            .filter(|part| part.needed || part.kind == Kind::Whole)
            .map(|part| Line {
                label: format!("{}: {}", part.kind.name(), BitRate(part.rate)),
                samples: &part.samples,
                chosen: part.kind == Kind::Whole,
            })
            .collect();
        let picture = svg(&lines, &bench.title());
        std::fs::write(path, picture).map_err(|error| Fail::io("write", path, &error))?;
    }
    if args.json {
        say(&format!("{}\n", bench.document(&found, began)));
    } else {
        say(&table::text(&found.parts, &bench.title(), &found.notes));
    }
    Ok(0)
}

/// What was found.
#[derive(Default)]
struct Found {
    parts: Vec<Part>,
    notes: Vec<String>,
    trial: Option<Trial>,
    report: Option<Report>,
}

/// A bench with everything that was left open filled in.
struct Bench<'a> {
    args: &'a Args,
    which: Which,
    space: Space,
    peer: Option<PeerUrl>,
    streams: u16,
    threads: usize,
    cores: usize,
    /// Where files are made.
    dir: PathBuf,
}

impl<'a> Bench<'a> {
    fn plan(args: &'a Args) -> Result<Self, Fail> {
        let which = args.which();
        let peer = args.url()?;
        if args.end_to_end.is_some() && peer.as_ref().is_some_and(|url| !names_file(url)) {
            return Err(Fail::usage("the end to end fetches a file: --end-to-end lh://host/file"));
        }
        let rtt_us = match &peer {
            None => 0,
            Some(url) => round_trip(url)?,
        };
        let streams = args.streams.unwrap_or_else(|| default_streams(u32::try_from(rtt_us).unwrap_or(u32::MAX)));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let dir = args.disk.clone().flatten().unwrap_or_else(|| args.dir.clone());
        let threads = cores.min(THREADS_MAX).min(streams.into());
        let space = Space::default();
        space.heed_signals(args.json)?;
        Ok(Self { args, which, space, peer, streams, threads, cores, dir })
    }

    fn title(&self) -> String {
        let peer = self.peer.as_ref().map_or_else(|| "this host alone".to_owned(), |url| format!("with {}", url.host));
        let secret = if self.args.encrypt { "encrypted" } else { "NOT encrypted" };
        let streams = super::report::count(self.streams.into(), "stream");
        format!("bench: {peer}, {streams}, blocks of {}, {secret}", Bytes(self.args.block.into()))
    }

    fn tell(&self, what: &str) {
        if !self.args.json {
            eprintln!("measuring {what}");
        }
    }

    /// Whether the whole reads storage here: its source is one, and here.
    fn reads(&self) -> bool {
        !self.which.whole || self.peer.is_none() && !self.makes_up()
    }

    /// Whether its source is one of ours that makes the bytes up.
    fn makes_up(&self) -> bool {
        self.which.whole && self.peer.is_none() && self.args.source == Path::new("synthetic")
    }

    fn writes(&self) -> bool {
        !self.which.whole || self.args.destination != "synthetic"
    }

    fn measure(&self) -> Result<Found, Fail> {
        let mut found = Found::default();
        if self.which.cpu {
            self.tell("digest and cipher");
            self.cpu(&mut found)?;
        }
        if self.which.disk {
            self.disk(&mut found)?;
        }
        if self.which.net {
            self.tell("the network");
            self.net(&mut found)?;
        }
        match &self.peer {
            Some(url) if self.which.whole && !names_file(url) => {
                found.notes.push("no end to end: name a file of the agent, lh://host/file".to_owned());
            }
            _ if self.which.whole => {
                self.tell("the whole, end to end");
                self.whole(&mut found)?;
            }
            _ => {}
        }
        if self.peer.is_none() && (self.which.net || self.which.whole) {
            let cores = super::report::count(self.cores as u64, "core");
            found.notes.push(format!("both ends share the {cores} of this host, which no two hosts do"));
        }
        if self.which.whole && self.peer.is_some() {
            found
                .notes
                .push("the agent's storage and processor are in the end to end, and not measured alone".to_owned());
        }
        Ok(found)
    }

    fn cpu(&self, found: &mut Found) -> Result<(), Fail> {
        let both = if self.args.encrypt { Work::Both } else { Work::Plain };
        let all = [
            (Kind::Digest, Work::Digest, 1, false),
            (Kind::Cipher, Work::Cipher, 1, false),
            (Kind::Block, both, 1, false),
            (Kind::Blocks, both, self.threads, true),
        ];
        for (kind, work, threads, needed) in all {
            let time = self.args.seconds / CPU_SHARE;
            let spec = CpuSpec { work, block: self.args.block, threads, time };
            let (measured, cpu) = timed(|| bench::cpu(&spec))?;
            found.parts.push(Part::of(kind, measured, cpu, needed));
        }
        Ok(())
    }

    fn disk(&self, found: &mut Found) -> Result<(), Fail> {
        let dir = self.space.dir(&self.dir)?;
        let name = |bytes: &[u8]| RelPath::new(bytes).map_err(|error| Fail::usage(format!("the file's name: {error}")));
        let mut spec = DiskSpec {
            dir: dir.clone(),
            name: name(b"written")?,
            size: self.args.size,
            block: self.args.block,
            threads: self.threads,
            io: IoChoice::Auto,
            time: self.args.seconds,
            cold: true,
        };
        self.tell("how fast storage is written");
        super::demo_tree::check_space(&dir, self.args.size, "use --size or --dir")?;
        let (measured, cpu) = timed(|| bench::write(&spec))?;
        found.parts.push(Part::of(Kind::DiskWrite, measured, cpu, self.writes()));
        self.tell("how fast storage is read");
        match self.file() {
            Some((place, file)) => (spec.dir, spec.name, spec.cold) = (place, name(file.as_bytes())?, false),
            None => (spec.dir, spec.name) = (self.space.file(&dir, self.args.size)?, name(NAME.as_bytes())?),
        }
        let (measured, cpu) = timed(|| bench::read(&spec))?;
        found.parts.push(Part::of(Kind::DiskRead, measured, cpu, self.reads()));
        Ok(())
    }

    /// The file that was named as the source, and its directory.
    fn file(&self) -> Option<(PathBuf, std::ffi::OsString)> {
        let path = Some(&self.args.source)
            .filter(|path| !["real", "synthetic"].iter().any(|word| *path == Path::new(word)))?;
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        Some((path.parent()?.to_owned(), path.file_name()?.to_owned()))
    }

    /// Directory and name of the whole's source, made if it has to be, and what it is in words.
    fn source(&self) -> Result<(PathBuf, std::ffi::OsString, &'static str), Fail> {
        if let Some((dir, name)) = self.file() {
            let path = dir.join(&name);
            let metadata = std::fs::metadata(&path).map_err(|error| Fail::io("read", &path, &error))?;
            if !metadata.is_file() {
                return Err(Fail::usage(format!("{} is no regular file", show(&path))));
            }
            return Ok((dir, name, "a file"));
        }
        if self.makes_up() {
            return Ok((self.space.hollow(&self.space.memory()?, self.args.size)?, NAME.into(), "made up (synthetic)"));
        }
        Ok((self.space.file(&self.space.dir(&self.dir)?, self.args.size)?, NAME.into(), "a made file"))
    }

    /// The agent that was named, or one of our own over the whole's source.
    fn client(&self, root: Option<&Path>) -> Result<crate::control::client::PeerClient, Fail> {
        if let Some(url) = &self.peer {
            return self.args.peer.client(url, self.args.direction == Direction::Pull);
        }
        let root = match (root, self.which.whole) {
            (Some(root), _) => root.to_owned(),
            // Where there is a whole to come its source is the root: an agent has one.
            (None, true) => self.source()?.0,
            (None, false) => self.space.empty(&self.dir)?,
        };
        self.space.agent(&root, &self.dir, self.args.encrypt, self.makes_up())
    }

    fn net(&self, found: &mut Found) -> Result<(), Fail> {
        let trials = Trials::start(self.client(None)?)?;
        let spec = ProbeSpec {
            agent_sends: self.args.direction == Direction::Pull,
            streams: self.streams,
            duration_ms: self.args.seconds.as_millis() as u32,
            options: TransferOptions { streams: None, encrypt: None, ..self.args.options(None) },
        };
        let over = if self.peer.is_none() { "loopback, two processes" } else { "memory to memory" };
        let sender = if spec.agent_sends { "the agent sends" } else { "this end sends" };
        let how = format!("{over}, {}, {sender}", super::report::count(self.streams.into(), "stream"));
        let measured = net::measure(&trials, spec, how);
        trials.end();
        let (part, trial) = measured?;
        found.parts.push(part);
        found.trial = Some(trial);
        Ok(())
    }

    fn whole(&self, found: &mut Found) -> Result<(), Fail> {
        let (to, to_what) = if self.writes() {
            (self.space.dir(&self.dir)?, "storage")
        } else {
            (self.space.memory()?, "thrown away (synthetic)")
        };
        let to = to.join("destination");
        std::fs::create_dir(&to).map_err(|error| Fail::io("make", &to, &error))?;
        let (client, path, from_what) = match &self.peer {
            Some(url) => (self.args.peer.client(url, true)?, url.path.clone(), "the agent's file"),
            None => {
                let (root, name, what) = self.source()?;
                let path = [b"/", name.as_bytes()].concat();
                (self.client(Some(&root))?, path, what)
            }
        };
        let (part, report) = whole::measure(WholeSpec {
            client,
            path,
            to: &to,
            options: self.args.options(self.args.streams),
            limit: self.args.seconds * WHOLE_TIMES,
            drop: !self.writes(),
            how: format!("{from_what} to {to_what}"),
        })?;
        if self.makes_up()
            && let Some(digest) = report.digest
            && digest != bench::synthetic_digest(self.args.size)
        {
            return Err(Fail::new(
                Class::Verification.exit_code(),
                "end to end: other bytes arrived than were made up",
            ));
        }
        found.parts.push(part);
        found.report = Some(report);
        Ok(())
    }

    fn document(&self, found: &Found, began: u64) -> Value {
        let facts = gather(None);
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let slowest = bottleneck(&found.parts).map(|part| {
            json!({ "part": part.kind.word(), "bits_per_second": part.rate, "end_to_end_share": share(&found.parts) })
        });
        let about = headline(&found.parts).expect("something was measured");
        let longhaul = json!({
            "version": env!("CARGO_PKG_VERSION"), "about": about.kind.word(), "bottleneck": slowest,
            "parts": found.parts.iter().map(Part::json).collect::<Vec<_>>(),
            "chunk_latency_ns": found.report.as_ref().map(|report| report.chunk_latency_ns),
            "report": found.report, "streams": self.streams, "threads": self.threads, "block": self.args.block,
            "encrypt": self.args.encrypt, "size": self.args.size, "cores": self.cores, "kernel": facts.kernel, "host": host,
            "notes": found.notes, "exit_code": 0,
        });
        let peer = self.peer.as_ref().map_or_else(|| ("127.0.0.1".to_owned(), 0), |url| (url.host.clone(), url.port));
        let setting = iperf::Setting {
            version: format!("longhaul {}", env!("CARGO_PKG_VERSION")),
            system: format!("Linux {host} {} {}", facts.kernel, std::env::consts::ARCH),
            now: began,
            peer,
            streams: if about.kind == Kind::Network { self.streams } else { 1 },
            block: self.args.block,
            seconds: self.args.seconds.as_secs_f64(),
            interval_us: self.args.interval.as_micros() as u64,
            reverse: self.args.direction == Direction::Pull,
        };
        iperf::document(&setting, about, found.trial.as_ref().filter(|_| about.kind == Kind::Network), longhaul)
    }
}

/// Whether a URL names a file of its agent, or the agent alone.
fn names_file(url: &PeerUrl) -> bool {
    url.path.iter().any(|byte| *byte != b'/')
}

/// Round trip to an agent, µs.
fn round_trip(url: &PeerUrl) -> Result<u64, Fail> {
    let found = (url.host.as_str(), url.port).to_socket_addrs();
    let addresses: Vec<SocketAddr> = found.map(Iterator::collect).unwrap_or_default();
    let way = reach(&url.host, &addresses, None);
    match way.error {
        Some(error) => Err(Fail::new(Class::Retry.exit_code(), format!("{}: {error}", url.host))),
        None => Ok(way.rtt_us.unwrap_or(0)),
    }
}

fn timed(measure: impl FnOnce() -> Result<Measured, BenchError>) -> Result<(Measured, Cpu), Fail> {
    let before = Cpu::now();
    let measured = measure().map_err(|error| {
        let code = if let BenchError::TooSmall { .. } = error { super::EXIT_USAGE } else { super::EXIT_OTHER };
        Fail::new(code, error.to_string())
    })?;
    Ok((measured, Cpu::since(before)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        Line::try_parse_from(std::iter::once("bench").chain(words.iter().copied())).unwrap().args
    }

    #[test]
    fn flags_choose_parts_and_one_agent() {
        let every = Which { cpu: true, disk: true, net: true, whole: true };
        assert_eq!((args(&[]).which(), args(&["--all"]).which()), (every, every));
        assert_eq!(args(&["--disk", "/x", "--cpu"]).which(), Which { net: false, whole: false, ..every });
        assert_eq!(args(&["--net"]).which(), Which { cpu: false, disk: false, net: true, whole: false });
        assert_eq!(args(&["--net"]).url().unwrap(), None);
        let both = args(&["--net", "dtn1", "--end-to-end", "lh://dtn1/a/file"]).url().unwrap().unwrap();
        assert_eq!((both.host.as_str(), both.path.as_slice()), ("dtn1", &b"/a/file"[..]));
        assert!(args(&["--net", "dtn1", "--end-to-end", "lh://dtn2/file"]).url().is_err());
        assert!(Line::try_parse_from(["bench", "--all", "--net"]).is_err());
        let refused = Bench::plan(&args(&["--end-to-end", "dtn1"])).err().unwrap();
        assert!(refused.code == 2 && refused.what.contains("lh://host/file"), "{refused}");
    }

    #[test]
    fn numbers_are_checked() {
        assert!(parse_seconds("16").is_err() && parse_seconds("0.1").is_err() && parse_seconds("x").is_err());
        assert_eq!(parse_seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert!(parse_interval("0.05").is_err() && parse_interval("0.5").is_ok());
        assert_eq!(args(&[]).block, crate::limits::DEFAULT_BLOCK);
    }
}
