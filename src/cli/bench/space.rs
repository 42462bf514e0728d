//! What a bench makes and has to take away again, whatever happens: directories, files, an agent of its own.

use crate::cli::demo_agent::{DemoAgent, Home};
use crate::cli::demo_tree::{check_space, random_file};
use crate::cli::fail::{Fail, INTERRUPTED, say, show};
use crate::control::client::PeerClient;
use crate::disk::{FsKind, Root};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::{self, DirBuilder};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::signal::unix::{SignalKind, signal};

/// Where a synthetic end has what little it needs of a file system: names, and a journal that waits for no disk.
const MEMORY: &str = "/dev/shm";
/// Room beside the files themselves: journals, an agent's state, the file system's own.
const MARGIN: u64 = 64 << 20;
/// The made file, below its directory.
pub const NAME: &str = "data";

#[derive(Default)]
struct Made {
    agent: Option<DemoAgent>,
    dirs: Vec<PathBuf>,
    /// A signal has come: the process ends by that.
    interrupted: bool,
}

impl Made {
    fn clear(&mut self) {
        // It reads and writes there.
        self.agent = None;
        for dir in self.dirs.drain(..) {
            if let Err(error) = fs::remove_dir_all(&dir).or_else(|_| fs::remove_dir_all(&dir))
                && dir.exists()
            {
                eprintln!("longhaul: {} could not be removed: {error}", show(&dir));
            }
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The space of one bench. Clones share it; the last one takes everything away.
#[derive(Clone, Default)]
pub struct Space(Arc<Mutex<Made>>);

impl Space {
    fn made(&self) -> MutexGuard<'_, Made> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on SIGINT and SIGTERM take everything away and end the process.
    pub fn heed_signals(&self, json: bool) -> Result<(), Fail> {
        let failed = |error: std::io::Error| Fail::new(1, format!("cannot listen for signals: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (mut int, mut term) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt()).map_err(failed)?, signal(SignalKind::terminate()).map_err(failed)?)
        };
        // Not a share of it: what has ended by itself is taken away by itself.
        let made = Arc::downgrade(&self.0);
        let wait = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                }
            });
            if let Some(made) = made.upgrade() {
                let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
                made.interrupted = true;
                made.clear();
            }
            let fail = Fail::new(INTERRUPTED, "interrupted; nothing is left of the bench");
            eprintln!("longhaul: {fail}");
            if json {
                say(&format!("{}\n", fail.json()));
            }
            std::process::exit(INTERRUPTED.into());
        };
        std::thread::Builder::new().name("lh-signals".to_owned()).spawn(wait).map_err(failed)?;
        Ok(())
    }

    /// After a signal does not return: what fails then fails because all was taken away, and is no news.
    pub fn give_way_to_signals(&self) {
        while self.made().interrupted {
            std::thread::park();
        }
    }

    /// A directory of this bench below `base`, made when it is first asked for.
    pub fn dir(&self, base: &Path) -> Result<PathBuf, Fail> {
        let base = fs::canonicalize(base).map_err(|error| Fail::io("use", base, &error))?;
        let dir = base.join(format!("longhaul-bench-{}", std::process::id()));
        let mut made = self.made();
        if !made.dirs.contains(&dir) {
            DirBuilder::new().mode(0o700).create(&dir).map_err(|error| Fail::io("make", &dir, &error))?;
            made.dirs.push(dir.clone());
        }
        Ok(dir)
    }

    /// The same in memory.
    pub fn memory(&self) -> Result<PathBuf, Fail> {
        let base = Path::new(MEMORY);
        let root = Root::open_following(base);
        let kind = root.as_ref().ok().and_then(|root| FsKind::of(root.handle().as_fd()).ok());
        if !kind.is_some_and(FsKind::is_volatile) {
            return Err(Fail::new(
                1,
                format!("a synthetic end has its names in memory, and {MEMORY} is no tmpfs here"),
            ));
        }
        self.dir(base)
    }

    /// A file of `size` bytes that nothing compresses, named [`NAME`], in a directory of its own below `dir`, on the medium
    /// and not in the page cache, where there is one. Returns the directory.
    pub fn file(&self, dir: &Path, size: u64) -> Result<PathBuf, Fail> {
        let place = dir.join("source");
        let path = place.join(NAME);
        if !path.exists() {
            check_space(dir, size + MARGIN, "use --size or --dir")?;
            DirBuilder::new().mode(0o700).create(&place).map_err(|error| Fail::io("make", &place, &error))?;
            let failed = |error: std::io::Error| Fail::io("write", &path, &error);
            random_file(&path, size, u64::from(std::process::id()), &AtomicBool::new(false)).map_err(failed)?;
            let file = fs::File::open(&path).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            // Advice: where it is not taken, reports say that the file was in the page cache.
            let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        Ok(place)
    }

    /// A file of `size` bytes that holds none, named [`NAME`], in a directory of its own below `dir`: for a synthetic source,
    /// which makes them up. Returns the directory.
    pub fn hollow(&self, dir: &Path, size: u64) -> Result<PathBuf, Fail> {
        let place = dir.join("synthetic");
        let path = place.join(NAME);
        if !path.exists() {
            DirBuilder::new().mode(0o700).create(&place).map_err(|error| Fail::io("make", &place, &error))?;
            let made = fs::File::create_new(&path).and_then(|file| file.set_len(size));
            made.map_err(|error| Fail::io("make", &path, &error))?;
        }
        Ok(place)
    }

    /// A directory without anything in it, below this bench's in `base`.
    pub fn empty(&self, base: &Path) -> Result<PathBuf, Fail> {
        let dir = self.dir(base)?.join("empty");
        fs::create_dir_all(&dir).map_err(|error| Fail::io("make", &dir, &error))?;
        Ok(dir)
    }

    /// A client of this bench's own agent. The first call starts it over `root`, with its state in this bench's directory
    /// below `base`, or elsewhere if that lies beneath the root: no agent serves its own keys. `synthetic`: it makes up what
    /// the files there hold.
    pub fn agent(&self, root: &Path, base: &Path, encrypt: bool, synthetic: bool) -> Result<PeerClient, Fail> {
        if let Some(agent) = &self.made().agent {
            return agent.client("/");
        }
        let bases = [base.to_owned(), std::env::temp_dir(), PathBuf::from(MEMORY)];
        let outside = |base: &PathBuf| fs::canonicalize(base).is_ok_and(|base| !base.starts_with(root));
        // The file that is served is one of ours where the root is one of our directories.
        let ours = root.starts_with(self.dir(base)?);
        let base = bases.iter().find(|base| ours || outside(base)).ok_or_else(|| {
            let what =
                "no place for an agent's state that is not below the file's directory: name a --source elsewhere";
            Fail::usage(what)
        })?;
        let state = self.dir(base)?.join("agent");
        let program = std::env::current_exe().map_err(|error| Fail::new(1, format!("cannot find itself: {error}")))?;
        let home = Home {
            name: "bench's",
            roles: "source,destination",
            program,
            root: Some(root.to_owned()),
            state,
            encrypt,
            more: if synthetic { vec!["--synthetic".into(), "source".into()] } else { Vec::new() },
        };
        // Held while it starts: a signal waits for it, and ends it.
        let mut made = self.made();
        made.agent.insert(DemoAgent::start(&home)?).client("/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stays_behind() {
        let base = tempfile::tempdir().unwrap();
        let space = Space::default();
        let dir = space.dir(base.path()).unwrap();
        assert_eq!(space.dir(base.path()).unwrap(), dir, "made once");
        let place = space.file(&dir, 100_000).unwrap();
        let before = fs::metadata(place.join(NAME)).unwrap();
        assert_eq!(before.len(), 100_000);
        space.file(&dir, 100_000).unwrap();
        assert_eq!(
            fs::metadata(place.join(NAME)).unwrap().modified().unwrap(),
            before.modified().unwrap(),
            "written once"
        );
        let hollow = space.hollow(&dir, 1 << 40).unwrap().join(NAME);
        let of_it = fs::metadata(&hollow).unwrap();
        assert_eq!((of_it.len(), std::os::unix::fs::MetadataExt::blocks(&of_it)), (1 << 40, 0), "a size, and no bytes");
        let other = space.clone();
        drop(space);
        assert!(dir.exists(), "somebody still works there");
        drop(other);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        let missing = Space::default().dir(&base.path().join("none")).unwrap_err();
        assert_eq!(missing.code, 4, "{missing}");
    }
}
