//! The suite on SQLite, and what only a file can do: be damaged, old, foreign, shared, killed, slow.

mod files;
mod kill;
mod many;
pub(super) mod plans;

use super::*;
use crate::control::model::item::Side;
use crate::control::store::conformance::{HandClock, Kit, conformance_suite, random};
use proptest::prelude::*;

fn kit() -> (Kit, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let clock = HandClock::default();
    let store = SqliteStore::open(dir.path(), clock.clock()).unwrap();
    (Kit { store, clock }, dir)
}

/// `LONGHAUL_LONG=1`: ten times as much.
fn long() -> bool {
    std::env::var_os("LONGHAUL_LONG").is_some()
}

conformance_suite!(super::kit);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if long() { 1000 } else { 40 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nothing_is_done_twice_or_lost_whatever_happens(steps in proptest::collection::vec(any::<u32>(), 1..120)) {
        let (kit, _dir) = kit();
        runtime().block_on(random::play(&kit, &steps));
    }
}

/// Games that were lost once.
#[tokio::test]
async fn games_that_were_lost_once() {
    for steps in [[2_963_127_824, 2_520_784_980, 1_681_609_856]] {
        let (kit, _dir) = kit();
        random::play(&kit, &steps).await;
    }
}

/// The answer itself looks, on the writer's thread: nothing can come between.
#[tokio::test]
async fn who_has_an_answer_has_seen_its_event() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path(), HandClock::default().clock()).unwrap();
    let seen = store.threads.events.clone();
    let (tell, told) = oneshot::channel();
    let job: Job = Box::new(move |cx| {
        cx.unwrap().event("test", "answer", serde_json::Value::Null).unwrap();
        (true, Box::new(move |_| tell.send(*seen.borrow()).unwrap()))
    });
    store.threads.write.as_ref().unwrap().send(job).await.unwrap();
    assert_eq!(told.await.unwrap(), 1);
    assert_eq!(store.last_event().await.unwrap(), 1);
}
