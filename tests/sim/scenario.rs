//! One seed: a tree, a network, a transfer, what befalls it, and whether every rule held.

use crate::checker::{Checker, OUT};
use crate::cut::{Survival, cut};
use crate::disk::{Disk, Trouble};
use crate::host::{Build, DESTINATION, Directory, Host, SOURCE};
use crate::net::{Net, Weather};
use crate::rng::Rng;
use crate::tree::{SHAPES, Tree, place, tree};
use crate::world::{Clock, World};
use longhaul::disk::{ProbeCache, Root};
use longhaul::engine::spec::{
    Access, DestinationSpec, Grant, IfExists, Report, SourceSpec, TransferOptions, Verdict, Verify,
};
use longhaul::engine::{destination, source};
use longhaul::relpath::RelPath;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// Faults that a seed may have. Each occurs in at least a fifth of the seeds.
pub const FAULTS: &[&str] = &[
    "connection reset",
    "connection closed",
    "black hole",
    "half open",
    "slow stream",
    "damage",
    "control cut",
    "partition",
    "connection refused",
    "destination killed",
    "destination power cut",
    "source killed",
    "clock jump",
    "disk stall",
    "disk full",
    "write error",
    "read error",
    "sync error",
    "journal sync error",
    "directory sync error",
    "rename error",
    "short write",
    "short read",
    "slow call",
    "unsynced write lost",
    "torn write",
    "directory entry lost",
];

/// What a seed has come to.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub seed: u64,
    pub broken: Option<String>,
    pub trace: (u64, u64),
    pub counts: BTreeMap<&'static str, u64>,
    pub last: Vec<String>,
    pub virtual_time: Duration,
    pub bytes: u64,
    pub sent: u64,
}

/// A fault at its time.
type Planned = (Duration, &'static str);

struct Scenario {
    tree: &'static Tree,
    weather: Weather,
    build: Build,
    push: bool,
    options: TransferOptions,
    plan: Vec<Planned>,
    /// Faults end then.
    calm_at: Duration,
}

/// The longest that a transfer may take once nothing befalls it any more.
const PATIENCE: Duration = Duration::from_secs(900);

fn choose(seed: u64, faults: bool) -> Scenario {
    let mut rng = Rng::new(seed, "scenario");
    let tree = tree(rng.range(0..SHAPES));
    let bytes_per_sec = rng.pick(&[1_500_000, 5_000_000, 20_000_000, 200_000_000]);
    let weather = Weather {
        latency: Duration::from_micros(rng.pick(&[100, 400, 5_000, 40_000])),
        jitter_us: rng.pick(&[0, 500, 5_000]),
        bytes_per_sec,
        capacity: rng.pick(&[32 << 10, 128 << 10, 512 << 10]),
        segment: usize::MAX,
    };
    let block = rng.pick(&[64 << 10, 256 << 10, 1 << 20]);
    let build = Build { workers: rng.range(1..3) as usize, block, slots: rng.pick(&[16, 40]) };
    let options = TransferOptions {
        streams: Some(rng.range(1..5) as u16),
        block,
        verify: rng.pick(&[Verify::Wire, Verify::Wire, Verify::Disk]),
        encrypt: rng.pick(&[Some(true), Some(false)]),
        if_exists: rng.pick(&[IfExists::Prove, IfExists::Error, IfExists::Replace]),
        recursive: true,
        ..TransferOptions::default()
    };
    // Where the transfer would be through by itself, with time for the commits.
    let about = Duration::from_millis(400 + tree.bytes * 1_000 / bytes_per_sec / 2);
    let mut plan: Vec<Planned> = Vec::new();
    if faults {
        for kind in &FAULTS[..21] {
            let often = match *kind {
                // Data streams must be up for these, and the transfer under way.
                "connection reset" | "connection closed" | "slow stream" | "damage" => 50,
                "black hole" | "half open" | "partition" | "disk stall" => 36,
                "connection refused" => 0,
                "destination power cut" => 75,
                _ => 45,
            };
            if rng.percent(often) {
                let at = Duration::from_millis(rng.range(0..(about.as_millis() as u64 * 2).max(1)));
                plan.push((at, *kind));
            }
        }
    }
    plan.sort();
    let calm_at = plan.last().map_or(Duration::ZERO, |(at, _)| *at) + Duration::from_secs(rng.range(1..30));
    Scenario { tree, weather, build, push: rng.percent(40), options, plan, calm_at }
}

struct Run {
    world: Rc<World>,
    net: Rc<Net>,
    disk: Rc<Disk>,
    directory: Rc<Directory>,
    probes: Arc<ProbeCache>,
    scenario: Scenario,
    hosts: [Option<Host>; 2],
    /// When a host that is down comes back.
    back_at: [Option<Duration>; 2],
    report: Rc<RefCell<Option<Report>>>,
    rng: Rng,
    /// A cut that waits for the destination's next changes: how much survives it.
    survival: Survival,
}

/// Why the hosts are not polled on.
enum Turn {
    Died(usize),
    Reported(Box<Report>),
    Broken,
    Time,
}

fn path(text: &str) -> RelPath {
    RelPath::new(text.as_bytes()).expect("a good path")
}

impl Run {
    fn start(&mut self, host: usize) {
        self.world.dead[host].set(false);
        let started =
            Host::start(host, &self.world, &self.net, &self.disk, &self.directory, &self.probes, &self.scenario.build);
        self.world.event(format_args!("host {host} is up"));
        let initiator = if self.scenario.push { SOURCE } else { DESTINATION };
        if host == initiator {
            self.command(&started);
        }
        self.hosts[host] = Some(started);
    }

    /// What the user typed; repeated until it has worked.
    fn command(&self, host: &Host) {
        let options = self.scenario.options.clone();
        let from = SourceSpec {
            rows: None,
            base: self.scenario.tree.base.clone(),
            roots: vec![path("src")],
            recursive: true,
            encrypt: options.encrypt,
        };
        let to = DestinationSpec {
            base: self.disk.root.clone(),
            path: path(OUT),
            becomes: true,
            options: options.clone(),
            rows: None,
        };
        let push = self.scenario.push;
        let access = if push { Access::Write(to.clone()) } else { Access::Read(from.clone()) };
        let grant = Grant { principal: "user".to_owned(), access, ttl_secs: 60 };
        let number = if push { SOURCE } else { DESTINATION };
        let tickets = host.tickets(number, &self.net, &self.directory, grant);
        let (ctx, report, world) = (host.ctx.clone(), self.report.clone(), self.world.clone());
        host.set.spawn_local(async move {
            loop {
                let entry = ctx.list("user", if push { "source" } else { "destination" }, String::new());
                let ended = if push {
                    source::push(&ctx, from.clone(), tickets.clone(), options.clone(), &entry).await
                } else {
                    destination::pull(&ctx, to.clone(), vec![tickets.clone()], &entry).await
                };
                let class = ended.error_class.clone().unwrap_or_default();
                world.event(format_args!("the command ends: {:?} {class}", ended.verdict));
                if std::env::var_os("LONGHAUL_TRACE").is_some() {
                    eprintln!("{:?} {:?} {:?}", ended.error, ended.failures, ended.notes);
                }
                if matches!(ended.verdict, Verdict::Durable | Verdict::Verified) {
                    *report.borrow_mut() = Some(ended);
                    return;
                }
                world.count("command repeated");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }

    /// A host dies: its tasks are gone from one moment to the next.
    fn die(&mut self, host: usize, power: bool) {
        self.world.dead[host].set(true);
        let down = Duration::from_millis(self.rng.range(50..6_000));
        self.back_at[host] = Some(self.world.elapsed() + down);
        self.net.host_gone(host, power.then(|| self.world.now() + down));
        self.directory.gone(host);
        self.hosts[host] = None;
        if host == DESTINATION {
            self.disk.host_died();
            self.disk.cut_at.set(None);
            cut(&self.disk, self.survival, true);
            let state = self.disk.state.borrow();
            let power = self.survival != Survival::Everything;
            self.disk.checker.borrow_mut().after_cut(&self.world, &state, power);
        }
    }

    /// Polls the hosts until something happens that the scenario has to act on.
    async fn turn(&mut self, until: Duration) -> Turn {
        let mut timer = Box::pin(tokio::time::sleep(until.saturating_sub(self.world.elapsed())));
        std::future::poll_fn(|cx| {
            for (number, host) in self.hosts.iter_mut().enumerate() {
                let Some(host) = host else { continue };
                let _ = Pin::new(&mut host.set).poll(cx);
                if self.world.dead[number].get() {
                    return Poll::Ready(Turn::Died(number));
                }
            }
            if let Some(what) = crate::panicked() {
                self.world.broken(format_args!("it panicked: {what}"));
                return Poll::Ready(Turn::Broken);
            }
            if let Some(report) = self.report.borrow_mut().take() {
                return Poll::Ready(Turn::Reported(Box::new(report)));
            }
            timer.as_mut().poll(cx).map(|()| Turn::Time)
        })
        .await
    }

    /// A planned fault happens, or is to be tried again in a moment.
    fn befall(&mut self, kind: &'static str) -> bool {
        let trouble = |trouble| {
            self.disk.trouble.borrow_mut().push(trouble);
            true
        };
        match kind {
            "connection reset" | "connection closed" | "black hole" | "half open" | "slow stream" | "damage" => {
                let links = self.net.alive(true);
                if links.is_empty() {
                    return false;
                }
                let at = self.rng.range(0..links.len() as u64) as usize;
                self.net.befall(&links[at], kind);
                true
            }
            "control cut" => {
                let links = self.net.alive(false);
                let Some(link) = links.first() else { return false };
                let how = self.rng.pick(&["connection reset", "connection closed", "black hole"]);
                self.world.count("control cut");
                self.net.befall(link, how);
                true
            }
            "partition" => {
                let time = self.rng.pick(&[300, 3_000, 12_000, 50_000]);
                self.net.partition(Duration::from_millis(time));
                true
            }
            "destination killed" | "destination power cut" => {
                if self.hosts[DESTINATION].is_none() || self.disk.cut_at.get().is_some() {
                    return false;
                }
                self.survival = match kind {
                    "destination killed" => Survival::Everything,
                    _ => self.rng.pick(&[Survival::Nothing, Survival::Some, Survival::Some, Survival::Some]),
                };
                let changes = self.rng.range(1..50);
                self.disk.cut_at.set(Some(self.disk.changes.get() + changes));
                self.world.fault(kind, format_args!("in {changes} changes, {:?} survives", self.survival));
                true
            }
            "source killed" => {
                if self.hosts[SOURCE].is_none() {
                    return false;
                }
                self.world.fault(kind, format_args!("now"));
                let power = self.rng.percent(50);
                self.die(SOURCE, power);
                true
            }
            "clock jump" => {
                let jump = self.rng.range(0..20_000) as i64 - 10_000;
                self.world.fault(kind, format_args!("{jump} s"));
                self.world.skew.set(self.world.skew.get() + jump);
                true
            }
            "disk stall" => {
                let time = self.rng.pick(&[2, 15, 60]);
                self.world.fault(kind, format_args!("{time} s"));
                self.world.disk_stalled_until.set(Some(self.world.now() + Duration::from_secs(time)));
                true
            }
            "disk full" => {
                let time = Duration::from_millis(self.rng.range(100..8_000));
                trouble(Trouble::Full(self.world.now() + time))
            }
            "read error" => {
                self.world.read_errors.set(1);
                true
            }
            "write error" => trouble(Trouble::WriteFails),
            "sync error" => trouble(Trouble::SyncFails),
            "journal sync error" => trouble(Trouble::JournalSyncFails),
            "directory sync error" => trouble(Trouble::DirectorySyncFails),
            "rename error" => trouble(Trouble::RenameFails),
            other => panic!("no such fault: {other}"),
        }
    }

    fn calm(&mut self) {
        self.world.event(format_args!("nothing befalls it any more"));
        self.world.faults.set(false);
        self.disk.trouble.borrow_mut().clear();
        self.disk.cut_at.set(None);
        self.world.read_errors.set(0);
        self.world.disk_stalled_until.set(None);
    }

    async fn run_to_the_end(&mut self) {
        self.start(SOURCE);
        self.start(DESTINATION);
        let end = self.scenario.calm_at + PATIENCE;
        loop {
            let now = self.world.elapsed();
            for host in [SOURCE, DESTINATION] {
                if self.back_at[host].is_some_and(|at| at <= now) {
                    self.back_at[host] = None;
                    self.start(host);
                }
            }
            while self.scenario.plan.first().is_some_and(|(at, _)| *at <= now) {
                let (at, kind) = self.scenario.plan.remove(0);
                if !self.befall(kind) && at < self.scenario.calm_at {
                    self.scenario.plan.push((at + Duration::from_millis(100), kind));
                    self.scenario.plan.sort();
                }
            }
            if now >= self.scenario.calm_at && self.world.faults.get() {
                self.scenario.plan.clear();
                self.calm();
            }
            if self.world.first_broken().is_some() {
                return; // The first rule that breaks is what is to be looked at.
            }
            if now >= end {
                return self.world.broken(format_args!("it has not ended {PATIENCE:?} after the last fault"));
            }
            let next = [self.back_at[0], self.back_at[1], self.scenario.plan.first().map(|(at, _)| *at)];
            let calm = self.world.faults.get().then_some(self.scenario.calm_at);
            let until = next.into_iter().flatten().chain(calm).min().unwrap_or(end).max(now + Duration::from_millis(1));
            match self.turn(until).await {
                Turn::Died(host) => {
                    self.world.event(format_args!("host {host} is down"));
                    let power = self.survival != Survival::Everything;
                    self.die(host, power);
                }
                Turn::Reported(report) => return self.verdict(&report),
                Turn::Broken => return,
                Turn::Time => {}
            }
        }
    }

    /// Rule: each interruption costs no more than the bound of the design, a damaged chunk no more than itself.
    fn sent_within_bound(&self) {
        let counts = self.world.counts();
        let times =
            |kinds: &[&str]| kinds.iter().map(|kind| counts.get(kind).copied().unwrap_or_default()).sum::<u64>();
        let stream = (4 << 20) + 2 * self.scenario.weather.capacity as u64;
        let session = u64::from(self.scenario.options.streams.unwrap_or(1)) * stream + (16 << 20);
        let sessions =
            times(&["destination killed", "destination power cut", "source killed", "control cut", "partition"]);
        let sessions = sessions + times(&["disk stall", "command repeated"]);
        let streams = times(&["connection reset", "connection closed", "black hole", "half open", "slow stream"]);
        // A part file whose sync failed begins again.
        let files = times(&["sync error", "sync error told late", "directory sync error"]) * self.scenario.tree.bytes;
        // Frames' heads, and near the end a chunk that an idle stream takes over from a slow one.
        let whole = self.scenario.tree.bytes + self.scenario.tree.bytes / 50 + (64 << 10) + stream;
        let most = whole + sessions * session + streams * stream + times(&["damaged bytes"]) * stream + files;
        let sent = self.net.data_sent[SOURCE].get();
        if sent > most {
            self.world.broken(format_args!("{sent} bytes were sent, the bound is {most}"));
        }
    }

    /// The verdict stands: whatever happens now, the destination is the source.
    fn verdict(&mut self, report: &Report) {
        self.world.event(format_args!("verdict {:?}", report.verdict));
        for host in [SOURCE, DESTINATION] {
            self.world.dead[host].set(true);
            self.hosts[host] = None;
        }
        cut(&self.disk, Survival::Nothing, false);
        self.sent_within_bound();
        let checker = self.disk.checker.borrow();
        checker.finished(&self.world, &self.disk.root);
        if report.failed_files > 0 || !report.verified {
            self.world.broken(format_args!("a verdict over {} failed files", report.failed_files));
        }
    }
}

/// Runs one seed. `faults`: whether anything befalls it.
pub fn run(seed: u64, faults: bool) -> Outcome {
    run_scenario(seed, faults, choose(seed, faults))
}

fn quiet(tree: &'static Tree, weather: Weather, streams: u16, push: bool) -> Scenario {
    let block = 256 << 10;
    let options =
        TransferOptions { streams: Some(streams), block, verify: Verify::Wire, recursive: true, ..Default::default() };
    let build = Build { workers: 1, block, slots: 40 };
    Scenario { tree, weather, build, push, options, plan: Vec::new(), calm_at: Duration::from_secs(10_000) }
}

/// A slow link with buffers that may hold more than a chunk; with an `uneven` seed one stream on it is slower than the others.
pub fn slow_link(seed: u64) -> Outcome {
    let mut rng = Rng::new(seed, "slow link");
    let weather = Weather {
        latency: Duration::from_millis(rng.pick(&[5, 40, 150])),
        jitter_us: rng.pick(&[0, 5_000]),
        bytes_per_sec: rng.pick(&[20_000, 250_000, 1_000_000, 3_000_000]),
        capacity: rng.pick(&[512 << 10, 6 << 20]),
        segment: 16 << 10,
    };
    let mut scenario = quiet(tree(SHAPES), weather, rng.range(2..6) as u16, rng.percent(50));
    if crate::SLOW_LINKS.contains(&seed) {
        scenario.plan.push((Duration::from_millis(rng.range(500..9_000)), "slow stream"));
    }
    run_scenario(seed, false, scenario)
}

/// The wall clock jumps all the time, hours to and fro; nothing else happens.
pub fn jumping_clock(seed: u64) -> Outcome {
    let weather = Weather {
        latency: Duration::from_millis(40),
        jitter_us: 0,
        bytes_per_sec: 5_000_000,
        capacity: 128 << 10,
        segment: usize::MAX,
    };
    let mut scenario = quiet(tree(seed % SHAPES), weather, 2, seed.is_multiple_of(2));
    scenario.plan.extend((0..1_000).map(|n| (Duration::from_millis(5 * n), "clock jump")));
    run_scenario(seed, false, scenario)
}

fn run_scenario(seed: u64, faults: bool, scenario: Scenario) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let here = place().join(format!("seed-{seed}-{:?}", std::thread::current().id()));
    let outcome = runtime.block_on(async {
        let world = World::new(seed);
        world.faults.set(faults);
        let disk = Disk::new(world.clone(), &here, Checker::new(scenario.tree));
        // Probed once, unseen: the file system of the test host is no part of the seed.
        let probes = Arc::new(ProbeCache::default());
        let root = Root::open_following(&disk.root).unwrap();
        probes.destination(root.handle()).unwrap();
        longhaul::clock::install(Some(Rc::new(Clock(world.clone()))));
        longhaul::sys::observe::install(Some(disk.clone()));
        let bytes = scenario.tree.bytes;
        let mut run = Run {
            net: Net::new(world.clone(), scenario.weather),
            directory: Rc::default(),
            probes,
            scenario,
            hosts: [None, None],
            back_at: [None, None],
            report: Rc::default(),
            rng: Rng::new(seed, "faults"),
            survival: Survival::Everything,
            world: world.clone(),
            disk: disk.clone(),
        };
        run.run_to_the_end().await;
        // A host's context knows the directory that knows it: let go of both, or their memory stays.
        for host in [SOURCE, DESTINATION] {
            world.dead[host].set(true);
            run.hosts[host] = None;
            run.directory.gone(host);
        }
        run.net.forget();
        longhaul::clock::install(None);
        longhaul::sys::observe::install(None);
        Outcome {
            seed,
            broken: world.first_broken(),
            trace: world.trace(),
            counts: world.counts(),
            last: world.last_events(),
            virtual_time: world.elapsed(),
            bytes,
            sent: run.net.data_sent[SOURCE].get(),
        }
    });
    let _ = std::fs::remove_dir_all(here);
    outcome
}
