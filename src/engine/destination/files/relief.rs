//! Near the end: streams that have nothing left to do take chunks over from others.

use super::*;
use crate::engine::claims::Candidate;
use crate::engine::destination::pace::NEVER;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// A stream that brings nothing for so long has stopped, if it was not so slow before that this is nothing.
const QUIET: Duration = Duration::from_secs(2);
/// What a takeover has to save at least, ns: what the release and the new Want take on the way, and what an estimate is off by.
const SAVES_MIN: u64 = 250_000_000;

/// What takeovers may cost. A chunk that its holder had begun to bring may come twice, and nobody knows before it has come:
/// each counts whole until that is settled.
#[derive(Debug, Default)]
pub(in crate::engine::destination) struct Takeovers {
    /// Chunks given back whose way is not clear yet: what they may cost, and what they have cost so far.
    open: BTreeMap<(StreamKey, Handle, u32), (u64, u64)>,
    /// Bytes that came in vain.
    cost: u64,
}

impl Takeovers {
    /// One that may cost so many bytes, if the budget has them: a hundredth of the transfer, and a chunk in any case.
    fn begin(&mut self, stream: StreamKey, (handle, chunk): (Handle, u32), may_cost: u64, total: u64) -> bool {
        let open: u64 = self.open.values().map(|(may, so_far)| may.max(so_far)).sum();
        let fits = self.cost + open + may_cost <= (total / 100).max(CHUNK_SIZE);
        // A stream may have a chunk back that it gave away: not twice, while the first time is not settled.
        let key = (stream, handle, chunk);
        let begins = fits && !self.open.contains_key(&key);
        if begins {
            self.open.insert(key, (may_cost, 0));
        }
        begins
    }

    /// The chunk is free; so much of it had come.
    pub(super) fn released(&mut self, stream: StreamKey, handle: Handle, chunk: u32, arrived: u64) {
        if let Some((_, so_far)) = self.open.get_mut(&(stream, handle, chunk)) {
            *so_far = arrived;
        }
    }

    /// Nothing more comes of it from there: so much came in vain.
    pub(super) fn settled(&mut self, stream: StreamKey, handle: Handle, chunk: u32, in_vain: u64) {
        if self.open.remove(&(stream, handle, chunk)).is_some() {
            self.cost += in_vain;
        }
    }

    /// A stream is gone, and with it what was on its way.
    pub(in crate::engine::destination) fn gone(&mut self, stream: StreamKey) {
        let keys: Vec<_> = self.open.keys().filter(|key| key.0 == stream).copied().collect();
        self.cost += keys.iter().filter_map(|key| self.open.remove(key)).map(|(_, so_far)| so_far).sum::<u64>();
    }

    /// A session has ended with all its streams.
    pub(in crate::engine::destination) fn all_gone(&mut self) {
        self.cost += std::mem::take(&mut self.open).into_values().map(|(_, so_far)| so_far).sum::<u64>();
    }
}

impl Run<'_> {
    /// When a stream last brought or took anything, ns.
    fn last_progress(&self, stream: StreamKey, peer: usize) -> Option<u64> {
        let live = self.peers[peer].links.live.get(&stream)?;
        Some(live.stats.last_progress.load(Ordering::Relaxed))
    }

    fn has_stopped(&self, stream: StreamKey, peer: usize, now: u64) -> bool {
        let Some(last) = self.last_progress(stream, peer) else { return true };
        let silence = Duration::from_nanos(now.saturating_sub(last));
        silence > QUIET && self.pace.has_stopped(stream, silence)
    }

    /// Whether a stream was relieved of a chunk and has brought nothing since. It gets nothing to do while another can do
    /// it, and takes nothing over: when nothing gets through at all, chunks would go round between such streams for ever.
    pub(super) fn hangs(&self, stream: StreamKey, peer: usize) -> bool {
        self.relieved.get(&stream).is_some_and(|at| self.last_progress(stream, peer) <= Some(*at))
    }

    /// Bytes that a stream has brought of what it holds, as of now.
    fn brought(&self, stream: StreamKey) -> u64 {
        let live = self.stream_peer.get(&stream).and_then(|peer| self.peers[*peer].links.live.get(&stream));
        live.map_or(0, |live| live.stats.brought.load(Ordering::Relaxed))
    }

    /// A stream is through with a chunk, in whatever way: what it brings from here on is of the next.
    pub(super) fn through(&mut self, stream: StreamKey) {
        let brought = self.brought(stream);
        self.pace.through(stream, brought);
    }

    /// What is won, ns, if `idle` takes a chunk over: only where the holder is slow, by what it was seen to bring, so that
    /// it would clearly take longer for what it holds than `idle` takes from the beginning.
    fn gain(&self, idle: StreamKey, candidate: &Candidate, stopped: bool) -> Option<u64> {
        // On a short path what a stream holds is on its way already: asking twice would move it twice. There only a stream
        // that has stopped is relieved.
        if self.near && !stopped {
            return None;
        }
        let holder = candidate.holder;
        let theirs = match stopped {
            true => NEVER,
            false => self.pace.time(holder, self.brought(holder), candidate.through)?,
        };
        let ours = self.pace.time_anew(idle, candidate.len);
        (theirs > ours.saturating_mul(2).saturating_add(SAVES_MIN)).then(|| theirs - ours)
    }

    pub(super) fn steal(&mut self, streams: &[(StreamKey, usize)]) {
        // While a commit runs, streams that bring nothing wait for our own disk.
        if self.committing_bytes > 0 {
            return;
        }
        let now = crate::engine::worker::now_ns();
        self.relieved.retain(|stream, _| self.stream_peer.contains_key(stream));
        for (stream, peer) in streams {
            if self.table.held_by(*stream) > 0 || self.hangs(*stream, *peer) {
                continue;
            }
            let stopped: Vec<StreamKey> =
                self.stream_peer.iter().filter(|(s, p)| self.has_stopped(**s, **p, now)).map(|(s, _)| *s).collect();
            let best = self.table.best_to_take(*stream, |c| self.gain(*stream, c, stopped.contains(&c.holder)));
            let Some(Candidate { holder, id, len, through }) = best else { continue };
            let Some(peer) = self.stream_peer.get(&holder) else { continue };
            let sockets = if self.near { SOCKETS_NEAR } else { SOCKETS_FAR };
            let under_way = self.pace.may_be_under_way(holder, self.brought(holder), through - len, sockets);
            let may_cost = if under_way { len } else { 0 };
            if self.carry.takeovers.begin(holder, id, may_cost, self.counts.total_bytes) {
                self.table.take(holder, id);
                self.relieved.insert(holder, now);
                self.peers[*peer].links.command(holder, Command::Release(holder, id.0, id.1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takeovers_keep_to_their_budget() {
        let id = |chunk| (Handle(1), chunk);
        let mut small = Takeovers::default();
        assert!(small.begin(7, id(0), CHUNK_SIZE, 10 * CHUNK_SIZE), "a chunk in any case");
        assert!(!small.begin(7, id(1), CHUNK_SIZE, 10 * CHUNK_SIZE), "not a second one while the first may come twice");
        assert!(small.begin(7, id(1), 0, 10 * CHUNK_SIZE), "what cannot come twice costs nothing");
        assert!(!small.begin(7, id(1), 0, 10 * CHUNK_SIZE), "it is given away already");
        small.settled(7, Handle(1), 0, 0);
        assert!(small.begin(8, id(2), CHUNK_SIZE, 10 * CHUNK_SIZE), "the first did not come");
        small.released(8, Handle(1), 2, 1000);
        small.gone(8);
        assert!(!small.begin(7, id(3), CHUNK_SIZE, 10 * CHUNK_SIZE), "some of the second did");
        let mut big = Takeovers::default();
        let total = 1000 * CHUNK_SIZE;
        let begun = (0..100).filter(|chunk| big.begin(7, id(*chunk), CHUNK_SIZE, total)).count();
        assert_eq!(begun, 10, "a hundredth of the transfer");
        (0..10).for_each(|chunk| big.settled(7, Handle(1), chunk, CHUNK_SIZE));
        assert!(!big.begin(7, id(50), CHUNK_SIZE, total));
        big.all_gone();
        assert_eq!(big.cost, 10 * CHUNK_SIZE);
    }
}
