//! What `/metrics` shows of main. Labels are states and outcomes, never a name.

use super::App;
use crate::control::model::item::ReportOutcome;
use crate::control::model::page::{MAX_PAGE, PageQuery};
use crate::control::model::request::RequestFilter;
use crate::control::model::states::RequestState;
use crate::control::store::StoreError;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Between two counts.
const EVERY: Duration = Duration::from_secs(15);
/// Pages of one state that a count reads: more requests than that at once are shown as that many.
const PAGES: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Main's numbers.
#[derive(Debug)]
pub struct MainMetrics {
    registry: Registry,
    requests: Family<State, Gauge>,
    items: Family<State, Gauge>,
    agents: Gauge,
    claimed: Counter,
    reports: Family<Outcome, Counter>,
    store: Histogram,
    failures: Counter,
}

impl Default for MainMetrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let (requests, items) = (Family::<State, Gauge>::default(), Family::<State, Gauge>::default());
        let (agents, claimed, failures) = (Gauge::default(), Counter::default(), Counter::default());
        let reports = Family::<Outcome, Counter>::default();
        // 100 µs to 3.3 s.
        let store = Histogram::new(exponential_buckets(1e-4, 2.0, 16));
        registry.register("longhaul_main_requests", "Requests that have not ended", requests.clone());
        registry.register("longhaul_main_items", "Items of active requests", items.clone());
        registry.register("longhaul_main_agents_alive", "Agents whose lease holds", agents.clone());
        registry.register("longhaul_main_claimed_items", "Items that agents were given", claimed.clone());
        registry.register("longhaul_main_reports", "Reports of agents", reports.clone());
        registry.register("longhaul_main_store_failures", "Probes that the store failed", failures.clone());
        registry.register_with_unit("longhaul_main_store", "One probe of the store", Unit::Seconds, store.clone());
        Self { registry, requests, items, agents, claimed, reports, store, failures }
    }
}

impl MainMetrics {
    /// A claim was given so many items.
    pub fn claimed(&self, items: usize) {
        self.claimed.inc_by(items as u64);
    }

    /// What became of reports.
    pub fn reported(&self, outcomes: &[ReportOutcome]) {
        for outcome in outcomes {
            let outcome = match outcome {
                ReportOutcome::Accepted => "accepted",
                ReportOutcome::StaleEpoch => "stale_epoch",
                ReportOutcome::Unknown => "unknown",
                ReportOutcome::Illegal => "illegal",
            };
            self.reports.get_or_create(&Outcome { outcome }).inc();
        }
    }

    /// The text, with its end mark.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    async fn census(&self, app: &App) -> Result<(), StoreError> {
        let begun = Instant::now();
        app.store.now().await?;
        self.store.observe(begun.elapsed().as_secs_f64());
        let alive = app.store.agents().await?.iter().filter(|agent| agent.alive).count();
        self.agents.set(alive as i64);
        let mut items = [("queued", 0), ("running", 0), ("holding", 0), ("done", 0), ("failed", 0)];
        for state in RequestState::ALL.iter().filter(|state| !state.has_ended()) {
            let filter = RequestFilter { state: Some(*state), ..RequestFilter::default() };
            let (mut count, mut cursor) = (0, None);
            for _ in 0..PAGES {
                let page = app.store.requests(filter.clone(), PageQuery { cursor, limit: Some(MAX_PAGE) }).await?;
                count += page.items.len() as i64;
                for c in page.items.iter().map(|request| request.counters).filter(|_| *state == RequestState::Active) {
                    for (slot, n) in items.iter_mut().zip([c.queued, c.running, c.holding, c.done, c.failed]) {
                        slot.1 += n as i64;
                    }
                }
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            self.requests.get_or_create(&State { state: state.word() }).set(count);
        }
        for (state, count) in items {
            self.items.get_or_create(&State { state }).set(count);
        }
        Ok(())
    }
}

/// Counts until `stop`.
pub async fn run(app: Arc<App>, mut stop: watch::Receiver<bool>) {
    loop {
        if let Err(error) = app.metrics.census(&app).await {
            app.metrics.failures.inc();
            tracing::warn!(%error, "the store could not be counted");
        }
        tokio::select! {
            _ = stop.wait_for(|&stop| stop) => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}
