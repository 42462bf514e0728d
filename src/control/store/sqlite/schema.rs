//! The tables, as a list of migrations. Types and statements are those that PostgreSQL has as well. What changes often is
//! narrow: an item's names stand beside it in `item_file`, its history in `attempt`. `item_path` is the lock on a path:
//! a row for every live item, unique, so that two agents over one storage cannot both write one file.

use super::super::StoreError;
use super::cx::unavailable;
use crate::control::model::states::{ItemState, RequestState};
use rusqlite::{Connection, TransactionBehavior};

/// `LHST`: a file with another id is not ours.
const APPLICATION_ID: i64 = 0x4c48_5354;

/// `'a','b'`, for a CHECK.
fn quoted<T: std::fmt::Display>(states: impl Iterator<Item = T>) -> String {
    states.map(|state| format!("'{state}'")).collect::<Vec<_>>().join(",")
}

/// Every step there ever was, the oldest first; the place in the list is the version it leads to. A step that has been
/// released is never changed.
pub(super) fn migrations() -> Vec<String> {
    let request_states = quoted(RequestState::ALL.iter());
    let item_states = quoted(ItemState::ALL.iter());
    let live = quoted(ItemState::ALL.iter().filter(|state| state.is_live()));
    let open = quoted(RequestState::ALL.iter().filter(|state| !state.has_ended()));
    vec![format!(
        "CREATE TABLE agent (
            name TEXT PRIMARY KEY, id TEXT NOT NULL, registration TEXT NOT NULL, storage TEXT NOT NULL,
            draining BIGINT NOT NULL DEFAULT 0, status TEXT NOT NULL,
            session BLOB, session_epoch BIGINT NOT NULL DEFAULT 0, session_over BIGINT NOT NULL DEFAULT 0,
            claim_seq BIGINT NOT NULL DEFAULT 0, seen BIGINT, lease_until BIGINT);
        CREATE INDEX agent_storage ON agent (storage);
        CREATE TABLE storage_pause (storage TEXT PRIMARY KEY, until BIGINT NOT NULL, reason TEXT NOT NULL);

        CREATE TABLE request (
            n INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, version BIGINT NOT NULL, owner TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ({request_states})),
            paused BIGINT NOT NULL DEFAULT 0, cancelling BIGINT NOT NULL DEFAULT 0, expiring BIGINT NOT NULL DEFAULT 0,
            spec TEXT NOT NULL, priority BIGINT NOT NULL, deadline BIGINT, not_before BIGINT NOT NULL, dataset TEXT,
            chain BLOB NOT NULL, digest TEXT, decisions TEXT NOT NULL, reason TEXT,
            created BIGINT NOT NULL, changed BIGINT NOT NULL, ended BIGINT,
            files BIGINT NOT NULL DEFAULT 0, bytes BIGINT NOT NULL DEFAULT 0,
            queued BIGINT NOT NULL DEFAULT 0 CHECK (queued >= 0), running BIGINT NOT NULL DEFAULT 0 CHECK (running >= 0),
            holding BIGINT NOT NULL DEFAULT 0 CHECK (holding >= 0), done BIGINT NOT NULL DEFAULT 0 CHECK (done >= 0),
            done_bytes BIGINT NOT NULL DEFAULT 0, skipped BIGINT NOT NULL DEFAULT 0, failed BIGINT NOT NULL DEFAULT 0
            CHECK (failed >= 0), cancelled BIGINT NOT NULL DEFAULT 0,
            CHECK ((ended IS NULL) = (state IN ({open}))));
        CREATE INDEX request_state ON request (state, n);
        CREATE INDEX request_owner ON request (owner, n);
        CREATE INDEX request_dataset ON request (dataset, n) WHERE dataset IS NOT NULL;
        CREATE INDEX request_deadline ON request (deadline) WHERE deadline IS NOT NULL AND ended IS NULL;
        CREATE INDEX request_stopping ON request (n) WHERE cancelling + expiring > 0;
        CREATE INDEX request_undrained ON request (n) WHERE queued > 0 AND ended IS NOT NULL;
        CREATE TABLE request_deleted (request BIGINT PRIMARY KEY);
        CREATE TABLE request_destination (
            agent TEXT NOT NULL, request BIGINT NOT NULL REFERENCES request (n), PRIMARY KEY (agent, request));
        CREATE INDEX request_destination_of ON request_destination (request);
        CREATE TABLE request_label (
            label TEXT NOT NULL, request BIGINT NOT NULL REFERENCES request (n), PRIMARY KEY (label, request));
        CREATE INDEX request_label_of ON request_label (request);
        CREATE TABLE idempotency (
            owner TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL, request BLOB NOT NULL, expires BIGINT NOT NULL,
            PRIMARY KEY (owner, key));
        CREATE INDEX idempotency_expires ON idempotency (expires);

        CREATE TABLE item (
            n INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, request BIGINT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ({item_states})), epoch BIGINT NOT NULL DEFAULT 0,
            destination TEXT NOT NULL, storage TEXT NOT NULL, bytes BIGINT, tries BIGINT NOT NULL DEFAULT 0,
            not_before BIGINT NOT NULL DEFAULT 0, hold_since BIGINT, hold_until BIGINT,
            progress BIGINT NOT NULL DEFAULT 0, reason TEXT, changed BIGINT NOT NULL,
            session BLOB, claim_seq BIGINT NOT NULL DEFAULT 0, holder TEXT, source TEXT, taker TEXT,
            retry_epoch BIGINT NOT NULL DEFAULT 0,
            CHECK ((session IS NOT NULL) = (state IN ({live}))));
        CREATE INDEX item_list ON item (request, n);
        CREATE INDEX item_state ON item (request, state, n);
        CREATE INDEX item_queue ON item (storage, request, not_before, n) WHERE state = 'queued';
        CREATE INDEX item_holder ON item (holder, claim_seq) WHERE session IS NOT NULL;
        CREATE INDEX item_source ON item (source) WHERE session IS NOT NULL;
        CREATE INDEX item_taker ON item (taker) WHERE session IS NOT NULL;
        CREATE INDEX item_hold ON item (hold_until) WHERE hold_until IS NOT NULL;
        CREATE TABLE item_file (
            n INTEGER PRIMARY KEY, request BIGINT NOT NULL, destination TEXT NOT NULL, path TEXT NOT NULL, lfn TEXT,
            source_path TEXT, digest TEXT);
        CREATE UNIQUE INDEX item_file_once ON item_file (request, path, destination);
        CREATE TABLE item_path (
            storage TEXT NOT NULL, path TEXT NOT NULL, item BIGINT NOT NULL, PRIMARY KEY (storage, path));
        CREATE TABLE attempt (
            item BIGINT NOT NULL, epoch BIGINT NOT NULL, source TEXT NOT NULL, agent TEXT NOT NULL,
            started BIGINT NOT NULL, ended BIGINT, outcome TEXT, reported TEXT, class TEXT, reason TEXT,
            bytes BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (item, epoch));

        CREATE TABLE dataset (
            n INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, blocks BIGINT NOT NULL DEFAULT 0,
            files BIGINT NOT NULL DEFAULT 0, bytes BIGINT NOT NULL DEFAULT 0);
        CREATE TABLE block (
            n INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, dataset BIGINT NOT NULL REFERENCES dataset (n),
            files BIGINT NOT NULL DEFAULT 0, bytes BIGINT NOT NULL DEFAULT 0);
        CREATE INDEX block_of ON block (dataset, name);
        CREATE TABLE file (
            n INTEGER PRIMARY KEY, lfn TEXT NOT NULL UNIQUE, dataset BIGINT REFERENCES dataset (n),
            block BIGINT REFERENCES block (n), bytes BIGINT NOT NULL, digest TEXT);
        CREATE INDEX file_dataset ON file (dataset, lfn) WHERE dataset IS NOT NULL;
        CREATE INDEX file_block ON file (block, lfn) WHERE block IS NOT NULL;
        CREATE TABLE replica (
            file BIGINT NOT NULL REFERENCES file (n), agent TEXT NOT NULL, path TEXT, locality TEXT NOT NULL,
            verified BIGINT, PRIMARY KEY (file, agent));

        CREATE TABLE outbox (
            id INTEGER PRIMARY KEY AUTOINCREMENT, at BIGINT NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL,
            data TEXT NOT NULL);
        CREATE INDEX outbox_subject ON outbox (subject, id);
        CREATE TABLE approval_rule (n BIGINT PRIMARY KEY, rule TEXT NOT NULL);"
    )]
}

/// The version this program writes: the number of [`migrations`].
pub(super) const NEWEST: i64 = 1;

fn pragma(connection: &Connection, name: &str) -> Result<i64, StoreError> {
    connection.pragma_query_value(None, name, |row| row.get(0)).map_err(unavailable)
}

/// The version of what lies there.
pub(super) fn version(connection: &Connection) -> Result<i64, StoreError> {
    pragma(connection, "user_version")
}

/// Brings an empty or older database to the version after all `steps`, in one transaction; refuses what is foreign or newer.
pub(super) fn migrate(connection: &mut Connection, steps: &[String]) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(unavailable)?;
    let to = i64::try_from(steps.len()).unwrap_or(i64::MAX);
    let (id, from) = (pragma(&transaction, "application_id")?, version(&transaction)?);
    let tables: i64 =
        transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(unavailable)?;
    let is_new = tables == 0 && id == 0 && from == 0;
    if !is_new && id != APPLICATION_ID {
        return Err(StoreError::Unavailable(
            "this is not a database of main: move it away, or name another directory".into(),
        ));
    }
    if from > to || from < 0 {
        return Err(StoreError::Unavailable(format!(
            "the database has version {from} and this program knows up to {to}: run the newer release that wrote it"
        )));
    }
    let done = usize::try_from(from).unwrap_or(usize::MAX);
    for step in steps.iter().skip(done) {
        transaction.execute_batch(step).map_err(unavailable)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(unavailable)?;
    transaction.pragma_update(None, "user_version", to).map_err(unavailable)?;
    transaction.commit().map_err(unavailable)
}
