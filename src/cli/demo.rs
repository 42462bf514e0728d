//! `longhaul demo`: a real tree moves between two agents on loopback, the destination is killed on the way, the copy is
//! resumed, and both trees are compared. Then a main, two sources and a destination show the service
//! (`demo_service`).

use super::demo_agent::{DemoAgent, Home};
use super::demo_service;
use super::demo_tree::{Compared, Measure, check_space, compare, make, measure};
use super::fail::{Fail, INTERRUPTED, VERIFICATION, finish, say, show};
use super::progress::Progress;
use super::report::{count, exit_code, grouped, json, text};
use super::third_party::ThirdParty;
use crate::control::messages::{PartialOptions, TicketRequest, TransferView, WirePath};
use crate::engine::spec::{Report, TransferOptions, Verify};
use crate::ids::TransferId;
use crate::units::{Bytes, parse_size};
use serde_json::json;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// The share of the bytes at which the destination is killed.
const CRASH_AT: f64 = 0.5;
/// Between two looks at the copy before the crash: a fast one takes a second or two in all.
const WATCH: Duration = Duration::from_millis(10);
/// Between two looks afterwards.
const POLL: Duration = Duration::from_millis(100);
/// The longest that a copy may make no progress before the demo gives up.
const STALL: Duration = Duration::from_secs(120);
/// Free space beyond what is made: the file system's own needs, and logs.
const MARGIN: u64 = 256 << 20;
/// What threads that still write may take to notice that the demo was interrupted.
const THREADS_END: Duration = Duration::from_secs(10);

/// Arguments of `demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Bytes of the big files
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = parse_size)]
    pub size: u64,
    /// Move this directory instead of a made one; it is only read
    #[arg(long, value_name = "DIR", conflicts_with_all = ["size", "small"])]
    pub dir: Option<PathBuf>,
    /// Small files beside the big ones
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub small: u32,
    /// Do not kill the destination on the way
    #[arg(long)]
    pub no_crash: bool,
    /// copy (two agents), service (a main, two sources, a destination), or both
    #[arg(long, value_name = "WHICH", default_value = "both", value_parser = ["copy", "service", "both"])]
    pub part: String,
    /// When all is done, leave the service up until Ctrl-C, to look at its page
    #[arg(long)]
    pub stay: bool,
    /// Leave both trees, states and logs
    #[arg(long)]
    pub keep: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// on or off
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = ["on", "off"])]
    pub encrypt: String,
}

/// Runs the command. The exit code is 0 only if both trees are equal.
pub fn run(args: Args) -> u8 {
    finish(args.json, execute(&args))
}

fn execute(args: &Args) -> Result<u8, Fail> {
    let work = Work::new(args.keep)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| Fail::new(1, format!("cannot start the program's threads: {e}")))?;
    let result = runtime.block_on(async {
        let listen = |kind| signal(kind).map_err(|e| Fail::new(1, format!("cannot listen for signals: {e}")));
        let (mut int, mut term) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        let stay = Stay { wanted: args.stay, ..Stay::default() };
        let shown = both(args, &work.dir, &interrupted, &stay);
        tokio::pin!(shown);
        loop {
            tokio::select! {
                result = &mut shown => return result,
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
            if !stay.up.load(Ordering::Relaxed) {
                return Err(Fail::new(INTERRUPTED, "interrupted; the agents are ended"));
            }
            stay.enough.notify_one();
        }
    });
    interrupted.store(true, Ordering::Relaxed);
    // The agents ended with the story; threads that still read or write are to be gone before the directory is.
    runtime.shutdown_timeout(THREADS_END);
    let (document, code) = result?;
    say(&document);
    if args.keep {
        eprintln!("kept: {}", show(&work.dir));
    }
    Ok(code)
}

/// The demo's directory, removed when dropped.
#[derive(Debug)]
struct Work {
    dir: PathBuf,
    keep: bool,
}

impl Work {
    fn new(keep: bool) -> Result<Self, Fail> {
        let base =
            std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()).map_or_else(|| PathBuf::from("."), PathBuf::from);
        let base = fs::canonicalize(&base).map_err(|e| Fail::io("use", &base, &e))?;
        let dir = base.join(format!("longhaul-demo-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&dir).map_err(|e| Fail::io("make", &dir, &e))?;
        Ok(Self { dir, keep })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("longhaul: {} could not be removed: {error}", show(&self.dir));
        }
    }
}

/// What the demo moves.
#[derive(Debug, Clone)]
struct Tree {
    /// The source agent's root.
    root: PathBuf,
    /// Below it, as a client names it.
    path: &'static str,
    /// The tree itself.
    dir: PathBuf,
}

/// Runs blocking work beside the signals.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fail> + Send + 'static,
) -> Result<T, Fail> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Fail::new(1, format!("a thread ended early: {e}")))?
}

/// Whether the service stays up in the end, and until when.
#[derive(Debug, Default)]
pub struct Stay {
    /// `--stay`.
    pub wanted: bool,
    /// It is up and nothing more happens: a signal is no interruption.
    pub up: AtomicBool,
    /// Somebody has seen enough.
    pub enough: Notify,
}

/// The whole demo: what to print, and the exit code.
async fn both(args: &Args, work: &Path, interrupted: &Arc<AtomicBool>, stay: &Stay) -> Result<(String, u8), Fail> {
    let copied = match args.part.as_str() {
        "service" => None,
        _ => Some(story(args, work, interrupted).await?),
    };
    if args.part == "copy" {
        return copied.ok_or_else(|| Fail::usage("no such part"));
    }
    let program = std::env::current_exe().map_err(|e| Fail::new(1, format!("cannot find the own program: {e}")))?;
    let bytes = if args.dir.is_some() { u64::MAX } else { args.size };
    let served = demo_service::story(&work.join("service"), &program, bytes, stay, interrupted).await?;
    Ok(joined(args.json, copied, &served))
}

/// What is said in the end: the copy's report with the service's behind it, or one document of both.
fn joined(as_json: bool, copied: Option<(String, u8)>, served: &demo_service::Served) -> (String, u8) {
    let (text, code) = copied.unwrap_or_default();
    let code = if code == 0 { served.code() } else { code };
    if !as_json {
        return (format!("{text}{}", served.text()), code);
    }
    let mut document: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|_| json!({}));
    document["service"] = json!(served);
    document["exit_code"] = code.into();
    (format!("{document}\n"), code)
}

/// The first part: what to print, and the exit code.
async fn story(args: &Args, work: &Path, interrupted: &Arc<AtomicBool>) -> Result<(String, u8), Fail> {
    let tree = prepare(args, work, interrupted).await?;
    let facts = blocking({
        let dir = tree.dir.clone();
        move || measure(&dir)
    })
    .await?;
    eprintln!("The tree: {} in {} at {}", Bytes(facts.bytes), count(facts.files, "file"), show(&tree.dir));
    let encrypt = args.encrypt == "on";
    let program = std::env::current_exe().map_err(|e| Fail::new(1, format!("cannot find the own program: {e}")))?;
    let home = |name: &'static str, root: PathBuf| {
        let state = work.join(format!("{name}-state"));
        Home { name, roles: name, program: program.clone(), root: Some(root), state, encrypt, more: Vec::new() }
    };
    let destination_root = work.join("destination");
    fs::create_dir(&destination_root).map_err(|e| Fail::io("make", &destination_root, &e))?;
    let (from, to) = (home("source", tree.root.clone()), home("destination", destination_root.clone()));
    let source = start(&from).await?;
    let mut destination = start(&to).await?;
    eprintln!("A source and a destination agent run on loopback; the bytes go straight between them.");

    let mut crash = None;
    if !args.no_crash {
        let copy = begin(&tree, &source, &destination, encrypt).await?;
        match until(&copy, facts, Some(CRASH_AT)).await? {
            Outcome::Reached(placed) => {
                blocking(move || {
                    destination.crash();
                    Ok(())
                })
                .await?;
                eprintln!(
                    "Killed the destination (SIGKILL) with {} placed; starting it again and repeating the copy.",
                    Bytes(placed)
                );
                destination = start(&to).await?;
                crash = Some(placed);
            }
            Outcome::Ended(report) if exit_code(&report) == 0 => {
                eprintln!("The copy was over before it could be interrupted; a larger --size shows the crash as well.");
            }
            Outcome::Ended(report) => return Err(failed(&report)),
        }
    }
    let copy = begin(&tree, &source, &destination, encrypt).await?;
    let Outcome::Ended(report) = until(&copy, facts, None).await? else {
        return Err(Fail::new(1, "the copy did not end"));
    };
    let sent = sent_by_source(&source, &report, 1 + usize::from(crash.is_some())).await;
    eprintln!("Reading both trees and comparing them.");
    let compared = blocking({
        let (left, right) = (tree.dir.clone(), destination_root.join("copy"));
        move || compare(&left, &right)
    })
    .await?;
    let stopped = blocking(move || Ok(source.stop() & destination.stop())).await?;
    Ok(conclude(args.json, &Findings { facts, crash, sent, report: *report, compared, stopped }))
}

async fn prepare(args: &Args, work: &Path, interrupted: &Arc<AtomicBool>) -> Result<Tree, Fail> {
    if let Some(dir) = &args.dir {
        let dir = fs::canonicalize(dir).map_err(|e| Fail::io("read", dir, &e))?;
        if work.starts_with(&dir) {
            let what = format!("{} holds the demo's own directory: set TMPDIR to a place outside of it", show(&dir));
            return Err(Fail::usage(what));
        }
        let facts = blocking({
            let dir = dir.clone();
            move || measure(&dir)
        })
        .await?;
        check_space(work, facts.bytes + facts.bytes / 20 + MARGIN, "take a smaller --dir, or set TMPDIR")?;
        return Ok(Tree { root: dir.clone(), path: "/", dir });
    }
    let (size, small) = (args.size, args.small);
    // Both copies; a small file takes some tens of KiB with its metadata.
    let need = size.saturating_add(u64::from(small) * (32 << 10)).saturating_mul(2);
    check_space(work, need.saturating_add(MARGIN), "give a smaller --size, or set TMPDIR")?;
    eprintln!("Making a tree of {} and {}.", Bytes(size), count(small.into(), "small file"));
    let root = work.join("source");
    fs::create_dir(&root).map_err(|e| Fail::io("make", &root, &e))?;
    let dir = root.join("data");
    blocking({
        let (dir, interrupted) = (dir.clone(), interrupted.clone());
        move || make(&dir, size, small, &interrupted)
    })
    .await?;
    Ok(Tree { root, path: "/data", dir })
}

async fn start(home: &Home) -> Result<DemoAgent, Fail> {
    let home = home.clone();
    blocking(move || DemoAgent::start(&home)).await
}

/// The same command each time: a repeated one resumes.
async fn begin(tree: &Tree, source: &DemoAgent, destination: &DemoAgent, encrypt: bool) -> Result<ThirdParty, Fail> {
    let encrypt = Some(encrypt);
    let read = TicketRequest::Read { paths: vec![WirePath(tree.path.into())], recursive: true, encrypt };
    let options = TransferOptions { recursive: true, encrypt, verify: Verify::Disk, ..TransferOptions::default() };
    let (from, to) = (source.client(tree.path)?, destination.client("/copy")?);
    let path = WirePath(b"/copy".to_vec());
    Ok(ThirdParty::start(vec![(from, read)], to, path, true, PartialOptions::from(&options)).await?)
}

enum Outcome {
    /// So many bytes are placed.
    Reached(u64),
    /// It ended.
    Ended(Box<Report>),
}

/// Watches until the copy has ended, or until a share of the bytes is placed.
async fn until(copy: &ThirdParty, facts: Measure, share: Option<f64>) -> Result<Outcome, Fail> {
    let mut progress = Progress::new(true);
    let (mut moved, mut since) = (0, tokio::time::Instant::now());
    loop {
        let view = copy.poll().await?.ok_or_else(|| Fail::new(1, "the destination agent ended by itself"))?;
        progress.update(&view.snapshot);
        if let Some(report) = view.report {
            return Ok(Outcome::Ended(Box::new(report)));
        }
        let now = (view.snapshot.bytes, view.snapshot.files);
        if share.is_some_and(|share| now.0 as f64 >= facts.bytes as f64 * share && now.0 > 0) {
            return Ok(Outcome::Reached(now.0));
        }
        if now.0 + now.1 != moved {
            (moved, since) = (now.0 + now.1, tokio::time::Instant::now());
        } else if since.elapsed() > STALL {
            return Err(Fail::new(5, format!("the copy has not moved for {} s", STALL.as_secs())));
        }
        tokio::time::sleep(if share.is_some() { WATCH } else { POLL }).await;
    }
}

fn failed(report: &Report) -> Fail {
    Fail::new(exit_code(report).max(1), format!("the copy failed\n{}", text(report, true).trim_end()))
}

/// Payload bytes that the source has sent in all sessions of a transfer, by its own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sent {
    bytes: u64,
    /// Sessions.
    sessions: usize,
    /// Whether every session ended with a count; else the last progress of it was taken.
    exact: bool,
}

/// `None` if the source did not say, or knows fewer sessions than there were.
async fn sent_by_source(source: &DemoAgent, report: &Report, sessions: usize) -> Option<Sent> {
    let views = source.client("/").ok()?.transfers().await.ok()?;
    Some(sum_sent(&views, report.transfer)).filter(|sent| sent.bytes > 0 && sent.sessions >= sessions)
}

fn sum_sent(views: &[TransferView], transfer: Option<TransferId>) -> Sent {
    let mut sum = Sent { bytes: 0, sessions: 0, exact: true };
    for view in views.iter().filter(|view| view.role == "source" && view.transfer == transfer) {
        let counted = view.report.as_ref().map_or(0, |report| report.sent_bytes);
        sum.bytes += if counted > 0 { counted } else { view.snapshot.bytes };
        sum.exact &= counted > 0 || view.snapshot.bytes == 0;
        sum.sessions += 1;
    }
    sum
}

/// Everything that the demo has found out.
#[derive(Debug)]
struct Findings {
    facts: Measure,
    /// Bytes that were placed when the destination was killed.
    crash: Option<u64>,
    /// By the source, over both runs.
    sent: Option<Sent>,
    report: Report,
    compared: Compared,
    /// Whether both agents ended in order.
    stopped: bool,
}

impl Findings {
    /// What was sent more than once over both runs.
    fn resent(&self) -> Option<u64> {
        self.sent.map(|sent| sent.bytes.saturating_sub(self.facts.data_bytes))
    }

    fn code(&self) -> u8 {
        match exit_code(&self.report) {
            0 if self.compared.different > 0 => VERIFICATION,
            0 if !self.stopped => 1,
            code => code,
        }
    }
}

fn conclude(as_json: bool, found: &Findings) -> (String, u8) {
    let code = found.code();
    if as_json {
        let compared = &found.compared;
        let demo = json!({
            "tree": { "bytes": found.facts.bytes, "data_bytes": found.facts.data_bytes, "files": found.facts.files },
            "crash": found.crash.is_some(),
            "placed_at_crash_bytes": found.crash,
            "source_sent_bytes": found.sent.map(|sent| sent.bytes),
            "source_sent_exact": found.sent.map(|sent| sent.exact),
            "resent_over_all_bytes": found.resent(),
            "compared": {
                "names": compared.names, "bytes_read": compared.bytes_read, "different": compared.different,
                "differences": compared.differences,
            },
            "agents_ended_in_order": found.stopped,
        });
        return (format!("{}\n", json(&found.report, &[("demo", demo), ("exit_code", code.into())])), code);
    }
    let mut out = text(&found.report, false);
    let mut line = |name: &str, value: String| out.push_str(&format!("  {name:<12}{value}\n"));
    match found.crash {
        Some(placed) => line("crash", format!("the destination was killed with {} placed, and resumed", Bytes(placed))),
        None => line("crash", "none".to_owned()),
    }
    match found.resent() {
        Some(resent) => {
            let share = resent as f64 * 100.0 / (found.facts.data_bytes.max(1)) as f64;
            let about = if found.sent.is_some_and(|sent| sent.exact) { "" } else { "about " };
            let runs = if found.crash.is_some() { " over both runs, the killed one too" } else { "" };
            let resent = Bytes(resent);
            line("in all", format!("{about}{resent} sent more than once ({share:.2} %), counted by the source{runs}"));
        }
        None => line("in all", "the source did not say what it sent".to_owned()),
    }
    let Compared { names, bytes_read, different, .. } = &found.compared;
    let read = Bytes(*bytes_read);
    match different {
        0 => line(
            "compared",
            format!("{} names, {read} read on both sides: contents, modes and times are equal", grouped(*names)),
        ),
        _ => line("compared", format!("{} of {} names DIFFER", grouped(*different), grouped(*names))),
    }
    for difference in &found.compared.differences {
        line("differs", difference.clone());
    }
    if !found.stopped {
        line("note", "an agent had to be killed at the end".to_owned());
    }
    (out, code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::spec::Verdict;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn found() -> Findings {
        let report = Report { verdict: Verdict::Verified, durable: true, encrypted: true, ..Report::default() };
        let facts = Measure { bytes: 1000 << 20, data_bytes: 800 << 20, files: 5 };
        let sent = Sent { bytes: 808 << 20, sessions: 2, exact: true };
        let compared = Compared { names: 9, bytes_read: 2000 << 20, ..Compared::default() };
        Findings { facts, crash: Some(400 << 20), sent: Some(sent), report, compared, stopped: true }
    }

    #[test]
    fn says_what_a_person_wants_to_know() {
        let (text, code) = conclude(false, &found());
        assert_eq!(code, 0);
        for part in ["VERIFIED", "killed with 400.0 MiB placed", "8.0 MiB sent more than once (1.00 %)", "are equal"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let (document, _) = conclude(true, &found());
        let value: serde_json::Value = serde_json::from_str(&document).unwrap();
        assert_eq!(value["demo"]["resent_over_all_bytes"], 8 << 20);
        assert_eq!(document.lines().count(), 1);
    }

    /// A killed session leaves no report of the source's own: its last progress counts, and is called inexact.
    #[test]
    fn bytes_are_summed_over_the_sessions_of_this_transfer() {
        let (this, other) = (Some(TransferId([1; 16])), Some(TransferId([2; 16])));
        let view = |transfer, role: &str, placed, counted: Option<u64>| TransferView {
            id: None,
            transfer,
            principal: "admin".into(),
            role: role.into(),
            peer: None,
            local: None,
            path: "data".into(),
            wants_tickets: vec![],
            snapshot: crate::engine::spec::Snapshot { bytes: placed, ..Default::default() },
            report: counted.map(|sent_bytes| Report { sent_bytes, ..Report::default() }),
        };
        let mut views = vec![
            view(this, "source", 70, Some(75)),
            view(other, "source", 1000, Some(1000)),
            view(this, "destination", 1000, Some(1000)),
        ];
        assert_eq!(sum_sent(&views, this), Sent { bytes: 75, sessions: 1, exact: true });
        views.push(view(this, "source", 40, Some(0)));
        assert_eq!(sum_sent(&views, this), Sent { bytes: 115, sessions: 2, exact: false });
        let (text, _) =
            conclude(false, &Findings { sent: Some(Sent { bytes: 801 << 20, sessions: 2, exact: false }), ..found() });
        assert!(text.contains("about 1.0 MiB"), "{text}");
        assert!(conclude(false, &Findings { sent: None, ..found() }).0.contains("did not say"));
    }

    #[test]
    fn zero_only_if_everything_matched() {
        let differs = Compared { different: 1, differences: vec!["a differs".into()], ..Compared::default() };
        let (text, code) = conclude(false, &Findings { compared: differs, ..found() });
        assert!(code == 6 && text.contains("DIFFER") && text.contains("a differs"), "{text}");
        assert_eq!(conclude(false, &Findings { stopped: false, ..found() }).1, 1);
        let partial = Report { verdict: Verdict::Partial, ..Report::default() };
        assert_eq!(conclude(true, &Findings { report: partial, ..found() }).1, 3);
    }

    #[test]
    fn both_parts_make_one_report() {
        let served =
            demo_service::Served { files: 1, registered: 1, agents_ended_in_order: true, ..Default::default() };
        let (document, code) = joined(true, Some(conclude(true, &found())), &served);
        let value: serde_json::Value = serde_json::from_str(&document).unwrap();
        assert_eq!(
            (code, value["service"]["files"].as_u64(), value["demo"]["crash"].as_bool()),
            (0, Some(1), Some(true))
        );
        assert_eq!((value["exit_code"].as_u64(), document.lines().count()), (Some(0), 1));
        let (text, code) = joined(false, Some(("copied\n".into(), 3)), &served);
        assert!(code == 3 && text.starts_with("copied\nThe service"), "{text}");
        assert_eq!(joined(true, None, &demo_service::Served { files: 1, ..Default::default() }).1, VERIFICATION);
    }

    #[test]
    fn arguments() {
        let parse = |line: &[&str]| Line::try_parse_from(std::iter::once(&"demo").chain(line)).map(|line| line.args);
        let plain = parse(&[]).unwrap();
        assert_eq!((plain.size, plain.small, plain.encrypt.as_str()), (4 << 30, 2000, "on"));
        assert_eq!(parse(&["--size", "64MiB", "--encrypt", "off"]).unwrap().size, 64 << 20);
        assert!(parse(&["--part", "service", "--stay"]).unwrap().stay && parse(&["--part", "third"]).is_err());
        assert!(parse(&["--encrypt", "maybe"]).is_err() && parse(&["--dir", "x", "--size", "1"]).is_err());
    }

    #[tokio::test]
    async fn refuses_a_size_that_does_not_fit_and_its_own_directory() {
        let dir = tempfile::tempdir().unwrap();
        let work = fs::canonicalize(dir.path()).unwrap();
        let go = Arc::new(AtomicBool::new(false));
        let mut args = Line::try_parse_from(["demo", "--size", "4000000TiB"]).unwrap().args;
        let fail = prepare(&args, &work, &go).await.unwrap_err();
        assert!(fail.code == 5 && fail.what.contains("smaller --size"), "{}", fail.what);
        assert_eq!(fs::read_dir(&work).unwrap().count(), 0, "nothing was made");
        args.dir = Some(work.clone());
        assert_eq!(prepare(&args, &work.join("w"), &go).await.unwrap_err().code, 2);
    }
}
