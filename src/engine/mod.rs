//! The engine: sessions, claims, commit and the workers.

pub mod error;
pub mod handle;
pub mod spec;
