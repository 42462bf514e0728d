//! System calls that no safe crate offers, and the few that others need with plain arguments. Each is one call; EINTR is
//! left to the caller except where said.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, OpenHow, PosixFadviseAdvice, RenameFlags, ResolveFlag};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

/// Lets every thread allocate from one heap. The block buffers are ours; what is left is names and messages, made by one
/// thread and freed by another, and each further heap of glibc keeps pages of them for itself: 461 bytes for each name of a
/// tree of 4 KiB paths instead of 132.
pub fn one_heap() {
    // SAFETY: sets a number inside the allocator; any value is allowed, and the call is thread-safe.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// A write beyond `ulimit -f` gives EFBIG, instead of the signal that ends the process.
pub fn ignore_file_size_signal() {
    // SAFETY: no handler is installed, the signal is only ignored; nothing else in the program changes it.
    let _ = unsafe { nix::sys::signal::signal(nix::sys::signal::SIGXFSZ, nix::sys::signal::SigHandler::SigIgn) };
}

/// `openat2`: opens `path` below `dir` with `O_*` flags (O_CLOEXEC is added), a mode for new files and `RESOLVE_*` flags.
///
/// # Errors
/// As the call: `ENOSYS` before 5.6 or in a sandbox, `EXDEV` for a path that leaves `dir` under RESOLVE_BENEATH, `ELOOP`
/// for a symlink under RESOLVE_NO_SYMLINKS, `EAGAIN` when a rename raced (try again).
pub fn openat2(dir: impl AsFd, path: &[u8], flags: i32, mode: u32, resolve: u64) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::from_bits_retain(flags | libc::O_CLOEXEC))
        .mode(Mode::from_bits_retain(mode))
        .resolve(ResolveFlag::from_bits_retain(resolve));
    Ok(nix::fcntl::openat2(dir, path, how)?)
}

/// `renameat2` with `libc::RENAME_NOREPLACE`, `RENAME_EXCHANGE` or 0.
pub fn renameat2(old_dir: impl AsFd, old: &[u8], new_dir: impl AsFd, new: &[u8], flags: u32) -> io::Result<()> {
    Ok(nix::fcntl::renameat2(old_dir, old, new_dir, new, RenameFlags::from_bits_retain(flags))?)
}

/// `fallocate` with `libc::FALLOC_FL_*` or 0, offset and length in bytes.
pub fn fallocate(fd: impl AsFd, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    Ok(nix::fcntl::fallocate(fd, FallocateFlags::from_bits_retain(mode), signed(offset)?, signed(len)?)?)
}

/// `posix_fadvise`.
pub fn fadvise(fd: impl AsFd, offset: u64, len: u64, advice: PosixFadviseAdvice) -> io::Result<()> {
    Ok(nix::fcntl::posix_fadvise(fd, signed(offset)?, signed(len)?, advice)?)
}

/// Starts writing dirty pages of a range back, without waiting and without any promise of durability.
pub fn sync_file_range_start(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    sync_file_range(fd.as_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE)
}

/// Waits until a range has been written back (so that few dirty pages pile up). No promise of durability: that is
/// `fdatasync`.
pub fn sync_file_range_wait(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(fd.as_fd(), offset, len, flags)
}

fn sync_file_range(fd: BorrowedFd<'_>, offset: u64, len: u64, flags: u32) -> io::Result<()> {
    // SAFETY: no memory is passed, and the descriptor is open for the length of the borrow.
    let code = unsafe { libc::sync_file_range(fd.as_raw_fd(), signed(offset)?, signed(len)?, flags) };
    Errno::result(code).map(drop).map_err(io::Error::from)
}

/// `syncfs`: everything dirty on the file system that `fd` lies on.
pub fn syncfs(fd: impl AsFd) -> io::Result<()> {
    Ok(nix::unistd::syncfs(fd)?)
}

/// `fchmod`, all twelve bits.
pub fn fchmod(fd: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(nix::sys::stat::fchmod(fd, Mode::from_bits_truncate(mode))?)
}

/// Sets the modification time (seconds and nanoseconds since 1970; the seconds may be negative); the access time stays.
pub fn set_mtime(fd: impl AsFd, seconds: i64, nanoseconds: u32) -> io::Result<()> {
    let mtime = TimeSpec::new(seconds, i64::from(nanoseconds));
    Ok(nix::sys::stat::futimens(fd, &TimeSpec::UTIME_OMIT, &mtime)?)
}

fn signed(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| Errno::EINVAL.into())
}

pub(super) fn preadv2_dontcache(fd: &OwnedFd, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
    preadv2(fd.as_fd(), buf, offset, libc::RWF_DONTCACHE)
}

pub(super) fn pwritev2_dontcache(fd: &OwnedFd, buf: &[u8], offset: u64) -> Result<usize, Errno> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    let vector = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    // SAFETY: the vector names `buf`, which the kernel only reads, and which outlives the call.
    let count = unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const vector, 1, offset, libc::RWF_DONTCACHE) };
    Errno::result(count).map(|count| count as usize)
}

fn preadv2(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64, flags: i32) -> Result<usize, Errno> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    let vector = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: the vector names `buf`, which is borrowed exclusively for the length of the call.
    let count = unsafe { libc::preadv2(fd.as_raw_fd(), &raw const vector, 1, offset, flags) };
    Errno::result(count).map(|count| count as usize)
}

/// Reads only what lies in the page cache.
///
/// # Errors
/// `EAGAIN`: the first byte is not there. `EOPNOTSUPP`: the file system cannot tell (tmpfs, where all is in memory).
pub fn preadv2_nowait(fd: impl AsFd, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    Ok(preadv2(fd.as_fd(), buf, offset, libc::RWF_NOWAIT)?)
}

/// Alignment that O_DIRECT asks for on this file, in bytes: (of memory, of offset and length). `None` where O_DIRECT does
/// not work or the kernel (before 6.1) or the file system does not say.
pub fn statx_dioalign(fd: impl AsFd) -> Option<(u32, u32)> {
    let mut out = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: the path is a NUL-terminated constant and `out` has room for the whole structure.
    let code =
        unsafe { libc::statx(fd.as_fd().as_raw_fd(), c"".as_ptr(), flags, libc::STATX_DIOALIGN, out.as_mut_ptr()) };
    if code != 0 {
        return None;
    }
    // SAFETY: zeroed before the call, so every field is initialised (all are integers) whatever the kernel filled in.
    let out = unsafe { out.assume_init() };
    let told = out.stx_mask & libc::STATX_DIOALIGN != 0 && out.stx_dio_offset_align != 0;
    told.then_some((out.stx_dio_mem_align, out.stx_dio_offset_align))
}

/// Reads an extended attribute into `buf`; bytes read.
///
/// # Errors
/// `ENODATA`: there is none. `ERANGE`: `buf` is too small. `EOPNOTSUPP`: not on this file system.
pub fn fgetxattr(fd: impl AsFd, name: &CStr, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the name is NUL-terminated and the kernel writes at most `buf.len()` bytes into the exclusive borrow.
    let count = unsafe { libc::fgetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    Errno::result(count).map(|count| count as usize).map_err(io::Error::from)
}

/// Sets an extended attribute.
///
/// # Errors
/// `EOPNOTSUPP`, `ENOSPC`, `EDQUOT`, `EPERM` as the call.
pub fn fsetxattr(fd: impl AsFd, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: the name is NUL-terminated and the kernel reads `value.len()` bytes of the borrow.
    let code = unsafe { libc::fsetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(code).map(drop).map_err(io::Error::from)
}

/// CPU time of the calling thread, in nanoseconds.
pub fn thread_cpu_time_ns() -> u64 {
    cpu_time(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time of all threads of the process, living and ended, in nanoseconds.
pub fn process_cpu_time_ns() -> u64 {
    cpu_time(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

fn cpu_time(clock: ClockId) -> u64 {
    // These clocks exist on every kernel that this program starts on; 0 only says "unknown" in a report.
    clock_gettime(clock).map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// The largest resident set so far, in bytes.
pub fn peak_rss_bytes() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss() as u64 * 1024)
}

/// Whether the process may be dumped and traced by others of the same user (keys lie in its memory: say no).
pub fn set_dumpable(allowed: bool) -> io::Result<()> {
    Ok(nix::sys::prctl::set_dumpable(allowed)?)
}

/// Ends a TCP connection at once: a reset instead of what was not yet acknowledged, whose buffers the kernel lets go.
///
/// # Errors
/// Not a TCP socket; it was never connected.
pub(super) fn disconnect(fd: &OwnedFd) -> io::Result<()> {
    let mut nobody = MaybeUninit::<libc::sockaddr>::zeroed();
    // SAFETY: all-zero bytes are a valid sockaddr (AF_UNSPEC is 0), and it lives through the call with the length given.
    let code = unsafe {
        nobody.assume_init_mut().sa_family = libc::AF_UNSPEC as libc::sa_family_t;
        libc::connect(fd.as_raw_fd(), nobody.as_ptr(), size_of::<libc::sockaddr>() as libc::socklen_t)
    };
    Errno::result(code).map(drop).map_err(io::Error::from)
}

pub(super) fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    socket2::SockRef::from(fd).set_nonblocking(true)
}

/// `getsockopt` into bytes; how many the kernel filled.
pub(super) fn getsockopt_bytes(fd: BorrowedFd<'_>, level: i32, name: i32, out: &mut [u8]) -> io::Result<usize> {
    let mut len = out.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into the exclusive borrow and then sets `len` to what it wrote.
    let code = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, out.as_mut_ptr().cast(), &raw mut len) };
    Errno::result(code)?;
    Ok((len as usize).min(out.len()))
}

/// `SO_MAX_PACING_RATE` in bytes per second, all 64 bits (as a 32-bit option it ends at 34 Gbit/s). `u64::MAX` is none.
pub fn set_max_pacing_rate(fd: impl AsFd, bytes_per_second: u64) -> io::Result<()> {
    setsockopt_bytes(fd.as_fd(), libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &bytes_per_second.to_ne_bytes())
}

/// `SO_MAX_PACING_RATE` as the kernel has it, in bytes per second; `u64::MAX` is none.
pub fn max_pacing_rate(fd: impl AsFd) -> io::Result<u64> {
    let mut out = [0; 8];
    match getsockopt_bytes(fd.as_fd(), libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &mut out)? {
        8 => Ok(u64::from_ne_bytes(out)),
        // Before 4.20 the option had 32 bits.
        _ => Ok(u64::from(u32::from_ne_bytes([out[0], out[1], out[2], out[3]]))),
    }
}

/// `SO_SNDBUFFORCE` or `SO_RCVBUFFORCE`: past the sysctl's limit, with CAP_NET_ADMIN.
///
/// # Errors
/// `EPERM` without the capability.
pub fn force_buffer(fd: impl AsFd, receive: bool, bytes: u32) -> io::Result<()> {
    let name = if receive { libc::SO_RCVBUFFORCE } else { libc::SO_SNDBUFFORCE };
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    setsockopt_bytes(fd.as_fd(), libc::SOL_SOCKET, name, &bytes.to_ne_bytes())
}

pub(super) fn setsockopt_bytes(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of the borrow.
    let code = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    Errno::result(code).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn here() -> tempfile::TempDir {
        tempfile::tempdir_in(".").unwrap()
    }

    #[test]
    fn paths_stay_below_the_directory() {
        let dir = here();
        std::fs::write(dir.path().join("in"), b"x").unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        let root = File::open(dir.path()).unwrap();
        let open = |path: &[u8]| openat2(&root, path, libc::O_RDONLY, 0, libc::RESOLVE_BENEATH);
        assert!(open(b"in").is_ok());
        for path in [&b"../x"[..], b"/etc/passwd", b"out/passwd"] {
            assert_eq!(open(path).unwrap_err().raw_os_error(), Some(libc::EXDEV), "{}", path.escape_ascii());
        }
        renameat2(&root, b"in", &root, b"in2", libc::RENAME_NOREPLACE).unwrap();
        std::fs::write(dir.path().join("in"), b"y").unwrap();
        let refused = renameat2(&root, b"in", &root, b"in2", libc::RENAME_NOREPLACE).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EEXIST));
    }

    #[test]
    fn file_calls_do_what_they_say() {
        let dir = here();
        let mut file = File::create_new(dir.path().join("f")).unwrap();
        fallocate(&file, 0, 0, 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        assert!(fallocate(&file, 0, u64::MAX, 1).is_err());
        file.write_all(&[7; 8192]).unwrap();
        fchmod(&file, 0o4640).unwrap();
        set_mtime(&file, -5, 123_456_789).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o4640);
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (-5, 123_456_789));
        sync_file_range_start(&file, 0, 8192).unwrap();
        sync_file_range_wait(&file, 0, 8192).unwrap();
        syncfs(&file).unwrap();
        fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        // Writing back and dropping was asked for, but nothing forces the kernel: only the call's two answers are sure.
        let mut buf = [0; 4096];
        let reader = File::open(dir.path().join("f")).unwrap();
        match preadv2_nowait(&reader, &mut buf, 0) {
            Ok(count) => assert!(count == 4096 && buf[0] == 7),
            Err(error) => {
                assert!(matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EOPNOTSUPP)), "{error}");
            }
        }
        if let Some((memory, offset)) = statx_dioalign(&file) {
            assert!(memory.is_power_of_two() && offset.is_power_of_two() && offset <= 4096);
        }
        match fsetxattr(&file, c"user.lh", b"value") {
            Ok(()) => {
                assert_eq!(fgetxattr(&file, c"user.lh", &mut buf).unwrap(), 5);
                assert_eq!(&buf[..5], b"value");
                assert_eq!(fgetxattr(&file, c"user.no", &mut buf).unwrap_err().raw_os_error(), Some(libc::ENODATA));
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
        }
    }

    #[test]
    fn clocks_and_process_facts_move() {
        let (thread, process) = (thread_cpu_time_ns(), process_cpu_time_ns());
        let mut sum = 0u64;
        for n in 0..20_000_000u64 {
            sum = std::hint::black_box(sum.wrapping_mul(31) ^ n);
        }
        assert!(thread_cpu_time_ns() > thread && process_cpu_time_ns() > process);
        assert!(peak_rss_bytes() > 1 << 20);
    }
}
