//! The HTTP port: an accept loop of our own, because every connection needs a deadline from its first byte on. One
//! port speaks TLS and, where that is allowed, plain HTTP: the first byte decides.

use super::caps::{self, Caps};
use super::problem::Problem;
use super::tls::ServerTls;
use crate::engine::error::Class;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

/// The first byte of a TLS connection: the content type of a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;
/// Bytes of a request's head. A bearer token and a path of 4 KiB, percent-encoded, fit.
const HEADER_BYTES: usize = 32 << 10;
/// Header lines of a request; browsers send about 20.
const HEADER_COUNT: usize = 64;
/// Connections that wait for `accept`.
const BACKLOG: i32 = 1024;
/// Pause after a failed `accept` (no descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections may end their request when the agent stops.
const DRAIN: Duration = Duration::from_secs(1);

/// Told to whom there is no place for.
pub(super) const NO_PLACE: &str =
    "as many connections are open here as may be, in all or from your address: try again in a moment";

/// The deadlines and caps of the port.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// From accept to the first byte, and from there to the end of the TLS handshake.
    pub handshake: Duration,
    /// From a connection's readiness to the end of a request's head; ends idle connections too.
    pub header: Duration,
    /// From a request's head to its response.
    pub request: Duration,
    /// Of a whole connection: whoever reads too slowly or asks for ever dials again.
    pub connection: Duration,
    /// Connections in all.
    pub total: usize,
    /// Connections of one IPv4 address or IPv6 /64.
    pub per_source: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(10),
            request: Duration::from_secs(30),
            connection: Duration::from_secs(600),
            total: 1024,
            per_source: 64,
        }
    }
}

/// Who is at the other end, for handlers. Taken from the socket, never from a header.
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    /// The client.
    pub peer: SocketAddr,
    /// The address that the client dialled.
    pub local: SocketAddr,
    /// Whether it is encrypted.
    pub tls: bool,
}

impl Connection {
    /// Whether it never leaves this host.
    pub fn is_loopback(&self) -> bool {
        is_loopback(self.peer.ip()) && is_loopback(self.local.ip())
    }
}

/// 127.0.0.0/8 and ::1, also as an IPv4-mapped address.
pub fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Whether plain HTTP may be spoken between these two: both on loopback, or the operator said so.
pub fn plain_allowed(peer: IpAddr, local: IpAddr, insecure_http: bool) -> bool {
    insecure_http || (is_loopback(peer) && is_loopback(local))
}

/// How long one request is waited for. A handler that reads a long body says how much has come; each [`STEP`] of it begins the
/// request's deadline anew. Whoever sends slower than a step per deadline (2 KiB/s) is given up as before, and the connection's
/// own end (10 minutes) bounds the whole.
#[derive(Debug, Clone, Default)]
pub struct Patience(Arc<AtomicU64>);

/// Bytes of a body that count as progress: see [`Patience`].
pub const STEP: u64 = 64 << 10;

impl Patience {
    /// So many bytes of the body have come.
    pub fn came(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    async fn ends(&self, deadline: Duration) {
        let mut steps = 0;
        loop {
            tokio::time::sleep(deadline).await;
            let now = self.0.load(Ordering::Relaxed) / STEP;
            if now == steps {
                return;
            }
            steps = now;
        }
    }
}

/// What the loop serves.
#[derive(Debug)]
pub struct HttpServer {
    /// The routes.
    pub router: Router,
    /// Current certificate; replaced on reload.
    pub tls: Arc<RwLock<ServerTls>>,
    /// `--insecure-http`.
    pub insecure_http: bool,
    /// Deadlines and caps.
    pub limits: HttpLimits,
}

/// Binds the port. `[::]` takes IPv4 as well; where this host has no IPv6, `0.0.0.0` stands in.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let attempt = |address: SocketAddr| -> io::Result<TcpListener> {
        use socket2::{Domain, Protocol, Socket, Type};
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.ip().is_unspecified() && address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    match attempt(address) {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && no_ipv6(&error) => {
            attempt(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()))
        }
        other => other,
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT};
    matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL))
}

impl HttpServer {
    /// Serves until `stop` turns true; then lets requests end for a second.
    pub async fn serve(self, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let caps = Caps::new(self.limits.total, self.limits.per_source);
        let server = Arc::new(self);
        let mut connections = tokio::task::JoinSet::new();
        let stopping = stop.clone();
        loop {
            let accepted = tokio::select! {
                _ = stop.wait_for(|&stop| stop) => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    if caps.is_full(peer.ip()) {
                        // Many came at once: those that are in have their first turn before anybody makes room.
                        tokio::task::yield_now().await;
                    }
                    let (server, stopping) = (server.clone(), stopping.clone());
                    let serve = async move { server.connection(stream, peer, stopping).await };
                    if let Some(place) = caps.admit(peer.ip()) {
                        connections.spawn(place.hold(serve));
                    } else if let Some(farewell) = caps.turn_away(peer.ip()) {
                        connections.spawn(farewell.hold(serve));
                    } else {
                        tracing::debug!(%peer, "connection refused: too many");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let _ = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
        connections.abort_all();
    }

    async fn connection(&self, stream: TcpStream, peer: SocketAddr, stop: watch::Receiver<bool>) {
        let _ = stream.set_nodelay(true);
        let Ok(local) = stream.local_addr() else { return };
        let mut first = [0];
        match timeout(self.limits.handshake, stream.peek(&mut first)).await {
            Ok(Ok(1)) => caps::spoke(),
            _ => return,
        }
        let mut connection = Connection { peer: canonical(peer), local: canonical(local), tls: false };
        if first[0] != TLS_HANDSHAKE {
            let allowed = plain_allowed(peer.ip(), local.ip(), self.insecure_http);
            return self.speak(stream, connection, allowed, stop).await;
        }
        connection.tls = true;
        let config = self.tls.read().unwrap_or_else(std::sync::PoisonError::into_inner).config.clone();
        match timeout(self.limits.handshake, TlsAcceptor::from(config).accept(stream).into_fallible()).await {
            Ok(Ok(stream)) => self.speak(stream, connection, true, stop).await,
            Ok(Err((error, stream))) => {
                tracing::debug!(%peer, %error, "TLS handshake failed");
                let _ = timeout(DRAIN, farewell(stream)).await;
            }
            Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
        }
    }

    async fn speak<S>(&self, stream: S, connection: Connection, allowed: bool, mut stop: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (router, deadline) = (self.router.clone(), self.limits.request);
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            let router = router.clone();
            async move { Ok::<_, Infallible>(answer(router, request.map(Body::new), connection, allowed, deadline).await) }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header)
            .max_buf_size(HEADER_BYTES)
            .max_header_size(HEADER_BYTES)
            .max_headers(HEADER_COUNT)
            .half_close(false)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(serving);
        let lifetime = tokio::time::sleep(self.limits.connection);
        tokio::select! {
            ended = &mut serving => {
                if let Err(error) = ended {
                    tracing::debug!(peer = %connection.peer, %error, "connection ended");
                }
                return;
            }
            _ = stop.wait_for(|&stop| stop) => {}
            () = lifetime => {}
        }
        serving.as_mut().graceful_shutdown();
        let _ = timeout(DRAIN, serving).await;
    }
}

/// Reads what a client has sent already: closed with that unread, the connection would be reset, and the alert that says why
/// would be lost with it.
async fn farewell(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let _ = tokio::io::copy(&mut stream.take(HEADER_BYTES as u64), &mut tokio::io::sink()).await;
}

fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(IpAddr::V4(v4), address.port()),
        // As it is: a link-local address needs its scope.
        IpAddr::V6(_) => address,
    }
}

async fn answer(
    router: Router,
    mut request: Request,
    connection: Connection,
    allowed: bool,
    deadline: Duration,
) -> Response {
    if !allowed {
        let refusal = Problem::denied(
            "this port speaks plain HTTP only over loopback: use TLS, or start the agent with --insecure-http on a trusted network",
        );
        return closing(refusal.into_response());
    }
    if caps::has_no_place() {
        return closing(Problem::full(NO_PLACE).into_response());
    }
    let patience = Patience::default();
    request.extensions_mut().insert(connection);
    request.extensions_mut().insert(patience.clone());
    tokio::select! {
        answered = router.oneshot(request) => match answered {
            Ok(response) => response,
            Err(never) => match never {},
        },
        () = patience.ends(deadline) => {
            let late =
                Problem::new(StatusCode::REQUEST_TIMEOUT, Class::Retry, "the request took too long and was given up");
            closing(late.into_response())
        }
    }
}

fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests;
