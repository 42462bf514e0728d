//! What these tests share: a tree of every kind of entry, `cp` with armed fault points, comparison, counts.

use crate::support::{BINARY, MIB, data_file};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// For commands that have no reason to take long, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of one block as the engine reads and sends it by default.
pub const BLOCK: u64 = 256 << 10;

/// A line that a script can collect: on standard output, and at the end of the file that LONGHAUL_COUNTS names.
pub fn count(test: &str, values: &[(&str, u64)]) {
    let values: Vec<String> = values.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let line = format!("COUNT test={test} {}\n", values.join(" "));
    print!("{line}");
    if let Some(path) = std::env::var_os("LONGHAUL_COUNTS") {
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        std::io::Write::write_all(&mut file, line.as_bytes()).unwrap();
    }
}

/// What a tree is made of.
#[derive(Clone, Copy)]
pub struct Shape {
    pub big: u64,
    pub odd: u64,
    pub small: u64,
}

/// Every kind of entry: a big file, one that ends inside a chunk, one with a hole, small and empty ones, directories, symlinks.
pub fn tree(root: &Path, shape: Shape, seed: u64) {
    std::fs::create_dir_all(root.join("sub/empty")).unwrap();
    if shape.big > 0 {
        data_file(&root.join("big"), shape.big, seed + 1);
    }
    if shape.odd > 0 {
        data_file(&root.join("sub/odd"), shape.odd, seed + 2);
    }
    std::fs::write(root.join("none"), b"").unwrap();
    for n in 0..shape.small {
        data_file(&root.join(format!("small{}/{n}", n % 7)), 200 + n * 397 % 40_000, seed + 3 + n);
    }
    symlink("big", root.join("link")).unwrap();
    symlink("../no/such/file", root.join("sub/dangling")).unwrap();
}

/// Bytes of the regular files of a tree.
pub fn bytes_of(dir: &Path) -> u64 {
    let each = |entry: std::fs::DirEntry| {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            bytes_of(&entry.path())
        } else if kind.is_file() {
            entry.metadata().unwrap().len()
        } else {
            0
        }
    };
    std::fs::read_dir(dir).unwrap().map(|entry| each(entry.unwrap())).sum()
}

/// Names, kinds, content, links' targets, modes and times: the first difference.
pub fn differs(a: &Path, b: &Path) -> Option<String> {
    let (Ok(from), Ok(to)) = (a.symlink_metadata(), b.symlink_metadata()) else {
        return Some(format!("{} or {} is missing", a.display(), b.display()));
    };
    if from.is_symlink() || to.is_symlink() {
        let (left, right) = (std::fs::read_link(a).ok(), std::fs::read_link(b).ok());
        return (left != right).then(|| format!("{}: {left:?} became {right:?}", a.display()));
    }
    let facts =
        |m: &std::fs::Metadata| (m.mode() & 0o7777, m.mtime(), m.mtime_nsec(), if m.is_dir() { 0 } else { m.len() });
    if facts(&from) != facts(&to) {
        return Some(format!("{}: {:?} became {:?}", a.display(), facts(&from), facts(&to)));
    }
    if !from.is_dir() {
        return (!same_content(a, b)).then(|| format!("{}: content differs", a.display()));
    }
    let (left, right) = (names(a), names(b));
    if left != right {
        return Some(format!("{}: {left:?} became {right:?}", a.display()));
    }
    left.iter().find_map(|name| differs(&a.join(name), &b.join(name)))
}

pub fn names(dir: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    names
}

/// Whether two files hold the same bytes.
pub fn same_content(a: &Path, b: &Path) -> bool {
    use std::io::Read;
    let (mut left, mut right) = (std::fs::File::open(a).unwrap(), std::fs::File::open(b).unwrap());
    let (mut one, mut two) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    let fill = |file: &mut std::fs::File, buffer: &mut [u8]| {
        let mut have = 0;
        while have < buffer.len() {
            match file.read(&mut buffer[have..]).unwrap() {
                0 => break,
                count => have += count,
            }
        }
        have
    };
    loop {
        let (n, m) = (fill(&mut left, &mut one), fill(&mut right, &mut two));
        if n != m || one[..n] != two[..m] {
            return false;
        }
        if n == 0 {
            return true;
        }
    }
}

/// Armed points, and where their hits are logged.
#[derive(Clone, Default)]
pub struct Fault {
    pub plan: String,
    pub log: Option<PathBuf>,
    pub mount: Option<PathBuf>,
}

impl Fault {
    pub fn none() -> Self {
        Self::default()
    }

    pub fn plan(plan: impl Into<String>) -> Self {
        Self { plan: plan.into(), ..Self::default() }
    }

    pub fn log(mut self, path: &Path) -> Self {
        self.log = Some(path.to_owned());
        self
    }

    pub fn arm(&self, command: &mut Command) {
        command.env("LONGHAUL_FAULT", &self.plan).env("LONGHAUL_ALONE", "1");
        if let Some(log) = &self.log {
            command.env("LONGHAUL_FAULT_LOG", log);
        }
        if let Some(mount) = &self.mount {
            command.env("LONGHAUL_FAULT_MOUNT", mount);
        }
    }
}

/// A running `cp --json`.
pub struct Cp {
    pub child: Child,
    shown: String,
}

/// How it ended.
pub struct Ended {
    pub status: ExitStatus,
    pub report: Value,
    pub said: String,
    pub shown: String,
}

/// Starts `cp --json ARGS...`, its state below `home`.
pub fn start(home: &Path, args: &[&str], fault: &Fault) -> Cp {
    let mut command = Command::new(BINARY);
    command.args(["cp", "--json"]).args(args).stdin(Stdio::null());
    command.env("XDG_STATE_HOME", home).env("HOME", home).env_remove("LONGHAUL_TOKEN_FILE");
    fault.arm(&mut command);
    start_command(command, &format!("LONGHAUL_FAULT={} longhaul cp {}", fault.plan, args.join(" ")))
}

pub fn start_command(mut command: Command, shown: &str) -> Cp {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    Cp { child, shown: shown.to_owned() }
}

/// Runs it to its end.
pub fn cp(home: &Path, args: &[&str], fault: &Fault) -> Ended {
    start(home, args, fault).ends(PATIENCE)
}

impl Cp {
    /// Waits for its end; panics when it does not come.
    pub fn ends(mut self, patience: Duration) -> Ended {
        let began = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            if began.elapsed() > patience {
                self.child.kill().unwrap();
                let output = self.child.wait_with_output().unwrap();
                panic!("no end within {patience:?}: {}\n{}", self.shown, String::from_utf8_lossy(&output.stderr));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let output = self.child.wait_with_output().unwrap();
        Ended {
            status: output.status,
            report: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
            shown: self.shown,
        }
    }

    pub fn kill(mut self) -> Ended {
        let _ = self.child.kill();
        self.ends(PATIENCE)
    }
}

impl Ended {
    pub fn killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Everything that was said, for messages and for words that must stand in it.
    pub fn all(&self) -> String {
        format!("{}: {:?}\n{:#}\n{}", self.shown, self.status, self.report, self.said)
    }

    pub fn number(&self, key: &str) -> u64 {
        self.report[key].as_u64().unwrap_or_else(|| panic!("no number `{key}`: {}", self.all()))
    }

    #[track_caller]
    pub fn expect(self, code: i32, verdict: &str) -> Self {
        assert!(self.code() == code && self.report["verdict"] == verdict, "not {code} {verdict}: {}", self.all());
        self
    }

    #[track_caller]
    pub fn says(self, word: &str) -> Self {
        assert!(self.all().contains(word), "`{word}` is not said: {}", self.all());
        self
    }

    /// An end that is no success says why, and says it in a sentence: a reason that a person can read.
    #[track_caller]
    pub fn fails_with_a_sentence(self) -> Self {
        let reason = self.report["error"].as_str().unwrap_or_default().to_owned();
        assert!(!matches!(self.code(), -1 | 0 | 101), "no orderly failure: {}", self.all());
        assert!(reason.split_whitespace().count() >= 3, "no sentence: {}", self.all());
        let verdict = &self.report["verdict"];
        assert!(verdict == "FAILED" || verdict == "PARTIAL", "{}", self.all());
        self
    }
}

/// Hits by point, and the points that fired, of one log.
#[derive(Default)]
pub struct Hits {
    pub seen: BTreeMap<String, u64>,
    pub fired: Vec<String>,
    /// What was told, in order.
    pub told: Vec<String>,
}

pub fn hits(log: &Path) -> Hits {
    let mut hits = Hits::default();
    for line in std::fs::read_to_string(log).unwrap_or_default().lines() {
        match line.split_once(' ') {
            Some(("!", what)) => hits.fired.push(what.to_owned()),
            Some((name, what)) => {
                *hits.seen.entry(name.to_owned()).or_default() += 1;
                hits.told.push(what.to_owned());
            }
            None => *hits.seen.entry(line.to_owned()).or_default() += 1,
        }
    }
    hits
}

impl Hits {
    pub fn of(&self, name: &str) -> u64 {
        self.seen.get(name).copied().unwrap_or(0)
    }
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}
