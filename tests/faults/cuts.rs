//! Streams that are cut, fall silent or damage bytes, and a peer that is stopped for a while: the rest goes on, what was
//! asked of the dead goes back to the table, and a damaged chunk is the only one that is fetched again.

use crate::relay::Relay;
use crate::support::{Agent, CHUNK, Copy, MIB, copy, data_file, difference, scratch};
use longhaul::wire::handshake::CLIENT_HELLO_LEN;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

struct Scene {
    agent: Agent,
    relay: Relay,
    /// Last, so that the agent is gone before its files are.
    dir: tempfile::TempDir,
}

impl Scene {
    fn new(bytes: u64, extra: &[&str]) -> Self {
        let dir = scratch(2 * bytes);
        let relay = Relay::new();
        let advertised = relay.address.to_string();
        let mut words = vec!["--advertise-data", &advertised];
        words.extend(extra);
        let agent = Agent::start(&dir.path().join("source"), &words);
        relay.forward_to(&agent.data());
        data_file(&agent.root().join("file"), bytes, 7);
        Self { agent, relay, dir }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("copy")
    }

    fn begin(&self, extra: &[&str]) -> Copy {
        let (from, to) = (self.agent.url("file"), self.target());
        let mut args = vec!["--streams", "4", &from, to.to_str().unwrap()];
        args.extend(extra);
        copy(self.dir.path(), &self.agent.token_file(), &args)
    }

    fn equal(&self) {
        assert_eq!(difference(&self.agent.root().join("file"), &self.target()), None);
    }

    /// Waits until every data stream has carried something.
    fn moving(&self, run: &mut Copy) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.relay.connections() < 5 || (1..5).any(|n| self.relay.carried(n) < MIB) {
            assert!(
                Instant::now() < end && run.runs_for(Duration::from_millis(5)),
                "the streams do not all carry data: {:?}",
                self.relay.all_carried()
            );
        }
    }
}

fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap()
}

#[test]
fn one_reset_stream_of_four_is_replaced_and_the_others_go_on() {
    let scene = Scene::new(192 * MIB, &[]);
    let mut run = scene.begin(&["--rate", "64MiB"]);
    scene.moving(&mut run);
    let before = scene.relay.all_carried();
    scene.relay.reset(2);
    // Each of the others goes on while the transfer runs.
    while [1, 3, 4].iter().any(|n| scene.relay.carried(*n) <= before[*n] + MIB) {
        assert!(run.runs_for(Duration::from_millis(5)), "a stream stood still: {before:?}");
    }
    let report = run.succeeds(PATIENCE);
    assert_eq!(number(&report, "reconnects"), 1, "{report:#}");
    let carried = scene.relay.all_carried();
    assert!(carried.len() == 6 && carried[5] >= MIB, "the stream came back and was used: {carried:?} {report:#}");
    assert!(number(&report, "sent_bytes") <= 192 * MIB + CHUNK + 4 * MIB, "{report:#}");
    scene.equal();
}

#[test]
fn all_streams_reset_make_a_new_session() {
    let scene = Scene::new(192 * MIB, &[]);
    let mut run = scene.begin(&["--rate", "64MiB"]);
    scene.moving(&mut run);
    scene.relay.reset_all();
    let report = run.succeeds(PATIENCE);
    assert!(number(&report, "reconnects") >= 1 && scene.relay.connections() == 10, "{report:#}");
    assert!(number(&report, "received_bytes") <= 192 * MIB + 4 * CHUNK, "what was placed is kept: {report:#}");
    scene.equal();
}

/// Data streams go first, so that they wait to be dialled again when their session ends: nobody dials for it any more.
#[test]
fn streams_of_a_session_that_is_gone_are_not_dialled() {
    let scene = Scene::new(192 * MIB, &[]);
    let mut run = scene.begin(&["--rate", "64MiB"]);
    scene.moving(&mut run);
    (1..5).for_each(|n| scene.relay.reset(n));
    assert!(run.runs_for(Duration::from_millis(50)), "it ended with its streams");
    scene.relay.reset(0);
    let report = run.succeeds(PATIENCE);
    assert_eq!(scene.relay.connections(), 10, "{report:#}");
    scene.equal();
}

/// Each stream has a path of its own, and on some the dialer's last word for the session comes after those of its streams: they
/// wait for it, nobody is sent away.
#[test]
fn streams_that_come_before_their_session_is_open_wait_for_it() {
    let scene = Scene::new(32 * MIB, &[]);
    scene.relay.delay_up(0, CLIENT_HELLO_LEN as u64, Duration::from_millis(300));
    let report = scene.begin(&[]).succeeds(PATIENCE);
    assert!(scene.relay.delayed(), "the last word did not come late");
    assert_eq!((scene.relay.connections(), number(&report, "reconnects")), (5, 0), "{report:#}");
    scene.equal();
}

/// What stands between the two may end a stream towards one of them only: when the destination loses a stream that the
/// source dialled, the source hears of it and dials again.
#[test]
fn a_stream_that_only_the_destination_lost_is_dialled_again() {
    let scene = Scene::new(MIB, &[]);
    let here = scene.dir.path().join("here");
    data_file(&here, 96 * MIB, 9);
    let (from, to) = (here.to_str().unwrap(), scene.agent.url("there"));
    let words = ["--streams", "1", "--rate", "32MiB", from, &to];
    let mut run = copy(scene.dir.path(), &scene.agent.token_file(), &words);
    let end = Instant::now() + Duration::from_secs(30);
    while scene.relay.connections() < 2 || scene.relay.carried_up(1) < 8 * MIB {
        assert!(Instant::now() < end && run.runs_for(Duration::from_millis(5)), "the stream carries nothing");
    }
    scene.relay.half_open(1);
    let began = Instant::now();
    let report = run.succeeds(PATIENCE);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}: {report:#}", began.elapsed());
    assert_eq!((scene.relay.connections(), number(&report, "reconnects")), (3, 1), "{report:#}");
    assert_eq!(difference(&here, &scene.agent.root().join("there")), None);
}

#[test]
fn a_silent_stream_loses_its_claims_to_the_others() {
    let scene = Scene::new(128 * MIB, &[]);
    let mut run = scene.begin(&["--rate", "64MiB"]);
    scene.moving(&mut run);
    scene.relay.silence(3);
    let began = Instant::now();
    let report = run.succeeds(PATIENCE);
    scene.equal();
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
    assert!(number(&report, "sent_bytes") <= 128 * MIB + 6 * CHUNK, "{report:#}");
}

#[test]
fn a_peer_that_is_stopped_for_twenty_seconds_is_waited_for() {
    let scene = Scene::new(128 * MIB, &[]);
    let mut run = scene.begin(&["--rate", "64MiB"]);
    scene.moving(&mut run);
    scene.agent.signal("STOP");
    let ended = !run.runs_for(Duration::from_secs(20));
    scene.agent.signal("CONT");
    assert!(!ended, "it ended while its source stood still");
    let report = run.succeeds(PATIENCE);
    assert_eq!((number(&report, "reconnects"), number(&report, "resent_bytes")), (0, 0), "{report:#}");
    scene.equal();
}

fn flipped(encrypt: &str) {
    let scene = Scene::new(96 * MIB, &["--encrypt", encrypt]);
    // In the middle of a block's payload: handshake, headers and trailers come to about 1 KiB here.
    scene.relay.flip(2, 3 * MIB + 100_000);
    let report = scene.begin(&["--encrypt", encrypt, "--rate", "48MiB"]).succeeds(PATIENCE);
    assert!(scene.relay.flipped(), "no byte was flipped");
    assert_eq!(report["encrypted"], encrypt == "on");
    assert_eq!(number(&report, "failed_chunks"), 1, "{report:#}");
    assert!((1..=CHUNK).contains(&number(&report, "resent_bytes")), "{report:#}");
    assert!(number(&report, "sent_bytes") <= 97 * MIB + CHUNK && number(&report, "reconnects") == 0, "{report:#}");
    scene.equal();
}

#[test]
fn a_flipped_bit_costs_one_chunk_in_plain() {
    flipped("off");
}

#[test]
fn a_flipped_bit_costs_one_chunk_encrypted() {
    flipped("on");
}

/// Allocated blocks of a file, in bytes.
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    path.metadata().unwrap().blocks() * 512
}

#[test]
fn holes_stay_holes_through_a_cut() {
    let dir = scratch(256 * MIB);
    let agent = Agent::start(&dir.path().join("source"), &[]);
    let path = agent.root().join("file");
    data_file(&path, 10 * MIB, 3);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    use std::os::unix::fs::FileExt;
    file.set_len(2 << 30).unwrap();
    file.write_all_at(&vec![9; 12 * MIB as usize], (1 << 30) + 12_345).unwrap();
    let to = dir.path().join("copy");
    let (from, target) = (agent.url("file"), to.to_str().unwrap().to_owned());
    let mut run = copy(dir.path(), &agent.token_file(), &[&from, &target, "--rate", "6MiB"]);
    assert!(run.runs_for(Duration::from_millis(900)));
    run.kill();
    let report = copy(dir.path(), &agent.token_file(), &[&from, &target]).succeeds(PATIENCE);
    assert_eq!(difference(&path, &to), None);
    let (there, here) = (allocated(&path), allocated(&to));
    assert!(here <= there + CHUNK, "{here} allocated bytes instead of {there}: {report:#}");
    assert!(number(&report, "received_bytes") <= 22 * MIB + CHUNK, "holes do not travel: {report:#}");
}
