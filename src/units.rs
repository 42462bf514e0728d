//! Sizes and rates as people write them: `4MiB`, `2Gbit`, `100MiB` (a rate, per second).
//!
//! Sizes are bytes: `K M G T` are decimal, `Ki Mi Gi Ti` binary, an optional `B` may follow. Rates are kept in bits per
//! second: a unit ending in `bit` counts bits, any other counts bytes, as in a size. Times are `us`, `ms`, `s`, `m`, `h`.

use std::fmt;
use std::time::Duration;

/// What was wrong with a size or a rate that somebody typed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{input}` is not a {what}: write for example {example}")]
pub struct UnitError {
    input: String,
    what: &'static str,
    example: &'static str,
}

fn split(input: &str) -> Option<(f64, &str)> {
    let text = input.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    number.is_finite().then(|| (number, text[end..].trim()))
}

fn multiplier(unit: &str) -> Option<f64> {
    Some(match unit.strip_suffix(['B', 'b']).unwrap_or(unit).to_ascii_lowercase().as_str() {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        "ki" => 1024.0,
        "mi" => 1024.0 * 1024.0,
        "gi" => 1024.0 * 1024.0 * 1024.0,
        "ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    })
}

/// Parses a size in bytes, at most 2^63.
pub fn parse_size(input: &str) -> Result<u64, UnitError> {
    let fail = || UnitError { input: input.to_owned(), what: "size", example: "4MiB or 512K" };
    let (number, unit) = split(input).ok_or_else(fail)?;
    let value = number * multiplier(unit).ok_or_else(fail)?;
    if value < 0.0 || value > (1u64 << 63) as f64 {
        return Err(fail());
    }
    Ok(value.round() as u64)
}

/// Parses a rate into bits per second: `2Gbit`, `500Mbit`, `100MiB`. At least 8 kbit/s.
pub fn parse_rate(input: &str) -> Result<u64, UnitError> {
    let fail = || UnitError { input: input.to_owned(), what: "rate", example: "2Gbit, 500Mbit or 100MiB" };
    let text = input.trim().trim_end_matches("/s");
    let lower = text.to_ascii_lowercase();
    let bits = match lower.strip_suffix("bit") {
        Some(rest) => {
            let (number, unit) = split(rest).ok_or_else(fail)?;
            number * multiplier(unit).ok_or_else(fail)?
        }
        None => parse_size(text).map_err(|_| fail())? as f64 * 8.0,
    };
    if !(8_000.0..=1e16).contains(&bits) {
        return Err(fail());
    }
    Ok(bits.round() as u64)
}

/// Parses a time from 1 µs to a day: `50ms`, `1.5s`, `2m`. A number alone has no meaning.
pub fn parse_span(input: &str) -> Result<Duration, UnitError> {
    let fail = || UnitError { input: input.to_owned(), what: "time", example: "50ms, 1.5s or 2m" };
    let (number, unit) = split(input).ok_or_else(fail)?;
    let micros = number
        * match unit {
            "us" | "µs" => 1.0,
            "ms" => 1e3,
            "s" => 1e6,
            "m" => 60e6,
            "h" => 3600e6,
            _ => return Err(fail()),
        };
    if !(1.0..=86_400e6).contains(&micros) {
        return Err(fail());
    }
    Ok(Duration::from_micros(micros.round() as u64))
}

/// A size that [`parse_size`] reads back to the same number.
pub fn write_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = units.iter().find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    whole.map_or_else(|| format!("{bytes}B"), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// A rate in bits per second that [`parse_rate`] reads back to the same number.
pub fn write_rate(bits: u64) -> String {
    let units = [(1_000_000_000, "Gbit"), (1_000_000, "Mbit"), (1_000, "kbit")];
    let whole = units.iter().find(|(unit, _)| bits.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{bits}bit"), |(unit, name)| format!("{}{name}", bits / unit))
}

/// A time that [`parse_span`] reads back to the same microsecond.
pub fn write_span(time: Duration) -> String {
    let micros = time.as_micros();
    match micros {
        0..1_000 => format!("{micros}us"),
        _ if micros.is_multiple_of(1_000_000) => format!("{}s", micros / 1_000_000),
        _ => format!("{}ms", micros as f64 / 1e3),
    }
}

/// Shows a size in binary units, as in `3.9 GiB`.
#[derive(Debug, Clone, Copy)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        if unit == 0 { write!(f, "{} B", self.0) } else { write!(f, "{value:.1} {}", UNITS[unit]) }
    }
}

/// Shows a rate in decimal units, as in `12.3 Gbit/s`.
#[derive(Debug, Clone, Copy)]
pub struct BitRate(pub u64);

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1000.0 && unit + 1 < UNITS.len() {
            value /= 1000.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_rates_as_typed() {
        assert_eq!(parse_size("4MiB"), Ok(4 << 20));
        assert_eq!(parse_size("512K"), Ok(512_000));
        assert_eq!(parse_size("1.5Gi"), Ok(3 << 29));
        assert_eq!(parse_size("0"), Ok(0));
        assert!(parse_size("-1").is_err() && parse_size("4MoB").is_err() && parse_size("").is_err());
        assert_eq!(parse_rate("2Gbit"), Ok(2_000_000_000));
        assert_eq!(parse_rate("500Mbit/s"), Ok(500_000_000));
        assert_eq!(parse_rate("100MiB"), Ok(838_860_800));
        assert!(parse_rate("0").is_err() && parse_rate("fast").is_err());
        assert_eq!(parse_span("50.4ms"), Ok(Duration::from_micros(50_400)));
        assert_eq!(parse_span("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_span("5").is_err() && parse_span("0s").is_err() && parse_span("25h").is_err());
    }

    #[test]
    fn what_is_written_reads_back() {
        for bytes in [0, 1, 1000, 1024, 1536, 3 << 20, (1 << 30) + 1024, 1 << 40] {
            assert_eq!(parse_size(&write_size(bytes)), Ok(bytes), "{}", write_size(bytes));
        }
        for bits in [8_000, 8_001, 2_000_000_000, 12_345_000, 1_234_567_890] {
            assert_eq!(parse_rate(&write_rate(bits)), Ok(bits), "{}", write_rate(bits));
        }
        for micros in [1, 999, 1_000, 50_400, 50_401, 1_000_000, 1_500_000, 7_200_000_000, 86_399_999_999] {
            let time = Duration::from_micros(micros);
            assert_eq!(parse_span(&write_span(time)), Ok(time), "{}", write_span(time));
        }
        assert_eq!((write_size(3 << 20), write_rate(2_500_000_000)), ("3MiB".to_owned(), "2500Mbit".to_owned()));
    }
}
