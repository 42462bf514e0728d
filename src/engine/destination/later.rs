//! Names whose turn comes at the end: directories, whose times change while they are filled, and symlinks. A tree may have
//! millions of them, and a peer may claim as many as it likes, each 4 KiB long: what is more than a little lies on disk.

use crate::disk::DirHandle;
use crate::manifest::{Entry, Segment, SegmentBuilder};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Encoded names that are kept in memory before they go to disk.
const KEPT_BYTES: usize = 4 << 20;

/// See the module.
pub(super) struct Later {
    builder: SegmentBuilder,
    /// Segments in memory, behind those on disk.
    kept: Vec<Vec<u8>>,
    kept_bytes: usize,
    /// Where a nameless file can be made; `None` once that has failed, or for a dry run.
    scratch: Option<DirHandle>,
    file: Option<File>,
    /// Where each segment on disk ends.
    ends: Vec<u64>,
}

impl Later {
    /// Nothing yet; `scratch` is the directory of the transfer's own state.
    pub(super) fn new(scratch: Option<DirHandle>) -> Self {
        let (builder, kept) = (SegmentBuilder::default(), Vec::new());
        Self { builder, kept, kept_bytes: 0, scratch, file: None, ends: Vec::new() }
    }

    /// Adds a name.
    pub(super) fn push(&mut self, entry: &Entry) {
        let full = self.builder.push(entry);
        self.keep(full);
    }

    /// Nothing more comes.
    pub(super) fn finish(&mut self) {
        let last = self.builder.finish();
        self.keep(last);
    }

    fn keep(&mut self, segment: Option<Vec<u8>>) {
        let Some(segment) = segment else { return };
        self.kept_bytes += segment.len();
        self.kept.push(segment);
        if self.kept_bytes > KEPT_BYTES && self.spill().is_none() {
            // No nameless files here, or no room: it stays in memory.
            self.scratch = None;
        }
    }

    fn spill(&mut self) -> Option<()> {
        let scratch = self.scratch.as_ref()?;
        if self.file.is_none() {
            self.file = Some(scratch.nameless_file().ok()?);
        }
        let file = self.file.as_ref()?;
        let mut end = self.ends.last().copied().unwrap_or(0);
        let mut ends = Vec::new();
        for segment in &self.kept {
            file.write_all_at(segment, end).ok()?;
            end += segment.len() as u64;
            ends.push(end);
        }
        self.ends.extend(ends);
        self.kept.clear();
        self.kept_bytes = 0;
        Some(())
    }

    /// How many segments there are.
    pub(super) fn segments(&self) -> usize {
        self.ends.len() + self.kept.len()
    }

    /// Segment `index`; an error where the disk does not give back what was written to it.
    pub(super) fn segment(&self, index: usize) -> std::io::Result<Segment> {
        let damaged = |error| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        if let Some(bytes) = index.checked_sub(self.ends.len()).and_then(|at| self.kept.get(at)) {
            return Segment::decode(bytes).map_err(damaged);
        }
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        let mut bytes = vec![0; (self.ends[index] - start) as usize];
        let file = self.file.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
        file.read_exact_at(&mut bytes, start)?;
        Segment::decode(&bytes).map_err(damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Root;
    use crate::manifest::{EntryKind, Mtime};
    use crate::relpath::RelPath;

    #[test]
    fn names_come_back_in_order_from_memory_and_from_disk() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let entry = |number: u32| Entry {
            root: 0,
            path: RelPath::new(format!("{number:0>200}").as_bytes()).unwrap(),
            kind: EntryKind::Symlink { target: vec![b't'; 1000].into() },
            mode: 0o777,
            mtime: Mtime::default(),
        };
        for scratch in [None, Some(root.handle().clone())] {
            let on_disk = scratch.is_some();
            let mut later = Later::new(scratch);
            (0..20_000).for_each(|number| later.push(&entry(number)));
            later.finish();
            assert_eq!(later.ends.is_empty(), !on_disk);
            assert!(later.kept_bytes <= KEPT_BYTES || !on_disk, "{}", later.kept_bytes);
            let entries = (0..later.segments()).flat_map(|index| later.segment(index).unwrap().entries);
            assert!(entries.eq((0..20_000).map(entry)));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it has no name");
    }
}
