//! Takes work in, as much as is worth having: holds do not count, as they cost nothing.

use super::{Destination, PAUSE};
use crate::control::model::agent::MAX_SESSION_ITEMS;
use crate::control::model::item::{Assignment, Claim, MAX_CLAIM, Side};
use crate::control::settings::Role;
use hyper::Method;
use std::sync::Arc;

/// Items that wait for a slot, at most: enough to form groups of small files.
const WAITING: u64 = 2000;
/// Items that an agent has at all: it names them all when it opens a session.
pub(super) const MAX_ITEMS: u64 = MAX_SESSION_ITEMS as u64;
/// Seconds of a long poll with one role, and with two, which take turns.
const WAIT_ALONE: u64 = 25;
/// See [`WAIT_ALONE`].
const WAIT_TURNS: u64 = 5;

/// Whose turn it is to claim. A claim without an answer is asked again as it was: main may have given something for its
/// number, and would give the same to the other side.
#[derive(Debug)]
struct Turns(Vec<Side>);

impl Turns {
    fn new(roles: &[Role]) -> Self {
        let sides = [(Role::Source, Side::Source), (Role::Destination, Side::Destination)];
        Self(sides.into_iter().filter(|(role, _)| roles.contains(role)).map(|(_, side)| side).collect())
    }

    fn now(&self) -> Option<Side> {
        self.0.first().copied()
    }

    fn answered(&mut self) {
        self.0.rotate_left(1);
    }
}

impl Destination {
    /// Claims pulls as a destination and pushes as a source, one claim at a time: they share a count.
    pub(super) async fn claim_work(self: Arc<Self>) {
        let mut turns = Turns::new(&self.app.roles);
        let wait = if turns.0.len() == 1 { WAIT_ALONE } else { WAIT_TURNS };
        while let Some(side) = turns.now() {
            let lease = self.wait_lease().await;
            let Some((counts, seq)) = self.queue(|queue| Ok((queue.counts()?, queue.next_claim()?))).await else {
                continue;
            };
            let room = WAITING.saturating_sub(counts.queued + counts.running);
            let room = room.min(MAX_ITEMS.saturating_sub(counts.queued + counts.running + counts.holding));
            let full = side == Side::Destination && self.full_for().is_some();
            if room == 0 || lease.draining || full {
                turns.answered();
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let limit = usize::try_from(room).unwrap_or(MAX_CLAIM).min(MAX_CLAIM);
            let claim = Claim { session: lease.session, session_epoch: lease.epoch, seq, side, limit };
            let path = self.at(&format!("/claims?wait={wait}s"));
            let answer: Result<Vec<Assignment>, _> = self.call(Method::POST, &path, Some(&claim)).await;
            match answer {
                // An answer to another session's claim is not ours to keep.
                Ok(assignments) if assignments.is_empty() => turns.answered(),
                Ok(assignments) if self.holds().is_some_and(|now| now.session == lease.session) => {
                    let word = if side == Side::Source { "push" } else { "pull" };
                    if self.queue(move |queue| queue.accept(seq, word, &assignments)).await.is_some() {
                        turns.answered();
                    }
                    self.probe.notify_one();
                }
                Ok(_) => turns.answered(),
                Err(error) => {
                    tracing::debug!(%error, "nothing could be claimed; tried again");
                    if error.status().is_some_and(|status| (400..500).contains(&status)) {
                        turns.answered();
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_without_an_answer_is_asked_again_by_the_same_side() {
        let mut turns = Turns::new(&[Role::Main, Role::Source, Role::Destination]);
        assert_eq!((turns.now(), turns.now()), (Some(Side::Source), Some(Side::Source)));
        turns.answered();
        assert_eq!(turns.now(), Some(Side::Destination));
        turns.answered();
        assert_eq!(turns.now(), Some(Side::Source));
        assert_eq!(Turns::new(&[Role::Main]).now(), None);
    }
}
