//! Ends that touch no storage: what is made up arrives whole and verified, takes no room anywhere, and only where an operator
//! has said so.

use crate::support::{Outcome, SOON, Sandbox};
use serde_json::Value;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a process may take at most (DESIGN), bytes.
const RESIDENT_MAX: u64 = 256 << 20;
/// What names and journals may take in memory beside it, bytes.
const FILES_MAX: u64 = 16 << 20;

const BOTH: [&str; 8] =
    ["bench", "--json", "--end-to-end", "--source", "synthetic", "--destination", "synthetic", "--encrypt"];

/// Most that a process and its children were resident, bytes, each by itself.
fn resident(pid: u32) -> u64 {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return 0 };
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let own = line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).unwrap_or(0) << 10;
    children(pid).into_iter().map(resident).fold(own, u64::max)
}

fn children(pid: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = |child: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    numbers.filter(|child| parent(child) == Some(pid)).collect()
}

/// Bytes of the blocks of all files below, and how many files there are.
fn taken(dir: &Path) -> (u64, u64) {
    let Ok(entries) = std::fs::read_dir(dir) else { return (0, 0) };
    entries.flatten().fold((0, 0), |(bytes, files), entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            let (more, count) = taken(&entry.path());
            (bytes + more, files + count)
        }
        Ok(metadata) => (bytes + 512 * metadata.blocks(), files + 1),
        Err(_) => (bytes, files),
    })
}

/// Runs a bench; its outcome, and the most that it had resident and in files in memory meanwhile.
fn watched(sandbox: &Sandbox, words: &[&str]) -> (Outcome, u64, u64) {
    let mut running = sandbox.start(sandbox.command(&[], words));
    let (pid, began) = (running.pid(), Instant::now());
    let dir = format!("/dev/shm/longhaul-bench-{pid}");
    let (mut most, mut files) = (0, (0, 0));
    while !running.ended() {
        assert!(began.elapsed() < 4 * SOON, "{words:?}");
        most = most.max(resident(pid));
        let now = taken(Path::new(&dir));
        files = (files.0.max(now.0), files.1.max(now.1));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(files.1 >= 2, "the made-up file and the one that is dropped were never seen");
    (running.wait(SOON), most, files.0)
}

fn whole(document: &Value) -> &Value {
    document["longhaul"]["parts"].as_array().unwrap().iter().find(|part| part["part"] == "end_to_end").unwrap()
}

#[test]
fn gigabytes_move_and_take_no_room() {
    const SIZE: u64 = 2 << 30;
    let sandbox = Sandbox::new();
    let (found, resident, files) =
        watched(&sandbox, &[&BOTH[..], &["off", "--size", "2GiB", "--seconds", "10"]].concat());
    let document = found.expect(0).json;
    let report = &document["longhaul"]["report"];
    assert_eq!((&report["verdict"], &report["durable"]), (&"DURABLE".into(), &false.into()), "{report:#}");
    assert_eq!((whole(&document)["bytes"].as_u64(), report["failed_chunks"].as_u64()), (Some(SIZE), Some(0)));
    assert_eq!(report["hole_bytes"], 0, "no hole is sent as one: {report:#}");
    let digest = longhaul::engine::bench::synthetic_digest(SIZE);
    assert_eq!(report["digest"], serde_json::to_value(digest).unwrap());
    assert!(report["io"]["source"].as_str().unwrap().starts_with("synthetic"), "{report:#}");
    assert!(report["io"]["destination"].as_str().unwrap().starts_with("synthetic"), "{report:#}");
    let notes = report["notes"].to_string();
    assert!(notes.contains("made the bytes up") && notes.contains("thrown away"), "{notes}");
    assert!(resident > 0 && resident < RESIDENT_MAX, "{resident} bytes resident");
    assert!(files < FILES_MAX, "{files} bytes of files in memory");
}

#[test]
fn more_than_any_memory_is_begun_and_stopped_in_time() {
    let sandbox = Sandbox::new();
    let (found, resident, files) =
        watched(&sandbox, &[&BOTH[..], &["on", "--size", "4TiB", "--seconds", "0.2"]].concat());
    let document = found.expect(0).json;
    let part = whole(&document);
    assert!(part["bytes"].as_u64().unwrap() > 64 << 20 && part["notes"].to_string().contains("stopped"), "{part:#}");
    assert!(resident < RESIDENT_MAX && files < FILES_MAX, "{resident} {files}");
}

/// What is damaged on the way is found by the chunk's digest and fetched again; what the source itself misplaced, by the digest
/// of what should have come.
#[cfg(feature = "testing")]
#[test]
fn damage_and_misplaced_blocks_are_found() {
    let sandbox = Sandbox::new();
    let run = |fault: &str| {
        let mut command = sandbox.command(&[], &[&BOTH[..], &["off", "--size", "32MiB"]].concat());
        command.env("LONGHAUL_FAULT", fault);
        sandbox.start(command).wait(2 * SOON)
    };
    let flipped = run("source.digested:3:flip").expect(0).json;
    let report = &flipped["longhaul"]["report"];
    assert_eq!((&report["failed_chunks"], &report["verdict"]), (&1.into(), &"DURABLE".into()), "{report:#}");
    assert!(report["resent_bytes"].as_u64().unwrap() > 0, "{report:#}");
    run("source.read-place:3:move").says(6, &["other bytes arrived than were made up"]);
}

#[test]
fn an_agent_is_synthetic_where_its_operator_says_so() {
    let sandbox = Sandbox::new();
    let bytes = crate::support::noise(6 << 20, 11);
    let real = sandbox.agent("real", &[]);
    sandbox.write("real/big", &bytes);
    let agent = sandbox.agent("made", &["--synthetic", "both", "--encrypt", "off"]);
    sandbox.write("made/big", &bytes);
    sandbox.write("made/small", b"four");
    let file = sandbox.write("file", &bytes);
    let token = |agent: &crate::support::Agent| ["--token-file".to_owned(), agent.token_file()];
    let cp = |words: &[&str]| sandbox.cp(words);

    let [flag, secret] = token(&real);
    cp(&[&flag, &secret, &real.url("big"), &sandbox.arg("true")]).expect(0);
    assert!(std::fs::read(sandbox.at("true")).unwrap() == bytes, "an agent that nobody told so serves files");

    let [flag, secret] = token(&agent);
    for (name, size) in [("big", 6 << 20), ("small", 4)] {
        let told = cp(&[&flag, &secret, &agent.url(name), &sandbox.arg(name)]).expect(0);
        assert!(told.notes().contains("made the bytes up"), "{}", told.notes());
        let mut made = vec![0; size];
        longhaul::sys::synthetic::fill(&mut made, 0);
        assert!(std::fs::read(sandbox.at(name)).unwrap() == made, "{name}");
    }
    let file = file.to_str().unwrap();
    let refused = cp(&[&flag, &secret, "--verify", "disk", file, &agent.url("up")]);
    assert!(refused.code != 0 && refused.out.contains("--verify wire"), "{}", refused.out);
    let told = cp(&[&flag, &secret, "--verify", "wire", file, &agent.url("up")]).expect(0);
    assert!(told.notes().contains("thrown away") && told.json["durable"] == false, "{}", told.notes());
    assert_eq!(told.json["dropped"], true, "{}", told.out);
    assert_eq!(told.number("bytes"), 6 << 20);
    let names: Vec<_> = std::fs::read_dir(&agent.root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name != "up"), "no name without content: {names:?}");
    assert_eq!(crate::support::left_over(&agent.root), Vec::<std::path::PathBuf>::new());
}
