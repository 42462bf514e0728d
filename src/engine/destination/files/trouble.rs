//! What went wrong with a big file: other bytes than expected, a failed chunk, a failed sync.

use super::*;
use crate::engine::links::Live;

/// How long a session may be without any data stream while there is something to fetch.
const STREAMLESS_MAX: Duration = Duration::from_secs(45);

impl Run<'_> {
    /// The whole is not what it must be. If further sources brought parts of it, those parts are fetched again from the
    /// first; else the source is bad.
    pub(super) fn not_as_expected(&mut self, handle: Handle, got: String) {
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

    /// The file does not arrive in this run. Its part file and journal stay: a later run keeps what is right.
    pub(in crate::engine::destination) fn give_up(&mut self, handle: Handle, class: Class, why: impl Into<String>) {
        let Some(file) = self.files.get(&handle) else { return };
        let path = file.planned.to.clone();
        let _ = self.peers[0].out.send(Message::Unbind(vec![handle]));
        self.forget_file(handle);
        self.fail(&path, class, why);
    }

    pub(super) fn chunk_failed(
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
                let times = file.damaged.entry(chunk).or_default();
                *times += 1;
                let path = file.planned.to.clone();
                if *times > TRIES {
                    self.give_up(
                        handle,
                        Class::Verification,
                        "a chunk keeps arriving damaged; check memory and network, and that the file is not being changed at the source",
                    );
                } else {
                    self.carry.note(format!("a damaged chunk of {path} was refused and fetched again"));
                    self.clear_chunk(handle, chunk);
                }
            }
            ChunkFault::Source(_) if peer != 0 => self.drop_peer(peer, "it refuses what it had bound"),
            ChunkFault::Source(status) => {
                let (class, why) = status_words(status).unwrap_or((Class::OtherSource, "cannot be read at the source"));
                self.give_up(handle, class, why);
            }
            ChunkFault::Write(kind, errno) => {
                let on = file.part.as_ref().and_then(|part| part.file_system());
                let error = write_error(kind, errno, &file.planned.to, on);
                self.give_up(handle, error.class, error.what.clone());
                return Err(error);
            }
        }
        Ok(())
    }

    /// A chunk of a file with holes is fetched again: what a damaged or foreign frame may have written into its holes
    /// must not stay there.
    pub(super) fn clear_chunk(&mut self, handle: Handle, chunk: u32) {
        let Some(file) = self.files.get(&handle).filter(|f| f.extents.is_some()) else { return };
        if let (Some(part), Some(span)) = (file.part.clone(), file.grid.span(chunk)) {
            // Before the chunk is claimed again, so here and now.
            if let Err(error) = part.punch(span) {
                self.give_up(handle, Class::Permanent, error.to_string());
            }
        }
    }

    /// A misread chunk is fetched again: the source has closed the file with its seal.
    pub(super) fn rebind(&mut self, handle: Handle) {
        // The source's handles are never used twice, so the file starts over under a new one; what is durable is kept.
        let Some(file) = self.files.get(&handle) else { return };
        let planned = Planned { tries: file.tries, ..file.planned.clone() };
        self.forget_file(handle);
        self.big_queue.push_back(planned);
    }

    /// Dials are repeated for ever, since a cable may come back; but a session that has only its control connection, and no
    /// stream for so long, is not getting anywhere. Streams that come up and go down again before they brought a byte are
    /// none: the end that accepts them may have no descriptor left for them.
    pub(in crate::engine::destination) fn streams_alive(&mut self) -> Result<(), TransferError> {
        let live = self.peers.iter().any(|peer| peer.links.live.values().any(Live::is_proven));
        let asked =
            self.table.any_free() || self.table.held() > 0 || !self.small_queue.is_empty() || !self.packs.is_empty();
        if live || !asked {
            self.carry.streamless = None;
            return Ok(());
        }
        if clock::since(*self.carry.streamless.get_or_insert_with(clock::now)) < STREAMLESS_MAX {
            return Ok(());
        }
        self.carry.streamless = None;
        let what = "no data stream could be opened, or none stayed, for 45 s: too many open files at one of the ends (raise `ulimit -n`), or a \
                    firewall that lets only the first connection through";
        Err(TransferError::new(Class::Reconnect, what))
    }

    pub(super) fn is_poisoned(&self, handle: Handle) -> bool {
        self.files.get(&handle).and_then(|file| file.part.as_ref()).is_some_and(|part| part.is_poisoned())
    }

    /// After a failed sync nothing that was written since the last good one can be trusted, and no second sync can mend
    /// it: the file starts again, through a new descriptor and a new part file.
    pub(super) fn poisoned(&mut self, handle: Handle, error: &disk::DiskError) {
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
}
