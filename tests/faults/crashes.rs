//! SIGKILL of either end at random moments of one transfer: it finishes, it is equal, and little is sent twice.

use crate::support::{Agent, MIB, Random, copy, data_file, difference, leftovers, long, resend_bound, scratch};
use std::path::Path;
use std::time::Duration;

const KILLS: u64 = 10;
const STREAMS: u64 = 4;

/// Bytes to move, the rate that makes room for the kills, and the span of a life in milliseconds.
fn sizes() -> (u64, &'static str, (u64, u64)) {
    if long() { (8 << 30, "400MiB", (700, 1_500)) } else { (512 * MIB, "100MiB", (150, 450)) }
}

/// One big file, one that ends inside a chunk, and small ones beside them.
fn tree(root: &Path, bytes: u64) -> u64 {
    let odd = 20 * MIB + 4321;
    data_file(&root.join("tree/big"), bytes, 1);
    data_file(&root.join("tree/sub/odd"), odd, 2);
    (0..200).for_each(|n| data_file(&root.join(format!("tree/small/{n}")), 1000 + n, n));
    bytes + odd + (0..200).map(|n| 1000 + n).sum::<u64>()
}

fn check(sent: u64, total: u64, what: &str) {
    let again = sent.saturating_sub(total);
    let bound = KILLS * resend_bound(STREAMS, total);
    eprintln!(
        "{what}: {KILLS} kills, {:.1} MiB of {} MiB sent again, {:.1} MiB a kill; the bound is {} MiB a kill",
        again as f64 / MIB as f64,
        total / MIB,
        again as f64 / MIB as f64 / KILLS as f64,
        resend_bound(STREAMS, total) / MIB
    );
    assert!(sent >= total, "{what}: less was counted than arrived: {sent} of {total}");
    assert!(again <= bound, "{what}: {again} bytes sent again, at most {bound} are promised");
}

#[test]
fn a_pulling_destination_is_killed_ten_times() {
    let (bytes, rate, life) = sizes();
    let dir = scratch(2 * bytes);
    let agent = Agent::start(&dir.path().join("source"), &[]);
    let total = tree(&agent.root(), bytes);
    let to = dir.path().join("copy");
    let (from, target) = (agent.url("tree"), to.to_str().unwrap().to_owned());
    let args = ["-r", "--streams", "4", "--rate", rate, &from, &target];
    let mut random = Random::told("pull");
    for kill in 0..KILLS {
        let mut run = copy(dir.path(), &agent.token_file(), &args);
        agent.has_sessions(kill as usize + 1);
        assert!(run.runs_for(Duration::from_millis(random.between(life.0, life.1))), "kill {kill} came too late");
        run.kill();
    }
    let report = copy(dir.path(), &agent.token_file(), &args).succeeds(Duration::from_secs(300));
    assert_eq!(report["verdict"], "DURABLE");
    assert!(report["resumed_bytes"].as_u64().unwrap() > 0, "{report:#}");
    assert_eq!(difference(&agent.root().join("tree"), &to), None);
    assert_eq!(leftovers(dir.path().join("copy").as_path()), Vec::<std::path::PathBuf>::new());
    // The last session's line is written a moment after the destination has its verdict.
    let mut sessions = 0;
    for _ in 0..600 {
        sessions = agent.transfers().len() as u64;
        if sessions > KILLS {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(sessions, KILLS + 1);
    check(agent.sent(), total, "destination that pulls");
    let metrics = agent.get("/metrics");
    let line = metrics.lines().find(|line| line.starts_with("longhaul_sent_bytes_total")).unwrap();
    assert_eq!(line.split(' ').nth(1).unwrap().parse::<u64>().unwrap(), agent.sent(), "both counters agree");
}

#[test]
fn an_agent_that_is_pushed_to_is_killed_ten_times() {
    let (bytes, rate, life) = sizes();
    let dir = scratch(2 * bytes);
    let mut agent = Agent::start(&dir.path().join("destination"), &["--verify", "wire"]);
    let source = dir.path().join("source");
    let total = tree(&source, bytes);
    let (from, to) = (source.join("tree"), agent.url("copy"));
    let args = ["-r", "--streams", "4", "--rate", rate, from.to_str().unwrap(), &to];
    let mut random = Random::told("push");
    let mut run = copy(dir.path(), &agent.token_file(), &args);
    for kill in 0..KILLS {
        // Since its start the agent has had no other.
        agent.has_sessions(1);
        assert!(run.runs_for(Duration::from_millis(random.between(life.0, life.1))), "kill {kill} came too late");
        agent.kill();
        agent.restart();
    }
    let report = run.succeeds(Duration::from_secs(300));
    assert_eq!(report["verdict"], "DURABLE");
    assert_eq!(difference(&from, &agent.root().join("copy")), None);
    assert_eq!(leftovers(&agent.root()), Vec::<std::path::PathBuf>::new());
    check(report["sent_bytes"].as_u64().unwrap(), total, "destination that is pushed to");
}

#[test]
fn a_source_agent_is_killed_ten_times_and_one_cp_survives_it() {
    let (bytes, rate, life) = sizes();
    let dir = scratch(2 * bytes);
    let mut agent = Agent::start(&dir.path().join("source"), &[]);
    let total = tree(&agent.root(), bytes);
    let to = dir.path().join("copy");
    let (from, target) = (agent.url("tree"), to.to_str().unwrap().to_owned());
    let args = ["-r", "--streams", "4", "--rate", rate, &from, &target];
    let mut random = Random::told("source");
    let mut run = copy(dir.path(), &agent.token_file(), &args);
    for kill in 0..KILLS {
        // Since its start the agent has had no other.
        agent.has_sessions(1);
        assert!(run.runs_for(Duration::from_millis(random.between(life.0, life.1))), "kill {kill} came too late");
        agent.kill();
        if kill == KILLS / 2 {
            // And once the command is given up as well and repeated.
            run.kill();
            agent.restart();
            run = copy(dir.path(), &agent.token_file(), &args);
        } else {
            agent.restart();
        }
    }
    let report = run.succeeds(Duration::from_secs(300));
    assert_eq!(report["verdict"], "DURABLE");
    assert!(report["reconnects"].as_u64().unwrap() >= KILLS / 2 - 1, "{report:#}");
    assert_eq!(difference(&agent.root().join("tree"), &to), None);
    // Here the destination is the end that stays: what it received and what it had at the start of this run.
    let (received, resumed) = (report["received_bytes"].as_u64().unwrap(), report["resumed_bytes"].as_u64().unwrap());
    eprintln!("source: {received} bytes received, {resumed} resumed, {total} in all");
    let again = (received).saturating_sub(total);
    assert!(again <= KILLS * resend_bound(STREAMS, total), "{again}");
}
