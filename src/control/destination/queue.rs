//! What this agent has taken on and what it has to tell, durable before it acts on either. A hold is a row with a time:
//! it costs no memory, worker or try, and the index over the times is the heap of timers.

use crate::control::database::{Database, DatabaseError};
use crate::control::model::item::{Assignment, FailureClass, ItemReport};
use crate::control::model::name::{ItemId, SessionKey, StageId};
use crate::control::model::states::ItemEvent;
use crate::control::model::time::Time;
use crate::ids::TransferId;
use crate::relpath::RelPath;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// From this size on a file is a transfer of its own, so that whoever continues it finds its checkpoint.
pub const BIG: u64 = 64 << 20;
/// Files of one transfer.
pub const GROUP: u32 = 1000;
/// No hold waits for longer. What seems to, does so because the clock was set back: it is due.
const AHEAD_MS: i64 = 900_000;
/// Groups that are looked through for one whose place is free.
const LOOKED_AT: usize = 256;
/// What a transfer left is kept for so long for a claim that goes on from it.
const LEFT_SECS: u64 = 7 * 24 * 3600;
/// What a begun group's name begins with; a file of its own has its item's.
const RUN: &str = "run ";

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta(k TEXT PRIMARY KEY, v TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS work(
    item TEXT PRIMARY KEY, epoch INTEGER NOT NULL, state TEXT NOT NULL, due INTEGER NOT NULL, priority INTEGER NOT NULL,
    request TEXT NOT NULL, peer TEXT NOT NULL, grp TEXT NOT NULL, run TEXT, started INTEGER NOT NULL DEFAULT 0,
    held INTEGER NOT NULL DEFAULT 0, assignment TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS work_due ON work(state, due, peer, priority);
CREATE INDEX IF NOT EXISTS work_peer ON work(peer, state, due);
CREATE TABLE IF NOT EXISTS left(
    transfer TEXT NOT NULL, item TEXT NOT NULL, home TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY(transfer, item))
    WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS left_item ON left(item);
CREATE TABLE IF NOT EXISTS outbox(
    seq INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL, epoch INTEGER NOT NULL, report TEXT NOT NULL);
";

/// One item that was taken on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// What main said.
    pub assignment: Assignment,
    /// A transfer of this claim or an earlier one was begun here: what stands at the final name may be ours.
    pub started: bool,
    /// Since when it is on hold, under this claim; main knows.
    pub held: Option<Time>,
}

impl Work {
    /// A report of it.
    pub fn report(&self, event: ItemEvent) -> ItemReport {
        ItemReport::new(self.assignment.item, self.assignment.epoch, event)
    }

    /// Given back to main; without a class it was a hold that lasted too long.
    pub fn requeue(&self, class: Option<FailureClass>, reason: impl Into<String>, after: Option<u64>) -> ItemReport {
        // Long enough for a sentence and two names.
        let reason = reason.into().chars().take(1000).collect();
        ItemReport { class, reason: Some(reason), retry_after_secs: after, ..self.report(ItemEvent::Requeue) }
    }
}

/// How many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Waiting for the source's word or a slot.
    pub queued: u64,
    /// On hold.
    pub holding: u64,
    /// In a transfer.
    pub running: u64,
}

/// Something to transfer together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// We are the source.
    pub push: bool,
    /// Several files below one directory, now or when it was begun.
    pub group: bool,
    /// By item. They say whether they had been begun before.
    pub works: Vec<Work>,
}

/// What is ready under one group's words: its best priority, whether it was begun before, its request and first item.
struct Ready {
    run: String,
    priority: u8,
    started: bool,
    request: String,
    first: String,
    push: bool,
}

/// What a transfer left: where its journal and part files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The directory.
    pub home: RelPath,
    /// The transfer.
    pub transfer: TransferId,
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    db: Database,
    /// When, in turns, each request had its last transfer begun: those of one priority take turns.
    turns: Mutex<(u64, HashMap<String, u64>)>,
}

fn work(row: &Row<'_>) -> rusqlite::Result<Work> {
    let text: String = row.get(0)?;
    let assignment = serde_json::from_str(&text).map_err(|_| rusqlite::Error::InvalidQuery)?;
    let held = row.get::<_, i64>(2)?;
    Ok(Work { assignment, started: row.get(1)?, held: (held > 0).then_some(Time(held)) })
}

/// The directory that `path` lies in, with its slash.
pub fn directory(path: &str) -> &str {
    &path[..=path.rfind('/').unwrap_or(0)]
}

/// What may travel together has the same words here.
fn group_of(a: &Assignment, side: &str) -> String {
    let name = |path: &str| path[directory(path).len()..].to_owned();
    let (from, to) = (a.source_path.as_str(), a.path.as_str());
    // Without a size it may be big. A push has one verdict.
    let alone = side == "push" || a.bytes.is_none_or(|bytes| bytes >= BIG) || name(from) != name(to);
    match alone {
        true => a.item.to_string(),
        false => format!(
            "{}\n{}\n{}\n{}\n{:?} {:?} {:?}",
            a.request,
            a.source.name,
            directory(from),
            directory(to),
            a.if_exists,
            a.verify,
            a.max_rate
        ),
    }
}

fn put_report(t: &Transaction<'_>, report: &ItemReport) -> rusqlite::Result<()> {
    let text = serde_json::to_string(report).map_err(|_| rusqlite::Error::InvalidQuery)?;
    t.prepare_cached("INSERT INTO outbox(item, epoch, report) VALUES (?1, ?2, ?3)")?
        .execute(params![report.item.to_string(), report.epoch as i64, text])
        .map(|_| ())
}

/// Of these transfers, those that no item may go on from.
fn unneeded(t: &Transaction<'_>, found: Vec<(String, String)>) -> rusqlite::Result<Vec<Left>> {
    let mut left = Vec::new();
    for (transfer, home) in found {
        let needed = t.prepare_cached("SELECT 1 FROM left WHERE transfer=?1")?.exists([&transfer])?;
        if let (false, Ok(transfer), Ok(home)) = (needed, transfer.parse(), RelPath::new(home.as_bytes())) {
            left.push(Left { home, transfer });
        }
    }
    Ok(left)
}

impl Queue {
    /// Opens it. Transfers that ran when the agent ended go on with the same files, so that they are the same transfers;
    /// of what had not begun the source is asked again.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        let db = Database::open(path, SCHEMA)?;
        db.write(|t| {
            t.execute("UPDATE work SET state='queued', due=0 WHERE state='ready' AND run IS NULL", [])?;
            t.execute("UPDATE work SET state='ready' WHERE state='running'", [])
        })?;
        Ok(Self { db, turns: Mutex::default() })
    }

    /// A value of the session's.
    fn meta(&self, key: &str) -> Result<Option<String>, DatabaseError> {
        self.db.read(|c| c.query_row("SELECT v FROM meta WHERE k=?1", [key], |r| r.get(0)).optional())
    }

    /// The session before.
    pub fn session(&self) -> Result<Option<SessionKey>, DatabaseError> {
        Ok(self.meta("session")?.and_then(|text| text.parse().ok()))
    }

    /// Keeps a new session and, of the items, only those that are still ours.
    pub fn begin_session(&self, session: SessionKey, kept: &[ItemId]) -> Result<(), DatabaseError> {
        self.db.write(|t| {
            t.execute("INSERT OR REPLACE INTO meta VALUES ('session', ?1)", [session.to_string()])?;
            t.execute("INSERT OR REPLACE INTO meta VALUES ('seq', '0')", [])?;
            t.execute("CREATE TEMP TABLE IF NOT EXISTS kept(item TEXT PRIMARY KEY)", [])?;
            t.execute("DELETE FROM kept", [])?;
            for item in kept {
                t.prepare_cached("INSERT OR IGNORE INTO kept VALUES (?1)")?.execute([item.to_string()])?;
            }
            t.execute("DELETE FROM work WHERE item NOT IN (SELECT item FROM kept)", []).map(|_| ())
        })
    }

    /// All items that we have, those included that are done but not told.
    pub fn items(&self) -> Result<Vec<ItemId>, DatabaseError> {
        self.db.read(|c| {
            c.prepare_cached("SELECT item FROM work UNION SELECT item FROM outbox")?
                .query_map([], |r| r.get::<_, String>(0))?
                .filter_map(|text| text.map(|t| t.parse().ok()).transpose())
                .collect()
        })
    }

    /// The number of the next claim; the same until its answer was taken in.
    pub fn next_claim(&self) -> Result<u64, DatabaseError> {
        Ok(self.meta("seq")?.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) + 1)
    }

    /// Takes in what claim `seq` brought.
    pub fn accept(&self, seq: u64, side: &str, assignments: &[Assignment]) -> Result<(), DatabaseError> {
        self.db.write(|t| {
            for a in assignments {
                let text = serde_json::to_string(a).map_err(|_| rusqlite::Error::InvalidQuery)?;
                let peer = if side == "push" { &a.destination.name } else { &a.source.name };
                t.prepare_cached(
                    "INSERT INTO work(item, epoch, state, due, priority, request, peer, grp, assignment)
                     VALUES (?1, ?2, 'queued', 0, ?3, ?4, ?5, ?6, ?7)
                     ON CONFLICT(item) DO UPDATE SET epoch=excluded.epoch, state='queued', due=0, peer=excluded.peer,
                     grp=excluded.grp, run=NULL, held=0, assignment=excluded.assignment
                     WHERE excluded.epoch > work.epoch",
                )?
                .execute(params![
                    a.item.to_string(),
                    a.epoch as i64,
                    a.priority,
                    a.request.to_string(),
                    format!("{side} {peer}"),
                    group_of(a, side),
                    text
                ])?;
            }
            t.execute("INSERT OR REPLACE INTO meta VALUES ('seq', ?1)", [seq.to_string()]).map(|_| ())
        })
    }

    /// Items whose source is to be asked now, all of one peer that is not being asked: new ones, and holds whose time has
    /// come. The most urgent first.
    pub fn due(&self, asked: &HashSet<String>) -> Result<Option<(String, Vec<Work>)>, DatabaseError> {
        let now = Time::now().0;
        self.db.read(|c| {
            let peers = c
                .prepare_cached(
                    "SELECT peer FROM work WHERE state IN ('queued','hold') AND (due<=?1 OR due>?2) GROUP BY peer
                     ORDER BY max(priority) DESC, min(due)",
                )?
                .query_map([now, now + AHEAD_MS], |r| r.get::<_, String>(0))?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            let Some(peer) = peers.into_iter().find(|peer| !asked.contains(peer)) else { return Ok(None) };
            let found = c
                .prepare_cached(
                    "SELECT assignment, started, held FROM work WHERE peer=?1 AND state IN ('queued','hold')
                     AND (due<=?2 OR due>?3) ORDER BY priority DESC, item LIMIT ?4",
                )?
                .query_map(params![peer, now, now + AHEAD_MS, GROUP], work)?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(Some((peer, found)))
        })
    }

    /// When the next of them is due, in milliseconds from now.
    pub fn next_due(&self) -> Result<Option<u64>, DatabaseError> {
        let due: Option<i64> = self.db.read(|c| {
            c.prepare_cached(
                "SELECT min(due) FROM (SELECT min(due) due FROM work WHERE state='queued'
                 UNION ALL SELECT min(due) FROM work WHERE state='hold')",
            )?
            .query_row([], |r| r.get(0))
        })?;
        Ok(due.map(|due| u64::try_from(due.saturating_sub(Time::now().0)).unwrap_or(0)))
    }

    /// A peer is not there: what it is to be asked about has time until `due`.
    pub fn peer_away(&self, peer: &str, due: Time) -> Result<(), DatabaseError> {
        self.db.write(|t| {
            t.execute(
                "UPDATE work SET due=?2 WHERE peer=?1 AND state IN ('queued','hold') AND due<?2",
                params![peer, due.0],
            )
            .map(|_| ())
        })
    }

    /// They can be transferred; `reports` for those that were on hold.
    pub fn ready(&self, items: &[(ItemId, u64)], reports: &[ItemReport]) -> Result<(), DatabaseError> {
        self.db.write(|t| {
            for (item, epoch) in items {
                t.prepare_cached("UPDATE work SET state='ready', held=0 WHERE item=?1 AND epoch=?2")?
                    .execute(params![item.to_string(), *epoch as i64])?;
            }
            reports.iter().try_for_each(|report| put_report(t, report))
        })
    }

    /// Not before `due`; those that main does not know to be on hold are told.
    pub fn hold(&self, works: &[Work], due: Time, stage: Option<StageId>, after: u64) -> Result<(), DatabaseError> {
        let now = Time::now();
        self.db.write(|t| {
            for work in works {
                let a = &work.assignment;
                t.prepare_cached("UPDATE work SET state='hold', due=?3, held=?4 WHERE item=?1 AND epoch=?2")?
                    .execute(params![a.item.to_string(), a.epoch as i64, due.0, work.held.unwrap_or(now).0])?;
                if work.held.is_none() {
                    let report = ItemReport { stage, retry_after_secs: Some(after), ..work.report(ItemEvent::Hold) };
                    put_report(t, &report)?;
                }
            }
            Ok(())
        })
    }

    /// A transfer was only stopped: it goes on with the same files.
    pub fn again(&self, items: &[(ItemId, u64)]) -> Result<(), DatabaseError> {
        self.db.write(|t| {
            for (item, epoch) in items {
                t.prepare_cached("UPDATE work SET state='ready' WHERE item=?1 AND epoch=?2")?
                    .execute(params![item.to_string(), *epoch as i64])?;
            }
            Ok(())
        })
    }

    /// The best of what is ready and not `busy`, with all that travels with it; marked as running and begun.
    pub fn start(&self, busy: impl Fn(&Assignment, bool) -> bool) -> Result<Option<Batch>, DatabaseError> {
        let ready = self.ready_groups()?;
        self.db.write(|t| {
            for Ready { run, first, request, push, .. } in ready.into_iter().take(LOOKED_AT) {
                let first = t
                    .prepare_cached("SELECT assignment, started, held FROM work WHERE item=?1 AND state='ready'")?
                    .query_row([&first], work)
                    .optional()?;
                let Some(first) = first else { continue };
                let works = t
                    .prepare_cached(
                        "SELECT assignment, started, held FROM work WHERE state='ready' AND coalesce(run, grp)=?1
                         AND started=?2 ORDER BY item LIMIT ?3",
                    )?
                    .query_map(params![run, first.started, GROUP], work)?
                    .collect::<rusqlite::Result<Vec<_>>>()?;
                // A group keeps its directory's lock, even when one file is left of it.
                let group = works.len() > 1 || run.starts_with(RUN);
                if busy(&first.assignment, group) {
                    continue;
                }
                let name = format!("{}{}", if group { RUN } else { "" }, first.assignment.item);
                for w in &works {
                    t.prepare_cached(
                        "UPDATE work SET state='running', started=1, run=coalesce(run, ?2) WHERE item=?1",
                    )?
                    .execute(params![w.assignment.item.to_string(), name])?;
                    put_report(t, &w.report(ItemEvent::Start))?;
                }
                let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
                turns.0 += 1;
                let turn = turns.0;
                turns.1.insert(request, turn);
                return Ok(Some(Batch { push, group, works }));
            }
            Ok(None)
        })
    }

    /// The order of what is ready: by priority, what was begun, whose turn it is, age.
    fn ready_groups(&self) -> Result<Vec<Ready>, DatabaseError> {
        let mut ready = self.db.read(|c| {
            c.prepare_cached(
                "SELECT coalesce(run, grp), max(priority), started, request, min(item), peer FROM work
                 WHERE state='ready' GROUP BY coalesce(run, grp), started",
            )?
            .query_map([], |r| {
                Ok(Ready {
                    run: r.get(0)?,
                    priority: r.get(1)?,
                    started: r.get(2)?,
                    request: r.get(3)?,
                    first: r.get(4)?,
                    push: r.get::<_, String>(5)?.starts_with("push "),
                })
            })?
            .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.1.len() > LOOKED_AT {
            turns.1.retain(|request, _| ready.iter().any(|r| r.request == *request));
        }
        let turn = |r: &Ready| turns.1.get(&r.request).copied().unwrap_or(0);
        ready.sort_by_cached_key(|r| (Reverse(r.priority), Reverse(r.started), turn(r), r.first.clone()));
        Ok(ready)
    }

    /// Their ends, each with its report to main, in one go.
    pub fn finish(&self, reports: &[ItemReport]) -> Result<(), DatabaseError> {
        self.db.write(|t| {
            for report in reports {
                let gone = t
                    .prepare_cached("DELETE FROM work WHERE item=?1 AND epoch=?2")?
                    .execute(params![report.item.to_string(), report.epoch as i64])?;
                // Given to somebody else meanwhile: nothing to say.
                if gone == 1 {
                    put_report(t, report)?;
                }
            }
            Ok(())
        })
    }

    /// A transfer came to no good end, and has left what a later claim of `items` may go on from.
    pub fn leave(&self, left: &Left, items: &[ItemId]) -> Result<(), DatabaseError> {
        let home = std::str::from_utf8(left.home.as_bytes()).unwrap_or_default();
        self.db.write(|t| {
            let mut insert = t.prepare_cached("INSERT OR REPLACE INTO left VALUES (?1, ?2, ?3, ?4)")?;
            items.iter().try_for_each(|item| {
                insert.execute(params![left.transfer.to_string(), item.to_string(), home, Time::now().0]).map(|_| ())
            })
        })
    }

    /// `items` have ended here: what their earlier transfers left is of no use, unless other items may go on from it.
    pub fn swept(&self, items: &[ItemId]) -> Result<Vec<Left>, DatabaseError> {
        self.db.write(|t| {
            let mut found = Vec::new();
            for item in items {
                let mut rows = t
                    .prepare_cached("DELETE FROM left WHERE item=?1 RETURNING transfer, home")?
                    .query_map([item.to_string()], |r| Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?)))?
                    .collect::<rusqlite::Result<Vec<_>>>()?;
                found.append(&mut rows);
            }
            found.sort();
            found.dedup();
            unneeded(t, found)
        })
    }

    /// What was left so long ago that nobody will go on from it.
    pub fn swept_old(&self) -> Result<Vec<Left>, DatabaseError> {
        let before = Time::now().0.saturating_sub_unsigned(LEFT_SECS * 1000);
        self.db.write(|t| {
            let found = t
                .prepare_cached("SELECT DISTINCT transfer, home FROM left WHERE at<?1")?
                .query_map([before], |r| Ok((r.get(0)?, r.get(1)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            t.execute("DELETE FROM left WHERE at<?1", [before])?;
            unneeded(t, found)
        })
    }

    /// Forgets claims that are not ours any more.
    pub fn forget(&self, claims: &[(ItemId, u64)]) -> Result<(), DatabaseError> {
        self.db.write(|t| {
            for (item, epoch) in claims {
                t.prepare_cached("DELETE FROM work WHERE item=?1 AND epoch<=?2")?
                    .execute(params![item.to_string(), *epoch as i64])?;
            }
            Ok(())
        })
    }

    /// Main wants these stopped: those that are not in a transfer end at once.
    pub fn cancel(&self, items: &[ItemId]) -> Result<(), DatabaseError> {
        self.db.write(|t| {
            for item in items {
                let found = t
                    .prepare_cached("SELECT assignment, started, held FROM work WHERE item=?1 AND state<>'running'")?
                    .query_row([item.to_string()], work)
                    .optional()?;
                if let Some(work) = found {
                    t.prepare_cached("DELETE FROM work WHERE item=?1")?.execute([item.to_string()])?;
                    put_report(t, &work.report(ItemEvent::Cancel))?;
                }
            }
            Ok(())
        })
    }

    /// The oldest reports that main has not taken.
    pub fn untold(&self, limit: usize) -> Result<Vec<(i64, ItemReport)>, DatabaseError> {
        self.db.read(|c| {
            c.prepare_cached("SELECT seq, report FROM outbox ORDER BY seq LIMIT ?1")?
                .query_map([limit as i64], |r| {
                    let text: String = r.get(1)?;
                    Ok((r.get(0)?, serde_json::from_str(&text).map_err(|_| rusqlite::Error::InvalidQuery)?))
                })?
                .collect()
        })
    }

    /// Main has taken these.
    pub fn told(&self, seqs: &[i64]) -> Result<(), DatabaseError> {
        self.db.write(|t| {
            for seq in seqs {
                t.prepare_cached("DELETE FROM outbox WHERE seq=?1")?.execute([seq])?;
            }
            Ok(())
        })
    }

    /// How many there are.
    pub fn counts(&self) -> Result<Counts, DatabaseError> {
        self.db.read(|c| {
            let mut counts = Counts::default();
            let mut statement = c.prepare_cached("SELECT state, count(*) FROM work GROUP BY state")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let count = row.get::<_, i64>(1)?.unsigned_abs();
                match row.get::<_, String>(0)?.as_str() {
                    "hold" => counts.holding = count,
                    "running" => counts.running = count,
                    _ => counts.queued += count,
                }
            }
            Ok(counts)
        })
    }
}
