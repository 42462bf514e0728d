//! Files that a plain client brings: begun, resumed at the last byte that is durable, compared, published, entered into the
//! own catalog, and kept here until main has the entry too. Every step is on disk before it is told.

use super::catalog::{Catalog, Known};
use crate::checksum::{ChecksumKind, Expected, hash_reader};
use crate::control::database::{Database, DatabaseError};
use crate::control::model::name::{BlockName, DatasetName, Lfn, UploadId};
use crate::control::model::time::Time;
use crate::control::root::ServedRoot;
use crate::relpath::RelPath;
use nix::errno::Errno;
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// Uploads that are not over.
pub const MAX_UPLOADS: i64 = 10_000;
/// One that nobody has touched for so long is given up.
const KEPT_SECS: u64 = 7 * 24 * 3600;
/// One that is over can be looked at for so long.
const SHOWN_SECS: u64 = 24 * 3600;
/// Entries that main is told together.
const TOLD: u32 = 500;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS upload(
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, state TEXT NOT NULL, place TEXT NOT NULL, lfn TEXT NOT NULL,
    bytes INTEGER NOT NULL, offset INTEGER NOT NULL DEFAULT 0, digest TEXT, spec TEXT NOT NULL, touched INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS upload_place ON upload(place) WHERE state IN ('open','publishing');
CREATE INDEX IF NOT EXISTS upload_state ON upload(state, touched);
";

/// `POST /v1/uploads`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadSpec {
    /// Its logical name.
    pub lfn: Lfn,
    /// Its size.
    pub bytes: u64,
    /// What it must be, as `ALG:HEX` (xxh3, sha256, md5, crc32c, adler32), or 32 hex digits of this program's own.
    #[serde(default)]
    pub digest: Option<String>,
    /// Where it goes below the root; by default its logical name.
    #[serde(default)]
    pub path: Option<Lfn>,
    /// With `block`, or neither.
    #[serde(default)]
    pub dataset: Option<DatasetName>,
    /// See `dataset`.
    #[serde(default)]
    pub block: Option<BlockName>,
}

impl UploadSpec {
    /// Where it goes.
    pub fn place(&self) -> &Lfn {
        self.path.as_ref().unwrap_or(&self.lfn)
    }

    /// What it must be; the error is a sentence.
    pub fn expected(&self) -> Result<Option<Expected>, String> {
        let Some(text) = &self.digest else { return Ok(None) };
        let text = if text.contains(':') { text.clone() } else { format!("xxh3:{text}") };
        text.parse().map(Some).map_err(|e: crate::checksum::ChecksumError| e.to_string())
    }
}

/// How an upload stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Its id.
    pub id: UploadId,
    /// The token that began it.
    pub owner: String,
    /// All bytes are there, compared and published.
    pub done: bool,
    /// Bytes that are durable.
    pub offset: u64,
    /// Once done.
    pub digest: Option<String>,
    /// As it was asked for.
    pub spec: UploadSpec,
    publishing: bool,
}

impl Upload {
    /// A name that nobody is served: beside the final one, so that it lies on the same file system.
    fn part(&self) -> RelPath {
        let hex = self.id.0.simple().to_string();
        let (head, tail) = hex.split_at(16);
        let parent = self.spec.place().rel_path().split_last().map(|(parent, _)| parent).unwrap_or_default();
        parent.join(format!(".lh-{head}-{tail}.part").as_bytes()).unwrap_or_default()
    }

    /// As the catalog has it.
    pub fn known(&self) -> Known {
        Known {
            lfn: self.spec.lfn.clone(),
            path: self.spec.place().clone(),
            bytes: self.spec.bytes,
            digest: self.digest.clone(),
            dataset: self.spec.dataset.clone(),
            block: self.spec.block.clone(),
        }
    }
}

/// Why an upload does not go on.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The own database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// There is none.
    #[error("there is no such upload, or it is another token's")]
    Unknown,
    /// Another one goes there.
    #[error("another upload to {0} has begun and is not over: go on with that one, or delete it")]
    Taken(Lfn),
    /// Something stands there.
    #[error("{0} is there already: uploads replace nothing")]
    Exists(Lfn),
    /// As many as may be.
    #[error("as many uploads have begun here as may: end some, or come later")]
    TooMany,
    /// Another request writes it.
    #[error("another request of this upload is being served: wait for its end")]
    Busy,
    /// Not where it stands.
    #[error("the upload stands at byte {0}: ask with HEAD, and go on from there")]
    Offset(u64),
    /// More than was said.
    #[error("more bytes came than the {0} that were announced: the upload stays at its last durable byte")]
    TooLong(u64),
    /// Other bytes.
    #[error("the {kind} of what came is {have}, not {want}: it is not kept; begin anew")]
    Digest {
        /// Which algorithm.
        kind: ChecksumKind,
        /// What came.
        have: String,
        /// What was announced.
        want: String,
    },
    /// No room.
    #[error("there is no room for {0} bytes")]
    NoRoom(u64),
    /// What the file system said.
    #[error("{0}: {1}")]
    Disk(Lfn, Errno),
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// All uploads of this agent.
pub struct Uploads {
    db: Database,
    root: Arc<ServedRoot>,
    catalog: Arc<Catalog>,
    /// Uploads that a request writes.
    written: Mutex<HashSet<UploadId>>,
    /// There is something that main has not been told.
    pub tell: Notify,
}

/// The one right to write an upload.
pub struct Writer {
    taken: Taken,
    /// As it stands.
    pub upload: Upload,
    file: File,
}

fn upload(row: &Row<'_>) -> rusqlite::Result<Upload> {
    let bad = || rusqlite::Error::InvalidQuery;
    let (id, state, spec): (String, String, String) = (row.get(0)?, row.get(2)?, row.get(5)?);
    Ok(Upload {
        id: id.parse().map_err(|_| bad())?,
        owner: row.get(1)?,
        done: matches!(state.as_str(), "published" | "told"),
        publishing: state == "publishing",
        offset: row.get::<_, i64>(3)?.unsigned_abs(),
        digest: row.get(4)?,
        spec: serde_json::from_str(&spec).map_err(|_| bad())?,
    })
}

const COLUMNS: &str = "id, owner, state, offset, digest, spec";

impl Uploads {
    /// Opens the file; gives up what was left alone for a week.
    pub fn open(path: &Path, root: Arc<ServedRoot>, catalog: Arc<Catalog>) -> Result<Arc<Self>, DatabaseError> {
        let db = Database::open(path, SCHEMA)?;
        let uploads = Self { db, root, catalog, written: Mutex::default(), tell: Notify::new() };
        uploads.tell.notify_one();
        uploads.forget_old()?;
        Ok(Arc::new(uploads))
    }

    /// Gives up what was left alone, and forgets what is long over.
    pub fn forget_old(&self) -> Result<(), DatabaseError> {
        let before = |secs: u64| Time::now().0.saturating_sub_unsigned(secs * 1000);
        let old = self.db.read(|c| {
            c.prepare(&format!("SELECT {COLUMNS} FROM upload WHERE state='open' AND touched<?1"))?
                .query_map([before(KEPT_SECS)], upload)?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        for upload in old {
            let _ = self.root.remove(&upload.part());
            self.set(&upload, "gone")?;
        }
        self.db.write(|t| {
            t.execute("DELETE FROM upload WHERE state IN ('told','gone') AND touched<?1", [before(SHOWN_SECS)])
        })?;
        Ok(())
    }

    fn set(&self, upload: &Upload, state: &str) -> Result<(), DatabaseError> {
        self.db.write(|t| {
            t.prepare_cached("UPDATE upload SET state=?2, offset=?3, digest=?4, touched=?5 WHERE id=?1")?
                .execute(params![upload.id.to_string(), state, upload.offset as i64, upload.digest, Time::now().0])
                .map(|_| ())
        })
    }

    /// Begins one. Blocks, as all of these do.
    pub fn begin(&self, owner: &str, spec: UploadSpec) -> Result<Upload, UploadError> {
        let place = spec.place().clone();
        if self.root.stat(&place.rel_path()).is_ok() {
            return Err(UploadError::Exists(place));
        }
        if self.root.facts().free_bytes < spec.bytes {
            return Err(UploadError::NoRoom(spec.bytes));
        }
        let id = UploadId::new();
        let upload =
            Upload { id, owner: owner.to_owned(), done: false, publishing: false, offset: 0, digest: None, spec };
        let text = serde_json::to_string(&upload.spec).unwrap_or_default();
        let begun = self.db.write(|t| {
            let open: i64 = t.query_row("SELECT count(*) FROM upload WHERE state='open'", [], |r| r.get(0))?;
            if open >= MAX_UPLOADS {
                return Ok(Err(UploadError::TooMany));
            }
            let bytes = i64::try_from(upload.spec.bytes).unwrap_or(i64::MAX);
            let made = t.execute(
                "INSERT OR IGNORE INTO upload(id, owner, state, place, lfn, bytes, spec, touched)
                 VALUES (?1, ?2, 'open', ?3, ?4, ?5, ?6, ?7)",
                params![id.to_string(), owner, place.as_str(), upload.spec.lfn.as_str(), bytes, text, Time::now().0],
            )?;
            Ok(if made == 1 { Ok(()) } else { Err(UploadError::Taken(place.clone())) })
        })?;
        begun?;
        let made = self.root.make_dirs(&place.rel_path().split_last().map(|(d, _)| d).unwrap_or_default());
        let created = made.and_then(|()| self.root.create_file(&upload.part()));
        if let Err(errno) = created {
            self.set(&upload, "gone")?;
            return Err(UploadError::Disk(place, errno));
        }
        Ok(upload)
    }

    /// How one stands. `owner`: only his; `None`: anybody's.
    pub fn get(&self, id: UploadId, owner: Option<&str>) -> Result<Upload, UploadError> {
        let found = self.db.read(|c| {
            c.prepare_cached(&format!("SELECT {COLUMNS} FROM upload WHERE id=?1 AND state<>'gone'"))?
                .query_row([id.to_string()], upload)
                .optional()
        })?;
        found.filter(|upload| owner.is_none_or(|owner| owner == upload.owner)).ok_or(UploadError::Unknown)
    }

    /// Gives one up.
    pub fn cancel(self: &Arc<Self>, id: UploadId, owner: Option<&str>) -> Result<(), UploadError> {
        let upload = self.get(id, owner)?;
        if upload.done || upload.publishing {
            return Ok(());
        }
        let _place = self.take(id)?;
        let _ = self.root.remove(&upload.part());
        Ok(self.set(&upload, "gone")?)
    }

    fn take(self: &Arc<Self>, id: UploadId) -> Result<Taken, UploadError> {
        match self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            true => Ok(Taken(self.clone(), id)),
            false => Err(UploadError::Busy),
        }
    }

    /// The right to write from `offset` on, which must be where it stands.
    pub fn writer(self: &Arc<Self>, id: UploadId, owner: Option<&str>, offset: u64) -> Result<Writer, UploadError> {
        let taken = self.take(id)?;
        let upload = self.get(id, owner)?;
        if upload.done || upload.offset != offset {
            return Err(UploadError::Offset(upload.offset));
        }
        let disk = |errno| UploadError::Disk(upload.spec.place().clone(), errno);
        // Published before a crash, and not yet told: only the end is missing.
        let file = match self.root.append_file(&upload.part()) {
            Err(Errno::ENOENT) if upload.publishing => self.root.append_file(&upload.spec.place().rel_path()),
            other => other,
        };
        let file = file.map_err(disk)?;
        if !upload.publishing {
            // What came after the last sync may be anything.
            file.set_len(upload.offset).map_err(|e| disk(errno(&e)))?;
        }
        Ok(Writer { taken, upload, file })
    }

    /// Entries that main has not been told.
    pub fn untold(&self) -> Result<Vec<Upload>, DatabaseError> {
        self.db.read(|c| {
            c.prepare_cached(&format!("SELECT {COLUMNS} FROM upload WHERE state='published' ORDER BY id LIMIT ?1"))?
                .query_map([TOLD], upload)?
                .collect()
        })
    }

    /// Main has them.
    pub fn told(&self, uploads: &[Upload]) -> Result<(), DatabaseError> {
        uploads.iter().try_for_each(|upload| self.set(upload, "told"))
    }
}

/// See [`Uploads::take`].
struct Taken(Arc<Uploads>, UploadId);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.written.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Writer {
    fn uploads(&self) -> &Uploads {
        &self.taken.0
    }

    fn disk(&self, error: &std::io::Error) -> UploadError {
        match errno(error) {
            Errno::ENOSPC | Errno::EDQUOT => UploadError::NoRoom(self.upload.spec.bytes),
            errno => UploadError::Disk(self.upload.spec.place().clone(), errno),
        }
    }

    /// Appends; not durable before [`Writer::keep`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), UploadError> {
        use std::os::unix::fs::FileExt;
        let end = self.upload.offset + bytes.len() as u64;
        if end > self.upload.spec.bytes {
            return Err(UploadError::TooLong(self.upload.spec.bytes));
        }
        self.file.write_all_at(bytes, self.upload.offset).map_err(|e| self.disk(&e))?;
        self.upload.offset = end;
        Ok(())
    }

    /// What was written so far is durable, and said to be.
    pub fn keep(&mut self) -> Result<(), UploadError> {
        if self.upload.publishing {
            return Ok(());
        }
        self.file.sync_data().map_err(|e| self.disk(&e))?;
        Ok(self.uploads().set(&self.upload, "open")?)
    }

    /// All is there: compared, published, in the own catalog.
    pub fn complete(&mut self) -> Result<(), UploadError> {
        let expected = self.upload.spec.expected().unwrap_or_default();
        let mut kinds = vec![ChecksumKind::Xxh3];
        kinds.extend(expected.iter().map(|e| e.kind).filter(|kind| *kind != ChecksumKind::Xxh3));
        let reader = self.file.try_clone().and_then(|mut file| {
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(0))?;
            hash_reader(&kinds, file)
        });
        let sums = reader.map_err(|e| self.disk(&e))?;
        let (part, place) = (self.upload.part(), self.upload.spec.place().rel_path());
        if let Some(want) = expected {
            let have = sums.hex(want.kind).unwrap_or_default();
            if !have.eq_ignore_ascii_case(&want.hex) {
                let error = UploadError::Digest { kind: want.kind, have: have.to_owned(), want: want.hex };
                let _ = self.uploads().root.remove(&part);
                self.uploads().set(&self.upload, "gone")?;
                return Err(error);
            }
        }
        self.upload.digest = sums.digest().map(|digest| digest.to_string());
        // With its size and times, which the data's sync leaves out.
        self.file.sync_all().map_err(|e| self.disk(&e))?;
        self.uploads().set(&self.upload, "publishing")?;
        match self.uploads().root.publish(&part, &place) {
            Ok(()) => {}
            // It was, before a crash.
            Err(Errno::ENOENT) if self.upload.publishing => {}
            Err(Errno::EEXIST) => {
                self.uploads().set(&self.upload, "open")?;
                return Err(UploadError::Exists(self.upload.spec.place().clone()));
            }
            Err(errno) => return Err(UploadError::Disk(self.upload.spec.place().clone(), errno)),
        }
        self.uploads().catalog.enter(&[self.upload.known()])?;
        self.upload.done = true;
        self.uploads().set(&self.upload, "published")?;
        self.uploads().tell.notify_one();
        Ok(())
    }
}
