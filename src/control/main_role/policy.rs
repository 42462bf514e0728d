//! Who has to approve what was resolved. The first rule that fits counts; none: somebody has to.

use crate::control::access::below;
use crate::control::model::name::{AgentName, DatasetName};
use crate::control::model::request::{Approval, ApprovalRule, RequestView};
use crate::control::problem::Problem;
use crate::control::store::Resolution;
use std::collections::BTreeSet;

/// Distinct datasets of one request that are remembered for the rules; with more, no rule that names a dataset fits.
const MAX_DATASETS: usize = 1024;
/// What the reason of a request says first that its owner may approve as well. Written by [`decide`], read by [`may_decide`].
const REQUIRED: &str = "an approver has to say yes";
/// As [`REQUIRED`], for anybody but its owner.
const SECOND: &str = "an approver who is not the owner has to say yes";

/// What rules look at, gathered while the files are found.
#[derive(Debug, Default)]
pub struct Facts {
    /// Items.
    pub items: u64,
    /// Bytes over all of them; `None`: some size is not known.
    bytes: Option<u64>,
    datasets: BTreeSet<DatasetName>,
    /// Some file is of no dataset, or there were too many.
    other: bool,
}

impl Facts {
    /// Of nothing.
    pub fn new() -> Self {
        Self { bytes: Some(0), ..Self::default() }
    }

    /// One more file, to so many destinations.
    pub fn add(&mut self, dataset: Option<&DatasetName>, bytes: Option<u64>, times: u64) {
        self.items += times;
        self.bytes = self.bytes.zip(bytes).map(|(sum, b)| sum.saturating_add(b.saturating_mul(times)));
        match dataset {
            Some(name) if self.datasets.contains(name) => {}
            Some(name) if self.datasets.len() < MAX_DATASETS => {
                self.datasets.insert(name.clone());
            }
            _ => self.other = true,
        }
    }

    fn within(&self, scope: &DatasetName) -> bool {
        let below = |name: &DatasetName| below(name.as_str(), scope.as_str());
        !self.other && !self.datasets.is_empty() && self.datasets.iter().all(below)
    }
}

fn fits(rule: &ApprovalRule, owner: &str, destinations: &[AgentName], facts: &Facts) -> bool {
    rule.owner.as_ref().is_none_or(|name| name == owner)
        && rule.dataset_prefix.as_ref().is_none_or(|scope| facts.within(scope))
        && rule.destination.as_ref().is_none_or(|name| destinations.iter().all(|d| d == name))
        && rule.max_bytes.is_none_or(|max| facts.bytes.is_some_and(|bytes| bytes <= max))
}

/// What the rules say.
pub fn decide(rules: &[ApprovalRule], owner: &str, destinations: &[AgentName], facts: &Facts) -> Resolution {
    match rules.iter().find(|rule| fits(rule, owner, destinations, facts)) {
        None => Resolution::NeedsApproval(format!("{REQUIRED}: no rule says otherwise")),
        Some(rule) => match rule.then {
            Approval::Automatic => Resolution::Approved { rule: rule.name.clone() },
            Approval::Required => Resolution::NeedsApproval(format!("{REQUIRED}: rule `{}`", rule.name)),
            Approval::SecondPerson => Resolution::NeedsApproval(format!("{SECOND}: rule `{}`", rule.name)),
        },
    }
}

/// Whether the token `name` may decide on `request`. A reason that is not one of ours is taken as the stricter one.
pub fn may_decide(request: &RequestView, name: &str) -> Result<(), Problem> {
    let required = request.reason.as_ref().is_some_and(|reason| reason.starts_with(REQUIRED));
    match required || request.owner != name {
        true => Ok(()),
        false => Err(Problem::denied("this request needs a second person: its owner may not decide on it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(change: impl FnOnce(&mut ApprovalRule)) -> ApprovalRule {
        let mut rule = ApprovalRule {
            name: "r".into(),
            owner: None,
            dataset_prefix: None,
            destination: None,
            max_bytes: None,
            then: Approval::Automatic,
        };
        change(&mut rule);
        rule
    }

    #[test]
    fn each_condition_counts_and_the_first_rule_that_fits() {
        let name = |text: &str| Some(text.parse::<DatasetName>().unwrap());
        let mut facts = Facts::new();
        facts.add(name("/cosmics/run7").as_ref(), Some(50), 2);
        let to = ["d".parse().unwrap()];
        let automatic = |rule: ApprovalRule, facts: &Facts| {
            matches!(decide(&[rule], "alice", &to, facts), Resolution::Approved { .. })
        };
        for (change, want) in [
            (Box::new(|_: &mut ApprovalRule| {}) as Box<dyn Fn(&mut ApprovalRule)>, true),
            (Box::new(|r| r.owner = Some("alice".into())), true),
            (Box::new(|r| r.owner = Some("bob".into())), false),
            (Box::new(|r| r.dataset_prefix = "/cosmics".parse().ok()), true),
            (Box::new(|r| r.dataset_prefix = "/cosmics/run".parse().ok()), false),
            (Box::new(|r| r.destination = "d".parse().ok()), true),
            (Box::new(|r| r.destination = "e".parse().ok()), false),
            (Box::new(|r| r.max_bytes = Some(100)), true),
            (Box::new(|r| r.max_bytes = Some(99)), false),
        ] {
            let rule = rule(change);
            assert_eq!(automatic(rule.clone(), &facts), want, "{rule:?}");
        }
        // A file whose size or dataset nobody knows is within no bound.
        facts.add(None, None, 1);
        assert!(!automatic(rule(|r| r.max_bytes = Some(u64::MAX)), &facts));
        assert!(!automatic(rule(|r| r.dataset_prefix = "/cosmics".parse().ok()), &facts));
        let first = rule(|r| r.then = Approval::SecondPerson);
        let both = [first, rule(|_| {})];
        assert!(matches!(decide(&both, "a", &to, &facts), Resolution::NeedsApproval(why) if why.starts_with(SECOND)));
        assert!(matches!(decide(&[], "a", &to, &facts), Resolution::NeedsApproval(why) if why.starts_with(REQUIRED)));
    }
}
