//! Tickets that this agent has given out.

use crate::clock;
use crate::engine::error::{Class, TransferError};
use crate::engine::spec::{Access, Grant, Secret, Ticket};
use crate::ids::{AgentId, TicketId};
use crate::limits::MAX_TICKETS;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Tickets issued and not yet used.
#[derive(Debug, Default)]
pub struct Tickets(HashMap<TicketId, Issued>);

#[derive(Debug)]
struct Issued {
    key: Secret,
    grant: Grant,
    /// By the monotonic clock: the wall clock may jump between a ticket's making and its use.
    expires: Instant,
}

impl Tickets {
    fn purge(&mut self) {
        let now = clock::now();
        self.0.retain(|_, issued| issued.expires > now);
    }

    /// Makes a ticket.
    pub fn issue(&mut self, grant: Grant, agent: AgentId, data: Vec<SocketAddr>) -> Result<Ticket, TransferError> {
        self.purge();
        if self.0.len() >= MAX_TICKETS {
            return Err(TransferError::new(
                Class::Retry,
                "too many tickets are waiting to be used: try again in a minute",
            ));
        }
        let (mut id, mut key) = ([0; 16], [0; 32]);
        let random = aws_lc_rs::rand::fill(&mut id).and_then(|()| aws_lc_rs::rand::fill(&mut key));
        random.map_err(|_| TransferError::new(Class::Retry, "the system gives no random numbers"))?;
        let (id, key) = (TicketId(id), Secret(key));
        let (ttl, expires) = (Duration::from_secs(grant.ttl_secs), clock::unix_now().saturating_add(grant.ttl_secs));
        self.0.insert(id, Issued { key: key.clone(), grant, expires: clock::now() + ttl });
        crate::sys::points::at("ticket.issued");
        Ok(Ticket { id, key, data, agent, expires })
    }

    /// The key of a ticket that is still good.
    pub fn key_of(&mut self, id: TicketId) -> Option<[u8; 32]> {
        self.purge();
        self.0.get(&id).map(|issued| issued.key.0)
    }

    /// Whether our end lets the session go without encryption.
    pub fn allows_plain(&self, id: TicketId) -> bool {
        let wish = self.0.get(&id).map(|issued| match &issued.grant.access {
            Access::Read(spec) => spec.encrypt,
            Access::Write(spec) => spec.options.encrypt,
            Access::Probe(_) => None,
        });
        wish == Some(Some(false))
    }

    /// Uses a ticket up.
    pub fn spend(&mut self, id: TicketId) -> Option<Grant> {
        self.0.remove(&id).map(|issued| issued.grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::spec::SourceSpec;
    #[cfg(feature = "testing")]
    use std::{cell::Cell, rc::Rc};

    #[test]
    fn tickets_open_once_and_expire() {
        let mut tickets = Tickets::default();
        let spec = SourceSpec { base: "/".into(), roots: vec![], recursive: true, encrypt: None, rows: None };
        let grant = |ttl_secs| Grant { principal: "p".into(), access: Access::Read(spec.clone()), ttl_secs };
        let ticket = tickets.issue(grant(60), AgentId([1; 16]), vec![]).unwrap();
        assert!(tickets.key_of(ticket.id).is_some() && !tickets.allows_plain(ticket.id));
        assert!(tickets.spend(ticket.id).is_some());
        assert!(tickets.spend(ticket.id).is_none() && tickets.key_of(ticket.id).is_none());
        let stale = tickets.issue(grant(0), AgentId([1; 16]), vec![]).unwrap();
        assert!(tickets.key_of(stale.id).is_none());
    }

    #[cfg(feature = "testing")]
    #[test]
    fn a_clock_that_jumps_ends_no_ticket() {
        struct Hand(Cell<Instant>, Cell<u64>);
        impl clock::VirtualClock for Hand {
            fn now(&self) -> Instant {
                self.0.get()
            }
            fn unix(&self) -> u64 {
                self.1.get()
            }
            fn pause(&self, _: Duration) {}
        }
        let hand = Rc::new(Hand(Cell::new(Instant::now()), Cell::new(1_700_000_000)));
        clock::install(Some(hand.clone()));
        let spec = SourceSpec { base: "/".into(), roots: vec![], recursive: true, encrypt: None, rows: None };
        let mut tickets = Tickets::default();
        let grant = Grant { principal: "p".into(), access: Access::Read(spec), ttl_secs: 60 };
        let ticket = tickets.issue(grant, AgentId([1; 16]), vec![]).unwrap();
        for wall in [1_800_000_000, 1_600_000_000, 1_700_000_000] {
            hand.1.set(wall);
            assert!(tickets.key_of(ticket.id).is_some(), "at {wall}");
        }
        hand.0.set(hand.0.get() + Duration::from_secs(59));
        assert!(tickets.key_of(ticket.id).is_some());
        hand.0.set(hand.0.get() + Duration::from_secs(1));
        assert!(tickets.key_of(ticket.id).is_none(), "sixty seconds are sixty seconds");
        clock::install(None);
    }
}
