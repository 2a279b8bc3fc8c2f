//! Tags: parts of a stat's name that say which cluster, listener or status it is about, taken out of the name for Prometheus.
//!
//! Source: Envoy, TagSpecifier. Each extractor looks at the whole original name; what the first group of its pattern matches is
//! taken out, the second group (or else the first) is the value.

use std::ops::Range;
use std::sync::OnceLock;

use thiserror::Error;

/// Takes tags out of names.
#[derive(Debug, Default)]
pub struct TagExtractor {
    extractors: Vec<Extractor>,
    /// Tags with the same value for every stat.
    fixed: Vec<(Box<str>, Box<str>)>,
}

#[derive(Debug)]
struct Extractor {
    tag: Box<str>,
    /// How every name that the pattern matches begins.
    prefix: &'static str,
    pattern: LazyPattern,
}

/// A pattern that is compiled when it is first needed: Envoy's default ones take megabytes, and most proxies are never asked.
#[derive(Debug)]
struct LazyPattern {
    text: &'static str,
    compiled: OnceLock<Option<Pattern>>,
}

impl LazyPattern {
    fn get(&self) -> Option<&Pattern> {
        self.compiled.get_or_init(|| Pattern::new(self.text).ok()).as_ref()
    }
}

/// Envoy reads these patterns with the syntax of ECMAScript, and Istio's bootstrap uses its look-ahead. What needs none runs in linear
/// time; what does is given up after a bounded number of steps, as no match.
#[derive(Debug)]
enum Pattern {
    Linear(regex::Regex),
    Backtracking(fancy_regex::Regex),
}

impl Pattern {
    fn new(pattern: &str) -> Result<Self, TagError> {
        match regex::Regex::new(pattern) {
            Ok(linear) => Ok(Self::Linear(linear)),
            Err(_) => Ok(Self::Backtracking(fancy_regex::Regex::new(pattern)?)),
        }
    }

    fn group_count(&self) -> usize {
        match self {
            Self::Linear(pattern) => pattern.captures_len(),
            Self::Backtracking(pattern) => pattern.captures_len(),
        }
    }

    /// Where in `name` the first two groups matched something.
    fn groups(&self, name: &str) -> Option<[Option<Range<usize>>; 2]> {
        let groups = match self {
            Self::Linear(pattern) => {
                let found = pattern.captures(name)?;
                [1, 2].map(|group| found.get(group).map(|group| group.range()))
            }
            Self::Backtracking(pattern) => {
                let found = pattern.captures(name).ok()??;
                [1, 2].map(|group| found.get(group).map(|group| group.range()))
            }
        };
        Some(groups.map(|group| group.filter(|range| !range.is_empty())))
    }
}

/// Why a tag cannot be extracted.
#[derive(Debug, Error)]
pub enum TagError {
    /// The pattern cannot be read.
    #[error("is no valid pattern: {0}")]
    Pattern(#[from] fancy_regex::Error),
    /// The pattern has no group.
    #[error("needs at least one group in parentheses: what it matches is taken out of the name")]
    NoGroup,
    /// Neither pattern nor value, and the name is not one of Envoy's.
    #[error("`{0}` is not one of Envoy's default tags, so it needs a regex or fixed_value")]
    UnknownDefault(String),
}

/// A name without its tags, and the tags.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tagged {
    /// The name that all stats of one kind share.
    pub name: String,
    /// Tags and values, in the order of the extractors.
    pub tags: Vec<(String, String)>,
}

impl TagExtractor {
    /// Envoy's default tags.
    pub fn with_defaults() -> Self {
        let mut extractor = Self::default();
        for (tag, prefix, pattern) in DEFAULT_TAGS {
            extractor.extractors.push(Extractor::of_default(tag, prefix, pattern));
        }
        extractor
    }

    /// Adds a tag with a pattern of its own.
    pub fn add_pattern(&mut self, tag: &str, pattern: &str) -> Result<(), TagError> {
        self.extractors.push(Extractor::new(tag, pattern)?);
        Ok(())
    }

    /// Adds one of Envoy's default tags.
    pub fn add_default(&mut self, tag: &str) -> Result<(), TagError> {
        let before = self.extractors.len();
        for (known, prefix, pattern) in DEFAULT_TAGS.iter().filter(|(known, ..)| *known == tag) {
            self.extractors.push(Extractor::of_default(known, prefix, pattern));
        }
        if self.extractors.len() == before { Err(TagError::UnknownDefault(tag.to_owned())) } else { Ok(()) }
    }

    /// Adds a tag with one value for every stat.
    pub fn add_fixed(&mut self, tag: &str, value: &str) {
        self.fixed.push((tag.into(), value.into()));
    }

    /// Takes the tags out of `name`.
    pub fn extract(&self, name: &str) -> Tagged {
        let mut tagged = Tagged::default();
        let mut removed: Vec<Range<usize>> = Vec::new();
        for (tag, value) in &self.fixed {
            tagged.tags.push((tag.to_string(), value.to_string()));
        }
        for extractor in &self.extractors {
            // Of several patterns for one tag the first that matches counts.
            if !name.starts_with(extractor.prefix) || tagged.tags.iter().any(|(tag, _)| **tag == *extractor.tag) {
                continue;
            }
            let Some([Some(taken), value]) = extractor.pattern.get().and_then(|pattern| pattern.groups(name)) else {
                continue;
            };
            let value = value.unwrap_or_else(|| taken.clone());
            tagged.tags.push((extractor.tag.to_string(), name.get(value).unwrap_or_default().to_owned()));
            removed.push(taken);
        }
        removed.sort_by_key(|range| range.start);
        let mut kept_to = 0;
        for range in removed {
            tagged.name.push_str(name.get(kept_to..range.start).unwrap_or_default());
            kept_to = kept_to.max(range.end);
        }
        tagged.name.push_str(name.get(kept_to..).unwrap_or_default());
        tagged
    }
}

impl Extractor {
    /// An extractor with a user's pattern, which is compiled at once so that its faults are reported.
    fn new(tag: &str, pattern: &str) -> Result<Self, TagError> {
        let pattern = Pattern::new(pattern)?;
        if pattern.group_count() < 2 {
            return Err(TagError::NoGroup);
        }
        let pattern = LazyPattern { text: "", compiled: OnceLock::from(Some(pattern)) };
        Ok(Self { tag: tag.into(), prefix: "", pattern })
    }

    fn of_default(tag: &str, prefix: &'static str, text: &'static str) -> Self {
        Self { tag: tag.into(), prefix, pattern: LazyPattern { text, compiled: OnceLock::new() } }
    }
}

/// Envoy's default tags that this proxy's stats can meet: tag, how matching names begin, pattern.
/// Source: Envoy, "Statistics, tags"; checked against the labels that Envoy 1.40 gives.
const DEFAULT_TAGS: &[(&str, &str, &str)] = &[
    ("envoy.response_code", "", r"_rq(_(\d{3}))$"),
    ("envoy.response_code_class", "", r"_rq_(\d)xx$"),
    ("envoy.grpc_bridge_method", "cluster.", r"^cluster\.[^.]+\.grpc\.[^.]+\.(([^.]+)\.)\w+$"),
    ("envoy.http_user_agent", "http.", r"^http\.[^.]+\.user_agent\.(([^.]+)\.)\w+$"),
    ("envoy.virtual_cluster", "vhost.", r"^vhost\.[^.]+\.vcluster\.(([^.]+)\.)\w+$"),
    ("envoy.fault_downstream_cluster", "http.", r"^http\.[^.]+\.fault\.(([^.]+)\.)\w+$"),
    ("envoy.ssl_cipher", "listener.", r"^listener\..*?\.ssl\.cipher(\.(.*?))$"),
    ("cipher_suite", "cluster.", r"^cluster\.[^.]+\.ssl\.ciphers(\.(.*?))$"),
    ("envoy.grpc_bridge_service", "cluster.", r"^cluster\.[^.]+\.grpc\.(([^.]+)\.)"),
    ("envoy.tcp_prefix", "tcp.", r"^tcp\.((.*?)\.)\w+$"),
    ("envoy.udp_prefix", "udp.", r"^udp\.((.*?)\.)\w+$"),
    ("envoy.clientssl_prefix", "auth.", r"^auth\.clientssl\.((.*?)\.)\w+$"),
    ("envoy.ratelimit_prefix", "ratelimit.", r"^ratelimit\.((.*?)\.)\w+$"),
    ("envoy.cluster_name", "cluster.", r"^cluster\.(([^.]+)\.)"),
    ("envoy.http_conn_manager_prefix", "listener.", r"^listener\..*?\.http\.(([^.]+)\.)"),
    ("envoy.http_conn_manager_prefix", "http.", r"^http\.(([^.]+)\.)"),
    ("envoy.worker_id", "listener.", r"^listener\..*?\.worker(_(\d+))\."),
    ("envoy.worker_id", "server.", r"^server\.worker(_(\d+))\."),
    ("envoy.worker_id", "torus.", r"^torus\.worker(_(\d+))\."),
    ("envoy.listener_address", "listener.", r"^listener\.(((?:\d{1,3}(?:\.\d{1,3}){3}|\[[a-fA-F_\d]+\])_\d+)\.)"),
    ("envoy.virtual_host", "vhost.", r"^vhost\.(([^.]+)\.)"),
    ("envoy.route", "vhost.", r"^vhost\.[^.]+\.route\.(([^.]+)\.)"),
    ("envoy.rds_route_config", "http.", r"^http\.[^.]+\.rds\.((.*?)\.)\w+$"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_pattern_compiles() {
        for (tag, _, pattern) in DEFAULT_TAGS {
            let pattern = Pattern::new(pattern);
            assert!(pattern.is_ok_and(|pattern| pattern.group_count() >= 2), "{tag}");
        }
    }

    #[test]
    fn default_tags_are_those_of_envoy() {
        let extractor = TagExtractor::with_defaults();
        assert_eq!(extractor.extractors.len(), DEFAULT_TAGS.len(), "every pattern compiles");
        let check = |name: &str, without: &str, tags: &[(&str, &str)]| {
            let tagged = extractor.extract(name);
            assert_eq!(tagged.name, without);
            let found: Vec<_> = tagged.tags.iter().map(|(tag, value)| (tag.as_str(), value.as_str())).collect();
            assert_eq!(found, tags, "{name}");
        };
        // Recorded from Envoy 1.40's /stats/prometheus.
        check("server.live", "server.live", &[]);
        check("cluster.c1.upstream_rq_total", "cluster.upstream_rq_total", &[("envoy.cluster_name", "c1")]);
        check(
            "cluster.c1.external.upstream_rq_200",
            "cluster.external.upstream_rq",
            &[("envoy.response_code", "200"), ("envoy.cluster_name", "c1")],
        );
        check(
            "cluster.c1.upstream_rq_2xx",
            "cluster.upstream_rq_xx",
            &[("envoy.response_code_class", "2"), ("envoy.cluster_name", "c1")],
        );
        check("http.in.no_route", "http.no_route", &[("envoy.http_conn_manager_prefix", "in")]);
        check(
            "listener.127.0.0.1_29080.http.in.downstream_rq_4xx",
            "listener.http.downstream_rq_xx",
            &[
                ("envoy.response_code_class", "4"),
                ("envoy.http_conn_manager_prefix", "in"),
                ("envoy.listener_address", "127.0.0.1_29080"),
            ],
        );
        check(
            "listener.[__1]_80.worker_0.downstream_cx_total",
            "listener.worker.downstream_cx_total",
            &[("envoy.worker_id", "0"), ("envoy.listener_address", "[__1]_80")],
        );
        check("listener.admin.downstream_cx_total", "listener.admin.downstream_cx_total", &[]);
        check(
            "listener.admin.http.admin.downstream_rq_completed",
            "listener.admin.http.downstream_rq_completed",
            &[("envoy.http_conn_manager_prefix", "admin")],
        );
        check("server.worker_1.watchdog_miss", "server.worker.watchdog_miss", &[("envoy.worker_id", "1")]);
        check(
            "vhost.vh.vcluster.other.upstream_rq_retry",
            "vhost.vcluster.upstream_rq_retry",
            &[("envoy.virtual_cluster", "other"), ("envoy.virtual_host", "vh")],
        );
        check(
            "vhost.vh.route.r.upstream_rq_404",
            "vhost.route.upstream_rq",
            &[("envoy.response_code", "404"), ("envoy.virtual_host", "vh"), ("envoy.route", "r")],
        );
    }

    #[test]
    fn own_tags_take_names_apart_as_istio_does() {
        let mut extractor = TagExtractor::default();
        extractor.add_pattern("cluster_name", r"^cluster\.((.+?(\..+?\.svc\.cluster\.local)?)\.)").unwrap();
        extractor.add_pattern("response_code", r"(response_code=\.=(.+?);\.;)|_rq(_(\.d{3}))$").unwrap();
        extractor.add_fixed("mesh", "m");
        let tagged = extractor.extract("cluster.outbound|80||a.b.svc.cluster.local.upstream_rq_total");
        assert_eq!(tagged.name, "cluster.upstream_rq_total");
        let tags: Vec<_> = tagged.tags.iter().map(|(tag, value)| format!("{tag}={value}")).collect();
        assert_eq!(tags, ["mesh=m", "cluster_name=outbound|80||a.b.svc.cluster.local"]);
    }

    #[test]
    fn bad_tags_say_what_they_need() {
        let mut extractor = TagExtractor::default();
        assert!(matches!(extractor.add_pattern("a", "("), Err(TagError::Pattern(_))));
        assert!(matches!(extractor.add_pattern("a", "b"), Err(TagError::NoGroup)));
        assert!(matches!(extractor.add_default("a"), Err(TagError::UnknownDefault(_))));
        assert!(extractor.add_default("envoy.cluster_name").is_ok());
    }

    #[test]
    fn istios_patterns_are_read() {
        let check = |pattern: &str, name: &str, without: &str, value: &str| {
            let mut extractor = TagExtractor::default();
            extractor.add_pattern("t", pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            let tagged = extractor.extract(name);
            assert_eq!(
                (tagged.name.as_str(), tagged.tags),
                (without, vec![("t".to_owned(), value.to_owned())]),
                "{pattern}"
            );
        };
        check(r"^cluster(\.(.+);)", "cluster.a|80;.upstream_rq", "cluster.upstream_rq", "a|80");
        let prefix = r"(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)";
        let manager = format!(r"^listener(?=\.).*?\.http\.{prefix}");
        check(&manager, "listener.0.0.0.0_80.http.127.0.0.1_8080.rq", "listener.0.0.0.0_80.http.rq", "127.0.0.1_8080");
        check(&format!(r"^listener\.{prefix}"), "listener.0.0.0.0_80.cx", "listener.cx", "0.0.0.0_80");
        check(r"^tcp\.((.*?)\.)\w+?$", "tcp.a.b.cx", "tcp.cx", "a.b");
        check(r"_rq(_(\dxx))$", "cluster.a.upstream_rq_2xx", "cluster.a.upstream_rq", "2xx");
        let http = r"^http\.(((?:[_.[:digit:]\w]*|[_\[\]aAbBcCdDeEfF[:digit:]\w\:]*));\.)";
        check(http, "http.inbound_0;.rq", "http.rq", "inbound_0");
    }
}
