//! Agents as main knows them: who they are, whether they are there, what they say of themselves.

use super::item::ItemProgress;
use super::name::{AgentName, ItemId, SessionKey};
use super::time::Time;
use crate::ids::AgentId;
use serde::{Deserialize, Serialize};

/// How long a lease lasts when nothing is configured; renewed every third of it.
pub const DEFAULT_LEASE_SECS: u64 = 30;
/// After a lease's end an agent may still come back to its items for so long, before they are given to others.
pub const DEFAULT_REATTACH_SECS: u64 = 300;

/// Items that an agent may name when it opens a session, and so have: 40 bytes each in JSON.
pub const MAX_SESSION_ITEMS: usize = 400_000;

/// What an agent is registered with. Again with the same name and identity: replaces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentRegistration {
    /// Its operator's name for it.
    pub name: AgentName,
    /// Its own identity. Another one under the same name is refused (409), unless the first was removed.
    #[schema(value_type = String)]
    pub id: AgentId,
    /// `lh://host:port`, where others reach its HTTP port.
    pub url: String,
    /// `sha256:hex` of its certificate.
    #[serde(default)]
    pub fingerprint: Option<String>,
    /// `source`, `destination`.
    pub roles: Vec<String>,
    /// Its release.
    pub version: String,
    /// For people and, later, the router.
    #[serde(default)]
    pub site: Option<String>,
    /// The same for agents over the same storage: their items are interchangeable.
    #[serde(default)]
    pub storage: Option<String>,
}

/// `POST /v1/agents/{name}/session`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenSession {
    /// Its identity, as registered.
    #[schema(value_type = String)]
    pub id: AgentId,
    /// The one it had: its items come back to it.
    #[serde(default)]
    pub previous: Option<SessionKey>,
    /// Items that its own journal has. Those of `previous` that are not here are queued again.
    #[serde(default)]
    pub items: Vec<ItemId>,
}

/// An open session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Session {
    /// Its key.
    pub session: SessionKey,
    /// Counts up with every opening of the agent.
    pub epoch: u64,
    /// Seconds. The agent stops on its own before that has passed without a renewal.
    pub lease_secs: u64,
    /// Items that are still its own, of those it named.
    pub kept: Vec<ItemId>,
}

/// `PUT /v1/agents/{name}/session`: the heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Renewal {
    /// Its session.
    pub session: SessionKey,
    /// That session's epoch.
    pub epoch: u64,
    /// How it is.
    pub status: AgentStatus,
    /// What runs.
    #[serde(default)]
    pub progress: Vec<ItemProgress>,
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Renewed {
    /// Seconds from now.
    pub lease_secs: u64,
    /// Items it works on that it shall stop (cancelled), acknowledged by a `Cancel` report.
    pub stop: Vec<ItemId>,
    /// Items it works on that are not its own any more.
    pub lost: Vec<ItemId>,
    /// It shall claim nothing new.
    pub draining: bool,
}

/// How an agent is; what transfer2go's status told, and more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AgentStatus {
    /// Transfers that run.
    pub running: u64,
    /// Items on hold.
    pub holding: u64,
    /// Items in its queue.
    pub queued: u64,
    /// Bits per second that come in.
    pub in_bps: u64,
    /// Bits per second that go out.
    pub out_bps: u64,
    /// Bytes free below its root.
    pub free_bytes: Option<u64>,
    /// And in all.
    pub total_bytes: Option<u64>,
    /// Load average of one minute.
    pub load: f64,
    /// Resident bytes.
    pub memory_bytes: u64,
    /// Transfers that ended well since its start.
    pub ended: u64,
    /// And not.
    pub failed: u64,
}

/// An agent as everybody sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AgentView {
    /// As registered.
    pub registration: AgentRegistration,
    /// Whether its lease holds.
    pub alive: bool,
    /// When it was last heard.
    pub seen: Option<Time>,
    /// Its lease's end.
    pub lease_until: Option<Time>,
    /// It is given nothing new.
    pub draining: bool,
    /// As last heard.
    pub status: AgentStatus,
    /// Live items.
    pub items: u64,
    /// Nothing is placed at its storage for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<StoragePause>,
}

/// Why nothing is placed at a storage for now: it was full, over quota or read-only when something was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StoragePause {
    /// Until then.
    pub until: Time,
    /// As the agent said it.
    pub reason: String,
}
