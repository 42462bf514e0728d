//! The threads that use the database. One writes: it takes what waits, does each call in a savepoint of its own within one
//! transaction, commits, and only then answers, so that many small calls share one sync of the disk. Two read.

use super::super::{Clock, Leases, StoreError};
use super::cx::{Cx, R, unavailable};
use super::schema;
use rusqlite::Connection;
use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::{mpsc, watch};

/// Calls that wait for the writer, or for a reader; whoever comes later waits before the queue.
const QUEUE: usize = 256;
/// Calls that share a transaction.
const GROUP: usize = 64;
/// Readers.
const READERS: usize = 2;

/// Tells the caller, once it is known whether the transaction was committed.
type Finish = Box<dyn FnOnce(R<()>) + Send>;
/// Whether to keep what was done, and whom to tell.
type Done = (bool, Finish);
/// A call. Without a transaction: why there is none.
pub(super) type Job = Box<dyn FnOnce(R<&Cx<'_>>) -> Done + Send>;

/// The sending ends, and the threads to wait for.
pub(super) struct Threads {
    pub(super) write: Option<mpsc::Sender<Job>>,
    pub(super) read: Option<mpsc::Sender<Job>>,
    pub(super) events: watch::Receiver<i64>,
    writer: Option<JoinHandle<()>>,
    readers: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(super) fn start(writer: Connection, readers: Vec<Connection>, clock: &Clock, leases: Leases) -> R<Self> {
        // Not the largest id that is there: old events are dropped.
        let last = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'outbox'";
        let last = Cell::new(writer.query_row(last, [], |row| row.get(0))?);
        let (tell, events) = watch::channel(last.get());
        let (write, mut jobs) = mpsc::channel::<Job>(QUEUE);
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.into()).spawn(body);
            thread.map_err(|e| StoreError::Unavailable(format!("no thread could be started: {e}")))
        };
        let at = clock.clone();
        let writing = spawn(
            "store-writer",
            Box::new(move || {
                while let Some(first) = jobs.blocking_recv() {
                    let more = std::iter::from_fn(|| jobs.try_recv().ok()).take(GROUP - 1);
                    let group: Vec<Job> = std::iter::once(first).chain(more).collect();
                    let finishes = write_group(&writer, group, &at, leases, &last);
                    // Before the answers: who has one reads its own event as the last.
                    tell.send_if_modified(|seen| std::mem::replace(seen, last.get()) != last.get());
                    finishes.into_iter().for_each(|finish| finish());
                }
            }),
        )?;
        let (read, jobs) = mpsc::channel::<Job>(QUEUE);
        let jobs = Arc::new(Mutex::new(jobs));
        let mut reading = Vec::new();
        for reader in readers {
            let (jobs, at) = (jobs.clone(), clock.clone());
            reading.push(spawn(
                "store-reader",
                Box::new(move || {
                    // The guard is held while waiting and let go before working.
                    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
                    while let Some(job) = next() {
                        read_one(&reader, job, &at, leases);
                    }
                }),
            )?);
        }
        Ok(Self { write: Some(write), read: Some(read), events, writer: Some(writing), readers: reading })
    }

    pub(super) const READERS: usize = READERS;
}

impl Drop for Threads {
    fn drop(&mut self) {
        // The writer's connection is the last: it alone then empties the log into the file and removes it.
        self.read = None;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        self.write = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// A copy for each of those that share a failure.
fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(why) => StoreError::Unavailable(why.clone()),
        other => StoreError::Unavailable(other.to_string()),
    }
}

fn begin(connection: &Connection) -> R<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    match schema::version(connection)? == schema::NEWEST {
        true => Ok(()),
        false => Err(StoreError::Unavailable("a newer release has changed the database: stop this main".into())),
    }
}

/// The answers, to be given by the caller.
fn write_group(
    connection: &Connection,
    group: Vec<Job>,
    clock: &Clock,
    leases: Leases,
    last: &Cell<i64>,
) -> Vec<impl FnOnce()> {
    let before = last.get();
    let mut outcome = begin(connection);
    let mut finishes = Vec::with_capacity(group.len());
    for job in group {
        if let Err(error) = &outcome {
            finishes.push(job(Err(again(error))).1);
            continue;
        }
        let cx = Cx::new(connection, clock.now(), leases, last);
        if let Err(error) = connection.execute_batch("SAVEPOINT call") {
            outcome = Err(unavailable(error));
            finishes.push(job(Err(again(outcome.as_ref().unwrap_err()))).1);
            continue;
        }
        let event = last.get();
        let (keep, finish) = job(Ok(&cx));
        finishes.push(finish);
        let end = if keep { "RELEASE call" } else { "ROLLBACK TO call; RELEASE call" };
        if !keep {
            last.set(event);
        }
        // A full disk or a failed read takes the whole transaction with it: then nobody is told that it was done.
        if connection.is_autocommit() {
            outcome = Err(StoreError::Unavailable("the transaction was undone: is the disk full?".into()));
        } else if let Err(error) = connection.execute_batch(end) {
            outcome = Err(unavailable(error));
        }
    }
    if outcome.is_ok() {
        outcome = connection.execute_batch("COMMIT").map_err(unavailable);
    }
    if outcome.is_err() {
        last.set(before);
        if !connection.is_autocommit() {
            let _ = connection.execute_batch("ROLLBACK");
        }
    }
    let answer = move |finish: Finish| {
        let told = outcome.as_ref().copied().map_err(again);
        move || finish(told)
    };
    finishes.into_iter().map(answer).collect()
}

fn read_one(connection: &Connection, job: Job, clock: &Clock, leases: Leases) {
    let unused = Cell::new(0);
    let finish = match connection.execute_batch("BEGIN") {
        Ok(()) => {
            let finish = job(Ok(&Cx::new(connection, clock.now(), leases, &unused))).1;
            let _ = connection.execute_batch("ROLLBACK");
            finish
        }
        Err(error) => job(Err(unavailable(error))).1,
    };
    finish(Ok(()));
}
