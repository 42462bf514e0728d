//! Stream 0: control messages over a socket, sealed like every other frame. Reader and writer are tasks of the
//! coordinator's thread; a silent peer is noticed by the reader, silence of ours is filled by the writer.

use super::conn::Conn;
use super::worker::Fault;
use crate::limits::CONTROL_BODY_MAX;
use crate::wire::WireError;
use crate::wire::control::Message;
use crate::wire::crypt::{Opener, Sealer};
use crate::wire::header::{FrameType, HEADER_LEN, Header, TRAILER_LEN};
use bytes::BytesMut;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// A ping goes out after so long without a message of ours.
pub const PING_EVERY: Duration = Duration::from_secs(5);
/// A peer that says nothing for so long is gone. Above the longest pause of a peer that only waits for its disk.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);
/// A peer that takes nothing for so long, though there is something for it, is gone: above the longest stall of a disk
/// that is tolerated (60 s).
const STALL_MAX: Duration = Duration::from_secs(120);
/// Messages that wait to be sent above which a session takes no more questions: a peer may ask faster than it listens.
const BEHIND: usize = 64;
/// Messages read ahead of the session: bounds memory, and stops reading (and so the peer) when the session is behind.
const READ_AHEAD: usize = 32;

/// A control stream.
#[derive(Debug)]
pub struct Channel {
    out: Option<mpsc::UnboundedSender<Message>>,
    incoming: mpsc::Receiver<Result<Message, Fault>>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
    backlog: Rc<Backlog>,
}

/// How many messages wait for the writer.
#[derive(Debug, Default)]
struct Backlog {
    waiting: Cell<usize>,
    /// Nothing is sent any more, so nothing is waited for.
    over: Cell<bool>,
    less: Notify,
}

impl Channel {
    /// Starts the two tasks on the current thread.
    pub fn open(socket: Conn, sealer: Sealer, opener: Opener) -> Self {
        // Messages are small and answer each other: without this each may wait 40 ms for a delayed ACK. An accepted socket
        // does not have it yet.
        if let Err(error) = socket.set_nodelay() {
            tracing::debug!(%error, "TCP_NODELAY is refused: small transfers are slow");
        }
        let (read, write) = tokio::io::split(socket);
        let (tell, incoming) = mpsc::channel(READ_AHEAD);
        let (out, queued) = mpsc::unbounded_channel();
        let backlog = Rc::new(Backlog::default());
        let reader = tokio::task::spawn_local(read_all(read, opener, tell.clone()));
        let writer = tokio::task::spawn_local(write_all(write, sealer, queued, backlog.clone(), tell));
        Self { out: Some(out), incoming, reader, writer, backlog }
    }

    /// Queues a message. What is queued is bounded by the protocol (credits, batches, one report) as long as a session
    /// that answers questions takes them by [`Channel::recv_in_step`].
    pub fn send(&self, message: Message) {
        if let Some(out) = &self.out {
            self.backlog.waiting.set(self.backlog.waiting.get() + 1);
            let _ = out.send(message); // a closed writer shows at the reader
        }
    }

    /// [`Channel::recv`], once the peer has taken what it has given cause for.
    pub async fn recv_in_step(&mut self) -> Result<Message, Fault> {
        while !self.backlog.over.get() && self.backlog.waiting.get() > BEHIND {
            self.backlog.less.notified().await;
        }
        self.recv().await
    }

    /// A sender of its own, for tasks beside the session.
    pub fn sender(&self) -> mpsc::UnboundedSender<Message> {
        self.out.clone().expect("open until `finish`")
    }

    /// The next message; pings are kept back. After an error there is nothing more.
    pub async fn recv(&mut self) -> Result<Message, Fault> {
        loop {
            match self.incoming.recv().await {
                Some(Ok(Message::Ping)) => {}
                Some(other) => return other,
                None => return Err(Fault::Cut),
            }
        }
    }

    /// Sends what is queued and closes; at most `within`.
    pub async fn finish(mut self, within: Duration) {
        self.out = None;
        let _ = tokio::time::timeout(within, &mut self.writer).await;
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

async fn read_all(mut socket: ReadHalf<Conn>, mut opener: Opener, tell: mpsc::Sender<Result<Message, Fault>>) {
    let mut frame = BytesMut::new();
    loop {
        let message = match tokio::time::timeout(SILENCE_MAX, read_one(&mut socket, &mut opener, &mut frame)).await {
            Ok(message) => message,
            Err(_) => Err(Fault::Socket(format!("the peer has been silent for {} s", SILENCE_MAX.as_secs()))),
        };
        let last = message.is_err();
        if tell.send(message).await.is_err() || last {
            return;
        }
    }
}

/// One message. `frame` is the buffer of the one before, used again.
async fn read_one(socket: &mut ReadHalf<Conn>, opener: &mut Opener, frame: &mut BytesMut) -> Result<Message, Fault> {
    let broken = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Fault::Cut,
        _ => Fault::Socket(error.to_string()),
    };
    let mut head = [0; HEADER_LEN];
    socket.read_exact(&mut head).await.map_err(broken)?;
    let header = Header::decode(&head, CONTROL_BODY_MAX as u32)?;
    opener.expect(&header)?;
    frame.resize(header.body_len as usize + TRAILER_LEN, 0);
    socket.read_exact(frame).await.map_err(broken)?;
    let (body, trailer) = frame.split_at_mut(header.body_len as usize);
    opener.open(&header, body, trailer)?;
    match header.kind {
        FrameType::Control => Ok(Message::decode(body)?),
        other => Err(WireError::Type(other as u8).into()),
    }
}

async fn write_all(
    socket: WriteHalf<Conn>,
    sealer: Sealer,
    queued: mpsc::UnboundedReceiver<Message>,
    backlog: Rc<Backlog>,
    tell: mpsc::Sender<Result<Message, Fault>>,
) {
    let written = write_queued(socket, sealer, queued, &backlog).await;
    backlog.over.set(true);
    backlog.less.notify_waiters();
    if let Err(fault) = written {
        let _ = tell.send(Err(fault)).await;
    }
}

async fn write_queued(
    mut socket: WriteHalf<Conn>,
    mut sealer: Sealer,
    mut queued: mpsc::UnboundedReceiver<Message>,
    backlog: &Backlog,
) -> Result<(), Fault> {
    let mut frames = BytesMut::new();
    loop {
        let message = match tokio::time::timeout(PING_EVERY, queued.recv()).await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(_) => Message::Ping,
        };
        sealer.append(&mut frames, FrameType::Control, &message.encode());
        // What is queued already goes out with it: one system call for many small messages.
        while frames.len() < CONTROL_BODY_MAX
            && let Ok(next) = queued.try_recv()
        {
            sealer.append(&mut frames, FrameType::Control, &next.encode());
        }
        backlog.waiting.set(queued.len());
        backlog.less.notify_waiters();
        // Empties `frames` and keeps its memory.
        match tokio::time::timeout(STALL_MAX, socket.write_all_buf(&mut frames)).await {
            Ok(Ok(())) => {}
            // The reader sees that the connection is gone.
            Ok(Err(_)) => return Ok(()),
            Err(_) => {
                return Err(Fault::Socket(format!("the peer has taken nothing for {} s", STALL_MAX.as_secs())));
            }
        }
    }
    let _ = socket.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::crypt::FrameKey;

    /// Offer, accept, seal and verdict of a 1 KiB file are one small message each: Nagle and delayed ACKs would make
    /// 40 ms of every exchange.
    #[test]
    fn small_messages_do_not_wait_for_acknowledgements() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let near = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            for socket in [near, accepted] {
                let socket = socket.into_std().unwrap();
                let same = socket.try_clone().unwrap();
                assert!(!same.nodelay().unwrap(), "the test would show nothing");
                let plain = || (Sealer::new(FrameKey::plain()), Opener::new(FrameKey::plain()));
                let (sealer, opener) = plain();
                let _channel =
                    Channel::open(Conn::Tcp(tokio::net::TcpStream::from_std(socket).unwrap()), sealer, opener);
                assert!(same.nodelay().unwrap());
            }
        });
    }
}
