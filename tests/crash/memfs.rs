//! A file system in this process's memory, mounted by FUSE, with switches: calls that fail at their n-th time, are short,
//! late or refused, a medium that rots, and a power cut that loses what was not synced. Needs root and /dev/fuse.

mod serve;
pub mod store;

use crate::support::skip;
use fuser::{BackgroundSession, Config, MountOption};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::Store;

/// A mounted file system; unmounted when dropped.
pub struct Memory {
    store: Arc<Mutex<Store>>,
    session: Option<BackgroundSession>,
    pub mount: PathBuf,
    _dir: tempfile::TempDir,
}

impl Memory {
    /// `None`, and said so, where that cannot be done.
    pub fn mount() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip("needs root to mount a FUSE file system");
            return None;
        }
        if !Path::new("/dev/fuse").exists() {
            skip("needs /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("mount");
        std::fs::create_dir(&mount).unwrap();
        let mut this = Self { store: Arc::default(), session: None, mount, _dir: dir };
        this.attach();
        Some(this)
    }

    fn attach(&mut self) {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("lh-memory".into()), MountOption::RW];
        let server = serve::Server::new(self.store.clone());
        self.session = Some(fuser::spawn_mount(server, &self.mount, &config).unwrap());
    }

    /// What it holds and how it behaves.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.mount.join(name)
    }

    /// Unmounts and mounts again: the kernel's cache is gone.
    pub fn remount(&mut self) {
        self.session.take().unwrap().umount_and_join().unwrap();
        self.attach();
    }

    /// Unmounts, and mounts again when another file system has taken the device's number.
    pub fn remount_elsewhere(&mut self) {
        use std::os::unix::fs::MetadataExt;
        let number = |mount: &Path| std::fs::metadata(mount).unwrap().dev();
        let before = number(&self.mount);
        let mut others = Vec::new();
        while number(&self.mount) == before {
            assert!(others.len() < 20, "every mount gets the number {before}");
            self.session.take().unwrap().umount_and_join().unwrap();
            others.push(Self::mount());
            self.attach();
        }
    }

    /// Power cut: what was not synced is gone.
    pub fn cut(&mut self) {
        self.session.take().unwrap().umount_and_join().unwrap();
        self.store().cut();
        self.attach();
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Also while somebody has it open: a test that has failed must not hang in its clean-up.
        let _ = nix::mount::umount2(&self.mount, nix::mount::MntFlags::MNT_DETACH);
    }
}
