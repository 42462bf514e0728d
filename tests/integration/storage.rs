//! Destinations that are full, read-only or gone.

use crate::support::tree::{self, Compare};
use crate::support::{SOON, Sandbox, noise, root_or_skip};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// A mount that goes with its value.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(sandbox: &Sandbox, name: &str, options: &str) -> Self {
        let dir = sandbox.dir(name);
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "lht1"]).arg(&dir).status().unwrap();
        assert!(done.success());
        Self(dir)
    }

    fn remount(&self, options: &str) {
        let done = Command::new("mount").args(["-o", options]).arg(&self.0).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Within seconds, not after a minute of tries; what is durable stays, and room made, the same command goes on.
#[test]
fn a_full_destination_says_so_and_goes_on_later() {
    if !root_or_skip("to mount a small file system") {
        return;
    }
    for (push, small) in [(false, false), (true, false), (false, true)] {
        let sandbox = Sandbox::new();
        let agent = sandbox.agent("far", &[]);
        let token = agent.token_file();
        let (src, dst) = if push { ("src", "far/dst") } else { ("far/src", "dst") };
        let mount = Mount::tmpfs(&sandbox, dst, "size=24m,mode=755");
        match small {
            true => tree::many(&sandbox.at(src), 1500, 30_000),
            false => {
                for n in 0..4 {
                    sandbox.write(&format!("{src}/{n}"), &noise(9 << 20, n));
                }
            }
        }
        let (from, to) = if push { ("src".to_owned(), agent.url("dst")) } else { (agent.url("src"), "dst".to_owned()) };
        let args = ["-r", "--token-file", &token, &from, &to];
        let full = sandbox.start_cp(&args).wait(SOON).says(5, &["full"]);
        assert!(full.took < Duration::from_secs(45), "{:?}", full.took);
        for name in fs::read_dir(sandbox.at(dst)).unwrap().map(|e| e.unwrap().file_name()) {
            if let Ok(number) = name.to_string_lossy().parse::<u64>()
                && !small
            {
                assert_eq!(
                    fs::read(sandbox.at(dst).join(&name)).unwrap(),
                    noise(9 << 20, number),
                    "what is there is whole"
                );
            }
        }
        mount.remount("remount,size=100m");
        let outcome = sandbox.cp(&args).expect(0);
        assert_eq!(outcome.json["durable"], false);
        let moved = outcome.number("received_bytes");
        let all = if small { 1500 * 30_000 } else { 36 << 20 };
        assert!(moved < all, "what was durable was kept: {moved} of {all}");
        tree::assert_same(&sandbox.at(src), &sandbox.at(dst), Compare::DEFAULT);
        drop(agent);
        drop(mount);
    }
}

#[test]
fn a_read_only_destination() {
    if !root_or_skip("to mount a read-only file system") {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.write("src/a", b"a");
    let mount = Mount::tmpfs(&sandbox, "far", "size=4m");
    fs::create_dir(sandbox.at("far/there")).unwrap();
    let agent = sandbox.agent("far", &[]);
    mount.remount("remount,ro");
    for dst in ["dst", "there", "there/x"] {
        let outcome = sandbox.cp(&["-r", "--token-file", &agent.token_file(), "src", &agent.url(dst)]);
        let outcome = outcome.says(7, &["read-only"]);
        assert!(outcome.took < Duration::from_secs(45), "{:?}", outcome.took);
    }
    drop(agent);
    // A root that is read-only serves as a source all the same.
    mount.remount("remount,rw");
    fs::write(sandbox.at("far/there/a"), b"a").unwrap();
    mount.remount("remount,ro");
    let agent = sandbox.agent("far", &["--roles", "source"]);
    let token = agent.token_file();
    sandbox.cp(&["-r", "--token-file", &token, &agent.url("there"), "got"]).expect(0);
    assert_eq!(fs::read(sandbox.at("got/a")).unwrap(), b"a");
    sandbox.cp(&["-r", "--token-file", &token, "src", &agent.url("x")]).says(7, &["role"]);
}

#[test]
fn a_root_that_is_missing_or_goes_away() {
    let sandbox = Sandbox::new();
    let state = sandbox.arg("s");
    let root = sandbox.arg("nothing");
    let args = ["agent", "--http", "127.0.0.1:0", "--data", "127.0.0.1:0", "--state", &state, "--root", &root];
    sandbox.run(&args).says(4, &["nothing"]);
    let agent = sandbox.agent("far", &[]);
    sandbox.write("src/a", b"a");
    fs::rename(sandbox.at("far"), sandbox.at("moved")).unwrap();
    let token = agent.token_file();
    for (from, to) in [("src".to_owned(), agent.url("x")), (agent.url("x"), "x".to_owned())] {
        let outcome = sandbox.cp(&["-r", "--token-file", &token, &from, &to]);
        assert!([4, 5, 7].contains(&outcome.code) && outcome.err.len() + outcome.out.len() > 20, "{outcome:?}");
        assert!(outcome.took < Duration::from_secs(45), "{:?}", outcome.took);
    }
    assert_eq!(fs::read_dir(sandbox.at("moved")).unwrap().count(), 0);
    assert!(!sandbox.at("x").exists());
}
