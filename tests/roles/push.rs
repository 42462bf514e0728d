//! The source uploads: agents of each other, and plain clients.

use crate::fleet::{Files, Fleet, Member};
use crate::http::{Client, Reply};
use crate::support::{SOON, left_over, noise, wait_for};
use serde_json::{Value, json};
use std::process::Command;

struct Stage {
    fleet: Fleet,
    source: Member,
    target: Member,
}

fn stage() -> Stage {
    let fleet = Fleet::new(&[]);
    let (source, target) = fleet.pair(&[], &[]);
    Stage { fleet, source, target }
}

#[test]
fn a_source_pushes_and_the_destination_registers() {
    let stage = stage();
    let sizes = [0, 1, 5000, (4 << 20) + 1, 70 << 20];
    let one = |(n, bytes): (usize, &usize)| {
        let lfn = format!("/push/d{}/f{n}", n % 2);
        stage.source.write(&lfn, *bytes, n as u64 + 1);
        (lfn, *bytes as u64)
    };
    let files: Files = sizes.iter().enumerate().map(one).collect();
    stage.fleet.register(&stage.source, "/push", &files);
    let spec = json!({"select": {"dataset": "/push"}, "destinations": ["dst"], "model": "push", "path": "/got"});
    let id = stage.fleet.active(&spec);
    assert_eq!(stage.fleet.becomes(&id, "succeeded")["counters"]["done"], files.len());
    for (n, (lfn, bytes)) in files.iter().enumerate() {
        assert!(stage.target.read(&format!("/got{lfn}")) == noise(*bytes as usize, n as u64 + 1), "{lfn}");
        assert_eq!(stage.fleet.replicas(lfn), ["dst", "src"]);
    }
    let known = stage.target.admin().all("/v1/local/catalog");
    assert_eq!(known.len(), files.len());
    assert!(known.iter().all(|k| k["digest"].is_string() && k["block"] == "/push#1"), "{known:#?}");
    let item = stage.fleet.items(&id).remove(0);
    assert_eq!(stage.fleet.attempts(&item)[0]["agent"], "src");
    assert_eq!(left_over(&stage.target.root), Vec::<std::path::PathBuf>::new());
}

/// What the catalog knows otherwise gets no name at the destination, and nobody tries for ever.
#[test]
fn a_push_of_other_bytes_than_the_catalogs_is_refused() {
    let stage = stage();
    stage.source.write("/f", 5000, 1);
    let record = json!([{"lfn": "/f", "bytes": 5000, "agent": "src", "digest": "00112233445566778899aabbccddeeff"}]);
    stage.fleet.admin().post("/v1/catalog/records", &record);
    let spec = json!({"select": {"files": ["/f"]}, "destinations": ["dst"], "model": "push"});
    let id = stage.fleet.active(&spec);
    let view = stage.fleet.becomes(&id, "failed");
    assert_eq!(view["counters"]["failed"], 1);
    assert!(!stage.target.at("/f").exists());
    let item = stage.fleet.items(&id).remove(0);
    assert_eq!(stage.fleet.attempts(&item)[0]["class"], "integrity", "{item:#}");
}

fn begin(client: &Client, spec: &Value) -> String {
    let begun = client.post("/v1/uploads", spec).expect(201);
    let id = begun.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(begun.header("location"), Some(format!("/v1/uploads/{id}").as_str()));
    id
}

fn bring(client: &Client, id: &str, offset: u64, bytes: &[u8]) -> Reply {
    let offset = offset.to_string();
    client.raw("PATCH", &format!("/v1/uploads/{id}"), &[("upload-offset", &offset)], bytes).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

/// In pieces, over a kill of the agent, with a checksum that any client can make; then it is in both catalogs.
#[test]
fn a_plain_client_uploads_in_pieces_over_a_restart() {
    let mut stage = stage();
    let content = noise((6 << 20) + 77, 5);
    let client = stage.target.admin();
    let spec = json!({
        "lfn": "/new/file", "bytes": content.len(), "digest": format!("sha256:{}", sha256(&content)),
        "dataset": "/new", "block": "/new#1",
    });
    let id = begin(&client, &spec);
    let half = content.len() / 2;
    let kept = bring(&client, &id, 0, &content[..half]).expect(200);
    assert_eq!(kept.header("upload-offset"), Some(half.to_string().as_str()));
    assert_eq!(kept.header("upload-complete"), Some("?0"));
    bring(&client, &id, 7, b"x").refuses(409, "stands at byte");
    client.post("/v1/uploads", &spec).refuses(409, "not over");
    assert!(!stage.target.at("/new/file").exists());
    stage.target.kill();
    stage.target.start(&stage.fleet.sandbox);
    let client = stage.target.admin();
    let head = client.get(&format!("/v1/uploads/{id}")).expect(200);
    assert_eq!(head.header("upload-offset"), Some(half.to_string().as_str()));
    let done = bring(&client, &id, half as u64, &content[half..]).expect(201);
    assert_eq!(done.header("upload-complete"), Some("?1"));
    assert!(stage.target.read("/new/file") == content);
    assert_eq!(left_over(&stage.target.root), Vec::<std::path::PathBuf>::new());
    let path = "/v1/catalog/file?lfn=%2Fnew%2Ffile";
    wait_for("main has it", SOON, || stage.fleet.admin().get(path).status == 200);
    let central = stage.fleet.admin().get(path).expect(200).json();
    assert_eq!((&central["digest"], &central["dataset"]), (&done.json()["digest"], &json!("/new")));
    assert_eq!(central["replicas"][0]["agent"], "dst");
    assert_eq!(client.all("/v1/local/catalog")[0]["digest"], done.json()["digest"]);
    client.post("/v1/uploads", &spec).refuses(409, "replace nothing");
}

/// Main was away when the upload ended: it hears of it when it is back, also from an agent that was started again.
#[test]
fn main_hears_of_an_upload_when_it_is_back() {
    let mut stage = stage();
    stage.fleet.main.kill();
    let client = stage.target.admin();
    let id = begin(&client, &json!({"lfn": "/f", "bytes": 3}));
    bring(&client, &id, 0, b"abc").expect(201);
    stage.target.kill();
    stage.target.start(&stage.fleet.sandbox);
    stage.fleet.main.start(&stage.fleet.sandbox);
    wait_for("main has it", SOON, || stage.fleet.admin().get("/v1/catalog/file?lfn=%2Ff").status == 200);
}

#[test]
fn uploads_are_compared_bounded_and_only_for_those_who_may() {
    let stage = stage();
    let client = stage.target.admin();
    // Other bytes than announced are not kept.
    let id = begin(&client, &json!({"lfn": "/a", "bytes": 3, "digest": format!("sha256:{}", sha256(b"abc"))}));
    bring(&client, &id, 0, b"abd").refuses(422, "not kept");
    assert!(!stage.target.at("/a").exists());
    client.get(&format!("/v1/uploads/{id}")).expect(404);
    // More than announced.
    let id = begin(&client, &json!({"lfn": "/b", "bytes": 3}));
    bring(&client, &id, 0, b"abcd").refuses(413, "announced");
    bring(&client, &id, 0, b"abc").expect(201);
    // Nothing, as a file.
    let id = begin(&client, &json!({"lfn": "/empty", "bytes": 0}));
    bring(&client, &id, 0, b"").expect(201);
    assert_eq!(stage.target.read("/empty"), b"");
    // Given up.
    let id = begin(&client, &json!({"lfn": "/c", "bytes": 3}));
    client.ask("DELETE", &format!("/v1/uploads/{id}"), &[], &Value::Null).expect(204);
    bring(&client, &id, 0, b"abc").expect(404);
    for (spec, words) in [
        (json!({"lfn": "/x", "bytes": 3, "digest": "sha256:00"}), "hex digits"),
        (json!({"lfn": "/x", "bytes": 3, "dataset": "/d"}), "come together"),
        (json!({"lfn": "../x", "bytes": 3}), "logical file name"),
        (json!({"lfn": "/x", "bytes": 3, "what": 1}), "unknown field"),
    ] {
        client.post("/v1/uploads", &spec).refuses(400, words);
    }
    client.post("/v1/uploads", &json!({"lfn": "/.longhaul/x", "bytes": 3})).refuses(403, "own");
    client.post("/v1/uploads", &json!({"lfn": "/x", "bytes": 1_u64 << 60})).refuses(507, "no room");
    // A token without the right, and one that is another's.
    let token = |name: &str, args: &[&str]| {
        let state = stage.fleet.sandbox.arg("dst.state");
        let made = stage.fleet.sandbox.run(&[&["token", "add", name, "--state", &state], args].concat()).expect(0);
        Client { token: made.out.trim().to_owned(), ..client.clone() }
    };
    let (reader, writer) = (token("reader", &["--read"]), token("writer", &["--write", "--prefix", "/mine"]));
    reader.post("/v1/uploads", &json!({"lfn": "/x", "bytes": 3})).refuses(403, "may not write");
    writer.post("/v1/uploads", &json!({"lfn": "/x", "bytes": 3})).refuses(403, "may not write");
    let id = begin(&client, &json!({"lfn": "/mine/x", "bytes": 3}));
    bring(&writer, &id, 0, b"abc").refuses(404, "another token's");
    let id = begin(&writer, &json!({"lfn": "/mine/y", "bytes": 3}));
    bring(&writer, &id, 0, b"abc").expect(201);
    let nobody = Client { token: format!("lht_{}", "0".repeat(64)), ..client.clone() };
    nobody.post("/v1/uploads", &json!({"lfn": "/x", "bytes": 3})).expect(401);
}

/// With the real `curl`: up with `-T`, down with a range.
#[test]
fn curl_pushes_and_pulls() {
    if Command::new("curl").arg("--version").output().is_err() {
        return crate::support::skip("needs curl");
    }
    let stage = stage();
    let content = noise(3 << 20, 9);
    let file = stage.fleet.sandbox.write("local", &content);
    let client = stage.target.admin();
    let id = begin(&client, &json!({"lfn": "/c/f", "bytes": content.len()}));
    let header = stage.fleet.sandbox.write("header", format!("Authorization: Bearer {}\n", client.token).as_bytes());
    let curl = |args: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail-with-body", "-H", &format!("@{}", header.display())]).args(args);
        let done = command.output().unwrap();
        assert!(done.status.success(), "{args:?}: {done:?}");
        done.stdout
    };
    let url = format!("http://127.0.0.1:{}/v1/uploads/{id}", client.port);
    curl(&["-X", "PATCH", "-H", "Upload-Offset: 0", "-T", file.to_str().unwrap(), &url]);
    assert!(stage.target.read("/c/f") == content);
    stage.source.write("/a b/f", content.len(), 9);
    let source = stage.source.admin();
    stage.fleet.sandbox.write("header", format!("Authorization: Bearer {}\n", source.token).as_bytes());
    let url = format!("http://127.0.0.1:{}/v1/files/a%20b/f/data", source.port);
    assert!(curl(&[&url]) == content);
    assert!(curl(&["-r", "1000-1999", &url]) == content[1000..2000]);
}
