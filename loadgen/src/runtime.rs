//! The runtime of one thread: monoio on io_uring, on epoll where the kernel refuses it.

use std::io;

use monoio::time::TimeDriver;
use monoio::{FusionDriver, FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder};

/// Entries of the ring's queue.
const ENTRIES: u32 = 1024;

pub(crate) type Runtime = FusionRuntime<TimeDriver<IoUringDriver>, TimeDriver<LegacyDriver>>;

/// Starts it; timers are there.
pub(crate) fn start() -> io::Result<Runtime> {
    let builder = || RuntimeBuilder::<FusionDriver>::new().with_entries(ENTRIES);
    // What has arrived is taken in when this thread enters the kernel anyway, and does not interrupt it (Linux 5.19): a third less
    // processor time for a request. To take it in only when asked (DEFER_TASKRUN) would save no more, and monoio does not ask
    // while tasks are ready, as that of a pacer which spins is.
    let mut ring = io_uring::IoUring::builder();
    ring.setup_coop_taskrun();
    builder().uring_builder(ring).enable_timer().build().or_else(|_| builder().enable_timer().build())
}
