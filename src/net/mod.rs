//! Sockets: listening, dialling, and options that are set and then read back, because the kernel clamps in silence.
//! Knows nothing of what goes over them.

pub mod dial;
pub mod listen;
pub mod socket;

pub use dial::{DialError, DialOptions, dial};
pub use listen::{ListenError, Listener, listen};
pub use socket::{SocketNote, SocketOptions, apply, set_buffers, set_pacing};
