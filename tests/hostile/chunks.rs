//! A hostile source that has offered a proper tree, been asked for chunks, and answers with something else.

use crate::manifests::{DIR, FILE, file_tail, raw_entry, raw_segment};
use crate::peer::{Session, Spoken, source, write_ticket};
use crate::samples::chunk_end;
use crate::stage::Stage;
use crate::support::noise;
use longhaul::digest::{chunk, wire_check};
use longhaul::grid::{CHUNK_SIZE, Span};
use longhaul::ids::Handle;
use longhaul::wire::control::{Bound, Message, Sealed, SourceStats};
use longhaul::wire::data::{PACK_ENTRY_HEAD, PackItem, Run, Status, decode_pack_want, decode_runs, put_pack_entry};
use longhaul::wire::header::{CHUNK_END, FrameType};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SIZE: u64 = CHUNK_SIZE + 100_000;
const BLOCK: usize = 128 << 10;

/// What comes of a transfer of one big and one small file whose data streams are served by `serve`.
struct Outcome {
    /// The verdict as JSON, or why there is none.
    report: Result<serde_json::Value, String>,
    /// Streams that were opened in the course of it.
    streams: u64,
}

fn transfer(stage: &Stage, to: &str, serve: impl Fn(&mut Spoken, Asked) -> bool + Send + Sync + 'static) -> Outcome {
    let mut session = source(&write_ticket(&stage.agent, to), 1);
    let entries = [
        raw_entry(DIR, 0, b"", &[]),
        raw_entry(FILE, 0, b"big", &file_tail(SIZE, false)),
        raw_entry(FILE, 0, b"small", &file_tail(5, false)),
    ];
    session.control.say(&Message::Segment(raw_segment(0, 3, &entries)));
    session.control.say(&Message::ManifestEnd(1));
    // A source that dials opens its data streams, and opens them again.
    let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut join = session.again();
    let (end, count) = (stop.clone(), opened.clone());
    let data = std::thread::spawn(move || {
        while !end.load(Ordering::Relaxed) && count.load(Ordering::Relaxed) < 40 {
            let Ok(mut stream) = join.stream(1) else { return };
            count.fetch_add(1, Ordering::Relaxed);
            let patience = Some(Duration::from_millis(500));
            stream.socket.set_read_timeout(patience).unwrap();
            answer(&mut stream, &serve, &end);
        }
    });
    let report = control(&mut session);
    stop.store(true, Ordering::Relaxed);
    drop(session);
    data.join().unwrap();
    Outcome { report, streams: opened.load(Ordering::Relaxed) }
}

/// Keeps stream 0 honest.
fn control(session: &mut Session) -> Result<serde_json::Value, String> {
    let mut words = "the connection ended".to_owned();
    let mut pinged = Instant::now();
    while let Some((_, body)) = session.control.hear_frame() {
        // Who says nothing for long is taken for gone.
        if pinged.elapsed() > Duration::from_secs(5) {
            session.control.say(&Message::Ping);
            pinged = Instant::now();
        }
        match Message::decode(&body).unwrap() {
            Message::Bind(files) => {
                let bound =
                    files.iter().map(|f| Bound { handle: f.handle, status: Status::Ok, object: (0, 0), extents: None });
                session.control.say(&Message::Bound(bound.collect()));
            }
            Message::Seal(handles) => {
                let sealed = handles.into_iter().map(|handle| Sealed { handle, status: Status::Ok });
                session.control.say(&Message::Sealed(sealed.collect()));
            }
            Message::StatsRequest => drop(session.control.say(&Message::Stats(SourceStats::default()))),
            Message::Verdict(report) => {
                session.control.say(&Message::Bye);
                return Ok(serde_json::from_slice(&report).unwrap());
            }
            Message::Error(error) => words = error.what,
            _ => {}
        }
    }
    Err(words)
}

/// What a destination asked for.
enum Asked {
    Chunk(Handle, Span, Vec<u8>),
    Pack(u32, Vec<PackItem>),
}

fn content() -> Vec<u8> {
    noise(SIZE as usize, 77)
}

fn answer(stream: &mut Spoken, serve: &impl Fn(&mut Spoken, Asked) -> bool, end: &AtomicBool) {
    let content = content();
    while !end.load(Ordering::Relaxed) {
        let Some((header, body)) = stream.hear_frame() else { return };
        let asked: Vec<Asked> = match header.kind {
            FrameType::Want => {
                let runs = decode_runs(&body).unwrap();
                let chunks =
                    runs.iter().flat_map(|run: &Run| (run.first..run.first + run.count).map(|c| (run.handle, c)));
                let one = |(handle, index): (Handle, u32)| {
                    let offset = u64::from(index) * CHUNK_SIZE;
                    let span = Span { offset, len: CHUNK_SIZE.min(SIZE - offset) };
                    Asked::Chunk(handle, span, content[offset as usize..span.end() as usize].to_vec())
                };
                chunks.map(one).collect()
            }
            FrameType::PackWant => vec![Asked::Pack(header.handle, decode_pack_want(&body).unwrap())],
            _ => vec![],
        };
        for one in asked {
            if !serve(stream, one) {
                return;
            }
        }
    }
}

/// As an honest source answers.
fn honest(stream: &mut Spoken, asked: Asked) -> bool {
    match asked {
        Asked::Chunk(handle, span, payload) => blocks(stream, handle, span, &payload, check(handle, span, &payload)),
        Asked::Pack(number, items) => {
            let body: Vec<u8> = items.iter().flat_map(|item| entry(item, b"hello")).collect();
            stream.frame(FrameType::Pack, CHUNK_END, number, 0, &body)
        }
    }
}

fn check(handle: Handle, span: Span, payload: &[u8]) -> [u8; 16] {
    wire_check(chunk(payload, span.offset), handle, span).0
}

fn blocks(stream: &mut Spoken, handle: Handle, span: Span, payload: &[u8], check: [u8; 16]) -> bool {
    let mut at = 0;
    while at < payload.len() {
        let end = (at + BLOCK).min(payload.len());
        let last = end == payload.len();
        let mut body = payload[at..end].to_vec();
        if last {
            body.extend_from_slice(&check);
        }
        if !stream.frame(FrameType::Data, u8::from(last), handle.0, span.offset + at as u64, &body) {
            return false;
        }
        at = end;
    }
    true
}

fn entry(item: &PackItem, content: &[u8]) -> Vec<u8> {
    let span = Span { offset: 0, len: content.len() as u64 };
    let mut out = vec![0; PACK_ENTRY_HEAD];
    let check = wire_check(chunk(content, 0), item.handle, span);
    put_pack_entry(&mut out, item.handle, Status::Ok, content.len() as u32, check);
    out.extend_from_slice(content);
    out
}

/// What the destination has under final names is right, or it is not there.
fn nothing_wrong(stage: &Stage, to: &str, what: &str) {
    let dir = stage.sandbox.at("far").join(to);
    for (name, right) in [("big", content()), ("small", b"hello".to_vec())] {
        if let Ok(found) = std::fs::read(dir.join(name)) {
            assert!(found == right, "{what}: other bytes under the final name {name}");
        }
    }
    let names = stage.names(to);
    assert!(names.iter().all(|name| name == "big" || name == "small"), "{what}: {names:?}");
}

#[test]
fn an_honest_source_of_this_test_is_taken_for_one() {
    let mut stage = Stage::new();
    let outcome = transfer(&stage, "/in/honest", honest);
    let report = outcome.report.unwrap();
    assert_eq!((&report["verdict"], &report["files"]), (&"DURABLE".into(), &2.into()), "{report}");
    assert_eq!(outcome.streams, 1);
    nothing_wrong(&stage, "in/honest", "honest");
    assert_eq!(stage.names("in/honest"), ["big", "small"]);
    stage.unharmed("honest");
}

/// A byte now and then is no progress: the stream is replaced, and what it was asked for comes through the next one.
#[test]
fn a_source_that_dribbles_is_cut_off_in_time() {
    let mut stage = Stage::new();
    let (first, cut) = (AtomicBool::new(true), Arc::new(Mutex::new(None)));
    let told = cut.clone();
    let dribble = move |stream: &mut Spoken, asked: Asked| match asked {
        Asked::Chunk(handle, span, payload) if first.swap(false, Ordering::Relaxed) => {
            let frame = stream.sealer.frame(FrameType::Data, 0, handle.0, span.offset, &payload[..BLOCK]);
            let began = Instant::now();
            for byte in frame.iter().take(200) {
                if !stream.raw(&[*byte]) {
                    *told.lock().unwrap() = Some(began.elapsed());
                    break;
                }
                std::thread::sleep(Duration::from_millis(500));
            }
            false
        }
        asked => honest(stream, asked),
    };
    let outcome = transfer(&stage, "/in/dribble", dribble);
    let cut = cut.lock().unwrap().expect("it was let dribble");
    assert!((Duration::from_secs(40)..Duration::from_secs(60)).contains(&cut), "cut after {cut:?}");
    let report = outcome.report.unwrap();
    assert_eq!((&report["verdict"], outcome.streams), (&"DURABLE".into(), 2), "{report}");
    assert!(report["notes"].to_string().contains("next to nothing"), "{report}");
    nothing_wrong(&stage, "in/dribble", "dribble");
    println!("COUNT dribbling_sources=1 cut_after_ms={}", cut.as_millis());
    stage.unharmed("a dribble");
}

type Serve = Box<dyn Fn(&mut Spoken, Asked) -> bool + Send + Sync>;

/// Wrong in one way at the first chunk or pack, honest afterwards: the transfer ends well, and without a wrong byte.
#[test]
fn what_is_wrong_once_is_refused_and_fetched_again() {
    let mut stage = Stage::new();
    let mut cases: Vec<(&str, Serve)> = Vec::new();
    let mut case = |name, serve: fn(&mut Spoken, Handle, Span, Vec<u8>) -> bool| {
        let first = AtomicBool::new(true);
        cases.push((
            name,
            Box::new(move |stream: &mut Spoken, asked: Asked| match asked {
                Asked::Chunk(handle, span, payload) if first.swap(false, Ordering::Relaxed) => {
                    serve(stream, handle, span, payload)
                }
                asked => honest(stream, asked),
            }),
        ));
    };
    case("a flipped payload", |s, h, span, mut p| {
        let right = check(h, span, &p);
        p[1000] ^= 1;
        blocks(s, h, span, &p, right)
    });
    case("a wrong digest", |s, h, span, p| blocks(s, h, span, &p, [7; 16]));
    case("the digest of another place", |s, h, span, p| {
        let other = check(h, Span { offset: span.offset + CHUNK_SIZE, ..span }, &p);
        blocks(s, h, span, &p, other)
    });
    case("the digest of another file", |s, h, span, p| {
        let other = check(Handle(h.0 + 1), span, &p);
        blocks(s, h, span, &p, other)
    });
    case("another handle", |s, h, span, p| blocks(s, Handle(h.0 + 1), span, &p, check(h, span, &p)));
    case("another offset", |s, h, span, p| {
        blocks(s, h, Span { offset: span.offset + 4096, ..span }, &p, check(h, span, &p))
    });
    case("longer than the chunk", |s, h, span, mut p| {
        p.extend_from_slice(&[1; BLOCK]);
        blocks(s, h, span, &p, check(h, span, &p))
    });
    case("shorter than the chunk", |s, h, span, mut p| {
        p.truncate(BLOCK);
        blocks(s, h, span, &p, check(h, span, &p))
    });
    case("without its end", |s, h, span, p| {
        s.frame(FrameType::Data, 0, h.0, span.offset, &p[..BLOCK]);
        false
    });
    case("an empty block", |s, h, span, _| s.frame(FrameType::Data, 0, h.0, span.offset, b""));
    case("an end of nothing but a digest", |s, h, span, _| s.frame(FrameType::Data, 1, h.0, span.offset, &[0; 16]));
    case("an end that is too short", |s, h, span, _| s.frame(FrameType::Data, 1, h.0, span.offset, &[0; 7]));
    case("a chunk twice", |s, h, span, p| {
        blocks(s, h, span, &p, check(h, span, &p)) && blocks(s, h, span, &p, check(h, span, &p))
    });
    case("a chunk that nobody asked for", |s, h, _, _| {
        s.frame(FrameType::Data, 1, h.0, 9 * CHUNK_SIZE, &chunk_end(b"x", h.0, 9 * CHUNK_SIZE))
    });
    case("a digest instead of bytes", |s, h, span, p| {
        s.frame(FrameType::Digest, 0, h.0, span.offset, &chunk(&p, span.offset).0)
    });
    case("a digest of another length", |s, h, span, _| s.frame(FrameType::Digest, 0, h.0, span.offset, &[0; 15]));
    case("a hole of no length", |s, h, span, _| s.frame(FrameType::Zero, 0, h.0, span.offset, &[0; 8]));
    case("a hole without bounds", |s, h, span, _| s.frame(FrameType::Zero, 0, h.0, span.offset, &[0xff; 8]));
    case("a hole beyond the chunk", |s, h, span, p| {
        s.frame(FrameType::Data, 0, h.0, span.offset, &p[..4096])
            && s.frame(FrameType::Zero, 0, h.0, span.offset + 4096, &CHUNK_SIZE.to_le_bytes())
    });
    case("a hole where there is data", |s, h, span, p| {
        let len = span.len.to_le_bytes();
        s.frame(FrameType::Zero, 1, h.0, span.offset, &[&len[..], &check(h, span, &p)].concat())
    });
    case("a refusal of what is wanted", |s, h, span, _| {
        s.frame(FrameType::Nak, 0, h.0, span.offset, &[Status::Unwanted as u8])
    });
    case("a refusal that cannot be read", |s, h, span, _| s.frame(FrameType::Nak, 0, h.0, span.offset, &[99]));
    case("a refusal without a reason", |s, h, span, _| s.frame(FrameType::Nak, 0, h.0, span.offset, b""));
    case("a pack that nobody asked for", |s, _, _, _| s.frame(FrameType::Pack, 1, 9999, 0, b""));
    case("a Want", |s, _, _, _| s.frame(FrameType::Want, 0, 1, 0, &[0; 16]));
    case("a message", |s, _, _, _| s.frame(FrameType::Control, 0, 0, 0, &Message::Bye.encode()));
    case("an end", |s, _, _, _| s.frame(FrameType::End, 0, 0, 0, b""));
    case("the same frame twice", |s, h, span, p| {
        let frame = s.sealer.frame(FrameType::Data, 0, h.0, span.offset, &p[..BLOCK]);
        s.raw(&frame) && s.raw(&frame)
    });
    case("a frame left out", |s, h, span, p| {
        drop(s.sealer.frame(FrameType::Ping, 0, 0, 0, b""));
        s.frame(FrameType::Data, 0, h.0, span.offset, &p[..BLOCK])
    });
    case("a frame in the clear", |s, h, span, p| {
        use longhaul::wire::crypt::{FrameKey, Sealer};
        let mut plain = Sealer::new(FrameKey::plain());
        let frame = plain.frame(FrameType::Data, 0, h.0, span.offset, &p[..BLOCK]);
        s.raw(&frame)
    });
    case("a length that no buffer holds", |s, h, span, _| {
        let mut frame = s.sealer.frame(FrameType::Data, 0, h.0, span.offset, b"x");
        frame[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        frame[12..16].fill(0);
        let check = xxhash_rust::xxh3::xxh3_64(&frame[..32]) as u32;
        frame[12..16].copy_from_slice(&check.to_le_bytes());
        s.raw(&frame)
    });
    let amount = cases.len();
    for (number, (what, serve)) in cases.into_iter().enumerate() {
        let to = format!("/in/once{number}");
        let outcome = transfer(&stage, &to, serve);
        let report = outcome.report.unwrap_or_else(|words| panic!("{what}: {words}"));
        assert_eq!(report["verdict"], "DURABLE", "{what}: {report}");
        nothing_wrong(&stage, &to[1..], what);
        assert_eq!(stage.names(&to[1..]), ["big", "small"], "{what}");
        let noticed = outcome.streams > 1 || report["failed_chunks"].as_u64() > Some(0);
        assert!(noticed || what == "an end" || what == "a chunk twice", "{what} went unnoticed: {report}");
    }
    println!("COUNT wrong_answers={amount} wrong_bytes_published=0");
    stage.unharmed("wrong answers");
}

/// Wrong for ever: the tries are counted, the file fails with its reason, the others arrive.
#[test]
fn what_is_wrong_for_ever_ends_in_a_verdict() {
    let mut stage = Stage::new();
    let forever: [(&str, &str, Serve); 5] = [
        (
            "chunks",
            "damaged",
            Box::new(|s, asked| match asked {
                Asked::Chunk(h, span, p) => blocks(s, h, span, &p, [9; 16]),
                pack => honest(s, pack),
            }),
        ),
        (
            "packs",
            "intact",
            Box::new(|s, asked| match asked {
                Asked::Pack(number, items) => {
                    let mut body: Vec<u8> = items.iter().flat_map(|item| entry(item, b"hello")).collect();
                    body[9] ^= 1;
                    s.frame(FrameType::Pack, CHUNK_END, number, 0, &body)
                }
                chunk => honest(s, chunk),
            }),
        ),
        (
            "packs of another length",
            "intact",
            Box::new(|s, asked| match asked {
                Asked::Pack(number, items) => {
                    let body: Vec<u8> = items.iter().flat_map(|item| entry(item, b"hello!")).collect();
                    s.frame(FrameType::Pack, CHUNK_END, number, 0, &body)
                }
                chunk => honest(s, chunk),
            }),
        ),
        (
            "packs with nothing in them",
            "intact",
            Box::new(|s, asked| match asked {
                Asked::Pack(number, _) => s.frame(FrameType::Pack, CHUNK_END, number, 0, b""),
                chunk => honest(s, chunk),
            }),
        ),
        (
            "refusals",
            "",
            Box::new(|s, asked| match asked {
                Asked::Chunk(h, span, _) => s.frame(FrameType::Nak, 0, h.0, span.offset, &[Status::Failed as u8]),
                pack => honest(s, pack),
            }),
        ),
    ];
    for (number, (what, words, serve)) in forever.into_iter().enumerate() {
        let to = format!("/in/ever{number}");
        let outcome = transfer(&stage, &to, serve);
        let report = outcome.report.unwrap_or_else(|words| panic!("{what}: {words}"));
        assert_eq!((&report["verdict"], &report["files"]), (&"PARTIAL".into(), &1.into()), "{what}: {report}");
        let failures = report["failures"].to_string();
        assert!(failures.contains(words), "{what}: {failures}");
        nothing_wrong(&stage, &to[1..], what);
        assert_eq!(stage.names(&to[1..]).len(), 1, "{what}");
    }
    println!("COUNT wrong_for_ever=5 bounded=5");
    stage.unharmed("wrong for ever");
}

/// Frames of a pack without end: the destination does not listen for ever.
#[test]
fn a_pack_without_end_ends_its_stream() {
    let mut stage = Stage::new();
    let (first, minded) = (AtomicBool::new(true), Arc::new(AtomicBool::new(false)));
    let told = minded.clone();
    let outcome = transfer(&stage, "/in/endless", move |stream, asked| match asked {
        Asked::Pack(number, _) if first.swap(false, Ordering::Relaxed) => {
            // A closed socket shows at the second write behind its closing.
            let taken = (0..200).all(|_| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                stream.frame(FrameType::Pack, 0, number, 0, b"")
            });
            told.store(!taken, Ordering::Relaxed);
            false
        }
        asked => honest(stream, asked),
    });
    let report = outcome.report.unwrap();
    assert_eq!(report["verdict"], "DURABLE", "{report}");
    assert!(minded.load(Ordering::Relaxed), "200 frames of one pack were taken");
    nothing_wrong(&stage, "in/endless", "endless");
    stage.unharmed("a pack without end");
}

/// Streams that come up, take their orders and go down before they brought a byte, again and again: no stream is alive, though
/// one is always there. The session ends as one does that gets no stream.
#[test]
fn streams_that_never_stay_end_the_session() {
    let stage = Stage::new();
    let began = std::time::Instant::now();
    let outcome = transfer(&stage, "/in/flapping", |_, _| {
        std::thread::sleep(std::time::Duration::from_millis(1_500));
        false
    });
    let words = outcome.report.expect_err("nothing came");
    assert!(words.contains("none stayed"), "{words}");
    let took = began.elapsed().as_secs();
    assert!((40..58).contains(&took), "{took} s, {} streams", outcome.streams);
    println!("COUNT flapping_streams={} ended_after_s={took}", outcome.streams);
}
