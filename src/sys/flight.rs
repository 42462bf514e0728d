//! Ops in flight: what both queues know about an op between its push and its completion.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::uio::{pread, pwrite};

use super::syscall::{preadv2_dontcache, pwritev2_dontcache};
use super::{Completion, FileMode, Op, Slot, SocketRef, points, synthetic};

/// O_DIRECT works in multiples of this; a read that stops elsewhere has met the end of the file.
const DIRECT_ALIGN: u32 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ready { socket: u32 },
    Recv { socket: u32 },
    Send { socket: u32 },
    SendFile { socket: u32 },
    Read(FileMode),
    Write(FileMode),
}

impl Kind {
    /// The socket of an op that waits for a peer (and that a `shutdown` ends).
    pub(super) fn socket(self) -> Option<u32> {
        match self {
            Self::Ready { socket } | Self::Recv { socket } | Self::Send { socket } | Self::SendFile { socket } => {
                Some(socket)
            }
            Self::Read(_) | Self::Write(_) => None,
        }
    }

    pub(super) fn is_socket(self) -> bool {
        self.socket().is_some()
    }

    /// Whether the op may take long in the calling thread.
    pub(super) fn is_slow(self) -> bool {
        matches!(self, Self::Read(mode) | Self::Write(mode) if matches!(mode, FileMode::Direct | FileMode::Deferred))
    }
}

/// An op and all it needs until the kernel is done with it: the slot and the descriptor live here.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) kind: Kind,
    pub(super) fd: Arc<OwnedFd>,
    /// `None` for Ready alone.
    slot: Option<Slot>,
    start: u32,
    len: u32,
    done: u32,
    offset: u64,
    token: u64,
    /// SendFile: the file, and which bytes of the slot it has too. `None` once it does not serve.
    pages: Option<(Arc<OwnedFd>, std::ops::Range<u32>)>,
    /// The trial or proof by which this is a zero-copy send (see `ring::zerocopy`); `None` for all others.
    pub(super) zero_copy: Option<u32>,
    /// Notices that the kernel still owes: until then it may read the slot.
    pub(super) notices: u32,
    /// The completion has been handed out, without the slot.
    pub(super) told: bool,
}

fn part(slot: &Option<Slot>, range: std::ops::Range<usize>) -> &[u8] {
    slot.as_ref().map_or(&[], |slot| &slot.as_slice()[range])
}

fn part_mut(slot: &mut Option<Slot>, range: std::ops::Range<usize>) -> &mut [u8] {
    slot.as_mut().map_or(&mut [], |slot| &mut slot.as_mut_slice()[range])
}

/// What an attempt led to.
#[derive(Debug)]
pub(super) enum Step {
    /// Finished.
    Done(io::Result<u32>),
    /// Part of it is done, or a signal came: go on.
    Again,
    /// The socket is not ready.
    Blocked,
}

impl Flight {
    /// Takes an op apart; an `Err` is the completion of an op that makes no sense.
    pub(super) fn new(op: Op) -> Result<Self, Completion> {
        let mut pages = None;
        let (kind, fd, offset, slot, range, token) = match op {
            Op::Ready { socket: SocketRef { fd, index }, token } => {
                return Ok(Self::over(Kind::Ready { socket: index }, fd, None, 0..0, 0, token));
            }
            Op::Recv { socket: SocketRef { fd, index }, slot, range, token } => {
                (Kind::Recv { socket: index }, fd, 0, slot, range, token)
            }
            Op::Send { socket: SocketRef { fd, index }, slot, range, token } => {
                (Kind::Send { socket: index }, fd, 0, slot, range, token)
            }
            Op::SendFile { socket: SocketRef { fd, index }, file, offset, slot, range, payload, token } => {
                if payload.start < range.start || payload.end < payload.start || payload.end > range.end {
                    return Err(Completion {
                        token,
                        slot: Some(slot),
                        result: Err(io::ErrorKind::InvalidInput.into()),
                    });
                }
                pages = Some((file.fd, payload));
                (Kind::SendFile { socket: index }, fd, offset, slot, range, token)
            }
            Op::Read { file, offset, slot, range, token } => {
                (Kind::Read(file.mode), file.fd, offset, slot, range, token)
            }
            Op::Write { file, offset, slot, range, token } => {
                (Kind::Write(file.mode), file.fd, offset, slot, range, token)
            }
        };
        let fits = range.start <= range.end && range.end <= slot.len();
        let empty = range.start == range.end;
        let end_of_file = offset.checked_add(u64::from(range.end)).is_some_and(|end| i64::try_from(end).is_ok());
        if !fits || !end_of_file || (empty && matches!(kind, Kind::Recv { .. })) {
            return Err(Completion { token, slot: Some(slot), result: Err(io::ErrorKind::InvalidInput.into()) });
        }
        if empty {
            return Err(Completion { token, slot: Some(slot), result: Ok(0) });
        }
        Ok(Self { pages, ..Self::over(kind, fd, Some(slot), range, offset, token) })
    }

    fn over(
        kind: Kind,
        fd: Arc<OwnedFd>,
        slot: Option<Slot>,
        range: std::ops::Range<u32>,
        offset: u64,
        token: u64,
    ) -> Self {
        let (start, len) = (range.start, range.end - range.start);
        let (done, pages, zero_copy, notices, told) = (0, None, None, 0, false);
        Self { kind, fd, slot, start, len, done, offset, token, pages, zero_copy, notices, told }
    }

    pub(super) fn complete(self, result: io::Result<u32>) -> Completion {
        Completion { token: self.token, slot: self.slot, result }
    }

    /// The completion of a send whose bytes the kernel still reads.
    pub(super) fn tell(&mut self, result: io::Result<u32>) -> Completion {
        self.told = true;
        Completion { token: self.token, slot: None, result }
    }

    /// Bytes still to move.
    pub(super) fn rest(&self) -> u32 {
        self.len - self.done
    }

    /// Where in the file the rest starts.
    pub(super) fn file_offset(&self) -> u64 {
        self.offset + u64::from(self.done)
    }

    /// The slot, for its place in the registered buffers.
    pub(super) fn slot(&self) -> Option<&Slot> {
        self.slot.as_ref()
    }

    /// The rest, for who moves it without the kernel.
    #[cfg(feature = "testing")]
    pub(super) fn rest_mut(&mut self) -> &mut [u8] {
        let (first, last) = (self.first(), self.last());
        part_mut(&mut self.slot, first..last)
    }

    /// What its owner calls it.
    #[cfg(feature = "testing")]
    pub(super) fn token(&self) -> u64 {
        self.token
    }

    fn first(&self) -> usize {
        (self.start + self.done) as usize
    }

    fn last(&self) -> usize {
        (self.start + self.len) as usize
    }

    /// Where the rest lies in memory. Valid while the flight lives, whatever moves it.
    pub(super) fn pointer(&mut self) -> *mut u8 {
        self.slot.as_ref().map_or(std::ptr::null_mut(), |slot| slot.pointer().wrapping_add(self.first()))
    }

    /// Takes the result of one attempt (bytes, or an errno), and says how to go on.
    pub(super) fn advance(&mut self, result: Result<usize, Errno>) -> Step {
        let result = match self.kind {
            Kind::Read(_) => points::fails("io.read").and(result),
            Kind::Write(_) => points::fails("io.write").and(result),
            _ => result,
        };
        let moved = match result {
            Ok(moved) => moved as u32,
            Err(Errno::EINTR) => return Step::Again,
            Err(Errno::EAGAIN) if self.kind.is_socket() => return Step::Blocked,
            Err(errno) => return Step::Done(Err(errno.into())),
        };
        self.done = (self.done + moved).min(self.len);
        match self.kind {
            Kind::Ready { .. } => Step::Done(Ok(0)),
            Kind::Recv { .. } => Step::Done(Ok(moved)),
            _ if self.done == self.len => Step::Done(Ok(self.len)),
            Kind::Read(_) if moved == 0 => Step::Done(Ok(self.done)),
            Kind::Read(FileMode::Direct) if !self.done.is_multiple_of(DIRECT_ALIGN) => Step::Done(Ok(self.done)),
            Kind::Send { .. } | Kind::SendFile { .. } | Kind::Write(_) if moved == 0 => {
                Step::Done(Err(io::ErrorKind::WriteZero.into()))
            }
            _ => Step::Again,
        }
    }

    /// Makes the op's system call in this thread until it is done or the socket is not ready.
    pub(super) fn run(&mut self, page_cache: &mut PageCache) -> Step {
        loop {
            let (first, last) = (self.first(), self.last());
            let at = self.file_offset();
            let last = match self.kind {
                Kind::Read(_) => first + points::short("io.read-length", last - first),
                Kind::Write(_) => first + points::short("io.write-length", last - first),
                _ => last,
            };
            let result = match self.kind {
                Kind::Ready { .. } => recv(self.fd.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK),
                Kind::Recv { .. } => {
                    recv(self.fd.as_raw_fd(), part_mut(&mut self.slot, first..last), MsgFlags::MSG_DONTWAIT)
                }
                Kind::Send { .. } => {
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    send(self.fd.as_raw_fd(), part(&self.slot, first..last), flags)
                }
                Kind::SendFile { .. } => self.send_pages(),
                Kind::Read(mode) => page_cache.read(mode, &self.fd, part_mut(&mut self.slot, first..last), at),
                Kind::Write(mode) => page_cache.write(mode, &self.fd, part(&self.slot, first..last), at),
            };
            match self.advance(result) {
                Step::Again => {}
                step => return step,
            }
        }
    }
}

impl Flight {
    /// One call of a SendFile: what lies before the payload, the payload, or what lies behind it. The calls do not wait for
    /// each other's acknowledgement: MSG_MORE holds the first part back until the pages follow. (`sendfile` has no
    /// MSG_NOSIGNAL: Rust's runtime ignores SIGPIPE.)
    fn send_pages(&mut self) -> Result<usize, Errno> {
        let (first, last) = (self.first(), self.last());
        let mut flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let mut end = last;
        if let Some((file, payload)) = &self.pages {
            let (from, to) = (payload.start as usize, payload.end as usize);
            if first < from {
                end = from;
                flags |= MsgFlags::from_bits_retain(libc::MSG_MORE);
            } else if first < to {
                let mut at = (self.offset + (first - from) as u64) as i64;
                match sendfile64(&*self.fd, file, Some(&mut at), to - first) {
                    Ok(moved) if moved > 0 => return Ok(moved),
                    Err(errno @ (Errno::EAGAIN | Errno::EINTR)) => return Err(errno),
                    // Shorter than it was, unreadable, or not a file that can be sent from: the slot has the bytes. A
                    // socket that is at fault says so once more.
                    _ => self.pages = None,
                }
            }
        }
        send(self.fd.as_raw_fd(), part(&self.slot, first..end), flags)
    }
}

/// File I/O in the calling thread, and what was learnt about the kernel on the way.
#[derive(Debug, Default)]
pub(super) struct PageCache {
    /// The error with which RWF_DONTCACHE was refused; from then on it is not asked for.
    pub(super) dontcache_refused: Option<Errno>,
}

impl PageCache {
    fn read(&mut self, mode: FileMode, fd: &OwnedFd, buf: &mut [u8], at: u64) -> Result<usize, Errno> {
        if mode == FileMode::Synthetic {
            synthetic::fill(buf, at);
            return Ok(buf.len());
        }
        if mode != FileMode::DontCache || self.dontcache_refused.is_some() {
            return pread(fd, buf, at as i64);
        }
        match preadv2_dontcache(fd, buf, at) {
            Err(refusal) if refused(refusal) => self.settle(refusal, pread(fd, buf, at as i64)),
            other => other,
        }
    }

    fn write(&mut self, mode: FileMode, fd: &OwnedFd, buf: &[u8], at: u64) -> Result<usize, Errno> {
        if mode == FileMode::Synthetic {
            return Ok(buf.len());
        }
        if mode != FileMode::DontCache || self.dontcache_refused.is_some() {
            return pwrite(fd, buf, at as i64);
        }
        match pwritev2_dontcache(fd, buf, at) {
            Err(refusal) if refused(refusal) => self.settle(refusal, pwrite(fd, buf, at as i64)),
            other => other,
        }
    }

    /// The flag was at fault only if the same call without it works.
    fn settle(&mut self, refusal: Errno, plain: Result<usize, Errno>) -> Result<usize, Errno> {
        if plain.is_ok() {
            self.dontcache_refused = Some(refusal);
        }
        plain
    }

    /// For reports.
    pub(super) fn note(&self, refused: &mut Vec<String>) {
        if let Some(errno) = self.dontcache_refused {
            refused.push(format!("RWF_DONTCACHE: {errno:?}"));
        }
    }
}

fn refused(errno: Errno) -> bool {
    matches!(errno, Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS)
}

/// Flights by number. Grows to the largest number in flight and allocates nothing after that.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Vec<Option<Flight>>,
    vacant: Vec<u32>,
}

impl Table {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { entries: Vec::with_capacity(capacity), vacant: Vec::with_capacity(capacity) }
    }

    /// Flights in the table.
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.vacant.len()
    }

    pub(super) fn insert(&mut self, flight: Flight) -> u32 {
        if let Some(index) = self.vacant.pop() {
            self.entries[index as usize] = Some(flight);
            return index;
        }
        self.entries.push(Some(flight));
        // An arena has fewer than u32::MAX slots, a process fewer descriptors; every flight holds a slot or waits for one of
        // the latter.
        (self.entries.len() - 1) as u32
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Flight> {
        self.entries.get_mut(index as usize)?.as_mut()
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<Flight> {
        let flight = self.entries.get_mut(index as usize)?.take()?;
        self.vacant.push(index);
        Some(flight)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Flight> {
        self.entries.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Arena, ArenaConfig, FileRef};

    fn read(mode: FileMode) -> Flight {
        let arena = Arena::new(ArenaConfig { bytes: 1 << 20, block: 65_536, explicit_huge_pages: false }).unwrap();
        let fd = Arc::new(OwnedFd::from(std::fs::File::open(".").unwrap()));
        let slot = arena.take().unwrap();
        Flight::new(Op::Read { file: FileRef { fd, mode }, offset: 0, slot, range: 4096..69_632, token: 1 }).unwrap()
    }

    #[test]
    fn short_reads_go_on_unless_the_file_ends() {
        let mut direct = read(FileMode::Direct);
        assert!(matches!(direct.advance(Err(Errno::EINTR)), Step::Again));
        assert!(matches!(direct.advance(Ok(8192)), Step::Again));
        assert_eq!((direct.rest(), direct.file_offset()), (57_344, 8192));
        // Some file systems answer a read from an offset that is not aligned with EINVAL, even at the end.
        assert!(matches!(direct.advance(Ok(100)), Step::Done(Ok(8292))));
        let mut cached = read(FileMode::PageCache);
        assert!(matches!(cached.advance(Ok(100)), Step::Again));
        assert!(matches!(cached.advance(Ok(0)), Step::Done(Ok(100))));
        assert!(matches!(read(FileMode::Direct).advance(Err(Errno::EAGAIN)), Step::Done(Err(_))));
    }
}
