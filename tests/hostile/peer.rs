//! The test's own peer: it dials an agent, or listens for a command, with the library's handshake and frames, and says
//! what it likes.

use crate::support::Agent;
use longhaul::engine::spec::Ticket;
use longhaul::ids::{AgentId, SessionId, StreamIndex};
use longhaul::wire::control::{Accept, Message, Offer, OfferedRoot};
use longhaul::wire::crypt::{FrameKey, Opener, Sealer};
use longhaul::wire::handshake::{Agreed, Dialer, HandshakeError, Purpose, SERVER_HELLO_LEN};
use longhaul::wire::header::{FrameType, HEADER_LEN, Header, TRAILER_LEN};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A connection past its handshake.
pub struct Spoken {
    pub socket: TcpStream,
    pub opener: Opener,
    pub sealer: Sealer,
}

impl Spoken {
    pub fn dialled(socket: TcpStream, agreed: &Agreed) -> Self {
        let key = |bytes| if agreed.hello.encrypted { FrameKey::new(bytes) } else { FrameKey::plain() };
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { opener: Opener::new(key(&agreed.to_dialer)), sealer: Sealer::new(key(&agreed.to_listener)), socket }
    }

    pub fn accepted(socket: TcpStream, agreed: &Agreed) -> Self {
        let mut spoken = Self::dialled(socket, agreed);
        let key = |bytes| if agreed.hello.encrypted { FrameKey::new(bytes) } else { FrameKey::plain() };
        spoken.opener = Opener::new(key(&agreed.to_listener));
        spoken.sealer = Sealer::new(key(&agreed.to_dialer));
        spoken
    }

    /// Sends bytes; `false` once the other end has had enough.
    pub fn raw(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).is_ok()
    }

    pub fn frame(&mut self, kind: FrameType, flags: u8, handle: u32, offset: u64, body: &[u8]) -> bool {
        let frame = self.sealer.frame(kind, flags, handle, offset, body);
        self.raw(&frame)
    }

    pub fn say(&mut self, message: &Message) -> bool {
        self.body(&message.encode())
    }

    /// A control frame with any body.
    pub fn body(&mut self, body: &[u8]) -> bool {
        self.frame(FrameType::Control, 0, 0, 0, body)
    }

    /// The next frame; `None` when the connection has ended.
    pub fn hear_frame(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut head = [0; HEADER_LEN];
        self.socket.read_exact(&mut head).ok()?;
        let header = Header::decode(&head, 2 << 20).unwrap();
        let mut body = vec![0; header.body_len as usize + TRAILER_LEN];
        self.socket.read_exact(&mut body).ok()?;
        let trailer = body.split_off(header.body_len as usize);
        self.opener.open(&header, &mut body, &trailer).unwrap();
        Some((header, body))
    }

    /// The next message that is no ping and no progress.
    pub fn hear(&mut self) -> Option<Message> {
        loop {
            let (_, body) = self.hear_frame()?;
            match Message::decode(&body).unwrap() {
                Message::Ping | Message::Progress(_) => {}
                message => return Some(message),
            }
        }
    }

    /// What the other end says in its last message, once it has ended the session.
    pub fn last_words(&mut self) -> String {
        while let Some(message) = self.hear() {
            if let Message::Error(error) = message {
                return error.what;
            }
        }
        String::new()
    }

    /// Waits for the end of the connection.
    pub fn is_closed(&mut self) -> bool {
        while self.hear_frame().is_some() {}
        true
    }
}

/// A session that this test opened at an agent.
pub struct Session {
    pub control: Spoken,
    pub id: SessionId,
    pub join: [u8; 32],
    pub address: SocketAddr,
    pub streams: u16,
    attempt: u32,
}

pub fn read_ticket(agent: &Agent, path: &str) -> Ticket {
    ticket(agent, &format!("{{\"direction\":\"read\",\"paths\":[\"{path}\"],\"recursive\":true}}"))
}

/// `becomes` is what `cp` asks for when DST does not end with a slash.
pub fn write_ticket(agent: &Agent, path: &str) -> Ticket {
    let options = "{\"recursive\":true,\"verify\":\"wire\",\"if_exists\":\"replace\"}";
    ticket(agent, &format!("{{\"direction\":\"write\",\"path\":\"{path}\",\"becomes\":true,\"options\":{options}}}"))
}

pub fn ticket(agent: &Agent, body: &str) -> Ticket {
    let (code, text) = agent.request("POST", "/v1/tickets", &agent.token(), body);
    assert_eq!(code, 201, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Sends a hello and reads the answer.
pub fn knock(address: SocketAddr, dialer: &Dialer) -> Result<(TcpStream, Agreed), HandshakeError> {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = [0; SERVER_HELLO_LEN];
    let talk = socket.write_all(dialer.hello()).and_then(|()| socket.read_exact(&mut answer));
    talk.map_err(|_| HandshakeError::Foreign("nothing"))?;
    let (finish, agreed) = dialer.finish(&answer)?;
    let _ = socket.write_all(&finish);
    Ok((socket, agreed))
}

impl Session {
    pub fn open(ticket: &Ticket, streams: u16) -> Self {
        let purpose = Purpose::Open(ticket.id);
        let dialer = Dialer::new(purpose, StreamIndex(0), 1, streams, false, &ticket.key.0).unwrap();
        let address = ticket.data[0];
        let (socket, agreed) = knock(address, &dialer).unwrap();
        Self::of(Spoken::dialled(socket, &agreed), &agreed, address)
    }

    /// The session behind a handshake that was done by hand.
    pub fn of(control: Spoken, agreed: &Agreed, address: SocketAddr) -> Self {
        let (id, join, streams) = (agreed.hello.session, agreed.join, agreed.hello.streams);
        Self { control, id, join, address, streams, attempt: 0 }
    }

    /// What another thread needs to open streams of this session; its stream 0 says nothing that is understood.
    pub fn again(&self) -> Self {
        let socket = self.control.socket.try_clone().unwrap();
        let control = Spoken { socket, opener: Opener::new(FrameKey::plain()), sealer: Sealer::new(FrameKey::plain()) };
        let Self { id, join, address, streams, attempt, .. } = *self;
        Self { control, id, join, address, streams, attempt }
    }

    /// A data stream; each is a further attempt.
    pub fn stream(&mut self, index: u16) -> Result<Spoken, HandshakeError> {
        self.attempt += 1;
        let purpose = Purpose::Join(self.id);
        let dialer = Dialer::new(purpose, StreamIndex(index), self.attempt, 0, false, &self.join).unwrap();
        knock(self.address, &dialer).map(|(socket, agreed)| Spoken::dialled(socket, &agreed))
    }
}

pub fn accept(streams: u16) -> Accept {
    Accept {
        transfer: longhaul::ids::TransferId([6; 16]),
        epoch: longhaul::ids::Epoch(1),
        block: 256 << 10,
        rate: None,
        congestion: None,
        window: None,
        io: "auto".to_owned(),
        credit: 8,
        streams,
        tuning: Default::default(),
    }
}

/// As an honest destination begins: takes the offer, accepts. `change` may spoil the answer.
pub fn destination(ticket: &Ticket, streams: u16, change: impl FnOnce(&mut Accept)) -> Session {
    let mut session = Session::open(ticket, streams);
    let offer = session.control.hear();
    assert!(matches!(offer, Some(Message::Offer(_))), "{offer:?}");
    let mut accept = accept(streams);
    change(&mut accept);
    session.control.say(&Message::Accept(accept));
    session
}

pub fn offer(roots: Vec<OfferedRoot>) -> Offer {
    Offer {
        agent: AgentId([2; 16]),
        roots,
        engine: "epoll".to_owned(),
        cpus: String::new(),
        notes: vec![],
        process: 1,
        digests: false,
    }
}

pub fn offered(name: &[u8], directory: bool) -> OfferedRoot {
    let (name, path) = (hex::encode(name), hex::encode("/srv/src"));
    OfferedRoot { name, path, directory, object: (1, 1), host: "elsewhere".to_owned() }
}

/// As an honest source begins: offers one directory and waits for the answer.
pub fn source(ticket: &Ticket, streams: u16) -> Session {
    let mut session = Session::open(ticket, streams);
    session.control.say(&Message::Offer(offer(vec![offered(b"src", true)])));
    match session.control.hear() {
        Some(Message::Accept(_)) => {}
        other => panic!("not accepted: {other:?}"),
    }
    session
}
