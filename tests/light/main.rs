//! What the service costs. In a binary of its own, since tests beside it would be measured too.

#[path = "../support/mod.rs"]
mod support;

#[path = "../service/http.rs"]
#[allow(dead_code)]
mod http;

mod idle;
mod load;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The long form of a test: the sizes of the promise itself.
fn long() -> bool {
    std::env::var_os("LONGHAUL_LONG").is_some()
}

/// What a bare thread costs for each time that it wakes, sees what time it is and sleeps again, ns of CPU: the mean
/// for as long as `over` is not set. Some virtual machines charge a sleeper a millisecond for waking up, whoever it is.
fn bare_wake(over: &std::sync::atomic::AtomicBool) -> f64 {
    let used = || -> (f64, f64) {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        let numbers: Vec<f64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
        (numbers[0], numbers[2])
    };
    let before = used();
    while !over.load(std::sync::atomic::Ordering::Relaxed) {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let after = used();
    (after.0 - before.0) / (after.1 - before.1).max(1.0)
}

/// One measurement at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
