//! The tuner on a long link of the lab: with it and without, taking turns, nothing set by hand.

use super::lab::{FAR, Lab};
use crate::support::{Agent, BINARY, data_file, long, scratch};
use serde_json::Value;
use std::process::Command;

struct Site {
    lab: Lab,
    agent: Agent,
    dir: tempfile::TempDir,
}

impl Site {
    /// A lab with cubic as its default, what data transfer nodes ship, and a source on side b with a file of so many bytes.
    fn up(letter: char, words: &[&str], bytes: u64) -> Option<Self> {
        let lab = Lab::up(letter, &[words, &["--cc", "cubic"]].concat())?;
        let dir = scratch(4 * bytes);
        let agent = Agent::start_in(&dir.path().join("source"), &lab.prefix('b'), FAR, &[]);
        data_file(&agent.root().join("file"), bytes, 7);
        Some(Self { lab, agent, dir })
    }

    /// Copies the file to side a. The report.
    fn pull(&self, words: &[&str]) -> Value {
        let to = self.dir.path().join("copy");
        let near = self.lab.prefix('a');
        let mut command = Command::new(near[0]);
        command.args(&near[1..]).arg(BINARY).args(["cp", "--json", &self.agent.url("file")]).arg(&to).args(words);
        command.args(["--peer-fingerprint", self.agent.ready["fingerprint"].as_str().unwrap()]);
        command.arg("--token-file").arg(self.agent.token_file()).env("HOME", self.dir.path());
        let output = command.env("XDG_STATE_HOME", self.dir.path().join("state")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let equal = Command::new("cmp").arg(self.agent.root().join("file")).arg(&to).status().unwrap();
        assert!(equal.success());
        std::fs::remove_file(&to).unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn rate(report: &Value) -> f64 {
    report["bits_per_second"].as_f64().unwrap() / 1e6
}

fn tuned(report: &Value) -> Vec<&str> {
    let notes = report["notes"].as_array().unwrap().iter().filter_map(Value::as_str);
    notes.filter(|note| note.starts_with("tuned: ")).collect()
}

/// Needs root: network namespaces; skipped without.
#[test]
fn losses_without_a_queue_are_noticed_and_borne() {
    let link = ["--rtt", "60ms", "--rate", "200mbit", "--loss", "0.05%", "--tcp-buf", "64m"];
    let Some(site) = Site::up('u', &link, 256 << 20) else { return };
    let (without, with) = (site.pull(&["--tuner", "off"]), site.pull(&[]));
    let (slow, fast) = (rate(&without), rate(&with));
    eprintln!("{slow:.0} Mbit/s without, {fast:.0} with the tuner: {:?}", tuned(&with));
    assert!(tuned(&without).is_empty(), "{without:#}");
    assert!(tuned(&with).iter().any(|note| note.starts_with("tuned: bbr") && note.ends_with("kept")), "{with:#}");
    assert!(fast > 1.3 * slow, "{slow} and {fast} Mbit/s: {:?}", tuned(&with));
}

/// Needs root: network namespaces; skipped without.
#[test]
fn streams_make_up_for_a_small_send_buffer_and_a_clean_path_is_left_alone() {
    let link = ["--rtt", "60ms", "--rate", "200mbit", "--tcp-buf", "128k"];
    let Some(site) = Site::up('v', &link, 192 << 20) else { return };
    let (without, with) = (site.pull(&["--tuner", "off"]), site.pull(&[]));
    let (slow, fast) = (rate(&without), rate(&with));
    eprintln!("{slow:.0} Mbit/s without, {fast:.0} with the tuner: {:?}", tuned(&with));
    assert!(with["streams"].as_u64().unwrap() > 8, "{with:#}");
    assert!(fast > 1.3 * slow, "{slow} and {fast} Mbit/s: {:?}", tuned(&with));
    drop(site);
    let link = ["--rtt", "60ms", "--rate", "200mbit", "--tcp-buf", "64m"];
    let Some(site) = Site::up('w', &link, 192 << 20) else { return };
    let clean = site.pull(&[]);
    assert!(tuned(&clean).iter().all(|note| !note.contains("bbr")), "{:?}", tuned(&clean));
    assert!(rate(&clean) > if long() { 150.0 } else { 120.0 }, "{clean:#}");
}
