//! Over a real HTTP port.
