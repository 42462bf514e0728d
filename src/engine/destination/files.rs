//! The files of a session: planned, bound, opened, fetched by chunks or in packs, sealed, and handed to the commit.

use super::prepare::Looked;
use super::run::{Done, Run, SMALL_OPEN_MAX};
use crate::checksum::{Combinable, Combiner, Sums, hash_reader};
use crate::digest::{self, Digest};
use crate::disk::{self, Existing, IoWish, Meta, PartFile, Root, WritePlan, create_small, write_plan};
use crate::engine::commit::{CommitFault, CreatedSmall, Durable, PublishFile};
use crate::engine::error::{Class, TransferError};
use crate::engine::plan::{Action, decide};
use crate::engine::source::{disk_error, escape_text, mode_word};
use crate::engine::spec::{ChecksumKind, Expected, IoChoice, Verify};
use crate::engine::worker::{ChunkFault, Claim, Command, Event, PackBody, StreamKey, TargetIo};
use crate::grid::{CHUNK_SIZE, Grid, Span};
use crate::ids::{Handle, PathKey, TransferId};
use crate::journal::{DoneFile, FileRecord, Forget};
use crate::limits::{PACK_MAX_FILES, PACK_WANT_MAX_BYTES};
use crate::manifest::{EntryKind, Mtime, Segment};
use crate::relpath::{RelPath, escape};
use crate::sys::SLOT_HEAD;
use crate::wire::control::{BATCH_MAX, Bind, Bound, Message, Sealed};
use crate::wire::data::{PackEntry, PackItem, Run as ChunkRun, Status};
use std::sync::Arc;

/// Big files open at once: enough to keep the pipes full across Bind round trips, far from any descriptor limit.
const OPEN_MAX: usize = 128;
/// Payload of one pack want.
const PACK_BYTES: u64 = 512 << 10;
/// Packs asked of one stream at once.
const PACKS_PER_STREAM: usize = 3;
/// Chunks asked of one stream at once, below 1 ms of round trip and above.
const DEPTH_NEAR: usize = 4;
const DEPTH_FAR: usize = 8;
/// What the socket buffers of one stream hold, both ends together: near streams have fixed ones, further ones grow to
/// what the kernel allows.
const SOCKETS_NEAR: u64 = 2 << 20;
const SOCKETS_FAR: u64 = 8 << 20;
/// Chunks in one claim: neighbours, so that the source's disk reads on.
const RUN_CHUNKS: u32 = 2;
/// Tries of a chunk, a pack or a poisoned file before its file fails.
const TRIES: u32 = 5;
/// Bytes at the end of what the journal has that are digested again on resume.
const REHASH_BYTES: u64 = 64 << 20;
/// Binds in one message: the paths must fit a control frame.
const BIND_BYTES: usize = 64 << 10;

/// A file to fetch.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub root: u16,
    pub path: RelPath,
    pub to: RelPath,
    pub key: PathKey,
    pub size: u64,
    pub sparse: bool,
    pub mode: u32,
    pub mtime: Mtime,
    /// What stands there is to be compared, not replaced.
    pub prove: bool,
    pub tries: u32,
}

/// A small file on its way.
pub(super) struct Small {
    pub planned: Planned,
}

/// A pack asked for.
pub(super) struct Pack {
    pub stream: StreamKey,
    /// Handles not answered yet.
    pub open: Vec<Handle>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Binding,
    Opening,
    Fetching,
    Hashing,
    Sealing,
    Sealed,
    Publishing,
}

/// A big file on its way.
pub(super) struct OpenFile {
    planned: Planned,
    grid: Grid,
    stage: Stage,
    part: Option<Arc<PartFile>>,
    target: Option<Arc<TargetIo>>,
    extents: Option<Vec<Span>>,
    digests: Vec<Option<Digest>>,
    durable: u32,
    sums: Vec<Combiner>,
    checksums: Vec<Expected>,
    /// Local digests, when proving.
    local: Option<Vec<Digest>>,
    tries: u32,
    /// Start the write-back of each chunk as it is placed: a buffered file's sync stays short that way.
    write_behind: bool,
    /// Who brought which chunk, when there are several sources.
    served: Vec<u8>,
    bound: Vec<usize>,
}

/// A part file, open, and what of it is there already.
pub(super) struct OpenedPart {
    part: PartFile,
    plan: WritePlan,
    kept: Vec<(u32, Digest)>,
    forget: Vec<u32>,
    zeros: Vec<(u32, Digest)>,
    fresh: bool,
    volatile: bool,
}

fn meta_of(planned: &Planned, run: &Run<'_>) -> Meta {
    let preserve = run.spec.options.preserve;
    Meta {
        mode: preserve.mode.then_some(planned.mode),
        special: preserve.special,
        mtime: preserve.times.then_some(planned.mtime),
    }
}

fn wish_of(choice: IoChoice) -> IoWish {
    match choice {
        IoChoice::Auto => IoWish::Auto,
        IoChoice::Buffered => IoWish::Buffered,
        IoChoice::DontCache => IoWish::DontCache,
        IoChoice::Direct => IoWish::Direct,
    }
}

/// Blocking: opens the part file of an earlier run, or a new one, and finds out which chunks of it can be kept. `None`
/// when the journal knows chunks of a part file that is not there: it has to forget them before there is a new one.
fn open_part(
    root: &Root,
    probes: &disk::ProbeCache,
    planned: &Planned,
    id: &TransferId,
    extents: Option<&[Span]>,
    known: Vec<(u32, Digest)>,
    wish: IoWish,
) -> Result<Option<OpenedPart>, disk::DiskError> {
    let (dir, _) = root.parent_of(&planned.to)?;
    let facts = probes.destination(&dir)?;
    let plan = write_plan(&facts, planned.size, wish);
    let grid = Grid::new(planned.size).expect("sizes are checked when a manifest comes in");
    let lost = |error: &disk::DiskError| {
        matches!(error, disk::DiskError::ForeignPart { .. } | disk::DiskError::NotRegular { .. })
    };
    let reopen = || PartFile::reopen(root, &planned.to, id, planned.size, &plan);
    let reopened = match if known.is_empty() { None } else { Some(reopen()) } {
        None => None,
        Some(Ok(None)) => return Ok(None),
        Some(Err(error)) if lost(&error) => return Ok(None),
        Some(other) => other?,
    };
    let fresh = reopened.is_none();
    let (mut kept, mut forget) = (Vec::new(), Vec::new());
    let part = match reopened {
        Some(part) => {
            (kept, forget) = rehash(&part, grid, known);
            part
        }
        None => {
            PartFile::discard(root, &planned.to, id)?;
            PartFile::create(root, &planned.to, id, planned.size, extents, &plan)?
        }
    };
    let mut zeros = Vec::new();
    for index in (0..grid.chunks()).filter(|_| extents.is_some()) {
        let span = grid.span(index).expect("below chunks()");
        let data = extents.is_some_and(|e| e.iter().any(|x| x.offset < span.end() && x.end() > span.offset));
        if !data && !kept.iter().any(|(i, _)| *i == index) {
            if !fresh {
                part.punch(span)?;
            }
            let mut hasher = digest::ChunkHasher::default();
            hasher.update_zeros(span.len);
            zeros.push((index, hasher.finish(span)));
        }
    }
    Ok(Some(OpenedPart { part, plan, kept, forget, zeros, fresh, volatile: facts.kind.is_volatile() }))
}

/// Digests the last chunks that the journal knows once more: a storage that lied about its last flush shows here.
fn rehash(part: &PartFile, grid: Grid, mut known: Vec<(u32, Digest)>) -> (Vec<(u32, Digest)>, Vec<u32>) {
    use rayon::prelude::*;
    known.sort_unstable_by_key(|(index, _)| *index);
    let check = known.split_off(known.len().saturating_sub((REHASH_BYTES / CHUNK_SIZE) as usize));
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
fn digest_existing(root: &Root, path: &RelPath, size: u64) -> Result<Vec<Digest>, disk::DiskError> {
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

impl Run<'_> {
    fn new_handle(&mut self) -> Handle {
        self.next_handle += 1;
        Handle(self.next_handle)
    }

    /// Takes a message of a source.
    pub(super) fn message(&mut self, peer: usize, message: Message) -> Result<(), TransferError> {
        let hostile = |what: &str| Err(TransferError::new(Class::Permanent, format!("the source {what}")));
        match message {
            Message::Segment(_) | Message::ManifestEnd(_) | Message::Problem { .. } if peer != 0 => Ok(()),
            Message::Segment(bytes) => {
                let segment = match Segment::decode(&bytes) {
                    Ok(segment) if segment.index == self.segments_seen => segment,
                    Ok(_) => return hostile("sent a manifest segment out of its turn"),
                    Err(error) => return hostile(&format!("sent a manifest that is refused: {error}")),
                };
                self.segments_seen += 1;
                self.held_credit += 1;
                if self.segments.len() > 2 * crate::limits::SEGMENT_CREDIT as usize {
                    return hostile("sends more of its manifest than it may");
                }
                self.segments.push_back(segment);
                Ok(())
            }
            Message::ManifestEnd(count) if count == self.segments_seen => {
                self.manifest_end = Some(count);
                Ok(())
            }
            Message::ManifestEnd(_) => hostile("counts its manifest segments wrongly"),
            Message::Problem { path, what, .. } => {
                let path = RelPath::new(&path).unwrap_or_default();
                self.fail(&path, Class::OtherSource, format!("at the source: {}", escape_text(&what)));
                Ok(())
            }
            Message::Bound(files) => {
                files.into_iter().for_each(|bound| self.bound(peer, bound));
                Ok(())
            }
            Message::Sealed(files) => {
                files.into_iter().for_each(|sealed| self.sealed(sealed));
                Ok(())
            }
            Message::Stats(stats) => {
                self.peers[peer].stats = Some(stats);
                Ok(())
            }
            Message::Error(error) => {
                let class = Class::from_word(&error.class).unwrap_or(Class::Permanent);
                Err(TransferError::new(class, escape_text(&error.what)))
            }
            Message::Bye => Err(TransferError::new(Class::Reconnect, "the source left before the end")),
            _ => hostile("sent a message that only a destination sends"),
        }
    }

    /// Takes what a job has come to.
    pub(super) fn done(&mut self, done: Done) -> Result<(), TransferError> {
        match done {
            Done::Looked(looked) => {
                self.looking = false;
                looked.into_iter().for_each(|one| self.plan(one));
                Ok(())
            }
            Done::Part(handle, opened) => self.part_opened(handle, *opened),
            Done::Proved(handle, result) => {
                self.opening -= 1;
                self.proved_locally(handle, result);
                Ok(())
            }
            Done::Hashed(handle, sums) => {
                self.hashed(handle, sums);
                Ok(())
            }
            Done::Small(written) => self.small_written(written),
        }
    }

    fn plan(&mut self, looked: Looked) {
        let Looked { entry, path, existing } = looked;
        let key = digest::path_key(entry.root, entry.path.as_bytes());
        // A tree has each name once. A source that says one twice would have us write one file from two places.
        if !self.seen.insert(key) {
            return self.fail(&path, Class::Permanent, "the source lists this name twice");
        }
        if disk::names::is_reserved(&path) {
            return self.fail(&path, Class::Permanent, "the name is reserved for part files; rename it at the source");
        }
        let existing = match existing {
            Ok(existing) => existing,
            Err(error) => return self.fail(&path, disk_error(&error).class, error.to_string()),
        };
        let policy = self.spec.options.if_exists;
        let action = match &self.journal_view {
            Some(checkpoint) => decide(&entry, key, &existing, &checkpoint.borrow(), policy),
            None => decide(&entry, key, &existing, &Default::default(), policy),
        };
        let dry_run = self.spec.options.dry_run;
        if let EntryKind::File { size, .. } = entry.kind {
            self.counts.total_files += 1;
            if !matches!(action, Action::Skip | Action::Resumed | Action::Renamed(_) | Action::Conflict(_)) {
                self.counts.total_bytes += size;
            }
        }
        match (action, &entry.kind) {
            (Action::Directory, _) => {
                self.counts.directories += 1;
                if !dry_run {
                    let segment = self.dirs.0.push(&entry);
                    self.dirs.1.extend(segment);
                }
            }
            (Action::Symlink, _) => {
                self.counts.symlinks += 1;
                if !dry_run {
                    let segment = self.links_later.0.push(&entry);
                    self.links_later.1.extend(segment);
                }
            }
            (Action::Special, _) => {
                self.counts.special += 1;
                self.carry.notes.insert(format!("skipped, neither file, directory nor symlink: {path}"));
            }
            (Action::Conflict(why), _) => self.fail(&path, Class::Permanent, why),
            (Action::Skip, EntryKind::File { size, .. }) => {
                self.counts.skipped_files += 1;
                self.counts.skipped_bytes += size;
            }
            (Action::Skip, _) => self.counts.symlinks += 1,
            (Action::Resumed, EntryKind::File { size, .. }) => self.resumed(key, *size),
            (Action::Renamed(digest), EntryKind::File { size, .. }) => {
                self.pending.renamed.push(DoneFile { key, digest });
                self.resumed(key, *size);
            }
            (_, EntryKind::File { .. }) if dry_run => {}
            (action, EntryKind::File { size, sparse }) => {
                let planned = Planned {
                    root: entry.root,
                    path: entry.path.clone(),
                    to: path,
                    key,
                    size: *size,
                    sparse: *sparse,
                    mode: entry.mode,
                    mtime: entry.mtime,
                    prove: action == Action::Prove,
                    tries: 0,
                };
                // A file that must match a known value, or whose checksums are wanted, takes the road with more stations.
                let alone = self.spec.options.expect.is_some() || !self.spec.options.checksums.is_empty();
                let small = action == Action::Pack && !alone;
                if small { self.small_queue.push_back(planned) } else { self.big_queue.push_back(planned) }
            }
            (Action::Resumed | Action::Renamed(_) | Action::Prove | Action::Pack | Action::Fetch, _) => {}
        }
    }

    fn resumed(&mut self, key: PathKey, size: u64) {
        self.counts.files_done += 1;
        if !self.carry.published.contains(&key) {
            self.counts.resumed_bytes += size;
            self.counts.skipped_files += 1;
        }
    }

    /// Binds queued big files, as many as may be open.
    pub(super) fn start_files(&mut self) {
        let mut binds = Vec::new();
        let mut bytes = 0;
        while self.files.len() < OPEN_MAX && binds.len() < BATCH_MAX && bytes < BIND_BYTES {
            let Some(planned) = self.big_queue.pop_front() else { break };
            let handle = self.new_handle();
            bytes += 64 + planned.path.as_bytes().len();
            binds.push(bind_of(handle, &planned));
            let grid = Grid::new(planned.size).expect("sizes are checked when a manifest comes in");
            let kinds =
                self.spec.options.checksums.iter().copied().chain(self.spec.options.expect.iter().map(|e| e.kind));
            let mut sums: Vec<Combinable> = kinds.filter_map(Combinable::of).collect();
            sums.dedup();
            self.binding += 1;
            self.files.insert(
                handle,
                OpenFile {
                    grid,
                    stage: Stage::Binding,
                    part: None,
                    target: None,
                    extents: None,
                    digests: vec![None; grid.chunks() as usize],
                    durable: 0,
                    sums: sums.into_iter().map(|kind| Combiner::new(kind, grid)).collect(),
                    checksums: Vec::new(),
                    local: None,
                    tries: planned.tries,
                    write_behind: false,
                    served: Vec::new(),
                    bound: Vec::new(),
                    planned,
                },
            );
        }
        if !binds.is_empty() {
            let asked = self.peers.iter().filter(|peer| !peer.gone);
            asked.for_each(|peer| drop(peer.out.send(Message::Bind(binds.clone()))));
        }
    }

    /// A further source binds what is open already.
    pub(super) fn bind_at(&mut self, peer: usize) {
        let binds: Vec<Bind> = self.files.iter().map(|(handle, file)| bind_of(*handle, &file.planned)).collect();
        for part in binds.chunks(64) {
            let _ = self.peers[peer].out.send(Message::Bind(part.to_vec()));
        }
    }

    fn bound(&mut self, peer: usize, bound: Bound) {
        let Some(file) = self.files.get_mut(&bound.handle) else { return };
        if peer != 0 {
            if bound.status == Status::Ok && !self.peers[peer].gone {
                file.bound.push(peer);
                let session = self.peers[peer].links.session;
                self.table.allow(bound.handle, session);
            }
            return;
        }
        if file.stage != Stage::Binding {
            return;
        }
        self.binding -= 1;
        file.stage = Stage::Opening;
        file.extents = bound.extents;
        let planned = file.planned.clone();
        if let Some((class, why)) = status_words(bound.status) {
            return self.give_up(bound.handle, class, why);
        }
        self.opening += 1;
        let (handle, root, done) = (bound.handle, self.root.clone(), self.done.clone());
        if planned.prove {
            self.ctx.pool.submit(move || {
                let digests = digest_existing(&root, &planned.to, planned.size).map_err(|e| disk_error(&e));
                let _ = done.send(Done::Proved(handle, digests));
            });
            return;
        }
        let known = match &self.journal_view {
            Some(checkpoint) => match checkpoint.borrow().files.get(&planned.key) {
                Some(file) if (file.size, file.mtime) == (planned.size, planned.mtime) => {
                    file.chunks.iter().map(|(index, digest)| (index, *digest)).collect()
                }
                _ => Vec::new(),
            },
            None => Vec::new(),
        };
        let (probes, id, extents) = (self.ctx.probes.clone(), self.id, file.extents.clone());
        let wish = wish_of(self.spec.options.io);
        self.ctx.pool.submit(move || {
            let opened = open_part(&root, &probes, &planned, &id, extents.as_deref(), known, wish);
            let _ = done.send(Done::Part(handle, Box::new(opened.map_err(|e| disk_error(&e)))));
        });
    }

    fn part_opened(
        &mut self,
        handle: Handle,
        opened: Result<Option<OpenedPart>, TransferError>,
    ) -> Result<(), TransferError> {
        self.opening -= 1;
        let opened = match opened {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                let Some(planned) = self.files.get(&handle).map(|file| file.planned.clone()) else { return Ok(()) };
                self.carry.notes.insert(format!("{}: the part file of the last run is gone; from the start", planned.to));
                let _ = self.peers[0].out.send(Message::Unbind(vec![handle]));
                self.forget_file(handle);
                self.restart(handle, planned);
                return Ok(());
            }
            Err(error) => {
                self.give_up(handle, error.class, error.what.clone());
                // A full or read-only destination fails every file after this one in the same way: stop here.
                return if error.class == Class::Retry { Err(error) } else { Ok(()) };
            }
        };
        let OpenedPart { part, plan, kept, forget, zeros, fresh, volatile } = opened;
        self.durable_storage &= !volatile;
        self.how.insert(format!("{} ({})", mode_word(plan.mode), plan.reason));
        self.carry.notes.extend(part.notes().iter().map(ToString::to_string));
        let Some(file) = self.files.get_mut(&handle) else { return Ok(()) };
        let part = Arc::new(part);
        let chosen = part.file_ref();
        let direct = (chosen.mode == crate::sys::FileMode::Direct).then(|| chosen.clone());
        let buffered = if direct.is_some() { part.tail_ref() } else { chosen };
        file.part = Some(part.clone());
        file.write_behind = plan.write_behind;
        file.target = Some(Arc::new(TargetIo { file: buffered, direct }));
        file.stage = Stage::Fetching;
        let planned = &file.planned;
        if fresh {
            // Begins, or begins again: the journal forgets what an older part file had.
            self.pending.begun.push(FileRecord {
                key: planned.key,
                root: planned.root,
                path: planned.path.clone(),
                size: planned.size,
                mtime: planned.mtime,
                mode: planned.mode,
            });
        } else if !forget.is_empty() {
            self.pending.forget.push((planned.key, Forget::Chunks(forget)));
        }
        for (index, digest) in &kept {
            file.digests[*index as usize] = Some(*digest);
            self.counts.resumed_bytes += file.grid.span(*index).map_or(0, |s| s.len);
            self.counts.placed_bytes += file.grid.span(*index).map_or(0, |s| s.len);
        }
        file.durable = kept.len() as u32;
        // Sums of chunks that are there already are made in one read at the end.
        if !kept.is_empty() {
            file.sums.clear();
        }
        for (index, digest) in &zeros {
            file.digests[*index as usize] = Some(*digest);
            self.counts.hole_bytes += file.grid.span(*index).map_or(0, |s| s.len);
            file.sums.clear();
        }
        let missing = missing_ranges(&file.digests);
        let sessions =
            std::iter::once(0).chain(file.bound.iter().copied()).map(|p| self.peers[p].links.session).collect();
        let (grid, key) = (file.grid, file.planned.key);
        self.table.add_file(handle, grid, &missing, sessions);
        zeros.into_iter().for_each(|chunk| self.placed(key, handle, &part, chunk));
        self.look_if_whole(handle);
        Ok(())
    }

    fn proved_locally(&mut self, handle: Handle, result: Result<Vec<Digest>, TransferError>) {
        match result {
            Err(error) => self.give_up(handle, error.class, error.what),
            Ok(digests) => {
                let Some(file) = self.files.get_mut(&handle) else { return };
                file.local = Some(digests);
                file.stage = Stage::Fetching;
                let chunks = file.grid.chunks();
                let session = self.peers[0].links.session;
                self.table.add_file(handle, file.grid, &[(0, chunks)], vec![session]);
                self.look_if_whole(handle);
            }
        }
    }

    /// Gives every stream something to do.
    pub(super) fn refill(&mut self) {
        let full = self.uncommitted() >= self.window();
        match (full, self.held_back_since) {
            (true, None) => self.held_back_since = Some(std::time::Instant::now()),
            (false, Some(since)) => {
                self.carry.waits.commit += since.elapsed().as_nanos() as u64;
                self.held_back_since = None;
            }
            _ => {}
        }
        if full {
            return;
        }
        let depth = if self.near { DEPTH_NEAR } else { DEPTH_FAR };
        let streams: Vec<(StreamKey, usize)> = self.stream_peer.iter().map(|(s, p)| (*s, *p)).collect();
        // What is asked for and not durable is what a crash can cost at most: the bound of DESIGN, however slow the
        // disk is while everything asked for arrives.
        let buffers = if self.near { SOCKETS_NEAR } else { SOCKETS_FAR };
        let most = self.window() + streams.len() as u64 * (CHUNK_SIZE + buffers);
        let mut asked = self.uncommitted() + self.table.held() as u64 * CHUNK_SIZE;
        let mut again = true;
        while again {
            again = false;
            for (stream, peer) in &streams {
                // One claim each in turn, so that the first stream does not take all there is.
                let packs = self.packs.values().filter(|p| p.stream == *stream).count();
                if *peer == 0 && packs < PACKS_PER_STREAM && self.claim_pack(*stream) {
                    again = true;
                } else if asked < most && self.table.held_by(*stream) < depth && self.claim_chunks(*stream, *peer) {
                    asked += u64::from(RUN_CHUNKS) * CHUNK_SIZE;
                    again = true;
                }
            }
        }
        if !self.table.any_free() && self.small_queue.is_empty() && self.table.held() > 0 {
            self.steal(&streams);
        }
    }

    fn claim_chunks(&mut self, stream: StreamKey, peer: usize) -> bool {
        let Some(taken) = self.table.next_run(stream, RUN_CHUNKS) else { return false };
        let Some(file) = self.files.get(&taken.handle) else { return false };
        let run = ChunkRun {
            handle: taken.handle,
            first: taken.first,
            count: taken.count,
            digests_only: file.local.is_some(),
        };
        let claim = Claim::Chunks { run, size: file.planned.size, target: file.target.clone() };
        self.peers[peer].links.command(stream, Command::Claim(stream, claim));
        true
    }

    fn claim_pack(&mut self, stream: StreamKey) -> bool {
        if self.small.len() + self.pending.small.len() >= SMALL_OPEN_MAX {
            return false;
        }
        let (mut items, mut open) = (Vec::new(), Vec::new());
        let (mut bytes, mut encoded) = (0, 2);
        while items.len() < PACK_MAX_FILES && bytes < PACK_BYTES {
            let Some(planned) = self.small_queue.front() else { break };
            let room = encoded + 24 + planned.path.as_bytes().len();
            if room > PACK_WANT_MAX_BYTES {
                break;
            }
            encoded = room;
            bytes += planned.size;
            let planned = self.small_queue.pop_front().expect("front was there");
            let handle = self.new_handle();
            items.push(PackItem {
                handle,
                root: planned.root,
                path: planned.path.clone(),
                size: planned.size as u32,
                mtime: planned.mtime,
            });
            open.push(handle);
            self.small.insert(handle, Small { planned });
        }
        if items.is_empty() {
            return false;
        }
        self.next_pack += 1;
        let (number, items) = (self.next_pack, Arc::new(items));
        self.peers[0].links.command(stream, Command::Claim(stream, Claim::Pack { number, items }));
        self.packs.insert(number, Pack { stream, open });
        true
    }

    /// Files of a pack whose stream is gone, or that did not come right, are asked for again.
    pub(super) fn requeue(&mut self, pack: Pack) {
        for handle in pack.open {
            let Some(mut small) = self.small.remove(&handle) else { continue };
            small.planned.tries += 1;
            if small.planned.tries > TRIES {
                self.fail(&small.planned.to, Class::Verification, "did not arrive intact after several tries");
            } else {
                self.small_queue.push_back(small.planned);
            }
        }
    }

    fn steal(&mut self, streams: &[(StreamKey, usize)]) {
        let now = crate::engine::worker::now_ns();
        let quiet = |peers: &[super::run::Peer], stream: StreamKey, peer: usize| {
            peers[peer].links.live.get(&stream).is_none_or(|live| {
                now.saturating_sub(live.stats.last_progress.load(std::sync::atomic::Ordering::Relaxed)) > 2_000_000_000
            })
        };
        for (stream, _) in streams {
            if self.table.held_by(*stream) > 0 {
                continue;
            }
            let slow = |other: StreamKey| self.stream_peer.get(&other).is_some_and(|p| quiet(&self.peers, other, *p));
            if let Some((victim, (handle, chunk))) = self.table.steal(*stream, slow)
                && let Some(peer) = self.stream_peer.get(&victim)
            {
                self.peers[*peer].links.command(victim, Command::Release(victim, handle, chunk));
            }
        }
    }

    /// Takes an event of a worker.
    pub(super) fn event(&mut self, event: Event) -> Result<(), TransferError> {
        match event {
            Event::Placed { stream, handle, chunk, digest, sums, latency_ns } => {
                if self.table.placed(stream, (handle, chunk)) {
                    let _ = self.carry.latency.record(latency_ns.clamp(1_000, 3_600_000_000_000));
                    self.chunk_placed(stream, handle, chunk, digest, sums);
                }
            }
            Event::ChunkFailed { stream, handle, chunk, why } => return self.chunk_failed(stream, handle, chunk, why),
            Event::ChunkDigest { stream, handle, chunk, digest } => {
                if self.table.placed(stream, (handle, chunk)) {
                    self.chunk_compared(handle, chunk, digest);
                }
            }
            Event::Released { stream, handle, chunk, arrived } => {
                if self.table.freed(stream, (handle, chunk)) && arrived > 0 {
                    self.clear_chunk(handle, chunk);
                }
            }
            Event::Pack { number, body, entries, last, .. } => self.pack_arrived(number, body, entries, last),
            Event::Dead { stream, why } => self.stream_dead(stream, &why),
        }
        Ok(())
    }

    fn chunk_placed(&mut self, stream: StreamKey, handle: Handle, chunk: u32, digest: Digest, sums: (u32, u32)) {
        let peer = self.stream_peer.get(&stream).copied().unwrap_or(0);
        let several = self.peers.len() > 1;
        let Some(file) = self.files.get_mut(&handle) else { return };
        let Some(part) = file.part.clone() else { return };
        let Some(span) = file.grid.span(chunk) else { return };
        file.digests[chunk as usize] = Some(digest);
        for combiner in &mut file.sums {
            let value = if combiner.kind() == Combinable::Crc32c { sums.0 } else { sums.1 };
            // Each chunk is placed once; a second value would be the same.
            let _ = combiner.add(chunk, span.len, value);
        }
        if several {
            file.served.resize(file.grid.chunks() as usize, 0);
            file.served[chunk as usize] = peer as u8;
        }
        let key = file.planned.key;
        if file.write_behind {
            let part = part.clone();
            self.ctx.pool.submit(move || part.write_behind(span));
        }
        self.pending_bytes += span.len;
        self.counts.placed_bytes += span.len;
        self.placed(key, handle, &part, (chunk, digest));
        self.look_if_whole(handle);
    }

    fn chunk_compared(&mut self, handle: Handle, chunk: u32, digest: Digest) {
        let Some(file) = self.files.get_mut(&handle) else { return };
        let same = file.local.as_ref().and_then(|l| l.get(chunk as usize)) == Some(&digest);
        if !same {
            return self.give_up(
                handle,
                Class::Permanent,
                "exists already with the same size and time but other content; --if-exists replace takes the source's",
            );
        }
        file.digests[chunk as usize] = Some(digest);
        self.look_if_whole(handle);
    }

    fn chunk_failed(
        &mut self,
        stream: StreamKey,
        handle: Handle,
        chunk: u32,
        why: ChunkFault,
    ) -> Result<(), TransferError> {
        if !self.table.freed(stream, (handle, chunk)) {
            return Ok(());
        }
        let peer = self.stream_peer.get(&stream).copied().unwrap_or(0);
        let Some(file) = self.files.get_mut(&handle) else { return Ok(()) };
        match why {
            ChunkFault::Mismatch => {
                self.carry.failed_chunks += 1;
                file.tries += 1;
                let path = file.planned.to.clone();
                if file.tries > TRIES + file.grid.chunks() / 64 {
                    self.give_up(handle, Class::Verification, "chunks keep arriving damaged; check memory and network");
                } else {
                    self.carry.notes.insert(format!("a damaged chunk of {path} was refused and fetched again"));
                    self.clear_chunk(handle, chunk);
                }
            }
            ChunkFault::Source(_) if peer != 0 => self.drop_peer(peer, "it refuses what it had bound"),
            ChunkFault::Source(status) => {
                let (class, why) = status_words(status).unwrap_or((Class::OtherSource, "cannot be read at the source"));
                self.give_up(handle, class, why);
            }
            ChunkFault::Write(kind, errno) => {
                let error = write_error(kind, errno, &file.planned.to);
                self.give_up(handle, error.class, error.what.clone());
                return Err(error);
            }
        }
        Ok(())
    }

    /// A chunk of a file with holes is fetched again: what a damaged or foreign frame may have written into its holes
    /// must not stay there.
    fn clear_chunk(&mut self, handle: Handle, chunk: u32) {
        let Some(file) = self.files.get(&handle).filter(|f| f.extents.is_some()) else { return };
        if let (Some(part), Some(span)) = (file.part.clone(), file.grid.span(chunk)) {
            // Before the chunk is claimed again, so here and now.
            if let Err(error) = part.punch(span) {
                self.give_up(handle, Class::Permanent, error.to_string());
            }
        }
    }

    fn pack_arrived(&mut self, number: u32, body: PackBody, entries: Vec<(PackEntry, Option<Digest>)>, last: bool) {
        let Some(pack) = self.packs.get_mut(&number) else { return };
        let mut write = Vec::new();
        let mut failed = Vec::new();
        for (entry, digest) in entries {
            // What is answered once is not answered again.
            let Some(at) = pack.open.iter().position(|h| *h == entry.handle) else { continue };
            match (entry.status, digest) {
                (Status::Ok, None) => self.carry.failed_chunks += 1, // stays open: asked for again
                (Status::Ok, Some(digest)) => {
                    pack.open.swap_remove(at);
                    write.push((entry, digest));
                }
                (status, _) => {
                    pack.open.swap_remove(at);
                    failed.push((entry.handle, status));
                }
            }
        }
        for (handle, status) in failed {
            if let Some(small) = self.small.remove(&handle) {
                let (class, why) = status_words(status).unwrap_or((Class::OtherSource, "cannot be read at the source"));
                self.fail(&small.planned.to, class, why);
            }
        }
        if last && let Some(pack) = self.packs.remove(&number) {
            self.requeue(pack);
        }
        if write.is_empty() {
            return;
        }
        let jobs: Vec<_> = write
            .into_iter()
            .filter_map(|(entry, digest)| {
                let small = self.small.get(&entry.handle)?;
                let meta = meta_of(&small.planned, self);
                Some((entry, digest, small.planned.to.clone(), small.planned.size, meta))
            })
            .collect();
        self.pending_bytes += jobs.iter().map(|(.., size, _)| size).sum::<u64>();
        self.creating += 1;
        let (root, id, done) = (self.root.clone(), self.id, self.done.clone());
        self.ctx.pool.submit(move || {
            let bytes = &body.slot.as_slice()[SLOT_HEAD as usize..];
            let written = jobs
                .into_iter()
                .map(|(entry, chunk, to, size, meta)| {
                    let digest = file_digest(size, &[Some(chunk)]);
                    let content = &bytes[entry.content.clone()];
                    (entry.handle, create_small(&root, &to, &id, content, &meta, digest), chunk)
                })
                .collect();
            drop(body);
            let _ = done.send(Done::Small(written));
        });
    }

    fn small_written(&mut self, written: Vec<super::run::Written>) -> Result<(), TransferError> {
        self.creating -= 1;
        for (handle, result, chunk) in written {
            let Some(planned) = self.small.get(&handle).map(|s| s.planned.clone()) else { continue };
            match result {
                Ok(file) => {
                    self.durable_storage &= !self.volatile_home;
                    self.counts.placed_bytes += planned.size;
                    self.pending.small.push(CreatedSmall {
                        handle,
                        key: planned.key,
                        file,
                        chunk,
                        digest: file_digest(planned.size, &[Some(chunk)]).expect("one chunk or none"),
                        size: planned.size,
                        mtime: planned.mtime,
                    });
                }
                Err(error) => {
                    self.small.remove(&handle);
                    let error = disk_error(&error);
                    self.fail(&planned.to, error.class, error.what.clone());
                    if error.class == Class::Retry {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// A file that has all its chunks goes on to its seal (by way of a second read, if some checksum needs one).
    fn look_if_whole(&mut self, handle: Handle) {
        let Some(file) = self.files.get_mut(&handle) else { return };
        if file.stage != Stage::Fetching || file.digests.iter().any(Option::is_none) {
            return;
        }
        if file.local.is_some() {
            self.counts.skipped_files += 1;
            self.counts.skipped_bytes += file.planned.size;
            self.counts.files_done += 1;
            self.counts.total_bytes -= file.planned.size;
            return self.forget_file(handle);
        }
        file.checksums = file.sums.iter().filter_map(Combiner::finish_named).collect();
        let have: Vec<ChecksumKind> = file.checksums.iter().map(|c| c.kind).collect();
        let wanted = self.spec.options.checksums.iter().copied().chain(self.spec.options.expect.iter().map(|e| e.kind));
        let mut read: Vec<ChecksumKind> = wanted.filter(|k| *k != ChecksumKind::Xxh3 && !have.contains(k)).collect();
        read.dedup();
        if read.is_empty() {
            return self.seal(handle);
        }
        file.stage = Stage::Hashing;
        let Some(part) = file.part.clone() else { return };
        let done = self.done.clone();
        self.ctx.pool.submit(move || {
            let sums = part.reader().and_then(|reader| hash_reader(&read, reader));
            let sums = sums
                .map_err(|error| TransferError::new(Class::Permanent, format!("second read for checksums: {error}")));
            let _ = done.send(Done::Hashed(handle, sums));
        });
    }

    fn hashed(&mut self, handle: Handle, sums: Result<Sums, TransferError>) {
        match sums {
            Err(error) => self.give_up(handle, error.class, error.what),
            Ok(sums) => {
                self.carry.notes.insert("checksums that cannot be combined from chunks took a second read".to_owned());
                if let Some(file) = self.files.get_mut(&handle) {
                    file.checksums.extend(sums.values);
                }
                self.seal(handle);
            }
        }
    }

    /// Compares with what was expected, then asks the source whether the file is still what it was.
    fn seal(&mut self, handle: Handle) {
        let Some(file) = self.files.get_mut(&handle) else { return };
        let digest = file_digest(file.planned.size, &file.digests).expect("all chunks are there");
        let mut checksums = file.checksums.clone();
        checksums.push(Expected { kind: ChecksumKind::Xxh3, hex: digest.to_string() });
        if let Some(want) = &self.spec.options.expect {
            let got = checksums.iter().find(|c| c.kind == want.kind);
            if !got.is_some_and(|got| got.hex.eq_ignore_ascii_case(&want.hex)) {
                return self.not_as_expected(handle, got.map(|g| g.hex.clone()).unwrap_or_default());
            }
        }
        file.stage = Stage::Sealing;
        self.sealing += 1;
        self.expected_seen = Some((digest, checksums));
        let _ = self.peers[0].out.send(Message::Seal(vec![handle]));
    }

    /// The whole is not what it must be. If further sources brought parts of it, those parts are fetched again from the
    /// first; else the source is bad.
    fn not_as_expected(&mut self, handle: Handle, got: String) {
        let Some(file) = self.files.get_mut(&handle) else { return };
        let foreign: Vec<u32> =
            (0..file.grid.chunks()).filter(|c| file.served.get(*c as usize).is_some_and(|p| *p != 0)).collect();
        if foreign.is_empty() {
            let want = self.spec.options.expect.as_ref().map(|e| e.hex.clone()).unwrap_or_default();
            let why =
                format!("is not the file that was expected: {got} instead of {want}; the source holds something else");
            return self.give_up(handle, Class::Verification, why);
        }
        let planned = file.planned.clone();
        file.served.clear();
        file.bound.clear();
        self.carry
            .notes
            .insert(format!("{}: a further source has other bytes; its chunks were fetched again", planned.to));
        // Start again with one source and a clean part file: nobody knows which chunks are right.
        self.forget_file(handle);
        let _ = self.peers[0].out.send(Message::Unbind(vec![handle]));
        for peer in 1..self.peers.len() {
            self.drop_peer(peer, "it has other bytes");
        }
        self.restart(handle, planned);
    }

    fn sealed(&mut self, sealed: Sealed) {
        let Some(file) = self.files.get_mut(&sealed.handle) else { return };
        if file.stage != Stage::Sealing {
            return;
        }
        self.sealing -= 1;
        match status_words(sealed.status) {
            None => file.stage = Stage::Sealed,
            Some((_, why)) => self.give_up(sealed.handle, Class::Retry, why),
        }
    }

    /// Moves sealed files whose chunks are durable, or will be with this commit, into it.
    pub(super) fn collect_publishable(&mut self) {
        let ready: Vec<Handle> = self
            .files
            .iter()
            .filter(|(handle, file)| {
                let here = self.pending.placed.iter().find(|p| p.handle == **handle).map_or(0, |p| p.chunks.len());
                file.stage == Stage::Sealed && file.durable as usize + here == file.digests.len()
            })
            .map(|(handle, _)| *handle)
            .collect();
        for handle in ready {
            let replace = self.replace();
            let Some(file) = self.files.get(&handle) else { continue };
            let Some(part) = file.part.clone() else { continue };
            let publish = PublishFile {
                handle,
                key: file.planned.key,
                part,
                meta: meta_of(&file.planned, self),
                digest: file_digest(file.planned.size, &file.digests).expect("all chunks are there"),
                mtime: file.planned.mtime,
                replace,
            };
            self.pending.publish.push(publish);
            if let Some(file) = self.files.get_mut(&handle) {
                file.stage = Stage::Publishing;
            }
        }
    }

    /// Walk 12: what a commit has made durable is told; what it could not is fetched again or given up.
    pub(super) fn committed(&mut self, durable: Durable) -> Result<(), TransferError> {
        self.carry.notes.extend(durable.notes);
        for (handle, chunks) in durable.chunks {
            if let Some(file) = self.files.get_mut(&handle) {
                file.durable += chunks.len() as u32;
            }
        }
        for (handle, chunks) in durable.misread {
            self.carry
                .notes
                .insert("the medium gave back other bytes than were written; they were fetched again".to_owned());
            let Some(file) = self.files.get_mut(&handle) else { continue };
            file.tries += 1;
            file.stage = Stage::Fetching;
            if file.tries > TRIES {
                self.give_up(handle, Class::Verification, CommitFault::Misread.to_string());
                continue;
            }
            for chunk in chunks {
                file.digests[chunk as usize] = None;
                self.table.unplaced((handle, chunk));
            }
            self.rebind(handle);
        }
        for (handle, _, error) in durable.poisoned {
            self.poisoned(handle, &error);
        }
        for (handle, result) in durable.published {
            match result {
                Ok(_) => {
                    if let Some(file) = self.files.get(&handle) {
                        self.carry.published.insert(file.planned.key);
                        self.carry.bytes += file.planned.size;
                        self.carry.files += 1;
                        self.counts.files_done += 1;
                    }
                    self.forget_file(handle);
                }
                Err(CommitFault::NotYet) => {}
                Err(fault) => self.give_up(handle, Class::Permanent, fault.to_string()),
            }
        }
        for (handle, result) in durable.small {
            let Some(small) = self.small.remove(&handle) else { continue };
            match result {
                Ok(_) => {
                    self.carry.published.insert(small.planned.key);
                    self.carry.bytes += small.planned.size;
                    self.carry.files += 1;
                    self.counts.files_done += 1;
                }
                Err(fault) if small.planned.tries < 2 => {
                    tracing::warn!(path = %small.planned.to, %fault, "a small file is fetched again");
                    let tries = small.planned.tries + 1;
                    let exists = matches!(fault, CommitFault::Disk(disk::DiskError::Exists { .. }));
                    if exists {
                        self.fail(&small.planned.to, Class::Permanent, fault.to_string());
                    } else {
                        self.small_queue.push_back(Planned { tries, ..small.planned });
                    }
                }
                Err(fault) => self.fail(&small.planned.to, Class::Permanent, fault.to_string()),
            }
        }
        Ok(())
    }

    /// A misread chunk is fetched again: the source has closed the file with its seal.
    fn rebind(&mut self, handle: Handle) {
        // The source's handles are never used twice, so the file starts over under a new one; what is durable is kept.
        let Some(file) = self.files.get(&handle) else { return };
        let planned = Planned { tries: file.tries, ..file.planned.clone() };
        self.forget_file(handle);
        self.big_queue.push_back(planned);
    }

    /// After a failed sync nothing that was written since the last good one can be trusted, and no second sync can mend
    /// it: the file starts again, through a new descriptor and a new part file.
    fn poisoned(&mut self, handle: Handle, error: &disk::DiskError) {
        let Some(file) = self.files.get(&handle) else { return };
        let planned = file.planned.clone();
        self.carry.notes.insert(format!("a sync failed ({error}); the file was fetched again from its beginning"));
        let _ = self.peers[0].out.send(Message::Unbind(vec![handle]));
        self.forget_file(handle);
        if planned.tries >= 1 {
            self.pending.placed.retain(|p| p.handle != handle);
            self.pending.forget.push((planned.key, Forget::All));
            self.fail(&planned.to, Class::Poisoned, format!("{error}; check the storage, then repeat the command"));
        } else {
            self.restart(handle, planned);
        }
    }

    /// The file starts again from nothing. The journal forgets it first: were the part file replaced before that, a
    /// crash would leave chunks in the journal that the new part file never had.
    fn restart(&mut self, handle: Handle, planned: Planned) {
        self.pending.placed.retain(|p| p.handle != handle);
        self.pending.forget.push((planned.key, Forget::All));
        self.parked.push(Planned { tries: planned.tries + 1, ..planned });
    }

    fn forget_file(&mut self, handle: Handle) {
        if let Some(file) = self.files.remove(&handle) {
            match file.stage {
                Stage::Binding => self.binding -= 1,
                Stage::Sealing => self.sealing -= 1,
                _ => {}
            }
        }
        self.table.remove_file(handle);
    }

    /// The file does not arrive in this run. Its part file and journal stay: a later run keeps what is right.
    pub(super) fn give_up(&mut self, handle: Handle, class: Class, why: impl Into<String>) {
        let Some(file) = self.files.get(&handle) else { return };
        let path = file.planned.to.clone();
        let _ = self.peers[0].out.send(Message::Unbind(vec![handle]));
        self.forget_file(handle);
        self.fail(&path, class, why);
    }
}

fn bind_of(handle: Handle, planned: &Planned) -> Bind {
    Bind {
        handle,
        root: planned.root,
        path: planned.path.clone(),
        size: planned.size,
        mtime: planned.mtime,
        sparse: planned.sparse,
    }
}

fn missing_ranges(digests: &[Option<Digest>]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for (index, digest) in (0u32..).zip(digests) {
        match ranges.last_mut() {
            _ if digest.is_some() => {}
            Some((_, end)) if *end == index => *end = index + 1,
            _ => ranges.push((index, index + 1)),
        }
    }
    ranges
}

fn file_digest(size: u64, digests: &[Option<Digest>]) -> Option<Digest> {
    let chunks = Grid::new(size)?.chunks() as usize;
    let known: Vec<&Digest> = digests.iter().take(chunks).flatten().collect();
    (known.len() == chunks).then(|| digest::file(size, known))
}

fn status_words(status: Status) -> Option<(Class, &'static str)> {
    Some(match status {
        Status::Ok => return None,
        Status::Changed => (Class::Retry, "changed at the source while it was moved; repeat when nobody writes it"),
        Status::Gone => (Class::OtherSource, "was deleted at the source while it was moved"),
        Status::Denied => (Class::Denied, "may not be read at the source: check its owner and mode"),
        Status::Unwanted => (Class::OtherSource, "was left out by the source"),
        Status::Failed => (Class::OtherSource, "cannot be read at the source: its storage reports an error"),
    })
}

fn write_error(kind: std::io::ErrorKind, errno: Option<i32>, path: &RelPath) -> TransferError {
    let (class, what) = match kind {
        std::io::ErrorKind::StorageFull => (
            Class::Retry,
            "the destination is full: make room, then repeat the command; what is durable is kept".to_owned(),
        ),
        std::io::ErrorKind::QuotaExceeded => (Class::Retry, "the disk quota is used up".to_owned()),
        _ => (
            Class::Permanent,
            format!("the destination cannot write: {}", std::io::Error::from_raw_os_error(errno.unwrap_or(5))),
        ),
    };
    TransferError::new(class, what).at(escape(path.as_bytes()))
}

/// What verification a run does, in words for notes.
pub(super) fn verify_word(verify: Verify) -> &'static str {
    match verify {
        Verify::Wire => "matched on receipt and synced",
        Verify::Disk => "matched on receipt, synced, read back and matched again",
    }
}

/// Whether what stands there is a directory, for the finish.
pub(super) fn is_directory(existing: &Existing) -> bool {
    matches!(existing, Existing::Dir(_))
}
