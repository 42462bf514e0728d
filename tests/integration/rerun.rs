//! Again, after an interruption, and over what is there already.

use crate::support::tree::{self, Compare, assert_same};
use crate::support::{Agent, Running, SOON, Sandbox, left_over, noise, wait_durable, wait_for};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::time::Duration;

fn source(sandbox: &Sandbox) -> Agent {
    let agent = sandbox.agent("far", &[]);
    tree::many(&sandbox.at("far/src/many"), 300, 3000);
    for n in 0..3 {
        sandbox.write(&format!("far/src/big{n}"), &noise(24 << 20, n));
    }
    agent
}

/// Bytes in part files below `dir`: how far a running transfer is.
fn in_parts(dir: &Path) -> u64 {
    left_over(dir).iter().filter_map(|path| fs::metadata(path).ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

/// Starts a slow copy and waits until part files are there.
fn half_way(sandbox: &Sandbox, args: &[&str], dst: &Path) -> Running {
    let running = sandbox.start_cp(args);
    // The journal has something, and a part file beside it more.
    wait_durable(dst, 2);
    wait_for("a part file", SOON, || in_parts(dst) > 0);
    running
}

#[test]
fn interrupted_and_repeated_it_is_one_tree() {
    let sandbox = Sandbox::new();
    let agent = source(&sandbox);
    let (token, url) = (agent.token_file(), agent.url("src"));
    let slow = ["-r", "--token-file", &token, "--rate", "12MiB", "--streams", "2", &url, "dst"];
    let fast = ["-r", "--token-file", &token, &url, "dst"];
    let outcome = half_way(&sandbox, &slow, &sandbox.at("dst")).interrupt().expect(130);
    assert!(outcome.err.contains("resume"), "{}", outcome.err);
    assert!(!left_over(&sandbox.at("dst")).is_empty(), "the journal stays");
    let second = sandbox.cp(&fast).expect(0);
    assert!(second.number("resumed_bytes") > 4 << 20, "{}", second.out);
    assert!(second.number("received_bytes") + (4 << 20) < 3 * (24 << 20), "{}", second.out);
    assert_same(&sandbox.at("far/src"), &sandbox.at("dst"), Compare::DEFAULT);
    assert_eq!(left_over(&sandbox.at("dst")), Vec::<std::path::PathBuf>::new());
    let third = sandbox.cp(&fast).expect(0);
    assert_eq!((third.number("received_bytes"), third.number("bytes")), (0, 0), "{}", third.out);
    assert_eq!(third.number("skipped_files"), 303);
    assert_same(&sandbox.at("far/src"), &sandbox.at("dst"), Compare::DEFAULT);
}

impl Running {
    fn interrupt(self) -> crate::support::Outcome {
        self.signal(Signal::SIGINT);
        self.wait(SOON)
    }
}

#[test]
fn a_killed_push_resumes() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    sandbox.write("src/file", &noise(40 << 20, 5));
    let (token, url) = (agent.token_file(), agent.url("dst"));
    let running =
        half_way(&sandbox, &["-r", "--token-file", &token, "--rate", "8MiB", "src", &url], &sandbox.at("far/dst"));
    drop(running);
    let outcome = sandbox.cp(&["-r", "--token-file", &token, "src", &url]).expect(0);
    assert!(outcome.number("resumed_bytes") > 0, "{}", outcome.out);
    assert_same(&sandbox.at("src"), &sandbox.at("far/dst"), Compare::DEFAULT);
    let again = sandbox.cp(&["-r", "--token-file", &token, "src", &url]).expect(0);
    assert_eq!(again.number("received_bytes"), 0);
}

#[test]
fn a_local_copy_that_was_killed_resumes() {
    let sandbox = Sandbox::new();
    sandbox.write("src/file", &noise(40 << 20, 5));
    drop(half_way(&sandbox, &["-r", "--rate", "8MiB", "src", "dst"], &sandbox.at("dst")));
    let outcome = sandbox.cp(&["-r", "src", "dst"]).expect(0);
    assert!(outcome.number("resumed_bytes") > 0, "{}", outcome.out);
    assert_same(&sandbox.at("src"), &sandbox.at("dst"), Compare::DEFAULT);
}

/// The journal knows chunks of a file that has changed since: they are not used, those of the other file are.
#[test]
fn a_journal_of_another_source_version() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    sandbox.write("far/src/a", &noise(6 << 20, 1));
    sandbox.write("far/src/b", &noise(40 << 20, 1));
    let (token, url) = (agent.token_file(), agent.url("src"));
    let args = ["-r", "--token-file", &token, "--rate", "10MiB", "--streams", "2", &url, "dst"];
    half_way(&sandbox, &args, &sandbox.at("dst")).interrupt().expect(130);
    sandbox.write("far/src/a", &noise(6 << 20, 2));
    let outcome = sandbox.cp(&["-r", "--token-file", &token, &url, "dst"]).expect(0);
    let kept = outcome.number("resumed_bytes");
    assert!(kept > 0 && kept <= 40 << 20, "{kept} of the file that did not change: {}", outcome.out);
    assert_same(&sandbox.at("far/src"), &sandbox.at("dst"), Compare::DEFAULT);
}

#[test]
fn what_is_there_decides_what_happens() {
    let sandbox = Sandbox::new();
    sandbox.write("src/same", b"the same");
    sandbox.write("src/other", b"from the source");
    sandbox.cp(&["-r", "src", "dst"]).expect(0);
    sandbox.write("dst/other", b"written here since");
    // Fails on what differs, loses nothing, and still brings what is new.
    sandbox.write("src/new", b"new");
    let outcome = sandbox.cp(&["-r", "src", "dst"]).says(3, &["other", "--if-exists replace"]);
    assert_eq!(outcome.number("failed_files"), 1, "{}", outcome.out);
    assert_eq!(fs::read(sandbox.at("dst/other")).unwrap(), b"written here since");
    assert_eq!(fs::read(sandbox.at("dst/new")).unwrap(), b"new");

    let outcome = sandbox.cp(&["-r", "--if-exists", "error", "src", "dst"]);
    assert_ne!(outcome.code, 0);
    // `new` is what the run that was not whole has brought itself: no conflict.
    assert_eq!(outcome.number("failed_files"), 2, "{}", outcome.out);
    assert_eq!(fs::read(sandbox.at("dst/other")).unwrap(), b"written here since");

    sandbox.cp(&["-r", "--if-exists", "skip", "src", "dst"]).expect(0);
    assert_eq!(fs::read(sandbox.at("dst/other")).unwrap(), b"written here since");

    let outcome = sandbox.cp(&["-r", "--if-exists", "replace", "src", "dst"]).expect(0);
    assert_eq!(outcome.number("files"), 1, "only what differs is moved: {}", outcome.out);
    assert_same(&sandbox.at("src"), &sandbox.at("dst"), Compare::DEFAULT);
    assert_eq!(left_over(&sandbox.at("dst")).len(), 0);
}

/// A final name is never truncated: who has the old file open goes on reading it, and so would a crash just before the rename.
#[test]
fn what_is_replaced_stays_whole_for_who_has_it_open() {
    let sandbox = Sandbox::new();
    // One that goes in a pack, and one that goes in chunks.
    for (name, size) in [("small", 1 << 10), ("big", 9 << 20)] {
        sandbox.write(&format!("src/{name}"), &noise(size, 5));
        sandbox.write(&format!("dst/{name}"), &noise(size, 6));
        let mut open = fs::File::open(sandbox.at(&format!("dst/{name}"))).unwrap();
        sandbox.cp(&["-r", "--if-exists", "replace", "src", "dst"]).expect(0);
        let mut old = Vec::new();
        std::io::Read::read_to_end(&mut open, &mut old).unwrap();
        assert!(old == noise(size, 6), "{name}: {} bytes are left of the old file", old.len());
        assert!(fs::read(sandbox.at(&format!("dst/{name}"))).unwrap() == noise(size, 5), "{name}");
    }
}

/// Size and time agree, nothing is recorded: only the digests can tell.
#[test]
fn equal_size_and_time_are_no_proof() {
    let sandbox = Sandbox::new();
    let when = std::time::UNIX_EPOCH + Duration::from_nanos(1_500_000_000_123_456_789);
    for (name, content) in
        [("src/a", noise(100_000, 1)), ("dst/a", noise(100_000, 2)), ("src/b", noise(9, 3)), ("dst/b", noise(9, 3))]
    {
        let path = sandbox.write(name, &content);
        fs::File::options().write(true).open(path).unwrap().set_modified(when).unwrap();
    }
    let outcome = sandbox.cp(&["-r", "src", "dst"]).says(3, &["other content"]);
    assert_eq!((outcome.number("failed_files"), outcome.number("skipped_files")), (1, 1), "{}", outcome.out);
    assert_eq!(fs::read(sandbox.at("dst/a")).unwrap(), noise(100_000, 2), "nothing is lost");
}

#[test]
fn directories_links_and_files_in_each_others_places() {
    let sandbox = Sandbox::new();
    sandbox.write("src/file", b"file");
    sandbox.write("src/dir/inner", b"inner");
    std::os::unix::fs::symlink("file", sandbox.at("src/link")).unwrap();
    sandbox.dir("dst/file/keep");
    sandbox.write("dst/dir", b"keep");
    sandbox.write("dst/link", b"keep");
    let outcome = sandbox.cp(&["-r", "src", "dst"]);
    assert!(outcome.code != 0 && outcome.number("failed_files") >= 3, "{}", outcome.out);
    assert!(sandbox.at("dst/file/keep").is_dir());
    for name in ["dst/dir", "dst/link"] {
        assert_eq!(fs::read(sandbox.at(name)).unwrap(), b"keep", "{name}");
    }
    // A symlink at the destination is never followed: what it leads to stays as it is.
    sandbox.write("outside/inner", b"outside");
    fs::remove_file(sandbox.at("dst/dir")).unwrap();
    std::os::unix::fs::symlink("../outside", sandbox.at("dst/dir")).unwrap();
    let outcome = sandbox.cp(&["-r", "--if-exists", "replace", "src", "dst"]);
    assert_ne!(outcome.code, 0);
    assert_eq!(fs::read(sandbox.at("outside/inner")).unwrap(), b"outside");
}

#[test]
fn only_one_transfer_a_tree() {
    let sandbox = Sandbox::new();
    let agent = source(&sandbox);
    let (token, url) = (agent.token_file(), agent.url("src"));
    let slow = ["-r", "--token-file", &token, "--rate", "8MiB", &url, "dst"];
    let first = half_way(&sandbox, &slow, &sandbox.at("dst"));
    for dst in ["dst", "dst/below"] {
        let second = sandbox.start_cp(&["-r", "--token-file", &token, &url, dst]).wait(SOON);
        second.says(5, &["is writing to", "wait for it to end"]);
    }
    let first = first.wait(SOON).expect(0);
    assert_eq!(first.number("reconnects"), 0);
    // Who was refused has left nothing in the other's tree.
    assert_same(&sandbox.at("far/src"), &sandbox.at("dst"), Compare::DEFAULT);
}
