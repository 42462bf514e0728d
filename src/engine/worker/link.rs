//! What both roles of a stream share: frames in, frames out, over one socket.

use super::{Fault, KIND_FILE, KIND_READY, KIND_RECV, KIND_SEND, StreamStats, Turn, add, token};
use crate::sys::{Completion, FileRef, Op, SLOT_HEAD, Slot, SocketRef, points};
use crate::wire::crypt::{Opener, Sealer};
use crate::wire::header::{FrameType, HEADER_LEN, Header, TRAILER_LEN};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where a frame's body begins in its slot.
pub const BODY: usize = SLOT_HEAD as usize;
/// Where a frame's header begins in a slot, so that its body lies on a 4 KiB boundary (O_DIRECT needs that).
pub const FRAME_START: usize = BODY - HEADER_LEN;
/// How far a receive may reach into the next frame: its header comes along without a system call of its own.
const OVERREAD: usize = HEADER_LEN;

/// A frame as it lies in its slot.
#[derive(Debug)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// The body is at `BODY ..`.
    pub slot: Slot,
    /// Whether tag or check matched.
    pub intact: bool,
}

/// What a completion meant to its stream.
#[derive(Debug)]
pub enum Came {
    /// A frame is whole.
    Frame(Frame),
    /// A file op is done: its number, its slot, its result.
    File(u32, Slot, io::Result<u32>),
    /// The link has taken care of it.
    Nothing,
}

/// A queued small frame: type, body.
type SmallFrame = (FrameType, u32, Vec<u8>);

/// One connection.
#[derive(Debug)]
pub struct Link {
    index: usize,
    socket: SocketRef,
    opener: Opener,
    sealer: Sealer,
    body_max: u32,
    /// Receiving: the slot, bytes in it from [`FRAME_START`], and the header once it is whole.
    slot: Option<Slot>,
    have: usize,
    header: Option<Header>,
    receiving: bool,
    /// When the frame that is coming in began to.
    begun: u64,
    /// The socket has something to receive.
    readable: bool,
    /// Bytes of the next frame that came with the last one.
    over: ([u8; OVERREAD], usize),
    sending_since: Option<u64>,
    /// What is being sent are small frames: that they fit a socket's buffer says nothing about the peer.
    sending_small: bool,
    small: VecDeque<SmallFrame>,
    /// Counters that others read.
    pub stats: Arc<StreamStats>,
}

impl Link {
    /// A link over an attached socket. `index` is the stream's place in the worker.
    pub fn new(
        index: usize,
        socket: SocketRef,
        opener: Opener,
        sealer: Sealer,
        block: u32,
        stats: Arc<StreamStats>,
    ) -> Self {
        Self {
            index,
            socket,
            opener,
            sealer,
            body_max: block + 64,
            slot: None,
            have: 0,
            header: None,
            receiving: false,
            begun: 0,
            readable: false,
            over: ([0; OVERREAD], 0),
            sending_since: None,
            sending_small: false,
            small: VecDeque::new(),
            stats,
        }
    }

    /// Token of a file op of this stream.
    pub fn file_token(&self, number: u32) -> u64 {
        token(self.index, KIND_FILE, number)
    }

    /// Whether a receive is due but had no slot.
    pub fn wants_slot(&self) -> bool {
        !self.receiving && self.slot.is_none()
    }

    /// Arms the next receive if none is in flight and a slot is to be had. Unless something is `due`, and as long as
    /// nothing has come but part of a header at most, it only waits for the socket and holds no slot: streams on which nothing
    /// happens are many, and slots few.
    pub fn receive(&mut self, due: bool, turn: &mut Turn<'_>) -> Result<(), Fault> {
        if self.receiving {
            return Ok(());
        }
        if !due && !self.readable && self.have == 0 {
            turn.give(self.slot.take());
            self.receiving = true;
            let (socket, token) = (self.socket.clone(), token(self.index, KIND_READY, 0));
            turn.ops.push(Op::Ready { socket, token });
            return Ok(());
        }
        let Some(mut slot) = self.slot.take().or_else(|| turn.slots.take()) else { return Ok(()) };
        if self.over.1 > 0 {
            let (bytes, len) = self.over;
            slot.as_mut_slice()[FRAME_START..FRAME_START + len].copy_from_slice(&bytes[..len]);
            self.have = len;
            self.over.1 = 0;
            if len == HEADER_LEN {
                self.look_at_header(&slot)?;
            }
        }
        let end = match &self.header {
            None => BODY,
            Some(header) => BODY + header.body_len as usize + TRAILER_LEN + OVERREAD,
        };
        self.receiving = true;
        turn.ops.push(Op::Recv {
            socket: self.socket.clone(),
            slot,
            range: (FRAME_START + self.have) as u32..end as u32,
            token: token(self.index, KIND_RECV, 0),
        });
        Ok(())
    }

    fn look_at_header(&mut self, slot: &Slot) -> Result<(), Fault> {
        let bytes: &[u8; HEADER_LEN] =
            slot.as_slice()[FRAME_START..BODY].try_into().expect("HEADER_LEN bytes lie before the body");
        let header = Header::decode(bytes, self.body_max)?;
        self.opener.expect(&header)?;
        self.header = Some(header);
        Ok(())
    }

    /// Takes any completion of this stream.
    pub fn completed(&mut self, completion: Completion, turn: &mut Turn<'_>) -> Result<Came, Fault> {
        let Completion { token, slot, result } = completion;
        Ok(match ((token >> 32) as u8, slot) {
            (KIND_RECV, Some(slot)) => self.received(slot, result, turn)?.map_or(Came::Nothing, Came::Frame),
            (KIND_READY, _) => {
                (self.receiving, self.readable) = (false, true);
                result.map_err(|error| Fault::Socket(error.to_string()))?;
                Came::Nothing
            }
            (KIND_FILE, Some(slot)) => Came::File(token as u32, slot, result),
            (KIND_SEND, slot) => {
                self.sent(slot, result, turn)?;
                Came::Nothing
            }
            (_, slot) => {
                turn.give(slot);
                Came::Nothing
            }
        })
    }

    /// Takes a receive's completion; gives a frame when one is whole. Call [`Link::receive`] afterwards.
    fn received(&mut self, slot: Slot, result: io::Result<u32>, turn: &mut Turn<'_>) -> Result<Option<Frame>, Fault> {
        (self.receiving, self.readable) = (false, false);
        let count = match result {
            Ok(0) => return Err(Fault::Cut),
            Ok(count) => count as usize,
            Err(error) => return Err(Fault::Socket(error.to_string())),
        };
        self.stats.last_progress.store(turn.now, Ordering::Relaxed);
        let before = self.have;
        if before <= OVERREAD {
            self.begun = turn.now;
        }
        self.have += count;
        let mut slot = slot;
        if self.header.is_none() && self.have >= HEADER_LEN {
            self.look_at_header(&slot)?;
        }
        let Some(header) = self.header else {
            self.over.0[..self.have].copy_from_slice(&slot.as_slice()[FRAME_START..FRAME_START + self.have]);
            self.over.1 = std::mem::take(&mut self.have);
            turn.slots.give(slot);
            return Ok(None);
        };
        let total = HEADER_LEN + header.body_len as usize + TRAILER_LEN;
        if matches!(header.kind, FrameType::Data | FrameType::Pack) {
            let body = HEADER_LEN..HEADER_LEN + header.body_len as usize;
            let came = self.have.min(body.end).saturating_sub(before.max(body.start));
            add(&self.stats.brought, came as u64);
        }
        if self.have < total {
            self.slot = Some(slot);
            return Ok(None);
        }
        let over = self.have - total;
        let end = FRAME_START + total;
        self.over.0[..over].copy_from_slice(&slot.as_slice()[end..end + over]);
        self.over.1 = over;
        (self.have, self.header) = (0, None);
        let (body, rest) = slot.as_mut_slice()[BODY..].split_at_mut(header.body_len as usize);
        points::at("link.received");
        let intact = match self.opener.open(&header, body, &rest[..TRAILER_LEN]) {
            Ok(()) => true,
            Err(crate::wire::WireError::Tag) => false,
            Err(error) => return Err(error.into()),
        };
        Ok(Some(Frame { header, slot, intact }))
    }

    /// Keeps a slot for the next receive, instead of returning it.
    pub fn reuse(&mut self, slot: Slot, turn: &mut Turn<'_>) {
        if self.slot.is_none() && !self.receiving { self.slot = Some(slot) } else { turn.slots.give(slot) }
    }

    /// Whether a Send is in flight.
    pub fn sending(&self) -> bool {
        self.sending_since.is_some()
    }

    /// Whether a frame has been on its way, out or in, since before `then`.
    pub fn stalled_before(&self, then: u64) -> bool {
        let inward = self.have > 0 && self.stats.last_progress.load(Ordering::Relaxed) < then;
        inward || self.sending_since.is_some_and(|since| since < then)
    }

    /// Whether part of a frame has lain here since before `then`, however often a byte of it comes.
    pub fn incomplete_since(&self, then: u64) -> bool {
        self.have > 0 && self.begun < then
    }

    /// Small frames that wait to be sent.
    pub fn queued(&self) -> usize {
        self.small.len()
    }

    /// Queues a small frame.
    pub fn queue(&mut self, kind: FrameType, handle: u32, body: Vec<u8>) {
        self.small.push_back((kind, handle, body));
    }

    /// Sends queued small frames, as many as fit one slot.
    pub fn flush(&mut self, turn: &mut Turn<'_>) {
        if self.sending() || self.small.is_empty() {
            return;
        }
        let Some(mut slot) = turn.slots.take() else { return };
        let mut at = FRAME_START;
        while let Some((_, _, body)) = self.small.front() {
            let len = HEADER_LEN + body.len() + TRAILER_LEN;
            if at + len > slot.as_slice().len() {
                break;
            }
            let (kind, handle, body) = self.small.pop_front().expect("front was there");
            let space = &mut slot.as_mut_slice()[at..at + len];
            space[HEADER_LEN..HEADER_LEN + body.len()].copy_from_slice(&body);
            let header = Header { kind, flags: 0, body_len: body.len() as u32, handle, offset: 0, counter: 0 };
            self.sealer.seal(header, space);
            at += len;
        }
        self.sending_small = true;
        self.send(slot, at, turn);
    }

    /// Seals the frame whose body lies in `slot` and sends it. No other Send may be in flight.
    pub fn send_frame(&mut self, mut slot: Slot, header: Header, turn: &mut Turn<'_>) {
        let end = BODY + header.body_len as usize + TRAILER_LEN;
        self.sealer.seal(header, &mut slot.as_mut_slice()[FRAME_START..end]);
        points::flip("link.sealed", &mut slot.as_mut_slice()[BODY..end - TRAILER_LEN]);
        self.send(slot, end, turn);
    }

    /// The same for a plain Data frame whose first `len` payload bytes the kernel takes from the page cache; the slot has
    /// them too, as they were when the digest was computed.
    pub fn splice_frame(&mut self, mut slot: Slot, header: Header, (file, len): (&FileRef, u32), turn: &mut Turn<'_>) {
        debug_assert!(!self.sending() && !self.opener.encrypts());
        let end = BODY + header.body_len as usize + TRAILER_LEN;
        self.sealer.seal(header, &mut slot.as_mut_slice()[FRAME_START..end]);
        self.sending_since = Some(turn.now);
        self.stats.send_wait.set(true, turn.now);
        turn.ops.push(Op::SendFile {
            socket: self.socket.clone(),
            file: file.clone(),
            offset: header.offset,
            slot,
            range: FRAME_START as u32..end as u32,
            payload: BODY as u32..BODY as u32 + len,
            token: token(self.index, KIND_SEND, 0),
        });
    }

    fn send(&mut self, slot: Slot, end: usize, turn: &mut Turn<'_>) {
        debug_assert!(!self.sending());
        self.sending_since = Some(turn.now);
        self.stats.send_wait.set(true, turn.now);
        turn.ops.push(Op::Send {
            socket: self.socket.clone(),
            slot,
            range: FRAME_START as u32..end as u32,
            token: token(self.index, KIND_SEND, 0),
        });
    }

    /// Takes a Send's completion and gives its slot back, if the kernel has given it back already.
    fn sent(&mut self, slot: Option<Slot>, result: io::Result<u32>, turn: &mut Turn<'_>) -> Result<(), Fault> {
        turn.give(slot);
        self.sending_since = None;
        self.stats.send_wait.set(false, turn.now);
        if !std::mem::take(&mut self.sending_small) {
            self.stats.last_progress.store(turn.now, Ordering::Relaxed);
        }
        result.map(|_| ()).map_err(|error| Fault::Socket(error.to_string()))
    }
}
