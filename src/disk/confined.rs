//! A directory that is never left: every path is resolved beneath it, no symbolic link is followed, and what happens
//! then happens through descriptors, not through paths.
//!
//! `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS` does it in one call; where a kernel or a
//! sandbox refuses `openat2`, each component is opened with `O_NOFOLLOW`. Creating, renaming and removing act on the
//! descriptor of the parent and a single name, so that a directory exchanged for a symlink meanwhile changes nothing.

use super::calls;
use super::error::{DiskError, Doing};
use crate::manifest::Mtime;
use crate::relpath::RelPath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Directories that a root keeps open: consecutive files mostly share one, parallel threads a few.
const CACHED_DIRS: usize = 32;
/// `openat2` says EAGAIN when a rename raced with it; more than this in a row is somebody's intent.
const RACE_RETRIES: usize = 128;

/// Opening a directory for reading it, never through a symlink.
const DIR_FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// The same where we may pass through it but not list it.
const DIR_PATH_FLAGS: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// How paths are resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolver {
    /// `openat2`.
    OpenAt2,
    /// Component by component with `O_NOFOLLOW`: the kernel or a sandbox refuses `openat2`.
    Walk,
}

impl Resolver {
    /// What this process can use, probed once.
    pub fn probed() -> Self {
        static FOUND: OnceLock<Resolver> = OnceLock::new();
        // Any failure (ENOSYS before 5.6, EPERM in older sandboxes) selects the walk, which is as strict.
        *FOUND.get_or_init(|| {
            let how =
                OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
            match openat2(nix::fcntl::AT_FDCWD, "/", how) {
                Ok(_) => Resolver::OpenAt2,
                Err(_) => Resolver::Walk,
            }
        })
    }

    /// For reports: `openat2` or `component walk`.
    pub fn word(self) -> &'static str {
        match self {
            Resolver::OpenAt2 => "openat2",
            Resolver::Walk => "component walk",
        }
    }
}

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A FIFO, socket or device.
    Special,
}

/// Metadata of a name, a symlink's own where it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid, sticky (07777).
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Allocated bytes.
    pub allocated: u64,
    /// Modification time.
    pub mtime: Mtime,
    /// Change time.
    pub ctime: Mtime,
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Hard links.
    pub links: u64,
    /// Owner.
    pub uid: u32,
}

impl From<&FileStat> for Stat {
    fn from(st: &FileStat) -> Self {
        let kind = match st.st_mode & libc::S_IFMT {
            libc::S_IFDIR => Kind::Dir,
            libc::S_IFREG => Kind::File,
            libc::S_IFLNK => Kind::Symlink,
            _ => Kind::Special,
        };
        Self {
            kind,
            mode: st.st_mode & 0o7777,
            size: st.st_size.max(0) as u64,
            allocated: (st.st_blocks.max(0) as u64).saturating_mul(512),
            mtime: Mtime { secs: st.st_mtime, nanos: st.st_mtime_nsec as u32 },
            ctime: Mtime { secs: st.st_ctime, nanos: st.st_ctime_nsec as u32 },
            dev: st.st_dev,
            ino: st.st_ino,
            links: st.st_nlink,
            uid: st.st_uid,
        }
    }
}

impl Stat {
    /// Metadata of an open file.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        fstat(fd).map(|st| Self::from(&st))
    }

    /// Whether both are one object.
    pub fn same_object(&self, other: &Stat) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }
}

/// An open directory beneath a root. Clones share the descriptor, which stays valid whatever becomes of the name.
#[derive(Debug, Clone)]
pub struct DirHandle {
    fd: Arc<OwnedFd>,
    path: RelPath,
}

impl AsFd for DirHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An open directory that is never left.
#[derive(Debug)]
pub struct Root {
    dir: DirHandle,
    resolver: Resolver,
    /// Most recently used last.
    cache: Mutex<Vec<DirHandle>>,
}

/// Whether [`Root::make_dir`] made the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// It is new, mode 0700.
    New,
    /// It was there.
    Existed,
}

impl Root {
    pub(super) fn from_fd(fd: OwnedFd, resolver: Resolver) -> Self {
        let dir = DirHandle { fd: Arc::new(fd), path: RelPath::default() };
        Self { dir, resolver, cache: Mutex::new(Vec::with_capacity(CACHED_DIRS)) }
    }

    /// How this root resolves paths.
    pub fn resolver(&self) -> Resolver {
        self.resolver
    }

    /// The root itself.
    pub fn handle(&self) -> &DirHandle {
        &self.dir
    }

    /// Opens a directory, or takes it from the cache.
    pub fn open_dir(&self, path: &RelPath) -> Result<DirHandle, DiskError> {
        if path.is_root() {
            return Ok(self.dir.clone());
        }
        if let Some(hit) = self.cached(path) {
            return Ok(hit);
        }
        let dir = self.open_dir_uncached(path)?;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() == CACHED_DIRS {
            cache.remove(0);
        }
        cache.push(dir.clone());
        Ok(dir)
    }

    /// As [`Root::open_dir`], without a place in the cache, and with a listing place of its own.
    pub fn open_dir_uncached(&self, path: &RelPath) -> Result<DirHandle, DiskError> {
        if path.is_root() {
            let fd = self.dir.open_child_dir(b".").map_err(|e| DiskError::new(Doing::OpenDir, path, e))?;
            return Ok(DirHandle::new(fd, path.clone()));
        }
        let opened = match self.resolve(path, DIR_FLAGS) {
            // A directory that may be passed through but not listed.
            Err(Errno::EACCES) => self.resolve(path, DIR_PATH_FLAGS),
            other => other,
        };
        let fd = opened.map_err(|errno| self.resolve_error(Doing::OpenDir, path, errno))?;
        Ok(DirHandle { fd: Arc::new(fd), path: path.clone() })
    }

    /// Forgets a directory (and all below it) that was opened before: it is about to be moved or removed.
    pub fn forget(&self, path: &RelPath) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).retain(|dir| !dir.path.starts_with(path));
    }

    fn cached(&self, path: &RelPath) -> Option<DirHandle> {
        let dir = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            let at = cache.iter().rposition(|dir| dir.path == *path)?;
            cache[at..].rotate_left(1);
            cache.last()?.clone()
        };
        // A directory that was removed meanwhile keeps its descriptor but has no link left. Asked without the lock: the
        // pool's threads come here once per small file.
        if fstat(&dir.fd).map_or(0, |st| st.st_nlink) == 0 {
            self.cache.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| !Arc::ptr_eq(&other.fd, &dir.fd));
            return None;
        }
        Some(dir)
    }

    fn resolve(&self, path: &RelPath, flags: OFlag) -> Result<OwnedFd, Errno> {
        match self.resolver {
            Resolver::Walk => self.walk(path, flags),
            Resolver::OpenAt2 => {
                let how = OpenHow::new().flags(flags).resolve(
                    ResolveFlag::RESOLVE_BENEATH
                        | ResolveFlag::RESOLVE_NO_SYMLINKS
                        | ResolveFlag::RESOLVE_NO_MAGICLINKS,
                );
                for _ in 0..RACE_RETRIES {
                    match openat2(&self.dir, path.as_bytes(), how) {
                        Err(Errno::EAGAIN | Errno::EINTR) => {}
                        other => return other,
                    }
                }
                self.walk(path, flags)
            }
        }
    }

    fn walk(&self, path: &RelPath, flags: OFlag) -> Result<OwnedFd, Errno> {
        let mut parts = path.components().peekable();
        let mut at: Option<OwnedFd> = None;
        while let Some(part) = parts.next() {
            let dir = at.as_ref().map_or(self.dir.as_fd(), AsFd::as_fd);
            let flags = if parts.peek().is_some() { DIR_PATH_FLAGS } else { flags };
            at = Some(retrying(|| openat(dir, part, flags | OFlag::O_NOFOLLOW, Mode::empty()))?);
        }
        at.ok_or(Errno::EINVAL)
    }

    /// O_DIRECTORY|O_NOFOLLOW says ENOTDIR for a symlink: tell the two apart, since the advice differs.
    fn resolve_error(&self, doing: Doing, path: &RelPath, errno: Errno) -> DiskError {
        if errno != Errno::ENOTDIR {
            return DiskError::new(doing, path, errno);
        }
        let mut at: Option<OwnedFd> = None;
        let mut seen = RelPath::default();
        for part in path.components() {
            let dir = at.as_ref().map_or(self.dir.as_fd(), AsFd::as_fd);
            seen = seen.join(part).unwrap_or(seen);
            match fstatat(dir, part, AtFlags::AT_SYMLINK_NOFOLLOW).map(|st| Stat::from(&st).kind) {
                Ok(Kind::Symlink) => return DiskError::SymlinkInTheWay { path: seen },
                Ok(Kind::Dir) => {}
                _ => break,
            }
            match openat(dir, part, DIR_PATH_FLAGS, Mode::empty()) {
                Ok(fd) => at = Some(fd),
                Err(_) => break,
            }
        }
        DiskError::new(doing, path, errno)
    }

    /// The open parent of a path and its last name. The root itself has none: `NotRegular`.
    pub fn parent_of<'p>(&self, path: &'p RelPath) -> Result<(DirHandle, &'p [u8]), DiskError> {
        let (parent, name) = path.split_last().ok_or_else(|| DiskError::NotRegular { path: path.clone() })?;
        Ok((self.open_dir(&parent)?, name))
    }

    /// Metadata of a name; a symlink is not followed.
    pub fn stat(&self, path: &RelPath) -> Result<Stat, DiskError> {
        if path.is_root() {
            return Stat::of(self.dir.as_fd()).map_err(|e| DiskError::new(Doing::Stat, path, e));
        }
        let (dir, name) = self.parent_of(path)?;
        dir.stat(name)
    }

    /// Where a symlink points.
    pub fn read_link(&self, path: &RelPath) -> Result<Vec<u8>, DiskError> {
        let (dir, name) = self.parent_of(path)?;
        dir.read_link(name)
    }

    /// Makes a directory, mode 0700 until its final mode is set. One that is there is fine; anything else of that name
    /// is not.
    pub fn make_dir(&self, path: &RelPath) -> Result<Made, DiskError> {
        if path.is_root() {
            return Ok(Made::Existed);
        }
        let (dir, name) = self.parent_of(path)?;
        dir.make_dir(name)
    }

    /// Makes a directory and every one above it that is missing; those that were made, top down.
    pub fn make_dirs(&self, path: &RelPath) -> Result<Vec<RelPath>, DiskError> {
        let mut missing = vec![];
        let mut at = path.clone();
        loop {
            match self.make_dir(&at) {
                Ok(Made::Existed) => break,
                Ok(Made::New) => {
                    missing.push((at, true));
                    break;
                }
                Err(DiskError::NotFound { .. }) => match at.clone().split_last() {
                    Some((parent, _)) => missing.push((std::mem::replace(&mut at, parent), false)),
                    None => return Err(DiskError::NotFound { path: path.clone() }),
                },
                Err(e) => return Err(e),
            }
        }
        let mut made = Vec::with_capacity(missing.len());
        for (dir, done) in missing.into_iter().rev() {
            if done || self.make_dir(&dir)? == Made::New {
                made.push(dir);
            }
        }
        Ok(made)
    }

    /// Removes a name that is not a directory.
    pub fn unlink(&self, path: &RelPath) -> Result<(), DiskError> {
        let (dir, name) = self.parent_of(path)?;
        dir.unlink(name)
    }

    /// Removes an empty directory.
    pub fn remove_dir(&self, path: &RelPath) -> Result<(), DiskError> {
        let (dir, name) = self.parent_of(path)?;
        self.forget(path);
        dir.remove_dir(name)
    }

    /// Makes the names in a directory durable.
    pub fn sync_dir(&self, path: &RelPath) -> Result<(), DiskError> {
        self.open_dir(path)?.sync()
    }
}

/// The directory that was asked for last. Files of a pack lie side by side: for all but the first of a directory there is
/// neither lock nor look-up, nor a question whether it is still there. So it is for a pack, and not for longer.
#[derive(Debug, Default)]
pub struct LastDir(Option<DirHandle>);

impl LastDir {
    /// As [`Root::parent_of`]. Always of the same root.
    pub fn parent_of<'p>(&mut self, root: &Root, path: &'p RelPath) -> Result<(DirHandle, &'p [u8]), DiskError> {
        if let Some(dir) = &self.0
            && let Some(name) = path.name_in(&dir.path)
        {
            return Ok((dir.clone(), name));
        }
        let (dir, name) = root.parent_of(path)?;
        self.0 = Some(dir.clone());
        Ok((dir, name))
    }
}

/// Repeats a call that a signal interrupted.
pub(super) fn retrying<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Operations on one name in an open directory. The name is a single component that came out of a [`RelPath`] or out of
/// the kernel.
impl DirHandle {
    pub(super) fn new(fd: OwnedFd, path: RelPath) -> Self {
        Self { fd: Arc::new(fd), path }
    }

    /// Where it is, below its root.
    pub fn path(&self) -> &RelPath {
        &self.path
    }

    /// The path of a child, for messages: the directory's own where the whole would be too long.
    pub(super) fn child(&self, name: &[u8]) -> RelPath {
        self.path.join(name).unwrap_or_else(|_| self.path.clone())
    }

    /// The path is put together only when there is an error to tell.
    pub(super) fn fail(&self, doing: Doing, name: &[u8]) -> impl FnOnce(Errno) -> DiskError {
        debug_assert!(!name.contains(&b'/'), "one component");
        move |errno| DiskError::new(doing, &self.child(name), errno).with_file_system(self.fd.as_fd())
    }

    pub(super) fn open_at(&self, name: &[u8], flags: OFlag, mode: u32) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        retrying(|| calls::open(self.as_fd(), name, flags, Mode::from_bits_truncate(mode)))
    }

    /// A file without a name in this directory, gone with its descriptor; not every file system has such.
    pub fn nameless_file(&self) -> Result<std::fs::File, DiskError> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR;
        self.open_at(b".", flags, 0o600).map(std::fs::File::from).map_err(self.fail(Doing::Create, b"."))
    }

    /// Opens a directory in this one.
    pub(super) fn open_child_dir(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_at(name, DIR_FLAGS, 0)
    }

    /// Metadata of a name; a symlink is not followed.
    pub fn stat(&self, name: &[u8]) -> Result<Stat, DiskError> {
        self.try_stat(name).map_err(self.fail(Doing::Stat, name))
    }

    pub(super) fn try_stat(&self, name: &[u8]) -> Result<Stat, Errno> {
        fstatat(self, name, AtFlags::AT_SYMLINK_NOFOLLOW).map(|st| Stat::from(&st))
    }

    /// Where a symlink points.
    pub fn read_link(&self, name: &[u8]) -> Result<Vec<u8>, DiskError> {
        use std::os::unix::ffi::OsStringExt;
        nix::fcntl::readlinkat(self, name).map(OsStringExt::into_vec).map_err(self.fail(Doing::ReadLink, name))
    }

    pub(super) fn make_dir(&self, name: &[u8]) -> Result<Made, DiskError> {
        match calls::make_dir(self.as_fd(), name, Mode::S_IRWXU) {
            Ok(()) => Ok(Made::New),
            Err(Errno::EEXIST) => match self.stat(name)?.kind {
                Kind::Dir => Ok(Made::Existed),
                Kind::Symlink => Err(DiskError::SymlinkInTheWay { path: self.child(name) }),
                Kind::File | Kind::Special => Err(DiskError::NotADirectory { path: self.child(name) }),
            },
            Err(errno) => Err(self.fail(Doing::MakeDir, name)(errno)),
        }
    }

    pub(super) fn unlink(&self, name: &[u8]) -> Result<(), DiskError> {
        calls::unlink(self.as_fd(), name).map_err(self.fail(Doing::Remove, name))
    }

    pub(super) fn remove_dir(&self, name: &[u8]) -> Result<(), DiskError> {
        calls::remove_dir(self.as_fd(), name).map_err(self.fail(Doing::Remove, name))
    }

    /// Removes a name only while it leads to the object that `fd` has open.
    pub(super) fn unlink_same(&self, name: &[u8], fd: BorrowedFd<'_>) -> Result<(), DiskError> {
        let ours = Stat::of(fd).map_err(self.fail(Doing::Stat, name))?;
        if !self.stat(name)?.same_object(&ours) {
            return Err(DiskError::ForeignPart { path: self.child(name), why: super::error::Foreign::Swapped });
        }
        self.unlink(name)
    }

    pub(super) fn symlink(&self, target: &[u8], name: &[u8]) -> Result<(), DiskError> {
        calls::symlink(target, self.as_fd(), name).map_err(self.fail(Doing::Link, name))
    }

    pub(super) fn rename_replacing(&self, from: &[u8], to: &[u8]) -> Result<(), Errno> {
        calls::rename(self.as_fd(), from, to)
    }

    pub(super) fn rename_noreplace(&self, from: &[u8], to: &[u8]) -> Result<(), Errno> {
        calls::rename_noreplace(self.as_fd(), from, to)
    }

    /// Makes the names in this directory durable.
    pub fn sync(&self) -> Result<(), DiskError> {
        let sync = || crate::sys::points::fails("directory.sync").and_then(|()| calls::sync(self.as_fd()));
        sync().map_err(|e| DiskError::new(Doing::SyncDir, &self.path, e).with_file_system(self.fd.as_fd()))
    }
}
