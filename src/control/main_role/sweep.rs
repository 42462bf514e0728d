//! Ends what is over: leases, holds, deadlines. A session ends only when the store's clock and this process's monotonic
//! clock both say so: a step of the wall clock ends nobody, and neither does a main that was away itself.

use super::App;
use crate::control::model::name::SessionKey;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Between sweeps, where leases are not short.
const EVERY: Duration = Duration::from_secs(5);
/// Sessions that were last heard so long ago are forgotten here; the store has ended them.
const FORGET: Duration = Duration::from_secs(24 * 3600);

/// Those of `overdue` that this process has not heard for a whole lease.
pub(super) fn unheard(app: &App, overdue: Vec<SessionKey>, now: Instant) -> Vec<SessionKey> {
    let mut heard = app.heard.lock().unwrap_or_else(PoisonError::into_inner);
    heard.sessions.retain(|_, at| now.saturating_duration_since(*at) < FORGET);
    let last = |key: &SessionKey| heard.sessions.get(key).copied().unwrap_or(heard.others);
    let silent = |key: &SessionKey| now.saturating_duration_since(last(key)) >= app.lease;
    overdue.into_iter().filter(silent).collect()
}

/// One sweep; whether another one is to follow at once.
pub async fn once(app: &App) -> bool {
    let swept = async {
        let overdue = app.store.overdue().await?;
        app.store.sweep(unheard(app, overdue, Instant::now())).await
    };
    match swept.await {
        Ok(swept) => {
            if swept.sessions + swept.items + swept.requests > 0 {
                tracing::info!(sessions = swept.sessions, items = swept.items, requests = swept.requests, "swept");
            }
            swept.more
        }
        Err(error) => {
            tracing::error!(%error, "the sweep failed; it is tried again");
            false
        }
    }
}

/// Sweeps until `stop`. A sweep that comes late (this process was stopped) gives everybody a whole lease again.
pub async fn run(app: Arc<App>, mut stop: watch::Receiver<bool>) {
    let every = EVERY.min(app.lease / 2);
    let (mut last, mut more) = (Instant::now(), false);
    loop {
        tokio::select! {
            _ = stop.wait_for(|&stop| stop) => return,
            () = app.wake_sweeper.notified() => {}
            () = tokio::time::sleep(if more { Duration::ZERO } else { every }) => {}
        }
        let now = Instant::now();
        if now.saturating_duration_since(last) > every + app.lease / 2 {
            let mut heard = app.heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.others = now;
            heard.sessions.values_mut().for_each(|at| *at = now);
        }
        last = now;
        more = once(&app).await;
    }
}
