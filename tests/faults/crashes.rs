//! SIGKILL of either end at random moments of one transfer: it finishes, it is equal, and little is sent twice.

use crate::support::{
    Agent, Copy, MIB, Net, Random, copy_command, data_file, difference, leftovers, long, resend_bound, scratch,
};
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

/// A copy in the namespace, if there is one.
fn begin(net: Option<&Net>, home: &Path, agent: &Agent, args: &[&str]) -> Copy {
    Copy { child: copy_command(&Net::prefix(net), home, &agent.token_file(), args).spawn().unwrap() }
}

/// The report of a copy whose agent is killed and started again, again and again.
fn survives(mut run: Copy, agent: &mut Agent, test: &str, life: (u64, u64)) -> serde_json::Value {
    let mut random = Random::told(test);
    for kill in 0..KILLS {
        // Since its start the agent has had no other.
        agent.has_sessions(1);
        assert!(run.runs_for(Duration::from_millis(random.between(life.0, life.1))), "kill {kill} came too late");
        agent.kill();
        agent.restart();
    }
    let report = run.succeeds(Duration::from_secs(300));
    assert_eq!(report["verdict"], "DURABLE");
    report
}

/// `sent` by the count of the end that stayed, against what is promised and what the interface carried. What is not
/// counted as payload there is a tenth at most; what was in a killed end's buffers was counted and may never have been
/// carried, or carried and never counted.
fn check(sent: u64, total: u64, carried: Option<u64>, what: &str) {
    if let Some(carried) = carried {
        eprintln!("{what}: {} MiB counted, {} MiB over the interface", sent / MIB, carried / MIB);
        let bound = KILLS * resend_bound(STREAMS, total);
        assert!(carried >= total && carried <= sent + sent / 10 + bound, "{what}: {carried} carried, {sent} counted");
    }
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
    let net = Net::up("lhcp");
    let net = net.as_ref();
    let agent = Agent::start_in(&dir.path().join("source"), &Net::prefix(net), "127.0.0.1", &[]);
    let total = tree(&agent.root(), bytes);
    let to = dir.path().join("copy");
    let (from, target) = (agent.url("tree"), to.to_str().unwrap().to_owned());
    let args = ["-r", "--streams", "4", "--rate", rate, &from, &target];
    let mut random = Random::told("pull");
    for kill in 0..KILLS {
        let mut run = begin(net, dir.path(), &agent, &args);
        agent.has_sessions(kill as usize + 1);
        assert!(run.runs_for(Duration::from_millis(random.between(life.0, life.1))), "kill {kill} came too late");
        run.kill();
    }
    let report = begin(net, dir.path(), &agent, &args).succeeds(Duration::from_secs(300));
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
    check(agent.sent(), total, net.map(Net::carried), "destination that pulls");
}

#[test]
fn an_agent_that_is_pushed_to_is_killed_ten_times() {
    let (bytes, rate, life) = sizes();
    let dir = scratch(2 * bytes);
    let net = Net::up("lhcd");
    let net = net.as_ref();
    let at = dir.path().join("destination");
    let mut agent = Agent::start_in(&at, &Net::prefix(net), "127.0.0.1", &["--verify", "wire"]);
    let source = dir.path().join("source");
    let total = tree(&source, bytes);
    let (from, to) = (source.join("tree"), agent.url("copy"));
    let args = ["-r", "--streams", "4", "--rate", rate, from.to_str().unwrap(), &to];
    let run = begin(net, dir.path(), &agent, &args);
    let report = survives(run, &mut agent, "push", life);
    assert_eq!(difference(&from, &agent.root().join("copy")), None);
    assert_eq!(leftovers(&agent.root()), Vec::<std::path::PathBuf>::new());
    check(report["sent_bytes"].as_u64().unwrap(), total, net.map(Net::carried), "destination that is pushed to");
}

#[test]
fn a_source_agent_is_killed_ten_times_and_one_cp_survives_it() {
    let (bytes, rate, life) = sizes();
    let dir = scratch(2 * bytes);
    let net = Net::up("lhcs");
    let net = net.as_ref();
    let mut agent = Agent::start_in(&dir.path().join("source"), &Net::prefix(net), "127.0.0.1", &[]);
    let total = tree(&agent.root(), bytes);
    let to = dir.path().join("copy");
    let (from, target) = (agent.url("tree"), to.to_str().unwrap().to_owned());
    let args = ["-r", "--streams", "4", "--rate", rate, &from, &target];
    let run = begin(net, dir.path(), &agent, &args);
    let report = survives(run, &mut agent, "source", life);
    assert!(report["reconnects"].as_u64().unwrap() >= KILLS, "{report:#}");
    assert_eq!(difference(&agent.root().join("tree"), &to), None);
    // Here the destination is the end that stays.
    check(report["received_bytes"].as_u64().unwrap(), total, net.map(Net::carried), "source");
}

#[test]
fn the_metrics_count_what_the_transfer_log_counts() {
    let dir = scratch(64 * MIB);
    let agent = Agent::start(&dir.path().join("source"), &[]);
    let total = tree(&agent.root(), MIB);
    let to = dir.path().join("copy");
    begin(None, dir.path(), &agent, &["-r", &agent.url("tree"), to.to_str().unwrap()])
        .succeeds(Duration::from_secs(60));
    assert!((0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        !agent.transfers().is_empty()
    }));
    let metrics = agent.get("/metrics");
    let line = metrics.lines().find(|line| line.starts_with("longhaul_sent_bytes_total")).unwrap();
    assert_eq!(line.split(' ').nth(1).unwrap().parse::<u64>().unwrap(), agent.sent());
    assert!(agent.sent() >= total);
}
