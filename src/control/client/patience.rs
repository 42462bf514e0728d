//! What a client does about an agent that has no place for it right now: it waits, says so, and asks again.

use crate::control::state;
use crate::engine::error::TransferError;
use hyper::Method;
use std::time::Duration;
use tokio::time::Instant;

/// About the first pause; each next one is twice as long.
const FIRST: Duration = Duration::from_millis(100);
/// About the longest pause.
const LONGEST: Duration = Duration::from_secs(5);
/// What an agent asks for as a pause is heeded up to here.
const HEEDED: Duration = Duration::from_secs(30);
/// How long a port that has never answered but closes connections is tried: it is some other port as likely as not.
const UNMET: Duration = Duration::from_secs(3);
/// Between two words about one wait.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// How long a client waits for an agent that is at its limit of connections or transfers. For commands: who has a queue of its
/// own goes on with something else instead.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For one request, in all.
    pub longest: Duration,
    /// Hears what is waited for, when a wait begins and every 30 s.
    pub say: fn(&str),
}

/// Whether a request that had no result may have one later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// No.
    No,
    /// The agent is full, did nothing, and asks for this pause.
    Full(Duration),
    /// The connection was closed before an answer came, as an agent does that is full and has no time to say so.
    Cut,
}

/// A request that had no result.
#[derive(Debug)]
pub(super) struct Failed {
    pub error: TransferError,
    pub again: Again,
}

impl From<TransferError> for Failed {
    fn from(error: TransferError) -> Self {
        Self { error, again: Again::No }
    }
}

impl From<Failed> for TransferError {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

/// Whether asking twice is as good as once. An agent knows a transfer that is placed twice by its tickets; a ticket that nobody
/// has received ends by itself.
pub(super) fn may_repeat(method: &Method, path: &str) -> bool {
    *method == Method::GET || (*method == Method::POST && (path == "/v1/tickets" || path == "/v1/transfers"))
}

/// The pauses of one request.
#[derive(Debug)]
pub(super) struct Wait {
    patience: Patience,
    repeat: bool,
    began: Instant,
    said: Option<Instant>,
    pause: Duration,
}

impl Wait {
    /// `repeat`: see [`may_repeat`].
    pub(super) fn new(patience: Patience, repeat: bool) -> Self {
        Self { patience, repeat, began: Instant::now(), said: None, pause: FIRST }
    }

    /// Waits, if there is to be another try. `met`: the peer has answered before.
    pub(super) async fn again(&mut self, failed: &Failed, met: bool) -> bool {
        let (least, longest) = match failed.again {
            Again::Full(least) => (least.min(HEEDED), self.patience.longest),
            Again::Cut if self.repeat && met => (Duration::ZERO, self.patience.longest),
            Again::Cut if self.repeat => (Duration::ZERO, self.patience.longest.min(UNMET)),
            Again::Cut | Again::No => return false,
        };
        let pause = least + self.pause.mul_f64(jitter());
        if self.began.elapsed() + pause > longest {
            return false;
        }
        // A port that only closes connections may be none of an agent: not worth a word yet.
        if (met || failed.again != Again::Cut) && self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.said = Some(Instant::now());
            let left = (longest - self.began.elapsed()).as_secs();
            (self.patience.say)(&format!("waiting up to {left} s more, as the other end is busy: {}", failed.error));
        }
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(LONGEST);
        true
    }

    /// For a report, if it was long enough to matter.
    pub(super) fn note(&self, who: &str) -> Option<String> {
        let waited = self.began.elapsed().as_secs();
        (self.said.is_some() && waited > 0).then(|| format!("{who}: busy, waited {waited} s for a place"))
    }
}

/// 0.5 to 1.5: who was turned away together does not come back together.
fn jitter() -> f64 {
    let random = state::random::<2>().map_or(1 << 15, u16::from_le_bytes);
    0.5 + f64::from(random) / f64::from(u16::MAX)
}
