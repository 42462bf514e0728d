//! The outbox, the approval rules, and what is dropped when it is old.

use super::super::{Actor, Swept};
use super::cx::{Cx, R};
use super::value::{Int, Json};
use crate::control::model::event::{EVENTS_KEPT_SECS, Event, EventFilter};
use crate::control::model::request::ApprovalRule;
use crate::control::model::time::Time;
use rusqlite::params;
use serde_json::{Value, json};

/// Events, and keys, that one sweep drops.
const DROP: u64 = 10_000;

pub(super) fn events(cx: &Cx<'_>, after: i64, filter: &EventFilter, limit: usize) -> R<Vec<Event>> {
    let subject = if filter.subject.is_some() { "AND subject = ?2" } else { "AND ?2 IS NULL" };
    cx.all(
        &format!(
            "SELECT id, at, kind, subject, data FROM outbox WHERE id > ?1 {subject} AND substr(kind, 1, length(?3)) = ?3
             ORDER BY id LIMIT ?4"
        ),
        params![after, filter.subject, filter.kind.as_deref().unwrap_or(""), Int(limit as u64)],
        |row| {
            Ok(Event {
                id: row.get(0)?,
                at: row.get(1)?,
                kind: row.get(2)?,
                subject: row.get(3)?,
                data: row.get::<_, Json<Value>>(4)?.0,
            })
        },
    )
}

pub(super) fn last(cx: &Cx<'_>) -> R<i64> {
    let last = cx.one("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'", [], |row| row.get(0))?;
    Ok(last.unwrap_or(0))
}

pub(super) fn rules(cx: &Cx<'_>) -> R<Vec<ApprovalRule>> {
    cx.all("SELECT rule FROM approval_rule ORDER BY n", [], |row| {
        row.get::<_, Json<ApprovalRule>>(0).map(|rule| rule.0)
    })
}

pub(super) fn set_rules(cx: &Cx<'_>, actor: &Actor, rules: &[ApprovalRule]) -> R<()> {
    cx.run("DELETE FROM approval_rule", [])?;
    for (n, rule) in rules.iter().enumerate() {
        cx.run("INSERT INTO approval_rule (n, rule) VALUES (?1, ?2)", params![Int(n as u64), Json(rule)])?;
    }
    cx.event("policy.changed", "approval", json!({ "by": actor.name, "rules": rules.len() }))
}

/// Drops events and keys that nobody can ask for any more.
pub(super) fn drop_old(cx: &Cx<'_>, swept: &mut Swept) -> R<()> {
    let before = Time(cx.now.0.saturating_sub(Time::default().plus_secs(EVENTS_KEPT_SECS).0));
    let events = cx.run(
        "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox ORDER BY id LIMIT ?2) AND at < ?1",
        params![before, Int(DROP)],
    )?;
    let keys = cx.run(
        "DELETE FROM idempotency WHERE (owner, key) IN
            (SELECT owner, key FROM idempotency WHERE expires <= ?1 ORDER BY expires LIMIT ?2)",
        params![cx.now, Int(DROP)],
    )?;
    swept.dropped += (events + keys) as u64;
    Ok(())
}
