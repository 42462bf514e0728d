//! The candidates of `transfer.rs`, their test data, and what is measured of them.

mod chart;
mod pair;
mod peers;
mod same;
mod scale;
mod watch;
mod work;

use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub use chart::{table, write_results};
pub use pair::pair_role;
use pair::{How, Loop, Pair};
pub use same::same_tree;
pub use scale::Scale;
pub use watch::Watch;
use watch::{Timed, cpu_of_ended, peak_rss, timed};
pub use work::Work;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// What a candidate promises when it says that it is done.
#[derive(Clone, Copy)]
pub struct Traits {
    /// What it compares.
    pub verify: &'static str,
    /// What it syncs by itself. On a disk the harness syncs what is left and counts the time.
    pub durable: &'static str,
    pub encrypted: bool,
}

/// What one run came to.
#[derive(Clone, Default)]
pub struct Outcome {
    pub bytes: u64,
    pub files: u64,
    pub wall: f64,
    pub cpu_source: f64,
    pub cpu_destination: f64,
    pub rss_source: u64,
    pub rss_destination: u64,
    /// Bytes of huge pages at their most, source and destination; none: not looked at.
    pub huge: (Option<u64>, Option<u64>),
    /// Bytes that the kernel held for TCP sockets at their most, of the whole machine.
    pub tcp: u64,
    pub limiter: String,
    /// Latency of a chunk, ns: median and 99th percentile.
    pub chunk_ns: Option<(u64, u64)>,
    pub checked: bool,
    /// What else there is to say of a run, or null.
    pub more: Value,
}

impl Outcome {
    /// CPU seconds of both ends per GiB.
    pub fn cost(&self) -> f64 {
        (self.cpu_source + self.cpu_destination) / (self.bytes as f64 / (1u64 << 30) as f64)
    }

    pub fn json(&self, work: Work, candidate: &dyn Candidate, round: usize) -> Value {
        let gib = self.bytes as f64 / (1u64 << 30) as f64;
        json!({
            "work": work.name(), "candidate": candidate.name(), "round": round, "bytes": self.bytes, "files": self.files,
            "wall_s": self.wall, "gbit_s": self.bytes as f64 * 8e-9 / self.wall, "files_s": self.files as f64 / self.wall,
            "cpu_s_per_gib": { "source": self.cpu_source / gib, "destination": self.cpu_destination / gib },
            "rss_bytes": { "source": self.rss_source, "destination": self.rss_destination },
            "huge_pages_bytes": { "source": self.huge.0, "destination": self.huge.1 }, "kernel_tcp_bytes": self.tcp,
            "limiter": self.limiter, "encrypted": candidate.traits().encrypted, "verify": candidate.traits().verify,
            "durable": candidate.traits().durable, "bytes_compared": self.checked,
            "chunk_latency_ns": self.chunk_ns.map(|(p50, p99)| json!({ "p50": p50, "p99": p99 })),
            "more": self.more, "load": fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next(),
        })
    }
}

/// One way to move a tree.
pub trait Candidate {
    fn name(&self) -> &str;
    fn traits(&self) -> Traits;
    /// The candidate that the table sets it beside.
    fn beside(&self) -> Option<&str> {
        None
    }
    /// iperf3 moves none.
    fn moves_files(&self) -> bool {
        true
    }
    /// Moves the source into the empty directory `out`, under its own name.
    fn run(&mut self, out: &Path) -> Fallible<Outcome>;
}

/// Which candidates, beyond the usual ones.
pub struct Field {
    /// Other tools than rsync and cp too.
    pub peers: bool,
    /// Programs that are not installed: name and path.
    pub named: Vec<(String, PathBuf)>,
    /// The yardsticks go by O_DIRECT: the source is on a disk and cold.
    pub direct: bool,
    /// Longhaul beside itself.
    pub scale: Scale,
}

/// What can run here for this work; says what cannot.
pub fn candidates(work: Work, base: &Path, source: &Path, field: &Field) -> Result<Vec<Box<dyn Candidate>>, String> {
    let mut all: Vec<Box<dyn Candidate>> = Vec::new();
    let text = |e: Box<dyn std::error::Error>| e.to_string();
    let digest = How { digest: true, ..How::default() };
    match work {
        Work::Big if field.direct => {
            let direct = How { direct: true, ..How::default() };
            all.push(Box::new(Pair::new("pair-direct", direct, source)));
            all.push(Box::new(Pair::new("pair-direct-1", How { single: true, ..direct }, source)));
        }
        Work::Big | Work::Medium | Work::Small => {
            all.push(Box::new(Pair::new("pair", digest, source)));
            all.push(Box::new(Pair::new("pair-sealed", How { cipher: true, ..digest }, source)));
            if work == Work::Big {
                let warm = How { warm: true, ..digest };
                all.push(Box::new(Pair::new("pair-warm", warm, source)));
                all.push(Box::new(Pair::new("pair-sealed-warm", How { cipher: true, ..warm }, source)));
            }
        }
        Work::One => {}
    }
    if work == Work::Small {
        all.push(Box::new(Loop::new(source)));
    }
    let root = source.parent().expect("made by us");
    for engine in ["auto", "epoll"] {
        let state = base.join(format!("state-{}-{engine}", work.name()));
        let agent = std::rc::Rc::new(Agent::start(root, &state, engine).map_err(text)?);
        for encrypt in [false, true] {
            let disk = if field.direct { &["wire", "disk"][..] } else { &["wire"] };
            for verify in disk {
                all.push(Box::new(Longhaul::new(engine, encrypt, verify, agent.clone(), source)));
            }
        }
    }
    if work == Work::Big {
        all.extend(scale::candidates(&field.scale, base, source).map_err(text)?);
    }
    if has("rsync") {
        all.push(Box::new(Rsync::start(base, source).map_err(text)?));
    } else {
        eprintln!("rsync is not installed: left out");
    }
    all.push(Box::new(Cp { source: source.to_owned() }));
    if field.peers && work != Work::One {
        all.extend(peers::peers(work, base, source, &field.named).map_err(text)?);
    }
    if work == Work::Big && has("iperf3") {
        let bytes = fs::metadata(source).map_err(|e| e.to_string())?.len();
        all.push(Box::new(Iperf { name: "iperf3-P2", congestion: None, bytes }));
        all.push(Box::new(Iperf { name: "iperf3-P2-cubic", congestion: Some("cubic"), bytes }));
    } else if work == Work::Big {
        eprintln!("iperf3 is not installed: left out");
    }
    Ok(all)
}

/// Whether a program is in the path, or where the distributions keep servers.
fn has(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(tool).is_file())
}

/// Writes and removes as much as will be written: a virtual machine that gives free pages back to its host pays for the
/// first touch of each, and who comes first would pay for all.
pub fn prepare_memory(base: &Path, bytes: u64) -> io::Result<()> {
    let at = base.join("warm");
    fill(&at, bytes)?;
    fs::remove_file(&at)
}

/// A file of so many bytes, all alike.
fn fill(at: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(at)?;
    let block = vec![1; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let step = left.min(block.len() as u64);
        file.write_all(&block[..step as usize])?;
        left -= step;
    }
    Ok(())
}

/// Everything that is clean leaves the page cache. Needs root.
pub fn drop_caches() -> io::Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3")
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

/// CPU seconds of a process group so far, with the children that each of it has waited for.
fn cpu_of(group: u32) -> f64 {
    let mut ticks = 0;
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.filter(|p| p.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit)) {
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // The name in brackets may hold blanks: fields are counted behind it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        if fields.get(2).and_then(|f| f.parse().ok()) == Some(group) {
            ticks += fields.iter().skip(11).take(4).filter_map(|f| f.parse::<u64>().ok()).sum::<u64>();
        }
    }
    ticks as f64 / 100.0
}

fn free_port() -> io::Result<u16> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr().map(|a| a.port())
}

/// A server of ours, in a process group of its own, that ends with its candidate.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Fallible<Self> {
        let child = command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(Self::of(child.map_err(|e| format!("{}: {e}", command.get_program().to_string_lossy()))?))
    }

    fn of(child: Child) -> Self {
        servers().push(child.id());
        Self(child)
    }

    fn cpu(&self) -> f64 {
        cpu_of(self.0.id())
    }
}

/// The groups of all servers that run.
fn servers() -> std::sync::MutexGuard<'static, Vec<u32>> {
    static ALL: std::sync::Mutex<Vec<u32>> = std::sync::Mutex::new(Vec::new());
    ALL.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A signal at the terminal reaches this process only: it takes its servers along, and the directory that `state` lies in.
fn end_with_us(state: &Path) {
    use nix::sys::signal::{SigSet, Signal, killpg};
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
        if signals.thread_block().is_err() {
            return;
        }
        let scratch = state.parent().map(Path::to_owned);
        std::thread::spawn(move || {
            let _ = signals.wait();
            for group in servers().iter() {
                let _ = killpg(nix::unistd::Pid::from_raw(*group as i32), Signal::SIGKILL);
            }
            if let Some(scratch) = scratch {
                let _ = fs::remove_dir_all(scratch);
            }
            std::process::exit(130);
        });
    });
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.0.id() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(50));
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
        servers().retain(|other| *other != self.0.id());
    }
}

struct Agent {
    server: Server,
    http: String,
    token: PathBuf,
}

impl Agent {
    fn start(root: &Path, state: &Path, engine: &str) -> Fallible<Self> {
        fs::create_dir_all(state)?;
        end_with_us(state);
        let mut child = Command::new(env!("CARGO_BIN_EXE_longhaul"))
            .args(["agent", "--http", "127.0.0.1:0", "--data", "127.0.0.1:0", "--encrypt", "off", "--engine", engine])
            .arg("--root")
            .arg(root)
            .arg("--state")
            .arg(state)
            .arg("--log")
            .arg(state.join("log"))
            .arg("--transfer-log")
            .arg(state.join("transfers"))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line)?;
        let field = |name: &str| ready[name].as_str().map(str::to_owned).ok_or(format!("no {name} in {line}"));
        Ok(Self { http: field("http")?, token: field("token_file")?.into(), server: Server::of(child) })
    }
}

/// An agent as source, `longhaul cp` as destination.
struct Longhaul {
    name: String,
    engine: &'static str,
    encrypt: bool,
    verify: &'static str,
    /// As many as the engine chooses, if none.
    streams: Option<u16>,
    beside: Option<String>,
    agent: std::rc::Rc<Agent>,
    source: PathBuf,
}

impl Longhaul {
    fn new(
        engine: &'static str,
        encrypt: bool,
        verify: &'static str,
        agent: std::rc::Rc<Agent>,
        source: &Path,
    ) -> Self {
        let mut name = "longhaul".to_owned();
        for (apart, word) in [(!encrypt, "-plain"), (verify == "disk", "-disk"), (engine == "epoll", "-epoll")] {
            name.push_str(if apart { word } else { "" });
        }
        let (streams, beside) = (None, None);
        Self { name, engine, encrypt, verify, streams, beside, agent, source: source.to_owned() }
    }

    /// The same with so many streams, under another name.
    fn with(self, streams: u16, suffix: &str, beside: Option<String>) -> Self {
        Self { name: format!("{}{suffix}", self.name), streams: Some(streams), beside, ..self }
    }

    fn command(&self, out: &Path) -> Command {
        let name = self.source.file_name().expect("made by us");
        let encrypt = if self.encrypt { "on" } else { "off" };
        let mut command = Command::new(env!("CARGO_BIN_EXE_longhaul"));
        command.args(["cp", "-r", "--json", "--encrypt", encrypt, "--verify", self.verify, "--engine", self.engine]);
        command.args(self.streams.map(|count| format!("--streams={count}")));
        command.arg("--token-file").arg(&self.agent.token);
        command.arg(format!("lh://{}/{}", self.agent.http, name.to_string_lossy())).arg(out.join(name));
        command
    }

    /// What it came to, and its report.
    fn fetch(&self, out: &Path) -> Fallible<(Outcome, Value)> {
        let server = &self.agent.server;
        let before = server.cpu();
        let ran = timed(&mut self.command(out), &[server.0.id()])?;
        let report: Value = serde_json::from_slice(&ran.stdout)?;
        let latency = &report["chunk_latency_ns"];
        let outcome = Outcome {
            wall: ran.wall,
            cpu_destination: ran.cpu,
            cpu_source: server.cpu() - before,
            rss_source: peak_rss(server.0.id()),
            rss_destination: ran.rss,
            huge: (ran.huge[1], ran.huge[0]),
            limiter: report["limiter"].as_str().unwrap_or_default().to_owned(),
            chunk_ns: latency["p50"].as_u64().zip(latency["p99"].as_u64()),
            ..Outcome::default()
        };
        Ok((outcome, report))
    }
}

impl Candidate for Longhaul {
    fn name(&self) -> &str {
        &self.name
    }

    fn traits(&self) -> Traits {
        let verify = if self.verify == "disk" { "XXH3-128, read back" } else { "XXH3-128 on receipt" };
        Traits { verify, durable: "journal, fdatasync", encrypted: self.encrypt }
    }

    fn beside(&self) -> Option<&str> {
        self.beside.as_deref()
    }

    fn run(&mut self, out: &Path) -> Fallible<Outcome> {
        Ok(self.fetch(out)?.0)
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
        let server = Server::start(
            Command::new("rsync")
                .args(["--daemon", "--no-detach", "--address=127.0.0.1", &format!("--port={port}")])
                .arg(format!("--config={}", config.path().display()))
                .arg("--log-file=/dev/null"),
        )?;
        wait_for(port)?;
        Ok(Self { server, port, source: source.to_owned(), _config: config })
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

    fn traits(&self) -> Traits {
        Traits { verify: "XXH3-128 or MD5 on receipt", durable: "none", encrypted: false }
    }

    fn run(&mut self, out: &Path) -> Fallible<Outcome> {
        let before = self.server.cpu();
        let name = self.source.file_name().expect("made by us").to_string_lossy().into_owned();
        let from = format!("rsync://127.0.0.1:{}/src/{name}", self.port);
        let Timed { wall, cpu, rss, .. } =
            timed(Command::new("rsync").args(["-a", "--whole-file"]).arg(from).arg(out), &[])?;
        std::thread::sleep(Duration::from_millis(50)); // the daemon waits for its child, whose time then counts
        Ok(Outcome {
            wall,
            cpu_destination: cpu,
            cpu_source: self.server.cpu() - before,
            rss_source: peak_rss(self.server.0.id()),
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

    fn traits(&self) -> Traits {
        Traits { verify: "none", durable: "none", encrypted: false }
    }

    fn run(&mut self, out: &Path) -> Fallible<Outcome> {
        let Timed { wall, cpu, rss, .. } = timed(Command::new("cp").arg("-a").arg(&self.source).arg(out), &[])?;
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

    fn traits(&self) -> Traits {
        Traits { verify: "none", durable: "moves no file", encrypted: false }
    }

    fn moves_files(&self) -> bool {
        false
    }

    fn run(&mut self, _out: &Path) -> Fallible<Outcome> {
        let port = free_port()?.to_string();
        let server = Server::start(Command::new("iperf3").args(["-s", "-B", "127.0.0.1", "-p", &port]))?;
        std::thread::sleep(Duration::from_millis(200));
        let before = server.cpu();
        let mut client = Command::new("iperf3");
        client.args(["-c", "127.0.0.1", "-p", &port, "-P", "2", "-J", "-n", &self.bytes.to_string()]);
        if let Some(name) = self.congestion {
            client.args(["-C", name]);
        }
        let Timed { stdout, cpu, rss, .. } = timed(&mut client, &[])?;
        let result: Value = serde_json::from_slice(&stdout)?;
        // Its own clock: the control connection's start is not part of what it measures.
        let wall = result["end"]["sum_received"]["seconds"].as_f64().ok_or("no seconds in iperf3's answer")?;
        Ok(Outcome {
            wall,
            cpu_source: cpu,
            cpu_destination: server.cpu() - before,
            rss_source: rss,
            rss_destination: peak_rss(server.0.id()),
            ..Outcome::default()
        })
    }
}
