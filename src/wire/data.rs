//! Bodies of the frames on data streams.
//!
//! - Want, Unwant: up to [`WANT_RUNS_MAX`] runs of `handle u32 | first u32 | count u32 | flags u32` (bit 0: digests only).
//! - PackWant: the pack's number is the frame's handle; `count u16`, then per file `handle u32 | root u16 | size u32 |
//!   seconds i64 | nanoseconds u32 | path (u16 length)`.
//! - Pack: per file `handle u32 | status u8 | length u32 | wire check 16 | content`; the last pack of a want has CHUNK_END.
//! - Data, Zero: payload or `u64` length; with CHUNK_END the wire check of the chunk is behind it.
//! - Digest: the chunk digest. Nak: `status u8`, then a sentence.

use super::{Reader, WireError, put_short};
use crate::digest::{DIGEST_LEN, Digest};
use crate::grid::CHUNK_SIZE;
use crate::ids::Handle;
use crate::limits::{PACK_FILE_MAX, PACK_MAX_FILES, PACK_WANT_MAX_BYTES};
use crate::manifest::Mtime;
use crate::relpath::RelPath;

/// Runs in one Want or Unwant frame.
pub const WANT_RUNS_MAX: usize = 256;
/// Bytes of one run.
const RUN_LEN: usize = 16;

/// Consecutive chunks of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The file.
    pub handle: Handle,
    /// First chunk.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
    /// Only their digests.
    pub digests_only: bool,
}

/// Walk 7: encodes runs as the body of a Want or Unwant.
pub fn encode_runs(runs: &[Run]) -> Vec<u8> {
    assert!(runs.len() <= WANT_RUNS_MAX);
    let mut out = Vec::with_capacity(runs.len() * RUN_LEN);
    for run in runs {
        out.extend_from_slice(&run.handle.0.to_le_bytes());
        out.extend_from_slice(&run.first.to_le_bytes());
        out.extend_from_slice(&run.count.to_le_bytes());
        out.extend_from_slice(&u32::from(run.digests_only).to_le_bytes());
    }
    out
}

/// Reads the body of a Want or Unwant.
pub fn decode_runs(body: &[u8]) -> Result<Vec<Run>, WireError> {
    if !body.len().is_multiple_of(RUN_LEN) || body.len() > WANT_RUNS_MAX * RUN_LEN {
        return Err(WireError::Length("want"));
    }
    let mut fields = Reader::new(body, "want");
    let mut runs = Vec::with_capacity(body.len() / RUN_LEN);
    while !fields.is_empty() {
        let (handle, first, count, flags) = (Handle(fields.u32()?), fields.u32()?, fields.u32()?, fields.u32()?);
        if count == 0 || first.checked_add(count).is_none() {
            return Err(WireError::Range("run"));
        }
        if flags > 1 {
            return Err(WireError::Range("flags"));
        }
        runs.push(Run { handle, first, count, digests_only: flags == 1 });
    }
    Ok(runs)
}

/// One small file asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackItem {
    /// The destination's number for it.
    pub handle: Handle,
    /// Which root of the offer.
    pub root: u16,
    /// Below that root.
    pub path: RelPath,
    /// Expected size, at most [`PACK_FILE_MAX`].
    pub size: u32,
    /// Expected modification time.
    pub mtime: Mtime,
}

impl PackItem {
    /// Bytes it takes in a PackWant.
    pub fn encoded_len(&self) -> usize {
        24 + self.path.as_bytes().len()
    }
}

/// Encodes the body of a PackWant.
pub fn encode_pack_want(items: &[PackItem]) -> Vec<u8> {
    assert!(items.len() <= PACK_MAX_FILES);
    let mut out = Vec::with_capacity(2 + items.iter().map(PackItem::encoded_len).sum::<usize>());
    out.extend_from_slice(&(items.len() as u16).to_le_bytes());
    for item in items {
        out.extend_from_slice(&item.handle.0.to_le_bytes());
        out.extend_from_slice(&item.root.to_le_bytes());
        out.extend_from_slice(&item.size.to_le_bytes());
        out.extend_from_slice(&item.mtime.secs.to_le_bytes());
        out.extend_from_slice(&item.mtime.nanos.to_le_bytes());
        put_short(&mut out, item.path.as_bytes());
    }
    out
}

/// Reads the body of a PackWant.
pub fn decode_pack_want(body: &[u8]) -> Result<Vec<PackItem>, WireError> {
    if body.len() > PACK_WANT_MAX_BYTES {
        return Err(WireError::Range("pack want length"));
    }
    let mut fields = Reader::new(body, "pack want");
    let count = usize::from(fields.u16()?);
    if count == 0 || count > PACK_MAX_FILES {
        return Err(WireError::Range("count"));
    }
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        let handle = Handle(fields.u32()?);
        let root = fields.u16()?;
        let size = fields.u32()?;
        let mtime = Mtime { secs: fields.u64()? as i64, nanos: fields.u32()? };
        if u64::from(size) > PACK_FILE_MAX {
            return Err(WireError::Range("size"));
        }
        items.push(PackItem { handle, root, path: RelPath::new(fields.short()?)?, size, mtime });
    }
    fields.end()?;
    Ok(items)
}

/// Why a source cannot give a file or a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Here it is.
    Ok = 0,
    /// It is another version than the manifest said.
    Changed = 1,
    /// It is not there any more.
    Gone = 2,
    /// It may not be read.
    Denied = 3,
    /// Reading failed.
    Failed = 4,
    /// It was no longer wanted when its turn came. Every Want has an answer, in the order of the Wants.
    Unwanted = 5,
}

impl Status {
    /// From the wire.
    pub fn from_byte(byte: u8) -> Result<Self, WireError> {
        use Status::*;
        [Ok, Changed, Gone, Denied, Failed, Unwanted]
            .into_iter()
            .find(|s| *s as u8 == byte)
            .ok_or(WireError::Range("status"))
    }
}

/// Bytes before the content of each file in a Pack.
pub const PACK_ENTRY_HEAD: usize = 4 + 1 + 4 + DIGEST_LEN;

/// One file in a Pack; `content` is a range of the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackEntry {
    /// Which file.
    pub handle: Handle,
    /// Whether there is content.
    pub status: Status,
    /// The wire check over the content as chunk 0.
    pub check: Digest,
    /// Where in the body the content lies.
    pub content: std::ops::Range<usize>,
}

/// Writes the head of an entry; the content of `len` bytes follows it.
pub fn put_pack_entry(out: &mut [u8], handle: Handle, status: Status, len: u32, check: Digest) {
    out[..4].copy_from_slice(&handle.0.to_le_bytes());
    out[4] = status as u8;
    out[5..9].copy_from_slice(&len.to_le_bytes());
    out[9..25].copy_from_slice(&check.0);
}

/// Reads the body of a Pack.
pub fn decode_pack(body: &[u8]) -> Result<Vec<PackEntry>, WireError> {
    let mut fields = Reader::new(body, "pack");
    let mut entries = Vec::new();
    let mut at = 0;
    while !fields.is_empty() {
        if entries.len() == PACK_MAX_FILES {
            return Err(WireError::Range("count"));
        }
        let handle = Handle(fields.u32()?);
        let status = Status::from_byte(fields.u8()?)?;
        let len = fields.u32()? as usize;
        let check = Digest(fields.array()?);
        if len as u64 > PACK_FILE_MAX {
            return Err(WireError::Range("length"));
        }
        fields.bytes(len)?;
        at += PACK_ENTRY_HEAD;
        entries.push(PackEntry { handle, status, check, content: at..at + len });
        at += len;
    }
    Ok(entries)
}

/// Splits the body of a Data frame into payload length and, at a chunk's end, wire check.
pub fn split_data(body: &[u8], ends_chunk: bool) -> Result<(usize, Option<Digest>), WireError> {
    if !ends_chunk {
        return Ok((body.len(), None));
    }
    let payload = body.len().checked_sub(DIGEST_LEN).ok_or(WireError::Length("data"))?;
    Ok((payload, Some(Digest(body[payload..].try_into().expect("the rest has DIGEST_LEN bytes")))))
}

/// Reads the body of a Zero frame: its length and, at a chunk's end, the wire check.
pub fn decode_zero(body: &[u8], ends_chunk: bool) -> Result<(u64, Option<Digest>), WireError> {
    let mut fields = Reader::new(body, "zero");
    let len = fields.u64()?;
    if len == 0 || len > CHUNK_SIZE {
        return Err(WireError::Range("length"));
    }
    let check = if ends_chunk { Some(Digest(fields.array()?)) } else { None };
    fields.end()?;
    Ok((len, check))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wants_come_back_and_borders_are_refused() {
        let runs = [
            Run { handle: Handle(1), first: 0, count: 4, digests_only: false },
            Run { handle: Handle(u32::MAX), first: 7, count: 1, digests_only: true },
        ];
        let body = encode_runs(&runs);
        assert_eq!(decode_runs(&body).unwrap(), runs);
        assert!(decode_runs(&body[..17]).is_err());
        for (first, count) in [(0u32, 0u32), (u32::MAX, 1), (1, u32::MAX)] {
            let bad = encode_runs(&[Run { handle: Handle(1), first, count, digests_only: false }]);
            assert_eq!(decode_runs(&bad), Err(WireError::Range("run")), "{first}+{count}");
        }
    }

    #[test]
    fn packs_come_back_and_lengths_are_checked() {
        let item = PackItem {
            handle: Handle(3),
            root: 1,
            path: RelPath::new(b"a/b\xff").unwrap(),
            size: 5,
            mtime: Mtime { secs: 1, nanos: 2 },
        };
        let want = encode_pack_want(std::slice::from_ref(&item));
        assert_eq!(want.len(), 2 + item.encoded_len());
        assert_eq!(decode_pack_want(&want).unwrap(), [item]);
        for cut in 0..want.len() {
            assert!(decode_pack_want(&want[..cut]).is_err());
        }
        let mut body = vec![0; PACK_ENTRY_HEAD + 5];
        put_pack_entry(&mut body, Handle(3), Status::Ok, 5, crate::digest::of(b"x"));
        body[PACK_ENTRY_HEAD..].copy_from_slice(b"hello");
        let entries = decode_pack(&body).unwrap();
        assert_eq!(&body[entries[0].content.clone()], b"hello");
        put_pack_entry(&mut body, Handle(3), Status::Ok, 6, crate::digest::of(b"x"));
        assert!(decode_pack(&body).is_err());
        put_pack_entry(&mut body, Handle(3), Status::Ok, u32::MAX, crate::digest::of(b"x"));
        assert!(decode_pack(&body).is_err());
    }
}
