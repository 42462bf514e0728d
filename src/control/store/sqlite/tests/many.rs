//! Many items: how fast they come in, what memory that takes, and that work on the rest goes on as before.

use super::*;
use crate::control::store::MAX_ADD;
use crate::control::store::conformance::kit::{actor, claim, named, new_item, spec_from};
use std::time::Instant;

/// Resident KiB of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// 50,000 items; with `LONGHAUL_LONG=1` a million. The figures are printed; those that others wait for are bounded.
#[tokio::test]
async fn many_items_come_in_with_bounded_memory() {
    let (kit, _dir) = kit();
    let files = if long() { 1_000_000 } else { 50_000 };
    kit.agent("src", None).await;
    let dst = kit.agent("dst", None).await;
    let id = kit.store.create_request(actor(), spec_from("dst", &["src"]), None).await.unwrap().request.id;
    let (before, start) = (resident(), Instant::now());
    for from in (0..files).step_by(MAX_ADD) {
        let items = (from..files.min(from + MAX_ADD)).map(|n| new_item(n, "dst")).collect();
        kit.store.add_items(id, items).await.unwrap();
    }
    let (took, grew) = (start.elapsed(), resident().saturating_sub(before));
    let rate = files as f64 / took.as_secs_f64();
    println!("{files} items in {took:?}: {rate:.0} a second, {} MiB more", grew >> 10);
    assert!(grew < 100 << 10, "{grew} KiB more");
    kit.store.resolved(id, Resolution::Approved { rule: "r".into() }).await.unwrap();
    let start = Instant::now();
    let found = kit.store.claimable(named("dst"), claim(&dst, 1, 1000, Side::Destination)).await.unwrap();
    let chosen = found.iter().map(|c| (c.item, c.epoch, named("src"))).collect();
    let given = kit.store.claim(named("dst"), claim(&dst, 1, 1000, Side::Destination), chosen).await.unwrap();
    println!("a claim of {} of them: {:?}", given.len(), start.elapsed());
    assert_eq!(given.len(), 1000);
    let start = Instant::now();
    let page = PageQuery { cursor: None, limit: Some(1000) };
    assert_eq!(kit.store.items(id, Some(ItemState::Queued), page).await.unwrap().items.len(), 1000);
    println!("a page of them: {:?}", start.elapsed());
    let start = Instant::now();
    kit.store.cancel(id, actor()).await.unwrap();
    let took = start.elapsed();
    println!("cancel acknowledged: {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let (start, mut longest) = (Instant::now(), Duration::ZERO);
    loop {
        let slice = Instant::now();
        let more = kit.store.sweep(Vec::new()).await.unwrap().more;
        longest = longest.max(slice.elapsed());
        if !more {
            break;
        }
    }
    println!("drained: {:?}, the longest slice {longest:?}", start.elapsed());
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    assert_eq!(kit.store.request(id).await.unwrap().counters.cancelled, files as u64 - 1000);
}
