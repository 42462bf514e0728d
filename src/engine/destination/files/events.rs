//! What the workers tell: chunks placed, compared, failed, given back.

use super::*;

impl Run<'_> {
    /// Takes an event of a worker.
    pub(in crate::engine::destination) fn event(&mut self, event: Event) -> Result<(), TransferError> {
        match &event {
            Event::Placed { stream, handle, chunk, .. }
            | Event::ChunkFailed { stream, handle, chunk, .. }
            | Event::ChunkDigest { stream, handle, chunk, .. } => {
                self.through(*stream);
                self.carry.takeovers.settled(*stream, *handle, *chunk, 0);
            }
            _ => {}
        }
        match event {
            Event::Placed { stream, handle, chunk, digest, sums, latency_ns } => {
                if self.table.placed(stream, (handle, chunk)) {
                    Latency::record(&mut self.carry.latency, latency_ns);
                    self.chunk_placed(stream, handle, chunk, digest, sums);
                }
            }
            Event::ChunkFailed { stream, handle, chunk, why } => return self.chunk_failed(stream, handle, chunk, why),
            Event::ChunkDigest { stream, handle, chunk, digest }
                if self.files.get(&handle).is_some_and(|file| file.old.contains_key(&chunk)) =>
            {
                self.old_compared(stream, handle, chunk, digest);
            }
            Event::ChunkDigest { stream, handle, chunk, digest } => {
                if self.table.placed(stream, (handle, chunk)) {
                    self.chunk_compared(handle, chunk, digest);
                }
            }
            Event::Released { stream, handle, chunk, arrived } => {
                self.carry.takeovers.released(stream, handle, chunk, arrived);
                if self.table.freed(stream, (handle, chunk)) && arrived > 0 {
                    self.clear_chunk(handle, chunk);
                }
            }
            Event::Drained { stream, handle, chunk, in_vain } => {
                self.through(stream);
                self.carry.takeovers.settled(stream, handle, chunk, in_vain);
            }
            Event::Pack { number, body, entries, last, .. } => self.pack_arrived(number, body, entries, last),
            Event::Dead { stream, why } => self.stream_dead(stream, &why),
        }
        Ok(())
    }

    pub(super) fn chunk_placed(
        &mut self,
        stream: StreamKey,
        handle: Handle,
        chunk: u32,
        digest: Digest,
        sums: (u32, u32),
    ) {
        let peer = self.stream_peer.get(&stream).copied().unwrap_or(0);
        let several = self.peers.len() > 1;
        let Some(file) = self.files.get_mut(&handle) else { return };
        let Some(part) = file.part.clone() else { return };
        let Some(span) = file.grid.span(chunk) else { return };
        file.digests.insert(chunk, digest);
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

    /// The source's digest of a chunk that an earlier version left: kept if it is the same, else fetched.
    fn old_compared(&mut self, stream: StreamKey, handle: Handle, chunk: u32, digest: Digest) {
        let Some(file) = self.files.get_mut(&handle) else { return };
        let same = file.old.get(&chunk) == Some(&digest);
        let len = file.grid.span(chunk).map_or(0, |span| span.len);
        if !same {
            if self.table.freed(stream, (handle, chunk)) {
                file.old.remove(&chunk);
            }
        } else if self.table.placed(stream, (handle, chunk)) {
            file.old.remove(&chunk);
            self.counts.resumed_bytes += len;
            self.chunk_placed(stream, handle, chunk, digest, (0, 1));
        }
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
        file.digests.insert(chunk, digest);
        self.look_if_whole(handle);
    }
}
