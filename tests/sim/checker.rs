//! The rules, each checked when it could be broken and again on what a power cut has left.

use crate::disk::{Inode, State, metadata_of, shown};
use crate::tree::{Tree, TreeFile};
use crate::world::World;
use longhaul::grid::CHUNK_SIZE;
use longhaul::ids::PathKey;
use longhaul::journal::{Checkpoint, FileState, recover};
use longhaul::sys::observe::Told;
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The name that the tree has at the destination.
pub const OUT: &str = "out";

pub struct Checker {
    tree: &'static Tree,
    /// What the journal says as it was written, and as it was last synced.
    written: Checkpoint,
    synced: Checkpoint,
    told_files: BTreeSet<[u8; 16]>,
    told_chunks: BTreeSet<([u8; 16], u32)>,
    /// A chunk's content was compared when its record was written.
    pub compared: u64,
}

/// Where a name would be published: itself, or what its part file becomes.
fn final_path(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.as_bytes().to_vec()).unwrap_or_default();
    let text = String::from_utf8_lossy(&name).into_owned();
    match text.strip_prefix('.').and_then(|rest| rest.rsplit_once(".lh-")) {
        Some((name, _)) => path.with_file_name(name),
        None => path.to_owned(),
    }
}

fn place_of(file: &TreeFile) -> PathBuf {
    if file.path.as_os_str().is_empty() { OUT.into() } else { Path::new(OUT).join(&file.path) }
}

pub fn journal_of(inode: &Inode) -> Vec<u8> {
    let mut bytes = vec![0; inode.size() as usize];
    let file = inode.file.as_ref().expect("a file");
    file.read_exact_at(&mut bytes, 0).expect("our own handle");
    bytes
}

/// Whether a file has the bytes that it is to have in a range.
fn same(inode: &Inode, content: &[u8], offset: u64) -> bool {
    let Some(file) = &inode.file else { return false };
    let mut buffer = vec![0; (256 << 10).min(content.len())];
    let mut at = 0;
    while at < content.len() {
        let step = buffer.len().min(content.len() - at);
        if file.read_exact_at(&mut buffer[..step], offset + at as u64).is_err() {
            return false;
        }
        if buffer[..step] != content[at..at + step] {
            return false;
        }
        at += step;
    }
    true
}

fn chunk_of(content: &[u8], index: u32) -> (&[u8], u64) {
    let start = u64::from(index) * CHUNK_SIZE;
    let end = (start + CHUNK_SIZE).min(content.len() as u64);
    (&content[(start.min(end)) as usize..end as usize], start)
}

impl Checker {
    pub fn new(tree: &'static Tree) -> Self {
        Self {
            tree,
            written: Checkpoint::default(),
            synced: Checkpoint::default(),
            told_files: BTreeSet::new(),
            told_chunks: BTreeSet::new(),
            compared: 0,
        }
    }

    fn at(&self, path: &Path) -> Option<&'static TreeFile> {
        self.tree.files.iter().find(|file| place_of(file) == path)
    }

    fn inode_for<'s>(state: &'s State, file: &TreeFile) -> Option<&'s Inode> {
        let place = place_of(file);
        let mut found: Vec<&Inode> = state
            .order
            .iter()
            .filter_map(|number| state.inodes.get(number))
            .filter(|inode| !inode.directory && final_path(&inode.path) == place)
            .collect();
        // The final name counts before a part file.
        found.sort_by_key(|inode| inode.path != place);
        found.first().copied()
    }

    /// Every name on the way to a file is durable, its own included.
    fn name_is_durable(state: &State, path: &Path, inode: u64) -> bool {
        let mut child = inode;
        for part in path.ancestors() {
            let (Some(name), Some(above)) = (part.file_name(), part.parent()) else { return true };
            let directory = |i: &&Inode| i.directory && i.path == above;
            let found = state.order.iter().filter_map(|number| state.inodes.get(number)).find(directory);
            let Some(dir) = found else { return false };
            if dir.names.get(name.as_bytes()) != Some(&child) {
                return false;
            }
            child = dir.number;
        }
        true
    }

    /// Rule: a Durable span is never written again.
    pub fn write(&mut self, world: &World, inode: &Inode, offset: u64, len: u64) {
        let Some(file) = self.at(&final_path(&inode.path)) else { return };
        let Some(known) = self.synced.files.get(&PathKey(file.key)) else { return };
        for index in (offset / CHUNK_SIZE) as u32..=((offset + len.max(1) - 1) / CHUNK_SIZE) as u32 {
            let (content, start) = chunk_of(&file.content, index);
            let is_durable = inode.is_durable(start, content.len() as u64);
            if known.chunks.contains(index) && is_durable && same(inode, content, start) {
                world.broken(format_args!("{}: durable chunk {index} is written again", shown(&inode.path)));
            }
        }
    }

    /// Rule: a final name only for what is synced whole, and announced durably.
    pub fn rename(&mut self, world: &World, state: &State, inode: Option<u64>, to: &Path) {
        let (Some(file), Some(inode)) = (self.at(to), inode.and_then(|number| state.inodes.get(&number))) else {
            return;
        };
        let name = shown(to);
        if !inode.is_durable(0, file.content.len() as u64) || inode.metadata_dirty {
            world.broken(format_args!("{name}: renamed before it was synced"));
        }
        let meta = inode.file.as_ref().map(metadata_of);
        if meta.is_none_or(|meta| (meta.mode, meta.mtime) != (file.mode, file.mtime)) {
            world.broken(format_args!("{name}: renamed before it had its mode and time"));
        }
        let state = self.synced.files.get(&PathKey(file.key)).map(|known| known.state);
        if !matches!(state, Some(FileState::Publishing { inode: announced, .. }) if announced == inode.number) {
            world.broken(format_args!("{name}: renamed before that was announced durably"));
        }
    }

    /// Rule: the journal speaks only of what is durable, and right, before it speaks.
    pub fn journal_written(&mut self, world: &World, state: &State, journal: &Inode) {
        let Ok(recovered) = recover(&journal_of(journal)) else { return };
        let now = recovered.checkpoint;
        for file in &self.tree.files {
            let key = PathKey(file.key);
            let name = file.path.display();
            let inode = Self::inode_for(state, file);
            let known = self.written.files.get(&key);
            if let Some(entry) = now.files.get(&key) {
                for (index, _) in entry.chunks.iter() {
                    if known.is_some_and(|known| known.chunks.contains(index)) {
                        continue;
                    }
                    let (content, start) = chunk_of(&file.content, index);
                    self.compared += 1;
                    match inode {
                        None => world.broken(format_args!("{name}: chunk {index} recorded, but there is no file")),
                        Some(inode) if !inode.is_durable(start, content.len() as u64) => {
                            world.broken(format_args!("{name}: chunk {index} recorded before it was synced"));
                        }
                        Some(inode) if !same(inode, content, start) => {
                            world.broken(format_args!("{name}: chunk {index} recorded, but its bytes are wrong"));
                        }
                        Some(inode) if !Self::name_is_durable(state, &inode.path, inode.number) => {
                            world.broken(format_args!(
                                "{name}: chunk {index} recorded before the part file's name was synced"
                            ));
                        }
                        Some(_) => {}
                    }
                }
                let announced = matches!(entry.state, FileState::Publishing { .. });
                if announced && known.is_none_or(|known| known.state != entry.state) {
                    let synced = inode.is_some_and(|i| i.is_durable(0, file.content.len() as u64));
                    if !synced {
                        world.broken(format_args!("{name}: its publishing was recorded before it was synced"));
                    }
                }
            }
            if now.done.contains_key(&key) && !self.written.done.contains_key(&key) {
                let place = place_of(file);
                let found = inode.filter(|inode| inode.path == place);
                match found {
                    None => world.broken(format_args!("{name}: done was recorded, but there is no such name")),
                    Some(inode) if !Self::name_is_durable(state, &place, inode.number) => {
                        world.broken(format_args!("{name}: done was recorded before its name was synced"));
                    }
                    Some(inode) => self.published_right(world, file, inode),
                }
            }
        }
        self.written = now;
    }

    fn published_right(&self, world: &World, file: &TreeFile, inode: &Inode) {
        let name = file.path.display();
        if inode.size() != file.content.len() as u64 || !same(inode, &file.content, 0) {
            world.broken(format_args!("{name}: published with wrong bytes"));
        }
        let meta = inode.file.as_ref().map(metadata_of);
        if meta.is_none_or(|meta| (meta.mode, meta.mtime) != (file.mode, file.mtime)) {
            world.broken(format_args!("{name}: published with wrong mode or time"));
        }
        if !inode.is_durable(0, file.content.len() as u64) || inode.metadata_dirty {
            world.broken(format_args!("{name}: done before it was synced"));
        }
    }

    /// Rule: whatever the disk holds of the journal, it knows all that was synced, and nothing that is not durable.
    pub fn recovered(&self, world: &World, state: &State, recovered: &Checkpoint) {
        for file in &self.tree.files {
            let (key, name) = (PathKey(file.key), file.path.display());
            let inode = Self::inode_for(state, file);
            let after = recovered.files.get(&key);
            let is_done = recovered.done.contains_key(&key);
            for (index, _) in self.synced.files.get(&key).into_iter().flat_map(|known| known.chunks.iter()) {
                let forgotten = self.written.files.get(&key).is_none_or(|known| !known.chunks.contains(index));
                if !forgotten && !is_done && after.is_none_or(|known| !known.chunks.contains(index)) {
                    world.broken(format_args!("{name}: the record of chunk {index} is lost in a state of the disk"));
                }
            }
            for (index, _) in after.into_iter().flat_map(|known| known.chunks.iter()) {
                let (content, start) = chunk_of(&file.content, index);
                if !inode.is_some_and(|inode| inode.is_durable(start, content.len() as u64)) {
                    world.broken(format_args!("{name}: chunk {index} is recorded in a state of the disk without it"));
                }
            }
            let place = place_of(file);
            let published = inode.filter(|inode| inode.path == place);
            if is_done && !published.is_some_and(|inode| Self::name_is_durable(state, &place, inode.number)) {
                world.broken(format_args!("{name}: done in a state of the disk without it"));
            }
        }
    }

    pub fn journal_synced(&mut self, journal: &Inode) {
        if let Ok(recovered) = recover(&journal_of(journal)) {
            self.synced = recovered.checkpoint;
        }
    }

    /// Rule: nothing is told before the journal's sync.
    pub fn told(&mut self, world: &World, what: Told<'_>) {
        match what {
            Told::Chunks(key, chunks) => {
                let path_key = PathKey(*key);
                for index in chunks {
                    let known = self.synced.files.get(&path_key).is_some_and(|f| f.chunks.contains(*index));
                    if !known && !self.synced.done.contains_key(&path_key) {
                        world.broken(format_args!("a chunk was told durable before the journal was synced"));
                    }
                    self.told_chunks.insert((*key, *index));
                }
            }
            Told::File(key) => {
                if !self.synced.done.contains_key(&PathKey(*key)) {
                    world.broken(format_args!("a file was told durable before the journal was synced"));
                }
                self.told_files.insert(*key);
            }
        }
    }

    /// Rule: what was durable is there after every cut, and the journal can be read. A kill that leaves the kernel with
    /// what it has in memory makes nothing of that durable.
    pub fn after_cut(&mut self, world: &World, state: &State, power: bool) {
        let inodes = || state.order.iter().filter_map(|number| state.inodes.get(number));
        let journal = inodes().find(|inode| inode.path.ends_with("journal"));
        let recovered = match journal.map(|journal| recover(&journal_of(journal))) {
            Some(Ok(recovered)) => recovered.checkpoint,
            Some(Err(error)) => return world.broken(format_args!("the journal cannot be read after a cut: {error}")),
            None => Checkpoint::default(),
        };
        for file in &self.tree.files {
            let key = PathKey(file.key);
            let name = file.path.display();
            let inode = Self::inode_for(state, file);
            let there = inode.filter(|inode| inode.path == place_of(file));
            let published = there.is_some_and(|inode| same(inode, &file.content, 0));
            if self.told_files.contains(&file.key) || recovered.done.contains_key(&key) {
                match there {
                    Some(inode) => self.published_right(world, file, inode),
                    None => world.broken(format_args!("{name}: it was durable and is lost after a cut")),
                }
            }
            let before = self.synced.files.get(&key);
            let after = recovered.files.get(&key);
            for (index, _) in before.into_iter().flat_map(|known| known.chunks.iter()) {
                let forgotten = self.written.files.get(&key).is_some_and(|known| !known.chunks.contains(index));
                let kept = after.is_some_and(|known| known.chunks.contains(index));
                if !kept && !forgotten && !published && !recovered.done.contains_key(&key) {
                    world.broken(format_args!("{name}: the record of chunk {index} is lost after a cut"));
                }
            }
            for (index, _) in after.into_iter().flat_map(|known| known.chunks.iter()) {
                let (content, start) = chunk_of(&file.content, index);
                if !inode.is_some_and(|inode| same(inode, content, start)) {
                    world.broken(format_args!("{name}: chunk {index} is recorded and lost after a cut"));
                }
            }
        }
        if power {
            self.synced = recovered.clone();
        }
        self.written = recovered;
    }

    /// Rule: after the verdict and a cut that keeps nothing unsynced, the destination is the source.
    pub fn finished(&self, world: &World, root: &Path) {
        let out = root.join(OUT);
        let mut wanted = BTreeSet::new();
        for file in &self.tree.files {
            let place = root.join(place_of(file));
            let name = file.path.display();
            wanted.insert(place.clone());
            match std::fs::read(&place) {
                Err(error) => world.broken(format_args!("{name}: missing after the verdict: {error}")),
                Ok(bytes) if bytes != file.content => {
                    world.broken(format_args!("{name}: other bytes than the source after the verdict"));
                }
                Ok(_) => {}
            }
            Self::same_metadata(world, &place, file.mode, file.mtime);
        }
        for dir in &self.tree.dirs {
            let place = out.join(&dir.path);
            Self::same_metadata(world, &place, dir.mode, dir.mtime);
            wanted.insert(place);
        }
        for (link, target) in &self.tree.links {
            if std::fs::read_link(out.join(link)).ok().as_ref() != Some(target) {
                world.broken(format_args!("{}: the link is not there after the verdict", link.display()));
            }
            wanted.insert(out.join(link));
        }
        let mut open = vec![root.to_owned()];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
                let path = entry.path();
                if !wanted.contains(path.as_path()) && !wanted.contains(&path.join("")) {
                    let left = path.strip_prefix(root).unwrap_or(&path);
                    world.broken(format_args!("{}: left behind after the verdict", shown(left)));
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    open.push(path);
                }
            }
        }
    }

    fn same_metadata(world: &World, place: &Path, mode: u32, mtime: (i64, i64)) {
        let Ok(meta) = std::fs::symlink_metadata(place) else { return };
        let there = (meta.permissions().mode() & 0o7777, (meta.mtime(), meta.mtime_nsec()));
        if there != (mode, mtime) {
            let name = place.file_name().unwrap_or_default().display();
            world.broken(format_args!(
                "{name}: mode and time {there:?} instead of {:?} after the verdict",
                (mode, mtime)
            ));
        }
    }
}
