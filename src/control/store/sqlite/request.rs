//! Requests: made, resolved, decided, stopped, ended.

use super::super::{Actor, Created, Idempotency, Resolution, StoreError, Swept};
use super::cx::{Cx, R};
use super::item;
use super::value::{Int, Json};
use crate::control::model::name::{DatasetName, RequestId};
use crate::control::model::request::{
    Counters, Decision, DecisionView, RequestPatch, RequestSpec, RequestView, Selection, Verdict,
};
use crate::control::model::states::{ItemEvent, RequestEvent, RequestState};
use crate::control::model::time::Time;
use rusqlite::{Row, params};
use serde_json::json;
use std::collections::BTreeMap;

/// Seconds for which a call can be repeated with its key.
pub(super) const KEY_SECS: u64 = 24 * 3600;
/// The digest of no items.
const CHAIN: [u8; 32] = [0; 32];
/// Why items end when nobody did anything.
const TOO_LATE: &str = "the deadline passed";

/// A request with what only the store knows.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) n: i64,
    pub(super) expiring: bool,
    pub(super) chain: [u8; 32],
    pub(super) view: RequestView,
}

impl Request {
    /// Nothing of it is begun any more, and what runs is to stop.
    pub(super) fn stopping(&self) -> bool {
        self.view.cancelling || self.expiring
    }
}

pub(super) const COLUMNS: &str = "r.n, r.id, r.version, r.owner, r.state, r.paused, r.cancelling, r.expiring, r.spec, r.chain,
    r.digest, r.decisions, r.reason, r.created, r.changed, r.ended, r.files, r.bytes, r.queued, r.running, r.holding, r.done,
    r.done_bytes, r.skipped, r.failed, r.cancelled";

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Request> {
    let count = |column: usize| row.get::<_, Int>(column).map(|n| n.0);
    Ok(Request {
        n: row.get(0)?,
        expiring: row.get(7)?,
        chain: row.get(9)?,
        view: RequestView {
            id: row.get(1)?,
            version: count(2)?,
            owner: row.get(3)?,
            state: row.get(4)?,
            paused: row.get(5)?,
            cancelling: row.get(6)?,
            spec: row.get::<_, Json<RequestSpec>>(8)?.0,
            digest: row.get(10)?,
            decisions: row.get::<_, Json<Vec<DecisionView>>>(11)?.0,
            reason: row.get(12)?,
            created: row.get(13)?,
            changed: row.get(14)?,
            ended: row.get(15)?,
            counters: Counters {
                files: count(16)?,
                bytes: count(17)?,
                queued: count(18)?,
                running: count(19)?,
                holding: count(20)?,
                done: count(21)?,
                done_bytes: count(22)?,
                skipped: count(23)?,
                failed: count(24)?,
                cancelled: count(25)?,
            },
        },
    })
}

pub(super) fn by_id(cx: &Cx<'_>, id: RequestId) -> R<Request> {
    let found = cx.one(&format!("SELECT {COLUMNS} FROM request r WHERE r.id = ?1"), [id], read)?;
    found.ok_or(StoreError::NotFound("request"))
}

pub(super) fn by_n(cx: &Cx<'_>, n: i64) -> R<Request> {
    let found = cx.one(&format!("SELECT {COLUMNS} FROM request r WHERE r.n = ?1"), [n], read)?;
    found.ok_or(StoreError::NotFound("request"))
}

/// As it is now, with what this transaction has counted.
pub(super) fn view(cx: &Cx<'_>, n: i64) -> R<RequestView> {
    cx.flush()?;
    Ok(by_n(cx, n)?.view)
}

/// A request of which something is changed by itself: a version later, with an event.
fn touch(cx: &Cx<'_>, request: &Request, kind: &str, data: serde_json::Value) -> R<()> {
    cx.run("UPDATE request SET version = version + 1, changed = ?2 WHERE n = ?1", params![request.n, cx.now])?;
    cx.event(kind, &request.view.id.to_string(), data)
}

/// Along the table, or not at all.
fn go(cx: &Cx<'_>, request: &Request, event: RequestEvent) -> R<RequestState> {
    let from = request.view.state;
    let to = from.after(event).ok_or_else(|| StoreError::Conflict(format!("the request is {from}: not now")))?;
    let ended = to.has_ended().then_some(cx.now);
    cx.run("UPDATE request SET state = ?2, ended = ?3 WHERE n = ?1", params![request.n, to, ended])?;
    Ok(to)
}

/// The last item has ended: how that leaves the request.
pub(super) fn end(cx: &Cx<'_>, n: i64) -> R<()> {
    let request = by_n(cx, n)?;
    let counts = request.view.counters;
    let good = counts.done + counts.skipped;
    let event = match () {
        () if request.view.cancelling && counts.cancelled > 0 => RequestEvent::EndCancelled,
        () if request.expiring && good < counts.files => RequestEvent::EndExpired,
        () if good == counts.files => RequestEvent::EndSucceeded,
        () if good > 0 => RequestEvent::EndPartial,
        () => RequestEvent::EndFailed,
    };
    let state = go(cx, &request, event)?;
    cx.run("UPDATE request SET cancelling = 0, expiring = 0 WHERE n = ?1", [n])?;
    touch(cx, &request, &format!("request.{state}"), json!({ "state": state }))
}

fn replayed(cx: &Cx<'_>, key: &Idempotency) -> R<Option<RequestView>> {
    let found = cx.one(
        "SELECT body, request FROM idempotency WHERE owner = ?1 AND key = ?2 AND expires > ?3",
        params![key.owner, key.key, cx.now],
        |row| Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, RequestId>(1)?)),
    )?;
    match found {
        None => Ok(None),
        Some((body, _)) if body != key.body => Err(StoreError::KeyReused),
        Some((_, id)) => by_id(cx, id).map(|request| Some(request.view)),
    }
}

pub(super) fn replay(cx: &Cx<'_>, key: &Idempotency) -> R<Option<RequestView>> {
    replayed(cx, key)
}

/// The dataset that a filter finds it by.
fn dataset(cx: &Cx<'_>, spec: &RequestSpec) -> R<Option<DatasetName>> {
    match &spec.select {
        Selection::Dataset(name) => Ok(Some(name.clone())),
        Selection::Block(name) => {
            cx.one("SELECT d.name FROM block b JOIN dataset d ON d.n = b.dataset WHERE b.name = ?1", [name], |row| {
                row.get(0)
            })
        }
        _ => Ok(None),
    }
}

fn set_labels(cx: &Cx<'_>, n: i64, labels: &BTreeMap<String, String>) -> R<()> {
    cx.run("DELETE FROM request_label WHERE request = ?1", [n])?;
    for (key, value) in labels {
        cx.run(
            "INSERT INTO request_label (label, request) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            params![format!("{key}={value}"), n],
        )?;
    }
    Ok(())
}

pub(super) fn create(cx: &Cx<'_>, actor: Actor, spec: RequestSpec, key: Option<Idempotency>) -> R<Created> {
    if let Some(request) = key.as_ref().map(|key| replayed(cx, key)).transpose()?.flatten() {
        return Ok(Created { request, replayed: true });
    }
    let id = RequestId::new();
    let n: i64 = cx.sole(
        "INSERT INTO request (id, version, owner, state, spec, priority, deadline, not_before, dataset, chain, decisions,
            created, changed) VALUES (?1, 1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, '[]', ?10, ?10) RETURNING n",
        params![
            id,
            actor.name,
            RequestState::Resolving,
            Json(&spec),
            spec.priority,
            spec.deadline,
            spec.not_before.unwrap_or_default(),
            dataset(cx, &spec)?,
            CHAIN,
            cx.now
        ],
        |row| row.get(0),
    )?;
    for agent in &spec.destinations {
        cx.run(
            "INSERT INTO request_destination (agent, request) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            params![agent, n],
        )?;
    }
    set_labels(cx, n, &spec.labels)?;
    if let Some(key) = key {
        cx.run(
            "INSERT INTO idempotency (owner, key, body, request, expires) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (owner, key) DO UPDATE SET body = excluded.body, request = excluded.request,
                expires = excluded.expires",
            params![key.owner, key.key, key.body, id, cx.now.plus_secs(KEY_SECS)],
        )?;
    }
    cx.event("request.created", &id.to_string(), json!({ "owner": actor.name }))?;
    Ok(Created { request: by_n(cx, n)?.view, replayed: false })
}

/// A request whose items may still be added or dropped.
pub(super) fn still_resolving(cx: &Cx<'_>, id: RequestId) -> R<Request> {
    let request = by_id(cx, id)?;
    match request.view.state {
        RequestState::Resolving => Ok(request),
        state => Err(StoreError::Conflict(format!("the request is {state}: its files are not looked for any more"))),
    }
}

pub(super) fn restart_resolving(cx: &Cx<'_>, id: RequestId) -> R<bool> {
    let request = still_resolving(cx, id)?;
    let removed = item::delete_some(cx, request.n)?;
    let left = Int(request.view.counters.queued.saturating_sub(removed as u64));
    // Bytes are exact again when nothing is left; nobody shows them before that.
    cx.run(
        "UPDATE request SET chain = ?2, files = ?3, queued = ?3, bytes = CASE WHEN ?3 = 0 THEN 0 ELSE bytes END
         WHERE n = ?1",
        params![request.n, CHAIN, left],
    )?;
    Ok(left.0 > 0)
}

pub(super) fn resolved(cx: &Cx<'_>, id: RequestId, resolution: Resolution) -> R<RequestView> {
    let request = still_resolving(cx, id)?;
    let (event, kind, reason) = match &resolution {
        Resolution::NeedsApproval(why) => (RequestEvent::Resolved, "request.resolved", Some(why.clone())),
        Resolution::Approved { .. } => (RequestEvent::ResolvedApproved, "request.approved", None),
        Resolution::Failed(why) => (RequestEvent::Unresolvable, "request.failed", Some(why.clone())),
    };
    let state = go(cx, &request, event)?;
    cx.run(
        "UPDATE request SET digest = ?2, reason = ?3 WHERE n = ?1",
        params![request.n, hex::encode(request.chain), reason],
    )?;
    match resolution {
        Resolution::Approved { rule } => {
            record(cx, &request, Verdict::Approve, format!("policy:{rule}"), None)?;
        }
        Resolution::Failed(_) => {
            stop(cx, &by_n(cx, request.n)?)?;
        }
        Resolution::NeedsApproval(_) => {}
    }
    let counts = request.view.counters;
    touch(
        cx,
        &request,
        kind,
        json!({ "state": state, "files": counts.files, "bytes": counts.bytes, "reason": reason }),
    )?;
    if state == RequestState::Active && counts.files == 0 {
        end(cx, request.n)?;
    }
    view(cx, request.n)
}

fn record(cx: &Cx<'_>, request: &Request, decision: Verdict, by: String, comment: Option<String>) -> R<()> {
    let mut decisions = request.view.decisions.clone();
    decisions.push(DecisionView { decision, by, at: cx.now, comment });
    cx.run("UPDATE request SET decisions = ?2 WHERE n = ?1", params![request.n, Json(decisions)])?;
    Ok(())
}

pub(super) fn resolving(cx: &Cx<'_>) -> R<Vec<RequestId>> {
    cx.all("SELECT id FROM request WHERE state = 'resolving' ORDER BY n", [], |row| row.get(0))
}

fn as_seen(request: &Request, version: u64) -> R<()> {
    match request.view.version == version {
        true => Ok(()),
        false => Err(StoreError::Conflict(format!(
            "the request has version {} and not {version}: somebody changed it, look at it again",
            request.view.version
        ))),
    }
}

pub(super) fn decide(cx: &Cx<'_>, id: RequestId, actor: Actor, version: u64, decision: Decision) -> R<RequestView> {
    let request = by_id(cx, id)?;
    let (event, kind) = match decision.decision {
        Verdict::Approve => (RequestEvent::Approve, "request.approved"),
        Verdict::Reject => (RequestEvent::Reject, "request.rejected"),
    };
    if request.view.state.after(event).is_none() {
        return Err(StoreError::Conflict(format!("the request is {}: there is nothing to decide", request.view.state)));
    }
    as_seen(&request, version)?;
    if request.view.digest.as_deref() != Some(decision.digest.as_str()) {
        return Err(StoreError::Conflict("the digest is not that of the request's files: look at it again".into()));
    }
    let state = go(cx, &request, event)?;
    let by = actor.name;
    if decision.decision == Verdict::Reject {
        let why = decision.comment.clone().unwrap_or_else(|| format!("rejected by {by}"));
        cx.run("UPDATE request SET reason = ?2 WHERE n = ?1", params![request.n, why])?;
        stop(cx, &by_n(cx, request.n)?)?;
    } else {
        cx.run("UPDATE request SET reason = NULL WHERE n = ?1", [request.n])?;
    }
    record(cx, &request, decision.decision, by.clone(), decision.comment)?;
    touch(cx, &request, kind, json!({ "state": state, "by": by }))?;
    if state == RequestState::Active && request.view.counters.files == 0 {
        end(cx, request.n)?;
    }
    view(cx, request.n)
}

pub(super) fn patch(cx: &Cx<'_>, id: RequestId, version: u64, patch: RequestPatch) -> R<RequestView> {
    let request = by_id(cx, id)?;
    as_seen(&request, version)?;
    // An expired request gets a later deadline before its items are tried again.
    if request.view.state.has_ended() && request.view.state != RequestState::Expired {
        return Err(StoreError::Conflict(format!("the request is {}: it has ended", request.view.state)));
    }
    let mut spec = request.view.spec.clone();
    spec.priority = patch.priority.unwrap_or(spec.priority);
    spec.deadline = patch.deadline.or(spec.deadline);
    spec.max_rate = patch.max_rate.or(spec.max_rate);
    if let Some(labels) = patch.labels {
        set_labels(cx, request.n, &labels)?;
        spec.labels = labels;
    }
    cx.run(
        "UPDATE request SET spec = ?2, priority = ?3, deadline = ?4 WHERE n = ?1",
        params![request.n, Json(&spec), spec.priority, spec.deadline],
    )?;
    touch(cx, &request, "request.changed", json!({}))?;
    view(cx, request.n)
}

pub(super) fn pause(cx: &Cx<'_>, id: RequestId, actor: Actor, paused: bool) -> R<RequestView> {
    let request = by_id(cx, id)?;
    if request.view.state.has_ended() {
        return Err(StoreError::Conflict(format!("the request is {}: it has ended", request.view.state)));
    }
    if request.view.paused != paused {
        cx.run("UPDATE request SET paused = ?2 WHERE n = ?1", params![request.n, paused])?;
        let kind = if paused { "request.paused" } else { "request.resumed" };
        touch(cx, &request, kind, json!({ "by": actor.name }))?;
    }
    view(cx, request.n)
}

pub(super) fn cancel(cx: &Cx<'_>, id: RequestId, actor: Actor) -> R<RequestView> {
    let request = by_id(cx, id)?;
    let why = format!("cancelled by {}", actor.name);
    match request.view.state {
        RequestState::Cancelled => {}
        state if state.after(RequestEvent::Cancel).is_some() => {
            go(cx, &request, RequestEvent::Cancel)?;
            cx.run("UPDATE request SET reason = ?2 WHERE n = ?1", params![request.n, why])?;
            stop(cx, &by_n(cx, request.n)?)?;
            touch(cx, &request, "request.cancelled", json!({ "by": actor.name }))?;
        }
        RequestState::Active if !request.view.cancelling => {
            cx.run("UPDATE request SET cancelling = 1, reason = ?2 WHERE n = ?1", params![request.n, why])?;
            touch(cx, &request, "request.cancelling", json!({ "by": actor.name }))?;
            stop(cx, &by_n(cx, request.n)?)?;
        }
        RequestState::Active => {}
        state => return Err(StoreError::Conflict(format!("the request is {state}: there is nothing to cancel"))),
    }
    view(cx, request.n)
}

pub(super) fn retry_failed(cx: &Cx<'_>, id: RequestId, actor: Actor) -> R<RequestView> {
    let request = by_id(cx, id)?;
    let state = request.view.state;
    let refuse = |why: &str| Err(StoreError::Conflict(why.into()));
    if state.has_ended() {
        if state.after(RequestEvent::RetryFailed).is_none() || request.view.counters.failed == 0 {
            return refuse(&format!("the request is {state} and nothing of it can be tried again"));
        }
        // What expired before anybody approved it is not approved by trying again.
        if !request.view.decisions.iter().any(|d| d.decision == Verdict::Approve) {
            return refuse("the request was never approved: make a new one");
        }
        if request.view.spec.deadline.is_some_and(|deadline| deadline <= cx.now) {
            return refuse("the request's deadline has passed: set a later one first");
        }
    } else if state != RequestState::Active || request.stopping() {
        return refuse(&format!("the request is {state}: nothing of it can be tried again now"));
    }
    if request.view.counters.failed > 0 {
        item::retry_failed(cx, request.n)?;
        if state.has_ended() {
            go(cx, &request, RequestEvent::RetryFailed)?;
        }
        cx.run("UPDATE request SET reason = NULL WHERE n = ?1", [request.n])?;
        touch(cx, &request, "request.retried", json!({ "by": actor.name, "items": request.view.counters.failed }))?;
    }
    view(cx, request.n)
}

pub(super) fn delete(cx: &Cx<'_>, id: RequestId, actor: Actor) -> R<()> {
    let request = by_id(cx, id)?;
    if !request.view.state.has_ended() {
        return Err(StoreError::Conflict(format!("the request is {}: cancel it first", request.view.state)));
    }
    if request.view.counters.queued > 0 {
        return Err(StoreError::Conflict("the request's items are still being ended: try again in a moment".into()));
    }
    // Nobody finds them without their request; they are removed here and, when they are many, by the next sweeps.
    if item::delete_some(cx, request.n)? == item::SLICE {
        cx.run("INSERT INTO request_deleted (request) VALUES (?1)", [request.n])?;
    }
    cx.run("DELETE FROM request_label WHERE request = ?1", [request.n])?;
    cx.run("DELETE FROM request_destination WHERE request = ?1", [request.n])?;
    cx.run("DELETE FROM request WHERE n = ?1", [request.n])?;
    cx.event("request.deleted", &id.to_string(), json!({ "by": actor.name }))
}

/// Ends some of a stopped request's items that nobody has; how many.
fn stop(cx: &Cx<'_>, request: &Request) -> R<usize> {
    let late = request.expiring || request.view.state == RequestState::Expired;
    let (event, reason) = match request.view.reason.as_deref() {
        _ if late => (ItemEvent::Fail, TOO_LATE),
        _ if request.view.state == RequestState::Rejected => (ItemEvent::Cancel, "the request was rejected"),
        reason => (ItemEvent::Cancel, reason.unwrap_or("the request was stopped")),
    };
    item::end_queued(cx, request.n, event, reason)
}

/// Goes on with what was stopped, and with what was deleted, as far as one transaction should.
pub(super) fn drain(cx: &Cx<'_>, swept: &mut Swept) -> R<()> {
    cx.flush()?;
    let stopping: Option<i64> =
        cx.one("SELECT n FROM request WHERE cancelling + expiring > 0 AND queued > 0 ORDER BY n LIMIT 1", [], |row| {
            row.get(0)
        })?;
    let ended = "SELECT n FROM request WHERE queued > 0 AND ended IS NOT NULL ORDER BY n LIMIT 1";
    let (drained, gone) = match stopping.map_or_else(|| cx.one(ended, [], |row| row.get(0)), |n| Ok(Some(n)))? {
        Some(n) => (stop(cx, &by_n(cx, n)?)?, None),
        None => {
            let gone: Option<i64> =
                cx.one("SELECT request FROM request_deleted ORDER BY request LIMIT 1", [], |row| row.get(0))?;
            (gone.map_or(Ok(0), |n| item::delete_some(cx, n))?, gone)
        }
    };
    if let Some(n) = gone.filter(|_| drained < item::SLICE) {
        cx.run("DELETE FROM request_deleted WHERE request = ?1", [n])?;
    }
    swept.drained += drained as u64;
    swept.more = drained > 0;
    Ok(())
}

/// Ends what its deadline has passed; how many requests that were.
pub(super) fn expire(cx: &Cx<'_>) -> R<u64> {
    let late: Vec<i64> = cx.all(
        "SELECT n FROM request WHERE deadline <= ?1 AND deadline IS NOT NULL AND ended IS NULL AND expiring = 0",
        [cx.now],
        |row| row.get(0),
    )?;
    for &n in &late {
        let request = by_n(cx, n)?;
        cx.run("UPDATE request SET reason = ?2 WHERE n = ?1", params![n, TOO_LATE])?;
        if request.view.state.after(RequestEvent::Expire).is_some() {
            go(cx, &request, RequestEvent::Expire)?;
            stop(cx, &by_n(cx, n)?)?;
            touch(cx, &request, "request.expired", json!({ "state": RequestState::Expired }))?;
        } else {
            cx.run("UPDATE request SET expiring = 1 WHERE n = ?1", [n])?;
            touch(cx, &request, "request.expiring", json!({}))?;
            stop(cx, &by_n(cx, n)?)?;
        }
    }
    Ok(late.len() as u64)
}

/// The digest goes on with one more file. Every field with its length, so that no two lists look the same.
pub(super) fn link(chain: [u8; 32], fields: &[&[u8]]) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    context.update(&chain);
    for field in fields {
        context.update(&(field.len() as u64).to_le_bytes());
        context.update(field);
    }
    let mut next = CHAIN;
    next.copy_from_slice(context.finish().as_ref());
    next
}

/// A [`Time`] that was never set sorts first.
pub(super) fn since(time: Time) -> Option<Time> {
    (time > Time::default()).then_some(time)
}
