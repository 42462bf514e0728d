//! The control side of an agent: HTTP API and its client, tokens, TLS, settings and the daemon itself. Work per
//! request, never per chunk; what moves bytes is behind `engine::handle`.

pub mod access;
pub mod agent;
pub mod api;
pub mod bridge;
pub mod caps;
pub mod client;
pub mod database;
pub mod destination;
pub mod http;
pub mod known_peers;
pub mod main_role;
pub mod messages;
pub mod metrics;
pub mod model;
pub mod pki;
pub mod problem;
pub mod profiles;
pub mod root;
pub mod settings;
pub mod source;
pub mod state;
pub mod store;
pub mod third_party;
pub mod tls;
pub mod tokens;
pub mod transfer_log;
pub mod url;
pub mod web;

#[cfg(test)]
mod testing;
#[cfg(test)]
pub(crate) mod testing_main;
