//! Claims, reports, leases: never one item done twice, nothing acknowledged lost.

use super::kit::{Kit, complete, lfn, spec};
use crate::control::model::item::ReportOutcome;
use crate::control::model::states::{ItemState, RequestState};

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
