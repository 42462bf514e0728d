//! A host: the real coordinator's context, workers and sessions, over a simulated queue, pool and network. It dies when
//! its tasks are dropped.

use crate::disk::Disk;
use crate::net::{Attached, End, Net};
use crate::world::{World, run_job};
use longhaul::disk::ProbeCache;
use longhaul::engine::conn::{Conn, SimulatedEnd};
use longhaul::engine::coordinator::simulated::{Connecting, Network, Parts};
use longhaul::engine::coordinator::{Ctx, WorkerHandle};
use longhaul::engine::error::{Class, TransferError};
use longhaul::engine::handle::{DataPort, EngineConfig, TicketSource};
use longhaul::engine::pool::{Job, Pool};
use longhaul::engine::session;
use longhaul::engine::spec::{Grant, Ticket};
use longhaul::engine::worker::mailbox::Mailbox;
use longhaul::engine::worker::{Command, Desk, Event, Worker, WorkerStats};
use longhaul::sys::simulated::{Doing, Simulated, World as QueueWorld};
use longhaul::sys::{Arena, ArenaConfig, IoQueue, Wait, Waker, observe};
use nix::errno::Errno;
use nix::sys::uio::{pread, pwrite};
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::LocalSet;

pub const SOURCE: usize = 0;
pub const DESTINATION: usize = 1;

/// Who is where: shared by both hosts.
#[derive(Default)]
pub struct Directory {
    pub contexts: [RefCell<Option<Rc<Ctx>>>; 2],
    listening: [RefCell<Option<mpsc::UnboundedSender<End>>>; 2],
}

pub fn address(host: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host as u8 + 1], 1))
}

/// A worker's files and sockets.
struct HostWorld {
    host: usize,
    world: Rc<World>,
    net: Rc<Net>,
    disk: Rc<Disk>,
    notify: Arc<Notify>,
    sockets: Vec<Option<Attached>>,
}

impl HostWorld {
    fn socket(&self, index: u32) -> Result<&Attached, Errno> {
        self.sockets.get(index as usize).and_then(Option::as_ref).ok_or(Errno::EBADF)
    }
}

/// Time that the disk of a host takes for one call.
fn disk_time(world: &World, host: usize) -> Duration {
    let mut rng = if host == DESTINATION { world.disk.borrow_mut() } else { world.time.borrow_mut() };
    let mut time = Duration::from_micros(rng.range(0..3_000));
    if world.faults.get() && rng.percent(4) {
        time += Duration::from_millis(rng.range(20..400));
        world.count("slow call");
    }
    let stall = world.disk_stalled_until.get().filter(|_| host == DESTINATION);
    time + stall.map_or(Duration::ZERO, |until| until.saturating_duration_since(world.now()))
}

impl QueueWorld for HostWorld {
    fn now(&self) -> Instant {
        self.world.now()
    }

    fn delay(&mut self, doing: Doing) -> Duration {
        match doing {
            Doing::Recv | Doing::Send => Duration::ZERO,
            Doing::Read | Doing::Write => disk_time(&self.world, self.host),
        }
    }

    fn attach(&mut self, socket: &Arc<OwnedFd>) -> io::Result<u32> {
        let attached = self.net.attach(socket, &self.notify)?;
        let index = self.sockets.iter().position(Option::is_none).unwrap_or_else(|| {
            self.sockets.push(None);
            self.sockets.len() - 1
        });
        self.sockets[index] = Some(attached);
        Ok(index as u32)
    }

    fn detach(&mut self, socket: u32) {
        self.sockets[socket as usize] = None;
    }

    fn cut(&mut self, socket: u32) {
        if let Ok(socket) = self.socket(socket) {
            socket.cut();
        }
    }

    fn receive(&mut self, socket: u32, buffer: &mut [u8]) -> Result<usize, Errno> {
        let result = self.socket(socket)?.receive(buffer);
        if result != Err(Errno::EAGAIN) {
            self.world.event(format_args!("host {} receives {result:?}", self.host));
        }
        result
    }

    fn send(&mut self, socket: u32, bytes: &[u8]) -> Result<usize, Errno> {
        let result = self.socket(socket)?.send(bytes);
        if result != Err(Errno::EAGAIN) {
            self.world.event(format_args!("host {} sends {result:?}", self.host));
        }
        result
    }

    fn ready_at(&mut self, socket: u32, doing: Doing) -> Option<Instant> {
        self.socket(socket).ok()?.ready_at(doing)
    }

    fn read(&mut self, file: &OwnedFd, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let errors = self.world.read_errors.get();
        if errors > 0 {
            self.world.read_errors.set(errors - 1);
            self.world.fault("read error", format_args!("at {offset}"));
            return Err(Errno::EIO);
        }
        let mut len = buffer.len();
        if self.world.faults.get() && len > 1 && self.world.time.borrow_mut().percent(3) {
            len = self.world.time.borrow_mut().range(1..len as u64) as usize;
            self.world.count("short read");
        }
        pread(file, &mut buffer[..len], offset as i64)
    }

    fn write(&mut self, file: &OwnedFd, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        let result = observe::observed_write(file.as_fd(), offset, bytes, |bytes| pwrite(file, bytes, offset as i64));
        self.world.event(format_args!("writes {result:?} at {offset}"));
        result
    }

    fn write_begins(&mut self, file: &OwnedFd, offset: u64, len: u64, stream: u64) {
        self.disk.write_begins(file.as_fd(), offset, len, stream);
    }

    fn write_ends(&mut self, file: &OwnedFd, offset: u64, stream: u64) {
        self.disk.write_ends(file.as_fd(), offset, stream);
    }

    fn dead(&self) -> bool {
        self.world.dead[self.host].get()
    }
}

struct HostNetwork {
    host: usize,
    world: Rc<World>,
    net: Rc<Net>,
    directory: Rc<Directory>,
}

impl Network for HostNetwork {
    fn connect(&self, _to: SocketAddr) -> Connecting {
        let (host, world, net, directory) = (self.host, self.world.clone(), self.net.clone(), self.directory.clone());
        Box::pin(async move {
            let other = 1 - host;
            tokio::time::sleep(net.connect_time()).await;
            if world.dead[other].get() {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            if world.faults.get() && world.net.borrow_mut().percent(4) {
                world.fault("connection refused", format_args!("from host {host}"));
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (near, far) = net.link(host, other);
            let listening = directory.listening[other].borrow().clone();
            listening.and_then(|l| l.send(far).ok()).ok_or(io::ErrorKind::ConnectionRefused)?;
            Ok(Box::new(near) as Box<dyn SimulatedEnd>)
        })
    }
}

type Asked = oneshot::Sender<Result<Ticket, TransferError>>;

/// The peer's HTTP port, as far as tickets go, and its data port where that is known before.
pub struct Tickets(mpsc::UnboundedSender<Asked>, Option<DataPort>);

impl TicketSource for Tickets {
    fn ticket(&self) -> Pin<Box<dyn Future<Output = Result<Ticket, TransferError>> + Send + '_>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let _ = self.0.send(reply);
            answer
                .await
                .unwrap_or_else(|_| Err(TransferError::new(Class::Reconnect, "no answer to the ticket request")))
        })
    }

    fn peer(&self) -> String {
        "the other host".to_owned()
    }

    fn data_port(&self) -> Pin<Box<dyn Future<Output = Option<DataPort>> + Send + '_>> {
        Box::pin(std::future::ready(self.1))
    }
}

/// How both hosts are made.
#[derive(Debug, Clone)]
pub struct Build {
    pub workers: usize,
    pub block: u32,
    pub slots: usize,
}

pub struct Host {
    pub set: LocalSet,
    pub ctx: Rc<Ctx>,
    _stop: watch::Sender<bool>,
}

async fn drive_worker(mut worker: Worker<Simulated<HostWorld>>, world: Rc<World>, notify: Arc<Notify>) {
    let mut desk = Desk::default();
    loop {
        let Ok(Some(longest)) = worker.turn(Wait::No, &mut desk) else { return };
        let latest = world.now() + longest;
        let due = worker.queue().due().map_or(latest, |due| due.min(latest));
        tokio::task::yield_now().await;
        tokio::select! {
            biased;
            () = notify.notified() => {}
            () = tokio::time::sleep_until(due.into()) => {}
        }
    }
}

/// Runs a pool's jobs, each after the time that its disk takes, in the order in which they end.
async fn run_jobs(host: usize, jobs: Arc<Mutex<Vec<Job>>>, notify: Arc<Notify>, world: Rc<World>) {
    let mut waiting: Vec<(Instant, u64, Job)> = Vec::new();
    let mut number = 0;
    loop {
        for job in std::mem::take(&mut *jobs.lock().unwrap()) {
            number += 1;
            waiting.push((world.now() + disk_time(&world, host), number, job));
        }
        waiting.sort_by_key(|(due, number, _)| (*due, *number));
        if world.dead[host].get() {
            return;
        }
        let Some((due, ..)) = waiting.first() else {
            notify.notified().await;
            continue;
        };
        let due = *due;
        tokio::select! {
            biased;
            () = notify.notified() => continue,
            () = tokio::time::sleep_until(due.into()) => {}
        }
        let (_, number, job) = waiting.remove(0);
        world.event(format_args!("host {host} runs job {number}"));
        run_job(job);
        tokio::task::yield_now().await;
    }
}

impl Host {
    /// Starts a host; it runs while its `set` is polled.
    pub fn start(
        host: usize,
        world: &Rc<World>,
        net: &Rc<Net>,
        disk: &Rc<Disk>,
        directory: &Rc<Directory>,
        probes: &Arc<ProbeCache>,
        build: &Build,
    ) -> Self {
        let set = LocalSet::new();
        let slot = build.block as usize + 8192;
        let config = ArenaConfig { bytes: build.slots * slot, block: build.block, explicit_huge_pages: false };
        let arena = Arena::new(config).expect("memory for slots");
        let calling = |notify: &Arc<Notify>| {
            let notify = notify.clone();
            Waker::calling(move || notify.notify_one()).expect("a descriptor")
        };
        let told = Arc::new(Notify::new());
        let outbox: Arc<Mailbox<Event>> = Arc::new(Mailbox::new(calling(&told)));
        let mut workers = Vec::new();
        for _ in 0..build.workers {
            let notify = Arc::new(Notify::new());
            let host_world = HostWorld {
                host,
                world: world.clone(),
                net: net.clone(),
                disk: disk.clone(),
                notify: notify.clone(),
                sockets: Vec::new(),
            };
            let queue = Simulated::new(host_world, calling(&notify));
            let inbox: Arc<Mailbox<Command>> = Arc::new(Mailbox::new(queue.waker()));
            let stats = Arc::new(WorkerStats::default());
            let worker = Worker::new(queue, arena.clone(), inbox.clone(), outbox.clone(), stats.clone());
            set.spawn_local(drive_worker(worker, world.clone(), notify));
            workers.push(WorkerHandle { inbox, stats });
        }
        let (jobs, more) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
        set.spawn_local(run_jobs(host, jobs.clone(), more.clone(), world.clone()));
        let pool = Pool::simulated(Arc::new(move |job| {
            jobs.lock().unwrap().push(job);
            more.notify_one();
        }));
        let (stop, stopping) = watch::channel(false);
        let config = EngineConfig {
            workers: Some(build.workers),
            cpus: None,
            arena_bytes: build.slots * slot,
            block: build.block,
            engine: Default::default(),
            data_listen: None,
            advertise: Vec::new(),
            agent: longhaul::ids::AgentId([host as u8 + 1; 16]),
            retry_for: Duration::from_secs(180),
            profiles: Default::default(),
            marking: Default::default(),
            synthetic: Default::default(),
        };
        let network = HostNetwork { host, world: world.clone(), net: net.clone(), directory: directory.clone() };
        let ctx = Ctx::simulated(Parts {
            config,
            pool,
            workers,
            arena,
            probes: probes.clone(),
            network: Rc::new(network),
            stopping,
        });
        let (listen, mut incoming) = mpsc::unbounded_channel();
        *directory.listening[host].borrow_mut() = Some(listen);
        *directory.contexts[host].borrow_mut() = Some(ctx.clone());
        let events = ctx.clone();
        set.spawn_local(async move {
            loop {
                told.notified().await;
                events.hand_on_all(&outbox);
            }
        });
        let accepting = ctx.clone();
        set.spawn_local(async move {
            while let Some(end) = incoming.recv().await {
                let conn = Conn::Simulated(Box::new(end));
                let ctx = accepting.clone();
                tokio::task::spawn_local(async move {
                    // Nobody needs its place.
                    let (_stays, leave) = tokio::sync::oneshot::channel();
                    session::accept(ctx, conn, address(1 - host), leave).await;
                });
            }
        });
        Self { set, ctx, _stop: stop }
    }

    /// Where this host gets tickets of the other for `grant`.
    pub fn tickets(
        &self,
        host: usize,
        net: &Rc<Net>,
        directory: &Rc<Directory>,
        grant: Grant,
    ) -> Arc<dyn TicketSource> {
        let (ask, mut asked) = mpsc::unbounded_channel::<Asked>();
        let (net, directory, ahead) = (net.clone(), directory.clone(), net.dials_ahead());
        self.set.spawn_local(async move {
            while let Some(reply) = asked.recv().await {
                tokio::time::sleep(net.connect_time() * if ahead { 3 } else { 1 }).await;
                let other = directory.contexts[1 - host].borrow().clone();
                let _ = reply.send(match other {
                    None => Err(TransferError::new(Class::Reconnect, "the agent does not answer")),
                    Some(ctx) => {
                        ctx.tickets.borrow_mut().issue(grant.clone(), ctx.config.agent, vec![address(1 - host)])
                    }
                });
            }
        });
        let known = ahead.then(|| DataPort { addr: address(1 - host), rtt_us: 10_000 });
        Arc::new(Tickets(ask, known))
    }
}

impl Directory {
    /// A host is down.
    pub fn gone(&self, host: usize) {
        *self.contexts[host].borrow_mut() = None;
        *self.listening[host].borrow_mut() = None;
    }
}
