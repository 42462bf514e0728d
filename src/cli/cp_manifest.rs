//! `cp --write-manifest`: the rows come from the transfer itself, so that they say what was sent, whatever has become of
//! the files since.

use super::cp::Args;
use super::fail::{Fail, VERIFICATION, show};
use super::manifest_file::{ManifestHeader, sha256_path, write_manifest, write_sha256};
use super::operands::{From, Plan, To};
use super::tree::{Kind, below, hash_file, look};
use crate::checksum::{ChecksumKind, Expected};
use crate::digest::Digest;
use crate::engine::rows::Row;
use crate::engine::spec::Report;
use crate::manifest::{EntryKind, ManifestRow, RowKind};
use crate::relpath::RelPath;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Permission bits that are kept without `--preserve special`.
const PLAIN_MODE: u32 = 0o777;

/// One source root: where its files are at this end, and the name that it has in the manifest.
struct Top {
    here: PathBuf,
    name: RelPath,
}

/// Writes the manifest, and the `sha256sum` file, which takes a second read of the files at this end.
pub fn manifest(args: &Args, plan: &Plan, path: &Path, rows: Vec<Row>, report: &mut Report) -> Result<Value, Fail> {
    let mut kinds = args.checksum.clone();
    if args.sha256 && !kinds.contains(&ChecksumKind::Sha256) {
        kinds.push(ChecksumKind::Sha256);
    }
    let tops = tops(plan, &rows)?;
    let made: Vec<Made> =
        rows.into_par_iter().map(|row| one(args, plan, &tops, row, &kinds)).collect::<Result<_, Fail>>()?;
    let read = made.iter().filter(|made| matches!(made, Made::Read(_))).count();
    let unknown = made.iter().filter(|made| matches!(made, Made::Unknown)).count();
    let rows: Vec<ManifestRow> = made.into_iter().filter_map(Made::row).collect();
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let header = ManifestHeader::new(report.transfer, created);
    let written = write_manifest(path, &header, rows.iter().cloned().map(Ok))?;
    if read > 0 {
        let why = if kinds.is_empty() { "files that were left as they were" } else { "files for their checksums" };
        report.notes.push(format!("the manifest took a second read of {read} {why}"));
    }
    if unknown > 0 {
        report.notes.push(format!(
            "{unknown} files that were left as they were at the agent are not in the manifest: nothing is known of them"
        ));
    }
    let (names, files) = (written.count, written.files);
    let mut value = json!({ "path": show(path), "names": names, "files": files, "second_read": read > 0 });
    if args.sha256 {
        let sums = sha256_path(path);
        // Every row has its checksum by now.
        let (files, _) = write_sha256(&sums, Path::new("/"), &rows)?;
        value["sha256"] = json!({ "path": show(&sums), "files": files });
    }
    Ok(value)
}

/// A row, and how it came about.
enum Made {
    /// From the transfer alone.
    Known(ManifestRow),
    /// With a read of the file.
    Read(ManifestRow),
    /// The file is not here, and the agent has not looked at it.
    Unknown,
}

impl Made {
    fn row(self) -> Option<ManifestRow> {
        match self {
            Made::Known(row) | Made::Read(row) => Some(row),
            Made::Unknown => None,
        }
    }
}

/// The name that a root has below DST; below DST's parent, if one file became DST.
fn tops(plan: &Plan, rows: &[Row]) -> Result<Vec<Top>, Fail> {
    let wrong_name = |e| Fail::usage(format!("a name for the manifest: {e}"));
    let (here, names): (Vec<PathBuf>, Vec<Vec<u8>>) = match (&plan.from, &plan.to) {
        (_, To::Here(_)) => plan.local_targets().into_iter().map(|path| (path.clone(), name_of(&path))).unzip(),
        (From::Here(sources), To::Agent(url)) => {
            let last = || url.rel_path().ok().and_then(|path| path.split_last().map(|(_, name)| name.to_vec()));
            // SRC itself may be a symlink, which was followed.
            let real = |path: &Path| std::fs::canonicalize(path).map_err(|e| Fail::io("read", path, &e));
            let name = |path: &Path| if plan.becomes { last().unwrap_or_default() } else { name_of(path) };
            let each = sources.iter().map(|s| Ok((real(&s.path)?, name(&s.path))));
            each.collect::<Result<Vec<_>, Fail>>()?.into_iter().unzip()
        }
        _ => return Err(Fail::usage("--write-manifest needs one end here")),
    };
    let is_dir = |root: usize| {
        let top = rows.iter().find(|row| usize::from(row.entry.root) == root && row.entry.path.is_root());
        top.is_some_and(|row| row.entry.kind == EntryKind::Dir)
    };
    let top = |(root, (here, name)): (usize, (PathBuf, Vec<u8>))| {
        let whole = plan.becomes && is_dir(root);
        let name = if whole { RelPath::default() } else { RelPath::new(&name).map_err(wrong_name)? };
        Ok(Top { here, name })
    };
    here.into_iter().zip(names).enumerate().map(top).collect()
}

fn name_of(path: &Path) -> Vec<u8> {
    path.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default()
}

fn one(args: &Args, plan: &Plan, tops: &[Top], row: Row, kinds: &[ChecksumKind]) -> Result<Made, Fail> {
    let Row { entry, digest } = row;
    let Some(top) = tops.get(usize::from(entry.root)) else { return Ok(Made::Unknown) };
    let path = top.name.join(entry.path.as_bytes()).map_err(|e| Fail::usage(format!("a name: {e}")))?;
    let failed = |e: std::io::Error| Fail::io("read", &below(&top.here, &entry.path), &e);
    let special = if args.preserve.special { 0o7777 } else { PLAIN_MODE };
    let (mut mode, mut mtime) = (entry.mode & special, entry.mtime);
    let arrives_here = matches!(plan.to, To::Here(_));
    let left = digest.is_none() && matches!(entry.kind, EntryKind::File { .. });
    if arrives_here && (left || !args.preserve.mode || !args.preserve.times) {
        // What is there is not what the source has.
        let item = look(&top.here, &entry.path).map_err(failed)?;
        (mode, mtime) = (item.mode, item.mtime);
        if left && !matches!(item.kind, Kind::File(_)) {
            return Ok(Made::Unknown);
        }
    }
    let plain = |kind| Ok(Made::Known(ManifestRow { path: path.clone(), kind, mode, mtime }));
    let size = match entry.kind {
        EntryKind::Dir => return plain(RowKind::Dir),
        EntryKind::Symlink { target } => return plain(RowKind::Symlink { target }),
        EntryKind::Special => return Ok(Made::Unknown),
        EntryKind::File { size, .. } => size,
    };
    let (size, digest, checksums, read) = match digest {
        None if !arrives_here => return Ok(Made::Unknown),
        Some(digest) if kinds.is_empty() => (size, digest, Vec::new(), false),
        known => {
            let mut all = vec![ChecksumKind::Xxh3];
            all.extend(kinds.iter().filter(|kind| **kind != ChecksumKind::Xxh3));
            let sums = hash_file(&top.here, &entry.path, &all).map_err(failed)?;
            let found = sums.digest().ok_or_else(|| Fail::new(1, "no digest was computed"))?;
            unchanged(known, found, &below(&top.here, &entry.path))?;
            let checksums: Vec<Expected> = sums.values[1..].to_vec();
            (sums.size, found, checksums, true)
        }
    };
    let row = ManifestRow { path, kind: RowKind::File { size, digest, checksums }, mode, mtime };
    Ok(if read { Made::Read(row) } else { Made::Known(row) })
}

/// A checksum of something else than what was moved would be worse than none.
fn unchanged(known: Option<Digest>, found: Digest, path: &Path) -> Result<(), Fail> {
    if known.is_none_or(|known| known == found) {
        return Ok(());
    }
    let what = format!("{} is not what was moved any more: no manifest was written", show(path));
    Err(Fail::new(VERIFICATION, what))
}

#[cfg(test)]
mod tests {
    use super::super::manifest_file::{read_manifest, rows_of};
    use super::super::operands::plan;
    use super::*;
    use crate::manifest::Entry;
    use clap::Parser as _;
    use std::fs;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// What an engine tells of a transfer of these roots.
    fn told(roots: &[String]) -> Vec<Row> {
        let mut rows = Vec::new();
        for (root, path) in (0u16..).zip(roots) {
            let is_dir = fs::metadata(path).unwrap().is_dir();
            for row in rows_of(&fs::canonicalize(path).unwrap(), &[]).unwrap() {
                let (kind, digest) = match row.kind {
                    RowKind::Dir => (EntryKind::Dir, None),
                    RowKind::File { size, digest, .. } => (EntryKind::File { size, sparse: false }, Some(digest)),
                    RowKind::Symlink { target } => (EntryKind::Symlink { target }, None),
                };
                let path = if is_dir { row.path } else { RelPath::default() };
                rows.push(Row { entry: Entry { root, path, kind, mode: row.mode, mtime: row.mtime }, digest });
            }
        }
        rows
    }

    /// Writes the manifest of a copy; its names, and what the report has to say.
    fn written(line: &[&str], rows: Vec<Row>) -> Result<(Vec<String>, Value, Report), Fail> {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("m");
        let args = Line::try_parse_from(std::iter::once(&"cp").chain(line)).unwrap().args;
        let plan = plan(&args.operands, args.recursive).unwrap();
        let mut report = Report::default();
        let value = manifest(&args, &plan, &to, rows, &mut report)?;
        let names = read_manifest(&to).unwrap().iter().map(|wanted| wanted.path.to_string()).collect();
        Ok((names, value, report))
    }

    #[test]
    fn a_manifest_has_the_names_at_the_destination() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| format!("{}/{name}", dir.path().display());
        fs::create_dir_all(at("src/d")).unwrap();
        fs::write(at("src/d/f"), b"x").unwrap();
        fs::write(at("one"), b"x").unwrap();
        std::os::unix::fs::symlink("one", at("link")).unwrap();
        let names = |line: &[&str], roots: &[&str]| {
            let roots: Vec<String> = roots.iter().map(|name| at(name)).collect();
            written(line, told(&roots)).unwrap().0
        };
        assert_eq!(names(&["-r", &at("src"), "lh://h/in"], &["src"]), [".", "d", "d/f"]);
        assert_eq!(names(&["-r", &at("src"), "lh://h/in/"], &["src"]), ["src", "src/d", "src/d/f"]);
        assert_eq!(names(&[&at("one"), "lh://h/in/two"], &["one"]), ["two"]);
        assert_eq!(names(&[&at("link"), &at("one"), "lh://h/in/"], &["link", "one"]), ["link", "one"]);
        // Pulls: only what the transfer knows of, whatever else stands there.
        fs::create_dir_all(at("out/other")).unwrap();
        assert_eq!(names(&["-r", "lh://h/src", &at("out/")], &["src"]), ["src", "src/d", "src/d/f"]);
        assert_eq!(names(&["-r", "lh://h/src", &at("out")], &["src"]), [".", "d", "d/f"]);
        assert_eq!(names(&["lh://h/x", &at("one")], &["one"]), ["one"]);
    }

    #[test]
    fn files_are_read_for_checksums_only_and_have_to_be_what_was_moved() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| format!("{}/{name}", dir.path().display());
        fs::write(at("one"), b"abc").unwrap();
        let rows = told(&[at("one")]);
        let sha = ["--write-manifest", &at("m"), "--sha256", "lh://h/x", &at("one")];
        let (_, value, report) = written(&sha, rows.clone()).unwrap();
        assert!(value["sha256"]["files"] == 1 && value["second_read"] == true, "{value}");
        assert!(report.notes[0].contains("second read"));
        // Changed since: the plain manifest says what was moved, the other one cannot be written.
        fs::write(at("one"), b"abd").unwrap();
        let (_, value, report) =
            written(&["--write-manifest", &at("m"), "lh://h/x", &at("one")], rows.clone()).unwrap();
        assert!(value["second_read"] == false && report.notes.is_empty(), "{value}");
        assert_eq!(written(&sha, rows.clone()).unwrap_err().code, 6);
        // Nothing is known of a file that was left as it was: here it is read, elsewhere it is left out and said.
        let unknown = vec![Row { digest: None, ..rows[0].clone() }];
        let (names, value, _) = written(&["lh://h/x", &at("one")], unknown.clone()).unwrap();
        assert!(names == ["one"] && value["second_read"] == true, "{value}");
        let (names, _, report) = written(&[&at("one"), "lh://h/x"], unknown).unwrap();
        assert!(names.is_empty() && report.notes[0].contains("not in the manifest"), "{:?}", report.notes);
    }
}
