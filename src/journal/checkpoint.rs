//! What a journal amounts to. Recovery and the running engine apply the same records in the same way.

use super::chunks::ChunkSet;
use super::record::{Ended, FileRecord, Forget, Header, Publishing, Record};
use crate::digest::Digest;
use crate::grid::Grid;
use crate::ids::{Epoch, PathKey};
use crate::manifest::Mtime;
use crate::relpath::RelPath;
use std::collections::HashMap;

/// Everything that is durable of a transfer.
///
/// Memory: some 40 bytes for a done file, 16 and a little for a durable chunk of an open file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checkpoint {
    /// The first record; `None` only in an empty checkpoint.
    pub header: Option<Header>,
    /// The highest epoch.
    pub epoch: Epoch,
    /// Files that have begun and are not done.
    pub files: HashMap<PathKey, FileCheckpoint>,
    /// Files whose final name is durable, with their file digests.
    pub done: HashMap<PathKey, Digest>,
    /// Set by an End record, unset by the Epoch record of a later resume.
    pub ended: Option<Ended>,
}

/// A file that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileCheckpoint {
    /// Bytes at the source when it began.
    pub size: u64,
    /// At the source when it began.
    pub mtime: Mtime,
    /// Where it is; `None` for a packed file, which only its Publishing record names.
    pub named: Option<Box<Named>>,
    /// Durable chunks.
    pub chunks: ChunkSet,
    /// Digests of an earlier version of the file (other size or mtime): a chunk of the new version that has the same
    /// digest need not be sent again.
    pub stale: Option<Box<ChunkSet>>,
    /// How far it is.
    pub state: FileState,
}

/// What only a File record tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Number of the source root.
    pub root: u16,
    /// Below that root.
    pub path: RelPath,
    /// Permission bits, 07777.
    pub mode: u32,
}

/// How far a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileState {
    /// Chunks are being fetched.
    Receiving,
    /// The rename was announced: a final name with this inode is ours.
    Publishing {
        /// Of the part file.
        inode: u64,
        /// The file digest.
        digest: Digest,
    },
}

/// A record that does not fit what came before it. The engine never writes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Inconsistent {
    /// A header that is not the first record, or another first record.
    #[error("the header record is not the first one")]
    Header,
    /// Chunks of a file that has not begun.
    #[error("it lists chunks of the unknown file {0}")]
    UnknownFile(PathKey),
    /// A chunk past the end of its file.
    #[error("it lists chunk {1} of file {0}, which has fewer")]
    PastEnd(PathKey, u32),
}

impl Checkpoint {
    /// Takes in a record that is durable. On an error nothing has changed.
    pub fn apply(&mut self, record: &Record) -> Result<(), Inconsistent> {
        if matches!(record, Record::Header(_)) != self.header.is_none() {
            return Err(Inconsistent::Header);
        }
        match record {
            Record::Header(header) => {
                self.epoch = header.epoch;
                self.header = Some(header.clone());
            }
            Record::Epoch(epoch) => {
                self.epoch = self.epoch.max(*epoch);
                self.ended = None;
            }
            Record::File(file) => self.begin(file),
            Record::Chunks { key, runs } => {
                let begun = self.files.get_mut(key).filter(|file| file.named.is_some());
                let file = begun.ok_or(Inconsistent::UnknownFile(*key))?;
                let chunks = Grid::new(file.size).map_or(0, Grid::chunks);
                if let Some(run) = runs.iter().find(|run| run.first as usize + run.digests.len() > chunks as usize) {
                    return Err(Inconsistent::PastEnd(*key, run.first));
                }
                file.state = FileState::Receiving;
                for run in runs {
                    for (index, digest) in (run.first..).zip(&run.digests) {
                        file.chunks.insert(index, *digest);
                        file.forget_stale(index);
                    }
                }
            }
            Record::Forget { key, what } => {
                if let Some(file) = self.files.get_mut(key) {
                    file.forget(what);
                    // A packed file has nothing else to remember.
                    if file.named.is_none() {
                        self.files.remove(key);
                    }
                }
            }
            Record::Publishing(files) => files.iter().for_each(|file| self.publishing(file)),
            Record::Done(files) => {
                for file in files {
                    self.files.remove(&file.key);
                    self.done.insert(file.key, file.digest);
                }
            }
            Record::End(verdict) => self.ended = Some(*verdict),
        }
        Ok(())
    }

    /// Durable chunks of files that are not done.
    pub fn durable_chunks(&self) -> u64 {
        self.files.values().map(|file| u64::from(file.chunks.len())).sum()
    }

    fn begin(&mut self, record: &FileRecord) {
        let file = self.version(record.key, record.size, record.mtime);
        let named = Named { root: record.root, path: record.path.clone(), mode: record.mode };
        file.named = Some(Box::new(named));
    }

    fn publishing(&mut self, record: &Publishing) {
        let file = self.version(record.key, record.size, record.mtime);
        file.state = FileState::Publishing { inode: record.inode, digest: record.digest };
    }

    /// The file's entry for this version of it; what was durable of another version becomes stale.
    fn version(&mut self, key: PathKey, size: u64, mtime: Mtime) -> &mut FileCheckpoint {
        self.done.remove(&key);
        let file = self.files.entry(key).or_insert_with(|| FileCheckpoint::new(size, mtime));
        if (file.size, file.mtime) != (size, mtime) {
            file.supersede(size, mtime);
        }
        file
    }
}

impl FileCheckpoint {
    fn new(size: u64, mtime: Mtime) -> Self {
        let (named, chunks, stale) = (None, ChunkSet::default(), None);
        Self { size, mtime, named, chunks, stale, state: FileState::Receiving }
    }

    fn supersede(&mut self, size: u64, mtime: Mtime) {
        let old = std::mem::take(&mut self.chunks);
        if !old.is_empty() {
            let stale = self.stale.get_or_insert_default();
            old.iter().for_each(|(index, digest)| {
                stale.insert(index, *digest);
            });
        }
        (self.size, self.mtime, self.state) = (size, mtime, FileState::Receiving);
    }

    fn forget(&mut self, what: &Forget) {
        self.state = FileState::Receiving;
        match what {
            Forget::All => {
                self.chunks = ChunkSet::default();
                self.stale = None;
            }
            Forget::Chunks(indices) => {
                for &index in indices {
                    self.chunks.remove(index);
                    self.forget_stale(index);
                }
            }
        }
    }

    fn forget_stale(&mut self, index: u32) {
        if let Some(stale) = &mut self.stale {
            stale.remove(index);
            if stale.is_empty() {
                self.stale = None;
            }
        }
    }
}
