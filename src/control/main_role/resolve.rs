//! Finds the files of requests: in the catalog, at a source, or in an uploaded manifest. Everything goes to the store in batches, so
//! that memory does not grow with the request; whatever was cut off begins anew, and only the end makes it count.

use super::check::manifest_digest;
use super::policy::{self, Facts};
use super::web::invalid;
use super::{App, Resolving};
use crate::control::http::Patience;
use crate::control::model::catalog::{FileFilter, FileView};
use crate::control::model::item::AgentEndpoint;
use crate::control::model::name::{AgentName, DatasetName, Lfn, RequestId};
use crate::control::model::page::{MAX_PAGE, Page, PageQuery};
use crate::control::model::request::{ManifestLine, RequestView, Selection, SourceChoice};
use crate::control::model::states::RequestState;
use crate::control::problem::Problem;
use crate::control::store::{NewItem, Resolution, StoreError};
use crate::engine::error::Class;
use axum::body::Body;
use axum::http::StatusCode;
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// Items of one transaction.
const BATCH: usize = 1000;
/// Items of one request.
pub const MAX_ITEMS: u64 = 10_000_000;
/// Bytes of a manifest's line: two paths of 1024 bytes, every byte escaped, fit.
const MAX_LINE: usize = 16 << 10;
/// Between looks for requests when nobody says that there is one.
const EVERY: Duration = Duration::from_secs(5);
/// Tries of one page of a source's list, with pauses of 1, 2, 4, 8 s.
const LIST_TRIES: u32 = 5;

/// Why a request was not resolved.
enum Halt {
    /// It cannot be done.
    Never(String),
    /// The client's words are bad.
    Client(Problem),
    /// Not now.
    Store(StoreError),
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Gathers the items of one request.
struct Gather<'a> {
    app: &'a App,
    request: &'a RequestView,
    batch: Vec<NewItem>,
    facts: Facts,
}

impl<'a> Gather<'a> {
    async fn begin(app: &'a App, request: &'a RequestView) -> Result<Self, Halt> {
        begin_anew(app, request.id).await?;
        Ok(Self { app, request, batch: Vec::new(), facts: Facts::new() })
    }

    fn path(&self, below: &Lfn) -> Result<Lfn, Halt> {
        match &self.request.spec.path {
            None => Ok(below.clone()),
            Some(base) => format!("{base}{below}")
                .parse()
                .map_err(|_| Halt::Never(format!("`{base}{below}` is too long for a path: at most 1024 bytes"))),
        }
    }

    /// One file, to every destination.
    async fn file(&mut self, mut item: NewItem, dataset: Option<&DatasetName>) -> Result<(), Halt> {
        let destinations = &self.request.spec.destinations;
        item.path = self.path(&item.path)?;
        self.facts.add(dataset, item.bytes, destinations.len() as u64);
        if self.facts.items > MAX_ITEMS {
            return Err(Halt::Never(format!("a request has at most {MAX_ITEMS} items: make several")));
        }
        self.batch.extend(destinations.iter().map(|to| NewItem { destination: to.clone(), ..item.clone() }));
        if self.batch.len() >= BATCH { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Halt> {
        if self.batch.is_empty() {
            return Ok(());
        }
        Ok(self.app.store.add_items(self.request.id, std::mem::take(&mut self.batch)).await?)
    }

    /// A file as the catalog has it.
    async fn known(&mut self, file: FileView) -> Result<(), Halt> {
        let allowed = |agent: &AgentName| match &self.request.spec.source {
            SourceChoice::Any => true,
            SourceChoice::Agents(agents) => agents.contains(agent),
        };
        if !file.replicas.iter().any(|replica| allowed(&replica.agent)) {
            return Err(Halt::Never(format!("{}: no source that may serve it has a replica", file.lfn)));
        }
        let dataset = file.dataset.clone();
        let item = NewItem {
            path: file.lfn.clone(),
            lfn: file.lfn,
            destination: self.request.spec.destinations[0].clone(),
            source_path: None,
            bytes: Some(file.bytes),
            digest: file.digest,
        };
        self.file(item, dataset.as_ref()).await
    }

    /// A file that the named source has to have.
    async fn named(&mut self, lfn: Lfn, bytes: Option<u64>) -> Result<(), Halt> {
        let destination = self.request.spec.destinations[0].clone();
        let item = NewItem { path: lfn.clone(), source_path: Some(lfn.clone()), lfn, destination, bytes, digest: None };
        self.file(item, None).await
    }

    async fn catalog(&mut self, filter: FileFilter) -> Result<(), Halt> {
        let mut cursor = None;
        loop {
            let page = PageQuery { cursor: cursor.clone(), limit: Some(MAX_PAGE) };
            let Page { items, next } = self.app.store.files(filter.clone(), page).await?;
            for file in items {
                self.known(file).await?;
            }
            if next.is_none() || next == cursor {
                return Ok(());
            }
            cursor = next;
        }
    }

    async fn listed(&mut self, files: &[Lfn]) -> Result<(), Halt> {
        for lfn in files {
            match self.app.store.file(lfn.clone()).await {
                Ok(file) if !file.replicas.is_empty() => self.known(file).await?,
                Ok(_) | Err(StoreError::NotFound(_)) if self.request.spec.source != SourceChoice::Any => {
                    self.named(lfn.clone(), None).await?;
                }
                Ok(_) => return Err(Halt::Never(format!("{lfn}: nobody has a replica"))),
                Err(StoreError::NotFound(_)) => {
                    let what = format!("{lfn} is not in the catalog: name the source that has it, or register it");
                    return Err(Halt::Never(what));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn prefix(&mut self, prefix: &Lfn) -> Result<(), Halt> {
        let SourceChoice::Agents(agents) = &self.request.spec.source else {
            return Err(Halt::Never("a prefix needs a named source".into()));
        };
        let agent = self.app.store.agent(agents[0].clone()).await?.registration;
        let source = AgentEndpoint { name: agent.name, url: agent.url, fingerprint: agent.fingerprint };
        let mut cursor = None;
        loop {
            let Page { items, next } = self.page(&source, prefix, cursor.clone()).await?;
            for file in items {
                let below = file.lfn.as_str().strip_prefix(prefix.as_str());
                if !below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
                    return Err(Halt::Never(format!("the source lists {}, which is not below {prefix}", file.lfn)));
                }
                self.named(file.lfn, file.bytes).await?;
            }
            if next.is_none() {
                return Ok(());
            }
            if next == cursor {
                return Err(Halt::Never(format!("the source `{}` lists in circles", source.name)));
            }
            cursor = next;
        }
    }

    async fn page(
        &self,
        source: &AgentEndpoint,
        prefix: &Lfn,
        cursor: Option<String>,
    ) -> Result<Page<super::peers::ListedFile>, Halt> {
        let mut tried = 0;
        loop {
            match self.app.peers.list(source.clone(), prefix.clone(), cursor.clone()).await {
                Ok(page) => return Ok(page),
                Err(error) => {
                    tried += 1;
                    if tried == LIST_TRIES || !matches!(error.class, Class::Retry | Class::Reconnect) {
                        return Err(Halt::Never(format!("the source `{}` cannot list {prefix}: {error}", source.name)));
                    }
                    tokio::time::sleep(Duration::from_secs(1 << (tried - 1))).await;
                }
            }
        }
    }

    /// Everything is there: what the rules say of it.
    async fn end(mut self) -> Result<RequestView, Halt> {
        self.flush().await?;
        if self.facts.items == 0 {
            return Err(Halt::Never("there are no files in what was asked for".into()));
        }
        let rules = self.app.store.approval_rules().await?;
        let request = self.request;
        let resolution = policy::decide(&rules, &request.owner, &request.spec.destinations, &self.facts);
        Ok(self.app.store.resolved(request.id, resolution).await?)
    }
}

async fn begin_anew(app: &App, id: RequestId) -> Result<(), StoreError> {
    while app.store.restart_resolving(id).await? {}
    Ok(())
}

async fn find(app: &App, request: &RequestView) -> Result<RequestView, Halt> {
    let mut gather = Gather::begin(app, request).await?;
    match &request.spec.select {
        Selection::Dataset(name) => {
            gather.catalog(FileFilter { dataset: Some(name.clone()), ..FileFilter::default() }).await?;
        }
        Selection::Block(name) => {
            gather.catalog(FileFilter { block: Some(name.clone()), ..FileFilter::default() }).await?;
        }
        Selection::Files(files) => gather.listed(files).await?,
        Selection::Prefix(prefix) => gather.prefix(prefix).await?,
        Selection::Manifest => return Ok(request.clone()),
    }
    gather.end().await
}

async fn one(app: Arc<App>, held: Resolving) {
    let id: RequestId = held.id;
    let result = async {
        let request = app.store.request(id).await?;
        if request.state != RequestState::Resolving {
            return Ok(());
        }
        let failed = match find(&app, &request).await {
            Ok(_) => return Ok(()),
            Err(Halt::Never(why)) => why,
            Err(Halt::Client(problem)) => problem.detail,
            // Cancelled meanwhile, or the same path twice.
            Err(Halt::Store(StoreError::Conflict(why) | StoreError::TooMuch(why))) => {
                if app.store.request(id).await?.state != RequestState::Resolving {
                    return Ok(());
                }
                why
            }
            Err(Halt::Store(error @ StoreError::NotFound(_))) => error.to_string(),
            Err(Halt::Store(error)) => return Err(error),
        };
        begin_anew(&app, id).await?;
        app.store.resolved(id, Resolution::Failed(failed)).await.map(|_| ())
    };
    if let Err(error) = result.await {
        tracing::warn!(request = %id, %error, "the request is not resolved yet; it is tried again");
    }
}

/// Resolves until `stop`: what is new, and what an earlier process left.
pub async fn run(app: Arc<App>, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(super::RESOLVERS));
    let mut running = tokio::task::JoinSet::new();
    loop {
        match app.store.resolving().await {
            Ok(ids) => {
                for id in ids {
                    let Ok(place) = places.clone().try_acquire_owned() else { break };
                    // A manifest comes when its client sends it.
                    let manifest = app.store.request(id).await.is_ok_and(|r| r.spec.select == Selection::Manifest);
                    let Some(held) = app.take(id).filter(|_| !manifest) else { continue };
                    let app = app.clone();
                    running.spawn(async move {
                        one(app.clone(), held).await;
                        drop(place);
                        app.wake_resolver.notify_one();
                    });
                }
            }
            Err(error) => tracing::error!(%error, "requests that wait to be resolved cannot be listed"),
        }
        tokio::select! {
            _ = stop.wait_for(|&stop| stop) => return,
            () = app.wake_resolver.notified() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
        while running.try_join_next().is_some() {}
    }
}

/// Reads a manifest. All of it or nothing: whatever goes wrong, the request is as it was and takes another upload.
pub async fn manifest(
    app: &Arc<App>,
    request: RequestView,
    body: Body,
    patience: Patience,
) -> Result<RequestView, Problem> {
    let _held = app.take(request.id).ok_or_else(|| {
        Problem::new(StatusCode::CONFLICT, Class::Retry, "a manifest of this request is being read already")
    })?;
    let failed = match lines(app, &request, body, patience).await {
        Ok(view) => return Ok(view),
        Err(Halt::Never(why)) => invalid(why),
        Err(Halt::Client(problem)) => problem,
        Err(Halt::Store(error)) => error.into(),
    };
    // An upload that is cut off does not come here; the next one begins with the same.
    if let Err(error) = begin_anew(app, request.id).await {
        tracing::warn!(request = %request.id, %error, "a refused manifest is removed when the next one comes");
    }
    Err(failed)
}

async fn lines(app: &App, request: &RequestView, mut body: Body, patience: Patience) -> Result<RequestView, Halt> {
    let mut gather = Gather::begin(app, request).await?;
    let mut buffer: Vec<u8> = Vec::new();
    let mut number = 0u64;
    let cut = || Halt::Client(Problem::bad("the manifest was cut off: send it again"));
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| cut())?.into_data() else { continue };
        patience.came(data.len());
        let mut rest = &data[..];
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            number += 1;
            if buffer.len() + end > MAX_LINE {
                return Err(Halt::Client(invalid(format!("line {number} is longer than {MAX_LINE} bytes"))));
            }
            buffer.extend_from_slice(&rest[..end]);
            line(&mut gather, &buffer, number).await?;
            buffer.clear();
            rest = &rest[end + 1..];
        }
        if buffer.len() + rest.len() > MAX_LINE {
            return Err(Halt::Client(invalid(format!("line {} is longer than {MAX_LINE} bytes", number + 1))));
        }
        buffer.extend_from_slice(rest);
    }
    line(&mut gather, &buffer, number + 1).await?;
    gather.end().await
}

async fn line(gather: &mut Gather<'_>, text: &[u8], number: u64) -> Result<(), Halt> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return Ok(());
    }
    let bad = |why: String| Halt::Client(invalid(format!("line {number}: {why}")));
    let ManifestLine { lfn, bytes, digest, path } = serde_json::from_slice(text).map_err(|e| bad(e.to_string()))?;
    manifest_digest(digest.as_ref()).map_err(|p| bad(p.detail))?;
    if bytes.is_some_and(|b| i64::try_from(b).is_err()) {
        return Err(bad("`bytes` is at most 2^63-1".into()));
    }
    let source_path = (gather.request.spec.source != SourceChoice::Any).then(|| lfn.clone());
    let destination = gather.request.spec.destinations[0].clone();
    let path = path.unwrap_or_else(|| lfn.clone());
    gather.file(NewItem { lfn, path, destination, source_path, bytes, digest }, None).await
}
