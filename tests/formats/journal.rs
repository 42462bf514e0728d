//! Journal records, each as a whole journal of its own behind a header and what it needs.

use crate::{golden, same_as_golden, variants};
use longhaul::digest::{self, Digest};
use longhaul::grid::CHUNK_SIZE;
use longhaul::ids::{AgentId, Epoch, PathKey, TransferId};
use longhaul::journal::{DoneFile, Ended, FileRecord, Forget, Header, Publishing, Record, Run, Writer, recover, scan};
use longhaul::manifest::Mtime;
use longhaul::relpath::RelPath;
use std::collections::BTreeSet;

fn header() -> Header {
    Header {
        transfer: TransferId([0x11; 16]),
        agent: AgentId([0x22; 16]),
        epoch: Epoch(1),
        created: 1_700_000_000,
        source: "/srv/\u{e9}".to_owned(),
        destination: RelPath::new(b"in/\xff").unwrap(),
    }
}

fn key() -> PathKey {
    digest::path_key(3, b"d/f")
}

fn file() -> Record {
    Record::File(FileRecord {
        key: key(),
        root: 3,
        path: RelPath::new(b"d/f").unwrap(),
        size: 3 * CHUNK_SIZE - 5,
        mtime: Mtime { secs: -3, nanos: 999_999_999 },
        mode: 0o4640,
    })
}

/// What is golden, behind what it needs to make sense.
fn samples() -> Vec<(&'static str, Vec<Record>, Record)> {
    let value = |n: u8| Digest([n; 16]);
    let chunks = Record::Chunks {
        key: key(),
        runs: vec![Run { first: 0, digests: vec![value(1)] }, Run { first: 1, digests: vec![value(2), value(3)] }],
    };
    let (size, mtime) = (3 * CHUNK_SIZE - 5, Mtime { secs: -3, nanos: 999_999_999 });
    let publishing = Publishing { key: key(), inode: 77, digest: value(9), size, mtime };
    let done = |n| DoneFile { key: PathKey([n; 16]), digest: value(n) };
    vec![
        ("Epoch", vec![], Record::Epoch(Epoch(2))),
        ("File", vec![], file()),
        ("Chunks", vec![file()], chunks.clone()),
        ("Forget-All", vec![file(), chunks.clone()], Record::Forget { key: key(), what: Forget::All }),
        ("Forget-Chunks", vec![file(), chunks], Record::Forget { key: key(), what: Forget::Chunks(vec![2, 0]) }),
        ("Publishing", vec![], Record::Publishing(vec![publishing])),
        ("Done", vec![], Record::Done(vec![done(5), done(6)])),
        ("End-Durable", vec![], Record::End(Ended::Durable)),
        ("End-Verified", vec![], Record::End(Ended::Verified)),
        ("End-Partial", vec![], Record::End(Ended::Partial)),
        ("End-Failed", vec![], Record::End(Ended::Failed)),
    ]
}

fn written(before: &[Record], record: Option<&Record>) -> Vec<u8> {
    let mut writer = Writer::create(header());
    before.iter().for_each(|record| writer.record(record));
    let mut bytes = writer.take();
    record.into_iter().for_each(|record| writer.record(record));
    bytes.extend(writer.take());
    bytes
}

#[test]
fn records_are_written_as_they_always_were() {
    let mut made = vec![("Header".to_owned(), written(&[], None))];
    for (name, before, record) in samples() {
        made.push((name.to_owned(), written(&before, Some(&record))));
    }
    same_as_golden("journal", &made);
    let source = include_str!("../../src/journal/record.rs");
    let have = |prefix: &str| -> BTreeSet<String> {
        let names = made.iter().filter_map(|(name, _)| name.strip_prefix(prefix));
        names.map(|name| name.split('-').next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(have(""), variants(source, "Record"));
    assert_eq!(have("Forget-"), variants(source, "Forget"));
    assert_eq!(have("End-"), variants(source, "Ended"));
}

#[test]
fn records_are_read_as_they_always_were() {
    let golden = golden();
    let read = |name: &str| {
        let bytes = &golden[format!("journal/{name}").as_str()];
        let mut found = Vec::new();
        scan(bytes, |one| {
            found.push(one);
            Ok(())
        })
        .unwrap();
        let recovered = recover(bytes).unwrap();
        assert_eq!((recovered.len, recovered.dropped), (bytes.len() as u64, 0), "{name}");
        found
    };
    assert_eq!(read("Header")[0].record, Record::Header(header()));
    for (name, before, record) in samples() {
        let found = read(name);
        assert_eq!(found.len(), before.len() + 2, "{name}");
        let last = found.last().unwrap();
        assert!(last.batch && last.record == record, "{name}: {last:?}");
    }
}
