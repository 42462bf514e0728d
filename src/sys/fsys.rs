//! File-system calls that nix does not offer safely: `getdents64`, `preadv2`/`pwritev2`, the alignment of direct I/O,
//! extended attributes by descriptor, `flock` without an owner, `sync_file_range`.
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// How one positioned read or write treats the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// As usual.
    Normal,
    /// `RWF_DONTCACHE`: through the cache, dropped behind (kernel 6.14 and later; EOPNOTSUPP elsewhere).
    DontCache,
    /// `RWF_NOWAIT`: only what needs no waiting (EAGAIN otherwise; EOPNOTSUPP on tmpfs).
    NoWait,
}

impl Caching {
    fn flags(self) -> libc::c_int {
        match self {
            Caching::Normal => 0,
            Caching::DontCache => libc::RWF_DONTCACHE,
            Caching::NoWait => libc::RWF_NOWAIT,
        }
    }
}

/// Alignment that direct I/O asks for, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectAlign {
    /// Of the buffer's address.
    pub memory: u32,
    /// Of offset and length.
    pub offset: u32,
}

/// Reads raw directory entries into `buf`; 0 at the end. The layout is `struct linux_dirent64`.
pub fn getdents64(dir: BorrowedFd<'_>, buf: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most `buf.len()` bytes into `buf`, which is borrowed mutably for the whole call.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buf.as_mut_ptr(), buf.len()) };
    Errno::result(n).map(|n| n as usize)
}

/// One `preadv2`; may be short.
pub fn read_at(file: BorrowedFd<'_>, buf: &mut [u8], offset: u64, caching: Caching) -> Result<usize, Errno> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    let iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: `iov` describes `buf`, borrowed mutably for the whole call; the call is synchronous.
    let n = unsafe { libc::preadv2(file.as_raw_fd(), &raw const iov, 1, offset, caching.flags()) };
    Errno::result(n).map(|n| n as usize)
}

/// One `pwritev2`; may be short.
pub fn write_at(file: BorrowedFd<'_>, buf: &[u8], offset: u64, caching: Caching) -> Result<usize, Errno> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    let iov = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    // SAFETY: the kernel only reads from `buf`, which is borrowed for the whole call; the call is synchronous.
    let n = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const iov, 1, offset, caching.flags()) };
    Errno::result(n).map(|n| n as usize)
}

/// What `statx` says about direct I/O on this file: `None` where the kernel (before 6.1) or the file system does not
/// say, or says that there is none.
pub fn direct_align(file: BorrowedFd<'_>) -> Option<DirectAlign> {
    let mut out = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string that outlives the call, `out` is writable and large enough for a `statx`.
    let rc = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, out.as_mut_ptr())
    };
    if rc != 0 {
        return None;
    }
    // SAFETY: zeroed at first and then filled by the kernel; every bit pattern is a valid `statx`.
    let out = unsafe { out.assume_init() };
    let align = DirectAlign { memory: out.stx_dio_mem_align, offset: out.stx_dio_offset_align };
    (out.stx_mask & libc::STATX_DIOALIGN != 0 && align.memory != 0 && align.offset != 0).then_some(align)
}

/// `cachestat`, which libc does not name yet: since 5.1 new calls have one number on every architecture Rust's Linux
/// targets share (alpha, which differs, is none).
const CACHESTAT: libc::c_long = 451;

/// How many pages of a file are in the page cache, without touching any: kernel 6.5 and later, and only for a file that
/// we own or may write.
pub fn cached_pages(file: BorrowedFd<'_>) -> Result<u64, Errno> {
    // `struct cachestat_range`: offset and length, 0 for "to the end".
    let range = [0u64; 2];
    // `struct cachestat`: cached, dirty, in write-back, evicted, recently evicted.
    let mut stat = [0u64; 5];
    // SAFETY: both pointers lead to arrays of the kernel's layout that outlive the call; the kernel writes only `stat`.
    let rc = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), stat.as_mut_ptr(), 0u32) };
    Errno::result(rc).map(|_| stat[0])
}

/// Sets an extended attribute.
pub fn set_xattr(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: `name` is NUL-terminated, `value` is borrowed for the whole call and only read.
    let rc = unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(rc).map(drop)
}

/// Reads an extended attribute into `buf`; ERANGE if it is longer.
pub fn get_xattr(file: BorrowedFd<'_>, name: &CStr, buf: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: `name` is NUL-terminated; the kernel writes at most `buf.len()` bytes into `buf`.
    let n = unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    Errno::result(n).map(|n| n as usize)
}

/// `flock(LOCK_EX | LOCK_NB)`: EWOULDBLOCK when another open file description holds it. The lock belongs to the open
/// file description and ends with its last descriptor, io_uring's references counted.
pub fn try_flock(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    let rc = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    Errno::result(rc).map(drop)
}

/// `flock(LOCK_SH | LOCK_NB)`: to look whether somebody holds it exclusively, without getting into other lookers' way.
pub fn try_flock_shared(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    let rc = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) };
    Errno::result(rc).map(drop)
}

/// Starts the write-back of a range without waiting. No durability: it only keeps the later sync short.
pub fn start_writeback(file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), Errno> {
    let (offset, len) = (
        libc::off64_t::try_from(offset).map_err(|_| Errno::EINVAL)?,
        libc::off64_t::try_from(len).map_err(|_| Errno::EINVAL)?,
    );
    // SAFETY: no memory is passed.
    let rc = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    Errno::result(rc).map(drop)
}
