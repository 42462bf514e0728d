//! `longhaul clean TREE`: removes what dead transfers left.

use super::fail::{DENIED, Fail, NOT_FOUND, PARTIAL, finish, printable, say};
use super::report::count;
use crate::disk::clean::{CleanItem, CleanReport, CleanVerdict, clean};
use crate::disk::confined::Root;
use crate::disk::root::RootError;
use crate::units::Bytes;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// Left-overs that the JSON document lists; all are counted.
const LISTED: usize = 1000;

/// Arguments of `clean`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The destination tree: part files and journals below it that no live transfer holds are removed
    pub tree: PathBuf,
    /// Only what was not touched for so long: 14d, 12h, 30m, 45s
    #[arg(long, value_name = "AGE", default_value = "14d", value_parser = parse_age)]
    pub older_than: Duration,
    /// Say what would be removed, remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Parses an age: a whole number and `s`, `m`, `h`, `d` or `w`; `0` alone is allowed.
pub fn parse_age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not an age: write for example 14d, 12h or 30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let split = text.len() - text.chars().next_back().map_or(0, char::len_utf8);
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = Some(number)
        .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|n| n.parse().ok())
        .ok_or_else(wrong)?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// Runs the command. The exit code.
pub fn run(args: Args) -> u8 {
    finish(args.json, execute(&args))
}

/// Runs the command; 3 if something could not be removed or searched.
fn execute(args: &Args) -> Result<u8, Fail> {
    let root = Root::open_following(&args.tree).map_err(|error| {
        let code = match error {
            RootError::NotFound { .. } => NOT_FOUND,
            RootError::Denied { .. } => DENIED,
            _ => 1,
        };
        Fail::new(code, printable(&error.to_string()))
    })?;
    let (mut listed, mut failed) = (Vec::new(), 0);
    let report = clean(&root, args.older_than, args.dry_run, &mut |item| {
        failed += u64::from(matches!(item.verdict, CleanVerdict::Failed(_)));
        if args.json {
            if listed.len() < LISTED {
                listed.push(json_of(item));
            }
        } else if !matches!(item.verdict, CleanVerdict::Young) {
            say(&format!("{}\n", line(item, args.dry_run)));
        }
    });
    let code = if failed > 0 || report.problems > 0 { PARTIAL } else { 0 };
    if args.json {
        let CleanReport { removed, kept, bytes, problems } = report;
        let document = json!({
            "dry_run": args.dry_run, "removed": removed, "kept": kept, "bytes": bytes, "failed": failed,
            "unsearched_directories": problems, "items": listed, "exit_code": code,
        });
        say(&format!("{document}\n"));
    } else {
        say(&format!("{}\n", summary(&report, args.dry_run)));
    }
    Ok(code)
}

fn line(item: &CleanItem, dry_run: bool) -> String {
    let (path, bytes) = (&item.path, Bytes(item.bytes));
    match &item.verdict {
        CleanVerdict::Removed if dry_run => format!("would remove {path} ({bytes})"),
        CleanVerdict::Removed => format!("removed {path} ({bytes})"),
        CleanVerdict::InUse => format!("kept {path}: a running transfer has it"),
        CleanVerdict::Young => format!("kept {path}: younger than asked for"),
        CleanVerdict::Failed(error) => format!("FAILED {path}: {}", printable(&error.to_string())),
    }
}

fn json_of(item: &CleanItem) -> Value {
    let (verdict, error) = match &item.verdict {
        CleanVerdict::Removed => ("removed", None),
        CleanVerdict::InUse => ("in-use", None),
        CleanVerdict::Young => ("young", None),
        CleanVerdict::Failed(error) => ("failed", Some(error.to_string())),
    };
    json!({ "path": item.path.to_string(), "bytes": item.bytes, "verdict": verdict, "error": error })
}

fn summary(report: &CleanReport, dry_run: bool) -> String {
    let verb = if dry_run { "would be removed" } else { "removed" };
    let mut text = format!("{} {verb}, {} freed", count(report.removed, "left-over"), Bytes(report.bytes));
    if report.kept > 0 {
        text.push_str(&format!("; {} kept (in use, younger, or failed)", count(report.kept, "left-over")));
    }
    if report.problems > 0 {
        text.push_str(&format!("; {} could not be searched", count(report.problems, "directory")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn ages_as_typed() {
        assert_eq!(parse_age("14d"), Ok(Duration::from_secs(14 * 86_400)));
        assert_eq!(parse_age("0"), Ok(Duration::ZERO));
        for bad in ["", "d", "14", "-1d", "1.5h", "14 d", "1y", "99999999999999999999d", "18446744073709551615w", "1é"]
        {
            assert!(parse_age(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn removes_old_parts_and_leaves_files() {
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join(".data.lh-0123456789abcdef.part");
        fs::write(&part, b"half").unwrap();
        fs::write(dir.path().join("data"), b"whole").unwrap();
        let mut args =
            Args { tree: dir.path().to_owned(), older_than: Duration::from_secs(3600), dry_run: false, json: true };
        assert_eq!(execute(&args), Ok(0));
        assert!(part.exists(), "it is young");
        (args.older_than, args.dry_run) = (Duration::ZERO, true);
        assert_eq!(execute(&args), Ok(0));
        assert!(part.exists(), "a dry run removes nothing");
        (args.dry_run, args.json) = (false, false);
        assert_eq!(execute(&args), Ok(0));
        assert!(!part.exists() && dir.path().join("data").exists());
        args.tree = dir.path().join("none");
        assert_eq!(execute(&args).unwrap_err().code, NOT_FOUND);
    }
}
