//! Names by rules and names at random, as a hostile source writes them into manifests. Whatever they are, what comes of
//! them lies below the destination.

use crate::manifests::{DIR, FILE, LINK, file_tail, link_tail, raw_entry, raw_segment, until_the_end};
use crate::peer::{source, write_ticket};
use crate::stage::Stage;
use crate::{Random, count};
use longhaul::manifest::Segment;
use longhaul::relpath::RelPath;
use longhaul::wire::control::{Bind, Bound, Message};
use longhaul::wire::data::Status;

/// Parts that mean something to some system, put together in every way.
const PARTS: [&[u8]; 24] = [
    b"..",
    b".",
    b"",
    b"\0",
    b"a",
    b"A",
    b"way-out",
    b".longhaul",
    b".a.lh-0123456789abcdef.part",
    b"...",
    b"..\\..",
    b"C:",
    b"con",
    b"~",
    b"$(id)",
    b"`id`",
    b"-rf",
    b"\n",
    b"\x1b[2J",
    b"\xff\xfe",
    b"\xc0\xae\xc0\xae",
    b"%2e%2e",
    "\u{202e}".as_bytes(),
    b" ",
];

/// 2,000 names and a few more: every part alone, every pair of them with every separator, long ones, deep ones.
pub fn by_rules() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = PARTS.iter().map(|part| part.to_vec()).collect();
    for first in PARTS {
        for second in PARTS {
            for between in [b"/".as_slice(), b"//", b"/../", b"\\"] {
                names.push([first, between, second].concat());
            }
        }
    }
    for part in PARTS {
        names.push([b"/", part].concat());
        names.push([part, b"/"].concat());
        for length in [127, 254, 255, 256, 4095, 4096, 5000] {
            names.push(part.iter().chain(b"/").copied().cycle().take(length).collect());
            names.push(part.iter().chain(b"x").copied().cycle().take(length).collect());
        }
    }
    names
}

fn random_name(random: &mut Random) -> Vec<u8> {
    let mut name = Vec::new();
    for _ in 0..1 + random.below(5) {
        match random.below(3) {
            0 => {
                let len = random.below(20);
                name.extend(random.bytes(len));
            }
            _ => name.extend_from_slice(PARTS[random.below(PARTS.len())]),
        }
        if random.below(2) == 0 {
            name.push(b'/');
        }
    }
    name
}

/// In process: what is accepted has no part that leads anywhere else; the rest is refused with a reason.
#[test]
fn accepted_names_stay_below() {
    let mut random = Random::told("names");
    let (rules, at_random) = (by_rules(), count(100_000, 1_000_000));
    assert!(rules.len() >= 2000, "{}", rules.len());
    let mut all = rules.clone();
    all.extend((0..at_random).map(|_| random_name(&mut random)));
    let (mut accepted, mut refused) = (0u64, 0u64);
    for name in &all {
        match RelPath::new(name) {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
            Ok(path) => {
                let fine = |part: &[u8]| {
                    !part.is_empty() && part != b"." && part != b".." && !part.contains(&0) && part.len() <= 255
                };
                assert!(path.components().all(fine) && path.as_bytes().len() < 4096, "{name:?}");
                assert!(!name.starts_with(b"/"));
                // As the kernel would walk it.
                let depth = path.components().count();
                assert_eq!(depth, name.split(|b| *b == b'/').filter(|part| !part.is_empty()).count());
                accepted += 1;
            }
        }
    }
    println!(
        "COUNT hostile_names={} by_rules={} accepted={accepted} refused={refused} escapes=0",
        all.len(),
        rules.len()
    );
    assert!(accepted > 1000 && refused > 1000);
}

/// Against an agent: one manifest with every name that the format lets through, and one by one some that it does not.
#[test]
fn names_arrive_below_the_destination_or_not_at_all() {
    let mut stage = Stage::new();
    let mut random = Random::told("names on the wire");
    let mut names = by_rules();
    names.extend((0..count(2_000, 20_000)).map(|_| random_name(&mut random)));
    let (good, bad): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| RelPath::new(name).is_ok());
    let mut session = source(&write_ticket(&stage.agent, "/in/names"), 1);
    let mut segments = 0;
    for names in good.chunks(40) {
        let mut entries = Vec::new();
        if segments == 0 {
            entries.push(raw_entry(DIR, 0, b"", &[]));
        }
        for (number, name) in names.iter().enumerate() {
            entries.push(match number % 3 {
                0 => raw_entry(DIR, 0, name, &[]),
                1 => raw_entry(FILE, 0, name, &file_tail(1 << 20, false)),
                _ => raw_entry(LINK, 0, name, &link_tail(b"../../../outside/canary")),
            });
        }
        let segment = raw_segment(segments, entries.len() as u32, &entries);
        if Segment::decode(&segment).is_err() {
            continue; // longer than a segment may be
        }
        session.control.say(&Message::Segment(segment));
        segments += 1;
        if segments >= 8 {
            loop {
                match session.control.hear().expect("credit") {
                    Message::Credit(_) => break,
                    Message::Error(error) => panic!("{}", error.what),
                    Message::Bind(files) => {
                        let gone =
                            |f: Bind| Bound { handle: f.handle, status: Status::Gone, object: (0, 0), extents: None };
                        session.control.say(&Message::Bound(files.into_iter().map(gone).collect()));
                    }
                    _ => {}
                }
            }
        }
    }
    session.control.say(&Message::ManifestEnd(segments));
    drop(until_the_end(&mut session, Status::Gone));
    drop(session);
    let mut refused = 0;
    for name in bad.iter().step_by(bad.len() / count(40, 400) as usize + 1) {
        let mut session = source(&write_ticket(&stage.agent, "/in/names2"), 1);
        session.control.say(&Message::Segment(raw_segment(0, 1, &[raw_entry(LINK, 0, name, &link_tail(b"x"))])));
        session.control.say(&Message::ManifestEnd(1));
        let words = until_the_end(&mut session, Status::Gone).unwrap_err();
        assert!(words.contains("manifest that is refused"), "{name:?}: {words}");
        refused += 1;
    }
    println!("COUNT names_on_the_wire={} refused_on_the_wire={refused} escapes=0", good.len());
    // What came is below the destination; what is beside it is what was there.
    assert_eq!(stage.names(""), ["in", "other", "src"]);
    stage.unharmed("names");
}
