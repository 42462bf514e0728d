//! The workers: each an OS thread with a queue of its own and many streams, of both roles, of any transfer.
//!
//! A worker never waits for anything but its queue, takes no lock, and knows neither HTTP nor runtime. What it does per
//! block is: read or receive into a slot, digest and seal (or open) it while it is in cache, send or write it. Chunks,
//! files and verdicts are the coordinator's business, which it hears about in batches through [`mailbox`].

pub mod destination;
pub mod link;
pub mod mailbox;
mod room;
pub mod source;
mod stats;
#[cfg(test)]
mod tests;

use crate::digest::Digest;
use crate::grid::Span;
use crate::ids::Handle;
use crate::sys::{Arena, Completion, FileRef, IoQueue, Op, Slot, SocketRef, Wait};
use crate::wire::WireError;
use crate::wire::crypt::{Opener, Sealer};
use crate::wire::data::{PackEntry, PackItem, Run, Status};
use mailbox::Mailbox;
pub(crate) use stats::add;
pub use stats::{SendPathCell, Spell, StreamStats, WorkerStats};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A stream of this process; never used twice.
pub type StreamKey = u64;
/// A session of this process; never used twice.
pub type SessionKey = u64;

/// The open files of a source, as its workers see them.
#[derive(Debug)]
pub struct SourceIo {
    /// Buffered.
    pub file: FileRef,
    /// With O_DIRECT, for whole aligned blocks.
    pub direct: Option<FileRef>,
    /// The size that was announced.
    pub size: u64,
    /// Where there is data; `None`: everywhere.
    pub extents: Option<Vec<Span>>,
    /// Reads kept in flight for a stream.
    pub depth: usize,
    /// Whether the socket takes payload from the page cache rather than from the slot that the digest was computed in.
    pub splice: bool,
}

/// An open part file, as the destination's workers see it.
#[derive(Debug)]
pub struct TargetIo {
    /// Buffered.
    pub file: FileRef,
    /// With O_DIRECT, for whole aligned blocks.
    pub direct: Option<FileRef>,
}

/// What a destination's stream is to ask for.
#[derive(Debug)]
pub enum Claim {
    /// Chunks of a file, to be placed in it.
    Chunks {
        /// Which.
        run: Run,
        /// The file's size.
        size: u64,
        /// Where they go; `None` for digests only.
        target: Option<Arc<TargetIo>>,
    },
    /// A pack of small files.
    Pack {
        /// Its number.
        number: u32,
        /// The files.
        items: Arc<Vec<PackItem>>,
    },
}

/// Checksums to be computed beside the digest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extra {
    /// CRC-32C per chunk.
    pub crc32c: bool,
    /// Adler-32 per chunk.
    pub adler32: bool,
}

/// What a stream needs to begin.
pub struct Attach {
    /// Its key.
    pub stream: StreamKey,
    /// The session it belongs to.
    pub session: SessionKey,
    /// The connected socket, past its handshake.
    pub socket: OwnedFd,
    /// Opens what comes in.
    pub opener: Opener,
    /// Seals what goes out.
    pub sealer: Sealer,
    /// The largest block of the session.
    pub block: u32,
    /// Counters that others read.
    pub stats: Arc<StreamStats>,
    /// Destination: checksums wanted.
    pub extra: Extra,
    /// Source: makes packs; `None` at a destination.
    pub packer: Option<Arc<dyn Packer>>,
}

impl std::fmt::Debug for Attach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Attach({})", self.stream)
    }
}

/// Reads small files for a source's stream, somewhere else than in the worker.
pub trait Packer: Send + Sync {
    /// Fills slots with the frames' bodies (from `SLOT_HEAD` on) and answers with [`Command::Pack`].
    fn pack(&self, stream: StreamKey, number: u32, items: Vec<PackItem>, block: u32, reply: Arc<Mailbox<Command>>);
}

/// A pack frame's body in a slot.
#[derive(Debug)]
pub struct PackBody {
    /// The body begins at `SLOT_HEAD`.
    pub slot: Slot,
    /// Bytes of body.
    pub len: u32,
    /// Bytes of it that are file content.
    pub payload: u32,
}

/// Coordinator (or pool) to worker.
#[derive(Debug)]
pub enum Command {
    /// A source's stream.
    AttachSource(Box<Attach>),
    /// A destination's stream.
    AttachDestination(Box<Attach>),
    /// A file that Wants may name from now on.
    Bound(SessionKey, Handle, Arc<SourceIo>),
    /// Files that they may not name any more.
    Unbound(SessionKey, Vec<Handle>),
    /// Forget the session's files.
    SessionEnd(SessionKey),
    /// Ask for this.
    Claim(StreamKey, Claim),
    /// Give a chunk back if nothing has arrived of it, or stop it between two blocks.
    Release(StreamKey, Handle, u32),
    /// The small files are read; in frame order.
    Pack(StreamKey, u32, Vec<PackBody>),
    /// Close the stream; its claims are the coordinator's again after [`Event::Dead`].
    Detach(StreamKey),
    /// End the thread once all ops are done.
    Stop,
}

/// Worker to coordinator.
#[derive(Debug)]
pub enum Event {
    /// Every byte of the chunk is in its part file (not yet synced) and its digest matched.
    Placed {
        /// Which stream brought it.
        stream: StreamKey,
        /// The file.
        handle: Handle,
        /// The chunk.
        chunk: u32,
        /// Its digest.
        digest: Digest,
        /// CRC-32C and Adler-32, where wanted.
        sums: (u32, u32),
        /// From Want to here, ns.
        latency_ns: u64,
    },
    /// Digest or tag did not match, or the source could not read it: nothing of it counts.
    ChunkFailed {
        /// Which stream.
        stream: StreamKey,
        /// The file.
        handle: Handle,
        /// The chunk.
        chunk: u32,
        /// Why.
        why: ChunkFault,
    },
    /// The answer to a claim for digests.
    ChunkDigest {
        /// Which stream.
        stream: StreamKey,
        /// The file.
        handle: Handle,
        /// The chunk.
        chunk: u32,
        /// The source's digest of it.
        digest: Digest,
    },
    /// The answer to [`Command::Release`]: the chunk is free, no op of it is in flight.
    Released {
        /// Which stream.
        stream: StreamKey,
        /// The file.
        handle: Handle,
        /// The chunk.
        chunk: u32,
        /// Payload bytes that had arrived of it.
        arrived: u64,
    },
    /// Nothing more comes of a released chunk: the source has left it out, or its last byte has come all the same.
    Drained {
        /// Which stream.
        stream: StreamKey,
        /// The file.
        handle: Handle,
        /// The chunk.
        chunk: u32,
        /// Payload bytes that came of it, in vain.
        in_vain: u64,
    },
    /// Small files, checked, in memory.
    Pack {
        /// Which stream.
        stream: StreamKey,
        /// The pack want they answer.
        number: u32,
        /// Body from `SLOT_HEAD` on.
        body: PackBody,
        /// The entries; their digest is the chunk digest, or `None` where the check failed.
        entries: Vec<(PackEntry, Option<Digest>)>,
        /// Whether it is the last frame of the want.
        last: bool,
    },
    /// The stream is gone, none of its ops is in flight.
    Dead {
        /// Which.
        stream: StreamKey,
        /// Why.
        why: Fault,
    },
}

impl Event {
    /// The stream it is about.
    pub fn stream(&self) -> StreamKey {
        match self {
            Event::Placed { stream, .. }
            | Event::ChunkFailed { stream, .. }
            | Event::ChunkDigest { stream, .. }
            | Event::Released { stream, .. }
            | Event::Drained { stream, .. }
            | Event::Pack { stream, .. }
            | Event::Dead { stream, .. } => *stream,
        }
    }
}

/// Why a chunk has to be fetched again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkFault {
    /// Digest or tag.
    Mismatch,
    /// The source said no.
    Source(Status),
    /// The destination could not write it.
    Write(io::ErrorKind, Option<i32>),
}

/// Why a stream ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// On command.
    #[error("closed")]
    Detached,
    /// The peer closed it, with an End frame.
    #[error("closed by the peer")]
    Ended,
    /// The peer closed it without an End frame.
    #[error("the connection was cut")]
    Cut,
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Socket(String),
    /// The peer does not keep to the protocol, or bytes were damaged where that cannot be repaired in step.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// The peer sent something that nobody asked for.
    #[error("the peer sent {0}")]
    Protocol(&'static str),
}

/// Nanoseconds since the process first asked.
pub fn now_ns() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    crate::clock::now().saturating_duration_since(start).as_nanos() as u64
}

/// What a step may use.
pub struct Turn<'a> {
    /// Ops go here.
    pub ops: &'a mut Vec<Op>,
    /// Events go here.
    pub events: &'a mut Vec<Event>,
    /// Slots kept close, so that the ones just used (and still in cache) are used next.
    pub slots: &'a mut SlotCache,
    /// The clock of this turn, see [`now_ns`].
    pub now: u64,
}

impl Turn<'_> {
    /// Keeps a slot for the next taker. A Send's slot may still be the kernel's: then the queue gives it back to the arena.
    pub fn give(&mut self, slot: Option<Slot>) {
        if let Some(slot) = slot {
            self.slots.give(slot);
        }
    }
}

/// The worker's own last-in first-out store of slots before the shared arena.
#[derive(Debug)]
pub struct SlotCache {
    spare: Vec<Slot>,
    keep: usize,
    arena: Arc<Arena>,
}

impl SlotCache {
    /// Keeps up to `keep` slots back from the arena.
    pub fn new(arena: Arc<Arena>, keep: usize) -> Self {
        Self { spare: Vec::with_capacity(keep), keep, arena }
    }
    /// A slot, the one used last if possible.
    pub fn take(&mut self) -> Option<Slot> {
        self.spare.pop().or_else(|| self.arena.take())
    }
    /// Gives a slot back.
    pub fn give(&mut self, slot: Slot) {
        if self.spare.len() < self.keep {
            self.spare.push(slot);
        }
    }
}

/// Ops of a stream are told apart by what is in their token: stream index, kind, number.
pub(crate) fn token(index: usize, kind: u8, number: u32) -> u64 {
    (index as u64) << 40 | u64::from(kind) << 32 | u64::from(number)
}

pub(crate) const KIND_RECV: u8 = 1;
pub(crate) const KIND_SEND: u8 = 2;
pub(crate) const KIND_FILE: u8 = 3;
pub(crate) const KIND_READY: u8 = 4;

enum Role {
    Source(source::SourceStream),
    Destination(destination::DestinationStream),
}

struct Stream {
    key: StreamKey,
    session: SessionKey,
    socket: SocketRef,
    stats: Arc<StreamStats>,
    in_flight: usize,
    /// Set once the stream is to end; it is removed when its last op has come back.
    fault: Option<Fault>,
    role: Role,
}

/// Open files of a source session by handle.
pub type BoundFiles = HashMap<Handle, Arc<SourceIo>>;

/// A worker's thread.
pub struct Worker<Q: IoQueue> {
    queue: Q,
    inbox: Arc<Mailbox<Command>>,
    outbox: Arc<Mailbox<Event>>,
    streams: Vec<Option<Stream>>,
    by_key: HashMap<StreamKey, usize>,
    bound: HashMap<SessionKey, BoundFiles>,
    slots: SlotCache,
    /// Since when the arena has been empty whenever it was looked at.
    exhausted_since: Option<u64>,
    stats: Arc<WorkerStats>,
    stopping: bool,
}

impl<Q: IoQueue> std::fmt::Debug for Worker<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Worker({} streams)", self.by_key.len())
    }
}

/// What a turn works with; kept from turn to turn, so that nothing is allocated after the start.
#[derive(Debug, Default)]
pub struct Desk {
    completions: Vec<Completion>,
    ops: Vec<Op>,
    events: Vec<Event>,
}

/// Slots that a worker keeps back: enough for a few streams' turns.
const SLOTS_KEPT: usize = 8;
/// The longest wait: mail wakes a worker, so this only bounds what a lost wake-up would cost.
const LONGEST_WAIT: Duration = Duration::from_millis(250);
/// The same for a worker without streams, which has nothing to be late with.
const IDLE_WAIT: Duration = Duration::from_secs(5);

impl<Q: IoQueue> Worker<Q> {
    /// A worker over `queue`; `inbox` must wake that queue.
    pub fn new(
        queue: Q,
        arena: Arc<Arena>,
        inbox: Arc<Mailbox<Command>>,
        outbox: Arc<Mailbox<Event>>,
        stats: Arc<WorkerStats>,
    ) -> Self {
        Self {
            queue,
            inbox,
            outbox,
            streams: Vec::new(),
            by_key: HashMap::new(),
            bound: HashMap::new(),
            slots: SlotCache::new(arena, SLOTS_KEPT),
            exhausted_since: None,
            stats,
            stopping: false,
        }
    }

    /// The loop: reap, read mail, step, push. Returns after [`Command::Stop`], all ops done, or when the queue fails.
    pub fn run(&mut self) -> io::Result<()> {
        self.stats.thread.store(nix::unistd::gettid().as_raw() as u32, Ordering::Relaxed);
        let mut desk = Desk::default();
        let mut wait = Wait::No;
        while let Some(next) = self.turn(wait, &mut desk)? {
            wait = Wait::AtMost(next);
        }
        Ok(())
    }

    /// One turn of the loop; how long the next may wait, or `None` when this was the last.
    pub fn turn(&mut self, wait: Wait, desk: &mut Desk) -> io::Result<Option<Duration>> {
        let Desk { completions, ops, events } = desk;
        let before = now_ns();
        self.queue.submit_and_reap(completions, wait)?;
        let now = now_ns();
        add(&self.stats.waiting, now - before);
        let any = !completions.is_empty();
        // Mail first: a Want may have come in for a file whose Bound is still in the box.
        let mail = self.read_mail(ops, events, now);
        for completion in completions.drain(..) {
            self.step(completion, ops, events, now);
        }
        let starved = self.pump_starved(ops, events, now);
        self.make_room(now);
        let pushed = !ops.is_empty();
        for op in ops.drain(..) {
            self.queue.push(op);
        }
        self.reap_dead(events);
        self.outbox.send_all(events);
        if self.stopping && self.queue.in_flight() == 0 {
            return Ok(None);
        }
        let busy = any || mail || pushed;
        add(&self.stats.busy, now_ns() - now);
        Ok(Some(match (busy, starved) {
            (false, true) => Duration::from_millis(1),
            _ if self.by_key.is_empty() && self.queue.in_flight() == 0 => IDLE_WAIT,
            _ => LONGEST_WAIT,
        }))
    }

    /// The queue, for who drives turn by turn.
    #[cfg(feature = "testing")]
    pub fn queue(&self) -> &Q {
        &self.queue
    }

    fn step(&mut self, completion: Completion, ops: &mut Vec<Op>, events: &mut Vec<Event>, now: u64) {
        let index = (completion.token >> 40) as usize;
        let Some(stream) = self.streams.get_mut(index).and_then(Option::as_mut) else {
            return; // the stream table outlives its ops; nothing can come here
        };
        stream.in_flight -= 1;
        let before = ops.len();
        let mut turn = Turn { ops, events, slots: &mut self.slots, now };
        let result = match &mut stream.role {
            _ if stream.fault.is_some() => {
                if let Role::Destination(role) = &mut stream.role {
                    role.drained(&completion);
                }
                turn.give(completion.slot);
                Ok(())
            }
            Role::Source(role) => {
                stream.stats.send_path.set(self.queue.send_path(&stream.socket));
                role.step(completion, self.bound.get(&stream.session), &mut turn)
            }
            Role::Destination(role) => role.step(completion, &mut turn),
        };
        stream.in_flight += ops.len() - before;
        if let Err(fault) = result {
            self.kill(index, fault);
        }
    }

    fn kill(&mut self, index: usize, fault: Fault) {
        if let Some(stream) = self.streams.get_mut(index).and_then(Option::as_mut)
            && stream.fault.is_none()
        {
            // shutdown, not close: it ends the ops that are in flight on the socket.
            self.queue.cut(&stream.socket);
            stream.fault = Some(fault);
        }
    }

    fn reap_dead(&mut self, events: &mut Vec<Event>) {
        for index in 0..self.streams.len() {
            let dead = matches!(&self.streams[index], Some(s) if s.fault.is_some() && s.in_flight == 0);
            if let Some(stream) = dead.then(|| self.streams[index].take()).flatten() {
                self.by_key.remove(&stream.key);
                self.queue.detach(stream.socket);
                events.push(Event::Dead { stream: stream.key, why: stream.fault.unwrap_or(Fault::Detached) });
            }
        }
    }

    /// Streams that had no slot try again; whether any still has none.
    fn pump_starved(&mut self, ops: &mut Vec<Op>, events: &mut Vec<Event>, now: u64) -> bool {
        let mut still = false;
        for index in 0..self.streams.len() {
            let Some(stream) = self.streams[index].as_mut().filter(|s| s.fault.is_none()) else { continue };
            let starved = match &stream.role {
                Role::Source(role) => role.starved(),
                Role::Destination(role) => role.starved(),
            };
            if !starved {
                continue;
            }
            let before = ops.len();
            let mut turn = Turn { ops, events, slots: &mut self.slots, now };
            let result = match &mut stream.role {
                Role::Source(role) => role.pump(self.bound.get(&stream.session), &mut turn),
                Role::Destination(role) => role.pump(&mut turn),
            };
            stream.in_flight += ops.len() - before;
            still |= match &stream.role {
                Role::Source(role) => role.starved(),
                Role::Destination(role) => role.starved(),
            };
            if let Err(fault) = result {
                self.kill(index, fault);
            }
        }
        still
    }

    fn read_mail(&mut self, ops: &mut Vec<Op>, events: &mut Vec<Event>, now: u64) -> bool {
        let mut any = false;
        while let Some(command) = self.inbox.take() {
            any = true;
            match command {
                Command::AttachSource(attach) => self.attach(*attach, true, ops, events, now),
                Command::AttachDestination(attach) => self.attach(*attach, false, ops, events, now),
                Command::Bound(session, handle, file) => {
                    self.bound.entry(session).or_default().insert(handle, file);
                }
                Command::Unbound(session, handles) => {
                    if let Some(files) = self.bound.get_mut(&session) {
                        handles.iter().for_each(|h| drop(files.remove(h)));
                    }
                }
                Command::SessionEnd(session) => drop(self.bound.remove(&session)),
                Command::Detach(key) => {
                    if let Some(&index) = self.by_key.get(&key) {
                        self.kill(index, Fault::Detached);
                    }
                }
                Command::Stop => {
                    self.stopping = true;
                    (0..self.streams.len()).for_each(|index| self.kill(index, Fault::Detached));
                }
                Command::Claim(key, claim) => {
                    self.with_stream(key, ops, events, now, |role, turn, _| match role {
                        Role::Destination(d) => d.claim(claim, turn),
                        Role::Source(_) => Ok(()),
                    });
                }
                Command::Release(key, handle, chunk) => {
                    self.with_stream(key, ops, events, now, |role, turn, _| match role {
                        Role::Destination(d) => d.release(handle, chunk, turn),
                        Role::Source(_) => Ok(()),
                    });
                }
                Command::Pack(key, number, bodies) => {
                    self.with_stream(key, ops, events, now, |role, turn, bound| match role {
                        Role::Source(s) => s.packed(number, bodies, bound, turn),
                        Role::Destination(_) => Ok(()),
                    });
                }
            }
        }
        any
    }

    fn with_stream(
        &mut self,
        key: StreamKey,
        ops: &mut Vec<Op>,
        events: &mut Vec<Event>,
        now: u64,
        act: impl FnOnce(&mut Role, &mut Turn<'_>, Option<&BoundFiles>) -> Result<(), Fault>,
    ) {
        // A stream that is gone has had its Dead event: whatever was meant for it is claimed again there.
        let Some(&index) = self.by_key.get(&key) else { return };
        let Some(stream) = self.streams[index].as_mut().filter(|s| s.fault.is_none()) else { return };
        let before = ops.len();
        let mut turn = Turn { ops, events, slots: &mut self.slots, now };
        let result = act(&mut stream.role, &mut turn, self.bound.get(&stream.session));
        stream.in_flight += ops.len() - before;
        if let Err(fault) = result {
            self.kill(index, fault);
        }
    }

    fn attach(&mut self, attach: Attach, source: bool, ops: &mut Vec<Op>, events: &mut Vec<Event>, now: u64) {
        let (key, session) = (attach.stream, attach.session);
        let socket = match self.queue.attach(Arc::new(attach.socket)) {
            Ok(socket) if !self.stopping => socket,
            Ok(socket) => {
                self.queue.detach(socket);
                events.push(Event::Dead { stream: key, why: Fault::Detached });
                return;
            }
            Err(error) => {
                events.push(Event::Dead { stream: key, why: Fault::Socket(error.to_string()) });
                return;
            }
        };
        let index = self.streams.iter().position(Option::is_none).unwrap_or_else(|| {
            self.streams.push(None);
            self.streams.len() - 1
        });
        let stats = attach.stats.clone();
        let link = link::Link::new(index, socket.clone(), attach.opener, attach.sealer, attach.block, attach.stats);
        let role = match (source, attach.packer) {
            (true, Some(packer)) => {
                Role::Source(source::SourceStream::new(key, link, attach.block, packer, self.inbox.clone()))
            }
            _ => Role::Destination(destination::DestinationStream::new(key, link, attach.extra)),
        };
        self.streams[index] = Some(Stream { key, session, socket, stats, in_flight: 0, fault: None, role });
        self.by_key.insert(key, index);
        self.with_stream(key, ops, events, now, |role, turn, bound| match role {
            Role::Source(s) => s.pump(bound, turn),
            Role::Destination(d) => d.pump(turn),
        });
    }
}
