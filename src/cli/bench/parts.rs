//! What was measured of each part, and which part holds the whole back. Pure.

use crate::cli::picture::Samples;
use crate::engine::bench::Measured;
use crate::engine::spec::Latency;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};

/// A part of a transfer, or all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Digests alone, one thread.
    Digest,
    /// The cipher alone, one thread.
    Cipher,
    /// What a worker does to a block, in one thread.
    Block,
    /// The same, in as many threads as a transfer has.
    Blocks,
    /// Storage is written.
    DiskWrite,
    /// Storage is read.
    DiskRead,
    /// Bytes without meaning over the path.
    Network,
    /// A transfer.
    Whole,
}

impl Kind {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Digest => "digest, a thread",
            Self::Cipher => "cipher, a thread",
            Self::Block => "both, a thread",
            Self::Blocks => "digest and cipher",
            Self::DiskWrite => "disk write",
            Self::DiskRead => "disk read",
            Self::Network => "network",
            Self::Whole => "end to end",
        }
    }

    /// Its name in documents.
    pub fn word(self) -> &'static str {
        match self {
            Self::Digest => "digest",
            Self::Cipher => "cipher",
            Self::Block => "digest_and_cipher_thread",
            Self::Blocks => "digest_and_cipher",
            Self::DiskWrite => "disk_write",
            Self::DiskRead => "disk_read",
            Self::Network => "network",
            Self::Whole => "end_to_end",
        }
    }
}

/// CPU time of this process, ns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    /// In the program.
    pub user: u64,
    /// In the kernel, on its behalf.
    pub system: u64,
}

impl Cpu {
    /// So far.
    pub fn now() -> Self {
        let ns = |time: nix::sys::time::TimeVal| time.tv_sec() as u64 * 1_000_000_000 + time.tv_usec() as u64 * 1_000;
        getrusage(UsageWho::RUSAGE_SELF)
            .map_or(Self::default(), |usage| Self { user: ns(usage.user_time()), system: ns(usage.system_time()) })
    }

    /// Since an earlier look.
    pub fn since(before: Self) -> Self {
        let now = Self::now();
        Self { user: now.user.saturating_sub(before.user), system: now.system.saturating_sub(before.system) }
    }
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Which.
    pub kind: Kind,
    /// Bits per second.
    pub rate: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// In so long, ns.
    pub duration_ns: u64,
    /// CPU time of this process meanwhile.
    pub cpu: Cpu,
    /// CPU time of the other end meanwhile, ns; 0: not known.
    pub peer_cpu_ns: u64,
    /// µs since the part's start, bytes since the sample before.
    pub samples: Vec<(u64, u64)>,
    /// Of a block, or of a chunk of the whole.
    pub latency: Option<Latency>,
    /// In words.
    pub how: String,
    /// Whether the transfer needs it, so that it may be what holds the transfer back.
    pub needed: bool,
    /// What was not as asked.
    pub notes: Vec<String>,
}

impl Part {
    /// Of the engine's own measurement.
    pub fn of(kind: Kind, measured: Measured, cpu: Cpu, needed: bool) -> Self {
        let threads =
            if measured.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", measured.threads) };
        let synced = match measured.sync_ns {
            0 => String::new(),
            ns => format!(" ({:.0} % of the time)", ns as f64 / measured.wall_ns.max(1) as f64 * 100.0),
        };
        Self {
            kind,
            rate: measured.rate(),
            bytes: measured.bytes,
            duration_ns: measured.wall_ns,
            cpu,
            peer_cpu_ns: 0,
            how: format!("{}{synced}, {threads}", measured.how),
            samples: measured.samples,
            latency: (measured.latency.count > 0).then_some(measured.latency),
            needed,
            notes: Vec::new(),
        }
    }

    /// For the `longhaul` object of the document.
    pub fn json(&self) -> Value {
        json!({
            "part": self.kind.word(), "bits_per_second": self.rate, "bytes": self.bytes, "duration_ns": self.duration_ns,
            "cpu_ns": { "user": self.cpu.user, "system": self.cpu.system, "peer": self.peer_cpu_ns },
            "latency_ns": self.latency, "how": self.how, "needed": self.needed, "notes": self.notes,
        })
    }
}

/// The slowest part that the transfer needs; never the whole itself.
pub fn bottleneck(parts: &[Part]) -> Option<&Part> {
    parts.iter().filter(|part| part.needed && part.kind != Kind::Whole).min_by_key(|part| part.rate)
}

/// The rate of the whole as a share of its slowest part's.
pub fn share(parts: &[Part]) -> Option<f64> {
    let whole = parts.iter().find(|part| part.kind == Kind::Whole)?;
    let slowest = bottleneck(parts)?;
    (slowest.rate > 0).then(|| whole.rate as f64 / slowest.rate as f64)
}

/// The part that the iperf3 keys of the document are about: the network's if it was measured, else the whole, else the last.
pub fn headline(parts: &[Part]) -> Option<&Part> {
    let of = |kind| parts.iter().find(|part| part.kind == kind);
    of(Kind::Network).or_else(|| of(Kind::Whole)).or(parts.last())
}

/// Samples joined to intervals of at least `interval_us`: start and end in µs, and the bytes of each. A rest that is shorter
/// than half an interval joins the one before.
pub fn intervals(samples: &Samples, interval_us: u64) -> Vec<(u64, u64, std::ops::Range<usize>)> {
    let mut out: Vec<(u64, u64, std::ops::Range<usize>)> = Vec::new();
    let (mut start, mut first) = (0, 0);
    for (index, (at, _)) in samples.iter().enumerate() {
        // Samples come a little late, never early: one that is nearly there is the one that is meant.
        let near = interval_us - interval_us / 20;
        let last = index + 1 == samples.len();
        if at - start >= near {
            out.push((start, *at, first..index + 1));
        } else if last {
            match out.last_mut() {
                Some(before) if at - start < interval_us / 2 => (before.1, before.2.end) = (*at, index + 1),
                _ => out.push((start, *at, first..index + 1)),
            }
        } else {
            continue;
        }
        (start, first) = (*at, index + 1);
    }
    out
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A part of a second.
    pub fn part(kind: Kind, rate: u64) -> Part {
        Part {
            kind,
            rate,
            bytes: rate / 8,
            duration_ns: 1_000_000_000,
            cpu: Cpu { user: 200_000_000, system: 300_000_000 },
            peer_cpu_ns: 0,
            samples: (1..=10).map(|n| (n * 100_000, rate / 80)).collect(),
            latency: None,
            how: "somehow".to_owned(),
            needed: true,
            notes: Vec::new(),
        }
    }

    #[test]
    fn the_slowest_needed_part_is_the_bottleneck() {
        let mut parts = vec![
            part(Kind::Blocks, 40_000),
            part(Kind::DiskRead, 5_000),
            part(Kind::Network, 10_000),
            part(Kind::Whole, 4_000),
        ];
        assert_eq!(bottleneck(&parts).unwrap().kind, Kind::DiskRead);
        assert_eq!(share(&parts), Some(0.8));
        // A source in memory reads no disk.
        parts[1].needed = false;
        assert_eq!((bottleneck(&parts).unwrap().kind, share(&parts)), (Kind::Network, Some(0.4)));
        assert_eq!(headline(&parts).unwrap().kind, Kind::Network);
        assert_eq!(headline(&parts[..2]).unwrap().kind, Kind::DiskRead);
        assert_eq!((bottleneck(&parts[3..]), share(&parts[3..])), (None, None));
    }

    #[test]
    fn intervals_cover_every_sample_once() {
        let samples: Vec<(u64, u64)> = (1..=25).map(|n| (n * 100_500, n)).collect();
        let found = intervals(&samples, 1_000_000);
        let spans: Vec<_> = found.iter().map(|(_, _, range)| range.clone()).collect();
        assert_eq!(spans, [0..10, 10..20, 20..25]);
        assert_eq!((found[0].0, found[0].1, found[2].0), (0, 1_005_000, 2_010_000));
        // A rest of less than half an interval is none of its own.
        let found = intervals(&samples[..23], 1_000_000);
        assert_eq!(found.last().unwrap().2, 10..23);
        assert_eq!(intervals(&samples[..3], 1_000_000).len(), 1, "shorter than one interval");
        assert_eq!(intervals(&[], 1_000_000), []);
    }
}
