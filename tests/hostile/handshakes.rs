//! Handshakes and frames that were recorded, sent back, or made for somebody else.

use crate::peer::{Session, Spoken, destination, knock, read_ticket};
use crate::stage::Stage;
use crate::{Random, count};
use longhaul::ids::StreamIndex;
use longhaul::wire::control::Message;
use longhaul::wire::handshake::{
    CLIENT_HELLO_LEN, ClientHello, Dialer, HandshakeError, Listener, Purpose, Refusal, SERVER_HELLO_LEN, ServerHello,
    refuse,
};
use longhaul::wire::header::{FrameType, HEADER_LEN};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Sends bytes and reads whatever comes, until it closes or is silent for a moment.
fn replay(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(15))).unwrap();
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let mut heard = Vec::new();
    let _ = socket.read_to_end(&mut heard);
    heard
}

/// A handshake as somebody on the way sees it: hello and finish, and the first frames.
fn recorded(stage: &Stage) -> (SocketAddr, Vec<u8>, Session) {
    let ticket = read_ticket(&stage.agent, "/src");
    let dialer = Dialer::new(Purpose::Open(ticket.id), StreamIndex(0), 1, 2, false, &ticket.key.0).unwrap();
    let address = ticket.data[0];
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all(dialer.hello()).unwrap();
    let mut answer = [0; SERVER_HELLO_LEN];
    socket.read_exact(&mut answer).unwrap();
    let (finish, agreed) = dialer.finish(&answer).unwrap();
    socket.write_all(&finish).unwrap();
    let mut control = Spoken::dialled(socket, &agreed);
    assert!(matches!(control.hear(), Some(Message::Offer(_))));
    let recording = [&dialer.hello()[..], &finish].concat();
    (address, recording, Session::of(control, &agreed, address))
}

#[test]
fn what_was_recorded_opens_nothing() {
    let mut stage = Stage::new();
    let (address, recording, mut session) = recorded(&stage);
    let mut random = Random::told("replay");
    let (mut tried, mut accepted) = (0u64, 0u64);
    let mut judge = |heard: Vec<u8>, what: &str| {
        tried += 1;
        // More than a hello would be a frame; a hello without refusal and then silence opened nothing either.
        if heard.len() > SERVER_HELLO_LEN {
            accepted += 1;
            panic!("{what}: {} bytes came back", heard.len());
        }
    };
    // The join of a stream, recorded while it is alive.
    let purpose = Purpose::Join(session.id);
    let join = Dialer::new(purpose, StreamIndex(1), 5, 0, false, &session.join).unwrap();
    let (stream, _) = knock(address, &join).unwrap();
    let total = count(500, 5_000);
    for number in 0..total {
        let (mut bytes, what) = match number % 5 {
            0 => (recording.clone(), "the whole handshake"),
            1 => (recording[..CLIENT_HELLO_LEN].to_vec(), "the hello alone"),
            2 => ([&join.hello()[..], &recording[CLIENT_HELLO_LEN..]].concat(), "another one's finish"),
            3 => (join.hello().to_vec(), "the join of a live stream"),
            _ => {
                let mut changed = [&join.hello()[..], &[0; 32]].concat();
                // A later attempt, another stream: the hello's MAC covers them.
                changed[[14, 16, 17, 20, 24, 40][random.below(6)]] ^= 1 << random.below(3);
                (changed, "a changed join")
            }
        };
        if number % 7 == 6 {
            bytes.extend(random.bytes(40));
        }
        judge(replay(address, &bytes), what);
    }
    drop(stream);
    println!("COUNT handshakes_replayed={tried} accepted={accepted}");
    // The session that was recorded does not mind.
    session.control.say(&Message::StatsRequest);
    drop(session);
    stage.unharmed("replayed handshakes");
}

/// Frames of a live stream: sent again, sent back, in another order, on another stream, with one byte changed.
#[test]
fn recorded_frames_are_not_taken() {
    let mut stage = Stage::new();
    let mut session = destination(&read_ticket(&stage.agent, "/src"), 2, |_| {});
    let mut random = Random::told("frames replayed");
    let (mut tried, mut accepted) = (0u64, 0u64);
    let mut other = session.stream(2).unwrap();
    let elsewhere = other.sealer.frame(FrameType::Ping, 0, 0, 0, b"");
    for number in 0..count(300, 3_000) {
        let mut stream = session.stream(1).unwrap();
        let mut make = |kind| stream.sealer.frame(kind, 0, 0, 0, b"");
        let (first, second, third) = (make(FrameType::Ping), make(FrameType::Ping), make(FrameType::Ping));
        let changed = |frame: &[u8], random: &mut Random| {
            let mut bad = frame.to_vec();
            bad[HEADER_LEN..][random.below(16)] ^= 1 << random.below(8);
            bad
        };
        let sent: Vec<u8> = match number % 6 {
            0 => [&first[..], &first].concat(),
            1 => [&first[..], &third].concat(),
            2 => [&second[..], &first].concat(),
            3 => elsewhere.clone(),
            4 => changed(&first, &mut random),
            // What the agent said of itself.
            _ => {
                let want = longhaul::wire::data::encode_runs(&[longhaul::wire::data::Run {
                    handle: longhaul::ids::Handle(9),
                    first: 0,
                    count: 1,
                    digests_only: false,
                }]);
                stream = session.stream(1).unwrap();
                stream.frame(FrameType::Want, 0, 0, 0, &want);
                let mut heard = vec![0; HEADER_LEN + 1 + 16];
                stream.socket.read_exact(&mut heard).unwrap();
                heard
            }
        };
        stream.raw(&sent);
        // Were it taken, this would be answered.
        let mut after = [0; 1];
        stream.socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        tried += 1;
        match stream.socket.read(&mut after) {
            Ok(0) | Err(_) => {}
            Ok(_) => accepted += 1,
        }
    }
    println!("COUNT frames_replayed={tried} accepted={accepted}");
    assert_eq!(accepted, 0);
    stage.unharmed("replayed frames");
}

#[test]
fn a_session_takes_only_its_own_streams() {
    let mut stage = Stage::new();
    let mut one = Session::open(&read_ticket(&stage.agent, "/src"), 2);
    let other = Session::open(&read_ticket(&stage.agent, "/src"), 2);
    let refused = |dialer: Dialer, what: &str| match knock(other.address, &dialer) {
        Err(HandshakeError::Refused(refusal)) => refusal,
        Err(error) => panic!("{what}: {error}"),
        Ok(_) => panic!("{what}: it was let in"),
    };
    let join = |id, stream, attempt, key: &[u8; 32]| {
        Dialer::new(Purpose::Join(id), StreamIndex(stream), attempt, 0, false, key).unwrap()
    };
    // Another session's proof, either way.
    assert_eq!(refused(join(one.id, 1, 1, &other.join), "another's key"), Refusal::Ticket);
    assert_eq!(refused(join(other.id, 1, 1, &one.join), "another's session"), Refusal::Ticket);
    assert_eq!(refused(join(one.id, 1, 1, &[0; 32]), "no key"), Refusal::Ticket);
    // More streams than were granted.
    for stream in [3, 64, u16::MAX] {
        assert_eq!(refused(join(one.id, stream, 1, &one.join), "a stream too many"), Refusal::Busy);
    }
    // An attempt counts once, and none before it any more.
    let mut first = one.stream(1).unwrap();
    assert_eq!(refused(join(one.id, 1, 1, &one.join), "the same attempt"), Refusal::Ticket);
    assert_eq!(refused(join(one.id, 1, 0, &one.join), "an earlier attempt"), Refusal::Ticket);
    first.frame(FrameType::Ping, 0, 0, 0, b"");
    let (id, key) = (one.id, one.join);
    drop((first, one));
    // A session that is over is nobody's.
    let began = std::time::Instant::now();
    while knock(other.address, &join(id, 2, 9, &key)).is_ok() {
        assert!(began.elapsed() < std::time::Duration::from_secs(30), "a closed session still takes streams");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    println!("COUNT foreign_joins=8 accepted=0");
    stage.unharmed("foreign joins");
}

/// The dialer's side: answers that are refusals, reflections, another's, or without encryption.
#[test]
fn a_dialer_is_not_talked_out_of_its_encryption() {
    let auth = [3; 32];
    let ticket = longhaul::ids::TicketId([1; 16]);
    let answer =
        |encrypted| ServerHello { version: 1, streams: 1, session: longhaul::ids::SessionId([9; 16]), encrypted };
    let (mut tried, mut accepted) = (0u64, 0u64);
    for number in 0..count(1_200, 12_000) {
        let dialer = Dialer::new(Purpose::Open(ticket), StreamIndex(0), 1, 1, false, &auth).unwrap();
        let hello = ClientHello::decode(dialer.hello()).unwrap();
        let listener = |encrypted| *Listener::answer(dialer.hello(), &hello, &auth, answer(encrypted)).unwrap().hello();
        let bytes = match number % 6 {
            // Honest in all but this.
            0 => listener(false),
            // Stripped on the way.
            1 => {
                let mut bytes = listener(true);
                bytes[9] = 0;
                bytes
            }
            2 => dialer.hello()[..SERVER_HELLO_LEN].try_into().unwrap(),
            3 => refuse([Refusal::Busy, Refusal::Ticket, Refusal::Version][(number / 6 % 3) as usize]),
            // An answer to somebody else.
            4 => {
                let other = Dialer::new(Purpose::Open(ticket), StreamIndex(0), 1, 1, false, &auth).unwrap();
                let hello = ClientHello::decode(other.hello()).unwrap();
                *Listener::answer(other.hello(), &hello, &auth, answer(true)).unwrap().hello()
            }
            // Another version.
            _ => {
                let odd = ServerHello { version: 2 + (number % 9) as u16, ..answer(true) };
                *Listener::answer(dialer.hello(), &hello, &auth, odd).unwrap().hello()
            }
        };
        tried += 1;
        accepted += u64::from(dialer.finish(&bytes).is_ok());
    }
    println!("COUNT answers_forged={tried} accepted={accepted}");
    assert_eq!(accepted, 0);
}
