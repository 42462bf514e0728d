//! The service as it runs: main, sources and destinations as processes of their own, driven over HTTP as their clients drive
//! them, with real files, real transfers and real signals.

#[path = "../support/mod.rs"]
mod support;

#[path = "../service/http.rs"]
#[allow(dead_code)]
mod http;

mod fleet;
mod forerunner;
mod holds;
mod matrix;
mod push;
mod shared;
mod walk;

/// The long form of a test: the sizes of the promise itself.
fn long() -> bool {
    std::env::var_os("LONGHAUL_LONG").is_some()
}
