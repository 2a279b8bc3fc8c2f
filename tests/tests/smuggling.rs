//! Request smuggling where the version of HTTP changes or stays HTTP/2: the vectors of HTTP/1.1 to an HTTP/2 backend, and messages of HTTP/2
//! that would mean something else to an HTTP/1.1 backend, to both. `malformed.rs` has the fourth pairing, HTTP/1.1 on both sides.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use torus_tests::backend::{Backend, Journal};
use torus_tests::ports::free_port;
use torus_tests::proxy::{Kind, Proxy};

#[path = "../vectors/requests/mod.rs"]
mod requests;

const PATIENCE: Duration = Duration::from_secs(5);

/// What an HTTP/2 backend received of a request.
#[derive(Clone, Debug)]
struct Received {
    path: String,
    fields: Vec<String>,
    body_bytes: usize,
    is_complete: bool,
}

type Received2 = Arc<Mutex<Vec<Received>>>;

/// An HTTP/2 backend that answers 200 to everything and writes down what it was asked.
fn http2_backend() -> (u16, Received2) {
    let received = Received2::default();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    listener.set_nonblocking(true).expect("a socket");
    let records = Arc::clone(&received);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&records)));
            }
        });
    });
    (port, received)
}

async fn serve(stream: tokio::net::TcpStream, records: Received2) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let records = Arc::clone(&records);
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let fields = head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("?")));
            let path = head.uri.path_and_query().map_or("", |path| path.as_str()).to_owned();
            let mut record = Received { path, fields: fields.collect(), body_bytes: 0, is_complete: true };
            while let Some(data) = body.data().await {
                let Ok(data) = data else {
                    record.is_complete = false;
                    break;
                };
                let _ = body.flow_control().release_capacity(data.len());
                record.body_bytes += data.len();
            }
            record.is_complete &= body.trailers().await.is_ok();
            records.lock().expect("no backend panicked").push(record);
            if let Ok(mut reply) = respond.send_response(http::Response::new(()), false) {
                let _ = reply.send_data(Bytes::from_static(b"ok"), true);
            }
        });
    }
}

/// A gateway that sends `/http1/` to one port and everything else to an HTTP/2 backend at the other.
fn gateway(http1: u16, http2: u16) -> (Proxy, u16) {
    let port = free_port();
    let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let cluster = |name: &str, port: u16, protocol: Value| {
        let endpoint = json!({ "endpoint": { "address": address(port) } });
        let assignment = json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] });
        let options = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": protocol,
        } });
        json!({ "name": name, "type": "STATIC", "load_assignment": assignment, "typed_extension_protocol_options": options })
    };
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "delayed_close_timeout": "0.05s",
        "http_protocol_options": { "enable_trailers": true },
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
            { "match": { "prefix": "/http1/" }, "route": { "cluster": "http1" } },
            { "match": { "prefix": "/" }, "route": { "cluster": "http2" } },
        ] }] },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    let filter = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager });
    let bootstrap = json!({ "static_resources": {
        "listeners": [{ "name": "l", "address": address(port), "filter_chains": [{ "filters": [filter] }] }],
        "clusters": [
            cluster("http1", http1, json!({ "http_protocol_options": { "enable_trailers": true } })),
            cluster("http2", http2, json!({ "http2_protocol_options": {} })),
        ],
    } });
    (Proxy::start(Kind::Torus, &bootstrap, free_port(), &[]), port)
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("the gateway accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Everything that comes until the connection ends or nothing more is awaited.
fn read_until(stream: &mut TcpStream, is_enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    let deadline = Instant::now() + PATIENCE;
    while !is_enough(&bytes) && Instant::now() < deadline {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
    bytes
}

/// Waits until the HTTP/2 backend has seen a request made for the purpose, so that what came before it is written down.
fn settle(port: u16, received: &Received2) -> Vec<Received> {
    let mut stream = connect(port);
    let _ = stream.write_all(b"GET /last HTTP/1.1\r\nhost: last\r\nconnection: close\r\n\r\n");
    let reply = read_until(&mut stream, |bytes| bytes.ends_with(b"0\r\n\r\n"));
    assert!(reply.starts_with(b"HTTP/1.1 200 "), "the gateway serves on");
    let mut records = std::mem::take(&mut *received.lock().expect("no backend panicked"));
    records.retain(|record| record.path != "/last");
    records
}

#[test]
fn http1_to_http2() {
    let journal = Arc::new(Journal::default());
    let unused = Backend::tcp("http1", "127.0.0.1", &journal);
    let (http2, received) = http2_backend();
    let (_proxy, port) = gateway(unused.port, http2);
    let mut wrong = Vec::new();
    let vectors = requests::requests();
    assert!(vectors.len() > 300, "{} vectors", vectors.len());
    for vector in &vectors {
        let mut stream = connect(port);
        // A gateway that has seen enough may close while we write. The good request behind it makes the end of a reply visible.
        let _ = stream.write_all(&vector.bytes);
        let refused = !matches!(vector.expected, requests::Expected::Forwarded { .. });
        let reply = read_until(&mut stream, |bytes| !refused && bytes.starts_with(b"HTTP/1.1 200 "));
        let _ = stream.shutdown(Shutdown::Both);
        let records = settle(port, &received);
        let whole: Vec<&Received> = records.iter().filter(|record| record.is_complete).collect();
        let is_good = match vector.expected {
            requests::Expected::Refused(_) => records.is_empty(),
            requests::Expected::BodyRefused(_) => whole.is_empty(),
            requests::Expected::Forwarded { .. } => whole.len() == 1 && reply.starts_with(b"HTTP/1.1 200 "),
        };
        let hops = ["connection:", "transfer-encoding:", "keep-alive:", "proxy-connection:", "upgrade:", "host:"];
        let is_clean = records.iter().flat_map(|record| &record.fields).all(|field| {
            !hops.iter().any(|hop| field.starts_with(hop)) && (!field.starts_with("te:") || field == "te: trailers")
        });
        if !is_good || !is_clean {
            wrong.push(format!(
                "{} ({}): {records:?}; {:?}",
                vector.name,
                vector.rule,
                String::from_utf8_lossy(&reply)
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} vectors:\n{}", wrong.len(), vectors.len(), wrong.join("\n"));
}

/// A frame as it is on the wire (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}

/// A field block of literals without indexing (RFC 7541 §6.2.2).
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![];
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "one byte tells the length");
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A request over HTTP/2: its head, its DATA frames, and its trailers.
struct Message<'a> {
    name: String,
    head: Vec<(&'a str, &'a str)>,
    data: &'a [&'a str],
    trailers: &'a [(&'a str, &'a str)],
    is_good: bool,
    /// The head is whole and complete in itself; what follows it is refused, which may be after the head went on.
    may_arrive_empty: bool,
}

fn send(port: u16, message: &Message<'_>) -> Vec<u8> {
    let mut stream = connect(port);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings = frame(4, 0, &[]);
    bytes.extend_from_slice(&settings[..5]);
    bytes.extend([0; 4]);
    let ends_with_head = message.data.is_empty() && message.trailers.is_empty();
    bytes.extend(frame(1, 4 | u8::from(ends_with_head), &block(&message.head)));
    for (at, data) in message.data.iter().enumerate() {
        let is_last = at + 1 == message.data.len() && message.trailers.is_empty();
        bytes.extend(frame(0, u8::from(is_last), data.as_bytes()));
    }
    if !message.trailers.is_empty() {
        bytes.extend(frame(1, 5, &block(message.trailers)));
    }
    let _ = stream.write_all(&bytes);
    let answers = |bytes: &[u8]| kinds(bytes).iter().any(|kind| matches!(kind, 1 | 3 | 7));
    let reply = read_until(&mut stream, answers);
    let _ = stream.shutdown(Shutdown::Both);
    kinds(&reply)
}

/// The type of each whole frame.
fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let Some(rest) = bytes.get(9 + length..) else { break };
        kinds.push(bytes[3]);
        bytes = rest;
    }
    kinds
}

/// Messages of HTTP/2, good ones among them, for a backend at `path`.
fn messages(path: &str) -> Vec<Message<'_>> {
    let base = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", path)];
    let mut all: Vec<Message<'_>> = Vec::new();
    let mut add =
        |name: &str, head: Vec<(&'static str, &'static str)>, data: &'static [&'static str], is_good: bool| {
            let head = base.iter().copied().chain(head).collect();
            all.push(Message { name: name.to_owned(), head, data, trailers: &[], is_good, may_arrive_empty: false });
        };
    // H2.CL: a length that the frames do not have.
    add("no length", vec![], &["abc"], true);
    add("its length", vec![("content-length", "3")], &["abc"], true);
    add("its length in pieces", vec![("content-length", "3")], &["a", "bc"], true);
    for length in [
        "0",
        "1",
        "2",
        "4",
        "30",
        "+3",
        "-3",
        "3 ",
        " 3",
        "0x3",
        "3,3",
        "3, 3",
        "3.0",
        "",
        "a",
        "99999999999999999999",
        "٣",
    ] {
        add(&format!("content-length {length:?}"), vec![("content-length", length)], &["abc"], false);
    }
    add("two lengths", vec![("content-length", "3"), ("content-length", "4")], &["abc"], false);
    add("one length twice", vec![("content-length", "3"), ("content-length", "3")], &["abc"], false);
    add("a length and no DATA", vec![("content-length", "3")], &[], false);
    add(
        "length 0 and a request in DATA",
        vec![("content-length", "0")],
        &["GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"],
        false,
    );
    // H2.TE: codings of HTTP/1.1.
    for coding in ["chunked", "identity", "xchunked", " chunked", "chunked, identity", "\tchunked", "Chunked", "gzip"] {
        add(
            &format!("transfer-encoding {coding:?}"),
            vec![("transfer-encoding", coding)],
            &["0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"],
            false,
        );
    }
    for (name, value) in [
        ("connection", "close"),
        ("connection", "transfer-encoding"),
        ("connection", "keep-alive, x"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("upgrade", "websocket"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "trailers, deflate"),
        ("te", "chunked"),
    ] {
        add(&format!("{name}: {value}"), vec![(name, value)], &["abc"], false);
    }
    add("te: trailers", vec![("te", "trailers")], &["abc"], true);
    // What would end a line, or a head.
    for value in [
        "1\r\ntransfer-encoding: chunked",
        "1\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a",
        "1\nhost: b",
        "1\rhost: b",
        "1\0",
        "\u{7f}",
        "\u{1}",
        "\u{b}",
        " 1",
        "1 ",
        "\t1",
        "1\t",
    ] {
        add(&format!("value {value:?}"), vec![("x-value", value)], &["abc"], false);
        add(&format!("cookie {value:?}"), vec![("cookie", value)], &["abc"], false);
    }
    for name in [
        "transfer-encoding:",
        "transfer-encoding: chunked\r\nx",
        "x: 1\r\ntransfer-encoding",
        "x:y",
        "x y",
        " x",
        "x ",
        "x\r",
        "x\n",
        "x\0",
        "X-Upper",
        "Transfer-Encoding",
        "",
        "x\u{7f}",
        "x\t",
        "x(",
        "x,",
        "x/",
        "x@",
        "x=",
        "x\"",
        "content-length ",
        "é",
    ] {
        add(&format!("name {name:?}"), vec![(name, "chunked")], &["abc"], false);
    }
    // Who it is for.
    for host in ["b", "a,b", "a b", "", "u@a", "a/x", "a:x", "a\r\nx: y"] {
        add(&format!("host {host:?}"), vec![("host", host)], &["abc"], false);
    }
    add("the same host", vec![("host", "a")], &["abc"], true);
    add("two hosts", vec![("host", "a"), ("host", "a")], &["abc"], false);
    for (name, value) in
        [(":path", "/other"), (":method", "GET"), (":authority", "b"), (":scheme", "https"), (":status", "200")]
    {
        add(&format!("late {name}"), vec![("x", "1"), (name, value)], &["abc"], false);
        add(&format!("second {name}"), vec![(name, value)], &["abc"], false);
    }
    for name in [":other", ":protocol", ":", "::path", ":Path"] {
        add(&format!("pseudo-header {name}"), vec![(name, "x")], &["abc"], false);
    }
    add("expect", vec![("expect", "200-ok")], &["abc"], false);
    // The start line.
    let mut line = |name: String, at: usize, value: &'static str| {
        let mut head = base.to_vec();
        head[at].1 = value;
        all.push(Message { name, head, data: &[], trailers: &[], is_good: false, may_arrive_empty: false });
    };
    for method in ["GET / HTTP/1.1\r\nx", "GET /", "G ET", "", " GET", "GET ", "GET\t", "GE\0T", "GET,POST", "CONNECT"]
    {
        line(format!("method {method:?}"), 0, method);
    }
    for scheme in ["ftp", "http://b", "http ", "", "javascript", "http\r\nx: y"] {
        line(format!("scheme {scheme:?}"), 1, scheme);
    }
    for authority in
        ["", "u@a", "a,b", "a b", "a\r\nx: y", "a/b", "a?b", "a#b", "a\\b", "a:99999999", "a:x", "[::1", "a\0"]
    {
        line(format!("authority {authority:?}"), 2, authority);
    }
    for path in [
        "",
        "x",
        "http://b/",
        "/x HTTP/1.1\r\nhost: b\r\n\r\nGET /smuggled",
        "/x y",
        "/x\r\n",
        "/x\n",
        "/x\t",
        "/x\0",
        "*",
        "//\u{7f}",
    ] {
        line(format!("path {path:?}"), 3, path);
    }
    // Trailers.
    let mut trailing = |name: &str, trailers: &'static [(&'static str, &'static str)], is_good: bool| {
        all.push(Message {
            name: name.to_owned(),
            head: base.to_vec(),
            data: &["abc"],
            trailers,
            is_good,
            may_arrive_empty: false,
        });
    };
    trailing("a trailer", &[("x-end", "1")], true);
    trailing("a trailer that ends a line", &[("x-end", "1\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n")], false);
    trailing("a trailer with a bad name", &[("x:y", "1")], false);
    trailing("an upper-case trailer", &[("X-End", "1")], false);
    trailing("a trailer with NUL", &[("x-end", "\0")], false);
    trailing("transfer-encoding as a trailer", &[("transfer-encoding", "chunked")], false);
    trailing("connection as a trailer", &[("connection", "close")], false);
    for message in &mut all {
        let says_empty = message.head.contains(&("content-length", "0"));
        message.may_arrive_empty = says_empty && !message.data.is_empty();
    }
    // The codec drops a fragment before anything here sees the path: all of the gateway and the backend know the path without it.
    let mut head = base.to_vec();
    head[3].1 = if path.starts_with("/http1") { "/http1/x#y" } else { "/x#y" };
    all.push(Message {
        name: "a fragment".to_owned(),
        head,
        data: &[],
        trailers: &[],
        is_good: true,
        may_arrive_empty: false,
    });
    all
}

#[test]
fn http2_to_http1_and_to_http2() {
    let journal = Arc::new(Journal::default());
    let backend = Backend::tcp("http1", "127.0.0.1", &journal);
    let (http2, received) = http2_backend();
    let (_proxy, port) = gateway(backend.port, http2);
    let mut wrong = Vec::new();
    for path in ["/http1/x", "/http2/x"] {
        let messages = messages(path);
        assert!(messages.len() > 130, "{} messages", messages.len());
        for message in &messages {
            let answer = send(port, message);
            let at_http2: Vec<String> = settle(port, &received)
                .iter()
                .filter(|record| record.is_complete)
                .map(|record| format!("{record:?}"))
                .collect();
            let at_http1: Vec<String> = journal
                .take()
                .iter()
                .filter(|record| record.body.complete || record.malformed.is_some())
                .map(|record| format!("{record:?}"))
                .collect();
            let arrived = [at_http1, at_http2].concat();
            let smuggled = arrived.iter().any(|record| record.contains("smuggled") && !record.contains("x-value"));
            let count = usize::from(message.is_good);
            let is_empty = |record: &String| record.contains("body_bytes: 0") || record.contains("framing: Length(0)");
            let is_counted = arrived.len() == count
                || message.may_arrive_empty && arrived.len() <= 1 && arrived.iter().all(is_empty);
            let is_answered = answer.iter().any(|kind| matches!(kind, 1 | 3 | 7));
            if !is_counted || smuggled || !is_answered {
                wrong.push(format!("{path} {}: {arrived:?}, answered by {answer:?}", message.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}
