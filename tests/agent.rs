//! The agent as a process: ready line, signals, exit codes, and what its logs may not hold.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[path = "support/agent.rs"]
mod support;

/// Ends the process when a test fails half way.
struct Agent {
    child: Child,
    ready: serde_json::Value,
}

impl Agent {
    fn start(dir: &Path) -> Self {
        let mut command = agent(dir);
        command.env("LONGHAUL_LOG", "trace");
        let (child, ready) = support::spawn(command, dir);
        Self { child, ready }
    }

    fn signal(&self, name: &str) {
        support::signal(self.child.id(), name);
    }

    /// The status code of a GET.
    fn get(&self, path: &str, token: &str) -> u16 {
        support::get(std::net::TcpStream::connect(self.ready["http"].as_str().unwrap()).unwrap(), path, token)[9..12]
            .parse()
            .unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent(dir: &Path) -> Command {
    support::command(&[], dir, "127.0.0.1:0", "127.0.0.1:0")
}

fn token(dir: &Path, args: &[&str]) -> i32 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longhaul"));
    command.arg("token").args(args).arg("--state").arg(dir.join("state"));
    command.stdout(Stdio::null()).status().unwrap().code().unwrap()
}

#[test]
fn from_ready_line_to_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("root")).unwrap();
    let mut agent = Agent::start(dir.path());
    for key in ["http", "data", "fingerprint", "agent", "token_file"] {
        assert!(agent.ready[key].is_string(), "{key}");
    }
    let admin = std::fs::read_to_string(agent.ready["token_file"].as_str().unwrap()).unwrap();
    assert_eq!(agent.get("/v1/status", &admin), 200);

    // Tokens come and go without a restart, and without a signal.
    let out = dir.path().join("bob");
    let out_text = out.to_str().unwrap();
    assert_eq!(
        token(dir.path(), &["add", "bob", "--prefix", "/in", "--read", "--expires", "1d", "--out", out_text]),
        0
    );
    let bob = std::fs::read_to_string(&out).unwrap();
    assert_eq!(agent.get("/v1/stat?path=/in", &bob), 404);
    assert_eq!(agent.get("/v1/stat?path=/inside", &bob), 403);
    assert_eq!(token(dir.path(), &["revoke", "bob"]), 0);
    assert_eq!(agent.get("/v1/stat?path=/in", &bob), 401);

    agent.signal("HUP");
    assert_eq!(agent.get("/v1/status", &admin), 200, "a reload disturbs nobody");
    let begin = Instant::now();
    agent.signal("TERM");
    let status = agent.child.wait().unwrap();
    assert!(status.code() == Some(0) && begin.elapsed() < Duration::from_secs(10), "{status}");

    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(log.contains("tokens are read again"), "{log}");
    for secret in [&admin, &bob] {
        assert!(!log.contains(secret.trim().strip_prefix("lht_").unwrap()), "a token is in the log");
    }
}

#[test]
fn a_killed_agent_starts_again_at_once() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("root")).unwrap();
    let first = Agent::start(dir.path());
    let id = first.ready["agent"].clone();
    drop(first);
    assert_eq!(Agent::start(dir.path()).ready["agent"], id);
}

#[test]
fn what_cannot_start_says_why_with_its_code() {
    let dir = tempfile::tempdir().unwrap();
    let output = agent(dir.path()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("root") && output.stdout.is_empty(), "{text}");
    let output = agent(dir.path()).arg("--show-config").arg("--json").output().unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["settings"]["http"]["origin"], "flag");
    assert_eq!(shown["settings"]["verify"]["value"], "disk");
}
