//! What changes while a transfer runs, at the end that sends: pacing, streams, and whether others go first.

use super::Session;
use crate::clock;
use crate::engine::spec::{Steer, TransferOptions};
use crate::engine::tuning::{cap_of, pacing};
use crate::limits::MAX_STREAMS;
use crate::wire::control::{Accept, Message, Retune, Wish};

/// What a source goes by besides its sockets' options.
pub(super) struct Steering {
    /// This end's own options.
    pub own: TransferOptions,
    /// What the destination asked for at first, and now.
    pub accept: Accept,
    /// What was last said to the destination.
    pub said: Wish,
}

impl Session<'_> {
    /// Rate and streams from here on, by the destination's word.
    pub(super) fn retune(&mut self, to: Retune) {
        let most = self.streams_max();
        (self.steering.accept.rate, self.steering.accept.streams) = (to.rate, to.streams.min(most));
        // What was asked for at the beginning of a push is in the destination's word. Only what this end allows still counts.
        self.steering.own.rate = self.steering.own.ceiling;
        self.links.want(to.streams.min(most));
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
        let Steering { own, accept, .. } = &self.steering;
        let cap = cap_of(own, own.rate, clock::unix_now());
        self.links.pace(pacing(cap, own.tuning.pacing, accept, accept.streams));
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
