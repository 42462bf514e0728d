//! One transfer a tree: `DEST/.longhaul/ID/lock`, held by `flock` as long as the transfer runs.
//!
//! The lock file says who holds it and what it covers: the directory that `.longhaul` stands in, or one name in it. Two
//! single files into one directory do not meet; the same file, or one tree inside another, do. Paths are written relative
//! to that directory, because another agent may serve the same storage under another root.
//!
//! Where `flock` is refused (some network file systems), the file's existence is the lock, and its holder counts as dead
//! only when it is a process of this host that is gone.

use super::calls;
use super::confined::{DirHandle, Kind, Made, Root, Stat, retrying};
use super::error::{DiskError, Doing};
use super::names::{STATE_DIR, is_reserved};
use super::scan::for_each_name;
use crate::clock;
use crate::ids::{Epoch, TransferId};
use crate::relpath::{RelPath, escape};
use crate::sys::fsys::{self, Caching};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// The lock file's name in the transfer's state directory.
const LOCK: &[u8] = b"lock";
/// A lock file is a few lines, one of them a path in hex; whatever is longer is not one.
const LOCK_TEXT_MAX: usize = 16 << 10;
/// A dying predecessor, or somebody who only looks, lets go within this time.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for a process that is gone: the kernel closes what a ring of its holds some time after its end, and on a busy
/// machine that can be seconds.
pub(super) const DYING: Duration = Duration::from_secs(10);
/// Between two tries.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// Passes over a state directory while it is emptied: names that appear meanwhile are taken by the next one.
const EMPTY_PASSES: usize = 16;

/// Who holds a lock, as its file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holder {
    /// Transfer id, as its state directory is named.
    pub id: String,
    /// Process.
    pub pid: u32,
    /// Host name, escaped.
    pub host: String,
    /// Epoch of its session.
    pub epoch: u64,
    /// What it covers, below the root that was asked.
    pub covers: RelPath,
    /// Held by the file's existence, not by `flock`.
    by_existence: bool,
    /// When the process started, in clock ticks after boot: tells it from a later one with its number.
    started: u64,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.pid == 0 {
            return write!(f, "transfer {} (whose lock file cannot be read)", self.id);
        }
        write!(f, "transfer {} (process {} on {}, epoch {})", self.id, self.pid, self.host, self.epoch)
    }
}

/// Why a destination was not locked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Another transfer works there.
    #[error("{path}: {holder} is writing to {}; wait for it to end, or stop it, then repeat", holder.covers)]
    Held {
        /// What was to be locked.
        path: RelPath,
        /// By whom.
        holder: Box<Holder>,
    },
    /// What the file system said.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// A held lock. Dropping it leaves journal and state for a resume; [`TreeLock::finish`] removes them.
#[derive(Debug)]
pub struct TreeLock {
    home: DirHandle,
    states: DirHandle,
    dir: DirHandle,
    name: String,
    fd: OwnedFd,
    /// The state directory is new: nothing to resume.
    fresh: bool,
    /// Set where `flock` is refused.
    refused: Option<Errno>,
}

/// One try: the lock, or who has it, or (nothing) that the state directory went away under us.
enum Tried {
    Got(Box<TreeLock>),
    Held(Holder),
    Again,
}

impl TreeLock {
    /// Locks `covers` for the transfer `id`: `home` itself, or a path below it. `home` is a directory that exists; the
    /// state lies in `home/.longhaul/ID`. Locks are looked for in `home` and in every directory above it up to the root
    /// (state directories of other users that may not be entered are passed over).
    pub fn take(
        root: &Root,
        home: &RelPath,
        covers: &RelPath,
        id: &TransferId,
        epoch: Epoch,
    ) -> Result<Self, LockError> {
        if is_reserved(covers) || !covers.starts_with(home) {
            return Err(DiskError::Reserved { path: covers.clone() }.into());
        }
        let home_dir = root.open_dir(home)?;
        let held = |holder| LockError::Held { path: covers.clone(), holder: Box::new(holder) };
        let (deadline, last) = (clock::now() + PATIENCE, clock::now() + DYING);
        loop {
            let late = clock::now() >= deadline;
            match Self::try_take(root, &home_dir, covers, id, epoch, clock::now() + PATIENCE)? {
                Tried::Got(lock) => return Ok(*lock),
                Tried::Held(holder) if holder.is_gone() && clock::now() < last => clock::pause(PAUSE),
                // Complete and well-formed: no matter of milliseconds.
                Tried::Held(holder) if late || (holder.pid != 0 && holder.id != id.to_string()) => {
                    return Err(held(holder));
                }
                Tried::Again if late => return Err(DiskError::Busy { path: covers.clone() }.into()),
                Tried::Held(_) | Tried::Again => clock::pause(PAUSE),
            }
        }
    }

    fn try_take(
        root: &Root,
        home: &DirHandle,
        covers: &RelPath,
        id: &TransferId,
        epoch: Epoch,
        deadline: Instant,
    ) -> Result<Tried, LockError> {
        let name = id.to_string();
        home.make_dir(STATE_DIR)?;
        let again =
            |e: DiskError| if matches!(e, DiskError::NotFound { .. }) { Ok(Tried::Again) } else { Err(e.into()) };
        let states = match open_child(home, STATE_DIR) {
            Ok(states) => states,
            Err(e) => return again(e),
        };
        // Those who start in one directory take turns, so that of two rivals one gets through.
        let _turn = turn(&states, deadline)?;
        let made = states.make_dir(name.as_bytes());
        let (fresh, dir) = match made.and_then(|made| Ok((made == Made::New, open_child(&states, name.as_bytes())?))) {
            Ok(opened) => opened,
            Err(e) => return again(e),
        };
        let (fd, refused) = match acquire(&dir, home.path())? {
            Acquired::Yes { fd, refused } => (fd, refused),
            Acquired::Held(holder) => return Ok(Tried::Held(*holder)),
            Acquired::Again => return Ok(Tried::Again),
        };
        let lock = Self { home: home.clone(), states, dir, name, fd, fresh, refused };
        lock.write_holder(covers, epoch)?;
        // Ours stands before others are looked for: of two that start at once, one above the other, one sees the other.
        match conflict(root, home.path(), covers, &lock.name) {
            Ok(None) => {
                crate::sys::points::at("lock.taken");
                Ok(Tried::Got(Box::new(lock)))
            }
            Ok(Some(holder)) => {
                lock.undo();
                Ok(Tried::Held(holder))
            }
            Err(e) => {
                lock.undo();
                Err(e.into())
            }
        }
    }

    fn write_holder(&self, covers: &RelPath, epoch: Epoch) -> Result<(), DiskError> {
        let home = self.home.path().as_bytes();
        let below = covers.as_bytes()[home.len()..].strip_prefix(b"/").unwrap_or(&covers.as_bytes()[home.len()..]);
        let pid = std::process::id();
        let text = format!(
            "longhaul lock 1\nid {}\npid {pid}\nstarted {}\nhost {}\nepoch {}\nheld {}\ncovers {}\n",
            self.name,
            started(pid).unwrap_or(0),
            host(),
            epoch.0,
            if self.refused.is_some() { "existence" } else { "flock" },
            hex::encode(below),
        );
        let fail = |errno| self.dir.fail(Doing::Lock, LOCK)(errno);
        retrying(|| calls::truncate(self.fd.as_fd(), 0)).map_err(fail)?;
        let n = retrying(|| calls::write_at(self.fd.as_fd(), text.as_bytes(), 0, Caching::Normal)).map_err(fail)?;
        if n == text.len() { Ok(()) } else { Err(fail(Errno::ENOSPC)) }
    }

    /// The epoch has changed: says so in the lock file.
    pub fn set_epoch(&self, covers: &RelPath, epoch: Epoch) -> Result<(), DiskError> {
        self.write_holder(covers, epoch)
    }

    /// The state directory `.longhaul/ID`, mode 0700.
    pub fn dir(&self) -> &DirHandle {
        &self.dir
    }

    /// Whether there was no state directory before: nothing to resume.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Why `flock` is not what holds it, for the report.
    pub fn note(&self) -> Option<String> {
        self.refused.map(|errno| {
            format!("flock is refused here ({errno:?}): a lock file with host and process stands in for it")
        })
    }

    /// Opens a file of the state directory for reading and writing, mode 0600; `None` if it is not there and not to be
    /// created. Never through a symlink.
    pub fn open_file(&self, name: &str, create: bool) -> Result<Option<File>, DiskError> {
        let flags = if create { OFlag::O_RDWR | OFlag::O_CREAT } else { OFlag::O_RDWR };
        if name.is_empty() || name.contains('/') || name == ".." || name == "." {
            return Err(DiskError::Reserved { path: self.dir.path().clone() });
        }
        match self.dir.open_at(name.as_bytes(), flags, 0o600) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::ENOENT) if !create => Ok(None),
            Err(errno) => Err(self.dir.fail(Doing::Open, name.as_bytes())(errno)),
        }
    }

    /// Gives a file of the state directory another's name. Durable after [`TreeLock::sync_dir`].
    pub fn rename_file(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let renamed = self.dir.rename_replacing(from.as_bytes(), to.as_bytes());
        renamed.map_err(self.dir.fail(Doing::Rename, to.as_bytes()))
    }

    /// Makes the names in the state directory, and its own, durable: before the first record that relies on them.
    pub fn sync_dir(&self) -> Result<(), DiskError> {
        self.dir.sync()?;
        self.states.sync()?;
        self.home.sync()
    }

    /// What a failed operation on one of the state directory's files means.
    pub fn io_error(&self, name: &str, error: &std::io::Error) -> DiskError {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        self.dir.fail(Doing::Read, name.as_bytes())(errno)
    }

    /// After DONE: removes the state directory, and `.longhaul` when it is empty.
    pub fn finish(self) -> Result<(), DiskError> {
        crate::sys::points::at("lock.finish");
        empty(&self.dir)?;
        crate::sys::points::at("lock.emptied");
        self.dir.unlink_same(LOCK, self.fd.as_fd())?;
        self.states.remove_dir(self.name.as_bytes())?;
        remove_states(&self.home)?;
        self.home.sync()
    }

    /// Takes back what a refused try has made. Best effort: what stays is stale and harmless.
    fn undo(self) {
        if self.fresh && self.dir.unlink_same(LOCK, self.fd.as_fd()).is_ok() {
            let _ = self.states.remove_dir(self.name.as_bytes());
            let _ = remove_states(&self.home);
        }
    }
}

impl Drop for TreeLock {
    fn drop(&mut self) {
        if self.refused.is_some() {
            // Where existence is the lock; gone already after `finish`.
            let _ = self.dir.unlink_same(LOCK, self.fd.as_fd());
        }
    }
}

fn open_child(dir: &DirHandle, name: &[u8]) -> Result<DirHandle, DiskError> {
    let fd = dir.open_child_dir(name).map_err(dir.fail(Doing::OpenDir, name))?;
    Ok(DirHandle::new(fd, dir.child(name)))
}

/// `rmdir .longhaul`, if nobody else has state there.
pub(super) fn remove_states(home: &DirHandle) -> Result<(), DiskError> {
    match home.remove_dir(STATE_DIR) {
        Err(DiskError::Exists { .. } | DiskError::NotFound { .. }) => Ok(()),
        other => other,
    }
}

/// Removes everything in a state directory but the lock file. Directories in it are not ours and make it fail.
pub(super) fn empty(dir: &DirHandle) -> Result<(), DiskError> {
    for _ in 0..EMPTY_PASSES {
        let (mut removed, mut failed) = (0, None);
        for_each_name(dir, &mut |name| {
            if name == LOCK {
                return ControlFlow::Continue(());
            }
            match dir.unlink(name) {
                Ok(()) => removed += 1,
                Err(e) => failed = Some(e),
            }
            ControlFlow::Continue(())
        })?;
        match failed {
            Some(e) => return Err(e),
            None if removed == 0 => break,
            None => {}
        }
    }
    Ok(())
}

/// Waits for this directory's other starters. Where `flock` is refused nobody waits.
fn turn(states: &DirHandle, deadline: Instant) -> Result<Option<OwnedFd>, DiskError> {
    // A description of its own, so that the turn ends with it.
    let fd = states.open_child_dir(b".").map_err(|e| DiskError::new(Doing::Lock, states.path(), e))?;
    loop {
        match retrying(|| fsys::try_flock(fd.as_fd())) {
            Ok(()) => return Ok(Some(fd)),
            Err(Errno::EWOULDBLOCK) if clock::now() < deadline => clock::pause(PAUSE),
            Err(Errno::EWOULDBLOCK) => return Err(DiskError::Busy { path: states.path().clone() }),
            Err(_) => return Ok(None),
        }
    }
}

pub(super) enum Acquired {
    Yes { fd: OwnedFd, refused: Option<Errno> },
    Held(Box<Holder>),
    Again,
}

/// Takes the lock file of one state directory, whose home is `base`.
pub(super) fn acquire(dir: &DirHandle, base: &RelPath) -> Result<Acquired, DiskError> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT;
    let (fd, created) = match dir.open_at(LOCK, flags | OFlag::O_EXCL, 0o600) {
        Ok(fd) => (fd, true),
        Err(Errno::EEXIST) => match dir.open_at(LOCK, OFlag::O_RDWR | OFlag::O_NONBLOCK, 0) {
            Ok(fd) => (fd, false),
            Err(Errno::ENOENT) => return Ok(Acquired::Again),
            Err(errno) => return Err(dir.fail(Doing::Lock, LOCK)(errno)),
        },
        Err(Errno::ENOENT) => return Ok(Acquired::Again),
        Err(errno) => return Err(dir.fail(Doing::Lock, LOCK)(errno)),
    };
    let stat = Stat::of(fd.as_fd()).map_err(dir.fail(Doing::Lock, LOCK))?;
    if stat.kind != Kind::File {
        return Err(DiskError::NotRegular { path: dir.child(LOCK) });
    }
    let refused = match retrying(|| fsys::try_flock(fd.as_fd())) {
        Ok(()) => None,
        Err(Errno::EWOULDBLOCK) => return Ok(Acquired::Held(Box::new(read_holder(dir, fd.as_fd(), base)))),
        Err(errno) => Some(errno),
    };
    if !created {
        let holder = read_holder(dir, fd.as_fd(), base);
        // A file that is the lock by existing, or may become one in a moment (nothing in it yet).
        if (holder.by_existence || refused.is_some()) && holder.is_alive(&stat) {
            return Ok(Acquired::Held(Box::new(holder)));
        }
        if refused.is_some() {
            dir.unlink_same(LOCK, fd.as_fd())?;
            return Ok(Acquired::Again);
        }
    }
    // A predecessor that finished between our open and our lock has removed it: what we hold is no name any more.
    match dir.try_stat(LOCK) {
        Ok(now) if now.same_object(&stat) => Ok(Acquired::Yes { fd, refused }),
        _ => Ok(Acquired::Again),
    }
}

/// The first live lock, but our own, that covers a path above or below `covers`.
fn conflict(root: &Root, home: &RelPath, covers: &RelPath, own: &str) -> Result<Option<Holder>, DiskError> {
    let mut at = home.clone();
    loop {
        let found = live_lock(root, &at, &mut |holder| {
            let overlaps = holder.covers.starts_with(covers) || covers.starts_with(&holder.covers);
            overlaps && !(at == *home && holder.id == own)
        });
        match found {
            Ok(Some(holder)) => return Ok(Some(holder)),
            // Another user's, above us: what he may do there, he may do; we cannot look.
            Ok(None) | Err(DiskError::Denied { .. }) => {}
            Err(e) => return Err(e),
        }
        match at.split_last() {
            Some((parent, _)) => at = parent,
            None => return Ok(None),
        }
    }
}

/// A live lock in `dir/.longhaul`, whatever it covers: asked when a transfer is about to write into a directory that was
/// there before.
pub fn has_live_lock_below(root: &Root, dir: &RelPath) -> Result<Option<Holder>, DiskError> {
    live_lock(root, dir, &mut |_| true)
}

fn live_lock(
    root: &Root,
    base: &RelPath,
    wanted: &mut dyn FnMut(&Holder) -> bool,
) -> Result<Option<Holder>, DiskError> {
    let base_dir = root.open_dir(base)?;
    let states = match open_child(&base_dir, STATE_DIR) {
        Err(DiskError::NotFound { .. }) => return Ok(None),
        other => other?,
    };
    let mut found = Ok(None);
    for_each_name(&states, &mut |name| {
        match open_child(&states, name).and_then(|dir| look(&dir, base)) {
            Ok(Some(holder)) if wanted(&holder) => found = Ok(Some(holder)),
            Ok(_) | Err(DiskError::NotFound { .. } | DiskError::NotADirectory { .. }) => {
                return ControlFlow::Continue(());
            }
            Err(e) => found = Err(e),
        }
        ControlFlow::Break(())
    })?;
    found
}

/// Who holds the lock of a state directory; `None` if nobody does.
pub(super) fn look(dir: &DirHandle, base: &RelPath) -> Result<Option<Holder>, DiskError> {
    let fd = match dir.open_at(LOCK, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0) {
        Err(Errno::ENOENT) => return Ok(None),
        other => other.map_err(dir.fail(Doing::Lock, LOCK))?,
    };
    let stat = Stat::of(fd.as_fd()).map_err(dir.fail(Doing::Lock, LOCK))?;
    let holder = read_holder(dir, fd.as_fd(), base);
    let live = match retrying(|| fsys::try_flock_shared(fd.as_fd())) {
        Err(Errno::EWOULDBLOCK) => true,
        Ok(()) => holder.by_existence && holder.is_alive(&stat),
        Err(_) => holder.is_alive(&stat),
    };
    Ok(live.then_some(holder))
}

/// What a lock file says; of one that says nothing (yet), that it covers everything.
fn read_holder(dir: &DirHandle, fd: BorrowedFd<'_>, base: &RelPath) -> Holder {
    let mut buf = vec![0; LOCK_TEXT_MAX];
    let n = retrying(|| fsys::read_at(fd, &mut buf, 0, Caching::Normal)).unwrap_or(0);
    let unknown = || {
        let id = dir.path().split_last().map_or_else(String::new, |(_, name)| escape(name));
        Holder { id, covers: base.clone(), ..Holder::default() }
    };
    std::str::from_utf8(&buf[..n]).ok().and_then(|text| Holder::parse(text, base)).unwrap_or_else(unknown)
}

impl Holder {
    fn parse(text: &str, base: &RelPath) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some("longhaul lock 1") || !text.ends_with('\n') {
            return None;
        }
        let mut holder = Self::default();
        let mut covers = None;
        for line in lines {
            let (key, value) = line.split_once(' ')?;
            match key {
                "id" => holder.id = escape(value.as_bytes()),
                "pid" => holder.pid = value.parse().ok()?,
                "started" => holder.started = value.parse().ok()?,
                "host" => holder.host = escape(value.as_bytes()),
                "epoch" => holder.epoch = value.parse().ok()?,
                "held" => holder.by_existence = value == "existence",
                "covers" => covers = Some(hex::decode(value).ok()?),
                _ => {}
            }
        }
        holder.covers = base.join(&covers?).ok()?;
        (holder.pid != 0).then_some(holder)
    }

    /// Whether the process that wrote it has certainly ended: what still holds its lock is the kernel, for a moment.
    pub(super) fn is_gone(&self) -> bool {
        self.pid != 0
            && self.host == host()
            && started(self.pid).is_none_or(|now| self.started != 0 && now != self.started)
    }

    /// Whether the process that wrote it may still run. Of another host nobody can tell: yes.
    fn is_alive(&self, file: &Stat) -> bool {
        if self.pid == 0 {
            // Nothing in it yet, or never: a start takes no longer than our patience.
            let age = std::time::UNIX_EPOCH + Duration::from_secs(file.ctime.secs.max(0) as u64);
            return age.elapsed().is_ok_and(|age| age < PATIENCE * 5);
        }
        self.host != host() || started(self.pid).is_some_and(|now| self.started == 0 || now == self.started)
    }
}

fn host() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    let name = escape(std::os::unix::ffi::OsStrExt::as_bytes(name.as_os_str()));
    if name.is_empty() { "-".to_owned() } else { name }
}

/// When a process started, in clock ticks after boot; `None` if it does not run.
fn started(pid: u32) -> Option<u64> {
    /// Field 22 of /proc/PID/stat, counted behind the command name, which may hold anything and ends with `)`.
    const START_FIELD: usize = 19;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(START_FIELD)?.parse().ok()
}
