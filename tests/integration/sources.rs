//! Sources that change, shrink, vanish or may not be read while they are read.

use crate::support::tree::{self, Compare};
use crate::support::{Agent, Outcome, SOON, Sandbox, left_over, noise, root_or_skip, wait_for};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

const SIZE: usize = 30 << 20;

/// Pulls a big file slowly, does `harm` to it in the middle, and gives what the client says.
fn harmed(harm: impl Fn(&Path)) -> (Sandbox, Agent, Outcome) {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    let victim = sandbox.write("far/src/victim", &noise(SIZE, 1));
    tree::many(&sandbox.at("far/src/others"), 20, 2000);
    let (token, url) = (agent.token_file(), agent.url("src"));
    let running = sandbox.start_cp(&["-r", "--token-file", &token, "--rate", "6MiB", "--streams", "2", &url, "dst"]);
    let part = || left_over(&sandbox.at("dst")).iter().any(|p| p.to_string_lossy().ends_with(".part"));
    wait_for("a part file", SOON, part);
    std::thread::sleep(Duration::from_millis(300));
    harm(&victim);
    let outcome = running.wait(SOON);
    assert!(!sandbox.at("dst/victim").exists(), "what is not whole has no final name: {}", outcome.out);
    assert_eq!(outcome.number("files"), 20, "the others arrived: {}", outcome.out);
    (sandbox, agent, outcome)
}

#[test]
fn changed_while_it_is_read() {
    let (sandbox, agent, outcome) = harmed(|victim| {
        let file = fs::File::options().write(true).open(victim).unwrap();
        file.write_all_at(&noise(4096, 99), 29 << 20).unwrap();
    });
    let outcome = outcome.says(3, &["changed at the source"]);
    assert_eq!(outcome.json["failures"][0]["class"], "retry");
    // Repeated when nobody writes it, it arrives as it is now.
    sandbox.cp(&["-r", "--token-file", &agent.token_file(), &agent.url("src"), "dst"]).expect(0);
    tree::assert_same(&sandbox.at("far/src"), &sandbox.at("dst"), Compare::DEFAULT);
    assert_eq!(left_over(&sandbox.at("dst")).len(), 0);
}

#[test]
fn truncated_while_it_is_read() {
    let (_sandbox, _agent, outcome) =
        harmed(|victim| fs::File::options().write(true).open(victim).unwrap().set_len(5 << 20).unwrap());
    outcome.says(3, &["victim", "at the source"]);
}

#[test]
fn deleted_while_it_is_read() {
    let (_sandbox, _agent, outcome) = harmed(|victim| fs::remove_file(victim).unwrap());
    outcome.says(3, &["deleted at the source"]);
}

#[test]
fn replaced_while_it_is_read() {
    let (_sandbox, _agent, outcome) = harmed(|victim| {
        let other = victim.with_file_name("new");
        fs::write(&other, noise(SIZE, 2)).unwrap();
        let time = fs::metadata(victim).unwrap().modified().unwrap();
        fs::File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
        fs::rename(other, victim).unwrap();
    });
    let code = outcome.code;
    assert_eq!(code, 3, "{}", outcome.out);
}

/// As a user who may not read everything; directories without write permission are copied as well.
#[test]
fn unreadable_files_and_closed_directories() {
    if !root_or_skip("to become another user") {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.write("src/good", b"good");
    sandbox.write("src/closed/in", &noise(100_000, 1));
    let secret = sandbox.write("src/secret", b"secret");
    sandbox.write("src/big secret", &noise(200_000, 1));
    sandbox.dir("src/no entry");
    fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o777)).unwrap();
    for (name, mode) in
        [("src/secret", 0o600), ("src/big secret", 0o600), ("src/no entry", 0o700), ("src/closed", 0o555)]
    {
        fs::set_permissions(sandbox.at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    chown(sandbox.at("home"), Some(65534), Some(65534)).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let copy = |args: &[&str]| sandbox.start(sandbox.command(&nobody, args)).wait(SOON);
    let outcome = copy(&["cp", "-r", "--json", "src", "dst"]).says(3, &["secret", "no entry"]);
    assert_eq!(outcome.number("failed_files"), 3, "{}", outcome.out);
    assert_eq!(fs::read(sandbox.at("dst/good")).unwrap(), b"good");
    assert_eq!(fs::metadata(sandbox.at("dst/closed")).unwrap().permissions().mode() & 0o777, 0o555);
    assert!(!sandbox.at("dst/secret").exists());
    fs::set_permissions(secret, fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(sandbox.at("src/big secret"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(sandbox.at("src/no entry"), fs::Permissions::from_mode(0o755)).unwrap();
    // Again: the directory without write permission is there already and has all it needs.
    copy(&["cp", "-r", "--json", "src", "dst"]).expect(0);
    tree::assert_same(&sandbox.at("src"), &sandbox.at("dst"), Compare::DEFAULT);
    // A file that is new in a directory that is closed at the destination: said, and the rest arrives.
    sandbox.write("src/closed/new", b"new");
    sandbox.write("src/more", b"more");
    copy(&["cp", "-r", "--json", "src", "dst"]).says(3, &["closed/new", "permission denied"]);
    assert_eq!(fs::read(sandbox.at("dst/more")).unwrap(), b"more");
}
