//! What somebody sees who reads along: both ports captured between two network namespaces, off loopback.

use crate::support::tree::{Compare, assert_same};
use crate::support::{Agent, Outcome, SOON, Sandbox, root_or_skip, wait_for};
use nix::sys::signal::Signal;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// In every 4 KiB of the payload, so that no packet border can hide all of them.
const CANARY: &[u8] = b"the canary that sings only in plain text";
const SERVER: &str = "10.117.61.1";

/// Two namespaces and a cable between them, which go with the value.
struct Cable {
    near: String,
    far: String,
}

impl Cable {
    fn new() -> Self {
        let id = std::process::id();
        let cable = Self { near: format!("lht1n{id}"), far: format!("lht1f{id}") };
        let (near, far) = (cable.near.as_str(), cable.far.as_str());
        ip(&["netns", "add", near]);
        ip(&["netns", "add", far]);
        ip(&["-n", near, "link", "add", "lht1c", "type", "veth", "peer", "name", "lht1s", "netns", far]);
        for (space, device, address) in [(near, "lht1c", "10.117.61.2/24"), (far, "lht1s", "10.117.61.1/24")] {
            ip(&["-n", space, "addr", "add", address, "dev", device]);
            ip(&["-n", space, "link", "set", device, "up"]);
            ip(&["-n", space, "link", "set", "lo", "up"]);
        }
        cable
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for space in [&self.near, &self.far] {
            let _ = Command::new("ip").args(["netns", "del", space]).stderr(Stdio::null()).status();
        }
    }
}

fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().unwrap();
    assert!(done.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn tcpdump_or_skip() -> bool {
    let there = Command::new("tcpdump").arg("--version").output().is_ok_and(|o| o.status.success());
    if !there {
        crate::support::skip("needs tcpdump to read along");
    }
    there
}

/// Captures everything on the cable's far end while `run` goes on.
fn captured(sandbox: &Sandbox, cable: &Cable, name: &str, run: impl FnOnce() -> Outcome) -> (Outcome, Vec<u8>) {
    let file: PathBuf = sandbox.at(name);
    let mut command = Command::new("ip");
    command.args([
        "netns", "exec", &cable.far, "tcpdump", "-i", "lht1s", "-U", "-s", "0", "-B", "65536", "-Z", "root", "-w",
    ]);
    command.arg(&file).stdin(Stdio::null());
    let dump = sandbox.start(command);
    wait_for("tcpdump", SOON, || dump.stderr().contains("listening on"));
    let outcome = run();
    std::thread::sleep(Duration::from_millis(500));
    dump.signal(Signal::SIGINT);
    let ended = dump.wait(SOON);
    assert!(ended.err.contains("0 packets dropped by kernel"), "{}", ended.err);
    (outcome, fs::read(file).unwrap())
}

fn has(hay: &[u8], needle: &[u8]) -> bool {
    let first = needle[0];
    let mut at = 0;
    while let Some(next) = hay[at..].iter().position(|b| *b == first) {
        at += next;
        if hay[at..].starts_with(needle) {
            return true;
        }
        at += 1;
    }
    false
}

fn agent(sandbox: &Sandbox, cable: &Cable, flags: &[&str]) -> Agent {
    let (http, data) = (format!("{SERVER}:0"), format!("{SERVER}:0"));
    let flags = [&["--http", &http, "--data", &data][..], flags].concat();
    sandbox.agent_in("far", &["ip", "netns", "exec", &cable.far], &flags)
}

#[test]
fn a_capture_of_both_ports_shows_nothing() {
    if !root_or_skip("to make network namespaces and to capture") || !tcpdump_or_skip() {
        return;
    }
    let sandbox = Sandbox::new();
    let cable = Cable::new();
    let mut page = CANARY.to_vec();
    page.resize(4096, b'.');
    sandbox.write("far/src/big", &page.repeat(2048));
    sandbox.write("far/src/canary-in-a-name", CANARY);
    let near = ["ip", "netns", "exec", &cable.near];
    let cp = |agent: &Agent, more: &[&str], dst: &str| {
        let (token, url) = (agent.token_file(), agent.url_at(SERVER, "src"));
        let args = [&["cp", "--json", "-r", "--token-file", &token][..], more, &[&url, dst]].concat();
        sandbox.start(sandbox.command(&near, &args)).wait(SOON)
    };

    let tls = agent(&sandbox, &cable, &[]);
    let token = tls.token();
    let secret = token.strip_prefix("lht_").unwrap_or(&token).as_bytes().to_vec();
    let pin = tls.ready["fingerprint"].as_str().unwrap().to_owned();
    // Nobody is trusted unseen, and the sentence says what to compare.
    let unknown = cp(&tls, &[], "no").says(10, &["not known yet", "--peer-fingerprint"]);
    assert!(unknown.out.contains(pin.trim_start_matches("sha256:")), "{} {pin}", unknown.out);
    let wrong = "0".repeat(64);
    cp(&tls, &["--peer-fingerprint", &wrong], "no").expect(10);
    assert!(!sandbox.at("no").exists());

    let pinned = ["--peer-fingerprint", pin.as_str()];
    let (outcome, capture) = captured(&sandbox, &cable, "tls.pcap", || cp(&tls, &pinned, "one"));
    let outcome = outcome.expect(0);
    assert_eq!(outcome.json["encrypted"], true);
    assert_same(&sandbox.at("far/src"), &sandbox.at("one"), Compare::DEFAULT);
    if outcome.json["engine"]["source"] == "io_uring" {
        // What ends in this host is copied, whatever was asked for: it is said, and the rest went plainly.
        assert!(outcome.notes().contains("zero-copy send copies on this path: plain sends"), "{}", outcome.notes());
    }
    assert!(capture.len() > 4 << 20, "the payload went over this cable: {}", capture.len());
    assert!(!has(&capture, CANARY) && !has(&capture, b"canary-in-a-name"), "payload or names are readable");
    assert!(!has(&capture, &secret) && !has(&capture, b"Bearer"), "the token is readable");
    assert!(!has(&capture, b"\"key\""), "the ticket is readable");

    // A push over the same door.
    let push = || {
        let (file, url) = (tls.token_file(), tls.url_at(SERVER, "pushed"));
        let args = ["cp", "--json", "-r", "--token-file", &file, "--peer-fingerprint", &pin, "one", &url];
        sandbox.start(sandbox.command(&near, &args)).wait(SOON)
    };
    let (outcome, capture) = captured(&sandbox, &cable, "push.pcap", push);
    outcome.expect(0);
    assert!(!has(&capture, CANARY) && !has(&capture, &secret) && !has(&capture, b"\"key\""));
    // Plain HTTP off loopback: neither end has it.
    let hello = "printf 'GET /healthz HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n' >&3; cat <&3";
    let script = format!("exec 3<>/dev/tcp/{SERVER}/{}; {hello}", tls.http);
    let said = Command::new("ip")
        .args(["netns", "exec", &cable.near, "timeout", "10", "bash", "-c", &script])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(!said.starts_with("HTTP/1.1 200") && said.contains("loopback"), "{said}");
    let refused = cp(&tls, &["--insecure-http"], "no");
    assert!(refused.code != 0 && !sandbox.at("no").exists(), "{refused:?}");
    drop(tls);

    // The same with everything turned off at both ends, to show that the capture would have found it.
    let open = agent(&sandbox, &cable, &["--insecure-http", "--encrypt", "off"]);
    cp(&open, &[], "no").says(10, &[]);
    let plain = ["--insecure-http", "--encrypt", "off"];
    let (outcome, capture) = captured(&sandbox, &cable, "plain.pcap", || cp(&open, &plain, "two"));
    let outcome = outcome.expect(0);
    assert_eq!(outcome.json["encrypted"], false);
    assert!(outcome.notes().contains("plain HTTP") && outcome.notes().contains("not encrypted"), "{}", outcome.notes());
    assert!(has(&capture, CANARY), "the canary of an unencrypted transfer is found");
    assert!(has(&capture, &secret) && has(&capture, b"\"key\""), "and so are token and ticket");
    assert!(has(&capture, b"canary-in-a-name"));
    // One end alone cannot turn it off.
    let (outcome, capture) = captured(&sandbox, &cable, "half.pcap", || cp(&open, &["--insecure-http"], "three"));
    assert_eq!(outcome.expect(0).json["encrypted"], true);
    assert!(!has(&capture, CANARY));
}
