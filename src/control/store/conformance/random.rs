//! Random interleavings of what agents, mains and people do, against what must hold whatever happens.

use super::kit::{Kit, actor, complete, failed, named, registration, renewal, says, spec_from};
use crate::control::model::agent::{OpenSession, Session};
use crate::control::model::item::{Assignment, FailureClass, ItemReport, ReportOutcome};
use crate::control::model::name::{ItemId, RequestId};
use crate::control::model::states::{ItemEvent, ItemState};
use std::collections::{BTreeMap, BTreeSet};

/// Two over one storage, one alone.
const AGENTS: [(&str, Option<&str>); 3] = [("a", Some("disk")), ("b", Some("disk")), ("c", None)];
const SOURCES: [&str; 2] = ["s1", "s2"];
const FILES: usize = 4;

/// The largest epoch given out, and what was accepted as an end under each.
#[derive(Default)]
struct Known {
    epoch: u64,
    ends: BTreeSet<(u64, ItemEvent)>,
    done: usize,
}

struct World<'k> {
    kit: &'k Kit,
    sessions: Vec<Session>,
    seqs: [u64; 3],
    /// All that was ever given to each agent, also what is not its own any more.
    given: [Vec<Assignment>; 3],
    requests: Vec<RequestId>,
    known: BTreeMap<ItemId, Known>,
    states: BTreeMap<ItemId, (ItemState, u64)>,
}

/// Whether the table leads from one state to another; out of an end only where somebody asked to try again.
fn leads(from: ItemState, to: ItemState, retried: bool) -> bool {
    let (mut reached, mut open) = (BTreeSet::from([from]), vec![from]);
    while let Some(state) = open.pop() {
        for (_, event, next) in ItemState::TABLE.iter().filter(|(start, _, _)| *start == state) {
            if (*event != ItemEvent::RetryFailed || retried) && reached.insert(*next) {
                open.push(*next);
            }
        }
    }
    reached.contains(&to)
}

/// Plays `steps`, each a number that says what happens and to whom.
pub async fn play(kit: &Kit, steps: &[u32]) {
    let mut world = World {
        kit,
        sessions: Vec::new(),
        seqs: [0; 3],
        given: Default::default(),
        requests: Vec::new(),
        known: BTreeMap::new(),
        states: BTreeMap::new(),
    };
    for name in SOURCES {
        kit.agent(name, None).await;
    }
    for (name, storage) in AGENTS {
        world.sessions.push(kit.agent(name, storage).await);
    }
    // The same paths twice at one storage.
    for to in ["a", "b", "c"] {
        world.requests.push(kit.active(spec_from(to, &SOURCES), FILES).await.id);
    }
    for step in steps {
        world.step(*step).await;
        world.check(step % 16 == 13).await;
    }
    for (item, known) in &world.known {
        let attempts = kit.store.attempts(*item).await.unwrap();
        let completed = attempts.iter().filter(|a| a.outcome == Some(ItemEvent::Complete)).count();
        let is_done = kit.state(*item).await == ItemState::Done;
        assert_eq!((completed, known.done), (usize::from(is_done), usize::from(is_done)), "{item} {attempts:?}");
    }
}

impl World<'_> {
    async fn step(&mut self, step: u32) {
        let who = (step as usize >> 4) % 3;
        let which = step as usize >> 6;
        match step % 16 {
            0..=3 => self.claim(who, 1 + which % 3).await,
            4..=9 => self.report(who, which).await,
            10 => {
                for name in SOURCES {
                    self.kit.agent(name, None).await;
                }
                let _ = self.kit.store.renew(named(AGENTS[who].0), renewal(&self.sessions[who])).await;
            }
            11 => {
                self.kit.clock.forward([1, 20, 40, 400][which % 4]);
                self.kit.sweep().await;
            }
            12 => {
                // What it says it still has: some, and something that it never had.
                let items =
                    self.given[who].iter().map(|a| a.item).filter(|item| item.0.as_u128() % 3 != which as u128 % 3);
                let open = OpenSession {
                    id: registration(AGENTS[who].0, None).id,
                    previous: Some(self.sessions[who].session),
                    items: items.chain([ItemId::new()]).collect(),
                };
                self.sessions[who] = self.kit.store.open_session(named(AGENTS[who].0), open).await.unwrap();
                self.seqs[who] = 0;
            }
            13 => drop(self.kit.store.retry_failed(self.requests[which % 3], actor()).await),
            14 => drop(self.kit.store.pause(self.requests[which % 3], actor(), which & 8 == 0).await),
            // Seldom: it ends a third of the game.
            _ if which.is_multiple_of(5) => drop(self.kit.store.cancel(self.requests[which % 3], actor()).await),
            _ => self.kit.clock.forward(3),
        }
    }

    async fn claim(&mut self, who: usize, limit: usize) {
        let name = AGENTS[who].0;
        let agent = self.kit.store.agent(named(name)).await.unwrap();
        let session = &self.sessions[who];
        if !agent.alive {
            let claim = super::kit::claim(session, 1, 1, crate::control::model::item::Side::Destination);
            assert!(self.kit.store.claim(named(name), claim, Vec::new()).await.is_err(), "a dead agent claims");
            return;
        }
        let given = self.kit.pulls(name, session, self.seqs[who] + 1, limit).await;
        let again = self.kit.pulls(name, session, self.seqs[who] + 1, limit).await;
        if given.is_empty() {
            // Not remembered: the second was a claim of its own.
            self.take(who, again);
        } else {
            assert_eq!(given, again, "the same number, the same answer");
            self.take(who, given);
        }
    }

    fn take(&mut self, who: usize, given: Vec<Assignment>) {
        self.seqs[who] += u64::from(!given.is_empty());
        for assignment in given {
            let known = self.known.entry(assignment.item).or_default();
            assert!(assignment.epoch > known.epoch, "an epoch is given out once: {assignment:?}");
            assert_eq!(known.done, 0, "what is done is not given out again");
            known.epoch = assignment.epoch;
            self.given[who].push(assignment);
        }
    }

    async fn report(&mut self, who: usize, which: usize) {
        let Some(of) = self.given[who].iter().rev().nth(which % self.given[who].len().clamp(1, 6)).cloned() else {
            return;
        };
        let report = match (which / 6) % 10 {
            0 => says(&of, ItemEvent::Start),
            1 => says(&of, ItemEvent::Hold),
            2 => says(&of, ItemEvent::Ready),
            3 => says(&of, ItemEvent::Commit),
            4 => ItemReport { retry_after_secs: Some(0), ..failed(&of, FailureClass::Transient) },
            5 => ItemReport { retry_after_secs: Some(0), ..says(&of, ItemEvent::Requeue) },
            6 => says(&of, ItemEvent::Cancel),
            7 => ItemReport { class: Some(FailureClass::Permanent), ..says(&of, ItemEvent::Fail) },
            _ => complete(&of),
        };
        let event = report.event;
        let before = self.kit.store.item(of.item).await.unwrap();
        let answer = self.kit.store.report(named(AGENTS[who].0), self.sessions[who].session, vec![report]).await;
        let after = self.kit.store.item(of.item).await.unwrap();
        let Ok(outcome) = answer.map(|outcomes| outcomes[0]) else {
            assert_eq!(before, after, "a refused batch changes nothing");
            return;
        };
        let known = self.known.get_mut(&of.item).unwrap();
        if of.epoch < known.epoch || !before.state.is_live() {
            assert_eq!(before, after, "a late report changes nothing");
            let said = known.ends.contains(&(of.epoch, event));
            let right = if said { ReportOutcome::Accepted } else { ReportOutcome::StaleEpoch };
            assert_eq!(outcome, right, "{event} of {of:?}, {known:?}", known = known.ends);
        } else if outcome == ReportOutcome::Accepted {
            if !after.state.is_live() {
                known.ends.insert((of.epoch, event));
            }
            known.done += usize::from(after.state == ItemState::Done);
        } else {
            assert_eq!(before, after, "what is not accepted changes nothing: {outcome:?}");
        }
    }

    /// What holds after every step.
    async fn check(&mut self, retried: bool) {
        let mut paths = BTreeSet::new();
        for (request, storage) in self.requests.iter().zip(["disk", "disk", "c"]) {
            self.kit.counted(*request).await;
            for item in self.kit.items(*request).await {
                let (state, epoch) = self.states.get(&item.id).copied().unwrap_or((ItemState::Queued, 0));
                assert!(leads(state, item.state, retried), "{state} became {}", item.state);
                assert!(item.epoch >= epoch);
                assert!(!item.state.is_live() || paths.insert((storage, item.path.clone())), "two write {}", item.path);
                self.states.insert(item.id, (item.state, item.epoch));
            }
        }
    }
}
