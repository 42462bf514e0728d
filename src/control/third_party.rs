//! Third-party copies: a client hands this agent a source's ticket, the bytes go straight, the client watches.

use super::bridge::{Boxed, TransferEngine};
use super::http::is_loopback;
use super::messages::{HandedSource, TransferView};
use super::state;
use crate::engine::error::{Class, TransferError};
use crate::engine::handle::{TicketSource, TransferWatch};
use crate::engine::spec::{DestinationSpec, Report, Snapshot, Steer, Ticket, Verdict};
use crate::ids::TicketId;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Sources of one transfer.
pub const MAX_SOURCES: usize = 16;
/// Data addresses of one ticket.
pub const MAX_ADDRESSES: usize = 8;
/// Third-party transfers that run at once.
const MAX_RUNNING: usize = 256;
/// Ended ones that can still be asked about.
const MAX_ENDED: usize = 100;
/// How long a source waits for the client to hand over a fresh ticket. A client asks for news every second or so.
const TICKET_PATIENCE: Duration = Duration::from_secs(60);
/// Fresh tickets that may wait for one source.
const MAX_HANDED: usize = 2;

/// Whether this agent may dial `target`, which a client named. The data port's first bytes are ours, but an open door
/// for probing inner networks is not wanted: nothing that is no host, and nothing closer than the client itself is.
pub fn may_dial(target: IpAddr, client: IpAddr) -> bool {
    let (target, client) = (target.to_canonical(), client.to_canonical());
    if target.is_unspecified() || target.is_multicast() {
        return false;
    }
    match target {
        _ if is_loopback(target) => is_loopback(client),
        IpAddr::V4(v4) if v4.is_broadcast() || v4.is_link_local() => false,
        IpAddr::V4(v4) if v4.is_private() || is_shared(v4.octets()) => is_inside(client),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => false,
        IpAddr::V6(v6) if v6.is_unique_local() => is_inside(client),
        _ => true,
    }
}

/// 100.64.0.0/10, carriers' NAT.
fn is_shared(octets: [u8; 4]) -> bool {
    octets[0] == 100 && octets[1] & 0xc0 == 64
}

fn is_inside(client: IpAddr) -> bool {
    is_loopback(client)
        || match client {
            IpAddr::V4(v4) => v4.is_private() || v4.is_link_local() || is_shared(v4.octets()),
            IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
        }
}

/// Checks a handed ticket's addresses. The error is a sentence.
pub fn check_ticket(ticket: &Ticket, client: IpAddr) -> Result<(), String> {
    if ticket.data.is_empty() || ticket.data.len() > MAX_ADDRESSES {
        return Err(format!("a ticket names 1 to {MAX_ADDRESSES} data addresses"));
    }
    match ticket.data.iter().find(|a| a.port() == 0 || !may_dial(a.ip(), client)) {
        Some(address) => Err(format!("this agent does not dial {address} for a client at {client}")),
        None => Ok(()),
    }
}

/// Tickets of one source, handed over by the client.
#[derive(Debug)]
struct HandedTickets {
    name: String,
    queue: Mutex<VecDeque<Ticket>>,
    wants: watch::Sender<bool>,
    came: Notify,
    patience: Duration,
}

impl TicketSource for HandedTickets {
    fn ticket(&self) -> Boxed<'_, Result<Ticket, TransferError>> {
        Box::pin(async move {
            let next = async {
                loop {
                    let came = self.came.notified();
                    if let Some(ticket) = locked(&self.queue).pop_front() {
                        return ticket;
                    }
                    self.wants.send_replace(true);
                    came.await;
                }
            };
            let taken = tokio::time::timeout(self.patience, next).await;
            self.wants.send_replace(false);
            taken.map_err(|_| {
                let what = "the client has handed over no fresh ticket for a minute: repeat the command to resume";
                TransferError::new(Class::Reconnect, what).at(&self.name)
            })
        })
    }

    fn peer(&self) -> String {
        self.name.clone()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Progress {
    snapshot: Option<watch::Receiver<Snapshot>>,
    cancel: Option<Arc<watch::Sender<bool>>>,
    cancelled: bool,
    steer: Option<Arc<watch::Sender<Steer>>>,
    /// What was asked for so far.
    asked: Steer,
    report: Option<Report>,
}

/// One third-party transfer.
#[derive(Debug)]
pub struct Job {
    id: String,
    /// Whose token asked for it.
    pub principal: String,
    path: String,
    /// Tells a request that came twice: nobody else has this ticket.
    ticket: Option<TicketId>,
    peer: Option<SocketAddr>,
    sources: Vec<Arc<HandedTickets>>,
    progress: Mutex<Progress>,
}

impl Job {
    /// As the HTTP port shows it.
    pub fn view(&self) -> TransferView {
        let progress = locked(&self.progress);
        let waiting = || Snapshot { phase: "connecting".to_owned(), ..Snapshot::default() };
        let wants = self.sources.iter().enumerate().filter(|(_, s)| *s.wants.borrow()).map(|(index, _)| index);
        TransferView {
            id: Some(self.id.clone()),
            transfer: progress.report.as_ref().and_then(|r| r.transfer),
            principal: self.principal.clone(),
            role: "destination".to_owned(),
            peer: self.peer,
            local: None,
            path: self.path.clone(),
            wants_tickets: if progress.report.is_none() { wants.collect() } else { Vec::new() },
            snapshot: progress.snapshot.as_ref().map_or_else(waiting, |s| s.borrow().clone()),
            report: progress.report.clone(),
        }
    }

    /// Gives source number `source` a fresh ticket; `false` when there is no such source or it has enough.
    pub fn hand(&self, source: usize, ticket: Ticket) -> bool {
        let Some(source) = self.sources.get(source) else { return false };
        let mut queue = locked(&source.queue);
        if queue.len() >= MAX_HANDED {
            return false;
        }
        queue.push_back(ticket);
        source.came.notify_waiters();
        true
    }

    /// Checkpoints and stops it.
    pub fn cancel(&self) {
        let mut progress = locked(&self.progress);
        progress.cancelled = true;
        if let Some(cancel) = &progress.cancel {
            cancel.send_replace(true);
        }
    }

    /// Changes it while it runs; `false`: it has ended.
    pub fn steer(&self, change: &Steer) -> bool {
        let mut progress = locked(&self.progress);
        progress.asked.merge(change);
        if let Some(steer) = &progress.steer {
            steer.send_modify(|all| all.merge(change));
        }
        progress.report.is_none()
    }

    fn has_ended(&self) -> bool {
        locked(&self.progress).report.is_some()
    }

    fn failed(error: &TransferError) -> Report {
        Report {
            verdict: Verdict::Failed,
            error_class: Some(error.class.word().to_owned()),
            error: Some(error.to_string()),
            ..Report::default()
        }
    }

    async fn run(&self, engine: &dyn TransferEngine, to: DestinationSpec) {
        let sources = self.sources.iter().map(|s| s.clone() as Arc<dyn TicketSource>).collect();
        let report = match engine.pull(self.principal.clone(), to, sources).await {
            Ok(TransferWatch { snapshot, done, cancel, steer }) => {
                {
                    let mut progress = locked(&self.progress);
                    if progress.cancelled {
                        cancel.send_replace(true);
                    }
                    progress.snapshot = Some(snapshot);
                    progress.cancel = Some(cancel);
                    steer.send_replace(progress.asked);
                    progress.steer = Some(steer);
                }
                done.await.unwrap_or_else(|_| {
                    Self::failed(&TransferError::new(
                        Class::Interrupted,
                        "the agent stopped: repeat the command to resume",
                    ))
                })
            }
            Err(error) => Self::failed(&error),
        };
        locked(&self.progress).report = Some(report);
    }
}

/// All third-party transfers of this agent, the ended ones for a while.
#[derive(Debug, Default)]
pub struct Jobs(Mutex<VecDeque<Arc<Job>>>);

impl Jobs {
    /// Starts one; `None` when too many run. The sources' tickets have been checked. A request that came before, to the same
    /// place with the same first ticket, is the same transfer: a client that was cut off asks again.
    pub fn start(
        &self,
        engine: Arc<dyn TransferEngine>,
        principal: &str,
        sources: Vec<HandedSource>,
        to: DestinationSpec,
    ) -> Result<Option<Arc<Job>>, state::StateError> {
        let job = Arc::new(Job {
            id: hex::encode(state::random::<16>()?),
            principal: principal.to_owned(),
            path: to.path.to_string(),
            ticket: sources.first().map(|source| source.ticket.id),
            peer: sources.first().and_then(|s| s.ticket.data.first().copied()),
            sources: sources.into_iter().map(|s| Arc::new(HandedTickets::new(s))).collect(),
            progress: Mutex::default(),
        });
        let mut jobs = locked(&self.0);
        let same = |other: &&Arc<Job>| {
            (&other.principal, &other.path, other.ticket) == (&job.principal, &job.path, job.ticket)
        };
        if let Some(known) = jobs.iter().filter(|_| job.ticket.is_some()).find(same) {
            return Ok(Some(known.clone()));
        }
        if jobs.iter().filter(|job| !job.has_ended()).count() >= MAX_RUNNING {
            return Ok(None);
        }
        while jobs.len() >= MAX_RUNNING + MAX_ENDED {
            // Enough have ended, as fewer than MAX_RUNNING run.
            let oldest = jobs.iter().position(|job| job.has_ended()).unwrap_or(0);
            jobs.remove(oldest);
        }
        jobs.push_back(job.clone());
        drop(jobs);
        let running = job.clone();
        tokio::spawn(async move { running.run(engine.as_ref(), to).await });
        Ok(Some(job))
    }

    /// By the id that [`Job::view`] shows.
    pub fn get(&self, id: &str) -> Option<Arc<Job>> {
        locked(&self.0).iter().find(|job| job.id == id).cloned()
    }

    /// All of them, the oldest first.
    pub fn list(&self) -> Vec<Arc<Job>> {
        locked(&self.0).iter().cloned().collect()
    }
}

impl HandedTickets {
    fn new(source: HandedSource) -> Self {
        Self {
            // It stands in logs and messages.
            name: crate::relpath::escape(source.name.as_bytes()).chars().take(255).collect(),
            queue: Mutex::new(VecDeque::from([source.ticket])),
            wants: watch::Sender::new(false),
            came: Notify::new(),
            patience: TICKET_PATIENCE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::ticket;

    #[test]
    fn nothing_closer_than_the_client_is_dialled() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let check = |target: &str, client: &str| may_dial(ip(target), ip(client));
        let never = [
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "169.254.169.254",
            "fe80::1",
            "::ffff:169.254.169.254",
        ];
        for target in never {
            for client in ["127.0.0.1", "10.0.0.1", "192.0.2.1", "fd00::1"] {
                assert!(!check(target, client), "{target} for {client}");
            }
        }
        for target in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "127.8.8.8"] {
            assert!(check(target, "127.0.0.1") && check(target, "::1"));
            assert!(!check(target, "10.0.0.1") && !check(target, "192.0.2.1"), "{target}");
        }
        for target in ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::2", "::ffff:10.0.0.1"] {
            assert!(check(target, "127.0.0.1") && check(target, "10.0.0.9") && check(target, "fd00::9"));
            assert!(!check(target, "192.0.2.1") && !check(target, "2001:db8::1"), "{target}");
        }
        for target in ["192.0.2.1", "2001:db8::1"] {
            assert!(check(target, "203.0.113.9"));
        }
    }

    #[test]
    fn tickets_name_few_and_dialable_addresses() {
        let client = "192.0.2.9".parse().unwrap();
        let with = |data: Vec<SocketAddr>| check_ticket(&Ticket { data, ..ticket() }, client);
        let good: SocketAddr = "198.51.100.1:8471".parse().unwrap();
        assert!(with(vec![good]).is_ok());
        assert!(with(vec![]).is_err() && with(vec![good; MAX_ADDRESSES + 1]).is_err());
        assert!(with(vec![good, "127.0.0.1:22".parse().unwrap()]).unwrap_err().contains("127.0.0.1:22"));
        assert!(with(vec!["198.51.100.1:0".parse().unwrap()]).is_err());
    }

    #[tokio::test]
    async fn a_source_asks_for_a_fresh_ticket_and_gets_it_or_gives_up() {
        let made = HandedTickets::new(HandedSource { name: "a\nb".into(), ticket: ticket() });
        let source = Arc::new(HandedTickets { patience: Duration::from_millis(800), ..made });
        assert_eq!(source.peer(), "a\\x0ab");
        assert!(source.ticket().await.is_ok());
        assert!(!*source.wants.borrow());
        let job = Job {
            id: String::new(),
            principal: String::new(),
            ticket: None,
            path: String::new(),
            peer: None,
            sources: vec![source.clone()],
            progress: Mutex::default(),
        };
        let asking = tokio::spawn({
            let source = source.clone();
            async move { source.ticket().await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(job.view().wants_tickets, [0]);
        assert!(!job.hand(1, ticket()));
        assert!(job.hand(0, ticket()));
        assert!(asking.await.unwrap().is_ok());
        assert!(job.view().wants_tickets.is_empty());
        let error = source.ticket().await.unwrap_err();
        assert_eq!(error.class, Class::Reconnect);
        assert!(job.hand(0, ticket()) && job.hand(0, ticket()) && !job.hand(0, ticket()));
    }
}
