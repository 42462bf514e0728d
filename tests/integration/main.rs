//! The program as its users meet it: commands, agents, trees, and what may go wrong.

#[path = "../support/mod.rs"]
mod support;
#[path = "../support/tickets.rs"]
mod tickets;

mod agents;
mod bench;
mod busy;
mod checks;
mod cpus;
mod doctor;
#[cfg(feature = "testing")]
mod fallbacks;
mod matrix;
mod operands;
mod paths;
mod peers;
mod profiles;
mod pscheduler;
mod rerun;
#[cfg(feature = "testing")]
mod scitag;
mod secrecy;
mod sources;
mod steer;
mod storage;
mod synthetic;
mod window;
