//! The parts of a transfer by themselves: what a thread digests and seals, what storage reads and writes, by the same code,
//! strategies and queues that a transfer uses. `cli::bench` puts them beside the network and the whole.

mod cpu;
mod disk;
mod made_up;

pub use cpu::{CpuSpec, Work, cpu};
pub use disk::{DiskSpec, read, write};
pub use made_up::synthetic_digest;

use super::spec::Latency;
use crate::disk::{DiskError, SourceError};
use crate::sys::process_cpu_time_ns;
use hdrhistogram::Histogram;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often moved bytes are counted.
const SAMPLE: Duration = Duration::from_millis(100);

/// Why a part could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The test file could not be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The file that is read could not be opened, or changed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The directory cannot be used.
    #[error("{dir}: {why}", dir = dir.display())]
    Directory {
        /// Which.
        dir: PathBuf,
        /// The kernel's word.
        why: String,
    },
    /// A read, a write, a queue or a thread.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The kernel's word.
        source: io::Error,
    },
    /// Less than a block: nothing to measure.
    #[error("a file of {size} bytes is too small: at least a block of {block}")]
    TooSmall {
        /// Of the file.
        size: u64,
        /// Of one I/O.
        block: u32,
    },
}

impl BenchError {
    fn io(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// What a part did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// Bytes.
    pub bytes: u64,
    /// How long it took, ns; for writes with the syncs.
    pub wall_ns: u64,
    /// CPU time of this process meanwhile, ns.
    pub cpu_ns: u64,
    /// Threads that did it.
    pub threads: usize,
    /// What was moved by when: µs since the start, bytes since the sample before.
    pub samples: Vec<(u64, u64)>,
    /// Of one block, from its submission to its completion.
    pub latency: Latency,
    /// How, in words.
    pub how: String,
    /// Time in syncs, ns; writes alone have them.
    pub sync_ns: u64,
}

impl Measured {
    /// Bits per second.
    pub fn rate(&self) -> u64 {
        (u128::from(self.bytes) * 8_000_000_000 / u128::from(self.wall_ns.max(1))) as u64
    }
}

/// What threads count while they work.
struct Meter {
    moved: AtomicU64,
    until: Instant,
}

impl Meter {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    fn add(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What the work of a part leaves for its [`Measured`].
#[derive(Default)]
struct Done {
    latency: Option<Histogram<u64>>,
    threads: usize,
    how: String,
    sync_ns: u64,
    /// Time that does not count, ns.
    besides_ns: u64,
}

/// Runs `work`, which is to end when [`Meter::is_over`], and counts beside it.
fn metered(time: Duration, work: impl FnOnce(&Meter) -> Result<Done, BenchError>) -> Result<Measured, BenchError> {
    let began = Instant::now();
    let cpu = process_cpu_time_ns();
    let meter = Meter { moved: AtomicU64::new(0), until: began + time };
    let period = SAMPLE.min(time / 4).max(Duration::from_millis(1));
    let (tell, ended) = std::sync::mpsc::channel::<()>();
    let (done, samples) = std::thread::scope(|scope| {
        let counted = &meter.moved;
        let sampler = scope.spawn(move || {
            let (mut samples, mut before) = (Vec::new(), 0);
            // The sender is dropped when the work has ended.
            loop {
                let over = ended.recv_timeout(period) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected);
                let now = counted.load(Ordering::Relaxed);
                if !over || now > before {
                    samples.push((began.elapsed().as_micros() as u64, now - before));
                }
                before = now;
                if over {
                    return samples;
                }
            }
        });
        let done = work(&meter);
        drop(tell);
        (done, sampler.join().unwrap_or_default())
    });
    let done = done?;
    let wall_ns = (began.elapsed().as_nanos() as u64).saturating_sub(done.besides_ns).max(1);
    Ok(Measured {
        bytes: meter.moved.into_inner(),
        wall_ns,
        cpu_ns: process_cpu_time_ns().saturating_sub(cpu),
        threads: done.threads,
        samples,
        latency: done.latency.as_ref().map(Latency::of).unwrap_or_default(),
        how: done.how,
        sync_ns: done.sync_ns,
    })
}

/// Runs `work` in so many threads and joins their histograms.
fn threads(
    count: usize,
    work: impl Fn(usize) -> Result<Histogram<u64>, BenchError> + Sync,
) -> Result<Histogram<u64>, BenchError> {
    let mut all = Latency::histogram();
    let outcomes: Vec<Result<Histogram<u64>, BenchError>> = std::thread::scope(|scope| {
        let spawn = |index| {
            let builder = std::thread::Builder::new().name(format!("lh-bench-{index}"));
            let work = &work;
            builder.spawn_scoped(scope, move || work(index)).map_err(BenchError::io("start a thread"))
        };
        let started: Vec<_> = (0..count).map(spawn).collect();
        let ended = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            let died = || BenchError::Io { doing: "run a thread", source: io::ErrorKind::Other.into() };
            thread.join().unwrap_or_else(|_| Err(died()))
        };
        started.into_iter().map(|thread| thread.and_then(ended)).collect()
    });
    for outcome in outcomes {
        // Both have the same bounds.
        let _ = all.add(outcome?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_move_is_sampled_and_summed() {
        let time = Duration::from_millis(80);
        let measured = metered(time, |meter| {
            let latency = threads(3, |index| {
                let mut latency = Latency::histogram();
                while !meter.is_over() {
                    std::thread::sleep(Duration::from_millis(5));
                    meter.add(1_000 * (index as u64 + 1));
                    Latency::record(&mut latency, 5_000_000);
                }
                Ok(latency)
            })?;
            Ok(Done { latency: Some(latency), threads: 3, besides_ns: 1_000, ..Done::default() })
        })
        .unwrap();
        assert_eq!(measured.samples.iter().map(|(_, bytes)| bytes).sum::<u64>(), measured.bytes);
        assert!(measured.samples.len() >= 3 && measured.samples.is_sorted_by_key(|(at, _)| *at), "{measured:?}");
        assert!(measured.wall_ns >= 79_000_000 && measured.latency.count >= 6, "{measured:?}");
        assert!((4_900_000..=5_100_000).contains(&measured.latency.p50), "{measured:?}");
        assert_eq!(Measured { bytes: 1_000, wall_ns: 1_000_000_000, ..Measured::default() }.rate(), 8_000);
    }

    #[test]
    fn one_thread_that_fails_fails_the_part() {
        let failed = threads(2, |index| match index {
            0 => Ok(Latency::histogram()),
            _ => Err(BenchError::TooSmall { size: 1, block: 2 }),
        });
        assert!(matches!(failed, Err(BenchError::TooSmall { size: 1, block: 2 })));
    }
}
