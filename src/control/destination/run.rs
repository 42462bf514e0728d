//! Transfers: slots, directories that are in use, and what becomes of each file when the engine has ended.

use super::queue::{Work, directory};
use super::{Destination, PAUSE, Running, Stop};
use crate::control::client::PeerTickets;
use crate::control::destination::catalog::Known;
use crate::control::messages::{PartialOptions, TicketRequest, WirePath};
use crate::control::model::item::{Assignment, FailureClass, ItemReport};
use crate::control::model::name::Lfn;
use crate::control::model::states::ItemEvent;
use crate::control::model::time::Time;
use crate::engine::error::{Class, TransferError};
use crate::engine::rows::Rows;
use crate::engine::spec::{
    ChecksumKind, DestinationSpec, Expected, IfExists, Report, SourceSpec, TransferOptions, Verdict,
};
use crate::manifest::EntryKind;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long to look again when nobody rings.
const LOOK: Duration = Duration::from_secs(30);
/// Seconds after which a transfer that was only stopped goes on here.
const AGAIN_SECS: u64 = 1;
/// Seconds before a full destination is tried again.
const FULL_SECS: u64 = 60;

/// What a source tells a destination of a file that it has pushed: `POST /v1/local/catalog`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pushed {
    /// The entry.
    pub file: Known,
}

/// One file's end.
enum End {
    Done { bytes: u64, digest: String, skipped: bool },
    Back(FailureClass, String, Option<u64>),
    Stopped,
}

impl Destination {
    /// Whether two transfers could want one directory for themselves.
    fn busy(&self, a: &Assignment, group: bool) -> bool {
        let mine = directory(a.path.as_str());
        self.running().values().any(|r| {
            let nested = r.directory.starts_with(mine) || mine.starts_with(&r.directory);
            nested && (group || r.group)
        })
    }

    /// Starts what is ready while there are slots, for ever.
    pub(super) async fn start_transfers(self: Arc<Self>) {
        let slots = Arc::new(Semaphore::new(self.service.max_transfers));
        let number = AtomicU64::new(0);
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            self.wait_lease().await;
            let this = self.clone();
            let started = self.queue(move |queue| queue.start(|a, group| this.busy(a, group))).await.flatten();
            let Some((push, works)) = started else {
                drop(slot);
                let _ = tokio::time::timeout(LOOK, self.start.notified()).await;
                continue;
            };
            let Some(first) = works.first() else { continue };
            let key = number.fetch_add(1, Ordering::Relaxed);
            let running = Running {
                items: works.iter().map(|w| (w.assignment.item, w.assignment.epoch)).collect(),
                directory: directory(first.assignment.path.as_str()).to_owned(),
                group: works.len() > 1,
                cancel: None,
                snapshot: None,
                stop: HashMap::new(),
                ended: self.holds().is_none(),
            };
            self.running().insert(key, running);
            let this = self.clone();
            tokio::spawn(async move {
                let ends = if push { this.push(key, &works).await } else { this.pull(key, &works).await };
                this.conclude(key, works, ends).await;
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

    async fn pull(&self, key: u64, works: &[Work]) -> Vec<End> {
        let Some(Work { assignment: a, .. }) = works.first() else { return Vec::new() };
        let single = works.len() == 1;
        let all = |error: TransferError| works.iter().map(|_| back_of(&error)).collect();
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
                return works
                    .iter()
                    .map(|_| End::Back(FailureClass::DestinationBad, what.clone(), Some(FULL_SECS)))
                    .collect();
            }
            Err(_) => return works.iter().map(|_| End::Stopped).collect(),
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
        let rows = Arc::new(Rows::default());
        let to = DestinationSpec {
            base: self.app.root.path().to_owned(),
            path: if single { a.path.rel_path() } else { dir },
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
        let mut ends = judge(works, &there, &report, &rows);
        for (end, work) in ends.iter_mut().zip(works) {
            self.compare(end, &work.assignment, single).await;
        }
        ends
    }

    /// The catalog's word against what arrived. One file of its own was compared by the engine before it got its name; one of
    /// a group loses it again.
    async fn compare(&self, end: &mut End, a: &Assignment, single: bool) {
        let End::Done { bytes, digest, skipped } = &*end else { return };
        let wrong = match (a.bytes, &a.digest) {
            (Some(want), _) if want != *bytes => format!("{} has {bytes} bytes, the catalog says {want}", a.lfn),
            (_, Some(want)) if want != digest => format!("{} has the digest {digest}, the catalog says {want}", a.lfn),
            _ => return,
        };
        if !single && !*skipped {
            let (root, path) = (self.app.root.clone(), a.path.rel_path());
            let removed = tokio::task::spawn_blocking(move || root.remove(&path)).await;
            tracing::warn!(lfn = %a.lfn, ?removed, "a file that is not what the catalog says was removed");
        }
        *end = End::Back(FailureClass::Integrity, wrong, None);
    }

    async fn push(&self, key: u64, works: &[Work]) -> Vec<End> {
        let Some(work) = works.first() else { return Vec::new() };
        vec![match self.push_one(key, work).await {
            Ok(end) => end,
            Err(error) => back_of(&error),
        }]
    }

    async fn push_one(&self, key: u64, work: &Work) -> Result<End, TransferError> {
        let a = &work.assignment;
        let client = Arc::new(self.reach.peer(&a.destination)?);
        let rule = self.app.stage_rule;
        let (root, path) = (self.app.root.clone(), a.source_path.rel_path());
        let look = tokio::task::spawn_blocking(move || rule.look(&root, &path)).await;
        match look {
            Ok(Ok(crate::control::source::Readable::Online)) => {}
            Ok(Ok(_)) => {
                let what = "it is on tape here: ask for a pull, which waits for the recall".to_owned();
                return Ok(End::Back(FailureClass::SourceBad, what, None));
            }
            Ok(Err(errno)) => {
                let what = format!("{} cannot be read here: {}", a.source_path, errno.desc());
                return Ok(End::Back(FailureClass::SourceBad, what, None));
            }
            Err(_) => return Ok(End::Stopped),
        }
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
        let from = SourceSpec {
            base: self.app.root.path().to_owned(),
            roots: vec![a.source_path.rel_path()],
            recursive: false,
            encrypt,
            rows: None,
        };
        let tickets = Arc::new(PeerTickets::new(client.clone(), request));
        let watch = self.app.engine.push(self.name.to_string(), from, tickets, options).await;
        let report = self.follow(key, watch).await?;
        let Some(digest) = report.digest.filter(|_| matches!(report.verdict, Verdict::Durable | Verdict::Verified))
        else {
            return Ok(back_of(&error_of(&report)));
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
        Ok(End::Done { bytes, digest: digest.to_string(), skipped })
    }

    /// Catalog first, then the queue with its reports: who dies in between proves the file equal and comes here again.
    async fn conclude(&self, key: u64, works: Vec<Work>, ends: Vec<End>) {
        let stop = self.running().get(&key).map(|r| r.stop.clone()).unwrap_or_default();
        let (mut known, mut reports, mut again, mut lost) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (work, end) in works.iter().zip(ends) {
            let a = &work.assignment;
            match (end, stop.get(&a.item)) {
                (_, Some(Stop::Lost)) => lost.push(a.item),
                (End::Done { bytes, digest, skipped }, _) => {
                    self.ended.fetch_add(1, Ordering::Relaxed);
                    known.push(Known {
                        lfn: a.lfn.clone(),
                        path: a.path.clone(),
                        bytes,
                        digest: Some(digest.clone()),
                        dataset: a.dataset.clone(),
                        block: a.block.clone(),
                    });
                    let event = if skipped { ItemEvent::Skip } else { ItemEvent::Complete };
                    let (digest, size) = (Some(digest), Some(bytes));
                    reports.push(ItemReport { bytes, digest, size, ..work.report(event) });
                }
                (_, Some(Stop::Cancelled)) => reports.push(work.report(ItemEvent::Cancel)),
                (End::Stopped, None) => again.push((a.item, a.epoch)),
                (End::Back(class, reason, after), None) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(lfn = %a.lfn, ?class, %reason, "a file did not arrive and is given back");
                    reports.push(work.requeue(class, reason, after));
                }
            }
        }
        let pushed = works.first().is_some_and(|w| w.assignment.source.name == self.name);
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
        let due = Time::now().plus_secs(AGAIN_SECS);
        let over = Arc::new((reports, again, lost));
        loop {
            let over = over.clone();
            let kept = self.queue(move |queue| {
                let (reports, again, lost) = &*over;
                queue.finish(reports)?;
                queue.forget(lost)?;
                queue.postpone(again, due)
            });
            if kept.await.is_some() {
                break;
            }
        }
        self.running().remove(&key);
        self.probe.notify_one();
    }
}

/// An engine's failure as main classes it.
fn class_of(class: Class) -> FailureClass {
    match class {
        Class::Retry | Class::Reconnect | Class::Interrupted => FailureClass::Transient,
        Class::OtherSource | Class::NotFound => FailureClass::SourceBad,
        Class::Verification => FailureClass::Integrity,
        Class::Poisoned => FailureClass::DestinationBad,
        Class::Denied | Class::Permanent => FailureClass::Permanent,
    }
}

/// Words of a full or read-only destination in a report: the engine says no more than its class `retry`.
fn is_full(what: &str) -> bool {
    ["No space left", "Disk quota exceeded", "Read-only file system", "is full"].iter().any(|w| what.contains(w))
}

fn back_of(error: &TransferError) -> End {
    match error.class {
        Class::Interrupted => End::Stopped,
        _ if is_full(&error.what) => End::Back(FailureClass::DestinationBad, error.to_string(), Some(FULL_SECS)),
        class => End::Back(class_of(class), error.to_string(), None),
    }
}

fn error_of(report: &Report) -> TransferError {
    let failure = report.failures.first();
    let word = report.error_class.as_deref().or(failure.map(|f| f.class.as_str()));
    let class = word.and_then(Class::from_word).unwrap_or(Class::Retry);
    let what = report.error.as_deref().or(failure.map(|f| f.reason.as_str())).unwrap_or("it ended without a word");
    TransferError::new(class, what)
}

/// What became of each file of an ended transfer. `there`: something stood at the name before.
fn judge(works: &[Work], there: &[bool], report: &Report, rows: &Rows) -> Vec<End> {
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
                End::Done { bytes: *size, digest: digest.to_string(), skipped }
            }
            (Some(failure), ..) => {
                let class = Class::from_word(&failure.class).unwrap_or(Class::Retry);
                back_of(&TransferError::new(class, failure.reason.as_str()).at(&failure.path))
            }
            // Left as it was, unlooked at: the digest is not known.
            (None, Some(EntryKind::File { size, .. }), None) if good && a.if_exists == IfExists::Skip => {
                End::Done { bytes: *size, digest: String::new(), skipped: true }
            }
            _ => back_of(&error_of(report)),
        }
    };
    works.iter().enumerate().map(one).collect()
}
