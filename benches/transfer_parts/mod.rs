//! The candidates of `transfer.rs`, their test data, and what is measured of them.

mod pair;

use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use pair::{Pair, pair_role};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// What is moved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// One big file.
    Big,
    /// Many files of 10 KiB, 100 to a directory.
    Small,
    /// One file of 1 KiB: nothing but latency.
    One,
}

/// Bytes of a file of [`Work::Small`].
const SMALL: usize = 10 << 10;
/// Files of a directory of [`Work::Small`].
const PER_DIR: usize = 100;

impl Work {
    pub fn name(self) -> &'static str {
        match self {
            Work::Big => "big",
            Work::Small => "small",
            Work::One => "one",
        }
    }

    pub fn named(name: &str) -> Result<Self, String> {
        [Work::Big, Work::Small, Work::One]
            .into_iter()
            .find(|w| w.name() == name)
            .ok_or(format!("--work {name}: big, small or one"))
    }

    /// Bytes that no file system or tool can make smaller.
    pub fn make(self, at: &Path, size: u64, files: usize) -> io::Result<()> {
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        match self {
            Work::Big | Work::One => {
                let mut left = if self == Work::One { 1024 } else { size };
                let mut file = File::create(at)?;
                let mut block = vec![0; 1 << 20];
                while left > 0 {
                    noise.fill(&mut block);
                    let step = left.min(block.len() as u64);
                    file.write_all(&block[..step as usize])?;
                    left -= step;
                }
            }
            Work::Small => {
                let mut content = vec![0; SMALL];
                for number in 0..files {
                    let dir = at.join(format!("d{:04}", number / PER_DIR));
                    if number % PER_DIR == 0 {
                        fs::create_dir_all(&dir)?;
                    }
                    noise.fill(&mut content);
                    fs::write(dir.join(format!("f{number:06}")), &content)?;
                }
            }
        }
        Ok(())
    }

    pub fn totals(self, at: &Path) -> io::Result<(u64, u64)> {
        let meta = fs::metadata(at)?;
        if meta.is_file() {
            return Ok((meta.len(), 1));
        }
        let mut totals = (0, 0);
        for entry in fs::read_dir(at)? {
            let (bytes, files) = self.totals(&entry?.path())?;
            totals = (totals.0 + bytes, totals.1 + files);
        }
        Ok(totals)
    }
}

struct Noise(u64);

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}

/// What one run came to.
#[derive(Default)]
pub struct Outcome {
    pub bytes: u64,
    pub files: u64,
    pub wall: f64,
    pub cpu_source: f64,
    pub cpu_destination: f64,
    pub rss_source: u64,
    pub rss_destination: u64,
    pub limiter: String,
    pub encrypted: bool,
    pub checked: bool,
}

impl Outcome {
    pub fn json(&self, work: Work, candidate: &str, round: usize) -> Value {
        let gib = self.bytes as f64 / (1u64 << 30) as f64;
        json!({
            "work": work.name(), "candidate": candidate, "round": round, "bytes": self.bytes, "files": self.files,
            "wall_s": self.wall, "gbit_s": self.bytes as f64 * 8e-9 / self.wall, "files_s": self.files as f64 / self.wall,
            "cpu_s_per_gib": { "source": self.cpu_source / gib, "destination": self.cpu_destination / gib },
            "rss_bytes": { "source": self.rss_source, "destination": self.rss_destination },
            "limiter": self.limiter, "encrypted": self.encrypted, "bytes_compared": self.checked,
            "load": fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next(),
        })
    }
}

/// One way to move a tree.
pub trait Candidate {
    fn name(&self) -> &str;
    /// iperf3 moves none.
    fn moves_files(&self) -> bool {
        true
    }
    /// Moves the source into the empty directory `out`, under its own name.
    fn run(&mut self, out: &Path) -> Fallible<Outcome>;
}

/// What can run here for this work; says what cannot.
pub fn candidates(work: Work, base: &Path, source: &Path) -> Result<Vec<Box<dyn Candidate>>, String> {
    let mut all: Vec<Box<dyn Candidate>> = Vec::new();
    let text = |e: Box<dyn std::error::Error>| e.to_string();
    if work == Work::Big {
        all.push(Box::new(Pair::new(source)));
    }
    let state = base.join(format!("state-{}", work.name()));
    let root = source.parent().expect("made by us");
    let agent = Agent::start(root, &state).map_err(text)?;
    let agent = std::rc::Rc::new(agent);
    for (name, encrypt) in [("longhaul-plain", "off"), ("longhaul", "on")] {
        all.push(Box::new(Longhaul { name, encrypt, agent: agent.clone(), source: source.to_owned() }));
    }
    if has("rsync") {
        all.push(Box::new(Rsync::start(base, source).map_err(text)?));
    } else {
        eprintln!("rsync is not installed: left out");
    }
    all.push(Box::new(Cp { source: source.to_owned() }));
    if work == Work::Big && has("iperf3") {
        let bytes = fs::metadata(source).map_err(|e| e.to_string())?.len();
        all.push(Box::new(Iperf { name: "iperf3-P4", congestion: None, bytes }));
        all.push(Box::new(Iperf { name: "iperf3-P4-cubic", congestion: Some("cubic"), bytes }));
    } else if work == Work::Big {
        eprintln!("iperf3 is not installed: left out");
    }
    Ok(all)
}

fn has(tool: &str) -> bool {
    Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// Writes and removes as much as will be written: a virtual machine that gives free pages back to its host pays for the
/// first touch of each, and who comes first would pay for all.
pub fn prepare_memory(base: &Path, bytes: u64) -> io::Result<()> {
    let at = base.join("warm");
    let mut file = File::create(&at)?;
    let block = vec![1; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let step = left.min(block.len() as u64);
        file.write_all(&block[..step as usize])?;
        left -= step;
    }
    drop(file);
    fs::remove_file(&at)
}

/// Whether both hold the same names and bytes.
pub fn same_tree(a: &Path, b: &Path) -> io::Result<bool> {
    let (kind_a, kind_b) = (fs::metadata(a)?, fs::metadata(b)?);
    if kind_a.is_file() {
        let (mut a, mut b) = (File::open(a)?, File::open(b)?);
        let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut rest = kind_a.len();
        if rest != kind_b.len() {
            return Ok(false);
        }
        while rest > 0 {
            let step = rest.min(left.len() as u64) as usize;
            a.read_exact(&mut left[..step])?;
            b.read_exact(&mut right[..step])?;
            if left[..step] != right[..step] {
                return Ok(false);
            }
            rest -= step as u64;
        }
        return Ok(true);
    }
    let names = |dir: &Path| -> io::Result<Vec<_>> {
        let mut names = fs::read_dir(dir)?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    let list = names(a)?;
    if list != names(b)? {
        return Ok(false);
    }
    for name in list {
        if !same_tree(&a.join(&name), &b.join(&name))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The host, on a line of its own before the results.
pub fn host_line() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = read("/proc/cpuinfo");
    let model =
        cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("").trim_start_matches([' ', '\t', ':']);
    json!({
        "cpu": model, "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": read("/proc/sys/kernel/osrelease"), "load": read("/proc/loadavg"),
        "congestion_default": read("/proc/sys/net/ipv4/tcp_congestion_control"),
        "unix_time": std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
    })
}

/// CPU seconds of a process so far, with the children it has waited for.
fn cpu_of(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold blanks: fields are counted behind it.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = fields.split_whitespace().skip(11).take(4).filter_map(|f| f.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

fn peak_rss(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib =
        status.lines().find_map(|l| l.strip_prefix("VmHWM:")).and_then(|l| l.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0u64) * 1024
}

/// CPU of all children of this process that have ended.
fn cpu_of_ended() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("asking for one's own children cannot fail");
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 * 1e-6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// Runs a command to its end: output, wall seconds, CPU seconds, peak memory (sampled).
fn timed(command: &mut Command) -> Fallible<(Vec<u8>, f64, f64, u64)> {
    let before = cpu_of_ended();
    let began = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (pid, peak, over) = (child.id(), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let sampler = std::thread::spawn({
        let (peak, over) = (peak.clone(), over.clone());
        move || {
            while !over.load(Ordering::Relaxed) {
                peak.fetch_max(peak_rss(pid), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
    let output = child.wait_with_output()?;
    let wall = began.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    sampler.join().expect("the sampler only reads");
    if !output.status.success() {
        return Err(format!("{:?} failed: {}", command.get_program(), String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok((output.stdout, wall, cpu_of_ended() - before, peak.load(Ordering::Relaxed)))
}

fn free_port() -> io::Result<u16> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr().map(|a| a.port())
}

/// A server of ours that ends with its candidate.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Agent {
    server: Server,
    http: String,
    token: PathBuf,
}

impl Agent {
    fn start(root: &Path, state: &Path) -> Fallible<Self> {
        fs::create_dir_all(state)?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_longhaul"))
            .args(["agent", "--http", "127.0.0.1:0", "--data", "127.0.0.1:0", "--encrypt", "off", "--root"])
            .arg(root)
            .arg("--state")
            .arg(state)
            .arg("--log")
            .arg(state.join("log"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line)?;
        let field = |name: &str| ready[name].as_str().map(str::to_owned).ok_or(format!("no {name} in {line}"));
        Ok(Self { http: field("http")?, token: field("token_file")?.into(), server: Server(child) })
    }
}

/// An agent as source, `longhaul cp` as destination.
struct Longhaul {
    name: &'static str,
    encrypt: &'static str,
    agent: std::rc::Rc<Agent>,
    source: PathBuf,
}

impl Candidate for Longhaul {
    fn name(&self) -> &str {
        self.name
    }

    fn run(&mut self, out: &Path) -> Fallible<Outcome> {
        let pid = self.agent.server.0.id();
        let before = cpu_of(pid);
        let name = self.source.file_name().expect("made by us").to_string_lossy().into_owned();
        let (stdout, wall, cpu, rss) = timed(
            Command::new(env!("CARGO_BIN_EXE_longhaul"))
                .args(["cp", "-r", "--json", "--encrypt", self.encrypt, "--token-file"])
                .arg(&self.agent.token)
                .arg(format!("lh://{}/{name}", self.agent.http))
                .arg(out.join(&name)),
        )?;
        let report: Value = serde_json::from_slice(&stdout)?;
        Ok(Outcome {
            wall,
            cpu_destination: cpu,
            cpu_source: cpu_of(pid) - before,
            rss_source: peak_rss(pid),
            rss_destination: rss,
            limiter: report["limiter"].as_str().unwrap_or_default().to_owned(),
            encrypted: report["encrypted"] == true,
            ..Outcome::default()
        })
    }
}

/// A daemon as source, the client as destination. rsync always digests (a whole-file checksum), never encrypts.
struct Rsync {
    server: Server,
    port: u16,
    source: PathBuf,
    _config: tempfile::NamedTempFile,
}

impl Rsync {
    fn start(base: &Path, source: &Path) -> Fallible<Self> {
        let root = source.parent().expect("made by us");
        let mut config = tempfile::NamedTempFile::new_in(base)?;
        let user = if nix::unistd::geteuid().is_root() { "uid = 0\ngid = 0\n" } else { "" };
        write!(config, "use chroot = no\n{user}[src]\npath = {}\nread only = yes\n", root.display())?;
        let port = free_port()?;
        let child = Command::new("rsync")
            .args(["--daemon", "--no-detach", "--address=127.0.0.1", &format!("--port={port}")])
            .arg(format!("--config={}", config.path().display()))
            .arg("--log-file=/dev/null")
            .stdin(Stdio::null())
            .spawn()?;
        wait_for(port)?;
        Ok(Self { server: Server(child), port, source: source.to_owned(), _config: config })
    }
}

fn wait_for(port: u16) -> Fallible<()> {
    for _ in 0..200 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            std::thread::sleep(Duration::from_millis(100));
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(format!("nothing listens on port {port}").into())
}

impl Candidate for Rsync {
    fn name(&self) -> &str {
        "rsync"
    }

    fn run(&mut self, out: &Path) -> Fallible<Outcome> {
        let pid = self.server.0.id();
        let before = cpu_of(pid);
        let name = self.source.file_name().expect("made by us").to_string_lossy().into_owned();
        let from = format!("rsync://127.0.0.1:{}/src/{name}", self.port);
        let (_, wall, cpu, rss) = timed(Command::new("rsync").args(["-a", "--whole-file"]).arg(from).arg(out))?;
        std::thread::sleep(Duration::from_millis(50)); // the daemon waits for its child, whose time then counts
        Ok(Outcome {
            wall,
            cpu_destination: cpu,
            cpu_source: cpu_of(pid) - before,
            rss_source: peak_rss(pid),
            rss_destination: rss,
            ..Outcome::default()
        })
    }
}

struct Cp {
    source: PathBuf,
}

impl Candidate for Cp {
    fn name(&self) -> &str {
        "cp"
    }

    fn run(&mut self, out: &Path) -> Fallible<Outcome> {
        let (_, wall, cpu, rss) = timed(Command::new("cp").arg("-a").arg(&self.source).arg(out))?;
        Ok(Outcome { wall, cpu_destination: cpu, rss_destination: rss, ..Outcome::default() })
    }
}

/// Memory to memory: what TCP alone does here.
struct Iperf {
    name: &'static str,
    congestion: Option<&'static str>,
    bytes: u64,
}

impl Candidate for Iperf {
    fn name(&self) -> &str {
        self.name
    }

    fn moves_files(&self) -> bool {
        false
    }

    fn run(&mut self, _out: &Path) -> Fallible<Outcome> {
        let port = free_port()?.to_string();
        let server = Command::new("iperf3")
            .args(["-s", "-B", "127.0.0.1", "-p", &port])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let server = Server(server);
        std::thread::sleep(Duration::from_millis(200));
        let before = cpu_of(server.0.id());
        let mut client = Command::new("iperf3");
        client.args(["-c", "127.0.0.1", "-p", &port, "-P", "4", "-J", "-n", &self.bytes.to_string()]);
        if let Some(name) = self.congestion {
            client.args(["-C", name]);
        }
        let (stdout, _, cpu, rss) = timed(&mut client)?;
        let result: Value = serde_json::from_slice(&stdout)?;
        // Its own clock: the control connection's start is not part of what it measures.
        let wall = result["end"]["sum_received"]["seconds"].as_f64().ok_or("no seconds in iperf3's answer")?;
        Ok(Outcome {
            wall,
            cpu_source: cpu,
            cpu_destination: cpu_of(server.0.id()) - before,
            rss_source: rss,
            rss_destination: peak_rss(server.0.id()),
            ..Outcome::default()
        })
    }
}
