//! A transfer's report for people, for scripts, and as an exit code.

use super::fail::{PARTIAL, printable};
use crate::engine::error::Class;
use crate::engine::spec::{Ends, Report, Verdict, Verify};
use crate::units::{BitRate, Bytes};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Failures that the text shows; the JSON document has more.
const FAILURES_SHOWN: usize = 10;

/// The exit code that a report asks for. A class that this program does not know is still a failure.
pub fn exit_code(report: &Report) -> u8 {
    let class = |word: &str| Class::from_word(word).map_or(1, Class::exit_code);
    // The rest arrived: which files did not, and why, is in the list. A run that was cut short has its own class.
    if matches!(report.verdict, Verdict::Partial | Verdict::Planned) && report.failed_files > 0 {
        return PARTIAL;
    }
    if let Some(word) = &report.error_class {
        return class(word);
    }
    match report.verdict {
        Verdict::Durable | Verdict::Verified | Verdict::Planned => {
            if report.special_files > 0 || report.failed_files > 0 { PARTIAL } else { 0 }
        }
        Verdict::Partial => PARTIAL,
        Verdict::Failed => report.failures.first().map_or(1, |failure| class(&failure.class)),
    }
}

/// The one document of `--json`: the report's keys, `exit_code`, and what the command adds.
pub fn json(report: &Report, more: &[(&str, Value)]) -> String {
    let mut document = serde_json::to_value(report).unwrap_or_default();
    if let Value::Object(keys) = &mut document {
        keys.insert("exit_code".to_owned(), exit_code(report).into());
        keys.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    }
    document.to_string()
}

/// A dozen short lines; with `explain` also what the limiter is made of.
pub fn text(report: &Report, explain: bool) -> String {
    let mut lines = Lines::default();
    lines.out.push_str(&headline(report));
    lines.out.push('\n');
    lines.add("moved", moved(report));
    if report.skipped_files > 0 {
        let (files, bytes) = (count(report.skipped_files, "file"), Bytes(report.skipped_bytes));
        lines.add("unchanged", format!("{files}, {bytes}, were there already"));
    }
    if report.resumed_bytes > 0 {
        lines.add("resumed", format!("{} were durable from an interrupted run", Bytes(report.resumed_bytes)));
    }
    if report.verdict != Verdict::Planned {
        lines.add("sent twice", resent(report));
    }
    if !report.limiter.is_empty() {
        lines.add("limited by", limiter(report));
    }
    for line in report.explanation.iter().filter(|_| explain) {
        lines.add("because", line.clone());
    }
    if report.streams > 0 {
        let again = if report.reconnects > 0 { format!(", {} reconnected", report.reconnects) } else { String::new() };
        let secret = if report.encrypted { "encrypted" } else { "NOT encrypted" };
        lines.add("streams", format!("{}{again}, {secret}", report.streams));
    }
    if let Some(measured) = report.profile_measured {
        let unproved = if measured { "" } else { ", not measured" };
        lines.add("profile", format!("{} ({}){unproved}", report.profile, report.profile_why));
    }
    lines.ends("engine", &report.engine);
    lines.ends("file I/O", &report.io);
    if let Some(cpu) = cpu(report) {
        lines.add("CPU", cpu);
    }
    if explain {
        lines.ends("CPUs", &report.cpus);
    }
    if let Some(digest) = report.digest {
        lines.add("digest", format!("xxh3:{digest}"));
    }
    for checksum in &report.checksums {
        lines.add("checksum", checksum.to_string());
    }
    if report.special_files > 0 {
        lines.add("left out", format!("{} (FIFOs, sockets, devices)", count(report.special_files, "special file")));
    }
    for note in &report.notes {
        lines.add("note", note.clone());
    }
    failures(report, &mut lines);
    lines.out
}

#[derive(Default)]
struct Lines {
    out: String,
}

impl Lines {
    fn add(&mut self, name: &str, value: String) {
        let _ = writeln!(self.out, "  {name:<12}{}", printable(&value));
    }

    fn ends(&mut self, name: &str, ends: &Ends<String>) {
        match (ends.source.as_str(), ends.destination.as_str()) {
            ("", "") => {}
            (one, "") | ("", one) => self.add(name, one.to_owned()),
            (source, destination) if source == destination => self.add(name, format!("{source} at both ends")),
            (source, destination) => {
                self.add(name, format!("{source} at the source, {destination} at the destination"))
            }
        }
    }
}

fn headline(report: &Report) -> String {
    let power = if report.durable { "" } else { " (storage that does not survive a power cut)" };
    let text = match report.verdict {
        Verdict::Verified => format!("VERIFIED: every file was synced, read back from storage and matched{power}"),
        Verdict::Durable if report.dropped => {
            "DURABLE in name only: every digest matched on receipt, and the synthetic destination threw all of it away"
                .to_owned()
        }
        Verdict::Durable => {
            format!("DURABLE: every digest matched on receipt, every file is synced under its name{power}")
        }
        Verdict::Planned => "PLANNED: nothing was changed; this is what would be done".to_owned(),
        Verdict::Partial => match report.failed_files {
            0 => "PARTIAL: not everything arrived".to_owned(),
            failed => format!("PARTIAL: {} did not arrive, the rest did", count(failed, "file")),
        },
        Verdict::Failed if report.error_class.as_deref() == Some(Class::Interrupted.word()) => "STOPPED".to_owned(),
        Verdict::Failed => "FAILED".to_owned(),
    };
    match &report.error {
        Some(error) => printable(&format!("{text}: {error}")),
        None => text,
    }
}

fn moved(report: &Report) -> String {
    let mut line = format!("{} in {}", Bytes(report.bytes), count(report.files, "file"));
    for (number, name) in [(report.directories, "directory"), (report.symlinks, "symlink")] {
        if number > 0 {
            let _ = write!(line, ", {}", count(number, name));
        }
    }
    if report.duration_ns > 0 && report.verdict != Verdict::Planned {
        let _ = write!(line, ", {} at {}", duration(report.duration_ns), BitRate(report.bits_per_second));
    }
    if report.hole_bytes > 0 {
        let _ = write!(line, "; {} of holes not sent", Bytes(report.hole_bytes));
    }
    line
}

fn resent(report: &Report) -> String {
    let what = if report.resent_bytes == 0 { "nothing".to_owned() } else { Bytes(report.resent_bytes).to_string() };
    // What the interrupted run had under way counts there.
    let what = if report.resumed_bytes > 0 { format!("{what} in this run") } else { what };
    let bad = match report.failed_chunks {
        0 => String::new(),
        chunks => format!(" ({} arrived damaged and {} fetched again)", count(chunks, "chunk"), was(chunks)),
    };
    let sent =
        if report.sent_bytes > 0 { format!("; the source sent {}", Bytes(report.sent_bytes)) } else { String::new() };
    format!("{what}{bad}{sent}")
}

fn limiter(report: &Report) -> String {
    let shares = shares(&report.limiter_shares, 4);
    if shares.is_empty() { report.limiter.clone() } else { format!("{} ({shares})", report.limiter) }
}

/// The largest of a limiter's shares, `most` at most, in percent.
pub fn shares(shares: &BTreeMap<String, f64>, most: usize) -> String {
    let mut shares: Vec<_> = shares.iter().filter(|(_, share)| **share >= 0.01).collect();
    shares.sort_by(|a, b| b.1.total_cmp(a.1));
    let told = shares.iter().take(most).map(|(name, share)| format!("{} {:.0} %", printable(name), *share * 100.0));
    told.collect::<Vec<_>>().join(", ")
}

fn cpu(report: &Report) -> Option<String> {
    let Ends { source, destination } = report.cpu_ns;
    let gib = report.received_bytes as f64 / (1u64 << 30) as f64;
    // Below this a figure per GiB says more about the start than about the path.
    const LEAST_GIB: f64 = 0.25;
    if source + destination == 0 || gib < LEAST_GIB {
        return None;
    }
    let per = |ns: u64| format!("{:.2} s/GiB", ns as f64 / 1e9 / gib);
    Some(match source {
        0 => format!("{} for both ends in one process", per(destination)),
        _ => format!("{} at the source, {} at the destination", per(source), per(destination)),
    })
}

fn failures(report: &Report, lines: &mut Lines) {
    for failure in report.failures.iter().take(FAILURES_SHOWN) {
        lines.add("failed", format!("{}: {}", failure.path, failure.reason));
    }
    let more = report.failed_files.saturating_sub(report.failures.len().min(FAILURES_SHOWN) as u64);
    if more > 0 {
        lines.add("failed", format!("and {} (--json lists the first thousand)", count(more, "more file")));
    }
    if report.verify == Verify::Wire && matches!(report.verdict, Verdict::Durable) && !report.dropped {
        lines.add("proof", "digests on receipt; `--verify disk` also reads back from storage".to_owned());
    }
}

fn was(number: u64) -> &'static str {
    if number == 1 { "was" } else { "were" }
}

/// `1 file`, `2,004 files`.
pub fn count(number: u64, name: &str) -> String {
    let name = match (number, name.strip_suffix('y')) {
        (1, _) => name.to_owned(),
        (_, Some(stem)) => format!("{stem}ies"),
        _ => format!("{name}s"),
    };
    format!("{} {name}", grouped(number))
}

/// With commas between thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `83 ms`, `2.84 s`, `12 min 5 s`, `3 h 20 min`.
pub fn duration(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    match seconds {
        0 => format!("{} ms", ns / 1_000_000),
        1..60 => format!("{:.2} s", ns as f64 / 1e9),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::spec::Failure;

    fn good() -> Report {
        Report {
            verdict: Verdict::Verified,
            bytes: 4 << 30,
            files: 2004,
            directories: 12,
            symlinks: 1,
            received_bytes: 4 << 30,
            sent_bytes: (4 << 30) + (8 << 20),
            resent_bytes: 8 << 20,
            resumed_bytes: 2 << 30,
            failed_chunks: 1,
            duration_ns: 2_840_000_000,
            bits_per_second: 12_098_000_000,
            streams: 8,
            encrypted: true,
            verify: Verify::Disk,
            durable: true,
            engine: Ends { source: "io_uring".into(), destination: "epoll".into() },
            limiter: "disk write".into(),
            limiter_shares: [("disk write".to_owned(), 0.62), ("network".to_owned(), 0.3)].into(),
            cpu_ns: Ends { source: 2_000_000_000, destination: 3_000_000_000 },
            ..Report::default()
        }
    }

    #[test]
    fn a_person_reads_what_happened() {
        let text = text(&good(), false);
        let want = "\
VERIFIED: every file was synced, read back from storage and matched
  moved       4.0 GiB in 2,004 files, 12 directories, 1 symlink, 2.84 s at 12.1 Gbit/s
  resumed     2.0 GiB were durable from an interrupted run
  sent twice  8.0 MiB in this run (1 chunk arrived damaged and was fetched again); the source sent 4.0 GiB
  limited by  disk write (disk write 62 %, network 30 %)
  streams     8, encrypted
  engine      io_uring at the source, epoll at the destination
  CPU         0.50 s/GiB at the source, 0.75 s/GiB at the destination
";
        assert_eq!(text, want);
    }

    #[test]
    fn weak_promises_are_said() {
        let report =
            Report { verdict: Verdict::Durable, durable: false, encrypted: false, verify: Verify::Wire, ..good() };
        let text = text(&report, false);
        assert!(text.contains("does not survive a power cut") && text.contains("NOT encrypted"), "{text}");
        assert!(text.contains("--verify disk") && !text.contains("VERIFIED"), "{text}");
        let nothing = super::text(&Report { dropped: true, ..report }, false);
        assert!(nothing.starts_with("DURABLE in name only") && nothing.contains("threw all of it away"), "{nothing}");
        assert!(!nothing.contains("under its name") && !nothing.contains("--verify disk"), "{nothing}");
    }

    #[test]
    fn a_hostile_peer_cannot_drive_the_terminal() {
        let failure = Failure { path: "a\x1b[2J".into(), class: "permanent".into(), reason: "x\ny".into() };
        let report =
            Report { notes: vec!["\x1b]0;t\x07".into()], failures: vec![failure], error: Some("\r".into()), ..good() };
        let text = text(&report, false);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert_eq!(text.lines().count(), 10);
    }

    #[test]
    fn exit_codes() {
        let code = |change: &dyn Fn(&mut Report)| {
            let mut report = good();
            change(&mut report);
            exit_code(&report)
        };
        assert_eq!(code(&|_| ()), 0);
        assert_eq!(code(&|r| r.special_files = 1), 3);
        assert_eq!(code(&|r| r.verdict = Verdict::Partial), 3);
        assert_eq!(code(&|r| r.verdict = Verdict::Failed), 1);
        assert_eq!(code(&|r| r.error_class = Some("interrupted".into())), 130);
        assert_eq!(code(&|r| r.error_class = Some("denied".into())), 10);
        assert_eq!(code(&|r| r.error_class = Some("of tomorrow".into())), 1);
        let failure = Failure { path: "a".into(), class: "verification".into(), reason: "other bytes".into() };
        assert_eq!(code(&|r| (r.verdict, r.failures) = (Verdict::Failed, vec![failure.clone()])), 6);
    }

    #[test]
    fn json_is_one_document_with_the_contracts_keys() {
        let line = json(&good(), &[("manifest", "m.jsonl".into())]);
        assert_eq!(line.lines().count(), 1);
        let value: Value = serde_json::from_str(&line).unwrap();
        for key in
            "bytes files received_bytes resent_bytes duration_ns bits_per_second streams encrypted verified engine \
                    profile limiter cpu_ns exit_code manifest"
                .split_whitespace()
        {
            assert!(value.get(key).is_some(), "{key}");
        }
        assert_eq!(value["verdict"], "VERIFIED");
        assert_eq!(value["cpu_ns"]["source"], 2_000_000_000u64);
    }

    #[test]
    fn numbers_as_people_write_them() {
        assert_eq!((grouped(0), grouped(999), grouped(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!((count(1, "directory"), count(2, "directory")), ("1 directory".into(), "2 directories".into()));
        assert_eq!((duration(83_000_000), duration(725_000_000_000)), ("83 ms".into(), "12 min 5 s".into()));
    }
}
