//! Socket options: each is set, then read back; what the kernel did otherwise becomes a note for the report.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, SockRef, TcpKeepalive};

use super::label::Unlabelled;
use crate::profile::{CONGESTION_NAME_MAX, SEGMENT_MAX, SEGMENT_MIN, SciTag, WINDOW_MAX};
use crate::sys::syscall::{force_buffer, max_pacing_rate, set_max_pacing_rate};

/// Below this round trip a fixed buffer beats the kernel's autotuning: what is in flight stays in the cache.
pub const NEAR_RTT: Duration = Duration::from_millis(1);
/// That fixed buffer, each way, in bytes (measured: 512 KiB to 1 MiB are fastest on loopback).
pub const NEAR_BUFFER: u64 = 1 << 20;
/// On loopback BBR halves the rate.
const LOOPBACK_CONGESTION: &str = "cubic";
/// The two lowest bits of the traffic class belong to congestion notification (RFC 3168).
const ECN_BITS: u32 = 2;

/// What a data socket is asked to be. Everything `None` leaves the kernel's choice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SocketOptions {
    /// Send and receive buffer in bytes. `None`: the kernel tunes them by itself, which is right far away.
    pub window: Option<u64>,
    /// Congestion controls in order of preference: `bbr`, `cubic`, … None: the system's, but cubic on loopback.
    pub congestion: Vec<String>,
    /// Upper bound of the rate, in bytes per second.
    pub pacing_bytes_per_sec: Option<u64>,
    /// Bytes that may wait unsent in the kernel (`TCP_NOTSENT_LOWAT`).
    pub notsent_lowat: Option<u32>,
    /// How long sent data may stay unacknowledged before the connection counts as dead. Above the longest stall of the
    /// peer's disk.
    pub user_timeout: Option<Duration>,
    /// Idle time before the first probe; three probes follow, a third of it apart.
    pub keepalive: Option<Duration>,
    /// Whether small segments go out at once.
    pub nodelay: bool,
    /// Largest segment in bytes, [`SEGMENT_MIN`] to [`SEGMENT_MAX`]. Settled by the end that dials, for both directions.
    pub mss: Option<u16>,
    /// Class of the packets (DSCP), 0 to 63.
    pub dscp: Option<u8>,
    /// What the flow labels of IPv6 are to say. Settled when the socket is connected.
    pub scitag: Option<SciTag>,
    /// Local address to dial from.
    pub bind: Option<IpAddr>,
}

/// One option that is not as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketNote {
    /// The kernel gave a smaller buffer.
    Clamped {
        /// `send` or `receive`.
        side: &'static str,
        /// Bytes asked for.
        asked: u64,
        /// Bytes in force.
        got: u64,
        /// The sysctl that clamps.
        sysctl: &'static str,
    },
    /// A congestion control is not to be had.
    Congestion {
        /// Asked for.
        asked: String,
        /// In force instead.
        got: String,
        /// Whether the kernel knows it: then this process may not use it.
        known: bool,
    },
    /// An option was refused.
    Refused {
        /// Its name as in `tcp(7)` or `socket(7)`.
        option: &'static str,
        /// The system's words.
        reason: String,
    },
    /// Its packets do not bear the tag that was asked for.
    Unlabelled {
        /// Asked for.
        tag: SciTag,
        /// Why not.
        why: Unlabelled,
    },
    /// An option was taken, and reads back as something else.
    Differs {
        /// Its name as in `tcp(7)` or `socket(7)`.
        option: &'static str,
        /// Asked for.
        asked: u64,
        /// In force.
        got: u64,
    },
}

impl fmt::Display for SocketNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clamped { side, asked, got, sysctl } => {
                write!(f, "the {side} buffer is {got} bytes instead of {asked}: raise {sysctl} to at least {asked}")
            }
            Self::Congestion { asked, got, known: false } => {
                write!(
                    f,
                    "congestion control is {got} instead of {asked}: the kernel has none of that name (modprobe tcp_{asked})"
                )
            }
            Self::Congestion { asked, got, known: true } => write!(
                f,
                "congestion control is {got} instead of {asked}: only root may use it until it stands in \
                 net.ipv4.tcp_allowed_congestion_control"
            ),
            Self::Refused { option, reason } => write!(f, "{option} is refused here: {reason}"),
            Self::Unlabelled { tag, why } => write!(f, "packets do not bear the SciTag {tag}: {why}"),
            Self::Differs { option, asked, got } => write!(f, "{option} is {got} instead of {asked}"),
        }
    }
}

/// Sets every option on a TCP socket and reads it back; the notes say what is not as asked. `peer` decides the default of
/// the congestion control. Call it before `connect` or `listen`: the window's scale is settled with the first segment.
pub fn apply(socket: &impl AsFd, options: &SocketOptions, peer: Option<SocketAddr>) -> Vec<SocketNote> {
    let mut notes = Vec::new();
    let handle = SockRef::from(socket);
    if let Some(window) = options.window {
        notes.extend(set_buffers(socket, window));
    }
    congestion(&handle, &options.congestion, peer, &mut notes);
    if options.pacing_bytes_per_sec.is_some() {
        notes.extend(set_pacing(socket, options.pacing_bytes_per_sec));
    }
    if let Some(bytes) = options.notsent_lowat {
        let got = handle.set_tcp_notsent_lowat(bytes).and_then(|()| handle.tcp_notsent_lowat());
        settle("TCP_NOTSENT_LOWAT", u64::from(bytes), got.map(u64::from), &mut notes);
    }
    if let Some(time) = options.user_timeout {
        let got = handle.set_tcp_user_timeout(Some(time)).and_then(|()| handle.tcp_user_timeout());
        let got = got.map(|time| time.unwrap_or_default().as_millis() as u64);
        settle("TCP_USER_TIMEOUT", time.as_millis() as u64, got, &mut notes);
    }
    if let Some(idle) = options.keepalive {
        // The options count whole seconds.
        let idle = Duration::from_secs(idle.as_secs().max(1));
        let probe = Duration::from_secs((idle.as_secs() / 3).max(1));
        let wish = TcpKeepalive::new().with_time(idle).with_interval(probe).with_retries(3);
        let got = handle.set_tcp_keepalive(&wish).and_then(|()| handle.tcp_keepalive_time());
        settle("TCP_KEEPIDLE", idle.as_secs(), got.map(|time| time.as_secs()), &mut notes);
    }
    if options.nodelay {
        let got = handle.set_tcp_nodelay(true).and_then(|()| handle.tcp_nodelay());
        settle("TCP_NODELAY", 1, got.map(u64::from), &mut notes);
    }
    if let Some(class) = options.dscp {
        packet_class(&handle, class, &mut notes);
    }
    notes
}

/// Caps the rate of a socket, also while it sends; `None` lifts the cap.
pub fn set_pacing(socket: &impl AsFd, bytes_per_sec: Option<u64>) -> Option<SocketNote> {
    let rate = bytes_per_sec.unwrap_or(u64::MAX); // the kernel's word for no cap
    let mut notes = Vec::new();
    let got = set_max_pacing_rate(socket, rate).and_then(|()| max_pacing_rate(socket));
    settle("SO_MAX_PACING_RATE", rate, got, &mut notes);
    notes.pop()
}

/// Sets the class of the packets. A socket of IPv6 may have a peer of IPv4, whose packets go by the other option.
fn packet_class(handle: &SockRef<'_>, class: u8, notes: &mut Vec<SocketNote>) {
    let byte = u32::from(class) << ECN_BITS;
    let v6 = handle.domain().is_ok_and(|domain| domain == Domain::IPV6);
    if v6 {
        let got = handle.set_tclass_v6(byte).and_then(|()| handle.tclass_v6());
        settle("IPV6_TCLASS", class.into(), got.map(|byte| u64::from(byte >> ECN_BITS)), notes);
    }
    let got = handle.set_tos_v4(byte).and_then(|()| handle.tos_v4());
    settle("IP_TOS", class.into(), got.map(|byte| u64::from(byte >> ECN_BITS)), notes);
}

/// What a connected socket says about the segment that was asked for. A smaller one is the path's; a larger one means
/// that the other end dialled and did not ask.
pub fn check_segments(socket: &impl AsFd, mss: u16) -> Option<SocketNote> {
    let mut notes = Vec::new();
    let got = SockRef::from(socket).tcp_mss().map(|got| u64::from(got).max(mss.into()));
    settle("TCP_MAXSEG", mss.into(), got, &mut notes);
    notes.pop()
}

fn settle(option: &'static str, asked: u64, got: std::io::Result<u64>, notes: &mut Vec<SocketNote>) {
    match got {
        Ok(got) if got == asked => {}
        Ok(got) => notes.push(SocketNote::Differs { option, asked, got }),
        Err(error) => notes.push(SocketNote::Refused { option, reason: error.to_string() }),
    }
}

/// Sets both buffers to `bytes` (at most [`WINDOW_MAX`]) and reads them back; past the sysctl's limit where the process
/// may. A fixed buffer ends the kernel's autotuning. For a connection whose round trip is below [`NEAR_RTT`], use
/// [`NEAR_BUFFER`].
pub fn set_buffers(socket: &impl AsFd, bytes: u64) -> Vec<SocketNote> {
    let handle = SockRef::from(socket);
    let bytes = bytes.min(WINDOW_MAX);
    let mut notes = Vec::new();
    for (receive, side, sysctl) in [(false, "send", "net.core.wmem_max"), (true, "receive", "net.core.rmem_max")] {
        // The kernel keeps twice what is asked for and answers with that.
        let read = || if receive { handle.recv_buffer_size() } else { handle.send_buffer_size() };
        let enough = |got: &std::io::Result<usize>| got.as_ref().is_ok_and(|got| *got as u64 / 2 >= bytes);
        let set = |bytes: usize| match receive {
            true => handle.set_recv_buffer_size(bytes),
            false => handle.set_send_buffer_size(bytes),
        };
        let mut got = set(bytes as usize).and_then(|()| read());
        if !enough(&got) && force_buffer(socket, receive, bytes as u32).is_ok() {
            got = read();
        }
        match got {
            Ok(got) if got as u64 / 2 < bytes => {
                notes.push(SocketNote::Clamped { side, asked: bytes, got: got as u64 / 2, sysctl });
            }
            Ok(_) => {}
            Err(error) => {
                let option = if receive { "SO_RCVBUF" } else { "SO_SNDBUF" };
                notes.push(SocketNote::Refused { option, reason: error.to_string() });
            }
        }
    }
    notes
}

/// Keeps segments, both ways, to what is asked for and to half of a small window. Call it before `connect`: the size is
/// settled with the first segment.
///
/// The accepting end learns the window only after the handshake, when it has announced a larger one. The sender then goes by
/// the largest window it has seen, and on loopback (64 KiB a segment) not one segment fits the window there is: each waits
/// for the persist timer, 200 ms.
pub fn fit_segments(socket: &impl AsFd, options: &SocketOptions) -> Option<SocketNote> {
    let half = |window: u64| u16::try_from(window / 2).unwrap_or(u16::MAX).max(SEGMENT_MIN);
    let most = options.window.map(half).filter(|half| *half <= SEGMENT_MAX);
    let size = u32::from(most.into_iter().chain(options.mss).min()?);
    let handle = SockRef::from(socket);
    let mut notes = Vec::new();
    let got = handle.set_tcp_mss(size).and_then(|()| handle.tcp_mss());
    settle("TCP_MAXSEG", u64::from(size), got.map(u64::from), &mut notes);
    notes.pop()
}

fn congestion(handle: &SockRef<'_>, asked: &[String], peer: Option<SocketAddr>, notes: &mut Vec<SocketNote>) {
    if asked.is_empty() {
        // A default, not a wish: without cubic the system's own stays, and nobody needs to hear of it.
        if peer.is_some_and(|peer| is_loopback(peer.ip())) {
            let _ = handle.set_tcp_congestion(LOOPBACK_CONGESTION.as_bytes());
        }
        return;
    }
    let mut refused = Vec::new();
    for name in asked {
        let tried = match name.len() {
            1..=CONGESTION_NAME_MAX => handle.set_tcp_congestion(name.as_bytes()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        };
        match tried {
            Ok(()) if congestion_of(handle) == *name => break,
            Ok(()) => refused.push((name, false)),
            Err(error) => refused.push((name, error.kind() == std::io::ErrorKind::PermissionDenied)),
        }
    }
    let got = congestion_of(handle);
    let note =
        |(asked, known): (&String, bool)| SocketNote::Congestion { asked: asked.clone(), got: got.clone(), known };
    notes.extend(refused.into_iter().map(note));
}

/// Gives a connection another congestion control while it runs: the kernel starts that one with the window there is.
pub fn set_congestion(socket: &impl AsFd, name: &str) -> Option<SocketNote> {
    let mut notes = Vec::new();
    congestion(&SockRef::from(socket), &[name.to_owned()], None, &mut notes);
    notes.pop()
}

fn congestion_of(handle: &SockRef<'_>) -> String {
    let name = handle.tcp_congestion().unwrap_or_default();
    name.split(|byte| *byte == 0).next().map_or_else(String::new, |name| String::from_utf8_lossy(name).into_owned())
}

/// The congestion control in force on a TCP socket; empty when it cannot be told.
pub fn congestion_in_force(socket: &impl AsFd) -> String {
    congestion_of(&SockRef::from(socket))
}

/// Whether an address is this host by the loopback interface, IPv4 in IPv6 included.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn stream() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn limit(name: &str) -> u64 {
        std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).unwrap().trim().parse().unwrap()
    }

    #[test]
    fn options_are_in_force_afterwards() {
        let (near, _far) = stream();
        let options = SocketOptions {
            window: Some(100_000),
            congestion: vec!["reno".to_owned()],
            pacing_bytes_per_sec: Some(100 << 30),
            notsent_lowat: Some(1 << 20),
            user_timeout: Some(Duration::from_secs(90)),
            keepalive: Some(Duration::from_secs(60)),
            nodelay: true,
            dscp: Some(10),
            ..SocketOptions::default()
        };
        assert_eq!(apply(&near, &options, None), []);
        assert_eq!(SockRef::from(&near).tos_v4().unwrap() >> 2, 10);
        let handle = SockRef::from(&near);
        assert_eq!(handle.send_buffer_size().unwrap(), 200_000);
        assert_eq!(handle.recv_buffer_size().unwrap(), 200_000);
        assert_eq!(congestion_in_force(&near), "reno");
        assert_eq!(max_pacing_rate(&near).unwrap(), 100 << 30, "more than 32 bits");
        assert_eq!(set_pacing(&near, None), None);
        assert_eq!(max_pacing_rate(&near).unwrap(), u64::MAX, "lifted");
        assert_eq!(handle.tcp_notsent_lowat().unwrap(), 1 << 20);
        assert_eq!(handle.tcp_user_timeout().unwrap(), Some(Duration::from_secs(90)));
        assert_eq!(handle.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        assert!(handle.keepalive().unwrap() && handle.tcp_nodelay().unwrap());
    }

    #[test]
    fn a_clamped_window_is_said_with_the_sysctl() {
        let (near, _far) = stream();
        let asked = 64 * limit("rmem_max").max(limit("wmem_max"));
        let may_force = force_buffer(&near, true, 1 << 20).is_ok();
        let notes = set_buffers(&near, asked);
        if may_force {
            assert_eq!(notes, [], "this process may go past the limit");
            assert!(SockRef::from(&near).recv_buffer_size().unwrap() as u64 / 2 >= asked.min(WINDOW_MAX));
        } else {
            assert_eq!(notes.len(), 2);
            assert!(notes[1].to_string().contains("net.core.rmem_max"), "{}", notes[1]);
        }
        assert_eq!(set_buffers(&near, 1), [], "more than asked for is no clamp");
    }

    #[test]
    fn an_unknown_congestion_control_falls_back_with_a_word() {
        let (near, _far) = stream();
        let before = congestion_in_force(&near);
        for name in ["nosuch", "a-name-that-is-much-too-long"] {
            let options = SocketOptions { congestion: vec![name.to_owned()], ..SocketOptions::default() };
            let notes = apply(&near, &options, None);
            let want = SocketNote::Congestion { asked: name.to_owned(), got: before.clone(), known: false };
            assert_eq!(notes, [want]);
            assert!(notes[0].to_string().contains(&format!("modprobe tcp_{name}")));
        }
        let names = ["nosuch", "reno", "cubic"].map(str::to_owned).to_vec();
        let notes = apply(&near, &SocketOptions { congestion: names, ..SocketOptions::default() }, None);
        assert_eq!((notes.len(), congestion_in_force(&near).as_str()), (1, "reno"), "the second choice: {notes:?}");
        let forbidden = SocketNote::Congestion { asked: "cubic".to_owned(), got: "reno".to_owned(), known: true };
        assert!(forbidden.to_string().contains("net.ipv4.tcp_allowed_congestion_control"));
    }

    #[test]
    fn a_class_is_set_for_peers_of_either_version() {
        let listener = crate::net::listen("[::]:0".parse().unwrap()).unwrap();
        let near = TcpStream::connect(("127.0.0.1", listener.addr.port())).unwrap();
        let (far, _) = listener.socket.accept().unwrap();
        for socket in [&near, &far] {
            let options = SocketOptions { dscp: Some(46), ..SocketOptions::default() };
            assert_eq!(apply(socket, &options, None), []);
            assert_eq!(SockRef::from(socket).tos_v4().unwrap() >> 2, 46);
        }
    }

    #[test]
    fn a_segment_that_the_other_end_settled_is_said() {
        let (near, _far) = stream();
        assert_eq!(check_segments(&near, u16::MAX), None, "the path's is smaller");
        let note = check_segments(&near, 1000);
        assert!(
            matches!(note, Some(SocketNote::Differs { option: "TCP_MAXSEG", asked: 1000, got }) if got > 1000),
            "{note:?}"
        );
    }

    #[test]
    fn loopback_does_not_run_bbr_by_default() {
        let (near, _far) = stream();
        let (loopback, far_away) = ("[::ffff:127.0.0.1]:1", "192.0.2.1:1");
        let before = congestion_in_force(&near);
        apply(&near, &SocketOptions::default(), Some(far_away.parse().unwrap()));
        assert_eq!(congestion_in_force(&near), before);
        apply(&near, &SocketOptions::default(), Some(loopback.parse().unwrap()));
        let available = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap();
        if available.split_whitespace().any(|name| name == "cubic") {
            assert_eq!(congestion_in_force(&near), "cubic");
        }
    }

    #[test]
    fn refusals_become_notes() {
        let file = std::fs::File::open(".").unwrap();
        let options = SocketOptions { window: Some(1), nodelay: true, ..SocketOptions::default() };
        let notes = apply(&file, &options, None);
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(notes.iter().all(|note| note.to_string().contains("refused")));
    }
}
