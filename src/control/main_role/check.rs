//! Whether what a client sent can be meant. What the types cannot say: bounds, and fields that depend on each other.

use super::web::invalid;
use crate::control::model::agent::AgentRegistration;
use crate::control::model::catalog::{MAX_RECORDS, Record};
use crate::control::model::item::{ItemReport, MAX_REPORTS};
use crate::control::model::name::Lfn;
use crate::control::model::request::{
    ApprovalRule, MAX_DESTINATIONS, MAX_LABEL, MAX_LABELS, MAX_LISTED, MAX_PRIORITY, RequestPatch, RequestSpec,
    Selection, SourceChoice,
};
use crate::control::model::time::Time;
use crate::control::problem::Problem;
use crate::control::url::PeerUrl;
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a comment or a reason.
pub const MAX_WORDS: usize = 4096;
/// Tries of one item.
pub const MAX_TRIES: u32 = 100;
/// Seconds of a hold: 90 days.
pub const MAX_STAGE_TIMEOUT_SECS: u64 = 90 * 24 * 3600;
/// Approval rules.
pub const MAX_RULES: usize = 1000;

fn unless(wrong: bool, detail: impl FnOnce() -> String) -> Result<(), Problem> {
    if wrong { Err(invalid(detail())) } else { Ok(()) }
}

fn distinct<T: Ord>(list: &[T], field: &str) -> Result<(), Problem> {
    let set: BTreeSet<&T> = list.iter().collect();
    unless(set.len() != list.len(), || format!("`{field}` lists something twice"))
}

fn words(text: Option<&String>, field: &str) -> Result<(), Problem> {
    unless(text.is_some_and(|t| t.len() > MAX_WORDS), || format!("`{field}` is at most {MAX_WORDS} bytes"))
}

fn labels(labels: &BTreeMap<String, String>) -> Result<(), Problem> {
    unless(labels.len() > MAX_LABELS, || format!("`labels` has at most {MAX_LABELS} entries"))?;
    let bad = |(key, value): (&String, &String)| {
        let control = key.chars().chain(value.chars()).any(char::is_control);
        key.is_empty() || key.contains('=') || key.len() > MAX_LABEL || value.len() > MAX_LABEL || control
    };
    unless(labels.iter().any(bad), || {
        format!(
            "`labels`: keys have 1 to {MAX_LABEL} bytes without `=`, values at most {MAX_LABEL}, no control characters"
        )
    })
}

fn priority(priority: u8) -> Result<(), Problem> {
    unless(priority > MAX_PRIORITY, || format!("`priority` is 0 to {MAX_PRIORITY}"))
}

fn digest(digest: Option<&String>, field: &str) -> Result<(), Problem> {
    let hex = |d: &String| d.len() == 32 && d.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    unless(digest.is_some_and(|d| !hex(d)), || format!("`{field}` is 32 lower-case hex digits (XXH3-128)"))
}

/// A request at `now`.
pub fn spec(spec: &RequestSpec, now: Time) -> Result<(), Problem> {
    let count = spec.destinations.len();
    unless(count == 0 || count > MAX_DESTINATIONS, || format!("`destinations` lists 1 to {MAX_DESTINATIONS} agents"))?;
    distinct(&spec.destinations, "destinations")?;
    if let Selection::Files(files) = &spec.select {
        unless(files.is_empty() || files.len() > MAX_LISTED, || {
            format!(
                "`select.files` lists 1 to {MAX_LISTED} files: upload more as a manifest (`\"select\": \"manifest\"`)"
            )
        })?;
        distinct(files, "select.files")?;
    }
    if let SourceChoice::Agents(agents) = &spec.source {
        let count = agents.len();
        unless(count == 0 || count > MAX_DESTINATIONS, || {
            format!("`source.agents` lists 1 to {MAX_DESTINATIONS} agents")
        })?;
        distinct(agents, "source.agents")?;
    }
    if let Selection::Prefix(_) = spec.select {
        let one = matches!(&spec.source, SourceChoice::Agents(agents) if agents.len() == 1);
        unless(!one, || {
            "`select.prefix` needs one agent in `source.agents`: that one is asked what lies there".into()
        })?;
    }
    priority(spec.priority)?;
    unless(spec.max_rate == Some(0), || "`max_rate` is at least 1 bit per second".into())?;
    unless(spec.tries == 0 || spec.tries > MAX_TRIES, || format!("`tries` is 1 to {MAX_TRIES}"))?;
    unless(spec.stage_timeout_secs > MAX_STAGE_TIMEOUT_SECS, || {
        format!("`stage_timeout_secs` is at most {MAX_STAGE_TIMEOUT_SECS}")
    })?;
    unless(spec.deadline.is_some_and(|d| d <= now), || format!("`deadline` has passed: here it is {now}"))?;
    unless(spec.deadline.zip(spec.not_before).is_some_and(|(d, n)| d <= n), || {
        "`deadline` lies before `not_before`".into()
    })?;
    labels(&spec.labels)?;
    words(spec.comment.as_ref(), "comment")
}

/// A change of a request at `now`.
pub fn patch(patch: &RequestPatch, now: Time) -> Result<(), Problem> {
    unless(*patch == RequestPatch::default(), || {
        "nothing is to be changed: `priority`, `deadline`, `max_rate` and `labels` can be".into()
    })?;
    patch.priority.map_or(Ok(()), priority)?;
    unless(patch.max_rate == Some(0), || "`max_rate` is at least 1 bit per second".into())?;
    unless(patch.deadline.is_some_and(|d| d <= now), || format!("`deadline` has passed: here it is {now}"))?;
    patch.labels.as_ref().map_or(Ok(()), labels)
}

/// An agent.
pub fn registration(registration: &AgentRegistration) -> Result<(), Problem> {
    let url = PeerUrl::parse(registration.url.as_bytes());
    unless(registration.url.len() > 512 || url.is_err(), || {
        "`url` is lh://host:port, where others reach the agent".into()
    })?;
    let known = |role: &String| matches!(role.as_str(), "main" | "source" | "destination");
    unless(registration.roles.len() > 3 || !registration.roles.iter().all(known), || {
        "`roles` lists `main`, `source`, `destination`".into()
    })?;
    distinct(&registration.roles, "roles")?;
    let fingerprint = |text: &String| {
        let digits = text.strip_prefix("sha256:").unwrap_or_default();
        digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())
    };
    unless(registration.fingerprint.as_ref().is_some_and(|f| !fingerprint(f)), || {
        "`fingerprint` is `sha256:` and 64 hex digits".into()
    })?;
    let texts = [Some(&registration.version), registration.site.as_ref(), registration.storage.as_ref()];
    unless(texts.into_iter().flatten().any(|t| t.len() > MAX_LABEL), || {
        format!("`version`, `site` and `storage` are at most {MAX_LABEL} bytes")
    })
}

/// Catalog records of one batch.
pub fn records(records: &[Record]) -> Result<(), Problem> {
    unless(records.is_empty() || records.len() > MAX_RECORDS, || format!("a batch has 1 to {MAX_RECORDS} records"))?;
    for record in records {
        unless(record.dataset.is_some() != record.block.is_some(), || {
            format!("{}: `dataset` and `block` come together, or neither", record.lfn)
        })?;
        unless(i64::try_from(record.bytes).is_err(), || format!("{}: `bytes` is at most 2^63-1", record.lfn))?;
        digest(record.digest.as_ref(), "digest")?;
    }
    Ok(())
}

/// Names of one batch.
pub fn lfns(lfns: &[Lfn]) -> Result<(), Problem> {
    unless(lfns.is_empty() || lfns.len() > MAX_RECORDS, || format!("a batch has 1 to {MAX_RECORDS} names"))
}

/// An agent's reports.
pub fn reports(reports: &[ItemReport]) -> Result<(), Problem> {
    unless(reports.len() > MAX_REPORTS, || format!("a batch has at most {MAX_REPORTS} reports"))?;
    for report in reports {
        words(report.reason.as_ref(), "reason")?;
        digest(report.digest.as_ref(), "digest")?;
        let sizes = [Some(report.bytes), report.size];
        unless(sizes.into_iter().flatten().any(|n| i64::try_from(n).is_err()), || {
            "`bytes` and `size` are at most 2^63-1".into()
        })?;
    }
    Ok(())
}

/// The approval rules.
pub fn rules(rules: &[ApprovalRule]) -> Result<(), Problem> {
    unless(rules.len() > MAX_RULES, || format!("there are at most {MAX_RULES} rules"))?;
    let names: Vec<&String> = rules.iter().map(|rule| &rule.name).collect();
    distinct(&names, "name")?;
    let bad = |name: &&String| name.is_empty() || name.len() > MAX_LABEL || name.chars().any(char::is_control);
    unless(names.iter().any(bad), || format!("a rule's `name` has 1 to {MAX_LABEL} bytes, no control characters"))
}

/// A manifest's line.
pub fn manifest_digest(text: Option<&String>) -> Result<(), Problem> {
    digest(text, "digest")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Every field that is out of bounds is refused, and the sentence names it.
    #[test]
    fn every_field_is_checked() {
        let now = Time(1_700_000_000_000);
        let good = json!({"select": {"dataset": "/a"}, "destinations": ["d"]});
        spec(&serde_json::from_value(good.clone()).unwrap(), now).unwrap();
        let many: Vec<String> = (0..=MAX_LISTED).map(|n| format!("/f{n}")).collect();
        let agents: Vec<String> = (0..=MAX_DESTINATIONS).map(|n| format!("a{n}")).collect();
        let long = "x".repeat(MAX_WORDS + 1);
        let table: BTreeMap<String, String> = (0..=MAX_LABELS).map(|n| (n.to_string(), String::new())).collect();
        for (field, value) in [
            ("destinations", json!([])),
            ("destinations", json!(["d", "d"])),
            ("destinations", json!(agents)),
            ("select", json!({"files": []})),
            ("select", json!({"files": ["/a", "/a"]})),
            ("select", json!({"files": many})),
            ("select", json!({"prefix": "/a"})),
            ("source", json!({"agents": []})),
            ("source", json!({"agents": agents})),
            ("source", json!({"agents": ["s", "s"]})),
            ("priority", json!(10)),
            ("max_rate", json!(0)),
            ("tries", json!(0)),
            ("tries", json!(101)),
            ("stage_timeout_secs", json!(MAX_STAGE_TIMEOUT_SECS + 1)),
            ("deadline", json!("2023-01-01T00:00:00Z")),
            ("labels", json!(table)),
            ("labels", json!({"": "x"})),
            ("labels", json!({"a=b": "x"})),
            ("labels", json!({"a": "x".repeat(MAX_LABEL + 1)})),
            ("comment", json!(long)),
        ] {
            let mut bad = good.clone();
            bad[field] = value.clone();
            let problem = spec(&serde_json::from_value(bad).unwrap(), now).expect_err(&format!("{field}: {value}"));
            assert!(problem.detail.contains(&format!("`{field}")), "{field}: {}", problem.detail);
        }
        let mut late = good;
        late["deadline"] = json!("2030-01-01T00:00:00Z");
        late["not_before"] = json!("2031-01-01T00:00:00Z");
        assert!(spec(&serde_json::from_value(late).unwrap(), now).is_err());
    }
}
