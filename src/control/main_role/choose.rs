//! Which source serves an item. A pure function, so that what it does can be tested and, later, be replaced.

use crate::control::model::name::{AgentName, ItemId};
use crate::control::store::{Candidate, Claimable};
use std::collections::BTreeMap;

/// Online first, then fewer failures of this item, fewer long holds of it, the lower load (`given`: what this claim has added to
/// it), and by name.
pub fn choose<'a>(candidates: &'a [Candidate], given: &BTreeMap<AgentName, u64>) -> Option<&'a Candidate> {
    let load = |c: &Candidate| c.load.saturating_add(given.get(&c.agent).copied().unwrap_or(0));
    candidates.iter().min_by_key(|c| (!c.online, c.failures, c.holds, load(c), &c.agent))
}

/// A source for each, in order, each counted into the load that the next one sees.
pub fn choose_all(claimable: &[Claimable]) -> Vec<(ItemId, u64, AgentName)> {
    let mut given = BTreeMap::new();
    let mut chosen = Vec::with_capacity(claimable.len());
    for item in claimable {
        if let Some(best) = choose(&item.candidates, &given) {
            *given.entry(best.agent.clone()).or_insert(0) += 1;
            chosen.push((item.item, item.epoch, best.agent.clone()));
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(agent: &str, online: bool, failures: u64, load: u64) -> Candidate {
        Candidate { agent: agent.parse().unwrap(), load, failures, holds: 0, online }
    }

    #[test]
    fn online_then_failures_holds_load_and_name() {
        let tape = candidate("a", false, 0, 0);
        let failed = candidate("b", true, 1, 0);
        let held = Candidate { holds: 1, ..candidate("b", true, 0, 0) };
        let busy = candidate("c", true, 0, 9);
        let idle = candidate("e", true, 0, 1);
        let twin = candidate("d", true, 0, 1);
        let order = [twin, idle, busy, held, failed, tape];
        for from in 0..order.len() {
            let mut rest = order[from..].to_vec();
            rest.reverse();
            assert_eq!(choose(&rest, &BTreeMap::new()), Some(&order[from]), "from {from}");
        }
        assert_eq!(choose(&[], &BTreeMap::new()), None);
    }

    #[test]
    fn one_claim_spreads_over_equal_sources() {
        let candidates = vec![candidate("a", true, 0, 0), candidate("b", true, 0, 0)];
        let item = || Claimable { item: ItemId::new(), epoch: 0, bytes: None, candidates: candidates.clone() };
        let chosen = choose_all(&[item(), item(), item(), item()]);
        let names: Vec<_> = chosen.iter().map(|c| c.2.as_str()).collect();
        assert_eq!(names, ["a", "b", "a", "b"]);
    }
}
