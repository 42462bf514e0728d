//! The end of a transfer: symlinks, then directories from the bottom up, the journal's last record, the report.

use super::files::is_directory;
use super::later::Later;
use super::run::{News, Run};
use crate::clock;
use crate::disk::{self, Meta, Replace, Root, TreeLock, finish_directory, make_symlink};
use crate::engine::error::{Class, TransferError};
use crate::engine::limiter::{self, Evidence};
use crate::engine::source::{disk_error, escape_text, worker_totals};
use crate::engine::spec::{Ends, Latency, Report, Verdict, Verify};
use crate::engine::tuning::profile_note;
use crate::ids::TransferId;
use crate::journal::{Ended, Record};
use crate::manifest::EntryKind;
use crate::sys::points;
use crate::wire::control::{Message, SourceStats};
use crate::wire::views::EndView;
use nix::errno::Errno;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long a source may take for its counters.
const STATS_TIMEOUT: Duration = Duration::from_secs(5);
/// Failures told to the other end: what fits a control frame with room to spare.
const FAILURES_TOLD: usize = 30;

/// A name whose finish failed.
type Failed = (crate::relpath::RelPath, disk::DiskError);

impl Run<'_> {
    /// After the last file: everything that is left, and the verdict.
    pub(super) async fn finish(
        &mut self,
        lock: &mut Option<TreeLock>,
        news: &mut mpsc::Receiver<News>,
    ) -> Result<Report, TransferError> {
        points::at("finish.files-done");
        let (failed, home) = self.symlinks_and_directories().await;
        points::at("finish.tree-done");
        for (path, error) in failed {
            let error = disk_error(&error);
            self.fail(&path, error.class, error.what);
        }
        self.statistics(news).await;
        let verdict = self.verdict();
        if let Some(journal) = self.journal.as_mut() {
            journal.record(Record::End(match verdict {
                Verdict::Durable => Ended::Durable,
                Verdict::Verified => Ended::Verified,
                Verdict::Partial => Ended::Partial,
                Verdict::Failed | Verdict::Planned => Ended::Failed,
            }));
            let written = journal.append_and_sync().await;
            points::at("finish.end-recorded");
            written.map_err(|error| TransferError::new(Class::Retry, error.to_string()))?;
        }
        let whole = matches!(verdict, Verdict::Durable | Verdict::Verified);
        // A transfer that is not whole keeps its journal: the next run goes on from there.
        if whole && let Some(lock) = lock.take() {
            if let Some(journal) = self.journal.take() {
                journal.close().await;
            }
            let (root, path) = (self.root.clone(), self.placement.home.clone());
            let removed = self.ctx.pool.run(move || {
                let finished = lock.finish();
                // Removing our state has changed the time of the directory that it was in; also where it went only half way.
                // Twice: XFS says yes to the sync of a directory whose change it has just lost by going away, and no sync of a
                // file follows here. Setting the same once more asks whether it is still there.
                let set =
                    |meta| finish_directory(&root, &path, meta).and_then(|()| finish_directory(&root, &path, meta));
                (finished, home.as_ref().map_or(Ok(()), set))
            });
            let (removed, home) = removed.await;
            if let Err(error) = removed {
                self.carry.notes.insert(format!("the journal could not be removed: {error}"));
            }
            if let Err(error) = home {
                let (error, home) = (disk_error(&error), self.placement.home.clone());
                self.fail(&home, error.class, error.what);
            }
        }
        // Without that directory's own time the tree is not whole.
        let verdict = self.verdict();
        let report = self.report(verdict);
        points::at("finish.verdict");
        let mut told = report.clone();
        told.failures.truncate(FAILURES_TOLD);
        told.notes.truncate(FAILURES_TOLD);
        self.tell_digests();
        let body = serde_json::to_vec(&told).expect("a report always becomes JSON");
        let _ = self.peers[0].out.send(Message::Verdict(body));
        self.peers.iter().skip(1).for_each(|peer| drop(peer.out.send(Message::Bye)));
        self.good_bye(news).await;
        Ok(report)
    }

    /// Waits until the source has said Bye, so that the verdict is not cut off by the closing of the socket.
    async fn good_bye(&mut self, news: &mut mpsc::Receiver<News>) {
        let bye = async {
            while let Some(news) = news.recv().await {
                if matches!(news, News::Message(0, Ok(Message::Bye) | Err(_))) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(STATS_TIMEOUT, bye).await;
    }

    /// What could not be finished, and the metadata of the home directory if it is one of the tree's.
    async fn symlinks_and_directories(&mut self) -> (Vec<Failed>, Option<Meta>) {
        let take = |later: &mut Later| {
            later.finish();
            std::mem::replace(later, Later::new(None))
        };
        let (dirs, links) = (take(&mut self.dirs), take(&mut self.links_later));
        let (root, placement, id, replace) = (self.root.clone(), self.placement.clone(), self.id, self.replace());
        let preserve = self.spec.options.preserve;
        self.ctx
            .pool
            .run(move || {
                let (mut failed, mut home) = (Vec::new(), None);
                let place = |entry: &crate::manifest::Entry| {
                    placement.prefixes.get(usize::from(entry.root)).and_then(|p| p.join(entry.path.as_bytes()).ok())
                };
                let lost = |error: std::io::Error| {
                    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32));
                    disk::DiskError::new(disk::error::Doing::Read, &placement.home, errno)
                };
                for index in 0..links.segments() {
                    let segment = match links.segment(index) {
                        Ok(segment) => segment,
                        Err(error) => {
                            failed.push((placement.home.clone(), lost(error)));
                            continue;
                        }
                    };
                    for entry in segment.entries {
                        let (Some(path), EntryKind::Symlink { target }) = (place(&entry), &entry.kind) else {
                            continue;
                        };
                        let mtime = preserve.times.then_some(entry.mtime);
                        if let Err(error) = link(&root, &path, target, &id, mtime, replace) {
                            failed.push((path, error));
                        }
                    }
                }
                // Children before parents: a parent's time would change when a child's is set.
                for index in (0..dirs.segments()).rev() {
                    let segment = match dirs.segment(index) {
                        Ok(segment) => segment,
                        Err(error) => {
                            failed.push((placement.home.clone(), lost(error)));
                            continue;
                        }
                    };
                    for entry in segment.entries.iter().rev() {
                        let Some(path) = place(entry) else { continue };
                        let meta = Meta {
                            mode: preserve.mode.then_some(entry.mode),
                            special: preserve.special,
                            mtime: preserve.times.then_some(entry.mtime),
                        };
                        if path == placement.home {
                            home = Some(meta);
                        }
                        if let Err(error) = finish_directory(&root, &path, &meta) {
                            failed.push((path, error));
                        }
                    }
                }
                (failed, home)
            })
            .await
    }

    async fn statistics(&mut self, news: &mut mpsc::Receiver<News>) {
        self.peers.iter().for_each(|peer| drop(peer.out.send(Message::StatsRequest)));
        let all = async {
            while self.peers.iter().any(|peer| peer.stats.is_none()) {
                match news.recv().await {
                    Some(News::Message(peer, Ok(Message::Stats(stats)))) => {
                        if let Some(peer) = self.peers.get_mut(peer) {
                            peer.stats = Some(stats);
                        }
                    }
                    Some(News::Message(peer, Err(_))) => {
                        if let Some(peer) = self.peers.get_mut(peer) {
                            peer.stats = Some(SourceStats::default());
                        }
                    }
                    Some(_) => {}
                    None => return,
                }
            }
        };
        let _ = tokio::time::timeout(STATS_TIMEOUT, all).await;
        for peer in &self.peers {
            let Some(stats) = &peer.stats else { continue };
            self.carry.sent += stats.sent_bytes;
            self.carry.source_cpu_ns += stats.cpu_ns;
            let notes = stats.notes.iter().take(FAILURES_TOLD);
            self.carry.notes.extend(notes.map(|n| format!("source: {}", escape_text(n))));
        }
    }

    fn verdict(&self) -> Verdict {
        if self.spec.options.dry_run {
            return Verdict::Planned;
        }
        match (self.counts.failed, self.counts.files_done + self.counts.skipped_files, self.spec.options.verify) {
            (0, _, Verify::Wire) => Verdict::Durable,
            // What an earlier run published, nobody has read back.
            (0, _, Verify::Disk) if self.carry.unread_files > 0 => Verdict::Durable,
            (0, _, Verify::Disk) => Verdict::Verified,
            (_, 0, _) => Verdict::Failed,
            _ => Verdict::Partial,
        }
    }

    fn report(&mut self, verdict: Verdict) -> Report {
        let totals =
            self.peers.iter().map(|p| p.links.totals()).fold((0, 0), |sum, t| (sum.0 + t.payload, sum.1 + t.wasted));
        let lost: u64 = self.peers.iter().map(|p| p.links.lost).sum();
        let duration = clock::since(self.carry.began).as_nanos() as u64;
        let evidence = self.evidence();
        let shares = evidence.shares(self.rate);
        let one_process =
            self.peers[0].process == u64::from(std::process::id()) && self.offer.agent == self.ctx.config.agent;
        let single =
            (self.carry.files == 1 && self.counts.total_files == 1).then(|| self.expected_seen.clone()).flatten();
        let first_error = (self.counts.failed > 0).then(|| self.failures.first().cloned()).flatten();
        let mut notes: Vec<String> = self.carry.notes.iter().cloned().collect();
        notes.extend(self.peers.iter().flat_map(|p| p.links.notes.iter().cloned()));
        if !self.encrypted {
            notes.push("payload was not encrypted".to_owned());
        }
        if self.ctx.config.synthetic.destination() {
            notes.push(
                "the destination is synthetic: what arrived was verified and thrown away, no file is there".to_owned(),
            );
        } else if !self.durable_storage {
            notes.push("the destination is in memory: nothing there survives a power cut".to_owned());
        }
        if self.carry.unread_files > 0 {
            notes.push(format!(
                "{} files were published by an earlier run with --verify wire and were not read back: DURABLE only",
                self.carry.unread_files
            ));
        }
        notes.extend(profile_note(&self.spec.options));
        notes.extend(limiter::notes(&shares, self.near));
        notes.extend(self.peers.iter().flat_map(|p| p.tune.tuner.steps.iter().cloned()));
        notes.dedup();
        let by_distance = || if self.near { "default (near)" } else { "default (far)" }.to_owned();
        Report {
            transfer: Some(self.id),
            session: Some(self.session),
            verdict,
            bytes: self.carry.bytes,
            files: self.carry.files,
            directories: self.counts.directories,
            symlinks: self.counts.symlinks,
            skipped_files: self.counts.skipped_files,
            skipped_bytes: self.counts.skipped_bytes,
            resumed_bytes: self.counts.resumed_bytes,
            hole_bytes: self.counts.hole_bytes,
            received_bytes: self.carry.received + totals.0,
            sent_bytes: self.carry.sent,
            resent_bytes: self.carry.wasted + totals.1,
            failed_chunks: self.carry.failed_chunks,
            duration_ns: duration,
            bits_per_second: (u128::from(self.carry.bytes) * 8_000_000_000 / u128::from(duration.max(1))) as u64,
            streams: self.streams,
            reconnects: self.carry.reconnects + lost,
            encrypted: self.encrypted,
            verify: self.spec.options.verify,
            verified: matches!(verdict, Verdict::Durable | Verdict::Verified),
            durable: self.durable_storage,
            dropped: self.ctx.config.synthetic.destination(),
            engine: Ends { source: self.peers[0].engine.clone(), destination: self.ctx.engine.engine.to_owned() },
            cpus: Ends { source: self.peers[0].cpus.clone(), destination: self.ctx.cpus() },
            io: Ends {
                source: self.peers[0].stats.as_ref().map(|s| escape_text(&s.io)).unwrap_or_default(),
                destination: self.how.iter().cloned().collect::<Vec<_>>().join(", "),
            },
            profile: self.spec.options.profile.as_ref().map_or_else(by_distance, |used| used.name.clone()),
            profile_why: self.spec.options.profile.as_ref().map(|used| used.why.clone()).unwrap_or_default(),
            profile_measured: self.spec.options.profile.as_ref().map(|used| used.measured),
            limiter: shares.first().map(|(limiter, _)| limiter.word().to_owned()).unwrap_or_default(),
            limiter_shares: limiter::named(&shares),
            explanation: evidence.explain(self.rate),
            evidence: Some(evidence),
            cpu_ns: Ends {
                source: if one_process { 0 } else { self.carry.source_cpu_ns },
                destination: crate::sys::process_cpu_time_ns() - self.carry.cpu_ns,
            },
            chunk_latency_ns: Latency::of(&self.carry.latency),
            digest: single.as_ref().map(|(digest, _)| *digest),
            checksums: single.map(|(_, checksums)| checksums).unwrap_or_default(),
            failures: self.failures.clone(),
            failed_files: self.counts.failed,
            special_files: self.counts.special,
            notes,
            error_class: first_error.as_ref().map(|f| f.class.clone()),
            error: first_error.map(|f| format!("{}: {}", f.path, f.reason)),
        }
    }

    /// What both ends say of where the time went.
    fn evidence(&self) -> Evidence {
        let mut evidence = self.evidence_here();
        for view in self.peers.iter().filter_map(|peer| peer.stats.as_ref()?.view.as_ref()) {
            evidence.add_source(view);
        }
        evidence
    }

    /// What this end says.
    pub(super) fn evidence_here(&self) -> Evidence {
        let mut evidence = Evidence { received_bytes: self.carry.received, ..Evidence::default() };
        let (waits, workers) = (&self.carry.waits, worker_totals(self.ctx).since(self.carry.workers));
        let totals: Vec<_> = self.peers.iter().map(|peer| peer.links.totals()).collect();
        evidence.spare_ns = self.carry.spare.ns(self.idle_ns());
        let streams: u64 = self.peers.iter().filter(|peer| !peer.gone).map(|peer| u64::from(peer.told.streams)).sum();
        let held_back = self.held_back_since.map_or(0, |since| clock::since(since).as_nanos() as u64);
        evidence.received_bytes += totals.iter().map(|t| t.payload).sum::<u64>();
        evidence.destination = EndView {
            wall_ns: clock::since(self.carry.began).as_nanos() as u64,
            streams: streams.max(self.streams.into()),
            workers: self.ctx.workers.len() as u64,
            cpu_ns: workers.cpu,
            delay_ns: workers.delay,
            idle_ns: self.idle_ns(),
            disk_ns: waits.destination_disk + self.syncing_ns() + totals.iter().map(|t| t.disk_wait).sum::<u64>(),
            send_ns: 0,
            held_back_ns: waits.commit + held_back,
        };
        evidence
    }
}

fn link(
    root: &Root,
    path: &crate::relpath::RelPath,
    target: &[u8],
    id: &TransferId,
    mtime: Option<crate::manifest::Mtime>,
    replace: Replace,
) -> Result<(), disk::DiskError> {
    if is_directory(&disk::existing(root, path)?) {
        return Err(disk::DiskError::Exists { path: path.clone() });
    }
    make_symlink(root, path, target, id, mtime, replace).map(|_| ())
}
