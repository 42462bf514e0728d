//! `/v1/catalog`: main's index of all catalogs, and `/v1/policies/approval`.

use super::check;
use super::web::{Answer, Shared, body, invalid, query, reply};
use crate::control::access::Role;
use crate::control::model::catalog::{FileFilter, Record};
use crate::control::model::name::{AgentName, BlockName, DatasetName, Lfn};
use crate::control::model::page::PageQuery;
use crate::control::model::request::ApprovalRule;
use crate::control::problem::Problem;
use crate::control::store::{Actor, StoreError};
use crate::control::tokens::Principal;
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use serde::{Deserialize, Serialize};

type Who = Extension<Principal>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DatasetsQuery {
    prefix: Option<DatasetName>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// `GET /v1/catalog/datasets`
pub async fn datasets(State(app): Shared, Extension(who): Who, uri: Uri) -> Answer {
    let DatasetsQuery { prefix, cursor, limit } = query(&uri)?;
    let mut page = app.store.datasets(prefix, PageQuery { cursor, limit }).await?;
    page.items.retain(|group| who.covers(group.name.parse().ok().as_ref()));
    reply(StatusCode::OK, &page)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BlocksQuery {
    dataset: DatasetName,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// `GET /v1/catalog/blocks`
pub async fn blocks(State(app): Shared, Extension(who): Who, uri: Uri) -> Answer {
    let BlocksQuery { dataset, cursor, limit } = query(&uri)?;
    if !who.covers(Some(&dataset)) {
        return Err(StoreError::NotFound("dataset").into());
    }
    reply(StatusCode::OK, &app.store.blocks(dataset, PageQuery { cursor, limit }).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilesQuery {
    dataset: Option<DatasetName>,
    block: Option<BlockName>,
    prefix: Option<Lfn>,
    agent: Option<AgentName>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// `GET /v1/catalog/files`
pub async fn files(State(app): Shared, Extension(who): Who, uri: Uri) -> Answer {
    let FilesQuery { dataset, block, prefix, agent, cursor, limit } = query(&uri)?;
    let filter = FileFilter { dataset, block, prefix, agent };
    let mut page = app.store.files(filter, PageQuery { cursor, limit }).await?;
    page.items.retain(|file| who.covers(file.dataset.as_ref()));
    reply(StatusCode::OK, &page)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileQuery {
    lfn: Lfn,
}

/// `GET /v1/catalog/file`
pub async fn file(State(app): Shared, Extension(who): Who, uri: Uri) -> Answer {
    let FileQuery { lfn } = query(&uri)?;
    let file = app.store.file(lfn).await?;
    if !who.covers(file.dataset.as_ref()) {
        return Err(StoreError::NotFound("file").into());
    }
    reply(StatusCode::OK, &file)
}

/// An operator changes everybody's replicas, an agent its own.
fn may_change(who: &Principal, agent: &AgentName) -> Result<(), Problem> {
    if who.is(Role::Operator) { Ok(()) } else { who.speaks_for(agent) }
}

/// `POST /v1/catalog/records`
pub async fn add(State(app): Shared, Extension(who): Who, request: Request) -> Answer {
    let records: Vec<Record> = body(request).await?;
    check::records(&records)?;
    for record in &records {
        may_change(&who, &record.agent)?;
        if !who.covers(record.dataset.as_ref()) {
            return Err(Problem::denied(format!("{}: the token `{}` is for other datasets", record.lfn, who.name)));
        }
    }
    let added = records.len();
    app.store.add_records(records).await?;
    reply(StatusCode::OK, &serde_json::json!({"added": added}))
}

/// Body of `POST /v1/catalog/remove`.
#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// Whose replicas.
    pub agent: AgentName,
    /// Of which files.
    pub lfns: Vec<Lfn>,
}

/// `POST /v1/catalog/remove`
pub async fn remove(State(app): Shared, Extension(who): Who, request: Request) -> Answer {
    let Remove { agent, lfns } = body(request).await?;
    may_change(&who, &agent)?;
    check::lfns(&lfns)?;
    if !who.is_unscoped() {
        for lfn in &lfns {
            if !who.covers(app.store.file(lfn.clone()).await?.dataset.as_ref()) {
                return Err(Problem::denied(format!("{lfn}: the token `{}` is for other datasets", who.name)));
            }
        }
    }
    let removed = app.store.remove_records(agent, lfns).await?;
    reply(StatusCode::OK, &serde_json::json!({"removed": removed}))
}

/// `GET /v1/policies/approval`
pub async fn rules(State(app): Shared) -> Answer {
    reply(StatusCode::OK, &app.store.approval_rules().await?)
}

/// `PUT /v1/policies/approval`
pub async fn set_rules(State(app): Shared, Extension(who): Who, request: Request) -> Answer {
    if !who.is_unscoped() {
        return Err(Problem::denied("the rules are for all datasets: a token with scopes may not change them"));
    }
    let rules: Vec<ApprovalRule> = body(request).await?;
    check::rules(&rules)?;
    app.store.set_approval_rules(Actor { name: who.name.clone() }, rules.clone()).await?;
    match app.store.approval_rules().await? {
        kept if kept == rules => reply(StatusCode::OK, &kept),
        _ => Err(invalid("somebody else has changed the rules meanwhile: look again")),
    }
}
