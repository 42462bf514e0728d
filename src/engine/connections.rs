//! What the kernel says of a session's data connections (`TCP_INFO`), summed up.

use super::conn::Parked;
use crate::wire::views::SenderView;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A look speaks for the time since the one before, up to so much.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// Sums over connections.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections {
    sum: SenderView,
    count: u64,
    /// Round trips seen on the way: their sum in µs, and how many.
    seen: (u64, u64),
    /// The longest mean over connections since it was asked for last, µs.
    longest: u64,
    /// When was looked last, and the time for which a look has found a send buffer full of what is under way, µs.
    looked: Option<Instant>,
    full_us: u64,
    congestion: BTreeSet<String>,
}

impl Connections {
    /// Notes how each connection is now: at the end queues are empty, and it says little. With each socket comes whether
    /// bytes wait to get into it: where all that it holds is under way, its buffer is too small. The kernel's own counter of that
    /// misses buffers of a few segments, as they are filled in one go.
    pub(super) fn look<'a>(&mut self, now: Instant, sockets: impl Iterator<Item = (&'a Parked, bool)>) {
        let time = self.looked.replace(now).map_or(Duration::ZERO, |before| now.saturating_duration_since(before));
        let time = time.min(LOOK_MAX).as_micros() as u64;
        let (mut sum, mut count) = (0, 0);
        for (socket, waits) in sockets {
            let Some(info) = socket.tcp_info().filter(|info| info.rtt_us > 0) else { continue };
            (sum, count) = (sum + u64::from(info.rtt_us), count + 1);
            let under_way = info.bytes_sent.saturating_sub(info.bytes_retrans) > info.bytes_acked;
            if waits && under_way && info.notsent_bytes == 0 {
                self.full_us += time;
            }
        }
        self.seen = (self.seen.0 + sum, self.seen.1 + count);
        self.longest = self.longest.max(sum.checked_div(count).unwrap_or(0));
    }

    /// The longest round trip, as a mean over connections, of all looks since this was asked last, µs; 0: none.
    pub(super) fn longest(&mut self) -> u64 {
        std::mem::take(&mut self.longest)
    }

    /// Adds what the kernel says of one connection.
    pub(super) fn add(&mut self, socket: &Parked) {
        let Some(info) = socket.tcp_info() else { return };
        let sum = &mut self.sum;
        sum.busy_us += info.busy_time_us;
        sum.rwnd_limited_us += info.rwnd_limited_us;
        sum.sndbuf_limited_us += info.sndbuf_limited_us;
        sum.bytes_sent += info.bytes_sent;
        sum.bytes_retransmitted += info.bytes_retrans;
        sum.segment = sum.segment.max(info.snd_mss);
        // A connection that has been cut does not know its round trip any more.
        if info.rtt_us > 0 {
            let least = u64::from(info.min_rtt_us);
            sum.rtt_us += u64::from(info.rtt_us);
            sum.min_rtt_us = if self.count == 0 { least } else { sum.min_rtt_us.min(least) };
            self.count += 1;
        }
        self.congestion.insert(socket.congestion());
    }

    /// In one; `paced`: bits per second of each stream by request, 0 for none.
    pub(super) fn view(self, paced: u64) -> SenderView {
        let congestion = self.congestion.into_iter().filter(|name| !name.is_empty()).collect::<Vec<_>>().join(",");
        let at_the_end = self.sum.rtt_us / self.count.max(1);
        let rtt_us = self.seen.0.checked_div(self.seen.1).unwrap_or(at_the_end);
        let sndbuf_limited_us = self.sum.sndbuf_limited_us.max(self.full_us.min(self.sum.busy_us));
        SenderView { rtt_us, congestion, paced, sndbuf_limited_us, ..self.sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn connections_are_summed_up_and_the_way_counts_for_the_round_trip() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut parked = Vec::new();
        for _ in 0..2 {
            let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            near.write_all(&[7; 10_000]).unwrap();
            far.read_exact(&mut [0; 10_000]).unwrap();
            parked.push((Parked::Tcp(near), far));
        }
        let sockets: Vec<Parked> = parked.iter().map(|(near, _)| near.try_clone().unwrap()).collect();
        let mut all = Connections::default();
        sockets.iter().for_each(|socket| all.add(socket));
        let view = all.clone().view(8_000);
        assert_eq!((view.bytes_sent, view.paced), (20_000, 8_000));
        assert!(
            view.rtt_us > 0 && view.min_rtt_us > 0 && view.min_rtt_us <= view.rtt_us && view.segment > 500,
            "{view:?}"
        );
        assert!(!view.congestion.is_empty() && !view.congestion.contains(','), "{view:?}");
        let start = Instant::now();
        for ms in [0, 100] {
            all.look(start + Duration::from_millis(ms), sockets.iter().map(|socket| (socket, true)));
        }
        assert_eq!(all.full_us, 0, "nothing is under way");
        // Nobody has read this for long: no buffer is too small that holds what was never sent.
        let block = vec![7; 1 << 20];
        parked[0].1.set_nonblocking(true).unwrap();
        while matches!(parked[0].1.write(&block), Ok(1..)) {}
        let far = Parked::Tcp(parked.remove(0).1);
        all.look(start + Duration::from_millis(200), [(&far, true)].into_iter());
        assert_eq!(all.full_us, 0, "the window is full, not the buffer");
        all.full_us = u64::MAX;
        assert_eq!(all.clone().view(0).sndbuf_limited_us, all.sum.busy_us);
        all.seen = (9_000, 2);
        assert_eq!(all.view(0).rtt_us, 4_500, "what was seen on the way, not what is left at the end");
    }
}
