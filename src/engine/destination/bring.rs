//! Tasks beside a session's loop that bring it what happens elsewhere: messages, data streams, further sources.

use super::run::News;
use crate::engine::channel::Channel;
use crate::engine::coordinator::Ctx;
use crate::engine::error::{Class, TransferError};
use crate::engine::handle::TicketSource;
use crate::engine::session::Joined;
use crate::engine::spec::DestinationSpec;
use crate::wire::control::Message;
#[cfg(feature = "testing")]
use crate::{
    engine::{commit::Durable, destination::run::Run},
    sys::observe::{Told, told},
};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A task that hands a control stream's messages on; what is sent goes into the sender that it gives.
pub(super) fn forward(index: usize, mut channel: Channel, tell: mpsc::Sender<News>) -> mpsc::UnboundedSender<Message> {
    let out = channel.sender();
    tokio::task::spawn_local(async move {
        loop {
            // A session that has ended closes its connection, whether or not its peer does.
            let message = tokio::select! {
                biased;
                message = channel.recv() => message,
                () = tell.closed() => break,
            };
            let last = message.is_err();
            if tell.send(News::Message(index, message)).await.is_err() || last {
                break;
            }
        }
        // The sender that was handed out keeps the writer alive until the session lets go of it.
        channel.finish(Duration::from_secs(2)).await;
    });
    out
}

/// A task that hands new data streams on.
pub(super) fn forward_joins(index: usize, mut joining: mpsc::UnboundedReceiver<Joined>, tell: mpsc::Sender<News>) {
    tokio::task::spawn_local(async move {
        while let Some(joined) = joining.recv().await {
            if tell.send(News::Joined(index, joined)).await.is_err() {
                return;
            }
        }
    });
}

/// Opens a session with a further source of the same files, beside the transfer.
pub(super) fn dial_other(ctx: Rc<Ctx>, spec: DestinationSpec, source: Arc<dyn TicketSource>, tell: mpsc::Sender<News>) {
    tokio::task::spawn_local(async move {
        let open = async {
            let (_, mut opened) = super::dial_with(&ctx, &spec, &*source).await?;
            let control = opened.control.socket.try_clone().and_then(crate::engine::conn::Parked::wake);
            let control = control.map_err(|error| TransferError::new(Class::Reconnect, error.to_string()))?;
            let plain = || crate::wire::crypt::FrameKey::plain();
            let sealer = std::mem::replace(&mut opened.control.sealer, crate::wire::crypt::Sealer::new(plain()));
            let opener = std::mem::replace(&mut opened.control.opener, crate::wire::crypt::Opener::new(plain()));
            let mut channel = Channel::open(control, sealer, opener);
            let offer = super::offered(&mut channel).await?;
            Ok::<_, TransferError>((opened, channel, offer))
        };
        match open.await {
            Ok(parts) => drop(tell.send(News::Source(Box::new(parts))).await),
            Err(error) => tracing::warn!(source = source.peer(), %error, "a further source is not used"),
        }
    });
}

#[cfg(feature = "testing")]
impl Run<'_> {
    /// Shows whoever listens what counts as durable from here on.
    pub(super) fn show(&self, durable: &Durable) {
        for (handle, chunks) in &durable.chunks {
            if let Some(key) = self.key_of(*handle) {
                told(Told::Chunks(&key.0, chunks));
            }
        }
        for (handle, result) in durable.published.iter().chain(&durable.small) {
            if let (Ok(_), Some(key)) = (result, self.key_of(*handle)) {
                told(Told::File(&key.0));
            }
        }
    }
}
