//! The engine: sessions, claims, commit and the workers.
//!
//! - [`handle`] bridge 1: commands in, snapshots and reports out; [`spec`] what they say; [`error`] what goes wrong
//! - [`coordinator`] the thread on which everything below runs; [`pool`] threads for calls that block
//! - [`session`] connections through their handshake; [`links`] the data streams of a session; [`conn`] one connection;
//!   [`channel`] the control stream
//! - [`source`] the end that answers; [`destination`] the end that drives; [`fence`] which destinations are out of date
//! - [`plan`], [`claims`] pure: what is missing, who is asked for it; [`commit`] what makes it durable
//! - [`probe`] bytes that mean nothing, to measure a path; [`mod@bench`] digest, cipher and storage by themselves
//! - [`limiter`] pure: what held a transfer back, from what both ends saw
//! - [`cpus`] where the threads run and their buffers lie
//! - [`tuning`] what options and profiles mean for sockets
//! - [`rows`] names and digests of a transfer, for its manifest
//! - [`worker`] bridge 2 and the threads that move bytes

mod ahead;
pub mod backoff;
pub mod bench;
pub mod channel;
pub mod claims;
pub mod commit;
pub mod conn;
mod connections;
pub mod coordinator;
pub mod cpus;
mod crowd;
pub mod destination;
mod dialler;
pub mod error;
pub mod fence;
pub mod fireflies;
pub mod handle;
pub mod limiter;
pub mod links;
pub mod plan;
pub mod pool;
pub mod probe;
pub mod rows;
pub mod session;
pub mod source;
pub mod spec;
pub mod sums;
pub mod tuner;
pub mod tuning;
pub mod worker;

pub use crate::disk::names::is_reserved_name;

/// Removes what a transfer left that will not go on: of one into the directory `home` below `base`, its part files there and its
/// journal. One that lives is left alone. Blocks. `false`: something of it is still there.
pub fn forget(base: &std::path::Path, home: &crate::relpath::RelPath, transfer: &crate::ids::TransferId) -> bool {
    let Ok(root) = crate::disk::Root::open(base) else { return false };
    crate::disk::clean::forget(&root, home, transfer).unwrap_or_else(|error| {
        tracing::warn!(%error, %transfer, "what a transfer left could not be removed");
        false
    })
}
