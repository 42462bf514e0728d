//! Two directions on one socket with buffers of 4 KiB and very many small files: if anybody blocked on a send while
//! input waits, this would stand still.

use crate::support::Sandbox;
use crate::support::tree::{self, Compare};
use std::time::Duration;

/// 20,000 files; 200,000 with `LONGHAUL_LONG=1`.
fn count() -> usize {
    if std::env::var("LONGHAUL_LONG").as_deref() == Ok("1") { 200_000 } else { 20_000 }
}

#[test]
fn tiny_socket_buffers_and_many_files() {
    let sandbox = Sandbox::in_memory();
    let agent = sandbox.agent("far", &["--verify", "wire"]);
    let token = agent.token_file();
    let count = count();
    tree::many(&sandbox.at("far/src"), count, 300);
    // 1 ms a file, on a machine that does other things as well.
    let bound = Duration::from_secs(60) + Duration::from_millis(2) * count as u32;
    let window = ["-r", "--token-file", &token, "--window", "4KiB", "--streams", "4"];
    let (from, to) = (agent.url("src"), agent.url("up"));
    let pull = sandbox.start_cp(&[&window[..], &[&from, "dst"]].concat()).wait(bound).expect(0);
    assert_eq!(pull.number("files"), count as u64);
    tree::assert_same(&sandbox.at("far/src"), &sandbox.at("dst"), Compare::DEFAULT);
    std::fs::remove_dir_all(sandbox.at("far/src")).unwrap();
    let push = sandbox.start_cp(&[&window[..], &["dst", &to]].concat()).wait(bound).expect(0);
    assert_eq!(push.number("files"), count as u64);
    tree::assert_same(&sandbox.at("dst"), &sandbox.at("far/up"), Compare::DEFAULT);
    // The two ends set their buffers at different times; that must not show. It did, 15-fold, when segments did not fit the
    // window. Much room: the machine may do other things during one of them.
    assert!(push.took < pull.took * 6 + Duration::from_secs(10), "{:?} pushed, {:?} pulled", push.took, pull.took);
    eprintln!("{count} files: pulled in {:?}, pushed in {:?}", pull.took, push.took);
}
