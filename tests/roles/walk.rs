//! A request from its placing to the catalogs.

use crate::fleet::{Files, Fleet, Member, dataset};
use crate::support::{left_over, noise};
use serde_json::json;

/// Sizes around every border: empty, one byte, a small one, a chunk and one more, one that travels alone.
const SIZES: [usize; 7] = [0, 1, 4096, 4097, 4 << 20, (4 << 20) + 1, (64 << 20) + 7];

fn some_files(member: &Member, below: &str) -> Files {
    let one = |(n, &bytes): (usize, &usize)| {
        let lfn = format!("{below}/{}/f{n}", n % 2);
        member.write(&lfn, bytes, n as u64 + 1);
        (lfn, bytes as u64)
    };
    SIZES.iter().enumerate().map(one).collect()
}

/// Three processes: registered, asked for, approved, pulled, verified, in both catalogs; asked for again, nothing moves.
#[test]
fn a_dataset_is_pulled_verified_and_in_both_catalogs() {
    let fleet = Fleet::new(&[]);
    let (source, target) = fleet.pair(&[], &[]);
    let files = some_files(&source, "/run7");
    fleet.register(&source, "/cosmics", &files);
    let id = fleet.request(&dataset("/cosmics", "dst"));
    fleet.becomes(&id, "pending_approval");
    assert!(!target.at("/run7").exists(), "nothing moves before somebody has said yes");
    fleet.approve(&id);
    let view = fleet.becomes(&id, "succeeded");
    assert_eq!(view["counters"]["done"], files.len());
    for (n, (lfn, bytes)) in files.iter().enumerate() {
        assert!(target.read(lfn) == noise(*bytes as usize, n as u64 + 1), "{lfn}");
        assert_eq!(fleet.replicas(lfn), ["dst", "src"], "{lfn}");
    }
    let own = target.admin().all("/v1/local/catalog");
    assert_eq!(own.len(), files.len());
    for known in &own {
        let lfn = known["lfn"].as_str().unwrap();
        let path = format!("/v1/catalog/file?lfn={}", crate::support::percent(lfn.as_bytes()));
        let central = fleet.admin().get(&path).expect(200).json();
        assert_eq!((&known["digest"], &known["bytes"]), (&central["digest"], &central["bytes"]), "{lfn}");
        assert!(known["digest"].is_string() && known["block"] == "/cosmics#1", "{known}");
    }
    assert_eq!(left_over(&target.root), Vec::<std::path::PathBuf>::new());
    // What is there already is skipped, by proof.
    let again = fleet.active(&dataset("/cosmics", "dst"));
    let view = fleet.becomes(&again, "succeeded");
    assert_eq!((&view["counters"]["skipped"], &view["counters"]["done"]), (&json!(files.len()), &json!(0)));
}

/// All three roles in one process, which reaches itself as it would reach another.
#[test]
fn one_agent_with_all_roles_serves_itself() {
    let sandbox = crate::support::Sandbox::in_memory();
    let agent = sandbox.agent("solo", &["--roles", "main,source,destination", "--name", "solo"]);
    let client = crate::http::Client { port: agent.http, token: agent.token() };
    let content = noise(100_000, 3);
    sandbox.write("solo/a/f", &content);
    let spec =
        json!({"select": {"prefix": "/a"}, "source": {"agents": ["solo"]}, "destinations": ["solo"], "path": "/b"});
    let mut id = None;
    crate::support::wait_for("the agent has joined itself", crate::support::SOON, || {
        let reply = client.post("/v1/requests", &spec);
        id = (reply.status == 201).then(|| reply.json()["id"].as_str().unwrap().to_owned());
        id.is_some()
    });
    let path = format!("/v1/requests/{}", id.unwrap());
    let view = || client.get(&path).expect(200).json();
    crate::support::wait_for("it is resolved", crate::support::SOON, || view()["state"] == "pending_approval");
    let seen = view();
    let tag = format!("\"{}\"", seen["version"]);
    let decision = json!({"decision": "approve", "digest": seen["digest"]});
    client.ask("POST", &format!("{path}/approval"), &[("if-match", &tag)], &decision).expect(200);
    crate::support::wait_for("it has succeeded", crate::support::SOON, || view()["state"] == "succeeded");
    assert!(std::fs::read(sandbox.at("solo/b/a/f")).unwrap() == content);
}

/// What the source resolves from a prefix goes below the path that was asked for, with its tree.
#[test]
fn a_prefix_keeps_its_tree_and_equal_names_do_not_meet() {
    let fleet = Fleet::new(&[]);
    let (source, target) = fleet.pair(&[], &[]);
    for n in 0..30 {
        source.write(&format!("/p/{n}/same.root"), 1000 + n, n as u64 + 1);
    }
    let spec =
        json!({"select": {"prefix": "/p"}, "source": {"agents": ["src"]}, "destinations": ["dst"], "path": "/in/here"});
    let id = fleet.active(&spec);
    assert_eq!(fleet.becomes(&id, "succeeded")["counters"]["done"], 30);
    for n in 0..30 {
        assert!(target.read(&format!("/in/here/p/{n}/same.root")) == noise(1000 + n, n as u64 + 1), "{n}");
    }
}
