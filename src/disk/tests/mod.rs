//! Tests of the whole of `disk`, on tmpfs and on the file system of the build directory.

mod confined;
mod files;
mod flips;
mod lock;
mod mounts;
mod scan;

use super::confined::{Resolver, Root};
use super::error::DiskError;
use super::plan::WritePlan;
use super::publish::Meta;
use super::record::Proof;
use super::small::{SmallFile, create_pack};
use crate::ids::TransferId;
use crate::relpath::RelPath;
use crate::sys::FileMode;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub(super) const ID: TransferId = TransferId([0x5a; 16]);

pub(super) fn p(path: impl AsRef<[u8]>) -> RelPath {
    RelPath::new(path.as_ref()).unwrap()
}

/// Test directories: on tmpfs, where there is one, and beside the test binary (a disk, usually).
pub(super) fn places() -> Vec<TempDir> {
    let build = std::env::current_exe().unwrap();
    let mut out = vec![TempDir::new_in(build.parent().unwrap()).unwrap()];
    match TempDir::new_in("/dev/shm") {
        Ok(dir) => out.push(dir),
        Err(e) => eprintln!("skipped on tmpfs: /dev/shm cannot be used: {e}"),
    }
    out
}

/// Every place with every resolver, an empty directory each.
pub(super) fn for_each_root(test: impl Fn(&Root, &Path)) {
    for place in places() {
        for resolver in [Resolver::OpenAt2, Resolver::Walk] {
            let path = place.path().join(resolver.word());
            std::fs::create_dir(&path).unwrap();
            test(&Root::open_with(&path, resolver).unwrap(), &path);
        }
    }
}

/// A small file as a pack of its own.
pub(super) fn create_small(
    root: &Root,
    path: &RelPath,
    id: &TransferId,
    content: &[u8],
    meta: &Meta,
    proof: Option<Proof>,
) -> Result<SmallFile, DiskError> {
    create_pack(root, [path], id).remove(0)?.fill(content, meta, proof)
}

pub(super) fn plan(mode: FileMode) -> WritePlan {
    WritePlan { mode, preallocate: true, unallocated: None, write_behind: false, reason: "test" }
}

/// Every name below `dir` with kind, mode, size, time, target and content: two equal listings are two equal trees.
pub(super) fn listing(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut out = vec![];
    let mut todo: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        let what = if meta.is_symlink() {
            format!("-> {:?}", path.read_link().unwrap())
        } else if meta.is_file() {
            format!("{:?}", std::fs::read(&path).unwrap())
        } else {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            String::new()
        };
        out.push(format!("{path:?} {:o} {}.{} {what}", meta.mode(), meta.mtime(), meta.mtime_nsec()));
    }
    out.sort();
    out
}
