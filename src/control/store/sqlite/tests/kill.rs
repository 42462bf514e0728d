//! A process that works on the store is killed again and again: what it was told is done is there.

use super::*;
use crate::control::model::request::Verdict;
use crate::control::store::Idempotency;
use crate::control::store::conformance::kit::{actor, complete, named, new_item, spec_from};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const DIR: &str = "LONGHAUL_TEST_STORE";

/// What the child works through, over and over; each line is written after the store has answered.
async fn work(dir: &Path) {
    let clock = HandClock::default();
    let kit = Kit { store: SqliteStore::open(dir, clock.clock()).unwrap(), clock };
    kit.agent("src", None).await;
    // What the one before had is given back: it named nothing.
    let dst = kit.agent("dst", None).await;
    let first = kit.store.last_event().await.unwrap();
    for n in 0.. {
        let key = Idempotency { key: format!("{first}-{n}"), owner: "ada".into(), body: [1; 32] };
        let id =
            kit.store.create_request(actor(), spec_from("dst", &["src"]), Some(key.clone())).await.unwrap().request.id;
        println!("ack request {id} {}", key.key);
        let items = (0..4).map(|file| new_item(usize::try_from(first).unwrap() * 1000 + n * 4 + file, "dst")).collect();
        kit.store.add_items(id, items).await.unwrap();
        println!("ack items {id}");
        let view = kit.store.resolved(id, Resolution::NeedsApproval("ask".into())).await.unwrap();
        kit.decide(&view, Verdict::Approve).await;
        println!("ack approval {id}");
        for item in kit.pulls("dst", &dst, n as u64 + 1, 3).await {
            println!("ack claim {} {}", item.item, item.epoch);
            assert_eq!(kit.report("dst", &dst, complete(&item)).await, ReportOutcome::Accepted);
            println!("ack done {}", item.item);
        }
    }
}

#[tokio::test]
#[ignore = "the child of a_killed_process_loses_nothing"]
async fn child() {
    work(Path::new(&std::env::var_os(DIR).expect("run by its parent"))).await;
}

#[tokio::test]
async fn a_killed_process_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let name = format!("{}::child", module_path!().split_once("::").unwrap().1);
    let (mut lines, mut done) = (0, std::collections::BTreeSet::new());
    for round in 0..if long() { 200_u64 } else { 20 } {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", &name, "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        while !said.contains("ack ") {
            said.clear();
            assert!(out.read_line(&mut said).unwrap() > 0, "the child ended by itself");
        }
        let first = said.clone();
        // From right after its first answer to well into its work.
        tokio::time::sleep(Duration::from_micros(round.wrapping_mul(0x9e37_79b9) % 60_000)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let rest: Vec<String> = out.lines().map_while(Result::ok).collect();
        let kit = Kit { store: SqliteStore::open(dir.path(), Clock::system()).unwrap(), clock: HandClock::default() };
        // The line that begins after libtest's own words is one of ours.
        let ours =
            std::iter::once(first).chain(rest).filter_map(|line| line.split_once("ack ").map(|(_, l)| l.to_owned()));
        for line in ours {
            let words: Vec<&str> = line.split_whitespace().collect();
            lines += 1;
            match words[..] {
                ["request", id, key] => {
                    assert_eq!(kit.store.request(named(id)).await.unwrap().id, named(id));
                    let key = Idempotency { key: key.into(), owner: "ada".into(), body: [1; 32] };
                    // The child's clock stands in the past, so its keys are over by ours.
                    assert!(kit.store.replay(key).await.is_ok());
                }
                ["items", id] => assert_eq!(kit.counted(named(id)).await.counters.files, 4),
                ["approval", id] => {
                    let request = kit.counted(named(id)).await;
                    assert_eq!(request.decisions.len(), 1, "{request:?}");
                }
                ["claim", item, epoch] => {
                    let attempts = kit.store.attempts(named(item)).await.unwrap();
                    assert!(attempts.iter().any(|a| a.epoch.to_string() == epoch), "{item} {epoch}");
                }
                ["done", item] => drop(done.insert(named::<ItemId>(item))),
                // The last line may be cut off.
                _ => {}
            }
        }
        for item in &done {
            let item = kit.store.item(*item).await.unwrap();
            assert_eq!(item.state, ItemState::Done, "done is done, also after later kills");
            assert!(kit.store.file(item.lfn).await.unwrap().replicas.iter().any(|r| r.agent == named("dst")));
        }
    }
    assert!(lines > 40 && !done.is_empty(), "the children did no work: {lines} lines");
    let check = Connection::open(dir.path().join(FILE)).unwrap();
    let found: String = check.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(found, "ok");
}
