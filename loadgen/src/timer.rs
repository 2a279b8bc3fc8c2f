//! Waiting to the microsecond on monoio, whose own timers count whole milliseconds.
//!
//! A timerfd read through the ring wakes the worker some tens of microseconds late; so the wait ends early and the rest is spent
//! yielding, which lets the connections of this worker go on. Without io_uring a file read would block the thread: there monoio's
//! timer carries the coarse part.

use std::cell::Cell;
use std::fs::File;
use std::future::Future;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// A yield that took less than this found nothing else to do.
const IDLE_TURN: Duration = Duration::from_micros(5);

pub(crate) struct Timer {
    descriptor: Option<(OwnedFd, monoio::fs::File)>,
    buffer: Vec<u8>,
    /// Time that went into yielding with nothing to do, in nanoseconds.
    spun: Rc<Cell<u64>>,
    turns: Rc<Turns>,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.turns.end();
    }
}

impl Timer {
    /// In a runtime of monoio.
    pub(crate) fn new(spun: &Rc<Cell<u64>>) -> io::Result<Timer> {
        let descriptor = if monoio::utils::detect_uring() {
            let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
            let file = monoio::fs::File::from_std(File::from(timer.try_clone()?))?;
            Some((timer, file))
        } else {
            None
        };
        Ok(Timer { descriptor, buffer: vec![0; 8], spun: Rc::clone(spun), turns: Turns::start() })
    }

    /// Sleeps for about `duration`, some tens of microseconds longer.
    pub(crate) async fn sleep(&mut self, duration: Duration) {
        let Some((timer, file)) = &self.descriptor else {
            // monoio rounds up to its next millisecond; a shorter wait is left to the caller's yielding.
            match duration.checked_sub(Duration::from_millis(2)) {
                Some(coarse) => monoio::time::sleep(coarse).await,
                None => self.turn().await,
            }
            return;
        };
        if !arm(timer, duration) {
            return self.turn().await;
        }
        let (_, buffer) = file.read_at(std::mem::take(&mut self.buffer), 0).await;
        self.buffer = buffer;
    }

    /// Lets the other tasks of this worker run that are ready.
    pub(crate) async fn turn(&self) {
        let before = Instant::now();
        Yield { turns: &self.turns, has_waited: false }.await;
        let took = before.elapsed();
        if took < IDLE_TURN {
            self.spun.set(self.spun.get() + took.as_nanos() as u64);
        }
    }
}

/// Makes `timer` readable once, in `duration`, whatever it was set to before.
pub(crate) fn arm(timer: &OwnedFd, duration: Duration) -> bool {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    // A value of nothing at all would disarm it.
    let nanoseconds = i64::from(duration.subsec_nanos().max(1));
    let once = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    };
    rustix::time::timerfd_settime(timer, TimerfdTimerFlags::empty(), &once).is_ok()
}

/// Has whoever yields run again behind all others that are ready.
///
/// A task of monoio that wakes itself stands first in the queue again, and the others never have their turn; one that another task
/// wakes stands last. So a task that does nothing else wakes the one that yields.
#[derive(Default)]
struct Turns {
    yielding: Cell<Option<Waker>>,
    task: Cell<Option<Waker>>,
    is_over: Cell<bool>,
}

impl Turns {
    fn start() -> Rc<Turns> {
        let turns = Rc::new(Turns::default());
        let own = Rc::clone(&turns);
        monoio::spawn(poll_fn(move |context| {
            if own.is_over.get() {
                return Poll::Ready(());
            }
            if let Some(yielding) = own.yielding.take() {
                yielding.wake();
            }
            own.task.set(Some(context.waker().clone()));
            Poll::Pending
        }));
        turns
    }

    fn end(&self) {
        self.is_over.set(true);
        self.wake();
    }

    /// Where the task has not run yet, it is ready already.
    fn wake(&self) {
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }
}

/// Pending once.
struct Yield<'t> {
    turns: &'t Turns,
    has_waited: bool,
}

impl Future for Yield<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.has_waited, true) {
            return Poll::Ready(());
        }
        self.turns.yielding.set(Some(context.waker().clone()));
        self.turns.wake();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wait with yielding must not keep others from running, whenever they become ready.
    #[test]
    fn others_run_while_one_yields() {
        crate::runtime::start().unwrap().block_on(async {
            let seen = Rc::new(Cell::new(0));
            let timer = Timer::new(&Rc::default()).unwrap();
            let counting = Rc::clone(&seen);
            let other = monoio::spawn(async move {
                let own = Timer::new(&Rc::default()).unwrap();
                for _ in 0..1000 {
                    own.turn().await;
                    counting.set(counting.get() + 1);
                }
            });
            let mut turns = 0;
            while seen.get() < 1000 {
                timer.turn().await;
                turns += 1;
                assert!(turns < 100_000, "the other task ran {} times", seen.get());
            }
            other.await;
        });
    }
}
