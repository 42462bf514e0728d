//! What a manifest segment finds at the destination: directories made, final names looked at. Blocking, in the pool.

use super::Placement;
use crate::disk::{self, DiskError, Existing, Made, Root};
use crate::manifest::{Entry, EntryKind, Segment};
use crate::relpath::RelPath;
use std::collections::HashSet;

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
    crate::sys::points::at("destination.segment");
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
    looked
}
