//! Longhaul moves data between data transfer nodes: verified, encrypted, resumable.
//!
//! # The map
//! Each layer names only what lies below it; `tests/architecture.rs` checks that on the source text.
//! ```text
//! cli ──> control ──> engine ──> net, disk, wire, journal ──> the vocabulary
//!                       └───────── net, disk ──> sys      cli ──> doctor ──> net, disk, sys
//! ```
//! - [`cli`] one file per command; the process's exit codes
//! - [`control`] HTTP port and its client, tickets, tokens, TLS, settings: work per request
//! - [`engine`] sessions, claims, commit, and the workers that move bytes
//! - [`net`] sockets: options set and then read back, dialling, listening
//! - [`disk`] scanning, confined paths, part files, publishing, locks
//! - [`wire`] handshake and frames: bytes in, values out, and the format in prose
//! - [`journal`] which chunks and files are durable: bytes in, values out, and the crash argument in prose
//! - [`doctor`] what of this host stands in the way of a long link: facts, and pure checks over them
//! - [`sys`] the only `unsafe`: rings, buffers the kernel writes into, system calls
//!
//! The vocabulary does no I/O and is free to all: [`clock`], [`units`], [`ids`], [`grid`] (the only chunk arithmetic), [`limits`]
//! (every bound), [`relpath`], [`digest`], [`checksum`], [`manifest`], [`config`],
//! [`profile`] (what a link is, and what is set on it).
//!
//! # Four domains of execution
//! 1. *Control*: tokio and axum, work per request.
//! 2. *Coordinator*: one thread on tokio-uring, work per batch ([`engine::coordinator`]).
//! 3. *Workers*: threads with a ring each, no locks, work per block ([`engine::worker`]).
//! 4. *File operations*: a bounded pool of plain threads ([`engine::pool`]).
//!
//! Between 1 and 2 stands [`engine::handle`], between 2 and 3 [`engine::worker::mailbox`].
//!
//! # The walk
//! What happens to a file, in the order in which it happens. The doc comment of each function begins `Walk n:`.
//! 1. [`cli::cp`]: what was asked for becomes the specs of both ends
//! 2. [`engine::handle::EngineHandle::pull`]: a spec becomes a transfer with a ticket
//! 3. [`engine::session::open`]: connections, handshake, version, limits
//! 4. [`engine::source`]: the scan, in manifest segments that are usable as they arrive
//! 5. [`engine::plan::decide`]: an entry less what the journal has, against what stands there
//! 6. [`engine::claims::ClaimTable::next_run`]: which chunks this stream is asked for next
//! 7. [`wire::data::encode_runs`]: a Want as bytes
//! 8. [`engine::worker::source`]: read, digest, seal, send
//! 9. [`engine::worker::destination`]: receive, open, place; at the chunk's end verify
//! 10. [`engine::commit::commit_batch`]: data synced, journal appended, journal synced: durable
//! 11. [`disk::publish`]: the final name
//! 12. [`engine::destination`]: progress and verdict
//!
//! # Words
//! *Chunk*: 4 MiB of a file, the unit of digest, journal and re-send. *Block*: one I/O inside a chunk. *Transfer*: the
//! execution of a copy. *Session*: two agents, one transfer, one epoch. *Stream*: one TCP connection. *Claim*: a run of
//! chunks asked of one stream. *Checkpoint*: the set of durable chunks; the *journal* is its file. *Ticket*: the
//! short-lived credential that opens a session. *Agent*: a daemon that serves a root.

#![warn(missing_docs)]

pub mod checksum;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod digest;
pub mod disk;
pub mod doctor;
pub mod engine;
pub mod grid;
pub mod ids;
pub mod journal;
pub mod limits;
pub mod manifest;
pub mod net;
pub mod profile;
pub mod relpath;
pub mod sys;
pub mod units;
pub mod wire;
