//! Longhaul moves data between data transfer nodes: verified, encrypted, resumable.

pub mod checksum;
pub mod cli;
pub mod config;
pub mod control;
pub mod digest;
pub mod disk;
pub mod engine;
pub mod grid;
pub mod ids;
pub mod journal;
pub mod limits;
pub mod manifest;
pub mod net;
pub mod relpath;
pub mod sys;
pub mod units;
pub mod wire;
