//! Counters that workers write and others read.

use crate::sys::SendPath;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Counters of one stream, written by its worker, read by anyone.
#[derive(Debug, Default)]
pub struct StreamStats {
    /// Payload bytes received or sent.
    pub payload: AtomicU64,
    /// Of these, bytes that had come before or were discarded.
    pub wasted: AtomicU64,
    /// Bytes of what was asked for, as they arrive and before anything is checked: of Data and Pack bodies; for what is
    /// answered without bytes (a hole, a digest, a refusal) as many as it stands for. Other frames are no progress.
    pub brought: AtomicU64,
    /// Nanoseconds (process clock) of the last byte in or out.
    pub last_progress: AtomicU64,
    /// Time a Send was in flight.
    pub send_wait: Spell,
    /// Time the next block was still being read (source) or written (destination).
    pub disk_wait: Spell,
    /// Time nothing was asked of the stream.
    pub idle: Spell,
    /// How its blocks are sent.
    pub send_path: SendPathCell,
}

/// The time that a stream was in a state, by its worker. Others see it grow while the state lasts: a window of a second must
/// not miss what a stream does for ten.
#[derive(Debug, Default)]
pub struct Spell {
    ended: AtomicU64,
    /// When the present one began; 0: the state is another.
    since: AtomicU64,
}

impl Spell {
    /// Says whether the stream is in the state now, `now` in ns of the process clock.
    pub(super) fn set(&self, on: bool, now: u64) {
        match (on, self.since.load(Ordering::Relaxed)) {
            (true, 0) => self.since.store(now.max(1), Ordering::Relaxed),
            (false, since @ 1..) => {
                self.since.store(0, Ordering::Relaxed);
                add(&self.ended, now.saturating_sub(since));
            }
            _ => {}
        }
    }

    /// Whether it lasts.
    pub fn is_on(&self) -> bool {
        self.since.load(Ordering::Relaxed) > 0
    }

    /// All of it until `now`, ns.
    pub fn ns(&self, now: u64) -> u64 {
        let since = self.since.load(Ordering::Relaxed);
        let lasting = if since == 0 { 0 } else { now.saturating_sub(since) };
        self.ended.load(Ordering::Relaxed) + lasting
    }
}

/// A [`SendPath`] that others read.
#[derive(Debug, Default)]
pub struct SendPathCell(AtomicU8);

impl SendPathCell {
    const ALL: [SendPath; 4] = [SendPath::Plain, SendPath::ZeroCopy, SendPath::Copies, SendPath::Refused];

    pub(super) fn set(&self, path: SendPath) {
        self.0.store(path as u8, Ordering::Relaxed);
    }

    /// As last seen by the worker.
    pub fn get(&self) -> SendPath {
        Self::ALL.get(usize::from(self.0.load(Ordering::Relaxed))).copied().unwrap_or_default()
    }
}

/// Counters of one worker.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Time outside of waits, ns.
    pub busy: AtomicU64,
    /// Time in waits, ns.
    pub waiting: AtomicU64,
    /// The worker's thread, as the kernel numbers it; 0 until it runs.
    pub thread: AtomicU32,
}

pub(crate) fn add(counter: &AtomicU64, value: u64) {
    // One writer for each counter: a load and a store are enough.
    counter.store(counter.load(Ordering::Relaxed) + value, Ordering::Relaxed);
}

impl WorkerStats {
    /// CPU time of the worker's thread, and time in which it could have run and had no core; ns. Zeros where the kernel
    /// does not keep them, and for a simulated worker.
    pub fn thread_times(&self) -> (u64, u64) {
        let thread = self.thread.load(Ordering::Relaxed);
        if thread == 0 {
            return (0, 0);
        }
        let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap_or_default();
        let mut numbers = text.split_whitespace().map(|word| word.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_lasts_is_seen_to_grow() {
        let spell = Spell::default();
        assert_eq!(spell.ns(1_000), 0);
        spell.set(true, 1_000);
        spell.set(true, 1_500);
        assert_eq!((spell.ns(1_700), spell.ns(900), spell.is_on()), (700, 0, true));
        spell.set(false, 2_000);
        spell.set(false, 2_500);
        assert_eq!((spell.ns(9_000), spell.is_on()), (1_000, false));
        spell.set(true, 9_000);
        assert_eq!(spell.ns(9_100), 1_100);
    }

    #[test]
    fn a_threads_times_are_its_own() {
        let stats = WorkerStats::default();
        assert_eq!(stats.thread_times(), (0, 0), "no thread yet");
        stats.thread.store(nix::unistd::gettid().as_raw() as u32, Ordering::Relaxed);
        let before = stats.thread_times().0;
        let began = std::time::Instant::now();
        while began.elapsed().as_millis() < 30 {
            std::hint::spin_loop();
        }
        let (cpu, delay) = stats.thread_times();
        // Kernels without scheduler statistics say 0; what was not run was waited for.
        assert!(cpu == 0 || cpu - before + delay > 15_000_000, "{before} {cpu} {delay}");
    }
}
