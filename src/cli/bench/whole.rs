//! End to end: one file, from an agent to here, as `longhaul cp` fetches it.

use super::parts::{Cpu, Kind, Part};
use crate::cli::fail::Fail;
use crate::control::client::{PeerClient, PeerTickets};
use crate::control::messages::{TicketRequest, WirePath};
use crate::engine::handle::{Engine, EngineConfig, TransferWatch};
use crate::engine::spec::{DestinationSpec, EngineChoice, Report, Synthetic, TransferOptions, Verdict};
use crate::ids::AgentId;
use crate::limits::DEFAULT_ARENA_BYTES;
use crate::profile::{Marking, SharedProfiles};
use crate::relpath::RelPath;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often progress is looked at.
const SAMPLE: Duration = Duration::from_millis(100);
/// What stops a transfer that is cut short.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an unreachable agent is asked again.
const RETRY_FOR: Duration = Duration::from_secs(5);

/// One transfer.
pub struct WholeSpec<'a> {
    /// The agent that has the file.
    pub client: PeerClient,
    /// The file there.
    pub path: Vec<u8>,
    /// A directory here, without symlinks in its path.
    pub to: &'a Path,
    /// How.
    pub options: TransferOptions,
    /// It is stopped after so long; what has come by then counts.
    pub limit: Duration,
    /// Whether what arrives is thrown away.
    pub drop: bool,
    /// Both ends, in words.
    pub how: String,
}

/// Runs it.
///
/// # Errors
/// It fails, or nothing arrives.
pub fn measure(spec: WholeSpec<'_>) -> Result<(Part, Report), Fail> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Fail::new(1, format!("cannot start the program's threads: {error}")))?;
    let engine = Engine::start(EngineConfig {
        workers: None,
        cpus: None,
        arena_bytes: DEFAULT_ARENA_BYTES,
        engine: EngineChoice::Auto,
        data_listen: None,
        advertise: Vec::new(),
        agent: AgentId(*b"longhaul bench\0\0"),
        block: spec.options.block,
        retry_for: RETRY_FOR,
        profiles: SharedProfiles::default(),
        marking: Marking::default(),
        synthetic: if spec.drop { Synthetic::Destination } else { Synthetic::Off },
    })?;
    let handle = engine.handle();
    let (cpu, how) = (Cpu::now(), spec.how);
    let limit = spec.limit;
    let (report, samples) = runtime.block_on(async {
        let to = DestinationSpec {
            base: spec.to.to_owned(),
            path: RelPath::new(b"copy").expect("a plain name"),
            becomes: true,
            rows: None,
            options: spec.options,
        };
        let request =
            TicketRequest::Read { paths: vec![WirePath(spec.path)], recursive: false, encrypt: to.options.encrypt };
        let tickets = PeerTickets::new(Arc::new(spec.client), request);
        let watch = handle.pull("bench", to, vec![Arc::new(tickets)]).await?;
        let watched = watch_it(watch, limit).await;
        handle.shutdown(PATIENCE).await;
        watched
    })?;
    Ok((part(&report, samples, Cpu::since(cpu), &how)?, report))
}

/// The report, and µs since the start with the bytes placed since the sample before.
async fn watch_it(watch: TransferWatch, limit: Duration) -> Result<(Report, Vec<(u64, u64)>), Fail> {
    let TransferWatch { mut snapshot, mut done, cancel, .. } = watch;
    let began = Instant::now();
    let (mut samples, mut before) = (Vec::new(), 0);
    let mut tick = tokio::time::interval(SAMPLE);
    tick.tick().await;
    loop {
        let over = tokio::select! {
            biased;
            report = &mut done => Some(report),
            _ = tick.tick() => None,
        };
        let placed = snapshot.borrow_and_update().bytes;
        // What a failed chunk takes back is no negative rate.
        samples.push((began.elapsed().as_micros() as u64, placed.saturating_sub(before)));
        before = placed.max(before);
        match over {
            Some(Ok(report)) => return Ok((report, samples)),
            Some(Err(_)) => return Err(Fail::new(5, "the engine ended without a report")),
            None if began.elapsed() >= limit => {
                cancel.send_replace(true);
            }
            None => {}
        }
        if began.elapsed() > limit + PATIENCE {
            return Err(Fail::new(5, "the transfer did not stop"));
        }
    }
}

fn part(report: &Report, mut samples: Vec<(u64, u64)>, cpu: Cpu, how: &str) -> Result<Part, Fail> {
    let whole = matches!(report.verdict, Verdict::Durable | Verdict::Verified);
    let stopped = report.error_class.as_deref() == Some("interrupted");
    if !(whole || stopped && report.received_bytes > 0) {
        let why = report.error.clone().unwrap_or_else(|| "the file did not arrive".to_owned());
        return Err(Fail::new(crate::cli::report::exit_code(report).max(1), format!("end to end: {why}")));
    }
    // A stopped one has no file, but bytes that arrived and were placed.
    let bytes = if whole { report.bytes } else { samples.iter().map(|(_, bytes)| bytes).sum() };
    // The snapshots may miss the end.
    let seen: u64 = samples.iter().map(|(_, bytes)| bytes).sum();
    if let Some(last) = samples.last_mut() {
        last.1 += bytes.saturating_sub(seen);
    }
    let mut notes = Vec::new();
    if !whole {
        notes.push("it was stopped before the file had arrived: nothing of it was published".to_owned());
    }
    if !report.limiter.is_empty() {
        notes.push(format!("the transfer itself says: limited by {}", report.limiter));
    }
    notes.extend(report.notes.iter().cloned());
    let secret = if report.encrypted { "encrypted" } else { "NOT encrypted" };
    let io = [("read", &report.io.source), ("written", &report.io.destination)];
    let io = io
        .into_iter()
        .filter(|(_, how)| !how.is_empty())
        .map(|(end, how)| format!(", {end} by {how}"))
        .collect::<String>();
    let rate = (u128::from(bytes) * 8_000_000_000 / u128::from(report.duration_ns.max(1))) as u64;
    Ok(Part {
        kind: Kind::Whole,
        rate,
        bytes,
        duration_ns: report.duration_ns,
        cpu,
        peer_cpu_ns: report.cpu_ns.source,
        samples,
        latency: (report.chunk_latency_ns.count > 0).then_some(report.chunk_latency_ns),
        how: format!("{how}{io}, {} streams, {secret}", report.streams),
        needed: false,
        notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_transfer_counts_what_came_and_says_so() {
        let mut report = Report { duration_ns: 2_000_000_000, received_bytes: 900, streams: 2, ..Report::default() };
        let samples = vec![(100_000, 300), (200_000, 500)];
        let failed = part(&report, samples.clone(), Cpu::default(), "x").unwrap_err();
        assert!(failed.code != 0 && failed.what.contains("did not arrive"), "{failed}");
        report.error_class = Some("interrupted".to_owned());
        let stopped = part(&report, samples.clone(), Cpu::default(), "x").unwrap();
        assert_eq!((stopped.bytes, stopped.rate), (800, 3_200));
        assert!(stopped.notes[0].contains("stopped") && stopped.how.contains("NOT encrypted"), "{stopped:?}");
        report = Report {
            verdict: Verdict::Durable,
            bytes: 1_000,
            limiter: "network".to_owned(),
            error_class: None,
            ..report
        };
        let whole = part(&report, samples, Cpu::default(), "x").unwrap();
        assert_eq!((whole.bytes, whole.samples[1]), (1_000, (200_000, 700)), "the end that no snapshot saw");
        assert!(whole.notes[0].contains("limited by network"), "{whole:?}");
    }
}
