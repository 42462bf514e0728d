//! The records of version 1 and their bodies.
//!
//! ```text
//! 1 Header      transfer 16, agent 16, epoch 8, created 8, source (2 + n), destination (2 + n)
//! 2 Epoch       epoch 8
//! 3 File        key 16, root 2, path (2 + n), size 8, mtime 8 + 4, mode 4
//! 4 Chunks      key 16, runs 4, then for each: first 4, count 4, digests 16 × count
//! 5 Forget      key 16, indices 4 (0: all), then for each: index 4
//! 6 Publishing  files 4, then for each: key 16, inode 8, digest 16, size 8, mtime 8 + 4
//! 7 Done        files 4, then for each: key 16, digest 16
//! 8 End         verdict 1
//! ```

use crate::digest::{self, DIGEST_LEN, Digest};
use crate::grid::MAX_FILE_SIZE;
use crate::ids::{AgentId, Epoch, PathKey, TransferId};
use crate::manifest::Mtime;
use crate::relpath::RelPath;

/// Bytes of a source description.
pub const SOURCE_MAX: usize = 1024;
/// Chunk digests of one Chunks record, and indices of one Forget record: 64 GiB of chunks, more than one commit holds.
pub const DIGESTS_PER_RECORD: usize = 16 << 10;
/// Files of one Publishing record.
pub const PUBLISHING_PER_RECORD: usize = 4 << 10;
/// Files of one Done record.
pub const DONE_PER_RECORD: usize = 8 << 10;
/// The largest body. Recovery refuses longer ones before it looks at them.
pub const BODY_MAX: usize = 512 << 10;

const RUN_BYTES: usize = 8;
const PUBLISHING_BYTES: usize = 16 + 8 + 16 + 8 + 12;
const DONE_BYTES: usize = 16 + 16;

const _: () = {
    // The worst Chunks record has one digest in each run.
    assert!(20 + DIGESTS_PER_RECORD * (RUN_BYTES + DIGEST_LEN) <= BODY_MAX);
    assert!(4 + PUBLISHING_PER_RECORD * PUBLISHING_BYTES <= BODY_MAX);
    assert!(4 + DONE_PER_RECORD * DONE_BYTES <= BODY_MAX);
    assert!(64 + SOURCE_MAX + crate::relpath::PATH_MAX <= BODY_MAX);
};

/// What the journal is about; the first record, and only the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The transfer, the same for every resume.
    pub transfer: TransferId,
    /// The source agent.
    pub agent: AgentId,
    /// The first epoch.
    pub epoch: Epoch,
    /// Unix seconds.
    pub created: u64,
    /// The source in words, escaped by the caller; cut at [`SOURCE_MAX`] bytes when written.
    pub source: String,
    /// DST below the destination's base.
    pub destination: RelPath,
}

/// A file of several chunks begins, or begins again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// [`digest::path_key`] of root and path; recovery checks it.
    pub key: PathKey,
    /// Number of the source root.
    pub root: u16,
    /// Below that root.
    pub path: RelPath,
    /// Bytes.
    pub size: u64,
    /// At the source.
    pub mtime: Mtime,
    /// Permission bits, 07777.
    pub mode: u32,
}

/// Chunks that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Index of the first.
    pub first: u32,
    /// Their digests; never empty.
    pub digests: Vec<Digest>,
}

/// What of a file is not to be trusted any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forget {
    /// Every chunk: the part file is poisoned.
    All,
    /// These: they failed to read back. Never empty.
    Chunks(Vec<u32>),
}

/// A part file that is about to be renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publishing {
    /// The file.
    pub key: PathKey,
    /// Of the part file, so that a final name that has it is known as ours.
    pub inode: u64,
    /// The file digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// At the source.
    pub mtime: Mtime,
}

/// A file whose rename is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoneFile {
    /// The file.
    pub key: PathKey,
    /// The file digest.
    pub digest: Digest,
}

/// How a transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every file is durable.
    Durable,
    /// And was read back.
    Verified,
    /// Some files are not there.
    Partial,
    /// None can be promised.
    Failed,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The first.
    Header(Header),
    /// A resume; durable before the epoch is used.
    Epoch(Epoch),
    /// A file of several chunks begins, or begins again.
    File(FileRecord),
    /// Chunks that are durable in the part file.
    Chunks {
        /// The file; a File record came before.
        key: PathKey,
        /// Rising, not touching each other's indices.
        runs: Vec<Run>,
    },
    /// Chunks that are not.
    Forget {
        /// The file.
        key: PathKey,
        /// Which.
        what: Forget,
    },
    /// About to be renamed.
    Publishing(Vec<Publishing>),
    /// Renamed, the directories synced.
    Done(Vec<DoneFile>),
    /// Nothing left to do.
    End(Ended),
}

impl Record {
    /// The kind byte, without the batch mark.
    pub(crate) fn kind(&self) -> u8 {
        match self {
            Record::Header(_) => 1,
            Record::Epoch(_) => 2,
            Record::File(_) => 3,
            Record::Chunks { .. } => 4,
            Record::Forget { .. } => 5,
            Record::Publishing(_) => 6,
            Record::Done(_) => 7,
            Record::End(_) => 8,
        }
    }

    /// Its name for people and JSON.
    pub fn name(&self) -> &'static str {
        const NAMES: [&str; 8] = ["header", "epoch", "file", "chunks", "forget", "publishing", "done", "end"];
        NAMES[usize::from(self.kind()) - 1]
    }

    /// Appends the body. Lists are within their bounds: [`super::Writer`] splits longer ones.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Record::Header(header) => encode_header(header, out),
            Record::Epoch(epoch) => out.extend_from_slice(&epoch.0.to_le_bytes()),
            Record::File(file) => {
                out.extend_from_slice(&file.key.0);
                out.extend_from_slice(&file.root.to_le_bytes());
                put_bytes(file.path.as_bytes(), out);
                out.extend_from_slice(&file.size.to_le_bytes());
                put_mtime(file.mtime, out);
                out.extend_from_slice(&file.mode.to_le_bytes());
            }
            Record::Chunks { key, runs } => {
                out.extend_from_slice(&key.0);
                put_count(runs.len(), out);
                for run in runs {
                    out.extend_from_slice(&run.first.to_le_bytes());
                    put_count(run.digests.len(), out);
                    run.digests.iter().for_each(|digest| out.extend_from_slice(&digest.0));
                }
            }
            Record::Forget { key, what } => {
                out.extend_from_slice(&key.0);
                let indices: &[u32] = match what {
                    Forget::All => &[],
                    Forget::Chunks(indices) => indices,
                };
                put_count(indices.len(), out);
                indices.iter().for_each(|index| out.extend_from_slice(&index.to_le_bytes()));
            }
            Record::Publishing(files) => {
                put_count(files.len(), out);
                for file in files {
                    out.extend_from_slice(&file.key.0);
                    out.extend_from_slice(&file.inode.to_le_bytes());
                    out.extend_from_slice(&file.digest.0);
                    out.extend_from_slice(&file.size.to_le_bytes());
                    put_mtime(file.mtime, out);
                }
            }
            Record::Done(files) => {
                put_count(files.len(), out);
                for file in files {
                    out.extend_from_slice(&file.key.0);
                    out.extend_from_slice(&file.digest.0);
                }
            }
            Record::End(verdict) => out.push(match verdict {
                Ended::Durable => 1,
                Ended::Verified => 2,
                Ended::Partial => 3,
                Ended::Failed => 4,
            }),
        }
    }

    /// Reads the body of a record of `kind`; the name of the field that is wrong otherwise.
    pub(crate) fn decode(kind: u8, body: &[u8]) -> Result<Self, &'static str> {
        let mut fields = Fields(body);
        let record = match kind {
            1 => Record::Header(decode_header(&mut fields)?),
            2 => Record::Epoch(Epoch(fields.u64()?)),
            3 => Record::File(decode_file(&mut fields)?),
            4 => decode_chunks(&mut fields)?,
            5 => decode_forget(&mut fields)?,
            6 => {
                let count = fields.count(PUBLISHING_PER_RECORD, PUBLISHING_BYTES)?;
                let files = (0..count).map(|_| decode_publishing(&mut fields)).collect::<Result<_, _>>()?;
                Record::Publishing(files)
            }
            7 => {
                let count = fields.count(DONE_PER_RECORD, DONE_BYTES)?;
                let one = |fields: &mut Fields<'_>| Ok(DoneFile { key: fields.key()?, digest: fields.digest()? });
                Record::Done((0..count).map(|_| one(&mut fields)).collect::<Result<_, &'static str>>()?)
            }
            8 => Record::End(match fields.array::<1>()?[0] {
                1 => Ended::Durable,
                2 => Ended::Verified,
                3 => Ended::Partial,
                4 => Ended::Failed,
                _ => return Err("verdict"),
            }),
            _ => return Err("kind"),
        };
        if fields.0.is_empty() { Ok(record) } else { Err("length") }
    }
}

fn put_count(count: usize, out: &mut Vec<u8>) {
    debug_assert!(count <= DIGESTS_PER_RECORD);
    out.extend_from_slice(&(count as u32).to_le_bytes());
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_mtime(mtime: Mtime, out: &mut Vec<u8>) {
    out.extend_from_slice(&mtime.secs.to_le_bytes());
    out.extend_from_slice(&mtime.nanos.to_le_bytes());
}

fn encode_header(header: &Header, out: &mut Vec<u8>) {
    out.extend_from_slice(&header.transfer.0);
    out.extend_from_slice(&header.agent.0);
    out.extend_from_slice(&header.epoch.0.to_le_bytes());
    out.extend_from_slice(&header.created.to_le_bytes());
    put_bytes(&header.source.as_bytes()[..header.source.floor_char_boundary(SOURCE_MAX)], out);
    put_bytes(header.destination.as_bytes(), out);
}

/// A bounds-checked reader.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let (head, rest) = self.0.split_at_checked(len).ok_or("length")?;
        self.0 = rest;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        self.bytes(N)?.try_into().map_err(|_| "length")
    }
    fn u16(&mut self) -> Result<u16, &'static str> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, &'static str> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, &'static str> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    fn key(&mut self) -> Result<PathKey, &'static str> {
        Ok(PathKey(self.array()?))
    }
    fn digest(&mut self) -> Result<Digest, &'static str> {
        Ok(Digest(self.array()?))
    }
    fn size(&mut self) -> Result<u64, &'static str> {
        self.u64().and_then(|size| if size <= MAX_FILE_SIZE { Ok(size) } else { Err("size") })
    }
    fn mtime(&mut self) -> Result<Mtime, &'static str> {
        let mtime = Mtime { secs: self.u64()? as i64, nanos: self.u32()? };
        if mtime.nanos <= 999_999_999 { Ok(mtime) } else { Err("nanoseconds") }
    }
    fn path(&mut self) -> Result<RelPath, &'static str> {
        let len = usize::from(self.u16()?);
        RelPath::new(self.bytes(len)?).map_err(|_| "path")
    }
    /// A count of things of `each` bytes: at most `max`, and no more than what is left can hold.
    fn count(&mut self, max: usize, each: usize) -> Result<usize, &'static str> {
        let count = self.u32()? as usize;
        if count <= max && count * each <= self.0.len() { Ok(count) } else { Err("count") }
    }
}

fn decode_header(fields: &mut Fields<'_>) -> Result<Header, &'static str> {
    let transfer = TransferId(fields.array()?);
    let agent = AgentId(fields.array()?);
    let (epoch, created) = (Epoch(fields.u64()?), fields.u64()?);
    let len = usize::from(fields.u16()?);
    if len > SOURCE_MAX {
        return Err("source");
    }
    let source = std::str::from_utf8(fields.bytes(len)?).map_err(|_| "source")?.to_owned();
    Ok(Header { transfer, agent, epoch, created, source, destination: fields.path()? })
}

fn decode_file(fields: &mut Fields<'_>) -> Result<FileRecord, &'static str> {
    let (key, root, path) = (fields.key()?, fields.u16()?, fields.path()?);
    if digest::path_key(root, path.as_bytes()) != key {
        return Err("key");
    }
    let (size, mtime, mode) = (fields.size()?, fields.mtime()?, fields.u32()?);
    if mode > 0o7777 {
        return Err("mode");
    }
    Ok(FileRecord { key, root, path, size, mtime, mode })
}

fn decode_chunks(fields: &mut Fields<'_>) -> Result<Record, &'static str> {
    let key = fields.key()?;
    let count = fields.count(DIGESTS_PER_RECORD, RUN_BYTES + DIGEST_LEN)?;
    let mut runs = Vec::with_capacity(count);
    let mut next = 0;
    for _ in 0..count {
        let first = fields.u32()?;
        let digests = fields.count(DIGESTS_PER_RECORD, DIGEST_LEN)?;
        let end = first.checked_add(digests as u32).ok_or("run")?;
        if first < next || digests == 0 {
            return Err("run");
        }
        next = end;
        runs.push(Run { first, digests: (0..digests).map(|_| fields.digest()).collect::<Result<_, _>>()? });
    }
    Ok(Record::Chunks { key, runs })
}

fn decode_forget(fields: &mut Fields<'_>) -> Result<Record, &'static str> {
    let key = fields.key()?;
    let count = fields.count(DIGESTS_PER_RECORD, 4)?;
    let indices = (0..count).map(|_| fields.u32()).collect::<Result<Vec<_>, _>>()?;
    let what = if indices.is_empty() { Forget::All } else { Forget::Chunks(indices) };
    Ok(Record::Forget { key, what })
}

fn decode_publishing(fields: &mut Fields<'_>) -> Result<Publishing, &'static str> {
    Ok(Publishing {
        key: fields.key()?,
        inode: fields.u64()?,
        digest: fields.digest()?,
        size: fields.size()?,
        mtime: fields.mtime()?,
    })
}
