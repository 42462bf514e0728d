//! `longhaul cp`: pull, push, local and third-party copies.

use super::cp_manifest::manifest;
use super::fail::{Fail, INTERRUPTED, finish, say};
use super::operands::{From, Plan, To, plan, relative};
use super::progress::Progress;
use super::report::{exit_code, json, text};
use super::third_party::ThirdParty;
use super::tuning::{MarkingArgs, Other, TuningArgs};
use crate::checksum::{ChecksumKind, Expected};
use crate::control::client::{ClientOptions, Patience, PeerClient, PeerTickets};
use crate::control::messages::{PartialOptions, StatKind, TicketRequest, WirePath};
use crate::control::settings::parse_word;
use crate::control::state::StateDir;
use crate::control::tls::{Fingerprint, OwnTls, TlsFiles};
use crate::control::url::PeerUrl;
use crate::engine::error::Class;
use crate::engine::handle::{Engine, EngineConfig, TicketSource, TransferWatch};
use crate::engine::rows::Rows;
use crate::engine::spec::{
    DestinationSpec, EngineChoice, IfExists, IoChoice, Preserve, Report, Synthetic, TransferOptions, Verdict, Verify,
};
use crate::engine::tuning::fill;
use crate::limits::{DEFAULT_ARENA_BYTES, DEFAULT_BLOCK, MAX_BLOCK, MAX_STREAMS, MIN_BLOCK};
use crate::profile::{Chosen, CpuMap, Marking, SharedProfiles, Tuning, check_congestion, split_congestion};
use crate::units::{Bytes, parse_rate, parse_size};
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long an interrupted transfer may take to write its checkpoint.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at a third-party copy, at most; at first a tenth of the time that it has run, so that what is short
/// is not made long by the looking.
const POLL: Duration = Duration::from_millis(500);
/// Between the first two.
const POLL_FIRST: Duration = Duration::from_millis(10);
/// How long the destination agent of a third-party copy may be out of reach before the client stops looking.
const POLL_PATIENCE: Duration = Duration::from_secs(60);
/// How long an unreachable peer is asked for new tickets.
const RETRY_FOR: Duration = Duration::from_secs(60);
/// How long an agent that has no place for one more connection or transfer is waited for.
const BUSY_PATIENCE: Duration = Duration::from_secs(300);
/// The smallest arena: a few blocks for each of a few streams.
const MEMORY_MIN: u64 = 8 << 20;
/// The name under which this client's own end appears in its reports.
const PRINCIPAL: &str = "cp";

/// Arguments of `cp`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// SRC... DST: paths or `lh://host[:port]/path`. One SRC becomes DST; below DST if that ends with a slash
    #[arg(value_name = "SRC... DST", required = true, num_args = 2..)]
    pub operands: Vec<OsString>,
    /// Copy directories with what is in them
    #[arg(short, long)]
    pub recursive: bool,
    /// TCP streams [default: chosen by the engine]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_STREAMS)))]
    pub streams: Option<u16>,
    /// Unit of one I/O: a power of two from 64KiB to 1MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_block)]
    pub block: Option<u32>,
    /// TCP congestion control, by its kernel name; several with commas: the first that is to be had
    #[arg(long, value_name = "NAME", value_parser = parse_congestion)]
    pub cc: Option<String>,
    /// Socket buffers [default: the kernel's tuning]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub window: Option<u64>,
    /// Cap over all streams: 2Gbit, 500Mbit, 100MiB
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub rate: Option<u64>,
    /// wire: digests on receipt; disk: also read back [default: wire here, an agent's own default there]
    #[arg(long, value_name = "wire|disk", value_parser = parse_word::<Verify>)]
    pub verify: Option<Verify>,
    /// What the one file has to be: crc32c:e3069283, sha256:...
    #[arg(long, value_name = "ALG:HEX")]
    pub expect: Option<Expected>,
    /// times, mode, special (setuid, setgid, sticky), or none
    #[arg(long, value_name = "LIST", default_value = "times,mode", value_parser = parse_preserve)]
    pub preserve: Preserve,
    /// on or off; off only if both ends say off [default: on]
    #[arg(long, value_name = "on|off", value_parser = parse_switch)]
    pub encrypt: Option<bool>,
    /// error, skip or replace [default: skip what is proved equal, fail on the rest]
    #[arg(long, value_name = "WHAT", value_parser = parse_word::<IfExists>)]
    pub if_exists: Option<IfExists>,
    /// Say what would be done, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// Write a manifest of what arrived, for `longhaul verify`
    #[arg(long, value_name = "FILE")]
    pub write_manifest: Option<PathBuf>,
    /// Beside the manifest a FILE.sha256 for `sha256sum -c`, by a second read
    #[arg(long, requires = "write_manifest")]
    pub sha256: bool,
    /// Checksums for every file: crc32c, adler32, sha256, md5
    #[arg(long, value_name = "KINDS", value_delimiter = ',')]
    pub checksum: Vec<ChecksumKind>,
    /// Agents and tokens.
    #[command(flatten)]
    pub peer: PeerArgs,
    /// Another agent's equal copy of the one SRC, to fetch from both
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    pub also: Vec<PeerUrl>,
    /// auto, uring or epoll
    #[arg(long, value_name = "WHICH", default_value = "auto", value_parser = parse_word::<EngineChoice>)]
    pub engine: EngineChoice,
    /// Worker threads [default: one for each core, at most 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: Option<u16>,
    /// CPUs that the engine's threads keep to: a list as 0-3,8, or node:N for those of a NUMA node [default: all]
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuMap>,
    /// Block buffers of this process [default: 96MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub memory: Option<u64>,
    /// auto, buffered, dontcache, direct or splice (unencrypted bytes go from the page cache to the socket) [default: auto]
    #[arg(long, value_name = "HOW", value_parser = parse_word::<IoChoice>)]
    pub io: Option<IoChoice>,
    /// on or off: whether what nobody has set (congestion control, streams, depth, pacing) is tuned while it runs
    /// [default: on]
    #[arg(long, value_name = "on|off", value_parser = parse_switch)]
    pub tuner: Option<bool>,
    /// Say what held it back: the evidence, and what to change
    #[arg(long)]
    pub explain: bool,
    /// Profiles.
    #[command(flatten)]
    pub tuning: TuningArgs,
    /// Tags.
    #[command(flatten)]
    pub marking: MarkingArgs,
    /// What they led to.
    #[arg(skip)]
    pub chosen: Option<Chosen>,
}

/// How to reach and trust agents.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct PeerArgs {
    /// The agent's token [default: $LONGHAUL_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The source agent's token, when both ends are agents and have different ones
    #[arg(long, value_name = "FILE")]
    pub source_token_file: Option<PathBuf>,
    /// SHA-256 of the agent's certificate
    #[arg(long, value_name = "HEX")]
    pub peer_fingerprint: Option<Fingerprint>,
    /// File of pinned agents [default: ~/.config/longhaul/known_peers]
    #[arg(long, value_name = "FILE")]
    pub known_peers: Option<PathBuf>,
    /// Allow plain HTTP off loopback: tokens can be read on the way
    #[arg(long)]
    pub insecure_http: bool,
    /// A private authority, and what this client shows.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// Certificates of a private authority (`longhaul pki`), for agents that are not pinned or that ask for one.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TlsArgs {
    /// Certificate of a private authority: trusts what it issued for the host that is dialled
    #[arg(long, value_name = "FILE", global = true)]
    pub tls_ca: Option<PathBuf>,
    /// This client's own certificate, for agents that ask for one
    #[arg(long, value_name = "FILE", requires_all = ["tls_ca", "tls_key"], global = true)]
    pub tls_cert: Option<PathBuf>,
    /// Its key, mode 0600
    #[arg(long, value_name = "FILE", requires = "tls_cert", global = true)]
    pub tls_key: Option<PathBuf>,
}

impl TlsArgs {
    /// For a client.
    pub fn own(&self) -> Option<OwnTls> {
        let files = self.tls_cert.clone().zip(self.tls_key.clone());
        let files = files.map(|(certificate, key)| TlsFiles { certificate, key });
        self.tls_ca.clone().map(|authority| OwnTls { files, authority })
    }
}

pub(super) fn parse_block(text: &str) -> Result<u32, String> {
    let size = parse_size(text).map_err(|e| e.to_string())?;
    u32::try_from(size).ok().filter(|size| size.is_power_of_two() && (MIN_BLOCK..=MAX_BLOCK).contains(size)).ok_or_else(
        || format!("a block is a power of two from {} to {}", Bytes(MIN_BLOCK.into()), Bytes(MAX_BLOCK.into())),
    )
}

pub(super) fn parse_congestion(text: &str) -> Result<String, String> {
    check_congestion(&split_congestion(text)).map(|()| text.to_owned())
}

fn parse_memory(text: &str) -> Result<u64, String> {
    let size = parse_size(text).map_err(|e| e.to_string())?;
    if size < MEMORY_MIN { Err(format!("at least {}", Bytes(MEMORY_MIN))) } else { Ok(size) }
}

pub(super) fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".to_owned()),
    }
}

fn parse_preserve(text: &str) -> Result<Preserve, String> {
    let mut preserve = Preserve { mode: false, times: false, special: false };
    if text == "none" {
        return Ok(preserve);
    }
    for word in text.split(',') {
        match word {
            "mode" => preserve.mode = true,
            "times" => preserve.times = true,
            "special" => (preserve.mode, preserve.special) = (true, true),
            _ => return Err(format!("`{word}` is none of times, mode, special; `none` stands alone")),
        }
    }
    Ok(preserve)
}

/// An agent, as a host or as `lh://host[:port]`.
pub fn parse_peer(text: &str) -> Result<PeerUrl, Fail> {
    let typed = if text.starts_with("lh://") { text.to_owned() } else { format!("lh://{text}") };
    parse_url(&typed).map_err(Fail::usage)
}

/// An agent, as `lh://host[:port]/path`.
pub fn parse_url(text: &str) -> Result<PeerUrl, String> {
    PeerUrl::parse(text.as_bytes()).map_err(|e| e.to_string())
}

impl PeerArgs {
    /// A client of that agent.
    pub(super) fn client(&self, url: &PeerUrl, is_source: bool) -> Result<PeerClient, Fail> {
        let own = self.source_token_file.clone().filter(|_| is_source);
        let options = ClientOptions {
            token_file: own.or_else(|| self.token_file.clone()),
            fingerprint: self.peer_fingerprint,
            known_peers: self.known_peers.clone(),
            insecure_http: self.insecure_http,
            tls: self.tls.own(),
            patience: Some(Patience { longest: BUSY_PATIENCE, say: busy }),
        };
        Ok(PeerClient::new(url.clone(), options)?)
    }
}

impl Args {
    /// What the engine is asked for.
    fn options(&self) -> TransferOptions {
        let mut options = TransferOptions {
            streams: self.streams,
            block: self.block.unwrap_or(DEFAULT_BLOCK),
            congestion: self.cc.clone(),
            window: self.window,
            rate: self.rate,
            verify: self.verify.unwrap_or_default(),
            expect: self.expect.clone(),
            preserve: self.preserve,
            encrypt: self.encrypt,
            if_exists: self.if_exists.unwrap_or_default(),
            dry_run: self.dry_run,
            checksums: self.checksum.clone(),
            recursive: self.recursive,
            io: self.io.unwrap_or_default(),
            bind: self.tuning.bind,
            tuner: self.tuner.unwrap_or(true),
            tuning: Tuning { scitag: self.marking.scitag, ..Tuning::default() },
            collectors: self.marking.firefly.clone(),
            ..TransferOptions::default()
        };
        if let Some(chosen) = &self.chosen {
            fill(&mut options, chosen);
        }
        options
    }

    /// Chooses the profile, and takes from it what flags leave open.
    fn by_profile(mut self, plan: &Plan) -> Result<Self, Fail> {
        let other = match (&plan.from, &plan.to) {
            (From::Agent(..), To::Agent(_)) => Other::Theirs,
            (From::Agent(url, _), _) | (_, To::Agent(url)) => Other::Agent(url),
            _ => Other::Here,
        };
        self.chosen = self.tuning.choose(other)?;
        if let Some(chosen) = &self.chosen {
            let files = &chosen.named.profile.files;
            self.block = self.block.or(files.block.and_then(|size| u32::try_from(size).ok()));
            self.io = self.io.or(files.io.as_deref().and_then(|word| parse_word(word).ok()));
            self.encrypt = self.encrypt.or(files.encrypt);
            self.cpus = self.cpus.or_else(|| chosen.named.profile.threads.cpus.clone());
        }
        if !self.marking.firefly.is_empty() && self.options().tuning.scitag.is_none() {
            return Err(Fail::usage("--firefly tells of tagged flows: say which tag with --scitag"));
        }
        Ok(self)
    }

    /// The same for an agent: what was not said is left to it.
    fn partial_options(&self) -> PartialOptions {
        let mut partial = PartialOptions::from(&self.options());
        if self.verify.is_none() {
            partial.0.remove("verify");
        }
        partial
    }

    fn check(&self, plan: &Plan) -> Result<(), Fail> {
        let one = self.operands.len() == 2;
        if self.expect.is_some() && (!one || self.recursive) {
            return Err(Fail::usage("--expect is for one file"));
        }
        if !self.also.is_empty() && (!one || matches!(plan.from, From::Here(_))) {
            return Err(Fail::usage("--also names another copy of one SRC that an agent has"));
        }
        if self.write_manifest.is_some() && matches!((&plan.from, &plan.to), (From::Agent(..), To::Agent(_))) {
            let what = "--write-manifest needs one end here: of a copy between two agents the client is told the outcome, not \
                        every file's digest; run `longhaul cp` on the source's or the destination's host instead";
            return Err(Fail::usage(what));
        }
        if let Some(cpus) = &self.cpus {
            if matches!((&plan.from, &plan.to), (From::Agent(..), To::Agent(_))) {
                let what = "--cpus is for a copy with one end here: an agent has a setting of its own (`cpus`)";
                return Err(Fail::usage(what));
            }
            crate::engine::cpus::check(cpus).map_err(|why| Fail::usage(format!("--cpus {cpus}: {why}")))?;
        }
        self.marking.check(matches!((&plan.from, &plan.to), (From::Agent(..), To::Agent(_))))?;
        if let (To::Here(path), true) = (&plan.to, plan.needs_directory)
            && !path.is_dir()
        {
            return Err(Fail::usage("several sources go below a directory: end DST with a slash to have it made"));
        }
        Ok(())
    }
}

/// Runs the command. The exit code.
pub fn run(args: Args) -> u8 {
    finish(args.json, execute(args))
}

fn execute(args: Args) -> Result<u8, Fail> {
    let plan = plan(&args.operands, args.recursive)?;
    args.check(&plan)?;
    let args = &args.by_profile(&plan)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| Fail::new(1, format!("cannot start the program's threads: {e}")))?;
    let ended = runtime.block_on(copy(args, &plan))?;
    let mut report = ended.report;
    let mut more = Vec::new();
    if let Some(path) = &args.write_manifest
        && !ended.interrupted
        && matches!(report.verdict, Verdict::Durable | Verdict::Verified)
    {
        let rows = ended.rows.map(|rows| rows.take()).unwrap_or_default();
        more.push(("manifest", manifest(args, &plan, path, rows, &mut report)?));
    }
    say(&if args.json { format!("{}\n", json(&report, &more)) } else { text(&report, args.explain) });
    if ended.interrupted {
        eprintln!("longhaul: interrupted; repeating the same command resumes the copy");
        return Ok(INTERRUPTED);
    }
    Ok(exit_code(&report))
}

/// How a copy came to its end.
#[derive(Debug)]
struct Ended {
    report: Report,
    interrupted: bool,
    /// Names and digests, if a manifest is to be written.
    rows: Option<Arc<Rows>>,
}

async fn copy(args: &Args, plan: &Plan) -> Result<Ended, Fail> {
    let mut stop = Stop::new()?;
    let mut progress = Progress::new(!args.json);
    let ended = match (&plan.from, &plan.to) {
        (From::Agent(source, _), To::Agent(destination)) => {
            third_party(args, plan, source, destination, &mut progress, &mut stop).await
        }
        _ => with_engine(args, plan, &mut progress, &mut stop).await,
    };
    progress.finish();
    ended
}

/// Walk 1: a copy with at least one end here; what was asked for becomes the two ends' specs.
async fn with_engine(args: &Args, plan: &Plan, progress: &mut Progress, stop: &mut Stop) -> Result<Ended, Fail> {
    let (agent, note) = client_id(state_home());
    let both_here = matches!((&plan.from, &plan.to), (From::Here(_), To::Here(_)));
    let engine = Engine::start(EngineConfig {
        workers: args.workers.map(usize::from),
        cpus: args.cpus.clone(),
        arena_bytes: args.memory.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(DEFAULT_ARENA_BYTES),
        engine: args.engine,
        // A local copy's streams come from this very process.
        data_listen: both_here.then_some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        advertise: Vec::new(),
        agent,
        block: args.block.unwrap_or(DEFAULT_BLOCK),
        retry_for: RETRY_FOR,
        profiles: SharedProfiles::default(),
        marking: Marking::default(),
        synthetic: Synthetic::Off,
    })?;
    let handle = engine.handle();
    let mut clients = Vec::new();
    let rows = args.write_manifest.is_some().then(Arc::<Rows>::default);
    let to = match &plan.to {
        To::Here(path) => Some(DestinationSpec {
            base: PathBuf::from("/"),
            path: relative(path)?,
            becomes: plan.becomes,
            options: args.options(),
            rows: rows.clone(),
        }),
        To::Agent(_) => None,
    };
    let watch = match (plan.source_spec(args.recursive, args.encrypt)?, to, &plan.from, &plan.to) {
        (Some(from), Some(to), ..) => handle.local(from, to).await?,
        (Some(mut from), None, _, To::Agent(url)) => {
            from.rows = rows.clone();
            let client = Arc::new(args.peer.client(url, false)?);
            clients.push(client.clone());
            stop.or(require_directory(plan, &client)).await?;
            let tickets = PeerTickets::new(client, write_request(args, plan, url));
            handle.push(PRINCIPAL, from, Arc::new(tickets), args.options()).await?
        }
        (None, Some(to), From::Agent(url, _), _) => {
            let mut sources: Vec<Arc<dyn TicketSource>> = Vec::new();
            for (url, paths) in equal_sources(args, plan, url) {
                let client = Arc::new(args.peer.client(url, true)?);
                clients.push(client.clone());
                sources.push(Arc::new(PeerTickets::new(client, read_request(args, paths))));
            }
            handle.pull(PRINCIPAL, to, sources).await?
        }
        _ => return Err(Fail::usage("a copy between two agents does not pass through here")),
    };
    let mut ended = drive(watch, progress, stop).await?;
    ended.rows = rows;
    ended.report.notes.extend(note);
    ended.report.notes.extend(clients.iter().flat_map(|client| client.notes()));
    handle.shutdown(CHECKPOINT_PATIENCE).await;
    Ok(ended)
}

/// The one SRC's agent and every `--also`, each with its paths there.
fn equal_sources<'a>(args: &'a Args, plan: &Plan, first: &'a PeerUrl) -> Vec<(&'a PeerUrl, Vec<WirePath>)> {
    let also = args.also.iter().map(|url| (url, vec![WirePath(url.path.clone())]));
    std::iter::once((first, plan.wire_paths())).chain(also).collect()
}

fn read_request(args: &Args, paths: Vec<WirePath>) -> TicketRequest {
    TicketRequest::Read { paths, recursive: args.recursive, encrypt: args.encrypt }
}

fn write_request(args: &Args, plan: &Plan, url: &PeerUrl) -> TicketRequest {
    TicketRequest::Write {
        path: WirePath(url.path.clone()),
        becomes: plan.becomes,
        options: args.partial_options(),
        encrypt: args.encrypt,
    }
}

/// Several SRC and a remote DST without a slash: it has to be a directory that is there.
async fn require_directory(plan: &Plan, client: &PeerClient) -> Result<(), Fail> {
    if !plan.needs_directory {
        return Ok(());
    }
    match client.stat(&client.url().path).await {
        Ok(found) if found.kind == StatKind::Directory => Ok(()),
        Err(error) if error.class != Class::NotFound => Err(error.into()),
        _ => Err(Fail::usage("several sources go below a directory: end DST with a slash to have it made")),
    }
}

/// Shows progress until the transfer ends. A signal asks it to checkpoint and waits for that; a second one does not.
async fn drive(watch: TransferWatch, progress: &mut Progress, stop: &mut Stop) -> Result<Ended, Fail> {
    let TransferWatch { snapshot, mut done, cancel, .. } = watch;
    let lost = |_| Fail::new(5, "the engine ended without a report: repeat the command to resume");
    let followed = {
        let follow = progress.follow(snapshot);
        tokio::select! {
            report = &mut done => return Ok(Ended { report: report.map_err(lost)?, interrupted: false, rows: None }),
            () = stop.asked() => false,
            () = follow => true,
        }
    };
    if followed {
        // The snapshots end a moment before the report.
        tokio::select! {
            report = &mut done => return Ok(Ended { report: report.map_err(lost)?, interrupted: false, rows: None }),
            () = stop.asked() => {}
        }
    }
    cancel.send_replace(true);
    progress.say("longhaul: stopping; writing the checkpoint");
    tokio::select! {
        report = tokio::time::timeout(CHECKPOINT_PATIENCE, &mut done) => {
            let report = report.ok().and_then(Result::ok).unwrap_or_else(no_report);
            Ok(Ended { report: interrupted(report), interrupted: true, rows: None })
        }
        () = stop.asked() => Ok(Ended { report: no_report(), interrupted: true, rows: None }),
    }
}

/// What is known when a transfer could not say how it ended.
fn no_report() -> Report {
    interrupted(Report { error: Some("stopped before a report was written".to_owned()), ..Report::default() })
}

fn interrupted(mut report: Report) -> Report {
    report.error_class = Some(Class::Interrupted.word().to_owned());
    report
}

/// SIGINT and SIGTERM.
struct Stop {
    int: Signal,
    term: Signal,
}

impl Stop {
    fn new() -> Result<Self, Fail> {
        let listen = |kind| signal(kind).map_err(|e| Fail::new(1, format!("cannot listen for signals: {e}")));
        Ok(Self { int: listen(SignalKind::interrupt())?, term: listen(SignalKind::terminate())? })
    }

    /// What comes before a transfer: there is nothing yet to checkpoint.
    async fn or<T>(&mut self, work: impl Future<Output = Result<T, Fail>>) -> Result<T, Fail> {
        tokio::select! {
            done = work => done,
            () = self.asked() => {
                let what = "stopped while an agent was asked to begin: `longhaul transfer list` shows whether it has";
                Err(Fail::new(INTERRUPTED, what))
            }
        }
    }

    /// Returns when one comes.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

async fn third_party(
    args: &Args,
    plan: &Plan,
    source: &PeerUrl,
    destination: &PeerUrl,
    progress: &mut Progress,
    stop: &mut Stop,
) -> Result<Ended, Fail> {
    let mut sources = Vec::new();
    for (url, paths) in equal_sources(args, plan, source) {
        sources.push((args.peer.client(url, true)?, read_request(args, paths)));
    }
    let client = args.peer.client(destination, false)?;
    stop.or(require_directory(plan, &client)).await?;
    let path = WirePath(destination.path.clone());
    let start = ThirdParty::start(sources, client, path, plan.becomes, args.partial_options());
    let copy = stop.or(async { Ok(start.await?) }).await?;
    let mut ended = watch_third_party(&copy, progress, stop).await?;
    ended.report.notes.extend(copy.notes());
    Ok(ended)
}

async fn watch_third_party(copy: &ThirdParty, progress: &mut Progress, stop: &mut Stop) -> Result<Ended, Fail> {
    let began = tokio::time::Instant::now();
    let mut heard = began;
    let mut stopping: Option<tokio::time::Instant> = None;
    loop {
        match copy.poll().await {
            Ok(Some(view)) => {
                heard = tokio::time::Instant::now();
                progress.update(&view.snapshot);
                if let Some(report) = view.report {
                    let report = if stopping.is_some() { interrupted(report) } else { report };
                    return Ok(Ended { report, interrupted: stopping.is_some(), rows: None });
                }
            }
            Ok(None) => return Err(Fail::new(5, "the destination agent was restarted: repeat the command to resume")),
            Err(error) if matches!(error.class, Class::Retry | Class::Reconnect) && heard.elapsed() < POLL_PATIENCE => {
            }
            Err(error) => return Err(error.into()),
        }
        if stopping.is_some_and(|since| since.elapsed() > CHECKPOINT_PATIENCE) {
            return Ok(Ended { report: no_report(), interrupted: true, rows: None });
        }
        tokio::select! {
            () = tokio::time::sleep((began.elapsed() / 10).clamp(POLL_FIRST, POLL)) => {}
            () = stop.asked() => {
                if stopping.is_some() {
                    return Ok(Ended { report: no_report(), interrupted: true, rows: None });
                }
                progress.say("longhaul: stopping; the destination agent writes its checkpoint");
                if let Err(error) = copy.cancel().await {
                    progress.say(&format!("longhaul: it could not be told to stop: {error}"));
                    return Ok(Ended { report: no_report(), interrupted: true, rows: None });
                }
                stopping = Some(tokio::time::Instant::now());
            }
        }
    }
}

/// A busy agent is waited for.
fn busy(what: &str) {
    eprintln!("longhaul: {what}");
}

/// Where this user's state is kept.
fn state_home() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let home = || {
        let home = std::env::var_os("HOME").filter(|dir| !dir.is_empty());
        home.map(|dir| Path::new(&dir).join(".local/state"))
    };
    state.or_else(home).map(|dir| dir.join("longhaul"))
}

/// Who this client is: part of a transfer's id, so the same for a repeated command. Without a state directory it is
/// made from the machine's own id, which a report mentions.
fn client_id(state: Option<PathBuf>) -> (crate::ids::AgentId, Option<String>) {
    let made = state.map(|dir| StateDir::open(&dir).and_then(|dir| dir.agent_id()));
    if let Some(Ok(id)) = made {
        return (id, None);
    }
    let mut seed = b"longhaul client ".to_vec();
    seed.extend(std::fs::read("/etc/machine-id").unwrap_or_default());
    seed.extend(nix::unistd::gethostname().map(|name| name.as_bytes().to_vec()).unwrap_or_default());
    seed.extend(nix::unistd::geteuid().as_raw().to_le_bytes());
    let why = "no state directory for this user: the client's identity is made from the machine's";
    (crate::ids::AgentId(crate::digest::of(&seed).0), Some(why.to_owned()))
}

#[cfg(test)]
mod tests;
