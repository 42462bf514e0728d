//! Tasks beside a session's loop that bring it what happens elsewhere: messages, data streams, further sources.

use super::run::{News, Peer, Run};
use super::tune::Tune;
use crate::engine::channel::Channel;
#[cfg(feature = "testing")]
use crate::engine::commit::Durable;
use crate::engine::coordinator::Ctx;
use crate::engine::error::{Class, TransferError};
use crate::engine::handle::TicketSource;
use crate::engine::links::{Links, LinksConfig};
use crate::engine::session::{self, Joined, NEAR_RTT_US, StreamSource};
use crate::engine::spec::{ChecksumKind, DestinationSpec};
use crate::engine::worker::{Event, StreamKey};
use crate::ids::SessionId;
#[cfg(feature = "testing")]
use crate::sys::observe::{Told, told};
use crate::wire::control::{Message, Offer, Retune};
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

impl Run<'_> {
    pub(super) fn joined(&mut self, peer: usize, joined: Joined) {
        if self.peers[peer].gone {
            return;
        }
        match self.peers[peer].links.attach(joined) {
            Ok(stream) => {
                self.table.add_stream(stream, self.peers[peer].links.session);
                self.stream_peer.insert(stream, peer);
            }
            Err(error) => tracing::warn!(%error, "a stream could not be attached"),
        }
    }

    pub(super) fn add_source(
        &mut self,
        opened: session::Opened,
        channel: Channel,
        offer: Offer,
        events: &mpsc::UnboundedSender<Event>,
        config: &impl Fn(StreamSource, SessionId, bool) -> LinksConfig,
    ) {
        // Without a known digest nobody could tell whose bytes are right.
        let known = self.spec.options.expect.as_ref().is_some_and(|e| e.kind == ChecksumKind::Xxh3);
        if !known || offer.roots.len() != self.offer.roots.len() {
            let note = "a further source was not used: the file's digest is not known beforehand (--expect xxh3:HEX)";
            self.carry.notes.insert(note.to_owned());
            return;
        }
        channel.send(super::accept_message(self.ctx, self.spec, self.id, self.epoch, opened.streams, 0));
        let index = self.peers.len();
        let near = opened.rtt_us < NEAR_RTT_US;
        let session::Opened { id, streams, source, joining, .. } = opened;
        let mut links = Links::new(self.ctx.clone(), config(source, id, near), None, events.clone());
        links.want(streams);
        let out = forward(index, channel, self.relay.clone());
        forward_joins(index, joining, self.relay.clone());
        let told = Retune { rate: self.spec.options.rate, streams, ..Retune::default() };
        let tune = Tune::for_session(self.ctx, self.spec, streams, near);
        let (engine, cpus, process) = (offer.engine, offer.cpus, offer.process);
        self.peers.push(Peer { links, out, engine, cpus, stats: None, gone: false, told, tune, yields: 0, process });
        self.steer();
        self.bind_at(index);
    }

    /// A further source is asked for nothing any more; what its streams held goes back to the table.
    pub(super) fn drop_peer(&mut self, peer: usize, why: &str) {
        let lost = &mut self.peers[peer];
        lost.links.close();
        lost.stats.get_or_insert_default();
        if std::mem::replace(&mut lost.gone, true) {
            return;
        }
        self.carry.notes.insert(format!("a further source was lost: {why}"));
        let streams: Vec<StreamKey> =
            self.stream_peer.iter().filter(|(_, p)| **p == peer).map(|(stream, _)| *stream).collect();
        for stream in streams {
            // Before the next claim is given out, not only once its worker has let go of it: it is not asked again.
            self.stream_peer.remove(&stream);
            self.retired.insert(stream, peer);
        }
    }
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
