//! What broke in transfer2go at its agents, by the numbers of the list of its defects; each is shown not to break here, with
//! real agents. Its defects at main are in `tests/service/forerunner.rs`.

use crate::fleet::{Files, Fleet, Member, dataset, mounts, tape};
use crate::support::{SOON, noise, wait_durable, wait_for};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

struct Stage {
    fleet: Fleet,
    source: Member,
    target: Member,
}

fn stage(source: &[&str], target: &[&str]) -> Stage {
    let fleet = Fleet::new(&[]);
    let (source, target) = fleet.pair(source, target);
    Stage { fleet, source, target }
}

impl Stage {
    fn files(&self, sizes: &[usize]) -> Files {
        let one = |(n, bytes): (usize, &usize)| {
            let lfn = format!("/d/{n}/same.root");
            self.source.write(&lfn, *bytes, n as u64 + 1);
            (lfn, *bytes as u64)
        };
        let files: Files = sizes.iter().enumerate().map(one).collect();
        self.fleet.register(&self.source, "/d", &files);
        files
    }
}

/// There: a hold sleeps in its worker; as many files on tape as workers stop the agent, and the pause follows the try that it
/// should precede. Here ten holds and one slot: what is online passes, and what is released arrives without waiting out a pause.
#[test]
fn defect_02_and_03_holds_take_no_worker_and_end_when_they_end() {
    let sandbox = crate::support::Sandbox::in_memory();
    let gate = sandbox.at("gate");
    let (library, words) = tape(&sandbox, &["--mount", "0", "--gate", gate.to_str().unwrap()]);
    let fleet = Fleet::over(sandbox, &[]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (source, _target) = fleet.pair(&words, &["--max-transfers", "1"]);
    let held: Files = (0..10).map(|n| (format!("/t/f{n}"), 1000)).collect();
    for (lfn, _) in &held {
        source.write(lfn, 1000, 1);
        source.migrate(&fleet.sandbox, lfn);
    }
    fleet.register(&source, "/t", &held);
    let id = fleet.active(&dataset("/t", "dst"));
    wait_for("ten holds", SOON, || fleet.view(&id)["counters"]["holding"] == 10);
    source.write("/online", 5000, 2);
    let other = json!({"select": {"files": ["/online"]}, "source": {"agents": ["src"]}, "destinations": ["dst"]});
    fleet.becomes(&fleet.active(&other), "succeeded");
    wait_for("the tape is mounted", SOON, || !mounts(&library).is_empty());
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(mounts(&library), [10], "asked once, whoever asks again");
    std::fs::write(&gate, b"").unwrap();
    let began = Instant::now();
    assert_eq!(fleet.becomes(&id, "succeeded")["counters"]["done"], 10);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(fleet.items(&id).iter().all(|item| item["tries"] == 0));
}

/// There: a file that is at the destination already stays "transferring" and comes back every minute, as does any odd answer.
/// Here each ends: equal, as skipped; another file of that name, as failed, with a reason; a name that is no file, too.
#[test]
fn defect_05_every_file_ends() {
    let stage = stage(&[], &[]);
    let files = stage.files(&[1000, 2000, 3000, 65 << 20]);
    for (n, seed) in [(0, 1), (1, 77), (3, 4)] {
        let (lfn, bytes) = &files[n];
        stage.target.write(lfn, *bytes as usize, seed);
        let time = std::fs::metadata(stage.source.at(lfn)).unwrap().modified().unwrap();
        std::fs::File::options().append(true).open(stage.target.at(lfn)).unwrap().set_modified(time).unwrap();
    }
    std::fs::create_dir_all(stage.target.at(&files[2].0)).unwrap();
    let mut spec = dataset("/d", "dst");
    spec["tries"] = json!(2);
    let id = stage.fleet.active(&spec);
    let view = stage.fleet.becomes(&id, "partial");
    let counters = &view["counters"];
    assert_eq!(
        (&counters["skipped"], &counters["failed"], &counters["running"]),
        (&json!(2), &json!(2), &json!(0)),
        "{view:#}"
    );
    for item in stage.fleet.items(&id).iter().filter(|item| item["state"] == "failed") {
        assert!(item["reason"].as_str().is_some_and(|reason| reason.len() > 10), "{item:#}");
    }
    assert!(stage.target.read(&files[1].0) == noise(2000, 77), "what stood there stands there");
}

/// There: the first finished file finishes the dataset, or none does. Here the request ends with its last file.
#[test]
fn defect_06_a_request_ends_with_its_last_file() {
    let stage = stage(&[], &["--max-transfers", "1"]);
    let files = stage.files(&[10, 70 << 20, 20]);
    let mut spec = dataset("/d", "dst");
    spec["max_rate"] = json!(200_000_000);
    let id = stage.fleet.active(&spec);
    wait_for("one is done", SOON, || stage.fleet.view(&id)["counters"]["done"].as_u64() > Some(0));
    let view = stage.fleet.view(&id);
    assert!(view["state"] == "active" || view["counters"]["done"] == 3, "{view:#}");
    let view = stage.fleet.becomes(&id, "succeeded");
    assert_eq!((&view["counters"]["done"], files.len()), (&json!(3), 3));
}

/// There: files of up to 4,096 bytes are written empty while the catalog has their size and hash. And descriptors leak.
#[test]
fn defect_07_small_files_are_whole_and_closed() {
    let stage = stage(&[], &[]);
    let descriptors =
        || std::fs::read_dir(format!("/proc/{}/fd", stage.target.running().running.pid())).unwrap().count();
    let sizes = [0, 1, 2, 511, 512, 4095, 4096, 4097];
    let files = stage.files(&sizes);
    let mut before = 0;
    for round in 0..5 {
        let mut spec = dataset("/d", "dst");
        spec["path"] = json!(format!("/round{round}"));
        stage.fleet.becomes(&stage.fleet.active(&spec), "succeeded");
        for (n, (lfn, bytes)) in files.iter().enumerate() {
            assert!(stage.target.read(&format!("/round{round}{lfn}")) == noise(*bytes as usize, n as u64 + 1), "{lfn}");
        }
        if round == 1 {
            std::thread::sleep(Duration::from_secs(2));
            before = descriptors();
        }
    }
    let patience = Instant::now();
    while descriptors() > before + 8 {
        assert!(patience.elapsed() < Duration::from_secs(30), "{before} descriptors became {}", descriptors());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// There: a file is read into memory as a whole at both ends. Here neither end takes more for a file of 768 MiB than for a small one.
#[test]
fn defect_08_memory_does_not_grow_with_the_file() {
    let stage = stage(&["--memory", "64MiB"], &["--memory", "64MiB"]);
    let bytes = 768 * MIB;
    let path = stage.source.at("/d/0/same.root");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let part = noise(64 << 20, 3);
    let mut file = std::fs::File::create(&path).unwrap();
    (0..bytes / part.len() as u64).for_each(|_| std::io::Write::write_all(&mut file, &part).unwrap());
    stage.fleet.register(&stage.source, "/d", &vec![("/d/0/same.root".to_owned(), bytes)]);
    let id = stage.fleet.active(&dataset("/d", "dst"));
    let mut most = (0, 0);
    wait_for("it has arrived", Duration::from_secs(180), || {
        most = (most.0.max(stage.source.memory()), most.1.max(stage.target.memory()));
        std::thread::sleep(Duration::from_millis(50));
        stage.fleet.view(&id)["state"] == "succeeded"
    });
    eprintln!("{} MiB at the source, {} MiB at the destination", most.0 / MIB, most.1 / MIB);
    assert!(most.0.max(most.1) < 200 * MIB, "{most:?}");
}

/// There: files of one name in two directories overwrite each other, and nobody compares a hash. (What is not what the catalog
/// says: `a_changed_replica_is_refused_and_another_one_serves`.)
#[test]
fn defect_09_equal_names_are_different_files() {
    let stage = stage(&[], &[]);
    let files = stage.files(&[100, 200, 300]);
    stage.fleet.becomes(&stage.fleet.active(&dataset("/d", "dst")), "succeeded");
    for (n, (lfn, bytes)) in files.iter().enumerate() {
        assert!(stage.target.read(lfn) == noise(*bytes as usize, n as u64 + 1), "{lfn}");
    }
}

/// There: a file that nobody has is "not ready", for ever. Here a source says 404, and the item fails with that reason.
#[test]
fn defect_10_what_does_not_exist_is_said_to_be_missing() {
    let stage = stage(&[], &[]);
    stage.source.admin().get("/v1/files/never/was/data").expect(404);
    let spec = json!({"select": {"files": ["/never/was"]}, "source": {"agents": ["src"]}, "destinations": ["dst"]});
    let id = stage.fleet.request(&spec);
    let view = wait_end(&stage, &id);
    assert_eq!(view["state"], "failed", "{view:#}");
    let said = format!("{view} {:?}", stage.fleet.items(&id));
    assert!(said.contains("missing") || said.contains("not there") || said.contains("has"), "{said}");
}

/// Approved if it asks for it; until it has ended.
fn wait_end(stage: &Stage, id: &str) -> Value {
    let mut view = Value::Null;
    let mut approved = false;
    wait_for("the request has ended", SOON, || {
        view = stage.fleet.view(id);
        if view["state"] == "pending_approval" && !approved {
            stage.fleet.approve(id);
            approved = true;
        }
        !["resolving", "pending_approval", "active"].contains(&view["state"].as_str().unwrap())
    });
    view
}

/// There: deleting an approved request never reaches the destination. Here a transfer at work stops with the next heartbeat.
#[test]
fn defect_11_a_cancel_stops_a_transfer_at_work() {
    let fleet = Fleet::new(&["--lease-secs", "3"]);
    let (source, target) = fleet.pair(&[], &[]);
    source.write("/big", 200 << 20, 1);
    let spec = json!({
        "select": {"files": ["/big"]}, "source": {"agents": ["src"]}, "destinations": ["dst"], "max_rate": 100_000_000,
        "path": "/in",
    });
    let id = fleet.active(&spec);
    wait_durable(&target.root.join("in"), 2);
    fleet.admin().post(&format!("/v1/requests/{id}/cancel"), &Value::Null).expect(200);
    let began = Instant::now();
    fleet.becomes(&id, "cancelled");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let running = || fleet.admin().get("/v1/agents/dst").json()["status"]["running"].clone();
    wait_for("nothing runs", SOON, || running() == 0);
    assert!(!target.at("/in/big").exists());
}

/// There: what was taken on lives in memory. Here an agent that is killed with a full queue has done all of it in the end, each
/// once, though main is away when it comes back.
#[test]
fn defect_12_a_killed_agent_has_forgotten_nothing() {
    let mut stage = stage(&[], &["--max-transfers", "1"]);
    let sizes: Vec<usize> = (0..40).map(|n| 300_000 + n).collect();
    let files = stage.files(&sizes);
    let mut spec = dataset("/d", "dst");
    spec["max_rate"] = json!(40_000_000);
    let id = stage.fleet.active(&spec);
    wait_for("some are done, some are not", SOON, || stage.fleet.view(&id)["counters"]["done"].as_u64() > Some(2));
    stage.target.kill();
    stage.fleet.main.kill();
    stage.target.start(&stage.fleet.sandbox);
    std::thread::sleep(Duration::from_secs(1));
    stage.fleet.main.start(&stage.fleet.sandbox);
    let view = stage.fleet.becomes(&id, "succeeded");
    assert_eq!(view["counters"]["done"], files.len(), "{view:#}");
    for item in stage.fleet.items(&id) {
        assert_eq!(stage.fleet.attempts(&item).len(), 1, "{item:#}");
    }
}

/// There: an error of the database ends the agent. Here it is said, nothing is acted on that cannot be kept, and it goes on when
/// the database does. And the numbers of an agent at rest are zeros again.
#[test]
fn defect_13_a_queue_that_fails_is_survived() {
    let stage = stage(&[], &[]);
    let files = stage.files(&[1000, 2000, 3000]);
    let queue = rusqlite::Connection::open(stage.fleet.sandbox.at("dst.state/queue.db")).unwrap();
    queue.execute_batch("BEGIN IMMEDIATE").unwrap();
    let id = stage.fleet.active(&dataset("/d", "dst"));
    wait_for("the agent says so", SOON, || stage.target.log().contains("the queue failed"));
    assert!(!stage.target.at(&files[0].0).exists(), "nothing is done that is not kept");
    queue.execute_batch("ROLLBACK").unwrap();
    drop(queue);
    assert_eq!(stage.fleet.becomes(&id, "succeeded")["counters"]["done"], 3);
    let status = || stage.fleet.admin().get("/v1/agents/dst").json()["status"].clone();
    wait_for("it is at rest", SOON, || {
        let status = status();
        ["running", "queued", "holding"].iter().all(|key| status[key] == 0) && status["ended"] == 3
    });
}
