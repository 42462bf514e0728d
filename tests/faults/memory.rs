//! Memory: peak resident size of both agents, for big files and for many long names.

use crate::support::{Agent, Copy, MIB, copy, data_file, difference, long, peak_rss, scratch, tokens_shared};
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: u64 = 256 * MIB;

/// Moves `path` from agent to agent; peak memory of source and destination.
fn peaks(dir: &Path, name: &str, fill: impl FnOnce(&Path), args: &[&str]) -> (u64, u64, PathBuf, PathBuf) {
    let (source_dir, destination_dir) = (dir.join(format!("{name}-source")), dir.join(format!("{name}-destination")));
    fill(&source_dir.join("root/tree"));
    let source = Agent::start(&source_dir, &[]);
    tokens_shared(&source, &destination_dir);
    let destination = Agent::start(&destination_dir, &["--verify", "wire"]);
    let (from, to) = (source.url("tree"), destination.url("copy"));
    let mut words = vec!["-r", &from, &to];
    words.extend(args);
    let run: Copy = copy(dir, &source.token_file(), &words);
    let report = run.succeeds(Duration::from_secs(900));
    assert_eq!(report["verdict"], "DURABLE");
    let peaks = (peak_rss(source.pid()), peak_rss(destination.pid()));
    eprintln!("{name}: {:.1} MiB at the source, {:.1} MiB at the destination", mib(peaks.0), mib(peaks.1));
    (peaks.0, peaks.1, source.root().join("tree"), destination.root().join("copy"))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

#[test]
fn neither_file_size_nor_streams_move_the_peak_beyond_its_limit() {
    let (small, big) = if long() { (4 << 30, 20 << 30) } else { (512 * MIB, 2 << 30) };
    for streams in ["16", "64"] {
        let mut seen = Vec::new();
        for bytes in [small, big] {
            // Both in the same way: direct I/O pins the whole arena, the page cache needs less of it.
            let dir = if long() { tempfile::tempdir().unwrap() } else { scratch(2 * bytes) };
            let name = format!("{}MiB-{streams}", bytes / MIB);
            let fill = |tree: &Path| data_file(&tree.join("file"), bytes, 5);
            let (source, destination, from, to) =
                peaks(dir.path(), &name, fill, &["--streams", streams, "--io", if long() { "direct" } else { "auto" }]);
            assert_eq!(difference(&from, &to), None);
            seen.push((source, destination));
        }
        for (source, destination) in &seen {
            assert!(*source < LIMIT && *destination < LIMIT, "{streams} streams: {source} and {destination} bytes");
        }
        // The file table of the bigger one costs 32 bytes a chunk; the rest is noise of the buffers in use.
        let noise = 24 * MIB;
        assert!(seen[1].0 <= seen[0].0 + noise && seen[1].1 <= seen[0].1 + noise, "grows with the file: {seen:?}");
    }
}

/// `count` empty files with names of 255 bytes at depth 15; paths up to 3,840 bytes can only be made step by step.
fn long_names(tree: &Path, count: u32) {
    std::fs::create_dir_all(tree).unwrap();
    let mut at = std::fs::File::open(tree).unwrap();
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o755);
    for level in 0..14u8 {
        let name = vec![b'a' + level; 255];
        nix::sys::stat::mkdirat(&at, name.as_slice(), mode).unwrap();
        let flags = nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_RDONLY;
        at = nix::fcntl::openat(&at, name.as_slice(), flags, mode).unwrap().into();
    }
    for number in 0..count {
        let name = format!("{number:0>255}");
        let flags = nix::fcntl::OFlag::O_CREAT | nix::fcntl::OFlag::O_WRONLY;
        nix::fcntl::openat(&at, name.as_str(), flags, mode).unwrap();
    }
}

/// What is on its way differs by some MiB from run to run, in huge pages of 2 MiB each: the lowest peak of several runs
/// says what must be there.
#[test]
fn a_hundred_thousand_long_names_cost_two_hundred_bytes_each_at_most() {
    const RUNS: usize = 3;
    // What is on its way is bounded whatever the tree's size; 20,000 names fill that, the rest is growth.
    let (few, many) = (20_000, 100_000);
    let mut lowest = Vec::new();
    for names in [few, many] {
        let mut low = (u64::MAX, u64::MAX);
        for _ in 0..RUNS {
            let dir = scratch(1 << 30);
            let fill = |tree: &Path| long_names(tree, names);
            let peak = peaks(dir.path(), &format!("{names}-names"), fill, &["--streams", "1"]);
            assert!(peak.0 < LIMIT && peak.1 < LIMIT, "{} and {} bytes", peak.0, peak.1);
            low = (low.0.min(peak.0), low.1.min(peak.1));
        }
        lowest.push(low);
    }
    let each = |many_bytes: u64, few_bytes: u64| many_bytes.saturating_sub(few_bytes) / u64::from(many - few);
    let (source, destination) = (each(lowest[1].0, lowest[0].0), each(lowest[1].1, lowest[0].1));
    eprintln!("{source} bytes a name at the source, {destination} at the destination");
    assert!(
        source <= 200 && destination <= 200,
        "{source} bytes a name at the source, {destination} at the destination: {lowest:?}"
    );
}
