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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::main_role::peers::HttpPeers;
    use crate::control::model::states::ItemState;
    use crate::control::state::StateDir;
    use crate::control::store::conformance::kit::{named, spec_from};
    use crate::control::store::conformance::{HandClock, Kit};
    use crate::control::store::sqlite::SqliteStore;
    use crate::control::tokens::TokenStore;

    /// The store's clock jumps by an hour and back by two: whoever is heard keeps its session and its work.
    #[tokio::test]
    async fn a_clock_that_jumps_ends_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let clock = HandClock::default();
        let store = SqliteStore::open(dir.path(), clock.clock()).unwrap();
        let kit = Kit { store: store.clone(), clock: clock.clone() };
        let tokens = Arc::new(TokenStore::new(&StateDir::open(&dir.path().join("state")).unwrap()));
        let app = App::new(store, tokens, Arc::new(HttpPeers::default()), Arc::default(), Duration::from_secs(30));
        kit.agent("src", None).await;
        let session = kit.agent("dst", None).await;
        app.heard(session.session);
        kit.active(spec_from("dst", &["src"]), 1).await;
        let of = kit.pulls("dst", &session, 1, 1).await.remove(0);
        for jump in [3600, -7200] {
            clock.forward(jump);
            once(&app).await;
            kit.renew("dst", &session).await;
            assert!(kit.store.agent(named("dst")).await.unwrap().alive);
            assert_eq!(kit.state(of.item).await, ItemState::Claimed);
        }
        let overdue = kit.store.overdue().await.unwrap();
        assert!(overdue.is_empty(), "after the jump back the source's lease ends later, not sooner");
        // Both clocks say so: then it ends.
        clock.forward(7200);
        let overdue = kit.store.overdue().await.unwrap();
        assert_eq!(overdue.len(), 2);
        assert!(unheard(&app, overdue.clone(), Instant::now()).is_empty());
        assert_eq!(unheard(&app, overdue, Instant::now() + app.lease).len(), 2);
    }
}
