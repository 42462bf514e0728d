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

impl Destination {
    /// Claims pulls as a destination and pushes as a source, one claim at a time: they share a count.
    pub(super) async fn claim_work(self: Arc<Self>) {
        let mut sides: Vec<_> = [(Role::Destination, Side::Destination), (Role::Source, Side::Source)]
            .into_iter()
            .filter(|(role, _)| self.app.roles.contains(role))
            .map(|(_, side)| side)
            .collect();
        if sides.is_empty() {
            return;
        }
        let wait = if sides.len() == 1 { WAIT_ALONE } else { WAIT_TURNS };
        loop {
            sides.rotate_right(1);
            let side = sides[0];
            let lease = self.wait_lease().await;
            let Some((counts, seq)) = self.queue(|queue| Ok((queue.counts()?, queue.next_claim()?))).await else {
                continue;
            };
            let room = WAITING.saturating_sub(counts.queued + counts.running);
            let room = room.min(MAX_ITEMS.saturating_sub(counts.queued + counts.running + counts.holding));
            let full = side == Side::Destination && self.full_for().is_some();
            if room == 0 || lease.draining || full {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let limit = usize::try_from(room).unwrap_or(MAX_CLAIM).min(MAX_CLAIM);
            let claim = Claim { session: lease.session, session_epoch: lease.epoch, seq, side, limit };
            let path = self.at(&format!("/claims?wait={wait}s"));
            let answer: Result<Vec<Assignment>, _> = self.call(Method::POST, &path, Some(&claim)).await;
            match answer {
                // An answer to another session's claim is not ours to keep.
                Ok(assignments) if self.holds().is_some_and(|now| now.session == lease.session) => {
                    let word = if side == Side::Source { "push" } else { "pull" };
                    let any = !assignments.is_empty();
                    self.queue(move |queue| queue.accept(seq, word, &assignments)).await;
                    if any {
                        self.probe.notify_one();
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "nothing could be claimed; tried again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
