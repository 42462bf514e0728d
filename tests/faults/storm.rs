//! Cuts and flips at random, many of them: whatever a link does to a transfer, it finishes, it is equal, and nothing that
//! was damaged gets in. Counts in the form that `scripts/long-lane.sh` collects.

use crate::relay::Relay;
use crate::support::{Agent, MIB, Random, copy, data_file, difference, leftovers, long, scratch};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Transfers side by side: most of what a black hole costs is waiting.
const SCENES: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(240);
const BYTES: u64 = 48 * MIB;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Reset,
    Fin,
    All,
    HalfOpen,
    BlackHole,
    Stop,
    Flip,
}

impl Kind {
    /// What goes silent takes half a minute to be found out, so it is rarer.
    fn any(random: &mut Random, flips: bool) -> Self {
        if flips {
            return Self::Flip;
        }
        match random.between(0, 40) {
            0..=17 => Self::Reset,
            18..=31 => Self::Fin,
            32..=35 => Self::All,
            36 => Self::HalfOpen,
            37 => Self::BlackHole,
            _ => Self::Stop,
        }
    }
}

fn tree(root: &Path) {
    data_file(&root.join("tree/big"), BYTES, 1);
    data_file(&root.join("tree/odd"), 5 * MIB + 4321, 2);
    (0..300).for_each(|n| data_file(&root.join(format!("tree/small/{n}")), 500 + 37 * n, n));
}

struct Scene {
    agent: Agent,
    relay: Relay,
    dir: tempfile::TempDir,
    push: bool,
    counts: BTreeMap<Kind, u64>,
}

impl Scene {
    fn new(push: bool, encrypt: &str) -> Self {
        let dir = scratch(4 * BYTES * SCENES);
        let relay = Relay::new();
        let advertised = relay.address.to_string();
        let words = ["--advertise-data", &advertised, "--encrypt", encrypt, "--verify", "wire"];
        let agent = Agent::start(&dir.path().join("agent"), &words);
        relay.forward_to(&agent.data());
        tree(&if push { dir.path().join("here") } else { agent.root() });
        Self { agent, relay, dir, push, counts: BTreeMap::new() }
    }

    /// One transfer, disturbed until it ends.
    fn run(&mut self, number: u64, encrypt: &str, random: &mut Random, flips: bool) {
        let here = self.dir.path().join(if self.push { "here/tree" } else { "copy" });
        let here = here.to_str().unwrap();
        let far = self.agent.url(if self.push { "copy" } else { "tree" });
        let streams = ["1", "2", "4", "8"][(number % 4) as usize];
        let (from, to) = if self.push { (here, far.as_str()) } else { (far.as_str(), here) };
        // Flips do not slow a transfer down much: they need one that lasts.
        let words = ["-r", "--streams", streams, "--rate", "60MiB", "--encrypt", encrypt, from, to];
        let first = self.relay.connections();
        let mut run = copy(self.dir.path(), &self.agent.token_file(), &words);
        let end = Instant::now() + PATIENCE;
        let mut disturbed = 0;
        // A storm that never ends would let nothing through.
        while Instant::now() < end && run.runs_for(Duration::from_millis(random.between(60, 220))) && disturbed < 8 {
            let connections = self.relay.connections();
            if connections == first || !self.relay.alive(connections - 1) {
                continue;
            }
            let one = random.between(first as u64, connections as u64) as usize;
            disturbed += u64::from(self.disturb(Kind::any(random, flips), one, random));
        }
        let report = run.succeeds(PATIENCE);
        if self.relay.unflip() {
            *self.counts.get_mut(&Kind::Flip).expect("it was counted") -= 1;
        }
        assert_eq!(report["verdict"], "DURABLE", "{report:#}");
        let copied = if self.push { self.agent.root().join("copy") } else { self.dir.path().join("copy") };
        let source = if self.push { self.dir.path().join("here/tree") } else { self.agent.root().join("tree") };
        assert_eq!(difference(&source, &copied), None);
        assert_eq!(leftovers(&copied), Vec::<std::path::PathBuf>::new());
        std::fs::remove_dir_all(&copied).unwrap();
    }

    /// `false`: there was nothing to disturb.
    fn disturb(&mut self, kind: Kind, connection: usize, random: &mut Random) -> bool {
        let relay = self.relay.clone();
        if kind == Kind::Flip {
            // One at a time, and each with a while to come to its byte.
            if relay.flipped() && relay.alive(connection) {
                let ahead = random.between(1, MIB);
                // Where the payload goes.
                match self.push {
                    true => relay.flip_up(connection, relay.carried_up(connection) + ahead),
                    false => relay.flip(connection, relay.carried(connection) + ahead),
                }
                *self.counts.entry(Kind::Flip).or_default() += 1;
                return true;
            }
            return false;
        }
        if kind != Kind::Stop && !relay.alive(connection) {
            return false;
        }
        match kind {
            Kind::Reset => relay.reset(connection),
            Kind::Fin => relay.fin(connection),
            Kind::All => relay.reset_all(),
            Kind::HalfOpen => relay.half_open(connection),
            Kind::BlackHole => relay.silence(connection),
            Kind::Stop => {
                self.agent.signal("STOP");
                std::thread::sleep(Duration::from_millis(random.between(50, 1_500)));
                self.agent.signal("CONT");
            }
            Kind::Flip => unreachable!("was handled above"),
        }
        *self.counts.entry(kind).or_default() += 1;
        true
    }
}

/// Disturbs transfers until so many disturbances have happened: how often each kind did.
fn storm(name: &str, wanted: u64, flips: bool) -> BTreeMap<Kind, u64> {
    let seed = Random::told(name).next();
    let scenes: Vec<_> = (0..SCENES)
        .map(|number| {
            std::thread::spawn(move || {
                let (push, encrypt) = (number == 1, if number == 2 { "off" } else { "on" });
                let mut random = Random::new(seed ^ (number << 32));
                let mut scene = Scene::new(push, encrypt);
                let mut runs = 0;
                while scene.counts.values().sum::<u64>() < wanted.div_ceil(SCENES) {
                    scene.run(runs, encrypt, &mut random, flips);
                    runs += 1;
                    assert!(runs < 4 * wanted + 10, "the storm does not get going");
                }
                (runs, scene.counts)
            })
        })
        .collect();
    let (mut transfers, mut counts) = (0, BTreeMap::<Kind, u64>::new());
    for scene in scenes {
        let (runs, part) = scene.join().unwrap();
        transfers += runs;
        part.into_iter().for_each(|(kind, count)| *counts.entry(kind).or_default() += count);
    }
    eprintln!("{name}: {transfers} transfers, {counts:?}");
    counts
}

#[test]
fn cuts_at_random_lose_nothing() {
    let counts = storm("cuts", if long() { 510 } else { 60 }, false);
    eprintln!("COUNT cuts={} lost=0 wrong=0 hung=0", counts.values().sum::<u64>());
    assert!(counts.contains_key(&Kind::Reset) && counts.contains_key(&Kind::Fin), "{counts:?}");
    if long() {
        assert_eq!(counts.len(), 6, "{counts:?}");
    }
}

#[test]
fn flips_at_random_never_get_in() {
    let counts = storm("flips", if long() { 310 } else { 30 }, true);
    let flips = counts[&Kind::Flip];
    eprintln!("COUNT end_to_end_flips={flips} undetected=0");
    assert!(flips >= if long() { 300 } else { 24 }, "{counts:?}");
}
