//! The agent's own catalog over HTTP, and what a source that pushes needs: a directory to push into, and the entry
//! afterwards.

use super::catalog::{Catalog, Known};
use super::run::Pushed;
use crate::control::api::{Answer, App, body, reply};
use crate::control::messages::{StatKind, WirePath};
use crate::control::model::page::PageQuery;
use crate::control::problem::Problem;
use crate::control::settings::Role;
use crate::control::source::{blocking, query};
use crate::control::tokens::Right;
use crate::engine::error::Class;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// What the routes know.
pub struct Local {
    /// Root and tokens.
    pub app: Arc<App>,
    /// The catalog.
    pub catalog: Arc<Catalog>,
}

type Shared = State<Arc<Local>>;

/// The routes over `local`.
pub fn router(local: Arc<Local>) -> Router {
    Router::new()
        .route("/v1/local/catalog", get(list).post(enter))
        .route("/v1/local/directory", post(directory))
        .with_state(local)
}

async fn list(State(local): Shared, request: Request) -> Answer {
    let principal = local.app.principal(request.headers())?;
    let mut page = PageQuery::default();
    for (name, value) in query(&request)? {
        match name.as_str() {
            "cursor" => page.cursor = Some(value),
            "limit" => page.limit = Some(value.parse().map_err(|_| Problem::bad("`limit` is a number"))?),
            _ => return Err(Problem::bad("the query takes `cursor` and `limit`")),
        }
    }
    let catalog = local.catalog.clone();
    let mut found = blocking(move || catalog.list(&page)).await?.map_err(|e| e.problem())?;
    found.items.retain(|known: &Known| principal.check(Right::Read, &known.path.rel_path()).is_ok());
    reply(StatusCode::OK, &found)
}

async fn enter(State(local): Shared, request: Request) -> Answer {
    let principal = local.app.principal(request.headers())?;
    local.app.has(Role::Destination)?;
    let Pushed { file } = body(request).await?;
    let path = local.app.authorised(&principal, Right::Write, &WirePath(file.path.as_str().into()))?;
    let entered = blocking(move || {
        // Nothing enters that is not there.
        match local.app.root.stat(&path) {
            Ok(stat) if stat.kind == StatKind::File && stat.size == file.bytes => {}
            _ => {
                let detail = format!("{} is not here with {} bytes", file.path, file.bytes);
                return Err(Problem::new(StatusCode::CONFLICT, Class::Permanent, detail));
            }
        }
        local.catalog.enter(&[file]).map_err(|e| e.problem())
    });
    entered.await??;
    reply(StatusCode::OK, &json!({}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Directory {
    directory: WirePath,
}

async fn directory(State(local): Shared, request: Request) -> Answer {
    let principal = local.app.principal(request.headers())?;
    local.app.has(Role::Destination)?;
    let Directory { directory } = body(request).await?;
    let path = local.app.authorised(&principal, Right::Write, &directory)?;
    let made = blocking(move || local.app.root.make_dirs(&path)).await?;
    made.map_err(|errno| Problem::busy(format!("the directory cannot be made: {}", errno.desc())))?;
    reply(StatusCode::OK, &json!({}))
}
