//! What a run takes of the machine: time, CPU, memory.

use super::Fallible;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Memory is asked for so often.
const STEP: Duration = Duration::from_millis(20);
/// Huge pages only every so many steps: the kernel walks all pages of a process for the answer.
const HUGE_EVERY: usize = 5;

/// The most that was seen.
#[derive(Default)]
pub struct Peaks {
    /// Resident bytes of each process.
    pub rss: Vec<u64>,
    /// Bytes of each process in huge pages; none: it ended before it was asked.
    pub huge: Vec<Option<u64>>,
    /// Bytes that the kernel accounts to TCP sockets of the whole machine.
    pub tcp: u64,
}

/// Looks at processes until it is ended.
pub struct Watch {
    over: Arc<AtomicBool>,
    sampler: std::thread::JoinHandle<Peaks>,
}

impl Watch {
    pub fn start(pids: &[u32]) -> Self {
        let (pids, over) = (pids.to_vec(), Arc::new(AtomicBool::new(false)));
        let sampler = std::thread::spawn({
            let over = over.clone();
            move || {
                let mut peaks = Peaks { rss: vec![0; pids.len()], huge: vec![None; pids.len()], tcp: 0 };
                for step in 0.. {
                    peaks.tcp = peaks.tcp.max(tcp_memory());
                    for (at, pid) in pids.iter().enumerate() {
                        peaks.rss[at] = peaks.rss[at].max(peak_rss(*pid));
                        // Not the first step: a process has nothing then.
                        if step % HUGE_EVERY == 1 {
                            peaks.huge[at] = peaks.huge[at].max(huge_pages(*pid));
                        }
                    }
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    std::thread::sleep(STEP);
                }
                peaks
            }
        });
        Self { over, sampler }
    }

    pub fn end(self) -> Peaks {
        self.over.store(true, Ordering::Relaxed);
        self.sampler.join().expect("the sampler only reads")
    }
}

pub fn peak_rss(pid: u32) -> u64 {
    kib(&format!("/proc/{pid}/status"), &["VmHWM:"]).unwrap_or(0) << 10
}

/// Transparent ones and reserved ones; none: the process is no more.
fn huge_pages(pid: u32) -> Option<u64> {
    let all = kib(&format!("/proc/{pid}/smaps_rollup"), &["AnonHugePages:", "Shared_Hugetlb:", "Private_Hugetlb:"]);
    all.map(|kib| kib << 10)
}

/// The sum of such lines of a file of /proc, KiB; none: there is no such line.
fn kib(path: &str, names: &[&str]) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let value = |line: &str| {
        let rest = names.iter().find_map(|name| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    text.lines().filter_map(value).reduce(|sum, one| sum + one)
}

/// Bytes: /proc/net/sockstat counts pages.
fn tcp_memory() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("TCP:")).unwrap_or_default();
    let pages = line.split_whitespace().skip_while(|word| *word != "mem").nth(1).and_then(|n| n.parse::<u64>().ok());
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    pages.unwrap_or(0) * page as u64
}

/// CPU of all children of this process that have ended.
pub fn cpu_of_ended() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("asking for one's own children cannot fail");
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 * 1e-6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// A command that ran to its end.
pub struct Timed {
    pub stdout: Vec<u8>,
    /// Seconds.
    pub wall: f64,
    /// Seconds.
    pub cpu: f64,
    /// Its peak, bytes.
    pub rss: u64,
    /// Huge pages of the command and then of those beside it.
    pub huge: Vec<Option<u64>>,
}

/// Runs a command to its end, with an eye on other processes.
pub fn timed(command: &mut Command, beside: &[u32]) -> Fallible<Timed> {
    let before = cpu_of_ended();
    let began = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let watch = Watch::start(&[&[child.id()], beside].concat());
    let output = child.wait_with_output()?;
    let wall = began.elapsed().as_secs_f64();
    let peaks = watch.end();
    if !output.status.success() {
        return Err(format!("{:?} failed: {}", command.get_program(), String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(Timed { stdout: output.stdout, wall, cpu: cpu_of_ended() - before, rss: peaks.rss[0], huge: peaks.huge })
}
