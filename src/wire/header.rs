//! The 32 bytes before every frame body.
//!
//! ```text
//! 0 type u8 | 1 flags u8 | 2 zero u16 | 4 body length u32 | 8 handle u32 | 12 check u32 | 16 offset u64 | 24 counter u64
//! ```
//! `check` is the low half of XXH3-64 over the header with `check` as zero.

use super::WireError;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of a header.
pub const HEADER_LEN: usize = 32;
/// Bytes of a trailer (tag or check).
pub const TRAILER_LEN: usize = 16;

/// What a frame is. The number is the byte on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameType {
    /// A block of a chunk: payload, and with [`CHUNK_END`] the wire check.
    Data = 1,
    /// A hole inside a chunk: `u64` length, and with [`CHUNK_END`] the wire check.
    Zero = 2,
    /// The chunk digest alone, the answer to a Want for digests.
    Digest = 3,
    /// Small files, whole.
    Pack = 4,
    /// The source cannot give a chunk.
    Nak = 5,
    /// Chunk runs asked for.
    Want = 16,
    /// Chunk runs no longer wanted.
    Unwant = 17,
    /// Small files asked for.
    PackWant = 18,
    /// Keep-alive.
    Ping = 30,
    /// Nothing follows in this direction.
    End = 31,
    /// A message of stream 0; the first byte of the body says which.
    Control = 40,
}

impl FrameType {
    fn from_byte(byte: u8) -> Option<Self> {
        use FrameType::*;
        [Data, Zero, Digest, Pack, Nak, Want, Unwant, PackWant, Ping, End, Control]
            .into_iter()
            .find(|t| *t as u8 == byte)
    }
}

/// The last frame of a chunk or of a pack want.
pub const CHUNK_END: u8 = 1;

/// A frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: FrameType,
    /// [`CHUNK_END`] or 0.
    pub flags: u8,
    /// Bytes of body, the trailer not counted.
    pub body_len: u32,
    /// File, or pack number; 0 where there is none.
    pub handle: u32,
    /// Byte offset in the file; 0 where there is none.
    pub offset: u64,
    /// Counts the frames of this direction from 0.
    pub counter: u64,
}

impl Header {
    /// As bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0] = self.kind as u8;
        out[1] = self.flags;
        out[4..8].copy_from_slice(&self.body_len.to_le_bytes());
        out[8..12].copy_from_slice(&self.handle.to_le_bytes());
        out[16..24].copy_from_slice(&self.offset.to_le_bytes());
        out[24..32].copy_from_slice(&self.counter.to_le_bytes());
        let check = xxh3_64(&out) as u32;
        out[12..16].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// Checks and reads. `body_max` is the largest body that the reader has room for.
    pub fn decode(bytes: &[u8; HEADER_LEN], body_max: u32) -> Result<Self, WireError> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let mut blank = *bytes;
        blank[12..16].fill(0);
        if xxh3_64(&blank) as u32 != u32_at(12) {
            return Err(WireError::HeaderCheck);
        }
        let kind = FrameType::from_byte(bytes[0]).ok_or(WireError::Type(bytes[0]))?;
        if bytes[1] > 1 {
            return Err(WireError::Range("flags"));
        }
        if bytes[2..4] != [0, 0] {
            return Err(WireError::Range("reserved"));
        }
        let body_len = u32_at(4);
        if body_len > body_max {
            return Err(WireError::Range("body length"));
        }
        Ok(Self { kind, flags: bytes[1], body_len, handle: u32_at(8), offset: u64_at(16), counter: u64_at(24) })
    }

    /// Whether [`CHUNK_END`] is set.
    pub fn ends_chunk(&self) -> bool {
        self.flags & CHUNK_END != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_seen() {
        let header = Header { kind: FrameType::Data, flags: 1, body_len: 77, handle: 5, offset: 1 << 40, counter: 9 };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes, 100), Ok(header));
        assert_eq!(Header::decode(&bytes, 76), Err(WireError::Range("body length")));
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad, u32::MAX).is_err(), "bit {bit}");
        }
    }

    /// Pinned for ever.
    #[test]
    fn golden_header() {
        let header = Header { kind: FrameType::Want, flags: 0, body_len: 16, handle: 0, offset: 0, counter: 3 };
        assert_eq!(hex::encode(header.encode()), "100000001000000000000000fd44144600000000000000000300000000000000");
    }
}
