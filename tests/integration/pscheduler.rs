//! The perfSONAR tool of `scripts/pscheduler`: each of its programs through stdin and stdout, as pScheduler calls them, with the
//! built binary and an agent on loopback. Needs python3; skipped without.

use crate::support::{BINARY, Sandbox, noise, skip};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

struct Tool {
    config: PathBuf,
}

impl Tool {
    /// With the settings of `config`, or `None` without python3.
    fn new(sandbox: &Sandbox, config: &Value) -> Option<Self> {
        let there = Command::new("python3").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            skip("needs python3");
            return None;
        }
        Some(Self { config: sandbox.write("pscheduler.json", config.to_string().as_bytes()) })
    }

    /// Exit code, answer and what was said on stderr.
    fn call(&self, program: &str, given: &str) -> (i32, Value, String) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/pscheduler/longhaul").join(program);
        // By its first line, as pScheduler runs it; and the tree stays as it is.
        let mut command = Command::new(path);
        command.env("LONGHAUL_PSCHEDULER_CONFIG", &self.config).env("PYTHONDONTWRITEBYTECODE", "1");
        command.env_remove("LONGHAUL_TOKEN_FILE").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
        // One that reads nothing may be gone already.
        let _ = child.stdin.take().unwrap().write_all(given.as_bytes());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code().unwrap_or(-1), answer, said)
    }

    fn ask(&self, program: &str, given: &Value) -> Value {
        let (code, answer, said) = self.call(program, &given.to_string());
        assert!(code == 0 && answer.is_object(), "{program}: {code} {answer} {said}");
        answer
    }

    /// What the first of `participants` found, and what became of it in the end.
    fn run(&self, test: &Value, participants: u64) -> (Value, Value) {
        let of = |participant: u64| self.ask("participant-data", &json!({ "participant": participant, "test": test }));
        let data: Vec<Value> = (0..participants).map(of).collect();
        let start = jiff::Timestamp::now().to_string();
        let run = |participant: u64| {
            self.ask(
                "run",
                &json!({
                    "schema": 1, "schedule": { "start": start, "duration": "PT10S" }, "test": test,
                    "participant": participant, "participant-data": data,
                }),
            )
        };
        let results: Vec<Value> = (0..participants).map(run).collect();
        let merged = self.ask("merged-results", &json!({ "test": test, "results": results }));
        (results[0].clone(), merged)
    }
}

#[test]
fn the_tool_says_what_it_can_run_and_for_how_long() {
    let sandbox = Sandbox::new();
    let Some(tool) = Tool::new(&sandbox, &json!({ "port": 9000 })) else { return };
    let described = tool.ask("enumerate", &json!(null));
    assert_eq!(
        (described["name"].as_str(), described["tests"].clone()),
        (Some("longhaul"), json!(["throughput", "disk-to-disk"]))
    );
    let test = |kind: &str, spec: Value| json!({ "type": kind, "spec": spec });
    let can = |test: &Value| {
        let answer = tool.ask("can-run", test);
        (answer["can-run"].as_bool().unwrap(), answer["reasons"].to_string())
    };
    let network = test("throughput", json!({ "schema": 2, "dest": "dtn1", "duration": "PT5S", "parallel": 4 }));
    let disk =
        test("disk-to-disk", json!({ "schema": 1, "source": "lh://dtn1/a", "dest": "/tmp/a", "timeout": "PT1M30S" }));
    assert!(can(&network).0 && can(&disk).0);
    for (bad, why) in [
        (test("rtt", json!({})), "not rtt"),
        (test("throughput", json!({ "dest": "d", "udp": true })), "TCP only"),
        (test("throughput", json!({ "dest": "d", "ip-version": 6 })), "ip-version"),
        (test("throughput", json!({ "dest": "d", "duration": "PT1M" })), "15"),
        (test("throughput", json!({ "dest": "d", "buffer-length": 1000 })), "buffer-length"),
        (test("throughput", json!({ "schema": 99, "dest": "d" })), "schema 99"),
        (test("disk-to-disk", json!({ "source": "gsiftp://d/a", "dest": "/b" })), "lh://"),
        (test("disk-to-disk", json!({ "source": "/a", "dest": "/b" })), "at an agent"),
        (json!({ "spec": {} }), "no type"),
    ] {
        let (able, reasons) = can(&bad);
        assert!(!able && reasons.contains(why), "{bad}: {reasons}");
    }
    assert_eq!(tool.ask("duration", &network)["duration"], "PT10S", "the seconds and what is around them");
    assert_eq!(tool.ask("duration", &disk)["duration"], "PT95S");
    assert_eq!(tool.ask("duration", &network["spec"])["duration"], "PT10S", "by the specification alone");
    assert_eq!(tool.ask("participant-data", &json!({ "participant": 1, "test": network }))["port"], 9000);
    for (program, given) in [
        ("can-run", "no JSON"),
        ("duration", r#"{"spec": {"duration": "5 s"}}"#),
        ("run", "{}"),
        ("merged-results", "[]"),
    ] {
        let (code, _, said) = tool.call(program, given);
        assert!(code == 1 && said.contains("longhaul: "), "{program}: {code} {said}");
    }
}

#[test]
fn throughput_is_measured_in_both_directions() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("data", &[]);
    let config = json!({ "longhaul": BINARY, "port": agent.http, "token-file": agent.token_file() });
    let Some(tool) = Tool::new(&sandbox, &config) else { return };
    for (reverse, participants) in [(false, 2), (true, 1)] {
        let test = json!({ "type": "throughput", "spec": {
            "schema": 2, "dest": "127.0.0.1", "duration": "PT0.5S", "interval": "PT0.2S", "parallel": 2, "reverse": reverse,
        }});
        let (run, merged) = tool.run(&test, participants);
        assert!(run["succeeded"] == true && run["error"].is_null() && merged["succeeded"] == true, "{run} {merged}");
        assert!(run["diags"].as_str().unwrap().contains(" bench --json --net lh://127.0.0.1:"), "{run}");
        let summary = &merged["summary"]["summary"];
        let rate = summary["throughput-bits"].as_f64().unwrap();
        assert!(rate > 1e6 && summary["receiver-throughput-bits"].as_f64().unwrap() > 1e6, "{summary}");
        assert_eq!(merged["summary"]["streams"].as_array().unwrap().len(), 2);
        let intervals = merged["intervals"].as_array().unwrap();
        assert!(intervals.len() >= 2, "{merged}");
        let bytes = |line: &Value| line["throughput-bytes"].as_u64().unwrap();
        let all: u64 = intervals.iter().map(|interval| bytes(&interval["summary"])).sum();
        assert_eq!(all, bytes(summary), "the intervals are the whole");
        // The sender's kernel tells this end about itself.
        assert_eq!(intervals[0]["streams"][0].get("rtt").is_some(), !reverse, "{}", intervals[0]);
        let allowed = ["schema", "succeeded", "error", "diags", "mss", "mtu", "intervals", "summary"];
        let keys = merged.as_object().unwrap().keys();
        assert!(keys.clone().all(|key| allowed.contains(&key.as_str())), "the test's schema has no others: {keys:?}");
    }
    let test =
        json!({ "type": "throughput", "spec": { "dest": "127.0.0.1", "duration": "PT0.5S", "single-ended-port": 1 } });
    let (run, merged) = tool.run(&test, 1);
    assert!(run["succeeded"] == false && merged["succeeded"] == false, "{run} {merged}");
    assert!(merged["error"].as_str().unwrap().contains("127.0.0.1") && merged["intervals"] == json!([]), "{merged}");
}

#[test]
fn a_file_goes_from_disk_to_disk_and_only_what_was_made_is_removed() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("data", &[]);
    let content = noise(5 << 20, 3);
    sandbox.write("data/file", &content);
    sandbox.dir("here");
    let config = json!({ "longhaul": BINARY, "token-file": agent.token_file() });
    let Some(tool) = Tool::new(&sandbox, &config) else { return };
    let (here, url) = (sandbox.at("here/file"), agent.url("file"));
    let test = |more: Value| {
        let mut spec = json!({ "schema": 1, "source": url, "dest": here.to_str().unwrap(), "timeout": "PT30S" });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "type": "disk-to-disk", "spec": spec })
    };
    let (_, merged) = tool.run(&test(json!({})), 1);
    assert_eq!((merged["succeeded"].as_bool(), merged["bytes-sent"].as_u64()), (Some(true), Some(5 << 20)), "{merged}");
    assert!(merged["throughput"].as_f64().unwrap() > 1e6, "{merged}");
    let time = merged["time"].as_str().unwrap();
    assert!(time.starts_with("PT") && time.ends_with('S'), "{time}");
    assert!(!here.exists(), "tidied");
    let (_, merged) = tool.run(&test(json!({ "cleanup": false, "parallel": 3 })), 1);
    assert!(merged["succeeded"] == true && std::fs::read(&here).unwrap() == content, "{merged}");
    let (_, merged) = tool.run(&test(json!({})), 1);
    assert!(merged["succeeded"] == false && merged["time"] == "PT0S", "{merged}");
    assert!(merged["error"].as_str().unwrap().contains("exists") && std::fs::read(&here).unwrap() == content);
    let back = json!({ "source": here.to_str().unwrap(), "dest": agent.url("back") });
    let (run, merged) = tool.run(&test(back), 1);
    assert!(merged["succeeded"] == true && run["diags"].as_str().unwrap().contains("was left"), "{run} {merged}");
    assert_eq!(std::fs::read(sandbox.at("data/back")).unwrap(), content);
    let (_, merged) = tool.run(&test(json!({ "source": agent.url("none"), "dest": sandbox.arg("here/none") })), 1);
    assert!(merged["succeeded"] == false && merged["error"].as_str().unwrap().contains("none"), "{merged}");
    // What the schema of the test's results does not have would make pScheduler refuse the result.
    let allowed = ["schema", "succeeded", "diags", "error", "time", "bytes-sent", "throughput"];
    assert!(merged.as_object().unwrap().keys().all(|key| allowed.contains(&key.as_str())), "{merged}");
}
