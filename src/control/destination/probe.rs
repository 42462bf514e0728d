//! Asks sources whether files can be had, a thousand at a time, before a transfer takes a slot for them. What is on tape
//! is recalled by the same question, and waits as a row in the queue.

use super::queue::Work;
use super::{Destination, PAUSE};
use crate::control::model::item::{FailureClass, ItemReport};
use crate::control::model::name::{ItemId, Lfn};
use crate::control::model::states::ItemEvent;
use crate::control::model::time::Time;
use crate::control::source::{StageReply, StageRequest};
use crate::engine::error::{Class, TransferError};
use hyper::Method;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// A hold that lasts longer is given back, so that another source may win.
const LONG_HOLD_SECS: u64 = 600;
/// How long to look again when nobody rings.
const LOOK: Duration = Duration::from_secs(30);

impl Destination {
    /// Asks about what is due, for ever.
    pub(super) async fn probe_sources(self: Arc<Self>) {
        loop {
            self.wait_lease().await;
            let Some((peer, works)) = self.queue(super::Queue::due).await else { continue };
            if works.is_empty() {
                let next = self.queue(super::Queue::next_due).await.flatten();
                let wait = next.map_or(LOOK, Duration::from_millis).clamp(Duration::from_millis(20), LOOK);
                let _ = tokio::time::timeout(wait, self.probe.notified()).await;
                continue;
            }
            if peer.starts_with("push ") {
                // We are the source: our own rule says whether it is there, when it is opened.
                let ready = works.iter().map(key).collect::<Vec<_>>();
                self.queue(move |queue| queue.ready(&ready, &[])).await;
            } else {
                self.probe(works).await;
            }
            self.start.notify_one();
            self.tell.notify_one();
        }
    }

    async fn probe(&self, works: Vec<Work>) {
        let lfns: Vec<Lfn> = works.iter().map(|w| w.assignment.source_path.clone()).collect();
        let asked = match works.first().map(|w| self.reach.peer(&w.assignment.source)) {
            None => return,
            Some(Err(error)) => Err(error),
            Some(Ok(client)) => {
                let body = StageRequest { lfns };
                let answer = client.json::<_, StageReply>(Method::POST, "/v1/files:stage", Some(&body)).await;
                answer.map_err(crate::control::client::CallError::into_inner)
            }
        };
        let answer = match asked {
            Ok(answer) => answer,
            Err(error) => return self.unreachable(works, &error).await,
        };
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
                        back.push(work.requeue(FailureClass::SourceBad, what, None));
                    }
                    _ => {
                        ready.push(key(&work));
                        if work.held {
                            reports.push(work.report(ItemEvent::Ready));
                        }
                    }
                },
                "queued" | "recalling" | "failed" if after > LONG_HOLD_SECS => {
                    let what = "the source needs long to recall it";
                    back.push(work.requeue(FailureClass::Backpressure, what, Some(after)));
                }
                "queued" | "recalling" | "failed" => held.push(work),
                other => {
                    let what = format!("the source says that {} is {}", a.source_path, known_word(other));
                    back.push(work.requeue(FailureClass::SourceBad, what, None));
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

    /// The source does not answer, or says no to all.
    async fn unreachable(&self, works: Vec<Work>, error: &TransferError) {
        let class = match error.class {
            Class::Retry | Class::Reconnect => FailureClass::Transient,
            _ => FailureClass::SourceBad,
        };
        tracing::warn!(%error, files = works.len(), "a source cannot be asked; its files are given back");
        let back: Vec<ItemReport> = works.iter().map(|w| w.requeue(class, error.to_string(), None)).collect();
        self.queue(move |queue| queue.finish(&back)).await;
        tokio::time::sleep(PAUSE / 10).await;
    }
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
