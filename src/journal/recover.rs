//! From bytes to a checkpoint: a total function over whatever a disk may give back.

use super::checkpoint::{Checkpoint, Inconsistent};
use super::record::{BODY_MAX, Record};
use super::{BATCH, MAGIC, PREFIX, SUFFIX, VERSION, chain};

/// CRC bytes spent on looking for valid records behind a bad one. A torn batch holds no plausible prefix but by chance;
/// a tail that is full of them was made, and counts as corruption once this is spent.
const SEARCH_BUDGET: usize = 64 << 20;

/// What a journal came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The sum of the accepted records.
    pub checkpoint: Checkpoint,
    /// Bytes of accepted records: truncate the file to this before appending.
    pub len: u64,
    /// Bytes behind them that are not zero padding: the torn tail.
    pub dropped: u64,
    /// How many records were accepted, which is the next one's sequence number.
    pub records: u64,
    /// CRC of the last accepted record; 0 if there is none.
    pub(crate) crc: u32,
}

/// Why a journal is refused. Nothing is lost but time: part files can be digested again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// It does not begin like one.
    #[error("this is not a journal of longhaul")]
    NotAJournal,
    /// A record of a version that this program does not know.
    #[error(
        "the record at offset {offset} has version {version}; this program reads version {VERSION}: use a newer one"
    )]
    Version {
        /// In bytes.
        offset: u64,
        /// The record's.
        version: u8,
    },
    /// Bytes that had been synced have changed.
    #[error(
        "the journal is corrupt at offset {offset}: valid records of a later batch follow at offset {follows}; remove \
         the journal to start again from the part files"
    )]
    Corrupt {
        /// Of the first bad record, in bytes.
        offset: u64,
        /// Of the valid record that proves it, in bytes.
        follows: u64,
    },
    /// A record with a right checksum and a wrong field.
    #[error("the record at offset {offset} has a wrong field `{field}`; remove the journal to start again")]
    Field {
        /// In bytes.
        offset: u64,
        /// Its name.
        field: &'static str,
    },
    /// A record that does not fit the ones before it.
    #[error("the record at offset {offset} does not fit the ones before it: {why}")]
    Inconsistent {
        /// In bytes.
        offset: u64,
        /// In what way.
        why: Inconsistent,
    },
}

impl JournalError {
    /// Where in the journal, in bytes.
    pub fn offset(&self) -> u64 {
        match self {
            JournalError::NotAJournal => 0,
            JournalError::Version { offset, .. }
            | JournalError::Corrupt { offset, .. }
            | JournalError::Field { offset, .. }
            | JournalError::Inconsistent { offset, .. } => *offset,
        }
    }
}

/// A valid record and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// In bytes.
    pub offset: u64,
    /// Counts from 0.
    pub sequence: u64,
    /// Whether everything before it was synced when it was written.
    pub batch: bool,
    /// What it says.
    pub record: Record,
}

/// How the log ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Bytes of valid records.
    pub len: u64,
    /// Bytes behind them up to the last that is not zero.
    pub dropped: u64,
    /// Valid records.
    pub records: u64,
    pub(crate) crc: u32,
}

/// Recovers a checkpoint. Never panics, whatever the bytes; uses memory in proportion to them.
pub fn recover(bytes: &[u8]) -> Result<Recovered, JournalError> {
    let mut checkpoint = Checkpoint::default();
    let tail = scan(bytes, |found| {
        checkpoint.apply(&found.record).map_err(|why| JournalError::Inconsistent { offset: found.offset, why })
    })?;
    Ok(Recovered { checkpoint, len: tail.len, dropped: tail.dropped, records: tail.records, crc: tail.crc })
}

/// Gives every valid record to `each`, in order.
pub fn scan(bytes: &[u8], mut each: impl FnMut(Found) -> Result<(), JournalError>) -> Result<Tail, JournalError> {
    let (mut at, mut crc, mut sequence) = (0, 0, 0);
    while let Some(raw) = Raw::at(bytes, at).filter(|raw| raw.sequence == sequence && raw.computed(crc) == raw.crc) {
        let offset = at as u64;
        if raw.version != VERSION {
            return Err(JournalError::Version { offset, version: raw.version });
        }
        let record =
            Record::decode(raw.kind & !BATCH, raw.body()).map_err(|field| JournalError::Field { offset, field })?;
        each(Found { offset, sequence, batch: raw.kind & BATCH != 0, record })?;
        at = raw.end;
        crc = raw.crc;
        sequence += 1;
    }
    let written = bytes.len() - bytes.iter().rev().take_while(|&&b| b == 0).count();
    let dropped = written.saturating_sub(at);
    if dropped > 0 {
        let seen = dropped.min(MAGIC.len());
        // A first record of zeros can be a torn one; other bytes were never ours.
        if at == 0 && bytes[..seen] != MAGIC[..seen] && bytes[..MAGIC.len().min(bytes.len())].iter().any(|&b| b != 0) {
            return Err(JournalError::NotAJournal);
        }
        search(bytes, at, written, sequence, crc)?;
    }
    Ok(Tail { len: at as u64, dropped: dropped as u64, records: sequence, crc })
}

/// Looks behind the bad record at `bad` for the first record of a later batch, which proves that synced bytes changed.
fn search(bytes: &[u8], bad: usize, written: usize, sequence: u64, crc: u32) -> Result<(), JournalError> {
    let mut budget = SEARCH_BUDGET;
    // If only the bad record's CRC field is wrong, the next one chains to what it should have been.
    let repaired = Raw::at(bytes, bad).filter(|raw| raw.sequence == sequence).map(|raw| (raw.end, raw.computed(crc)));
    for at in bad + 1..written.saturating_sub(PREFIX) {
        let Some(raw) = Raw::at(bytes, at).filter(|raw| raw.kind & BATCH != 0) else { continue };
        // Each record between takes at least its frame.
        let most = sequence + ((at - bad) / (PREFIX + SUFFIX)) as u64;
        if raw.sequence < sequence || raw.sequence > most.saturating_add(1) {
            continue;
        }
        let proof = JournalError::Corrupt { offset: bad as u64, follows: at as u64 };
        let Some(left) = budget.checked_sub(raw.end - at) else { return Err(proof) };
        budget = left;
        let before = at.checked_sub(SUFFIX).and_then(|from| bytes[from..at].try_into().ok()).map(u32::from_le_bytes);
        let chained = before.is_some_and(|before| raw.computed(before) == raw.crc);
        if chained || repaired.is_some_and(|(end, before)| end == at && raw.computed(before) == raw.crc) {
            return Err(proof);
        }
    }
    Ok(())
}

/// A record's frame, not yet believed.
struct Raw<'a> {
    version: u8,
    kind: u8,
    sequence: u64,
    prefix_and_body: &'a [u8],
    crc: u32,
    end: usize,
}

impl<'a> Raw<'a> {
    fn at(bytes: &'a [u8], at: usize) -> Option<Self> {
        let prefix: &[u8; PREFIX] = bytes.get(at..)?.first_chunk()?;
        let body = u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]) as usize;
        if prefix[..2] != MAGIC || body > BODY_MAX {
            return None;
        }
        let sequence = u64::from_le_bytes(prefix[8..].try_into().ok()?);
        let crc_at = at + PREFIX + body;
        let crc = u32::from_le_bytes(*bytes.get(crc_at..)?.first_chunk()?);
        let (version, kind) = (prefix[2], prefix[3]);
        Some(Self { version, kind, sequence, prefix_and_body: &bytes[at..crc_at], crc, end: crc_at + SUFFIX })
    }

    fn body(&self) -> &'a [u8] {
        &self.prefix_and_body[PREFIX..]
    }

    fn computed(&self, previous: u32) -> u32 {
        chain(previous, self.prefix_and_body)
    }
}
