//! SIGKILL at every named point of either end, and at random instants: the same command finishes, the trees are equal,
//! and what was sent twice stays within the bound.

use crate::common::{BLOCK, Cp, Fault, Hits, PATIENCE, Shape, arg, count, cp, differs, hits, start, tree};
use crate::support::{BINARY, MIB, Random, leftovers, long, resend_bound, scratch};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Bigger than the bound of a kill, so that the bound means something.
const SHAPE: Shape = Shape { big: 30 * MIB, odd: 6 * MIB + 4321, small: 90 };
/// One stream, for the same reason.
const STREAMS: u64 = 1;

/// Every name of a point, as the source has it.
pub fn names() -> BTreeSet<String> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            // The module itself speaks of names, it has none.
            if path.ends_with("sys/points.rs") || path.ends_with("sys/points/armed.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for call in
                ["points::at(", "points::told(", "points::fails(", "points::short(", "points::flip(", "points::place("]
            {
                for (at, _) in text.match_indices(call) {
                    let rest = text[at + call.len()..].trim_start();
                    let name = rest.strip_prefix('"').and_then(|rest| rest.split('"').next());
                    found.push(
                        name.unwrap_or_else(|| panic!("{}: a point without a literal name", path.display())).to_owned(),
                    );
                }
            }
        }
    }
    let names: BTreeSet<String> = found.iter().cloned().collect();
    assert_eq!(names.len(), found.len(), "a name stands twice: {found:?}");
    assert!(names.len() >= 50, "the points were not found: {names:?}");
    names
}

/// Where source and destination run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Local,
    /// `cp` pulls from an agent; the first has the points armed.
    Pull {
        agent: bool,
    },
    Push {
        agent: bool,
    },
}

/// An agent with points; `None` in the child once it is dead.
struct Agent {
    child: Child,
    url: String,
    state: PathBuf,
}

fn agent(dir: &Path, root: &Path, ports: Option<&str>, fault: &Fault) -> Option<Agent> {
    let state = dir.join("agent");
    let mut command = Command::new(BINARY);
    // The HTTP port is kept over a restart, so that a command that is still running finds it.
    command.args([
        "agent",
        "--http",
        ports.unwrap_or("127.0.0.1:0"),
        "--data",
        "127.0.0.1:0",
        "--verify",
        "wire",
        "--root",
    ]);
    command.arg(root).arg("--state").arg(&state).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    fault.arm(&mut command);
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let Ok(ready) = serde_json::from_str::<serde_json::Value>(&line) else {
        let _ = (child.kill(), child.wait());
        return None;
    };
    Some(Agent { child, url: ready["http"].as_str().unwrap().to_owned(), state })
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

struct Case<'a> {
    dir: &'a Path,
    from: &'a Path,
    to: PathBuf,
    log: PathBuf,
}

impl Case<'_> {
    fn cp(&self, ends: Ends, agent: Option<&Agent>, fault: &Fault) -> Cp {
        let streams = STREAMS.to_string();
        let mut words = vec!["-r".to_owned(), "--streams".to_owned(), streams];
        if let Some(agent) = agent {
            words.extend(["--token-file".to_owned(), arg(&agent.state.join("token")).to_owned()]);
        }
        let url = |path: &Path| format!("lh://{}/{}", agent.unwrap().url, path.file_name().unwrap().to_str().unwrap());
        words.extend(match ends {
            Ends::Local => [arg(self.from).to_owned(), arg(&self.to).to_owned()],
            Ends::Pull { .. } => [url(self.from), arg(&self.to).to_owned()],
            Ends::Push { .. } => [arg(self.from).to_owned(), url(&self.to)],
        });
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        start(self.dir, &words, fault)
    }

    /// One kill by `plan`, and the way back. Whether it fired.
    fn run(&self, ends: Ends, plan: &str) -> bool {
        let armed = Fault::plan(plan).log(&self.log);
        let plain = Fault::none().log(&self.log);
        let (ours, theirs) = match ends {
            Ends::Local => (&armed, &plain),
            Ends::Pull { agent } | Ends::Push { agent } => {
                if agent {
                    (&plain, &armed)
                } else {
                    (&armed, &plain)
                }
            }
        };
        let mut other = None;
        let first = if ends == Ends::Local {
            self.cp(ends, None, ours).ends(PATIENCE)
        } else {
            let started =
                agent(self.dir, &self.dir.join("root"), None, theirs).expect("the points of an agent's start are none");
            let mut run = self.cp(ends, Some(&started), ours);
            let mut started = started;
            // The agent that dies is started again, on the port it had, without points.
            while run.child.try_wait().unwrap().is_none() {
                if started.child.try_wait().unwrap().is_some() {
                    let address = started.url.clone();
                    started = agent(self.dir, &self.dir.join("root"), Some(&address), &plain).expect("it starts again");
                }
                std::thread::sleep(Duration::from_millis(3));
            }
            let ended = run.ends(PATIENCE);
            if hits(&self.log).fired.is_empty() {
                other = Some(started);
            } else if std::ptr::eq(theirs, &armed) {
                // It may have died with its last word.
                let address = started.url.clone();
                drop(started);
                other = Some(agent(self.dir, &self.dir.join("root"), Some(&address), &plain).expect("it starts again"));
            } else {
                other = Some(started);
            }
            ended
        };
        let log = hits(&self.log);
        let fired = !log.fired.is_empty();
        if !fired {
            first.expect(0, "DURABLE");
        } else {
            self.cp(ends, other.as_ref(), &plain).ends(PATIENCE).expect(0, "DURABLE");
        }
        drop(other);
        let what = format!("{ends:?} {plan}");
        assert_eq!(differs(self.from, &self.to), None, "{what}");
        assert_eq!(leftovers(&self.to), Vec::<PathBuf>::new(), "{what}");
        fired
    }

    /// Blocks that were sent more often than the tree has them, by the source's own points.
    fn sent_again(&self, needed: u64) -> u64 {
        hits(&self.log).of("source.digested").saturating_sub(needed)
    }
}

/// Two processes, of which the one that passes this point has it armed.
fn remote(name: &str, pull: bool) -> Ends {
    let agent = match name {
        "session.opened" | "session.stream-dialled" => false,
        "session.answered" | "session.accepted" | "ticket.issued" => true,
        _ if name.starts_with("source.") => pull,
        _ => !pull,
    };
    if pull { Ends::Pull { agent } } else { Ends::Push { agent } }
}

fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK)
}

#[test]
fn a_kill_at_every_point_is_survived() {
    let dir = scratch(512 * MIB);
    let root = dir.path().join("root");
    let from = root.join("from");
    tree(&from, SHAPE, 7);
    let names = names();
    let mut total: BTreeMap<String, u64> = BTreeMap::new();
    let take = |log: &Path, total: &mut BTreeMap<String, u64>| {
        let Hits { seen, .. } = hits(log);
        seen.into_iter().for_each(|(name, n)| *total.entry(name).or_default() += n);
    };
    let new_case = |n: u64| {
        let (to, log) = (root.join(format!("to{n}")), dir.path().join(format!("log{n}")));
        Case { dir: dir.path(), from: &from, to, log }
    };
    let clean = |n: u64| {
        let _ = std::fs::remove_dir_all(root.join(format!("to{n}")));
        let _ = std::fs::remove_file(dir.path().join(format!("log{n}")));
    };
    // What one run hits, and that it sends nothing twice.
    let first = new_case(0);
    assert!(!first.run(Ends::Local, ""), "nothing is armed");
    let needed = blocks(SHAPE.big) + blocks(SHAPE.odd);
    assert_eq!(first.sent_again(needed), 0);
    let usual = hits(&first.log).seen;
    take(&first.log, &mut total);
    clean(0);
    let rounds = if long() { 10 } else { 2 };
    let mut random = Random::told("points");
    // Half of the runs in one process, half over two; which ones changes from run to run.
    let turn = random.between(0, 4) as usize;
    let (mut kills, mut runs, mut most, mut silent) = (0, 0, 0, Vec::new());
    for round in 0..rounds {
        for (index, name) in names.iter().enumerate() {
            // At its first hit, and somewhere in the middle.
            let local = (index + round + turn).is_multiple_of(2);
            let ends = if local { Ends::Local } else { remote(name, ((index + round + turn) / 2).is_multiple_of(2)) };
            let hits = usual.get(name).copied().unwrap_or(1);
            let nth = if random.next().is_multiple_of(3) { 1 } else { random.between(1, hits + 1) };
            runs += 1;
            let case = new_case(runs);
            let fired = case.run(ends, &format!("{name}:{nth}:kill"));
            kills += u64::from(fired);
            if !fired && ends == Ends::Local {
                silent.push(format!("{name}:{nth}"));
            }
            let again = case.sent_again(needed);
            most = most.max(again);
            let bound = resend_bound(STREAMS, SHAPE.big + SHAPE.odd) / BLOCK;
            assert!(again <= bound, "{ends:?} {name}:{nth}: {again} blocks sent again, at most {bound} are promised");
            take(&case.log, &mut total);
            clean(runs);
        }
    }
    // Fewer small files than a syncfs is worth are synced one by one.
    let three = root.join("three");
    tree(&three, Shape { big: 0, odd: 0, small: 2 }, 17);
    for n in 1..=3 {
        runs += 1;
        let case = Case { from: &three, ..new_case(runs) };
        kills += u64::from(case.run(Ends::Local, &format!("small.fsync:{n}:kill")));
        take(&case.log, &mut total);
        clean(runs);
    }
    let few: Vec<_> = names.iter().filter(|name| total.get(*name).copied().unwrap_or(0) < 5).collect();
    count(
        "kills-at-points",
        &[
            ("points", names.len() as u64),
            ("kills", kills),
            ("runs", runs),
            ("lost", 0),
            ("most-resent-mib", most * BLOCK / MIB),
            ("fewest-hits", names.iter().map(|n| total.get(n).copied().unwrap_or(0)).min().unwrap_or(0)),
        ],
    );
    assert!(few.is_empty(), "points that hardly any run passes: {few:?}");
    assert!(silent.len() as u64 * 5 <= names.len() as u64, "points that did not fire in a local copy: {silent:?}");
    assert!(kills * 3 >= runs * 2, "{kills} of {runs} runs were killed");
    if long() {
        assert!(kills >= 500, "{kills}");
    }
}

#[test]
fn kills_at_random_instants_are_survived() {
    let dir = scratch(256 * MIB);
    let from = dir.path().join("from");
    tree(&from, SHAPE, 11);
    let began = std::time::Instant::now();
    cp(dir.path(), &["-r", arg(&from), arg(&dir.path().join("whole"))], &Fault::none()).expect(0, "DURABLE");
    let usual = began.elapsed();
    let mut random = Random::told("instants");
    let wanted = if long() { 100 } else { 8 };
    let (mut kills, mut runs) = (0, 0);
    while kills < wanted {
        runs += 1;
        assert!(runs < 10 * wanted, "{kills} of {runs} runs were killed before their end");
        let to = dir.path().join("to");
        let words = ["-r", arg(&from), arg(&to)];
        // Twice in a row now and then: a resume can be killed as well.
        for _ in 0..1 + random.next() % 2 {
            let mut run = start(dir.path(), &words, &Fault::none());
            std::thread::sleep(Duration::from_micros(random.between(0, usual.as_micros() as u64)));
            let over = run.child.try_wait().unwrap().is_some();
            kills += u64::from(!over);
            run.kill();
        }
        cp(dir.path(), &words, &Fault::none()).expect(0, "DURABLE");
        assert_eq!(differs(&from, &to), None, "run {runs}");
        assert_eq!(leftovers(&to), Vec::<PathBuf>::new(), "run {runs}");
        std::fs::remove_dir_all(&to).unwrap();
    }
    count("kills-at-random-instants", &[("kills", kills), ("lost", 0)]);
}

/// A plan that cannot be read stops the process: a test that arms nothing would show nothing.
#[test]
fn a_plan_that_is_not_understood_is_no_plan() {
    let dir = scratch(0);
    let from = dir.path().join("from");
    std::fs::write(&from, b"x").unwrap();
    let ended = cp(dir.path(), &[arg(&from), arg(&dir.path().join("to"))], &Fault::plan("journal.synced:1:explode"));
    assert!(ended.said.contains("not understood: journal.synced:1:explode"), "{}", ended.all());
}
