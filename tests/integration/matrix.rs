//! One tree with everything that a copy can get wrong, over a covering set of directions, streams, encryption, queues
//! and address families.

use crate::support::tree::{self, Compare, assert_same};
use crate::support::{Agent, Outcome, Sandbox};

const V4: &str = "127.0.0.1";
const V6: &str = "[::1]";

struct Case {
    streams: &'static str,
    encrypt: &'static str,
    engine: &'static str,
    host: &'static str,
}

const fn case(streams: &'static str, encrypt: &'static str, engine: &'static str, host: &'static str) -> Case {
    Case { streams, encrypt, engine, host }
}

/// Both ends' root are named alike, so that the longest path fits both.
fn agent(sandbox: &Sandbox, engine: &str) -> Agent {
    // Policy off: a client may choose; both address families on one socket.
    sandbox.agent("away", &["--http", "[::]:0", "--data", "[::]:0", "--encrypt", "off", "--engine", engine])
}

fn check(outcome: &Outcome, case: &Case, files: u64) {
    assert_eq!(outcome.number("files"), files, "{}", outcome.out);
    assert_eq!(outcome.number("special_files"), 1);
    assert!(outcome.notes().contains("fifo"), "{}", outcome.notes());
    assert_eq!(outcome.number("streams").to_string(), case.streams);
    assert_eq!(outcome.json["encrypted"], case.encrypt == "on");
    let queue = if case.engine == "uring" { "io_uring" } else { "epoll" };
    assert_eq!(outcome.json["engine"]["source"], queue);
    assert_eq!(outcome.json["engine"]["destination"], queue);
    assert_eq!(outcome.text("verdict"), "DURABLE");
    assert_eq!(outcome.number("failed_chunks") + outcome.number("resent_bytes"), 0, "{}", outcome.out);
    // The big hole is not sent: 41 MB of one file and 6 MB of another are nearly all hole.
    let holes = outcome.number("hole_bytes");
    assert!(holes > 30_000_000, "{holes} bytes of holes");
    assert!(case.encrypt == "on" || outcome.notes().contains("not encrypted"), "{}", outcome.notes());
}

fn pull(case: &Case) {
    let sandbox = Sandbox::new();
    let agent = agent(&sandbox, case.engine);
    let from = sandbox.at("away/src");
    let files = tree::nasty(&from);
    let to = sandbox.dir("here").join("dst");
    let url = agent.url_at(case.host, "src");
    let mut args = options(case, &agent.token_file());
    args.extend([url, to.to_str().unwrap().to_owned()]);
    let outcome = sandbox.cp(&args).expect(3);
    assert_same(&from, &to, Compare::DEFAULT);
    check(&outcome, case, files);
    tree::open_up(&from);
    tree::open_up(&to);
}

fn push(case: &Case) {
    let sandbox = Sandbox::new();
    let agent = agent(&sandbox, case.engine);
    let from = sandbox.dir("here").join("src");
    let files = tree::nasty(&from);
    let to = sandbox.at("away/dst");
    let mut args = options(case, &agent.token_file());
    args.extend(["--verify".to_owned(), "wire".to_owned()]);
    args.extend([from.to_str().unwrap().to_owned(), agent.url_at(case.host, "dst")]);
    let outcome = sandbox.cp(&args).expect(3);
    assert_same(&from, &to, Compare::DEFAULT);
    check(&outcome, case, files);
    tree::open_up(&from);
    tree::open_up(&to);
}

fn options(case: &Case, token: &str) -> Vec<String> {
    let words =
        ["-r", "--streams", case.streams, "--encrypt", case.encrypt, "--engine", case.engine, "--token-file", token];
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn pulled_whole() {
    for case in [
        case("1", "on", "uring", V4),
        case("4", "off", "epoll", V6),
        case("16", "on", "epoll", V4),
        case("16", "off", "uring", V6),
    ] {
        pull(&case);
    }
}

#[test]
fn pushed_whole() {
    for case in [
        case("1", "off", "epoll", V4),
        case("4", "on", "uring", V6),
        case("16", "off", "uring", V4),
        case("16", "on", "epoll", V6),
    ] {
        push(&case);
    }
}

#[test]
fn copied_here_whole() {
    for (streams, encrypt, engine) in [("1", "on", "uring"), ("4", "off", "epoll"), ("16", "off", "uring")] {
        let sandbox = Sandbox::new();
        let (from, to) = (sandbox.at("src"), sandbox.at("dst"));
        let files = tree::nasty(&from);
        let args = ["-r", "--streams", streams, "--encrypt", encrypt, "--engine", engine, "src", "dst"];
        let outcome = sandbox.cp(&args).expect(3);
        assert_same(&from, &to, Compare::DEFAULT);
        check(&outcome, &case(streams, encrypt, engine, V4), files);
        tree::open_up(&from);
        tree::open_up(&to);
    }
}

#[test]
fn special_bits_and_nothing_at_all() {
    let sandbox = Sandbox::new();
    let from = sandbox.at("src");
    tree::nasty(&from);
    sandbox.cp(&["-r", "--preserve", "times,special", "src", "all"]).expect(3);
    assert_same(&from, &sandbox.at("all"), Compare::SPECIAL);
    sandbox.cp(&["-r", "--preserve", "none", "src", "dst"]).expect(3);
    assert_same(&from, &sandbox.at("dst"), Compare::CONTENT);
    let (old, new) = (tree::list(&from), tree::list(&sandbox.at("dst")));
    let name = &b"sizes/0"[..];
    assert_ne!(old[name].mtime, new[name].mtime, "times were not asked for");
    assert_eq!(new[&b"modes/4755"[..]].mode & 0o7000, 0, "nobody asked for setuid");
    for dir in ["src", "all", "dst"] {
        tree::open_up(&sandbox.at(dir));
    }
}

#[test]
fn holes_stay_holes() {
    let sandbox = Sandbox::new();
    tree::nasty(&sandbox.at("src"));
    sandbox.cp(&["-r", "src", "dst"]).expect(3);
    let (old, new) = (tree::list(&sandbox.at("src")), tree::list(&sandbox.at("dst")));
    for name in [&b"sizes/sparse"[..], b"sizes/only a hole"] {
        let (old, new) = (old[name].blocks, new[name].blocks);
        assert!(new <= old + 64, "{}: {old} blocks became {new}", String::from_utf8_lossy(name));
    }
    for dir in ["src", "dst"] {
        tree::open_up(&sandbox.at(dir));
    }
}
