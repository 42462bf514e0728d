//! The agent's root as control needs it: is it there, how full is it, what is a name beneath it. Nothing is opened for
//! reading, and no symlink is followed below the root.

use super::messages::{RootFacts, StatKind, StatReply};
use super::state::StateDir;
use crate::relpath::RelPath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use std::fs::File;
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

/// A regular file, open for reading.
#[derive(Debug)]
pub struct OpenedFile {
    /// Reads it.
    pub file: File,
    /// Bytes when it was opened.
    pub bytes: u64,
    /// An entity tag of that version: changes with size, time and inode.
    pub etag: String,
}

/// The tag of a version of a file.
fn etag(stat: &FileStat) -> String {
    format!("\"{:x}-{:x}-{:x}.{:x}\"", stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec)
}

impl OpenedFile {
    /// Whether it is still the version that was opened.
    pub fn is_unchanged(&self) -> bool {
        fstat(&self.file).is_ok_and(|stat| etag(&stat) == self.etag)
    }
}

/// One name of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// As it is on disk.
    pub name: Vec<u8>,
    /// A directory; otherwise a regular file. Other kinds are not listed.
    pub directory: bool,
    /// Of a file.
    pub bytes: u64,
}

impl ServedRoot {
    fn directory(&self, path: &RelPath) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut fd = openat(&self.fd, ".", flags, Mode::empty())?;
        for name in path.components() {
            fd = openat(&fd, name, flags, Mode::empty())?;
        }
        Ok(fd)
    }

    fn parent<'p>(&self, path: &'p RelPath) -> Result<(OwnedFd, &'p [u8]), Errno> {
        let (parent, name) = path.split_last().ok_or(Errno::EISDIR)?;
        Ok((self.directory(&parent)?, name))
    }

    /// Opens a regular file. Never blocks on a FIFO, never follows a link.
    pub fn open_file(&self, path: &RelPath) -> Result<OpenedFile, Errno> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        let fd = openat(&parent, name, flags, Mode::empty())?;
        let stat = fstat(&fd)?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(Errno::EISDIR);
        }
        let (bytes, etag) = (u64::try_from(stat.st_size).unwrap_or(0), etag(&stat));
        Ok(OpenedFile { file: File::from(fd), bytes, etag })
    }

    /// Creates a file that must not be there, for writing, mode 0640.
    pub fn create_file(&self, path: &RelPath) -> Result<File, Errno> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&parent, name, flags, Mode::from_bits_truncate(0o640)).map(File::from)
    }

    /// Opens a file again to write on.
    pub fn append_file(&self, path: &RelPath) -> Result<File, Errno> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        openat(&parent, name, flags, Mode::empty()).map(File::from)
    }

    /// Gives a file of a directory its final name there, which must be free, and syncs the directory.
    pub fn publish(&self, from: &RelPath, to: &RelPath) -> Result<(), Errno> {
        let (parent, name) = self.parent(from)?;
        let (to_parent, to_name) = self.parent(to)?;
        nix::fcntl::renameat2(&parent, name, &to_parent, to_name, nix::fcntl::RenameFlags::RENAME_NOREPLACE)?;
        nix::unistd::fsync(&to_parent)
    }

    /// Removes a file; one that is not there is no error.
    pub fn remove(&self, path: &RelPath) -> Result<(), Errno> {
        let (parent, name) = self.parent(path)?;
        match nix::unistd::unlinkat(&parent, name, nix::unistd::UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Makes a directory and those above it.
    pub fn make_dirs(&self, path: &RelPath) -> Result<(), Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut fd = openat(&self.fd, ".", flags, Mode::empty())?;
        for name in path.components() {
            match mkdirat(&fd, name, Mode::from_bits_truncate(0o777)) {
                Ok(()) => nix::unistd::fsync(&fd)?,
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
            fd = openat(&fd, name, flags, Mode::empty())?;
        }
        Ok(())
    }

    /// A small file's content, at most `max` bytes of it.
    pub fn read_small(&self, path: &RelPath, max: u64) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::new();
        let file = self.open_file(path)?.file;
        std::io::Read::read_to_end(&mut std::io::Read::take(file, max), &mut bytes)
            .map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        Ok(bytes)
    }

    /// The directories and regular files in a directory, sorted by name.
    pub fn list(&self, path: &RelPath) -> Result<Vec<Listed>, Errno> {
        let fd = self.directory(path)?;
        let mut dir = nix::dir::Dir::from_fd(fd.try_clone().map_err(|_| Errno::EMFILE)?)?;
        let mut found = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let stat = match fstatat(&fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => reply(stat),
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno),
            };
            if matches!(stat.kind, StatKind::Directory | StatKind::File) {
                let directory = stat.kind == StatKind::Directory;
                found.push(Listed { name: name.to_vec(), directory, bytes: stat.size });
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
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
