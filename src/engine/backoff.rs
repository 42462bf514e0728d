//! How long to wait before the next try, and when to give up.

use super::error::{Class, TransferError};
use crate::clock;
use std::time::{Duration, Instant};
use tokio::sync::watch;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(10);
/// How long a peer that was never reached is tried: an address that is wrong stays wrong, and a person waits.
const FIRST_CONTACT: Duration = Duration::from_secs(3);

/// Doubling pauses, until nothing has worked for a while.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
    give_up_after: Duration,
    since: Instant,
    met: bool,
}

impl Backoff {
    /// Gives up once nothing has worked for `give_up_after`.
    pub fn new(give_up_after: Duration) -> Self {
        Self { pause: FIRST, give_up_after, since: clock::now(), met: false }
    }

    /// A session was open: from now on a peer that is gone may be expected back.
    pub fn met(&mut self) {
        self.met = true;
    }

    /// Something worked: the next pause is short again.
    pub fn worked(&mut self) {
        (self.pause, self.since) = (FIRST, clock::now());
    }

    /// Waits; `false` if it is time to give up, or if the transfer was cancelled meanwhile.
    pub async fn pause(&mut self, error: &TransferError, cancel: &mut watch::Receiver<bool>) -> bool {
        // A busy peer (Retry) has answered: it is the right one.
        let unmet = !self.met && error.class == Class::Reconnect;
        let patience = if unmet { self.give_up_after.min(FIRST_CONTACT) } else { self.give_up_after };
        if clock::since(self.since) + self.pause > patience || *cancel.borrow() {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How many pauses it makes about an error of this class.
    async fn pauses(class: Class, met: bool) -> u32 {
        let (_keep, mut cancel) = watch::channel(false);
        let mut backoff = Backoff::new(Duration::from_secs(60));
        if met {
            backoff.met();
        }
        let began = backoff.since;
        let error = TransferError::new(class, "gone");
        let mut count = 0;
        while count < 100 && {
            // What is slept is taken from the start, so that the test need not sleep.
            let pause = backoff.pause;
            let again = tokio::time::timeout(Duration::ZERO, backoff.pause(&error, &mut cancel)).await;
            backoff.since -= pause;
            backoff.pause = (pause * 2).min(LONGEST);
            again.unwrap_or(true)
        } {
            count += 1;
        }
        assert!(began - backoff.since < Duration::from_secs(75));
        count
    }

    #[tokio::test]
    async fn who_was_never_met_is_not_waited_for() {
        let (first, later) = (pauses(Class::Reconnect, false).await, pauses(Class::Reconnect, true).await);
        assert!(first <= 4 && later >= 8, "{first} and {later}");
        assert_eq!(pauses(Class::Retry, false).await, later, "a busy peer is the right one");
    }
}
