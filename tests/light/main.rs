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

/// One measurement at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
