//! What a transfer is asked to do, and what it says when it has ended. Owned by the engine; `control` and `cli` fill
//! and read these.

use super::limiter::Evidence;
use super::probe::ProbeSpec;
use super::rows::Rows;
pub use crate::checksum::{ChecksumKind, Expected};
use crate::digest::Digest;
use crate::ids::{SessionId, TicketId, TransferId};
pub use crate::profile::{Collector, Marking, Priority, ProfileUse, Steer, Timetable, Tuning};
use crate::relpath::RelPath;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

/// How far the destination proves a file before it tells anyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Digests matched on receipt, data synced under its final name: the verdict is DURABLE.
    #[default]
    Wire,
    /// In addition read back from the medium after the sync: VERIFIED.
    Disk,
}

/// What to do when a final name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum IfExists {
    /// Skip what is proved equal, fail on the rest.
    #[default]
    Prove,
    /// Any existing file is an error, but for what this very command has published before.
    Error,
    /// Leave existing files as they are.
    Skip,
    /// Replace by rename over it.
    Replace,
}

/// Which metadata is set at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preserve {
    /// Permission bits under mask 0777.
    pub mode: bool,
    /// Modification times.
    pub times: bool,
    /// Setuid, setgid and sticky too.
    pub special: bool,
}

impl Default for Preserve {
    fn default() -> Self {
        Self { mode: true, times: true, special: false }
    }
}

/// The part of a transfer that either end may be asked for. The stricter side wins where both have a say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransferOptions {
    /// Data streams; `None` lets the engine choose.
    pub streams: Option<u16>,
    /// Block in bytes, a power of two, 64 KiB to 1 MiB.
    pub block: u32,
    /// TCP congestion controls by their kernel names, in order of preference, with commas between.
    pub congestion: Option<String>,
    /// Socket buffers in bytes; `None` is kernel autotuning (1 MiB below 1 ms RTT).
    pub window: Option<u64>,
    /// Cap in bits per second over all streams.
    pub rate: Option<u64>,
    /// DURABLE or VERIFIED.
    pub verify: Verify,
    /// What the file must be (one regular file only).
    pub expect: Option<Expected>,
    /// Metadata.
    pub preserve: Preserve,
    /// `None`: the default, on. Off only if both ends say off.
    pub encrypt: Option<bool>,
    /// Existing names.
    pub if_exists: IfExists,
    /// Say what would be done, change nothing.
    pub dry_run: bool,
    /// Checksums to compute for every file beside the digest.
    pub checksums: Vec<ChecksumKind>,
    /// The SRC was given with `-r`: directories are allowed.
    pub recursive: bool,
    /// Read and write through the page cache, with O_DIRECT, by `sendfile`, or as probed.
    pub io: IoChoice,
    /// What else is set on sockets and claims.
    #[serde(skip_serializing_if = "Tuning::is_empty")]
    pub tuning: Tuning,
    /// Whether what nobody has set is tuned while the transfer runs.
    #[serde(skip_serializing_if = "is_true")]
    pub tuner: bool,
    /// The profile that has filled in what nobody said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<ProfileUse>,
    /// This end's address to dial from. It means nothing to the other end and is not told.
    #[serde(skip)]
    pub bind: Option<IpAddr>,
    /// Whom this end tells of tagged streams. Not told to the other end.
    #[serde(skip)]
    pub collectors: Vec<Collector>,
    /// What the operator of this end lets through at most, bits per second, whoever asks for more. Not told.
    #[serde(skip)]
    pub ceiling: Option<u64>,
    /// The day's caps at this end. Not told.
    #[serde(skip)]
    pub timetable: Option<Timetable>,
}

fn is_true(on: &bool) -> bool {
    *on
}

impl Default for TransferOptions {
    fn default() -> Self {
        Self {
            streams: None,
            block: crate::limits::DEFAULT_BLOCK,
            congestion: None,
            window: None,
            rate: None,
            verify: Verify::Wire,
            expect: None,
            preserve: Preserve::default(),
            encrypt: None,
            if_exists: IfExists::Prove,
            dry_run: false,
            checksums: Vec::new(),
            recursive: false,
            io: IoChoice::Auto,
            tuning: Tuning::default(),
            tuner: true,
            profile: None,
            bind: None,
            collectors: Vec::new(),
            ceiling: None,
            timetable: None,
        }
    }
}

/// How files are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum IoChoice {
    /// By file system, size and page-cache state, probed.
    #[default]
    Auto,
    /// Plain buffered.
    Buffered,
    /// `RWF_DONTCACHE` where the kernel has it.
    DontCache,
    /// O_DIRECT.
    Direct,
    /// Buffered, and what is not encrypted goes from the page cache to the socket (`sendfile`); written as `Auto`.
    Splice,
}

/// Which queue the workers use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// io_uring where it works, else epoll.
    #[default]
    Auto,
    /// io_uring or refuse.
    Uring,
    /// Blocking calls under epoll.
    Epoll,
}

/// Which ends of an engine touch no storage, so that a bench measures the rest of the way and may move more than memory or
/// disk hold. A synthetic source makes up the bytes of the files that it serves, whatever they hold; a synthetic destination
/// verifies what arrives and drops it: no final name appears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Synthetic {
    /// Neither: files are read and written.
    #[default]
    Off,
    /// What is sent from here is made up.
    Source,
    /// What arrives here is dropped.
    Destination,
    /// Both.
    Both,
}

impl Synthetic {
    /// Whether what is sent from here is made up.
    pub fn source(self) -> bool {
        matches!(self, Self::Source | Self::Both)
    }

    /// Whether what arrives here is dropped.
    pub fn destination(self) -> bool {
        matches!(self, Self::Destination | Self::Both)
    }
}

/// What a ticket allows, decided by control when it issues one.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Whose token it was.
    pub principal: String,
    /// Read: the holder's destination fetches from here. Write: the holder's source uploads to here.
    pub access: Access,
    /// Seconds it can open a session.
    pub ttl_secs: u64,
}

/// The two directions of a [`Grant`].
#[derive(Debug, Clone)]
pub enum Access {
    /// The agent is the source of these roots.
    Read(SourceSpec),
    /// The agent is the destination.
    Write(DestinationSpec),
    /// Bytes that mean nothing, to measure the path.
    Probe(ProbeSpec),
}

/// A credential that opens one session. The key is secret: never in a log, URL or argv.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Public name.
    pub id: TicketId,
    /// 32 secret bytes, hex.
    pub key: Secret,
    /// Data addresses to try in order.
    pub data: Vec<SocketAddr>,
    /// The issuing agent's identity: part of the transfer id.
    pub agent: crate::ids::AgentId,
    /// Unix seconds after which it opens nothing, as the issuer's wall clock was when it made it. For people: the issuer goes
    /// by its monotonic clock.
    pub expires: u64,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket({}, {:?})", self.id, self.data)
    }
}

/// 32 bytes that never show in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let mut key = [0; 32];
        hex::decode_to_slice(String::deserialize(d)?, &mut key)
            .map_err(|_| serde::de::Error::custom("not 64 hex digits"))?;
        Ok(Self(key))
    }
}

/// The source end: what may be read.
#[derive(Debug, Clone)]
pub struct SourceSpec {
    /// A directory that is never left (an agent's `--root`; `/` for a local `cp`).
    pub base: PathBuf,
    /// The offered trees or files, below `base`. The last component is the name they have below a directory DST.
    pub roots: Vec<RelPath>,
    /// Whether directories may be offered (`-r`).
    pub recursive: bool,
    /// This end's wish; off only if both ends say off.
    pub encrypt: Option<bool>,
    /// Takes every name, with the digests that the destination tells.
    pub rows: Option<Arc<Rows>>,
}

/// The destination end: where it goes and how.
#[derive(Debug, Clone)]
pub struct DestinationSpec {
    /// A directory that is never left (an agent's `--root`; `/` for a local `cp`).
    pub base: PathBuf,
    /// DST below `base`.
    pub path: RelPath,
    /// `true`: one SRC becomes DST. `false`: every SRC goes below DST under its own name.
    pub becomes: bool,
    /// How.
    pub options: TransferOptions,
    /// Takes every name and its digest.
    pub rows: Option<Arc<Rows>>,
}

/// One finished transfer, as people and scripts read it. Integers are bytes, bits per second and nanoseconds.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
pub struct Report {
    /// The transfer.
    pub transfer: Option<TransferId>,
    /// The last session of it.
    pub session: Option<SessionId>,
    /// `DURABLE`, `VERIFIED`, `PARTIAL`, `FAILED` or, for `--dry-run`, `PLANNED`.
    pub verdict: Verdict,
    /// Bytes of files that reached the verdict in this run, skipped ones not counted.
    pub bytes: u64,
    /// Files that did.
    pub files: u64,
    /// Directories made or found.
    pub directories: u64,
    /// Symlinks made or found.
    pub symlinks: u64,
    /// Files that were there already and proved equal (or left, with `skip`).
    pub skipped_files: u64,
    /// Their bytes.
    pub skipped_bytes: u64,
    /// Bytes that an earlier, interrupted run had made durable.
    pub resumed_bytes: u64,
    /// Bytes of holes that were not sent.
    pub hole_bytes: u64,
    /// Payload bytes that arrived in this run.
    pub received_bytes: u64,
    /// Payload bytes that the source sent in this run, counted by the source; 0 when it did not say.
    pub sent_bytes: u64,
    /// Payload bytes that arrived more than once in this run (failed chunks, duplicates).
    pub resent_bytes: u64,
    /// Chunks whose digest or tag did not match and that were fetched again.
    pub failed_chunks: u64,
    /// From the command to the verdict.
    pub duration_ns: u64,
    /// `bytes` by `duration_ns`.
    pub bits_per_second: u64,
    /// Data streams.
    pub streams: u16,
    /// Streams that died and were replaced.
    pub reconnects: u64,
    /// Whether the payload was encrypted.
    pub encrypted: bool,
    /// `wire` or `disk`.
    pub verify: Verify,
    /// Whether every file reached its verdict.
    pub verified: bool,
    /// Whether the destination's storage survives a power cut; `false` on tmpfs.
    pub durable: bool,
    /// The destination was synthetic, see [`Synthetic`]: what arrived was verified and thrown away, no file is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
    /// Queue of each end, `io_uring` or `epoll`.
    pub engine: Ends<String>,
    /// The CPUs that each end's threads keep to and where its buffers lie, as `0-3,8: one for each of 2 workers; buffers on
    /// NUMA node 0`; empty where nothing is bound.
    #[serde(default)]
    pub cpus: Ends<String>,
    /// How files were read and written.
    pub io: Ends<String>,
    /// The tuning profile in use; `default (near)` or `default (far)` without.
    pub profile: String,
    /// Why that one.
    #[serde(default)]
    pub profile_why: String,
    /// Whether its values were tried on such a link; of the defaults nothing is said.
    pub profile_measured: Option<bool>,
    /// What held the transfer back most, in a word.
    pub limiter: String,
    /// Shares of time behind `limiter`, as fractions of one.
    pub limiter_shares: std::collections::BTreeMap<String, f64>,
    /// What the shares are made of.
    pub evidence: Option<Evidence>,
    /// The evidence in words, and what to change.
    #[serde(default)]
    pub explanation: Vec<String>,
    /// CPU time of each end during the transfer. One process with both ends counts it once, under `destination`.
    pub cpu_ns: Ends<u64>,
    /// Chunk latency at the destination, from Want to verified.
    pub chunk_latency_ns: Latency,
    /// File digest, when the transfer was one file.
    pub digest: Option<Digest>,
    /// Checksums of that one file.
    pub checksums: Vec<Expected>,
    /// What did not arrive, and why; at most the first 1,000.
    pub failures: Vec<Failure>,
    /// How many failures there were.
    pub failed_files: u64,
    /// FIFOs, sockets and devices that were left out.
    pub special_files: u64,
    /// Everything that was not as asked: fallbacks, clamped windows, plain HTTP, encryption off.
    pub notes: Vec<String>,
    /// Class of the error that ended it, if one did.
    pub error_class: Option<String>,
    /// That error, in words.
    pub error: Option<String>,
}

/// A value for each end.
#[derive(Debug, Clone, Serialize, Deserialize, Default, PartialEq, Eq)]
pub struct Ends<T> {
    /// At the source.
    pub source: T,
    /// At the destination.
    pub destination: T,
}

/// Percentiles in nanoseconds, of a histogram that keeps three digits.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, Default, PartialEq, Eq)]
#[serde(default)]
pub struct Latency {
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Largest.
    pub max: u64,
    /// Mean.
    pub mean: u64,
    /// How many were counted.
    pub count: u64,
}

impl Latency {
    /// An empty histogram for what is told as this: 1 µs to an hour.
    pub fn histogram() -> Histogram<u64> {
        Histogram::new_with_bounds(LATENCY_MIN_NS, LATENCY_MAX_NS, 3).expect("bounds are constants")
    }

    /// Counts one, in ns.
    pub fn record(histogram: &mut Histogram<u64>, ns: u64) {
        let _ = histogram.record(ns.clamp(LATENCY_MIN_NS, LATENCY_MAX_NS));
    }

    /// What a histogram says.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
            mean: histogram.mean() as u64,
            count: histogram.len(),
        }
    }
}

/// The least latency that is told apart, ns.
const LATENCY_MIN_NS: u64 = 1_000;
/// The longest: an hour, in ns.
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;

/// How a transfer ended.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, Default, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Every file is DURABLE.
    Durable,
    /// Every file is VERIFIED.
    Verified,
    /// Some are, the rest is listed.
    Partial,
    /// Nothing can be promised.
    #[default]
    Failed,
    /// `--dry-run`.
    Planned,
}

/// One name that did not arrive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// The name, escaped.
    pub path: String,
    /// `retry`, `reconnect`, `other-source`, `permanent` or `poisoned`.
    pub class: String,
    /// What happened and what to do.
    pub reason: String,
}

/// The phase of a transfer that moves bytes.
pub const MOVING: &str = "moving";

/// A running transfer, as progress bars and `/v1/transfers` show it.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
pub struct Snapshot {
    /// Bytes placed so far in this run.
    pub bytes: u64,
    /// Bytes known to move so far (grows while the source scans).
    pub total_bytes: u64,
    /// Files finished.
    pub files: u64,
    /// Files known so far.
    pub total_files: u64,
    /// Whether the totals are final.
    pub scanned: bool,
    /// Data streams alive.
    pub streams: u16,
    /// The cap in force, bits per second over all streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Against other transfers of this agent.
    #[serde(default)]
    pub priority: Priority,
    /// What it is doing, in a word: `connecting`, `moving`, `publishing`, `done`.
    pub phase: String,
    /// What held it back in the last second or so, as in a report; empty until that is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub limiter: String,
    /// Shares of that time behind `limiter`, as fractions of one.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub limiter_shares: std::collections::BTreeMap<String, f64>,
}
