//! Delays that are kept to some tens of microseconds, for any number of replies at once: one timerfd for all of a thread.
//!
//! monoio's own timers count whole milliseconds; they stand in where there is no io_uring.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Instant;

use rustix::time::{TimerfdClockId, TimerfdFlags};

use crate::timer::arm;

#[derive(Default)]
struct State {
    sleepers: BinaryHeap<Sleeper>,
    /// Of the task that wakes them, while there are none.
    idle: Option<Waker>,
}

/// Who sleeps until when; the earliest is the greatest, as a heap gives it first.
struct Sleeper {
    at: Instant,
    waker: Waker,
}

impl PartialEq for Sleeper {
    fn eq(&self, other: &Sleeper) -> bool {
        self.at == other.at
    }
}

impl Eq for Sleeper {}

impl PartialOrd for Sleeper {
    fn partial_cmp(&self, other: &Sleeper) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Sleeper {
    fn cmp(&self, other: &Sleeper) -> Ordering {
        other.at.cmp(&self.at)
    }
}

pub(super) struct Clock(Option<Rc<(OwnedFd, RefCell<State>)>>);

impl Clock {
    /// Starts the task that wakes; in a runtime of monoio.
    pub(super) fn start() -> io::Result<Clock> {
        if !monoio::utils::detect_uring() {
            return Ok(Clock(None));
        }
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let file = monoio::fs::File::from_std(File::from(timer.try_clone()?))?;
        let shared = Rc::new((timer, RefCell::<State>::default()));
        monoio::spawn(wake(Rc::clone(&shared), file));
        Ok(Clock(Some(shared)))
    }

    pub(super) async fn sleep_until(&self, at: Instant) {
        let Some(shared) = &self.0 else {
            return monoio::time::sleep_until(monoio::time::Instant::from_std(at)).await;
        };
        let (timer, state) = &**shared;
        let mut is_queued = false;
        poll_fn(|context| {
            let now = Instant::now();
            if now >= at {
                return Poll::Ready(());
            }
            if !std::mem::replace(&mut is_queued, true) {
                let mut state = state.borrow_mut();
                let is_first = state.sleepers.peek().is_none_or(|first| at < first.at);
                state.sleepers.push(Sleeper { at, waker: context.waker().clone() });
                if let Some(idle) = state.idle.take() {
                    idle.wake();
                } else if is_first {
                    arm(timer, at - now);
                }
            }
            Poll::Pending
        })
        .await;
    }
}

async fn wake(shared: Rc<(OwnedFd, RefCell<State>)>, file: monoio::fs::File) {
    let (timer, state) = &*shared;
    let mut buffer = vec![0; 8];
    loop {
        let next = poll_fn(|context| {
            let mut state = state.borrow_mut();
            match state.sleepers.peek() {
                Some(first) => Poll::Ready(first.at),
                None => {
                    state.idle = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        arm(timer, next.saturating_duration_since(Instant::now()));
        (_, buffer) = file.read_at(buffer, 0).await;
        let now = Instant::now();
        let mut state = state.borrow_mut();
        while state.sleepers.peek().is_some_and(|first| first.at <= now) {
            if let Some(sleeper) = state.sleepers.pop() {
                sleeper.waker.wake();
            }
        }
    }
}
