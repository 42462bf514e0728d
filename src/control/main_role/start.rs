//! The role main of a running agent: store, routes and tasks, begun and ended together.

use super::metrics::MainMetrics;
use super::peers::HttpPeers;
use super::{App, router, spawn};
use crate::control::state::StateDir;
use crate::control::store::sqlite::SqliteStore;
use crate::control::store::{Clock, Leases, Store, StoreError};
use crate::control::tokens::TokenStore;
use axum::Router;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Where the store lies in the state directory.
pub const STORE: &str = "main";
/// What tasks and store get to end.
const END: Duration = Duration::from_secs(2);

/// A running main.
#[derive(Debug)]
pub struct Main {
    app: Arc<App>,
    tasks: Vec<JoinHandle<()>>,
}

impl Main {
    /// Opens, or makes, the store in `state` and begins to resolve and to sweep. Blocks as long as the disk takes for that.
    pub fn start(
        state: &StateDir,
        leases: Leases,
        tokens: Arc<TokenStore>,
        peers: HttpPeers,
        stop: watch::Receiver<bool>,
    ) -> Result<Self, StoreError> {
        let store: Arc<dyn Store> = SqliteStore::open_with(&state.file(STORE), Clock::system(), leases)?;
        let lease = Duration::from_secs(leases.lease_secs);
        let app = App::new(store, tokens, Arc::new(peers), Arc::new(MainMetrics::default()), lease);
        let tasks = spawn(app.clone(), stop);
        Ok(Self { app, tasks })
    }

    /// What its routes know.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Its routes, for merging with the agent's.
    pub fn router(&self) -> Router {
        router(self.app.clone())
    }

    /// After `stop` has turned true and the port is closed: waits for the tasks, then closes the store, so that what is left
    /// is one file. What does not end in time ends with the process, and nothing is lost by that.
    pub async fn end(self) {
        let tasks = async {
            for task in self.tasks {
                let _ = task.await;
            }
        };
        if tokio::time::timeout(END, tasks).await.is_err() {
            tracing::warn!("main's tasks did not end in time");
        }
        let app = self.app;
        let closing = tokio::task::spawn_blocking(move || drop(app));
        if tokio::time::timeout(END, closing).await.is_err() {
            tracing::warn!("the store did not close in time: its log is read when it is opened again");
        }
    }
}
