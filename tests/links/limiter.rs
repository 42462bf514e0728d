//! What holds a transfer back, made from outside the processes: storage and processors by control groups, buffers by
//! sysctls, the path by the lab. The report has to name it, and nothing tells it but its own counters.

use super::groups::Group;
use super::images::{Image, Kind};
use super::lab::Lab;
use super::site::{Site, lab};
use crate::support::{Copy, MIB, data_file, scratch};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LINK: [&str; 6] = ["--rtt", "20ms", "--rate", "200mbit", "--tcp-buf", "64m"];
/// The part of its time at least, which is a reason for the tuner too.
const NAMED: f64 = 0.4;
const PATIENCE: Duration = Duration::from_secs(60);

/// The report's word, and its share, said.
fn held_back(situation: &str, report: &Value) -> (String, f64) {
    let word = report["limiter"].as_str().unwrap().to_owned();
    eprintln!(
        "{situation}: {:.1} s, {:.0} Mbit/s, {}",
        report["duration_ns"].as_f64().unwrap() / 1e9,
        report["bits_per_second"].as_f64().unwrap() / 1e6,
        report["limiter_shares"]
    );
    let share = report["limiter_shares"][&word].as_f64().unwrap();
    (word, share)
}

#[track_caller]
fn is_named(situation: &str, report: &Value, limiter: &str) {
    let (word, share) = held_back(situation, report);
    assert!(word == limiter && share >= NAMED, "{situation}: {limiter} held it back, not {word} ({share}): {report:#}");
}

/// Sets a sysctl of one side alone.
fn sysctl(lab: &Lab, side: char, setting: &str) {
    let space = lab.prefix(side);
    let status = Command::new(space[0]).args(&space[1..]).args(["sysctl", "-qw", setting]).status().unwrap();
    assert!(status.success(), "{setting}");
}

/// Needs root, as all of them: network namespaces, control groups, mounts; skipped without.
#[test]
fn the_path() {
    let Some(site) = Site::up('n', &LINK, 32 * MIB) else { return };
    is_named("a full path", &site.pull(&[]), "network");
    site.lab.set(&["--loss", "0.3%"]);
    let report = site.pull(&["--tuner", "off"]);
    is_named("losses", &report, "network");
    assert!(report["explanation"].to_string().contains("the path loses"), "{report:#}");
}

#[test]
fn a_rate_that_was_set() {
    let Some(site) = Site::up('c', &LINK, 16 * MIB) else { return };
    is_named("a cap", &site.pull(&["--rate", "60Mbit"]), "configured cap");
}

#[test]
fn small_buffers_at_either_end() {
    // Some 16 KiB in 20 ms on each of 8 streams: a quarter of the link. A socket that listens has its buffers already.
    let Some(link) = lab('b', &LINK) else { return };
    sysctl(&link, 'b', "net.ipv4.tcp_wmem=4096 16384 16384");
    let dir = scratch(256 * MIB);
    let place = dir.path().join("source");
    let site = Site::with_source(link, dir, &place, 32 * MIB);
    is_named("the sender's buffer", &site.pull(&["--tuner", "off"]), "sender window");
    drop(site);
    let Some(link) = lab('k', &LINK) else { return };
    sysctl(&link, 'a', "net.ipv4.tcp_rmem=4096 32768 32768");
    let dir = scratch(256 * MIB);
    let place = dir.path().join("source");
    let site = Site::with_source(link, dir, &place, 24 * MIB);
    is_named("the receiver's buffer", &site.pull(&["--tuner", "off"]), "receiver window");
}

/// Lets a copy begin, then lets one process have so little of a core.
fn starved(site: &Site, copy: Copy, pid: u32) -> Option<Value> {
    site.has_placed(4 * MIB);
    let group = Group::of_a_core(0.005)?;
    group.take(pid);
    let report = copy.succeeds(PATIENCE);
    drop(group);
    Some(report)
}

#[test]
fn a_source_without_a_core() {
    let Some(site) = Site::up('s', &LINK, 48 * MIB) else { return };
    let copy = site.start(&[]);
    let Some(report) = starved(&site, copy, site.agent.pid()) else { return };
    is_named("the source's processor", &report, "source cpu");
}

#[test]
fn a_destination_without_a_core() {
    let Some(site) = Site::up('e', &LINK, 32 * MIB) else { return };
    let copy = site.start(&[]);
    let pid = copy.child.id();
    let Some(report) = starved(&site, copy, pid) else { return };
    is_named("the destination's processor", &report, "destination cpu");
}

#[test]
fn a_slow_disk_at_the_source_and_then_a_slow_path() {
    let Some(image) = Image::make(Kind::Ext4, 256 * MIB) else { return };
    let Some(group) = Group::of_a_disk(&image.mount) else { return };
    let place = image.at("source");
    let Some(link) = lab('i', &LINK) else { return };
    let site = Site::with_source(link, scratch(256 * MIB), &place, 48 * MIB);
    cold(&site.agent.root().join("file"));
    group.take(site.agent.pid());
    group.reads(8 * MIB);
    is_named("the source's disk", &site.pull(&[]), "source disk");
    // A third of it by the disk, the rest by a path that has become slow: both have a share.
    cold(&site.agent.root().join("file"));
    let copy = site.start(&[]);
    site.has_placed(24 * MIB);
    site.lab.set(&["--rate", "50mbit"]);
    group.reads(0);
    let report = site.done(copy);
    let (word, _) = held_back("disk, then path", &report);
    let share = |name: &str| report["limiter_shares"][name].as_f64().unwrap_or_default();
    assert!(["source disk", "network"].contains(&word.as_str()), "{report:#}");
    assert!(share("source disk") > 0.25 && share("network") > 0.25, "{report:#}");
}

/// What is read next is read from the medium.
fn cold(file: &Path) {
    let file = std::fs::File::open(file).unwrap();
    file.sync_all().unwrap();
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    nix::fcntl::posix_fadvise(&file, 0, 0, advice).unwrap();
}

#[test]
fn a_slow_disk_at_the_destination() {
    let Some(image) = Image::make(Kind::Ext4, 256 * MIB) else { return };
    let Some(group) = Group::of_a_disk(&image.mount) else { return };
    let Some(site) = Site::up('o', &LINK, 48 * MIB) else { return };
    group.writes(8 * MIB);
    let copy = site.start_to("file", &image.at("copy"), &[]);
    group.take(copy.child.id());
    is_named("the destination's disk", &copy.succeeds(PATIENCE), "destination disk");
    group.writes(0);
}

/// A tree whose names come slowly: each directory is a read of a disk that does fifty a second, and nothing is in it.
#[test]
fn a_list_that_comes_slowly() {
    let Some(mut image) = Image::make(Kind::Ext4, 256 * MIB) else { return };
    for number in 0..300 {
        let dir = image.at(&format!("source/root/tree/{number}"));
        std::fs::create_dir_all(&dir).unwrap();
    }
    data_file(&image.at("source/root/tree/0/file"), 1 << 10, 3);
    // Nothing of it is in memory any more.
    image.reboot();
    let Some(group) = Group::of_a_disk(&image.mount) else { return };
    let place = image.at("source");
    let Some(link) = lab('t', &LINK) else { return };
    let site = Site::with_source(link, scratch(16 * MIB), &place, 0);
    group.take(site.agent.pid());
    group.reads_a_second(50);
    let copy = site.start_to("tree", &site.dir.path().join("tree"), &["-r"]);
    let report = copy.succeeds(PATIENCE);
    group.reads_a_second(0);
    assert_eq!(report["directories"], 301, "{report:#}");
    is_named("the list", &report, "waiting for data");
}
