//! The group commit: the only place that makes anything durable, and the only one that says so.
//!
//! The order, from top to bottom of [`commit_batch`]: data synced (and, for VERIFIED, read back), then the journal
//! record about it, then the journal synced; then the renames, their directories synced, then the journal's word that
//! they are done. A crash between any two lines leaves either a part file that the journal knows too little about, and
//! some chunks are fetched again, or a final name whose inode the journal announced. What fails to sync is poisoned and
//! never recorded.

use super::pool::Pool;
use super::spec::Verify;
use crate::digest::{self, Digest};
use crate::disk::calls;
use crate::disk::{
    AlignedBuf, DiskError, FsKind, Meta, PartFile, Proof, ReadBack, RenamedBy, Replace, Root, Signature, SmallFile,
    TreeLock, rename_batch, sync_batch, sync_names,
};
use crate::grid::{Grid, Span};
use crate::ids::{Handle, PathKey};
use crate::journal::{Checkpoint, DoneFile, FileRecord, Forget, Inconsistent, Publishing, Record, Run, Writer};
use crate::manifest::Mtime;
use crate::relpath::RelPath;
use crate::sys::points;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

/// How the journal is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitIo {
    /// By tokio-uring.
    Uring,
    /// By the pool's plain system calls, because of this.
    Pool(String),
}

impl CommitIo {
    /// For reports.
    pub fn describe(&self) -> String {
        match self {
            CommitIo::Uring => "tokio-uring".to_owned(),
            CommitIo::Pool(why) => format!("tokio without io_uring ({why})"),
        }
    }
}

/// The journal's file.
pub enum JournalFile {
    /// On tokio-uring.
    Uring(tokio_uring::fs::File),
    /// Through the pool.
    Pool(Arc<std::fs::File>, Pool),
}

/// An open journal: its file, its writer, and the sum of what is durable in it.
pub struct Journal {
    file: JournalFile,
    len: u64,
    writer: Writer,
    /// What is durable.
    pub checkpoint: Rc<RefCell<Checkpoint>>,
    pending: Vec<Record>,
    /// An append or its sync has failed: what the kernel says about the file from then on proves nothing, so nothing more
    /// is recorded. The next session writes what it can read of it to a new file.
    broken: bool,
    /// For messages.
    on: Option<FsKind>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Journal({} bytes)", self.len)
    }
}

/// Why a commit cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum JournalFailure {
    /// The file system said no.
    #[error(
        "the journal cannot be written ({0}); nothing that was durable is lost: mend the storage and repeat the command"
    )]
    Io(#[from] std::io::Error),
    /// The engine contradicts itself.
    #[error("the journal would not make sense: {0}")]
    Inconsistent(#[from] Inconsistent),
}

impl Journal {
    /// Over an open file that has `len` bytes of accepted records.
    pub fn new(
        io: &CommitIo,
        pool: &Pool,
        file: std::fs::File,
        len: u64,
        writer: Writer,
        checkpoint: Checkpoint,
    ) -> Self {
        let on = FsKind::of(file.as_fd()).ok();
        let file = match io {
            CommitIo::Uring => JournalFile::Uring(tokio_uring::fs::File::from_std(file)),
            CommitIo::Pool(_) => JournalFile::Pool(Arc::new(file), pool.clone()),
        };
        Self {
            file,
            len,
            writer,
            checkpoint: Rc::new(RefCell::new(checkpoint)),
            pending: Vec::new(),
            broken: false,
            on,
        }
    }

    /// Adds a record to the next append.
    pub fn record(&mut self, record: Record) {
        self.writer.record(&record);
        self.pending.push(record);
    }

    /// Appends what was recorded and makes it durable; then, and only then, the checkpoint takes it in. After one failure
    /// nothing more is appended: behind a gap no record could be read, and after a failed sync no second one proves anything.
    pub async fn append_and_sync(&mut self) -> Result<(), JournalFailure> {
        if self.broken {
            return Err(std::io::Error::other("it could not be written before").into());
        }
        let done = self.append().await;
        self.broken = done.is_err();
        done.map_err(|failure| match (failure, self.on) {
            (JournalFailure::Io(error), Some(kind)) => {
                std::io::Error::new(error.kind(), format!("{error}, on {kind}")).into()
            }
            (failure, _) => failure,
        })
    }

    async fn append(&mut self) -> Result<(), JournalFailure> {
        let bytes = self.writer.take();
        if bytes.is_empty() {
            return Ok(());
        }
        let (len, at) = (bytes.len() as u64, self.len);
        points::fails("journal.append").map_err(std::io::Error::from)?;
        match &self.file {
            JournalFile::Uring(file) => {
                let (written, _) = file.write_all_at(bytes, at).await;
                written?;
                points::fails("journal.sync").map_err(std::io::Error::from)?;
                file.sync_data().await?;
            }
            JournalFile::Pool(file, pool) => {
                let file = file.clone();
                let write = move || {
                    calls::write_all_at(&file, &bytes, at)?;
                    calls::sync_data(file.as_fd()).map_err(std::io::Error::from)
                };
                pool.run(write).await?;
            }
        }
        points::at("journal.synced");
        self.len += len;
        let mut checkpoint = self.checkpoint.borrow_mut();
        for record in self.pending.drain(..) {
            checkpoint.apply(&record)?;
        }
        Ok(())
    }

    /// Closes the file (a tokio-uring file must be closed by its runtime).
    pub async fn close(self) {
        if let JournalFile::Uring(file) = self.file {
            let _ = file.close().await;
        }
    }
}

/// Chunks of one part file, placed and matched.
#[derive(Debug)]
pub struct PlacedChunks {
    /// The file.
    pub handle: Handle,
    /// Its name in the journal.
    pub key: PathKey,
    /// Where they are.
    pub part: Arc<PartFile>,
    /// Which, with their digests.
    pub chunks: Vec<(u32, Digest)>,
}

/// A part file that has every chunk and whose source has not changed.
#[derive(Debug)]
pub struct PublishFile {
    /// The file.
    pub handle: Handle,
    /// Its name in the journal.
    pub key: PathKey,
    /// What is renamed.
    pub part: Arc<PartFile>,
    /// Set before the rename.
    pub meta: Meta,
    /// The file digest.
    pub digest: Digest,
    /// Whose it is, where a later run has to know.
    pub signed: Option<Signature>,
    /// At the source.
    pub mtime: Mtime,
    /// Whether it may replace what is there.
    pub replace: Replace,
}

/// A small file, written under its part name.
#[derive(Debug)]
pub struct CreatedSmall {
    /// The file.
    pub handle: Handle,
    /// Its name in the journal.
    pub key: PathKey,
    /// Open, unsynced.
    pub file: SmallFile,
    /// Its one chunk's digest.
    pub chunk: Digest,
    /// Its file digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// At the source.
    pub mtime: Mtime,
}

/// A file that an earlier run renamed, and died before it could say so.
#[derive(Debug)]
pub struct Renamed {
    /// The record to come.
    pub done: DoneFile,
    /// Where it is.
    pub root: Arc<Root>,
    /// Its final name.
    pub path: RelPath,
}

/// What one commit makes durable.
#[derive(Debug, Default)]
pub struct Batch {
    /// Files that begin, before any chunk of theirs.
    pub begun: Vec<FileRecord>,
    /// Records to write first: what is not to be trusted any more.
    pub forget: Vec<(PathKey, Forget)>,
    /// Placed chunks.
    pub placed: Vec<PlacedChunks>,
    /// Small files.
    pub small: Vec<CreatedSmall>,
    /// Files to publish; their last chunks may be in `placed`.
    pub publish: Vec<PublishFile>,
    /// Renames that an earlier run made and did not get to record.
    pub renamed: Vec<Renamed>,
}

impl Batch {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.begun.is_empty()
            && self.forget.is_empty()
            && self.placed.is_empty()
            && self.small.is_empty()
            && self.publish.is_empty()
            && self.renamed.is_empty()
    }
}

/// What a commit has come to. Made only by [`commit_batch`]: whoever holds one may tell.
#[derive(Debug, Default)]
pub struct Durable {
    /// Chunks now durable (and read back, if asked for).
    pub chunks: Vec<(Handle, Vec<u32>)>,
    /// Chunks that did not read back as they were sent.
    pub misread: Vec<(Handle, Vec<u32>)>,
    /// Part files whose sync failed, with all their chunks of this batch.
    pub poisoned: Vec<(Handle, Vec<u32>, DiskError)>,
    /// Small files under their final names, or why not.
    pub small: Vec<(Handle, Result<Digest, CommitFault>)>,
    /// Files under their final names, or why not.
    pub published: Vec<(Handle, Result<Digest, CommitFault>)>,
    /// Ways that were not the usual ones.
    pub notes: Vec<String>,
}

/// Why a file of a batch is not published.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitFault {
    /// The disk said no.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The medium gave back other bytes than were written.
    #[error("the medium gives back other bytes than were written to it: check the device")]
    Misread,
    /// A chunk of it failed in the same batch.
    #[error("a part of it has to be fetched again")]
    NotYet,
}

thread_local! {
    /// One read-back buffer for each pool thread.
    static READ_BACK: RefCell<Option<AlignedBuf>> = const { RefCell::new(None) };
}

const READ_BACK_BYTES: usize = 1 << 20;

/// Whether the medium holds the chunk as it was sent.
fn reads_back(part: &PartFile, span: Span, want: Digest) -> Result<(bool, ReadBack), DiskError> {
    READ_BACK.with_borrow_mut(|buffer| {
        let buffer = buffer.get_or_insert_with(|| AlignedBuf::new(READ_BACK_BYTES));
        let mut hasher = digest::ChunkHasher::default();
        let (mut at, mut how) = (span.offset, ReadBack::Direct);
        while at < span.end() {
            let len = (span.end() - at).min(READ_BACK_BYTES as u64) as usize;
            how = part.read_back(at, &mut buffer[..len])?;
            hasher.update(&buffer[..len]);
            at += len as u64;
        }
        Ok((hasher.finish(span) == want, how))
    })
}

/// One file's part of the first step: sync, and read back for VERIFIED.
fn sync_and_check(placed: &PlacedChunks, verify: Verify) -> Result<(Vec<u32>, Option<ReadBack>), DiskError> {
    placed.part.sync_data()?;
    points::at("commit.chunks-synced");
    let (mut bad, mut how) = (Vec::new(), None);
    if verify == Verify::Disk {
        let grid = Grid::new(placed.part.size()).expect("sizes are checked when a manifest comes in");
        for (chunk, digest) in &placed.chunks {
            let span = grid.span(*chunk).expect("placed chunks lie inside their file");
            let (good, by) = reads_back(&placed.part, span, *digest)?;
            how = Some(by);
            if !good {
                bad.push(*chunk);
            }
        }
    }
    Ok((bad, how))
}

fn check_small(small: &CreatedSmall) -> Result<bool, DiskError> {
    let content = small.file.read_back()?;
    Ok(digest::chunk(&content, 0) == small.chunk)
}

fn runs_of(mut chunks: Vec<(u32, Digest)>) -> Vec<Run> {
    chunks.sort_unstable_by_key(|(index, _)| *index);
    let mut runs: Vec<Run> = Vec::new();
    for (index, digest) in chunks {
        match runs.last_mut() {
            Some(run) if run.first + run.digests.len() as u32 == index => run.digests.push(digest),
            _ => runs.push(Run { first: index, digests: vec![digest] }),
        }
    }
    runs
}

/// Walk 10: makes a batch durable. The journal comes back with the outcome.
pub async fn commit_batch(
    pool: &Pool,
    journal: &mut Journal,
    batch: Batch,
    verify: Verify,
    small_replace: Replace,
) -> Result<Durable, JournalFailure> {
    let mut durable = Durable::default();
    points::at("commit.begin");

    // The data first: every part file with new chunks, all at once, and the small files.
    let mut syncing = Vec::new();
    for placed in batch.placed {
        let pool = pool.clone();
        syncing.push(tokio::task::spawn_local(async move {
            pool.run(move || {
                let result = sync_and_check(&placed, verify);
                (placed, result)
            })
            .await
        }));
    }
    let small = batch.small;
    let small_sync = pool.run(move || {
        let (files, rest): (Vec<_>, Vec<_>) = small.into_iter().map(split_small).unzip();
        let synced = sync_batch(&files, false).map(|_| ());
        points::at("commit.small-synced");
        let mut small: Vec<CreatedSmall> = files.into_iter().zip(rest).map(join_small).collect();
        let mut failed = Vec::new();
        if let Err(error) = synced {
            failed.extend(small.drain(..).map(|s| (s.handle, CommitFault::Disk(error.clone()))));
        } else if verify == Verify::Disk {
            small.retain(|s| match check_small(s) {
                Ok(true) => true,
                Ok(false) => {
                    failed.push((s.handle, CommitFault::Misread));
                    false
                }
                Err(error) => {
                    failed.push((s.handle, CommitFault::Disk(error)));
                    false
                }
            });
        }
        (small, failed)
    });
    let (small, small_failed) = small_sync.await;
    durable.small.extend(small_failed.into_iter().map(|(handle, fault)| (handle, Err(fault))));
    let mut synced = Vec::new();
    for task in syncing {
        let (placed, result) = task.await.expect("a pool job runs to its end");
        match result {
            Ok((bad, how)) => {
                if how == Some(ReadBack::CacheDropped) {
                    durable
                        .notes
                        .push("read-back went through a dropped page cache: O_DIRECT does not work here".to_owned());
                }
                if !bad.is_empty() {
                    durable.misread.push((placed.handle, bad.clone()));
                }
                synced.push((placed, bad));
            }
            Err(error) => {
                let chunks = placed.chunks.iter().map(|(index, _)| *index).collect();
                durable.poisoned.push((placed.handle, chunks, error));
            }
        }
    }

    // And the names of part files that are new, or that a killed run left: no record about a file without one.
    if synced.iter().any(|(placed, _)| !placed.part.is_named()) {
        let parts: Vec<Arc<PartFile>> = synced.iter().map(|(placed, _)| placed.part.clone()).collect();
        let outcomes = pool.run(move || sync_names(&parts)).await;
        let all = std::mem::take(&mut synced);
        for ((placed, bad), outcome) in all.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => synced.push((placed, bad)),
                Err(error) => {
                    let chunks = placed.chunks.iter().map(|(index, _)| *index).collect();
                    durable.poisoned.push((placed.handle, chunks, error));
                }
            }
        }
    }

    // Then the claim about it, and about the renames to come; then the claim made durable.
    points::at("commit.data-durable");
    batch.begun.into_iter().for_each(|file| journal.record(Record::File(file)));
    batch.forget.into_iter().for_each(|(key, what)| journal.record(Record::Forget { key, what }));
    for (placed, bad) in synced {
        let mut good = placed.chunks;
        good.retain(|(index, _)| !bad.contains(index));
        durable.chunks.push((placed.handle, good.iter().map(|(index, _)| *index).collect()));
        if !good.is_empty() {
            journal.record(Record::Chunks { key: placed.key, runs: runs_of(good) });
        }
    }
    let broken = |handle: Handle| {
        durable.poisoned.iter().any(|(h, ..)| *h == handle) || durable.misread.iter().any(|(h, _)| *h == handle)
    };
    let (publish, held_back): (Vec<_>, Vec<_>) = batch.publish.into_iter().partition(|file| !broken(file.handle));
    durable.published.extend(held_back.into_iter().map(|file| (file.handle, Err(CommitFault::NotYet))));
    let announced = publish.iter().map(|file| Publishing {
        key: file.key,
        inode: file.part.stat().ino,
        digest: file.digest,
        size: file.part.size(),
        mtime: file.mtime,
    });
    let announced_small = small.iter().map(|file| Publishing {
        key: file.key,
        inode: file.file.stat().ino,
        digest: file.digest,
        size: file.size,
        mtime: file.mtime,
    });
    journal.record(Record::Publishing(announced.chain(announced_small).collect()));
    journal.append_and_sync().await?;

    // The names, their directories synced; then the journal's word that it is done.
    points::at("commit.announced");
    let (mut done, failed) = pool.run(move || sync_renamed(batch.renamed)).await;
    durable.notes.extend(failed.iter().map(|error| format!("a name could not be made durable: {error}")));
    let named = publish_all(pool, publish, small, small_replace).await;
    for (handle, key, result) in named.files {
        if let Ok(digest) = &result {
            done.push(DoneFile { key, digest: *digest });
        }
        durable.published.push((handle, result));
    }
    for (handle, key, result) in named.small {
        if let Ok(digest) = &result {
            done.push(DoneFile { key, digest: *digest });
        }
        durable.small.push((handle, result));
    }
    durable.notes.extend(named.notes);
    points::at("commit.named");
    journal.record(Record::Done(done));
    journal.append_and_sync().await?;
    points::at("commit.done");
    Ok(durable)
}

/// An earlier run may have died between its rename and the sync of the directory.
fn sync_renamed(renamed: Vec<Renamed>) -> (Vec<DoneFile>, Vec<DiskError>) {
    let mut synced: BTreeMap<RelPath, Result<(), DiskError>> = BTreeMap::new();
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for Renamed { done: record, root, path } in renamed {
        let (dir, _) = path.split_last().unwrap_or_default();
        match synced.entry(dir).or_insert_with_key(|dir| root.sync_dir(dir)) {
            Ok(()) => done.push(record),
            Err(error) => failed.push(error.clone()),
        }
    }
    (done, failed)
}

/// Small files that one pool job renames: a batch is worth several threads.
const RENAME_PART: usize = 200;

type Named = (Handle, PathKey, Result<Digest, CommitFault>);

#[derive(Default)]
struct AllNamed {
    files: Vec<Named>,
    small: Vec<Named>,
    notes: Vec<String>,
}

async fn publish_all(pool: &Pool, publish: Vec<PublishFile>, small: Vec<CreatedSmall>, replace: Replace) -> AllNamed {
    let mut all = AllNamed::default();
    let mut tasks = Vec::new();
    for file in publish {
        let pool = pool.clone();
        tasks.push(tokio::task::spawn_local(async move {
            pool.run(move || {
                let proof = Proof { digest: file.digest, signed: file.signed };
                let published = file.part.publish(&file.meta, Some(proof), file.replace);
                (file.handle, file.key, published.map(|p| (file.digest, p.renamed)))
            })
            .await
        }));
    }
    // Neighbours stay together: most parts then sync directories of their own.
    let mut small_tasks = Vec::new();
    let mut small = small.into_iter().peekable();
    while small.peek().is_some() {
        let part: Vec<CreatedSmall> = small.by_ref().take(RENAME_PART).collect();
        let pool = pool.clone();
        small_tasks.push(tokio::task::spawn_local(async move {
            pool.run(move || {
                let (files, rest): (Vec<_>, Vec<_>) = part.into_iter().map(split_small).unzip();
                let results = rename_batch(&files, replace);
                rest.into_iter().zip(results).collect::<Vec<_>>()
            })
            .await
        }));
    }
    for task in small_tasks {
        for (small, result) in task.await.expect("a pool job runs to its end") {
            note_rename(&mut all.notes, &result);
            all.small.push((small.handle, small.key, result.map(|_| small.digest).map_err(CommitFault::from)));
        }
    }
    for task in tasks {
        let (handle, key, result) = task.await.expect("a pool job runs to its end");
        note_rename(&mut all.notes, &result.as_ref().map(|(_, by)| *by).map_err(Clone::clone));
        all.files.push((handle, key, result.map(|(digest, _)| digest).map_err(CommitFault::from)));
    }
    all
}

fn note_rename(notes: &mut Vec<String>, result: &Result<RenamedBy, DiskError>) {
    if let Ok(RenamedBy::Link(errno)) = result {
        let note = format!("RENAME_NOREPLACE is refused here ({errno:?}): published by link and unlink");
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
}

/// A small file without its descriptor, so that the descriptors can be handed on as one slice.
struct SmallRest {
    handle: Handle,
    key: PathKey,
    chunk: Digest,
    digest: Digest,
    size: u64,
    mtime: Mtime,
}

fn split_small(small: CreatedSmall) -> (SmallFile, SmallRest) {
    let CreatedSmall { handle, key, file, chunk, digest, size, mtime } = small;
    (file, SmallRest { handle, key, chunk, digest, size, mtime })
}

fn join_small((file, rest): (SmallFile, SmallRest)) -> CreatedSmall {
    let SmallRest { handle, key, chunk, digest, size, mtime } = rest;
    CreatedSmall { handle, key, file, chunk, digest, size, mtime }
}

/// The journal's file name in the state directory.
pub const JOURNAL: &str = "journal";

/// The same under this name until it is whole.
const JOURNAL_NEW: &str = "journal.new";

/// Writes what was recovered to a new journal that takes the old one's place. What was read may be in the page cache alone,
/// after a sync that failed or a kill before one: only a file that we have synced ourselves is built upon.
pub fn renew_journal_file(lock: &TreeLock, bytes: &[u8]) -> Result<std::fs::File, DiskError> {
    let file = lock.open_file(JOURNAL_NEW, true)?.expect("created if it was not there");
    let write = || {
        calls::truncate(file.as_fd(), 0)?;
        calls::write_all_at(&file, bytes, 0)?;
        calls::sync_data(file.as_fd()).map_err(std::io::Error::from)
    };
    write().map_err(|error: std::io::Error| lock.io_error(JOURNAL_NEW, &error))?;
    lock.rename_file(JOURNAL_NEW, JOURNAL)?;
    Ok(file)
}

/// Opens or creates the journal of a locked transfer; what is torn at its end is cut off.
pub fn open_journal_file(lock: &TreeLock) -> Result<(std::fs::File, Vec<u8>), DiskError> {
    let file = lock.open_file(JOURNAL, true)?.expect("created if it was not there");
    let mut bytes = Vec::new();
    let fail = |error: std::io::Error| lock.io_error(JOURNAL, &error);
    std::io::Read::read_to_end(&mut &file, &mut bytes).map_err(fail)?;
    Ok((file, bytes))
}
