//! The tree that `longhaul demo` moves, and the independent comparison of the two copies afterwards.

use super::fail::{Fail, show};
use super::tree::{Item, Kind, below, hash_file, walk};
use crate::checksum::ChecksumKind;
use crate::relpath::RelPath;
use rayon::prelude::*;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes written at once.
const BUFFER: usize = 1 << 20;
/// The apparent size of the sparse file, with an island of data at either end.
const SPARSE_SIZE: u64 = 64 << 20;
/// Small files of one directory.
const SMALL_PER_DIR: u32 = 250;
/// The largest small file: most are packed, some are not.
const SMALL_MAX: u64 = 64 << 10;
/// Differences that are listed.
const LISTED: usize = 20;

/// Makes the demo's tree in `dir`, which does not exist yet: big files of `bytes` together, `small` small ones, an empty
/// file, an empty directory, a symlink, a sparse file, and names that shells stumble over. Ends early once `stop` is set.
pub fn make(dir: &Path, bytes: u64, small: u32, stop: &AtomicBool) -> Result<(), Fail> {
    let failed = |e: io::Error| Fail::io("make the demo tree in", dir, &e);
    fs::create_dir(dir).map_err(failed)?;
    for sub in ["big", "empty directory", "small"] {
        fs::create_dir(dir.join(sub)).map_err(failed)?;
    }
    let sizes = [bytes / 2, bytes / 4, bytes - bytes / 2 - bytes / 4];
    (0..sizes.len())
        .into_par_iter()
        .try_for_each(|number| random_file(&dir.join(format!("big/{number}.dat")), sizes[number], number as u64, stop))
        .map_err(failed)?;
    (0..small.div_ceil(SMALL_PER_DIR))
        .into_par_iter()
        .try_for_each(|part| small_files(dir, part, small, stop))
        .map_err(failed)?;
    odd_names(dir).map_err(failed)
}

fn small_files(dir: &Path, part: u32, all: u32, stop: &AtomicBool) -> io::Result<()> {
    let sub = dir.join(format!("small/{part:03}"));
    fs::create_dir(&sub)?;
    for number in part * SMALL_PER_DIR..((part + 1) * SMALL_PER_DIR).min(all) {
        // Squared: many tiny ones, few of the largest.
        let share = (mix(u64::from(number)) % 1000) * (mix(u64::from(number) + 7) % 1000);
        random_file(
            &sub.join(format!("{number:06}.txt")),
            SMALL_MAX * share / 1_000_000,
            u64::from(number) << 32,
            stop,
        )?;
    }
    Ok(())
}

fn odd_names(dir: &Path) -> io::Result<()> {
    File::create_new(dir.join("empty file"))?;
    symlink("big/0.dat", dir.join("link to 0"))?;
    fs::write(dir.join("newline\nand é"), b"names are bytes\n")?;
    fs::write(dir.join("run.sh"), b"#!/bin/sh\n")?;
    fs::set_permissions(dir.join("run.sh"), Permissions::from_mode(0o750))?;
    let sparse = File::create_new(dir.join("sparse.img"))?;
    sparse.set_len(SPARSE_SIZE)?;
    sparse.write_all_at(&[1; 4096], 0)?;
    sparse.write_all_at(&[2; 4096], SPARSE_SIZE - 4096)
}

/// What never compresses and never repeats: SplitMix64, a word at a time.
pub fn random_file(path: &Path, size: u64, seed: u64, stop: &AtomicBool) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let mut out = BufWriter::with_capacity(0, file);
    let mut buffer = vec![0u8; BUFFER.min(size as usize)];
    let (mut left, mut state) = (size, mix(seed ^ 0x6c6f_6e67_6861_756c));
    while left > 0 {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        for word in buffer.chunks_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let value = mix(state).to_le_bytes();
            word.copy_from_slice(&value[..word.len()]);
        }
        let step = left.min(buffer.len() as u64);
        out.write_all(&buffer[..step as usize])?;
        left -= step;
    }
    out.flush()
}

fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What a tree amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measure {
    /// Bytes of regular files, holes counted.
    pub bytes: u64,
    /// Bytes of regular files that storage is allocated for, which is what a transfer sends.
    pub data_bytes: u64,
    /// Regular files.
    pub files: u64,
}

/// Counts a tree.
pub fn measure(tree: &Path) -> Result<Measure, Fail> {
    let mut sum = Measure::default();
    for item in walk(tree)? {
        if let Kind::File(size) = item.kind {
            sum.files += 1;
            sum.bytes += size;
            sum.data_bytes += size.min(item.allocated);
        }
    }
    Ok(sum)
}

/// Bytes that an ordinary user may still write where `path` lies.
pub fn free_bytes(path: &Path) -> Result<u64, Fail> {
    let facts = nix::sys::statvfs::statvfs(path)
        .map_err(|errno| Fail::io("look at the free space of", path, &io::Error::from(errno)))?;
    Ok(facts.blocks_available().saturating_mul(facts.fragment_size()))
}

/// The outcome of [`compare`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compared {
    /// Names that both sides have and that were compared.
    pub names: u64,
    /// Bytes read, both sides together.
    pub bytes_read: u64,
    /// The first differences, a sentence each.
    pub differences: Vec<String>,
    /// All of them.
    pub different: u64,
}

/// Reads both trees whole and compares names, kinds, contents (XXH3-128 file digests), symlink targets, modes under mask
/// 0777 and times to the nanosecond. Special files are left out, as a transfer leaves them out.
pub fn compare(left: &Path, right: &Path) -> Result<Compared, Fail> {
    let (a, b) = (plain(walk(left)?), plain(walk(right)?));
    let (mut pairs, mut result) = (Vec::new(), Compared::default());
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    loop {
        // Both are in the order of their components.
        let order = match (a.peek(), b.peek()) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(x), Some(y)) => x.path.components().cmp(y.path.components()),
        };
        match order {
            std::cmp::Ordering::Less => result.note(&a.next().unwrap_or_else(|| unreachable!()).path, "is missing"),
            std::cmp::Ordering::Greater => result.note(&b.next().unwrap_or_else(|| unreachable!()).path, "is too much"),
            std::cmp::Ordering::Equal => pairs.extend(a.next().zip(b.next())),
        }
    }
    result.names = pairs.len() as u64;
    let outcomes: Vec<(u64, Vec<String>)> =
        pairs.par_iter().map(|(x, y)| compare_items(left, right, x, y)).collect::<Result<_, _>>()?;
    for ((item, _), (bytes, wrong)) in pairs.iter().zip(outcomes) {
        result.bytes_read += bytes;
        wrong.iter().for_each(|what| result.note(&item.path, what));
    }
    Ok(result)
}

impl Compared {
    fn note(&mut self, path: &RelPath, what: &str) {
        self.different += 1;
        if self.differences.len() < LISTED {
            self.differences.push(format!("{path} {what}"));
        }
    }
}

fn plain(items: Vec<Item>) -> Vec<Item> {
    items.into_iter().filter(|item| item.kind != Kind::Special).collect()
}

fn compare_items(left: &Path, right: &Path, a: &Item, b: &Item) -> Result<(u64, Vec<String>), Fail> {
    let (mut bytes, mut wrong) = (0, Vec::new());
    match (&a.kind, &b.kind) {
        (Kind::File(_), Kind::File(_)) => {
            let digest = |tree: &Path| {
                hash_file(tree, &a.path, &[ChecksumKind::Xxh3]).map_err(|e| Fail::io("read", &below(tree, &a.path), &e))
            };
            let (x, y) = (digest(left)?, digest(right)?);
            bytes = x.size + y.size;
            if x != y {
                wrong.push("has other content".to_owned());
            }
        }
        (x, y) if x == y => {}
        (Kind::Symlink(_), Kind::Symlink(_)) => wrong.push("points elsewhere".to_owned()),
        _ => wrong.push("is another kind of thing".to_owned()),
    }
    if !matches!(a.kind, Kind::Symlink(_)) && a.mode & 0o777 != b.mode & 0o777 {
        wrong.push(format!("has mode {:04o}, not {:04o}", b.mode, a.mode));
    }
    if a.mtime != b.mtime {
        wrong.push("has another modification time".to_owned());
    }
    Ok((bytes, wrong))
}

/// Checks that `need` bytes are free where `dir` lies.
pub fn check_space(dir: &Path, need: u64, advice: &str) -> Result<(), Fail> {
    let free = free_bytes(dir)?;
    if free < need {
        let (need, free) = (crate::units::Bytes(need), crate::units::Bytes(free));
        return Err(Fail::new(5, format!("this needs {need} in {}, where {free} are free: {advice}", show(dir))));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn copy(from: &Path, to: &Path) {
        for item in walk(from).unwrap() {
            let (source, target) = (below(from, &item.path), below(to, &item.path));
            match item.kind {
                Kind::Dir => fs::create_dir(&target).unwrap(),
                Kind::Symlink(to) => {
                    symlink(std::ffi::OsString::from(String::from_utf8(to).unwrap()), &target).unwrap()
                }
                _ => drop(fs::copy(&source, &target).unwrap()),
            }
        }
        for item in walk(from).unwrap().into_iter().rev() {
            let time = SystemTime::UNIX_EPOCH + Duration::new(item.mtime.secs as u64, item.mtime.nanos);
            let target = below(to, &item.path);
            if matches!(item.kind, Kind::Symlink(_)) {
                use nix::sys::time::TimeSpec;
                let time = TimeSpec::new(item.mtime.secs, i64::from(item.mtime.nanos));
                let flags = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
                nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, &target, &time, &time, flags).unwrap();
            } else {
                File::open(&target).unwrap().set_modified(time).unwrap();
                fs::set_permissions(&target, Permissions::from_mode(item.mode)).unwrap();
            }
        }
    }

    #[test]
    fn the_tree_is_as_promised_and_a_true_copy_passes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        make(&a, 9_000_001, 600, &AtomicBool::new(false)).unwrap();
        let measure = measure(&a).unwrap();
        assert_eq!(measure.files, 3 + 600 + 4);
        assert!(measure.data_bytes + (32 << 20) < measure.bytes, "the sparse file's hole is no data");
        assert!(measure.data_bytes > 9_000_001);
        let big: u64 = (0..3).map(|n| fs::metadata(a.join(format!("big/{n}.dat"))).unwrap().len()).sum();
        assert_eq!(big, 9_000_001);
        let data = fs::read(a.join("big/0.dat")).unwrap();
        assert!(data.chunks_exact(4096).all(|page| page != &data[..4096] || std::ptr::eq(page, &data[..4096])));
        copy(&a, &b);
        let same = compare(&a, &b).unwrap();
        assert_eq!((same.different, same.differences.clone()), (0, vec![]));
        assert_eq!(same.bytes_read, 2 * measure.bytes);
    }

    #[test]
    fn every_difference_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        make(&a, 1000, 3, &AtomicBool::new(false)).unwrap();
        copy(&a, &b);
        let wrong = |want: &[&str]| {
            let found = compare(&a, &b).unwrap();
            assert_eq!(found.differences, want);
            assert_eq!(found.different as usize, want.len());
        };
        let mtime = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        let (file, when) = (b.join("big/1.dat"), mtime(&b.join("big/1.dat")));
        let handle = OpenOptions::new().write(true).open(&file).unwrap();
        handle.write_all_at(b"x", 100).unwrap();
        handle.set_modified(when).unwrap();
        wrong(&["big/1.dat has other content"]);
        fs::set_permissions(b.join("run.sh"), Permissions::from_mode(0o755)).unwrap();
        File::open(b.join("empty file")).unwrap().set_modified(when + Duration::from_nanos(1)).unwrap();
        wrong(&[
            "big/1.dat has other content",
            "empty file has another modification time",
            "run.sh has mode 0755, not 0750",
        ]);
        let root = mtime(&b);
        fs::write(b.join("zz"), b"").unwrap();
        fs::remove_file(b.join("run.sh")).unwrap();
        File::open(&b).unwrap().set_modified(root).unwrap();
        wrong(&[
            "run.sh is missing",
            "zz is too much",
            "big/1.dat has other content",
            "empty file has another modification time",
        ]);
    }

    #[test]
    fn an_interrupted_demo_stops_making() {
        let dir = tempfile::tempdir().unwrap();
        let fail = make(&dir.path().join("a"), 1 << 50, 0, &AtomicBool::new(true)).unwrap_err();
        assert!(fail.what.contains("interrupted"), "{}", fail.what);
    }

    #[test]
    fn space_is_checked_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_space(dir.path(), 1, "").is_ok());
        let fail = check_space(dir.path(), u64::MAX, "give a smaller --size").unwrap_err();
        assert!(fail.code == 5 && fail.what.contains("smaller --size"), "{}", fail.what);
    }
}
