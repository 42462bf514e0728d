//! The tie to main: registration, session, heartbeats, reports. The lease ends here by our own clock, before main's.

use super::uploads::Upload;
use super::{Destination, Lease, PAUSE, Running, Stop};
use crate::control::client::CallError;
use crate::control::model::agent::{AgentRegistration, AgentStatus, AgentView, OpenSession, Renewal, Renewed, Session};
use crate::control::model::catalog::{Locality, Record};
use crate::control::model::item::{ItemProgress, ItemReport, MAX_REPORTS, ReportOutcome};
use crate::control::model::name::{ItemId, SessionKey};
use crate::control::settings::Role;
use hyper::Method;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// The longest pause between tries to reach main.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// How often old uploads are looked for.
const TIDY: Duration = Duration::from_secs(3600);
/// Of a lease, so much is left to stop in: a tenth.
const STOP_SHARE: u32 = 10;

#[derive(Serialize)]
struct Reports<'a> {
    session: SessionKey,
    reports: &'a [ItemReport],
}

impl Destination {
    pub(super) fn at(&self, rest: &str) -> String {
        format!("/v1/agents/{}{rest}", crate::control::url::encode(self.name.as_str().as_bytes()).replace('/', "%2F"))
    }

    /// Registers, opens a session, keeps it; again from the beginning when it is over.
    pub(super) async fn keep_session(self: Arc<Self>) {
        let mut pause = PAUSE;
        loop {
            match self.open().await {
                Ok(lease_secs) => {
                    pause = PAUSE;
                    self.heartbeats(lease_secs).await;
                    self.lease_is_over();
                }
                Err(error) => {
                    tracing::warn!(%error, "main gives no session; tried again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    async fn register(&self) -> Result<(), CallError> {
        let roles = self.app.roles.iter().filter(|role| **role != Role::Main).map(Role::to_string).collect();
        let registration = AgentRegistration {
            name: self.name.clone(),
            id: self.app.agent,
            url: self.url.clone(),
            fingerprint: Some(format!("sha256:{}", self.reach.own())),
            roles,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            site: self.service.site.clone(),
            storage: self.service.storage.clone(),
        };
        let _: AgentView = self.call(Method::POST, "/v1/agents", Some(&registration)).await?;
        Ok(())
    }

    async fn open(&self) -> Result<u64, CallError> {
        self.register().await?;
        let kept = self.queue(|queue| Ok((queue.session()?, queue.items()?))).await;
        let (previous, items) = kept.unwrap_or_default();
        let asked = Instant::now();
        let open = OpenSession { id: self.app.agent, previous, items };
        let session: Session = self.call(Method::POST, &self.at("/session"), Some(&open)).await?;
        let (key, kept) = (session.session, session.kept);
        if self.queue(move |queue| queue.begin_session(key, &kept)).await.is_none() {
            let error = crate::engine::error::TransferError::new(
                crate::engine::error::Class::Retry,
                "the session cannot be kept in the agent's own queue",
            );
            return Err(CallError::Unreachable(error));
        }
        tracing::info!(session = %session.session, epoch = session.epoch, "main has opened a session");
        self.lease.send_replace(Some(Lease {
            session: session.session,
            epoch: session.epoch,
            until: end_of(asked, session.lease_secs),
            draining: false,
        }));
        self.probe.notify_one();
        self.start.notify_one();
        self.tell.notify_one();
        Ok(session.lease_secs)
    }

    /// Returns when the session is over, by main's word or by our clock.
    async fn heartbeats(&self, mut lease_secs: u64) {
        let (mut next, mut own) = (Instant::now(), self.reach.own());
        loop {
            let Some(lease) = self.holds() else { return };
            let third = Duration::from_millis(lease_secs.saturating_mul(1000) / 3).max(Duration::from_millis(100));
            // Whichever is first: the beat or the end.
            tokio::time::sleep_until(next.min(lease.until)).await;
            let Some(lease) = self.holds() else { return };
            if own != self.reach.own() {
                // A new certificate: others have to know before they dial.
                match self.register().await {
                    Ok(()) => own = self.reach.own(),
                    Err(error) => tracing::warn!(%error, "the new certificate could not be told to main; tried again"),
                }
            }
            let (status, progress) = (self.status().await, self.progress());
            let told: Vec<_> = progress.iter().map(|p| (p.item, p.epoch)).collect();
            let renewal = Renewal { session: lease.session, epoch: lease.epoch, status, progress };
            let asked = Instant::now();
            let path = self.at("/session");
            let renewed = tokio::select! {
                renewed = self.call::<_, Renewed>(Method::PUT, &path, Some(&renewal)) => renewed,
                () = tokio::time::sleep_until(lease.until) => return,
            };
            match renewed {
                Ok(renewed) => {
                    lease_secs = renewed.lease_secs;
                    let until = end_of(asked, lease_secs);
                    self.lease.send_replace(Some(Lease { until, draining: renewed.draining, ..lease }));
                    let lost: HashSet<ItemId> = renewed.lost.into_iter().collect();
                    self.stop_lost(told.into_iter().filter(|(item, _)| lost.contains(item)).collect()).await;
                    self.stop_cancelled(renewed.stop).await;
                    next = asked + third;
                }
                Err(error) if matches!(error.status(), Some(404 | 409 | 410 | 412)) => {
                    tracing::warn!(%error, "main has ended the session");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "a heartbeat failed; tried again until the lease ends");
                    next = Instant::now() + PAUSE.min(third);
                }
            }
        }
    }

    /// Nothing runs without a lease: what ran keeps its checkpoint and is queued again.
    fn lease_is_over(&self) {
        self.lease.send_replace(None);
        let mut running = self.running();
        if !running.is_empty() {
            tracing::warn!(transfers = running.len(), "the lease is over: transfers are checkpointed and stopped");
        }
        running.values_mut().for_each(Running::cancel);
    }

    /// Main wants items stopped, and to hear so.
    async fn stop_cancelled(&self, items: Vec<ItemId>) {
        if items.is_empty() {
            return;
        }
        let wanted: HashSet<ItemId> = items.iter().copied().collect();
        self.stop_running(Stop::Cancelled, |item, _| wanted.contains(&item));
        self.queue(move |queue| queue.cancel(&items)).await;
        self.tell.notify_one();
    }

    /// Claims that are not ours any more. A later claim of the same item is another matter.
    async fn stop_lost(&self, claims: Vec<(ItemId, u64)>) {
        if claims.is_empty() {
            return;
        }
        let lost: HashSet<(ItemId, u64)> = claims.iter().copied().collect();
        self.stop_running(Stop::Lost, |item, epoch| lost.contains(&(item, epoch)));
        self.queue(move |queue| queue.forget(&claims)).await;
    }

    fn stop_running(&self, why: Stop, wanted: impl Fn(ItemId, u64) -> bool) {
        for running in self.running().values_mut() {
            let hit: HashMap<_, _> =
                running.items.iter().filter(|(id, epoch)| wanted(*id, *epoch)).map(|(id, _)| (*id, why)).collect();
            if !hit.is_empty() {
                running.stop.extend(hit);
                running.cancel();
            }
        }
    }

    async fn status(&self) -> AgentStatus {
        let counts = self.queue(super::queue::Queue::counts).await.unwrap_or_default();
        let root = self.app.root.clone();
        let facts = tokio::task::spawn_blocking(move || root.facts()).await.unwrap_or_default();
        let proc = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
        let word = |text: String, at: usize| text.split_whitespace().nth(at).map(str::to_owned);
        let pages = word(proc("/proc/self/statm"), 1).and_then(|w| w.parse::<u64>().ok()).unwrap_or(0);
        AgentStatus {
            running: self.running().len() as u64,
            holding: counts.holding,
            queued: counts.queued,
            free_bytes: Some(facts.free_bytes),
            total_bytes: Some(facts.total_bytes),
            load: word(proc("/proc/loadavg"), 0).and_then(|w| w.parse().ok()).unwrap_or(0.0),
            memory_bytes: pages * 4096,
            ended: self.ended.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            ..AgentStatus::default()
        }
    }

    /// Of a group, the bytes stand with its first item: the engine counts a transfer as one.
    fn progress(&self) -> Vec<ItemProgress> {
        let running = self.running();
        let bytes = |r: &Running| r.snapshot.as_ref().map_or(0, |s| s.borrow().bytes);
        let first = |r: &Running| r.items.first().map(|&(item, epoch)| ItemProgress { item, epoch, bytes: bytes(r) });
        running.values().filter(|r| !r.group).filter_map(first).collect()
    }

    /// Tells what there is to tell until main has taken it.
    pub(super) async fn tell_reports(self: Arc<Self>) {
        let mut limit = MAX_REPORTS;
        loop {
            let lease = self.wait_lease().await;
            let Some(untold) = self.queue(move |queue| queue.untold(limit)).await else { continue };
            if untold.is_empty() {
                limit = MAX_REPORTS;
                self.tell.notified().await;
                continue;
            }
            let (seqs, reports): (Vec<i64>, Vec<ItemReport>) = untold.into_iter().unzip();
            let body = Reports { session: lease.session, reports: &reports };
            let answer: Result<Vec<ReportOutcome>, _> =
                self.call(Method::POST, &self.at("/reports"), Some(&body)).await;
            match answer {
                Ok(outcomes) if outcomes.len() == reports.len() => {
                    let mut lost = Vec::new();
                    for (report, outcome) in reports.iter().zip(outcomes) {
                        match outcome {
                            ReportOutcome::Accepted => {}
                            ReportOutcome::StaleEpoch | ReportOutcome::Unknown => {
                                lost.push((report.item, report.epoch))
                            }
                            ReportOutcome::Illegal => {
                                tracing::warn!(item = %report.item, event = %report.event, "main did not take a report");
                            }
                        }
                    }
                    self.stop_lost(lost).await;
                    self.queue(move |queue| queue.told(&seqs)).await;
                }
                // Not as a whole, and not later: the one that main cannot take must not hold up the others.
                Err(error) if matches!(error.status(), Some(400 | 413 | 422)) && limit > 1 => limit = 1,
                Err(error) if matches!(error.status(), Some(400 | 422)) => {
                    tracing::error!(%error, report = ?reports[0], "main takes no such report: it is dropped");
                    self.queue(move |queue| queue.told(&seqs)).await;
                }
                told => {
                    if let Err(error) = told {
                        tracing::warn!(%error, "reports could not be told; tried again");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Destination {
    /// Tells main of files that clients have brought, until it has taken them.
    pub(super) async fn tell_uploads(self: Arc<Self>) {
        let Some(uploads) = self.uploads.clone() else { return };
        loop {
            let _ = tokio::time::timeout(TIDY, uploads.tell.notified()).await;
            let tidied = uploads.clone();
            let _ = tokio::task::spawn_blocking(move || tidied.forget_old()).await;
            loop {
                let asked = uploads.clone();
                let untold = match tokio::task::spawn_blocking(move || asked.untold()).await {
                    Ok(Ok(untold)) => untold,
                    Ok(Err(error)) => {
                        tracing::error!(%error, "uploads cannot be read; tried again");
                        tokio::time::sleep(PAUSE_MAX).await;
                        continue;
                    }
                    Err(_) => return,
                };
                if untold.is_empty() {
                    break;
                }
                let told = self.enter_at_main(untold).await;
                let kept = uploads.clone();
                let kept = tokio::task::spawn_blocking(move || kept.told(&told).map(|()| told.is_empty())).await;
                if !matches!(kept, Ok(Ok(false))) {
                    tokio::time::sleep(PAUSE_MAX).await;
                }
            }
        }
    }

    /// Those that main has taken, or never will: what it knows under such a name is another file.
    async fn enter_at_main(&self, untold: Vec<Upload>) -> Vec<Upload> {
        let record = |upload: &Upload| Record {
            dataset: upload.spec.dataset.clone(),
            block: upload.spec.block.clone(),
            lfn: upload.spec.lfn.clone(),
            bytes: upload.spec.bytes,
            digest: upload.digest.clone(),
            agent: self.name.clone(),
            path: Some(upload.spec.place().clone()),
            locality: Locality::Online,
        };
        let all: Vec<Record> = untold.iter().map(record).collect();
        match self.call::<_, serde_json::Value>(Method::POST, "/v1/catalog/records", Some(&all)).await {
            Ok(_) => return untold,
            Err(error) if !matches!(error.status(), Some(409 | 422)) => {
                tracing::warn!(%error, "uploads could not be told to main; tried again");
                return Vec::new();
            }
            Err(_) => {}
        }
        // All or none: so one by one.
        let mut told = Vec::new();
        for upload in untold {
            match self.call::<_, serde_json::Value>(Method::POST, "/v1/catalog/records", Some(&[record(&upload)])).await
            {
                Ok(_) => told.push(upload),
                Err(error) if matches!(error.status(), Some(409 | 422)) => {
                    tracing::error!(%error, lfn = %upload.spec.lfn, "main does not take an upload into its catalog");
                    told.push(upload);
                }
                Err(_) => {}
            }
        }
        told
    }
}

/// When a lease that was asked for at `asked` has to be over for us.
fn end_of(asked: Instant, lease_secs: u64) -> Instant {
    let whole = Duration::from_secs(lease_secs);
    asked + (whole - whole / STOP_SHARE)
}
