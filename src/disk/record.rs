//! What a published file says about itself: the extended attribute `user.longhaul` holds its digest together with the
//! size and time that it was true for, so that a repeated run can skip what is proved equal without reading it.
//!
//! Layout, little-endian: `u8 version (1), u64 size, i64 seconds, u32 nanoseconds, 16 bytes file digest`.

use super::calls;
use super::confined::Stat;
use crate::digest::{DIGEST_LEN, Digest};
use crate::manifest::Mtime;
use crate::sys::fsys::get_xattr;
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::BorrowedFd;

const NAME: &CStr = c"user.longhaul";
const VERSION: u8 = 1;
const LEN: usize = 1 + 8 + 8 + 4 + DIGEST_LEN;

/// The digest of a file, with the size and modification time that it holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Bytes.
    pub size: u64,
    /// Modification time.
    pub mtime: Mtime,
    /// File digest.
    pub digest: Digest,
}

impl Record {
    fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[0] = VERSION;
        out[1..9].copy_from_slice(&self.size.to_le_bytes());
        out[9..17].copy_from_slice(&self.mtime.secs.to_le_bytes());
        out[17..21].copy_from_slice(&self.mtime.nanos.to_le_bytes());
        out[21..].copy_from_slice(&self.digest.0);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEN] = bytes.try_into().ok()?;
        let mtime = Mtime {
            secs: i64::from_le_bytes(bytes[9..17].try_into().ok()?),
            nanos: u32::from_le_bytes(bytes[17..21].try_into().ok()?),
        };
        (bytes[0] == VERSION).then_some(Self {
            size: u64::from_le_bytes(bytes[1..9].try_into().ok()?),
            mtime,
            digest: Digest(bytes[21..].try_into().ok()?),
        })
    }

    /// Writes it to an open file. Best effort: not every file system has attributes.
    pub(super) fn store(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        calls::set_xattr(file, NAME, &self.encode())
    }

    /// The digest of an open file, if its record holds for what the file is now.
    pub(super) fn valid(file: BorrowedFd<'_>, stat: &Stat) -> Option<Digest> {
        let mut buf = [0; LEN];
        let n = get_xattr(file, NAME, &mut buf).ok()?;
        let record = Self::decode(buf.get(..n)?)?;
        ((record.size, record.mtime) == (stat.size, stat.mtime)).then_some(record.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pinned: files that were published by earlier versions carry it.
    #[test]
    fn the_layout_stays() {
        let record =
            Record { size: 0x0102_0304, mtime: Mtime { secs: -2, nanos: 999 }, digest: Digest([7; DIGEST_LEN]) };
        let bytes = record.encode();
        let golden = "010403020100000000feffffffffffffffe703000007070707070707070707070707070707";
        assert_eq!(hex::encode(bytes), golden);
        assert_eq!(Record::decode(&bytes), Some(record));
        assert_eq!(Record::decode(&bytes[..LEN - 1]), None);
        let mut other = bytes;
        other[0] = 2;
        assert_eq!(Record::decode(&other), None);
    }
}
