//! The tuner at work: windows are cut from what the source tells of itself, what it decides is told to the source.

use super::files::depth_at_first;
use super::run::{Peer, Run};
use crate::clock;
use crate::engine::coordinator::Ctx;
use crate::engine::limiter::{Evidence, Shares};
use crate::engine::spec::DestinationSpec;
use crate::engine::tuner::{Free, Knobs, Tuner, Window, peak_length};
use crate::wire::control::Control;
use crate::wire::views::SourceView;
use std::time::Duration;

/// A source's tuner, and what it was last shown.
pub(super) struct Tune {
    pub tuner: Tuner,
    before: Option<Mark>,
    /// The longest round trip since the window began, µs.
    rtt_us: u64,
    /// When the part of the window began that is looked at, ns of this end's time, and the bytes that had come by then.
    part: (u64, u64),
    /// The best part of the window so far, bits per second.
    peak: u64,
    /// What held the transfer back in the last window.
    pub shares: Shares,
}

struct Mark {
    evidence: Evidence,
    cap: Option<u64>,
    yields: u8,
}

impl Tune {
    /// For a session that begins with `streams`: what nobody has set is free. On a near path nothing is tuned: there the
    /// processors are what counts, and streams are few.
    pub(super) fn for_session(ctx: &Ctx, spec: &DestinationSpec, streams: u16, near: bool) -> Self {
        let options = &spec.options;
        let on = options.tuner && !near;
        let free = Free {
            streams: on && options.streams.is_none(),
            control: on && options.congestion.is_none(),
            depth: on && options.tuning.depth.is_none(),
            pacing: on && options.tuning.pacing.is_none() && options.rate.is_none(),
        };
        let knobs = Knobs { streams, control: None, depth: depth_at_first(spec, near), pacing: None };
        let tuner = Tuner::new(free, knobs, ctx.streams_max());
        Self { tuner, before: None, rtt_us: 0, part: (0, 0), peak: 0, shares: Shares::new() }
    }
}

/// Stream time for which nothing was left, see [`Evidence::spare_ns`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spare {
    ended: u64,
    /// The streams' idle time when it began.
    since: Option<u64>,
}

impl Spare {
    fn set(&mut self, on: bool, idle: impl Fn() -> u64) {
        match (on, self.since) {
            (true, None) => self.since = Some(idle()),
            (false, Some(_)) => *self = Self { ended: self.ns(idle()), since: None },
            _ => {}
        }
    }

    /// All of it, where streams have been idle for `idle` so far, ns.
    pub(super) fn ns(&self, idle: u64) -> u64 {
        self.ended + self.since.map_or(0, |since| idle.saturating_sub(since))
    }
}

/// The one congestion control that all streams have, if it is one that the tuner knows.
fn control_of(names: &str) -> Option<Control> {
    [Control::Cubic, Control::Bbr].into_iter().find(|control| control.name() == names)
}

impl Run<'_> {
    /// Takes down what the destination itself waits for: `full` where too much is not yet durable.
    pub(super) fn account(&mut self, full: bool) {
        let moving = self.table.held() > 0 || !self.packs.is_empty();
        let last = self.manifest_end == Some(self.segments_seen)
            && self.segments.is_empty()
            && self.reading.is_none()
            && !self.looking
            && self.big_queue.is_empty()
            && self.small_queue.is_empty()
            && !self.table.any_free()
            && self.binding + self.opening == 0;
        let syncing = last && !moving && self.uncommitted() > 0;
        match (syncing, self.carry.syncing_since) {
            (true, None) => self.carry.syncing_since = Some(clock::now()),
            (false, Some(_)) => {
                self.carry.waits.destination_disk += self.syncing_ns();
                self.carry.syncing_since = None;
            }
            _ => {}
        }
        match (full && !syncing, self.held_back_since) {
            (true, None) => self.held_back_since = Some(clock::now()),
            (false, Some(since)) => {
                self.carry.waits.commit += clock::since(since).as_nanos() as u64;
                self.held_back_since = None;
            }
            _ => {}
        }
        self.spare(last && moving);
    }

    /// The last bytes become durable, and there is nothing else to do meanwhile: each stream waits for the disk, ns over all.
    pub(super) fn syncing_ns(&self) -> u64 {
        let streams = u64::from(self.streams);
        self.carry.syncing_since.map_or(0, |since| clock::since(since).as_nanos() as u64 * streams)
    }

    /// Whether nothing is left to ask of the streams that are idle now.
    pub(super) fn spare(&mut self, on: bool) {
        let mut spare = self.carry.spare;
        spare.set(on, || self.idle_ns());
        self.carry.spare = spare;
    }

    /// Time in which nothing was expected of streams, ns over all of them.
    pub(super) fn idle_ns(&self) -> u64 {
        self.carry.waits.destination_idle + self.peers.iter().map(|peer| peer.links.totals().idle).sum::<u64>()
    }

    /// A source tells how it stands.
    pub(super) fn sampled(&mut self, peer: usize, view: &SourceView) {
        let Some(Peer { gone: false, .. }) = self.peers.get(peer) else { return };
        let mut evidence = self.evidence_here();
        evidence.received_bytes = self.peers[peer].links.totals().payload;
        evidence.add_source(view);
        let more = self.table.any_free() || !self.small_queue.is_empty();
        let (cap, yields) = (self.rate, self.yields);
        let tune = &mut self.peers[peer].tune;
        tune.rtt_us = tune.rtt_us.max(view.sender.rtt_us);
        // By this end's clock: what a source tells may have waited in the queue that it tells of.
        let (now, bytes) = (evidence.destination.wall_ns, evidence.received_bytes);
        let long = now.saturating_sub(tune.part.0);
        if Duration::from_nanos(long) >= peak_length(view.sender.min_rtt_us) {
            let rate = bytes.saturating_sub(tune.part.1) as f64 * 8e9 / long as f64;
            tune.peak = tune.peak.max(rate as u64);
            tune.part = (now, bytes);
        }
        let Some(before) = &tune.before else {
            tune.before = Some(Mark { evidence, cap, yields });
            return;
        };
        let delta = evidence.since(&before.evidence);
        let (shares, sender) = (delta.shares(cap), delta.sender.as_ref());
        let window = shares.first().map(|&(limiter, share)| Window {
            ns: delta.source.wall_ns,
            bytes: delta.received_bytes,
            sent: sender.map_or(0, |s| s.bytes_sent),
            resent: sender.map_or(0, |s| s.bytes_retransmitted),
            rtt_us: tune.rtt_us,
            min_rtt_us: view.sender.min_rtt_us,
            control: control_of(&view.sender.congestion),
            limiter,
            share,
            more,
            peak: tune.peak,
            segment: view.sender.segment,
        });
        if window.as_ref().is_some_and(|window| !tune.tuner.is_over(window)) {
            return;
        }
        tune.shares = shares;
        if (before.cap, before.yields) != (cap, yields) {
            tune.tuner.disturbed();
        } else if let Some(window) = window {
            tracing::debug!(at = clock::unix_now(), window = %serde_json::to_string(&window).unwrap_or_default(), "tuner: window");
            tune.tuner.look(&window);
        }
        tune.before = Some(Mark { evidence, cap, yields });
        (tune.rtt_us, tune.peak) = (0, 0);
        self.steer();
    }
}
