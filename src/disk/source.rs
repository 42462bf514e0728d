//! Walk 8 (its disk side): source files, opened so that nothing but a regular file is ever read and so that a change while it is
//! read is noticed.

use super::confined::{DirHandle, Kind, LastDir, Root, Stat, retrying};
use super::error::{DiskError, Doing};
use super::extents::data_extents;
use super::plan::{IoWish, ReadPlan, Residency, read_plan, residency};
use super::probe::ProbeCache;
use crate::grid::Span;
use crate::manifest::Mtime;
use crate::relpath::RelPath;
use crate::sys::fsys::{self, Caching};
use crate::sys::{FileMode, FileRef};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, PosixFadviseAdvice, fcntl, posix_fadvise};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Which version of which file it is. Device, inode and change time count within one run only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Modification time.
    pub mtime: Mtime,
    /// Change time: unlike the modification time nobody sets it at will.
    pub ctime: Mtime,
}

impl From<&Stat> for Identity {
    fn from(st: &Stat) -> Self {
        Self { dev: st.dev, ino: st.ino, size: st.size, mtime: st.mtime, ctime: st.ctime }
    }
}

/// What the file must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Whatever it is now.
    Any,
    /// As in the manifest.
    Version {
        /// Bytes.
        size: u64,
        /// Modification time.
        mtime: Mtime,
    },
    /// The very one, within one run.
    Same(Identity),
}

impl Expect {
    fn holds(&self, now: &Identity) -> bool {
        match self {
            Expect::Any => true,
            Expect::Version { size, mtime } => (now.size, now.mtime) == (*size, *mtime),
            Expect::Same(identity) => identity == now,
        }
    }
}

/// Why a source file cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Another version than the one that was listed, or it changed while it was read.
    #[error("{path}: changed at the source since it was listed; repeat when nobody writes it")]
    Changed {
        /// Which file.
        path: RelPath,
        /// What it is now.
        now: Identity,
    },
    /// No longer there.
    #[error("{path}: is gone at the source; restore it or leave it out, then repeat")]
    Gone {
        /// Which file.
        path: RelPath,
    },
    /// Not readable.
    #[error("{path}: may not be read at the source; check owner and mode, or run the source as another user")]
    Denied {
        /// Which file.
        path: RelPath,
    },
    /// A directory, FIFO, socket or device, or a symlink to whatever.
    #[error("{path}: is not a regular file at the source; only regular files have content to move")]
    NotRegular {
        /// Which file.
        path: RelPath,
    },
    /// Anything else.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

fn sort(error: DiskError) -> SourceError {
    match error {
        DiskError::NotFound { path } => SourceError::Gone { path },
        DiskError::Denied { path, .. } => SourceError::Denied { path },
        DiskError::NotRegular { path } => SourceError::NotRegular { path },
        other => SourceError::Disk(other),
    }
}

/// An open source file. Clones of its descriptors live in the workers' ops.
#[derive(Debug)]
pub struct SourceFile {
    path: RelPath,
    fd: Arc<OwnedFd>,
    direct: Option<Arc<OwnedFd>>,
    identity: Identity,
    extents: Option<Vec<Span>>,
    plan: ReadPlan,
}

/// Opens for reading and proves that it is a regular file. O_NONBLOCK keeps a FIFO from hanging us.
fn open_regular(dir: &DirHandle, name: &[u8]) -> Result<(OwnedFd, Stat), SourceError> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let opened = match dir.open_at(name, flags | OFlag::O_NOATIME, 0) {
        // Only the owner may leave the access time alone.
        Err(Errno::EPERM) => dir.open_at(name, flags, 0),
        other => other,
    };
    let fd = match opened {
        Ok(fd) => fd,
        // O_NOFOLLOW met a link: no regular file.
        Err(Errno::ELOOP) => return Err(SourceError::NotRegular { path: dir.child(name) }),
        Err(e) => return Err(sort(dir.fail(Doing::Open, name)(e))),
    };
    let stat = Stat::of(fd.as_fd()).map_err(dir.fail(Doing::Stat, name))?;
    if stat.kind != Kind::File {
        return Err(SourceError::NotRegular { path: dir.child(name) });
    }
    Ok((fd, stat))
}

impl SourceFile {
    /// Opens `path` beneath `root`, checks it against `expect`, finds its holes and chooses how to read it.
    pub fn open(
        root: &Root,
        path: &RelPath,
        expect: Expect,
        probes: &ProbeCache,
        wish: IoWish,
    ) -> Result<Self, SourceError> {
        let (dir, name) = root.parent_of(path).map_err(sort)?;
        let (fd, stat) = open_regular(&dir, name)?;
        let identity = Identity::from(&stat);
        if !expect.holds(&identity) {
            return Err(SourceError::Changed { path: path.clone(), now: identity });
        }
        // io_uring would give EAGAIN instead of waiting on a descriptor that keeps O_NONBLOCK.
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::empty())).map_err(dir.fail(Doing::Open, name))?;
        let facts = probes.source(&dir, name, fd.as_fd())?;
        let asked = match wish {
            IoWish::Auto if !facts.kind.is_volatile() => residency(fd.as_fd(), identity.size),
            _ => Residency::Unknown,
        };
        let mut plan = read_plan(&facts, identity.size, asked, wish);
        let direct = if plan.mode == FileMode::Direct { open_direct(&dir, name, &stat) } else { None };
        if plan.mode == FileMode::Direct && direct.is_none() {
            plan = ReadPlan { mode: FileMode::Deferred, reason: "direct was refused for this file" };
        }
        let real = plan.mode != FileMode::Synthetic;
        let extents = if real && stat.allocated < stat.size { data_extents(fd.as_fd(), stat.size) } else { None };
        Ok(Self { path: path.clone(), fd: Arc::new(fd), direct: direct.map(Arc::new), identity, extents, plan })
    }

    /// Its path below the root.
    pub fn path(&self) -> &RelPath {
        &self.path
    }

    /// What it was when it was opened.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Where it has data; `None`: everywhere, as far as is known.
    pub fn extents(&self) -> Option<&[Span]> {
        self.extents.as_deref()
    }

    /// How it is read, and why.
    pub fn plan(&self) -> ReadPlan {
        self.plan
    }

    /// For the workers' reads. In mode `Direct` offset, length and address are multiples of 4096; a read over the end of
    /// the file is short.
    pub fn file_ref(&self) -> FileRef {
        let fd = self.direct.as_ref().unwrap_or(&self.fd);
        FileRef { fd: Arc::clone(fd), mode: self.plan.mode }
    }

    /// The buffered descriptor, whatever the plan: for reads that are not aligned.
    pub fn buffered(&self) -> FileRef {
        FileRef { fd: Arc::clone(&self.fd), mode: FileMode::PageCache }
    }

    /// Whether it is still the version that was opened, and has a name: asked before its destination is published.
    pub fn check(&self) -> Result<(), SourceError> {
        let stat = Stat::of(self.fd.as_fd()).map_err(|e| DiskError::new(Doing::Stat, &self.path, e))?;
        let now = Identity::from(&stat);
        if stat.links == 0 {
            return Err(SourceError::Gone { path: self.path.clone() });
        }
        if now != self.identity {
            return Err(SourceError::Changed { path: self.path.clone(), now });
        }
        Ok(())
    }
}

/// Opens a regular file for plain reading: one that stands under a final name and is to be compared.
pub fn open_existing(root: &Root, path: &RelPath) -> Result<std::fs::File, DiskError> {
    let (dir, name) = root.parent_of(path)?;
    match open_regular(&dir, name) {
        Ok((fd, _)) => Ok(std::fs::File::from(fd)),
        Err(SourceError::Disk(error)) => Err(error),
        Err(SourceError::Gone { path }) => Err(DiskError::NotFound { path }),
        Err(SourceError::Denied { path }) => Err(DiskError::Denied { path, doing: Doing::Open }),
        Err(SourceError::NotRegular { path } | SourceError::Changed { path, .. }) => {
            Err(DiskError::NotRegular { path })
        }
    }
}

/// The identity of an open file as it is now.
pub fn identity_now(fd: BorrowedFd<'_>) -> Result<Identity, Errno> {
    Stat::of(fd).map(|st| Identity::from(&st))
}

/// The same file with O_DIRECT; `None` if the file system refuses or the name leads elsewhere by now.
fn open_direct(dir: &DirHandle, name: &[u8], stat: &Stat) -> Option<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECT | OFlag::O_NONBLOCK;
    let fd = dir.open_at(name, flags, 0).ok()?;
    // O_DIRECT must survive the clearing of O_NONBLOCK.
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_DIRECT)).ok()?;
    Stat::of(fd.as_fd()).is_ok_and(|now| now.same_object(stat)).then_some(fd)
}

/// A small file that is open, to be read whole for a pack.
#[derive(Debug)]
pub struct SmallSource {
    fd: OwnedFd,
    before: Identity,
}

impl SmallSource {
    /// Opens it and checks it against `expect`; one of more than `max` bytes has changed. `last` is kept from file to file of
    /// a pack. The kernel begins to read it: a pack's files are opened some ahead of being read, so that a disk has several
    /// of them to fetch at a time (benches/README.md, "Steps").
    pub fn open(
        root: &Root,
        last: &mut LastDir,
        path: &RelPath,
        expect: Expect,
        max: usize,
    ) -> Result<Self, SourceError> {
        let (dir, name) = last.parent_of(root, path).map_err(sort)?;
        let (fd, stat) = open_regular(&dir, name)?;
        let before = Identity::from(&stat);
        if usize::try_from(before.size).is_ok_and(|size| size <= max) && expect.holds(&before) {
            // Advice only: a file system that takes none reads when it is asked to.
            let _ = posix_fadvise(&fd, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
            Ok(Self { fd, before })
        } else {
            Err(SourceError::Changed { path: path.clone(), now: before })
        }
    }

    /// Reads it into the front of `buf`, of at least the `max` bytes of its opening; its identity says how many they are. It
    /// is looked at once more after the reading, so that a half-changed file is never sent. `path` is for errors.
    pub fn read(self, path: &RelPath, buf: &mut [u8]) -> Result<Identity, SourceError> {
        let want = self.before.size as usize;
        let mut at = 0;
        while at < want {
            let n = retrying(|| fsys::read_at(self.fd.as_fd(), &mut buf[at..want], at as u64, Caching::Normal))
                .map_err(|e| DiskError::new(Doing::Read, path, e))?;
            if n == 0 {
                break;
            }
            at += n;
        }
        let after = identity_now(self.fd.as_fd()).map_err(|e| DiskError::new(Doing::Stat, path, e))?;
        if after != self.before || at != want {
            return Err(SourceError::Changed { path: path.clone(), now: after });
        }
        Ok(self.before)
    }
}

/// Opened and read at once.
#[cfg(test)]
pub fn read_small(
    root: &Root,
    last: &mut LastDir,
    path: &RelPath,
    expect: Expect,
    buf: &mut [u8],
) -> Result<Identity, SourceError> {
    SmallSource::open(root, last, path, expect, buf.len())?.read(path, buf)
}
