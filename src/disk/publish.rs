//! A proved part file gets its metadata and its final name.
//!
//! Order: record and metadata on the part file -> fsync -> rename (never over something unless asked) -> fsync of the
//! directory. A final name is never truncated and never removed first, so that a crash leaves the old file or the new.

use super::calls;
use super::confined::{DirHandle, Kind, Root, Stat};
use super::error::{DiskError, Doing, Foreign};
use super::names::part_name;
use super::part::{PartFile, place};
use super::record::{Proof, Record};
use super::source::Identity;
use crate::ids::TransferId;
use crate::manifest::Mtime;
use crate::relpath::RelPath;
use crate::sys::points;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

/// Which metadata a name gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits as at the source; `None`: what the umask leaves.
    pub mode: Option<u32>,
    /// Keep setuid, setgid and sticky of `mode` too. Otherwise only 0777 counts, whatever a peer sent.
    pub special: bool,
    /// Modification time; `None`: now.
    pub mtime: Option<Mtime>,
}

impl Meta {
    fn mode_or(&self, default: u32) -> Mode {
        let mask = if self.special { 0o7777 } else { 0o777 };
        Mode::from_bits_truncate(self.mode.map_or(default & !umask(), |mode| mode & mask))
    }
}

/// The process's umask, read without setting it (which other threads would see).
fn umask() -> u32 {
    /// What most systems have, where /proc does not tell.
    const USUAL: u32 = 0o022;
    static UMASK: OnceLock<u32> = OnceLock::new();
    *UMASK.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        line.and_then(|value| u32::from_str_radix(value.trim(), 8).ok()).unwrap_or(USUAL)
    })
}

/// What may happen to a final name that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// It stays, the publish fails with [`DiskError::Exists`].
    No,
    /// It is replaced in one step. A directory never is.
    Yes,
}

/// How a file came to its final name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenamedBy {
    /// `renameat2(RENAME_NOREPLACE)`.
    NoReplace,
    /// A hard link and the removal of the part name: the file system refuses NOREPLACE with this errno.
    Link(Errno),
    /// `renameat` over whatever was there.
    Replacing,
    /// Not at all: nothing of a synthetic file was kept, so no name leads to it.
    Dropped,
}

/// What [`PartFile::publish`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// How it got its name.
    pub renamed: RenamedBy,
    /// Whether the record was stored; a later run must re-read the file otherwise.
    pub record: Result<(), Errno>,
}

fn spec(mtime: Mtime) -> TimeSpec {
    TimeSpec::new(mtime.secs, i64::from(mtime.nanos))
}

/// Sets time, record and mode of an open file, in the order that lets each succeed: attributes need write permission,
/// which the mode may take away; the record holds the time as the file system rounded it. Gives the metadata as they were
/// before record and mode, too: device and inode are wanted, and one call is saved for each of many small files.
pub(super) fn set_metadata(
    fd: BorrowedFd<'_>,
    meta: &Meta,
    proof: Option<Proof>,
) -> Result<(Stat, Result<(), Errno>), Errno> {
    if let Some(mtime) = meta.mtime {
        calls::set_time(fd, &spec(mtime))?;
    }
    let stat = Stat::of(fd)?;
    let record = match proof {
        None => Ok(()),
        Some(proof) => Record { size: stat.size, mtime: stat.mtime, proof }.store(fd),
    };
    calls::set_mode(fd, meta.mode_or(0o666))?;
    Ok((stat, record))
}

impl PartFile {
    /// Sets metadata and record, and syncs the whole file: the state in which it may be renamed. The inner result is the
    /// record's. A failed sync poisons the file.
    pub fn finish(&self, meta: &Meta, proof: Option<Proof>) -> Result<Result<(), Errno>, DiskError> {
        let (_, record) =
            set_metadata(self.fd.as_fd(), meta, proof).map_err(self.dir.fail(Doing::SetMetadata, &self.final_name))?;
        points::at("publish.metadata-set");
        self.sync_with(calls::sync)?;
        Ok(record)
    }

    /// Gives the finished file its final name. Durable once [`PartFile::sync_dir`] has returned.
    pub fn rename(&self, replace: Replace) -> Result<RenamedBy, DiskError> {
        if self.is_poisoned() {
            return Err(DiskError::Poisoned { path: self.dir.child(&self.final_name) });
        }
        rename_one(&self.dir, &self.name, &self.final_name, &self.stat, replace)
    }

    /// Makes its name durable.
    pub fn sync_dir(&self) -> Result<(), DiskError> {
        self.dir.sync()
    }

    /// [`PartFile::finish`], [`PartFile::rename`] and [`PartFile::sync_dir`]. A synthetic one is removed instead.
    pub fn publish(&self, meta: &Meta, proof: Option<Proof>, replace: Replace) -> Result<Published, DiskError> {
        if self.is_synthetic() {
            self.unlink()?;
            return Ok(Published { renamed: RenamedBy::Dropped, record: Ok(()) });
        }
        let record = self.finish(meta, proof)?;
        let renamed = self.rename(replace)?;
        self.sync_dir()?;
        Ok(Published { renamed, record })
    }
}

/// Walk 11: renames inside one directory, and makes sure that it was our object that got the name.
pub(super) fn rename_one(
    dir: &DirHandle,
    part: &[u8],
    to: &[u8],
    ours: &Stat,
    replace: Replace,
) -> Result<RenamedBy, DiskError> {
    let swapped = || DiskError::ForeignPart { path: dir.child(part), why: Foreign::Swapped };
    if !dir.stat(part)?.same_object(ours) {
        return Err(swapped());
    }
    let fail = |errno| dir.fail(Doing::Rename, to)(errno);
    points::fails("publish.rename").map_err(fail)?;
    let renamed = match replace {
        Replace::Yes => dir.rename_replacing(part, to).map(|()| RenamedBy::Replacing).map_err(fail)?,
        Replace::No => match dir.rename_noreplace(part, to) {
            Ok(()) => RenamedBy::NoReplace,
            Err(errno @ (Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP)) => rename_by_link(dir, part, to, errno)?,
            Err(errno) => return Err(fail(errno)),
        },
    };
    points::at("publish.renamed");
    // Between the check and the rename somebody with access to the directory may have exchanged the part file.
    if dir.stat(to)?.same_object(ours) { Ok(renamed) } else { Err(swapped()) }
}

/// A link never replaces: the fallback where NOREPLACE is refused (NFS).
fn rename_by_link(dir: &DirHandle, part: &[u8], to: &[u8], errno: Errno) -> Result<RenamedBy, DiskError> {
    calls::link(dir.as_fd(), part, to).map_err(dir.fail(Doing::Rename, to))?;
    dir.unlink(part)?;
    Ok(RenamedBy::Link(errno))
}

/// Sets mode and time of a directory and syncs it: last, and bottom-up, since its content changes its time.
pub fn finish_directory(root: &Root, path: &RelPath, meta: &Meta) -> Result<(), DiskError> {
    let dir = root.open_dir(path)?;
    let set = || {
        calls::set_mode(dir.as_fd(), meta.mode_or(0o777))?;
        meta.mtime.map_or(Ok(()), |mtime| calls::set_time(dir.as_fd(), &spec(mtime)))
    };
    set().map_err(|e| DiskError::new(Doing::SetMetadata, path, e).with_file_system(dir.as_fd()))?;
    points::at("publish.directory-set");
    dir.sync()
}

/// Makes the symlink `path` -> `target` under the part name and renames it. The directory is not synced: the caller does
/// that once for many. The target is stored, never followed.
pub fn make_symlink(
    root: &Root,
    path: &RelPath,
    target: &[u8],
    id: &TransferId,
    mtime: Option<Mtime>,
    replace: Replace,
) -> Result<RenamedBy, DiskError> {
    let (dir, name) = place(root, path)?;
    let part = part_name(name, id);
    match dir.symlink(target, &part) {
        Err(DiskError::Exists { .. }) => {
            // Left by an earlier run: the name carries our transfer's id, and the tree is locked.
            dir.unlink(&part)?;
            dir.symlink(target, &part)?;
        }
        other => other?,
    }
    if let Some(mtime) = mtime {
        calls::set_link_time(dir.as_fd(), &part, &spec(mtime)).map_err(dir.fail(Doing::SetMetadata, name))?;
    }
    points::at("publish.symlink-made");
    let ours = dir.stat(&part)?;
    let renamed = rename_one(&dir, &part, name, &ours, replace);
    if matches!(renamed, Err(DiskError::Exists { .. } | DiskError::NotRegular { .. })) {
        dir.unlink(&part)?;
    }
    renamed
}

/// What stands under a final name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Existing {
    /// Nothing, or its directory is not there.
    None,
    /// A regular file.
    File {
        /// Its metadata: size, time, inode, device.
        stat: Stat,
        /// What was recorded when it was published, if size and time are still those of then.
        record: Option<Proof>,
    },
    /// A directory.
    Dir(Stat),
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
        /// Its own metadata.
        stat: Stat,
    },
    /// A FIFO, socket or device.
    Other,
}

/// Looks at a final name without following it.
pub fn existing(root: &Root, path: &RelPath) -> Result<Existing, DiskError> {
    if path.is_root() {
        return root.stat(path).map(Existing::Dir);
    }
    let looked = root.parent_of(path).and_then(|(dir, name)| Ok((dir.stat(name)?, dir, name)));
    let (stat, dir, name) = match looked {
        Err(DiskError::NotFound { .. }) => return Ok(Existing::None),
        other => other?,
    };
    Ok(match stat.kind {
        Kind::Dir => Existing::Dir(stat),
        Kind::Special => Existing::Other,
        Kind::Symlink => Existing::Symlink { target: dir.read_link(name)?, stat },
        Kind::File => {
            // Not readable, or exchanged meanwhile: no record, so nothing is proved.
            let open = dir.open_at(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0).ok();
            let same = open.filter(|fd| Stat::of(fd.as_fd()).is_ok_and(|now| now == stat));
            Existing::File { stat, record: same.and_then(|fd| Record::valid(fd.as_fd(), &stat)) }
        }
    })
}

/// Whether source and destination are one file: by hard link, bind mount or symlinked directory. Only meaningful when both
/// ends are on one machine.
pub fn same_object(source: &Identity, existing: &Existing) -> bool {
    matches!(existing, Existing::File { stat, .. } if (stat.dev, stat.ino) == (source.dev, source.ino))
}
