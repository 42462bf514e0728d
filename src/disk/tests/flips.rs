//! Somebody with access to the tree exchanges directories for symlinks while we work in it.

use super::{ID, create_small, for_each_root, listing, p, plan};
use crate::disk::confined::LastDir;
use crate::disk::part::PartFile;
use crate::disk::plan::IoWish;
use crate::disk::probe::ProbeCache;
use crate::disk::publish::{Meta, Replace, existing, finish_directory, make_symlink};
use crate::disk::small::{drop_batch, rename_batch};
use crate::disk::source::{Expect, SourceFile, read_small};
use crate::manifest::Mtime;
use crate::sys::FileMode;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Per place and resolver; four of them.
const TIME: Duration = Duration::from_millis(1400);
const META: Meta = Meta { mode: Some(0o640), special: false, mtime: Some(Mtime { secs: 1, nanos: 2 }) };

/// Longer than anything in the root, so that its size tells.
const SECRET: &[u8] = b"secret, and outside";

fn exchange(a: &Path, b: &Path) -> bool {
    renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE).is_ok()
}

#[test]
fn exchanged_directories_and_names_lead_nowhere() {
    let flips = AtomicU64::new(0);
    let (hits, tries) = (AtomicU64::new(0), AtomicU64::new(0));
    for_each_root(|root, path| {
        let outside = path.with_extension("outside");
        std::fs::create_dir_all(outside.join("sub")).unwrap();
        for name in ["file", "name", "sub/file"] {
            std::fs::write(outside.join(name), SECRET).unwrap();
        }
        std::fs::create_dir_all(path.join("d/sub")).unwrap();
        std::fs::write(path.join("d/file"), b"inside").unwrap();
        symlink(&outside, path.join("dl")).unwrap();
        std::fs::create_dir(path.join("f")).unwrap();
        std::fs::write(path.join("f/name"), b"inside").unwrap();
        symlink(outside.join("name"), path.join("f/link")).unwrap();
        let before = listing(&outside);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (a, b) in [("d", "dl"), ("f/name", "f/link")] {
                let (a, b, stop, flips) = (path.join(a), path.join(b), &stop, &flips);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        if exchange(&a, &b) {
                            flips.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            let until = Instant::now() + TIME;
            while Instant::now() < until {
                let done = work(root);
                replant(path, &outside);
                hits.fetch_add(done, Ordering::Relaxed);
                tries.fetch_add(1, Ordering::Relaxed);
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(listing(&outside), before, "something outside the root has changed");
    });
    let (flips, hits) = (flips.into_inner(), hits.into_inner());
    println!("{flips} flips, {hits} operations got through in {} rounds", tries.into_inner());
    assert!(flips > 100_000, "only {flips} exchanges: this proves little");
    assert!(hits > 1000, "only {hits} operations got through: this proves little");
}

/// The name that flips was replaced while it was the link: plants another.
fn replant(path: &Path, outside: &Path) {
    let is_link = |name: &str| path.join(name).symlink_metadata().is_ok_and(|meta| meta.is_symlink());
    if !is_link("f/link") && !is_link("f/name") {
        let _ = std::fs::remove_file(path.join("f/link"));
        let _ = symlink(outside.join("name"), path.join("f/link"));
    }
}

/// Every kind of operation once, through names that flip; how many got through. What was read must never come from
/// outside.
fn work(root: &crate::disk::Root) -> u64 {
    let mut done = 0;
    let mut count = |ok: bool| done += u64::from(ok);
    root.forget(&p(""));
    count(root.make_dir(&p("d/made")).is_ok());
    root.forget(&p(""));
    if let Ok(file) = create_small(root, &p("d/file"), &ID, b"mine", &META, None) {
        root.forget(&p(""));
        let files = vec![file];
        count(rename_batch(&files, Replace::Yes)[0].is_ok());
        drop_batch(files);
    }
    root.forget(&p(""));
    if let Ok(part) = PartFile::create(root, &p("d/part"), &ID, 4096, None, &plan(FileMode::Direct)) {
        count(part.write_all_at(b"mine", 0).is_ok());
        count(part.rename(Replace::Yes).is_ok());
    }
    root.forget(&p(""));
    count(make_symlink(root, &p("d/file2"), b"x", &ID, META.mtime, Replace::Yes).is_ok());
    root.forget(&p(""));
    if let Ok(dir) = root.open_dir(&p("d/sub")) {
        drop(dir);
        count(finish_directory(root, &p("d/sub"), &META).is_ok());
    }
    root.forget(&p(""));
    count(root.unlink(&p("d/name")).is_ok());
    count(root.remove_dir(&p("d/made")).is_ok());
    root.forget(&p(""));
    let mut buf = [0; 64];
    for name in ["d/file", "f/name"] {
        if let Ok(identity) = read_small(root, &mut LastDir::default(), &p(name), Expect::Any, &mut buf) {
            assert_ne!(&buf[..identity.size as usize], SECRET, "read through a symlink");
            count(true);
        }
        count(existing(root, &p(name)).is_ok());
        if let Ok(file) = SourceFile::open(root, &p(name), Expect::Any, &ProbeCache::default(), IoWish::Auto) {
            assert_ne!(file.identity().size, SECRET.len() as u64, "opened through a symlink");
            count(true);
        }
    }
    // A final name that is a link at times: it is replaced as a name, its target stays.
    if let Ok(file) = create_small(root, &p("f/name"), &ID, b"mine", &META, None) {
        let files = vec![file];
        count(rename_batch(&files, Replace::Yes)[0].is_ok());
        drop_batch(files);
    }
    done
}
