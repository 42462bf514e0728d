//! What a transfer changes by itself while it runs: congestion control, streams, depth, pacing. Pure: windows of time in,
//! settings out; the destination brings them into force (`destination/tune.rs`).
//!
//! # The rules
//! Every change is a trial. It begins because the last seconds give a reason, it is left alone until connections have
//! settled, and it stays only if the seconds after that pay for it; otherwise all is as before, and the same is not tried
//! again for half a minute, then one, two, four, unless so little arrives by then that what it brought would pay. So a wrong reason costs some seconds once, and no rule can go to and
//! fro. At any time one thing is under trial. What a user or a profile has set is not touched.
//!
//! 1. **Losses without a queue are not the path's being full.** Cubic and Reno take every loss for congestion, and their
//!    rate falls with its square root whatever the path could carry (Mathis et al. 1997: rate <= MSS / RTT * C / sqrt(p)).
//!    A full path shows in its round trip, since a queue forms before it overflows (RFC 9438 section 5 on buffers;
//!    Cardwell et al., BBR, 2016). So where segments are lost and the round trip stays at its least, BBR is tried; where a
//!    queue has shown before what the path carries, at that rate, since BBR's beginning fills a queue to find it.
//!    A way that has become longer looks like a queue, as the least round trip is that of the way before. So where far less
//!    arrives than before, segments are lost and the round trip stands still, as no queue does that overflows now and then, BBR
//!    is tried too. It may be a queue all the same, of somebody else's flows: it stays only where it brings a third more.
//!    Two windows have to agree on that; in the beginning one is enough that shows it plainly, and one where the rate has
//!    sagged. What slow start has come to by then losses will not leave there, so BBR that begins so soon need not beat it: it
//!    stays if it brings four fifths of that. So it does later on where far more arrives than losses leave to cubic by the
//!    formulas (Mathis; RFC 8312 section 5.1, equation 7): that is slow start's as well, and BBR near the link's rate cannot beat it.
//! 2. **Losses with a queue are.** BBR's first version does not yield to them: with a queue of one bandwidth-delay product it
//!    sends 1 to 14 % of all segments again where cubic loses next to nothing. So where BBR loses more than a hundredth and
//!    the queue stands, cubic is tried, and stays if it is as fast.
//! 3. **A window that is too small is made up for by streams**: as many again, as long as each step brings a good part
//!    of what twice the streams should, and there is something to ask of them. The same where losses hold cubic or Reno down and there is no BBR, since each
//!    stream halves on its own (Hacker et al. 2002).
//! 4. **A stream that does not pay goes.** Each costs a buffer and smaller batches; where a processor is what holds the
//!    transfer back, half of them are tried.
//! 5. **A stream with nothing asked of it is asked for more**, if there is something to ask for and a long path holds more
//!    than the chunks that were asked for.
//! 6. **BBR that cannot be replaced is paced** to what arrives, where it loses more than a hundredth with a queue: what
//!    is above that is only sent again. A pacing that is reached without a queue is raised, by a twentieth, then by
//!    much more each time, as long as more arrives for it; and 20 s later anew, since the path may carry more by then.
//! 7. **When the rate falls by a third for two windows, the path has changed**: what was not to be tried may be.

use super::limiter::Limiter;
use crate::grid::CHUNK_SIZE;
use crate::limits::MIN_RATE;
use crate::wire::control::Control;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// The shortest time that is judged: several round trips of any path on earth but the longest.
const WINDOW_MIN: Duration = Duration::from_millis(800);
/// The same in the beginning: on a short path losses take cubic down within a second, and a transfer may be short.
const WINDOW_YOUNG: Duration = Duration::from_millis(350);
/// How long the beginning is.
const YOUNG: Duration = Duration::from_secs(2);
/// A window has at least so many round trips, so that what a change did is in it.
const WINDOW_TRIPS: u32 = 6;
/// The same in the beginning, of which a long path has more.
const WINDOW_TRIPS_YOUNG: u32 = 4;
const YOUNG_TRIPS: u32 = 16;
/// Windows kept as reasons.
const KEPT: usize = 5;
/// Windows that have to agree before anything is tried.
const AGREE: usize = 2;
/// Round trips in which a changed connection finds its rate: slow start doubles, and 2^12 segments are 6 MB.
const SETTLE_TRIPS: u32 = 12;
/// The bounds of the time that is left alone.
const SETTLE_MIN: Duration = Duration::from_millis(1_000);
const SETTLE_MAX: Duration = Duration::from_secs(4);
/// Windows that judge a trial.
const JUDGES: u32 = 2;
/// A trial below this share of the rate before it ends at once.
const COLLAPSED: f64 = 0.6;
/// Losses below this share hold nobody back: by Mathis' formula one stream then has 4 Mbit/s at 1 s of round trip.
const LOST_NOTED: f64 = 1e-5;
/// So many segments have to be lost before it is a share and not an accident.
const LOST_SEGMENTS: u64 = 2;
/// What one window of the beginning has to show to be enough: so many segments, and this share.
const LOST_PLAINLY: u64 = 4;
const LOST_PLAIN_SHARE: f64 = 1e-4;
/// A segment for this purpose, bytes.
const SEGMENT: u64 = 1_448;
/// A hundredth of all bytes sent again is too much where the queue stands.
const LOST_TOO_MUCH: f64 = 0.01;
/// A round trip longer than the least by this share, and by [`QUEUE_MIN`], means a queue.
const QUEUED: f64 = 1.2;
/// What scheduling on both hosts adds to a round trip without any queue.
const QUEUE_MIN: Duration = Duration::from_millis(2);
/// What holds a transfer back for this share of a window is a reason.
const REASON: f64 = 0.4;
/// What twice the streams have to bring.
const STREAMS_PAY: f64 = 1.15;
/// What another congestion control or more depth has to bring.
const FASTER: f64 = 1.05;
/// The same where the reason may be a wrong one.
const MUCH_FASTER: f64 = 1.3;
/// What BBR has to bring of the first windows: slow start has just come that far, and losses will not leave it there.
const AS_FAST_AS_SLOW_START: f64 = 0.8;
/// So far above what losses leave it, cubic is not where it will stay: of four lost segments the share may be half off.
const ABOVE_LOSSES: f64 = 1.5;
/// A round trip stands still that is within this share of itself over [`STILL`] windows: cubic's varies by a twentieth at least
/// where it fills a queue.
const STANDS: f64 = 1.03;
const STILL: usize = 4;
/// A rate below this share of one is below it.
const SURELY: f64 = 0.95;
/// For so many windows after the path has changed that may mean a longer way.
const CHANGING: u32 = 10;
/// What is done to lose or to use less may cost so much.
const AS_FAST: f64 = 0.97;
/// Pacing against what arrives: a little below, so that the queue drains.
const PACED: f64 = 0.99;
/// How long a pacing holds that could not be raised.
const PACED_FOR: Duration = Duration::from_secs(20);
/// The first step up, the next, which doubles, and the largest.
const RAISE: f64 = 0.05;
const RAISE_MORE: f64 = 0.25;
const RAISE_MAX: f64 = 0.8;
/// Of a step up, what has to arrive: BBR stops for 0.2 s of 10 to see the least round trip, which may fall into it.
const RAISE_PAYS: f64 = 0.4;
/// Pacing is what holds a transfer back that runs at this share of it.
const PACING_REACHED: f64 = 0.93;
/// Chunks asked of one stream at most: 128 MiB, 10 Gbit/s over 100 ms in one stream.
const DEPTH_MAX: u16 = 32;
/// The first rest after a trial that did not pay, and the longest.
const REST: Duration = Duration::from_secs(30);
const REST_MAX: Duration = Duration::from_secs(240);
/// Below this share of what the path has carried, losses have taken the rate down.
const SAGGED: f64 = 0.85;
/// Below this share of the rate that was kept the path has changed.
const FELL: f64 = 0.67;
/// Steps that are told; a transfer of days may take more.
const STEPS_TOLD: usize = 24;

/// What some time showed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// How long, ns.
    pub ns: u64,
    /// Payload that arrived.
    pub bytes: u64,
    /// Bytes that the sender sent, repeats included.
    pub sent: u64,
    /// Of them, repeats.
    pub resent: u64,
    /// The longest round trip that was seen, as a mean over streams, µs; 0: none.
    pub rtt_us: u64,
    /// The least of the session, µs; 0: none.
    pub min_rtt_us: u64,
    /// Congestion control of all streams, if it is one of these.
    pub control: Option<Control>,
    /// What held it back, and for which share of the time.
    pub limiter: Limiter,
    /// See `limiter`.
    pub share: f64,
    /// Whether chunks were left to ask for at its end.
    pub more: bool,
    /// The most that arrived in a part of it of [`peak_length`], bits per second; 0: not looked at.
    #[serde(default)]
    pub peak: u64,
    /// The largest segment of the sender's connections, bytes; 0: not known.
    #[serde(default)]
    pub segment: u32,
}

impl Window {
    /// Bits per second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 * 8e9 / self.ns.max(1) as f64
    }

    /// What the path carried in its best part: a window in which a ramp ends says less than that on the whole.
    fn best(&self) -> f64 {
        self.rate().max(self.peak as f64)
    }

    /// What so many losses leave to a stream of cubic, bits per second: by its own formula (RFC 8312 section 5.1, equation 7), or on
    /// short ways by that of Reno (Mathis et al. 1997), below which it does not go.
    fn left_by(&self, lost: f64) -> f64 {
        let trip = self.min_rtt_us as f64 / 1e6;
        let segments = (1.054 * (trip / lost).powf(0.75)).max((1.5 / lost).sqrt());
        segments * f64::from(self.segment) * 8.0 / trip
    }

    fn is_queued(&self) -> bool {
        let least = self.min_rtt_us as f64;
        self.rtt_us as f64 > (least * QUEUED).max(least + QUEUE_MIN.as_micros() as f64)
    }

    /// Whether a pacing of so many bits per second arrives without a queue.
    fn reaches(&self, pacing: u64) -> bool {
        !self.is_queued() && self.rate() >= PACING_REACHED * pacing as f64
    }

    fn is(&self, limiters: &[Limiter]) -> bool {
        self.share >= REASON && limiters.contains(&self.limiter)
    }
}

/// How long a window has to be, by the least round trip, µs; `young`: see [`Tuner::is_young`].
fn window_length(min_rtt_us: u64, young: bool) -> Duration {
    let (least, trips) = if young { (WINDOW_YOUNG, WINDOW_TRIPS_YOUNG) } else { (WINDOW_MIN, WINDOW_TRIPS) };
    least.max(Duration::from_micros(min_rtt_us) * trips).min(Duration::from_secs(3))
}

/// How long the parts of a window are of which the best is its [`Window::peak`]: a stream that waited a round trip for one lost
/// segment and then has all at once does not make much of it.
pub fn peak_length(min_rtt_us: u64) -> Duration {
    (Duration::from_micros(min_rtt_us) * 2).clamp(Duration::from_millis(300), Duration::from_secs(1))
}

/// What may be changed: what nobody has set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// The number of streams.
    pub streams: bool,
    /// Congestion control.
    pub control: bool,
    /// Chunks asked of a stream.
    pub depth: bool,
    /// Pacing.
    pub pacing: bool,
}

/// What is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knobs {
    /// Data streams.
    pub streams: u16,
    /// `None`: what the system or somebody has set.
    pub control: Option<Control>,
    /// Chunks asked of a stream.
    pub depth: u16,
    /// Bits per second over all streams.
    pub pacing: Option<u64>,
}

/// The kinds of trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Bbr,
    Cubic,
    MoreStreams,
    FewerStreams,
    Depth,
    Pacing,
    Raise,
}

#[derive(Debug, Clone)]
struct Trial {
    kind: Kind,
    before: Knobs,
    /// Bits per second before, and the share that was lost.
    rate: f64,
    lost: f64,
    why: String,
    /// What it has to bring, as a share of the rate before.
    pays: f64,
    /// How long it has run, and what the judging windows brought.
    ran: Duration,
    judged: u32,
    bytes: u64,
    ns: u64,
    sent: u64,
    resent: u64,
    /// The best of them, bits per second.
    best: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Rest {
    until: Duration,
    next: Duration,
    /// Below this rate what was tried would pay, bits per second.
    pays_below: f64,
}

/// One source's tuner.
#[derive(Debug, Clone)]
pub struct Tuner {
    free: Free,
    most: u16,
    /// What is in force.
    pub knobs: Knobs,
    trial: Option<Trial>,
    recent: VecDeque<Window>,
    rests: BTreeMap<Kind, Rest>,
    /// Time that was looked at.
    at: Duration,
    /// The least round trip, as the last window has it.
    trip: Duration,
    /// The rate that is thought to be had, bits per second, and windows in a row far below it.
    had: f64,
    fallen: u32,
    /// The most that arrived while a queue stood, since the path last changed, bits per second.
    full: Option<f64>,
    /// The same before the path changed last, and windows since then.
    changed: Option<(f64, u32)>,
    /// The next step up, and when.
    raise: f64,
    raise_at: Duration,
    /// What was tried, for the report.
    pub steps: Vec<String>,
}

fn mbit(rate: f64) -> String {
    crate::units::BitRate(rate as u64).to_string()
}

/// Sums of two of a window's figures; a peer's numbers may be anything.
fn sums<'a>(windows: impl Iterator<Item = &'a Window>, of: impl Fn(&Window) -> (u64, u64)) -> (u64, u64) {
    windows.map(of).fold((0, 0), |sum, next| (sum.0.saturating_add(next.0), sum.1.saturating_add(next.1)))
}

fn lost_of(sent: u64, resent: u64) -> f64 {
    if sent == 0 { 0.0 } else { resent as f64 / sent as f64 }
}

impl Tuner {
    /// Begins with what is in force. `most`: streams that both ends have buffers for, as far as is known.
    pub fn new(free: Free, knobs: Knobs, most: u16) -> Self {
        Self {
            free,
            most,
            knobs,
            trial: None,
            recent: VecDeque::new(),
            rests: BTreeMap::new(),
            at: Duration::ZERO,
            trip: Duration::ZERO,
            had: 0.0,
            fallen: 0,
            full: None,
            changed: None,
            raise: RAISE,
            raise_at: Duration::ZERO,
            steps: Vec::new(),
        }
    }

    /// Whether it has just begun and tried nothing yet: then windows are short.
    pub fn is_young(&self) -> bool {
        self.at < YOUNG.max(self.trip * YOUNG_TRIPS) && self.trial.is_none() && self.steps.is_empty()
    }

    /// Whether a window is long enough to be looked at.
    pub fn is_over(&self, window: &Window) -> bool {
        let (long, young) = (Duration::from_nanos(window.ns), self.is_young());
        let plainly = window.is(&[Limiter::Network]) && self.is_plain(window);
        long >= window_length(window.min_rtt_us, young) || plainly && long >= WINDOW_YOUNG
    }

    /// What people have set meanwhile is not touched any more.
    pub fn set(&mut self, streams: Option<u16>) {
        if let Some(count) = streams.filter(|count| self.free.streams || *count != self.knobs.streams) {
            self.disturbed();
            self.free.streams = false;
            self.knobs.streams = count;
        }
    }

    /// Something else has just changed what can be seen, as a transfer beside it or a cap: no trial is judged by it.
    pub fn disturbed(&mut self) {
        if let Some(trial) = self.trial.take() {
            self.knobs = trial.before;
        }
        self.recent.clear();
    }

    /// Takes the last window in, and decides; [`Tuner::knobs`] are what holds from here on.
    pub fn look(&mut self, window: &Window) {
        self.at += Duration::from_nanos(window.ns);
        if window.min_rtt_us == 0 {
            return;
        }
        if let Some(trial) = self.trial.take() {
            self.judge(trial, window);
            return;
        }
        self.trip = Duration::from_micros(window.min_rtt_us);
        self.notice(window);
        self.recent.push_back(*window);
        if self.recent.len() > KEPT {
            self.recent.pop_front();
        }
        if self.recent.len() >= AGREE || self.is_plain(window) {
            self.choose();
        }
    }

    /// Whether one window is reason enough: each round trip that losses hold a young transfer down is a good part of it.
    fn is_plain(&self, window: &Window) -> bool {
        let enough = window.resent >= LOST_PLAINLY * SEGMENT && lost_of(window.sent, window.resent) >= LOST_PLAIN_SHARE;
        self.is_young() && enough && !window.is_queued()
    }

    fn notice(&mut self, window: &Window) {
        let (rate, first) = (window.rate(), self.had == 0.0);
        self.fallen = if rate < FELL * self.had { self.fallen + 1 } else { 0 };
        self.changed = self.changed.map(|(full, windows)| (full, windows + 1)).filter(|(_, w)| *w < CHANGING);
        if self.fallen >= 2 {
            self.changed = Some((self.full.unwrap_or(self.had), 0));
            self.rests.clear();
            self.recent.clear();
            (self.had, self.fallen, self.full) = (rate, 0, None);
        }
        // The first window has the ramp in it.
        if window.is_queued() && (!first || window.peak > 0) {
            self.full = Some(self.full.map_or(window.best(), |full| full.max(window.best())));
        }
        // What is had rises at once and sinks slowly.
        self.had = if rate > self.had { rate } else { 0.9 * self.had + 0.1 * rate };
    }

    fn may(&self, kind: Kind) -> bool {
        let free = match kind {
            Kind::Bbr | Kind::Cubic => self.free.control,
            Kind::MoreStreams | Kind::FewerStreams => self.free.streams,
            Kind::Depth => self.free.depth,
            Kind::Pacing | Kind::Raise => self.free.pacing,
        };
        // At the end, when the last chunks come, less arrives whatever is done.
        let more = self.recent.back().is_some_and(|window| window.more);
        let pays = |rest: &Rest| more && rest.until < Duration::MAX && self.late_rate() < SURELY * rest.pays_below;
        let over = |rest: &Rest| rest.until <= self.at || pays(rest);
        free && self.rests.get(&kind).is_none_or(over)
    }

    /// Begins a trial, if there is a reason for one.
    fn choose(&mut self) {
        let last: Vec<Window> = self.recent.iter().rev().take(AGREE).copied().collect();
        let all = |test: &dyn Fn(&Window) -> bool| last.iter().all(test);
        let plain = self.is_plain(&last[0]);
        let network = all(&|w| w.is(&[Limiter::Network])) || plain && last[0].is(&[Limiter::Network]);
        // Since the last queue: what overflowed with it says nothing about the path.
        let clear = || self.recent.iter().rev().take_while(|w| !w.is_queued());
        let (sent, resent) = sums(clear(), |w| (w.sent, w.resent));
        let lost = lost_of(sent, resent);
        // One window is enough where the rate has fallen far below what the path has shown already.
        let fell = self.full.is_some_and(|full| last[0].rate() < SAGGED * full);
        let agree = if fell || plain { 1 } else { AGREE };
        let lossy = network && clear().count() >= agree && lost >= LOST_NOTED && resent >= LOST_SEGMENTS * SEGMENT;
        if last.len() < AGREE && !lossy {
            return;
        }
        let sinks = || {
            let left = last[0].left_by(lost) * f64::from(self.knobs.streams);
            let cubic = last[0].control == Some(Control::Cubic);
            cubic && left > 0.0 && resent >= LOST_PLAINLY * SEGMENT && self.late_rate() > ABOVE_LOSSES * left
        };
        let bbr = all(&|w| w.control == Some(Control::Bbr));
        let too_much =
            bbr && last.iter().any(Window::is_queued) && all(&|w| lost_of(w.sent, w.resent) >= LOST_TOO_MUCH);
        let windows = all(&|w| w.is(&[Limiter::SenderWindow, Limiter::ReceiverWindow]));
        let percent = |lost: f64| format!("{:.3} % lost", lost * 100.0);
        let (sent, resent) = sums(last.iter(), |w| (w.sent, w.resent));
        let full = format!("{} and the queue is full", percent(lost_of(sent, resent)));
        let more = self.knobs.streams.saturating_mul(2).min(self.most);
        let to = self.knobs;
        if lossy && !bbr && self.may(Kind::Bbr) {
            // Where the path is known to be full, BBR need not find out by filling its queue.
            let known = self.full.filter(|_| self.free.pacing && to.pacing.is_none());
            let pacing = known.map(|rate| ((PACED * rate) as u64).max(MIN_RATE)).or(to.pacing);
            let to = Knobs { control: Some(Control::Bbr), pacing, ..to };
            let ends_soon = self.is_young() || sinks();
            self.begin(Kind::Bbr, to, &format!("{} and no queue", percent(lost)));
            if ends_soon {
                self.trial.iter_mut().for_each(|trial| trial.pays = AS_FAST_AS_SLOW_START);
            }
        } else if let Some(full) = self.longer()
            && !bbr
            && self.may(Kind::Bbr)
        {
            // What the way before carried: as fast as that BBR may try to be.
            let pacing = Some(((PACED * full) as u64).max(MIN_RATE)).filter(|_| self.free.pacing).or(to.pacing);
            let to = Knobs { control: Some(Control::Bbr), pacing, ..to };
            self.begin(
                Kind::Bbr,
                to,
                &format!("{} and a round trip that stands still", percent(lost_of(sent, resent))),
            );
            self.trial.iter_mut().for_each(|trial| trial.pays = MUCH_FASTER);
        } else if too_much && self.may(Kind::Cubic) {
            let to = Knobs { control: Some(Control::Cubic), ..to };
            self.begin(Kind::Cubic, to, &full);
        } else if (windows || lossy && !bbr) && last[0].more && more > to.streams && self.may(Kind::MoreStreams) {
            let why = if windows { "windows are full".to_owned() } else { format!("{} and no queue", percent(lost)) };
            self.begin(Kind::MoreStreams, Knobs { streams: more, ..to }, &why);
        } else if too_much
            && to.pacing.is_none_or(|bits| self.late_rate() < COLLAPSED * bits as f64)
            && self.may(Kind::Pacing)
        {
            let pacing = Some(((PACED * self.late_rate()) as u64).max(MIN_RATE));
            self.begin(Kind::Pacing, Knobs { pacing, ..to }, &full);
        } else if all(&|w| w.is(&[Limiter::WaitingForData]) && w.more && self.is_shallow(w))
            && to.depth < DEPTH_MAX
            && self.may(Kind::Depth)
        {
            let depth = to.depth.saturating_mul(2).min(DEPTH_MAX);
            self.begin(Kind::Depth, Knobs { depth, ..to }, "streams had nothing asked of them");
        } else if let Some(bits) = to.pacing
            && self.at >= self.raise_at
            && all(&|w| w.reaches(bits))
            && self.may(Kind::Raise)
        {
            self.raise(bits);
        } else if self.recent.len() == KEPT
            && self.recent.iter().all(|w| w.is(&[Limiter::SourceCpu, Limiter::DestinationCpu]) && !w.is_queued())
            && to.streams > 2
            && self.may(Kind::FewerStreams)
        {
            self.begin(Kind::FewerStreams, Knobs { streams: to.streams / 2, ..to }, "a processor is full");
        }
    }

    /// Whether losses rather than a queue hold a path down that has become longer, see rule 1; what it carried before.
    fn longer(&self) -> Option<f64> {
        let full = self.changed.map(|(full, _)| full).or(self.full)?;
        let last = || self.recent.iter().rev().take(STILL);
        let (sent, resent) = sums(last(), |w| (w.sent, w.resent));
        let trips = || last().map(|w| w.rtt_us);
        let (shortest, longest) = (trips().min()?, trips().max()?);
        let still = last().count() == STILL && longest as f64 <= STANDS * shortest as f64;
        let lossy = lost_of(sent, resent) >= LOST_NOTED && last().filter(|w| w.resent > 0).count() * 2 > STILL;
        let network = last().all(|w| w.is(&[Limiter::Network]) && w.is_queued());
        (still && lossy && network && last().all(|w| w.rate() * MUCH_FASTER < full)).then_some(full)
    }

    fn raise(&mut self, bits: u64) {
        let pacing = Some((bits as f64 * (1.0 + self.raise)) as u64);
        self.begin(Kind::Raise, Knobs { pacing, ..self.knobs }, "all of it arrives without a queue");
    }

    /// Whether so little is asked for that streams stand idle for a round trip each time: an idle share of [`REASON`] means
    /// that what is asked for is at most rate by round trip through it.
    fn is_shallow(&self, window: &Window) -> bool {
        let asked = u64::from(self.knobs.streams) * u64::from(self.knobs.depth) * CHUNK_SIZE;
        let in_a_trip = window.rate() / 8.0 * window.rtt_us.max(window.min_rtt_us) as f64 / 1e6;
        asked as f64 <= in_a_trip / REASON
    }

    fn late_rate(&self) -> f64 {
        let (bytes, ns) = sums(self.recent.iter().rev().take(AGREE), |w| (w.bytes, w.ns));
        bytes as f64 * 8e9 / ns.max(1) as f64
    }

    fn begin(&mut self, kind: Kind, to: Knobs, why: &str) {
        let (sent, resent) = sums(self.recent.iter().rev().take(AGREE), |w| (w.sent, w.resent));
        let pays = match kind {
            Kind::Bbr | Kind::Depth => FASTER,
            Kind::Raise => 1.0 + RAISE_PAYS * self.raise,
            Kind::MoreStreams => STREAMS_PAY,
            Kind::FewerStreams => 1.0,
            Kind::Cubic | Kind::Pacing => AS_FAST,
        };
        let best = self.recent.iter().rev().take(AGREE).map(Window::rate).fold(0.0, f64::max);
        self.trial = Some(Trial {
            kind,
            before: self.knobs,
            // BBR stops every ten seconds to see the least round trip, all streams at the same time: of few windows the best
            // tells what a step up did.
            rate: if kind == Kind::Raise { best } else { self.late_rate() },
            lost: lost_of(sent, resent),
            why: why.to_owned(),
            pays,
            ran: Duration::ZERO,
            judged: 0,
            bytes: 0,
            ns: 0,
            sent: 0,
            resent: 0,
            best: 0.0,
        });
        tracing::info!(?kind, ?to, why, "tuner: trial");
        self.knobs = to;
        self.recent.clear();
    }

    fn judge(&mut self, mut trial: Trial, window: &Window) {
        trial.ran += Duration::from_nanos(window.ns);
        let trips = Duration::from_micros(window.min_rtt_us) * SETTLE_TRIPS;
        let settle = trips.clamp(SETTLE_MIN, SETTLE_MAX);
        let missing = match trial.kind {
            Kind::Bbr => window.control != Some(Control::Bbr),
            Kind::Cubic => window.control != Some(Control::Cubic),
            _ => false,
        };
        // Slow beginnings are looked at once a round trip has passed, and only where nothing had to be dialled.
        let collapsed =
            matches!(trial.kind, Kind::Cubic | Kind::Pacing | Kind::Raise) && window.rate() < COLLAPSED * trial.rate;
        if missing {
            return self.undo(trial, "is not to be had at the source", true);
        }
        if collapsed {
            let told = format!("{} instead of {}", mbit(window.rate()), mbit(trial.rate));
            return self.undo(trial, &told, false);
        }
        if trial.ran > settle {
            trial.judged += 1;
            trial.best = trial.best.max(window.rate());
            let (bytes, ns) = (trial.bytes.saturating_add(window.bytes), trial.ns.saturating_add(window.ns));
            (trial.bytes, trial.ns) = (bytes, ns);
            let (sent, resent) = (trial.sent.saturating_add(window.sent), trial.resent.saturating_add(window.resent));
            (trial.sent, trial.resent) = (sent, resent);
        }
        if trial.judged < JUDGES {
            self.trial = Some(trial);
            return;
        }
        let mean = trial.bytes as f64 * 8e9 / trial.ns.max(1) as f64;
        let rate = if trial.kind == Kind::Raise { trial.best } else { mean };
        let lost = lost_of(trial.sent, trial.resent);
        let for_less_loss = matches!(trial.kind, Kind::Cubic | Kind::Pacing);
        let pays = rate >= trial.pays * trial.rate && (!for_less_loss || lost <= trial.lost / 2.0);
        let told = format!("{} before, {} with it", mbit(trial.rate), mbit(rate));
        if !pays {
            let (kind, worth) = (trial.kind, if for_less_loss { 0.0 } else { rate / trial.pays });
            self.undo(trial, &told, false);
            self.rests.entry(kind).and_modify(|rest| rest.pays_below = worth);
            return;
        }
        match trial.kind {
            // Above what the path carries: what arrived is what it carries.
            Kind::Raise if lost >= LOST_TOO_MUCH => {
                self.knobs.pacing = Some(((PACED * mean) as u64).max(MIN_RATE));
                self.hold_pacing();
            }
            Kind::Raise => self.raise = (2.0 * self.raise).clamp(RAISE_MORE, RAISE_MAX),
            Kind::Pacing => self.hold_pacing(),
            _ => {}
        }
        // What paid may be done again at once.
        self.rests.remove(&trial.kind);
        // One that has beaten the other is not replaced by it, as long as the path is the same.
        let other = match trial.kind {
            Kind::Bbr => Some(Kind::Cubic),
            Kind::Cubic => Some(Kind::Bbr),
            _ => None,
        };
        if let Some(kind) = other {
            self.rest(kind, true);
        }
        self.had = rate;
        self.step(&trial, "kept", &told);
        // A step up that paid is followed by the next at once.
        if let (Kind::Raise, Some(bits)) = (trial.kind, self.knobs.pacing)
            && self.at >= self.raise_at
            && window.reaches(bits)
        {
            self.recent.push_back(*window);
            self.raise(bits);
        }
    }

    fn undo(&mut self, trial: Trial, told: &str, for_good: bool) {
        self.knobs = trial.before;
        match trial.kind {
            Kind::Raise => self.hold_pacing(),
            kind => self.rest(kind, for_good),
        }
        self.step(&trial, "taken back", told);
    }

    fn hold_pacing(&mut self) {
        (self.raise, self.raise_at) = (RAISE, self.at + PACED_FOR);
    }

    fn rest(&mut self, kind: Kind, for_good: bool) {
        let at = self.at;
        let rest = self.rests.entry(kind).or_default();
        let length = rest.next.clamp(REST, REST_MAX);
        rest.pays_below = 0.0;
        rest.until = if for_good { Duration::MAX } else { at + length };
        rest.next = (2 * length).min(REST_MAX);
    }

    fn step(&mut self, trial: &Trial, verdict: &str, told: &str) {
        let what = match trial.kind {
            Kind::Bbr if self.knobs.pacing != trial.before.pacing && verdict == "kept" => "bbr, paced".to_owned(),
            Kind::Bbr => "bbr".to_owned(),
            Kind::Cubic => "cubic".to_owned(),
            Kind::MoreStreams => format!("{} streams", trial.before.streams.saturating_mul(2).min(self.most)),
            Kind::FewerStreams => format!("{} streams", trial.before.streams / 2),
            Kind::Depth => "more chunks asked of each stream".to_owned(),
            Kind::Pacing => "pacing to what arrives".to_owned(),
            Kind::Raise => "a faster pacing".to_owned(),
        };
        let line = format!("tuned: {what}, because {} ({told}): {verdict}", trial.why);
        tracing::info!("{line}");
        if self.steps.len() < STEPS_TOLD {
            self.steps.push(line);
        }
    }
}

#[cfg(test)]
mod recorded;
#[cfg(test)]
mod tests;
