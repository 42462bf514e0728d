//! Buffers for all streams: who holds some and does not move gives way.

use super::{Fault, Role, Worker};
use crate::sys::IoQueue;
use std::time::Duration;

/// The arena may be empty for so long before streams that hold slots and do not move are closed.
const EXHAUSTED_MAX: Duration = Duration::from_secs(2);
/// A stream whose peer has taken or sent nothing for so long, in the middle of a frame, does not move. A peer whose disk
/// stalls is not closed for that alone, only while others wait for the buffers that it holds.
const STALLED_AFTER: Duration = Duration::from_secs(10);

impl<Q: IoQueue> Worker<Q> {
    /// All buffers are taken, here or at another worker: who holds some and does not move gives way. A peer that asks for
    /// much and reads nothing would hold them for ever.
    pub(super) fn make_room(&mut self, now: u64) {
        if self.slots.arena.free() > 0 {
            self.exhausted_since = None;
            return;
        }
        let since = *self.exhausted_since.get_or_insert(now);
        if now.saturating_sub(since) < EXHAUSTED_MAX.as_nanos() as u64 {
            return;
        }
        let before = now.saturating_sub(STALLED_AFTER.as_nanos() as u64);
        for index in 0..self.streams.len() {
            let stalled = self.streams[index].as_ref().is_some_and(|stream| match &stream.role {
                Role::Source(role) => role.stalled_before(before),
                Role::Destination(role) => role.stalled_before(before),
            });
            if stalled {
                let what = "the peer does not move and holds buffers that others wait for";
                self.kill(index, Fault::Socket(what.to_owned()));
            }
        }
    }
}
