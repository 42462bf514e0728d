//! Part files: where bytes lie until they are proved. Walk 9 places blocks in them, walk 10 syncs them.

use super::aligned::{AlignedBuf, DIRECT_ALIGN};
use super::calls;
use super::confined::{DirHandle, Kind, Root, Stat, retrying};
use super::error::{DiskError, Doing, Foreign};
use super::names::{is_reserved, part_name};
use super::plan::{LARGE, WritePlan};
use super::probe::FsKind;
use crate::clock;
use crate::grid::{MAX_FILE_SIZE, Span};
use crate::ids::TransferId;
use crate::relpath::RelPath;
use crate::sys::fsys::{self, Caching};
use crate::sys::{FileMode, FileRef, points};
use nix::errno::Errno;
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::sys::statvfs::fstatvfs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long the lock of a predecessor is waited for: io_uring's writes were seen to outlive a SIGKILL by 55 ms.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// One read of [`PartFile::read_back`].
const READ_BACK_STEP: usize = 1 << 20;
/// One write of zeros where holes cannot be punched.
const ZERO_STEP: usize = 64 << 10;

/// Something about a part file that was not as asked; for the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PartNote {
    /// No space was set aside: the file system cannot.
    #[error("space was not allocated beforehand ({0:?})")]
    NotAllocated(Errno),
    /// Not locked: the file system cannot. The transfer's lock file stands alone.
    #[error("the part file is not locked ({0:?})")]
    NotLocked(Errno),
    /// O_DIRECT was planned and refused.
    #[error("direct I/O was refused ({0:?}), written through the page cache")]
    NotDirect(Errno),
}

/// How [`PartFile::read_back`] got the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadBack {
    /// O_DIRECT: from the medium.
    Direct,
    /// The page cache was asked to drop them, then a plain read: from the medium, unless the kernel kept them.
    CacheDropped,
    /// The file system has no medium but memory.
    Memory,
}

/// How [`PartFile::punch`] made zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Punched {
    /// A hole.
    Hole,
    /// Zeros were written: the file system cannot punch.
    Zeros,
}

/// A file being written. Shared by the threads that write, sync and publish it.
#[derive(Debug)]
pub struct PartFile {
    pub(super) dir: DirHandle,
    pub(super) name: Vec<u8>,
    pub(super) final_name: Vec<u8>,
    pub(super) fd: Arc<OwnedFd>,
    direct: Option<Arc<OwnedFd>>,
    /// Opened for the first read-back when the plan is not direct.
    direct_read: OnceLock<Option<Arc<OwnedFd>>>,
    pub(super) stat: Stat,
    size: u64,
    mode: FileMode,
    volatile: bool,
    poisoned: AtomicBool,
    /// The directory was synced since this was opened.
    named: AtomicBool,
    notes: Vec<PartNote>,
    #[cfg(test)]
    pub(super) fail_sync: AtomicBool,
}

impl PartFile {
    /// Creates the part file of `final_path`, of `size` bytes, its data extents allocated (`None`: all of it). Fails with
    /// [`DiskError::Exists`] where an earlier run left one: [`PartFile::reopen`] or [`PartFile::discard`] it.
    pub fn create(
        root: &Root,
        final_path: &RelPath,
        id: &TransferId,
        size: u64,
        extents: Option<&[Span]>,
        plan: &WritePlan,
    ) -> Result<Self, DiskError> {
        let (dir, final_name) = place(root, final_path)?;
        if size > MAX_FILE_SIZE {
            return Err(DiskError::TooBig { path: final_path.clone(), size });
        }
        let name = part_name(final_name, id);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let fd = dir.open_at(&name, flags, 0o600).map_err(dir.fail(Doing::Create, &name))?;
        points::at("part.created");
        let made = Self::assemble(dir.clone(), name.clone(), final_name, fd, size, plan).and_then(|mut part| {
            match part.give_space(size, extents, plan) {
                Ok(()) => Ok(part),
                // Nothing that could be resumed: leave no empty file behind on a full disk.
                Err(e) => part.remove().and(Err(e)),
            }
        });
        made.map_err(|e| with_path(e, final_path))
    }

    /// Opens the part file that an earlier run left: `None` if there is none. It must be a regular file of ours, with one
    /// name and the expected size; anything else is [`DiskError::ForeignPart`] and can be discarded.
    pub fn reopen(
        root: &Root,
        final_path: &RelPath,
        id: &TransferId,
        size: u64,
        plan: &WritePlan,
    ) -> Result<Option<Self>, DiskError> {
        Self::reopen_as(root, final_path, id, size, plan, true)
    }

    /// Opens the part file that an earlier run left of another version of the file, of whatever size, and gives it the
    /// size and the space of this one. What it holds counts for nothing until digests say so.
    pub fn adopt(
        root: &Root,
        final_path: &RelPath,
        id: &TransferId,
        size: u64,
        plan: &WritePlan,
    ) -> Result<Option<Self>, DiskError> {
        let Some(mut part) = Self::reopen_as(root, final_path, id, size, plan, false)? else { return Ok(None) };
        part.give_space(size, None, plan).map_err(|e| with_path(e, final_path))?;
        Ok(Some(part))
    }

    fn reopen_as(
        root: &Root,
        final_path: &RelPath,
        id: &TransferId,
        size: u64,
        plan: &WritePlan,
        exact: bool,
    ) -> Result<Option<Self>, DiskError> {
        let (dir, final_name) = match place(root, final_path) {
            Err(DiskError::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let name = part_name(final_name, id);
        let fd = match dir.open_at(&name, OFlag::O_RDWR | OFlag::O_NONBLOCK, 0) {
            Err(Errno::ENOENT) => return Ok(None),
            other => other.map_err(dir.fail(Doing::Open, &name))?,
        };
        let refuse = |why| DiskError::ForeignPart { path: dir.child(&name), why };
        let stat = Stat::of(fd.as_fd()).map_err(dir.fail(Doing::Stat, &name))?;
        if stat.kind != Kind::File {
            return Err(DiskError::NotRegular { path: dir.child(&name) });
        }
        if stat.uid != nix::unistd::geteuid().as_raw() {
            return Err(refuse(Foreign::Owner));
        }
        if stat.links != 1 {
            return Err(refuse(Foreign::Links));
        }
        // See `source`: a descriptor for io_uring must not keep O_NONBLOCK.
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(OFlag::empty())).map_err(dir.fail(Doing::Open, &name))?;
        let part = Self::assemble(dir.clone(), name.clone(), final_name, fd, size, plan)?;
        // Only now, the lock held, is what is seen final: the predecessor may have published it meanwhile.
        if !dir.stat(&name).map_err(|_| refuse(Foreign::Swapped))?.same_object(&stat) {
            return Err(refuse(Foreign::Swapped));
        }
        if exact && Stat::of(part.fd.as_fd()).map_err(dir.fail(Doing::Stat, &name))?.size != size {
            return Err(refuse(Foreign::Size));
        }
        Ok(Some(part))
    }

    /// Removes what an earlier run left under the part name, whatever it is, if anything. The lock of the tree must be held.
    pub fn discard(root: &Root, final_path: &RelPath, id: &TransferId) -> Result<bool, DiskError> {
        let (dir, final_name) = place(root, final_path)?;
        match dir.unlink(&part_name(final_name, id)) {
            Err(DiskError::NotFound { .. }) => Ok(false),
            other => other.map(|()| true),
        }
    }

    fn assemble(
        dir: DirHandle,
        name: Vec<u8>,
        final_name: &[u8],
        fd: OwnedFd,
        size: u64,
        plan: &WritePlan,
    ) -> Result<Self, DiskError> {
        let stat = Stat::of(fd.as_fd()).map_err(dir.fail(Doing::Stat, &name))?;
        let volatile = FsKind::of(fd.as_fd()).is_ok_and(FsKind::is_volatile);
        let mut notes = Vec::new();
        let mut mode = plan.mode;
        let mut direct = None;
        if mode == FileMode::Direct {
            match open_direct(&dir, &name, &stat) {
                Ok(fd) => direct = Some(Arc::new(fd)),
                Err(errno) => {
                    notes.push(PartNote::NotDirect(errno));
                    mode = FileMode::PageCache;
                }
            }
        }
        let part = Self {
            dir,
            name,
            final_name: final_name.to_vec(),
            fd: Arc::new(fd),
            direct,
            direct_read: OnceLock::new(),
            stat,
            size,
            mode,
            volatile,
            poisoned: AtomicBool::new(false),
            named: AtomicBool::new(false),
            notes,
            #[cfg(test)]
            fail_sync: AtomicBool::new(false),
        };
        part.lock()
    }

    /// Locks the description that the ring writes through: the kernel holds it as long as a write is in flight.
    fn lock(mut self) -> Result<Self, DiskError> {
        let deadline = clock::now() + LOCK_PATIENCE;
        let locked = loop {
            let fd = self.direct.as_ref().unwrap_or(&self.fd);
            match retrying(|| fsys::try_flock(fd.as_fd())) {
                Err(Errno::EWOULDBLOCK) if clock::now() < deadline => clock::pause(LOCK_PAUSE),
                Err(Errno::EWOULDBLOCK) => return Err(DiskError::Busy { path: self.dir.child(&self.name) }),
                other => break other,
            }
        };
        if let Err(errno) = locked {
            self.notes.push(PartNote::NotLocked(errno));
        }
        Ok(self)
    }

    fn give_space(&mut self, size: u64, extents: Option<&[Span]>, plan: &WritePlan) -> Result<(), DiskError> {
        let fail = |errno| self.dir.fail(Doing::Allocate, &self.name)(errno);
        points::fails("part.space").map_err(fail)?;
        let len = i64::try_from(size).map_err(|_| fail(Errno::EFBIG))?;
        retrying(|| calls::truncate(self.fd.as_fd(), len)).map_err(|e| match e {
            Errno::EFBIG | Errno::EINVAL => DiskError::TooBig { path: self.dir.child(&self.name), size },
            e => fail(e),
        })?;
        let whole = [Span { offset: 0, len: size }];
        if self.is_synthetic() {
            return Ok(());
        }
        let extents = extents.unwrap_or(if size == 0 { &[] } else { &whole });
        let needed = extents.iter().fold(0u64, |sum, span| sum.saturating_add(span.len));
        if !plan.preallocate {
            self.notes.extend(plan.unallocated.map(PartNote::NotAllocated));
            // tmpfs without a limit has no blocks to count.
            let space = fstatvfs(&self.fd).ok().filter(|v| needed >= LARGE && v.blocks() > 0);
            return match space {
                Some(v) if v.blocks_free().saturating_mul(v.fragment_size()) < needed => Err(self.no_space(needed)),
                _ => Ok(()),
            };
        }
        for span in extents {
            let inside = span.offset.checked_add(span.len).is_some_and(|end| end <= size);
            let (Ok(offset), Ok(len), true) = (i64::try_from(span.offset), i64::try_from(span.len), inside) else {
                return Err(fail(Errno::EINVAL));
            };
            match retrying(|| calls::allocate(self.fd.as_fd(), offset, len)) {
                Ok(()) => {}
                Err(Errno::ENOSPC) => return Err(self.no_space(needed)),
                Err(errno @ (Errno::EOPNOTSUPP | Errno::ENOSYS)) => {
                    self.notes.push(PartNote::NotAllocated(errno));
                    return Ok(());
                }
                Err(errno) => return Err(fail(errno)),
            }
        }
        Ok(())
    }

    fn no_space(&self, needed: u64) -> DiskError {
        let free = fstatvfs(&self.fd).map_or(0, |v| v.blocks_available().saturating_mul(v.fragment_size()));
        DiskError::NoSpace { path: self.dir.child(&self.name), needed, free }
    }

    /// The bytes it will have.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its inode and device, for the journal.
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// The file system that it is on, for messages.
    pub fn file_system(&self) -> Option<FsKind> {
        FsKind::of(self.fd.as_fd()).ok()
    }

    /// What was not as asked.
    pub fn notes(&self) -> &[PartNote] {
        &self.notes
    }

    /// For the workers' writes. In mode `Direct` offset, length and address are multiples of 4096; the rest of the last
    /// block goes through [`PartFile::tail_ref`], so that the file never grows beyond its size.
    pub fn file_ref(&self) -> FileRef {
        FileRef { fd: Arc::clone(self.direct.as_ref().unwrap_or(&self.fd)), mode: self.mode }
    }

    /// For writes that are not aligned: buffered.
    pub fn tail_ref(&self) -> FileRef {
        FileRef { fd: Arc::clone(&self.fd), mode: FileMode::PageCache }
    }

    /// Whether what is written to it is dropped: it has a size and no content, and no final name to come.
    pub fn is_synthetic(&self) -> bool {
        self.mode == FileMode::Synthetic
    }

    /// Whether a sync of it has failed.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    fn not_poisoned(&self) -> Result<(), DiskError> {
        if self.is_poisoned() { Err(DiskError::Poisoned { path: self.dir.child(&self.name) }) } else { Ok(()) }
    }

    pub(super) fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    /// Writes all of `buf` at `offset`, buffered (or with RWF_DONTCACHE when that is the plan), for callers without a ring.
    pub fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        self.not_poisoned()?;
        let fail = self.dir.fail(Doing::Write, &self.name);
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size) {
            return Err(fail(Errno::EINVAL));
        }
        if self.is_synthetic() {
            return Ok(());
        }
        let mut caching = if self.mode == FileMode::DontCache { Caching::DontCache } else { Caching::Normal };
        let mut at = 0;
        while at < buf.len() {
            match retrying(|| calls::write_at(self.fd.as_fd(), &buf[at..], offset + at as u64, caching)) {
                Ok(0) => return Err(fail(Errno::EIO)),
                Ok(n) => at += n,
                Err(Errno::EOPNOTSUPP) if caching == Caching::DontCache => caching = Caching::Normal,
                Err(Errno::ENOSPC) => return Err(self.no_space(self.size)),
                Err(errno) => return Err(fail(errno)),
            }
        }
        Ok(())
    }

    /// Makes `span` read as zeros, without blocks where the file system can.
    pub fn punch(&self, span: Span) -> Result<Punched, DiskError> {
        self.not_poisoned()?;
        let fail = |errno| self.dir.fail(Doing::Allocate, &self.name)(errno);
        let inside = span.offset.checked_add(span.len).is_some_and(|end| end <= self.size);
        let (Ok(offset), Ok(len), true) = (i64::try_from(span.offset), i64::try_from(span.len), inside) else {
            return Err(fail(Errno::EINVAL));
        };
        if len == 0 {
            return Ok(Punched::Hole);
        }
        match retrying(|| calls::punch(self.fd.as_fd(), offset, len)) {
            Ok(()) => Ok(Punched::Hole),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                let zeros = [0; ZERO_STEP];
                let mut at = span.offset;
                while at < span.end() {
                    let step = (span.end() - at).min(ZERO_STEP as u64);
                    self.write_all_at(&zeros[..step as usize], at)?;
                    at += step;
                }
                Ok(Punched::Zeros)
            }
            Err(errno) => Err(fail(errno)),
        }
    }

    /// Starts the write-back of what was written buffered, so that the next sync is short. Advice only.
    pub fn write_behind(&self, span: Span) {
        // A refusal costs time at the sync, nothing else.
        let _ = fsys::start_writeback(self.fd.as_fd(), span.offset, span.len);
    }

    /// Makes everything durable whose write has completed. After one failure the kernel's answers about this file prove
    /// nothing any more: it is poisoned for ever.
    pub fn sync_data(&self) -> Result<(), DiskError> {
        self.sync_with(calls::sync_data)
    }

    /// Whether its part name is known to be durable.
    pub fn is_named(&self) -> bool {
        self.named.load(Ordering::Acquire)
    }

    pub(super) fn sync_with(&self, sync: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>) -> Result<(), DiskError> {
        self.not_poisoned()?;
        let synced = retrying(|| points::fails("part.sync").and_then(|()| sync(self.fd.as_fd())));
        #[cfg(test)]
        let synced = if self.fail_sync.load(Ordering::Relaxed) { Err(Errno::EIO) } else { synced };
        synced.map_err(|errno| {
            self.poison();
            self.dir.fail(Doing::Sync, &self.name)(errno)
        })
    }

    /// Fills `buf` with the bytes at `offset` as the medium has them, past the page cache; to be called after a sync.
    /// `buf` need not be aligned. A file that ends earlier is an error, not a short read.
    pub fn read_back(&self, offset: u64, buf: &mut [u8]) -> Result<ReadBack, DiskError> {
        self.not_poisoned()?;
        let end = offset.saturating_add(buf.len() as u64);
        if end > self.size {
            return Err(self.short(end - self.size));
        }
        if self.is_synthetic() {
            return Err(self.dir.fail(Doing::Read, &self.name)(Errno::ENODATA));
        }
        if self.volatile {
            return self.read_plain(offset, buf).map(|()| ReadBack::Memory);
        }
        let direct = self.direct.as_ref().or_else(|| {
            let open = || open_direct(&self.dir, &self.name, &self.stat).ok().map(Arc::new);
            self.direct_read.get_or_init(open).as_ref()
        });
        if let Some(fd) = direct {
            match self.read_direct(fd.as_fd(), offset, buf) {
                Err(DiskError::Os { errno: Errno::EINVAL, .. }) => {}
                other => return other.map(|()| ReadBack::Direct),
            }
        }
        let (start, len) = (i64::try_from(offset).unwrap_or(0), i64::try_from(buf.len()).unwrap_or(0));
        posix_fadvise(&self.fd, start, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(self.dir.fail(Doing::Read, &self.name))?;
        self.read_plain(offset, buf).map(|()| ReadBack::CacheDropped)
    }

    fn short(&self, missing: u64) -> DiskError {
        DiskError::Short { path: self.dir.child(&self.name), missing }
    }

    fn read_plain(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let mut at = 0;
        while at < buf.len() {
            let n = retrying(|| fsys::read_at(self.fd.as_fd(), &mut buf[at..], offset + at as u64, Caching::Normal))
                .map_err(self.dir.fail(Doing::Read, &self.name))?;
            if n == 0 {
                return Err(self.short((buf.len() - at) as u64));
            }
            at += n;
        }
        Ok(())
    }

    fn read_direct(&self, fd: BorrowedFd<'_>, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let unit = DIRECT_ALIGN as u64;
        let mut bounce = AlignedBuf::new(READ_BACK_STEP.min(buf.len() + 2 * DIRECT_ALIGN));
        let mut at = 0;
        while at < buf.len() {
            let want = offset + at as u64;
            let start = want - want % unit;
            let skip = (want - start) as usize;
            let n = retrying(|| fsys::read_at(fd, &mut bounce, start, Caching::Normal))
                .map_err(self.dir.fail(Doing::Read, &self.name))?;
            let got = bounce.get(skip..n).unwrap_or(&[]);
            let take = got.len().min(buf.len() - at);
            if take == 0 {
                return Err(self.short((buf.len() - at) as u64));
            }
            buf[at..at + take].copy_from_slice(&got[..take]);
            at += take;
        }
        Ok(())
    }

    /// Reads it from its beginning, through the page cache: for checksums that need the bytes in order.
    pub fn reader(&self) -> std::io::Result<impl std::io::Read + use<>> {
        struct Reader(std::fs::File, u64);
        impl std::io::Read for Reader {
            fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
                let n = std::os::unix::fs::FileExt::read_at(&self.0, buf, self.1)?;
                self.1 += n as u64;
                Ok(n)
            }
        }
        if self.is_synthetic() {
            return Err(Errno::ENODATA.into());
        }
        Ok(Reader(std::fs::File::from(self.fd.try_clone()?), 0))
    }

    /// Removes the part file, if its name still leads to it.
    pub fn remove(self) -> Result<(), DiskError> {
        self.unlink()
    }

    pub(super) fn unlink(&self) -> Result<(), DiskError> {
        self.dir.unlink_same(&self.name, self.fd.as_fd())
    }
}

/// Makes the part names of these files durable, each directory synced once: a sync of a file alone promises nothing about
/// its name. One result per file, in order.
pub fn sync_names(parts: &[Arc<PartFile>]) -> Vec<Result<(), DiskError>> {
    let mut synced: Vec<(&RelPath, Result<(), DiskError>)> = Vec::new();
    let mut outcomes = Vec::with_capacity(parts.len());
    for part in parts {
        let path = part.dir.path();
        let known = synced.iter().find(|(dir, _)| *dir == path).map(|(_, outcome)| outcome.clone());
        let outcome = match known {
            _ if part.is_named() => Ok(()),
            Some(outcome) => outcome,
            None => {
                let outcome = part.dir.sync();
                synced.push((path, outcome.clone()));
                outcome
            }
        };
        part.named.store(outcome.is_ok(), Ordering::Release);
        outcomes.push(outcome);
    }
    outcomes
}

/// The open parent and the final name; a reserved or empty one is refused.
pub(super) fn place<'p>(root: &Root, path: &'p RelPath) -> Result<(DirHandle, &'p [u8]), DiskError> {
    if is_reserved(path) {
        return Err(DiskError::Reserved { path: path.clone() });
    }
    root.parent_of(path)
}

fn open_direct(dir: &DirHandle, name: &[u8], stat: &Stat) -> Result<OwnedFd, Errno> {
    let fd = dir.open_at(name, OFlag::O_RDWR | OFlag::O_DIRECT, 0)?;
    if Stat::of(fd.as_fd())?.same_object(stat) { Ok(fd) } else { Err(Errno::ESTALE) }
}

/// Errors about space name the file that the user knows.
fn with_path(error: DiskError, path: &RelPath) -> DiskError {
    match error {
        DiskError::NoSpace { needed, free, .. } => DiskError::NoSpace { path: path.clone(), needed, free },
        DiskError::TooBig { size, .. } => DiskError::TooBig { path: path.clone(), size },
        other => other,
    }
}
