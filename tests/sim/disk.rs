//! The destination's disk: a real directory, and beside it the knowledge of what of it would survive a power cut.
//!
//! The engine's own calls go to the real directory, through `disk::calls`, and are seen here before and after. A write
//! that no sync has covered keeps the bytes that it replaced; a name that no directory sync has covered is remembered as
//! an operation on its directory; metadata likewise. At a power cut ([`crate::cut`]) a part of all that is undone, in place,
//! so that the real engine goes on from there and inode numbers stay what its journal says.
//!
//! The model is the weakest that POSIX allows: a sync of a file says nothing about its name, a sync of a directory nothing
//! about what its names lead to. A rename is atomic. After a failed sync what was unsynced is lost, whatever later syncs
//! of the file say.

use crate::checker::Checker;
use crate::world::World;
use longhaul::sys::observe::{Change, Decision, Observer, Told};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{fstat, fstatat};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

/// Where what was removed is, as far as paths go.
const REMOVED: &str = "(removed)";

/// Unsynced bytes of a file: what stood there before. `None`: zeros.
pub struct Undo {
    pub len: u64,
    pub old: Option<Vec<u8>>,
    /// A sync of it failed: it is not on the disk and no further sync will put it there.
    pub lost: bool,
}

/// Mode, modification time and the digest attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    pub mode: u32,
    pub mtime: (i64, i64),
    pub record: Option<Vec<u8>>,
}

/// What happened to a directory's names since its last sync.
#[derive(Debug, Clone)]
pub enum NameChange {
    Set(Vec<u8>, u64),
    Remove(Vec<u8>),
    Rename(Vec<u8>, Vec<u8>, u64),
}

pub struct Inode {
    pub number: u64,
    /// A handle of our own; none for a symlink.
    pub file: Option<File>,
    pub directory: bool,
    /// Where it was last seen, below the destination.
    pub path: PathBuf,
    /// Unsynced writes by offset; they do not overlap.
    pub undo: BTreeMap<u64, Undo>,
    /// Bytes ever written: elsewhere are zeros.
    pub written_to: u64,
    pub durable_size: u64,
    pub durable_metadata: Metadata,
    pub metadata_dirty: bool,
    /// Its write-back failed during somebody else's sync: its own next sync says so.
    pub error_pending: bool,
    pub names: BTreeMap<Vec<u8>, u64>,
    pub changes: Vec<NameChange>,
}

#[derive(Default)]
pub struct State {
    pub inodes: HashMap<u64, Inode>,
    /// In the order in which they came to be, so that nothing depends on their numbers.
    pub order: Vec<u64>,
    /// Inode, offset, length and stream of writes in flight.
    in_flight: Vec<(u64, u64, u64, u64)>,
}

/// Errors that the disk is to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// No room for anything until then.
    Full(Instant),
    /// The next sync of a file's data fails, once.
    SyncFails,
    /// The next sync of a directory fails, once.
    DirectorySyncFails,
    /// The next sync of the journal fails, once.
    JournalSyncFails,
    /// The next write to a file fails, once.
    WriteFails,
    /// The next rename fails, once.
    RenameFails,
}

pub struct Disk {
    pub world: Rc<World>,
    pub root: PathBuf,
    /// Where what has no name at present lies.
    pub side: PathBuf,
    pub side_handle: File,
    pub state: RefCell<State>,
    pub checker: RefCell<Checker>,
    /// The power goes at the change with this number.
    pub cut_at: Cell<Option<u64>>,
    pub changes: Cell<u64>,
    pub trouble: RefCell<Vec<Trouble>>,
    /// Nothing is refused while the model works on the directory itself.
    quiet: Cell<bool>,
}

pub fn inode_of(file: BorrowedFd<'_>) -> u64 {
    fstat(file).map_or(0, |stat| stat.st_ino)
}

pub fn lookup(dir: BorrowedFd<'_>, name: &[u8]) -> Option<u64> {
    fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok().map(|stat| stat.st_ino)
}

pub fn metadata_of(file: &File) -> Metadata {
    let stat = file.metadata().expect("our own handle");
    let mut record = [0; 128];
    let record =
        longhaul::sys::fsys::get_xattr(file.as_fd(), c"user.longhaul", &mut record).map(|n| record[..n].to_vec());
    Metadata { mode: stat.permissions().mode() & 0o7777, mtime: (stat.mtime(), stat.mtime_nsec()), record: record.ok() }
}

impl Inode {
    fn new(number: u64, path: PathBuf) -> Self {
        let open = |write| File::options().read(true).write(write).open(&path);
        let kind = std::fs::symlink_metadata(&path).map(|m| m.file_type());
        let directory = kind.as_ref().is_ok_and(|kind| kind.is_dir());
        let symlink = kind.is_ok_and(|kind| kind.is_symlink());
        let file = if symlink { None } else { Some(open(!directory).expect("a handle of our own")) };
        let durable_metadata = file.as_ref().map_or(Metadata { mode: 0o777, mtime: (0, 0), record: None }, metadata_of);
        Self {
            number,
            file,
            directory,
            path,
            undo: BTreeMap::new(),
            written_to: 0,
            durable_size: 0,
            durable_metadata,
            metadata_dirty: false,
            error_pending: false,
            names: BTreeMap::new(),
            changes: Vec::new(),
        }
    }

    pub fn size(&self) -> u64 {
        self.file.as_ref().map_or(0, |file| file.metadata().map_or(0, |m| m.len()))
    }

    /// Remembers what stands in a range before it is overwritten.
    pub fn keep(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        self.split(offset);
        self.split(end);
        let mut gaps = Vec::new();
        let mut at = offset;
        for (start, undo) in self.undo.range_mut(offset..end) {
            if *start > at {
                gaps.push((at, *start));
            }
            // Written anew: the next sync may put it there after all.
            undo.lost = false;
            at = start + undo.len;
        }
        if at < end {
            gaps.push((at, end));
        }
        for (from, to) in gaps {
            let old = (from < self.written_to).then(|| {
                let mut old = vec![0; (to - from) as usize];
                let mut have = 0;
                while let Ok(count @ 1..) =
                    self.file.as_ref().expect("a file").read_at(&mut old[have..], from + have as u64)
                {
                    have += count;
                    if have == old.len() {
                        break;
                    }
                }
                old
            });
            self.undo.insert(from, Undo { len: to - from, old, lost: false });
        }
        self.written_to = self.written_to.max(end);
    }

    /// Makes `at` a border between unsynced ranges.
    fn split(&mut self, at: u64) {
        let Some((&start, undo)) = self.undo.range_mut(..at).next_back() else { return };
        let first = at - start;
        if first >= undo.len {
            return;
        }
        let tail = Undo {
            len: undo.len - first,
            old: undo.old.as_mut().map(|old| old.split_off(first as usize)),
            lost: undo.lost,
        };
        undo.len = first;
        self.undo.insert(at, tail);
    }

    /// Whether every byte of a range would survive a power cut.
    pub fn is_durable(&self, offset: u64, len: u64) -> bool {
        let end = offset + len;
        let before = self.undo.range(..offset).next_back().is_some_and(|(start, undo)| start + undo.len > offset);
        !before && self.undo.range(offset..end).next().is_none() && self.durable_size >= end
    }

    fn synced_data(&mut self) {
        self.undo.retain(|_, undo| undo.lost);
        self.durable_size = self.size();
    }

    fn synced(&mut self) {
        if self.directory {
            for change in std::mem::take(&mut self.changes) {
                apply(&mut self.names, &change);
            }
        } else {
            self.synced_data();
        }
        if let Some(file) = &self.file {
            self.durable_metadata = metadata_of(file);
        }
        self.metadata_dirty = false;
    }
}

/// A change of names, as it is on the disk.
pub fn apply(names: &mut BTreeMap<Vec<u8>, u64>, change: &NameChange) {
    match change {
        NameChange::Set(name, inode) => drop(names.insert(name.clone(), *inode)),
        NameChange::Remove(name) => drop(names.remove(name)),
        NameChange::Rename(from, to, inode) => {
            if names.get(from) == Some(inode) {
                names.remove(from);
            }
            names.insert(to.clone(), *inode);
        }
    }
}

impl Disk {
    pub fn new(world: Rc<World>, place: &Path, checker: Checker) -> Rc<Self> {
        let (root, side) = (place.join("dst"), place.join("side"));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::create_dir_all(&side).unwrap();
        let disk = Self {
            world,
            side_handle: File::open(&side).unwrap(),
            side,
            state: RefCell::default(),
            checker: RefCell::new(checker),
            cut_at: Cell::new(None),
            changes: Cell::new(0),
            trouble: RefCell::default(),
            quiet: Cell::new(false),
            root: root.clone(),
        };
        let mut inode = Inode::new(0, root);
        inode.number = inode_of(inode.file.as_ref().unwrap().as_fd());
        inode.path = PathBuf::new();
        let mut state = disk.state.borrow_mut();
        state.order.push(inode.number);
        state.inodes.insert(inode.number, inode);
        drop(state);
        Rc::new(disk)
    }

    /// A path for people and for the trace: names carry the transfer's id, which depends on where the test runs.
    fn shown(&self, inode: &Inode) -> String {
        shown(&inode.path)
    }

    fn path_in(&self, state: &State, dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let above = state.inodes.get(&inode_of(dir)).map(|inode| inode.path.clone()).unwrap_or_default();
        above.join(std::ffi::OsStr::from_bytes(name))
    }

    /// Whether trouble of a kind is due; it is used up unless it lasts.
    fn trouble_with(&self, wanted: impl Fn(&Trouble) -> bool) -> bool {
        let mut trouble = self.trouble.borrow_mut();
        let Some(at) = trouble.iter().position(wanted) else { return false };
        if let Trouble::Full(until) = trouble[at] {
            if self.world.now() < until {
                return true;
            }
            trouble.remove(at);
            return false;
        }
        trouble.remove(at);
        true
    }

    /// What refuses a change, if anything does.
    fn refusal(&self, state: &mut State, change: &Change<'_>) -> Option<(&'static str, Errno)> {
        let journal = |state: &State, file: BorrowedFd<'_>| {
            state.inodes.get(&inode_of(file)).is_some_and(|inode| inode.path.ends_with("journal"))
        };
        match change {
            Change::Write { .. } | Change::Allocate { .. } | Change::Create { .. } | Change::MakeDir { .. }
                if self.trouble_with(|t| matches!(t, Trouble::Full(_))) =>
            {
                Some(("disk full", Errno::ENOSPC))
            }
            Change::Write { file, .. }
                if !journal(state, *file) && self.trouble_with(|t| *t == Trouble::WriteFails) =>
            {
                Some(("write error", Errno::EIO))
            }
            Change::Rename { .. } if self.trouble_with(|t| *t == Trouble::RenameFails) => {
                Some(("rename error", Errno::EIO))
            }
            Change::SyncData { file } if journal(state, *file) => {
                self.trouble_with(|t| *t == Trouble::JournalSyncFails).then_some(("journal sync error", Errno::EIO))
            }
            Change::Sync { file } | Change::SyncData { file } | Change::SyncFs { file } => {
                if let (Change::Sync { .. } | Change::SyncData { .. }, Some(inode)) =
                    (change, state.inodes.get_mut(&inode_of(*file)))
                    && std::mem::take(&mut inode.error_pending)
                {
                    return Some(("sync error told late", Errno::EIO));
                }
                let directory = state.inodes.get(&inode_of(*file)).is_some_and(|inode| inode.directory);
                if directory {
                    let fails = self.trouble_with(|t| *t == Trouble::DirectorySyncFails);
                    return fails.then_some(("directory sync error", Errno::EIO));
                }
                if !self.trouble_with(|t| *t == Trouble::SyncFails) {
                    return None;
                }
                let whole = matches!(change, Change::SyncFs { .. });
                for inode in state.inodes.values_mut().filter(|i| whole || i.number == inode_of(*file)) {
                    inode.error_pending = inode.number != inode_of(*file) && inode.undo.values().any(|u| !u.lost);
                    inode.undo.values_mut().for_each(|undo| undo.lost = true);
                }
                Some(("sync error", Errno::EIO))
            }
            _ => None,
        }
        .inspect(|(kind, _)| {
            if let (&"journal sync error", Change::SyncData { file }) = (kind, change)
                && let Some(inode) = state.inodes.get_mut(&inode_of(*file))
            {
                inode.undo.values_mut().for_each(|undo| undo.lost = true);
            }
        })
    }

    /// Moves what a name leads to out of the way, keeping its inode.
    fn set_aside(&self, dir: BorrowedFd<'_>, name: &[u8], inode: u64) -> Result<(), Errno> {
        nix::fcntl::renameat(dir, name, &self.side_handle, inode.to_string().as_bytes())
    }

    /// A name goes; what it led to is kept, for a cut may bring the name back.
    fn remove(
        &self,
        mut state: std::cell::RefMut<'_, State>,
        dir: BorrowedFd<'_>,
        name: &[u8],
        inode: u64,
    ) -> Decision {
        if let Err(errno) = self.set_aside(dir, name, inode) {
            return Decision::Fail(errno);
        }
        if let Some(inode) = state.inodes.get_mut(&inode) {
            self.world.event(format_args!("removed {}", self.shown(inode)));
            inode.path = REMOVED.into();
        }
        drop(state);
        self.changed_name(dir, NameChange::Remove(name.to_vec()));
        Decision::Done
    }

    fn changed_name(&self, dir: BorrowedFd<'_>, change: NameChange) {
        if let Some(inode) = self.state.borrow_mut().inodes.get_mut(&inode_of(dir)) {
            inode.changes.push(change);
        }
    }

    /// A worker's write is on its way.
    pub fn write_begins(&self, file: BorrowedFd<'_>, offset: u64, len: u64, stream: u64) {
        let number = inode_of(file);
        let mut state = self.state.borrow_mut();
        let overlaps =
            |other: &&(u64, u64, u64, u64)| other.0 == number && other.1 < offset + len && offset < other.1 + other.2;
        if let Some(other) = state.in_flight.iter().find(overlaps) {
            let what = state.inodes.get(&number).map(|inode| self.shown(inode)).unwrap_or_default();
            let (other, this) = (other.3, stream);
            self.world.broken(format_args!("{what}: two placers at {offset}: streams {other} and {this}"));
        }
        state.in_flight.push((number, offset, len, stream));
    }

    /// It has completed.
    pub fn write_ends(&self, file: BorrowedFd<'_>, offset: u64, stream: u64) {
        let number = inode_of(file);
        let mut state = self.state.borrow_mut();
        if let Some(at) = state.in_flight.iter().position(|w| (w.0, w.1, w.3) == (number, offset, stream)) {
            state.in_flight.swap_remove(at);
        }
    }

    /// The host has died: its writes with it.
    pub fn host_died(&self) {
        self.world.dead[1].set(true);
        self.state.borrow_mut().in_flight.clear();
    }
}

/// Names carry the transfer's id, which depends on where the test runs.
pub fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    let hex = |c: &char| c.is_ascii_hexdigit();
    let mut out = String::new();
    for part in text.split_inclusive(['/', '.', '-']) {
        let id = part.trim_end_matches(['/', '.', '-']);
        if id.len() >= 16 && id.chars().all(|c| hex(&c)) {
            out.push_str("ID");
            out.push_str(&part[id.len()..]);
        } else {
            out.push_str(part);
        }
    }
    out
}

impl Observer for Disk {
    fn before(&self, change: &Change<'_>) -> Decision {
        if self.quiet.get() {
            return Decision::Go;
        }
        if self.world.dead[1].get() {
            return Decision::Fail(Errno::EIO);
        }
        let number = self.changes.get() + 1;
        self.changes.set(number);
        if self.cut_at.get().is_some_and(|at| number >= at) {
            self.world.dead[1].set(true);
            return Decision::Fail(Errno::EIO);
        }
        let mut state = self.state.borrow_mut();
        if let Some((kind, errno)) = self.refusal(&mut state, change) {
            drop(state);
            self.world.fault(kind, format_args!("change {number}"));
            return Decision::Fail(errno);
        }
        match *change {
            Change::Write { file, offset, bytes } => {
                let mut len = bytes.len();
                let short = self.world.faults.get() && len > 1 && self.world.disk.borrow_mut().percent(3);
                if short {
                    len = self.world.disk.borrow_mut().range(1..len as u64) as usize;
                    self.world.count("short write");
                }
                let known = inode_of(file);
                if let Some(inode) = state.inodes.get_mut(&known) {
                    self.checker.borrow_mut().write(&self.world, inode, offset, len as u64);
                    inode.keep(offset, len as u64);
                }
                return if short { Decision::Short(len) } else { Decision::Go };
            }
            Change::Punch { file, offset, len } => {
                if let Some(inode) = state.inodes.get_mut(&inode_of(file)) {
                    inode.keep(offset, len);
                }
            }
            Change::Truncate { file, len } => {
                if let Some(inode) = state.inodes.get_mut(&inode_of(file)) {
                    let size = inode.size();
                    if len < size {
                        inode.keep(len, size - len);
                    }
                }
            }
            Change::Rename { dir, from, to, replace } => {
                self.checker.borrow_mut().rename(
                    &self.world,
                    &state,
                    lookup(dir, from),
                    &self.path_in(&state, dir, to),
                );
                if let Some(old) = lookup(dir, to)
                    && replace
                    && lookup(dir, from).is_some_and(|new| new != old)
                {
                    if let Err(errno) = self.set_aside(dir, to, old) {
                        return Decision::Fail(errno);
                    }
                    if let Some(inode) = state.inodes.get_mut(&old) {
                        inode.path = REMOVED.into();
                    }
                }
            }
            Change::Unlink { dir, name } => {
                let Some(inode) = lookup(dir, name) else { return Decision::Go };
                return self.remove(state, dir, name, inode);
            }
            Change::RemoveDir { dir, name } => {
                let Some(inode) = lookup(dir, name) else { return Decision::Go };
                let handle = state.inodes.get(&inode).and_then(|inode| inode.file.as_ref());
                let path = handle.map(|file| format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
                if std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
                    return Decision::Fail(Errno::ENOTEMPTY);
                }
                return self.remove(state, dir, name, inode);
            }
            _ => {}
        }
        Decision::Go
    }

    fn after(&self, change: &Change<'_>) {
        if self.quiet.get() {
            return;
        }
        match *change {
            Change::Create { dir, name } | Change::MakeDir { dir, name } | Change::Symlink { dir, name } => {
                let Some(number) = lookup(dir, name) else { return };
                let mut state = self.state.borrow_mut();
                let path = self.path_in(&state, dir, name);
                // An inode that is known and has this name was only opened.
                if state.inodes.get(&number).is_some_and(|inode| inode.path == path) {
                    return;
                }
                let mut inode = Inode::new(number, self.root.join(&path));
                inode.path = path;
                self.world.event(format_args!("new {}", self.shown(&inode)));
                state.order.retain(|known| *known != number);
                state.order.push(number);
                state.inodes.insert(number, inode);
                drop(state);
                self.changed_name(dir, NameChange::Set(name.to_vec(), number));
            }
            Change::Rename { dir, from, to, .. } => {
                let Some(number) = lookup(dir, to) else { return };
                let mut state = self.state.borrow_mut();
                let path = self.path_in(&state, dir, to);
                if let Some(inode) = state.inodes.get_mut(&number) {
                    inode.path = path;
                    self.world.event(format_args!("renamed to {}", self.shown(inode)));
                }
                drop(state);
                self.changed_name(dir, NameChange::Rename(from.to_vec(), to.to_vec(), number));
            }
            Change::Metadata { file } => {
                if let Some(inode) = self.state.borrow_mut().inodes.get_mut(&inode_of(file)) {
                    inode.metadata_dirty = true;
                }
            }
            Change::Write { file, .. } => {
                let state = self.state.borrow();
                let Some(inode) = state.inodes.get(&inode_of(file)) else { return };
                if inode.path.ends_with("journal") {
                    self.checker.borrow_mut().journal_written(&self.world, &state, inode);
                }
            }
            Change::SyncData { file } | Change::Sync { file } => {
                let mut state = self.state.borrow_mut();
                let Some(inode) = state.inodes.get_mut(&inode_of(file)) else { return };
                if matches!(change, Change::SyncData { .. }) {
                    inode.synced_data()
                } else {
                    inode.synced()
                }
                self.world.event(format_args!("synced {}", self.shown(inode)));
                if inode.path.ends_with("journal") {
                    self.checker.borrow_mut().journal_synced(inode);
                }
            }
            Change::SyncFs { .. } => {
                self.state.borrow_mut().inodes.values_mut().for_each(Inode::synced);
                self.world.event(format_args!("synced the file system"));
            }
            Change::Unlink { .. }
            | Change::RemoveDir { .. }
            | Change::Link { .. }
            | Change::Truncate { .. }
            | Change::Allocate { .. }
            | Change::Punch { .. } => {}
        }
    }

    fn told(&self, what: Told<'_>) {
        if !self.world.dead[1].get() {
            self.checker.borrow_mut().told(&self.world, what);
        }
    }
}
