//! Control groups, of either version: a share of a core, or a device's bytes and reads a second. Taken away at the end.

use crate::support::skip;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const MOUNT: &str = "/sys/fs/cgroup";

pub struct Group {
    /// Where its files are.
    dir: PathBuf,
    /// Of a disk: `major:minor`. Version 1 limits the whole device, in its root group: what the kernel writes back later is not
    /// the process's there.
    device: Option<String>,
    version2: bool,
}

fn put(path: &Path, text: &str) -> std::io::Result<()> {
    std::fs::write(path, text)
}

impl Group {
    /// `None`, said why, where there is none.
    fn make(controller: &str, version2_name: &str) -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("lht{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let all = std::fs::read_to_string(format!("{MOUNT}/cgroup.controllers")).unwrap_or_default();
        if all.split_whitespace().any(|word| word == version2_name) {
            // Who counts whose writes those are: the memory controller.
            let wanted = ["memory", version2_name].map(|word| format!("+{word}")).join(" ");
            let _ = put(&Path::new(MOUNT).join("cgroup.subtree_control"), &wanted);
            let dir = Path::new(MOUNT).join(name);
            return Self::made(dir, true);
        }
        let dir = Path::new(MOUNT).join(controller);
        if dir.join("cgroup.procs").exists() {
            return Self::made(dir.join(name), false);
        }
        skip(&format!("no control group has {controller}"));
        None
    }

    fn made(dir: PathBuf, version2: bool) -> Option<Self> {
        match std::fs::create_dir(&dir) {
            Ok(()) => Some(Self { dir, device: None, version2 }),
            Err(error) => {
                skip(&format!("no control group {}: {error}", dir.display()));
                None
            }
        }
    }

    /// A group that has this part of one core.
    pub fn of_a_core(part: f64) -> Option<Self> {
        let group = Self::make("cpu", "cpu")?;
        let period = 250_000;
        let quota = (f64::from(period) * part) as u64;
        if group.version2 {
            put(&group.dir.join("cpu.max"), &format!("{quota} {period}")).unwrap();
        } else {
            put(&group.dir.join("cpu.cfs_period_us"), &period.to_string()).unwrap();
            put(&group.dir.join("cpu.cfs_quota_us"), &quota.to_string()).unwrap();
        }
        Some(group)
    }

    /// A group whose use of the device below `mount` can be limited; without limits at first.
    pub fn of_a_disk(mount: &Path) -> Option<Self> {
        let mut group = Self::make("blkio", "io")?;
        let device = std::fs::metadata(mount).unwrap().dev();
        group.device = Some(format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device)));
        Some(group)
    }

    fn limit(&self, version1: &str, version2: &str, count: u64) {
        let device = self.device.as_deref().expect("a disk's group");
        if self.version2 {
            let count = if count == 0 { "max".to_owned() } else { count.to_string() };
            put(&self.dir.join("io.max"), &format!("{device} {version2}={count}")).unwrap();
        } else {
            let file = format!("{MOUNT}/blkio/blkio.throttle.{version1}_device");
            put(Path::new(&file), &format!("{device} {count}")).unwrap();
        }
    }

    /// Bytes read a second; 0: as many as it can.
    pub fn reads(&self, bytes: u64) {
        self.limit("read_bps", "rbps", bytes);
    }

    /// Reads a second; 0: as many as it can.
    pub fn reads_a_second(&self, count: u64) {
        self.limit("read_iops", "riops", count);
    }

    /// Bytes written a second; 0: as many as it can.
    pub fn writes(&self, bytes: u64) {
        self.limit("write_bps", "wbps", bytes);
    }

    /// A process and its threads belong to it from now on.
    pub fn take(&self, pid: u32) {
        if self.device.is_none() || self.version2 {
            put(&self.dir.join("cgroup.procs"), &pid.to_string()).unwrap();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.device.is_some() {
            self.reads(0);
            self.reads_a_second(0);
            self.writes(0);
        }
        let Some(above) = self.dir.parent() else { return };
        for pid in std::fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = put(&above.join("cgroup.procs"), pid);
        }
        // A process that has just ended is in it for a moment.
        let began = Instant::now();
        while std::fs::remove_dir(&self.dir).is_err() && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
