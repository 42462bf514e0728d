//! A set of chunk indices with their digests, 16 bytes and a little per chunk in any order of arrival.

use crate::digest::Digest;
use std::collections::BTreeMap;

/// Chunks of one page: the bits of a word.
const PAGE: u32 = u64::BITS;

/// Chunk indices that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexRun {
    /// The first index.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
}

/// Which chunks are there, and their digests. A page holds only the digests of present chunks (found by counting
/// bits), so neither a sparse nor a descending order of arrival costs memory or quadratic copying.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChunkSet {
    pages: BTreeMap<u32, Page>,
    len: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Page {
    present: u64,
    digests: Vec<Digest>,
}

impl Page {
    fn rank(&self, bit: u32) -> usize {
        (self.present & ((1u64 << bit) - 1)).count_ones() as usize
    }
}

impl ChunkSet {
    /// How many chunks.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts a chunk in; a digest that was there is replaced. `true` if it is new.
    pub fn insert(&mut self, index: u32, digest: Digest) -> bool {
        let page = self.pages.entry(index / PAGE).or_default();
        let bit = index % PAGE;
        let at = page.rank(bit);
        if page.present >> bit & 1 == 1 {
            page.digests[at] = digest;
            return false;
        }
        page.present |= 1 << bit;
        page.digests.insert(at, digest);
        if page.present == u64::MAX {
            page.digests.shrink_to_fit();
        }
        self.len += 1;
        true
    }

    /// Takes a chunk out.
    pub fn remove(&mut self, index: u32) -> Option<Digest> {
        let page = self.pages.get_mut(&(index / PAGE))?;
        let bit = index % PAGE;
        if page.present >> bit & 1 == 0 {
            return None;
        }
        let digest = page.digests.remove(page.rank(bit));
        page.present &= !(1 << bit);
        if page.present == 0 {
            self.pages.remove(&(index / PAGE));
        }
        self.len -= 1;
        Some(digest)
    }

    /// The digest of a chunk that is there.
    pub fn get(&self, index: u32) -> Option<Digest> {
        let page = self.pages.get(&(index / PAGE))?;
        let bit = index % PAGE;
        (page.present >> bit & 1 == 1).then(|| page.digests[page.rank(bit)])
    }

    /// Whether a chunk is there.
    pub fn contains(&self, index: u32) -> bool {
        self.pages.get(&(index / PAGE)).is_some_and(|page| page.present >> (index % PAGE) & 1 == 1)
    }

    /// Everything in rising order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Digest)> {
        self.pages.iter().flat_map(|(number, page)| {
            let bits = (0..PAGE).filter(|bit| page.present >> bit & 1 == 1);
            bits.zip(&page.digests).map(move |(bit, digest)| (number * PAGE + bit, digest))
        })
    }

    /// The largest index that is there.
    pub fn last(&self) -> Option<u32> {
        let (number, page) = self.pages.last_key_value()?;
        Some(number * PAGE + (PAGE - 1 - page.present.leading_zeros()))
    }

    /// What is there, as runs in rising order.
    pub fn runs(&self) -> Vec<IndexRun> {
        join(self.iter().map(|(index, _)| IndexRun { first: index, count: 1 }))
    }

    /// What of the chunks `0..chunks` is not there, as runs in rising order.
    pub fn missing(&self, chunks: u32) -> Vec<IndexRun> {
        let mut gaps = Vec::new();
        let mut next = 0;
        for run in self.runs() {
            let end = run.first.min(chunks);
            if next < end {
                gaps.push(IndexRun { first: next, count: end - next });
            }
            next = next.max(run.first.saturating_add(run.count));
        }
        if next < chunks {
            gaps.push(IndexRun { first: next, count: chunks - next });
        }
        gaps
    }

    /// The digests of the chunks `0..chunks`, in order; `None` while one is missing.
    pub fn complete(&self, chunks: u32) -> Option<Vec<Digest>> {
        if self.len < chunks || (chunks > 0 && !self.contains(chunks - 1)) {
            return None;
        }
        let all: Vec<Digest> =
            self.iter().take_while(|(index, _)| *index < chunks).map(|(_, digest)| *digest).collect();
        (all.len() == chunks as usize).then_some(all)
    }
}

fn join(singles: impl Iterator<Item = IndexRun>) -> Vec<IndexRun> {
    let mut runs: Vec<IndexRun> = Vec::new();
    for single in singles {
        match runs.last_mut() {
            Some(run) if run.first + run.count == single.first => run.count += 1,
            _ => runs.push(single),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn digest(seed: u32) -> Digest {
        crate::digest::of(&seed.to_le_bytes())
    }

    proptest! {
        #[test]
        fn behaves_as_a_map(ops in prop::collection::vec((any::<bool>(), 0u32..300, any::<u32>()), 0..400)) {
            let (mut set, mut model) = (ChunkSet::default(), BTreeMap::new());
            for (add, index, seed) in ops {
                if add {
                    prop_assert_eq!(set.insert(index, digest(seed)), model.insert(index, digest(seed)).is_none());
                } else {
                    prop_assert_eq!(set.remove(index), model.remove(&index));
                }
                prop_assert_eq!(set.get(index), model.get(&index).copied());
            }
            prop_assert_eq!(set.len() as usize, model.len());
            prop_assert_eq!(set.last(), model.keys().last().copied());
            let listed: Vec<_> = set.iter().map(|(i, d)| (i, *d)).collect();
            prop_assert_eq!(listed, model.iter().map(|(i, d)| (*i, *d)).collect::<Vec<_>>());
            let mut seen: Vec<u32> = set.missing(300).iter().flat_map(|r| r.first..r.first + r.count).collect();
            prop_assert!(seen.iter().all(|i| !model.contains_key(i)));
            seen.extend(set.runs().iter().flat_map(|r| r.first..r.first + r.count));
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..300).collect::<Vec<_>>());
        }
    }

    #[test]
    fn complete_wants_every_chunk_and_costs_little_memory() {
        let mut set = ChunkSet::default();
        assert_eq!(set.complete(0), Some(vec![]));
        for index in (0..10_000).rev() {
            assert_eq!(set.complete(10_000), None);
            set.insert(index, digest(index));
        }
        assert_eq!(set.complete(10_000).unwrap()[77], digest(77));
        let digests: usize = set.pages.values().map(|p| p.digests.capacity() * 16).sum();
        assert!(digests <= 10_000 * 17 + 1024, "{digests}");
        assert_eq!(set.pages.len(), 10_000usize.div_ceil(64));
    }
}
