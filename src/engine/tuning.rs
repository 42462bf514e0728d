//! What a transfer's options mean for its sockets, and what a profile fills in.

use super::spec::{Collector, Marking, TransferOptions};
use crate::net::SocketOptions;
use crate::profile::{Chosen, Day, Profiles, Window, split_congestion};
use crate::wire::control::Accept;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// An idle stream is probed after so long.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Sent data may stay unacknowledged for so long: above the longest stall of a disk that is tolerated (60 s).
const USER_TIMEOUT: Duration = Duration::from_secs(120);

/// Unsent bytes that a socket takes: with more a stream looks idle while its bytes still wait for the path, and what is asked
/// of it changes late. 1 MiB costs nothing that was measured, up to 1 Gbit/s over 100 ms and on loopback.
const NOTSENT: u32 = 1 << 20;

/// What a transfer's options mean for its sockets. Nothing paces here: only the source knows how many streams share a rate.
pub fn socket_options(options: &TransferOptions) -> SocketOptions {
    let tuning = &options.tuning;
    SocketOptions {
        window: options.window,
        congestion: options.congestion.as_deref().map(split_congestion).unwrap_or_default(),
        pacing_bytes_per_sec: None,
        notsent_lowat: tuning.notsent_lowat.or(Some(NOTSENT)),
        user_timeout: Some(tuning.user_timeout_ms.map_or(USER_TIMEOUT, |ms| Duration::from_millis(ms.into()))),
        keepalive: Some(KEEPALIVE),
        nodelay: true,
        mss: tuning.mss,
        dscp: tuning.dscp,
        scitag: tuning.scitag,
        bind: options.bind,
    }
}

/// The source's sockets: what the destination asks for, before what this end would do by itself. A rate is a cap, so the
/// lower one holds. `streams` share it.
pub fn at_source(own: &TransferOptions, accept: &Accept, streams: u16) -> SocketOptions {
    let both = TransferOptions {
        congestion: accept.congestion.clone().or_else(|| own.congestion.clone()),
        window: accept.window.or(own.window),
        tuning: accept.tuning.clone().or(&own.tuning),
        ..own.clone()
    };
    let pacing_bytes_per_sec = pacing(own.rate, own.tuning.pacing, accept, streams);
    SocketOptions { pacing_bytes_per_sec, ..socket_options(&both) }
}

/// Bytes per second of one of the `streams` that share a rate: the lower of this end's `cap` (bits per second) and the one asked
/// for, and never above what a stream may have by the destination's word, or else by this end's `stream` (bits per second).
pub fn pacing(cap: Option<u64>, stream: Option<u64>, accept: &Accept, streams: u16) -> Option<u64> {
    let share = accept.rate.into_iter().chain(cap).min().map(|bits| bits / u64::from(streams.max(1)));
    let least = share.into_iter().chain(accept.tuning.pacing.or(stream)).min();
    least.map(|bits| (bits / 8).max(1))
}

/// Options whose gaps the profile for this peer has filled, if there is one and they name none yet.
pub fn for_peer(
    profiles: &Profiles,
    options: &TransferOptions,
    names: &[&str],
    addresses: &[SocketAddr],
    now: u64,
) -> TransferOptions {
    let addresses: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
    let mut options = options.clone();
    if let Some(chosen) = profiles.choose(names, &addresses, Day::of_unix(now)) {
        let ceiling = chosen.named.profile.sockets.rate;
        let rate = options.rate.into_iter().chain(ceiling).min();
        if options.profile.is_none() {
            fill(&mut options, &chosen);
        }
        // What the operator of this end allows holds, whatever the other end asks for.
        (options.rate, options.ceiling) = (rate, ceiling);
        // Nor can a client's own profile know whom this end tells.
        told_here(&mut options.collectors, &chosen.named.profile.sockets.firefly);
        options.timetable = chosen.named.profile.timetable();
    }
    options
}

/// Fills what `options` leave open from a profile, and notes whose values these are. Block, I/O and encryption are left
/// to whoever knows whether they were said.
pub fn fill(options: &mut TransferOptions, chosen: &Chosen) {
    let profile = &chosen.named.profile;
    let sockets = &profile.sockets;
    options.streams = options.streams.or(sockets.streams);
    options.window = options.window.or(match sockets.window {
        Some(Window::Fixed(bytes)) => Some(bytes),
        Some(Window::Auto) | None => None,
    });
    let congestion = (!sockets.congestion.is_empty()).then(|| sockets.congestion.join(","));
    options.congestion = options.congestion.take().or(congestion);
    options.rate = options.rate.or(sockets.rate);
    options.tuning = std::mem::take(&mut options.tuning).or(&profile.tuning());
    options.bind = options.bind.or(sockets.bind);
    told_here(&mut options.collectors, &sockets.firefly);
    options.timetable = options.timetable.take().or_else(|| profile.timetable());
    options.profile = Some(chosen.told());
}

fn told_here(collectors: &mut Vec<Collector>, more: &[Collector]) {
    if collectors.is_empty() {
        collectors.extend_from_slice(more);
    }
}

/// Options whose gaps this end's own marking has filled.
pub fn marked(marking: &Marking, mut options: TransferOptions) -> TransferOptions {
    options.tuning.scitag = options.tuning.scitag.or(marking.scitag);
    told_here(&mut options.collectors, &marking.collectors);
    options
}

/// The cap that holds now, bits per second: what was asked for, what the operator of this end allows, and what its timetable
/// has for this time of the day.
pub fn cap_of(options: &TransferOptions, asked: Option<u64>, now: u64) -> Option<u64> {
    let by_time = options.timetable.as_ref().and_then(|table| table.cap(minute_of_day(now)));
    asked.into_iter().chain(options.ceiling).chain(by_time).min()
}

/// Minute of the day, 0 to 1439, at Unix time `now` in this host's time zone.
fn minute_of_day(now: u64) -> u16 {
    let now = jiff::Timestamp::from_second(i64::try_from(now).unwrap_or(0)).unwrap_or_default();
    let now = now.to_zoned_datetime(jiff::tz::TimeZone::system());
    now.hour() as u16 * 60 + now.minute() as u16
}

/// What a report has to say about a profile beyond its name.
pub fn profile_note(options: &TransferOptions) -> Option<String> {
    let used = options.profile.as_ref().filter(|used| !used.measured)?;
    Some(format!(
        "profile {} is not measured: its values were computed, not tried; `longhaul probe PEER --save NAME` finds your own",
        used.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, TransferId};
    use crate::profile::{Hours, Profile, ProfileUse, Sockets, TimeOfDay, Timetable, Tuning};

    fn accept() -> Accept {
        Accept {
            transfer: TransferId([1; 16]),
            epoch: Epoch(1),
            block: 262_144,
            rate: None,
            congestion: None,
            window: None,
            io: "auto".to_owned(),
            credit: 8,
            streams: 4,
            tuning: Tuning::default(),
        }
    }

    fn profiles(sockets: Sockets) -> Profiles {
        let mut profiles = Profiles::default();
        let profile = Profile { peers: vec!["192.0.2.0/24".to_owned()], sockets, ..Profile::default() };
        profiles.add("site", "site.toml", profile).unwrap();
        profiles
    }

    #[test]
    fn the_destination_asks_first_and_the_lower_cap_holds() {
        let own = TransferOptions {
            rate: Some(4_000_000),
            congestion: Some("reno".to_owned()),
            tuning: Tuning { mss: Some(1400), dscp: Some(8), ..Tuning::default() },
            ..TransferOptions::default()
        };
        let asked = Accept {
            rate: Some(8_000_000),
            congestion: Some("bbr,cubic".to_owned()),
            window: Some(1 << 20),
            tuning: Tuning { dscp: Some(10), user_timeout_ms: Some(30_000), ..Tuning::default() },
            ..accept()
        };
        let sockets = at_source(&own, &asked, 4);
        assert_eq!(sockets.pacing_bytes_per_sec, Some(125_000), "4 Mbit/s over four streams");
        assert_eq!((sockets.congestion, sockets.window), (vec!["bbr".to_owned(), "cubic".to_owned()], Some(1 << 20)));
        assert_eq!(
            (sockets.mss, sockets.dscp, sockets.user_timeout),
            (Some(1400), Some(10), Some(Duration::from_secs(30)))
        );
        let slow = Accept { tuning: Tuning { pacing: Some(800_000), ..Tuning::default() }, ..accept() };
        assert_eq!(at_source(&own, &slow, 4).pacing_bytes_per_sec, Some(100_000), "the lower of share and pacing");
        assert_eq!(at_source(&TransferOptions::default(), &accept(), 4).pacing_bytes_per_sec, None);
    }

    #[test]
    fn a_profile_fills_gaps_and_what_was_said_stays() {
        let profiles = profiles(Sockets {
            streams: Some(16),
            window: Some(Window::Fixed(8 << 20)),
            congestion: vec!["bbr".to_owned(), "cubic".to_owned()],
            rate: Some(1_000_000_000),
            bind: Some("192.0.2.9".parse().unwrap()),
            ..Sockets::default()
        });
        let said = TransferOptions { streams: Some(3), ..TransferOptions::default() };
        let peer = ["192.0.2.1:8471".parse().unwrap()];
        let options = for_peer(&profiles, &said, &[], &peer, 0);
        assert_eq!((options.streams, options.window, options.rate), (Some(3), Some(8 << 20), Some(1_000_000_000)));
        assert_eq!((options.congestion.as_deref(), options.bind.is_some()), (Some("bbr,cubic"), true));
        let used = options.profile.clone().unwrap();
        assert_eq!((used.name.as_str(), used.why.as_str()), ("site", "192.0.2.1 matches 192.0.2.0/24 of site.toml"));
        assert!(profile_note(&options).unwrap().contains("site is not measured"));
        let elsewhere = for_peer(&profiles, &said, &[], &["203.0.113.1:1".parse().unwrap()], 0);
        assert_eq!(elsewhere, said);
    }

    #[test]
    fn scitag_of_a_request_comes_before_the_ends_own_and_collectors_stay_here() {
        let tag = |id| crate::profile::SciTag::try_from(id).ok();
        let collector = |text: &str| text.parse::<Collector>().unwrap();
        let sockets = Sockets { firefly: vec![collector("site.example.org")], ..Sockets::default() };
        let profiles = profiles(sockets);
        let marking = Marking { scitag: tag(65), collectors: vec![collector("own.example.org")] };
        let peer = ["192.0.2.1:8471".parse().unwrap()];
        let theirs = ProfileUse { name: "fast".to_owned(), why: "--profile".to_owned(), measured: true };
        let asked = TransferOptions {
            tuning: Tuning { scitag: tag(66), ..Tuning::default() },
            profile: Some(theirs),
            ..TransferOptions::default()
        };
        let options = marked(&marking, for_peer(&profiles, &asked, &[], &peer, 0));
        assert_eq!(options.tuning.scitag, tag(66));
        assert_eq!(options.collectors, [collector("site.example.org")], "a profile before the agent's settings");
        assert!(!serde_json::to_string(&options).unwrap().contains("example.org"), "they are not told");
        let alone = marked(&marking, TransferOptions::default());
        assert_eq!((alone.tuning.scitag, alone.collectors), (tag(65), vec![collector("own.example.org")]));
        // What the destination asks for is what the source's sockets say.
        let accept = Accept { tuning: Tuning { scitag: tag(70), ..Tuning::default() }, ..accept() };
        assert_eq!(at_source(&asked, &accept, 1).scitag, tag(70));
        assert_eq!(socket_options(&TransferOptions::default()).scitag, None);
    }

    #[test]
    fn the_lowest_cap_holds() {
        let hours = vec![Hours {
            from: TimeOfDay::parse("00:00").unwrap(),
            to: TimeOfDay::parse("24:00").unwrap(),
            share: 0.2,
        }];
        let timetable = Some(Timetable { full: 1_000_000, hours });
        let options = TransferOptions { ceiling: Some(500_000), timetable, ..TransferOptions::default() };
        assert_eq!((cap_of(&options, None, 0), cap_of(&options, Some(100_000), 0)), (Some(200_000), Some(100_000)));
        let free = TransferOptions::default();
        assert_eq!((cap_of(&free, None, 0), cap_of(&free, Some(100_000), 0)), (None, Some(100_000)));
        assert!(minute_of_day(1_800_000_000) < 1440);
    }

    #[test]
    fn an_operators_cap_holds_against_a_clients_own_profile() {
        let profiles = profiles(Sockets { streams: Some(16), rate: Some(1_000_000_000), ..Sockets::default() });
        let theirs = ProfileUse { name: "fast".to_owned(), why: "--profile".to_owned(), measured: true };
        let peer = ["192.0.2.1:8471".parse().unwrap()];
        let capped = |rate| {
            let said = TransferOptions { rate, profile: Some(theirs.clone()), ..TransferOptions::default() };
            let options = for_peer(&profiles, &said, &[], &peer, 0);
            assert_eq!((options.streams, options.profile.as_ref().unwrap().name.as_str()), (None, "fast"));
            // Neither what is asked for later, nor lifting the cap, gets past it.
            assert_eq!(cap_of(&options, Some(9_000_000_000), 0), Some(1_000_000_000));
            assert_eq!(cap_of(&options, None, 0), Some(1_000_000_000));
            options.rate
        };
        assert_eq!(capped(Some(9_000_000_000)), Some(1_000_000_000));
        assert_eq!(capped(Some(5_000_000)), Some(5_000_000));
        assert_eq!(capped(None), Some(1_000_000_000));
    }
}
