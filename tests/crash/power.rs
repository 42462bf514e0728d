//! Power cuts under real file systems, in the middle of transfers: at random instants and right at fault points. After the
//! remount everything that had been told is there and whole, no final name is empty or wrong, and the same command finishes.

use crate::common::{
    Fault, PATIENCE, Shape, arg, bytes_of, count, cp, differs, hits, names, same_content, start, tree,
};
use crate::images::{Image, Kind};
use crate::support::{MIB, Random, leftovers, long};
use longhaul::sys::power::{LOG_FLUSHED, NOTHING_FLUSHED};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Points around every promise: what is durable before them must be so after them.
const AT: &[&str] = &[
    "part.created",
    "part.space",
    "destination.written",
    "part.sync",
    "commit.chunks-synced",
    "commit.small-synced",
    "commit.data-durable",
    "journal.append",
    "journal.sync",
    "journal.synced",
    "commit.announced",
    "publish.metadata-set",
    "publish.rename",
    "publish.renamed",
    "small.renamed",
    "directory.sync",
    "commit.named",
    "commit.done",
    "destination.told",
    "publish.symlink-made",
    "publish.directory-set",
    "finish.files-done",
    "finish.tree-done",
    "finish.end-recorded",
    "lock.finish",
    "lock.emptied",
    "finish.verdict",
];

/// What a transfer is of.
const SHAPES: &[(&str, Shape)] = &[
    ("mixed", Shape { big: 18 * MIB, odd: 5 * MIB + 4321, small: 60 }),
    ("small files", Shape { big: 0, odd: 0, small: 700 }),
    ("big", Shape { big: 32 * MIB + 17, odd: 0, small: 0 }),
];

/// Every final name below `to` is whole, or, where something stood there before, as it was.
fn nothing_wrong(from: &Path, to: &Path, old: Option<&Path>, what: &str) -> u64 {
    let mut whole = 0;
    for name in names(to) {
        let text = name.to_string_lossy().into_owned();
        if text == ".longhaul" || text.ends_with(".part") {
            continue;
        }
        let (there, want) = (to.join(&name), from.join(&name));
        let meta = there.symlink_metadata().unwrap();
        if meta.is_dir() {
            whole += nothing_wrong(&want, &there, old.map(|old| old.join(&name)).as_deref(), what);
        } else if meta.is_symlink() {
            let read = |path: &Path| std::fs::read_link(path).ok();
            assert_eq!(read(&there), read(&want), "{what}: {}", there.display());
        } else {
            let before = old.map(|old| old.join(&name)).filter(|old| old.is_file());
            let good = same_content(&there, &want) || before.is_some_and(|old| same_content(&there, &old));
            assert!(
                good,
                "{what}: {} has {} bytes and is neither the file nor its old version",
                there.display(),
                meta.len()
            );
            whole += 1;
        }
    }
    whole
}

/// What all cuts of one file system came to.
#[derive(Default)]
struct Sum {
    cuts: u64,
    at_points: u64,
    told: u64,
    whole: u64,
    /// Cuts that came when some, but not all files were there.
    between: u64,
}

struct Bench {
    image: Image,
    /// Sources and logs lie on another file system.
    dir: tempfile::TempDir,
    kind: Kind,
    random: Random,
    sum: Sum,
    number: u64,
    /// Microseconds that a whole transfer of each shape takes, and how often it passes each point.
    usual: Vec<(u64, BTreeMap<String, u64>)>,
}

impl Bench {
    fn new(kind: Kind) -> Option<Self> {
        let image = Image::make(kind, 320 * MIB)?;
        let dir = crate::support::scratch(256 * MIB);
        for (index, (_, shape)) in SHAPES.iter().enumerate() {
            tree(&dir.path().join(format!("from{index}")), *shape, 100 * index as u64);
            // Other content under the same names: what a replacing transfer finds.
            tree(&dir.path().join(format!("old{index}")), *shape, 100 * index as u64 + 50);
        }
        tree(&dir.path().join("before"), Shape { big: 0, odd: MIB + 5, small: 9 }, 900);
        let random = Random::told(kind.word());
        let mut this = Self { image, dir, kind, random, sum: Sum::default(), number: 0, usual: Vec::new() };
        for index in 0..SHAPES.len() {
            let began = std::time::Instant::now();
            let (to, log) = (this.image.at("usual"), this.at(&format!("log{index}")));
            let fault = Fault::none().log(&log);
            cp(this.dir.path(), &["-r", arg(&this.at(&format!("from{index}"))), arg(&to)], &fault).expect(0, "DURABLE");
            this.usual.push((began.elapsed().as_micros() as u64, hits(&log).seen));
            std::fs::remove_dir_all(&to).unwrap();
        }
        Some(this)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// One cut, the reboot, the checks, the resume, the checks.
    fn cut(&mut self, point: Option<&str>) {
        self.number += 1;
        let mut index = (self.random.next() % SHAPES.len() as u64) as usize;
        // At a point that this kind of transfer passes.
        let passes = |index: usize| point.map_or(1, |point| self.usual[index].1.get(point).copied().unwrap_or(0));
        assert!((0..SHAPES.len()).any(|index| passes(index) > 0), "{point:?} is passed by none");
        while passes(index) == 0 {
            index = (index + 1) % SHAPES.len();
        }
        let passes = passes(index);
        let nth = self.random.between(1, passes + 1);
        let (name, _) = SHAPES[index];
        let replace = self.random.next().is_multiple_of(3);
        let flag = if self.random.next().is_multiple_of(4) { LOG_FLUSHED } else { NOTHING_FLUSHED };
        let verify = if self.random.next().is_multiple_of(4) { "disk" } else { "wire" };
        let (from, to) = (self.at(&format!("from{index}")), self.image.at("to"));
        let old = replace.then(|| self.at(&format!("old{index}")));
        let home = self.at("home");
        std::fs::create_dir_all(&home).unwrap();
        // A transfer that ended before: it had been told DURABLE, and nobody synced after it.
        let (before, earlier) = (self.at("before"), self.image.at("earlier"));
        if let Some(old) = &old {
            cp(&home, &["-r", arg(old), arg(&to)], &Fault::none()).expect(0, "DURABLE");
        }
        cp(&home, &["-r", arg(&before), arg(&earlier)], &Fault::none()).expect(0, "DURABLE");
        let log = self.at("log");
        let _ = std::fs::remove_file(&log);
        let mut words = vec!["-r", "--verify", verify, arg(&from), arg(&to)];
        if replace {
            words.extend(["--if-exists", "replace"]);
        }
        let what = format!(
            "{} cut {}: {name}, {} {nth}, flag {flag}, verify {verify}, replace {replace}",
            self.kind.word(),
            self.number,
            point.unwrap_or("at a random instant")
        );
        let ended = match point {
            Some(point) => {
                let fault = Fault {
                    plan: format!("{point}:{nth}:cut{flag}"),
                    log: Some(log.clone()),
                    mount: Some(self.image.mount.clone()),
                };
                cp(&home, &words, &fault)
            }
            None => {
                let run = start(&home, &words, &Fault::none().log(&log));
                std::thread::sleep(Duration::from_micros(self.random.between(0, self.usual[index].0)));
                self.image.cut(flag);
                // The process meets the errors of its disk, or dies with the machine.
                if self.random.next().is_multiple_of(2) { run.kill() } else { run.ends(PATIENCE) }
            }
        };
        let over = ended.code() == 0;
        let seen = hits(&log);
        // Another thread may meet the errors, and end the process, before the one that cut has died.
        let met = !seen.fired.is_empty();
        assert!(point.is_none() || ended.killed() || over || met, "{what}: {}", ended.all());
        if point.is_some() && seen.fired.is_empty() {
            // This shape does not pass the point so often; the machine loses its power after the end.
            assert!(over, "{what}: {}", ended.all());
            self.image.cut(flag);
        } else {
            self.sum.at_points += u64::from(point.is_some());
        }
        if !over && !ended.killed() {
            ended.fails_with_a_sentence();
        }
        self.image.reboot();
        self.sum.cuts += 1;

        assert_eq!(differs(&before, &earlier), None, "{what}: an earlier transfer was told durable");
        if over {
            assert_eq!(differs(&from, &to), None, "{what}: it was told durable");
        }
        if to.exists() {
            let whole = nothing_wrong(&from, &to, old.as_deref(), &what);
            self.sum.whole += whole;
            self.sum.between += u64::from(!over && whole > 0);
        }
        for told in &seen.told {
            let path = told.strip_prefix(self.image.mount.to_str().unwrap().trim_start_matches('/')).unwrap_or(told);
            let path = path.trim_start_matches('/').trim_start_matches("to/");
            let (there, want) = (to.join(path), from.join(path));
            assert!(want.is_file(), "{what}: {told} was told, and is no file of the source");
            assert!(there.is_file() && same_content(&there, &want), "{what}: {told} was told durable");
        }
        self.sum.told += seen.told.len() as u64;

        cp(&home, &words, &Fault::none()).expect(0, if verify == "disk" { "VERIFIED" } else { "DURABLE" });
        assert_eq!(differs(&from, &to), None, "{what}: after the resume");
        assert_eq!(leftovers(&to), Vec::<PathBuf>::new(), "{what}");
        for dir in [&to, &earlier] {
            std::fs::remove_dir_all(dir).unwrap();
        }
    }
}

fn cuts(kind: Kind) {
    let Some(mut bench) = Bench::new(kind) else { return };
    let (random, at_points) = if long() { (180, 120) } else { (6, 8) };
    // A different part of the points each time, so that every run of CI adds something.
    let first = bench.random.between(0, AT.len() as u64) as usize;
    for n in 0..at_points {
        bench.cut(Some(AT[(first + n) % AT.len()]));
    }
    for _ in 0..random {
        bench.cut(None);
    }
    let Sum { cuts, at_points, told, whole, between } = bench.sum;
    count(
        &format!("power-cuts-{}", kind.word()),
        &[
            ("cuts", cuts),
            ("at-points", at_points),
            ("between", between),
            ("files-told", told),
            ("files-checked", whole),
            ("lost", 0),
            ("wrong", 0),
        ],
    );
    // A dozen cuts may all come before the first file.
    assert!(
        !long() || (told > 0 && whole > 0 && between > 0),
        "{told} told, {whole} stood after a cut, {between} between"
    );
    assert!(bytes_of(&bench.at("from0")) > 0);
}

#[test]
fn ext4_loses_its_power() {
    cuts(Kind::Ext4);
}

#[test]
fn xfs_loses_its_power() {
    cuts(Kind::Xfs);
}

/// A process that lives on when its file system is gone: no sync that comes too late is taken for one. (XFS answers the sync of
/// a directory with success then, as its change is no longer waited for.)
#[test]
fn a_medium_that_goes_away_at_the_very_end_is_not_called_durable() {
    for kind in [Kind::Ext4, Kind::Xfs] {
        let Some(mut bench) = Bench::new(kind) else { return };
        let point = "publish.directory-set";
        let passes = bench.usual[0].1[point];
        let (home, from, to) = (bench.at("home"), bench.at("from0"), bench.image.at("to"));
        std::fs::create_dir_all(&home).unwrap();
        let words = ["-r", "--verify", "wire", arg(&from), arg(&to)];
        let (mut refused, mut fired) = (0, 0);
        for nth in passes.saturating_sub(3).max(1)..=passes {
            let what = format!("{}: {point} {nth} of {passes}", kind.word());
            let log = bench.at("log");
            let _ = std::fs::remove_file(&log);
            let mount = Some(bench.image.mount.clone());
            let ended =
                cp(&home, &words, &Fault { plan: format!("{point}:{nth}:off2"), log: Some(log.clone()), mount });
            fired += hits(&log).fired.len();
            bench.image.reboot();
            if ended.code() == 0 {
                assert_eq!(differs(&from, &to), None, "{what}: it was told durable");
            } else {
                refused += 1;
                ended.fails_with_a_sentence();
                cp(&home, &words, &Fault::none()).expect(0, "DURABLE");
                assert_eq!(differs(&from, &to), None, "{what}: after the resume");
            }
            std::fs::remove_dir_all(&to).unwrap();
        }
        assert!(refused > 0 && fired > 1, "{}: {refused} refused, {fired} fired", kind.word());
    }
}

/// The cut itself: what was not synced is gone, so that the tests above test something.
#[test]
fn a_cut_loses_what_was_not_synced() {
    for kind in [Kind::Ext4, Kind::Xfs] {
        let Some(mut image) = Image::make(kind, 64 * MIB) else { return };
        let (synced, loose) = (image.at("synced"), image.at("loose"));
        std::fs::write(&synced, vec![7; 100_000]).unwrap();
        std::fs::File::open(&synced).unwrap().sync_all().unwrap();
        std::fs::File::open(&image.mount).unwrap().sync_all().unwrap();
        std::fs::write(&loose, vec![8; 100_000]).unwrap();
        image.cut(NOTHING_FLUSHED);
        assert!(std::fs::write(image.at("later"), b"x").is_err());
        image.reboot();
        assert_eq!(std::fs::read(&synced).unwrap(), vec![7; 100_000]);
        let left = std::fs::read(&loose).map_or(0, |bytes| bytes.iter().filter(|b| **b == 8).count());
        assert!(left < 100_000, "{}: unsynced bytes survived the cut", kind.word());
    }
}
