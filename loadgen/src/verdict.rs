//! Whether a run measured what it was asked to measure, and if not, who was the bottleneck.
//!
//! A pure function of what was counted. A run is worth its figures only when the requests left when they were meant to; when they
//! did not, the cause is one of three: this program was late (`generator-limited`), the connections were all busy although the target
//! answered as fast as ever (`connection-limited`), or the target itself took longer and longer (`target-limited`).

use serde::Serialize;

use crate::quantity;

/// Share of the planned requests that must have been sent.
const SENT_SHARE_MIN: f64 = 0.99;
/// Share of requests that may find no free connection.
const BLOCKED_SHARE_MAX: f64 = 0.01;
/// Processor share of a worker above which it has no reserve.
const BUSY_SHARE_MAX: f64 = 0.95;
/// Release error, as a share of the median service time, that would show in the results.
const RELEASE_SHARE_MAX: f64 = 0.5;
/// A release error below this is never an objection, in nanoseconds.
const RELEASE_MIN: u64 = 1_000_000;
/// A mean service time so many times the fastest ones is queueing in the target.
const QUEUEING_FACTOR: f64 = 4.0;
/// How far the two sides of Little's law may lie apart.
const LITTLE_DIFFERENCE_MAX: f64 = 0.1;

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Valid,
    GeneratorLimited,
    TargetLimited,
    ConnectionLimited,
    /// Nothing was measured, or what was measured contradicts itself.
    Invalid,
}

impl Kind {
    pub fn words(self) -> &'static str {
        match self {
            Kind::Valid => "valid",
            Kind::GeneratorLimited => "generator-limited",
            Kind::TargetLimited => "target-limited",
            Kind::ConnectionLimited => "connection-limited",
            Kind::Invalid => "invalid",
        }
    }
}

/// The answer with its reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub kind: Kind,
    pub reasons: Vec<String>,
}

/// What the answer depends on.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Fixed concurrency: there is no schedule to be late on.
    pub closed: bool,
    pub interrupted: bool,
    /// What is known of workers elsewhere that were lost.
    pub lost: Vec<String>,
    pub planned: u64,
    pub sent: u64,
    pub done: u64,
    pub succeeded: u64,
    pub blocked: u64,
    /// In nanoseconds.
    pub release_p99: u64,
    pub service_p50: u64,
    pub service_mean: f64,
    pub service_min: u64,
    /// Processor share of each worker that went into requests, 0 to 1.
    pub worker_shares: Vec<f64>,
    pub connections: u64,
    /// Requests in flight in the mean, counted, and as rate times service time.
    pub in_flight: f64,
    pub in_flight_by_little: f64,
}

/// The verdict on `evidence`.
pub fn judge(evidence: &Evidence) -> Verdict {
    let mut reasons = Vec::new();
    if !evidence.lost.is_empty() {
        reasons.extend(evidence.lost.iter().cloned());
        reasons.push("a part of the schedule was not sent; the figures are of what the other workers did".to_owned());
        return Verdict { kind: Kind::Invalid, reasons };
    }
    if evidence.done == 0 {
        reasons.push("no request ended inside the measured time".to_owned());
        return Verdict { kind: Kind::Invalid, reasons };
    }
    let busiest = evidence.worker_shares.iter().copied().fold(0.0, f64::max);
    let busy = busiest > BUSY_SHARE_MAX;
    let mut kind = Kind::Valid;
    if evidence.closed {
        if busy {
            kind = Kind::GeneratorLimited;
            reasons.push(format!("a worker of this program used {:.0}% of its core", busiest * 100.0));
        }
    } else {
        let planned = evidence.planned.max(1) as f64;
        let late = share(evidence.sent, planned) < SENT_SHARE_MIN;
        let blocked = share(evidence.blocked, planned);
        if late {
            let sent = share(evidence.sent, planned) * 100.0;
            reasons.push(format!("{} of {} planned requests were sent ({sent:.1}%)", evidence.sent, evidence.planned));
        }
        let release_max = RELEASE_MIN.max((evidence.service_p50 as f64 * RELEASE_SHARE_MAX) as u64);
        if evidence.release_p99 > release_max {
            kind = Kind::GeneratorLimited;
            let release = quantity::nanoseconds(evidence.release_p99);
            reasons.push(format!("this program was late by {release} at p99 although connections were free"));
        } else if late && blocked <= BLOCKED_SHARE_MAX || (late || blocked > BLOCKED_SHARE_MAX) && busy {
            kind = Kind::GeneratorLimited;
        } else if late || blocked > BLOCKED_SHARE_MAX {
            let queueing = evidence.service_mean > QUEUEING_FACTOR * evidence.service_min.max(1) as f64;
            kind = if queueing { Kind::TargetLimited } else { Kind::ConnectionLimited };
            reasons.push(format!("{:.1}% found all {} connections busy", blocked * 100.0, evidence.connections));
            let mean = quantity::nanoseconds(evidence.service_mean as u64);
            let fastest = quantity::nanoseconds(evidence.service_min);
            reasons.push(if queueing {
                format!("service times of {mean} in the mean, {fastest} at best: requests queue in the target")
            } else {
                format!("service times stay at {mean} in the mean, {fastest} at best: more --connections would help")
            });
        }
        if busy && kind == Kind::GeneratorLimited {
            reasons.push(format!("a worker of this program used {:.0}% of its core", busiest * 100.0));
        }
    }
    let larger = evidence.in_flight.max(evidence.in_flight_by_little);
    // A handful of requests is too few for the law.
    if kind == Kind::Valid && evidence.done >= 1000 && larger > 0.5 {
        let difference = (evidence.in_flight - evidence.in_flight_by_little).abs() / larger;
        if difference > LITTLE_DIFFERENCE_MAX {
            kind = Kind::Invalid;
            reasons.push(format!(
                "Little's law does not hold: {:.2} requests in flight, rate times service time says {:.2}",
                evidence.in_flight, evidence.in_flight_by_little
            ));
        }
    }
    if evidence.succeeded == 0 {
        kind = Kind::Invalid;
        reasons.push("every request failed; nothing of the response times is a success".to_owned());
    }
    if evidence.interrupted {
        reasons.push("interrupted before its end; the figures are of what had run".to_owned());
    }
    Verdict { kind, reasons }
}

fn share(part: u64, whole: f64) -> f64 {
    part as f64 / whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Evidence {
        Evidence {
            planned: 10_000,
            sent: 10_000,
            done: 10_000,
            succeeded: 10_000,
            release_p99: 20_000,
            service_p50: 200_000,
            service_mean: 220_000.0,
            service_min: 150_000,
            worker_shares: vec![0.3],
            connections: 64,
            in_flight: 2.0,
            in_flight_by_little: 2.05,
            ..Evidence::default()
        }
    }

    #[test]
    fn each_cause_has_its_verdict() {
        type Case = (&'static str, fn(&mut Evidence), Kind);
        let cases: [Case; 10] = [
            ("a worker lost", |e| e.lost.push("worker a was lost".to_owned()), Kind::Invalid),
            ("all well", |_| {}, Kind::Valid),
            ("late with free connections", |e| e.release_p99 = 5_000_000, Kind::GeneratorLimited),
            ("few sent, none blocked", |e| e.sent = 5_000, Kind::GeneratorLimited),
            (
                "blocked, target slow",
                |e| (e.sent, e.blocked, e.service_mean) = (5_000, 9_000, 5e6),
                Kind::TargetLimited,
            ),
            ("blocked, target as ever", |e| (e.sent, e.blocked) = (9_950, 5_000), Kind::ConnectionLimited),
            ("blocked, own core full", |e| (e.blocked, e.worker_shares) = (5_000, vec![0.99]), Kind::GeneratorLimited),
            ("closed and busy", |e| (e.closed, e.worker_shares) = (true, vec![0.99]), Kind::GeneratorLimited),
            ("Little disagrees", |e| e.in_flight = 4.0, Kind::Invalid),
            ("nothing succeeded", |e| e.succeeded = 0, Kind::Invalid),
        ];
        for (name, change, expected) in cases {
            let mut evidence = good();
            change(&mut evidence);
            let verdict = judge(&evidence);
            assert_eq!(verdict.kind, expected, "{name}: {:?}", verdict.reasons);
            assert_eq!(verdict.reasons.is_empty(), expected == Kind::Valid, "{name}");
        }
    }
}
