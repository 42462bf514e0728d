//! Requests: made once, decided once, never lost, never revived by mistake.

use super::kit::{Kit, actor, complete, failed, named, new_item, of_dataset, renewal, says, spec, spec_from};
use crate::control::model::event::EventFilter;
use crate::control::model::item::{FailureClass, ReportOutcome};
use crate::control::model::page::PageQuery;
use crate::control::model::request::{
    Approval, ApprovalRule, Decision, RequestFilter, RequestPatch, RequestSpec, Verdict,
};
use crate::control::model::states::{ItemEvent, ItemState, RequestState};
use crate::control::store::{Actor, Idempotency, MAX_ADD, NewItem, Resolution, StoreError};

fn key(owner: &str, body: u8) -> Idempotency {
    Idempotency { key: "k1".into(), owner: owner.into(), body: [body; 32] }
}

/// The same key gives the same request for a day; another body is refused; another owner's key is another.
pub async fn a_request_is_made_once_by_its_key(kit: &Kit) {
    assert_eq!(kit.store.replay(key("ada", 1)).await.unwrap(), None);
    let first = kit.store.create_request(actor(), spec("dst"), Some(key("ada", 1))).await.unwrap();
    assert!(!first.replayed);
    let again = kit.store.create_request(actor(), spec("dst"), Some(key("ada", 1))).await.unwrap();
    assert!(again.replayed && again.request.id == first.request.id);
    assert_eq!(kit.store.replay(key("ada", 1)).await.unwrap().unwrap().id, first.request.id);
    let other = kit.store.create_request(actor(), spec("dst"), Some(key("ada", 2))).await;
    assert!(matches!(other, Err(StoreError::KeyReused)), "{other:?}");
    assert!(matches!(kit.store.replay(key("ada", 2)).await, Err(StoreError::KeyReused)));
    let bobs = kit.store.create_request(actor(), spec("dst"), Some(key("bob", 2))).await.unwrap();
    assert!(!bobs.replayed && bobs.request.id != first.request.id);
    kit.clock.forward(24 * 3600 + 1);
    let later = kit.store.create_request(actor(), spec("dst"), Some(key("ada", 2))).await.unwrap();
    assert!(!later.replayed && later.request.id != first.request.id);
    assert!(kit.sweep().await.dropped >= 1, "an old key is dropped");
}

/// Resolve, approve, cancel: each along the table.
pub async fn a_request_walks_from_resolving_to_its_end(kit: &Kit) {
    let id = kit.resolving(spec("dst"), (0..3).map(|n| new_item(n, "dst")).collect()).await;
    assert_eq!(kit.store.resolving().await.unwrap(), [id]);
    let request = kit.store.resolved(id, Resolution::NeedsApproval("no rule".into())).await.unwrap();
    assert_eq!((request.state, request.counters.files), (RequestState::PendingApproval, 3));
    assert!(kit.store.add_items(id, vec![new_item(9, "dst")]).await.is_err(), "resolved is resolved");
    let approved = kit.decide(&request, Verdict::Approve).await;
    assert_eq!((approved.state, approved.decisions.len()), (RequestState::Active, 1));
    let done = kit.store.cancel(id, actor()).await.unwrap();
    assert_eq!((done.state, done.counters.cancelled), (RequestState::Cancelled, 3));
    kit.counted(id).await;
}

fn is_conflict<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Conflict(_)))
}

/// What was looked at is what is approved, once.
pub async fn an_approval_is_bound_to_version_and_digest(kit: &Kit) {
    let request = kit.pending(spec("dst"), 2).await;
    let digest = request.digest.clone().unwrap();
    let yes = |digest: &str| Decision { decision: Verdict::Approve, digest: digest.into(), comment: None };
    let bob = || Actor { name: "bob".into() };
    assert!(is_conflict(kit.store.decide(request.id, bob(), request.version + 1, yes(&digest)).await));
    assert!(is_conflict(kit.store.decide(request.id, bob(), request.version, yes("00")).await));
    let patch = RequestPatch { priority: Some(9), ..Default::default() };
    let changed = kit.store.patch_request(request.id, request.version, patch.clone()).await.unwrap();
    assert!(is_conflict(kit.store.patch_request(request.id, request.version, patch).await), "an old version");
    assert!(is_conflict(kit.store.decide(request.id, bob(), request.version, yes(&digest)).await), "it was changed");
    let active = kit.store.decide(request.id, bob(), changed.version, yes(&digest)).await.unwrap();
    assert_eq!((active.state, active.decisions[0].by.as_str()), (RequestState::Active, "bob"));
    assert!(is_conflict(kit.store.decide(request.id, bob(), active.version, yes(&digest)).await), "approved twice");
    let unknown = kit.store.decide(crate::control::model::name::RequestId::new(), bob(), 1, yes("00")).await;
    assert!(matches!(unknown, Err(StoreError::NotFound(_))), "an unknown id is nothing to approve");
}

/// A batch with a path that the request has already leaves nothing behind.
pub async fn one_path_is_written_once(kit: &Kit) {
    let id = kit.resolving(spec("dst"), vec![new_item(0, "dst")]).await;
    let twice = NewItem { lfn: named("/other"), ..new_item(0, "dst") };
    assert!(is_conflict(kit.store.add_items(id, vec![new_item(1, "dst"), twice.clone()]).await));
    assert_eq!(kit.counted(id).await.counters.files, 1);
    let elsewhere = NewItem { destination: named("dst2"), ..twice };
    kit.store.add_items(id, vec![elsewhere]).await.unwrap();
    assert_eq!(kit.counted(id).await.counters.files, 2);
    let many = (0..=MAX_ADD).map(|n| new_item(n, "dst")).collect();
    assert!(matches!(kit.store.add_items(id, many).await, Err(StoreError::TooMuch(_))));
}

/// The digest is over the files, however they came; another file is another digest.
pub async fn resolving_begins_anew_after_a_crash(kit: &Kit) {
    let all: Vec<NewItem> = (0..5).map(|n| new_item(n, "dst")).collect();
    let first = kit.resolving(spec("dst"), all.clone()).await;
    let second = kit.resolving(spec("dst"), all[..2].to_vec()).await;
    assert!(!kit.store.restart_resolving(second).await.unwrap(), "few items are removed at once");
    assert_eq!(kit.counted(second).await.counters.files, 0);
    kit.store.add_items(second, all[..3].to_vec()).await.unwrap();
    kit.store.add_items(second, all[3..].to_vec()).await.unwrap();
    let other = kit.resolving(spec("dst"), all[..4].to_vec()).await;
    assert_eq!(kit.store.resolving().await.unwrap(), [first, second, other]);
    let mut digests = Vec::new();
    for id in [first, second, other] {
        digests.push(kit.store.resolved(id, Resolution::NeedsApproval("x".into())).await.unwrap().digest.unwrap());
    }
    assert!(digests[0] == digests[1] && digests[0] != digests[2], "{digests:?}");
    assert!(is_conflict(kit.store.restart_resolving(first).await) && kit.store.resolving().await.unwrap().is_empty());
    let order: Vec<_> = kit.items(second).await.into_iter().map(|item| item.lfn).collect();
    assert_eq!(order, all.into_iter().map(|item| item.lfn).collect::<Vec<_>>());
}

/// No is no, and what cannot be found has failed; only what has ended is forgotten.
pub async fn only_ended_requests_are_deleted(kit: &Kit) {
    let request = kit.pending(spec("dst"), 2).await;
    assert!(is_conflict(kit.store.delete_request(request.id, actor()).await));
    let rejected = kit.decide(&request, Verdict::Reject).await;
    assert_eq!((rejected.state, rejected.counters.cancelled), (RequestState::Rejected, 2));
    assert!(is_conflict(kit.store.cancel(request.id, actor()).await));
    assert!(is_conflict(kit.store.retry_failed(request.id, actor()).await));
    let item = kit.items(request.id).await[0].id;
    kit.store.delete_request(request.id, actor()).await.unwrap();
    assert!(matches!(kit.store.request(request.id).await, Err(StoreError::NotFound(_))));
    assert!(matches!(kit.store.item(item).await, Err(StoreError::NotFound(_))));
    let id = kit.resolving(spec("dst"), vec![new_item(0, "dst")]).await;
    let failed = kit.store.resolved(id, Resolution::Failed("no such dataset".into())).await.unwrap();
    assert_eq!((failed.state, failed.reason.as_deref()), (RequestState::Failed, Some("no such dataset")));
    kit.counted(id).await;
    assert!(is_conflict(kit.store.retry_failed(id, actor()).await), "nobody approved it");
    let empty = kit.active(spec("dst"), 0).await;
    assert_eq!(empty.state, RequestState::Succeeded, "nothing to do is done");
}

/// Every filter, alone and together, in pages.
pub async fn lists_are_filtered_and_paged(kit: &Kit) {
    let labelled = |n: usize| {
        let labels = [("run".to_owned(), (n % 2).to_string())].into();
        RequestSpec { labels, ..if n.is_multiple_of(3) { of_dataset("dst", "/a/b") } else { spec("dst2") } }
    };
    let mut made = Vec::new();
    for n in 0..12 {
        let owner = Actor { name: if n < 6 { "ada".into() } else { "bob".into() } };
        made.push(kit.store.create_request(owner, labelled(n), None).await.unwrap().request.id);
    }
    kit.store.cancel(made[0], actor()).await.unwrap();
    let all = |filter: RequestFilter| async move {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = kit.store.requests(filter.clone(), PageQuery { cursor, limit: Some(2) }).await.unwrap();
            assert!(page.items.len() <= 2);
            found.extend(page.items.into_iter().map(|request| request.id));
            cursor = page.next;
            if cursor.is_none() {
                return found;
            }
        }
    };
    let which = |keep: &dyn Fn(usize) -> bool| (0..12).rev().filter(|n| keep(*n)).map(|n| made[n]).collect::<Vec<_>>();
    assert_eq!(all(RequestFilter::default()).await, which(&|_| true), "the newest first");
    let owner = RequestFilter { owner: Some("bob".into()), ..Default::default() };
    assert_eq!(all(owner.clone()).await, which(&|n| n >= 6));
    let state = RequestFilter { state: Some(RequestState::Cancelled), ..Default::default() };
    assert_eq!(all(state).await, [made[0]]);
    let to = RequestFilter { destination: Some(named("dst2")), ..Default::default() };
    assert_eq!(all(to.clone()).await, which(&|n| n % 3 != 0));
    let dataset = RequestFilter { dataset: Some(named("/a/b")), ..Default::default() };
    assert_eq!(all(dataset).await, which(&|n| n % 3 == 0));
    let label = RequestFilter { label: Some("run=1".into()), ..to };
    assert_eq!(
        all(RequestFilter { owner: owner.owner, ..label }).await,
        which(&|n| n >= 6 && n % 2 == 1 && n % 3 != 0)
    );
    let page = PageQuery { cursor: Some("nonsense".into()), limit: None };
    assert!(kit.store.requests(RequestFilter::default(), page).await.is_err());
    let labels = Some([("run".to_owned(), "9".to_owned())].into());
    let version = kit.store.request(made[1]).await.unwrap().version;
    kit.store.patch_request(made[1], version, RequestPatch { labels, ..Default::default() }).await.unwrap();
    let relabelled = RequestFilter { label: Some("run=9".into()), ..Default::default() };
    assert_eq!(all(relabelled).await, [made[1]]);
}

/// Nothing is claimed of a request that pauses, and everything afterwards.
pub async fn a_pause_holds_the_queue(kit: &Kit) {
    kit.agent("src", None).await;
    let dst = kit.agent("dst", None).await;
    let request = kit.active(spec_from("dst", &["src"]), 2).await;
    let paused = kit.store.pause(request.id, actor(), true).await.unwrap();
    assert!(paused.paused && paused.version > request.version);
    let again = kit.store.pause(request.id, actor(), true).await.unwrap();
    assert_eq!(again.version, paused.version, "no change");
    assert!(kit.pulls("dst", &dst, 1, 10).await.is_empty());
    kit.store.pause(request.id, actor(), false).await.unwrap();
    assert_eq!(kit.pulls("dst", &dst, 1, 10).await.len(), 2, "a claim that got nothing has used no number");
    let later =
        RequestSpec { not_before: Some(kit.clock.now().plus_secs(60)), path: None, ..spec_from("dst", &["src"]) };
    let id = kit.resolving(later, vec![new_item(7, "dst")]).await;
    kit.store.resolved(id, Resolution::Approved { rule: "r".into() }).await.unwrap();
    assert!(kit.pulls("dst", &dst, 2, 10).await.is_empty(), "not before its time");
    kit.clock.forward(61);
    let dst = kit.agent("dst", None).await;
    kit.agent("src", None).await;
    assert!(kit.pulls("dst", &dst, 1, 10).await.iter().any(|a| a.request == id));
}

/// A deadline ends what waits, tells agents to stop, and does not approve.
pub async fn deadlines_end_requests(kit: &Kit) {
    kit.agent("src", None).await;
    let dst = kit.agent("dst", None).await;
    let soon = Some(kit.clock.now().plus_secs(10));
    let pending = kit.pending(RequestSpec { deadline: soon, ..spec("dst") }, 2).await;
    let running = kit.active(RequestSpec { deadline: soon, ..spec_from("dst", &["src"]) }, 3).await;
    let claimed = kit.pulls("dst", &dst, 1, 1).await;
    assert_eq!(kit.sweep().await.requests, 0);
    kit.clock.forward(10);
    assert_eq!(kit.sweep().await.requests, 2);
    assert_eq!(kit.sweep().await.requests, 0, "once");
    let pending = kit.counted(pending.id).await;
    assert_eq!((pending.state, pending.counters.failed), (RequestState::Expired, 2));
    assert!(is_conflict(kit.store.retry_failed(pending.id, actor()).await), "it was never approved");
    let seen = kit.counted(running.id).await;
    assert_eq!((seen.state, seen.counters.failed, seen.counters.running), (RequestState::Active, 2, 1));
    let news = kit.store.renew(named("dst"), renewal(&dst)).await.unwrap();
    assert_eq!(news.stop, [claimed[0].item]);
    for _ in 0..2 {
        let stopped = says(&claimed[0], ItemEvent::Cancel);
        assert_eq!(kit.report("dst", &dst, stopped).await, ReportOutcome::Accepted);
    }
    let seen = kit.counted(running.id).await;
    assert_eq!((seen.state, seen.counters.failed), (RequestState::Expired, 3));
    assert!(is_conflict(kit.store.retry_failed(running.id, actor()).await), "its deadline has passed");
    let patch = RequestPatch { deadline: Some(kit.clock.now().plus_secs(1000)), ..Default::default() };
    kit.store.patch_request(running.id, seen.version, patch).await.unwrap();
    let again = kit.store.retry_failed(running.id, actor()).await.unwrap();
    assert_eq!((again.state, again.counters.queued, again.ended), (RequestState::Active, 3, None));
    let claimed = kit.pulls("dst", &dst, 2, 10).await;
    for item in &claimed {
        assert_eq!(kit.report("dst", &dst, complete(item)).await, ReportOutcome::Accepted);
    }
    assert_eq!(kit.counted(running.id).await.state, RequestState::Succeeded);
}

/// Failed items begin anew; a partial request becomes whole.
pub async fn failed_items_are_tried_again_by_request(kit: &Kit) {
    kit.agent("src", None).await;
    let dst = kit.agent("dst", None).await;
    let request = kit.active(spec_from("dst", &["src"]), 2).await;
    let claimed = kit.pulls("dst", &dst, 1, 2).await;
    kit.report("dst", &dst, complete(&claimed[0])).await;
    kit.report("dst", &dst, failed(&claimed[1], FailureClass::SourceBad)).await;
    let item = kit.store.item(claimed[1].item).await.unwrap();
    assert_eq!(item.state, ItemState::Failed, "nobody else has it");
    assert!(item.reason.unwrap().contains("nobody else"));
    assert_eq!(kit.counted(request.id).await.state, RequestState::Partial);
    let retried = kit.store.retry_failed(request.id, actor()).await.unwrap();
    assert_eq!((retried.state, retried.counters.queued, retried.counters.done), (RequestState::Active, 1, 1));
    let claimed = kit.pulls("dst", &dst, 2, 2).await;
    assert_eq!((claimed.len(), claimed[0].epoch), (1, 2), "its source is not excluded any more");
    kit.report("dst", &dst, complete(&claimed[0])).await;
    assert_eq!(kit.counted(request.id).await.state, RequestState::Succeeded);
    assert!(is_conflict(kit.store.retry_failed(request.id, actor()).await));
    let attempts = kit.store.attempts(claimed[0].item).await.unwrap();
    assert_eq!(attempts.iter().map(|a| a.class).collect::<Vec<_>>(), [Some(FailureClass::SourceBad), None]);
}

/// What happened can be read again, in order, and waited for.
pub async fn events_tell_everything_in_order(kit: &Kit) {
    let before = kit.store.last_event().await.unwrap();
    let request = kit.pending(spec("dst"), 1).await;
    kit.decide(&request, Verdict::Approve).await;
    kit.store.cancel(request.id, actor()).await.unwrap();
    kit.store.set_approval_rules(actor(), Vec::new()).await.unwrap();
    let of = EventFilter { subject: Some(request.id.to_string()), kind: None };
    let events = kit.store.events(before, of.clone(), 100).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    let all = ["request.created", "request.resolved", "request.approved", "request.cancelling", "request.cancelled"];
    assert_eq!(kinds, all);
    assert!(events.windows(2).all(|pair| pair[0].id < pair[1].id));
    let rest = kit.store.events(events[2].id, of, 1).await.unwrap();
    assert_eq!(rest[0].id, events[3].id, "resumes after an id");
    let policy = EventFilter { subject: None, kind: Some("policy".into()) };
    assert_eq!(kit.store.events(before, policy, 9).await.unwrap().len(), 1);
    let last = kit.store.last_event().await.unwrap();
    kit.store.wait_event(last - 1).await;
    kit.clock.forward(8 * 24 * 3600);
    assert!(kit.sweep().await.dropped >= 6);
    assert!(kit.store.events(0, EventFilter::default(), 100).await.unwrap().is_empty());
    assert_eq!(kit.store.last_event().await.unwrap(), last, "ids are not used again");
    kit.store.set_approval_rules(actor(), Vec::new()).await.unwrap();
    assert_eq!(kit.store.last_event().await.unwrap(), last + 1);
}

/// Rules come back in their order; all are replaced.
pub async fn approval_rules_are_replaced_as_a_whole(kit: &Kit) {
    let rule = |name: &str, then| ApprovalRule {
        name: name.into(),
        owner: Some("ada".into()),
        dataset_prefix: None,
        destination: None,
        max_bytes: Some(1 << 40),
        then,
    };
    let rules = vec![rule("z", Approval::Automatic), rule("a", Approval::SecondPerson)];
    kit.store.set_approval_rules(actor(), rules.clone()).await.unwrap();
    assert_eq!(kit.store.approval_rules().await.unwrap(), rules);
    kit.store.set_approval_rules(actor(), rules[1..].to_vec()).await.unwrap();
    assert_eq!(kit.store.approval_rules().await.unwrap(), rules[1..]);
}
