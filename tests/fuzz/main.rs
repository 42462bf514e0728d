//! Bytes that nobody honest would send, in process: fuzz targets with their corpora, malformed frames by the million, and
//! flipped bits. `LONGHAUL_LONG=1` runs the counts of the promise; `LONGHAUL_SEED` repeats a run.
//!
//! The targets are bolero's: `cargo test` runs each over its corpus below `__fuzz__` and a bounded number of random
//! inputs, `cargo bolero test NAME` fuzzes the same target with libFuzzer.

mod flips;
mod frames;
#[path = "../support/random.rs"]
mod random;
mod samples;
mod targets;
#[path = "../support/variants.rs"]
mod variants;

use random::Random;
use variants::{first_word, variants};

/// The counts of the promise, or those that CI has time for.
fn count(ci: u64, long: u64) -> u64 {
    if std::env::var_os("LONGHAUL_LONG").is_some() { long } else { ci }
}

/// Resident bytes of this process, now.
fn rss() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// What a run may grow by, whatever it was fed.
const GROWTH_MAX: u64 = 64 << 20;

#[test]
fn variants_are_read_from_the_source() {
    let found = variants(
        "/// x\npub enum E {\n    /// A.\n    One(u8),\n    #[error(\"Two\")]\n    Two {\n        /// F.\n        Field: u8,\n    },\n}\n",
        "E",
    );
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["One", "Two"]);
}
