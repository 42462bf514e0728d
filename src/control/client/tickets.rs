//! Tickets from a peer for the engine.

use super::PeerClient;
use crate::control::bridge::Boxed;
use crate::control::messages::TicketRequest;
use crate::engine::error::TransferError;
use crate::engine::handle::{DataPort, TicketSource};
use crate::engine::spec::Ticket;
use std::sync::Arc;

/// Tickets of one request, as often as the engine needs one. Needs a tokio reactor around it.
#[derive(Debug, Clone)]
pub struct PeerTickets {
    client: Arc<PeerClient>,
    request: TicketRequest,
}

impl PeerTickets {
    /// Asks `client` for `request`.
    pub fn new(client: Arc<PeerClient>, request: TicketRequest) -> Self {
        Self { client, request }
    }
}

impl TicketSource for PeerTickets {
    fn ticket(&self) -> Boxed<'_, Result<Ticket, TransferError>> {
        Box::pin(self.client.ticket(&self.request))
    }

    fn peer(&self) -> String {
        self.client.url.authority()
    }

    fn data_port(&self) -> Boxed<'_, Option<DataPort>> {
        Box::pin(self.client.data_port())
    }
}
