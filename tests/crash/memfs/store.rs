//! What the file system holds, and the rules by which it misbehaves.

use fuser::Errno;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Calls that can be told to misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Read,
    Write,
    /// Either kind of sync of a file.
    Fsync,
    /// `fdatasync` alone.
    DataSync,
    SyncDir,
    Create,
    Rename,
    Flock,
    Fallocate,
    OpenDirect,
    Xattr,
}

/// How.
#[derive(Debug, Clone, Copy)]
pub enum Effect {
    Fail(Errno),
    /// The data since the last good sync is lost, then the error: what a device does whose write-back failed.
    Lose(Errno),
    /// About a half of what was asked.
    Short,
    Late(Duration),
    /// It succeeds, and afterwards a byte of the medium changes.
    Rot,
    /// Only renames with flags are refused.
    FailFlags(Errno),
}

/// Which files a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    All,
    Parts,
}

#[derive(Debug)]
pub struct Rule {
    pub call: Call,
    pub about: About,
    /// The hits that it is for, counted from 1.
    pub first: u64,
    pub last: u64,
    pub effect: Effect,
    pub hits: u64,
    pub fired: u64,
}

#[derive(Debug)]
pub enum Content {
    File { data: Vec<u8>, synced: Vec<u8> },
    Dir(BTreeMap<OsString, u64>),
    Link(PathBuf),
}

#[derive(Debug)]
pub struct Node {
    pub content: Content,
    pub name: OsString,
    pub perm: u16,
    pub links: u32,
    pub mtime: SystemTime,
    pub ctime: SystemTime,
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
}

impl Node {
    pub fn new(content: Content, name: &OsStr, perm: u32) -> Self {
        let now = SystemTime::now();
        let links = if matches!(content, Content::Dir(_)) { 2 } else { 1 };
        let (name, perm) = (name.to_owned(), (perm & 0o7777) as u16);
        Self { content, name, perm, links, mtime: now, ctime: now, xattrs: BTreeMap::new() }
    }
}

#[derive(Debug)]
pub struct Store {
    pub nodes: BTreeMap<u64, Node>,
    next: u64,
    rules: Vec<Rule>,
    /// Bytes that fit.
    pub capacity: u64,
    /// How often each call came.
    pub calls: BTreeMap<Call, u64>,
    /// Whether the kernel asks for each flock.
    pub flocks: bool,
}

impl Default for Store {
    fn default() -> Self {
        let root = Node::new(Content::Dir(BTreeMap::new()), OsStr::new(""), 0o755);
        let nodes = BTreeMap::from([(1, root)]);
        Self { nodes, next: 2, rules: Vec::new(), capacity: 1 << 30, calls: BTreeMap::new(), flocks: false }
    }
}

impl Store {
    /// Misbehaves from now on, for the hits `first` to `last`.
    pub fn rule(&mut self, call: Call, about: About, (first, last): (u64, u64), effect: Effect) {
        self.rules.push(Rule { call, about, first, last, effect, hits: 0, fired: 0 });
    }

    /// Always.
    pub fn refuse(&mut self, call: Call, errno: Errno) {
        self.rule(call, About::All, (1, u64::MAX), Effect::Fail(errno));
    }

    /// Behaves again. How often a rule applied.
    pub fn heal(&mut self) -> u64 {
        let fired = self.rules.iter().map(|rule| rule.fired).sum();
        self.rules.clear();
        self.capacity = 1 << 30;
        self.calls.clear();
        fired
    }

    /// Counts a call on a node; what it is to do.
    pub fn effect(&mut self, call: Call, ino: u64) -> Option<Effect> {
        *self.calls.entry(call).or_default() += 1;
        let name = self.nodes.get(&ino).map(|node| node.name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut found = None;
        for rule in self.rules.iter_mut().filter(|rule| rule.call == call) {
            let about = match rule.about {
                About::All => true,
                About::Parts => name.ends_with(".part"),
            };
            if !about {
                continue;
            }
            rule.hits += 1;
            if (rule.first..=rule.last).contains(&rule.hits) {
                rule.fired += 1;
                found = Some(rule.effect);
            }
        }
        found
    }

    pub fn child(&self, parent: u64, name: &OsStr) -> Option<u64> {
        match &self.nodes.get(&parent)?.content {
            Content::Dir(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    pub fn entries(&mut self, dir: u64) -> Option<&mut BTreeMap<OsString, u64>> {
        let node = self.nodes.get_mut(&dir)?;
        node.mtime = SystemTime::now();
        match &mut node.content {
            Content::Dir(entries) => Some(entries),
            _ => None,
        }
    }

    pub fn add(&mut self, parent: u64, name: &OsStr, node: Node) -> Result<u64, Errno> {
        if self.child(parent, name).is_some() {
            return Err(Errno::EEXIST);
        }
        let ino = self.next;
        self.next += 1;
        self.entries(parent).ok_or(Errno::ENOENT)?.insert(name.to_owned(), ino);
        self.nodes.insert(ino, node);
        Ok(ino)
    }

    /// One name less; the node stays while something may have it open, which for a test is for ever.
    pub fn remove(&mut self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let ino = self.child(parent, name).ok_or(Errno::ENOENT)?;
        self.entries(parent).ok_or(Errno::ENOENT)?.remove(name);
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.links = node.links.saturating_sub(1);
            node.ctime = SystemTime::now();
        }
        Ok(())
    }

    /// Bytes in files.
    pub fn used(&self) -> u64 {
        let size = |node: &Node| match &node.content {
            Content::File { data, .. } if node.links > 0 => data.len() as u64,
            _ => 0,
        };
        self.nodes.values().map(size).sum()
    }

    /// Gives a file a size; `false` if that does not fit.
    pub fn resize(&mut self, ino: u64, size: u64) -> bool {
        let free = self.capacity.saturating_sub(self.used());
        let Some(Node { content: Content::File { data, .. }, .. }) = self.nodes.get_mut(&ino) else { return false };
        if size.saturating_sub(data.len() as u64) > free {
            return false;
        }
        data.resize(size as usize, 0);
        true
    }

    /// The data of a file is on its medium.
    pub fn sync(&mut self, ino: u64) {
        if let Some(Node { content: Content::File { data, synced }, .. }) = self.nodes.get_mut(&ino) {
            synced.clone_from(data);
        }
    }

    /// What was not synced is gone; so are its names' sizes, as on a file system that journals only metadata.
    pub fn lose(&mut self, ino: u64) {
        if let Some(Node { content: Content::File { data, synced }, .. }) = self.nodes.get_mut(&ino) {
            let size = data.len();
            data.clone_from(synced);
            data.resize(size, 0);
        }
    }

    /// A bit of the medium changes.
    pub fn rot(&mut self, ino: u64) {
        if let Some(Node { content: Content::File { data, synced }, .. }) = self.nodes.get_mut(&ino) {
            let at = data.len() / 3;
            data.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 4);
            synced.clone_from(data);
        }
    }

    /// Everything that was not synced is gone.
    pub fn cut(&mut self) {
        let all: Vec<u64> = self.nodes.keys().copied().collect();
        all.into_iter().for_each(|ino| self.lose(ino));
    }
}
