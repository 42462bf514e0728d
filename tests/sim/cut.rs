//! A power cut: the destination's directory becomes what a disk might hold.

use crate::disk::{Disk, Inode, Metadata, State, apply, metadata_of};
use crate::rng::Rng;
use nix::fcntl::renameat;
use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// The unit that a disk writes whole.
const SECTOR: u64 = 512;

/// How much of what was not synced is there after all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    /// None of it: what a promise must bear.
    Nothing,
    /// All of it: a process that was killed.
    Everything,
    /// Some of it, as the seed says: whole, torn or not at all.
    Some,
}

/// Puts the directory into the state that the disk holds. `counted`: it is one of the seed's faults.
pub fn cut(disk: &Disk, survival: Survival, counted: bool) {
    if survival == Survival::Everything {
        return; // The kernel lives on: what it has in memory is as good as written.
    }
    let mut rng = disk.world.disk.borrow_mut();
    let mut state = disk.state.borrow_mut();
    let state = &mut *state;
    let (mut torn, mut undone, mut names_lost) = (0, 0, 0);
    let order = state.order.clone();
    let before: BTreeMap<u64, Metadata> =
        state.inodes.iter().filter_map(|(number, inode)| Some((*number, metadata_of(inode.file.as_ref()?)))).collect();
    for inode in order.iter().filter_map(|number| state.inodes.get(number)) {
        if !inode.directory && inode.file.is_some() {
            let (some_undone, some_torn) = cut_file(inode, survival, &mut rng);
            undone += some_undone;
            torn += some_torn;
        }
    }
    // Names: each directory on its own.
    let mut wanted: BTreeMap<u64, BTreeMap<Vec<u8>, u64>> = BTreeMap::new();
    for inode in order.iter().filter_map(|number| state.inodes.get(number)).filter(|inode| inode.directory) {
        let mut names = inode.names.clone();
        let whole = match survival {
            Survival::Some => rng.pick(&[Some(true), Some(false), None, None]),
            _ => Some(false),
        };
        for change in &inode.changes {
            if whole.unwrap_or_else(|| rng.percent(50)) {
                apply(&mut names, change);
            } else {
                names_lost += 1;
            }
        }
        wanted.insert(inode.number, names);
    }
    place_names(disk, state, &order, &wanted);
    // Metadata last: what was done here has changed times.
    for inode in order.iter().filter_map(|number| state.inodes.get(number)) {
        let (Some(file), Some(before)) = (&inode.file, before.get(&inode.number)) else { continue };
        let lost = inode.metadata_dirty && (survival == Survival::Nothing || rng.percent(50));
        let then = if lost { &inode.durable_metadata } else { before };
        let _ = fchmod(file, Mode::from_bits_truncate(then.mode));
        // A record that cannot be read is as good as none.
        let record = then.record.as_deref().unwrap_or(b"none");
        if !inode.directory && then.record != metadata_of(file).record {
            let _ = longhaul::sys::fsys::set_xattr(file.as_fd(), c"user.longhaul", record);
        }
        let _ = futimens(file, &TimeSpec::UTIME_OMIT, &TimeSpec::new(then.mtime.0, then.mtime.1));
    }
    drop(rng);
    // What is there now is what the disk holds.
    for inode in state.inodes.values_mut() {
        inode.undo.clear();
        inode.durable_size = inode.size();
        inode.metadata_dirty = false;
        inode.changes.clear();
        if let Some(file) = &inode.file {
            inode.durable_metadata = metadata_of(file);
        }
    }
    disk.world.event(format_args!("disk after the cut: {undone} ranges undone, {torn} torn, {names_lost} names lost"));
    for (kind, count) in [("unsynced write lost", undone), ("torn write", torn), ("directory entry lost", names_lost)] {
        if count > 0 && counted {
            disk.world.count(kind);
        }
    }
}

/// Undoes a part of a file's unsynced writes; how many ranges went, and how many were torn.
fn cut_file(inode: &Inode, survival: Survival, rng: &mut Rng) -> (u64, u64) {
    let file = inode.file.as_ref().expect("a file");
    let size = inode.size();
    let grow = inode.durable_size > size;
    let size_lost = inode.durable_size != size
        && match survival {
            Survival::Nothing => true,
            _ => rng.percent(50),
        };
    if size_lost {
        file.set_len(inode.durable_size).expect("our own handle");
    }
    let (mut undone, mut torn) = (0, 0);
    for (start, undo) in &inode.undo {
        let restored = size_lost && grow && start + undo.len > size;
        let fate = match survival {
            Survival::Nothing => 0,
            _ if restored || undo.lost => 0,
            _ => rng.range(0..3),
        };
        let now = if size_lost { inode.durable_size } else { size };
        let put_back = |from: u64, to: u64| {
            let to = to.min(now);
            if from >= to {
                return;
            }
            let (a, b) = ((from - start) as usize, (to - start) as usize);
            let old = undo.old.as_ref().map_or_else(|| vec![0; b - a], |old| old[a..b].to_vec());
            file.write_all_at(&old, from).expect("our own handle");
        };
        match fate {
            0 => {
                undone += 1;
                put_back(*start, start + undo.len);
            }
            1 => {}
            _ => {
                // Torn: a beginning, an end, or any sectors of it.
                torn += 1;
                let sectors = (start + undo.len).div_ceil(SECTOR) - start / SECTOR;
                let border = rng.range(0..sectors + 1);
                let how = rng.range(0..3);
                let mut mix = rng.clone();
                rng.next();
                for sector in 0..sectors {
                    let lost = match how {
                        0 => sector >= border,
                        1 => sector < border,
                        _ => mix.percent(50),
                    };
                    if lost {
                        let from = (start / SECTOR + sector) * SECTOR;
                        put_back(from.max(*start), (from + SECTOR).min(start + undo.len));
                    }
                }
            }
        }
    }
    (undone, torn)
}

/// Renames until every directory has the names that it is to have. What no directory has is gone.
fn place_names(disk: &Disk, state: &mut State, order: &[u64], wanted: &BTreeMap<u64, BTreeMap<Vec<u8>, u64>>) {
    for number in order {
        let (Some(names), Some(dir)) = (wanted.get(number), state.inodes.get(number)) else { continue };
        let handle = dir.file.as_ref().expect("a directory's handle");
        let listed: Vec<Vec<u8>> = std::fs::read_dir(format!("/proc/self/fd/{}", handle.as_raw_fd()))
            .map(|entries| entries.filter_map(Result::ok).map(|e| e.file_name().as_bytes().to_vec()).collect())
            .unwrap_or_default();
        for name in listed {
            let inode = crate::disk::lookup(handle.as_fd(), &name).unwrap_or(0);
            if names.get(&name) != Some(&inode) {
                renameat(handle, name.as_slice(), &disk.side_handle, inode.to_string().as_bytes())
                    .expect("setting a name aside");
            }
        }
    }
    let mut placed = HashSet::new();
    let mut paths: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for number in order {
        let (Some(names), Some(dir)) = (wanted.get(number), state.inodes.get(number)) else { continue };
        let handle = dir.file.as_ref().expect("a directory's handle");
        for (name, inode) in names {
            // One inode has one name: of two that survived, of an atomic rename torn apart, the later counts.
            if !placed.insert(*inode) {
                continue;
            }
            let aside = inode.to_string();
            if crate::disk::lookup(disk.side_handle.as_fd(), aside.as_bytes()).is_some() {
                let _ = renameat(&disk.side_handle, aside.as_bytes(), handle, name.as_slice());
            }
        }
    }
    // What is reachable from the root, and where.
    let root = order[0];
    let mut open = vec![(root, PathBuf::new())];
    let mut reached = BTreeSet::new();
    while let Some((number, path)) = open.pop() {
        if !reached.insert(number) {
            continue;
        }
        for (name, inode) in wanted.get(&number).into_iter().flatten() {
            open.push((*inode, path.join(std::ffi::OsStr::from_bytes(name))));
        }
        paths.insert(number, path);
    }
    for number in order {
        let Some(inode) = state.inodes.get_mut(number) else { continue };
        if let Some(path) = paths.get(number) {
            inode.path = path.clone();
        }
        if let Some(names) = wanted.get(number) {
            inode.names = names.clone();
        }
    }
    state.order.retain(|number| reached.contains(number));
    state.inodes.retain(|number, _| reached.contains(number));
    for entry in std::fs::read_dir(&disk.side).into_iter().flatten().filter_map(Result::ok) {
        let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let _ = if directory { std::fs::remove_dir_all(entry.path()) } else { std::fs::remove_file(entry.path()) };
    }
}
