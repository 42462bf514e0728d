//! Shared by the tests of this directory: an engine that only remembers what it was asked.

use super::api::{self, App};
use super::bridge::{Boxed, TransferEngine};
use super::http::{self, HttpLimits, HttpServer};
use super::metrics::Metrics;
use super::root::ServedRoot;
use super::settings::Role;
use super::state::StateDir;
use super::third_party::Jobs;
use super::tls::{self, Fingerprint};
use super::tokens::{NewToken, TokenStore, parse_prefix};
use crate::engine::error::TransferError;
use crate::engine::handle::{TicketSource, TransferStatus, TransferWatch};
use crate::engine::spec::{
    DestinationSpec, Grant, Report, Secret, Snapshot, SourceSpec, Steer, Ticket, TransferOptions, Verdict, Verify,
};
use crate::ids::{AgentId, TicketId, TransferId};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// A ticket that opens nothing.
pub fn ticket() -> Ticket {
    Ticket {
        id: TicketId([1; 16]),
        key: Secret([0x5a; 32]),
        data: vec!["127.0.0.1:1".parse().unwrap()],
        agent: AgentId([2; 16]),
        expires: u64::MAX >> 1,
    }
}

/// A transfer that has ended well.
pub fn ended_transfer() -> TransferStatus {
    TransferStatus {
        transfer: None,
        principal: "alice".to_owned(),
        role: "destination",
        peer: Some("192.0.2.1:4".parse().unwrap()),
        local: Some("192.0.2.2:8471".parse().unwrap()),
        path: "in/a\\x0ab".to_owned(),
        snapshot: Snapshot::default(),
        report: Some(Report {
            verdict: Verdict::Verified,
            bytes: 1000,
            files: 1,
            resent_bytes: 7,
            ..Report::default()
        }),
    }
}

/// Remembers grants and pulls, answers with fixed values.
#[derive(Default)]
pub struct FakeEngine {
    /// What was issued.
    pub grants: Mutex<Vec<Grant>>,
    /// What was to be changed.
    pub steered: Mutex<Vec<(TransferId, Steer)>>,
    /// What was pulled: principal, destination, and the cancel switch.
    pub pulls: Mutex<Vec<(String, DestinationSpec, watch::Receiver<bool>)>>,
    /// What `transfers` says.
    pub transfers: Mutex<Vec<TransferStatus>>,
}

impl TransferEngine for FakeEngine {
    fn issue(&self, grant: Grant) -> Boxed<'_, Result<Ticket, TransferError>> {
        self.grants.lock().unwrap().push(grant);
        Box::pin(async { Ok(ticket()) })
    }

    /// Takes two tickets of the first source, then waits for the cancel.
    fn pull(
        &self,
        principal: String,
        to: DestinationSpec,
        from: Vec<Arc<dyn TicketSource>>,
    ) -> Boxed<'_, Result<TransferWatch, TransferError>> {
        let (cancel, mut cancelled) = watch::channel(false);
        self.pulls.lock().unwrap().push((principal, to, cancelled.clone()));
        Box::pin(async move {
            from[0].ticket().await?;
            from[0].ticket().await?;
            let (end, done) = oneshot::channel();
            tokio::spawn(async move {
                let _ = cancelled.wait_for(|&c| c).await;
                let _ = end.send(Report { verdict: Verdict::Partial, bytes: 5, ..Report::default() });
            });
            let snapshot = watch::channel(Snapshot { phase: "moving".into(), ..Snapshot::default() }).1;
            let steer = Arc::new(watch::channel(Steer::default()).0);
            Ok(TransferWatch { snapshot, done, cancel: Arc::new(cancel), steer })
        })
    }

    fn push(
        &self,
        _: String,
        _: SourceSpec,
        _: Arc<dyn TicketSource>,
        _: TransferOptions,
    ) -> Boxed<'_, Result<TransferWatch, TransferError>> {
        Box::pin(async { Err(TransferError::new(crate::engine::error::Class::Permanent, "no pushes here")) })
    }

    fn transfers(&self) -> Boxed<'_, Vec<TransferStatus>> {
        Box::pin(async { self.transfers.lock().unwrap().clone() })
    }

    fn steer(&self, id: TransferId, steer: Steer) -> Boxed<'_, bool> {
        self.steered.lock().unwrap().push((id, steer));
        let running = |t: &TransferStatus| t.report.is_none() && t.transfer == Some(id);
        let there = self.transfers.lock().unwrap().iter().any(running);
        Box::pin(async move { there })
    }

    fn facts(&self) -> Vec<(String, String)> {
        vec![("engine".to_owned(), "fake".to_owned())]
    }
}

/// An HTTP port over a [`FakeEngine`].
pub struct TestPort {
    /// Root, state, token files.
    pub dir: tempfile::TempDir,
    /// Where it listens.
    pub address: SocketAddr,
    /// Of its certificate.
    pub fingerprint: Fingerprint,
    /// The engine behind it.
    pub engine: Arc<FakeEngine>,
    /// Its tokens, as another process would see them.
    pub tokens: TokenStore,
    stop: watch::Sender<bool>,
}

/// Short deadlines, so that tests of them are short.
pub fn quick() -> HttpLimits {
    let short = Duration::from_millis(400);
    HttpLimits {
        handshake: short,
        header: short,
        request: short,
        connection: Duration::from_secs(5),
        total: 40,
        per_source: 20,
    }
}

impl TestPort {
    /// Started with `limits`, after `change` has had its way.
    pub fn start(limits: HttpLimits, change: impl FnOnce(&mut App)) -> Self {
        Self::with(limits, change, |_| axum::Router::new())
    }

    /// The same, with routes beside those of every agent.
    pub fn with(
        limits: HttpLimits,
        change: impl FnOnce(&mut App),
        routes: impl FnOnce(Arc<App>) -> axum::Router,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        let state = StateDir::open(&dir.path().join("state")).unwrap();
        let tls = tls::load_server(&tls::ensure_self_signed(&state).unwrap()).unwrap();
        let engine = Arc::new(FakeEngine::default());
        let mut app = App {
            agent: AgentId([3; 16]),
            roles: vec![Role::Source, Role::Destination],
            root: Arc::new(ServedRoot::open(&dir.path().join("root")).unwrap()),
            engine: engine.clone(),
            tokens: Arc::new(TokenStore::new(&state)),
            data: "[::]:8471".parse().unwrap(),
            advertise: Vec::new(),
            verify: Verify::Disk,
            encrypt: true,
            max_sessions: 2,
            started: Instant::now(),
            metrics: Arc::new(Metrics::default()),
            jobs: Jobs::default(),
            stage_rule: super::source::Rule(super::settings::StageRule::Online),
        };
        change(&mut app);
        let listener = http::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopping) = watch::channel(false);
        let fingerprint = tls.fingerprint;
        let app = Arc::new(app);
        let router = api::router(app.clone()).merge(routes(app));
        let server = HttpServer { router, tls: Arc::new(RwLock::new(tls)), insecure_http: false, limits };
        tokio::spawn(server.serve(listener, stopping));
        let tokens = TokenStore::new(&state);
        Self { dir, address, fingerprint, engine, tokens, stop }
    }

    /// A token beneath `prefix`; its file.
    pub fn token(&self, name: &str, prefix: &str, read: bool, write: bool) -> PathBuf {
        let prefixes = vec![parse_prefix(prefix).unwrap()];
        let new = NewToken { name: name.to_owned(), prefixes, read, write, ..NewToken::default() };
        let path = self.dir.path().join(name);
        super::state::write_secret(&path, self.tokens.add(&new).unwrap().expose().as_bytes()).unwrap();
        path
    }
}

/// An answer as it came over the wire.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Lines of the head, in lower case up to the colon.
    pub headers: Vec<(String, String)>,
    /// What came of the body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

impl TestPort {
    /// One request on one connection, as `curl` would make it; the token is read from its file.
    pub async fn ask(&self, token: &std::path::Path, line: &str, headers: &str, body: &[u8]) -> Reply {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let token = std::fs::read_to_string(token).unwrap();
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
            token.trim(),
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| panic!("{line}: no head came"));
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()));
        Reply { status, headers: headers.collect(), body: answer[end + 4..].to_vec() }
    }
}

impl Drop for TestPort {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}
