//! What held a transfer back, in shares of its time. Pure: evidence in, shares and words out.
//!
//! # The rules
//! A stream of the source is always in one of four states, and the shares follow from how long it was in each.
//!
//! - **Nothing was asked of it.** Then the destination did not ask: it waited for its own disk (claims are held back while
//!   too much is not yet durable, and so is the end while the last bytes become so), for its CPU, or there was nothing to ask for
//!   (the scan). A stream for which nothing is left while others bring the last chunks counts for nothing: what these wait for is
//!   what the transfer waits for.
//! - **The next block was being read.** The source's disk.
//! - **A block waited to be sent.** The kernel says what its connection waited for (`TCP_INFO`, and RFC 4898 by the names
//!   of its counters): for the receiver's window, for room in the send buffer, or neither, which leaves the network and a rate
//!   that somebody set. A full window is the receiver's doing only if the receiver was busy; otherwise it is too small.
//! - **None of these.** The worker had others to serve, or waited for a core.
//!
//! What the destination waited for its disk explains that much of what its streams were not asked, or did not take.
//!
//! A worker without a free core sees everything late, sends as well, so the CPU's share is taken off what the streams say;
//! a receiver without one makes the path look slow, so from `CPU_FULL` on it has its share of what nothing else explains.
//! A core that another process has is no core of ours: time on the run queue counts as CPU.

use crate::wire::views::{EndView, SenderView, SourceView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Below this share of segments sent again a network is called full rather than lossy.
const LOSS_NOTED: f64 = 0.001;
/// A rate that is reached to this share is what held the transfer back.
const CAP_REACHED: f64 = 0.85;
/// A round trip so much longer than the least one means that a queue is in it.
const QUEUED: f64 = 1.15;
/// Streams for which nothing was left count for nothing, up to this share of all time.
const SPARE_MOST: f64 = 0.98;
/// From here on a processor counts as the place where time went, not just as busy.
const CPU_FULL: f64 = 0.85;

/// Everything that the shares are made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evidence {
    /// The source.
    pub source: EndView,
    /// The destination.
    pub destination: EndView,
    /// The source's connections; nothing where it could not say.
    pub sender: Option<SenderView>,
    /// Payload that arrived.
    pub received_bytes: u64,
    /// Time of the destination's streams, ns, in which nothing was left to ask of them while others brought the last chunks.
    pub spare_ns: u64,
}

/// What can hold a transfer back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limiter {
    /// Reading.
    SourceDisk,
    /// The source's workers had no core, or used it up.
    SourceCpu,
    /// The send buffer was smaller than the path.
    SenderWindow,
    /// Its rate or its losses.
    Network,
    /// The receive buffer was smaller than the path.
    ReceiverWindow,
    /// The destination's workers had no core, or used it up.
    DestinationCpu,
    /// Writing and syncing.
    DestinationDisk,
    /// Nothing was left to ask for: the scan, small files, the last chunks.
    WaitingForData,
    /// A rate that somebody set.
    ConfiguredCap,
}

impl Limiter {
    const ALL: [Self; 9] = [
        Self::SourceDisk,
        Self::SourceCpu,
        Self::SenderWindow,
        Self::Network,
        Self::ReceiverWindow,
        Self::DestinationCpu,
        Self::DestinationDisk,
        Self::WaitingForData,
        Self::ConfiguredCap,
    ];

    /// As reports name it.
    pub fn word(self) -> &'static str {
        match self {
            Self::SourceDisk => "source disk",
            Self::SourceCpu => "source cpu",
            Self::SenderWindow => "sender window",
            Self::Network => "network",
            Self::ReceiverWindow => "receiver window",
            Self::DestinationCpu => "destination cpu",
            Self::DestinationDisk => "destination disk",
            Self::WaitingForData => "waiting for data",
            Self::ConfiguredCap => "configured cap",
        }
    }
}

/// Shares under the words that reports and progress have for them, rounded to thousandths.
pub fn named(shares: &Shares) -> BTreeMap<String, f64> {
    shares.iter().map(|(limiter, share)| (limiter.word().to_owned(), (share * 1e3).round() / 1e3)).collect()
}

/// What a peer says of shares: what is none is left out.
pub fn told(shares: BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let known = |word: &str| Limiter::ALL.iter().any(|limiter| limiter.word() == word);
    shares.into_iter().filter(|(word, share)| known(word) && (0.0..=1.0).contains(share)).collect()
}

/// The word of the largest; empty where there is none.
pub fn largest(shares: &BTreeMap<String, f64>) -> String {
    shares.iter().max_by(|a, b| a.1.total_cmp(b.1)).map(|(word, _)| word.clone()).unwrap_or_default()
}

/// The mean of several sources' shares, largest first.
pub fn mean<'a>(all: impl Iterator<Item = &'a Shares>) -> Shares {
    let (mut sums, mut count) = (BTreeMap::<Limiter, f64>::new(), 0);
    for shares in all.filter(|shares| !shares.is_empty()) {
        count += 1;
        shares.iter().for_each(|(limiter, share)| *sums.entry(*limiter).or_default() += share);
    }
    let mut mean: Shares = sums.into_iter().map(|(limiter, sum)| (limiter, sum / f64::from(count))).collect();
    mean.sort_by(|a, b| b.1.total_cmp(&a.1));
    mean
}

/// What a report says although nobody asked: a window that was in the way for a fifth of the time, with its sysctl. On a `near`
/// path windows are of a fixed size, which no sysctl raises, and full where the end behind them is slow.
pub fn notes(shares: &Shares, near: bool) -> Vec<String> {
    const IN_THE_WAY: f64 = 0.2;
    let said = shares.iter().filter(|(_, share)| !near && *share >= IN_THE_WAY).filter_map(|(limiter, share)| {
        let (what, sysctl, end) = match limiter {
            Limiter::SenderWindow => ("send", "net.ipv4.tcp_wmem", "source"),
            Limiter::ReceiverWindow => ("receive", "net.ipv4.tcp_rmem", "destination"),
            _ => return None,
        };
        let percent = share * 100.0;
        Some(format!("the {what} buffer held it back for {percent:.0} % of the time: raise the third value of {sysctl} at the {end}"))
    });
    said.collect()
}

/// Shares of time that add up to one, largest first; empty for a transfer of no time.
pub type Shares = Vec<(Limiter, f64)>;

fn part(ns: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { (ns as f64 / of as f64).clamp(0.0, 1.0) }
}

impl EndView {
    fn since(&self, before: &Self) -> Self {
        Self {
            wall_ns: self.wall_ns.saturating_sub(before.wall_ns),
            streams: self.streams,
            workers: self.workers,
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            delay_ns: self.delay_ns.saturating_sub(before.delay_ns),
            idle_ns: self.idle_ns.saturating_sub(before.idle_ns),
            disk_ns: self.disk_ns.saturating_sub(before.disk_ns),
            send_ns: self.send_ns.saturating_sub(before.send_ns),
            held_back_ns: self.held_back_ns.saturating_sub(before.held_back_ns),
        }
    }

    fn stream_time(&self) -> u64 {
        self.wall_ns.saturating_mul(self.streams.max(1))
    }

    /// How much of the workers' time a core was used or waited for.
    fn cpu(&self) -> f64 {
        part(self.cpu_ns.saturating_add(self.delay_ns), self.wall_ns.saturating_mul(self.workers.max(1)))
    }

    /// Of this time of its streams, how much they waited for the disk.
    fn disk(&self, time: u64) -> f64 {
        part(self.disk_ns, time).max(part(self.held_back_ns, self.wall_ns))
    }
}

impl SenderView {
    /// Share of bytes sent again.
    pub fn loss(&self) -> f64 {
        part(self.bytes_retransmitted, self.bytes_sent)
    }

    fn full_window(&self) -> f64 {
        part(self.rwnd_limited_us, self.busy_us)
    }

    fn full_buffer(&self) -> f64 {
        part(self.sndbuf_limited_us, self.busy_us)
    }
}

impl Evidence {
    /// Adds a source's view; of several the longest counts.
    pub fn add_source(&mut self, view: &SourceView) {
        let (all, one) = (&mut self.source, &view.end);
        all.wall_ns = all.wall_ns.max(one.wall_ns);
        for (sum, part) in [
            (&mut all.streams, one.streams),
            (&mut all.workers, one.workers),
            (&mut all.cpu_ns, one.cpu_ns),
            (&mut all.delay_ns, one.delay_ns),
            (&mut all.idle_ns, one.idle_ns),
            (&mut all.disk_ns, one.disk_ns),
            (&mut all.send_ns, one.send_ns),
        ] {
            // A peer's numbers: they may be anything.
            *sum = sum.saturating_add(part);
        }
        let (all, one) = (self.sender.get_or_insert_default(), &view.sender);
        for (sum, part) in [
            (&mut all.busy_us, one.busy_us),
            (&mut all.rwnd_limited_us, one.rwnd_limited_us),
            (&mut all.sndbuf_limited_us, one.sndbuf_limited_us),
            (&mut all.bytes_sent, one.bytes_sent),
            (&mut all.bytes_retransmitted, one.bytes_retransmitted),
        ] {
            *sum = sum.saturating_add(part);
        }
        all.rtt_us = all.rtt_us.max(one.rtt_us);
        all.min_rtt_us = if all.min_rtt_us == 0 { one.min_rtt_us } else { all.min_rtt_us.min(one.min_rtt_us) };
        all.segment = all.segment.max(one.segment);
        all.paced = all.paced.max(one.paced);
        if all.congestion.is_empty() {
            // What is shown to people comes from a peer.
            all.congestion = one.congestion.chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
        }
    }

    /// What has been added since `before`, of the same session: the evidence of the time between.
    pub fn since(&self, before: &Self) -> Self {
        let mut sender = self.sender.clone();
        if let (Some(now), Some(then)) = (&mut sender, &before.sender) {
            now.busy_us = now.busy_us.saturating_sub(then.busy_us);
            now.rwnd_limited_us = now.rwnd_limited_us.saturating_sub(then.rwnd_limited_us);
            now.sndbuf_limited_us = now.sndbuf_limited_us.saturating_sub(then.sndbuf_limited_us);
            now.bytes_sent = now.bytes_sent.saturating_sub(then.bytes_sent);
            now.bytes_retransmitted = now.bytes_retransmitted.saturating_sub(then.bytes_retransmitted);
        }
        Self {
            source: self.source.since(&before.source),
            destination: self.destination.since(&before.destination),
            sender,
            received_bytes: self.received_bytes.saturating_sub(before.received_bytes),
            spare_ns: self.spare_ns.saturating_sub(before.spare_ns),
        }
    }

    /// The part of all streams' time that counts for nothing.
    fn spare(&self) -> f64 {
        part(self.spare_ns, self.destination.stream_time())
    }

    /// How much the destination's streams waited for its disk, of the time that counts.
    fn disk_there(&self) -> f64 {
        let spare = self.spare();
        let counts = if spare > SPARE_MOST { 1.0 } else { 1.0 - spare };
        self.destination.disk((self.destination.stream_time() as f64 * counts) as u64)
    }

    /// Of the source's streams the time that counts, ns, and of it the part in which nothing was asked.
    fn asked(&self) -> (u64, u64) {
        let (time, idle) = (self.source.stream_time(), self.source.idle_ns);
        let spare = ((self.spare() * time as f64) as u64).min(idle);
        // Where nothing else is, that is all there is to say.
        if spare as f64 > SPARE_MOST * time as f64 { (time, idle) } else { (time - spare, idle - spare) }
    }

    /// Payload by time, bits per second.
    fn rate(&self) -> f64 {
        self.received_bytes as f64 * 8e9 / self.destination.wall_ns.max(1) as f64
    }

    /// Whether the rate that was set is what it runs at: by what streams sent while they had something to send, so that a
    /// short transfer's start and end do not hide it, or by the mean.
    fn is_capped(&self, cap: Option<u64>) -> bool {
        let paced = self.sender.as_ref().filter(|sender| sender.paced > 0 && sender.busy_us > 0);
        let reached = paced.is_some_and(|sender| {
            let rate = sender.bytes_sent as f64 * 8e6 / sender.busy_us as f64;
            rate >= CAP_REACHED * sender.paced as f64
        });
        reached || cap.is_some_and(|cap| self.rate() >= CAP_REACHED * cap as f64)
    }

    /// What held the transfer back. `cap`: the configured rate, bits per second.
    pub fn shares(&self, cap: Option<u64>) -> Shares {
        let (source, destination) = (&self.source, &self.destination);
        let (time, idle) = self.asked();
        let (busy_here, busy_there) = (source.cpu(), destination.cpu());
        // A processor that is nearly always wanted delays all else; one that is half used does not.
        let weight = |cpu: f64| if cpu >= CPU_FULL { cpu } else { cpu * cpu };
        let here = weight(busy_here);
        let left = 1.0 - here;
        let (idle, disk, sending) = (part(idle, time), part(source.disk_ns, time), part(source.send_ns, time));
        let rest = (1.0 - idle - disk - sending).max(0.0);
        let mut shares: BTreeMap<Limiter, f64> = BTreeMap::new();
        let mut put = |limiter, share: f64| *shares.entry(limiter).or_default() += share.max(0.0);

        put(Limiter::SourceCpu, here + left * rest * busy_here);
        put(Limiter::SourceDisk, left * disk);

        let (there, mut disk_there) = (weight(busy_there), self.disk_there());
        // Of what a slow receiver causes: its CPU's part, then as much as it waited for its disk, counted once, and what neither
        // explains.
        let mut split = |whole: f64, nothing: Limiter, put: &mut dyn FnMut(Limiter, f64)| {
            let cpu = whole * there;
            let disk = (whole - cpu).min(disk_there);
            disk_there -= disk;
            put(Limiter::DestinationCpu, cpu);
            put(Limiter::DestinationDisk, disk);
            put(nothing, whole - cpu - disk);
        };
        split(left * idle, Limiter::WaitingForData, &mut put);

        let sending = left * sending;
        let on_the_way = if self.is_capped(cap) { Limiter::ConfiguredCap } else { Limiter::Network };
        match &self.sender {
            Some(sender) => {
                let (window, buffer) = (sender.full_window(), sender.full_buffer());
                let window = window.min(1.0 - buffer.min(1.0));
                split(sending * window, Limiter::ReceiverWindow, &mut put);
                put(Limiter::SenderWindow, sending * buffer);
                let rest = sending * (1.0 - window - buffer);
                // A receiver without a core acknowledges late, and the path looks slow.
                if busy_there >= CPU_FULL { split(rest, on_the_way, &mut put) } else { put(on_the_way, rest) }
            }
            // An older source: a destination that is busy is what its sends wait for.
            None => split(sending, on_the_way, &mut put),
        }
        let sum: f64 = shares.values().sum();
        let mut shares: Shares = shares.into_iter().filter(|_| sum > 0.0).map(|(l, share)| (l, share / sum)).collect();
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        shares
    }

    /// The evidence and what to change, a line each: for people.
    pub fn explain(&self, cap: Option<u64>) -> Vec<String> {
        let (source, destination) = (&self.source, &self.destination);
        let (time, idle) = self.asked();
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let mut lines = vec![
            format!(
                "the source's {} streams: sending {}, reading {}, nothing asked {} of the time; its workers had or wanted a core {}",
                source.streams,
                percent(part(source.send_ns, time)),
                percent(part(source.disk_ns, time)),
                percent(part(idle, time)),
                percent(source.cpu()),
            ),
            format!(
                "the destination: waiting for its disk {}, its workers had or wanted a core {}",
                percent(self.disk_there()),
                percent(destination.cpu()),
            ),
        ];
        if let Some(sender) = &self.sender {
            lines.push(format!(
                "the source's connections ({}): receiver's window full {}, send buffer full {} of the time, {:.3} % of bytes sent \
                 again, round trip {:.1} ms (least {:.1})",
                sender.congestion,
                percent(sender.full_window()),
                percent(sender.full_buffer()),
                sender.loss() * 100.0,
                sender.rtt_us as f64 / 1e3,
                sender.min_rtt_us as f64 / 1e3,
            ));
        }
        lines.extend(self.shares(cap).first().map(|(limiter, share)| {
            format!("{} held it back for {} of the time: {}", limiter.word(), percent(*share), self.advice(*limiter))
        }));
        lines
    }

    /// What to change about a limiter, in words.
    fn advice(&self, limiter: Limiter) -> String {
        let lossy = self.sender.as_ref().is_some_and(|sender| sender.loss() >= LOSS_NOTED);
        let queue =
            self.sender.as_ref().is_some_and(|s| s.min_rtt_us > 0 && s.rtt_us as f64 > QUEUED * s.min_rtt_us as f64);
        match limiter {
            Limiter::SourceDisk => "a faster disk, or more files at once; `longhaul doctor --root DIR` looks at it".to_owned(),
            Limiter::SourceCpu | Limiter::DestinationCpu => {
                "more --workers if cores are free, fewer other processes if not; `--encrypt off` at both ends costs less, \
                 on circuits that nobody else reaches"
                    .to_owned()
            }
            Limiter::SenderWindow => {
                "raise the third value of net.ipv4.tcp_wmem at the source, or use more --streams".to_owned()
            }
            Limiter::ReceiverWindow => {
                "raise the third value of net.ipv4.tcp_rmem at the destination, or use more --streams".to_owned()
            }
            Limiter::Network if lossy => {
                let again = self.sender.as_ref().map_or(0.0, SenderView::loss) * 100.0;
                if queue {
                    format!("{again:.2} % went twice and the queue is full: the path is full; --rate below it loses less")
                } else {
                    format!(
                        "{again:.2} % went twice and there is hardly a queue: the path loses, or its buffers are small; `--cc \
                         bbr` and more --streams bear that better"
                    )
                }
            }
            Limiter::Network => "the path is full; nothing at the ends makes it faster".to_owned(),
            Limiter::DestinationDisk => {
                "a faster disk at the destination, or `--verify wire` if it reads back".to_owned()
            }
            Limiter::WaitingForData => {
                "nothing was left to ask for: many small files, a slow scan, or a transfer of a moment".to_owned()
            }
            Limiter::ConfiguredCap => "it runs at the rate that was set (--rate, or a profile's)".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
