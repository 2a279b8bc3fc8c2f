use super::*;

const CLUSTER: &str = "
    load_assignment:
      cluster_name: b
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]
";

fn options(arguments: &[&str]) -> Options {
    Options::parse_from(std::iter::once(&"torus-proxy").chain(arguments)).unwrap()
}

fn load_text(text: &str) -> Result<Loaded, LoadError> {
    load(&options(&["--config-yaml", text]), 1)
}

fn findings(result: Result<Loaded, LoadError>) -> Vec<String> {
    match result {
        Ok(_) => Vec::new(),
        Err(LoadError::Refused(findings)) => findings.iter().map(|finding| finding.line().to_string()).collect(),
        Err(error) => vec![error.to_string()],
    }
}

fn listener(name: &str, port: u16, cluster: &str) -> String {
    format!(
        "
  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]}}
          http_filters:
          - name: r
            typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"
    )
}

#[test]
fn the_example_gateway_loads() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/gateway.yaml");
    let loaded = load(&options(&["-c", path, "--service-zone", "z"]), 2).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.snapshot.listeners.len(), 1);
    assert!(loaded.snapshot.cluster_named("backend").is_some());
    assert_eq!(loaded.admin.unwrap().address.unwrap().to_string(), "127.0.0.1:9901");
    assert_eq!((&*loaded.node.id, &*loaded.node.cluster, &*loaded.node.zone), ("gateway-1", "gateway", "z"));
    assert_eq!(loaded.connection_count_max, Some(50_000));
    assert_eq!(loaded.stats_flush_interval, Duration::from_secs(5));
    assert_eq!((loaded.raw.listeners().count(), loaded.raw.clusters().count()), (1, 1));
    assert_eq!(loaded.registry.core_count(), 3);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn every_example_loads() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let loaded = load(&options(&["-c", path.to_str().unwrap()]), 1);
            loaded.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            count += 1;
        }
    }
    assert!(count >= 4);
}

#[test]
fn file_and_flag_are_merged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.yaml");
    let clusters = format!("static_resources:\n  clusters:\n  - name: b\n{CLUSTER}");
    std::fs::write(&path, &clusters).unwrap();
    let more = format!("static_resources:\n  listeners:{}node: {{id: n}}", listener("l", 1, "b"));
    let loaded = load(&options(&["-c", path.to_str().unwrap(), "--config-yaml", &more]), 1);
    let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((loaded.snapshot.listeners.len(), loaded.snapshot.clusters.len()), (1, 1));
    assert_eq!(&*loaded.node.id, "n");
}

#[test]
fn every_problem_is_reported_with_its_place() {
    let text = format!(
        "static_resources:\n  listeners:{}{}  clusters:\n  - name: b\n{CLUSTER}  - name: b\n{CLUSTER}  - name: c\n    connect_timeout: -1s\n{CLUSTER}cluster_manager: {{local_cluster_name: d}}\nstats_flush_interval: 0s\n",
        listener("l", 1, "b"),
        listener("l", 1, "b").replace("stat_prefix: in", "stat_prefix: ''"),
    );
    let found = findings(load_text(&text));
    let expect = [
        "static_resources.clusters[1].name: another cluster is called `b`",
        "static_resources.clusters[2].connect_timeout: ",
        "static_resources.listeners[1].filter_chains[0].filters[0].typed_config.stat_prefix: must not be empty",
        "cluster_manager.local_cluster_name: zone-aware routing: not there yet in this version",
        "stats_flush_interval: must be at least 1ms and less than 300s",
    ];
    for expect in expect {
        let finding = found.iter().find(|finding| finding.contains(expect));
        let finding = finding.unwrap_or_else(|| panic!("{expect}: {found:#?}"));
        assert!(finding.starts_with("--config-yaml:"), "{finding}");
    }
    assert_eq!(found.len(), expect.len(), "{found:#?}");
    let lines: Vec<u32> = found.iter().map(|finding| finding.split(':').nth(1).unwrap().parse().unwrap()).collect();
    assert_eq!(lines, [23, 34, 40, 45, 46]);
}

#[test]
fn unknown_fields_and_missing_files_are_named() {
    let found = findings(load_text("node: {idd: a}"));
    assert_eq!(
        found,
        ["--config-yaml:1:8: node: unknown field `idd` of envoy.config.core.v3.Node; did you mean `id`?"]
    );
    let missing = load(&options(&["-c", "/nowhere.yaml"]), 1).err().unwrap().to_string();
    assert_eq!(
        missing,
        "cannot read configuration `/nowhere.yaml`: No such file or directory (os error 2); check the path after -c"
    );
    let loaded = load(&options(&["--config-yaml", "node: {idd: a}", "--allow-unknown-static-fields"]), 1);
    let warnings: Vec<String> = loaded.unwrap().warnings.iter().map(|finding| finding.line().to_string()).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

#[test]
fn runtime_layers_are_flattened() {
    let text = "layered_runtime: {layers: [{name: a, static_layer: {x: {y: 1}}}, {name: b, admin_layer: {}}]}";
    let loaded = load_text(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.runtime.integer("x.y", 0), 1);
    assert_eq!(loaded.connection_count_max, None);
    let limit = "layered_runtime: {layers: [{name: a, static_layer: {overload.global_downstream_max_connections: 7}}]}";
    assert_eq!(load_text(limit).unwrap_or_else(|error| panic!("{error}")).connection_count_max, Some(7));
    let found =
        findings(load_text("layered_runtime: {layers: [{name: a, static_layer: {}}, {name: a, static_layer: {}}]}"));
    assert!(found[0].contains("layered_runtime.layers[1].name: another layer is called `a`"), "{found:?}");
}
