//! The data streams of a session: given to workers, lost, dialled again, summed up.

use super::conn::Parked;
use super::connections::Connections;
use super::coordinator::Ctx;
use super::dialler::REDIAL_FIRST;
use super::fireflies::Fireflies;
use super::session::{Joined, StreamSource, tune};
use super::worker::{Attach, Command, Event, Extra, Fault, Packer, SessionKey, StreamKey, StreamStats, now_ns};
use crate::clock;
use crate::ids::{SessionId, StreamIndex};
use crate::net::SocketOptions;
use crate::profile::Collector;
use crate::sys::SendPath;
use crate::wire::control::{Control, Message};
use crate::wire::views::SenderView;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A stream that goes down sooner than this, without a byte of payload, was never really there. Above a lost packet's
/// retransmission, below every deadline.
const FLAP: Duration = Duration::from_secs(10);

/// One stream of a session at a worker.
#[derive(Debug)]
pub struct Live {
    /// Which stream of the session.
    pub index: StreamIndex,
    attempt: u32,
    /// Counters.
    pub stats: Arc<StreamStats>,
    /// A second handle of the socket, by which it can be cut.
    pub socket: Parked,
    worker: usize,
    since: Instant,
}

impl Live {
    /// Whether it has brought or sent payload, or has at least not gone down again at once.
    pub fn is_proven(&self) -> bool {
        self.stats.payload.load(Ordering::Relaxed) > 0 || clock::since(self.since) > FLAP
    }
}

/// The data streams of a session.
pub struct Links {
    ctx: Rc<Ctx>,
    /// The session's key towards the workers.
    pub session: SessionKey,
    id: SessionId,
    /// Streams alive.
    pub live: BTreeMap<StreamKey, Live>,
    /// Streams that died, in all.
    pub lost: u64,
    /// Payload and wasted bytes, waits of streams that are gone.
    pub gone: Totals,
    source: StreamSource,
    /// Streams in use: those of higher numbers are let go.
    wanted: Rc<Cell<u16>>,
    block: u32,
    extra: Extra,
    packer: Option<Arc<dyn Packer>>,
    events: mpsc::UnboundedSender<Event>,
    options: SocketOptions,
    /// Bytes per second of a stream by somebody's wish.
    paced: Option<u64>,
    /// What congestion control was asked for at first, and which one that was, once the tuner has changed it.
    first: Option<(Vec<String>, String)>,
    near: bool,
    /// What options were clamped, each said once.
    pub notes: Vec<String>,
    /// How streams that are gone sent their blocks.
    gone_paths: Vec<SendPath>,
    /// What the kernel said of streams that are gone, and the round trips on the way.
    tcp: Connections,
    /// Where collectors are told of the streams.
    fireflies: Option<Fireflies>,
    /// Takes the payload bytes of all streams when this is dropped.
    pub tally: Option<Rc<Cell<u64>>>,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Links({} of {})", self.live.len(), self.id)
    }
}

/// Sums over streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Payload bytes.
    pub payload: u64,
    /// Bytes received in vain.
    pub wasted: u64,
    /// ns.
    pub send_wait: u64,
    /// ns.
    pub disk_wait: u64,
    /// ns.
    pub idle: u64,
}

impl Totals {
    fn add(&mut self, stats: &StreamStats) {
        let now = now_ns();
        self.payload += stats.payload.load(Ordering::Relaxed);
        self.wasted += stats.wasted.load(Ordering::Relaxed);
        self.send_wait += stats.send_wait.ns(now);
        self.disk_wait += stats.disk_wait.ns(now);
        self.idle += stats.idle.ns(now);
    }
}

/// What a [`Links`] is made with.
#[derive(Debug)]
pub struct LinksConfig {
    /// How further streams come.
    pub source: StreamSource,
    /// The session.
    pub id: SessionId,
    /// Largest block.
    pub block: u32,
    /// Checksums at a destination.
    pub extra: Extra,
    /// Socket options of every data stream.
    pub options: SocketOptions,
    /// Who is told of them, if they are tagged.
    pub collectors: Vec<Collector>,
    /// Below [`NEAR_RTT_US`](super::session::NEAR_RTT_US).
    pub near: bool,
}

impl Links {
    /// No streams yet; events of the streams go to `events`. A source gives its packer.
    pub fn new(
        ctx: Rc<Ctx>,
        config: LinksConfig,
        packer: Option<Arc<dyn Packer>>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let session = ctx.next_key();
        let LinksConfig { source, id, block, extra, options, collectors, near } = config;
        let fireflies = Fireflies::new(&ctx, options.scitag, &collectors);
        let wanted = match &source {
            StreamSource::Dial(dialler) => dialler.wanted.clone(),
            StreamSource::Accept => Rc::default(),
        };
        Self {
            ctx,
            session,
            id,
            live: BTreeMap::new(),
            lost: 0,
            gone: Totals::default(),
            source,
            wanted,
            block,
            extra,
            packer,
            events,
            paced: options.pacing_bytes_per_sec,
            first: None,
            options,
            near,
            notes: Vec::new(),
            gone_paths: Vec::new(),
            tcp: Connections::default(),
            fireflies,
            tally: None,
        }
    }

    /// From now on there are to be streams 1 to `count`: dials what is missing, if this end dials, and lets it in, if not.
    /// Those of higher numbers go on until the destination ends them.
    pub fn want(&mut self, count: u16) {
        self.wanted.set(count);
        self.ctx.let_streams_in(self.id, count);
        if let StreamSource::Dial(dialler) = &mut self.source {
            let there = self.live.values().map(|live| live.index).collect();
            dialler.want(&self.ctx, count, &there, &self.options);
        }
    }

    /// Whether there are more streams than are wanted, and this is one of them.
    pub fn is_surplus(&self, stream: StreamKey) -> bool {
        self.live.get(&stream).is_some_and(|live| live.index.0 > self.wanted.get())
    }

    /// The congestion control of every stream, those to come included; `None`: what it was at first.
    pub fn control(&mut self, control: Option<Control>) {
        let name = match (control, &self.first) {
            (None, None) => return,
            (None, Some((options, name))) => {
                self.options.congestion = options.clone();
                name.clone()
            }
            (Some(control), first) => {
                if first.is_none() {
                    let name = self.live.values().next().map(|live| live.socket.congestion()).unwrap_or_default();
                    self.first = Some((self.options.congestion.clone(), name));
                }
                self.options.congestion = vec![control.name().to_owned()];
                control.name().to_owned()
            }
        };
        let notes: Vec<String> = self.live.values().filter_map(|live| live.socket.control(&name)).collect();
        notes.into_iter().for_each(|note| self.note(note));
    }

    /// Caps the rate of every stream, those to come included, bytes per second; `None`: no cap. `set`: the cap that somebody
    /// has set, which is what the limiter is to know.
    pub fn pace(&mut self, bytes_per_sec: Option<u64>, set: Option<u64>) {
        self.paced = set;
        if self.options.pacing_bytes_per_sec == bytes_per_sec {
            return;
        }
        self.options.pacing_bytes_per_sec = bytes_per_sec;
        let notes: Vec<String> = self.live.values().filter_map(|live| live.socket.pace(bytes_per_sec)).collect();
        notes.into_iter().for_each(|note| self.note(note));
    }

    /// Streams that have something to send; `None` as long as nothing was sent.
    pub fn busy(&self) -> Option<u16> {
        (self.totals().payload > 0).then(|| {
            let busy = self.live.values().filter(|live| !live.stats.idle.is_on());
            busy.count().min(u16::MAX.into()) as u16
        })
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn dial(&mut self, index: StreamIndex, first_pause: Duration) {
        if let StreamSource::Dial(dialler) = &mut self.source {
            dialler.dial(&self.ctx, index, first_pause, &self.options);
        }
    }

    /// Gives a connected stream to a worker.
    pub fn attach(&mut self, joined: Joined) -> std::io::Result<StreamKey> {
        let Joined { index, attempt, socket, opener, sealer, notes } = joined;
        if let StreamSource::Dial(dialler) = &self.source {
            dialler.attached(index);
        }
        let notes = notes.into_iter().chain(tune(&socket, &self.options, self.near));
        notes.for_each(|note| self.note(note));
        let accepted = self.packer.is_some() && matches!(self.source, StreamSource::Accept);
        if let Some(tag) = self.options.scitag.filter(|_| accepted)
            && let Some(note) = socket.unlabelled(tag, self.ctx.accepts_as)
        {
            self.note(note);
        }
        let stats = Arc::new(StreamStats::default());
        stats.last_progress.store(now_ns(), Ordering::Relaxed);
        let spare = socket.try_clone()?;
        let stream = self.ctx.next_key();
        let worker = self.ctx.route(stream, self.events.clone());
        let attach = Box::new(Attach {
            stream,
            session: self.session,
            socket: socket.into_descriptor()?,
            opener,
            sealer,
            block: self.block,
            stats: stats.clone(),
            extra: self.extra,
            packer: self.packer.clone(),
        });
        let command =
            if self.packer.is_some() { Command::AttachSource(attach) } else { Command::AttachDestination(attach) };
        self.ctx.workers[worker].inbox.send(command);
        if let Some(fireflies) = &mut self.fireflies {
            fireflies.up(stream, &spare);
        }
        self.live.insert(stream, Live { index, attempt, stats, socket: spare, worker, since: clock::now() });
        Ok(stream)
    }

    /// Sends a command to the worker of a stream.
    pub fn command(&self, stream: StreamKey, command: Command) {
        if let Some(live) = self.live.get(&stream) {
            self.ctx.workers[live.worker].inbox.send(command);
        }
    }

    /// Takes note of a dead stream and dials it again where this end dials; where the peer does, returns what is to be
    /// told to it.
    pub fn dead(&mut self, stream: StreamKey, why: &Fault) -> Option<Message> {
        self.ctx.unroute(stream);
        let live = self.live.remove(&stream)?;
        if let Some(fireflies) = &mut self.fireflies {
            fireflies.down(stream, &live.socket);
        }
        self.gone.add(&live.stats);
        self.tcp.add(&live.socket);
        self.gone_paths.push(live.stats.send_path.get());
        self.gone_paths.dedup();
        // Of those that are too many the destination has let go; nothing is lost.
        if live.index.0 > self.wanted.get() {
            return None;
        }
        // It was let go, and is wanted again meanwhile.
        if matches!(why, Fault::Detached) {
            self.dial(live.index, Duration::ZERO);
            return None;
        }
        self.lost += 1;
        tracing::info!(session = %self.id, stream = live.index.0, %why, "data stream lost");
        self.dial(live.index, REDIAL_FIRST);
        let accepts = matches!(self.source, StreamSource::Accept);
        accepts.then_some(Message::Lost { stream: live.index, attempt: live.attempt })
    }

    /// The peer has lost a stream that may look well from here.
    pub fn lost_at_peer(&self, index: StreamIndex, attempt: u32) {
        self.live
            .values()
            .filter(|live| (live.index, live.attempt) == (index, attempt))
            .for_each(|live| live.socket.cut());
    }

    /// Cuts a stream that hangs: its worker notices, and it is dialled again like any that was lost.
    pub fn cut(&self, stream: StreamKey) {
        if let Some(live) = self.live.get(&stream) {
            live.socket.cut();
        }
    }

    /// Sums over live and dead streams.
    pub fn totals(&self) -> Totals {
        let mut totals = self.gone;
        self.live.values().for_each(|live| totals.add(&live.stats));
        totals
    }

    /// Looks at the round trips as they are now, for the mean that [`Links::sender`] tells.
    pub fn look(&mut self) {
        let Self { tcp, live, .. } = self;
        tcp.look(clock::now(), live.values().map(|live| (&live.socket, live.stats.send_wait.is_on())));
    }

    /// Tells collectors of streams that go on, where it is time to.
    pub fn tell_flows(&mut self) {
        let Some(fireflies) = &mut self.fireflies else { return };
        for stream in fireflies.due() {
            if let Some(live) = self.live.get(&stream) {
                fireflies.on(stream, &live.socket);
            }
        }
        if let Some(note) = fireflies.note() {
            self.note(note);
        }
    }

    /// What the kernel says of the connections, those that are gone included.
    pub fn sender(&self) -> SenderView {
        let mut all = self.tcp.clone();
        self.live.values().for_each(|live| all.add(&live.socket));
        all.view(self.paced())
    }

    fn paced(&self) -> u64 {
        self.paced.map_or(0, |bytes| bytes.saturating_mul(8))
    }

    /// The same, with the longest round trip since this was asked last in place of the mean.
    pub fn sample(&mut self) -> SenderView {
        let rtt_us = self.tcp.longest();
        SenderView { rtt_us, ..self.sender() }
    }

    /// How blocks were sent, each way named once.
    pub fn send_paths(&self) -> Vec<SendPath> {
        let live = self.live.values().map(|live| live.stats.send_path.get());
        let mut paths: Vec<SendPath> = live.chain(self.gone_paths.iter().copied()).collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// Closes all streams; none is dialled any more.
    pub fn close(&mut self) {
        self.wanted.set(0);
        for (stream, live) in &self.live {
            self.ctx.workers[live.worker].inbox.send(Command::Detach(*stream));
        }
    }

    /// Tells every worker.
    pub fn broadcast(&self, command: impl Fn() -> Command) {
        self.ctx.workers.iter().for_each(|worker| worker.inbox.send(command()));
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        if let Some(tally) = &self.tally {
            tally.set(tally.get() + self.totals().payload);
        }
        if let Some(fireflies) = &mut self.fireflies {
            self.live.iter().for_each(|(stream, live)| fireflies.down(*stream, &live.socket));
        }
        self.close();
        for stream in self.live.keys() {
            self.ctx.unroute(*stream);
        }
        self.broadcast(|| Command::SessionEnd(self.session));
        self.ctx.end_session(self.id);
    }
}
