//! What one end tells of where its time went.

use serde::{Deserialize, Serialize};

/// One end's view. Times in ns, sums over `streams` or `workers`, since the session began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EndView {
    /// How long the end has looked.
    pub wall_ns: u64,
    /// Data streams.
    pub streams: u64,
    /// Workers.
    pub workers: u64,
    /// CPU time of the workers.
    pub cpu_ns: u64,
    /// Time in which workers could have run and had no core.
    pub delay_ns: u64,
    /// Time in which streams had nothing asked of them.
    pub idle_ns: u64,
    /// Time in which streams waited for the disk: reads at the source, room behind writes at the destination.
    pub disk_ns: u64,
    /// Source: time in which streams had a block on its way into the socket.
    pub send_ns: u64,
    /// Destination: time in which nothing was asked because too much was not yet durable.
    pub held_back_ns: u64,
}

/// What the sender's kernel says about its data connections. Sums over streams.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SenderView {
    /// Time with data sent and not acknowledged, or waiting to be sent, µs.
    pub busy_us: u64,
    /// Of it, time in which the receiver's window was full, µs.
    pub rwnd_limited_us: u64,
    /// Of it, time in which the send buffer was full and all of it was sent, µs.
    pub sndbuf_limited_us: u64,
    /// Bytes sent, repeats included.
    pub bytes_sent: u64,
    /// Of them, bytes sent again.
    pub bytes_retransmitted: u64,
    /// Round trip, the mean over streams at the end, µs.
    pub rtt_us: u64,
    /// Least round trip of all streams, µs.
    pub min_rtt_us: u64,
    /// Largest segment, bytes.
    pub segment: u32,
    /// Congestion controls in force, with commas.
    pub congestion: String,
    /// Rate that each stream is paced to by request, bits per second; 0: none.
    pub paced: u64,
}

/// Both, as a source tells them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceView {
    /// Its streams and workers.
    pub end: EndView,
    /// Its connections.
    pub sender: SenderView,
}
