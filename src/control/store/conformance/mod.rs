//! What every store does, as tests over the trait: each backend runs the very same. A backend gives a fresh store on a
//! [`HandClock`] and names itself in [`conformance_suite!`].

pub mod catalog;
pub mod kit;
pub mod random;
pub mod requests;
pub mod work;

pub use kit::{HandClock, Kit};

/// One test a function of the suite, over what `$open` makes: `(Kit, anything to keep alive)`.
#[cfg(test)]
macro_rules! conformance_suite {
    ($open:path) => {
        $crate::control::store::conformance::conformance_suite!(
            $open;
            requests: a_request_is_made_once_by_its_key, a_request_walks_from_resolving_to_its_end, an_approval_is_bound_to_version_and_digest, one_path_is_written_once, resolving_begins_anew_after_a_crash, only_ended_requests_are_deleted, lists_are_filtered_and_paged, a_pause_holds_the_queue, deadlines_end_requests, failed_items_are_tried_again_by_request, events_tell_everything_in_order, approval_rules_are_replaced_as_a_whole;
            work: a_pull_from_claim_to_catalog, a_claim_takes_what_is_as_it_was_seen, one_live_item_has_a_path, a_lost_agent_loses_its_items_after_the_grace, an_agent_comes_back_to_its_items, reports_go_along_the_table, holds_wait_and_end, failures_are_decided_by_class, a_full_storage_is_paused_and_fails_nothing, a_source_that_held_is_asked_last, many_items_end_and_go_in_slices, a_cancel_ends_when_its_agents_have_stopped, what_differs_from_the_catalog_is_not_done, sources_claim_pushes, the_queue_is_fair_and_never_barred, a_draining_agent_gets_nothing_new, a_heartbeat_tells_and_is_told;
            catalog: a_logical_file_does_not_change, sums_count_files_once, files_are_filtered_and_paged;
        );
    };
    ($open:path; $($group:ident: $($name:ident),+;)+) => {
        $(mod $group {
            $(#[tokio::test]
            async fn $name() {
                let (kit, _keep) = $open();
                $crate::control::store::conformance::$group::$name(&kit).await;
            })+
        })+
    };
}
#[cfg(test)]
pub(crate) use conformance_suite;
