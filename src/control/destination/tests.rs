//! The durable half: what is kept, in which order it is begun, and what a restart finds.

use super::queue::{BIG, Counts, GROUP, Queue};
use crate::control::model::item::{AgentEndpoint, Assignment, FailureClass};
use crate::control::model::name::{ItemId, Lfn, RequestId, SessionKey};
use crate::control::model::request::Model;
use crate::control::model::states::ItemEvent;
use crate::control::model::time::Time;
use crate::engine::spec::IfExists;
use std::collections::HashSet;
use tempfile::TempDir;

fn assignment(request: RequestId, path: &str, priority: u8, bytes: u64) -> Assignment {
    let end = |name: &str| AgentEndpoint { name: name.parse().unwrap(), url: "lh://h".to_owned(), fingerprint: None };
    let path: Lfn = path.parse().unwrap();
    Assignment {
        item: ItemId::new(),
        request,
        epoch: 1,
        lfn: path.clone(),
        source_path: path.clone(),
        path,
        bytes: Some(bytes),
        digest: None,
        model: Model::Pull,
        source: end("src"),
        destination: end("dst"),
        priority,
        max_rate: None,
        if_exists: IfExists::Prove,
        verify: None,
        hold_until: Time(i64::MAX),
        block: None,
        dataset: None,
    }
}

struct Kept {
    dir: TempDir,
    queue: Queue,
}

impl Kept {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(&dir.path().join("queue.db")).unwrap();
        Self { dir, queue }
    }

    /// As a process finds it that comes after one that was killed.
    fn again(&mut self) {
        self.queue = Queue::open(&self.dir.path().join("queue.db")).unwrap();
    }

    fn take(&self, seq: u64, assignments: &[Assignment]) {
        self.queue.accept(seq, "pull", assignments).unwrap();
    }

    /// The source says that all of it is there.
    fn all_ready(&self) {
        while let Some((_, works)) = self.queue.due(&HashSet::new()).unwrap() {
            let keys: Vec<_> = works.iter().map(|w| (w.assignment.item, w.assignment.epoch)).collect();
            self.queue.ready(&keys, &[]).unwrap();
        }
    }

    /// What begins next; its paths.
    fn begin(&self, busy: impl Fn(&Assignment, bool) -> bool) -> Vec<String> {
        let batch = self.queue.start(busy).unwrap();
        batch.map(|b| b.works.iter().map(|w| w.assignment.path.to_string()).collect()).unwrap_or_default()
    }

    fn told(&self) -> Vec<(ItemId, ItemEvent)> {
        self.queue.untold(10_000).unwrap().into_iter().map(|(_, report)| (report.item, report.event)).collect()
    }
}

fn free(_: &Assignment, _: bool) -> bool {
    false
}

#[test]
fn what_was_taken_in_outlives_the_process_and_a_claim_counts_once() {
    let mut kept = Kept::new();
    let request = RequestId::new();
    let (a, b) = (assignment(request, "/d/a", 3, 10), assignment(request, "/e/b", 3, 10));
    assert_eq!(kept.queue.next_claim().unwrap(), 1);
    kept.take(1, &[a.clone(), b.clone()]);
    kept.again();
    assert_eq!(kept.queue.next_claim().unwrap(), 2, "the answer to 1 is here");
    let mut items = kept.queue.items().unwrap();
    items.sort();
    assert_eq!(items, [a.item, b.item]);
    // The same again changes nothing, not even of what has begun; a later claim begins anew, an older one never.
    kept.all_ready();
    assert_eq!(kept.begin(free), ["/d/a"]);
    kept.take(1, &[a.clone()]);
    assert_eq!(kept.queue.counts().unwrap(), Counts { queued: 1, holding: 0, running: 1 });
    let later = Assignment { epoch: 5, ..a.clone() };
    kept.take(2, &[later.clone()]);
    kept.take(3, &[Assignment { epoch: 4, ..a.clone() }]);
    let (_, works) = kept.queue.due(&HashSet::new()).unwrap().unwrap();
    assert_eq!((works[0].assignment.epoch, works[0].started), (5, true), "it had begun here before");
    // What the older claim says at its end is nothing.
    let before = kept.told().len();
    kept.queue
        .finish(&[super::queue::Work { assignment: a, started: true, held: None }.report(ItemEvent::Complete)])
        .unwrap();
    assert_eq!((kept.told().len(), kept.queue.counts().unwrap().queued), (before, 2));
}

/// A hold is a row: it is asked about when its time has come, also by the next process, and is told once.
#[test]
fn holds_outlive_the_process() {
    let mut kept = Kept::new();
    let a = assignment(RequestId::new(), "/d/a", 3, 10);
    kept.take(1, std::slice::from_ref(&a));
    let (peer, works) = kept.queue.due(&HashSet::new()).unwrap().unwrap();
    assert_eq!(peer, "pull src");
    assert!(kept.queue.due(&HashSet::from([peer])).unwrap().is_none(), "nobody is asked twice at once");
    kept.queue.hold(&works, Time::now().plus_secs(360), None, 360).unwrap();
    kept.again();
    assert!(kept.queue.due(&HashSet::new()).unwrap().is_none());
    assert_eq!(kept.queue.counts().unwrap(), Counts { queued: 0, holding: 1, running: 0 });
    let wait = kept.queue.next_due().unwrap().unwrap();
    assert!((300_000..=360_000).contains(&wait), "{wait}");
    assert_eq!(kept.told(), [(a.item, ItemEvent::Hold)]);
    // A clock that was set back by an hour holds nothing for an hour.
    kept.queue.hold(&works, Time::now().plus_secs(3600 + 360), None, 360).unwrap();
    assert_eq!(kept.queue.due(&HashSet::new()).unwrap().map(|(_, works)| works.len()), Some(1));
    assert_eq!(kept.told().len(), 2);
    kept.queue.told(&[2]).unwrap();
    // Held again, main knows already.
    let works: Vec<_> = works.into_iter().map(|w| super::queue::Work { held: Some(Time::now()), ..w }).collect();
    kept.queue.hold(&works, Time::now(), None, 1).unwrap();
    let (_, due) = kept.queue.due(&HashSet::new()).unwrap().unwrap();
    assert!(due[0].held.is_some());
    kept.queue.ready(&[(a.item, 1)], &[due[0].report(ItemEvent::Ready)]).unwrap();
    assert_eq!(kept.told(), [(a.item, ItemEvent::Hold), (a.item, ItemEvent::Ready)]);
}

#[test]
fn a_peer_that_is_away_is_not_asked_before_its_time() {
    let kept = Kept::new();
    let a = assignment(RequestId::new(), "/d/a", 3, 10);
    let b = Assignment {
        source: AgentEndpoint { name: "other".parse().unwrap(), ..a.source.clone() },
        ..assignment(RequestId::new(), "/d/b", 3, 10)
    };
    kept.take(1, &[a, b]);
    kept.queue.peer_away("pull src", Time::now().plus_secs(60)).unwrap();
    let (peer, works) = kept.queue.due(&HashSet::new()).unwrap().unwrap();
    assert_eq!((peer.as_str(), works.len()), ("pull other", 1));
    assert!(kept.queue.due(&HashSet::from([peer])).unwrap().is_none());
}

/// Priority first, whatever the age; within one, requests take turns, so that a large one does not stop a small one.
#[test]
fn the_order_is_priority_then_turns() {
    let kept = Kept::new();
    let (large, small, urgent) = (RequestId::new(), RequestId::new(), RequestId::new());
    let mut all: Vec<_> = (0..4).map(|n| assignment(large, &format!("/l/{n}"), 3, BIG)).collect();
    all.extend((0..2).map(|n| assignment(small, &format!("/s/{n}"), 3, BIG)));
    all.push(assignment(urgent, "/u/0", 9, BIG));
    kept.take(1, &all);
    kept.all_ready();
    let order: Vec<_> = (0..7).flat_map(|_| kept.begin(free)).collect();
    assert_eq!(order, ["/u/0", "/l/0", "/s/0", "/l/1", "/s/1", "/l/2", "/l/3"]);
    assert!(kept.begin(free).is_empty());
}

/// Small files of one directory travel together, big ones and those of other directories or requests by themselves; what may
/// not run now does not hold up what may.
#[test]
fn small_files_of_a_directory_are_one_transfer() {
    let kept = Kept::new();
    let request = RequestId::new();
    let mut all: Vec<_> = (0..3).map(|n| assignment(request, &format!("/d/{n}"), 3, 10)).collect();
    all.push(assignment(request, "/d/big", 3, BIG));
    all.push(assignment(request, "/e/0", 3, 10));
    all.push(assignment(RequestId::new(), "/d/other", 3, 10));
    all.push(Assignment { bytes: None, ..assignment(request, "/d/unknown", 3, 0) });
    kept.take(1, &all);
    kept.all_ready();
    let in_d = |a: &Assignment, _: bool| a.path.as_str().starts_with("/d/");
    assert_eq!(kept.begin(in_d), ["/e/0"]);
    assert!(kept.begin(in_d).is_empty());
    let mut rest: Vec<_> = (0..4).map(|_| kept.begin(free)).collect();
    rest.sort();
    assert_eq!(rest, [vec!["/d/0", "/d/1", "/d/2"], vec!["/d/big"], vec!["/d/other"], vec!["/d/unknown"]]);
    let many = RequestId::new();
    let all: Vec<_> = (0..GROUP + 5).map(|n| assignment(many, &format!("/m/{n:04}"), 3, 10)).collect();
    kept.take(2, &all[..1000]);
    kept.take(3, &all[1000..]);
    kept.all_ready();
    assert_eq!((kept.begin(free).len(), kept.begin(free).len()), (GROUP as usize, 5));
}

/// Whoever was killed goes on with the same files together, so that it is the same transfer, before anything new.
#[test]
fn a_group_that_was_cut_off_is_begun_as_it_was() {
    let mut kept = Kept::new();
    let request = RequestId::new();
    let first: Vec<_> = (0..3).map(|n| assignment(request, &format!("/d/{n}"), 3, 10)).collect();
    kept.take(1, &first);
    kept.all_ready();
    assert_eq!(kept.begin(free).len(), 3);
    kept.take(2, &(3..6).map(|n| assignment(request, &format!("/d/{n}"), 3, 10)).collect::<Vec<_>>());
    kept.again();
    kept.all_ready();
    let batch = kept.queue.start(free).unwrap().unwrap();
    let paths: Vec<_> = batch.works.iter().map(|w| w.assignment.path.as_str()).collect();
    assert_eq!(paths, ["/d/0", "/d/1", "/d/2"]);
    assert!(batch.group && batch.works.iter().all(|w| w.started));
    // One of them is taken away: what is left is still a group, with its directory's lock.
    kept.queue.forget(&[(first[0].item, 1), (first[1].item, 1)]).unwrap();
    kept.queue.again(&[(first[2].item, 1)]).unwrap();
    let batch = kept.queue.start(free).unwrap().unwrap();
    assert!(batch.group && batch.works.len() == 1);
    assert_eq!(kept.begin(free), ["/d/3", "/d/4", "/d/5"]);
}

#[test]
fn a_cancel_ends_what_does_not_run_and_says_so() {
    let kept = Kept::new();
    let request = RequestId::new();
    let all: Vec<_> = (0..3).map(|n| assignment(request, &format!("/d/{n}"), 3, BIG)).collect();
    kept.take(1, &all);
    kept.all_ready();
    assert_eq!(kept.begin(free), ["/d/0"]);
    kept.queue.cancel(&all.iter().map(|a| a.item).collect::<Vec<_>>()).unwrap();
    let cancelled = |told: Vec<(ItemId, ItemEvent)>| -> Vec<ItemId> {
        told.into_iter().filter(|(_, event)| *event == ItemEvent::Cancel).map(|(item, _)| item).collect()
    };
    assert_eq!(cancelled(kept.told()), [all[1].item, all[2].item]);
    assert_eq!(kept.queue.counts().unwrap(), Counts { queued: 0, holding: 0, running: 1 });
}

/// Reports are told until main has taken them, in their order, and items that are done but not told are still ours.
#[test]
fn reports_outlive_the_process() {
    let mut kept = Kept::new();
    let request = RequestId::new();
    let all: Vec<_> = (0..2).map(|n| assignment(request, &format!("/d/{n}"), 3, BIG)).collect();
    kept.take(1, &all);
    kept.all_ready();
    let one = kept.queue.start(free).unwrap().unwrap().works.remove(0);
    kept.queue.finish(&[one.report(ItemEvent::Complete)]).unwrap();
    kept.again();
    assert_eq!(kept.told(), [(all[0].item, ItemEvent::Start), (all[0].item, ItemEvent::Complete)]);
    assert_eq!(kept.queue.items().unwrap().len(), 2);
    // A new session: main says what is still ours. A report that waits is told whatever it says.
    let session = SessionKey::new();
    kept.queue.begin_session(session, &[all[0].item]).unwrap();
    assert_eq!(kept.queue.session().unwrap(), Some(session));
    assert_eq!(kept.queue.counts().unwrap(), Counts::default());
    let seqs: Vec<i64> = kept.queue.untold(1).unwrap().iter().map(|(seq, _)| *seq).collect();
    kept.queue.told(&seqs).unwrap();
    assert_eq!(kept.told(), [(all[0].item, ItemEvent::Complete)]);
    let back = one.requeue(Some(FailureClass::Transient), "x".repeat(5000), Some(7));
    assert_eq!((back.reason.map(|r| r.len()), back.retry_after_secs), (Some(1000), Some(7)));
}
