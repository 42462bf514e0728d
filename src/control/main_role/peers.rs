//! How main reaches agents: whether one is there, and what lies below a path at one.

use crate::control::bridge::Boxed;
use crate::control::client::{ClientOptions, PeerClient};
use crate::control::model::item::AgentEndpoint;
use crate::control::model::name::Lfn;
use crate::control::model::page::Page;
use crate::control::url::PeerUrl;
use crate::engine::error::{Class, TransferError};
use serde::{Deserialize, Serialize};

/// A file as a source lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedFile {
    /// Below the source's root.
    pub lfn: Lfn,
    /// Its size.
    pub bytes: u64,
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
#[derive(Debug, Clone)]
pub struct HttpPeers {
    /// The token that sources get from main, and the pins of agents that registered none.
    pub options: ClientOptions,
}

impl HttpPeers {
    fn client(&self, agent: &AgentEndpoint) -> Result<PeerClient, TransferError> {
        let bad = |what: String| TransferError::new(Class::Permanent, format!("agent `{}`: {what}", agent.name));
        let url = PeerUrl::parse(agent.url.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let fingerprint = match &agent.fingerprint {
            Some(text) => Some(text.parse().map_err(|_| bad("its fingerprint cannot be read".to_owned()))?),
            None => self.options.fingerprint,
        };
        PeerClient::new(url, ClientOptions { fingerprint, ..self.options.clone() })
    }
}

impl Peers for HttpPeers {
    fn probe(&self, agent: AgentEndpoint) -> Boxed<'_, Result<(), TransferError>> {
        Box::pin(async move { self.client(&agent)?.healthy().await })
    }

    fn list(
        &self,
        agent: AgentEndpoint,
        prefix: Lfn,
        cursor: Option<String>,
    ) -> Boxed<'_, Result<Page<ListedFile>, TransferError>> {
        Box::pin(async move { self.client(&agent)?.list(prefix.as_str(), cursor.as_deref()).await })
    }
}
