//! Agents: registered, there, gone. A lease hangs on an agent's session, one row an agent, so that heartbeats cost the
//! same however many items it has.

use super::super::{StoreError, Swept};
use super::cx::{Cx, R};
use super::item::{self, Requests};
use super::value::{Int, Json};
use crate::control::model::agent::{
    AgentRegistration, AgentStatus, AgentView, OpenSession, Renewal, Renewed, Session, StoragePause,
};
use crate::control::model::item::Claim;
use crate::control::model::name::{AgentName, ItemId, SessionKey};
use crate::control::model::time::Time;
use rusqlite::{Row, params};
use serde_json::json;
use std::collections::HashSet;

/// Items of one heartbeat whose progress is told as events; of more the numbers are kept only.
const PROGRESS_EVENTS: usize = 64;

/// An agent with what only the store knows.
#[derive(Debug, Clone)]
pub(super) struct Agent {
    pub(super) storage: String,
    pub(super) session: Option<SessionKey>,
    pub(super) epoch: u64,
    pub(super) over: bool,
    pub(super) claim_seq: u64,
    pub(super) view: AgentView,
}

impl Agent {
    /// May be given something new.
    pub(super) fn takes_part(&self, role: &str) -> bool {
        self.view.alive && !self.view.draining && self.view.registration.roles.iter().any(|have| have == role)
    }
}

const COLUMNS: &str = "a.registration, a.storage, a.draining, a.status, a.session, a.session_epoch, a.session_over,
    a.claim_seq, a.seen, a.lease_until,
    (SELECT count(*) FROM item i WHERE i.holder = a.name AND i.session IS NOT NULL),
    (SELECT p.until FROM storage_pause p WHERE p.storage = a.storage),
    (SELECT p.reason FROM storage_pause p WHERE p.storage = a.storage)";

fn read(now: Time) -> impl Fn(&Row<'_>) -> rusqlite::Result<Agent> {
    move |row| {
        let (session, over): (Option<SessionKey>, bool) = (row.get(4)?, row.get(6)?);
        let lease_until: Option<Time> = row.get(9)?;
        let pause = row.get::<_, Option<Time>>(11)?.zip(row.get::<_, Option<String>>(12)?);
        let pause = pause.map(|(until, reason)| StoragePause { until, reason });
        Ok(Agent {
            storage: row.get(1)?,
            session,
            epoch: row.get::<_, Int>(5)?.0,
            over,
            claim_seq: row.get::<_, Int>(7)?.0,
            view: AgentView {
                registration: row.get::<_, Json<AgentRegistration>>(0)?.0,
                alive: session.is_some() && !over && lease_until.is_some_and(|until| until > now),
                seen: row.get(8)?,
                lease_until,
                draining: row.get(2)?,
                status: row.get::<_, Json<AgentStatus>>(3)?.0,
                items: row.get::<_, Int>(10)?.0,
                paused: pause.filter(|pause| pause.until > now),
            },
        })
    }
}

/// All, by name.
pub(super) fn all(cx: &Cx<'_>) -> R<Vec<Agent>> {
    cx.all(&format!("SELECT {COLUMNS} FROM agent a ORDER BY a.name"), [], read(cx.now))
}

pub(super) fn by_name(cx: &Cx<'_>, name: &AgentName) -> R<Agent> {
    let found = cx.one(&format!("SELECT {COLUMNS} FROM agent a WHERE a.name = ?1"), [name], read(cx.now))?;
    found.ok_or(StoreError::NotFound("agent"))
}

/// What agents share that have the same storage; an agent without one shares with nobody.
fn storage_key(name: &AgentName, storage: Option<&str>) -> String {
    storage.map_or_else(|| format!("agent:{name}"), |storage| format!("storage:{storage}"))
}

/// The key of an agent that may not be registered yet.
pub(super) fn storage_of(cx: &Cx<'_>, name: &AgentName) -> R<String> {
    let known = cx.one("SELECT storage FROM agent WHERE name = ?1", [name], |row| row.get(0))?;
    Ok(known.unwrap_or_else(|| storage_key(name, None)))
}

pub(super) fn register(cx: &Cx<'_>, registration: AgentRegistration) -> R<AgentView> {
    let name = registration.name.clone();
    let storage = storage_key(&name, registration.storage.as_deref());
    let known = cx.one("SELECT id, storage FROM agent WHERE name = ?1", [&name], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
    })?;
    match &known {
        Some((id, _)) if *id != registration.id.to_string() => {
            return Err(StoreError::Conflict(format!(
                "another agent is registered as {name}: remove it first, or choose another name"
            )));
        }
        Some(_) => {}
        None => cx.event("agent.registered", name.as_str(), json!({ "url": registration.url }))?,
    }
    cx.run(
        "INSERT INTO agent (name, id, registration, storage, status) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (name) DO UPDATE SET registration = excluded.registration, storage = excluded.storage",
        params![name, registration.id.to_string(), Json(&registration), storage, Json(AgentStatus::default())],
    )?;
    // What was asked of it before it was known, or before it moved, is asked of its storage now.
    let before = known.map_or_else(|| storage_key(&name, None), |(_, storage)| storage);
    if before != storage {
        // A live item has the lock on its path under the storage it was claimed for.
        let live = "SELECT 1 FROM item_path p JOIN item i ON i.n = p.item WHERE p.storage = ?1 AND i.destination = ?2
             LIMIT 1";
        if cx.one(live, params![before, name], |_| Ok(()))?.is_some() {
            return Err(StoreError::Conflict(format!("{name} has work at its storage: drain it before it moves")));
        }
        cx.run(
            "UPDATE item SET storage = ?3 WHERE storage = ?1 AND destination = ?2 AND state = 'queued'",
            params![before, name, storage],
        )?;
    }
    Ok(by_name(cx, &name)?.view)
}

/// Whether nothing is placed at a storage for now: see [`pause`].
pub(super) fn paused(cx: &Cx<'_>, storage: &str) -> R<bool> {
    let until = "SELECT until FROM storage_pause WHERE storage = ?1 AND until > ?2";
    Ok(cx.one(until, params![storage, cx.now], |_| Ok(()))?.is_some())
}

/// A storage that takes nothing (full, read-only) is not tried with every item that is for it.
pub(super) fn pause(cx: &Cx<'_>, storage: &str, name: &AgentName, until: Time, reason: &str) -> R<()> {
    let was = paused(cx, storage)?;
    cx.run(
        "INSERT INTO storage_pause (storage, until, reason) VALUES (?1, ?2, ?3)
         ON CONFLICT (storage) DO UPDATE SET until = excluded.until, reason = excluded.reason",
        params![storage, until, reason],
    )?;
    match was {
        true => Ok(()),
        false => cx.event("agent.paused", name.as_str(), json!({ "until": until, "reason": reason })),
    }
}

pub(super) fn drain(cx: &Cx<'_>, name: &AgentName, draining: bool) -> R<AgentView> {
    if by_name(cx, name)?.view.draining != draining {
        cx.run("UPDATE agent SET draining = ?2 WHERE name = ?1", params![name, draining])?;
        let kind = if draining { "agent.draining" } else { "agent.undrained" };
        cx.event(kind, name.as_str(), json!({}))?;
    }
    Ok(by_name(cx, name)?.view)
}

pub(super) fn remove(cx: &Cx<'_>, name: &AgentName) -> R<()> {
    by_name(cx, name)?;
    let live: i64 = cx.sole(
        "SELECT (SELECT count(*) FROM item WHERE holder = ?1 AND session IS NOT NULL)
              + (SELECT count(*) FROM item WHERE source = ?1 AND session IS NOT NULL)
              + (SELECT count(*) FROM item WHERE taker = ?1 AND session IS NOT NULL)",
        [name],
        |row| row.get(0),
    )?;
    if live > 0 {
        return Err(StoreError::Conflict(format!("{name} has work: drain it, or cancel its requests, first")));
    }
    cx.run("DELETE FROM agent WHERE name = ?1", [name])?;
    cx.event("agent.removed", name.as_str(), json!({}))
}

/// The agent, if this session is its current one and not over.
pub(super) fn in_session(cx: &Cx<'_>, name: &AgentName, session: SessionKey) -> R<Agent> {
    let agent = by_name(cx, name)?;
    match agent.session == Some(session) && !agent.over {
        true => Ok(agent),
        false => Err(StoreError::StaleSession),
    }
}

/// As [`in_session`], for a claim.
pub(super) fn claiming(cx: &Cx<'_>, name: &AgentName, claim: &Claim) -> R<Agent> {
    let agent = in_session(cx, name, claim.session)?;
    match agent.epoch == claim.session_epoch && agent.view.alive {
        true => Ok(agent),
        false => Err(StoreError::StaleSession),
    }
}

pub(super) fn open_session(cx: &Cx<'_>, name: &AgentName, open: OpenSession) -> R<Session> {
    let agent = by_name(cx, name)?;
    if agent.view.registration.id != open.id {
        return Err(StoreError::Conflict(format!("another agent is registered as {name}: choose another name")));
    }
    let session = SessionKey::new();
    let epoch = agent.epoch + 1;
    // Its live items are all of the session before: every opening moves or gives back what there is. Whoever names an
    // item of his own keeps it, whichever session it was claimed in: the answer to an opening may have been lost.
    let named: HashSet<ItemId> = open.items.iter().copied().collect();
    let held = cx.all(
        &format!(
            "SELECT {} FROM item i JOIN item_file f ON f.n = i.n WHERE i.holder = ?1 AND i.session IS NOT NULL",
            item::COLUMNS
        ),
        [name],
        item::read,
    )?;
    let mut requests = Requests::default();
    let mut kept = Vec::new();
    for item in held {
        if named.contains(&item.id) {
            cx.run("UPDATE item SET session = ?2, claim_seq = 0 WHERE n = ?1", params![item.n, session])?;
            kept.push(item.id);
        } else {
            item::give_back(cx, &mut requests, &item, "its agent began anew without it")?;
        }
    }
    let until = cx.now.plus_secs(cx.leases.lease_secs);
    cx.run(
        "UPDATE agent SET session = ?2, session_epoch = ?3, session_over = 0, claim_seq = 0, seen = ?4, lease_until = ?5
         WHERE name = ?1",
        params![name, session, Int(epoch), cx.now, until],
    )?;
    cx.event("agent.joined", name.as_str(), json!({ "session": session, "epoch": epoch, "kept": kept.len() }))?;
    Ok(Session { session, epoch, lease_secs: cx.leases.lease_secs, kept })
}

pub(super) fn renew(cx: &Cx<'_>, name: &AgentName, renewal: Renewal) -> R<Renewed> {
    let agent = in_session(cx, name, renewal.session)?;
    if agent.epoch != renewal.epoch {
        return Err(StoreError::StaleSession);
    }
    cx.run(
        "UPDATE agent SET seen = ?2, lease_until = ?3, status = ?4 WHERE name = ?1",
        params![name, cx.now, cx.now.plus_secs(cx.leases.lease_secs), Json(&renewal.status)],
    )?;
    let mut lost = Vec::new();
    let tell = renewal.progress.len() <= PROGRESS_EVENTS;
    for progress in &renewal.progress {
        let held = cx.one(
            "SELECT i.n, i.progress, r.id FROM item i JOIN request r ON r.n = i.request
             WHERE i.id = ?1 AND i.epoch = ?2 AND i.session = ?3",
            params![progress.item, Int(progress.epoch), renewal.session],
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Int>(1)?.0, row.get(2)?)),
        )?;
        let Some((n, before, request)) = held else {
            lost.push(progress.item);
            continue;
        };
        if progress.bytes != before {
            cx.run("UPDATE item SET progress = ?2 WHERE n = ?1", params![n, Int(progress.bytes)])?;
            if tell {
                let request: crate::control::model::name::RequestId = request;
                let data = json!({ "item": progress.item, "bytes": progress.bytes, "agent": name });
                cx.event("item.progress", &request.to_string(), data)?;
            }
        }
    }
    let stop = cx.all(
        // In this order: there are few requests that are being stopped, most of the time none.
        "SELECT i.id FROM request r CROSS JOIN item i
         WHERE i.request = r.n AND r.cancelling + r.expiring > 0 AND i.state IN ('claimed', 'hold', 'transferring', 'verifying', 'committing')
            AND i.session = ?1",
        [renewal.session],
        |row| row.get(0),
    )?;
    Ok(Renewed { lease_secs: cx.leases.lease_secs, stop, lost, draining: agent.view.draining })
}

/// A session whose lease is over by the clock of the store and that still has to be ended, or has items.
fn late(cx: &Cx<'_>) -> R<Vec<Agent>> {
    let mut agents = all(cx)?;
    agents.retain(|a| {
        let lease_over = a.view.lease_until.is_some_and(|until| until <= cx.now);
        a.session.is_some() && lease_over && (!a.over || a.view.items > 0)
    });
    Ok(agents)
}

pub(super) fn overdue(cx: &Cx<'_>) -> R<Vec<SessionKey>> {
    Ok(late(cx)?.into_iter().filter_map(|agent| agent.session).collect())
}

/// First the lease ends, then, when nobody came back in time, the items are given back.
pub(super) fn end_leases(cx: &Cx<'_>, unheard: &[SessionKey], swept: &mut Swept) -> R<()> {
    let mut requests = Requests::default();
    for agent in late(cx)? {
        let Some(session) = agent.session.filter(|session| unheard.contains(session)) else { continue };
        let name = &agent.view.registration.name;
        if !agent.over {
            cx.run("UPDATE agent SET session_over = 1 WHERE name = ?1", [name])?;
            cx.event("agent.lost", name.as_str(), json!({ "session": session, "items": agent.view.items }))?;
            swept.sessions += 1;
        }
        let until = agent.view.lease_until.unwrap_or_default().plus_secs(cx.leases.reattach_secs);
        if until > cx.now {
            continue;
        }
        let held = cx.all(
            &format!(
                "SELECT {} FROM item i JOIN item_file f ON f.n = i.n WHERE i.holder = ?1 AND i.session IS NOT NULL
                 LIMIT 10000",
                item::COLUMNS
            ),
            [name],
            item::read,
        )?;
        for item in held {
            item::give_back(cx, &mut requests, &item, "its agent is gone")?;
            swept.items += 1;
        }
    }
    Ok(())
}
