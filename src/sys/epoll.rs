//! The queue for hosts without io_uring: non-blocking calls tried at once, epoll for sockets that are not ready, a few
//! plain threads for files that would make the caller wait.

mod pool;

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{Shutdown, shutdown};

use super::flight::{Flight, Kind, PageCache, Step};
use super::{Arena, Completion, EngineFacts, IoQueue, Op, SocketRef, Wait, WakeSource, Waker};
use pool::Pool;

/// Events taken by one `epoll_wait`: all streams of a few sessions.
const EVENTS: usize = 256;
/// Token of the eventfd of the [`Waker`]; sockets carry their place in the table.
const WAKE: u64 = u64::MAX;
/// Token of the eventfd by which the pool's threads report.
const POOL: u64 = u64::MAX - 1;

/// One attached socket, with what waits for it.
#[derive(Debug, Default)]
struct Place {
    attached: bool,
    recv: Option<Flight>,
    send: Option<Flight>,
}

/// The epoll queue.
#[derive(Debug)]
pub struct Epoll {
    epoll: nix::sys::epoll::Epoll,
    events: Vec<EpollEvent>,
    sockets: Vec<Place>,
    vacant: Vec<u32>,
    /// Socket ops that wait for readiness.
    blocked: usize,
    ready: Vec<Completion>,
    wake: WakeSource,
    pool: Pool,
    page_cache: PageCache,
    facts: EngineFacts,
    /// As the ring: owned by one thread.
    _one_thread: PhantomData<*const ()>,
}

impl Epoll {
    /// Opens a queue. `entries` is how many file ops the pool takes at once (clamped to 4096); more wait their turn.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn open(_arena: &Arc<Arena>, entries: u32) -> io::Result<Self> {
        let epoll = nix::sys::epoll::Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = WakeSource::new()?;
        let pool = Pool::new(entries)?;
        // Level-triggered: a wake stays visible until it is drained.
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        epoll.add(pool.reports(), EpollEvent::new(EpollFlags::EPOLLIN, POOL))?;
        let facts = EngineFacts { engine: "epoll", ..EngineFacts::default() };
        Ok(Self {
            epoll,
            events: vec![EpollEvent::empty(); EVENTS],
            sockets: Vec::new(),
            vacant: Vec::new(),
            blocked: 0,
            ready: Vec::with_capacity(EVENTS),
            wake,
            pool,
            page_cache: PageCache::default(),
            facts,
            _one_thread: PhantomData,
        })
    }

    /// Why io_uring does not serve, for the report.
    pub(super) fn note_refusal(&mut self, refusal: Option<String>) {
        self.facts.refused.extend(refusal);
    }

    fn start_socket(&mut self, mut flight: Flight, index: u32, sending: bool) {
        if let Step::Done(result) = flight.run(&mut self.page_cache) {
            return self.ready.push(flight.complete(result));
        }
        let seat = self.sockets.get_mut(index as usize).filter(|place| place.attached);
        match seat.map(|place| if sending { &mut place.send } else { &mut place.recv }) {
            Some(seat) if seat.is_none() => {
                *seat = Some(flight);
                self.blocked += 1;
            }
            // Not attached, or a second op in the same direction: the caller broke the contract.
            _ => self.ready.push(flight.complete(Err(io::ErrorKind::InvalidInput.into()))),
        }
    }

    /// Tries what waits for a socket again.
    fn retry(&mut self, index: usize) {
        let Some(place) = self.sockets.get_mut(index) else { return };
        for seat in [&mut place.recv, &mut place.send] {
            let Some(mut flight) = seat.take() else { continue };
            match flight.run(&mut self.page_cache) {
                Step::Done(result) => {
                    self.blocked -= 1;
                    self.ready.push(flight.complete(result));
                }
                Step::Again | Step::Blocked => *seat = Some(flight),
            }
        }
    }

    /// One `epoll_wait`; `true` when the waker fired.
    fn poll(&mut self, time: Duration) -> io::Result<bool> {
        // Rounded up, so that a wait of less than a millisecond does not become a busy loop.
        let timeout = time.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32;
        let timeout = EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::MAX);
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let mut woken = false;
        for n in 0..count {
            match self.events[n].data() {
                WAKE => woken |= self.wake.drain(),
                POOL => self.pool.collect(&mut self.ready),
                index => self.retry(index as usize),
            }
        }
        Ok(woken)
    }
}

impl IoQueue for Epoll {
    fn attach(&mut self, socket: Arc<OwnedFd>) -> io::Result<SocketRef> {
        super::syscall::set_nonblocking(&socket)?;
        let index = self.vacant.pop().unwrap_or(self.sockets.len() as u32);
        // Edge-triggered, once for all: every op is tried before it waits, so no edge is missed and no op needs a call
        // to change what is watched.
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        if let Err(errno) = self.epoll.add(&socket, EpollEvent::new(interest, u64::from(index))) {
            if (index as usize) < self.sockets.len() {
                self.vacant.push(index);
            }
            return Err(errno.into());
        }
        if index as usize == self.sockets.len() {
            self.sockets.push(Place::default());
        }
        self.sockets[index as usize].attached = true;
        Ok(SocketRef { fd: socket, index })
    }

    fn detach(&mut self, socket: SocketRef) {
        let _ = self.epoll.delete(&socket.fd);
        let Some(place) = self.sockets.get_mut(socket.index as usize).filter(|place| place.attached) else { return };
        let place = std::mem::take(place);
        self.vacant.push(socket.index);
        for flight in [place.recv, place.send].into_iter().flatten() {
            self.blocked -= 1;
            self.ready.push(flight.complete(Err(Errno::ECANCELED.into())));
        }
    }

    fn push(&mut self, op: Op) {
        let mut flight = match Flight::new(op) {
            Ok(flight) => flight,
            Err(completion) => return self.ready.push(completion),
        };
        match flight.kind {
            Kind::Ready { socket } | Kind::Recv { socket } => self.start_socket(flight, socket, false),
            Kind::Send { socket } | Kind::SendFile { socket } => self.start_socket(flight, socket, true),
            kind if kind.is_slow() => self.pool.start(flight),
            _ => match flight.run(&mut self.page_cache) {
                Step::Done(result) => self.ready.push(flight.complete(result)),
                // A file never waits for readiness; one that says so is no regular file.
                Step::Again | Step::Blocked => self.ready.push(flight.complete(Err(Errno::EAGAIN.into()))),
            },
        }
    }

    fn submit_and_reap(&mut self, out: &mut Vec<Completion>, wait: Wait) -> io::Result<()> {
        let limit = match wait {
            Wait::No => Duration::ZERO,
            Wait::AtMost(time) => time,
        };
        self.pool.submit();
        let mut deadline = None;
        loop {
            let mut time = Duration::ZERO;
            if self.ready.is_empty() && !limit.is_zero() {
                let end = *deadline.get_or_insert_with(|| Instant::now() + limit);
                time = end.saturating_duration_since(Instant::now());
            }
            let mut woken = false;
            // With completions in hand and nobody waiting there is nothing to ask the kernel for.
            if self.ready.is_empty() || self.blocked + self.pool.in_flight() > 0 {
                woken = self.poll(time)?;
            }
            if woken || time.is_zero() || !self.ready.is_empty() {
                out.append(&mut self.ready);
                return Ok(());
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.blocked + self.pool.in_flight() + self.ready.len()
    }

    fn waker(&self) -> Waker {
        self.wake.waker()
    }

    fn describe(&self) -> EngineFacts {
        let mut facts = self.facts.clone();
        if self.pool.started() {
            facts.features.push("file threads");
        }
        self.page_cache.note(&mut facts.refused);
        facts
    }
}

impl Drop for Epoll {
    /// As the ring: a dropped queue ends the connections that it still has ops on. The pool waits for its own.
    fn drop(&mut self) {
        for flight in self.sockets.iter().flat_map(|place| [&place.recv, &place.send]).flatten() {
            let _ = shutdown(flight.fd.as_raw_fd(), Shutdown::Both);
        }
    }
}
