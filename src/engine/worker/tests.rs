//! A worker over the host's own queues, turn by turn.

use super::*;
use crate::sys::{ArenaConfig, QueueChoice, WakeSource, open_queue};
use crate::wire::crypt::FrameKey;
use crate::wire::data::encode_runs;
use crate::wire::header::{FrameType, HEADER_LEN, Header, TRAILER_LEN};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

struct NoPacks;

impl Packer for NoPacks {
    fn pack(&self, _: StreamKey, _: u32, _: Vec<PackItem>, _: u32, _: Arc<Mailbox<Command>>) {
        panic!("nobody asks for packs");
    }
}

const BLOCK: u32 = 64 << 10;
const SLOTS: usize = 16;

fn attach(stream: StreamKey, source: bool) -> (Box<Attach>, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let packer = source.then(|| Arc::new(NoPacks) as Arc<dyn Packer>);
    let attach = Attach {
        stream,
        session: 1,
        socket: near.into(),
        opener: Opener::new(FrameKey::plain()),
        sealer: Sealer::new(FrameKey::plain()),
        block: BLOCK,
        stats: Arc::default(),
        extra: Extra::default(),
        packer,
    };
    (Box::new(attach), far)
}

/// Many more streams than buffers, of both roles, as many as come with whole headers and halves of them: no buffer is held
/// for any, and who asks is served.
#[test]
fn idle_streams_hold_no_buffers() {
    const STREAMS: u64 = 300;
    crate::engine::pool::raise_descriptor_limit();
    for choice in [QueueChoice::Auto, QueueChoice::Epoll] {
        let bytes = SLOTS * (BLOCK as usize + 8192);
        let arena = Arena::new(ArenaConfig { bytes, block: BLOCK, explicit_huge_pages: false }).unwrap();
        let queue = open_queue(choice, &arena, 64).unwrap();
        let inbox = Arc::new(Mailbox::new(queue.waker()));
        let outbox = Arc::new(Mailbox::new(WakeSource::new().unwrap().waker()));
        let stats = Arc::new(WorkerStats::default());
        let mut worker = Worker::new(queue, arena.clone(), inbox.clone(), outbox.clone(), stats);
        let mut desk = Desk::default();
        let mut turns = |count| {
            for _ in 0..count {
                worker.turn(Wait::AtMost(Duration::from_millis(5)), &mut desk).unwrap();
            }
        };
        let mut peers = Vec::new();
        for stream in 0..STREAMS {
            let source = stream % 2 == 0;
            let (attach, far) = attach(stream, source);
            inbox.send(if source { Command::AttachSource(attach) } else { Command::AttachDestination(attach) });
            peers.push(far);
        }
        turns(5);
        // A worker keeps a few back for itself.
        assert!(arena.free() >= SLOTS - SLOTS_KEPT, "{} of {SLOTS} are free", arena.free());
        let runs = [Run { handle: Handle(9), first: 0, count: 1, digests_only: false }];
        let want = Sealer::new(FrameKey::plain()).frame(FrameType::Want, 0, 0, 0, &encode_runs(&runs));
        for (number, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&want[..number % HEADER_LEN]).unwrap();
        }
        turns(20);
        assert!(arena.free() >= SLOTS - SLOTS_KEPT, "{} of {SLOTS} are free", arena.free());
        assert!(outbox.take().is_none(), "no stream has ended");
        for number in (0..peers.len()).step_by(2) {
            peers[number].write_all(&want[number % HEADER_LEN..]).unwrap();
        }
        turns(40);
        for peer in peers.iter_mut().step_by(2) {
            let mut answer = [0; HEADER_LEN + 1 + TRAILER_LEN];
            peer.read_exact(&mut answer).unwrap();
            let header = Header::decode(answer[..HEADER_LEN].try_into().unwrap(), BLOCK).unwrap();
            assert_eq!((header.kind, header.handle), (FrameType::Nak, 9));
        }
        assert!(arena.free() >= SLOTS - SLOTS_KEPT, "{} of {SLOTS} are free", arena.free());
    }
}

/// Peers that begin a Want and go on by a byte now and then, until all buffers are theirs: they give way.
#[cfg(feature = "testing")]
#[test]
fn a_want_that_never_ends_gives_its_buffer_back() {
    use std::cell::Cell;
    struct Hand(Cell<Instant>);
    impl crate::clock::VirtualClock for Hand {
        fn now(&self) -> Instant {
            self.0.get()
        }
        fn unix(&self) -> u64 {
            0
        }
        fn pause(&self, _: Duration) {}
    }
    let _ = now_ns();
    let hand = std::rc::Rc::new(Hand(Cell::new(Instant::now())));
    crate::clock::install(Some(hand.clone()));
    let bytes = SLOTS * (BLOCK as usize + 8192);
    let arena = Arena::new(ArenaConfig { bytes, block: BLOCK, explicit_huge_pages: false }).unwrap();
    let queue = open_queue(QueueChoice::Auto, &arena, 64).unwrap();
    let inbox = Arc::new(Mailbox::new(queue.waker()));
    let outbox = Arc::new(Mailbox::new(WakeSource::new().unwrap().waker()));
    let mut worker = Worker::new(queue, arena.clone(), inbox.clone(), outbox.clone(), Arc::default());
    let mut desk = Desk::default();
    let runs = vec![Run { handle: Handle(9), first: 0, count: 1, digests_only: false }; 100];
    let want = Sealer::new(FrameKey::plain()).frame(FrameType::Want, 0, 0, 0, &encode_runs(&runs));
    let mut peers = Vec::new();
    for stream in 0..SLOTS as u64 + 4 {
        let (attach, mut far) = attach(stream, true);
        inbox.send(Command::AttachSource(attach));
        far.write_all(&want[..HEADER_LEN]).unwrap();
        peers.push(far);
    }
    let mut dead = 0;
    for second in 0..30 {
        for peer in &mut peers {
            let _ = peer.write_all(&want[HEADER_LEN + second..][..1]); // one that gave way is closed
        }
        for _ in 0..10 {
            worker.turn(Wait::AtMost(Duration::from_millis(1)), &mut desk).unwrap();
            hand.0.set(hand.0.get() + Duration::from_millis(100));
        }
        while let Some(event) = outbox.take() {
            assert!(matches!(event, Event::Dead { .. }), "{event:?}");
            dead += 1;
        }
        assert!(dead == 0 || second >= 9, "{dead} after {second} s");
    }
    crate::clock::install(None);
    assert!(dead >= SLOTS && arena.free() > 0, "{dead} gave way, {} buffers are free", arena.free());
}
