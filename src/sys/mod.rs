//! The only module with `unsafe`: rings, buffers that the kernel writes into, and the few system calls that no safe
//! crate offers. It imports nothing from the rest of the crate.
//!
//! # Who owns a buffer
//! A [`Slot`] is an owning handle to one buffer of an [`Arena`]. Pushing an [`Op`] gives the slot (and a reference to the
//! descriptor) away; the queue keeps both in its in-flight table until the kernel's last completion for the op, and
//! the [`Completion`] gives the slot back. A dropped queue waits for its ops first. So no buffer is freed, reused or
//! read while the kernel may still write into it, whatever the code above does. A zero-copy send completes twice: what was
//! pushed is in order on the socket with the first, whose `Completion` has no slot; the slot goes back to the arena with
//! the second, when the peer has acknowledged its bytes.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

pub mod affinity;
pub mod arena;
pub mod epoll;
mod flight;
pub mod flow_label;
pub mod fsys;
pub mod host;
#[cfg(feature = "testing")]
pub mod observe;
pub mod points;
#[cfg(feature = "testing")]
pub mod power;
pub mod ring;
#[cfg(feature = "testing")]
pub mod seccomp;
pub mod select;
#[cfg(feature = "testing")]
pub mod simulated;
pub mod start;
pub mod synthetic;
pub mod syscall;
pub mod tcp_info;
#[cfg(test)]
mod tests;
pub mod wake;

pub use affinity::{bind_ring_threads, bind_thread, thread_cpus};
pub use arena::{Arena, ArenaConfig, ArenaKind, SLOT_HEAD, SLOT_TAIL, Slot};
pub use epoll::Epoll;
pub use ring::{Uring, probe_ring};
pub use select::{Queue, QueueChoice, open_queue};
pub use syscall::{ignore_file_size_signal, one_heap, peak_rss_bytes, process_cpu_time_ns, set_dumpable};
pub use tcp_info::TcpInfo;
pub use wake::{WakeSource, Waker};

/// Where an op on a file is cheapest; chosen per file by `disk` from what it probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileMode {
    /// `pread` / `pwrite` at once, in the thread: tmpfs and whatever lies in the page cache.
    PageCache,
    /// The same with `RWF_DONTCACHE`; the queue falls back to [`FileMode::PageCache`] when the kernel refuses (EOPNOTSUPP).
    DontCache,
    /// Opened with O_DIRECT: on the ring, or through the blocking queue's pool. Offset, length and address are aligned
    /// to 4096 bytes by the caller.
    Direct,
    /// A buffered file whose reads or writes are worth keeping several in flight of (cold, or slow): as `Direct`.
    Deferred,
    /// No storage at all, for benches: reads give [`synthetic`] bytes, what is written is dropped. At once, in the thread.
    Synthetic,
}

/// A descriptor that ops refer to; alive as long as any op does.
#[derive(Debug, Clone)]
pub struct FileRef {
    /// The open file.
    pub fd: Arc<OwnedFd>,
    /// How to read and write it.
    pub mode: FileMode,
}

/// A socket that is attached to a queue. Non-blocking; made by [`IoQueue::attach`].
#[derive(Debug, Clone)]
pub struct SocketRef {
    /// The connected socket.
    pub fd: Arc<OwnedFd>,
    /// The queue's own number for it (its registered-file index, or its epoll token).
    pub index: u32,
}

/// One piece of I/O. `token` comes back in the [`Completion`]; ranges are byte offsets inside the slot. A range outside
/// the slot, and an empty one for a `Recv`, completes with `InvalidInput`.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are explained once, above")]
pub enum Op {
    /// Waits until the socket has something to receive, be it its end, and takes no buffer for that. At most one of this and
    /// `Recv` per socket in flight.
    Ready { socket: SocketRef, token: u64 },
    /// Receives what is there, at least one byte and at most `range.len()`. At most one per socket in flight.
    Recv { socket: SocketRef, slot: Slot, range: Range<u32>, token: u64 },
    /// Sends all of `range` (partial sends are continued inside the queue). At most one per socket in flight.
    Send { socket: SocketRef, slot: Slot, range: Range<u32>, token: u64 },
    /// As `Send`, but the bytes of `payload`, inside `range`, come from a file's pages at `offset`, without a copy. The slot
    /// must hold them as well: it serves where the file has become shorter or the kernel refuses.
    SendFile {
        socket: SocketRef,
        file: FileRef,
        offset: u64,
        slot: Slot,
        range: Range<u32>,
        payload: Range<u32>,
        token: u64,
    },
    /// Reads `range.len()` bytes at `offset`, or fewer at the end of the file (short reads before it are continued).
    Read { file: FileRef, offset: u64, slot: Slot, range: Range<u32>, token: u64 },
    /// Writes all of `range` at `offset` (short writes are continued).
    Write { file: FileRef, offset: u64, slot: Slot, range: Range<u32>, token: u64 },
}

/// What became of an op.
#[derive(Debug)]
pub struct Completion {
    /// The op's token.
    pub token: u64,
    /// The op's slot, the kernel done with it. `None` from a `Ready`, and from a Send whose bytes the kernel still reads: it
    /// goes back to the arena by itself.
    pub slot: Option<Slot>,
    /// Bytes moved (0 from a Recv: the peer has closed), or the error.
    pub result: io::Result<u32>,
}

/// How a socket's blocks are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum SendPath {
    /// Copied by the kernel, as always.
    #[default]
    Plain,
    /// By SEND_ZC, from the slots.
    ZeroCopy,
    /// SEND_ZC was tried; the kernel copied all the same, so sends are plain.
    Copies,
    /// SEND_ZC was tried and refused, so sends are plain.
    Refused,
}

/// How long [`IoQueue::submit_and_reap`] may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Take what has completed.
    No,
    /// Until something completes or the queue's [`Waker`] fires, at most so long.
    AtMost(Duration),
}

/// A queue of I/O that one worker thread owns. The three implementations (io_uring, blocking calls under epoll, the
/// simulator) behave the same.
pub trait IoQueue {
    /// Prepares a connected socket for ops: sets it non-blocking, registers it.
    fn attach(&mut self, socket: Arc<OwnedFd>) -> io::Result<SocketRef>;
    /// Forgets a socket. Its ops must have completed (a `shutdown` of the socket ends them).
    fn detach(&mut self, socket: SocketRef);
    /// Ends whatever is in flight on a socket, and the connection.
    fn cut(&mut self, socket: &SocketRef) {
        // shutdown, not close: it ends the ops that are in flight.
        let _ = socket2::SockRef::from(&*socket.fd).shutdown(std::net::Shutdown::Both);
    }
    /// Gives an op to the queue. It may be executed at once; its completion still comes from `submit_and_reap`.
    fn push(&mut self, op: Op);
    /// Submits what was pushed and moves completions into `out`. Returns at once if some are there already.
    fn submit_and_reap(&mut self, out: &mut Vec<Completion>, wait: Wait) -> io::Result<()>;
    /// Ops pushed whose completion was not yet handed out.
    fn in_flight(&self) -> usize;
    /// How the blocks of a socket are sent by now.
    fn send_path(&self, _socket: &SocketRef) -> SendPath {
        SendPath::Plain
    }
    /// A handle by which other threads end a wait.
    fn waker(&self) -> Waker;
    /// `io_uring` or `epoll`, with what was fallen back from, for reports.
    fn describe(&self) -> EngineFacts;
}

/// What the queue is, for `--show-config` and reports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineFacts {
    /// `io_uring`, `epoll` or `simulated`.
    pub engine: &'static str,
    /// Features in use: ring flags, registered buffers, registered files.
    pub features: Vec<&'static str>,
    /// What was asked for and refused, each with the error.
    pub refused: Vec<String>,
}
