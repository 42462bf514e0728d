//! A source's stream: answers Wants in their order, reading ahead of the socket by a few blocks.

use super::link::{BODY, Came, Frame, Link};
use super::mailbox::Mailbox;
use super::{BoundFiles, Command, Fault, PackBody, Packer, SourceIo, StreamKey, Turn, add};
use crate::digest::{ChunkHasher, DIGEST_LEN, wire_check};
use crate::grid::{CHUNK_SIZE, Grid, Span};
use crate::ids::Handle;
use crate::sys::{Completion, FileMode, Op, Slot, points};
use crate::wire::WireError;
use crate::wire::data::{self, Run, Status};
use crate::wire::header::{CHUNK_END, FrameType, Header};
use std::collections::VecDeque;
use std::sync::Arc;

/// Runs and packs that a peer may have waiting on one stream: what its WANT_WINDOW holds. An honest one has a few.
const WANTS_MAX: usize = crate::limits::WANT_WINDOW / 16;
/// Packs of them, each with the names of its files: an honest peer has three.
const PACKS_MAX: usize = 32;
/// Answers made ahead of the socket, refusals above all: a Want for very much that cannot be had costs the peer 16 bytes.
const PIECES_MAX: usize = 64;
/// Packs being read at once for one stream.
const PACKS_AHEAD: usize = 4;

enum Want {
    Run(Run),
    /// Taken back before its turn; still answered, so that the peer can tell it from one asked for again.
    Dropped(Run),
    Pack {
        number: u32,
        items: Option<Vec<data::PackItem>>,
        bodies: Option<Vec<PackBody>>,
    },
}

/// The chunk being read.
struct Cursor {
    run: Run,
    chunk: u32,
    span: Span,
    at: u64,
    file: Arc<SourceIo>,
}

enum State {
    Reading,
    Ready(Slot),
    Hole,
    /// The chunk cannot be had.
    Refused(Status),
}

struct Piece {
    number: u32,
    handle: Handle,
    chunk: u32,
    span: Span,
    offset: u64,
    len: u32,
    last: bool,
    digest_only: bool,
    /// The file whose pages go out instead of the slot's copy of them.
    splice: Option<Arc<SourceIo>>,
    state: State,
}

/// The role.
pub struct SourceStream {
    key: StreamKey,
    link: Link,
    block: u32,
    packer: Arc<dyn Packer>,
    inbox: Arc<Mailbox<Command>>,
    wants: VecDeque<Want>,
    cursor: Option<Cursor>,
    pieces: VecDeque<Piece>,
    next_piece: u32,
    hasher: ChunkHasher,
    /// The chunk whose remaining pieces are dropped.
    refused: Option<(Handle, u32)>,
    no_slot: bool,
}

impl SourceStream {
    /// A stream with nothing asked of it.
    pub fn new(key: StreamKey, link: Link, block: u32, packer: Arc<dyn Packer>, inbox: Arc<Mailbox<Command>>) -> Self {
        Self {
            key,
            link,
            block,
            packer,
            inbox,
            wants: VecDeque::new(),
            cursor: None,
            pieces: VecDeque::new(),
            next_piece: 0,
            hasher: ChunkHasher::default(),
            refused: None,
            no_slot: false,
        }
    }

    /// Whether a frame has been on its way since before `then` and nothing of it has moved. What comes in are small frames:
    /// one that has not come in whole since then is only there to hold its buffer.
    pub fn stalled_before(&self, then: u64) -> bool {
        self.link.stalled_before(then) || self.link.incomplete_since(then)
    }

    /// Whether it waits for a slot.
    pub fn starved(&self) -> bool {
        self.no_slot || self.link.wants_slot() || (self.link.queued() > 0 && !self.link.sending())
    }

    /// Small files have been read.
    pub fn packed(
        &mut self,
        number: u32,
        bodies: Vec<PackBody>,
        bound: Option<&BoundFiles>,
        turn: &mut Turn<'_>,
    ) -> Result<(), Fault> {
        for want in &mut self.wants {
            if let Want::Pack { number: n, bodies: slot @ None, .. } = want
                && *n == number
            {
                *slot = Some(bodies);
                break;
            }
        }
        self.pump(bound, turn)
    }

    /// Reads ahead, sends, keeps a receive armed.
    pub fn pump(&mut self, bound: Option<&BoundFiles>, turn: &mut Turn<'_>) -> Result<(), Fault> {
        self.start_packs();
        loop {
            self.fill(bound, turn);
            self.send(turn);
            let more = self.cursor.is_some() || matches!(self.wants.front(), Some(Want::Run(_) | Want::Dropped(_)));
            if self.link.sending() || self.no_slot || !self.pieces.is_empty() || !more {
                break;
            }
        }
        // Wants are few and far between.
        self.link.receive(false, turn)?;
        let asked = self.cursor.is_some() || !self.pieces.is_empty() || !self.wants.is_empty();
        self.link.stats.idle.set(!asked, turn.now);
        let reading = !self.link.sending() && self.is_reading();
        self.link.stats.disk_wait.set(reading, turn.now);
        Ok(())
    }

    /// Whether what is to be sent next is still being read, by this worker or, of a pack, by the pool.
    fn is_reading(&self) -> bool {
        match (self.pieces.front(), self.wants.front()) {
            (Some(piece), _) => matches!(piece.state, State::Reading),
            (None, Some(Want::Pack { bodies, .. })) => bodies.is_none(),
            (None, _) => false,
        }
    }

    /// Walk 8: takes a completion, and moves every piece on that can go: read, digest, seal, send, in the order of the Wants.
    pub fn step(
        &mut self,
        completion: Completion,
        bound: Option<&BoundFiles>,
        turn: &mut Turn<'_>,
    ) -> Result<(), Fault> {
        match self.link.completed(completion, turn)? {
            Came::Frame(frame) => self.frame(frame, turn)?,
            Came::File(number, slot, result) => {
                let piece = self.pieces.iter_mut().find(|p| p.number == number);
                match (piece, result) {
                    (Some(piece), Ok(count)) if count == piece.len => {
                        let mut slot = slot;
                        points::flip("source.read", &mut slot.as_mut_slice()[BODY..BODY + count as usize]);
                        piece.state = State::Ready(slot);
                    }
                    (Some(piece), result) => {
                        // Short: the file was truncated under us.
                        let status = if result.is_ok() { Status::Changed } else { Status::Failed };
                        piece.state = State::Refused(status);
                        turn.slots.give(slot);
                    }
                    (None, _) => turn.slots.give(slot),
                }
            }
            Came::Nothing => {}
        }
        self.pump(bound, turn)
    }

    fn frame(&mut self, frame: Frame, turn: &mut Turn<'_>) -> Result<(), Fault> {
        let Frame { header, slot, intact } = frame;
        if !intact {
            return Err(WireError::Tag.into());
        }
        let body = &slot.as_slice()[BODY..BODY + header.body_len as usize];
        match header.kind {
            FrameType::Want => self.wants.extend(data::decode_runs(body)?.into_iter().map(Want::Run)),
            FrameType::Unwant => {
                for run in data::decode_runs(body)? {
                    self.unwant(run);
                    // Each may make three runs of one.
                    self.within_bounds()?;
                }
            }
            FrameType::PackWant => {
                let items = Some(data::decode_pack_want(body)?);
                self.wants.push_back(Want::Pack { number: header.handle, items, bodies: None });
            }
            FrameType::Ping => {}
            FrameType::End => return Err(Fault::Ended),
            other => return Err(WireError::Type(other as u8).into()),
        }
        self.within_bounds()?;
        self.link.reuse(slot, turn);
        Ok(())
    }

    fn within_bounds(&self) -> Result<(), Fault> {
        let packs = self.wants.iter().filter(|want| matches!(want, Want::Pack { .. })).take(PACKS_MAX + 1).count();
        if self.wants.len() > WANTS_MAX || packs > PACKS_MAX {
            return Err(Fault::Protocol("more Wants than any window holds"));
        }
        Ok(())
    }

    /// Marks whole chunks of runs that have not begun; a chunk that has begun is sent to its end.
    fn unwant(&mut self, gone: Run) {
        // Of the run that is being answered only one chunk has begun.
        if let Some(Cursor { run, .. }) = &mut self.cursor
            && run.count > 1
            && (run.handle, run.digests_only) == (gone.handle, gone.digests_only)
        {
            self.wants.push_front(Want::Run(Run { first: run.first + 1, count: run.count - 1, ..*run }));
            run.count = 1;
        }
        let mut kept = VecDeque::with_capacity(self.wants.len());
        for want in self.wants.drain(..) {
            match want {
                Want::Run(run) if run.handle == gone.handle && run.digests_only == gone.digests_only => {
                    let (start, end) = (run.first, run.first + run.count);
                    let (cut, cut_end) = (gone.first.clamp(start, end), (gone.first + gone.count).clamp(start, end));
                    if cut >= cut_end {
                        kept.push_back(Want::Run(run));
                        continue;
                    }
                    if cut > start {
                        kept.push_back(Want::Run(Run { count: cut - start, ..run }));
                    }
                    kept.push_back(Want::Dropped(Run { first: cut, count: cut_end - cut, ..run }));
                    if end > cut_end {
                        kept.push_back(Want::Run(Run { first: cut_end, count: end - cut_end, ..run }));
                    }
                }
                other => kept.push_back(other),
            }
        }
        self.wants = kept;
    }

    fn start_packs(&mut self) {
        for want in self.wants.iter_mut().take(PACKS_AHEAD) {
            if let Want::Pack { number, items, .. } = want
                && let Some(items) = items.take()
            {
                self.packer.pack(self.key, *number, items, self.block, self.inbox.clone());
            }
        }
    }

    /// Adds pieces up to the depth of the file at hand.
    fn fill(&mut self, bound: Option<&BoundFiles>, turn: &mut Turn<'_>) {
        self.no_slot = false;
        loop {
            if self.cursor.is_none() && (self.pieces.len() > PIECES_MAX || !self.open_next(bound)) {
                return;
            }
            let Some(cursor) = &mut self.cursor else { continue };
            let depth = cursor.file.depth.max(1);
            if self.pieces.len() > depth {
                return;
            }
            let (hole, len) = next_stretch(&cursor.file, cursor.at, cursor.span.end(), self.block);
            let last = cursor.at + u64::from(len) == cursor.span.end();
            let number = self.next_piece;
            let state = if hole {
                State::Hole
            } else {
                let Some(slot) = turn.slots.take() else {
                    self.no_slot = true;
                    return;
                };
                turn.ops.push(Op::Read {
                    file: pick(&cursor.file, cursor.at, len),
                    offset: points::place("source.read-place", cursor.at, CHUNK_SIZE),
                    slot,
                    range: BODY as u32..BODY as u32 + len,
                    token: self.link.file_token(number),
                });
                State::Reading
            };
            self.next_piece = self.next_piece.wrapping_add(1);
            self.pieces.push_back(Piece {
                number,
                handle: cursor.run.handle,
                chunk: cursor.chunk,
                span: cursor.span,
                offset: cursor.at,
                len,
                last,
                digest_only: cursor.run.digests_only,
                splice: cursor.file.splice.then(|| cursor.file.clone()),
                state,
            });
            cursor.at += u64::from(len);
            if last && !self.next_chunk() {
                self.cursor = None;
            }
        }
    }

    fn next_chunk(&mut self) -> bool {
        let Some(cursor) = &mut self.cursor else { return false };
        cursor.run.first += 1;
        cursor.run.count -= 1;
        if cursor.run.count == 0 {
            return false;
        }
        let Some(span) = Grid::new(cursor.file.size).and_then(|g| g.span(cursor.run.first)) else { return false };
        (cursor.chunk, cursor.span, cursor.at) = (cursor.run.first, span, span.offset);
        true
    }

    /// Begins the run at the front. A pack at the front waits until all pieces before it are sent.
    fn open_next(&mut self, bound: Option<&BoundFiles>) -> bool {
        let run = match self.wants.front() {
            Some(Want::Run(run)) => *run,
            Some(Want::Dropped(run)) => {
                let run = *run;
                self.wants.pop_front();
                self.refuse(run, Status::Unwanted);
                return true;
            }
            _ => return false,
        };
        self.wants.pop_front();
        let file = bound.and_then(|files| files.get(&run.handle)).cloned();
        let end = run.first.checked_add(run.count - 1);
        let in_file = |f: &Arc<SourceIo>| {
            let grid = Grid::new(f.size)?;
            end.and_then(|e| grid.span(e))?;
            grid.span(run.first)
        };
        match file.as_ref().and_then(|f| in_file(f).map(|span| (f.clone(), span))) {
            Some((file, span)) => {
                self.cursor = Some(Cursor { run, chunk: run.first, span, at: span.offset, file });
            }
            // Not bound, or outside the file.
            None => self.refuse(run, Status::Gone),
        }
        true
    }

    /// Answers each chunk of a run with a refusal, in its turn, so that the peer's books stay right.
    fn refuse(&mut self, run: Run, status: Status) {
        // A Want of more chunks than this is no honest one, and need not be answered to its end.
        for chunk in run.first..run.first.saturating_add(run.count.min(1024)) {
            let span = Span { offset: u64::from(chunk) * crate::grid::CHUNK_SIZE, len: 1 };
            self.pieces.push_back(Piece {
                number: u32::MAX,
                handle: run.handle,
                chunk,
                span,
                offset: span.offset,
                len: 0,
                last: true,
                digest_only: run.digests_only,
                splice: None,
                state: State::Refused(status),
            });
        }
    }

    /// Sends the front piece if it is ready and the socket is free. One Send at a time keeps the order.
    fn send(&mut self, turn: &mut Turn<'_>) {
        self.link.flush(turn);
        while !self.link.sending() && !self.no_slot {
            match self.pieces.front() {
                None => {
                    if !self.send_pack(turn) {
                        return;
                    }
                    continue;
                }
                Some(Piece { state: State::Reading, .. }) => return,
                Some(_) => {}
            }
            let piece = self.pieces.pop_front().expect("front was there");
            if self.refused == Some((piece.handle, piece.chunk)) {
                if piece.last {
                    self.refused = None;
                }
                if let State::Ready(slot) = piece.state {
                    turn.slots.give(slot);
                }
                continue;
            }
            self.send_piece(piece, turn);
        }
    }

    fn send_piece(&mut self, piece: Piece, turn: &mut Turn<'_>) {
        let bare = match piece.state {
            State::Reading | State::Ready(_) => false,
            State::Refused(_) => true,
            State::Hole => piece.last || !piece.digest_only,
        };
        // A frame without payload needs a slot too: without one the piece waits at the front.
        let spare = if bare { turn.slots.take() } else { None };
        if bare && spare.is_none() {
            self.no_slot = true;
            self.pieces.push_front(piece);
            return;
        }
        let Piece { handle, chunk, span, offset, len, last, digest_only, splice, state, .. } = piece;
        let mut header =
            Header { kind: FrameType::Data, flags: 0, body_len: len, handle: handle.0, offset, counter: 0 };
        let mut spliced = None;
        let mut slot = match (state, spare) {
            (State::Refused(status), Some(mut slot)) => {
                if !last {
                    self.refused = Some((handle, chunk));
                }
                self.hasher = ChunkHasher::default();
                slot.as_mut_slice()[BODY] = status as u8;
                header = Header { kind: FrameType::Nak, body_len: 1, offset: span.offset, ..header };
                return self.link.send_frame(slot, header, turn);
            }
            (State::Hole, None) => return self.hasher.update_zeros(u64::from(len)),
            (State::Hole, Some(mut slot)) => {
                self.hasher.update_zeros(u64::from(len));
                slot.as_mut_slice()[BODY..BODY + 8].copy_from_slice(&u64::from(len).to_le_bytes());
                header.kind = FrameType::Zero;
                header.body_len = 8;
                slot
            }
            (State::Ready(mut slot), _) => {
                self.hasher.update(&slot.as_slice()[BODY..BODY + len as usize]);
                points::flip("source.digested", &mut slot.as_mut_slice()[BODY..BODY + len as usize]);
                if digest_only && !last {
                    return turn.slots.give(slot);
                }
                if !digest_only {
                    add(&self.link.stats.payload, u64::from(len));
                    spliced = splice;
                }
                slot
            }
            (State::Reading | State::Refused(_), _) => unreachable!("send waits for reads, and a refusal has its slot"),
        };
        if last {
            let offset = points::place("source.digest-place", span.offset, CHUNK_SIZE);
            let digest = self.hasher.finish(Span { offset, ..span });
            if digest_only {
                slot.as_mut_slice()[BODY..BODY + DIGEST_LEN].copy_from_slice(&digest.0);
                header = Header { kind: FrameType::Digest, body_len: DIGEST_LEN as u32, offset: span.offset, ..header };
            } else {
                let at = BODY + header.body_len as usize;
                let check = wire_check(digest, handle, span);
                slot.as_mut_slice()[at..at + DIGEST_LEN].copy_from_slice(&check.0);
                header.body_len += DIGEST_LEN as u32;
                header.flags = CHUNK_END;
            }
        }
        match spliced {
            Some(file) => self.link.splice_frame(slot, header, (&file.file, len), turn),
            None => self.link.send_frame(slot, header, turn),
        }
    }

    /// Sends the next frame of the pack at the front of the Wants; false if there is none that is ready.
    fn send_pack(&mut self, turn: &mut Turn<'_>) -> bool {
        if self.cursor.is_some() {
            return false;
        }
        let Some(Want::Pack { number, bodies: Some(bodies), .. }) = self.wants.front_mut() else { return false };
        let number = *number;
        if bodies.is_empty() {
            self.wants.pop_front();
            return true;
        }
        let body = bodies.remove(0);
        let last = bodies.is_empty();
        if last {
            self.wants.pop_front();
        }
        let flags = if last { CHUNK_END } else { 0 };
        let header = Header { kind: FrameType::Pack, flags, body_len: body.len, handle: number, offset: 0, counter: 0 };
        add(&self.link.stats.payload, u64::from(body.payload));
        self.link.send_frame(body.slot, header, turn);
        true
    }
}

/// Data or hole from `at`: what it is and how long, at most a block and not beyond `end`.
fn next_stretch(file: &SourceIo, at: u64, end: u64, block: u32) -> (bool, u32) {
    // Blocks keep to the block grid, so that O_DIRECT stays aligned after a hole.
    let block = u64::from(block);
    let edge = end.min((at / block + 1) * block);
    let Some(extents) = &file.extents else { return (false, (edge - at) as u32) };
    let next = extents.partition_point(|span| span.end() <= at);
    match extents.get(next) {
        Some(span) if span.offset <= at => (false, (edge.min(span.end()) - at) as u32),
        Some(span) => (true, (end.min(span.offset) - at) as u32),
        None => (true, (end - at) as u32),
    }
}

/// Which descriptor reads a block.
fn pick(file: &SourceIo, at: u64, len: u32) -> crate::sys::FileRef {
    const ALIGN: u64 = 4096;
    match &file.direct {
        // The last block of a file may end anywhere: O_DIRECT reads short there, but takes only aligned lengths.
        Some(direct) if at.is_multiple_of(ALIGN) && u64::from(len).is_multiple_of(ALIGN) => direct.clone(),
        Some(_) => {
            let mut buffered = file.file.clone();
            buffered.mode = FileMode::PageCache;
            buffered
        }
        None => file.file.clone(),
    }
}
