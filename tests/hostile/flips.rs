//! Directories and symlinks that change places while calls and transfers go through their names. Nothing outside may be
//! read, written, made or removed.

use crate::count;
use crate::stage::Stage;
use longhaul::disk::{
    DiskError, Existing, Expect, LastDir, Meta, PartFile, Replace, Root, SmallSource, SourceError, create_pack,
    existing, finish_directory, make_symlink, rename_batch, write_plan,
};
use longhaul::ids::TransferId;
use longhaul::manifest::Mtime;
use longhaul::relpath::RelPath;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SECRET: &[u8] = b"stays as it is";
/// Refusals below which a race shows little.
const REFUSED_MIN: u64 = 1_000;
const ID: TransferId = TransferId([0x5a; 16]);
const META: Meta = Meta { mode: Some(0o640), special: false, mtime: Some(Mtime { secs: 1, nanos: 2 }) };

fn p(path: &str) -> RelPath {
    RelPath::new(path.as_bytes()).unwrap()
}

/// Ends the flippers also when the test fails: the scope waits for them.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Exchanges the two names until it is told to stop; counts.
fn flipper<'s>(
    scope: &'s std::thread::Scope<'s, '_>,
    a: std::path::PathBuf,
    b: std::path::PathBuf,
    stop: &'s AtomicBool,
    flips: &'s AtomicU64,
) {
    scope.spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let done = renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE).is_ok();
            flips.fetch_add(u64::from(done), Ordering::Relaxed);
        }
    });
}

/// What the calls of a round came to, by how they ended.
#[derive(Default)]
struct Tally {
    through: u64,
    /// ELOOP and EXDEV, as the library tells them.
    refused: u64,
    other: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn count<T>(&mut self, call: &'static str, result: Result<T, DiskError>) -> Option<T> {
        match result {
            Ok(value) => {
                self.through += 1;
                Some(value)
            }
            Err(DiskError::SymlinkInTheWay { .. } | DiskError::Outside { .. }) => {
                self.refused += 1;
                None
            }
            Err(_) => {
                *self.other.entry(call).or_default() += 1;
                None
            }
        }
    }
}

/// Every kind of call once, through names that flip.
fn round(root: &Root, tally: &mut Tally) {
    let anew = || root.forget(&p(""));
    anew();
    tally.count("make_dir", root.make_dir(&p("d/made")));
    anew();
    if let Some(file) = tally.count(
        "create_pack",
        create_pack(root, [&p("d/file")], &ID).remove(0).and_then(|new| new.fill(b"mine", &META, None)),
    ) {
        anew();
        let renamed = rename_batch(&[file], Replace::Yes).remove(0);
        tally.count("rename_batch", renamed);
    }
    anew();
    let part = root.open_dir(&p("d")).and_then(|dir| {
        let facts = longhaul::disk::ProbeCache::default().destination(&dir)?;
        let plan = write_plan(&facts, 4096, longhaul::disk::IoWish::Buffered);
        PartFile::create(root, &p("d/part"), &ID, 4096, None, &plan)
    });
    if let Some(part) = tally.count("PartFile::create", part) {
        tally.count("PartFile::rename", part.rename(Replace::Yes));
    }
    anew();
    tally.count("make_symlink", make_symlink(root, &p("d/link"), b"x", &ID, META.mtime, Replace::Yes));
    anew();
    tally.count("finish_directory", finish_directory(root, &p("d/sub"), &META));
    anew();
    tally.count("unlink", root.unlink(&p("d/canary")));
    tally.count("remove_dir", root.remove_dir(&p("d/made")));
    anew();
    tally.count("discard", PartFile::discard(root, &p("d/canary"), &ID));
    let mut buf = [0; 64];
    for name in ["d/canary", "d/dir/canary", "f/name"] {
        anew();
        let path = p(name);
        let opened = SmallSource::open(root, &mut LastDir::default(), &path, Expect::Any, buf.len());
        match opened.and_then(|file| file.read(&path, &mut buf)) {
            Ok(identity) => {
                assert_ne!(&buf[..identity.size as usize], SECRET, "read from outside");
                tally.through += 1;
            }
            Err(SourceError::Disk(error)) => drop(tally.count::<()>("small source", Err(error))),
            Err(_) => *tally.other.entry("small source").or_default() += 1,
        }
        anew();
        if let Some(Existing::File { stat, .. }) = tally.count("existing", existing(root, &p(name))) {
            assert_ne!(stat.size, SECRET.len() as u64, "looked at what lies outside");
        }
    }
    // What the round has used up.
    let _ = root.make_dir(&p("d/sub"));
}

#[test]
fn calls_through_names_that_flip_lead_nowhere() {
    let mut stage = Stage::new();
    let outside = stage.sandbox.at("outside");
    let base = stage.sandbox.dir("flips");
    std::fs::create_dir_all(base.join("d/sub")).unwrap();
    std::fs::create_dir_all(base.join("f")).unwrap();
    std::fs::write(base.join("f/name"), b"inside").unwrap();
    symlink(&outside, base.join("dl")).unwrap();
    symlink(outside.join("canary"), base.join("f/link")).unwrap();
    let (stop, flips, mut tally, mut rounds) = (AtomicBool::new(false), AtomicU64::new(0), Tally::default(), 0u64);
    let (wanted, patience) = (count(200_000, 1_000_000), Duration::from_secs(count(60, 600)));
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        flipper(scope, base.join("d"), base.join("dl"), &stop, &flips);
        flipper(scope, base.join("f/name"), base.join("f/link"), &stop, &flips);
        let root = Root::open(&base).unwrap();
        let began = Instant::now();
        while flips.load(Ordering::Relaxed) < wanted || tally.refused < REFUSED_MIN || tally.through < REFUSED_MIN {
            round(&root, &mut tally);
            rounds += 1;
            if began.elapsed() > patience {
                break;
            }
        }
    });
    let flips = flips.into_inner();
    println!(
        "COUNT symlink_flips={flips} rounds={rounds} calls_through={} eloop_or_exdev={} escapes=0",
        tally.through, tally.refused
    );
    assert!(flips >= wanted && tally.refused >= REFUSED_MIN && tally.through >= REFUSED_MIN, "{:?}", tally.other);
    stage.unharmed("flips under calls");
}

/// Whether something below `dir` holds the bytes that lie outside.
fn holds_secret(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().map(Result::unwrap);
    entries.into_iter().any(|entry| match entry.file_type().unwrap() {
        kind if kind.is_dir() => holds_secret(&entry.path()),
        kind if kind.is_file() => std::fs::read(entry.path()).unwrap().windows(SECRET.len()).any(|w| w == SECRET),
        _ => false,
    })
}

#[test]
fn transfers_through_names_that_flip_lead_nowhere() {
    let mut stage = Stage::new();
    let outside = stage.sandbox.at("outside");
    // At the agent: below its destination and below its source.
    for place in ["in", "src"] {
        let dir = stage.sandbox.at("far").join(place);
        std::fs::create_dir_all(dir.join("flip/dir")).unwrap();
        std::fs::write(dir.join("flip/canary"), b"inside").unwrap();
        std::fs::write(dir.join("flip/dir/canary"), vec![7; 100_000]).unwrap();
        symlink(&outside, dir.join("flip-link")).unwrap();
    }
    stage.sandbox.write("send/canary", b"sent");
    stage.sandbox.write("send/dir/canary", &vec![9; 200_000]);
    stage.sandbox.write("send/new", b"new");
    let (stop, flips) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut whole, mut refused, mut told) = (0u64, 0u64, 0u64);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for place in ["in", "src"] {
            let dir = stage.sandbox.at("far").join(place);
            flipper(scope, dir.join("flip"), dir.join("flip-link"), &stop, &flips);
        }
        let token = stage.agent.token_file();
        let transfers = count(10, 200);
        for number in 0..transfers {
            let pulled = format!("flipped{number}");
            // The name itself, a tree that holds it, and what lies below it.
            let (from, to) = match number % 3 {
                0 => ("src/flip".to_owned(), "in/flip".to_owned()),
                1 => ("src".to_owned(), "in".to_owned()),
                _ => ("src/flip/dir".to_owned(), format!("in/flip/dir{}", number % 2)),
            };
            let with = ["-r", "--token-file", &token, "--if-exists", "replace"];
            for (from, to) in [(stage.agent.url(&from), pulled.clone()), ("send".to_owned(), stage.agent.url(&to))] {
                let outcome = stage.sandbox.cp(&[&with[..], &[&from, &to]].concat());
                match outcome.code {
                    0 => whole += 1,
                    _ => refused += 1,
                }
                told += u64::from(format!("{}{}", outcome.out, outcome.err).contains("symbolic link"));
            }
            assert!(!holds_secret(&stage.sandbox.at(&pulled)), "it brought what lies outside");
            let _ = std::fs::remove_dir_all(stage.sandbox.at(&pulled));
        }
    });
    println!(
        "COUNT transfers_among_flips={} whole={whole} refused={refused} symlink_named={told} flips={} escapes=0",
        whole + refused,
        flips.into_inner()
    );
    // The honest copy is of a source that holds still.
    for place in ["in", "src"] {
        let dir = stage.sandbox.at("far").join(place);
        for name in ["flip", "flip-link"] {
            let path = dir.join(name);
            match path.symlink_metadata().unwrap().is_symlink() {
                true => std::fs::remove_file(path).unwrap(),
                false => std::fs::remove_dir_all(path).unwrap(),
            }
        }
    }
    stage.unharmed("flips under transfers");
}
