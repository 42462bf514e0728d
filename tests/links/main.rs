//! Long links of `scripts/lab.sh`: what they are, and what a transfer makes of them. In a binary of its own and one at a
//! time, since tests beside them would be part of the path.

#[path = "../faults/support.rs"]
#[allow(dead_code)]
mod support;

#[path = "../crash/images.rs"]
#[allow(dead_code)]
mod images;

mod beginning;
mod groups;
mod lab;
mod limiter;
mod site;
mod steps;
mod tuner;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One link at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
