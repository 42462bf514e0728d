//! Real file systems in files: made, mounted, cut off, mounted again. Needs root.

use crate::support::{MIB, skip};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Which file system an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
        }
    }
}

/// A file system on a loop device; unmounted and removed at the end.
pub struct Image {
    image: PathBuf,
    pub mount: PathBuf,
    kind: Kind,
    mounted: bool,
    // Last: the directory goes when nothing is mounted in it any more.
    _dir: tempfile::TempDir,
}

fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}

fn run(mut command: Command) -> Result<(), String> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|error| format!("{shown}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("{shown}: {}", String::from_utf8_lossy(&output.stderr))) }
}

impl Image {
    /// `None`, and said so, where that cannot be done.
    pub fn make(kind: Kind, bytes: u64) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip(&format!("needs root to mount {}", kind.word()));
            return None;
        }
        // XFS wants 300 MB at least.
        let bytes = if kind == Kind::Xfs { bytes.max(320 * MIB) } else { bytes };
        let dir = crate::support::scratch(bytes);
        let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
        std::fs::create_dir(&mount).unwrap();
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let mut make = tool(&format!("mkfs.{}", kind.word()));
        make.arg("-q").args(if kind == Kind::Ext4 { ["-F", "-m0"] } else { ["-f", "-K"] }).arg(&image);
        if let Err(why) = run(make) {
            skip(&format!("{} cannot be made: {why}", kind.word()));
            return None;
        }
        let mut this = Self { image, mount, kind, mounted: false, _dir: dir };
        if let Err(why) = this.try_mount() {
            skip(&format!("{} cannot be mounted: {why}", kind.word()));
            return None;
        }
        Some(this)
    }

    fn try_mount(&mut self) -> Result<(), String> {
        let mut mount = tool("mount");
        mount.args(["-t", self.kind.word(), "-o", "loop"]).arg(&self.image).arg(&self.mount);
        run(mount)?;
        self.mounted = true;
        Ok(())
    }

    /// Power cut: nothing more reaches the image, and every call gives an error from now on.
    pub fn cut(&self, flag: u32) {
        let file = std::fs::File::open(&self.mount).unwrap();
        longhaul::sys::power::cut(&file, flag).unwrap();
    }

    /// After a cut: what the medium holds, its log replayed, as after a reboot.
    pub fn reboot(&mut self) {
        self.unmount();
        self.try_mount().unwrap();
    }

    fn unmount(&mut self) {
        let began = Instant::now();
        // A process that has just died may hold it a moment longer: writes on their way outlive it.
        while let Err(why) = nix::mount::umount(&self.mount) {
            assert!(began.elapsed() < Duration::from_secs(30), "{} cannot be unmounted: {why}", self.mount.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.mounted = false;
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.mount.join(name)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let detach = |path: &Path| nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH);
        if self.mounted {
            let _ = nix::mount::umount(&self.mount).or_else(|_| detach(&self.mount));
        }
    }
}
