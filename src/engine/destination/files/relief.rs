//! Near the end: streams that have nothing left to do take chunks over from others.

use super::*;
use std::sync::atomic::Ordering;

/// A stream that brings nothing for so long is quiet, ns.
const QUIET: u64 = 2_000_000_000;

impl Run<'_> {
    /// When a stream last brought or took anything, ns.
    fn last_progress(&self, stream: StreamKey, peer: usize) -> Option<u64> {
        let live = self.peers[peer].links.live.get(&stream)?;
        Some(live.stats.last_progress.load(Ordering::Relaxed))
    }

    fn is_quiet(&self, stream: StreamKey, peer: usize, now: u64) -> bool {
        self.last_progress(stream, peer).is_none_or(|last| now.saturating_sub(last) > QUIET)
    }

    /// Whether a stream was relieved of a chunk and has brought nothing since. It gets nothing to do while another can do
    /// it, and takes nothing over: when nothing gets through at all, chunks would go round between such streams for ever.
    pub(super) fn hangs(&self, stream: StreamKey, peer: usize) -> bool {
        self.relieved.get(&stream).is_some_and(|at| self.last_progress(stream, peer) <= Some(*at))
    }

    pub(super) fn steal(&mut self, streams: &[(StreamKey, usize)]) {
        // While a commit runs, streams that bring nothing wait for our own disk.
        if self.committing_bytes > 0 {
            return;
        }
        let now = crate::engine::worker::now_ns();
        // On a short path what a stream holds is on its way already: asking twice would move it twice. There only a stream
        // that hangs is relieved.
        if self.near && !streams.iter().any(|(s, p)| self.table.held_by(*s) > 0 && self.is_quiet(*s, *p, now)) {
            return;
        }
        self.relieved.retain(|stream, _| self.stream_peer.contains_key(stream));
        for (stream, peer) in streams {
            if self.table.held_by(*stream) > 0 || self.hangs(*stream, *peer) {
                continue;
            }
            let quiet: Vec<StreamKey> =
                self.stream_peer.iter().filter(|(s, p)| self.is_quiet(**s, **p, now)).map(|(s, _)| *s).collect();
            if let Some((victim, (handle, chunk))) = self.table.steal(*stream, |other| quiet.contains(&other))
                && let Some(peer) = self.stream_peer.get(&victim)
            {
                self.relieved.insert(victim, now);
                self.peers[*peer].links.command(victim, Command::Release(victim, handle, chunk));
            }
        }
    }
}
