//! Lists: one row more than asked for is read, so that the last page knows that it is the last.

use super::super::StoreError;
use super::cx::{Cx, R};
use super::request;
use super::value::Int;
use crate::control::model::page::{Page, PageQuery};
use crate::control::model::request::{RequestFilter, RequestView};
use rusqlite::ToSql;

/// Rows to read.
pub(super) fn limit(page: &PageQuery) -> Int {
    Int(page.rows() as u64 + 1)
}

/// A cursor that is a number, or where to begin without one.
pub(super) fn number(page: &PageQuery, begin: i64) -> R<i64> {
    match page.cursor.as_deref().map(str::parse) {
        None => Ok(begin),
        Some(Ok(number)) => Ok(number),
        Some(Err(_)) => Err(StoreError::Conflict("this is not a cursor of this list: begin again without one".into())),
    }
}

/// From rows read with [`limit`].
pub(super) fn page<A, B>(
    mut rows: Vec<A>,
    query: &PageQuery,
    cursor: impl Fn(&A) -> String,
    view: impl FnMut(A) -> B,
) -> Page<B> {
    let more = rows.len() > query.rows();
    rows.truncate(query.rows());
    let next = rows.last().filter(|_| more).map(cursor);
    Page { items: rows.into_iter().map(view).collect(), next }
}

/// Requests, the newest first. The narrowest filter leads, the others look at what it finds.
pub(super) fn requests(cx: &Cx<'_>, filter: RequestFilter, page_query: &PageQuery) -> R<Page<RequestView>> {
    let mut values: Vec<Box<dyn ToSql>> = vec![Box::new(number(page_query, i64::MAX)?), Box::new(limit(page_query))];
    let mut place = |value: Box<dyn ToSql>| {
        values.push(value);
        values.len()
    };
    let (mut from, mut key, mut narrow) = ("request r".to_owned(), "r.n", String::new());
    if let Some(label) = filter.label {
        narrow += &format!(" AND l.label = ?{}", place(Box::new(label)));
        (from, key) = ("request_label l JOIN request r ON r.n = l.request".into(), "l.request");
    }
    if let Some(agent) = filter.destination {
        let at = place(Box::new(agent));
        if key == "r.n" {
            narrow += &format!(" AND d.agent = ?{at}");
            (from, key) = ("request_destination d JOIN request r ON r.n = d.request".into(), "d.request");
        } else {
            narrow +=
                &format!(" AND EXISTS (SELECT 1 FROM request_destination d WHERE d.agent = ?{at} AND d.request = r.n)");
        }
    }
    if let Some(dataset) = filter.dataset {
        narrow += &format!(" AND r.dataset = ?{}", place(Box::new(dataset)));
    }
    if let Some(owner) = filter.owner {
        narrow += &format!(" AND r.owner = ?{}", place(Box::new(owner)));
    }
    if let Some(state) = filter.state {
        narrow += &format!(" AND r.state = ?{}", place(Box::new(state)));
    }
    let sql = format!("SELECT {} FROM {from} WHERE {key} < ?1{narrow} ORDER BY {key} DESC LIMIT ?2", request::COLUMNS);
    let rows = cx.all(&sql, rusqlite::params_from_iter(values.iter()), request::read)?;
    Ok(page(rows, page_query, |row| row.n.to_string(), |row| row.view))
}
