//! Files on tape: asked for, held without any cost, released, and the memory of it all over restarts of either end.

use crate::fleet::{Files, Fleet, Member, dataset, mounts, tape};
use crate::support::{SOON, Sandbox, noise, wait_for};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

struct Stage {
    fleet: Fleet,
    source: Member,
    target: Member,
    library: PathBuf,
    gate: PathBuf,
}

/// A source with a tape library that reads nothing before its gate is there.
fn stage(flags: &[&str]) -> Stage {
    let fleet = Fleet::new(&[]);
    let gate = fleet.sandbox.at("gate");
    let (library, tape) = tape(&fleet.sandbox, &["--mount", "0", "--gate", gate.to_str().unwrap()]);
    let tape: Vec<&str> = tape.iter().map(String::as_str).collect();
    let (source, target) = fleet.pair(&tape, flags);
    Stage { fleet, source, target, library, gate }
}

impl Stage {
    /// `n` files of the dataset `/tape`, on tape, and registered.
    fn on_tape(&self, n: usize) -> Files {
        let files: Files = (0..n).map(|n| (format!("/tape/f{n}"), 5000 + n as u64)).collect();
        for (at, (lfn, bytes)) in files.iter().enumerate() {
            self.source.write(lfn, *bytes as usize, at as u64 + 1);
            self.source.migrate(&self.fleet.sandbox, lfn);
        }
        self.fleet.register(&self.source, "/tape", &files);
        files
    }

    fn holding(&self, id: &str, n: usize) -> Value {
        let mut view = Value::Null;
        wait_for(&format!("{n} holds"), SOON, || {
            view = self.fleet.view(id);
            view["counters"]["holding"] == n
        });
        view
    }

    fn open(&self) {
        std::fs::write(&self.gate, b"").unwrap();
    }

    fn arrived(&self, files: &Files) {
        for (at, (lfn, bytes)) in files.iter().enumerate() {
            assert!(self.target.read(lfn) == noise(*bytes as usize, at as u64 + 1), "{lfn}");
        }
    }
}

/// 204, then released: held in main's eyes too, no try used, one process for the tape, nothing opened before its time; and the
/// destination is killed and started again in between.
#[test]
fn a_file_on_tape_is_held_over_a_restart_and_arrives_when_it_is_released() {
    let mut stage = stage(&[]);
    let files = stage.on_tape(1);
    let id = stage.fleet.active(&dataset("/tape", "dst"));
    stage.holding(&id, 1);
    let item = stage.fleet.items(&id).remove(0);
    assert!(item["hold_since"].is_string() && item["tries"] == 0, "{item:#}");
    stage.target.kill();
    stage.target.start(&stage.fleet.sandbox);
    stage.fleet.joined(&stage.target);
    let status = || stage.fleet.admin().get("/v1/agents/dst").expect(200).json()["status"].clone();
    wait_for("the restarted agent knows its hold", SOON, || status()["holding"] == 1);
    assert!(!stage.source.at("/tape/f0").exists(), "it is still on tape");
    stage.open();
    assert_eq!(stage.fleet.becomes(&id, "succeeded")["counters"]["done"], 1);
    stage.arrived(&files);
    assert_eq!(mounts(&stage.library), [1]);
    let item = stage.fleet.items(&id).remove(0);
    let attempts = stage.fleet.attempts(&item);
    assert_eq!((attempts.len(), &item["tries"], &item["epoch"]), (1, &json!(0), &json!(1)), "{attempts:#?}");
}

/// The source dies with a recall at work: who waits goes on waiting, and the recall is begun again.
#[test]
fn a_source_that_restarts_loses_no_recall() {
    let mut stage = stage(&[]);
    let files = stage.on_tape(3);
    let id = stage.fleet.active(&dataset("/tape", "dst"));
    stage.holding(&id, 3);
    wait_for("the tape is mounted", SOON, || mounts(&stage.library).len() == 1);
    stage.source.kill();
    stage.source.start(&stage.fleet.sandbox);
    stage.open();
    let view = stage.fleet.becomes(&id, "succeeded");
    assert_eq!(view["counters"]["done"], 3);
    stage.arrived(&files);
    assert!(stage.fleet.items(&id).iter().all(|item| item["tries"] == 0));
}

/// What waits is cancelled at once, and comes back to nobody.
#[test]
fn a_hold_is_cancelled() {
    let stage = stage(&[]);
    stage.on_tape(2);
    let id = stage.fleet.active(&dataset("/tape", "dst"));
    stage.holding(&id, 2);
    stage.fleet.admin().post(&format!("/v1/requests/{id}/cancel"), &Value::Null).expect(200);
    assert_eq!(stage.fleet.becomes(&id, "cancelled")["counters"]["cancelled"], 2);
    stage.open();
    std::thread::sleep(Duration::from_secs(3));
    assert!(!stage.target.at("/tape/f0").exists());
}

/// A hold of 100,000 (20,000 unless `LONGHAUL_LONG=1`) starts one process a thousand, uses no transfer and little memory, bars
/// nobody's way, and outlives the destination.
#[test]
fn many_holds_cost_nothing() {
    let many: usize = if crate::long() { 100_000 } else { 20_000 };
    let fleet = Fleet::over(Sandbox::in_memory(), &[]);
    let (library, tape) = tape(&fleet.sandbox, &["--submit"]);
    let tape: Vec<&str> = tape.iter().map(String::as_str).collect();
    let (source, mut target) = fleet.pair(&tape, &["--max-transfers", "1"]);
    let mut lines = String::new();
    for n in 0..many {
        let lfn = format!("/t/{}/f{n}", n % 100);
        let path = source.at(&format!("/t/{}", n % 100));
        if n < 100 {
            std::fs::create_dir_all(&path).unwrap();
        }
        std::fs::write(path.join(format!(".f{n}.tape")), "offline 10\n").unwrap();
        lines.push_str(&format!("{}\n", json!({"lfn": lfn, "bytes": 10})));
    }
    let began = std::time::Instant::now();
    let spec = json!({"select": "manifest", "source": {"agents": ["src"]}, "destinations": ["dst"]});
    let id = fleet.request(&spec);
    let path = format!("/v1/requests/{id}/manifest");
    fleet.admin().raw("POST", &path, &[], lines.as_bytes()).unwrap().expect(200);
    fleet.approve(&id);
    let long = Duration::from_secs(900);
    let mut most = 0;
    let mut holding = |target: &Member| {
        wait_for("all are held", long, || {
            most = most.max(target.memory());
            std::thread::sleep(Duration::from_millis(200));
            fleet.view(&id)["counters"]["holding"] == many
        });
    };
    holding(&target);
    let took = began.elapsed();
    wait_for("all are asked of the library", SOON, || mounts(&library).iter().sum::<u64>() == many as u64);
    let given = mounts(&library);
    eprintln!("{many} holds in {took:?}, {} processes, {} MiB at the destination", given.len(), most >> 20);
    assert!(given.len() <= many / 1000, "{} processes: {given:?}", given.len());
    assert_eq!(target.running().transfers().len(), 0, "no transfer was begun for a file on tape");
    assert!(most < 200 << 20, "{most} bytes");
    // Somebody else's file passes all of them.
    source.write("/online", 100_000, 7);
    let other = fleet.active(
        &json!({"select": {"files": ["/online"]}, "source": {"agents": ["src"]}, "destinations": ["dst"], "priority": 0}),
    );
    fleet.becomes(&other, "succeeded");
    // All of it is remembered, and asked of nobody again.
    target.kill();
    target.start(&fleet.sandbox);
    fleet.joined(&target);
    let status = || fleet.admin().get("/v1/agents/dst").expect(200).json()["status"].clone();
    wait_for("the restarted agent knows its holds", SOON, || status()["holding"] == many);
    assert_eq!(fleet.view(&id)["counters"]["holding"], many);
    let last = format!("/t/{}/f{}", (many - 1) % 100, many - 1);
    source.write(&last, 10, 1);
    std::fs::remove_file(source.at(&format!("/t/{}/.f{}.tape", (many - 1) % 100, many - 1))).unwrap();
    wait_for("one that is released arrives", long, || target.at(&last).exists());
    assert_eq!(mounts(&library).len(), given.len());
    let began = std::time::Instant::now();
    fleet.admin().post(&format!("/v1/requests/{id}/cancel"), &Value::Null).expect(200);
    assert!(began.elapsed() < Duration::from_secs(5), "a cancel of all took {:?}", began.elapsed());
    let view = fleet.becomes_within(&id, "cancelled", long);
    assert_eq!((&view["counters"]["cancelled"], &view["counters"]["done"]), (&json!(many - 1), &json!(1)));
}
