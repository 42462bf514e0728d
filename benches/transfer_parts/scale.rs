//! Longhaul beside itself: more streams, more transfers at once, a run that was killed half-way.

use super::{Agent, Candidate, Fallible, Longhaul, Outcome, Traits, Watch, peak_rss, same_tree};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What is tried beside the usual.
#[derive(Clone, Default)]
pub struct Scale {
    /// Streams of one transfer.
    pub streams: Vec<u16>,
    /// Transfers at once, which share the bytes.
    pub at_once: Vec<usize>,
    /// Killed at half, then run again.
    pub resume: bool,
}

/// A run is ended at half of its bytes; asked for so often.
const LOOK: Duration = Duration::from_millis(5);
/// No run takes longer.
const LONGEST: Duration = Duration::from_secs(600);

/// Those that were asked for, each encrypted and not.
pub fn candidates(scale: &Scale, base: &Path, source: &Path) -> Fallible<Vec<Box<dyn Candidate>>> {
    let mut all: Vec<Box<dyn Candidate>> = Vec::new();
    if scale.streams.is_empty() && scale.at_once.is_empty() && !scale.resume {
        return Ok(all);
    }
    let root = source.parent().expect("made by us");
    let agent = Rc::new(Agent::start(root, &base.join("state-scale"), "auto")?);
    for encrypt in [false, true] {
        let kind = if encrypt { "longhaul" } else { "longhaul-plain" };
        let one = || Longhaul::new("auto", encrypt, "wire", agent.clone(), source);
        for streams in &scale.streams {
            let first = scale.streams.first().filter(|first| *first != streams).map(|first| format!("{kind}-s{first}"));
            all.push(Box::new(one().with(*streams, &format!("-s{streams}"), first)));
        }
        if scale.resume {
            all.push(Box::new(one().with(2, "-whole", None)));
            all.push(Box::new(Resume(one().with(2, "-resume", Some(format!("{kind}-whole"))))));
        }
        if let Some(first) = scale.at_once.first() {
            let landing = base.join("landing");
            fs::create_dir_all(&landing)?;
            let state = base.join(format!("state-scale-to-{kind}"));
            let to = Rc::new(Agent::start(&landing, &state, "auto")?);
            for count in &scale.at_once {
                let beside = (count != first).then(|| format!("{kind}-x{first}"));
                let name = format!("{kind}-x{count}");
                all.push(Box::new(AtOnce::new(*count, encrypt, name, beside, &agent, &to, &landing, source)?));
            }
        }
    }
    Ok(all)
}

/// Killed when half of the bytes were sent, and run again: the second run is timed.
struct Resume(Longhaul);

impl Candidate for Resume {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn beside(&self) -> Option<&str> {
        self.0.beside()
    }

    fn traits(&self) -> Traits {
        self.0.traits()
    }

    fn run(&mut self, out: &Path) -> Fallible<Outcome> {
        let size = fs::metadata(&self.0.source)?.len();
        let agent = &self.0.agent;
        let sent_before = agent.sent()?;
        let mut first = self.0.command(out).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let began = Instant::now();
        while agent.running()? < size / 2 && first.try_wait()?.is_none() && began.elapsed() < LONGEST {
            std::thread::sleep(LOOK);
        }
        first.kill()?;
        if first.wait()?.success() {
            return Err("the first run ended before it could be killed: take a larger --size".into());
        }
        // The source counts what it has sent when the session has ended.
        while agent.sent()? == sent_before && began.elapsed() < LONGEST {
            std::thread::sleep(LOOK);
        }
        let first_sent = agent.sent()? - sent_before;
        let (mut outcome, report) = self.0.fetch(out)?;
        let second_sent = report["sent_bytes"].as_u64().ok_or("no sent_bytes in the report")?;
        outcome.more = json!({
            "size": size, "sent_bytes": first_sent + second_sent, "resumed_bytes": report["resumed_bytes"],
            "sent_beyond_size": (first_sent + second_sent).saturating_sub(size),
        });
        Ok(outcome)
    }
}

/// Many transfers between two agents: their workers are shared.
struct AtOnce {
    name: String,
    beside: Option<String>,
    encrypt: bool,
    from: Rc<Agent>,
    to: Rc<Agent>,
    landing: PathBuf,
    /// The files, and the URL of each.
    parts: Vec<(PathBuf, String)>,
}

impl AtOnce {
    #[allow(clippy::too_many_arguments)] // a list of what it holds
    fn new(
        count: usize,
        encrypt: bool,
        name: String,
        beside: Option<String>,
        from: &Rc<Agent>,
        to: &Rc<Agent>,
        landing: &Path,
        source: &Path,
    ) -> Fallible<Self> {
        let dir = format!("parts-{count}");
        let at = source.with_file_name(&dir);
        if !at.exists() {
            fs::create_dir(&at)?;
            let size = fs::metadata(source)?.len();
            let mut file = fs::File::open(source)?;
            for number in 0..count as u64 {
                let bytes = size * (number + 1) / count as u64 - size * number / count as u64;
                std::io::copy(&mut (&mut file).take(bytes), &mut fs::File::create(at.join(format!("p{number}")))?)?;
            }
        }
        let url = |number| (at.join(format!("p{number}")), format!("{dir}/p{number}"));
        let parts = (0..count).map(url).collect();
        let (from, to, landing) = (from.clone(), to.clone(), landing.to_owned());
        Ok(Self { name, beside, encrypt, from, to, landing, parts })
    }
}

impl Candidate for AtOnce {
    fn name(&self) -> &str {
        &self.name
    }

    fn beside(&self) -> Option<&str> {
        self.beside.as_deref()
    }

    fn traits(&self) -> Traits {
        Traits { verify: "XXH3-128 on receipt", durable: "journal, fdatasync", encrypted: self.encrypt }
    }

    /// What arrived lies in the other agent's root: compared here.
    fn moves_files(&self) -> bool {
        false
    }

    fn run(&mut self, _out: &Path) -> Fallible<Outcome> {
        let dir = tempfile::Builder::new().prefix("at-once-").tempdir_in(&self.landing)?;
        let landing = dir.path().file_name().expect("made just now").to_string_lossy().into_owned();
        let before = (self.from.server.cpu(), self.to.server.cpu());
        let watch = Watch::start(&[self.from.server.0.id(), self.to.server.0.id()]);
        let began = Instant::now();
        let mut running = Vec::new();
        for (number, (_, from)) in self.parts.iter().enumerate() {
            let mut command = Command::new(env!("CARGO_BIN_EXE_longhaul"));
            command.args(["cp", "--json", "--verify", "wire", "--encrypt", if self.encrypt { "on" } else { "off" }]);
            command.arg("--token-file").arg(&self.to.token).arg("--source-token-file").arg(&self.from.token);
            command.arg(format!("lh://{}/{from}", self.from.http));
            command.arg(format!("lh://{}/{landing}/p{number}", self.to.http));
            running.push(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
        }
        let mut rates = Vec::new();
        for child in running {
            let output = child.wait_with_output()?;
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
            }
            let report: Value = serde_json::from_slice(&output.stdout)?;
            rates.push(report["bits_per_second"].as_f64().ok_or("no rate in the report")?);
        }
        let wall = began.elapsed().as_secs_f64();
        let peaks = watch.end();
        for (number, (from, _)) in self.parts.iter().enumerate() {
            if !same_tree(from, &dir.path().join(format!("p{number}")))? {
                return Err(format!("part {number}: the copy differs from its source").into());
            }
        }
        let (sum, squares) = (rates.iter().sum::<f64>(), rates.iter().map(|rate| rate * rate).sum::<f64>());
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rates.iter().copied().fold(0.0, f64::max);
        Ok(Outcome {
            wall,
            cpu_source: self.from.server.cpu() - before.0,
            cpu_destination: self.to.server.cpu() - before.1,
            rss_source: peak_rss(self.from.server.0.id()),
            rss_destination: peak_rss(self.to.server.0.id()),
            huge: (peaks.huge[0], peaks.huge[1]),
            checked: true,
            more: json!({
                "jain": sum * sum / (rates.len() as f64 * squares),
                "gbit_s_of_one": { "least": least / 1e9, "most": most / 1e9 },
            }),
            ..Outcome::default()
        })
    }
}

impl Agent {
    /// The answer to a request.
    fn get(&self, path: &str) -> Fallible<String> {
        let token = fs::read_to_string(&self.token)?;
        let mut stream = TcpStream::connect(&self.http)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let token = token.trim();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\r\n", self.http)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no end of the answer's head")?;
        if !head.contains(" 200 ") {
            return Err(format!("{path}: {}", head.lines().next().unwrap_or_default()).into());
        }
        Ok(body.to_owned())
    }

    /// Payload that ended sessions have sent.
    fn sent(&self) -> Fallible<u64> {
        let metrics = self.get("/metrics")?;
        let value = metrics.lines().find_map(|line| line.strip_prefix("longhaul_sent_bytes_total "));
        Ok(value.ok_or("no longhaul_sent_bytes_total")?.trim().parse()?)
    }

    fn transfers(&self) -> Fallible<Vec<Value>> {
        let mut answer: Value = serde_json::from_str(&self.get("/v1/transfers")?)?;
        Ok(answer["transfers"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Bytes that the one session that runs has sent; none runs: 0.
    fn running(&self) -> Fallible<u64> {
        let all = self.transfers()?;
        let mut live = all.iter().filter(|transfer| transfer["report"].is_null());
        Ok(live.next().and_then(|transfer| transfer["snapshot"]["bytes"].as_u64()).unwrap_or(0))
    }
}
