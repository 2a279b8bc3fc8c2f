//! The drivers: how bytes, connections and time reach a ring.
//!
//! A driver does what `Core` asks for one socket or listener, and reports what happened through `Core::on_*`. All
//! drivers mean the same by the same call, so nothing above this module knows which one runs.

pub(crate) mod epoll;
pub(crate) mod sim;
pub(crate) mod uring;
mod uring_setup;

use std::mem;
use std::rc::Rc;
use std::time::Duration;

use crate::buffer::Pool;
use crate::config::{DriverChoice, DriverKind, DriverReport, Features, RingConfig, SetupError};
use crate::core::Core;
use crate::remote::Mailbox;
use crate::slab::{GENERATION_MASK, Key};

/// How long `Driver::poll` may wait for an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    /// Look and return.
    No,
    /// Until an event or this much time.
    AtMost(Duration),
    /// Until an event.
    Forever,
}

/// What a completion or event is about, as its user data: kind, generation and index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct About {
    pub(crate) kind: u8,
    pub(crate) key: Key,
}

impl About {
    /// The bell has no slot.
    pub(crate) fn bell(kind: u8) -> About {
        About { kind, key: Key { index: 0, generation: 0 } }
    }

    pub(crate) fn pack(self) -> u64 {
        u64::from(self.kind) << 56 | u64::from(self.key.generation & GENERATION_MASK) << 32 | u64::from(self.key.index)
    }

    pub(crate) fn unpack(data: u64) -> About {
        let key = Key { index: data as u32, generation: (data >> 32) as u32 & GENERATION_MASK };
        About { kind: (data >> 56) as u8, key }
    }
}

/// The simulated world has stopped: everybody waits, and nothing will happen.
#[derive(Debug)]
pub(crate) struct Stalled;

/// The driver of a ring.
pub(crate) enum Driver {
    Epoll(epoll::Epoll),
    Uring(uring::Uring),
    Sim(Box<sim::Sim>),
}

macro_rules! each {
    ($driver:expr, $inner:ident => $call:expr) => {
        match $driver {
            Driver::Epoll($inner) => $call,
            Driver::Uring($inner) => $call,
            Driver::Sim($inner) => $call,
        }
    };
}

impl Driver {
    /// Begins to receive for a socket that is `Receive::Idle`.
    pub(crate) fn arm_receive(&mut self, core: &mut Core, socket: u32) {
        each!(self, driver => driver.arm_receive(core, socket));
    }

    /// Starts a gathered send for a socket with output and no send running.
    pub(crate) fn send(&mut self, core: &mut Core, socket: u32) {
        each!(self, driver => driver.send(core, socket));
    }

    /// Starts to connect a socket whose slot holds the address.
    pub(crate) fn connect(&mut self, core: &mut Core, socket: u32) {
        each!(self, driver => driver.connect(core, socket));
    }

    /// Cancels all that runs for a socket in `Phase::Closing`, and frees it when the kernel is done with it.
    pub(crate) fn close(&mut self, core: &mut Core, socket: u32) {
        each!(self, driver => driver.close(core, socket));
    }

    /// Begins to accept.
    pub(crate) fn arm_accept(&mut self, core: &mut Core, listener: u32) {
        each!(self, driver => driver.arm_accept(core, listener));
    }

    /// Stops accepting; frees the listener when its handle is gone and the kernel is done with it.
    pub(crate) fn cancel_accept(&mut self, core: &mut Core, listener: u32) {
        each!(self, driver => driver.cancel_accept(core, listener));
    }

    /// Submits what was asked, waits, and reports what happened; sets `core.now`.
    pub(crate) fn poll(&mut self, core: &mut Core, mailbox: &Mailbox, wait: Wait) -> Result<(), Stalled> {
        each!(self, driver => driver.poll(core, mailbox, wait))
    }

    /// Whether the kernel still refers to memory of the ring.
    pub(crate) fn is_busy(&self) -> bool {
        match self {
            Driver::Uring(driver) => driver.is_busy(),
            Driver::Epoll(_) | Driver::Sim(_) => false,
        }
    }

    /// Whether descriptors must not block. io_uring takes a non-blocking descriptor at its word and reports EAGAIN instead
    /// of waiting.
    pub(crate) fn nonblocking(&self) -> bool {
        !matches!(self, Driver::Uring(_))
    }

    /// Cancels every operation that the kernel has, for the end of the ring.
    pub(crate) fn cancel_all(&mut self) {
        if let Driver::Uring(driver) = self {
            driver.cancel_all();
        }
    }

    /// Operations that the kernel has and has not completed.
    pub(crate) fn operations_in_flight(&self) -> u64 {
        match self {
            Driver::Uring(driver) => driver.operations_in_flight(),
            Driver::Epoll(_) | Driver::Sim(_) => 0,
        }
    }

    /// The simulated network; `None` on the real one.
    pub(crate) fn simulated(&mut self) -> Option<&mut sim::Sim> {
        match self {
            Driver::Sim(driver) => Some(driver),
            Driver::Epoll(_) | Driver::Uring(_) => None,
        }
    }
}

/// Refuses a configuration that no driver can run with.
pub(crate) fn check(config: &RingConfig) -> Result<(), SetupError> {
    let refuse = |field, value: u64, must| Err(SetupError::OutOfRange { field, value, must });
    if !config.buffer_count.is_power_of_two() || config.buffer_count > 32768 {
        return refuse("buffer_count", config.buffer_count.into(), "a power of two, at most 32768");
    }
    if !(256..=1 << 20).contains(&config.buffer_bytes) {
        return refuse("buffer_bytes", config.buffer_bytes.into(), "256 to 1048576");
    }
    if !config.submission_entries.is_power_of_two() || config.submission_entries > 4096 {
        return refuse("submission_entries", config.submission_entries.into(), "a power of two, at most 4096");
    }
    if let Some(entries) = config.completion_entries
        && (!entries.is_power_of_two() || entries < config.submission_entries || entries > 65536)
    {
        return refuse("completion_entries", entries.into(), "a power of two, submission_entries to 65536");
    }
    Ok(())
}

/// Opens the driver that the configuration asks for, or the best that the kernel allows, and the buffers it fills.
pub(crate) fn open(config: &RingConfig, mailbox: &Mailbox) -> Result<(Driver, DriverReport, Rc<Pool>), SetupError> {
    let new_pool = || {
        Pool::new(config.buffer_count, config.buffer_bytes)
            .map(Rc::new)
            .map_err(|error| SetupError::System { call: "mmap", error })
    };
    let mut gate = None;
    if config.driver != DriverChoice::Epoll {
        let pool = new_pool()?;
        match uring::Uring::new(config, &pool, mailbox) {
            Ok(driver) => {
                let report = DriverReport { kind: DriverKind::Uring, gate: None, features: driver.features() };
                return Ok((Driver::Uring(driver), report, pool));
            }
            Err(shut) => {
                if pool.free_count() < usize::from(config.buffer_count) {
                    // The kernel was given some and may not have let go of them yet: they are never used again.
                    mem::forget(pool);
                }
                if config.driver == DriverChoice::Uring {
                    return Err(SetupError::Uring(shut));
                }
                gate = Some(shut);
            }
        }
    }
    let driver = epoll::Epoll::new(mailbox, config.submit_faults)
        .map_err(|error| SetupError::System { call: "epoll_create1", error })?;
    let report = DriverReport { kind: DriverKind::Epoll, gate, features: Features::default() };
    Ok((Driver::Epoll(driver), report, new_pool()?))
}

/// A small generator of repeatable choices (splitmix64): for injected faults and the simulated network.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; zero when the bound is zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }
}
