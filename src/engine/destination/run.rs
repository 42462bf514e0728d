//! One session of a destination: the loop. What happens is in `files`, how it ends in `finish`.

use super::bring::{dial_other, forward, forward_joins};
use super::files::{OpenFile, Pack, Planned, Small};
use super::later::Later;
use super::pace::{Pace, Seen, least};
use super::prepare::Looked;
use super::tune::Tune;
use super::{Carry, Placement};
use crate::clock;
use crate::digest::Digest;
use crate::disk::{PartFile, Replace, Root, SmallFile, TreeLock};
use crate::engine::channel::Channel;
use crate::engine::claims::ClaimTable;
use crate::engine::commit::{Batch, Durable, Journal, JournalFailure, PlacedChunks, commit_batch};
use crate::engine::coordinator::{Ctx, Entry};
use crate::engine::error::{Class, TransferError};
use crate::engine::handle::TicketSource;
use crate::engine::limiter;
use crate::engine::links::{Links, LinksConfig};
use crate::engine::session::{self, Joined, StreamSource};
use crate::engine::source::{absolute, escape_text, interrupted};
use crate::engine::spec::{ChecksumKind, DestinationSpec, Failure, IfExists, MOVING, Report};
use crate::engine::tuning::socket_options;
use crate::engine::worker::{Event, Extra, Fault, StreamKey};
use crate::ids::{Epoch, Handle, PathKey, SessionId, TransferId};
use crate::limits::{COMMIT_INTERVAL_MS, commit_window};
use crate::manifest::SegmentReader;
use crate::wire::control::{BATCH_MAX, Message, Offer, PeerError, Progress, Retune, SourceStats};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, atomic::AtomicUsize};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Commits follow each other no closer.
const COMMIT_PAUSE_MIN: Duration = Duration::from_millis(100);
/// How often progress is told and streams are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Small files asked for or written and not yet committed, each an open descriptor.
const SMALL_OPEN_MAX: usize = 2048;
/// So many make a commit worth while before its time.
const SMALL_COMMIT: usize = 512;
/// Failures listed in a report; all are counted.
const FAILURES_MAX: usize = 1000;

/// What a session begins with.
pub(super) struct Begun<'a> {
    pub spec: &'a DestinationSpec,
    pub others: &'a [Arc<dyn TicketSource>],
    pub offer: Offer,
    pub session: SessionId,
    pub streams: u16,
    pub encrypted: bool,
    pub near: bool,
    pub source: StreamSource,
    pub joining: mpsc::UnboundedReceiver<Joined>,
    pub channel: Channel,
    pub root: Arc<Root>,
    pub placement: Arc<Placement>,
    pub id: TransferId,
    pub epoch: Epoch,
    pub lock: Option<TreeLock>,
    pub journal: Option<Journal>,
    pub volatile: bool,
}

/// One source's session.
pub(super) struct Peer {
    pub links: Links,
    pub out: mpsc::UnboundedSender<Message>,
    pub engine: String,
    /// The CPUs that its threads keep to.
    pub cpus: String,
    pub stats: Option<SourceStats>,
    /// Not asked any more. Its place in the list stays: streams and news name peers by it.
    pub gone: bool,
    /// What its source goes by now.
    pub told: Retune,
    /// What its transfer is given by itself.
    pub tune: Tune,
    /// By how many steps of priority others go first there.
    pub yields: u8,
    /// Unanswered Seals and Binds.
    pub process: u64,
}

/// What comes in from the sources.
pub(super) enum News {
    Message(usize, Result<Message, Fault>),
    Joined(usize, Joined),
    /// Another source's session is open.
    Source(Box<(session::Opened, Channel, Offer)>),
}

/// A small file written, or why not, with its chunk digest.
pub(super) type Written = (Handle, Result<SmallFile, crate::disk::DiskError>, Digest);

/// What jobs report.
pub(super) enum Done {
    Looked(Vec<Looked>),
    Part(Handle, Box<Result<Option<super::files::OpenedPart>, TransferError>>),
    Proved(Handle, Result<Vec<Digest>, TransferError>),
    Hashed(Handle, Result<crate::checksum::Sums, TransferError>),
    Small(Vec<Written>),
}

/// A commit's journal and outcome; these stay on the coordinator's thread.
pub(super) type Committed = (Journal, Result<Durable, JournalFailure>);

/// Counters of this session's report.
#[derive(Default)]
pub(super) struct Counts {
    pub total_bytes: u64,
    pub total_files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub special: u64,
    pub skipped_files: u64,
    pub skipped_bytes: u64,
    pub resumed_bytes: u64,
    pub hole_bytes: u64,
    pub placed_bytes: u64,
    pub files_done: u64,
    pub failed: u64,
}

pub(super) struct Run<'a> {
    pub ctx: &'a Rc<Ctx>,
    pub spec: &'a DestinationSpec,
    pub entry: &'a Rc<Entry>,
    pub carry: &'a mut Carry,
    pub offer: Offer,
    pub session: SessionId,
    pub encrypted: bool,
    pub near: bool,
    pub streams: u16,
    /// The cap in force, bits per second over all streams.
    pub rate: Option<u64>,
    /// By how many steps of priority others go first, see `steer`.
    pub yields: u8,
    pub id: TransferId,
    pub epoch: Epoch,
    pub root: Arc<Root>,
    pub placement: Arc<Placement>,
    pub peers: Vec<Peer>,
    pub table: ClaimTable,
    pub stream_peer: BTreeMap<StreamKey, usize>,
    /// How fast streams are.
    pub pace: Pace,
    /// Streams that were told to release a chunk, and when: see `files/relief.rs`.
    pub relieved: BTreeMap<StreamKey, u64>,
    /// Streams of further sources that are given up; what they hold comes back when their worker has let go of them.
    pub retired: BTreeMap<StreamKey, usize>,
    /// Files that start again once the next commit has made the journal forget what it had of them.
    pub parked: Vec<Planned>,
    /// The same, for the commit under way.
    pub parked_committing: Vec<Planned>,
    pub next_handle: u32,
    pub files: BTreeMap<Handle, OpenFile>,
    pub small: BTreeMap<Handle, Small>,
    pub big_queue: VecDeque<Planned>,
    pub small_queue: VecDeque<Planned>,
    pub packs: BTreeMap<u32, Pack>,
    pub next_pack: u32,
    /// As they came: decoded names are far bigger, and only taken in as there is room for them.
    pub segments: VecDeque<Vec<u8>>,
    /// The segment that is being taken in.
    pub reading: Option<SegmentReader>,
    /// Segments begun so far.
    pub segments_decoded: u32,
    /// Bytes of memory of the files known and not finished.
    pub known_bytes: Arc<AtomicUsize>,
    pub looking: bool,
    pub held_credit: u32,
    pub segments_seen: u32,
    pub manifest_end: Option<u32>,
    /// Directories, whose metadata is set after what is in them.
    pub dirs: Later,
    /// Symlinks, made after the files.
    pub links_later: Later,
    pub seen: HashSet<crate::ids::PathKey>,
    pub pending: Batch,
    pub pending_bytes: u64,
    pub committing_bytes: u64,
    pub last_commit: Instant,
    /// From one commit's start to the next one's, see [`commit_pause`].
    pub commit_pause: Duration,
    pub creating: usize,
    pub sealing: usize,
    pub binding: usize,
    pub opening: usize,
    pub journal: Option<Journal>,
    pub done: mpsc::UnboundedSender<Done>,
    pub committed: mpsc::UnboundedSender<Committed>,
    pub relay: mpsc::Sender<News>,
    pub failures: Vec<Failure>,
    pub counts: Counts,
    pub how: BTreeSet<String>,
    pub held_back_since: Option<Instant>,
    pub expected_seen: Option<(Digest, Vec<crate::engine::spec::Expected>)>,
    pub durable_storage: bool,
    /// The home directory's file system is memory.
    pub volatile_home: bool,
    /// What the journal says is durable.
    pub journal_view: Option<Rc<std::cell::RefCell<crate::journal::Checkpoint>>>,
    /// Digests to tell the source, if it asked for them.
    pub digests: Vec<(PathKey, Digest)>,
}

/// Where a commit costs little, as on a fast device, they follow each other closely: what a crash can cost is what waits
/// for one. Ten times its cost keeps the storage free for the data.
fn commit_pause(cost: Duration) -> Duration {
    (10 * cost).clamp(COMMIT_PAUSE_MIN, Duration::from_millis(COMMIT_INTERVAL_MS))
}

/// Runs a session to its end. On an error everything that is placed is committed before the lock is let go.
pub(super) async fn run(
    ctx: &Rc<Ctx>,
    begun: Begun<'_>,
    carry: &mut Carry,
    entry: &Rc<Entry>,
) -> Result<Report, TransferError> {
    let (tell, mut news) = mpsc::channel(64);
    let (done, mut finished) = mpsc::unbounded_channel();
    let (committed, mut commits) = mpsc::unbounded_channel();
    let (events, mut happened) = mpsc::unbounded_channel();
    let options = &begun.spec.options;
    let extra = extra_of(options.checksums.iter().copied().chain(options.expect.iter().map(|e| e.kind)));
    let mut sockets = socket_options(options);
    sockets.pacing_bytes_per_sec = None; // the source paces; what we send are Wants
    let config = |source, id, near| LinksConfig {
        source,
        id,
        block: options.block.min(ctx.config.block),
        extra,
        options: sockets.clone(),
        collectors: options.collectors.clone(),
        near,
    };
    let mut links = Links::new(ctx.clone(), config(begun.source, begun.session, begun.near), None, events.clone());
    links.want(begun.streams);
    let out = forward(0, begun.channel, tell.clone());
    forward_joins(0, begun.joining, tell.clone());
    let (engine, cpus) = (begun.offer.engine.clone(), begun.offer.cpus.clone());
    let process = begun.offer.process;
    let told = Retune { rate: options.rate, streams: begun.streams, ..Retune::default() };
    let peer = Peer {
        links,
        out,
        engine,
        cpus,
        stats: None,
        gone: false,
        told,
        tune: Tune::for_session(ctx, begun.spec, begun.streams, begun.near),
        yields: 0,
        process,
    };
    for other in begun.others {
        dial_other(ctx.clone(), begun.spec.clone(), other.clone(), tell.clone());
    }
    carry.notes.extend(begun.offer.notes.iter().map(|note| format!("source: {}", escape_text(note))));
    let scratch = begun.lock.as_ref().map(|lock| lock.dir().clone());
    let mut run = Run {
        ctx,
        spec: begun.spec,
        entry,
        carry,
        offer: begun.offer,
        session: begun.session,
        encrypted: begun.encrypted,
        near: begun.near,
        streams: begun.streams,
        rate: begun.spec.options.rate,
        yields: 0,
        id: begun.id,
        epoch: begun.epoch,
        root: begun.root,
        placement: begun.placement,
        peers: vec![peer],
        table: ClaimTable::default(),
        stream_peer: BTreeMap::new(),
        pace: Pace::default(),
        relieved: BTreeMap::new(),
        retired: BTreeMap::new(),
        parked: Vec::new(),
        parked_committing: Vec::new(),
        next_handle: 1,
        files: BTreeMap::new(),
        small: BTreeMap::new(),
        big_queue: VecDeque::new(),
        small_queue: VecDeque::new(),
        packs: BTreeMap::new(),
        next_pack: 1,
        segments: VecDeque::new(),
        looking: false,
        held_credit: 0,
        reading: None,
        segments_decoded: 0,
        known_bytes: Arc::default(),
        segments_seen: 0,
        manifest_end: None,
        dirs: Later::new(scratch.clone()),
        links_later: Later::new(scratch),
        seen: HashSet::new(),
        pending: Batch::default(),
        pending_bytes: 0,
        committing_bytes: 0,
        last_commit: clock::now(),
        commit_pause: COMMIT_PAUSE_MIN,
        creating: 0,
        sealing: 0,
        binding: 0,
        opening: 0,
        journal_view: begun.journal.as_ref().map(|journal| journal.checkpoint.clone()),
        volatile_home: begun.volatile,
        journal: begun.journal,
        done,
        committed,
        relay: tell.clone(),
        failures: Vec::new(),
        counts: Counts::default(),
        how: BTreeSet::new(),
        held_back_since: None,
        expected_seen: None,
        durable_storage: !begun.volatile,
        digests: Vec::new(),
    };
    let mut lock = begun.lock;
    let result = run.drive(&mut news, &mut happened, &mut finished, &mut commits, &events, &config).await;
    let result = match result {
        Ok(()) => run.finish(&mut lock, &mut news).await,
        Err(error) => {
            run.checkpoint(&mut commits).await;
            Err(error)
        }
    };
    run.gather();
    if let Err(error) = &result {
        // A source that pushes is to come back when this end is up again; a cancelled transfer is over.
        let told = match *ctx.stopping.borrow() {
            true => (Class::Reconnect, "the destination is shutting down".to_owned()),
            false => (error.class, error.to_string()),
        };
        let told = PeerError { class: told.0.word().to_owned(), what: told.1 };
        run.peers.iter().for_each(|peer| drop(peer.out.send(Message::Error(told.clone()))));
    }
    if let Some(journal) = run.journal.take() {
        journal.close().await;
    }
    // A slow disk holds calls up: what the pool still does for this session ends before another one may have the tree.
    run.done = mpsc::unbounded_channel().0;
    while finished.recv().await.is_some() {}
    drop(lock);
    result
}

/// Which per-chunk sums some checksums need.
fn extra_of(kinds: impl Iterator<Item = ChecksumKind>) -> Extra {
    kinds.fold(Extra::default(), |mut extra, kind| {
        extra.crc32c |= kind == ChecksumKind::Crc32c;
        extra.adler32 |= kind == ChecksumKind::Adler32;
        extra
    })
}

/// [`SMALL_OPEN_MAX`], or less where this process may not open so many.
pub(super) fn small_open_max() -> usize {
    static FOUND: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    let limit = || crate::engine::pool::raise_descriptor_limit();
    *FOUND.get_or_init(|| (limit() / 4).clamp(64, SMALL_OPEN_MAX as u64) as usize)
}

impl Run<'_> {
    async fn drive(
        &mut self,
        news: &mut mpsc::Receiver<News>,
        happened: &mut mpsc::UnboundedReceiver<Event>,
        finished: &mut mpsc::UnboundedReceiver<Done>,
        commits: &mut mpsc::UnboundedReceiver<Committed>,
        events: &mpsc::UnboundedSender<Event>,
        config: &impl Fn(StreamSource, SessionId, bool) -> LinksConfig,
    ) -> Result<(), TransferError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stopping = self.ctx.stopping.clone();
        let mut cancel = self.entry.cancel.subscribe();
        let mut steer = self.entry.steer.subscribe();
        loop {
            tokio::select! {
                biased;
                Some(event) = happened.recv() => {
                    self.event(event)?;
                    // What else has happened is taken in one go, before anything is asked for.
                    while let Ok(event) = happened.try_recv() {
                        self.event(event)?;
                    }
                }
                Some(done) = finished.recv() => self.done(done)?,
                Some((journal, outcome)) = commits.recv() => self.commit_ended(journal, outcome)?,
                Some(news) = news.recv() => match news {
                    News::Message(0, Ok(message)) => self.message(0, message)?,
                    News::Message(peer, Ok(message)) => {
                        if let Err(error) = self.message(peer, message) {
                            self.drop_peer(peer, &error.to_string());
                        }
                    }
                    News::Message(0, Err(fault)) => {
                        let what = format!("the control connection ended: {fault}");
                        return Err(TransferError::new(Class::Reconnect, what));
                    }
                    News::Message(peer, Err(fault)) => self.drop_peer(peer, &fault.to_string()),
                    News::Joined(peer, joined) => self.joined(peer, joined),
                    News::Source(parts) => {
                        let (opened, channel, offer) = *parts;
                        self.add_source(opened, channel, offer, events, config);
                    }
                },
                _ = tick.tick() => self.tick()?,
                Ok(()) = steer.changed() => self.steer(),
                _ = stopping.wait_for(|s| *s) => return Err(interrupted()),
                _ = cancel.wait_for(|c| *c) => return Err(interrupted()),
            }
            self.look_at_segments()?;
            self.streams_alive()?;
            self.start_files();
            self.refill();
            self.commit_if_due();
            self.give_credit();
            #[cfg(feature = "testing")]
            if self.ctx.pool.is_simulated() {
                self.table.assert_invariants();
            }
            if self.is_over() {
                return Ok(());
            }
        }
    }

    fn is_over(&self) -> bool {
        self.manifest_end == Some(self.segments_seen)
            && self.segments.is_empty()
            && self.reading.is_none()
            && !self.looking
            && self.big_queue.is_empty()
            && self.small_queue.is_empty()
            && self.files.is_empty()
            && self.small.is_empty()
            && self.packs.is_empty()
            && self.creating == 0
            && self.pending.is_empty()
            && self.committing_bytes == 0
            && (self.journal.is_some() || self.spec.options.dry_run)
    }

    /// Ends a stream's claims; where this end dials, it is dialled again.
    pub(super) fn stream_dead(&mut self, stream: StreamKey, why: &Fault) {
        self.table.remove_stream(stream);
        self.carry.takeovers.gone(stream);
        if let Some(peer) = self.stream_peer.remove(&stream).or_else(|| self.retired.remove(&stream)) {
            let at = &mut self.peers[peer];
            if let Some(lost) = at.links.dead(stream, why) {
                let _ = at.out.send(lost);
            }
        }
        let lost: Vec<u32> = self.packs.iter().filter(|(_, pack)| pack.stream == stream).map(|(n, _)| *n).collect();
        for number in lost {
            if let Some(pack) = self.packs.remove(&number) {
                self.requeue(pack, true);
            }
        }
    }

    fn tick(&mut self) -> Result<(), TransferError> {
        self.steer();
        self.peers.iter_mut().for_each(|peer| peer.links.tell_flows());
        let now = crate::engine::worker::now_ns();
        // Meanwhile streams that bring nothing may be waiting for our own disk.
        let committing_long = self.committing_bytes > 0 && clock::since(self.last_commit) > Duration::from_secs(5);
        let look = |(stream, peer): (&StreamKey, &usize)| {
            let asked = self.table.held_by(*stream) > 0 || self.packs.values().any(|p| p.stream == *stream);
            let brought = &self.peers[*peer].links.live.get(stream)?.stats.brought;
            let brought = brought.load(std::sync::atomic::Ordering::Relaxed);
            Some(Seen { stream: *stream, asked: asked && !committing_long, brought })
        };
        let seen: Vec<Seen> = self.stream_peer.iter().filter_map(look).collect();
        for stream in self.pace.look(now, &seen, least(self.rate)) {
            self.carry.notes.insert("a stream that brought next to nothing for 45 s was replaced".to_owned());
            self.peers[self.stream_peer[&stream]].links.cut(stream);
        }
        if self.pace.is_stuck(now) {
            let what = "the source answers, but brings next to nothing of what it is asked for: is its disk all right?";
            return Err(TransferError::new(Class::Reconnect, what));
        }
        let streams = self.peers.iter().map(|p| p.links.live.len() as u16).sum();
        let told = self.peers.iter().filter(|peer| !peer.gone && streams > 0).map(|peer| &peer.tune.shares);
        let limiter_shares = limiter::named(&limiter::mean(told));
        let snapshot = crate::engine::spec::Snapshot {
            bytes: self.counts.placed_bytes,
            total_bytes: self.counts.total_bytes,
            files: self.counts.files_done,
            total_files: self.counts.total_files,
            scanned: self.manifest_end.is_some(),
            streams,
            rate: self.rate,
            priority: self.entry.priority(),
            phase: if streams == 0 { "connecting" } else { MOVING }.to_owned(),
            limiter: limiter::largest(&limiter_shares),
            limiter_shares,
        };
        let progress = Progress {
            bytes: snapshot.bytes,
            total_bytes: snapshot.total_bytes,
            files: snapshot.files,
            total_files: snapshot.total_files,
            scanned: snapshot.scanned,
            phase: snapshot.phase.clone(),
            limiter_shares: snapshot.limiter_shares.clone(),
        };
        self.entry.snapshot.send_replace(snapshot);
        let _ = self.peers[0].out.send(Message::Progress(progress));
        Ok(())
    }

    fn give_credit(&mut self) {
        if self.held_credit > 0 {
            let _ = self.peers[0].out.send(Message::Credit(self.held_credit));
            self.held_credit = 0;
        }
    }

    /// Bytes that may wait for a commit.
    pub(super) fn window(&self) -> u64 {
        commit_window(self.counts.total_bytes)
    }

    fn commit_if_due(&mut self) {
        if self.journal.is_none() || self.committing_bytes > 0 {
            return;
        }
        self.collect_publishable();
        if self.pending.is_empty() {
            return;
        }
        let waiting = self.table.held() > 0
            || !self.packs.is_empty()
            || self.creating + self.sealing + self.binding + self.opening > 0
            // More are asked for only when these are committed and closed.
            || (!self.small_queue.is_empty() && self.small.len() < small_open_max())
            || self.table.any_free();
        let due = clock::since(self.last_commit) >= self.commit_pause
            || self.pending_bytes >= self.window() / 2
            || self.pending.small.len() >= SMALL_COMMIT.min(small_open_max() / 4)
            || !waiting;
        if due {
            self.start_commit();
        }
    }

    fn start_commit(&mut self) {
        let Some(mut journal) = self.journal.take() else { return };
        let batch = std::mem::take(&mut self.pending);
        self.committing_bytes = std::mem::take(&mut self.pending_bytes).max(1);
        self.last_commit = clock::now();
        self.parked_committing = std::mem::take(&mut self.parked);
        let (pool, done) = (self.ctx.pool.clone(), self.committed.clone());
        let verify = self.spec.options.verify;
        let replace = self.replace();
        tokio::task::spawn_local(async move {
            let result = commit_batch(&pool, &mut journal, batch, verify, replace).await;
            let _ = done.send((journal, result));
        });
    }

    pub(super) fn replace(&self) -> Replace {
        if self.spec.options.if_exists == IfExists::Replace { Replace::Yes } else { Replace::No }
    }

    /// Before the session is let go: waits for the commit under way, then commits what is placed.
    async fn checkpoint(&mut self, commits: &mut mpsc::UnboundedReceiver<Committed>) {
        self.peers.iter_mut().for_each(|peer| peer.links.close());
        for _ in 0..2 {
            while self.committing_bytes > 0 {
                let Some((journal, outcome)) = commits.recv().await else { return };
                if let Err(error) = self.commit_ended(journal, outcome) {
                    return tracing::error!(%error, "no checkpoint");
                }
            }
            if !self.pending.is_empty() && self.journal.is_some() {
                self.start_commit();
            }
        }
    }

    fn commit_ended(
        &mut self,
        journal: Journal,
        outcome: Result<Durable, JournalFailure>,
    ) -> Result<(), TransferError> {
        self.journal = Some(journal);
        self.committing_bytes = 0;
        self.commit_pause = commit_pause(clock::since(self.last_commit));
        let durable = outcome.map_err(|error| TransferError::new(Class::Retry, error.to_string()))?;
        self.big_queue.extend(self.parked_committing.drain(..));
        #[cfg(feature = "testing")]
        self.show(&durable);
        self.committed(durable)
    }

    /// Adds this session's counters to the run's.
    fn gather(&mut self) {
        self.spare(false);
        self.carry.syncing_since = None;
        self.carry.takeovers.all_gone();
        for peer in &self.peers {
            let totals = peer.links.totals();
            self.carry.received += totals.payload;
            self.carry.wasted += totals.wasted;
            self.carry.reconnects += peer.links.lost;
            self.carry.waits.destination_idle += totals.idle;
            self.carry.waits.destination_disk += totals.disk_wait;
            self.carry.notes.extend(peer.links.notes.iter().cloned());
        }
    }

    /// A file is there with this digest: for whoever writes a manifest.
    pub(super) fn arrived(&mut self, key: PathKey, digest: Digest) {
        if let Some(rows) = &self.spec.rows {
            rows.arrived(key, digest);
        }
        if self.offer.digests {
            self.digests.push((key, digest));
            if self.digests.len() == BATCH_MAX {
                self.tell_digests();
            }
        }
    }

    pub(super) fn tell_digests(&mut self) {
        if !self.digests.is_empty() {
            let _ = self.peers[0].out.send(Message::Digests(std::mem::take(&mut self.digests)));
        }
    }

    /// A path below the destination's root, for people: as an absolute one where this end is a user's own.
    pub(super) fn shown(&self, path: &crate::relpath::RelPath) -> String {
        let shown = path.to_string();
        if self.spec.base == std::path::Path::new("/") { absolute(&shown) } else { shown }
    }

    /// One more name that does not arrive.
    pub(super) fn fail(&mut self, path: &crate::relpath::RelPath, class: Class, reason: impl Into<String>) {
        self.counts.failed += 1;
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(Failure {
                path: self.shown(path),
                class: class.word().to_owned(),
                reason: reason.into(),
            });
        }
    }

    pub(super) fn placed(
        &mut self,
        key: crate::ids::PathKey,
        handle: Handle,
        part: &Arc<PartFile>,
        chunk: (u32, Digest),
    ) {
        match self.pending.placed.iter_mut().find(|p| p.handle == handle) {
            Some(placed) => placed.chunks.push(chunk),
            None => self.pending.placed.push(PlacedChunks { handle, key, part: part.clone(), chunks: vec![chunk] }),
        }
    }

    /// Bytes held in commit and waiting for it.
    pub(super) fn uncommitted(&self) -> u64 {
        self.pending_bytes + self.committing_bytes
    }
}
