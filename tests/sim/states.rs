//! What the disk may hold at each write of the journal: states drawn from all that the model allows, and what the real
//! recovery makes of each. The data that a journal speaks of is asked whether it is durable, which holds in every state of
//! the data; so each state of the journal stands for all of theirs.

use crate::checker::{Checker, journal_of};
use crate::disk::{Inode, State};
use crate::rng::Rng;
use crate::world::World;
use longhaul::journal::recover;

/// The unit that a disk writes whole.
const SECTOR: usize = 512;
/// States drawn at each write.
const DRAWN: u32 = 16;

/// One state of the journal: of each unsynced range the new bytes, the old ones, or any sectors of either; the size likewise.
fn one(journal: &Inode, now: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = now.to_vec();
    let whole = rng.range(0..4);
    for (start, undo) in &journal.undo {
        let (start, end) = (*start as usize, (start + undo.len) as usize);
        // In order up to a border, all or nothing, or any sectors.
        let border = rng.range(start as u64 / SECTOR as u64..end.div_ceil(SECTOR) as u64 + 1) as usize;
        for sector in start / SECTOR..end.div_ceil(SECTOR) {
            let lost = match whole {
                0 => sector >= border,
                1 => sector < border,
                2 => rng.percent(50),
                _ => undo.lost,
            };
            let (from, to) = ((sector * SECTOR).max(start), ((sector + 1) * SECTOR).min(end).min(bytes.len()));
            if lost && from < to {
                match &undo.old {
                    Some(old) => bytes[from..to].copy_from_slice(&old[from - start..to - start]),
                    None => bytes[from..to].fill(0),
                }
            }
        }
    }
    if rng.percent(50) {
        bytes.resize(journal.durable_size as usize, 0);
    }
    bytes
}

/// Draws states of the journal as it was just written to.
pub fn draw(world: &World, state: &State, journal: &Inode, checker: &Checker, rng: &mut Rng) {
    let now = journal_of(journal);
    for _ in 0..DRAWN {
        world.count("disk state");
        match recover(&one(journal, &now, rng)) {
            Ok(recovered) => checker.recovered(world, state, &recovered.checkpoint),
            Err(error) => world.broken(format_args!("the journal cannot be read in a state of the disk: {error}")),
        }
    }
}
