//! From values to bytes: records with the running sequence and chain.

use super::checkpoint::{Checkpoint, FileCheckpoint, FileState};
use super::chunks::ChunkSet;
use super::record::{
    DIGESTS_PER_RECORD, DONE_PER_RECORD, DoneFile, FileRecord, Forget, Header, PUBLISHING_PER_RECORD, Publishing,
    Record, Run,
};
use super::recover::Recovered;
use super::{BATCH, MAGIC, VERSION, chain};
use crate::digest;
use crate::grid::{CHUNK_SIZE, MAX_FILE_SIZE};
use crate::ids::PathKey;
use crate::manifest::Mtime;

/// Builds the bytes to append. One [`Writer::take`] is one batch: append and sync it before the next.
#[derive(Debug)]
pub struct Writer {
    out: Vec<u8>,
    sequence: u64,
    crc: u32,
    batch: bool,
}

impl Writer {
    /// A new journal; the header record is the first of the first batch.
    pub fn create(header: Header) -> Self {
        let mut writer = Self { out: Vec::new(), sequence: 0, crc: 0, batch: true };
        writer.put(&Record::Header(header));
        writer
    }

    /// Goes on behind a recovered journal; `None` if it had no header, so that a new one has to be created.
    pub fn resume(recovered: &Recovered) -> Option<Self> {
        recovered.checkpoint.header.as_ref()?;
        Some(Self { out: Vec::new(), sequence: recovered.records, crc: recovered.crc, batch: true })
    }

    /// Adds a record to the batch. Lists longer than a record may hold become several records; empty lists nothing.
    pub fn record(&mut self, record: &Record) {
        match record {
            Record::Chunks { key, runs } => self.chunks(*key, runs),
            Record::Forget { key, what: Forget::Chunks(indices) } => {
                for part in indices.chunks(DIGESTS_PER_RECORD) {
                    self.put(&Record::Forget { key: *key, what: Forget::Chunks(part.to_vec()) });
                }
            }
            Record::Publishing(files) => {
                files.chunks(PUBLISHING_PER_RECORD).for_each(|part| self.put(&Record::Publishing(part.to_vec())));
            }
            Record::Done(files) => {
                files.chunks(DONE_PER_RECORD).for_each(|part| self.put(&Record::Done(part.to_vec())));
            }
            other => self.put(other),
        }
    }

    /// Bytes of the batch so far.
    pub fn pending(&self) -> usize {
        self.out.len()
    }

    /// The batch: append it to the file and sync it before what comes next is written.
    pub fn take(&mut self) -> Vec<u8> {
        self.batch = true;
        std::mem::take(&mut self.out)
    }

    fn chunks(&mut self, key: PathKey, runs: &[Run]) {
        let (mut part, mut room) = (Vec::new(), DIGESTS_PER_RECORD);
        for run in runs {
            let (mut first, mut rest) = (run.first, run.digests.as_slice());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(room));
                part.push(Run { first, digests: now.to_vec() });
                first = first.saturating_add(now.len() as u32);
                rest = later;
                room -= now.len();
                if room == 0 {
                    self.put(&Record::Chunks { key, runs: std::mem::take(&mut part) });
                    room = DIGESTS_PER_RECORD;
                }
            }
        }
        if !part.is_empty() {
            self.put(&Record::Chunks { key, runs: part });
        }
    }

    fn put(&mut self, record: &Record) {
        let start = self.out.len();
        self.out.extend_from_slice(&MAGIC);
        self.out.push(VERSION);
        self.out.push(record.kind() | if self.batch { BATCH } else { 0 });
        self.out.extend_from_slice(&[0; 4]);
        self.out.extend_from_slice(&self.sequence.to_le_bytes());
        let body = self.out.len();
        record.encode(&mut self.out);
        let len = (self.out.len() - body) as u32;
        self.out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
        self.crc = chain(self.crc, &self.out[start..]);
        self.out.extend_from_slice(&self.crc.to_le_bytes());
        self.sequence += 1;
        self.batch = false;
    }
}

/// A fresh journal that recovers to `checkpoint`, one batch long; empty if there is no header. Files and done files are
/// in the order of their keys, so that equal checkpoints make equal bytes.
pub fn compact(checkpoint: &Checkpoint) -> Vec<u8> {
    let Some(header) = &checkpoint.header else { return Vec::new() };
    let mut writer = Writer::create(header.clone());
    if checkpoint.epoch != header.epoch {
        writer.record(&Record::Epoch(checkpoint.epoch));
    }
    let mut done: Vec<DoneFile> =
        checkpoint.done.iter().map(|(key, digest)| DoneFile { key: *key, digest: *digest }).collect();
    done.sort_unstable_by_key(|file| file.key);
    writer.record(&Record::Done(done));
    let mut files: Vec<_> = checkpoint.files.iter().collect();
    files.sort_unstable_by_key(|(key, _)| **key);
    for (key, file) in files {
        compact_file(*key, file, &mut writer);
    }
    if let Some(verdict) = checkpoint.ended {
        writer.record(&Record::End(verdict));
    }
    writer.take()
}

fn compact_file(key: PathKey, file: &FileCheckpoint, writer: &mut Writer) {
    if let Some(named) = &file.named {
        debug_assert_eq!(digest::path_key(named.root, named.path.as_bytes()), key);
        let begin = |size, mtime| {
            let (root, path, mode) = (named.root, named.path.clone(), named.mode);
            Record::File(FileRecord { key, root, path, size, mtime, mode })
        };
        if let Some((stale, last)) = file.stale.as_deref().and_then(|stale| Some((stale, stale.last()?))) {
            // Any earlier version that has these chunks will do, as long as it differs from the present one.
            let size = (u64::from(last) + 1).saturating_mul(CHUNK_SIZE).min(MAX_FILE_SIZE);
            let mtime = Mtime { secs: file.mtime.secs, nanos: file.mtime.nanos ^ 1 };
            writer.record(&begin(size, mtime));
            writer.record(&Record::Chunks { key, runs: runs(stale) });
        }
        writer.record(&begin(file.size, file.mtime));
        writer.record(&Record::Chunks { key, runs: runs(&file.chunks) });
    }
    if let FileState::Publishing { inode, digest } = file.state {
        let (size, mtime) = (file.size, file.mtime);
        writer.record(&Record::Publishing(vec![Publishing { key, inode, digest, size, mtime }]));
    }
}

fn runs(set: &ChunkSet) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, digest) in set.iter() {
        match runs.last_mut() {
            Some(run) if u64::from(run.first) + run.digests.len() as u64 == u64::from(index) => {
                run.digests.push(*digest);
            }
            _ => runs.push(Run { first: index, digests: vec![*digest] }),
        }
    }
    runs
}
