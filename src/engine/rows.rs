//! What a transfer has moved or found equal, name by name with the digests that the transfer itself knows: what
//! `cp --write-manifest` writes. Reading the files once more would only record what they have become.

use crate::digest::{Digest, path_key};
use crate::ids::PathKey;
use crate::manifest::Entry;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// As the source told it.
    pub entry: Entry,
    /// The file digest; `None` for other kinds, and for a file that was left as it was unlooked at.
    pub digest: Option<Digest>,
}

/// What a file has to be, as somebody knows it who is not the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Its size.
    pub bytes: Option<u64>,
    /// Its file digest.
    pub digest: Option<Digest>,
}

/// Filled by the engine while a transfer runs, session after session; memory in proportion to the names.
#[derive(Debug, Default)]
pub struct Rows {
    rows: Mutex<HashMap<PathKey, Row>>,
    /// By root; none for a root that may be anything.
    wanted: Vec<Wanted>,
}

impl Rows {
    /// For roots that are one file each: what does not match is not published.
    pub fn wanting(wanted: Vec<Wanted>) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Why the file of this root, of this size and, once it is known, this digest is not the one that is wanted.
    pub fn contradiction(&self, root: u16, bytes: u64, digest: Option<&Digest>) -> Option<String> {
        let wanted = self.wanted.get(usize::from(root))?;
        match (wanted.bytes, wanted.digest, digest) {
            (Some(want), ..) if want != bytes => Some(format!("has {bytes} bytes at the source instead of {want}")),
            (_, Some(want), Some(have)) if want != *have => {
                Some(format!("has the digest {have} instead of {want}: the source holds something else"))
            }
            _ => None,
        }
    }

    /// The source has this name. A digest of an earlier session may have been that of another version.
    pub fn named(&self, entry: &Entry) {
        let row = Row { entry: entry.clone(), digest: None };
        self.locked().insert(path_key(entry.root, entry.path.as_bytes()), row);
    }

    /// The file under this key is at the destination with this digest.
    pub fn arrived(&self, key: PathKey, digest: Digest) {
        if let Some(row) = self.locked().get_mut(&key) {
            row.digest = Some(digest);
        }
    }

    /// All of them, a directory before what is in it, sorted within each directory.
    pub fn take(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = std::mem::take(&mut *self.locked()).into_values().collect();
        rows.sort_by(|a, b| {
            let (left, right) = (&a.entry, &b.entry);
            left.root.cmp(&right.root).then_with(|| left.path.components().cmp(right.path.components()))
        });
        rows
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<PathKey, Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
