//! Honest bytes of every kind, and ways to spoil them.

#![allow(dead_code)]

use crate::Random;
use longhaul::digest::{Digest, chunk, path_key, wire_check};
use longhaul::grid::{CHUNK_SIZE, Span};
use longhaul::ids::{AgentId, Epoch, Handle, PathKey, StreamIndex, TransferId};
use longhaul::journal::{DoneFile, Ended, FileRecord, Forget, Header, Publishing, Record, Run as ChunkRun, Writer};
use longhaul::manifest::{Entry, EntryKind, Mtime, SegmentBuilder};
use longhaul::profile::{Priority, Steer, Tuning};
use longhaul::relpath::RelPath;
use longhaul::wire::control::{
    Accept, Bind, Bound, Control, Message, Offer, OfferedRoot, PeerError, Progress, Retune, Sealed, SourceStats, Wish,
};
use longhaul::wire::data::{PACK_ENTRY_HEAD, PackItem, Run, Status, encode_pack_want, encode_runs, put_pack_entry};
use longhaul::wire::header::{CHUNK_END, FrameType};

/// A frame before it is sealed.
#[derive(Clone)]
pub struct Plain {
    pub kind: FrameType,
    pub flags: u8,
    pub handle: u32,
    pub offset: u64,
    pub body: Vec<u8>,
}

fn path(bytes: &[u8]) -> RelPath {
    RelPath::new(bytes).unwrap()
}

pub fn segment() -> Vec<u8> {
    let mut builder = SegmentBuilder::default();
    let kinds: [(&[u8], EntryKind); 5] = [
        (b"", EntryKind::Dir),
        (b"dir", EntryKind::Dir),
        (b"dir/file", EntryKind::File { size: 5 << 22, sparse: true }),
        (b"dir/link", EntryKind::Symlink { target: (*b"../x").into() }),
        (b"fifo", EntryKind::Special),
    ];
    for (name, kind) in kinds {
        let entry = Entry { root: 0, path: path(name), kind, mode: 0o644, mtime: Mtime { secs: 5, nanos: 6 } };
        assert!(builder.push(&entry).is_none());
    }
    builder.finish().unwrap()
}

pub fn messages() -> Vec<Message> {
    let root =
        OfferedRoot { name: "61".into(), path: "2f61".into(), directory: true, object: (1, 2), host: "h".into() };
    let offer = Offer {
        agent: AgentId([2; 16]),
        roots: vec![root],
        engine: "epoll".into(),
        cpus: String::new(),
        notes: vec![],
        process: 1,
        digests: false,
    };
    let accept = Accept {
        transfer: TransferId([3; 16]),
        epoch: Epoch(9),
        block: 262_144,
        rate: Some(8_000),
        congestion: Some("bbr".into()),
        window: None,
        io: "auto".into(),
        credit: 8,
        streams: 4,
        tuning: Tuning { dscp: Some(10), mss: Some(1400), ..Tuning::default() },
    };
    let mtime = Mtime { secs: -1, nanos: 5 };
    let bind = Bind { handle: Handle(7), root: 2, path: path(b"d/x"), size: 1 << 50, mtime, sparse: true };
    let extents = Some(vec![Span { offset: 0, len: 4096 }, Span { offset: 8192, len: 1 }]);
    let bound = Bound { handle: Handle(7), status: Status::Ok, object: (1, 2), extents };
    vec![
        Message::Offer(offer),
        Message::Accept(accept),
        Message::Segment(segment()),
        Message::ManifestEnd(4),
        Message::Problem { root: 1, path: b"p".to_vec(), what: "no".into() },
        Message::Credit(8),
        Message::Bind(vec![bind.clone(), bind]),
        Message::Bound(vec![bound.clone(), Bound { extents: None, status: Status::Gone, ..bound }]),
        Message::Seal(vec![Handle(1), Handle(2)]),
        Message::Sealed(vec![Sealed { handle: Handle(1), status: Status::Changed }]),
        Message::Unbind(vec![Handle(1)]),
        Message::Progress(Progress::default()),
        Message::StatsRequest,
        Message::Stats(SourceStats::default()),
        Message::Verdict(b"{}".to_vec()),
        Message::Error(PeerError { class: "retry".into(), what: "full".into() }),
        Message::Ping,
        Message::Bye,
        Message::Retune(Retune {
            rate: None,
            streams: 2,
            asked: Steer { rate: Some(8_000_000), ..Steer::default() },
            control: Some(Control::Bbr),
            pacing: Some(9_000_000),
        }),
        Message::Sample(longhaul::wire::views::SourceView::default()),
        Message::Wish(Wish { steer: Steer { priority: Some(Priority::High), ..Steer::default() }, yields: 2 }),
        Message::Lost { stream: StreamIndex(3), attempt: 1001 },
    ]
}

/// Payload and wire check of a chunk's only block.
pub fn chunk_end(payload: &[u8], handle: u32, offset: u64) -> Vec<u8> {
    let span = Span { offset, len: payload.len() as u64 };
    [payload, &wire_check(chunk(payload, offset), Handle(handle), span).0].concat()
}

pub fn frames() -> Vec<Plain> {
    let one = |kind, flags, handle, offset, body| Plain { kind, flags, handle, offset, body };
    let runs = [
        Run { handle: Handle(5), first: 3, count: 2, digests_only: false },
        Run { handle: Handle(6), first: 0, count: 9, digests_only: true },
    ];
    let mtime = Mtime { secs: 1, nanos: 2 };
    let item = |handle, name: &[u8]| PackItem { handle: Handle(handle), root: 0, path: path(name), size: 5, mtime };
    let mut pack = vec![0; PACK_ENTRY_HEAD];
    put_pack_entry(&mut pack, Handle(6), Status::Ok, 5, chunk(b"hello", 0));
    pack.extend_from_slice(b"hello");
    let offset = 2 * CHUNK_SIZE;
    let mut all = vec![
        one(FrameType::Data, 0, 5, offset, b"payload of a block".to_vec()),
        one(FrameType::Data, CHUNK_END, 5, offset, chunk_end(b"payload of a chunk's end", 5, offset)),
        one(FrameType::Zero, 0, 5, offset, 65536u64.to_le_bytes().to_vec()),
        one(FrameType::Zero, CHUNK_END, 5, offset, [16u64.to_le_bytes().as_slice(), &[7; 16]].concat()),
        one(FrameType::Digest, 0, 5, offset, vec![7; 16]),
        one(FrameType::Pack, CHUNK_END, 9, 0, pack),
        one(FrameType::Nak, 0, 5, offset, vec![Status::Gone as u8]),
        one(FrameType::Want, 0, 0, 0, encode_runs(&runs)),
        one(FrameType::Unwant, 0, 0, 0, encode_runs(&runs)),
        one(FrameType::PackWant, 0, 9, 0, encode_pack_want(&[item(6, b"d/small"), item(7, b"e")])),
        one(FrameType::Ping, 0, 0, 0, vec![]),
        one(FrameType::End, 0, 0, 0, vec![]),
    ];
    all.extend(messages().iter().map(|m| one(FrameType::Control, 0, 0, 0, m.encode())));
    all
}

/// A journal of every kind of record in several batches; where each batch begins.
pub fn journal() -> (Vec<u8>, Vec<usize>) {
    let (name, value) = (path(b"d/f"), |n: u8| Digest([n; 16]));
    let key = path_key(0, name.as_bytes());
    let (size, mtime) = (3 * CHUNK_SIZE - 5, Mtime { secs: -3, nanos: 1 });
    let chunks = |runs: &[(u32, u8)]| Record::Chunks {
        key,
        runs: runs.iter().map(|(first, n)| ChunkRun { first: *first, digests: vec![value(*n)] }).collect(),
    };
    let header = Header {
        transfer: TransferId([1; 16]),
        agent: AgentId([2; 16]),
        epoch: Epoch(1),
        created: 3,
        source: "s".into(),
        destination: path(b"in"),
    };
    let batches = [
        vec![
            Record::File(FileRecord { key, root: 0, path: name, size, mtime, mode: 0o640 }),
            chunks(&[(0, 1), (2, 3)]),
        ],
        vec![Record::Epoch(Epoch(2)), Record::Forget { key, what: Forget::Chunks(vec![2]) }, chunks(&[(1, 2)])],
        vec![chunks(&[(2, 4)]), Record::Publishing(vec![Publishing { key, inode: 7, digest: value(9), size, mtime }])],
        vec![
            Record::Done(vec![DoneFile { key, digest: value(9) }]),
            Record::Forget { key: PathKey([5; 16]), what: Forget::All },
            Record::End(Ended::Verified),
        ],
    ];
    let mut writer = Writer::create(header);
    let (mut bytes, mut starts) = (Vec::new(), Vec::new());
    for batch in batches {
        batch.iter().for_each(|record| writer.record(record));
        starts.push(bytes.len());
        bytes.extend(writer.take());
    }
    (bytes, starts)
}

/// Values at which lengths, counts and indices go wrong.
const BORDERS: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    CHUNK_SIZE,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Spoils bytes in one of many ways.
pub fn spoil(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len());
    let border = BORDERS[random.below(BORDERS.len())].to_le_bytes();
    match random.below(9) {
        _ if bytes.is_empty() => {
            let len = 1 + random.below(40);
            *bytes = random.bytes(len);
        }
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        2 => bytes.truncate(at),
        3 => {
            let len = 1 + random.below(64);
            bytes.extend(random.bytes(len));
        }
        // A border value of 1 to 8 bytes, little-endian as every field.
        4 | 5 => {
            let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
            bytes[at..at + width].copy_from_slice(&border[..width]);
        }
        6 => {
            let part = bytes[at..(at + 1 + random.below(32)).min(bytes.len())].to_vec();
            let to = random.below(bytes.len());
            bytes.splice(to..to, part);
        }
        7 => drop(bytes.remove(at)),
        // What paths must not hold.
        _ => {
            let names: [&[u8]; 8] = [b"/", b"..", b"../", b"\0", b".", b"//", b"/..", b"./"];
            for (to, byte) in (at..bytes.len()).zip(names[random.below(names.len())]) {
                bytes[to] = *byte;
            }
        }
    }
}
