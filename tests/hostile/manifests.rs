//! A hostile source: offers and manifests that no tree has, sent to an agent that takes files.

use crate::peer::{Session, offer, offered, source, ticket, write_ticket};
use crate::stage::{GROWTH_MAX, Stage};
use crate::{Random, count};
use longhaul::manifest::{Entry, EntryKind, Mtime, Segment, SegmentBuilder};
use longhaul::relpath::RelPath;
use longhaul::wire::control::{Bind, Bound, Message, SourceStats};
use longhaul::wire::data::Status;

pub const DIR: u8 = 0;
pub const FILE: u8 = 1;
pub const LINK: u8 = 2;

/// One entry as bytes, whatever its path: the library would not write most of these.
pub fn raw_entry(kind: u8, root: u16, path: &[u8], tail: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend_from_slice(&root.to_le_bytes());
    out.extend_from_slice(&0u16.to_le_bytes());
    out.extend_from_slice(&(path.len() as u16).to_le_bytes());
    out.extend_from_slice(path);
    out.extend_from_slice(&0o644u32.to_le_bytes());
    out.extend_from_slice(&1u64.to_le_bytes());
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(tail);
    out
}

pub fn file_tail(size: u64, sparse: bool) -> Vec<u8> {
    [size.to_le_bytes().as_slice(), &[u8::from(sparse)]].concat()
}

pub fn link_tail(target: &[u8]) -> Vec<u8> {
    [(target.len() as u16).to_le_bytes().as_slice(), target].concat()
}

pub fn raw_segment(index: u32, count: u32, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut out = index.to_le_bytes().to_vec();
    out.extend_from_slice(&count.to_le_bytes());
    entries.iter().for_each(|entry| out.extend_from_slice(entry));
    out
}

/// Answers what a destination asks of stream 0 until the verdict: every Bind with `status`. The verdict as JSON, or the
/// error in words.
pub fn until_the_end(session: &mut Session, status: Status) -> Result<serde_json::Value, String> {
    use longhaul::wire::control::Sealed;
    while let Some(message) = session.control.hear() {
        match message {
            Message::Bind(files) => {
                let bound = |file: Bind| Bound {
                    handle: file.handle,
                    status,
                    object: (0, 0),
                    extents: file.sparse.then(Vec::new),
                };
                session.control.say(&Message::Bound(files.into_iter().map(bound).collect()));
            }
            Message::Seal(handles) => {
                let sealed = |handle| Sealed { handle, status: Status::Ok };
                session.control.say(&Message::Sealed(handles.into_iter().map(sealed).collect()));
            }
            Message::StatsRequest => drop(session.control.say(&Message::Stats(SourceStats::default()))),
            Message::Verdict(report) => {
                session.control.say(&Message::Bye);
                return Ok(serde_json::from_slice(&report).unwrap());
            }
            Message::Error(error) => return Err(error.what),
            _ => {}
        }
    }
    Err("the connection ended".to_owned())
}

/// One segment, its end, and what comes of it.
fn sent(stage: &Stage, to: &str, segment: Vec<u8>) -> Result<serde_json::Value, String> {
    let mut session = source(&write_ticket(&stage.agent, to), 1);
    session.control.say(&Message::Segment(segment));
    session.control.say(&Message::ManifestEnd(1));
    until_the_end(&mut session, Status::Gone)
}

#[test]
fn names_that_no_tree_has_are_refused_with_their_reason() {
    let mut stage = Stage::new();
    let long = [b'n'; 256];
    let deep = b"d/".repeat(2050);
    let refused: [(&[u8], &str); 16] = [
        (b"..", "component"),
        (b"../x", "component"),
        (b"a/../../x", "component"),
        (b".", "component"),
        (b"./a", "component"),
        (b"a/./b", "component"),
        (b"a//b", "component"),
        (b"a/", "component"),
        (b"/", "absolute"),
        (b"/etc/x", "absolute"),
        (b"//x", "absolute"),
        (b"\0", "NUL"),
        (b"a\0b", "NUL"),
        (b"a/..\0/b", "NUL"),
        (&long, "too long"),
        (&deep, "too long"),
    ];
    for kind in [DIR, FILE, LINK] {
        let tail = [vec![], file_tail(1 << 20, false), link_tail(b"t")][usize::from(kind)].clone();
        for (name, why) in refused {
            let segment = raw_segment(0, 2, &[raw_entry(DIR, 0, b"", &[]), raw_entry(kind, 0, name, &tail)]);
            let words = sent(&stage, "/in/names", segment).unwrap_err();
            assert!(words.contains("manifest that is refused") && words.contains(why), "{name:?}: {words}");
        }
    }
    println!("COUNT names_refused={}", 3 * refused.len());
    stage.unharmed("names");
}

#[test]
fn names_that_lead_to_other_things_fail_alone() {
    let mut stage = Stage::new();
    let outside = stage.sandbox.at("outside").into_os_string().into_encoded_bytes();
    let dir = |path: &[u8]| raw_entry(DIR, 0, path, &[]);
    let file = |path: &[u8]| raw_entry(FILE, 0, path, &file_tail(1 << 20, false));
    let link = |path: &[u8]| raw_entry(LINK, 0, path, &link_tail(&outside));
    let cases: Vec<(&str, Vec<Vec<u8>>, &str)> = vec![
        ("a name twice", vec![file(b"a"), file(b"a")], "twice"),
        ("a directory and a file of one name", vec![dir(b"a"), file(b"a")], "twice"),
        ("our own directory", vec![dir(b".longhaul"), file(b".longhaul/x")], "reserved"),
        ("our own part files", vec![file(b".x.lh-0123456789abcdef.part")], "reserved"),
        ("below a file", vec![file(b"a"), file(b"a/b")], "a/b"),
        ("below a link of this manifest", vec![link(b"way"), file(b"way/canary"), dir(b"way/dir")], "way"),
        ("another root", vec![raw_entry(FILE, 9, b"x", &file_tail(1 << 20, false))], ""),
        ("the last root", vec![raw_entry(FILE, u16::MAX, b"x", &file_tail(1 << 20, false))], ""),
    ];
    let amount = cases.len();
    for (what, mut entries, words) in cases {
        entries.insert(0, dir(b""));
        let segment = raw_segment(0, entries.len() as u32, &entries);
        let report = sent(&stage, "/in/other", segment).unwrap_or_else(|words| panic!("{what}: {words}"));
        let failures = report["failures"].to_string();
        assert!(report["failed_files"].as_u64() > Some(0) && failures.contains(words), "{what}: {failures}");
        assert_eq!(report["files"], 0, "{what}");
    }
    // A link that stands there from before.
    let through = raw_segment(0, 3, &[dir(b""), file(b"way-out/canary"), dir(b"way-out/new")]);
    let report = sent(&stage, "/in", through).unwrap();
    let failures = report["failures"].to_string();
    assert!(failures.contains("symbolic link"), "{failures}");
    println!("COUNT names_to_other_things={} escaped=0", amount + 1);
    stage.unharmed("names to other things");
}

/// Names that differ in case only are two names here, and neither takes the other's place.
#[test]
fn names_that_differ_in_case_are_two() {
    let mut stage = Stage::new();
    let link = |path: &[u8], target: &[u8]| raw_entry(LINK, 0, path, &link_tail(target));
    let entries = [raw_entry(DIR, 0, b"", &[]), link(b"Name", b"one"), link(b"name", b"two"), link(b"NAME", b"three")];
    let report = sent(&stage, "/in/case", raw_segment(0, 4, &entries)).unwrap();
    assert_eq!((&report["symlinks"], &report["failed_files"]), (&3.into(), &0.into()), "{report}");
    assert_eq!(stage.names("in/case"), ["NAME", "Name", "name"]);
    let read = |name: &str| std::fs::read_link(stage.sandbox.at("far/in/case").join(name)).unwrap();
    assert!(read("Name").as_os_str() == "one" && read("name").as_os_str() == "two");
    stage.unharmed("case");
}

#[test]
fn sizes_and_counts_at_their_borders_cost_nothing() {
    let mut stage = Stage::new();
    let entries = |tail: Vec<u8>| [raw_entry(DIR, 0, b"", &[]), raw_entry(FILE, 0, b"f", &tail)];
    let largest = longhaul::grid::MAX_FILE_SIZE;
    let mut tried = 0;
    for size in [largest, largest - 1, 1 << 50, 1 << 44, (1 << 43) + 1] {
        for sparse in [false, true] {
            let mut session = source(&write_ticket(&stage.agent, "/in/sizes"), 1);
            session.control.say(&Message::Segment(raw_segment(0, 2, &entries(file_tail(size, sparse)))));
            session.control.say(&Message::ManifestEnd(1));
            // Bound, so that the part file is made, with no data in it at all where it is sparse.
            let result = until_the_end_of_binding(&mut session);
            assert!(stage.growth() < GROWTH_MAX, "{size} sparse {sparse}: {} bytes", stage.growth());
            drop(session);
            tried += 1;
            assert!(result != "verdict", "{size} sparse {sparse} cannot be there");
        }
    }
    let bad: Vec<Vec<u8>> = vec![
        raw_segment(0, 2, &entries(file_tail(largest + 1, false))),
        raw_segment(0, 2, &entries(file_tail(u64::MAX, false))),
        raw_segment(0, 3, &entries(file_tail(1, false))),
        raw_segment(0, 1, &entries(file_tail(1, false))),
        raw_segment(0, u32::MAX, &entries(file_tail(1, false))),
        raw_segment(0, 2049, &vec![raw_entry(DIR, 0, b"d", &[]); 2049]),
        raw_segment(1, 2, &entries(file_tail(1, false))),
        raw_segment(u32::MAX, 2, &entries(file_tail(1, false))),
        vec![],
        vec![0; 7],
        vec![0; (128 << 10) + 1],
        raw_segment(0, 1, &[raw_entry(9, 0, b"x", &[])]),
        raw_segment(0, 1, &[raw_entry(LINK, 0, b"x", &link_tail(b""))]),
        raw_segment(0, 1, &[raw_entry(LINK, 0, b"x", &link_tail(&[b'l'; 4096]))]),
        raw_segment(0, 1, &[raw_entry(LINK, 0, b"x", &link_tail(b"a\0b"))]),
    ];
    for segment in &bad {
        let words = sent(&stage, "/in/sizes", segment.clone()).unwrap_err();
        assert!(words.contains("manifest"), "{words}");
    }
    println!("COUNT sizes_at_borders={tried} segments_refused={}", bad.len());
    stage.unharmed("sizes");
}

/// Binds what is asked for; `verdict`, or how it ended. A file that is waited for is not sent.
fn until_the_end_of_binding(session: &mut Session) -> String {
    session.control.socket.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
    let mut words = "nothing".to_owned();
    while let Some(message) = session.control.hear() {
        match message {
            Message::Bind(files) => {
                let bound = |file: Bind| Bound {
                    handle: file.handle,
                    status: Status::Ok,
                    object: (0, 0),
                    extents: file.sparse.then(Vec::new),
                };
                session.control.say(&Message::Bound(files.into_iter().map(bound).collect()));
            }
            Message::Error(error) => return error.what,
            Message::StatsRequest => drop(session.control.say(&Message::Stats(SourceStats::default()))),
            Message::Verdict(report) => {
                let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
                words = report["verdict"].as_str().unwrap().replace("DURABLE", "verdict");
                break;
            }
            _ => {}
        }
    }
    words
}

/// Where a file has data is the source's to say, but not that it has data behind its end.
#[test]
fn extents_behind_the_end_allocate_nothing() {
    use longhaul::grid::Span;
    let mut stage = Stage::new();
    let spans = [(0u64, 5000u64), (4096, 1), (1 << 40, 1 << 40), (u64::MAX - 1, 1)];
    for (offset, len) in spans {
        let mut session = source(&write_ticket(&stage.agent, "/in/extents"), 1);
        let entries = [raw_entry(DIR, 0, b"", &[]), raw_entry(FILE, 0, b"f", &file_tail(4096 + (48 << 10), true))];
        session.control.say(&Message::Segment(raw_segment(0, 2, &entries)));
        session.control.say(&Message::ManifestEnd(1));
        let mut told = String::new();
        while let Some(message) = session.control.hear() {
            match message {
                Message::Bind(files) => {
                    let span = Span { offset: offset + (48 << 10) * u64::from(offset < 1 << 40), len };
                    let extents = Some(vec![Span { len: len.max(5000), ..span }]);
                    let bound = Bound { handle: files[0].handle, status: Status::Ok, object: (0, 0), extents };
                    session.control.say(&Message::Bound(vec![bound]));
                }
                Message::StatsRequest => drop(session.control.say(&Message::Stats(SourceStats::default()))),
                Message::Verdict(report) => {
                    told = String::from_utf8(report).unwrap();
                    break;
                }
                Message::Error(error) => {
                    told = error.what;
                    break;
                }
                _ => {}
            }
        }
        assert!(!told.is_empty() && !told.contains("\"DURABLE\""), "{offset} {len}: {told}");
        assert!(stage.names("in/extents").is_empty(), "{offset} {len}");
    }
    println!("COUNT extents_behind_the_end={}", spans.len());
    stage.unharmed("extents");
}

#[test]
fn segments_beyond_the_credit_and_behind_the_end_end_the_session() {
    let mut stage = Stage::new();
    let one = |index| raw_segment(index, 1, &[raw_entry(DIR, 0, format!("d{index}").as_bytes(), &[])]);
    // All at once, without waiting for credit: what is not taken in waits in the socket, or the session ends.
    let mut session = source(&write_ticket(&stage.agent, "/in/credit"), 1);
    session.control.socket.set_write_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
    let wide = |index| {
        let names = (0..30).map(|n| raw_entry(DIR, 0, format!("d{index}-{n:0>250}").as_bytes(), &[]));
        raw_segment(index, 30, &names.collect::<Vec<_>>())
    };
    let mut sent = 0;
    while sent < 3000 && session.control.say(&Message::Segment(wide(sent))) {
        sent += 1;
    }
    assert!(stage.growth() < GROWTH_MAX, "{} bytes for {sent} segments", stage.growth());
    drop(session);
    // Behind the end.
    let mut session = source(&write_ticket(&stage.agent, "/in/credit2"), 1);
    session.control.say(&Message::Segment(one(0)));
    session.control.say(&Message::ManifestEnd(1));
    session.control.say(&Message::Segment(one(1)));
    let ended = until_the_end(&mut session, Status::Gone);
    assert!(ended.is_err() || ended.as_ref().is_ok_and(|r| r["directories"] == 1), "{ended:?}");
    // Counted wrongly.
    for counted in [0, 2, u32::MAX] {
        let mut session = source(&write_ticket(&stage.agent, "/in/credit3"), 1);
        session.control.say(&Message::Segment(one(0)));
        session.control.say(&Message::ManifestEnd(counted));
        let words = until_the_end(&mut session, Status::Gone).unwrap_err();
        assert!(words.contains("counts its manifest segments wrongly"), "{words}");
    }
    println!("COUNT segments_without_credit={sent}");
    stage.unharmed("segments");
}

/// A manifest without end: what it costs is what its names cost, not what they are long.
#[test]
fn huge_manifests_are_kept_in_bounds() {
    let mut stage = Stage::new();
    let names = count(60_000, 600_000);
    for kind in ["directories", "links", "specials", "files", "problems"] {
        let mut session = source(&write_ticket(&stage.agent, &format!("/in/huge-{kind}")), 1);
        let mut random = Random(names);
        let (mut builder, mut credit, mut number, mut worst) = (SegmentBuilder::default(), 8, 0u64, 0);
        // Long names that share nothing with each other, so that front coding gains nothing.
        let mut queue = Vec::new();
        while number < names {
            number += 1;
            if kind == "problems" {
                let path = format!("{number}-{}", "p".repeat(4000)).into_bytes();
                session.control.say(&Message::Problem { root: 0, path, what: "w".repeat(60_000) });
                if number == names / 30 {
                    break;
                }
                continue;
            }
            let name = format!("{:016x}{number:0>200}", random.next());
            let kind = match kind {
                "directories" => EntryKind::Dir,
                "links" => EntryKind::Symlink { target: vec![b't'; 1000].into() },
                "files" => EntryKind::File { size: 1 << 20, sparse: false },
                _ => EntryKind::Special,
            };
            let path = RelPath::new(name.as_bytes()).unwrap();
            let mtime = Mtime { secs: 1, nanos: 1 };
            queue.extend(builder.push(&Entry { root: 0, path, kind, mode: 0o755, mtime }));
            while credit > 0 && !queue.is_empty() {
                credit -= 1;
                session.control.say(&Message::Segment(queue.remove(0)));
            }
            while credit == 0 && !queue.is_empty() {
                match session.control.hear().expect("credit") {
                    Message::Credit(more) => credit += more,
                    Message::Bind(files) => {
                        let gone =
                            |f: Bind| Bound { handle: f.handle, status: Status::Gone, object: (0, 0), extents: None };
                        session.control.say(&Message::Bound(files.into_iter().map(gone).collect()));
                    }
                    Message::Error(error) => panic!("{}", error.what),
                    _ => {}
                }
                worst = worst.max(stage.growth());
            }
        }
        worst = worst.max(stage.growth());
        println!("COUNT huge_manifest_{kind}={number} rss_growth={worst}");
        assert!(worst < GROWTH_MAX, "{kind}: {worst} bytes for {number} names");
        drop(session);
    }
    stage.unharmed("huge manifests");
}

#[test]
fn offers_at_their_borders() {
    let mut stage = Stage::new();
    let below =
        |agent| ticket(agent, "{\"direction\":\"write\",\"path\":\"/in/offers\",\"options\":{\"recursive\":true}}");
    std::fs::create_dir_all(stage.sandbox.at("far/in/offers")).unwrap();
    let many = |count: usize| (0..count).map(|n| offered(n.to_string().as_bytes(), true)).collect::<Vec<_>>();
    let twice = vec![offered(b"a", true), offered(b"a", false)];
    let long = [b'n'; 256];
    let mut cases = vec![(vec![], "roots"), (many(4097), "roots"), (twice, "one name")];
    for name in [b"..".as_slice(), b".", b"a/b", b"/etc", b"a\0b", &long] {
        cases.push((vec![offered(name, true)], "name"));
    }
    let amount = cases.len();
    for (roots, words) in cases {
        let mut session = Session::open(&below(&stage.agent), 1);
        let shown = format!("{:?}", roots.first());
        session.control.say(&Message::Offer(offer(roots)));
        let said = session.control.last_words();
        assert!(said.is_empty() || said.contains(words), "{shown}: {said}");
    }
    // Reserved, or words for a terminal: taken in, but nothing comes of it.
    for name in [b".longhaul".as_slice(), b".x.lh-0123456789abcdef.part"] {
        let mut session = Session::open(&below(&stage.agent), 1);
        session.control.say(&Message::Offer(offer(vec![offered(name, false)])));
        session.control.say(&Message::Segment(raw_segment(
            0,
            1,
            &[raw_entry(FILE, 0, b"", &file_tail(1 << 20, false))],
        )));
        session.control.say(&Message::ManifestEnd(1));
        match until_the_end(&mut session, Status::Gone) {
            Ok(report) => assert!(report["failures"].to_string().contains("reserved"), "{report}"),
            Err(words) => assert!(words.contains("reserved"), "{words}"),
        }
    }
    println!("COUNT offers_refused={}", amount + 2);
    let names = stage.names("in/offers");
    assert!(names.is_empty(), "{names:?}");
    stage.unharmed("offers");
}

/// Every message of stream 0 where it is not due, in the role of the source.
#[test]
fn messages_that_a_source_does_not_send_end_the_session() {
    let mut stage = Stage::new();
    let mut ended = 0;
    for message in crate::samples::messages() {
        let mut session = Session::open(&write_ticket(&stage.agent, "/in/turn"), 1);
        if !matches!(message, Message::Offer(_) | Message::Ping) {
            session.control.say(&message);
            assert!(session.control.is_closed(), "{message:?}");
            ended += 1;
        }
        let of_a_destination = matches!(
            message,
            Message::Offer(_)
                | Message::Accept(_)
                | Message::Credit(_)
                | Message::Bind(_)
                | Message::Seal(_)
                | Message::Unbind(_)
                | Message::Progress(_)
                | Message::StatsRequest
                | Message::Verdict(_)
        );
        if of_a_destination {
            let mut session = source(&write_ticket(&stage.agent, "/in/turn"), 1);
            session.control.say(&message);
            let words = session.control.last_words();
            assert!(words.contains("only a destination sends"), "{message:?}: {words}");
            ended += 1;
        }
    }
    // What fits no file: ignored, whatever it says.
    let mut session = source(&write_ticket(&stage.agent, "/in/turn"), 1);
    for message in crate::samples::messages() {
        if matches!(message, Message::Bound(_) | Message::Sealed(_) | Message::Stats(_)) {
            session.control.say(&message);
        }
    }
    session.control.say(&Message::Segment(raw_segment(0, 1, &[raw_entry(DIR, 0, b"", &[])])));
    session.control.say(&Message::ManifestEnd(1));
    let report = until_the_end(&mut session, Status::Gone).unwrap();
    assert_eq!(report["verdict"], "DURABLE", "{report}");
    println!("COUNT messages_of_the_wrong_end={ended}");
    stage.unharmed("messages of the wrong end");
}

/// Every sample of the segments' golden form is read, so that what is refused above is refused for its own reason.
#[test]
fn the_raw_form_is_the_libraries_form() {
    let entries = [
        raw_entry(DIR, 0, b"", &[]),
        raw_entry(FILE, 3, b"a/b", &file_tail(9, true)),
        raw_entry(LINK, 0, b"l", &link_tail(b"t")),
    ];
    let segment = Segment::decode(&raw_segment(7, 3, &entries)).unwrap();
    assert_eq!((segment.index, segment.entries.len()), (7, 3));
    assert_eq!(segment.entries[1].kind, EntryKind::File { size: 9, sparse: true });
}
