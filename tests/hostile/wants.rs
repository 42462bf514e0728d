//! A hostile destination: it asks an agent for what it may not have, for more than there is, and for too much of it.

use crate::count;
use crate::peer::{Session, Spoken, destination, read_ticket};
use crate::stage::{GROWTH_MAX, Stage};
use longhaul::ids::Handle;
use longhaul::manifest::{EntryKind, Mtime, Segment};
use longhaul::relpath::RelPath;
use longhaul::wire::control::{Bind, Message};
use longhaul::wire::data::{PackItem, Run, Status, WANT_RUNS_MAX, encode_pack_want, encode_runs};
use longhaul::wire::header::FrameType;

fn run(handle: u32, first: u32, count: u32) -> Run {
    Run { handle: Handle(handle), first, count, digests_only: false }
}

fn want(runs: &[Run]) -> Vec<u8> {
    encode_runs(runs)
}

/// A session past its manifest, with what the manifest said of `path`.
fn begun(stage: &Stage, streams: u16, path: &str) -> (Session, u64, Mtime) {
    let mut session = destination(&read_ticket(&stage.agent, "/src"), streams, |_| {});
    let mut found = None;
    loop {
        match session.control.hear().expect("a manifest") {
            Message::Segment(bytes) => {
                for entry in Segment::decode(&bytes).unwrap().entries {
                    if let EntryKind::File { size, .. } = entry.kind
                        && entry.path.as_bytes() == path.as_bytes()
                    {
                        found = Some((size, entry.mtime));
                    }
                }
            }
            Message::ManifestEnd(_) => break,
            Message::Problem { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let (size, mtime) = found.expect("the manifest names it");
    (session, size, mtime)
}

fn bind(session: &mut Session, handle: u32, root: u16, path: &[u8], size: u64, mtime: Mtime) -> Status {
    let path = RelPath::new(path).unwrap();
    session.control.say(&Message::Bind(vec![Bind { handle: Handle(handle), root, path, size, mtime, sparse: false }]));
    match session.control.hear() {
        Some(Message::Bound(bound)) => bound[0].status,
        other => panic!("{other:?}"),
    }
}

/// Asks on a data stream and reads one answer.
fn asked(stream: &mut Spoken, body: &[u8]) -> Option<(FrameType, Vec<u8>)> {
    stream.frame(FrameType::Want, 0, 0, 0, body);
    stream.hear_frame().map(|(header, body)| (header.kind, body))
}

#[test]
fn what_an_accept_asks_for_is_kept_in_bounds() {
    let mut stage = Stage::new();
    let mut refused = 0;
    let blocks = [0, 1, 3, 4095, 65_535, 65_537, (1 << 20) + 1, 1 << 31, u32::MAX];
    for (number, block) in blocks.into_iter().enumerate() {
        let mut session = destination(&read_ticket(&stage.agent, "/src"), 1, |accept| accept.block = block);
        if let Ok(mut stream) = session.stream(1) {
            // Were the block taken as it is, this would divide by it.
            bind_big(&stage, &mut session);
            stream.frame(FrameType::Want, 0, 0, 0, &want(&[run(number as u32 + 1, 0, 1)]));
        }
        let words = session.control.last_words();
        assert!(words.contains("block"), "{block}: {words}");
        refused += 1;
    }
    for change in 0..6 {
        let session = destination(&read_ticket(&stage.agent, "/src"), 1, |accept| match change {
            0 => accept.credit = u32::MAX,
            1 => accept.rate = Some(0),
            2 => accept.rate = Some(u64::MAX),
            3 => accept.window = Some(u64::MAX),
            4 => accept.congestion = Some("\0 no such thing \x1b[2J".repeat(40)),
            _ => accept.streams = u16::MAX,
        });
        drop(session);
    }
    println!("COUNT accepts_out_of_bounds={} refused={refused}", blocks.len() + 6);
    stage.unharmed("odd accepts");
}

fn bind_big(stage: &Stage, session: &mut Session) {
    let meta = std::fs::metadata(stage.sandbox.at("far/src/big")).unwrap();
    use std::os::unix::fs::MetadataExt;
    let mtime = Mtime { secs: meta.mtime(), nanos: meta.mtime_nsec() as u32 };
    let path = RelPath::new(b"big").unwrap();
    let bind = |n| Bind { handle: Handle(n), root: 0, path: path.clone(), size: meta.len(), mtime, sparse: false };
    session.control.say(&Message::Bind((1..=9).map(bind).collect()));
}

/// Opened without care, it would hold whoever opens it for ever.
fn fifo(stage: &Stage) {
    nix::unistd::mkfifo(&stage.sandbox.at("far/src/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
}

#[test]
fn binds_open_only_what_the_ticket_offers() {
    let mut stage = Stage::new();
    let (mut session, size, mtime) = begun(&stage, 1, "big");
    assert_eq!(bind(&mut session, 1, 0, b"big", size, mtime), Status::Ok);
    fifo(&stage);
    let cases: [(u16, &[u8], u64); 14] = [
        (1, b"big", size),
        (u16::MAX, b"big", size),
        (0, b"way-out/canary", 14),
        (0, b"way-out", size),
        (0, b"fifo", 0),
        (0, b"deep", size),
        (0, b"", size),
        (0, b"big/x", size),
        (0, b"nothing", 0),
        (0, b"small", u64::MAX),
        (0, b"big", 0),
        (0, b"big", size + 1),
        (0, b".longhaul/0/journal", 0),
        (0, b".x.lh-0123456789abcdef.part", 0),
    ];
    stage.sandbox.write("far/src/.longhaul/0/journal", b"");
    stage.sandbox.write("far/src/.x.lh-0123456789abcdef.part", b"");
    for (handle, (root, path, size)) in (10..).zip(cases) {
        let meta = stage.sandbox.at("far/src").join(std::str::from_utf8(path).unwrap()).symlink_metadata();
        use std::os::unix::fs::MetadataExt;
        let mtime = meta.map_or(mtime, |m| Mtime { secs: m.mtime(), nanos: m.mtime_nsec() as u32 });
        let status = bind(&mut session, handle, root, path, size, mtime);
        assert_ne!(status, Status::Ok, "{}", String::from_utf8_lossy(path));
    }
    // Bytes that the library would not write.
    let mut raw = 0;
    for path in [b"../x".as_slice(), b"/etc/passwd", b"a/../../x", b"a\0b", b".", b"..", b"a//b", b"a/", b"./a"] {
        let (mut session, ..) = begun(&stage, 1, "big");
        let mut body = vec![7];
        body.extend_from_slice(&[9, 0, 0, 0, 0, 0]);
        body.extend_from_slice(&5u64.to_le_bytes());
        body.extend_from_slice(&[0; 13]);
        body.extend_from_slice(&(path.len() as u16).to_le_bytes());
        body.extend_from_slice(path);
        session.control.body(&body);
        assert!(session.control.is_closed(), "{}", String::from_utf8_lossy(path));
        raw += 1;
    }
    // More than may be open at once.
    let (mut session, size, mtime) = begun(&stage, 1, "big");
    for first in (0..4608).step_by(512) {
        let path = RelPath::new(b"big").unwrap();
        let one = |n| Bind { handle: Handle(n), root: 0, path: path.clone(), size, mtime, sparse: false };
        session.control.say(&Message::Bind((first..first + 512).map(one).collect()));
    }
    let words = session.control.last_words();
    assert!(words.is_empty() || words.contains("more files than is allowed"), "{words}");
    println!("COUNT binds_outside={} escaped=0", cases.len() + raw);
    std::fs::remove_dir_all(stage.sandbox.at("far/src/.longhaul")).unwrap();
    std::fs::remove_file(stage.sandbox.at("far/src/fifo")).unwrap();
    std::fs::remove_file(stage.sandbox.at("far/src/.x.lh-0123456789abcdef.part")).unwrap();
    stage.unharmed("binds");
}

#[test]
fn wants_at_every_border_get_a_refusal_or_the_end_of_their_stream() {
    let mut stage = Stage::new();
    let (mut session, size, mtime) = begun(&stage, 2, "big");
    assert_eq!(bind(&mut session, 1, 0, b"big", size, mtime), Status::Ok);
    let mut stream = session.stream(1).unwrap();
    let mut refusals = 0;
    for asked_for in [
        run(1, 3, 1),
        run(1, 2, 2),
        run(1, 0, u32::MAX),
        run(1, u32::MAX - 1, 1),
        run(0, 0, 1),
        run(2, 0, 1),
        run(u32::MAX, 7, 1),
        Run { digests_only: true, ..run(2, 0, 1) },
    ] {
        let (kind, body) = asked(&mut stream, &want(&[asked_for])).expect("an answer");
        assert_eq!((kind, body[0]), (FrameType::Nak, Status::Gone as u8), "{asked_for:?}");
        refusals += 1;
        // A run of many is answered chunk by chunk; the rest of the answers is of no use.
        if asked_for.count > 1 {
            stream = session.stream(1).unwrap();
        }
    }
    // What cannot be read ends the stream, and only the stream.
    let raw = |first: u32, count: u32, flags: u32| {
        [1u32, first, count, flags].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>()
    };
    let mut bodies = vec![raw(0, 0, 0), raw(u32::MAX, 1, 0), raw(1, u32::MAX, 0), raw(0, 1, 2), raw(0, 1, u32::MAX)];
    bodies.extend([raw(0, 1, 0)[..15].to_vec(), raw(0, 1, 0).repeat(WANT_RUNS_MAX + 1), vec![0; 17], vec![0xff; 16]]);
    let items = |count: u16, size: u32, path: &[u8]| {
        let mut body = count.to_le_bytes().to_vec();
        body.extend_from_slice(&[1, 0, 0, 0, 0, 0]);
        body.extend_from_slice(&size.to_le_bytes());
        body.extend_from_slice(&[0; 12]);
        body.extend_from_slice(&(path.len() as u16).to_le_bytes());
        body.extend_from_slice(path);
        body
    };
    let packs = [
        items(0, 5, b"small"),
        items(2, 5, b"small"),
        items(129, 5, b"small"),
        items(u16::MAX, 5, b"small"),
        items(1, (48 << 10) + 1, b"small"),
        items(1, u32::MAX, b"small"),
        items(1, 5, b"../small"),
        items(1, 5, b"/etc/hosts"),
        items(1, 5, b"a\0b"),
        vec![1],
        vec![],
    ];
    let mut ended = 0;
    for (kind, body) in bodies
        .iter()
        .map(|body| (FrameType::Want, body))
        .chain(bodies.iter().map(|body| (FrameType::Unwant, body)))
        .chain(packs.iter().map(|body| (FrameType::PackWant, body)))
    {
        let mut stream = session.stream(2).unwrap();
        stream.frame(kind, 0, 1, 0, body);
        assert!(stream.is_closed());
        ended += 1;
    }
    // Frames that only a source sends, or that belong on another stream.
    for kind in
        [FrameType::Data, FrameType::Zero, FrameType::Digest, FrameType::Pack, FrameType::Nak, FrameType::Control]
    {
        let mut stream = session.stream(2).unwrap();
        stream.frame(kind, 1, 1, 0, &[0; 32]);
        assert!(stream.is_closed(), "{kind:?}");
        ended += 1;
    }
    // The session has lived through all of it, and still gives what it may.
    let mut stream = session.stream(2).unwrap();
    let (kind, _) = asked(&mut stream, &want(&[run(1, 0, 1)])).expect("a block");
    assert_eq!(kind, FrameType::Data);
    println!("COUNT wants_refused={refusals} streams_ended={ended}");
    stage.unharmed("wants");
}

#[test]
fn packs_give_only_what_is_offered() {
    let mut stage = Stage::new();
    let (mut session, size, mtime) = begun(&stage, 1, "small");
    assert_eq!(size, 5);
    fifo(&stage);
    let mut stream = session.stream(1).unwrap();
    let cases: [(u16, &[u8], u32); 8] = [
        (0, b"small", 4),
        (0, b"small", 6),
        (0, b"way-out/canary", 14),
        (1, b"small", 5),
        (0, b"fifo", 0),
        (0, b"deep", 0),
        (0, b"", 0),
        (0, b"gone", 0),
    ];
    for (number, (root, path, size)) in (1..).zip(cases) {
        let item = PackItem { handle: Handle(number), root, path: RelPath::new(path).unwrap(), size, mtime };
        stream.frame(FrameType::PackWant, 0, number, 0, &encode_pack_want(&[item]));
        let (header, body) = stream.hear_frame().unwrap();
        assert_eq!(header.kind, FrameType::Pack);
        assert_ne!(body[4], Status::Ok as u8, "{}", String::from_utf8_lossy(path));
        assert_eq!(body.len(), 25, "no content with a refusal");
    }
    println!("COUNT packs_outside={} escaped=0", cases.len());
    std::fs::remove_file(stage.sandbox.at("far/src/fifo")).unwrap();
    stage.unharmed("packs");
}

/// Asks without end and reads nothing. Whatever the agent keeps of it, it is not much.
fn flood(stage: &mut Stage, what: &str, streams: u16, mut send: impl FnMut(&mut Session, &mut [Spoken]) -> bool) {
    let (mut session, size, mtime) = begun(stage, streams, "big");
    assert_eq!(bind(&mut session, 1, 0, b"big", size, mtime), Status::Ok);
    let mut data: Vec<Spoken> = (1..=streams).map(|index| session.stream(index).unwrap()).collect();
    // A flood that is no longer taken in blocks here: that is the best answer there is.
    let patience = Some(std::time::Duration::from_secs(3));
    data.iter().chain([&session.control]).for_each(|spoken| spoken.socket.set_write_timeout(patience).unwrap());
    let (mut sent, mut worst) = (0u64, 0);
    while sent < count(3_000, 30_000) && send(&mut session, &mut data) {
        sent += 1;
        if sent.is_multiple_of(100) {
            worst = worst.max(stage.growth());
            assert!(worst < GROWTH_MAX, "{what}: {worst} bytes more after {sent} frames");
        }
    }
    worst = worst.max(stage.growth());
    println!("COUNT flood_{what}={sent} rss_growth={worst}");
    // While it goes on, others are served.
    stage.unharmed(what);
}

#[test]
fn floods_are_kept_out_of_memory() {
    let mut stage = Stage::new();
    let unbound = want(&vec![run(77, 0, u32::MAX); WANT_RUNS_MAX]);
    flood(&mut stage, "wants_unbound", 1, |_, data| data[0].frame(FrameType::Want, 0, 0, 0, &unbound));
    let bound = want(&vec![run(1, 0, 3); WANT_RUNS_MAX]);
    flood(&mut stage, "wants_bound", 1, |_, data| data[0].frame(FrameType::Want, 0, 0, 0, &bound));
    let path = RelPath::new(&[b"n".repeat(250), b"/".to_vec()].concat().repeat(16)[..4000]).unwrap();
    let item = |n| PackItem { handle: Handle(n), root: 0, path: path.clone(), size: 1, mtime: Mtime::default() };
    let pack = encode_pack_want(&(0..16).map(item).collect::<Vec<_>>());
    flood(&mut stage, "pack_wants", 1, |_, data| data[0].frame(FrameType::PackWant, 0, 9, 0, &pack));
    // Each piece of a run that is taken back makes two of it.
    let unwants: Vec<Run> = (0..WANT_RUNS_MAX as u32).map(|n| run(1, 2 * n + 1, 1)).collect();
    let (wide, unwants) = (want(&vec![run(1, 0, 100_000); WANT_RUNS_MAX]), want(&unwants));
    let mut turn = 0;
    flood(&mut stage, "unwants", 1, |_, data| {
        turn += 1;
        match turn % 32 {
            0 => data[0].frame(FrameType::Unwant, 0, 0, 0, &unwants),
            _ => data[0].frame(FrameType::Want, 0, 0, 0, &wide),
        }
    });
    let ping = |data: &mut [Spoken]| data[0].frame(FrameType::Ping, 0, 0, 0, b"");
    flood(&mut stage, "pings", 1, |_, data| ping(data));
}

#[test]
fn questions_whose_answers_are_not_read_are_kept_out_of_memory() {
    let mut stage = Stage::new();
    let hundred = |session: &mut Session, message: &Message| (0..100).all(|_| session.control.say(message));
    flood(&mut stage, "stats_requests", 1, |session, _| hundred(session, &Message::StatsRequest));
    let seal = Message::Seal((0..512).map(|n| Handle(n + 100)).collect());
    flood(&mut stage, "seals", 1, |session, _| session.control.say(&seal));
    let path = RelPath::new(b"nothing/there").unwrap();
    let (size, mtime) = (1, Mtime::default());
    let bind = |n| Bind { handle: Handle(n), root: 0, path: path.clone(), size, mtime, sparse: false };
    let binds = Message::Bind((0..512).map(bind).collect());
    flood(&mut stage, "binds", 1, |session, _| session.control.say(&binds));
    let unbind = Message::Unbind((0..512).map(Handle).collect());
    flood(&mut stage, "unbinds", 1, |session, _| session.control.say(&unbind));
}

/// Many streams that ask for all they can and take nothing: buffers are there for others all the same, though those who
/// hold them keep their sessions alive.
#[test]
fn streams_that_read_nothing_do_not_hold_the_buffers() {
    let mut stage = Stage::new();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let controls = std::sync::Mutex::new(Vec::<Session>::new());
    let mut held = Vec::new();
    let took = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                controls.lock().unwrap().iter_mut().for_each(|session| {
                    session.control.say(&Message::Ping);
                });
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        });
        // 160 streams, and 128 buffers.
        for _ in 0..5 {
            let (mut session, size, mtime) = begun(&stage, 32, "big");
            assert_eq!(bind(&mut session, 1, 0, b"big", size, mtime), Status::Ok);
            let runs = want(&[run(1, 0, 3); 16]);
            for index in 1..=session.streams {
                let mut stream = session.stream(index).unwrap();
                stream.frame(FrameType::Want, 0, 0, 0, &runs);
                held.push(stream);
            }
            controls.lock().unwrap().push(session);
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
        let took = stage.honest();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        took
    });
    println!("COUNT stalled_streams={} honest_pair_ms={}", held.len(), took.as_millis());
    drop((held, controls));
    stage.unharmed("stalled streams");
}

/// Nothing hostile, only odd: what many files have in holes is more than one frame holds.
#[test]
fn files_in_many_pieces_fit_their_frames() {
    use std::os::unix::fs::FileExt;
    let mut stage = Stage::new();
    let (files, pieces) = (8, 3000u64);
    std::fs::create_dir(stage.sandbox.at("far/holes")).unwrap();
    for number in 0..files {
        let file = std::fs::File::create(stage.sandbox.at(&format!("far/holes/{number}"))).unwrap();
        file.set_len(pieces * 8192).unwrap();
        (0..pieces).for_each(|piece| file.write_all_at(&[number + 1; 10], piece * 8192).unwrap());
    }
    let token = stage.agent.token_file();
    let outcome = stage.sandbox.cp(&["-r", "--token-file", &token, &stage.agent.url("holes"), "holes"]).expect(0);
    assert_eq!(outcome.number("files"), u64::from(files));
    for number in 0..files {
        let read = |base: &str| std::fs::read(stage.sandbox.at(&format!("{base}/{number}"))).unwrap();
        assert!(read("far/holes") == read("holes"));
    }
    println!("COUNT files_in_pieces={files} pieces_each={pieces}");
    std::fs::remove_dir_all(stage.sandbox.at("far/holes")).unwrap();
    std::fs::remove_dir_all(stage.sandbox.at("holes")).unwrap();
    stage.unharmed("files in pieces");
}

/// Messages that only the other end may say, and messages out of their turn.
#[test]
fn messages_out_of_turn_end_their_session() {
    let mut stage = Stage::new();
    let messages = crate::samples::messages();
    let mut ended = 0;
    for message in &messages {
        // In place of the answer to the offer.
        let mut session = Session::open(&read_ticket(&stage.agent, "/src"), 1);
        session.control.hear();
        if !matches!(message, Message::Accept(_) | Message::Ping) {
            session.control.say(message);
            assert!(session.control.is_closed(), "{message:?}");
            ended += 1;
        }
        // Of a source, to a source.
        if matches!(
            message,
            Message::Offer(_)
                | Message::Accept(_)
                | Message::Segment(_)
                | Message::ManifestEnd(_)
                | Message::Problem { .. }
                | Message::Bound(_)
                | Message::Sealed(_)
                | Message::Stats(_)
        ) {
            let (mut session, ..) = begun(&stage, 1, "big");
            session.control.say(message);
            assert!(session.control.is_closed(), "{message:?}");
            ended += 1;
        }
    }
    println!("COUNT messages_out_of_turn={ended}");
    stage.unharmed("messages out of turn");
}
