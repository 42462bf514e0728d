//! What the fault tests share: agents that can be killed and started again on their ports, `cp` runs, data, comparison.

#[path = "../support/agent.rs"]
mod agent;
#[path = "../support/random.rs"]
mod random;

pub use random::Random;
use serde_json::Value;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const BINARY: &str = env!("CARGO_BIN_EXE_longhaul");
pub const MIB: u64 = 1 << 20;
pub const CHUNK: u64 = 4 * MIB;

/// The long form of a test: the sizes of the promise itself.
pub fn long() -> bool {
    std::env::var_os("LONGHAUL_LONG").is_some()
}

/// Ends a test that needs root or a tool that is not there; in CI that is a failure.
pub fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped in CI: {why}");
    eprintln!("skipped: {why}");
}

/// A directory in memory where there is room for `bytes` of it, else on disk.
pub fn scratch(bytes: u64) -> tempfile::TempDir {
    let room = nix::sys::statvfs::statvfs("/dev/shm").map_or(0, |v| v.blocks_available() * v.fragment_size());
    let made = if room > bytes + 512 * MIB { tempfile::tempdir_in("/dev/shm") } else { tempfile::tempdir() };
    made.unwrap()
}

/// Bytes that no hole and no repetition makes easy.
pub fn data_file(path: &Path, bytes: u64, seed: u64) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = std::fs::File::create(path).unwrap();
    let (mut random, mut at, mut block) = (Random::new(seed), 0, vec![0; MIB as usize]);
    while at < bytes {
        let len = MIB.min(bytes - at) as usize;
        random.fill(&mut block[..len]);
        file.write_all_at(&block[..len], at).unwrap();
        at += len as u64;
    }
}

/// The first difference between two trees of files and directories: names, content, size, mode, time to the nanosecond.
pub fn difference(a: &Path, b: &Path) -> Option<String> {
    let (from, to) = (a.symlink_metadata(), b.symlink_metadata());
    let (Ok(from), Ok(to)) = (from, to) else { return Some(format!("{} or {} is missing", a.display(), b.display())) };
    let facts =
        |m: &std::fs::Metadata| (m.mode() & !0o7000, m.mtime(), m.mtime_nsec(), if m.is_dir() { 0 } else { m.len() });
    if facts(&from) != facts(&to) {
        return Some(format!("{}: {:?} became {:?}", a.display(), facts(&from), facts(&to)));
    }
    if from.is_dir() {
        let list = |dir: &Path| {
            let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let (left, right) = (list(a), list(b));
        if left != right {
            return Some(format!("{}: {} names became {}", a.display(), left.len(), right.len()));
        }
        return left.iter().find_map(|name| difference(&a.join(name), &b.join(name)));
    }
    let (mut left, mut right) = (std::fs::File::open(a).unwrap(), std::fs::File::open(b).unwrap());
    let (mut one, mut two) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    let mut at = 0;
    while at < from.len() {
        let len = MIB.min(from.len() - at) as usize;
        left.read_exact(&mut one[..len]).unwrap();
        right.read_exact(&mut two[..len]).unwrap();
        if one[..len] != two[..len] {
            return Some(format!("{}: content differs in the MiB at {at}", a.display()));
        }
        at += len as u64;
    }
    None
}

/// Nothing of ours may be left where a transfer has ended well.
pub fn leftovers(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == ".longhaul" || name.contains(".lh-") {
            found.push(entry.path());
        } else if entry.file_type().unwrap().is_dir() {
            found.extend(leftovers(&entry.path()));
        }
    }
    found
}

/// An agent as a process.
pub struct Agent {
    child: Child,
    pub dir: PathBuf,
    pub ready: Value,
    prefix: Vec<String>,
    extra: Vec<String>,
}

impl Agent {
    /// On loopback; `dir` holds `root`, `state` and its logs.
    pub fn start(dir: &Path, extra: &[&str]) -> Self {
        Self::start_in(dir, &[], "127.0.0.1", extra)
    }

    /// Behind a command prefix (`ip netns exec NAME`), on an address.
    pub fn start_in(dir: &Path, prefix: &[&str], address: &str, extra: &[&str]) -> Self {
        Self::start_at(dir, prefix, address, (0, 0), extra)
    }

    /// On certain ports, of HTTP and of data; 0: any.
    pub fn start_at(dir: &Path, prefix: &[&str], address: &str, ports: (u16, u16), extra: &[&str]) -> Self {
        std::fs::create_dir_all(dir.join("root")).unwrap();
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (prefix, extra) = (own(prefix), own(extra));
        let (http, data) = (format!("{address}:{}", ports.0), format!("{address}:{}", ports.1));
        let (child, ready) = Self::spawn(dir, &prefix, &extra, &http, &data);
        Self { child, dir: dir.to_owned(), ready, prefix, extra }
    }

    fn spawn(dir: &Path, prefix: &[String], extra: &[String], http: &str, data: &str) -> (Child, Value) {
        let mut command = agent::command(prefix, dir, http, data);
        command.arg("--transfer-log").arg(dir.join("transfers")).args(extra);
        agent::spawn(command, dir)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the ports it had.
    pub fn restart(&mut self) {
        let (http, data) = (self.http(), self.ready["data"].as_str().unwrap().to_owned());
        (self.child, self.ready) = Self::spawn(&self.dir, &self.prefix, &self.extra, &http, &data);
    }

    pub fn signal(&self, name: &str) {
        agent::signal(self.pid(), name);
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn http(&self) -> String {
        self.ready["http"].as_str().unwrap().to_owned()
    }

    pub fn data(&self) -> String {
        self.ready["data"].as_str().unwrap().to_owned()
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    pub fn url(&self, path: &str) -> String {
        format!("lh://{}/{path}", self.http())
    }

    pub fn token_file(&self) -> PathBuf {
        self.ready["token_file"].as_str().unwrap().into()
    }

    /// The lines of its transfer log so far.
    pub fn transfers(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.join("transfers")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Payload bytes that it has sent as a source, over all ended sessions, by its own count.
    pub fn sent(&self) -> u64 {
        self.transfers().iter().filter(|t| t["role"] == "source").map(|t| t["sent_bytes"].as_u64().unwrap()).sum()
    }

    /// What it answers on its HTTP port, body and all.
    pub fn get(&self, path: &str) -> String {
        agent::get(self.connect(), path, &std::fs::read_to_string(self.token_file()).unwrap())
    }

    /// A connection to its HTTP port, from the namespace it runs in: a socket stays where it was made.
    fn connect(&self) -> TcpStream {
        let http = self.http();
        let Some(namespace) = self.prefix.get(3).cloned() else { return TcpStream::connect(http).unwrap() };
        let join = std::thread::spawn(move || {
            let file = std::fs::File::open(Path::new("/run/netns").join(namespace)).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            TcpStream::connect(http).unwrap()
        });
        join.join().unwrap()
    }

    /// Waits until it has had `count` sessions since its start, the one that runs counted.
    pub fn has_sessions(&self, count: usize) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.get("/v1/transfers").matches("\"role\":").count() < count {
            assert!(Instant::now() < end, "not {count} sessions within a minute: {}", self.get("/v1/transfers"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::env::var_os("LONGHAUL_LOG").is_some() {
            eprintln!("{}", std::fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        }
    }
}

/// Gives an agent that has not started yet the token of one that has: `cp` carries one for all sources.
pub fn tokens_shared(agent: &Agent, other: &Path) {
    let state = other.join("state");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::copy(agent.token_file(), state.join("token")).unwrap();
}

/// A running `cp --json`.
pub struct Copy {
    pub child: Child,
}

/// `cp --json ARGS...` with an agent's token, its own state below `home`.
pub fn copy_command(prefix: &[&str], home: &Path, token: &Path, args: &[&str]) -> Command {
    let mut words = prefix.to_vec();
    words.push(BINARY);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["cp", "--json", "--token-file"]).arg(token).args(args);
    command.env("XDG_STATE_HOME", home).env("HOME", home).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn copy(home: &Path, token: &Path, args: &[&str]) -> Copy {
    Copy { child: copy_command(&[], home, token, args).spawn().unwrap() }
}

impl Copy {
    /// Waits for `time`; `false` if it ended before.
    pub fn runs_for(&mut self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while Instant::now() < end {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its report, once it has ended within `patience` with exit code 0.
    pub fn succeeds(self, patience: Duration) -> Value {
        let (code, report, errors) = self.ends(patience);
        assert_eq!(code, Some(0), "{report:#} {errors}");
        if std::env::var_os("LONGHAUL_LOG").is_some() {
            eprintln!("{errors}");
        }
        report
    }

    /// Exit code, report and what it said on stderr.
    pub fn ends(mut self, patience: Duration) -> (Option<i32>, Value, String) {
        if self.runs_for(patience) {
            self.child.kill().unwrap();
            let output = self.child.wait_with_output().unwrap();
            panic!("no end within {patience:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let output = self.child.wait_with_output().unwrap();
        let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code(), report, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Peak resident memory of a process, from /proc, in bytes.
pub fn peak_rss(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// A network namespace with nothing but its own loopback, whose counters see these transfers alone.
pub struct Net(String);

impl Net {
    /// `None`, said why, without root.
    pub fn up(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip("interface counters of a namespace need root");
            return None;
        }
        let net = Self(format!("{name}{}", std::process::id()));
        for words in [["netns", "add", &net.0].as_slice(), &["-n", &net.0, "link", "set", "lo", "up"]] {
            assert!(Command::new("ip").args(words).status().unwrap().success(), "ip {words:?}");
        }
        Some(net)
    }

    /// What runs a command in it.
    pub fn prefix(net: Option<&Self>) -> Vec<&str> {
        net.map_or(Vec::new(), |net| vec!["ip", "netns", "exec", &net.0])
    }

    /// Bytes that its loopback has carried.
    pub fn carried(&self) -> u64 {
        received_in(&self.0, |interface| interface == "lo")
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Bytes that the interfaces of a namespace have received, by the kernel's count.
pub fn received_in(namespace: &str, counts: impl Fn(&str) -> bool) -> u64 {
    let words = ["netns", "exec", namespace, "cat", "/proc/net/dev"];
    let text = Command::new("ip").args(words).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    let lines = text.lines().filter_map(|line| line.trim_start().split_once(':'));
    let counted = lines.filter(|(name, _)| counts(name));
    counted.map(|(_, rest)| rest.split_whitespace().next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Chunks that the first journal in `home` has as durable; none before there is one.
pub fn durable_chunks(home: &Path) -> u64 {
    let states = std::fs::read_dir(home.join(".longhaul")).into_iter().flatten().flatten();
    let journals = states.filter_map(|state| std::fs::read(state.path().join("journal")).ok());
    let mut counts = journals.filter_map(|bytes| longhaul::journal::recover(&bytes).ok());
    counts.next().map_or(0, |recovered| recovered.checkpoint.durable_chunks())
}

/// What a kill may cost at most, with the buffers of near streams (1 MiB at each end): DESIGN, rules.
pub fn resend_bound(streams: u64, bytes: u64) -> u64 {
    streams * (CHUNK + 2 * MIB) + longhaul::limits::commit_window(bytes)
}
