//! Bounds that the system sets: sizes of files, open files, a full file system. Orderly sentences, nothing lost.

use crate::common::{Fault, PATIENCE, Shape, arg, count, cp, differs, start_command, tree};
use crate::images::{Image, Kind};
use crate::support::{BINARY, MIB, leftovers, scratch};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SHAPE: Shape = Shape { big: 13 * MIB, odd: 5 * MIB, small: 300 };

/// `cp` under a limit of the shell's `ulimit`.
fn limited(limit: &str, home: &Path, words: &[&str]) -> crate::common::Ended {
    let mut command = Command::new("sh");
    // In blocks of 512 bytes where it is a size: POSIX.
    command
        .arg("-c")
        .arg(format!("ulimit {limit} && exec \"$0\" \"$@\""))
        .arg(BINARY)
        .args(["cp", "--json"])
        .args(words);
    command.env("HOME", home).env("XDG_STATE_HOME", home).stdin(Stdio::null());
    start_command(command, &format!("ulimit {limit}; longhaul cp {}", words.join(" "))).ends(PATIENCE)
}

#[test]
fn a_limit_of_file_sizes_is_said() {
    let dir = scratch(128 * MIB);
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    tree(&from, SHAPE, 41);
    let words = ["-r", arg(&from), arg(&to)];
    // 8 MiB: the odd file fits, the big one does not.
    let ended = limited("-f 16384", dir.path(), &words).fails_with_a_sentence();
    assert!(!to.join("big").exists(), "{}", ended.all());
    crate::errors::whole(&from, &to, "a limit of 8 MiB");
    cp(dir.path(), &words, &Fault::none()).expect(0, "DURABLE");
    assert_eq!(differs(&from, &to), None);
    assert_eq!(leftovers(&to), Vec::<PathBuf>::new());
    count("file-size-limit", &[("lost", 0)]);
}

#[test]
fn few_descriptors_are_enough_or_said() {
    let dir = scratch(128 * MIB);
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    tree(&from, SHAPE, 43);
    let words = ["-r", "--streams", "2", arg(&from), arg(&to)];
    let (mut whole, mut said) = (0, 0);
    // In between it depends on the moment which call is refused; a session that gets no stream ends after 45 s.
    let limits: &[u64] = if crate::support::long() { &[24, 36, 40, 44, 64, 96, 160, 256] } else { &[24, 256, 512] };
    for limit in limits {
        let ended = limited(&format!("-Sn {limit} && ulimit -Hn {limit}"), dir.path(), &words);
        if ended.code() == 0 {
            whole += 1;
            ended.expect(0, "DURABLE");
        } else {
            said += 1;
            ended.fails_with_a_sentence();
            if to.exists() {
                crate::errors::whole(&from, &to, &format!("{limit} descriptors"));
            }
            cp(dir.path(), &words, &Fault::none()).expect(0, "DURABLE");
        }
        assert_eq!(differs(&from, &to), None, "{limit} descriptors");
        assert_eq!(leftovers(&to), Vec::<PathBuf>::new());
        std::fs::remove_dir_all(&to).unwrap();
    }
    count("descriptor-limits", &[("finished", whole), ("said", said), ("lost", 0)]);
    assert!(whole > 0 && said > 0, "{whole} finished, {said} did not");
}

/// A real file system that fills up: said with what to do, nothing lost, and with room the same command finishes.
#[test]
fn a_full_file_system_is_said_and_resumed() {
    for kind in [Kind::Ext4, Kind::Xfs] {
        let Some(image) = Image::make(kind, 48 * MIB) else { return };
        let dir = scratch(128 * MIB);
        let (from, to) = (dir.path().join("from"), image.at("to"));
        tree(&from, SHAPE, 47);
        // All but some megabytes are taken.
        let free = || {
            let v = nix::sys::statvfs::statvfs(&image.mount).unwrap();
            v.blocks_available() * v.fragment_size()
        };
        let ballast = image.at("ballast");
        let file = std::fs::File::create(&ballast).unwrap();
        let take = free().saturating_sub(9 * MIB);
        nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, take as i64).unwrap();
        let words = ["-r", arg(&from), arg(&to)];
        let ended = cp(dir.path(), &words, &Fault::none()).fails_with_a_sentence().says("full");
        assert_eq!(ended.code(), 5, "{}", ended.all());
        if to.exists() {
            crate::errors::whole(&from, &to, kind.word());
        }
        drop(file);
        std::fs::remove_file(&ballast).unwrap();
        cp(dir.path(), &words, &Fault::none()).expect(0, "DURABLE");
        assert_eq!(differs(&from, &to), None, "{}", kind.word());
        assert_eq!(leftovers(&to), Vec::<PathBuf>::new());
    }
    count("full-file-systems", &[("runs", 2), ("lost", 0)]);
}
