//! `/v1/uploads`: a plain client brings a file as it could fetch one, and goes on where it was cut off.

use super::uploads::{Upload, UploadError, UploadSpec, Uploads, Writer};
use crate::control::api::{Answer, App, body, reply};
use crate::control::http::Patience;
use crate::control::messages::WirePath;
use crate::control::model::name::UploadId;
use crate::control::problem::Problem;
use crate::control::settings::Role;
use crate::control::source::blocking;
use crate::control::tokens::{Principal, Right};
use crate::engine::error::Class;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{head, post};
use axum::{Extension, Router};
use http_body_util::BodyExt;
use serde_json::json;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};

/// Where an upload stands, in bytes.
pub const OFFSET: &str = "upload-offset";
/// How many there will be.
pub const LENGTH: &str = "upload-length";
/// `?1` when it is published.
pub const COMPLETE: &str = "upload-complete";
/// Uploads that are written at once; each holds a thread of the blocking pool while its client sends.
const MAX_WRITERS: usize = 32;
/// Pieces of a body that wait for the disk.
const AHEAD: usize = 8;
/// What came is made durable after so many bytes: no more of it has to be sent again after a crash.
const KEEP: u64 = 64 << 20;

/// What the routes know.
pub struct UploadPort {
    /// Root and tokens.
    pub app: Arc<App>,
    /// The uploads.
    pub uploads: Arc<Uploads>,
    writers: Arc<Semaphore>,
}

type Shared = State<Arc<UploadPort>>;

/// The routes over `uploads`.
pub fn router(app: Arc<App>, uploads: Arc<Uploads>) -> Router {
    let port = UploadPort { app, uploads, writers: Arc::new(Semaphore::new(MAX_WRITERS)) };
    Router::new()
        .route("/v1/uploads", post(begin))
        .route("/v1/uploads/{id}", head(look).get(look).patch(bring).delete(cancel))
        .with_state(Arc::new(port))
}

impl From<UploadError> for Problem {
    fn from(error: UploadError) -> Self {
        let (status, class) = match &error {
            UploadError::Database(error) => return error.problem(),
            UploadError::Unknown => (StatusCode::NOT_FOUND, Class::NotFound),
            UploadError::Taken(_) | UploadError::Exists(_) => (StatusCode::CONFLICT, Class::Permanent),
            UploadError::Offset(_) | UploadError::Busy => (StatusCode::CONFLICT, Class::Retry),
            UploadError::TooMany => (StatusCode::TOO_MANY_REQUESTS, Class::Retry),
            UploadError::TooLong(_) => (StatusCode::PAYLOAD_TOO_LARGE, Class::Permanent),
            UploadError::Digest { .. } => (StatusCode::UNPROCESSABLE_ENTITY, Class::Verification),
            UploadError::NoRoom(_) => (StatusCode::INSUFFICIENT_STORAGE, Class::NoRoom),
            UploadError::Disk(..) => (StatusCode::SERVICE_UNAVAILABLE, Class::Retry),
        };
        Self::new(status, class, error.to_string())
    }
}

fn with_state(upload: &Upload, mut response: Response) -> Response {
    for (name, value) in [
        (OFFSET, upload.offset.to_string()),
        (LENGTH, upload.spec.bytes.to_string()),
        (COMPLETE, format!("?{}", u8::from(upload.done))),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn shown(upload: &Upload) -> serde_json::Value {
    json!({
        "id": upload.id, "offset": upload.offset, "bytes": upload.spec.bytes, "lfn": upload.spec.lfn,
        "complete": upload.done, "digest": upload.digest,
    })
}

impl UploadPort {
    fn writer(&self, headers: &HeaderMap) -> Result<Principal, Problem> {
        let principal = self.app.principal(headers)?;
        self.app.has(Role::Destination)?;
        Ok(principal)
    }
}

/// Whose uploads a token sees: one that may do everything, everybody's.
fn owner(principal: &Principal) -> Option<String> {
    (!principal.is_unlimited()).then(|| principal.name.clone())
}

fn id(text: &str) -> Result<UploadId, Problem> {
    text.parse().map_err(|_| UploadError::Unknown.into())
}

async fn begin(State(port): Shared, request: Request) -> Answer {
    let principal = port.writer(request.headers())?;
    let spec: UploadSpec = body(request).await?;
    port.app.authorised(&principal, Right::Write, &WirePath(spec.place().as_str().into()))?;
    if spec.dataset.is_some() != spec.block.is_some() {
        return Err(Problem::bad("`dataset` and `block` come together, or neither"));
    }
    if i64::try_from(spec.bytes).is_err() {
        return Err(Problem::bad("`bytes` is at most 2^63-1"));
    }
    spec.expected().map_err(Problem::bad)?;
    let uploads = port.uploads.clone();
    let upload = blocking(move || uploads.begin(&principal.name, spec)).await??;
    let mut response = with_state(&upload, reply(StatusCode::CREATED, &shown(&upload))?);
    if let Ok(place) = HeaderValue::from_str(&format!("/v1/uploads/{}", upload.id)) {
        response.headers_mut().insert("location", place);
    }
    Ok(response)
}

async fn look(State(port): Shared, Path(text): Path<String>, headers: HeaderMap) -> Answer {
    let principal = port.writer(&headers)?;
    let (uploads, id) = (port.uploads.clone(), id(&text)?);
    let upload = blocking(move || uploads.get(id, owner(&principal).as_deref())).await??;
    Ok(with_state(&upload, reply(StatusCode::OK, &shown(&upload))?))
}

async fn cancel(State(port): Shared, Path(text): Path<String>, headers: HeaderMap) -> Answer {
    let principal = port.writer(&headers)?;
    let (uploads, id) = (port.uploads.clone(), id(&text)?);
    blocking(move || uploads.cancel(id, owner(&principal).as_deref())).await??;
    Ok((StatusCode::NO_CONTENT, Body::empty()).into_response())
}

async fn bring(
    State(port): Shared,
    Extension(patience): Extension<Patience>,
    Path(text): Path<String>,
    request: Request,
) -> Answer {
    let principal = port.writer(request.headers())?;
    let (uploads, id) = (port.uploads.clone(), id(&text)?);
    let offset = request.headers().get(OFFSET).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let offset = offset.ok_or_else(|| Problem::bad("say with `Upload-Offset: BYTES` where the body begins"))?;
    let Ok(_place) = port.writers.clone().try_acquire_owned() else {
        return Err(Problem::busy("as many uploads are being written as may: come again"));
    };
    let writer = blocking(move || uploads.writer(id, owner(&principal).as_deref(), offset)).await??;
    let (to, pieces) = mpsc::channel(AHEAD);
    let writing = tokio::task::spawn_blocking(move || write(writer, pieces));
    let mut body = request.into_body();
    let cut = loop {
        match body.frame().await {
            None => break false,
            Some(Err(_)) => break true,
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                patience.came(data.len());
                // Whoever writes has failed, and says why.
                if to.send(data).await.is_err() {
                    break false;
                }
            }
        }
    };
    drop(to);
    let stopping = |_| Problem::busy("the agent is stopping");
    let (upload, written) = writing.await.map_err(stopping)?;
    written?;
    if cut {
        return Err(Problem::bad(format!("the body was cut off: {} bytes are kept", upload.offset)));
    }
    let status = if upload.done { StatusCode::CREATED } else { StatusCode::OK };
    Ok(with_state(&upload, reply(status, &shown(&upload))?))
}

/// Writes what comes; what came is kept however it ends. Of a whole upload the end as well.
fn write(mut writer: Writer, mut pieces: mpsc::Receiver<Bytes>) -> (Upload, Result<(), UploadError>) {
    let mut kept = writer.upload.offset;
    let mut written = Ok(());
    while let Some(piece) = pieces.blocking_recv() {
        written = writer.write(&piece);
        if written.is_ok() && writer.upload.offset - kept >= KEEP {
            written = writer.keep();
            kept = writer.upload.offset;
        }
        if written.is_err() {
            break;
        }
    }
    let ended = writer.keep().and(written).and_then(|()| match writer.upload.offset == writer.upload.spec.bytes {
        true => writer.complete(),
        false => Ok(()),
    });
    (writer.upload.clone(), ended)
}
