//! Where main keeps what it must not forget. One trait, one conformance suite; SQLite by default. Every method is one
//! transaction: its effect, its events and, where one was given, its idempotency key are there together or not at all, and
//! durable when it returns. Nothing authoritative is kept outside: any number of mains may share a store, so what changes a
//! thing names the version or epoch it saw, and leases are judged by the store's clock.

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod sqlite;

use super::bridge::Boxed;
use super::model::agent::{AgentRegistration, AgentView, OpenSession, Renewal, Renewed, Session};
use super::model::agent::{DEFAULT_LEASE_SECS, DEFAULT_REATTACH_SECS};
use super::model::catalog::{FileFilter, FileView, GroupView, Record};
use super::model::event::{Event, EventFilter};
use super::model::item::{Assignment, AttemptView, Claim, ItemReport, ItemView, ReportOutcome};
use super::model::name::{AgentName, DatasetName, ItemId, Lfn, RequestId};
use super::model::page::{Page, PageQuery};
use super::model::request::{ApprovalRule, Decision, RequestFilter, RequestPatch, RequestSpec, RequestView};
use super::model::states::ItemState;
use super::model::time::Time;
use std::fmt;
use std::sync::Arc;

/// Items of one [`Store::add_items`]: what one transaction holds up others for stays below a second.
pub const MAX_ADD: usize = 10_000;

/// Where a store reads the time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Time + Send + Sync>);

impl Clock {
    /// The wall clock of this machine.
    pub fn system() -> Self {
        Self::new(Time::now)
    }

    /// Another one, for tests.
    pub fn new(read: impl Fn() -> Time + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// Now.
    pub fn now(&self) -> Time {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

/// How long agents are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leases {
    /// Seconds that a lease lasts without a renewal.
    pub lease_secs: u64,
    /// Seconds after a lease's end in which the agent gets its items back.
    pub reattach_secs: u64,
}

impl Default for Leases {
    fn default() -> Self {
        Self { lease_secs: DEFAULT_LEASE_SECS, reattach_secs: DEFAULT_REATTACH_SECS }
    }
}

/// Why a store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such thing.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// It was changed by somebody else meanwhile, or is not in a state for that.
    #[error("{0}")]
    Conflict(String),
    /// The session or epoch is an old one.
    #[error("this session is over: another one of the agent has begun, or its lease has ended")]
    StaleSession,
    /// The key was used for something else.
    #[error("this Idempotency-Key was used for another request: choose a new one")]
    KeyReused,
    /// Over a bound.
    #[error("{0}")]
    TooMuch(String),
    /// Busy, full, damaged or gone: nothing was done, or it is not known.
    #[error("the store cannot do it now: {0}")]
    Unavailable(String),
}

/// What store methods return.
pub type Stored<'a, T> = Boxed<'a, Result<T, StoreError>>;

/// Whoever acts, for the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// A token's name.
    pub name: String,
}

/// A key that makes a call repeatable for 24 hours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// What the client chose.
    pub key: String,
    /// Whose it is: the same key of another is another key.
    pub owner: String,
    /// SHA-256 of method, path and body.
    pub body: [u8; 32],
}

/// What [`Store::create_request`] did.
#[derive(Debug, Clone, PartialEq)]
pub struct Created {
    /// The request.
    pub request: RequestView,
    /// It had been made before, with the same key.
    pub replayed: bool,
}

/// An item to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewItem {
    /// Which file.
    pub lfn: Lfn,
    /// Where it goes below the destination's root.
    pub path: Lfn,
    /// To whom.
    pub destination: AgentName,
    /// Where the named source has it, when the catalog does not know.
    pub source_path: Option<Lfn>,
    /// Size, when known.
    pub bytes: Option<u64>,
    /// Digest, when known.
    pub digest: Option<String>,
}

/// How resolving ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// Somebody has to approve; the sentence says by which rule.
    NeedsApproval(String),
    /// A rule approves.
    Approved {
        /// Its name.
        rule: String,
    },
    /// It cannot be done; the sentence says why.
    Failed(String),
}

/// An item that may be claimed, with those who can serve it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimable {
    /// The item.
    pub item: ItemId,
    /// As seen; the claim fails if it has changed.
    pub epoch: u64,
    /// In bytes, when known.
    pub bytes: Option<u64>,
    /// Alive sources that have it and are allowed, never empty.
    pub candidates: Vec<Candidate>,
}

/// Who can serve an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub agent: AgentName,
    /// Its live items.
    pub load: u64,
    /// Failed tries of this item from there.
    pub failures: u64,
    /// Long holds of this item there that its agent gave back.
    pub holds: u64,
    /// Whether it is online there.
    pub online: bool,
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Sessions whose lease has ended.
    pub sessions: u64,
    /// Items given back.
    pub items: u64,
    /// Requests that expired.
    pub requests: u64,
    /// Items that were ended with their stopped requests, and rows of deleted requests that were removed.
    pub drained: u64,
    /// There is more to drain: sweep again at once.
    pub more: bool,
    /// Old events and keys that were dropped.
    pub dropped: u64,
}

/// See the module.
pub trait Store: Send + Sync {
    /// The clock that leases, holds and deadlines are judged by.
    fn now(&self) -> Stored<'_, Time>;

    // Requests

    /// A new request, [`RequestState::Resolving`](super::model::states::RequestState::Resolving).
    fn create_request(&self, actor: Actor, spec: RequestSpec, key: Option<Idempotency>) -> Stored<'_, Created>;
    /// The request that was made with `key`, if one was: what was acknowledged is so again before anything else is asked.
    /// [`StoreError::KeyReused`] as above.
    /// A store that leaves this out answers in [`Store::create_request`] only.
    fn replay(&self, _key: Idempotency) -> Stored<'_, Option<RequestView>> {
        Box::pin(async { Ok(None) })
    }
    /// More items of a request that is being resolved. A path that is already taken at its destination by a live item of another request
    /// is a conflict when that item is claimed, not here. The same path twice in one request: [`StoreError::Conflict`].
    fn add_items(&self, request: RequestId, items: Vec<NewItem>) -> Stored<'_, ()>;
    /// Removes what [`Store::add_items`] brought, to resolve anew after a crash; at most so much that others do not wait.
    /// `true`: there is more, ask again.
    fn restart_resolving(&self, request: RequestId) -> Stored<'_, bool>;
    /// Ends resolving; the digest over all items is computed and kept.
    fn resolved(&self, request: RequestId, resolution: Resolution) -> Stored<'_, RequestView>;
    /// Requests that are being resolved, the oldest first: what a main goes on with after a restart.
    fn resolving(&self) -> Stored<'_, Vec<RequestId>>;
    /// One request.
    fn request(&self, id: RequestId) -> Stored<'_, RequestView>;
    /// The newest first.
    fn requests(&self, filter: RequestFilter, page: PageQuery) -> Stored<'_, Page<RequestView>>;
    /// Approves or rejects. `version` as the approver saw it; [`Decision::digest`] is compared.
    fn decide(&self, id: RequestId, actor: Actor, version: u64, decision: Decision) -> Stored<'_, RequestView>;
    /// Changes what can be changed.
    fn patch_request(&self, id: RequestId, version: u64, patch: RequestPatch) -> Stored<'_, RequestView>;
    /// Pauses or resumes. Again: no change.
    fn pause(&self, id: RequestId, actor: Actor, paused: bool) -> Stored<'_, RequestView>;
    /// Cancels: nothing more of it is given out. What nobody has is cancelled at once, of many the first ones and the rest by
    /// [`Store::sweep`]; what agents have when they have said so or lost their lease.
    fn cancel(&self, id: RequestId, actor: Actor) -> Stored<'_, RequestView>;
    /// Failed items are queued again, with new tries.
    fn retry_failed(&self, id: RequestId, actor: Actor) -> Stored<'_, RequestView>;
    /// Forgets an ended request. It is gone at once; what many items leave behind is removed by [`Store::sweep`].
    fn delete_request(&self, id: RequestId, actor: Actor) -> Stored<'_, ()>;

    // Items

    /// In the order in which they were added.
    fn items(&self, request: RequestId, state: Option<ItemState>, page: PageQuery) -> Stored<'_, Page<ItemView>>;
    /// One item.
    fn item(&self, id: ItemId) -> Stored<'_, ItemView>;
    /// Its tries, the oldest first.
    fn attempts(&self, id: ItemId) -> Stored<'_, Vec<AttemptView>>;

    // Agents

    /// Registers, or renews a registration.
    fn register(&self, registration: AgentRegistration) -> Stored<'_, AgentView>;
    /// All, by name.
    fn agents(&self) -> Stored<'_, Vec<AgentView>>;
    /// One.
    fn agent(&self, name: AgentName) -> Stored<'_, AgentView>;
    /// Whether it is given something new.
    fn drain(&self, name: AgentName, draining: bool) -> Stored<'_, AgentView>;
    /// Forgets it; [`StoreError::Conflict`] while it has live items.
    fn remove_agent(&self, name: AgentName) -> Stored<'_, ()>;
    /// A new session; the one before is over.
    fn open_session(&self, name: AgentName, open: OpenSession) -> Stored<'_, Session>;
    /// The heartbeat.
    fn renew(&self, name: AgentName, renewal: Renewal) -> Stored<'_, Renewed>;
    /// What `claim` could get: by priority, then age; no item whose destination path is held by a live item. Nothing is changed.
    fn claimable(&self, name: AgentName, claim: Claim) -> Stored<'_, Vec<Claimable>>;
    /// Takes those of `chosen` (item, epoch seen, source) that are still as they were seen. A repeated
    /// [`Claim::seq`] gets what it got before, whatever is chosen now. What got nothing is not remembered: a long-poll asks
    /// again with the same number.
    fn claim(
        &self,
        name: AgentName,
        claim: Claim,
        chosen: Vec<(ItemId, u64, AgentName)>,
    ) -> Stored<'_, Vec<Assignment>>;
    /// Items the session holds, to look at after a restart of either side.
    fn assignments(&self, name: AgentName, session: super::model::name::SessionKey) -> Stored<'_, Vec<Assignment>>;
    /// Takes reports, each by itself; completed and skipped items enter the catalog in the same transaction.
    fn report(
        &self,
        name: AgentName,
        session: super::model::name::SessionKey,
        reports: Vec<ItemReport>,
    ) -> Stored<'_, Vec<ReportOutcome>>;
    /// Ends leases, holds and deadlines that are over; gives back the items of sessions that have been gone for longer than the
    /// re-attach time; goes on with what was stopped or deleted; drops old events and keys. `unheard`: sessions that this process has seen no renewal of for a whole lease by
    /// its own monotonic clock; others are spared, so that a step of the clock ends nobody.
    fn sweep(&self, unheard: Vec<super::model::name::SessionKey>) -> Stored<'_, Swept>;
    /// Sessions whose lease is over by the store's clock and whose items have not been given back.
    fn overdue(&self) -> Stored<'_, Vec<super::model::name::SessionKey>>;

    // Catalog

    /// Adds or replaces replicas, all or none.
    fn add_records(&self, records: Vec<Record>) -> Stored<'_, ()>;
    /// Removes replicas; files without one stay known.
    fn remove_records(&self, agent: AgentName, lfns: Vec<Lfn>) -> Stored<'_, u64>;
    /// By name.
    fn datasets(&self, prefix: Option<DatasetName>, page: PageQuery) -> Stored<'_, Page<GroupView>>;
    /// By name.
    fn blocks(&self, dataset: DatasetName, page: PageQuery) -> Stored<'_, Page<GroupView>>;
    /// By name.
    fn files(&self, filter: FileFilter, page: PageQuery) -> Stored<'_, Page<FileView>>;
    /// One file.
    fn file(&self, lfn: Lfn) -> Stored<'_, FileView>;

    // Events and rules

    /// After `after`, the oldest first, at most `limit`.
    fn events(&self, after: i64, filter: EventFilter, limit: usize) -> Stored<'_, Vec<Event>>;
    /// The last event's id, 0 if there is none.
    fn last_event(&self) -> Stored<'_, i64>;
    /// Returns when there may be something after `after`, at the latest after a second. A hint.
    fn wait_event(&self, after: i64) -> Boxed<'_, ()>;
    /// In order.
    fn approval_rules(&self) -> Stored<'_, Vec<ApprovalRule>>;
    /// Replaces all of them.
    fn set_approval_rules(&self, actor: Actor, rules: Vec<ApprovalRule>) -> Stored<'_, ()>;
}
