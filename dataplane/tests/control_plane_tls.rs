//! Control planes that are reached under TLS, and those that are named by a URI.

mod plane;

use std::fs;
use std::path::Path;
use std::process::Command;

use plane::tls::{Authority, SeenHandshake};
use plane::*;

/// A proxy whose control plane is what `services` says, with these static clusters.
fn start(services: &str, clusters: &str, log: &Path) -> Proxy {
    let bootstrap = format!(
        "node: {{id: test, cluster: test}}
dynamic_resources:
  ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{services}]}}
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  lds_config: {{ads: {{}}, resource_api_version: V3}}
static_resources:
  clusters: [{clusters}]
"
    );
    let child = Command::new(env!("CARGO_BIN_EXE_torus-proxy"))
        .args(["--concurrency", "1", "--config-yaml", &bootstrap, "--log-path"])
        .arg(log)
        .spawn();
    Proxy(child.unwrap())
}

fn is_served(port: u16) -> bool {
    get(port).is_some_and(|reply| reply == (200, "a".to_owned()))
}

/// A control plane that has a listener on `port`.
fn filled(port: u16) -> Plane {
    let plane = Plane::new();
    plane.put(&[
        (CLUSTER, "a", Some(&cluster("a"))),
        (ENDPOINTS, "a", Some(&endpoints("a", backend("a")))),
        (LISTENER, "in", Some(&listener("in", port, "one"))),
        (ROUTES, "routes", Some(&routes("a"))),
    ]);
    plane
}

/// The cluster `plane` at `port`, whose certificate must have the name `san`; `certificate` is what the proxy shows.
fn cluster_under_tls(port: u16, folder: &Path, san: &str, certificate: Option<&str>) -> String {
    let path = |name: &str| folder.join(name).display().to_string();
    let shown = certificate.map_or_else(String::new, |name| {
        let (chain, key) = (path(&format!("{name}.pem")), path(&format!("{name}.key")));
        format!("tls_certificates: [{{certificate_chain: {{filename: {chain}}}, private_key: {{filename: {key}}}}}], ")
    });
    let names = format!("match_typed_subject_alt_names: [{{san_type: DNS, matcher: {{exact: {san}}}}}]");
    let validation = format!("validation_context: {{trusted_ca: {{filename: {}}}, {names}}}", path("ca.pem"));
    format!(
        "{{name: plane, load_assignment: {{cluster_name: plane, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: \
         {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}, transport_socket: {{name: tls, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: plane.test, \
         common_tls_context: {{{shown}{validation}}}}}}}}}"
    )
}

const BY_CLUSTER: &str = "{envoy_grpc: {cluster_name: plane}}";

#[test]
fn a_control_plane_is_followed_under_mutual_tls() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.sign("plane.test");
    authority.sign("proxy.test");
    let (port, plane_port) = (free_port(), free_port());
    let plane = filled(port);
    let (_server, seen) = plane.serve_tls(plane_port, &authority, "plane.test", true);
    let clusters = cluster_under_tls(plane_port, folder.path(), "plane.test", Some("proxy.test"));
    let _proxy = start(BY_CLUSTER, &clusters, &folder.path().join("log"));
    wait_for("it serves", || is_served(port));
    let wanted =
        SeenHandshake { server_name: Some("plane.test".to_owned()), protocol: Some("h2".to_owned()), shows: true };
    assert_eq!(*seen.lock().unwrap(), [wanted]);
}

#[test]
fn a_control_plane_that_is_not_who_it_should_be_is_told_nothing() {
    for (san, certificate, wanted) in [
        // Its certificate has another name; the authority is right.
        ("other.test", Some("proxy.test"), "invalid peer certificate"),
        // It wants to know who asks. The alert comes after the handshake in TLS 1.3, with or without the stream.
        ("plane.test", None, "no control plane: "),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path());
        authority.sign("plane.test");
        authority.sign("proxy.test");
        let (port, plane_port) = (free_port(), free_port());
        let plane = filled(port);
        let (_server, seen) = plane.serve_tls(plane_port, &authority, "plane.test", true);
        let log = folder.path().join("log");
        let _proxy = start(BY_CLUSTER, &cluster_under_tls(plane_port, folder.path(), san, certificate), &log);
        let said = || fs::read_to_string(&log).unwrap_or_default();
        let line = format!("no control plane: 127.0.0.1:{plane_port}: ");
        wait_for("the reason in the log", || said().lines().any(|it| it.contains(&line) && it.contains(wanted)));
        assert!(!is_served(port));
        assert_eq!(*seen.lock().unwrap(), []);
    }
}

#[test]
fn a_server_that_a_uri_names_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.sign("localhost");
    authority.sign("proxy.test");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let ssl = format!(
        "{{ssl_credentials: {{root_certs: {{filename: {}}}, private_key: {{filename: {}}}, cert_chain: {{filename: {}}}}}}}",
        path("ca.pem"),
        path("proxy.test.key"),
        path("proxy.test.pem")
    );
    let (port, plane_port) = (free_port(), free_port());
    let plane = filled(port);
    let (server, seen) = plane.serve_tls(plane_port, &authority, "localhost", true);
    let service = format!(
        "{{google_grpc: {{target_uri: 'dns:///localhost:{plane_port}', stat_prefix: plane, channel_credentials: {ssl}}}}}"
    );
    let proxy = start(&service, "", &folder.path().join("log"));
    wait_for("it serves", || is_served(port));
    let shown: Vec<bool> = seen.lock().unwrap().iter().map(|handshake| handshake.shows).collect();
    assert_eq!(shown, [true]);
    drop((proxy, server));

    // In the clear, where no credentials are named.
    let (port, plane_port) = (free_port(), free_port());
    let _server = filled(port).serve(([127, 0, 0, 1], plane_port).into());
    let service = format!("{{google_grpc: {{target_uri: '127.0.0.1:{plane_port}', stat_prefix: plane}}}}");
    let _proxy = start(&service, "", &folder.path().join("log"));
    wait_for("it serves", || is_served(port));
}
