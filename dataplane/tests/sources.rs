//! Where configuration comes from other than one stream of one server: files that are replaced, servers of which some are dead, a
//! unix socket. No request fails.

mod plane;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use plane::*;

/// Puts `resources`, given as YAML, as a file at `path` in one step.
fn place(path: &Path, kind: &str, version: u32, resources: &[String]) {
    let resources = resources.iter().map(|yaml| {
        let indented = yaml.trim().replace('\n', "\n  ");
        let separator = if indented.starts_with('{') {
            indented.replacen('{', &format!("{{'@type': {}, ", url(kind)), 1)
        } else {
            format!("'@type': {}\n  {indented}", url(kind))
        };
        format!("- {separator}\n")
    });
    rename_over(path, &format!("version_info: '{version}'\nresources:\n{}", resources.collect::<String>()));
}

fn rename_over(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// The value of a stat, by its admin server.
fn stat(admin: u16, name: &str) -> u64 {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", admin)).unwrap();
    let request = format!("GET /stats?filter=^{name}$ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let line = reply.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

fn start(bootstrap: &str, log: &Path) -> Proxy {
    let child: Child = Command::new(env!("CARGO_BIN_EXE_torus-proxy"))
        .args(["--concurrency", "2", "--drain-time-s", "2", "--config-yaml", bootstrap, "--log-path"])
        .arg(log)
        .spawn()
        .unwrap();
    Proxy(child)
}

#[test]
fn files_are_taken_when_they_are_replaced_and_what_is_broken_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (cds, lds, rds) = (path("cds.yaml"), path("lds.yaml"), path("rds.yaml"));
    let (port, admin, backends) = (free_port(), free_port(), [backend("a"), backend("b")]);
    let file = |path: &Path| format!("{{path_config_source: {{path: {}}}, resource_api_version: V3}}", path.display());
    let pointed = |to: usize, timeout: u32| {
        let endpoints = endpoints("a", backends[to]);
        format!("{{name: a, type: STATIC, connect_timeout: {timeout}s, load_assignment: {endpoints}}}")
    };
    let listening =
        |server: &str| listener("in", port, server).replace("{ads: {}, resource_api_version: V3}", &file(&rds));
    let second = format!("{{name: b, type: STATIC, load_assignment: {}}}", endpoints("b", backends[1]));
    place(&cds, CLUSTER, 1, &[pointed(0, 1), second.clone()]);
    place(&lds, LISTENER, 1, &[listening("one")]);
    place(&rds, ROUTES, 1, &[routes("a")]);
    let bootstrap = format!(
        "node: {{id: test, cluster: test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
dynamic_resources:
  cds_config: {}
  lds_config: {}
",
        file(&cds),
        file(&lds)
    );
    let log = path("log");
    let _proxy = start(&bootstrap, &log);
    wait_for("it serves", || get(port).is_some_and(|reply| reply == (200, "a".to_owned())));
    let load = Load::start("127.0.0.1", port);
    let lines = |text: &str| fs::read_to_string(&log).unwrap().lines().filter(|line| line.contains(text)).count();

    // Each kind, by a rename.
    place(&rds, ROUTES, 2, &[routes("b")]);
    load.goes_to(1);
    place(&rds, ROUTES, 3, &[routes("a")]);
    load.goes_to(0);
    place(&cds, CLUSTER, 2, &[pointed(1, 2), second.clone()]);
    load.goes_to(1);
    place(&lds, LISTENER, 2, &[listening("two")]);
    wait_for("the listener", || stat(admin, "listener_manager.lds.update_success") == 2);
    load.goes_to(1);

    // A resource that cannot be used.
    place(&cds, CLUSTER, 3, &["{name: a, type: ORIGINAL_DST}".to_owned(), second.clone()]);
    place(&lds, LISTENER, 3, &[listening("three").replace("127.0.0.1", "nowhere")]);
    place(&rds, ROUTES, 4, &["{name: routes, virtual_hosts: [{name: v, domains: []}]}".to_owned()]);
    let stats = [
        "cluster_manager.cds.update_rejected",
        "listener_manager.lds.update_rejected",
        "http.in.rds.routes.update_rejected",
    ];
    for name in stats {
        wait_for(name, || stat(admin, name) == 1);
    }
    load.goes_to(1);
    for (text, path) in [
        ("cluster `a` is refused", &cds),
        ("listener `in` is refused", &lds),
        ("route table `routes` is refused", &rds),
    ] {
        assert_eq!(lines(text), 1, "{text}");
        assert_eq!(lines(&format!("{}: {text}", path.display())), 1, "{text} says in which file");
    }
    // A file that is none. Source: Envoy counts it as a failure, since no answer could be read.
    rename_over(&cds, "resources: [{");
    wait_for("the failure", || stat(admin, "cluster_manager.cds.update_failure") == 1);
    load.goes_to(1);
    assert_eq!(lines(&format!("the configuration stays as it is: {}:", cds.display())), 1);

    // Mended.
    place(&cds, CLUSTER, 5, &[pointed(0, 3), second]);
    load.goes_to(0);
    place(&rds, ROUTES, 5, &[routes("b")]);
    load.goes_to(1);
    place(&lds, LISTENER, 5, &[listening("five")]);
    wait_for("the listener", || stat(admin, "listener_manager.lds.update_success") == 3);
    load.goes_to(1);
    println!("{} requests, none failed", load.finish());
}

/// Two clusters of control planes, in this order, of one stream.
fn two_services(api: &str, first: &str, second: &str) -> String {
    let base = bootstrap(api, 1);
    let (head, _) = base.split_once("static_resources:").unwrap();
    let services = "[{envoy_grpc: {cluster_name: first}}, {envoy_grpc: {cluster_name: second}}]";
    let head = head.replace("[{envoy_grpc: {cluster_name: plane}}]", services);
    let cluster = |name: &str, address: &str| {
        format!(
            "  - {{name: {name}, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {address}}}}}]}}]}}}}\n"
        )
    };
    format!("{head}static_resources:\n  clusters:\n{}{}", cluster("first", first), cluster("second", second))
}

fn socket(port: u16) -> String {
    format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}")
}

fn filled(port: u16, a: u16, b: u16) -> Plane {
    let plane = Plane::new();
    plane.put(&[
        (CLUSTER, "a", Some(&cluster("a"))),
        (CLUSTER, "b", Some(&cluster("b"))),
        (ENDPOINTS, "a", Some(&endpoints("a", a))),
        (ENDPOINTS, "b", Some(&endpoints("b", b))),
        (LISTENER, "in", Some(&listener("in", port, "one"))),
        (ROUTES, "routes", Some(&routes("a"))),
    ]);
    plane
}

#[test]
fn the_second_server_is_asked_where_the_first_is_dead_or_dies() {
    for api in ["GRPC", "DELTA_GRPC"] {
        let folder = tempfile::tempdir().unwrap();
        let (port, first, second) = (free_port(), free_port(), free_port());
        let plane = filled(port, backend("a"), backend("b"));
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        // The first is dead from the start.
        let second_server = plane.serve(local(second));
        let bootstrap = two_services(api, &socket(first), &socket(second));
        let _proxy = start(&bootstrap, &folder.path().join("log"));
        wait_for("it serves", || get(port).is_some_and(|reply| reply == (200, "a".to_owned())));
        let load = Load::start("127.0.0.1", port);
        load.goes_to(0);
        // The one in use dies while the other is there.
        let _first_server = plane.serve(local(first));
        drop(second_server);
        let died = Instant::now();
        plane.put(&[(ROUTES, "routes", Some(&routes("b")))]);
        load.goes_to(1);
        let took = died.elapsed();
        assert!(took < Duration::from_secs(5), "{api}: fail-over took {took:?}");
        println!("{api}: fail-over in {took:?}, {} requests, none failed", load.finish());
    }
}

#[test]
fn a_control_plane_is_reached_by_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let (port, path) = (free_port(), folder.path().join("plane"));
    let plane = filled(port, backend("a"), backend("b"));
    let _server = plane.serve_unix(&path);
    let pipe = format!("{{pipe: {{path: {}}}}}", path.display());
    let _proxy = start(&two_services("GRPC", &pipe, &pipe), &folder.path().join("log"));
    wait_for("it serves", || get(port).is_some_and(|reply| reply == (200, "a".to_owned())));
    plane.put(&[(ROUTES, "routes", Some(&routes("b")))]);
    wait_for("a push", || get(port).is_some_and(|reply| reply == (200, "b".to_owned())));
}

#[test]
fn clusters_and_listeners_have_servers_of_their_own() {
    for api in ["GRPC", "DELTA_GRPC"] {
        let folder = tempfile::tempdir().unwrap();
        let (port, [first, second]) = (free_port(), [free_port(), free_port()]);
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let pointed = |name: &str, backend: u16| {
            format!("{{name: {name}, type: STATIC, load_assignment: {}}}", endpoints(name, backend))
        };
        let listening = |to: &str| {
            // The two servers answer in no order: the listener may be there before its cluster.
            let inline = format!("route_config: {}", routes(to).replacen('{', "{validate_clusters: false, ", 1));
            let rds = "rds: {route_config_name: routes, config_source: {ads: {}, resource_api_version: V3}}";
            listener("in", port, "one").replace(rds, &inline)
        };
        let (clusters, listeners) = (Plane::new(), Plane::new());
        let [a, b] = [backend("a"), backend("b")];
        clusters.put(&[(CLUSTER, "a", Some(&pointed("a", a))), (CLUSTER, "b", Some(&pointed("b", b)))]);
        listeners.put(&[(LISTENER, "in", Some(&listening("a")))]);
        let (cluster_server, _listener_server) = (clusters.serve(local(first)), listeners.serve(local(second)));
        let source = |name: &str| {
            let services = format!("[{{envoy_grpc: {{cluster_name: {name}}}}}]");
            format!(
                "{{resource_api_version: V3, api_config_source: {{api_type: {api}, transport_api_version: V3, grpc_services: {services}}}}}"
            )
        };
        let base = two_services(api, &socket(first), &socket(second));
        let (_, statics) = base.split_once("static_resources:").unwrap();
        let (cds, lds) = (source("first"), source("second"));
        let bootstrap = format!(
            "node: {{id: test, cluster: test}}\ndynamic_resources:\n  cds_config: {cds}\n  lds_config: {lds}\nstatic_resources:{statics}"
        );
        let _proxy = start(&bootstrap, &folder.path().join("log"));
        wait_for("it serves", || get(port).is_some_and(|reply| reply == (200, "a".to_owned())));
        let load = Load::start("127.0.0.1", port);
        load.goes_to(0);
        // One of them is gone; the other is followed all the same.
        drop(cluster_server);
        listeners.put(&[(LISTENER, "in", Some(&listening("b")))]);
        load.goes_to(1);
        clusters.put(&[(CLUSTER, "b", Some(&pointed("b", a)))]);
        let _cluster_server = clusters.serve(local(first));
        load.goes_to(0);
        println!("{api}: {} requests, none failed", load.finish());
    }
}
