//! What `--mode validate` warns of: settings that Envoy leaves off, or leaves to the user, and that an edge should not leave so.
//!
//! Protections that change no request's meaning are on by default here. What changes the meaning of a request (paths, trusted addresses)
//! follows Envoy's default, so an operator has to choose it; this says where nobody chose.

use torus_xds::{Diagnostic, Encoded};

use super::address::Address;
use super::snapshot::{FilterChain, Listener, Snapshot, TrafficDirection};
use crate::downstream::{EscapedSlashes, HttpConnectionManager};

/// Warnings about `snapshot`, which was made from `encoded`; `connection_count_max` limits all listeners together.
pub fn advise(snapshot: &Snapshot, connection_count_max: Option<u64>, encoded: &Encoded) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (index, listener) in snapshot.listeners.iter().enumerate().filter(|(_, listener)| is_edge(listener)) {
        let path = format!("static_resources.listeners[{index}]");
        let limited = connection_count_max.is_some() && !listener.ignore_global_connection_limit;
        if !limited && listener.connections.max().is_none() {
            found.push((path.clone(), CONNECTIONS));
        }
        let mut reasons: Vec<&str> =
            listener.chains.iter().filter_map(FilterChain::http).flat_map(|it| manager_advice(it)).collect();
        // Chains of one listener are often alike: each advice is given once.
        reasons.sort_unstable();
        reasons.dedup();
        found.extend(reasons.into_iter().map(|reason| (path.clone(), reason)));
    }
    let findings =
        found.into_iter().map(|(path, reason)| encoded.diagnose(&path, reason.to_owned(), None).into_warning());
    findings.collect()
}

/// Who sends to a sidecar, to this machine or over a unix socket was let in before.
fn is_edge(listener: &Listener) -> bool {
    let is_open = |address: &Address| address.ip().is_some_and(|ip| !ip.ip().is_loopback());
    listener.direction == TrafficDirection::Unspecified && listener.addresses.iter().any(is_open)
}

fn manager_advice(manager: &HttpConnectionManager) -> Vec<&'static str> {
    let edge = &manager.edge;
    let mut reasons = Vec::new();
    if !edge.use_remote_address && edge.trusted_hop_count == 0 {
        reasons.push(REMOTE_ADDRESS);
    }
    if !edge.normalize_path {
        reasons.push(NORMALIZE_PATH);
    }
    if !edge.merge_slashes {
        reasons.push(MERGE_SLASHES);
    }
    if edge.escaped_slashes == EscapedSlashes::Keep {
        reasons.push(ESCAPED_SLASHES);
    }
    if manager.timeouts.stream_idle.is_none() && manager.timeouts.request.is_none() {
        reasons.push(TIMEOUTS);
    }
    reasons
}

const CONNECTIONS: &str =
    "nothing limits connections; set overload_manager with envoy.resource_monitors.global_downstream_max_connections";
const REMOTE_ADDRESS: &str = "use_remote_address is off and xff_num_trusted_hops is 0, so any client can choose its address with x-forwarded-for";
const NORMALIZE_PATH: &str = "normalize_path is off, so /a/../b matches routes of /a and may be served as /b";
const MERGE_SLASHES: &str = "merge_slashes is off, so //a escapes routes of /a that the backend may take for it";
const ESCAPED_SLASHES: &str = "path_with_escaped_slashes_action keeps %2F, which the backend may take for a slash; UNESCAPE_AND_REDIRECT or REJECT_REQUEST is safer";
const TIMEOUTS: &str =
    "stream_idle_timeout and request_timeout are both off, so a silent client holds its request forever";

#[cfg(test)]
mod tests {
    use crate::config::bootstrap::load;
    use crate::config::flags::Options;

    const GATEWAY: &str = "
static_resources:
  listeners:
  - address: {socket_address: {address: ADDRESS, port_value: 1}}
    filter_chains:
    - filters:
      - name: h
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: s
          SAFE
          route_config: {}
          http_filters: [{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
";

    #[test]
    fn an_edge_is_warned_until_somebody_chose() {
        let check = |address: &str, safe: &str, mode: &str, expected: usize| {
            let text = GATEWAY.replace("ADDRESS", address).replace("SAFE", safe);
            let options = Options::parse_from(["x", "--config-yaml", &text, "--mode", mode]).unwrap();
            let loaded = load(&options, 1).unwrap_or_else(|error| panic!("{error}"));
            let shown: Vec<String> = loaded.warnings.iter().map(|warning| warning.line().to_string()).collect();
            assert_eq!(shown.len(), expected, "{shown:#?}");
            assert!(
                shown
                    .iter()
                    .all(|line| line.starts_with("--config-yaml:4:5: warning: static_resources.listeners[0]: "))
            );
        };
        let safe = "{use_remote_address: true, normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: REJECT_REQUEST}";
        let safe = safe.trim_matches(['{', '}']).replace(", ", "\n          ");
        check("0.0.0.0", "", "validate", 5);
        check("0.0.0.0", &safe, "validate", 1);
        check("127.0.0.1", "", "validate", 0);
        check("0.0.0.0", "", "serve", 0);
    }
}
