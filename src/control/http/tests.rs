use super::*;
use crate::control::testing::{TestPort, quick};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn plain_http_stays_on_loopback_unless_told() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let loops = ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"];
    let far = ["192.0.2.1", "10.0.0.1", "2001:db8::1", "fe80::1", "::ffff:192.0.2.1", "0.0.0.0", "::"];
    for a in loops {
        for b in loops {
            assert!(plain_allowed(ip(a), ip(b), false));
        }
        for b in far {
            assert!(!plain_allowed(ip(a), ip(b), false), "{a} {b}");
            assert!(!plain_allowed(ip(b), ip(a), false), "{b} {a}");
            assert!(plain_allowed(ip(b), ip(a), true));
        }
    }
}

async fn dial(port: &TestPort) -> TcpStream {
    TcpStream::connect(port.address).await.unwrap()
}

/// Everything until the server closes, and how long that took; at most 5 s.
async fn drain(mut stream: impl AsyncRead + Unpin) -> (String, Duration) {
    let (start, mut bytes) = (Instant::now(), Vec::new());
    timeout(Duration::from_secs(5), stream.read_to_end(&mut bytes)).await.expect("the server hangs").ok();
    (String::from_utf8_lossy(&bytes).into_owned(), start.elapsed())
}

async fn ask(port: &TestPort, request: &str) -> String {
    let mut stream = dial(port).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    drain(stream).await.0
}

/// What a connection off loopback gets, without one: the same service with the decision turned.
#[tokio::test]
async fn a_refused_plain_connection_is_told_why_and_closed() {
    let request = Request::get("/healthz").body(Body::empty()).unwrap();
    let peer = "192.0.2.1:1".parse().unwrap();
    let connection = Connection { peer, local: "192.0.2.2:8470".parse().unwrap(), tls: false };
    let router = Router::new().route("/healthz", axum::routing::get(|| async { "reached" }));
    let response = answer(router, request, connection, false, Duration::from_secs(1)).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(response.headers()[header::CONNECTION], "close");
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
    let text = String::from_utf8_lossy(&body);
    assert!(text.contains("--insecure-http") && !text.contains("reached"), "{text}");
}

#[tokio::test]
async fn silent_and_dribbling_connections_are_cut_at_the_deadline() {
    let port = TestPort::start(quick(), |_| {});
    let bounds = Duration::from_millis(300)..Duration::from_millis(2500);
    let (text, took) = drain(dial(&port).await).await;
    assert!(text.is_empty() && bounds.contains(&took), "silent: {took:?}");

    // One header byte each 50 ms keeps no connection alive.
    let (mut read, mut write) = dial(&port).await.into_split();
    let dribble = tokio::spawn(async move {
        write.write_all(b"GET /healthz HTTP/1.1\r\nx: ").await.unwrap();
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if write.write_all(b"a").await.is_err() {
                break;
            }
        }
    });
    let (_, took) = drain(&mut read).await;
    assert!(bounds.contains(&took), "dribbling: {took:?}");
    dribble.await.unwrap();

    // A TLS record that never ends.
    let mut stream = dial(&port).await;
    stream.write_all(&[TLS_HANDSHAKE, 3, 1, 2, 0]).await.unwrap();
    let (_, took) = drain(stream).await;
    assert!(bounds.contains(&took), "TLS: {took:?}");

    // A body that never comes. (With a token, as nobody's body is read without one.)
    let token = std::fs::read_to_string(port.token("t", "/", true, true)).unwrap();
    let head =
        format!("POST /v1/tickets HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: 9\r\n\r\n");
    let mut stream = dial(&port).await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let (text, took) = drain(stream).await;
    assert!(text.starts_with("HTTP/1.1 408") && bounds.contains(&took), "body: {took:?} {text}");
    assert!(text.contains("application/problem+json"));

    // An idle connection after a request.
    let mut stream = dial(&port).await;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let (text, took) = drain(stream).await;
    assert!(text.contains("{\"status\":\"ok\"}") && bounds.contains(&took), "idle: {took:?} {text}");
}

/// Connections that only stand there keep nobody out, from one address or from many; who has shown a token stays.
#[tokio::test]
async fn idle_connections_make_room_for_newcomers() {
    let mut limits = quick();
    (limits.handshake, limits.header, limits.per_source, limits.total) =
        (Duration::from_secs(20), Duration::from_secs(20), 8, 40);
    let port = TestPort::start(limits, |_| {});
    let token = std::fs::read_to_string(port.token("t", "/", true, true)).unwrap();
    let known = format!("GET /v1/status HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
    let request = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut friend = dial(&port).await;
    friend.write_all(known.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    friend.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    for addresses in [1, 250] {
        let mut crowd = Vec::new();
        for number in 0..300u32 {
            let from = Ipv4Addr::new(127, 78, 0, 1 + (number % addresses) as u8);
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from((from, 0))).unwrap();
            crowd.push(socket.connect(port.address).await.unwrap());
        }
        for _ in 0..5 {
            assert!(ask(&port, request).await.contains("ok"), "kept out by a crowd from {addresses} addresses");
        }
    }
    friend.write_all(known.as_bytes()).await.unwrap();
    let mut rest = [0; 1 << 12];
    assert!(friend.read(&mut rest).await.unwrap() > 0, "who was known is still served");
}

#[tokio::test]
async fn a_neighbour_gets_its_share_of_connections_and_no_more() {
    let mut limits = quick();
    (limits.header, limits.per_source) = (Duration::from_secs(4), 3);
    let port = TestPort::start(limits, |_| {});
    let token = std::fs::read_to_string(port.token("t", "/", true, true)).unwrap();
    let known = format!("GET /v1/status HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = dial(&port).await;
        stream.write_all(known.as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
        held.push(stream);
    }
    let (text, took) = drain(dial(&port).await).await;
    assert!(text.is_empty() && took < Duration::from_secs(2), "the fourth is closed at once: {took:?}");
    let request = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    for request in [request, &known] {
        let text = ask(&port, request).await;
        let told = text.starts_with("HTTP/1.1 503") && text.contains("urn:longhaul:problem:full");
        assert!(told && text.to_lowercase().contains("\r\nretry-after: 1\r\n"), "{text}");
    }
    held.pop();
    for _ in 0..50 {
        if ask(&port, request).await.contains("ok") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("a place that was given back is not taken up");
}

/// Its request was on the way already: it is told, and nothing is done for it.
#[tokio::test]
async fn who_makes_room_in_the_middle_of_a_request_hears_of_it() {
    let mut limits = quick();
    (limits.header, limits.per_source) = (Duration::from_secs(4), 1);
    let port = TestPort::start(limits, |_| {});
    let token = std::fs::read_to_string(port.token("t", "/", true, true)).unwrap();
    let mut slow = dial(&port).await;
    slow.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let request = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    assert!(ask(&port, request).await.contains("ok"), "the newcomer has the place");
    slow.write_all(format!("authorization: Bearer {token}\r\n\r\n").as_bytes()).await.unwrap();
    let (text, _) = drain(slow).await;
    assert!(text.starts_with("HTTP/1.1 503") && text.contains("urn:longhaul:problem:full"), "{text}");
}

#[tokio::test]
async fn heads_that_are_too_long_too_many_or_ambiguous_are_refused() {
    let port = TestPort::start(quick(), |_| {});
    let close = "host: x\r\nconnection: close\r\n";
    let long = |n: usize| format!("GET /healthz HTTP/1.1\r\n{close}x: {}\r\n\r\n", "a".repeat(n));
    assert!(ask(&port, &long(HEADER_BYTES - 200)).await.starts_with("HTTP/1.1 200"));
    // The answer may be lost when the connection is reset with bytes unread.
    let text = ask(&port, &long(HEADER_BYTES)).await;
    assert!(text.starts_with("HTTP/1.1 431") || text.is_empty(), "{text}");
    let many = format!("GET /healthz HTTP/1.1\r\n{close}{}\r\n", "x: y\r\n".repeat(HEADER_COUNT));
    assert!(ask(&port, &many).await.starts_with("HTTP/1.1 431"));
    let few = format!("GET /healthz HTTP/1.1\r\n{close}{}\r\n", "x: y\r\n".repeat(HEADER_COUNT - 2));
    assert!(ask(&port, &few).await.starts_with("HTTP/1.1 200"));
    for smuggled in [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5, 6\r\n",
        "content-length: +5\r\n",
        "transfer-encoding: chunked, identity\r\n",
    ] {
        let text = ask(&port, &format!("POST /v1/tickets HTTP/1.1\r\n{close}{smuggled}\r\nhello")).await;
        assert!(text.starts_with("HTTP/1.1 400") || text.is_empty(), "{smuggled}: {text}");
    }
    // Not HTTP at all.
    let text = ask(&port, "SSH-2.0-OpenSSH_9.6\r\n\r\n").await;
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{text}");
}

#[tokio::test]
async fn stopping_ends_idle_connections_and_the_port() {
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let state = crate::control::state::StateDir::open(dir.path()).unwrap();
    let tls = crate::control::tls::load_server(&crate::control::tls::ensure_self_signed(&state).unwrap()).unwrap();
    let (stop, stopping) = watch::channel(false);
    let limits = HttpLimits::default();
    let server = HttpServer { router: Router::new(), tls: Arc::new(RwLock::new(tls)), insecure_http: false, limits };
    let serving = tokio::spawn(server.serve(listener, stopping));
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 404");
    stop.send_replace(true);
    timeout(Duration::from_secs(3), serving).await.expect("the port does not stop").unwrap();
    let (_, took) = drain(idle).await;
    assert!(took < Duration::from_secs(1));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn any_address_takes_both_families() {
    let listener = bind("[::]:0".parse().unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (_, peer) = listener.accept().await.unwrap();
    assert!(is_loopback(peer.ip()) && canonical(peer).is_ipv4());
}

/// A long body extends its request's deadline step by step; dribbling does not.
#[tokio::test]
async fn only_progress_extends_the_deadline() {
    let deadline = Duration::from_millis(200);
    for (bytes, want) in [(STEP as usize, StatusCode::OK), (1, StatusCode::REQUEST_TIMEOUT)] {
        let read = move |axum::Extension(patience): axum::Extension<Patience>| async move {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                patience.came(bytes);
            }
        };
        let peer = "127.0.0.1:1".parse().unwrap();
        let connection = Connection { peer, local: peer, tls: false };
        let request = Request::post("/up").body(Body::empty()).unwrap();
        let router = Router::new().route("/up", axum::routing::post(read));
        assert_eq!(answer(router, request, connection, true, deadline).await.status(), want, "{bytes} bytes at a time");
    }
}
