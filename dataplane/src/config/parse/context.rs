//! What every parse function needs: where it is, what is wrong so far, and what names mean.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::google::protobuf;

use super::runtime::Runtime;
use crate::cluster::ClusterIndex;
use crate::config::discovery::source::{Asked, Sources};
use crate::config::reject::{Problems, Refused};
use crate::config::snapshot::RouteIndex;
use crate::telemetry::access_log::sink::{FlushOptions, LogSinks};
use crate::telemetry::registry::Registry;
use crate::tls::secret::Secrets;

/// Passed by `&mut` through all parse functions of one configuration.
///
/// A parse function reads `fn parse(config: &Proto, context: &mut ParseContext) -> Result<Self, Refused>`; it goes into a field
/// with [`ParseContext::within`], refuses with [`ParseContext::reject`], and goes on after a refusal wherever it can.
#[derive(Debug)]
pub struct ParseContext {
    /// Everything refused so far, and the path of the message being parsed.
    pub problems: Problems,
    /// The place of each cluster in the snapshot.
    pub cluster_by_name: HashMap<Box<str>, ClusterIndex>,
    /// The place of each discovered route table in the snapshot.
    pub route_by_name: HashMap<Box<str>, RouteIndex>,
    /// Whom each of them is asked from, and the `stat_prefix` of the connection manager that named it first. Source: Rds.
    pub route_asks: HashMap<Box<str>, (Asked, Box<str>)>,
    /// Where resources come from that are not in the bootstrap.
    pub sources: Sources,
    /// Certificates and trust that have names.
    pub secrets: Secrets,
    /// Whether it is an error to name a cluster that is not there. Off while reading what may come before its clusters; a route
    /// table of its own sets it. Source: RouteConfiguration.validate_clusters.
    pub validate_clusters: bool,
    /// Workers and the config thread, for [`crate::telemetry::counters::Stats::new`].
    pub core_count: usize,
    /// Runtime values from the layers of the bootstrap.
    pub runtime: Runtime,
    /// Who this proxy is.
    pub node: Node,
    /// This machine's own address, for `x-forwarded-for` where the peer is the loopback address.
    pub local_ip: Option<IpAddr>,
    /// Makes and shares groups of stats: `context.registry.group::<HttpStat>("http.in.")`.
    pub registry: Arc<Registry>,
    /// Opens and shares access-log files.
    pub log_sinks: Arc<LogSinks>,
}

/// Who this proxy is. Source: envoy.config.core.v3.Node, and `--service-*` flags where it leaves a field empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `node.id`
    pub id: Box<str>,
    /// `node.cluster`
    pub cluster: Box<str>,
    /// `node.locality.region`
    pub region: Box<str>,
    /// `node.locality.zone`
    pub zone: Box<str>,
    /// `node.locality.sub_zone`
    pub sub_zone: Box<str>,
}

impl ParseContext {
    /// A context without clusters or runtime values.
    pub fn new(core_count: usize) -> Self {
        let registry = Registry::new(core_count);
        Self {
            problems: Problems::default(),
            cluster_by_name: HashMap::new(),
            route_by_name: HashMap::new(),
            route_asks: HashMap::new(),
            sources: Sources::default(),
            secrets: Secrets::default(),
            validate_clusters: true,
            core_count,
            runtime: Runtime::default(),
            node: Node::default(),
            local_ip: None,
            log_sinks: LogSinks::new(FlushOptions::default(), &registry),
            registry,
        }
    }

    /// Runs `parse` inside `field`.
    pub fn within<R>(&mut self, field: &str, parse: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.problems.enter(field);
        let result = parse(self);
        self.problems.leave(outer);
        result
    }

    /// Runs `parse` inside item `index` of the repeated `field`.
    pub fn within_item<R>(&mut self, field: &str, index: usize, parse: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.problems.enter_item(field, index);
        let result = parse(self);
        self.problems.leave(outer);
        result
    }

    /// Runs `parse` inside entry `key` of the map `field`.
    pub fn within_key<R>(&mut self, field: &str, key: &str, parse: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.problems.enter_key(field, key);
        let result = parse(self);
        self.problems.leave(outer);
        result
    }

    /// Parses each item of the repeated `field`; every bad one is reported before the list is refused.
    pub fn each<T, U>(
        &mut self,
        field: &str,
        items: &[T],
        mut parse: impl FnMut(&T, &mut Self) -> Result<U, Refused>,
    ) -> Result<Vec<U>, Refused> {
        let mut parsed = Vec::with_capacity(items.len());
        let mut refused = None;
        for (index, item) in items.iter().enumerate() {
            match self.within_item(field, index, |context| parse(item, context)) {
                Ok(value) => parsed.push(value),
                Err(why) => refused = Some(why),
            }
        }
        refused.map_or(Ok(parsed), Err)
    }

    /// Refuses `field` of the current message; the empty name means the message itself.
    pub fn reject(&mut self, field: &str, reason: impl Into<String>) -> Refused {
        self.problems.reject(field, reason)
    }

    /// Reports `field` as unsafe or without effect.
    pub fn warn(&mut self, field: &str, reason: impl Into<String>) {
        self.problems.warn(field, reason);
    }

    /// The value of a message field that Envoy requires.
    pub fn required<'a, T>(&mut self, field: &str, value: &'a Option<T>) -> Result<&'a T, Refused> {
        value.as_ref().ok_or_else(|| self.reject(field, "is required"))
    }

    /// The text of a field that must not be empty.
    pub fn non_empty<'a>(&mut self, field: &str, value: &'a str) -> Result<&'a str, Refused> {
        if value.is_empty() { Err(self.reject(field, "must not be empty")) } else { Ok(value) }
    }

    /// The cluster that `field` names: `Ok(None)` where it is not there and that is allowed.
    pub fn cluster(&mut self, field: &str, name: &str) -> Result<Option<ClusterIndex>, Refused> {
        if let Some(index) = self.cluster_by_name.get(name) {
            return Ok(Some(*index));
        }
        if !self.validate_clusters {
            return Ok(None);
        }
        let known = self.cluster_by_name.keys().map(|known| &**known);
        let nearest: Option<Box<str>> = torus_xds::diagnostic::nearest(name, known).map(Into::into);
        Err(self.problems.reject_with(field, format!("unknown cluster `{name}`"), nearest.as_deref()))
    }

    /// The place of the discovered route table `name`, which it keeps.
    pub fn route_index(&mut self, name: &str) -> RouteIndex {
        if let Some(index) = self.route_by_name.get(name) {
            return *index;
        }
        let index = RouteIndex(u32::try_from(self.route_by_name.len()).unwrap_or(u32::MAX));
        self.route_by_name.insert(name.into(), index);
        index
    }

    /// The duration in `field`, `None` where it is absent. Negative ones and those beyond 10,000 years are refused.
    pub fn duration(&mut self, field: &str, value: &Option<protobuf::Duration>) -> Result<Option<Duration>, Refused> {
        let Some(value) = value else { return Ok(None) };
        let seconds = u64::try_from(value.seconds).ok().filter(|seconds| *seconds <= DURATION_SECONDS_MAX);
        let nanoseconds = u32::try_from(value.nanos).ok().filter(|nanoseconds| *nanoseconds < 1_000_000_000);
        match (seconds, nanoseconds) {
            (Some(seconds), Some(nanoseconds)) => Ok(Some(Duration::new(seconds, nanoseconds))),
            _ => Err(self.reject(field, "must be a duration from 0s to 315576000000s")),
        }
    }

    /// The duration in `field` where 0 means off: `default` where it is absent.
    pub fn timeout(
        &mut self,
        field: &str,
        value: &Option<protobuf::Duration>,
        default: Option<Duration>,
    ) -> Result<Option<Duration>, Refused> {
        Ok(match self.duration(field, value)? {
            None => default,
            Some(Duration::ZERO) => None,
            Some(value) => Some(value),
        })
    }

    /// The message packed in `field`, which must be an `M`.
    pub fn unpack<M: prost::Message + prost::Name + Default>(
        &mut self,
        field: &str,
        packed: &protobuf::Any,
    ) -> Result<M, Refused> {
        let name = type_name(&packed.type_url);
        if name != M::full_name() {
            return Err(self.reject(field, format!("has type `{name}` where `{}` is needed", M::full_name())));
        }
        M::decode(packed.value.as_slice()).map_err(|error| self.reject(field, error.to_string()))
    }
}

/// The full message name in a type URL: what follows the last `/`.
pub fn type_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// Source: google/protobuf/duration.proto, about 10,000 years.
const DURATION_SECONDS_MAX: u64 = 315_576_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_bounds() {
        let check = |seconds: i64, nanos: i32, expect: Option<Duration>| {
            let mut context = ParseContext::new(1);
            let parsed = context.duration("timeout", &Some(protobuf::Duration { seconds, nanos }));
            assert_eq!(parsed.ok().flatten(), expect, "{seconds} {nanos}");
            assert_eq!(context.problems.has_errors(), expect.is_none());
        };
        check(1, 500_000_000, Some(Duration::from_millis(1500)));
        check(0, 0, Some(Duration::ZERO));
        check(-1, 0, None);
        check(0, -1, None);
        check(0, 1_000_000_000, None);
        check(i64::MAX, 0, None);
    }

    #[test]
    fn a_zero_timeout_is_off() {
        let mut context = ParseContext::new(1);
        let default = Some(Duration::from_secs(5));
        assert_eq!(context.timeout("t", &None, default), Ok(default));
        assert_eq!(context.timeout("t", &Some(protobuf::Duration::default()), default), Ok(None));
    }

    #[test]
    fn an_unknown_cluster_names_the_nearest() {
        let mut context = ParseContext::new(1);
        context.cluster_by_name.insert("backend".into(), ClusterIndex(7));
        assert_eq!(context.cluster("cluster", "backend"), Ok(Some(ClusterIndex(7))));
        assert!(context.cluster("cluster", "backnd").is_err());
        let shown: Vec<String> = context.problems.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["cluster: unknown cluster `backnd`; did you mean `backend`?"]);
        context.validate_clusters = false;
        assert_eq!(context.cluster("cluster", "other"), Ok(None));
    }
}
