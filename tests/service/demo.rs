//! `longhaul demo`'s second part, as its user runs it: a main, two sources and a destination, from the same binary.

use std::process::Command;

#[test]
fn the_demo_of_the_service_ends_with_every_byte_compared() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_longhaul"));
    demo.args(["demo", "--part", "service", "--size", "6MiB", "--json"]).env("TMPDIR", dir.path());
    let ended = demo.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(0), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    let service = &report["service"];
    assert_eq!((service["files"].as_u64(), service["registered"].as_u64()), (Some(24), Some(24)), "{service}");
    assert!(
        service["pulled_from"]["source-1"].as_u64() > Some(0) && service["pulled_from"]["source-2"].as_u64() > Some(0)
    );
    assert_eq!(service["pulled_from"].as_object().unwrap().len(), 2);
    assert_eq!(service["arrived_before_tape"].as_u64(), Some(23), "the file on tape held nobody up");
    assert_eq!(service["approved_by"], serde_json::json!(["boris", "policy:single files"]));
    assert_eq!(service["pushed_bytes"].as_u64(), Some(6 * 1024 * 1024 / 24));
    assert_eq!(service["different"], serde_json::json!([]));
    assert_eq!(service["agents_ended_in_order"], true);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the demo leaves nothing behind");
}
