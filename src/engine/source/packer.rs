//! Small files for packs: read whole into frames.

use super::*;

/// Reads small files into frames, in the pool.
pub(super) struct SourcePacker {
    pub(super) root: Arc<Root>,
    pub(super) roots: Arc<Vec<RelPath>>,
    pub(super) pool: Pool,
    pub(super) arena: Arc<Arena>,
    /// Files have a size here, and made-up bytes.
    pub(super) synthetic: bool,
}

/// How long a pack waits for a slot before its stream is closed: the pool's threads wait with it, and streams that hold
/// slots and do not move are closed before.
const PACK_SLOT_WAIT: Duration = Duration::from_secs(15);

impl SourcePacker {
    fn slot(&self) -> Option<crate::sys::Slot> {
        let give_up = clock::now() + PACK_SLOT_WAIT;
        loop {
            if let Some(slot) = self.arena.take() {
                return Some(slot);
            }
            if clock::now() > give_up {
                return None;
            }
            clock::pause(Duration::from_millis(1));
        }
    }

    fn fill(&self, items: Vec<PackItem>, block: u32) -> Option<Vec<PackBody>> {
        let start = SLOT_HEAD as usize;
        let (mut bodies, mut last) = (Vec::new(), disk::LastDir::default());
        let (mut slot, mut at, mut payload) = (self.slot()?, 0, 0);
        for item in items {
            let need = PACK_ENTRY_HEAD + item.size as usize;
            if at + need > block as usize {
                bodies.push(PackBody { slot, len: at as u32, payload });
                (slot, at, payload) = (self.slot()?, 0, 0);
            }
            let room = &mut slot.as_mut_slice()[start + at..start + at + need];
            let (head, content) = room.split_at_mut(PACK_ENTRY_HEAD);
            let expect = Expect::Version { size: u64::from(item.size), mtime: item.mtime };
            let read = match place(&self.roots, item.root, &item.path) {
                Some(path) => {
                    disk::read_small(&self.root, &mut last, &path, expect, content).map_err(|e| status_of(&e))
                }
                None => Err(Status::Gone),
            };
            match read {
                Ok(_) => {
                    if self.synthetic {
                        crate::sys::synthetic::fill(content, 0);
                    }
                    crate::sys::points::flip("source.pack-read", content);
                    let span = Span { offset: 0, len: content.len() as u64 };
                    let check = wire_check(chunk(content, 0), item.handle, span);
                    crate::sys::points::flip("source.pack-digested", content);
                    put_pack_entry(head, item.handle, Status::Ok, item.size, check);
                    at += need;
                    payload += item.size;
                }
                Err(status) => {
                    put_pack_entry(head, item.handle, status, 0, crate::digest::of(&[]));
                    at += PACK_ENTRY_HEAD;
                }
            }
        }
        bodies.push(PackBody { slot, len: at as u32, payload });
        Some(bodies)
    }
}

impl Packer for SourcePacker {
    fn pack(&self, stream: StreamKey, number: u32, items: Vec<PackItem>, block: u32, reply: Arc<Mailbox<Command>>) {
        let this = Self {
            root: self.root.clone(),
            roots: self.roots.clone(),
            pool: self.pool.clone(),
            arena: self.arena.clone(),
            synthetic: self.synthetic,
        };
        self.pool.submit(move || {
            let command = match this.fill(items, block) {
                Some(bodies) => Command::Pack(stream, number, bodies),
                None => Command::Detach(stream),
            };
            reply.send(command);
        });
    }
}
