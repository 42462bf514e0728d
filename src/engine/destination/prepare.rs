//! What a manifest segment finds at the destination: directories made, final names looked at. Blocking, in the pool.

use super::Placement;
use crate::disk::{self, DiskError, Existing, Made, Root};
use crate::manifest::{Entry, EntryKind, Segment};
use crate::relpath::RelPath;
use std::collections::{HashMap, HashSet};

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

/// Looks at every entry of a segment; makes missing directories unless it is a dry run.
pub fn look(segment: Segment, root: &Root, placement: &Placement, dry_run: bool) -> Vec<Looked> {
    let mut fresh: HashSet<RelPath> = HashSet::new();
    let mut looked = Vec::with_capacity(segment.entries.len());
    for entry in segment.entries {
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
