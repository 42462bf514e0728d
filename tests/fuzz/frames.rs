//! Malformed frames, by the million: half are valid ones that were changed, with check and tag made right again.

use crate::samples::{Plain, frames, spoil};
use crate::{GROWTH_MAX, Random, count, first_word, rss, variants};
use longhaul::manifest::Segment;
use longhaul::wire::WireError;
use longhaul::wire::control::Message;
use longhaul::wire::crypt::{FrameKey, Opener, Sealer};
use longhaul::wire::data::{self, Status};
use longhaul::wire::header::{FrameType, HEADER_LEN, Header, TRAILER_LEN};
use std::collections::BTreeMap;

/// What a stream's buffers hold.
const BODY_MAX: u32 = 1 << 20;
/// Each error of the wire has to come up so often, or this shows little.
const EACH_ERROR: u64 = 1_000;

/// A frame that came in whole, up to the values in it; `None` when more bytes would be waited for.
pub fn take(opener: &mut Opener, frame: &[u8]) -> Option<Result<(), WireError>> {
    let head = frame.first_chunk::<HEADER_LEN>()?;
    let header = match Header::decode(head, BODY_MAX) {
        Ok(header) => header,
        Err(error) => return Some(Err(error)),
    };
    if let Err(error) = opener.expect(&header) {
        return Some(Err(error));
    }
    let (body, rest) = frame[HEADER_LEN..].split_at_checked(header.body_len as usize)?;
    let trailer = rest.get(..TRAILER_LEN)?;
    let mut body = body.to_vec();
    Some(opener.open(&header, &mut body, trailer).and_then(|()| read(&header, &body)))
}

/// What both ends do with a body.
pub fn read(header: &Header, body: &[u8]) -> Result<(), WireError> {
    match header.kind {
        FrameType::Data => data::split_data(body, header.ends_chunk()).map(drop),
        FrameType::Zero => data::decode_zero(body, header.ends_chunk()).map(drop),
        FrameType::Digest if body.len() == 16 => Ok(()),
        FrameType::Digest => Err(WireError::Length("digest")),
        FrameType::Pack => data::decode_pack(body).map(|entries| {
            assert!(entries.iter().all(|entry| body.get(entry.content.clone()).is_some()), "outside of the body");
        }),
        FrameType::Nak => Status::from_byte(*body.first().ok_or(WireError::Length("nak"))?).map(drop),
        FrameType::Want | FrameType::Unwant => data::decode_runs(body).map(|runs| {
            assert!(runs.iter().all(|run| run.count > 0 && run.first.checked_add(run.count).is_some()));
        }),
        FrameType::PackWant => data::decode_pack_want(body).map(drop),
        FrameType::Ping | FrameType::End => Ok(()),
        FrameType::Control => match Message::decode(body)? {
            Message::Segment(bytes) => Segment::decode(&bytes).map(drop).map_err(WireError::from),
            message => {
                assert_eq!(Message::decode(&message.encode()), Ok(message), "what was read is what can be said");
                Ok(())
            }
        },
    }
}

/// Those of data streams, then that of stream 0.
pub const KINDS: [FrameType; 11] = [
    FrameType::Data,
    FrameType::Zero,
    FrameType::Digest,
    FrameType::Pack,
    FrameType::Nak,
    FrameType::Want,
    FrameType::Unwant,
    FrameType::PackWant,
    FrameType::Ping,
    FrameType::End,
    FrameType::Control,
];

fn key(sealed: bool) -> FrameKey {
    if sealed { FrameKey::new(&[7; 32]) } else { FrameKey::plain() }
}

/// Changed before it is sealed: check and tag are right.
fn consistent(plain: &Plain, sealed: bool, random: &mut Random) -> Vec<u8> {
    let mut plain = plain.clone();
    for _ in 0..1 + random.below(3) {
        match random.below(12) {
            0 => plain.kind = KINDS[random.below(KINDS.len())],
            1 => plain.flags ^= 1,
            2 => plain.handle = random.next() as u32,
            3 => plain.offset = random.next(),
            _ => spoil(&mut plain.body, random),
        }
    }
    let mut sealer = Sealer::new(key(sealed));
    let mut frame = sealer.frame(plain.kind, plain.flags, plain.handle, plain.offset, &plain.body);
    // Fields that the library would not write, with the header's check made right: what is behind it decides.
    if random.below(8) == 0 {
        let at = [0, 1, 2, 4, 6, 8, 16, 24, 31][random.below(9)];
        frame[at] ^= 1 + random.below(255) as u8;
        right_check(&mut frame);
    }
    frame
}

fn right_check(frame: &mut [u8]) {
    frame[12..16].fill(0);
    let check = xxhash_rust::xxh3::xxh3_64(&frame[..HEADER_LEN]) as u32;
    frame[12..16].copy_from_slice(&check.to_le_bytes());
}

#[test]
fn malformed_frames_are_errors_and_nothing_else() {
    let mut random = Random::told("frames");
    let samples = frames();
    let total = count(2_000_000, 20_000_000);
    let (mut errors, mut fine, mut cut) = (BTreeMap::<String, u64>::new(), 0u64, 0u64);
    let mut before = 0;
    for number in 0..total {
        // The first tenth warms the allocator up.
        if number == total / 10 {
            before = rss();
        }
        let plain = &samples[random.below(samples.len())];
        let sealed = random.below(2) == 0;
        let frame = if number % 2 == 0 {
            consistent(plain, sealed, &mut random)
        } else {
            let mut frame =
                Sealer::new(key(sealed)).frame(plain.kind, plain.flags, plain.handle, plain.offset, &plain.body);
            for _ in 0..1 + random.below(3) {
                spoil(&mut frame, &mut random);
            }
            frame
        };
        match take(&mut Opener::new(key(sealed)), &frame) {
            None => cut += 1,
            Some(Ok(())) => fine += 1,
            Some(Err(error)) => {
                assert!(!error.to_string().is_empty());
                *errors.entry(first_word(&format!("{error:?}"))).or_default() += 1;
            }
        }
    }
    let grown = rss().saturating_sub(before);
    println!(
        "COUNT malformed_frames={total} refused={} cut={cut} harmless={fine} panics=0 rss_growth={grown}",
        errors.values().sum::<u64>()
    );
    for name in variants(include_str!("../../src/wire/mod.rs"), "WireError") {
        let seen = errors.get(&name).copied().unwrap_or(0);
        println!("COUNT wire_error_{}={seen}", name.to_lowercase());
        assert!(seen >= EACH_ERROR, "{name} came up {seen} times in {total}: {errors:?}");
    }
    assert!(grown < GROWTH_MAX, "{grown} bytes more than at the beginning");
    assert!(fine < total / 2, "most frames were to be malformed, {fine} of {total} were not");
}
