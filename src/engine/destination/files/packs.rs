//! Small files: asked for in packs, written whole, handed to the commit together.

use super::*;

impl Run<'_> {
    pub(super) fn claim_pack(&mut self, stream: StreamKey) -> bool {
        // What is written and not yet committed is still in `small`.
        if self.small.len() >= small_open_max() {
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

    /// Files of a pack whose stream is gone, or that did not come right, are asked for again. Only the latter counts as a
    /// try: the former says nothing about the file.
    pub(in crate::engine::destination) fn requeue(&mut self, pack: Pack, stream_gone: bool) {
        for handle in pack.open {
            let Some(mut small) = self.small.remove(&handle) else { continue };
            small.planned.tries += u32::from(!stream_gone);
            if small.planned.tries > TRIES {
                self.fail(&small.planned.to, Class::Verification, "did not arrive intact after several tries");
            } else {
                self.small_queue.push_back(small.planned);
            }
        }
    }

    pub(super) fn pack_arrived(
        &mut self,
        number: u32,
        body: PackBody,
        entries: Vec<(PackEntry, Option<Digest>)>,
        last: bool,
    ) {
        let Some(pack) = self.packs.get_mut(&number) else { return };
        let mut write = Vec::new();
        let (mut failed, mut other) = (Vec::new(), Vec::new());
        for (entry, digest) in entries {
            // What is answered once is not answered again.
            let Some(at) = pack.open.iter().position(|h| *h == entry.handle) else { continue };
            match (entry.status, digest) {
                (Status::Ok, None) => self.carry.failed_chunks += 1, // stays open: asked for again
                (Status::Ok, Some(digest)) => {
                    pack.open.swap_remove(at);
                    let wrong = self.small.get(&entry.handle).and_then(|Small { planned }| {
                        let whole = small_digest(planned.size, &digest);
                        self.spec.rows.as_ref()?.contradiction(planned.root, planned.size, Some(&whole))
                    });
                    match wrong {
                        Some(why) => other.push((entry.handle, why)),
                        None => write.push((entry, digest)),
                    }
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
        for (handle, why) in other {
            if let Some(small) = self.small.remove(&handle) {
                self.fail(&small.planned.to, Class::Verification, why);
            }
        }
        if last && let Some(pack) = self.packs.remove(&number) {
            self.requeue(pack, false);
        }
        if write.is_empty() {
            return;
        }
        let jobs: Vec<_> = write
            .into_iter()
            .filter_map(|(entry, digest)| {
                let small = self.small.get(&entry.handle)?;
                let meta = meta_of(&small.planned, self);
                let proof =
                    Proof { digest: small_digest(small.planned.size, &digest), signed: self.signature(&small.planned) };
                Some((entry, (digest, proof), small.planned.to.clone(), small.planned.size, meta))
            })
            .collect();
        self.pending_bytes += jobs.iter().map(|(.., size, _)| size).sum::<u64>();
        self.creating += 1;
        let (root, id, done) = (self.root.clone(), self.id, self.done.clone());
        self.ctx.pool.submit(move || {
            let mut body = body;
            let bytes = &mut body.slot.as_mut_slice()[SLOT_HEAD as usize..];
            let made = create_pack(&root, jobs.iter().map(|(_, _, to, ..)| to), &id);
            let written = std::iter::zip(jobs, made)
                .map(|((entry, (chunk, proof), _, _, meta), made)| {
                    let content = &mut bytes[entry.content.clone()];
                    crate::sys::points::flip("destination.pack-content", content);
                    (entry.handle, made.and_then(|new| new.fill(content, &meta, Some(proof))), chunk)
                })
                .collect();
            drop(body);
            let _ = done.send(Done::Small(written));
        });
    }

    pub(super) fn small_written(
        &mut self,
        written: Vec<crate::engine::destination::run::Written>,
    ) -> Result<(), TransferError> {
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
                        digest: small_digest(planned.size, &chunk),
                        size: planned.size,
                        mtime: planned.mtime,
                    });
                }
                Err(error) => {
                    self.small.remove(&handle);
                    let error = disk_error(&error);
                    self.fail(&planned.to, error.class, error.what.clone());
                    if matches!(error.class, Class::Retry | Class::NoRoom) {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}
