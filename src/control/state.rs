//! The state directory: who the agent is, its tokens and its keys. 0700, every file in it 0600, replaced only by
//! temporary file, fsync and rename, so that a crash leaves the old content or the new.

use crate::ids::AgentId;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// No token, key or token list is longer; it bounds what a mistaken path can make us read.
pub const SECRET_FILE_MAX: u64 = 4 << 20;
/// How long a new agent waits for the lock of one that was killed just now: the kernel may still be closing its files.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// Between two attempts at the lock.
const LOCK_STEP: Duration = Duration::from_millis(50);

/// What is wrong with the state directory or a secret file.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A system call failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// In a word.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The state directory is somebody else's.
    #[error("{} belongs to user {owner}: an agent keeps its keys only in a directory of its own user", path.display())]
    Owner {
        /// Which.
        path: PathBuf,
        /// The user id.
        owner: u32,
    },
    /// A secret that others may read.
    #[error("{} can be read by others (mode {mode:04o}): run `chmod 600` on it, and if others had access make a new one", path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a regular file of a sensible size.
    #[error("{} is not a regular file below 4 MiB", path.display())]
    NotRegular {
        /// Which.
        path: PathBuf,
    },
    /// Its content is not what it should be.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// In a few words.
        reason: String,
    },
    /// Another agent runs on it.
    #[error("{} is in use by another agent: give each agent a `--state` of its own", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The system gave no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { doing, path, source }
}

/// `N` bytes from the system's generator.
pub fn random<const N: usize>() -> Result<[u8; N], StateError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| StateError::Random)?;
    Ok(bytes)
}

/// Reads a file that must be ours (or root's) and 0600 or stricter.
pub fn read_secret(path: &Path) -> Result<String, StateError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open(path)
        .map_err(io_error("read", path))?;
    let meta = file.metadata().map_err(io_error("read", path))?;
    if !meta.is_file() || meta.len() > SECRET_FILE_MAX {
        return Err(StateError::NotRegular { path: path.to_owned() });
    }
    if meta.mode() & 0o077 != 0 {
        return Err(StateError::Exposed { path: path.to_owned(), mode: meta.mode() & 0o7777 });
    }
    let mut text = String::new();
    file.take(SECRET_FILE_MAX).read_to_string(&mut text).map_err(io_error("read", path))?;
    Ok(text)
}

/// Writes a 0600 file: a temporary name beside it, fsync, rename, fsync of the directory.
pub fn write_secret(path: &Path, content: &[u8]) -> Result<(), StateError> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}", hex::encode(random::<8>()?)));
    let write = || -> io::Result<()> {
        // create_new is O_EXCL: a link planted under this name is not followed.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        StateError::Io { doing: "write", path: path.to_owned(), source }
    })
}

/// Takes an exclusive lock on `path` (made if missing), waiting at most `patience`.
pub fn lock(path: &Path, patience: Duration) -> Result<Option<Flock<File>>, StateError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(io_error("open", path))?;
    let steps = 1 + patience.as_millis() / LOCK_STEP.as_millis();
    for step in 0..steps {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((again, nix::errno::Errno::EWOULDBLOCK)) => file = again,
            Err((_, errno)) => return Err(io_error("lock", path)(errno.into())),
        }
        if step + 1 < steps {
            std::thread::sleep(LOCK_STEP);
        }
    }
    Ok(None)
}

/// An agent's state directory.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Opens it, makes it (0700) if missing, and takes the rights of others away if it is our own.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("make", path))?;
        let meta = std::fs::metadata(path).map_err(io_error("open", path))?;
        if meta.uid() != nix::unistd::geteuid().as_raw() {
            return Err(StateError::Owner { path: path.to_owned(), owner: meta.uid() });
        }
        if meta.mode() & 0o077 != 0 {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
                .map_err(io_error("set the mode of", path))?;
        }
        Ok(Self { path: path.to_owned() })
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps other agents out as long as the lock lives.
    pub fn lock_for_agent(&self) -> Result<Flock<File>, StateError> {
        lock(&self.file("lock"), LOCK_PATIENCE)?.ok_or_else(|| StateError::Busy { path: self.path.clone() })
    }

    /// Who this agent is; made on first start.
    pub fn agent_id(&self) -> Result<AgentId, StateError> {
        let path = self.file("agent-id");
        match read_secret(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .map_err(|_| StateError::Damaged { path, reason: "it should be 32 hex digits".to_owned() }),
            Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let id = AgentId(random()?);
                write_secret(&path, format!("{id}\n").as_bytes())?;
                Ok(id)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_private_and_the_id_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/state");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let id = state.agent_id().unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let again = StateDir::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(again.agent_id().unwrap(), id);
        assert_eq!(std::fs::metadata(path.join("agent-id")).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write_secret(&path, b"x").unwrap();
        assert_eq!(read_secret(&path).unwrap(), "x");
        for mode in [0o640, 0o604, 0o620, 0o601] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = read_secret(&path).unwrap_err();
            assert!(matches!(error, StateError::Exposed { .. }), "{mode:o}");
            assert!(error.to_string().contains("chmod 600"));
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert!(read_secret(&path).is_ok());
        assert!(matches!(read_secret(dir.path()), Err(StateError::NotRegular { .. })));
        let leftovers = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(leftovers, 1, "temporary files are gone");
    }

    #[test]
    fn two_agents_do_not_share_a_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(&dir.path().join("lock"), Duration::ZERO).unwrap();
        assert!(held.is_some());
        assert!(lock(&dir.path().join("lock"), Duration::ZERO).unwrap().is_none());
        drop(held);
        assert!(lock(&dir.path().join("lock"), Duration::ZERO).unwrap().is_some());
    }
}
