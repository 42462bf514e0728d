//! A destination's stream: asks for claims, takes what comes, places it, and says when a chunk is whole and right.
//!
//! Every Want is answered, in order, so the front of `expected` is what must come next. A chunk given back by
//! [`DestinationStream::release`] may still come: its frames are dropped and counted; else its refusal comes. Exactly one stream may write a
//! chunk, and a release is answered only when no write of it is in flight.

use super::link::{BODY, Came, Frame, Link};
use super::{ChunkFault, Claim, Event, Extra, Fault, PackBody, StreamKey, TargetIo, Turn, add};
use crate::digest::{ChunkHasher, Digest, chunk, wire_check};
use crate::grid::{CHUNK_SIZE, Grid, Span};
use crate::ids::Handle;
use crate::sys::{Completion, FileMode, Op, Slot, points};
use crate::wire::WireError;
use crate::wire::data::{self, PackItem, Run, Status};
use crate::wire::header::FrameType;
use std::collections::VecDeque;
use std::sync::Arc;

/// Alignment of O_DIRECT: enough for every device in use.
const DIRECT_ALIGN: u64 = 4096;

struct Chunk {
    handle: Handle,
    index: u32,
    span: Span,
    target: Option<Arc<TargetIo>>,
    next: u64,
    arrived: u64,
    /// Given back: what still comes is dropped.
    dropped: bool,
    released: bool,
    failed: Option<ChunkFault>,
    /// Received whole; waits for its writes.
    received: Option<Digest>,
    writes: u32,
    asked: u64,
    sums: (u32, u32),
}

enum Expected {
    /// Number in `chunks`.
    Chunk(u32),
    Pack {
        number: u32,
        items: Arc<Vec<PackItem>>,
        /// Frames that have come of it: each brings a file at least.
        frames: usize,
    },
}

/// The role.
pub struct DestinationStream {
    key: StreamKey,
    link: Link,
    extra: Extra,
    expected: VecDeque<Expected>,
    chunks: Vec<Option<Chunk>>,
    free: Vec<u32>,
    hasher: ChunkHasher,
    idle: bool,
}

impl DestinationStream {
    /// A stream with nothing asked yet.
    pub fn new(key: StreamKey, link: Link, extra: Extra) -> Self {
        Self {
            key,
            link,
            extra,
            expected: VecDeque::new(),
            chunks: Vec::new(),
            free: Vec::new(),
            hasher: ChunkHasher::default(),
            idle: true,
        }
    }

    /// Whether a frame has been on its way since before `then` and nothing of it has moved.
    pub fn stalled_before(&self, then: u64) -> bool {
        self.link.stalled_before(then)
    }

    /// Whether it waits for a slot.
    pub fn starved(&self) -> bool {
        self.link.wants_slot() || (self.link.queued() > 0 && !self.link.sending())
    }

    /// Takes a claim and asks for it.
    pub fn claim(&mut self, claim: Claim, turn: &mut Turn<'_>) -> Result<(), Fault> {
        if std::mem::take(&mut self.idle) {
            // From here on there is something to bring.
            self.link.stats.last_progress.store(turn.now, std::sync::atomic::Ordering::Relaxed);
            self.link.stats.idle.set(false, turn.now);
        }
        match claim {
            Claim::Chunks { run, size, target } => {
                let grid = Grid::new(size).expect("sizes are checked when a manifest comes in");
                for index in run.first..run.first + run.count {
                    let span = grid.span(index).expect("claims lie inside their file");
                    let number = self.free.pop().unwrap_or_else(|| {
                        self.chunks.push(None);
                        self.chunks.len() as u32 - 1
                    });
                    self.chunks[number as usize] = Some(Chunk {
                        handle: run.handle,
                        index,
                        span,
                        target: target.clone(),
                        next: span.offset,
                        arrived: 0,
                        dropped: false,
                        released: false,
                        failed: None,
                        received: None,
                        writes: 0,
                        asked: turn.now,
                        sums: (0, 1),
                    });
                    self.expected.push_back(Expected::Chunk(number));
                }
                self.link.queue(FrameType::Want, 0, data::encode_runs(&[run]));
            }
            Claim::Pack { number, items } => {
                self.link.queue(FrameType::PackWant, number, data::encode_pack_want(&items));
                self.expected.push_back(Expected::Pack { number, items, frames: 0 });
            }
        }
        self.pump(turn)
    }

    /// Gives a chunk back; [`Event::Released`] follows once nothing of it is in flight. A chunk that is whole already
    /// gets its `Placed` instead.
    pub fn release(&mut self, handle: Handle, index: u32, turn: &mut Turn<'_>) -> Result<(), Fault> {
        let found = self.chunks.iter().position(|c| {
            c.as_ref().is_some_and(|c| c.handle == handle && c.index == index && !c.dropped && c.received.is_none())
        });
        let Some(number) = found else { return Ok(()) };
        let chunk = self.chunks[number].as_mut().expect("found above");
        chunk.dropped = true;
        let run = Run { handle, first: index, count: 1, digests_only: chunk.target.is_none() };
        self.link.queue(FrameType::Unwant, 0, data::encode_runs(&[run]));
        self.settle(number as u32, turn);
        self.pump(turn)
    }

    /// Sends what is queued and keeps a receive armed.
    pub fn pump(&mut self, turn: &mut Turn<'_>) -> Result<(), Fault> {
        self.link.flush(turn);
        self.link.receive(!self.expected.is_empty(), turn)?;
        // Room comes when writes end: a stream that has none waits for the disk.
        // And what has come is held until it is written.
        let writing = self.idle && self.chunks.len() > self.free.len();
        self.link.stats.disk_wait.set(self.link.wants_slot() || writing, turn.now);
        self.link.stats.idle.set(self.idle && !writing, turn.now);
        Ok(())
    }

    /// A completion that came after the stream had failed: writes are counted off, nothing else happens.
    pub fn drained(&mut self, _completion: &Completion) {}

    /// Walk 9: takes a completion. A block that came is opened and placed in the part file; a chunk's last block brings its
    /// digest, and only what matches it is told.
    pub fn step(&mut self, completion: Completion, turn: &mut Turn<'_>) -> Result<(), Fault> {
        match self.link.completed(completion, turn)? {
            Came::Frame(frame) => self.frame(frame, turn)?,
            Came::File(number, slot, result) => {
                if let Some(chunk) = self.chunks[number as usize].as_mut() {
                    chunk.writes -= 1;
                    points::at("destination.written");
                    if let Err(error) = result {
                        chunk.failed = Some(ChunkFault::Write(error.kind(), error.raw_os_error()));
                    }
                }
                turn.slots.give(slot);
                self.settle(number, turn);
            }
            Came::Nothing => {}
        }
        self.pump(turn)
    }

    fn frame(&mut self, frame: Frame, turn: &mut Turn<'_>) -> Result<(), Fault> {
        match frame.header.kind {
            FrameType::Data | FrameType::Zero => self.block(frame, turn),
            FrameType::Pack => self.pack(frame, turn),
            _ if !frame.intact => Err(WireError::Tag.into()),
            FrameType::Digest | FrameType::Nak => self.answer(frame, turn),
            FrameType::Ping => {
                self.link.reuse(frame.slot, turn);
                Ok(())
            }
            FrameType::End => Err(Fault::Ended),
            other => Err(WireError::Type(other as u8).into()),
        }
    }

    /// The chunk that a frame must belong to: every Want is answered, in order.
    fn front(&mut self, handle: u32, within: impl Fn(&Chunk) -> bool) -> Result<u32, Fault> {
        let Some(Expected::Chunk(number)) = self.expected.front() else {
            return Err(Fault::Protocol("a chunk that nobody asked for"));
        };
        let chunk = self.chunks[*number as usize].as_ref().expect("expected chunks exist");
        if chunk.handle.0 != handle || !within(chunk) {
            return Err(Fault::Protocol("a block of another file or place than was asked for"));
        }
        Ok(*number)
    }

    fn block(&mut self, frame: Frame, turn: &mut Turn<'_>) -> Result<(), Fault> {
        let Frame { header, slot, intact } = frame;
        let offset = header.offset;
        let number = self.front(header.handle, |c| c.next == offset)?;
        let body = &slot.as_slice()[BODY..BODY + header.body_len as usize];
        let chunk = self.chunks[number as usize].as_mut().expect("front checked it");
        let (len, check) = if header.kind == FrameType::Data {
            let (len, check) = data::split_data(body, header.ends_chunk())?;
            if intact {
                self.hasher.update(&body[..len]);
                if self.extra != Extra::default() {
                    chunk.sums = super::super::sums::extend(chunk.sums, self.extra, &body[..len]);
                }
            }
            (len as u64, check)
        } else if intact {
            let (len, check) = data::decode_zero(body, header.ends_chunk())?;
            self.hasher.update_zeros(len);
            add(&self.link.stats.brought, len);
            if self.extra != Extra::default() {
                chunk.sums = super::super::sums::extend_zeros(chunk.sums, self.extra, len);
            }
            (len, check)
        } else {
            return Err(WireError::Tag.into());
        };
        if len == 0 || chunk.next + len > chunk.span.end() {
            return Err(Fault::Protocol("more bytes than the chunk has"));
        }
        chunk.next += len;
        if header.ends_chunk() != (chunk.next == chunk.span.end()) {
            return Err(Fault::Protocol("a chunk that ends in the wrong place"));
        }
        if !intact && chunk.failed.is_none() {
            chunk.failed = Some(ChunkFault::Mismatch);
        }
        if header.kind == FrameType::Data {
            chunk.arrived += len;
            add(&self.link.stats.payload, len);
            if chunk.released {
                // What came before was counted when the chunk was let go.
                add(&self.link.stats.wasted, len);
            }
        }
        let wanted = !chunk.dropped && chunk.failed.is_none();
        if let Some(check) = check {
            let digest = self.hasher.finish(chunk.span);
            if chunk.failed.is_none() && wire_check(digest, chunk.handle, chunk.span) != check {
                chunk.failed = Some(ChunkFault::Mismatch);
            }
            chunk.received = Some(digest);
            self.expected.pop_front();
        }
        match &chunk.target {
            Some(target) if wanted && header.kind == FrameType::Data => {
                chunk.writes += 1;
                let mut slot = slot;
                points::flip("destination.checked", &mut slot.as_mut_slice()[BODY..BODY + len as usize]);
                let offset = points::place("destination.place", offset, CHUNK_SIZE);
                let token = self.link.file_token(number);
                turn.ops.push(write(target, offset, slot, len as u32, token));
            }
            _ => self.link.reuse(slot, turn),
        }
        if check.is_some() {
            self.settle(number, turn);
            self.note_idle();
        }
        Ok(())
    }

    /// Tells the coordinator once a chunk has nothing in flight any more.
    fn settle(&mut self, number: u32, turn: &mut Turn<'_>) {
        let Some(chunk) = self.chunks[number as usize].as_mut() else { return };
        if chunk.writes > 0 {
            return;
        }
        let (stream, handle, index) = (self.key, chunk.handle, chunk.index);
        if chunk.dropped && !chunk.released {
            chunk.released = true;
            add(&self.link.stats.wasted, chunk.arrived);
            turn.events.push(Event::Released { stream, handle, chunk: index, arrived: chunk.arrived });
        }
        let over = chunk.received.is_some() || chunk.next == u64::MAX;
        if !over {
            return;
        }
        let chunk = self.chunks[number as usize].take().expect("seen above");
        self.free.push(number);
        if chunk.dropped {
            turn.events.push(Event::Drained { stream, handle, chunk: index, in_vain: chunk.arrived });
            return;
        }
        points::at("destination.placed");
        turn.events.push(match (chunk.failed, chunk.received) {
            (Some(why), _) => {
                add(&self.link.stats.wasted, chunk.arrived);
                Event::ChunkFailed { stream, handle, chunk: index, why }
            }
            (None, Some(digest)) => Event::Placed {
                stream,
                handle,
                chunk: index,
                digest,
                sums: chunk.sums,
                latency_ns: turn.now.saturating_sub(chunk.asked),
            },
            (None, None) => Event::ChunkFailed { stream, handle, chunk: index, why: ChunkFault::Mismatch },
        });
    }

    fn answer(&mut self, frame: Frame, turn: &mut Turn<'_>) -> Result<(), Fault> {
        let Frame { header, slot, .. } = frame;
        let body = &slot.as_slice()[BODY..BODY + header.body_len as usize];
        let number = self.front(header.handle, |c| c.span.offset == header.offset)?;
        let chunk = self.chunks[number as usize].as_mut().expect("front checked it");
        add(&self.link.stats.brought, chunk.span.len);
        if header.kind == FrameType::Digest {
            let digest = Digest(body.try_into().map_err(|_| WireError::Length("digest"))?);
            if chunk.target.is_some() {
                return Err(Fault::Protocol("a digest where bytes were asked for"));
            }
            turn.events.push(Event::ChunkDigest { stream: self.key, handle: chunk.handle, chunk: chunk.index, digest });
            self.chunks[number as usize] = None;
            self.free.push(number);
        } else {
            let status = Status::from_byte(*body.first().ok_or(WireError::Length("nak"))?)?;
            if status == Status::Unwanted && !chunk.dropped {
                return Err(Fault::Protocol("a refusal of what is wanted"));
            }
            // A chunk may be refused in its middle: what had come is discarded with it.
            self.hasher = ChunkHasher::default();
            chunk.failed = Some(ChunkFault::Source(status));
            chunk.next = u64::MAX;
            self.settle(number, turn);
        }
        self.expected.pop_front();
        self.link.reuse(slot, turn);
        self.note_idle();
        Ok(())
    }

    fn pack(&mut self, frame: Frame, turn: &mut Turn<'_>) -> Result<(), Fault> {
        let Frame { header, slot, intact } = frame;
        let Some(Expected::Pack { number, items, frames }) = self.expected.front_mut() else {
            return Err(Fault::Protocol("a pack that nobody asked for"));
        };
        if *number != header.handle {
            return Err(Fault::Protocol("another pack than was asked for"));
        }
        *frames += 1;
        if *frames > items.len() {
            return Err(Fault::Protocol("a pack without end"));
        }
        let (number, last) = (*number, header.ends_chunk());
        let body = &slot.as_slice()[BODY..BODY + header.body_len as usize];
        let mut entries = Vec::new();
        if intact {
            for entry in data::decode_pack(body)? {
                let content = &body[entry.content.clone()];
                let Some(item) = items.iter().find(|item| item.handle == entry.handle) else {
                    return Err(Fault::Protocol("a small file that nobody asked for"));
                };
                let digest = match entry.status {
                    Status::Ok if content.len() == item.size as usize => {
                        let span = Span { offset: 0, len: content.len() as u64 };
                        let digest = chunk(content, 0);
                        (wire_check(digest, entry.handle, span) == entry.check).then_some(digest)
                    }
                    _ => None,
                };
                points::at("destination.pack-checked");
                add(&self.link.stats.payload, content.len() as u64);
                entries.push((entry, digest));
            }
        }
        if last {
            self.expected.pop_front();
            self.note_idle();
        }
        let payload = entries.iter().map(|(entry, _)| entry.content.len() as u32).sum();
        let body = PackBody { slot, len: header.body_len, payload };
        turn.events.push(Event::Pack { stream: self.key, number, body, entries, last });
        Ok(())
    }

    fn note_idle(&mut self) {
        if self.expected.is_empty() {
            self.idle = true;
        }
    }
}

fn write(target: &TargetIo, offset: u64, slot: Slot, len: u32, token: u64) -> Op {
    let aligned = offset.is_multiple_of(DIRECT_ALIGN) && u64::from(len).is_multiple_of(DIRECT_ALIGN);
    let file = match &target.direct {
        Some(direct) if aligned => direct.clone(),
        Some(_) => {
            // The unaligned tail goes through the page cache; the sync before a chunk counts covers both.
            let mut file = target.file.clone();
            file.mode = FileMode::PageCache;
            file
        }
        None => target.file.clone(),
    };
    Op::Write { file, offset, slot, range: BODY as u32..BODY as u32 + len, token }
}
