//! Main's API, as a client calls it: requests, items and the catalog.

use super::{CONNECT, PeerClient, RESPONSE, TOKEN_FILE_VAR, encode, error, timeout};
use crate::control::model::agent::AgentView;
use crate::control::model::catalog::{FileFilter, FileView, GroupView, Record};
use crate::control::model::item::{AttemptView, ItemView};
use crate::control::model::name::{AgentName, DatasetName, ItemId, Lfn, RequestId};
use crate::control::model::page::{Page, PageQuery};
use crate::control::model::request::{ApprovalRule, Decision, RequestFilter, RequestPatch, RequestSpec, RequestView};
use crate::control::model::states::ItemState;
use crate::engine::error::{Class, TransferError};
use hyper::body::{Body, Bytes, Frame};
use hyper::{Method, Request, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::convert::Infallible;
use std::fmt::Display;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// From the first line of a manifest to main's answer: as long as its port keeps a connection.
const UPLOAD: Duration = Duration::from_secs(600);
/// Repetitions of a request that has a key, when the connection broke.
const AGAIN: usize = 2;

type Told<T> = Result<T, TransferError>;

/// Talks to a main.
#[derive(Debug)]
pub struct MainClient(PeerClient);

/// A request's body as it is read.
pub struct Lines(pub mpsc::Receiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// One segment of a path: names may have slashes.
fn segment(name: &impl Display) -> String {
    encode(name.to_string().as_bytes()).replace('/', "%2F")
}

/// `?a=b&c=d` of what is there.
fn query(pairs: &[(&str, Option<String>)]) -> String {
    let mut out = String::new();
    for (name, value) in pairs.iter().filter_map(|(name, value)| value.as_ref().map(|v| (name, v))) {
        out.push(if out.is_empty() { '?' } else { '&' });
        out.push_str(&format!("{name}={}", encode(value.as_bytes())));
    }
    out
}

fn text(value: Option<&impl Display>) -> Option<String> {
    value.map(ToString::to_string)
}

impl MainClient {
    /// Over `peer`, whose URL is main's.
    pub fn new(peer: PeerClient) -> Self {
        Self(peer)
    }

    /// What is to be said about the connections so far.
    pub fn notes(&self) -> Vec<String> {
        self.0.notes()
    }

    async fn answer<B>(&self, request: Request<B>, patience: Duration) -> Told<Bytes>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = self.0.dial().await?;
        let peer = stream.peer_addr().map_err(|e| self.0.fail(Class::Reconnect, e.to_string()))?;
        let stream = self.0.secure(stream, peer).await?;
        let late = |_| self.0.fail(Class::Retry, format!("it did not answer within {} s", patience.as_secs()));
        let (status, bytes, _) = timeout(patience, self.0.exchange(stream, request)).await.map_err(late)??;
        if status.is_success() { Ok(bytes) } else { Err(self.0.refusal(status, &bytes)) }
    }

    fn read<T: DeserializeOwned>(&self, bytes: &Bytes) -> Told<T> {
        let bytes: &[u8] = if bytes.is_empty() { b"null" } else { bytes };
        serde_json::from_slice(bytes).map_err(|e| {
            self.0.fail(
                Class::Permanent,
                format!("its answer is not what a main says ({e}): does this agent have the role main?"),
            )
        })
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        headers: &[(header::HeaderName, String)],
        body: Option<&impl Serialize>,
    ) -> Told<T> {
        let mut request = self.0.request(method, path, body)?;
        for (name, value) in headers {
            let value = header::HeaderValue::from_str(value)
                .map_err(|_| error(Class::Permanent, format!("`{name}` is to be printable characters")))?;
            request.headers_mut().insert(name, value);
        }
        self.read(&self.answer(request, RESPONSE).await?)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Told<T> {
        self.call(Method::GET, path, &[], None::<&()>).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Told<T> {
        self.call(Method::POST, path, &[], Some(body)).await
    }

    /// Asks for a transfer. Repeated by itself, under the same key, when the connection broke.
    pub async fn create(&self, spec: &RequestSpec, key: &str) -> Told<RequestView> {
        let headers = [(header::HeaderName::from_static("idempotency-key"), key.to_owned())];
        let mut left = AGAIN;
        loop {
            match self.call(Method::POST, "/v1/requests", &headers, Some(spec)).await {
                Err(error) if error.class == Class::Reconnect && left > 0 => left -= 1,
                answer => return answer,
            }
            tokio::time::sleep(CONNECT / 10).await;
        }
    }

    /// Whether main would take it.
    pub async fn preflight(&self, spec: &RequestSpec) -> Told<serde_json::Value> {
        self.post("/v1/requests?preflight=true", spec).await
    }

    /// Uploads the files of a request, as JSON lines.
    pub async fn manifest(&self, id: RequestId, lines: Lines) -> Told<RequestView> {
        let (mut head, _) =
            self.0.request(Method::POST, &format!("/v1/requests/{id}/manifest"), None::<&()>)?.into_parts();
        head.headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-ndjson"));
        self.read(&self.answer(Request::from_parts(head, lines), UPLOAD).await?)
    }

    /// One request.
    pub async fn request(&self, id: RequestId) -> Told<RequestView> {
        self.get(&format!("/v1/requests/{id}")).await
    }

    /// Requests, the newest first.
    pub async fn requests(&self, filter: &RequestFilter, page: &PageQuery) -> Told<Page<RequestView>> {
        let query = query(&[
            ("state", text(filter.state.as_ref())),
            ("owner", filter.owner.clone()),
            ("destination", text(filter.destination.as_ref())),
            ("dataset", text(filter.dataset.as_ref())),
            ("label", filter.label.clone()),
            ("cursor", page.cursor.clone()),
            ("limit", text(page.limit.as_ref())),
        ]);
        self.get(&format!("/v1/requests{query}")).await
    }

    /// Approves or rejects what was seen at `version`.
    pub async fn decide(&self, id: RequestId, version: u64, decision: &Decision) -> Told<RequestView> {
        let seen = [(header::IF_MATCH, format!("\"{version}\""))];
        self.call(Method::POST, &format!("/v1/requests/{id}/approval"), &seen, Some(decision)).await
    }

    /// Changes what was seen at `version`.
    pub async fn change(&self, id: RequestId, version: u64, patch: &RequestPatch) -> Told<RequestView> {
        let seen = [(header::IF_MATCH, format!("\"{version}\""))];
        self.call(Method::PATCH, &format!("/v1/requests/{id}"), &seen, Some(patch)).await
    }

    /// `pause`, `resume`, `cancel` or `retry-failed`.
    pub async fn act(&self, id: RequestId, action: &str) -> Told<RequestView> {
        self.call(Method::POST, &format!("/v1/requests/{id}/{action}"), &[], None::<&()>).await
    }

    /// Forgets a request that has ended.
    pub async fn delete(&self, id: RequestId) -> Told<()> {
        self.call(Method::DELETE, &format!("/v1/requests/{id}"), &[], None::<&()>).await
    }

    /// A request's items.
    pub async fn items(&self, id: RequestId, state: Option<ItemState>, page: &PageQuery) -> Told<Page<ItemView>> {
        let query = query(&[
            ("state", text(state.as_ref())),
            ("cursor", page.cursor.clone()),
            ("limit", text(page.limit.as_ref())),
        ]);
        self.get(&format!("/v1/requests/{id}/items{query}")).await
    }

    /// One item.
    pub async fn item(&self, id: ItemId) -> Told<ItemView> {
        self.get(&format!("/v1/items/{id}")).await
    }

    /// An item's tries.
    pub async fn attempts(&self, id: ItemId) -> Told<Vec<AttemptView>> {
        self.get(&format!("/v1/items/{id}/attempts")).await
    }

    /// All agents.
    pub async fn agents(&self) -> Told<Vec<AgentView>> {
        self.get("/v1/agents").await
    }

    /// One agent.
    pub async fn agent(&self, name: &AgentName) -> Told<AgentView> {
        self.get(&format!("/v1/agents/{}", segment(name))).await
    }

    /// The approval rules, in order.
    pub async fn rules(&self) -> Told<Vec<ApprovalRule>> {
        self.get("/v1/policies/approval").await
    }

    /// Replaces the approval rules.
    pub async fn set_rules(&self, rules: &[ApprovalRule]) -> Told<Vec<ApprovalRule>> {
        self.call(Method::PUT, "/v1/policies/approval", &[], Some(&rules)).await
    }

    /// Datasets, by name.
    pub async fn datasets(&self, prefix: Option<&DatasetName>, page: &PageQuery) -> Told<Page<GroupView>> {
        let query =
            query(&[("prefix", text(prefix)), ("cursor", page.cursor.clone()), ("limit", text(page.limit.as_ref()))]);
        self.get(&format!("/v1/catalog/datasets{query}")).await
    }

    /// Blocks of a dataset, by name.
    pub async fn blocks(&self, dataset: &DatasetName, page: &PageQuery) -> Told<Page<GroupView>> {
        let query = query(&[
            ("dataset", Some(dataset.to_string())),
            ("cursor", page.cursor.clone()),
            ("limit", text(page.limit.as_ref())),
        ]);
        self.get(&format!("/v1/catalog/blocks{query}")).await
    }

    /// Files, by name.
    pub async fn files(&self, filter: &FileFilter, page: &PageQuery) -> Told<Page<FileView>> {
        let query = query(&[
            ("dataset", text(filter.dataset.as_ref())),
            ("block", text(filter.block.as_ref())),
            ("prefix", text(filter.prefix.as_ref())),
            ("agent", text(filter.agent.as_ref())),
            ("cursor", page.cursor.clone()),
            ("limit", text(page.limit.as_ref())),
        ]);
        self.get(&format!("/v1/catalog/files{query}")).await
    }

    /// One file.
    pub async fn file(&self, lfn: &Lfn) -> Told<FileView> {
        self.get(&format!("/v1/catalog/file{}", query(&[("lfn", Some(lfn.to_string()))]))).await
    }

    /// Adds replicas: at most [`MAX_RECORDS`](crate::control::model::catalog::MAX_RECORDS), all or none.
    pub async fn add_records(&self, records: &[Record]) -> Told<()> {
        self.post::<serde_json::Value>("/v1/catalog/records", &records).await.map(drop)
    }

    /// Removes replicas. How many there were.
    pub async fn remove_records(&self, agent: &AgentName, lfns: &[Lfn]) -> Told<u64> {
        #[derive(serde::Deserialize)]
        struct Removed {
            removed: u64,
        }
        let Removed { removed } = self.post("/v1/catalog/remove", &json!({"agent": agent, "lfns": lfns})).await?;
        Ok(removed)
    }
}

/// Where main is named if not by flag.
pub const MAIN_VAR: &str = "LONGHAUL_MAIN";

/// The sentence for whoever named no main.
pub fn no_main() -> String {
    format!(
        "no main: name it with --main lh://host[:port] or {MAIN_VAR}; its token's file with --token-file or {TOKEN_FILE_VAR}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_stay_in_their_place() {
        let name: AgentName = "site/dtn@1".parse().unwrap();
        assert_eq!(segment(&name), "site%2Fdtn%401");
        let pairs = [("a", Some("x&y=z #".to_owned())), ("b", None), ("c", Some("/d".to_owned()))];
        assert_eq!(query(&pairs), "?a=x%26y%3Dz%20%23&c=/d");
    }
}
