//! One file of a request: how it stands, what an agent is given of it, and what the agent reports.

use super::name::{AgentName, ItemId, Lfn, RequestId, SessionKey, StageId};
use super::request::Model;
use super::states::{ItemEvent, ItemState};
use super::time::Time;
use crate::engine::spec::{IfExists, Verify};
use serde::{Deserialize, Serialize};

/// Assignments of one claim.
pub const MAX_CLAIM: usize = 1000;
/// Reports of one batch.
pub const MAX_REPORTS: usize = 1000;

/// What is to become of a failed try. Decided by a code, never by words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// May pass: the same again, later.
    Transient,
    /// Another source may have it.
    SourceBad,
    /// Nothing can be placed there now: full, over quota, read-only.
    DestinationBad,
    /// The bytes are not what the catalog says.
    Integrity,
    /// Will not get better.
    Permanent,
    /// Come later: no try is counted.
    Backpressure,
}

/// One file of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ItemView {
    /// Its id.
    pub id: ItemId,
    /// Of this request.
    pub request: RequestId,
    /// Which file.
    pub lfn: Lfn,
    /// Where it goes below the destination's root.
    pub path: Lfn,
    /// In bytes, once known.
    pub bytes: Option<u64>,
    /// File digest as hex, once known.
    pub digest: Option<String>,
    /// How it stands.
    pub state: ItemState,
    /// To whom.
    pub destination: AgentName,
    /// From whom, once claimed.
    pub source: Option<AgentName>,
    /// Counts up with every claim; what an older one reports is refused.
    pub epoch: u64,
    /// Tries that counted.
    pub tries: u32,
    /// Not claimed before this.
    pub not_before: Option<Time>,
    /// Since when it is on hold, over all its claims.
    pub hold_since: Option<Time>,
    /// Bytes placed, as last reported.
    pub progress: u64,
    /// Why it waits or failed.
    pub reason: Option<String>,
    /// When it last changed.
    pub changed: Time,
}

/// One try of an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AttemptView {
    /// The claim.
    pub epoch: u64,
    /// From whom.
    pub source: AgentName,
    /// Who did it.
    pub agent: AgentName,
    /// When it was claimed.
    pub started: Time,
    /// When it ended.
    pub ended: Option<Time>,
    /// How it ended, as the item's event.
    pub outcome: Option<ItemEvent>,
    /// Of a failed one.
    pub class: Option<FailureClass>,
    /// In words.
    pub reason: Option<String>,
    /// Payload bytes that it moved.
    pub bytes: u64,
}

/// What an agent claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Its session.
    pub session: SessionKey,
    /// That session's epoch.
    pub session_epoch: u64,
    /// Counts up with every claim of the session. The same number again gets the same answer again.
    pub seq: u64,
    /// As whom: the destination claims pulls, the source pushes.
    pub side: Side,
    /// At most so many, up to [`MAX_CLAIM`].
    pub limit: usize,
}

/// Which side of a transfer an agent works for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Serves.
    Source,
    /// Takes.
    Destination,
}

/// How to reach an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AgentEndpoint {
    /// Its name.
    pub name: AgentName,
    /// `lh://host:port`, its HTTP address.
    pub url: String,
    /// SHA-256 of its certificate, as `sha256:hex`, from its registration.
    pub fingerprint: Option<String>,
}

/// One item on its way to an agent: all it needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Assignment {
    /// The item.
    pub item: ItemId,
    /// Of this request.
    pub request: RequestId,
    /// This claim's epoch.
    pub epoch: u64,
    /// Which file.
    pub lfn: Lfn,
    /// Where it is below the source's root.
    pub source_path: Lfn,
    /// Where it goes below the destination's root.
    pub path: Lfn,
    /// Required, when known.
    pub bytes: Option<u64>,
    /// Required, when known.
    pub digest: Option<String>,
    /// Who moves.
    pub model: Model,
    /// The source.
    pub source: AgentEndpoint,
    /// The destination.
    pub destination: AgentEndpoint,
    /// Higher first.
    pub priority: u8,
    /// Bits per second of the whole request.
    pub max_rate: Option<u64>,
    /// What to do about what stands there.
    #[schema(value_type = String)]
    pub if_exists: IfExists,
    /// Which verdict it needs.
    #[schema(value_type = Option<String>)]
    pub verify: Option<Verify>,
    /// A hold ends as a failure at this moment.
    pub hold_until: Time,
    /// For the catalog, when the file belongs to a block.
    pub block: Option<super::name::BlockName>,
    /// See `block`.
    pub dataset: Option<super::name::DatasetName>,
}

/// What an agent says of an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ItemReport {
    /// The item.
    pub item: ItemId,
    /// The claim it works under.
    pub epoch: u64,
    /// What happened. `Start` to `Complete`, `Hold`, `Ready`, `Skip`, `Requeue`, `Fail`, `Cancel`; steps in between may be left
    /// out: `Complete` alone, from any live state, passes through them.
    pub event: ItemEvent,
    /// Bytes placed or moved.
    #[serde(default)]
    pub bytes: u64,
    /// With `Complete` and `Skip`: the file digest, which goes into the catalog.
    #[serde(default)]
    pub digest: Option<String>,
    /// With `Complete` and `Skip`: the file's size.
    #[serde(default)]
    pub size: Option<u64>,
    /// With `Requeue` and `Fail`.
    #[serde(default)]
    pub class: Option<FailureClass>,
    /// In words.
    #[serde(default)]
    pub reason: Option<String>,
    /// With `Hold`: the source's stage.
    #[serde(default)]
    pub stage: Option<StageId>,
    /// With `Hold` and `Requeue`: not before so many seconds.
    #[serde(default)]
    pub retry_after_secs: Option<u64>,
}

impl ItemReport {
    /// A report that says no more than what happened.
    pub fn new(item: ItemId, epoch: u64, event: ItemEvent) -> Self {
        let (digest, size, class, reason) = (None, None, None, None);
        Self { item, epoch, event, bytes: 0, digest, size, class, reason, stage: None, retry_after_secs: None }
    }
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReportOutcome {
    /// Taken, or had been taken before.
    Accepted,
    /// The item belongs to a later claim: stop working on it, keep the data.
    StaleEpoch,
    /// There is no such item any more: stop working on it.
    Unknown,
    /// Not from the state it is in.
    Illegal,
}

/// Progress of an item that runs, sent with the heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ItemProgress {
    /// The item.
    pub item: ItemId,
    /// The claim.
    pub epoch: u64,
    /// Bytes placed.
    pub bytes: u64,
}
