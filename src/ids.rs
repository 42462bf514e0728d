//! Names for things that would otherwise be bare integers.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
        impl FromStr for $name {
            type Err = hex::FromHexError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(text, &mut bytes)?;
                Ok(Self(bytes))
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.to_string())
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(/** One transfer: the digest of source identity, source roots and destination. The same for a resume. */ TransferId, 16);
hex_id!(/** One session: two agents, one transfer, one epoch. Random. */ SessionId, 16);
hex_id!(/** The public name of a ticket. Random; the key that goes with it is secret. */ TicketId, 16);
hex_id!(/** Who an agent is, across restarts. Random, kept in its state directory. */ AgentId, 16);
hex_id!(/** The XXH3-128 of root index and path: how the journal names a file. */ PathKey, 16);

/// A file of a session, numbered by the destination. Never used twice in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u32);

/// A stream of a session; 0 is the control stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamIndex(pub u16);

/// Counts up with every opening of a journal by a destination; the source refuses and drops a lower one of the same journal.
/// 0: there is no journal, as in a dry run.
///
/// The bits above the lowest 20 are the journal's own. A transfer's id does not name the destination's host, so that another
/// agent over the same storage can take over: two hosts that fetch one tree into one path share it, and so do a journal
/// that was removed and the next one. Their epochs say nothing about each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    const COUNTER_BITS: u32 = 20;

    /// Before the first opening of a new journal. Below 2^53, which every JSON reader keeps, and always 16 digits long.
    pub fn before_first(random: u32) -> Self {
        Self(u64::from(random | 1 << 31) << Self::COUNTER_BITS)
    }

    /// Of the next opening.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// What all epochs of one journal have in common.
    pub fn journal(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }
}

#[cfg(test)]
mod tests {
    use super::Epoch;

    #[test]
    fn epochs_count_within_their_journal() {
        for random in [0, 1, u32::MAX] {
            let first = Epoch::before_first(random);
            assert_eq!(first.0.to_string().len(), 16);
            assert!(first.0 < 1 << 53 && first.next() > first && first.next().journal() == first.journal());
        }
        assert_ne!(Epoch::before_first(1).journal(), Epoch::before_first(2).journal());
    }
}
