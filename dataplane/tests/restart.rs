//! A restart serves from the disk what the control plane had sent, before that answers; then the control plane takes over.

mod plane;

use std::fs;
use std::path::Path;
use std::process::Command;

use plane::*;

fn start(api: &str, plane_port: u16, folder: &Path) -> Proxy {
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_torus-proxy"))
        .args(["--concurrency", "2", "--drain-time-s", "1", "--config-yaml", &bootstrap(api, plane_port)])
        .arg("--snapshot-path")
        .arg(folder.join("snapshot"))
        .stderr(log)
        .spawn();
    Proxy(child.unwrap())
}

/// Asks the process to end, and waits for that.
fn end(mut proxy: Proxy) {
    let asked = Command::new("kill").args(["-TERM", &proxy.0.id().to_string()]).status();
    assert!(asked.unwrap().success());
    wait_for("its end", || proxy.0.try_wait().unwrap().is_some());
}

fn is_served(port: u16, by: &str) -> bool {
    get(port).is_some_and(|reply| reply == (200, by.to_owned()))
}

fn log_lines(folder: &Path, text: &str) -> usize {
    fs::read_to_string(folder.join("log")).unwrap().lines().filter(|line| line.contains(text)).count()
}

#[test]
fn a_restart_serves_from_the_disk_until_the_control_plane_takes_over() {
    for api in ["GRPC", "DELTA_GRPC"] {
        let folder = tempfile::tempdir().unwrap();
        let (port, extra, plane_port) = (free_port(), free_port(), free_port());
        let address = ([127, 0, 0, 1], plane_port).into();
        let plane = Plane::new();
        let server = plane.serve(address);
        plane.put(&[
            (CLUSTER, "a", Some(&cluster("a"))),
            (CLUSTER, "b", Some(&cluster("b"))),
            (ENDPOINTS, "a", Some(&endpoints("a", backend("a")))),
            (ENDPOINTS, "b", Some(&endpoints("b", backend("b")))),
            (LISTENER, "in", Some(&listener("in", port, "one"))),
            (LISTENER, "extra", Some(&listener("extra", extra, "one"))),
            (ROUTES, "routes", Some(&routes("a"))),
        ]);
        let proxy = start(api, plane_port, folder.path());
        wait_for("it serves", || is_served(port, "a") && is_served(extra, "a"));
        end(proxy);
        drop(server);

        // Nobody is there to ask.
        let _proxy = start(api, plane_port, folder.path());
        wait_for("it serves from the disk", || is_served(port, "a") && is_served(extra, "a"));
        assert_eq!(log_lines(folder.path(), "resources of the run before serve until the control plane answers"), 1);

        // It comes back, has another route, and one listener less.
        let load = Load::start("127.0.0.1", port);
        load.goes_to(0);
        plane.put(&[(ROUTES, "routes", Some(&routes("b"))), (LISTENER, "extra", None)]);
        let _server = plane.serve(address);
        load.goes_to(1);
        wait_for("the listener that was removed meanwhile is gone", || get(extra).is_none());
        println!("{api}: {} requests, none failed", load.finish());
        assert_eq!(*plane.refusals.lock().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn a_file_that_cannot_be_used_is_reported_in_a_line_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (port, plane_port) = (free_port(), free_port());
    let plane = Plane::new();
    let _server = plane.serve(([127, 0, 0, 1], plane_port).into());
    plane.put(&[
        (CLUSTER, "a", Some(&cluster("a"))),
        (ENDPOINTS, "a", Some(&endpoints("a", backend("a")))),
        (LISTENER, "in", Some(&listener("in", port, "one"))),
        (ROUTES, "routes", Some(&routes("a"))),
    ]);
    let path = folder.path().join("snapshot");
    let broken: [(&[u8], &str); 3] = [
        (b"static_resources: {}\n", "it is no snapshot of torus-proxy"),
        (b"torus-proxy snapshot 99\n", "it is of format 99"),
        (b"torus-proxy snapshot 1\n0123456789", "it is cut off"),
    ];
    for (content, reason) in broken {
        fs::write(&path, content).unwrap();
        let proxy = start("DELTA_GRPC", plane_port, folder.path());
        wait_for("it serves", || is_served(port, "a"));
        let line = format!("the snapshot {} is ignored: {reason}", path.display());
        assert_eq!(log_lines(folder.path(), &line), 1, "{line}");
        end(proxy);
        assert_ne!(fs::read(&path).unwrap(), content, "it was replaced");
    }
    let proxy = start("DELTA_GRPC", plane_port, folder.path());
    wait_for("it serves", || is_served(port, "a"));
    assert_eq!(log_lines(folder.path(), "is ignored"), broken.len());
    end(proxy);
}
