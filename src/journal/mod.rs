//! The journal of one transfer: which chunks and files of a destination are durable. Bytes in, values out, no I/O.
//!
//! # Format, version 1
//! Records one after the other, little-endian, nothing between them:
//!
//! ```text
//! 0  2  magic "LJ"
//! 2  1  version, 1
//! 3  1  kind; bit 7 set on the first record of a batch
//! 4  4  length of the body, at most BODY_MAX
//! 8  8  sequence: 0 for the header record, one more for each that follows
//! 16 n  body, see `record`
//! +  4  CRC-32C over (CRC of the record before, 0 for the first) ‖ these 16 bytes ‖ body
//! ```
//!
//! The chain makes a record valid in one place of one journal only: bytes of an older journal that a file system
//! hands out again behind the end do not continue it.
//!
//! # The crash argument
//! The engine's order is: chunk data written → `fdatasync` of the part file → records of one batch appended →
//! `fdatasync` of the journal → only then is anybody told. So a record that recovery accepts speaks of data that was
//! durable before it, and whatever a peer was told is in an accepted record, provided that recovery drops only bytes
//! whose sync had not returned. That is what the batch mark is for:
//!
//! - A crash tears the last batch only. Its records may reach the disk cut off, zeroed or out of order, since nothing
//!   orders sectors before the sync. The first bad record therefore ends the log, and the rest of its batch goes with
//!   it. This is normal; recovery says how many bytes it dropped.
//! - The first record of a batch is written after the sync of everything before it has returned. If such a record is
//!   valid behind a bad one, then durable bytes have changed: that is corruption, and recovery refuses the journal,
//!   saying where. Nothing is lost by this but time, as the part files can be digested again.
//!
//! A rename is announced before it happens (Publishing: inode and digest of the part file) and confirmed when the
//! directory is synced (Done). Between the two, a final name with the announced inode counts as done; so a crash there
//! neither publishes twice nor takes our own file for somebody else's.
//!
//! An epoch is durable before it is used, so that two openings of one transfer never share one.
//!
//! # What the caller must do
//! 1. Append the bytes of one [`Writer::take`] and sync them before writing those of the next.
//! 2. Before appending to a recovered journal, truncate it to [`Recovered::len`] and sync it: a dropped tail that
//!    stayed would be found again behind the new records.
//! 3. After a failed sync, treat the journal file as poisoned: write [`compact`] of the checkpoint (which knows only
//!    what was confirmed) to a new file, sync, rename, sync the directory.

mod checkpoint;
mod chunks;
mod record;
mod recover;
#[cfg(test)]
mod tests;
mod writer;

pub use checkpoint::{Checkpoint, FileCheckpoint, FileState, Inconsistent, Named};
pub use chunks::{ChunkSet, IndexRun};
pub use record::{
    BODY_MAX, DIGESTS_PER_RECORD, DONE_PER_RECORD, DoneFile, Ended, FileRecord, Forget, Header, PUBLISHING_PER_RECORD,
    Publishing, Record, Run, SOURCE_MAX,
};
pub use recover::{Found, JournalError, Recovered, Tail, recover, scan};
pub use writer::{Writer, compact};

use crc_fast::{CrcAlgorithm, Digest as Crc};

/// The format's version, in every record.
pub const VERSION: u8 = 1;
/// How every record begins.
pub const MAGIC: [u8; 2] = *b"LJ";
/// Bytes before the body.
pub(crate) const PREFIX: usize = 16;
/// The CRC behind the body.
pub(crate) const SUFFIX: usize = 4;
/// In the kind byte: first record of a batch, so everything before it was synced.
pub(crate) const BATCH: u8 = 0x80;

/// The chained checksum of one record.
pub(crate) fn chain(previous: u32, prefix_and_body: &[u8]) -> u32 {
    let mut crc = Crc::new(CrcAlgorithm::Crc32Iscsi);
    crc.update(&previous.to_le_bytes());
    crc.update(prefix_and_body);
    crc.finalize() as u32
}
