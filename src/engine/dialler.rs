//! Dials the data streams of a session, and dials again what failed. It can begin as soon as the session is open, while the
//! control stream still agrees on what to move: on a long path each round trip saved is the first byte's.

use super::ahead::Ahead;
use super::coordinator::Ctx;
use super::error::Class;
use super::session::{DialPlan, dial_stream};
use crate::ids::StreamIndex;
use crate::net::SocketOptions;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinSet;

/// First pause before a dead stream is dialled again; it doubles up to [`REDIAL_MAX`].
pub(super) const REDIAL_FIRST: Duration = Duration::from_millis(200);
/// Longest pause between dials of a stream.
const REDIAL_MAX: Duration = Duration::from_secs(5);

/// The dials of a session.
#[derive(Debug)]
pub struct Dialler {
    pub(super) plan: DialPlan,
    /// Streams in use: those of higher numbers are not dialled.
    pub(super) wanted: Rc<Cell<u16>>,
    attempts: HashMap<StreamIndex, u32>,
    dialling: Rc<RefCell<BTreeSet<StreamIndex>>>,
    /// Under way; they end with this, since nobody answers for a session that is gone.
    dials: JoinSet<()>,
    /// What is there for the first streams.
    ahead: Ahead,
}

impl Dialler {
    pub(super) fn new(plan: DialPlan, ahead: Ahead) -> Self {
        let (wanted, dialling) = Default::default();
        Self { plan, wanted, attempts: HashMap::new(), dialling, dials: JoinSet::new(), ahead }
    }

    /// Dials streams 1 to `count`, except those that are `there` or being dialled. The first time it takes the connections that
    /// were dialled ahead; those that are left over are given up.
    pub(super) fn want(&mut self, ctx: &Rc<Ctx>, count: u16, there: &BTreeSet<StreamIndex>, options: &SocketOptions) {
        self.wanted.set(count);
        for index in (1..=count).map(StreamIndex).filter(|index| !there.contains(index)) {
            if !self.dialling.borrow().contains(&index) {
                self.dial(ctx, index, Duration::ZERO, options);
            }
        }
        self.ahead = Ahead::default();
    }

    /// Dials one, after a pause, until it is there or not wanted any more.
    pub(super) fn dial(&mut self, ctx: &Rc<Ctx>, index: StreamIndex, first_pause: Duration, options: &SocketOptions) {
        let (ctx, plan, options) = (ctx.clone(), self.plan.clone(), options.clone());
        let base = *self.attempts.entry(index).and_modify(|a| *a += 1000).or_insert(0);
        while self.dials.try_join_next().is_some() {}
        let (wanted, dialling) = (self.wanted.clone(), self.dialling.clone());
        dialling.borrow_mut().insert(index);
        let mut connected = self.ahead.take(self.plan.addr, &options);
        self.dials.spawn_local(async move {
            let mut pause = first_pause;
            for attempt in 1..1000 {
                tokio::time::sleep(pause).await;
                if plan.tell.is_closed() || index.0 > wanted.get() {
                    break;
                }
                let connected = connected.take();
                let waited = connected.is_some();
                match dial_stream(&ctx, &plan, index, base + attempt, &options, connected).await {
                    // It counts as being dialled until it is attached.
                    Ok(joined) => return drop(plan.tell.send(joined)),
                    // The session is gone at the peer: the control stream will say so.
                    Err(error) if error.class == Class::Denied => break,
                    Err(error) => tracing::debug!(stream = index.0, %error, "dial failed"),
                }
                // One that stood there without a word may have had to make room: that says nothing about another.
                pause = if waited { Duration::ZERO } else { (pause * 2).clamp(REDIAL_FIRST, REDIAL_MAX) };
            }
            dialling.borrow_mut().remove(&index);
        });
    }

    /// A stream is there.
    pub(super) fn attached(&self, index: StreamIndex) {
        self.dialling.borrow_mut().remove(&index);
    }
}
