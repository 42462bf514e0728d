//! Storage by itself: a file read or written by the plan that `disk` makes for it, through the queue that workers use.

use super::{BenchError, Done, Measured, Meter, metered, threads};
use crate::disk::source::Expect;
use crate::disk::{IoWish, PartFile, ProbeCache, Root, SourceFile, write_plan};
use crate::engine::spec::{IoChoice, Latency};
use crate::grid::{CHUNK_SIZE, Span};
use crate::ids::TransferId;
use crate::relpath::RelPath;
use crate::sys::arena::{SLOT_HEAD, SLOT_TAIL};
use crate::sys::{
    Arena, ArenaConfig, Completion, FileMode, FileRef, IoQueue, Op, Queue, QueueChoice, Slot, Wait, open_queue,
};
use hdrhistogram::Histogram;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Blocks that each thread has under way, at most.
const DEPTH: u32 = 8;
/// The longest wait for a block: storage that hangs so long is said to.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file to read or to write.
#[derive(Debug, Clone)]
pub struct DiskSpec {
    /// A directory.
    pub dir: PathBuf,
    /// The file below it.
    pub name: RelPath,
    /// Bytes to write. A read takes the file as it is.
    pub size: u64,
    /// Bytes of one I/O, a power of two, at least 4 KiB, that divides a chunk.
    pub block: u32,
    /// Threads, each with a queue of its own.
    pub threads: usize,
    /// How, as a transfer is asked.
    pub io: IoChoice,
    /// How long. A file that ends earlier is read, or written, again.
    pub time: Duration,
    /// Whether what the page cache has of it is to be forgotten before it is read.
    pub cold: bool,
}

impl DiskSpec {
    fn wish(&self) -> IoWish {
        match self.io {
            IoChoice::Auto => IoWish::Auto,
            IoChoice::Buffered | IoChoice::Splice => IoWish::Buffered,
            IoChoice::DontCache => IoWish::DontCache,
            IoChoice::Direct => IoWish::Direct,
        }
    }

    fn root(&self) -> Result<Root, BenchError> {
        let directory = |error: crate::disk::root::RootError| BenchError::Directory {
            dir: self.dir.clone(),
            why: error.to_string(),
        };
        Root::open_following(&self.dir).map_err(directory)
    }
}

/// How a mode is called where people read it.
fn word(mode: FileMode) -> &'static str {
    match mode {
        FileMode::PageCache => "page cache",
        FileMode::DontCache => "RWF_DONTCACHE",
        FileMode::Direct => "O_DIRECT",
        FileMode::Deferred => "page cache, several in flight",
        FileMode::Synthetic => "synthetic",
    }
}

/// Blocks under way for a mode: what is done at once in the thread gains nothing from more than one.
fn depth(mode: FileMode) -> usize {
    match mode {
        FileMode::PageCache | FileMode::DontCache | FileMode::Synthetic => 1,
        FileMode::Direct | FileMode::Deferred => DEPTH as usize,
    }
}

/// Reads a file over and over until the time is up.
///
/// # Errors
/// It cannot be opened or read, or is smaller than a block.
pub fn read(spec: &DiskSpec) -> Result<Measured, BenchError> {
    let root = spec.root()?;
    let open = || SourceFile::open(&root, &spec.name, Expect::Any, &ProbeCache::default(), spec.wish());
    if spec.cold {
        let file = open()?;
        // Advice: where it is not taken the plan says "in the page cache".
        let _ = posix_fadvise(&*file.buffered().fd, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
    let source = open()?;
    let size = source.identity().size;
    let blocks = size / u64::from(spec.block);
    if blocks == 0 {
        return Err(BenchError::TooSmall { size, block: spec.block });
    }
    let file = source.file_ref();
    let plan = source.plan();
    let depth = depth(plan.mode);
    metered(spec.time, |meter| {
        let next = AtomicU64::new(0);
        let engine = std::sync::Mutex::new("");
        let latency = threads(spec.threads, |_| {
            let mut lane = Lane::open(spec.block)?;
            *engine.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = lane.queue.describe().engine;
            lane.run(
                meter,
                || {
                    // A chunk after the other, as they are claimed; then from the beginning.
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    (!meter.is_over()).then(|| number % blocks * u64::from(spec.block))
                },
                &file,
                depth,
                true,
            )
        })?;
        source.check()?;
        let passes = next.load(Ordering::Relaxed) / blocks;
        let again = if passes > 0 { format!(", {} times over", passes + 1) } else { String::new() };
        let engine = engine.into_inner().unwrap_or_default();
        let how = format!("{} ({}){again}, {engine}", word(plan.mode), plan.reason);
        Ok(Done { latency: Some(latency), threads: spec.threads, how, ..Done::default() })
    })
}

/// Writes files of the size, one after the other, each synced, until the time is up; what is under way then is synced and
/// counts. Leaves nothing.
///
/// # Errors
/// No room, or storage that fails.
pub fn write(spec: &DiskSpec) -> Result<Measured, BenchError> {
    let root = spec.root()?;
    let size = spec.size / u64::from(spec.block) * u64::from(spec.block);
    if size == 0 {
        return Err(BenchError::TooSmall { size: spec.size, block: spec.block });
    }
    let facts = ProbeCache::default().destination(root.handle())?;
    let plan = write_plan(&facts, size, spec.wish());
    let mut id = [0; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| BenchError::io("get random bytes")(io::ErrorKind::Other.into()))?;
    let id = TransferId(id);
    metered(spec.time, |meter| {
        let mut done = Done { latency: Some(Latency::histogram()), threads: spec.threads, ..Done::default() };
        let mut engine = "";
        loop {
            let part = PartFile::create(&root, &spec.name, &id, size, None, &plan)?;
            let pass = fill(spec, meter, &part, size, plan.write_behind);
            let synced = pass.and_then(|pass| {
                let began = Instant::now();
                part.sync_data()?;
                done.sync_ns += began.elapsed().as_nanos() as u64;
                Ok(pass)
            });
            let began = Instant::now();
            let removed = part.remove();
            done.besides_ns += began.elapsed().as_nanos() as u64;
            let (latency, name) = synced?;
            removed?;
            engine = if name.is_empty() { engine } else { name };
            let _ = done.latency.as_mut().map(|all| all.add(latency));
            if meter.is_over() {
                break;
            }
        }
        done.how = format!("{} ({}), {engine}, synced", word(plan.mode), plan.reason);
        Ok(done)
    })
}

/// One file's blocks, or as many as there is time for.
fn fill(
    spec: &DiskSpec,
    meter: &Meter,
    part: &PartFile,
    size: u64,
    behind: bool,
) -> Result<(Histogram<u64>, &'static str), BenchError> {
    let file = part.file_ref();
    let next = AtomicU64::new(0);
    let engine = std::sync::Mutex::new("");
    let latency = threads(spec.threads, |_| {
        let mut lane = Lane::open(spec.block)?;
        *engine.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = lane.queue.describe().engine;
        lane.fill_with_noise()?;
        lane.run(
            meter,
            || {
                let offset = next.fetch_add(u64::from(spec.block), Ordering::Relaxed);
                let on = offset < size && !meter.is_over();
                if on && behind && offset > 0 && offset.is_multiple_of(CHUNK_SIZE) {
                    part.write_behind(Span { offset: offset - CHUNK_SIZE, len: CHUNK_SIZE });
                }
                on.then_some(offset)
            },
            &file,
            depth(file.mode),
            false,
        )
    })?;
    Ok((latency, engine.into_inner().unwrap_or_default()))
}

/// One thread's queue and buffers.
struct Lane {
    queue: Queue,
    free: Vec<Slot>,
    block: u32,
}

impl Lane {
    fn open(block: u32) -> Result<Self, BenchError> {
        let slot = (SLOT_HEAD + block + SLOT_TAIL) as usize;
        let config = ArenaConfig { bytes: slot * DEPTH as usize, block, explicit_huge_pages: false };
        let arena = Arena::new(config).map_err(BenchError::io("get memory for blocks"))?;
        let queue = open_queue(QueueChoice::Auto, &arena, DEPTH * 2).map_err(BenchError::io("open a queue"))?;
        let free: Vec<Slot> = std::iter::from_fn(|| arena.take()).take(DEPTH as usize).collect();
        Ok(Self { queue, free, block })
    }

    /// Nothing below is to compress it.
    fn fill_with_noise(&mut self) -> Result<(), BenchError> {
        for slot in &mut self.free {
            aws_lc_rs::rand::fill(slot.as_mut_slice())
                .map_err(|_| BenchError::io("get random bytes")(io::ErrorKind::Other.into()))?;
        }
        Ok(())
    }

    /// Keeps `depth` blocks under way at the offsets that `next` gives, until it gives none.
    fn run(
        &mut self,
        meter: &Meter,
        next: impl Fn() -> Option<u64>,
        file: &FileRef,
        depth: usize,
        reads: bool,
    ) -> Result<Histogram<u64>, BenchError> {
        let doing = if reads { "read the file" } else { "write the file" };
        let mut latency = Latency::histogram();
        let mut began = vec![Instant::now(); DEPTH as usize];
        let mut numbers: Vec<u64> = (0..u64::from(DEPTH)).collect();
        let mut out: Vec<Completion> = Vec::new();
        let mut failed = None;
        loop {
            while failed.is_none() && self.queue.in_flight() < depth {
                let Some(offset) = next() else { break };
                let (Some(slot), Some(token)) = (self.free.pop(), numbers.pop()) else { break };
                began[token as usize] = Instant::now();
                let (file, range) = (file.clone(), SLOT_HEAD..SLOT_HEAD + self.block);
                self.queue.push(match reads {
                    true => Op::Read { file, offset, slot, range, token },
                    false => Op::Write { file, offset, slot, range, token },
                });
            }
            if self.queue.in_flight() == 0 {
                return failed.map_or(Ok(latency), Err);
            }
            let waited = Instant::now();
            self.queue
                .submit_and_reap(&mut out, Wait::AtMost(PATIENCE))
                .map_err(BenchError::io("wait for the disk"))?;
            if out.is_empty() && waited.elapsed() >= PATIENCE {
                return Err(BenchError::Io { doing, source: io::ErrorKind::TimedOut.into() });
            }
            for Completion { token, slot, result } in out.drain(..) {
                self.free.extend(slot);
                numbers.push(token);
                match result {
                    Ok(bytes) => {
                        meter.add(bytes.into());
                        Latency::record(&mut latency, began[token as usize].elapsed().as_nanos() as u64);
                    }
                    Err(source) => failed = failed.or(Some(BenchError::Io { doing, source })),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dir: &std::path::Path, size: u64) -> DiskSpec {
        DiskSpec {
            dir: dir.to_owned(),
            name: RelPath::new(b"file").unwrap(),
            size,
            block: 65_536,
            threads: 2,
            io: IoChoice::Auto,
            time: Duration::from_millis(150),
            cold: true,
        }
    }

    #[test]
    fn files_are_written_synced_and_removed_until_the_time_is_up() {
        let dir = tempfile::tempdir().unwrap();
        let measured = write(&spec(dir.path(), 8 << 20)).unwrap();
        assert!(measured.bytes > 0 && measured.bytes.is_multiple_of(65_536), "{measured:?}");
        assert_eq!(measured.latency.count * 65_536, measured.bytes);
        assert!(measured.sync_ns > 0 && measured.wall_ns > measured.sync_ns, "{measured:?}");
        assert!(measured.wall_ns >= 100_000_000 && measured.how.contains("synced"), "{measured:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
        let small = write(&spec(dir.path(), 1_000)).unwrap_err();
        assert!(matches!(small, BenchError::TooSmall { size: 1_000, block: 65_536 }), "{small}");
    }

    #[test]
    fn a_file_is_read_over_and_over_and_one_that_is_not_there_is_said() {
        let dir = tempfile::tempdir().unwrap();
        // Not whole blocks: its tail is left out.
        std::fs::write(dir.path().join("file"), vec![7; (1 << 20) + 100]).unwrap();
        let measured = read(&spec(dir.path(), 0)).unwrap();
        assert!(measured.bytes > 1 << 20 && measured.bytes.is_multiple_of(65_536), "{measured:?}");
        assert!(measured.how.contains("times over") && measured.sync_ns == 0, "{measured:?}");
        std::fs::remove_file(dir.path().join("file")).unwrap();
        let error = read(&spec(dir.path(), 0)).unwrap_err();
        assert!(matches!(error, BenchError::Source(_)) && error.to_string().contains("file"), "{error}");
        let error = read(&spec(&dir.path().join("none"), 0)).unwrap_err();
        assert!(matches!(error, BenchError::Directory { .. }), "{error}");
    }
}
