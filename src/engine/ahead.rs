//! Connections to a peer's data port that are dialled while the ticket is still on its way. Where the data port is only the
//! ticket tells, but agents have it at 8471 unless somebody chose another one: on a long path a guess that is right saves two
//! round trips, and one that is wrong costs a few segments.

use super::coordinator::Ctx;
use super::error::TransferError;
use super::handle::{DataPort, TicketSource};
use super::session::{connect, default_streams};
use super::spec::Ticket;
use crate::engine::conn::Parked;
use crate::limits::MAX_STREAMS;
use crate::net::SocketOptions;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::task::JoinSet;

/// A round trip from which on it is done, µs: below it two of them are less than what it costs.
const WORTH_IT_US: u32 = 5_000;

/// A connection, and what of its options is not as asked.
pub(super) type Connected = (Parked, Vec<String>);

/// Connections that nobody has said anything on. Dropping it gives up those that are not there yet.
#[derive(Debug, Default)]
pub struct Ahead {
    to: Option<Box<(SocketAddr, SocketOptions)>>,
    there: Rc<RefCell<Vec<Connected>>>,
    dials: JoinSet<()>,
}

impl Ahead {
    /// Waits for a ticket; meanwhile dials where `from` thinks the data port is, with the options that are for it, as often as a
    /// session of `streams` will need.
    pub(super) async fn with_ticket(
        ctx: &Rc<Ctx>,
        from: &dyn TicketSource,
        streams: Option<u16>,
        options: impl Fn(SocketAddr) -> SocketOptions,
    ) -> Result<(Ticket, Self), TransferError> {
        let mut ahead = Self::default();
        let dial = async {
            if let Some(DataPort { addr, rtt_us }) = from.data_port().await
                && rtt_us >= WORTH_IT_US
                && !addr.ip().is_loopback()
            {
                let count = streams.unwrap_or(default_streams(rtt_us)).min(ctx.streams_max()).min(MAX_STREAMS);
                ahead.dial(ctx, addr, &options(addr), count + 1);
            }
            std::future::pending().await
        };
        // In order, so that a simulated run repeats itself.
        let ticket = tokio::select! {
            biased;
            () = dial => unreachable!("it never ends"),
            ticket = from.ticket() => ticket?,
        };
        Ok((ticket, ahead))
    }

    fn dial(&mut self, ctx: &Rc<Ctx>, addr: SocketAddr, options: &SocketOptions, count: u16) {
        self.to = Some(Box::new((addr, options.clone())));
        for _ in 0..count {
            let (ctx, options, there) = (ctx.clone(), options.clone(), self.there.clone());
            self.dials.spawn_local(async move {
                match connect(&ctx, addr, &options).await {
                    Ok(connected) => there.borrow_mut().push(connected),
                    Err(error) => tracing::debug!(%error, "no connection ahead of the ticket"),
                }
            });
        }
    }

    /// One of them, if they go there and have these options.
    pub(super) fn take(&mut self, addr: SocketAddr, options: &SocketOptions) -> Option<Connected> {
        let same = self.to.as_ref().is_some_and(|to| to.0 == addr && to.1 == *options);
        if same { self.there.borrow_mut().pop() } else { None }
    }
}
