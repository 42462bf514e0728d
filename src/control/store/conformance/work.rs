//! Claims, reports, leases: never one item done twice, nothing acknowledged lost.

use super::kit::{
    Kit, actor, claim, complete, failed, lfn, named, new_item, registration, renewal, says, spec, spec_from,
};
use crate::control::model::agent::OpenSession;
use crate::control::model::agent::{DEFAULT_LEASE_SECS, DEFAULT_REATTACH_SECS};
use crate::control::model::item::{FailureClass, ItemProgress, ItemReport, ReportOutcome, Side};
use crate::control::model::request::{Model, RequestSpec};
use crate::control::model::states::{ItemEvent, ItemState, RequestState};
use crate::control::store::{MAX_ADD, NewItem, Resolution, StoreError};

const LEASE: i64 = DEFAULT_LEASE_SECS as i64;
const REATTACH: i64 = DEFAULT_REATTACH_SECS as i64;

fn is_stale<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::StaleSession))
}

/// The whole walk of a pull.
pub async fn a_pull_from_claim_to_catalog(kit: &Kit) {
    kit.agent("src", None).await;
    let dst = kit.agent("dst", None).await;
    kit.has_files("src", 3).await;
    let request = kit.active(spec("dst"), 3).await;
    assert_eq!(request.state, RequestState::Active);
    let first = kit.pulls("dst", &dst, 1, 2).await;
    assert_eq!(first.len(), 2);
    assert_eq!((first[0].lfn.clone(), first[0].source.url.as_str()), (lfn(0), "lh://src:8443"));
    assert_eq!(kit.counted(request.id).await.counters.running, 2);
    kit.clock.forward(3);
    assert_eq!(kit.pulls("dst", &dst, 1, 2).await, first, "the same number, the same answer");
    let rest = kit.pulls("dst", &dst, 2, 10).await;
    assert_eq!(rest.len(), 1);
    for item in first.iter().chain(&rest) {
        for _ in 0..2 {
            assert_eq!(kit.report("dst", &dst, complete(item)).await, ReportOutcome::Accepted);
        }
        assert_eq!(kit.state(item.item).await, ItemState::Done);
    }
    let request = kit.counted(request.id).await;
    assert_eq!((request.state, request.counters.done_bytes), (RequestState::Succeeded, 30));
    let file = kit.store.file(lfn(0)).await.unwrap();
    assert_eq!(file.replicas.len(), 2);
    assert!(file.digest.is_some() && file.replicas[0].verified.is_some());
}

/// Two that saw the same item: one gets it. A chosen item that has changed is left out.
pub async fn a_claim_takes_what_is_as_it_was_seen(kit: &Kit) {
    kit.agent("src", None).await;
    let (a, b) = (kit.agent("a", Some("disk")).await, kit.agent("b", Some("disk")).await);
    let request = kit.active(spec_from("a", &["src"]), 2).await;
    let seen = kit.store.claimable(named("a"), claim(&a, 1, 10, Side::Destination)).await.unwrap();
    let same = kit.store.claimable(named("b"), claim(&b, 1, 10, Side::Destination)).await.unwrap();
    assert_eq!((seen.len(), &seen), (2, &same), "agents over one storage do each other's work");
    let chosen: Vec<_> = seen.iter().map(|c| (c.item, c.epoch, named("src"))).collect();
    let first = kit.store.claim(named("a"), claim(&a, 1, 1, Side::Destination), chosen.clone()).await.unwrap();
    assert_eq!(first.len(), 1, "the limit counts");
    let second = kit.store.claim(named("b"), claim(&b, 1, 10, Side::Destination), chosen.clone()).await.unwrap();
    assert_eq!(second.iter().map(|a| a.item).collect::<Vec<_>>(), [chosen[1].0]);
    assert_eq!(second[0].destination.name, named("b"), "whoever does it is where it goes");
    assert!(kit.store.claim(named("b"), claim(&b, 2, 10, Side::Destination), chosen).await.unwrap().is_empty());
    assert_eq!(kit.counted(request.id).await.counters.running, 2);
    let other = kit.agent("c", None).await;
    assert!(kit.pulls("c", &other, 1, 10).await.is_empty(), "another storage is another's work");
}

/// A path with a live item is not claimed for another request until that one has ended.
pub async fn one_live_item_has_a_path(kit: &Kit) {
    kit.agent("src", None).await;
    let dst = kit.agent("dst", None).await;
    let one = kit.active(spec_from("dst", &["src"]), 1).await;
    let two = kit.active(spec_from("dst", &["src"]), 1).await;
    let first = kit.pulls("dst", &dst, 1, 10).await;
    assert_eq!((first.len(), first[0].request), (1, one.id));
    let item = kit.items(two.id).await[0].id;
    let forced = vec![(item, 0, named("src"))];
    assert!(kit.store.claim(named("dst"), claim(&dst, 2, 1, Side::Destination), forced).await.unwrap().is_empty());
    assert!(kit.pulls("dst", &dst, 2, 10).await.is_empty());
    kit.report("dst", &dst, complete(&first[0])).await;
    assert_eq!(kit.pulls("dst", &dst, 2, 10).await[0].request, two.id);
}

/// A lease ends, later its items are given back, and the old epoch is worth nothing.
pub async fn a_lost_agent_loses_its_items_after_the_grace(kit: &Kit) {
    kit.agent("src", None).await;
    let (a, b) = (kit.agent("a", Some("disk")).await, kit.agent("b", Some("disk")).await);
    let request = kit.active(spec_from("a", &["src"]), 1).await;
    let old = kit.pulls("a", &a, 1, 1).await.remove(0);
    kit.clock.forward(LEASE - 1);
    assert!(kit.store.overdue().await.unwrap().is_empty());
    kit.renew("b", &b).await;
    kit.clock.forward(1);
    assert_eq!(kit.store.overdue().await.unwrap().len(), 2, "a and the source");
    assert_eq!(kit.store.sweep(Vec::new()).await.unwrap().sessions, 0, "heard by this main: spared");
    let swept = kit.sweep().await;
    assert_eq!((swept.sessions, swept.items), (2, 0));
    assert!(!kit.store.agent(named("a")).await.unwrap().alive);
    assert!(is_stale(kit.store.renew(named("a"), renewal(&a)).await), "ended is ended");
    assert_eq!(kit.state(old.item).await, ItemState::Claimed, "but its items wait for it");
    kit.clock.forward(REATTACH);
    assert_eq!(kit.sweep().await.items, 1);
    assert_eq!((kit.sweep().await.items, kit.store.overdue().await.unwrap().len()), (0, 0), "ended once");
    assert_eq!(kit.state(old.item).await, ItemState::Queued);
    kit.counted(request.id).await;
    kit.agent("src", None).await;
    let (a, b) = (kit.agent("a", Some("disk")).await, kit.agent("b", Some("disk")).await);
    let new = kit.pulls("b", &b, 1, 1).await.remove(0);
    assert_eq!((new.item, new.epoch), (old.item, old.epoch + 1));
    for event in [ItemEvent::Complete, ItemEvent::Start, ItemEvent::Fail, ItemEvent::Requeue, ItemEvent::Hold] {
        let report = ItemReport { event, ..complete(&old) };
        assert_eq!(kit.report("a", &a, report).await, ReportOutcome::StaleEpoch, "{event}");
    }
    let stolen = complete(&new);
    assert_eq!(kit.report("a", &a, stolen).await, ReportOutcome::StaleEpoch, "another's claim");
    assert_eq!(kit.report("b", &b, complete(&new)).await, ReportOutcome::Accepted);
    assert_eq!(kit.counted(request.id).await.state, RequestState::Succeeded);
}

/// An agent that comes back keeps what it names, the rest is queued, its old session is over.
pub async fn an_agent_comes_back_to_its_items(kit: &Kit) {
    kit.agent("src", None).await;
    let before = kit.agent("dst", None).await;
    let request = kit.active(spec_from("dst", &["src"]), 3).await;
    let had = kit.pulls("dst", &before, 1, 3).await;
    kit.clock.forward(LEASE + 1);
    kit.sweep().await;
    let id = registration("dst", None).id;
    let open = OpenSession { id, previous: Some(before.session), items: vec![had[0].item, had[2].item] };
    let now = kit.store.open_session(named("dst"), open.clone()).await.unwrap();
    assert!(now.epoch == before.epoch + 1 && now.kept == [had[0].item, had[2].item]);
    assert_eq!(kit.state(had[1].item).await, ItemState::Queued);
    assert!(is_stale(kit.store.report(named("dst"), before.session, vec![complete(&had[0])]).await));
    let again = kit.store.open_session(named("dst"), open).await.unwrap();
    assert_eq!(again.kept, now.kept, "the answer was lost: the same once more");
    assert_eq!(kit.report("dst", &again, complete(&had[0])).await, ReportOutcome::Accepted, "under its old epoch");
    let held = kit.store.assignments(named("dst"), again.session).await.unwrap();
    assert_eq!(held.iter().map(|a| a.item).collect::<Vec<_>>(), [had[2].item]);
    assert_eq!(kit.report("dst", &again, complete(&had[1])).await, ReportOutcome::StaleEpoch);
    kit.counted(request.id).await;
    let stranger = OpenSession { id: registration("x", None).id, previous: None, items: Vec::new() };
    assert!(matches!(kit.store.open_session(named("dst"), stranger).await, Err(StoreError::Conflict(_))));
}

/// Steps may be left out, may come twice and may come late, but never backwards or from nowhere.
pub async fn reports_go_along_the_table(kit: &Kit) {
    kit.agent("src", None).await;
    let dst = kit.agent("dst", None).await;
    kit.active(spec_from("dst", &["src"]), 3).await;
    let items = kit.pulls("dst", &dst, 1, 3).await;
    let say = |n: usize, event| kit.report("dst", &dst, ItemReport { event, ..complete(&items[n]) });
    assert_eq!(say(0, ItemEvent::Cancel).await, ReportOutcome::Illegal, "nobody asked");
    assert_eq!(say(0, ItemEvent::Claim).await, ReportOutcome::Illegal);
    assert_eq!(say(0, ItemEvent::Verify).await, ReportOutcome::Accepted);
    assert_eq!(kit.state(items[0].item).await, ItemState::Verifying);
    assert_eq!(say(0, ItemEvent::Start).await, ReportOutcome::Accepted, "late");
    assert_eq!(kit.state(items[0].item).await, ItemState::Verifying);
    assert_eq!(say(0, ItemEvent::Hold).await, ReportOutcome::Illegal);
    assert_eq!(say(0, ItemEvent::Skip).await, ReportOutcome::Illegal);
    assert_eq!(say(0, ItemEvent::Commit).await, ReportOutcome::Accepted);
    assert_eq!(say(0, ItemEvent::Complete).await, ReportOutcome::Accepted);
    assert_eq!(say(0, ItemEvent::Fail).await, ReportOutcome::StaleEpoch, "done is done");
    assert_eq!(say(1, ItemEvent::Hold).await, ReportOutcome::Accepted);
    assert_eq!(say(1, ItemEvent::Ready).await, ReportOutcome::Accepted);
    assert_eq!(say(1, ItemEvent::Hold).await, ReportOutcome::Accepted);
    assert_eq!(say(1, ItemEvent::Complete).await, ReportOutcome::Accepted, "from a hold");
    assert_eq!(say(2, ItemEvent::Skip).await, ReportOutcome::Accepted);
    assert_eq!(kit.state(items[2].item).await, ItemState::Skipped);
    let unknown = ItemReport { item: crate::control::model::name::ItemId::new(), ..complete(&items[0]) };
    assert_eq!(kit.report("dst", &dst, unknown).await, ReportOutcome::Unknown);
    let request = kit.counted(items[0].request).await;
    assert_eq!((request.state, request.counters.skipped), (RequestState::Succeeded, 1));
}

/// A hold uses no try and has a budget of its own, over all claims.
pub async fn holds_wait_and_end(kit: &Kit) {
    kit.agent("src", None).await;
    let mut dst = kit.agent("dst", None).await;
    let request = kit.active(RequestSpec { stage_timeout_secs: 5000, ..spec_from("dst", &["src"]) }, 2).await;
    let items = kit.pulls("dst", &dst, 1, 2).await;
    for item in &items {
        let hold = ItemReport { retry_after_secs: Some(60), ..says(item, ItemEvent::Hold) };
        assert_eq!(kit.report("dst", &dst, hold).await, ReportOutcome::Accepted);
    }
    let since = kit.store.item(items[0].item).await.unwrap().hold_since;
    assert_eq!((since, kit.counted(request.id).await.counters.holding), (Some(kit.clock.now()), 2));
    let back = ItemReport { retry_after_secs: Some(1000), ..says(&items[0], ItemEvent::Requeue) };
    assert_eq!(kit.report("dst", &dst, back).await, ReportOutcome::Accepted);
    let item = kit.store.item(items[0].item).await.unwrap();
    assert_eq!((item.tries, item.hold_since, item.state), (0, since, ItemState::Queued));
    assert!(kit.pulls("dst", &dst, 2, 2).await.is_empty(), "not before its time");
    kit.clock.forward(1001);
    kit.agent("src", None).await;
    let open = OpenSession { id: registration("dst", None).id, previous: None, items: vec![items[1].item] };
    dst = kit.store.open_session(named("dst"), open).await.unwrap();
    let again = kit.pulls("dst", &dst, 1, 2).await.remove(0);
    assert_eq!(Some(again.hold_until), since.map(|since| since.plus_secs(5000)), "the same budget");
    kit.report("dst", &dst, says(&again, ItemEvent::Start)).await;
    assert_eq!(kit.store.item(again.item).await.unwrap().hold_since, None, "bytes came: a later hold begins anew");
    kit.clock.forward(4000);
    assert_eq!(
        kit.store.sweep(Vec::new()).await.unwrap().items,
        1,
        "the hold, not the agent, which this main has heard"
    );
    let over = kit.store.item(items[1].item).await.unwrap();
    assert_eq!((over.state, over.tries), (ItemState::Failed, 0));
    assert_eq!(kit.report("dst", &kit.agent("dst", None).await, complete(&items[1])).await, ReportOutcome::StaleEpoch);
    kit.counted(request.id).await;
}

/// What becomes of a failed try is decided by its class.
pub async fn failures_are_decided_by_class(kit: &Kit) {
    kit.agent("s1", None).await;
    kit.agent("s2", None).await;
    let dst = kit.agent("dst", None).await;
    let request = kit.active(RequestSpec { tries: 3, ..spec_from("dst", &["s1", "s2"]) }, 1).await;
    let mut seq = 0;
    let mut next = async || {
        seq += 1;
        // The longest pause, and no lease that ends meanwhile.
        kit.clock.forward(20);
        for name in ["s1", "s2"] {
            kit.agent(name, None).await;
        }
        kit.renew("dst", &dst).await;
        kit.pulls("dst", &dst, seq, 1).await
    };
    let first = next().await.remove(0);
    let pressed = ItemReport { retry_after_secs: Some(20), ..failed(&first, FailureClass::Backpressure) };
    assert_eq!(kit.report("dst", &dst, pressed.clone()).await, ReportOutcome::Accepted);
    assert_eq!(kit.report("dst", &dst, pressed).await, ReportOutcome::Accepted, "said twice");
    let item = kit.store.item(first.item).await.unwrap();
    assert_eq!((item.tries, item.not_before), (0, Some(kit.clock.now().plus_secs(20))));
    let second = next().await.remove(0);
    assert_eq!(second.source.name, named("s1"));
    kit.report("dst", &dst, failed(&second, FailureClass::Integrity)).await;
    let third = next().await.remove(0);
    assert_eq!(third.source.name, named("s2"), "the other one is excluded");
    kit.report("dst", &dst, failed(&third, FailureClass::Transient)).await;
    let item = kit.store.item(first.item).await.unwrap();
    assert_eq!((item.tries, item.state), (2, ItemState::Queued));
    assert!(item.not_before > Some(kit.clock.now()), "a pause between tries");
    let fourth = next().await.remove(0);
    assert_eq!(fourth.source.name, named("s2"));
    kit.report("dst", &dst, failed(&fourth, FailureClass::Transient)).await;
    assert_eq!(kit.state(first.item).await, ItemState::Failed, "the last try");
    assert_eq!(kit.counted(request.id).await.state, RequestState::Failed);
    let attempts = kit.store.attempts(first.item).await.unwrap();
    assert_eq!(attempts.len(), 4);
    assert!(attempts.iter().all(|a| a.ended.is_some() && a.class.is_some()), "{attempts:?}");
}

/// A storage that is full is left alone for a while: no try is counted, other storages go on, and it is told why.
pub async fn a_full_storage_is_paused_and_fails_nothing(kit: &Kit) {
    kit.agent("src", None).await;
    let (a, b, c) =
        (kit.agent("a", Some("disk")).await, kit.agent("b", Some("disk")).await, kit.agent("c", None).await);
    let request = kit.active(RequestSpec { tries: 1, ..spec_from("a", &["src"]) }, 3).await;
    kit.active(spec_from("c", &["src"]), 1).await;
    let first = kit.pulls("a", &a, 1, 1).await.remove(0);
    let full = ItemReport { retry_after_secs: Some(20), ..failed(&first, FailureClass::DestinationBad) };
    assert_eq!(kit.report("a", &a, full).await, ReportOutcome::Accepted);
    let item = kit.store.item(first.item).await.unwrap();
    assert_eq!((item.state, item.tries), (ItemState::Queued, 0));
    assert!(kit.pulls("a", &a, 2, 9).await.is_empty() && kit.pulls("b", &b, 1, 9).await.is_empty());
    assert_eq!(kit.pulls("c", &c, 1, 9).await.len(), 1, "another storage");
    let paused = kit.store.agent(named("b")).await.unwrap().paused.unwrap();
    assert_eq!((paused.until, paused.reason.as_str()), (kit.clock.now().plus_secs(20), "it broke"));
    assert!(kit.store.agent(named("c")).await.unwrap().paused.is_none());
    kit.clock.forward(21);
    assert!(kit.store.agent(named("b")).await.unwrap().paused.is_none());
    let items = kit.pulls("b", &b, 1, 9).await;
    assert_eq!(items.len(), 3);
    for item in &items {
        kit.report("b", &b, complete(item)).await;
    }
    assert_eq!(kit.counted(request.id).await.state, RequestState::Succeeded);
}

/// Of two that have a file, the one that let it wait is asked again only when the other one cannot be.
pub async fn a_source_that_held_is_asked_last(kit: &Kit) {
    for name in ["s1", "s2"] {
        kit.agent(name, None).await;
    }
    let dst = kit.agent("dst", None).await;
    kit.active(spec_from("dst", &["s1", "s2"]), 1).await;
    let held = kit.pulls("dst", &dst, 1, 1).await.remove(0);
    kit.report("dst", &dst, says(&held, ItemEvent::Hold)).await;
    kit.report("dst", &dst, says(&held, ItemEvent::Requeue)).await;
    let found = kit.store.claimable(named("dst"), claim(&dst, 2, 1, Side::Destination)).await.unwrap().remove(0);
    let holds = |name| found.candidates.iter().find(|c| c.agent == named(name)).map(|c| (c.holds, c.failures));
    let (by, other) = if held.source.name == named("s1") { ("s1", "s2") } else { ("s2", "s1") };
    assert_eq!((holds(by), holds(other)), (Some((1, 0)), Some((0, 0))));
}

/// Many items end in slices: the request stops at once, the rest follows, and every number is right at any time.
pub async fn many_items_end_and_go_in_slices(kit: &Kit) {
    kit.agent("src", None).await;
    let dst = kit.agent("dst", None).await;
    let id = kit.store.create_request(actor(), spec_from("dst", &["src"]), None).await.unwrap().request.id;
    for from in [0, MAX_ADD, 2 * MAX_ADD] {
        let items = (from..from + MAX_ADD).map(|n| new_item(n, "dst")).collect();
        kit.store.add_items(id, items).await.unwrap();
    }
    while kit.store.restart_resolving(id).await.unwrap() {}
    assert_eq!(kit.counted(id).await.counters.files, 0);
    for from in [0, MAX_ADD, 2 * MAX_ADD] {
        let items = (from..from + MAX_ADD).map(|n| new_item(n, "dst")).collect();
        kit.store.add_items(id, items).await.unwrap();
    }
    kit.store.resolved(id, Resolution::Approved { rule: "r".into() }).await.unwrap();
    let live = kit.pulls("dst", &dst, 1, 2).await;
    kit.store.cancel(id, actor()).await.unwrap();
    kit.counted(id).await;
    assert!(kit.pulls("dst", &dst, 2, 9).await.is_empty(), "nothing more is given out");
    let mut drained = 0;
    while kit.store.sweep(Vec::new()).await.unwrap().more {
        kit.counted(id).await;
        drained += 1;
        assert!(drained < 1000);
    }
    let all = 3 * MAX_ADD as u64;
    assert_eq!(kit.counted(id).await.counters.cancelled, all - 2);
    for item in &live {
        kit.report("dst", &dst, says(item, ItemEvent::Cancel)).await;
    }
    let ended = kit.counted(id).await;
    assert_eq!((ended.state, ended.counters.cancelled), (RequestState::Cancelled, all));
    let last = kit.items(id).await.pop().unwrap().id;
    kit.store.delete_request(id, actor()).await.unwrap();
    let mut swept = 0;
    while kit.store.sweep(Vec::new()).await.unwrap().more {
        swept += 1;
        assert!(swept < 1000);
    }
    assert!(matches!(kit.store.item(last).await, Err(StoreError::NotFound(_))));
}

/// A cancel stops what runs by its agent's word, or by its lease's end; what is being published is finished.
pub async fn a_cancel_ends_when_its_agents_have_stopped(kit: &Kit) {
    kit.agent("src", None).await;
    let dst = kit.agent("dst", None).await;
    let request = kit.active(spec_from("dst", &["src"]), 5).await;
    let items = kit.pulls("dst", &dst, 1, 4).await;
    kit.report("dst", &dst, says(&items[1], ItemEvent::Commit)).await;
    kit.report("dst", &dst, says(&items[3], ItemEvent::Commit)).await;
    let seen = kit.store.cancel(request.id, actor()).await.unwrap();
    assert_eq!((seen.state, seen.cancelling, seen.counters.cancelled), (RequestState::Active, true, 1));
    assert_eq!(kit.store.cancel(request.id, actor()).await.unwrap().version, seen.version, "asked twice");
    let mut stop = kit.store.renew(named("dst"), renewal(&dst)).await.unwrap().stop;
    stop.sort();
    assert_eq!(stop, items.iter().map(|a| a.item).collect::<Vec<_>>());
    let stopped = says(&items[0], ItemEvent::Cancel);
    assert_eq!(kit.report("dst", &dst, stopped.clone()).await, ReportOutcome::Accepted);
    assert_eq!(kit.report("dst", &dst, stopped).await, ReportOutcome::Accepted);
    let too_late = says(&items[1], ItemEvent::Cancel);
    assert_eq!(kit.report("dst", &dst, too_late).await, ReportOutcome::Illegal, "it is being published");
    assert_eq!(kit.report("dst", &dst, complete(&items[1])).await, ReportOutcome::Accepted);
    kit.report("dst", &dst, failed(&items[2], FailureClass::Transient)).await;
    assert_eq!(kit.state(items[2].item).await, ItemState::Cancelled, "no new try of what was cancelled");
    assert_eq!(kit.counted(request.id).await.state, RequestState::Active);
    kit.clock.forward(LEASE + REATTACH + 1);
    kit.sweep().await;
    assert_eq!(kit.state(items[3].item).await, ItemState::Cancelled);
    let seen = kit.counted(request.id).await;
    assert_eq!((seen.state, seen.counters.done, seen.counters.cancelled), (RequestState::Cancelled, 1, 4));
    assert!(!seen.cancelling && seen.ended.is_some());
}

/// What was placed is compared with the catalog before it counts.
pub async fn what_differs_from_the_catalog_is_not_done(kit: &Kit) {
    kit.agent("src", None).await;
    let dst = kit.agent("dst", None).await;
    kit.has_files("src", 2).await;
    let known = NewItem { digest: Some("cd".repeat(16)), ..new_item(0, "dst") };
    let id = kit.resolving(spec("dst"), vec![known, new_item(1, "dst")]).await;
    kit.store.resolved(id, Resolution::Approved { rule: "r".into() }).await.unwrap();
    let items = kit.pulls("dst", &dst, 1, 2).await;
    assert_eq!(kit.report("dst", &dst, complete(&items[0])).await, ReportOutcome::Illegal, "another digest");
    let short = ItemReport { size: Some(9), ..complete(&items[1]) };
    assert_eq!(kit.report("dst", &dst, short).await, ReportOutcome::Illegal, "another size");
    for item in &items {
        assert_eq!(kit.state(item.item).await, ItemState::Failed, "nobody else has it");
        let attempt = kit.store.attempts(item.item).await.unwrap().remove(0);
        assert_eq!(attempt.class, Some(FailureClass::Integrity));
        assert_eq!(kit.store.file(item.lfn.clone()).await.unwrap().replicas.len(), 1, "not in the catalog");
    }
    kit.counted(id).await;
}

/// A push is claimed by a source that has the file; `auto` once a pull has failed.
pub async fn sources_claim_pushes(kit: &Kit) {
    let (src, _) = (kit.agent("src", None).await, kit.agent("empty", None).await);
    let dst = kit.agent("dst", None).await;
    kit.has_files("src", 1).await;
    let push = kit.active(RequestSpec { model: Model::Push, ..spec("dst") }, 1).await;
    assert!(kit.pulls("dst", &dst, 1, 9).await.is_empty());
    let other = kit.agent("empty", None).await;
    assert!(kit.claim("empty", &other, 1, 9, Side::Source).await.is_empty(), "it does not have the file");
    let got = kit.claim("src", &src, 1, 9, Side::Source).await;
    assert_eq!((got.len(), got[0].model, got[0].request), (1, Model::Push, push.id));
    assert_eq!((got[0].source.name.clone(), got[0].destination.name.clone()), (named("src"), named("dst")));
    assert_eq!(kit.report("src", &src, complete(&got[0])).await, ReportOutcome::Accepted);
    let replicas = kit.store.file(lfn(0)).await.unwrap().replicas;
    assert_eq!(replicas.iter().map(|r| r.agent.to_string()).collect::<Vec<_>>(), ["dst", "src"]);
    let auto = kit.active(RequestSpec { model: Model::Auto, ..spec_from("dst", &["src"]) }, 1).await;
    assert!(kit.claim("src", &src, 2, 9, Side::Source).await.is_empty(), "the destination first");
    let pulled = kit.pulls("dst", &dst, 1, 9).await.remove(0);
    assert_eq!((pulled.request, pulled.model), (auto.id, Model::Pull));
    kit.report("dst", &dst, ItemReport { retry_after_secs: Some(0), ..failed(&pulled, FailureClass::Transient) }).await;
    assert_eq!(kit.claim("src", &src, 2, 9, Side::Source).await[0].model, Model::Push);
}

/// High first, requests of one priority share, and absent sources bar nobody's way.
pub async fn the_queue_is_fair_and_never_barred(kit: &Kit) {
    kit.agent("src", None).await;
    let dst = kit.agent("dst", None).await;
    let of = |from: usize, n: usize| (from..from + n).map(|n| new_item(n, "dst")).collect::<Vec<_>>();
    let mut requests = Vec::new();
    for (start, priority, files) in [(0, 3, 50), (1000, 3, 50), (2000, 7, 5)] {
        let id = kit.resolving(RequestSpec { priority, ..spec_from("dst", &["src"]) }, of(start, files)).await;
        kit.store.resolved(id, Resolution::Approved { rule: "r".into() }).await.unwrap();
        requests.push(id);
    }
    let got = kit.pulls("dst", &dst, 1, 25).await;
    let count = |id| got.iter().filter(|a| a.request == id).count();
    assert_eq!([count(requests[0]), count(requests[1]), count(requests[2])], [10, 10, 5]);
    assert!(got[..5].iter().all(|a| a.request == requests[2]), "the highest priority first");
    // Six thousand files that nobody has, before one that somebody has.
    let id = kit.resolving(RequestSpec { priority: 9, ..spec("dst") }, of(10_000, 6000)).await;
    kit.store.add_items(id, of(20_000, 2000)).await.unwrap();
    kit.store.resolved(id, Resolution::Approved { rule: "r".into() }).await.unwrap();
    let records = (20_000..21_000).map(|n| super::kit::record(n, "src")).collect();
    kit.store.add_records(records).await.unwrap();
    let mut found = 0;
    for _ in 0..40 {
        kit.clock.nudge();
        let claim = claim(&dst, 2, 5, Side::Destination);
        let seen = kit.store.claimable(named("dst"), claim).await.unwrap();
        assert_eq!(seen.len(), 5, "lower priorities go on");
        for item in seen {
            found += usize::from(kit.store.item(item.item).await.unwrap().request == id);
        }
    }
    assert!(found > 0, "what has a source is found behind what has none");
}

/// What a draining agent has it finishes; it is asked for nothing new, as a source neither.
pub async fn a_draining_agent_gets_nothing_new(kit: &Kit) {
    kit.agent("src", None).await;
    let dst = kit.agent("dst", None).await;
    kit.active(spec_from("dst", &["src"]), 3).await;
    let first = kit.pulls("dst", &dst, 1, 1).await;
    kit.store.drain(named("dst"), true).await.unwrap();
    assert!(kit.pulls("dst", &dst, 2, 9).await.is_empty());
    assert!(kit.store.renew(named("dst"), renewal(&dst)).await.unwrap().draining);
    assert!(matches!(kit.store.remove_agent(named("dst")).await, Err(StoreError::Conflict(_))));
    assert!(matches!(kit.store.remove_agent(named("src")).await, Err(StoreError::Conflict(_))), "it is read from");
    assert_eq!(kit.report("dst", &dst, complete(&first[0])).await, ReportOutcome::Accepted);
    kit.store.drain(named("dst"), false).await.unwrap();
    kit.store.drain(named("src"), true).await.unwrap();
    assert!(kit.pulls("dst", &dst, 2, 9).await.is_empty(), "no source");
    kit.store.remove_agent(named("dst")).await.unwrap();
    assert!(matches!(kit.store.agent(named("dst")).await, Err(StoreError::NotFound(_))));
}

/// A heartbeat tells progress, and is told what is not one's own any more.
pub async fn a_heartbeat_tells_and_is_told(kit: &Kit) {
    kit.agent("src", None).await;
    let dst = kit.agent("dst", None).await;
    kit.active(spec_from("dst", &["src"]), 2).await;
    let items = kit.pulls("dst", &dst, 1, 2).await;
    let at = |n: usize, epoch| ItemProgress { item: items[n].item, epoch, bytes: 7 };
    let mut renewal = renewal(&dst);
    renewal.progress = vec![at(0, 1), at(1, 2)];
    renewal.status.running = 2;
    let news = kit.store.renew(named("dst"), renewal.clone()).await.unwrap();
    assert_eq!((news.lost, news.stop), (vec![items[1].item], Vec::new()));
    assert_eq!(kit.store.item(items[0].item).await.unwrap().progress, 7);
    let agent = kit.store.agent(named("dst")).await.unwrap();
    assert_eq!((agent.alive, agent.items, agent.status.running), (true, 2, 2));
    renewal.epoch += 1;
    assert!(is_stale(kit.store.renew(named("dst"), renewal).await));
    let other = registration("dst", None);
    let other = crate::control::model::agent::AgentRegistration { id: registration("x", None).id, ..other };
    assert!(matches!(kit.store.register(other).await, Err(StoreError::Conflict(_))), "the name is taken");
}
