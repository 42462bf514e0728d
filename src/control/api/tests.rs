use super::*;
use crate::control::client::{ClientOptions, PeerClient};
use crate::control::messages::{HandedSource, StatKind, StatReply};
use crate::control::testing::{TestPort, ended_transfer, quick, ticket};
use crate::control::url::PeerUrl;
use crate::engine::spec::Verdict;
use std::path::Path as FsPath;
use std::time::Duration;

fn client(port: &TestPort, token_file: &FsPath) -> PeerClient {
    let url = PeerUrl::parse(format!("lh://{}/", port.address).as_bytes()).unwrap();
    let known_peers = Some(port.dir.path().join("known_peers"));
    let options = ClientOptions { token_file: Some(token_file.to_owned()), known_peers, ..ClientOptions::default() };
    PeerClient::new(url, options).unwrap()
}

fn read(paths: &[&str]) -> TicketRequest {
    let paths = paths.iter().map(|p| WirePath(p.as_bytes().to_vec())).collect();
    TicketRequest::Read { paths, recursive: true, encrypt: None }
}

fn write(path: &str, options: &str, encrypt: Option<bool>) -> TicketRequest {
    let options = serde_json::from_str(options).unwrap();
    TicketRequest::Write { path: WirePath(path.as_bytes().to_vec()), becomes: true, options, encrypt }
}

/// Token × path × direction over real sockets, each cell asserted; what is denied never reaches the engine.
#[tokio::test]
async fn tickets_by_token_path_and_direction() {
    let port = TestPort::start(quick(), |app| app.max_sessions = 100);
    std::fs::create_dir_all(port.dir.path().join("root/data/in")).unwrap();
    let tokens = [
        ("all", port.token("all", "/", true, true)),
        ("reader", port.token("reader", "/data", true, false)),
        ("writer", port.token("writer", "/data/in", false, true)),
    ];
    // Cells: r a read ticket, w a write ticket, s a look at it.
    let table = [
        ("/", ["rws", "", ""]),
        ("/data", ["rws", "rs", ""]),
        ("/data/in", ["rws", "rs", "w"]),
        ("/database", ["rws", "", ""]),
        ("/data/../data", ["", "", ""]),
        ("/data/.longhaul/x", ["", "", ""]),
    ];
    for (path, cells) in table {
        for ((name, file), cell) in tokens.iter().zip(cells) {
            let client = client(&port, file);
            port.engine.grants.lock().unwrap().clear();
            let got = client.ticket(&read(&[path])).await;
            assert_eq!(got.is_ok(), cell.contains('r'), "{name} reads {path}: {got:?}");
            let got = client.ticket(&write(path, "{}", None)).await;
            assert_eq!(got.is_ok(), cell.contains('w'), "{name} writes {path}: {got:?}");
            let issued = port.engine.grants.lock().unwrap().len();
            assert_eq!(issued, cell.chars().filter(|c| "rw".contains(*c)).count(), "{name} {path}");
            let looked = client.stat(path.as_bytes()).await;
            let reached = looked.is_ok() || looked.as_ref().is_err_and(|e| e.class == Class::NotFound);
            assert_eq!(reached, cell.contains('s'), "{name} looks at {path}: {looked:?}");
            if !cell.contains('s') {
                let class = looked.unwrap_err().class;
                assert_eq!(class, if path.contains("..") { Class::Permanent } else { Class::Denied }, "{name} {path}");
            }
        }
    }
    // One path out of reach spoils the whole request.
    let error = client(&port, &tokens[1].1).ticket(&read(&["/data/a", "/other"])).await.unwrap_err();
    assert!(error.class == Class::Denied && error.what.contains("/other"), "{error}");
}

#[tokio::test]
async fn grants_carry_root_paths_and_the_agents_policy() {
    let port = TestPort::start(quick(), |_| {});
    let client = client(&port, &port.token("t", "/", true, true));
    let got = client.ticket(&read(&["/a/b/", "/"])).await.unwrap();
    assert_eq!(got.data, ["127.0.0.1:8471".parse().unwrap()], "the address dialled, with the data port");
    client.ticket(&write("/in", "{}", None)).await.unwrap();
    client.ticket(&write("/in", r#"{"verify":"wire","streams":3,"encrypt":false}"#, Some(false))).await.unwrap();
    let grants = std::mem::take(&mut *port.engine.grants.lock().unwrap());
    let Access::Read(source) = &grants[0].access else { panic!() };
    assert_eq!(source.base, port.dir.path().join("root").canonicalize().unwrap());
    assert_eq!(source.roots, [RelPath::new(b"a/b").unwrap(), RelPath::default()]);
    assert_eq!((source.encrypt, source.recursive, grants[0].ttl_secs), (Some(true), true, TICKET_TTL_SECS));
    let destination = |at: usize| match &grants[at].access {
        Access::Write(spec) => (spec.options.verify, spec.options.encrypt, spec.options.streams, spec.becomes),
        _ => panic!(),
    };
    assert_eq!(destination(1), (Verify::Disk, Some(true), None, true));
    assert_eq!(destination(2), (Verify::Wire, Some(true), Some(3), true), "a client cannot switch encryption off");

    let lax = TestPort::start(quick(), |app| {
        app.encrypt = false;
        app.advertise = vec!["192.0.2.7:1".parse().unwrap()];
    });
    let client = self::client(&lax, &lax.token("t", "/", true, true));
    for (wish, want) in [(None, false), (Some(false), false), (Some(true), true)] {
        let got = client.ticket(&write("/in", "{}", wish)).await.unwrap();
        assert_eq!(got.data, ["192.0.2.7:1".parse().unwrap()]);
        let grant = lax.engine.grants.lock().unwrap().pop().unwrap();
        let Access::Write(spec) = grant.access else { panic!() };
        assert_eq!(spec.options.encrypt, Some(want));
    }
}

#[tokio::test]
async fn requests_that_cannot_be_meant_are_refused() {
    let port = TestPort::start(quick(), |app| app.roles = vec![Role::Source]);
    let client = client(&port, &port.token("t", "/", true, true));
    let error = client.ticket(&write("/in", "{}", None)).await.unwrap_err();
    assert!(error.class == Class::Permanent && error.what.contains("role destination"), "{error}");
    let error = client.ticket(&read(&[])).await.unwrap_err();
    assert!(error.what.contains("1 to 4096"), "{error}");
    let error = client.ticket(&read(&["/a\0b"])).await.unwrap_err();
    assert!(error.class == Class::Permanent && error.what.contains("NUL"), "{error}");

    let running = crate::engine::handle::TransferStatus { report: None, ..ended_transfer() };
    port.engine.transfers.lock().unwrap().extend([running.clone(), running]);
    let error = client.ticket(&read(&["/a"])).await.unwrap_err();
    assert!(error.class == Class::Retry && error.what.contains("2 transfers"), "{error}");
}

#[tokio::test]
async fn probes_by_token_and_within_bounds() {
    let probe = |agent_sends, streams, duration_ms| {
        let options = serde_json::from_str(r#"{"congestion":"bbr"}"#).unwrap();
        TicketRequest::Probe { agent_sends, streams, duration_ms, options }
    };
    let port = TestPort::start(quick(), |_| {});
    let reader = client(&port, &port.token("reader", "/data", true, false));
    let writer = client(&port, &port.token("writer", "/data", false, true));
    for (client, agent_sends, may) in
        [(&reader, true, true), (&reader, false, false), (&writer, false, true), (&writer, true, false)]
    {
        port.engine.grants.lock().unwrap().clear();
        let got = client.ticket(&probe(agent_sends, 4, 2000)).await;
        assert_eq!(got.as_ref().map_err(|e| e.class).is_ok(), may, "{got:?}");
        assert!(may || got.unwrap_err().class == Class::Denied);
        assert_eq!(port.engine.grants.lock().unwrap().len(), usize::from(may));
    }
    let grant = {
        reader.ticket(&probe(true, 64, DURATION_MAX_MS)).await.unwrap();
        port.engine.grants.lock().unwrap().pop().unwrap()
    };
    let Access::Probe(spec) = grant.access else { panic!() };
    assert_eq!((spec.streams, spec.options.congestion.as_deref()), (64, Some("bbr")));
    for (streams, ms, name) in
        [(0, 2000, "streams"), (65, 2000, "streams"), (1, 99, "duration_ms"), (1, DURATION_MAX_MS + 1, "duration_ms")]
    {
        let error = reader.ticket(&probe(true, streams, ms)).await.unwrap_err();
        assert!(error.class == Class::Permanent && error.what.contains(name), "{error}");
    }
    let source = TestPort::start(quick(), |app| app.roles = vec![Role::Source]);
    let client = client(&source, &source.token("t", "/", true, true));
    let error = client.ticket(&probe(false, 1, 1000)).await.unwrap_err();
    assert!(error.what.contains("role destination"), "{error}");
}

/// Raw requests, as curl would send them.
async fn raw(port: &TestPort, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let auth = token.map_or(String::new(), |t| format!("authorization: Bearer {}\r\n", t.trim()));
    let head = format!("{method} {path} HTTP/1.1\r\nhost: evil.example\r\n{auth}connection: close\r\ncontent-length: ");
    let mut stream = tokio::net::TcpStream::connect(port.address).await.unwrap();
    let _ = stream.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes()).await;
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    let text = String::from_utf8_lossy(&text).into_owned();
    let status = text.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, text)
}

#[tokio::test]
async fn every_route_asks_who_is_there() {
    let port = TestPort::start(quick(), |_| {});
    let routes = [
        ("GET", "/v1/status"),
        ("POST", "/v1/tickets"),
        ("GET", "/v1/transfers"),
        ("POST", "/v1/transfers"),
        ("GET", "/v1/transfers/x"),
        ("PATCH", "/v1/transfers/x"),
        ("DELETE", "/v1/transfers/x"),
        ("POST", "/v1/transfers/x/tickets"),
        ("GET", "/v1/stat?path=/"),
    ];
    let expired = format!("lht_{}", "0".repeat(64));
    port.token("t", "/", true, true);
    for (method, path) in routes {
        for token in [None, Some("nonsense"), Some(expired.as_str())] {
            let (status, text) = raw(&port, method, path, token, "{}").await;
            assert_eq!(status, 401, "{method} {path}: {text}");
            assert!(text.contains("www-authenticate: Bearer") && text.contains("application/problem+json"), "{text}");
        }
    }
    let (status, text) = raw(&port, "GET", "/healthz", None, "").await;
    assert!(status == 200 && text.ends_with("{\"status\":\"ok\"}"), "{text}");
    assert_eq!(raw(&port, "GET", "/", None, "").await.0, 404);
    assert_eq!(raw(&port, "PUT", "/v1/tickets", None, "").await.0, 405);
    let (status, text) = raw(&port, "GET", "/metrics", None, "").await;
    assert!(status == 200 && text.contains("# EOF"), "loopback may scrape: {text}");
}

#[tokio::test]
async fn bodies_are_bounded_and_secrets_do_not_come_back() {
    let port = TestPort::start(quick(), |_| {});
    let token = std::fs::read_to_string(port.token("t", "/", true, true)).unwrap();
    let (status, text) = raw(&port, "POST", "/v1/tickets", Some(&token), &"x".repeat(BODY_MAX + 1)).await;
    assert!(status == 413 || status == 0, "{text}");
    let (status, text) = raw(&port, "POST", "/v1/tickets", Some(&token), "{\"direction\":\"read\"").await;
    assert!(status == 400 && text.contains("the request's body"), "{text}");
    assert!(!text.contains(token.trim()) && text.contains("no-store"));

    // Without a declared length the count decides.
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(port.address).await.unwrap();
    let head = format!(
        "POST /v1/tickets HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ntransfer-encoding: chunked\r\n\r\n",
        token.trim()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..=(BODY_MAX / 65_536) {
        if stream.write_all(format!("10000\r\n{}\r\n", "x".repeat(65_536)).as_bytes()).await.is_err() {
            break;
        }
    }
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");

    let (status, text) = raw(&port, "POST", "/v1/tickets", Some(&token), r#"{"direction":"read","paths":["/"]}"#).await;
    assert!(status == 201 && text.contains("cache-control: no-store") && text.contains("\"key\":\""), "{text}");
}

#[tokio::test]
async fn stat_tells_kinds_sizes_and_odd_names() {
    use std::os::unix::ffi::OsStrExt;
    let port = TestPort::start(quick(), |_| {});
    let root = port.dir.path().join("root");
    std::fs::write(root.join(std::ffi::OsStr::from_bytes(b"a b%\xff\n&=")), b"123").unwrap();
    std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
    let client = client(&port, &port.token("t", "/", true, false));
    let file = StatReply { kind: StatKind::File, size: 3 };
    assert_eq!(client.stat(b"/a b%\xff\n&=").await, Ok(file));
    assert_eq!(client.stat(b"/").await, Ok(StatReply { kind: StatKind::Directory, size: 0 }));
    assert_eq!(client.stat(b"/none").await.unwrap_err().class, Class::NotFound);
    assert_eq!(client.stat(b"/out/passwd").await.unwrap_err().class, Class::NotFound);
    let token = std::fs::read_to_string(port.dir.path().join("t")).unwrap();
    for query in ["", "?", "?p=/", "?path=%zz", "?path=/a&path=/b", "?path=%00"] {
        assert_eq!(raw(&port, "GET", &format!("/v1/stat{query}"), Some(&token), "").await.0, 400, "{query}");
    }
}

#[tokio::test]
async fn status_transfers_and_whose_they_are() {
    let port = TestPort::start(quick(), |_| {});
    let id = crate::ids::TransferId([7; 16]);
    let ended = crate::engine::handle::TransferStatus { transfer: Some(id), ..ended_transfer() };
    port.engine.transfers.lock().unwrap().push(ended);
    let admin = client(&port, &port.token("chief", "/", true, true));
    let alice = client(&port, &port.token("alice", "/a", true, false));
    let bob = client(&port, &port.token("bob", "/", true, false));
    let status = bob.status().await.unwrap();
    assert_eq!((status.agent, status.sessions), (AgentId([3; 16]), 0));
    assert!(
        status.root.total_bytes > 0 && status.engine["engine"] == "fake" && status.roles == ["source", "destination"]
    );
    for (client, sees) in [(&admin, true), (&alice, true), (&bob, false)] {
        let got = client.transfer(&id.to_string()).await;
        assert_eq!(got.is_ok(), sees);
        match got {
            Ok(view) => assert_eq!(view.report.unwrap().verdict, Verdict::Verified),
            Err(error) => assert_eq!(error.class, Class::NotFound),
        }
        let token = std::fs::read_to_string(port.dir.path().join(["bob", "alice"][usize::from(sees)])).unwrap();
        let (_, text) = raw(&port, "GET", "/v1/transfers", Some(&token), "").await;
        assert_eq!(text.contains("alice"), sees, "{text}");
        let error = client.cancel(&id.to_string()).await.unwrap_err();
        assert_eq!(error.class, if sees { Class::Permanent } else { Class::NotFound });
    }
}

#[tokio::test]
async fn a_running_transfer_is_changed_by_whose_it_is() {
    let port = TestPort::start(quick(), |_| {});
    let (running, over) = (crate::ids::TransferId([7; 16]), crate::ids::TransferId([8; 16]));
    let status = |id| TransferStatus { transfer: Some(id), ..ended_transfer() };
    let all = [TransferStatus { report: None, ..status(running) }, status(over)];
    port.engine.transfers.lock().unwrap().extend(all);
    let change = Steer { rate: Some(0), ..Steer::default() };
    for (name, may) in [("chief", true), ("alice", true), ("bob", false)] {
        let client = client(&port, &port.token(name, if name == "chief" { "/" } else { "/a" }, true, name == "chief"));
        let class =
            |result: Result<TransferView, _>| result.map_err(|error: crate::engine::error::TransferError| error.class);
        let changed = class(client.steer(&running.to_string(), &change).await).map(|view| view.transfer);
        assert_eq!(changed, if may { Ok(Some(running)) } else { Err(Class::NotFound) }, "{name}");
        let late = class(client.steer(&over.to_string(), &change).await).map(|view| view.transfer);
        assert_eq!(late, Err(if may { Class::Permanent } else { Class::NotFound }), "{name}");
        for bad in [Steer::default(), Steer { streams: Some(0), ..change }, Steer { rate: Some(7999), ..change }] {
            let refused = client.steer(&running.to_string(), &bad).await;
            assert!(refused.is_err(), "{name}: {bad:?}");
        }
    }
    let steered = port.engine.steered.lock().unwrap();
    let reached: Vec<_> = steered.iter().filter(|(id, _)| *id == running).collect();
    assert_eq!(reached, [&(running, change), &(running, change)], "what is refused never reaches the engine");
}

#[tokio::test]
async fn a_third_party_copy_from_start_to_cancel() {
    let port = TestPort::start(quick(), |_| {});
    let owner = client(&port, &port.token("owner", "/in", false, true));
    let other = client(&port, &port.token("other", "/in", false, true));
    let source = |address: &str| {
        let ticket = crate::engine::spec::Ticket { data: vec![address.parse().unwrap()], ..ticket() };
        HandedSource { name: "dtn1".to_owned(), ticket }
    };
    let request = |path: &str, address: &str| ThirdPartyRequest {
        sources: vec![source(address)],
        path: WirePath(path.as_bytes().to_vec()),
        becomes: false,
        options: PartialOptions::default(),
    };
    let denied = owner.start_third_party(&request("/out", "127.0.0.1:1")).await.unwrap_err();
    assert_eq!(denied.class, Class::Denied);
    let metadata = owner.start_third_party(&request("/in", "169.254.169.254:80")).await.unwrap_err();
    assert!(metadata.class == Class::Denied && metadata.what.contains("169.254.169.254"), "{metadata}");
    assert!(port.engine.pulls.lock().unwrap().is_empty());

    let id = owner.start_third_party(&request("/in/x", "127.0.0.1:1")).await.unwrap().id;
    let again = owner.start_third_party(&request("/in/x", "127.0.0.1:1")).await.unwrap().id;
    assert_eq!(again, id, "asked twice with the same ticket, as by a client that was cut off");
    assert_eq!(other.transfer(&id).await.unwrap_err().class, Class::NotFound);
    assert_eq!(other.cancel(&id).await.unwrap_err().class, Class::NotFound);
    let low = Steer { priority: Some(crate::engine::spec::Priority::Low), ..Steer::default() };
    assert_eq!(other.steer(&id, &low).await.unwrap_err().class, Class::NotFound);
    assert!(owner.steer(&id, &low).await.is_ok(), "also before it moves");
    assert_eq!(other.hand_ticket(&id, 0, ticket()).await.unwrap_err().class, Class::NotFound);
    let until = async |what: &dyn Fn(&TransferView) -> bool| {
        for _ in 0..200 {
            let view = owner.transfer(&id).await.unwrap();
            if what(&view) {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it does not come to that");
    };
    // The first ticket is used; the engine asks for another.
    until(&|v| v.wants_tickets == [0]).await;
    owner.hand_ticket(&id, 0, ticket()).await.unwrap();
    let moving = until(&|v| v.snapshot.phase == "moving").await;
    assert!(moving.report.is_none() && moving.path == "in/x" && moving.principal == "owner");
    owner.cancel(&id).await.unwrap();
    let ended = until(&|v| v.report.is_some()).await;
    assert_eq!(owner.steer(&id, &low).await.unwrap_err().class, Class::Permanent, "it has ended");
    assert_eq!(ended.report.unwrap().verdict, Verdict::Partial);
    let (principal, to, _) = port.engine.pulls.lock().unwrap().pop().unwrap();
    assert_eq!((principal.as_str(), to.options.verify, to.options.encrypt), ("owner", Verify::Disk, Some(true)));
}
