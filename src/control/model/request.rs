//! What a client asks for, and how it stands.

use super::name::{AgentName, BlockName, DatasetName, Lfn, RequestId};
use super::states::{ItemState, RequestState};
use super::time::Time;
use crate::engine::spec::{IfExists, Verify};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Files that can be listed in the request itself; more come as a manifest.
pub const MAX_LISTED: usize = 10_000;
/// Destinations of one request.
pub const MAX_DESTINATIONS: usize = 64;
/// Labels of one request, and the bytes of each key and value.
pub const MAX_LABELS: usize = 32;
/// See [`MAX_LABELS`].
pub const MAX_LABEL: usize = 255;
/// The highest priority; 0 is the lowest.
pub const MAX_PRIORITY: u8 = 9;
/// How long a hold may last when nothing is said: tape libraries take days when they are busy.
pub const DEFAULT_STAGE_TIMEOUT_SECS: u64 = 7 * 24 * 3600;
/// Tries of one item when nothing is said.
pub const DEFAULT_TRIES: u32 = 5;

/// Which files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Selection {
    /// All files of a dataset that the catalog has.
    Dataset(DatasetName),
    /// All files of a block that the catalog has.
    Block(BlockName),
    /// These, by name; the catalog or the named source must have them.
    Files(Vec<Lfn>),
    /// What lies below this path at the named source; the source lists it, the catalog need not know it.
    Prefix(Lfn),
    /// As many files as are uploaded, one JSON line each ([`ManifestLine`]), to `POST /v1/requests/{id}/manifest`.
    Manifest,
}

/// One line of an uploaded manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ManifestLine {
    /// Which file.
    pub lfn: Lfn,
    /// Its size in bytes, when known: it is then required.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Its digest as hex (XXH3-128 file digest of this program), when known: it is then required.
    #[serde(default)]
    pub digest: Option<String>,
    /// Where it goes below the destination path; by default its logical name.
    #[serde(default)]
    pub path: Option<Lfn>,
}

/// Where the files come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceChoice {
    /// Any agent whose replica the catalog knows; chosen when an item is claimed.
    #[default]
    Any,
    /// One of these.
    Agents(Vec<AgentName>),
}

/// Who moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// The destination fetches.
    Pull,
    /// The source uploads.
    Push,
    /// Pull, where the destination can reach a source; push else.
    #[default]
    Auto,
}

/// A request as it is posted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestSpec {
    /// Which files.
    pub select: Selection,
    /// From where.
    #[serde(default)]
    pub source: SourceChoice,
    /// To which agents: every file to each.
    pub destinations: Vec<AgentName>,
    /// Below which path of the destinations' roots; by default the root itself.
    #[serde(default)]
    pub path: Option<Lfn>,
    /// Who moves.
    #[serde(default)]
    pub model: Model,
    /// 0 to [`MAX_PRIORITY`]; higher first.
    #[serde(default = "default_priority")]
    pub priority: u8,
    /// Given up after this.
    #[serde(default)]
    pub deadline: Option<Time>,
    /// Not begun before this.
    #[serde(default)]
    pub not_before: Option<Time>,
    /// Bits per second over all of it at one destination.
    #[serde(default)]
    pub max_rate: Option<u64>,
    /// What to do about what stands there.
    #[serde(default)]
    #[schema(value_type = String)]
    pub if_exists: IfExists,
    /// Which verdict an item needs; by default the destination's own.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub verify: Option<Verify>,
    /// Seconds that the source may take to get a file ready.
    #[serde(default = "default_stage_timeout")]
    pub stage_timeout_secs: u64,
    /// Tries of an item that failed for a reason that may pass.
    #[serde(default = "default_tries")]
    pub tries: u32,
    /// For people and filters.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Why, for whoever approves.
    #[serde(default)]
    pub comment: Option<String>,
}

fn default_priority() -> u8 {
    3
}
fn default_stage_timeout() -> u64 {
    DEFAULT_STAGE_TIMEOUT_SECS
}
fn default_tries() -> u32 {
    DEFAULT_TRIES
}

/// Files and bytes by how their items stand. Exact: derived from the items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, utoipa::ToSchema)]
pub struct Counters {
    /// Items.
    pub files: u64,
    /// Their bytes, as far as known.
    pub bytes: u64,
    /// Items [`ItemState::Queued`].
    pub queued: u64,
    /// Items some agent works on, holds not counted.
    pub running: u64,
    /// Items on hold.
    pub holding: u64,
    /// Items done.
    pub done: u64,
    /// Bytes of items done.
    pub done_bytes: u64,
    /// Items skipped.
    pub skipped: u64,
    /// Items failed.
    pub failed: u64,
    /// Items cancelled.
    pub cancelled: u64,
}

impl Counters {
    /// Counts `n` items of `bytes` in all into or (negative) out of `state`.
    pub fn add(&mut self, state: ItemState, n: i64, bytes: i64) {
        let slot = match state {
            ItemState::Queued => &mut self.queued,
            ItemState::Hold => &mut self.holding,
            ItemState::Done => &mut self.done,
            ItemState::Skipped => &mut self.skipped,
            ItemState::Failed => &mut self.failed,
            ItemState::Cancelled => &mut self.cancelled,
            _ => &mut self.running,
        };
        *slot = slot.saturating_add_signed(n);
        if state == ItemState::Done {
            self.done_bytes = self.done_bytes.saturating_add_signed(bytes);
        }
    }

    /// Whether every item has ended.
    pub fn all_ended(&self) -> bool {
        self.queued + self.running + self.holding == 0
    }
}

/// What an approver decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Yes.
    Approve,
    /// No.
    Reject,
}

/// `POST /v1/requests/{id}/approval`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// Yes or no.
    pub decision: Verdict,
    /// [`RequestView::digest`] as the approver saw it: another one means that something else would be approved (409).
    pub digest: String,
    /// Why.
    #[serde(default)]
    pub comment: Option<String>,
}

/// Who decided, and what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DecisionView {
    /// Yes or no.
    pub decision: Verdict,
    /// A token's name, or `policy:` and a rule's name.
    pub by: String,
    /// When.
    pub at: Time,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// A request as everybody sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RequestView {
    /// Its id.
    pub id: RequestId,
    /// Counts up with every change of the request itself; also its ETag.
    pub version: u64,
    /// The token that asked for it.
    pub owner: String,
    /// Where it stands.
    pub state: RequestState,
    /// Nothing of it is claimed while this is set.
    pub paused: bool,
    /// It ends as soon as its agents have stopped.
    pub cancelling: bool,
    /// What was asked.
    pub spec: RequestSpec,
    /// SHA-256 over what was resolved: every file, size, digest and destination, in order; hex. Absent while resolving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// How its items stand.
    pub counters: Counters,
    /// Who decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<DecisionView>,
    /// Why it waits or failed, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it came.
    pub created: Time,
    /// When it last changed.
    pub changed: Time,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Time>,
}

/// Which requests a list shows. Fields that are absent do not filter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RequestFilter {
    /// In this state.
    pub state: Option<RequestState>,
    /// Of this token.
    pub owner: Option<String>,
    /// With this destination.
    pub destination: Option<AgentName>,
    /// Of this dataset.
    pub dataset: Option<DatasetName>,
    /// With this label, `key=value`.
    pub label: Option<String>,
}

/// `PATCH /v1/requests/{id}`; absent fields stay.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RequestPatch {
    /// See [`RequestSpec::priority`].
    pub priority: Option<u8>,
    /// See [`RequestSpec::deadline`].
    pub deadline: Option<Time>,
    /// See [`RequestSpec::max_rate`].
    pub max_rate: Option<u64>,
    /// Replaces all of them.
    pub labels: Option<BTreeMap<String, String>>,
}

/// Who has to approve what. The first rule that fits counts; none: somebody has to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRule {
    /// For people and [`DecisionView::by`].
    pub name: String,
    /// Fits requests of this token.
    #[serde(default)]
    pub owner: Option<String>,
    /// Fits requests all of whose files lie in datasets below this name (by components).
    #[serde(default)]
    pub dataset_prefix: Option<DatasetName>,
    /// Fits requests to this agent alone.
    #[serde(default)]
    pub destination: Option<AgentName>,
    /// Fits requests of at most so many bytes.
    #[serde(default)]
    pub max_bytes: Option<u64>,
    /// What then.
    pub then: Approval,
}

/// What a rule asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// Nobody has to.
    Automatic,
    /// An approver has to, the owner too if he is one.
    Required,
    /// An approver who is not the owner has to.
    SecondPerson,
}
