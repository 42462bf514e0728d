//! The second half of `longhaul demo`: a main, two sources and a destination. A dataset is registered, asked for, approved by
//! hand and pulled from both sources while one of its files waits on tape; a second request is approved by a rule and pushed.

use super::demo::Stay;
use super::demo_agent::{DemoAgent, Home};
use super::demo_tree::random_file;
use super::fail::{Fail, VERIFICATION};
use super::report::{count, grouped};
use crate::control::access::Role;
use crate::control::client::ClientOptions;
use crate::control::client::service::MainClient;
use crate::control::model::catalog::{Locality, Record};
use crate::control::model::item::ItemView;
use crate::control::model::name::{AgentName, Lfn, RequestId};
use crate::control::model::page::PageQuery;
use crate::control::model::request::{Approval, ApprovalRule, Decision, RequestSpec, RequestView, Verdict};
use crate::control::model::states::{ItemState, RequestState};
use crate::control::state::{StateDir, write_secret};
use crate::control::tokens::{NewToken, TokenStore};
use crate::units::Bytes;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Files of the dataset.
const FILES: u64 = 24;
/// All of them together, at most.
const MAX_BYTES: u64 = 192 << 20;
/// The one that lies on tape, at the second source.
const ON_TAPE: u64 = FILES - 1;
/// The one that is pushed.
const PUSHED: u64 = 0;
/// Between two looks at a request.
const LOOK: Duration = Duration::from_millis(100);
/// The longest that a request may take for its next step.
const PATIENCE: Duration = Duration::from_secs(120);
/// Of an agent, from its ready line until main says that it is there.
const JOIN: Duration = Duration::from_secs(30);
/// Bytes that are compared at once.
const PIECE: usize = 1 << 20;

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub struct Served {
    /// Files of the dataset.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many files each source served.
    pub pulled_from: BTreeMap<String, u64>,
    /// Milliseconds that the file on tape was held.
    pub held_ms: u128,
    /// Files that had arrived when the tape was released.
    pub arrived_before_tape: u64,
    /// Who approved the first request, and the second.
    pub approved_by: Vec<String>,
    /// Bytes of the pushed file.
    pub pushed_bytes: u64,
    /// Replicas that the catalog has at the destination.
    pub registered: u64,
    /// Files that are not what the source has.
    pub different: Vec<String>,
    /// Whether every agent ended in order.
    pub agents_ended_in_order: bool,
}

impl Served {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match () {
            () if !self.different.is_empty() || self.registered != self.files => VERIFICATION,
            () if !self.agents_ended_in_order => 1,
            () => 0,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::from("The service: main, two sources, a destination\n");
        let mut line = |name: &str, value: String| out.push_str(&format!("  {name:<12}{value}\n"));
        let from: Vec<_> = self.pulled_from.iter().map(|(name, n)| format!("{n} from {name}")).collect();
        line("pulled", format!("{} in {}: {}", Bytes(self.bytes), count(self.files, "file"), from.join(", ")));
        line("approved", format!("by {}", self.approved_by.join(", then by ")));
        let held = Duration::from_millis(u64::try_from(self.held_ms).unwrap_or(u64::MAX));
        line(
            "tape",
            format!(
                "one file was held for {:.1} s while {} arrived; released, it came too",
                held.as_secs_f64(),
                count(self.arrived_before_tape, "file")
            ),
        );
        line("pushed", format!("{} in 1 file, uploaded by its source", Bytes(self.pushed_bytes)));
        line("catalog", format!("{} replicas of the dataset at the destination", grouped(self.registered)));
        match &self.different[..] {
            [] => {
                line("compared", format!("{} read on both sides: every byte is equal", count(self.files + 1, "file")))
            }
            names => line("compared", format!("{} DIFFER: {}", grouped(names.len() as u64), names.join(", "))),
        }
        if !self.agents_ended_in_order {
            line("note", "an agent had to be killed at the end".to_owned());
        }
        out
    }
}

/// Where everything of it lies.
#[derive(Debug, Clone)]
struct Stage {
    dir: PathBuf,
    program: PathBuf,
}

impl Stage {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn state(&self, name: &str) -> PathBuf {
        self.at(&format!("{name}-state"))
    }

    /// A token of `agent`'s, in a file of its own.
    fn token(&self, agent: &str, new: &NewToken, file: &Path) -> Result<(), Fail> {
        let failed = |e: &dyn std::fmt::Display| Fail::new(1, format!("cannot make a token: {e}"));
        let state = StateDir::open(&self.state(agent)).map_err(|e| failed(&e))?;
        let text = TokenStore::new(&state).add(new).map_err(|e| failed(&e))?;
        write_secret(file, text.expose().as_bytes()).map_err(|e| failed(&e))
    }

    /// A person's or an agent's token for main.
    fn for_main(&self, name: &str, roles: &[Role]) -> Result<PathBuf, Fail> {
        let file = self.at(&format!("{name}.token"));
        let new = NewToken { name: name.into(), roles: roles.iter().copied().collect(), ..NewToken::default() };
        self.token("main", &new, &file)?;
        Ok(file)
    }

    /// What `of` lets `to` do with its files.
    fn between(&self, of: &str, to: &str) -> Result<(), Fail> {
        let dir = self.at(&format!("{to}-peers"));
        fs::create_dir_all(&dir).map_err(|e| Fail::io("make", &dir, &e))?;
        let new = NewToken {
            name: to.into(),
            prefixes: vec![Default::default()],
            read: true,
            write: true,
            ..NewToken::default()
        };
        self.token(of, &new, &dir.join(of))
    }

    fn home(&self, name: &'static str, roles: &'static str, more: Vec<OsString>) -> Home {
        let root = (roles != "main").then(|| self.at(name));
        let state = self.state(name);
        Home { name, roles, program: self.program.clone(), root, state, encrypt: true, more }
    }
}

/// Who runs. Dropping it kills them.
struct Service {
    main: DemoAgent,
    agents: Vec<DemoAgent>,
}

fn lfn(number: u64) -> String {
    format!("/demo/run1/{number:04}.dat")
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, Fail>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| Fail::new(1, format!("{text}: {e}")))
}

/// Makes the files: even ones at the first source, odd ones at the second, every third at both, the last one on tape.
fn make(stage: &Stage, bytes: u64, stop: &AtomicBool) -> Result<Vec<Record>, Fail> {
    let mut records = Vec::new();
    let each = (bytes.min(MAX_BYTES) / FILES).max(1);
    for number in 0..FILES {
        let own = if number % 2 == 0 && number != ON_TAPE { "source-1" } else { "source-2" };
        let relative = lfn(number)[1..].to_owned();
        let path = stage.at(own).join(&relative);
        let failed = |e| Fail::io("make", &path, &e);
        fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(failed)?;
        random_file(&path, each, 1000 + number, stop).map_err(failed)?;
        let mut agents = vec![own];
        if number % 3 == 0 && number != ON_TAPE {
            let other = if own == "source-1" { "source-2" } else { "source-1" };
            let copy = stage.at(other).join(&relative);
            fs::create_dir_all(copy.parent().unwrap_or(&copy)).map_err(failed)?;
            fs::copy(&path, &copy).map_err(failed)?;
            agents.push(other);
        }
        for agent in agents {
            records.push(Record {
                dataset: Some(parse("/demo/run1")?),
                block: Some(parse(if number < FILES / 2 { "/demo/run1#a" } else { "/demo/run1#b" })?),
                lfn: parse(&lfn(number))?,
                bytes: each,
                digest: None,
                agent: parse(agent)?,
                path: None,
                locality: if number == ON_TAPE { Locality::Offline } else { Locality::Online },
            });
        }
    }
    let library = stage.at("tape");
    fs::create_dir_all(&library).map_err(|e| Fail::io("make", &library, &e))?;
    let mut migrate = Command::new(&stage.program);
    migrate.args(["tape", "migrate", "--library"]).arg(&library).arg(&lfn(ON_TAPE)[1..]);
    let status = migrate.current_dir(stage.at("source-2")).stdin(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(records),
        Ok(status) => Err(Fail::new(1, format!("the tape library ended with {status}"))),
        Err(e) => Err(Fail::io("start", &stage.program, &e)),
    }
}

/// Starts all four. Blocks.
fn start(stage: &Stage) -> Result<Service, Fail> {
    for name in ["source-1", "source-2", "destination"] {
        let root = stage.at(name);
        fs::create_dir_all(&root).map_err(|e| Fail::io("make", &root, &e))?;
    }
    let main = DemoAgent::start(&stage.home("main", "main", Vec::new()))?;
    for (of, to) in [("source-1", "destination"), ("source-2", "destination"), ("destination", "source-1")] {
        stage.between(of, to)?;
    }
    let mut agents = Vec::new();
    for (name, roles) in [("source-1", "source"), ("source-2", "source"), ("destination", "destination")] {
        let token = stage.for_main(name, &[Role::Agent])?;
        let mut more: Vec<OsString> = vec!["--name".into(), name.into(), "--main".into(), main.url().into()];
        more.extend(["--main-token-file".into(), token.into()]);
        more.extend(["--peer-tokens".into(), stage.at(&format!("{name}-peers")).into()]);
        if name == "source-2" {
            more.extend(["--stage-rule".into(), "sidecar".into()]);
            let (library, gate) = (stage.at("tape").into_os_string(), stage.at("tape-gate").into_os_string());
            let program = stage.program.clone().into_os_string();
            let words = [program, "tape".into(), "recall".into(), "--library".into(), library, "--gate".into(), gate];
            more.extend(words.into_iter().flat_map(|word| ["--stage-command".into(), word]));
        }
        agents.push(DemoAgent::start(&stage.home(name, roles, more))?);
    }
    Ok(Service { main, agents })
}

impl Service {
    fn client(&self, token: &Path) -> Result<MainClient, Fail> {
        let options = ClientOptions { token_file: Some(token.to_owned()), ..ClientOptions::default() };
        Ok(MainClient::new(self.main.client_with("/", options)?))
    }
}

/// Waits until `enough`; the request as it is then.
async fn until(
    main: &MainClient,
    id: RequestId,
    what: &str,
    enough: impl Fn(&RequestView) -> bool,
) -> Result<RequestView, Fail> {
    let began = Instant::now();
    loop {
        let request = main.request(id).await?;
        if enough(&request) {
            return Ok(request);
        }
        if request.state.has_ended() || began.elapsed() > PATIENCE {
            let why = request.reason.as_deref().unwrap_or("no reason is known");
            return Err(Fail::new(1, format!("{id} is {}, not {what}: {why}", request.state)));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn joined(main: &MainClient) -> Result<(), Fail> {
    let began = Instant::now();
    while main.agents().await?.iter().filter(|agent| agent.alive).count() < 3 {
        if began.elapsed() > JOIN {
            return Err(Fail::new(1, format!("not all agents joined main within {} s", JOIN.as_secs())));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

async fn items(main: &MainClient, id: RequestId) -> Result<Vec<ItemView>, Fail> {
    let page = PageQuery { cursor: None, limit: Some(1000) };
    Ok(main.items(id, None, &page).await?.items)
}

fn spec(value: serde_json::Value) -> Result<RequestSpec, Fail> {
    serde_json::from_value(value).map_err(|e| Fail::new(1, e.to_string()))
}

/// Runs it in `dir`, with files of `bytes` together. It may stay up, so that the page can be looked at.
pub async fn story(
    dir: &Path,
    program: &Path,
    bytes: u64,
    stay: &Stay,
    stop: &std::sync::Arc<AtomicBool>,
) -> Result<Served, Fail> {
    let stage = Stage { dir: dir.to_owned(), program: program.to_owned() };
    fs::create_dir(dir).map_err(|e| Fail::io("make", dir, &e))?;
    let (records, service) = super::demo::blocking({
        let (stage, stop) = (stage.clone(), stop.clone());
        move || {
            let records = make(&stage, bytes, &stop)?;
            Ok((records, start(&stage)?))
        }
    })
    .await?;
    let operator = service.client(&stage.for_main("olga", &[Role::Operator])?)?;
    let submitter = service.client(&stage.for_main("ada", &[Role::Submitter])?)?;
    let approver = service.client(&stage.for_main("boris", &[Role::Approver])?)?;
    let look = stage.for_main("visitor", &[Role::Viewer, Role::Submitter, Role::Approver, Role::Operator])?;
    joined(&operator).await?;
    eprintln!(
        "A main, two sources and a destination run. Its page: http://{}/  (log in with what stands in {})",
        service.main.address(),
        super::fail::show(&look)
    );
    let served = walk(&stage, &operator, &submitter, &approver, &records).await?;
    if stay.wanted {
        eprintln!("{}The page stays up until Ctrl-C.", served.text());
        stay.up.store(true, Ordering::Relaxed);
        stay.enough.notified().await;
    }
    let ended = super::demo::blocking(move || {
        let Service { main, agents } = service;
        let mut ended = true;
        for agent in agents {
            ended &= agent.stop();
        }
        Ok(ended & main.stop())
    })
    .await?;
    Ok(Served { agents_ended_in_order: ended, ..served })
}

async fn walk(
    stage: &Stage,
    operator: &MainClient,
    submitter: &MainClient,
    approver: &MainClient,
    records: &[Record],
) -> Result<Served, Fail> {
    let each = records[0].bytes;
    operator.add_records(records).await?;
    eprintln!("Registered {} of the dataset /demo/run1; one lies on tape.", count(FILES, "file"));
    let rule = ApprovalRule {
        name: "single files".into(),
        owner: None,
        dataset_prefix: Some(parse("/demo")?),
        destination: None,
        max_bytes: Some(each),
        then: Approval::Automatic,
    };
    operator.set_rules(&[rule]).await?;

    let asked = spec(json!({
        "select": {"dataset": "/demo/run1"}, "destinations": ["destination"], "verify": "disk", "model": "pull",
        "comment": "The demo's dataset, from wherever it is",
    }))?;
    let id = submitter.create(&asked, "demo-1").await?.id;
    let waits = until(submitter, id, "waiting for approval", |r| r.state == RequestState::PendingApproval).await?;
    let reason = waits.reason.clone().unwrap_or_default();
    eprintln!(
        "ada asked for all of it: {} in {}; {reason}.",
        Bytes(waits.counters.bytes),
        count(waits.counters.files, "file")
    );
    let digest = waits.digest.clone().unwrap_or_default();
    let decision = Decision { decision: Verdict::Approve, digest, comment: Some("looks right".into()) };
    approver.decide(id, waits.version, &decision).await?;
    eprintln!("boris approved it. The destination pulls from both sources.");

    let held =
        until(submitter, id, "held by the tape", |r| r.counters.holding == 1 && r.counters.done == FILES - 1).await?;
    let on_hold = items(submitter, id).await?.into_iter().find(|item| item.state == ItemState::Hold);
    let on_hold = on_hold.ok_or_else(|| Fail::new(1, "the file on tape is not held"))?;
    eprintln!(
        "{} of {FILES} files are there; {} is held: its tape is not mounted. Mounting it.",
        held.counters.done, on_hold.lfn
    );
    let gate = stage.at("tape-gate");
    File::create(&gate).map_err(|e| Fail::io("make", &gate, &e))?;
    let done = until(submitter, id, "done", |r| r.state == RequestState::Succeeded).await?;
    let all = items(submitter, id).await?;
    let taken = all
        .iter()
        .find(|item| item.id == on_hold.id)
        .and_then(|item| Some((item.changed.0 - on_hold.hold_since?.0).max(0)));
    let mut pulled_from = BTreeMap::new();
    for item in &all {
        *pulled_from
            .entry(item.source.as_ref().map_or_else(|| "nobody".to_owned(), AgentName::to_string))
            .or_insert(0) += 1;
    }

    let asked = spec(json!({
        "select": {"files": [lfn(PUSHED)]}, "destinations": ["destination"], "path": "/pushed", "model": "push",
        "source": {"agents": ["source-1"]}, "verify": "disk",
    }))?;
    let second = submitter.create(&asked, "demo-2").await?.id;
    let pushed = until(submitter, second, "done", |r| r.state == RequestState::Succeeded).await?;
    eprintln!("A second request, for one file, needed nobody: a rule approved it, and its source pushed it.");

    let approved_by = [&done, &pushed].iter().flat_map(|r| r.decisions.iter().map(|d| d.by.clone())).collect();
    let registered = registered(operator, records).await?;
    let different = super::demo::blocking({
        let stage = stage.clone();
        move || compare(&stage)
    })
    .await?;
    Ok(Served {
        files: FILES,
        bytes: done.counters.bytes,
        pulled_from,
        held_ms: u128::from(taken.unwrap_or_default().unsigned_abs()),
        arrived_before_tape: held.counters.done,
        approved_by,
        pushed_bytes: pushed.counters.done_bytes,
        registered,
        different,
        // Not yet.
        agents_ended_in_order: true,
    })
}

/// Files of the dataset that the catalog knows at the destination, with a digest.
async fn registered(main: &MainClient, records: &[Record]) -> Result<u64, Fail> {
    let mut names: Vec<&Lfn> = records.iter().map(|record| &record.lfn).collect();
    names.dedup();
    let mut n = 0;
    for name in names {
        let file = main.file(name).await?;
        n += u64::from(file.digest.is_some() && file.replicas.iter().any(|r| r.agent.as_str() == "destination"));
    }
    Ok(n)
}

/// Reads every file on both sides. Names of those that are not equal.
fn compare(stage: &Stage) -> Result<Vec<String>, Fail> {
    let mut different = Vec::new();
    let here = |number: u64| {
        let relative = lfn(number)[1..].to_owned();
        ["source-1", "source-2", "tape"].iter().map(|name| stage.at(name).join(&relative)).find(|path| path.exists())
    };
    let arrived = (0..FILES).map(|n| (n, stage.at("destination").join(&lfn(n)[1..])));
    let pushed = (PUSHED, stage.at("destination/pushed").join(&lfn(PUSHED)[1..]));
    for (number, there) in arrived.chain([pushed]) {
        let equal = match here(number) {
            Some(here) => same(&here, &there).map_err(|e| Fail::io("compare", &there, &e))?,
            None => false,
        };
        if !equal {
            different.push(super::fail::show(&there));
        }
    }
    Ok(different)
}

fn same(left: &Path, right: &Path) -> std::io::Result<bool> {
    let right = match File::open(right) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    let (mut left, mut right) =
        (BufReader::with_capacity(PIECE, File::open(left)?), BufReader::with_capacity(PIECE, right));
    let (mut a, mut b) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        let n = left.read(&mut a)?;
        if n == 0 {
            return Ok(right.read(&mut b)? == 0);
        }
        if let Err(e) = right.read_exact(&mut b[..n]) {
            return if e.kind() == std::io::ErrorKind::UnexpectedEof { Ok(false) } else { Err(e) };
        }
        if a[..n] != b[..n] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_compared_whole() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let long = vec![7; PIECE + 3];
        let left = at("left", &long);
        let mut last = long.clone();
        last[PIECE + 2] = 8;
        assert!(same(&left, &at("equal", &long)).unwrap());
        for (name, bytes) in
            [("last", &last[..]), ("short", &long[..PIECE]), ("longer", &[&long[..], &[7]].concat()), ("none", &[])]
        {
            assert!(!same(&left, &at(name, bytes)).unwrap(), "{name}");
        }
        assert!(!same(&left, &dir.path().join("missing")).unwrap());
    }

    #[test]
    fn zero_only_if_every_file_is_there_and_equal() {
        let good = Served { files: 3, registered: 3, agents_ended_in_order: true, ..Served::default() };
        assert_eq!(good.code(), 0);
        assert_eq!(Served { registered: 2, files: 3, agents_ended_in_order: true, ..Served::default() }.code(), 6);
        let differs = Served { files: 3, registered: 3, different: vec!["x".into()], ..Served::default() };
        assert!(differs.code() == 6 && differs.text().contains("1 DIFFER: x"), "{}", differs.text());
        assert_eq!(Served { files: 3, registered: 3, ..Served::default() }.code(), 1);
    }
}
