//! Manifest segments.

use crate::{golden, same_as_golden, variants};
use longhaul::manifest::{Entry, EntryKind, Mtime, Segment, SegmentBuilder};
use longhaul::relpath::RelPath;
use std::collections::BTreeSet;

fn entry(root: u16, path: &[u8], kind: EntryKind) -> Entry {
    Entry { root, path: RelPath::new(path).unwrap(), kind, mode: 0o4751, mtime: Mtime { secs: -5, nanos: 999_999_999 } }
}

fn entries() -> Vec<Entry> {
    vec![
        entry(0, b"", EntryKind::Dir),
        entry(0, b"dir", EntryKind::Dir),
        entry(0, b"dir/file", EntryKind::File { size: 9 << 30, sparse: true }),
        entry(0, b"dir/fim\xff", EntryKind::File { size: 0, sparse: false }),
        entry(0, b"dir/link", EntryKind::Symlink { target: (*b"../x\xff").into() }),
        entry(1, b"fifo", EntryKind::Special),
    ]
}

/// A second segment, so that the index counts and the front coding begins anew.
fn encoded() -> Vec<(String, Vec<u8>)> {
    let mut builder = SegmentBuilder::default();
    let mut segment = |entries: &[Entry]| {
        assert!(entries.iter().all(|entry| builder.push(entry).is_none()));
        builder.finish().unwrap()
    };
    let first = segment(&entries());
    vec![("first".to_owned(), first), ("second".to_owned(), segment(&entries()[2..3]))]
}

#[test]
fn segments_are_made_and_read_as_they_always_were() {
    same_as_golden("segment", &encoded());
    let read = |name: &str| Segment::decode(&golden()[format!("segment/{name}").as_str()]).unwrap();
    assert_eq!(read("first"), Segment { index: 0, entries: entries() });
    assert_eq!(read("second"), Segment { index: 1, entries: entries()[2..3].to_vec() });
    let kinds: BTreeSet<String> = entries()
        .iter()
        .map(|entry| format!("{:?}", entry.kind).chars().take_while(char::is_ascii_alphanumeric).collect())
        .collect();
    assert_eq!(kinds, variants(include_str!("../../src/manifest.rs"), "EntryKind"));
}
