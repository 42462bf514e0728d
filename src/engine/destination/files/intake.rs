//! What comes in: a source's messages, what jobs have come to, and the plan for each name of the manifest.

use super::*;

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

    pub(super) fn resumed(&mut self, key: PathKey, size: u64) {
        self.counts.files_done += 1;
        if !self.carry.published.contains(&key) {
            self.counts.resumed_bytes += size;
            self.counts.skipped_files += 1;
        }
    }
}
