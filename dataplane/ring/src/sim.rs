//! A whole network in one ring: client, proxy and backend are tasks on it, and a seed decides what the network does.
//!
//! Time is virtual: it stands still while tasks run and jumps to the next event or timer when all of them wait. The same
//! seed and the same tasks give the same run, byte by byte, so a failure that names its seed can be repeated.

use std::rc::Rc;
use std::time::Duration;

use crate::address::PeerAddr;
use crate::buffer::Pool;
use crate::config::{DriverKind, DriverReport, Features, RingConfig};
use crate::driver::Driver;
use crate::driver::sim::Sim;
use crate::listener::Listener;
use crate::remote::Mailbox;
use crate::ring::Ring;

/// What the simulated network does. Probabilities are per thousand.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Longest ordinary time that bytes take from one end to the other; each piece takes its own.
    pub latency_max: Duration,
    /// How often a piece is delayed beyond that.
    pub delay_per_mille: u16,
    /// Longest extra delay.
    pub delay_max: Duration,
    /// How often bytes written together are sent or received apart.
    pub split_per_mille: u16,
    /// How often a piece of data is answered by a reset of the connection.
    pub reset_per_mille: u16,
    /// How often a connect is refused although somebody listens.
    pub refuse_per_mille: u16,
    /// Bytes that one direction of a connection holds before its sender must wait.
    pub window_bytes: usize,
    /// Receive buffers of the ring; a power of two.
    pub buffer_count: u16,
    /// Size of one receive buffer, in bytes.
    pub buffer_bytes: u32,
    /// As in `RingConfig`.
    pub receive_queue_bytes_max: usize,
}

impl Default for SimConfig {
    /// A network that splits, delays and reorders but neither resets nor refuses.
    fn default() -> Self {
        Self {
            seed: 0,
            latency_max: Duration::from_micros(500),
            delay_per_mille: 20,
            delay_max: Duration::from_millis(50),
            split_per_mille: 200,
            reset_per_mille: 0,
            refuse_per_mille: 0,
            window_bytes: 64 * 1024,
            buffer_count: 256,
            buffer_bytes: 4096,
            receive_queue_bytes_max: 64 * 1024,
        }
    }
}

/// A ring on a simulated network.
///
/// # Panics
/// When a number of the configuration is out of range, or the process has no descriptor or memory left.
pub fn ring(config: &SimConfig) -> Ring {
    let ring_config = RingConfig {
        buffer_count: config.buffer_count,
        buffer_bytes: config.buffer_bytes,
        receive_queue_bytes_max: config.receive_queue_bytes_max,
        ..RingConfig::default()
    };
    if let Err(error) = crate::driver::check(&ring_config) {
        panic!("simulation: {error}");
    }
    let pool = Rc::new(Pool::new(config.buffer_count, config.buffer_bytes).expect("memory for the receive buffers"));
    let (mailbox, letters) = Mailbox::new().expect("a descriptor for the ring's mailbox");
    let report = DriverReport { kind: DriverKind::Simulated, gate: None, features: Features::default() };
    let driver = Driver::Sim(Box::new(Sim::new(config.clone())));
    Ring::assemble(&ring_config, pool, driver, report, mailbox, letters)
}

impl Ring {
    /// Listens on an address of the simulated network; `Ring::connect` finds it there.
    ///
    /// # Panics
    /// When the ring is not simulated, or somebody listens there already.
    pub fn listen_sim(&self, address: &PeerAddr) -> Listener {
        let index = self.inner().with(|core, driver| match driver {
            Driver::Sim(sim) => sim.listen(core, address),
            _ => panic!("listen_sim is for simulated rings; this one runs on {}", self.report().kind),
        });
        Listener::new(Rc::clone(self.inner()), index)
    }
}
