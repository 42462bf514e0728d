//! What storage and machines do to a transfer: processes that die at every station, power that is cut under ext4 and XFS,
//! devices that give errors, file systems that refuse things. Short forms run everywhere; LONGHAUL_LONG=1 runs the counts of
//! the promise. Each test prints its counts as `COUNT name=value ...` lines.

mod common;
mod damage;
mod errors;
mod images;
mod limits;
mod memfs;
mod odd;
mod points;
mod power;
#[path = "../faults/support.rs"]
#[allow(dead_code, reason = "shared with the fault tests, which use the rest")]
mod support;
