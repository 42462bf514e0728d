//! The claim table: which stream has been asked for which chunk. Pure: no clock, no socket, no disk.
//!
//! A chunk of an open file is *free*, *held* by exactly one stream, or *placed*. A stream that dies gives back what it
//! held. Near the end, when nothing is free, an idle stream may take over a chunk that another holds: the holder is told
//! to release it, and only its answer frees the chunk, so two streams never hold one chunk.

use super::worker::{SessionKey, StreamKey};
use crate::grid::Grid;
use crate::ids::Handle;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// A chunk of a file.
pub type ChunkId = (Handle, u32);

#[derive(Debug)]
struct File {
    grid: Grid,
    /// Free chunks as ranges: first to one past the last.
    free: BTreeMap<u32, u32>,
    held: HashMap<u32, StreamKey>,
    placed: u32,
    /// Sessions that may serve it.
    sessions: Vec<SessionKey>,
}

#[derive(Debug)]
struct Stream {
    session: SessionKey,
    /// In the order asked.
    held: VecDeque<ChunkId>,
    releasing: BTreeSet<ChunkId>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct ClaimTable {
    files: BTreeMap<Handle, File>,
    /// Files with free chunks, oldest first.
    open: BTreeSet<Handle>,
    streams: BTreeMap<StreamKey, Stream>,
}

/// Consecutive free chunks, now held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The file.
    pub handle: Handle,
    /// First chunk.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// A chunk that a stream could be relieved of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Who holds it.
    pub holder: StreamKey,
    /// Which.
    pub id: ChunkId,
    /// Its bytes.
    pub len: u64,
    /// Bytes of what the holder has to bring until it is through with it, itself included.
    pub through: u64,
}

impl ClaimTable {
    /// Adds a file of which `missing` ranges (first, one past the last) are to be fetched.
    pub fn add_file(&mut self, handle: Handle, grid: Grid, missing: &[(u32, u32)], sessions: Vec<SessionKey>) {
        let free: BTreeMap<u32, u32> = missing.iter().copied().filter(|(a, b)| a < b).collect();
        let wanted: u32 = free.iter().map(|(a, b)| b - a).sum();
        if !free.is_empty() {
            self.open.insert(handle);
        }
        self.files.insert(handle, File { grid, free, held: HashMap::new(), placed: grid.chunks() - wanted, sessions });
    }

    /// Lets another session serve a file.
    pub fn allow(&mut self, handle: Handle, session: SessionKey) {
        if let Some(file) = self.files.get_mut(&handle)
            && !file.sessions.contains(&session)
        {
            file.sessions.push(session);
        }
    }

    /// Takes a file out, whatever its state. Chunks on their way are ignored when they come.
    pub fn remove_file(&mut self, handle: Handle) {
        self.files.remove(&handle);
        self.open.remove(&handle);
        for stream in self.streams.values_mut() {
            stream.held.retain(|id| id.0 != handle);
            stream.releasing.retain(|id| id.0 != handle);
        }
    }

    /// Adds a stream.
    pub fn add_stream(&mut self, stream: StreamKey, session: SessionKey) {
        self.streams.insert(stream, Stream { session, held: VecDeque::new(), releasing: BTreeSet::new() });
    }

    /// Walk 6: the next run of at most `most` chunks for `stream`, from the oldest file that its session may serve.
    pub fn next_run(&mut self, stream: StreamKey, most: u32) -> Option<Taken> {
        let holder = self.streams.get_mut(&stream)?;
        let handle = *self.open.iter().find(|h| self.files[*h].sessions.contains(&holder.session))?;
        let file = self.files.get_mut(&handle)?;
        let (&first, &end) = file.free.first_key_value()?;
        let count = most.max(1).min(end - first);
        file.free.remove(&first);
        if first + count < end {
            file.free.insert(first + count, end);
        } else if file.free.is_empty() {
            self.open.remove(&handle);
        }
        for chunk in first..first + count {
            file.held.insert(chunk, stream);
            holder.held.push_back((handle, chunk));
        }
        Some(Taken { handle, first, count })
    }

    /// The chunk is in its part file. `true` when it was held by this stream, that is when it counts.
    pub fn placed(&mut self, stream: StreamKey, id: ChunkId) -> bool {
        let held = self.let_go(stream, id);
        if held && let Some(file) = self.files.get_mut(&id.0) {
            file.placed += 1;
        }
        held
    }

    /// The chunk failed or was released: it is free again. `true` when it was held by this stream.
    pub fn freed(&mut self, stream: StreamKey, id: ChunkId) -> bool {
        let held = self.let_go(stream, id);
        if held {
            self.add_free(id);
        }
        held
    }

    /// A placed chunk is not to be trusted (failed sync, failed read-back): it is free again.
    pub fn unplaced(&mut self, id: ChunkId) {
        if let Some(file) = self.files.get_mut(&id.0) {
            file.placed -= 1;
            self.add_free(id);
        }
    }

    fn let_go(&mut self, stream: StreamKey, id: ChunkId) -> bool {
        if let Some(holder) = self.streams.get_mut(&stream) {
            if let Some(at) = holder.held.iter().position(|h| *h == id) {
                holder.held.remove(at);
            }
            holder.releasing.remove(&id);
        }
        match self.files.get_mut(&id.0) {
            Some(file) if file.held.get(&id.1) == Some(&stream) => {
                file.held.remove(&id.1);
                true
            }
            _ => false,
        }
    }

    fn add_free(&mut self, (handle, chunk): ChunkId) {
        let Some(file) = self.files.get_mut(&handle) else { return };
        let mut end = chunk + 1;
        if let Some(next_end) = file.free.remove(&end) {
            end = next_end;
        }
        match file.free.range_mut(..chunk).next_back() {
            Some((_, before)) if *before == chunk => *before = end,
            _ => drop(file.free.insert(chunk, end)),
        }
        self.open.insert(handle);
    }

    /// A stream is gone: all it held is free again.
    pub fn remove_stream(&mut self, stream: StreamKey) -> Vec<ChunkId> {
        let Some(holder) = self.streams.remove(&stream) else { return Vec::new() };
        let mut freed = Vec::new();
        for id in holder.held {
            if let Some(file) = self.files.get_mut(&id.0)
                && file.held.get(&id.1) == Some(&stream)
            {
                file.held.remove(&id.1);
                freed.push(id);
            }
        }
        freed.iter().for_each(|id| self.add_free(*id));
        freed
    }

    /// The chunk that `idle` gains most by taking over, of the last ones that other streams hold. Nothing has changed yet.
    pub fn best_to_take(&self, idle: StreamKey, gain: impl Fn(&Candidate) -> Option<u64>) -> Option<Candidate> {
        if !self.open.is_empty() {
            return None;
        }
        let session = self.streams.get(&idle)?.session;
        let pick = |(key, holder): (&StreamKey, &Stream)| {
            let allowed = |id: &&ChunkId| {
                !holder.releasing.contains(*id) && self.files.get(&id.0).is_some_and(|f| f.sessions.contains(&session))
            };
            let at = holder.held.iter().rposition(|id| allowed(&id))?;
            let len = |id: &ChunkId| self.files.get(&id.0).and_then(|f| f.grid.span(id.1)).map_or(0, |span| span.len);
            let through = holder.held.iter().take(at + 1).map(len).sum();
            let id = holder.held[at];
            let candidate = Candidate { holder: *key, id, len: len(&id), through };
            Some((gain(&candidate)?, candidate))
        };
        let others = self.streams.iter().filter(|(key, _)| **key != idle);
        others.filter_map(pick).max_by_key(|(gain, _)| *gain).map(|(_, candidate)| candidate)
    }

    /// The holder is told to release a chunk; it is free with its answer.
    pub fn take(&mut self, holder: StreamKey, id: ChunkId) {
        if let Some(holder) = self.streams.get_mut(&holder) {
            holder.releasing.insert(id);
        }
    }

    /// Chunks that a stream holds.
    pub fn held_by(&self, stream: StreamKey) -> usize {
        self.streams.get(&stream).map_or(0, |s| s.held.len())
    }

    /// Whether any chunk is free.
    pub fn any_free(&self) -> bool {
        !self.open.is_empty()
    }

    /// Chunks held by all streams.
    pub fn held(&self) -> usize {
        self.streams.values().map(|s| s.held.len()).sum()
    }

    /// Whether every chunk of a file is placed.
    pub fn complete(&self, handle: Handle) -> bool {
        self.files.get(&handle).is_some_and(|f| f.placed == f.grid.chunks() && f.held.is_empty() && f.free.is_empty())
    }

    /// Panics when a chunk is lost or held twice. Cheap enough for tests and simulation, not for every turn.
    pub fn assert_invariants(&self) {
        for (handle, file) in &self.files {
            let free: u32 = file.free.iter().map(|(a, b)| b - a).sum();
            assert_eq!(free + file.held.len() as u32 + file.placed, file.grid.chunks(), "chunks of {handle:?} add up");
            assert_eq!(!file.free.is_empty(), self.open.contains(handle));
            for (chunk, stream) in &file.held {
                let count = self.streams[stream].held.iter().filter(|id| **id == (*handle, *chunk)).count();
                assert_eq!(count, 1, "a held chunk is held once");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::CHUNK_SIZE;
    use proptest::prelude::*;

    fn table(chunks: u32) -> ClaimTable {
        let mut table = ClaimTable::default();
        let grid = Grid::new(u64::from(chunks) * CHUNK_SIZE).unwrap();
        table.add_file(Handle(1), grid, &[(0, chunks)], vec![1, 2]);
        table.add_stream(10, 1);
        table.add_stream(20, 2);
        table
    }

    #[test]
    fn a_dead_stream_gives_back_and_late_news_of_it_do_not_count() {
        let mut table = table(8);
        let taken = table.next_run(10, 4).unwrap();
        assert_eq!((taken.first, taken.count), (0, 4));
        assert!(table.placed(10, (Handle(1), 0)));
        assert_eq!(table.remove_stream(10).len(), 3);
        assert!(!table.placed(10, (Handle(1), 1)), "a stream that is gone places nothing");
        assert_eq!(table.next_run(20, 100), Some(Taken { handle: Handle(1), first: 1, count: 7 }));
        table.assert_invariants();
    }

    #[test]
    fn a_session_that_may_not_serve_a_file_gets_none_of_it() {
        let mut table = ClaimTable::default();
        table.add_file(Handle(1), Grid::new(CHUNK_SIZE).unwrap(), &[(0, 1)], vec![1]);
        table.add_stream(20, 2);
        assert_eq!(table.next_run(20, 1), None);
        table.allow(Handle(1), 2);
        assert!(table.next_run(20, 1).is_some());
    }

    #[test]
    fn stealing_waits_for_the_release() {
        let mut table = table(4);
        table.next_run(10, 4).unwrap();
        let (all, none) = (|c: &Candidate| Some(c.through), |_: &Candidate| None);
        assert_eq!(table.best_to_take(20, none), None);
        let best = table.best_to_take(20, all).unwrap();
        let id = (Handle(1), 3);
        assert_eq!((best.holder, best.id, best.len, best.through), (10, id, CHUNK_SIZE, 4 * CHUNK_SIZE));
        table.take(10, id);
        assert_eq!(table.next_run(20, 1), None, "not before the holder has let go");
        assert!(table.freed(10, id));
        assert_eq!(table.next_run(20, 1), Some(Taken { handle: Handle(1), first: 3, count: 1 }));
        assert!(table.placed(10, (Handle(1), 0)) && table.placed(10, (Handle(1), 1)));
        let last = table.best_to_take(20, all).unwrap();
        assert_eq!((last.id, last.through), ((Handle(1), 2), CHUNK_SIZE));
        table.take(10, last.id);
        assert_eq!(table.best_to_take(20, all), None, "asked for once");
        table.assert_invariants();
    }

    proptest! {
        /// Whatever happens in whatever order, no chunk is lost or held twice, and it ends.
        #[test]
        fn chunks_are_never_lost_or_doubled(steps in proptest::collection::vec((0u8..6, 0u32..12, 1u32..4), 1..300)) {
            let mut table = table(12);
            let mut streams = vec![10u64, 20];
            let mut next = 30;
            for (what, chunk, count) in steps {
                let stream = streams[chunk as usize % streams.len()];
                let id = (Handle(1), chunk);
                match what {
                    0 => drop(table.next_run(stream, count)),
                    1 => drop(table.placed(stream, id)),
                    2 => drop(table.freed(stream, id)),
                    3 => {
                        if let Some(best) = table.best_to_take(stream, |c| (c.holder % 20 == 0).then_some(c.through)) {
                            table.take(best.holder, best.id);
                        }
                    }
                    4 => {
                        table.remove_stream(stream);
                        streams.retain(|s| *s != stream);
                        table.add_stream(next, 1 + next % 2);
                        streams.push(next);
                        next += 10;
                    }
                    _ => {
                        let placed = table.files[&Handle(1)].placed;
                        let file = &table.files[&Handle(1)];
                        let free = file.free.iter().any(|(a, b)| (*a..*b).contains(&chunk));
                        if placed > 0 && !free && !file.held.contains_key(&chunk) {
                            table.unplaced(id);
                        }
                    }
                }
                table.assert_invariants();
            }
            for round in 0..100 {
                if table.complete(Handle(1)) { break; }
                prop_assert!(round < 99, "it terminates");
                for stream in &streams {
                    while table.next_run(*stream, 3).is_some() {}
                    for chunk in 0..12 { table.placed(*stream, (Handle(1), chunk)); }
                }
            }
        }
    }
}
