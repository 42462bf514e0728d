//! What can be changed on a transfer while it runs.

use crate::limits::{MAX_STREAMS, MIN_RATE};
use serde::{Deserialize, Serialize};

/// Which of several transfers of one agent goes first. A lower one is asked for a quarter of what it would be, for each step
/// that a higher one which moves is above it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Takes what the others leave.
    Low,
    /// As every transfer begins.
    #[default]
    Normal,
    /// Before the others.
    High,
}

impl Priority {
    /// Steps between this one and a higher one: 0 to 2.
    pub fn below(self, other: Self) -> u8 {
        (other as u8).saturating_sub(self as u8)
    }
}

/// A change to a running transfer. What is left out stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Steer {
    /// Cap in bits per second over all streams, instead of the one it was started with; 0 lifts it. What the operators of
    /// both ends allow holds in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Data streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<u16>,
    /// Against other transfers of the same agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
}

impl Steer {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes over what `later` says.
    pub fn merge(&mut self, later: &Self) {
        self.rate = later.rate.or(self.rate);
        self.streams = later.streams.or(self.streams);
        self.priority = later.priority.or(self.priority);
    }

    /// Refuses what cannot be, also from a peer. The key and a sentence.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.rate.is_some_and(|rate| rate != 0 && rate < MIN_RATE) {
            return Err(("rate", format!("at least {MIN_RATE} bits per second, or 0 for no cap")));
        }
        if self.streams.is_some_and(|n| n == 0 || n > MAX_STREAMS) {
            return Err(("streams", format!("1 to {MAX_STREAMS}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_add_up_and_impossible_ones_are_refused() {
        let mut all = Steer { rate: Some(1_000_000), streams: Some(4), priority: None };
        all.merge(&Steer { rate: Some(0), ..Steer::default() });
        all.merge(&Steer { priority: Some(Priority::Low), ..Steer::default() });
        assert_eq!(all, Steer { rate: Some(0), streams: Some(4), priority: Some(Priority::Low) });
        assert_eq!(all.check(), Ok(()));
        for (text, key) in
            [(r#"{"rate":7999}"#, "rate"), (r#"{"streams":0}"#, "streams"), (r#"{"streams":65}"#, "streams")]
        {
            assert_eq!(serde_json::from_str::<Steer>(text).unwrap().check().unwrap_err().0, key);
        }
        for text in [r#"{"rates":8000}"#, r#"{"rate":-1}"#, r#"{"priority":"urgent"}"#] {
            assert!(serde_json::from_str::<Steer>(text).is_err(), "{text}");
        }
        assert!(Steer::default().is_empty() && !all.is_empty());
    }

    #[test]
    fn steps_between_priorities() {
        use Priority::{High, Low, Normal};
        for (own, other, steps) in
            [(Low, High, 2), (Low, Normal, 1), (Normal, High, 1), (Normal, Low, 0), (High, High, 0)]
        {
            assert_eq!(own.below(other), steps);
        }
    }
}
