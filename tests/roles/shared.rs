//! Two destinations over one storage: whoever is gone is taken over, at his checkpoint, under a higher epoch, and never are
//! there two writers of one file.

use crate::fleet::{Fleet, Member, dataset};
use crate::support::{SOON, left_over, noise, wait_durable, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 200 * MIB;

/// What a kill may cost: DESIGN, rules. As many streams as an agent opens on loopback, at most.
fn resend_bound() -> u64 {
    8 * (4 * MIB + 2 * MIB) + longhaul::limits::commit_window(SIZE)
}

struct Stage {
    fleet: Fleet,
    source: Member,
    first: Member,
    second: Member,
}

fn stage() -> Stage {
    let fleet = Fleet::new(&["--lease-secs", "3", "--reattach-secs", "1"]);
    let source = fleet.member("src", "source", &[]);
    let first = fleet.member_over("one", "store", "destination", &["--storage", "store"]);
    let second = fleet.member_over("two", "store", "destination", &["--storage", "store"]);
    fleet.introduce(&[&source, &first, &second]);
    [&source, &first, &second].into_iter().for_each(|member| fleet.joined(member));
    source.write("/big/file", SIZE as usize, 11);
    fleet.register(&source, "/big", &vec![("/big/file".to_owned(), SIZE)]);
    Stage { fleet, source, first, second }
}

impl Stage {
    /// A request to the first, slow enough to be met in its middle; where it is then. Whoever has it is told apart.
    fn at_half(&self) -> String {
        let mut spec = dataset("/big", "one");
        spec["max_rate"] = json!(400_000_000);
        let id = self.fleet.active(&spec);
        wait_durable(&self.first.root.join("big"), SIZE / (4 * MIB) / 2);
        id
    }

    /// Who works on the request's one item.
    fn worker(&self, id: &str) -> String {
        let item = self.fleet.items(id).remove(0);
        self.fleet.attempts(&item).last().unwrap()["agent"].as_str().unwrap().to_owned()
    }

    fn over(&self, id: &str) -> Vec<Value> {
        let view = self.fleet.becomes_within(id, "succeeded", Duration::from_secs(180));
        assert_eq!((&view["counters"]["done"], &view["counters"]["done_bytes"]), (&json!(1), &json!(SIZE)));
        assert!(self.first.read("/big/file") == noise(SIZE as usize, 11));
        let names: Vec<_> =
            std::fs::read_dir(self.first.root.join("big")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["file"], "one final file");
        wait_for("nothing is left over", SOON, || left_over(&self.first.root).is_empty());
        let item = self.fleet.items(id).remove(0);
        self.fleet.attempts(&item)
    }
}

#[test]
fn one_is_killed_at_half_and_the_other_finishes() {
    let mut stage = stage();
    let id = stage.at_half();
    // Either may have claimed it: they are interchangeable.
    let (other, dead) = match stage.worker(&id).as_str() {
        "one" => ("two", &mut stage.first),
        _ => ("one", &mut stage.second),
    };
    dead.kill();
    let attempts = stage.over(&id);
    let who: Vec<_> = attempts.iter().map(|a| a["agent"].as_str().unwrap()).collect();
    let epochs: Vec<_> = attempts.iter().map(|a| a["epoch"].as_u64().unwrap()).collect();
    assert!(who.last() == Some(&other) && epochs.is_sorted() && epochs.len() >= 2, "{attempts:#?}");
    let sent = stage.source.sent();
    eprintln!("sent {} MiB for {} MiB, bound {} MiB more", sent / MIB, SIZE / MIB, resend_bound() / MIB);
    assert!(sent <= SIZE + resend_bound(), "{sent} bytes were sent");
}

/// Stopped beyond its lease with the file half written: the other waits for its lock, gets the file when it lets go, and
/// what the first one thinks of it then counts for nothing.
#[test]
fn one_is_stopped_past_its_lease_and_comes_back() {
    let stage = stage();
    let id = stage.at_half();
    let (stopped, other) = match stage.worker(&id).as_str() {
        "one" => (&stage.first, "two"),
        _ => (&stage.second, "one"),
    };
    stopped.signal(Signal::SIGSTOP);
    wait_for("the other one has it", Duration::from_secs(60), || stage.worker(&id) == other);
    std::thread::sleep(Duration::from_secs(4));
    assert!(!stage.first.at("/big/file").exists(), "nobody writes what another has the lock of");
    stopped.signal(Signal::SIGCONT);
    let attempts = stage.over(&id);
    assert_eq!(attempts.last().unwrap()["outcome"], "complete");
    let done = attempts.iter().filter(|a| a["outcome"] == "complete").count();
    assert_eq!(done, 1, "{attempts:#?}");
    let known = |member: &Member| member.admin().all("/v1/local/catalog").len();
    assert!(known(&stage.first) + known(&stage.second) >= 1);
}
