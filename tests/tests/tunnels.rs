//! Tunnels through the gateway: WebSocket and CONNECT, over HTTP/1.1 and HTTP/2 on either side (RFC 9110 §9.3.6, RFC 8441).

use std::future::poll_fn;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use torus_tests::ports::free_port;
use torus_tests::program::Program;
use torus_tests::proxy::{Kind, Proxy};

const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than every window and buffer on the way.
const LARGE_BYTES: usize = 3 * 1024 * 1024;

/// A gateway to the three backends of [`backends`].
struct Bed {
    proxy: Proxy,
    port: u16,
    log: tempfile::TempDir,
}

fn address(port: u16) -> Value {
    json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } })
}

fn bed(ports: [u16; 3], allow_connect: bool) -> Bed {
    let port = free_port();
    let log = tempfile::tempdir().expect("a scratch folder");
    let cluster = |name: &str, port: u16, protocol: Value| {
        let endpoint = json!({ "endpoint": { "address": address(port) } });
        let assignment = json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] });
        let options = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": protocol,
        } });
        json!({ "name": name, "type": "STATIC", "load_assignment": assignment, "typed_extension_protocol_options": options })
    };
    let connect = |name: &str, cluster: &str, upgrade: Value| {
        json!({ "name": name, "domains": [format!("{name}:1")], "routes": [
            { "match": { "connect_matcher": {} }, "route": { "cluster": cluster, "upgrade_configs": [upgrade] } },
        ] })
    };
    let allowed = json!({ "upgrade_type": "CONNECT" });
    let websocket = |path: &str, cluster: &str| {
        let upgrade = json!([{ "upgrade_type": "websocket" }]);
        json!({ "match": { "prefix": path }, "route": { "cluster": cluster, "timeout": "1s", "upgrade_configs": upgrade } })
    };
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "http2_protocol_options": { "allow_connect": allow_connect },
        "route_config": { "virtual_hosts": [
            connect("ends", "raw", json!({ "upgrade_type": "CONNECT", "connect_config": {} })),
            connect("nobody", "closed", json!({ "upgrade_type": "CONNECT", "connect_config": {} })),
            connect("http1", "http1", allowed.clone()),
            connect("http2", "http2", allowed.clone()),
            connect("off", "http1", json!({ "upgrade_type": "CONNECT", "enabled": false })),
            { "name": "all", "domains": ["*"], "routes": [websocket("/http1", "http1"), websocket("/http2", "http2")] },
        ] },
        "access_log": [{
            "name": "log",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": log.path().join("log"),
                "log_format": { "text_format_source": {
                    "inline_string": "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT%\n",
                } },
            },
        }],
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    let filter = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager });
    let [raw, http1, http2] = ports;
    let bootstrap = json!({ "static_resources": {
        "listeners": [{ "name": "l", "address": address(port), "filter_chains": [{ "filters": [filter] }] }],
        "clusters": [
            cluster("raw", raw, json!({ "http_protocol_options": {} })),
            cluster("closed", free_port(), json!({ "http_protocol_options": {} })),
            cluster("http1", http1, json!({ "http_protocol_options": {} })),
            cluster("http2", http2, json!({ "http2_protocol_options": {} })),
        ],
    } });
    Bed { proxy: Proxy::start(Kind::Torus, &bootstrap, free_port(), &[]), port, log }
}

impl Bed {
    async fn wait_for(&self, stat: &str, expected: u64) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.proxy.stats().get(stat) != Some(&expected) {
            assert!(std::time::Instant::now() < deadline, "{stat} is {:?}", self.proxy.stats().get(stat));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The log's last line, once there are `count`.
    async fn log_line(&self, count: usize) -> String {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(self.log.path().join("log")).unwrap_or_default();
            if text.matches('\n').count() >= count || std::time::Instant::now() > deadline {
                return text.lines().last().unwrap_or_default().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Echoes bytes and ends when its peer has; speaks HTTP first where `http` says so.
async fn serve_socket(mut stream: TcpStream, http: bool) {
    if http {
        let head = read_head(&mut stream).await;
        let is_connect = head.starts_with("CONNECT http1:1 HTTP/1.1\r\nhost: http1:1\r\n");
        if !is_connect {
            assert!(head.starts_with("GET /http1") && head.contains("\r\nupgrade: websocket\r\n"), "{head}");
            assert!(head.contains("\r\nsec-websocket-key: "), "{head}");
        }
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        if head.contains("x-refuse") {
            stream.write_all(b"HTTP/1.1 407 No\r\ncontent-length: 2\r\n\r\nno").await.expect("the gateway reads");
            return;
        }
        let early = tokio::time::timeout(Duration::from_millis(100), stream.read_u8()).await;
        assert!(early.is_err(), "a byte came before the tunnel was granted: {early:?}");
        let reply = match is_connect {
            true => "HTTP/1.1 200 OK\r\nx-backend: http1\r\n\r\n",
            false => "HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: x\r\n\r\n",
        };
        stream.write_all(reply.as_bytes()).await.expect("the gateway reads");
    }
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

async fn serve_http2(stream: TcpStream, takes_protocols: bool) {
    let mut builder = h2::server::Builder::new();
    if takes_protocols {
        builder.enable_connect_protocol();
    }
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        assert_eq!(request.method(), Method::CONNECT);
        match request.extensions().get::<Protocol>() {
            Some(protocol) => {
                assert_eq!((protocol.as_str(), request.uri().path()), ("websocket", "/http2"));
                assert!(request.headers().get("upgrade").is_none() && request.headers().get("connection").is_none());
            }
            None => assert_eq!(request.uri().authority().map(|it| it.as_str()), Some("http2:1")),
        }
        tokio::spawn(async move {
            let mut receive = request.into_body();
            let early = tokio::time::timeout(Duration::from_millis(100), receive.data()).await;
            assert!(early.is_err(), "a byte came before the tunnel was granted");
            let mut send = respond.send_response(Response::new(()), false).expect("an open stream");
            while let Some(Ok(data)) = receive.data().await {
                let _ = receive.flow_control().release_capacity(data.len());
                send_all(&mut send, data).await;
            }
            let _ = send.send_data(Bytes::new(), true);
        });
    }
}

/// Starts the three backends: bytes, HTTP/1.1, HTTP/2.
async fn backends(takes_protocols: bool) -> [u16; 3] {
    let mut ports = [0; 3];
    for (kind, port) in ports.iter_mut().enumerate() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        *port = listener.local_addr().expect("a bound socket has an address").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                match kind {
                    2 => drop(tokio::spawn(serve_http2(stream, takes_protocols))),
                    kind => drop(tokio::spawn(serve_socket(stream, kind == 1))),
                }
            }
        });
    }
    ports
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head comes"));
    }
    String::from_utf8(head).expect("heads are text")
}

async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let Some(Ok(capacity)) = poll_fn(|cx| send.poll_capacity(cx)).await else { return };
        let _ = send.send_data(data.split_to(capacity.min(data.len())), false);
    }
}

async fn receive_all(receive: &mut RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(data) = receive.data().await {
        let data = data.expect("the stream is not reset");
        let _ = receive.flow_control().release_capacity(data.len());
        all.extend_from_slice(&data);
    }
    all
}

fn large() -> Bytes {
    (0..LARGE_BYTES).map(|at| (at * 31 % 251) as u8).collect::<Vec<_>>().into()
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ask {
    Connect(&'static str),
    WebSocket(&'static str),
}

impl Ask {
    fn http1(self, more: &str) -> String {
        match self {
            Self::Connect(host) => format!("CONNECT {host}:1 HTTP/1.1\r\nhost: {host}:1\r\n{more}\r\n"),
            Self::WebSocket(path) => format!(
                "GET /{path} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
            ),
        }
    }

    fn http2(self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        match self {
            Self::Connect(host) => *request.uri_mut() = format!("{host}:1").parse().expect("an authority"),
            Self::WebSocket(path) => {
                *request.uri_mut() = format!("http://a/{path}").parse().expect("an address");
                request.extensions_mut().insert(Protocol::from_static("websocket"));
            }
        }
        request
    }
}

/// Sends all of [`large`] through a tunnel over HTTP/1.1, with its first bytes right behind the head, and ends.
async fn talk_http1(port: u16, ask: Ask) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the gateway accepts");
    let data = large();
    stream.write_all(ask.http1("").as_bytes()).await.expect("the gateway reads");
    stream.write_all(&data[..1000]).await.expect("the gateway reads");
    let head = read_head(&mut stream).await;
    match ask {
        Ask::Connect(_) => assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{ask:?}: {head}"),
        Ask::WebSocket(path) => {
            assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{ask:?}: {head}");
            assert!(
                head.contains("\r\nupgrade: websocket\r\n") && head.contains("\r\nconnection: upgrade\r\n"),
                "{head}"
            );
            // An HTTP/2 backend has no answer to the key.
            let accept = if path == "http1" { "x" } else { "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" };
            assert!(head.contains(&format!("\r\nsec-websocket-accept: {accept}\r\n")), "{head}");
        }
    }
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{ask:?}: {head}");
    assert!(!head.contains("connection: close"), "{ask:?}: {head}");
    let (mut read, mut write) = stream.into_split();
    let rest = data.slice(1000..);
    let writing = tokio::spawn(async move {
        write.write_all(&rest).await.expect("the gateway reads");
        write.shutdown().await.expect("an open connection");
    });
    let mut echo = Vec::new();
    read.read_to_end(&mut echo).await.expect("the tunnel ends in order");
    assert!(echo == data, "{ask:?}: {} of {} bytes came back", echo.len(), data.len());
    writing.await.expect("all was written");
}

async fn open_http2(port: u16) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the gateway accepts");
    let (client, connection) = h2::client::handshake(stream).await.expect("a handshake");
    tokio::spawn(connection);
    client.ready().await.expect("an open connection")
}

async fn talk_http2(port: u16, ask: Ask) {
    let mut client = open_http2(port).await;
    let deadline = std::time::Instant::now() + PATIENCE;
    while !client.is_extended_connect_protocol_enabled() {
        assert!(std::time::Instant::now() < deadline, "SETTINGS allow no protocol");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (response, mut send) = client.send_request(ask.http2(), false).expect("an open connection");
    let data = large();
    // Early.
    send_all(&mut send, data.slice(..1000)).await;
    let response = response.await.expect("a reply");
    assert_eq!(response.status(), StatusCode::OK, "{ask:?}");
    for name in ["upgrade", "connection", "content-length", "sec-websocket-accept"] {
        assert!(response.headers().get(name).is_none(), "{ask:?}: {:?}", response.headers());
    }
    let mut receive = response.into_body();
    let rest = data.slice(1000..);
    let writing = async {
        send_all(&mut send, rest).await;
        send.send_data(Bytes::new(), true).expect("an open stream");
    };
    let ((), echo) = tokio::join!(writing, receive_all(&mut receive));
    assert!(echo == data, "{ask:?}: {} of {} bytes came back", echo.len(), data.len());
}

#[tokio::test]
async fn bytes_pass_whole_in_each_pairing_and_none_before_the_tunnel_is_granted() {
    let bed = bed(backends(true).await, true);
    let asks = [
        Ask::Connect("ends"),
        Ask::Connect("http1"),
        Ask::Connect("http2"),
        Ask::WebSocket("http1"),
        Ask::WebSocket("http2"),
    ];
    let mut count = 0;
    for ask in asks {
        tokio::time::timeout(PATIENCE, talk_http1(bed.port, ask))
            .await
            .unwrap_or_else(|_| panic!("{ask:?} over HTTP/1.1"));
        tokio::time::timeout(PATIENCE, talk_http2(bed.port, ask))
            .await
            .unwrap_or_else(|_| panic!("{ask:?} over HTTP/2"));
        count += 2;
        let line = bed.log_line(count).await;
        assert!(line.ends_with(&format!(" - {LARGE_BYTES} {LARGE_BYTES}")), "{ask:?}: {line}");
    }
    bed.wait_for("http.test.downstream_cx_upgrades_active", 0).await;
    assert_eq!(bed.proxy.stats().get("http.test.downstream_cx_upgrades_total"), Some(&10));
    bed.wait_for("cluster.raw.upstream_cx_active", 0).await;
    bed.wait_for("cluster.http1.upstream_cx_active", 0).await;
    bed.wait_for("cluster.http2.upstream_rq_active", 0).await;
    assert_eq!(bed.proxy.stats().get("cluster.http2.upstream_rq_tx_reset"), Some(&0));
}

#[tokio::test]
async fn a_tunnel_that_is_not_granted_says_so() {
    let bed = bed(backends(false).await, true);
    let ask = async |ask: Ask, more: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", bed.port)).await.expect("the gateway accepts");
        stream
            .write_all((ask.http1(more) + "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes())
            .await
            .expect("read");
        let mut reply = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut reply)).await;
        assert!(ended.is_ok(), "{ask:?}: the connection lives on");
        let reply = String::from_utf8_lossy(&reply).into_owned();
        assert_eq!(reply.matches("HTTP/1.1").count(), 1, "{ask:?}: {reply}");
        reply
    };
    let over_http2 = async |ask: Ask| {
        let mut client = open_http2(bed.port).await;
        let (response, _send) = client.send_request(ask.http2(), false).expect("an open connection");
        response.await.map(|response| response.status().as_u16()).map_err(|error| error.reason())
    };
    for (what, more, status) in [
        // By the route.
        (Ask::Connect("off"), "", "403"),
        // No route takes a CONNECT.
        (Ask::Connect("other"), "", "404"),
        // The backend is not there.
        (Ask::Connect("nobody"), "", "503"),
        // By the backend.
        (Ask::Connect("http1"), "x-refuse: 1\r\n", "407"),
        (Ask::WebSocket("http1"), "x-refuse: 1\r\n", "407"),
        // The HTTP/2 backend's SETTINGS do not allow it.
        (Ask::WebSocket("http2"), "", "502"),
    ] {
        let reply = ask(what, more).await;
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{what:?}: {reply}");
    }
    assert_eq!(over_http2(Ask::Connect("off")).await, Ok(403));
    assert_eq!(over_http2(Ask::Connect("other")).await, Ok(404));
    assert_eq!(over_http2(Ask::Connect("nobody")).await, Ok(503));
    assert_eq!(over_http2(Ask::WebSocket("http2")).await, Ok(502));
    bed.wait_for("http.test.downstream_cx_upgrades_active", 0).await;
}

#[tokio::test]
async fn a_protocol_that_settings_do_not_allow_is_a_stream_error() {
    let bed = bed(backends(true).await, false);
    let mut client = open_http2(bed.port).await;
    assert!(!client.is_extended_connect_protocol_enabled());
    let (response, _send) = client.send_request(Ask::WebSocket("http1").http2(), false).expect("an open connection");
    let error = response.await.expect_err("no reply");
    assert_eq!(error.reason(), Some(h2::Reason::PROTOCOL_ERROR), "{error:?}");
    // CONNECT alone needs no leave.
    let mut client = open_http2(bed.port).await;
    let (response, _send) = client.send_request(Ask::Connect("http1").http2(), false).expect("an open connection");
    assert_eq!(response.await.expect("a reply").status(), StatusCode::OK);
}

#[tokio::test]
async fn either_side_can_cut_a_tunnel() {
    let bed = bed(backends(true).await, true);
    for host in ["ends", "http1", "http2"] {
        // The client resets its stream.
        let mut client = open_http2(bed.port).await;
        let (response, mut send) = client.send_request(Ask::Connect(host).http2(), false).expect("an open connection");
        assert_eq!(response.await.expect("a reply").status(), StatusCode::OK);
        bed.wait_for("http.test.downstream_cx_upgrades_active", 1).await;
        send.send_reset(h2::Reason::CANCEL);
        bed.wait_for("http.test.downstream_cx_upgrades_active", 0).await;
        // And after it had ended its half.
        let (response, mut send) = client.send_request(Ask::Connect(host).http2(), false).expect("an open connection");
        let response = response.await.expect("a reply");
        send.send_data(Bytes::from_static(b"x"), true).expect("an open stream");
        drop(response);
        drop(send);
        bed.wait_for("http.test.downstream_cx_upgrades_active", 0).await;
    }
    bed.wait_for("cluster.raw.upstream_cx_active", 0).await;
    bed.wait_for("cluster.http1.upstream_cx_active", 0).await;
    bed.wait_for("cluster.http2.upstream_rq_active", 0).await;
}

/// Node's HTTP/2, on nghttp2, as both ends.
#[tokio::test]
async fn node_speaks_websocket_over_http2_through_the_gateway() {
    if Command::new("node").arg("--version").output().is_err() {
        println!("skipped: node is missing");
        return;
    }
    let [raw, http1, _] = backends(true).await;
    let upstream = free_port();
    let folder = tempfile::tempdir().expect("a scratch folder");
    let script = folder.path().join("peer.mjs");
    let mut file = std::fs::File::create(&script).expect("the scratch folder is writable");
    file.write_all(NODE_PEER.as_bytes()).expect("the scratch folder is writable");
    let start = |role: &str, port: u16| {
        let mut command = Command::new("node");
        command.arg(&script).arg(role).arg(port.to_string());
        Program::start(role, command)
    };
    let serving = start("serve", upstream);
    assert!(serving.wait_for_line("serving", PATIENCE).is_some(), "{}", serving.output());
    let bed = bed([raw, http1, upstream], true);
    let mut talking = start("talk", bed.port);
    let deadline = std::time::Instant::now() + PATIENCE;
    while talking.is_running() && std::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let status = talking.wait(Duration::ZERO);
    assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", talking.output());
    let to: SocketAddr = SocketAddr::from(([127, 0, 0, 1], bed.port));
    assert!(TcpStream::connect(to).await.is_ok(), "the gateway serves on");
}

const NODE_PEER: &str = r#"
import http2 from "node:http2";
const [role, port] = process.argv.slice(2);
const data = Buffer.alloc(500000, "0123456789");
if (role === "serve") {
  const server = http2.createServer({ settings: { enableConnectProtocol: true } });
  server.on("stream", (stream, headers) => {
    if (headers[":method"] !== "CONNECT" || headers[":protocol"] !== "websocket") return stream.close();
    stream.respond({ ":status": 200 });
    stream.pipe(stream);
  });
  server.listen(Number(port), "127.0.0.1", () => console.log("serving"));
} else {
  const client = http2.connect(`http://127.0.0.1:${port}`);
  client.on("error", (error) => { console.log("failed", error); process.exit(1); });
  client.once("remoteSettings", (settings) => {
    if (!settings.enableConnectProtocol) { console.log("no SETTINGS_ENABLE_CONNECT_PROTOCOL"); process.exit(1); }
    let left = 2;
    for (const path of ["/http1", "/http2"]) {
      const stream = client.request({ ":method": "CONNECT", ":protocol": "websocket", ":scheme": "http", ":authority": "a", ":path": path });
      const echo = [];
      stream.on("response", (headers) => { if (headers[":status"] !== 200) { console.log(path, headers); process.exit(1); } });
      stream.on("data", (piece) => echo.push(piece));
      stream.on("end", () => {
        if (!Buffer.concat(echo).equals(data)) { console.log(path, "other bytes"); process.exit(1); }
        if (--left === 0) { client.close(); process.exit(0); }
      });
      stream.end(data);
    }
  });
}
"#;
