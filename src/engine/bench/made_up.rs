//! What a synthetic file is, told without a transfer: the two must agree.

use crate::digest::{self, ChunkHasher, Digest};
use crate::grid::Grid;
use crate::sys::synthetic;
use rayon::prelude::*;

/// Bytes made at once: what stays in a core's cache.
const PIECE: u64 = 256 << 10;

/// The file digest of a synthetic file of `size` bytes. Takes a core about 0.1 s a GiB, and all cores help.
pub fn synthetic_digest(size: u64) -> Digest {
    let grid = Grid::new(size).expect("a bench's file has a size that files have");
    let chunk = |buffer: &mut Vec<u8>, index| {
        let span = grid.span(index).expect("below chunks()");
        let (mut hasher, mut at) = (ChunkHasher::default(), span.offset);
        while at < span.end() {
            buffer.resize(PIECE.min(span.end() - at) as usize, 0);
            synthetic::fill(buffer, at);
            hasher.update(buffer);
            at += buffer.len() as u64;
        }
        hasher.finish(span)
    };
    let chunks: Vec<Digest> = (0..grid.chunks()).into_par_iter().map_init(Vec::new, chunk).collect();
    digest::file(size, &chunks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::CHUNK_SIZE;

    #[test]
    fn it_is_the_digest_of_the_bytes() {
        for size in [1, 5_000, CHUNK_SIZE, 2 * CHUNK_SIZE + 70_001] {
            let mut bytes = vec![0; size as usize];
            synthetic::fill(&mut bytes, 0);
            let chunks: Vec<Digest> = bytes
                .chunks(CHUNK_SIZE as usize)
                .enumerate()
                .map(|(index, bytes)| digest::chunk(bytes, index as u64 * CHUNK_SIZE))
                .collect();
            assert_eq!(synthetic_digest(size), digest::file(size, &chunks), "{size}");
        }
    }
}
