//! The chunk grid: the only arithmetic between a chunk's index and its bytes.
//!
//! The grid is a constant of the format version, so that chunk digests of one file agree between any two agents.

/// Bytes in a chunk, the unit of digest, checkpoint and re-send.
pub const CHUNK_SIZE: u64 = 4 << 20;

/// The largest file: chunk indices are 32 bits wide (16 PiB).
pub const MAX_FILE_SIZE: u64 = CHUNK_SIZE << 32;

/// A byte range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Span {
    /// One past the last byte. Spans are made by [`Grid`], which keeps this below [`MAX_FILE_SIZE`].
    pub fn end(self) -> u64 {
        self.offset + self.len
    }
}

/// The chunks of a file of a given size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    size: u64,
}

impl Grid {
    /// The grid of a file of `size` bytes; `None` above [`MAX_FILE_SIZE`].
    pub fn new(size: u64) -> Option<Self> {
        (size <= MAX_FILE_SIZE).then_some(Self { size })
    }

    /// The file's size in bytes.
    pub fn size(self) -> u64 {
        self.size
    }

    /// How many chunks there are; 0 for an empty file.
    pub fn chunks(self) -> u32 {
        // MAX_FILE_SIZE / CHUNK_SIZE is 2^32: the very last file size would need one more bit, and saturates.
        self.size.div_ceil(CHUNK_SIZE).min(u64::from(u32::MAX)) as u32
    }

    /// The bytes of chunk `index`; `None` past the end.
    pub fn span(self, index: u32) -> Option<Span> {
        (index < self.chunks()).then(|| {
            let offset = u64::from(index) * CHUNK_SIZE;
            Span { offset, len: CHUNK_SIZE.min(self.size - offset) }
        })
    }

    /// The chunk that holds byte `offset`.
    pub fn index_of(offset: u64) -> u32 {
        (offset / CHUNK_SIZE) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_tile_the_file() {
        for size in [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 10 * CHUNK_SIZE + 7] {
            let grid = Grid::new(size).unwrap();
            let mut at = 0;
            for index in 0..grid.chunks() {
                let span = grid.span(index).unwrap();
                assert_eq!((span.offset, Grid::index_of(span.offset)), (at, index));
                at = span.end();
            }
            assert_eq!(at, size);
            assert_eq!(grid.span(grid.chunks()), None);
        }
        assert!(Grid::new(MAX_FILE_SIZE + 1).is_none());
    }
}
