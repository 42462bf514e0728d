//! Requests and their items as people read them.

use super::super::fail::printable;
use super::super::report::grouped;
use super::super::service::{moment, table};
use crate::control::model::item::{AttemptView, ItemView};
use crate::control::model::request::{Approval, ApprovalRule, RequestView, Selection, SourceChoice, Verdict};
use crate::control::model::states::RequestState;
use crate::units::Bytes;

/// The state, and what stands beside it.
pub fn state(request: &RequestView) -> String {
    let mut out = request.state.word().replace('_', " ");
    if request.cancelling && !request.state.has_ended() {
        out.push_str(", cancelling");
    }
    if request.paused && !request.state.has_ended() {
        out.push_str(", paused");
    }
    out
}

/// What was asked for, in a few words.
pub fn what(request: &RequestView) -> String {
    match &request.spec.select {
        Selection::Dataset(name) => name.to_string(),
        Selection::Block(name) => name.to_string(),
        Selection::Files(files) => match &files[..] {
            [one] => one.to_string(),
            files => format!("{} files", grouped(files.len() as u64)),
        },
        Selection::Prefix(path) => format!("{path}/..."),
        Selection::Manifest => "manifest".to_owned(),
    }
}

fn destinations(request: &RequestView) -> String {
    request.spec.destinations.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn done(request: &RequestView) -> String {
    let c = &request.counters;
    format!("{}/{}", grouped(c.done + c.skipped), grouped(c.files))
}

/// One line for each.
pub fn requests(requests: &[RequestView]) -> String {
    let heads = ["ID", "STATE", "FILES", "SIZE", "TO", "OWNER", "CREATED", "WHAT"];
    table(
        heads,
        requests.iter().map(|request| {
            [
                request.id.to_string(),
                state(request),
                done(request),
                Bytes(request.counters.bytes).to_string(),
                destinations(request),
                request.owner.clone(),
                moment(request.created),
                what(request),
            ]
        }),
    )
}

/// How far it is, in a line.
pub fn progress(request: &RequestView) -> String {
    let c = &request.counters;
    let mut out = state(request);
    if c.files > 0 {
        out.push_str(&format!(
            ": {} of {} files, {} of {}",
            grouped(c.done + c.skipped),
            grouped(c.files),
            Bytes(c.done_bytes),
            Bytes(c.bytes)
        ));
    }
    for (count, word) in
        [(c.running, "running"), (c.holding, "on hold"), (c.failed, "failed"), (c.cancelled, "cancelled")]
    {
        if count > 0 {
            out.push_str(&format!(", {} {word}", grouped(count)));
        }
    }
    if request.state == RequestState::PendingApproval
        && let Some(reason) = &request.reason
    {
        out.push_str(&format!(" ({})", printable(reason)));
    }
    out
}

/// All of it.
pub fn request(request: &RequestView) -> String {
    let (spec, c) = (&request.spec, &request.counters);
    let mut out = format!("{}\n", request.id);
    let mut line = |name: &str, value: &str| out.push_str(&format!("  {name:<12}{}\n", printable(value)));
    line("state", &state(request));
    if let Some(reason) = &request.reason {
        line("reason", reason);
    }
    line("what", &what(request));
    let from = match &spec.source {
        SourceChoice::Any => "any agent that has it".to_owned(),
        SourceChoice::Agents(agents) => agents.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    line("from", &from);
    let below = spec.path.as_ref().map_or_else(String::new, |path| format!(" below {path}"));
    line("to", &format!("{}{below}", destinations(request)));
    line("model", &format!("{:?}, priority {}", spec.model, spec.priority).to_lowercase());
    line(
        "files",
        &format!(
            "{} in all: {} done, {} skipped, {} running, {} queued, {} on hold, {} failed, {} cancelled",
            grouped(c.files),
            grouped(c.done),
            grouped(c.skipped),
            grouped(c.running),
            grouped(c.queued),
            grouped(c.holding),
            grouped(c.failed),
            grouped(c.cancelled)
        ),
    );
    line("bytes", &format!("{} of {}", Bytes(c.done_bytes), Bytes(c.bytes)));
    if let Some(rate) = spec.max_rate {
        line("max rate", &format!("{} bit/s", grouped(rate)));
    }
    if let Some(time) = spec.not_before {
        line("not before", &moment(time));
    }
    if let Some(time) = spec.deadline {
        line("deadline", &moment(time));
    }
    for (key, value) in &spec.labels {
        line("label", &format!("{key}={value}"));
    }
    if let Some(comment) = &spec.comment {
        line("comment", comment);
    }
    line("owner", &request.owner);
    line("created", &moment(request.created));
    for decision in &request.decisions {
        let verb = match decision.decision {
            Verdict::Approve => "approved",
            Verdict::Reject => "rejected",
        };
        let why = decision.comment.as_ref().map_or_else(String::new, |c| format!(": {c}"));
        line(verb, &format!("by {} at {}{why}", decision.by, moment(decision.at)));
    }
    if let Some(time) = request.ended {
        line("ended", &moment(time));
    }
    if let Some(digest) = &request.digest {
        line("digest", digest);
    }
    out
}

/// One line for each.
pub fn items(items: &[ItemView]) -> String {
    let heads = ["ITEM", "STATE", "SIZE", "PLACED", "TRIES", "FROM", "TO", "FILE", "REASON"];
    table(
        heads,
        items.iter().map(|item| {
            [
                item.id.to_string(),
                item.state.to_string(),
                item.bytes.map_or_else(|| "?".to_owned(), |b| Bytes(b).to_string()),
                Bytes(item.progress).to_string(),
                item.tries.to_string(),
                item.source.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                item.destination.to_string(),
                item.lfn.to_string(),
                item.reason.clone().unwrap_or_default(),
            ]
        }),
    )
}

/// One line for each.
pub fn rules(rules: &[ApprovalRule]) -> String {
    let any = || "any".to_owned();
    let heads = ["RULE", "OWNER", "DATASETS", "TO", "AT MOST", "THEN"];
    table(
        heads,
        rules.iter().map(|rule| {
            [
                rule.name.clone(),
                rule.owner.clone().unwrap_or_else(any),
                rule.dataset_prefix.as_ref().map_or_else(any, ToString::to_string),
                rule.destination.as_ref().map_or_else(any, ToString::to_string),
                rule.max_bytes.map_or_else(any, |bytes| Bytes(bytes).to_string()),
                match rule.then {
                    Approval::Automatic => "automatic",
                    Approval::Required => "an approver",
                    Approval::SecondPerson => "an approver who is not the owner",
                }
                .to_owned(),
            ]
        }),
    )
}

/// One line for each.
pub fn attempts(tries: &[AttemptView]) -> String {
    let heads = ["TRY", "AGENT", "FROM", "STARTED", "ENDED", "OUTCOME", "CLASS", "MOVED", "REASON"];
    table(
        heads,
        tries.iter().map(|a| {
            [
                a.epoch.to_string(),
                a.agent.to_string(),
                a.source.to_string(),
                moment(a.started),
                a.ended.map_or_else(|| "-".to_owned(), moment),
                a.outcome.map_or_else(|| "-".to_owned(), |o| o.to_string()),
                a.class.map_or_else(|| "-".to_owned(), |c| format!("{c:?}").to_lowercase()),
                Bytes(a.bytes).to_string(),
                a.reason.clone().unwrap_or_default(),
            ]
        }),
    )
}
