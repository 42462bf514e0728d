//! Access over a real HTTP port. What is asked here is decided before or around the store, so the store holds one request, one
//! item and one file, of a dataset that the scoped tokens are not for; it counts who reaches it.

use super::metrics::MainMetrics;
use super::peers::HttpPeers;
use super::routes::ROUTES;
use super::*;
use crate::control::access::Role;
use crate::control::http::{self, HttpLimits, HttpServer};
use crate::control::model::agent::*;
use crate::control::model::catalog::*;
use crate::control::model::event::{Event, EventFilter};
use crate::control::model::item::*;
use crate::control::model::name::*;
use crate::control::model::page::{Page, PageQuery};
use crate::control::model::request::*;
use crate::control::model::states::ItemState;
use crate::control::model::time::Time;
use crate::control::state::StateDir;
use crate::control::store::*;
use crate::control::tls;
use crate::control::tokens::NewToken;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Default)]
struct OneOfEach {
    reached: AtomicU64,
}

fn request() -> RequestView {
    let at = "2026-01-01T00:00:00Z";
    serde_json::from_value(json!({
        "id": RequestId::default(), "version": 7, "owner": "someone", "state": "pending_approval", "paused": false,
        "cancelling": false, "spec": {"select": {"dataset": "/other/x"}, "destinations": ["d1"]},
        "counters": Counters::default(), "created": at, "changed": at,
        "reason": "an approver who is not the owner has to say yes: rule `two`",
    }))
    .unwrap()
}

fn file() -> FileView {
    let dataset = "/other/x".parse().ok();
    FileView { lfn: "/f".parse().unwrap(), dataset, block: None, bytes: 1, digest: None, replicas: vec![] }
}

macro_rules! unavailable {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $out:ty;)*) => {
        $(fn $name(&self, $($arg: $kind),*) -> Stored<'_, $out> {
            $(let _ = $arg;)*
            self.reached.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Err(StoreError::Unavailable("not here".into())) })
        })*
    };
}

macro_rules! gives {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $out:ty = $value:expr;)*) => {
        $(fn $name(&self, $($arg: $kind),*) -> Stored<'_, $out> {
            $(let _ = $arg;)*
            self.reached.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Ok($value) })
        })*
    };
}

impl Store for OneOfEach {
    gives! {
        now() -> Time = Time(1_700_000_000_000);
        request(_i: RequestId) -> RequestView = request();
        requests(_f: RequestFilter, _p: PageQuery) -> Page<RequestView> = Page { items: vec![request()], next: None };
        item(_i: ItemId) -> ItemView = {
            let at = Time(0);
            ItemView {
                id: ItemId::new(), request: RequestId::new(), lfn: file().lfn, path: file().lfn, bytes: None,
                digest: None, state: ItemState::Queued, destination: "d1".parse().unwrap(), source: None, epoch: 0,
                tries: 0, not_before: None, hold_since: None, progress: 0, reason: None, changed: at,
            }
        };
        file(_l: Lfn) -> FileView = file();
        files(_f: FileFilter, _p: PageQuery) -> Page<FileView> = Page { items: vec![file()], next: None };
        datasets(_x: Option<DatasetName>, _p: PageQuery) -> Page<GroupView> = Page {
            items: vec![GroupView { name: "/other/x".into(), dataset: None, blocks: None, files: 1, bytes: 1 }],
            next: None,
        };
        last_event() -> i64 = 0;
        resolving() -> Vec<RequestId> = vec![];
    }
    unavailable! {
        create_request(_a: Actor, _s: RequestSpec, _k: Option<Idempotency>) -> Created;
        add_items(_i: RequestId, _n: Vec<NewItem>) -> ();
        restart_resolving(_i: RequestId) -> bool;
        resolved(_i: RequestId, _r: Resolution) -> RequestView;
        decide(_i: RequestId, _a: Actor, _v: u64, _d: Decision) -> RequestView;
        patch_request(_i: RequestId, _v: u64, _p: RequestPatch) -> RequestView;
        pause(_i: RequestId, _a: Actor, _p: bool) -> RequestView;
        cancel(_i: RequestId, _a: Actor) -> RequestView;
        retry_failed(_i: RequestId, _a: Actor) -> RequestView;
        delete_request(_i: RequestId, _a: Actor) -> ();
        items(_i: RequestId, _s: Option<ItemState>, _p: PageQuery) -> Page<ItemView>;
        attempts(_i: ItemId) -> Vec<AttemptView>;
        register(_r: AgentRegistration) -> AgentView;
        agents() -> Vec<AgentView>;
        agent(_n: AgentName) -> AgentView;
        drain(_n: AgentName, _d: bool) -> AgentView;
        remove_agent(_n: AgentName) -> ();
        open_session(_n: AgentName, _o: OpenSession) -> Session;
        renew(_n: AgentName, _r: Renewal) -> Renewed;
        claimable(_n: AgentName, _c: Claim) -> Vec<Claimable>;
        claim(_n: AgentName, _c: Claim, _x: Vec<(ItemId, u64, AgentName)>) -> Vec<Assignment>;
        assignments(_n: AgentName, _s: SessionKey) -> Vec<Assignment>;
        report(_n: AgentName, _s: SessionKey, _r: Vec<ItemReport>) -> Vec<ReportOutcome>;
        sweep(_u: Vec<SessionKey>) -> Swept;
        overdue() -> Vec<SessionKey>;
        add_records(_r: Vec<Record>) -> ();
        remove_records(_a: AgentName, _l: Vec<Lfn>) -> u64;
        blocks(_d: DatasetName, _p: PageQuery) -> Page<GroupView>;
        events(_a: i64, _f: EventFilter, _l: usize) -> Vec<Event>;
        approval_rules() -> Vec<ApprovalRule>;
        set_approval_rules(_a: Actor, _r: Vec<ApprovalRule>) -> ();
    }

    fn wait_event(&self, _after: i64) -> crate::control::bridge::Boxed<'_, ()> {
        Box::pin(tokio::time::sleep(Duration::from_secs(1)))
    }
}

struct Port {
    _dir: tempfile::TempDir,
    address: SocketAddr,
    tokens: Arc<TokenStore>,
    store: Arc<OneOfEach>,
    _stop: watch::Sender<bool>,
}

impl Port {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("state")).unwrap();
        let server = tls::load_server(&tls::ensure_self_signed(&state).unwrap()).unwrap();
        let tokens = Arc::new(TokenStore::new(&state));
        let store = Arc::new(OneOfEach::default());
        let peers = Arc::new(HttpPeers::default());
        let app =
            App::new(store.clone(), tokens.clone(), peers, Arc::new(MainMetrics::default()), Duration::from_secs(30));
        let listener = http::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopping) = watch::channel(false);
        let limits = HttpLimits::default();
        let server =
            HttpServer { router: router(app), tls: Arc::new(RwLock::new(server)), insecure_http: false, limits };
        tokio::spawn(server.serve(listener, stopping));
        Self { _dir: dir, address, tokens, store, _stop: stop }
    }

    fn token(&self, name: &str, roles: &[Role], dataset: Option<&str>) -> String {
        let datasets = dataset.map(|d| d.parse().unwrap()).into_iter().collect();
        let roles = roles.iter().copied().collect();
        let new = NewToken { name: name.to_owned(), roles, datasets, ..NewToken::default() };
        self.tokens.add(&new).unwrap().expose().to_owned()
    }

    /// Status, and the body where `whole` (a stream has no end).
    async fn ask(&self, method: &str, path: &str, token: Option<&str>, body: &Value, whole: bool) -> (u16, String) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let authorization = token.map(|t| format!("authorization: Bearer {t}\r\n")).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nif-match: \"7\"\r\n{authorization}content-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        loop {
            let mut piece = [0; 4096];
            let n = stream.read(&mut piece).await.unwrap();
            answer.extend_from_slice(&piece[..n]);
            if n == 0 || (!whole && answer.len() >= 12) {
                break;
            }
        }
        let text = String::from_utf8(answer).unwrap();
        (text[9..12].parse().unwrap(), text)
    }
}

/// What a scope that does not fit does.
#[derive(Clone, Copy, PartialEq)]
enum Scope {
    /// 403 or 404.
    Refused,
    /// The list leaves it out.
    LeftOut,
    /// The route is about no dataset.
    No,
}

/// Route, body, who may (viewer, submitter, apProver, operator, agent `d1`; nobody `-` is everybody), scope.
/// Steering is for operators here, because the request is somebody else's.
fn table() -> Vec<(&'static str, &'static str, Value, &'static str, Scope)> {
    use Scope::*;
    let digest = "0".repeat(64);
    let session = SessionKey::default();
    let agent = crate::ids::AgentId([1; 16]);
    let record = json!({"lfn": "/f", "bytes": 1, "agent": "d1", "dataset": "/other/x", "block": "/other/x#1"});
    let registration = json!({"name": "d1", "id": agent, "url": "lh://127.0.0.1:1", "roles": [], "version": "1"});
    let spec = json!({"select": {"dataset": "/other/x"}, "destinations": ["d1"]});
    let renewal = json!({"session": session, "epoch": 1, "status": {}});
    let claim = json!({"session": session, "session_epoch": 1, "seq": 1, "side": "destination", "limit": 1});
    vec![
        ("POST", "/v1/requests", spec, "sa", Refused),
        ("GET", "/v1/requests", Value::Null, "vspo", LeftOut),
        ("GET", "/v1/requests/{id}", Value::Null, "vspo", Refused),
        ("PATCH", "/v1/requests/{id}", json!({"priority": 1}), "o", Refused),
        ("DELETE", "/v1/requests/{id}", Value::Null, "o", Refused),
        ("POST", "/v1/requests/{id}/manifest", Value::Null, "o", Refused),
        ("POST", "/v1/requests/{id}/approval", json!({"decision": "approve", "digest": digest}), "p", Refused),
        ("POST", "/v1/requests/{id}/pause", Value::Null, "o", Refused),
        ("POST", "/v1/requests/{id}/resume", Value::Null, "o", Refused),
        ("POST", "/v1/requests/{id}/cancel", Value::Null, "o", Refused),
        ("POST", "/v1/requests/{id}/retry-failed", Value::Null, "o", Refused),
        ("GET", "/v1/requests/{id}/items", Value::Null, "vspo", Refused),
        ("GET", "/v1/items/{id}", Value::Null, "vspo", Refused),
        ("GET", "/v1/items/{id}/attempts", Value::Null, "vspo", Refused),
        ("POST", "/v1/agents", registration, "oa", No),
        ("GET", "/v1/agents", Value::Null, "vspoa", No),
        ("GET", "/v1/agents/{name}", Value::Null, "vspoa", No),
        ("DELETE", "/v1/agents/{name}", Value::Null, "o", No),
        ("POST", "/v1/agents/{name}/drain", json!({"draining": true}), "o", No),
        ("POST", "/v1/agents/{name}/session", json!({"id": agent}), "a", No),
        ("PUT", "/v1/agents/{name}/session", renewal, "a", No),
        ("POST", "/v1/agents/{name}/claims", claim, "a", No),
        ("GET", "/v1/agents/{name}/assignments", Value::Null, "a", No),
        ("POST", "/v1/agents/{name}/reports", json!({"session": session, "reports": []}), "a", No),
        ("GET", "/v1/catalog/datasets", Value::Null, "vspoa", LeftOut),
        ("GET", "/v1/catalog/blocks", Value::Null, "vspoa", Refused),
        ("GET", "/v1/catalog/files", Value::Null, "vspoa", LeftOut),
        ("GET", "/v1/catalog/file", Value::Null, "vspoa", Refused),
        ("POST", "/v1/catalog/records", json!([record]), "oa", Refused),
        ("POST", "/v1/catalog/remove", json!({"agent": "d1", "lfns": ["/f"]}), "oa", Refused),
        ("GET", "/v1/events", Value::Null, "vspo", Refused),
        ("GET", "/v1/policies/approval", Value::Null, "vspo", No),
        ("PUT", "/v1/policies/approval", json!([]), "o", Refused),
        ("GET", "/openapi.json", Value::Null, "-", No),
        ("GET", "/readyz", Value::Null, "-", No),
    ]
}

fn at(path: &str, agent: &str) -> String {
    let id =
        if path.starts_with("/v1/items") { ItemId::default().to_string() } else { RequestId::default().to_string() };
    let query = match path {
        "/v1/catalog/blocks" => "?dataset=/other/x".to_owned(),
        "/v1/catalog/file" => "?lfn=/f".to_owned(),
        "/v1/agents/{name}/assignments" => format!("?session={}", SessionKey::default()),
        _ => String::new(),
    };
    format!("{}{query}", path.replace("{id}", &id).replace("{name}", agent))
}

const LETTERS: [(char, Role); 5] =
    [('v', Role::Viewer), ('s', Role::Submitter), ('p', Role::Approver), ('o', Role::Operator), ('a', Role::Agent)];

/// Every route × no credential, a wrong one, each role, none of them, a wrong scope, another agent's name, the owner, the admin.
#[tokio::test]
async fn every_route_by_every_role() {
    let port = Port::start();
    let table = table();
    let mut listed: Vec<_> = table.iter().map(|row| (row.0.to_owned(), row.1)).collect();
    let mut routes: Vec<_> = ROUTES.iter().map(|r| (r.method.to_string(), r.path)).collect();
    listed.sort();
    routes.sort();
    assert_eq!(listed, routes, "a route without a row here, or a row without a route");

    let name = |role: Role| if role == Role::Agent { "d1".to_owned() } else { role.to_string() };
    let plain: Vec<_> = LETTERS.iter().map(|(l, r)| (*l, port.token(&name(*r), &[*r], None))).collect();
    let scoped: Vec<_> =
        LETTERS.iter().map(|(l, r)| (*l, port.token(&format!("{r}-mine"), &[*r], Some("/mine")))).collect();
    let owner = port.token("someone", &[Role::Submitter], None);
    let admin = port.token("all", &Role::ALL, None);
    let path_only = NewToken {
        name: "files".into(),
        prefixes: vec![Default::default()],
        read: true,
        write: true,
        ..NewToken::default()
    };
    let path_only = port.tokens.add(&path_only).unwrap().expose().to_owned();
    let reached = || port.store.reached.swap(0, Ordering::Relaxed);

    for (method, path, body, may, scope) in table {
        let url = at(path, "d1");
        let cell = |status: u16| !matches!(status, 401 | 403);
        let open = may == "-";
        for token in [None, Some("lht_wrong"), Some("x y")] {
            reached();
            let (status, _) = port.ask(method, &url, token, &body, false).await;
            assert_eq!(status == 401, !open, "{method} {path} with {token:?}: {status}");
            assert!(open || reached() == 0, "{method} {path} reached the store with {token:?}");
        }
        if open {
            continue;
        }
        let (status, _) = port.ask(method, &url, Some(&path_only), &body, false).await;
        assert_eq!(status, 403, "{method} {path} with rights on paths alone");
        for (letter, token) in &plain {
            let (status, text) = port.ask(method, &url, Some(token), &body, false).await;
            assert_eq!(cell(status), may.contains(*letter), "{method} {path} by `{letter}`: {text}");
            assert!(cell(status) || status == 403, "{method} {path} by `{letter}`: {status}");
        }
        let (status, text) = port.ask(method, &url, Some(&admin), &body, false).await;
        assert!(cell(status), "{method} {path} by the admin: {text}");
        // The first that may at all stands for its route; agents of another name are asked below.
        let stands = may.chars().find(|l| *l != 'a');
        if let Some(letter) = stands {
            let token = &scoped.iter().find(|(l, _)| *l == letter).unwrap().1;
            let (status, text) = port.ask(method, &url, Some(token), &body, scope == Scope::LeftOut).await;
            match scope {
                Scope::Refused => assert!(matches!(status, 403 | 404), "{method} {path} out of scope: {text}"),
                Scope::LeftOut => assert!(status == 200 && !text.contains("/other"), "{method} {path}: {text}"),
                Scope::No => assert!(cell(status), "{method} {path}: {text}"),
            }
        }
        if path.starts_with("/v1/agents/{name}/") && may == "a" {
            let token = &plain.iter().find(|(l, _)| *l == 'a').unwrap().1;
            reached();
            let (status, _) = port.ask(method, &at(path, "d2"), Some(token), &body, false).await;
            assert_eq!((status, reached()), (403, 0), "{method} {path} for another agent");
        }
        if may == "o" && path.starts_with("/v1/requests") {
            let (status, text) = port.ask(method, &url, Some(&owner), &body, false).await;
            assert!(cell(status), "{method} {path} by its owner: {text}");
        }
    }
}

/// Approval is bound to what was seen, and a second person is one.
#[tokio::test]
async fn approval_needs_its_etag_and_a_second_person() {
    let port = Port::start();
    let owner = port.token("someone", &[Role::Submitter, Role::Approver], None);
    let other = port.token("other", &[Role::Approver], None);
    let path = at("/v1/requests/{id}/approval", "");
    let body = json!({"decision": "approve", "digest": "0".repeat(64)});
    let (status, text) = port.ask("POST", &path, Some(&owner), &body, true).await;
    assert!(status == 403 && text.contains("second person"), "{text}");
    // The store is asked: its answer here is that it cannot.
    assert_eq!(port.ask("POST", &path, Some(&other), &body, true).await.0, 503);
    let raw = |tag: &'static str| {
        let (address, other, path) = (port.address, other.clone(), path.clone());
        async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {other}\r\n{tag}content-length: 2\r\n\r\n{{}}"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text[9..12].parse::<u16>().unwrap()
        }
    };
    assert_eq!(raw("").await, 428);
    assert_eq!(raw("if-match: \"6\"\r\n").await, 412);
    assert_eq!(raw("if-match: 7\r\n").await, 400);
}

/// A sweep names only sessions that this process has not heard for a whole lease, whatever the store's clock says.
#[tokio::test]
async fn a_session_that_was_heard_is_spared() {
    let port = Port::start();
    let peers = Arc::new(HttpPeers::default());
    let lease = Duration::from_secs(30);
    let app = App::new(port.store.clone(), port.tokens.clone(), peers, Arc::default(), lease);
    let (heard, silent) = (SessionKey::new(), SessionKey::new());
    let started = app.heard.lock().unwrap().others;
    let later = started + lease;
    app.heard.lock().unwrap().sessions.insert(heard, started + Duration::from_secs(1));
    assert_eq!(sweep::unheard(&app, vec![heard, silent], later - Duration::from_millis(1)), vec![]);
    assert_eq!(sweep::unheard(&app, vec![heard, silent], later), vec![silent]);
    assert_eq!(sweep::unheard(&app, vec![heard], later + Duration::from_secs(1)), vec![heard]);
}

/// One resolver at a time per request.
#[tokio::test]
async fn a_request_is_resolved_by_one() {
    let port = Port::start();
    let peers = Arc::new(HttpPeers::default());
    let app = App::new(port.store.clone(), port.tokens.clone(), peers, Arc::default(), Duration::from_secs(30));
    let id = RequestId::new();
    let held = app.take(id);
    assert!(held.is_some() && app.take(id).is_none() && app.take(RequestId::new()).is_some());
    drop(held);
    assert!(app.take(id).is_some());
}
