//! The tuner on a long link of the lab: with it and without, taking turns, nothing set by hand.

use super::site::Site;
use crate::support::long;
use serde_json::Value;

fn rate(report: &Value) -> f64 {
    report["bits_per_second"].as_f64().unwrap() / 1e6
}

fn tuned(report: &Value) -> Vec<&str> {
    let notes = report["notes"].as_array().unwrap().iter().filter_map(Value::as_str);
    notes.filter(|note| note.starts_with("tuned: ")).collect()
}

/// Needs root: network namespaces; skipped without.
#[test]
fn losses_without_a_queue_are_noticed_and_borne() {
    let link = ["--rtt", "60ms", "--rate", "200mbit", "--loss", "0.05%", "--tcp-buf", "64m"];
    let Some(site) = Site::up('u', &link, 256 << 20) else { return };
    let (without, with) = (site.pull(&["--tuner", "off"]), site.pull(&[]));
    let (slow, fast) = (rate(&without), rate(&with));
    eprintln!("{slow:.0} Mbit/s without, {fast:.0} with the tuner: {:?}", tuned(&with));
    assert!(tuned(&without).is_empty(), "{without:#}");
    assert!(tuned(&with).iter().any(|note| note.starts_with("tuned: bbr") && note.ends_with("kept")), "{with:#}");
    assert!(fast > 1.3 * slow, "{slow} and {fast} Mbit/s: {:?}", tuned(&with));
}

/// Needs root: network namespaces; skipped without.
#[test]
fn streams_make_up_for_a_small_send_buffer_and_a_clean_path_is_left_alone() {
    let link = ["--rtt", "60ms", "--rate", "200mbit", "--tcp-buf", "128k"];
    let Some(site) = Site::up('v', &link, 192 << 20) else { return };
    let (without, with) = (site.pull(&["--tuner", "off"]), site.pull(&[]));
    let (slow, fast) = (rate(&without), rate(&with));
    eprintln!("{slow:.0} Mbit/s without, {fast:.0} with the tuner: {:?}", tuned(&with));
    assert!(with["streams"].as_u64().unwrap() > 8, "{with:#}");
    assert!(fast > 1.3 * slow, "{slow} and {fast} Mbit/s: {:?}", tuned(&with));
    drop(site);
    let link = ["--rtt", "60ms", "--rate", "200mbit", "--tcp-buf", "64m"];
    let Some(site) = Site::up('w', &link, 192 << 20) else { return };
    let clean = site.pull(&[]);
    assert!(tuned(&clean).iter().all(|note| !note.contains("bbr")), "{:?}", tuned(&clean));
    assert!(rate(&clean) > if long() { 150.0 } else { 120.0 }, "{clean:#}");
}
