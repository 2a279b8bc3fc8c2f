//! What the filters for gRPC share: the method that a path names, where its messages begin and end, and its stats.

use std::collections::HashMap;
use std::sync::Arc;

use torus_codec::{HeaderMap, Known};

use crate::route::parameters::without_query;
use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::GrpcStat;
use crate::telemetry::registry::Registry;

/// The method that a request calls. Source: gRPC over HTTP/2, `Path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcMethod<'a> {
    /// The service with its package.
    pub service: &'a str,
    /// The method.
    pub name: &'a str,
}

impl<'a> GrpcMethod<'a> {
    /// The method that `path` names; `None` where it is not made of two parts.
    pub fn of(path: &'a [u8]) -> Option<Self> {
        let mut parts = without_query(path).split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        let (service, name) = (parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        Some(Self { service: std::str::from_utf8(service).ok()?, name: std::str::from_utf8(name).ok()? })
    }
}

/// Follows the messages of a stream. Source: gRPC over HTTP/2, `Length-Prefixed-Message`.
#[derive(Debug, Default)]
pub struct MessageMeter {
    prefix_bytes: u8,
    left_bytes: u32,
    count: u64,
}

impl MessageMeter {
    /// Follows `bytes` to the end of the current message at most: how many of them belong to it, and whether it ends with them.
    pub fn take(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut taken = 0;
        while self.prefix_bytes < PREFIX_BYTES {
            let Some(byte) = bytes.get(taken) else { return (taken, false) };
            if self.prefix_bytes == 0 {
                self.count += 1;
                self.left_bytes = 0;
            } else {
                self.left_bytes = self.left_bytes << 8 | u32::from(*byte);
            }
            self.prefix_bytes += 1;
            taken += 1;
        }
        let rest = (bytes.len() - taken).min(self.left_bytes as usize);
        self.left_bytes -= rest as u32;
        let ends = self.left_bytes == 0;
        if ends {
            self.prefix_bytes = 0;
        }
        (taken + rest, ends)
    }

    /// The number of messages that begin in `bytes`.
    pub fn begun_in(&mut self, mut bytes: &[u8]) -> u64 {
        let before = self.count;
        while !bytes.is_empty() {
            let (taken, _) = self.take(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        self.count - before
    }
}

/// A core's groups of gRPC stats, by prefix. Their names come with requests, so they are made when they are first needed: a lock is
/// taken once for a name, and the number of names is bounded.
#[derive(Default)]
pub struct GrpcStatsByName {
    groups: HashMap<Box<str>, Arc<Stats<GrpcStat>>>,
    prefix: String,
}

impl GrpcStatsByName {
    /// The group `<cluster><protocol>.<service>.<method>.`, or without the method where it is `None`. `cluster` ends with a dot.
    pub fn get(
        &mut self,
        registry: &Registry,
        cluster: &str,
        protocol: &str,
        method: Option<GrpcMethod<'_>>,
    ) -> Arc<Stats<GrpcStat>> {
        // Past the limit a name that is new is not told apart.
        for method in [method, None] {
            self.prefix.clear();
            self.prefix.extend([cluster, protocol, "."]);
            if let Some(GrpcMethod { service, name }) = method {
                self.prefix.extend([service, ".", name, "."]);
            }
            if let Some(known) = self.groups.get(self.prefix.as_str()) {
                return Arc::clone(known);
            }
            if self.groups.len() < NAMES_MAX {
                break;
            }
        }
        let made = registry.group(&self.prefix);
        self.groups.insert(self.prefix.as_str().into(), Arc::clone(&made));
        made
    }
}

/// Counts the `grpc-status` of a reply's fields or trailers, where it is there.
pub fn count_status(core: Core, stats: &Stats<GrpcStat>, fields: &HeaderMap) {
    let Some(status) = fields.get_known(Known::GrpcStatus) else { return };
    if let Some(stat) = GrpcStat::of_status(status) {
        stats.increment(core, stat);
    }
    stats.increment(core, if status == b"0" { GrpcStat::Success } else { GrpcStat::Failure });
    stats.increment(core, GrpcStat::Total);
}

/// Flags and length.
const PREFIX_BYTES: u8 = 5;
/// Groups of stats that requests may make on a core.
const NAMES_MAX: usize = 2_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_service_and_method() {
        let check = |path: &str, expected: Option<(&str, &str)>| {
            let found = GrpcMethod::of(path.as_bytes()).map(|method| (method.service, method.name));
            assert_eq!(found, expected, "{path}");
        };
        check("/a.B/C", Some(("a.B", "C")));
        check("/a.B/C?x=/y", Some(("a.B", "C")));
        check("//a.B//C/", Some(("a.B", "C")));
        check("/a.B", None);
        check("/a.B/C/D", None);
        check("/", None);
    }

    #[test]
    fn messages_are_counted_whatever_pieces_they_come_in() {
        let stream = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[1, 0, 0, 0, 0], &[0, 0, 0, 1, 0], &[7; 256], &[0, 0]].concat();
        for piece_bytes in [1, 3, 7, stream.len()] {
            let mut meter = MessageMeter::default();
            let count: u64 = stream.chunks(piece_bytes).map(|piece| meter.begun_in(piece)).sum();
            assert_eq!(count, 4, "pieces of {piece_bytes}");
        }
        let mut meter = MessageMeter::default();
        assert_eq!(meter.take(&stream), (8, true));
        assert_eq!(meter.take(&stream[8..10]), (2, false));
        assert_eq!(meter.take(&stream[10..]), (3, true));
    }

    #[test]
    fn names_that_requests_bring_are_bounded() {
        let registry = Registry::new(1);
        let mut stats = GrpcStatsByName::default();
        for count in 0..NAMES_MAX + 10 {
            let name = format!("m{count}");
            let _ = stats.get(&registry, "cluster.a.", "grpc", Some(GrpcMethod { service: "s", name: &name }));
        }
        assert!(stats.groups.len() <= NAMES_MAX + 1, "{}", stats.groups.len());
        let known = stats.get(&registry, "cluster.a.", "grpc", Some(GrpcMethod { service: "s", name: "m0" }));
        assert_eq!(known.prefix(), "cluster.a.grpc.s.m0.");
        let late = stats.get(&registry, "cluster.a.", "grpc", Some(GrpcMethod { service: "s", name: "other" }));
        assert_eq!(late.prefix(), "cluster.a.grpc.");
    }
}
