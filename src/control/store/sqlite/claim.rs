//! Who is given what. `claimable` looks and changes nothing; `claim` takes, item by item, what is still as it was seen.

use super::super::{Candidate, Claimable};
use super::agent::{self, Agent};
use super::cx::{Cx, R};
use super::item::{self, Item};
use super::request::{self, Request};
use super::value::{Int, Word};
use crate::control::model::catalog::Locality;
use crate::control::model::item::{AgentEndpoint, Assignment, Claim, FailureClass, MAX_CLAIM, Side};
use crate::control::model::name::{AgentName, BlockName, DatasetName, ItemId, Lfn, SessionKey};
use crate::control::model::request::{Model, SourceChoice};
use crate::control::model::states::{ItemEvent, ItemState};
use crate::control::model::time::Time;
use rusqlite::params;
use std::collections::{HashMap, HashSet};

/// Items of one request that one call looks at from the queue's head, and again from a place further on: many whose
/// sources are all away neither cost a scan nor bar the way for those behind them.
const WINDOW: usize = 2000;
/// Items that one call looks at in all.
const LOOK_AT: usize = 20_000;

/// The agents, and the live items that each serves.
pub(super) struct Agents {
    by_name: HashMap<AgentName, Agent>,
    loads: HashMap<AgentName, u64>,
}

impl Agents {
    pub(super) fn read(cx: &Cx<'_>) -> R<Self> {
        let by_name = agent::all(cx)?.into_iter().map(|a| (a.view.registration.name.clone(), a)).collect();
        Ok(Self { by_name, loads: HashMap::new() })
    }

    fn load(&mut self, cx: &Cx<'_>, name: &AgentName) -> R<u64> {
        if let Some(load) = self.loads.get(name) {
            return Ok(*load);
        }
        let count = "SELECT count(*) FROM item WHERE source = ?1 AND session IS NOT NULL";
        let load = cx.sole(count, [name], |row| row.get::<_, Int>(0))?.0;
        self.loads.insert(name.clone(), load);
        Ok(load)
    }

    fn is(&self, name: &AgentName, role: &str) -> bool {
        self.by_name.get(name).is_some_and(|agent| agent.takes_part(role))
    }

    /// Who takes a push: the destination itself, or else another agent over its storage.
    fn taker(&self, destination: &AgentName, storage: &str) -> Option<AgentName> {
        if self.is(destination, "destination") {
            return Some(destination.clone());
        }
        let mut others: Vec<_> = self.by_name.values().filter(|a| a.storage == storage).collect();
        others.retain(|a| a.takes_part("destination"));
        others.into_iter().map(|a| a.view.registration.name.clone()).min()
    }

    fn endpoint(&self, name: &AgentName) -> AgentEndpoint {
        let registration = self.by_name.get(name).map(|agent| &agent.view.registration);
        AgentEndpoint {
            name: name.clone(),
            url: registration.map(|r| r.url.clone()).unwrap_or_default(),
            fingerprint: registration.and_then(|r| r.fingerprint.clone()),
        }
    }
}

/// Everybody who may have an item, whether he is there or not, and how it is there.
pub(super) fn holders(cx: &Cx<'_>, request: &Request, item: &Item) -> R<Vec<(AgentName, bool)>> {
    let replicas = cx.all(
        "SELECT r.agent, r.locality FROM file f JOIN replica r ON r.file = f.n WHERE f.lfn = ?1 ORDER BY r.agent",
        [&item.lfn],
        |row| Ok((row.get(0)?, row.get::<_, Word<Locality>>(1)?.0 == Locality::Online)),
    )?;
    let SourceChoice::Agents(named) = &request.view.spec.source else { return Ok(replicas) };
    let known: Vec<_> = replicas.into_iter().filter(|(agent, _)| named.contains(agent)).collect();
    // What the catalog does not know the named sources are asked for.
    Ok(if known.is_empty() { named.iter().map(|agent| (agent.clone(), true)).collect() } else { known })
}

/// How an item fared with one source.
#[derive(Default)]
pub(super) struct Fared {
    /// Tries that its source may have failed.
    failures: u64,
    /// Long holds that were given back.
    holds: u64,
    /// It is not asked again.
    pub(super) excluded: bool,
    /// Tries that failed at the destination.
    pub(super) unplaced: u64,
}

/// By source, since the last retry by request.
pub(super) fn fared(cx: &Cx<'_>, item: &Item) -> R<HashMap<AgentName, Fared>> {
    use FailureClass::{Backpressure, DestinationBad, Integrity, Permanent, SourceBad, Transient};
    if item.epoch == item.retry_epoch {
        return Ok(HashMap::new());
    }
    let tries = cx.all(
        "SELECT source, class FROM attempt WHERE item = ?1 AND epoch > ?2 AND reported IS NOT NULL",
        params![item.n, Int(item.retry_epoch)],
        |row| Ok((row.get::<_, AgentName>(0)?, row.get::<_, Option<Word<FailureClass>>>(1)?.map(|class| class.0))),
    )?;
    let mut found: HashMap<AgentName, Fared> = HashMap::new();
    for (source, class) in tries {
        let entry = found.entry(source).or_default();
        match class {
            None => entry.holds += 1,
            Some(Backpressure) => {}
            Some(DestinationBad) => entry.unplaced += 1,
            Some(Transient | Permanent) => entry.failures += 1,
            Some(SourceBad | Integrity) => {
                entry.failures += 1;
                entry.excluded = true;
            }
        }
    }
    Ok(found)
}

fn candidates(
    cx: &Cx<'_>,
    agents: &mut Agents,
    request: &Request,
    item: &Item,
    only: Option<&AgentName>,
) -> R<Vec<Candidate>> {
    let mut holders = holders(cx, request, item)?;
    holders.retain(|(agent, _)| agents.is(agent, "source") && only.is_none_or(|only| only == agent));
    if holders.is_empty() {
        return Ok(Vec::new());
    }
    let mut fared = fared(cx, item)?;
    let mut found = Vec::new();
    for (agent, online) in holders {
        let Fared { failures, holds, excluded, .. } = fared.remove(&agent).unwrap_or_default();
        if !excluded {
            let load = agents.load(cx, &agent)?;
            found.push(Candidate { agent, load, failures, holds, online });
        }
    }
    Ok(found)
}

/// The place in the queue of one request at one storage.
struct Walk {
    request: Request,
    storage: String,
    after: (i64, i64),
    left: usize,
    jumped: bool,
    over: bool,
}

pub(super) const QUEUE_SQL: &str = "FROM item i JOIN item_file f ON f.n = i.n
     WHERE i.state = 'queued' AND i.storage = ?1 AND i.request = ?2 AND i.not_before <= ?3 AND i.not_before >= ?4
        AND (i.not_before > ?4 OR i.n > ?5)
        AND NOT EXISTS (SELECT 1 FROM item_path p WHERE p.storage = i.storage AND p.path = f.path)
     ORDER BY i.not_before, i.n LIMIT ?6";

impl Walk {
    fn new(request: Request, storage: String) -> Self {
        Self { request, storage, after: (0, 0), left: WINDOW, jumped: false, over: false }
    }

    /// The next `rows` of the queue; fewer, or none, at its end.
    fn next(&mut self, cx: &Cx<'_>, rows: usize) -> R<Vec<Item>> {
        if self.left == 0 {
            match self.jumped {
                true => self.over = true,
                false => self.jump(cx)?,
            }
        }
        if self.over {
            return Ok(Vec::new());
        }
        let rows = rows.min(self.left);
        let found = cx.all(
            &format!("SELECT {} {QUEUE_SQL}", item::COLUMNS),
            params![self.storage, self.request.n, cx.now, self.after.0, self.after.1, Int(rows as u64)],
            item::read,
        )?;
        self.over = found.len() < rows;
        self.left -= found.len();
        if let Some(last) = found.last() {
            self.after = (last.not_before.0, last.n);
        }
        Ok(found)
    }

    /// Goes on somewhere between here and the queue's end, elsewhere every time.
    fn jump(&mut self, cx: &Cx<'_>) -> R<()> {
        let last: Option<i64> = cx.one(
            "SELECT n FROM item WHERE state = 'queued' AND storage = ?1 AND request = ?2 AND not_before = ?3
             ORDER BY not_before DESC, n DESC LIMIT 1",
            params![self.storage, self.request.n, self.after.0],
            |row| row.get(0),
        )?;
        let span = last.unwrap_or(0).saturating_sub(self.after.1).max(1);
        self.after.1 += scatter(cx.now.0.unsigned_abs()) as i64 % span;
        (self.jumped, self.left) = (true, WINDOW);
        Ok(())
    }
}

/// Spreads numbers that lie close together (the finalizer of SplitMix64). Positive as an `i64`.
pub(super) fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) >> 1
}

/// Requests with something queued at a storage, without looking at each item: one step of the index a request.
pub(super) const QUEUED_REQUESTS: &str = "WITH RECURSIVE queued (request) AS (
        SELECT (SELECT i.request FROM item i WHERE i.state = 'queued' AND i.storage = ?1 ORDER BY i.request LIMIT 1)
        UNION ALL
        SELECT (SELECT i.request FROM item i WHERE i.state = 'queued' AND i.storage = ?1 AND i.request > q.request
                ORDER BY i.request LIMIT 1) FROM queued q WHERE q.request IS NOT NULL)
     SELECT request FROM queued WHERE request IS NOT NULL";

/// Which requests `agent` may work on, each with the storage that its items are for; the highest priority first, then the
/// oldest.
fn walks(cx: &Cx<'_>, agent: &Agent, side: Side) -> R<Vec<Walk>> {
    let may = |request: &Request| {
        let view = &request.view;
        let begun = view.spec.not_before.is_none_or(|at| at <= cx.now);
        let late = view.spec.deadline.is_some_and(|at| at <= cx.now);
        view.state == crate::control::model::states::RequestState::Active
            && !view.paused
            && !request.stopping()
            && begun
            && !late
    };
    let mut found = Vec::new();
    match side {
        Side::Destination if agent::paused(cx, &agent.storage)? => {}
        Side::Destination => {
            let queued: Vec<i64> = cx.all(QUEUED_REQUESTS, [&agent.storage], |row| row.get(0))?;
            for n in queued {
                let request = request::by_n(cx, n)?;
                if may(&request) && request.view.spec.model != Model::Push {
                    found.push(Walk::new(request, agent.storage.clone()));
                }
            }
        }
        Side::Source => {
            let active = cx.all(
                &format!(
                    "SELECT {} FROM request r WHERE r.state = 'active' AND r.queued > 0 ORDER BY r.n",
                    request::COLUMNS
                ),
                [],
                request::read,
            )?;
            let name = &agent.view.registration.name;
            for request in active {
                let named = match &request.view.spec.source {
                    SourceChoice::Any => true,
                    SourceChoice::Agents(agents) => agents.contains(name),
                };
                if !may(&request) || request.view.spec.model == Model::Pull || !named {
                    continue;
                }
                let mut storages = HashSet::new();
                for destination in &request.view.spec.destinations {
                    let storage = agent::storage_of(cx, destination)?;
                    if storages.insert(storage.clone()) && !agent::paused(cx, &storage)? {
                        found.push(Walk::new(request.clone(), storage));
                    }
                }
            }
        }
    }
    found.sort_by_key(|walk| (std::cmp::Reverse(walk.request.view.spec.priority), walk.request.n));
    Ok(found)
}

/// A source pushes what is asked to be pushed, and, where nothing is asked, what could not be pulled before.
fn fits(request: &Request, item: &Item, side: Side) -> bool {
    match (side, request.view.spec.model) {
        (Side::Destination, model) => model != Model::Push,
        (Side::Source, Model::Push) => true,
        (Side::Source, Model::Auto) => item.tries > 0,
        (Side::Source, Model::Pull) => false,
    }
}

pub(super) fn claimable(cx: &Cx<'_>, name: &AgentName, claim: &Claim) -> R<Vec<Claimable>> {
    let agent = agent::claiming(cx, name, claim)?;
    let limit = claim.limit.min(MAX_CLAIM);
    let mut found = Vec::new();
    if agent.view.draining || limit == 0 {
        return Ok(found);
    }
    let mut agents = Agents::read(cx)?;
    let mut walks = walks(cx, &agent, claim.side)?;
    let (mut looked, mut paths) = (0, HashSet::new());
    for same in walks.chunk_by_mut(|a, b| a.request.view.spec.priority == b.request.view.spec.priority) {
        // Round about: as many of each request, until there is enough or nothing is left.
        while found.len() < limit && looked < LOOK_AT && same.iter().any(|walk| !walk.over) {
            let going = same.iter().filter(|walk| !walk.over).count();
            let share = (limit - found.len()).div_ceil(going);
            for walk in same.iter_mut().filter(|walk| !walk.over) {
                let items = walk.next(cx, share.min(limit - found.len()).max(1))?;
                looked += items.len();
                for item in items {
                    let only = (claim.side == Side::Source).then_some(name);
                    let reachable = only.is_none() || agents.taker(&item.destination, &item.storage).is_some();
                    if found.len() == limit || !reachable || !fits(&walk.request, &item, claim.side) {
                        continue;
                    }
                    let candidates = candidates(cx, &mut agents, &walk.request, &item, only)?;
                    if !candidates.is_empty() && paths.insert((item.storage, item.path)) {
                        found.push(Claimable { item: item.id, epoch: item.epoch, bytes: item.bytes, candidates });
                    }
                }
            }
        }
    }
    Ok(found)
}

pub(super) fn claim(
    cx: &Cx<'_>,
    name: &AgentName,
    claim: &Claim,
    chosen: Vec<(ItemId, u64, AgentName)>,
) -> R<Vec<Assignment>> {
    let agent = agent::claiming(cx, name, claim)?;
    let agents = Agents::read(cx)?;
    if claim.seq <= agent.claim_seq {
        return assigned(cx, &agents, name, claim.session, Some(claim.seq));
    }
    let mut given = 0;
    if agent.view.draining {
        return Ok(Vec::new());
    }
    let mut requests = item::Requests::default();
    for (id, epoch, source) in chosen.into_iter().take(claim.limit.min(MAX_CLAIM)) {
        let Some(old) = item::by_id(cx, id)? else { continue };
        let request = requests.get(cx, old.request)?;
        let mine = match claim.side {
            Side::Destination => old.storage == agent.storage,
            Side::Source => source == *name,
        };
        let taker = match claim.side {
            Side::Destination => Some(name.clone()),
            Side::Source => agents.taker(&old.destination, &old.storage),
        };
        let open = request.view.state == crate::control::model::states::RequestState::Active
            && !request.view.paused
            && !request.stopping();
        let (Some(taker), true) = (taker, old.state == ItemState::Queued && old.epoch == epoch) else { continue };
        let fits = mine && open && old.not_before <= cx.now && fits(&request, &old, claim.side);
        if !fits || !agents.by_name.contains_key(&source) || !item::lock_path(cx, &old)? {
            continue;
        }
        let mut new = old.clone();
        new.go(ItemEvent::Claim);
        new.epoch += 1;
        (new.session, new.claim_seq) = (Some(claim.session), claim.seq);
        (new.holder, new.source, new.taker) = (Some(name.clone()), Some(source), Some(taker));
        new.reason = None;
        cx.run(
            "INSERT INTO attempt (item, epoch, source, agent, started) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![new.n, Int(new.epoch), new.source, name, cx.now],
        )?;
        item::save(cx, &request, &old, &new, ItemEvent::Claim)?;
        given += 1;
    }
    if given == 0 {
        return Ok(Vec::new());
    }
    cx.run("UPDATE agent SET claim_seq = ?2 WHERE name = ?1", params![name, Int(claim.seq)])?;
    // Read as a repeated claim reads it, so that both get the same in the same order.
    assigned(cx, &agents, name, claim.session, Some(claim.seq))
}

pub(super) fn assignments(cx: &Cx<'_>, name: &AgentName, session: SessionKey) -> R<Vec<Assignment>> {
    agent::in_session(cx, name, session)?;
    assigned(cx, &Agents::read(cx)?, name, session, None)
}

fn assigned(
    cx: &Cx<'_>,
    agents: &Agents,
    name: &AgentName,
    session: SessionKey,
    seq: Option<u64>,
) -> R<Vec<Assignment>> {
    let (low, high) = seq.map_or((0, u64::MAX), |seq| (seq, seq));
    let items = cx.all(
        &format!(
            "SELECT {} FROM item i JOIN item_file f ON f.n = i.n WHERE i.holder = ?1 AND i.session = ?2
                AND i.claim_seq >= ?3 AND i.claim_seq <= ?4 ORDER BY i.claim_seq, i.n",
            item::COLUMNS
        ),
        params![name, session, Int(low), Int(high)],
        item::read,
    )?;
    let mut requests = item::Requests::default();
    let mut given = items
        .iter()
        .map(|item| assignment(cx, agents, &*requests.get(cx, item.request)?, item))
        .collect::<R<Vec<_>>>()?;
    given.sort_by_key(|assignment| std::cmp::Reverse(assignment.priority));
    Ok(given)
}

type Place = (Option<Lfn>, Option<BlockName>, Option<DatasetName>);

fn assignment(cx: &Cx<'_>, agents: &Agents, request: &Request, item: &Item) -> R<Assignment> {
    let spec = &request.view.spec;
    let source = item.source.clone().unwrap_or_else(|| item.destination.clone());
    let taker = item.taker.clone().unwrap_or_else(|| item.destination.clone());
    let place: Option<Place> = cx.one(
        "SELECT r.path, b.name, d.name FROM file f LEFT JOIN block b ON b.n = f.block LEFT JOIN dataset d ON d.n = f.dataset
            LEFT JOIN replica r ON r.file = f.n AND r.agent = ?2 WHERE f.lfn = ?1",
        params![item.lfn, source],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    let (replica, block, dataset) = place.unwrap_or_default();
    let hold_until = match item.hold_until {
        Some(until) => until,
        // From the claim on, so that its repetition says the same.
        None => {
            let claimed = "SELECT started FROM attempt WHERE item = ?1 AND epoch = ?2";
            let claimed: Time = cx.sole(claimed, params![item.n, Int(item.epoch)], |row| row.get(0))?;
            claimed.plus_secs(spec.stage_timeout_secs)
        }
    };
    Ok(Assignment {
        item: item.id,
        request: request.view.id,
        epoch: item.epoch,
        lfn: item.lfn.clone(),
        source_path: item.source_path.clone().or(replica).unwrap_or_else(|| item.lfn.clone()),
        path: item.path.clone(),
        bytes: item.bytes,
        digest: item.digest.clone(),
        model: if item.holder == item.taker { Model::Pull } else { Model::Push },
        source: agents.endpoint(&source),
        destination: agents.endpoint(&taker),
        priority: spec.priority,
        max_rate: spec.max_rate,
        if_exists: spec.if_exists,
        verify: spec.verify,
        hold_until,
        block,
        dataset,
    })
}
