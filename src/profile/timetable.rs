//! Hours of the day in which a link is used in part only.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// A time of the day, in minutes after midnight; written `22:30`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeOfDay(u16);

impl TimeOfDay {
    /// Reads `HH:MM`, `00:00` to `24:00`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let digits =
            |part: &str| (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok());
        let minutes = text.split_once(':').and_then(|(hours, minutes)| {
            let (hours, minutes): (u16, u16) = (digits(hours)??, digits(minutes)??);
            (minutes < 60 && hours * 60 + minutes <= DAY).then_some(hours * 60 + minutes)
        });
        minutes.map(Self).ok_or_else(|| format!("`{text}` is no time of the day, such as 22:30"))
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl Serialize for TimeOfDay {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TimeOfDay {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// One entry of a timetable: from one time of the day, by the host's clock and time zone, up to another, past midnight where
/// that is earlier or the same.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hours {
    /// The first minute.
    pub from: TimeOfDay,
    /// The first minute after it.
    pub to: TimeOfDay,
    /// Of the link's rate, above 0 and up to 1.
    pub share: f64,
}

impl Hours {
    fn covers(&self, minute: u16) -> bool {
        let (from, to) = (self.from.0 % DAY, self.to.0);
        if from < to { (from..to).contains(&minute) } else { minute >= from || minute < to }
    }
}

/// A day's caps.
#[derive(Debug, Clone, PartialEq)]
pub struct Timetable {
    /// What the shares are of, bits per second.
    pub full: u64,
    /// Its entries; at other times there is no cap. Where two overlap, the lower one holds.
    pub hours: Vec<Hours>,
}

impl Timetable {
    /// The cap at a minute of the day (0 to 1439), bits per second.
    pub fn cap(&self, minute: u16) -> Option<u64> {
        let shares = self.hours.iter().filter(|hours| hours.covers(minute)).map(|hours| hours.share);
        shares.reduce(f64::min).map(|share| (self.full as f64 * share) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(from: &str, to: &str, share: f64) -> Hours {
        Hours { from: TimeOfDay::parse(from).unwrap(), to: TimeOfDay::parse(to).unwrap(), share }
    }

    #[test]
    fn nights_go_past_midnight_and_the_lower_cap_holds() {
        let table = Timetable {
            full: 1_000_000_000,
            hours: vec![hours("22:00", "06:00", 0.8), hours("06:00", "22:00", 0.2), hours("05:30", "07:00", 0.1)],
        };
        for (at, percent) in [
            ("22:00", 80),
            ("23:59", 80),
            ("00:00", 80),
            ("05:29", 80),
            ("05:30", 10),
            ("06:59", 10),
            ("07:00", 20),
            ("21:59", 20),
        ] {
            let minute = TimeOfDay::parse(at).unwrap().0;
            assert_eq!(table.cap(minute), Some(percent * 10_000_000), "{at}");
        }
        let one = |from, to| Timetable { full: 8, hours: vec![hours(from, to, 0.5)] };
        assert_eq!((one("08:00", "18:00").cap(7 * 60), one("08:00", "18:00").cap(8 * 60)), (None, Some(4)));
        for whole in [one("00:00", "24:00"), one("08:00", "08:00"), one("24:00", "00:00")] {
            assert!((0..1440).all(|minute| whole.cap(minute) == Some(4)), "{whole:?}");
        }
    }

    #[test]
    fn times_as_people_write_them() {
        assert_eq!(TimeOfDay::parse("06:05").unwrap().to_string(), "06:05");
        for bad in ["", "6:05", "06:5", "06:60", "24:01", "25:00", "0605", "+6:00", "06:00:00"] {
            assert!(TimeOfDay::parse(bad).is_err(), "{bad}");
        }
    }
}
