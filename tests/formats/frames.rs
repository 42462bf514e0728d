//! Frames of data streams and stream 0, plain and sealed, with their bodies.

use crate::{every_variant, golden, same_as_golden, variants};
use longhaul::digest::{Digest, chunk, wire_check};
use longhaul::grid::Span;
use longhaul::ids::Handle;
use longhaul::manifest::Mtime;
use longhaul::relpath::RelPath;
use longhaul::wire::control::Message;
use longhaul::wire::crypt::{FrameKey, Opener, Sealer};
use longhaul::wire::data::{
    self, PACK_ENTRY_HEAD, PackItem, Run, Status, decode_pack, decode_pack_want, decode_runs, decode_zero,
    encode_pack_want, encode_runs, put_pack_entry, split_data,
};
use longhaul::wire::header::{CHUNK_END, FrameType, HEADER_LEN, Header, TRAILER_LEN};

const OFFSET: u64 = 3 << 22;

struct Sample {
    name: &'static str,
    kind: FrameType,
    flags: u8,
    handle: u32,
    offset: u64,
    body: Vec<u8>,
}

fn runs() -> Vec<Run> {
    vec![
        Run { handle: Handle(5), first: 3, count: 2, digests_only: false },
        Run { handle: Handle(u32::MAX), first: 0, count: u32::MAX, digests_only: true },
    ]
}

fn items() -> Vec<PackItem> {
    let path = |bytes: &[u8]| RelPath::new(bytes).unwrap();
    let item = |handle, root, bytes: &[u8], size, secs| PackItem {
        handle: Handle(handle),
        root,
        path: path(bytes),
        size,
        mtime: Mtime { secs, nanos: 999_999_999 },
    };
    vec![item(6, 0, b"d/small", 5, -1), item(7, 2, b"\xff", 0, 1_700_000_000)]
}

fn pack_body() -> Vec<u8> {
    let mut body = vec![0; PACK_ENTRY_HEAD];
    put_pack_entry(&mut body, Handle(6), Status::Ok, 5, check(b"hello", 6, 0));
    body.extend_from_slice(b"hello");
    let mut refused = vec![0; PACK_ENTRY_HEAD];
    put_pack_entry(&mut refused, Handle(7), Status::Denied, 0, longhaul::digest::of(b""));
    body.extend(refused);
    body
}

fn check(payload: &[u8], handle: u32, offset: u64) -> Digest {
    wire_check(chunk(payload, offset), Handle(handle), Span { offset, len: payload.len() as u64 })
}

fn samples() -> Vec<Sample> {
    let one = |name, kind, flags, handle, offset, body: &[u8]| Sample {
        name,
        kind,
        flags,
        handle,
        offset,
        body: body.to_vec(),
    };
    let end = [b"the end".as_slice(), &check(b"the end", 5, OFFSET).0].concat();
    let zero = [16u64.to_le_bytes().as_slice(), &check(&[0; 16], 5, OFFSET).0].concat();
    vec![
        one("Data", FrameType::Data, 0, 5, OFFSET, b"payload"),
        one("Data-end", FrameType::Data, CHUNK_END, 5, OFFSET, &end),
        one("Zero", FrameType::Zero, 0, 5, OFFSET, &65536u64.to_le_bytes()),
        one("Zero-end", FrameType::Zero, CHUNK_END, 5, OFFSET, &zero),
        one("Digest", FrameType::Digest, 0, 5, OFFSET, &chunk(b"the end", OFFSET).0),
        one("Pack", FrameType::Pack, CHUNK_END, 9, 0, &pack_body()),
        one("Nak", FrameType::Nak, 0, 5, OFFSET, &[Status::Gone as u8]),
        one("Want", FrameType::Want, 0, 0, 0, &encode_runs(&runs())),
        one("Unwant", FrameType::Unwant, 0, 0, 0, &encode_runs(&runs())),
        one("PackWant", FrameType::PackWant, 0, 9, 0, &encode_pack_want(&items())),
        one("Ping", FrameType::Ping, 0, 0, 0, b""),
        one("End", FrameType::End, 0, 0, 0, b""),
        one("Control", FrameType::Control, 0, 0, 0, &Message::Credit(8).encode()),
    ]
}

/// All samples through one sealer, so that the counters count.
fn sealed(key: FrameKey) -> Vec<(String, Vec<u8>)> {
    let mut sealer = Sealer::new(key);
    let frame = |s: Sample| (s.name.to_owned(), sealer.frame(s.kind, s.flags, s.handle, s.offset, &s.body));
    samples().into_iter().map(frame).collect()
}

#[test]
fn plain_frames_are_made_as_they_always_were() {
    let made = sealed(FrameKey::plain());
    every_variant(include_str!("../../src/wire/header.rs"), "FrameType", &made);
    same_as_golden("plain", &made);
}

#[test]
fn sealed_frames_are_made_as_they_always_were() {
    let made = sealed(FrameKey::new(&[7; 32]));
    every_variant(include_str!("../../src/wire/header.rs"), "FrameType", &made);
    same_as_golden("sealed", &made);
}

#[test]
fn frames_are_read_as_they_always_were() {
    let golden = golden();
    for (kind, key) in [("plain", FrameKey::plain()), ("sealed", FrameKey::new(&[7; 32]))] {
        let mut opener = Opener::new(key);
        for (number, sample) in samples().into_iter().enumerate() {
            let bytes = &golden[format!("{kind}/{}", sample.name).as_str()];
            let header = Header::decode(bytes[..HEADER_LEN].try_into().unwrap(), 1 << 20).unwrap();
            let Sample { kind, flags, handle, offset, ref body, .. } = sample;
            let body_len = body.len() as u32;
            assert_eq!(header, Header { kind, flags, body_len, handle, offset, counter: number as u64 });
            let (opened, trailer) = bytes[HEADER_LEN..].split_at(body.len());
            assert_eq!(trailer.len(), TRAILER_LEN);
            let mut opened = opened.to_vec();
            opener.open(&header, &mut opened, trailer).unwrap();
            assert_eq!(&opened, body, "{}", sample.name);
            bodies_mean_what_they_meant(&header, &opened);
        }
    }
}

fn bodies_mean_what_they_meant(header: &Header, body: &[u8]) {
    match header.kind {
        FrameType::Data if header.ends_chunk() => {
            assert_eq!(split_data(body, true), Ok((7, Some(check(b"the end", 5, OFFSET)))));
        }
        FrameType::Data => assert_eq!(split_data(body, false), Ok((7, None))),
        FrameType::Zero if header.ends_chunk() => {
            assert_eq!(decode_zero(body, true), Ok((16, Some(check(&[0; 16], 5, OFFSET)))));
        }
        FrameType::Zero => assert_eq!(decode_zero(body, false), Ok((65536, None))),
        FrameType::Digest => assert_eq!(body, chunk(b"the end", OFFSET).0),
        FrameType::Pack => {
            let entries = decode_pack(body).unwrap();
            assert_eq!((entries.len(), &body[entries[0].content.clone()]), (2, b"hello".as_slice()));
            assert_eq!(
                (entries[0].handle, entries[0].status, entries[0].check),
                (Handle(6), Status::Ok, check(b"hello", 6, 0))
            );
            assert_eq!((entries[1].handle, entries[1].status), (Handle(7), Status::Denied));
        }
        FrameType::Nak => assert_eq!(Status::from_byte(body[0]), Ok(Status::Gone)),
        FrameType::Want | FrameType::Unwant => assert_eq!(decode_runs(body), Ok(runs())),
        FrameType::PackWant => assert_eq!(decode_pack_want(body), Ok(items())),
        FrameType::Ping | FrameType::End => assert!(body.is_empty()),
        FrameType::Control => assert_eq!(Message::decode(body), Ok(Message::Credit(8))),
    }
}

/// The bytes of each status, in a Nak, a pack, a Bound and a Sealed.
#[test]
fn statuses_keep_their_numbers() {
    use Status::*;
    let all = [
        (Ok, 0, "Ok"),
        (Changed, 1, "Changed"),
        (Gone, 2, "Gone"),
        (Denied, 3, "Denied"),
        (Failed, 4, "Failed"),
        (Unwanted, 5, "Unwanted"),
    ];
    for (status, byte, _) in all {
        assert_eq!((status as u8, data::Status::from_byte(byte)), (byte, Result::Ok(status)));
    }
    let names = all.iter().map(|(.., name)| name.to_string()).collect();
    assert_eq!(variants(include_str!("../../src/wire/data.rs"), "Status"), names);
}
