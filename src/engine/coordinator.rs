//! The coordinator's thread: everything that is per session or per batch. It runs on tokio-uring, whose runtime carries
//! tokio's sockets and timers too; where io_uring is refused it runs on tokio alone, and the facts say so.

#[cfg(feature = "testing")]
pub mod simulated;
mod start;
mod tickets;

pub use tickets::Tickets;

use super::commit::CommitIo;
use super::conn::Conn;
use super::cpus::Bound;
use super::crowd::Crowd;
use super::error::{Class, TransferError};
use super::fence::Fences;
use super::handle::{EngineConfig, TransferStatus, TransferWatch};
use super::pool::Pool;
use super::session::{self, Joinable, Opened};
use super::spec::{
    Access, DestinationSpec, EngineChoice, Grant, MOVING, Priority, Report, Snapshot, SourceSpec, Steer,
};
use super::worker::mailbox::Mailbox;
use super::worker::{Command, Event, StreamKey, WorkerStats};
use super::{destination, handle::Request, probe, source};

use crate::clock;
use crate::disk::{ProbeCache, Resolver};
use crate::ids::{SessionId, TransferId};
use crate::limits::{MAX_SESSIONS, MAX_STREAMS};
use crate::profile::SciTag;
use crate::sys::{Arena, ArenaConfig, EngineFacts, WakeSource};
use crate::wire::handshake::Refusal;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// Ended transfers that stay in the list.
const ENDED_KEPT: usize = 100;
/// Pool threads: creation of small files and read-back profit from a few more than there are cores.
const POOL_THREADS: usize = 8;

/// A worker as the coordinator sees it.
#[derive(Debug)]
pub struct WorkerHandle {
    /// Its box.
    pub inbox: Arc<Mailbox<Command>>,
    /// Its counters.
    pub stats: Arc<WorkerStats>,
}

/// What all tasks of the coordinator share. One thread, so plain cells.
pub struct Ctx {
    /// As started.
    pub config: EngineConfig,
    /// Blocking calls.
    pub pool: Pool,
    /// The workers.
    pub workers: Vec<WorkerHandle>,
    /// Block buffers.
    pub arena: Arc<Arena>,
    /// What was probed of file systems.
    pub probes: Arc<ProbeCache>,
    /// The workers' queue.
    pub engine: EngineFacts,
    /// Where the threads run.
    pub bound: Bound,
    /// How group commits reach the disk.
    pub commit: CommitIo,
    /// Tickets not yet used.
    pub tickets: RefCell<Tickets>,
    /// Sessions that accept streams.
    pub sessions: RefCell<HashMap<SessionId, Joinable>>,
    /// Sessions that wait for their dialer's last word; streams that come sooner wait with them.
    pub opening: RefCell<HashMap<SessionId, watch::Sender<()>>>,
    /// Whom we, as a source, do not answer any more.
    pub fences: RefCell<Fences>,
    /// Set when the engine stops.
    pub stopping: watch::Receiver<bool>,
    /// The tag that the packets of accepted streams bear.
    pub accepts_as: Option<SciTag>,
    routes: RefCell<HashMap<StreamKey, mpsc::UnboundedSender<Event>>>,
    keys: Cell<u64>,
    transfers: RefCell<Vec<Rc<Entry>>>,
    ended: broadcast::Sender<TransferStatus>,
    unauthenticated: RefCell<Crowd>,
    /// Where connections come from, if not from the kernel.
    #[cfg(feature = "testing")]
    pub network: Option<Rc<dyn simulated::Network>>,
}

impl std::fmt::Debug for Ctx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ctx")
    }
}

/// One transfer in the list.
#[derive(Debug)]
pub struct Entry {
    /// What is told of it.
    pub status: RefCell<TransferStatus>,
    /// Its progress.
    pub snapshot: watch::Sender<Snapshot>,
    /// Its end on request.
    pub cancel: Arc<watch::Sender<bool>>,
    /// What was asked for since it began.
    pub steer: Arc<watch::Sender<Steer>>,
    /// What the other end has made of it, for a next session: at a source.
    pub told: Cell<Steer>,
}

impl Entry {
    /// As it is by now.
    pub fn priority(&self) -> Priority {
        self.steer.borrow().priority.unwrap_or_default()
    }

    fn is_moving(&self) -> bool {
        self.snapshot.borrow().phase == MOVING
    }
}

impl Ctx {
    /// Fallbacks in use, for reports: nothing is silent.
    pub fn fallbacks(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.engine.engine != "io_uring" && self.config.engine != EngineChoice::Epoll {
            notes.push(format!("io_uring is not to be had ({}): epoll serves", self.engine.refused.join("; ")));
        }
        if let CommitIo::Pool(why) = &self.commit
            && self.config.engine != EngineChoice::Epoll
        {
            notes.push(format!("the coordinator runs without tokio-uring ({why})"));
        }
        if Resolver::probed() == Resolver::Walk {
            notes.push("openat2 is refused here: paths are opened component by component".to_owned());
        }
        notes.extend_from_slice(self.bound.notes());
        notes
    }

    /// The CPUs that the threads keep to, for reports; empty when they keep to none.
    pub fn cpus(&self) -> String {
        self.bound.describe(self.workers.len())
    }

    /// A number never used before in this process.
    pub fn next_key(&self) -> u64 {
        self.keys.set(self.keys.get() + 1);
        self.keys.get()
    }

    /// Chooses a worker for a stream and sends the stream's events to `events`.
    pub fn route(&self, stream: StreamKey, events: mpsc::UnboundedSender<Event>) -> usize {
        let mut routes = self.routes.borrow_mut();
        routes.insert(stream, events);
        (stream % self.workers.len() as u64) as usize
    }

    /// Forgets a stream's events.
    pub fn unroute(&self, stream: StreamKey) {
        self.routes.borrow_mut().remove(&stream);
    }

    /// A session whose peer dials takes streams up to this number from now on.
    pub fn let_streams_in(&self, id: SessionId, streams: u16) {
        if let Some(session) = self.sessions.borrow_mut().get_mut(&id) {
            session.streams = streams.min(self.streams_max());
        }
    }

    /// A session takes no more streams.
    pub fn end_session(&self, id: SessionId) {
        self.sessions.borrow_mut().remove(&id);
    }

    /// Gives a worker's event to its session.
    fn hand_on(&self, event: Event) {
        if let Some(route) = self.routes.borrow().get(&event.stream()) {
            let _ = route.send(event); // a session that has ended does not care
        }
    }

    /// Data streams that fit the arena: each may hold a few slots.
    pub fn streams_max(&self) -> u16 {
        ((self.arena.slots() / 4) as u16).clamp(1, MAX_STREAMS)
    }

    /// Changes running transfers of that id. Whether there was one.
    fn steer(&self, id: TransferId, steer: Steer) -> bool {
        let transfers = self.transfers.borrow();
        let running = |entry: &&Rc<Entry>| {
            let status = entry.status.borrow();
            status.report.is_none() && status.transfer == Some(id)
        };
        let found: Vec<_> = transfers.iter().filter(running).collect();
        found.iter().for_each(|entry| entry.steer.send_modify(|all| all.merge(&steer)));
        !found.is_empty()
    }

    /// By how many steps of priority a transfer gives way to others of its role that move.
    pub fn yields(&self, own: &Rc<Entry>) -> u8 {
        let role = own.status.borrow().role;
        let transfers = self.transfers.borrow();
        let moves = |entry: &&Rc<Entry>| {
            let status = entry.status.borrow();
            !Rc::ptr_eq(entry, own) && status.report.is_none() && status.role == role && entry.is_moving()
        };
        let priority = own.priority();
        transfers.iter().filter(moves).map(|entry| priority.below(entry.priority())).max().unwrap_or(0)
    }

    /// Whether one more session may begin.
    pub fn room_for_session(&self) -> Result<(), Refusal> {
        if *self.stopping.borrow() {
            return Err(Refusal::Stopping);
        }
        if self.sessions.borrow().len() >= MAX_SESSIONS { Err(Refusal::Busy) } else { Ok(()) }
    }

    /// Lists a new transfer.
    pub fn list(&self, principal: &str, role: &'static str, path: String) -> Rc<Entry> {
        let (snapshot, _) = watch::channel(Snapshot::default());
        let (cancel, _) = watch::channel(false);
        let (steer, _) = watch::channel(Steer::default());
        let status = TransferStatus {
            transfer: None,
            principal: principal.to_owned(),
            role,
            peer: None,
            local: None,
            path,
            snapshot: Snapshot::default(),
            report: None,
        };
        let (cancel, steer) = (Arc::new(cancel), Arc::new(steer));
        let entry = Rc::new(Entry { status: RefCell::new(status), snapshot, cancel, steer, told: Cell::default() });
        let mut transfers = self.transfers.borrow_mut();
        let ended = transfers.iter().filter(|t| t.status.borrow().report.is_some()).count();
        if ended > ENDED_KEPT
            && let Some(at) = transfers.iter().position(|t| t.status.borrow().report.is_some())
        {
            transfers.remove(at);
        }
        transfers.push(entry.clone());
        entry
    }

    /// A transfer has ended: the log hears of it.
    pub fn end(&self, entry: &Entry, report: &Report) {
        let mut status = entry.status.borrow_mut();
        status.transfer = report.transfer.or(status.transfer);
        status.snapshot = entry.snapshot.borrow().clone();
        status.report = Some(report.clone());
        let _ = self.ended.send(status.clone()); // nobody listening is fine
    }

    /// An accepted session begins.
    pub fn serve(self: &Rc<Self>, grant: Grant, opened: Opened) {
        let ctx = self.clone();
        match grant.access {
            Access::Read(spec) => {
                let entry = self.list(&grant.principal, "source", source::describe(&spec));
                (entry.status.borrow_mut().peer, entry.status.borrow_mut().local) =
                    (Some(opened.peer), Some(opened.local));
                tokio::task::spawn_local(async move {
                    let report = source::serve(&ctx, spec, opened, &entry).await;
                    ctx.end(&entry, &report);
                });
            }
            Access::Write(spec) => {
                let entry = self.list(&grant.principal, "destination", destination::describe(&spec));
                (entry.status.borrow_mut().peer, entry.status.borrow_mut().local) =
                    (Some(opened.peer), Some(opened.local));
                tokio::task::spawn_local(async move {
                    let report = destination::receive(&ctx, spec, opened, &entry).await;
                    ctx.end(&entry, &report);
                });
            }
            Access::Probe(spec) => {
                let role = if spec.agent_sends { "source" } else { "destination" };
                let entry = self.list(&grant.principal, role, "(a probe of the path)".to_owned());
                (entry.status.borrow_mut().peer, entry.status.borrow_mut().local) =
                    (Some(opened.peer), Some(opened.local));
                tokio::task::spawn_local(async move {
                    let began = clock::now();
                    let outcome = probe::serve(&ctx, &spec, opened).await;
                    ctx.end(&entry, &probe::report(outcome, began));
                });
            }
        }
    }
}

/// What the starting thread learns.
pub struct Started {
    /// Where the data port listens.
    pub data: Option<SocketAddr>,
    /// Probed facts.
    pub facts: Vec<(String, String)>,
}

/// The coordinator's thread, until the last handle is gone or it is told to stop.
pub fn run(
    config: EngineConfig,
    requests: mpsc::UnboundedReceiver<Request>,
    ended: broadcast::Sender<TransferStatus>,
    started: std::sync::mpsc::Sender<Result<Started, TransferError>>,
) {
    let uring = config.engine != EngineChoice::Epoll;
    let probe = if uring { probe_tokio_uring() } else { Err("not asked for".to_owned()) };
    let main = |commit: CommitIo| main(config, requests, ended, started, commit);
    match probe {
        Ok(()) => tokio_uring::start(main(CommitIo::Uring)),
        Err(why) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, main(CommitIo::Pool(why))),
                Err(error) => tracing::error!(%error, "no runtime"),
            }
        }
    }
}

/// tokio-uring panics where a ring is refused, so the ring is tried first.
fn probe_tokio_uring() -> Result<(), String> {
    crate::sys::probe_ring(8).map_err(|error| format!("io_uring_setup: {error}"))
}

async fn main(
    config: EngineConfig,
    mut requests: mpsc::UnboundedReceiver<Request>,
    ended: broadcast::Sender<TransferStatus>,
    started: std::sync::mpsc::Sender<Result<Started, TransferError>>,
    commit: CommitIo,
) {
    let (stop, stopping) = watch::channel(false);
    let set_up = set_up(config, ended, commit, stopping);
    let (ctx, listener, events) = match set_up {
        Ok(parts) => parts,
        Err(error) => return drop(started.send(Err(error))),
    };
    let mut data = listener.as_ref().and_then(|l| l.local_addr().ok());
    let _ = started.send(Ok(Started { data, facts: facts(&ctx) }));
    tokio::task::spawn_local(pump_events(ctx.clone(), events));
    if let Some(listener) = listener {
        tokio::task::spawn_local(accept_all(ctx.clone(), listener));
    }
    while let Some(request) = requests.recv().await {
        match request {
            Request::Issue(grant, reply) => {
                let addresses = match (ctx.config.advertise.is_empty(), data) {
                    (false, _) => ctx.config.advertise.clone(),
                    (true, Some(addr)) => vec![addr],
                    (true, None) => Vec::new(),
                };
                let _ = reply.send(ctx.tickets.borrow_mut().issue(grant, ctx.config.agent, addresses));
            }
            Request::Pull { principal, to, from, reply } => {
                let entry = ctx.list(&principal, "destination", destination::describe(&to));
                let (watch, done) = watch_of(&entry);
                let ctx = ctx.clone();
                tokio::task::spawn_local(async move {
                    let report = destination::pull(&ctx, to, from, &entry).await;
                    ctx.end(&entry, &report);
                    let _ = done.send(report);
                });
                let _ = reply.send(Ok(watch));
            }
            Request::Push { principal, from, to, options, reply } => {
                let entry = ctx.list(&principal, "source", source::describe(&from));
                let (watch, done) = watch_of(&entry);
                let ctx = ctx.clone();
                tokio::task::spawn_local(async move {
                    let report = source::push(&ctx, from, to, options, &entry).await;
                    ctx.end(&entry, &report);
                    let _ = done.send(report);
                });
                let _ = reply.send(Ok(watch));
            }
            Request::Local { from, to, reply } => {
                let entry = ctx.list("local", "destination", destination::describe(&to));
                let (watch, done) = watch_of(&entry);
                let _ = reply.send(Ok(watch));
                // A client does not listen until it copies to itself.
                let addr = match data.map_or_else(|| listen_local(&ctx), Ok) {
                    Ok(addr) => addr,
                    Err(error) => {
                        let report = destination::failed_report(&error);
                        ctx.end(&entry, &report);
                        let _ = done.send(report);
                        continue;
                    }
                };
                data = Some(addr);
                let ctx = ctx.clone();
                tokio::task::spawn_local(async move {
                    let report = local(&ctx, from, to, addr, &entry).await;
                    ctx.end(&entry, &report);
                    let _ = done.send(report);
                });
            }
            Request::Probe { spec, from, reply } => {
                let ctx = ctx.clone();
                tokio::task::spawn_local(async move {
                    let _ = reply.send(probe::trial(&ctx, &spec, &*from).await);
                });
            }
            Request::Transfers(reply) => {
                let list = ctx.transfers.borrow();
                let status = |entry: &Rc<Entry>| {
                    let mut status = entry.status.borrow().clone();
                    status.snapshot = entry.snapshot.borrow().clone();
                    status
                };
                let _ = reply.send(list.iter().map(status).collect());
            }
            Request::Steer(id, steer, reply) => drop(reply.send(ctx.steer(id, steer))),
            Request::Shutdown(within, reply) => {
                let _ = stop.send(true);
                shutdown(&ctx, within).await;
                let _ = reply.send(());
                return;
            }
        }
    }
    // The last handle is gone.
    let _ = stop.send(true);
    shutdown(&ctx, Duration::from_secs(5)).await;
}

fn watch_of(entry: &Entry) -> (TransferWatch, tokio::sync::oneshot::Sender<Report>) {
    let (done, answer) = tokio::sync::oneshot::channel();
    let (cancel, steer) = (entry.cancel.clone(), entry.steer.clone());
    (TransferWatch { snapshot: entry.snapshot.subscribe(), done: answer, cancel, steer }, done)
}

/// Both ends here: a ticket of our own, redeemed by ourselves over loopback.
async fn local(
    ctx: &Rc<Ctx>,
    mut from: SourceSpec,
    mut to: DestinationSpec,
    addr: SocketAddr,
    entry: &Rc<Entry>,
) -> Report {
    // Bytes that never leave the process gain nothing from being sealed.
    if to.options.encrypt != Some(true) {
        (from.encrypt, to.options.encrypt) = (Some(false), Some(false));
    }
    let mut target = addr;
    if target.ip().is_unspecified() {
        target.set_ip(if target.is_ipv6() {
            std::net::Ipv6Addr::LOCALHOST.into()
        } else {
            std::net::Ipv4Addr::LOCALHOST.into()
        });
    }
    let grant = Grant { principal: "local".to_owned(), access: Access::Read(from), ttl_secs: 60 };
    let issued = ctx.tickets.borrow_mut().issue(grant, ctx.config.agent, vec![target]);
    match issued {
        Ok(ticket) => destination::pull_with(ctx, to, ticket, entry).await,
        Err(error) => destination::failed_report(&error),
    }
}

async fn shutdown(ctx: &Rc<Ctx>, within: Duration) {
    // Sessions watch `stopping`: destinations commit what they have, then end.
    let all_ended = async {
        loop {
            let running = ctx.transfers.borrow().iter().filter(|t| t.status.borrow().report.is_none()).count();
            if running == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let _ = tokio::time::timeout(within, all_ended).await;
    ctx.workers.iter().for_each(|worker| worker.inbox.send(Command::Stop));
}

type Parts = (Rc<Ctx>, Option<TcpListener>, (WakeSource, Arc<Mailbox<Event>>));

fn set_up(
    config: EngineConfig,
    ended: broadcast::Sender<TransferStatus>,
    commit: CommitIo,
    stopping: watch::Receiver<bool>,
) -> Result<Parts, TransferError> {
    let failed = |what: &'static str| {
        move |error: std::io::Error| TransferError::new(Class::Permanent, format!("{what}: {error}"))
    };
    super::pool::raise_descriptor_limit();
    let mut bound = Bound::calling_thread(config.cpus.as_ref(), matches!(commit, CommitIo::Uring));
    let arena = ArenaConfig { bytes: config.arena_bytes, block: config.block, explicit_huge_pages: false };
    let arena = Arena::new(arena).map_err(failed("no memory for block buffers; lower --memory"))?;
    bound.place(&arena);
    let wake = WakeSource::new().map_err(failed("no eventfd"))?;
    let outbox = Arc::new(Mailbox::new(wake.waker()));
    let (workers, engine) = start::start_workers(&config, &arena, &outbox, &bound)?;
    let pool = Pool::start("pool", POOL_THREADS).map_err(failed("no threads for the pool"))?;
    let listener = config.data_listen.map(|addr| listen(addr, config.marking.scitag)).transpose()?;
    let accepts_as = config.marking.scitag.filter(|_| listener.as_ref().is_some_and(|(_, labelled)| *labelled));
    let listener = listener.map(|(listener, _)| listener);
    let ctx = Rc::new(Ctx {
        config,
        pool,
        workers,
        arena,
        probes: Arc::new(ProbeCache::default()),
        engine,
        bound,
        commit,
        tickets: RefCell::default(),
        sessions: RefCell::default(),
        opening: RefCell::default(),
        fences: RefCell::default(),
        stopping,
        accepts_as,
        routes: RefCell::default(),
        keys: Cell::new(0),
        transfers: RefCell::default(),
        ended,
        unauthenticated: RefCell::default(),
        #[cfg(feature = "testing")]
        network: None,
    });
    Ok((ctx, listener, (wake, outbox)))
}

/// The data port, and whether what it accepts bears the tag.
fn listen(addr: SocketAddr, tag: Option<SciTag>) -> Result<(TcpListener, bool), TransferError> {
    let denied = |what: String| TransferError::new(Class::Permanent, what).at(addr);
    let listener = crate::net::listen_labelled(addr, tag).map_err(|error| denied(error.to_string()))?;
    if let (Some(tag), Some(why)) = (tag, &listener.unlabelled) {
        tracing::warn!(%addr, %why, "accepted streams do not bear the SciTag {tag}");
    }
    let labelled = tag.is_some() && listener.unlabelled.is_none();
    let listener = listener.socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener.socket));
    listener.map(|listener| (listener, labelled)).map_err(|error| denied(error.to_string()))
}

/// A data port for this host alone.
fn listen_local(ctx: &Rc<Ctx>) -> Result<SocketAddr, TransferError> {
    let (listener, _) = listen(SocketAddr::from(([127, 0, 0, 1], 0)), None)?;
    let addr = listener.local_addr().map_err(|error| TransferError::new(Class::Permanent, error.to_string()))?;
    tokio::task::spawn_local(accept_all(ctx.clone(), listener));
    Ok(addr)
}

fn facts(ctx: &Ctx) -> Vec<(String, String)> {
    let mut facts = vec![
        ("engine".to_owned(), ctx.engine.engine.to_owned()),
        ("engine.features".to_owned(), ctx.engine.features.join(", ")),
    ];
    if !ctx.engine.refused.is_empty() {
        facts.push(("engine.refused".to_owned(), ctx.engine.refused.join("; ")));
    }
    facts.push(("coordinator".to_owned(), ctx.commit.describe()));
    facts.push(("paths".to_owned(), Resolver::probed().word().to_owned()));
    facts.push(("workers".to_owned(), ctx.workers.len().to_string()));
    if ctx.config.cpus.is_some() {
        facts.push((
            "cpus".to_owned(),
            Some(ctx.cpus()).filter(|on| !on.is_empty()).unwrap_or(ctx.bound.notes().join("; ")),
        ));
    }
    facts.push((
        "arena".to_owned(),
        format!("{} slots of {} bytes, {}", ctx.arena.slots(), ctx.arena.block(), ctx.arena.kind().word()),
    ));
    facts
}

/// Hands the workers' events to the sessions.
async fn pump_events(ctx: Rc<Ctx>, (wake, inbox): (WakeSource, Arc<Mailbox<Event>>)) {
    // `register` asks for a promise on behalf of types that change their descriptor; a WakeSource keeps its own for life.
    #[allow(deprecated)]
    let wake = match AsyncFd::new(wake) {
        Ok(wake) => wake,
        Err(error) => {
            tracing::error!(%error, "the coordinator cannot watch its workers");
            std::process::abort();
        }
    };
    loop {
        match wake.readable().await {
            Ok(mut ready) => {
                wake.get_ref().drain();
                ready.clear_ready();
            }
            Err(_) => return,
        }
        while let Some(event) = inbox.take() {
            ctx.hand_on(event);
        }
    }
}

/// The key by which unauthenticated connections are counted: an IPv4 address or an IPv6 /64.
fn source_key(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => {
                let mut octets = v6.octets();
                octets[8..].fill(0);
                IpAddr::from(octets)
            }
        },
        v4 => v4,
    }
}

async fn accept_all(ctx: Rc<Ctx>, listener: TcpListener) {
    let mut stopping = ctx.stopping.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.changed() => return,
        };
        let (socket, peer) = match accepted {
            Ok(done) => done,
            Err(error) => {
                // Out of descriptors, mostly: pause rather than spin.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let key = source_key(peer.ip());
        if ctx.unauthenticated.borrow().is_full(key) {
            // Many came at once: what they have said already is heard before anybody makes room.
            tokio::task::yield_now().await;
        }
        let number = ctx.next_key();
        let (leave, told) = oneshot::channel();
        tokio::task::spawn_local({
            let ctx = ctx.clone();
            async move {
                session::accept(ctx.clone(), Conn::Tcp(socket), peer, told).await;
                ctx.unauthenticated.borrow_mut().leave(key, number);
            }
        });
        if let Some(oldest) = ctx.unauthenticated.borrow_mut().join(key, number, leave) {
            let _ = oldest.send(()); // it may have gone by itself
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_neighbours_count_as_one_and_mapped_addresses_as_ipv4() {
        let key = |text: &str| source_key(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
    }
}
