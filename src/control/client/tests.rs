use super::*;
use crate::control::testing::{TestPort, quick, ticket};
use crate::engine::handle::TicketSource;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn options(port: &TestPort) -> ClientOptions {
    let token = port.dir.path().join("t");
    if !token.exists() {
        port.token("t", "/", true, true);
    }
    ClientOptions {
        token_file: Some(token),
        known_peers: Some(port.dir.path().join("known_peers")),
        ..ClientOptions::default()
    }
}

fn url(address: SocketAddr) -> PeerUrl {
    PeerUrl::parse(format!("lh://{address}/").as_bytes()).unwrap()
}

async fn status(port: &TestPort, options: ClientOptions) -> Result<StatusReply, TransferError> {
    PeerClient::new(url(port.address), options)?.status().await
}

#[test]
fn what_is_spoken_to_whom() {
    let (pin, ip) = (Fingerprint([1; 32]), |t: &str| t.parse::<IpAddr>().unwrap());
    let (near, far) = (ip("127.0.0.1"), ip("192.0.2.1"));
    for (peer, local) in [(near, near), (far, far), (near, far)] {
        for insecure in [false, true] {
            assert_eq!(speech(peer, local, Some(pin), insecure), Speech::Tls(Some(pin)), "a pin is always kept");
        }
    }
    assert_eq!(speech(near, near, None, false), Speech::Plain { note: false });
    assert_eq!(speech(far, ip("192.0.2.2"), None, false), Speech::Tls(None));
    assert_eq!(speech(far, ip("192.0.2.2"), None, true), Speech::Plain { note: true });
    assert_eq!(speech(near, far, None, false), Speech::Tls(None), "both ends must be loopback");
}

#[tokio::test]
async fn the_pinned_certificate_and_no_other() {
    let port = TestPort::start(quick(), |_| {});
    let pinned = ClientOptions { fingerprint: Some(port.fingerprint), ..options(&port) };
    assert!(status(&port, pinned).await.is_ok());

    let wrong = ClientOptions { fingerprint: Some(Fingerprint([9; 32])), ..options(&port) };
    let error = status(&port, wrong).await.unwrap_err();
    assert_eq!(error.class, Class::Denied);
    assert!(error.what.contains(&port.fingerprint.to_string()) && error.what.contains(&"09".repeat(32)), "{error}");

    let known = port.dir.path().join("known_peers");
    std::fs::write(&known, format!("{} sha256:{}\n", port.address, port.fingerprint)).unwrap();
    let client = PeerClient::new(url(port.address), options(&port)).unwrap();
    assert_eq!(client.pin, Some(port.fingerprint));
    assert!(client.status().await.is_ok());
    std::fs::write(&known, format!("{} sha256:{}\n", port.address, Fingerprint([8; 32]))).unwrap();
    assert_eq!(status(&port, options(&port)).await.unwrap_err().class, Class::Denied);
    std::fs::write(&known, "rubbish\n").unwrap();
    assert!(status(&port, options(&port)).await.unwrap_err().what.contains("line 1"));
}

#[tokio::test]
async fn an_unknown_peer_is_refused_with_the_fingerprint_it_showed() {
    let port = TestPort::start(quick(), |_| {});
    let client = PeerClient::new(url(port.address), options(&port)).unwrap();
    // As `secure` would be called off loopback.
    let stream = TcpStream::connect(port.address).await.unwrap();
    let verifier = PinnedVerifier::new(None);
    let config = Arc::new(verifier.client_config().unwrap());
    let name = ServerName::IpAddress(port.address.ip().into());
    let failed = TlsConnector::from(config).connect(name, stream).await.unwrap_err();
    let error = client.handshake_error(None, verifier.seen(), &failed);
    assert_eq!(error.class, Class::Denied);
    let seen = port.fingerprint;
    assert!(error.what.contains(&format!("--peer-fingerprint {seen}")), "{error}");
    assert!(error.what.contains(&format!("{} sha256:{seen}", port.address)), "{error}");
}

/// Somebody in the middle with another key sees no byte of the token.
#[tokio::test]
async fn the_token_waits_for_the_proof() {
    let victim = TestPort::start(quick(), |_| {});
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let middle = listener.local_addr().unwrap();
    let other = TestPort::start(quick(), |_| {});
    let target = other.address;
    let relayed = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = TcpStream::connect(target).await.unwrap();
        tokio::io::copy_bidirectional(&mut client, &mut server).await.map(|(sent, _)| sent).unwrap_or(0)
    });
    let pinned = ClientOptions { fingerprint: Some(victim.fingerprint), ..options(&victim) };
    let error = PeerClient::new(url(middle), pinned).unwrap().status().await.unwrap_err();
    assert_eq!(error.class, Class::Denied);
    let sent = relayed.await.unwrap();
    // A client hello and an alert; a request with a token would be another record.
    assert!(sent < 2000, "{sent} bytes went out");
}

#[tokio::test]
async fn token_files_are_private_and_whole() {
    let port = TestPort::start(quick(), |_| {});
    let good = options(&port);
    let path = good.token_file.clone().unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = status(&port, good.clone()).await.unwrap_err();
    assert!(error.class == Class::Denied && error.what.contains("chmod 600"), "{error}");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let client = PeerClient::new(url(port.address), good).unwrap();
    assert!(client.status().await.is_ok());
    let secret = std::fs::read_to_string(&path).unwrap();
    let request = client.request(Method::GET, "/", None::<&()>).unwrap();
    assert!(!format!("{client:?} {request:?}").contains(secret.trim()));
    port.tokens.revoke("t").unwrap();
    let error = client.status().await.unwrap_err();
    assert!(error.class == Class::Denied && error.what.contains("revoked"), "{error}");
    std::fs::write(&path, "hello").unwrap();
    assert!(client.status().await.unwrap_err().what.contains("holds no token"));
    let missing = ClientOptions { token_file: Some("/nowhere/t".into()), ..ClientOptions::default() };
    assert_eq!(PeerClient::new(url(port.address), missing).unwrap_err().class, Class::Denied);
}

/// A server that says `answer` to whoever comes, whatever they say.
async fn says(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut heard = [0; 4096];
                let _ = stream.read(&mut heard).await;
                let _ = stream.write_all(answer).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn ports_that_speak_something_else() {
    let port = TestPort::start(quick(), |_| {});
    let ask = async |answer: &'static [u8], fingerprint: Option<Fingerprint>| {
        let options = ClientOptions { fingerprint, ..options(&port) };
        PeerClient::new(url(says(answer).await), options).unwrap().status().await.unwrap_err()
    };
    let cases: [(&[u8], Class, &str); 8] = [
        (b"SSH-2.0-OpenSSH_9.6\r\n", Class::Permanent, "does not answer in HTTP"),
        (b"", Class::Reconnect, "closed the connection"),
        (
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n",
            Class::Permanent,
            "never followed",
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", Class::Permanent, "not what an agent says"),
        (b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n", Class::Retry, "503"),
        (b"HTTP/1.1 429 X\r\ncontent-length: 0\r\n\r\n", Class::Retry, "429"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", Class::Reconnect, ""),
        (b"HTTP/1.1 403 X\r\ncontent-length: 26\r\n\r\n{\"detail\":\"a\\u001b[31mb\"} ", Class::Denied, "a\\x1b[31mb"),
    ];
    for (answer, class, want) in cases {
        let error = ask(answer, None).await;
        assert_eq!(error.class, class, "{}: {error}", String::from_utf8_lossy(answer));
        assert!(error.to_string().contains(want), "{error}");
    }
    let error = ask(b"HTTP/1.1 400 Bad Request\r\n\r\n", Some(Fingerprint([1; 32]))).await;
    assert!(error.class == Class::Permanent && error.what.contains("does not speak TLS"), "{error}");

    let closed = { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap() };
    let error = PeerClient::new(url(closed), options(&port)).unwrap().status().await.unwrap_err();
    assert!(error.class == Class::Reconnect && error.what.contains("is the agent running"), "{error}");
}

#[tokio::test]
async fn a_response_without_end_is_cut_off() {
    let port = TestPort::start(quick(), |_| {});
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        let block = vec![b' '; 1 << 20];
        for _ in 0..64 {
            if stream.write_all(&block).await.is_err() {
                return;
            }
        }
    });
    let error = PeerClient::new(url(address), options(&port)).unwrap().status().await.unwrap_err();
    assert!(error.what.contains("longer than 8 MiB"), "{error}");
}

#[test]
fn data_addresses_as_this_host_can_dial_them() {
    let at = |t: &str| t.parse::<SocketAddr>().unwrap();
    let peer = at("192.0.2.1:8470");
    assert_eq!(dialable(at("0.0.0.0:8471"), peer), at("192.0.2.1:8471"));
    assert_eq!(dialable(at("[::]:8471"), peer), at("192.0.2.1:8471"));
    assert_eq!(dialable(at("198.51.100.1:1"), peer), at("198.51.100.1:1"));
    assert_eq!(dialable(at("[fe80::1]:1"), at("[fe80::1%7]:8470")), at("[fe80::1%7]:1"));
}

#[tokio::test]
async fn fresh_tickets_for_the_engine() {
    let port = TestPort::start(quick(), |_| {});
    let client = Arc::new(PeerClient::new(url(port.address), options(&port)).unwrap());
    let request = TicketRequest::Read {
        paths: vec![super::super::messages::WirePath(b"/a".to_vec())],
        recursive: false,
        encrypt: None,
    };
    let tickets = PeerTickets::new(client.clone(), request);
    assert_eq!(tickets.peer(), port.address.to_string());
    assert_eq!(tickets.ticket().await.unwrap().key, ticket().key);
    assert_eq!(port.engine.grants.lock().unwrap().len(), 1);
    assert!(client.notes().is_empty());
}

/// Connections that have shown a token, to an agent that has room for so many of one neighbour.
async fn holding(port: &TestPort, count: usize) -> Vec<TcpStream> {
    let token = std::fs::read_to_string(port.dir.path().join("t")).unwrap();
    let known = format!("GET /v1/status HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(port.address).await.unwrap();
        stream.write_all(known.as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
        held.push(stream);
    }
    held
}

fn hears(what: &str) {
    assert!(what.contains("busy") && what.contains("try again"), "{what}");
}

fn patient(port: &TestPort, longest: Duration) -> ClientOptions {
    ClientOptions { patience: Some(Patience { longest, say: hears }), ..options(port) }
}

#[tokio::test]
async fn a_full_agent_is_waited_for() {
    let mut limits = quick();
    (limits.header, limits.per_source) = (Duration::from_secs(20), 3);
    let port = TestPort::start(limits, |_| {});
    let impatient = options(&port);
    let held = holding(&port, 3).await;
    let error = status(&port, impatient).await.unwrap_err();
    assert!(error.class == Class::Retry && error.what.contains("as many connections"), "{error}");
    let error = status(&port, patient(&port, Duration::from_millis(900))).await.unwrap_err();
    assert!(error.class == Class::Retry && error.what.contains("as many connections"), "{error}");
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        drop(held);
    });
    let long = Duration::from_secs(30);
    let client = PeerClient::new(url(port.address), patient(&port, long)).unwrap();
    client.status().await.unwrap();
    assert!(client.notes().iter().any(|note| note.contains("busy, waited")), "{:?}", client.notes());

    // Thirteen times as many as there is room for, at once, half of them over TLS.
    let mut all = tokio::task::JoinSet::new();
    for number in 0..40 {
        let fingerprint = (number % 2 == 0).then_some(port.fingerprint);
        let client = PeerClient::new(url(port.address), ClientOptions { fingerprint, ..patient(&port, long) }).unwrap();
        all.spawn(async move { client.status().await.map(drop) });
    }
    while let Some(ended) = all.join_next().await {
        ended.unwrap().unwrap();
    }
}

/// A port that closes its first `cuts` connections without an answer; how many came.
async fn cutting(cuts: usize) -> (SocketAddr, Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, came) = (listener.local_addr().unwrap(), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let count = came.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            if count.fetch_add(1, Ordering::Relaxed) >= cuts {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
            }
        }
    });
    (address, came)
}

#[tokio::test]
async fn what_was_cut_off_is_asked_again_if_that_does_no_harm() {
    let port = TestPort::start(quick(), |_| {});
    let client = |address, longest| PeerClient::new(url(address), patient(&port, longest)).unwrap();
    let long = Duration::from_secs(30);
    let (address, came) = cutting(2).await;
    client(address, long).list::<serde_json::Value>("x", None).await.unwrap();
    assert_eq!(came.load(Ordering::Relaxed), 3);
    // It may have been done.
    let (address, came) = cutting(1).await;
    let error = client(address, long).steer("1", &Steer::default()).await.unwrap_err();
    assert!(error.class == Class::Reconnect && came.load(Ordering::Relaxed) == 1, "{error}");
    // A port that never says anything is some other port.
    let (address, came) = cutting(usize::MAX).await;
    let began = std::time::Instant::now();
    let error = client(address, long).list::<serde_json::Value>("x", None).await.unwrap_err();
    assert!(error.class == Class::Reconnect && began.elapsed() < Duration::from_secs(5), "{error}");
    assert!((3..10).contains(&came.load(Ordering::Relaxed)));
}
