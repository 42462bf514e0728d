//! Sockets: listening, dialling, and options that are set and then read back, because the kernel clamps in silence.
//! Knows nothing of what goes over them.

pub mod beacon;
pub mod dial;
pub mod label;
pub mod listen;
pub mod socket;

pub use beacon::Beacon;
pub use dial::{DialError, DialOptions, Dialling, dial};
pub use label::Unlabelled;
pub use listen::{ListenError, Listener, listen, listen_labelled};
pub use socket::{SocketNote, SocketOptions, apply, set_buffers, set_pacing};
