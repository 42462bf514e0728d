//! What a manifest segment finds at the destination: directories made, final names looked at. Blocking, in the pool.

use super::Placement;
use crate::disk::{self, DiskError, Existing, Made, Root};
use crate::manifest::{Entry, EntryKind};
use crate::relpath::RelPath;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One entry with what stands under its final name.
#[derive(Debug)]
pub struct Looked {
    /// As the source told it.
    pub entry: Entry,
    /// Where it goes.
    pub path: RelPath,
    /// What is there, or why that cannot be known.
    pub existing: Result<Existing, DiskError>,
}

/// The memory that a known file takes, counted as long as anything of it is there: what is taken in ahead is bounded by
/// bytes.
#[derive(Debug)]
pub struct Weight {
    bytes: usize,
    sum: Arc<AtomicUsize>,
}

impl Weight {
    pub fn new(bytes: usize, sum: &Arc<AtomicUsize>) -> Arc<Self> {
        sum.fetch_add(bytes, Ordering::Relaxed);
        Arc::new(Self { bytes, sum: sum.clone() })
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.sum.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Looks at entries of a segment; makes missing directories unless it is a dry run.
pub fn look(entries: Vec<Entry>, root: &Root, placement: &Placement, dry_run: bool) -> Vec<Looked> {
    crate::sys::points::at("destination.segment");
    let mut fresh: HashSet<RelPath> = HashSet::new();
    let mut looked = Vec::with_capacity(entries.len());
    for entry in entries {
        let Some(path) =
            placement.prefixes.get(usize::from(entry.root)).and_then(|p| p.join(entry.path.as_bytes()).ok())
        else {
            let path = entry.path.clone();
            let existing = Err(DiskError::Reserved { path: path.clone() });
            looked.push(Looked { entry, path, existing });
            continue;
        };
        // What lies in a directory that we have just made cannot be there yet: no need to ask.
        let parent_is_new = path.split_last().is_some_and(|(parent, _)| fresh.contains(&parent));
        let mut existing = if parent_is_new { Ok(Existing::None) } else { disk::existing(root, &path) };
        if entry.kind == EntryKind::Dir && !dry_run {
            match existing {
                Ok(Existing::None) => match root.make_dir(&path) {
                    Ok(Made::New) => drop(fresh.insert(path.clone())),
                    Ok(_) => {}
                    Err(error) => existing = Err(error),
                },
                Ok(Existing::Dir(_)) if path != placement.home => match disk::lock::has_live_lock_below(root, &path) {
                    Ok(None) => {}
                    Ok(Some(_)) => existing = Err(DiskError::Busy { path: path.clone() }),
                    Err(error) => existing = Err(error),
                },
                _ => {}
            }
        }
        looked.push(Looked { entry, path, existing });
    }
    if !dry_run {
        sync_parents(&mut looked, root);
    }
    looked
}

/// Makes the names of a segment's directories durable before anything is published in them: those that were made now, and
/// those that a killed run may have made and not synced.
fn sync_parents(looked: &mut [Looked], root: &Root) {
    let mut synced: HashMap<RelPath, Option<DiskError>> = HashMap::new();
    for one in looked.iter_mut().filter(|one| one.entry.kind == EntryKind::Dir && one.existing.is_ok()) {
        let Some((parent, _)) = one.path.split_last() else { continue };
        let failed = synced.entry(parent).or_insert_with_key(|dir| root.sync_dir(dir).err());
        if let Some(error) = failed {
            one.existing = Err(error.clone());
        }
    }
}
