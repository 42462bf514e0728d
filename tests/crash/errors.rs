//! Calls that fail: once or always, at every kind of call. The transfer heals or ends with a sentence; nothing wrong ever
//! stands under a final name; the same command, repeated, finishes.

use crate::common::{Ended, Fault, Shape, arg, count, cp, differs, hits, names, same_content, tree};
use crate::support::{MIB, Random, leftovers, long, scratch};
use std::path::{Path, PathBuf};

const SHAPE: Shape = Shape { big: 13 * MIB + 77, odd: 4 * MIB, small: 30 };

struct Scene {
    dir: tempfile::TempDir,
    from: PathBuf,
    to: PathBuf,
    log: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let dir = scratch(128 * MIB);
        let (from, to, log) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("log"));
        tree(&from, SHAPE, 21);
        Self { dir, from, to, log }
    }

    fn cp(&self, plan: &str, extra: &[&str]) -> Ended {
        let mut words = vec!["-r", "--streams", "2", arg(&self.from), arg(&self.to)];
        words.extend(extra);
        let _ = std::fs::remove_file(&self.log);
        cp(self.dir.path(), &words, &Fault::plan(plan).log(&self.log))
    }

    /// With an error: it heals, or ends in order; then it finishes. Whether it healed; `None` if the point was not passed
    /// so often this time.
    fn run(&self, plan: &str, extra: &[&str]) -> Option<bool> {
        let ended = self.cp(plan, extra);
        if hits(&self.log).fired.is_empty() {
            ended.expect(0, if extra.contains(&"disk") { "VERIFIED" } else { "DURABLE" });
            std::fs::remove_dir_all(&self.to).unwrap();
            return None;
        }
        let healed = ended.code() == 0;
        if self.to.exists() {
            whole(&self.from, &self.to, plan);
        }
        if healed {
            assert_eq!(differs(&self.from, &self.to), None, "{plan}");
        } else {
            ended.fails_with_a_sentence();
            self.cp("", extra).expect(0, if extra.contains(&"disk") { "VERIFIED" } else { "DURABLE" });
            assert_eq!(differs(&self.from, &self.to), None, "{plan}: after the second run");
        }
        assert_eq!(leftovers(&self.to), Vec::<PathBuf>::new(), "{plan}");
        std::fs::remove_dir_all(&self.to).unwrap();
        Some(healed)
    }
}

/// Every final name holds the source's bytes.
pub fn whole(from: &Path, to: &Path, what: &str) {
    for name in names(to) {
        let text = name.to_string_lossy().into_owned();
        let (there, want) = (to.join(&name), from.join(&name));
        let kind = there.symlink_metadata().unwrap().file_type();
        if text == ".longhaul" || text.ends_with(".part") || kind.is_symlink() {
            continue;
        }
        if kind.is_dir() {
            whole(&want, &there, what);
        } else {
            assert!(same_content(&there, &want), "{what}: {} is wrong", there.display());
        }
    }
}

#[test]
fn a_call_that_fails_once_heals_or_ends_in_order() {
    let scene = Scene::new();
    // Point, error, and whether one of them is healed without a second run.
    let cases: &[(&str, &str, Option<bool>)] = &[
        ("part.sync", "EIO", Some(true)),
        ("small.syncfs", "EIO", None),
        ("small.fsync", "EIO", None),
        ("io.write", "EIO", Some(false)),
        ("io.write", "ENOSPC", Some(false)),
        ("io.write", "EDQUOT", Some(false)),
        ("io.write", "EINTR", Some(true)),
        ("io.read", "EIO", Some(false)),
        ("io.read", "EINTR", Some(true)),
        ("part.space", "ENOSPC", Some(false)),
        ("part.space", "EIO", Some(false)),
        ("small.write", "EIO", None),
        ("small.write", "ENOSPC", None),
        ("small.write", "EINTR", Some(true)),
        ("publish.rename", "EIO", None),
        ("publish.rename", "EROFS", None),
        ("directory.sync", "EIO", None),
        ("journal.append", "EIO", Some(false)),
        ("journal.append", "ENOSPC", Some(false)),
        ("journal.sync", "EIO", Some(false)),
    ];
    let usual = {
        scene.cp("", &[]).expect(0, "DURABLE");
        std::fs::remove_dir_all(&scene.to).unwrap();
        hits(&scene.log)
    };
    let mut random = Random::told("errors");
    let (mut faults, mut healed) = (0, 0);
    for round in 0..if long() { 10 } else { 1 } {
        for (point, errno, heals) in cases {
            let passes = usual.of(point);
            if passes == 0 {
                // One of the two ways to sync small files is not taken here.
                assert!(point.starts_with("small."), "{point} is not passed");
                continue;
            }
            let nth = if round == 0 { 1 + passes / 2 } else { random.between(1, passes + 1) };
            // The last hits of a point that several threads pass may come in another number.
            let plan = format!("{point}:{}:fail={errno}", nth.min(passes.div_ceil(2)));
            let extra: &[&str] = if round % 3 == 1 { &["--verify", "disk"] } else { &[] };
            // Commits come by the clock as well: where there were fewer of them, the first hit does.
            let did = scene.run(&plan, extra).or_else(|| scene.run(&format!("{point}:1:fail={errno}"), extra));
            let did = did.unwrap_or_else(|| panic!("{point} is not passed"));
            faults += 1;
            healed += u64::from(did);
            if round == 0
                && let Some(heals) = heals
            {
                assert_eq!(did, *heals, "{plan}");
            }
        }
    }
    count("io-errors-in-the-engine", &[("faults", faults), ("healed", healed), ("lost", 0), ("wrong", 0)]);
}

/// One error at the sync: the file counts for nothing any more, and is fetched again from its beginning.
#[test]
fn a_failed_sync_poisons_its_file_and_a_second_one_is_the_end() {
    let scene = Scene::new();
    let ended = scene.cp("part.sync:1:fail=EIO", &[]).expect(0, "DURABLE").says("a sync failed");
    assert!(ended.number("sent_bytes") >= SHAPE.big + SHAPE.odd + 4 * MIB - 77, "{}", ended.all());
    assert_eq!(differs(&scene.from, &scene.to), None);
    std::fs::remove_dir_all(&scene.to).unwrap();
    let ended = scene.cp("part.sync:*:fail=EIO", &[]).fails_with_a_sentence().says("check the storage");
    assert_eq!(ended.report["verdict"], "PARTIAL", "the small files are there: {}", ended.all());
    assert!(!scene.to.join("big").exists() && !scene.to.join("sub/odd").exists());
    scene.cp("", &[]).expect(0, "DURABLE");
    assert_eq!(differs(&scene.from, &scene.to), None);
}

/// A journal that could not be written is not written to any more: what came behind the gap would not be read, and the
/// next run would find a journal that is damaged.
#[test]
fn after_a_failed_append_the_journal_stays_readable() {
    let mut scene = Scene::new();
    // Many small files, and time for them to arrive while the append fails: there is more to commit afterwards.
    scene.from = scene.dir.path().join("many");
    tree(&scene.from, Shape { big: 0, odd: 0, small: 1500 }, 23);
    for point in ["journal.append", "journal.sync"] {
        for nth in [2, 4] {
            let ended = scene.cp(&format!("{point}:{nth}:delay=400,{point}:{nth}:fail=EIO"), &[]);
            let ended = ended.fails_with_a_sentence();
            let ended = ended.says("the journal cannot be written");
            assert_eq!(ended.code(), 5, "{}", ended.all());
            scene.cp("", &[]).expect(0, "DURABLE");
            assert_eq!(differs(&scene.from, &scene.to), None, "{point} {nth}");
            std::fs::remove_dir_all(&scene.to).unwrap();
        }
    }
}

#[test]
fn a_full_destination_is_said_in_a_sentence() {
    let scene = Scene::new();
    for point in ["io.write", "part.space", "small.write"] {
        let ended = scene.cp(&format!("{point}:1+:fail=ENOSPC"), &[]).fails_with_a_sentence().says("full");
        assert_eq!(ended.code(), 5, "{}", ended.all());
        scene.cp("", &[]).expect(0, "DURABLE");
        assert_eq!(differs(&scene.from, &scene.to), None, "{point}");
        std::fs::remove_dir_all(&scene.to).unwrap();
    }
}

#[test]
fn a_source_that_cannot_be_read_loses_only_that_file() {
    let scene = Scene::new();
    let ended = scene.cp("io.read:3:fail=EIO", &[]).fails_with_a_sentence();
    assert_eq!(ended.report["verdict"], "PARTIAL", "{}", ended.all());
    let ended = ended.says("its storage reports an error");
    assert_eq!(ended.number("failed_files"), 1, "{}", ended.all());
    whole(&scene.from, &scene.to, "io.read");
    scene.cp("", &[]).expect(0, "DURABLE");
    assert_eq!(differs(&scene.from, &scene.to), None);
}

#[test]
fn short_reads_and_writes_are_continued() {
    let scene = Scene::new();
    let points = ["io.read-length", "io.write-length", "small.write-length"];
    for plan in points.iter().map(|point| format!("{point}:*:short")) {
        for io in ["buffered", "auto"] {
            scene.cp(&plan, &["--io", io]).expect(0, "DURABLE");
            assert_eq!(differs(&scene.from, &scene.to), None, "{plan}");
            std::fs::remove_dir_all(&scene.to).unwrap();
        }
    }
    count("short-reads-and-writes", &[("runs", 6), ("wrong", 0)]);
}
