use super::{ID, for_each_root, p, plan};
use crate::disk::clean::{CleanItem, CleanVerdict, clean};
use crate::disk::confined::Root;
use crate::disk::error::DiskError;
use crate::disk::lock::{LockError, TreeLock, has_live_lock_below};
use crate::disk::part::PartFile;
use crate::ids::{Epoch, TransferId};
use crate::sys::FileMode;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const OTHER: TransferId = TransferId([0x77; 16]);

fn take(root: &Root, home: &str, covers: &str, id: &TransferId) -> Result<TreeLock, LockError> {
    TreeLock::take(root, &p(home), &p(covers), id, Epoch(3))
}

fn held(result: Result<TreeLock, LockError>) -> String {
    match result {
        Err(e @ LockError::Held { .. }) => e.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_transfer_a_tree() {
    for_each_root(|root, path| {
        root.make_dirs(&p("t/sub/deep")).unwrap();
        let lock = take(root, "t", "t", &ID).unwrap();
        assert!(lock.is_fresh() && lock.note().is_none());
        let state = path.join("t/.longhaul");
        assert_eq!(state.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(state.join(ID.to_string()).metadata().unwrap().permissions().mode() & 0o7777, 0o700);
        let said = held(take(root, "t", "t", &OTHER));
        let pid = format!("process {} on ", std::process::id());
        assert!(said.contains(&pid) && said.contains("epoch 3") && said.contains(&ID.to_string()), "{said}");
        held(take(root, "t/sub/deep", "t/sub/deep", &OTHER));
        held(take(root, "t/sub", "t/sub/file", &OTHER));
        assert!(!path.join("t/sub/.longhaul").exists(), "a refused try leaves nothing");
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 1);
        assert_eq!(has_live_lock_below(root, &p("t")).unwrap().unwrap().covers, p("t"));
        assert_eq!(has_live_lock_below(root, &p("t/sub")).unwrap(), None);
        drop(lock);
        assert!(state.join(ID.to_string()).exists(), "kept for a resume");
        assert_eq!(has_live_lock_below(root, &p("t")).unwrap(), None);
        let lock = take(root, "t", "t", &ID).unwrap();
        assert!(!lock.is_fresh());
        lock.finish().unwrap();
        assert!(!state.exists());
    });
}

#[test]
fn single_files_meet_only_on_the_same_name() {
    for_each_root(|root, path| {
        root.make_dirs(&p("t/x")).unwrap();
        let a = take(root, "t", "t/a", &ID).unwrap();
        let b = take(root, "t", "t/b", &OTHER).unwrap();
        let third = TransferId([1; 16]);
        held(take(root, "t", "t/a", &third));
        held(take(root, "t", "t/b", &third));
        held(take(root, "t", "t", &third));
        let x = take(root, "t/x", "t/x", &third).unwrap();
        x.finish().unwrap();
        a.finish().unwrap();
        assert!(path.join("t/.longhaul").exists(), "the other one is still there");
        b.finish().unwrap();
        assert!(!path.join("t/.longhaul").exists());
        let refused = take(root, "t", "other", &ID).unwrap_err();
        assert!(matches!(refused, LockError::Disk(DiskError::Reserved { .. })));
    });
}

#[test]
fn of_many_that_start_at_once_exactly_one_gets_through() {
    for_each_root(|root, _| {
        root.make_dirs(&p("t")).unwrap();
        for round in 0..20u8 {
            let got = std::thread::scope(|scope| {
                let start = |n: u8| scope.spawn(move || take(root, "t", "t", &TransferId([round * 8 + n; 16])));
                let all: Vec<_> = (0..6).map(start).collect();
                let all: Vec<_> = all.into_iter().map(|t| t.join().unwrap()).collect();
                all.into_iter().filter_map(Result::ok).collect::<Vec<_>>()
            });
            assert_eq!(got.len(), 1, "round {round}");
            got.into_iter().for_each(|lock| lock.finish().unwrap());
        }
    });
}

#[test]
fn files_of_the_state_directory() {
    for_each_root(|root, path| {
        let lock = take(root, "", "", &ID).unwrap();
        assert!(lock.open_file("journal", false).unwrap().is_none());
        std::io::Write::write_all(&mut lock.open_file("journal", true).unwrap().unwrap(), b"x").unwrap();
        lock.sync_dir().unwrap();
        assert!(lock.open_file("journal", false).unwrap().is_some());
        for bad in ["", ".", "..", "a/b", "../x"] {
            assert!(lock.open_file(bad, true).is_err(), "{bad}");
        }
        std::fs::write(path.join("victim"), b"keep").unwrap();
        symlink("../../victim", path.join(format!(".longhaul/{ID}/planted"))).unwrap();
        assert!(matches!(lock.open_file("planted", true), Err(DiskError::SymlinkInTheWay { .. })));
        lock.finish().unwrap();
        assert_eq!(std::fs::read(path.join("victim")).unwrap(), b"keep");
        assert!(!path.join(".longhaul").exists());
        // A planted state directory is not entered.
        std::fs::create_dir(path.join("elsewhere")).unwrap();
        symlink("elsewhere", path.join(".longhaul")).unwrap();
        assert!(take(root, "", "", &ID).is_err());
        assert_eq!(std::fs::read_dir(path.join("elsewhere")).unwrap().count(), 0);
    });
}

/// A lock file as a process leaves it where `flock` is refused.
fn stale(path: &Path, pid: u32, started: u64, host: &str) {
    let dir = path.join(format!(".longhaul/{OTHER}"));
    std::fs::create_dir_all(&dir).unwrap();
    let text = format!(
        "longhaul lock 1\nid {OTHER}\npid {pid}\nstarted {started}\nhost {host}\nepoch 1\nheld existence\ncovers \n"
    );
    std::fs::write(dir.join("lock"), text).unwrap();
}

#[test]
fn a_lock_by_existence_lives_as_long_as_its_process() {
    for_each_root(|root, path| {
        let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
        let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
        stale(path, child.id(), 0, &host);
        let said = held(take(root, "", "", &ID));
        // A later process of that number is not the holder.
        stale(path, child.id(), 1, &host);
        let free = take(root, "", "", &ID);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(said.contains(&format!("process {} on", child.id())), "{said}");
        free.unwrap().finish().unwrap();
        stale(path, child.id(), 0, &host);
        take(root, "", "", &ID).unwrap().finish().unwrap();
        stale(path, child.id(), 0, "another-host.example");
        held(take(root, "", "", &ID));
    });
}

#[test]
fn clean_takes_what_is_dead_and_old_and_nothing_else() {
    for_each_root(|root, path| {
        root.make_dirs(&p("live/sub")).unwrap();
        root.make_dirs(&p("dead")).unwrap();
        let live = take(root, "live", "live", &ID).unwrap();
        let io = plan(FileMode::PageCache);
        let make = |name: &str, id| drop(PartFile::create(root, &p(name), id, 8192, None, &io).unwrap());
        make("live/sub/small", &ID);
        make("live/sub/other", &OTHER);
        drop(take(root, "dead", "dead", &OTHER).unwrap());
        std::fs::write(path.join(format!("dead/.longhaul/{OTHER}/journal")), [1; 5000]).unwrap();
        std::fs::write(path.join("dead/.longhaul/notes"), b"a user's own").unwrap();
        make("dead/f", &OTHER);
        let open = PartFile::create(root, &p("dead/open"), &OTHER, 1, None, &io).unwrap();
        std::fs::write(path.join("dead/keep"), b"data").unwrap();
        let outside = path.with_extension("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join(".x.lh-7777777777777777.part"), b"outside").unwrap();
        symlink(&outside, path.join("dead/link")).unwrap();
        symlink(outside.join("x"), path.join("dead/.l.lh-7777777777777777.part")).unwrap();
        let run = |age: u64, dry| {
            let mut items: Vec<CleanItem> = vec![];
            let report = clean(root, Duration::from_secs(age), dry, &mut |item| items.push(item.clone()));
            let by = |verdict: CleanVerdict| items.iter().filter(|item| item.verdict == verdict).count();
            (report, by(CleanVerdict::Removed), by(CleanVerdict::InUse), by(CleanVerdict::Young), items.len())
        };
        let before = super::listing(path);
        let (report, removed, in_use, young, all) = run(3600, true);
        assert_eq!((report.removed, removed, in_use + young, all), (0, 0, 7, 7));
        let (report, removed, in_use, _, all) = run(0, true);
        assert_eq!((removed, in_use, all), (4, 3, 7), "{report:?}");
        assert!(report.bytes >= 8192 + 8192 + 5000);
        assert_eq!(super::listing(path), before, "a dry run changes nothing");
        let (real, removed, in_use, ..) = run(0, false);
        assert_eq!((real, removed, in_use), (report, 4, 3));
        assert!(path.join("live/sub/.small.lh-5a5a5a5a5a5a5a5a.part").exists());
        assert!(!path.join("live/sub/.other.lh-7777777777777777.part").exists());
        assert!(path.join("dead/.open.lh-7777777777777777.part").exists(), "somebody writes it");
        assert!(path.join("dead/.longhaul/notes").exists() && !path.join(format!("dead/.longhaul/{OTHER}")).exists());
        assert!(path.join("dead/keep").exists() && outside.join(".x.lh-7777777777777777.part").exists());
        drop((live, open));
        assert_eq!(run(0, false).1, 3);
        assert!(!path.join("live/.longhaul").exists());
    });
}

/// After a SIGKILL the kernel may hold the lock for another moment, on behalf of nobody: that is waited for, by a repeated
/// transfer, by another one and by `clean`.
#[test]
fn the_locks_of_killed_processes_are_waited_for() {
    for_each_root(|root, path| {
        root.make_dirs(&p("t")).unwrap();
        let mut gone = Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let (own, other) = (format!("pid {}\n", std::process::id()), format!("pid {}\n", gone.id()));
        let file = path.join("t/.longhaul").join(ID.to_string()).join("lock");
        // A lock that says it is a dead process's, held for longer than a live one's would be waited for.
        let dying = |root: &Root| {
            let lock = take(root, "t", "t", &ID).unwrap();
            let text = std::fs::read_to_string(&file).unwrap();
            std::fs::write(&file, text.replace(&own, &other)).unwrap();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(2500));
                drop(lock);
            })
        };
        for id in [&ID, &OTHER] {
            let thread = dying(root);
            take(root, "t", "t", id).unwrap().finish().unwrap();
            thread.join().unwrap();
        }
        let thread = dying(root);
        assert_eq!(clean(root, Duration::ZERO, false, &mut |_| {}).removed, 1);
        assert!(!file.exists());
        thread.join().unwrap();
    });
}
