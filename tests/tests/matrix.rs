//! Every pairing of HTTP/1.1 and HTTP/2, with and without TLS on each side, with hyper as client and as backend: bodies arrive as they were
//! sent, each side can break off, a slow reader is waited for, and memory stays within the windows.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, TE, TRAILER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use torus_tests::ports::free_port;
use torus_tests::proxy::{Kind, Proxy};

const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "gateway.test";
const LARGE_PIECES: usize = 64;
const PIECE_BYTES: usize = 64 * 1024;
/// What windows, socket buffers and TLS records of the connections may take besides a first use of everything.
const GROWTH_MAX: u64 = 24 * 1024 * 1024;

type Body = BoxBody<Bytes, io::Error>;

/// One certificate for all, and its key, as PEM.
struct Certificate {
    chain: String,
    key: String,
}

impl Certificate {
    fn make() -> Self {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
        Self { chain: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }

    fn server(&self, alpn: &[u8]) -> TlsAcceptor {
        let chain = CertificateDer::from_pem_slice(self.chain.as_bytes()).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM");
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![chain], key);
        let mut config = config.expect("a certificate with its key");
        config.alpn_protocols = vec![alpn.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    fn client(&self, alpn: &[u8]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.chain.as_bytes()).expect("PEM")).expect("a certificate");
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        TlsConnector::from(Arc::new(config))
    }
}

/// Starts a backend on a thread of its own.
fn backend(http2: bool, tls: Option<TlsAcceptor>) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    listener.set_nonblocking(true).expect("a socket");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).expect("a socket");
            while let Ok((stream, _)) = listener.accept().await {
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, http2).await,
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                            assert_eq!(is_http2, http2, "the gateway asks for the protocol that it speaks");
                            serve(stream, http2).await;
                        }
                    }
                });
            }
        });
    });
    port
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, http2: bool) {
    let io = TokioIo::new(stream);
    // A client that goes or a reply that breaks off is an error here, and wanted.
    let _ = match http2 {
        false => hyper::server::conn::http1::Builder::new().serve_connection(io, service_fn(answer)).await,
        true => {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(io, service_fn(answer))
                .await
        }
    };
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
    if request.method() == Method::HEAD {
        // hyper sends the body of a HEAD over HTTP/2 if it gets one.
        let mut reply = Response::new(empty());
        reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("5"));
        return Ok(reply);
    }
    let action = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    Ok(match action.as_str() {
        "echo" => {
            let body = request.into_body().collect().await.map_err(io::Error::other)?;
            let trailers = body.trailers().cloned();
            let data = body.to_bytes();
            let mut reply = Response::new(full(data, trailers.clone()));
            if trailers.is_some() {
                reply.headers_mut().insert(TRAILER, HeaderValue::from_static("x-end"));
            }
            reply
        }
        "large" => Response::new(pieces(LARGE_PIECES, false)),
        "broken" => Response::new(pieces(2, true)),
        "hang" => std::future::pending().await,
        _ => Response::new(full(Bytes::from_static(b"hello"), None)),
    })
}

fn full(data: Bytes, trailers: Option<HeaderMap>) -> Body {
    match trailers {
        // Without a length: over HTTP/1.1 trailers are for chunks alone.
        Some(trailers) => {
            let frames = [Ok(Frame::data(data)), Ok(Frame::trailers(trailers))];
            BoxBody::new(StreamBody::new(tokio_stream::iter(frames)))
        }
        None => BoxBody::new(Full::new(data).map_err(|never| match never {})),
    }
}

/// So many pieces, and then the end or, once they have left, a break.
fn pieces(count: usize, breaks: bool) -> Body {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for at in 0..count {
            let piece = Frame::data(Bytes::from(vec![at as u8; PIECE_BYTES]));
            if sender.send(Ok(piece)).await.is_err() {
                return;
            }
        }
        if breaks {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let _ = sender.send(Err(io::Error::other("as asked"))).await;
        }
    });
    BoxBody::new(StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)))
}

enum Client {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Client {
    async fn open(port: u16, http2: bool, tls: Option<&Certificate>) -> Self {
        let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await.expect("the gateway accepts");
        match tls {
            None => Self::over(stream, http2).await,
            Some(certificate) => {
                let alpn: &[u8] = if http2 { b"h2" } else { b"http/1.1" };
                let name = ServerName::try_from(NAME).expect("a name");
                let stream = certificate.client(alpn).connect(name, stream).await.expect("a handshake");
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn));
                Self::over(stream, http2).await
            }
        }
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, http2: bool) -> Self {
        let io = TokioIo::new(stream);
        if http2 {
            let (client, connection) = http2::handshake(TokioExecutor::new(), io).await.expect("a handshake");
            tokio::spawn(connection);
            Self::Http2(client)
        } else {
            let (client, connection) = http1::handshake(io).await.expect("a handshake");
            tokio::spawn(connection);
            Self::Http1(client)
        }
    }

    fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Body,
        trailers: bool,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        let headers = request.headers_mut();
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
            headers.insert(TRAILER, HeaderValue::from_static("x-end"));
        }
        match self {
            Self::Http1(_) => {
                headers.insert(HOST, HeaderValue::from_static(NAME));
                *request.uri_mut() = path.parse().expect("a path");
            }
            Self::Http2(_) => *request.uri_mut() = format!("http://{NAME}{path}").parse().expect("an address"),
        }
        let sent = match self {
            Self::Http1(client) => Ok(client.send_request(request)),
            Self::Http2(client) => Err(client.send_request(request)),
        };
        async move {
            match sent {
                Ok(reply) => reply.await,
                Err(reply) => reply.await,
            }
        }
    }
}

fn empty() -> Body {
    BoxBody::new(Empty::new().map_err(|never| match never {}))
}

/// A gateway with a cleartext and a TLS port, and backends behind `/http1/`, `/http1s/`, `/http2/` and `/http2s/`, and two that choose
/// by ALPN.
fn gateway(certificate: &Certificate) -> (Proxy, [u16; 2]) {
    let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let text = |text: &str| json!({ "inline_string": text });
    let tls = |name: &str, mut context: Value| {
        context["@type"] = format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{name}").into();
        json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
    };
    let mut clusters = Vec::new();
    let mut routes = Vec::new();
    for (name, http2, secure, by_alpn) in [
        ("http1", false, false, false),
        ("http1s", false, true, false),
        ("http2", true, false, false),
        ("http2s", true, true, false),
        // The endpoint chooses.
        ("auto1s", false, true, true),
        ("auto2s", true, true, true),
    ] {
        let alpn: &[u8] = if http2 { b"h2" } else { b"http/1.1" };
        let port = backend(http2, secure.then(|| certificate.server(alpn)));
        let endpoint = json!({ "endpoint": { "address": address(port) } });
        let http1 = json!({ "enable_trailers": true });
        let protocol = match (by_alpn, http2) {
            (true, _) => json!({ "auto_config": { "http_protocol_options": http1, "http2_protocol_options": {} } }),
            (false, true) => json!({ "explicit_http_config": { "http2_protocol_options": {} } }),
            (false, false) => json!({ "explicit_http_config": { "http_protocol_options": http1 } }),
        };
        let mut cluster = json!({
            "name": name,
            "type": "STATIC",
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] },
        });
        let mut options = protocol;
        options["@type"] = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into();
        let extension = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        cluster["typed_extension_protocol_options"] = json!({ extension: options });
        if secure {
            // The version that the cluster speaks is offered, or both.
            let context = json!({ "sni": NAME, "common_tls_context": {
                "validation_context": { "trusted_ca": text(&certificate.chain) },
            } });
            cluster["transport_socket"] = tls("UpstreamTlsContext", context);
        }
        clusters.push(cluster);
        let prefix = format!("/{name}/");
        routes.push(json!({ "match": { "prefix": prefix }, "route": { "cluster": name, "timeout": "0s" } }));
    }
    let ports = [free_port(), free_port()];
    let listener = |name: &str, port: u16| {
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "matrix",
            "http_protocol_options": { "enable_trailers": true },
            "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
            }],
        });
        let filter = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager });
        json!({ "name": name, "address": address(port), "filter_chains": [{ "filters": [filter] }] })
    };
    let mut secure = listener("secure", ports[1]);
    let context = json!({ "common_tls_context": {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificates": [{
            "certificate_chain": text(&certificate.chain),
            "private_key": text(&certificate.key),
        }],
    } });
    secure["filter_chains"][0]["transport_socket"] = tls("DownstreamTlsContext", context);
    let bootstrap = json!({ "static_resources": {
        "listeners": [listener("plain", ports[0]), secure],
        "clusters": clusters,
    } });
    (Proxy::start(Kind::Torus, &bootstrap, free_port(), &[]), ports)
}

fn memory(proxy: &Proxy, line: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", proxy.program.id())).expect("it runs");
    let value = text.lines().find_map(|text| text.strip_prefix(line)).expect("the line is there");
    value.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>().expect("a number") * 1024
}

async fn wait_for(proxy: &Proxy, stat: &str, expected: u64) {
    let deadline = Instant::now() + PATIENCE;
    while proxy.stats().get(stat) != Some(&expected) {
        assert!(Instant::now() < deadline, "{stat} is {:?}", proxy.stats().get(stat));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Bytes of the largest body; `TORUS_MATRIX_MEBIBYTES=16` for the long form.
fn large_bytes() -> usize {
    let mebibytes = std::env::var("TORUS_MATRIX_MEBIBYTES").ok().and_then(|count| count.parse().ok()).unwrap_or(4);
    mebibytes * 1024 * 1024
}

/// All cases of one combination.
async fn check(proxy: &Proxy, port: u16, http2: bool, tls: Option<&Certificate>, upstream: &str) {
    let path = |action: &str| format!("/{upstream}/{action}");
    let mut client = Client::open(port, http2, tls).await;
    let reply = client.send(Method::GET, &path("get"), empty(), false).await.expect("a reply to GET");
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(reply.into_body().collect().await.expect("a body").to_bytes(), "hello");
    let reply = client.send(Method::HEAD, &path("get"), empty(), false).await.expect("a reply to HEAD");
    assert_eq!(reply.headers().get("content-length").map(HeaderValue::as_bytes), Some(&b"5"[..]));
    assert!(reply.into_body().collect().await.expect("no body").to_bytes().is_empty());
    for size in [0, 1, 64 * 1024, large_bytes()] {
        let data: Bytes = (0..size).map(|at: usize| (at * 31 % 251) as u8).collect::<Vec<_>>().into();
        let sent = client.send(Method::POST, &path("echo"), full(data.clone(), None), false);
        let echo = sent.await.expect("a reply to POST").into_body().collect().await.expect("a body").to_bytes();
        assert!(echo == data, "{size} bytes: {} came back", echo.len());
    }
    let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-end"), HeaderValue::from_static("e"))]);
    let body = full(Bytes::from_static(b"text"), Some(trailers));
    let reply = client.send(Method::POST, &path("echo"), body, true).await.expect("a reply with trailers");
    let body = reply.into_body().collect().await.expect("a body");
    let end = body.trailers().and_then(|trailers| trailers.get("x-end")).cloned();
    assert_eq!(end.as_ref().map(HeaderValue::as_bytes), Some(&b"e"[..]), "trailers pass both ways");
    assert_eq!(body.to_bytes(), "text");
    // A reader that takes its time.
    let mut reply = client.send(Method::GET, &path("large"), empty(), false).await.expect("a reply").into_body();
    let mut total = 0;
    while let Some(frame) = reply.frame().await {
        let data = frame.expect("a piece").into_data().expect("no trailers");
        let wanted = |at: usize| ((total + at) / PIECE_BYTES) as u8;
        assert!(data.iter().enumerate().all(|(at, byte)| *byte == wanted(at)), "at {total}");
        total += data.len();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(total, LARGE_PIECES * PIECE_BYTES);
    // The backend breaks off.
    let reply = client.send(Method::GET, &path("broken"), empty(), false).await;
    let body = match reply {
        Ok(reply) => reply.into_body().collect().await.map(|body| body.to_bytes().len()),
        Err(error) => Err(error),
    };
    assert!(body.is_err(), "a reply that broke off looks whole: {body:?}");
    // The client goes.
    let mut client = Client::open(port, http2, tls).await;
    let hanging = client.send(Method::GET, &path("hang"), empty(), false);
    assert!(tokio::time::timeout(Duration::from_millis(100), hanging).await.is_err(), "it hangs");
    drop(client);
    wait_for(proxy, "http.matrix.downstream_rq_active", 0).await;
    wait_for(proxy, &format!("cluster.{upstream}.upstream_rq_active"), 0).await;
}

#[tokio::test]
async fn every_pairing_carries_everything() {
    let certificate = Certificate::make();
    let (proxy, ports) = gateway(&certificate);
    let before = memory(&proxy, "VmRSS");
    for (port, tls) in [(ports[0], None), (ports[1], Some(&certificate))] {
        for http2 in [false, true] {
            for upstream in ["http1", "http1s", "http2", "http2s", "auto1s", "auto2s"] {
                let what =
                    format!("HTTP/{} {} to {upstream}", 1 + u8::from(http2), if tls.is_some() { "TLS" } else { "" });
                println!("{what}");
                let checked = tokio::time::timeout(PATIENCE, check(&proxy, port, http2, tls, upstream)).await;
                assert!(checked.is_ok(), "{what}: nothing after {PATIENCE:?}");
            }
        }
    }
    let stats = proxy.stats();
    let total = |cluster: &str, version: u8| stats[&format!("cluster.{cluster}.upstream_cx_http{version}_total")];
    assert_eq!((total("auto1s", 2), total("auto2s", 1)), (0, 0), "each endpoint is spoken to as it chose");
    assert!(total("auto1s", 1) > 0 && total("auto2s", 2) > 0, "each connection is counted once its version is known");
    let growth = memory(&proxy, "VmHWM").saturating_sub(before);
    println!("memory grew by {growth}");
    assert!(growth <= GROWTH_MAX, "memory grew by {growth}");
}
