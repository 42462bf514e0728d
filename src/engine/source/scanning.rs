//! A source's scan: in a thread of its own, as the pool's threads are for calls that end soon.

use super::{accepted, disk_error, rooted};
use crate::clock;
use crate::disk::scan::ScanError;
use crate::disk::{self, Root, ScanTotals, Scanned};
use crate::engine::channel::Channel;
use crate::engine::error::TransferError;
use crate::engine::pool::Pool;
use crate::engine::rows::Rows;
use crate::manifest::{EntryKind, SegmentBuilder};
use crate::relpath::RelPath;
use crate::wire::control::{Accept, Message};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// A segment goes out after so long even if it is not full: data moves while the scan still runs.
const SEGMENT_LATENCY: Duration = Duration::from_millis(20);

/// What the scan's thread sends.
pub(super) enum Scan {
    Segment(Vec<u8>),
    Problem { root: u16, path: Vec<u8>, what: String },
    End { segments: u32, totals: ScanTotals },
}

impl Scan {
    /// What the destination hears of it.
    pub(super) fn message(self) -> Message {
        match self {
            Scan::Segment(bytes) => {
                crate::sys::points::at("source.segment");
                Message::Segment(bytes)
            }
            Scan::Problem { root, path, what } => Message::Problem { root, path, what },
            Scan::End { segments, totals } => {
                tracing::debug!(?totals, "scan ended");
                crate::sys::points::at("source.manifest-end");
                Message::ManifestEnd(segments)
            }
        }
    }
}

/// Messages of the manifest that go out behind the offer, before the destination has asked for any: on a long path that is a
/// round trip less before the first byte.
const EARLY: usize = 2;
// Their segments count against the credit, so the destination has room for them.
const _: () = assert!(EARLY <= crate::limits::SEGMENT_CREDIT as usize);

/// Waits for the answer to the offer; meanwhile the manifest begins. With how many segments.
pub(super) async fn accepted_meanwhile(
    channel: &mut Channel,
    scanned: &mut mpsc::Receiver<Scan>,
) -> Result<(Accept, u32), TransferError> {
    let out = channel.sender();
    let accepting = accepted(channel);
    tokio::pin!(accepting);
    let (mut told, mut segments) = (0, 0);
    loop {
        tokio::select! {
            biased;
            accept = &mut accepting => return Ok((accept?, segments)),
            Some(scan) = scanned.recv(), if told < EARLY => {
                told += 1;
                segments += u32::from(matches!(scan, Scan::Segment(_)));
                // A closed writer shows at the reader.
                let _ = out.send(scan.message());
            }
        }
    }
}

/// Ends the scan with its session.
pub(super) struct StopOnDrop(pub Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a scan works on.
pub(super) struct ScanJob {
    pub root: Arc<Root>,
    pub base: PathBuf,
    pub roots: Arc<Vec<RelPath>>,
    pub recursive: bool,
    pub rows: Option<Arc<Rows>>,
    pub tell: mpsc::Sender<Scan>,
}

/// Begins a scan.
pub(super) fn spawn_scan(pool: &Pool, job: ScanJob, stop: Arc<AtomicBool>) {
    let tell = job.tell.clone();
    if pool.is_simulated() {
        // One thread for all: the scan comes to its end first, then what it found is handed on.
        let pool = pool.clone();
        tokio::task::spawn_local(async move {
            let found = pool.run(move || {
                let mut found = Vec::new();
                scan_all(&job, &stop, &mut |scan| {
                    found.push(scan);
                    true
                });
                found
            });
            for scan in found.await {
                if tell.send(scan).await.is_err() {
                    return;
                }
            }
        });
        return;
    }
    let work = move || scan_all(&job, &stop, &mut |scan| tell.blocking_send(scan).is_ok());
    if let Err(error) = std::thread::Builder::new().name("lh-scan".to_owned()).spawn(work) {
        tracing::error!(%error, "no thread for the scan");
    }
}

/// Walk 4: scans the roots, in segments that are usable as they arrive. `tell` says whether anybody still listens.
fn scan_all(job: &ScanJob, stop: &AtomicBool, tell: &mut dyn FnMut(Scan) -> bool) {
    let mut builder = SegmentBuilder::default();
    let mut segments = 0;
    let mut last = clock::now();
    let mut emit = |scanned: Scanned| {
        let full = match scanned {
            Scanned::Entry(entry) => {
                if let Some(rows) = job.rows.as_ref().filter(|_| entry.kind != EntryKind::Special) {
                    rows.named(&entry);
                }
                builder.push(&entry)
            }
            Scanned::Problem { root, path, error } => {
                let what = match error {
                    ScanError::Disk(error) => rooted(disk_error(&error), &job.base).to_string(),
                    error => error.to_string(),
                };
                if !tell(Scan::Problem { root, path: path.as_bytes().to_vec(), what }) {
                    return ControlFlow::Break(());
                }
                None
            }
        };
        let due = if full.is_none() && clock::since(last) > SEGMENT_LATENCY { builder.finish() } else { None };
        for segment in full.into_iter().chain(due) {
            segments += 1;
            last = clock::now();
            if !tell(Scan::Segment(segment)) {
                return ControlFlow::Break(());
            }
        }
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let totals = disk::scan(&job.root, &job.roots, job.recursive, &[], &mut emit);
    if let Some(segment) = builder.finish() {
        segments += 1;
        if !tell(Scan::Segment(segment)) {
            return;
        }
    }
    tell(Scan::End { segments, totals });
}
