//! The messages that open a connection, from known private keys, and the frame keys that come out.

use crate::{golden, same_as_golden, variants};
use longhaul::ids::{SessionId, StreamIndex, TicketId};
use longhaul::wire::handshake::{
    Agreed, ClientHello, Dialer, HandshakeError, Listener, Purpose, Refusal, ServerHello, refuse,
};
use std::collections::BTreeSet;

const AUTH: [u8; 32] = [0x42; 32];
const DIALER: [u8; 32] = [0x11; 32];
const LISTENER: [u8; 32] = [0x22; 32];

struct Talk {
    dialer: Dialer,
    listener: Listener,
    finish: [u8; 32],
    agreed: Agreed,
}

fn talk(purpose: Purpose, plain: bool) -> Talk {
    let streams = if matches!(purpose, Purpose::Open(_)) { 8 } else { 0 };
    let dialer = Dialer::fixed(purpose, streams, plain, &AUTH, &DIALER, [0xaa; 32]).unwrap();
    let hello = ClientHello::decode(dialer.hello()).unwrap();
    let answer = ServerHello { version: 1, streams: 4, session: SessionId([9; 16]), encrypted: !plain };
    let listener = Listener::fixed(dialer.hello(), &hello, &AUTH, answer, &LISTENER, [0xbb; 32]).unwrap();
    let (finish, agreed) = dialer.finish(listener.hello()).unwrap();
    Talk { dialer, listener, finish, agreed }
}

fn talks() -> [(&'static str, Talk); 3] {
    [
        ("open", talk(Purpose::Open(TicketId([1; 16])), false)),
        ("open-plain", talk(Purpose::Open(TicketId([1; 16])), true)),
        ("join", talk(Purpose::Join(SessionId([9; 16])), false)),
    ]
}

#[test]
fn handshakes_are_made_as_they_always_were() {
    let mut made = Vec::new();
    for (name, talk) in talks() {
        let Agreed { to_listener, to_dialer, join, .. } = talk.agreed;
        made.push((format!("{name}/ClientHello"), talk.dialer.hello().to_vec()));
        made.push((format!("{name}/ServerHello"), talk.listener.hello().to_vec()));
        made.push((format!("{name}/ClientFinish"), talk.finish.to_vec()));
        made.push((format!("{name}/keys"), [to_listener, to_dialer, join].concat()));
    }
    same_as_golden("handshake", &made);
}

#[test]
fn handshakes_are_read_as_they_always_were() {
    let golden = golden();
    for (name, talk) in talks() {
        let bytes = |message: &str| golden[format!("handshake/{name}/{message}").as_str()].clone();
        let hello = ClientHello::decode(&bytes("ClientHello").try_into().unwrap()).unwrap();
        let (purpose, stream, streams) = match name {
            "join" => (Purpose::Join(SessionId([9; 16])), 1, 0),
            _ => (Purpose::Open(TicketId([1; 16])), 0, 8),
        };
        assert_eq!((hello.lowest, hello.highest, hello.common_version()), (1, 1, Some(1)));
        assert_eq!(
            (hello.purpose, hello.stream, hello.attempt, hello.streams),
            (purpose, StreamIndex(stream), 7, streams)
        );
        assert_eq!(hello.allow_plain, name == "open-plain");
        let (finish, agreed) = talk.dialer.finish(&bytes("ServerHello").try_into().unwrap()).unwrap();
        assert_eq!(finish.to_vec(), bytes("ClientFinish"));
        assert_eq!((agreed.hello.streams, agreed.hello.encrypted), (4, name != "open-plain"));
        let ours = talk.listener.finish(&bytes("ClientFinish").try_into().unwrap()).unwrap();
        assert_eq!([ours.to_listener, ours.to_dialer, ours.join].concat(), bytes("keys"));
    }
}

#[test]
fn refusals_keep_their_numbers() {
    use Refusal::*;
    let all = [
        (Version, "Version"),
        (Ticket, "Ticket"),
        (Session, "Session"),
        (Busy, "Busy"),
        (Malformed, "Malformed"),
        (Stopping, "Stopping"),
    ];
    let made: Vec<_> = all.iter().map(|(refusal, name)| (name.to_string(), refuse(*refusal).to_vec())).collect();
    same_as_golden("refusal", &made);
    let names: BTreeSet<String> = all.iter().map(|(_, name)| name.to_string()).collect();
    assert_eq!(names, variants(include_str!("../../src/wire/handshake.rs"), "Refusal"));
    let dialer = Dialer::fixed(Purpose::Open(TicketId([1; 16])), 8, false, &AUTH, &DIALER, [0xaa; 32]).unwrap();
    for (refusal, name) in all {
        let bytes = golden()[format!("refusal/{name}").as_str()].clone();
        assert_eq!(dialer.finish(&bytes.try_into().unwrap()).err(), Some(HandshakeError::Refused(refusal)));
    }
}
