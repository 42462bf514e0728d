//! Small files for packs: read whole into frames.

use super::*;
use crate::disk::SmallSource;
use std::collections::VecDeque;

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

/// Files of a pack that are open at once: from so many on two threads read what a disk gives, see benches/README.md.
const OPEN_AHEAD: u64 = 48;

/// [`OPEN_AHEAD`], or less where this process may open few: each of the pool's threads has so many.
fn open_ahead() -> usize {
    static FOUND: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *FOUND.get_or_init(|| (crate::engine::pool::raise_descriptor_limit() / 64).clamp(1, OPEN_AHEAD) as usize)
}

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

    fn open(&self, item: &PackItem, last: &mut disk::LastDir) -> Result<(SmallSource, RelPath), Status> {
        let path = place(&self.roots, item.root, &item.path).ok_or(Status::Gone)?;
        let expect = Expect::Version { size: u64::from(item.size), mtime: item.mtime };
        let file = SmallSource::open(&self.root, last, &path, expect, item.size as usize);
        Ok((file.map_err(|e| status_of(&e))?, path))
    }

    fn fill(&self, items: Vec<PackItem>, block: u32) -> Option<Vec<PackBody>> {
        let start = SLOT_HEAD as usize;
        let (mut bodies, mut last) = (Vec::new(), disk::LastDir::default());
        let (mut slot, mut at, mut payload) = (self.slot()?, 0, 0);
        let (mut coming, mut opened) = (items.iter(), VecDeque::new());
        let ahead = open_ahead();
        for item in &items {
            let more = ahead.saturating_sub(opened.len());
            opened.extend(coming.by_ref().take(more).map(|item| self.open(item, &mut last)));
            let file = opened.pop_front().expect("as many are opened as there are, each before it is read");
            let need = PACK_ENTRY_HEAD + item.size as usize;
            if at + need > block as usize {
                bodies.push(PackBody { slot, len: at as u32, payload });
                (slot, at, payload) = (self.slot()?, 0, 0);
            }
            let room = &mut slot.as_mut_slice()[start + at..start + at + need];
            let (head, content) = room.split_at_mut(PACK_ENTRY_HEAD);
            let read = |(file, path): (SmallSource, RelPath)| file.read(&path, content).map_err(|e| status_of(&e));
            match file.and_then(read) {
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
