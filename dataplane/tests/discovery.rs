//! A control plane drives a running proxy: what it sends is live without a failed request, what is bad is refused by name, and its
//! loss changes nothing.

mod plane;

use std::net::{SocketAddr, TcpStream};

use plane::*;

#[test]
fn a_control_plane_drives_it_state_of_the_world() {
    drive("GRPC");
}

#[test]
fn a_control_plane_drives_it_delta() {
    drive("DELTA_GRPC");
}

fn drive(api: &str) {
    let (a, b) = (backend("a"), backend("b"));
    let (port, plane_port) = (free_port(), free_port());
    let plane = Plane::new();
    let plane_address = SocketAddr::from(([127, 0, 0, 1], plane_port));
    let server = plane.serve(plane_address);
    plane.put(&[
        (CLUSTER, "a", Some(&cluster("a"))),
        (CLUSTER, "b", Some(&cluster("b"))),
        (ENDPOINTS, "a", Some(&endpoints("a", a))),
        (ENDPOINTS, "b", Some(&endpoints("b", b))),
        (LISTENER, "in", Some(&listener("in", port, "one"))),
        (ROUTES, "routes", Some(&routes("a"))),
    ]);
    let _proxy = Proxy::start(api, plane_port);
    wait_for("it serves", || get(port).is_some_and(|reply| reply == (200, "a".to_owned())));

    let load = Load::start("127.0.0.1", port);
    let goes_to = |place: usize| load.goes_to(place);
    for round in 0..5 {
        plane.put(&[(ROUTES, "routes", Some(&routes("b")))]);
        goes_to(1);
        plane.put(&[(ENDPOINTS, "b", Some(&endpoints("b", a)))]);
        goes_to(0);
        plane.put(&[(LISTENER, "in", Some(&listener("in", port, &format!("round{round}"))))]);
        goes_to(0);
        // The same cluster, configured anew: its connections are opened anew.
        let changed = cluster("b").replace("type: EDS", &format!("type: EDS, connect_timeout: {}s", round + 1));
        plane.put(&[(CLUSTER, "b", Some(&changed)), (ENDPOINTS, "b", Some(&endpoints("b", b)))]);
        goes_to(1);
        plane.put(&[(ROUTES, "routes", Some(&routes("a")))]);
        goes_to(0);
    }
    // What cannot be used is refused by its name, and what was there stays.
    plane.put(&[(ROUTES, "routes", Some("{name: routes, virtual_hosts: [{name: v, domains: []}]}"))]);
    let refused = |text: &str| plane.refusals.lock().unwrap().iter().any(|reason| reason.contains(text));
    wait_for("the refusal", || refused("routes: virtual_hosts[0].domains: must not be empty"));
    plane.put(&[(CLUSTER, "bad", Some("{name: bad, type: ORIGINAL_DST}"))]);
    wait_for("the refusal", || refused("bad: "));
    plane.put(&[(CLUSTER, "bad", None), (ROUTES, "routes", Some(&routes("a")))]);
    goes_to(0);
    // Without its control plane it goes on as it is, and listens to it again when it is back.
    drop(server);
    goes_to(0);
    let _server = plane.serve(plane_address);
    plane.put(&[(ROUTES, "routes", Some(&routes("b")))]);
    goes_to(1);
    println!("{api}: {} requests, none failed", load.finish());
    // A listener comes and goes.
    let other = free_port();
    plane.put(&[(LISTENER, "other", Some(&listener("other", other, "other")))]);
    wait_for("the new listener", || get(other).is_some_and(|reply| reply == (200, "b".to_owned())));
    plane.put(&[(LISTENER, "other", None)]);
    wait_for("it is gone", || TcpStream::connect(("127.0.0.1", other)).is_err());
    plane.put(&[(CLUSTER, "b", None), (ENDPOINTS, "b", None)]);
    wait_for("the cluster is gone", || get(port).is_some_and(|(status, _)| status == 503));
}

#[test]
fn chains_with_tables_of_their_own_are_updated_while_they_serve() {
    let (a, b) = (backend("a"), backend("b"));
    let (port, marker, plane_port) = (free_port(), free_port(), free_port());
    let plane = Plane::new();
    let _server = plane.serve(SocketAddr::from(([127, 0, 0, 1], plane_port)));
    plane.put(&[
        (CLUSTER, "a", Some(&cluster("a"))),
        (CLUSTER, "b", Some(&cluster("b"))),
        (ENDPOINTS, "a", Some(&endpoints("a", a))),
        (ENDPOINTS, "b", Some(&endpoints("b", b))),
        (LISTENER, "in", Some(&chained_listener("in", port, ["routes", "second"], "one"))),
        (LISTENER, "marker", Some(&listener("marker", marker, "marker"))),
        (ROUTES, "routes", Some(&routes("a"))),
        (ROUTES, "second", Some(&table("second", "b"))),
    ]);
    let _proxy = Proxy::start("GRPC", plane_port);
    wait_for("it serves", || get(port).is_some());
    let answer = |host, body: &str| get_from(host, port) == Some((200, body.to_owned()));
    assert!(answer("127.0.0.1", "a") && answer("127.0.0.2", "b"));
    // With one table of two, a new listener is not live.
    let waiting = free_port();
    plane.put(&[(LISTENER, "waiting", Some(&chained_listener("waiting", waiting, ["routes", "third"], "one")))]);
    plane.put(&[(LISTENER, "marker", None)]);
    wait_for("what comes after it is live", || TcpStream::connect(("127.0.0.1", marker)).is_err());
    assert!(TcpStream::connect(("127.0.0.1", waiting)).is_err());
    plane.put(&[(ROUTES, "third", Some(&table("third", "b")))]);
    wait_for("its second table makes it live", || get_from("127.0.0.2", waiting) == Some((200, "b".to_owned())));

    // The cluster of the third chain comes after its listener.
    assert_eq!(get_from("127.0.0.3", port), None);
    plane.put(&[(CLUSTER, "late", Some(&cluster("late"))), (ENDPOINTS, "late", Some(&endpoints("late", a)))]);
    wait_for("the late cluster", || get_from("127.0.0.3", port).is_some());
    let mut passed_on = TcpStream::connect(("127.0.0.3", port)).unwrap();
    passed_on.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut passes_on = || exchange(&mut passed_on).map(|(status, body, _)| (status, body));
    assert_eq!(passes_on().unwrap(), (200, "a".to_owned()));

    let loads = [Load::start("127.0.0.1", port), Load::start("127.0.0.2", port)];
    for round in 0..4 {
        let crossed = round % 2 == 0;
        let tables = if crossed { ["second", "routes"] } else { ["routes", "second"] };
        plane.put(&[(LISTENER, "in", Some(&chained_listener("in", port, tables, &format!("round{round}"))))]);
        let (first, second) = (usize::from(crossed), usize::from(!crossed));
        let bodies = ["a", "b"];
        wait_for("new connections are routed anew", || {
            answer("127.0.0.1", bodies[first]) && answer("127.0.0.2", bodies[second])
        });
        loads[0].goes_to(first);
        loads[1].goes_to(second);
    }
    // What a replaced listener passes on lives until its drain is over.
    wait_for("the end of the drain", || passes_on().is_err());
    assert_eq!(get_from("127.0.0.3", port), Some((200, "a".to_owned())));
    let total: u64 = loads.into_iter().map(Load::finish).sum();
    println!("{total} requests, none failed");
}
