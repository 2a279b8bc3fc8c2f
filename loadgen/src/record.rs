//! What a worker writes down: histograms of fixed size and counters. They are added to each other, never averaged.

use std::ops::AddAssign;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest time that is told apart, in nanoseconds; longer ones are recorded as this.
const NANOSECONDS_MAX: u64 = 600_000_000_000;
/// Digits that are kept of every time.
const DIGITS: u8 = 3;

/// A histogram of nanoseconds: fixed bounds, so its size is known before the run.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Times {
        // The bounds are constants that the constructor takes; the fallback keeps the same precision and grows as needed.
        let histogram = Histogram::new_with_bounds(1, NANOSECONDS_MAX, DIGITS);
        Times(histogram.unwrap_or_else(|_| unreachable!("the bounds are constants")))
    }
}

impl Times {
    /// Of `counts`: nanoseconds and how many.
    pub fn of<'c>(counts: impl IntoIterator<Item = (&'c u64, &'c u64)>) -> Times {
        let mut times = Times::default();
        for (value, count) in counts {
            times.0.saturating_record_n(*value, *count);
        }
        times
    }

    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    pub fn record(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds);
    }

    pub fn add(&mut self, other: &Times) {
        // Bounds are the same, so adding cannot fail.
        let _ = self.0.add(&other.0);
    }

    /// Adds what somebody else recorded, whose bounds may be others.
    pub fn add_histogram(&mut self, other: &Histogram<u64>) {
        for step in other.iter_recorded() {
            self.0.saturating_record_n(step.value_iterated_to(), step.count_at_value());
        }
    }

    pub fn clear(&mut self) {
        self.0.reset();
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time below which `percentile` (0 to 100) of the recorded ones lie; 0 when there are none.
    pub fn percentile(&self, percentile: f64) -> u64 {
        self.0.value_at_percentile(percentile)
    }

    pub fn mean(&self) -> f64 {
        self.0.mean()
    }

    pub fn min(&self) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.min() }
    }

    pub fn max(&self) -> u64 {
        self.0.max()
    }

    pub fn deviation(&self) -> f64 {
        self.0.stdev()
    }

    /// Each recorded time, as the histogram keeps it, with how often it came.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value()))
    }

    /// The curve of percentiles: time, percentile, count up to there.
    pub fn curve(&self, ticks_per_half: u32) -> Vec<(u64, f64, u64)> {
        let mut total = 0;
        let steps = self.0.iter_quantiles(ticks_per_half);
        steps
            .map(|step| {
                total += step.count_since_last_iteration();
                (step.value_iterated_to(), step.quantile_iterated_to() * 100.0, total)
            })
            .collect()
    }
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    Connect,
    Timeout,
    Closed,
    Write,
    Malformed,
    Status,
    Header,
    Body,
    Tls,
    Reset,
    GrpcStatus,
    Upgrade,
    Echo,
}

impl Cause {
    pub const ALL: [Cause; 13] = [
        Cause::Connect,
        Cause::Timeout,
        Cause::Closed,
        Cause::Write,
        Cause::Malformed,
        Cause::Status,
        Cause::Header,
        Cause::Body,
        Cause::Tls,
        Cause::Reset,
        Cause::GrpcStatus,
        Cause::Upgrade,
        Cause::Echo,
    ];

    /// The cause in the words of a report.
    pub fn words(self) -> &'static str {
        match self {
            Cause::Connect => "no connection",
            Cause::Timeout => "timed out",
            Cause::Closed => "connection ended before the reply",
            Cause::Write => "could not be written",
            Cause::Malformed => "reply broke its protocol",
            Cause::Status => "unexpected status",
            Cause::Header => "expected field was missing",
            Cause::Body => "expected body was missing",
            Cause::Tls => "TLS handshake failed",
            Cause::Reset => "stream was reset",
            Cause::GrpcStatus => "gRPC status was not OK",
            Cause::Upgrade => "upgrade to WebSocket was refused",
            Cause::Echo => "reply was not what had been sent",
        }
    }
}

/// Plain counts; those of a worker only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Arrivals that were due.
    pub planned: u64,
    /// Written.
    pub sent: u64,
    /// Answered as expected.
    pub succeeded: u64,
    /// By cause, in the order of [`Cause::ALL`].
    pub errors: [u64; Cause::ALL.len()],
    /// Never sent, for the run ended before a connection was free.
    pub unsent: u64,
    /// Found every connection busy when they were due.
    pub blocked: u64,
    /// Connections opened, the first ones included.
    pub connections: u64,
    /// Requests written again, for the idle connection had just been closed by the peer.
    pub rewritten: u64,
    pub bytes_received: u64,
    /// Whole ones of gRPC replies; a reply may be a stream of them.
    pub messages_received: u64,
    /// Connections closed and opened anew because `--connect-rate` asks for it, and those that could not be.
    pub renewed: u64,
    pub renewals_failed: u64,
}

impl Counts {
    pub fn fail(&mut self, cause: Cause) {
        if let Some(count) = self.errors.get_mut(cause as usize) {
            *count += 1;
        }
    }

    pub fn failed(&self) -> u64 {
        self.errors.iter().sum()
    }

    pub fn of(&self, cause: Cause) -> u64 {
        self.errors.get(cause as usize).copied().unwrap_or_default()
    }

    /// Requests whose end is known.
    pub fn done(&self) -> u64 {
        self.succeeded + self.failed()
    }
}

impl Counts {
    /// Every count, in an order of its own.
    pub fn list(&self) -> Vec<u64> {
        let mut copy = *self;
        copy.each().into_iter().map(|count| *count).collect()
    }

    /// The counts that `list` gave; none where there are not as many.
    pub fn from_list(list: &[u64]) -> Option<Counts> {
        let mut counts = Counts::default();
        let each = counts.each();
        if each.len() != list.len() {
            return None;
        }
        each.into_iter().zip(list).for_each(|(count, value)| *count = *value);
        Some(counts)
    }

    fn each(&mut self) -> Vec<&mut u64> {
        let Counts {
            planned,
            sent,
            succeeded,
            errors,
            unsent,
            blocked,
            connections,
            rewritten,
            bytes_received,
            messages_received,
            renewed,
            renewals_failed,
        } = self;
        let single = [
            planned,
            sent,
            succeeded,
            unsent,
            blocked,
            connections,
            rewritten,
            bytes_received,
            messages_received,
            renewed,
            renewals_failed,
        ];
        single.into_iter().chain(errors).collect()
    }
}

impl AddAssign<&Counts> for Counts {
    fn add_assign(&mut self, other: &Counts) {
        self.planned += other.planned;
        self.sent += other.sent;
        self.succeeded += other.succeeded;
        for (count, more) in self.errors.iter_mut().zip(other.errors) {
            *count += more;
        }
        self.unsent += other.unsent;
        self.blocked += other.blocked;
        self.connections += other.connections;
        self.rewritten += other.rewritten;
        self.bytes_received += other.bytes_received;
        self.messages_received += other.messages_received;
        self.renewed += other.renewed;
        self.renewals_failed += other.renewals_failed;
    }
}

/// All that is recorded of the measured requests of a worker, or of a run.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub counts: Counts,
    /// From the intended send to the last byte.
    pub response: Times,
    /// From the write to the last byte.
    pub service: Times,
    /// From the intended send to the write.
    pub lag: Times,
    /// The lag of those that found a connection free: what the generator itself adds.
    pub release: Times,
    /// TCP handshakes.
    pub connect: Times,
    /// TLS handshakes, after the TCP ones.
    pub tls: Times,
    /// Upgrades to WebSocket, after the handshakes.
    pub upgrade: Times,
    /// From the write to the first byte of the reply.
    pub first_byte: Times,
    /// From the first byte to the last.
    pub body: Times,
    /// Response time by class of the status, 1xx to 5xx, whether expected or not.
    pub classes: [Times; 5],
    /// Requests in flight, integrated over the measured time, in nanoseconds.
    pub in_flight_area: u128,
    /// Sum of the times from write to end of every request, failed ones too, in nanoseconds.
    pub service_sum: u128,
}

impl Record {
    pub fn add(&mut self, other: &Record) {
        self.counts += &other.counts;
        self.response.add(&other.response);
        self.service.add(&other.service);
        self.lag.add(&other.lag);
        self.release.add(&other.release);
        self.connect.add(&other.connect);
        self.tls.add(&other.tls);
        self.upgrade.add(&other.upgrade);
        self.first_byte.add(&other.first_byte);
        self.body.add(&other.body);
        for (class, more) in self.classes.iter_mut().zip(&other.classes) {
            class.add(more);
        }
        self.in_flight_area += other.in_flight_area;
        self.service_sum += other.service_sum;
    }

    /// Every histogram, in an order of its own.
    pub fn times(&self) -> Vec<&Times> {
        let Record { response, service, lag, release, connect, tls, upgrade, first_byte, body, classes, .. } = self;
        [response, service, lag, release, connect, tls, upgrade, first_byte, body].into_iter().chain(classes).collect()
    }

    /// The same, to be changed.
    pub fn times_mut(&mut self) -> Vec<&mut Times> {
        let Record { response, service, lag, release, connect, tls, upgrade, first_byte, body, classes, .. } = self;
        [response, service, lag, release, connect, tls, upgrade, first_byte, body].into_iter().chain(classes).collect()
    }

    /// Share of the planned requests that failed or were never sent.
    pub fn error_share(&self) -> f64 {
        let ended = self.counts.done() + self.counts.unsent;
        if ended == 0 { 0.0 } else { (self.counts.failed() + self.counts.unsent) as f64 / ended as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_three_digits_and_saturate() {
        let mut times = Times::default();
        for value in [1, 1_000, 1_234_567, 59_999_000_000] {
            times.clear();
            times.record(value);
            let kept = times.percentile(100.0);
            assert!(kept.abs_diff(value) as f64 <= value as f64 * 1e-3, "{value} was kept as {kept}");
        }
        times.record(u64::MAX);
        assert!(times.max() >= NANOSECONDS_MAX, "{}", times.max());
        assert_eq!(times.count(), 2);
    }

    #[test]
    fn records_are_added() {
        let (mut sum, mut one) = (Record::default(), Record::default());
        one.response.record(5);
        one.counts.fail(Cause::Status);
        one.counts.succeeded = 3;
        sum.add(&one);
        sum.add(&one);
        assert_eq!((sum.response.count(), sum.counts.of(Cause::Status), sum.error_share()), (2, 2, 0.25));
    }
}
