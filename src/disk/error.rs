//! What can go wrong with a file, said so that a person knows which file and what to do.

use super::probe::FsKind;
use crate::relpath::RelPath;
use crate::units::Bytes;
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

/// What was being done when a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Opening a directory.
    OpenDir,
    /// Opening a file to read it.
    Open,
    /// Creating a part file.
    Create,
    /// Making a directory.
    MakeDir,
    /// Reading metadata.
    Stat,
    /// Reading bytes.
    Read,
    /// Writing bytes.
    Write,
    /// Giving a file its size or its blocks.
    Allocate,
    /// Locking.
    Lock,
    /// Setting mode, time or attributes.
    SetMetadata,
    /// Syncing data.
    Sync,
    /// Syncing a directory.
    SyncDir,
    /// Giving a file its final name.
    Rename,
    /// Making a symbolic link.
    Link,
    /// Reading a symbolic link.
    ReadLink,
    /// Listing a directory.
    List,
    /// Removing a name.
    Remove,
}

impl std::fmt::Display for Doing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Doing::OpenDir => "open the directory",
            Doing::Open => "open the file",
            Doing::Create => "create the part file",
            Doing::MakeDir => "make the directory",
            Doing::Stat => "read its metadata",
            Doing::Read => "read",
            Doing::Write => "write",
            Doing::Allocate => "allocate its space",
            Doing::Lock => "lock it",
            Doing::SetMetadata => "set its metadata",
            Doing::Sync => "sync its data",
            Doing::SyncDir => "sync the directory",
            Doing::Rename => "give it its final name",
            Doing::Link => "make the symbolic link",
            Doing::ReadLink => "read the symbolic link",
            Doing::List => "list the directory",
            Doing::Remove => "remove it",
        })
    }
}

/// Why a part file that was found is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// Owned by somebody else.
    Owner,
    /// It has further names.
    Links,
    /// Its size is not the file's.
    Size,
    /// The name leads to another file than the one that was opened.
    Swapped,
}

impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Foreign::Owner => "it belongs to another user",
            Foreign::Links => "it has further hard links",
            Foreign::Size => "its size is not that of the file",
            Foreign::Swapped => "its name was given to another file meanwhile",
        })
    }
}

/// A failed operation on a file below a root. The path is below that root, `.` is the root itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// A symbolic link stands where a directory or a file was expected.
    #[error("{path}: a symbolic link stands in the way and is not followed; remove it or name its target")]
    SymlinkInTheWay {
        /// Where.
        path: RelPath,
    },
    /// A symbolic link or mount leads out of the root.
    #[error("{path}: leads out of the root and is refused; name the target itself, or widen the root")]
    Outside {
        /// Where.
        path: RelPath,
    },
    /// There is nothing of that name.
    #[error("{path}: does not exist")]
    NotFound {
        /// Where.
        path: RelPath,
    },
    /// The name is taken.
    #[error("{path}: exists already; ask for skip or replace, or remove it")]
    Exists {
        /// Where.
        path: RelPath,
    },
    /// A component is not a directory.
    #[error("{path}: is not a directory, or lies below something that is not")]
    NotADirectory {
        /// Where.
        path: RelPath,
    },
    /// A directory, FIFO, socket or device where a regular file was expected.
    #[error("{path}: is not a regular file")]
    NotRegular {
        /// Where.
        path: RelPath,
    },
    /// The system's permissions say no.
    #[error("{path}: permission denied: cannot {doing}; check owner and mode, or run as another user")]
    Denied {
        /// Where.
        path: RelPath,
        /// At what.
        doing: Doing,
    },
    /// The file system is mounted read-only.
    #[error("{path}: the file system is read-only; remount it or choose another destination")]
    ReadOnly {
        /// Where.
        path: RelPath,
    },
    /// No room.
    #[error("{path}: the file system is full: {} needed, {} free; free space and run the same command again",
        Bytes(*needed), Bytes(*free))]
    NoSpace {
        /// Where.
        path: RelPath,
        /// Bytes of the whole file's data, 0 when unknown.
        needed: u64,
        /// Bytes free to this user when it failed.
        free: u64,
    },
    /// A quota is used up.
    #[error("{path}: the disk quota is used up; free space or raise it, and run the same command again")]
    Quota {
        /// Where.
        path: RelPath,
    },
    /// Larger than the file system or this program can hold.
    #[error("{path}: {} are more than this file system, or `ulimit -f`, allows one file to have", Bytes(*size))]
    TooBig {
        /// Where.
        path: RelPath,
        /// Bytes asked for.
        size: u64,
    },
    /// A name or path is too long.
    #[error("{path}: a name in it, or the whole, is too long for the file system")]
    NameTooLong {
        /// Where, as far as it fits.
        path: RelPath,
    },
    /// Too many open files.
    #[error("{path}: too many open files; raise `ulimit -n` (LimitNOFILE under systemd)")]
    TooManyFiles {
        /// Where.
        path: RelPath,
    },
    /// A name that this program keeps for itself.
    #[error("{path}: the names `.longhaul` and `.*.lh-*.part` are reserved; rename it at the source")]
    Reserved {
        /// Where.
        path: RelPath,
    },
    /// Another process writes this very file.
    #[error("{path}: another process still writes this part file; wait for it to end, then repeat")]
    Busy {
        /// Where.
        path: RelPath,
    },
    /// A part file that cannot be ours.
    #[error("{path}: the part file is not used: {why}; remove it with `longhaul clean`")]
    ForeignPart {
        /// Where.
        path: RelPath,
        /// Why.
        why: Foreign,
    },
    /// An earlier sync failed: what the page cache says about this file proves nothing any more.
    #[error("{path}: a sync of this file failed before; everything since the last good one must be written again")]
    Poisoned {
        /// Where.
        path: RelPath,
    },
    /// A read ended before the bytes that were asked for.
    #[error("{path}: ends {missing} bytes early; it was cut while it was read")]
    Short {
        /// Where.
        path: RelPath,
        /// How many bytes were missing.
        missing: u64,
    },
    /// Anything else the kernel said.
    #[error("{path}: cannot {doing}{}: {}", on.map(|kind| format!(" on {kind}")).unwrap_or_default(), errno.desc())]
    Os {
        /// Where.
        path: RelPath,
        /// At what.
        doing: Doing,
        /// What the kernel said.
        errno: Errno,
        /// On which file system, where that could be found out.
        on: Option<FsKind>,
    },
}

impl DiskError {
    /// Sorts an errno into the cases that have advice of their own.
    pub fn new(doing: Doing, path: &RelPath, errno: Errno) -> Self {
        let path = path.clone();
        match errno {
            Errno::ELOOP => Self::SymlinkInTheWay { path },
            // Renames and links are always in one directory here: a file system that says so does not give both names to one file.
            Errno::EXDEV if !matches!(doing, Doing::Rename | Doing::Link) => Self::Outside { path },
            Errno::ENOENT => Self::NotFound { path },
            Errno::EEXIST | Errno::ENOTEMPTY => Self::Exists { path },
            Errno::ENOTDIR => Self::NotADirectory { path },
            Errno::EISDIR | Errno::ENXIO | Errno::ENODEV => Self::NotRegular { path },
            Errno::EACCES | Errno::EPERM => Self::Denied { path, doing },
            Errno::EROFS => Self::ReadOnly { path },
            Errno::ENOSPC => Self::NoSpace { path, needed: 0, free: 0 },
            Errno::EDQUOT => Self::Quota { path },
            Errno::EFBIG => Self::TooBig { path, size: 0 },
            Errno::ENAMETOOLONG => Self::NameTooLong { path },
            Errno::EMFILE | Errno::ENFILE => Self::TooManyFiles { path },
            errno => Self::Os { path, doing, errno, on: None },
        }
    }

    /// Says on which file system it was, where that may be the reason.
    pub(super) fn with_file_system(mut self, fd: BorrowedFd<'_>) -> Self {
        if let Self::Os { on, .. } = &mut self {
            *on = FsKind::of(fd).ok();
        }
        self
    }

    /// The path it is about.
    pub fn path(&self) -> &RelPath {
        match self {
            Self::SymlinkInTheWay { path }
            | Self::Outside { path }
            | Self::NotFound { path }
            | Self::Exists { path }
            | Self::NotADirectory { path }
            | Self::NotRegular { path }
            | Self::Denied { path, .. }
            | Self::ReadOnly { path }
            | Self::NoSpace { path, .. }
            | Self::Quota { path }
            | Self::TooBig { path, .. }
            | Self::NameTooLong { path }
            | Self::TooManyFiles { path }
            | Self::Reserved { path }
            | Self::Busy { path }
            | Self::ForeignPart { path, .. }
            | Self::Poisoned { path }
            | Self::Short { path, .. }
            | Self::Os { path, .. } => path,
        }
    }

    /// Whether the name is taken.
    pub fn is_exists(&self) -> bool {
        matches!(self, Self::Exists { .. })
    }

    /// Whether the name was given, and only making it durable has failed: to give it again would meet itself.
    pub fn came_after_the_rename(&self) -> bool {
        matches!(self, Self::Os { doing: Doing::SyncDir, .. })
    }

    /// Whether the same call may work later without anybody changing the request: room, quota, descriptors, a lock.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::Quota { .. } | Self::TooManyFiles { .. } | Self::Busy { .. })
    }
}
