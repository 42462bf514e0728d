//! The file: whose it is, what is refused, what an older one becomes.

use super::super::schema;
use super::*;
use crate::control::store::conformance::kit::{actor, spec};
use std::os::unix::fs::PermissionsExt;

fn why(dir: &Path) -> String {
    match SqliteStore::open(dir, Clock::system()) {
        Ok(_) => panic!("opened"),
        Err(StoreError::Unavailable(why)) => why,
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn others_cannot_read_it() {
    let above = tempfile::tempdir().unwrap();
    let dir = above.path().join("store");
    let store = SqliteStore::open(&dir, Clock::system()).unwrap();
    store.create_request(actor(), spec("dst"), None).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    let files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn what_is_damaged_foreign_or_newer_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    let store = SqliteStore::open(dir.path(), Clock::system()).unwrap();
    for _ in 0..50 {
        store.create_request(actor(), spec("dst"), None).await.unwrap();
    }
    drop(store);
    let good = std::fs::read(&file).unwrap();
    assert!(SqliteStore::open(dir.path(), Clock::system()).is_ok(), "as it was left");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a store that was closed is one file");

    let mut bad = good.clone();
    let at = bad.len() / 2 / 4096 * 4096;
    bad[at..at + 4096].fill(0x5a);
    std::fs::write(&file, &bad).unwrap();
    let text = why(dir.path());
    assert!(text.contains("damaged") && text.contains("main.db") && text.contains("backup"), "{text}");
    assert!(std::fs::read(&file).unwrap() == bad, "a damaged file is evidence");

    std::fs::write(
        &file,
        b"something else entirely, and longer than a header of one hundred bytes, to be sure of it: yes",
    )
    .unwrap();
    let text = why(dir.path());
    assert!(text.contains("damaged"), "{text}");

    std::fs::write(&file, &good).unwrap();
    let raw = Connection::open(&file).unwrap();
    raw.pragma_update(None, "user_version", schema::NEWEST + 1).unwrap();
    drop(raw);
    let text = why(dir.path());
    assert!(text.contains("newer release"), "{text}");

    std::fs::remove_file(&file).unwrap();
    let raw = Connection::open(&file).unwrap();
    raw.execute_batch("CREATE TABLE other (a)").unwrap();
    drop(raw);
    assert!(why(dir.path()).contains("not a database of main"));
}

/// A store that a newer release has taken over writes no more.
#[tokio::test]
async fn an_old_main_stops_when_a_new_one_has_changed_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path(), Clock::system()).unwrap();
    let id = store.create_request(actor(), spec("dst"), None).await.unwrap().request.id;
    let raw = Connection::open(dir.path().join(FILE)).unwrap();
    raw.pragma_update(None, "user_version", schema::NEWEST + 1).unwrap();
    let refused = store.create_request(actor(), spec("dst"), None).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(ref why)) if why.contains("newer release")), "{refused:?}");
    assert!(store.request(id).await.is_ok());
}

#[tokio::test]
async fn an_older_database_becomes_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path(), Clock::system()).unwrap();
    let id = store.create_request(actor(), spec("dst"), None).await.unwrap().request.id;
    drop(store);
    let mut raw = Connection::open(dir.path().join(FILE)).unwrap();
    let mut steps = schema::migrations();
    assert_eq!(steps.len() as i64, schema::NEWEST);
    steps.push("ALTER TABLE request ADD COLUMN share TEXT NOT NULL DEFAULT 'all'".into());
    steps.push("this is no statement".into());
    assert!(schema::migrate(&mut raw, &steps).is_err());
    assert_eq!(schema::version(&raw).unwrap(), schema::NEWEST, "all steps or none");
    assert!(raw.prepare("SELECT share FROM request").is_err());
    steps.pop();
    schema::migrate(&mut raw, &steps).unwrap();
    assert_eq!(schema::version(&raw).unwrap(), schema::NEWEST + 1);
    let kept: (RequestId, String) =
        raw.query_row("SELECT id, share FROM request", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(kept, (id, "all".into()));
    schema::migrate(&mut raw, &steps).unwrap();
    assert!(schema::migrate(&mut raw, &schema::migrations()).is_err(), "no way back");
}

/// The steps are made from the tables of states: whoever changes those needs a new step, not another old one.
#[test]
fn a_released_step_is_what_it_was() {
    let digest = xxhash_rust::xxh3::xxh3_128(schema::migrations()[0].as_bytes());
    assert_eq!(format!("{digest:032x}"), FIRST, "add a migration instead");
}

const FIRST: &str = "0eecdab1f72a2042950838a2a322e75d";

/// Two stores over one file, as two mains of one host have it: one after the other, nothing lost.
#[tokio::test]
async fn two_mains_share_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let clock = HandClock::default();
    let open = || SqliteStore::open(dir.path(), clock.clock()).unwrap();
    let (one, two) = (Kit { store: open(), clock: clock.clone() }, Kit { store: open(), clock: clock.clone() });
    one.agent("src", None).await;
    let (a, b) = (one.agent("a", Some("disk")).await, two.agent("b", Some("disk")).await);
    let request = two.active(crate::control::store::conformance::kit::spec_from("a", &["src"]), 40).await;
    let work = async |kit: &Kit, name: &str, session: &Session| {
        let mut got = 0;
        for seq in 1..=20 {
            for item in kit.pulls(name, session, seq, 3).await {
                let done = crate::control::store::conformance::kit::complete(&item);
                assert_eq!(kit.report(name, session, done).await, ReportOutcome::Accepted);
                got += 1;
            }
        }
        got
    };
    let (first, second) = tokio::join!(work(&one, "a", &a), work(&two, "b", &b));
    assert_eq!(first + second, 40, "{first} and {second}");
    assert_eq!(one.counted(request.id).await.counters.done, 40);
}
