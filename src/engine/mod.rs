//! The engine: sessions, claims, commit and the workers.
//!
//! - [`handle`] bridge 1: commands in, snapshots and reports out; [`spec`] what they say; [`error`] what goes wrong
//! - [`coordinator`] the thread on which everything below runs; [`pool`] threads for calls that block
//! - [`session`] connections through their handshake, a session's streams; [`conn`] one connection; [`channel`] the control stream
//! - [`source`] the end that answers; [`destination`] the end that drives
//! - [`plan`], [`claims`] pure: what is missing, who is asked for it; [`commit`] what makes it durable
//! - [`probe`] bytes that mean nothing, to measure a path
//! - [`limiter`] pure: what held a transfer back, from what both ends saw
//! - [`tuning`] what options and profiles mean for sockets
//! - [`rows`] names and digests of a transfer, for its manifest
//! - [`worker`] bridge 2 and the threads that move bytes

pub mod backoff;
pub mod channel;
pub mod claims;
pub mod commit;
pub mod conn;
mod connections;
pub mod coordinator;
mod crowd;
pub mod destination;
pub mod error;
pub mod handle;
pub mod limiter;
pub mod plan;
pub mod pool;
pub mod probe;
pub mod rows;
pub mod session;
pub mod source;
pub mod spec;
pub mod sums;
pub mod tuning;
pub mod worker;
