//! Agents that are not what they seem, met by real commands: the test gives out the ticket and answers on the data port.

use crate::peer::{Spoken, accept, offer, offered};
use crate::support::{Outcome, SOON, Sandbox};
use crate::tickets::{KEY, tickets_for};
use longhaul::ids::SessionId;
use longhaul::wire::control::{Accept, Message, Progress};
use longhaul::wire::handshake::{CLIENT_HELLO_LEN, ClientHello, FINISH_LEN, Listener, ServerHello};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// A data port that shakes hands, with or without encryption, and hands stream 0 to `speak`.
fn data_port(encrypted: bool, speak: impl Fn(Spoken) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            if let Some(spoken) = shake(socket, encrypted) {
                speak(spoken);
            }
        }
    });
    address
}

fn shake(mut socket: TcpStream, encrypted: bool) -> Option<Spoken> {
    let mut hello = [0; CLIENT_HELLO_LEN];
    socket.read_exact(&mut hello).ok()?;
    let decoded = ClientHello::decode(&hello).ok().filter(|hello| hello.stream.0 == 0)?;
    let answer = ServerHello { version: 1, streams: 1, session: SessionId([9; 16]), encrypted };
    let listener = Listener::answer(&hello, &decoded, &KEY, answer).ok()?;
    socket.write_all(listener.hello()).ok()?;
    let mut finish = [0; FINISH_LEN];
    socket.read_exact(&mut finish).ok()?;
    let agreed = listener.finish(&finish).ok()?;
    Some(Spoken::accepted(socket, &agreed))
}

fn cp(sandbox: &Sandbox, pull: bool, data: SocketAddr) -> Outcome {
    let token = sandbox.write("t", format!("lht_{}\n", "a".repeat(64)).as_bytes());
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    sandbox.write("src/a", b"content");
    let url = format!("lh://127.0.0.1:{}/x", tickets_for(data));
    let (from, to) = if pull { (url.as_str(), "dst") } else { ("src", url.as_str()) };
    sandbox.start_cp(&["-r", "--token-file", token.to_str().unwrap(), from, to]).wait(SOON)
}

/// Nothing that a peer says drives a terminal.
fn harmless(outcome: &Outcome) {
    let wild = |text: &str| text.chars().any(|c| c.is_control() && c != '\n');
    assert!(!wild(&outcome.out) && !wild(&outcome.err), "{outcome:?}");
}

#[test]
fn encryption_that_was_asked_for_is_not_given_up() {
    for pull in [true, false] {
        let sandbox = Sandbox::in_memory();
        let outcome = cp(&sandbox, pull, data_port(false, drop));
        outcome.says(7, &["without encryption"]);
        assert!(!sandbox.at("dst/x").exists());
    }
    println!("COUNT stripped_encryption=2 accepted=0");
}

#[test]
fn words_of_a_peer_are_only_words() {
    const WILD: &str = "\x1b[2J\x1b]0;owned\x07\r\nhacked\u{9b}1m";
    // A source: in its offer.
    let source = data_port(true, |mut spoken| {
        let mut offer = offer(vec![offered(b"x", true)]);
        offer.engine = WILD.repeat(100);
        offer.notes = vec![WILD.to_owned(); 50];
        spoken.say(&Message::Offer(offer));
        if let Some(Message::Accept(_)) = spoken.hear() {
            spoken.say(&Message::Problem { root: 0, path: WILD.as_bytes().to_vec(), what: WILD.to_owned() });
            spoken.say(&Message::ManifestEnd(0));
            while let Some(message) = spoken.hear() {
                if matches!(message, Message::StatsRequest) {
                    let stats = longhaul::wire::control::SourceStats {
                        io: WILD.repeat(50),
                        notes: vec![WILD.to_owned(); 50],
                        ..Default::default()
                    };
                    spoken.say(&Message::Stats(stats));
                }
                if matches!(message, Message::Verdict(_)) {
                    spoken.say(&Message::Bye);
                }
            }
        }
    });
    let outcome = cp(&Sandbox::in_memory(), true, source);
    harmless(&outcome);
    let text = outcome.json.to_string();
    assert!(!text.contains("\\u001b"), "escape sequences in the report: {text}");
    // A destination: in its progress and in its verdict.
    let destination = data_port(true, |mut spoken| {
        spoken.hear();
        spoken.say(&Message::Accept(accept(1)));
        spoken.say(&Message::Progress(Progress { phase: WILD.repeat(1000), bytes: u64::MAX, ..Progress::default() }));
        let report = serde_json::json!({
            "transfer": null, "session": null, "verdict": "DURABLE", "bytes": u64::MAX, "files": u64::MAX,
            "directories": 0, "symlinks": 0, "skipped_files": 0, "skipped_bytes": 0, "resumed_bytes": 0, "hole_bytes": 0,
            "received_bytes": 0, "sent_bytes": 0, "resent_bytes": 0, "failed_chunks": 0, "duration_ns": 0,
            "bits_per_second": u64::MAX, "streams": 1, "reconnects": 0, "encrypted": true, "verify": "wire",
            "verified": true, "durable": true, "engine": {"source": WILD, "destination": WILD},
            "io": {"source": WILD, "destination": WILD}, "profile": WILD, "profile_why": WILD, "explanation": [WILD], "limiter": WILD,
            "limiter_shares": {WILD: 1e308}, "cpu_ns": {"source": 0, "destination": 0},
            "chunk_latency_ns": {"p50": 0, "p99": 0, "max": u64::MAX}, "digest": null, "checksums": [],
            "failures": [{"path": WILD, "class": WILD, "reason": WILD}], "failed_files": 0, "special_files": 0,
            "notes": [WILD], "error_class": WILD, "error": WILD,
        });
        spoken.say(&Message::Verdict(report.to_string().into_bytes()));
        while spoken.hear().is_some() {}
    });
    let outcome = cp(&Sandbox::in_memory(), false, destination);
    harmless(&outcome);
    let text = outcome.json.to_string();
    assert!(text.contains("hacked") && !text.contains("\\u001b"), "escape sequences in the report: {text}");
    println!("COUNT wild_words=2 escaped=0");
}

/// A command at the mercy of what it dials ends with a sentence, whatever is said first.
#[test]
fn commands_end_with_a_sentence_whatever_comes_first() {
    let mut ended = 0;
    for pull in [true, false] {
        for message in crate::samples::messages() {
            if matches!(message, Message::Ping)
                || (pull && matches!(message, Message::Offer(_)))
                || matches!(message, Message::Accept(_) if !pull)
            {
                continue;
            }
            let bytes = message.encode();
            let port = data_port(true, move |mut spoken| {
                spoken.body(&bytes);
                let _ = spoken.socket.shutdown(std::net::Shutdown::Write);
                while spoken.hear_frame().is_some() {}
            });
            let outcome = cp(&Sandbox::in_memory(), pull, port);
            assert!([1, 3, 5, 7, 10].contains(&outcome.code), "{message:?}: {outcome:?}");
            harmless(&outcome);
            assert!(!outcome.err.contains("panicked"), "{outcome:?}");
            ended += 1;
        }
    }
    // Blocks that no division survives.
    for block in [0, 1, 3, u32::MAX] {
        let port = data_port(true, move |mut spoken| {
            spoken.hear();
            spoken.say(&Message::Accept(Accept { block, ..accept(1) }));
            while spoken.hear().is_some() {}
        });
        let outcome = cp(&Sandbox::in_memory(), false, port);
        outcome.says(7, &["block"]);
        ended += 1;
    }
    println!("COUNT first_messages={ended} panics=0");
}
