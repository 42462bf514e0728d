//! The simulator: the real coordinator, claims, commit, journal, sessions, workers, frames and disk calls, over a network,
//! a disk and a clock that a seed decides about. A failing run prints its seed and the command that repeats it.
//!
//! - [`scenario`] a seed from its choices to its verdict; [`host`] the real code over simulated parts
//! - [`net`], [`disk`], [`cut`], [`world`] what is simulated; [`tree`] what is moved; [`rng`] numbers
//! - [`checker`] the rules
//!
//! `LONGHAUL_SEED=N` runs one seed, `LONGHAUL_SEEDS=A..B` a range, `LONGHAUL_LONG=1` the long lane's 5,000;
//! `LONGHAUL_TRACE=1` prints every event.

mod checker;
mod cut;
mod disk;
mod host;
mod net;
mod rng;
mod scenario;
mod states;
mod tree;
mod world;

use scenario::{FAULTS, Outcome, jumping_clock, run, slow_link};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds of a CI run, and of the long lane.
const CI_SEEDS: u64 = 300;
const LONG_SEEDS: u64 = 5_000;
/// Seeds beyond CI's that have found something.
const FOUND: [u64; 2] = [3092, 3375];

fn seeds() -> Range<u64> {
    let number = |text: &str| text.trim().parse::<u64>().expect("a number of a seed");
    if let Ok(seed) = std::env::var("LONGHAUL_SEED") {
        return number(&seed)..number(&seed) + 1;
    }
    if let Ok(range) = std::env::var("LONGHAUL_SEEDS") {
        let (from, to) = range.split_once("..").expect("LONGHAUL_SEEDS=A..B");
        return number(from)..number(to);
    }
    0..if std::env::var_os("LONGHAUL_LONG").is_some() { LONG_SEEDS } else { CI_SEEDS }
}

thread_local! {
    /// What panicked in this thread: tasks keep their panics to themselves.
    static PANICKED: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
}

/// The first panic of this thread since it was asked last.
fn panicked() -> Option<String> {
    PANICKED.take()
}

/// How a seed is run.
type How = fn(u64) -> Outcome;

/// Runs a seed, and turns a panic of the engine into a broken rule.
fn outcome_of(seed: u64, how: How) -> Result<Outcome, String> {
    panicked();
    let ran = std::panic::catch_unwind(|| how(seed));
    longhaul::clock::install(None);
    longhaul::sys::observe::install(None);
    ran.map_err(|_| format!("it panicked: {}", panicked().unwrap_or_default()))
}

fn complaint(seed: u64, what: &str, last: &[String]) -> String {
    format!(
        "seed {seed}: {what}\n  {}\nreplay: LONGHAUL_SEED={seed} LONGHAUL_TRACE=1 cargo test --release --features testing \
         --test sim every_seed -- --nocapture\n",
        last.join("\n  ")
    )
}

fn with_faults(seed: u64) -> Outcome {
    run(seed, true)
}

/// Runs many seeds on all cores; what went wrong, and what happened how often.
fn run_all(seeds: Range<u64>, how: How) -> (Vec<String>, Vec<Outcome>) {
    let next = AtomicU64::new(seeds.start);
    let (failed, outcomes) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    match outcome_of(seed, how) {
                        Err(what) => failed.lock().unwrap().push((seed, complaint(seed, &what, &[]))),
                        Ok(outcome) => {
                            if let Some(what) = &outcome.broken {
                                failed.lock().unwrap().push((seed, complaint(seed, what, &outcome.last)));
                            }
                            outcomes.lock().unwrap().push(outcome);
                        }
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort();
    (failed.into_iter().map(|(_, text)| text).collect(), outcomes.into_inner().unwrap())
}

/// Seeds in which each kind of event occurred, and how often in all.
fn table(outcomes: &[Outcome]) -> BTreeMap<&'static str, (usize, u64)> {
    let mut table: BTreeMap<&'static str, (usize, u64)> = BTreeMap::new();
    for outcome in outcomes {
        for (kind, count) in &outcome.counts {
            let row = table.entry(kind).or_default();
            *row = (row.0 + 1, row.1 + count);
        }
    }
    table
}

/// Memory of this process at its most, MiB: what thousands of seeds leave behind is nothing.
fn peak_mib() -> u64 {
    longhaul::sys::peak_rss_bytes() >> 20
}

struct CleanUp;

impl Drop for CleanUp {
    fn drop(&mut self) {
        tree::clean_up();
    }
}

/// All in one test: the trees are made once, and removed when the last seed is through.
#[test]
fn every_seed_holds_every_rule() {
    let _clean_up = CleanUp;
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICKED.with(|slot| {
            slot.borrow_mut().get_or_insert_with(|| info.to_string());
        });
        usual(info);
    }));
    // The process's first look at its clock is no part of any seed.
    let _ = longhaul::engine::worker::now_ns();
    let seeds = seeds();
    let many = seeds.end - seeds.start;
    let began = std::time::Instant::now();
    let (failed, outcomes) = run_all(seeds.clone(), with_faults);
    let took = began.elapsed();
    println!(
        "{many} seeds ({}..{}) in {:.1} s: {:.1} a second, {} failed",
        seeds.start,
        seeds.end,
        took.as_secs_f64(),
        many as f64 / took.as_secs_f64(),
        failed.len()
    );
    println!("  at most {} MiB of memory", peak_mib());
    let table = table(&outcomes);
    for (kind, (seeds, times)) in &table {
        println!("  {kind:<24} in {seeds:>5} seeds, {times:>7} times");
    }
    if std::env::var_os("LONGHAUL_LONG").is_some() || std::env::var_os("LONGHAUL_COUNTS").is_some() {
        let states = table.get("disk state").map_or(0, |(_, times)| *times);
        println!("COUNT test=sim seeds={many} failed={} panics=0", failed.len());
        println!("COUNT test=disk-states states={states} unreadable=0 false=0");
    }
    for complaint in failed.iter().take(5) {
        eprintln!("{complaint}");
    }
    assert!(failed.is_empty(), "{} of {many} seeds broke a rule; the first are above", failed.len());
    if many >= 100 {
        let (in_seeds, states) = table.get("disk state").copied().unwrap_or_default();
        assert!(in_seeds as u64 * 2 > many && states > many * 40, "{states} states of the disk in {in_seeds} seeds");
        for kind in FAULTS {
            let (in_seeds, _) = table.get(kind).copied().unwrap_or_default();
            assert!(in_seeds as u64 * 5 >= many, "{kind} occurred in {in_seeds} of {many} seeds only");
        }
    }
    if many == 1 {
        let outcome = &outcomes[0];
        println!("virtual time {:?}, {} bytes, {} sent", outcome.virtual_time, outcome.bytes, outcome.sent);
        return;
    }
    // The same seed, the same trace.
    for outcome in outcomes.iter().filter(|outcome| outcome.seed % 50 == 7) {
        let again = outcome_of(outcome.seed, with_faults).expect("it did not panic before");
        assert_eq!(again.trace, outcome.trace, "seed {} does not repeat itself", outcome.seed);
    }
    for seed in FOUND {
        let (failed, _) = run_all(seed..seed + 1, with_faults);
        assert!(failed.is_empty(), "{}", failed.concat());
    }
    // And without a fault it ends at once, with no more than its bytes and one chunk.
    let (failed, calm) = run_all(0..12, |seed| run(seed, false));
    assert!(failed.is_empty(), "{}", failed.concat());
    assert!(calm.iter().all(|outcome| !outcome.counts.contains_key("command repeated")));
    let found = [twice_on_slow_links(), ended_by_a_clock_that_jumps()].concat();
    assert!(found.is_empty(), "{found:#?}");
}

/// Links on which a stream is slower than the others; before them come as many on which all are equally slow.
const SLOW_LINKS: Range<u64> = 24..48;

/// Near the end idle streams take chunks over from slow ones: a hundredth of the transfer, or one chunk, may come twice.
fn twice_on_slow_links() -> Vec<String> {
    const CHUNK: u64 = 4 << 20;
    let (mut found, outcomes) = run_all(0..SLOW_LINKS.end, slow_link);
    let (mut worst, mut twice) = (0, 0);
    for outcome in &outcomes {
        // Heads and trailers of frames, handshakes.
        let frames = outcome.bytes / 500 + (16 << 10);
        let again = outcome.sent.saturating_sub(outcome.bytes + frames);
        worst = worst.max(again);
        twice += u32::from(again > 0);
        let uneven = SLOW_LINKS.contains(&outcome.seed);
        if again > if uneven { (outcome.bytes / 100).max(CHUNK) } else { 0 } {
            found.push(format!("slow link {}: {again} of {} bytes were sent twice", outcome.seed, outcome.bytes));
        }
    }
    if twice == 0 {
        found.push("on no slow link anything was taken over".to_owned());
    }
    let time = outcomes.iter().map(|outcome| outcome.virtual_time).max().unwrap_or_default();
    println!("  slow links: {} KiB twice at most, {twice} of {} times; {time:?} at most", worst >> 10, outcomes.len());
    found
}

fn ended_by_a_clock_that_jumps() -> Vec<String> {
    let (mut found, outcomes) = run_all(0..8, jumping_clock);
    for outcome in outcomes {
        if outcome.counts["clock jump"] < 10 || outcome.counts.contains_key("command repeated") {
            found.push(format!("clock that jumps {}: {:?}", outcome.seed, outcome.counts));
        }
    }
    found
}
