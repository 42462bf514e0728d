//! The points of a test build: which are armed, how often each was hit, and what happens there.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::power;

/// What happens at an armed point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Kill,
    /// Power loss of a file system, with this flag, then the same.
    Cut(u32),
    /// The same, and the process goes on.
    Off,
    Delay(Duration),
    Fail(Errno),
    Short,
    Flip,
    Move,
}

#[derive(Debug)]
struct Rule {
    name: String,
    first: u64,
    last: u64,
    action: Action,
    hits: AtomicU64,
}

#[derive(Debug, Default)]
struct Plan {
    rules: Vec<Rule>,
    log: Option<File>,
    mount: Option<File>,
}

fn errno(word: &str) -> Option<Errno> {
    // The errors that storage gives; more are added as tests want them.
    let known = [Errno::EIO, Errno::ENOSPC, Errno::EDQUOT, Errno::EROFS, Errno::EMFILE, Errno::ESTALE, Errno::EINTR];
    known.into_iter().find(|errno| format!("{errno:?}") == word)
}

fn action(word: &str) -> Option<Action> {
    Some(match word.split_once('=') {
        None => match word {
            "kill" => Action::Kill,
            "cut1" => Action::Cut(power::LOG_FLUSHED),
            "cut2" => Action::Cut(power::NOTHING_FLUSHED),
            "off2" => Action::Off,
            "short" => Action::Short,
            "flip" => Action::Flip,
            "move" => Action::Move,
            _ => return None,
        },
        Some(("delay", ms)) => Action::Delay(Duration::from_millis(ms.parse().ok()?)),
        Some(("fail", word)) => Action::Fail(errno(word)?),
        Some(_) => return None,
    })
}

fn when(word: &str) -> Option<(u64, u64)> {
    if word == "*" {
        return Some((1, u64::MAX));
    }
    if let Some(from) = word.strip_suffix('+') {
        return Some((from.parse().ok()?, u64::MAX));
    }
    match word.split_once('-') {
        Some((first, last)) => Some((first.parse().ok()?, last.parse().ok()?)),
        None => word.parse().ok().map(|n| (n, n)),
    }
}

fn rule(text: &str) -> Option<Rule> {
    let mut words = text.split(':');
    let (name, times, what) = (words.next()?, words.next()?, words.next()?);
    let ((first, last), action) = (when(times)?, action(what)?);
    Some(Rule { name: name.to_owned(), first, last, action, hits: AtomicU64::new(0) })
}

fn plan() -> Option<&'static Plan> {
    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    let read = || {
        let text = std::env::var("LONGHAUL_FAULT").unwrap_or_default();
        let path = std::env::var_os("LONGHAUL_FAULT_LOG");
        if text.is_empty() && path.is_none() {
            return None;
        }
        let rules = text.split(',').filter(|t| !t.is_empty());
        // A test that arms nothing would test nothing: better no process than that.
        let rules = rules.map(|text| rule(text).unwrap_or_else(|| panic!("LONGHAUL_FAULT: not understood: {text}")));
        let log = path.map(|path| File::options().append(true).create(true).open(path).expect("LONGHAUL_FAULT_LOG"));
        let mount = std::env::var_os("LONGHAUL_FAULT_MOUNT");
        let mount = mount.map(|path| File::open(path).expect("LONGHAUL_FAULT_MOUNT"));
        Some(Plan { rules: rules.collect(), log, mount })
    };
    PLAN.get_or_init(read).as_ref()
}

impl Plan {
    /// One write for each line, so that lines of several threads and processes do not mix.
    fn note(&self, line: &str) {
        if let Some(mut log) = self.log.as_ref() {
            let _ = log.write_all(line.as_bytes());
        }
    }
}

fn die() -> ! {
    let _ = kill(Pid::this(), Signal::SIGKILL);
    // The signal is there before the call returns; this thread at least does nothing more.
    loop {
        std::thread::park();
    }
}

pub(super) fn hit(name: &'static str) -> Option<&'static Action> {
    hit_with(name, None)
}

/// Counts a hit, and does what it is armed with as far as that can be done here.
pub(super) fn hit_with(name: &'static str, what: Option<&dyn Display>) -> Option<&'static Action> {
    let plan = plan()?;
    if plan.log.is_some() {
        match what {
            Some(what) => plan.note(&format!("{name} {what}\n")),
            None => plan.note(&format!("{name}\n")),
        }
    }
    let mut found = None;
    for rule in plan.rules.iter().filter(|rule| rule.name == name) {
        let count = rule.hits.fetch_add(1, Ordering::Relaxed) + 1;
        if !(rule.first..=rule.last).contains(&count) {
            continue;
        }
        plan.note(&format!("! {name} {:?}\n", rule.action));
        match &rule.action {
            Action::Kill => die(),
            Action::Cut(flag) => {
                let mount = plan.mount.as_ref().expect("a cut needs LONGHAUL_FAULT_MOUNT");
                power::cut(mount, *flag).expect("a cut needs root, and ext4 or XFS");
                die();
            }
            Action::Off => {
                let mount = plan.mount.as_ref().expect("a cut needs LONGHAUL_FAULT_MOUNT");
                power::cut(mount, power::NOTHING_FLUSHED).expect("a cut needs root, and ext4 or XFS");
            }
            Action::Delay(time) => std::thread::sleep(*time),
            action => found = Some(action),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_are_written() {
        let read = |text: &str| rule(text).map(|r| (r.first, r.last, r.action));
        assert_eq!(read("a.b:3:kill"), Some((3, 3, Action::Kill)));
        assert_eq!(read("a.b:2-5:fail=EIO"), Some((2, 5, Action::Fail(Errno::EIO))));
        assert_eq!(read("a.b:4+:delay=20"), Some((4, u64::MAX, Action::Delay(Duration::from_millis(20)))));
        assert_eq!(read("a.b:*:cut2"), Some((1, u64::MAX, Action::Cut(power::NOTHING_FLUSHED))));
        for wrong in ["a.b", "a.b:1", "a.b:x:kill", "a.b:1:fail=EFOO", "a.b:1:explode", "a.b:1:delay=soon"] {
            assert!(rule(wrong).is_none(), "{wrong}");
        }
    }
}
