//! Every system call that changes a file system, one function each: the only way in which this program changes files.
//! Test builds show each change to a listener first (`sys::observe`); other builds contain nothing but the call.

use crate::sys::fsys::{self, Caching};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, RenameFlags, fallocate, openat, renameat, renameat2};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, ftruncate, linkat, symlinkat, unlinkat};
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The call, shown to the listener in test builds.
macro_rules! observed {
    ($kind:ident { $($field:ident: $value:expr),* }, $call:expr) => {{
        #[cfg(feature = "testing")]
        let outcome = crate::sys::observe::observed(crate::sys::observe::Change::$kind { $($field: $value),* }, || $call);
        #[cfg(not(feature = "testing"))]
        let outcome = $call;
        outcome
    }};
}

/// `openat`.
pub(super) fn open(dir: BorrowedFd<'_>, name: &[u8], flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
    #[cfg(feature = "testing")]
    if flags.contains(OFlag::O_CREAT) {
        return crate::sys::observe::observed_create(dir, name, || openat(dir, name, flags, mode));
    }
    openat(dir, name, flags, mode)
}

/// `mkdirat`.
pub(super) fn make_dir(dir: BorrowedFd<'_>, name: &[u8], mode: Mode) -> Result<(), Errno> {
    observed!(MakeDir { dir: dir, name: name }, mkdirat(dir, name, mode))
}

/// `symlinkat`.
pub(super) fn symlink(target: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    observed!(Symlink { dir: dir, name: name }, symlinkat(target, dir, name))
}

/// `linkat` inside one directory.
pub(super) fn link(dir: BorrowedFd<'_>, from: &[u8], to: &[u8]) -> Result<(), Errno> {
    observed!(Link { dir: dir, from: from, to: to }, linkat(dir, from, dir, to, AtFlags::empty()))
}

/// `renameat` inside one directory.
pub(super) fn rename(dir: BorrowedFd<'_>, from: &[u8], to: &[u8]) -> Result<(), Errno> {
    observed!(Rename { dir: dir, from: from, to: to, replace: true }, renameat(dir, from, dir, to))
}

/// `renameat2(RENAME_NOREPLACE)` inside one directory.
pub(super) fn rename_noreplace(dir: BorrowedFd<'_>, from: &[u8], to: &[u8]) -> Result<(), Errno> {
    let flags = RenameFlags::RENAME_NOREPLACE;
    observed!(Rename { dir: dir, from: from, to: to, replace: false }, renameat2(dir, from, dir, to, flags))
}

/// `unlinkat`.
pub(super) fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    observed!(Unlink { dir: dir, name: name }, unlinkat(dir, name, UnlinkatFlags::NoRemoveDir))
}

/// `unlinkat` of a directory.
pub(super) fn remove_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    observed!(RemoveDir { dir: dir, name: name }, unlinkat(dir, name, UnlinkatFlags::RemoveDir))
}

/// `ftruncate`.
pub fn truncate(file: BorrowedFd<'_>, len: i64) -> Result<(), Errno> {
    observed!(Truncate { file: file, len: len as u64 }, ftruncate(file, len))
}

/// `fallocate` without flags.
pub(super) fn allocate(file: BorrowedFd<'_>, offset: i64, len: i64) -> Result<(), Errno> {
    let flags = FallocateFlags::empty();
    observed!(Allocate { file: file, offset: offset as u64, len: len as u64 }, fallocate(file, flags, offset, len))
}

/// `fallocate` that makes a hole.
pub(super) fn punch(file: BorrowedFd<'_>, offset: i64, len: i64) -> Result<(), Errno> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    observed!(Punch { file: file, offset: offset as u64, len: len as u64 }, fallocate(file, flags, offset, len))
}

/// One `pwritev2`; may be short.
pub fn write_at(file: BorrowedFd<'_>, bytes: &[u8], offset: u64, caching: Caching) -> Result<usize, Errno> {
    #[cfg(feature = "testing")]
    return crate::sys::observe::observed_write(file, offset, bytes, |bytes| {
        fsys::write_at(file, bytes, offset, caching)
    });
    #[cfg(not(feature = "testing"))]
    fsys::write_at(file, bytes, offset, caching)
}

/// Writes all of `bytes`, for callers without a queue.
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        match write_at(file.as_fd(), &bytes[at..], offset + at as u64, Caching::Normal) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(count) => at += count,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// `fchmod`.
pub(super) fn set_mode(file: BorrowedFd<'_>, mode: Mode) -> Result<(), Errno> {
    observed!(Metadata { file: file }, fchmod(file, mode))
}

/// `futimens`, the modification time alone.
pub(super) fn set_time(file: BorrowedFd<'_>, time: &TimeSpec) -> Result<(), Errno> {
    observed!(Metadata { file: file }, futimens(file, &TimeSpec::UTIME_OMIT, time))
}

/// `utimensat` of a symlink itself. Its time is no part of any promise.
pub(super) fn set_link_time(dir: BorrowedFd<'_>, name: &[u8], time: &TimeSpec) -> Result<(), Errno> {
    utimensat(dir, name, &TimeSpec::UTIME_OMIT, time, UtimensatFlags::NoFollowSymlink)
}

/// `fsetxattr`.
pub(super) fn set_xattr(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    observed!(Metadata { file: file }, fsys::set_xattr(file, name, value))
}

/// `fdatasync`.
pub fn sync_data(file: BorrowedFd<'_>) -> Result<(), Errno> {
    observed!(SyncData { file: file }, nix::unistd::fdatasync(file))
}

/// `fsync` of a file or a directory.
pub(super) fn sync(file: BorrowedFd<'_>) -> Result<(), Errno> {
    observed!(Sync { file: file }, nix::unistd::fsync(file))
}

/// `syncfs`.
pub(super) fn sync_fs(file: BorrowedFd<'_>) -> Result<(), Errno> {
    observed!(SyncFs { file: file }, nix::unistd::syncfs(file))
}
