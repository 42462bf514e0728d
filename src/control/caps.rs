//! How many connections there may be, in total and of one neighbour, and who makes room when there are too many. Who has no
//! place is told so, as far as a few such farewells at once go.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Connections beyond the cap that are told so at once; of further ones, nobody hears anything.
const FAREWELLS: usize = 64;
/// How long one has for its request, to be told.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long, if it says nothing at all.
const SILENT: Duration = Duration::from_millis(100);

/// A connection as its [`Caps`] know it.
#[derive(Debug)]
struct Seat {
    source: IpAddr,
    counts: Arc<Mutex<Counts>>,
    /// Told once, when somebody else has been given this place.
    taken: Notify,
    /// Then it is counted no more.
    gone: AtomicBool,
    /// It has said something.
    spoke: AtomicBool,
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
    farewells: Arc<Semaphore>,
}

/// One connection's place. Dropping it gives the place back.
#[derive(Debug)]
pub struct Place {
    seat: Arc<Seat>,
    farewells: Arc<Semaphore>,
}

/// Leave to tell one connection that there is no place for it.
#[derive(Debug)]
pub struct Farewell {
    seat: Arc<Seat>,
    _one_of_few: OwnedSemaphorePermit,
}

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

/// The connection that is being served has shown a valid credential: it makes room for nobody any more. `false`: it has made
/// room already, and nothing may be done for it.
pub fn credential_accepted() -> bool {
    SEAT.try_with(|seat| seat.sits_down()).unwrap_or(true)
}

/// The connection that is being served has no place: all that it gets is word of that.
pub fn has_no_place() -> bool {
    SEAT.try_with(|seat| seat.gone.load(Ordering::Relaxed)).unwrap_or(false)
}

/// The connection that is being served has said something.
pub fn spoke() {
    let _ = SEAT.try_with(|seat| seat.spoke.store(true, Ordering::Relaxed));
}

impl Caps {
    /// At most `total` connections, at most `per_source` of one neighbour.
    pub fn new(total: usize, per_source: usize) -> Self {
        let farewells = Arc::new(Semaphore::new(FAREWELLS));
        Self { total, per_source, counts: Arc::default(), farewells }
    }

    /// Whether a newcomer from `ip` would cost somebody his place, or find none.
    pub fn is_full(&self, ip: IpAddr) -> bool {
        let counts = lock(&self.counts);
        let mine = counts.by_source.get(&source_of(ip)).map_or(0, |neighbour| neighbour.connections);
        mine >= self.per_source || counts.total >= self.total
    }

    /// For a connection that was not admitted; `None` when there are too many of those as well.
    pub fn turn_away(&self, ip: IpAddr) -> Option<Farewell> {
        let permit = self.farewells.clone().try_acquire_owned().ok()?;
        let seat = self.seat(source_of(ip));
        seat.gone.store(true, Ordering::Relaxed);
        Some(Farewell { seat, _one_of_few: permit })
    }

    fn seat(&self, source: IpAddr) -> Arc<Seat> {
        let (taken, gone, spoke) = (Notify::new(), AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Seat { source, counts: self.counts.clone(), taken, gone, spoke })
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
        let seat = self.seat(source);
        counts.total += 1;
        let neighbour = counts.by_source.entry(source).or_default();
        neighbour.connections += 1;
        neighbour.standing.push_back(seat.clone());
        Some(Place { seat, farewells: self.farewells.clone() })
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
    /// Whether it still had its place.
    fn sits_down(self: &Arc<Self>) -> bool {
        let mut counts = lock(&self.counts);
        if let Some(neighbour) = counts.by_source.get_mut(&self.source) {
            neighbour.standing.retain(|other| !Arc::ptr_eq(self, other));
        }
        // Taken away under the same lock.
        !self.gone.load(Ordering::Relaxed)
    }

    /// Serves what is left of a connection without a place.
    async fn see_off(&self, serve: impl Future<Output = ()>) {
        let silent = async {
            tokio::time::sleep(SILENT).await;
            if self.spoke.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = serve => {}
            () = silent => {}
            () = tokio::time::sleep(FAREWELL) => {}
        }
    }
}

impl Place {
    /// Serves the connection in this place until it ends. When its place is given to somebody else, it has a moment to hear of
    /// that (see [`has_no_place`]), if not too many have.
    pub async fn hold(self, serve: impl Future<Output = ()>) {
        let seat = self.seat.clone();
        let serve = SEAT.scope(seat.clone(), serve);
        tokio::pin!(serve);
        tokio::select! {
            () = &mut serve => return,
            () = seat.taken.notified() => {}
        }
        if let Ok(_farewell) = self.farewells.try_acquire() {
            seat.see_off(serve).await;
        }
    }
}

impl Farewell {
    /// Serves the connection for a moment, in which it hears that there is no place for it.
    pub async fn hold(self, serve: impl Future<Output = ()>) {
        self.seat.see_off(SEAT.scope(self.seat.clone(), serve)).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let seat = &self.seat;
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
        place.seat.sits_down();
        place
    }

    fn is_taken(place: &Place) -> bool {
        place.seat.gone.load(Ordering::Relaxed)
    }

    #[test]
    fn who_stands_longest_makes_room() {
        let caps = Caps::new(5, 3);
        let mut of_one: Vec<Place> = (0..3).map(|_| caps.admit(ip("192.0.2.1")).unwrap()).collect();
        assert!(of_one[0].seat.sits_down());
        // Its share is used up: the oldest of its own that has no credential.
        of_one.push(caps.admit(ip("192.0.2.1")).unwrap());
        assert_eq!(of_one.iter().map(is_taken).collect::<Vec<_>>(), [false, true, false, false]);
        assert!(!of_one[1].seat.sits_down(), "a credential that comes too late");
        // All places are: the oldest of whoever has most.
        let _others: Vec<Place> = (2..4).map(|n| caps.admit(ip(&format!("192.0.2.{n}"))).unwrap()).collect();
        let _last = caps.admit(ip("192.0.2.9")).unwrap();
        assert_eq!(of_one.iter().map(is_taken).collect::<Vec<_>>(), [false, true, true, false]);
        drop((of_one, _others, _last));
        let counts = caps.counts.lock().unwrap();
        assert!(counts.total == 0 && counts.by_source.is_empty(), "{counts:?}");
    }

    // Only with this feature does tokio's clock stand still.
    #[cfg(feature = "testing")]
    #[tokio::test(start_paused = true)]
    async fn who_has_no_place_is_told_for_a_moment_and_only_so_many_are() {
        let caps = Caps::new(1, 1);
        let served = |place: Place, speaks: bool| {
            tokio::spawn(async move {
                let began = tokio::time::Instant::now();
                let serve = async move {
                    if speaks {
                        spoke();
                    }
                    while !has_no_place() {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    std::future::pending::<()>().await;
                };
                place.hold(serve).await;
                began.elapsed()
            })
        };
        for (speaks, least, most) in [(false, SILENT, 2 * SILENT), (true, FAREWELL, FAREWELL + SILENT)] {
            let place = caps.admit(ip("192.0.2.1")).unwrap();
            let task = served(place, speaks);
            tokio::task::yield_now().await;
            let next = caps.admit(ip("192.0.2.1")).unwrap();
            let took = task.await.unwrap();
            assert!((least..most).contains(&took), "speaks: {speaks}, {took:?}");
            drop(next);
        }
        let all: Vec<Farewell> = (0..FAREWELLS).map(|_| caps.turn_away(ip("192.0.2.1")).unwrap()).collect();
        assert!(caps.turn_away(ip("192.0.2.1")).is_none());
        drop(all);
        assert!(caps.turn_away(ip("192.0.2.1")).is_some());
        assert_eq!(caps.counts.lock().unwrap().total, 0, "who was turned away was never counted");
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
