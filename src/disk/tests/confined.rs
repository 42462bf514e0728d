use super::{for_each_root, p, places};
use crate::disk::confined::{Kind, Made, Resolver, Root};
use crate::disk::error::DiskError;
use crate::disk::root::RootError;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

#[test]
fn directories_are_made_private_and_found_again() {
    for_each_root(|root, path| {
        assert_eq!(root.make_dir(&p("a")).unwrap(), Made::New);
        assert_eq!(root.make_dir(&p("a")).unwrap(), Made::Existed);
        assert_eq!(root.stat(&p("a")).unwrap().mode, 0o700);
        assert_eq!(root.make_dirs(&p("a/b/c/d")).unwrap(), [p("a/b"), p("a/b/c"), p("a/b/c/d")]);
        assert_eq!(root.make_dirs(&p("a/b/c/d")).unwrap(), []);
        std::fs::write(path.join("a/file"), b"x").unwrap();
        assert!(matches!(root.make_dir(&p("a/file")), Err(DiskError::NotADirectory { .. })));
        assert!(matches!(root.make_dir(&p("a/file/x")), Err(DiskError::NotADirectory { .. })));
        assert!(matches!(root.open_dir(&p("nowhere")), Err(DiskError::NotFound { .. })));
        let odd = [b"nl\n\xff".as_slice(), b"/", &[0xfe; 255]].concat();
        root.make_dirs(&p(&odd)).unwrap();
        assert_eq!(root.stat(&p(&odd)).unwrap().kind, Kind::Dir);
        assert!(path.join(std::ffi::OsStr::from_bytes(&odd)).is_dir());
    });
}

#[test]
fn a_removed_directory_is_not_served_from_the_cache() {
    for_each_root(|root, path| {
        root.make_dirs(&p("a/b")).unwrap();
        root.open_dir(&p("a/b")).unwrap();
        std::fs::remove_dir(path.join("a/b")).unwrap();
        std::fs::create_dir(path.join("a/b")).unwrap();
        std::fs::write(path.join("a/b/new"), b"").unwrap();
        assert_eq!(root.stat(&p("a/b/new")).unwrap().kind, Kind::File);
        // More directories than the cache holds: none is lost.
        for i in 0..100 {
            root.make_dirs(&p(format!("many/{i}/x"))).unwrap();
        }
        assert!((0..100).all(|i| root.stat(&p(format!("many/{i}/x"))).unwrap().kind == Kind::Dir));
    });
}

#[test]
fn planted_links_are_refused_and_never_followed() {
    for_each_root(|root, path| {
        let outside = path.with_extension("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("victim"), b"keep").unwrap();
        symlink(&outside, path.join("out")).unwrap();
        symlink("..", path.join("up")).unwrap();
        std::fs::create_dir(path.join("real")).unwrap();
        symlink("real", path.join("in")).unwrap();
        symlink("/proc/self/cwd", path.join("magic")).unwrap();
        for link in ["out", "up", "in", "magic"] {
            let below = p(format!("{link}/victim"));
            for result in [
                root.open_dir(&p(link)).map(drop),
                root.stat(&below).map(drop),
                root.make_dir(&below).map(drop),
                root.make_dir(&p(link)).map(drop),
                root.unlink(&below),
            ] {
                assert!(matches!(&result, Err(DiskError::SymlinkInTheWay { .. })), "{link}: {result:?}");
            }
            assert_eq!(root.stat(&p(link)).unwrap().kind, Kind::Symlink);
        }
        assert_eq!(std::fs::read(outside.join("victim")).unwrap(), b"keep");
        root.unlink(&p("out")).unwrap();
        assert!(outside.join("victim").exists(), "the link went, not its target");
    });
}

#[test]
fn roots_are_opened_strictly_unless_told() {
    for place in places() {
        let (real, link) = (place.path().join("real"), place.path().join("link"));
        std::fs::create_dir_all(real.join("sub")).unwrap();
        symlink(&real, &link).unwrap();
        std::fs::write(place.path().join("file"), b"").unwrap();
        for resolver in [Resolver::OpenAt2, Resolver::Walk] {
            let open = |path: &std::path::Path| Root::open_with(path, resolver).map(drop);
            assert_eq!(open(&real.join("sub")), Ok(()));
            assert_eq!(open(&link), Err(RootError::Symlink { path: link.clone() }), "{resolver:?}");
            let below = link.join("sub");
            assert_eq!(open(&below), Err(RootError::Symlink { path: below.clone() }), "{resolver:?}");
            let file = place.path().join("file");
            assert_eq!(open(&file), Err(RootError::NotADirectory { path: file.clone() }));
            let none = place.path().join("none");
            assert_eq!(open(&none), Err(RootError::NotFound { path: none.clone() }));
        }
        Root::open_following(&link.join("sub")).unwrap();
    }
}

#[test]
fn the_operators_own_links_become_plain_paths() {
    for_each_root(|root, path| {
        std::fs::create_dir_all(path.join("mnt/x/d")).unwrap();
        symlink("mnt/./x", path.join("data")).unwrap();
        symlink("../../data/d", path.join("mnt/x/again")).unwrap();
        symlink("loop", path.join("loop")).unwrap();
        symlink("../..", path.join("out")).unwrap();
        symlink("/etc", path.join("abs")).unwrap();
        assert_eq!(root.canonical(&p("data/d/f")).unwrap(), p("mnt/x/d/f"));
        assert_eq!(root.canonical(&p("data/again/new/er")).unwrap(), p("mnt/x/d/new/er"));
        assert!(matches!(root.canonical(&p("loop/x")), Err(DiskError::SymlinkInTheWay { .. })));
        assert!(matches!(root.canonical(&p("out/x")), Err(DiskError::Outside { .. })));
        assert!(matches!(root.canonical(&p("abs/passwd")), Err(DiskError::Outside { .. })));
        // Only where the root is the whole file system does an absolute target mean what its author meant.
        let whole = Root::open(std::path::Path::new("/")).unwrap();
        let typed = path.join("mnt/x/d").canonicalize().unwrap();
        symlink(&typed, path.join("far")).unwrap();
        let far = path.join("far");
        let canonical = whole.canonical(&p(&far.as_os_str().as_bytes()[1..])).unwrap();
        assert_eq!(canonical, p(&typed.as_os_str().as_bytes()[1..]));
    });
}
