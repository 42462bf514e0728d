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

/// How far back a stream's rate goes, s: long enough for a link that brings a packet a second, short enough to see a stream
/// stop.
const MEMORY: f64 = 4.0;
/// The weight that a second has.
const KNOWN: f64 = 0.22;
/// Where so many bytes should have come and nothing has, a stream has stopped; where fewer, its link may just be slow.
const MISSED: f64 = 65_536.0;
/// For ever, ns, with room to reckon.
pub(super) const NEVER: u64 = u64::MAX / 8;

/// A stream, as it is seen at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub stream: StreamKey,
    /// Whether it has something to bring.
    pub asked: bool,
    /// See `StreamStats::brought`.
    pub brought: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Track {
    /// When it last had its share together, ns, and what it had brought by then.
    since: u64,
    mark: u64,
    /// When it was looked at last, ns, and what it had brought by then.
    at: u64,
    seen: u64,
    /// What it had brought when it was through with the chunk before the present one.
    through: u64,
    /// Bytes a second and time, each weighted by how long ago: their quotient is the rate of late.
    rate: f64,
    weight: f64,
    /// That quotient when something came last.
    moving: f64,
}

impl Track {
    fn look(&mut self, now: u64, brought: u64, asked: bool) {
        let time = now.saturating_sub(self.at) as f64 / 1e9;
        // Time in which nothing is asked says nothing.
        if asked && time > 0.0 {
            let keep = (-time / MEMORY).exp();
            let rate = brought.saturating_sub(self.seen) as f64 / time;
            self.rate = self.rate * keep + rate * (1.0 - keep);
            self.weight = self.weight * keep + (1.0 - keep);
            if rate > 0.0 {
                self.moving = self.rate / self.weight;
            }
        }
        (self.at, self.seen) = (now, brought);
    }

    /// Bytes a second of late, once it was looked at for long enough.
    fn rate(&self) -> Option<f64> {
        (self.weight > KNOWN).then(|| self.rate / self.weight)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pace {
    tracks: BTreeMap<StreamKey, Track>,
    /// When any stream last had its share together, or nothing was asked, ns.
    moved: u64,
}

fn time(bytes: u64, rate: f64) -> u64 {
    // Out of range becomes the largest value, and so never.
    ((bytes as f64 / rate * 1e9) as u64).min(NEVER)
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
            let fresh =
                Track { since: now, mark: brought, at: now, seen: brought, through: brought, ..Track::default() };
            let track = self.tracks.entry(stream).or_insert(fresh);
            track.look(now, brought, asked);
            let moved = brought.saturating_sub(track.mark) >= share;
            let late = now.saturating_sub(track.since) > WINDOW.as_nanos() as u64;
            if !asked {
                track.through = brought;
            } else if moved {
                self.moved = now;
            } else if late {
                short.push(stream);
            }
            if !asked || moved || late {
                (track.since, track.mark) = (now, brought);
            }
        }
        short
    }

    /// A stream that has brought so much is through with a chunk.
    pub(super) fn through(&mut self, stream: StreamKey, brought: u64) {
        if let Some(track) = self.tracks.get_mut(&stream) {
            track.through = brought;
        }
    }

    /// How long a stream that has brought so much will take for chunks of `bytes` in all, the present one first, ns; `None`
    /// if that cannot be said yet.
    pub(super) fn time(&self, stream: StreamKey, brought: u64, bytes: u64) -> Option<u64> {
        Some(time(self.left(stream, brought, bytes), self.tracks.get(&stream)?.rate()?))
    }

    /// Bytes still to come of chunks of `bytes` in all, the present one first.
    fn left(&self, stream: StreamKey, brought: u64, bytes: u64) -> u64 {
        let arrived = self.tracks.get(&stream).map_or(0, |track| brought.saturating_sub(track.through));
        bytes.saturating_sub(arrived)
    }

    /// Whether what comes behind the next `bytes` may be on its way, where the sockets of both ends hold `sockets`: or will be,
    /// before the source hears a word about it.
    pub(super) fn may_be_under_way(&self, stream: StreamKey, brought: u64, bytes: u64, sockets: u64) -> bool {
        let soon = self.tracks.get(&stream).map_or(0.0, |track| track.moving) as u64;
        self.left(stream, brought, bytes) < sockets.saturating_add(soon)
    }

    /// Whether a stream that has brought nothing for `silence` has stopped, by what it brought before.
    pub(super) fn has_stopped(&self, stream: StreamKey, silence: Duration) -> bool {
        let moving = self.tracks.get(&stream).map_or(0.0, |track| track.moving);
        moving == 0.0 || moving * silence.as_secs_f64() > MISSED
    }

    /// How long a stream that has nothing to do would take for so many bytes, ns. One that is not known is taken for one
    /// like the others.
    pub(super) fn time_anew(&self, stream: StreamKey, bytes: u64) -> u64 {
        let known = self.tracks.get(&stream).and_then(Track::rate);
        let others = || {
            let rates: Vec<f64> = self.tracks.values().filter_map(Track::rate).collect();
            let mean = rates.iter().sum::<f64>() / rates.len().max(1) as f64;
            (mean > 0.0).then_some(mean)
        };
        known.or_else(others).map_or(0, |rate| time(bytes, rate))
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
    fn rates_are_those_of_late_and_only_of_time_in_which_something_was_asked() {
        let mut pace = Pace::default();
        let mut brought = 0;
        let mut look = |pace: &mut Pace, from: u64, to: u64, asked, rate: u64| {
            for tick in from * 10..to * 10 {
                brought += rate / 10;
                pace.look(tick * TICK, &[Seen { stream: 1, asked, brought }], LEAST);
            }
            brought
        };
        let first = look(&mut pace, 1, 2, true, 1_000_000);
        assert_eq!(pace.time(1, first, 1 << 20), None, "a second is not enough");
        let now = look(&mut pace, 2, 10, true, 1_000_000);
        let near = |time: u64, seconds: f64| (time as f64 / 1e9 - seconds).abs() < seconds / 50.0;
        pace.through(1, now - 500_000);
        assert!(near(pace.time(1, now, 4_000_000).unwrap(), 3.5), "half a second of it has come");
        assert!(near(pace.time_anew(1, 4_000_000), 4.0) && near(pace.time_anew(2, 4_000_000), 4.0));
        assert!(
            pace.may_be_under_way(1, now, 3_400_000, 2_000_000) && !pace.may_be_under_way(1, now, 3_600_000, 2_000_000)
        );
        look(&mut pace, 10, 100, false, 0);
        assert!(near(pace.time_anew(1, 4_000_000), 4.0), "idle is not slow");
        let now = look(&mut pace, 100, 140, true, 10_000);
        assert!(pace.time(1, now, 4_000_000).unwrap() > 100 * 10 * TICK, "slow of late");
        assert_eq!(Pace::default().time_anew(1, 1), 0);
        let mut hangs = Pace::default();
        (1..20).for_each(|tick| drop(hangs.look(tick * TICK, &[Seen { stream: 1, asked: true, brought: 7 }], LEAST)));
        assert_eq!((hangs.time(1, 7, 10), hangs.time_anew(2, 10)), (Some(NEVER), 0));
        assert!(hangs.has_stopped(1, Duration::from_secs(2)) && pace.has_stopped(1, Duration::from_secs(10)));
        assert!(!pace.has_stopped(1, Duration::from_secs(2)), "at 10 kB/s a packet may be late");
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
