//! `longhaul verify TREE --manifest M`: reads a tree again and compares it with its manifest.

use super::fail::{Fail, NOT_FOUND, VERIFICATION, finish, printable, say};
use super::manifest_file::{Wanted, read_manifest};
use super::report::count;
use super::tree::{Item, Kind, hash_file, look, walk};
use crate::checksum::ChecksumKind;
use crate::manifest::{ManifestRow, RowKind};
use crate::relpath::RelPath;
use crate::units::Bytes;
use rayon::prelude::*;
use serde_json::json;
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

/// Differences that are listed; all are counted.
const LISTED: usize = 1000;

/// Arguments of `verify`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The tree, as DST was given to `cp` (its parent directory when one file became DST)
    pub tree: PathBuf,
    /// A manifest that `cp --write-manifest` wrote, or a `sha256sum` file
    #[arg(long, value_name = "FILE")]
    pub manifest: PathBuf,
    /// Names that the manifest does not have are an error as well
    #[arg(long)]
    pub strict: bool,
    /// Compare modes and modification times too
    #[arg(long)]
    pub metadata: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// One name that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Difference {
    path: RelPath,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Missing,
    Extra,
    Changed(String),
    Unreadable(String),
}

impl What {
    fn word(&self) -> &'static str {
        match self {
            What::Missing => "missing",
            What::Extra => "extra",
            What::Changed(_) => "changed",
            What::Unreadable(_) => "unreadable",
        }
    }

    fn detail(&self) -> &str {
        match self {
            What::Missing => "not there",
            What::Extra => "not in the manifest",
            What::Changed(why) | What::Unreadable(why) => why,
        }
    }
}

/// What a run found.
#[derive(Debug, Default)]
struct Outcome {
    names: u64,
    files: u64,
    bytes: u64,
    differences: Vec<Difference>,
}

impl Outcome {
    fn number(&self, word: &str) -> u64 {
        self.differences.iter().filter(|difference| difference.what.word() == word).count() as u64
    }

    fn exit_code(&self) -> u8 {
        if self.differences.is_empty() {
            0
        } else if self.number("missing") == self.differences.len() as u64 {
            NOT_FOUND
        } else {
            VERIFICATION
        }
    }
}

/// Runs the command. The exit code.
pub fn run(args: Args) -> u8 {
    finish(args.json, execute(&args))
}

/// Runs the command; the exit code is 0, 4 if names are missing, 6 if something differs.
fn execute(args: &Args) -> Result<u8, Fail> {
    let wanted = read_manifest(&args.manifest)?;
    std::fs::metadata(&args.tree).map_err(|e| Fail::io("read", &args.tree, &e))?;
    let outcome = compare(&args.tree, &wanted, args)?;
    let code = outcome.exit_code();
    say(&if args.json { format!("{}\n", json_of(&outcome, code)) } else { text_of(&outcome) });
    Ok(code)
}

fn compare(tree: &Path, wanted: &[Wanted], args: &Args) -> Result<Outcome, Fail> {
    let checked: Vec<(u64, Option<Difference>)> = wanted
        .par_iter()
        .map(|one| {
            let result = check(tree, one, args.metadata);
            let (bytes, what) = match result {
                Ok(bytes) => (bytes, None),
                Err(what) => (0, Some(Difference { path: one.path.clone(), what })),
            };
            (bytes, what)
        })
        .collect();
    let is_file = |one: &&Wanted| one.row.as_ref().is_none_or(|row| matches!(row.kind, RowKind::File { .. }));
    let mut outcome = Outcome {
        names: wanted.len() as u64,
        files: wanted.iter().filter(is_file).count() as u64,
        bytes: checked.iter().map(|(bytes, _)| bytes).sum(),
        differences: checked.into_iter().filter_map(|(_, difference)| difference).collect(),
    };
    if args.strict {
        outcome.differences.extend(extras(tree, wanted)?);
    }
    outcome.differences.sort();
    Ok(outcome)
}

/// Names of the tree that are neither in the manifest nor a directory on the way to one that is.
fn extras(tree: &Path, wanted: &[Wanted]) -> Result<Vec<Difference>, Fail> {
    let mut known: HashSet<RelPath> = HashSet::new();
    for one in wanted {
        let mut path = Some(one.path.clone());
        while let Some(next) = path.filter(|path| known.insert(path.clone())) {
            path = next.split_last().map(|(parent, _)| parent);
        }
    }
    let items = walk(tree)?;
    let extra = items.into_iter().filter(|item| !item.path.is_root() && !known.contains(&item.path));
    Ok(extra.map(|item| Difference { path: item.path, what: What::Extra }).collect())
}

/// Bytes read, or what is wrong.
fn check(tree: &Path, wanted: &Wanted, metadata: bool) -> Result<u64, What> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => What::Missing,
        _ => What::Unreadable(e.to_string()),
    };
    let item = look(tree, &wanted.path).map_err(failed)?;
    if let Some(row) = &wanted.row {
        shape(&item, row, metadata)?;
    } else if !matches!(item.kind, Kind::File(_)) {
        return Err(What::Changed("it is not a regular file".to_owned()));
    }
    if wanted.checksums.is_empty() {
        return Ok(0);
    }
    let kinds: Vec<ChecksumKind> = wanted.checksums.iter().map(|value| value.kind).collect();
    let sums = hash_file(tree, &wanted.path, &kinds).map_err(failed)?;
    for (want, found) in wanted.checksums.iter().zip(&sums.values) {
        if want != found {
            return Err(What::Changed(format!("its content is {found}, the manifest has {want}")));
        }
    }
    Ok(sums.size)
}

fn shape(item: &Item, row: &ManifestRow, metadata: bool) -> Result<(), What> {
    let changed = |what: String| Err(What::Changed(what));
    match (&item.kind, &row.kind) {
        (Kind::Dir, RowKind::Dir) => {}
        (Kind::File(found), RowKind::File { size, .. }) if found == size => {}
        (Kind::File(found), RowKind::File { size, .. }) => {
            return changed(format!("it has {found} bytes, the manifest {size}"));
        }
        (Kind::Symlink(found), RowKind::Symlink { target }) if found[..] == target[..] => return Ok(()),
        (Kind::Symlink(_), RowKind::Symlink { .. }) => return changed("the symlink points elsewhere".to_owned()),
        _ => return changed("it is another kind of thing".to_owned()),
    }
    // `cp` keeps special bits only when asked to, so they are no difference.
    if metadata && item.mode & 0o777 != row.mode & 0o777 {
        return changed(format!("its mode is {:04o}, the manifest has {:04o}", item.mode, row.mode));
    }
    if metadata && item.mtime != row.mtime {
        return changed("its modification time differs".to_owned());
    }
    Ok(())
}

fn text_of(outcome: &Outcome) -> String {
    let mut out = String::new();
    for difference in outcome.differences.iter().take(LISTED) {
        out.push_str(&format!(
            "{:<10} {}: {}\n",
            difference.what.word(),
            difference.path,
            printable(difference.what.detail())
        ));
    }
    if outcome.differences.len() > LISTED {
        out.push_str(&format!("and {} more\n", outcome.differences.len() - LISTED));
    }
    let (names, bytes) = (count(outcome.names, "name"), Bytes(outcome.bytes));
    if outcome.differences.is_empty() {
        out.push_str(&format!(
            "The tree is as its manifest says: {names}, {bytes} read again (the page cache may have served them).\n"
        ));
    } else {
        let parts: Vec<_> = ["missing", "changed", "unreadable", "extra"]
            .into_iter()
            .filter(|word| outcome.number(word) > 0)
            .map(|word| format!("{} {word}", outcome.number(word)))
            .collect();
        out.push_str(&format!("The tree is NOT as its manifest says: {}, of {names}.\n", parts.join(", ")));
    }
    out
}

fn json_of(outcome: &Outcome, code: u8) -> serde_json::Value {
    let listed: Vec<_> = outcome
        .differences
        .iter()
        .take(LISTED)
        .map(|d| json!({ "path": d.path.to_string(), "what": d.what.word(), "detail": d.what.detail() }))
        .collect();
    json!({
        "ok": code == 0,
        "names": outcome.names,
        "files": outcome.files,
        "bytes": outcome.bytes,
        "missing": outcome.number("missing"),
        "changed": outcome.number("changed"),
        "unreadable": outcome.number("unreadable"),
        "extra": outcome.number("extra"),
        "differences": listed,
        "page_cache_may_have_served": true,
        "exit_code": code,
    })
}

#[cfg(test)]
mod tests {
    use super::super::manifest_file::{ManifestHeader, rows_of, write_manifest, write_sha256};
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    struct Tree {
        dir: tempfile::TempDir,
        args: Args,
    }

    fn tree() -> Tree {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("t");
        fs::create_dir_all(tree.join("d/e")).unwrap();
        fs::write(tree.join("d/big"), vec![5; 5 << 20]).unwrap();
        fs::write(tree.join("d/small"), b"hello").unwrap();
        symlink("small", tree.join("d/link")).unwrap();
        let manifest = dir.path().join("m");
        let rows = rows_of(&tree, &[ChecksumKind::Crc32c]).unwrap();
        write_manifest(&manifest, &ManifestHeader::new(None, 0), rows.iter().cloned().map(Ok)).unwrap();
        write_sha256(&dir.path().join("s"), &tree, &rows).unwrap();
        let args = Args { tree, manifest, strict: true, metadata: true, json: false };
        Tree { dir, args }
    }

    /// The exit code, and what was found as `word path`.
    fn found(args: &Args) -> (u8, Vec<String>) {
        let outcome = compare(&args.tree, &read_manifest(&args.manifest).unwrap(), args).unwrap();
        let list = outcome.differences.iter().map(|d| format!("{} {}", d.what.word(), d.path)).collect();
        (outcome.exit_code(), list)
    }

    #[test]
    fn an_untouched_tree_passes() {
        let t = tree();
        assert_eq!(found(&t.args), (0, vec![]));
        let sums = Args { manifest: t.dir.path().join("s"), strict: false, ..t.args.clone() };
        assert_eq!(found(&sums), (0, vec![]));
        assert_eq!(execute(&t.args), Ok(0));
        assert_eq!(execute(&Args { tree: t.dir.path().join("no"), ..t.args }).unwrap_err().code, 4);
    }

    #[test]
    fn every_kind_of_damage_is_found() {
        let t = tree();
        let path = |name: &str| t.args.tree.join(name);
        let mut big = fs::read(path("d/big")).unwrap();
        big[4 << 20] ^= 1;
        let mtime = fs::metadata(path("d/big")).unwrap().modified().unwrap();
        fs::write(path("d/big"), big).unwrap();
        fs::File::open(path("d/big")).unwrap().set_modified(mtime).unwrap();
        assert_eq!(found(&t.args), (6, vec!["changed d/big".into()]));
        let sums = Args { manifest: t.dir.path().join("s"), strict: false, ..t.args.clone() };
        assert_eq!(found(&sums), (6, vec!["changed d/big".into()]));

        fs::remove_file(path("d/link")).unwrap();
        symlink("big", path("d/link")).unwrap();
        fs::remove_dir(path("d/e")).unwrap();
        fs::write(path("d/e"), b"").unwrap();
        fs::write(path("new"), b"").unwrap();
        fs::set_permissions(path("d/small"), fs::Permissions::from_mode(0o600)).unwrap();
        let loose = Args { strict: false, metadata: false, ..t.args.clone() };
        assert_eq!(found(&loose), (6, ["changed d/big", "changed d/e", "changed d/link"].map(String::from).to_vec()));
        let (code, list) = found(&t.args);
        assert!(
            code == 6 && list.contains(&"extra new".to_owned()) && list.contains(&"changed d/small".to_owned()),
            "{list:?}"
        );
    }

    #[test]
    fn only_missing_names_have_their_own_code() {
        let t = tree();
        fs::remove_file(t.args.tree.join("d/small")).unwrap();
        let loose = Args { metadata: false, ..t.args.clone() };
        assert_eq!(found(&loose), (4, vec!["missing d/small".into()]));
        assert_eq!(found(&Args { manifest: t.dir.path().join("s"), strict: false, ..loose }).0, 4);
    }

    #[test]
    fn a_fifo_in_place_of_a_file_is_not_waited_for() {
        let t = tree();
        fs::remove_file(t.args.tree.join("d/small")).unwrap();
        nix::unistd::mkfifo(&t.args.tree.join("d/small"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let sums = Args { manifest: t.dir.path().join("s"), strict: false, ..t.args.clone() };
        assert_eq!(found(&sums), (6, vec!["changed d/small".into()]));
    }
}
