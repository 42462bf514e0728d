//! Kernels that refuse something, by a seccomp filter of the test's own: it works all the same, and the report says how.

use crate::support::tree::{self, Compare};
use crate::support::{Agent, Outcome, SOON, Sandbox};

const SANDBOX: &str = env!("CARGO_BIN_EXE_lh-sandbox");

fn wrap(deny: &'static str) -> [&'static str; 4] {
    [SANDBOX, "--deny", deny, "--"]
}

/// Client and agent both under the filter, one pull and one push of the nasty tree. Gives the agent and the reports.
fn both(deny: &'static str) -> (Sandbox, Agent, [Outcome; 2]) {
    let sandbox = Sandbox::new();
    let wrap = wrap(deny);
    let agent = sandbox.agent_in("away", &wrap, &[]);
    let from = sandbox.at("away/src");
    tree::nasty(&from);
    sandbox.dir("here");
    let token = agent.token_file();
    let cp = |from: &str, to: &str, how: &[&str]| {
        let args = [&["cp", "--json", "-r", "--token-file", &token][..], how, &[from, to]].concat();
        sandbox.start(sandbox.command(&wrap, &args)).wait(SOON).expect(3)
    };
    let pull = cp(&agent.url("src"), "here/dst", &["--verify", "disk"]);
    assert_eq!(pull.text("verdict"), "VERIFIED");
    tree::assert_same(&from, &sandbox.at("here/dst"), Compare::DEFAULT);
    let push = cp("here/dst", &agent.url("dst"), &[]);
    let same = tree::differences(&from, &sandbox.at("away/dst"), Compare::DEFAULT);
    assert!(same.is_empty(), "{same:?}");
    for dir in ["away/src", "away/dst", "here/dst"] {
        tree::open_up(&sandbox.at(dir));
    }
    (sandbox, agent, [pull, push])
}

fn shown(sandbox: &Sandbox, deny: &'static str, more: &[&str]) -> serde_json::Value {
    let args = [&["agent", "--show-config", "--json", "--root", ".", "--state", "s"], more].concat();
    sandbox.start(sandbox.command(&wrap(deny), &args)).wait(SOON).expect(0).json
}

#[test]
fn without_io_uring() {
    let (sandbox, _agent, reports) = both("io-uring");
    for report in &reports {
        assert_eq!(report.json["engine"]["source"], "epoll", "{}", report.out);
        assert_eq!(report.json["engine"]["destination"], "epoll");
    }
    let shown = shown(&sandbox, "io-uring", &[]);
    assert_eq!(shown["engine"]["engine"], "epoll");
    let why = shown["engine"]["engine.refused"].to_string();
    assert!(why.contains("io_uring") || why.contains("not permitted"), "{shown}");
    assert!(!shown["engine"]["coordinator"].as_str().unwrap().starts_with("tokio-uring"), "{shown}");
    // Asked for by name, it is an error with a sentence, not a fallback.
    let args = ["cp", "--json", "--engine", "uring", "here/dst/sizes/1", "x"];
    let outcome = sandbox.start(sandbox.command(&wrap("io-uring"), &args)).wait(SOON);
    outcome.says(7, &["--engine epoll"]);
}

#[test]
fn without_newer_ring_flags() {
    let (sandbox, _agent, reports) = both("ring-flags");
    for report in &reports {
        assert_eq!(report.json["engine"]["destination"], "io_uring", "{}", report.out);
    }
    let denied = shown(&sandbox, "ring-flags", &[]);
    let refused = denied["engine"]["engine.refused"].as_str().unwrap_or_default();
    assert!(!refused.is_empty(), "{denied}");
}

#[test]
fn without_openat2() {
    let (_sandbox, _agent, reports) = both("openat2");
    let said = format!("{}{}", reports[0].out, reports[1].out);
    assert!(said.contains("openat2"), "the fallback is in the report: {said}");
}

#[test]
fn without_dontcache() {
    let (sandbox, _agent, reports) = both("dontcache");
    for report in &reports {
        let io = report.json["io"].to_string();
        assert!(!io.contains("RWF_DONTCACHE ("), "{io}");
    }
    let args = ["cp", "--json", "--io", "dontcache", "here/dst/sizes/9437185", "x"];
    let outcome = sandbox.start(sandbox.command(&wrap("dontcache"), &args)).wait(SOON).expect(0);
    let said = format!("{}{}", outcome.notes(), outcome.json["io"]);
    assert!(said.contains("DONTCACHE"), "asked for and not had, so it is said: {}", outcome.out);
}

#[test]
fn without_flock() {
    let (sandbox, _agent, reports) = both("flock");
    for report in &reports {
        assert!(report.notes().contains("flock"), "{}", report.notes());
    }
    assert!(crate::support::left_over(&sandbox.at("here")).is_empty());
}

#[test]
fn without_fallocate_or_renameat2() {
    for deny in ["fallocate", "renameat2"] {
        both(deny);
    }
}
