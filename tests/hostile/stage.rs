//! An agent with something to serve, something to take, and something outside of its root that must stay as it is.

use crate::support::{Agent, Sandbox, noise};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// What the agent may grow by while strangers are at it.
pub const GROWTH_MAX: u64 = 64 << 20;

pub struct Stage {
    pub sandbox: Sandbox,
    pub agent: Agent,
    outside: BTreeMap<PathBuf, String>,
    warm: u64,
    copies: std::cell::Cell<u32>,
}

/// Names, kinds, modes, times and content below a directory.
fn listing(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        let mut what = format!("{:o} {} {}.{}", meta.mode(), meta.size(), meta.mtime(), meta.mtime_nsec());
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if meta.is_file() {
            what += &longhaul::digest::of(&std::fs::read(&path).unwrap()).to_string();
        }
        found.insert(path, what);
    }
    found
}

fn rss(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

impl Stage {
    pub fn new() -> Self {
        Self::with(&[])
    }

    pub fn with(flags: &[&str]) -> Self {
        let sandbox = Sandbox::in_memory();
        sandbox.write("far/src/big", &noise(9 << 20, 1));
        sandbox.write("far/src/small", b"small");
        sandbox.write("far/src/deep/er/file", &noise(70_000, 2));
        sandbox.write("far/other/secret", b"not offered");
        sandbox.write("outside/canary", b"stays as it is");
        sandbox.write("outside/dir/canary", b"stays as it is");
        std::fs::create_dir_all(sandbox.at("far/in")).unwrap();
        symlink(sandbox.at("outside"), sandbox.at("far/src/way-out")).unwrap();
        symlink(sandbox.at("outside"), sandbox.at("far/in/way-out")).unwrap();
        // Few buffers, so that what the agent holds beside them shows.
        let agent = sandbox.agent("far", &[&["--memory", "32MiB"], flags].concat());
        let outside = listing(&sandbox.at("outside"));
        let mut stage = Self { sandbox, agent, outside, warm: 0, copies: Default::default() };
        stage.honest();
        stage.honest();
        stage.warm = rss(stage.agent.running.pid());
        stage
    }

    /// An honest copy each way; how long both took.
    pub fn honest(&self) -> std::time::Duration {
        let number = self.copies.replace(self.copies.get() + 1);
        let (pulled, pushed) = (format!("pulled{number}"), format!("in/pushed{number}"));
        let began = std::time::Instant::now();
        let token = self.agent.token_file();
        let src = self.agent.url("src");
        self.sandbox.cp(&["-r", "--token-file", &token, &src, &pulled]).expect(0);
        let to = self.agent.url(&pushed);
        self.sandbox.cp(&["-r", "--token-file", &token, &pulled, &to]).expect(0);
        let took = began.elapsed();
        for name in ["big", "small", "deep/er/file"] {
            let read = |base: &str| std::fs::read(self.sandbox.at(base).join(name)).unwrap();
            assert!(read("far/src") == read(&pulled) && read(&pulled) == read(&format!("far/{pushed}")), "{name}");
        }
        std::fs::remove_dir_all(self.sandbox.at(&pulled)).unwrap();
        std::fs::remove_dir_all(self.sandbox.at(&format!("far/{pushed}"))).unwrap();
        took
    }

    /// What the agent holds beyond what it held at first, now.
    pub fn growth(&self) -> u64 {
        rss(self.agent.running.pid()).saturating_sub(self.warm)
    }

    /// After an attack: growth in bounds, nothing outside touched, an honest copy, no panic.
    #[track_caller]
    pub fn unharmed(&mut self, after: &str) {
        assert!(!self.agent.running.ended(), "{after}: the agent is gone: {}", self.agent.running.stderr());
        let growth = self.growth();
        assert!(growth < GROWTH_MAX, "{after}: {growth} bytes more than before");
        self.honest();
        let said = self.agent.running.stderr();
        assert!(!said.contains("panicked"), "{after}: {said}");
        assert_eq!(listing(&self.sandbox.at("outside")), self.outside, "{after}: something outside has changed");
    }

    /// The names below a directory of the agent's root, without the program's own.
    pub fn names(&self, below: &str) -> Vec<String> {
        let dir = self.sandbox.at("far").join(below);
        let mut names: Vec<String> = std::fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name != ".longhaul" && !name.ends_with(".part"))
            .collect();
        names.sort();
        names
    }
}
