//! What control requests cost the transfers of the same process.

use crate::http::Client;
use crate::support::{Sandbox, noise};
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const BYTES: usize = 256 << 20;
/// As many as 300 agents with a heartbeat every ten seconds send, and a few people who look.
const PER_SECOND: u64 = 40;

/// Requests of every day at a steady pace while `asked`: lists, one in depth, agents, a new request and its cancel.
fn load(client: &Client, asked: &AtomicBool, over: &AtomicBool, done: &AtomicU64) {
    let spec = json!({"select": {"files": ["/nowhere"]}, "source": {"agents": ["solo"]}, "destinations": ["solo"]});
    let mut next = Instant::now();
    for turn in 0_u64.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        next += Duration::from_millis(1000 / PER_SECOND);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        if !asked.load(Ordering::Relaxed) {
            next = Instant::now();
            continue;
        }
        match turn % 8 {
            0 => {
                let id = client.post("/v1/requests", &spec).expect(201).json()["id"].as_str().unwrap().to_owned();
                client.post(&format!("/v1/requests/{id}/cancel"), &serde_json::Value::Null);
                done.fetch_add(1, Ordering::Relaxed);
            }
            1 | 5 => drop(client.get("/v1/agents").expect(200)),
            2 | 6 => drop(client.get("/v1/agents/solo").expect(200)),
            3 => drop(client.get("/v1/catalog/files?limit=50").expect(200)),
            _ => drop(client.get("/v1/requests?limit=50").expect(200)),
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// With main, source and data path in one process, and no core to spare: 25 interleaved pairs with `LONGHAUL_LONG=1` and then
/// 2 % at most; 5 pairs otherwise, beside other tests, which can show only what is gross.
#[test]
fn control_requests_cost_the_data_path_little() {
    let sandbox = Sandbox::in_memory();
    let agent = sandbox.agent("solo", &["--roles", "main,source,destination", "--name", "solo"]);
    sandbox.write("solo/big", &noise(BYTES, 5));
    let client = Client { port: agent.http, token: agent.token() };
    crate::support::wait_for("it has joined itself", crate::support::SOON, || {
        client.get("/v1/agents/solo").status == 200
    });
    let (asked, over, done) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let (pairs, most) = if crate::long() { (25, 0.02) } else { (5, 0.25) };
    let once = |number: usize| {
        let (from, to) = (agent.url("big"), sandbox.arg(&format!("copy{number}")));
        let words = ["--token-file", &agent.token_file(), "--verify", "wire", &from, &to];
        let took = sandbox.cp(&words).expect(0).number("duration_ns") as f64 / 1e9;
        std::fs::remove_file(sandbox.at(&format!("copy{number}"))).unwrap();
        took
    };
    let (mut quiet, mut loaded, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut busy = 0.0;
    std::thread::scope(|scope| {
        scope.spawn(|| load(&client, &asked, &over, &done));
        once(0);
        for pair in 0..pairs {
            let mut pass = |with: bool| {
                asked.store(with, Ordering::Relaxed);
                let took = once(pair);
                asked.store(false, Ordering::Relaxed);
                busy += if with { took } else { 0.0 };
                took
            };
            // Each comes first as often as second.
            let (without, with) = match pair % 2 {
                0 => (pass(false), pass(true)),
                _ => {
                    let with = pass(true);
                    (pass(false), with)
                }
            };
            quiet.push(without);
            loaded.push(with);
            ratios.push(with / without);
        }
        over.store(true, Ordering::Relaxed);
    });
    let (told, cost) = (done.load(Ordering::Relaxed), median(ratios) - 1.0);
    eprintln!(
        "control load: {:.0} requests a second, {:.3} s against {:.3} s (medians), {:.1} % more",
        told as f64 / busy,
        median(loaded),
        median(quiet),
        cost * 100.0
    );
    assert!(told as f64 / busy > PER_SECOND as f64 / 2.0, "there was no load: {told} in {busy} s");
    assert!(cost <= most, "control requests cost the data path {:.1} %", cost * 100.0);
}
