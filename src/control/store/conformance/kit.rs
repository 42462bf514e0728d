//! What every test of the suite needs: a store, a clock that the test sets, agents, requests.

use crate::control::model::agent::{AgentRegistration, OpenSession, Renewal, Session};
use crate::control::model::catalog::Record;
use crate::control::model::item::{Assignment, Claim, FailureClass, ItemReport, ItemView, ReportOutcome, Side};
use crate::control::model::name::{AgentName, ItemId, Lfn, RequestId};
use crate::control::model::page::PageQuery;
use crate::control::model::request::{Counters, Decision, RequestSpec, RequestView, Selection, Verdict};
use crate::control::model::states::{ItemEvent, ItemState};
use crate::control::model::time::Time;
use crate::control::store::{Actor, Clock, NewItem, Resolution, Store};
use crate::ids::AgentId;
use std::fmt::Debug;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A clock that stands until it is set.
#[derive(Debug, Clone)]
pub struct HandClock(Arc<AtomicI64>);

impl Default for HandClock {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(1_700_000_000_000)))
    }
}

impl HandClock {
    /// For a store.
    pub fn clock(&self) -> Clock {
        let time = self.0.clone();
        Clock::new(move || Time(time.load(Ordering::SeqCst)))
    }

    /// So many seconds later.
    pub fn forward(&self, secs: i64) {
        self.0.fetch_add(secs * 1000, Ordering::SeqCst);
    }

    /// A millisecond later.
    pub fn nudge(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Now.
    pub fn now(&self) -> Time {
        Time(self.0.load(Ordering::SeqCst))
    }
}

/// A store under test.
pub struct Kit {
    /// It.
    pub store: Arc<dyn Store>,
    /// Its clock.
    pub clock: HandClock,
}

/// A name or an id of a test.
pub fn named<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// Whoever acts in tests.
pub fn actor() -> Actor {
    Actor { name: "ada".into() }
}

/// A pull of `files` files below `/d` to agent `to`.
pub fn spec(to: &str) -> RequestSpec {
    let text = format!(r#"{{"select": {{"prefix": "/d"}}, "destinations": ["{to}"]}}"#);
    serde_json::from_str(&text).unwrap()
}

/// As [`spec`], with named sources.
pub fn spec_from(to: &str, sources: &[&str]) -> RequestSpec {
    let agents = sources.iter().map(|name| named(name)).collect();
    RequestSpec { source: crate::control::model::request::SourceChoice::Agents(agents), ..spec(to) }
}

/// A file's name.
pub fn lfn(n: usize) -> Lfn {
    named(&format!("/d/file{n:07}"))
}

/// An item of [`lfn`], ten bytes.
pub fn new_item(n: usize, to: &str) -> NewItem {
    NewItem { lfn: lfn(n), path: lfn(n), destination: named(to), source_path: None, bytes: Some(10), digest: None }
}

/// A report without extras.
pub fn says(of: &Assignment, event: ItemEvent) -> ItemReport {
    ItemReport::new(of.item, of.epoch, event)
}

/// A complete file.
pub fn complete(of: &Assignment) -> ItemReport {
    ItemReport { bytes: 10, size: Some(10), digest: Some("ab".repeat(16)), ..says(of, ItemEvent::Complete) }
}

/// A failed try.
pub fn failed(of: &Assignment, class: FailureClass) -> ItemReport {
    ItemReport { class: Some(class), reason: Some("it broke".into()), ..says(of, ItemEvent::Requeue) }
}

impl Kit {
    /// Registers an agent with both roles and opens a session. The same name is the same agent.
    pub async fn agent(&self, name: &str, storage: Option<&str>) -> Session {
        let registration = registration(name, storage);
        let id = registration.id;
        self.store.register(registration).await.unwrap();
        self.store.open_session(named(name), OpenSession { id, previous: None, items: Vec::new() }).await.unwrap()
    }

    /// Heartbeat.
    pub async fn renew(&self, name: &str, session: &Session) {
        self.store.renew(named(name), renewal(session)).await.unwrap();
    }

    /// `agent` has files `0..n` of [`lfn`].
    pub async fn has_files(&self, agent: &str, n: usize) {
        for start in (0..n).step_by(1000) {
            let records = (start..n.min(start + 1000)).map(|n| record(n, agent)).collect();
            self.store.add_records(records).await.unwrap();
        }
    }

    /// A request that is active, with `files` items.
    pub async fn active(&self, spec: RequestSpec, files: usize) -> RequestView {
        let to = spec.destinations[0].to_string();
        let id = self.resolving(spec, (0..files).map(|n| new_item(n, &to)).collect()).await;
        self.store.resolved(id, Resolution::Approved { rule: "all".into() }).await.unwrap()
    }

    /// A request that waits for approval.
    pub async fn pending(&self, spec: RequestSpec, files: usize) -> RequestView {
        let to = spec.destinations[0].to_string();
        let id = self.resolving(spec, (0..files).map(|n| new_item(n, &to)).collect()).await;
        self.store.resolved(id, Resolution::NeedsApproval("nobody said".into())).await.unwrap()
    }

    /// A request that is still being resolved.
    pub async fn resolving(&self, spec: RequestSpec, items: Vec<NewItem>) -> RequestId {
        let id = self.store.create_request(actor(), spec, None).await.unwrap().request.id;
        self.store.add_items(id, items).await.unwrap();
        id
    }

    /// Yes or no, to what is there.
    pub async fn decide(&self, request: &RequestView, decision: Verdict) -> RequestView {
        let digest = request.digest.clone().unwrap();
        let decision = Decision { decision, digest, comment: None };
        self.store.decide(request.id, Actor { name: "bob".into() }, request.version, decision).await.unwrap()
    }

    /// Claims up to `limit` items as main does: the first candidate of each.
    pub async fn claim(&self, name: &str, session: &Session, seq: u64, limit: usize, side: Side) -> Vec<Assignment> {
        let claim = claim(session, seq, limit, side);
        let found = self.store.claimable(named(name), claim.clone()).await.unwrap();
        let chosen = found.iter().map(|c| (c.item, c.epoch, c.candidates[0].agent.clone())).collect();
        self.store.claim(named(name), claim, chosen).await.unwrap()
    }

    /// As [`Kit::claim`], for the destination.
    pub async fn pulls(&self, name: &str, session: &Session, seq: u64, limit: usize) -> Vec<Assignment> {
        self.claim(name, session, seq, limit, Side::Destination).await
    }

    /// One report.
    pub async fn report(&self, name: &str, session: &Session, report: ItemReport) -> ReportOutcome {
        self.store.report(named(name), session.session, vec![report]).await.unwrap()[0]
    }

    /// All items, page by page.
    pub async fn items(&self, request: RequestId) -> Vec<ItemView> {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.store.items(request, None, PageQuery { cursor, limit: Some(700) }).await.unwrap();
            found.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                return found;
            }
        }
    }

    /// The request, after its counters were compared with a recount of its items.
    pub async fn counted(&self, id: RequestId) -> RequestView {
        let request = self.store.request(id).await.unwrap();
        let mut recount = Counters::default();
        for item in self.items(id).await {
            let bytes = item.bytes.unwrap_or(0);
            recount.files += 1;
            recount.bytes += bytes;
            recount.add(item.state, 1, i64::try_from(bytes).unwrap());
        }
        assert_eq!(request.counters, recount, "counters are not those of the items of {id}");
        request
    }

    /// How an item stands.
    pub async fn state(&self, item: ItemId) -> ItemState {
        self.store.item(item).await.unwrap().state
    }

    /// Sweeps as a main that heard nobody.
    pub async fn sweep(&self) -> crate::control::store::Swept {
        let overdue = self.store.overdue().await.unwrap();
        self.store.sweep(overdue).await.unwrap()
    }
}

/// An agent's registration; the identity follows from the name.
pub fn registration(name: &str, storage: Option<&str>) -> AgentRegistration {
    let mut id = [0; 16];
    name.bytes().zip(&mut id).for_each(|(byte, place)| *place = byte);
    AgentRegistration {
        name: named(name),
        id: AgentId(id),
        url: format!("lh://{name}:8443"),
        fingerprint: None,
        roles: vec!["source".into(), "destination".into()],
        version: "1".into(),
        site: None,
        storage: storage.map(str::to_owned),
    }
}

/// A heartbeat without news.
pub fn renewal(session: &Session) -> Renewal {
    Renewal { session: session.session, epoch: session.epoch, status: Default::default(), progress: Vec::new() }
}

/// A claim.
pub fn claim(session: &Session, seq: u64, limit: usize, side: Side) -> Claim {
    Claim { session: session.session, session_epoch: session.epoch, seq, side, limit }
}

/// `agent` has [`lfn`] number `n`, ten bytes, no group.
pub fn record(n: usize, agent: &str) -> Record {
    Record {
        dataset: None,
        block: None,
        lfn: lfn(n),
        bytes: 10,
        digest: None,
        agent: named::<AgentName>(agent),
        path: None,
        locality: Default::default(),
    }
}

/// Files by name instead of a prefix.
pub fn of_dataset(to: &str, dataset: &str) -> RequestSpec {
    RequestSpec { select: Selection::Dataset(named(dataset)), ..spec(to) }
}
