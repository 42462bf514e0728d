//! What comes in: a source's messages, what jobs have come to, and the plan for each name of the manifest.

use super::*;
use crate::engine::destination::prepare::look;
use crate::manifest::{Entry, SegmentReader};
use std::sync::atomic::Ordering;

/// Files known and not finished above which the source waits with further segments: bounds memory.
const AHEAD_FILES: usize = 8192;
/// The same for the memory of their names, which may be 4 KiB each, and of what else is kept for each.
const AHEAD_BYTES: usize = 8 << 20;
/// Memory of the names that are decoded and looked at in one go; so much may come on top of [`AHEAD_BYTES`].
const LOOK_BYTES: usize = 1 << 20;
/// Memory of a file known and not finished, beside its name.
const NAME_OVERHEAD: usize = 512;

impl Run<'_> {
    /// Takes a message of a source.
    pub(in crate::engine::destination) fn message(
        &mut self,
        peer: usize,
        message: Message,
    ) -> Result<(), TransferError> {
        let hostile = |what: &str| Err(TransferError::new(Class::Permanent, format!("the source {what}")));
        match message {
            Message::Segment(_) | Message::ManifestEnd(_) | Message::Problem { .. } if peer != 0 => Ok(()),
            Message::Segment(_) if self.manifest_end.is_some() => hostile("adds to its manifest behind its end"),
            Message::Segment(bytes) => {
                self.segments_seen += 1;
                if self.segments.len() > 2 * crate::limits::SEGMENT_CREDIT as usize {
                    return hostile("sends more of its manifest than it may");
                }
                self.segments.push_back(bytes);
                Ok(())
            }
            Message::ManifestEnd(count) if count == self.segments_seen => {
                self.manifest_end = Some(count);
                Ok(())
            }
            Message::ManifestEnd(_) => hostile("counts its manifest segments wrongly"),
            Message::Wish(wish) => {
                self.wished(peer, wish);
                Ok(())
            }
            Message::Sample(view) => {
                self.sampled(peer, &view);
                Ok(())
            }
            Message::Problem { root, path, what } => {
                // Its place here, as in every other failure; a path that no place can have, as the source says it.
                let place = self.placement.prefixes.get(usize::from(root)).and_then(|p| p.join(&path).ok());
                let path = place.unwrap_or_default();
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
    pub(in crate::engine::destination) fn done(&mut self, done: Done) -> Result<(), TransferError> {
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

    /// Takes in more of the manifest as long as there is room for it.
    pub(in crate::engine::destination) fn look_at_segments(&mut self) -> Result<(), TransferError> {
        let known_bytes = self.known_bytes.load(Ordering::Relaxed);
        if self.looking || self.known() >= AHEAD_FILES || known_bytes >= AHEAD_BYTES {
            return Ok(());
        }
        let hostile = |what: String| TransferError::new(Class::Permanent, format!("the source {what}"));
        let refused = |error| hostile(format!("sent a manifest that is refused: {error}"));
        let mut reader = match self.reading.take() {
            Some(reader) => reader,
            None => {
                let Some(bytes) = self.segments.pop_front() else { return Ok(()) };
                let reader = SegmentReader::open(bytes).map_err(refused)?;
                if reader.index() != self.segments_decoded {
                    return Err(hostile("sent a manifest segment out of its turn".to_owned()));
                }
                self.segments_decoded += 1;
                reader
            }
        };
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while bytes < LOOK_BYTES {
            let Some(entry) = reader.next_entry().map_err(refused)? else { break };
            // Each name is there twice: as the source says it and as the destination does.
            bytes += 2 * entry.path.as_bytes().len() + 200;
            entries.push(entry);
        }
        if bytes < LOOK_BYTES {
            self.held_credit += 1;
        } else {
            self.reading = Some(reader);
        }
        self.looking = true;
        let (root, placement, done) = (self.root.clone(), self.placement.clone(), self.done.clone());
        let dry_run = self.spec.options.dry_run;
        self.ctx.pool.submit(move || drop(done.send(Done::Looked(look(entries, &root, &placement, dry_run)))));
        Ok(())
    }

    /// Files known and not finished.
    fn known(&self) -> usize {
        self.big_queue.len() + self.small_queue.len() + self.files.len() + self.small.len()
    }

    pub(super) fn plan(&mut self, looked: Looked) {
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
            Err(error) => {
                let error = disk_error(&error);
                return self.fail(&path, error.class, error.what);
            }
        };
        if let Some(rows) = self.spec.rows.as_ref().filter(|_| entry.kind != EntryKind::Special) {
            rows.named(&entry);
        }
        let policy = self.spec.options.if_exists;
        let action = match &self.journal_view {
            Some(checkpoint) => decide(&entry, key, &existing, &checkpoint.borrow(), policy, &self.id),
            None => decide(&entry, key, &existing, &Default::default(), policy, &self.id),
        };
        let dry_run = self.spec.options.dry_run;
        if let EntryKind::File { size, .. } = entry.kind {
            self.counts.total_files += 1;
            if !matches!(action, Action::Skip | Action::Resumed | Action::Renamed(_) | Action::Conflict(_)) {
                self.counts.total_bytes += size;
            }
        }
        if let Some(digest) = self.known_digest(&entry, key, &existing, &action) {
            self.arrived(key, digest);
        }
        match (action, &entry.kind) {
            (Action::Directory, _) => {
                self.counts.directories += 1;
                if !dry_run {
                    self.dirs.push(&entry);
                }
            }
            (Action::Symlink, _) => {
                self.counts.symlinks += 1;
                if !dry_run {
                    self.links_later.push(&entry);
                }
            }
            (Action::Special, _) => {
                self.counts.special += 1;
                self.carry.note(format!("skipped, neither file, directory nor symlink: {path}"));
            }
            (Action::Conflict(why), _) => self.fail(&path, Class::Permanent, why),
            (Action::Skip, EntryKind::File { size, .. }) => {
                self.counts.skipped_files += 1;
                self.counts.skipped_bytes += size;
            }
            (Action::Skip, _) => self.counts.symlinks += 1,
            (Action::Resumed, EntryKind::File { size, .. }) => self.resumed(key, *size),
            (Action::Renamed(digest), EntryKind::File { size, .. }) => {
                let done = DoneFile { key, digest };
                self.pending.renamed.push(Renamed { done, root: self.root.clone(), path });
                self.resumed(key, *size);
            }
            (_, EntryKind::File { .. }) if dry_run => {}
            (_, EntryKind::File { size, .. }) if self.wrong_size(entry.root, *size).is_some() => {
                let why = self.wrong_size(entry.root, *size).unwrap_or_default();
                self.fail(&path, Class::Verification, why);
            }
            (action, EntryKind::File { size, sparse }) => {
                let bytes = entry.path.as_bytes().len() + path.as_bytes().len() + NAME_OVERHEAD;
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
                    weight: Weight::new(bytes, &self.known_bytes),
                };
                // A file that must match a known value, or whose checksums are wanted, takes the road with more stations; so
                // does one that is to be dropped, because packs are written.
                let asked = self.spec.options.expect.is_some() || !self.spec.options.checksums.is_empty();
                let alone = asked || self.ctx.config.synthetic.destination();
                let small = action == Action::Pack && !alone;
                if small { self.small_queue.push_back(planned) } else { self.big_queue.push_back(planned) }
            }
            (Action::Resumed | Action::Renamed(_) | Action::Prove | Action::Pack | Action::Fetch, _) => {}
        }
    }

    /// Of a file whose size is not the one that was asked for nothing is fetched.
    fn wrong_size(&self, root: u16, size: u64) -> Option<String> {
        self.spec.rows.as_ref()?.contradiction(root, size, None)
    }

    /// The digest of a file that is there already, as this or an earlier transfer has recorded it.
    fn known_digest(&self, entry: &Entry, key: PathKey, existing: &Existing, action: &Action) -> Option<Digest> {
        match (action, existing, &entry.kind) {
            (Action::Renamed(digest), ..) => Some(*digest),
            (Action::Resumed, ..) => self.journal_view.as_ref()?.borrow().done.get(&key).copied(),
            (Action::Skip, Existing::File { stat, record }, EntryKind::File { size, .. }) => {
                let signed = |proof: &Proof| proof.signed.is_some_and(|by| by.mtime == entry.mtime);
                let same = |proof: &Proof| stat.size == *size && (stat.mtime == entry.mtime || signed(proof));
                record.filter(same).map(|proof| proof.digest)
            }
            _ => None,
        }
    }

    pub(super) fn resumed(&mut self, key: PathKey, size: u64) {
        self.counts.files_done += 1;
        if !self.carry.published.contains(&key) {
            self.carry.unread_files += u64::from(self.carry.unread);
            self.counts.resumed_bytes += size;
            self.counts.skipped_files += 1;
        }
    }
}
