//! Peers that speak the protocol wrongly on purpose, in both roles, against real agents and commands. After each the
//! agent has to serve an honest copy, to have kept its memory, and to have touched nothing outside its root.
//!
//! `LONGHAUL_LONG=1` runs the counts of the promise; `LONGHAUL_SEED` repeats a run.

#[path = "../support/mod.rs"]
mod support;
#[path = "../support/tickets.rs"]
mod tickets;

#[path = "../support/random.rs"]
mod random;
#[path = "../fuzz/samples.rs"]
mod samples;

mod chunks;
mod crowds;
mod epochs;
mod flips;
mod handshakes;
mod listeners;
mod manifests;
mod names;
mod noise;
mod peer;
mod stage;
mod wants;

use random::Random;

/// The counts of the promise, or those that CI has time for.
fn count(ci: u64, long: u64) -> u64 {
    if std::env::var_os("LONGHAUL_LONG").is_some() { long } else { ci }
}
