//! CRC-32C and Adler-32 of a chunk, grown block by block while it is in cache.

use super::worker::Extra;
use crate::checksum::{Combinable, PartHasher};

/// A chunk's sums so far, before its first byte.
pub const EMPTY: (u32, u32) = (0, 1);

fn part(kind: Combinable, bytes: &[u8]) -> u32 {
    let mut hasher = PartHasher::new(kind);
    hasher.update(bytes);
    hasher.finish()
}

/// `sums` of what came before, and then `bytes`.
pub fn extend(sums: (u32, u32), extra: Extra, bytes: &[u8]) -> (u32, u32) {
    let len = bytes.len() as u64;
    let grow = |wanted, kind: Combinable, sum| if wanted { kind.join(sum, part(kind, bytes), len) } else { sum };
    (grow(extra.crc32c, Combinable::Crc32c, sums.0), grow(extra.adler32, Combinable::Adler32, sums.1))
}

/// `sums` of what came before, and then `len` zero bytes.
pub fn extend_zeros(mut sums: (u32, u32), extra: Extra, len: u64) -> (u32, u32) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut left = len;
    while left > 0 {
        let step = left.min(ZEROS.len() as u64);
        sums = extend(sums, extra, &ZEROS[..step as usize]);
        left -= step;
    }
    sums
}
