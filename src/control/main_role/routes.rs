//! Main's routes, as one table: the router, who may what, and the OpenAPI document are all made from it, so that none of them
//! can have a route that the others have not.

use super::openapi::{Shape, list_of, none, one, page_of};
use super::web::{Answer, Shared, reply};
use super::{App, agents, catalog, events, openapi, requests};
use crate::control::access::{Role, nobody};
use crate::control::model::agent::{AgentRegistration, AgentView, OpenSession, Renewal, Renewed, Session};
use crate::control::model::catalog::{FileView, GroupView, Record};
use crate::control::model::event::Event;
use crate::control::model::item::{Assignment, AttemptView, Claim, ItemView, ReportOutcome};
use crate::control::model::request::{ApprovalRule, Decision, ManifestLine, RequestPatch, RequestSpec, RequestView};
use crate::control::problem::Problem;
use crate::engine::error::Class;
use Role::{Agent, Approver, Operator, Submitter, Viewer};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use std::sync::Arc;

/// One method of one path.
pub struct Route {
    /// The method.
    pub method: Method,
    /// As axum and OpenAPI write it.
    pub path: &'static str,
    /// A token needs one of these; none: open to everybody.
    pub allowed: &'static [Role],
    /// For the document.
    pub does: &'static str,
    /// Names of the query, a `!` behind what is needed.
    pub query: &'static [&'static str],
    /// What is sent.
    pub takes: Shape,
    /// What comes back, and with which status.
    pub gives: (u16, Shape),
    make: fn() -> MethodRouter<Arc<App>>,
}

const EVERYBODY: &[Role] = &[];
const LOOK: &[Role] = &[Viewer, Submitter, Approver, Operator];
const ANY: &[Role] = &Role::ALL;
const ASK: &[Role] = &[Submitter, Agent];
const STEER: &[Role] = &[Submitter, Operator, Agent];
const APPROVE: &[Role] = &[Approver];
const OPERATE: &[Role] = &[Operator];
const SPEAK: &[Role] = &[Agent];
const KEEP: &[Role] = &[Agent, Operator];

macro_rules! route {
    ($method:ident $path:literal $allowed:ident $query:expr, $takes:expr => $status:literal $gives:expr, $make:ident($handler:path), $does:literal) => {
        Route {
            method: Method::$method,
            path: $path,
            allowed: $allowed,
            does: $does,
            query: $query,
            takes: $takes,
            gives: ($status, $gives),
            make: || $make($handler),
        }
    };
}

/// All of them.
#[rustfmt::skip]
pub const ROUTES: &[Route] = &[
    route!(POST "/v1/requests" ASK &["preflight"], one::<RequestSpec> => 201 one::<RequestView>, post(requests::create), "Asks for a transfer. `Idempotency-Key` makes it repeatable; `preflight=true` only checks (200)."),
    route!(GET "/v1/requests" LOOK &["state", "owner", "destination", "dataset", "label", "cursor", "limit"], none => 200 page_of::<RequestView>, get(requests::list), "Requests, the newest first."),
    route!(GET "/v1/requests/{id}" LOOK &["wait"], none => 200 one::<RequestView>, get(requests::get), "One request. With `If-None-Match` and `wait` it waits for a change (304: there was none)."),
    route!(PATCH "/v1/requests/{id}" STEER &[], one::<RequestPatch> => 200 one::<RequestView>, patch(requests::patch), "Changes a request; needs `If-Match`."),
    route!(DELETE "/v1/requests/{id}" STEER &[], none => 204 none, delete(requests::delete), "Forgets a request that has ended."),
    route!(POST "/v1/requests/{id}/manifest" STEER &[], one::<ManifestLine> => 200 one::<RequestView>, post(requests::manifest), "Uploads the files of a request, one JSON document a line. All or nothing."),
    route!(POST "/v1/requests/{id}/approval" APPROVE &[], one::<Decision> => 200 one::<RequestView>, post(requests::approval), "Approves or rejects; needs `If-Match` and the digest that was seen."),
    route!(POST "/v1/requests/{id}/pause" STEER &[], none => 200 one::<RequestView>, post(requests::pause), "Nothing more of it is begun."),
    route!(POST "/v1/requests/{id}/resume" STEER &[], none => 200 one::<RequestView>, post(requests::resume), "Goes on after a pause."),
    route!(POST "/v1/requests/{id}/cancel" STEER &[], none => 200 one::<RequestView>, post(requests::cancel), "Stops it."),
    route!(POST "/v1/requests/{id}/retry-failed" STEER &[], none => 200 one::<RequestView>, post(requests::retry_failed), "Tries its failed items again."),
    route!(GET "/v1/requests/{id}/items" LOOK &["state", "cursor", "limit"], none => 200 page_of::<ItemView>, get(requests::items), "Its items."),
    route!(GET "/v1/items/{id}" LOOK &[], none => 200 one::<ItemView>, get(requests::item), "One item."),
    route!(GET "/v1/items/{id}/attempts" LOOK &[], none => 200 list_of::<AttemptView>, get(requests::attempts), "Its tries, the oldest first."),
    route!(POST "/v1/agents" KEEP &[], one::<AgentRegistration> => 201 one::<AgentView>, post(agents::register), "Registers an agent, or renews its registration."),
    route!(GET "/v1/agents" ANY &[], none => 200 list_of::<AgentView>, get(agents::list), "All agents."),
    route!(GET "/v1/agents/{name}" ANY &[], none => 200 one::<AgentView>, get(agents::get), "One agent."),
    route!(DELETE "/v1/agents/{name}" OPERATE &[], none => 204 none, delete(agents::remove), "Forgets an agent without live items."),
    route!(POST "/v1/agents/{name}/drain" OPERATE &[], one::<agents::Drain> => 200 one::<AgentView>, post(agents::drain), "Whether it is given something new."),
    route!(POST "/v1/agents/{name}/session" SPEAK &[], one::<OpenSession> => 200 one::<Session>, post(agents::open), "Opens a session; the one before is over."),
    route!(PUT "/v1/agents/{name}/session" SPEAK &[], one::<Renewal> => 200 one::<Renewed>, put(agents::renew), "The heartbeat."),
    route!(POST "/v1/agents/{name}/claims" SPEAK &["wait"], one::<Claim> => 200 list_of::<Assignment>, post(agents::claim), "Claims items; waits for some."),
    route!(GET "/v1/agents/{name}/assignments" SPEAK &["session!"], none => 200 list_of::<Assignment>, get(agents::assignments), "Items that a session holds."),
    route!(POST "/v1/agents/{name}/reports" SPEAK &[], one::<agents::Reports> => 200 list_of::<ReportOutcome>, post(agents::report), "What became of items."),
    route!(GET "/v1/catalog/datasets" ANY &["prefix", "cursor", "limit"], none => 200 page_of::<GroupView>, get(catalog::datasets), "Datasets."),
    route!(GET "/v1/catalog/blocks" ANY &["dataset!", "cursor", "limit"], none => 200 page_of::<GroupView>, get(catalog::blocks), "Blocks of a dataset."),
    route!(GET "/v1/catalog/files" ANY &["dataset", "block", "prefix", "agent", "cursor", "limit"], none => 200 page_of::<FileView>, get(catalog::files), "Files with their replicas."),
    route!(GET "/v1/catalog/file" ANY &["lfn!"], none => 200 one::<FileView>, get(catalog::file), "One file."),
    route!(POST "/v1/catalog/records" KEEP &[], list_of::<Record> => 200 none, post(catalog::add), "Adds replicas, all or none."),
    route!(POST "/v1/catalog/remove" KEEP &[], one::<catalog::Remove> => 200 none, post(catalog::remove), "Removes replicas."),
    route!(GET "/v1/events" LOOK &["subject", "kind", "after", "limit", "wait"], none => 200 list_of::<Event>, get(events::events), "What happened: an event stream that resumes by `Last-Event-ID`, or with `after` a poll."),
    route!(GET "/v1/policies/approval" LOOK &[], none => 200 list_of::<ApprovalRule>, get(catalog::rules), "The approval rules, in order."),
    route!(PUT "/v1/policies/approval" OPERATE &[], list_of::<ApprovalRule> => 200 list_of::<ApprovalRule>, put(catalog::set_rules), "Replaces the approval rules."),
    route!(GET "/openapi.json" EVERYBODY &[], none => 200 none, get(document), "This document."),
    route!(GET "/readyz" EVERYBODY &[], none => 200 none, get(ready), "Whether the store answers."),
];

/// The routes over `app`, without a fallback: for merging with the agent's.
pub fn router(app: Arc<App>) -> Router {
    let routes = ROUTES.iter().fold(Router::new(), |router, route| {
        router.route(route.path, (route.make)().route_layer(from_fn_with_state((app.clone(), route), guard)))
    });
    let refuse = || async {
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, Class::Permanent, "this path does not take that method")
    };
    routes.method_not_allowed_fallback(refuse).with_state(app)
}

/// Nobody passes without the role that the table asks for. Whoever passes is known to the handler.
async fn guard(State((app, route)): State<(Arc<App>, &'static Route)>, mut request: Request, next: Next) -> Response {
    if !route.allowed.is_empty() {
        let who = bearer(request.headers())
            .and_then(|token| Ok(app.tokens.authenticate(token)?))
            .and_then(|who| who.needs(route.allowed).map(|()| who));
        match who {
            Ok(who) => request.extensions_mut().insert(who),
            Err(problem) => return problem.into_response(),
        };
    }
    next.run(request).await
}

pub(in crate::control) fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().and_then(|v| v.to_str().ok()).ok_or_else(nobody)?;
    let (scheme, token) = value.split_once(' ').ok_or_else(nobody)?;
    match scheme.eq_ignore_ascii_case("bearer") && values.next().is_none() {
        true => Ok(token),
        false => Err(nobody()),
    }
}

async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi::COMMITTED).into_response()
}

async fn ready(State(app): Shared) -> Answer {
    app.store.now().await?;
    reply(StatusCode::OK, &serde_json::json!({"status": "ready"}))
}
