//! Flipped bits: in frames, in chunks with their digest, in journals and manifests. None may go unseen.

use crate::frames::take;
use crate::samples::{chunk_end, frames, journal, segment};
use crate::{Random, count};
use longhaul::digest::{Digest, chunk, wire_check};
use longhaul::grid::{CHUNK_SIZE, Span};
use longhaul::ids::Handle;
use longhaul::journal::{Checkpoint, recover, scan};
use longhaul::manifest::segment_digest;
use longhaul::wire::crypt::{FrameKey, Opener, Sealer};
use longhaul::wire::data::split_data;
use longhaul::wire::header::{FrameType, HEADER_LEN, Header};

fn flip(bytes: &mut [u8], bit: usize) {
    bytes[bit / 8] ^= 1 << (bit % 8);
}

/// Whether a flipped frame is seen for what it is. A plain Data frame has no check of its own over its payload: that is
/// its chunk's, which stands in the frame that ends it.
fn seen(key: &impl Fn() -> FrameKey, frame: &[u8], plain_data: bool) -> bool {
    match take(&mut Opener::new(key()), frame) {
        None => false,
        Some(Err(_)) => true,
        Some(Ok(())) if !plain_data => false,
        Some(Ok(())) => {
            let header = Header::decode(frame.first_chunk().unwrap(), u32::MAX).unwrap();
            let body = &frame[HEADER_LEN..HEADER_LEN + header.body_len as usize];
            let Ok((len, Some(check))) = split_data(body, header.ends_chunk()) else { return false };
            let span = Span { offset: header.offset, len: len as u64 };
            wire_check(chunk(&body[..len], header.offset), Handle(header.handle), span) != check
        }
    }
}

#[test]
fn flips_in_frames_and_chunks_are_seen() {
    let mut random = Random::told("flips");
    let total = count(900_000, 9_000_000);
    let mut samples: Vec<(Vec<u8>, bool, bool)> = Vec::new();
    for plain in frames() {
        for sealed in [false, true] {
            let key = if sealed { FrameKey::new(&[7; 32]) } else { FrameKey::plain() };
            let bare = !sealed && plain.kind == FrameType::Data;
            // A block in the middle of a chunk is vouched for by the chunk's end: not alone.
            if bare && plain.flags == 0 {
                continue;
            }
            let frame = Sealer::new(key).frame(plain.kind, plain.flags, plain.handle, plain.offset, &plain.body);
            samples.push((frame, sealed, bare));
        }
    }
    let mut flips = 0u64;
    // Every bit once, then at random in longer chunks and in several bits at a time.
    for (frame, sealed, bare) in &samples {
        let key = || if *sealed { FrameKey::new(&[7; 32]) } else { FrameKey::plain() };
        assert!(matches!(take(&mut Opener::new(key()), frame), Some(Ok(()))), "the sample itself is good");
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            flip(&mut bad, bit);
            assert!(seen(&key, &bad, *bare), "bit {bit} of a frame (sealed: {sealed}): {}", hex::encode(frame));
            flips += 1;
        }
    }
    let every_bit = flips;
    while flips < total {
        let sealed = random.below(2) == 0;
        let key = || if sealed { FrameKey::new(&[9; 32]) } else { FrameKey::plain() };
        let len = 1 + random.below(700);
        let (payload, offset) = (random.bytes(len), CHUNK_SIZE * (random.next() % 9));
        let frame = Sealer::new(key()).frame(FrameType::Data, 1, 3, offset, &chunk_end(&payload, 3, offset));
        for _ in 0..64 {
            let mut bad = frame.clone();
            for _ in 0..1 + random.below(4) {
                flip(&mut bad, random.below(frame.len() * 8));
            }
            // Two flips of one bit are none.
            if bad != frame {
                assert!(
                    seen(&key, &bad, !sealed),
                    "sealed {sealed}: {} became {}",
                    hex::encode(&frame),
                    hex::encode(&bad)
                );
                flips += 1;
            }
        }
    }
    println!("COUNT flips_in_frames={flips} every_bit={every_bit} undetected=0");
}

/// A chunk of several blocks, flipped anywhere, or put in another place, or in another file.
#[test]
fn flips_and_wrong_places_of_chunks_are_seen() {
    let mut random = Random::told("chunks");
    let payload = random.bytes(1500);
    let (handle, span) = (Handle(5), Span { offset: 3 * CHUNK_SIZE, len: payload.len() as u64 });
    let right = wire_check(chunk(&payload, span.offset), handle, span);
    let check = |payload: &[u8], handle, span: Span| wire_check(chunk(payload, span.offset), handle, span);
    for bit in 0..payload.len() * 8 {
        let mut bad = payload.clone();
        flip(&mut bad, bit);
        assert_ne!(check(&bad, handle, span), right, "bit {bit}");
    }
    let mut places = 0;
    for other in 0..1000u64 {
        if other != 3 {
            assert_ne!(check(&payload, handle, Span { offset: other * CHUNK_SIZE, ..span }), right);
            places += 1;
        }
        if other != 5 {
            assert_ne!(check(&payload, Handle(other as u32), span), right);
            places += 1;
        }
        assert_ne!(check(&payload[..other as usize], handle, Span { len: other, ..span }), right);
    }
    println!("COUNT flips_in_chunks={} wrong_places={places} undetected=0", payload.len() * 8);
}

/// Every state that a journal goes through, with the offset at which each record begins.
fn states(bytes: &[u8]) -> Vec<(u64, Checkpoint)> {
    let (mut all, mut checkpoint) = (Vec::new(), Checkpoint::default());
    let tail = scan(bytes, |found| {
        all.push((found.offset, checkpoint.clone()));
        checkpoint.apply(&found.record).unwrap();
        Ok(())
    });
    all.push((tail.unwrap().len, checkpoint));
    all
}

/// Every bit of small journals, one at a time; then several at random. A flip is refused, or it costs what lies behind it
/// in the last batch, whose sync may not have returned. It never makes a checkpoint that the journal did not go through.
/// Of several flips one may hide what proves the others: then the journal ends earlier, as a torn one does.
#[test]
fn flips_in_journals_are_seen() {
    let mut random = Random::told("journal");
    let (bytes, starts) = journal();
    let (states, last) = (states(&bytes), *starts.last().unwrap());
    assert!(states.len() > 8, "one of each record");
    let judge = |bad: &[u8], first: usize, single: bool| match recover(bad) {
        Err(error) => {
            assert!(error.offset() <= first as u64, "{error}");
            true
        }
        Ok(recovered) => {
            let known = states.iter().find(|(at, _)| *at == recovered.len).map(|(_, state)| state);
            assert_eq!(known, Some(&recovered.checkpoint), "a checkpoint that never was, flip at byte {first}");
            assert!(recovered.len <= first as u64, "a flip at byte {first} went unseen");
            assert!(!single || first >= last, "a flip at byte {first} of an older batch went unseen");
            assert!(recovered.dropped > 0 || bad[first..].iter().all(|b| *b == 0));
            false
        }
    };
    let (mut refused, mut dropped) = (0u64, 0u64);
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        flip(&mut bad, bit);
        *if judge(&bad, bit / 8, true) { &mut refused } else { &mut dropped } += 1;
    }
    let every_bit = refused + dropped;
    for _ in 0..count(60_000, 900_000) {
        let (mut bad, mut first) = (bytes.clone(), usize::MAX);
        for _ in 0..1 + random.below(3) {
            let bit = random.below(bytes.len() * 8);
            flip(&mut bad, bit);
            first = first.min(bit / 8);
        }
        if bad != bytes {
            let first = (0..bytes.len()).find(|at| bad[*at] != bytes[*at]).unwrap_or(first);
            *if judge(&bad, first, false) { &mut refused } else { &mut dropped } += 1;
        }
    }
    println!(
        "COUNT flips_in_journals={} every_bit={every_bit} refused={refused} last_batch_dropped={dropped} undetected=0",
        refused + dropped
    );
    assert!(refused > 1000 && dropped > 1000, "{refused} refused, {dropped} dropped");
}

/// A manifest segment travels in a sealed frame; the digest that it is known by tells as well.
#[test]
fn flips_in_manifests_are_seen() {
    let mut random = Random::told("manifest");
    let bytes = segment();
    let right: Digest = segment_digest(&bytes);
    let body = [&[3], bytes.as_slice()].concat();
    let mut flips = 0u64;
    for number in 0..count(45_000, 450_000) as usize {
        let (mut bad, mut framed) =
            (bytes.clone(), Sealer::new(FrameKey::new(&[7; 32])).frame(FrameType::Control, 0, 0, 0, &body));
        let bit = if number < bytes.len() * 8 { number } else { random.below(bytes.len() * 8) };
        flip(&mut bad, bit);
        assert_ne!(segment_digest(&bad), right, "bit {bit}");
        flip(&mut framed, (HEADER_LEN + 1) * 8 + bit);
        assert!(matches!(take(&mut Opener::new(FrameKey::new(&[7; 32])), &framed), Some(Err(_))), "bit {bit}");
        flips += 1;
    }
    println!("COUNT flips_in_manifests={flips} undetected=0");
}
