//! What the kernel says of a session's data connections (`TCP_INFO`), summed up.

use super::conn::Parked;
use crate::wire::views::SenderView;
use std::collections::BTreeSet;

/// Sums over connections.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections {
    sum: SenderView,
    count: u64,
    /// Round trips seen on the way: their sum in µs, and how many.
    seen: (u64, u64),
    /// The longest mean over connections since it was asked for last, µs.
    longest: u64,
    congestion: BTreeSet<String>,
}

impl Connections {
    /// Notes the round trip of each connection as it is now: at the end queues are empty, and it says little.
    pub(super) fn look<'a>(&mut self, sockets: impl Iterator<Item = &'a Parked>) {
        let infos = sockets.filter_map(Parked::tcp_info).filter(|info| info.rtt_us > 0);
        let (sum, count) = infos.fold((0, 0), |all, info| (all.0 + u64::from(info.rtt_us), all.1 + 1));
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
        SenderView { rtt_us, congestion, paced, ..self.sum }
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
        all.seen = (9_000, 2);
        assert_eq!(all.view(0).rtt_us, 4_500, "what was seen on the way, not what is left at the end");
    }
}
