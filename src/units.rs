//! Sizes and rates as people write them: `4MiB`, `2Gbit`, `100MiB` (a rate, per second).
//!
//! Sizes are bytes: `K M G T` are decimal, `Ki Mi Gi Ti` binary, an optional `B` may follow. Rates are kept in bits per
//! second: a unit ending in `bit` counts bits, any other counts bytes, as in a size.

use std::fmt;

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
    }
}
