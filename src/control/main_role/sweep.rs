//! Ends what is over: leases, holds, deadlines. A session ends only when the store's clock and this process's monotonic
//! clock both say so: a step of the wall clock ends nobody, and neither does a main that was away itself.

use super::App;
use crate::control::model::name::SessionKey;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Between sweeps.
const EVERY: Duration = Duration::from_secs(5);
/// Sessions that were last heard so long ago are forgotten here; the store has ended them.
const FORGET: Duration = Duration::from_secs(24 * 3600);

/// Those of `overdue` that this process has not heard for a whole lease. One it never heard counts from its own start.
pub(super) fn unheard(app: &App, overdue: Vec<SessionKey>, now: Instant) -> Vec<SessionKey> {
    let mut heard = app.heard.lock().unwrap_or_else(PoisonError::into_inner);
    heard.retain(|_, at| now.saturating_duration_since(*at) < FORGET);
    let silent =
        |key: &SessionKey| now.saturating_duration_since(heard.get(key).copied().unwrap_or(app.started)) >= app.lease;
    overdue.into_iter().filter(silent).collect()
}

/// One sweep.
pub async fn once(app: &App) {
    let swept = async {
        let overdue = app.store.overdue().await?;
        app.store.sweep(unheard(app, overdue, Instant::now())).await
    };
    match swept.await {
        Ok(swept) if swept.sessions + swept.items + swept.requests > 0 => {
            tracing::info!(sessions = swept.sessions, items = swept.items, requests = swept.requests, "swept");
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "the sweep failed; the next one is in 5 s"),
    }
}

/// Sweeps until `stop`. A sweep that comes late (this process was stopped) gives everybody a whole lease again.
pub async fn run(app: Arc<App>, mut stop: watch::Receiver<bool>) {
    let mut last = Instant::now();
    loop {
        tokio::select! {
            _ = stop.wait_for(|&stop| stop) => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let now = Instant::now();
        if now.saturating_duration_since(last) > EVERY + app.lease / 2 {
            let mut heard = app.heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.values_mut().for_each(|at| *at = now);
        }
        last = now;
        once(&app).await;
    }
}
