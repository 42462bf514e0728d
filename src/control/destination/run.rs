//! Transfers: slots, directories that are in use, and what becomes of each file when the engine has ended.

use super::queue::{Batch, Left, Work, directory};
use super::{Destination, FULL, PAUSE, Running, Stop};
use crate::control::client::PeerTickets;
use crate::control::destination::catalog::Known;
use crate::control::messages::{PartialOptions, TicketRequest, WirePath};
use crate::control::model::item::{Assignment, FailureClass, ItemReport};
use crate::control::model::name::{ItemId, Lfn};
use crate::control::model::states::ItemEvent;
use crate::engine::error::{Class, TransferError};
use crate::engine::rows::{Rows, Wanted};
use crate::engine::spec::{
    ChecksumKind, DestinationSpec, Expected, IfExists, Report, SourceSpec, TransferOptions, Verdict,
};
use crate::manifest::EntryKind;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long to look again when nobody rings.
const LOOK: Duration = Duration::from_secs(30);
/// Seconds before a peer that is busy is asked again.
const BUSY_SECS: u64 = 10;

/// What a source tells a destination of a file that it has pushed: `POST /v1/local/catalog`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pushed {
    /// The entry.
    pub file: Known,
}

/// One file's end.
enum End {
    Done {
        bytes: u64,
        digest: Option<String>,
        skipped: bool,
    },
    Back(FailureClass, String, Option<u64>),
    /// There is no room for it here: it costs no try.
    NoRoom(String),
    Stopped,
}

impl Destination {
    /// Whether two transfers could want one directory for themselves, or more than its rate for one request.
    fn busy(&self, a: &Assignment, group: bool) -> bool {
        let mine = directory(a.path.as_str());
        self.running().values().any(|r| {
            let nested = r.directory.starts_with(mine) || mine.starts_with(&r.directory);
            nested && (group || r.group) || a.max_rate.is_some() && r.request == a.request
        })
    }

    /// Starts what is ready while there are slots, for ever.
    pub(super) async fn start_transfers(self: Arc<Self>) {
        let slots = Arc::new(Semaphore::new(self.service.max_transfers));
        let number = AtomicU64::new(0);
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            self.wait_lease().await;
            if let Some(pause) = self.full_for() {
                drop(slot);
                tokio::time::sleep(pause).await;
                continue;
            }
            let this = self.clone();
            let started = self.queue(move |queue| queue.start(|a, group| this.busy(a, group))).await.flatten();
            let Some(Batch { push, group, works }) = started else {
                drop(slot);
                let _ = tokio::time::timeout(LOOK, self.start.notified()).await;
                continue;
            };
            let Some(first) = works.first() else { continue };
            let key = number.fetch_add(1, Ordering::Relaxed);
            let running = Running {
                items: works.iter().map(|w| (w.assignment.item, w.assignment.epoch)).collect(),
                request: first.assignment.request,
                directory: directory(first.assignment.path.as_str()).to_owned(),
                group,
                cancel: None,
                snapshot: None,
                stop: HashMap::new(),
                ended: self.holds().is_none(),
            };
            self.running().insert(key, running);
            let this = self.clone();
            tokio::spawn(async move {
                let (ends, left) = match push {
                    true => (this.push(key, &works).await, None),
                    false => this.pull(key, &works, group).await,
                };
                this.conclude(key, works, ends, left).await;
                drop(slot);
                this.start.notify_one();
                this.tell.notify_one();
            });
        }
    }

    fn options(&self, a: &Assignment, started: bool) -> TransferOptions {
        let if_exists = match a.if_exists {
            // What stands there may be what we placed before we died.
            IfExists::Error | IfExists::Skip if started => IfExists::Prove,
            other => other,
        };
        TransferOptions {
            verify: a.verify.unwrap_or(self.app.verify),
            rate: a.max_rate,
            encrypt: self.app.encryption(None),
            if_exists,
            ..TransferOptions::default()
        }
    }

    /// Follows an engine transfer to its end; cancelled when the stop lists or the lease say so.
    async fn follow(
        &self,
        key: u64,
        watch: Result<crate::engine::handle::TransferWatch, TransferError>,
    ) -> Result<Report, TransferError> {
        let watch = watch?;
        if let Some(running) = self.running().get_mut(&key) {
            running.cancel = Some(watch.cancel.clone());
            running.snapshot = Some(watch.snapshot);
            // It was stopped while it was made, or the lease ended.
            if running.ended {
                running.cancel();
            }
        }
        let stopped = || TransferError::new(Class::Interrupted, "the agent stopped");
        watch.done.await.map_err(|_| stopped())
    }

    async fn pull(&self, key: u64, works: &[Work], group: bool) -> (Vec<End>, Option<Left>) {
        let Some(Work { assignment: a, .. }) = works.first() else { return (Vec::new(), None) };
        let single = !group;
        let all = |error: TransferError| (works.iter().map(|_| self.whole(&error)).collect(), None);
        let (root, dir) = (self.app.root.clone(), a.path.rel_path().split_last().map(|(d, _)| d).unwrap_or_default());
        let paths: Vec<_> = works.iter().map(|w| w.assignment.path.rel_path()).collect();
        let made = tokio::task::spawn_blocking({
            let (dir, paths) = (dir.clone(), paths.clone());
            move || root.make_dirs(&dir).map(|()| paths.iter().map(|p| root.stat(p).is_ok()).collect::<Vec<_>>())
        });
        let there = match made.await {
            Ok(Ok(there)) => there,
            Ok(Err(errno)) => {
                let what = format!("the directory /{dir} cannot be made: {}", errno.desc());
                let full = matches!(errno, Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS);
                let end = |_| match full {
                    true => End::NoRoom(what.clone()),
                    false => End::Back(FailureClass::Permanent, what.clone(), None),
                };
                return (works.iter().map(end).collect(), None);
            }
            Err(_) => return (works.iter().map(|_| End::Stopped).collect(), None),
        };
        let client = match self.reach.peer(&a.source) {
            Ok(client) => Arc::new(client),
            Err(error) => return all(error),
        };
        let wire = |path: &Lfn| WirePath(path.as_str().as_bytes().to_vec());
        let request = TicketRequest::Read {
            paths: works.iter().map(|w| wire(&w.assignment.source_path)).collect(),
            recursive: false,
            encrypt: self.app.encryption(None),
        };
        let mut options = self.options(a, works.iter().any(|w| w.started));
        if single && let Some(hex) = &a.digest {
            options.expect = Some(Expected { kind: ChecksumKind::Xxh3, hex: hex.clone() });
        }
        let wanted = |w: &Work| Wanted {
            bytes: w.assignment.bytes,
            digest: w.assignment.digest.as_deref().and_then(|hex| hex.parse().ok()),
        };
        let rows = Arc::new(Rows::wanting(works.iter().map(wanted).collect()));
        let to = DestinationSpec {
            base: self.app.root.path().to_owned(),
            path: if single { a.path.rel_path() } else { dir.clone() },
            becomes: single,
            options,
            rows: Some(rows.clone()),
        };
        let tickets = Arc::new(PeerTickets::new(client, request));
        let watch = self.app.engine.pull(self.name.to_string(), to, vec![tickets]).await;
        let report = match self.follow(key, watch).await {
            Ok(report) => report,
            Err(error) => return all(error),
        };
        let mut ends = self.judge(works, &there, &report, &rows);
        ends.iter_mut().zip(works).for_each(|(end, work)| compare(end, &work.assignment));
        (ends, report.transfer.map(|transfer| Left { home: dir, transfer }))
    }

    async fn push(&self, key: u64, works: &[Work]) -> Vec<End> {
        let Some(work) = works.first() else { return Vec::new() };
        vec![match self.push_one(key, work).await {
            // It is the other end that is full.
            Ok(End::NoRoom(reason)) => End::Back(FailureClass::DestinationBad, reason, Some(FULL.as_secs())),
            Ok(end) => end,
            Err(error) => self.whole(&error),
        }]
    }

    async fn push_one(&self, key: u64, work: &Work) -> Result<End, TransferError> {
        let a = &work.assignment;
        let client = Arc::new(self.reach.peer(&a.destination)?);
        let mut options = self.options(a, work.started);
        if let Some(hex) = &a.digest {
            options.expect = Some(Expected { kind: ChecksumKind::Xxh3, hex: hex.clone() });
        }
        let path = WirePath(a.path.as_str().as_bytes().to_vec());
        let make = serde_json::json!({ "directory": directory(a.path.as_str()) });
        let made: Result<serde_json::Value, _> =
            client.json(hyper::Method::POST, "/v1/local/directory", Some(&make)).await;
        made.map_err(crate::control::client::CallError::into_inner)?;
        let encrypt = options.encrypt;
        let request = TicketRequest::Write { path, becomes: true, options: PartialOptions::from(&options), encrypt };
        let rows = Arc::new(Rows::default());
        let from = SourceSpec {
            base: self.app.root.path().to_owned(),
            roots: vec![a.source_path.rel_path()],
            recursive: false,
            encrypt,
            // The destination tells the digest of what it has.
            rows: Some(rows.clone()),
        };
        let tickets = Arc::new(PeerTickets::new(client.clone(), request));
        let watch = self.app.engine.push(self.name.to_string(), from, tickets, options).await;
        let report = self.follow(key, watch).await?;
        let good = matches!(report.verdict, Verdict::Durable | Verdict::Verified);
        let told = rows.take().into_iter().find_map(|row| row.digest);
        let Some(digest) = report.digest.or(told).filter(|_| good) else {
            return Ok(self.judge_push(&report));
        };
        let bytes = report.bytes + report.skipped_bytes;
        let file = Known {
            lfn: a.lfn.clone(),
            path: a.path.clone(),
            bytes,
            digest: Some(digest.to_string()),
            dataset: a.dataset.clone(),
            block: a.block.clone(),
        };
        let entered: Result<serde_json::Value, _> =
            client.json(hyper::Method::POST, "/v1/local/catalog", Some(&Pushed { file })).await;
        entered.map_err(crate::control::client::CallError::into_inner)?;
        let skipped = report.skipped_files > 0 && !work.started;
        Ok(End::Done { bytes, digest: Some(digest.to_string()), skipped })
    }

    /// A push that did not come to a good end: its one file's failure counts, if it has one.
    fn judge_push(&self, report: &Report) -> End {
        match report.failures.first() {
            Some(failure) => {
                let class = Class::from_word(&failure.class).unwrap_or(Class::Retry);
                self.back_of(&TransferError::new(class, failure.reason.as_str()).at(&failure.path))
            }
            None => self.whole(&error_of(report)),
        }
    }

    /// Catalog first, then the queue with its reports: who dies in between proves the file equal and comes here again.
    async fn conclude(&self, key: u64, works: Vec<Work>, ends: Vec<End>, left: Option<Left>) {
        let stop = self.running().get(&key).map(|r| r.stop.clone()).unwrap_or_default();
        let pushed = works.first().is_some_and(|w| w.assignment.destination.name != self.name);
        let (mut known, mut reports, mut again, mut lost) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        // A group that was stopped goes on as the same transfer: with all that it had. What is there is found again.
        let halted = works.len() > 1 && stop.is_empty() && ends.iter().any(|end| matches!(end, End::Stopped));
        for (work, end) in works.iter().zip(ends) {
            let a = &work.assignment;
            match (end, stop.get(&a.item)) {
                (_, Some(Stop::Lost)) => lost.push((a.item, a.epoch)),
                _ if halted => again.push((a.item, a.epoch)),
                (End::Done { bytes, digest, skipped }, _) => {
                    self.ended.fetch_add(1, Ordering::Relaxed);
                    if !pushed {
                        self.has_room();
                    }
                    known.push(Known {
                        lfn: a.lfn.clone(),
                        path: a.path.clone(),
                        bytes,
                        digest: digest.clone(),
                        dataset: a.dataset.clone(),
                        block: a.block.clone(),
                    });
                    let event = if skipped { ItemEvent::Skip } else { ItemEvent::Complete };
                    reports.push(ItemReport { bytes, digest, size: Some(bytes), ..work.report(event) });
                }
                (_, Some(Stop::Cancelled)) => reports.push(work.report(ItemEvent::Cancel)),
                (End::Stopped, None) => again.push((a.item, a.epoch)),
                (End::NoRoom(reason), None) => {
                    let pause = self.is_full().as_secs();
                    reports.push(work.requeue(Some(FailureClass::DestinationBad), reason, Some(pause)));
                }
                (End::Back(class, reason, after), None) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(lfn = %a.lfn, ?class, %reason, "a file did not arrive and is given back");
                    reports.push(work.requeue(Some(class), reason, after));
                }
            }
        }
        let catalog = self.catalog.clone();
        let known = Arc::new(if pushed { Vec::new() } else { known });
        loop {
            let (catalog, entries) = (catalog.clone(), known.clone());
            match tokio::task::spawn_blocking(move || catalog.enter(&entries)).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => tracing::error!(%error, "the catalog failed; tried again"),
                Err(_) => return,
            }
            tokio::time::sleep(PAUSE).await;
        }
        let (mut ended, mut later) = (Vec::new(), Vec::new());
        for report in &reports {
            let goes_on = matches!(
                report.class,
                Some(FailureClass::Transient | FailureClass::Backpressure | FailureClass::DestinationBad)
            );
            if goes_on { later.push(report.item) } else { ended.push(report.item) }
        }
        // Whoever else has it now, or we again, may go on from what there is. Where all went well there is nothing.
        let well = |report: &ItemReport| matches!(report.event, ItemEvent::Complete | ItemEvent::Skip);
        let kept = !again.is_empty() || !lost.is_empty() || reports.iter().all(well);
        if !again.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
        let over = Arc::new((reports, again, lost));
        loop {
            let over = over.clone();
            let kept = self.queue(move |queue| {
                let (reports, again, lost) = &*over;
                queue.finish(reports)?;
                queue.forget(lost)?;
                queue.again(again)
            });
            if kept.await.is_some() {
                break;
            }
        }
        self.tidy(left.filter(|_| !kept), ended, later).await;
        self.running().remove(&key);
        self.probe.notify_one();
    }

    /// Removes what transfers of ended items left, and remembers what those may need that go on. `left`: the one that has ended
    /// now; one that ended well has left nothing.
    async fn tidy(&self, left: Option<Left>, ended: Vec<ItemId>, later: Vec<ItemId>) {
        let base = self.app.root.path().to_owned();
        self.queue(move |queue| {
            let mut gone = queue.swept(&ended)?;
            match left {
                Some(left) if !later.is_empty() => queue.leave(&left, &later)?,
                Some(left) => gone.push(left),
                None => {}
            }
            for Left { home, transfer } in gone {
                crate::engine::forget(&base, &home, &transfer);
            }
            Ok(())
        })
        .await;
    }

    /// Once, when it starts: what was left long ago.
    pub(super) async fn tidy_old(&self) {
        let base = self.app.root.path().to_owned();
        self.queue(move |queue| {
            for Left { home, transfer } in queue.swept_old()? {
                crate::engine::forget(&base, &home, &transfer);
            }
            Ok(())
        })
        .await;
    }

    /// What becomes of a file that did not arrive.
    fn back_of(&self, error: &TransferError) -> End {
        let words = error.to_string();
        match error.class {
            Class::Interrupted => End::Stopped,
            Class::NoRoom => End::NoRoom(words),
            // A file system that was mounted anew, because its disk is failing.
            Class::Permanent if self.app.root.facts().read_only => End::NoRoom(words),
            class => End::Back(class_of(class), words, None),
        }
    }

    /// The same, of a transfer that did not come about or was refused as a whole: the peer is busy, or another agent has the
    /// lock. That says nothing of the files.
    fn whole(&self, error: &TransferError) -> End {
        match error.class {
            Class::Retry => End::Back(FailureClass::Backpressure, error.to_string(), Some(BUSY_SECS)),
            _ => self.back_of(error),
        }
    }
}

/// The catalog's word against what was there already; of what arrived the engine publishes nothing else.
fn compare(end: &mut End, a: &Assignment) {
    let End::Done { bytes, digest, .. } = &*end else { return };
    let wrong = match (a.bytes, &a.digest, digest) {
        (Some(want), ..) if want != *bytes => format!("{} has {bytes} bytes, the catalog says {want}", a.lfn),
        (_, Some(want), Some(have)) if want != have => {
            format!("{} has the digest {have}, the catalog says {want}", a.lfn)
        }
        _ => return,
    };
    *end = End::Back(FailureClass::Integrity, wrong, None);
}

/// An engine's failure as main classes it.
fn class_of(class: Class) -> FailureClass {
    match class {
        Class::Retry | Class::Reconnect | Class::Interrupted => FailureClass::Transient,
        Class::OtherSource | Class::NotFound => FailureClass::SourceBad,
        Class::Verification => FailureClass::Integrity,
        Class::Poisoned | Class::NoRoom => FailureClass::DestinationBad,
        Class::Denied | Class::Permanent => FailureClass::Permanent,
    }
}

fn error_of(report: &Report) -> TransferError {
    let failure = report.failures.first();
    let word = report.error_class.as_deref().or(failure.map(|f| f.class.as_str()));
    let class = word.and_then(Class::from_word).unwrap_or(Class::Retry);
    let what = report.error.as_deref().or(failure.map(|f| f.reason.as_str())).unwrap_or("it ended without a word");
    TransferError::new(class, what)
}

impl Destination {
    /// What became of each file of an ended transfer. `there`: something stood at the name before.
    fn judge(&self, works: &[Work], there: &[bool], report: &Report, rows: &Rows) -> Vec<End> {
        let rows: HashMap<u16, _> = rows.take().into_iter().map(|row| (row.entry.root, row)).collect();
        let one = |(index, work): (usize, &Work)| {
            let a = &work.assignment;
            let row = u16::try_from(index).ok().and_then(|root| rows.get(&root));
            let digest = row.and_then(|row| row.digest).or(report.digest.filter(|_| works.len() == 1));
            let good = matches!(report.verdict, Verdict::Durable | Verdict::Verified | Verdict::Partial);
            let shown = a.path.rel_path().to_string();
            let failure = report.failures.iter().find(|f| f.path == shown || works.len() == 1);
            match (failure, row.map(|row| &row.entry.kind), digest) {
                (None, Some(EntryKind::File { size, .. }), Some(digest)) if good => {
                    let skipped = there.get(index) == Some(&true) && !work.started && a.if_exists != IfExists::Replace;
                    End::Done { bytes: *size, digest: Some(digest.to_string()), skipped }
                }
                (Some(failure), ..) => {
                    let class = Class::from_word(&failure.class).unwrap_or(Class::Retry);
                    self.back_of(&TransferError::new(class, failure.reason.as_str()).at(&failure.path))
                }
                // Left as it was, unlooked at: the digest is not known.
                (None, Some(EntryKind::File { size, .. }), None) if good && a.if_exists == IfExists::Skip => {
                    End::Done { bytes: *size, digest: None, skipped: true }
                }
                _ => self.whole(&error_of(report)),
            }
        };
        works.iter().enumerate().map(one).collect()
    }
}
