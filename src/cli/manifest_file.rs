//! Manifest files: JSON lines of our own, and `sha256sum` files.
//!
//! Ours has a header line (`format`, `version`, `transfer`, `digest`, `chunk_size`, `created`), one line per name, and
//! an end line with the count of names and the XXH3-128 of every byte before that line, so that a cut or edited file is
//! noticed. A name, or a symlink's target, that is not UTF-8 stands in `path_hex` (`target_hex`) instead.

use super::fail::{Fail, PERMANENT, show};
use super::tree::hash_file;
use crate::checksum::{ChecksumKind, Expected};
use crate::digest::Digest;
use crate::grid::CHUNK_SIZE;
use crate::ids::TransferId;
use crate::manifest::{ManifestRow, Mtime, RowKind};
use crate::relpath::RelPath;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read as _, Write};
#[cfg(test)]
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3Default;

const FORMAT: &str = "longhaul-manifest";
const VERSION: u32 = 1;
const DIGEST: &str = "xxh3-128";
/// A line: path and target at their longest, each byte as a six-byte JSON escape, and room for the rest.
const LINE_MAX: u64 = 64 << 10;
/// Files hashed at a time for a `sha256sum` file: enough for every core, small enough to write as it goes.
const HASH_BATCH: usize = 256;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestHeader {
    format: String,
    version: u32,
    /// Which transfer wrote it.
    pub transfer: Option<TransferId>,
    digest: String,
    chunk_size: u64,
    /// Unix seconds.
    pub created: u64,
}

impl ManifestHeader {
    /// For a manifest of this version.
    pub fn new(transfer: Option<TransferId>, created: u64) -> Self {
        let (format, digest) = (FORMAT.to_owned(), DIGEST.to_owned());
        Self { format, version: VERSION, transfer, digest, chunk_size: CHUNK_SIZE, created }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line {
    Dir {
        #[serde(flatten)]
        name: Name,
    },
    File {
        #[serde(flatten)]
        name: Name,
        size: u64,
        digest: Digest,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        checksums: Vec<String>,
    },
    Symlink {
        #[serde(flatten)]
        name: Name,
        #[serde(skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        target_hex: Option<String>,
    },
    End {
        count: u64,
        digest: Digest,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Name {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    mode: String,
    mtime: i64,
    mtime_nanos: u32,
}

/// Text if it is UTF-8, else hex.
fn text_or_hex(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(hex::encode(bytes))),
    }
}

fn bytes_of(text: Option<String>, coded: Option<String>) -> Result<Vec<u8>, String> {
    match (text, coded) {
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(coded)) => hex::decode(coded).map_err(|e| e.to_string()),
        _ => Err("a name has to be given once, as text or as hex".to_owned()),
    }
}

impl From<&ManifestRow> for Line {
    fn from(row: &ManifestRow) -> Self {
        let (path, path_hex) = text_or_hex(row.path.as_bytes());
        let mode = format!("{:04o}", row.mode);
        let name = Name { path, path_hex, mode, mtime: row.mtime.secs, mtime_nanos: row.mtime.nanos };
        match &row.kind {
            RowKind::Dir => Line::Dir { name },
            RowKind::File { size, digest, checksums } => {
                let checksums = checksums.iter().map(Expected::to_string).collect();
                Line::File { name, size: *size, digest: *digest, checksums }
            }
            RowKind::Symlink { target } => {
                let (target, target_hex) = text_or_hex(target);
                Line::Symlink { name, target, target_hex }
            }
        }
    }
}

fn row(line: Line) -> Result<ManifestRow, String> {
    let (name, kind) = match line {
        Line::Dir { name } => (name, RowKind::Dir),
        Line::File { name, size, digest, checksums } => {
            let checksums =
                checksums.iter().map(|text| text.parse().map_err(|e| format!("{e}"))).collect::<Result<_, _>>()?;
            (name, RowKind::File { size, digest, checksums })
        }
        Line::Symlink { name, target, target_hex } => {
            let target = bytes_of(target, target_hex)?.into();
            (name, RowKind::Symlink { target })
        }
        Line::End { .. } => return Err("a second end line".to_owned()),
    };
    let path = RelPath::new(&bytes_of(name.path, name.path_hex)?).map_err(|e| e.to_string())?;
    let mode = u32::from_str_radix(&name.mode, 8).ok().filter(|mode| *mode <= 0o7777).ok_or("a wrong mode")?;
    Ok(ManifestRow { path, kind, mode, mtime: Mtime { secs: name.mtime, nanos: name.mtime_nanos } })
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Names.
    pub count: u64,
    /// Regular files among them.
    pub files: u64,
}

/// Writes a manifest: to a temporary name beside `path`, synced, then renamed over it.
pub fn write_manifest(
    path: &Path,
    header: &ManifestHeader,
    rows: impl Iterator<Item = Result<ManifestRow, Fail>>,
) -> Result<Written, Fail> {
    replace(path, |file| {
        let mut out = Digesting { inner: BufWriter::new(file), state: Box::default() };
        let failed = |e: io::Error| Fail::io("write", path, &e);
        put_line(&mut out, header).map_err(failed)?;
        let mut written = Written { count: 0, files: 0 };
        for row in rows {
            let row = row?;
            put_line(&mut out, &Line::from(&row)).map_err(failed)?;
            written.count += 1;
            written.files += u64::from(matches!(row.kind, RowKind::File { .. }));
        }
        let end = Line::End { count: written.count, digest: out.digest() };
        put_line(&mut out, &end).map_err(failed)?;
        out.inner.flush().map_err(failed)?;
        Ok(written)
    })
}

fn put_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

struct Digesting<W> {
    inner: W,
    state: Box<Xxh3Default>,
}

impl<W> Digesting<W> {
    fn digest(&self) -> Digest {
        Digest(self.state.digest128().to_be_bytes())
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.state.update(&bytes[..written]);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a file under a temporary name, syncs it, renames it to `path` and syncs the directory.
fn replace<T>(path: &Path, write: impl FnOnce(&mut File) -> Result<T, Fail>) -> Result<T, Fail> {
    let Some(name) = path.file_name() else {
        return Err(Fail::usage(format!("{} is no file name for a manifest", show(path))));
    };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.tmp", std::process::id()));
    let temporary = dir.join(hidden);
    let failed = |e: io::Error| Fail::io("write", path, &e);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary).map_err(failed)?;
    let result = write(&mut file).and_then(|value| {
        file.sync_all().map_err(failed)?;
        fs::rename(&temporary, path).map_err(failed)?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(value)
    });
    if result.is_err() {
        // Gone already if the rename worked; nothing else can be done about it here.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// What a manifest wants of one name. A `sha256sum` line knows only the name and a checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Below the tree.
    pub path: RelPath,
    /// `None`: a regular file of any size.
    pub row: Option<ManifestRow>,
    /// To be computed and compared; the file digest among them where there is one.
    pub checksums: Vec<Expected>,
}

/// Reads a manifest of ours or a `sha256sum` file.
pub fn read_manifest(path: &Path) -> Result<Vec<Wanted>, Fail> {
    let file = File::open(path).map_err(|e| Fail::io("read", path, &e))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let first = reader.fill_buf().map_err(|e| Fail::io("read", path, &e))?.first().copied();
    let mut lines = Lines { reader, path: path.to_owned(), number: 0, state: Box::default() };
    match first {
        Some(b'{') => read_ours(&mut lines),
        Some(_) => read_sha256(&mut lines),
        None => Err(lines.wrong("the manifest is empty")),
    }
}

struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
    number: u64,
    state: Box<Xxh3Default>,
}

impl Lines {
    /// The next line without its end, and whether it had one.
    fn next(&mut self) -> Result<Option<Vec<u8>>, Fail> {
        let mut line = Vec::new();
        let read = (&mut self.reader).take(LINE_MAX).read_until(b'\n', &mut line);
        if read.map_err(|e| Fail::io("read", &self.path, &e))? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if line.pop() != Some(b'\n') {
            return Err(self.wrong("the line is cut off or too long"));
        }
        Ok(Some(line))
    }

    fn take_in(&mut self, line: &[u8]) {
        self.state.update(line);
        self.state.update(b"\n");
    }

    fn wrong(&self, what: impl std::fmt::Display) -> Fail {
        Fail::new(PERMANENT, format!("{} line {}: {what}", show(&self.path), self.number.max(1)))
    }
}

fn read_ours(lines: &mut Lines) -> Result<Vec<Wanted>, Fail> {
    let first = lines.next()?.unwrap_or_default();
    let header: ManifestHeader = serde_json::from_slice(&first).map_err(|e| lines.wrong(e))?;
    if header.format != FORMAT
        || header.version != VERSION
        || header.digest != DIGEST
        || header.chunk_size != CHUNK_SIZE
    {
        return Err(lines.wrong("a manifest of another format or version"));
    }
    lines.take_in(&first);
    let mut wanted = Vec::new();
    loop {
        let Some(line) = lines.next()? else {
            return Err(lines.wrong("the manifest is cut off: its end line is missing"));
        };
        match serde_json::from_slice(&line).map_err(|e| lines.wrong(e))? {
            Line::End { count, digest } => {
                if count != wanted.len() as u64 || digest.0 != lines.state.digest128().to_be_bytes() {
                    return Err(lines.wrong("the manifest was changed: its own digest does not match"));
                }
                if lines.next()?.is_some() {
                    return Err(lines.wrong("lines behind the end line"));
                }
                return Ok(wanted);
            }
            other => wanted.push(row(other).map(Wanted::from).map_err(|e| lines.wrong(e))?),
        }
        lines.take_in(&line);
    }
}

impl From<ManifestRow> for Wanted {
    fn from(row: ManifestRow) -> Self {
        let checksums = match &row.kind {
            RowKind::File { digest, checksums, .. } => {
                let own = Expected { kind: ChecksumKind::Xxh3, hex: digest.to_string() };
                std::iter::once(own).chain(checksums.iter().cloned()).collect()
            }
            RowKind::Dir | RowKind::Symlink { .. } => Vec::new(),
        };
        Self { path: row.path.clone(), row: Some(row), checksums }
    }
}

fn read_sha256(lines: &mut Lines) -> Result<Vec<Wanted>, Fail> {
    let mut wanted = Vec::new();
    while let Some(line) = lines.next()? {
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        let (hex, name) = parse_sha256(&line).ok_or_else(|| lines.wrong("not a line of sha256sum"))?;
        let name = name.strip_prefix(b"./".as_slice()).unwrap_or(&name);
        let path = RelPath::new(name).map_err(|e| lines.wrong(e))?;
        wanted.push(Wanted { path, row: None, checksums: vec![Expected { kind: ChecksumKind::Sha256, hex }] });
    }
    Ok(wanted)
}

/// Writes a file that `sha256sum -c` reads from inside the tree. Every file is read once more unless its row has the
/// checksum. Gives the files and the bytes that were read.
pub fn write_sha256(path: &Path, tree: &Path, rows: &[ManifestRow]) -> Result<(u64, u64), Fail> {
    let files: Vec<&ManifestRow> = rows.iter().filter(|row| matches!(row.kind, RowKind::File { .. })).collect();
    let mut read = 0;
    replace(path, |file| {
        let mut out = BufWriter::new(file);
        for batch in files.chunks(HASH_BATCH) {
            let lines: Vec<(Vec<u8>, u64)> =
                batch.par_iter().map(|row| sha256_of(tree, row)).collect::<Result<_, _>>()?;
            for (line, bytes) in lines {
                out.write_all(&line).map_err(|e| Fail::io("write", path, &e))?;
                read += bytes;
            }
        }
        out.flush().map_err(|e| Fail::io("write", path, &e))
    })?;
    Ok((files.len() as u64, read))
}

fn sha256_of(tree: &Path, row: &ManifestRow) -> Result<(Vec<u8>, u64), Fail> {
    if let RowKind::File { checksums, .. } = &row.kind
        && let Some(known) = checksums.iter().find(|value| value.kind == ChecksumKind::Sha256)
    {
        return Ok((sha256_line(&known.hex, row.path.as_bytes()), 0));
    }
    let sums = hash_file(tree, &row.path, &[ChecksumKind::Sha256])
        .map_err(|e| Fail::io("read", &super::tree::below(tree, &row.path), &e))?;
    let hex = sums.hex(ChecksumKind::Sha256).unwrap_or_default();
    Ok((sha256_line(hex, row.path.as_bytes()), sums.size))
}

/// One line as GNU coreutils writes it: if the name has a backslash, newline or carriage return, the line begins with a
/// backslash and the name has those escaped.
fn sha256_line(hex: &str, name: &[u8]) -> Vec<u8> {
    let mut line = Vec::with_capacity(hex.len() + name.len() + 4);
    if name.iter().any(|b| matches!(b, b'\\' | b'\n' | b'\r')) {
        line.push(b'\\');
    }
    line.extend_from_slice(hex.as_bytes());
    line.extend_from_slice(b"  ");
    for &byte in name {
        match byte {
            b'\\' => line.extend_from_slice(b"\\\\"),
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            other => line.push(other),
        }
    }
    line.push(b'\n');
    line
}

fn parse_sha256(line: &[u8]) -> Option<(String, Vec<u8>)> {
    let (escaped, line) = match line.strip_prefix(b"\\") {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let (hex, rest) = line.split_at_checked(64)?;
    let hex = std::str::from_utf8(hex).ok()?.to_ascii_lowercase();
    let name = rest.strip_prefix(b"  ").or_else(|| rest.strip_prefix(b" *"))?;
    if !hex.bytes().all(|b| b.is_ascii_hexdigit()) || name.is_empty() {
        return None;
    }
    if !escaped {
        return Some((hex, name.to_vec()));
    }
    let mut plain = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(match byte {
            b'\\' => match bytes.next()? {
                b'\\' => b'\\',
                b'n' => b'\n',
                b'r' => b'\r',
                _ => return None,
            },
            other => other,
        });
    }
    Some((hex, plain))
}

/// Where `--sha256` writes: beside the manifest.
pub fn sha256_path(manifest: &Path) -> PathBuf {
    let mut name = manifest.as_os_str().to_owned();
    name.push(".sha256");
    PathBuf::from(name)
}

/// Rows of a local tree, by reading it: an independent look, for tests. A `tree` that is a file or symlink gives one row
/// under its own name.
#[cfg(test)]
pub fn rows_of(tree: &Path, checksums: &[ChecksumKind]) -> Result<Vec<ManifestRow>, Fail> {
    let meta = fs::symlink_metadata(tree).map_err(|e| Fail::io("read", tree, &e))?;
    let (base, items) = if meta.is_dir() {
        (tree.to_owned(), super::tree::walk(tree)?)
    } else {
        let parent = tree.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = tree.file_name().map(|name| name.as_bytes()).unwrap_or_default();
        let path = RelPath::new(name).map_err(|e| Fail::usage(format!("{}: {e}", show(tree))))?;
        let item = super::tree::look(parent, &path).map_err(|e| Fail::io("read", tree, &e))?;
        (parent.to_owned(), vec![item])
    };
    let mut kinds = vec![ChecksumKind::Xxh3];
    kinds.extend(checksums.iter().filter(|kind| **kind != ChecksumKind::Xxh3));
    let rows: Vec<Option<ManifestRow>> = items
        .into_par_iter()
        .map(|item| {
            let kind = match item.kind {
                super::tree::Kind::Dir => RowKind::Dir,
                super::tree::Kind::Symlink(target) => RowKind::Symlink { target: target.into() },
                super::tree::Kind::Special => return Ok(None),
                super::tree::Kind::File(_) => {
                    let sums = hash_file(&base, &item.path, &kinds)
                        .map_err(|e| Fail::io("read", &super::tree::below(&base, &item.path), &e))?;
                    let digest = sums.digest().ok_or_else(|| Fail::new(1, "no digest was computed"))?;
                    RowKind::File { size: sums.size, digest, checksums: sums.values[1..].to_vec() }
                }
            };
            Ok(Some(ManifestRow { path: item.path, kind, mode: item.mode, mtime: item.mtime }))
        })
        .collect::<Result<_, Fail>>()?;
    Ok(rows.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn sample() -> Vec<ManifestRow> {
        let row = |path: &[u8], kind| ManifestRow {
            path: RelPath::new(path).unwrap(),
            kind,
            mode: 0o2755,
            mtime: Mtime { secs: -1, nanos: 999_999_999 },
        };
        let digest = crate::digest::of(b"x");
        let sum: Expected = "crc32c:e3069283".parse().unwrap();
        vec![
            row(b"", RowKind::Dir),
            row(b"a\nb\"\\", RowKind::File { size: u64::MAX >> 9, digest, checksums: vec![sum] }),
            row(b"not \xff utf8", RowKind::File { size: 0, digest, checksums: vec![] }),
            row(b"l", RowKind::Symlink { target: (*b"../\xfe").into() }),
        ]
    }

    #[test]
    fn a_manifest_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        fs::write(&path, "an older one").unwrap();
        let header = ManifestHeader::new(Some(TransferId([7; 16])), 1_700_000_000);
        let written = write_manifest(&path, &header, sample().into_iter().map(Ok)).unwrap();
        assert_eq!(written, Written { count: 4, files: 2 });
        let back: Vec<_> = read_manifest(&path).unwrap().into_iter().map(|wanted| wanted.row.unwrap()).collect();
        assert_eq!(back, sample());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\"format\":\"longhaul-manifest\",\"version\":1,"), "{text}");
        assert!(text.contains("\"path_hex\":\"6e6f7420ff2075746638\"") && text.contains("\"mode\":\"2755\""), "{text}");
    }

    #[test]
    fn any_change_to_a_manifest_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        write_manifest(&path, &ManifestHeader::new(None, 1), sample().into_iter().map(Ok)).unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(read_manifest(&path).is_err(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let accepted = read_manifest(&path).is_ok_and(|rows| !rows.is_empty());
            assert!(
                !accepted,
                "byte {at} changed unseen: {:?}",
                String::from_utf8_lossy(&bytes[at.saturating_sub(20)..])
            );
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        fs::write(&path, "old").unwrap();
        let rows = [Ok(sample().remove(0)), Err(Fail::new(6, "the transfer failed"))];
        assert_eq!(write_manifest(&path, &ManifestHeader::new(None, 1), rows.into_iter()).unwrap_err().code, 6);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn sha256sum_reads_what_we_write_and_we_read_what_it_writes() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let names: [&[u8]; 4] = [b"plain", b"new\nline", b"back\\slash\r", b"not \xff utf8"];
        for name in names {
            fs::write(tree.join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
        }
        let rows = rows_of(&tree, &[]).unwrap();
        let sums = dir.path().join("m.sha256");
        assert_eq!(write_sha256(&sums, &tree, &rows).unwrap(), (4, names.iter().map(|n| n.len() as u64).sum()));
        let ours = read_manifest(&sums).unwrap();
        assert_eq!(ours.len(), 4);
        // Where coreutils is installed, it has to agree, both ways.
        let Ok(check) = Command::new("sha256sum").args(["--strict", "-c"]).arg(&sums).current_dir(&tree).output()
        else {
            eprintln!("skipped the comparison: no sha256sum here");
            return;
        };
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        let mut sorted: Vec<_> = names.iter().map(|n| std::ffi::OsStr::from_bytes(n)).collect();
        sorted.sort();
        let theirs = Command::new("sha256sum").args(&sorted).current_dir(&tree).output().unwrap();
        assert_eq!(theirs.stdout, fs::read(&sums).unwrap());
    }

    #[test]
    fn other_lines_are_refused_with_their_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        for (text, part) in [
            ("hello\n", "line 1"),
            ("# a comment\n\\zz\n", "line 2"),
            (&format!("{}  ../up\n", "0".repeat(64)), "`..`"),
            (&format!("{}  ok", "0".repeat(64)), "cut off"),
            ("", "empty"),
        ] {
            fs::write(&path, text).unwrap();
            let fail = read_manifest(&path).unwrap_err();
            assert!(fail.code == 7 && fail.what.contains(part), "{}", fail.what);
        }
    }
}
