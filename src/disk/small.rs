//! Small files, many at once: written whole to their part names, synced together, renamed together, one directory sync
//! each. A sync per file costs 35 to 45 times one `syncfs` for all (measured on ext4 and XFS).

use super::calls;
use super::confined::{DirHandle, LastDir, Root, Stat, retrying};
use super::error::{DiskError, Doing};
use super::names::{is_reserved, part_name};
use super::probe::FsKind;
use super::publish::{Meta, RenamedBy, Replace, rename_one, set_metadata};
use super::record::Proof;
use super::turns::Turn;
use crate::ids::TransferId;
use crate::relpath::RelPath;
use crate::sys::fsys::{self, Caching};
use crate::sys::points;
use nix::errno::Errno;
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Below so many files a sync each is as good.
const SYNCFS_FROM: usize = 4;
/// Other people's dirty bytes that a `syncfs` may have to write for us: a tenth of a second on a slow disk.
const FOREIGN_DIRTY_MAX: u64 = 64 << 20;
/// Threads that sync files one by one: more gain little (measured up to 32).
const SYNC_THREADS: usize = 8;
/// Renames before others have their turn at a directory: about as many names as a pack makes.
const RENAMES_A_TURN: usize = 64;
/// The unit in which the page cache counts.
const PAGE: u64 = 4096;

/// A small file under its part name, metadata set, not yet synced.
#[derive(Debug)]
pub struct SmallFile {
    dir: DirHandle,
    name: Vec<u8>,
    path: RelPath,
    fd: OwnedFd,
    stat: Stat,
    len: u64,
    record: Result<(), Errno>,
}

impl SmallFile {
    /// Its final path.
    pub fn path(&self) -> &RelPath {
        &self.path
    }

    fn final_name(&self) -> &[u8] {
        self.path.name()
    }

    /// Inode and device, for the journal.
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Its content as the medium has it, as far as the page cache lets go of it. Only after a sync.
    pub fn read_back(&self) -> Result<Vec<u8>, DiskError> {
        // Clean pages only are dropped, and after the sync they all are clean.
        let _ = posix_fadvise(&self.fd, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        let mut content = vec![0; self.len as usize];
        let mut at = 0;
        while at < content.len() {
            let n = retrying(|| fsys::read_at(self.fd.as_fd(), &mut content[at..], at as u64, Caching::Normal))
                .map_err(self.dir.fail(Doing::Read, self.final_name()))?;
            if n == 0 {
                return Err(DiskError::Short { path: self.path.clone(), missing: (content.len() - at) as u64 });
            }
            at += n;
        }
        Ok(content)
    }

    /// Whether the record was stored.
    pub fn record(&self) -> Result<(), Errno> {
        self.record
    }
}

/// A small file that is there under its part name, and empty.
#[derive(Debug)]
pub struct NewSmall {
    dir: DirHandle,
    name: Vec<u8>,
    path: RelPath,
    fd: OwnedFd,
}

impl NewSmall {
    /// Writes it whole, with metadata and record. On failure nothing stays behind.
    pub fn fill(self, content: &[u8], meta: &Meta, proof: Option<Proof>) -> Result<SmallFile, DiskError> {
        let Self { dir, name, path, fd } = self;
        match fill(&dir, path.name(), &fd, content, meta, proof) {
            Ok((stat, record)) => Ok(SmallFile { dir, name, path, fd, stat, len: content.len() as u64, record }),
            Err(e) => dir.unlink_same(&name, fd.as_fd()).and(Err(e)),
        }
    }
}

/// Makes the files of a pack, empty, under their part names: one result for each, in order. What an earlier run of this
/// transfer left under such a name is replaced.
pub fn create_pack<'p>(
    root: &Root,
    paths: impl IntoIterator<Item = &'p RelPath>,
    id: &TransferId,
) -> Vec<Result<NewSmall, DiskError>> {
    let (mut last, mut turn) = (LastDir::default(), Turn::default());
    paths.into_iter().map(|path| create(root, &mut last, &mut turn, path, id)).collect()
}

fn create(
    root: &Root,
    last: &mut LastDir,
    turn: &mut Turn,
    path: &RelPath,
    id: &TransferId,
) -> Result<NewSmall, DiskError> {
    if is_reserved(path) {
        return Err(DiskError::Reserved { path: path.clone() });
    }
    let (dir, final_name) = last.parent_of(root, path)?;
    let name = part_name(final_name, id);
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
    turn.at(dir.path());
    let fd = match dir.open_at(&name, flags, 0o600) {
        Err(Errno::EEXIST) => {
            dir.unlink(&name)?;
            dir.open_at(&name, flags, 0o600)
        }
        other => other,
    }
    .map_err(dir.fail(Doing::Create, &name))?;
    points::at("small.created");
    Ok(NewSmall { dir, name, path: path.clone(), fd })
}

fn fill(
    dir: &DirHandle,
    name: &[u8],
    fd: &OwnedFd,
    content: &[u8],
    meta: &Meta,
    proof: Option<Proof>,
) -> Result<(Stat, Result<(), Errno>), DiskError> {
    let mut at = 0;
    while at < content.len() {
        let end = at + points::short("small.write-length", content.len() - at);
        let write = || {
            points::fails("small.write")
                .and_then(|()| calls::write_at(fd.as_fd(), &content[at..end], at as u64, Caching::Normal))
        };
        match retrying(write) {
            Ok(0) => return Err(dir.fail(Doing::Write, name)(Errno::EIO)),
            Ok(n) => at += n,
            Err(Errno::ENOSPC) => {
                let (path, needed) = (dir.child(name), content.len() as u64);
                return Err(DiskError::NoSpace { path, needed, free: 0 });
            }
            Err(errno) => return Err(dir.fail(Doing::Write, name)(errno)),
        }
    }
    set_metadata(fd.as_fd(), meta, proof).map_err(dir.fail(Doing::SetMetadata, name))
}

/// How a batch was synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncedBy {
    /// One `syncfs`.
    Syncfs,
    /// `fsync` of each, over several threads.
    Each,
}

/// Makes the content and metadata of a batch durable. After an error none of them may be renamed: drop the batch and
/// create its files again. `own_fs`: nobody else writes to this file system, so `syncfs` is always the cheapest.
pub fn sync_batch(files: &[SmallFile], own_fs: bool) -> Result<SyncedBy, DiskError> {
    let Some(first) = files.first() else { return Ok(SyncedBy::Each) };
    let one_fs = files.iter().all(|file| file.stat.dev == first.stat.dev);
    let many = one_fs && files.len() >= SYNCFS_FROM;
    let kind = FsKind::of(first.fd.as_fd()).ok().filter(|kind| many && kind.syncs_whole());
    if kind.is_some_and(|kind| own_fs || points::alone() || little_else_dirty(files, kind)) {
        // The error sequence counts from the opening of this very descriptor: what failed since then is told.
        retrying(|| points::fails("small.syncfs").and_then(|()| calls::sync_fs(first.fd.as_fd())))
            .map_err(first.dir.fail(Doing::Sync, first.final_name()))?;
        return Ok(SyncedBy::Syncfs);
    }
    sync_each(files)?;
    Ok(SyncedBy::Each)
}

fn sync_each(files: &[SmallFile]) -> Result<(), DiskError> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let work = || {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(errno) = retrying(|| points::fails("small.fsync").and_then(|()| calls::sync(file.fd.as_fd()))) {
                let error = file.dir.fail(Doing::Sync, file.final_name())(errno);
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    let threads = SYNC_THREADS;
    // Who listens hears one thread only.
    #[cfg(feature = "testing")]
    let threads = if crate::sys::observe::active() { 1 } else { threads };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(files.len()) {
            scope.spawn(work);
        }
        work();
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn little_else_dirty(files: &[SmallFile], kind: FsKind) -> bool {
    // A simulated run does not depend on what else this host writes.
    #[cfg(feature = "testing")]
    if crate::sys::observe::active() {
        return files.len().is_multiple_of(2);
    }
    if kind.is_volatile() {
        return true; // memory is written back to nowhere
    }
    let ours: u64 = files.iter().map(|file| file.len.next_multiple_of(PAGE)).sum();
    dirty_bytes().is_some_and(|all| all.saturating_sub(ours) <= FOREIGN_DIRTY_MAX)
}

/// Bytes of the page cache, of all file systems, that wait for their disk.
fn dirty_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |key: &str| -> Option<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(key))?;
        value.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some((kib("Dirty:")? + kib("Writeback:")?) * 1024)
}

/// Gives a synced batch its final names and syncs each directory once. One result per file, in order; a file whose
/// directory could not be synced has failed too.
pub fn rename_batch(files: &[SmallFile], replace: Replace) -> Vec<Result<RenamedBy, DiskError>> {
    let mut results = Vec::with_capacity(files.len());
    for files in files.chunks(RENAMES_A_TURN) {
        let mut turn = Turn::default();
        results.extend(files.iter().map(|file| {
            turn.at(file.dir.path());
            rename_one(&file.dir, &file.name, file.final_name(), &file.stat, replace)
        }));
    }
    points::at("small.renamed");
    let mut synced: Vec<(&RelPath, Result<(), DiskError>)> = Vec::new();
    for (file, result) in files.iter().zip(&mut results) {
        if result.is_err() {
            continue;
        }
        let path = file.dir.path();
        let known = synced.iter().rev().find(|(dir, _)| *dir == path).map(|(_, outcome)| outcome.clone());
        let outcome = known.unwrap_or_else(|| {
            let outcome = file.dir.sync();
            synced.push((path, outcome.clone()));
            outcome
        });
        if let Err(e) = outcome {
            *result = Err(e);
        }
    }
    // What has not got its final name is made anew or given up; the name it has now would stay for ever.
    for (file, _) in files.iter().zip(&results).filter(|(_, result)| result.is_err()) {
        let _ = file.dir.unlink_same(&file.name, file.fd.as_fd());
    }
    results
}

/// Removes the part files of a batch that will not be renamed. Best effort: `clean` finds what stays.
pub fn drop_batch(files: Vec<SmallFile>) {
    for file in files {
        let _ = file.dir.unlink_same(&file.name, file.fd.as_fd());
    }
}
