//! Zero-copy sends over a pair of virtual links between two network namespaces: the only path to a "far" peer that a test
//! can make. It copies (the bytes end in this host), which is what is tested, beside who owns a slot and for how long.

use super::*;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Needs root; says so and is skipped without (in CI a skip is a failure).
fn root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped in CI: network namespaces need root");
    eprintln!("skipped: network namespaces need root");
    false
}

fn ip(words: &str) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("ip").args(words.split_whitespace()).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The other end: a thread in a namespace of its own, which goes with the thread.
struct Far {
    stream: TcpStream,
    /// The thread runs `ip` with what comes here, and answers when that is done.
    commands: Option<Sender<String>>,
    answers: Receiver<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Far {
    fn ip(&self, words: &str) {
        self.commands.as_ref().unwrap().send(words.to_owned()).unwrap();
        self.answers.recv().unwrap();
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connection between two namespaces. The calling thread moves into the near one for good.
fn far_pair() -> (TcpStream, Far) {
    let new_namespace = || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    new_namespace();
    let (number, from_far) = channel();
    let (give, streams) = channel();
    let (commands, todo) = channel::<String>();
    let (done, answers) = channel();
    let thread = std::thread::spawn(move || {
        new_namespace();
        number.send(nix::unistd::gettid()).unwrap();
        let mut listener = None;
        for words in todo {
            match words.as_str() {
                "listen" => {
                    let bound = TcpListener::bind("10.99.0.2:0").unwrap();
                    give.send((bound.local_addr().unwrap(), None)).unwrap();
                    listener = Some(bound);
                }
                "accept" => {
                    let (stream, addr) = listener.as_ref().unwrap().accept().unwrap();
                    give.send((addr, Some(stream))).unwrap();
                }
                words => ip(words),
            }
            done.send(()).unwrap();
        }
    });
    let far = from_far.recv().unwrap();
    ip(&format!("link add near type veth peer name far netns {far}"));
    ip("addr add 10.99.0.1/24 dev near");
    ip("link set near up");
    let tell = |words: &str| {
        commands.send(words.to_owned()).unwrap();
        answers.recv().unwrap();
    };
    tell("addr add 10.99.0.2/24 dev far");
    tell("link set far up");
    tell("listen");
    let (addr, _) = streams.recv().unwrap();
    let near = TcpStream::connect(addr).unwrap();
    tell("accept");
    let stream = streams.recv().unwrap().1.unwrap();
    SockRef::from(&near).set_send_buffer_size(1 << 20).unwrap();
    (near, Far { stream, commands: Some(commands), answers, thread: Some(thread) })
}

/// In a thread of its own, since it leaves this process's namespace.
fn apart(test: fn()) {
    if root() {
        std::thread::spawn(test).join().unwrap();
    }
}

fn ring(arena: &Arc<Arena>, zero_copy: bool) -> Rig {
    let ring = Uring::open_with(arena, 64, SocketPath::Inline, zero_copy).unwrap();
    let facts = ring.describe();
    assert_eq!(facts.features.contains(&"SEND_ZC"), zero_copy, "{facts:?}");
    assert_eq!(facts.refused.contains(&"SEND_ZC: not in this kernel".to_owned()), !zero_copy, "{facts:?}");
    Rig::new(Queue::Uring(Box::new(ring)))
}

/// Sends `blocks` blocks of the pattern and checks what arrives; how many sends kept their slot.
fn stream(rig: &mut Rig, arena: &Arc<Arena>, socket: &SocketRef, far: &TcpStream, blocks: u64) -> usize {
    let mut far = far.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut got = vec![0; (blocks * u64::from(BLOCK)) as usize];
        far.read_exact(&mut got).unwrap();
        got.iter().enumerate().position(|(at, byte)| *byte != pattern(at as u64))
    });
    let mut kept = 0;
    for n in 0..blocks {
        let mut slot = arena.take().unwrap();
        fill(&mut slot, n * u64::from(BLOCK));
        rig.send(socket, slot, HEAD..HEAD + BLOCK, n);
        let done = rig.next_completion();
        assert_eq!((done.token, done.result.unwrap()), (n, BLOCK));
        kept += usize::from(done.slot.is_none());
    }
    assert_eq!(reader.join().unwrap(), None, "a byte is wrong");
    kept
}

/// Gives the kernel's notices time to come.
fn until_all_slots_are_back(rig: &mut Rig, arena: &Arc<Arena>) {
    let end = Instant::now() + PATIENCE;
    while arena.free() < arena.slots() {
        assert!(Instant::now() < end, "{} of {} slots are back", arena.free(), arena.slots());
        rig.queue.submit_and_reap(&mut rig.out, Wait::AtMost(Duration::from_millis(10))).unwrap();
    }
    assert!(rig.out.is_empty(), "a notice is no completion");
}

/// Needs root: network namespaces.
#[test]
fn a_path_that_copies_goes_back_to_plain_sends() {
    apart(|| {
        let arena = arena(32);
        let mut rig = ring(&arena, true);
        let (near, far) = far_pair();
        let near = rig.attach(near);
        let kept = stream(&mut rig, &arena, &near, &far.stream, 40);
        until_all_slots_are_back(&mut rig, &arena);
        assert_eq!(rig.queue.send_path(&near), SendPath::Copies);
        assert!((1..=8).contains(&kept), "{kept} sends kept their slot: only the trials do");
        assert_eq!(stream(&mut rig, &arena, &near, &far.stream, 40), 0, "for good");
        // Small ones and those of an arena that runs short are never worth it.
        rig.queue.detach(near);
    });
}

/// Needs root: network namespaces.
#[test]
fn without_the_opcode_sends_are_plain() {
    apart(|| {
        let arena = arena(32);
        let mut rig = ring(&arena, false);
        let (near, far) = far_pair();
        let near = rig.attach(near);
        assert_eq!(stream(&mut rig, &arena, &near, &far.stream, 20), 0);
        assert_eq!(rig.queue.send_path(&near), SendPath::Plain);
    });
}

/// Needs root: network namespaces.
#[test]
fn a_slot_belongs_to_the_kernel_until_the_notice_and_a_silent_peer_does_not_keep_it_for_ever() {
    apart(|| {
        let arena = arena(32);
        let mut rig = ring(&arena, true);
        let (near, far) = far_pair();
        let near = rig.attach(near);
        // From now on nothing is acknowledged.
        far.ip("link set far down");
        let mut slot = arena.take().unwrap();
        fill(&mut slot, 0);
        rig.send(&near, slot, HEAD..HEAD + BLOCK, 7);
        let done = rig.next_completion();
        assert_eq!((done.token, done.result.unwrap()), (7, BLOCK), "the order on the socket needs no acknowledgement");
        assert!(done.slot.is_none(), "the kernel still reads it");
        assert_eq!(rig.queue.in_flight(), 0, "nothing is left that a caller would wait for");
        rig.queue.submit_and_reap(&mut rig.out, Wait::AtMost(Duration::from_millis(300))).unwrap();
        assert!(rig.out.is_empty() && arena.free() == arena.slots() - 1, "the slot is free before its notice");
        rig.queue.detach(near);
        rig.queue.submit_and_reap(&mut rig.out, Wait::AtMost(Duration::from_millis(50))).unwrap();
        assert_eq!(arena.free(), arena.slots() - 1, "a detached socket's slot is free before its notice");
        let begin = Instant::now();
        drop(rig);
        assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
        assert_eq!(arena.free(), arena.slots(), "a slot outlived its queue");
    });
}

#[test]
fn nothing_is_tried_towards_this_host() {
    let arena = arena(32);
    let mut rig = ring(&arena, true);
    let (near, far) = pair(None);
    let near = rig.attach(near);
    assert_eq!(stream(&mut rig, &arena, &near, &far, 20), 0);
    assert_eq!(rig.queue.send_path(&near), SendPath::Plain);
}
