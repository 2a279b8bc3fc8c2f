//! Malformed and ambiguous messages against a running gateway, judged by what a recording backend and the client received.
//!
//! Every request is sent twice: alone, and with a good request behind it on the same connection.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use torus_tests::backend::{Backend, Journal, Record};
use torus_tests::client::{Connection, End, Target};
use torus_tests::message;
use torus_tests::ports::free_port;
use torus_tests::proxy::{Kind, Proxy};

#[path = "../vectors/requests/mod.rs"]
mod requests;
#[path = "../vectors/responses.rs"]
mod responses;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Listeners, each with a backend of its own, that share the requests.
const LANE_COUNT: usize = 8;

/// A gateway from each of the ports to the backend at the other port.
fn gateway(lanes: &[(u16, u16)]) -> Proxy {
    let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let listener = |(index, (port, _)): (usize, &(u16, u16))| -> Value {
        let routes = json!([{ "match": { "prefix": "/" }, "route": { "cluster": format!("backend-{index}") } }]);
        json!({
            "name": format!("listener-{index}"),
            "address": address(*port),
            "filter_chains": [{ "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "malformed",
                    "codec_type": "HTTP1",
                    "delayed_close_timeout": "0.05s",
                    "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
                    }],
                },
            }] }],
        })
    };
    let cluster = |(index, (_, backend)): (usize, &(u16, u16))| -> Value {
        let name = format!("backend-{index}");
        let endpoint = json!({ "endpoint": { "address": address(*backend) } });
        let assignment = json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] });
        json!({ "name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": assignment })
    };
    let bootstrap = json!({
        "static_resources": {
            "listeners": lanes.iter().enumerate().map(listener).collect::<Vec<_>>(),
            "clusters": lanes.iter().enumerate().map(cluster).collect::<Vec<_>>(),
        },
    });
    Proxy::start(Kind::Torus, &bootstrap, free_port(), &[])
}

fn connect(port: u16) -> Connection {
    Connection::open(&Target::Tcp(format!("127.0.0.1:{port}")), PATIENCE).expect("the gateway accepts connections")
}

/// What is wrong with how a request fares, if anything.
fn judge_request(port: u16, journal: &Journal, vector: &requests::Vector, followed: bool) -> Option<String> {
    const GOOD: &[u8] = b"GET /good HTTP/1.1\r\nHost: good.test\r\n\r\n";
    let mut connection = connect(port);
    let behind = if followed { GOOD } else { b"" };
    // A gateway that has seen enough may close while we write.
    let _ = connection.send(&[vector.bytes.as_slice(), behind].concat());
    let mut wrong = match vector.expected {
        requests::Expected::Refused(status) | requests::Expected::BodyRefused(status) => {
            let response = connection.response("GET");
            let closed = connection.closes_within(PATIENCE);
            if response.status != status {
                Some(format!("answers {} {:?}, not {status}", response.status, response.end))
            } else if !closed {
                Some("leaves the connection open".to_owned())
            } else if !connection.leftover().is_empty() {
                Some(format!("goes on after the refusal: {:?}", message::latin1(connection.leftover())))
            } else {
                None
            }
        }
        requests::Expected::Forwarded { .. } => {
            let expected_count = if followed { 2 } else { 1 };
            let statuses = (0..expected_count).map(|_| connection.response("GET").status).collect::<Vec<_>>();
            statuses.iter().any(|status| *status != 200).then(|| format!("answers {statuses:?}"))
        }
    };
    // A request of its own tells that the backend has handled what came before.
    let mut last = connect(port);
    last.send(b"GET /last HTTP/1.1\r\nHost: last.test\r\nConnection: close\r\n\r\n").expect("the gateway reads");
    if last.response("GET").status != 200 {
        wrong.get_or_insert_with(|| "the gateway serves nothing more".to_owned());
    }
    let mut records = journal.take();
    records.retain(|record| record.head.parts().1 != "/last");
    let whole = records.iter().filter(|record| record.body.complete || record.malformed.is_some());
    let whole = whole.map(shown).collect::<Vec<_>>();
    match vector.expected {
        requests::Expected::Refused(_) if !records.is_empty() => {
            Some(format!("reached the backend: {:?}", records.iter().map(shown).collect::<Vec<_>>()))
        }
        requests::Expected::BodyRefused(_) if !whole.is_empty() => {
            Some(format!("reached the backend whole: {whole:?}"))
        }
        requests::Expected::Forwarded { has, lacks } => {
            let first = whole.first().cloned().unwrap_or_default();
            let missing = has.iter().find(|line| !first.contains(**line));
            let present = lacks.iter().find(|text| first.contains(**text));
            let second = whole.get(1).is_some_and(|second| second.starts_with("GET /good HTTP/1.1\nhost: good.test\n"));
            if missing.is_some() || present.is_some() {
                Some(format!("the backend misses {missing:?}, has {present:?}: {first:?}"))
            } else if second != followed || whole.len() != 1 + usize::from(followed) {
                Some(format!("the backend saw {whole:?}"))
            } else {
                wrong
            }
        }
        _ => wrong,
    }
}

fn shown(record: &Record) -> String {
    let mut text = format!("{}\n", record.head.start_line);
    for (name, value) in record.head.fields.0.iter().chain(&record.body.trailers.0) {
        text += &format!("{name}: {value}\n");
    }
    text + record.malformed.as_deref().unwrap_or_default()
}

#[test]
fn nothing_ambiguous_is_forwarded() {
    let journals = (0..LANE_COUNT).map(|_| Arc::new(Journal::default())).collect::<Vec<_>>();
    let backends = journals.iter().map(|journal| Backend::tcp("backend", "127.0.0.1", journal)).collect::<Vec<_>>();
    let lanes = backends.iter().map(|backend| (free_port(), backend.port)).collect::<Vec<_>>();
    let mut proxy = gateway(&lanes);
    let vectors = requests::requests();
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (lane, ((port, _), journal)) in lanes.iter().zip(&journals).enumerate() {
            let (vectors, wrong) = (&vectors, &wrong);
            scope.spawn(move || {
                for vector in vectors.iter().skip(lane).step_by(LANE_COUNT) {
                    for followed in [false, true] {
                        if let Some(fault) = judge_request(*port, journal, vector, followed) {
                            let how = if followed { "followed" } else { "alone" };
                            let line = format!("{} ({}), {how}: {fault}", vector.name, vector.rule);
                            wrong.lock().expect("no lane panicked").push(line);
                        }
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("no lane panicked");
    assert!(proxy.program.is_running(), "the gateway ended:\n{}", proxy.program.output());
    println!("{} requests, each alone and followed by a good one: {} misjudged", vectors.len(), wrong.len());
    assert!(vectors.len() >= 220, "only {} vectors", vectors.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), 2 * vectors.len(), wrong.join("\n"));
}

/// A backend that answers each path with scripted bytes, leaves the connection open, and notes which connection brought which path.
struct Scripted {
    port: u16,
    seen: Arc<Mutex<Vec<(usize, String)>>>,
}

impl Scripted {
    fn start(scripts: HashMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", free_port())).expect("a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (noted, scripts) = (Arc::clone(&seen), Arc::new(scripts));
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let (noted, scripts) = (Arc::clone(&noted), Arc::clone(&scripts));
                std::thread::spawn(move || answer(stream, number, &noted, &scripts));
            }
        });
        Self { port, seen }
    }
}

fn answer(
    mut stream: TcpStream,
    number: usize,
    seen: &Mutex<Vec<(usize, String)>>,
    scripts: &HashMap<String, Vec<u8>>,
) {
    let (mut pending, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        pending.extend_from_slice(&chunk[..length]);
        while let Ok(Some(head)) = message::parse_head(&pending) {
            pending.drain(..head.length);
            let path = head.parts().1.to_owned();
            seen.lock().expect("no connection panicked").push((number, path.clone()));
            let good = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood".to_vec();
            if stream.write_all(scripts.get(&path).unwrap_or(&good)).is_err() {
                return;
            }
        }
    }
}

/// What is wrong with how a response fares, if anything.
fn judge_response(port: u16, backend: &Scripted, vector: &responses::Vector) -> Option<String> {
    let mut connection = connect(port);
    let request = format!("{} /{} HTTP/1.1\r\nHost: a.test\r\n\r\n", vector.method, vector.name);
    connection.send(request.as_bytes()).expect("the gateway reads");
    let response = connection.response(vector.method);
    let got = (response.status, response.text());
    let fault = match vector.expected {
        responses::Expected::Refused => (got.0 != 502).then(|| format!("answers {got:?}, not 502")),
        responses::Expected::BodyRefused(status) => {
            let whole = response.end == End::Complete;
            (got.0 != status || whole).then(|| format!("answers {got:?}, {:?}", response.end))
        }
        responses::Expected::Poisoned(status, body) | responses::Expected::Reused(status, body) => {
            let right = got == (status, body.to_owned()) && response.end == End::Complete;
            (!right).then(|| format!("answers {got:?}, {:?}", response.end))
        }
    };
    // The next request tells whether the connection is used again.
    let mut next = connect(port);
    let path = format!("/after-{}", vector.name);
    next.send(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n").as_bytes()).expect("the gateway reads");
    let after = next.response("GET");
    let seen = backend.seen.lock().expect("no connection panicked").clone();
    let number =
        |path: &str| seen.iter().filter(|(_, seen)| seen == path).map(|(number, _)| *number).collect::<Vec<_>>();
    let (first, second) = (number(&format!("/{}", vector.name)), number(&path));
    let reused = first == second;
    fault.or_else(|| match vector.expected {
        _ if (after.status, after.text().as_str()) != (200, "good") => {
            Some(format!("the next request gets {} {:?}", after.status, after.text()))
        }
        _ if first.len() != 1 || second.len() != 1 => {
            Some(format!("was asked for by {first:?}, the next by {second:?}"))
        }
        responses::Expected::Reused(..) => (!reused).then(|| "its connection is not used again".to_owned()),
        _ => reused.then(|| "its connection is used again".to_owned()),
    })
}

#[test]
fn bad_responses_become_502_and_end_their_connection() {
    let vectors = responses::responses();
    let scripts = vectors.iter().map(|vector| (format!("/{}", vector.name), vector.bytes.clone())).collect();
    let backend = Scripted::start(scripts);
    let port = free_port();
    let mut proxy = gateway(&[(port, backend.port)]);
    let judged = |vector: &responses::Vector| {
        let fault = judge_response(port, &backend, vector)?;
        Some(format!("{} ({}): {fault}", vector.name, vector.rule))
    };
    let wrong = vectors.iter().filter_map(judged).collect::<Vec<_>>();
    assert!(proxy.program.is_running(), "the gateway ended:\n{}", proxy.program.output());
    println!("{} responses: {} misjudged", vectors.len(), wrong.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), vectors.len(), wrong.join("\n"));
}
