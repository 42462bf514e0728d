//! How fast streams bring what they were asked for. Pure: the clock and the counters come from outside.

use crate::engine::worker::StreamKey;
use std::collections::BTreeMap;
use std::time::Duration;

/// In so long the streams that were asked for something have to bring [`LEAST`] together, and each of them its share of it;
/// a stream that does not is cut and dialled again. Above the pauses of a busy disk.
pub(super) const WINDOW: Duration = Duration::from_secs(45);
/// Bytes: 730 a second. A link of 64 kbit/s brings eleven times that, so that no honest stream falls short of it, however
/// many share the link and however unevenly. Bytes that only come now and then, to keep a session alive, do.
const LEAST: u64 = 32 << 10;
/// When no stream has brought its share for so many windows, the session is not getting anywhere.
const WINDOWS_MAX: u32 = 4;

/// A stream, as it is seen at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub stream: StreamKey,
    /// Whether it has something to bring.
    pub asked: bool,
    /// See `StreamStats::brought`.
    pub brought: u64,
}

#[derive(Debug, Clone, Copy)]
struct Track {
    /// When it last had its share together, ns, and what it had brought by then.
    since: u64,
    mark: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pace {
    tracks: BTreeMap<StreamKey, Track>,
    /// When any stream last had its share together, or nothing was asked, ns.
    moved: u64,
}

/// What [`LEAST`] is where the user lets no more than `rate` bits per second through: a quarter of it.
pub(super) fn least(rate: Option<u64>) -> u64 {
    rate.map_or(LEAST, |bits| (bits / 8).saturating_mul(WINDOW.as_secs() / 4).clamp(1, LEAST))
}

impl Pace {
    /// Looks at all streams; those that have brought less than their share of `least` in a window. They begin anew.
    pub(super) fn look(&mut self, now: u64, seen: &[Seen], least: u64) -> Vec<StreamKey> {
        self.tracks.retain(|stream, _| seen.iter().any(|s| s.stream == *stream));
        let asked = seen.iter().filter(|s| s.asked).count() as u64;
        let share = (least / asked.max(1)).max(1);
        if asked == 0 || self.moved == 0 {
            self.moved = now;
        }
        let mut short = Vec::new();
        for Seen { stream, asked, brought } in seen.iter().copied() {
            let fresh = Track { since: now, mark: brought };
            let track = self.tracks.entry(stream).or_insert(fresh);
            if !asked {
                *track = fresh;
            } else if brought.saturating_sub(track.mark) >= share {
                *track = fresh;
                self.moved = now;
            } else if now.saturating_sub(track.since) > WINDOW.as_nanos() as u64 {
                *track = fresh;
                short.push(stream);
            }
        }
        short
    }

    /// Whether nothing has come in spite of new streams.
    pub(super) fn is_stuck(&self, now: u64) -> bool {
        now.saturating_sub(self.moved) > u64::from(WINDOWS_MAX) * WINDOW.as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 100_000_000;

    /// Streams that bring so many bytes a second each, for so many seconds: when the first is found short, s.
    fn found_after(rates: &[f64], seconds: u64, rate: Option<u64>) -> Option<u64> {
        let mut pace = Pace::default();
        for tick in 1..seconds * 10 {
            let seen = |(n, rate): (usize, &f64)| {
                let brought = (rate * tick as f64 / 10.0) as u64;
                Seen { stream: n as u64, asked: true, brought }
            };
            let seen: Vec<Seen> = rates.iter().enumerate().map(seen).collect();
            if !pace.look(tick * TICK, &seen, least(rate)).is_empty() {
                return Some(tick / 10);
            }
        }
        None
    }

    #[test]
    fn a_slow_link_is_no_silence_and_a_dribble_is() {
        // 64 kbit/s, by one stream, by eight, by 64; a fifth of it, with others on the link.
        for streams in [1, 8, 64] {
            assert_eq!(found_after(&vec![8000.0 / f64::from(streams); streams as usize], 3600, None), None);
            assert_eq!(found_after(&vec![1600.0 / f64::from(streams); streams as usize], 3600, None), None);
        }
        for dribble in [0.0, 0.5, 10.0, 100.0] {
            assert_eq!(found_after(&[dribble], 3600, None), Some(45), "{dribble} bytes a second");
            assert_eq!(
                found_after(&[1e8, dribble], 3600, None),
                Some(45),
                "{dribble} bytes a second beside a fast one"
            );
        }
        // Who asks for less gets less.
        assert_eq!(found_after(&[500.0], 3600, Some(4000)), None);
    }

    #[test]
    fn nothing_asked_is_no_silence() {
        let mut pace = Pace::default();
        let seen = |asked, brought| [Seen { stream: 1, asked, brought }];
        for second in 1..400 {
            assert!(pace.look(second * 10 * TICK, &seen(false, 0), LEAST).is_empty());
            assert!(!pace.is_stuck(second * 10 * TICK));
        }
        let mut cut = Vec::new();
        for second in 400..600 {
            if !pace.look(second * 10 * TICK, &seen(true, 5), LEAST).is_empty() {
                cut.push(second);
            }
            assert_eq!(pace.is_stuck(second * 10 * TICK), second > 399 + 180);
        }
        assert_eq!(cut, [445, 491, 537, 583]);
    }
}
