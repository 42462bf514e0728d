//! The parts and the whole in one table that names the bottleneck. Pure.

use super::parts::{Kind, Part, bottleneck, share};
use crate::cli::fail::printable;
use crate::cli::picture::{bar, sparks};
use crate::cli::service::table;
use crate::engine::spec::Latency;
use crate::units::BitRate;
use std::fmt::Write as _;

/// The table, the bottleneck and the notes; `title` above them.
pub fn text(parts: &[Part], title: &str, notes: &[String]) -> String {
    let slowest = bottleneck(parts);
    // The fastest thread of a digest would leave no more than a stroke of the rest.
    let top = parts.iter().filter(|part| part.needed).map(|part| part.rate).max().unwrap_or(0);
    let rows = parts.iter().map(|part| {
        let mark = if slowest.is_some_and(|slowest| std::ptr::eq(slowest, part)) { "*" } else { " " };
        let bar = if part.needed { bar(part.rate, top) } else { bar(0, top) };
        let latency = part.latency.as_ref().map(times).unwrap_or_default();
        [format!("{mark} {}", part.kind.name()), BitRate(part.rate).to_string(), bar, latency, part.how.clone()]
    });
    let mut out = format!("{}\n", printable(title));
    out.push_str(&table(["  PART", "RATE", "", "BLOCK OR CHUNK, p50 p99 max", "HOW"], rows));
    if let Some(slowest) = slowest {
        let _ = write!(out, "bottleneck: {} at {}", slowest.kind.name(), BitRate(slowest.rate));
        match share(parts) {
            Some(share) => {
                let _ = writeln!(out, "; end to end reaches {:.0} % of it", share * 100.0);
            }
            None => out.push('\n'),
        }
    }
    for part in parts.iter().filter(|part| matches!(part.kind, Kind::Network | Kind::Whole) && part.samples.len() > 1) {
        let fastest = part.samples.iter().scan(0, |before, (at, bytes)| {
            let took = at.saturating_sub(std::mem::replace(before, *at)).max(1);
            Some(*bytes as f64 * 8e6 / took as f64)
        });
        let fastest = fastest.fold(0.0, f64::max);
        let _ = writeln!(out, "{:<11} {}", part.kind.name(), sparks(&part.samples, fastest));
    }
    let told = parts.iter().flat_map(|part| part.notes.iter().map(|note| format!("{}: {note}", part.kind.name())));
    for note in told.chain(notes.iter().cloned()) {
        let _ = writeln!(out, "note: {}", printable(&note));
    }
    out
}

/// `12 µs 40 µs 1.3 ms`.
fn times(latency: &Latency) -> String {
    [latency.p50, latency.p99, latency.max].map(time).join(" ")
}

fn time(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{} µs", ns / 1_000),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::super::parts::tests::part;
    use super::*;

    #[test]
    fn the_bottleneck_is_marked_and_named() {
        let mut parts = vec![
            part(Kind::Digest, 200_000_000_000),
            part(Kind::Blocks, 80_000_000_000),
            part(Kind::DiskWrite, 5_000_000_000),
            part(Kind::Network, 40_000_000_000),
            part(Kind::Whole, 4_000_000_000),
        ];
        parts[0].needed = false;
        parts[2].latency = Some(Latency { p50: 90_000, p99: 2_500_000, max: 3_000_000_000, ..Latency::default() });
        parts[3].notes.push("bbr was \x1b refused".to_owned());
        let shown = text(&parts, "a title", &["both ends share 2 cores".to_owned()]);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[0] == "a title" && lines[1].starts_with("  PART"), "{shown}");
        assert!(lines[4].starts_with("* disk write") && lines[4].contains("90 µs 2.5 ms 3.00 s"), "{shown}");
        assert_eq!(lines.iter().filter(|line| line.starts_with('*')).count(), 1, "{shown}");
        assert!(shown.contains("bottleneck: disk write at 5.0 Gbit/s; end to end reaches 80 % of it\n"), "{shown}");
        assert!(lines[3].matches('█').count() == 24 && lines[5].matches('█').count() == 12, "{shown}");
        assert!(!lines[2].contains('█'), "one thread's digest is no part that a transfer waits for: {shown}");
        assert!(
            shown.contains("note: network: bbr was \\u{1b} refused\n") && shown.ends_with("both ends share 2 cores\n")
        );
    }

    #[test]
    fn without_a_whole_there_is_no_share() {
        let shown = text(&[part(Kind::Network, 1_000_000)], "", &[]);
        assert!(shown.contains("bottleneck: network at 1.0 Mbit/s\n"), "{shown}");
        assert!(!text(&[part(Kind::Whole, 1)], "", &[]).contains("bottleneck"));
    }
}
