//! What changes while a transfer runs, at the end that sends: pacing, streams, and whether others go first.

use super::{Session, worker_totals};
use crate::clock;
use crate::engine::spec::{Steer, TransferOptions};
use crate::engine::tuning::{cap_of, pacing};
use crate::limits::MAX_STREAMS;
use crate::wire::control::{Accept, Message, Retune, Wish};
use crate::wire::views::{EndView, SourceView};
use std::time::{Duration, Instant};

/// How often the destination is told how this end stands: half of the shortest window that its tuner judges.
const SAMPLE_EVERY: Duration = Duration::from_millis(390);
/// The same in the beginning, and how long that is: on a long path each part of a second in which losses hold a young transfer
/// down is a good part of it.
const SAMPLE_EVERY_YOUNG: Duration = Duration::from_millis(190);
const YOUNG: Duration = Duration::from_secs(5);
/// A stream without anything to send has its share of a rate for so long: a gap between two chunks is no reason to change.
const SHARE_KEPT: Duration = Duration::from_millis(500);

/// What a source goes by besides its sockets' options.
pub(super) struct Steering {
    /// This end's own options.
    pub own: TransferOptions,
    /// What the destination asked for at first, and now.
    pub accept: Accept,
    /// What was last said to the destination.
    pub said: Wish,
    /// By the tuner, bits per second over all streams.
    pub pacing: Option<u64>,
    /// When counters were last told.
    pub sampled: Instant,
    /// Streams that a rate is shared by, and when there were last so many.
    pub busy: (u16, Instant),
}

impl Session<'_> {
    /// Rate and streams from here on, by the destination's word.
    pub(super) fn retune(&mut self, to: Retune) {
        let most = self.streams_max();
        (self.steering.accept.rate, self.steering.accept.streams) = (to.rate, to.streams.min(most));
        // What was asked for at the beginning of a push is in the destination's word. Only what this end allows still counts.
        self.steering.own.rate = self.steering.own.ceiling;
        self.links.want(to.streams.min(most));
        self.links.control(to.control);
        self.steering.pacing = to.pacing;
        self.pace();
        self.entry.told.set(to.asked);
        if to.streams > most {
            self.wish(Steer { streams: Some(most), ..Steer::default() });
        }
    }

    fn streams_max(&self) -> u16 {
        self.ctx.streams_max().min(MAX_STREAMS)
    }

    /// Paces the streams by what the destination and the time of the day at this end allow.
    pub(super) fn pace(&mut self) {
        let shared_by = self.sharing();
        let Steering { own, accept, .. } = &self.steering;
        let cap = cap_of(own, own.rate, clock::unix_now());
        let set = pacing(cap, own.tuning.pacing, accept, shared_by);
        let tuned = self.steering.pacing.map(|bits| (bits / 8 / u64::from(accept.streams.max(1))).max(1));
        self.links.pace(set.into_iter().chain(tuned).min(), set);
    }

    /// How many streams share a rate: those with something to send, as the rest would keep their part of it for nothing where
    /// there are fewer chunks than streams.
    fn sharing(&mut self) -> u16 {
        let most = self.steering.accept.streams.max(1);
        // As long as nothing was asked for all of them count, as they begin at once.
        let Some(busy) = self.links.busy() else { return most };
        let busy = busy.clamp(1, most);
        if busy >= self.steering.busy.0 || clock::since(self.steering.busy.1) >= SHARE_KEPT {
            self.steering.busy = (busy, clock::now());
        }
        self.steering.busy.0.min(most)
    }

    /// Tells the destination how this end stands, from time to time.
    pub(super) fn tell_sample(&mut self) {
        let young = clock::since(self.began) < YOUNG;
        if clock::since(self.steering.sampled) < if young { SAMPLE_EVERY_YOUNG } else { SAMPLE_EVERY } {
            return;
        }
        self.steering.sampled = clock::now();
        let view = SourceView { end: self.end_view(), sender: self.links.sample() };
        self.channel.send(Message::Sample(view));
    }

    /// Where this end's time has gone since the session began.
    pub(super) fn end_view(&self) -> EndView {
        let (totals, workers) = (self.links.totals(), worker_totals(self.ctx).since(self.workers));
        EndView {
            wall_ns: clock::since(self.began).as_nanos() as u64,
            streams: self.links.live.len() as u64,
            workers: self.ctx.workers.len() as u64,
            cpu_ns: workers.cpu,
            delay_ns: workers.delay,
            idle_ns: totals.idle,
            disk_ns: totals.disk_wait,
            send_ns: totals.send_wait,
            held_back_ns: 0,
        }
    }

    /// Tells the destination what was asked for here, and whether other transfers of this end go first.
    pub(super) fn tell_wishes(&mut self) {
        let asked = *self.entry.steer.borrow();
        self.wish(asked);
    }

    fn wish(&mut self, mut steer: Steer) {
        // More than there are buffers for would be asked for, cut down and asked for again without end.
        steer.streams = steer.streams.map(|count| count.min(self.streams_max()));
        let wish = Wish { steer, yields: self.ctx.yields(self.entry) };
        if wish != self.steering.said {
            self.steering.said = wish;
            self.channel.send(Message::Wish(wish));
        }
    }

    /// At the beginning of a session: what the session before it had come to.
    pub(super) fn wish_again(&mut self) {
        let mut all = self.entry.told.get();
        all.merge(&self.entry.steer.borrow());
        self.wish(all);
    }
}
