//! One file per command.

pub mod clean;
pub mod demo_tree;
pub mod fail;
pub mod journal;
pub mod manifest_file;
pub mod progress;
pub mod report;
pub mod tree;
pub mod verify;
