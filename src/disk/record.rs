//! What a published file says about itself: the extended attribute `user.longhaul` holds its digest together with the
//! size and time that it was true for, so that a repeated run can skip what is proved equal without reading it.
//!
//! Layout, little-endian: `u8 version, u64 size, i64 seconds, u32 nanoseconds, 16 bytes file digest`, which is version 1;
//! version 2 goes on with who signed it: `16 bytes transfer id, i64 seconds, u32 nanoseconds at the source`.

use super::calls;
use super::confined::Stat;
use crate::digest::{DIGEST_LEN, Digest};
use crate::ids::TransferId;
use crate::manifest::Mtime;
use crate::sys::fsys::get_xattr;
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::BorrowedFd;

const NAME: &CStr = c"user.longhaul";
const LEN: usize = 1 + 8 + 8 + 4 + DIGEST_LEN;
const SIGNED_LEN: usize = LEN + 16 + 8 + 4;

/// Which transfer published a file. A command that takes nothing over which was there before (`--if-exists error`) signs
/// what it publishes: killed when its journal was gone and its verdict not told, it has no other way to know its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// The transfer, which means its source and its destination.
    pub transfer: TransferId,
    /// The version at the source: its modification time there, whatever the file got here.
    pub mtime: Mtime,
}

/// What is recorded with a file when it is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// File digest.
    pub digest: Digest,
    /// By whom, where that is to be known.
    pub signed: Option<Signature>,
}

impl From<Digest> for Proof {
    fn from(digest: Digest) -> Self {
        Self { digest, signed: None }
    }
}

/// A proof with the size and modification time that it holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Bytes.
    pub size: u64,
    /// Modification time.
    pub mtime: Mtime,
    /// What holds for them.
    pub proof: Proof,
}

fn time_of(bytes: &[u8]) -> Option<Mtime> {
    let (secs, nanos) = bytes.split_first_chunk()?;
    Some(Mtime { secs: i64::from_le_bytes(*secs), nanos: u32::from_le_bytes(nanos.try_into().ok()?) })
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SIGNED_LEN);
        let time = |out: &mut Vec<u8>, time: Mtime| {
            out.extend_from_slice(&time.secs.to_le_bytes());
            out.extend_from_slice(&time.nanos.to_le_bytes());
        };
        out.push(1 + u8::from(self.proof.signed.is_some()));
        out.extend_from_slice(&self.size.to_le_bytes());
        time(&mut out, self.mtime);
        out.extend_from_slice(&self.proof.digest.0);
        if let Some(signed) = self.proof.signed {
            out.extend_from_slice(&signed.transfer.0);
            time(&mut out, signed.mtime);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (plain, rest) = bytes.split_first_chunk::<LEN>()?;
        let signed = match (plain[0], rest.split_first_chunk()) {
            (1, None) if rest.is_empty() => None,
            (2, Some((id, time))) => Some(Signature { transfer: TransferId(*id), mtime: time_of(time)? }),
            _ => return None,
        };
        Some(Self {
            size: u64::from_le_bytes(plain[1..9].try_into().ok()?),
            mtime: time_of(&plain[9..21])?,
            proof: Proof { digest: Digest(plain[21..].try_into().ok()?), signed },
        })
    }

    /// Writes it to an open file. Best effort: not every file system has attributes.
    pub(super) fn store(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        calls::set_xattr(file, NAME, &self.encode())
    }

    /// What is recorded of an open file, if that holds for what the file is now.
    pub(super) fn valid(file: BorrowedFd<'_>, stat: &Stat) -> Option<Proof> {
        let mut buf = [0; SIGNED_LEN];
        let n = get_xattr(file, NAME, &mut buf).ok()?;
        let record = Self::decode(buf.get(..n)?)?;
        ((record.size, record.mtime) == (stat.size, stat.mtime)).then_some(record.proof)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pinned: files that were published by earlier versions carry it.
    #[test]
    fn the_layout_stays() {
        let (size, mtime, digest) = (0x0102_0304, Mtime { secs: -2, nanos: 999 }, Digest([7; DIGEST_LEN]));
        let record = Record { size, mtime, proof: digest.into() };
        let bytes = record.encode();
        let golden = "010403020100000000feffffffffffffffe703000007070707070707070707070707070707";
        assert_eq!(hex::encode(&bytes), golden);
        assert_eq!(Record::decode(&bytes), Some(record));
        assert_eq!(Record::decode(&bytes[..LEN - 1]), None);
        let signature = Signature { transfer: TransferId([9; 16]), mtime: Mtime { secs: 3, nanos: 1 } };
        let signed = Record { proof: Proof { digest, signed: Some(signature) }, ..record };
        let longer = signed.encode();
        let behind = "09090909090909090909090909090909030000000000000001000000";
        assert_eq!(hex::encode(&longer), format!("02{}{behind}", &golden[2..]));
        assert_eq!(Record::decode(&longer), Some(signed));
        assert_eq!(Record::decode(&longer[..SIGNED_LEN - 1]), None);
        // The version and the length go together, and a later version is not guessed at.
        for (version, bytes) in [(2, &bytes), (3, &bytes), (1, &longer), (3, &longer)] {
            let other = [&[version], &bytes[1..]].concat();
            assert_eq!(Record::decode(&other), None, "{version}");
        }
    }
}
