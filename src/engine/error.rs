//! What can go wrong with a transfer, joined with where, and classed by what the caller is to do about it.

use std::fmt;

/// What the caller should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The same again, later: a busy peer, another transfer's lock.
    Retry,
    /// The same again, when somebody has made room: a full disk, a quota.
    NoRoom,
    /// Dial again.
    Reconnect,
    /// Another source may have it right.
    OtherSource,
    /// Will fail again until somebody changes something.
    Permanent,
    /// The file's storage failed a sync: start it again from the journal through a new descriptor.
    Poisoned,
    /// The peer or the token says no.
    Denied,
    /// Something named does not exist.
    NotFound,
    /// A digest, checksum or identity is not what it must be.
    Verification,
    /// Stopped on request: by signal, by cancel.
    Interrupted,
}

impl Class {
    /// The word in reports and logs.
    pub fn word(self) -> &'static str {
        match self {
            Class::Retry => "retry",
            Class::NoRoom => "no-room",
            Class::Reconnect => "reconnect",
            Class::OtherSource => "other-source",
            Class::Permanent => "permanent",
            Class::Poisoned => "poisoned",
            Class::Denied => "denied",
            Class::NotFound => "not-found",
            Class::Verification => "verification",
            Class::Interrupted => "interrupted",
        }
    }

    /// The exit code of the command line.
    pub fn exit_code(self) -> u8 {
        match self {
            Class::Retry | Class::NoRoom | Class::Reconnect => 5,
            Class::OtherSource | Class::Verification => 6,
            Class::Permanent | Class::Poisoned => 7,
            Class::Denied => 10,
            Class::NotFound => 4,
            Class::Interrupted => 130,
        }
    }

    /// From [`Class::word`].
    pub fn from_word(word: &str) -> Option<Self> {
        use Class::*;
        [Retry, NoRoom, Reconnect, OtherSource, Permanent, Poisoned, Denied, NotFound, Verification, Interrupted]
            .into_iter()
            .find(|class| class.word() == word)
    }
}

/// A transfer's error: what happened, to which file, stream or peer, and its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferError {
    /// What to do.
    pub class: Class,
    /// What happened and what helps, as one sentence.
    pub what: String,
    /// File (escaped), stream or peer, when there is one.
    pub at: Option<String>,
}

impl TransferError {
    /// An error with no place.
    pub fn new(class: Class, what: impl Into<String>) -> Self {
        Self { class, what: what.into(), at: None }
    }

    /// Says where.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.at = Some(place.to_string());
        self
    }
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            Some(at) => write!(f, "{at}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for TransferError {}
