//! The files of a session: planned, bound, opened, fetched by chunks or in packs, sealed, and handed to the commit.

mod ending;
mod events;
mod intake;
mod opening;
mod packs;
mod relief;
mod trouble;
mod words;

use super::prepare::{Looked, Weight};
use super::run::{Done, Run, small_open_max};
use crate::checksum::{Combinable, Combiner, Sums, hash_reader};
use crate::clock;
use crate::digest::{self, Digest};
use crate::disk::{self, Existing, IoWish, Meta, PartFile, Proof, Root, Signature, WritePlan, create_pack, write_plan};
use crate::engine::commit::{CommitFault, CreatedSmall, Durable, PublishFile, Renamed};
use crate::engine::error::{Class, TransferError};
use crate::engine::plan::{Action, decide};
use crate::engine::source::{disk_error, escape_text, mode_word};
use crate::engine::spec::{ChecksumKind, DestinationSpec, Expected, IfExists, IoChoice, Latency, Synthetic};
use crate::engine::worker::{ChunkFault, Claim, Command, Event, PackBody, StreamKey, TargetIo};
use crate::grid::{CHUNK_SIZE, Grid, Span};
use crate::ids::{Handle, PathKey, TransferId};
use crate::journal::{ChunkSet, DoneFile, FileRecord, Forget};
use crate::limits::{PACK_MAX_FILES, PACK_WANT_MAX_BYTES};
use crate::manifest::{EntryKind, Mtime};
use crate::relpath::{RelPath, escape};
use crate::sys::SLOT_HEAD;
use crate::wire::control::{BATCH_MAX, Bind, Bound, Message, Sealed};
use crate::wire::data::{PackEntry, PackItem, Run as ChunkRun, Status};
use opening::{digest_existing, open_part};
pub(super) use relief::Takeovers;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use words::{status_words, write_error};

/// Big files open at once: enough to keep the pipes full across Bind round trips, far from any descriptor limit.
const OPEN_MAX: usize = 128;
/// Payload of one pack want.
const PACK_BYTES: u64 = 512 << 10;
/// Packs asked of one stream at once.
const PACKS_PER_STREAM: usize = 3;
/// Chunks asked of one stream at once, below 1 ms of round trip and above.
const DEPTH_NEAR: u16 = 4;
const DEPTH_FAR: u16 = 8;
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
/// Chunks of files with holes that are open at once (1 TiB): a hole costs memory and a record, but no space that a claim
/// without end could come up against. Beyond it a file's holes are written as zeros.
const HOLE_CHUNKS_MAX: u32 = 1 << 18;
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
    #[expect(dead_code, reason = "counts by being there")]
    pub weight: Arc<Weight>,
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
    /// What has arrived: memory follows that, not the size that a manifest claims.
    digests: ChunkSet,
    durable: u32,
    sums: Vec<Combiner>,
    checksums: Vec<Expected>,
    /// Local digests, when proving.
    local: Option<Vec<Digest>>,
    /// Local digests of chunks that an earlier version of the file left in the part file: where the source has the same
    /// ones, nothing is sent.
    old: HashMap<u32, Digest>,
    tries: u32,
    /// How often a chunk arrived damaged. A link that damages now and then costs chunks, not the file.
    damaged: HashMap<u32, u32>,
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
    old: HashMap<u32, Digest>,
    fresh: bool,
    volatile: bool,
}

/// Chunks asked of one stream at once, before the tuner has a say.
pub(super) fn depth_at_first(spec: &DestinationSpec, near: bool) -> u16 {
    spec.options.tuning.depth.unwrap_or(if near { DEPTH_NEAR } else { DEPTH_FAR })
}

impl Run<'_> {
    /// Who publishes a file, where the same command, repeated after it was killed before its verdict, has to know its own.
    fn signature(&self, planned: &Planned) -> Option<Signature> {
        let signs = self.spec.options.if_exists == IfExists::Error;
        signs.then_some(Signature { transfer: self.id, mtime: planned.mtime })
    }
}

fn meta_of(planned: &Planned, run: &Run<'_>) -> Meta {
    let preserve = run.spec.options.preserve;
    Meta {
        mode: preserve.mode.then_some(planned.mode),
        special: preserve.special,
        mtime: preserve.times.then_some(planned.mtime),
    }
}

fn wish_of(choice: IoChoice, synthetic: Synthetic) -> IoWish {
    match choice {
        _ if synthetic.destination() => IoWish::Synthetic,
        // Splicing is the source's affair.
        IoChoice::Auto | IoChoice::Splice => IoWish::Auto,
        IoChoice::Buffered => IoWish::Buffered,
        IoChoice::DontCache => IoWish::DontCache,
        IoChoice::Direct => IoWish::Direct,
    }
}

/// Digests what an earlier version left, as it lies there now: a crash may have come between a write and its record.
fn digest_old(part: &PartFile, grid: Grid, old: &[u32], kept: &[(u32, Digest)]) -> HashMap<u32, Digest> {
    use rayon::prelude::*;
    let digest_one = |index: u32| {
        let span = grid.span(index)?;
        let mut buffer = disk::AlignedBuf::new(span.len as usize);
        let bytes = &mut buffer[..span.len as usize];
        part.read_back(span.offset, bytes).ok()?;
        Some((index, digest::chunk(bytes, span.offset)))
    };
    let wanted = old.par_iter().filter(|index| !kept.iter().any(|(i, _)| i == *index));
    wanted.filter_map(|index| digest_one(*index)).collect()
}

impl Run<'_> {
    /// A file's name in the journal.
    #[cfg(feature = "testing")]
    pub(super) fn key_of(&self, handle: Handle) -> Option<PathKey> {
        let planned = self.files.get(&handle).map(|f| &f.planned);
        planned.or_else(|| self.small.get(&handle).map(|s| &s.planned)).map(|p| p.key)
    }

    fn new_handle(&mut self) -> Handle {
        self.next_handle += 1;
        Handle(self.next_handle)
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
                    digests: ChunkSet::default(),
                    durable: 0,
                    sums: sums.into_iter().map(|kind| Combiner::new(kind, grid)).collect(),
                    checksums: Vec::new(),
                    local: None,
                    old: HashMap::new(),
                    tries: planned.tries,
                    damaged: HashMap::new(),
                    write_behind: false,
                    served: Vec::new(),
                    bound: Vec::new(),
                    planned,
                },
            );
        }
        if !binds.is_empty() {
            crate::sys::points::at("destination.bind");
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
        let sparse = self.files.values().filter(|file| file.extents.is_some());
        let known_holes = sparse.fold(0, |sum: u32, file| sum.saturating_add(file.grid.chunks()));
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
        let holes_fit = bound.extents.is_none() || known_holes.saturating_add(file.grid.chunks()) <= HOLE_CHUNKS_MAX;
        if !holes_fit {
            let note = "holes of very large files were not kept: they were written as zeros";
            self.carry.notes.insert(note.to_owned());
        }
        let last = bound.extents.as_ref().and_then(|extents| extents.last());
        let inside = last.is_none_or(|extent| extent.end() <= file.planned.size);
        self.binding -= 1;
        file.stage = Stage::Opening;
        file.extents = bound.extents.filter(|_| holes_fit);
        let planned = file.planned.clone();
        if let Some((class, why)) = status_words(bound.status) {
            return self.give_up(bound.handle, class, why);
        }
        if !inside {
            return self.give_up(bound.handle, Class::Permanent, "the source tells of data behind the file's end");
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
        let (mut known, mut old, mut superseded) = (Vec::new(), Vec::new(), false);
        if let Some(checkpoint) = &self.journal_view
            && let Some(file) = checkpoint.borrow().files.get(&planned.key)
        {
            if (file.size, file.mtime) == (planned.size, planned.mtime) {
                known.extend(file.chunks.iter().map(|(index, digest)| (index, *digest)));
                old.extend(file.stale.iter().flat_map(|stale| stale.iter().map(|(index, _)| index)));
            } else {
                superseded = !file.chunks.is_empty() || file.stale.is_some();
            }
        }
        if superseded {
            // The journal learns of the new version before the part file of the old one is written to.
            self.opening -= 1;
            self.pending.begun.push(record_of(&planned));
            let _ = self.peers[0].out.send(Message::Unbind(vec![handle]));
            self.forget_file(handle);
            return self.parked.push(planned);
        }
        let (probes, id, extents) = (self.ctx.probes.clone(), self.id, file.extents.clone());
        let (place, how) =
            (self.placement.clone(), (wish_of(self.spec.options.io, self.ctx.config.synthetic), self.carry.unread));
        self.ctx.pool.submit(move || {
            let opened =
                open_part(&root, &probes, &planned, &id, extents.as_deref(), known, old, (how.0, &place.home, how.1));
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
                self.carry
                    .notes
                    .insert(format!("{}: the part file of the last run is gone; from the start", planned.to));
                let _ = self.peers[0].out.send(Message::Unbind(vec![handle]));
                self.forget_file(handle);
                self.restart(handle, planned);
                return Ok(());
            }
            Err(error) => {
                self.give_up(handle, error.class, error.what.clone());
                // A full or read-only destination fails every file after this one in the same way: stop here.
                let stop = matches!(error.class, Class::Retry | Class::NoRoom);
                return if stop { Err(error) } else { Ok(()) };
            }
        };
        let OpenedPart { part, plan, kept, forget, zeros, old, fresh, volatile } = opened;
        self.durable_storage &= !volatile && !part.is_synthetic();
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
            self.pending.begun.push(record_of(planned));
        } else if !forget.is_empty() {
            self.pending.forget.push((planned.key, Forget::Chunks(forget)));
        }
        for (index, digest) in &kept {
            file.digests.insert(*index, *digest);
            self.counts.resumed_bytes += file.grid.span(*index).map_or(0, |s| s.len);
            self.counts.placed_bytes += file.grid.span(*index).map_or(0, |s| s.len);
        }
        file.durable = kept.len() as u32;
        // Sums of chunks that are there already are made in one read at the end.
        if !kept.is_empty() || !old.is_empty() {
            file.sums.clear();
        }
        file.old = old;
        for (index, digest) in &zeros {
            file.digests.insert(*index, *digest);
            self.counts.hole_bytes += file.grid.span(*index).map_or(0, |s| s.len);
            file.sums.clear();
        }
        let gaps = file.digests.missing(file.grid.chunks());
        let missing: Vec<(u32, u32)> = gaps.iter().map(|gap| (gap.first, gap.first + gap.count)).collect();
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
        self.account(full);
        if full {
            return;
        }
        let all = self.in_use();
        let well: Vec<_> = all.iter().copied().filter(|(stream, peer)| !self.hangs(*stream, *peer)).collect();
        let mut streams = if well.is_empty() { all } else { well };
        streams.truncate(self.yielded(streams.len()));
        // Who has least to do comes first, and who was relieved of something last: it is not to have it back.
        streams.sort_by_key(|(stream, _)| (self.relieved.contains_key(stream), self.table.held_by(*stream)));
        // What is asked for and not durable is what a crash can cost at most: the bound of DESIGN, however slow the
        // disk is while everything asked for arrives.
        let buffers = if self.near { SOCKETS_NEAR } else { SOCKETS_FAR };
        let most = self.window() + streams.len() as u64 * (CHUNK_SIZE + buffers);
        // Shared out evenly: who comes first would take it all, and the others would stand idle.
        let share = most.saturating_sub(self.uncommitted()) / CHUNK_SIZE / (streams.len() as u64).max(1);
        let depths: Vec<usize> = self
            .peers
            .iter()
            .map(|p| self.yielded(usize::from(p.tune.tuner.knobs.depth).min((share as usize).max(1))))
            .collect();
        let mut again = true;
        while again {
            again = false;
            for (stream, peer) in &streams {
                // One claim each in turn, so that the first stream does not take all there is.
                let packs = self.packs.values().filter(|p| p.stream == *stream).count();
                if *peer == 0 && packs < self.yielded(PACKS_PER_STREAM) && self.claim_pack(*stream) {
                    again = true;
                } else {
                    let room = depths[*peer].saturating_sub(self.table.held_by(*stream)) as u32;
                    again |= room > 0 && self.claim_chunks(*stream, *peer, room.min(RUN_CHUNKS));
                }
            }
        }
        if !self.table.any_free() && self.small_queue.is_empty() && self.table.held() > 0 {
            self.steal(&streams);
        }
    }

    fn claim_chunks(&mut self, stream: StreamKey, peer: usize, most: u32) -> bool {
        let Some(taken) = self.table.next_run(stream, most) else { return false };
        let Some(file) = self.files.get(&taken.handle) else { return false };
        let digests_only = |chunk: u32| file.local.is_some() || file.old.contains_key(&chunk);
        let (mut first, end) = (taken.first, taken.first + taken.count);
        while first < end {
            let only = digests_only(first);
            let count = (first..end).take_while(|chunk| digests_only(*chunk) == only).count() as u32;
            let run = ChunkRun { handle: taken.handle, first, count, digests_only: only };
            let target = file.target.clone().filter(|_| !only);
            let claim = Claim::Chunks { run, size: file.planned.size, target };
            self.peers[peer].links.command(stream, Command::Claim(stream, claim));
            first += count;
        }
        true
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
                file.digests.remove(chunk);
                self.table.unplaced((handle, chunk));
            }
            self.rebind(handle);
        }
        for (handle, _, error) in durable.poisoned {
            self.poisoned(handle, &error);
        }
        for (handle, result) in durable.published {
            match result {
                Ok(digest) => {
                    if let Some(planned) = self.files.get(&handle).map(|file| file.planned.clone()) {
                        self.published(&planned, digest);
                    }
                    self.forget_file(handle);
                }
                Err(CommitFault::NotYet) => {}
                Err(CommitFault::Disk(error)) if self.is_poisoned(handle) => self.poisoned(handle, &error),
                Err(fault) => self.give_up(handle, Class::Permanent, fault.to_string()),
            }
        }
        for (handle, result) in durable.small {
            let Some(small) = self.small.remove(&handle) else { continue };
            match result {
                Ok(digest) => self.published(&small.planned, digest),
                Err(fault) if small.planned.tries < 2 => {
                    tracing::warn!(path = %small.planned.to, %fault, "a small file is fetched again");
                    let tries = small.planned.tries + 1;
                    let named = matches!(&fault, CommitFault::Disk(error) if error.is_exists() || error.came_after_the_rename());
                    if named {
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

    fn published(&mut self, planned: &Planned, digest: Digest) {
        crate::sys::points::told("destination.told", &planned.to);
        self.carry.published.insert(planned.key);
        self.carry.bytes += planned.size;
        self.carry.files += 1;
        self.counts.files_done += 1;
        self.arrived(planned.key, digest);
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
}

fn record_of(planned: &Planned) -> FileRecord {
    FileRecord {
        key: planned.key,
        root: planned.root,
        path: planned.path.clone(),
        size: planned.size,
        mtime: planned.mtime,
        mode: planned.mode,
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

/// The digest of a file that is one chunk or none.
fn small_digest(size: u64, chunk: &Digest) -> Digest {
    digest::file(size, (size > 0).then_some(chunk))
}

fn file_digest(grid: Grid, digests: &ChunkSet) -> Option<Digest> {
    Some(digest::file(grid.size(), &digests.complete(grid.chunks())?))
}

/// Whether what stands there is a directory, for the finish.
pub(super) fn is_directory(existing: &Existing) -> bool {
    matches!(existing, Existing::Dir(_))
}
