//! Files sent from the page cache: what is in the file goes out, between what is in the slot.

use super::*;

/// Bytes of a frame around the payload.
const AROUND: u32 = 32;

/// A file of `len` bytes `file`, and what arrives of a frame whose slot says `slot` where the payload is.
fn sent(rig: &mut Rig, arena: &Arc<Arena>, buffer: Option<usize>, content: &[u8]) -> Vec<u8> {
    let (near, mut far) = pair(buffer);
    let near = rig.attach(near);
    let (_dir, fd) = scratch(0);
    File::from(fd.try_clone().unwrap()).write_all_at(content, 100).unwrap();
    let mut slot = arena.take().unwrap();
    slot.as_mut_slice().fill(b's');
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; (BLOCK + 2 * AROUND) as usize];
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        far.read_exact(&mut got).unwrap();
        got
    });
    rig.queue.push(Op::SendFile {
        socket: near.clone(),
        file: FileRef { fd, mode: FileMode::PageCache },
        offset: 100,
        slot,
        range: HEAD - AROUND..HEAD + BLOCK + AROUND,
        payload: HEAD..HEAD + BLOCK,
        token: 9,
    });
    let done = rig.next();
    assert_eq!((done.token, done.result.unwrap()), (9, BLOCK + 2 * AROUND));
    let got = reader.join().unwrap();
    rig.queue.detach(near);
    got
}

pub(super) fn pages_go_out_with_their_frame(open: Open) {
    let arena = arena(2);
    let mut rig = Rig::new(open(&arena, 8));
    let block = vec![b'f'; BLOCK as usize];
    // Through buffers that hold a part of it only, and at once.
    for buffer in [Some(4096), None] {
        let got = sent(&mut rig, &arena, buffer, &block);
        let (head, rest) = got.split_at(AROUND as usize);
        let (payload, tail) = rest.split_at(BLOCK as usize);
        assert!(head.iter().chain(tail).all(|byte| *byte == b's'), "the frame around is the slot's");
        assert!(payload.iter().all(|byte| *byte == b'f'), "the payload is the file's");
    }
    // Shorter than it was when its digest was computed: the slot has the bytes, and the frame keeps its length.
    let got = sent(&mut rig, &arena, None, &block[..10_000]);
    let payload = &got[AROUND as usize..][..BLOCK as usize];
    assert_eq!(payload.iter().filter(|byte| **byte == b'f').count(), 10_000);
    assert!(payload[10_000..].iter().all(|byte| *byte == b's'));
    // Not a file that can be sent from at all.
    let (near, mut far) = pair(None);
    let near = rig.attach(near);
    let mut slot = arena.take().unwrap();
    slot.as_mut_slice()[..10].copy_from_slice(b"0123456789");
    let (pipe, _writer) = nix::unistd::pipe().unwrap();
    let file = FileRef { fd: Arc::new(pipe), mode: FileMode::PageCache };
    let (socket, range) = (near.clone(), 0..10);
    rig.queue.push(Op::SendFile { socket, file: file.clone(), offset: 0, slot, range, payload: 2..8, token: 1 });
    let done = rig.next();
    assert_eq!(done.result.unwrap(), 10);
    let mut got = [0; 10];
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    far.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"0123456789");
    #[allow(clippy::reversed_empty_ranges, reason = "the caller's mistake is what is tested")]
    for payload in [0..8, 8..4, 2..11] {
        let (socket, range, file) = (near.clone(), 1..10, file.clone());
        let slot = arena.take().unwrap();
        rig.queue.push(Op::SendFile { socket, file, offset: 0, slot, range, payload: payload.clone(), token: 2 });
        assert_eq!(rig.next().result.unwrap_err().kind(), io::ErrorKind::InvalidInput, "{payload:?}");
    }
    // A peer that is gone ends one that waits.
    let (blocked, gone) = pair(Some(4096));
    let blocked = rig.attach(blocked);
    let (_dir, fd) = scratch(0);
    File::from(fd.try_clone().unwrap()).write_all_at(&block, 0).unwrap();
    for token in 10..100 {
        let Some(slot) = arena.take() else { break };
        let file = FileRef { fd: Arc::clone(&fd), mode: FileMode::PageCache };
        let (socket, range, payload) = (blocked.clone(), HEAD..HEAD + BLOCK, HEAD..HEAD + BLOCK);
        rig.queue.push(Op::SendFile { socket, file, offset: 0, slot, range, payload, token });
        rig.queue.submit_and_reap(&mut rig.out, Wait::AtMost(Duration::from_millis(20))).unwrap();
        if rig.queue.in_flight() > 0 {
            break;
        }
        rig.out.clear();
    }
    assert_eq!(rig.queue.in_flight(), 1);
    SockRef::from(&gone).set_linger(Some(Duration::ZERO)).unwrap();
    drop(gone);
    assert!(rig.next().result.is_err());
}
