//! How SQLite does what it is asked: every statement that was run is explained, and none may walk through a table.

use super::kit;
use crate::control::model::catalog::FileFilter;
use crate::control::model::event::EventFilter;
use crate::control::model::item::{FailureClass, Side};
use crate::control::model::page::PageQuery;
use crate::control::model::request::{Model, RequestFilter, RequestPatch, RequestSpec};
use crate::control::model::states::{ItemEvent, ItemState, RequestState};
use crate::control::store::conformance::kit::{
    actor, claim, complete, failed, lfn, named, of_dataset, record, renewal, says, spec, spec_from,
};
use crate::control::store::sqlite::FILE;
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::sync::Mutex;

static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Takes note of a statement.
pub(in crate::control::store::sqlite) fn saw(sql: &str) {
    let mut seen = SEEN.lock().unwrap();
    if !seen.contains(sql) {
        seen.insert(sql.to_owned());
    }
}

/// What may be walked through, and why.
const WALKED: &[&str] = &[
    "SCAN a",             // agents: hundreds
    "SCAN approval_rule", // a few
    "SCAN queued",        // the rows that the statement itself has just made
    "SCAN q",
    "SCAN CONSTANT ROW",
    "SCAN request USING INDEX request_stopping",
    "SCAN request USING INDEX request_undrained", // and those that were, until they are drained
    "SCAN request_deleted",
    "SCAN r USING INDEX request_stopping", // requests that are being stopped: few
    "SCAN outbox",                         // from its old end, bounded by LIMIT
    "SCAN sqlite_sequence",                // a row for each table that counts
];

fn plan(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let nulls = vec![rusqlite::types::Null; statement.parameter_count()];
    let rows = statement.query_map(rusqlite::params_from_iter(nulls), |row| row.get(3)).unwrap();
    rows.map(Result::unwrap).collect()
}

fn walks(step: &str) -> bool {
    let allowed = WALKED.iter().any(|w| step == *w || step.strip_prefix(w).is_some_and(|rest| rest.starts_with(' ')));
    (step.starts_with("SCAN") && !allowed) || step.starts_with("USE TEMP B-TREE")
}

#[tokio::test]
async fn no_statement_walks_through_a_table() {
    let (kit, dir) = kit();
    let (src, dst) = (kit.agent("src", None).await, kit.agent("dst", None).await);
    kit.has_files("src", 3).await;
    kit.active(spec("dst"), 3).await;
    kit.active(RequestSpec { model: Model::Push, ..spec_from("dst", &["src"]) }, 1).await;
    let got = kit.pulls("dst", &dst, 1, 3).await;
    kit.report("dst", &dst, says(&got[0], ItemEvent::Hold)).await;
    kit.report("dst", &dst, failed(&got[1], FailureClass::SourceBad)).await;
    kit.report("dst", &dst, complete(&got[2])).await;
    kit.store.claimable(named("src"), claim(&src, 1, 10, Side::Source)).await.unwrap();
    kit.store.assignments(named("dst"), dst.session).await.unwrap();
    kit.store.renew(named("dst"), renewal(&dst)).await.unwrap();
    let id = got[0].request;
    for state in [None, Some(ItemState::Failed)] {
        kit.store.items(id, state, PageQuery::default()).await.unwrap();
    }
    let filters = [
        RequestFilter::default(),
        RequestFilter { state: Some(RequestState::Active), ..Default::default() },
        RequestFilter { owner: Some("ada".into()), ..Default::default() },
        RequestFilter { destination: Some(named("dst")), ..Default::default() },
        RequestFilter { dataset: Some(named("/a")), ..Default::default() },
        RequestFilter { label: Some("a=b".into()), destination: Some(named("dst")), ..Default::default() },
    ];
    for filter in filters {
        kit.store.requests(filter, PageQuery::default()).await.unwrap();
    }
    let filters = [
        FileFilter::default(),
        FileFilter { dataset: Some(named("/a")), ..Default::default() },
        FileFilter { block: Some(named("/a#1")), prefix: Some(named("/d")), ..Default::default() },
        FileFilter { agent: Some(named("src")), ..Default::default() },
    ];
    for filter in filters {
        kit.store.files(filter, PageQuery::default()).await.unwrap();
    }
    let grouped = crate::control::model::catalog::Record {
        dataset: Some(named("/a")),
        block: Some(named("/a#1")),
        ..record(1, "src")
    };
    kit.store.add_records(vec![grouped]).await.unwrap();
    kit.store.datasets(Some(named("/a")), PageQuery::default()).await.unwrap();
    kit.store.blocks(named("/a"), PageQuery::default()).await.unwrap();
    kit.store.remove_records(named("src"), vec![lfn(0)]).await.unwrap();
    for filter in [EventFilter::default(), EventFilter { subject: Some("x".into()), kind: Some("item".into()) }] {
        kit.store.events(0, filter, 10).await.unwrap();
    }
    kit.store.cancel(id, actor()).await.unwrap();
    kit.store.renew(named("dst"), renewal(&dst)).await.unwrap();
    let other = kit.active(of_dataset("dst", "/a"), 1).await;
    let labels = Some([("a".to_owned(), "b".to_owned())].into());
    kit.store.patch_request(other.id, other.version, RequestPatch { labels, ..Default::default() }).await.unwrap();
    kit.clock.forward(9 * 24 * 3600);
    kit.sweep().await;
    kit.sweep().await;
    let ended = kit.store.cancel(other.id, actor()).await.unwrap();
    kit.store.delete_request(ended.id, actor()).await.unwrap();

    let connection = Connection::open(dir.path().join(FILE)).unwrap();
    let seen = SEEN.lock().unwrap().clone();
    let mut wrong = Vec::new();
    for sql in &seen {
        wrong
            .extend(plan(&connection, sql).into_iter().filter(|step| walks(step)).map(|step| format!("{step}: {sql}")));
    }
    assert!(seen.len() > 60, "statements are not seen any more");
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    let scan = plan(&connection, "SELECT * FROM item WHERE tries = ?1");
    assert!(scan.iter().any(|step| walks(step)), "this test sees a scan: {scan:?}");
}

/// PostgreSQL follows: what it does not have, or reads otherwise, does not come in.
#[test]
fn statements_are_numbered_and_plain() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/control/store/sqlite");
    let mut read = 0;
    for file in std::fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        read += 1;
        for word in ["INSERT OR ", "REPLACE INTO", " GLOB ", "$1", "= ?,", "= ? ", "rowid", "datetime("] {
            assert!(!text.contains(word), "{} has `{word}`", file.display());
        }
    }
    assert!(read > 8);
}
