//! Asks sources whether files can be had, a thousand at a time, before a transfer takes a slot for them. What is on tape
//! is recalled by the same question, and waits as a row in the queue.

use super::queue::{Queue, Work};
use super::{Away, Destination, PAUSE};
use crate::control::client::CallError;
use crate::control::model::item::{FailureClass, ItemReport};
use crate::control::model::name::{ItemId, Lfn};
use crate::control::model::states::ItemEvent;
use crate::control::model::time::Time;
use crate::control::source::{StageReply, StageRequest};
use crate::engine::error::{Class, TransferError};
use hyper::Method;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A hold that the source says will last longer is given back, so that another source may win.
const LONG_HOLD_SECS: u64 = 600;
/// And one that has lasted for so long.
const OLD_HOLD_SECS: u64 = 3600;
/// How long to look again when nobody rings.
const LOOK: Duration = Duration::from_secs(30);
/// The same while a peer is being asked, whose items are due all the time.
const LOOK_ASKED: Duration = Duration::from_millis(500);
/// Peers that are asked at once: one that does not answer holds up nobody else.
const ASKED: usize = 8;
/// A peer that does not answer is asked again, with all its items, for so long before they are given back.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest pause in between, in seconds.
const AWAY_SECS: u64 = 30;

impl Destination {
    /// Asks about what is due, for ever.
    pub(super) async fn probe_sources(self: Arc<Self>) {
        loop {
            self.wait_lease().await;
            let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let (busy, count) = (!asked.is_empty(), asked.len());
            let due = match count < ASKED {
                true => self.queue(move |queue| queue.due(&asked)).await,
                false => Some(None),
            };
            match due {
                None => {}
                Some(Some((peer, works))) => {
                    self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(peer.clone());
                    let this = self.clone();
                    tokio::spawn(async move {
                        this.ask(&peer, works).await;
                        this.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
                        this.start.notify_one();
                        this.tell.notify_one();
                        this.probe.notify_one();
                    });
                }
                Some(None) => {
                    let next = self.queue(Queue::next_due).await.flatten();
                    let least = if busy { LOOK_ASKED } else { Duration::from_millis(20) };
                    let wait = next.map_or(LOOK, Duration::from_millis).clamp(least, LOOK);
                    let _ = tokio::time::timeout(wait, self.probe.notified()).await;
                }
            }
        }
    }

    /// The same question to another agent and, of what is to be pushed, to ourselves.
    async fn staged(&self, push: bool, works: &[Work]) -> Result<StageReply, TransferError> {
        let lfns: Vec<Lfn> = works.iter().map(|w| w.assignment.source_path.clone()).collect();
        if push {
            let source = self.source.clone();
            let files = lfns.into_iter().map(|lfn| (lfn.clone(), lfn.rel_path())).collect();
            let stopping = |_| TransferError::new(Class::Retry, "the agent is stopping");
            let staged = tokio::task::spawn_blocking(move || source.stage(files)).await.map_err(stopping)?;
            return staged.map_err(|problem| TransferError::new(Class::Retry, problem.detail));
        }
        let Some(first) = works.first() else { return Err(TransferError::new(Class::Permanent, "nothing to ask")) };
        let client = self.reach.peer(&first.assignment.source)?;
        let body = StageRequest { lfns };
        client.json(Method::POST, "/v1/files:stage", Some(&body)).await.map_err(CallError::into_inner)
    }

    async fn ask(&self, peer: &str, works: Vec<Work>) {
        let push = peer.starts_with("push ");
        let answer = match self.staged(push, &works).await {
            Ok(answer) => answer,
            Err(error) => return self.unreachable(peer, works, &error).await,
        };
        self.away.lock().unwrap_or_else(PoisonError::into_inner).remove(peer);
        let mut states: HashMap<Lfn, (String, Option<u64>)> =
            answer.files.into_iter().map(|f| (f.lfn, (f.state, f.bytes))).collect();
        let (mut ready, mut reports, mut held, mut back) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let after = answer.retry_after_secs.max(1);
        for work in works {
            let a = &work.assignment;
            let (state, bytes) = states.remove(&a.source_path).unwrap_or_default();
            match state.as_str() {
                "online" => match (a.bytes, bytes) {
                    (Some(want), Some(have)) if want != have => {
                        let what = format!("{} has {have} bytes at the source, not {want}: it was changed", a.lfn);
                        back.push(work.requeue(Some(FailureClass::SourceBad), what, None));
                    }
                    _ => {
                        ready.push(key(&work));
                        if work.held.is_some() {
                            reports.push(work.report(ItemEvent::Ready));
                        }
                    }
                },
                "queued" | "recalling" | "failed" if after > LONG_HOLD_SECS || old(work.held) => {
                    let what = "the source needs long to recall it";
                    back.push(work.requeue(None, what, Some(after)));
                }
                "queued" | "recalling" | "failed" => held.push(work),
                other => {
                    let what = format!("the source says that {} is {}", a.source_path, known_word(other));
                    back.push(work.requeue(Some(FailureClass::SourceBad), what, None));
                }
            }
        }
        let (due, stage) = (Time::now().plus_secs(after), answer.stage);
        self.queue(move |queue| {
            queue.ready(&ready, &reports)?;
            queue.hold(&held, due, stage, after)?;
            queue.finish(&back)
        })
        .await;
    }

    /// The source does not answer, or says no to all. Who restarts is back soon: its items wait here. Who stays away loses
    /// them; that is a try, so that others are asked first, but not for a hold, which costs none.
    async fn unreachable(&self, peer: &str, works: Vec<Work>, error: &TransferError) {
        let passes = matches!(error.class, Class::Retry | Class::Reconnect);
        let away = {
            let mut all = self.away.lock().unwrap_or_else(PoisonError::into_inner);
            let away = all.entry(peer.to_owned()).or_insert(Away { since: Instant::now(), tries: 0 });
            away.tries += 1;
            *away
        };
        if passes && away.since.elapsed() < PATIENCE {
            tracing::info!(%error, peer, "a peer cannot be asked; its files wait");
            let due = Time::now().plus_secs((1 << away.tries.min(10)).min(AWAY_SECS));
            let peer = peer.to_owned();
            self.queue(move |queue| queue.peer_away(&peer, due)).await;
            return;
        }
        tracing::warn!(%error, peer, files = works.len(), "a peer cannot be asked; its files are given back");
        let class = |held: bool| match (passes, held) {
            (true, true) => (None, Some(AWAY_SECS)),
            (true, false) => (Some(FailureClass::Transient), None),
            (false, _) => (Some(FailureClass::SourceBad), None),
        };
        let back = works.iter().map(|w| {
            let (class, after) = class(w.held.is_some());
            w.requeue(class, error.to_string(), after)
        });
        let back: Vec<ItemReport> = back.collect();
        self.queue(move |queue| queue.finish(&back)).await;
        tokio::time::sleep(PAUSE / 10).await;
    }
}

/// Whether a hold has lasted long.
fn old(held: Option<Time>) -> bool {
    held.is_some_and(|since| since.plus_secs(OLD_HOLD_SECS).0 <= Time::now().0)
}

/// A peer's word, if it is one of ours: others are not repeated.
fn known_word(word: &str) -> &str {
    match word {
        "missing" | "gone" | "unreadable" => word,
        _ => "in no state that this agent knows",
    }
}

fn key(work: &Work) -> (ItemId, u64) {
    (work.assignment.item, work.assignment.epoch)
}
