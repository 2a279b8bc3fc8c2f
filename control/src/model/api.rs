//! Istio's networking API as Rust types: the fields that translation reads, with Istio's JSON names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::config::Origin;

/// A duration as protobuf's JSON (`1.5s`) or Go (`1m30s`) writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_span(&text)
            .map(Span)
            .ok_or_else(|| D::Error::custom(format!("`{text}` is not a duration such as 1.5s or 1m30s")))
    }
}

/// The duration that `text` spells, or `None`.
pub fn parse_span(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at_checked(digits)?;
        let number: f64 = number.parse().ok()?;
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(end)?;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

/// An object and the path of a field in it.
#[derive(Debug, Clone, PartialEq)]
pub struct MadeFrom {
    pub origin: Arc<Origin>,
    pub path: String,
}

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name { $($(#[$attribute])* pub $field: $kind,)* }
    )*};
}

messages! {
    Port { number: u32, protocol: String, name: String, target_port: u32, }
    Gateway { selector: BTreeMap<String, String>, servers: Vec<Server>, }
    Server { port: Port, bind: String, hosts: Vec<String>, tls: Option<ServerTls>, default_endpoint: String, name: String, }
    ServerTls {
        https_redirect: bool,
        mode: String,
        server_certificate: String,
        private_key: String,
        ca_certificates: String,
        credential_name: String,
        credential_names: Vec<String>,
        ca_cert_credential_name: String,
        subject_alt_names: Vec<String>,
        verify_certificate_spki: Vec<String>,
        verify_certificate_hash: Vec<String>,
        min_protocol_version: String,
        max_protocol_version: String,
        cipher_suites: Vec<String>,
    }
    VirtualService {
        hosts: Vec<String>,
        gateways: Vec<String>,
        http: Vec<HttpRoute>,
        tls: Vec<L4Route>,
        tcp: Vec<L4Route>,
        export_to: Vec<String>,
    }
    Destination { host: String, subset: String, port: Option<PortSelector>, }
    PortSelector { number: u32, }
    HttpRoute {
        name: String,
        #[serde(rename = "match")]
        matches: Vec<HttpMatch>,
        route: Vec<WeightedDestination>,
        redirect: Option<HttpRedirect>,
        direct_response: Option<DirectResponse>,
        delegate: Option<Delegate>,
        rewrite: Option<HttpRewrite>,
        timeout: Option<Span>,
        retries: Option<HttpRetry>,
        fault: Option<Fault>,
        mirror: Option<Destination>,
        mirrors: Vec<Mirror>,
        mirror_percentage: Option<Percent>,
        cors_policy: Option<Cors>,
        headers: Option<Headers>,
        /// The rule behind a route that was not written as one of a VirtualService.
        #[serde(skip)]
        made_from: Option<MadeFrom>,
    }
    Delegate { name: String, namespace: String, }
    Headers { request: Option<HeaderOperations>, response: Option<HeaderOperations>, }
    HeaderOperations { set: BTreeMap<String, String>, add: BTreeMap<String, String>, remove: Vec<String>, }
    /// A TLS or TCP route.
    L4Route {
        #[serde(rename = "match")]
        matches: Vec<L4Match>,
        route: Vec<WeightedDestination>,
    }
    L4Match {
        sni_hosts: Vec<String>,
        destination_subnets: Vec<String>,
        port: u32,
        source_labels: BTreeMap<String, String>,
        gateways: Vec<String>,
        source_namespace: String,
    }
    HttpMatch {
        name: String,
        uri: Option<StringMatch>,
        scheme: Option<StringMatch>,
        method: Option<StringMatch>,
        authority: Option<StringMatch>,
        headers: BTreeMap<String, StringMatch>,
        without_headers: BTreeMap<String, StringMatch>,
        query_params: BTreeMap<String, StringMatch>,
        port: u32,
        source_labels: BTreeMap<String, String>,
        source_namespace: String,
        gateways: Vec<String>,
        ignore_uri_case: bool,
        stat_prefix: String,
        /// True if the prefix ends where a segment of the path ends, as the Gateway API has it.
        #[serde(skip)]
        whole_segments: bool,
    }
    StringMatch { exact: Option<String>, prefix: Option<String>, regex: Option<String>, }
    WeightedDestination { destination: Destination, weight: u32, headers: Option<Headers>, }
    HttpRedirect {
        uri: String,
        authority: String,
        port: u32,
        derive_port: String,
        scheme: String,
        redirect_code: u32,
        prefix_rewrite: String,
    }
    DirectResponse { status: u32, body: Option<ResponseBody>, }
    ResponseBody { string: Option<String>, bytes: Option<String>, }
    HttpRewrite { uri: String, authority: String, uri_regex_rewrite: Option<RegexRewrite>, }
    RegexRewrite {
        #[serde(rename = "match")]
        pattern: String,
        rewrite: String,
    }
    HttpRetry {
        attempts: u32,
        per_try_timeout: Option<Span>,
        retry_on: String,
        retry_remote_localities: Option<bool>,
        retry_ignore_previous_hosts: Option<bool>,
        backoff: Option<Span>,
    }
    Fault { delay: Option<FaultDelay>, abort: Option<FaultAbort>, }
    FaultDelay { percent: Option<u32>, percentage: Option<Percent>, fixed_delay: Option<Span>, }
    FaultAbort { percentage: Option<Percent>, http_status: Option<u32>, grpc_status: Option<String>, }
    Mirror { destination: Destination, percentage: Option<Percent>, }
    Percent { value: f64, }
    Cors {
        allow_origin: Vec<String>,
        allow_origins: Vec<StringMatch>,
        allow_methods: Vec<String>,
        allow_headers: Vec<String>,
        expose_headers: Vec<String>,
        max_age: Option<Span>,
        allow_credentials: Option<bool>,
        unmatched_preflights: String,
    }
    DestinationRule {
        host: String,
        traffic_policy: Option<TrafficPolicy>,
        subsets: Vec<Subset>,
        export_to: Vec<String>,
        workload_selector: Option<LabelSelector>,
    }
    LabelSelector { match_labels: BTreeMap<String, String>, }
    Subset { name: String, labels: BTreeMap<String, String>, traffic_policy: Option<TrafficPolicy>, }
    TrafficPolicy {
        load_balancer: Option<LoadBalancer>,
        connection_pool: Option<ConnectionPool>,
        outlier_detection: Option<OutlierDetection>,
        tls: Option<ClientTls>,
        port_level_settings: Vec<PortPolicy>,
    }
    PortPolicy {
        port: Option<PortSelector>,
        load_balancer: Option<LoadBalancer>,
        connection_pool: Option<ConnectionPool>,
        outlier_detection: Option<OutlierDetection>,
        tls: Option<ClientTls>,
    }
    LoadBalancer {
        simple: Option<String>,
        consistent_hash: Option<ConsistentHash>,
        locality_lb_setting: Option<LocalitySetting>,
        warmup_duration_secs: Option<Span>,
    }
    LocalitySetting {
        distribute: Vec<Distribute>,
        failover: Vec<Failover>,
        failover_priority: Vec<String>,
        enabled: Option<bool>,
    }
    Distribute { from: String, to: BTreeMap<String, u32>, }
    Failover { from: String, to: String, }
    ConsistentHash {
        http_header_name: Option<String>,
        http_cookie: Option<HashCookie>,
        use_source_ip: Option<bool>,
        http_query_parameter_name: Option<String>,
        ring_hash: Option<RingHash>,
        maglev: Option<Maglev>,
        minimum_ring_size: Option<u64>,
    }
    HashCookie { name: String, path: String, ttl: Option<Span>, }
    RingHash { minimum_ring_size: Option<u64>, }
    Maglev { table_size: Option<u64>, }
    ConnectionPool { tcp: Option<TcpPool>, http: Option<HttpPool>, }
    TcpPool {
        max_connections: Option<u32>,
        connect_timeout: Option<Span>,
        tcp_keepalive: Option<Keepalive>,
        max_connection_duration: Option<Span>,
        idle_timeout: Option<Span>,
    }
    Keepalive { probes: u32, time: Option<Span>, interval: Option<Span>, }
    HttpPool {
        http1_max_pending_requests: Option<u32>,
        http2_max_requests: Option<u32>,
        max_requests_per_connection: Option<u32>,
        max_retries: Option<u32>,
        idle_timeout: Option<Span>,
        h2_upgrade_policy: String,
        use_client_protocol: bool,
        max_concurrent_streams: Option<u32>,
    }
    OutlierDetection {
        consecutive_errors: Option<u32>,
        split_external_local_origin_errors: bool,
        consecutive_local_origin_failures: Option<u32>,
        consecutive_gateway_errors: Option<u32>,
        #[serde(rename = "consecutive5xxErrors")]
        consecutive_5xx_errors: Option<u32>,
        interval: Option<Span>,
        base_ejection_time: Option<Span>,
        max_ejection_percent: Option<u32>,
        min_health_percent: Option<u32>,
    }
    ClientTls {
        mode: String,
        client_certificate: String,
        private_key: String,
        ca_certificates: String,
        credential_name: String,
        subject_alt_names: Vec<String>,
        sni: String,
        insecure_skip_verify: Option<bool>,
    }
    ServiceEntry {
        hosts: Vec<String>,
        addresses: Vec<String>,
        ports: Vec<Port>,
        location: String,
        resolution: String,
        endpoints: Vec<WorkloadEntry>,
        workload_selector: Option<WorkloadSelector>,
        export_to: Vec<String>,
        subject_alt_names: Vec<String>,
    }
    WorkloadSelector { labels: BTreeMap<String, String>, }
    Sidecar {
        workload_selector: Option<WorkloadSelector>,
        ingress: Vec<Ingress>,
        egress: Vec<Egress>,
        outbound_traffic_policy: Option<Policy>,
    }
    Ingress { port: Port, bind: String, default_endpoint: String, tls: Option<ServerTls>, }
    Egress { port: Option<Port>, bind: String, capture_mode: String, hosts: Vec<String>, }
    /// A policy that is one word.
    Policy { mode: String, }
    PeerAuthentication {
        selector: Option<LabelSelector>,
        mtls: Option<Policy>,
        port_level_mtls: BTreeMap<String, Policy>,
    }
    WorkloadEntry {
        address: String,
        ports: BTreeMap<String, u32>,
        labels: BTreeMap<String, String>,
        network: String,
        locality: String,
        weight: u32,
        service_account: String,
    }
    /// The part of MeshConfig that translation reads.
    MeshConfig {
        connect_timeout: Option<Span>,
        trust_domain: String,
        root_namespace: String,
        access_log_file: String,
        access_log_format: String,
        default_service_export_to: Vec<String>,
        default_virtual_service_export_to: Vec<String>,
        default_destination_rule_export_to: Vec<String>,
        default_http_retry_policy: Option<HttpRetry>,
        locality_lb_setting: Option<LocalitySetting>,
        outbound_traffic_policy: Option<Policy>,
        inbound_traffic_policy: Option<Policy>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_in_both_spellings() {
        for (text, wanted) in
            [("1.5s", Some(1500)), ("1m30s", Some(90_000)), ("10ms", Some(10)), ("0", Some(0)), ("5", None), ("", None)]
        {
            assert_eq!(parse_span(text), wanted.map(Duration::from_millis), "{text}");
        }
    }
}
