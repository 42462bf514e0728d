//! The states of requests and items, from one table each. Whatever changes a state asks [`RequestState::after`] or
//! [`ItemState::after`]; what the tables do not have is an error. The documentation's diagrams and the store's checks are made
//! from the same tables.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant),* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// As JSON, the store and people know it.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            /// From [`Self::word`].
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|state| state.word() == word)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words!(/** Where a request stands. Paused is a flag beside it, and so is the wish to cancel. */ RequestState {
    /// Its files are being found.
    Resolving = "resolving",
    /// Somebody has to say yes to what was found.
    PendingApproval = "pending_approval",
    /// Its items are worked on.
    Active = "active",
    /// Every item is done or was skipped.
    Succeeded = "succeeded",
    /// Some are, some are not.
    Partial = "partial",
    /// None is, or nothing could be found.
    Failed = "failed",
    /// Stopped on request.
    Cancelled = "cancelled",
    /// Somebody said no.
    Rejected = "rejected",
    /// Its deadline passed before it was approved, or before its items ended.
    Expired = "expired",
});

words!(/** What happens to a request. */ RequestEvent {
    /// Its files are known, and somebody has to approve.
    Resolved = "resolved",
    /// Its files are known, and policy approves.
    ResolvedApproved = "resolved_approved",
    /// Its files cannot be found.
    Unresolvable = "unresolvable",
    /// Somebody approves.
    Approve = "approve",
    /// Somebody rejects.
    Reject = "reject",
    /// Cancelled before any item ran.
    Cancel = "cancel",
    /// The deadline passed.
    Expire = "expire",
    /// The last item ended: all done.
    EndSucceeded = "end_succeeded",
    /// The last item ended: some done.
    EndPartial = "end_partial",
    /// The last item ended: none done.
    EndFailed = "end_failed",
    /// The last item ended after a cancel.
    EndCancelled = "end_cancelled",
    /// The last item ended after the deadline.
    EndExpired = "end_expired",
    /// Failed items are tried again.
    RetryFailed = "retry_failed",
});

words!(/** Where one file of a request stands. */ ItemState {
    /// Waits to be claimed, or until its hold or pause before the next try is over.
    Queued = "queued",
    /// An agent has it.
    Claimed = "claimed",
    /// The source is not ready (204): no worker, slot or try is used.
    Hold = "hold",
    /// Bytes move.
    Transferring = "transferring",
    /// Read back, or compared with the catalog.
    Verifying = "verifying",
    /// Published, and on its way into the catalog.
    Committing = "committing",
    /// Verified, published, in the catalog.
    Done = "done",
    /// It stood there already, proved equal or to be left.
    Skipped = "skipped",
    /// Given up.
    Failed = "failed",
    /// Stopped on request.
    Cancelled = "cancelled",
});

words!(/** What happens to an item. */ ItemEvent {
    /// An agent takes it, under a new epoch.
    Claim = "claim",
    /// The source said 204.
    Hold = "hold",
    /// The source is ready again, at the same agent.
    Ready = "ready",
    /// Bytes begin to move.
    Start = "start",
    /// They are all there.
    Verify = "verify",
    /// The final name is there.
    Commit = "commit",
    /// The catalog has it.
    Complete = "complete",
    /// It stands there already.
    Skip = "skip",
    /// Back to the queue: a try failed, a long hold was given back, or its agent's lease ended.
    Requeue = "requeue",
    /// Given up.
    Fail = "fail",
    /// Stopped: acknowledged by its agent, its agent's lease ended, or nobody had it.
    Cancel = "cancel",
    /// Tried again by request.
    RetryFailed = "retry_failed",
});

impl RequestState {
    /// Every transition there is.
    pub const TABLE: &[(Self, RequestEvent, Self)] = {
        use RequestEvent as E;
        use RequestState::*;
        &[
            (Resolving, E::Resolved, PendingApproval),
            (Resolving, E::ResolvedApproved, Active),
            (Resolving, E::Unresolvable, Failed),
            (Resolving, E::Cancel, Cancelled),
            (Resolving, E::Expire, Expired),
            (PendingApproval, E::Approve, Active),
            (PendingApproval, E::Reject, Rejected),
            (PendingApproval, E::Cancel, Cancelled),
            (PendingApproval, E::Expire, Expired),
            (Active, E::EndSucceeded, Succeeded),
            (Active, E::EndPartial, Partial),
            (Active, E::EndFailed, Failed),
            (Active, E::EndCancelled, Cancelled),
            (Active, E::EndExpired, Expired),
            (Partial, E::RetryFailed, Active),
            (Failed, E::RetryFailed, Active),
            (Expired, E::RetryFailed, Active),
        ]
    };

    /// Where `event` leads from here; `None`: nowhere, the caller answers 409.
    pub fn after(self, event: RequestEvent) -> Option<Self> {
        Self::TABLE.iter().find(|(from, on, _)| *from == self && *on == event).map(|(_, _, to)| *to)
    }

    /// Nothing happens any more, unless somebody asks for it.
    pub fn has_ended(self) -> bool {
        !matches!(self, Self::Resolving | Self::PendingApproval | Self::Active)
    }
}

impl ItemState {
    /// Every transition there is.
    pub const TABLE: &[(Self, ItemEvent, Self)] = {
        use ItemEvent as E;
        use ItemState::*;
        &[
            (Queued, E::Claim, Claimed),
            (Queued, E::Fail, Failed),
            (Queued, E::Cancel, Cancelled),
            (Claimed, E::Hold, Hold),
            (Claimed, E::Start, Transferring),
            (Claimed, E::Skip, Skipped),
            (Claimed, E::Requeue, Queued),
            (Claimed, E::Fail, Failed),
            (Claimed, E::Cancel, Cancelled),
            (Hold, E::Hold, Hold),
            (Hold, E::Ready, Claimed),
            (Hold, E::Requeue, Queued),
            (Hold, E::Fail, Failed),
            (Hold, E::Cancel, Cancelled),
            (Transferring, E::Verify, Verifying),
            (Transferring, E::Skip, Skipped),
            (Transferring, E::Requeue, Queued),
            (Transferring, E::Fail, Failed),
            (Transferring, E::Cancel, Cancelled),
            (Verifying, E::Commit, Committing),
            (Verifying, E::Requeue, Queued),
            (Verifying, E::Fail, Failed),
            (Verifying, E::Cancel, Cancelled),
            (Committing, E::Complete, Done),
            (Committing, E::Requeue, Queued),
            (Committing, E::Fail, Failed),
            (Failed, E::RetryFailed, Queued),
        ]
    };

    /// Where `event` leads from here; `None`: nowhere.
    pub fn after(self, event: ItemEvent) -> Option<Self> {
        Self::TABLE.iter().find(|(from, on, _)| *from == self && *on == event).map(|(_, _, to)| *to)
    }

    /// Some agent has it.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Claimed | Self::Hold | Self::Transferring | Self::Verifying | Self::Committing)
    }

    /// Nothing happens any more, unless somebody asks for it.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Done | Self::Skipped | Self::Failed | Self::Cancelled)
    }
}

/// The documentation of both tables, `states.md` beside this file.
pub fn documentation() -> String {
    format!(
        "# States\n\nMade from the tables in `states.rs`: a test compares. To write it anew: \
         `LONGHAUL_WRITE=1 cargo test --lib the_documentation_has_the_tables`.\n\n\
         ## Requests\n\n```mermaid\n{}```\n\n## Items\n\n```mermaid\n{}```\n",
        diagram(RequestState::TABLE),
        diagram(ItemState::TABLE)
    )
}

/// A table as a Mermaid state diagram, for the documentation.
pub fn diagram<S: fmt::Display + Copy, E: fmt::Display + Copy>(table: &[(S, E, S)]) -> String {
    let lines = table.iter().map(|(from, event, to)| format!("    {from} --> {to}: {event}\n"));
    format!("stateDiagram-v2\n{}", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_tables_are_functions_and_reach_every_state() {
        let pairs: BTreeSet<_> = RequestState::TABLE.iter().map(|(s, e, _)| (*s, *e)).collect();
        assert_eq!(pairs.len(), RequestState::TABLE.len());
        let pairs: BTreeSet<_> = ItemState::TABLE.iter().map(|(s, e, _)| (*s, *e)).collect();
        assert_eq!(pairs.len(), ItemState::TABLE.len());
        let reached: BTreeSet<_> = RequestState::TABLE.iter().map(|t| t.2).chain([RequestState::Resolving]).collect();
        assert_eq!(reached.len(), RequestState::ALL.len());
        let reached: BTreeSet<_> = ItemState::TABLE.iter().map(|t| t.2).chain([ItemState::Queued]).collect();
        assert_eq!(reached.len(), ItemState::ALL.len());
    }

    #[test]
    fn the_documentation_has_the_tables() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/control/model/states.md");
        if std::env::var_os("LONGHAUL_WRITE").is_some() {
            std::fs::write(path, documentation()).unwrap();
        }
        assert!(documentation() == std::fs::read_to_string(path).unwrap(), "states.md is not what the tables say");
    }

    #[test]
    fn an_end_is_left_by_request_only() {
        for (from, event, _) in RequestState::TABLE {
            assert!(!from.has_ended() || *event == RequestEvent::RetryFailed, "{from} {event}");
        }
        for (from, event, _) in ItemState::TABLE {
            assert!(!from.has_ended() || *event == ItemEvent::RetryFailed, "{from} {event}");
        }
    }
}
