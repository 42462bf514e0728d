//! The queue on io_uring: one ring, one thread.
//!
//! An op runs where it is cheapest. Page-cache files are read and written by a plain call at `push` (through the ring
//! they would go to kernel worker threads); O_DIRECT and deferred files go to the ring; so do sockets once a first
//! attempt has found them not ready (see [`SocketPath`]). What the kernel may still touch lies in the flight table, and
//! leaves it with the op's one completion.

mod setup;
mod zerocopy;

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};

use super::flight::{Flight, Kind, PageCache, Step, Table};
use super::{Arena, Completion, EngineFacts, FileMode, IoQueue, Op, SendPath, SocketRef, Wait, WakeSource, Waker};
use setup::FixedBuffers;
use zerocopy::ZeroCopy;

/// Submission entries: at least one op and the wake-up, at most what keeps the ring's own memory below 1 MiB.
const ENTRIES: std::ops::RangeInclusive<u32> = 8..=4096;
/// `user_data` of the poll on the eventfd; ops carry their number in the flight table.
const WAKE: u64 = u64::MAX;
/// A socket that has no place in the table of registered descriptors.
const UNREGISTERED: u32 = u32::MAX;
/// Pause before the kernel is asked again when it had no memory for a submission.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// How long a dropped queue waits for a peer's acknowledgement of zero-copy sends before it resets the connection.
const DROP_GRACE: Duration = Duration::from_secs(1);

/// Where a send or a receive is tried first.
///
/// Measured on two cores over loopback, 256 KiB ops, 8 GiB a run, seven interleaved runs, median CPU-s/GiB of both ends
/// (kernel 6.18): one stream 0.192 inline, 0.207 on the ring, 0.202 under epoll; four streams 0.222, 0.257, 0.225; with
/// tmpfs files at both ends no difference beyond the noise (0.357, 0.355, 0.408; 0.357, 0.350, 0.360). So inline: a socket
/// that is ready costs one system call, and a turn in which nothing waits enters the ring not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketPath {
    /// By a non-blocking call at `push`; the ring takes it when the socket is not ready.
    Inline,
    /// On the ring at once.
    Ring,
}

/// Whether the arena is registered with the ring. Done at the first op that profits, since it touches every page.
#[derive(Debug, Clone, Copy)]
enum Fixed {
    Untried,
    Registered(FixedBuffers),
    Refused,
}

/// The io_uring queue.
pub struct Uring {
    ring: IoUring,
    flights: Table,
    ready: Vec<Completion>,
    /// Flights that wait for room in the ring.
    backlog: VecDeque<u32>,
    /// Flights that the kernel has or that lie in the submission queue.
    on_ring: u32,
    /// How many of them there may be, so that the completion queue cannot overflow.
    on_ring_max: u32,
    completed: Vec<(u64, i32, u32)>,
    /// Flights that are told and wait for the kernel's last notice.
    told: usize,
    zero_copy: ZeroCopy,
    wake: WakeSource,
    wake_armed: bool,
    /// Free places in the table of registered descriptors.
    places: Vec<u32>,
    fixed: Fixed,
    page_cache: PageCache,
    sockets: SocketPath,
    facts: EngineFacts,
    /// Registered with the ring: must live as long as it does.
    arena: Arc<Arena>,
    /// A ring made with SINGLE_ISSUER serves the thread that made it, and no other.
    _one_thread: PhantomData<*const ()>,
}

/// Whether this process may have a ring at all: one is opened, entered and closed.
///
/// # Errors
/// What the kernel said.
pub fn probe_ring(entries: u32) -> io::Result<()> {
    let ring = io_uring::IoUring::new(entries)?;
    ring.submit().map(drop)
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("in_flight", &self.in_flight()).field("facts", &self.facts).finish()
    }
}

impl Uring {
    /// Opens a ring of `entries` submissions (8 to 4096, clamped) for the calling thread.
    ///
    /// # Errors
    /// The first refusal, with the call's name in front: `io_uring_setup: EPERM`.
    pub fn open(arena: &Arc<Arena>, entries: u32) -> io::Result<Self> {
        Self::open_with(arena, entries, SocketPath::Inline, true)
    }

    /// The same with the other way for sockets, or as on a kernel without zero-copy sends, for tests and measurements.
    pub fn open_with(arena: &Arc<Arena>, entries: u32, sockets: SocketPath, zero_copy: bool) -> io::Result<Self> {
        let entries = entries.clamp(*ENTRIES.start(), *ENTRIES.end()).next_power_of_two();
        let mut facts = EngineFacts { engine: "io_uring", ..EngineFacts::default() };
        let (ring, known) = setup::open(entries, &mut facts.features, &mut facts.refused)?;
        let zero_copy = match known && zero_copy {
            true => {
                facts.features.push("SEND_ZC");
                ZeroCopy::new(setup::SOCKET_TABLE)
            }
            false => {
                facts.refused.push("SEND_ZC: not in this kernel".to_owned());
                ZeroCopy::new(0)
            }
        };
        let places = match setup::register_sockets(&ring, &mut facts.refused) {
            true => {
                facts.features.push("registered files");
                (0..setup::SOCKET_TABLE).rev().collect()
            }
            false => Vec::new(),
        };
        let on_ring_max = ring.params().cq_entries() - 2;
        let mut queue = Self {
            flights: Table::with_capacity(on_ring_max as usize),
            ready: Vec::with_capacity(on_ring_max as usize),
            backlog: VecDeque::with_capacity(entries as usize),
            on_ring: 0,
            on_ring_max,
            completed: Vec::with_capacity(ring.params().cq_entries() as usize),
            told: 0,
            zero_copy,
            wake: WakeSource::new()?,
            wake_armed: false,
            places,
            fixed: Fixed::Untried,
            page_cache: PageCache::default(),
            sockets,
            facts,
            arena: Arc::clone(arena),
            ring,
            _one_thread: PhantomData,
        };
        // The first entry into the ring: a filter may allow the setup and refuse this.
        queue.arm_wake();
        queue.enter(None).map_err(|error| setup::in_call("io_uring_enter", error))?;
        Ok(queue)
    }

    /// Puts an entry into the submission queue; `false` when that is full.
    fn queue_entry(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: an entry refers either to no memory (the poll) or to a slot and a descriptor that the flight table
        // owns until the completion that carries the entry's number has been reaped.
        #[allow(unsafe_code)]
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.is_ok()
    }

    fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        // A poll, not a read: the kernel fails reads of non-blocking descriptors at once.
        let entry = opcode::PollAdd::new(types::Fd(self.wake.as_raw_fd()), libc::POLLIN as u32).build();
        self.wake_armed = self.queue_entry(&entry.user_data(WAKE));
    }

    fn start(&mut self, flight: Flight) {
        let index = self.flights.insert(flight);
        if !self.backlog.is_empty() || !self.put_on_ring(index) {
            self.backlog.push_back(index);
        }
    }

    fn put_on_ring(&mut self, index: u32) -> bool {
        let fixed = self.fixed;
        let Some(flight) = self.flights.get_mut(index) else { return true };
        // A zero-copy send ends with two completions. Sockets on which nothing happens are many and take no place: should
        // they all become ready at once, the kernel keeps what does not fit the completion queue (NODROP).
        let completions = match flight.kind {
            Kind::Ready { .. } => 0,
            _ => 1 + u32::from(flight.zero_copy.is_some()),
        };
        if completions > 0 && self.on_ring + 1 >= self.on_ring_max {
            return false;
        }
        let entry = entry_for(flight, fixed).user_data(u64::from(index));
        let queued = self.queue_entry(&entry);
        self.on_ring += u32::from(queued) * completions;
        queued
    }

    fn drain_backlog(&mut self) {
        while let Some(&index) = self.backlog.front() {
            if !self.put_on_ring(index) {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// One `io_uring_enter`: submits what is queued, runs deferred completions, waits if told to. Without anything to do
    /// there is no system call at all.
    fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let (submitter, submission, _completion) = self.ring.split();
        let idle = submission.is_empty() && !submission.taskrun() && !submission.cq_overflow();
        drop(submission);
        let outcome = match wait {
            None if idle => return Ok(()),
            None => submitter.submit(),
            Some(time) => {
                let time = types::Timespec::new().sec(time.as_secs()).nsec(time.subsec_nanos());
                submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
            }
        };
        match outcome.map_err(|error| (error.raw_os_error().map(Errno::from_raw), error)) {
            Ok(_) | Err((Some(Errno::EINTR | Errno::ETIME), _)) => Ok(()),
            Err((Some(Errno::EAGAIN | Errno::EBUSY), _)) => {
                // No memory for a request, or completions to be taken first: the entries stay where they are.
                if wait.is_some() {
                    std::thread::sleep(BUSY_PAUSE);
                }
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    /// Takes the kernel's completions; `true` when the waker was among them.
    fn reap(&mut self) -> bool {
        let mut completed = std::mem::take(&mut self.completed);
        completed.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result(), entry.flags())));
        let mut woken = false;
        for (data, result, flags) in completed.drain(..) {
            if data == WAKE {
                self.wake_armed = false;
                woken |= self.wake.drain();
            } else {
                self.settle(data as u32, result, flags);
            }
        }
        self.completed = completed;
        woken
    }

    fn settle(&mut self, index: u32, result: i32, flags: u32) {
        if cqueue::notif(flags) {
            return self.noticed(index, zerocopy::copied(result));
        }
        let Some(flight) = self.flights.get_mut(index) else { return };
        self.on_ring -= u32::from(!matches!(flight.kind, Kind::Ready { .. }));
        let mut result = if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(result as usize) };
        if let Some(mark) = flight.zero_copy {
            let owed = cqueue::more(flags);
            flight.notices += u32::from(owed);
            self.on_ring -= u32::from(!owed);
            let Kind::Send { socket } = flight.kind else { unreachable!("only a Send is marked") };
            if !owed {
                self.zero_copy.without_notice(socket, mark);
            }
            if let Err(errno) = result
                && zerocopy::refuses(errno)
            {
                // The same bytes again, plainly; a connection that is at fault says so once more.
                self.zero_copy.refused(socket, mark);
                flight.zero_copy = None;
                result = Err(Errno::EINTR);
            }
        }
        let step = match (flight.kind, result) {
            // The ring has only waited until the socket takes more, or has something.
            (Kind::SendFile { .. } | Kind::Ready { .. }, Ok(_)) => flight.run(&mut self.page_cache),
            (_, result) => flight.advance(result),
        };
        match step {
            Step::Done(result) if flight.notices > 0 => {
                self.told += 1;
                self.ready.push(flight.tell(result));
            }
            Step::Done(result) => {
                if let Some(flight) = self.flights.remove(index) {
                    self.ready.push(flight.complete(result));
                }
            }
            // The ring waits for readiness by itself, so a blocked socket goes back as it is.
            Step::Again | Step::Blocked => self.backlog.push_back(index),
        }
    }

    /// The kernel reads a slot no longer.
    fn noticed(&mut self, index: u32, copied: bool) {
        self.on_ring -= 1;
        let Some(flight) = self.flights.get_mut(index) else { return };
        flight.notices -= 1;
        if let (Kind::Send { socket }, Some(mark)) = (flight.kind, flight.zero_copy) {
            self.zero_copy.noticed(socket, mark, copied);
        }
        if flight.told && flight.notices == 0 {
            self.told -= 1;
            drop(self.flights.remove(index));
        }
    }

    /// Marks a send that is to go without a copy.
    fn mark_zero_copy(&mut self, flight: &mut Flight) -> bool {
        let Kind::Send { socket } = flight.kind else { return false };
        // A slot comes back a round trip later. Half of them stay for plain sends and everything else, and half of the
        // ring: else a long link would stop what is due now.
        let room = self.arena.free() * 2 >= self.arena.slots() && self.on_ring * 2 < self.on_ring_max;
        if !room || flight.rest() < zerocopy::WORTH {
            return false;
        }
        flight.zero_copy = self.zero_copy.mark(socket);
        if self.zero_copy.path(socket) == SendPath::ZeroCopy && matches!(self.fixed, Fixed::Untried) {
            self.register_arena();
        }
        flight.zero_copy.is_some()
    }

    fn register_arena(&mut self) {
        self.fixed = match setup::register_arena(&self.ring, &self.arena, &mut self.facts.refused) {
            Some(buffers) => {
                self.facts.features.push("registered buffers");
                Fixed::Registered(buffers)
            }
            None => Fixed::Refused,
        };
    }
}

fn entry_for(flight: &mut Flight, fixed: Fixed) -> squeue::Entry {
    let (pointer, rest, offset) = (flight.pointer(), flight.rest(), flight.file_offset());
    let fd = types::Fd(flight.fd.as_raw_fd());
    let fixed = match fixed {
        Fixed::Registered(buffers) => flight.slot().map(|slot| buffers.index(slot.index())),
        _ => None,
    };
    // MSG_WAITALL lets the kernel continue a partial send itself (5.19 on); earlier ones ignore it.
    let send_flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
    if flight.zero_copy.is_some()
        && let Kind::Send { socket } = flight.kind
    {
        let send = opcode::SendZc::new(types::Fixed(socket), pointer, rest);
        return send.flags(send_flags).zc_flags(zerocopy::REPORT_USAGE).buf_index(fixed).build();
    }
    match flight.kind {
        Kind::SendFile { socket: UNREGISTERED } => opcode::PollAdd::new(fd, libc::POLLOUT as u32).build(),
        Kind::SendFile { socket } => opcode::PollAdd::new(types::Fixed(socket), libc::POLLOUT as u32).build(),
        Kind::Ready { socket: UNREGISTERED } => opcode::PollAdd::new(fd, libc::POLLIN as u32).build(),
        Kind::Ready { socket } => opcode::PollAdd::new(types::Fixed(socket), libc::POLLIN as u32).build(),
        Kind::Recv { socket: UNREGISTERED } => opcode::Recv::new(fd, pointer, rest).build(),
        Kind::Recv { socket } => opcode::Recv::new(types::Fixed(socket), pointer, rest).build(),
        Kind::Send { socket: UNREGISTERED } => opcode::Send::new(fd, pointer, rest).flags(send_flags).build(),
        Kind::Send { socket } => opcode::Send::new(types::Fixed(socket), pointer, rest).flags(send_flags).build(),
        Kind::Read(FileMode::Direct) if let Some(buffer) = fixed => {
            opcode::ReadFixed::new(fd, pointer, rest, buffer).offset(offset).build()
        }
        Kind::Write(FileMode::Direct) if let Some(buffer) = fixed => {
            opcode::WriteFixed::new(fd, pointer, rest, buffer).offset(offset).build()
        }
        Kind::Read(_) => opcode::Read::new(fd, pointer, rest).offset(offset).build(),
        Kind::Write(_) => opcode::Write::new(fd, pointer, rest).offset(offset).build(),
    }
}

impl IoQueue for Uring {
    fn attach(&mut self, socket: Arc<OwnedFd>) -> io::Result<SocketRef> {
        super::syscall::set_nonblocking(&socket)?;
        let index = match self.places.pop() {
            None => UNREGISTERED,
            Some(place) => match self.ring.submitter().register_files_update(place, &[socket.as_raw_fd()]) {
                Ok(_) => place,
                Err(_) => {
                    self.places.push(place);
                    UNREGISTERED
                }
            },
        };
        if index != UNREGISTERED {
            self.zero_copy.attach(index, zerocopy::may_help(&socket));
        }
        Ok(SocketRef { fd: socket, index })
    }

    fn detach(&mut self, socket: SocketRef) {
        if socket.index == UNREGISTERED {
            return;
        }
        self.zero_copy.attach(socket.index, false);
        // An error would leave the old socket in its place, open for longer than asked; the place is then not used again.
        if self.ring.submitter().register_files_update(socket.index, &[-1 as RawFd]).is_ok() {
            self.places.push(socket.index);
        }
    }

    fn push(&mut self, op: Op) {
        let mut flight = match Flight::new(op) {
            Ok(flight) => flight,
            Err(completion) => return self.ready.push(completion),
        };
        let foreign = flight.slot().is_some_and(|slot| !Arc::ptr_eq(slot.arena(), &self.arena));
        if foreign {
            // Its number would name another slot's registered buffer.
            return self.ready.push(flight.complete(Err(io::ErrorKind::InvalidInput.into())));
        }
        if self.mark_zero_copy(&mut flight) {
            return self.start(flight);
        }
        let inline = match flight.kind {
            Kind::Read(FileMode::Direct) | Kind::Write(FileMode::Direct) => {
                if matches!(self.fixed, Fixed::Untried) {
                    self.register_arena();
                }
                false
            }
            Kind::SendFile { .. } => true,
            kind if kind.is_slow() => false,
            kind if kind.is_socket() => self.sockets == SocketPath::Inline,
            _ => true,
        };
        if inline && let Step::Done(result) = flight.run(&mut self.page_cache) {
            return self.ready.push(flight.complete(result));
        }
        self.start(flight);
    }

    fn submit_and_reap(&mut self, out: &mut Vec<Completion>, wait: Wait) -> io::Result<()> {
        let limit = match wait {
            Wait::No => Duration::ZERO,
            Wait::AtMost(time) => time,
        };
        let mut deadline = None;
        loop {
            self.arm_wake();
            self.drain_backlog();
            let mut time = None;
            if self.ready.is_empty() && !limit.is_zero() && self.ring.completion().is_empty() {
                let end = *deadline.get_or_insert_with(|| Instant::now() + limit);
                time = Some(end.saturating_duration_since(Instant::now()));
            }
            self.enter(time)?;
            let woken = self.reap();
            let over = time.is_none_or(|time| time.is_zero());
            if woken || over || !self.ready.is_empty() {
                out.append(&mut self.ready);
                return Ok(());
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.flights.len() - self.told + self.ready.len()
    }

    fn send_path(&self, socket: &SocketRef) -> SendPath {
        self.zero_copy.path(socket.index)
    }

    fn waker(&self) -> Waker {
        self.wake.waker()
    }

    fn describe(&self) -> EngineFacts {
        let mut facts = self.facts.clone();
        self.page_cache.note(&mut facts.refused);
        facts
    }
}

impl Drop for Uring {
    /// Ends what waits for a peer, then waits for the rest: until an op's completion the kernel may write into its slot, or
    /// read it. A peer that does not acknowledge what was sent without a copy gets a reset.
    fn drop(&mut self) {
        for flight in self.flights.iter().filter(|flight| flight.kind.is_socket()) {
            let _ = shutdown(flight.fd.as_raw_fd(), Shutdown::Both);
        }
        let begin = Instant::now();
        while self.flights.len() > 0 {
            self.drain_backlog();
            if begin.elapsed() > DROP_GRACE {
                for flight in self.flights.iter().filter(|flight| flight.notices > 0) {
                    let _ = super::syscall::disconnect(&flight.fd);
                }
            }
            if self.enter(Some(BUSY_PAUSE)).is_err() {
                // The ring itself is broken. Better to lose the buffers than to hand them out while they may be written.
                std::mem::forget(std::mem::take(&mut self.flights));
                return;
            }
            self.reap();
        }
    }
}
