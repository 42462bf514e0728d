//! One file per command.

pub mod fail;
pub mod journal;
pub mod manifest_file;
pub mod progress;
pub mod report;
pub mod tree;
pub mod verify;
