//! Secrets that are discovered: what names them waits for them, rotation fails no request, what cannot be used changes nothing.

mod plane;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use plane::*;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

/// Who signs.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, both in PEM.
#[derive(Clone)]
struct Leaf {
    pem: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    fn leaf(&self, name: &str) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![SanType::DnsName(format!("{name}.example.com").as_str().try_into().unwrap())];
        Leaf { pem: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

fn inline(pem: &str) -> String {
    format!("{{inline_string: {pem:?}}}")
}

fn certificate(name: &str, pem: &str, key: &str) -> String {
    format!("{{name: {name}, tls_certificate: {{certificate_chain: {}, private_key: {}}}}}", inline(pem), inline(key))
}

fn trust(name: &str, pem: &str) -> String {
    format!("{{name: {name}, validation_context: {{trusted_ca: {}}}}}", inline(pem))
}

fn named(secret: &str, source: &str) -> String {
    format!("{{name: {secret}, sds_config: {{{source}, resource_api_version: V3}}}}")
}

/// A listener with TLS, and with clients' certificates if `trust` says whom to believe.
fn tls_listener(name: &str, port: u16, common: &str, requires: bool) -> String {
    let filters = chain("routes", name);
    format!(
        "name: {name}
address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
filter_chains:
- transport_socket:
    name: tls
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      require_client_certificate: {requires}
      common_tls_context: {{{common}}}
  {filters}
"
    )
}

fn tls_cluster(name: &str, port: u16, common: &str) -> String {
    format!(
        "name: {name}
type: STATIC
load_assignment: {}
transport_socket:
  name: tls
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    common_tls_context: {{{common}}}
",
        endpoints(name, port)
    )
}

fn start(bootstrap: &str) -> Proxy {
    let child = Command::new(env!("CARGO_BIN_EXE_torus-proxy"))
        .args(["--concurrency", "2", "--drain-time-s", "2", "--config-yaml", bootstrap])
        .spawn();
    Proxy(child.unwrap())
}

fn admin_get(port: u16, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    reply
}

fn stat(admin: u16, name: &str) -> u64 {
    let stats = admin_get(admin, "/stats");
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// What openssl says of a handshake.
fn handshake(port: u16, client: Option<&Leaf>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-servername", "server.example.com"]);
    if let Some(leaf) = client {
        for (file, text, flag) in [("c.pem", &leaf.pem, "-cert"), ("c.key", &leaf.key, "-key")] {
            std::fs::write(folder.path().join(file), text).unwrap();
            openssl.arg(flag).arg(folder.path().join(file));
        }
    }
    let output = openssl.stdin(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).replace('\r', "")
}

/// Whether the server of `port` shows this certificate.
fn shows(port: u16, client: Option<&Leaf>, leaf: &Leaf) -> bool {
    handshake(port, client).contains(leaf.pem.trim())
}

#[test]
fn secrets_by_ads_state_of_the_world() {
    drive("GRPC");
}

#[test]
fn secrets_by_ads_delta() {
    drive("DELTA_GRPC");
}

fn drive(api: &str) {
    let (port, plain, admin, plane_port) = (free_port(), free_port(), free_port(), free_port());
    let (root, other) = (Authority::new("root"), Authority::new("other"));
    let (server, client) = (root.leaf("server"), root.leaf("client"));
    let end = backend("a");
    let plane = Plane::new();
    let _server = plane.serve(SocketAddr::from(([127, 0, 0, 1], plane_port)));
    let ads = |name: &str| named(name, "ads: {}");
    let common = format!(
        "tls_certificate_sds_secret_configs: [{}], combined_validation_context: {{default_validation_context: {{match_typed_subject_alt_names: [{{san_type: DNS, matcher: {{exact: client.example.com}}}}]}}, validation_context_sds_secret_config: {}}}",
        ads("server"),
        ads("trust")
    );
    let upstream = format!(
        "tls_certificate_sds_secret_configs: [{}], validation_context_sds_secret_config: {}",
        ads("client"),
        ads("trust")
    );
    let to_end = format!("{{name: end, type: STATIC, load_assignment: {}}}", endpoints("end", end));
    plane.put(&[
        (CLUSTER, "end", Some(&to_end)),
        (CLUSTER, "up", Some(&tls_cluster("up", port, &upstream))),
        (LISTENER, "in", Some(&tls_listener("in", port, &common, true))),
        (LISTENER, "plain", Some(&listener("plain", plain, "plain").replace("routes,", "up,"))),
        (ROUTES, "routes", Some(&routes("end"))),
        (ROUTES, "up", Some(&table("up", "up"))),
    ]);
    let bootstrap = format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}\n{}",
        bootstrap(api, plane_port)
    );
    let _proxy = start(&bootstrap);
    wait_for("it waits for its secrets", || {
        let waits = admin_get(admin, "/init_dump");
        waits.contains("SdsApi server") && waits.contains("SdsApi trust")
    });
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert_eq!(stat(admin, "cluster_manager.warming_clusters"), 1);
    assert!(admin_get(admin, "/config_dump").contains("uninitialized"));
    plane.put(&[
        (SECRET, "server", Some(&certificate("server", &server.pem, &server.key))),
        (SECRET, "client", Some(&certificate("client", &client.pem, &client.key))),
    ]);
    wait_for("some of them came", || stat(admin, "sds.server.update_success") > 0);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "one is missing");
    plane.put(&[(SECRET, "trust", Some(&trust("trust", &root.pem)))]);
    wait_for("it serves", || get(plain).is_some_and(|reply| reply == (200, "a".to_owned())));
    assert!(shows(port, Some(&client), &server));

    // New certificates on both sides while requests are under way, and what cannot be used between them.
    let load = Load::start("127.0.0.1", plain);
    let (mut newest, mut newest_client) = (server, client);
    for round in 0..4 {
        newest = root.leaf("server");
        plane.put(&[(SECRET, "server", Some(&certificate("server", &newest.pem, &newest.key)))]);
        wait_for("new handshakes get the new certificate", || shows(port, Some(&newest_client), &newest));
        load.goes_to(0);
        newest_client = root.leaf("client");
        plane.put(&[(SECRET, "client", Some(&certificate("client", &newest_client.pem, &newest_client.key)))]);
        load.goes_to(0);
        let (yaml, reason) = match round {
            0 => (
                certificate("server", &newest.pem, &newest_client.key),
                "server: tls_certificate.private_key: is not the key of the certificate",
            ),
            1 => (
                certificate("server", "garbage", &newest.key),
                "server: tls_certificate.certificate_chain: holds no certificate in PEM form",
            ),
            2 => (trust("server", &root.pem), "is a validation_context where a tls_certificate is needed"),
            _ => (
                "{name: server, generic_secret: {secret: {inline_string: a}}}".to_owned(),
                "generic_secret: generic secrets: not there yet",
            ),
        };
        plane.put(&[(SECRET, "server", Some(&yaml))]);
        let refused = || plane.refusals.lock().unwrap().iter().any(|it| it.contains(reason));
        wait_for(reason, refused);
        assert!(shows(port, Some(&newest_client), &newest), "the last good one serves");
        load.goes_to(0);
    }
    assert!(stat(admin, "sds.server.update_rejected") >= 4);
    let updates =
        stat(admin, &format!("listener.127.0.0.1_{port}.server_ssl_socket_factory.ssl_context_update_by_sds"));
    assert!(updates >= 5, "{updates}");
    // A secret that is gone stays in use; so does everything else.
    plane.put(&[(SECRET, "server", None)]);
    load.goes_to(0);
    assert!(shows(port, Some(&newest_client), &newest));
    println!("{api}: {} requests, none failed", load.finish());

    let dump = admin_get(admin, "/config_dump");
    assert!(dump.contains("dynamic_active_secrets") && dump.contains("[redacted]"));
    assert!(!dump.contains("PRIVATE KEY"), "keys are nobody's to read");
    // Nobody but the new root is believed.
    let stranger = other.leaf("client");
    plane.put(&[(SECRET, "trust", Some(&trust("trust", &other.pem)))]);
    wait_for("the old root is believed no more", || {
        let before = stat(admin, &format!("listener.127.0.0.1_{port}.ssl.fail_verify_error"));
        handshake(port, Some(&newest_client));
        stat(admin, &format!("listener.127.0.0.1_{port}.ssl.fail_verify_error")) > before
    });
    let before = stat(admin, &format!("listener.127.0.0.1_{port}.ssl.handshake"));
    handshake(port, Some(&stranger));
    assert!(stat(admin, &format!("listener.127.0.0.1_{port}.ssl.handshake")) > before);
}

/// A client's TLS connection that shows `leaf` and believes `root`.
fn connect(port: u16, leaf: &Leaf, root: &Authority) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root.pem.as_bytes()).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(leaf.pem.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
    let name = "server.example.com".try_into().unwrap();
    let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    rustls::StreamOwned::new(rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap(), socket)
}

/// Whether a request on the open connection is answered.
fn asks(stream: &mut (impl std::io::Read + std::io::Write)) -> bool {
    let mut answer = [0; 512];
    write!(stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").is_ok()
        && stream.flush().is_ok()
        && stream.read(&mut answer).is_ok_and(|length| answer[..length].starts_with(b"HTTP/1.1 200"))
}

#[test]
fn connections_end_with_the_trust_that_they_were_made_on() {
    let (port, passed, plain, admin, plane_port) = (free_port(), free_port(), free_port(), free_port(), free_port());
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (server, before, after) = (new.leaf("server"), old.leaf("client"), new.leaf("client"));
    let end = backend("a");
    let plane = Plane::new();
    let _server = plane.serve(SocketAddr::from(([127, 0, 0, 1], plane_port)));
    let ads = |name: &str| named(name, "ads: {}");
    let common = format!(
        "tls_certificate_sds_secret_configs: [{}], validation_context_sds_secret_config: {}",
        ads("server"),
        ads("trust")
    );
    let upstream = format!(
        "tls_certificate_sds_secret_configs: [{}], validation_context_sds_secret_config: {}",
        ads("client"),
        ads("servers")
    );
    let tcp = "filters:
  - name: tcp
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: passed
      cluster: end
";
    let listener_of_bytes = tls_listener("passed", passed, &common, true);
    let listener_of_bytes = listener_of_bytes.replace(&chain("routes", "passed"), tcp);
    let both = format!("{}{}", old.pem, new.pem);
    plane.put(&[
        (CLUSTER, "end", Some(&format!("{{name: end, type: STATIC, load_assignment: {}}}", endpoints("end", end)))),
        (CLUSTER, "up", Some(&tls_cluster("up", port, &upstream))),
        (LISTENER, "in", Some(&tls_listener("in", port, &common, true))),
        (LISTENER, "passed", Some(&listener_of_bytes)),
        (LISTENER, "plain", Some(&listener("plain", plain, "plain").replace("routes,", "up,"))),
        (ROUTES, "routes", Some(&routes("end"))),
        (ROUTES, "up", Some(&table("up", "up"))),
        (SECRET, "server", Some(&certificate("server", &server.pem, &server.key))),
        (SECRET, "client", Some(&certificate("client", &after.pem, &after.key))),
        (SECRET, "trust", Some(&trust("trust", &old.pem))),
        (SECRET, "servers", Some(&trust("servers", &both))),
    ]);
    let bootstrap = format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}\n{}",
        bootstrap("GRPC", plane_port)
    );
    let _proxy = start(&bootstrap);
    wait_for("it serves", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    wait_for("it serves", || TcpStream::connect(("127.0.0.1", passed)).is_ok());
    let updates = || {
        let prefix = format!("listener.127.0.0.1_{port}.server_ssl_socket_factory");
        stat(admin, &format!("{prefix}.ssl_context_update_by_sds"))
    };
    let mut first = [connect(port, &before, &new), connect(passed, &before, &new)];
    assert!(first.iter_mut().all(asks));
    // What is believed besides changes nothing for them.
    let count = updates();
    plane.put(&[(SECRET, "trust", Some(&trust("trust", &both)))]);
    wait_for("both are believed", || updates() > count);
    let mut second = [connect(port, &after, &new), connect(passed, &after, &new)];
    assert!(first.iter_mut().all(asks) && second.iter_mut().all(asks));
    // A connection that was made on the old one ends, the others stay, requests do not notice.
    wait_for("the way over both", || get(plain).is_some_and(|reply| reply == (200, "a".to_owned())));
    let load = Load::start("127.0.0.1", plain);
    load.goes_to(0);
    plane.put(&[(SECRET, "trust", Some(&trust("trust", &new.pem)))]);
    let mut rest = Vec::new();
    assert_eq!(
        first[1].sock.set_read_timeout(Some(PATIENCE)).and_then(|()| first[1].read_to_end(&mut rest)).unwrap_or(0),
        0
    );
    assert!(!asks(&mut first[0]), "it is not answered");
    assert!(second.iter_mut().all(asks));
    load.goes_to(0);
    // So it is with servers: connections to them are made anew.
    let opened = || stat(admin, "cluster.up.upstream_cx_total");
    let count = opened();
    plane.put(&[(SECRET, "servers", Some(&trust("servers", &new.pem)))]);
    wait_for("new connections to the servers", || opened() > count);
    load.goes_to(0);
    load.finish();
    plane.put(&[(SECRET, "servers", Some(&trust("servers", &old.pem)))]);
    wait_for("nobody believes the server", || get(plain).is_some_and(|(status, _)| status == 503));
}

/// Puts `resources`, given as YAML in braces, as a file at `path` in one step.
fn place(path: &Path, resources: &[&str]) {
    let resources =
        resources.iter().map(|yaml| format!("- {}\n", yaml.replacen('{', &format!("{{'@type': {}, ", url(SECRET)), 1)));
    let new = path.with_extension("new");
    std::fs::write(&new, format!("resources:\n{}", resources.collect::<String>())).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[test]
fn secrets_from_files_from_a_unix_socket_and_from_the_bootstrap() {
    let folder = tempfile::tempdir().unwrap();
    let (file, socket) = (folder.path().join("sds.yaml"), folder.path().join("sds.sock"));
    let root = Authority::new("root");
    let (fixed, mut server, client) = (root.leaf("fixed"), root.leaf("server"), root.leaf("client"));
    let (ports, admin) = ([free_port(), free_port(), free_port(), free_port()], free_port());
    let end = backend("a");
    place(&file, &[&certificate("server", &server.pem, &server.key)]);
    let plane = Plane::new();
    let _server = plane.serve_unix(&socket);
    plane.put(&[(SECRET, "default", Some(&certificate("default", &server.pem, &server.key)))]);
    let by_file = format!(
        "path_config_source: {{path: {}, watched_directory: {{path: {}}}}}",
        file.display(),
        folder.path().display()
    );
    let agent = "api_config_source: {api_type: GRPC, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{envoy_grpc: {cluster_name: agent}}]}";
    let late = format!("initial_fetch_timeout: 1s, {agent}");
    let table = "route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: end}}]}]}";
    let rds = "rds: {route_config_name: routes, config_source: {ads: {}, resource_api_version: V3}}";
    let sources =
        ["{name: fixed}".to_owned(), named("server", &by_file), named("default", agent), named("never", &late)];
    let listeners = ports.iter().zip(&sources).enumerate().map(|(place, (port, config))| {
        let common = format!("tls_certificate_sds_secret_configs: [{config}]");
        let listener = tls_listener(&format!("l{place}"), *port, &common, false).replace(rds, table);
        format!("  - {}\n", listener.trim().replace('\n', "\n    "))
    });
    let bootstrap = format!(
        "node: {{id: test, cluster: test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  secrets:
  - {}
  listeners:
{}  clusters:
  - {{name: end, load_assignment: {}}}
  - {{name: agent, http2_protocol_options: {{}}, load_assignment: {{cluster_name: agent, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: {}}}}}}}}}]}}]}}}}
",
        certificate("fixed", &fixed.pem, &fixed.key),
        listeners.collect::<String>(),
        endpoints("end", end),
        socket.display()
    );
    let _proxy = start(&bootstrap);
    wait_for("it serves when the last secret is given up", || admin_get(admin, "/ready").ends_with("LIVE\n"));
    assert!(shows(ports[0], None, &fixed) && shows(ports[1], None, &server) && shows(ports[2], None, &server));
    assert!(handshake(ports[3], None).contains("no peer certificate"));
    let not_ready = |place: usize| {
        let prefix = format!("listener.127.0.0.1_{}.server_ssl_socket_factory", ports[place]);
        stat(admin, &format!("{prefix}.downstream_context_secrets_not_ready"))
    };
    assert_eq!((not_ready(2), not_ready(3)), (0, 1));
    assert_eq!(stat(admin, "sds.never.init_fetch_timeout"), 1);
    // What comes late is used, and what is replaced is.
    plane.put(&[(SECRET, "never", Some(&certificate("never", &client.pem, &client.key)))]);
    wait_for("better late than never", || shows(ports[3], None, &client));
    for _ in 0..3 {
        server = root.leaf("server");
        place(&file, &[&certificate("server", &server.pem, &server.key)]);
        wait_for("the file's new certificate", || shows(ports[1], None, &server));
    }
    place(&file, &["{name: server, tls_certificate: {}}"]);
    wait_for("a refusal", || stat(admin, "sds.server.update_rejected") > 0);
    assert!(shows(ports[1], None, &server));
}

#[test]
fn what_is_wrong_with_named_secrets_is_told_at_the_start() {
    let check = |common: &str, reason: &str| {
        let listener = tls_listener("l", free_port(), common, false);
        let bootstrap = format!("static_resources:\n  listeners:\n  - {}\n", listener.trim().replace('\n', "\n    "));
        let output = Command::new(env!("CARGO_BIN_EXE_torus-proxy"))
            .args(["--mode", "validate", "--config-yaml", &bootstrap])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(reason), "{common}\n{told}");
    };
    check("tls_certificate_sds_secret_configs: [{name: a}]", "no secret of static_resources.secrets is called `a`");
    check("tls_certificate_sds_secret_configs: [{sds_config: {ads: {}}}]", "must not be empty");
    check(
        "tls_certificate_sds_secret_configs: [{name: a, sds_config: {ads: {}}}]",
        "needs dynamic_resources.ads_config",
    );
    check("combined_validation_context: {default_validation_context: {}}", "is required");
}
