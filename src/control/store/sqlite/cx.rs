//! One transaction as the statements see it: the moment it began, the counters it changes, the events it writes.

use super::super::{Leases, StoreError};
use super::request;
use super::value::Json;
use crate::control::model::states::ItemState;
use crate::control::model::time::Time;
use rusqlite::{CachedStatement, Connection, ErrorCode, OptionalExtension, Params, Row, params};
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

pub(super) type R<T> = Result<T, StoreError>;

/// The database's own failure. Which one is said as the operator needs it.
pub(super) fn unavailable(error: rusqlite::Error) -> StoreError {
    let what = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "another process holds it: ",
        Some(ErrorCode::DiskFull) => "its disk is full: ",
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => "the file is damaged, restore it from a backup: ",
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => "it cannot be written: ",
        _ => "",
    };
    StoreError::Unavailable(format!("{what}{error}"))
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        unavailable(error)
    }
}

/// Changes of one request's counters, written once at the transaction's end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Delta {
    files: i64,
    bytes: i64,
    queued: i64,
    running: i64,
    holding: i64,
    done: i64,
    done_bytes: i64,
    skipped: i64,
    failed: i64,
    cancelled: i64,
}

/// See the module.
pub(super) struct Cx<'c> {
    connection: &'c Connection,
    pub(super) now: Time,
    pub(super) leases: Leases,
    tally: RefCell<BTreeMap<i64, Delta>>,
    last_event: &'c Cell<i64>,
}

impl<'c> Cx<'c> {
    pub(super) fn new(connection: &'c Connection, now: Time, leases: Leases, last_event: &'c Cell<i64>) -> Self {
        Self { connection, now, leases, tally: RefCell::default(), last_event }
    }

    fn prepare(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        #[cfg(test)]
        super::tests::plans::saw(sql);
        self.connection.prepare_cached(sql)
    }

    /// Rows changed.
    pub(super) fn run(&self, sql: &str, params: impl Params) -> R<usize> {
        Ok(self.prepare(sql)?.execute(params)?)
    }

    /// The only row, if there is one.
    pub(super) fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> R<Option<T>> {
        Ok(self.prepare(sql)?.query_row(params, read).optional()?)
    }

    /// The only row of a statement that always has one.
    pub(super) fn sole<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> R<T> {
        Ok(self.prepare(sql)?.query_row(params, read)?)
    }

    /// All rows: the statement bounds how many.
    pub(super) fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> R<Vec<T>> {
        Ok(self.prepare(sql)?.query_map(params, read)?.collect::<Result<_, _>>()?)
    }

    /// What happened, with its cause or not at all.
    pub(super) fn event(&self, kind: &str, subject: &str, data: Value) -> R<()> {
        let id = self.sole(
            "INSERT INTO outbox (at, kind, subject, data) VALUES (?1, ?2, ?3, ?4) RETURNING id",
            params![self.now, kind, subject, Json(data)],
            |row| row.get(0),
        )?;
        self.last_event.set(id);
        Ok(())
    }

    /// Counts `items` with `bytes` in all into or (negative) out of `state`.
    pub(super) fn count(&self, request: i64, state: ItemState, items: i64, bytes: i64) {
        let mut tally = self.tally.borrow_mut();
        let delta = tally.entry(request).or_default();
        delta.files += items;
        delta.bytes += bytes;
        *match state {
            ItemState::Queued => &mut delta.queued,
            ItemState::Hold => &mut delta.holding,
            ItemState::Done => &mut delta.done,
            ItemState::Skipped => &mut delta.skipped,
            ItemState::Failed => &mut delta.failed,
            ItemState::Cancelled => &mut delta.cancelled,
            _ => &mut delta.running,
        } += items;
        if state == ItemState::Done {
            delta.done_bytes += bytes;
        }
    }

    /// Writes the counters, and ends requests whose last item has ended. The transaction's runner calls it; whoever looks at
    /// a request before that calls it first.
    pub(super) fn flush(&self) -> R<()> {
        let tally = std::mem::take(&mut *self.tally.borrow_mut());
        for (n, d) in tally.into_iter().filter(|(_, d)| *d != Delta::default()) {
            let ended = self.one(
                "UPDATE request SET files = files + ?2, bytes = bytes + ?3, queued = queued + ?4, running = running + ?5,
                    holding = holding + ?6, done = done + ?7, done_bytes = done_bytes + ?8, skipped = skipped + ?9,
                    failed = failed + ?10, cancelled = cancelled + ?11 WHERE n = ?1
                 RETURNING state = 'active' AND queued + running + holding = 0",
                params![
                    n, d.files, d.bytes, d.queued, d.running, d.holding, d.done, d.done_bytes, d.skipped, d.failed,
                    d.cancelled
                ],
                |row| row.get::<_, bool>(0),
            )?;
            if ended == Some(true) {
                request::end(self, n)?;
            }
        }
        Ok(())
    }
}
