//! Removes what dead transfers left: part files, and state directories with their journals. Beneath the root only, never
//! through a symlink, and nothing that a live lock covers.

use super::confined::{DirHandle, Kind, Root, Stat, retrying};
use super::error::{DiskError, Doing};
use super::lock::{Acquired, DYING, PAUSE, acquire, empty, look, remove_states};
use super::names::{STATE_DIR, part_id};
use super::scan::{for_each_name, scan_ours};
use crate::ids::TransferId;
use crate::relpath::RelPath;
use crate::sys::fsys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What was done with a left-over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CleanVerdict {
    /// Removed (in a dry run: would be).
    Removed,
    /// A live transfer has it.
    InUse,
    /// Younger than asked for.
    Young,
    /// It could not be removed.
    Failed(DiskError),
}

/// One left-over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleanItem {
    /// The part file or state directory.
    pub path: RelPath,
    /// What it occupies, in bytes.
    pub bytes: u64,
    /// What became of it.
    pub verdict: CleanVerdict,
}

/// Sums over a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CleanReport {
    /// Part files and state directories removed (in a dry run: that would be).
    pub removed: u64,
    /// Left: in use, young, or failed.
    pub kept: u64,
    /// Bytes freed.
    pub bytes: u64,
    /// Directories that could not be searched.
    pub problems: u64,
}

/// Removes part files and state directories below `root` that were not touched for `older_than`. Each one is handed to
/// `each`. In a dry run nothing changes.
///
/// Name the whole destination tree: locks above `root` are not seen (the part files of a running transfer are locked
/// themselves, but for small ones, which live for seconds).
pub fn clean(root: &Root, older_than: Duration, dry_run: bool, each: &mut dyn FnMut(&CleanItem)) -> CleanReport {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let newest = i64::try_from(now.saturating_sub(older_than).as_secs()).unwrap_or(i64::MAX);
    let cleaner = Cleaner { root, newest, dry_run, deadline: Instant::now() + DYING };
    let mut report = CleanReport::default();
    let mut note = |item: CleanItem| {
        if item.verdict == CleanVerdict::Removed {
            report.removed += 1;
            report.bytes += item.bytes;
        } else {
            report.kept += 1;
        }
        each(&item);
    };
    let totals = scan_ours(root, &mut |dir, name| {
        if name == STATE_DIR {
            cleaner.states(dir, &mut note);
        } else {
            note(cleaner.part(dir, name));
        }
    });
    report.problems = totals.problems;
    report
}

/// Removes what one transfer left in the directory `home`: its part files that stand there, and its state. What lives
/// is left alone. For who knows that it will not go on, and where it had been; `false`: it lives, or could not be removed.
///
/// # Errors
/// What the file system said of the directory.
pub fn forget(root: &Root, home: &RelPath, id: &TransferId) -> Result<bool, DiskError> {
    let cleaner = Cleaner { root, newest: i64::MAX, dry_run: false, deadline: Instant::now() };
    let dir = root.open_dir(home)?;
    let name = id.to_string();
    let states = match dir.open_child_dir(STATE_DIR) {
        Ok(fd) => DirHandle::new(fd, dir.child(STATE_DIR)),
        Err(Errno::ENOENT) => return Ok(true),
        Err(errno) => return Err(dir.fail(Doing::OpenDir, STATE_DIR)(errno)),
    };
    let mut bytes = 0;
    // The state first: from then on nobody resumes it, and its part files are nobody's.
    let removed = match states.open_child_dir(name.as_bytes()) {
        Ok(_) => cleaner.state(&dir, &states, name.as_bytes(), &mut bytes)? == CleanVerdict::Removed,
        Err(_) => true,
    };
    if !removed {
        return Ok(false);
    }
    let mut parts = Vec::new();
    for_each_name(&dir, &mut |part| {
        if part_id(part).is_some_and(|digits| name.as_bytes().starts_with(digits)) {
            parts.push(part.to_vec());
        }
        ControlFlow::Continue(())
    })?;
    let gone = parts.iter().all(|part| cleaner.part(&dir, part).verdict == CleanVerdict::Removed);
    remove_states(&dir)?;
    Ok(gone)
}

struct Cleaner<'a> {
    root: &'a Root,
    /// Unix seconds: what changed later is kept.
    newest: i64,
    dry_run: bool,
    /// Until then the locks of processes that are gone may take to go as well.
    deadline: Instant,
}

impl Cleaner<'_> {
    fn part(&self, dir: &DirHandle, name: &[u8]) -> CleanItem {
        let mut bytes = 0;
        let verdict = self.try_part(dir, name, &mut bytes).unwrap_or_else(CleanVerdict::Failed);
        CleanItem { path: dir.child(name), bytes, verdict }
    }

    fn try_part(&self, dir: &DirHandle, name: &[u8], bytes: &mut u64) -> Result<CleanVerdict, DiskError> {
        let stat = dir.stat(name)?;
        *bytes = stat.allocated;
        if stat.kind == Kind::Dir {
            // Never ours: a user's directory with an unlucky name.
            return Err(DiskError::NotRegular { path: dir.child(name) });
        }
        if self.is_young(&stat) {
            return Ok(CleanVerdict::Young);
        }
        if self.transfer_lives(dir.path(), part_id(name).unwrap_or_default())? {
            return Ok(CleanVerdict::InUse);
        }
        if stat.kind != Kind::File {
            // A symlink waiting for its name.
            return if self.dry_run {
                Ok(CleanVerdict::Removed)
            } else {
                dir.unlink(name).map(|()| CleanVerdict::Removed)
            };
        }
        let fd = dir.open_at(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0).map_err(dir.fail(Doing::Open, name))?;
        // Its transfer does not live, so this is the kernel's last hold, or somebody who only looks.
        let mut locked = retrying(|| fsys::try_flock(fd.as_fd()));
        while locked == Err(Errno::EWOULDBLOCK) && Instant::now() < self.deadline {
            std::thread::sleep(PAUSE);
            locked = retrying(|| fsys::try_flock(fd.as_fd()));
        }
        match locked {
            Err(Errno::EWOULDBLOCK) => Ok(CleanVerdict::InUse),
            _ if self.dry_run => Ok(CleanVerdict::Removed),
            _ => dir.unlink_same(name, fd.as_fd()).map(|()| CleanVerdict::Removed),
        }
    }

    /// By change time: the modification time may be the source's already.
    fn is_young(&self, stat: &Stat) -> bool {
        stat.ctime.secs > self.newest
    }

    /// Whether somebody holds the lock of a state directory; of a process that has just been killed it goes in a moment.
    fn lives(&self, state: &DirHandle, base: &RelPath) -> Result<bool, DiskError> {
        loop {
            match look(state, base)? {
                Some(holder) if holder.is_gone() && Instant::now() < self.deadline => std::thread::sleep(PAUSE),
                found => return Ok(found.is_some()),
            }
        }
    }

    /// Whether a state directory of this or a higher directory has a live lock of a transfer whose id begins so.
    fn transfer_lives(&self, at: &RelPath, id: &[u8]) -> Result<bool, DiskError> {
        let mut at = at.clone();
        loop {
            let dir = self.root.open_dir(&at)?;
            if let Ok(fd) = dir.open_child_dir(STATE_DIR) {
                let states = DirHandle::new(fd, dir.child(STATE_DIR));
                let mut lives = false;
                for_each_name(&states, &mut |name| {
                    if !name.starts_with(id) {
                        return ControlFlow::Continue(());
                    }
                    let state = states.open_child_dir(name).map(|fd| DirHandle::new(fd, states.child(name)));
                    // What cannot be looked at counts as alive.
                    lives = state.map_or(true, |state| self.lives(&state, &at).unwrap_or(true));
                    ControlFlow::Break(())
                })?;
                if lives {
                    return Ok(true);
                }
            }
            match at.split_last() {
                Some((parent, _)) => at = parent,
                None => return Ok(false),
            }
        }
    }

    fn states(&self, home: &DirHandle, note: &mut dyn FnMut(CleanItem)) {
        let path = home.child(STATE_DIR);
        let failed = |error| CleanItem { path: path.clone(), bytes: 0, verdict: CleanVerdict::Failed(error) };
        let states = match home.open_child_dir(STATE_DIR) {
            Ok(fd) => DirHandle::new(fd, path.clone()),
            Err(errno) => return note(failed(home.fail(Doing::OpenDir, STATE_DIR)(errno))),
        };
        let mut names = Vec::new();
        let listed = for_each_name(&states, &mut |name| {
            // Whatever is not named like a transfer is not ours.
            if std::str::from_utf8(name).is_ok_and(|name| name.parse::<TransferId>().is_ok()) {
                names.push(name.to_vec());
            }
            ControlFlow::Continue(())
        });
        if let Err(e) = listed {
            return note(failed(e));
        }
        for name in names {
            let mut bytes = 0;
            let verdict = self.state(home, &states, &name, &mut bytes).unwrap_or_else(CleanVerdict::Failed);
            note(CleanItem { path: states.child(&name), bytes, verdict });
        }
        if !self.dry_run {
            // Others may have begun meanwhile: then it stays.
            let _ = remove_states(home);
        }
    }

    fn state(
        &self,
        home: &DirHandle,
        states: &DirHandle,
        name: &[u8],
        bytes: &mut u64,
    ) -> Result<CleanVerdict, DiskError> {
        let fd = states.open_child_dir(name).map_err(states.fail(Doing::OpenDir, name))?;
        let dir = DirHandle::new(fd, states.child(name));
        let mut young = self.is_young(&states.stat(name)?);
        for_each_name(&dir, &mut |file| {
            if let Ok(stat) = dir.try_stat(file) {
                *bytes += stat.allocated;
                young |= self.is_young(&stat);
            }
            ControlFlow::Continue(())
        })?;
        if self.lives(&dir, home.path())? {
            return Ok(CleanVerdict::InUse);
        }
        if young {
            return Ok(CleanVerdict::Young);
        }
        if self.dry_run {
            return Ok(CleanVerdict::Removed);
        }
        // Held while it goes, so that nobody resumes from half a journal.
        match acquire(&dir, home.path())? {
            Acquired::Held(_) | Acquired::Again => Ok(CleanVerdict::InUse),
            Acquired::Yes { fd, .. } => {
                empty(&dir)?;
                dir.unlink_same(b"lock", fd.as_fd())?;
                states.remove_dir(name).map(|()| CleanVerdict::Removed)
            }
        }
    }
}
