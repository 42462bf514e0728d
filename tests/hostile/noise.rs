//! Malformed frames on live sockets: on stream 0 and on data streams, towards a source and towards a destination.

use crate::manifests::{DIR, raw_entry, raw_segment};
use crate::peer::{Session, destination, read_ticket, source, write_ticket};
use crate::samples::{frames, spoil};
use crate::stage::Stage;
use crate::{Random, count};
use longhaul::wire::control::Message;
use longhaul::wire::header::FrameType;

/// Sends one frame that is not as it should be. Half are changed before they are sealed, so that check and tag are right.
fn malformed(spoken: &mut crate::peer::Spoken, control: bool, random: &mut Random) -> bool {
    let samples: Vec<_> = frames().into_iter().filter(|f| (f.kind == FrameType::Control) == control).collect();
    let mut plain = samples[random.below(samples.len())].clone();
    if random.below(2) == 0 {
        for _ in 0..1 + random.below(3) {
            spoil(&mut plain.body, random);
        }
        if random.below(4) == 0 {
            (plain.handle, plain.offset) = (random.next() as u32, random.next());
        }
        return spoken.frame(plain.kind, plain.flags, plain.handle, plain.offset, &plain.body);
    }
    let mut frame = spoken.sealer.frame(plain.kind, plain.flags, plain.handle, plain.offset, &plain.body);
    for _ in 0..1 + random.below(3) {
        spoil(&mut frame, random);
    }
    spoken.raw(&frame)
}

fn storm(stage: &mut Stage, what: &str, open: impl Fn(&Stage) -> Session) {
    let mut random = Random::told(what);
    let total = count(1_500, 27_000);
    let (mut sent, mut streams, mut sessions) = (0u64, 0u64, 0u64);
    let (mut session, mut alive) = (open(stage), 0);
    while sent < total {
        // A session in five dies of what is said on its stream 0; the others give many streams.
        if random.below(100) < 6 || alive == 0 {
            for _ in 0..2 {
                sent += u64::from(malformed(&mut session.control, true, &mut random));
            }
            session = open(stage);
            (sessions, alive) = (sessions + 1, 60);
        }
        alive -= 1;
        let Ok(mut stream) = session.stream(1) else {
            alive = 0;
            continue;
        };
        streams += 1;
        for _ in 0..3 {
            sent += u64::from(malformed(&mut stream, false, &mut random));
        }
        // Now and then there is nothing more behind a frame that was cut off, and the stream is left open.
        if random.below(2) == 0 {
            let _ = stream.socket.shutdown(std::net::Shutdown::Write);
        }
        if sent % 512 < 3 {
            assert!(stage.growth() < crate::stage::GROWTH_MAX, "{what}: {} bytes after {sent}", stage.growth());
        }
    }
    println!("COUNT live_malformed_{what}={sent} streams={streams} sessions={sessions} rss_growth={}", stage.growth());
    stage.unharmed(what);
}

#[test]
fn malformed_frames_to_a_source() {
    let mut stage = Stage::new();
    storm(&mut stage, "to_source", |stage| destination(&read_ticket(&stage.agent, "/src"), 1, |_| {}));
}

#[test]
fn malformed_frames_to_a_destination() {
    let mut stage = Stage::new();
    let number = std::cell::Cell::new(0);
    storm(&mut stage, "to_destination", |stage| {
        let to = number.replace(number.get() + 1);
        let mut session = source(&write_ticket(&stage.agent, &format!("/in/noise{to}")), 1);
        session.control.say(&Message::Segment(raw_segment(0, 1, &[raw_entry(DIR, 0, b"", &[])])));
        session
    });
}
