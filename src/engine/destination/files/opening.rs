//! Blocking work on files that are there: a part file of an earlier run, and what stands under a final name.

use super::*;

/// Blocking: opens the part file of an earlier run, or a new one, and finds out which chunks of it can be kept. `None`
/// when the journal knows chunks of a part file that is not there: it has to forget them before there is a new one.
// Each argument is one fact about the file, and the pool's job has them by these names.
#[allow(clippy::too_many_arguments)]
pub(super) fn open_part(
    root: &Root,
    probes: &disk::ProbeCache,
    planned: &Planned,
    id: &TransferId,
    extents: Option<&[Span]>,
    known: Vec<(u32, Digest)>,
    old: Vec<u32>,
    (wish, home, unread): (IoWish, &RelPath, bool),
) -> Result<Option<OpenedPart>, disk::DiskError> {
    let (dir, _) = root.parent_of(&planned.to)?;
    let facts = probes.destination_of(root, home, id, &dir)?;
    let plan = write_plan(&facts, planned.size, wish);
    let grid = Grid::new(planned.size).expect("sizes are checked when a manifest comes in");
    let lost = |error: &disk::DiskError| {
        matches!(error, disk::DiskError::ForeignPart { .. } | disk::DiskError::NotRegular { .. })
    };
    // In a file with holes old data could come to lie in a new hole: there the old version is no use.
    let old = if extents.is_some() { Vec::new() } else { old };
    let reopened = if !old.is_empty() {
        PartFile::adopt(root, &planned.to, id, planned.size, &plan)
    } else if !known.is_empty() {
        PartFile::reopen(root, &planned.to, id, planned.size, &plan)
    } else {
        Ok(None)
    };
    let reopened = match reopened {
        Ok(None) if !known.is_empty() => return Ok(None),
        Err(error) if lost(&error) && !known.is_empty() => return Ok(None),
        Err(error) if lost(&error) => None,
        other => other?,
    };
    let fresh = reopened.is_none();
    let (mut kept, mut forget) = (Vec::new(), Vec::new());
    let part = match reopened {
        Some(part) => {
            (kept, forget) = rehash(&part, grid, known, unread);
            part
        }
        None => {
            PartFile::discard(root, &planned.to, id)?;
            PartFile::create(root, &planned.to, id, planned.size, extents, &plan)?
        }
    };
    crate::sys::points::at("destination.part-open");
    let old = if fresh { HashMap::new() } else { digest_old(&part, grid, &old, &kept) };
    let zeros = match extents {
        Some(extents) => holes(&part, grid, extents, &kept, fresh)?,
        None => Vec::new(),
    };
    Ok(Some(OpenedPart { part, plan, kept, forget, zeros, old, fresh, volatile: facts.kind.is_volatile() }))
}

/// Chunks without data, with the digests of their zeros. Extents are in order and do not overlap.
fn holes(
    part: &PartFile,
    grid: Grid,
    extents: &[Span],
    kept: &[(u32, Digest)],
    fresh: bool,
) -> Result<Vec<(u32, Digest)>, disk::DiskError> {
    let kept: std::collections::HashSet<u32> = kept.iter().map(|(index, _)| *index).collect();
    let mut whole = digest::ChunkHasher::default();
    whole.update_zeros(CHUNK_SIZE);
    let mut zeros = Vec::new();
    for index in 0..grid.chunks() {
        let span = grid.span(index).expect("below chunks()");
        let next = extents.partition_point(|extent| extent.end() <= span.offset);
        if extents.get(next).is_some_and(|extent| extent.offset < span.end()) || kept.contains(&index) {
            continue;
        }
        if !fresh {
            part.punch(span)?;
        }
        let mut hasher = if span.len == CHUNK_SIZE { whole.clone() } else { digest::ChunkHasher::default() };
        if span.len < CHUNK_SIZE {
            hasher.update_zeros(span.len);
        }
        zeros.push((index, hasher.finish(span)));
    }
    Ok(zeros)
}

/// Digests the last chunks that the journal knows once more: a storage that lied about its last flush shows here. `all`
/// of them where this run is to say VERIFIED, and an earlier one did not look.
pub(super) fn rehash(
    part: &PartFile,
    grid: Grid,
    mut known: Vec<(u32, Digest)>,
    all: bool,
) -> (Vec<(u32, Digest)>, Vec<u32>) {
    use rayon::prelude::*;
    known.sort_unstable_by_key(|(index, _)| *index);
    let trusted = if all { 0 } else { known.len().saturating_sub((REHASH_BYTES / CHUNK_SIZE) as usize) };
    let check = known.split_off(trusted);
    let checked: Vec<(u32, Digest, bool)> = check
        .into_par_iter()
        .map(|(index, want)| {
            let Some(span) = grid.span(index) else { return (index, want, false) };
            let mut buffer = disk::AlignedBuf::new(span.len as usize);
            let bytes = &mut buffer[..span.len as usize];
            let same = part.read_back(span.offset, bytes).is_ok() && digest::chunk(bytes, span.offset) == want;
            (index, want, same)
        })
        .collect();
    let forget = checked.iter().filter(|(_, _, same)| !same).map(|(index, ..)| *index).collect();
    known.extend(checked.into_iter().filter(|(_, _, same)| *same).map(|(index, digest, _)| (index, digest)));
    (known, forget)
}

/// Blocking: the chunk digests of what stands under a final name.
pub(super) fn digest_existing(root: &Root, path: &RelPath, size: u64) -> Result<Vec<Digest>, disk::DiskError> {
    use std::os::unix::fs::FileExt;
    let grid = Grid::new(size).expect("sizes are checked when a manifest comes in");
    let file = disk::open_existing(root, path)?;
    let mut buffer = vec![0; CHUNK_SIZE.min(size) as usize];
    let mut digests = Vec::with_capacity(grid.chunks() as usize);
    for index in 0..grid.chunks() {
        let span = grid.span(index).expect("below chunks()");
        let bytes = &mut buffer[..span.len as usize];
        file.read_exact_at(bytes, span.offset)
            .map_err(|_| disk::DiskError::Short { path: path.clone(), missing: span.len })?;
        digests.push(digest::chunk(bytes, span.offset));
    }
    Ok(digests)
}
