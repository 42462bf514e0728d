//! Which queue serves: probed, never guessed from a version.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Arena, Completion, EngineFacts, Epoll, IoQueue, Op, SendPath, SocketRef, Uring, Wait, Waker};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QueueChoice {
    /// io_uring where it works, else epoll; the facts say why.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// epoll.
    Epoll,
}

/// Either queue, without dynamic dispatch.
#[derive(Debug)]
pub enum Queue {
    /// On io_uring.
    Uring(Box<Uring>),
    /// On epoll and plain system calls.
    Epoll(Box<Epoll>),
}

/// Opens a queue in the thread that will use it (a ring belongs to one thread; the type is not `Send`). `entries` is how
/// many ops the kernel gets at once, 1 to 4096 (clamped); any number may be pushed.
///
/// # Errors
/// With [`QueueChoice::Uring`] the refusal of io_uring; else only what makes epoll impossible (no descriptors left).
pub fn open_queue(choice: QueueChoice, arena: &Arc<Arena>, entries: u32) -> io::Result<Queue> {
    let refusal = match choice {
        QueueChoice::Epoll => None,
        QueueChoice::Uring => return Ok(Queue::Uring(Box::new(Uring::open(arena, entries)?))),
        QueueChoice::Auto => match Uring::open(arena, entries) {
            Ok(ring) => return Ok(Queue::Uring(Box::new(ring))),
            Err(refusal) => Some(refusal.to_string()),
        },
    };
    let mut epoll = Epoll::open(arena, entries)?;
    epoll.note_refusal(refusal);
    Ok(Queue::Epoll(Box::new(epoll)))
}

macro_rules! either {
    ($self:ident, $queue:ident => $call:expr) => {
        match $self {
            Queue::Uring($queue) => $call,
            Queue::Epoll($queue) => $call,
        }
    };
}

impl IoQueue for Queue {
    fn attach(&mut self, socket: Arc<OwnedFd>) -> io::Result<SocketRef> {
        either!(self, queue => queue.attach(socket))
    }

    fn detach(&mut self, socket: SocketRef) {
        either!(self, queue => queue.detach(socket))
    }

    fn push(&mut self, op: Op) {
        either!(self, queue => queue.push(op))
    }

    fn submit_and_reap(&mut self, out: &mut Vec<Completion>, wait: Wait) -> io::Result<()> {
        either!(self, queue => queue.submit_and_reap(out, wait))
    }

    fn in_flight(&self) -> usize {
        either!(self, queue => queue.in_flight())
    }

    fn send_path(&self, socket: &SocketRef) -> SendPath {
        either!(self, queue => queue.send_path(socket))
    }

    fn waker(&self) -> Waker {
        either!(self, queue => queue.waker())
    }

    fn describe(&self) -> EngineFacts {
        either!(self, queue => queue.describe())
    }
}
