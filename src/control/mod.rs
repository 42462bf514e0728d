//! The control side of an agent: HTTP API and its client, tokens, TLS, settings and the daemon itself. Work per
//! request, never per chunk; what moves bytes is behind `engine::handle`.

pub mod agent;
pub mod api;
pub mod bridge;
pub mod caps;
pub mod client;
pub mod http;
pub mod known_peers;
pub mod messages;
pub mod metrics;
pub mod problem;
pub mod profiles;
pub mod root;
pub mod settings;
pub mod state;
pub mod third_party;
pub mod tls;
pub mod tokens;
pub mod transfer_log;
pub mod url;

#[cfg(test)]
mod testing;
