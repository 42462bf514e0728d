//! A filter that makes this kernel refuse what older kernels, containers and other file systems refuse; for tests.
#![allow(unsafe_code)]

mod notify;

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};

use libc::sock_filter;
use nix::errno::Errno;

/// Flags of `io_uring_setup` that came after kernel 5.14, for [`Deny::RingFlags`].
pub const RING_FLAGS_AFTER_5_14: u32 = !0x7f;

/// What the filter refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deny {
    /// `io_uring_setup`: EPERM, as under `kernel.io_uring_disabled` and in containers.
    IoUring,
    /// `openat2`: ENOSYS.
    Openat2,
    /// `preadv2` and `pwritev2` with RWF_DONTCACHE: EOPNOTSUPP.
    DontCache,
    /// `io_uring_setup` with any of these flags: EINVAL, as an older kernel.
    RingFlags(u32),
    /// `flock`: ENOLCK, as network file systems without locks.
    Flock,
    /// `fallocate`: EOPNOTSUPP.
    Fallocate,
    /// `renameat2` with any flag: EINVAL, as file systems without it.
    Renameat2,
}

impl Deny {
    /// Reads `io-uring`, `openat2`, `dontcache`, `ring-flags` (all after 5.14), `flock`, `fallocate` or `renameat2`.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "io-uring" => Self::IoUring,
            "openat2" => Self::Openat2,
            "dontcache" => Self::DontCache,
            "ring-flags" => Self::RingFlags(RING_FLAGS_AFTER_5_14),
            "flock" => Self::Flock,
            "fallocate" => Self::Fallocate,
            "renameat2" => Self::Renameat2,
            _ => return None,
        })
    }
}

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;
#[cfg(target_arch = "riscv64")]
const ARCH: u32 = 0xC000_00F3;

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH_AT: u32 = 4;

/// Low half of argument `n`.
const fn argument(n: u32) -> u32 {
    16 + 8 * n + if cfg!(target_endian = "big") { 4 } else { 0 }
}

fn load(at: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: at }
}

fn jump(test: u32, k: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt: yes, jf: no, k }
}

fn ret(action: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action }
}

fn errno(code: i32) -> sock_filter {
    ret(libc::SECCOMP_RET_ERRNO | code as u32)
}

fn program(denies: &[Deny]) -> Vec<sock_filter> {
    let allow = ret(libc::SECCOMP_RET_ALLOW);
    let mut code = vec![load(ARCH_AT), jump(libc::BPF_JEQ, ARCH, 1, 0), allow, load(NR)];
    for deny in denies {
        let mut always = |nr: libc::c_long, action| code.extend([jump(libc::BPF_JEQ, nr as u32, 0, 1), action]);
        match deny {
            Deny::IoUring => always(libc::SYS_io_uring_setup, errno(libc::EPERM)),
            Deny::Openat2 => always(libc::SYS_openat2, errno(libc::ENOSYS)),
            Deny::Flock => always(libc::SYS_flock, errno(libc::ENOLCK)),
            Deny::Fallocate => always(libc::SYS_fallocate, errno(libc::EOPNOTSUPP)),
            Deny::RingFlags(_) => always(libc::SYS_io_uring_setup, ret(libc::SECCOMP_RET_USER_NOTIF)),
            Deny::DontCache => {
                for nr in [libc::SYS_preadv2, libc::SYS_pwritev2] {
                    on_bits(&mut code, nr, 5, libc::RWF_DONTCACHE as u32, libc::EOPNOTSUPP);
                }
            }
            Deny::Renameat2 => on_bits(&mut code, libc::SYS_renameat2, 4, u32::MAX, libc::EINVAL),
        }
    }
    code.push(allow);
    code
}

/// Refuses call `nr` when argument `n` has any of `bits`.
fn on_bits(code: &mut Vec<sock_filter>, nr: libc::c_long, n: u32, bits: u32, refusal: i32) {
    code.extend([
        jump(libc::BPF_JEQ, nr as u32, 0, 4),
        load(argument(n)),
        jump(libc::BPF_JSET, bits, 0, 1),
        errno(refusal),
        load(NR),
    ]);
}

/// Installs the filter for the calling thread and what it starts. With `listen`, gives the descriptor on which the kernel
/// asks about calls.
fn install(code: &mut [sock_filter], listen: bool) -> io::Result<Option<OwnedFd>> {
    nix::sys::prctl::set_no_new_privs()?;
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    let flags = if listen { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    // SAFETY: the program and its instructions live through the call; the kernel copies and checks them.
    let code = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    let fd = Errno::result(code)? as i32;
    // SAFETY: with the listener flag the call returns a descriptor that nobody else owns yet.
    Ok(listen.then(|| unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn ring_flags(denies: &[Deny]) -> Option<u32> {
    denies.iter().find_map(|deny| if let Deny::RingFlags(mask) = deny { Some(*mask) } else { None })
}

/// Runs a command under the filter and waits for it. The child dies with the thread that runs this.
///
/// # Errors
/// The command cannot be started, or the kernel takes no filter (5.5 on for [`Deny::RingFlags`]).
pub fn run_denied(denies: &[Deny], command: &mut Command) -> io::Result<ExitStatus> {
    let mask = ring_flags(denies);
    let mut code = program(denies);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let sender = theirs.as_raw_fd();
    let prepare = move || {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        match install(&mut code, mask.is_some())? {
            Some(listener) => notify::send_descriptor(sender, &listener),
            None => Ok(()),
        }
    };
    // SAFETY: between fork and exec the closure only makes system calls and uses memory of its own.
    unsafe { command.pre_exec(prepare) };
    let mut child = command.spawn()?;
    drop(theirs);
    match mask {
        None => child.wait(),
        Some(mask) => notify::supervise(&mut child, &notify::receive_descriptor(&ours)?, mask),
    }
}

/// Becomes a command under the filter. With [`Deny::RingFlags`] this process stays as its supervisor and exits with
/// its code (or 128 and the signal).
///
/// # Errors
/// As [`run_denied`]; an `argv` that is empty.
pub fn deny_and_exec(denies: &[Deny], argv: &[OsString]) -> io::Result<Infallible> {
    let [program_name, arguments @ ..] = argv else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut command = Command::new(program_name);
    command.args(arguments);
    if ring_flags(denies).is_none() {
        install(&mut program(denies), false)?;
        return Err(command.exec());
    }
    let status = run_denied(denies, &mut command)?;
    let signal = std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default();
    std::process::exit(status.code().unwrap_or(128 + signal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Arena, ArenaConfig, EngineFacts, IoQueue, QueueChoice, open_queue};

    /// Runs one of the tests below (or a module of tests) in a process of its own under the filter.
    fn inside(denies: &[Deny], name: &str, exact: bool) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([name, "--include-ignored", "--test-threads=2"]);
        // One alone is named, for `scripts/ignored.sh`.
        command.arg(if exact { "--exact" } else { "--quiet" });
        let status = run_denied(denies, &mut command).unwrap();
        assert!(status.success(), "{name} under {denies:?}: {status}");
    }

    fn facts() -> EngineFacts {
        let config = ArenaConfig { bytes: 1 << 20, block: 4096, explicit_huge_pages: false };
        open_queue(QueueChoice::Auto, &Arena::new(config).unwrap(), 8).unwrap().describe()
    }

    #[test]
    fn refusals_choose_the_fallback_and_are_told() {
        inside(&[Deny::IoUring], "sys::seccomp::tests::without_io_uring", true);
        inside(&[Deny::RingFlags(RING_FLAGS_AFTER_5_14)], "sys::seccomp::tests::with_an_old_ring", true);
        inside(&[Deny::RingFlags(1 << 8)], "sys::seccomp::tests::without_one_flag", true);
        let rest = [Deny::Openat2, Deny::DontCache, Deny::Flock, Deny::Fallocate, Deny::Renameat2];
        inside(&rest, "sys::seccomp::tests::without_the_rest", true);
    }

    #[test]
    fn the_suite_holds_under_every_refusal() {
        inside(&[Deny::IoUring, Deny::DontCache], "sys::tests::auto::", false);
        inside(&[Deny::RingFlags(RING_FLAGS_AFTER_5_14), Deny::DontCache], "sys::tests::auto::", false);
    }

    #[test]
    #[ignore = "run by refusals_choose_the_fallback_and_are_told, under a filter"]
    fn without_io_uring() {
        let facts = facts();
        assert_eq!((facts.engine, facts.refused), ("epoll", vec!["io_uring_setup: EPERM".to_owned()]));
    }

    #[test]
    #[ignore = "run by refusals_choose_the_fallback_and_are_told, under a filter"]
    fn with_an_old_ring() {
        let facts = facts();
        assert_eq!((facts.engine, facts.features), ("io_uring", vec!["CQSIZE", "SEND_ZC", "registered files"]));
        let refused = ["SUBMIT_ALL: EINVAL", "COOP_TASKRUN: EINVAL", "TASKRUN_FLAG: needs COOP_TASKRUN"];
        assert_eq!(facts.refused[..3], refused);
        assert_eq!(facts.refused[3..], ["SINGLE_ISSUER: EINVAL", "DEFER_TASKRUN: needs SINGLE_ISSUER"]);
    }

    #[test]
    #[ignore = "run by refusals_choose_the_fallback_and_are_told, under a filter"]
    fn without_one_flag() {
        let facts = facts();
        assert!(facts.features.contains(&"SINGLE_ISSUER") && facts.features.contains(&"SUBMIT_ALL"), "{facts:?}");
        assert_eq!(facts.refused[0], "COOP_TASKRUN: EINVAL");
    }

    #[test]
    #[ignore = "run by refusals_choose_the_fallback_and_are_told, under a filter"]
    fn without_the_rest() {
        use crate::sys::syscall::{fallocate, openat2, renameat2};
        let dir = tempfile::tempdir_in(".").unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        let file = std::fs::File::create_new(dir.path().join("a")).unwrap();
        let code = |result: io::Result<()>| result.unwrap_err().raw_os_error();
        assert_eq!(code(openat2(&root, b"a", 0, 0, 0).map(drop)), Some(libc::ENOSYS));
        assert_eq!(code(fallocate(&file, 0, 0, 10)), Some(libc::EOPNOTSUPP));
        assert_eq!(code(renameat2(&root, b"a", &root, b"b", libc::RENAME_NOREPLACE)), Some(libc::EINVAL));
        renameat2(&root, b"a", &root, b"b", 0).unwrap();
        assert!(file.try_lock().is_err());
        let file = std::os::fd::OwnedFd::from(file);
        let refused = crate::sys::syscall::pwritev2_dontcache(&file, b"x", 0).unwrap_err();
        assert_eq!(refused, Errno::EOPNOTSUPP);
    }
}
