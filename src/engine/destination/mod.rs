//! The destination's end of a transfer: it drives. It opens a session (or takes one that a source opened), locks the
//! destination, reads its journal, and asks for what is missing until nothing is.
//!
//! A session that is lost is no state to be saved: what is durable is in the journal, and a new session begins from
//! there. So there is one way back from every accident, and it is used all the time.

mod bring;
mod files;
mod finish;
mod later;
mod pace;
mod prepare;
mod run;
mod steer;
mod tune;

use super::ahead::Ahead;
use super::backoff::Backoff;
use super::commit::{Journal, open_journal_file, renew_journal_file};
use super::coordinator::{Ctx, Entry};
use super::error::{Class, TransferError};
use super::handle::TicketSource;
use super::session::{self, Joined, NEAR_RTT_US, Opened};
use super::source::{disk_error, escape_text, host_identity, interrupted, rooted, tell_error};
use super::spec::{DestinationSpec, Latency, Report, Synthetic, Ticket, TransferOptions, Verdict, Verify};
use super::tuning::{for_peer, marked, socket_options};
use crate::clock;
use crate::digest;
use crate::disk::{self, Existing, LockError, Made, Root, TreeLock};
use crate::ids::{Epoch, PathKey, TransferId};
use crate::journal::{Header, Record, Writer, compact, recover};
use crate::net::SocketOptions;
use crate::relpath::RelPath;
use crate::wire::control::{Accept, Message, Offer};
use hdrhistogram::Histogram;
use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use super::source::report_of as failed_report;

/// How long a source may take to offer its roots.
const OFFER_TIMEOUT: Duration = Duration::from_secs(60);

/// The destination's path for lists and logs, escaped.
pub fn describe(spec: &DestinationSpec) -> String {
    spec.path.to_string()
}

/// What a transfer keeps from session to session of one run of the command.
pub(super) struct Carry {
    pub began: Instant,
    pub cpu_ns: u64,
    pub workers: super::source::WorkerTotals,
    pub received: u64,
    pub wasted: u64,
    pub sent: u64,
    pub source_cpu_ns: u64,
    pub failed_chunks: u64,
    pub reconnects: u64,
    pub bytes: u64,
    pub files: u64,
    pub published: HashSet<PathKey>,
    /// The journal tells of bytes that an earlier run with `--verify wire` received, and this one is to read back.
    pub unread: bool,
    /// Files under their final names that nobody has read back, though this run was to.
    pub unread_files: u64,
    /// Since when no data stream is there, though something is to be asked for.
    pub streamless: Option<Instant>,
    /// What streams took over from others, and what that has cost.
    takeovers: files::Takeovers,
    pub latency: Histogram<u64>,
    pub notes: BTreeSet<String>,
    /// Waits of dead sessions' streams, ns: for the network, for the disk.
    pub waits: Waits,
    /// Since when the last bytes become durable.
    syncing_since: Option<Instant>,
    /// Time of streams for which nothing was left.
    spare: tune::Spare,
}

/// Notes of a report that name files: of so many the rest is counted elsewhere.
const NOTES_MAX: usize = 1000;

/// Where time went, ns over all streams.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waits {
    pub destination_idle: u64,
    pub destination_disk: u64,
    /// Time in which claims were held back because too much waited for the disk.
    pub commit: u64,
}

impl Carry {
    fn new(ctx: &Ctx) -> Self {
        Self {
            began: clock::now(),
            cpu_ns: crate::sys::process_cpu_time_ns(),
            workers: super::source::worker_totals(ctx),
            received: 0,
            wasted: 0,
            sent: 0,
            source_cpu_ns: 0,
            failed_chunks: 0,
            reconnects: 0,
            bytes: 0,
            files: 0,
            published: HashSet::new(),
            unread: false,
            unread_files: 0,
            streamless: None,
            takeovers: files::Takeovers::default(),
            // Three digits from 1 µs to an hour.
            latency: Latency::histogram(),
            notes: BTreeSet::new(),
            waits: Waits::default(),
            syncing_since: None,
            spare: tune::Spare::default(),
        }
    }

    /// A note that a peer may give cause for any number of times.
    fn note(&mut self, note: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.insert(note);
        }
    }

    /// A report of how far it came, for a run that ends with an error.
    fn failed(&self, error: &TransferError, streams: u16) -> Report {
        let mut report = failed_report(error);
        if self.files > 0 {
            report.verdict = Verdict::Partial;
        }
        (report.bytes, report.files) = (self.bytes, self.files);
        (report.received_bytes, report.sent_bytes, report.resent_bytes) = (self.received, self.sent, self.wasted);
        (report.failed_chunks, report.reconnects) = (self.failed_chunks, self.reconnects);
        report.duration_ns = clock::since(self.began).as_nanos() as u64;
        report.streams = streams;
        report.notes = self.notes.iter().cloned().collect();
        report
    }
}

/// Somebody pushes to us: the session is open, the transfer lasts as long as it does.
pub async fn receive(ctx: &Rc<Ctx>, spec: DestinationSpec, opened: Opened, entry: &Rc<Entry>) -> Report {
    let mut carry = Carry::new(ctx);
    let streams = opened.streams;
    let spec = tuned(ctx, &spec, &[], &[opened.peer]);
    match one_session(ctx, &spec, opened, &[], &mut carry, entry).await {
        Ok(report) => report,
        Err(error) => carry.failed(&error, streams),
    }
}

/// We pull: dial, and dial again with a new ticket while that may help.
pub async fn pull(ctx: &Rc<Ctx>, spec: DestinationSpec, from: Vec<Arc<dyn TicketSource>>, entry: &Rc<Entry>) -> Report {
    let mut carry = Carry::new(ctx);
    let mut backoff = Backoff::new(ctx.config.retry_for);
    let mut cancel = entry.cancel.subscribe();
    let mut stopping = ctx.stopping.clone();
    let Some((primary, others)) = from.split_first() else {
        return failed_report(&TransferError::new(Class::Permanent, "no source was named"));
    };
    loop {
        let before = carry.received;
        let opened_one = std::cell::Cell::new(false);
        let attempt = async {
            let (spec, opened) = dial_with(ctx, &spec, &**primary).await?;
            (entry.status.borrow_mut().peer, entry.status.borrow_mut().local) = (Some(opened.peer), Some(opened.local));
            let streams = opened.streams;
            opened_one.set(true);
            one_session(ctx, &spec, opened, others, &mut carry, entry).await.map_err(|error| (error, streams).0)
        };
        // The session itself watches for cancel, so that it can checkpoint; a dial in progress is just dropped.
        let error = match attempt.await {
            Ok(report) => return report,
            Err(error) => error,
        };
        if opened_one.get() {
            backoff.met();
        }
        if carry.received > before && error.class == Class::Reconnect {
            backoff.worked();
        }
        if *cancel.borrow() || *stopping.borrow() {
            return carry.failed(&interrupted(), 0);
        }
        let again = try_again(&error, opened_one.get(), before > 0);
        let pause = tokio::select! {
            biased;
            again = backoff.pause(&error, &mut cancel), if again => again,
            _ = stopping.wait_for(|s| *s), if again => false,
            else => false,
        };
        if !pause {
            return carry.failed(&error, 0);
        }
        carry.reconnects += 1;
    }
}

/// Whether a lost or refused session is worth another try within this command. A full disk or another transfer's lock
/// is for the user to see at once; a command whose earlier session worked may be meeting its own, not yet given up at
/// the other end.
pub fn try_again(error: &TransferError, was_open: bool, worked_before: bool) -> bool {
    match error.class {
        Class::Reconnect => true,
        Class::Retry | Class::NoRoom => !was_open || worked_before,
        _ => false,
    }
}

/// We pull from ourselves: one ticket, one session.
pub async fn pull_with(ctx: &Rc<Ctx>, spec: DestinationSpec, ticket: Ticket, entry: &Rc<Entry>) -> Report {
    let mut carry = Carry::new(ctx);
    let session = async {
        let opened = dial(ctx, &spec, &ticket, Ahead::default()).await?;
        one_session(ctx, &spec, opened, &[], &mut carry, entry).await
    };
    match session.await {
        Ok(report) => report,
        Err(error) => carry.failed(&error, 0),
    }
}

/// The spec with what this end's profile for the peer fills in.
fn tuned(ctx: &Ctx, spec: &DestinationSpec, names: &[&str], at: &[SocketAddr]) -> DestinationSpec {
    let options = for_peer(&ctx.config.profiles.get(), &spec.options, names, at, clock::unix_now());
    DestinationSpec { options: marked(&ctx.config.marking, options), ..spec.clone() }
}

/// A peer's name without the port that may follow it.
fn host_of(peer: &str) -> &str {
    peer.rsplit_once(':').map_or(peer, |(host, _)| host)
}

async fn dial(ctx: &Rc<Ctx>, spec: &DestinationSpec, ticket: &Ticket, ahead: Ahead) -> Result<Opened, TransferError> {
    let options = &spec.options;
    let sockets = unpaced(options);
    let mut opened =
        session::open(ctx, ticket, options.streams, options.encrypt == Some(false), &sockets, ahead).await?;
    if !options.dry_run {
        opened.dial_ahead(ctx, &sockets);
    }
    Ok(opened)
}

/// The source paces; what a destination sends are messages and Wants.
fn unpaced(options: &TransferOptions) -> SocketOptions {
    SocketOptions { pacing_bytes_per_sec: None, ..socket_options(options) }
}

/// With a fresh ticket. One that is refused may have waited too long on its way, or its agent has been started anew since:
/// another one tells.
async fn dial_with(
    ctx: &Rc<Ctx>,
    spec: &DestinationSpec,
    from: &dyn TicketSource,
) -> Result<(DestinationSpec, Opened), TransferError> {
    let peer = from.peer();
    let tuned = |at: &[SocketAddr]| tuned(ctx, spec, &[host_of(&peer)], at);
    let once = async |ticket: Ticket, ahead: Ahead| {
        let spec = tuned(&ticket.data);
        let opened = dial(ctx, &spec, &ticket, ahead).await?;
        Ok::<_, TransferError>((spec, opened))
    };
    let streams = if spec.options.dry_run { Some(0) } else { spec.options.streams };
    let (ticket, ahead) = Ahead::with_ticket(ctx, from, streams, |at| unpaced(&tuned(&[at]).options)).await?;
    match once(ticket, ahead).await {
        Err(error) if error.class == Class::Denied => match from.ticket().await {
            Ok(fresh) => once(fresh, Ahead::default()).await,
            Err(_) => Err(error),
        },
        done => done,
    }
}

/// Where things go, decided once the offer is there.
#[derive(Debug, Clone)]
pub(super) struct Placement {
    /// For each offered root, its place below the destination's root.
    pub prefixes: Vec<RelPath>,
    /// The directory whose `.longhaul` holds journal and lock.
    pub home: RelPath,
    /// What the lock covers.
    pub covers: RelPath,
    /// A directory to make before anything else, if it is not there.
    pub make: Option<RelPath>,
}

fn place(spec: &DestinationSpec, offer: &Offer, root: &Root) -> Result<(Placement, RelPath), TransferError> {
    let path = root.canonical(&spec.path).map_err(|error| disk_error(&error))?;
    let there = disk::existing(root, &path).map_err(|error| disk_error(&error))?;
    let single = offer.roots.len() == 1;
    if spec.becomes && !single {
        return Err(TransferError::new(
            Class::Permanent,
            "several sources need a directory to go into: end DST with a slash",
        ));
    }
    let parent_is_there = |path: &RelPath| -> Result<RelPath, TransferError> {
        let (parent, _) = path.split_last().unwrap_or_default();
        match disk::existing(root, &parent).map_err(|error| disk_error(&error))? {
            Existing::Dir(_) => Ok(parent),
            Existing::None => {
                Err(TransferError::new(Class::NotFound, "the directory for it does not exist; make it first")
                    .at(&parent))
            }
            _ => Err(TransferError::new(Class::Permanent, "is not a directory").at(&parent)),
        }
    };
    if spec.becomes && !offer.roots[0].directory {
        if path.is_root() || matches!(there, Existing::Dir(_)) {
            let what = "is a directory: name the file, or end DST with a slash to put it below";
            return Err(TransferError::new(Class::Permanent, what).at(&path));
        }
        let home = parent_is_there(&path)?;
        return Ok((Placement { prefixes: vec![path.clone()], home, covers: path.clone(), make: None }, path));
    }
    match there {
        Existing::Dir(_) => {}
        Existing::None => drop(parent_is_there(&path)?),
        _ => {
            let what = "exists and is not a directory; move it away or name another DST";
            return Err(TransferError::new(Class::Permanent, what).at(&path));
        }
    }
    let mut prefixes = Vec::new();
    let mut names = HashSet::new();
    for offered in &offer.roots {
        if spec.becomes {
            prefixes.push(path.clone());
            continue;
        }
        let name = hex::decode(&offered.name).unwrap_or_default();
        let bad = || TransferError::new(Class::Permanent, "the source offers a name that no file can have");
        let prefix = if name.is_empty() { path.clone() } else { path.join(&name).map_err(|_| bad())? };
        if name.contains(&b'/') || !names.insert(name) {
            return Err(TransferError::new(
                Class::Permanent,
                "two sources have one name: copy them into different directories",
            ));
        }
        prefixes.push(prefix);
    }
    // One file below a directory locks only itself, so that many can arrive in one directory at once.
    let covers = if single && !offer.roots[0].directory { prefixes[0].clone() } else { path.clone() };
    Ok((Placement { prefixes, home: path.clone(), covers, make: Some(path.clone()) }, path))
}

/// The same for every resume: source identity, canonical source roots, destination root and path.
fn transfer_id(offer: &Offer, base: &Path, path: &RelPath, becomes: bool) -> TransferId {
    let mut text = Vec::new();
    text.extend_from_slice(&offer.agent.0);
    for root in &offer.roots {
        text.extend_from_slice(root.path.as_bytes());
        text.push(0);
    }
    text.extend_from_slice(base.as_os_str().as_encoded_bytes());
    text.push(0);
    text.extend_from_slice(path.as_bytes());
    text.push(u8::from(becomes));
    TransferId(digest::of(&text).0)
}

/// Lock, journal and places of a transfer.
struct Ready {
    root: Root,
    placement: Placement,
    id: TransferId,
    lock: Option<TreeLock>,
    journal: Option<(std::fs::File, u64, Writer, crate::journal::Checkpoint)>,
    volatile: bool,
    unread: bool,
    notes: Vec<String>,
}

/// A file of the state directory: chunks of this journal were received with `--verify wire`, and not read back.
const UNREAD: &str = "unread";

/// Blocking: opens the destination, takes the lock, reads the journal.
fn make_ready(spec: &DestinationSpec, offer: &Offer, synthetic: Synthetic) -> Result<Ready, TransferError> {
    if synthetic.destination() && spec.options.verify == Verify::Disk {
        let what = "this destination is synthetic: it keeps nothing that could be read back; ask for --verify wire";
        return Err(TransferError::new(Class::Permanent, what));
    }
    let open = || {
        if spec.base == Path::new("/") { Root::open_following(&spec.base) } else { Root::open(&spec.base) }
    };
    let root =
        open().map_err(|error| TransferError::new(Class::Permanent, format!("the destination's root: {error}")))?;
    let (placement, path) = place(spec, offer, &root)?;
    let id = transfer_id(offer, &spec.base, &path, spec.becomes);
    let fail = |error: disk::DiskError| disk_error(&error);
    same_place(offer, &root, &placement, &spec.base)?;
    if spec.options.dry_run {
        let (volatile, unread, notes) = (false, false, Vec::new());
        return Ok(Ready { root, placement, id, lock: None, journal: None, volatile, unread, notes });
    }
    let mut made = None;
    if let Some(dir) = &placement.make
        && !dir.is_root()
    {
        made = (root.make_dir(dir).map_err(fail)? == Made::New).then_some(dir);
        // Its name first: a journal in a directory that a power cut takes away is none.
        let (parent, _) = dir.split_last().unwrap_or_default();
        root.sync_dir(&parent).map_err(fail)?;
    }
    let lock = TreeLock::take(&root, &placement.home, &placement.covers, &id, Epoch(1)).map_err(|error| match error {
        LockError::Disk(error) => disk_error(&error),
        held @ LockError::Held { .. } => TransferError::new(Class::Retry, held.to_string()),
    });
    let lock = lock.inspect_err(|_| {
        // Another transfer's tree stays as that one makes it. What is not empty any more is not ours alone.
        made.map(|dir| root.remove_dir(dir));
    })?;
    let (file, bytes) = open_journal_file(&lock).map_err(fail)?;
    let mut notes: Vec<String> = lock.note().into_iter().collect();
    let recovered = recover(&bytes).map_err(|error| {
        let what =
            format!("the journal is damaged ({error}); `longhaul journal` shows it, `longhaul clean` removes it");
        TransferError::new(Class::Permanent, what)
    })?;
    if recovered.dropped > 0 {
        notes.push(format!("{} bytes of a torn journal record were dropped", recovered.dropped));
    }
    let resumed = Writer::resume(&recovered).is_some();
    let (file, recovered) = if resumed {
        let bytes = compact(&recovered.checkpoint);
        let renewed = recover(&bytes).map_err(|error| TransferError::new(Class::Permanent, error.to_string()))?;
        (renew_journal_file(&lock, &bytes).map_err(fail)?, renewed)
    } else {
        (file, recovered)
    };
    let (checkpoint, len, writer) = match Writer::resume(&recovered) {
        Some(writer) => (recovered.checkpoint, recovered.len, writer),
        None => {
            let source: Vec<String> =
                offer.roots.iter().take(4).map(|r| shown_source(&hex::decode(&r.path).unwrap_or_default())).collect();
            let mut random = [0; 4];
            aws_lc_rs::rand::fill(&mut random)
                .map_err(|_| TransferError::new(Class::Retry, "the system gives no random numbers"))?;
            let header = Header {
                transfer: id,
                agent: offer.agent,
                epoch: Epoch::before_first(u32::from_le_bytes(random)),
                created: clock::unix_now(),
                source: source.join(" "),
                destination: path.clone(),
            };
            let mut checkpoint = crate::journal::Checkpoint::default();
            // The writer puts the header before the first record; the checkpoint has it from the start.
            checkpoint.apply(&Record::Header(header.clone())).expect("a header is the first record");
            (checkpoint, 0, Writer::create(header))
        }
    };
    let volatile = root
        .open_dir(&placement.home)
        .is_ok_and(|dir| disk::FsKind::of(dir.as_fd()).is_ok_and(|kind| kind.is_volatile()));
    disk::calls::truncate(file.as_fd(), len as i64)
        .map_err(|error| TransferError::new(Class::Retry, format!("the journal: {error}")))?;
    // Durable with the names of the directory, before the first record that it is about.
    let wire = spec.options.verify == Verify::Wire;
    let unread = lock.open_file(UNREAD, wire).map_err(fail)?.is_some() && !wire;
    lock.sync_dir().map_err(fail)?;
    let (lock, journal) = (Some(lock), Some((file, len, writer, checkpoint)));
    Ok(Ready { root, placement, id, lock, journal, volatile, unread, notes })
}

/// A source's path for people. Below the root `/` it is told with two slashes, which is part of the transfer's id.
fn shown_source(path: &[u8]) -> String {
    crate::relpath::escape(if path.starts_with(b"//") { &path[1..] } else { path })
}

/// A copy onto itself: the same object on the same host, through whatever names.
fn same_place(offer: &Offer, root: &Root, placement: &Placement, base: &Path) -> Result<(), TransferError> {
    let host = host_identity();
    for (offered, prefix) in offer.roots.iter().zip(&placement.prefixes) {
        if offered.host != host {
            continue;
        }
        let object = match disk::existing(root, prefix) {
            Ok(Existing::Dir(stat) | Existing::File { stat, .. }) => (stat.dev, stat.ino),
            _ => continue,
        };
        if object == offered.object {
            let what =
                "source and destination are the same object (a hard link, bind mount or symlink): nothing was touched";
            return Err(TransferError::new(Class::Permanent, what).at(prefix));
        }
    }
    into_itself(offer, root, placement, base, &host)
}

/// A tree that is copied to a place inside itself would never end. By identity, which no other name can hide.
fn into_itself(
    offer: &Offer,
    root: &Root,
    placement: &Placement,
    base: &Path,
    host: &str,
) -> Result<(), TransferError> {
    use std::os::unix::fs::MetadataExt;
    let above = base.ancestors().filter_map(|dir| std::fs::metadata(dir).ok()).map(|meta| (meta.dev(), meta.ino()));
    let above: Vec<(u64, u64)> = above.collect();
    for (offered, prefix) in offer.roots.iter().zip(&placement.prefixes) {
        if !offered.directory || offered.host != host {
            continue;
        }
        let mut inside = above.contains(&offered.object);
        let mut next = prefix.split_last().map(|(parent, _)| parent);
        while let Some(dir) = next.filter(|_| !inside) {
            inside =
                matches!(disk::existing(root, &dir), Ok(Existing::Dir(stat)) if (stat.dev, stat.ino) == offered.object);
            next = dir.split_last().map(|(parent, _)| parent);
        }
        if inside {
            let what = "lies inside the source: a tree cannot be copied into itself; nothing was touched";
            return Err(TransferError::new(Class::Permanent, what).at(prefix));
        }
    }
    Ok(())
}

async fn offered(channel: &mut super::channel::Channel) -> Result<Offer, TransferError> {
    match tokio::time::timeout(OFFER_TIMEOUT, channel.recv()).await {
        Ok(Ok(Message::Offer(offer))) => {
            let (engine, cpus) = (escape_text(&offer.engine), escape_text(&offer.cpus));
            Ok(Offer { engine, cpus, ..offer })
        }
        Ok(Ok(Message::Error(error))) => {
            let class = Class::from_word(&error.class).unwrap_or(Class::Permanent);
            Err(TransferError::new(class, escape_text(&error.what)))
        }
        Ok(Ok(_)) => Err(TransferError::new(Class::Permanent, "the source did not begin with its offer")),
        Ok(Err(fault)) => Err(TransferError::new(Class::Reconnect, format!("the control connection ended: {fault}"))),
        Err(_) => Err(TransferError::new(Class::Retry, "the source did not offer anything in time")),
    }
}

fn accept_message(
    ctx: &Ctx,
    spec: &DestinationSpec,
    id: TransferId,
    epoch: Epoch,
    streams: u16,
    credit: u32,
) -> Message {
    let options = &spec.options;
    let io = match options.io {
        super::spec::IoChoice::Auto => "auto",
        super::spec::IoChoice::Buffered => "buffered",
        super::spec::IoChoice::DontCache => "dontcache",
        super::spec::IoChoice::Direct => "direct",
        super::spec::IoChoice::Splice => super::source::SPLICE,
    };
    Message::Accept(Accept {
        transfer: id,
        epoch,
        block: options.block.min(ctx.config.block),
        rate: options.rate,
        congestion: options.congestion.clone(),
        window: options.window,
        io: io.to_owned(),
        credit,
        streams,
        tuning: options.tuning.clone(),
    })
}

/// One session, from its offer to a report, or to the error that ended it. Whatever happens, the lock is released and
/// the journal closed when this returns.
async fn one_session(
    ctx: &Rc<Ctx>,
    spec: &DestinationSpec,
    opened: Opened,
    others: &[Arc<dyn TicketSource>],
    carry: &mut Carry,
    entry: &Rc<Entry>,
) -> Result<Report, TransferError> {
    let Opened { id: session, control, streams, encrypted, rtt_us, source, joining, .. } = opened;
    let Joined { socket, sealer, opener, notes, .. } = control;
    carry.notes.extend(notes);
    carry.notes.extend(ctx.fallbacks());
    let socket = socket.wake().map_err(|error| TransferError::new(Class::Reconnect, error.to_string()))?;
    let mut channel = super::channel::Channel::open(socket, sealer, opener);
    let offer = offered(&mut channel).await?;
    let ready = {
        let (spec, offer, synthetic) = (spec.clone(), offer.clone(), ctx.config.synthetic);
        ctx.pool.run(move || make_ready(&spec, &offer, synthetic)).await
    };
    let mut ready = match ready {
        Ok(ready) => ready,
        Err(error) => {
            let error = rooted(error, &spec.base);
            tell_error(channel, &error).await;
            return Err(error);
        }
    };
    crate::sys::points::at("destination.ready");
    carry.notes.extend(ready.notes.drain(..));
    carry.unread = ready.unread;
    entry.status.borrow_mut().transfer = Some(ready.id);
    // Without a journal, in a dry run, there is nothing that a later opening could take over.
    let mut epoch = Epoch::default();
    let mut journal = None;
    if let Some((file, len, writer, checkpoint)) = ready.journal.take() {
        epoch = checkpoint.epoch.next();
        let mut open = Journal::new(&ctx.commit, &ctx.pool, file, len, writer, checkpoint);
        open.record(Record::Epoch(epoch));
        // Durable before use: the source drops sessions of a lower epoch.
        open.append_and_sync().await.map_err(|error| TransferError::new(Class::Retry, error.to_string()))?;
        journal = Some(open);
        crate::sys::points::at("destination.epoch");
    }
    channel.send(accept_message(ctx, spec, ready.id, epoch, streams, crate::limits::SEGMENT_CREDIT));
    let begun = run::Begun {
        spec,
        others,
        offer,
        session,
        streams,
        encrypted,
        near: rtt_us < NEAR_RTT_US,
        source,
        joining,
        channel,
        root: Arc::new(ready.root),
        placement: Arc::new(ready.placement),
        id: ready.id,
        epoch,
        lock: ready.lock,
        journal,
        volatile: ready.volatile,
    };
    run::run(ctx, begun, carry, entry).await
}

/// Keeps the segment builder's bound in sight of the credit: what may be on its way before a byte of data is asked for.
const _: () = assert!(crate::limits::SEGMENT_CREDIT as usize * crate::limits::SEGMENT_MAX_BYTES <= 2 << 20);
