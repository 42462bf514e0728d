//! Digests: XXH3-128, a protection against accidents. Against an attacker the AEAD of the streams counts.
//!
//! - **Chunk digest** `D = XXH3-128(payload ‖ offset ‖ length)`: kept in the journal, the same for every agent.
//! - **Wire check** `W = XXH3-128(D ‖ handle ‖ offset ‖ length)`: travels behind the payload, so that right bytes in a
//!   wrong place or file are refused.
//! - **File digest** `XXH3-128("longhaul file 1" ‖ size ‖ chunk size ‖ D₀ ‖ D₁ …)`.
//!
//! All integers are little-endian, offset, length and size of 64 bits, handle of 32.

use crate::grid::{CHUNK_SIZE, Span};
use crate::ids::{Handle, PathKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use xxhash_rust::xxh3::{Xxh3, Xxh3Default};

/// An XXH3-128 value, big-endian as `xxhsum` prints it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 16]);

/// Bytes of a [`Digest`].
pub const DIGEST_LEN: usize = 16;

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = hex::FromHexError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; DIGEST_LEN];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.to_string())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The digest of `bytes` alone: segments, journal names, manifests.
pub fn of(bytes: &[u8]) -> Digest {
    Digest(xxhash_rust::xxh3::xxh3_128(bytes).to_be_bytes())
}

/// How journal and checkpoint name the file `path` below root number `root`.
pub fn path_key(root: u16, path: &[u8]) -> PathKey {
    let mut state = Xxh3Default::new();
    state.update(&root.to_le_bytes());
    state.update(path);
    PathKey(state.digest128().to_be_bytes())
}

/// Digests the payload of one chunk, block by block and in order.
#[derive(Clone)]
pub struct ChunkHasher(Box<Xxh3>);

impl Default for ChunkHasher {
    fn default() -> Self {
        Self(Box::new(Xxh3::new()))
    }
}

impl fmt::Debug for ChunkHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkHasher")
    }
}

impl ChunkHasher {
    /// Takes the next bytes of the payload.
    pub fn update(&mut self, payload: &[u8]) {
        self.0.update(payload);
    }

    /// Takes `len` zero bytes, as in a hole.
    pub fn update_zeros(&mut self, len: u64) {
        const ZEROS: [u8; 16 << 10] = [0; 16 << 10];
        let mut left = len;
        while left > 0 {
            let step = left.min(ZEROS.len() as u64);
            self.0.update(&ZEROS[..step as usize]);
            left -= step;
        }
    }

    /// The chunk digest; the hasher is ready for the next chunk afterwards.
    pub fn finish(&mut self, span: Span) -> Digest {
        self.0.update(&span.offset.to_le_bytes());
        self.0.update(&span.len.to_le_bytes());
        let digest = Digest(self.0.digest128().to_be_bytes());
        self.0.reset();
        digest
    }
}

/// The chunk digest of a chunk that lies in memory whole.
pub fn chunk(payload: &[u8], offset: u64) -> Digest {
    let mut hasher = ChunkHasher::default();
    hasher.update(payload);
    hasher.finish(Span { offset, len: payload.len() as u64 })
}

/// What travels behind a chunk's payload.
pub fn wire_check(digest: Digest, handle: Handle, span: Span) -> Digest {
    let mut bytes = [0; 36];
    bytes[..16].copy_from_slice(&digest.0);
    bytes[16..20].copy_from_slice(&handle.0.to_le_bytes());
    bytes[20..28].copy_from_slice(&span.offset.to_le_bytes());
    bytes[28..].copy_from_slice(&span.len.to_le_bytes());
    of(&bytes)
}

/// The file digest from its chunk digests, in order.
pub fn file<'a>(size: u64, chunks: impl IntoIterator<Item = &'a Digest>) -> Digest {
    let mut state = Xxh3Default::new();
    state.update(b"longhaul file 1");
    state.update(&size.to_le_bytes());
    state.update(&CHUNK_SIZE.to_le_bytes());
    for digest in chunks {
        state.update(&digest.0);
    }
    Digest(state.digest128().to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_bound_to_its_place() {
        let data = vec![7u8; 1000];
        assert_ne!(chunk(&data, 0), chunk(&data, CHUNK_SIZE));
        let span = Span { offset: 0, len: 1000 };
        let digest = chunk(&data, 0);
        assert_ne!(wire_check(digest, Handle(1), span), wire_check(digest, Handle(2), span));
        assert_ne!(wire_check(digest, Handle(1), span), wire_check(digest, Handle(1), Span { offset: 1, len: 1000 }));
    }

    #[test]
    fn pieces_and_holes_make_the_same_digest_as_the_whole() {
        let mut data = vec![3u8; 100_000];
        data[40_000..90_000].fill(0);
        let mut hasher = ChunkHasher::default();
        hasher.update(&data[..40_000]);
        hasher.update_zeros(50_000);
        hasher.update(&data[90_000..]);
        let span = Span { offset: 4096, len: data.len() as u64 };
        assert_eq!(hasher.finish(span), chunk(&data, 4096));
        hasher.update(b"again");
        assert_eq!(hasher.finish(Span { offset: 0, len: 5 }), chunk(b"again", 0));
    }

    #[test]
    fn order_of_chunks_matters() {
        let (a, b) = (of(b"a"), of(b"b"));
        assert_ne!(file(2, [&a, &b]), file(2, [&b, &a]));
        assert_ne!(file(2, [&a, &b]), file(3, [&a, &b]));
    }

    /// Pinned for ever: a change here is a new format version.
    #[test]
    fn golden_values() {
        assert_eq!(chunk(b"longhaul", 0).to_string(), GOLDEN_CHUNK);
        assert_eq!(file(8, [&chunk(b"longhaul", 0)]).to_string(), GOLDEN_FILE);
    }
    const GOLDEN_CHUNK: &str = "25256561a49243704187b3229f9a3355";
    const GOLDEN_FILE: &str = "6a0e1c6751dfb13fd98ee8367d5c8bee";
}
