//! Expected values, checksums, manifests, verdicts, and the commands that look at what a transfer left.

use crate::support::{Outcome, SOON, Sandbox, left_over, noise};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Bit by bit, from the definition (Castagnoli, reflected).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut table = [0u32; 256];
    for (n, entry) in table.iter_mut().enumerate() {
        *entry = (0..8).fold(n as u32, |c, _| if c & 1 == 1 { (c >> 1) ^ 0x82f6_3b78 } else { c >> 1 });
    }
    !bytes.iter().fold(!0, |c, b| (c >> 8) ^ table[((c ^ u32::from(*b)) & 0xff) as usize])
}

fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), x| {
        let a = (a + u32::from(*x)) % 65_521;
        (a, (b + a) % 65_521)
    });
    b << 16 | a
}

fn tool(name: &str, path: &Path) -> String {
    let out = Command::new(name).arg(path).output().unwrap();
    String::from_utf8(out.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

fn sums(outcome: &Outcome) -> Vec<(String, String)> {
    let pair = |v: &serde_json::Value| {
        let text = v.as_str().map(str::to_owned).unwrap_or_else(|| {
            format!("{}:{}", v["kind"].as_str().unwrap_or_default(), v["hex"].as_str().unwrap_or_default())
        });
        let (kind, hex) = text.split_once(':').unwrap();
        (kind.to_owned(), hex.to_owned())
    };
    outcome.json["checksums"].as_array().unwrap().iter().map(pair).collect()
}

#[test]
fn checksums_are_those_of_other_programs() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    let token = agent.token_file();
    for (n, size) in [(0, 0usize), (1, 1), (2, 4096), (3, 9_437_185)] {
        let content = noise(size, 77);
        let path = sandbox.write(&format!("far/f{n}"), &content);
        let kinds = "crc32c,adler32,sha256,md5";
        let url = agent.url(&format!("f{n}"));
        let dst = format!("to{n}");
        let outcome = sandbox.cp(&["--token-file", &token, "--checksum", kinds, &url, &dst]).expect(0);
        let got = sums(&outcome);
        for (kind, want) in [
            ("crc32c", format!("{:08x}", crc32c(&content))),
            ("adler32", format!("{:08x}", adler32(&content))),
            ("sha256", tool("sha256sum", &path)),
            ("md5", tool("md5sum", &path)),
        ] {
            let found = got.iter().find(|(k, _)| k == kind).map(|(_, hex)| hex.clone());
            assert_eq!(found.as_ref(), Some(&want), "{kind} of {size} bytes: {got:?}");
            // Right, it arrives; wrong by one digit, nothing stands under the final name.
            let right = format!("{kind}:{want}");
            let good = format!("good-{kind}-{n}");
            sandbox.cp(&["--token-file", &token, "--expect", &right, &url, &good]).expect(0);
            assert_eq!(fs::read(sandbox.at(&good)).unwrap(), content);
            let last = if want.ends_with('0') { "1" } else { "0" };
            let wrong = format!("{kind}:{}{last}", &want[..want.len() - 1]);
            let bad = format!("bad-{kind}-{n}");
            let outcome = sandbox.cp(&["--token-file", &token, "--expect", &wrong, &url, &bad]);
            outcome.says(6, &["not the file that was expected"]);
            assert!(!sandbox.at(&bad).exists());
        }
        let xxh3 = format!("xxh3:{}", outcome.text("digest"));
        sandbox.cp(&["--token-file", &token, "--expect", &xxh3, &url, &format!("x{n}")]).expect(0);
        let wrong = format!("xxh3:{}", "0".repeat(32));
        sandbox.cp(&["--token-file", &token, "--expect", &wrong, &url, &format!("y{n}")]).expect(6);
        assert!(!sandbox.at(&format!("y{n}")).exists());
    }
}

#[test]
fn expect_is_for_one_file() {
    let sandbox = Sandbox::new();
    sandbox.write("src/a", b"a");
    sandbox.cp(&["-r", "--expect", "md5:0cc175b9c0f1b6a831c399e269772661", "src", "dst"]).says(2, &["--expect"]);
    sandbox.cp(&["--expect", "md5:0cc175b9c0f1b6a831c399e269772661", "src/a", "dst"]).expect(0);
    sandbox.cp(&["--expect", "md5:zz", "src/a", "dst2"]).expect(2);
}

#[test]
fn the_two_verdicts() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    let token = agent.token_file();
    sandbox.write("src/a", &noise(5 << 20, 1));
    sandbox.write("src/b", b"small");
    let verdict = |args: &[&str], want: &str| {
        let outcome = sandbox.cp(args).expect(0);
        assert_eq!((outcome.text("verdict"), outcome.json["verified"].as_bool()), (want, Some(true)));
    };
    verdict(&["-r", "src", "a"], "DURABLE");
    verdict(&["-r", "--verify", "disk", "src", "b"], "VERIFIED");
    // An agent's own default is to read back.
    verdict(&["-r", "--token-file", &token, "src", &agent.url("a")], "VERIFIED");
    verdict(&["-r", "--token-file", &token, "--verify", "wire", "src", &agent.url("b")], "DURABLE");
    let outcome = sandbox.run(&["cp", "-r", "--verify", "disk", "src", "c"]).expect(0);
    assert!(outcome.out.contains("VERIFIED") && !outcome.out.contains("DURABLE"), "{}", outcome.out);
}

#[test]
fn memory_is_not_durable() {
    let sandbox = Sandbox::in_memory();
    sandbox.write("src/a", b"a");
    let outcome = sandbox.cp(&["-r", "src", "dst"]).expect(0);
    if sandbox.path().starts_with("/dev/shm") {
        assert_eq!(outcome.json["durable"], false);
        assert!(outcome.notes().contains("in memory"), "{}", outcome.notes());
    }
}

#[test]
fn manifests_are_written_and_checked() {
    let sandbox = Sandbox::new();
    sandbox.write("src/a", &noise(5 << 20, 1));
    sandbox.write("src/sub/b", b"small");
    sandbox.write("src/new\nline", b"x");
    std::os::unix::fs::symlink("a", sandbox.at("src/l")).unwrap();
    let outcome = sandbox.cp(&["-r", "--write-manifest", "m", "--sha256", "src", "dst"]).expect(0);
    assert_eq!(outcome.json["manifest"]["files"], 3, "{}", outcome.out);
    assert!(outcome.notes().contains("second read"), "{}", outcome.notes());
    let mut check = Command::new("sha256sum");
    check.args(["-c", "--strict", "--quiet"]).arg(sandbox.at("m.sha256"));
    let check = check.current_dir(sandbox.at("dst")).output().unwrap();
    assert!(check.status.success(), "{check:?}");
    sandbox.run(&["verify", "--strict", "--metadata", "--manifest", "m", "dst"]).expect(0);
    // One byte, in the middle, with the old time.
    let file = fs::File::options().write(true).open(sandbox.at("dst/a")).unwrap();
    let when = file.metadata().unwrap().modified().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"!", 3_000_000).unwrap();
    file.set_modified(when).unwrap();
    sandbox.run(&["verify", "--manifest", "m", "dst"]).says(6, &["a"]);
    fs::remove_file(sandbox.at("dst/sub/b")).unwrap();
    sandbox.run(&["verify", "--manifest", "m", "dst"]).says(6, &["sub/b"]);
}

#[test]
fn clean_and_journal_after_an_interruption() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    let token = agent.token_file();
    sandbox.write("far/src/a", &noise(48 << 20, 1));
    let url = agent.url("src");
    let running = sandbox.start_cp(&["-r", "--token-file", &token, "--rate", "8MiB", &url, "dst"]);
    let part = || left_over(&sandbox.at("dst")).into_iter().find(|p| p.to_string_lossy().ends_with(".part"));
    crate::support::wait_for("a part file", Duration::from_secs(30), || part().is_some());
    crate::support::wait_durable(&sandbox.at("dst"), 1);
    // A live transfer's files are left alone.
    sandbox.run(&["clean", "--older-than", "0", "dst"]).expect(0);
    assert!(part().is_some());
    running.signal(Signal::SIGKILL);
    assert_ne!(running.wait(SOON).code, 0);
    let journal = journal_of(&sandbox.at("dst"));
    let shown = sandbox.run(&["journal", journal.to_str().unwrap()]).expect(0);
    assert!(shown.out.contains("chunks") || shown.out.contains("durable"), "{}", shown.out);
    let json = sandbox.run(&["journal", "--json", journal.to_str().unwrap()]).expect(0);
    assert!(json.json.is_object(), "{}", json.out);
    // Young left-overs stay unless told otherwise; a dry run removes nothing.
    sandbox.run(&["clean", "dst"]).expect(0);
    assert!(part().is_some());
    sandbox.run(&["clean", "--older-than", "0", "--dry-run", "dst"]).expect(0);
    assert!(part().is_some());
    let cleaned = sandbox.run(&["clean", "--older-than", "0", "--json", "dst"]).expect(0);
    let left = left_over(&sandbox.at("dst"));
    assert!(left.is_empty(), "{left:?} {}", cleaned.out);
    sandbox.cp(&["-r", "--token-file", &token, &url, "dst"]).expect(0);
    crate::support::tree::assert_same(
        &sandbox.at("far/src"),
        &sandbox.at("dst"),
        crate::support::tree::Compare::DEFAULT,
    );
}

/// The journal of the one transfer that has left its state in `tree`.
fn journal_of(tree: &Path) -> std::path::PathBuf {
    fs::read_dir(tree.join(".longhaul")).unwrap().next().unwrap().unwrap().path().join("journal")
}

/// A journal cut in the middle of a record is the state after a power cut, not damage; one that is overwritten is.
#[test]
fn torn_and_damaged_journals() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    let token = agent.token_file();
    sandbox.write("far/src/a", &noise(40 << 20, 1));
    let url = agent.url("src");
    let running = sandbox.start_cp(&["-r", "--token-file", &token, "--rate", "10MiB", &url, "dst"]);
    crate::support::wait_durable(&sandbox.at("dst"), 1);
    drop(running);
    let journal = journal_of(&sandbox.at("dst"));
    let whole = fs::read(&journal).unwrap();
    fs::write(&journal, &whole[..whole.len() - 3]).unwrap();
    let outcome = sandbox.cp(&["-r", "--token-file", &token, &url, "dst"]).expect(0);
    assert!(outcome.notes().contains("torn"), "{}", outcome.notes());
    crate::support::tree::assert_same(
        &sandbox.at("far/src"),
        &sandbox.at("dst"),
        crate::support::tree::Compare::DEFAULT,
    );
}

/// Changes a byte and leaves size and time as they were.
fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let when = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.set_modified(when).unwrap();
}

/// A byte that changed in a record with whole ones behind it: no crash does that.
#[test]
fn a_journal_damaged_in_the_middle() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &[]);
    let token = agent.token_file();
    sandbox.write("far/src/a", &noise(48 << 20, 1));
    let url = agent.url("src");
    let running = sandbox.start_cp(&["-r", "--token-file", &token, "--rate", "8MiB", &url, "dst"]);
    crate::support::wait_durable(&sandbox.at("dst"), 3);
    running.signal(Signal::SIGKILL);
    assert_ne!(running.wait(SOON).code, 0);
    let journal = journal_of(&sandbox.at("dst"));
    let mut bytes = fs::read(&journal).unwrap();
    let mut offsets = Vec::new();
    let scanned = longhaul::journal::scan(&bytes, |found| {
        offsets.push(found.offset);
        Ok(())
    });
    scanned.unwrap();
    assert!(offsets.len() > 3, "{offsets:?}");
    // In the body of the second record.
    let damaged = offsets[1];
    bytes[damaged as usize + 18] ^= 1;
    fs::write(&journal, &bytes).unwrap();

    let args = ["-r", "--token-file", &token, &url, "dst"];
    let words = ["the journal is damaged", "`longhaul journal` shows it", "`longhaul clean` removes it"];
    sandbox.cp(&args).says(7, &words);
    assert_eq!(fs::read(&journal).unwrap(), bytes, "evidence is left as it is");
    let shown = sandbox.run(&["journal", "--json", journal.to_str().unwrap()]).expect(7);
    assert_eq!(shown.number("offset"), damaged, "{}", shown.out);
    assert_eq!(shown.json["records"].as_array().unwrap().len(), 1, "the whole ones before it are listed");
    sandbox.run(&["journal", journal.to_str().unwrap()]).says(7, &[&format!("offset {damaged}")]);
    sandbox.run(&["clean", "--older-than", "0", "dst"]).says(0, &["removed"]);
    assert_eq!(left_over(&sandbox.at("dst")), Vec::<std::path::PathBuf>::new());
    sandbox.cp(&args).expect(0);
    let compare = crate::support::tree::Compare::DEFAULT;
    crate::support::tree::assert_same(&sandbox.at("far/src"), &sandbox.at("dst"), compare);
}

#[test]
fn clean_takes_only_what_is_older() {
    let sandbox = Sandbox::new();
    let (old, young) = (".old.lh-0123456789abcdef.part", ".young.lh-0123456789abcdef.part");
    sandbox.write(&format!("dst/{old}"), b"half");
    sandbox.write("dst/whole", b"whole");
    std::thread::sleep(Duration::from_millis(13_200));
    sandbox.write(&format!("dst/{young}"), b"half");
    let there = |name: &str| sandbox.at("dst").join(name).exists();
    sandbox.run(&["clean", "--older-than", "1h", "dst"]).expect(0);
    assert!(there(old) && there(young));
    let cleaned = sandbox.run(&["clean", "--older-than", "12s", "--json", "dst"]).expect(0);
    assert_eq!((cleaned.number("removed"), cleaned.number("kept")), (1, 1), "{}", cleaned.out);
    assert!(!there(old) && there(young) && there("whole"));
    sandbox.run(&["clean", "--older-than", "yesterday", "dst"]).says(2, &["is not an age"]);
    sandbox.run(&["clean", "--older-than", "0", "dst"]).says(0, &["removed"]);
    assert!(!there(young) && there("whole"));
}

/// Paths of this host are shown as its users write them.
#[test]
fn local_paths_begin_with_one_slash() {
    let sandbox = Sandbox::new();
    sandbox.write("src/a", b"from the source");
    sandbox.write("src/b", &noise(40 << 20, 3));
    sandbox.write("dst/a", b"other");
    let place = fs::canonicalize(sandbox.at("dst/a")).unwrap();
    let outcome = sandbox.cp(&["-r", "src", "dst"]).expect(3);
    assert_eq!(outcome.json["failures"][0]["path"], place.to_str().unwrap(), "{}", outcome.out);
    assert!(outcome.text("error").starts_with(&format!("{}: exists", place.display())), "{}", outcome.out);
    // What is kept for a later run names its source in the same way.
    let journal = journal_of(&sandbox.at("dst"));
    let shown = sandbox.run(&["journal", "--json", journal.to_str().unwrap()]).expect(0);
    let source = fs::canonicalize(sandbox.at("src")).unwrap();
    assert_eq!(shown.json["records"][0]["body"]["source"], source.to_str().unwrap(), "{}", shown.out);
    sandbox.write("file", b"no directory");
    sandbox.dir("to");
    let file = fs::canonicalize(sandbox.at("file")).unwrap();
    sandbox.cp(&["-r", "src", "file"]).says(7, &[&format!("\"{}: exists and is not a directory", file.display())]);
}

#[test]
fn a_manifest_says_what_was_sent_whatever_became_of_it() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &["--verify", "wire"]);
    let token = agent.token_file();
    sandbox.write("src/a", &noise(5 << 20, 1));
    sandbox.write("src/sub/b", b"small");
    std::os::unix::fs::symlink("a", sandbox.at("src/l")).unwrap();
    let no_read = |outcome: &Outcome| {
        assert_eq!(outcome.json["manifest"]["second_read"], false, "{}", outcome.out);
        assert_eq!(outcome.json["manifest"]["files"], 2, "{}", outcome.out);
    };

    // Pushed: the destination tells the digests of what it has received.
    let up = agent.url("up");
    let args = ["-r", "--token-file", &token, "--write-manifest", "pushed", "src", &up];
    no_read(&sandbox.cp(&args).expect(0));
    sandbox.run(&["verify", "--strict", "--metadata", "--manifest", "pushed", "far/up"]).expect(0);
    // Again, when nothing is sent: the destination's own records.
    no_read(&sandbox.cp(&args).expect(0));
    sandbox.run(&["verify", "--strict", "--metadata", "--manifest", "pushed", "far/up"]).expect(0);
    flip(&sandbox.at("far/up/sub/b"), 2);
    sandbox.run(&["verify", "--manifest", "pushed", "far/up"]).says(6, &["sub/b"]);

    // Pulled, in two runs: between them a bit of a finished file flips. The second run knows what was sent.
    sandbox.write("dst/sub/b", b"in the way");
    let pull = ["-r", "--token-file", &token, &agent.url("up"), "dst"];
    flip(&sandbox.at("far/up/sub/b"), 2);
    sandbox.cp(&pull).expect(3);
    flip(&sandbox.at("dst/a"), 3_000_000);
    fs::remove_file(sandbox.at("dst/sub/b")).unwrap();
    let outcome = sandbox.cp(&[&["--write-manifest", "pulled"], &pull[..]].concat()).expect(0);
    no_read(&outcome);
    let found = sandbox.run(&["verify", "--json", "--manifest", "pulled", "dst"]).expect(6);
    assert_eq!(found.json["differences"].as_array().unwrap().len(), 1, "{}", found.out);
    assert_eq!(found.json["differences"][0]["path"], "a", "{}", found.out);
    // The checksum file is a second read, and what it would read is not what was sent.
    let args = [&["--write-manifest", "summed", "--sha256"], &pull[..]].concat();
    sandbox.cp(&args).says(6, &["dst/a is not what was moved any more"]);
    assert!(!sandbox.at("summed").exists());

    // Between two agents nobody here knows the digests.
    let other = sandbox.agent("other", &[]);
    let (from, to) = (agent.url("up"), other.url("x"));
    let between = ["-r", "--token-file", &token, "--write-manifest", "m", &from, &to];
    sandbox.cp(&between).says(2, &["--write-manifest needs one end here", "destination's host instead"]);
}
