//! Faults: crashes, cuts, damage, memory. Short forms run everywhere; LONGHAUL_LONG=1 runs the sizes of the promises.

mod changed;
mod crashes;
mod cuts;
mod far;
mod memory;
mod relay;
mod sources;
mod storm;
mod support;
