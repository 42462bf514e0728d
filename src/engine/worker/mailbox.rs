//! Bridge 2, coordinator to worker and back: a bounded lock-free queue and an eventfd, messages in batches.

use crate::sys::Waker;
use crossbeam::queue::{ArrayQueue, SegQueue};
use std::sync::atomic::{AtomicBool, Ordering};

/// Messages that fit before the overflow list is used. A message stands for a chunk or a pack, so this is gigabytes.
const CAPACITY: usize = 8192;

/// One direction of the bridge. Any thread may send, one thread takes.
#[derive(Debug)]
pub struct Mailbox<T> {
    queue: ArrayQueue<T>,
    /// Takes what does not fit: unbounded, and only ever used when the taker has stalled.
    overflow: SegQueue<T>,
    overflowing: AtomicBool,
    waker: Waker,
}

impl<T> Mailbox<T> {
    /// A box whose taker sleeps on `waker`.
    pub fn new(waker: Waker) -> Self {
        Self { queue: ArrayQueue::new(CAPACITY), overflow: SegQueue::new(), overflowing: AtomicBool::new(false), waker }
    }

    fn put(&self, message: T) {
        // Once something overflowed, what follows goes there too until it is drained, so that one sender's messages
        // keep their order.
        if self.overflowing.load(Ordering::Acquire) {
            self.overflow.push(message);
        } else if let Err(message) = self.queue.push(message) {
            self.overflowing.store(true, Ordering::Release);
            self.overflow.push(message);
        }
    }

    /// Sends one message and wakes the taker.
    pub fn send(&self, message: T) {
        self.put(message);
        self.waker.wake();
    }

    /// Sends a batch with one wake.
    pub fn send_all(&self, messages: &mut Vec<T>) {
        if messages.is_empty() {
            return;
        }
        messages.drain(..).for_each(|m| self.put(m));
        self.waker.wake();
    }

    /// The next message, if there is one.
    pub fn take(&self) -> Option<T> {
        self.queue.pop().or_else(|| {
            if !self.overflowing.load(Ordering::Acquire) {
                return None;
            }
            let message = self.overflow.pop();
            if message.is_none() {
                self.overflowing.store(false, Ordering::Release);
            }
            message
        })
    }
}
