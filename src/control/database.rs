//! An agent's own SQLite files: opened the same way, used by one thread at a time.

use super::problem::Problem;
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Another process (an operator's shell) may look inside for so long before we give up.
const PATIENCE: Duration = Duration::from_secs(5);
/// KiB of pages that are kept in memory: queues of 100,000 rows work with few.
const CACHE_KIB: i64 = 2048;

/// An own database failed: the disk is full, or somebody else's hand was in it.
#[derive(Debug, thiserror::Error)]
#[error("the agent's database {} failed: {source}", path.display())]
pub struct DatabaseError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub source: rusqlite::Error,
}

impl DatabaseError {
    /// For a client: where the file lies is for the log.
    pub fn problem(&self) -> Problem {
        tracing::error!(error = %self, "an own database failed");
        Problem::busy("this agent's own database failed: see its log")
    }
}

/// One file.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Database {
    /// Opens or makes it, mode 0600, WAL, every commit synced; then runs `schema`, which is idempotent.
    pub fn open(path: &Path, schema: &str) -> Result<Self, DatabaseError> {
        let fail = |source| DatabaseError { path: path.to_owned(), source };
        let connection = Connection::open(path).map_err(fail)?;
        let _ = std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600));
        connection.busy_timeout(PATIENCE).map_err(fail)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(fail)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(fail)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB).map_err(fail)?;
        connection.execute_batch(schema).map_err(fail)?;
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection) })
    }

    /// Does `work` in one transaction, durable when it returns. Blocks.
    pub fn write<T>(
        &self,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, DatabaseError> {
        let mut connection = self.locked();
        let fail = |source| DatabaseError { path: self.path.clone(), source };
        let transaction =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(fail)?;
        let value = work(&transaction).map_err(fail)?;
        transaction.commit().map_err(fail)?;
        Ok(value)
    }

    /// Reads. Blocks.
    pub fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, DatabaseError> {
        work(&self.locked()).map_err(|source| DatabaseError { path: self.path.clone(), source })
    }

    fn locked(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
