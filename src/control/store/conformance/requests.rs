//! Requests: made once, decided once, never lost, never revived by mistake.

use super::kit::{Kit, actor, new_item, spec};
use crate::control::model::request::Verdict;
use crate::control::model::states::RequestState;
use crate::control::store::{Idempotency, Resolution, StoreError};

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
