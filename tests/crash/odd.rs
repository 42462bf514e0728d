//! Storage as a FUSE file system plays it: errors at the n-th call, syncs that lose data, short calls, a medium that rots,
//! stalls, and file systems that refuse what others can. Every transfer finishes, or ends with a sentence.

use crate::common::{Ended, Fault, PATIENCE, Shape, arg, count, cp, differs, start, tree};
use crate::errors::whole;
use crate::memfs::Memory;
use crate::memfs::store::{About, Call, Effect};
use crate::support::{CHUNK, MIB, Random, leftovers, long, scratch};
use fuser::Errno;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const SHAPE: Shape = Shape { big: 9 * MIB + 77, odd: 4 * MIB, small: 30 };

struct Scene {
    memory: Memory,
    dir: tempfile::TempDir,
    from: PathBuf,
    to: PathBuf,
}

impl Scene {
    fn new() -> Option<Self> {
        let memory = Memory::mount()?;
        let dir = scratch(64 * MIB);
        let from = dir.path().join("from");
        tree(&from, SHAPE, 31);
        let to = memory.at("to");
        Some(Self { memory, dir, from, to })
    }

    fn cp(&self, extra: &[&str]) -> Ended {
        let mut words = vec!["-r", "--streams", "2", arg(&self.from), arg(&self.to)];
        words.extend(extra);
        cp(self.dir.path(), &words, &Fault::none())
    }

    #[track_caller]
    fn equal(&self, what: &str) {
        assert_eq!(differs(&self.from, &self.to), None, "{what}");
    }

    fn clean(&self) {
        let _ = std::fs::remove_dir_all(&self.to);
    }
}

fn verdict(extra: &[&str]) -> &'static str {
    if extra.contains(&"disk") { "VERIFIED" } else { "DURABLE" }
}

#[test]
fn io_faults_of_the_medium_heal_or_end_in_order() {
    let Some(mut scene) = Scene::new() else { return };
    scene.cp(&[]).expect(0, "DURABLE");
    let usual = scene.memory.store().calls.clone();
    scene.clean();
    let kinds: &[(Call, Effect)] = &[
        (Call::Write, Effect::Fail(Errno::EIO)),
        (Call::Write, Effect::Fail(Errno::ENOSPC)),
        (Call::Write, Effect::Fail(Errno::EDQUOT)),
        (Call::Write, Effect::Short),
        (Call::Fsync, Effect::Fail(Errno::EIO)),
        (Call::Fsync, Effect::Lose(Errno::EIO)),
        (Call::SyncDir, Effect::Fail(Errno::EIO)),
        (Call::Create, Effect::Fail(Errno::EIO)),
        (Call::Rename, Effect::Fail(Errno::EIO)),
        (Call::Fallocate, Effect::Fail(Errno::EIO)),
        (Call::Fallocate, Effect::Fail(Errno::ENOSPC)),
    ];
    let mut random = Random::told("medium");
    let wanted: u64 = if long() { 200 } else { 22 };
    let (mut faults, mut healed) = (0, 0);
    for n in 0..wanted {
        let (call, effect) = kinds[n as usize % kinds.len()];
        let passes = usual.get(&call).copied().unwrap_or(1);
        let nth = random.between(1, passes + 1);
        let extra: &[&str] = if random.next().is_multiple_of(3) { &["--verify", "disk"] } else { &[] };
        let what = format!("{call:?} {effect:?} at {nth} of {passes}, {extra:?}");
        scene.memory.store().rule(call, About::All, (nth, nth), effect);
        let ended = scene.cp(extra);
        faults += scene.memory.store().heal();
        if scene.to.exists() {
            whole(&scene.from, &scene.to, &what);
        }
        // What was told durable is on the medium: its power goes, and the kernel's cache with it.
        if ended.code() == 0 {
            healed += 1;
            ended.expect(0, verdict(extra));
            scene.memory.cut();
            scene.equal(&what);
        } else {
            ended.fails_with_a_sentence();
            if random.next().is_multiple_of(2) {
                scene.memory.cut();
            }
            scene.cp(extra).expect(0, verdict(extra));
            scene.memory.cut();
            scene.equal(&what);
        }
        assert_eq!(leftovers(&scene.to), Vec::<PathBuf>::new(), "{what}");
        scene.clean();
    }
    count("io-faults-of-the-medium", &[("faults", faults), ("healed", healed), ("lost", 0), ("wrong", 0)]);
    assert!(faults * 10 >= wanted * 6, "{faults} of {wanted} came");
}

/// The source's medium fails: that file is left out, and comes with the next run.
#[test]
fn a_source_whose_medium_fails_is_named() {
    let Some(memory) = Memory::mount() else { return };
    let dir = scratch(64 * MIB);
    let (from, to) = (memory.at("from"), dir.path().join("to"));
    tree(&from, SHAPE, 33);
    let mut faults = 0;
    for (nth, effect) in
        [(2, Effect::Fail(Errno::EIO)), (5, Effect::Fail(Errno::EIO)), (3, Effect::Short), (9, Effect::Short)]
    {
        memory.store().rule(Call::Read, About::All, (nth, nth), effect);
        // Not from the kernel's cache.
        let _ = std::fs::write("/proc/sys/vm/drop_caches", "1");
        let words = ["-r", "--io", "direct", arg(&from), arg(&to)];
        let ended = cp(dir.path(), &words, &Fault::none());
        faults += memory.store().heal();
        if to.exists() {
            whole(&from, &to, &format!("read {effect:?} at {nth}"));
        }
        if ended.code() != 0 {
            ended.fails_with_a_sentence().says("at the source");
        }
        cp(dir.path(), &words, &Fault::none()).expect(0, "DURABLE");
        assert_eq!(differs(&from, &to), None);
        std::fs::remove_dir_all(&to).unwrap();
    }
    count("io-faults-of-the-source", &[("faults", faults), ("wrong", 0)]);
    assert!(faults >= 3, "{faults}");
}

/// After the sync of its data the medium changes a byte: `--verify disk` reads past the kernel's cache and sees it. What changes
/// after the read-back, as at the sync of the metadata, is not promised to be seen.
#[test]
fn a_medium_that_rots_after_the_sync_is_found() {
    let Some(mut scene) = Scene::new() else { return };
    let mut rots = 0;
    for nth in if long() { 1..=12 } else { 1..=3 } {
        scene.memory.store().rule(Call::DataSync, About::Parts, (nth, nth), Effect::Rot);
        let ended = scene.cp(&["--verify", "disk"]);
        rots += scene.memory.store().heal();
        if ended.code() != 0 {
            ended.fails_with_a_sentence();
            scene.cp(&["--verify", "disk"]).expect(0, "VERIFIED");
        }
        scene.memory.remount();
        scene.equal(&format!("rot at {nth}"));
        scene.clean();
    }
    // A medium that always does it gets no verdict, and no final name.
    scene.memory.store().rule(Call::DataSync, About::Parts, (1, u64::MAX), Effect::Rot);
    let ended = scene.cp(&["--verify", "disk"]).fails_with_a_sentence();
    rots += scene.memory.store().heal();
    assert!(!scene.to.join("big").exists() && !scene.to.join("sub/odd").exists(), "{}", ended.all());
    count("rot-after-the-sync", &[("rots", rots), ("undetected", 0)]);
    assert!(rots > 3, "{rots}");
}

/// LazyFS in short: what DURABLE says is on the medium, small files too, before the cut.
#[test]
fn what_is_told_durable_was_synced_to_the_medium() {
    let Some(mut scene) = Scene::new() else { return };
    scene.cp(&[]).expect(0, "DURABLE");
    scene.memory.cut();
    scene.equal("after the cut");
    // The cut itself: unsynced bytes are lost.
    std::fs::write(scene.memory.at("loose"), b"not synced").unwrap();
    scene.memory.cut();
    assert_ne!(std::fs::read(scene.memory.at("loose")).unwrap(), b"not synced");
}

#[test]
fn a_full_medium_is_said_and_what_is_durable_is_kept() {
    let Some(scene) = Scene::new() else { return };
    for capacity in [200_000, 5 * MIB, 11 * MIB] {
        scene.memory.store().capacity = capacity;
        let ended = scene.cp(&[]).fails_with_a_sentence().says("full");
        assert_eq!(ended.code(), 5, "{}", ended.all());
        scene.memory.store().heal();
        scene.cp(&[]).expect(0, "DURABLE");
        scene.equal("once there is room");
        scene.clean();
    }
}

/// Roots that refuse what others can, each by itself and all together.
#[test]
fn file_systems_that_refuse_things_are_coped_with() {
    let refusals: &[(&str, &[Call], Errno, Option<&str>)] = &[
        ("flock", &[Call::Flock], Errno::EOPNOTSUPP, Some("flock is refused here")),
        ("fallocate", &[Call::Fallocate], Errno::EOPNOTSUPP, Some("space was not allocated beforehand")),
        ("O_DIRECT", &[Call::OpenDirect], Errno::EINVAL, None),
        ("xattr", &[Call::Xattr], Errno::EOPNOTSUPP, None),
        ("RENAME_NOREPLACE", &[], Errno::EINVAL, Some("RENAME_NOREPLACE is refused here")),
        (
            "all",
            &[Call::Flock, Call::Fallocate, Call::OpenDirect, Call::Xattr],
            Errno::EOPNOTSUPP,
            Some("flock is refused here"),
        ),
    ];
    let mut finished = 0;
    for (name, calls, errno, note) in refusals {
        let Some(mut scene) = Scene::new() else { return };
        if calls.contains(&Call::Flock) {
            scene.memory.store().flocks = true;
            scene.memory.remount();
        }
        let refuse = |scene: &Scene| {
            let mut store = scene.memory.store();
            for call in *calls {
                let errno = if *call == Call::OpenDirect { Errno::EINVAL } else { *errno };
                store.refuse(*call, errno);
            }
            if calls.is_empty() || *name == "all" {
                store.rule(Call::Rename, About::All, (1, u64::MAX), Effect::FailFlags(Errno::EINVAL));
            }
        };
        refuse(&scene);
        for extra in [&["--verify", "wire"][..], &["--verify", "disk"]] {
            let ended = scene.cp(extra).expect(0, verdict(extra));
            let direct =
                if *name == "O_DIRECT" && extra.contains(&"disk") { Some("O_DIRECT does not work here") } else { None };
            for word in note.iter().chain(direct.iter()) {
                assert!(ended.all().contains(*word), "{name}: `{word}` is not said: {}", ended.all());
            }
            scene.equal(name);
            assert_eq!(leftovers(&scene.to), Vec::<PathBuf>::new(), "{name}");
            scene.clean();
            finished += 1;
        }
        // And a crash in between, and a repeated run over what is there.
        let words = ["-r", arg(&scene.from), arg(&scene.to)];
        cp(scene.dir.path(), &words, &Fault::plan("commit.announced:1:kill"));
        scene.cp(&[]).expect(0, "DURABLE");
        scene.equal(name);
        scene.cp(&[]).expect(0, "DURABLE");
        assert!(scene.memory.store().heal() > 0, "{name} was never refused");
    }
    count("odd-file-systems", &[("finished", finished), ("wrong", 0)]);
}

/// What cannot work ends with a sentence that names the file system, and leaves what can be resumed.
#[test]
fn file_systems_on_which_nothing_can_be_published_are_named() {
    let Some(scene) = Scene::new() else { return };
    for errno in [Errno::EXDEV, Errno::EIO] {
        scene.memory.store().refuse(Call::Rename, errno);
        let ended = scene.cp(&[]).fails_with_a_sentence().says("fuse");
        assert!(!scene.to.join("big").exists(), "{}", ended.all());
        scene.memory.store().heal();
        scene.cp(&[]).expect(0, "DURABLE");
        scene.equal("once it can rename");
        scene.clean();
    }
    for call in [Call::Write, Call::Fsync, Call::SyncDir] {
        scene.memory.store().refuse(call, Errno::EIO);
        let ended = scene.cp(&[]).fails_with_a_sentence().says("fuse");
        scene.memory.store().heal();
        drop(ended);
        scene.cp(&[]).expect(0, "DURABLE");
        scene.equal("once it works");
        scene.clean();
    }
}

/// The device gets another number while a transfer rests: identity within one run only.
#[test]
fn a_remount_between_two_runs_changes_nothing() {
    use std::os::unix::fs::MetadataExt;
    let Some(mut scene) = Scene::new() else { return };
    for point in
        ["destination.placed:2:kill", "commit.announced:1:kill", "small.renamed:1:kill", "publish.renamed:1:kill"]
    {
        let before = std::fs::metadata(&scene.memory.mount).unwrap().dev();
        let words = ["-r", "--streams", "1", arg(&scene.from), arg(&scene.to)];
        let first = cp(scene.dir.path(), &words, &Fault::plan(point));
        assert!(first.killed(), "{}", first.all());
        scene.memory.remount_elsewhere();
        let after = std::fs::metadata(&scene.memory.mount).unwrap().dev();
        assert_ne!(before, after, "the device kept its number");
        cp(scene.dir.path(), &words, &Fault::none()).expect(0, "DURABLE");
        scene.equal(point);
        scene.clean();
    }
}

#[test]
fn slow_syncs_are_waited_for() {
    let Some(scene) = Scene::new() else { return };
    scene.memory.store().rule(Call::Fsync, About::All, (1, u64::MAX), Effect::Late(Duration::from_secs(1)));
    scene.cp(&["--verify", "disk"]).expect(0, "VERIFIED");
    assert!(scene.memory.store().heal() > 2, "it was not slow");
    scene.equal("slow syncs");
}

/// A destination whose disk stands still is waited for: no stream is cut for it, nothing is sent twice.
#[test]
fn a_stalled_destination_is_survived() {
    let Some(scene) = Scene::new() else { return };
    let stall = Duration::from_secs(if long() { 60 } else { 10 });
    for (call, nth) in [(Call::Write, 7), (Call::Fsync, 2)] {
        scene.memory.store().rule(call, About::Parts, (nth, nth), Effect::Late(stall));
        let words = ["-r", "--streams", "2", arg(&scene.from), arg(&scene.to)];
        let began = Instant::now();
        let ended = start(scene.dir.path(), &words, &Fault::none()).ends(PATIENCE + 2 * stall).expect(0, "DURABLE");
        assert!(began.elapsed() >= stall, "it was not stalled");
        assert_eq!(scene.memory.store().heal(), 1);
        // Idle streams may take over what a stalled one holds; none is cut, unless it is silent for longer than any may be.
        assert!(long() || ended.number("reconnects") == 0, "{}", ended.all());
        assert!(ended.number("resent_bytes") <= 4 * CHUNK, "{}", ended.all());
        scene.equal("after the stall");
        scene.clean();
    }
    count("stalled-destination", &[("seconds", stall.as_secs()), ("stalls", 2)]);
}
