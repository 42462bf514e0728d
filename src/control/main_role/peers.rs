//! How main reaches agents: whether one is there, and what lies below a path at one.

use crate::control::bridge::Boxed;
use crate::control::client::{ClientOptions, PeerClient};
use crate::control::model::item::AgentEndpoint;
use crate::control::model::name::Lfn;
use crate::control::model::page::Page;
use crate::control::tls::Fingerprint;
use crate::control::url::PeerUrl;
use crate::engine::error::{Class, TransferError};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A file as a source lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedFile {
    /// Below the source's root.
    pub lfn: Lfn,
    /// Its size; of one on tape, where that is known.
    pub bytes: Option<u64>,
}

/// What main asks of agents.
pub trait Peers: Send + Sync {
    /// Whether its HTTP port answers. No token is sent.
    fn probe(&self, agent: AgentEndpoint) -> Boxed<'_, Result<(), TransferError>>;
    /// `GET /v1/list?prefix=&cursor=`.
    fn list(
        &self,
        agent: AgentEndpoint,
        prefix: Lfn,
        cursor: Option<String>,
    ) -> Boxed<'_, Result<Page<ListedFile>, TransferError>>;
}

/// Over HTTP.
#[derive(Debug, Clone, Default)]
pub struct HttpPeers {
    /// How agents are trusted that registered no fingerprint. Its token is main's own: it is told to this agent itself only.
    pub options: ClientOptions,
    /// This agent's certificate.
    pub own: Option<Fingerprint>,
    /// A directory with a token for each source, a file by its name (`_` for `/`).
    pub tokens: PathBuf,
}

impl HttpPeers {
    fn client(&self, agent: &AgentEndpoint, token_file: Option<PathBuf>) -> Result<PeerClient, TransferError> {
        let url = PeerUrl::parse(agent.url.as_bytes()).map_err(|e| bad(agent, e.to_string()))?;
        let fingerprint = fingerprint(agent)?.or(self.options.fingerprint);
        PeerClient::new(url, ClientOptions { fingerprint, token_file, ..self.options.clone() })
    }

    /// The token for a source. An agent may register as it likes: no token goes to one that it was not put there for.
    fn token(&self, source: &AgentEndpoint) -> Result<PathBuf, TransferError> {
        let own = self.own.is_some() && fingerprint(source)? == self.own;
        if let Some(file) = self.options.token_file.clone().filter(|_| own) {
            return Ok(file);
        }
        let file = self.tokens.join(source.name.as_str().replace('/', "_"));
        match file.is_file() {
            true => Ok(file),
            false => {
                let what = format!(
                    "main has no token for the source `{}`: put one that may read there into {} (mode 0600)",
                    source.name,
                    file.display()
                );
                Err(TransferError::new(Class::Denied, what))
            }
        }
    }
}

fn bad(agent: &AgentEndpoint, what: String) -> TransferError {
    TransferError::new(Class::Permanent, format!("agent `{}`: {what}", agent.name))
}

fn fingerprint(agent: &AgentEndpoint) -> Result<Option<Fingerprint>, TransferError> {
    let parse = |text: &String| text.parse().map_err(|_| bad(agent, "its fingerprint cannot be read".to_owned()));
    agent.fingerprint.as_ref().map(parse).transpose()
}

impl Peers for HttpPeers {
    fn probe(&self, agent: AgentEndpoint) -> Boxed<'_, Result<(), TransferError>> {
        Box::pin(async move { self.client(&agent, self.options.token_file.clone())?.healthy().await })
    }

    fn list(
        &self,
        agent: AgentEndpoint,
        prefix: Lfn,
        cursor: Option<String>,
    ) -> Boxed<'_, Result<Page<ListedFile>, TransferError>> {
        Box::pin(async move {
            self.client(&agent, Some(self.token(&agent)?))?.list(prefix.as_str(), cursor.as_deref()).await
        })
    }
}
