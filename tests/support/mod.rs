//! What integration tests share: a directory of their own, agents from the real binary, commands with a deadline, trees.

#![allow(dead_code)]

pub mod tree;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_longhaul");
/// For commands that have no reason to take long, even on a busy machine.
pub const SOON: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(5);

/// Says why a test does nothing here. Where `CI=true` that is a failure.
pub fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped in CI: {why}");
    eprintln!("skipped: {why}");
}

/// Whether the test runs as root; if not, it is skipped with `why`.
pub fn root_or_skip(why: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip(&format!("needs root {why}"));
    }
    root
}

/// Waits for something; panics with `what` after `within`.
pub fn wait_for(what: &str, within: Duration, mut there: impl FnMut() -> bool) {
    let began = Instant::now();
    while !there() {
        assert!(began.elapsed() < within, "{what}: not within {within:?}");
        std::thread::sleep(POLL);
    }
}

/// Waits until some journal in `home` (the directory that a transfer locks) has `chunks` durable chunks.
pub fn wait_durable(home: &Path, chunks: u64) {
    wait_for("durable chunks", SOON, || {
        let states = std::fs::read_dir(home.join(".longhaul")).into_iter().flatten().flatten();
        let journals = states.filter_map(|state| std::fs::read(state.path().join("journal")).ok());
        let counts = journals.filter_map(|bytes| longhaul::journal::recover(&bytes).ok());
        counts.map(|recovered| recovered.checkpoint.durable_chunks()).max() >= Some(chunks)
    });
}

/// A directory of one test, removed at its end, and the commands that run in it.
pub struct Sandbox {
    dir: tempfile::TempDir,
    number: AtomicU32,
}

impl Sandbox {
    pub fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// In memory, where a test needs no medium.
    pub fn in_memory() -> Self {
        let shm = Path::new("/dev/shm");
        Self::below(if shm.is_dir() { shm } else { Path::new("/tmp") })
    }

    fn below(place: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("lht1-").tempdir_in(place).unwrap();
        std::fs::create_dir(dir.path().join("home")).unwrap();
        Self { dir, number: AtomicU32::new(0) }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A path as a command's argument.
    pub fn arg(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.at(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.at(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// `longhaul` with `args`, after the words of `wrap` (a sandbox, a namespace, another user).
    pub fn command(&self, wrap: &[&str], args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = match wrap.split_first() {
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(BINARY);
                command
            }
            None => Command::new(BINARY),
        };
        command.args(args).current_dir(self.path()).stdin(Stdio::null());
        command.env("HOME", self.at("home")).env("XDG_STATE_HOME", self.at("home/state"));
        command.env_remove("LONGHAUL_TOKEN_FILE").env_remove("XDG_CONFIG_HOME");
        command
    }

    /// Starts a command; its output goes to files, so that it can never block.
    pub fn start(&self, mut command: Command) -> Running {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let (out, err) = (self.at(&format!("{number}.out")), self.at(&format!("{number}.err")));
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Running { child, out, err, shown: format!("{command:?}") }
    }

    pub fn run(&self, args: &[impl AsRef<OsStr>]) -> Outcome {
        self.start(self.command(&[], args)).wait(SOON)
    }

    /// `cp --json` with `args`.
    pub fn start_cp(&self, args: &[impl AsRef<OsStr>]) -> Running {
        self.start(self.command(&[], &cp_args(args)))
    }

    pub fn cp(&self, args: &[impl AsRef<OsStr>]) -> Outcome {
        self.start_cp(args).wait(SOON)
    }

    /// An agent that serves the directory `NAME`, with further flags.
    pub fn agent(&self, name: &str, flags: &[&str]) -> Agent {
        self.agent_in(name, &[], flags)
    }

    /// The same, with the words of `wrap` before the program.
    pub fn agent_in(&self, name: &str, wrap: &[&str], flags: &[&str]) -> Agent {
        let root = self.dir(name);
        self.agent_at(name, &root, wrap, flags)
    }

    pub fn agent_at(&self, name: &str, root: &Path, wrap: &[&str], flags: &[&str]) -> Agent {
        self.agent_with(name, Some(root), wrap, flags)
    }

    /// An agent that is main alone, without a root.
    pub fn main_agent(&self, name: &str, flags: &[&str]) -> Agent {
        self.agent_with(name, None, &[], &[&["--roles", "main"], flags].concat())
    }

    fn agent_with(&self, name: &str, root: Option<&Path>, wrap: &[&str], flags: &[&str]) -> Agent {
        let state = self.at(&format!("{name}.state"));
        let log = self.at(&format!("{name}.transfers"));
        let mut args: Vec<OsString> = vec!["agent".into(), "--state".into(), state.clone().into()];
        args.extend(["--transfer-log".into(), log.clone().into()]);
        args.extend(root.into_iter().flat_map(|root| ["--root".into(), root.into()]));
        for (flag, default) in [("--http", "127.0.0.1:0"), ("--data", "127.0.0.1:0")] {
            if !flags.contains(&flag) {
                args.extend([flag.into(), default.into()]);
            }
        }
        args.extend(flags.iter().map(OsString::from));
        let mut running = self.start(self.command(wrap, &args));
        let began = Instant::now();
        let line = loop {
            let text = std::fs::read_to_string(&running.out).unwrap();
            if text.ends_with('\n') {
                break text;
            }
            if running.child.try_wait().unwrap().is_some() || began.elapsed() > SOON {
                panic!("no ready line: {}", std::fs::read_to_string(&running.err).unwrap());
            }
            std::thread::sleep(POLL);
        };
        let ready: Value = serde_json::from_str(&line).unwrap();
        let port = |key: &str| ready[key].as_str().unwrap().parse::<SocketAddr>().unwrap().port();
        let root = root.unwrap_or(Path::new("")).into();
        Agent { http: port("http"), data: port("data"), ready, root, state, log, running }
    }
}

fn cp_args(args: &[impl AsRef<OsStr>]) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["cp".into(), "--json".into()];
    all.extend(args.iter().map(|a| a.as_ref().to_owned()));
    all
}

/// A command that runs; killed when a test ends before it.
pub struct Running {
    pub child: Child,
    out: PathBuf,
    err: PathBuf,
    shown: String,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.err).unwrap()).into_owned()
    }

    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn wait(mut self, within: Duration) -> Outcome {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < within, "{}: not within {within:?}\n{}", self.shown, self.stderr());
            std::thread::sleep(POLL);
        };
        let read = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
        let (out, err) = (read(&self.out), read(&self.err));
        let json = serde_json::from_str(&out).unwrap_or(Value::Null);
        Outcome { code: status.code().unwrap_or(-1), out, err, json, shown: self.shown.clone(), took: began.elapsed() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub out: String,
    pub err: String,
    /// Standard output, if it was one JSON document.
    pub json: Value,
    pub shown: String,
    pub took: Duration,
}

impl Outcome {
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\n{}\n{}", self.shown, self.out, self.err);
        self
    }

    /// The exit code, and in all that was said each of `words`.
    #[track_caller]
    pub fn says(self, code: i32, words: &[&str]) -> Self {
        let outcome = self.expect(code);
        let said = format!("{}\n{}", outcome.out, outcome.err);
        for word in words {
            assert!(said.contains(word), "`{word}` is not said: {}\n{said}", outcome.shown);
        }
        outcome
    }

    pub fn number(&self, key: &str) -> u64 {
        self.json[key].as_u64().unwrap_or_else(|| panic!("no number `{key}`: {}", self.out))
    }

    pub fn text(&self, key: &str) -> &str {
        self.json[key].as_str().unwrap_or_else(|| panic!("no text `{key}`: {}", self.out))
    }

    /// All notes in one line.
    pub fn notes(&self) -> String {
        self.json["notes"].to_string()
    }
}

/// A running agent.
pub struct Agent {
    pub http: u16,
    pub data: u16,
    pub ready: Value,
    pub root: PathBuf,
    pub state: PathBuf,
    pub log: PathBuf,
    pub running: Running,
}

impl Agent {
    /// `lh://127.0.0.1:PORT/PATH`.
    pub fn url(&self, path: &str) -> String {
        self.url_at("127.0.0.1", path)
    }

    pub fn url_at(&self, host: &str, path: &str) -> String {
        format!("lh://{host}:{}/{path}", self.http)
    }

    pub fn token_file(&self) -> String {
        self.state.join("token").to_str().unwrap().to_owned()
    }

    pub fn token(&self) -> String {
        std::fs::read_to_string(self.token_file()).unwrap().trim().to_owned()
    }

    /// Status code and body of a request.
    pub fn request(&self, method: &str, path: &str, token: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    pub fn stop(self) -> Outcome {
        self.running.signal(Signal::SIGTERM);
        self.running.wait(Duration::from_secs(15))
    }

    /// The lines of the transfer log.
    pub fn transfers(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Bytes that do not repeat, so that a chunk in a wrong place shows.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Every byte but letters and digits as `%XX`.
pub fn percent(path: &[u8]) -> String {
    let one = |b: &u8| if b.is_ascii_alphanumeric() { (*b as char).to_string() } else { format!("%{b:02X}") };
    path.iter().map(one).collect()
}

/// Names of files below `dir` that are the program's own: part files, journals, locks.
pub fn left_over(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name == ".longhaul" || name.as_bytes().ends_with(b".part") {
                found.push(entry.path());
            }
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
        }
    }
    found
}
