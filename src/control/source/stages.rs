//! Recalls, durable before they are acknowledged. A stage is what one client asked for; a recall is of one file, however
//! many stages want it. The hook gets recalls of all stages together, up to 1000 a process.

use super::hook::{self, Outcome};
use super::{Readable, Rule};
use crate::control::database::{Database, DatabaseError};
use crate::control::model::name::{Lfn, StageId};
use crate::control::model::time::Time;
use crate::control::root::ServedRoot;
use crate::relpath::RelPath;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

/// Files of one process of the hook.
pub const HOOK_FILES: u32 = 1000;
/// Processes of the hook at once: a library likes to know much of what is wanted, a host few of its threads gone.
const HOOKS: usize = 16;
/// A batch that is not full is given to the hook when nobody has asked for anything for so long: a mount takes longer.
const LINGER: Duration = Duration::from_secs(2);
/// Or when the oldest has waited for so many seconds.
const LINGER_MAX_SECS: u64 = 15;
/// Recalls that are waited for a second longer: whoever waits for 100,000 asks less often than who waits for one.
const PER_SECOND: u64 = 2000;
/// Files of a stage that are looked at when it is shown and nobody tells us what became of them.
const LOOKED_AT: u32 = 1000;
/// How often the queue is looked at when nobody rings: for failed recalls whose pause is over.
const LOOK: Duration = Duration::from_secs(10);
/// Pause after a failed recall in seconds, doubled with each.
const PAUSE_SECS: u64 = 15;
/// The longest.
const PAUSE_MAX_SECS: u64 = 900;
/// What `Retry-After` says at most: tapes take hours, but somebody waits.
const RETRY_AFTER_MAX_SECS: u64 = 300;
/// One that the hook has accepted is given to it again when it has not come for so long.
const ACCEPTED_SECS: u64 = 24 * 3600;
/// Ended recalls are forgotten after so long.
const KEPT_SECS: u64 = 7 * 24 * 3600;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS recall(
    lfn TEXT PRIMARY KEY, path BLOB NOT NULL, state TEXT NOT NULL, stage TEXT NOT NULL, since INTEGER NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0, not_before INTEGER NOT NULL DEFAULT 0, reason TEXT);
CREATE INDEX IF NOT EXISTS recall_queue ON recall(state, not_before);
CREATE TABLE IF NOT EXISTS member(stage TEXT NOT NULL, lfn TEXT NOT NULL, PRIMARY KEY(stage, lfn)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS member_of ON member(lfn);
";

/// What can go wrong with recalls.
pub type StageError = DatabaseError;

/// Where a recall stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecallState {
    /// The hook has not been given it.
    Queued,
    /// It has.
    Recalling,
    /// It said that it is there.
    Online,
    /// It said that it is not, or died; tried again when asked for after a pause.
    Failed,
}

impl RecallState {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Recalling => "recalling",
            Self::Online => "online",
            Self::Failed => "failed",
        }
    }

    /// As the header of a 204 says it.
    pub fn header(self) -> &'static str {
        match self {
            Self::Queued | Self::Failed => "queued",
            Self::Recalling => "recalling",
            Self::Online => "ready-soon",
        }
    }

    fn from_word(word: &str) -> Self {
        match word {
            "recalling" => Self::Recalling,
            "online" => Self::Online,
            "failed" => Self::Failed,
            _ => Self::Queued,
        }
    }
}

/// What became of files that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The stage: a new one, or the one that covers them already.
    pub stage: StageId,
    /// When to ask again.
    pub retry_after_secs: u64,
    /// In the order in which they were asked for.
    pub files: Vec<(Lfn, RecallState)>,
}

/// `GET /v1/stages/{id}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageView {
    /// Waiting for the hook.
    pub queued: u64,
    /// With it.
    pub recalling: u64,
    /// There.
    pub online: u64,
    /// Not.
    pub failed: u64,
    /// Why, of one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// All recalls of this source.
#[derive(Debug)]
pub struct Stages {
    db: Database,
    root: Arc<ServedRoot>,
    rule: Rule,
    command: Vec<String>,
    ring: Notify,
    hooks: Arc<Semaphore>,
}

impl Stages {
    /// Opens the file; what a process had when the agent died is queued again.
    pub fn open(path: &Path, root: Arc<ServedRoot>, rule: Rule, command: Vec<String>) -> Result<Self, StageError> {
        let db = Database::open(path, SCHEMA)?;
        let old = Time::now().0.saturating_sub_unsigned(KEPT_SECS * 1000);
        db.write(|t| {
            t.execute("UPDATE recall SET state='queued', not_before=0 WHERE state='recalling'", [])?;
            t.execute("DELETE FROM recall WHERE state IN ('online','failed') AND since < ?1", [old])?;
            t.execute("DELETE FROM member WHERE lfn NOT IN (SELECT lfn FROM recall)", [])
        })?;
        let (ring, hooks) = (Notify::new(), Arc::new(Semaphore::new(HOOKS)));
        Ok(Self { db, root, rule, command, ring, hooks })
    }

    /// Wants these files, which are offline now. Again: the same stage, while they are on their way. Blocks.
    pub fn ask(&self, files: &[(Lfn, RelPath)]) -> Result<Asked, StageError> {
        let now = Time::now();
        // Whoever waits asks again and again: that costs no write.
        let told = self.db.read(|c| told(c, files, now))?;
        let asked = match told {
            Some(asked) => asked,
            None => self.db.write(|t| begin(t, files, now))?,
        };
        self.ring.notify_one();
        Ok(asked)
    }

    /// How a stage stands; `None`: there is none. Blocks.
    pub fn view(&self, stage: StageId) -> Result<Option<StageView>, StageError> {
        self.look_at(stage)?;
        self.db.read(|c| {
            let mut view = StageView::default();
            let mut any = false;
            let mut statement = c.prepare_cached(
                "SELECT r.state, count(*), max(r.reason) FROM member m JOIN recall r ON r.lfn=m.lfn WHERE m.stage=?1 GROUP BY r.state",
            )?;
            let mut rows = statement.query([stage.to_string()])?;
            while let Some(row) = rows.next()? {
                let count = row.get::<_, i64>(1)?.unsigned_abs();
                let reason: Option<String> = row.get(2)?;
                view.reason = view.reason.or(reason);
                match RecallState::from_word(&row.get::<_, String>(0)?) {
                    RecallState::Queued => view.queued = count,
                    RecallState::Recalling => view.recalling = count,
                    RecallState::Online => view.online = count,
                    RecallState::Failed => view.failed = count,
                }
                any = true;
            }
            Ok(any.then_some(view))
        })
    }

    /// Of a recall that nobody tells us the end of (there is no hook, or it only passes on what is wanted), the rule alone
    /// knows what has become.
    fn look_at(&self, stage: StageId) -> Result<(), StageError> {
        let waiting = self.db.read(|c| {
            c.prepare_cached(
                "SELECT r.lfn, r.path FROM member m JOIN recall r ON r.lfn=m.lfn WHERE m.stage=?1 AND
                 (r.state='recalling' AND r.not_before>0 OR r.state='queued' AND ?3) LIMIT ?2",
            )?
            .query_map(params![stage.to_string(), LOOKED_AT, self.command.is_empty()], |r| {
                Ok((r.get::<_, String>(0)?, r.get::<_, Vec<u8>>(1)?))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let there = waiting.into_iter().filter(|(_, path)| {
            let path = RelPath::new(path).unwrap_or_default();
            matches!(self.rule.look(&self.root, &path), Ok(Readable::Online))
        });
        let there: Vec<String> = there.map(|(lfn, _)| lfn).collect();
        if there.is_empty() {
            return Ok(());
        }
        self.db.write(|t| {
            let mut update = t.prepare_cached("UPDATE recall SET state='online', reason=NULL WHERE lfn=?1")?;
            there.iter().try_for_each(|lfn| update.execute([lfn]).map(|_| ()))
        })
    }

    /// Nobody wants a stage any more: what only it wants and no process has is not recalled. Blocks.
    pub fn cancel(&self, stage: StageId) -> Result<(), StageError> {
        self.db.write(|t| {
            t.execute(
                "DELETE FROM recall WHERE state='queued' AND lfn IN (SELECT lfn FROM member WHERE stage=?1)
                 AND NOT EXISTS (SELECT 1 FROM member o WHERE o.lfn=recall.lfn AND o.stage<>?1)",
                [stage.to_string()],
            )?;
            t.execute("DELETE FROM member WHERE stage=?1", [stage.to_string()]).map(|_| ())
        })
    }

    /// Gives queued recalls to the hook, for ever. Ends with the runtime; at once where there is no hook and somebody else
    /// recalls.
    pub async fn run(self: Arc<Self>) {
        while !self.command.is_empty() {
            let _ = tokio::time::timeout(LOOK, self.ring.notified()).await;
            while let Some(oldest) = self.waiting().await {
                // Whoever asks for one file asks for the next as well.
                let fresh = oldest.is_some_and(|since| Time::now().0 < since.plus_secs(LINGER_MAX_SECS).0);
                if fresh && tokio::time::timeout(LINGER, self.ring.notified()).await.is_ok() {
                    continue;
                }
                let Ok(place) = self.hooks.clone().acquire_owned().await else { return };
                let stages = self.clone();
                let Ok(Ok(batch)) = tokio::task::spawn_blocking(move || stages.take()).await else { break };
                if batch.is_empty() {
                    break;
                }
                let stages = self.clone();
                tokio::task::spawn_blocking(move || {
                    stages.recall(&batch);
                    drop(place);
                });
            }
        }
    }

    /// `None`: nothing waits for the hook. `Some(None)`: a full batch. Otherwise since when the oldest waits.
    async fn waiting(self: &Arc<Self>) -> Option<Option<Time>> {
        let stages = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            stages.db.read(|c| {
                c.prepare_cached(
                    "SELECT count(*), min(since) FROM (SELECT since FROM recall WHERE state='queued' LIMIT ?1)",
                )?
                .query_row([HOOK_FILES], |r| Ok((r.get::<_, u32>(0)?, r.get::<_, Option<i64>>(1)?)))
            })
        });
        match looked.await {
            Ok(Ok((_, None))) => None,
            Ok(Ok((HOOK_FILES, _))) => Some(None),
            Ok(Ok((_, Some(oldest)))) => Some(Some(Time(oldest))),
            Ok(Err(error)) => {
                tracing::error!(%error, "recalls cannot be read");
                None
            }
            Err(_) => None,
        }
    }

    /// The next batch, marked as the hook's.
    pub(super) fn take(&self) -> Result<Vec<hook::Line>, StageError> {
        let now = Time::now();
        let taken = self.db.write(|t| {
            let batch = t
                .prepare_cached(
                    "SELECT stage, lfn, path FROM recall WHERE state='queued' AND not_before<=?1 ORDER BY since, lfn LIMIT ?2",
                )?
                .query_map(params![now.0, HOOK_FILES], |r| {
                    let path: Vec<u8> = r.get(2)?;
                    Ok(hook::Line { stage: r.get(0)?, lfn: r.get(1)?, path: String::from_utf8_lossy(&path).into_owned() })
                })?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            for line in &batch {
                t.prepare_cached("UPDATE recall SET state='recalling', tries=tries+1, not_before=0 WHERE lfn=?1")?.execute([&line.lfn])?;
            }
            Ok(batch)
        });
        taken.inspect_err(|error| tracing::error!(%error, "recalls cannot be read"))
    }

    fn recall(&self, batch: &[hook::Line]) {
        let root = self.root.path();
        let told = hook::run(&self.command, root, batch, |results| self.settle(results));
        let silent = match &told {
            Ok(()) => "the stage command ended well but said nothing of it, and it is still offline".to_owned(),
            Err(error) => {
                tracing::error!(%error, files = batch.len(), "the stage command failed");
                error.to_string()
            }
        };
        // Of those it did not name: the rule knows.
        let rest = batch.iter().map(|line| {
            let path = RelPath::new(line.path.as_bytes()).unwrap_or_default();
            let online = matches!(self.rule.look(&self.root, &path), Ok(Readable::Online));
            let outcome = if online { Outcome::Online } else { Outcome::Failed };
            hook::Result { lfn: line.lfn.clone(), outcome, reason: (!online).then(|| silent.clone()) }
        });
        self.settle(rest.collect());
    }

    /// Only what is still with the hook and was not settled.
    fn settle(&self, results: Vec<hook::Result>) {
        let now = Time::now();
        let done = self.db.write(|t| {
            for result in &results {
                let tries: Option<u32> = t
                    .prepare_cached("SELECT tries FROM recall WHERE lfn=?1 AND state='recalling' AND not_before=0")?
                    .query_row([&result.lfn], |r| r.get(0))
                    .optional()?;
                let Some(tries) = tries else { continue };
                let pause = (PAUSE_SECS << tries.saturating_sub(1).min(10)).min(PAUSE_MAX_SECS);
                let (state, not_before) = match result.outcome {
                    Outcome::Online => (RecallState::Online, 0),
                    Outcome::Accepted => (RecallState::Recalling, now.plus_secs(ACCEPTED_SECS).0),
                    Outcome::Failed => (RecallState::Failed, now.plus_secs(pause).0),
                };
                t.prepare_cached("UPDATE recall SET state=?2, not_before=?3, reason=?4 WHERE lfn=?1")?
                    .execute(params![result.lfn, state.word(), not_before, result.reason])?;
            }
            Ok(())
        });
        if let Err(error) = done {
            tracing::error!(%error, "results of the stage command cannot be kept");
        }
    }
}

/// A recall as it is known.
struct Row {
    state: RecallState,
    stage: String,
    since: i64,
    /// It is offline (again), so the hook has to run again; for a failed one not before its pause is over, for one that was
    /// accepted when it has not come for a day.
    again: bool,
}

fn row(c: &Connection, lfn: &Lfn, now: Time) -> rusqlite::Result<Option<Row>> {
    c.prepare_cached("SELECT state, stage, since, not_before FROM recall WHERE lfn=?1")?
        .query_row([lfn.as_str()], |r| {
            let state = RecallState::from_word(&r.get::<_, String>(0)?);
            let not_before = r.get::<_, i64>(3)?;
            let rested = not_before <= now.0;
            let again = match state {
                RecallState::Online => true,
                RecallState::Failed => rested,
                RecallState::Recalling => rested && not_before > 0,
                RecallState::Queued => false,
            };
            Ok(Row { state, stage: r.get(1)?, since: r.get(2)?, again })
        })
        .optional()
}

/// What is to be answered when all of them are on their way in one stage.
fn told(c: &Connection, files: &[(Lfn, RelPath)], now: Time) -> rusqlite::Result<Option<Asked>> {
    let (mut told, mut stage, mut oldest) = (Vec::with_capacity(files.len()), None, now.0);
    for (lfn, _) in files {
        let Some(known) = row(c, lfn, now)?.filter(|known| !known.again) else { return Ok(None) };
        if stage.get_or_insert_with(|| known.stage.clone()) != &known.stage {
            return Ok(None);
        }
        oldest = oldest.min(known.since);
        told.push((lfn.clone(), known.state));
    }
    let stage = stage.and_then(|stage| stage.parse().ok());
    let retry_after_secs = retry_after(c, oldest, now)?;
    Ok(stage.map(|stage| Asked { stage, retry_after_secs, files: told }))
}

/// Puts down what is wanted: new recalls, those that are needed again, and a stage over all of them.
fn begin(t: &Transaction<'_>, files: &[(Lfn, RelPath)], now: Time) -> rusqlite::Result<Asked> {
    let new = StageId::new();
    let mut told = Vec::with_capacity(files.len());
    let (mut stages, mut oldest) = (Vec::new(), now.0);
    for (lfn, path) in files {
        let state = match row(t, lfn, now)? {
            Some(known) => {
                stages.push(known.stage);
                if known.again {
                    t.prepare_cached("UPDATE recall SET state='queued', since=?2, reason=NULL WHERE lfn=?1")?
                        .execute(params![lfn.as_str(), now.0])?;
                } else {
                    oldest = oldest.min(known.since);
                }
                if known.again { RecallState::Queued } else { known.state }
            }
            None => {
                stages.push(new.to_string());
                t.prepare_cached(
                    "INSERT INTO recall(lfn, path, state, stage, since) VALUES (?1, ?2, 'queued', ?3, ?4)",
                )?
                .execute(params![lfn.as_str(), path.as_bytes(), new.to_string(), now.0])?;
                RecallState::Queued
            }
        };
        told.push((lfn.clone(), state));
    }
    // All of one stage already: that one.
    let same = stages.first().filter(|first| stages.iter().all(|s| s == *first)).and_then(|s| s.parse().ok());
    let stage = same.unwrap_or(new);
    for (lfn, _) in files {
        t.prepare_cached("INSERT OR IGNORE INTO member(stage, lfn) VALUES (?1, ?2)")?
            .execute(params![stage.to_string(), lfn.as_str()])?;
    }
    let retry_after_secs = retry_after(t, oldest, now)?;
    Ok(Asked { stage, retry_after_secs, files: told })
}

/// The longer it takes, and the more there is, the less often it is worth asking.
fn retry_after(c: &Connection, oldest: i64, now: Time) -> rusqlite::Result<u64> {
    let waiting = c
        .prepare_cached("SELECT count(*) FROM recall WHERE state IN ('queued','recalling')")?
        .query_row([], |r| r.get::<_, i64>(0))?;
    let age = u64::try_from(now.0.saturating_sub(oldest)).unwrap_or(0) / 1000;
    Ok((age / 4).max(waiting.unsigned_abs() / PER_SECOND).clamp(1, RETRY_AFTER_MAX_SECS))
}
