//! The failure matrix, as far as it concerns one main and its store: each row a test. What agents do in these rows is
//! played by hand; theirs are tested with theirs. The row of two mains is `two_mains_share_a_file` beside the store, for one
//! host; the row of a clock that jumps is `a_clock_that_jumps_ends_nobody` beside the sweeper, where it can.

use crate::agent::{TestAgent, complete, digest, event, failed};
use crate::http::Client;
use crate::support::{SOON, wait_for};
use crate::world::{Endpoint, World, active, by_manifest, create, files, long, manifest};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A lease that a test can wait for.
const SHORT: &[&str] = &["--lease-secs", "2", "--reattach-secs", "1"];
/// And one with a grace that it does not wait for.
const GRACE: &[&str] = &["--lease-secs", "2", "--reattach-secs", "600"];

/// A main with a source `src`, destinations over one storage, and a client that may all.
struct Stage {
    world: World,
    owner: Client,
    source: TestAgent,
    agents: Vec<TestAgent>,
    _endpoint: Endpoint,
}

impl Stage {
    fn new(flags: &[&str], names: &[&str]) -> Self {
        let world = World::new(flags);
        let endpoint = Endpoint::new(&[]);
        let owner = world.token("ada", &["submitter", "approver"]);
        let source = TestAgent::join(&world, "src", &endpoint.url(), None);
        let join = |name: &&str| TestAgent::join(&world, name, &endpoint.url(), Some("disk"));
        let agents = names.iter().map(join).collect();
        Self { world, owner, source, agents, _endpoint: endpoint }
    }

    fn request(&self, n: usize) -> String {
        active(&self.owner, &by_manifest(&["src"], &self.agents[0].name), files(n))
    }

    fn item(&self, of: &Value) -> Value {
        self.owner.get(&format!("/v1/items/{}", of["item"].as_str().unwrap())).expect(200).json()
    }

    fn kinds(&self, kind: &str) -> Vec<Value> {
        self.owner.events(0).into_iter().filter(|event| event["kind"] == kind).collect()
    }

    /// Heartbeats of everybody but `silent`, until `there`.
    fn beat_until(&self, silent: &[&str], what: &str, mut there: impl FnMut(&Self) -> bool) {
        wait_for(what, SOON, || {
            for agent in self.agents.iter().chain([&self.source]).filter(|agent| !silent.contains(&agent.name.as_str()))
            {
                agent.renew();
            }
            std::thread::sleep(Duration::from_millis(100));
            there(self)
        });
    }
}

/// Client retries its POST after the answer was lost: the same id, one request.
#[test]
fn a_client_that_lost_its_answer_asks_again() {
    let stage = Stage::new(&[], &["dst"]);
    let spec = by_manifest(&["src"], "dst");
    let key = [("idempotency-key", "once")];
    let unread = stage.owner.send_only("POST", "/v1/requests", &key, &spec);
    wait_for("the request is there", SOON, || !stage.owner.all("/v1/requests").is_empty());
    drop(unread);
    let again = stage.owner.ask("POST", "/v1/requests", &key, &spec).expect(201).json();
    let all = stage.owner.all("/v1/requests");
    assert_eq!((all.len(), &all[0]["id"]), (1, &again["id"]));
}

/// Main dies after the commit, before the client has its answer: the request is there, and its key finds it.
#[test]
fn main_dies_after_the_commit_and_before_the_answer() {
    let stage = Stage::new(&[], &["dst"]);
    let spec = by_manifest(&["src"], "dst");
    for round in 0..5 {
        let key = round.to_string();
        let waiting = stage.owner.send_only("POST", "/v1/requests", &[("idempotency-key", &key)], &spec);
        let created = || stage.kinds("request.created");
        wait_for("the request is there", SOON, || created().len() == round + 1);
        stage.world.kill();
        // Never read.
        drop(waiting);
        stage.world.start();
        let id = created()[round]["subject"].clone();
        let again = stage.owner.ask("POST", "/v1/requests", &[("idempotency-key", &key)], &spec).expect(201);
        assert_eq!((&again.json()["id"], again.header("idempotent-replayed")), (&id, Some("true")));
        assert_eq!(stage.owner.all("/v1/requests").len(), round + 1);
    }
}

/// Main dies between a claim and its delivery: the same number gets the same, and the session's items can be looked up.
#[test]
fn main_dies_between_a_claim_and_its_delivery() {
    let mut stage = Stage::new(&[], &["dst"]);
    stage.request(20);
    let lost = stage.agents[0].claim_only(7);
    wait_for("the claim is there", SOON, || stage.kinds("item.claimed").len() == 7);
    stage.world.kill();
    drop(lost);
    stage.world.start();
    let held = stage.agents[0].assignments();
    let again = stage.agents[0].claim(7);
    assert_eq!((again.len(), &again), (7, &held));
    assert_eq!(stage.kinds("item.claimed").len(), 7, "claimed once");
    assert_eq!(stage.agents[0].claim(7).len(), 7, "the next number gets others");
    let items: std::collections::BTreeSet<String> =
        stage.agents[0].held.iter().map(|of| of["item"].to_string()).collect();
    assert_eq!(items.len(), 14);
    stage.agents[0].complete_all();
}

/// Destination dies mid-file and comes back with what its journal has: it keeps that, the rest is given out, and nobody
/// approves again.
#[test]
fn a_destination_that_died_comes_back_to_its_items() {
    let mut stage = Stage::new(&[], &["a", "b"]);
    let id = stage.request(6);
    let had = stage.agents[0].claim(6);
    stage.agents[0].says(event(&had[0], "start"), "accepted");
    let before = stage.agents[0].session.clone();
    stage.agents[0].held.truncate(2);
    let session = stage.agents[0].open();
    assert_eq!(session["kept"], json!([had[0]["item"], had[1]["item"]]));
    let late = json!({"session": before, "reports": [complete(&had[0])]});
    stage.agents[0].patient("POST", "/v1/agents/a/reports", &late).refuses(409, "session is over");
    assert_eq!(stage.item(&had[0])["state"], "transferring");
    assert_eq!(stage.agents[1].claim(9).len(), 4, "what it lost is another's");
    for agent in &mut stage.agents {
        agent.complete_all();
    }
    let view = stage.world.becomes(&id, "succeeded");
    assert_eq!(view["decisions"].as_array().unwrap().len(), 1);
    assert_eq!(stage.item(&had[0])["epoch"], 1, "the claim it had");
}

/// Destination dies after the rename and before its report: said again it counts once.
#[test]
fn a_report_that_is_said_again_counts_once() {
    let mut stage = Stage::new(&[], &["dst"]);
    let id = stage.request(1);
    let of = stage.agents[0].claim(1).remove(0);
    let report = json!({"session": stage.agents[0].session, "reports": [complete(&of)]});
    let unread = stage.agents[0].client.send_only("POST", "/v1/agents/dst/reports", &[], &report);
    wait_for("the report is there", SOON, || stage.item(&of)["state"] == "done");
    stage.world.kill();
    drop(unread);
    stage.world.start();
    stage.agents[0].says(complete(&of), "accepted");
    stage.agents[0].held.push(of.clone());
    assert_eq!(stage.agents[0].open()["kept"], json!([]));
    stage.agents[0].says(complete(&of), "accepted");
    let view = stage.world.becomes(&id, "succeeded");
    assert_eq!((&view["counters"]["done"], &view["counters"]["done_bytes"]), (&json!(1), &json!(10)));
    let file = stage.owner.get("/v1/catalog/file?lfn=/d/0").expect(200).json();
    assert_eq!(file["replicas"].as_array().unwrap().len(), 1);
    assert_eq!((stage.kinds("item.done").len(), stage.kinds("request.succeeded").len()), (1, 1));
}

/// Destination paused past its lease, and its item given to another: whatever the first one still says is worth nothing.
#[test]
fn a_destination_past_its_lease_is_fenced() {
    let mut stage = Stage::new(SHORT, &["a", "b"]);
    let id = stage.request(1);
    let old = stage.agents[0].claim(1).remove(0);
    stage.agents[0].says(event(&old, "start"), "accepted");
    stage.beat_until(&["a"], "its item is queued again", |stage| stage.item(&old)["state"] == "queued");
    let new = stage.agents[1].claim(1).remove(0);
    assert_eq!((&new["item"], new["epoch"].as_u64()), (&old["item"], Some(2)));
    let late = stage.agents[0].try_report(&[complete(&old)]);
    late.refuses(409, "session is over");
    assert_eq!(stage.agents[0].open()["kept"], json!([]), "not its own any more");
    for say in ["complete", "start", "requeue", "fail"] {
        stage.agents[0].says(event(&old, say), "stale_epoch");
    }
    stage.agents[0].says(complete(&new), "stale_epoch");
    stage.agents[1].renew();
    stage.agents[1].says(complete(&new), "accepted");
    stage.world.becomes(&id, "succeeded");
    assert_eq!(stage.kinds("item.done").len(), 1);
}

/// Main itself paused past every lease: nobody could renew, and so nobody is given up for it.
#[test]
fn a_main_that_was_stopped_gives_nobody_up() {
    let mut stage = Stage::new(SHORT, &["a", "b"]);
    stage.request(2);
    let of = stage.agents[0].claim(2);
    for _ in 0..3 {
        stage.world.signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs(5));
        stage.world.signal(Signal::SIGCONT);
        for agent in stage.agents.iter().chain([&stage.source]) {
            agent.renew().expect(200);
        }
    }
    assert!(stage.kinds("agent.lost").is_empty());
    assert!(of.iter().all(|of| stage.item(of)["state"] == "claimed"));
    stage.agents[0].complete_all();
}

/// A source that fails is not asked for that file again while another one has it; nor is the request failed.
#[test]
fn another_source_is_asked_when_one_fails() {
    let mut stage = Stage::new(&[], &["dst"]);
    let mut other = TestAgent::join(&stage.world, "src2", &stage._endpoint.url(), None);
    let id = active(&stage.owner, &by_manifest(&["src", "src2"], "dst"), files(1));
    let first = stage.agents[0].claim(1).remove(0);
    stage.agents[0].says(failed(&first, "source_bad"), "accepted");
    let second = stage.agents[0].claim(1).remove(0);
    assert_ne!(first["source"]["name"], second["source"]["name"]);
    stage.agents[0].says(complete(&second), "accepted");
    stage.world.becomes(&id, "succeeded");
    let path = format!("/v1/items/{}/attempts", first["item"].as_str().unwrap());
    let attempts = stage.owner.get(&path).expect(200).json();
    assert_eq!((&attempts[0]["class"], &attempts[1]["outcome"]), (&json!("source_bad"), &json!("complete")));
    other.open();
}

/// A source says 204 for days: no try is used, it can be seen, another source is thought of, and it ends when it was said to.
#[test]
fn a_hold_uses_no_try_and_can_be_seen() {
    let mut stage = Stage::new(SHORT, &["dst"]);
    TestAgent::join(&stage.world, "src2", &stage._endpoint.url(), None);
    let mut spec = by_manifest(&["src", "src2"], "dst");
    spec["stage_timeout_secs"] = json!(4);
    spec["tries"] = json!(1);
    let id = active(&stage.owner, &spec, files(2));
    let items = stage.agents[0].claim(2);
    for of in &items {
        for _ in 0..20 {
            stage.agents[0].says(event(of, "hold"), "accepted");
        }
    }
    let view = stage.owner.get(&format!("/v1/requests/{id}")).expect(200).json();
    assert_eq!((&view["counters"]["holding"], &view["counters"]["running"]), (&json!(2), &json!(0)));
    let item = stage.item(&items[0]);
    assert!(item["state"] == "hold" && item["hold_since"].is_string() && item["tries"] == 0, "{item}");
    assert!(!stage.kinds("item.hold").is_empty());
    // Given back, so that the other source may win.
    stage.agents[0].says(event(&items[0], "requeue"), "accepted");
    let again = stage.agents[0].claim(1).remove(0);
    assert_ne!(again["source"]["name"], items[0]["source"]["name"]);
    assert_eq!(stage.item(&items[0])["hold_since"], item["hold_since"], "one budget over all claims");
    stage.beat_until(&[], "the hold is over", |stage| stage.item(&items[1])["state"] == "failed");
    let item = stage.item(&items[1]);
    assert!(item["tries"] == 0 && item["reason"].as_str().unwrap().contains("in time"), "{item}");
}

/// A source's file was changed, or came damaged: what is not what the catalog has is not taken, and that source is not asked
/// again.
#[test]
fn a_changed_file_is_not_taken() {
    let mut stage = Stage::new(&[], &["dst"]);
    TestAgent::join(&stage.world, "src2", &stage._endpoint.url(), None);
    let record = |agent: &str| json!({"lfn": "/d/0", "bytes": 10, "digest": digest("/d/0"), "agent": agent});
    let admin = stage.world.admin();
    admin.post("/v1/catalog/records", &json!([record("src"), record("src2")])).expect(200);
    let mut wrong = record("src");
    wrong["bytes"] = json!(11);
    admin.post("/v1/catalog/records", &json!([wrong])).refuses(409, "does not change");
    let id = create(&stage.owner, &json!({"select": {"files": ["/d/0"]}, "destinations": ["dst"]}));
    crate::world::approve(&stage.owner, &stage.world.becomes(&id, "pending_approval"));
    let first = stage.agents[0].claim(1).remove(0);
    assert_eq!(first["digest"], json!(digest("/d/0")), "it is told what to expect");
    let mut other = complete(&first);
    other["digest"] = json!(digest("something else"));
    stage.agents[0].says(other, "illegal");
    assert_eq!(stage.item(&first)["state"], "queued");
    wait_for("it is given out again", SOON, || !stage.agents[0].claim(1).is_empty());
    let second = stage.agents[0].held[0].clone();
    assert_ne!(first["source"]["name"], second["source"]["name"]);
    stage.agents[0].complete_all();
    stage.world.becomes(&id, "succeeded");
    assert_eq!(
        stage.owner.get("/v1/catalog/file?lfn=/d/0").expect(200).json()["replicas"].as_array().unwrap().len(),
        3
    );
}

/// A full destination is one thing to be said of its storage, and not a failure of every file.
#[test]
fn a_full_destination_is_paused_and_fails_nothing() {
    let mut stage = Stage::new(&[], &["a", "b"]);
    let mut spec = by_manifest(&["src"], "a");
    spec["tries"] = json!(1);
    let id = active(&stage.owner, &spec, files(50));
    let of = stage.agents[0].claim(1).remove(0);
    let mut full = failed(&of, "destination_bad");
    full["reason"] = json!("no space left");
    full["retry_after_secs"] = json!(3);
    stage.agents[0].says(full, "accepted");
    assert!(stage.agents[0].claim(50).is_empty() && stage.agents[1].claim(50).is_empty(), "the same storage");
    let seen = stage.owner.get("/v1/agents/b").expect(200).json();
    assert_eq!(seen["paused"]["reason"], "no space left");
    assert_eq!(stage.kinds("agent.paused").len(), 1);
    wait_for("it is tried again", SOON, || !stage.agents[1].claim(50).is_empty());
    while !stage.agents[1].claim(50).is_empty() {}
    stage.agents[1].complete_all();
    let view = stage.world.becomes(&id, "succeeded");
    assert_eq!((&view["counters"]["done"], &view["counters"]["failed"]), (&json!(50), &json!(0)));
}

/// Main and an agent cannot reach each other for a while, within the grace: it comes back to its work, and nothing was
/// given to others.
#[test]
fn a_partition_within_the_grace_changes_nothing() {
    let mut stage = Stage::new(GRACE, &["a", "b"]);
    let id = stage.request(3);
    let items = stage.agents[0].claim(3);
    stage.beat_until(&["a"], "its lease is over", |stage| !stage.kinds("agent.lost").is_empty());
    assert!(stage.agents[1].claim(9).is_empty(), "it may come back");
    assert_eq!(stage.agents[0].renew().refuses(409, "session is over").status, 409);
    let kept = stage.agents[0].open()["kept"].as_array().unwrap().len();
    assert_eq!(kept, 3);
    stage.agents[0].complete_all();
    stage.world.becomes(&id, "succeeded");
    assert!(items.iter().all(|of| stage.item(of)["epoch"] == 1));
}

/// A large request is cancelled when half of it is done: that is acknowledged at once, its agents are told with their next
/// heartbeat, and every number is exact. 20,000 items; a million with `LONGHAUL_LONG=1`.
#[test]
fn a_large_request_is_cancelled_at_half() {
    let mut stage = Stage::new(&[], &["dst"]);
    let all = if long() { 1_000_000 } else { 20_000 };
    let id = create(&stage.owner, &by_manifest(&["src"], "dst"));
    let path = format!("/v1/requests/{id}/manifest");
    let began = Instant::now();
    let lines = manifest((0..all).map(|n| format!("/d/{n}")));
    let (view, longest) = std::thread::scope(|scope| {
        let uploading = scope.spawn(|| stage.owner.raw("POST", &path, &[], lines.as_bytes()).unwrap());
        let mut longest = Duration::ZERO;
        while !uploading.is_finished() {
            let beat = Instant::now();
            stage.agents[0].renew().expect(200);
            stage.source.renew().expect(200);
            longest = longest.max(beat.elapsed());
            std::thread::sleep(Duration::from_millis(200));
        }
        (uploading.join().unwrap().expect(200).json(), longest)
    });
    println!("{all} lines in {:?}, the longest heartbeats beside it {longest:?}", began.elapsed());
    assert!(longest < Duration::from_secs(10), "a third of a lease: {longest:?}");
    crate::world::approve(&stage.owner, &view);
    let mut done = 0;
    while done < all / 2 {
        let given = stage.agents[0].claim(1000);
        let reports: Vec<Value> = given.iter().map(complete).collect();
        stage.agents[0].try_report(&reports).expect(200);
        done += given.len();
        stage.agents[0].held.clear();
        stage.agents[0].renew().expect(200);
        stage.source.renew().expect(200);
    }
    let live = stage.agents[0].claim(500);
    let began = Instant::now();
    let view = stage.owner.post(&format!("/v1/requests/{id}/cancel"), &Value::Null).expect(200).json();
    let acknowledged = began.elapsed();
    assert_eq!((&view["state"], &view["cancelling"]), (&json!("active"), &json!(true)));
    let progress: Vec<Value> =
        live.iter().map(|of| json!({"item": of["item"], "epoch": of["epoch"], "bytes": 0})).collect();
    let renewal =
        json!({"session": stage.agents[0].session, "epoch": stage.agents[0].epoch, "status": {}, "progress": progress});
    let told = stage.agents[0].patient("PUT", "/v1/agents/dst/session", &renewal).expect(200).json();
    assert_eq!(told["stop"].as_array().unwrap().len(), 500);
    for of in &live {
        stage.agents[0].says(event(of, "cancel"), "accepted");
    }
    let view = stage.world.becomes(&id, "cancelled");
    println!("acknowledged after {acknowledged:?}, drained after {:?}", began.elapsed());
    assert!(acknowledged < Duration::from_secs(1), "{acknowledged:?}");
    assert!(began.elapsed() < Duration::from_secs(30), "within a lease: {:?}", began.elapsed());
    let counters = &view["counters"];
    assert_eq!(
        (counters["done"].as_u64(), counters["cancelled"].as_u64()),
        (Some(done as u64), Some((all - done) as u64))
    );
    assert!(["queued", "running", "holding", "failed"].iter().all(|state| counters[state] == 0), "{counters}");
    assert_eq!(stage.owner.all(&format!("/v1/requests/{id}/items?state=cancelled")).len(), all - done);
}
