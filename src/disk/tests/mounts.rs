//! Full, read-only and forbidden places. Mounts live in a mount namespace of the test's own thread and end with it.

use super::{ID, create_small, p, places, plan};
use crate::disk::confined::{LastDir, Root};
use crate::disk::error::DiskError;
use crate::disk::lock::{LockError, TreeLock};
use crate::disk::part::PartFile;
use crate::disk::plan::{IoWish, write_plan};
use crate::disk::probe::FsFacts;
use crate::disk::publish::Meta;
use crate::disk::scan::{ScanError, Scanned, scan};
use crate::disk::source::{Expect, SourceError, read_small};
use crate::ids::Epoch;
use crate::sys::FileMode;
use nix::mount::{MsFlags, mount};
use nix::unistd::{Uid, setfsuid};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;

const META: Meta = Meta { mode: None, special: false, mtime: None };

/// Runs `test` in a thread with mounts of its own; says why when that cannot be.
fn with_own_mounts(what: &'static str, test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: {what} needs root");
    }
    let thread = std::thread::spawn(move || {
        let private = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>));
        match private {
            Ok(()) => test(),
            Err(e) => eprintln!("skipped: {what} needs a mount namespace: {e}"),
        }
    });
    thread.join().unwrap();
}

fn mounted(kind: &str, flags: MsFlags, options: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    mount(Some("none"), dir.path(), Some(kind), flags, Some(options)).unwrap();
    dir
}

#[test]
fn a_full_file_system_is_said_with_its_numbers() {
    with_own_mounts("a full file system", || {
        let dir = mounted("tmpfs", MsFlags::empty(), "size=8m");
        let root = Root::open(dir.path()).unwrap();
        let facts = FsFacts::of(root.handle()).unwrap();
        let chosen = write_plan(&facts, 16 << 20, IoWish::Auto);
        // By counting (as chosen for tmpfs) and by allocating.
        for io in [chosen, plan(FileMode::PageCache)] {
            let full = PartFile::create(&root, &p("big"), &ID, 16 << 20, None, &io).unwrap_err();
            let DiskError::NoSpace { path, needed, free } = full.clone() else { panic!("{full}") };
            assert_eq!((path, needed), (p("big"), 16 << 20));
            assert!(free <= 8 << 20, "{free}");
            assert!(full.to_string().contains("16.0 MiB needed"), "{full}");
            assert!(full.may_pass());
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no part file stays");
        }
        let io = write_plan(&facts, 2 << 20, IoWish::Auto);
        let part = PartFile::create(&root, &p("f"), &ID, 2 << 20, None, &io).unwrap();
        std::fs::write(dir.path().join("filler"), vec![1; 7 << 20]).unwrap();
        let full = part.write_all_at(&vec![1; 2 << 20], 0).unwrap_err();
        assert!(matches!(full, DiskError::NoSpace { .. }), "{full}");
        let filled =
            (0..4096).find_map(|i| create_small(&root, &p(format!("s{i}")), &ID, &[1; 8192], &META, None).err());
        assert!(matches!(filled, Some(DiskError::NoSpace { .. })), "{filled:?}");
    });
}

#[test]
fn a_read_only_mount_is_said() {
    with_own_mounts("a read-only mount", || {
        let dir = mounted("tmpfs", MsFlags::empty(), "size=1m");
        std::fs::write(dir.path().join("f"), b"x").unwrap();
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(Some("none"), dir.path(), Some("tmpfs"), flags, None::<&str>).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let read_only = |e: &DiskError| matches!(e, DiskError::ReadOnly { .. });
        assert!(read_only(&PartFile::create(&root, &p("n"), &ID, 1, None, &plan(FileMode::PageCache)).unwrap_err()));
        assert!(read_only(&create_small(&root, &p("n"), &ID, b"", &META, None).unwrap_err()));
        assert!(read_only(&root.make_dir(&p("n")).unwrap_err()));
        assert!(read_only(&FsFacts::of(root.handle()).unwrap_err()));
        let lock = TreeLock::take(&root, &p(""), &p(""), &ID, Epoch(1)).unwrap_err();
        assert!(matches!(&lock, LockError::Disk(e) if read_only(e)), "{lock}");
        assert_eq!(read_small(&root, &mut LastDir::default(), &p("f"), Expect::Any, &mut [0]).unwrap().size, 1);
    });
}

#[test]
fn one_file_system_inside_another_is_no_way_out() {
    with_own_mounts("a bind mount", || {
        let dir = mounted("tmpfs", MsFlags::empty(), "size=1m");
        for name in ["a", "b"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("a/f"), b"x").unwrap();
        mount(Some(&dir.path().join("a")), &dir.path().join("b"), None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .unwrap();
        let root = Root::open(dir.path()).unwrap();
        // The same file through a bind mount: known by device and inode.
        let stat = root.stat(&p("a/f")).unwrap();
        assert!(root.stat(&p("b/f")).unwrap().same_object(&stat));
        assert!(!root.stat(&p("a")).unwrap().same_object(&root.stat(&p("")).unwrap()));
    });
}

/// As another user, for file access only, in this thread only.
fn as_nobody(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            setfsuid(Uid::from_raw(65_534));
            test();
        });
    });
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn permissions_are_said_and_the_scan_goes_on() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: acting as another user needs root");
    }
    for place in places() {
        let path = place.path();
        chmod(path, 0o755);
        for dir in ["closed", "open", "pass"] {
            std::fs::create_dir(path.join(dir)).unwrap();
            std::fs::write(path.join(dir).join("f"), b"x").unwrap();
        }
        std::fs::write(path.join("secret"), b"x").unwrap();
        chmod(&path.join("secret"), 0o600);
        chmod(&path.join("closed"), 0o700);
        chmod(&path.join("pass"), 0o711);
        let root = Root::open_following(path).unwrap();
        as_nobody(|| {
            let denied = |e: &DiskError| matches!(e, DiskError::Denied { .. });
            let io = plan(FileMode::PageCache);
            assert!(denied(&PartFile::create(&root, &p("open/n"), &ID, 1, None, &io).unwrap_err()));
            assert!(denied(&root.make_dir(&p("open/n")).unwrap_err()));
            assert!(denied(&root.stat(&p("closed/f")).unwrap_err()));
            let secret = read_small(&root, &mut LastDir::default(), &p("secret"), Expect::Any, &mut [0]).unwrap_err();
            assert_eq!(secret, SourceError::Denied { path: p("secret") });
            // A directory that may be passed through, not listed.
            assert_eq!(
                read_small(&root, &mut LastDir::default(), &p("pass/f"), Expect::Any, &mut [0]).unwrap().size,
                1
            );
            let (mut names, mut problems) = (vec![], vec![]);
            scan(&root, &[p("")], true, &[], &mut |found| {
                match found {
                    Scanned::Entry(entry) => names.push(entry.path.to_string()),
                    Scanned::Problem { path, error, .. } => problems.push((path, error)),
                }
                ControlFlow::Continue(())
            });
            assert!(names.contains(&"open/f".to_owned()) && names.contains(&"secret".to_owned()), "{names:?}");
            problems.sort_by(|a, b| a.0.cmp(&b.0));
            let paths: Vec<_> = problems.iter().map(|(path, _)| path.to_string()).collect();
            assert_eq!(paths, ["closed", "pass"], "{problems:?}");
            assert!(problems.iter().all(|(_, e)| matches!(e, ScanError::Disk(DiskError::Denied { .. }))));
        });
    }
}
