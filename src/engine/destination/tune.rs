//! The tuner at work: windows are cut from what the source tells of itself, what it decides is told to the source.

use super::files::depth_at_first;
use super::run::{Peer, Run};
use crate::clock;
use crate::engine::coordinator::Ctx;
use crate::engine::limiter::{Evidence, Shares};
use crate::engine::spec::DestinationSpec;
use crate::engine::tuner::{Free, Knobs, Tuner, Window, window_length};
use crate::wire::control::Control;
use crate::wire::views::SourceView;
use std::time::Duration;

/// A source's tuner, and what it was last shown.
pub(super) struct Tune {
    pub tuner: Tuner,
    before: Option<Mark>,
    /// The longest round trip since the window began, µs.
    rtt_us: u64,
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
        Self { tuner, before: None, rtt_us: 0, shares: Shares::new() }
    }
}

/// The one congestion control that all streams have, if it is one that the tuner knows.
fn control_of(names: &str) -> Option<Control> {
    [Control::Cubic, Control::Bbr].into_iter().find(|control| control.name() == names)
}

impl Run<'_> {
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
        let Some(before) = &tune.before else {
            tune.before = Some(Mark { evidence, cap, yields });
            return;
        };
        let delta = evidence.since(&before.evidence);
        let length = window_length(view.sender.min_rtt_us, tune.tuner.is_young());
        if Duration::from_nanos(delta.source.wall_ns) < length {
            return;
        }
        tune.shares = delta.shares(cap);
        let sender = delta.sender.as_ref();
        if (before.cap, before.yields) != (cap, yields) {
            tune.tuner.disturbed();
        } else if let Some((limiter, share)) = tune.shares.first().copied() {
            let window = Window {
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
            };
            tracing::debug!(at = clock::unix_now(), window = %serde_json::to_string(&window).unwrap_or_default(), "tuner: window");
            tune.tuner.look(&window);
        }
        tune.before = Some(Mark { evidence, cap, yields });
        tune.rtt_us = 0;
        self.steer();
    }
}
