//! What an agent with all roles costs when there is nothing to do, and how soon it answers.

use crate::http::Client;
use crate::support::{SOON, Sandbox, wait_for};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn cpu_ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = text.rsplit(')').next().unwrap();
    let field = |n: usize| rest.split_whitespace().nth(n).unwrap().parse::<u64>().unwrap();
    field(11) + field(12)
}

/// CPU time of each thread that a process has had, ns, and how often it was run: ticks of 10 ms are too coarse for what this
/// is about.
#[derive(Default)]
struct Threads(HashMap<String, (u64, u64)>);

impl Threads {
    /// More often than an unused thread of a pool lives, so that none is missed.
    const EVERY: Duration = Duration::from_secs(4);

    fn look(&mut self, pid: u32) {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            if let Ok(text) = std::fs::read_to_string(task.path().join("schedstat")) {
                let numbers: Vec<u64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
                self.0.insert(task.file_name().into_string().unwrap(), (numbers[0], numbers[2]));
            }
        }
    }

    fn sum(&self) -> (u64, u64) {
        self.0.values().fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1))
    }
}

/// How often it may be run in a second, all threads together; it is some 11 times.
const RUNS: f64 = 20.0;
/// What a bare thread takes for waking up on the VM where the bound was set, ns.
const BARE: f64 = 39e3;
/// Minutes that may be tried: what else happens on a machine only adds to one of them.
const MINUTES: usize = 3;

/// At most 40 MiB resident, 0.1 % of a core (over a minute; ten with `LONGHAUL_LONG=1`), and ready within 200 ms of CPU time
/// that nobody else takes: the wall clock of a busy machine proves nothing, so that is only told. Where a machine
/// makes waking up dearer than [`BARE`], whoever does it, the share may be larger by as much.
#[test]
fn an_idle_agent_with_all_roles_is_light() {
    let _alone = crate::alone();
    let sandbox = Sandbox::new();
    let flags = ["--roles", "main,source,destination", "--name", "solo"];
    drop(sandbox.agent("solo", &flags).stop().expect(0));
    let began = Instant::now();
    let agent = sandbox.agent("solo", &flags);
    let ready = began.elapsed();
    let pid = agent.running.pid();
    let used = cpu_ticks(pid) * 10;
    let client = Client { port: agent.http, token: agent.token() };
    wait_for("it has joined itself", SOON, || {
        let seen = client.get("/v1/agents/solo");
        seen.status == 200 && seen.json()["alive"] == true
    });
    std::thread::sleep(Duration::from_secs(3));
    let (mut share, mut most, mut runs) = (f64::INFINITY, 0.0, 0.0);
    for minute in 0..MINUTES {
        let bare;
        (share, runs, bare) = idle(pid);
        most = 0.001 * f64::max(1.0, bare / BARE);
        eprintln!(
            "minute {minute}: {:.3} % of a core, run {runs:.1} times a second; a bare thread: {:.0} us each time",
            share * 100.0,
            bare / 1e3
        );
        if share <= most {
            break;
        }
    }
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let (rss, peak) = (kib("VmRSS:"), kib("VmHWM:"));
    eprintln!(
        "ready after {ready:?} ({used} ms of CPU), {:.1} MiB resident (peak {:.1})",
        rss as f64 / 1024.0,
        peak as f64 / 1024.0
    );
    assert!(rss <= 40 << 10, "{rss} KiB resident");
    assert!(runs <= RUNS, "run {runs:.1} times a second");
    assert!(share <= most, "{:.3} % of a core, and {:.3} % is the most here", share * 100.0, most * 100.0);
    assert!(used <= 200, "{used} ms of CPU until it was ready");
}

/// The share of a core that the process takes, how often it is run in a second, and what a bare thread takes meanwhile for
/// waking up, ns.
fn idle(pid: u32) -> (f64, f64, f64) {
    let mut threads = Threads::default();
    threads.look(pid);
    let (before, began, over) = (threads.sum(), Instant::now(), AtomicBool::new(false));
    let bare = std::thread::scope(|scope| {
        let bare = scope.spawn(|| crate::bare_wake(&over));
        while began.elapsed() < Duration::from_secs(if crate::long() { 600 } else { 60 }) {
            std::thread::sleep(Threads::EVERY);
            threads.look(pid);
        }
        over.store(true, Ordering::Relaxed);
        bare.join().unwrap()
    });
    let (after, seconds) = (threads.sum(), began.elapsed().as_secs_f64());
    ((after.0 - before.0) as f64 / 1e9 / seconds, (after.1 - before.1) as f64 / seconds, bare)
}
