//! gRPC through the gateway: grpcio and tonic, each as client and as server, and what the gateway itself says to clients of gRPC.

mod client;
mod raw;
mod server;

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use torus_tests::binaries;
use torus_tests::ports::free_port;
use torus_tests::program::Program;
use torus_tests::proxy::{Kind, Proxy};

const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway to an HTTP/2 upstream at `upstream_port`, where it listens; `more` routes go before the one for everything.
fn gateway(upstream_port: u16, more: &[Value]) -> (Proxy, u16) {
    let port = free_port();
    let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let all = json!({
        "match": { "prefix": "/" },
        "route": { "cluster": "a", "timeout": "0s", "max_stream_duration": { "grpc_timeout_header_max": "0s" } },
    });
    let routes: Vec<&Value> = more.iter().chain([&all]).collect();
    let filters = json!([
        {
            "name": "envoy.filters.http.grpc_stats",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
                "individual_method_stats_allowlist": {
                    "services": [{ "name": "test.Interop", "method_names": ["Expand", "Fail"] }],
                },
                "enable_upstream_stats": true,
            },
        },
        {
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        },
    ]);
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "grpc",
        "http2_protocol_options": { "max_concurrent_streams": 1000 },
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
        "http_filters": filters,
    });
    let filter = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager });
    let endpoint = json!({ "endpoint": { "address": address(upstream_port) } });
    let assignment = json!({ "cluster_name": "a", "endpoints": [{ "lb_endpoints": [endpoint] }] });
    let protocol = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    } });
    let bootstrap = json!({ "static_resources": {
        "listeners": [{ "name": "l", "address": address(port), "filter_chains": [{ "filters": [filter] }] }],
        "clusters": [{
            "name": "a",
            "type": "STATIC",
            "load_assignment": assignment,
            "typed_extension_protocol_options": protocol,
        }],
    } });
    (Proxy::start(Kind::Torus, &bootstrap, free_port(), &[]), port)
}

/// MiB of the large streams; `TORUS_GRPC_MEBIBYTES=1024` for the long form.
fn large_mebibytes() -> usize {
    std::env::var("TORUS_GRPC_MEBIBYTES").ok().and_then(|count| count.parse().ok()).unwrap_or(16)
}

/// A Python with grpcio, or `None`, having said so.
fn grpcio() -> Option<PathBuf> {
    let python = binaries::cache_dir().map(|folder| folder.join("xds/bin/python")).filter(|path| path.is_file());
    if python.is_none() {
        assert!(std::env::var_os("CI").is_none(), "grpcio is missing; try: scripts/install-test-tools.sh");
        println!("skipped: grpcio is missing; try: scripts/install-test-tools.sh");
    }
    python
}

fn python(python: &PathBuf, role: &str, port: u16) -> Program {
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/grpc/peer.py")).arg(role).arg(port.to_string());
    command.env("LARGE_MEBIBYTES", large_mebibytes().to_string());
    Program::start(role, command)
}

fn wait_for_port(port: u16) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(std::time::Instant::now() < deadline, "nobody listens on port {port}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Both clients against the server at `upstream_port`.
fn check_clients(upstream_port: u16, server: &str) {
    wait_for_port(upstream_port);
    let (proxy, port) = gateway(upstream_port, &[]);
    let (count, failed) = client::run(port, large_mebibytes());
    assert!(failed.is_empty(), "tonic with {server}: {} of {count} failed: {failed:#?}", failed.len());
    let stats = proxy.stats();
    let stat = |name: &str| stats.get(name).copied().unwrap_or_default();
    assert_eq!(stat("cluster.a.grpc.test.Interop.Expand.response_message_count"), 500);
    assert_eq!(stat("cluster.a.grpc.test.Interop.Expand.success"), 2);
    assert_eq!(stat("cluster.a.grpc.test.Interop.Fail.failure"), 16);
    assert_eq!(stat("cluster.a.grpc.test.Interop.Fail.7"), 1);
    assert!(stat("cluster.a.grpc.request_message_count") > 500, "calls of other methods are counted together");
    let Some(interpreter) = grpcio() else { return };
    let mut talking = python(&interpreter, "call", port);
    let status = talking.wait(Duration::from_secs(300));
    let printed = talking.output();
    assert!(status.is_some_and(|status| status.success()), "grpcio with {server}: {status:?}\n{printed}");
    // Cancelled calls leave nothing behind.
    let deadline = std::time::Instant::now() + PATIENCE;
    for stat in ["http.grpc.downstream_rq_active", "cluster.a.upstream_rq_active"] {
        while proxy.stats().get(stat) != Some(&0) {
            assert!(std::time::Instant::now() < deadline, "{stat} is {:?}", proxy.stats().get(stat));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn clients_call_tonic_through_the_gateway() {
    let upstream_port = free_port();
    server::start(upstream_port);
    check_clients(upstream_port, "tonic");
}

#[test]
fn clients_call_grpcio_through_the_gateway() {
    let Some(interpreter) = grpcio() else { return };
    let upstream_port = free_port();
    let _serving = python(&interpreter, "serve", upstream_port);
    check_clients(upstream_port, "grpcio");
}

/// What the gateway says in place of an upstream, and the deadlines that it keeps itself.
#[test]
fn the_gateway_speaks_grpc_itself() {
    let upstream_port = free_port();
    server::start(upstream_port);
    wait_for_port(upstream_port);
    let closed = free_port();
    let mut routes = vec![json!({
        "match": { "path": "/test.Interop/Direct" },
        "direct_response": { "status": 429, "body": { "inline_string": "100% too many" } },
    })];
    let route = |path: &str, more: Value| {
        let mut route = json!({ "match": { "path": path }, "route": { "cluster": "a", "timeout": "0s" } });
        for (key, value) in more.as_object().into_iter().flatten() {
            route["route"][key] = value.clone();
        }
        route
    };
    let limit = json!({ "max_stream_duration": { "grpc_timeout_header_max": "0.2s" } });
    routes.push(route("/test.Interop/Endless", limit));
    routes.push(route("/test.Interop/Sleep", json!({ "timeout": "0.2s" })));
    let retry = json!({ "retry_policy": { "retry_on": "unavailable", "num_retries": 2 } });
    routes.push(route("/test.Interop/Fail", retry));
    let (proxy, port) = gateway(upstream_port, &routes);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ask = |port: u16, method: &str, message: &'static str, timeout: Option<&'static str>| {
        runtime.block_on(async {
            let address = format!("http://127.0.0.1:{port}");
            let channel = tonic::transport::Channel::from_shared(address).expect("an address");
            let channel = channel.connect().await.expect("the gateway accepts");
            let mut grpc = tonic::client::Grpc::new(channel);
            grpc.ready().await.expect("a channel");
            let mut request = tonic::Request::new(Bytes::from_static(message.as_bytes()));
            if let Some(timeout) = timeout {
                request.metadata_mut().insert("grpc-timeout", timeout.parse().expect("text"));
            }
            let path = format!("/test.Interop/{method}").parse().expect("a path");
            let reply = grpc.server_streaming(request, path, raw::Raw).await;
            let mut replies = reply?.into_inner();
            while replies.message().await?.is_some() {}
            Ok::<(), tonic::Status>(())
        })
    };
    let check = |port: u16, method: &str, message, timeout, code: tonic::Code, text: &str| {
        let status = ask(port, method, message, timeout).expect_err("it fails");
        assert!(status.code() == code && status.message().contains(text), "{method}: {status:?}");
    };
    use tonic::Code;
    check(port, "Direct", "", None, Code::Unavailable, "100% too many");
    check(port, "Sleep", "5", None, Code::Unavailable, "upstream request timeout");
    // Each of three attempts.
    check(port, "Fail", "14", None, Code::Unavailable, "failed");
    assert_eq!(proxy.stats().get("cluster.a.upstream_rq_retry"), Some(&2));
    check(port, "Fail", "13", None, Code::Internal, "failed");
    assert_eq!(proxy.stats().get("cluster.a.upstream_rq_retry"), Some(&2));
    // The route's maximum holds although the client allows more, and although messages flow.
    let started = std::time::Instant::now();
    assert!(ask(port, "Endless", "", Some("9S")).is_err(), "it never ends by itself");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(proxy.stats().get("http.grpc.downstream_rq_max_duration_reached"), Some(&1));
    let (_proxy, port) = gateway(closed, &[]);
    check(port, "Echo", "", None, Code::Unavailable, "upstream connect error");
}
