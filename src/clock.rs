//! Time, as engine and disk read it. One place, so that a test can put simulated time in its stead; in a build without
//! the feature `testing` these are the plain calls and nothing else.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic clock.
pub fn now() -> Instant {
    #[cfg(feature = "testing")]
    if let Some(now) = virtual_time::with(|clock| clock.now()) {
        return now;
    }
    Instant::now()
}

/// Time that has passed since `earlier`.
pub fn since(earlier: Instant) -> Duration {
    now().saturating_duration_since(earlier)
}

/// The wall clock, Unix time in seconds. It may jump, so it decides about nothing but the end of tokens, and texts.
pub fn unix_now() -> u64 {
    #[cfg(feature = "testing")]
    if let Some(now) = virtual_time::with(|clock| clock.unix()) {
        return now;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The same in microseconds, for texts.
pub fn unix_micros() -> u64 {
    #[cfg(feature = "testing")]
    if let Some(now) = virtual_time::with(|clock| clock.unix()) {
        return now.saturating_mul(1_000_000);
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

/// Blocks the calling thread for so long.
pub fn pause(time: Duration) {
    #[cfg(feature = "testing")]
    if virtual_time::with(|clock| clock.pause(time)).is_some() {
        return;
    }
    std::thread::sleep(time);
}

#[cfg(feature = "testing")]
pub use virtual_time::{VirtualClock, install};

#[cfg(feature = "testing")]
mod virtual_time {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::{Duration, Instant};

    /// A clock that a test winds.
    pub trait VirtualClock {
        /// The monotonic clock.
        fn now(&self) -> Instant;
        /// Unix time in seconds.
        fn unix(&self) -> u64;
        /// A thread that sleeps. Must not wait in earnest: everything runs in this thread.
        fn pause(&self, time: Duration);
    }

    thread_local! {
        static CLOCK: RefCell<Option<Rc<dyn VirtualClock>>> = const { RefCell::new(None) };
    }

    /// The clock of this thread from now on; `None`: the real one.
    pub fn install(clock: Option<Rc<dyn VirtualClock>>) {
        CLOCK.with(|slot| *slot.borrow_mut() = clock);
    }

    pub(super) fn with<T>(read: impl FnOnce(&dyn VirtualClock) -> T) -> Option<T> {
        let clock = CLOCK.with(|slot| slot.borrow().clone());
        clock.map(|clock| read(&*clock))
    }
}
