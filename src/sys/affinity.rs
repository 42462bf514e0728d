//! Which CPUs a thread runs on. Threads that it starts inherit that; the kernel's own threads of a ring do not.

#![allow(unsafe_code)]

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::io;

/// The CPUs that the calling thread may run on, ascending: those set that are online and in its cgroup's cpuset.
///
/// # Errors
/// `EINVAL` on a host with more than 1024 CPUs, `EPERM` where system calls are filtered.
pub fn thread_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// Binds the calling thread to these CPUs. Those that are offline, do not exist or lie outside its cgroup's cpuset are left
/// out in silence: [`thread_cpus`] tells which.
///
/// # Errors
/// `EINVAL` when none is left, or for a number above 1023; `EPERM` where system calls are filtered.
pub fn bind_thread(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Binds the threads that the kernel will start for the calling thread's rings (io-wq: what a ring cannot do at once, such
/// as syncs and direct writes) to the CPUs that the calling thread may run on now. Else they run anywhere in its cpuset.
///
/// # Errors
/// io_uring is refused, or the kernel is older than 5.14.
pub fn bind_ring_threads() -> io::Result<()> {
    // SAFETY: all-zero bytes are a cpu_set_t without any CPU.
    let mut mask: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in thread_cpus()? {
        // SAFETY: `thread_cpus` gives numbers below CPU_SETSIZE, the bits of the mask.
        unsafe { libc::CPU_SET(cpu, &mut mask) };
    }
    // The mask is kept for the thread, whichever of its rings it is told through.
    io_uring::IoUring::new(1)?.submitter().register_iowq_aff(&mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread of its own: others of the test process stay where they are.
    fn apart<T: Send>(body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(body).join().unwrap())
    }

    #[test]
    fn a_thread_and_what_it_starts_keep_to_the_cpus() {
        let all = thread_cpus().unwrap();
        let last = *all.last().unwrap();
        apart(|| {
            bind_thread(&[last]).unwrap();
            assert_eq!(thread_cpus().unwrap(), [last]);
            assert_eq!(nix::sched::sched_getcpu().unwrap(), last);
            assert_eq!(apart(|| thread_cpus().unwrap()), [last]);
            // What is not there is left out, and does not count for the rest.
            bind_thread(&[last, CpuSet::count() - 1]).unwrap();
            assert!(thread_cpus().unwrap().contains(&last));
            assert!(CpuSet::count() - 1 == last || bind_thread(&[CpuSet::count() - 1]).is_err());
            assert_eq!(bind_thread(&[CpuSet::count()]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
            bind_thread(&all).unwrap();
            assert_eq!(thread_cpus().unwrap(), all);
        });
        assert_eq!(thread_cpus().unwrap(), all);
    }

    /// The kernel's threads are named `iou-wrk-TID` after the thread whose ring they serve.
    #[test]
    fn the_kernels_threads_of_a_ring_keep_to_the_cpus() {
        if super::super::probe_ring(2).is_err() {
            return eprintln!("skipped: io_uring is refused here");
        }
        let all = thread_cpus().unwrap();
        let first = all[0];
        let seen = apart(|| {
            bind_thread(&[first]).unwrap();
            bind_ring_threads().unwrap();
            // Some kernels start them where the thread is then: it is elsewhere by now.
            bind_thread(&all).unwrap();
            let mut ring = io_uring::IoUring::new(2).unwrap();
            let file = tempfile::tempfile().unwrap();
            let sync = {
                use std::os::fd::AsRawFd as _;
                io_uring::opcode::Fsync::new(io_uring::types::Fd(file.as_raw_fd())).build()
            };
            // SAFETY: a sync refers to no memory, and the file lives until it has completed.
            unsafe { ring.submission().push(&sync).unwrap() };
            ring.submit_and_wait(1).unwrap();
            allowed_of(&format!("iou-wrk-{}", nix::unistd::gettid()))
        });
        assert_eq!(seen, [first.to_string()], "a sync is done by a kernel thread, bound as its ring's thread was then");
    }

    /// `Cpus_allowed_list` of this process's threads of that name.
    fn allowed_of(name: &str) -> Vec<String> {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let status =
            |task: io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.ok()?.path().join("status")).ok();
        let named = tasks.filter_map(status).filter(|text| text.lines().next() == Some(&format!("Name:\t{name}")));
        let list =
            |text: String| text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t").map(str::to_owned));
        named.filter_map(list).collect()
    }
}
