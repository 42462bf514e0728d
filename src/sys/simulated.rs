//! Test builds only: a queue over a world that a test makes up. Ops complete when the world's clock says so, in parts,
//! out of order between descriptors, or with an error; the parts are put together by the very code that the real
//! queues use ([`super::flight`]).

use super::flight::{Flight, Kind, Step};
use super::{Completion, EngineFacts, IoQueue, Op, SocketRef, Wait, Waker};
use nix::errno::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What an op does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the four kinds of Op")]
pub enum Doing {
    Recv,
    Send,
    Read,
    Write,
}

/// Sockets, files and time behind a [`Simulated`] queue.
pub trait World {
    /// Virtual time.
    fn now(&self) -> Instant;
    /// How long until an op, or the next part of it, is tried.
    fn delay(&mut self, doing: Doing) -> Duration;
    /// A socket by its descriptor.
    fn attach(&mut self, socket: &Arc<OwnedFd>) -> io::Result<u32>;
    /// Forgets it.
    fn detach(&mut self, socket: u32);
    /// Ends it in both directions.
    fn cut(&mut self, socket: u32);
    /// Takes what has come; EAGAIN when nothing has.
    fn receive(&mut self, socket: u32, buffer: &mut [u8]) -> Result<usize, Errno>;
    /// Gives what there is room for; EAGAIN when there is none.
    fn send(&mut self, socket: u32, bytes: &[u8]) -> Result<usize, Errno>;
    /// When a socket that was not ready may be ready, if that is known by now.
    fn ready_at(&mut self, socket: u32, doing: Doing) -> Option<Instant>;
    /// Some bytes of a file.
    fn read(&mut self, file: &OwnedFd, buffer: &mut [u8], offset: u64) -> Result<usize, Errno>;
    /// Some bytes to a file.
    fn write(&mut self, file: &OwnedFd, bytes: &[u8], offset: u64) -> Result<usize, Errno>;
    /// A write is in flight from here on, until [`World::write_ends`] with the same stream.
    fn write_begins(&mut self, file: &OwnedFd, offset: u64, len: u64, stream: u64);
    /// It has completed.
    fn write_ends(&mut self, file: &OwnedFd, offset: u64, stream: u64);
    /// Whether the host of this queue has died: nothing completes any more.
    fn dead(&self) -> bool;
}

struct Waiting {
    flight: Flight,
    /// When it is tried next; `None`: its socket is not ready.
    due: Option<Instant>,
    /// In the order of pushes.
    number: u64,
    /// Where it began, for files.
    offset: u64,
}

/// The queue.
pub struct Simulated<W: World> {
    world: W,
    waker: Waker,
    waiting: Vec<Waiting>,
    ready: Vec<Completion>,
    pushed: u64,
}

fn doing(kind: Kind) -> Doing {
    match kind {
        Kind::Ready { .. } | Kind::Recv { .. } => Doing::Recv,
        Kind::Send { .. } | Kind::SendFile { .. } => Doing::Send,
        Kind::Read(_) => Doing::Read,
        Kind::Write(_) => Doing::Write,
    }
}

/// Streams are told apart by what is in an op's token.
fn stream(token: u64) -> u64 {
    token >> 40
}

impl<W: World> Simulated<W> {
    /// A queue over `world`; `waker` ends its owner's sleep.
    pub fn new(world: W, waker: Waker) -> Self {
        Self { world, waker, waiting: Vec::new(), ready: Vec::new(), pushed: 0 }
    }

    /// When there is something to do, if that is known by now.
    pub fn due(&self) -> Option<Instant> {
        if !self.ready.is_empty() {
            return Some(self.world.now());
        }
        self.waiting.iter().filter_map(|w| w.due).min()
    }

    fn attempt(&mut self, index: usize) -> Option<Completion> {
        let Self { world, waiting, .. } = self;
        let waiting_op = &mut waiting[index];
        let flight = &mut waiting_op.flight;
        let (kind, at, fd) = (flight.kind, flight.file_offset(), flight.fd.clone());
        let bytes = flight.rest_mut();
        let result = match kind {
            Kind::Ready { socket } => match world.ready_at(socket, Doing::Recv) {
                Some(at) if at <= world.now() => Ok(0),
                _ => Err(Errno::EAGAIN),
            },
            Kind::Recv { socket } => world.receive(socket, bytes),
            // The slot has the bytes of a SendFile too.
            Kind::Send { socket } | Kind::SendFile { socket } => world.send(socket, bytes),
            Kind::Read(_) => world.read(&fd, bytes, at),
            Kind::Write(_) => world.write(&fd, bytes, at),
        };
        match flight.advance(result) {
            Step::Done(result) => {
                let done = waiting.swap_remove(index);
                if doing(kind) == Doing::Write {
                    world.write_ends(&fd, done.offset, stream(done.flight.token()));
                }
                Some(done.flight.complete(result))
            }
            Step::Again => {
                waiting_op.due = Some(world.now() + world.delay(doing(kind)));
                None
            }
            Step::Blocked => {
                waiting_op.due = None;
                None
            }
        }
    }
}

impl<W: World> IoQueue for Simulated<W> {
    fn attach(&mut self, socket: Arc<OwnedFd>) -> io::Result<SocketRef> {
        let index = self.world.attach(&socket)?;
        Ok(SocketRef { fd: socket, index })
    }

    fn detach(&mut self, socket: SocketRef) {
        self.world.detach(socket.index);
    }

    fn cut(&mut self, socket: &SocketRef) {
        self.world.cut(socket.index);
    }

    fn push(&mut self, op: Op) {
        let offset = match &op {
            Op::Write { offset, .. } => *offset,
            _ => 0,
        };
        match Flight::new(op) {
            Err(completion) => self.ready.push(completion),
            Ok(flight) => {
                let kind = doing(flight.kind);
                if kind == Doing::Write {
                    let len = u64::from(flight.rest());
                    self.world.write_begins(&flight.fd, offset, len, stream(flight.token()));
                }
                let due = Some(self.world.now() + self.world.delay(kind));
                self.pushed += 1;
                self.waiting.push(Waiting { flight, due, number: self.pushed, offset });
            }
        }
    }

    fn submit_and_reap(&mut self, out: &mut Vec<Completion>, _wait: Wait) -> io::Result<()> {
        if self.world.dead() {
            return Ok(());
        }
        let now = self.world.now();
        // A socket that was not ready is looked at again: the world knows when something comes, or wakes us.
        for waiting in &mut self.waiting {
            if let (None, Some(socket)) = (waiting.due, waiting.flight.kind.socket()) {
                waiting.due = self.world.ready_at(socket, doing(waiting.flight.kind));
            }
        }
        let mut due: Vec<(Instant, u64)> =
            self.waiting.iter().filter_map(|w| w.due.filter(|due| *due <= now).map(|due| (due, w.number))).collect();
        due.sort_unstable();
        out.append(&mut self.ready);
        for (_, number) in due {
            let Some(index) = self.waiting.iter().position(|w| w.number == number) else { continue };
            let done = self.attempt(index);
            if self.world.dead() {
                return Ok(());
            }
            out.extend(done);
        }
        // What is blocked now may have a time at which it will not be: the owner sleeps until then.
        for waiting in &mut self.waiting {
            if let (None, Some(socket)) = (waiting.due, waiting.flight.kind.socket()) {
                waiting.due = self.world.ready_at(socket, doing(waiting.flight.kind));
            }
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.waiting.len() + self.ready.len()
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn describe(&self) -> EngineFacts {
        EngineFacts { engine: "simulated", ..EngineFacts::default() }
    }
}
