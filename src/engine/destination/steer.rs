//! What changes while a transfer runs: its rate, its streams, and whether others go first.

use super::run::Run;
use crate::clock;
use crate::engine::tuner::Knobs;
use crate::engine::tuning::cap_of;
use crate::engine::worker::{Command, StreamKey};
use crate::limits::{MAX_STREAMS, MIN_RATE};
use crate::wire::control::{Message, Retune, Wish};

/// A transfer that gives way is asked for a quarter at each step.
const QUARTER: u32 = 2;

impl Run<'_> {
    /// Brings into force what was asked for meanwhile, and what the time of the day says; tells the sources.
    pub(super) fn steer(&mut self) {
        let asked = *self.entry.steer.borrow();
        let options = &self.spec.options;
        let wanted = match asked.rate {
            None => options.rate,
            Some(0) => None,
            some => some,
        };
        self.rate = cap_of(options, wanted, clock::unix_now());
        self.yields = self
            .peers
            .iter()
            .filter(|peer| !peer.gone)
            .map(|peer| peer.yields)
            .fold(self.ctx.yields(self.entry), u8::max);
        let sources = self.peers.iter().filter(|peer| !peer.gone).count() as u64;
        // Each source is told its share: none of them knows of the others.
        let share = self.rate.map(|rate| (rate / sources.max(1)).max(MIN_RATE));
        let most = self.ctx.streams_max().min(MAX_STREAMS);
        for peer in self.peers.iter_mut().filter(|peer| !peer.gone) {
            peer.tune.tuner.set(asked.streams.map(|count| count.min(most)));
            let Knobs { streams, control, pacing, .. } = peer.tune.tuner.knobs;
            let to = Retune { rate: share, streams, asked, control, pacing };
            if peer.told != to {
                tracing::info!(?to, "the transfer was changed while it runs");
                peer.told = to;
                // First the source: it lets in what is dialled from here.
                let _ = peer.out.send(Message::Retune(to));
                peer.links.want(to.streams);
            }
        }
        self.streams = self.streams.max(self.peers[0].told.streams);
        self.let_go();
    }

    /// A source's side would have something changed. The last word holds, whichever end it came from.
    pub(super) fn wished(&mut self, peer: usize, wish: Wish) {
        self.peers[peer].yields = wish.yields;
        self.entry.steer.send_if_modified(|all| {
            let before = *all;
            all.merge(&wish.steer);
            *all != before
        });
    }

    /// Ends streams that are too many, once nothing is asked of them.
    fn let_go(&mut self) {
        let idle = |stream: &StreamKey| {
            self.table.held_by(*stream) == 0 && !self.packs.values().any(|pack| pack.stream == *stream)
        };
        for (stream, peer) in &self.stream_peer {
            let links = &self.peers[*peer].links;
            if links.is_surplus(*stream) && idle(stream) {
                links.command(*stream, Command::Detach(*stream));
            }
        }
    }

    /// The streams that may be asked for something.
    pub(super) fn in_use(&self) -> Vec<(StreamKey, usize)> {
        let mut all: Vec<(StreamKey, usize)> = self.stream_peer.iter().map(|(s, p)| (*s, *p)).collect();
        all.retain(|(stream, peer)| !self.peers[*peer].links.is_surplus(*stream));
        all
    }

    /// What is left of `count` while others go first, at least one.
    pub(super) fn yielded(&self, count: usize) -> usize {
        (count >> (QUARTER * u32::from(self.yields))).max(1)
    }
}
