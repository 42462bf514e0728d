//! A probe of a path: bytes that mean nothing, for a bounded time, over real streams of a real session. One trial has one
//! direction, one number of streams and one congestion control; `cli::probe` plans them.
//!
//! Streams are dialled and authenticated like any other; what goes over them then is noise, and nothing of it reaches a
//! disk. Each has a thread of its own with blocking calls, so that neither workers nor coordinator feel it.

use super::ahead::Ahead;
use super::channel::Channel;
use super::conn::Parked;
use super::connections::Connections;
use super::coordinator::Ctx;
use super::error::{Class, TransferError};
use super::handle::TicketSource;
use super::session::{self, Joined, Opened};
use super::spec::TransferOptions;
use super::tuning::socket_options;
use crate::clock;
use crate::ids::{SessionId, StreamIndex};
use crate::net;
use crate::wire::control::{Message, SourceStats};
use crate::wire::views::{EndView, SenderView, SourceView};
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// The longest trial, ms: a token's holder may keep a path busy for so long with one ticket.
pub const DURATION_MAX_MS: u32 = 15_000;
/// The shortest, ms.
pub const DURATION_MIN_MS: u32 = 100;
/// How often arriving bytes are counted.
pub const SAMPLE: Duration = Duration::from_millis(100);
/// Streams that were agreed on and do not come.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// What is under way when the sender ends has so long to arrive.
const GRACE: Duration = Duration::from_secs(10);
/// How often a blocked thread looks at the clock.
const LOOK: Duration = Duration::from_millis(200);
/// One trial.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeSpec {
    /// Whether the agent sends, or the client does.
    pub agent_sends: bool,
    /// Streams.
    pub streams: u16,
    /// How long bytes are sent, [`DURATION_MIN_MS`] to [`DURATION_MAX_MS`].
    pub duration_ms: u32,
    /// Congestion control and window of the sender; its block is one write, and one read at the other end.
    pub options: TransferOptions,
}

/// What a trial brought.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Streams that took part.
    pub streams: u16,
    /// Congestion control that was in force at the sender.
    pub congestion: String,
    /// Bytes that arrived (or were acknowledged, where the client sends).
    pub bytes: u64,
    /// What had come by when, about every tenth of a second while the sender was sending: µs since the start, bytes since
    /// the sample before.
    pub samples: Vec<(u64, u64)>,
    /// The sender's kernel.
    pub sender: SenderView,
    /// Round trip of the handshake, µs.
    pub rtt_us: u64,
    /// MTU of the route, bytes, as this end's kernel knows it by the end.
    pub mtu: u32,
    /// What was not as asked.
    pub notes: Vec<String>,
    /// CPU time of the agent's process meanwhile, ns; 0: it did not tell.
    #[serde(skip)]
    pub peer_cpu_ns: u64,
    /// The streams one by one, as this end saw them.
    #[serde(skip)]
    pub each: Vec<StreamTrial>,
}

/// One stream of a trial, as this end saw it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamTrial {
    /// This end's address.
    pub local: Option<SocketAddr>,
    /// The agent's.
    pub remote: Option<SocketAddr>,
    /// Send and receive buffer at the start, bytes, as the kernel counts them.
    pub buffers: (u64, u64),
    /// As many as [`Trial::samples`] has, at the same times.
    pub samples: Vec<StreamSample>,
}

/// What one stream did between two samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamSample {
    /// Bytes that arrived, or were acknowledged.
    pub bytes: u64,
    /// Segments that this end sent again.
    pub retransmits: u64,
    /// Congestion window of this end, bytes.
    pub cwnd: u64,
    /// Window that the other end offers, bytes.
    pub window: u64,
    /// Round trip as this end knows it, µs.
    pub rtt_us: u64,
    /// Its deviation, µs.
    pub rttvar_us: u64,
    /// Path MTU, bytes.
    pub mtu: u32,
}

impl Trial {
    /// The rate of its later part, in which it has started: bits per second.
    ///
    /// What waits for a lost segment arrives with it, in a lump that may be a good part of a short trial. So the later part
    /// begins where that makes the rate least, between two and three fifths: just after a lump, not just before.
    pub fn rate(&self) -> u64 {
        let len = self.samples.len();
        let Some((to, _)) = self.samples.last() else { return 0 };
        let rate = |start: usize| {
            let from = start.checked_sub(1).map_or(0, |before| self.samples[before].0);
            let bytes: u64 = self.samples[start..].iter().map(|(_, bytes)| bytes).sum();
            (u128::from(bytes) * 8_000_000 / u128::from(to.saturating_sub(from).max(1))) as u64
        };
        (len * 2 / 5..=(len * 3 / 5).min(len - 1)).map(rate).min().unwrap_or(0)
    }
}

/// A session of a probe ends with this, however it ends.
struct Ended<'a>(&'a Ctx, SessionId);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.end_session(self.1);
    }
}

fn lost(what: impl std::fmt::Display) -> TransferError {
    TransferError::new(Class::Reconnect, format!("the probe was cut off: {what}"))
}

/// An accepted trial, at the agent.
pub async fn serve(ctx: &Rc<Ctx>, spec: &ProbeSpec, opened: Opened) -> Result<(), TransferError> {
    let Opened { id, control, streams, mut joining, .. } = opened;
    let _ended = Ended(ctx, id);
    let mut channel = open_channel(control)?;
    let joined = gather(&mut joining, spec.streams.min(streams)).await?;
    let cpu = crate::sys::process_cpu_time_ns();
    let run = run(joined, spec, spec.agent_sends).await?;
    let cpu_ns = crate::sys::process_cpu_time_ns().saturating_sub(cpu);
    let view = SourceView { end: EndView { streams: run.streams, ..EndView::default() }, sender: run.sender };
    let stats =
        SourceStats { sent_bytes: run.bytes, notes: run.notes, view: Some(view), cpu_ns, ..SourceStats::default() };
    channel.send(Message::Stats(stats));
    let bye = async { while !matches!(channel.recv().await, Ok(Message::Bye) | Err(_)) {} };
    let _ = tokio::time::timeout(GRACE, bye).await;
    Ok(())
}

/// One trial with an agent, from the client.
pub async fn trial(ctx: &Rc<Ctx>, spec: &ProbeSpec, from: &dyn TicketSource) -> Result<Trial, TransferError> {
    let ticket = from.ticket().await?;
    let options = socket_options(&spec.options);
    let opened = session::open(ctx, &ticket, Some(spec.streams), false, &options, Ahead::default()).await?;
    let Opened { id, control, streams, source, rtt_us, .. } = opened;
    let _ended = Ended(ctx, id);
    let mut notes = control.notes.clone();
    let mut channel = open_channel(control)?;
    let mut joined = Vec::new();
    for index in 1..=streams {
        joined.push(session::dial_once(ctx, &source, StreamIndex(index), &options).await?);
    }
    let run = run(joined, spec, !spec.agent_sends).await?;
    let told = async {
        loop {
            match channel.recv().await.map_err(lost)? {
                Message::Stats(stats) => return Ok(stats),
                Message::Error(error) => return Err(lost(super::source::escape_text(&error.what))),
                _ => {}
            }
        }
    };
    let stats = tokio::time::timeout(GRACE, told).await.map_err(|_| lost("the agent did not tell its counters"))??;
    channel.send(Message::Bye);
    channel.finish(Duration::from_secs(1)).await;
    let theirs = stats.view.map(|view| view.sender).unwrap_or_default();
    let sender = if spec.agent_sends { theirs } else { run.sender };
    notes.extend(run.notes);
    notes.extend(stats.notes.iter().take(10).map(|note| format!("agent: {}", super::source::escape_text(note))));
    notes.sort();
    notes.dedup();
    Ok(Trial {
        streams,
        congestion: sender.congestion.chars().filter(char::is_ascii_graphic).take(64).collect(),
        bytes: run.bytes,
        samples: run.samples,
        sender,
        rtt_us: rtt_us.into(),
        mtu: run.mtu,
        notes,
        peer_cpu_ns: stats.cpu_ns,
        each: run.each,
    })
}

fn open_channel(control: Joined) -> Result<Channel, TransferError> {
    let Joined { socket, sealer, opener, .. } = control;
    Ok(Channel::open(socket.wake().map_err(lost)?, sealer, opener))
}

async fn gather(joining: &mut mpsc::UnboundedReceiver<Joined>, count: u16) -> Result<Vec<Joined>, TransferError> {
    let all = async {
        let mut joined = Vec::new();
        while joined.len() < usize::from(count) {
            joined.push(joining.recv().await?);
        }
        Some(joined)
    };
    let gathered = tokio::time::timeout(JOIN_TIMEOUT, all).await.ok().flatten();
    gathered.ok_or_else(|| lost("not all streams came"))
}

/// One end of a trial.
struct Run {
    streams: u64,
    bytes: u64,
    samples: Vec<(u64, u64)>,
    sender: SenderView,
    mtu: u32,
    notes: Vec<String>,
    each: Vec<StreamTrial>,
}

/// One stream while it runs.
struct Watched {
    socket: Parked,
    arrived: Arc<AtomicU64>,
    /// What had come by at the last sample: bytes, segments sent again.
    seen: (u64, u64),
    trial: StreamTrial,
}

impl Watched {
    /// Bytes so far: the kernel's count of what was acknowledged, or those that arrived.
    fn bytes(&self, sends: bool) -> u64 {
        if sends {
            self.socket.tcp_info().map_or(0, |info| info.bytes_acked)
        } else {
            self.arrived.load(Ordering::Relaxed)
        }
    }

    /// Since the last look.
    fn look(&mut self, sends: bool) -> StreamSample {
        let info = self.socket.tcp_info().unwrap_or_default();
        let bytes = if sends { info.bytes_acked } else { self.arrived.load(Ordering::Relaxed) };
        let now = (bytes, u64::from(info.total_retrans));
        let before = std::mem::replace(&mut self.seen, now);
        StreamSample {
            bytes: now.0.saturating_sub(before.0),
            retransmits: now.1.saturating_sub(before.1),
            cwnd: u64::from(info.cwnd) * u64::from(info.snd_mss),
            window: info.snd_wnd.into(),
            rtt_us: info.rtt_us.into(),
            rttvar_us: info.rttvar_us.into(),
            mtu: info.pmtu,
        }
    }
}

/// A look at every stream: µs since the start, and bytes since the look before.
fn sample(watched: &mut [Watched], at: Duration, sends: bool) -> (u64, u64) {
    let mut bytes = 0;
    for stream in watched {
        let look = stream.look(sends);
        bytes += look.bytes;
        stream.trial.samples.push(look);
    }
    (at.as_micros() as u64, bytes)
}

/// Moves bytes until the time is up and counts them.
async fn run(joined: Vec<Joined>, spec: &ProbeSpec, sends: bool) -> Result<Run, TransferError> {
    let duration = Duration::from_millis(spec.duration_ms.into());
    let until = Instant::now() + duration;
    let options = socket_options(&spec.options);
    let piece = spec.options.block as usize;
    let (mut watched, mut ends, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for stream in joined {
        notes.extend(stream.notes);
        let spare = stream.socket.try_clone().map_err(lost)?;
        let socket = TcpStream::from(stream.socket.into_descriptor().map_err(lost)?);
        let (local, remote) = (socket.local_addr().ok(), socket.peer_addr().ok());
        let kernel = socket2::SockRef::from(&socket);
        let bytes = |size: std::io::Result<usize>| size.map_or(0, |size| size as u64);
        let buffers = (bytes(kernel.send_buffer_size()), bytes(kernel.recv_buffer_size()));
        if sends {
            notes.extend(net::apply(&socket, &options, remote).iter().map(ToString::to_string));
        }
        let (tell, end) = oneshot::channel();
        let arrived = Arc::new(AtomicU64::new(0));
        let count = arrived.clone();
        let work = move || {
            let _ = if sends { send(socket, until, piece) } else { receive(socket, until + GRACE, piece, &count) };
            let _ = tell.send(());
        };
        std::thread::Builder::new().name("lh-probe".to_owned()).spawn(work).map_err(lost)?;
        let trial = StreamTrial { local, remote, buffers, samples: Vec::new() };
        watched.push(Watched { socket: spare, arrived, seen: (0, 0), trial });
        ends.push(end);
    }
    for stream in &mut watched {
        stream.look(sends);
    }
    let (mut samples, mut seen) = (Vec::new(), Connections::default());
    let began = Instant::now();
    let mut tick = tokio::time::interval(SAMPLE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tick.tick().await;
    let all = async {
        for end in ends {
            let _ = end.await;
        }
    };
    tokio::pin!(all);
    let connections = loop {
        tokio::select! {
            biased;
            () = &mut all => {
                let at = began.elapsed();
                let last = samples.last().map_or(0, |(at, _)| *at);
                // The end may come just before the tick that would have counted it.
                if at <= duration + SAMPLE / 2 && at >= Duration::from_micros(last) + SAMPLE / 2 {
                    samples.push(sample(&mut watched, at, sends));
                }
                watched.iter().for_each(|stream| seen.add(&stream.socket));
                break seen;
            }
            _ = tick.tick() => {
                let at = began.elapsed();
                if at <= duration + SAMPLE / 2 {
                    samples.push(sample(&mut watched, at, sends));
                }
                seen.look(clock::now(), watched.iter().map(|stream| (&stream.socket, true)));
            }
        }
    };
    notes.sort();
    notes.dedup();
    let mtus = watched.iter().filter_map(|stream| stream.socket.tcp_info()).map(|info| info.pmtu);
    Ok(Run {
        streams: watched.len() as u64,
        bytes: watched.iter().map(|stream| stream.bytes(sends)).sum(),
        samples,
        sender: connections.view(0),
        mtu: mtus.filter(|mtu| *mtu > 0).min().unwrap_or(0),
        notes,
        each: watched.into_iter().map(|stream| stream.trial).collect(),
    })
}

/// Noise, `piece` bytes a write, until the time is up; then the end of the stream.
fn send(mut socket: TcpStream, until: Instant, piece: usize) -> std::io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_write_timeout(Some(LOOK))?;
    let mut noise = vec![0; piece];
    // Nothing on the way is to compress it.
    aws_lc_rs::rand::fill(&mut noise).map_err(|_| ErrorKind::Other)?;
    while Instant::now() < until {
        match socket.write(&noise) {
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    socket.shutdown(Shutdown::Write)
}

/// Takes what comes until it ends, or the time is up.
fn receive(mut socket: TcpStream, until: Instant, piece: usize, arrived: &AtomicU64) -> std::io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(LOOK))?;
    let mut piece = vec![0; piece];
    while Instant::now() < until {
        match socket.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => drop(arrived.fetch_add(count as u64, Ordering::Relaxed)),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// For the agent's log: that it was no transfer.
pub fn report(outcome: Result<(), TransferError>, began: Instant) -> super::spec::Report {
    let mut report = match outcome {
        Ok(()) => super::spec::Report { verdict: super::spec::Verdict::Planned, ..Default::default() },
        Err(error) => super::source::report_of(&error),
    };
    report.duration_ns = clock::since(began).as_nanos() as u64;
    report.notes.push("a probe of the path: no files".to_owned());
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_later_part() {
        // Ten samples, of which the last six count; one came late, with as many more bytes.
        let at = |n: u64| 100_000 * n + if n == 7 { 50_000 } else { 0 };
        let bytes = |n: u64| match n {
            0..5 => 0,
            7 => 1_500_000,
            8 => 500_000,
            _ => 1_000_000,
        };
        let samples: Vec<_> = (1..=10).map(|n| (at(n), bytes(n))).collect();
        assert_eq!(Trial { samples, ..Trial::default() }.rate(), 80_000_000);
        // Nothing for two samples, then three at once, where the later part would begin.
        let lumpy = [10, 10, 0, 0, 30, 10, 10, 10, 10, 10];
        let samples: Vec<_> = (1..).zip(lumpy).map(|(n, tenth)| (n * 100_000, tenth * 100_000)).collect();
        assert_eq!(Trial { samples, ..Trial::default() }.rate(), 80_000_000);
        assert_eq!(Trial::default().rate(), 0);
    }

    #[test]
    fn bytes_flow_until_the_time_is_up() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let began = Instant::now();
        let until = began + Duration::from_millis(300);
        let sender = std::thread::spawn(move || send(near, until, 65_536).unwrap());
        let arrived = AtomicU64::new(0);
        receive(far, until + GRACE, 65_536, &arrived).unwrap();
        sender.join().unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "the end of the stream, not the grace, ends it");
        assert!(arrived.into_inner() > 1 << 20);
    }

    #[test]
    fn a_peer_that_takes_nothing_or_sends_nothing_costs_the_time_and_no_more() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let until = Instant::now() + Duration::from_millis(300);
        send(near.try_clone().unwrap(), until, 65_536).unwrap();
        let arrived = AtomicU64::new(0);
        receive(near, Instant::now() + Duration::from_millis(300), 65_536, &arrived).unwrap();
        assert!(until.elapsed() < Duration::from_secs(5) && arrived.into_inner() == 0);
        drop(far);
    }
}
