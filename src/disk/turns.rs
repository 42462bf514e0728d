//! Turns at a directory, for threads of this process that change its names.
//!
//! The kernel has one lock for that (`i_rwsem`), and who wants it spins as long as its holder runs
//! (`rwsem_spin_on_owner`): two threads that make files side by side cost a core more than one and are no faster. Here they
//! sleep, and a turn is long enough to be worth it: all new files of a pack, then their content with nobody waiting.

use crate::relpath::RelPath;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Directories that share one (two of the same path below different roots do) wait for each other without need, which with a
/// dozen threads is rare.
static TURNS: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];

/// The turn at one directory at most: waiting for the next gives up the one before, so no two threads wait for each other.
#[derive(Debug, Default)]
pub(super) struct Turn(Option<(RelPath, MutexGuard<'static, ()>)>);

impl Turn {
    /// Waits for the turn at `dir`, unless it is there already.
    pub fn at(&mut self, dir: &RelPath) {
        if self.0.as_ref().is_some_and(|(held, _)| held == dir) {
            return;
        }
        self.0 = None;
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(dir);
        let turn = &TURNS[hash as usize % TURNS.len()];
        self.0 = Some((dir.clone(), turn.lock().unwrap_or_else(PoisonError::into_inner)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[test]
    fn one_thread_at_a_time_in_a_directory_and_nobody_waits_in_a_circle() {
        let dirs = ["a", "b"].map(|name| RelPath::new(name.as_bytes()).unwrap());
        let inside = [const { AtomicUsize::new(0) }; 2];
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (dirs, inside) = (&dirs, &inside);
                scope.spawn(move || {
                    let mut turn = Turn::default();
                    for step in 0..50 {
                        // Half of the threads go from `a` to `b` and half the other way.
                        let at = (thread + step) % 2;
                        turn.at(&dirs[at]);
                        turn.at(&dirs[at]);
                        assert_eq!(inside[at].fetch_add(1, Ordering::SeqCst), 0, "nobody else is there");
                        std::thread::sleep(Duration::from_micros(100));
                        inside[at].fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
