//! Sessions: connections through their handshake.

use super::ahead::{Ahead, Connected};
use super::conn::{Conn, Parked};
use super::coordinator::Ctx;
use super::dialler::Dialler;
use super::error::{Class, TransferError};
use super::spec::{Grant, Ticket};
use crate::ids::{SessionId, StreamIndex};
use crate::limits::{HANDSHAKE_DEADLINE_SECS, MAX_STREAMS};
use crate::net::{self, DialError, DialOptions, Dialling, SocketNote, SocketOptions};
use crate::wire::crypt::{FrameKey, Opener, Sealer};
use crate::wire::handshake::{
    Agreed, CLIENT_HELLO_LEN, ClientHello, Dialer, FINISH_LEN, HandshakeError, Listener, Purpose, Refusal,
    SERVER_HELLO_LEN, ServerHello, refuse,
};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};

/// How long one dial may take, name resolution excluded.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Data streams below 1 ms of round trip: one per core of a small machine; more only cost cache (benches/README.md).
const STREAMS_NEAR: u16 = 2;
/// Data streams on longer links, where one loss stops one stream only.
const STREAMS_FAR: u16 = 8;
/// Socket buffers of near streams, in bytes.
const NEAR_BUFFER: u64 = 1 << 20;
/// Below this round trip a link counts as near.
pub const NEAR_RTT_US: u32 = 1_000;

/// Data streams where nobody says how many, for a round trip in µs.
pub fn default_streams(rtt_us: u32) -> u16 {
    if rtt_us < NEAR_RTT_US { STREAMS_NEAR } else { STREAMS_FAR }
}

/// A connection past its handshake.
#[derive(Debug)]
pub struct Joined {
    /// Which stream of its session.
    pub index: StreamIndex,
    /// Which dial of it.
    pub attempt: u32,
    /// The socket, out of tokio's hands.
    pub socket: Parked,
    /// Opens what comes in.
    pub opener: Opener,
    /// Seals what goes out.
    pub sealer: Sealer,
    /// Clamped or refused socket options.
    pub notes: Vec<String>,
}

/// A session as it was opened.
#[derive(Debug)]
pub struct Opened {
    /// Its id.
    pub id: SessionId,
    /// The control stream.
    pub control: Joined,
    /// Data streams granted.
    pub streams: u16,
    /// Whether bodies are encrypted.
    pub encrypted: bool,
    /// The other end.
    pub peer: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    /// Round trip of the control stream, µs.
    pub rtt_us: u32,
    /// How further streams come.
    pub source: StreamSource,
    /// Further streams arrive here, dialled or accepted.
    pub joining: mpsc::UnboundedReceiver<Joined>,
}

/// How a session gets its data streams.
#[derive(Debug)]
pub enum StreamSource {
    /// This end dials them.
    Dial(Box<Dialler>),
    /// The peer does; they come in through the acceptor.
    Accept,
}

/// What is needed to dial a stream of a session.
#[derive(Debug, Clone)]
pub struct DialPlan {
    pub(super) addr: SocketAddr,
    session: SessionId,
    join: [u8; 32],
    allow_plain: bool,
    pub(super) tell: mpsc::UnboundedSender<Joined>,
}

impl Opened {
    /// Dials the data streams while the control stream still agrees on what to move.
    pub(super) fn dial_ahead(&mut self, ctx: &Rc<Ctx>, options: &SocketOptions) {
        if let StreamSource::Dial(dialler) = &mut self.source {
            dialler.want(ctx, self.streams, &BTreeSet::new(), options);
        }
    }
}

fn handshake_error(error: HandshakeError, at: SocketAddr) -> TransferError {
    let class = match &error {
        HandshakeError::Refused(Refusal::Busy | Refusal::Stopping) => Class::Retry,
        HandshakeError::Refused(Refusal::Session) => Class::Reconnect,
        HandshakeError::Refused(Refusal::Ticket) | HandshakeError::Mac => Class::Denied,
        _ => Class::Permanent,
    };
    TransferError::new(class, error.to_string()).at(at)
}

fn io_error(error: std::io::Error, at: SocketAddr) -> TransferError {
    let what = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => {
            "nobody listens on this data port: is the agent running, and is the port open in the firewall?".to_owned()
        }
        std::io::ErrorKind::TimedOut => {
            "no answer on the data port: a firewall that drops packets, or a wrong --advertise-data".to_owned()
        }
        std::io::ErrorKind::UnexpectedEof => "the peer closed the connection during the handshake".to_owned(),
        _ => format!("the connection failed: {error}"),
    };
    TransferError::new(Class::Reconnect, what).at(at)
}

fn keys(agreed: &Agreed, we_dialled: bool) -> (Sealer, Opener) {
    let key = |bytes| if agreed.hello.encrypted { FrameKey::new(bytes) } else { FrameKey::plain() };
    let (out, inward) =
        if we_dialled { (&agreed.to_listener, &agreed.to_dialer) } else { (&agreed.to_dialer, &agreed.to_listener) };
    (Sealer::new(key(out)), Opener::new(key(inward)))
}

fn dial_error(error: &DialError, at: SocketAddr) -> TransferError {
    TransferError::new(Class::Reconnect, error.to_string()).at(at)
}

/// Many dials wait at the same time, without a thread for each.
async fn dial(addr: SocketAddr, options: &DialOptions) -> Result<(std::net::TcpStream, Vec<SocketNote>), DialError> {
    let (socket, connecting) = Dialling::prepare(addr, options)?.non_blocking()?;
    let connected = TcpSocket::from_std_stream(socket).connect(connecting.target);
    let connected = match tokio::time::timeout(connecting.timeout, connected).await {
        Ok(connected) => connected.and_then(TcpStream::into_std),
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    };
    connecting.done(connected)
}

pub(super) async fn connect(ctx: &Ctx, addr: SocketAddr, options: &SocketOptions) -> Result<Connected, TransferError> {
    #[cfg(feature = "testing")]
    if let Some(network) = &ctx.network {
        let end = network.connect(addr).await.map_err(|error| io_error(error, addr))?;
        return Ok((Parked::Simulated(end), Vec::new()));
    }
    let options = DialOptions { timeout: DIAL_TIMEOUT, socket: options.clone() };
    let (socket, notes) = dial(addr, &options).await.map_err(|error| dial_error(&error, addr))?;
    Ok((Parked::Tcp(socket), notes.iter().map(ToString::to_string).collect()))
}

/// Options of a data stream whose round trip is known by now. Below a millisecond large buffers only push the bytes in
/// flight out of the cache (datapath research, sections 0.6 and 6).
pub(super) fn tune(socket: &Parked, options: &SocketOptions, near: bool) -> Vec<String> {
    let socket = match socket {
        Parked::Tcp(socket) => socket,
        #[cfg(feature = "testing")]
        Parked::Simulated(_) => return Vec::new(),
    };
    let peer = socket.peer_addr().ok();
    let mut notes = net::apply(socket, options, peer);
    if near && options.window.is_none() {
        notes.extend(net::set_buffers(socket, NEAR_BUFFER));
    }
    notes.extend(options.mss.and_then(|mss| net::socket::check_segments(socket, mss)));
    notes.iter().map(ToString::to_string).collect()
}

async fn shake(socket: &mut Conn, dialer: &Dialer, addr: SocketAddr) -> Result<Agreed, TransferError> {
    let talk = async {
        socket.write_all(dialer.hello()).await?;
        let mut answer = [0; SERVER_HELLO_LEN];
        // A foreign server may say less than our hello is long: judge by what came.
        let mut have = 0;
        while have < SERVER_HELLO_LEN {
            match socket.read(&mut answer[have..]).await? {
                0 => break,
                count => have += count,
            }
            if have >= 8 && crate::wire::handshake::foreign(&answer[..have]).is_some() {
                break;
            }
        }
        if have == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(HANDSHAKE_DEADLINE_SECS), talk)
        .await
        .map_err(|_| {
            let what = "the port accepts connections but says nothing: it is not an agent's data port";
            TransferError::new(Class::Permanent, what).at(addr)
        })?
        .map_err(|error| io_error(error, addr))?;
    let (finish, agreed) = dialer.finish(&answer).map_err(|error| handshake_error(error, addr))?;
    socket.write_all(&finish).await.map_err(|error| io_error(error, addr))?;
    Ok(agreed)
}

/// Walk 3: dials the peer with a ticket and opens a session: handshake, version, limits. `ahead`: connections that are there.
pub async fn open(
    ctx: &Rc<Ctx>,
    ticket: &Ticket,
    streams: Option<u16>,
    allow_plain: bool,
    options: &SocketOptions,
    mut ahead: Ahead,
) -> Result<Opened, TransferError> {
    let mut last = TransferError::new(Class::Permanent, "the ticket names no data address");
    'addresses: for &addr in &ticket.data {
        let mut connected = ahead.take(addr, options);
        let (socket, notes, rtt_us, wanted, agreed) = loop {
            let waited = connected.is_some();
            let (socket, notes) = match connected.take() {
                Some(connected) => connected,
                None => match connect(ctx, addr, options).await {
                    Ok(connected) => connected,
                    Err(error) => {
                        last = error;
                        continue 'addresses;
                    }
                },
            };
            let rtt_us = socket.rtt_us();
            let wanted = streams.unwrap_or(default_streams(rtt_us));
            let dialer = Dialer::new(Purpose::Open(ticket.id), StreamIndex(0), 1, wanted, allow_plain, &ticket.key.0)
                .map_err(|error| handshake_error(error, addr))?;
            let mut socket = socket.wake().map_err(|error| io_error(error, addr))?;
            match shake(&mut socket, &dialer, addr).await {
                Ok(agreed) => break (socket, notes, rtt_us, wanted, agreed),
                // It stood there without a word, and somebody else may have been given its place.
                Err(error) if waited && matches!(error.class, Class::Reconnect | Class::Retry) => {}
                // The ticket is spent or the peer is not ours: another address of it would say the same.
                Err(error) => return Err(error),
            }
        };
        let local = socket.local_addr().map_err(|error| io_error(error, addr))?;
        crate::sys::points::at("session.opened");
        let (sealer, opener) = keys(&agreed, true);
        let (tell, joining) = mpsc::unbounded_channel();
        let hello = agreed.hello;
        let plan = DialPlan { addr, session: hello.session, join: agreed.join, allow_plain, tell };
        let socket = socket.park().map_err(|error| io_error(error, addr))?;
        return Ok(Opened {
            id: hello.session,
            control: Joined { index: StreamIndex(0), attempt: 1, socket, opener, sealer, notes },
            streams: hello.streams.clamp(1, MAX_STREAMS).min(wanted.max(1)),
            encrypted: hello.encrypted,
            peer: addr,
            local,
            rtt_us,
            source: StreamSource::Dial(Box::new(Dialler::new(plan, ahead))),
            joining,
        });
    }
    Err(last)
}

pub(super) async fn dial_stream(
    ctx: &Ctx,
    plan: &DialPlan,
    index: StreamIndex,
    attempt: u32,
    options: &SocketOptions,
    connected: Option<Connected>,
) -> Result<Joined, TransferError> {
    let (socket, notes) = match connected {
        Some(connected) => connected,
        None => connect(ctx, plan.addr, options).await?,
    };
    let mut socket = socket.wake().map_err(|error| io_error(error, plan.addr))?;
    let dialer = Dialer::new(Purpose::Join(plan.session), index, attempt, 0, plan.allow_plain, &plan.join)
        .map_err(|error| handshake_error(error, plan.addr))?;
    let agreed = shake(&mut socket, &dialer, plan.addr).await?;
    crate::sys::points::at("session.stream-dialled");
    let (sealer, opener) = keys(&agreed, true);
    let socket = socket.park().map_err(|error| io_error(error, plan.addr))?;
    Ok(Joined { index, attempt, socket, opener, sealer, notes })
}

/// Dials one stream, once: for who has no [`Links`].
pub(super) async fn dial_once(
    ctx: &Ctx,
    source: &StreamSource,
    index: StreamIndex,
    options: &SocketOptions,
) -> Result<Joined, TransferError> {
    match source {
        StreamSource::Dial(dialler) => dial_stream(ctx, &dialler.plan, index, 1, options, None).await,
        StreamSource::Accept => Err(TransferError::new(Class::Permanent, "the peer dials the streams of this session")),
    }
}

/// A session that can be joined, as the acceptor knows it.
#[derive(Debug)]
pub struct Joinable {
    join: [u8; 32],
    encrypted: bool,
    pub(super) streams: u16,
    attempts: HashMap<StreamIndex, u32>,
    tell: mpsc::UnboundedSender<Joined>,
}

/// A session that is told to its dialer and is not there before the dialer's last word. Its streams take paths of their own
/// and may come sooner: they wait until this is dropped.
struct Opening {
    ctx: Rc<Ctx>,
    id: SessionId,
}

impl Opening {
    fn new(ctx: &Rc<Ctx>, id: SessionId) -> Self {
        ctx.opening.borrow_mut().insert(id, watch::Sender::default());
        Self { ctx: ctx.clone(), id }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.ctx.opening.borrow_mut().remove(&self.id);
    }
}

/// One incoming connection, from accept to a session or a stream of one.
/// `leave`: somebody else needs its place.
pub async fn accept(ctx: Rc<Ctx>, socket: Conn, peer: SocketAddr, leave: oneshot::Receiver<()>) {
    let deadline = Duration::from_secs(HANDSHAKE_DEADLINE_SECS);
    match tokio::time::timeout(deadline, accept_inner(&ctx, socket, peer, leave)).await {
        Ok(Ok(Some((grant, opened)))) => ctx.serve(grant, opened),
        Ok(Ok(None)) => {}
        Ok(Err(error)) => tracing::info!(%peer, %error, "connection refused"),
        Err(_) => tracing::info!(%peer, "connection dropped: no handshake in time"),
    }
}

/// Reads all of `bytes`; `false`: somebody else needs the place.
async fn hear(
    socket: &mut Conn,
    bytes: &mut [u8],
    peer: SocketAddr,
    leave: &mut oneshot::Receiver<()>,
) -> Result<bool, TransferError> {
    tokio::select! {
        biased;
        read = socket.read_exact(bytes) => read.map(|_| true).map_err(|error| io_error(error, peer)),
        _ = leave => Ok(false),
    }
}

/// An honest dialer waits after this, and comes back. Nothing was sent before, so there is room for a word.
async fn make_room(mut socket: Conn) {
    let _ = socket.write_all(&refuse(Refusal::Busy)).await;
}

async fn accept_inner(
    ctx: &Rc<Ctx>,
    mut socket: Conn,
    peer: SocketAddr,
    mut leave: oneshot::Receiver<()>,
) -> Result<Option<(Grant, Opened)>, TransferError> {
    let broken = |error| io_error(error, peer);
    let mut bytes = [0; CLIENT_HELLO_LEN];
    if !hear(&mut socket, &mut bytes[..8], peer, &mut leave).await? {
        make_room(socket).await;
        return Ok(None);
    }
    if let Some(what) = crate::wire::handshake::foreign(&bytes[..8]) {
        return Err(handshake_error(HandshakeError::Foreign(what), peer));
    }
    if !hear(&mut socket, &mut bytes[8..], peer, &mut leave).await? {
        make_room(socket).await;
        return Ok(None);
    }
    let hello = match ClientHello::decode(&bytes) {
        Ok(hello) => hello,
        Err(error) => {
            socket.write_all(&refuse(Refusal::Malformed)).await.map_err(broken)?;
            return Err(handshake_error(error, peer));
        }
    };
    if let Purpose::Join(id) = hello.purpose {
        let opening = ctx.opening.borrow().get(&id).map(watch::Sender::subscribe);
        if let Some(mut opening) = opening {
            tokio::select! {
                biased;
                _ = opening.changed() => {}
                _ = &mut leave => {
                    make_room(socket).await;
                    return Ok(None);
                }
            }
        }
    }
    let prepared = prepare(ctx, &bytes, &hello);
    let (listener, opening) = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => {
            socket.write_all(&refuse(refusal)).await.map_err(broken)?;
            return Err(handshake_error(HandshakeError::Refused(refusal), peer));
        }
    };
    socket.write_all(listener.hello()).await.map_err(broken)?;
    crate::sys::points::at("session.answered");
    let mut finish = [0; FINISH_LEN];
    if !hear(&mut socket, &mut finish, peer, &mut leave).await? {
        return Ok(None);
    }
    let agreed = listener.finish(&finish).map_err(|error| handshake_error(error, peer))?;
    crate::sys::points::at("session.accepted");
    let (sealer, opener) = keys(&agreed, false);
    let local = socket.local_addr().map_err(broken)?;
    let socket = socket.park().map_err(broken)?;
    let rtt_us = socket.rtt_us();
    let joined = Joined { index: hello.stream, attempt: hello.attempt, socket, opener, sealer, notes: Vec::new() };
    match opening {
        None => {
            let session = agreed.hello.session;
            let mut sessions = ctx.sessions.borrow_mut();
            let entry = sessions.get_mut(&session);
            // Looked at again: another dial of the same stream may have been faster, or the session may have ended.
            if let Some(entry) = entry.filter(|e| e.attempts.get(&hello.stream).is_none_or(|a| *a < hello.attempt)) {
                entry.attempts.insert(hello.stream, hello.attempt);
                let _ = entry.tell.send(joined);
            }
            Ok(None)
        }
        Some((grant, _opening)) => {
            let (tell, joining) = mpsc::unbounded_channel();
            let ServerHello { session, streams, encrypted, .. } = agreed.hello;
            let joinable = Joinable { join: agreed.join, encrypted, streams, attempts: HashMap::new(), tell };
            ctx.sessions.borrow_mut().insert(session, joinable);
            let source = StreamSource::Accept;
            let opened =
                Opened { id: session, control: joined, streams, encrypted, peer, local, rtt_us, source, joining };
            Ok(Some((grant, opened)))
        }
    }
}

/// Looks the dialer's ticket or session up and prepares the answer. A ticket is spent here, whether or not the dialer
/// goes on: one try.
fn prepare(
    ctx: &Rc<Ctx>,
    bytes: &[u8; CLIENT_HELLO_LEN],
    hello: &ClientHello,
) -> Result<(Listener, Option<(Grant, Opening)>), Refusal> {
    let version = hello.common_version().ok_or(Refusal::Version)?;
    match hello.purpose {
        Purpose::Open(id) => {
            let key = ctx.tickets.borrow_mut().key_of(id).ok_or(Refusal::Ticket)?;
            let mut session = [0; 16];
            aws_lc_rs::rand::fill(&mut session).map_err(|_| Refusal::Busy)?;
            let streams = hello.streams.clamp(1, ctx.streams_max());
            let encrypted = !(hello.allow_plain && ctx.tickets.borrow().allows_plain(id));
            let answer = ServerHello { version, streams, session: SessionId(session), encrypted };
            let listener = Listener::answer(bytes, hello, &key, answer).map_err(|_| Refusal::Ticket)?;
            // Only a dialer that knows the key spends the ticket.
            let grant = ctx.tickets.borrow_mut().spend(id).ok_or(Refusal::Ticket)?;
            ctx.room_for_session()?;
            Ok((listener, Some((grant, Opening::new(ctx, answer.session)))))
        }
        Purpose::Join(id) => {
            let sessions = ctx.sessions.borrow();
            let session = sessions.get(&id).ok_or(Refusal::Session)?;
            if hello.stream.0 == 0 || hello.stream.0 > session.streams {
                return Err(Refusal::Busy);
            }
            if session.attempts.get(&hello.stream).is_some_and(|seen| *seen >= hello.attempt) {
                return Err(Refusal::Ticket);
            }
            let answer = ServerHello { version, streams: session.streams, session: id, encrypted: session.encrypted };
            let listener = Listener::answer(bytes, hello, &session.join, answer).map_err(|_| Refusal::Ticket)?;
            Ok((listener, None))
        }
    }
}
