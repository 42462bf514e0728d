//! A source that changed between two runs: what still matches by digest is kept, the rest is fetched.

use crate::support::{Agent, CHUNK, MIB, copy, data_file, difference, durable_chunks, leftovers, scratch};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

const BYTES: u64 = 64 * MIB;

/// Interrupts a copy half way, changes the source, and repeats the command: its report.
fn repeated(change: impl FnOnce(&std::fs::File)) -> (u64, serde_json::Value) {
    let dir = scratch(3 * BYTES);
    let agent = Agent::start(&dir.path().join("source"), &[]);
    let path = agent.root().join("file");
    data_file(&path, BYTES, 4);
    let to = dir.path().join("copy");
    let (from, target) = (agent.url("file"), to.to_str().unwrap().to_owned());
    let mut run = copy(dir.path(), &agent.token_file(), &["--rate", "12MiB", &from, &target]);
    while durable_chunks(dir.path()) < 8 {
        assert!(run.runs_for(Duration::from_millis(5)), "it ended before it could be interrupted");
    }
    assert!(Command::new("kill").args(["-s", "INT", &run.child.id().to_string()]).status().unwrap().success());
    let (code, first, errors) = run.ends(Duration::from_secs(60));
    assert_eq!(code, Some(130), "{errors}");
    let had = first["received_bytes"].as_u64().unwrap();
    assert!((8 * CHUNK..BYTES - 2 * CHUNK).contains(&had), "{had} bytes are no interrupted copy");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    change(&file);
    file.set_modified(std::time::SystemTime::now()).unwrap();
    let report = copy(dir.path(), &agent.token_file(), &[&from, &target]).succeeds(Duration::from_secs(60));
    assert_eq!(difference(&path, &to), None);
    assert_eq!(leftovers(dir.path()), Vec::<std::path::PathBuf>::new());
    (had, report)
}

#[test]
fn only_changed_and_missing_chunks_of_a_changed_file_are_sent() {
    let mut other = vec![0xa5; MIB as usize];
    other[77] = 1;
    let (had, report) = repeated(|file| file.write_all_at(&other, CHUNK + MIB).unwrap());
    let (sent, kept) = (report["sent_bytes"].as_u64().unwrap(), report["resumed_bytes"].as_u64().unwrap());
    eprintln!("{} MiB had arrived, {} MiB were kept, {} MiB sent", had / MIB, kept / MIB, sent / MIB);
    assert_eq!(sent + kept, BYTES, "{report:#}");
    // At most the partial chunks of two streams, and the one that changed, come again.
    assert!(kept + 4 * CHUNK >= had, "{had} bytes had arrived, {kept} were kept: {report:#}");
}

#[test]
fn a_file_that_grew_keeps_what_it_had() {
    let (had, report) = repeated(|file| file.write_all_at(&vec![7; 5 * MIB as usize], BYTES).unwrap());
    let (sent, kept) = (report["sent_bytes"].as_u64().unwrap(), report["resumed_bytes"].as_u64().unwrap());
    assert_eq!(sent + kept, BYTES + 5 * MIB, "{report:#}");
    assert!(kept + 4 * CHUNK >= had, "{had} bytes had arrived, {kept} were kept: {report:#}");
}
