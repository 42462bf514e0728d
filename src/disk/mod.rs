//! Files: scanning, confined paths, part files, publishing, locks. Everything here blocks and is called from the pool of
//! file-operation threads (DESIGN: domain 4). Knows nothing of the network or the wire.
//!
//! - [`calls`] the system calls that change anything
//! - [`confined`] a directory that is never left; [`root`] how it is opened
//! - [`mod@scan`] names, streamed; [`extents`] where a file has data
//! - [`probe`] what a file system can do; [`plan`] how a file is therefore read and written
//! - [`source`] files to read; [`part`] files being written; [`publish`] their final names; [`small`] many at once
//! - [`lock`] one transfer a tree; [`clean`] what dead transfers left
//!
//! # How a file becomes one
//! Bytes go to `.NAME.lh-ID.part` beside the final name. Nothing is ever truncated or removed under the final name: the
//! part file gets its metadata, is synced, and is renamed over it; then the directory is synced.

mod aligned;
pub mod calls;
pub mod clean;
pub mod confined;
pub mod error;
pub mod extents;
pub mod lock;
pub mod names;
pub mod part;
pub mod plan;
pub mod probe;
pub mod publish;
pub mod record;
pub mod root;
pub mod scan;
pub mod small;
pub mod source;
#[cfg(test)]
mod tests;
mod turns;

pub use aligned::{AlignedBuf, DIRECT_ALIGN};
pub use confined::{DirHandle, Kind, LastDir, Made, Resolver, Root, Stat};
pub use error::DiskError;
pub use lock::{LockError, TreeLock};
pub use part::{PartFile, ReadBack, sync_names};
pub use plan::{IoWish, WritePlan, write_plan};
pub use probe::{FsKind, ProbeCache};
pub use publish::{Existing, Meta, RenamedBy, Replace, existing, finish_directory, make_symlink};
pub use record::{Proof, Signature};
pub use scan::{ScanTotals, Scanned, scan};
pub use small::{NewSmall, SmallFile, create_pack, rename_batch, sync_batch};
pub use source::{Expect, SmallSource, SourceError, SourceFile, open_existing};
