//! What every store does, as tests over the trait: each backend runs the very same. A backend gives a fresh store on a
//! [`HandClock`] and names itself in [`conformance_suite!`].

pub mod kit;
pub mod requests;
pub mod work;

pub use kit::{HandClock, Kit};

/// One test a function of the suite, over what `$open` makes: `(Kit, anything to keep alive)`.
macro_rules! conformance_suite {
    ($open:path) => {
        $crate::control::store::conformance::conformance_suite!(
            $open;
            requests: a_request_is_made_once_by_its_key, a_request_walks_from_resolving_to_its_end;
            work: a_pull_from_claim_to_catalog;
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
pub(crate) use conformance_suite;
