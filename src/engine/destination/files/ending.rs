//! The end of a big file: whole, perhaps hashed once more, sealed, compared with what was expected, published.

use super::*;

impl Run<'_> {
    /// A file that has all its chunks goes on to its seal (by way of a second read, if some checksum needs one).
    pub(super) fn look_if_whole(&mut self, handle: Handle) {
        let Some(file) = self.files.get_mut(&handle) else { return };
        if file.stage != Stage::Fetching || file.digests.len() < file.grid.chunks() {
            return;
        }
        if file.local.is_some() {
            self.counts.skipped_files += 1;
            self.counts.skipped_bytes += file.planned.size;
            self.counts.files_done += 1;
            self.counts.total_bytes -= file.planned.size;
            let (key, digest) = (file.planned.key, file_digest(file.grid, &file.digests));
            digest.into_iter().for_each(|digest| self.arrived(key, digest));
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

    pub(super) fn hashed(&mut self, handle: Handle, sums: Result<Sums, TransferError>) {
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
    pub(super) fn seal(&mut self, handle: Handle) {
        let Some(file) = self.files.get_mut(&handle) else { return };
        let digest = file_digest(file.grid, &file.digests).expect("all chunks are there");
        let mut checksums = file.checksums.clone();
        checksums.push(Expected { kind: ChecksumKind::Xxh3, hex: digest.to_string() });
        if let Some(want) = &self.spec.options.expect {
            let got = checksums.iter().find(|c| c.kind == want.kind);
            if !got.is_some_and(|got| got.hex.eq_ignore_ascii_case(&want.hex)) {
                return self.not_as_expected(handle, got.map(|g| g.hex.clone()).unwrap_or_default());
            }
        }
        let rows = self.spec.rows.as_ref();
        if let Some(why) = rows.and_then(|r| r.contradiction(file.planned.root, file.planned.size, Some(&digest))) {
            return self.give_up(handle, Class::Verification, why);
        }
        file.stage = Stage::Sealing;
        self.sealing += 1;
        self.expected_seen = Some((digest, checksums));
        crate::sys::points::at("destination.seal");
        let _ = self.peers[0].out.send(Message::Seal(vec![handle]));
    }

    pub(super) fn sealed(&mut self, sealed: Sealed) {
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
    pub(in crate::engine::destination) fn collect_publishable(&mut self) {
        let ready: Vec<Handle> = self
            .files
            .iter()
            .filter(|(handle, file)| {
                let here = self.pending.placed.iter().find(|p| p.handle == **handle).map_or(0, |p| p.chunks.len());
                file.stage == Stage::Sealed && file.durable as usize + here == file.grid.chunks() as usize
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
                digest: file_digest(file.grid, &file.digests).expect("all chunks are there"),
                signed: self.signature(&file.planned),
                mtime: file.planned.mtime,
                replace,
            };
            self.pending.publish.push(publish);
            if let Some(file) = self.files.get_mut(&handle) {
                file.stage = Stage::Publishing;
            }
        }
    }
}
