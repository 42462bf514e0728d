//! Which trials are worth their time, and what they say. Pure.

use crate::cli::report::count;
use crate::engine::probe::Trial;
use crate::grid::CHUNK_SIZE;
use crate::limits::MAX_STREAMS;
use crate::profile::{DEPTH_MAX, Day, Files, PathFacts, Profile, Provenance, Sockets, Threads, Window};
use std::time::Duration;

/// A trial has to see more than its start: slow start takes ten to twenty round trips.
const ROUND_TRIPS: u32 = 20;
/// The shortest trial whose rate means something.
const TRIAL_MIN: Duration = Duration::from_millis(1500);
/// A longer one costs others.
const TRIAL_MAX: Duration = Duration::from_secs(4);
/// Handshakes, tickets and the last bytes of a trial, in round trips.
const AROUND_TRIPS: u32 = 10;
/// The same, on a machine that is busy.
const AROUND: Duration = Duration::from_millis(200);
/// Numbers of streams that are tried first.
const LADDER: [u16; 3] = [1, 4, 16];
/// A rate within this share of the best one is as good: a trial of seconds knows no better.
const AS_GOOD: f64 = 0.95;
/// Who sends so much more twice than another fills the path's queue for its neighbours too.
const RUDE: f64 = 0.03;
/// A profile holds for so long; paths change.
const VALID_DAYS: u64 = 90;

/// What is tried: streams and congestion control; `None` is the sender's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Streams.
    pub streams: u16,
    /// Congestion control.
    pub congestion: Option<String>,
}

/// A setting and what it brought; `None`: it was not to be had, or the trial failed.
pub type Tried = (Setting, Option<Trial>);

/// How long one trial sends, for a path with this round trip.
pub fn trial_length(rtt: Duration) -> Duration {
    (rtt * ROUND_TRIPS + Duration::from_secs(1)).clamp(TRIAL_MIN, TRIAL_MAX)
}

/// How long it takes in all.
pub fn trial_cost(rtt: Duration) -> Duration {
    trial_length(rtt) + rtt * AROUND_TRIPS + AROUND
}

/// The next trial, or `None` when nothing more is worth trying. `algorithms`: in the order of preference.
pub fn next(tried: &[Tried], algorithms: &[Option<String>]) -> Option<Setting> {
    let done = |setting: &Setting| tried.iter().any(|(t, _)| t == setting);
    let refused = |congestion: &Option<String>| {
        tried.iter().any(|(setting, trial)| setting.congestion == *congestion && trial.is_none())
    };
    for congestion in algorithms.iter().filter(|c| !refused(c)) {
        for streams in LADDER {
            let setting = Setting { streams, congestion: congestion.clone() };
            if !done(&setting) {
                return Some(setting);
            }
        }
    }
    // Then around the best: half as many, twice as many.
    let (best, _) = best(tried)?;
    [best.streams / 2, best.streams * 2]
        .into_iter()
        .filter(|streams| (1..=MAX_STREAMS).contains(streams))
        .map(|streams| Setting { streams, congestion: best.congestion.clone() })
        .find(|setting| !done(setting))
}

/// The setting to use: of those that are as good as the fastest, one that does not send much more twice than the others,
/// with the fewest streams; of equals the first tried, whose algorithm is the preferred one.
pub fn best(tried: &[Tried]) -> Option<(Setting, Trial)> {
    let worked = || tried.iter().filter_map(|(setting, trial)| Some((setting, trial.as_ref()?)));
    let fastest = worked().map(|(_, trial)| trial.rate()).max()?;
    let good = worked().filter(|(_, trial)| trial.rate() as f64 >= AS_GOOD * fastest as f64);
    let least = worked().map(|(_, trial)| trial.sender.loss()).fold(1.0, f64::min);
    let (setting, trial) = good.min_by_key(|(setting, trial)| (trial.sender.loss() > least + RUDE, setting.streams))?;
    Some((setting.clone(), trial.clone()))
}

/// Where a profile comes from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The peer as it was named.
    pub peer: String,
    /// Whether the peer sent.
    pub agent_sends: bool,
    /// The command.
    pub command: String,
    /// Of this host.
    pub kernel: String,
    /// Interface and driver.
    pub nic: String,
    /// Now, Unix seconds.
    pub now: u64,
}

/// The profile that the trials lead to.
pub fn profile(tried: &[Tried], origin: &Origin) -> Option<Profile> {
    let (setting, trial) = best(tried)?;
    let worked: Vec<&Trial> = tried.iter().filter_map(|(_, trial)| trial.as_ref()).collect();
    let rate = trial.rate();
    let least = |of: fn(&Trial) -> u64| worked.iter().map(|t| of(t)).filter(|us| *us > 0).min();
    let rtt = least(|t| t.sender.min_rtt_us).into_iter().chain(least(|t| t.rtt_us)).min().unwrap_or(0);
    let mut loaded: Vec<u64> = worked.iter().map(|t| t.sender.rtt_us).filter(|us| *us > 0).collect();
    loaded.sort_unstable();
    // The least that any trial saw: what a full queue drops is the trial's own doing.
    let loss = worked.iter().filter(|t| t.sender.bytes_sent > 0).map(|t| t.sender.loss()).min_by(f64::total_cmp);
    let window = (u128::from(rate) * u128::from(rtt) / 8_000_000) as u64;
    let depth = (2 * window / u64::from(trial.streams.max(1))).div_ceil(CHUNK_SIZE).clamp(4, u64::from(DEPTH_MAX));
    let micros = |us: u64| (us > 0).then(|| Duration::from_micros(us));
    // The other algorithms behind the best one, as they fared.
    let mut congestion: Vec<String> = setting.congestion.into_iter().collect();
    for (other, _) in tried.iter().filter(|(_, trial)| trial.is_some()) {
        let name = other.congestion.as_ref();
        congestion.extend(name.filter(|name| !congestion.contains(name)).cloned());
    }
    congestion.truncate(crate::profile::CONGESTION_CHOICES_MAX);
    let direction = if origin.agent_sends { "from" } else { "to" };
    Some(Profile {
        about: format!(
            "Measured {direction} {}: {} carried {:.0} Mbit/s.",
            origin.peer,
            count(trial.streams.into(), "stream"),
            rate as f64 / 1e6
        ),
        measured: true,
        peers: vec![origin.peer.clone()],
        expires: Some(Day::of_unix(origin.now + VALID_DAYS * 86_400)),
        path: PathFacts {
            rtt_min: micros(rtt),
            rtt_p50: micros(loaded.get(loaded.len() / 2).copied().unwrap_or(0)),
            loss: loss.map(|loss| (loss * 1e7).round() / 1e7),
            mtu: worked.iter().map(|t| t.mtu).filter(|mtu| *mtu > 0).min(),
            rate: worked.iter().map(|t| rounded(t.rate())).max().filter(|rate| *rate >= 8_000),
        },
        sockets: Sockets {
            streams: Some(trial.streams),
            window: Some(Window::Auto),
            congestion,
            notsent_lowat: Some(1 << 20),
            ..Sockets::default()
        },
        files: Files { depth: Some(depth as u16), ..Files::default() },
        threads: Threads::default(),
        timetable: Vec::new(),
        provenance: Provenance {
            date: Some(Day::of_unix(origin.now)),
            command: origin.command.clone(),
            kernel: origin.kernel.clone(),
            nic: origin.nic.clone(),
            goodput: (rate >= 8_000).then_some(rounded(rate)),
            cpu_seconds_per_gib: None,
            limiter: limiter(&trial).to_owned(),
        },
    })
}

/// Four digits: more is not known after a few seconds.
fn rounded(rate: u64) -> u64 {
    let unit = 10u64.pow(rate.max(1).ilog10().saturating_sub(3));
    (rate + unit / 2) / unit * unit
}

/// What held the best trial back, as far as the sender's kernel says.
pub fn limiter(trial: &Trial) -> &'static str {
    let share = |us: u64| us as f64 / trial.sender.busy_us.max(1) as f64;
    match (share(trial.sender.sndbuf_limited_us), share(trial.sender.rwnd_limited_us)) {
        (buffer, window) if buffer >= 0.3 && buffer >= window => "sender window",
        (_, window) if window >= 0.3 => "receiver window",
        _ => "network",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(streams: u16, mbit: u64) -> Trial {
        let samples = (1..=20).map(|n| (n * 100_000, mbit * 1_000_000 / 8 / 10)).collect();
        let mut trial = Trial { streams, samples, rtt_us: 50_400, mtu: 1500, ..Trial::default() };
        trial.sender.min_rtt_us = 50_100;
        trial.sender.rtt_us = 60_000;
        trial.sender.bytes_sent = 1_000_000;
        trial.sender.busy_us = 1_000_000;
        trial
    }

    fn setting(streams: u16, congestion: &str) -> Setting {
        Setting { streams, congestion: Some(congestion.to_owned()) }
    }

    fn algorithms() -> Vec<Option<String>> {
        vec![Some("cubic".to_owned()), Some("bbr".to_owned())]
    }

    /// Plays a path: what each setting brings, `None` for an algorithm that is not to be had.
    fn played(path: impl Fn(&Setting) -> Option<u64>) -> Vec<Tried> {
        let mut tried: Vec<Tried> = Vec::new();
        while let Some(next) = next(&tried, &algorithms()) {
            assert!(tried.len() < 20, "it ends");
            let outcome = path(&next).map(|mbit| trial(next.streams, mbit));
            tried.push((next, outcome));
        }
        tried
    }

    #[test]
    fn a_clean_path_takes_one_gentle_stream() {
        let tried = played(|_| Some(950));
        assert_eq!(best(&tried).unwrap().0, setting(1, "cubic"));
        assert_eq!(tried.len(), 7, "the ladder twice, and two streams");
    }

    #[test]
    fn small_buffers_take_as_many_streams_as_it_needs() {
        let tried = played(|s| Some((u64::from(s.streams) * 120).min(950)));
        assert_eq!(best(&tried).unwrap().0, setting(8, "cubic"), "half of sixteen is tried and is as good");
    }

    #[test]
    fn losses_take_the_algorithm_that_bears_them() {
        let tried =
            played(|s| Some(if s.congestion.as_deref() == Some("bbr") { 860 } else { 40 * u64::from(s.streams) }));
        assert_eq!(best(&tried).unwrap().0, setting(1, "bbr"));
        let profile = profile(&tried, &Origin::default()).unwrap();
        assert_eq!(profile.sockets.congestion, ["bbr", "cubic"]);
    }

    #[test]
    fn who_fills_the_queue_for_others_is_taken_only_for_a_gain() {
        let with_loss = |streams, name, mbit, twice: u64| {
            let mut trial = trial(streams, mbit);
            trial.sender.bytes_retransmitted = twice * 10_000;
            (setting(streams, name), Some(trial))
        };
        // As measured in the lab, 200 Mbit/s, 100 ms, 0.05 %: bbr's four streams send 13 % twice.
        let mut tried = vec![
            with_loss(1, "cubic", 39, 0),
            with_loss(4, "cubic", 186, 2),
            with_loss(16, "cubic", 191, 2),
            with_loss(4, "bbr", 193, 13),
        ];
        assert_eq!(best(&tried).unwrap().0, setting(4, "cubic"));
        tried.truncate(1);
        tried.push(with_loss(4, "bbr", 193, 13));
        assert_eq!(best(&tried).unwrap().0, setting(4, "bbr"), "where nothing else is as good");
    }

    #[test]
    fn an_algorithm_that_is_refused_is_asked_for_once() {
        let tried = played(|s| (s.congestion.as_deref() == Some("cubic")).then_some(500));
        assert_eq!(tried.iter().filter(|(s, _)| s.congestion.as_deref() == Some("bbr")).count(), 1);
        assert_eq!(best(&tried).unwrap().0.congestion.as_deref(), Some("cubic"));
        assert!(best(&played(|_| None)).is_none(), "nothing worked");
        assert!(profile(&[], &Origin::default()).is_none());
    }

    #[test]
    fn the_profile_says_what_was_found_and_is_sound() {
        let tried = played(|s| Some((u64::from(s.streams) * 120).min(950)));
        let origin = Origin {
            peer: "dtn1.example.org".to_owned(),
            agent_sends: true,
            command: "longhaul probe".to_owned(),
            now: 1_795_564_800,
            ..Origin::default()
        };
        let profile = profile(&tried, &origin).unwrap();
        profile.check().unwrap();
        assert_eq!((profile.measured, profile.peers.as_slice()), (true, &["dtn1.example.org".to_owned()][..]));
        assert_eq!(profile.path.rtt_min, Some(Duration::from_micros(50_100)));
        assert_eq!((profile.path.mtu, profile.path.rate), (Some(1500), Some(950_000_000)));
        // 5.9 MB of bandwidth x delay over eight streams is less than a chunk: the least depth.
        assert_eq!((profile.sockets.streams, profile.files.depth), (Some(8), Some(4)));
        assert_eq!(profile.expires.unwrap().to_string(), "2027-02-23");
        let read: Profile = toml::from_str(&profile.to_toml()).unwrap();
        assert_eq!(read, profile);
    }

    #[test]
    fn the_limiter_is_the_kernels_word() {
        let mut seen = trial(1, 285);
        assert_eq!(limiter(&seen), "network");
        assert_eq!((rounded(97_600_465), rounded(123), rounded(0)), (97_600_000, 123, 0));
        seen.sender.sndbuf_limited_us = 700_000;
        assert_eq!(limiter(&seen), "sender window");
        (seen.sender.sndbuf_limited_us, seen.sender.rwnd_limited_us) = (100_000, 600_000);
        assert_eq!(limiter(&seen), "receiver window");
    }

    #[test]
    fn a_trial_outlasts_slow_start_and_is_bounded() {
        assert_eq!(trial_length(Duration::from_micros(100)), TRIAL_MIN);
        assert_eq!(trial_length(Duration::from_millis(100)), Duration::from_secs(3));
        assert_eq!(trial_length(Duration::from_secs(2)), TRIAL_MAX);
        // Thirty seconds have room for the ladder of two algorithms and one more, at 100 ms.
        assert!(trial_cost(Duration::from_millis(100)) * 7 <= Duration::from_secs(30));
    }
}
