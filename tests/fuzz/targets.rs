//! One target for everything that reads bytes from outside. Each takes any bytes; what it accepts, it can also write.

use crate::count;
use crate::frames::{KINDS, read, take};
use crate::samples;
use bolero::check;
use longhaul::config::parse_toml;
use longhaul::control::messages::{TicketRequest, WirePath};
use longhaul::control::settings::AgentLayer;
use longhaul::control::state::StateDir;
use longhaul::control::tokens::TokenStore;
use longhaul::control::url::PeerUrl;
use longhaul::engine::spec::{Ticket, Verify};
use longhaul::ids::{SessionId, StreamIndex, TicketId};
use longhaul::journal::{compact, recover};
use longhaul::manifest::{Segment, SegmentBuilder};
use longhaul::relpath::RelPath;
use longhaul::wire::control::Message;
use longhaul::wire::crypt::{FrameKey, Opener};
use longhaul::wire::handshake::{
    CLIENT_HELLO_LEN, ClientHello, Dialer, FINISH_LEN, Listener, Purpose, SERVER_HELLO_LEN, ServerHello, foreign,
};
use longhaul::wire::header::{HEADER_LEN, Header};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// Random inputs of each target beside its corpus.
fn inputs() -> usize {
    count(100_000, 2_000_000) as usize
}

/// Nothing is cut short by time where it counts.
fn time() -> Duration {
    Duration::from_secs(count(8, 300))
}

macro_rules! target {
    ($name:literal, $len:expr, $inputs:expr, $each:expr) => {{
        corpus_is_there($name);
        check!(name = $name).with_iterations($inputs).with_max_len($len).with_test_time(time()).for_each($each);
    }};
}

/// A corpus that is not found is not run.
fn corpus_is_there(name: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/__fuzz__").join(name).join("corpus");
    let files = std::fs::read_dir(&dir).map_or(0, Iterator::count);
    assert!(files >= 3, "{} has {files} inputs", dir.display());
    println!("COUNT fuzz_{name}_corpus={files} fuzz_{name}_inputs_at_most={}", inputs());
}

/// As many bytes as a message has, zeros behind what there is.
fn sized<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    let len = bytes.len().min(N);
    out[..len].copy_from_slice(&bytes[..len]);
    out
}

#[test]
fn handshake() {
    let auth = [3; 32];
    target!("handshake", 512, inputs() / 4, |bytes: &[u8]| {
        let _ = foreign(bytes);
        let hello = sized::<CLIENT_HELLO_LEN>(bytes);
        let answer = ServerHello { version: 1, streams: 4, session: SessionId([9; 16]), encrypted: true };
        if let Ok(decoded) = ClientHello::decode(&hello) {
            assert_eq!(decoded.stream.0 == 0, matches!(decoded.purpose, Purpose::Open(_)));
            assert!(Listener::answer(&hello, &decoded, &auth, answer).is_err(), "nobody knows the key");
        }
        let dialer = Dialer::new(Purpose::Open(TicketId([1; 16])), StreamIndex(0), 1, 4, true, &auth).unwrap();
        assert!(dialer.finish(&sized::<SERVER_HELLO_LEN>(bytes)).is_err(), "nobody knows the key");
        let honest = ClientHello::decode(dialer.hello()).unwrap();
        let listener = Listener::answer(dialer.hello(), &honest, &auth, answer).unwrap();
        assert!(listener.finish(&sized::<FINISH_LEN>(bytes)).is_err(), "nobody knows the key");
    });
}

#[test]
fn frame() {
    target!("frame", 1024, inputs(), |bytes: &[u8]| {
        for key in [FrameKey::plain(), FrameKey::new(&[7; 32])] {
            let _ = take(&mut Opener::new(key), bytes);
        }
        // And as if the header's check were right.
        let mut head = sized::<HEADER_LEN>(bytes);
        head[12..16].fill(0);
        let check = xxhash_rust::xxh3::xxh3_64(&head) as u32;
        head[12..16].copy_from_slice(&check.to_le_bytes());
        if let Ok(header) = Header::decode(&head, 1 << 20) {
            assert_eq!(header.encode(), head);
        }
    });
}

#[test]
fn body() {
    let kinds = &KINDS[..KINDS.len() - 1];
    target!("body", 2048, inputs(), |bytes: &[u8]| {
        let Some((first, body)) = bytes.split_first() else { return };
        let kind = kinds[usize::from(*first) % kinds.len()];
        let header = Header { kind, flags: first >> 7, body_len: body.len() as u32, handle: 1, offset: 0, counter: 0 };
        let _ = read(&header, body);
    });
}

#[test]
fn message() {
    target!("message", 4096, inputs(), |bytes: &[u8]| {
        if let Ok(message) = Message::decode(bytes) {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    });
}

#[test]
fn manifest() {
    target!("manifest", 4096, inputs(), |bytes: &[u8]| {
        let Ok(segment) = Segment::decode(bytes) else { return };
        let mut builder = SegmentBuilder::default();
        for entry in &segment.entries {
            assert!(!entry.path.components().any(|part| part == b".." || part == b"." || part.contains(&0)));
            assert!(builder.push(entry).is_none(), "what fits one segment fits one segment");
        }
        if let Some(again) = builder.finish() {
            assert_eq!(Segment::decode(&again).unwrap().entries, segment.entries);
        }
    });
}

#[test]
fn journal() {
    let (good, _) = samples::journal();
    target!("journal", 4096, inputs(), |bytes: &[u8]| {
        // Alone, and as what a crash may have left behind a good journal.
        let behind = [&good[..], bytes].concat();
        for journal in [bytes, &behind] {
            let Ok(recovered) = recover(journal) else { continue };
            assert!(recovered.len + recovered.dropped <= journal.len() as u64);
            let compacted = compact(&recovered.checkpoint);
            assert_eq!(recover(&compacted).unwrap().checkpoint, recovered.checkpoint);
        }
    });
}

#[test]
fn ticket() {
    target!("ticket", 2048, inputs(), |bytes: &[u8]| {
        if let Ok(ticket) = serde_json::from_slice::<Ticket>(bytes) {
            let text = serde_json::to_vec(&ticket).unwrap();
            assert!(serde_json::from_slice::<Ticket>(&text).unwrap() == ticket);
            let shown = format!("{ticket:?}");
            assert!(!shown.contains(&hex::encode(ticket.key.0)), "a key is never shown");
        }
        if let Ok(request) = serde_json::from_slice::<TicketRequest>(bytes) {
            let text = serde_json::to_vec(&request).unwrap();
            assert_eq!(serde_json::from_slice::<TicketRequest>(&text).unwrap(), request);
            let paths = match request {
                TicketRequest::Read { paths, .. } => paths,
                TicketRequest::Write { path, options, .. } => {
                    let _ = options.resolve(Verify::Wire);
                    vec![path]
                }
                TicketRequest::Probe { options, .. } => {
                    let _ = options.resolve(Verify::Wire);
                    Vec::new()
                }
            };
            paths.iter().for_each(confined);
        }
        confined(&WirePath(bytes.to_vec()));
        let _ = PeerUrl::parse(bytes);
        let _ = PeerUrl::parse(&[b"lh://h/", bytes].concat());
    });
}

/// A path that a peer says never leads up.
fn confined(path: &WirePath) {
    if let Ok(path) = path.rel_path() {
        assert!(!path.as_bytes().starts_with(b"/"));
        assert!(!path.components().any(|part| part == b".." || part == b"." || part.contains(&0)));
        assert_eq!(RelPath::new(path.as_bytes()), Ok(path));
    }
}

#[test]
fn config() {
    target!("config", 2048, inputs() / 4, |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        if let Err(error) = parse_toml::<AgentLayer>(&text, Path::new("agent.toml")) {
            assert!(error.to_string().starts_with("agent.toml, line "), "{error}");
        }
    });
}

#[test]
fn tokens() {
    let memory = Path::new("/dev/shm");
    let dir = tempfile::tempdir_in(if memory.is_dir() { memory } else { Path::new("/tmp") }).unwrap();
    let state = StateDir::open(&dir.path().join("state")).unwrap();
    let store = TokenStore::new(&state);
    let path = state.file("tokens.toml");
    target!("tokens", 2048, inputs() / 20, |bytes: &[u8]| {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        let presented = format!("lht_{}", "0".repeat(64));
        assert!(store.reload().is_err() || store.authenticate(&presented).is_err(), "a token that nobody made");
        let _ = store.list();
        let _ = store.authenticate(&String::from_utf8_lossy(bytes));
    });
}
