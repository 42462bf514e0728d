//! The suite on SQLite, and what only a file can do: be damaged, old, foreign, slow.

use super::*;
use crate::control::store::conformance::{HandClock, Kit, conformance_suite};

fn kit() -> (Kit, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let clock = HandClock::default();
    let store = SqliteStore::open(dir.path(), clock.clock()).unwrap();
    (Kit { store, clock }, dir)
}

conformance_suite!(super::kit);
