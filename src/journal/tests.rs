use super::*;
use crate::digest::{self, Digest};
use crate::grid::CHUNK_SIZE;
use crate::ids::{AgentId, Epoch, PathKey, TransferId};
use crate::manifest::Mtime;
use crate::relpath::RelPath;
use proptest::prelude::*;

fn header() -> Header {
    Header {
        transfer: TransferId([0x11; 16]),
        agent: AgentId([0x22; 16]),
        epoch: Epoch(1),
        created: 1_700_000_000,
        source: "lh://a/\u{e9}".to_owned(),
        destination: RelPath::new(b"in/run7").unwrap(),
    }
}

fn name(number: u8) -> (RelPath, PathKey) {
    let path = RelPath::new(format!("d/f{number}").as_bytes()).unwrap();
    let key = digest::path_key(0, path.as_bytes());
    (path, key)
}

fn file(number: u8, chunks: u64, mtime: u32) -> Record {
    let (path, key) = name(number);
    let mtime = Mtime { secs: -3, nanos: mtime };
    Record::File(FileRecord { key, root: 0, path, size: chunks * CHUNK_SIZE - 5, mtime, mode: 0o640 })
}

fn value(seed: u32) -> Digest {
    digest::of(&seed.to_le_bytes())
}

fn chunks(number: u8, runs: &[(u32, u32)]) -> Record {
    let run = |&(first, count): &(u32, u32)| Run { first, digests: (first..first + count).map(value).collect() };
    Record::Chunks { key: name(number).1, runs: runs.iter().map(run).collect() }
}

fn publishing(number: u8) -> Record {
    let (size, mtime) = (3 * CHUNK_SIZE - 5, Mtime { secs: -3, nanos: 1 });
    Record::Publishing(vec![Publishing { key: name(number).1, inode: 77, digest: value(9), size, mtime }])
}

fn done(number: u8) -> Record {
    Record::Done(vec![DoneFile { key: name(number).1, digest: value(9) }])
}

/// One of each kind, in three batches.
fn sample() -> Vec<Vec<Record>> {
    vec![
        vec![file(1, 3, 1), chunks(1, &[(0, 1), (2, 1)])],
        vec![
            Record::Epoch(Epoch(2)),
            Record::Forget { key: name(1).1, what: Forget::Chunks(vec![2]) },
            chunks(1, &[(1, 2)]),
            publishing(1),
        ],
        vec![done(1), Record::Forget { key: name(2).1, what: Forget::All }, Record::End(Ended::Verified)],
    ]
}

struct Written {
    bytes: Vec<u8>,
    /// Checkpoint after 0, 1, 2 … records, and the offset at which each begins.
    states: Vec<(usize, Checkpoint)>,
    last_batch: usize,
}

fn write(batches: &[Vec<Record>]) -> Written {
    let mut writer = Writer::create(header());
    let mut checkpoint = Checkpoint::default();
    let mut states = vec![(0, checkpoint.clone())];
    let (mut bytes, mut last_batch) = (Vec::new(), 0);
    checkpoint.apply(&Record::Header(header())).unwrap();
    states.push((writer.pending(), checkpoint.clone()));
    for batch in batches {
        for record in batch {
            writer.record(record);
            checkpoint.apply(record).unwrap();
            states.push((bytes.len() + writer.pending(), checkpoint.clone()));
        }
        last_batch = bytes.len();
        bytes.extend(writer.take());
    }
    Written { bytes, states, last_batch }
}

/// The body of each record kind, kept for ever: a change here is a new version of the format.
#[test]
fn golden_bytes() {
    let mut seen = Vec::new();
    let written = write(&sample());
    scan(&written.bytes, |found| {
        let mut body = Vec::new();
        found.record.encode(&mut body);
        seen.push(format!("{} {} {} {}", found.sequence, found.batch, found.record.name(), hex::encode(body)));
        Ok(())
    })
    .unwrap();
    let want = include_str!("golden.txt");
    assert_eq!(seen.join("\n"), want.trim_end(), "the bodies of version 1 have changed");
    assert_eq!(hex::encode(&written.bytes[..24]), GOLDEN_START, "the frame of version 1 has changed");
    assert_eq!(digest::of(&written.bytes).to_string(), GOLDEN_DIGEST, "the frame or chain of version 1 has changed");
}

const GOLDEN_START: &str = "4c4a01814400000000000000000000001111111111111111";
const GOLDEN_DIGEST: &str = "d761bcf861719a36f9090da2c6cc124d";

#[test]
fn the_checksum_is_the_published_crc_32c() {
    // RFC 3720 B.4: 32 bytes of zeros. The chain puts four more in front, here the first four of them.
    assert_eq!(chain(0, &[0; 28]), 0x8a91_36aa);
}

#[test]
fn every_prefix_recovers_to_what_its_whole_records_say() {
    let written = write(&sample());
    for cut in 0..=written.bytes.len() {
        let recovered = recover(&written.bytes[..cut]).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
        let (len, state) = written.states.iter().rev().find(|(at, _)| *at <= cut).unwrap();
        assert_eq!(&recovered.checkpoint, state, "cut at {cut}");
        assert_eq!(recovered.len, *len as u64);
        let torn = &written.bytes[*len..cut];
        let zeros = torn.iter().rev().take_while(|&&b| b == 0).count();
        assert_eq!(recovered.dropped as usize, torn.len() - zeros);
    }
}

#[test]
fn a_flipped_byte_is_found_or_costs_only_the_last_batch() {
    let written = write(&sample());
    let (mut detected, mut dropped) = (0, 0);
    for at in 0..written.bytes.len() {
        for flip in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
            let mut bytes = written.bytes.clone();
            bytes[at] ^= flip;
            match recover(&bytes) {
                Err(error) => {
                    detected += 1;
                    assert!(error.offset() <= at as u64, "byte {at}: {error}");
                }
                Ok(recovered) => {
                    dropped += 1;
                    assert!(at >= written.last_batch, "byte {at} of an older batch changed unseen");
                    let known = written.states.iter().find(|(len, _)| *len as u64 == recovered.len).unwrap();
                    assert!(known.0 <= at && known.1 == recovered.checkpoint, "byte {at}: a wrong checkpoint");
                }
            }
        }
    }
    assert!(detected > 1000 && dropped > 500, "{detected} detected, {dropped} dropped");
}

#[test]
fn an_unsynced_batch_may_be_torn_in_any_order() {
    let written = write(&sample());
    let mut bytes = written.bytes.clone();
    // The first record of the last batch never reached the disk, the later ones did.
    bytes[written.last_batch..written.last_batch + 40].fill(0);
    let recovered = recover(&bytes).unwrap();
    assert_eq!(recovered.len as usize, written.last_batch);
    assert!(recovered.dropped > 40);
    // The same in an older batch is corruption, and the offset is right.
    let (hurt, _) = written.states[2];
    let mut bytes = written.bytes.clone();
    bytes[hurt + 20] ^= 1;
    let Err(JournalError::Corrupt { offset, follows }) = recover(&bytes) else { panic!("not noticed") };
    assert!(offset as usize == hurt && follows > offset);
}

#[test]
fn preallocated_zeros_are_no_tail() {
    let mut bytes = write(&sample()).bytes;
    let len = bytes.len() as u64;
    bytes.resize(bytes.len() + 5000, 0);
    let recovered = recover(&bytes).unwrap();
    assert_eq!((recovered.len, recovered.dropped), (len, 0));
    assert_eq!(recover(&[0; 100]).unwrap().records, 0);
    assert_eq!(recover(b"").unwrap().checkpoint, Checkpoint::default());
}

#[test]
fn other_files_and_other_versions_are_refused() {
    assert_eq!(recover(b"root:x:0:0:root:/root:/bin/bash\n"), Err(JournalError::NotAJournal));
    let mut bytes = write(&[]).bytes;
    bytes.extend(Writer::create(header()).take());
    let end = bytes.len() - SUFFIX;
    bytes[2] = 2;
    let crc = chain(0, &bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(recover(&bytes), Err(JournalError::Version { offset: 0, version: 2 }));
}

#[test]
fn right_checksums_do_not_excuse_wrong_fields() {
    let with = |record: &Record, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Writer::create(header()).take();
        let start = bytes.len();
        let crc = u32::from_le_bytes(bytes[start - 4..].try_into().unwrap());
        let mut body = Vec::new();
        record.encode(&mut body);
        change(&mut body);
        let mut frame = [&MAGIC[..], &[VERSION, record.kind() | BATCH], &(body.len() as u32).to_le_bytes()].concat();
        frame.extend_from_slice(&1u64.to_le_bytes());
        frame.extend(body);
        bytes.extend_from_slice(&frame);
        bytes.extend_from_slice(&chain(crc, &frame).to_le_bytes());
        recover(&bytes)
    };
    let field = |result: Result<Recovered, JournalError>| match result {
        Err(JournalError::Field { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert!(with(&file(1, 3, 1), &|_| ()).is_ok());
    assert_eq!(field(with(&file(1, 3, 1), &|body| body[0] ^= 1)), "key");
    assert_eq!(field(with(&file(1, 3, 1), &|body| *body.last_mut().unwrap() = 1)), "mode");
    assert_eq!(field(with(&file(1, 3, 1), &|body| body.push(0))), "length");
    assert_eq!(field(with(&done(1), &|body| body[0] = 2)), "count");
    assert_eq!(field(with(&done(1), &|body| body[3] = 0xff)), "count");
    assert_eq!(field(with(&publishing(1), &|body| *body.last_mut().unwrap() = 0xff)), "nanoseconds");
    assert_eq!(field(with(&Record::End(Ended::Failed), &|body| body[0] = 9)), "verdict");
    let unknown = with(&chunks(1, &[(0, 1)]), &|_| ());
    assert!(matches!(unknown, Err(JournalError::Inconsistent { why: Inconsistent::UnknownFile(_), .. })));
    assert!(matches!(with(&Record::Header(header()), &|_| ()), Err(JournalError::Inconsistent { .. })));
}

#[test]
fn a_chunk_past_the_end_of_its_file_is_refused() {
    let mut checkpoint = Checkpoint::default();
    checkpoint.apply(&Record::Header(header())).unwrap();
    checkpoint.apply(&file(1, 3, 1)).unwrap();
    assert_eq!(checkpoint.apply(&chunks(1, &[(0, 3)])), Ok(()));
    let before = checkpoint.clone();
    assert_eq!(checkpoint.apply(&chunks(1, &[(0, 1), (1, 3)])), Err(Inconsistent::PastEnd(name(1).1, 1)));
    assert_eq!(checkpoint, before);
}

#[test]
fn a_new_version_of_a_file_keeps_old_digests_as_candidates_only() {
    let mut checkpoint = Checkpoint::default();
    for record in [Record::Header(header()), file(1, 3, 1), chunks(1, &[(0, 3)]), file(1, 5, 2), chunks(1, &[(1, 1)])] {
        checkpoint.apply(&record).unwrap();
    }
    let entry = &checkpoint.files[&name(1).1];
    assert_eq!((entry.chunks.len(), entry.chunks.get(0)), (1, None));
    assert_eq!(entry.stale.as_ref().unwrap().get(2), Some(value(2)));
    assert_eq!(entry.stale.as_ref().unwrap().get(1), None, "fetched again, so no candidate any more");
    assert_eq!(recover(&compact(&checkpoint)).unwrap().checkpoint, checkpoint);
}

#[test]
fn a_resumed_writer_continues_the_chain() {
    let written = write(&sample());
    let torn = &written.bytes[..written.bytes.len() - 3];
    let recovered = recover(torn).unwrap();
    let mut writer = Writer::resume(&recovered).unwrap();
    writer.record(&Record::Epoch(Epoch(3)));
    let mut bytes = torn[..recovered.len as usize].to_vec();
    bytes.extend(writer.take());
    let again = recover(&bytes).unwrap();
    assert_eq!((again.checkpoint.epoch, again.checkpoint.ended, again.dropped), (Epoch(3), None, 0));
    // A journal without a header is none to go on with.
    assert!(Writer::resume(&recover(b"").unwrap()).is_none());
}

#[test]
fn long_lists_become_several_records() {
    let many = 3 * DIGESTS_PER_RECORD as u32 / 2;
    let mut writer = Writer::create(header());
    writer.record(&file(1, u64::from(many) + 10, 1));
    writer.record(&chunks(1, &[(0, 7), (10, many)]));
    writer.record(&Record::Done(vec![DoneFile { key: name(3).1, digest: value(1) }; 2 * DONE_PER_RECORD + 1]));
    writer.record(&Record::Done(vec![]));
    let recovered = recover(&writer.take()).unwrap();
    assert_eq!(recovered.records, 2 + 2 + 3);
    let entry = &recovered.checkpoint.files[&name(1).1].chunks;
    assert_eq!((entry.len(), entry.get(10 + many - 1)), (many + 7, Some(value(10 + many - 1))));
}

#[test]
fn a_done_file_costs_few_bytes() {
    assert_eq!(size_of::<(PathKey, Digest)>(), 32, "and a hash table's slack, below the 200 bytes a file may cost");
    assert!(size_of::<FileCheckpoint>() <= 120, "{}", size_of::<FileCheckpoint>());
}

fn any_record() -> impl Strategy<Value = Record> {
    let which = 0u8..4;
    prop_oneof![
        (1u64..9).prop_map(|epoch| Record::Epoch(Epoch(epoch))),
        (which.clone(), 1u64..5, 0u32..3).prop_map(|(number, chunks, mtime)| file(number, chunks, mtime)),
        (which.clone(), 0u32..4, 1u32..3).prop_map(|(number, first, count)| chunks(number, &[(first, count)])),
        (which.clone(), prop::collection::vec(0u32..5, 1..4))
            .prop_map(|(number, list)| Record::Forget { key: name(number).1, what: Forget::Chunks(list) }),
        which.clone().prop_map(|number| Record::Forget { key: name(number).1, what: Forget::All }),
        which.clone().prop_map(publishing),
        which.prop_map(done),
        Just(Record::End(Ended::Partial)),
    ]
}

/// Batches of records that fit each other: what does not apply is left out.
fn any_batches() -> impl Strategy<Value = Vec<Vec<Record>>> {
    prop::collection::vec(prop::collection::vec(any_record(), 1..6), 0..6).prop_map(|batches| {
        let mut checkpoint = Checkpoint::default();
        checkpoint.apply(&Record::Header(header())).unwrap();
        let mut keep = |batch: Vec<Record>| batch.into_iter().filter(|r| checkpoint.apply(r).is_ok()).collect();
        batches.into_iter().map(&mut keep).filter(|batch: &Vec<Record>| !batch.is_empty()).collect()
    })
}

proptest! {
    #[test]
    fn what_is_written_is_recovered_and_compacts(batches in any_batches()) {
        let written = write(&batches);
        let recovered = recover(&written.bytes).unwrap();
        let want = &written.states.last().unwrap().1;
        if !batches.is_empty() {
            prop_assert_eq!(&recovered.checkpoint, want);
        }
        let compacted = compact(want);
        prop_assert_eq!(&recover(&compacted).unwrap().checkpoint, want);
        prop_assert_eq!(compact(&recover(&compacted).unwrap().checkpoint), compacted);
    }

    #[test]
    fn any_cut_recovers(batches in any_batches(), cut in any::<prop::sample::Index>()) {
        let written = write(&batches);
        let cut = cut.index(written.bytes.len() + 1);
        let recovered = recover(&written.bytes[..cut]).unwrap();
        let known = written.states.iter().find(|(at, _)| *at as u64 == recovered.len);
        prop_assert_eq!(known.map(|(_, state)| state), Some(&recovered.checkpoint));
    }

    #[test]
    fn damage_never_makes_a_wrong_checkpoint(
        batches in any_batches(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let written = write(&batches);
        prop_assume!(!written.bytes.is_empty());
        let mut bytes = written.bytes.clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(recovered) = recover(&bytes) {
            prop_assert!(written.states.iter().any(|(_, state)| *state == recovered.checkpoint));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), magic in any::<bool>()) {
        let mut bytes = bytes;
        if magic && bytes.len() > 4 {
            bytes[..4].copy_from_slice(&[b'L', b'J', VERSION, 3]);
        }
        let _ = recover(&bytes);
    }
}
