//! Destinations that are out of date. Two processes never have one journal at the same time, as far as locks reach; one that
//! was stopped while another took over wakes up with an epoch that is lower than the other's, and is refused here.

use crate::digest::{self, Digest};
use crate::ids::{Epoch, TransferId};
use crate::limits::FENCES_KEPT;
use std::collections::VecDeque;
use tokio::sync::watch;

/// The highest epoch of each journal that this process, as a source, has been asked under. It is forgotten when the process
/// ends, or when [`FENCES_KEPT`] others have come since: then an older destination is let in.
#[derive(Debug, Default)]
pub struct Fences {
    /// The one asked for last is at the end.
    seen: VecDeque<(Digest, watch::Sender<Epoch>)>,
}

/// The right to ask, until a later destination comes.
#[derive(Debug)]
pub struct Pass {
    epoch: Epoch,
    highest: Option<watch::Receiver<Epoch>>,
}

/// Who asks has been replaced by somebody with this epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outdated(pub Epoch);

impl Fences {
    /// Lets a destination in, and puts out those of a lower epoch. `principal` has the ticket: nobody is put out by others
    /// than his own, whatever ids they make up.
    ///
    /// # Errors
    /// A later one has been here.
    pub fn pass(&mut self, principal: &str, transfer: TransferId, epoch: Epoch) -> Result<Pass, Outdated> {
        if epoch == Epoch::default() {
            return Ok(Pass { epoch, highest: None });
        }
        let key = digest::of(&[&transfer.0[..], &epoch.journal().to_le_bytes(), principal.as_bytes()].concat());
        let known = self.seen.iter().position(|(other, _)| *other == key).and_then(|at| self.seen.remove(at));
        let (_, highest) = known.unwrap_or_else(|| (key, watch::Sender::new(epoch)));
        let last = *highest.borrow();
        if last < epoch {
            highest.send_replace(epoch);
        }
        let pass = Pass { epoch, highest: Some(highest.subscribe()) };
        if self.seen.len() >= FENCES_KEPT {
            let idle = self.seen.iter().position(|(_, highest)| highest.receiver_count() == 0);
            self.seen.remove(idle.unwrap_or(0));
        }
        self.seen.push_back((key, highest));
        if last > epoch { Err(Outdated(last)) } else { Ok(pass) }
    }
}

impl Pass {
    /// Returns once a later destination has come.
    pub async fn outdated(&mut self) -> Outdated {
        let epoch = self.epoch;
        if let Some(highest) = &mut self.highest
            && let Ok(later) = highest.wait_for(|highest| *highest > epoch).await
        {
            return Outdated(*later);
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TransferId = TransferId([1; 16]);

    #[test]
    fn a_lower_epoch_of_the_same_journal_is_refused() {
        let mut fences = Fences::default();
        assert!(fences.pass("p", ID, Epoch(5)).is_ok() && fences.pass("p", ID, Epoch(5)).is_ok());
        assert_eq!(fences.pass("p", ID, Epoch(4)).unwrap_err(), Outdated(Epoch(5)));
        assert!(fences.pass("p", TransferId([2; 16]), Epoch(1)).is_ok(), "another transfer");
        assert!(fences.pass("q", ID, Epoch(1)).is_ok(), "somebody else's");
        let other = Epoch::before_first(1).next();
        assert!(fences.pass("p", ID, other).is_ok() && fences.pass("p", ID, Epoch(6)).is_ok(), "another journal");
        assert!(fences.pass("p", ID, Epoch(0)).is_ok(), "no journal at all");
        assert_eq!(fences.pass("p", ID, Epoch(5)).unwrap_err(), Outdated(Epoch(6)));
    }

    #[test]
    fn memory_is_bounded_and_open_sessions_are_kept() {
        let mut fences = Fences::default();
        let id = |n: u64| TransferId([n.to_le_bytes(), [0; 8]].concat().try_into().unwrap());
        let open = fences.pass("p", id(0), Epoch(9)).unwrap();
        for n in 1..=FENCES_KEPT as u64 + 10 {
            fences.pass("p", id(n), Epoch(9)).unwrap();
        }
        assert_eq!(fences.seen.len(), FENCES_KEPT);
        assert!(fences.pass("p", id(0), Epoch(8)).is_err(), "its session is open");
        assert!(fences.pass("p", id(1), Epoch(8)).is_ok(), "forgotten");
        assert!(fences.pass("p", id(FENCES_KEPT as u64), Epoch(8)).is_err());
        drop(open);
    }

    #[tokio::test]
    async fn who_is_in_is_put_out_by_a_later_one_only() {
        let mut fences = Fences::default();
        let mut pass = fences.pass("p", ID, Epoch(5)).unwrap();
        let _ = fences.pass("p", ID, Epoch(4));
        let _ = fences.pass("p", ID, Epoch(5));
        let soon = std::time::Duration::from_millis(10);
        assert!(tokio::time::timeout(soon, pass.outdated()).await.is_err());
        let _later = fences.pass("p", ID, Epoch(6)).unwrap();
        assert_eq!(pass.outdated().await, Outdated(Epoch(6)));
    }
}
