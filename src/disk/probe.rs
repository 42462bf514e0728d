//! What a file system can do, found by trying it: versions and names promise nothing (containers, old kernels, odd
//! mounts), so every feature is used once on a small file and its errno kept for the report.

use super::aligned::{AlignedBuf, DIRECT_ALIGN};
use super::calls;
use super::confined::{DirHandle, Root, Stat};
use super::error::{DiskError, Doing};
use super::names::STATE_DIR;
use crate::ids::TransferId;
use crate::relpath::RelPath;
use crate::sys::fsys::{self, Caching, DirectAlign};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::fstatfs;
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Devices whose facts are kept: more mounts than one transfer meets.
const MAX_DEVICES: usize = 1024;
/// Bytes of the file that is tried out: one direct I/O.
const PROBE_BYTES: usize = DIRECT_ALIGN;

/// The kind of a file system, by its magic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsKind {
    /// ext2, ext3, ext4 (one magic number).
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// tmpfs.
    Tmpfs,
    /// ramfs.
    Ramfs,
    /// NFS.
    Nfs,
    /// Lustre.
    Lustre,
    /// IBM Storage Scale (GPFS).
    Gpfs,
    /// CephFS.
    Ceph,
    /// BeeGFS.
    BeeGfs,
    /// ZFS.
    Zfs,
    /// F2FS.
    F2fs,
    /// SMB, CIFS.
    Smb,
    /// Any FUSE file system.
    Fuse,
    /// overlayfs.
    Overlay,
    /// Any other, by magic number.
    Other(u64),
}

impl FsKind {
    /// The kind of the file system that `fd` is on.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let magic = super::confined::retrying(|| fstatfs(fd))?.filesystem_type().0 as u64 & 0xffff_ffff;
        Ok(match magic {
            0xef53 => Self::Ext4,
            0x5846_5342 => Self::Xfs,
            0x9123_683e => Self::Btrfs,
            0x0102_1994 => Self::Tmpfs,
            0x8584_58f6 => Self::Ramfs,
            0x6969 => Self::Nfs,
            0x0bd0_0bd0 => Self::Lustre,
            0x4750_4653 => Self::Gpfs,
            0x00c3_6400 => Self::Ceph,
            0x1983_0326 => Self::BeeGfs,
            0x2fc1_2fc1 => Self::Zfs,
            0xf2f5_2010 => Self::F2fs,
            0x517b | 0xff53_4d42 | 0xfe53_4d42 => Self::Smb,
            0x6573_5546 => Self::Fuse,
            0x794c_7630 => Self::Overlay,
            other => Self::Other(other),
        })
    }

    /// Whether its content is gone after a power cut whatever was synced.
    pub fn is_volatile(self) -> bool {
        matches!(self, Self::Tmpfs | Self::Ramfs)
    }

    /// Whether SEEK_DATA and SEEK_HOLE are trusted there.
    pub fn tells_holes(self) -> bool {
        matches!(self, Self::Ext4 | Self::Xfs | Self::Btrfs | Self::Tmpfs)
    }

    /// Whether `syncfs` is known to do for all files what `fsync` does for one. FUSE never tells its daemon of it, and SMB
    /// not its server.
    pub fn syncs_whole(self) -> bool {
        use FsKind::{Btrfs, Ceph, Ext4, F2fs, Nfs, Overlay, Ramfs, Tmpfs, Xfs};
        matches!(self, Ext4 | Xfs | Btrfs | F2fs | Tmpfs | Ramfs | Overlay | Nfs | Ceph)
    }

    /// Whether every read crosses a network (or a user-space daemon), so that several should be in flight.
    pub fn is_remote(self) -> bool {
        matches!(self, Self::Nfs | Self::Lustre | Self::Gpfs | Self::Ceph | Self::BeeGfs | Self::Smb | Self::Fuse)
    }
}

impl fmt::Display for FsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Tmpfs => "tmpfs",
            Self::Ramfs => "ramfs",
            Self::Nfs => "nfs",
            Self::Lustre => "lustre",
            Self::Gpfs => "gpfs",
            Self::Ceph => "ceph",
            Self::BeeGfs => "beegfs",
            Self::Zfs => "zfs",
            Self::F2fs => "f2fs",
            Self::Smb => "smb",
            Self::Fuse => "fuse",
            Self::Overlay => "overlay",
            Self::Other(magic) => return write!(f, "fs-{magic:#x}"),
        })
    }
}

/// A feature that works, or what the kernel said when it was tried. ENODATA stands for "not tried".
pub type Probed = Result<(), Errno>;
/// The errno of what was not tried.
pub const NOT_TRIED: Errno = Errno::ENODATA;

/// What one file system can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsFacts {
    /// Its kind.
    pub kind: FsKind,
    /// O_DIRECT: the alignment that it asks for.
    pub direct: Result<DirectAlign, Errno>,
    /// `fallocate` without flags.
    pub fallocate: Probed,
    /// Reads with RWF_DONTCACHE.
    pub dontcache_read: Probed,
    /// Writes with RWF_DONTCACHE.
    pub dontcache_write: Probed,
    /// Extended attributes in `user.`.
    pub xattr: Probed,
    /// `flock`.
    pub flock: Probed,
    /// `renameat2(RENAME_NOREPLACE)`.
    pub noreplace: Probed,
}

impl fmt::Display for FsFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if self.kind.is_volatile() {
            f.write_str(" (volatile)")?;
        }
        match self.direct {
            Ok(align) => write!(f, ", direct {}/{}", align.memory, align.offset)?,
            Err(errno) => say(f, "direct", Err(errno))?,
        }
        say(f, "fallocate", self.fallocate)?;
        say(f, "dontcache-read", self.dontcache_read)?;
        say(f, "dontcache-write", self.dontcache_write)?;
        say(f, "xattr", self.xattr)?;
        say(f, "flock", self.flock)?;
        say(f, "noreplace", self.noreplace)
    }
}

fn say(f: &mut fmt::Formatter<'_>, what: &str, probed: Probed) -> fmt::Result {
    match probed {
        Ok(()) => write!(f, ", {what} yes"),
        Err(NOT_TRIED) => write!(f, ", {what} not tried"),
        Err(errno) => write!(f, ", {what} no ({errno:?})"),
    }
}

impl FsFacts {
    /// Tries a destination: writes a hidden file of 4 KiB in `dir` and removes it. Fails where no file can be made.
    pub fn of(dir: &DirHandle) -> Result<Self, DiskError> {
        let kind = FsKind::of(dir.as_fd()).map_err(|e| DiskError::new(Doing::Stat, dir.path(), e))?;
        let (name, other) = probe_names();
        let fd = dir
            .open_at(&name, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL, 0o600)
            .inspect(|_| crate::sys::points::at("probe.created"))
            .map_err(dir.fail(Doing::Create, &name))?;
        let facts = Self::try_all(kind, dir, &name, &other, fd.as_fd());
        // Whatever was found: neither name stays behind.
        let removed = dir.unlink(if facts.noreplace.is_ok() { &other } else { &name });
        removed.map(|()| facts)
    }

    fn try_all(kind: FsKind, dir: &DirHandle, name: &[u8], other: &[u8], fd: BorrowedFd<'_>) -> Self {
        let mut block = AlignedBuf::new(PROBE_BYTES);
        let all = PROBE_BYTES;
        let len = PROBE_BYTES as i64;
        let fallocate = super::confined::retrying(|| calls::allocate(fd, 0, len));
        let written = calls::write_at(fd, &block, 0, Caching::Normal).and_then(|n| whole(n, all));
        let dontcache_write = calls::write_at(fd, &block, 0, Caching::DontCache).and_then(|n| whole(n, all));
        let dontcache_read = fsys::read_at(fd, &mut block, 0, Caching::DontCache).and_then(|n| whole(n, all));
        let direct = written.and_then(|()| try_direct(dir, name, fd, &mut block, true));
        let xattr = calls::set_xattr(fd, c"user.longhaul", b"probe");
        let flock = fsys::try_flock(fd);
        let noreplace = dir.rename_noreplace(name, other);
        Self { kind, direct, fallocate, dontcache_read, dontcache_write, xattr, flock, noreplace }
    }

    /// Tries a source by one of its files, open as `fd`, without writing anything anywhere.
    pub fn of_source(dir: &DirHandle, name: &[u8], fd: BorrowedFd<'_>) -> Result<Self, DiskError> {
        let kind = FsKind::of(fd).map_err(dir.fail(Doing::Stat, name))?;
        let mut block = AlignedBuf::new(PROBE_BYTES);
        let dontcache_read = fsys::read_at(fd, &mut block, 0, Caching::DontCache).map(drop);
        let direct = try_direct(dir, name, fd, &mut block, false);
        let not = Err(NOT_TRIED);
        Ok(Self {
            kind,
            direct,
            fallocate: not,
            dontcache_read,
            dontcache_write: not,
            xattr: not,
            flock: not,
            noreplace: not,
        })
    }

    /// Whether direct I/O works with the alignment that the workers keep to.
    pub fn direct_fits(&self) -> bool {
        let unit = DIRECT_ALIGN as u32;
        self.direct.is_ok_and(|align| unit.is_multiple_of(align.memory) && unit.is_multiple_of(align.offset))
    }
}

fn whole(n: usize, want: usize) -> Probed {
    if n == want { Ok(()) } else { Err(Errno::EIO) }
}

/// Opens `name` with O_DIRECT beside `fd` and moves one block.
fn try_direct(
    dir: &DirHandle,
    name: &[u8],
    fd: BorrowedFd<'_>,
    block: &mut [u8],
    write: bool,
) -> Result<DirectAlign, Errno> {
    let access = if write { OFlag::O_RDWR } else { OFlag::O_RDONLY };
    let direct = dir.open_at(name, access | OFlag::O_DIRECT | OFlag::O_NONBLOCK, 0)?;
    if !Stat::of(direct.as_fd())?.same_object(&Stat::of(fd)?) {
        return Err(Errno::ESTALE);
    }
    if write {
        whole(calls::write_at(direct.as_fd(), block, 0, Caching::Normal)?, block.len())?;
    }
    fsys::read_at(direct.as_fd(), block, 0, Caching::Normal)?;
    // It worked with our own alignment; where the kernel does not tell a finer one, that is what is known.
    let own = DirectAlign { memory: DIRECT_ALIGN as u32, offset: DIRECT_ALIGN as u32 };
    Ok(fsys::direct_align(direct.as_fd()).unwrap_or(own))
}

/// Two names that `clean` knows as ours, should we die between.
fn probe_names() -> (Vec<u8>, Vec<u8>) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = |what: &str| format!(".{what}.lh-{:08x}{n:08x}.part", std::process::id()).into_bytes();
    (name("probe"), name("probe2"))
}

/// Facts by device, probed once each; sources and destinations apart.
#[derive(Debug, Default)]
pub struct ProbeCache(Mutex<HashMap<(u64, bool), Arc<FsFacts>>>);

impl ProbeCache {
    /// The facts of the destination directory's file system.
    pub fn destination(&self, dir: &DirHandle) -> Result<Arc<FsFacts>, DiskError> {
        let dev = Stat::of(dir.as_fd()).map_err(|e| DiskError::new(Doing::Stat, dir.path(), e))?.dev;
        self.get((dev, true), || FsFacts::of(dir))
    }

    /// The same, tried out in the state directory of the transfer that asks, if that lies on the same file system: it goes
    /// with the transfer, so that a crash in the middle of the probe leaves nothing behind.
    pub fn destination_of(
        &self,
        root: &Root,
        home: &RelPath,
        id: &TransferId,
        dir: &DirHandle,
    ) -> Result<Arc<FsFacts>, DiskError> {
        let path = home.join(STATE_DIR).and_then(|states| states.join(id.to_string().as_bytes()));
        let state = path.ok().and_then(|path| root.open_dir(&path).ok());
        let dev = |dir: &DirHandle| Stat::of(dir.as_fd()).ok().map(|stat| stat.dev);
        self.destination(state.as_ref().filter(|state| dev(state) == dev(dir)).unwrap_or(dir))
    }

    /// The facts of the file system of an open source file.
    pub fn source(&self, dir: &DirHandle, name: &[u8], fd: BorrowedFd<'_>) -> Result<Arc<FsFacts>, DiskError> {
        let dev = Stat::of(fd).map_err(dir.fail(Doing::Stat, name))?.dev;
        self.get((dev, false), || FsFacts::of_source(dir, name, fd))
    }

    /// Everything probed so far, for reports.
    pub fn all(&self) -> Vec<Arc<FsFacts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn get(
        &self,
        key: (u64, bool),
        probe: impl FnOnce() -> Result<FsFacts, DiskError>,
    ) -> Result<Arc<FsFacts>, DiskError> {
        if let Some(hit) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Arc::clone(hit));
        }
        // Outside the lock: probing does I/O. Two threads may probe one device at once, with one outcome.
        let facts = Arc::new(probe()?);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_DEVICES {
            known.clear();
        }
        Ok(Arc::clone(known.entry(key).or_insert(facts)))
    }
}
