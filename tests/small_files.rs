//! Many small files where few may be open at once. As processes: the limit of open files is one of the process.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// Copies `files` small files under `limit` (an argument of the shell's `ulimit`), and gives the report.
fn copy_under(limit: &str, files: usize) -> (serde_json::Value, Duration) {
    // In memory where that is to be had: a disk that others use may take its time, and this is about ours.
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    for number in 0..files {
        fs::write(from.join(format!("f{number}")), format!("content of {number}")).unwrap();
    }
    let began = Instant::now();
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_longhaul")])
        .args(["cp", "-r", "--json"])
        .args([&from, &dir.path().join("to")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let took = began.elapsed();
    assert_eq!(fs::read_dir(dir.path().join("to")).unwrap().count(), files);
    (serde_json::from_slice(&output.stdout).unwrap(), took)
}

/// Shells and systemd start programs with a soft limit of 1024 or less: it is ours to raise.
#[test]
fn a_soft_limit_of_open_files_is_no_obstacle() {
    let (report, _) = copy_under("-Sn 200", 3000);
    assert_eq!((report["files"].as_u64(), report["reconnects"].as_u64()), (Some(3000), Some(0)), "{report}");
}

/// Under a hard limit fewer are in flight, and each batch is committed when it is full: not a second later.
#[test]
fn a_hard_limit_of_open_files_neither_fails_nor_stalls() {
    // Once more where other work was in the way.
    let runs = || copy_under("-n 200", 3000);
    let (report, took) = Some(runs()).filter(|(_, took)| *took < Duration::from_secs(15)).unwrap_or_else(runs);
    assert_eq!((report["files"].as_u64(), report["reconnects"].as_u64()), (Some(3000), Some(0)), "{report}");
    // 47 batches of 64. Half a second or more for each was what it took when every batch waited for its time.
    assert!(took < Duration::from_secs(15), "{took:?}");
}
