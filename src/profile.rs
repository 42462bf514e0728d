//! Tuning profiles: what a link was found to be, and what is best set on it. A profile is a TOML file; a key that is not
//! known is an error, and every value is optional: what a profile leaves open is the engine's to choose.
//!
//! Parsing and choosing only. Files are read by `control::profiles`, values reach sockets through `engine::tuning`.

mod cpus;
mod pattern;
mod scitag;
mod set;
mod steer;
mod text;
mod timetable;

pub use cpus::{CpuMap, cpu_list, cpu_ranges};
pub use pattern::Pattern;
pub use scitag::{Collector, Marking, SciTag};
pub use set::{Chosen, Named, Profiles, SharedProfiles};
pub use steer::{Priority, Steer};
pub use text::{Day, Dscp, Window};
pub use timetable::{Hours, TimeOfDay, Timetable};

use crate::limits::{MAX_BLOCK, MAX_COLLECTORS, MAX_STREAMS, MIN_BLOCK, MIN_RATE};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::time::Duration;

/// The largest socket buffer, in bytes: the option is a signed 32-bit number that the kernel doubles.
pub const WINDOW_MAX: u64 = (1 << 30) - 1;
/// A segment that every path carries, in bytes (RFC 9293, 3.7.1).
pub const SEGMENT_MIN: u16 = 536;
/// The largest segment that TCP_MAXSEG takes (MAX_TCP_WINDOW).
pub const SEGMENT_MAX: u16 = 32_767;
/// Congestion controls that are tried in turn.
pub const CONGESTION_CHOICES_MAX: usize = 4;
/// Characters of a congestion control's name (TCP_CA_NAME_MAX of Linux, less the NUL).
pub const CONGESTION_NAME_MAX: usize = 15;
/// Chunks asked of one stream at once: 256 MiB, a 20 Gbit/s stream over 100 ms.
pub const DEPTH_MAX: u16 = 64;
/// Below this a peer's disk that pauses for a moment would end its streams.
const USER_TIMEOUT_MIN: Duration = Duration::from_secs(5);
/// Above this nobody would call the peer alive.
const USER_TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// Entries of a timetable.
const HOURS_MAX: usize = 48;
/// Patterns of one profile.
const PEERS_MAX: usize = 64;
/// Characters of a text in a profile.
const TEXT_MAX: usize = 400;

/// A profile as it stands in a file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// For whom it is, in a sentence.
    pub about: String,
    /// Whether its values were tried on such a link. If not, every report says so.
    pub measured: bool,
    /// Peers that it is taken for: addresses, networks, names with `*`. None: only when named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
    /// The last day on which it is chosen by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Day>,
    /// What the link is.
    #[serde(skip_serializing_if = "is_default")]
    pub path: PathFacts,
    /// What is set on sockets.
    #[serde(skip_serializing_if = "is_default")]
    pub sockets: Sockets,
    /// What is set on the way between file and socket.
    #[serde(skip_serializing_if = "is_default")]
    pub files: Files,
    /// Where this process's threads run.
    #[serde(skip_serializing_if = "is_default")]
    pub threads: Threads,
    /// When less than the whole link may be used: shares of `sockets.rate`, or else of `path.rate`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timetable: Vec<Hours>,
    /// Where the values come from.
    #[serde(skip_serializing_if = "is_default")]
    pub provenance: Provenance,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a link is. Nothing is set from it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PathFacts {
    /// Least round trip.
    #[serde(with = "text::span", skip_serializing_if = "Option::is_none")]
    pub rtt_min: Option<Duration>,
    /// Median round trip, under load.
    #[serde(with = "text::span", skip_serializing_if = "Option::is_none")]
    pub rtt_p50: Option<Duration>,
    /// Segments sent again, as a fraction of all, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Largest packet, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// What the narrowest part carries, in bits per second.
    #[serde(with = "text::rate", skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

/// What is set on sockets.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sockets {
    /// Data streams, 1 to [`MAX_STREAMS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<u16>,
    /// Buffers: `auto` or a size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Congestion controls in order of preference.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub congestion: Vec<String>,
    /// Rate of one stream at most, bits per second.
    #[serde(with = "text::rate", skip_serializing_if = "Option::is_none")]
    pub pacing: Option<u64>,
    /// Rate of all streams together at most, bits per second.
    #[serde(with = "text::rate", skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Bytes that may wait unsent in the kernel.
    #[serde(with = "text::size", skip_serializing_if = "Option::is_none")]
    pub notsent_lowat: Option<u64>,
    /// How long sent data may stay unacknowledged.
    #[serde(with = "text::span", skip_serializing_if = "Option::is_none")]
    pub user_timeout: Option<Duration>,
    /// Largest segment, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mss: Option<u16>,
    /// Class of the packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dscp: Option<Dscp>,
    /// What flows are, for the networks between: IPv6 flow labels and fireflies say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scitag: Option<SciTag>,
    /// Who is sent fireflies, by this end alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub firefly: Vec<Collector>,
    /// Local address to dial from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind: Option<IpAddr>,
}

/// What is set on the way between file and socket.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Files {
    /// Unit of one I/O, in bytes.
    #[serde(with = "text::size", skip_serializing_if = "Option::is_none")]
    pub block: Option<u64>,
    /// Chunks of 4 MiB that are asked of one stream at once, 1 to [`DEPTH_MAX`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u16>,
    /// `auto`, `buffered`, `dontcache`, `direct` or `splice`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<String>,
    /// `false` only for circuits that nobody else can reach; off only if both ends say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypt: Option<bool>,
}

/// Where this process's threads run. For a client: an agent's threads are started before it knows its peers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Threads {
    /// The CPUs that the engine's threads keep to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<CpuMap>,
}

/// Where a profile's values come from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Provenance {
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<Day>,
    /// By which command.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// Kernel of the host that wrote it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kernel: String,
    /// Its interface towards the peer, and driver.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub nic: String,
    /// What the values achieved, bits per second of payload.
    #[serde(with = "text::rate", skip_serializing_if = "Option::is_none")]
    pub goodput: Option<u64>,
    /// CPU-seconds per GiB of this end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_seconds_per_gib: Option<f64>,
    /// What held it back.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub limiter: String,
}

/// How files may be read and written, as [`Files::io`] says it.
const IO_WORDS: [&str; 5] = ["auto", "buffered", "dontcache", "direct", "splice"];

impl Profile {
    /// Refuses values that parse but cannot be. The key, and a sentence.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let (sockets, files) = (&self.sockets, &self.files);
        let fail = |key, why: String| Err((key, why));
        if self.about.len() > TEXT_MAX {
            return fail("about", format!("at most {TEXT_MAX} characters"));
        }
        if self.peers.len() > PEERS_MAX {
            return fail("peers", format!("at most {PEERS_MAX} patterns"));
        }
        for peer in &self.peers {
            Pattern::parse(peer).map_err(|why| ("peers", why))?;
        }
        if self.path.loss.is_some_and(|loss| !(0.0..=1.0).contains(&loss)) {
            return fail("path.loss", "a fraction from 0 to 1".to_owned());
        }
        if sockets.streams.is_some_and(|n| n == 0 || n > MAX_STREAMS) {
            return fail("sockets.streams", format!("1 to {MAX_STREAMS}"));
        }
        if let Some(Window::Fixed(bytes)) = sockets.window
            && !(4096..=WINDOW_MAX).contains(&bytes)
        {
            return fail("sockets.window", "`auto`, or a size from 4KiB to less than 1GiB".to_owned());
        }
        check_congestion(&sockets.congestion).map_err(|why| ("sockets.congestion", why))?;
        if sockets.notsent_lowat.is_some_and(|bytes| u32::try_from(bytes).is_err()) {
            return fail("sockets.notsent_lowat", "a size below 4GiB".to_owned());
        }
        if sockets.firefly.len() > MAX_COLLECTORS {
            return fail("sockets.firefly", format!("at most {MAX_COLLECTORS} collectors"));
        }
        self.tuning().check()?;
        let block =
            |size: u64| u32::try_from(size).is_ok_and(|b| b.is_power_of_two() && (MIN_BLOCK..=MAX_BLOCK).contains(&b));
        if files.block.is_some_and(|size| !block(size)) {
            return fail("files.block", "a power of two from 64KiB to 1MiB".to_owned());
        }
        if self.timetable.len() > HOURS_MAX {
            return fail("timetable", format!("at most {HOURS_MAX} entries"));
        }
        if let Some(bad) = self.timetable.iter().find(|hours| !(hours.share > 0.0 && hours.share <= 1.0)) {
            return fail("timetable.share", format!("above 0 and up to 1, not {}", bad.share));
        }
        if let Some(full) = self.full_rate()
            && self.timetable.iter().any(|hours| full as f64 * hours.share < MIN_RATE as f64)
        {
            return fail("timetable.share", format!("a share is at least {MIN_RATE} bits per second"));
        }
        if self.full_rate().is_none() && !self.timetable.is_empty() {
            return fail("timetable", "shares need something to be of: `sockets.rate` or `path.rate`".to_owned());
        }
        if files.io.as_deref().is_some_and(|word| !IO_WORDS.contains(&word)) {
            return fail("files.io", format!("one of {}", IO_WORDS.join(", ")));
        }
        Ok(())
    }

    /// The part that travels to the other end.
    pub fn tuning(&self) -> Tuning {
        let sockets = &self.sockets;
        Tuning {
            pacing: sockets.pacing,
            notsent_lowat: sockets.notsent_lowat.and_then(|bytes| u32::try_from(bytes).ok()),
            user_timeout_ms: sockets.user_timeout.map(|time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX)),
            mss: sockets.mss,
            dscp: sockets.dscp.map(|class| class.0),
            scitag: sockets.scitag,
            depth: self.files.depth,
        }
    }

    fn full_rate(&self) -> Option<u64> {
        self.sockets.rate.or(self.path.rate)
    }

    /// The day's caps, if it has any.
    pub fn timetable(&self) -> Option<Timetable> {
        let hours = Some(self.timetable.clone()).filter(|hours| !hours.is_empty())?;
        Some(Timetable { full: self.full_rate()?, hours })
    }

    /// As a file.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a profile is plain tables of plain values")
    }
}

/// What is asked of sockets and claims beyond streams, window, congestion control and rate. Each end sets what concerns it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tuning {
    /// Rate of one stream at most, bits per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pacing: Option<u64>,
    /// Bytes that may wait unsent in the sender's kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notsent_lowat: Option<u32>,
    /// How long sent data may stay unacknowledged, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_timeout_ms: Option<u32>,
    /// Largest segment, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mss: Option<u16>,
    /// Class of the packets, 0 to 63.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dscp: Option<u8>,
    /// What its flows are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scitag: Option<SciTag>,
    /// Chunks asked of one stream at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u16>,
}

impl Tuning {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What `self` leaves open is taken from `other`.
    pub fn or(self, other: &Self) -> Self {
        Self {
            pacing: self.pacing.or(other.pacing),
            notsent_lowat: self.notsent_lowat.or(other.notsent_lowat),
            user_timeout_ms: self.user_timeout_ms.or(other.user_timeout_ms),
            mss: self.mss.or(other.mss),
            dscp: self.dscp.or(other.dscp),
            scitag: self.scitag.or(other.scitag),
            depth: self.depth.or(other.depth),
        }
    }

    /// Refuses what no socket takes, also from a peer. The key as a profile has it, and a sentence.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let fail = |key, why: String| Err((key, why));
        if self.pacing.is_some_and(|bits| !(MIN_RATE..=10_000_000_000_000_000).contains(&bits)) {
            return fail("sockets.pacing", "at least 8 kbit/s".to_owned());
        }
        if self.notsent_lowat.is_some_and(|bytes| !(4096..=1 << 30).contains(&bytes)) {
            return fail("sockets.notsent_lowat", "4KiB to 1GiB".to_owned());
        }
        let time = |ms: u32| Duration::from_millis(ms.into());
        if self.user_timeout_ms.is_some_and(|ms| !(USER_TIMEOUT_MIN..=USER_TIMEOUT_MAX).contains(&time(ms))) {
            return fail("sockets.user_timeout", "5s to 1h".to_owned());
        }
        if self.mss.is_some_and(|mss| !(SEGMENT_MIN..=SEGMENT_MAX).contains(&mss)) {
            return fail("sockets.mss", format!("{SEGMENT_MIN} to {SEGMENT_MAX} bytes"));
        }
        if self.dscp.is_some_and(|class| class > 63) {
            return fail("sockets.dscp", "0 to 63".to_owned());
        }
        if self.depth.is_some_and(|depth| depth == 0 || depth > DEPTH_MAX) {
            return fail("files.depth", format!("1 to {DEPTH_MAX} chunks"));
        }
        Ok(())
    }
}

/// Names of congestion controls in order of preference, from `bbr,cubic`.
pub fn split_congestion(text: &str) -> Vec<String> {
    // One too many is left for the check to find; a peer's endless list is not.
    text.split(',').take(CONGESTION_CHOICES_MAX + 1).map(|name| name.trim().to_owned()).collect()
}

/// Whether these can be names of congestion controls; the error is a sentence.
pub fn check_congestion(names: &[String]) -> Result<(), String> {
    let sound = |name: &String| {
        (1..=CONGESTION_NAME_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    if names.len() > CONGESTION_CHOICES_MAX {
        return Err(format!("at most {CONGESTION_CHOICES_MAX} names"));
    }
    match names.iter().find(|name| !sound(name)) {
        Some(name) => Err(format!("`{name}` is no kernel's name of an algorithm, such as cubic")),
        None => Ok(()),
    }
}

/// Which profile a transfer goes by, as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileUse {
    /// Its name.
    pub name: String,
    /// Why this one.
    pub why: String,
    /// Whether its values were tried on such a link.
    pub measured: bool,
}

impl ProfileUse {
    /// Bounds what a peer says. The error is a sentence.
    pub fn check(&self) -> Result<(), String> {
        let long = self.name.is_empty() || self.name.len() > TEXT_MAX || self.why.len() > TEXT_MAX;
        if long { Err(format!("`profile` has texts of at most {TEXT_MAX} characters")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_toml;

    fn parse(text: &str) -> Result<Profile, String> {
        let profile: Profile = parse_toml(text, std::path::Path::new("p.toml")).map_err(|e| e.to_string())?;
        profile.check().map_err(|(key, why)| format!("{key}: {why}"))?;
        Ok(profile)
    }

    pub(super) const FULL: &str = r#"
        about = "Everything that can be said"
        measured = true
        peers = ["10.0.0.0/8", "*.example.org"]
        expires = "2027-05-01"
        [path]
        rtt_min = "50ms"
        rtt_p50 = "50.4ms"
        loss = 0.0001
        mtu = 9000
        rate = "10Gbit"
        [sockets]
        streams = 8
        window = "64MiB"
        congestion = ["bbr", "cubic"]
        pacing = "2Gbit"
        rate = "9Gbit"
        notsent_lowat = "1MiB"
        user_timeout = "2m"
        mss = 8948
        dscp = "af11"
        scitag = 1038
        firefly = ["collector.example.org:10514", "[2001:db8::1]:514"]
        bind = "192.0.2.1"
        [files]
        block = "256KiB"
        depth = 16
        io = "direct"
        encrypt = true
        [threads]
        cpus = "0-3,8"
        [[timetable]]
        from = "22:00"
        to = "06:00"
        share = 0.8
        [provenance]
        date = "2026-11-25"
        command = "longhaul probe"
        kernel = "6.18"
        nic = "eth0"
        goodput = "9100Mbit"
        cpu_seconds_per_gib = 0.2
        limiter = "network"
    "#;

    #[test]
    fn every_key_is_read_and_written_back() {
        let profile = parse(FULL).unwrap();
        assert_eq!(profile.sockets.window, Some(Window::Fixed(64 << 20)));
        let want = Tuning {
            pacing: Some(2_000_000_000),
            notsent_lowat: Some(1 << 20),
            user_timeout_ms: Some(120_000),
            mss: Some(8948),
            dscp: Some(10),
            scitag: Some(SciTag::try_from(1038).unwrap()),
            depth: Some(16),
        };
        assert_eq!(profile.tuning(), want);
        let written = profile.to_toml();
        assert_eq!(parse(&written), Ok(profile), "{written}");
        // Nothing that can be said is missing above.
        let count = |text: &str| text.lines().filter(|line| line.contains('=')).count();
        assert_eq!(count(&written), count(FULL), "{written}");
        assert_eq!(parse(""), Ok(Profile::default()));
    }

    #[test]
    fn mistakes_name_the_key() {
        for (text, key) in [
            ("strems = 8", "strems"),
            ("[sockets]\nstream = 8", "stream"),
            ("[sockets]\nstreams = 0", "sockets.streams"),
            ("[sockets]\nstreams = 65", "sockets.streams"),
            ("[sockets]\nwindow = \"much\"", "window"),
            ("[sockets]\nwindow = \"1GiB\"", "sockets.window"),
            ("[sockets]\ncongestion = [\"a b\"]", "sockets.congestion"),
            ("[sockets]\ncongestion = [\"a\", \"b\", \"c\", \"d\", \"e\"]", "sockets.congestion"),
            ("[sockets]\npacing = \"1\"", "pacing"),
            ("[sockets]\nnotsent_lowat = \"1KiB\"", "sockets.notsent_lowat"),
            ("[sockets]\nnotsent_lowat = \"5GiB\"", "sockets.notsent_lowat"),
            ("[sockets]\nuser_timeout = \"1s\"", "sockets.user_timeout"),
            ("[sockets]\nuser_timeout = \"2h\"", "sockets.user_timeout"),
            ("[sockets]\nmss = 100", "sockets.mss"),
            ("[sockets]\ndscp = \"af99\"", "dscp"),
            ("[sockets]\nscitag = 64", "a SciTag is 65 to 65535"),
            ("[sockets]\nscitag = 65536", "scitag"),
            ("[sockets]\nfirefly = [\"a b\"]", "no collector"),
            ("[sockets]\nfirefly = [\"a\", \"a\", \"a\", \"a\", \"a\", \"a\", \"a\", \"a\", \"a\"]", "sockets.firefly"),
            ("[sockets]\nbind = \"eth0\"", "bind"),
            ("[files]\nblock = \"100KiB\"", "files.block"),
            ("[files]\ndepth = 65", "files.depth"),
            ("[files]\nio = \"tape\"", "files.io"),
            ("[threads]\ncpus = \"all\"", "`all` is no CPU"),
            ("[threads]\ncores = \"0\"", "cores"),
            ("[path]\nloss = 1.5", "path.loss"),
            ("[[timetable]]\nfrom = \"22:00\"\nto = \"06:00\"\nshare = 0.8", "timetable: shares need"),
            ("[path]\nrate = \"1Gbit\"\n[[timetable]]\nfrom = \"22:00\"\nto = \"06:00\"\nshare = 0", "timetable.share"),
            ("[path]\nrate = \"1Gbit\"\n[[timetable]]\nfrom = \"22\"\nto = \"06:00\"\nshare = 1", "time of the day"),
            (
                "[path]\nrate = \"8kbit\"\n[[timetable]]\nfrom = \"22:00\"\nto = \"06:00\"\nshare = 0.5",
                "timetable.share",
            ),
            ("peers = [\"10.0.0.1/8\"]", "peers"),
            ("expires = \"soon\"", "expires"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(key), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_first_wins_field_by_field() {
        let some = Tuning { mss: Some(1000), dscp: Some(8), ..Tuning::default() };
        let full = parse(FULL).unwrap().tuning();
        let both = some.or(&full);
        assert_eq!((both.mss, both.dscp, both.pacing), (Some(1000), Some(8), full.pacing));
        assert!(Tuning::default().is_empty() && Tuning::default().or(&full) == full);
        assert_eq!(serde_json::to_string(&Tuning::default()).unwrap(), "{}");
    }
}
