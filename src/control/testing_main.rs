//! Shared by the tests of the page and of the commands that talk to a main: a main over SQLite on a loopback port, and agents
//! that are there as far as main can tell.

use super::access::Role;
use super::client::ClientOptions;
use super::http::{self, HttpLimits, HttpServer};
use super::main_role::metrics::MainMetrics;
use super::main_role::peers::HttpPeers;
use super::main_role::{self, App};
use super::model::agent::OpenSession;
use super::model::item::{Assignment, Claim, ItemReport, ReportOutcome, Side};
use super::model::name::SessionKey;
use super::model::states::ItemEvent;
use super::state::{StateDir, write_secret};
use super::store::sqlite::SqliteStore;
use super::store::{Clock, Store};
use super::tls;
use super::tokens::{NewToken, TokenStore};
use super::web;
use crate::ids::AgentId;
use axum::routing::get;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A main, until it is dropped. Its own threads: tests speak to it as any client does.
pub struct TestMain {
    /// State, store, token files.
    pub dir: tempfile::TempDir,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its tokens.
    pub tokens: Arc<TokenStore>,
    /// Its store.
    pub store: Arc<dyn Store>,
    runtime: tokio::runtime::Runtime,
    sessions: Mutex<BTreeMap<String, (SessionKey, u64)>>,
    seq: AtomicU64,
    _stop: watch::Sender<bool>,
}

impl TestMain {
    /// On a port of the kernel's choice.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap())
    }

    /// On `address`.
    pub fn start_at(address: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let _entered = runtime.enter();
        let state = StateDir::open(&dir.path().join("state")).unwrap();
        let server = tls::load_server(&tls::ensure_self_signed(&state).unwrap()).unwrap();
        let tokens = Arc::new(TokenStore::new(&state));
        let peers = NewToken { name: "peers".into(), roles: [Role::Agent].into(), ..NewToken::default() };
        let token_file = dir.path().join("peers.token");
        write_secret(&token_file, tokens.add(&peers).unwrap().expose().as_bytes()).unwrap();
        let store: Arc<dyn Store> = SqliteStore::open(&dir.path().join("store"), Clock::system()).unwrap();
        let options = ClientOptions { token_file: Some(token_file), ..ClientOptions::default() };
        let app = App::new(
            store.clone(),
            tokens.clone(),
            Arc::new(HttpPeers { options, own: None, tokens: dir.path().into() }),
            Arc::new(MainMetrics::default()),
            Duration::from_secs(30),
        );
        let listener = http::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopping) = watch::channel(false);
        main_role::spawn(app.clone(), stopping.clone());
        // As an agent answers it: main probes destinations there.
        let health = get(|| async { r#"{"status": "ok"}"# });
        let router = web::with_page(main_role::router(app), tokens.clone()).route("/healthz", health);
        let server = HttpServer {
            router,
            tls: Arc::new(RwLock::new(server)),
            insecure_http: false,
            limits: HttpLimits::default(),
        };
        runtime.spawn(server.serve(listener, stopping));
        drop(_entered);
        Self { dir, address, tokens, store, runtime, sessions: Mutex::default(), seq: AtomicU64::new(0), _stop: stop }
    }

    /// Runs `work` on main's own threads.
    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The text of a new token.
    pub fn token(&self, name: &str, roles: &[Role]) -> String {
        let new = NewToken { name: name.into(), roles: roles.iter().copied().collect(), ..NewToken::default() };
        self.tokens.add(&new).unwrap().expose().to_owned()
    }

    /// A file with a new token.
    pub fn token_file(&self, name: &str, roles: &[Role]) -> PathBuf {
        let path = self.dir.path().join(format!("{name}.token"));
        write_secret(&path, self.token(name, roles).as_bytes()).unwrap();
        path
    }

    /// An agent that is a source and a destination, with a session. It answers where main itself does.
    pub fn agent(&self, name: &str) {
        let id = AgentId(crate::digest::of(name.as_bytes()).0);
        let registration = json!({
            "name": name, "id": id, "url": format!("lh://{}", self.address), "roles": ["source", "destination"], "version": "1",
        });
        let session = self.run(async {
            self.store.register(serde_json::from_value(registration).unwrap()).await.unwrap();
            let open = OpenSession { id, previous: None, items: vec![] };
            self.store.open_session(name.parse().unwrap(), open).await.unwrap()
        });
        self.sessions.lock().unwrap().insert(name.to_owned(), (session.session, session.epoch));
    }

    /// Files `/d/0` to `/d/(n-1)` of 10 bytes at `agent`, in a dataset and a block of that name.
    pub fn files(&self, agent: &str, dataset: &str, n: usize) {
        let record = |i| json!({"lfn": format!("{dataset}/{i}"), "bytes": 10, "agent": agent, "dataset": dataset, "block": format!("{dataset}#1")});
        let records = (0..n).map(|i| serde_json::from_value(record(i)).unwrap()).collect();
        self.run(self.store.add_records(records)).unwrap();
    }

    /// What the destination `agent` gets when it claims all it can, within ten seconds.
    pub fn claim(&self, agent: &str, files: usize) -> Vec<Assignment> {
        let (session, session_epoch) = self.sessions.lock().unwrap()[agent];
        let (name, mut got) = (agent.parse::<super::model::name::AgentName>().unwrap(), Vec::new());
        let until = Instant::now() + Duration::from_secs(10);
        while got.len() < files && Instant::now() < until {
            let seq = 1 + self.seq.fetch_add(1, Ordering::Relaxed);
            let claim = Claim { session, session_epoch, seq, side: Side::Destination, limit: files - got.len() };
            got.extend(self.run(async {
                let found = self.store.claimable(name.clone(), claim.clone()).await.unwrap();
                let chosen = main_role::choose::choose_all(&found);
                self.store.claim(name.clone(), claim, chosen).await.unwrap()
            }));
            std::thread::sleep(Duration::from_millis(20));
        }
        got
    }

    /// Reports `event` for each of `items`.
    pub fn report(&self, agent: &str, items: &[Assignment], event: ItemEvent) {
        let session = self.sessions.lock().unwrap()[agent].0;
        let report = |a: &Assignment| -> ItemReport {
            let mut report = json!({"item": a.item, "epoch": a.epoch, "event": event, "bytes": 10});
            match event {
                ItemEvent::Complete => (report["digest"], report["size"]) = (json!("ab".repeat(16)), json!(10)),
                ItemEvent::Fail => (report["class"], report["reason"]) = (json!("permanent"), json!("it <b>broke</b>")),
                ItemEvent::Hold => report["retry_after_secs"] = json!(600),
                _ => {}
            }
            serde_json::from_value(report).unwrap()
        };
        let reports = items.iter().map(report).collect();
        let outcomes = self.run(self.store.report(agent.parse().unwrap(), session, reports)).unwrap();
        assert!(outcomes.iter().all(|o| *o == ReportOutcome::Accepted), "{outcomes:?}");
    }
}
