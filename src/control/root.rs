//! The agent's root as control needs it: is it there, how full is it, what is a name beneath it. Nothing is opened for
//! reading, and no symlink is followed below the root.

use super::messages::{RootFacts, StatKind, StatReply};
use super::state::StateDir;
use crate::relpath::RelPath;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Why a root cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// It is not there, or is no directory.
    #[error("the root {} is not there or is no directory: make it, or name another with --root", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// This user may not list it.
    #[error("the root {} cannot be read by this user ({errno}): change its mode or owner, or run the agent as another user", path.display())]
    Denied {
        /// Which.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// Another failure.
    #[error("the root {} cannot be opened: {errno}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
}

/// An open root.
#[derive(Debug)]
pub struct ServedRoot {
    path: PathBuf,
    fd: OwnedFd,
}

impl ServedRoot {
    /// Opens `path` once and for all, links in it resolved.
    pub fn open(path: &Path) -> Result<Self, RootError> {
        let fail = |errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR => RootError::Missing { path: path.to_owned() },
            Errno::EACCES | Errno::EPERM => RootError::Denied { path: path.to_owned(), errno },
            errno => RootError::Io { path: path.to_owned(), errno },
        };
        let fd = open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(fail)?;
        let real =
            std::fs::canonicalize(path).map_err(|e| fail(e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))?;
        Ok(Self { path: real, fd })
    }

    /// What an agent serves that serves nothing: an empty directory of its own, so that all routes are the same.
    pub fn nothing(state: &StateDir) -> Result<Self, RootError> {
        let path = state.file("nothing");
        match std::fs::DirBuilder::new().mode(0o500).create(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                Err(RootError::Io { path, errno })
            }
            _ => Self::open(&path),
        }
    }

    /// Where it really lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Free and total space. Zeros where the file system does not say.
    pub fn facts(&self) -> RootFacts {
        let Ok(vfs) = fstatvfs(&self.fd) else { return RootFacts::default() };
        let unit = vfs.fragment_size();
        RootFacts {
            free_bytes: vfs.blocks_available().saturating_mul(unit),
            total_bytes: vfs.blocks().saturating_mul(unit),
            read_only: vfs.flags().contains(FsFlags::ST_RDONLY),
        }
    }

    /// What `path` is. Directories are walked one by one without following links, which every kernel and sandbox can.
    pub fn stat(&self, path: &RelPath) -> Result<StatReply, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut fd: Option<OwnedFd> = None;
        let mut parts = path.components().peekable();
        while let Some(name) = parts.next() {
            let flags = if parts.peek().is_some() { flags | OFlag::O_DIRECTORY } else { flags };
            fd = Some(openat(fd.as_ref().unwrap_or(&self.fd), name, flags, Mode::empty())?);
        }
        fstat(fd.as_ref().unwrap_or(&self.fd)).map(reply)
    }
}

fn reply(stat: FileStat) -> StatReply {
    let kind = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => StatKind::Directory,
        SFlag::S_IFREG => StatKind::File,
        SFlag::S_IFLNK => StatKind::Symlink,
        _ => StatKind::Special,
    };
    let size = if kind == StatKind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
    StatReply { kind, size }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn names_are_told_apart_and_links_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("d")).unwrap();
        std::fs::write(at("d/f"), b"12345").unwrap();
        symlink("/etc", at("out")).unwrap();
        symlink("d", at("in")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        let root = ServedRoot::open(dir.path()).unwrap();
        let stat = |path: &str| root.stat(&RelPath::new(path.as_bytes()).unwrap());
        let reply = |kind, size| Ok(StatReply { kind, size });
        assert_eq!(stat(""), reply(StatKind::Directory, 0));
        assert_eq!(stat("d"), reply(StatKind::Directory, 0));
        assert_eq!(stat("d/f"), reply(StatKind::File, 5));
        assert_eq!(stat("out"), reply(StatKind::Symlink, 0));
        assert_eq!(stat("fifo"), reply(StatKind::Special, 0));
        assert_eq!(stat("none"), Err(Errno::ENOENT));
        assert_eq!(stat("d/f/x"), Err(Errno::ENOTDIR));
        assert_eq!(stat("out/passwd"), Err(Errno::ENOTDIR));
        assert_eq!(stat("in/f"), Err(Errno::ENOTDIR));
        let facts = root.facts();
        assert!(facts.total_bytes > 0 && facts.free_bytes <= facts.total_bytes);
    }

    #[test]
    fn a_root_that_is_not_there_says_so() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(ServedRoot::open(&dir.path().join("x")), Err(RootError::Missing { .. })));
        std::fs::write(dir.path().join("f"), b"").unwrap();
        assert!(matches!(ServedRoot::open(&dir.path().join("f")), Err(RootError::Missing { .. })));
    }
}
