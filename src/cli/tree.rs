//! A plain walk over a local tree, with the standard library alone: the independent look at what a transfer left.

use super::fail::Fail;
use crate::checksum::{ChecksumKind, Sums, hash_reader};
use crate::manifest::Mtime;
use crate::relpath::RelPath;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Our own directory for journals and locks; no part of a tree.
const STATE_DIR: &[u8] = b".longhaul";

/// What a name is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file of so many bytes.
    File(u64),
    /// A symlink with this target.
    Symlink(Vec<u8>),
    /// Anything else.
    Special,
}

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Below the tree; empty for the tree itself.
    pub path: RelPath,
    /// What it is.
    pub kind: Kind,
    /// 07777.
    pub mode: u32,
    /// As `stat` gives it.
    pub mtime: Mtime,
    /// Bytes of storage; less than a file's size where it has holes.
    pub allocated: u64,
}

/// Where `path` lies below `tree`.
pub fn below(tree: &Path, path: &RelPath) -> PathBuf {
    if path.is_root() { tree.to_owned() } else { tree.join(OsStr::from_bytes(path.as_bytes())) }
}

/// Looks at one name, without following it.
pub fn look(tree: &Path, path: &RelPath) -> io::Result<Item> {
    let full = below(tree, path);
    let meta = fs::symlink_metadata(&full)?;
    item(&full, path.clone(), &meta)
}

/// Every name of the tree, a directory before what is in it, sorted within each directory; the tree itself first.
/// `tree` may be a symlink to a directory; symlinks below are not followed. Our own state directory is left out.
pub fn walk(tree: &Path) -> Result<Vec<Item>, Fail> {
    let meta = fs::metadata(tree).map_err(|e| Fail::io("read", tree, &e))?;
    let mut items = vec![item(tree, RelPath::default(), &meta).map_err(|e| Fail::io("read", tree, &e))?];
    let mut next = 0;
    while next < items.len() {
        if items[next].kind == Kind::Dir {
            let dir = items[next].path.clone();
            let found = list(tree, &dir).map_err(|(path, e)| Fail::io("read", &path, &e))?;
            items.extend(found);
        }
        next += 1;
    }
    items.sort_by(|a, b| a.path.components().cmp(b.path.components()));
    Ok(items)
}

fn list(tree: &Path, dir: &RelPath) -> Result<Vec<Item>, (PathBuf, io::Error)> {
    let full = below(tree, dir);
    let in_dir = |e| (full.clone(), e);
    let mut found = Vec::new();
    for entry in fs::read_dir(&full).map_err(in_dir)? {
        let entry = entry.map_err(in_dir)?;
        let name = entry.file_name();
        if name.as_bytes() == STATE_DIR {
            continue;
        }
        let here = |e| (entry.path(), e);
        let path = dir.join(name.as_bytes()).map_err(|e| here(io::Error::new(io::ErrorKind::InvalidFilename, e)))?;
        let meta = entry.metadata().map_err(here)?;
        found.push(item(&entry.path(), path, &meta).map_err(here)?);
    }
    Ok(found)
}

fn item(full: &Path, path: RelPath, meta: &Metadata) -> io::Result<Item> {
    let kind = match meta.file_type() {
        kind if kind.is_dir() => Kind::Dir,
        kind if kind.is_file() => Kind::File(meta.len()),
        kind if kind.is_symlink() => Kind::Symlink(fs::read_link(full)?.as_os_str().as_bytes().to_vec()),
        _ => Kind::Special,
    };
    // The kernel gives 0 ..= 999,999,999.
    let mtime = Mtime { secs: meta.mtime(), nanos: meta.mtime_nsec() as u32 };
    // `stat` counts blocks of 512 bytes, whatever the file system's own are.
    Ok(Item { path, kind, mode: meta.mode() & 0o7777, mtime, allocated: meta.blocks() * 512 })
}

/// Reads one regular file from beginning to end. A symlink or FIFO in its place is an error, never followed or waited
/// for.
pub fn hash_file(tree: &Path, path: &RelPath, kinds: &[ChecksumKind]) -> io::Result<Sums> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(below(tree, path))?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    hash_reader(kinds, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn walks_without_following_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(tree.join(".longhaul")).unwrap();
        fs::write(tree.join("a/b/f"), b"xyz").unwrap();
        fs::write(tree.join("a.x"), b"").unwrap();
        symlink("/etc", tree.join("a/link")).unwrap();
        let items = walk(tree).unwrap();
        let seen: Vec<_> = items.iter().map(|i| (i.path.to_string(), i.kind.clone())).collect();
        let want = [
            (".", Kind::Dir),
            ("a", Kind::Dir),
            ("a/b", Kind::Dir),
            ("a/b/f", Kind::File(3)),
            ("a/link", Kind::Symlink(b"/etc".to_vec())),
            ("a.x", Kind::File(0)),
        ];
        assert_eq!(seen, want.map(|(path, kind)| (path.to_owned(), kind)));
        symlink("b/f", tree.join("a/to file")).unwrap();
        let link = RelPath::new(b"a/to file").unwrap();
        assert!(hash_file(tree, &link, &[ChecksumKind::Md5]).is_err());
        assert_eq!(walk(&tree.join("none")).unwrap_err().code, 4);
    }
}
