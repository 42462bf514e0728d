//! What all parts of a simulation share: its seed's numbers, its clock, its trace and the counts of what happened.

use crate::rng::Rng;
use longhaul::clock::VirtualClock;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Arguments;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Events that a failing run shows from its end.
const LAST_EVENTS: usize = 60;

pub struct World {
    pub seed: u64,
    began: Instant,
    looked: Cell<(Instant, u64)>,
    /// What each subsystem decides by.
    pub net: RefCell<Rng>,
    pub disk: RefCell<Rng>,
    pub time: RefCell<Rng>,
    /// The wall clock's distance from the virtual one, seconds.
    pub skew: Cell<i64>,
    /// Hosts that are down: 0 is the source, 1 the destination. Nothing of theirs happens any more.
    pub dead: [Cell<bool>; 2],
    /// Reads at the source that are to fail.
    pub read_errors: Cell<u32>,
    /// Faults happen until this is unset.
    pub faults: Cell<bool>,
    /// The disk is slow until then: nothing of the pool and no write ends before.
    pub disk_stalled_until: Cell<Option<Instant>>,
    counts: RefCell<BTreeMap<&'static str, u64>>,
    hash: Cell<u64>,
    events: Cell<u64>,
    last: RefCell<std::collections::VecDeque<String>>,
    show: bool,
    /// The first rule that was broken.
    broken: RefCell<Option<String>>,
}

impl World {
    pub fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self {
            seed,
            began: tokio::time::Instant::now().into_std(),
            looked: Cell::new((tokio::time::Instant::now().into_std(), 0)),
            net: RefCell::new(Rng::new(seed, "net")),
            disk: RefCell::new(Rng::new(seed, "disk")),
            time: RefCell::new(Rng::new(seed, "time")),
            skew: Cell::new(0),
            dead: [Cell::new(false), Cell::new(false)],
            read_errors: Cell::new(0),
            faults: Cell::new(true),
            disk_stalled_until: Cell::new(None),
            counts: RefCell::default(),
            hash: Cell::new(0xcbf2_9ce4_8422_2325),
            events: Cell::new(0),
            last: RefCell::default(),
            show: std::env::var_os("LONGHAUL_TRACE").is_some(),
            broken: RefCell::default(),
        })
    }

    pub fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Virtual time since the seed began.
    pub fn elapsed(&self) -> Duration {
        self.now() - self.began
    }

    /// Everything reads the clock all the time: what reads it for ever without time going on never ends.
    fn looked_at_clock(&self) {
        let now = self.now();
        let (then, times) = self.looked.get();
        let times = if then == now { times + 1 } else { 0 };
        self.looked.set((now, times));
        if times > 1_000_000 {
            // Nothing would ever return from this.
            eprintln!("{}", crate::complaint(self.seed, "it turns without time going on", &self.last_events()));
            std::process::exit(101);
        }
    }

    /// Something happened: it becomes part of the trace, which one seed always repeats.
    pub fn event(&self, what: Arguments<'_>) {
        let line = format!("{:>10.3} {what}", self.elapsed().as_secs_f64());
        let mut hash = self.hash.get();
        for byte in line.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.hash.set(hash);
        self.events.set(self.events.get() + 1);
        if self.show {
            eprintln!("{line}");
        }
        let mut last = self.last.borrow_mut();
        if last.len() == LAST_EVENTS {
            last.pop_front();
        }
        last.push_back(line);
    }

    /// A fault happened.
    pub fn fault(&self, kind: &'static str, what: Arguments<'_>) {
        self.count(kind);
        self.event(format_args!("FAULT {kind}: {what}"));
    }

    pub fn count(&self, kind: &'static str) {
        *self.counts.borrow_mut().entry(kind).or_default() += 1;
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.borrow().clone()
    }

    pub fn trace(&self) -> (u64, u64) {
        (self.hash.get(), self.events.get())
    }

    pub fn last_events(&self) -> Vec<String> {
        self.last.borrow().iter().cloned().collect()
    }

    /// A rule is broken. The first one counts.
    pub fn broken(&self, rule: Arguments<'_>) {
        self.event(format_args!("BROKEN {rule}"));
        self.broken.borrow_mut().get_or_insert_with(|| rule.to_string());
    }

    pub fn first_broken(&self) -> Option<String> {
        self.broken.borrow().clone()
    }
}

/// The clock as the engine sees it.
pub struct Clock(pub Rc<World>);

impl VirtualClock for Clock {
    fn now(&self) -> Instant {
        self.0.looked_at_clock();
        // A thread that paused has its pause behind it: its deadlines come nearer although nothing else moves.
        self.0.now() + PAUSED.get()
    }

    fn unix(&self) -> u64 {
        (1_700_000_000 + self.0.elapsed().as_secs()).saturating_add_signed(self.0.skew.get())
    }

    fn pause(&self, time: Duration) {
        PAUSED.set(PAUSED.get() + time);
    }
}

thread_local! {
    /// What the job that runs now has slept.
    static PAUSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Runs one job of a pool: what it sleeps is its own time.
pub fn run_job(job: impl FnOnce()) {
    PAUSED.set(Duration::ZERO);
    job();
    PAUSED.set(Duration::ZERO);
}
