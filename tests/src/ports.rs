//! Free ports that no client socket of this machine can take meanwhile.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Lowest port handed out; below it live well-known services.
const FIRST: u32 = 12_000;
/// Ports handed out end here, below the kernel's ephemeral range (`ip_local_port_range` starts at 32768).
const COUNT: u32 = 20_000;

/// A TCP port that is free on every loopback address at the time of the call.
///
/// Two test processes start at different places, so that they rarely try the same port.
///
/// # Panics
/// Where no port of the range is free.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = std::process::id().wrapping_mul(7_919).wrapping_add(step) % COUNT;
        let port = u16::try_from(FIRST + offset).expect("the range ends below 65536");
        let v4 = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
        let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, port));
        if v4.is_ok() && v6.is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}
