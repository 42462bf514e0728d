//! The index of all catalogs: dataset, block, file, replica. A logical file does not change: another size or digest under
//! the same name is a conflict. Sums of blocks and datasets are kept with every file.

use super::super::StoreError;
use super::cx::{Cx, R};
use super::item::Item;
use super::page;
use super::value::{Int, Word};
use crate::control::model::catalog::{FileFilter, FileView, GroupView, Locality, MAX_RECORDS, Record, ReplicaView};
use crate::control::model::item::ItemReport;
use crate::control::model::name::{AgentName, BlockName, DatasetName, Lfn};
use crate::control::model::page::{Page, PageQuery};
use crate::control::model::states::ItemEvent;
use crate::control::model::time::Time;
use rusqlite::{Row, ToSql, params};
use serde_json::json;

/// Files that one page looks at when only one agent's are wanted.
const LOOK_AT: u64 = 10_000;

pub(super) fn add(cx: &Cx<'_>, records: &[Record]) -> R<()> {
    if records.len() > MAX_RECORDS {
        return Err(StoreError::TooMuch(format!("{} records at once: at most {MAX_RECORDS}", records.len())));
    }
    for record in records {
        put(cx, record, None)?;
    }
    if let Some(first) = records.first() {
        cx.event("catalog.added", first.agent.as_str(), json!({ "files": records.len() }))?;
    }
    Ok(())
}

/// A file's block and what is known of it.
struct Known {
    block: Option<i64>,
    bytes: u64,
    digest: Option<String>,
}

fn known(cx: &Cx<'_>, lfn: &Lfn) -> R<Option<Known>> {
    cx.one("SELECT block, bytes, digest FROM file WHERE lfn = ?1", [lfn], |row| {
        Ok(Known { block: row.get(0)?, bytes: row.get::<_, Int>(1)?.0, digest: row.get(2)? })
    })
}

fn put(cx: &Cx<'_>, record: &Record, verified: Option<Time>) -> R<()> {
    let lfn = &record.lfn;
    let group = match (&record.dataset, &record.block) {
        (Some(dataset), Some(block)) => Some(group(cx, dataset, block)?),
        (None, None) => None,
        _ => return Err(StoreError::Conflict(format!("{lfn}: a dataset is named with a block, or neither is"))),
    };
    let known = known(cx, lfn)?;
    if let Some(known) = &known {
        if known.bytes != record.bytes {
            return Err(StoreError::Conflict(format!(
                "{lfn} has {} bytes and not {}: a logical file does not change",
                known.bytes, record.bytes
            )));
        }
        if let (Some(have), Some(new)) = (&known.digest, &record.digest)
            && have != new
        {
            return Err(StoreError::Conflict(format!("{lfn} has another digest: a logical file does not change")));
        }
        if let (Some(have), Some((_, block))) = (known.block, group)
            && have != block
        {
            return Err(StoreError::Conflict(format!("{lfn} belongs to another block")));
        }
    }
    let file: i64 = cx.sole(
        "INSERT INTO file (lfn, dataset, block, bytes, digest) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (lfn) DO UPDATE SET dataset = coalesce(file.dataset, excluded.dataset),
            block = coalesce(file.block, excluded.block), digest = coalesce(file.digest, excluded.digest) RETURNING n",
        params![lfn, group.map(|g| g.0), group.map(|g| g.1), Int(record.bytes), record.digest],
        |row| row.get(0),
    )?;
    if let Some((dataset, block)) = group.filter(|_| known.is_none_or(|known| known.block.is_none())) {
        for (table, n) in [("dataset", dataset), ("block", block)] {
            let sql = format!("UPDATE {table} SET files = files + 1, bytes = bytes + ?2 WHERE n = ?1");
            cx.run(&sql, params![n, Int(record.bytes)])?;
        }
    }
    let path = record.path.as_ref().filter(|path| *path != lfn);
    cx.run(
        "INSERT INTO replica (file, agent, path, locality, verified) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (file, agent) DO UPDATE SET path = excluded.path, locality = excluded.locality,
            verified = coalesce(excluded.verified, replica.verified)",
        params![file, record.agent, path, Word(record.locality), verified],
    )?;
    Ok(())
}

/// The numbers of a dataset and a block of it, made when they are new.
fn group(cx: &Cx<'_>, dataset: &DatasetName, block: &BlockName) -> R<(i64, i64)> {
    let known = cx.one(
        "SELECT d.n, d.name, b.n FROM block b JOIN dataset d ON d.n = b.dataset WHERE b.name = ?1",
        [block],
        |row| Ok((row.get::<_, i64>(0)?, row.get::<_, DatasetName>(1)?, row.get::<_, i64>(2)?)),
    )?;
    match known {
        Some((n, name, block)) if name == *dataset => Ok((n, block)),
        Some((_, name, _)) => Err(StoreError::Conflict(format!("block {block} belongs to dataset {name}"))),
        None => {
            let dataset: i64 = cx.sole(
                "INSERT INTO dataset (name, blocks) VALUES (?1, 1)
                 ON CONFLICT (name) DO UPDATE SET blocks = dataset.blocks + 1 RETURNING n",
                [dataset],
                |row| row.get(0),
            )?;
            let insert = "INSERT INTO block (name, dataset) VALUES (?1, ?2) RETURNING n";
            Ok((dataset, cx.sole(insert, params![block, dataset], |row| row.get(0))?))
        }
    }
}

/// An item that was placed, or stood there, enters the catalog. The inner error: it is not the file that the catalog has.
pub(super) fn placed(cx: &Cx<'_>, item: &mut Item, report: &ItemReport, event: ItemEvent) -> R<Result<(), String>> {
    let known = known(cx, &item.lfn)?;
    let size = report.size.or(item.bytes).or(known.as_ref().map(|known| known.bytes));
    let digest = report.digest.clone().or_else(|| item.digest.clone());
    let (want_size, want_digest) = (item.bytes, item.digest.clone());
    let differs = |have: Option<u64>, digest_have: &Option<String>| {
        have.zip(size).is_some_and(|(have, size)| have != size)
            || digest_have.as_ref().zip(report.digest.as_ref()).is_some_and(|(have, new)| have != new)
    };
    let wrong = differs(want_size, &want_digest)
        || known.as_ref().is_some_and(|known| differs(Some(known.bytes), &known.digest));
    let complete = event == ItemEvent::Complete;
    if complete && wrong {
        return Ok(Err(format!("size or digest of {} are not those of the catalog", item.lfn)));
    }
    let Some(size) = size.filter(|_| !wrong) else {
        // Something else stands there and was to be left; or nobody knows how large it is.
        return Ok(if complete { Err(format!("the size of {} was not reported", item.lfn)) } else { Ok(()) });
    };
    item.bytes = Some(size);
    item.digest.clone_from(&digest);
    if complete {
        item.progress = size;
    }
    let record = Record {
        dataset: None,
        block: None,
        lfn: item.lfn.clone(),
        bytes: size,
        digest,
        agent: item.taker.clone().unwrap_or_else(|| item.destination.clone()),
        path: Some(item.path.clone()),
        locality: Locality::Online,
    };
    let proved = complete || report.digest.is_some();
    put(cx, &record, proved.then_some(cx.now))?;
    Ok(Ok(()))
}

pub(super) fn remove(cx: &Cx<'_>, agent: &AgentName, lfns: &[Lfn]) -> R<u64> {
    if lfns.len() > MAX_RECORDS {
        return Err(StoreError::TooMuch(format!("{} files at once: at most {MAX_RECORDS}", lfns.len())));
    }
    let mut removed = 0;
    for lfn in lfns {
        removed += cx.run(
            "DELETE FROM replica WHERE agent = ?1 AND file = (SELECT n FROM file WHERE lfn = ?2)",
            params![agent, lfn],
        )? as u64;
    }
    if removed > 0 {
        cx.event("catalog.removed", agent.as_str(), json!({ "files": removed }))?;
    }
    Ok(removed)
}

/// Names that are `prefix` or lie below it, as a range with a rest: `/` and what follows it in the order of bytes.
fn below(prefix: &str) -> (String, String) {
    (format!("{}/", prefix.trim_end_matches('/')), format!("{}0", prefix.trim_end_matches('/')))
}

pub(super) fn datasets(cx: &Cx<'_>, prefix: Option<DatasetName>, query: &PageQuery) -> R<Page<GroupView>> {
    let prefix = prefix.as_ref().map_or("", DatasetName::as_str);
    let (from, to) = match prefix {
        "" => (String::new(), "\u{10ffff}".to_owned()),
        prefix => below(prefix),
    };
    let rows = cx.all(
        "SELECT name, blocks, files, bytes FROM dataset
         WHERE name > ?1 AND name >= ?2 AND name < ?4 AND (name = ?2 OR name >= ?3) ORDER BY name LIMIT ?5",
        params![query.cursor.as_deref().unwrap_or(""), prefix, from, to, page::limit(query)],
        |row| {
            Ok(GroupView {
                name: row.get(0)?,
                dataset: None,
                blocks: Some(row.get::<_, Int>(1)?.0),
                files: row.get::<_, Int>(2)?.0,
                bytes: row.get::<_, Int>(3)?.0,
            })
        },
    )?;
    Ok(page::page(rows, query, |group| group.name.clone(), |group| group))
}

pub(super) fn blocks(cx: &Cx<'_>, dataset: &DatasetName, query: &PageQuery) -> R<Page<GroupView>> {
    let n: Option<i64> = cx.one("SELECT n FROM dataset WHERE name = ?1", [dataset], |row| row.get(0))?;
    let n = n.ok_or(StoreError::NotFound("dataset"))?;
    let rows = cx.all(
        "SELECT name, files, bytes FROM block WHERE dataset = ?1 AND name > ?2 ORDER BY name LIMIT ?3",
        params![n, query.cursor.as_deref().unwrap_or(""), page::limit(query)],
        |row| {
            Ok(GroupView {
                name: row.get(0)?,
                dataset: Some(dataset.clone()),
                blocks: None,
                files: row.get::<_, Int>(1)?.0,
                bytes: row.get::<_, Int>(2)?.0,
            })
        },
    )?;
    Ok(page::page(rows, query, |group| group.name.clone(), |group| group))
}

const COLUMNS: &str = "f.n, f.lfn, d.name, b.name, f.bytes, f.digest";
const JOINED: &str = "file f LEFT JOIN dataset d ON d.n = f.dataset LEFT JOIN block b ON b.n = f.block";

fn read(row: &Row<'_>) -> rusqlite::Result<(i64, FileView)> {
    let view = FileView {
        lfn: row.get(1)?,
        dataset: row.get(2)?,
        block: row.get(3)?,
        bytes: row.get::<_, Int>(4)?.0,
        digest: row.get(5)?,
        replicas: Vec::new(),
    };
    Ok((row.get(0)?, view))
}

fn with_replicas(cx: &Cx<'_>, (n, mut view): (i64, FileView)) -> R<FileView> {
    let lfn = view.lfn.clone();
    view.replicas =
        cx.all("SELECT agent, path, locality, verified FROM replica WHERE file = ?1 ORDER BY agent", [n], |row| {
            Ok(ReplicaView {
                agent: row.get(0)?,
                path: row.get::<_, Option<Lfn>>(1)?.unwrap_or_else(|| lfn.clone()),
                locality: row.get::<_, Word<Locality>>(2)?.0,
                verified: row.get(3)?,
            })
        })?;
    Ok(view)
}

/// A page of files as a statement with its values.
pub(super) fn files_sql(filter: &FileFilter, query: &PageQuery) -> (String, Vec<Box<dyn ToSql>>) {
    let (from, to) = match &filter.prefix {
        None => ("/".to_owned(), "0".to_owned()),
        Some(prefix) => below(prefix.as_str()),
    };
    let look_at = if filter.agent.is_some() { Int(LOOK_AT) } else { page::limit(query) };
    let cursor = query.cursor.clone().unwrap_or_default();
    let mut values: Vec<Box<dyn ToSql>> = vec![Box::new(cursor), Box::new(from), Box::new(to), Box::new(look_at)];
    let mut narrow = String::new();
    if let Some(dataset) = filter.dataset.clone() {
        values.push(Box::new(dataset));
        narrow += &format!(" AND f.dataset = (SELECT n FROM dataset WHERE name = ?{})", values.len());
    }
    if let Some(block) = filter.block.clone() {
        values.push(Box::new(block));
        narrow += &format!(" AND f.block = (SELECT n FROM block WHERE name = ?{})", values.len());
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM {JOINED} WHERE f.lfn > ?1 AND f.lfn >= ?2 AND f.lfn < ?3{narrow} ORDER BY f.lfn LIMIT ?4"
    );
    (sql, values)
}

pub(super) fn files(cx: &Cx<'_>, filter: &FileFilter, query: &PageQuery) -> R<Page<FileView>> {
    let (sql, values) = files_sql(filter, query);
    let rows = cx.all(&sql, rusqlite::params_from_iter(values.iter()), read)?;
    let Some(agent) = &filter.agent else {
        let listed = page::page(rows, query, |row| row.1.lfn.to_string(), |row| row);
        let items = listed.items.into_iter().map(|row| with_replicas(cx, row)).collect::<R<_>>()?;
        return Ok(Page { items, next: listed.next });
    };
    // A page may be short, or empty, and still have a next one: what is looked at is bounded, not what is found.
    let mut more = rows.len() as u64 == LOOK_AT;
    let (mut items, mut last) = (Vec::new(), None);
    for row in rows {
        if items.len() == query.rows() {
            more = true;
            break;
        }
        last = Some(row.1.lfn.to_string());
        let has = "SELECT 1 FROM replica WHERE file = ?1 AND agent = ?2";
        if cx.one(has, params![row.0, agent], |_| Ok(()))?.is_some() {
            items.push(with_replicas(cx, row)?);
        }
    }
    Ok(Page { items, next: last.filter(|_| more) })
}

pub(super) fn file(cx: &Cx<'_>, lfn: &Lfn) -> R<FileView> {
    let found = cx.one(&format!("SELECT {COLUMNS} FROM {JOINED} WHERE f.lfn = ?1"), [lfn], read)?;
    with_replicas(cx, found.ok_or(StoreError::NotFound("file"))?)
}
