//! The client of an agent's HTTP port. One connection a request, no redirects, deadlines and caps on everything. Off
//! loopback it speaks TLS to the one certificate that is pinned; the token leaves only after that was proved.

pub mod service;

mod patience;
mod signs;
mod tickets;

use super::http::is_loopback;
use super::known_peers;
use super::messages::{
    HandTicket, ProblemBody, Started, StatReply, StatusReply, ThirdPartyRequest, TicketRequest, TransferView,
};
use super::problem::{FULL, URN};
use super::state;
use super::tls::{Fingerprint, OwnTls, PinnedVerifier};
use super::tokens::TokenText;
use super::url::{DATA_PORT, HTTP_PORT, PeerUrl, encode};
use crate::engine::error::{Class, TransferError};
use crate::engine::handle::DataPort;
use crate::engine::spec::{Steer, Ticket};
use crate::relpath::escape;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
pub use patience::Patience;
use patience::{Again, Failed, Wait, may_repeat};
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use signs::{closed, gone, wants_certificate};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
pub use tickets::PeerTickets;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// For one address; the next is tried after it.
const CONNECT: Duration = Duration::from_secs(5);
/// From connection to the end of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// From request to the end of the response; the server gives up after 30 s.
const RESPONSE: Duration = Duration::from_secs(35);
/// The same for the first one of a peer, which may be none.
const FIRST_RESPONSE: Duration = Duration::from_secs(15);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// A response's body; a list of transfers with long reports is the largest.
const RESPONSE_MAX: usize = 8 << 20;
/// Characters of a peer's words that are shown.
const WORDS_MAX: usize = 500;
/// Where the token file is named if not by flag.
pub const TOKEN_FILE_VAR: &str = "LONGHAUL_TOKEN_FILE";

/// How to reach and trust a peer.
#[derive(Debug, Clone, Default)]
pub struct ClientOptions {
    /// `--token-file`; else [`TOKEN_FILE_VAR`] counts.
    pub token_file: Option<PathBuf>,
    /// `--peer-fingerprint`.
    pub fingerprint: Option<Fingerprint>,
    /// `--known-peers`; else `~/.config/longhaul/known_peers`.
    pub known_peers: Option<PathBuf>,
    /// `--insecure-http`: plain HTTP off loopback to peers that are not pinned.
    pub insecure_http: bool,
    /// `--tls-ca` and more: an authority of peers that are not pinned, and what this client shows.
    pub tls: Option<OwnTls>,
    /// How an agent is waited for that has no place; none: not at all.
    pub patience: Option<Patience>,
}

/// Talks to one agent.
#[derive(Debug)]
pub struct PeerClient {
    url: PeerUrl,
    token_file: PathBuf,
    pin: Option<Fingerprint>,
    insecure_http: bool,
    tls: Option<OwnTls>,
    patience: Option<Patience>,
    notes: Mutex<Vec<String>>,
    /// Something that speaks HTTP was met there.
    answered: AtomicBool,
    /// Who answered a dial last.
    met: watch::Sender<Option<DataPort>>,
}

/// A peer's answer, whatever its status.
#[derive(Debug)]
pub struct RawAnswer {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub bytes: Bytes,
}

/// Why a call had no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer, or none that can be understood.
    #[error("{0}")]
    Unreachable(TransferError),
    /// It said no.
    #[error("{error}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// In its words.
        error: TransferError,
    },
}

impl CallError {
    /// The status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Unreachable(_) => None,
            Self::Refused { status, .. } => Some(*status),
        }
    }

    /// As the engine knows it.
    pub fn into_inner(self) -> TransferError {
        match self {
            Self::Unreachable(error) | Self::Refused { error, .. } => error,
        }
    }
}

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Tls(Option<Fingerprint>),
    Plain { note: bool },
}

/// A pin always means TLS. Without one: plain HTTP on loopback, or off it if told so; otherwise a TLS handshake that
/// will be refused, to show the fingerprint.
fn speech(peer: IpAddr, local: IpAddr, pin: Option<Fingerprint>, insecure_http: bool) -> Speech {
    let loopback = is_loopback(peer) && is_loopback(local);
    match pin {
        Some(pin) => Speech::Tls(Some(pin)),
        None if loopback => Speech::Plain { note: false },
        None if insecure_http => Speech::Plain { note: true },
        None => Speech::Tls(None),
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

fn error(class: Class, what: impl Into<String>) -> TransferError {
    TransferError::new(class, what)
}

/// A peer's words, safe for a terminal and not too many.
fn words(text: &str) -> String {
    escape(text.as_bytes()).chars().take(WORDS_MAX).collect()
}

impl PeerClient {
    /// A client for the agent of `url`. Reads token file and pins, dials nothing.
    pub fn new(url: PeerUrl, options: ClientOptions) -> Result<Self, TransferError> {
        let token_file = options
            .token_file
            .or_else(|| std::env::var_os(TOKEN_FILE_VAR).filter(|v| !v.is_empty()).map(PathBuf::from))
            .ok_or_else(|| {
                let what = "no token: name its file with --token-file or LONGHAUL_TOKEN_FILE (an agent keeps its own in STATE/token)";
                error(Class::Denied, what).at(url.authority())
            })?;
        let known = options.known_peers.or_else(known_peers::default_path);
        let pin = match (options.fingerprint, known) {
            (Some(pin), _) => Some(pin),
            (None, Some(path)) => {
                known_peers::lookup(&path, &url.authority()).map_err(|e| error(Class::Permanent, e.to_string()))?
            }
            (None, None) => None,
        };
        let client = Self {
            url,
            token_file,
            pin,
            // With an authority there is no need for plain HTTP.
            insecure_http: options.insecure_http && options.tls.is_none(),
            tls: options.tls,
            patience: options.patience,
            notes: Mutex::default(),
            answered: AtomicBool::new(false),
            met: watch::Sender::new(None),
        };
        client.token()?;
        Ok(client)
    }

    /// The agent and path it was made for.
    pub fn url(&self) -> &PeerUrl {
        &self.url
    }

    /// What a report has to say about the connections so far (plain HTTP off loopback).
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A ticket. Its data addresses are such as this host can dial.
    pub async fn ticket(&self, request: &TicketRequest) -> Result<Ticket, TransferError> {
        self.dialled(self.call(Method::POST, "/v1/tickets", Some(request)).await?)
    }

    /// Where the agent's data port is unless somebody chose another one, as soon as a connection to its HTTP port stands.
    /// `None`: its HTTP port is another one, so there is nothing to guess by.
    async fn data_port(&self) -> Option<DataPort> {
        if self.url.port != HTTP_PORT {
            return None;
        }
        let mut met = self.met.subscribe();
        let mut found = (*met.wait_for(Option::is_some).await.ok()?)?;
        found.addr.set_port(DATA_PORT);
        Some(found)
    }

    /// The same, without waiting for a busy agent.
    pub async fn ticket_now(&self, request: &TicketRequest) -> Result<Ticket, TransferError> {
        self.dialled(self.call_once(Method::POST, "/v1/tickets", Some(request)).await?)
    }

    fn dialled(&self, (mut ticket, peer): (Ticket, SocketAddr)) -> Result<Ticket, TransferError> {
        for address in &mut ticket.data {
            *address = dialable(*address, peer);
        }
        if ticket.data.is_empty() {
            return Err(self.fail(Class::Permanent, "its ticket names no data address"));
        }
        Ok(ticket)
    }

    /// What the path of `bytes` (absolute below the agent's root) is.
    pub async fn stat(&self, bytes: &[u8]) -> Result<StatReply, TransferError> {
        Ok(self.call(Method::GET, &format!("/v1/stat?path={}", encode(bytes)), None::<&()>).await?.0)
    }

    /// Lets the agent fetch from the request's sources; the id is for [`PeerClient::transfer`].
    pub async fn start_third_party(&self, request: &ThirdPartyRequest) -> Result<Started, TransferError> {
        Ok(self.call(Method::POST, "/v1/transfers", Some(request)).await?.0)
    }

    /// Hands over a fresh ticket for source number `source` (see [`TransferView::wants_tickets`]).
    pub async fn hand_ticket(&self, id: &str, source: usize, ticket: Ticket) -> Result<(), TransferError> {
        let path = format!("/v1/transfers/{}/tickets", encode(id.as_bytes()));
        let _: (serde_json::Value, _) =
            self.call_once(Method::POST, &path, Some(&HandTicket { source, ticket })).await?;
        Ok(())
    }

    /// How a transfer stands. Waits for nothing: who watches one asks again anyway.
    pub async fn transfer(&self, id: &str) -> Result<TransferView, TransferError> {
        Ok(self.call_once(Method::GET, &format!("/v1/transfers/{}", encode(id.as_bytes())), None::<&()>).await?.0)
    }

    /// Changes a running transfer. What it was like before.
    pub async fn steer(&self, id: &str, change: &Steer) -> Result<TransferView, TransferError> {
        let path = format!("/v1/transfers/{}", encode(id.as_bytes()));
        Ok(self.call(Method::PATCH, &path, Some(change)).await?.0)
    }

    /// Checkpoints and stops a transfer.
    pub async fn cancel(&self, id: &str) -> Result<(), TransferError> {
        let path = format!("/v1/transfers/{}", encode(id.as_bytes()));
        let _: (serde_json::Value, _) = self.call(Method::DELETE, &path, None::<&()>).await?;
        Ok(())
    }

    /// What the agent does and has done lately, at either end, the third-party ones left out.
    pub async fn transfers(&self) -> Result<Vec<TransferView>, TransferError> {
        #[derive(serde::Deserialize)]
        struct List {
            transfers: Vec<TransferView>,
        }
        let (list, _): (List, _) = self.call(Method::GET, "/v1/transfers", None::<&()>).await?;
        Ok(list.transfers)
    }

    /// Who the agent is and how it is.
    pub async fn status(&self) -> Result<StatusReply, TransferError> {
        Ok(self.call(Method::GET, "/v1/status", None::<&()>).await?.0)
    }

    /// One request, answered as it is: every status is an answer.
    pub async fn raw<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<RawAnswer, TransferError> {
        let request = self.request(method, path, body)?;
        let stream = self.dial().await?;
        let peer = stream.peer_addr().map_err(|e| self.fail(Class::Reconnect, e.to_string()))?;
        let stream = self.secure(stream, peer).await?;
        let late = |_| self.fail(Class::Retry, "it did not answer within 35 s: is the host overloaded?");
        let (status, bytes, _) = timeout(RESPONSE, self.exchange(stream, request)).await.map_err(late)??;
        Ok(RawAnswer { status: status.as_u16(), bytes })
    }

    /// As [`PeerClient::raw`], the answer read as JSON; a status that is no success becomes an error with the peer's words.
    pub async fn json<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, CallError> {
        let answer = self.raw(method, path, body).await.map_err(CallError::Unreachable)?;
        let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if !status.is_success() {
            return Err(CallError::Refused { status: answer.status, error: self.refusal(status, &answer.bytes) });
        }
        // Where nothing is expected, an empty body is nothing.
        let bytes: &[u8] = if answer.bytes.is_empty() { b"null" } else { &answer.bytes };
        serde_json::from_slice(bytes).map_err(|e| {
            CallError::Unreachable(self.fail(Class::Permanent, format!("its answer cannot be understood: {e}")))
        })
    }

    /// Whether its HTTP port answers. Asked without the token: who answers need not be trusted with one.
    pub async fn healthy(&self) -> Result<(), TransferError> {
        let mut request = self.request(Method::GET, "/healthz", None::<&()>)?;
        request.headers_mut().remove(header::AUTHORIZATION);
        let _: (serde_json::Value, _) = self.send(request).await?;
        Ok(())
    }

    /// Files below `prefix` of a source, a page at a time.
    pub async fn list<T: DeserializeOwned>(&self, prefix: &str, cursor: Option<&str>) -> Result<T, TransferError> {
        let cursor = cursor.map(|c| format!("&cursor={}", encode(c.as_bytes()))).unwrap_or_default();
        let path = format!("/v1/list?prefix={}{cursor}", encode(prefix.as_bytes()));
        Ok(self.call(Method::GET, &path, None::<&()>).await?.0)
    }

    fn fail(&self, class: Class, what: impl Into<String>) -> TransferError {
        error(class, what).at(self.url.authority())
    }

    fn token(&self) -> Result<TokenText, TransferError> {
        let text = state::read_secret(&self.token_file).map_err(|e| error(Class::Denied, e.to_string()))?;
        let bad = || error(Class::Denied, format!("{} holds no token", self.token_file.display()));
        TokenText::parse(&text).ok_or_else(bad)
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<(T, SocketAddr), TransferError> {
        let mut wait = self.patience.map(|patience| Wait::new(patience, may_repeat(&method, path)));
        loop {
            // Built before dialling: an unreadable token is no reason to knock.
            let request = self.request(method.clone(), path, body)?;
            let failed = match self.send(request).await {
                Ok(answer) => {
                    wait.and_then(|wait| wait.note(&self.url.authority())).into_iter().for_each(|note| self.note(note));
                    return Ok(answer);
                }
                Err(failed) => failed,
            };
            let again = match &mut wait {
                Some(wait) => wait.again(&failed, self.answered.load(Ordering::Relaxed)).await,
                None => false,
            };
            if !again {
                return Err(failed.error);
            }
        }
    }

    /// The same without any patience: for who asks again anyway.
    async fn call_once<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<(T, SocketAddr), TransferError> {
        Ok(self.send(self.request(method, path, body)?).await?)
    }

    async fn send<T: DeserializeOwned>(&self, request: Request<Full<Bytes>>) -> Result<(T, SocketAddr), Failed> {
        let stream = self.dial().await?;
        let peer = stream.peer_addr().map_err(|e| self.fail(Class::Reconnect, e.to_string()))?;
        let stream = self.secure(stream, peer).await?;
        let patience = if self.answered.load(Ordering::Relaxed) { RESPONSE } else { FIRST_RESPONSE };
        let (status, bytes, pause) = match timeout(patience, self.exchange(stream, request)).await {
            Ok(answer) => answer?,
            Err(_) if self.answered.load(Ordering::Relaxed) => {
                return Err(self.fail(Class::Retry, "it did not answer within 35 s: is the host overloaded?").into());
            }
            // Not worth another try: who speaks no HTTP will not do so later.
            Err(_) => {
                let what = "the port accepts connections but says nothing: is this an agent's HTTP port, and is its host \
                            overloaded?";
                return Err(self.fail(Class::Permanent, what).into());
            }
        };
        self.answered.store(true, Ordering::Relaxed);
        if !status.is_success() {
            let problem: ProblemBody = serde_json::from_slice(&bytes).unwrap_or_default();
            let full = problem.kind.strip_prefix(URN) == Some(FULL);
            let again = if full { Again::Full(pause) } else { Again::No };
            return Err(Failed { error: self.refusal(status, &bytes), again });
        }
        let value = serde_json::from_slice(&bytes).map_err(|_| {
            self.fail(Class::Permanent, "its answer is not what an agent says: is this an agent's HTTP port?")
        })?;
        Ok((value, peer))
    }

    fn request<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Request<Full<Bytes>>, TransferError> {
        let unsendable = |what: String| error(Class::Permanent, format!("the request cannot be written: {what}"));
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).map_err(|e| unsendable(e.to_string()))?,
            None => Vec::new(),
        };
        let mut authorization = header::HeaderValue::from_str(&format!("Bearer {}", self.token()?.expose()))
            .map_err(|e| unsendable(e.to_string()))?;
        authorization.set_sensitive(true);
        // A zone is of no meaning to the other host.
        let host = self.url.authority().split('%').next().map(str::to_owned).unwrap_or_default();
        let host = if self.url.host.contains('%') { format!("{host}]:{}", self.url.port) } else { host };
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host)
            .header(header::AUTHORIZATION, authorization)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close")
            .header(header::USER_AGENT, concat!("longhaul/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|e| unsendable(e.to_string()))
    }

    async fn dial(&self) -> Result<TcpStream, TransferError> {
        let name = (self.url.host.as_str(), self.url.port);
        let found = timeout(HANDSHAKE, tokio::net::lookup_host(name)).await;
        let addresses: Vec<SocketAddr> = match found {
            Ok(Ok(addresses)) => addresses.take(MAX_ADDRESSES).collect(),
            Ok(Err(e)) => {
                return Err(
                    self.fail(Class::Reconnect, format!("the name cannot be resolved ({e}): check its spelling"))
                );
            }
            Err(_) => return Err(self.fail(Class::Reconnect, "the name server does not answer")),
        };
        let mut last = None;
        for address in addresses {
            let began = Instant::now();
            match timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    let rtt_us = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
                    self.met.send_replace(Some(DataPort { addr: address, rtt_us }));
                    return Ok(stream);
                }
                Ok(Err(e)) => last = Some(e),
                Err(_) => last = Some(std::io::ErrorKind::TimedOut.into()),
            }
        }
        let what = match last {
            Some(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                "nothing listens there: is the agent running, and is this its HTTP port?".to_owned()
            }
            Some(e) if e.kind() == std::io::ErrorKind::TimedOut => {
                "it does not answer: is the host up, and does a firewall let its HTTP port through?".to_owned()
            }
            Some(e) => format!("it cannot be reached: {e}"),
            None => "the name has no address".to_owned(),
        };
        Err(self.fail(Class::Reconnect, what))
    }

    async fn secure(&self, stream: TcpStream, peer: SocketAddr) -> Result<Box<dyn Stream>, Failed> {
        let local = stream.local_addr().map_err(|e| self.fail(Class::Reconnect, e.to_string()))?;
        let _ = stream.set_nodelay(true);
        let pin = match speech(peer.ip(), local.ip(), self.pin, self.insecure_http) {
            Speech::Plain { note } => {
                if note {
                    self.note(format!(
                        "{}: plain HTTP off loopback: token and ticket could be read on the way",
                        self.url.authority()
                    ));
                }
                return Ok(Box::new(stream));
            }
            Speech::Tls(pin) => pin,
        };
        let unready = |e: &dyn std::fmt::Display| error(Class::Permanent, e.to_string());
        let (verifier, config) = match &self.tls {
            Some(tls) => {
                let verifier = tls.verifier(pin).map_err(|e| unready(&e))?;
                let config = tls.client_config(&verifier).map_err(|e| unready(&e))?;
                (verifier, config)
            }
            None => {
                let verifier = PinnedVerifier::new(pin);
                let config = verifier.client_config().map_err(|e| unready(&e))?;
                (verifier, config)
            }
        };
        let name = match (pin, &self.tls) {
            (None, Some(_)) => {
                let host = self.url.host.split('%').next().unwrap_or_default().to_owned();
                ServerName::try_from(host).map_err(|e| unready(&e))?
            }
            // The name is not checked, the certificate is; so no name is told on the way.
            _ => ServerName::IpAddress(peer.ip().into()),
        };
        match timeout(HANDSHAKE, TlsConnector::from(Arc::new(config)).connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(failed)) => {
                let cut = verifier.seen().is_none() && gone(failed.kind());
                let again = if cut { Again::Cut } else { Again::No };
                Err(Failed { error: self.handshake_error(pin, verifier.seen(), &failed), again })
            }
            Err(_) => {
                let what = "it accepts connections but speaks no TLS: is this its HTTP port, or the data port?";
                Err(self.fail(Class::Reconnect, what).into())
            }
        }
    }

    fn handshake_error(
        &self,
        pin: Option<Fingerprint>,
        seen: Option<Fingerprint>,
        failed: &std::io::Error,
    ) -> TransferError {
        let who = self.url.authority();
        match (pin, seen) {
            (None, Some(_)) if let Some(tls) = &self.tls => self.fail(
                Class::Denied,
                format!(
                    "its certificate is none that the authority of {} issued for `{}` ({}): is it out of date, or is somebody \
                     in between?",
                    tls.authority.display(),
                    self.url.host,
                    words(&failed.to_string())
                ),
            ),
            (None, Some(seen)) => self.fail(
                Class::Denied,
                format!(
                    "this peer is not known yet: it shows the fingerprint {seen}; compare it with the agent's ready line, then use \
                     --peer-fingerprint {seen}, or put the line `{who} sha256:{seen}` into ~/.config/longhaul/known_peers"
                ),
            ),
            (Some(pin), Some(seen)) if pin != seen => self.fail(
                Class::Denied,
                format!("it shows the fingerprint {seen}, but {pin} is pinned: somebody is in between, or the agent has a new key"),
            ),
            _ if failed.kind() == std::io::ErrorKind::InvalidData => {
                let what = "it does not speak TLS: is this an agent's HTTP port? (the data port is another)";
                self.fail(Class::Permanent, what)
            }
            _ if gone(failed.kind()) => {
                let what = "it closed the connection instead of a TLS handshake: is this an agent's HTTP port? (the data port \
                            is another)";
                self.fail(Class::Reconnect, what)
            }
            _ => self.fail(Class::Reconnect, format!("the TLS handshake failed: {}", words(&failed.to_string()))),
        }
    }

    fn note(&self, text: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if !notes.contains(&text) {
            notes.push(text);
        }
    }

    async fn exchange<B>(
        &self,
        stream: Box<dyn Stream>,
        request: Request<B>,
    ) -> Result<(StatusCode, Bytes, Duration), Failed>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let broken = |e: hyper::Error| -> Failed {
            let what = if let Some(alert) = wants_certificate(&e) {
                let what = format!(
                    "it takes no client without a certificate of its authority ({alert}): name yours with --tls-cert, --tls-key \
                     and --tls-ca"
                );
                return self.fail(Class::Denied, what).into();
            } else if e.is_parse() {
                let what = "it does not answer in HTTP: is this an agent's HTTP port? (the data port is another)";
                return self.fail(Class::Permanent, what).into();
            } else if closed(&e) {
                let port = self.url.port;
                let what = format!(
                    "it closed the connection without an answer in HTTP: is {port} an agent's HTTP port ({HTTP_PORT} \
                     unless it was started otherwise), or its data port? A busy agent refuses connections as well"
                );
                return Failed { error: self.fail(Class::Reconnect, what), again: Again::Cut };
            } else {
                format!("the connection broke: {e}")
            };
            self.fail(Class::Reconnect, what).into()
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let talk = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let pause = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let pause = pause.map_or(Duration::ZERO, Duration::from_secs);
            let (status, body) = (response.status(), Limited::new(response.into_body(), RESPONSE_MAX));
            let bytes = body.collect().await.map_err(|e| match e.downcast::<hyper::Error>() {
                Ok(e) => broken(*e),
                Err(_) => self.fail(Class::Permanent, "its answer is longer than 8 MiB").into(),
            })?;
            Ok((status, bytes.to_bytes(), pause))
        };
        // The connection is driven here, so that nothing is left behind when this future is dropped.
        tokio::pin!(connection, talk);
        let mut ended = false;
        loop {
            tokio::select! {
                biased;
                answer = &mut talk => return answer,
                end = &mut connection, if !ended => match end {
                    Ok(()) => ended = true,
                    Err(e) => {
                        // What has arrived may still be a whole answer.
                        ended = true;
                        tracing::debug!(error = %e, "connection to a peer ended");
                    }
                },
            }
        }
    }

    fn refusal(&self, status: StatusCode, bytes: &[u8]) -> TransferError {
        let problem: ProblemBody = serde_json::from_slice(bytes).unwrap_or_default();
        let class = match status.as_u16() {
            401 | 403 => Class::Denied,
            404 => Class::NotFound,
            408 | 429 | 500 | 502 | 503 | 504 => Class::Retry,
            507 => Class::NoRoom,
            _ => Class::Permanent,
        };
        let detail = match problem.detail.as_str() {
            "" if status.is_redirection() => "it redirects elsewhere, which is never followed".to_owned(),
            "" => format!("it answers with HTTP status {}: is this an agent's HTTP port?", status.as_u16()),
            detail => words(detail),
        };
        self.fail(class, detail)
    }
}

/// A ticket's address as this host can use it: an unspecified one is the peer itself, a link-local one lies on the
/// interface that leads to the peer.
fn dialable(address: SocketAddr, peer: SocketAddr) -> SocketAddr {
    match (address, peer) {
        (any, _) if any.ip().is_unspecified() => {
            let mut peer = peer;
            peer.set_port(any.port());
            peer
        }
        (SocketAddr::V6(mut v6), SocketAddr::V6(peer)) if v6.ip().is_unicast_link_local() => {
            v6.set_scope_id(peer.scope_id());
            v6.into()
        }
        _ => address,
    }
}

#[cfg(test)]
mod tests;
