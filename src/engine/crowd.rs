//! Who stands before the door.

use crate::limits::{UNAUTHENTICATED_PER_SOURCE, UNAUTHENTICATED_TOTAL};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use tokio::sync::oneshot;

/// Connections that have not authenticated yet, by source, the oldest first. Who comes when there is no room takes the
/// place of the oldest of its own source, or of the source that has most: a crowd that only stands there keeps nobody
/// out, neither its neighbours nor anybody else.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    by_source: HashMap<IpAddr, VecDeque<(u64, oneshot::Sender<()>)>>,
    total: usize,
}

impl Crowd {
    /// Whether one more from there takes somebody's place.
    pub(super) fn is_full(&self, source: IpAddr) -> bool {
        self.own(source) >= UNAUTHENTICATED_PER_SOURCE || self.total >= UNAUTHENTICATED_TOTAL
    }

    fn own(&self, source: IpAddr) -> usize {
        self.by_source.get(&source).map_or(0, VecDeque::len)
    }

    /// One more, which `leave` tells to go; the same of whose place it takes, if somebody's.
    pub(super) fn join(
        &mut self,
        source: IpAddr,
        number: u64,
        leave: oneshot::Sender<()>,
    ) -> Option<oneshot::Sender<()>> {
        let own = self.own(source);
        let most = match () {
            () if own >= UNAUTHENTICATED_PER_SOURCE => Some(source),
            () if self.total >= UNAUTHENTICATED_TOTAL => {
                self.by_source.iter().max_by_key(|(_, waiting)| waiting.len()).map(|(source, _)| *source)
            }
            () => None,
        };
        let oldest = most.and_then(|source| self.oldest(source));
        self.by_source.entry(source).or_default().push_back((number, leave));
        self.total += 1;
        oldest
    }

    fn oldest(&mut self, source: IpAddr) -> Option<oneshot::Sender<()>> {
        let number = self.by_source.get(&source)?.front()?.0;
        self.leave(source, number)
    }

    /// It has authenticated, or is gone.
    pub(super) fn leave(&mut self, source: IpAddr, number: u64) -> Option<oneshot::Sender<()>> {
        let waiting = self.by_source.get_mut(&source)?;
        let at = waiting.iter().position(|(other, _)| *other == number)?;
        let (_, leave) = waiting.remove(at)?;
        self.total -= 1;
        if waiting.is_empty() {
            self.by_source.remove(&source);
        }
        Some(leave)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: usize) -> IpAddr {
        IpAddr::from([10, 0, (number >> 8) as u8, number as u8])
    }

    #[test]
    fn who_stands_longest_makes_room() {
        let task = || oneshot::channel().0;
        let mut crowd = Crowd::default();
        let (first, mut told) = oneshot::channel();
        assert!(crowd.join(address(0), 0, first).is_none());
        for number in 1..UNAUTHENTICATED_PER_SOURCE {
            assert!(crowd.join(address(0), number as u64, task()).is_none());
        }
        assert!(crowd.is_full(address(0)) && !crowd.is_full(address(1)));
        crowd.join(address(0), 1000, task()).unwrap().send(()).unwrap();
        assert_eq!((told.try_recv(), crowd.total), (Ok(()), UNAUTHENTICATED_PER_SOURCE), "the oldest of its own");
        // Full: the newcomer is alone, and the source that has most gives way.
        for number in 0..UNAUTHENTICATED_TOTAL - UNAUTHENTICATED_PER_SOURCE {
            assert!(crowd.join(address(1 + number / 31), 2000 + number as u64, task()).is_none());
        }
        assert!(crowd.join(address(999), 5000, task()).is_some());
        assert_eq!(crowd.total, UNAUTHENTICATED_TOTAL);
        assert_eq!(crowd.by_source[&address(0)].len(), UNAUTHENTICATED_PER_SOURCE - 1);
        assert!(crowd.by_source.contains_key(&address(999)));
        // Leaving twice counts once, and nothing stays behind.
        crowd.leave(address(999), 5000);
        crowd.leave(address(999), 5000);
        assert_eq!((crowd.total, crowd.by_source.contains_key(&address(999))), (UNAUTHENTICATED_TOTAL - 1, false));
    }
}
