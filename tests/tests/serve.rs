//! `torus-load serve` answers what it received, and misbehaves as it is asked to.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use torus_tests::binaries;
use torus_tests::client::{Connection, End, Response, Target};
use torus_tests::message::Framing;
use torus_tests::program::Program;

const PATIENCE: Duration = Duration::from_secs(5);

struct Server {
    target: Target,
    _program: Program,
}

fn server(arguments: &[&str]) -> Server {
    let mut command = Command::new(binaries::torus_load());
    command.arg("serve").args(arguments);
    let program = Program::start("torus-load", command);
    let line = program.wait_for_line("listening on ", PATIENCE).expect("the server says where it listens");
    let address = line.trim_start_matches("listening on ").to_owned();
    let target = if address.contains('/') { Target::Unix(address.into()) } else { Target::Tcp(address) };
    Server { target, _program: program }
}

fn tcp() -> Server {
    server(&["--listen", "127.0.0.1:0", "--threads", "2"])
}

impl Server {
    fn connect(&self) -> Connection {
        Connection::open(&self.target, PATIENCE).expect("the server accepts connections")
    }

    fn ask(&self, method: &str, request: &str) -> Response {
        let mut connection = self.connect();
        connection.send(request.as_bytes()).expect("the server reads");
        connection.response(method)
    }

    fn get(&self, target: &str) -> Response {
        self.ask("GET", &format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n"))
    }
}

fn json(response: &Response) -> Value {
    serde_json::from_slice(&response.body).expect("the reply is JSON")
}

#[test]
fn the_reply_describes_the_request() {
    let server = tcp();
    let request = "POST /p/a?q=1 HTTP/1.1\r\nHost: a\r\nX-One: 1\r\nx-one: 2\r\nContent-Length: 5\r\n\r\nhello";
    let reply = json(&server.ask("POST", request));
    assert_eq!(reply["method"], "POST");
    assert_eq!((&reply["path"], &reply["query"]), (&"/p/a".into(), &"q=1".into()));
    assert_eq!(reply["headers"][1], serde_json::json!(["X-One", "1"]));
    assert_eq!(reply["headers"][2], serde_json::json!(["x-one", "2"]));
    assert_eq!((&reply["body"]["length"], &reply["body"]["text"]), (&5.into(), &"hello".into()));
    assert_eq!(reply["request"], 1);
}

#[test]
fn chunked_requests_and_trailers_are_described() {
    let request =
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nT: v\r\n\r\n";
    let reply = json(&tcp().ask("POST", request));
    assert_eq!(reply["body"]["text"], "hello");
    assert_eq!(reply["trailers"], serde_json::json!([["T", "v"]]));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = tcp();
    let mut connection = server.connect();
    connection.send("GET /1 HTTP/1.1\r\n\r\nGET /fixed HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\n\r\n".as_bytes()).unwrap();
    assert_eq!(json(&connection.response("GET"))["path"], "/1");
    assert_eq!(connection.response("GET").body.len(), 1024);
    let third = json(&connection.response("GET"));
    assert_eq!((&third["path"], &third["request"]), (&"/3".into(), &3.into()));
}

#[test]
fn the_query_shapes_the_reply() {
    let server = tcp();
    let reply = server.get("/?status=503&size=10&header=X-A:b%20c&header=X-A:d");
    assert_eq!((reply.status, reply.body.len()), (503, 10));
    assert_eq!(reply.headers.all("x-a").collect::<Vec<_>>(), ["b c", "d"]);
    let reply = server.get("/?trailers=1&size=40000");
    assert_eq!((reply.framing, reply.body.len()), (Framing::Chunked, 40_000));
    assert!(reply.trailers.get("x-torus-trailer").is_some());
    assert_eq!(server.get("/?informational=103").interim.len(), 1);
    assert_eq!(server.get("/fixed?size=65536").body.len(), 65_536);
    assert_eq!(server.get("/?status=204").framing, Framing::None);
    let started = std::time::Instant::now();
    assert_eq!(server.get("/?delay_ms=50").status, 200);
    assert!(started.elapsed() >= Duration::from_millis(50));
}

#[test]
fn faults_are_as_asked() {
    let server = tcp();
    assert_eq!(server.get("/?reset=head").end, End::Reset);
    let half = server.get("/?reset=body&size=1000");
    assert_eq!((half.status, half.end), (200, End::Reset));
    assert!(matches!(server.get("/?garbage=1").end, End::Closed | End::Malformed(_)));
    let mut connection = server.connect();
    connection.send(b"GET /?close=1 HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(connection.response("GET").headers.get("connection"), Some("close"));
    assert!(connection.closes_within(PATIENCE));
    let mut silent = Connection::open(&server.target, Duration::from_millis(100)).unwrap();
    silent.send(b"GET /?hang=1 HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(silent.response("GET").end, End::Timeout);
    let mut early = server.connect();
    early.send(b"POST /?early=1 HTTP/1.1\r\ncontent-length: 3\r\n\r\n").unwrap();
    assert_eq!(early.response("POST").status, 200);
}

#[test]
fn bad_requests_are_refused() {
    let server = tcp();
    for request in ["nonsense\r\n\r\n", "POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"] {
        assert_eq!(server.ask("GET", request).status, 400, "{request:?}");
    }
    let small = self::server(&["--listen", "127.0.0.1:0", "--body-bytes-max", "10"]);
    assert_eq!(small.ask("POST", "POST / HTTP/1.1\r\ncontent-length: 11\r\n\r\n").status, 413);
}

#[test]
fn a_unix_socket_works_too_and_a_taken_port_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("echo.sock");
    let server = server(&["--listen", path.to_str().unwrap()]);
    assert_eq!(json(&server.get("/x"))["path"], "/x");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = Command::new(binaries::torus_load()).args(["serve", "--listen", &address]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("try:") && error.lines().count() == 1, "{error}");
}
