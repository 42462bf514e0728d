//! The parts by themselves: `cargo bench --bench parts`. With `-- --test` each runs once, which CI does; with
//! `-- --quick` criterion stops early. Figures with host and date are in benches/README.md.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BatchSize, Criterion, Throughput};
use longhaul::digest::{self, ChunkHasher, Digest};
use longhaul::disk::{self, Root, Scanned};
use longhaul::engine::claims::ClaimTable;
use longhaul::engine::worker::mailbox::Mailbox;
use longhaul::grid::{CHUNK_SIZE, Grid};
use longhaul::ids::{AgentId, Epoch, Handle, PathKey, TransferId};
use longhaul::journal::{self, FileRecord, Record, Run, Writer};
use longhaul::manifest::{Entry, EntryKind, Mtime, Segment, SegmentBuilder};
use longhaul::relpath::RelPath;
use longhaul::sys::{
    Arena, ArenaConfig, Completion, FileMode, FileRef, IoQueue, Op, QueueChoice, SLOT_HEAD, Wait, WakeSource,
    open_queue,
};
use longhaul::wire::crypt::{FrameKey, Opener, Sealer};
use longhaul::wire::data::{PackItem, Run as WantRun, decode_pack_want, decode_runs, encode_pack_want, encode_runs};
use longhaul::wire::header::{FrameType, HEADER_LEN, Header, TRAILER_LEN};
use std::fs::File;
use std::hint::black_box;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

const BLOCK: usize = 256 << 10;

/// CPU time of this thread instead of the clock on the wall: the same on a host that others use as well.
struct CpuTime;

fn cpu_time() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every Linux has this clock").into()
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        cpu_time()
    }

    fn end(&self, began: Duration) -> Duration {
        cpu_time() - began
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn noise(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Whether the vectorised build is in use shows here: see `.cargo/config.toml`.
fn digests(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("digest");
    let block = noise(BLOCK);
    group.throughput(Throughput::Bytes(BLOCK as u64));
    let mut hasher = ChunkHasher::default();
    group.bench_function("xxh3 256 KiB block", |b| b.iter(|| hasher.update(black_box(&block))));
    let chunk = noise(CHUNK_SIZE as usize);
    group.throughput(Throughput::Bytes(CHUNK_SIZE));
    group.bench_function("xxh3 4 MiB chunk", |b| b.iter(|| digest::chunk(black_box(&chunk), 0)));
    let small = noise(10 << 10);
    group.throughput(Throughput::Bytes(small.len() as u64));
    group.bench_function("xxh3 10 KiB file", |b| b.iter(|| digest::chunk(black_box(&small), 0)));
    group.finish();
}

fn frames(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("frame 256 KiB");
    group.throughput(Throughput::Bytes(BLOCK as u64));
    for (name, encrypted) in [("plain", false), ("AES-256-GCM", true)] {
        let key = || if encrypted { FrameKey::new(&[7; 32]) } else { FrameKey::plain() };
        let header =
            |counter| Header { kind: FrameType::Data, flags: 0, body_len: BLOCK as u32, handle: 1, offset: 0, counter };
        let mut frame = noise(HEADER_LEN + BLOCK + TRAILER_LEN);
        let mut sealer = Sealer::new(key());
        group.bench_function(format!("{name} seal"), |b| b.iter(|| sealer.seal(header(0), black_box(&mut frame))));
        // Every frame opens once: so each is sealed first, and the pair is measured.
        let (mut sealer, mut opener) = (Sealer::new(key()), Opener::new(key()));
        group.bench_function(format!("{name} seal and open"), |b| {
            b.iter(|| {
                sealer.seal(header(0), &mut frame);
                let (head, rest) = frame.split_at_mut(HEADER_LEN);
                let head: &[u8; HEADER_LEN] = (&*head).try_into().expect("split there");
                let header = Header::decode(head, BLOCK as u32).expect("just sealed");
                let (body, trailer) = rest.split_at_mut(BLOCK);
                opener.open(&header, body, trailer).expect("just sealed");
            })
        });
    }
    group.finish();
}

fn coding(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("coding");
    let header = Header { kind: FrameType::Data, flags: 0, body_len: 1000, handle: 7, offset: 1 << 40, counter: 9 };
    group.bench_function("header", |b| b.iter(|| Header::decode(&black_box(&header).encode(), 1 << 20).expect("ours")));
    let runs = [WantRun { handle: Handle(3), first: 10, count: 2, digests_only: false }];
    group.bench_function("want", |b| b.iter(|| decode_runs(&encode_runs(black_box(&runs))).expect("ours")));
    let items: Vec<PackItem> = (0..51u32)
        .map(|n| PackItem {
            handle: Handle(n + 1),
            root: 0,
            path: path(n),
            size: 10_240,
            mtime: Mtime { secs: 1_700_000_000, nanos: n },
        })
        .collect();
    group.throughput(Throughput::Elements(items.len() as u64));
    group.bench_function("pack want of 51 files", |b| {
        b.iter(|| decode_pack_want(&encode_pack_want(black_box(&items))).expect("ours"))
    });
    group.finish();
}

fn path(number: u32) -> RelPath {
    RelPath::new(format!("run-2026/detector-{:03}/event-{number:07}.root", number / 100).as_bytes()).expect("valid")
}

fn claims(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("claims");
    let grid = Grid::new(4096 * CHUNK_SIZE).expect("16 GiB");
    group.throughput(Throughput::Elements(u64::from(grid.chunks())));
    group.bench_function("4096 chunks claimed and placed by 4 streams", |b| {
        b.iter(|| {
            let mut table = ClaimTable::default();
            (1..=4).for_each(|stream| table.add_stream(stream, 1));
            table.add_file(Handle(1), grid, &[(0, grid.chunks())], vec![1]);
            let mut stream = 0;
            while let Some(taken) = table.next_run(stream % 4 + 1, 2) {
                for chunk in taken.first..taken.first + taken.count {
                    assert!(table.placed(stream % 4 + 1, (taken.handle, chunk)));
                }
                stream += 1;
            }
            assert!(table.complete(Handle(1)));
        })
    });
    group.finish();
}

fn journal_header() -> journal::Header {
    journal::Header {
        transfer: TransferId([1; 16]),
        agent: AgentId([2; 16]),
        epoch: Epoch(1),
        created: 0,
        source: "bench".to_owned(),
        destination: RelPath::default(),
    }
}

fn journals(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("journal");
    let place = path(0);
    let key: PathKey = digest::path_key(0, place.as_bytes());
    const CHUNKS: u32 = 2048;
    let file = FileRecord {
        key,
        root: 0,
        path: place,
        size: u64::from(CHUNKS) * CHUNK_SIZE,
        mtime: Mtime { secs: 0, nanos: 0 },
        mode: 0o644,
    };
    let chunks = |first: u32| Record::Chunks { key, runs: vec![Run { first, digests: vec![Digest([9; 16]); 8] }] };
    let build = || {
        let mut writer = Writer::create(journal_header());
        writer.record(&Record::File(file.clone()));
        let mut bytes = writer.take();
        for first in (0..CHUNKS).step_by(8) {
            writer.record(&chunks(first));
            bytes.extend(writer.take());
        }
        bytes
    };
    group.throughput(Throughput::Elements(u64::from(CHUNKS)));
    group.bench_function("append 2048 chunks in 256 commits", |b| b.iter(|| black_box(build()).len()));
    let bytes = build();
    group.bench_function("recover 2048 chunks", |b| {
        b.iter(|| {
            let recovered = journal::recover(black_box(&bytes)).expect("ours");
            assert_eq!(recovered.checkpoint.durable_chunks(), u64::from(CHUNKS));
        })
    });
    group.finish();
}

/// A directory on the disk that the build is on: the usual one for temporary files is often memory, where a sync is nothing.
fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build's directory can be written")
}

/// How many chunks a commit is worth waiting for: the same 512 chunks, appended to a real file and synced in groups. On the
/// wall, since a sync is waiting.
fn journal_groups(c: &mut Criterion<WallTime>) {
    let mut group = c.benchmark_group("journal on disk");
    const CHUNKS: usize = 512;
    let dir = on_disk();
    let key: PathKey = digest::path_key(0, path(0).as_bytes());
    group.throughput(Throughput::Elements(CHUNKS as u64)).sample_size(10);
    for size in [1, 8, 64, CHUNKS] {
        let file = || File::create(dir.path().join("journal")).expect("room on the disk");
        group.bench_function(format!("512 chunks synced in groups of {size}"), |b| {
            b.iter_batched_ref(
                || (Writer::create(journal_header()), file()),
                |(writer, file)| {
                    for first in (0..CHUNKS).step_by(size) {
                        let runs = vec![Run { first: first as u32, digests: vec![Digest([9; 16]); size] }];
                        writer.record(&Record::Chunks { key, runs });
                        file.write_all(&writer.take()).expect("room on the disk");
                        file.sync_data().expect("a disk that syncs");
                    }
                },
                BatchSize::PerIteration,
            )
        });
    }
    group.finish();
}

/// A real tree, hot in the directory cache: what its names cost, and with them the segments that tell of them.
fn scans(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("scan");
    const DIRECTORIES: usize = 20;
    const FILES: usize = 100;
    let dir = on_disk();
    for directory in 0..DIRECTORIES {
        let directory = dir.path().join(format!("detector-{directory:03}"));
        std::fs::create_dir(&directory).expect("room on the disk");
        for file in 0..FILES {
            File::create(directory.join(format!("event-{file:07}.root"))).expect("room on the disk");
        }
    }
    let root = Root::open(dir.path()).expect("just made");
    let scan = |emit: &mut dyn FnMut(Scanned) -> ControlFlow<()>| {
        let totals = disk::scan(&root, &[RelPath::default()], true, &[], emit);
        assert_eq!((totals.files, totals.problems), ((DIRECTORIES * FILES) as u64, 0));
    };
    group.throughput(Throughput::Elements((DIRECTORIES * FILES) as u64));
    group.bench_function("tree of 2000 files", |b| {
        b.iter(|| {
            scan(&mut |found| {
                black_box(found);
                ControlFlow::Continue(())
            })
        })
    });
    group.bench_function("tree of 2000 files into segments", |b| {
        b.iter(|| {
            let mut builder = SegmentBuilder::default();
            let mut bytes = 0;
            scan(&mut |found| {
                if let Scanned::Entry(entry) = found {
                    bytes += builder.push(&entry).map_or(0, |segment| segment.len());
                }
                ControlFlow::Continue(())
            });
            bytes + builder.finish().map_or(0, |segment| segment.len())
        })
    });
    group.finish();
}

fn manifests(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("manifest");
    let entries: Vec<Entry> = (0..2000)
        .map(|n| Entry {
            root: 0,
            path: path(n),
            kind: EntryKind::File { size: 10_240, sparse: false },
            mode: 0o644,
            mtime: Mtime { secs: 1_700_000_000, nanos: n },
        })
        .collect();
    let encode = || {
        let mut builder = SegmentBuilder::default();
        let mut segments: Vec<Vec<u8>> = entries.iter().filter_map(|e| builder.push(e)).collect();
        segments.extend(builder.finish());
        segments
    };
    group.throughput(Throughput::Elements(entries.len() as u64));
    group.bench_function("encode 2000 entries", |b| b.iter(|| black_box(encode()).len()));
    let segments = encode();
    group.bench_function("decode 2000 entries", |b| {
        b.iter(|| {
            let count: usize = segments.iter().map(|s| Segment::decode(s).expect("ours").entries.len()).sum();
            assert_eq!(count, entries.len());
        })
    });
    group.finish();
}

fn mailboxes(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("mailbox");
    group.throughput(Throughput::Elements(64));
    let source = WakeSource::new().expect("an eventfd");
    let mailbox = Mailbox::new(source.waker());
    group.bench_function("a batch of 64 sent and taken", |b| {
        b.iter_batched_ref(
            || (0..64u64).collect::<Vec<_>>(),
            |batch| {
                mailbox.send_all(batch);
                source.drain();
                let mut sum = 0;
                while let Some(n) = mailbox.take() {
                    sum += n;
                }
                assert_eq!(sum, 2016);
            },
            BatchSize::SmallInput,
        )
    });
    group.finish();
}

/// One block to and fro between two sockets of one queue: ring against epoll, without a network stack in the way.
fn queues(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("queue");
    const LEN: u32 = 64 << 10;
    group.throughput(Throughput::Bytes(u64::from(LEN)));
    for (name, choice) in [("io_uring", QueueChoice::Uring), ("epoll", QueueChoice::Epoll)] {
        let config = ArenaConfig { bytes: 4 << 20, block: LEN, explicit_huge_pages: false };
        let arena = Arena::new(config).expect("4 MiB");
        let Ok(mut queue) = open_queue(choice, &arena, 64) else {
            eprintln!("queue/{name}: refused by this kernel, left out");
            continue;
        };
        let (near, far) = UnixStream::pair().expect("a socket pair");
        let near = queue.attach(Arc::new(OwnedFd::from(near))).expect("room for a socket");
        let far = queue.attach(Arc::new(OwnedFd::from(far))).expect("room for a socket");
        let mut done: Vec<Completion> = Vec::new();
        group.bench_function(format!("{name} 64 KiB sent and received"), |b| {
            b.iter(|| {
                let slot = || arena.take().expect("slots of finished ops come back");
                queue.push(Op::Send { socket: near.clone(), slot: slot(), range: 0..LEN, token: 1 });
                let (mut got, mut receiving) = (0, false);
                while got < LEN || queue.in_flight() > 0 {
                    if !receiving && got < LEN {
                        queue.push(Op::Recv { socket: far.clone(), slot: slot(), range: got..LEN, token: 2 });
                        receiving = true;
                    }
                    queue.submit_and_reap(&mut done, Wait::AtMost(Duration::from_secs(5))).expect("the queue works");
                    for completion in done.drain(..) {
                        let count = completion.result.expect("nobody closes");
                        if completion.token == 2 {
                            (got, receiving) = (got + count, false);
                        }
                    }
                }
            })
        });
    }
    group.finish();
}

/// What one system call for many reads saves: 64 reads of 4 KiB from a hot page cache, so many for each `io_uring_enter`.
fn ring_batches(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("ring");
    const READS: u64 = 64;
    const LEN: u32 = 4096;
    let config = ArenaConfig { bytes: 8 << 20, block: 64 << 10, explicit_huge_pages: false };
    let arena = Arena::new(config).expect("8 MiB");
    let Ok(mut queue) = open_queue(QueueChoice::Uring, &arena, 256) else {
        return eprintln!("ring: refused by this kernel, left out");
    };
    let dir = on_disk();
    let name = dir.path().join("file");
    std::fs::write(&name, noise((READS * u64::from(LEN)) as usize)).expect("room on the disk");
    let fd = Arc::new(OwnedFd::from(File::open(&name).expect("just made")));
    // Deferred: a buffered file whose reads go to the ring all the same.
    let file = FileRef { fd, mode: FileMode::Deferred };
    let mut done: Vec<Completion> = Vec::new();
    group.throughput(Throughput::Elements(READS));
    for batch in [1, 4, 16, READS] {
        group.bench_function(format!("64 reads of 4 KiB, {batch} for each enter"), |b| {
            b.iter(|| {
                let mut read = 0;
                for first in (0..READS).step_by(batch as usize) {
                    for number in first..first + batch {
                        let slot = arena.take().expect("slots of finished ops come back");
                        let (offset, range) = (number * u64::from(LEN), SLOT_HEAD..SLOT_HEAD + LEN);
                        queue.push(Op::Read { file: file.clone(), offset, slot, range, token: number });
                    }
                    while queue.in_flight() > 0 {
                        let wait = Wait::AtMost(Duration::from_secs(5));
                        queue.submit_and_reap(&mut done, wait).expect("the queue works");
                        read += done.drain(..).map(|one| one.result.expect("a read")).sum::<u32>();
                    }
                }
                assert_eq!(u64::from(read), READS * u64::from(LEN));
            })
        });
    }
    group.finish();
}

fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
}

fn main() {
    let mut c = criterion().with_measurement(CpuTime).configure_from_args();
    digests(&mut c);
    frames(&mut c);
    coding(&mut c);
    claims(&mut c);
    journals(&mut c);
    manifests(&mut c);
    mailboxes(&mut c);
    queues(&mut c);
    scans(&mut c);
    ring_batches(&mut c);
    c.final_summary();
    let mut waiting = criterion().configure_from_args();
    journal_groups(&mut waiting);
    waiting.final_summary();
}
