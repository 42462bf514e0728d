//! `longhaul bench`: its parts, its table, its document beside iperf3's, and that it leaves nothing behind.

use crate::support::{Outcome, SOON, Sandbox, skip};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// Short parts and small files.
const SHORT: [&str; 4] = ["--seconds", "0.4", "--size", "16MiB"];

fn bench(sandbox: &Sandbox, words: &[&str]) -> Outcome {
    sandbox.run(&[&["bench"], words, &SHORT].concat())
}

fn part<'a>(document: &'a Value, name: &str) -> &'a Value {
    let parts = document["longhaul"]["parts"].as_array().unwrap_or_else(|| panic!("{document:#}"));
    parts.iter().find(|part| part["part"] == name).unwrap_or_else(|| panic!("no {name}: {document:#}"))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

fn of_benches(dir: &str) -> Vec<String> {
    names(Path::new(dir)).into_iter().filter(|name| name.starts_with("longhaul-bench-")).collect()
}

#[test]
fn every_part_is_measured_and_the_slowest_is_named() {
    let sandbox = Sandbox::new();
    sandbox.dir("disk");
    let picture = sandbox.at("rates.svg");
    let found = bench(&sandbox, &["--json", "--dir", "disk", "--svg", picture.to_str().unwrap()]).expect(0);
    let document = &found.json;
    let parts = ["digest", "cipher", "digest_and_cipher", "disk_write", "disk_read", "network", "end_to_end"];
    for name in parts {
        let part = part(document, name);
        let (rate, bytes) = (part["bits_per_second"].as_u64().unwrap(), part["bytes"].as_u64().unwrap());
        assert!(rate > 1_000_000 && bytes > 0 && part["duration_ns"].as_u64().unwrap() > 0, "{part}");
    }
    assert_eq!(part(document, "end_to_end")["bytes"], 16 << 20, "the whole file");
    let needed = ["digest_and_cipher", "disk_write", "disk_read", "network"];
    let slowest = needed.map(|name| part(document, name)).into_iter().min_by_key(|p| p["bits_per_second"].as_u64());
    let told = &document["longhaul"]["bottleneck"];
    assert_eq!(told["part"], slowest.unwrap()["part"], "{told}");
    assert_eq!(told["bits_per_second"], slowest.unwrap()["bits_per_second"]);
    assert!(told["end_to_end_share"].as_f64().unwrap() > 0.0);
    let latency = &document["longhaul"]["chunk_latency_ns"];
    assert_eq!(latency["count"], 4, "16 MiB are four chunks: {latency}");
    let [p50, p90, p99, max] = ["p50", "p90", "p99", "max"].map(|key| latency[key].as_u64().unwrap());
    assert!(0 < p50 && p50 <= p90 && p90 <= p99 && p99 <= max, "{latency}");
    assert_eq!(document["longhaul"]["report"]["verdict"], "DURABLE");
    assert_eq!(std::fs::read_to_string(picture).unwrap().matches("<polyline").count(), 5);
    assert_eq!(names(&sandbox.at("disk")), Vec::<String>::new());
}

#[test]
fn the_table_names_the_bottleneck_and_synthetic_ends_are_said() {
    let sandbox = Sandbox::new();
    let words = ["--end-to-end", "--cpu", "--source", "synthetic", "--destination", "synthetic", "--encrypt", "off"];
    let running = sandbox.start(sandbox.command(&[], &[&["bench"], &words[..], &SHORT].concat()));
    let mine = format!("longhaul-bench-{}", running.pid());
    let said = ["bottleneck: digest and cipher at", "NOT encrypted", "note: both ends share"];
    let found = running.wait(SOON).says(0, &said);
    assert!(found.out.contains("made up (synthetic) to thrown away (synthetic)"), "{}", found.out);
    assert_eq!(found.out.lines().filter(|line| line.starts_with("* ")).count(), 1, "{}", found.out);
    assert!(!found.out.contains("disk write"), "{}", found.out);
    assert_eq!(of_benches(sandbox.path().to_str().unwrap()), Vec::<String>::new());
    assert!(!of_benches("/dev/shm").contains(&mine), "nothing is left in memory");
}

#[test]
fn a_named_file_is_read_and_left_and_an_agents_is_fetched() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("source", &[]);
    let file = sandbox.write("source/file", &crate::support::noise(5 << 20, 7));
    // Below the file's own directory no agent may have its state: it goes elsewhere.
    let words = ["--json", "--disk", "source", "--end-to-end", "--source", file.to_str().unwrap()];
    let found = bench(&sandbox, &words).expect(0);
    assert_eq!(part(&found.json, "end_to_end")["bytes"], 5 << 20);
    assert!(part(&found.json, "disk_read")["needed"] == true && found.json["longhaul"]["about"] == "end_to_end");
    let (url, token) = (agent.url("file"), agent.token_file());
    let found = bench(&sandbox, &["--json", "--all", &url, "--token-file", &token, "--streams", "3"]).expect(0);
    assert_eq!(part(&found.json, "end_to_end")["bytes"], 5 << 20);
    assert_eq!(part(&found.json, "disk_read")["needed"], false, "the agent's storage is what is read");
    assert_eq!(found.json["start"]["test_start"]["num_streams"], 3);
    assert_eq!(names(&agent.root), ["file"], "the file is left, and nothing else");
    assert_eq!(of_benches(sandbox.path().to_str().unwrap()), Vec::<String>::new());
    let missing = format!("{url}-not");
    bench(&sandbox, &["--end-to-end", &missing, "--token-file", &token]).says(4, &["end to end", "file-not"]);
    bench(&sandbox, &["--net", "lh://127.0.0.1:1", "--token-file", &token]).says(5, &["127.0.0.1"]);
    bench(&sandbox, &["--net", "--seconds", "99"]).says(2, &["0.2 to 15"]);
}

/// What iperf3 prints, with the same names in the same places: every path of its document is in ours, and is a number where
/// its own is one. Needs iperf3; skipped without.
#[test]
fn the_document_is_a_superset_of_iperf3s() {
    let there = Command::new("iperf3").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        return skip("needs iperf3 to compare with");
    }
    let sandbox = Sandbox::new();
    for (direction, reverse) in [("push", None), ("pull", Some("-R"))] {
        let theirs = iperf3(reverse);
        let ours =
            bench(&sandbox, &["--json", "--net", "--direction", direction, "--streams", "1", "--interval", "0.2"]);
        let ours = ours.expect(0).json;
        let mut missing = Vec::new();
        contained(&theirs, &ours, "", &mut missing);
        assert!(missing.is_empty(), "{direction}: {missing:?}\n{ours:#}");
        let intervals = ours["intervals"].as_array().unwrap();
        assert_eq!(intervals.len(), 2, "0.4 s in intervals of 0.2 s: {intervals:#?}");
        let sum: u64 = intervals.iter().map(|interval| interval["sum"]["bytes"].as_u64().unwrap()).sum();
        assert_eq!(Some(sum), ours["end"]["sum_received"]["bytes"].as_u64());
        let total = |key: &str| ours["end"]["cpu_utilization_percent"][key].as_f64().unwrap();
        assert!(total("host_total") > 1.0 && total("remote_total") > 1.0, "both ends work: {ours:#}");
    }
}

fn iperf3(reverse: Option<&str>) -> Value {
    let began = std::time::Instant::now();
    loop {
        // The kernel picks a port. Whoever has it next is met by a server on another: one that could not bind is gone, and
        // so is one that has had its one client, whatever became of that.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let mut server = Command::new("iperf3").args(["-s", "-1", "-p", &port]).stdout(Stdio::null()).spawn().unwrap();
        let document = loop {
            let mut words = vec!["-c", "127.0.0.1", "-p", &port, "-t", "1", "-J"];
            words.extend(reverse);
            let output = Command::new("iperf3").args(words).output().unwrap();
            let document: Value = serde_json::from_slice(&output.stdout).unwrap();
            if document.get("error").is_none() || server.try_wait().unwrap().is_some() {
                break document;
            }
            assert!(began.elapsed() < SOON, "{document:#}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        let _ = server.kill();
        server.wait().unwrap();
        if document.get("error").is_none() {
            return document;
        }
        assert!(began.elapsed() < SOON, "{document:#}");
    }
}

fn contained(theirs: &Value, ours: &Value, path: &str, missing: &mut Vec<String>) {
    // What this end cannot know is null (`src/cli/bench/iperf.rs`).
    const UNKNOWN: [&str; 2] = ["remote_user", "remote_system"];
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (key, value) in theirs {
                let path = format!("{path}.{key}");
                match ours.get(key) {
                    Some(Value::Null) if UNKNOWN.contains(&key.as_str()) => {}
                    Some(ours) => contained(value, ours, &path, missing),
                    None => missing.push(path),
                }
            }
        }
        (Value::Array(theirs), Value::Array(ours)) => match (theirs.first(), ours.first()) {
            (Some(theirs), Some(ours)) => contained(theirs, ours, &format!("{path}[0]"), missing),
            (Some(_), None) => missing.push(format!("{path}[0]")),
            _ => {}
        },
        (Value::Number(_), Value::Number(_))
        | (Value::String(_), Value::String(_))
        | (Value::Bool(_), Value::Bool(_)) => {}
        _ => missing.push(format!("{path}: {ours} for {theirs}")),
    }
}

#[test]
fn a_signal_leaves_nothing() {
    let sandbox = Sandbox::new();
    let words = ["bench", "--json", "--net", "--end-to-end", "--seconds", "15", "--size", "16MiB"];
    let running = sandbox.start(sandbox.command(&[], &words));
    let here = sandbox.path().to_str().unwrap().to_owned();
    crate::support::wait_for("the agent's state", SOON, || {
        of_benches(&here).iter().any(|name| sandbox.at(name).join("agent/token").exists())
    });
    running.signal(Signal::SIGTERM);
    let ended = running.wait(SOON).expect(130);
    assert_eq!(ended.number("exit_code"), 130);
    assert_eq!(of_benches(&here), Vec::<String>::new());
}

#[test]
fn a_sweep_takes_turns_and_keeps_a_dated_run() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("source", &[]);
    let (peer, token) = (agent.url(""), agent.token_file());
    let out = sandbox.at("runs");
    let mut words = vec!["bench", "matrix", peer.trim_end_matches('/'), "--token-file", &token, "--streams", "1,2"];
    let names_of_kernel = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap();
    let one = names_of_kernel.split_whitespace().find(|name| ["reno", "cubic", "bbr"].contains(name)).unwrap();
    let (both, out_text) = (format!("{one},nosuchalgo"), out.to_str().unwrap());
    words.extend([
        "--congestion",
        &both,
        "--block",
        "64KiB,256KiB",
        "--seconds",
        "0.2",
        "--rounds",
        "2",
        "--out",
        out_text,
    ]);
    let found = sandbox.run(&[&words[..], &["--json"]].concat()).expect(0);
    let settings = found.json["settings"].as_array().unwrap();
    assert_eq!(settings.len(), 8, "two numbers of streams, two algorithms, two blocks: {settings:#?}");
    let runs: Vec<u64> = settings.iter().map(|setting| setting["runs"].as_u64().unwrap()).collect();
    assert_eq!(runs, [2, 2, 2, 2, 0, 0, 0, 0], "an algorithm that no kernel has: {settings:#?}");
    let fastest = settings.iter().map(|s| s["bits_per_second"]["median"].as_u64().unwrap()).max().unwrap();
    let best = &found.json["best"];
    assert!(best["bits_per_second"]["median"].as_u64().unwrap() * 100 >= fastest * 97 && fastest > 1_000_000, "{best}");
    let made = names(&out);
    assert!(made.len() == 1 && made[0].starts_with("20"), "DATE-HOST: {made:?}");
    let read = |name: &str| std::fs::read_to_string(out.join(&made[0]).join(name)).unwrap();
    let lines: Vec<Value> = read("lines.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 16);
    let rounds: Vec<u64> = lines.iter().map(|line| line["round"].as_u64().unwrap()).collect();
    assert!(rounds[..8].iter().all(|round| *round == 1) && rounds[8..].iter().all(|round| *round == 2), "{rounds:?}");
    let cell = |line: &Value| format!("{} {} {}", line["streams"], line["congestion"], line["block"]);
    assert_eq!(cell(&lines[8]), cell(&lines[1]), "the second round begins one further");
    let page = read("README.md");
    for words in ["--rounds 2", "kernel", "| best |", "not to be had", "longhaul 0."] {
        assert!(page.contains(words), "no `{words}`: {page}");
    }
    assert!(!page.contains(&token) && !page.contains(sandbox.path().to_str().unwrap()), "no secrets, no paths: {page}");
    assert_eq!(read("rates.svg").matches("<polyline").count(), 4);
}
