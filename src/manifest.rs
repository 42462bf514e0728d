//! The manifest: what is to move, in immutable segments that are usable as they arrive.
//!
//! A segment is at most [`SEGMENT_MAX_BYTES`] encoded and
//! [`SEGMENT_MAX_ENTRIES`] long. A directory comes before what is in it. Paths are
//! front-coded against the entry before, so that deep trees of long names stay small.
//!
//! Layout, little-endian: `u32 index, u32 count`, then per entry `u8 kind, u16 root, u16 shared, u16 rest, rest bytes,
//! u32 mode, i64 seconds, u32 nanoseconds`, then for a file `u64 size, u8 flags` (bit 0: sparse), for a symlink `u16
//! length, target`.

use crate::checksum::Expected;
use crate::digest::{self, Digest};
use crate::grid::MAX_FILE_SIZE;
use crate::limits::{SEGMENT_MAX_BYTES, SEGMENT_MAX_ENTRIES, SYMLINK_MAX};
use crate::relpath::{PathError, RelPath};

/// A file time: seconds and nanoseconds since 1970, as `stat` gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Mtime {
    /// Seconds; negative before 1970.
    pub secs: i64,
    /// 0 ..= 999,999,999.
    pub nanos: u32,
}

/// What kind of thing an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// Fewer blocks than bytes: it may have holes.
        sparse: bool,
    },
    /// A symbolic link: copied, never followed at the destination.
    Symlink {
        /// Where it points, as stored.
        target: Box<[u8]>,
    },
    /// A FIFO, socket or device: reported and skipped.
    Special,
}

/// One name of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which of the transfer's source roots it belongs to.
    pub root: u16,
    /// Below that root; empty for the root itself.
    pub path: RelPath,
    /// Directory, file, …
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky (07777).
    pub mode: u32,
    /// Modification time.
    pub mtime: Mtime,
}

/// Entries that travel together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Counts from 0 within a session.
    pub index: u32,
    /// In scan order.
    pub entries: Vec<Entry>,
}

/// Why a segment was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It ended early or had bytes behind its end.
    #[error("the segment is cut off or has bytes behind its end")]
    Length,
    /// A number is out of its range.
    #[error("the segment's field `{0}` is out of range")]
    Range(&'static str),
    /// A path that no tree can have.
    #[error("a path in the manifest is refused: {0}")]
    Path(#[from] PathError),
}

/// Builds segments of bounded size.
#[derive(Debug, Default)]
pub struct SegmentBuilder {
    bytes: Vec<u8>,
    count: u32,
    index: u32,
    last: Vec<u8>,
}

impl SegmentBuilder {
    /// Adds an entry; `Some` is a full segment that is to be sent first.
    pub fn push(&mut self, entry: &Entry) -> Option<Vec<u8>> {
        // The worst entry: path and symlink target at their longest.
        let worst = 32 + entry.path.as_bytes().len() + SYMLINK_MAX;
        let full = (self.bytes.len() + worst > SEGMENT_MAX_BYTES || self.count as usize == SEGMENT_MAX_ENTRIES)
            .then(|| self.finish())
            .flatten();
        if self.bytes.is_empty() {
            self.bytes.extend_from_slice(&[0; 8]);
            self.last.clear();
        }
        let path = entry.path.as_bytes();
        let shared = path.iter().zip(&self.last).take_while(|(a, b)| a == b).count();
        let kind = match entry.kind {
            EntryKind::Dir => 0u8,
            EntryKind::File { .. } => 1,
            EntryKind::Symlink { .. } => 2,
            EntryKind::Special => 3,
        };
        let out = &mut self.bytes;
        out.push(kind);
        out.extend_from_slice(&entry.root.to_le_bytes());
        out.extend_from_slice(&(shared as u16).to_le_bytes());
        out.extend_from_slice(&((path.len() - shared) as u16).to_le_bytes());
        out.extend_from_slice(&path[shared..]);
        out.extend_from_slice(&entry.mode.to_le_bytes());
        out.extend_from_slice(&entry.mtime.secs.to_le_bytes());
        out.extend_from_slice(&entry.mtime.nanos.to_le_bytes());
        match &entry.kind {
            EntryKind::File { size, sparse } => {
                out.extend_from_slice(&size.to_le_bytes());
                out.push(u8::from(*sparse));
            }
            EntryKind::Symlink { target } => {
                out.extend_from_slice(&(target.len() as u16).to_le_bytes());
                out.extend_from_slice(target);
            }
            EntryKind::Dir | EntryKind::Special => {}
        }
        self.last.clear();
        self.last.extend_from_slice(path);
        self.count += 1;
        full
    }

    /// How many entries wait for the next segment.
    pub fn pending(&self) -> usize {
        self.count as usize
    }

    /// What has been pushed since the last segment; `None` if nothing.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        if self.count == 0 {
            return None;
        }
        self.bytes[..4].copy_from_slice(&self.index.to_le_bytes());
        self.bytes[4..8].copy_from_slice(&self.count.to_le_bytes());
        self.index += 1;
        self.count = 0;
        Some(std::mem::take(&mut self.bytes))
    }
}

/// The digest that a segment is known by.
pub fn segment_digest(encoded: &[u8]) -> Digest {
    digest::of(encoded)
}

/// A bounds-checked reader of little-endian fields.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], ManifestError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(ManifestError::Length)?;
        self.0 = rest;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ManifestError> {
        Ok(self.bytes(N)?.try_into().expect("bytes(N) has N bytes"))
    }
    fn u8(&mut self) -> Result<u8, ManifestError> {
        Ok(self.array::<1>()?[0])
    }
    fn u16(&mut self) -> Result<u16, ManifestError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, ManifestError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, ManifestError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

/// Reads a segment entry by entry: decoded, long names in deep trees take a hundred times the bytes that they have
/// encoded, so that not all of them should be in memory at once.
#[derive(Debug)]
pub struct SegmentReader {
    encoded: Vec<u8>,
    at: usize,
    index: u32,
    left: usize,
    path: Vec<u8>,
}

impl SegmentReader {
    /// Begins with a segment that a peer sent: every length and number is checked before it is used.
    pub fn open(encoded: Vec<u8>) -> Result<Self, ManifestError> {
        if encoded.len() > SEGMENT_MAX_BYTES {
            return Err(ManifestError::Range("segment length"));
        }
        let mut fields = Fields(&encoded);
        let index = fields.u32()?;
        let left = fields.u32()? as usize;
        if left > SEGMENT_MAX_ENTRIES {
            return Err(ManifestError::Range("count"));
        }
        let at = encoded.len() - fields.0.len();
        Ok(Self { encoded, at, index, left, path: Vec::new() })
    }

    /// Counts from 0 within a session.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Entries not read yet.
    pub fn left(&self) -> usize {
        self.left
    }

    /// The next entry; `None` after the last, with nothing behind it.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ManifestError> {
        let mut fields = Fields(&self.encoded[self.at..]);
        if self.left == 0 {
            return if fields.0.is_empty() { Ok(None) } else { Err(ManifestError::Length) };
        }
        let entry = decode_entry(&mut fields, &mut self.path)?;
        self.at = self.encoded.len() - fields.0.len();
        self.left -= 1;
        Ok(Some(entry))
    }
}

/// One entry; `path` is that of the entry before and becomes this one's.
fn decode_entry(fields: &mut Fields<'_>, path: &mut Vec<u8>) -> Result<Entry, ManifestError> {
    let kind = fields.u8()?;
    let root = fields.u16()?;
    let shared = usize::from(fields.u16()?);
    if shared > path.len() {
        return Err(ManifestError::Range("shared"));
    }
    let rest = usize::from(fields.u16()?);
    path.truncate(shared);
    path.extend_from_slice(fields.bytes(rest)?);
    let mode = fields.u32()?;
    if mode > 0o7777 {
        return Err(ManifestError::Range("mode"));
    }
    let mtime = Mtime { secs: fields.u64()? as i64, nanos: fields.u32()? };
    if mtime.nanos > 999_999_999 {
        return Err(ManifestError::Range("nanoseconds"));
    }
    let kind = match kind {
        0 => EntryKind::Dir,
        1 => {
            let size = fields.u64()?;
            let flags = fields.u8()?;
            if size > MAX_FILE_SIZE || flags > 1 {
                return Err(ManifestError::Range("size"));
            }
            EntryKind::File { size, sparse: flags == 1 }
        }
        2 => {
            let len = usize::from(fields.u16()?);
            if len == 0 || len > SYMLINK_MAX {
                return Err(ManifestError::Range("symlink length"));
            }
            let target = fields.bytes(len)?;
            if target.contains(&0) {
                return Err(ManifestError::Path(PathError::Nul));
            }
            EntryKind::Symlink { target: target.into() }
        }
        3 => EntryKind::Special,
        _ => return Err(ManifestError::Range("kind")),
    };
    Ok(Entry { root, path: RelPath::new(path)?, kind, mode, mtime })
}

impl Segment {
    /// Reads a whole segment that a peer sent.
    pub fn decode(encoded: &[u8]) -> Result<Self, ManifestError> {
        let mut reader = SegmentReader::open(encoded.to_vec())?;
        let mut entries = Vec::with_capacity(reader.left());
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        Ok(Self { index: reader.index(), entries })
    }
}

/// One name of a finished transfer, as `cp --write-manifest` records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRow {
    /// Below DST; below DST's parent when one file or symlink became DST, so that it is never empty for those.
    pub path: RelPath,
    /// What it is and what is in it.
    pub kind: RowKind,
    /// Permission bits at the source, 07777.
    pub mode: u32,
    /// At the source.
    pub mtime: Mtime,
}

/// What a [`ManifestRow`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowKind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// The file digest.
        digest: Digest,
        /// Those that were asked for.
        checksums: Vec<Expected>,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as stored.
        target: Box<[u8]>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry {
            root: 0,
            path: RelPath::new(path.as_bytes()).unwrap(),
            kind,
            mode: 0o644,
            mtime: Mtime { secs: -5, nanos: 7 },
        }
    }

    #[test]
    fn segments_come_back_as_they_went() {
        let entries = vec![
            entry("", EntryKind::Dir),
            entry("a", EntryKind::Dir),
            entry("a/file", EntryKind::File { size: 9 << 30, sparse: true }),
            entry("a/link", EntryKind::Symlink { target: (*b"../x\xff").into() }),
            entry("b", EntryKind::Special),
        ];
        let mut builder = SegmentBuilder::default();
        for e in &entries {
            assert!(builder.push(e).is_none());
        }
        let bytes = builder.finish().unwrap();
        assert_eq!(Segment::decode(&bytes).unwrap(), Segment { index: 0, entries });
        for cut in 0..bytes.len() {
            assert!(Segment::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn long_names_in_depth_stay_small_and_segments_bounded() {
        let mut builder = SegmentBuilder::default();
        let dir: String = (0..14).map(|i| format!("{}{i:02}/", "d".repeat(250))).collect();
        let (mut total, mut segments) = (0, Vec::new());
        for i in 0..20_000 {
            let name = format!("{dir}{}{i:06}", "n".repeat(249));
            segments.extend(builder.push(&entry(&name, EntryKind::File { size: 0, sparse: false })));
        }
        segments.extend(builder.finish());
        for (i, bytes) in segments.iter().enumerate() {
            assert!(bytes.len() <= SEGMENT_MAX_BYTES);
            total += bytes.len();
            assert_eq!(Segment::decode(bytes).unwrap().index as usize, i);
        }
        assert!(total < 20_000 * 60, "front coding keeps a 3.8 KiB path at some 40 bytes, not {}", total / 20_000);
    }
}
