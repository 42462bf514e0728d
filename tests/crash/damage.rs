//! Bytes that change in memory, at every station between the source's read and the destination's medium, and chunks that
//! change places: refused and fetched again, or found by the read-back; and what cannot be found, said.

use crate::common::{Ended, Fault, arg, count, cp, differs};
use crate::support::{CHUNK, MIB, data_file, long, scratch};
use std::path::PathBuf;

const BIG: u64 = 6 * CHUNK + 4321;

struct Scene {
    dir: tempfile::TempDir,
    from: PathBuf,
    to: PathBuf,
}

impl Scene {
    /// One big file, or many small ones.
    fn new(small: bool) -> Self {
        let dir = scratch(128 * MIB);
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        if small {
            (0..40).for_each(|n| data_file(&from.join(format!("{n}")), 3000 + 500 * n, n));
        } else {
            data_file(&from.join("file"), BIG, 3);
        }
        Self { dir, from, to }
    }

    fn cp(&self, plan: &str, extra: &[&str]) -> Ended {
        let mut words = vec!["-r", "--streams", "1", arg(&self.from), arg(&self.to)];
        words.extend(extra);
        cp(self.dir.path(), &words, &Fault::plan(plan))
    }

    fn equal(&self) -> bool {
        differs(&self.from, &self.to).is_none()
    }
}

/// Refused at the destination, only that chunk fetched again, the verdict right.
fn refused(small: bool, plan: &str, chunks: u64, extra: &[&str]) {
    let scene = Scene::new(small);
    let ended = scene.cp(plan, extra).expect(0, "DURABLE");
    assert_eq!(ended.number("failed_chunks"), chunks, "{}", ended.all());
    if !small {
        let again = ended.number("sent_bytes") - BIG;
        assert!((1..=chunks * CHUNK).contains(&again), "{again} bytes again: {}", ended.all());
    }
    assert!(scene.equal(), "{plan}");
}

/// Caught by the read-back: VERIFIED only with the right bytes.
fn read_back(small: bool, plan: &str) {
    let scene = Scene::new(small);
    let ended = scene.cp(plan, &["--verify", "disk"]).expect(0, "VERIFIED");
    assert!(scene.equal(), "{plan}: VERIFIED with other bytes: {}", ended.all());
    if !small {
        ended.says("the medium gave back other bytes than were written; they were fetched again");
    }
}

#[test]
fn a_flip_in_the_senders_memory_after_the_digest_is_refused() {
    let mut flips = 0;
    let blocks = if long() { (1..=96).collect::<Vec<u64>>() } else { vec![1, 16, 17, 40, 97] };
    for block in blocks {
        let encrypt = if block % 2 == 0 { "on" } else { "off" };
        refused(false, &format!("source.digested:{block}:flip"), 1, &["--encrypt", encrypt]);
        flips += 1;
    }
    refused(true, "source.pack-digested:7:flip", 1, &[]);
    // The same in several chunks at once, and on the wire behind the seal.
    refused(false, "source.digested:3:flip,source.digested:20:flip,source.digested:50:flip", 3, &[]);
    refused(false, "link.sealed:9:flip", 1, &["--encrypt", "on"]);
    refused(false, "link.sealed:9:flip", 1, &["--encrypt", "off"]);
    count("flips-after-the-digest", &[("flips", flips + 6), ("undetected", 0)]);
}

#[test]
fn two_chunks_that_change_places_are_refused() {
    // The reads of chunks 0 and 1 are exchanged, and their digests with them: right bytes, right digests, wrong places.
    let plan = "source.read-place:1-32:move,source.digest-place:1-2:move";
    refused(false, plan, 2, &["--encrypt", "on"]);
    refused(false, plan, 2, &["--encrypt", "off"]);
    count("swapped-chunks", &[("swaps", 2), ("undetected", 0)]);
}

#[test]
fn a_flip_between_check_and_write_is_found_by_the_read_back() {
    let blocks = if long() { (1..=96).step_by(3).collect::<Vec<u64>>() } else { vec![2, 33, 97] };
    let mut flips = 0;
    for block in blocks {
        read_back(false, &format!("destination.checked:{block}:flip"));
        flips += 1;
    }
    read_back(true, "destination.pack-content:5:flip");
    // A write that lands in the place of another chunk: the right bytes are missing in one and wrong in the other.
    read_back(false, "destination.place:3:move");
    count("flips-before-the-write", &[("flips", flips + 2), ("undetected", 0)]);
}

/// Memory that stays bad: no verdict, and the file is not there.
#[test]
fn a_receiver_that_damages_everything_is_not_verified() {
    for small in [false, true] {
        let scene = Scene::new(small);
        let point = if small { "destination.pack-content" } else { "destination.checked" };
        let ended = scene.cp(&format!("{point}:*:flip"), &["--verify", "disk"]);
        assert_eq!(ended.report["verdict"], "FAILED", "{}", ended.all());
        let ended = ended.fails_with_a_sentence().says("the medium gives back other bytes");
        assert!(!scene.to.join("file").exists() && !scene.to.join("0").exists(), "{}", ended.all());
        scene.cp("", &["--verify", "disk"]).expect(0, "VERIFIED");
        assert!(scene.equal());
    }
}

#[test]
fn a_source_that_keeps_damaging_is_given_up() {
    let scene = Scene::new(false);
    let ended = scene.cp("source.digested:*:flip", &[]).fails_with_a_sentence();
    assert!(ended.number("failed_chunks") >= 5, "{}", ended.all());
    ended.says("keeps arriving damaged; check memory and network");
    scene.cp("", &[]).expect(0, "DURABLE");
    assert!(scene.equal());
}

/// SAFETY.md, "Not from before the source read it": what the digest saw is what arrives. And DURABLE does not look at
/// the medium. If one of these is found one day, the text there is to change.
#[test]
fn what_is_not_promised_is_not_found() {
    for (point, small) in [("source.read", false), ("source.pack-read", true), ("destination.checked", false)] {
        let scene = Scene::new(small);
        scene.cp(&format!("{point}:4:flip"), &["--verify", "wire"]).expect(0, "DURABLE");
        assert!(!scene.equal(), "{point}: the flip was not made");
    }
    // A value that is known from elsewhere finds the first.
    let scene = Scene::new(false);
    let (file, one, two) = (scene.from.join("file"), scene.dir.path().join("one"), scene.dir.path().join("two"));
    let whole = cp(scene.dir.path(), &[arg(&file), arg(&one)], &Fault::none());
    let digest = whole.report["digest"].as_str().unwrap_or_else(|| panic!("{}", whole.all())).to_owned();
    let expect = format!("xxh3:{digest}");
    let words = ["--expect", &expect, arg(&file), arg(&two)];
    let ended = cp(scene.dir.path(), &words, &Fault::plan("source.read:4:flip"));
    assert_eq!(ended.code(), 6, "{}", ended.all());
    assert!(!two.exists());
}

/// VERIFIED is about every byte of the transfer, also of those that an earlier run, with the weaker verdict, received.
#[test]
fn a_resume_that_is_to_be_verified_reads_back_what_was_only_durable() {
    use std::os::unix::fs::FileExt;
    let dir = scratch(512 * MIB);
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    // More than a resume digests again in any case.
    data_file(&from.join("file"), 104 * MIB, 5);
    let words = ["-r", "--streams", "1", "--verify", "wire", arg(&from), arg(&to)];
    let ended = cp(dir.path(), &words, &Fault::plan("destination.placed:26:kill"));
    assert!(ended.killed(), "{}", ended.all());
    let part =
        std::fs::read_dir(&to).unwrap().map(|e| e.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == "part"));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(part.unwrap()).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 1000).unwrap();
    drop(file);
    let words = ["-r", "--streams", "1", "--verify", "disk", arg(&from), arg(&to)];
    let ended = cp(dir.path(), &words, &Fault::none()).expect(0, "VERIFIED");
    assert!(ended.number("resumed_bytes") > 64 * MIB, "{}", ended.all());
    assert_eq!(differs(&from, &to), None, "VERIFIED with other bytes");
}

/// And it does not say VERIFIED of files that an earlier run published without looking.
#[test]
fn files_that_were_published_unread_are_not_called_verified() {
    let scene = Scene::new(true);
    let words = |verify| ["-r", "--verify", verify, arg(&scene.from), arg(&scene.to)];
    // All files are there when the process dies.
    let ended = cp(scene.dir.path(), &words("wire"), &Fault::plan("finish.files-done:1:kill"));
    assert!(ended.killed(), "{}", ended.all());
    let ended = cp(scene.dir.path(), &words("disk"), &Fault::none()).expect(0, "DURABLE");
    ended.says("files were published by an earlier run with --verify wire and were not read back");
    assert!(scene.equal());
    // From the beginning with --verify disk, a crash in between changes nothing.
    std::fs::remove_dir_all(&scene.to).unwrap();
    cp(scene.dir.path(), &words("disk"), &Fault::plan("finish.files-done:1:kill"));
    cp(scene.dir.path(), &words("disk"), &Fault::none()).expect(0, "VERIFIED");
}
