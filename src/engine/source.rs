//! A source's session: offers its roots, streams the manifest, opens what is asked for, and looks once more before the
//! destination publishes. It keeps nothing that a crash could lose.

mod opening;
mod packer;
mod scanning;
mod steer;
mod totals;

use super::ahead::Ahead;
use super::channel::Channel;
use super::coordinator::{Ctx, Entry};
use super::error::{Class, TransferError};
use super::fence::{Outdated, Pass};
use super::handle::TicketSource;
use super::limiter;
use super::links::{Links, LinksConfig};
use super::rows::Rows;
use super::session::{self, Joined, NEAR_RTT_US, Opened};
use super::spec::{Report, Snapshot, SourceSpec, TransferOptions, Verdict};
use super::tuning::{at_source, for_peer, marked, socket_options};
use super::worker::mailbox::Mailbox;
use super::worker::{Command, Event, Extra, Fault, PackBody, Packer, StreamKey};
use super::{backoff::Backoff, pool::Pool};
use crate::clock;
use crate::digest::{chunk, wire_check};
use crate::disk::{self, Expect, IoWish, Root, SourceFile};
use crate::grid::Span;
use crate::ids::Handle;
use crate::limits::{MAX_BLOCK, MIN_BLOCK, SEGMENT_CREDIT};
use crate::relpath::RelPath;
use crate::sys::{Arena, SLOT_HEAD, SendPath};
use crate::wire::control::{Accept, Bind, Bound, Message, Offer, OfferedRoot, PeerError, Sealed, SourceStats, Wish};
use crate::wire::data::{PACK_ENTRY_HEAD, PackItem, Status, put_pack_entry};
use crate::wire::views::SourceView;
pub(super) use opening::SPLICE;
pub use opening::mode_word;
use opening::{open_one, place, source_io, status_of, wish};
use packer::SourcePacker;
use scanning::{Scan, ScanJob, StopOnDrop, accepted_meanwhile, spawn_scan};
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use steer::Steering;
use tokio::sync::mpsc;
pub use totals::{WorkerTotals, worker_totals};

/// How long a destination may take for lock and journal before it accepts. Re-digesting after a crash happens later.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(120);
/// Files a peer may have open here at once.
const BOUND_MAX: usize = 4096;
/// Characters of a peer's word for what it is doing.
const PHASE_MAX: usize = 40;
/// Extents in one Bound message, encoded: the rest goes into the next one.
const BOUND_BYTES: usize = 128 << 10;
/// Elements of a list in a peer's report, and keys of a map, that are kept.
const REPORT_LIST_MAX: usize = 100;

/// The source's path for lists and logs, escaped.
pub fn describe(spec: &SourceSpec) -> String {
    let roots: Vec<String> = spec.roots.iter().take(3).map(|root| root.to_string()).collect();
    let more = if spec.roots.len() > 3 { format!(" and {} more", spec.roots.len() - 3) } else { String::new() };
    format!("{}{more}", roots.join(" "))
}

/// An accepted session: somebody pulls from us.
pub async fn serve(ctx: &Rc<Ctx>, spec: SourceSpec, opened: Opened, entry: &Rc<Entry>) -> Report {
    let sent = Rc::new(Cell::new(0));
    let own = &TransferOptions::default();
    let own = for_peer(&ctx.config.profiles.get(), own, &[], &[opened.peer], clock::unix_now());
    let own = marked(&ctx.config.marking, own);
    let result = Session::run(ctx, spec, &own, opened, entry, &sent).await;
    counted(result.unwrap_or_else(|error| super::destination::failed_report(&error)), &sent)
}

/// What this end has sent, whole transfer or not, is what this end has counted: the bound on bytes sent again is
/// checked against it.
fn counted(mut report: Report, sent: &Cell<u64>) -> Report {
    report.sent_bytes = sent.get();
    report
}

/// We push: dial, and dial again with a new ticket while that may help.
pub async fn push(
    ctx: &Rc<Ctx>,
    spec: SourceSpec,
    to: Arc<dyn TicketSource>,
    options: TransferOptions,
    entry: &Rc<Entry>,
) -> Report {
    let options = marked(&ctx.config.marking, options);
    let mut backoff = Backoff::new(ctx.config.retry_for);
    let mut cancel = entry.cancel.subscribe();
    let mut stopping = ctx.stopping.clone();
    let sent = Rc::new(Cell::new(0));
    loop {
        let sockets = socket_options(&options);
        let before = sent.get();
        let opened_one = Cell::new(false);
        let attempt = async {
            let plain = spec.encrypt == Some(false);
            let (ticket, ahead) = Ahead::with_ticket(ctx, &*to, options.streams, |_| sockets.clone()).await?;
            let mut opened = session::open(ctx, &ticket, options.streams, plain, &sockets, ahead).await;
            if opened.as_ref().is_err_and(|error| error.class == Class::Denied)
                && let Ok(fresh) = to.ticket().await
            {
                // It may have waited too long on its way, or its agent has been started anew since: a fresh one tells.
                opened = session::open(ctx, &fresh, options.streams, plain, &sockets, Ahead::default()).await;
            }
            let opened = opened?;
            (entry.status.borrow_mut().peer, entry.status.borrow_mut().local) = (Some(opened.peer), Some(opened.local));
            opened_one.set(true);
            Session::run(ctx, spec.clone(), &options, opened, entry, &sent).await
        };
        let error = tokio::select! {
            biased;
            done = attempt => match done {
                Ok(report) => return counted(report, &sent),
                Err(error) => error,
            },
            _ = cancel.wait_for(|c| *c) => interrupted(),
            _ = stopping.wait_for(|c| *c) => interrupted(),
        };
        if opened_one.get() {
            backoff.met();
        }
        if sent.get() > before && error.class == Class::Reconnect {
            backoff.worked();
        }
        let again = super::destination::try_again(&error, opened_one.get(), before > 0);
        if !again || !backoff.pause(&error, &mut cancel).await {
            return counted(super::destination::failed_report(&error), &sent);
        }
    }
}

pub(super) fn interrupted() -> TransferError {
    TransferError::new(Class::Interrupted, "stopped on request; the same command resumes it")
}

struct Session<'a> {
    ctx: &'a Rc<Ctx>,
    entry: &'a Rc<Entry>,
    root: Arc<Root>,
    roots: Arc<Vec<RelPath>>,
    channel: Channel,
    links: Links,
    files: HashMap<Handle, Arc<SourceFile>>,
    wish: IoWish,
    splice: bool,
    rows: Option<Arc<Rows>>,
    how: BTreeSet<String>,
    began: Instant,
    cpu_ns: u64,
    workers: WorkerTotals,
    steering: Steering,
}

/// Refuses what no source can do. The error is a sentence.
fn can_be(accept: &Accept) -> Result<(), String> {
    let block = accept.block;
    // Blocks tile chunks, and the arithmetic of the workers rests on it.
    if !block.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&block) {
        return Err(format!(
            "the destination asks for blocks of {block} bytes; a block is a power of two, {MIN_BLOCK} to {MAX_BLOCK}"
        ));
    }
    accept.tuning.check().map_err(|(key, why)| format!("the destination asks for a `{key}` that cannot be: {why}"))
}

fn outdated(Outdated(later): Outdated) -> TransferError {
    let what = format!(
        "this destination is out of date: the transfer was opened again since, under epoch {}; only one process may bring it \
         in. Where the storage was set back to an earlier state, `longhaul clean` makes it start anew",
        later.0
    );
    TransferError::new(Class::Permanent, what)
}

/// Whether a destination's answer to the offer is one to go on with.
fn let_in(ctx: &Ctx, entry: &Entry, accept: &Accept) -> Result<Pass, TransferError> {
    can_be(accept).map_err(|what| TransferError::new(Class::Permanent, what))?;
    let status = entry.status.borrow();
    let pass = ctx.fences.borrow_mut().pass(&status.principal, accept.transfer, accept.epoch);
    pass.map_err(outdated)
}

/// How a session ends that is not lost.
enum End {
    /// With the destination's report, JSON.
    Verdict(Vec<u8>),
    /// By our own decision.
    Stopped {
        /// What the destination hears.
        told: TransferError,
        /// What the session ends with here.
        error: TransferError,
    },
}

struct Prepared {
    root: Arc<Root>,
    roots: Vec<RelPath>,
    offered: Vec<OfferedRoot>,
}

/// Identity of this host's running kernel: device and inode numbers can be compared with a peer that has the same.
pub fn host_identity() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    format!(
        "{}",
        crate::digest::of(
            format!("{} {}", read("/etc/machine-id"), read("/proc/sys/kernel/random/boot_id")).as_bytes()
        )
    )
}

fn prepare(spec: &SourceSpec) -> Result<Prepared, TransferError> {
    let open = || {
        if spec.base == Path::new("/") { Root::open_following(&spec.base) } else { Root::open(&spec.base) }
    };
    let root = open().map_err(|error| {
        TransferError::new(Class::Permanent, format!("the source's root cannot be opened: {error}"))
    })?;
    let host = host_identity();
    let (mut roots, mut offered) = (Vec::new(), Vec::new());
    for path in &spec.roots {
        let fail = |error: disk::DiskError| disk_error(&error);
        let real = root.canonical(path).map_err(fail)?;
        let stat = root.stat(&real).map_err(fail)?;
        let directory = stat.kind == disk::Kind::Dir;
        if directory && !spec.recursive {
            let what = "is a directory: add -r to move it with its content";
            return Err(TransferError::new(Class::Permanent, what).at(path));
        }
        let name = path.split_last().map(|(_, name)| name.to_vec()).unwrap_or_default();
        offered.push(OfferedRoot {
            name: hex::encode(name),
            path: hex::encode([spec.base.as_os_str().as_encoded_bytes(), b"/", real.as_bytes()].concat()),
            directory,
            object: (stat.dev, stat.ino),
            host: host.clone(),
        });
        roots.push(real);
    }
    if roots.is_empty() {
        return Err(TransferError::new(Class::Permanent, "there is nothing to offer"));
    }
    Ok(Prepared { root: Arc::new(root), roots, offered })
}

/// What a disk error means to whoever waits for the transfer.
pub fn disk_error(error: &disk::DiskError) -> TransferError {
    use disk::DiskError as E;
    let class = match error {
        E::NotFound { .. } => Class::NotFound,
        E::Denied { .. } => Class::Denied,
        E::NoSpace { .. } | E::Quota { .. } => Class::NoRoom,
        _ if error.may_pass() => Class::Retry,
        _ => Class::Permanent,
    };
    let text = error.to_string();
    // A disk error begins with the path that it is about.
    match text.split_once(": ") {
        Some((path, what)) => TransferError::new(class, what).at(path),
        None => TransferError::new(class, text),
    }
}

/// An error about a path below `base`: below `/`, which is what a local end has, its path is shown as an absolute one.
pub(super) fn rooted(mut error: TransferError, base: &Path) -> TransferError {
    if base == Path::new("/")
        && let Some(at) = &mut error.at
    {
        *at = absolute(at);
    }
    error
}

/// A path as shown, below `/`.
pub(super) fn absolute(shown: &str) -> String {
    format!("/{}", if shown == "." { "" } else { shown })
}

fn lost(fault: &Fault) -> TransferError {
    TransferError::new(Class::Reconnect, format!("the control connection ended: {fault}"))
}

impl<'a> Session<'a> {
    async fn run(
        ctx: &'a Rc<Ctx>,
        spec: SourceSpec,
        own: &TransferOptions,
        opened: Opened,
        entry: &'a Rc<Entry>,
        sent: &Rc<Cell<u64>>,
    ) -> Result<Report, TransferError> {
        let Opened { id, control, streams, encrypted, rtt_us, source, mut joining, peer, .. } = opened;
        let Joined { socket, sealer, opener, notes, .. } = control;
        let socket = socket.wake().map_err(|error| TransferError::new(Class::Reconnect, error.to_string()))?;
        let mut channel = Channel::open(socket, sealer, opener);
        let (recursive, base, rows) = (spec.recursive, spec.base.clone(), spec.rows.clone());
        let prepared = ctx.pool.run(move || prepare(&spec).map_err(|error| rooted(error, &spec.base))).await;
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                tell_error(channel, &error).await;
                return Err(error);
            }
        };
        let offer = Offer {
            agent: ctx.config.agent,
            roots: prepared.offered,
            engine: ctx.engine.engine.to_owned(),
            cpus: ctx.cpus(),
            notes: notes.into_iter().chain(ctx.fallbacks()).collect(),
            process: u64::from(std::process::id()),
            digests: rows.is_some(),
        };
        channel.send(Message::Offer(offer));
        let roots = Arc::new(prepared.roots);
        let (tell, mut scanned) = mpsc::channel(4);
        let stop_scan = Arc::new(AtomicBool::new(false));
        let _stop = StopOnDrop(stop_scan.clone());
        let (root, rows_too) = (prepared.root.clone(), rows.clone());
        let scan = ScanJob { root, base, roots: roots.clone(), recursive, rows: rows_too, tell };
        spawn_scan(&ctx.pool, scan, stop_scan);
        let (accept, early) = accepted_meanwhile(&mut channel, &mut scanned).await?;
        let pass = match let_in(ctx, entry, &accept) {
            Ok(pass) => pass,
            Err(error) => {
                tell_error(channel, &error).await;
                return Err(error);
            }
        };
        entry.status.borrow_mut().transfer = Some(accept.transfer);
        let near = rtt_us < NEAR_RTT_US;
        let used = accept.streams.clamp(1, streams);
        let packer = Arc::new(SourcePacker {
            root: prepared.root.clone(),
            roots: roots.clone(),
            pool: ctx.pool.clone(),
            arena: ctx.arena.clone(),
            synthetic: ctx.config.synthetic.source(),
        });
        let (events, mut happened) = mpsc::unbounded_channel();
        let config = LinksConfig {
            source,
            id,
            block: accept.block.min(ctx.config.block),
            extra: Extra::default(),
            options: at_source(own, &accept, used),
            collectors: own.collectors.clone(),
            near,
        };
        let mut links = Links::new(ctx.clone(), config, Some(packer), events);
        links.tally = Some(sent.clone());
        if let Some(used) = &own.profile {
            links.notes.push(format!("profile {} fills in what was not asked for ({})", used.name, used.why));
        }
        if ctx.config.synthetic.source() {
            links.notes.push("the source is synthetic: it made the bytes up, no file was read".to_owned());
        }
        let splice = accept.io == SPLICE && !encrypted;
        if accept.io == SPLICE && encrypted {
            links.notes.push("--io splice needs --encrypt off at both ends: files are read and sealed".to_owned());
        }
        links.want(used);
        let mut session = Session {
            ctx,
            entry,
            root: prepared.root,
            roots,
            channel,
            links,
            files: HashMap::new(),
            wish: wish(&accept.io, ctx.config.synthetic),
            splice,
            rows,
            how: BTreeSet::new(),
            began: clock::now(),
            cpu_ns: crate::sys::process_cpu_time_ns(),
            workers: worker_totals(ctx),
            steering: Steering {
                own: own.clone(),
                accept: Accept { streams: used, ..accept.clone() },
                said: Wish::default(),
                pacing: None,
                sampled: clock::now(),
                busy: (0, clock::now()),
            },
        };
        session.wish_again();
        let credit = accept.credit.saturating_sub(early);
        let ended = session.drive(credit, pass, peer, &mut joining, &mut happened, &mut scanned).await;
        match ended? {
            End::Verdict(report) => session.verdict(&report).await,
            End::Stopped { told, error } => {
                tell_error(session.channel, &told).await;
                Err(error)
            }
        }
    }

    async fn drive(
        &mut self,
        credit: u32,
        mut pass: Pass,
        peer: std::net::SocketAddr,
        joining: &mut mpsc::UnboundedReceiver<Joined>,
        happened: &mut mpsc::UnboundedReceiver<Event>,
        scanned: &mut mpsc::Receiver<Scan>,
    ) -> Result<End, TransferError> {
        let session = self;
        // What a peer gives is its word only: unread segments would lie in our memory.
        let mut credit = credit.min(2 * SEGMENT_CREDIT);
        let (ctx, entry) = (session.ctx, session.entry);
        let mut stopping = ctx.stopping.clone();
        let mut cancel = entry.cancel.subscribe();
        loop {
            tokio::select! {
                biased;
                message = session.channel.recv_in_step() => match message {
                    Ok(Message::Credit(more)) => credit = credit.saturating_add(more).min(2 * SEGMENT_CREDIT),
                    Ok(Message::Verdict(report)) => return Ok(End::Verdict(report)),
                    Ok(Message::Error(error)) => {
                        let class = Class::from_word(&error.class).unwrap_or(Class::Permanent);
                        return Err(TransferError::new(class, escape_text(&error.what)).at(peer));
                    }
                    Ok(message) => session.message(message).await?,
                    Err(fault) => return Err(lost(&fault)),
                },
                Some(scan) = scanned.recv(), if credit > 0 => {
                    credit -= u32::from(matches!(scan, Scan::Segment(_)));
                    session.channel.send(scan.message());
                }
                Some(joined) = joining.recv() => {
                    if let Err(error) = session.links.attach(joined) {
                        tracing::warn!(%error, "a stream could not be attached");
                    }
                }
                Some(event) = happened.recv() => {
                    if let Event::Dead { stream, why } = event {
                        session.links.dead(stream, &why);
                    }
                }
                _ = stopping.wait_for(|s| *s) => {
                    let told = TransferError::new(Class::Reconnect, "the source is shutting down");
                    return Ok(End::Stopped { told, error: interrupted() });
                }
                _ = cancel.wait_for(|c| *c) => {
                    return Ok(End::Stopped { told: interrupted(), error: interrupted() });
                }
                later = pass.outdated() => {
                    let error = outdated(later);
                    return Ok(End::Stopped { told: error.clone(), error });
                }
            }
        }
    }

    async fn message(&mut self, message: Message) -> Result<(), TransferError> {
        match message {
            Message::Bind(files) => self.bind(files).await,
            Message::Seal(handles) => self.seal(handles).await,
            Message::Unbind(handles) => {
                self.close(&handles);
                Ok(())
            }
            Message::Progress(p) => {
                let shares = limiter::told(p.limiter_shares);
                self.links.look();
                self.links.tell_flows();
                self.pace();
                self.tell_wishes();
                self.tell_sample();
                self.entry.snapshot.send_replace(Snapshot {
                    bytes: p.bytes,
                    total_bytes: p.total_bytes,
                    files: p.files,
                    total_files: p.total_files,
                    scanned: p.scanned,
                    streams: self.links.live.len() as u16,
                    rate: self.steering.accept.rate,
                    priority: self.entry.priority(),
                    phase: escape_text(&p.phase).chars().take(PHASE_MAX).collect(),
                    limiter: limiter::largest(&shares),
                    limiter_shares: shares,
                });
                Ok(())
            }
            Message::Digests(files) => {
                let rows = self.rows.iter();
                rows.for_each(|rows| files.iter().for_each(|(key, digest)| rows.arrived(*key, *digest)));
                Ok(())
            }
            Message::Lost { stream, attempt } => {
                self.links.lost_at_peer(stream, attempt);
                Ok(())
            }
            Message::Retune(to) => {
                self.retune(to);
                Ok(())
            }
            Message::StatsRequest => {
                self.channel.send(Message::Stats(self.stats()));
                Ok(())
            }
            Message::Bye => Err(TransferError::new(Class::Reconnect, "the destination left without a verdict")),
            _ => Err(TransferError::new(Class::Permanent, "the destination sent a message that only a source sends")),
        }
    }

    async fn bind(&mut self, files: Vec<Bind>) -> Result<(), TransferError> {
        if self.files.len() + files.len() > BOUND_MAX {
            return Err(TransferError::new(Class::Permanent, "the destination opens more files than is allowed"));
        }
        let (root, roots, probes, wish) = (self.root.clone(), self.roots.clone(), self.ctx.probes.clone(), self.wish);
        let opened = self.ctx.pool.run(move || {
            let open = |bind: Bind| (bind.handle, open_one(&root, &roots, &probes, wish, &bind));
            files.into_iter().map(open).collect::<Vec<_>>()
        });
        let (mut answers, mut bytes) = (Vec::new(), 0);
        for (handle, result) in opened.await {
            let (status, object, extents) = match result {
                Ok(file) => {
                    let plan = file.plan();
                    let io = Arc::new(source_io(&file, self.splice));
                    let sent = if io.splice { ", sent from there" } else { "" };
                    self.how.insert(format!("{}{sent} ({})", mode_word(plan.mode), plan.reason));
                    let extents = io.extents.clone();
                    let identity = file.identity();
                    self.links.broadcast(|| Command::Bound(self.links.session, handle, io.clone()));
                    self.files.insert(handle, Arc::new(file));
                    (Status::Ok, (identity.dev, identity.ino), extents)
                }
                Err(status) => (status, (0, 0), None),
            };
            bytes += extents.as_ref().map_or(0, |extents| 16 * extents.len());
            answers.push(Bound { handle, status, object, extents });
            // A frame holds what one file may have, not what many have together.
            if bytes > BOUND_BYTES {
                self.channel.send(Message::Bound(std::mem::take(&mut answers)));
                bytes = 0;
            }
        }
        crate::sys::points::at("source.bound");
        if !answers.is_empty() {
            self.channel.send(Message::Bound(answers));
        }
        Ok(())
    }

    async fn seal(&mut self, handles: Vec<Handle>) -> Result<(), TransferError> {
        let files: Vec<_> = handles.iter().map(|h| (*h, self.files.get(h).cloned())).collect();
        let sealed = self.ctx.pool.run(move || {
            let look = |(handle, file): (Handle, Option<Arc<SourceFile>>)| {
                let status = match file.map(|f| f.check()) {
                    None => Status::Gone,
                    Some(Ok(())) => Status::Ok,
                    Some(Err(error)) => status_of(&error),
                };
                Sealed { handle, status }
            };
            files.into_iter().map(look).collect::<Vec<_>>()
        });
        let sealed = sealed.await;
        crate::sys::points::at("source.sealed");
        self.channel.send(Message::Sealed(sealed));
        self.close(&handles);
        Ok(())
    }

    fn close(&mut self, handles: &[Handle]) {
        handles.iter().for_each(|h| drop(self.files.remove(h)));
        self.links.broadcast(|| Command::Unbound(self.links.session, handles.to_vec()));
    }

    fn stats(&self) -> SourceStats {
        let totals = self.links.totals();
        let workers = worker_totals(self.ctx).since(self.workers);
        let mut how = self.how.clone();
        let mut notes = self.links.notes.clone();
        for path in self.links.send_paths() {
            match path {
                SendPath::Plain => {}
                SendPath::ZeroCopy => drop(how.insert("SEND_ZC".to_owned())),
                SendPath::Copies => notes.push("zero-copy send copies on this path: plain sends".to_owned()),
                SendPath::Refused => notes.push("zero-copy send was refused: plain sends".to_owned()),
            }
        }
        SourceStats {
            sent_bytes: totals.payload,
            cpu_ns: crate::sys::process_cpu_time_ns() - self.cpu_ns,
            send_wait_ns: totals.send_wait,
            read_wait_ns: totals.disk_wait,
            idle_ns: totals.idle,
            busy_ns: workers.busy,
            io: how.into_iter().collect::<Vec<_>>().join(", "),
            notes,
            view: Some(SourceView { end: self.end_view(), sender: self.links.sender() }),
        }
    }

    async fn verdict(self, report: &[u8]) -> Result<Report, TransferError> {
        let unreadable = |_| TransferError::new(Class::Permanent, "the destination's report cannot be read");
        let report: serde_json::Value = serde_json::from_slice(report).map_err(unreadable)?;
        let report: Report = serde_json::from_value(harmless(report)).map_err(unreadable)?;
        crate::sys::points::at("source.told");
        self.channel.send(Message::Bye);
        self.channel.finish(Duration::from_secs(2)).await;
        tracing::debug!(verdict = ?report.verdict, after = ?clock::since(self.began), at = clock::unix_now(), "session ended");
        Ok(report)
    }
}

/// Words of a peer, for our terminal and log.
pub fn escape_text(text: &str) -> String {
    let cut: String = text.chars().take(2000).collect();
    cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A peer's report with every text escaped and every list of bearable length: it is kept, logged and shown.
fn harmless(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::String(text) => Value::String(escape_text(&text)),
        Value::Array(list) => Value::Array(list.into_iter().take(REPORT_LIST_MAX).map(harmless).collect()),
        Value::Object(map) => {
            let entry = |(key, value): (String, Value)| (escape_text(&key), harmless(value));
            Value::Object(map.into_iter().take(REPORT_LIST_MAX).map(entry).collect())
        }
        other => other,
    }
}

pub(super) async fn tell_error(channel: Channel, error: &TransferError) {
    channel.send(Message::Error(PeerError { class: error.class.word().to_owned(), what: error.to_string() }));
    channel.finish(Duration::from_secs(2)).await;
}

async fn accepted(channel: &mut Channel) -> Result<Accept, TransferError> {
    let answer = tokio::time::timeout(ACCEPT_TIMEOUT, channel.recv()).await;
    match answer {
        Ok(Ok(Message::Accept(accept))) => Ok(accept),
        Ok(Ok(Message::Error(error))) => {
            let class = Class::from_word(&error.class).unwrap_or(Class::Permanent);
            Err(TransferError::new(class, escape_text(&error.what)))
        }
        Ok(Ok(_)) => Err(TransferError::new(Class::Permanent, "the destination did not answer the offer")),
        Ok(Err(fault)) => Err(lost(&fault)),
        Err(_) => Err(TransferError::new(Class::Retry, "the destination did not answer the offer in time")),
    }
}

/// A report with nothing but a verdict and its error.
pub fn report_of(error: &TransferError) -> Report {
    Report {
        verdict: Verdict::Failed,
        error_class: Some(error.class.word().to_owned()),
        error: Some(error.to_string()),
        ..Report::default()
    }
}
