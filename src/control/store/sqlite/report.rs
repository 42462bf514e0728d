//! What agents say of their items. A report counts under the epoch it names or not at all; said twice it counts once.

use super::super::{StoreError, Swept};
use super::agent;
use super::catalog;
use super::claim;
use super::cx::{Cx, R};
use super::item::{self, Ending, Item, Requests};
use super::request::Request;
use super::value::Int;
use crate::control::model::item::{FailureClass, ItemReport, MAX_REPORTS, ReportOutcome};
use crate::control::model::name::{AgentName, SessionKey};
use crate::control::model::states::{ItemEvent, ItemState};
use rusqlite::params;

/// The longest pause between two tries, in seconds.
const MAX_PAUSE_SECS: u64 = 900;
/// Seconds for which nothing is placed at a storage that could not take something, when its agent does not say.
const STORAGE_PAUSE_SECS: u64 = 300;
/// Tries that may fail at the destination for each one of a request's: a disk that is full over the weekend fails nothing.
const PLACINGS: u64 = 200;
/// Holds that one sweep ends.
const HOLDS: usize = 1000;

/// The way that bytes go.
const WAY: [(ItemEvent, ItemState); 4] = [
    (ItemEvent::Start, ItemState::Transferring),
    (ItemEvent::Verify, ItemState::Verifying),
    (ItemEvent::Commit, ItemState::Committing),
    (ItemEvent::Complete, ItemState::Done),
];

pub(super) fn report(
    cx: &Cx<'_>,
    name: &AgentName,
    session: SessionKey,
    reports: &[ItemReport],
) -> R<Vec<ReportOutcome>> {
    if reports.len() > MAX_REPORTS {
        return Err(StoreError::TooMuch(format!("{} reports at once: at most {MAX_REPORTS}", reports.len())));
    }
    agent::in_session(cx, name, session)?;
    let mut requests = Requests::default();
    reports.iter().map(|report| one(cx, &mut requests, name, session, report)).collect()
}

fn one(
    cx: &Cx<'_>,
    requests: &mut Requests,
    name: &AgentName,
    session: SessionKey,
    report: &ItemReport,
) -> R<ReportOutcome> {
    let Some(old) = item::by_id(cx, report.item)? else { return Ok(ReportOutcome::Unknown) };
    if old.epoch != report.epoch || old.session != Some(session) {
        return said_before(cx, &old, name, report);
    }
    let request = requests.get(cx, old.request)?;
    let mut new = old.clone();
    let event = match report.event {
        ItemEvent::Claim | ItemEvent::RetryFailed => return Ok(ReportOutcome::Illegal),
        ItemEvent::Start | ItemEvent::Verify | ItemEvent::Commit | ItemEvent::Complete => {
            if !advance(&mut new, report.event) {
                return Ok(ReportOutcome::Illegal);
            }
            report.event
        }
        ItemEvent::Ready if old.state != ItemState::Hold => report.event,
        ItemEvent::Skip | ItemEvent::Ready => {
            let woken = old.state != ItemState::Hold || new.go(ItemEvent::Ready);
            if !woken || (report.event == ItemEvent::Skip && !new.go(ItemEvent::Skip)) {
                return Ok(ReportOutcome::Illegal);
            }
            report.event
        }
        ItemEvent::Hold => {
            if !new.go(ItemEvent::Hold) {
                return Ok(ReportOutcome::Illegal);
            }
            let since = *new.hold_since.get_or_insert(cx.now);
            new.hold_until = Some(since.plus_secs(request.view.spec.stage_timeout_secs));
            new.not_before = cx.now.plus_secs(report.retry_after_secs.unwrap_or(0));
            ItemEvent::Hold
        }
        // Only what was asked to stop stops.
        ItemEvent::Cancel if !request.stopping() || old.state == ItemState::Committing => {
            return Ok(ReportOutcome::Illegal);
        }
        ItemEvent::Cancel => item::put_back(&mut new, &request),
        ItemEvent::Fail => {
            new.go(ItemEvent::Fail);
            ItemEvent::Fail
        }
        ItemEvent::Requeue => return requeue(cx, &request, &old, report, report.class, report.reason.as_deref()),
    };
    if new.state == old.state && event != ItemEvent::Hold {
        return Ok(ReportOutcome::Accepted);
    }
    if matches!(event, ItemEvent::Complete | ItemEvent::Skip) {
        match catalog::placed(cx, &mut new, report, event)? {
            Ok(()) => {}
            Err(why) => {
                // What was placed is not what the catalog has: the try failed, whatever its agent thinks.
                requeue(cx, &request, &old, report, Some(FailureClass::Integrity), Some(&why))?;
                return Ok(ReportOutcome::Illegal);
            }
        }
    } else {
        new.progress = report.bytes.max(new.progress);
    }
    new.reason = report.reason.clone();
    if !new.state.is_live() {
        end_attempt(cx, &old, report, event, report.class)?;
    }
    item::save(cx, &request, &old, &new, event)?;
    Ok(ReportOutcome::Accepted)
}

/// An agent that got no answer says it again: what was taken is accepted once more. Anything else comes too late.
fn said_before(cx: &Cx<'_>, item: &Item, name: &AgentName, report: &ItemReport) -> R<ReportOutcome> {
    let same = cx.one(
        "SELECT 1 FROM attempt WHERE item = ?1 AND epoch = ?2 AND agent = ?3 AND reported = ?4",
        params![item.n, Int(report.epoch), name, report.event],
        |_| Ok(()),
    )?;
    Ok(if same.is_some() { ReportOutcome::Accepted } else { ReportOutcome::StaleEpoch })
}

/// As far as `event`, through what lies between. What it has passed already is no step; `false`: there is no way.
fn advance(item: &mut Item, event: ItemEvent) -> bool {
    if item.state == ItemState::Hold && !item.go(ItemEvent::Ready) {
        return false;
    }
    let place = |found: Option<usize>| found.map_or(0, |at| at + 1);
    let at = place(WAY.iter().position(|(_, state)| *state == item.state));
    let to = place(WAY.iter().position(|(step, _)| *step == event));
    WAY.iter().take(to).skip(at).all(|(step, _)| item.go(*step))
}

fn end_attempt(cx: &Cx<'_>, old: &Item, report: &ItemReport, outcome: ItemEvent, class: Option<FailureClass>) -> R<()> {
    let reason = report.reason.as_deref();
    let end = Ending { outcome, reported: Some(report.event), class, reason, bytes: report.bytes };
    item::end_attempt(cx, old, end)
}

/// A try failed, or a long hold was given back: again later, from elsewhere, or not at all.
fn requeue(
    cx: &Cx<'_>,
    request: &Request,
    old: &Item,
    report: &ItemReport,
    class: Option<FailureClass>,
    why: Option<&str>,
) -> R<ReportOutcome> {
    use FailureClass::{Backpressure, DestinationBad, Integrity, Permanent, SourceBad};
    let mut new = old.clone();
    let counts = class.is_some_and(|class| !matches!(class, Backpressure | DestinationBad));
    new.tries += u32::from(counts);
    // Before the question who else has it.
    end_attempt(cx, old, report, ItemEvent::Requeue, class)?;
    let give_up = match class {
        Some(Permanent) => Some(""),
        _ if counts && new.tries >= request.view.spec.tries => Some("; it was the last try"),
        Some(SourceBad | Integrity) if !others(cx, request, old)? => Some("; nobody else has it"),
        // The storage's fault, but perhaps this file's alone.
        Some(DestinationBad) if unplaced(cx, old)? >= u64::from(request.view.spec.tries) * PLACINGS => {
            Some("; it was the last try")
        }
        _ => None,
    };
    let mut reason = why.map(str::to_owned);
    let event = match give_up.filter(|_| !request.stopping()) {
        Some(more) => {
            new.go(ItemEvent::Fail);
            reason = Some(format!("{}{more}", reason.as_deref().unwrap_or("the try failed")));
            ItemEvent::Fail
        }
        None => item::put_back(&mut new, request),
    };
    if event == ItemEvent::Requeue {
        let pause = report.retry_after_secs.unwrap_or_else(|| match class {
            Some(DestinationBad) => STORAGE_PAUSE_SECS,
            Some(_) => pause(old, new.tries),
            None => 0,
        });
        new.not_before = cx.now.plus_secs(pause);
    }
    if class == Some(DestinationBad) {
        let until = cx.now.plus_secs(report.retry_after_secs.unwrap_or(STORAGE_PAUSE_SECS).clamp(1, MAX_PAUSE_SECS));
        let taker = old.taker.as_ref().unwrap_or(&old.destination);
        agent::pause(cx, &old.storage, taker, until, why.unwrap_or("nothing can be placed there"))?;
    }
    new.reason = reason;
    cx.run(
        "UPDATE attempt SET outcome = ?3, reason = ?4 WHERE item = ?1 AND epoch = ?2",
        params![old.n, Int(old.epoch), event, why],
    )?;
    item::save(cx, request, old, &new, event)?;
    Ok(ReportOutcome::Accepted)
}

/// Whether somebody may have it whom nothing excludes.
fn others(cx: &Cx<'_>, request: &Request, item: &Item) -> R<bool> {
    let fared = claim::fared(cx, item)?;
    let holders = claim::holders(cx, request, item)?;
    Ok(holders.iter().any(|(agent, _)| !fared.get(agent).is_some_and(|fared| fared.excluded)))
}

/// Tries that failed at the destination.
fn unplaced(cx: &Cx<'_>, item: &Item) -> R<u64> {
    Ok(claim::fared(cx, item)?.values().map(|fared| fared.unplaced).sum())
}

/// Seconds before the next try: between one and thrice what the try before may have waited, spread so that many items
/// that failed together do not come back together.
fn pause(item: &Item, tries: u32) -> u64 {
    let most = 3_u64.saturating_pow(tries.max(1)).min(MAX_PAUSE_SECS);
    1 + claim::scatter(item.n.unsigned_abs() ^ item.epoch.rotate_left(32)) % most
}

/// Ends what was on hold for longer than its source may take.
pub(super) fn end_holds(cx: &Cx<'_>, swept: &mut Swept) -> R<()> {
    let over = cx.all(
        &format!(
            "SELECT {} FROM item i JOIN item_file f ON f.n = i.n WHERE i.hold_until <= ?1 AND i.hold_until IS NOT NULL
                AND i.state IN ('hold', 'queued') ORDER BY i.hold_until LIMIT ?2",
            item::COLUMNS
        ),
        params![cx.now, Int(HOLDS as u64)],
        item::read,
    )?;
    let mut requests = Requests::default();
    for old in over {
        let request = requests.get(cx, old.request)?;
        let mut new = old.clone();
        let event = if request.view.cancelling { ItemEvent::Cancel } else { ItemEvent::Fail };
        new.go(event);
        new.reason = Some("its source did not get it ready in time".into());
        let reason = new.reason.as_deref();
        let end = Ending { outcome: event, reported: None, class: None, reason, bytes: 0 };
        item::end_attempt(cx, &old, end)?;
        item::save(cx, &request, &old, &new, event)?;
        swept.items += 1;
    }
    Ok(())
}
