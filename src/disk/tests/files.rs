use super::{ID, create_small, for_each_root, p, places, plan};
use crate::digest;
use crate::disk::confined::{LastDir, Root, Stat};
use crate::disk::error::{DiskError, Foreign};
use crate::disk::names::part_name;
use crate::disk::part::{PartFile, Punched, ReadBack};
use crate::disk::plan::{IoWish, Residency, residency, write_plan};
use crate::disk::probe::{FsFacts, FsKind, ProbeCache};
use crate::disk::publish::{Existing, Meta, RenamedBy, Replace, existing, finish_directory, make_symlink, same_object};
use crate::disk::small::{SyncedBy, drop_batch, rename_batch, sync_batch};
use crate::disk::source::{Expect, SmallSource, SourceError, SourceFile, read_small};
use crate::grid::Span;
use crate::manifest::Mtime;
use crate::relpath::RelPath;
use crate::sys::FileMode;
use crate::sys::fsys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::Ordering;

const MTIME: Mtime = Mtime { secs: 1_234_567_890, nanos: 123_456_789 };
const META: Meta = Meta { mode: Some(0o6754), special: false, mtime: Some(MTIME) };

fn part_path(dir: &Path, name: &str) -> std::path::PathBuf {
    dir.join(OsStr::from_bytes(&part_name(name.as_bytes(), &ID)))
}

#[test]
fn a_file_is_written_proved_and_published() {
    for_each_root(|root, path| {
        for (name, mode) in
            [("direct", FileMode::Direct), ("cached", FileMode::PageCache), ("dont", FileMode::DontCache)]
        {
            let size = (3 << 20) + 17;
            let content: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let to = p(name);
            let part = PartFile::create(root, &to, &ID, size as u64, None, &plan(mode)).unwrap();
            assert_eq!(part_path(path, name).metadata().unwrap().mode() & 0o7777, 0o600);
            let exists = PartFile::create(root, &to, &ID, 1, None, &plan(mode)).unwrap_err();
            assert!(matches!(exists, DiskError::Exists { .. }));
            part.write_all_at(&content, 0).unwrap();
            assert!(part.write_all_at(b"x", size as u64).is_err(), "never beyond its size");
            part.sync_data().unwrap();
            let mut back = vec![0; 1 << 20];
            for at in [0, 5, size - (1 << 20)] {
                let how = part.read_back(at as u64, &mut back).unwrap();
                assert_eq!(back, content[at..at + (1 << 20)], "{name} at {at}");
                let volatile = FsKind::of(root.handle().as_fd()).unwrap().is_volatile();
                assert_eq!(how == ReadBack::Memory, volatile);
            }
            assert!(matches!(
                part.read_back(size as u64 - 5, &mut back[..6]),
                Err(DiskError::Short { missing: 1, .. })
            ));
            let digest = digest::of(&content);
            let done = part.publish(&META, Some(digest.into()), Replace::No).unwrap();
            assert_eq!((done.renamed, done.record), (RenamedBy::NoReplace, Ok(())));
            assert_eq!(std::fs::read(path.join(name)).unwrap(), content);
            let meta = path.join(name).metadata().unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o754, MTIME.secs, 123_456_789));
            let Existing::File { stat, record } = existing(root, &to).unwrap() else { panic!() };
            assert_eq!((stat.size, stat.mtime, record), (size as u64, MTIME, Some(digest.into())));
            assert!(stat.same_object(part.stat()));
            assert!(!part_path(path, name).exists());
            // Other bytes of the same size and another time: the record holds no more.
            std::fs::OpenOptions::new().write(true).open(path.join(name)).unwrap().write_all_at(b"!", 0).unwrap();
            assert!(matches!(existing(root, &to).unwrap(), Existing::File { record: None, .. }));
        }
    });
}

#[test]
fn what_is_there_is_only_replaced_when_asked() {
    for_each_root(|root, path| {
        std::fs::write(path.join("f"), b"old").unwrap();
        std::fs::create_dir(path.join("d")).unwrap();
        let make = |name: &str| {
            let part = PartFile::create(root, &p(name), &ID, 3, None, &plan(FileMode::PageCache)).unwrap();
            part.write_all_at(b"new", 0).unwrap();
            part
        };
        let part = make("f");
        assert!(matches!(part.publish(&META, None, Replace::No), Err(DiskError::Exists { .. })));
        assert_eq!(std::fs::read(path.join("f")).unwrap(), b"old");
        assert_eq!(part.publish(&META, None, Replace::Yes).unwrap().renamed, RenamedBy::Replacing);
        assert_eq!(std::fs::read(path.join("f")).unwrap(), b"new");
        let part = make("d");
        assert!(part.publish(&META, None, Replace::Yes).is_err(), "a directory is never replaced");
        part.remove().unwrap();
        // A link under the final name is replaced as a name; what it points to stays.
        symlink(path.join("f"), path.join("l")).unwrap();
        make("l").publish(&META, None, Replace::Yes).unwrap();
        assert!(path.join("l").symlink_metadata().unwrap().is_file());
        assert_eq!(path.join("f").metadata().unwrap().nlink(), 1);
        // Special bits only when asked for.
        let special = Meta { special: true, ..META };
        make("s").publish(&special, None, Replace::No).unwrap();
        assert_eq!(path.join("s").metadata().unwrap().mode() & 0o7777, 0o6754);
    });
}

#[test]
fn a_swapped_part_file_is_neither_published_nor_removed() {
    for_each_root(|root, path| {
        let part = PartFile::create(root, &p("f"), &ID, 3, None, &plan(FileMode::PageCache)).unwrap();
        std::fs::rename(part_path(path, "f"), path.join("ours")).unwrap();
        std::fs::write(part_path(path, "f"), b"theirs").unwrap();
        let swapped = |e: DiskError| matches!(e, DiskError::ForeignPart { why: Foreign::Swapped, .. });
        assert!(swapped(part.rename(Replace::Yes).unwrap_err()));
        assert!(swapped(part.remove().unwrap_err()));
        assert_eq!(std::fs::read(part_path(path, "f")).unwrap(), b"theirs");
        assert!(!path.join("f").exists());
    });
}

#[test]
fn a_resume_takes_only_what_is_its_own() {
    for_each_root(|root, path| {
        let (to, io) = (p("f"), plan(FileMode::Direct));
        let reopen = || PartFile::reopen(root, &to, &ID, 8192, &io);
        assert!(reopen().unwrap().is_none());
        let part = PartFile::create(root, &to, &ID, 8192, None, &io).unwrap();
        part.write_all_at(b"kept", 4096).unwrap();
        // Still written by somebody: the descriptor that the ring uses is locked.
        assert!(matches!(reopen(), Err(DiskError::Busy { .. })));
        // As a ring does whose process is gone: it still refers to the descriptor that it writes through.
        let ring = part.file_ref();
        drop(part);
        assert!(matches!(reopen(), Err(DiskError::Busy { .. })));
        drop(ring);
        let part = reopen().unwrap().unwrap();
        let mut buf = [0; 4];
        part.read_back(4096, &mut buf).unwrap();
        assert_eq!(&buf, b"kept");
        drop(part);
        let why = |result: Result<Option<PartFile>, DiskError>| match result {
            Err(DiskError::ForeignPart { why, .. }) => why,
            other => panic!("{other:?}"),
        };
        let name = part_path(path, "f");
        assert_eq!(why(PartFile::reopen(root, &to, &ID, 8191, &io)), Foreign::Size);
        std::fs::hard_link(&name, path.join("second")).unwrap();
        assert_eq!(why(reopen()), Foreign::Links);
        std::fs::remove_file(path.join("second")).unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&name, Some(12_345), None).unwrap();
            assert_eq!(why(reopen()), Foreign::Owner);
        } else {
            eprintln!("skipped: another owner's part file (needs root)");
        }
        assert!(PartFile::discard(root, &to, &ID).unwrap());
        assert!(!PartFile::discard(root, &to, &ID).unwrap());
        std::fs::write(path.join("victim"), [0; 8192]).unwrap();
        symlink("victim", &name).unwrap();
        assert!(matches!(reopen(), Err(DiskError::SymlinkInTheWay { .. })));
        let planted = PartFile::create(root, &to, &ID, 8192, None, &io);
        assert!(matches!(planted, Err(DiskError::Exists { .. })));
        PartFile::discard(root, &to, &ID).unwrap();
        nix::unistd::mkfifo(&name, Mode::S_IRWXU).unwrap();
        assert!(matches!(reopen(), Err(DiskError::NotRegular { .. })));
        assert_eq!(std::fs::read(path.join("victim")).unwrap(), [0; 8192]);
    });
}

#[test]
fn holes_get_no_blocks_and_can_be_made() {
    for_each_root(|root, path| {
        let extents = [Span { offset: 1 << 20, len: 1 << 20 }];
        let size = 64 << 20;
        let part = PartFile::create(root, &p("f"), &ID, size, Some(&extents), &plan(FileMode::PageCache)).unwrap();
        let name = part_path(path, "f");
        assert!((1 << 20..2 << 20).contains(&(name.metadata().unwrap().blocks() * 512)));
        part.write_all_at(&[7; 1 << 20], 1 << 20).unwrap();
        assert_eq!(part.punch(Span { offset: 1 << 20, len: 1 << 19 }).unwrap(), Punched::Hole);
        let mut buf = [1; 16];
        part.read_back(1 << 20, &mut buf).unwrap();
        assert_eq!(buf, [0; 16]);
        part.read_back((1 << 20) + (1 << 19), &mut buf).unwrap();
        assert_eq!(buf, [7; 16]);
        assert!(name.metadata().unwrap().blocks() * 512 < 1 << 20);
        assert!(part.punch(Span { offset: size - 1, len: 2 }).is_err());
        assert!(part.punch(Span { offset: u64::MAX, len: 2 }).is_err());
        let beyond = [Span { offset: 0, len: size + 1 }];
        let refused = PartFile::create(root, &p("g"), &ID, size, Some(&beyond), &plan(FileMode::PageCache));
        assert!(refused.is_err() && !part_path(path, "g").exists(), "extents beyond the size");
    });
}

#[test]
fn an_absurd_size_is_refused_and_leaves_nothing() {
    for_each_root(|root, path| {
        for size in [u64::MAX, 1 << 63, crate::grid::MAX_FILE_SIZE, 1 << 50] {
            let refused = PartFile::create(root, &p("f"), &ID, size, None, &plan(FileMode::PageCache)).unwrap_err();
            assert!(matches!(refused, DiskError::TooBig { .. } | DiskError::NoSpace { .. }), "{size}: {refused}");
            assert_eq!(std::fs::read_dir(path).unwrap().count(), 0);
        }
    });
}

#[test]
fn a_failed_sync_poisons_for_ever() {
    for_each_root(|root, _| {
        let part = PartFile::create(root, &p("f"), &ID, 4096, None, &plan(FileMode::PageCache)).unwrap();
        part.sync_data().unwrap();
        part.fail_sync.store(true, Ordering::Relaxed);
        assert!(matches!(part.sync_data(), Err(DiskError::Os { errno: Errno::EIO, .. })));
        part.fail_sync.store(false, Ordering::Relaxed);
        let poisoned = |e: DiskError| matches!(e, DiskError::Poisoned { .. });
        assert!(part.is_poisoned());
        assert!(poisoned(part.sync_data().unwrap_err()));
        assert!(poisoned(part.write_all_at(b"x", 0).unwrap_err()));
        assert!(poisoned(part.read_back(0, &mut [0]).unwrap_err()));
        assert!(poisoned(part.finish(&META, None).unwrap_err()));
        assert!(poisoned(part.rename(Replace::Yes).unwrap_err()));
        part.remove().unwrap();
    });
}

#[test]
fn names_of_ours_are_refused() {
    for_each_root(|root, _| {
        for name in [".longhaul", "a/.longhaul/x", ".f.lh-0123456789abcdef.part"] {
            let reserved = |e: DiskError| matches!(e, DiskError::Reserved { .. });
            let io = plan(FileMode::PageCache);
            assert!(reserved(PartFile::create(root, &p(name), &ID, 1, None, &io).unwrap_err()));
            assert!(reserved(create_small(root, &p(name), &ID, b"", &META, None).unwrap_err()));
            assert!(reserved(make_symlink(root, &p(name), b"x", &ID, None, Replace::No).unwrap_err()));
        }
    });
}

#[test]
fn sources_are_regular_files_of_the_expected_version() {
    for_each_root(|root, path| {
        let probes = ProbeCache::default();
        let open = |name: &str, expect| SourceFile::open(root, &p(name), expect, &probes, IoWish::Auto);
        std::fs::write(path.join("f"), b"content").unwrap();
        let file = open("f", Expect::Any).unwrap();
        let identity = file.identity();
        assert_eq!(identity.size, 7);
        let flags = fcntl(&file.file_ref().fd, FcntlArg::F_GETFL).unwrap();
        assert!(!OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
        open("f", Expect::Same(identity)).unwrap();
        open("f", Expect::Version { size: 7, mtime: identity.mtime }).unwrap();
        let wrong = open("f", Expect::Version { size: 8, mtime: identity.mtime }).unwrap_err();
        assert_eq!(wrong, SourceError::Changed { path: p("f"), now: identity });
        file.check().unwrap();
        // The mode alone is a change of the inode: the change time tells.
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::set_permissions(path.join("f"), std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(file.check(), Err(SourceError::Changed { .. })));
        let file = open("f", Expect::Any).unwrap();
        std::fs::remove_file(path.join("f")).unwrap();
        assert_eq!(file.check(), Err(SourceError::Gone { path: p("f") }));
        assert_eq!(open("f", Expect::Any).unwrap_err(), SourceError::Gone { path: p("f") });
        nix::unistd::mkfifo(&path.join("fifo"), Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path.join("socket")).unwrap();
        symlink("fifo", path.join("link")).unwrap();
        std::fs::create_dir(path.join("dir")).unwrap();
        for name in ["fifo", "socket", "link", "dir"] {
            assert_eq!(open(name, Expect::Any).unwrap_err(), SourceError::NotRegular { path: p(name) });
        }
    });
}

#[test]
fn a_cold_large_file_is_read_direct() {
    for place in places() {
        let root = Root::open_following(place.path()).unwrap();
        let file = std::fs::File::create_new(place.path().join("f")).unwrap();
        file.write_all_at(&vec![1; 8 << 20], 0).unwrap();
        file.sync_all().unwrap();
        let open = || SourceFile::open(&root, &p("f"), Expect::Any, &ProbeCache::default(), IoWish::Auto).unwrap();
        let kind = FsKind::of(file.as_fd()).unwrap();
        assert_eq!(open().plan().mode, FileMode::PageCache, "just written, so it is in memory");
        if !matches!(kind, FsKind::Ext4 | FsKind::Xfs) {
            eprintln!("skipped: cold reads on {kind}");
            continue;
        }
        let drop_cache = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, 0, 0, drop_cache).unwrap();
        let source = open();
        assert_eq!((source.plan().mode, source.plan().reason), (FileMode::Direct, "large and cold"));
        let mut block = crate::disk::AlignedBuf::new(4096);
        let flags = fcntl(&source.file_ref().fd, FcntlArg::F_GETFL).unwrap();
        assert!(OFlag::from_bits_retain(flags).contains(OFlag::O_DIRECT));
        fsys::read_at(source.file_ref().fd.as_fd(), &mut block, 4096, fsys::Caching::Normal).unwrap();
        assert_eq!(residency(file.as_fd(), 8 << 20), Residency::Cold, "direct reads leave nothing in memory");
    }
}

/// A pack's files may lie anywhere: what is kept of the last directory serves its own files alone.
#[test]
fn the_last_directory_serves_its_own_files_alone() {
    for_each_root(|root, path| {
        let names = ["f", "a/f", "a/g", "ab/f", "a/b/f", "f2", "a/h"];
        for name in names {
            std::fs::create_dir_all(path.join(name).parent().unwrap()).unwrap();
            std::fs::write(path.join(name), format!("{name:>8}")).unwrap();
        }
        let (mut last, mut buf) = (LastDir::default(), [0; 8]);
        for name in names {
            read_small(root, &mut last, &p(name), Expect::Any, &mut buf).unwrap();
            assert_eq!(String::from_utf8_lossy(&buf), format!("{name:>8}"));
        }
    });
}

#[test]
fn small_files_are_read_whole_or_not_at_all() {
    for_each_root(|root, path| {
        std::fs::write(path.join("f"), b"0123456789").unwrap();
        let mut buf = [0; 10];
        assert_eq!(read_small(root, &mut LastDir::default(), &p("f"), Expect::Any, &mut buf).unwrap().size, 10);
        assert_eq!(&buf, b"0123456789");
        let longer = read_small(root, &mut LastDir::default(), &p("f"), Expect::Any, &mut buf[..9]);
        assert!(matches!(longer, Err(SourceError::Changed { .. })));
        std::fs::write(path.join("empty"), b"").unwrap();
        assert_eq!(read_small(root, &mut LastDir::default(), &p("empty"), Expect::Any, &mut []).unwrap().size, 0);
        assert!(matches!(
            read_small(root, &mut LastDir::default(), &p("none/x"), Expect::Any, &mut buf),
            Err(SourceError::Gone { .. })
        ));
    });
}

/// Packs open files ahead of reading them: whatever is done to one between the two is noticed.
#[test]
fn a_small_file_that_changes_after_it_was_opened_is_not_sent() {
    for_each_root(|root, path| {
        for (n, new) in [&b"longer than before"[..], b"short", b"", b"9876543210"].into_iter().enumerate() {
            let name = format!("f{n}");
            std::fs::write(path.join(&name), b"0123456789").unwrap();
            let file = SmallSource::open(root, &mut LastDir::default(), &p(&name), Expect::Any, 10).unwrap();
            // Longer than the kernel's coarse clock stands still, or a rewrite of the same length would have the same time.
            std::thread::sleep(std::time::Duration::from_millis(20));
            std::fs::write(path.join(&name), new).unwrap();
            let read = file.read(&p(&name), &mut [0; 10]);
            assert!(matches!(read, Err(SourceError::Changed { .. })), "{new:?}: {read:?}");
        }
    });
}

#[test]
fn batches_of_small_files() {
    for_each_root(|root, path| {
        root.make_dirs(&p("a")).unwrap();
        for own_fs in [true, false] {
            let name = |i: usize| p(format!("a/{own_fs}-{i}"));
            let content = |i: usize| format!("content {i}").into_bytes();
            // An earlier run was stopped here.
            std::fs::write(part_path(&path.join("a"), &format!("{own_fs}-3")), b"half").unwrap();
            let make = |i| {
                create_small(root, &name(i), &ID, &content(i), &META, Some(digest::of(&content(i)).into())).unwrap()
            };
            let files: Vec<_> = (0..20).map(make).collect();
            let how = sync_batch(&files, own_fs).unwrap();
            assert!(how == SyncedBy::Syncfs || !own_fs);
            std::fs::write(path.join(format!("a/{own_fs}-7")), b"old").unwrap();
            let results = rename_batch(&files, Replace::No);
            for (i, result) in results.iter().enumerate() {
                if i == 7 {
                    assert!(matches!(result, Err(DiskError::Exists { .. })));
                    continue;
                }
                assert_eq!(result.as_ref().unwrap(), &RenamedBy::NoReplace);
                let Existing::File { stat, record } = existing(root, &name(i)).unwrap() else { panic!() };
                assert_eq!((stat.mtime, stat.mode, record), (MTIME, 0o754, Some(digest::of(&content(i)).into())));
                assert!(stat.same_object(files[i].stat()));
            }
            drop_batch(files);
            assert_eq!(std::fs::read(path.join(format!("a/{own_fs}-7"))).unwrap(), b"old");
        }
        assert_eq!(std::fs::read_dir(path.join("a")).unwrap().count(), 40, "no part file stays");
        let three: Vec<_> =
            (0..3).map(|i| create_small(root, &p(format!("t{i}")), &ID, b"x", &META, None).unwrap()).collect();
        assert_eq!(sync_batch(&three, true).unwrap(), SyncedBy::Each);
        assert!(rename_batch(&three, Replace::No).iter().all(Result::is_ok));
    });
}

#[test]
fn directories_and_links_get_their_own_metadata() {
    for_each_root(|root, path| {
        root.make_dirs(&p("d")).unwrap();
        let made = make_symlink(root, &p("d/l"), b"/somewhere\xff", &ID, Some(MTIME), Replace::No).unwrap();
        assert_eq!(made, RenamedBy::NoReplace);
        assert_eq!(root.read_link(&p("d/l")).unwrap(), b"/somewhere\xff");
        let Existing::Symlink { stat, .. } = existing(root, &p("d/l")).unwrap() else { panic!() };
        assert_eq!(stat.mtime, MTIME);
        let again = make_symlink(root, &p("d/l"), b"other", &ID, None, Replace::No);
        assert!(matches!(again, Err(DiskError::Exists { .. })));
        symlink("left", part_path(&path.join("d"), "l")).unwrap();
        make_symlink(root, &p("d/l"), b"other", &ID, None, Replace::Yes).unwrap();
        assert_eq!(root.read_link(&p("d/l")).unwrap(), b"other");
        assert_eq!(std::fs::read_dir(path.join("d")).unwrap().count(), 1);
        let meta = Meta { mode: Some(0o3555), special: false, mtime: Some(MTIME) };
        finish_directory(root, &p("d"), &meta).unwrap();
        let stat = root.stat(&p("d")).unwrap();
        assert_eq!((stat.mode, stat.mtime), (0o555, MTIME));
        let plain = Meta { mode: None, special: false, mtime: None };
        create_small(root, &p("plain"), &ID, b"", &plain, None).unwrap();
        std::fs::write(path.join("std"), b"").unwrap();
        let mode = |name: &std::path::Path| name.metadata().unwrap().mode();
        assert_eq!(mode(&part_path(path, "plain")), mode(&path.join("std")), "the umask decides");
    });
}

#[test]
fn one_file_under_two_names_is_known() {
    for_each_root(|root, path| {
        std::fs::create_dir(path.join("src")).unwrap();
        std::fs::write(path.join("src/f"), b"x").unwrap();
        std::fs::write(path.join("other"), b"x").unwrap();
        std::fs::hard_link(path.join("src/f"), path.join("hard")).unwrap();
        symlink("src", path.join("dirlink")).unwrap();
        let source = SourceFile::open(root, &p("src/f"), Expect::Any, &ProbeCache::default(), IoWish::Auto).unwrap();
        let identity = source.identity();
        let is = |path: &RelPath| same_object(&identity, &existing(root, path).unwrap());
        assert!(is(&p("src/f")) && is(&p("hard")) && is(&root.canonical(&p("dirlink/f")).unwrap()));
        assert!(!is(&p("other")) && !is(&p("none")) && !is(&p("src")));
    });
}

#[test]
fn probes_leave_nothing_and_tell_the_truth() {
    for place in places() {
        let root = Root::open_following(place.path()).unwrap();
        let before = Stat::of(root.handle().as_fd()).unwrap();
        let facts = FsFacts::of(root.handle()).unwrap();
        println!("{facts}");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
        assert!(facts.flock.is_ok() && facts.noreplace.is_ok() && facts.fallocate.is_ok(), "{facts}");
        match facts.kind {
            FsKind::Tmpfs => {
                assert_eq!(facts.dontcache_write, Err(Errno::EOPNOTSUPP));
                assert!(facts.to_string().contains("tmpfs (volatile)"));
                assert!(facts.to_string().contains("dontcache-write no (EOPNOTSUPP)"), "{facts}");
            }
            FsKind::Ext4 | FsKind::Xfs => {
                assert!(facts.direct_fits() && facts.xattr.is_ok(), "{facts}");
                assert_eq!(write_plan(&facts, 1 << 30, IoWish::Auto).mode, FileMode::Direct);
            }
            _ => {}
        }
        assert_eq!(before.dev, Stat::of(root.handle().as_fd()).unwrap().dev);
        let probes = ProbeCache::default();
        let (a, b) = (probes.destination(root.handle()).unwrap(), probes.destination(root.handle()).unwrap());
        assert!(std::sync::Arc::ptr_eq(&a, &b) && probes.all().len() == 1);
    }
}
