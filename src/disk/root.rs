//! How a [`Root`] comes to be, and the one place where an operator's own symlinks are followed.

use super::confined::{Kind, Resolver, Root};
use super::error::DiskError;
use crate::relpath::RelPath;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Symlinks followed in one path before it is called a loop, as the kernel counts.
const MAX_LINKS: usize = 40;

/// Why a root could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Nothing there.
    #[error("{}: does not exist; make the directory or name another", path.display())]
    NotFound {
        /// As given.
        path: PathBuf,
    },
    /// A file, or below one.
    #[error("{}: is not a directory", path.display())]
    NotADirectory {
        /// As given.
        path: PathBuf,
    },
    /// A symbolic link in it.
    #[error("{}: has a symbolic link in it; name the directory that it leads to", path.display())]
    Symlink {
        /// As given.
        path: PathBuf,
    },
    /// No permission.
    #[error("{}: permission denied; run as a user who may read and enter it", path.display())]
    Denied {
        /// As given.
        path: PathBuf,
    },
    /// Anything else.
    #[error("{}: cannot be opened: {}", path.display(), errno.desc())]
    Os {
        /// As given.
        path: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
}

impl RootError {
    fn new(path: &Path, errno: Errno) -> Self {
        let is_link = |p: &Path| p.symlink_metadata().is_ok_and(|m| m.is_symlink());
        let path = path.to_owned();
        match errno {
            Errno::ENOENT => Self::NotFound { path },
            Errno::ELOOP => Self::Symlink { path },
            // O_NOFOLLOW | O_DIRECTORY says ENOTDIR for a symlink as well.
            Errno::ENOTDIR if path.ancestors().any(is_link) => Self::Symlink { path },
            Errno::ENOTDIR => Self::NotADirectory { path },
            Errno::EACCES | Errno::EPERM => Self::Denied { path },
            errno => Self::Os { path, errno },
        }
    }
}

const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

impl Root {
    /// Opens a directory whose path has no symbolic link in it.
    pub fn open(path: &Path) -> Result<Self, RootError> {
        Self::open_with(path, Resolver::probed())
    }

    pub(super) fn open_with(path: &Path, resolver: Resolver) -> Result<Self, RootError> {
        let opened = match resolver {
            Resolver::OpenAt2 => {
                let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
                openat2(AT_FDCWD, path, OpenHow::new().flags(FLAGS).resolve(resolve))
            }
            Resolver::Walk => walk(path),
        };
        opened.map(|fd| Self::from_fd(fd, resolver)).map_err(|errno| RootError::new(path, errno))
    }

    /// Opens a directory that the operator of this machine typed: symlinks in `path` itself are followed, those below
    /// are not.
    pub fn open_following(path: &Path) -> Result<Self, RootError> {
        nix::fcntl::open(path, FLAGS, Mode::empty())
            .map(|fd| Self::from_fd(fd, Resolver::probed()))
            .map_err(|errno| RootError::new(path, errno))
    }

    /// The same place without symlinks in its path, for a path that the operator named: `data -> mnt/x` makes
    /// `data/f` into `mnt/x/f`. Links that lead out of the root are refused ([`DiskError::Outside`]); an absolute target
    /// counts from the file system's top and so only works when the root is `/`. What does not exist is kept as
    /// written. The result is opened with the usual strictness afterwards, so that a race gains nothing.
    pub fn canonical(&self, path: &RelPath) -> Result<RelPath, DiskError> {
        let outside = || DiskError::Outside { path: path.clone() };
        let mut todo: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
        let mut done = RelPath::default();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    done = done.split_last().ok_or_else(outside)?.0;
                    continue;
                }
                _ => {}
            }
            let next = done.join(&part).map_err(|_| DiskError::NameTooLong { path: path.clone() })?;
            match self.stat(&next) {
                Ok(st) if st.kind == Kind::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(DiskError::SymlinkInTheWay { path: next });
                    }
                    let target = self.read_link(&next)?;
                    if target.first() == Some(&b'/') {
                        if !self.is_file_system_root() {
                            return Err(outside());
                        }
                        done = RelPath::default();
                    }
                    todo.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
                }
                Ok(_) | Err(DiskError::NotFound { .. }) => done = next,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Whether this root is `/`.
    fn is_file_system_root(&self) -> bool {
        let of = |st: nix::sys::stat::FileStat| (st.st_dev, st.st_ino);
        matches!((nix::sys::stat::stat("/").map(of), nix::sys::stat::fstat(self.handle()).map(of)),
            (Ok(a), Ok(b)) if a == b)
    }
}

/// [`Root::open`] without `openat2`.
fn walk(path: &Path) -> Result<OwnedFd, Errno> {
    let start: &Path = if path.is_absolute() { Path::new("/") } else { Path::new(".") };
    let mut at = nix::fcntl::open(start, FLAGS | OFlag::O_PATH, Mode::empty())?;
    for part in path.components() {
        let name: &[u8] = match part {
            Component::Normal(name) => name.as_bytes(),
            Component::ParentDir => b"..",
            _ => continue,
        };
        at = openat(&at, name, FLAGS | OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?;
    }
    openat(&at, b".".as_slice(), FLAGS, Mode::empty())
}
