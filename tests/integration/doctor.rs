//! `longhaul doctor` on whatever host this is, and `scripts/host-tune.sh` in a namespace of its own.

use crate::support::{Sandbox, root_or_skip};
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn one_document_whose_exit_code_says_whether_something_is_wrong() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    let (peer, data) = (format!("127.0.0.1:{}", agent.http), agent.data.to_string());
    let args = ["doctor", "--json", "--root", ".", "--peer", &peer, "--data-port", &data];
    let seen = sandbox.run(&args);
    let wrong = seen.json["findings"].as_array().unwrap().iter().filter(|f| f["level"] == "wrong").count();
    assert_eq!(seen.code, i32::from(wrong > 0), "{}", seen.out);
    assert_eq!(seen.json["exit_code"], seen.code);
    let facts = &seen.json["facts"];
    assert_eq!((facts["peer"]["interface"].as_str(), facts["peer"]["data_error"].is_null()), (Some("lo"), true));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(facts["kernel"].as_str(), Some(kernel.trim()));
    // Loopback is near enough for any buffer; a link across the world is not reached by 4 KiB.
    let near = sandbox.run(&["doctor", "--json", "--rate", "1Mbit", "--rtt", "1ms"]);
    let wmem = |outcome: &crate::support::Outcome| {
        let all = outcome.json["findings"].as_array().unwrap().clone();
        all.into_iter().find(|f| f["topic"] == "net.ipv4.tcp_wmem").unwrap()
    };
    assert_eq!(wmem(&near)["level"], "fine");
    let far = wmem(&sandbox.run(&["doctor", "--json", "--rate", "400Gbit", "--rtt", "1s"]).expect(1));
    assert!(
        far["level"] == "wrong" && far["command"].as_str().unwrap().starts_with("sysctl -w net.ipv4.tcp_wmem="),
        "{far}"
    );
    // In words, and with nobody there.
    sandbox
        .run(&["doctor", "--peer", "127.0.0.1:1", "--data-port", "0"])
        .says(1, &["WRONG   peer 127.0.0.1", "refuses", "  do  "]);
    sandbox.run(&["doctor", "--peer", "lh://"]).expect(2);
}

#[test]
fn host_tune_sets_and_puts_back() {
    if !root_or_skip("to make a network namespace") {
        return;
    }
    let sandbox = Sandbox::new();
    let space = format!("lhtt{}", std::process::id());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/host-tune.sh");
    assert!(Command::new("ip").args(["netns", "add", &space]).status().unwrap().success());
    struct Gone<'a>(&'a str);
    impl Drop for Gone<'_> {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "del", self.0]).stderr(Stdio::null()).status();
        }
    }
    let _gone = Gone(&space);
    let inside = |words: &[&str]| {
        let output = Command::new("ip").args(["netns", "exec", &space]).args(words).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let state = sandbox.arg("tune.state");
    let tune = |verb: &str| inside(&[script.to_str().unwrap(), verb, "--only", "net", "--state", &state]);
    let names = ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem", "net.ipv4.tcp_no_metrics_save", "net.ipv4.tcp_mtu_probing"];
    let values =
        || names.map(|name| inside(&["sysctl", "-n", name]).1.split_whitespace().collect::<Vec<_>>().join(" "));
    // A value that is not the default has to come back as well.
    assert!(inside(&["sysctl", "-w", "net.ipv4.tcp_wmem=4096 16384 5000000"]).0);
    let before = values();
    let shown = tune("show").1;
    assert!(shown.contains("net.ipv4.tcp_wmem") && shown.contains("4096 16384 536870912"), "{shown}");
    assert_eq!(values(), before, "show changes nothing");
    assert!(tune("apply").0 && tune("apply").0);
    let applied = values();
    assert_eq!((applied[1].as_str(), applied[2].as_str()), ("4096 16384 536870912", "1"));
    assert!(inside(&["sysctl", "-w", "net.ipv4.tcp_mtu_probing=2"]).0);
    let (ended, said) = tune("revert");
    assert!(ended && said.contains("net.ipv4.tcp_mtu_probing: stays 2"), "{said}");
    let after = values();
    assert_eq!((&after[..3], after[3].as_str()), (&before[..3], "2"), "also after a second apply");
    assert!(!Path::new(&state).exists());
    assert!(tune("revert").1.contains("nothing was applied"));
    assert!(!tune("fly").0);
}
