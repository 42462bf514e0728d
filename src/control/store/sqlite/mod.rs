//! The store in one SQLite file, nothing to install. Every commit is on disk before it is answered (WAL, synchronous
//! FULL). Several mains of one host may have it open: SQLite's own lock makes their transactions follow each other, and
//! nothing is kept outside it. Not over a network file system: WAL needs the same memory.

mod agent;
mod catalog;
mod claim;
mod cx;
mod event;
mod item;
mod page;
mod report;
mod request;
mod schema;
#[cfg(test)]
mod tests;
mod threads;
mod value;

use super::{
    Actor, Claimable, Clock, Created, Idempotency, Leases, NewItem, Resolution, Store, StoreError, Stored, Swept,
};
use crate::control::bridge::Boxed;
use crate::control::model::agent::{AgentRegistration, AgentView, OpenSession, Renewal, Renewed, Session};
use crate::control::model::catalog::{FileFilter, FileView, GroupView, Record};
use crate::control::model::event::{Event, EventFilter};
use crate::control::model::item::{Assignment, AttemptView, Claim, ItemReport, ItemView, ReportOutcome};
use crate::control::model::name::{AgentName, DatasetName, ItemId, Lfn, RequestId, SessionKey};
use crate::control::model::page::{Page, PageQuery};
use crate::control::model::request::{ApprovalRule, Decision, RequestFilter, RequestPatch, RequestSpec, RequestView};
use crate::control::model::states::ItemState;
use crate::control::model::time::Time;
use cx::{Cx, R, unavailable};
use rusqlite::{Connection, OpenFlags};
use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use threads::{Job, Threads};
use tokio::sync::{mpsc, oneshot};

/// The file's name in its directory.
pub const FILE: &str = "main.db";
/// Another process may hold the database for so long before a call fails.
const PATIENCE: Duration = Duration::from_secs(10);
/// KiB of pages that the writer keeps; a reader keeps an eighth.
const CACHE_KIB: i64 = 32 << 10;
/// Bytes to which the log is cut again after a large transaction.
const LOG_KEPT: i64 = 64 << 20;
/// Statements kept ready.
const STATEMENTS: usize = 128;
/// A larger database is not read through at every start, which would take longer than 100 ms: its pages are looked at when
/// they are used.
const CHECKED: u64 = 4 << 20;
/// How long [`Store::wait_event`] waits: what only time makes ready (a later try, a lease that ends) is seen then. Each look
/// wakes three threads, which is most of what an idle main costs.
const WAIT: Duration = Duration::from_secs(5);

/// See the module.
pub struct SqliteStore {
    threads: Threads,
}

impl SqliteStore {
    /// Opens, or makes, the database in `dir` (made 0700 when it is not there; the file is 0600). One that is damaged,
    /// foreign or of a newer release is [`StoreError::Unavailable`] and is left as it is.
    pub fn open(dir: &Path, clock: Clock) -> Result<Arc<Self>, StoreError> {
        Self::open_with(dir, clock, Leases::default())
    }

    /// As [`SqliteStore::open`], with other times.
    pub fn open_with(dir: &Path, clock: Clock, leases: Leases) -> Result<Arc<Self>, StoreError> {
        let path = dir.join(FILE);
        let named = |error: StoreError| match error {
            StoreError::Unavailable(why) => StoreError::Unavailable(format!("{}: {why}", path.display())),
            other => other,
        };
        let io = |error: std::io::Error| named(StoreError::Unavailable(error.to_string()));
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
        // SQLite gives its log the mode that the file has. One that is there is not opened: closing it again would let go
        // of the locks that another store of this process has on it.
        match OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(io(error)),
            _ => {}
        }
        let writer = Self::prepare(&path).map_err(named)?;
        let readers = (0..Threads::READERS).map(|_| reader(&path)).collect::<R<_>>().map_err(named)?;
        let threads = Threads::start(writer, readers, &clock, leases).map_err(named)?;
        Ok(Arc::new(Self { threads }))
    }

    fn prepare(path: &Path) -> R<Connection> {
        let mut writer = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, CACHE_KIB)?;
        let length = std::fs::metadata(path).map_or(0, |found| found.len());
        if (1..=CHECKED).contains(&length) {
            let found: String = writer.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            if found != "ok" {
                let why = format!("the file is damaged, restore it from a backup: {found}");
                return Err(StoreError::Unavailable(why));
            }
        }
        writer.pragma_update(None, "journal_mode", "WAL").map_err(unavailable)?;
        writer.pragma_update(None, "synchronous", "FULL").map_err(unavailable)?;
        writer.pragma_update(None, "foreign_keys", "ON").map_err(unavailable)?;
        writer.pragma_update(None, "journal_size_limit", LOG_KEPT).map_err(unavailable)?;
        schema::migrate(&mut writer, &schema::migrations())?;
        Ok(writer)
    }

    /// One transaction. A caller that does not wait for the answer undoes nothing.
    fn write<T: Send + 'static>(&self, work: impl FnOnce(&Cx<'_>) -> R<T> + Send + 'static) -> Stored<'_, T> {
        ask(&self.threads.write, move |cx| {
            let value = work(cx)?;
            cx.flush()?;
            Ok(value)
        })
    }

    /// One look at one moment's state.
    fn read<T: Send + 'static>(&self, work: impl FnOnce(&Cx<'_>) -> R<T> + Send + 'static) -> Stored<'_, T> {
        ask(&self.threads.read, work)
    }
}

fn connect(path: &Path, mode: OpenFlags, cache: i64) -> R<Connection> {
    let connection = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "cache_size", -cache)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

fn reader(path: &Path) -> R<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, CACHE_KIB / 8)?;
    connection.pragma_update(None, "query_only", "ON")?;
    Ok(connection)
}

fn ask<T: Send + 'static>(
    to: &Option<mpsc::Sender<Job>>,
    work: impl FnOnce(&Cx<'_>) -> R<T> + Send + 'static,
) -> Stored<'_, T> {
    let (tell, told) = oneshot::channel::<R<T>>();
    let job: Job = Box::new(move |cx| {
        let result = cx.and_then(work);
        let keep = result.is_ok();
        let finish = move |committed: R<()>| {
            // Whoever asked may have gone; what was done stays done.
            let _ = tell.send(result.and_then(|value| committed.map(|()| value)));
        };
        (keep, Box::new(finish))
    });
    let gone = || StoreError::Unavailable("its thread has ended: start main again".into());
    Box::pin(async move {
        to.as_ref().ok_or_else(gone)?.send(job).await.map_err(|_| gone())?;
        told.await.map_err(|_| gone())?
    })
}

impl Store for SqliteStore {
    fn now(&self) -> Stored<'_, Time> {
        // A look at the file, so that whoever asks learns whether there is one.
        self.read(|cx| event::last(cx).map(|_| cx.now))
    }

    fn create_request(&self, actor: Actor, spec: RequestSpec, key: Option<Idempotency>) -> Stored<'_, Created> {
        self.write(move |cx| request::create(cx, actor, spec, key))
    }

    fn replay(&self, key: Idempotency) -> Stored<'_, Option<RequestView>> {
        self.read(move |cx| request::replay(cx, &key))
    }

    fn add_items(&self, request: RequestId, items: Vec<NewItem>) -> Stored<'_, ()> {
        self.write(move |cx| item::add(cx, request, &items))
    }

    fn restart_resolving(&self, request: RequestId) -> Stored<'_, bool> {
        self.write(move |cx| request::restart_resolving(cx, request))
    }

    fn resolved(&self, request: RequestId, resolution: Resolution) -> Stored<'_, RequestView> {
        self.write(move |cx| request::resolved(cx, request, resolution))
    }

    fn resolving(&self) -> Stored<'_, Vec<RequestId>> {
        self.read(request::resolving)
    }

    fn request(&self, id: RequestId) -> Stored<'_, RequestView> {
        self.read(move |cx| request::by_id(cx, id).map(|request| request.view))
    }

    fn requests(&self, filter: RequestFilter, query: PageQuery) -> Stored<'_, Page<RequestView>> {
        self.read(move |cx| page::requests(cx, filter, &query))
    }

    fn decide(&self, id: RequestId, actor: Actor, version: u64, decision: Decision) -> Stored<'_, RequestView> {
        self.write(move |cx| request::decide(cx, id, actor, version, decision))
    }

    fn patch_request(&self, id: RequestId, version: u64, patch: RequestPatch) -> Stored<'_, RequestView> {
        self.write(move |cx| request::patch(cx, id, version, patch))
    }

    fn pause(&self, id: RequestId, actor: Actor, paused: bool) -> Stored<'_, RequestView> {
        self.write(move |cx| request::pause(cx, id, actor, paused))
    }

    fn cancel(&self, id: RequestId, actor: Actor) -> Stored<'_, RequestView> {
        self.write(move |cx| request::cancel(cx, id, actor))
    }

    fn retry_failed(&self, id: RequestId, actor: Actor) -> Stored<'_, RequestView> {
        self.write(move |cx| request::retry_failed(cx, id, actor))
    }

    fn delete_request(&self, id: RequestId, actor: Actor) -> Stored<'_, ()> {
        self.write(move |cx| request::delete(cx, id, actor))
    }

    fn items(&self, request: RequestId, state: Option<ItemState>, query: PageQuery) -> Stored<'_, Page<ItemView>> {
        self.read(move |cx| item::list(cx, request, state, &query))
    }

    fn item(&self, id: ItemId) -> Stored<'_, ItemView> {
        self.read(move |cx| item::one(cx, id))
    }

    fn attempts(&self, id: ItemId) -> Stored<'_, Vec<AttemptView>> {
        self.read(move |cx| item::attempts(cx, id))
    }

    fn register(&self, registration: AgentRegistration) -> Stored<'_, AgentView> {
        self.write(move |cx| agent::register(cx, registration))
    }

    fn agents(&self) -> Stored<'_, Vec<AgentView>> {
        self.read(|cx| Ok(agent::all(cx)?.into_iter().map(|agent| agent.view).collect()))
    }

    fn agent(&self, name: AgentName) -> Stored<'_, AgentView> {
        self.read(move |cx| agent::by_name(cx, &name).map(|agent| agent.view))
    }

    fn drain(&self, name: AgentName, draining: bool) -> Stored<'_, AgentView> {
        self.write(move |cx| agent::drain(cx, &name, draining))
    }

    fn remove_agent(&self, name: AgentName) -> Stored<'_, ()> {
        self.write(move |cx| agent::remove(cx, &name))
    }

    fn open_session(&self, name: AgentName, open: OpenSession) -> Stored<'_, Session> {
        self.write(move |cx| agent::open_session(cx, &name, open))
    }

    fn renew(&self, name: AgentName, renewal: Renewal) -> Stored<'_, Renewed> {
        self.write(move |cx| agent::renew(cx, &name, renewal))
    }

    fn claimable(&self, name: AgentName, claim: Claim) -> Stored<'_, Vec<Claimable>> {
        self.read(move |cx| claim::claimable(cx, &name, &claim))
    }

    fn claim(
        &self,
        name: AgentName,
        claim: Claim,
        chosen: Vec<(ItemId, u64, AgentName)>,
    ) -> Stored<'_, Vec<Assignment>> {
        self.write(move |cx| claim::claim(cx, &name, &claim, chosen))
    }

    fn assignments(&self, name: AgentName, session: SessionKey) -> Stored<'_, Vec<Assignment>> {
        self.read(move |cx| claim::assignments(cx, &name, session))
    }

    fn report(&self, name: AgentName, session: SessionKey, reports: Vec<ItemReport>) -> Stored<'_, Vec<ReportOutcome>> {
        self.write(move |cx| report::report(cx, &name, session, &reports))
    }

    fn sweep(&self, unheard: Vec<SessionKey>) -> Stored<'_, Swept> {
        self.write(move |cx| {
            let mut swept = Swept::default();
            agent::end_leases(cx, &unheard, &mut swept)?;
            swept.requests = request::expire(cx)?;
            report::end_holds(cx, &mut swept)?;
            request::drain(cx, &mut swept)?;
            event::drop_old(cx, &mut swept)?;
            Ok(swept)
        })
    }

    fn overdue(&self) -> Stored<'_, Vec<SessionKey>> {
        self.read(agent::overdue)
    }

    fn add_records(&self, records: Vec<Record>) -> Stored<'_, ()> {
        self.write(move |cx| catalog::add(cx, &records))
    }

    fn remove_records(&self, agent: AgentName, lfns: Vec<Lfn>) -> Stored<'_, u64> {
        self.write(move |cx| catalog::remove(cx, &agent, &lfns))
    }

    fn datasets(&self, prefix: Option<DatasetName>, query: PageQuery) -> Stored<'_, Page<GroupView>> {
        self.read(move |cx| catalog::datasets(cx, prefix, &query))
    }

    fn blocks(&self, dataset: DatasetName, query: PageQuery) -> Stored<'_, Page<GroupView>> {
        self.read(move |cx| catalog::blocks(cx, &dataset, &query))
    }

    fn files(&self, filter: FileFilter, query: PageQuery) -> Stored<'_, Page<FileView>> {
        self.read(move |cx| catalog::files(cx, &filter, &query))
    }

    fn file(&self, lfn: Lfn) -> Stored<'_, FileView> {
        self.read(move |cx| catalog::file(cx, &lfn))
    }

    fn events(&self, after: i64, filter: EventFilter, limit: usize) -> Stored<'_, Vec<Event>> {
        self.read(move |cx| event::events(cx, after, &filter, limit))
    }

    fn last_event(&self) -> Stored<'_, i64> {
        // Without a look at the file: this process is the only one that writes.
        let last = *self.threads.events.borrow();
        Box::pin(std::future::ready(Ok(last)))
    }

    fn wait_event(&self, after: i64) -> Boxed<'_, ()> {
        let mut events = self.threads.events.clone();
        Box::pin(async move {
            let _ = tokio::time::timeout(WAIT, events.wait_for(|last| *last > after)).await;
        })
    }

    fn approval_rules(&self) -> Stored<'_, Vec<ApprovalRule>> {
        self.read(event::rules)
    }

    fn set_approval_rules(&self, actor: Actor, rules: Vec<ApprovalRule>) -> Stored<'_, ()> {
        self.write(move |cx| event::set_rules(cx, &actor, &rules))
    }
}
