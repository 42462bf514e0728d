//! Maps of CPUs as their users meet them: the kernel's view of every thread, and what reports say.

use crate::support::{Agent, Sandbox, noise};
use longhaul::profile::{cpu_list, cpu_ranges};
use std::collections::BTreeMap;

/// Names of a process's threads, and the CPUs that each may run on, as the kernel lists them.
fn threads(pid: u32) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        // A thread may end while it is looked at.
        let Ok(status) = std::fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t")).unwrap_or_default().to_owned()
        };
        found.push((field("Name"), field("Cpus_allowed_list")));
    }
    found
}

/// What this test, and so each process that it starts, may run on.
fn allowed() -> Vec<usize> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap();
    cpu_list(list).unwrap()
}

fn push(sandbox: &Sandbox, agent: &Agent, name: &str, flags: &[&str]) -> crate::support::Outcome {
    let (token, url) = (agent.token_file(), agent.url(name));
    sandbox.cp(&[&["--token-file", &token][..], flags, &["data", &url]].concat())
}

/// The agent's threads by name, after a push by direct I/O that wakes all that there are; and whether direct I/O it was. All
/// threads of one name have one list.
fn seen(sandbox: &Sandbox, agent: &Agent, name: &str) -> (BTreeMap<String, String>, bool) {
    let report = push(sandbox, agent, name, &["--io", "direct"]).expect(0);
    let direct = report.json["io"]["destination"].as_str().unwrap().contains("O_DIRECT");
    let mut seen = BTreeMap::new();
    for (name, list) in threads(agent.running.pid()) {
        // The kernel's own threads of a ring are named after it: one name for all.
        let name = if name.starts_with("iou-wrk-") { "iou-wrk".to_owned() } else { name };
        let before = seen.insert(name.clone(), list.clone());
        assert!(before.as_ref().is_none_or(|before| *before == list), "{name}: {before:?} and {list}");
    }
    (seen, direct)
}

#[test]
fn every_thread_of_the_engine_keeps_to_its_cpus() {
    let sandbox = Sandbox::new();
    sandbox.write("data", &noise(24 << 20, 1));
    let all = allowed();
    let (whole, last) = (cpu_ranges(&all), all.last().unwrap().to_string());
    let count = all.len().to_string();
    for engine in ["auto", "epoll"] {
        // One CPU for two workers, and one for each.
        let agent = sandbox.agent(&format!("one-{engine}"), &["--cpus", &last, "--workers", "2", "--engine", engine]);
        let (one, _) = seen(&sandbox, &agent, "a");
        for name in ["lh-coordinator", "lh-pool", "lh-worker-0", "lh-worker-1"] {
            assert_eq!(one.get(name), Some(&last), "{engine}: {one:?}");
        }
        let elsewhere =
            one.iter().find(|(name, list)| (name.starts_with("lh-") || *name == "iou-wrk") && **list != last);
        assert_eq!(elsewhere, None, "{engine}: {one:?}");
        assert_eq!(one.get("control"), Some(&whole), "the control plane stays where it was: {one:?}");
        drop(agent);

        let agent =
            sandbox.agent(&format!("all-{engine}"), &["--cpus", &whole, "--workers", &count, "--engine", engine]);
        let (each, direct) = seen(&sandbox, &agent, "b");
        for (number, cpu) in all.iter().enumerate() {
            assert_eq!(each.get(&format!("lh-worker-{number}")), Some(&cpu.to_string()), "{engine}: {each:?}");
        }
        for name in ["lh-coordinator", "lh-pool"] {
            assert_eq!(each.get(name), Some(&whole), "{engine}: {each:?}");
        }
        if engine == "epoll" && direct {
            // Started by workers that are bound to one CPU, and not bound with them.
            assert_eq!(each.get("lh-file-io"), Some(&whole), "{each:?}");
        }
    }
}

#[test]
fn without_a_map_nothing_is_bound_and_nothing_said() {
    let sandbox = Sandbox::new();
    sandbox.write("data", &noise(1 << 20, 2));
    let agent = sandbox.agent("far", &[]);
    let whole = cpu_ranges(&allowed());
    let (seen, _) = seen(&sandbox, &agent, "a");
    assert!(seen.contains_key("lh-worker-0") && seen.values().all(|list| *list == whole), "{seen:?}");
    let report = push(&sandbox, &agent, "b", &[]).expect(0);
    assert_eq!(report.json["cpus"], serde_json::json!({"source": "", "destination": ""}));
}

#[test]
fn reports_say_what_each_end_was_bound_to_and_what_not() {
    let sandbox = Sandbox::new();
    sandbox.write("data", &noise(1 << 20, 3));
    let last = allowed().last().unwrap().to_string();
    let agent = sandbox.agent("far", &["--cpus", &last, "--workers", "1"]);
    let report = push(&sandbox, &agent, "a", &["--cpus", &last, "--workers", "2"]).expect(0);
    let of = |report: &crate::support::Outcome, end: &str| report.json["cpus"][end].as_str().unwrap().to_owned();
    assert!(of(&report, "source").starts_with(&format!("{last}: shared by 2 workers")), "{}", report.out);
    assert!(of(&report, "destination").starts_with(&format!("{last}: one worker")), "{}", report.out);
    let said = sandbox.run(&["cp", "--explain", "--cpus", &last, "data", "b"]);
    assert!(said.out.contains(&format!("\n  CPUs        {last}: ")), "{}", said.out);

    // A profile's map that this host does not have: said, and the copy goes on.
    let profile = sandbox.write("p.toml", b"[threads]\ncpus = \"0,1023\"\n");
    let profile = profile.to_str().unwrap();
    let report = push(&sandbox, &agent, "c", &["--profile", profile]).expect(0);
    assert_eq!(of(&report, "source"), "");
    let notes = report.notes();
    assert!(notes.contains("cpus 0,1023: CPU 1023 does not exist here; the engine's threads are not bound"), "{notes}");
    // A flag goes before it.
    let report = push(&sandbox, &agent, "d", &["--profile", profile, "--cpus", &last]).expect(0);
    assert!(of(&report, "source").starts_with(&last) && !report.notes().contains("1023"), "{}", report.out);

    // From the command line it is an error before anything begins.
    push(&sandbox, &agent, "e", &["--cpus", "1023"]).says(2, &["--cpus 1023: CPU 1023 does not exist here"]);
    push(&sandbox, &agent, "e", &["--cpus", "node:1000"]).says(2, &["there is no NUMA node 1000 here"]);
    push(&sandbox, &agent, "e", &["--cpus", "many"]).says(2, &["`many` is no CPU"]);
    assert!(!sandbox.at("far/e").exists());
    let (token, from, to) = (agent.token_file(), agent.url("a"), agent.url("e"));
    sandbox.cp(&["--token-file", &token, "--cpus", &last, &from, &to]).says(2, &["one end here"]);
    let (root, state) = (sandbox.arg("far"), sandbox.arg("other-state"));
    let line = ["agent", "--root", &root, "--state", &state, "--http", "127.0.0.1:0", "--data", "127.0.0.1:0"];
    let refused = sandbox.run(&[&line[..], &["--cpus", "1023"]].concat());
    assert!(refused.err.contains("cpus 1023: CPU 1023 does not exist here"), "{}", refused.err);
    let shown = sandbox.run(&[&line[..], &["--cpus", &last, "--show-config"]].concat()).out;
    assert!(
        shown.contains(&format!("cpus = {last}  # flag")) && shown.contains(&format!("\ncpus: {last}: ")),
        "{shown}"
    );
}
