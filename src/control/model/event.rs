//! What happened, in order: the outbox that SSE serves. One line in the same transaction as its cause.

use super::time::Time;
use serde::{Deserialize, Serialize};

/// How long events can be read again.
pub const EVENTS_KEPT_SECS: u64 = 7 * 24 * 3600;

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Event {
    /// Its place: later is larger. SSE's `id`.
    pub id: i64,
    /// When.
    pub at: Time,
    /// `request.created`, `request.approved`, `item.hold`, `agent.lost`, …: a thing, a dot, what happened to it.
    pub kind: String,
    /// What it happened to: a request's or an agent's id.
    pub subject: String,
    /// More: an item's id, a state, a reason.
    pub data: serde_json::Value,
}

/// Which events.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventFilter {
    /// Only of this subject.
    pub subject: Option<String>,
    /// Only kinds that begin so: `request`, `item.hold`.
    pub kind: Option<String>,
}
