//! The network between two hosts: links of two pipes each, with latency, a rate and a capacity, and what can befall
//! them. A link carries the handshake and the control stream through async code, and a data stream through a worker's
//! queue; both ways end here.

use crate::world::World;
use longhaul::engine::conn::SimulatedEnd;
use longhaul::sys::simulated::Doing;
use nix::errno::Errno;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// A direction of a link; the side that sends has the same number.
struct Pipe {
    /// What is on its way: when it arrives, and the bytes not yet taken.
    segments: VecDeque<(Instant, VecDeque<u8>)>,
    queued: usize,
    /// The wire is busy until then.
    free_at: Instant,
    /// The sender has closed: the end arrives then.
    fin: Option<Instant>,
    /// What is sent goes nowhere, and nobody says so.
    hole: bool,
    /// Bytes since the beginning.
    sent: u64,
    /// The next segment is damaged.
    damage: bool,
    reader: Wake,
    writer: Wake,
}

/// Who is to be told when a pipe changes.
#[derive(Default)]
struct Wake {
    task: Option<Waker>,
    worker: Option<Arc<Notify>>,
}

impl Wake {
    fn wake(&mut self) {
        if let Some(task) = self.task.take() {
            task.wake();
        }
        if let Some(worker) = &self.worker {
            worker.notify_one();
        }
    }
}

pub struct Link {
    number: u64,
    /// A host that died; what it has takes no part any more.
    gone: [bool; 2],
    /// Hosts of the two sides.
    pub hosts: [usize; 2],
    pipes: [Pipe; 2],
    latency: Duration,
    bytes_per_sec: u64,
    capacity: usize,
    /// The connection is reset for this side from then on.
    reset: [Option<Instant>; 2],
    /// No handle is left at this side.
    closed: [bool; 2],
    /// A worker has one of its ends: a data stream.
    pub data: bool,
}

/// How a network is.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    pub latency: Duration,
    pub jitter_us: u64,
    pub bytes_per_sec: u64,
    pub capacity: usize,
    /// Bytes that travel together, and come at one time, at most.
    pub segment: usize,
}

pub struct Net {
    world: Rc<World>,
    weather: Weather,
    pub links: RefCell<Vec<Rc<RefCell<Link>>>>,
    by_descriptor: RefCell<HashMap<RawFd, Rc<Handle>>>,
    /// Nothing gets through until then.
    partition_until: Cell<Option<Instant>>,
    made: Cell<u64>,
    /// Bytes that each host has sent on data streams.
    pub data_sent: [Cell<u64>; 2],
}

/// One side of a link, in somebody's hands. The last handle's end closes the side.
struct Handle {
    net: Rc<Net>,
    link: Rc<RefCell<Link>>,
    side: usize,
}

/// An end that async code has.
pub struct End {
    handle: Rc<Handle>,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Link {
    fn is_over(&self) -> bool {
        self.reset.iter().all(Option::is_some) || self.closed.iter().all(|closed| *closed)
    }

    fn wake(&mut self) {
        for pipe in &mut self.pipes {
            pipe.reader.wake();
            pipe.writer.wake();
        }
    }
}

impl Net {
    pub fn new(world: Rc<World>, weather: Weather) -> Rc<Self> {
        Rc::new(Self {
            world,
            weather,
            links: RefCell::default(),
            by_descriptor: RefCell::default(),
            partition_until: Cell::new(None),
            made: Cell::new(0),
            data_sent: [Cell::new(0), Cell::new(0)],
        })
    }

    /// Lets go of everything: links and their handles know the network, so nothing would ever be freed.
    pub fn forget(&self) {
        let named = std::mem::take(&mut *self.by_descriptor.borrow_mut());
        drop(named);
        self.links.borrow_mut().clear();
    }

    /// How long a connection takes to be made, or to be refused.
    pub fn connect_time(&self) -> Duration {
        let heal = self.partition_until.get().map_or(Duration::ZERO, |t| t.saturating_duration_since(self.world.now()));
        heal + 2 * self.weather.latency
    }

    /// Whether data ports are dialled ahead of the ticket, whose way is longer then: with every other seed.
    pub fn dials_ahead(&self) -> bool {
        self.world.seed.is_multiple_of(2)
    }

    /// A new link from host `from` to host `to`: the dialler's end and the listener's.
    pub fn link(self: &Rc<Self>, from: usize, to: usize) -> (End, End) {
        let now = self.world.now();
        let pipe = || Pipe {
            segments: VecDeque::new(),
            queued: 0,
            free_at: now,
            fin: None,
            hole: false,
            sent: 0,
            damage: false,
            reader: Wake::default(),
            writer: Wake::default(),
        };
        self.made.set(self.made.get() + 1);
        let link = Rc::new(RefCell::new(Link {
            number: self.made.get(),
            gone: [false; 2],
            hosts: [from, to],
            pipes: [pipe(), pipe()],
            latency: self.weather.latency,
            bytes_per_sec: self.weather.bytes_per_sec,
            capacity: self.weather.capacity,
            reset: [None; 2],
            closed: [false; 2],
            data: false,
        }));
        let mut links = self.links.borrow_mut();
        links.retain(|link| !link.borrow().is_over());
        links.push(link.clone());
        let end = |side| End { handle: Rc::new(Handle { net: self.clone(), link: link.clone(), side }), timer: None };
        (end(0), end(1))
    }

    /// When something that leaves now arrives.
    fn arrival(&self, link: &mut Link, side: usize, len: usize) -> Instant {
        let now = self.world.now();
        let jitter = match self.weather.jitter_us {
            0 => 0,
            most => self.world.net.borrow_mut().range(0..most),
        };
        let pipe = &mut link.pipes[side];
        let on_wire = Duration::from_nanos(len as u64 * 1_000_000_000 / link.bytes_per_sec.max(1));
        pipe.free_at = pipe.free_at.max(now) + on_wire;
        let mut at = pipe.free_at + link.latency + Duration::from_micros(jitter);
        if let Some(heal) = self.partition_until.get().filter(|heal| *heal > now) {
            at = at.max(heal + link.latency);
        }
        // One after the other, as TCP has it.
        if let Some((last, _)) = pipe.segments.back() {
            at = at.max(*last);
        }
        at
    }

    fn send(&self, link: &Rc<RefCell<Link>>, side: usize, bytes: &[u8]) -> Result<usize, Errno> {
        let mut link = link.borrow_mut();
        let link = &mut *link;
        let now = self.world.now();
        if link.gone[side] || self.world.dead[link.hosts[side]].get() {
            return Ok(bytes.len());
        }
        if link.reset[side].is_some_and(|at| at <= now) {
            return Err(Errno::ECONNRESET);
        }
        let capacity = link.capacity;
        let room = capacity.saturating_sub(link.pipes[side].queued);
        if room == 0 {
            return Err(Errno::EAGAIN);
        }
        let len = room.min(bytes.len()).min(self.weather.segment);
        if link.data {
            let host = link.hosts[side];
            self.data_sent[host].set(self.data_sent[host].get() + len as u64);
        }
        if link.closed[1 - side] && !link.gone[1 - side] && link.reset[side].is_none() {
            // Nobody reads it: the peer's kernel says so.
            link.reset[side] = Some(now + 2 * link.latency);
        }
        let at = self.arrival(link, side, len);
        let pipe = &mut link.pipes[side];
        pipe.sent += len as u64;
        pipe.queued += len;
        if !pipe.hole {
            let mut bytes: VecDeque<u8> = bytes[..len].to_vec().into();
            if std::mem::take(&mut pipe.damage) {
                let place = (self.world.net.borrow_mut().next() % len as u64) as usize;
                bytes[place] ^= 1 << (place % 8);
                self.world.count("damaged bytes");
            }
            pipe.segments.push_back((at, bytes));
        }
        pipe.reader.wake();
        Ok(len)
    }

    fn receive(&self, link: &Rc<RefCell<Link>>, side: usize, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut link = link.borrow_mut();
        let now = self.world.now();
        if link.reset[side].is_some_and(|at| at <= now) {
            return Err(Errno::ECONNRESET);
        }
        let pipe = &mut link.pipes[1 - side];
        let mut taken = 0;
        while taken < buffer.len() {
            let Some((at, bytes)) = pipe.segments.front_mut() else { break };
            if *at > now {
                break;
            }
            let (front, _) = bytes.as_slices();
            let count = front.len().min(buffer.len() - taken);
            buffer[taken..taken + count].copy_from_slice(&front[..count]);
            bytes.drain(..count);
            taken += count;
            if bytes.is_empty() {
                pipe.segments.pop_front();
            }
        }
        if taken > 0 {
            pipe.queued -= taken;
            pipe.writer.wake();
            return Ok(taken);
        }
        match pipe.fin {
            Some(at) if at <= now && pipe.segments.is_empty() => Ok(0),
            _ => Err(Errno::EAGAIN),
        }
    }

    /// When a side that is not ready will be, as far as is known.
    fn ready_at(&self, link: &Rc<RefCell<Link>>, side: usize, doing: Doing) -> Option<Instant> {
        let link = link.borrow();
        let now = self.world.now();
        let reset = link.reset[side];
        let ready = if doing == Doing::Send {
            (link.pipes[side].queued < link.capacity).then_some(now)
        } else {
            let pipe = &link.pipes[1 - side];
            pipe.segments.front().map(|(at, _)| *at).or(pipe.fin)
        };
        match (ready, reset) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The end of what a side sends, which a black hole swallows too.
    fn finish(&self, link: &mut Link, side: usize) {
        if !link.pipes[side].hole {
            let at = self.arrival(link, side, 1);
            link.pipes[side].fin.get_or_insert(at);
        }
        link.wake();
    }

    fn close(&self, link: &Rc<RefCell<Link>>, side: usize) {
        let mut link = link.borrow_mut();
        if link.closed[side] || link.gone[side] {
            return;
        }
        if self.world.dead[link.hosts[side]].get() {
            return;
        }
        link.closed[side] = true;
        self.finish(&mut link, side);
    }

    fn shut(&self, link: &Rc<RefCell<Link>>, side: usize) {
        let mut link = link.borrow_mut();
        let now = self.world.now();
        self.finish(&mut link, side);
        // Our own side reads its end at once, whatever is on its way.
        link.pipes[1 - side].segments.clear();
        link.pipes[1 - side].fin = Some(now);
        link.reset[side].get_or_insert(now);
        link.wake();
    }

    /// Links that are alive: those of data streams, or the others.
    pub fn alive(&self, data: bool) -> Vec<Rc<RefCell<Link>>> {
        let links = self.links.borrow();
        let wanted = |link: &&Rc<RefCell<Link>>| {
            let link = link.borrow();
            link.data == data && !link.is_over() && link.gone == [false; 2] && link.closed == [false; 2]
        };
        links.iter().filter(wanted).cloned().collect()
    }

    /// Something befalls a link.
    pub fn befall(&self, link: &Rc<RefCell<Link>>, what: &'static str) {
        let mut link = link.borrow_mut();
        let now = self.world.now();
        self.world.fault(what, format_args!("link {} {}", link.number, if link.data { "data" } else { "control" }));
        match what {
            "connection reset" => {
                let at = now + link.latency;
                link.reset = [Some(at); 2];
            }
            "connection closed" => {
                for side in 0..2 {
                    let at = self.arrival(&mut link, side, 1);
                    link.pipes[side].fin.get_or_insert(at);
                }
            }
            "black hole" => {
                for pipe in &mut link.pipes {
                    pipe.hole = true;
                    pipe.segments.retain(|(at, _)| *at <= now);
                }
                // What is unacknowledged for so long ends the connection: TCP_USER_TIMEOUT, keepalive.
                link.reset = [Some(now + Duration::from_secs(130)); 2];
            }
            "half open" => {
                let side = (self.world.net.borrow_mut().next() % 2) as usize;
                link.pipes[side].hole = true;
                link.reset = [Some(now + Duration::from_secs(130)); 2];
            }
            "slow stream" => link.bytes_per_sec = (link.bytes_per_sec / 200).max(100_000),
            "damage" => link.pipes.iter_mut().for_each(|pipe| pipe.damage = true),
            other => panic!("no such thing befalls a link: {other}"),
        }
        link.wake();
    }

    /// Nothing gets through for a while; TCP repeats what was on its way.
    pub fn partition(&self, time: Duration) {
        let heal = self.world.now() + time;
        self.world.fault("partition", format_args!("{time:?}"));
        self.partition_until.set(Some(heal));
        for link in self.links.borrow().iter() {
            let mut link = link.borrow_mut();
            let latency = link.latency;
            for pipe in &mut link.pipes {
                for (at, _) in pipe.segments.iter_mut() {
                    *at = (*at).max(heal + latency);
                }
            }
            link.wake();
        }
    }

    /// A host is gone. Its kernel closes its connections, or, where the power went, nothing at all is heard of it until
    /// it is back: then the peer's next word is answered with a reset.
    pub fn host_gone(&self, host: usize, back_at: Option<Instant>) {
        for link in self.links.borrow().iter() {
            let mut link = link.borrow_mut();
            let Some(side) = link.hosts.iter().position(|h| *h == host) else { continue };
            link.gone[side] = true;
            let latency = link.latency;
            let now = self.world.now();
            link.pipes[1 - side].hole = true;
            match back_at {
                None => link.reset[1 - side] = Some(now + latency),
                Some(at) => {
                    link.pipes[side].segments.retain(|(at, _)| *at <= now + latency);
                    link.reset[1 - side] = Some(at + 2 * latency);
                }
            }
            link.wake();
        }
    }

    /// The worker's side of the network.
    pub fn attach(self: &Rc<Self>, descriptor: &OwnedFd, notify: &Arc<Notify>) -> io::Result<Attached> {
        let handle = self.by_descriptor.borrow_mut().remove(&descriptor.as_raw_fd());
        let handle = handle.ok_or(io::ErrorKind::NotConnected)?;
        let mut link = handle.link.borrow_mut();
        link.data = true;
        let side = handle.side;
        link.pipes[1 - side].reader.worker = Some(notify.clone());
        link.pipes[side].writer.worker = Some(notify.clone());
        drop(link);
        Ok(Attached(handle))
    }
}

/// A link's side at a worker.
pub struct Attached(Rc<Handle>);

impl Attached {
    pub fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        self.0.net.send(&self.0.link, self.0.side, bytes)
    }

    pub fn receive(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.0.net.receive(&self.0.link, self.0.side, buffer)
    }

    pub fn ready_at(&self, doing: Doing) -> Option<Instant> {
        self.0.net.ready_at(&self.0.link, self.0.side, doing)
    }

    pub fn cut(&self) {
        self.0.net.shut(&self.0.link, self.0.side);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.net.close(&self.link, self.side);
    }
}

impl SimulatedEnd for End {
    fn descriptor(&self) -> io::Result<OwnedFd> {
        let name = OwnedFd::from(std::fs::File::open("/dev/null")?);
        self.handle.net.by_descriptor.borrow_mut().insert(name.as_raw_fd(), self.handle.clone());
        Ok(name)
    }

    fn share(&self) -> Box<dyn SimulatedEnd> {
        Box::new(End { handle: self.handle.clone(), timer: None })
    }

    fn cut(&self) {
        self.handle.net.shut(&self.handle.link, self.handle.side);
    }

    fn rtt_us(&self) -> u32 {
        2 * self.handle.link.borrow().latency.as_micros() as u32
    }
}

impl AsyncRead for End {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let handle = self.handle.clone();
            match handle.net.receive(&handle.link, handle.side, buf.initialize_unfilled()) {
                Ok(count) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::EAGAIN) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
            handle.link.borrow_mut().pipes[1 - handle.side].reader.task = Some(cx.waker().clone());
            let Some(at) = handle.net.ready_at(&handle.link, handle.side, Doing::Recv) else { return Poll::Pending };
            let mut timer = Box::pin(tokio::time::sleep_until(at.into()));
            if timer.as_mut().poll(cx).is_pending() {
                self.timer = Some(timer);
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let handle = &self.handle;
        match handle.net.send(&handle.link, handle.side, bytes) {
            Ok(count) => Poll::Ready(Ok(count)),
            Err(Errno::EAGAIN) => {
                handle.link.borrow_mut().pipes[handle.side].writer.task = Some(cx.waker().clone());
                Poll::Pending
            }
            Err(errno) => Poll::Ready(Err(errno.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let handle = &self.handle;
        let mut link = handle.link.borrow_mut();
        handle.net.finish(&mut link, handle.side);
        Poll::Ready(Ok(()))
    }
}
