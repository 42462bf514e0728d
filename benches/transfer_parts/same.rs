//! Whether a copy is one.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Bytes that are compared at once.
const BLOCK: usize = 256 << 10;

/// Whether both hold the same names and bytes. A tree's directories are shared among as many threads as there are cores.
pub fn same_tree(a: &Path, b: &Path) -> io::Result<bool> {
    if fs::metadata(a)?.is_file() {
        return Comparer::new().same(a, b);
    }
    let Some(names) = same_names(a, b)? else { return Ok(false) };
    let (next, differ) = (AtomicUsize::new(0), AtomicBool::new(false));
    let look = || -> io::Result<()> {
        let mut comparer = Comparer::new();
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            if differ.load(Ordering::Relaxed) || !comparer.same(&a.join(name), &b.join(name))? {
                differ.store(true, Ordering::Relaxed);
                return Ok(());
            }
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(look)).collect();
        all.into_iter().try_for_each(|one| one.join().expect("no panic"))
    })?;
    Ok(!differ.load(Ordering::Relaxed))
}

/// The names of both directories; none: they differ.
fn same_names(a: &Path, b: &Path) -> io::Result<Option<Vec<std::ffi::OsString>>> {
    let names = |dir: &Path| -> io::Result<Vec<_>> {
        let mut names = fs::read_dir(dir)?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    let list = names(a)?;
    Ok((list == names(b)?).then_some(list))
}

struct Comparer {
    left: Vec<u8>,
    right: Vec<u8>,
}

impl Comparer {
    fn new() -> Self {
        Self { left: vec![0; BLOCK], right: vec![0; BLOCK] }
    }

    fn same(&mut self, a: &Path, b: &Path) -> io::Result<bool> {
        let (mut one, mut other) = (File::open(a)?, File::open(b)?);
        let (kind, copied) = (one.metadata()?, other.metadata()?);
        if kind.is_dir() != copied.is_dir() {
            return Ok(false);
        }
        if kind.is_dir() {
            let Some(names) = same_names(a, b)? else { return Ok(false) };
            for name in names {
                if !self.same(&a.join(&name), &b.join(&name))? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        let mut rest = kind.len();
        if rest != copied.len() {
            return Ok(false);
        }
        while rest > 0 {
            let step = rest.min(BLOCK as u64) as usize;
            one.read_exact(&mut self.left[..step])?;
            other.read_exact(&mut self.right[..step])?;
            if self.left[..step] != self.right[..step] {
                return Ok(false);
            }
            rest -= step as u64;
        }
        Ok(true)
    }
}
