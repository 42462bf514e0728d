//! One suite for every queue, on the real kernel: loopback sockets and files in the working directory.
#![allow(unsafe_code)]

mod pages;
mod zero_copy;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::ring::SocketPath;
use super::*;
use pages::pages_go_out_with_their_frame;

const BLOCK: u32 = 64 << 10;
const HEAD: u32 = SLOT_HEAD;
/// Long enough that only a hang gets there.
const PATIENCE: Duration = Duration::from_secs(20);

fn arena(slots: usize) -> Arc<Arena> {
    let bytes = slots * (BLOCK + SLOT_HEAD + SLOT_TAIL) as usize;
    Arena::new(ArenaConfig { bytes, block: BLOCK, explicit_huge_pages: false }).unwrap()
}

type Open = fn(&Arc<Arena>, u32) -> Queue;

macro_rules! conformance {
    ($($test:ident,)*) => {
        conformance!(@ uring_inline_sockets, |arena, entries| {
            Queue::Uring(Box::new(Uring::open_with(arena, entries, SocketPath::Inline, true).unwrap()))
        }, $($test,)*);
        conformance!(@ uring_ring_sockets, |arena, entries| {
            Queue::Uring(Box::new(Uring::open_with(arena, entries, SocketPath::Ring, true).unwrap()))
        }, $($test,)*);
        conformance!(@ epoll, |arena, entries| open_queue(QueueChoice::Epoll, arena, entries).unwrap(), $($test,)*);
        // What a host gets; the sandboxed tests run this one.
        conformance!(@ auto, |arena, entries| open_queue(QueueChoice::Auto, arena, entries).unwrap(), $($test,)*);
    };
    (@ $queue:ident, $open:expr, $($test:ident,)*) => {
        mod $queue {
            use super::*;
            const OPEN: Open = $open;
            $(#[test] fn $test() { super::$test(OPEN); })*
        }
    };
}

conformance!(
    echoes_megabytes_through_tiny_buffers,
    serves_many_sockets_at_once,
    a_closed_peer_reads_as_zero,
    a_reset_is_an_error_for_both_directions,
    shutdown_ends_what_waits,
    sockets_that_wait_hold_no_slot,
    files_of_every_mode_read_back,
    more_ops_than_entries,
    an_end_that_is_not_aligned_ends_a_direct_read,
    errors_of_files_come_back,
    nonsense_is_refused,
    pages_go_out_with_their_frame,
    a_slot_stays_with_the_queue_until_it_is_done,
    drop_waits_for_what_is_under_way,
    nothing_is_written_after_a_drop,
    a_wake_ends_a_wait_and_is_never_lost,
    waits_no_longer_than_told,
    sockets_come_and_go,
);

/// A completion of an op whose slot comes back with it.
struct Done {
    token: u64,
    slot: Slot,
    result: io::Result<u32>,
}

/// A queue with what came out of it.
struct Rig {
    queue: Queue,
    out: Vec<Completion>,
}

impl Rig {
    fn new(queue: Queue) -> Self {
        Self { queue, out: Vec::new() }
    }

    /// The next completion; a hang fails the test.
    fn next(&mut self) -> Done {
        let Completion { token, slot, result } = self.next_completion();
        Done { token, slot: slot.expect("only a zero-copy send keeps its slot"), result }
    }

    fn next_completion(&mut self) -> Completion {
        let end = Instant::now() + PATIENCE;
        while self.out.is_empty() {
            assert!(Instant::now() < end, "nothing completed; {} in flight", self.queue.in_flight());
            self.queue.submit_and_reap(&mut self.out, Wait::AtMost(Duration::from_secs(1))).unwrap();
        }
        self.out.remove(0)
    }

    fn recv(&mut self, socket: &SocketRef, slot: Slot, range: Range<u32>, token: u64) {
        self.queue.push(Op::Recv { socket: socket.clone(), slot, range, token });
    }

    fn send(&mut self, socket: &SocketRef, slot: Slot, range: Range<u32>, token: u64) {
        self.queue.push(Op::Send { socket: socket.clone(), slot, range, token });
    }

    fn attach(&mut self, stream: TcpStream) -> SocketRef {
        self.queue.attach(Arc::new(OwnedFd::from(stream))).unwrap()
    }
}

fn pair(buffer: Option<usize>) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    if let Some(bytes) = buffer {
        SockRef::from(&listener).set_recv_buffer_size(bytes).unwrap();
        SockRef::from(&listener).set_send_buffer_size(bytes).unwrap();
    }
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    if let Some(bytes) = buffer {
        SockRef::from(&near).set_send_buffer_size(bytes).unwrap();
    }
    near.set_nodelay(true).unwrap();
    let (far, _) = listener.accept().unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

fn fill(slot: &mut Slot, from: u64) {
    for (n, byte) in slot.as_mut_slice()[HEAD as usize..][..BLOCK as usize].iter_mut().enumerate() {
        *byte = pattern(from + n as u64);
    }
}

fn check(slot: &Slot, range: Range<u32>, from: u64) {
    let bytes = &slot.as_slice()[range.start as usize..range.end as usize];
    let wrong = bytes.iter().enumerate().find(|(n, byte)| **byte != pattern(from + *n as u64));
    assert!(wrong.is_none(), "byte {} of the stream is wrong", from + wrong.map_or(0, |(n, _)| n as u64));
}

fn echoes_megabytes_through_tiny_buffers(open: Open) {
    const TOTAL: u64 = 4 << 20;
    let arena = arena(8);
    let mut rig = Rig::new(open(&arena, 16));
    let (near, far) = pair(Some(4096));
    let (near, far) = (rig.attach(near), rig.attach(far));
    let mut slot = arena.take().unwrap();
    fill(&mut slot, 0);
    rig.send(&near, slot, HEAD..HEAD + BLOCK, 0);
    rig.recv(&near, arena.take().unwrap(), 0..BLOCK, 1);
    rig.recv(&far, arena.take().unwrap(), HEAD..HEAD + BLOCK, 2);
    let (mut sent, mut back) = (0, 0);
    while back < TOTAL {
        let Done { token, mut slot, result } = rig.next();
        let count = result.unwrap();
        match token {
            0 => {
                assert_eq!(count, BLOCK, "a send is whole");
                sent += u64::from(BLOCK);
                if sent < TOTAL {
                    fill(&mut slot, sent);
                    rig.send(&near, slot, HEAD..HEAD + BLOCK, 0);
                }
            }
            1 => {
                assert!(count > 0);
                check(&slot, 0..count, back);
                back += u64::from(count);
                rig.recv(&near, slot, 0..BLOCK, 1);
            }
            // The echo: what the far end received goes back, then it receives again.
            2 => rig.send(&far, slot, HEAD..HEAD + count, 3),
            _ => rig.recv(&far, slot, HEAD..HEAD + BLOCK, 2),
        }
    }
    assert_eq!((sent, back), (TOTAL, TOTAL));
}

fn serves_many_sockets_at_once(open: Open) {
    const PAIRS: u64 = 48;
    const ROUNDS: u64 = 20;
    let arena = arena(2 * PAIRS as usize);
    let mut rig = Rig::new(open(&arena, 16));
    let mut sockets = Vec::new();
    for n in 0..PAIRS {
        let (near, far) = pair(None);
        let (near, far) = (rig.attach(near), rig.attach(far));
        rig.recv(&far, arena.take().unwrap(), 0..8, n);
        sockets.push((near, far));
    }
    for n in 0..PAIRS {
        let mut slot = arena.take().unwrap();
        slot.as_mut_slice()[..8].copy_from_slice(&n.to_ne_bytes());
        rig.send(&sockets[n as usize].0, slot, 0..8, 1000 + n);
    }
    let mut rounds = vec![0; PAIRS as usize];
    let mut left = PAIRS * ROUNDS;
    while left > 0 {
        let Done { token, slot, result } = rig.next();
        assert_eq!(result.unwrap(), 8);
        let (near, far) = &sockets[(token % 1000) as usize];
        if token >= 1000 {
            rounds[(token - 1000) as usize] += 1;
            if rounds[(token - 1000) as usize] < ROUNDS {
                rig.send(&near.clone(), slot, 0..8, token);
            }
        } else {
            assert_eq!(slot.as_slice()[..8], token.to_ne_bytes(), "bytes of another socket");
            left -= 1;
            rig.recv(&far.clone(), slot, 0..8, token);
        }
    }
}

fn a_closed_peer_reads_as_zero(open: Open) {
    let arena = arena(2);
    let mut rig = Rig::new(open(&arena, 8));
    let (near, mut far) = pair(None);
    let near = rig.attach(near);
    rig.recv(&near, arena.take().unwrap(), 0..100, 7);
    far.write_all(b"end").unwrap();
    assert_eq!(rig.next().result.unwrap(), 3);
    rig.recv(&near, arena.take().unwrap(), 0..100, 8);
    rig.queue.submit_and_reap(&mut rig.out, Wait::No).unwrap();
    drop(far);
    let last = rig.next();
    assert_eq!((last.token, last.result.unwrap()), (8, 0));
}

fn a_reset_is_an_error_for_both_directions(open: Open) {
    let arena = arena(2);
    let mut rig = Rig::new(open(&arena, 8));
    let (near, far) = pair(None);
    let near = rig.attach(near);
    rig.recv(&near, arena.take().unwrap(), 0..100, 1);
    rig.queue.submit_and_reap(&mut rig.out, Wait::No).unwrap();
    SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
    drop(far);
    let got = rig.next();
    assert_eq!(got.result.unwrap_err().raw_os_error(), Some(libc::ECONNRESET));
    rig.send(&near, got.slot, 0..100, 2);
    assert_eq!(rig.next().result.unwrap_err().raw_os_error(), Some(libc::EPIPE), "and no SIGPIPE");
}

fn shutdown_ends_what_waits(open: Open) {
    let arena = arena(80);
    let mut rig = Rig::new(open(&arena, 8));
    let (near, _far) = pair(Some(4096));
    let near = rig.attach(near);
    rig.recv(&near, arena.take().unwrap(), 0..100, 1);
    // More than the two buffers hold, so that a send is left half done.
    let mut sends = 0;
    for token in 100..170 {
        rig.send(&near, arena.take().unwrap(), 0..BLOCK, token);
        rig.queue.submit_and_reap(&mut rig.out, Wait::AtMost(Duration::from_millis(20))).unwrap();
        sends += 1;
        if !rig.out.iter().any(|done| done.token == token) {
            break;
        }
    }
    assert_eq!(rig.queue.in_flight(), 2, "one send and the receive wait");
    rig.out.clear();
    SockRef::from(&near.fd).shutdown(Shutdown::Both).unwrap();
    for _ in 0..2 {
        let done = rig.next();
        match done.token {
            1 => assert_eq!(done.result.unwrap(), 0),
            token => {
                assert_eq!(token, 100 + sends - 1);
                assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::EPIPE));
            }
        }
    }
    rig.queue.detach(near);
    assert_eq!((rig.queue.in_flight(), arena.free()), (0, arena.slots()));
}

/// More sockets wait than the queue has entries and the arena has slots; others go on meanwhile.
fn sockets_that_wait_hold_no_slot(open: Open) {
    const IDLE: u64 = 200;
    let arena = arena(2);
    let mut rig = Rig::new(open(&arena, 8));
    let mut idle: Vec<_> = (0..IDLE).map(|_| pair(None)).map(|(near, far)| (rig.attach(near), far)).collect();
    for (token, (near, _)) in (0..).zip(&idle) {
        rig.queue.push(Op::Ready { socket: near.clone(), token });
    }
    rig.queue.submit_and_reap(&mut rig.out, Wait::AtMost(Duration::from_millis(20))).unwrap();
    assert_eq!((rig.queue.in_flight(), arena.free(), rig.out.len()), (IDLE as usize, 2, 0));
    let (near, mut far) = pair(None);
    let near = rig.attach(near);
    rig.recv(&near, arena.take().unwrap(), 0..100, 1000);
    far.write_all(b"here").unwrap();
    assert_eq!(rig.next().result.unwrap(), 4);
    // Bytes, and the end: both are something to receive.
    let (_, far) = &mut idle[7];
    far.write_all(b"x").unwrap();
    let ready = rig.next_completion();
    assert_eq!((ready.token, ready.slot.is_none(), ready.result.unwrap()), (7, true, 0));
    let socket = idle[7].0.clone();
    // There already when it is asked for, and not taken by it.
    rig.queue.push(Op::Ready { socket: socket.clone(), token: 7 });
    assert_eq!(rig.next_completion().token, 7);
    rig.recv(&socket, arena.take().unwrap(), 0..100, 1001);
    assert_eq!(rig.next().result.unwrap(), 1);
    let (ended, _) = idle.swap_remove(9);
    assert_eq!(rig.next_completion().token, 9);
    rig.queue.cut(&idle[20].0);
    assert_eq!(rig.next_completion().token, 20);
    rig.recv(&ended, arena.take().unwrap(), 0..100, 1002);
    assert_eq!(rig.next().result.unwrap(), 0);
    assert_eq!(rig.queue.in_flight() as u64, IDLE - 3);
}

/// A file beside the sources: tmpfs would not do O_DIRECT.
fn scratch(flags: i32) -> (tempfile::TempDir, Arc<OwnedFd>) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let path = dir.path().join("f");
    let open = |flags| OpenOptions::new().read(true).write(true).create(true).custom_flags(flags).open(&path);
    let file = open(flags).or_else(|_| open(0)).unwrap();
    (dir, Arc::new(file.into()))
}

fn files_of_every_mode_read_back(open: Open) {
    const BLOCKS: u64 = 24;
    for mode in [FileMode::PageCache, FileMode::DontCache, FileMode::Direct, FileMode::Deferred] {
        let arena = arena(BLOCKS as usize);
        let mut rig = Rig::new(open(&arena, 16));
        let (_dir, fd) = scratch(if mode == FileMode::Direct { libc::O_DIRECT } else { 0 });
        let file = FileRef { fd, mode };
        for n in 0..BLOCKS {
            let mut slot = arena.take().unwrap();
            let offset = n * u64::from(BLOCK);
            fill(&mut slot, offset);
            rig.queue.push(Op::Write { file: file.clone(), offset, slot, range: HEAD..HEAD + BLOCK, token: n });
        }
        assert_eq!(rig.queue.in_flight(), BLOCKS as usize);
        for _ in 0..BLOCKS {
            assert_eq!(rig.next().result.unwrap(), BLOCK, "{mode:?}");
        }
        for n in (0..BLOCKS).rev() {
            let mut slot = arena.take().unwrap();
            slot.as_mut_slice().fill(0);
            let offset = n * u64::from(BLOCK);
            rig.queue.push(Op::Read { file: file.clone(), offset, slot, range: HEAD..HEAD + BLOCK, token: offset });
        }
        for _ in 0..BLOCKS {
            let Done { token, slot, result } = rig.next();
            assert_eq!(result.unwrap(), BLOCK, "{mode:?}");
            check(&slot, HEAD..HEAD + BLOCK, token);
            assert_eq!((slot.as_slice()[HEAD as usize - 1], slot.as_slice()[(HEAD + BLOCK) as usize]), (0, 0));
        }
        assert_eq!(rig.queue.in_flight(), 0);
    }
}

fn more_ops_than_entries(open: Open) {
    const OPS: usize = 200;
    let arena = arena(OPS);
    let mut rig = Rig::new(open(&arena, 1));
    let (_dir, fd) = scratch(libc::O_DIRECT);
    let file = FileRef { fd, mode: FileMode::Direct };
    let mut slot = arena.take().unwrap();
    fill(&mut slot, 0);
    rig.queue.push(Op::Write { file: file.clone(), offset: 0, slot, range: HEAD..HEAD + BLOCK, token: 0 });
    rig.next().result.unwrap();
    let mut seen = [false; OPS];
    for token in 0..OPS as u64 {
        let slot = arena.take().unwrap();
        rig.queue.push(Op::Read { file: file.clone(), offset: 0, slot, range: HEAD..HEAD + 4096, token });
    }
    for _ in 0..OPS {
        let done = rig.next();
        assert_eq!(done.result.unwrap(), 4096);
        check(&done.slot, HEAD..HEAD + 4096, 0);
        assert!(!std::mem::replace(&mut seen[done.token as usize], true), "completed twice");
    }
    assert_eq!(rig.queue.in_flight(), 0);
}

fn an_end_that_is_not_aligned_ends_a_direct_read(open: Open) {
    const SIZE: u64 = 100_001;
    let arena = arena(2);
    let mut rig = Rig::new(open(&arena, 8));
    let (_dir, fd) = scratch(libc::O_DIRECT);
    File::from(fd.try_clone().unwrap()).set_len(SIZE).unwrap();
    for mode in [FileMode::Direct, FileMode::Deferred] {
        let file = FileRef { fd: Arc::clone(&fd), mode };
        for (offset, expect) in [(0, BLOCK), (65_536, (SIZE - 65_536) as u32), (131_072, 0)] {
            let slot = arena.take().unwrap();
            rig.queue.push(Op::Read { file: file.clone(), offset, slot, range: HEAD..HEAD + BLOCK, token: 0 });
            assert_eq!(rig.next().result.unwrap(), expect, "at {offset}");
        }
    }
}

fn errors_of_files_come_back(open: Open) {
    let arena = arena(1);
    let mut rig = Rig::new(open(&arena, 8));
    let (dir, fd) = scratch(0);
    File::from(fd.try_clone().unwrap()).write_all_at(b"read only", 0).unwrap();
    let fd = Arc::new(OwnedFd::from(File::open(dir.path().join("f")).unwrap()));
    for mode in [FileMode::PageCache, FileMode::DontCache, FileMode::Direct, FileMode::Deferred] {
        let file = FileRef { fd: Arc::clone(&fd), mode };
        let slot = arena.take().unwrap();
        rig.queue.push(Op::Write { file, offset: 0, slot, range: HEAD..HEAD + 4096, token: 5 });
        let done = rig.next();
        assert_eq!((done.token, done.result.unwrap_err().raw_os_error()), (5, Some(libc::EBADF)), "{mode:?}");
    }
    assert!(!rig.queue.describe().refused.iter().any(|line| line.contains("DONTCACHE: EBADF")));
}

fn nonsense_is_refused(open: Open) {
    let (arena, other) = (arena(1), arena(1));
    let mut rig = Rig::new(open(&arena, 8));
    let (near, mut far) = pair(None);
    let near = rig.attach(near);
    let whole = arena.slot_len();
    #[allow(clippy::reversed_empty_ranges, reason = "the caller's mistake is what is tested")]
    for range in [0..0, 10..5, 0..whole + 1, whole..u32::MAX] {
        rig.recv(&near, arena.take().unwrap(), range.clone(), 9);
        let done = rig.next();
        assert_eq!(done.result.unwrap_err().kind(), io::ErrorKind::InvalidInput, "{range:?}");
    }
    let (_dir, fd) = scratch(0);
    for (offset, range, expect) in [(u64::MAX, 0..10, None), (i64::MAX as u64, 0..10, None), (0, 5..5, Some(0))] {
        let file = FileRef { fd: Arc::clone(&fd), mode: FileMode::Direct };
        rig.queue.push(Op::Write { file, offset, slot: arena.take().unwrap(), range, token: 1 });
        assert_eq!(rig.next().result.ok(), expect, "{offset}");
    }
    // A slot of another arena works or is refused, but never names someone else's buffer.
    far.write_all(b"x").unwrap();
    rig.recv(&near, other.take().unwrap(), 0..1, 2);
    let done = rig.next();
    assert!(done.result.is_err() || done.slot.as_slice()[0] == b'x');
}

fn a_slot_stays_with_the_queue_until_it_is_done(open: Open) {
    let arena = arena(1);
    let mut rig = Rig::new(open(&arena, 8));
    let (near, mut far) = pair(None);
    let near = rig.attach(near);
    rig.recv(&near, arena.take().unwrap(), 0..10, 1);
    for _ in 0..3 {
        rig.queue.submit_and_reap(&mut rig.out, Wait::AtMost(Duration::from_millis(1))).unwrap();
        assert!(rig.out.is_empty() && arena.take().is_none(), "the slot is free while an op holds it");
        assert_eq!(rig.queue.in_flight(), 1);
    }
    far.write_all(b"done").unwrap();
    let done = rig.next();
    assert!(arena.take().is_none(), "the slot is the caller's now");
    assert_eq!(&done.slot.as_slice()[..4], b"done");
    drop(done);
    assert!(arena.take().is_some());
}

fn drop_waits_for_what_is_under_way(open: Open) {
    let arena = arena(40);
    let mut rig = Rig::new(open(&arena, 8));
    let (near, mut far) = pair(Some(4096));
    let near = rig.attach(near);
    let (_dir, fd) = scratch(libc::O_DIRECT);
    File::from(fd.try_clone().unwrap()).set_len(16 << 20).unwrap();
    rig.recv(&near, arena.take().unwrap(), 0..100, 1);
    for token in 10..14 {
        let slot = arena.take().unwrap();
        if token == 10 {
            rig.send(&near, slot, 0..BLOCK, token);
        } else {
            let file = FileRef { fd: Arc::clone(&fd), mode: FileMode::Direct };
            rig.queue.push(Op::Read { file, offset: 0, slot, range: HEAD..HEAD + BLOCK, token });
        }
    }
    rig.queue.submit_and_reap(&mut rig.out, Wait::No).unwrap();
    for _ in 0..20 {
        // Some that the kernel never saw.
        let file = FileRef { fd: Arc::clone(&fd), mode: FileMode::Deferred };
        rig.queue.push(Op::Read { file, offset: 4096, slot: arena.take().unwrap(), range: 0..BLOCK, token: 50 });
    }
    drop(rig);
    assert_eq!(arena.free(), arena.slots(), "a slot outlived its queue");
    assert_eq!(Arc::strong_count(&fd), 1, "a descriptor outlived its queue");
    far.read_to_end(&mut Vec::new()).unwrap();
}

fn nothing_is_written_after_a_drop(open: Open) {
    const SLOTS: usize = 32;
    let (dir, fd) = scratch(libc::O_DIRECT);
    // Real bytes: a hole would be answered before the drop.
    let mut file = OpenOptions::new().write(true).open(dir.path().join("f")).unwrap();
    file.write_all(&vec![0xAA; SLOTS * BLOCK as usize]).unwrap();
    file.sync_all().unwrap();
    for _ in 0..10 {
        let arena = arena(SLOTS);
        let mut rig = Rig::new(open(&arena, 64));
        for n in 0..SLOTS as u64 {
            let file = FileRef { fd: Arc::clone(&fd), mode: FileMode::Direct };
            let (offset, range) = (n * u64::from(BLOCK), HEAD..HEAD + BLOCK);
            rig.queue.push(Op::Read { file, offset, slot: arena.take().unwrap(), range, token: n });
        }
        rig.queue.submit_and_reap(&mut rig.out, Wait::No).unwrap();
        drop(rig);
        let mut slots: Vec<Slot> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!(slots.len(), SLOTS);
        slots.iter_mut().for_each(|slot| slot.as_mut_slice().fill(0x55));
        std::thread::sleep(Duration::from_millis(5));
        let written = slots.iter().filter(|slot| slot.as_slice().iter().any(|byte| *byte != 0x55)).count();
        assert_eq!(written, 0, "the kernel wrote into slots that were free");
    }
}

fn a_wake_ends_a_wait_and_is_never_lost(open: Open) {
    const ROUNDS: u32 = 2_000;
    let arena = arena(1);
    let mut rig = Rig::new(open(&arena, 8));
    let waker = rig.queue.waker();
    // Before the wait.
    waker.wake();
    let begin = Instant::now();
    rig.queue.submit_and_reap(&mut rig.out, Wait::AtMost(PATIENCE)).unwrap();
    assert!(begin.elapsed() < PATIENCE / 2, "slept through a wake");
    // During it, over and over, with an answer for each.
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    let count = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let (theirs, seen) = (Arc::clone(&count), std::sync::atomic::Ordering::SeqCst);
    let thread = std::thread::spawn(move || {
        for () in asked {
            theirs.fetch_add(1, seen);
            waker.wake();
        }
    });
    for round in 1..=ROUNDS {
        ask.send(()).unwrap();
        let begin = Instant::now();
        while count.load(seen) < round {
            rig.queue.submit_and_reap(&mut rig.out, Wait::AtMost(PATIENCE)).unwrap();
            assert!(begin.elapsed() < PATIENCE / 2, "slept through wake {round}");
        }
    }
    drop(ask);
    thread.join().unwrap();
    assert!(rig.out.is_empty());
}

fn waits_no_longer_than_told(open: Open) {
    let arena = arena(1);
    let mut rig = Rig::new(open(&arena, 8));
    let (near, mut far) = pair(None);
    let near = rig.attach(near);
    rig.recv(&near, arena.take().unwrap(), 0..10, 1);
    let begin = Instant::now();
    rig.queue.submit_and_reap(&mut rig.out, Wait::No).unwrap();
    assert!(begin.elapsed() < Duration::from_millis(500) && rig.out.is_empty());
    let begin = Instant::now();
    rig.queue.submit_and_reap(&mut rig.out, Wait::AtMost(Duration::from_millis(60))).unwrap();
    let waited = begin.elapsed();
    assert!(waited >= Duration::from_millis(60) && waited < Duration::from_secs(5), "{waited:?}");
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        far.write_all(b"x").unwrap();
        far
    });
    let begin = Instant::now();
    rig.next().result.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10));
    thread.join().unwrap();
}

fn sockets_come_and_go(open: Open) {
    let arena = arena(4);
    let mut rig = Rig::new(open(&arena, 8));
    for round in 0..50u8 {
        let (near, mut far) = pair(None);
        let near = rig.attach(near);
        let mut slot = arena.take().unwrap();
        slot.as_mut_slice()[0] = round;
        rig.send(&near, slot, 0..1, 1);
        rig.next().result.unwrap();
        let mut got = [0];
        far.read_exact(&mut got).unwrap();
        assert_eq!(got, [round], "another socket's place");
        rig.queue.detach(near);
        // The far end sees the close only if no table keeps the socket open.
        rig.queue.submit_and_reap(&mut rig.out, Wait::No).unwrap();
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(far.read(&mut got).unwrap(), 0, "a detached socket stays open");
    }
}

/// Gives up the right to lock any amount of memory, for this thread.
fn drop_ipc_lock() {
    const VERSION_3: u32 = 0x2008_0522;
    const CAP_IPC_LOCK: u32 = 14;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: both structures are as `capget(2)` describes them for version 3 and live through the calls.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()), 0);
        sets[0][0] &= !(1 << CAP_IPC_LOCK);
        assert_eq!(libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()), 0);
    }
}

#[test]
fn without_lockable_memory_plain_ops_serve_and_the_facts_say_so() {
    let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK).unwrap();
    let over = soft.min(1 << 30) as usize * 2 / BLOCK as usize;
    let try_direct = move |confined: bool| {
        if confined {
            drop_ipc_lock();
        }
        let arena = arena(over);
        let mut rig = Rig::new(Queue::Uring(Box::new(Uring::open(&arena, 8).unwrap())));
        let (_dir, fd) = scratch(libc::O_DIRECT);
        let mut slot = arena.take().unwrap();
        fill(&mut slot, 3);
        let file = FileRef { fd, mode: FileMode::Direct };
        rig.queue.push(Op::Write { file: file.clone(), offset: 0, slot, range: HEAD..HEAD + BLOCK, token: 0 });
        let slot = rig.next().slot;
        rig.queue.push(Op::Read { file, offset: 0, slot, range: HEAD..HEAD + BLOCK, token: 0 });
        let done = rig.next();
        assert_eq!(done.result.unwrap(), BLOCK);
        check(&done.slot, HEAD..HEAD + BLOCK, 3);
        rig.queue.describe()
    };
    let confined = std::thread::spawn(move || try_direct(true)).join().unwrap();
    assert!(!confined.features.contains(&"registered buffers"), "{confined:?}");
    assert!(confined.refused.iter().any(|line| line.starts_with("registered buffers: ENOMEM")), "{confined:?}");
    let free = std::thread::spawn(move || try_direct(false)).join().unwrap();
    // Without root the second run is confined as well.
    if nix::unistd::geteuid().is_root() {
        assert!(free.features.contains(&"registered buffers"), "{free:?}");
    }
}

#[test]
fn facts_name_the_queue() {
    let arena = arena(1);
    let auto = open_queue(QueueChoice::Auto, &arena, 8).unwrap().describe();
    match Uring::open(&arena, 8) {
        Ok(_) => assert_eq!((auto.engine, auto.features.contains(&"registered files")), ("io_uring", true), "{auto:?}"),
        Err(why) => assert_eq!((auto.engine, &auto.refused[0]), ("epoll", &why.to_string())),
    }
    let epoll = open_queue(QueueChoice::Epoll, &arena, 8).unwrap().describe();
    assert_eq!((epoll.engine, epoll.refused.len()), ("epoll", 0));
}
