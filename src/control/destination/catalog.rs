//! What this agent has, by its own account: file, block, dataset, size and digest, entered after a file is published.

use crate::control::database::{Database, DatabaseError};
use crate::control::model::name::{BlockName, DatasetName, Lfn};
use crate::control::model::page::{Page, PageQuery};
use crate::control::model::time::Time;
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use std::path::Path;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS file(
    lfn TEXT PRIMARY KEY, path TEXT NOT NULL, bytes INTEGER NOT NULL, digest TEXT, dataset TEXT, block TEXT,
    entered INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS file_of_block ON file(dataset, block);
";

/// One file that is or was here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Its name.
    pub lfn: Lfn,
    /// Below the root.
    pub path: Lfn,
    /// Its size.
    pub bytes: u64,
    /// Its file digest as hex, once known.
    pub digest: Option<String>,
    /// Of this dataset.
    pub dataset: Option<DatasetName>,
    /// Of this block.
    pub block: Option<BlockName>,
}

/// The agent's own catalog.
#[derive(Debug)]
pub struct Catalog(Database);

fn known(row: &Row<'_>) -> rusqlite::Result<Known> {
    let bad = |_| rusqlite::Error::InvalidQuery;
    let text = |index| row.get::<_, String>(index);
    Ok(Known {
        lfn: text(0)?.parse().map_err(bad)?,
        path: text(1)?.parse().map_err(bad)?,
        bytes: row.get::<_, i64>(2)?.unsigned_abs(),
        digest: row.get(3)?,
        dataset: row.get::<_, Option<String>>(4)?.and_then(|t| t.parse().ok()),
        block: row.get::<_, Option<String>>(5)?.and_then(|t| t.parse().ok()),
    })
}

impl Catalog {
    /// Opens or makes it.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        Database::open(path, SCHEMA).map(Self)
    }

    /// Adds or replaces, durable when it returns. Blocks.
    pub fn enter(&self, files: &[Known]) -> Result<(), DatabaseError> {
        let now = Time::now();
        self.0.write(|t| {
            let mut insert = t.prepare_cached("INSERT OR REPLACE INTO file VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
            for f in files {
                let bytes = i64::try_from(f.bytes).unwrap_or(i64::MAX);
                let (dataset, block) =
                    (f.dataset.as_ref().map(DatasetName::as_str), f.block.as_ref().map(BlockName::as_str));
                insert.execute(params![f.lfn.as_str(), f.path.as_str(), bytes, f.digest, dataset, block, now.0])?;
            }
            Ok(())
        })
    }

    /// One file. Blocks.
    pub fn get(&self, lfn: &Lfn) -> Result<Option<Known>, DatabaseError> {
        self.0.read(|c| {
            c.prepare_cached("SELECT lfn, path, bytes, digest, dataset, block FROM file WHERE lfn=?1")?
                .query_row([lfn.as_str()], known)
                .optional()
        })
    }

    /// By name. Blocks.
    pub fn list(&self, page: &PageQuery) -> Result<Page<Known>, DatabaseError> {
        let rows = page.rows();
        let mut items = self.0.read(|c| {
            c.prepare_cached(
                "SELECT lfn, path, bytes, digest, dataset, block FROM file WHERE lfn>?1 ORDER BY lfn LIMIT ?2",
            )?
            .query_map(params![page.cursor.as_deref().unwrap_or(""), rows as i64 + 1], known)?
            .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let more = items.len() > rows;
        items.truncate(rows);
        Ok(Page { next: items.last().filter(|_| more).map(|f| f.lfn.to_string()), items })
    }
}
