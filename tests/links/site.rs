//! A transfer over a link of the lab, and what can be seen of it from outside.

use super::lab::{FAR, Lab};
use crate::support::{Agent, Copy, copy_command, data_file, scratch};
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

/// A lab with cubic as its default.
pub fn lab(letter: char, words: &[&str]) -> Option<Lab> {
    Lab::up(letter, &[words, &["--cc", "cubic"]].concat())
}

pub struct Site {
    pub lab: Lab,
    pub agent: Agent,
    /// Where copies go; on tmpfs, where there is room.
    pub dir: tempfile::TempDir,
}

impl Site {
    /// A lab with cubic as its default, what data transfer nodes ship, and a source on side b with a file of so many bytes.
    pub fn up(letter: char, words: &[&str], bytes: u64) -> Option<Self> {
        let dir = scratch(4 * bytes);
        let place = dir.path().join("source");
        Some(Self::with_source(lab(letter, words)?, dir, &place, bytes))
    }

    /// The same over a lab that is up, with the source's directory at `place`.
    pub fn with_source(lab: Lab, dir: tempfile::TempDir, place: &Path, bytes: u64) -> Self {
        Self::with_source_at(lab, dir, place, bytes, (0, 0))
    }

    /// The same on certain ports, of HTTP and of data.
    pub fn with_source_at(lab: Lab, dir: tempfile::TempDir, place: &Path, bytes: u64, ports: (u16, u16)) -> Self {
        let agent = Agent::start_at(place, &lab.prefix('b'), FAR, ports, &[]);
        if bytes > 0 {
            data_file(&agent.root().join("file"), bytes, 7);
        }
        Self { lab, agent, dir }
    }

    /// Starts to copy `name` of the source to `to`.
    pub fn start_to(&self, name: &str, to: &Path, words: &[&str]) -> Copy {
        let (from, pin) = (self.agent.url(name), self.agent.ready["fingerprint"].as_str().unwrap());
        let args = [words, &["--peer-fingerprint", pin, &from, to.to_str().unwrap()]].concat();
        let mut command = copy_command(&self.lab.prefix('a'), self.dir.path(), &self.agent.token_file(), &args);
        Copy { child: command.spawn().unwrap() }
    }

    fn copy(&self) -> PathBuf {
        self.dir.path().join("copy")
    }

    /// Starts to copy the file to side a.
    pub fn start(&self, words: &[&str]) -> Copy {
        self.start_to("file", &self.copy(), words)
    }

    /// Waits for it, and compares what came. The report.
    pub fn done(&self, copy: Copy) -> Value {
        let report = copy.succeeds(PATIENCE);
        let equal = Command::new("cmp").arg(self.agent.root().join("file")).arg(self.copy()).status().unwrap();
        assert!(equal.success());
        std::fs::remove_file(self.copy()).unwrap();
        report
    }

    pub fn pull(&self, words: &[&str]) -> Value {
        self.done(self.start(words))
    }

    /// Bytes of the copy that are in its file, by the file system's count.
    fn placed(&self) -> u64 {
        let of_it = |name: &str| name == "copy" || name.starts_with(".copy.lh-");
        let entries = std::fs::read_dir(self.dir.path()).unwrap().map(Result::unwrap);
        let ours = entries.filter(|entry| of_it(&entry.file_name().to_string_lossy()));
        // A part file that is renamed at this moment has none.
        ours.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
    }

    /// Waits until so many bytes are placed.
    pub fn has_placed(&self, bytes: u64) {
        let began = Instant::now();
        while self.placed() < bytes {
            assert!(began.elapsed() < PATIENCE, "{} of {bytes} bytes", self.placed());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What arrives in the next `time`, Mbit/s.
    pub fn rate(&self, time: Duration) -> f64 {
        let (began, before) = (Instant::now(), self.placed());
        std::thread::sleep(time);
        (self.placed() - before) as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e6
    }
}
