//! What broke in transfer2go, the forerunner whose roles this service keeps, where it concerns main: each defect a test, in
//! the order of the study. Those of its data path and of its agents' queues are tested with ours.

use crate::agent::{TestAgent, complete, digest, event, failed};
use crate::http::Client;
use crate::support::{SOON, wait_for};
use crate::world::{Endpoint, World, active, approve, by_manifest, create, files, manifest};
use serde_json::{Value, json};

struct Stage {
    world: World,
    owner: Client,
    agent: TestAgent,
    endpoint: Endpoint,
}

fn stage() -> Stage {
    let world = World::new(&[]);
    let endpoint = Endpoint::new(&[]);
    let owner = world.token("ada", &["submitter", "approver"]);
    TestAgent::join(&world, "src", &endpoint.url(), None);
    let agent = TestAgent::join(&world, "dst", &endpoint.url(), None);
    Stage { world, owner, agent, endpoint }
}

impl Stage {
    fn item(&self, of: &Value) -> Value {
        self.owner.get(&format!("/v1/items/{}", of["item"].as_str().unwrap())).expect(200).json()
    }

    fn view(&self, id: &str) -> Value {
        self.owner.get(&format!("/v1/requests/{id}")).expect(200).json()
    }
}

fn named(prefix: &str, n: usize) -> Vec<String> {
    (0..n).map(|n| format!("/{prefix}/{n}")).collect()
}

/// There: the client is acknowledged with an empty answer before anything is stored or looked at.
#[test]
fn defect_00_an_acknowledged_request_has_an_id_and_is_stored() {
    let stage = stage();
    let reply = stage.owner.post("/v1/requests", &by_manifest(&["src"], "dst")).expect(201);
    let location = reply.header("location").unwrap().to_owned();
    stage.world.kill();
    stage.world.start();
    assert_eq!(stage.owner.get(&location).expect(200).json()["id"], reply.json()["id"]);
    assert!(!stage.endpoint.asked.lock().unwrap().is_empty(), "the destination was asked first");
}

/// There: priorities are kept in a heap that nobody takes from.
#[test]
fn defect_01_priority_decides_what_is_next() {
    let mut stage = stage();
    for priority in [2, 9, 5] {
        let mut spec = by_manifest(&["src"], "dst");
        spec["priority"] = json!(priority);
        active(&stage.owner, &spec, named(&priority.to_string(), 3));
    }
    let order: Vec<u64> =
        (0..9).flat_map(|_| stage.agent.claim(1)).map(|of| of["priority"].as_u64().unwrap()).collect();
    assert_eq!(order, [9, 9, 9, 5, 5, 5, 2, 2, 2]);
}

/// There: ten files on tape stop an agent. Here a hold takes nothing from what an agent may claim next.
#[test]
fn defect_02_holds_bar_nobodys_way() {
    let mut stage = stage();
    active(&stage.owner, &by_manifest(&["src"], "dst"), named("tape", 1000));
    for of in stage.agent.claim(1000) {
        stage.agent.says(event(&of, "hold"), "accepted");
    }
    active(&stage.owner, &by_manifest(&["src"], "dst"), named("disk", 10));
    let given = stage.agent.try_claim(1000, "0s").expect(200).json();
    assert_eq!(given.as_array().unwrap().len(), 10);
}

/// There: the pause comes after the next try, so that five tries follow each other at once.
#[test]
fn defect_03_a_pause_comes_before_the_next_try() {
    let mut stage = stage();
    active(&stage.owner, &by_manifest(&["src"], "dst"), files(1));
    let of = stage.agent.claim(1).remove(0);
    let mut report = failed(&of, "transient");
    report.as_object_mut().unwrap().remove("retry_after_secs");
    stage.agent.says(report, "accepted");
    assert!(stage.agent.claim(1).is_empty());
    let item = stage.item(&of);
    assert!(item["not_before"].as_str() > item["changed"].as_str(), "{item}");
    wait_for("the next try", SOON, || !stage.agent.claim(1).is_empty());
}

/// There: a hold ends as an error after 15 minutes, and main never hears of it.
#[test]
fn defect_04_a_hold_may_last_a_week_and_main_knows_of_it() {
    let mut stage = stage();
    let id = active(&stage.owner, &by_manifest(&["src"], "dst"), files(1));
    let of = stage.agent.claim(1).remove(0);
    assert_eq!(stage.view(&id)["spec"]["stage_timeout_secs"], 7 * 24 * 3600);
    let mut hold = event(&of, "hold");
    hold["retry_after_secs"] = json!(90);
    stage.agent.says(hold, "accepted");
    assert_eq!(stage.view(&id)["counters"]["holding"], 1);
    let events = stage.owner.get("/v1/events?after=0&kind=item.hold").expect(200).json();
    assert_eq!(events[0]["data"]["lfn"], "/d/0");
}

/// There: a file that is there already, or a source's odd answer, is tried every minute for ever.
#[test]
fn defect_05_every_item_ends() {
    let mut stage = stage();
    let mut spec = by_manifest(&["src"], "dst");
    spec["tries"] = json!(3);
    let id = active(&stage.owner, &spec, files(3));
    let items = stage.agent.claim(3);
    stage.agent.says(event(&items[0], "skip"), "accepted");
    stage.agent.says(failed(&items[1], "permanent"), "accepted");
    stage.agent.says(failed(&items[2], "transient"), "accepted");
    let mut tries = 1;
    while let Some(of) = stage.agent.claim(1).pop() {
        tries += 1;
        stage.agent.says(failed(&of, "transient"), "accepted");
    }
    assert_eq!(tries, 3);
    let view = stage.world.becomes(&id, "partial");
    assert_eq!((&view["counters"]["skipped"], &view["counters"]["failed"]), (&json!(1), &json!(2)));
}

/// There: the first finished file of a dataset finishes all of it, or no file ever does.
#[test]
fn defect_06_a_request_ends_with_its_last_item() {
    let mut stage = stage();
    let id = active(&stage.owner, &by_manifest(&["src"], "dst"), files(3));
    for of in stage.agent.claim(3) {
        assert_eq!(stage.view(&id)["state"], "active");
        stage.agent.says(complete(&of), "accepted");
    }
    let view = stage.view(&id);
    assert_eq!((&view["state"], &view["counters"]["done"]), (&json!("succeeded"), &json!(3)));
}

/// There: what was received is not compared with the catalog, and files of one name in two directories overwrite each other.
#[test]
fn defect_09_digests_are_compared_and_names_are_whole() {
    let mut stage = stage();
    let id = create(&stage.owner, &by_manifest(&["src"], "dst"));
    let line = |lfn: &str| format!("{}\n", json!({"lfn": lfn, "bytes": 10, "digest": digest(lfn)}));
    let lines = [line("/a/f"), line("/b/f")].concat();
    let path = format!("/v1/requests/{id}/manifest");
    approve(&stage.owner, &stage.owner.raw("POST", &path, &[], lines.as_bytes()).unwrap().expect(200).json());
    let items = stage.agent.claim(2);
    assert_eq!((&items[0]["path"], &items[1]["path"]), (&json!("/a/f"), &json!("/b/f")));
    let mut swapped = complete(&items[0]);
    swapped["digest"] = json!(digest("/b/f"));
    stage.agent.says(swapped, "illegal");
    stage.agent.says(complete(&items[1]), "accepted");
    assert_eq!(stage.world.becomes(&id, "partial")["counters"]["done"], 1);
    let wrong = stage.owner.get("/v1/catalog/file?lfn=/a/f");
    assert!(wrong.status == 404 || wrong.json()["replicas"] == json!([]), "{wrong:?}");
}

/// There: a file that nobody knows is "not ready", for ever.
#[test]
fn defect_10_what_does_not_exist_is_not_waited_for() {
    let stage = stage();
    let ask = |select: Value| create(&stage.owner, &json!({"select": select, "destinations": ["dst"]}));
    let failed = stage.world.becomes(&ask(json!({"files": ["/no/such"]})), "failed");
    assert!(failed["reason"].as_str().unwrap().contains("/no/such is not in the catalog"), "{failed}");
    let failed = stage.world.becomes(&ask(json!({"dataset": "/no/such"})), "failed");
    assert!(failed["reason"].as_str().unwrap().contains("no files"), "{failed}");
    stage.owner.get("/v1/catalog/file?lfn=/no/such").refuses(404, "no such file");
}

/// There: deleting an approved request does not reach its destination, approving twice transfers twice, and an unknown
/// request can be approved.
#[test]
fn defect_11_stops_reach_agents_and_approval_has_one_effect() {
    let mut stage = stage();
    let id = active(&stage.owner, &by_manifest(&["src"], "dst"), files(2));
    let of = stage.agent.claim(1).remove(0);
    let path = format!("/v1/requests/{id}");
    let view = stage.view(&id);
    let decision = json!({"decision": "approve", "digest": view["digest"]});
    let tag = format!("\"{}\"", view["version"]);
    let again = |path: &str| stage.owner.ask("POST", &format!("{path}/approval"), &[("if-match", &tag)], &decision);
    again(&path).refuses(409, "nothing to decide");
    again("/v1/requests/req_00000000000000000000000000000000").refuses(404, "no such request");
    let items = stage.owner.all(&format!("{path}/items"));
    assert_eq!(items.len(), 2);

    stage.owner.ask("DELETE", &path, &[], &Value::Null).refuses(409, "cancel it first");
    stage.owner.post(&format!("{path}/cancel"), &Value::Null).expect(200);
    assert_eq!(stage.agent.renew().expect(200).json()["stop"], json!([of["item"]]), "its agent is told");
    assert!(stage.agent.try_claim(5, "0s").expect(200).json().as_array().unwrap().is_empty());
    stage.agent.says(event(&of, "cancel"), "accepted");
    assert_eq!(stage.world.becomes(&id, "cancelled")["counters"]["cancelled"], 2);
    stage.owner.ask("DELETE", &path, &[], &Value::Null).expect(204);
    stage.owner.get(&path).refuses(404, "no such request");
}

/// There: what was accepted lives in memory, and a crash forgets it.
#[test]
fn defect_12_a_crash_forgets_nothing() {
    let mut stage = stage();
    let ids: Vec<String> =
        (0..5).map(|n| active(&stage.owner, &by_manifest(&["src"], "dst"), named(&format!("r{n}"), 4))).collect();
    let held = stage.agent.claim(7);
    let waiting = create(&stage.owner, &by_manifest(&["src"], "dst"));
    stage.world.kill();
    stage.world.start();
    assert_eq!(stage.agent.assignments(), held);
    stage.agent.claim(1000);
    stage.agent.complete_all();
    for id in &ids {
        stage.world.becomes(id, "succeeded");
    }
    let path = format!("/v1/requests/{waiting}/manifest");
    stage.owner.raw("POST", &path, &[], manifest(files(1)).as_bytes()).unwrap().expect(200);
}

/// There: an error of the database ends the agent. Here it is said, nothing is lost, and it goes on when the database does.
#[test]
fn defect_13_a_store_that_fails_is_survived() {
    let stage = stage();
    let before = stage.owner.all("/v1/requests").len();
    let file = stage.world.sandbox.at("main.state/main/main.db");
    let held = rusqlite::Connection::open(&file).unwrap();
    held.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused =
        stage.owner.post("/v1/requests", &by_manifest(&["src"], "dst")).refuses(503, "the store cannot do it now");
    assert!(refused.header("retry-after").is_some() && !refused.body.contains("main.db"), "{refused:?}");
    assert_eq!(stage.owner.all("/v1/requests").len(), before, "reading goes on, and nothing was made");
    held.execute_batch("ROLLBACK").unwrap();
    drop(held);
    create(&stage.owner, &by_manifest(&["src"], "dst"));
    assert!(stage.world.log().contains("another process holds it"), "{}", stage.world.log());
}
