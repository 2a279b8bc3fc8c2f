use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::*;
use crate::config::address::Address;
use crate::config::lifecycle::DrainStrategy;
use crate::config::publish::{self, Subscriber};
use crate::config::snapshot::TrafficDirection;
use crate::telemetry::access_log::sink::FlushOptions;
use crate::telemetry::counters::Core;

struct Running {
    address: SocketAddr,
    lifecycle: Arc<Lifecycle>,
    _subscribers: Vec<Subscriber>,
    thread: std::thread::JoinHandle<Ending>,
}

fn start(drain_time: Duration) -> Running {
    let registry = Registry::new(2);
    let lifecycle = Lifecycle::new(1, drain_time, DrainStrategy::Immediate);
    lifecycle.begin_warming();
    let (publisher, subscribers) = publish::channel(Arc::new(Snapshot::default()), 1);
    let admin = AdminSocket::bind(&Address::Ip("127.0.0.1:0".parse().unwrap())).unwrap();
    let address = admin.address().ip().unwrap();
    let thread = ConfigThread {
        publisher,
        lifecycle: lifecycle.clone(),
        log_sinks: LogSinks::new(FlushOptions::default(), &registry),
        registry,
        stats: StatsConfig::default(),
        stats_flush_interval: Duration::from_secs(5),
        log: None,
        admin: Some(admin),
        admin_address_path: None,
        snapshot_path: None,
        admin_access_logs: Vec::new(),
        discovery: None,
        facts: Facts::default(),
        turn_ages: Vec::new(),
    };
    let thread = std::thread::spawn(move || thread.run().unwrap());
    Running { address, lifecycle, _subscribers: subscribers, thread }
}

impl Running {
    fn post(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(stream, "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    fn wait_for(&self, what: &str, done: impl Fn(&Lifecycle) -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !done(&self.lifecycle) {
            assert!(std::time::Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn without_names_to_resolve_it_serves_at_once_and_ends_when_told() {
    let running = start(Duration::from_secs(600));
    running.wait_for("warm", |life| !life.phase().is_warming());
    assert!(running.post("/ready").ends_with("LIVE\n"));
    running.lifecycle.report(Core(0), running.lifecycle.phase(), 1);
    assert!(running.post("/quitquitquit").ends_with("OK\n"));
    assert_eq!(running.thread.join().unwrap(), Ending::AtOnce);
    assert!(running.lifecycle.phase().is_ended());
}

#[test]
fn listeners_drain_first_and_stop_then() {
    let running = start(Duration::from_millis(50));
    running.wait_for("warm", |life| !life.phase().is_warming());
    let stopped = |life: &Lifecycle, direction| life.phase().listeners_stopped(direction);
    running.post("/drain_listeners?graceful&skip_exit");
    running.wait_for("draining", |life| life.phase().is_draining(TrafficDirection::Outbound));
    assert!(!stopped(&running.lifecycle, TrafficDirection::Inbound), "never stops");
    running.post("/drain_listeners?graceful&inboundonly");
    running.wait_for("inbound stopped", |life| stopped(life, TrafficDirection::Inbound));
    assert!(!stopped(&running.lifecycle, TrafficDirection::Outbound));
    running.post("/drain_listeners");
    running.wait_for("all stopped", |life| stopped(life, TrafficDirection::Outbound));
    assert!(!running.lifecycle.phase().is_leaving(), "the process stays");
    running.post("/quitquitquit");
    running.thread.join().unwrap();
}
