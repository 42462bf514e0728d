//! How many connections there may be, in total and of one neighbour, and who makes room when there are too many.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// A connection as its [`Caps`] know it.
#[derive(Debug)]
struct Seat {
    source: IpAddr,
    counts: Arc<Mutex<Counts>>,
    /// Told once, when somebody else has been given this place.
    taken: Notify,
    /// Then it is counted no more.
    gone: AtomicBool,
}

/// The connections of one neighbour.
#[derive(Debug, Default)]
struct Neighbour {
    /// All of them.
    connections: usize,
    /// Those that have shown no valid credential yet, the oldest first.
    standing: VecDeque<Arc<Seat>>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_source: HashMap<IpAddr, Neighbour>,
}

/// Counts connections; see [`Caps::admit`].
#[derive(Debug, Clone)]
pub struct Caps {
    total: usize,
    per_source: usize,
    counts: Arc<Mutex<Counts>>,
}

/// One connection's place. Dropping it gives the place back.
#[derive(Debug)]
pub struct Place(Arc<Seat>);

/// Who counts as one neighbour: an IPv4 address, or an IPv6 /64, which is what one host is given.
pub fn source_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[8..].fill(0);
            IpAddr::V6(octets.into())
        }
        v4 => v4,
    }
}

tokio::task_local! {
    static SEAT: Arc<Seat>;
}

/// The connection that is being served has shown a valid credential: it makes room for nobody any more.
pub fn credential_accepted() {
    let _ = SEAT.try_with(|seat| seat.sits_down());
}

impl Caps {
    /// At most `total` connections, at most `per_source` of one neighbour.
    pub fn new(total: usize, per_source: usize) -> Self {
        Self { total, per_source, counts: Arc::default() }
    }

    /// A place for a connection from `ip`. When all are taken, the connection that has stood there longest without a valid
    /// credential makes room: one of the same neighbour where that one has its share, else one of whoever has most. `None`
    /// when nobody stands.
    pub fn admit(&self, ip: IpAddr) -> Option<Place> {
        let source = source_of(ip);
        let mut counts = lock(&self.counts);
        let mine = counts.by_source.get(&source).map_or(0, |neighbour| neighbour.connections);
        if mine >= self.per_source {
            counts.make_room(source)?;
        } else if counts.total >= self.total {
            let most = counts.by_source.iter().max_by_key(|(_, neighbour)| neighbour.standing.len());
            let most = most.map(|(source, _)| *source)?;
            counts.make_room(most)?;
        }
        let seat =
            Arc::new(Seat { source, counts: self.counts.clone(), taken: Notify::new(), gone: AtomicBool::new(false) });
        counts.total += 1;
        let neighbour = counts.by_source.entry(source).or_default();
        neighbour.connections += 1;
        neighbour.standing.push_back(seat.clone());
        Some(Place(seat))
    }
}

impl Counts {
    /// The oldest that stands is shown the door; its place is free at once.
    fn make_room(&mut self, source: IpAddr) -> Option<()> {
        let seat = self.by_source.get_mut(&source)?.standing.pop_front()?;
        seat.gone.store(true, Ordering::Relaxed);
        self.free(source);
        seat.taken.notify_one();
        Some(())
    }

    fn free(&mut self, source: IpAddr) {
        self.total -= 1;
        if let Some(neighbour) = self.by_source.get_mut(&source) {
            neighbour.connections -= 1;
            if neighbour.connections == 0 {
                self.by_source.remove(&source);
            }
        }
    }
}

impl Seat {
    fn sits_down(self: &Arc<Self>) {
        if let Some(neighbour) = lock(&self.counts).by_source.get_mut(&self.source) {
            neighbour.standing.retain(|other| !Arc::ptr_eq(self, other));
        }
    }
}

impl Place {
    /// Serves the connection in this place until it ends, or until its place is given to somebody else.
    pub async fn hold(self, serve: impl Future<Output = ()>) {
        let seat = self.0.clone();
        tokio::select! {
            () = SEAT.scope(seat.clone(), serve) => {}
            () = seat.taken.notified() => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let seat = &self.0;
        seat.sits_down();
        let mut counts = lock(&seat.counts);
        if !seat.gone.load(Ordering::Relaxed) {
            counts.free(seat.source);
        }
    }
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The place of a connection that has shown a credential.
    fn known(caps: &Caps, from: &str) -> Place {
        let place = caps.admit(ip(from)).unwrap();
        place.0.sits_down();
        place
    }

    fn is_taken(place: &Place) -> bool {
        place.0.gone.load(Ordering::Relaxed)
    }

    #[test]
    fn who_stands_longest_makes_room() {
        let caps = Caps::new(5, 3);
        let mut of_one: Vec<Place> = (0..3).map(|_| caps.admit(ip("192.0.2.1")).unwrap()).collect();
        of_one[0].0.sits_down();
        // Its share is used up: the oldest of its own that has no credential.
        of_one.push(caps.admit(ip("192.0.2.1")).unwrap());
        assert_eq!(of_one.iter().map(is_taken).collect::<Vec<_>>(), [false, true, false, false]);
        // All places are: the oldest of whoever has most.
        let _others: Vec<Place> = (2..4).map(|n| caps.admit(ip(&format!("192.0.2.{n}"))).unwrap()).collect();
        let _last = caps.admit(ip("192.0.2.9")).unwrap();
        assert_eq!(of_one.iter().map(is_taken).collect::<Vec<_>>(), [false, true, true, false]);
        drop((of_one, _others, _last));
        let counts = caps.counts.lock().unwrap();
        assert!(counts.total == 0 && counts.by_source.is_empty(), "{counts:?}");
    }

    #[test]
    fn a_neighbour_is_an_ipv4_address_or_an_ipv6_64() {
        let caps = Caps::new(100, 2);
        let first = known(&caps, "192.0.2.1");
        let _mapped = known(&caps, "::ffff:192.0.2.1");
        assert!(caps.admit(ip("192.0.2.1")).is_none());
        let _other = caps.admit(ip("192.0.2.2")).unwrap();
        drop(first);
        let _again = caps.admit(ip("192.0.2.1")).unwrap();

        let _a = known(&caps, "2001:db8:0:1::1");
        let _b = known(&caps, "2001:db8:0:1:ffff::2");
        assert!(caps.admit(ip("2001:db8:0:1:aaaa::3")).is_none());
        assert!(caps.admit(ip("2001:db8:0:2::1")).is_some());
    }

    #[test]
    fn the_total_holds_and_nothing_is_left_behind() {
        let caps = Caps::new(2, 2);
        let places: Vec<_> = ["192.0.2.1", "192.0.2.2"].into_iter().map(|a| known(&caps, a)).collect();
        assert!(caps.admit(ip("192.0.2.3")).is_none());
        drop(places);
        let counts = caps.counts.lock().unwrap();
        assert!(counts.total == 0 && counts.by_source.is_empty());
    }
}
