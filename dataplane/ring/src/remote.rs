//! Waking a ring from other threads.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::executor::TaskName;
use crate::sys;

/// Wakes a ring from any thread; cheap to clone.
#[derive(Clone)]
pub struct RemoteWake {
    mailbox: Arc<Mailbox>,
}

impl RemoteWake {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox }
    }

    /// Interrupts the ring's wait and completes `Ring::remote_woken`.
    pub fn wake(&self) {
        self.mailbox.called.store(true, Ordering::Release);
        self.mailbox.ring_the_bell();
    }
}

impl fmt::Debug for RemoteWake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RemoteWake")
    }
}

/// Tells another thread whether a worker is stuck in a task.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// When the turn that is running began, in nanoseconds of the monotonic clock; zero while the worker waits.
    pub(crate) turn_began: Arc<AtomicU64>,
}

impl Heartbeat {
    /// How long the running turn has lasted; `None` while the worker waits for work.
    pub fn busy_for(&self) -> Option<Duration> {
        match self.turn_began.load(Ordering::Relaxed) {
            0 => None,
            began => Some(Duration::from_nanos(sys::monotonic_nanos().saturating_sub(began))),
        }
    }

    /// When the running turn began, in nanoseconds of the monotonic clock; zero while the worker waits.
    pub fn turn_began_nanos(&self) -> u64 {
        self.turn_began.load(Ordering::Relaxed)
    }
}

/// Where other threads leave what a ring must see.
pub(crate) struct Mailbox {
    /// Something was left since the ring last looked.
    pending: AtomicBool,
    /// The ring waits in the kernel, or is about to: it hears only the bell.
    asleep: AtomicBool,
    /// `RemoteWake::wake` was called since the ring last looked.
    called: AtomicBool,
    bell: OwnedFd,
    tasks: Sender<TaskName>,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<(Arc<Mailbox>, Receiver<TaskName>)> {
        let (tasks, receiver) = mpsc::channel();
        let mailbox = Mailbox {
            pending: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            called: AtomicBool::new(false),
            bell: sys::eventfd()?,
            tasks,
        };
        Ok((Arc::new(mailbox), receiver))
    }

    pub(crate) fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    fn ring_the_bell(&self) {
        // SeqCst on both sides: either this store is seen by `may_sleep`, or that one's `asleep` is seen here.
        self.pending.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            sys::raise(&self.bell);
        }
    }

    /// Announces a wait; `false` when something was left in the meantime and the ring must look first.
    pub(crate) fn may_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        if self.pending.load(Ordering::SeqCst) {
            self.asleep.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// Ends a wait; a bell that still rings is heard by the driver, which lowers it.
    pub(crate) fn woke(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Whether something was left since the last call; the ring then looks at the tasks and at `take_called`.
    pub(crate) fn take_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed) && self.pending.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn has_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    pub(crate) fn take_called(&self) -> bool {
        self.called.swap(false, Ordering::Acquire)
    }
}

/// The mailboxes of all rings of the process, by the ring's number in a task's name.
static MAILBOXES: Mutex<BTreeMap<u16, Arc<Mailbox>>> = Mutex::new(BTreeMap::new());

/// Gives a ring a number that no living ring has.
pub(crate) fn register(mailbox: &Arc<Mailbox>) -> u16 {
    let mut mailboxes = MAILBOXES.lock().unwrap_or_else(PoisonError::into_inner);
    let number = (0..=u16::MAX).find(|number| !mailboxes.contains_key(number));
    let number = number.expect("a process has fewer than 65536 rings: each has descriptors and a thread");
    mailboxes.insert(number, Arc::clone(mailbox));
    number
}

pub(crate) fn unregister(ring: u16) {
    MAILBOXES.lock().unwrap_or_else(PoisonError::into_inner).remove(&ring);
}

/// Wakes a task of a ring that does not run on this thread.
pub(crate) fn wake_task(name: TaskName) {
    let mailbox = MAILBOXES.lock().unwrap_or_else(PoisonError::into_inner).get(&name.ring()).cloned();
    if let Some(mailbox) = mailbox
        && mailbox.tasks.send(name).is_ok()
    {
        mailbox.ring_the_bell();
    }
}
