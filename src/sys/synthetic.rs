//! Bytes of no file: what [`super::FileMode::Synthetic`] reads, without a system call, a disk or a page cache.
//!
//! A pattern that fits a core's cache, repeated, with the place in the file stamped into every page: no two pages of a file
//! are alike, none is zero, and a block from elsewhere has another digest than the one that belongs there.

use std::sync::LazyLock;

/// Bytes of the pattern: a share of a core's own cache, so that reading it costs no memory bandwidth.
const PATTERN: usize = 64 << 10;
/// A stamp at the beginning of each such piece.
const PAGE: u64 = 4096;
/// Bytes of a stamp.
const STAMP: u64 = 8;

static BYTES: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    // SplitMix64: the same in every process, and nothing that a link could compress.
    let mut state: u64 = 0x6c6f_6e67_6861_756c;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..PATTERN / 8).flat_map(|_| next().to_le_bytes()).collect()
});

/// Fills `buf` with the bytes that a synthetic file has at `offset`, the same in every process.
pub fn fill(buf: &mut [u8], offset: u64) {
    let mut at = 0;
    while at < buf.len() {
        let from = ((offset + at as u64) % PATTERN as u64) as usize;
        let len = (PATTERN - from).min(buf.len() - at);
        buf[at..at + len].copy_from_slice(&BYTES[from..from + len]);
        at += len;
    }
    let end = offset + buf.len() as u64;
    let mut page = offset - offset % PAGE;
    while page < end {
        let stamp = (page / PAGE + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let (from, to) = (page.max(offset), (page + STAMP).min(end));
        if from < to {
            let place = (from - offset) as usize..(to - offset) as usize;
            buf[place].copy_from_slice(&stamp[(from - page) as usize..(to - page) as usize]);
        }
        page += PAGE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_depends_on_its_place_alone_and_no_page_comes_twice() {
        let mut whole = vec![0; 5 * PATTERN + 100];
        fill(&mut whole, 0);
        for (from, len) in [(0, 1), (3, 9), (4095, 2), (4090, 5000), (PATTERN - 1, PATTERN + 2), (70_001, 200_000)] {
            let mut part = vec![0xff; len];
            fill(&mut part, from as u64);
            assert!(part == whole[from..from + len], "{len} bytes at {from}");
        }
        let pages: std::collections::HashSet<&[u8]> = whole.chunks(4096).collect();
        assert_eq!(pages.len(), whole.len().div_ceil(4096));
        assert!(whole.chunks(512).all(|sector| sector.iter().any(|byte| *byte != 0)), "nothing is taken for a hole");
        let mut far = vec![0; 4096];
        fill(&mut far, 64 << 30);
        assert_ne!(far, whole[..4096], "the same place of the pattern, elsewhere in the file");
    }
}
