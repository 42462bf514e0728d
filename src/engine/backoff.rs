//! How long to wait before the next try, and when to give up.

use super::error::TransferError;
use crate::clock;
use std::time::{Duration, Instant};
use tokio::sync::watch;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(10);

/// Doubling pauses, until nothing has worked for a while.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
    give_up_after: Duration,
    since: Instant,
}

impl Backoff {
    /// Gives up once nothing has worked for `give_up_after`.
    pub fn new(give_up_after: Duration) -> Self {
        Self { pause: FIRST, give_up_after, since: clock::now() }
    }

    /// Something worked: the next pause is short again.
    pub fn worked(&mut self) {
        (self.pause, self.since) = (FIRST, clock::now());
    }

    /// Waits; `false` if it is time to give up, or if the transfer was cancelled meanwhile.
    pub async fn pause(&mut self, error: &TransferError, cancel: &mut watch::Receiver<bool>) -> bool {
        if clock::since(self.since) + self.pause > self.give_up_after || *cancel.borrow() {
            return false;
        }
        tracing::info!(%error, pause = ?self.pause, "trying again");
        tokio::select! {
            biased;
            _ = tokio::time::sleep(self.pause) => {}
            _ = cancel.wait_for(|c| *c) => return false,
        }
        self.pause = (self.pause * 2).min(LONGEST);
        true
    }
}
