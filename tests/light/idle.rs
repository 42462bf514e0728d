//! What an agent with all roles costs when there is nothing to do, and how soon it answers.

use crate::http::Client;
use crate::support::{SOON, Sandbox, wait_for};
use std::collections::HashMap;
use std::time::{Duration, Instant};

fn cpu_ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = text.rsplit(')').next().unwrap();
    let field = |n: usize| rest.split_whitespace().nth(n).unwrap().parse::<u64>().unwrap();
    field(11) + field(12)
}

/// CPU time of each thread that a process has had, ns: ticks of 10 ms are too coarse for what this is about.
#[derive(Default)]
struct Threads(HashMap<String, u64>);

impl Threads {
    /// More often than an unused thread of a pool lives, so that none is missed.
    const EVERY: Duration = Duration::from_secs(4);

    fn look(&mut self, pid: u32) {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            if let Ok(text) = std::fs::read_to_string(task.path().join("schedstat")) {
                let used = text.split_whitespace().next().unwrap().parse().unwrap();
                self.0.insert(task.file_name().into_string().unwrap(), used);
            }
        }
    }

    fn sum(&self) -> u64 {
        self.0.values().sum()
    }
}

/// At most 40 MiB resident, 0.1 % of a core (over a minute; ten with `LONGHAUL_LONG=1`), and ready within 200 ms of CPU time
/// that nobody else takes: the wall clock of a busy machine proves nothing, so that is only told.
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
    let mut threads = Threads::default();
    threads.look(pid);
    let (before, began) = (threads.sum(), Instant::now());
    while began.elapsed() < Duration::from_secs(if crate::long() { 600 } else { 60 }) {
        std::thread::sleep(Threads::EVERY);
        threads.look(pid);
    }
    let share = (threads.sum() - before) as f64 / 1e9 / began.elapsed().as_secs_f64();
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let (rss, peak) = (kib("VmRSS:"), kib("VmHWM:"));
    eprintln!(
        "ready after {ready:?} ({used} ms of CPU), {:.1} MiB resident (peak {:.1}), {:.3} % of a core",
        rss as f64 / 1024.0,
        peak as f64 / 1024.0,
        share * 100.0
    );
    assert!(rss <= 40 << 10, "{rss} KiB resident");
    assert!(share <= 0.001, "{:.3} % of a core", share * 100.0);
    assert!(used <= 200, "{used} ms of CPU until it was ready");
}
