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
    let running = sandbox.start_cp(&["-r", "--token-file", &token, "--rate", "10MiB", &url, "dst"]);
    let part = || left_over(&sandbox.at("dst")).into_iter().find(|p| p.to_string_lossy().ends_with(".part"));
    crate::support::wait_for("a part file", Duration::from_secs(30), || part().is_some());
    std::thread::sleep(Duration::from_millis(1600));
    // A live transfer's files are left alone.
    sandbox.run(&["clean", "--older-than", "0", "dst"]).expect(0);
    assert!(part().is_some());
    running.signal(Signal::SIGKILL);
    assert_ne!(running.wait(SOON).code, 0);
    let state = fs::read_dir(sandbox.at("dst/.longhaul")).unwrap().next().unwrap().unwrap().path();
    let journal = fs::read_dir(&state).unwrap().map(|e| e.unwrap().path()).find(|p| p.ends_with("journal"));
    let journal = journal.unwrap_or_else(|| panic!("no journal in {state:?}"));
    let shown = sandbox.run(&["journal", journal.to_str().unwrap()]).expect(0);
    assert!(shown.out.contains("chunks") || shown.out.contains("durable"), "{}", shown.out);
    let json = sandbox.run(&["journal", "--json", journal.to_str().unwrap()]).expect(0);
    assert!(json.json.is_object(), "{}", json.out);
    // Young left-overs stay unless told otherwise; a dry run removes nothing.
    sandbox.run(&["clean", "dst"]).expect(0);
    assert!(part().is_some());
    sandbox.run(&["clean", "--older-than", "0", "--dry-run", "dst"]).expect(0);
    assert!(part().is_some());
    sandbox.run(&["clean", "--older-than", "0", "dst"]).expect(0);
    assert_eq!(left_over(&sandbox.at("dst")).len(), 0);
    sandbox.cp(&["-r", "--token-file", &token, &url, "dst"]).expect(0);
    crate::support::tree::assert_same(
        &sandbox.at("far/src"),
        &sandbox.at("dst"),
        crate::support::tree::Compare::DEFAULT,
    );
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
    std::thread::sleep(Duration::from_millis(2500));
    drop(running);
    let state = fs::read_dir(sandbox.at("dst/.longhaul")).unwrap().next().unwrap().unwrap().path();
    let journal = state.join("journal");
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
