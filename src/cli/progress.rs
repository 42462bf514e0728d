//! The progress bar: on stderr, on a terminal only.

use super::report::{duration, grouped, shares};
use crate::engine::spec::Snapshot;
use crate::units::{BitRate, Bytes};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The rate shown is that of so long: short enough to follow, long enough to read.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// Samples kept for it: ten a second, doubled for slack.
const RATE_SAMPLES: usize = 100;

/// Shows how far a transfer is, or nothing.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    meter: Meter,
}

impl Progress {
    /// A bar if `wanted` and stderr is a terminal.
    pub fn new(wanted: bool) -> Self {
        let bar = (wanted && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr_with_hz(10));
            // The template is a constant of this file; the plain bar serves if a later indicatif reads it otherwise.
            let style = ProgressStyle::with_template("{bar:24} {percent:>3}% {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, meter: Meter::default() }
    }

    /// Shows this state.
    pub fn update(&mut self, snapshot: &Snapshot) {
        let Some(bar) = &self.bar else { return };
        let rate = self.meter.rate(Instant::now(), snapshot.bytes);
        bar.set_length(snapshot.total_bytes.max(1));
        bar.set_position(snapshot.bytes.min(snapshot.total_bytes));
        bar.set_message(line(snapshot, rate));
    }

    /// Shows every state until the transfer drops its end.
    pub async fn follow(&mut self, mut snapshot: watch::Receiver<Snapshot>) {
        loop {
            let now = snapshot.borrow_and_update().clone();
            self.update(&now);
            if snapshot.changed().await.is_err() {
                return;
            }
        }
    }

    /// Prints a line above the bar, to stderr.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// Takes the bar away; the report follows.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Bytes per second over the last [`RATE_WINDOW`].
#[derive(Debug, Default)]
struct Meter {
    samples: VecDeque<(Instant, u64)>,
}

impl Meter {
    /// Bits per second.
    fn rate(&mut self, now: Instant, bytes: u64) -> u64 {
        self.samples.push_back((now, bytes));
        while self.samples.len() > RATE_SAMPLES
            || (self.samples.len() > 2 && now.duration_since(self.samples[0].0) > RATE_WINDOW)
        {
            self.samples.pop_front();
        }
        let (since, before) = self.samples[0];
        let seconds = now.duration_since(since).as_secs_f64();
        if seconds <= 0.0 { 0 } else { (bytes.saturating_sub(before) as f64 * 8.0 / seconds) as u64 }
    }
}

/// What stands beside the bar.
fn line(snapshot: &Snapshot, bits_per_second: u64) -> String {
    let total = if snapshot.scanned { "" } else { "+" };
    let mut line = format!(
        "{} of {}{total}  {}  files {} of {}{total}",
        Bytes(snapshot.bytes),
        Bytes(snapshot.total_bytes),
        BitRate(bits_per_second),
        grouped(snapshot.files),
        grouped(snapshot.total_files),
    );
    let left = snapshot.total_bytes.saturating_sub(snapshot.bytes);
    if snapshot.scanned && left > 0 && bits_per_second > 0 {
        let ns = u128::from(left) * 8 * 1_000_000_000 / u128::from(bits_per_second);
        line.push_str(&format!("  {} left", duration(u64::try_from(ns).unwrap_or(u64::MAX))));
    }
    let limiter = shares(&snapshot.limiter_shares, 1);
    if !limiter.is_empty() {
        line.push_str(&format!("  limited by {limiter}"));
    }
    if snapshot.phase != "moving" && !snapshot.phase.is_empty() {
        line.push_str(&format!("  {}", super::fail::printable(&snapshot.phase)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_much_how_fast_and_how_long() {
        let snapshot = Snapshot {
            bytes: 1 << 30,
            total_bytes: 4 << 30,
            files: 3,
            total_files: 2004,
            scanned: true,
            streams: 8,
            phase: "moving".into(),
            ..Snapshot::default()
        };
        assert_eq!(line(&snapshot, 8 << 30), "1.0 GiB of 4.0 GiB  8.6 Gbit/s  files 3 of 2,004  3.00 s left");
        let limiter_shares = [("source disk".to_owned(), 0.31), ("network".to_owned(), 0.624)].into();
        let limited = Snapshot { limiter: "network".into(), limiter_shares, ..snapshot.clone() };
        assert_eq!(
            line(&limited, 8 << 30),
            "1.0 GiB of 4.0 GiB  8.6 Gbit/s  files 3 of 2,004  3.00 s left  limited by network 62 %"
        );
        let growing = Snapshot { scanned: false, phase: "connecting".into(), ..snapshot };
        assert_eq!(line(&growing, 0), "1.0 GiB of 4.0 GiB+  0.0 bit/s  files 3 of 2,004+  connecting");
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(meter.rate(at(0), 0), 0);
        for second in 1..=10 {
            meter.rate(at(second * 1000), second * 1_000_000);
        }
        for second in 11..=20 {
            meter.rate(at(second * 1000), 10_000_000 + (second - 10) * 125_000_000);
        }
        assert_eq!(meter.rate(at(20_000), 1_260_000_000), 1_000_000_000);
        assert!(meter.samples.len() < 10);
    }
}
