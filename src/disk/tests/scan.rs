use super::{for_each_root, p, places};
use crate::disk::confined::Root;
use crate::disk::error::DiskError;
use crate::disk::extents::data_extents;
use crate::disk::scan::{ObjectId, ScanError, ScanTotals, Scanned, scan};
use crate::grid::Span;
use crate::manifest::{Entry, EntryKind};
use crate::relpath::RelPath;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, mkdirat};
use std::collections::HashSet;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

type Problems = Vec<(RelPath, ScanError)>;

fn all(root: &Root, roots: &[RelPath], skip: &[ObjectId]) -> (Vec<Entry>, Problems, ScanTotals) {
    let (mut entries, mut problems) = (vec![], vec![]);
    let totals = scan(root, roots, true, skip, &mut |found| {
        match found {
            Scanned::Entry(entry) => entries.push(entry),
            Scanned::Problem { path, error, .. } => problems.push((path, error)),
        }
        ControlFlow::Continue(())
    });
    (entries, problems, totals)
}

fn find<'e>(entries: &'e [Entry], root: u16, path: &[u8]) -> &'e Entry {
    entries.iter().find(|e| e.root == root && e.path.as_bytes() == path).unwrap()
}

#[test]
fn a_tree_comes_whole_with_directories_first() {
    for_each_root(|root, path| {
        let tree = path.join("top/tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir_all(tree.join(".longhaul/x")).unwrap();
        let odd = std::ffi::OsStr::from_bytes(b"nl\n\xff \x1b");
        std::fs::write(tree.join("a").join(odd), b"12345").unwrap();
        std::fs::write(tree.join("a/.f.lh-5a5a5a5a5a5a5a5a.part"), b"").unwrap();
        std::fs::set_permissions(tree.join("a").join(odd), std::fs::Permissions::from_mode(0o4751)).unwrap();
        symlink("../nowhere", tree.join("a/b/link")).unwrap();
        symlink("/", tree.join("slash")).unwrap();
        nix::unistd::mkfifo(&tree.join("fifo"), Mode::S_IRUSR).unwrap();
        let sparse = File::create(tree.join("sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        symlink("top/tree", path.join("alias")).unwrap();
        symlink("top/tree/sparse", path.join("onefile")).unwrap();

        let roots = [p("top/tree"), p("alias"), p("onefile"), p("gone"), p("top/tree/a/b/link")];
        let (entries, problems, totals) = all(root, &roots, &[]);
        for index in [0, 1] {
            let mut seen = HashSet::from([RelPath::default()]);
            let mine: Vec<_> = entries.iter().filter(|e| e.root == index).collect();
            assert_eq!((mine[0].path.is_root(), &mine[0].kind), (true, &EntryKind::Dir));
            for entry in &mine[1..] {
                assert!(seen.contains(&entry.path.split_last().unwrap().0), "{entry:?} before its directory");
                assert!(seen.insert(entry.path.clone()), "{entry:?} twice");
            }
            assert_eq!(mine.len(), 8, "{mine:?}");
            let file = find(&entries, index, &[b"a/", odd.as_bytes()].concat());
            assert_eq!((&file.kind, file.mode), (&EntryKind::File { size: 5, sparse: false }, 0o4751));
            let meta = tree.join("a").join(odd).metadata().unwrap();
            assert_eq!((file.mtime.secs, i64::from(file.mtime.nanos)), (meta.mtime(), meta.mtime_nsec()));
            let target: Box<[u8]> = b"../nowhere".as_slice().into();
            assert_eq!(find(&entries, index, b"a/b/link").kind, EntryKind::Symlink { target });
            assert_eq!(find(&entries, index, b"fifo").kind, EntryKind::Special);
        }
        assert_eq!(find(&entries, 2, b"").kind, EntryKind::File { size: 1 << 20, sparse: true });
        // A root link to nowhere resolves to a name that is not there: a problem, as the missing root.
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems.iter().all(|(_, e)| matches!(e, ScanError::Disk(DiskError::NotFound { .. }))));
        let want = ScanTotals {
            directories: 6,
            files: 5,
            bytes: 2 * (5 + (1 << 20)) + (1 << 20),
            symlinks: 4,
            specials: 2,
            problems: 2,
            left_out: 4,
            stopped: false,
        };
        assert_eq!(totals, want);
        // The destination inside the source is left out.
        let skip = ObjectId::from(&root.stat(&p("top/tree/a/b")).unwrap());
        let (entries, ..) = all(root, &roots[..1], &[skip]);
        assert!(entries.iter().all(|e| !e.path.as_bytes().starts_with(b"a/b")));
        let flat = scan(root, &roots[..1], false, &[], &mut |found| {
            assert!(matches!(found, Scanned::Problem { error: ScanError::NeedsRecursive, .. }));
            ControlFlow::Continue(())
        });
        assert_eq!(flat.problems, 1);
        let mut left = 3;
        let cut = scan(root, &roots, true, &[], &mut |_| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(cut.stopped && left == 0);
    });
}

/// Descriptors of this process that lead below `path`.
fn open_below(path: &Path) -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    fds.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to.starts_with(path))).count()
}

#[test]
fn deep_trees_need_few_descriptors_and_end_with_a_problem() {
    for_each_root(|root, path| {
        // 700 levels of 8 bytes: beyond PATH_MAX. Files before and after the descent in each directory's listing.
        let mut dir = std::os::fd::OwnedFd::from(File::open(path).unwrap());
        for _ in 0..700 {
            for i in 0..3 {
                let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
                drop(nix::fcntl::openat(&dir, format!("f{i}").as_str(), flags, Mode::S_IRUSR).unwrap());
            }
            mkdirat(&dir, "dddddddd", Mode::S_IRWXU).unwrap();
            dir = nix::fcntl::openat(&dir, "dddddddd", OFlag::O_RDONLY, Mode::empty()).unwrap();
        }
        let (mut seen, mut most, mut problems) = (HashSet::new(), 0, vec![]);
        let totals = scan(root, &[RelPath::default()], true, &[], &mut |found| {
            match found {
                Scanned::Entry(entry) => {
                    if seen.len() % 100 == 0 {
                        most = most.max(open_below(path));
                    }
                    assert!(seen.insert(entry.path.as_bytes().to_vec()), "{entry:?} twice");
                }
                Scanned::Problem { path, error, .. } => problems.push((path, error)),
            }
            ControlFlow::Continue(())
        });
        // 455 levels of 9 bytes make 4094: the directory of that level fits, nothing in it does.
        assert_eq!((totals.directories, totals.files, problems.len()), (456, 3 * 455, 4));
        assert!(problems.iter().all(|(_, e)| matches!(e, ScanError::TooLong { .. })));
        assert!((60..90).contains(&most), "{most} descriptors");
    });
}

#[test]
fn a_hundred_thousand_names_in_one_directory() {
    const NAMES: usize = 100_000;
    for place in places() {
        let start = Instant::now();
        let many = place.path().join("many");
        std::fs::create_dir(&many).unwrap();
        for i in 0..NAMES {
            File::create(many.join(format!("file-{i:06}"))).unwrap();
        }
        let created = start.elapsed();
        let root = Root::open_following(place.path()).unwrap();
        let start = Instant::now();
        let mut seen = vec![false; NAMES];
        let totals = scan(&root, &[p("many")], true, &[], &mut |found| {
            let Scanned::Entry(entry) = found else { panic!("{found:?}") };
            if entry.kind != EntryKind::Dir {
                let number = std::str::from_utf8(&entry.path.as_bytes()[5..]).unwrap().parse::<usize>().unwrap();
                assert!(!std::mem::replace(&mut seen[number], true), "{entry:?} twice");
            }
            ControlFlow::Continue(())
        });
        println!("{place:?}: created in {created:?}, scanned in {:?}", start.elapsed());
        assert_eq!((totals.files, totals.problems), (NAMES as u64, 0));
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn parked_directories_go_on_where_they_were() {
    for_each_root(|root, path| {
        // A directory with many names, from several of which the walk goes far down and comes back.
        for i in 0..1500 {
            File::create(path.join(format!("file-{i}"))).unwrap();
        }
        for i in 0..5 {
            let deep: String = (0..100).map(|level| format!("n{level}/")).collect();
            std::fs::create_dir_all(path.join(format!("deep-{i}/{deep}"))).unwrap();
        }
        let (entries, problems, totals) = all(root, &[RelPath::default()], &[]);
        let names: HashSet<_> = entries.iter().map(|e| e.path.as_bytes()).collect();
        assert_eq!((names.len(), entries.len(), problems.len()), (1 + 1500 + 505, 1 + 1500 + 505, 0));
        assert_eq!((totals.files, totals.directories), (1500, 506));
    });
}

#[test]
fn what_vanishes_or_is_exchanged_meanwhile_is_a_problem() {
    for_each_root(|root, path| {
        // Deep enough that the top is parked when it is exchanged: for a link, then for another directory.
        let deep: String = (0..80).map(|level| format!("n{level}/")).collect();
        // Names on both sides of the place in the listing, wherever that is.
        for i in 0..200 {
            std::fs::create_dir_all(path.join(format!("other/not-ours-{i}"))).unwrap();
        }
        for planted in ["link", "other"] {
            let top = path.join(format!("top-{planted}"));
            std::fs::create_dir_all(top.join(&deep)).unwrap();
            for i in 0..200 {
                File::create(top.join(format!("ours-{i}"))).unwrap();
            }
            symlink("/", path.join("link")).unwrap();
            let mut problems = vec![];
            scan(root, &[p(format!("top-{planted}"))], true, &[], &mut |found| {
                match found {
                    Scanned::Entry(entry) if entry.path.components().count() == 79 => {
                        std::fs::rename(&top, path.join(format!("away-{planted}"))).unwrap();
                        std::fs::rename(path.join(planted), &top).unwrap();
                    }
                    Scanned::Entry(entry) => assert!(!entry.path.as_bytes().starts_with(b"not-ours")),
                    Scanned::Problem { error, .. } => problems.push(error),
                }
                ControlFlow::Continue(())
            });
            assert!(!problems.is_empty() && problems.iter().all(|e| *e == ScanError::Vanished), "{problems:?}");
            let _ = std::fs::remove_file(path.join("link"));
        }
    });
}

#[test]
fn extents_are_the_data() {
    for place in places() {
        let file = File::create_new(place.path().join("sparse")).unwrap();
        file.write_all_at(b"data", 0).unwrap();
        file.write_all_at(&[1; 8192], 1 << 20).unwrap();
        file.set_len(4 << 20).unwrap();
        let extents = data_extents(file.as_fd(), 4 << 20).unwrap();
        let block = extents[0].len;
        assert!((4..=64 << 10).contains(&block), "{extents:?}");
        let (offset, len) = (1 << 20, extents[1].len);
        assert_eq!(extents, [Span { offset: 0, len: block }, Span { offset, len }]);
        assert!(len >= 8192);
        file.set_len(0).unwrap();
        assert_eq!(data_extents(file.as_fd(), 0), Some(vec![]));
        file.set_len(1 << 40).unwrap();
        assert_eq!(data_extents(file.as_fd(), 1 << 40), Some(vec![]));
        file.write_all_at(b"end", (1 << 20) - 3).unwrap();
        file.set_len(1 << 20).unwrap();
        let last = *data_extents(file.as_fd(), 1 << 20).unwrap().last().unwrap();
        assert_eq!(last.end(), 1 << 20);
        let other = File::open("/proc/self/maps").unwrap();
        assert_eq!(data_extents(other.as_fd(), 10), None, "proc tells nothing that could be trusted");
    }
}
