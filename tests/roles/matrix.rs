//! The rows of the failure matrix that concern agents, with real ones: killed, stopped, cut off, full, lied to.

use crate::fleet::{Files, Fleet, Member, dataset};
use crate::support::{SOON, left_over, noise, root_or_skip, wait_durable, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

struct Stage {
    fleet: Fleet,
    source: Member,
    target: Member,
}

fn stage(main: &[&str], flags: &[&str]) -> Stage {
    let fleet = Fleet::new(main);
    let (source, target) = fleet.pair(&[], flags);
    Stage { fleet, source, target }
}

impl Stage {
    /// One big file and a request for it, slow enough to be met in its middle; where it is then.
    fn at_half(&self, bytes: u64) -> String {
        self.source.write("/big/file", bytes as usize, 21);
        self.fleet.register(&self.source, "/big", &vec![("/big/file".to_owned(), bytes)]);
        let mut spec = dataset("/big", "dst");
        spec["max_rate"] = json!(400_000_000);
        let id = self.fleet.active(&spec);
        wait_durable(&self.target.root.join("big"), bytes / (4 * MIB) / 2);
        id
    }

    /// Many small files as a dataset.
    fn small(&self, n: usize) -> Files {
        let one = |n: usize| {
            let lfn = format!("/s/{}/f{n}", n % 3);
            self.source.write(&lfn, 500 + n % 4000, n as u64 + 1);
            (lfn, 500 + n as u64 % 4000)
        };
        let files: Files = (0..n).map(one).collect();
        self.fleet.register(&self.source, "/s", &files);
        files
    }

    fn all_arrived(&self, files: &Files) {
        for (n, (lfn, bytes)) in files.iter().enumerate() {
            assert!(self.target.read(lfn) == noise(*bytes as usize, n as u64 + 1), "{lfn}");
        }
        wait_for("nothing is left over", SOON, || left_over(&self.target.root).is_empty());
    }
}

/// Destination dies mid-file: it goes on where its journal ends, under the same claim, and nobody approves again.
#[test]
fn a_destination_killed_in_the_middle_of_a_file_resumes_it() {
    const SIZE: u64 = 200 * MIB;
    let mut stage = stage(&[], &[]);
    let id = stage.at_half(SIZE);
    stage.target.kill();
    stage.target.start(&stage.fleet.sandbox);
    let view = stage.fleet.becomes_within(&id, "succeeded", Duration::from_secs(180));
    assert_eq!((&view["counters"]["done"], view["decisions"].as_array().unwrap().len()), (&json!(1), 1));
    assert!(stage.target.read("/big/file") == noise(SIZE as usize, 21));
    let item = stage.fleet.items(&id).remove(0);
    assert_eq!((&item["epoch"], &item["tries"]), (&json!(1), &json!(0)), "the same claim");
    let bound = 8 * (4 * MIB + 2 * MIB) + longhaul::limits::commit_window(SIZE);
    let sent = stage.source.sent();
    assert!(sent <= SIZE + bound, "{} MiB were sent", sent / MIB);
    assert_eq!(left_over(&stage.target.root), Vec::<PathBuf>::new());
}

/// Destination dies after the rename and before its report, at two places: it says so when it is back, once for all.
#[test]
fn a_destination_killed_between_rename_and_report_reports_again() {
    for (point, small) in
        [("publish.renamed:1:kill", false), ("finish.verdict:1:kill", false), ("commit.done:1:kill", true)]
    {
        let mut stage = stage(&[], &[]);
        stage.target.stop();
        stage.target.fault = Some(point.to_owned());
        stage.target.start(&stage.fleet.sandbox);
        stage.fleet.joined(&stage.target);
        let files = match small {
            true => stage.small(20),
            false => {
                stage.source.write("/b/f", (66 * MIB) as usize, 1);
                let files = vec![("/b/f".to_owned(), 66 * MIB)];
                stage.fleet.register(&stage.source, "/s", &files);
                files
            }
        };
        let id = stage.fleet.active(&dataset("/s", "dst"));
        stage.target.dies();
        assert_eq!(stage.fleet.view(&id)["counters"]["done"], 0, "{point}: not told");
        stage.target.start(&stage.fleet.sandbox);
        let view = stage.fleet.becomes(&id, "succeeded");
        // What it had published before is its own work, not something that was there.
        assert_eq!(
            (&view["counters"]["done"], &view["counters"]["skipped"]),
            (&json!(files.len()), &json!(0)),
            "{point}"
        );
        stage.all_arrived(&files);
        for item in stage.fleet.items(&id) {
            let attempts = stage.fleet.attempts(&item);
            assert_eq!((attempts.len(), &attempts[0]["outcome"]), (1, &json!("complete")), "{point}: {attempts:#?}");
        }
        assert_eq!(stage.target.admin().all("/v1/local/catalog").len(), files.len(), "{point}");
    }
}

/// Source dies in the middle of a file: another replica serves it, and the item does not fail.
#[test]
fn a_source_that_dies_is_replaced_by_another() {
    const SIZE: u64 = 200 * MIB;
    let fleet = Fleet::new(&["--lease-secs", "3", "--reattach-secs", "1"]);
    let mut first = fleet.member("s1", "source", &[]);
    let second = fleet.member("s2", "source", &[]);
    let target = fleet.member("dst", "destination", &[]);
    fleet.introduce(&[&first, &second, &target]);
    [&first, &second, &target].into_iter().for_each(|member| fleet.joined(member));
    for source in [&first, &second] {
        source.write("/big/file", SIZE as usize, 4);
        fleet.register(source, "/big", &vec![("/big/file".to_owned(), SIZE)]);
    }
    let mut spec = dataset("/big", "dst");
    spec["max_rate"] = json!(400_000_000);
    let id = fleet.active(&spec);
    wait_durable(&target.root.join("big"), SIZE / (4 * MIB) / 3);
    let item = fleet.items(&id).remove(0);
    assert_eq!(item["source"], "s1", "by name, where all else is equal");
    first.kill();
    let view = fleet.becomes_within(&id, "succeeded", Duration::from_secs(240));
    assert_eq!((&view["counters"]["done"], &view["counters"]["failed"]), (&json!(1), &json!(0)));
    assert!(target.read("/big/file") == noise(SIZE as usize, 4));
    let attempts = fleet.attempts(&fleet.items(&id)[0]);
    assert_eq!(attempts.last().unwrap()["source"], "s2", "{attempts:#?}");
}

/// A source that answers everything with 500.
struct Broken {
    port: u16,
    asked: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

impl Broken {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (asked.clone(), over.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let mut lines = BufReader::new(&stream).lines();
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                count.fetch_add(1, Ordering::SeqCst);
                let _ = write!(&stream, "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            }
        });
        Self { port, asked, over }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Source returns 5xx: after a minute of patience its files go to another replica; it is not asked on and on meanwhile.
#[test]
fn a_source_that_answers_500_is_left_for_another() {
    let stage = stage(&["--lease-secs", "600"], &[]);
    let broken = Broken::new();
    let registration = json!({
        "name": "bad", "id": "00".repeat(16), "url": format!("lh://127.0.0.1:{}", broken.port), "roles": ["source"],
        "version": "0",
    });
    let admin = stage.fleet.admin();
    admin.post("/v1/agents", &registration).expect(201);
    admin.post("/v1/agents/bad/session", &json!({"id": "00".repeat(16)})).expect(200);
    stage.fleet.sandbox.write("dst.state/peers/bad", format!("lht_{}", "1".repeat(64)).as_bytes());
    let peer = stage.fleet.sandbox.at("dst.state/peers/bad");
    std::fs::set_permissions(&peer, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let files = stage.small(20);
    let records: Vec<Value> =
        files.iter().map(|(lfn, bytes)| json!({"lfn": lfn, "bytes": bytes, "agent": "bad"})).collect();
    assert!(admin.post("/v1/catalog/records", &json!(records)).status < 300);
    let id = stage.fleet.active(&dataset("/s", "dst"));
    let view = stage.fleet.becomes_within(&id, "succeeded", Duration::from_secs(180));
    assert_eq!((&view["counters"]["done"], &view["counters"]["failed"]), (&json!(20), &json!(0)));
    stage.all_arrived(&files);
    let asked = broken.asked.load(Ordering::SeqCst);
    assert!((1..=12).contains(&asked), "asked {asked} times");
}

/// The source's file is not what the catalog has: neither a size nor a digest of another version gets a name here, and the
/// right replica is found.
#[test]
fn a_changed_replica_is_refused_and_another_one_serves() {
    let fleet = Fleet::new(&[]);
    let bad = fleet.member("a-bad", "source", &[]);
    let good = fleet.member("good", "source", &[]);
    let target = fleet.member("dst", "destination", &[]);
    fleet.introduce(&[&bad, &good, &target]);
    [&bad, &good, &target].into_iter().for_each(|member| fleet.joined(member));
    // Small ones in one group, and one that travels alone; of each kind one with other bytes, one of another size.
    let sizes = [5000_u64, 6000, 7000, 65 * MIB, 66 * MIB];
    let files: Files = sizes.iter().enumerate().map(|(n, bytes)| (format!("/d/f{n}"), *bytes)).collect();
    for (n, (lfn, bytes)) in files.iter().enumerate() {
        good.write(lfn, *bytes as usize, n as u64 + 1);
        match n {
            0 | 3 => bad.write(lfn, *bytes as usize, 99),
            1 | 4 => bad.write(lfn, *bytes as usize - 1, n as u64 + 1),
            _ => bad.write(lfn, *bytes as usize, n as u64 + 1),
        }
    }
    // The catalog learns the digests from a first transfer.
    fleet.register(&good, "/d", &files);
    let mut first = dataset("/d", "dst");
    first["path"] = json!("/first");
    fleet.becomes(&fleet.active(&first), "succeeded");
    fleet.register(&bad, "/d", &files);
    let mut spec = dataset("/d", "dst");
    spec["source"] = json!({"agents": ["a-bad", "good"]});
    let id = fleet.active(&spec);
    let view = fleet.becomes(&id, "succeeded");
    assert_eq!(view["counters"]["done"], files.len());
    for (n, (lfn, bytes)) in files.iter().enumerate() {
        assert!(target.read(lfn) == noise(*bytes as usize, n as u64 + 1), "{lfn}");
    }
    let classes: Vec<Value> = fleet
        .items(&id)
        .iter()
        .filter(|item| item["lfn"] != "/d/f2")
        .map(|item| {
            fleet
                .attempts(item)
                .into_iter()
                .find(|a| a["source"] == "a-bad")
                .map_or(Value::Null, |a| a["class"].clone())
        })
        .collect();
    let refused = classes.iter().filter(|c| *c == "integrity" || *c == "source_bad").count();
    assert!(refused >= 2, "{classes:?}");
    wait_for("nothing is left over", SOON, || left_over(&target.root).is_empty());
}

/// Destination full: one pause of its storage, no failure of any file, and it goes on when somebody has made room.
#[test]
fn a_full_destination_waits_and_fails_nothing() {
    if !root_or_skip("to mount a small file system") {
        return;
    }
    struct Mount(PathBuf);
    impl Drop for Mount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let fleet = Fleet::new(&[]);
    let source = fleet.member("src", "source", &[]);
    let dir = fleet.sandbox.dir("dst");
    let mount = |options: &str| {
        assert!(
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "lht1"]).arg(&dir).status().unwrap().success()
        );
    };
    mount("size=40m,mode=755");
    let _mount = Mount(dir.clone());
    let target = fleet.member("dst", "destination", &[]);
    fleet.introduce(&[&source, &target]);
    fleet.joined(&source);
    fleet.joined(&target);
    let files: Files = (0..12).map(|n| (format!("/d{n}/f"), 9 * MIB)).collect();
    for (n, (lfn, bytes)) in files.iter().enumerate() {
        source.write(lfn, *bytes as usize, n as u64 + 1);
    }
    fleet.register(&source, "/d", &files);
    let id = fleet.active(&dataset("/d", "dst"));
    wait_for("the storage is paused", SOON, || fleet.admin().get("/v1/agents/dst").json()["paused"].is_object());
    let view = fleet.view(&id);
    assert_eq!((&view["state"], &view["counters"]["failed"]), (&json!("active"), &json!(0)), "{view:#}");
    assert!(Command::new("mount").args(["-o", "remount,size=400m"]).arg(&dir).status().unwrap().success());
    let view = fleet.becomes_within(&id, "succeeded", Duration::from_secs(240));
    assert_eq!(view["counters"]["done"], 12);
    assert!(fleet.items(&id).iter().all(|item| item["tries"] == 0));
    for (n, (lfn, bytes)) in files.iter().enumerate() {
        assert!(target.read(lfn) == noise(*bytes as usize, n as u64 + 1), "{lfn}");
    }
}

/// Main is out of reach for longer than a lease while data flows: the destination stops in time, keeps what it has, and goes on
/// when main is back. Main, which could hear nobody, gives nobody up.
#[test]
fn a_partition_from_main_pauses_and_resumes() {
    const SIZE: u64 = 300 * MIB;
    let stage = stage(&["--lease-secs", "3"], &[]);
    let id = stage.at_half(SIZE);
    stage.fleet.main.signal(Signal::SIGSTOP);
    let seen = || std::fs::read_to_string(stage.fleet.sandbox.at("dst.transfers")).unwrap_or_default().lines().count();
    wait_for("the transfer is checkpointed when the lease is over", Duration::from_secs(30), || seen() == 1);
    assert!(!stage.target.at("/big/file").exists());
    std::thread::sleep(Duration::from_secs(4));
    stage.fleet.main.signal(Signal::SIGCONT);
    let view = stage.fleet.becomes_within(&id, "succeeded", Duration::from_secs(180));
    assert_eq!(view["counters"]["done"], 1);
    assert!(stage.target.read("/big/file") == noise(SIZE as usize, 21));
    let item = stage.fleet.items(&id).remove(0);
    assert_eq!((&item["epoch"], &item["tries"]), (&json!(1), &json!(0)), "the same claim");
    let sent = stage.source.sent();
    assert!(sent <= SIZE + 8 * 6 * MIB + longhaul::limits::commit_window(SIZE), "{} MiB were sent", sent / MIB);
}

/// Main is killed again and again while agents work: nothing is lost, nothing is done twice.
#[test]
fn main_is_killed_under_agents_at_work() {
    let mut stage = stage(&["--lease-secs", "10"], &[]);
    let files = stage.small(2000);
    let id = stage.fleet.active(&dataset("/s", "dst"));
    for n in 0..6 {
        std::thread::sleep(Duration::from_millis(300 + 251 * n));
        stage.fleet.main.kill();
        stage.fleet.main.start(&stage.fleet.sandbox);
    }
    let view = stage.fleet.becomes_within(&id, "succeeded", Duration::from_secs(180));
    assert_eq!((&view["counters"]["done"], &view["counters"]["skipped"]), (&json!(2000), &json!(0)));
    stage.all_arrived(&files);
    assert_eq!(stage.target.admin().all("/v1/local/catalog").len(), 2000);
}

/// The same of the destination.
#[test]
fn a_destination_is_killed_again_and_again() {
    let mut stage = stage(&["--lease-secs", "10"], &[]);
    let files = stage.small(2000);
    let id = stage.fleet.active(&dataset("/s", "dst"));
    for n in 0..6 {
        std::thread::sleep(Duration::from_millis(300 + 251 * n));
        stage.target.kill();
        stage.target.start(&stage.fleet.sandbox);
    }
    let view = stage.fleet.becomes_within(&id, "succeeded", Duration::from_secs(180));
    assert_eq!(view["counters"]["done"].as_u64().unwrap() + view["counters"]["skipped"].as_u64().unwrap(), 2000);
    stage.all_arrived(&files);
    assert_eq!(stage.target.admin().all("/v1/local/catalog").len(), 2000);
}

/// A request of thousands is cancelled in its middle: acknowledged at once, drained with the next heartbeat, and the numbers are
/// those of the files that are there.
#[test]
fn a_cancel_in_the_middle_drains_and_counts() {
    let stage = stage(&["--lease-secs", "4"], &[]);
    let files = stage.small(6000);
    let mut spec = dataset("/s", "dst");
    spec["max_rate"] = json!(8_000_000);
    let id = stage.fleet.active(&spec);
    wait_for("some are done", SOON, || stage.fleet.view(&id)["counters"]["done"].as_u64() > Some(0));
    let began = Instant::now();
    stage.fleet.admin().post(&format!("/v1/requests/{id}/cancel"), &Value::Null).expect(200);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let counters = loop {
        let view = stage.fleet.view(&id);
        if view["state"] != "active" {
            break view["counters"].clone();
        }
        assert!(began.elapsed() < Duration::from_secs(40), "{view:#}");
        std::thread::sleep(Duration::from_millis(100));
    };
    let number = |key: &str| counters[key].as_u64().unwrap();
    assert_eq!((number("done") + number("cancelled"), number("running")), (6000, 0), "{counters:#}");
    let there = files.iter().filter(|(lfn, _)| stage.target.at(lfn).exists()).count() as u64;
    // What was published when the stop came may have been told as cancelled: it is there, and nobody's fault.
    assert!(there >= number("done") && number("cancelled") > 0, "{there} are there: {counters:#}");
    let status = || stage.fleet.admin().get("/v1/agents/dst").json()["status"].clone();
    wait_for("the agent has nothing left", SOON, || status()["queued"] == 0 && status()["running"] == 0);
}
