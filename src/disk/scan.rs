//! Walk 4 (its disk side): streams the names below the source roots, so that the first bytes move before the scan ends.
//!
//! Depth first, in the order the file system lists, with bounded memory and bounded descriptors whatever the tree: of
//! the levels of a deep tree only the lowest `OPEN_LEVELS` are open; the ones above keep their place in the listing (the
//! kernel's cookie, which network file servers rely on as well) and are opened again when the walk comes back to them.

use super::confined::{DirHandle, Kind, Root, Stat};
use super::error::{DiskError, Doing};
use super::names::is_reserved_name;
use crate::grid::MAX_FILE_SIZE;
use crate::limits::SYMLINK_MAX;
use crate::manifest::{Entry, EntryKind};
use crate::relpath::{RelPath, escape};
use crate::sys::fsys::getdents64;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::ops::ControlFlow;
use std::os::fd::AsFd;

/// Levels of one walk that are open at once: with the buffers below 2 MiB, and far from any descriptor limit.
const OPEN_LEVELS: usize = 64;
/// Directory entries read at once.
const DIRENTS_BUFFER: usize = 32 << 10;

/// One thing that the scan found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scanned {
    /// A name to move (or, for `Special`, to report).
    Entry(Entry),
    /// A name that cannot be moved; the scan goes on.
    Problem {
        /// Which source root.
        root: u16,
        /// Below that root.
        path: RelPath,
        /// Why.
        error: ScanError,
    },
}

/// Why a name cannot be moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// A directory was named without asking for its content.
    #[error("is a directory; add -r to move it with its content")]
    NeedsRecursive,
    /// The path of a name in this directory is longer than PATH_MAX allows.
    #[error(
        "the path of `{}` in it is longer than 4095 bytes; name a directory further down as the source",
        escape(name)
    )]
    TooLong {
        /// The name, as listed.
        name: Box<[u8]>,
    },
    /// Vanished while it was looked at, or its directory was exchanged.
    #[error("vanished or was exchanged while the tree was scanned; repeat when it is at rest")]
    Vanished,
    /// What the file system said.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// What a scan came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScanTotals {
    /// Directories, the roots included.
    pub directories: u64,
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// FIFOs, sockets and devices.
    pub specials: u64,
    /// Names that cannot be moved.
    pub problems: u64,
    /// Our own part files and state directories, left out, and directories of the skip list.
    pub left_out: u64,
    /// The receiver asked for the end before it came.
    pub stopped: bool,
}

/// A file system object, for [`scan`]'s list of directories to leave out (a destination inside the source).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectId {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

impl From<&Stat> for ObjectId {
    fn from(st: &Stat) -> Self {
        Self { dev: st.dev, ino: st.ino }
    }
}

/// Scans `roots` (paths below `root`; at most 65,535) and hands everything to `emit`, a directory before what is in it.
///
/// A root that is itself a symlink is followed (see [`Root::canonical`]: open its files below the canonical path);
/// nothing below a root is. Without `recursive` a directory is a problem.
pub fn scan(
    root: &Root,
    roots: &[RelPath],
    recursive: bool,
    skip: &[ObjectId],
    emit: &mut dyn FnMut(Scanned) -> ControlFlow<()>,
) -> ScanTotals {
    let mut scanner = Scanner {
        root,
        skip,
        emit,
        ours: None,
        totals: ScanTotals::default(),
        base: RelPath::default(),
        index: 0,
        stack: Vec::new(),
        spare: Vec::new(),
    };
    scanner.all(roots, recursive);
    scanner.totals
}

/// Walks the whole of `root` for what this program left: part files and state directories, each with its open directory.
pub(super) fn scan_ours(root: &Root, ours: &mut dyn FnMut(&DirHandle, &[u8])) -> ScanTotals {
    let mut scanner = Scanner {
        root,
        skip: &[],
        emit: &mut |_| ControlFlow::Continue(()),
        ours: Some(ours),
        totals: ScanTotals::default(),
        base: RelPath::default(),
        index: 0,
        stack: Vec::new(),
        spare: Vec::new(),
    };
    scanner.all(&[RelPath::default()], true);
    scanner.totals
}

/// One directory on the way down.
struct Level {
    /// `None` while it is parked.
    dir: Option<DirHandle>,
    id: ObjectId,
    /// Below the source root.
    path: RelPath,
    /// Entries read and not yet taken: `buf[at..end]`. Empty while parked.
    buf: Vec<u8>,
    at: usize,
    end: usize,
    /// Where the listing continues after the last entry that was taken.
    cookie: i64,
}

type OnOurs<'a> = &'a mut dyn FnMut(&DirHandle, &[u8]);

struct Scanner<'a> {
    root: &'a Root,
    skip: &'a [ObjectId],
    emit: &'a mut dyn FnMut(Scanned) -> ControlFlow<()>,
    /// Receives our own part files and state directories, which the scan leaves out.
    ours: Option<OnOurs<'a>>,
    totals: ScanTotals,
    /// The source root being walked, below `root`, without symlinks.
    base: RelPath,
    index: u16,
    stack: Vec<Level>,
    /// Buffers of levels that were left.
    spare: Vec<Vec<u8>>,
}

impl Scanner<'_> {
    fn problem(&mut self, path: &RelPath, error: impl Into<ScanError>) -> ControlFlow<()> {
        self.totals.problems += 1;
        (self.emit)(Scanned::Problem { root: self.index, path: path.clone(), error: error.into() })
    }

    fn all(&mut self, roots: &[RelPath], recursive: bool) {
        for (index, path) in roots.iter().enumerate() {
            let Ok(index) = u16::try_from(index) else { break };
            self.index = index;
            if self.one_root(path, recursive).is_break() {
                self.totals.stopped = true;
                break;
            }
        }
    }

    fn one_root(&mut self, path: &RelPath, recursive: bool) -> ControlFlow<()> {
        let top = RelPath::default();
        let found = self.root.canonical(path).and_then(|base| Ok((self.root.stat(&base)?, base)));
        let stat = match found {
            Ok((stat, base)) => {
                self.base = base;
                stat
            }
            Err(e) => return self.problem(&top, e),
        };
        if stat.kind != Kind::Dir {
            let parent = self.root.parent_of(&self.base).map(|(dir, name)| (dir, name.to_vec()));
            return match parent {
                Ok((dir, name)) => self.leaf(&dir, &name, top, &stat),
                Err(e) => self.problem(&top, e),
            };
        }
        if !recursive {
            return self.problem(&top, ScanError::NeedsRecursive);
        }
        self.entry(top.clone(), EntryKind::Dir, &stat)?;
        self.totals.directories += 1;
        match self.root.open_dir_uncached(&self.base) {
            Ok(dir) => self.enter(dir, top)?,
            Err(e) => self.problem(&top, e)?,
        }
        while !self.stack.is_empty() {
            if let ControlFlow::Break(()) = self.step() {
                self.stack.clear();
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn entry(&mut self, path: RelPath, kind: EntryKind, stat: &Stat) -> ControlFlow<()> {
        let entry = Entry { root: self.index, path, kind, mode: stat.mode, mtime: stat.mtime };
        (self.emit)(Scanned::Entry(entry))
    }

    fn enter(&mut self, dir: DirHandle, path: RelPath) -> ControlFlow<()> {
        let id = match Stat::of(dir.as_fd()) {
            Ok(stat) => ObjectId::from(&stat),
            Err(e) => return self.problem(&path, DiskError::new(Doing::Stat, &path, e)),
        };
        if let Some(parked) = self.stack.len().checked_sub(OPEN_LEVELS) {
            let level = &mut self.stack[parked];
            level.dir = None;
            level.buf = Vec::new();
            (level.at, level.end) = (0, 0);
        }
        let buf = self.spare.pop().unwrap_or_else(|| vec![0; DIRENTS_BUFFER]);
        self.stack.push(Level { dir: Some(dir), id, path, buf, at: 0, end: 0, cookie: 0 });
        ControlFlow::Continue(())
    }

    fn leave(&mut self) {
        if let Some(level) = self.stack.pop().filter(|level| level.buf.len() == DIRENTS_BUFFER) {
            self.spare.push(level.buf);
        }
    }

    /// Takes the next name of the lowest level.
    fn step(&mut self) -> ControlFlow<()> {
        let Some(level) = self.stack.last_mut() else { return ControlFlow::Continue(()) };
        let next = level.reopen(self.root, &self.base).and_then(|dir| level.next().map(|name| (dir, name)));
        let path = level.path.clone();
        let (dir, name) = match next {
            Ok((dir, Some(name))) => (dir, name),
            Ok((_, None)) => {
                self.leave();
                return ControlFlow::Continue(());
            }
            Err(error) => {
                self.leave();
                return self.problem(&path, error);
            }
        };
        if is_reserved_name(&name) {
            self.totals.left_out += 1;
            if let Some(ours) = &mut self.ours {
                ours(&dir, &name);
            }
            return ControlFlow::Continue(());
        }
        // Two limits: the path as the peer gets it, and the path below our own root, by which it is opened.
        let Ok(child) = path.join(&name).and_then(|child| dir.path().join(&name).map(|_| child)) else {
            return self.problem(&path, ScanError::TooLong { name: name.into() });
        };
        match dir.try_stat(&name) {
            Ok(stat) if stat.kind == Kind::Dir => self.directory(&dir, &name, child, &stat),
            Ok(stat) => self.leaf(&dir, &name, child, &stat),
            Err(Errno::ENOENT) => self.problem(&child, ScanError::Vanished),
            Err(e) => self.problem(&child, DiskError::new(Doing::Stat, &child, e)),
        }
    }

    fn directory(&mut self, dir: &DirHandle, name: &[u8], child: RelPath, stat: &Stat) -> ControlFlow<()> {
        if self.skip.contains(&ObjectId::from(stat)) {
            self.totals.left_out += 1;
            return ControlFlow::Continue(());
        }
        self.totals.directories += 1;
        self.entry(child.clone(), EntryKind::Dir, stat)?;
        match dir.open_child_dir(name) {
            Ok(fd) => self.enter(DirHandle::new(fd, dir.child(name)), child),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => self.problem(&child, ScanError::Vanished),
            Err(e) => self.problem(&child, DiskError::new(Doing::OpenDir, &child, e)),
        }
    }

    /// Anything but a directory.
    fn leaf(&mut self, dir: &DirHandle, name: &[u8], child: RelPath, stat: &Stat) -> ControlFlow<()> {
        let kind = match stat.kind {
            Kind::File if stat.size > MAX_FILE_SIZE => {
                let error = DiskError::TooBig { path: child.clone(), size: stat.size };
                return self.problem(&child, error);
            }
            Kind::File => {
                self.totals.files += 1;
                self.totals.bytes += stat.size;
                EntryKind::File { size: stat.size, sparse: stat.allocated < stat.size }
            }
            Kind::Symlink => match dir.read_link(name) {
                Ok(target) if !target.is_empty() && target.len() <= SYMLINK_MAX => {
                    self.totals.symlinks += 1;
                    EntryKind::Symlink { target: target.into() }
                }
                Ok(_) => return self.problem(&child, DiskError::NameTooLong { path: child.clone() }),
                Err(DiskError::NotFound { .. }) => return self.problem(&child, ScanError::Vanished),
                Err(e) => return self.problem(&child, e),
            },
            Kind::Special | Kind::Dir => {
                self.totals.specials += 1;
                EntryKind::Special
            }
        };
        self.entry(child, kind, stat)
    }
}

impl Level {
    /// The open directory; a parked one is opened again, if it is still the same, and set to its place.
    fn reopen(&mut self, root: &Root, base: &RelPath) -> Result<DirHandle, ScanError> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let whole = if self.path.is_root() { Ok(base.clone()) } else { base.join(self.path.as_bytes()) };
        let dir = root.open_dir_uncached(&whole.map_err(|_| ScanError::Vanished)?).map_err(|e| match e {
            DiskError::TooManyFiles { .. } => ScanError::Disk(e),
            _ => ScanError::Vanished,
        })?;
        let failed = |errno| DiskError::new(Doing::List, &self.path, errno);
        if ObjectId::from(&Stat::of(dir.as_fd()).map_err(failed)?) != self.id {
            return Err(ScanError::Vanished);
        }
        lseek(&dir, self.cookie, Whence::SeekSet).map_err(failed)?;
        self.buf = vec![0; DIRENTS_BUFFER];
        self.dir = Some(dir.clone());
        Ok(dir)
    }

    /// The next name but `.` and `..`; `None` at the end.
    fn next(&mut self) -> Result<Option<Vec<u8>>, ScanError> {
        loop {
            while self.at < self.end {
                let entry = dirent(&self.buf[self.at..self.end]);
                let Some((len, cookie, name)) = entry else {
                    return Err(DiskError::new(Doing::List, &self.path, Errno::EBADMSG).into());
                };
                self.at += len;
                self.cookie = cookie;
                if name != b"." && name != b".." {
                    return Ok(Some(name.to_vec()));
                }
            }
            let Some(dir) = &self.dir else { return Ok(None) };
            let n = super::confined::retrying(|| getdents64(dir.as_fd(), &mut self.buf))
                .map_err(|e| DiskError::new(Doing::List, &self.path, e))?;
            if n == 0 {
                return Ok(None);
            }
            (self.at, self.end) = (0, n);
        }
    }
}

/// Length, cookie and name of the first `struct linux_dirent64` in `bytes`: u64 inode, i64 cookie, u16 length, u8 type,
/// name with NUL.
fn dirent(bytes: &[u8]) -> Option<(usize, i64, &[u8])> {
    const NAME_AT: usize = 19;
    let cookie = i64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
    let len = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
    let name = bytes.get(NAME_AT..len)?;
    let end = name.iter().position(|&b| b == 0)?;
    // A name with a slash would be a path: a broken (or hostile) file system must not lead us elsewhere.
    (len > 0 && end > 0 && !name[..end].contains(&b'/')).then_some((len, cookie, &name[..end]))
}

/// Hands every name of a directory but `.` and `..` to `each`, whatever it is, until it breaks.
pub(super) fn for_each_name(dir: &DirHandle, each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> Result<(), DiskError> {
    // A description of its own: the listing's place belongs to the description.
    let fd = dir.open_child_dir(b".").map_err(|e| DiskError::new(Doing::List, dir.path(), e))?;
    let handle = DirHandle::new(fd, dir.path().clone());
    let id = ObjectId { dev: 0, ino: 0 };
    let (path, buf) = (dir.path().clone(), vec![0; DIRENTS_BUFFER]);
    let mut level = Level { dir: Some(handle), id, path, buf, at: 0, end: 0, cookie: 0 };
    loop {
        match level.next() {
            Ok(Some(name)) if each(&name).is_continue() => {}
            Ok(_) => return Ok(()),
            Err(ScanError::Disk(e)) => return Err(e),
            Err(_) => return Err(DiskError::new(Doing::List, dir.path(), Errno::EIO)),
        }
    }
}
