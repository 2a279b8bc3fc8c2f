//! What an exchange uses of the core that runs it. One per worker; nothing in it is shared with another core.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use torus_ring::Ring;

use crate::cluster::ClusterIndex;
use crate::config::lifecycle::Lifecycle;
use crate::config::snapshot::Snapshot;
use crate::filter::grpc::GrpcStatsByName;
use crate::telemetry::access_log::LogBuffers;
use crate::telemetry::counters::Core;
use crate::upstream::Pools;
use crate::worker::connection_limit::ConnectionLimits;
use crate::worker::random::Random;

/// One core's I/O, pools, clock and configuration.
pub struct CoreState {
    /// The core's event loop.
    pub ring: Ring,
    /// Which core this is, for counters.
    pub core: Core,
    /// Upstream connections.
    pub pools: Rc<Pools>,
    /// Random numbers.
    pub random: RefCell<Random>,
    /// Groups of stats of gRPC methods.
    pub grpc_stats: RefCell<GrpcStatsByName>,
    /// The body of the proxy's own reply that was last sent over HTTP/2: streams that get the same share it.
    pub own_body: RefCell<Bytes>,
    /// Lines of access logs that wait to be written.
    pub log_buffers: RefCell<LogBuffers>,
    /// Whether the process serves or drains.
    pub lifecycle: Arc<Lifecycle>,
    /// How many client connections may be open.
    pub limits: Arc<ConnectionLimits>,
    /// The outer count is this core's own: a request takes a reference without touching a shared cache line.
    snapshot: RefCell<SnapshotHandle>,
    date: Cell<CachedDate>,
    stream_count: Cell<u64>,
    connection_count: Cell<u64>,
}

/// This core's reference to a snapshot.
pub type SnapshotHandle = Rc<Arc<Snapshot>>;

/// What a core is made of.
pub struct CoreParts {
    /// Its event loop.
    pub ring: Ring,
    /// Its number.
    pub core: Core,
    /// Its random numbers.
    pub random: Random,
    /// Shared with all cores.
    pub lifecycle: Arc<Lifecycle>,
    /// Shared with all cores.
    pub limits: Arc<ConnectionLimits>,
    /// The configuration to start with.
    pub snapshot: Arc<Snapshot>,
    /// Its access log lines.
    pub log_buffers: LogBuffers,
}

/// A `date` field value and the second it stands for.
#[derive(Clone, Copy)]
struct CachedDate {
    unix_second: u64,
    text: DateText,
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 §5.6.7).
pub type DateText = [u8; 29];

impl CoreState {
    /// The state of a core.
    pub fn new(parts: CoreParts) -> Rc<Self> {
        let pools = Pools::new(&parts.ring, parts.core);
        Rc::new(Self {
            ring: parts.ring,
            core: parts.core,
            pools,
            random: RefCell::new(parts.random),
            grpc_stats: RefCell::default(),
            own_body: RefCell::default(),
            log_buffers: RefCell::new(parts.log_buffers),
            lifecycle: parts.lifecycle,
            limits: parts.limits,
            snapshot: RefCell::new(Rc::new(parts.snapshot)),
            date: Cell::new(CachedDate { unix_second: 0, text: date_text(0) }),
            stream_count: Cell::new(0),
            connection_count: Cell::new(0),
        })
    }

    /// The configuration that a request starting now sees to its end.
    pub fn snapshot(&self) -> SnapshotHandle {
        Rc::clone(&self.snapshot.borrow())
    }

    /// Requests that start from now on see `snapshot`.
    pub fn set_snapshot(&self, snapshot: Arc<Snapshot>) {
        for (index, cluster) in (0u32..).map(ClusterIndex).zip(&snapshot.clusters) {
            self.pools.update(index, cluster.as_ref(), &mut self.random.borrow_mut());
        }
        *self.snapshot.borrow_mut() = Rc::new(snapshot);
    }

    /// `body` as it can be sent many times at once.
    pub fn shared_body(&self, body: &[u8]) -> Bytes {
        let mut last = self.own_body.borrow_mut();
        if **last != *body {
            *last = Bytes::copy_from_slice(body);
        }
        last.clone()
    }

    /// The current `date` field value, formatted once a second.
    pub fn date(&self) -> DateText {
        let unix_second = self.ring.wall().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let cached = self.date.get();
        if cached.unix_second == unix_second {
            return cached.text;
        }
        let text = date_text(unix_second);
        self.date.set(CachedDate { unix_second, text });
        text
    }

    /// A number for the next request, unique in this process.
    pub fn next_stream_id(&self) -> u64 {
        let count = self.stream_count.get() + 1;
        self.stream_count.set(count);
        u64::from(self.core.0) << 48 | count
    }

    /// A number for the next client connection, unique in this process; a process with one worker counts from 0, as Envoy does.
    pub fn next_connection_id(&self) -> u64 {
        let count = self.connection_count.get();
        self.connection_count.set(count + 1);
        u64::from(self.core.0) << 48 | count
    }

    /// Wall clock of this turn of the loop.
    pub fn wall(&self) -> SystemTime {
        self.ring.wall()
    }
}

/// The IMF-fixdate of a unix time. Source: RFC 9110 §5.6.7; the civil calendar as in ISO 8601.
fn date_text(unix_second: u64) -> DateText {
    const DAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
    const MONTHS: [&[u8; 3]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let day_count = unix_second / 86_400;
    let second_of_day = unix_second % 86_400;
    let (year, month, day) = civil_date(day_count);
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(slot) = text.get_mut(at..at + bytes.len()) {
            slot.copy_from_slice(bytes);
        }
    };
    let two = |value: u64| [b'0' + (value / 10 % 10) as u8, b'0' + (value % 10) as u8];
    put(0, DAYS.get((day_count % 7) as usize).map_or(b"Thu", |name| *name));
    put(5, &two(day));
    put(8, MONTHS.get((month - 1) as usize).map_or(b"Jan", |name| *name));
    put(12, &two(year / 100));
    put(14, &two(year % 100));
    put(17, &two(second_of_day / 3_600));
    put(20, &two(second_of_day / 60 % 60));
    put(23, &two(second_of_day % 60));
    text
}

/// Year, month (1-12) and day (1-31) of a day counted from 1970-01-01.
///
/// Counts from 0000-03-01, so that a leap day ends its year; an era is the 146,097 days after which the calendar repeats.
fn civil_date(day_count: u64) -> (u64, u64, u64) {
    let from_march = day_count + 719_468;
    let era = from_march / 146_097;
    let day_of_era = from_march % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_imf_fixdates() {
        let check = |unix_second, text: &str| assert_eq!(std::str::from_utf8(&date_text(unix_second)).unwrap(), text);
        check(0, "Thu, 01 Jan 1970 00:00:00 GMT");
        check(784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"); // the example of RFC 9110 §5.6.7
        check(951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT");
        check(1_709_164_800, "Thu, 29 Feb 2024 00:00:00 GMT");
        check(4_102_444_799, "Thu, 31 Dec 2099 23:59:59 GMT");
    }
}
