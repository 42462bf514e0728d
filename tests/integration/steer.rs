//! Transfers that are changed while they run, over HTTP and by `longhaul transfer`.

use crate::support::{Agent, Running, Sandbox, noise, wait_for};
use serde_json::Value;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

/// The transfers that an agent says are running, each once it has an id and moves.
fn running(agent: &Agent) -> Vec<Value> {
    let (status, body) = agent.request("GET", "/v1/transfers", &agent.token(), "");
    assert_eq!(status, 200, "{body}");
    let all: Value = serde_json::from_str(&body).unwrap();
    let moving = |t: &&Value| t["report"].is_null() && t["id"].is_string() && t["snapshot"]["phase"] == "moving";
    all["transfers"].as_array().unwrap().iter().filter(moving).cloned().collect()
}

/// The id of the one transfer that moves, once there is one.
fn id_of(agent: &Agent) -> String {
    wait_for("a transfer moves", LONG, || running(agent).len() == 1);
    running(agent)[0]["id"].as_str().unwrap().to_owned()
}

fn snapshot(agent: &Agent, id: &str) -> Value {
    let (status, body) = agent.request("GET", &format!("/v1/transfers/{id}"), &agent.token(), "");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["snapshot"].clone()
}

fn set(agent: &Agent, id: &str, change: &str) -> u16 {
    agent.request("PATCH", &format!("/v1/transfers/{id}"), &agent.token(), change).0
}

/// Bytes a second as the agent sees them over `time`.
fn rate(agent: &Agent, id: &str, time: Duration) -> f64 {
    let bytes = || snapshot(agent, id)["bytes"].as_u64().unwrap() as f64;
    let (began, before) = (Instant::now(), bytes());
    std::thread::sleep(time);
    (bytes() - before) / began.elapsed().as_secs_f64()
}

fn pull(sandbox: &Sandbox, agent: &Agent, more: &[&str], to: &str) -> Running {
    let token = agent.token_file();
    sandbox.start_cp(&[&["--token-file", &token], more, &[&agent.url("src/big"), to]].concat())
}

fn push(sandbox: &Sandbox, agent: &Agent, more: &[&str], to: &str) -> Running {
    let token = agent.token_file();
    sandbox.start_cp(&[&["--token-file", &token], more, &["big", &agent.url(to)]].concat())
}

#[test]
fn a_rate_is_set_and_lifted_at_the_end_that_did_not_ask_for_it() {
    let sandbox = Sandbox::in_memory();
    let agent = sandbox.agent("far", &[]);
    sandbox.write("far/src/big", &noise(300 << 20, 1));
    // The pull's destination has no port: its source passes the wish on.
    let mut copy = pull(&sandbox, &agent, &["--rate", "400Mbit"], "out");
    let id = id_of(&agent);
    let peer = format!("127.0.0.1:{}", agent.http);
    let token = agent.token_file();
    let change = |more: &[&str]| {
        let args = [&["transfer", "set", &peer, &id, "--json", "--token-file", &token], more].concat();
        sandbox.run(&args).expect(0)
    };
    let slower = change(&["--rate", "80Mbit"]);
    assert_eq!(slower.json["snapshot"]["rate"], 80_000_000, "{}", slower.out);
    // What stood in buffers has gone by now.
    std::thread::sleep(Duration::from_secs(1));
    let seen = rate(&agent, &id, Duration::from_secs(3));
    assert!((7.0e6..12.0e6).contains(&seen), "{seen} bytes a second instead of 10 million");
    assert!(!copy.ended());
    // The last window's, as the destination, a `cp` without a port, has told its source.
    let now = snapshot(&agent, &id);
    assert_eq!(now["limiter"], "configured cap", "{now:#}");
    assert!(now["limiter_shares"]["configured cap"].as_f64() > Some(0.5), "{now:#}");
    for words in [&["list", &peer][..], &["show", &peer, &id]] {
        let words = [&["transfer"], words, &["--token-file", &token]].concat();
        sandbox.run(&words).says(0, &["configured cap "]);
    }
    let lifted = change(&["--rate", "none", "--priority", "high"]);
    assert_eq!(lifted.json["snapshot"]["rate"], Value::Null, "{}", lifted.out);
    // With the cap the rest would have taken 20 s.
    let report = copy.wait(Duration::from_secs(10)).expect(0);
    assert_eq!((report.text("verdict"), report.number("resent_bytes")), ("DURABLE", 0));
    assert!(std::fs::read(sandbox.at("out")).unwrap() == noise(300 << 20, 1));
    assert_eq!(set(&agent, &id, r#"{"rate":0}"#), 409, "it has ended");
    assert_eq!(set(&agent, &"0".repeat(32), r#"{"rate":0}"#), 404);
    for bad in ["{}", r#"{"rate":1}"#, r#"{"streams":0}"#, r#"{"speed":1}"#] {
        assert_eq!(set(&agent, &id, bad), 400, "{bad}");
    }
}

#[test]
fn streams_come_and_go_and_nothing_is_sent_twice() {
    let sandbox = Sandbox::in_memory();
    let agent = sandbox.agent("far", &[]);
    let bytes = noise(200 << 20, 2);
    sandbox.write("big", &bytes);
    sandbox.write("far/src/big", &bytes);
    std::fs::create_dir_all(sandbox.at("far/in")).unwrap();
    // Both who dials and who is dialled takes part.
    for name in ["pull", "push"] {
        let options = ["--rate", "160Mbit", "--streams", "2"];
        let copy = match name {
            "pull" => pull(&sandbox, &agent, &options, "out"),
            _ => push(&sandbox, &agent, &options, "in/out"),
        };
        let id = id_of(&agent);
        for count in [6u64, 1, 3] {
            assert_eq!(set(&agent, &id, &format!(r#"{{"streams":{count}}}"#)), 202);
            wait_for("the streams are as many as asked for", LONG, || {
                let there = snapshot(&agent, &id)["streams"].as_u64() == Some(count);
                assert!(!running(&agent).is_empty(), "{name}: it ended before there were {count} streams");
                there
            });
        }
        // At the destination itself too, and on a path on which nothing is tuned.
        wait_for("progress names the cap", LONG, || snapshot(&agent, &id)["limiter"] == "configured cap");
        assert_eq!(set(&agent, &id, r#"{"rate":0}"#), 202);
        let report = copy.wait(LONG).expect(0);
        let counts = ["resent_bytes", "reconnects", "failed_chunks", "streams"].map(|key| report.number(key));
        assert_eq!(counts, [0, 0, 0, 6], "{name}: {}", report.out);
        assert_eq!(report.number("sent_bytes"), 200 << 20, "{name}");
    }
    assert!(std::fs::read(sandbox.at("out")).unwrap() == bytes);
    assert!(std::fs::read(sandbox.at("far/in/out")).unwrap() == bytes);
}

#[test]
fn more_streams_than_a_source_has_buffers_for_are_asked_for_once() {
    let sandbox = Sandbox::in_memory();
    let (from, to) = (sandbox.agent("from", &["--memory", "8MiB"]), sandbox.agent("to", &[]));
    sandbox.write("from/big", &noise(100 << 20, 6));
    let (source, token) = (from.token_file(), to.token_file());
    let tokens = ["--source-token-file", &source, "--token-file", &token, "--rate", "80Mbit"];
    let _copy = sandbox.start_cp(&[&tokens[..], &[&from.url("big"), &to.url("out")]].concat());
    let id = id_of(&from);
    assert_eq!(set(&from, &id, r#"{"streams":64}"#), 202);
    std::thread::sleep(Duration::from_secs(3));
    let streams = snapshot(&from, &id)["streams"].as_u64().unwrap();
    assert!(streams < 64, "{streams} streams");
    let changes = to.running.stderr().matches("the transfer was changed while it runs").count();
    assert!((1..4).contains(&changes), "changed {changes} times");
}

#[test]
fn a_lower_priority_gives_way() {
    let sandbox = Sandbox::in_memory();
    let agent = sandbox.agent("far", &["--verify", "wire"]);
    let size = 500u64 << 20;
    sandbox.write("big", &noise(size as usize, 3));
    std::fs::create_dir_all(sandbox.at("far/in")).unwrap();
    let start = |name: &str| push(&sandbox, &agent, &["--rate", "40Mbit"], &format!("in/{name}"));
    let (low, high) = (start("low"), start("high"));
    wait_for("both move", LONG, || running(&agent).len() == 2);
    let id = |name: &str| {
        let of = |t: &Value| t["path"].as_str().unwrap().ends_with(name);
        running(&agent).into_iter().find(of).unwrap()["id"].as_str().unwrap().to_owned()
    };
    let (low_id, high_id) = (id("low"), id("high"));
    // While both are capped; then the cap is lifted of the one that is to go first, so that the other has no start.
    for (id, change) in [
        (&low_id, r#"{"priority":"low"}"#),
        (&high_id, r#"{"priority":"high"}"#),
        (&high_id, r#"{"rate":0}"#),
        (&low_id, r#"{"rate":0}"#),
    ] {
        assert_eq!(set(&agent, id, change), 202);
    }
    high.wait(LONG).expect(0);
    let left = snapshot(&agent, &low_id);
    assert_eq!(left["priority"], "low");
    let done = left["bytes"].as_u64().unwrap();
    assert!(done < size / 2, "the one of low priority has {done} of {size} bytes when the other ends");
    low.wait(LONG).expect(0);
}

#[test]
fn a_timetable_caps_the_rate_and_an_operators_word_is_not_set_aside() {
    let sandbox = Sandbox::in_memory();
    let dir = sandbox.dir("profiles").to_str().unwrap().to_owned();
    // 80 Mbit/s at every time of the day.
    let cap = "peers = [\"127.0.0.1\"]\n[path]\nrate = \"1Gbit\"\n[[timetable]]\nfrom = \"00:00\"\nto = \"24:00\"\nshare = 0.08\n";
    sandbox.write("profiles/cap.toml", cap.as_bytes());
    let agent = sandbox.agent("far", &["--profiles", &dir]);
    sandbox.write("big", &noise(100 << 20, 4));
    sandbox.write("far/src/big", &noise(100 << 20, 4));
    std::fs::create_dir_all(sandbox.at("far/in")).unwrap();
    // The agent's own profile holds where it sends, and where it receives.
    for push_it in [false, true] {
        let copy = if push_it {
            push(&sandbox, &agent, &["--profile", "none"], "in/out")
        } else {
            pull(&sandbox, &agent, &["--profile", "none"], "out")
        };
        let id = id_of(&agent);
        assert_eq!(set(&agent, &id, r#"{"rate":10000000000}"#), 202);
        std::thread::sleep(Duration::from_secs(1));
        let seen = rate(&agent, &id, Duration::from_secs(3));
        assert!((7.0e6..12.0e6).contains(&seen), "push {push_it}: {seen} bytes a second instead of 10 million");
        drop(copy);
    }
}

#[test]
fn few_chunks_have_all_of_a_rate() {
    let sandbox = Sandbox::in_memory();
    let agent = sandbox.agent("far", &[]);
    let size = 32 << 20;
    let bytes = noise(size, 3);
    sandbox.write("big", &bytes);
    sandbox.write("far/src/big", &bytes);
    std::fs::create_dir_all(sandbox.at("far/in")).unwrap();
    let least = size as f64 * 8.0 / 60e6;
    // The kernel paces no connection's first ten segments (`tcp_update_skb_after_send`). On loopback they are 64 KiB each, which over
    // all streams is a good part of the file; here they are an Ethernet's.
    let profile = sandbox.write("small.toml", b"[sockets]\nmss = 1448\n");
    for name in ["pull", "push"] {
        let options = ["--rate", "60Mbit", "--streams", "16", "--profile", profile.to_str().unwrap()];
        let began = Instant::now();
        let copy = match name {
            "pull" => pull(&sandbox, &agent, &options, "out"),
            _ => push(&sandbox, &agent, &options, "in/out"),
        };
        let report = copy.wait(LONG).expect(0);
        let took = began.elapsed().as_secs_f64();
        assert_eq!((report.json["verified"].as_bool(), report.number("resent_bytes")), (Some(true), 0));
        // Eight chunks on sixteen streams: with equal shares it would be twice the time.
        assert!((0.85 * least..1.5 * least).contains(&took), "{name}: {took} s where the rate allows {least}");
    }
}
