//! Peers that are not what they should be: tokens, tickets, versions, ports, hostile sources.

use crate::support::{Agent, SOON, Sandbox, noise};
use crate::tickets::{KEY, TICKET, tickets_for};
use longhaul::engine::handle::{Engine, EngineConfig};
use longhaul::engine::spec::{Access, EngineChoice, Grant, SourceSpec, Ticket};
use longhaul::ids::{AgentId, SessionId, StreamIndex, TicketId};
use longhaul::manifest::{Entry, EntryKind, Mtime, SegmentBuilder};
use longhaul::relpath::RelPath;
use longhaul::wire::control::{Message, Offer, OfferedRoot};
use longhaul::wire::crypt::{FrameKey, Opener, Sealer};
use longhaul::wire::handshake::{
    CLIENT_HELLO_LEN, ClientHello, Dialer, FINISH_LEN, HandshakeError, Listener, Purpose, Refusal, SERVER_HELLO_LEN,
    ServerHello,
};
use longhaul::wire::header::{FrameType, HEADER_LEN, Header, TRAILER_LEN};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

fn token(sandbox: &Sandbox, agent: &Agent, args: &[&str]) -> String {
    let out = sandbox.arg(args[0]);
    let state = agent.state.to_str().unwrap();
    let all = [&["token", "add"], args, &["--state", state, "--out", &out]].concat();
    sandbox.run(&all).expect(0);
    out
}

fn secret(path: &Path, text: &str) {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
}

#[test]
fn tokens_that_do_not_open() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    sandbox.write("far/in/a", b"a");
    sandbox.write("far/inside/a", b"a");
    sandbox.write("src/a", b"b");
    let state = agent.state.to_str().unwrap().to_owned();
    let pull = |token: &str, path: &str| sandbox.cp(&["-r", "--token-file", token, &agent.url(path), "dst"]);
    let push = |token: &str, path: &str| sandbox.cp(&["-r", "--token-file", token, "src", &agent.url(path)]);

    let mut wrong = agent.token();
    let last = if wrong.ends_with('a') { "b" } else { "a" };
    wrong.replace_range(wrong.len() - 1.., last);
    secret(&sandbox.at("wrong"), &wrong);
    pull(&sandbox.arg("wrong"), "in").says(10, &["token"]);
    secret(&sandbox.at("nonsense"), "nonsense");
    pull(&sandbox.arg("nonsense"), "in").says(10, &["holds no token"]);
    sandbox.cp(&["-r", &agent.url("in"), "dst"]).says(10, &["--token-file"]);
    pull(&sandbox.arg("missing"), "in").says(10, &["missing"]);

    let reader = token(&sandbox, &agent, &["reader", "--prefix", "/in", "--read"]);
    pull(&reader, "inside").says(10, &["`reader` may not read /inside"]);
    pull(&reader, "").expect(10);
    pull(&reader, "in/../inside").expect(2);
    push(&reader, "in/x").says(10, &["write"]);
    let writer = token(&sandbox, &agent, &["writer", "--prefix", "/in", "--write"]);
    pull(&writer, "in").says(10, &["read"]);
    push(&writer, "elsewhere").expect(10);
    assert!(!sandbox.at("dst").exists() && !sandbox.at("far/in/x").exists() && !sandbox.at("far/elsewhere").exists());

    let short = token(&sandbox, &agent, &["short", "--read", "--expires", "1s"]);
    std::thread::sleep(Duration::from_millis(2100));
    pull(&short, "in").says(10, &["expired"]);
    pull(&reader, "in").expect(0);
    push(&writer, "in/x").expect(0);
    sandbox.run(&["token", "revoke", "reader", "--state", &state]).expect(0);
    sandbox.cp(&["-r", "--token-file", &reader, &agent.url("in"), "dst2"]).says(10, &["token"]);
    // A token that others may read is no secret.
    fs::set_permissions(&writer, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    push(&writer, "in/y").expect(10);
}

/// The handshake by hand: the answer's first bytes, and what the library makes of it.
fn knock(
    address: SocketAddr,
    ticket: TicketId,
    key: &[u8; 32],
    patch: impl Fn(&mut [u8]),
) -> Result<Spoken, HandshakeError> {
    let dialer = Dialer::new(Purpose::Open(ticket), StreamIndex(0), 1, 1, false, key).unwrap();
    let mut hello = *dialer.hello();
    patch(&mut hello);
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket.write_all(&hello).unwrap();
    let mut answer = [0; SERVER_HELLO_LEN];
    socket.read_exact(&mut answer).unwrap();
    let (finish, agreed) = dialer.finish(&answer)?;
    socket.write_all(&finish).unwrap();
    let opener = Opener::new(FrameKey::new(&agreed.to_dialer));
    Ok(Spoken { socket, opener, sealer: Sealer::new(FrameKey::new(&agreed.to_listener)) })
}

/// A connection past its handshake.
struct Spoken {
    socket: TcpStream,
    opener: Opener,
    sealer: Sealer,
}

impl Spoken {
    fn say(&mut self, message: &Message) {
        let frame = self.sealer.frame(FrameType::Control, 0, 0, 0, &message.encode());
        self.socket.write_all(&frame).unwrap();
    }

    fn hear(&mut self) -> Option<Message> {
        let mut head = [0; HEADER_LEN];
        self.socket.read_exact(&mut head).ok()?;
        let header = Header::decode(&head, 1 << 20).unwrap();
        let mut body = vec![0; header.body_len as usize + TRAILER_LEN];
        self.socket.read_exact(&mut body).ok()?;
        let (body, trailer) = body.split_at_mut(header.body_len as usize);
        self.opener.open(&header, body, trailer).unwrap();
        Some(Message::decode(body).unwrap())
    }
}

fn ticket(agent: &Agent, path: &str) -> Ticket {
    let body = format!("{{\"direction\":\"read\",\"paths\":[\"{path}\"],\"recursive\":true}}");
    let (code, text) = agent.request("POST", "/v1/tickets", &agent.token(), &body);
    assert_eq!(code, 201, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn refused(result: Result<Spoken, HandshakeError>) -> Refusal {
    match result {
        Err(HandshakeError::Refused(refusal)) => refusal,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was let in"),
    }
}

#[test]
fn tickets_open_one_session_of_their_own_agent() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    let other = sandbox.agent("other", &[]);
    sandbox.write("far/src/a", b"a");
    let one = ticket(&agent, "/src");
    let mut spoken = knock(one.data[0], one.id, &one.key.0, |_| {}).unwrap();
    assert!(matches!(spoken.hear(), Some(Message::Offer(offer)) if offer.roots.len() == 1));
    // Used: once more is once too often, also while the first session lives.
    assert_eq!(refused(knock(one.data[0], one.id, &one.key.0, |_| {})), Refusal::Ticket);
    // Foreign.
    let foreign = ticket(&agent, "/src");
    let there: SocketAddr = format!("127.0.0.1:{}", other.data).parse().unwrap();
    assert_eq!(refused(knock(there, foreign.id, &foreign.key.0, |_| {})), Refusal::Ticket);
    // Without the key a known id is worth nothing, and spends nothing.
    assert_eq!(refused(knock(foreign.data[0], foreign.id, &[7; 32], |_| {})), Refusal::Ticket);
    assert!(knock(foreign.data[0], foreign.id, &foreign.key.0, |_| {}).is_ok());
    assert_eq!(refused(knock(foreign.data[0], TicketId([9; 16]), &[7; 32], |_| {})), Refusal::Ticket);
    // A build that speaks only later versions.
    let third = ticket(&agent, "/src");
    let future = |hello: &mut [u8]| {
        hello[8..10].copy_from_slice(&99u16.to_le_bytes());
        hello[10..12].copy_from_slice(&99u16.to_le_bytes());
    };
    let answer = knock(third.data[0], third.id, &third.key.0, future);
    assert_eq!(refused(answer), Refusal::Version);
    assert!(HandshakeError::Refused(Refusal::Version).to_string().contains("no common protocol version"));
    // A hello that was changed on the way.
    assert_eq!(refused(knock(third.data[0], third.id, &third.key.0, |h| h[60] ^= 1)), Refusal::Ticket);
    // A session nobody opened.
    let join = Dialer::new(Purpose::Join(SessionId([3; 16])), StreamIndex(1), 1, 0, false, &[1; 32]).unwrap();
    let mut socket = TcpStream::connect(third.data[0]).unwrap();
    socket.write_all(join.hello()).unwrap();
    let mut answer = [0; SERVER_HELLO_LEN];
    socket.read_exact(&mut answer).unwrap();
    assert!(matches!(join.finish(&answer), Err(HandshakeError::Refused(Refusal::Session))));
}

#[test]
fn an_expired_ticket_opens_nothing() {
    let sandbox = Sandbox::new();
    sandbox.write("src/a", b"a");
    let config = EngineConfig {
        workers: Some(1),
        cpus: None,
        arena_bytes: 16 << 20,
        block: longhaul::limits::DEFAULT_BLOCK,
        engine: EngineChoice::Auto,
        data_listen: Some("127.0.0.1:0".parse().unwrap()),
        advertise: Vec::new(),
        agent: AgentId([1; 16]),
        retry_for: Duration::from_secs(1),
        profiles: Default::default(),
        marking: Default::default(),
        synthetic: Default::default(),
    };
    let engine = Engine::start(config).unwrap();
    let address = engine.data_address().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let issue = || {
        let from = SourceSpec {
            base: sandbox.path().to_owned(),
            roots: vec![RelPath::new(b"src").unwrap()],
            recursive: true,
            encrypt: None,
            rows: None,
        };
        let grant = Grant { principal: "t".to_owned(), access: Access::Read(from), ttl_secs: 6 };
        runtime.block_on(engine.handle().issue(grant)).unwrap()
    };
    let (fresh, old) = (issue(), issue());
    assert!(knock(address, fresh.id, &fresh.key.0, |_| {}).is_ok());
    std::thread::sleep(Duration::from_millis(7200));
    assert_eq!(refused(knock(address, old.id, &old.key.0, |_| {})), Refusal::Ticket);
}

/// A data port drops who says nothing, in the time it says, and lets others in meanwhile.
#[test]
fn silence_is_cut_off() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    let mut silent = TcpStream::connect(("127.0.0.1", agent.data)).unwrap();
    let mut http = TcpStream::connect(("127.0.0.1", agent.data)).unwrap();
    http.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    http.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(http.read(&mut [0; 64]).unwrap_or(0), 0, "a browser is not answered");
    silent.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let began = Instant::now();
    assert_eq!(silent.read(&mut [0; 1]).unwrap_or(0), 0);
    let took = began.elapsed();
    assert!(took > Duration::from_secs(5) && took < Duration::from_secs(40), "{took:?}");
}

/// A data port that does `speak` with every connection.
fn data_port(speak: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().flatten().for_each(speak));
    address
}

fn pull_from(sandbox: &Sandbox, data: SocketAddr) -> crate::support::Outcome {
    secret(&sandbox.at("t"), &format!("lht_{}", "a".repeat(43)));
    let agent = sandbox.agent("tokens", &[]);
    let url = format!("lh://127.0.0.1:{}/src", tickets_for(data));
    let outcome = sandbox.start_cp(&["-r", "--token-file", &agent.token_file(), &url, "dst"]).wait(SOON);
    let there = fs::read_dir(sandbox.at("dst")).into_iter().flatten().flatten();
    assert!(there.into_iter().all(|entry| entry.file_name() == ".longhaul"), "only a journal may be left");
    outcome
}

fn hello_of(socket: &mut TcpStream) -> [u8; CLIENT_HELLO_LEN] {
    let mut hello = [0; CLIENT_HELLO_LEN];
    let _ = socket.read_exact(&mut hello);
    hello
}

#[test]
fn data_ports_that_speak_something_else() {
    let http = data_port(|mut socket| {
        hello_of(&mut socket);
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    pull_from(&Sandbox::new(), http).says(7, &["speaks HTTP", "8471"]);
    let tls = data_port(|mut socket| {
        hello_of(&mut socket);
        let _ = socket.write_all(&[0x15, 3, 1, 0, 2, 2, 40, 0, 0]);
    });
    pull_from(&Sandbox::new(), tls).says(7, &["speaks TLS"]);
    let refusing = data_port(|mut socket| {
        hello_of(&mut socket);
        let _ = socket.write_all(&longhaul::wire::handshake::refuse(Refusal::Version));
    });
    pull_from(&Sandbox::new(), refusing).says(7, &["no common protocol version", "upgrade"]);
    let mute = data_port(|mut socket| {
        hello_of(&mut socket);
        std::thread::sleep(Duration::from_secs(60));
    });
    let outcome = pull_from(&Sandbox::new(), mute).says(7, &["says nothing"]);
    assert!(outcome.took < Duration::from_secs(45), "{:?}", outcome.took);
    // Somebody who answers in our language but does not know the ticket.
    let impostor = data_port(|mut socket| {
        let bytes = hello_of(&mut socket);
        let hello = ClientHello::decode(&bytes).unwrap();
        let mut fake =
            *Dialer::new(Purpose::Open(TicketId([0; 16])), StreamIndex(0), 1, 1, false, &[0; 32]).unwrap().hello();
        fake[..8].copy_from_slice(&bytes[..8]);
        let answer = ServerHello { version: hello.highest, streams: 1, session: SessionId([1; 16]), encrypted: true };
        // Right in form, under another key: made from a hello of that key.
        let dialer = Dialer::new(Purpose::Open(TicketId(TICKET)), StreamIndex(0), 1, 1, false, &[8; 32]).unwrap();
        let other = ClientHello::decode(dialer.hello()).unwrap();
        let listener = Listener::answer(dialer.hello(), &other, &[8; 32], answer).unwrap();
        let _ = socket.write_all(listener.hello());
    });
    pull_from(&Sandbox::new(), impostor).says(10, &["could not prove"]);
}

#[test]
fn http_ports_that_are_none() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    let page = data_port(|mut socket| {
        let _ = socket.read(&mut [0; 4096]);
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>");
    });
    let other = format!("lh://{page}/src");
    sandbox.cp(&["-r", "--token-file", &agent.token_file(), &other, "dst"]).says(7, &["agent's HTTP port"]);
    assert!(!sandbox.at("dst").exists());
}

/// A source through the library that offers whatever a test wants; `names` are put into one manifest segment.
fn hostile(root_name: &'static [u8], segment: Vec<u8>) -> SocketAddr {
    data_port(move |mut socket| {
        let bytes = hello_of(&mut socket);
        let Ok(hello) = ClientHello::decode(&bytes) else { return };
        let Purpose::Open(_) = hello.purpose else { return };
        let answer = ServerHello { version: hello.highest, streams: 1, session: SessionId([1; 16]), encrypted: true };
        let listener = Listener::answer(&bytes, &hello, &KEY, answer).unwrap();
        socket.write_all(listener.hello()).unwrap();
        let mut finish = [0; FINISH_LEN];
        socket.read_exact(&mut finish).unwrap();
        let agreed = listener.finish(&finish).unwrap();
        let opener = Opener::new(FrameKey::new(&agreed.to_listener));
        let mut spoken = Spoken { socket, opener, sealer: Sealer::new(FrameKey::new(&agreed.to_dialer)) };
        spoken.say(&Message::Offer(Offer {
            agent: AgentId([2; 16]),
            roots: vec![OfferedRoot {
                name: hex::encode(root_name),
                path: hex::encode("/srv/src"),
                directory: true,
                object: (1, 1),
                host: "elsewhere".to_owned(),
            }],
            engine: "io_uring".to_owned(),
            cpus: String::new(),
            notes: vec!["\x1b[2Jnote".to_owned()],
            process: 1,
            digests: false,
        }));
        match spoken.hear() {
            Some(Message::Accept(_)) => {}
            _ => return,
        }
        spoken.say(&Message::Segment(segment.clone()));
        spoken.say(&Message::ManifestEnd(1));
        while let Some(message) = spoken.hear() {
            if matches!(message, Message::Error(_)) {
                return;
            }
        }
    })
}

/// One segment with `paths` in it, each a file or a directory (a name with a slash at its end), patched afterwards:
/// the library itself does not write such names.
fn segment(entries: &[(&str, EntryKind)], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut builder = SegmentBuilder::default();
    for (path, kind) in entries {
        let path = RelPath::new(path.as_bytes()).unwrap();
        let mtime = Mtime { secs: 1, nanos: 1 };
        assert!(builder.push(&Entry { root: 0, path, kind: kind.clone(), mode: 0o644, mtime }).is_none());
    }
    let mut bytes = builder.finish().unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    bytes[at..at + from.len()].copy_from_slice(to);
    bytes
}

#[test]
fn names_that_lead_outside_are_refused() {
    let file = || EntryKind::File { size: 4, sparse: false };
    let cases: [(&str, &[u8], &[u8]); 5] = [
        ("AAA", b"AAA", b"../"),
        ("AA", b"AA", b".."),
        ("x/BBB/CCC/evil", b"BBB/CCC", b"../../."),
        ("DDDD", b"DDDD", b"/etc"),
        ("EEEE", b"EEEE", b"a\0bc"),
    ];
    for (path, from, to) in cases {
        let sandbox = Sandbox::new();
        let port = hostile(b"src", segment(&[(path, file())], from, to));
        pull_from(&sandbox, port).says(7, &["manifest that is refused"]);
    }
    for name in [&b".."[..], b"a/b", b".", b"\0", b"/etc"] {
        let sandbox = Sandbox::new();
        let port = hostile(name, segment(&[("a", file())], b"a", b"a"));
        secret(&sandbox.at("t"), "x");
        let agent = sandbox.agent("tokens", &[]);
        let url = format!("lh://127.0.0.1:{}/src", tickets_for(port));
        // Below a directory the offered name counts.
        let outcome = sandbox.start_cp(&["-r", "--token-file", &agent.token_file(), &url, "dst/"]).wait(SOON);
        assert!(outcome.code == 7, "{name:?}: {outcome:?}");
        let there = |p: &str| sandbox.at(p).exists();
        assert!(!there("a") && !there("etc"), "{outcome:?}");
    }
}

/// A symlink in the manifest, and a file below its name: nothing may arrive where the link leads.
#[test]
fn a_link_is_no_way_out() {
    let sandbox = Sandbox::new();
    sandbox.dir("outside");
    let target = sandbox.at("outside").into_os_string().into_encoded_bytes();
    let link = EntryKind::Symlink { target: target.into() };
    let entries = [("way", link), ("way/evil", EntryKind::Dir), ("way/evil/x", EntryKind::Dir)];
    let port = hostile(b"src", segment(&entries, b"way", b"way"));
    let agent = sandbox.agent("tokens", &[]);
    let url = format!("lh://127.0.0.1:{}/src", tickets_for(port));
    // Twice: at the second time the link may be there.
    for _ in 0..2 {
        let running =
            sandbox.start_cp(&["-r", "--token-file", &agent.token_file(), "--if-exists", "replace", &url, "dst"]);
        let outcome = running.wait(SOON);
        assert_ne!(outcome.code, 0, "{}", outcome.out);
        assert_eq!(fs::read_dir(sandbox.at("outside")).unwrap().count(), 0, "{}", outcome.out);
        assert!(!outcome.out.contains('\x1b') && !outcome.err.contains('\x1b'), "a peer's words drive no terminal");
    }
}

#[test]
fn bytes_that_make_no_sense_to_an_agent() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    sandbox.write("far/src/a", b"a");
    // Noise, cut hellos, noise behind a good handshake: the agent lives on.
    for n in 0..20 {
        let mut socket = TcpStream::connect(("127.0.0.1", agent.data)).unwrap();
        let _ = socket.write_all(&noise(10 + 37 * n, n as u64 + 1));
    }
    for n in 0..5 {
        let ticket = ticket(&agent, "/src");
        let mut spoken = knock(ticket.data[0], ticket.id, &ticket.key.0, |_| {}).unwrap();
        let _ = spoken.socket.write_all(&noise(400, n + 50));
    }
    // Messages that only the other end may say.
    let ticket = ticket(&agent, "/src");
    let mut spoken = knock(ticket.data[0], ticket.id, &ticket.key.0, |_| {}).unwrap();
    spoken.say(&Message::ManifestEnd(7));
    while spoken.hear().is_some() {}
    sandbox.cp(&["-r", "--token-file", &agent.token_file(), &agent.url("src"), "dst"]).expect(0);
    assert_eq!(fs::read(sandbox.at("dst/a")).unwrap(), b"a");
}

/// Nobody was ever met there: no minute of tries, and a sentence with the address.
#[test]
fn nobody_there() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let outcome = pull_from(&Sandbox::new(), closed).says(5, &["refuses connections", &closed.to_string()]);
    assert!(outcome.took < GIVEN_UP, "{:?}", outcome.took);
    let sandbox = Sandbox::new();
    let token = sandbox.agent("far", &[]).token_file();
    sandbox.write("src/a", b"a");
    let dead = format!("lh://{closed}/x");
    let push = sandbox.cp(&["-r", "--token-file", &token, "src", &dead]);
    let push = push.says(5, &["nothing listens there", &closed.to_string(), "is the agent running"]);
    assert!(push.took < GIVEN_UP, "{:?}", push.took);
    let nowhere = "lh://no-such-host.invalid/x";
    let pull = sandbox.cp(&["-r", "--token-file", &token, nowhere, "dst"]);
    let pull = pull.says(5, &["no-such-host.invalid", "check its spelling"]);
    assert!(pull.took < GIVEN_UP && !sandbox.at("dst").exists(), "{:?}", pull.took);
}

/// Far below the minute for which a peer is tried that was met, far above what a busy machine takes.
const GIVEN_UP: Duration = Duration::from_secs(40);

#[test]
fn the_data_port_is_no_http_port() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    let wrong = format!("lh://127.0.0.1:{}/src", agent.data);
    let outcome = sandbox.cp(&["-r", "--token-file", &agent.token_file(), &wrong, "dst"]);
    let port = agent.data.to_string();
    let outcome = outcome.says(5, &["without an answer in HTTP", "HTTP port", "or its data port", &port]);
    assert!(outcome.took < GIVEN_UP, "{:?}", outcome.took);
}

/// Other things where an agent's HTTP port should be: each is named at once or after one deadline.
#[test]
fn http_ports_that_speak_something_else_or_nothing() {
    let tls = data_port(|mut socket| {
        let _ = socket.read(&mut [0; 4096]);
        let _ = socket.write_all(&[0x15, 3, 1, 0, 2, 2, 40]);
    });
    let mute = data_port(|mut socket| while socket.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {});
    for (port, words) in [(tls, "it does not answer in HTTP"), (mute, "says nothing")] {
        let sandbox = Sandbox::new();
        let token = sandbox.agent("far", &[]).token_file();
        let outcome = sandbox.cp(&["-r", "--token-file", &token, &format!("lh://{port}/src"), "dst"]);
        let outcome = outcome.says(7, &[words, &port.to_string(), "HTTP port"]);
        assert!(outcome.took < GIVEN_UP, "{:?}", outcome.took);
    }
}
