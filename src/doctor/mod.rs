//! `longhaul doctor`: what of a host stands in the way of a long link, and what to do about it. It changes nothing.
//!
//! [`gather`] looks and gives [`Facts`]; [`check`] judges them and is pure: a record of another host is judged alike.

pub mod facts;
pub mod gather;
mod host;
mod netlink;
mod network;
mod tcp;

pub use facts::Facts;

use crate::units::{BitRate, Bytes};
use serde::Serialize;
use std::time::Duration;

/// A window that one stream cannot fill is made up for by so many (the engine's own number on long links).
const STREAMS: u64 = 8;
/// A long link that nobody has measured, for the figures that depend on it.
const RTT_ASSUMED: Duration = Duration::from_millis(100);
/// The rate that is taken for an interface which does not know its own, bits per second.
const RATE_ASSUMED: u64 = 10_000_000_000;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It holds transfers back, or breaks something. The command's exit code tells.
    Wrong,
    /// It may help.
    Advice,
    /// It could not be seen from here.
    Unknown,
    /// It is as wanted.
    Fine,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// What was looked at: a sysctl, an interface's property.
    pub topic: String,
    /// As it is.
    pub measured: String,
    /// As it is wanted.
    pub wanted: String,
    /// Why it is wanted.
    pub why: String,
    /// Who says so.
    pub source: &'static str,
    /// The command that changes it, as root, until the next boot.
    pub command: Option<String>,
}

/// The link that a host is to be good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Bits per second.
    pub rate: u64,
    /// Round trip, µs.
    pub rtt_us: u64,
    /// Where the two come from.
    pub origin: String,
}

impl Target {
    /// The rate and round trip that somebody named, else the interface's and the peer's, else assumed ones.
    pub fn of(facts: &Facts, rate: Option<u64>, rtt: Option<Duration>) -> Self {
        let way = facts.peer.as_ref().and_then(|peer| peer.interface.as_deref());
        let leads = |name: &str| way.is_none_or(|way| way == name);
        let fastest = facts.interfaces.iter().filter(|i| leads(&i.name)).filter_map(|i| i.speed_mbit).max();
        let (rate, rate_from) = match (rate, fastest) {
            (Some(rate), _) => (rate, "as asked"),
            (None, Some(mbit)) => (u64::from(mbit) * 1_000_000, "of the interface"),
            (None, None) => (RATE_ASSUMED, "assumed: no interface tells its own"),
        };
        let (rtt_us, rtt_from) = match (rtt, facts.peer.as_ref().and_then(|peer| peer.rtt_us)) {
            (Some(rtt), _) => (rtt.as_micros() as u64, "as asked"),
            (None, Some(us)) => (us, "measured to the peer"),
            (None, None) => (RTT_ASSUMED.as_micros() as u64, "assumed"),
        };
        let origin = if rate_from == rtt_from {
            rate_from.to_owned()
        } else {
            format!("rate {rate_from}, round trip {rtt_from}")
        };
        Self { rate, rtt_us, origin }
    }

    /// Bandwidth times delay, in bytes.
    pub fn bdp(&self) -> u64 {
        (u128::from(self.rate) * u128::from(self.rtt_us) / 8_000_000) as u64
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rtt = crate::units::write_span(Duration::from_micros(self.rtt_us));
        write!(f, "{} x {rtt} ({})", BitRate(self.rate), self.origin)
    }
}

/// Judges a host. The worst comes first, otherwise in the order of the checks.
pub fn check(facts: &Facts, target: &Target) -> Vec<Finding> {
    let mut findings = Vec::new();
    tcp::check(facts, target, &mut findings);
    network::check(facts, target, &mut findings);
    host::check(facts, &mut findings);
    findings.sort_by_key(|finding| finding.level);
    findings
}

/// A finding in the making.
struct Look<'a> {
    topic: String,
    measured: String,
    source: &'static str,
    into: &'a mut Vec<Finding>,
}

impl<'a> Look<'a> {
    fn at(into: &'a mut Vec<Finding>, topic: impl Into<String>, measured: impl ToString, source: &'static str) -> Self {
        Self { topic: topic.into(), measured: measured.to_string(), source, into }
    }

    fn end(self, level: Level, wanted: impl Into<String>, why: impl Into<String>, command: Option<String>) {
        let Self { topic, measured, source, into } = self;
        into.push(Finding { level, topic, measured, wanted: wanted.into(), why: why.into(), source, command });
    }

    /// `level` unless `good`. Nothing is to be done about what is fine.
    fn judge(
        self,
        good: bool,
        level: Level,
        wanted: impl Into<String>,
        why: impl Into<String>,
        command: Option<String>,
    ) {
        let (level, command) = if good { (Level::Fine, None) } else { (level, command) };
        self.end(level, wanted, why, command);
    }
}

fn size(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

#[cfg(test)]
mod tests;
