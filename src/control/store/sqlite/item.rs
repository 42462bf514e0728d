//! Items: what one is, how it moves, what many do at once.

use super::super::{MAX_ADD, NewItem, StoreError};
use super::cx::{Cx, R};
use super::request::{self, Request};
use super::value::{Int, Word};
use crate::control::model::item::{AttemptView, FailureClass, ItemView};
use crate::control::model::name::{AgentName, ItemId, Lfn, RequestId, SessionKey};
use crate::control::model::page::{Page, PageQuery};
use crate::control::model::states::{ItemEvent, ItemState};
use crate::control::model::time::Time;
use rusqlite::{Row, params};
use serde_json::json;
use std::collections::HashMap;
use std::rc::Rc;

/// Items of one transaction that ends or removes many: what waits for it waits for less than a heartbeat's pause.
pub(super) const SLICE: usize = 20_000;

/// Everything of an item.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub(super) n: i64,
    pub(super) id: ItemId,
    pub(super) request: i64,
    pub(super) state: ItemState,
    pub(super) epoch: u64,
    pub(super) destination: AgentName,
    pub(super) storage: String,
    pub(super) bytes: Option<u64>,
    pub(super) tries: u32,
    pub(super) not_before: Time,
    pub(super) hold_since: Option<Time>,
    pub(super) hold_until: Option<Time>,
    pub(super) progress: u64,
    pub(super) reason: Option<String>,
    pub(super) changed: Time,
    pub(super) session: Option<SessionKey>,
    pub(super) claim_seq: u64,
    pub(super) holder: Option<AgentName>,
    pub(super) source: Option<AgentName>,
    pub(super) taker: Option<AgentName>,
    pub(super) retry_epoch: u64,
    pub(super) path: Lfn,
    pub(super) lfn: Lfn,
    pub(super) source_path: Option<Lfn>,
    pub(super) digest: Option<String>,
}

/// Of `item i JOIN item_file f`.
pub(super) const COLUMNS: &str = "i.n, i.id, i.request, i.state, i.epoch, i.destination, i.storage, i.bytes, i.tries,
    i.not_before, i.hold_since, i.hold_until, i.progress, i.reason, i.changed, i.session, i.claim_seq, i.holder, i.source,
    i.taker, i.retry_epoch, f.path, coalesce(f.lfn, f.path), f.source_path, f.digest";

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Item> {
    Ok(Item {
        n: row.get(0)?,
        id: row.get(1)?,
        request: row.get(2)?,
        state: row.get(3)?,
        epoch: row.get::<_, Int>(4)?.0,
        destination: row.get(5)?,
        storage: row.get(6)?,
        bytes: row.get::<_, Option<Int>>(7)?.map(|n| n.0),
        tries: row.get(8)?,
        not_before: row.get(9)?,
        hold_since: row.get(10)?,
        hold_until: row.get(11)?,
        progress: row.get::<_, Int>(12)?.0,
        reason: row.get(13)?,
        changed: row.get(14)?,
        session: row.get(15)?,
        claim_seq: row.get::<_, Int>(16)?.0,
        holder: row.get(17)?,
        source: row.get(18)?,
        taker: row.get(19)?,
        retry_epoch: row.get::<_, Int>(20)?.0,
        path: row.get(21)?,
        lfn: row.get(22)?,
        source_path: row.get(23)?,
        digest: row.get(24)?,
    })
}

impl Item {
    fn view(self, request: RequestId) -> ItemView {
        ItemView {
            id: self.id,
            request,
            lfn: self.lfn,
            path: self.path,
            bytes: self.bytes,
            digest: self.digest,
            state: self.state,
            destination: self.destination,
            source: self.source,
            epoch: self.epoch,
            tries: self.tries,
            not_before: request::since(self.not_before),
            hold_since: self.hold_since,
            progress: self.progress,
            reason: self.reason,
            changed: self.changed,
        }
    }

    /// As [`Cx::count`] takes it.
    fn weight(&self) -> i64 {
        Int(self.bytes.unwrap_or(0)).signed()
    }

    /// Moves along the table; `false`: there is no such way, and nothing has changed.
    pub(super) fn go(&mut self, event: ItemEvent) -> bool {
        let Some(to) = self.state.after(event) else { return false };
        self.state = to;
        if !to.is_live() {
            (self.session, self.holder) = (None, None);
        }
        if to == ItemState::Queued {
            (self.source, self.taker, self.progress) = (None, None, 0);
        }
        if to.has_ended() || to == ItemState::Transferring {
            (self.hold_since, self.hold_until) = (None, None);
        }
        true
    }
}

pub(super) fn by_id(cx: &Cx<'_>, id: ItemId) -> R<Option<Item>> {
    cx.one(&format!("SELECT {COLUMNS} FROM item i JOIN item_file f ON f.n = i.n WHERE i.id = ?1"), [id], read)
}

/// What an item's event is called.
fn kind(event: ItemEvent) -> &'static str {
    match event {
        ItemEvent::Claim => "item.claimed",
        ItemEvent::Hold => "item.hold",
        ItemEvent::Ready => "item.ready",
        ItemEvent::Start => "item.started",
        ItemEvent::Verify => "item.verifying",
        ItemEvent::Commit => "item.committing",
        ItemEvent::Complete => "item.done",
        ItemEvent::Skip => "item.skipped",
        ItemEvent::Requeue => "item.requeued",
        ItemEvent::Fail => "item.failed",
        ItemEvent::Cancel => "item.cancelled",
        ItemEvent::RetryFailed => "item.retried",
    }
}

/// Writes what `old` has become: the row, the lock on its path, the counters, the event. `old` is compared, so that
/// nothing moves that somebody else has moved.
pub(super) fn save(cx: &Cx<'_>, request: &Request, old: &Item, new: &Item, event: ItemEvent) -> R<()> {
    let changed = cx.run(
        "UPDATE item SET state = ?4, epoch = ?5, bytes = ?6, tries = ?7, not_before = ?8, hold_since = ?9, hold_until = ?10,
            progress = ?11, reason = ?12, changed = ?13, session = ?14, claim_seq = ?15, holder = ?16, source = ?17,
            taker = ?18 WHERE n = ?1 AND epoch = ?2 AND state = ?3",
        params![
            old.n,
            Int(old.epoch),
            old.state,
            new.state,
            Int(new.epoch),
            new.bytes.map(Int),
            new.tries,
            new.not_before,
            new.hold_since,
            new.hold_until,
            Int(new.progress),
            new.reason,
            cx.now,
            new.session,
            Int(new.claim_seq),
            new.holder,
            new.source,
            new.taker
        ],
    )?;
    if changed != 1 {
        return Err(StoreError::Conflict("the item was changed meanwhile".into()));
    }
    if new.digest != old.digest {
        cx.run("UPDATE item_file SET digest = ?2 WHERE n = ?1", params![old.n, new.digest])?;
    }
    if old.state.is_live() && !new.state.is_live() {
        cx.run(
            "DELETE FROM item_path WHERE storage = ?1 AND path = ?2 AND item = ?3",
            params![old.storage, old.path, old.n],
        )?;
    }
    cx.count(old.request, old.state, -1, -old.weight());
    cx.count(old.request, new.state, 1, new.weight());
    let mut data = json!({ "item": new.id, "state": new.state, "lfn": new.lfn, "epoch": new.epoch });
    if let Some(fields) = data.as_object_mut() {
        let agent = new.holder.as_ref().or(old.holder.as_ref());
        fields.extend(agent.map(|agent| ("agent".into(), json!(agent))));
        fields.extend(new.source.as_ref().map(|source| ("source".into(), json!(source))));
        fields.extend(new.reason.as_ref().map(|reason| ("reason".into(), json!(reason))));
    }
    cx.event(kind(event), &request.view.id.to_string(), data)
}

/// Takes the lock on the item's path; `false`: another live item has it.
pub(super) fn lock_path(cx: &Cx<'_>, item: &Item) -> R<bool> {
    let taken = cx.run(
        "INSERT INTO item_path (storage, path, item) VALUES (?1, ?2, ?3) ON CONFLICT (storage, path) DO NOTHING",
        params![item.storage, item.path, item.n],
    )?;
    Ok(taken == 1)
}

/// How a try ended.
pub(super) struct Ending<'a> {
    pub(super) outcome: ItemEvent,
    pub(super) reported: Option<ItemEvent>,
    pub(super) class: Option<FailureClass>,
    pub(super) reason: Option<&'a str>,
    pub(super) bytes: u64,
}

pub(super) fn end_attempt(cx: &Cx<'_>, item: &Item, end: Ending<'_>) -> R<()> {
    cx.run(
        "UPDATE attempt SET ended = ?3, outcome = ?4, reported = ?5, class = ?6, reason = ?7,
            bytes = CASE WHEN bytes > ?8 THEN bytes ELSE ?8 END WHERE item = ?1 AND epoch = ?2 AND ended IS NULL",
        params![
            item.n,
            Int(item.epoch),
            cx.now,
            end.outcome,
            end.reported,
            end.class.map(Word),
            end.reason,
            Int(end.bytes)
        ],
    )?;
    Ok(())
}

/// Back to the queue, or, when its request is being stopped, to its end. What became of it.
pub(super) fn put_back(new: &mut Item, request: &Request) -> ItemEvent {
    let stop = match () {
        () if request.view.cancelling => Some(ItemEvent::Cancel),
        () if request.expiring => Some(ItemEvent::Fail),
        () => None,
    };
    match stop {
        Some(event) if new.go(event) => event,
        // Nobody is told of the step in between.
        Some(event) => {
            new.go(ItemEvent::Requeue);
            new.go(event);
            event
        }
        None => {
            new.go(ItemEvent::Requeue);
            ItemEvent::Requeue
        }
    }
}

/// Takes a live item from its agent, whose fault it is not.
pub(super) fn give_back(cx: &Cx<'_>, requests: &mut Requests, item: &Item, reason: &str) -> R<()> {
    let request = requests.get(cx, item.request)?;
    let mut new = item.clone();
    let outcome = put_back(&mut new, &request);
    new.reason = Some(reason.to_owned());
    new.not_before = cx.now;
    end_attempt(cx, item, Ending { outcome, reported: None, class: None, reason: Some(reason), bytes: item.progress })?;
    save(cx, &request, item, &new, outcome)
}

/// Requests of one transaction, each read once.
#[derive(Default)]
pub(super) struct Requests(HashMap<i64, Rc<Request>>);

impl Requests {
    pub(super) fn get(&mut self, cx: &Cx<'_>, n: i64) -> R<Rc<Request>> {
        if let Some(request) = self.0.get(&n) {
            return Ok(request.clone());
        }
        let request = Rc::new(request::by_n(cx, n)?);
        self.0.insert(n, request.clone());
        Ok(request)
    }
}

pub(super) fn add(cx: &Cx<'_>, id: RequestId, items: &[NewItem]) -> R<()> {
    if items.len() > MAX_ADD {
        return Err(StoreError::TooMuch(format!("{} items at once: at most {MAX_ADD}", items.len())));
    }
    let request = request::still_resolving(cx, id)?;
    let mut storages = HashMap::new();
    let (mut chain, mut bytes) = (request.chain, 0_i64);
    for item in items {
        if !storages.contains_key(&item.destination) {
            storages.insert(item.destination.clone(), super::agent::storage_of(cx, &item.destination)?);
        }
        let n: i64 = cx.sole(
            "INSERT INTO item (id, request, state, destination, storage, bytes, changed)
             VALUES (?1, ?2, 'queued', ?3, ?4, ?5, ?6) RETURNING n",
            params![
                ItemId::new(),
                request.n,
                item.destination,
                storages[&item.destination],
                item.bytes.map(Int),
                cx.now
            ],
            |row| row.get(0),
        )?;
        let lfn = (item.lfn != item.path).then_some(&item.lfn);
        let added = cx.run(
            "INSERT INTO item_file (n, request, destination, path, lfn, source_path, digest)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (request, path, destination) DO NOTHING",
            params![n, request.n, item.destination, item.path, lfn, item.source_path, item.digest],
        )?;
        if added == 0 {
            return Err(StoreError::Conflict(format!("{} would be written twice at {}", item.path, item.destination)));
        }
        let text = |name: &Option<Lfn>| name.as_ref().map_or(String::new(), Lfn::to_string);
        let size = item.bytes.map_or(String::new(), |n| n.to_string());
        chain = request::link(
            chain,
            &[
                item.lfn.as_str().as_bytes(),
                size.as_bytes(),
                item.digest.as_deref().unwrap_or("").as_bytes(),
                item.destination.as_str().as_bytes(),
                item.path.as_str().as_bytes(),
                text(&item.source_path).as_bytes(),
            ],
        );
        bytes = bytes.saturating_add(Int(item.bytes.unwrap_or(0)).signed());
    }
    cx.run("UPDATE request SET chain = ?2 WHERE n = ?1", params![request.n, chain])?;
    cx.count(request.n, ItemState::Queued, i64::try_from(items.len()).unwrap_or(i64::MAX), bytes);
    Ok(())
}

/// Removes items of a request that is gone, or begun anew, [`SLICE`] at most; how many.
pub(super) fn delete_some(cx: &Cx<'_>, request: i64) -> R<usize> {
    let last = "SELECT max(n) FROM (SELECT n FROM item WHERE request = ?1 ORDER BY n LIMIT ?2) AS some";
    let last: Option<i64> = cx.sole(last, params![request, Int(SLICE as u64)], |row| row.get(0))?;
    let Some(last) = last else { return Ok(0) };
    let of = params![request, last];
    cx.run("DELETE FROM attempt WHERE item IN (SELECT n FROM item WHERE request = ?1 AND n <= ?2)", of)?;
    cx.run("DELETE FROM item_file WHERE n IN (SELECT n FROM item WHERE request = ?1 AND n <= ?2)", of)?;
    cx.run("DELETE FROM item WHERE request = ?1 AND n <= ?2", of)
}

fn sums(cx: &Cx<'_>, request: i64, state: ItemState) -> R<(i64, i64)> {
    cx.sole(
        "SELECT count(*), coalesce(sum(bytes), 0) FROM item WHERE request = ?1 AND state = ?2",
        params![request, state],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Moves what nobody has, [`SLICE`] at most; how many. One event, the request's, tells of it.
pub(super) fn end_queued(cx: &Cx<'_>, request: i64, event: ItemEvent, reason: &str) -> R<usize> {
    let Some(to) = ItemState::Queued.after(event) else { return Ok(0) };
    let moved: Vec<i64> = cx.all(
        "UPDATE item SET state = ?2, reason = ?3, changed = ?4, hold_since = NULL, hold_until = NULL WHERE n IN
            (SELECT n FROM item WHERE request = ?1 AND state = 'queued' ORDER BY n LIMIT ?5)
         RETURNING coalesce(bytes, 0)",
        params![request, to, reason, cx.now, Int(SLICE as u64)],
        |row| row.get(0),
    )?;
    let (items, bytes) = (i64::try_from(moved.len()).unwrap_or(i64::MAX), moved.iter().sum::<i64>());
    cx.count(request, ItemState::Queued, -items, -bytes);
    cx.count(request, to, items, bytes);
    Ok(moved.len())
}

/// Failed items begin anew: what failed before does not count, and no source is excluded for it.
pub(super) fn retry_failed(cx: &Cx<'_>, request: i64) -> R<()> {
    let (items, bytes) = sums(cx, request, ItemState::Failed)?;
    cx.run(
        "UPDATE item SET state = 'queued', tries = 0, not_before = 0, reason = NULL, changed = ?2, progress = 0,
            source = NULL, taker = NULL, retry_epoch = epoch,
            storage = coalesce((SELECT a.storage FROM agent a WHERE a.name = item.destination), storage)
         WHERE request = ?1 AND state = 'failed'",
        params![request, cx.now],
    )?;
    cx.count(request, ItemState::Failed, -items, -bytes);
    cx.count(request, ItemState::Queued, items, bytes);
    Ok(())
}

pub(super) fn list(cx: &Cx<'_>, id: RequestId, state: Option<ItemState>, page: &PageQuery) -> R<Page<ItemView>> {
    let request = request::by_id(cx, id)?;
    let after = super::page::number(page, 0)?;
    let narrow = if state.is_some() { "AND i.state = ?4" } else { "AND ?4 IS NULL" };
    let sql = format!(
        "SELECT {COLUMNS} FROM item i JOIN item_file f ON f.n = i.n WHERE i.request = ?1 AND i.n > ?2 {narrow}
         ORDER BY i.n LIMIT ?3"
    );
    let rows = cx.all(&sql, params![request.n, after, super::page::limit(page), state], read)?;
    Ok(super::page::page(rows, page, |item| item.n.to_string(), |item| item.view(id)))
}

pub(super) fn one(cx: &Cx<'_>, id: ItemId) -> R<ItemView> {
    let item = by_id(cx, id)?.ok_or(StoreError::NotFound("item"))?;
    let request = cx.sole("SELECT id FROM request WHERE n = ?1", [item.request], |row| row.get(0))?;
    Ok(item.view(request))
}

pub(super) fn attempts(cx: &Cx<'_>, id: ItemId) -> R<Vec<AttemptView>> {
    let n: Option<i64> = cx.one("SELECT n FROM item WHERE id = ?1", [id], |row| row.get(0))?;
    cx.all(
        "SELECT epoch, source, agent, started, ended, outcome, class, reason, bytes FROM attempt WHERE item = ?1
         ORDER BY epoch",
        [n.ok_or(StoreError::NotFound("item"))?],
        |row| {
            Ok(AttemptView {
                epoch: row.get::<_, Int>(0)?.0,
                source: row.get(1)?,
                agent: row.get(2)?,
                started: row.get(3)?,
                ended: row.get(4)?,
                outcome: row.get(5)?,
                class: row.get::<_, Option<Word<FailureClass>>>(6)?.map(|word| word.0),
                reason: row.get(7)?,
                bytes: row.get::<_, Int>(8)?.0,
            })
        },
    )
}
