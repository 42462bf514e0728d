//! Values of a profile as people write them: `64MiB`, `2Gbit`, `50ms`, `af11`, `2026-11-25`.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

macro_rules! written {
    ($name:ident, $type:ty, $parse:path, $write:path) => {
        /// An optional value in a profile's own notation.
        pub(super) mod $name {
            use super::*;

            pub fn serialize<S: Serializer>(value: &Option<$type>, s: S) -> Result<S::Ok, S::Error> {
                value.map($write).serialize(s)
            }

            pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<$type>, D::Error> {
                $parse(&String::deserialize(d)?).map(Some).map_err(D::Error::custom)
            }
        }
    };
}

written!(size, u64, crate::units::parse_size, crate::units::write_size);
written!(rate, u64, crate::units::parse_rate, crate::units::write_rate);
written!(span, std::time::Duration, crate::units::parse_span, crate::units::write_span);

/// The socket buffers of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// The kernel grows them as it sees fit; below 1 ms of round trip the engine's 1 MiB.
    Auto,
    /// So many bytes, each way. Ends the kernel's tuning.
    Fixed(u64),
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => s.serialize_str("auto"),
            Self::Fixed(bytes) => s.serialize_str(&crate::units::write_size(*bytes)),
        }
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match String::deserialize(d)?.as_str() {
            "auto" => Ok(Self::Auto),
            text => crate::units::parse_size(text).map(Self::Fixed).map_err(D::Error::custom),
        }
    }
}

/// The six bits of a packet's class, 0 to 63 (RFC 2474).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dscp(pub u8);

/// Names that operators use (RFC 2474, 2597, 3246, 8622).
const CLASSES: [(&str, u8); 22] = [
    ("cs0", 0),
    ("le", 1),
    ("cs1", 8),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("cs2", 16),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("cs3", 24),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("cs4", 32),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("cs5", 40),
    ("ef", 46),
    ("cs6", 48),
    ("cs7", 56),
];

impl Dscp {
    /// Reads a name or a number.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let named = CLASSES.iter().find(|(name, _)| *name == lower).map(|(_, value)| *value);
        named
            .or_else(|| text.parse().ok().filter(|value| *value <= 63))
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no DSCP: 0 to 63, or a name such as af11, cs1, ef, le"))
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match CLASSES.iter().find(|(_, value)| *value == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Dscp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Dscp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(D::Error::custom)
    }
}

/// A day of the calendar, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day {
    year: u16,
    month: u8,
    day: u8,
}

impl Day {
    /// Reads `2026-11-25`, from 1970 on.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fail = || format!("`{text}` is no day: write for example 2026-11-25");
        let part = |from: usize, to: usize| {
            text.get(from..to).filter(|t| t.bytes().all(|b| b.is_ascii_digit())).and_then(|t| t.parse().ok())
        };
        let (Some(year), Some(month), Some(day)) = (part(0, 4), part(5, 7), part(8, 10)) else { return Err(fail()) };
        let sound = text.len() == 10 && text.as_bytes()[4] == b'-' && text.as_bytes()[7] == b'-';
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            2 => 28 + u16::from(leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => 0,
        };
        if !sound || year < 1970 || !(1..=days).contains(&day) {
            return Err(fail());
        }
        Ok(Self { year, month: month as u8, day: day as u8 })
    }

    /// The day of a number of seconds since 1970 (Howard Hinnant's `civil_from_days`).
    pub fn of_unix(seconds: u64) -> Self {
        let z = seconds / 86_400 + 719_468;
        let (era, day_of_era) = (z / 146_097, z % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        Self { year: year as u16, month: month as u8, day: (day_of_year - (153 * shifted + 2) / 5 + 1) as u8 }
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl Serialize for Day {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Day {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_and_days() {
        assert_eq!(
            (Dscp::parse("AF11"), Dscp::parse("46"), Dscp::parse("0")),
            (Ok(Dscp(10)), Ok(Dscp(46)), Ok(Dscp(0)))
        );
        assert!(Dscp::parse("64").is_err() && Dscp::parse("af14").is_err() && Dscp::parse("-1").is_err());
        assert_eq!((Dscp(46).to_string(), Dscp(3).to_string()), ("ef".to_owned(), "3".to_owned()));
        for (seconds, day) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_795_564_800, "2026-11-25"),
            (4_107_542_399, "2100-02-28"),
        ] {
            assert_eq!(Day::of_unix(seconds).to_string(), day);
            assert_eq!(Day::parse(day), Ok(Day::of_unix(seconds)));
        }
        assert!(Day::parse("2026-11-25").unwrap() < Day::parse("2026-12-01").unwrap());
        for bad in ["2026-02-29", "2026-13-01", "2026-1-1", "2026-11-31", "1969-12-31", "26-11-2511", "2026-11-25Z"] {
            assert!(Day::parse(bad).is_err(), "{bad}");
        }
    }
}
