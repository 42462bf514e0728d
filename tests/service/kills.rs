//! Main is killed at random while clients ask, agents work and a follower follows. What was acknowledged is there, nothing
//! comes twice to a visible end, no event is missed.

use crate::agent::{TestAgent, complete, event, failed, patient};
use crate::http::Client;
use crate::world::{Endpoint, World, by_manifest, long, manifest};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Files of one request.
const FILES: usize = 5;

/// What a client was told.
struct Acked {
    key: String,
    spec: Value,
    id: String,
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Asks, uploads, approves, and takes no answer for one until it comes.
fn submit(client: &Client, number: usize, stop: &AtomicBool, acked: &Mutex<Vec<Acked>>) {
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let key = format!("{number}-{n}");
        let mut spec = by_manifest(&["src"], "a");
        spec["tries"] = json!(100);
        spec["priority"] = json!(n % 3);
        let body = spec.to_string();
        let made = patient(client, "POST", "/v1/requests", &[("idempotency-key", &key)], body.as_bytes()).expect(201);
        let id = made.json()["id"].as_str().unwrap().to_owned();
        let path = format!("/v1/requests/{id}");
        let view = || patient(client, "GET", &path, &[], b"").expect(200).json();
        let lines = manifest((0..FILES).map(|file| format!("/k{number}/{n}/{file}")));
        // A refusal says that an upload whose answer was lost had been taken, or that it still runs.
        while view()["state"] == "resolving" {
            patient(client, "POST", &format!("{path}/manifest"), &[], lines.as_bytes());
        }
        loop {
            let view = view();
            if view["state"] != "pending_approval" {
                break;
            }
            let decision = json!({"decision": "approve", "digest": view["digest"]}).to_string();
            let tag = format!("\"{}\"", view["version"]);
            patient(client, "POST", &format!("{path}/approval"), &[("if-match", &tag)], decision.as_bytes());
        }
        acked.lock().unwrap().push(Acked { key, spec, id });
    }
}

/// Works until there is nothing left to do: completes, fails, holds, forgets. Each accepted end is told with its epoch.
fn work(agent: &mut TestAgent, seed: u64, over: &AtomicBool, ends: &Mutex<Vec<(String, u64)>>) {
    let mut dice = Dice(seed);
    loop {
        let claimed = agent.try_claim(7, "500ms");
        match claimed.status {
            200 => drop(agent.take(&claimed)),
            409 => drop(agent.open()),
            _ => panic!("{claimed:?}"),
        }
        if agent.held.is_empty() && over.load(Ordering::SeqCst) {
            return;
        }
        if dice.roll(12) == 0 {
            // It crashed and has lost some: those are given out again.
            agent.held.retain(|_| dice.roll(3) > 0);
            agent.open();
        }
        let reports: Vec<Value> = agent
            .held
            .iter()
            .filter_map(|of| match dice.roll(12) {
                0 => Some(failed(of, "transient")),
                1 => Some(event(of, "hold")),
                2 => Some(event(of, "start")),
                3 => None,
                _ => Some(complete(of)),
            })
            .collect();
        if reports.is_empty() {
            continue;
        }
        let reply = agent.try_report(&reports);
        if reply.status == 409 {
            agent.open();
            continue;
        }
        let outcomes = reply.expect(200).json();
        for (report, outcome) in reports.iter().zip(outcomes.as_array().unwrap()) {
            let (kind, taken) = (report["event"].as_str().unwrap(), outcome == "accepted");
            if kind == "complete" && taken {
                ends.lock()
                    .unwrap()
                    .push((report["item"].as_str().unwrap().to_owned(), report["epoch"].as_u64().unwrap()));
            }
            if !taken || matches!(kind, "complete" | "requeue") {
                agent.held.retain(|of| of["item"] != report["item"] || of["epoch"] != report["epoch"]);
            }
        }
    }
}

/// Follows from the beginning, again and again from the last event it saw, until `last` says where the end is.
fn follow(client: &Client, last: &Mutex<Option<i64>>, seen: &mut Vec<i64>) {
    let done = |seen: &[i64]| last.lock().unwrap().is_some_and(|last| seen.last() >= Some(&last));
    while !done(seen) {
        let Ok(feed) = client.follow("/v1/events", seen.last().copied().unwrap_or(0)) else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        for event in feed {
            seen.push(event["id"].as_i64().unwrap());
            if done(seen) {
                return;
            }
        }
    }
}

/// Lets the threads of a test end, however it ends.
struct Release<'a> {
    stop: &'a AtomicBool,
    over: &'a AtomicBool,
    last: &'a Mutex<Option<i64>>,
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.over.store(true, Ordering::SeqCst);
        self.last.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(0);
    }
}

/// 10 kills; 200 with `LONGHAUL_LONG=1`.
#[test]
fn main_is_killed_under_load_and_nothing_is_lost_or_done_twice() {
    let kills = if long() { 200 } else { 10 };
    let world = World::new(&[]);
    let endpoint = Endpoint::new(&[]);
    let clients: Vec<Client> = (0..2).map(|n| world.token(&format!("user{n}"), &["submitter", "approver"])).collect();
    let viewer = world.token("viewer", &["viewer"]);
    let source = TestAgent::join(&world, "src", &endpoint.url(), None);
    let mut agents = ["a", "b"].map(|name| TestAgent::join(&world, name, &endpoint.url(), Some("disk")));
    let (stop, over, acked, ends) =
        (AtomicBool::new(false), AtomicBool::new(false), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let (mut seen, last) = (Vec::new(), Mutex::new(None));

    std::thread::scope(|scope| {
        let _release = Release { stop: &stop, over: &over, last: &last };
        let following = scope.spawn(|| follow(&viewer, &last, &mut seen));
        let submitting: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(number, client)| {
                let (stop, acked) = (&stop, &acked);
                scope.spawn(move || submit(client, number, stop, acked))
            })
            .collect();
        let working: Vec<_> = agents
            .iter_mut()
            .zip([3, 4])
            .map(|(agent, seed)| {
                let (over, ends) = (&over, &ends);
                scope.spawn(move || work(agent, seed, over, ends))
            })
            .collect();
        let beating = scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                source.renew().expect(200);
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        let mut dice = Dice(1);
        for _ in 0..kills {
            std::thread::sleep(Duration::from_millis(5 + dice.roll(250)));
            world.kill();
            world.start();
        }
        stop.store(true, Ordering::SeqCst);
        submitting.into_iter().for_each(|thread| thread.join().unwrap());
        for request in acked.lock().unwrap().iter() {
            world.becomes(&request.id, "succeeded");
        }
        over.store(true, Ordering::SeqCst);
        working.into_iter().for_each(|thread| thread.join().unwrap());
        beating.join().unwrap();
        *last.lock().unwrap() = viewer.events(0).last().map(|event| event["id"].as_i64().unwrap());
        // Something more to be told, in case that the follower is there already and waits.
        world.admin().post("/v1/agents/src/drain", &json!({"draining": true})).expect(200);
        following.join().unwrap();
    });

    // What is on disk counts, not what some process remembers.
    world.stop();
    world.start();
    let (acked, ends) = (acked.into_inner().unwrap(), ends.into_inner().unwrap());
    println!("COUNT kills_of_main={kills} requests_acknowledged={} items_completed={}", acked.len(), ends.len());
    assert!(acked.len() >= kills / 2, "{} requests", acked.len());
    let mut epochs: BTreeMap<&str, u64> = BTreeMap::new();
    for (item, epoch) in &ends {
        assert_eq!(*epochs.entry(item).or_insert(*epoch), *epoch, "{item} was completed under two claims");
    }
    let mut lfns = BTreeSet::new();
    for Acked { key, spec, id } in &acked {
        let client = &clients[key[..1].parse::<usize>().unwrap()];
        let again = client.ask("POST", "/v1/requests", &[("idempotency-key", key)], spec).expect(201);
        assert_eq!(&again.json()["id"], id, "the key {key}");
        let view = again.json();
        assert_eq!((&view["state"], &view["decisions"].as_array().unwrap().len()), (&json!("succeeded"), &1), "{view}");
        let items = client.all(&format!("/v1/requests/{id}/items"));
        assert_eq!((items.len(), view["counters"]["done"].as_u64()), (FILES, Some(FILES as u64)));
        for item in items {
            let attempts =
                client.get(&format!("/v1/items/{}/attempts", item["id"].as_str().unwrap())).expect(200).json();
            let complete: Vec<_> = attempts.as_array().unwrap().iter().filter(|a| a["outcome"] == "complete").collect();
            assert_eq!(complete.len(), 1, "{attempts}");
            assert_eq!(epochs.get(item["id"].as_str().unwrap()).copied(), complete[0]["epoch"].as_u64());
            assert!(lfns.insert(item["lfn"].as_str().unwrap().to_owned()));
        }
    }
    let events = viewer.events(0);
    let mut done: BTreeMap<&str, usize> = BTreeMap::new();
    for event in events.iter().filter(|event| event["kind"] == "item.done") {
        *done.entry(event["data"]["item"].as_str().unwrap()).or_default() += 1;
    }
    assert!(done.len() >= acked.len() * FILES && done.values().all(|times| *times == 1), "an end is told once");
    // Restarts tell of nothing: what was followed is all, in order, none twice.
    let all: Vec<i64> = events.iter().map(|event| event["id"].as_i64().unwrap()).collect();
    assert_eq!(seen, all[..seen.len()]);
    assert!(seen.last().copied() >= last.into_inner().unwrap(), "{} of {} events were followed", seen.len(), all.len());
    world.stop();
    let store = rusqlite::Connection::open(world.sandbox.at("main.state/main/main.db")).unwrap();
    let check: String = store.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
}
