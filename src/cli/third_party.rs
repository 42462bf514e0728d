//! A copy between two agents: the client gets tickets from the source for the destination, and watches. The bytes go
//! straight from agent to agent.

use crate::control::client::PeerClient;
use crate::control::messages::{
    HandedSource, PartialOptions, ThirdPartyRequest, TicketRequest, TransferView, WirePath,
};
use crate::engine::error::{Class, TransferError};

/// A running third-party copy.
#[derive(Debug)]
pub struct ThirdParty {
    sources: Vec<(PeerClient, TicketRequest)>,
    destination: PeerClient,
    id: String,
}

impl ThirdParty {
    /// Gets a ticket from each of the equal `sources` and hands them to the destination, which begins.
    pub async fn start(
        sources: Vec<(PeerClient, TicketRequest)>,
        destination: PeerClient,
        path: WirePath,
        becomes: bool,
        options: PartialOptions,
    ) -> Result<Self, TransferError> {
        let mut handed = Vec::with_capacity(sources.len());
        for (client, request) in &sources {
            handed.push(HandedSource { name: client.url().authority(), ticket: client.ticket(request).await? });
        }
        let request = ThirdPartyRequest { sources: handed, path, becomes, options };
        let id = destination.start_third_party(&request).await?.id;
        Ok(Self { sources, destination, id })
    }

    /// How it stands; `None` if the destination agent knows no such transfer any more, because it was restarted.
    /// Fetches fresh tickets for sources that the destination has to dial again.
    pub async fn poll(&self) -> Result<Option<TransferView>, TransferError> {
        let view = match self.destination.transfer(&self.id).await {
            Err(error) if error.class == Class::NotFound => return Ok(None),
            other => other?,
        };
        for &number in &view.wants_tickets {
            let Some((client, request)) = self.sources.get(number) else { continue };
            // A source that is down now may be up at the next look; the destination gives up in its own time.
            let Ok(ticket) = client.ticket_now(request).await else { continue };
            match self.destination.hand_ticket(&self.id, number, ticket).await {
                // It has enough of them.
                Err(error) if error.class == Class::Permanent => {}
                other => other?,
            }
        }
        Ok(Some(view))
    }

    /// Asks the destination to checkpoint and stop.
    pub async fn cancel(&self) -> Result<(), TransferError> {
        self.destination.cancel(&self.id).await
    }

    /// What the report has to say about the HTTP connections.
    pub fn notes(&self) -> Vec<String> {
        let all = self.sources.iter().map(|(client, _)| client).chain([&self.destination]);
        all.flat_map(PeerClient::notes).collect()
    }
}
