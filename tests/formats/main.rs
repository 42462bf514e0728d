//! Golden bytes: everything of version 1 that another build may read, from the wire or from a disk, as bytes written out
//! in `version1.txt`. Each is made from its value and read back to it. The file is kept for ever: a line that changes is
//! a new version of the format, a line that is missing is found by looking at the source's enums.

mod frames;
mod handshakes;
mod journal;
mod manifest;
mod messages;
#[path = "../support/variants.rs"]
mod variants;

use std::collections::{BTreeMap, BTreeSet};
use variants::variants;

/// What a name's bytes are, from `version1.txt`.
fn golden() -> BTreeMap<&'static str, Vec<u8>> {
    let mut all = BTreeMap::new();
    for line in include_str!("version1.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, bytes) = line.split_once(' ').unwrap_or((line, ""));
        assert!(all.insert(name, hex::decode(bytes).unwrap()).is_none(), "{name} is there twice");
    }
    all
}

/// Compares what was made with what is written out; all differences at once.
fn same_as_golden(kind: &str, made: &[(String, Vec<u8>)]) {
    let golden = golden();
    let mut wrong = Vec::new();
    for (name, bytes) in made {
        let name = format!("{kind}/{name}");
        if golden.get(name.as_str()) != Some(bytes) {
            wrong.push(format!("{name} {}", hex::encode(bytes)));
        }
    }
    assert!(wrong.is_empty(), "version 1 has changed; these bytes are made now:\n{}", wrong.join("\n"));
    let names: BTreeSet<String> = made.iter().map(|(name, _)| format!("{kind}/{name}")).collect();
    let gone: Vec<&&str> =
        golden.keys().filter(|n| n.starts_with(&format!("{kind}/")) && !names.contains(**n)).collect();
    assert!(gone.is_empty(), "bytes that nothing makes any more: {gone:?}");
}

/// Every variant of `name` begins some entry: `Variant` or `Variant-something`.
fn every_variant(source: &str, name: &str, made: &[(String, Vec<u8>)]) {
    let have: BTreeSet<String> = made.iter().map(|(n, _)| n.split('-').next().unwrap_or_default().to_owned()).collect();
    assert_eq!(have, variants(source, name), "each variant of {name} has its golden bytes, and no other has");
}
