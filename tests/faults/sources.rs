//! Several sources for one file: both serve, and one that lies changes nothing but the time it takes.

use crate::support::{Agent, CHUNK, MIB, copy, data_file, difference, scratch, tokens_shared};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const BYTES: u64 = 384 * MIB;
const PATIENCE: Duration = Duration::from_secs(120);

fn equal_times(a: &Path, b: &Path) {
    let time = a.metadata().unwrap().modified().unwrap();
    std::fs::OpenOptions::new().write(true).open(b).unwrap().set_modified(time).unwrap();
}

/// Two agents with a file of one size and time each.
fn pair(dir: &Path) -> (Agent, Agent) {
    let (one, two) = (dir.join("one"), dir.join("two"));
    data_file(&one.join("root/file"), BYTES, 11);
    data_file(&two.join("root/file"), BYTES, 11);
    equal_times(&one.join("root/file"), &two.join("root/file"));
    let first = Agent::start(&one, &[]);
    tokens_shared(&first, &two);
    (first, Agent::start(&two, &[]))
}

/// The file's digest, as a copy from the first agent reports it.
fn digest(dir: &Path, agent: &Agent) -> String {
    let to = dir.join("known");
    let report = copy(dir, &agent.token_file(), &[&agent.url("file"), to.to_str().unwrap()]).succeeds(PATIENCE);
    std::fs::remove_file(to).unwrap();
    report["digest"].as_str().unwrap().to_owned()
}

/// What an agent has sent once `sessions` of its sessions have ended.
fn sent(agent: &Agent, sessions: usize) -> u64 {
    for _ in 0..600 {
        if agent.transfers().len() >= sessions {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    agent.sent()
}

#[test]
fn two_equal_sources_serve_a_quarter_each_at_least() {
    let dir = scratch(4 * BYTES);
    let (one, two) = pair(dir.path());
    let expect = format!("xxh3:{}", digest(dir.path(), &one));
    let before = sent(&one, 1);
    let to = dir.path().join("copy");
    let (from, also) = (one.url("file"), two.url("file"));
    let args = ["--also", &also, "--expect", &expect, "--rate", "200MiB", &from, to.to_str().unwrap()];
    let report = copy(dir.path(), &one.token_file(), &args).succeeds(PATIENCE);
    assert_eq!(report["verdict"], "DURABLE");
    assert_eq!(difference(&one.root().join("file"), &to), None);
    let (first, second) = (sent(&one, 2) - before, sent(&two, 1));
    eprintln!("the first source sent {} MiB, the second {} MiB", first / MIB, second / MIB);
    assert!(first >= BYTES / 4 && second >= BYTES / 4, "{first} and {second} of {BYTES}: {report:#}");
    assert!(first + second <= BYTES + BYTES / 100 + CHUNK, "sent twice: {first} and {second}");
}

#[test]
fn two_sources_share_a_rate() {
    let dir = scratch(4 * BYTES);
    let (one, two) = pair(dir.path());
    let expect = format!("xxh3:{}", digest(dir.path(), &one));
    let to = dir.path().join("copy");
    let (from, also) = (one.url("file"), two.url("file"));
    let args = ["--also", &also, "--expect", &expect, "--rate", "64MiB", &from, to.to_str().unwrap()];
    let report = copy(dir.path(), &one.token_file(), &args).succeeds(PATIENCE);
    // 6 s; half of that if each had the whole rate.
    let took = report["duration_ns"].as_u64().unwrap();
    assert!(took > 4_500_000_000, "{took} ns for {BYTES} bytes: {report:#}");
}

#[test]
fn a_second_source_with_other_bytes_never_gets_them_in() {
    let dir = scratch(4 * BYTES);
    let (one, two) = pair(dir.path());
    let expect = format!("xxh3:{}", digest(dir.path(), &one));
    let liar = two.root().join("file");
    // One byte in every chunk, so that whatever it serves is wrong.
    let file = std::fs::OpenOptions::new().write(true).open(&liar).unwrap();
    (0..BYTES / CHUNK).for_each(|n| file.write_all_at(b"lie", n * CHUNK + 17).unwrap());
    drop(file);
    equal_times(&one.root().join("file"), &liar);
    let to = dir.path().join("copy");
    let (from, also) = (one.url("file"), two.url("file"));
    let args = ["--also", &also, "--expect", &expect, "--rate", "200MiB", &from, to.to_str().unwrap()];
    let (code, report, errors) = copy(dir.path(), &one.token_file(), &args).ends(PATIENCE);
    assert!(sent(&two, 1) > 0, "the liar was asked for nothing, so nothing was tested: {report:#}");
    assert_eq!(code, Some(0), "the first source alone has the right bytes: {report:#} {errors}");
    assert_eq!(difference(&one.root().join("file"), &to), None);

    // And the other way round: a first source that lies fails the file, whoever else is there.
    let to = dir.path().join("wrong");
    let args = ["--also", &from, "--expect", &expect, "--rate", "200MiB", &also, to.to_str().unwrap()];
    let (code, report, errors) = copy(dir.path(), &one.token_file(), &args).ends(PATIENCE);
    assert_eq!(code, Some(6), "{report:#} {errors}");
    assert!(!to.exists() && report["verdict"] == "FAILED", "{report:#}");
}
