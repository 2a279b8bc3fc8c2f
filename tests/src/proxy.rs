//! torus-proxy or real Envoy, running from a bootstrap.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::binaries;
use crate::client::{self, Target};
use crate::program::Program;

/// Which program proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The program under test.
    Torus,
    /// The oracle.
    Envoy,
}

/// How long a proxy may take to say that it is ready.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// A running proxy with its admin address; ends when dropped.
pub struct Proxy {
    /// The process.
    pub program: Program,
    admin: Target,
    _folder: tempfile::TempDir,
}

impl Proxy {
    /// Starts a proxy with one worker from `bootstrap`, whose `admin` section is set to `admin_port`, and waits until
    /// `/ready` answers 200.
    ///
    /// # Panics
    /// Where the program cannot be found or does not become ready; the message carries what it printed.
    pub fn start(kind: Kind, bootstrap: &Value, admin_port: u16, arguments: &[&str]) -> Self {
        let binary = match kind {
            Kind::Torus => binaries::torus_proxy(),
            Kind::Envoy => binaries::envoy().expect("Envoy is installed; try: scripts/install-test-tools.sh"),
        };
        Self::try_start(binary, bootstrap, admin_port, arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Proxy::start`] with the program at `binary`; the error carries the end of what it printed.
    ///
    /// # Panics
    /// Where the program cannot be executed at all.
    pub fn try_start(binary: PathBuf, bootstrap: &Value, admin_port: u16, arguments: &[&str]) -> Result<Self, String> {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let file = folder.path().join("bootstrap.json");
        let mut bootstrap = bootstrap.clone();
        let address = serde_json::json!({"socket_address": {"address": "127.0.0.1", "port_value": admin_port}});
        bootstrap["admin"]["address"] = address;
        let text = serde_json::to_string_pretty(&bootstrap).expect("JSON values print");
        fs::write(&file, text).expect("the scratch folder is writable");
        let mut command = Command::new(&binary);
        command.arg("-c").arg(&file);
        command.args(["--concurrency", "1", "--disable-hot-restart", "--file-flush-interval-msec", "20"]);
        command.args(["-l", "info"]).args(arguments);
        let name = binary.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let mut program = Program::start(&name, command);
        let admin = Target::Tcp(format!("127.0.0.1:{admin_port}"));
        program.wait_until("answer from /ready", START_PATIENCE, || {
            let ready = client::get(&admin, "/ready", Duration::from_secs(1)).ok()?;
            (ready.status == 200).then_some(())
        })?;
        Ok(Self { program, admin, _folder: folder })
    }

    /// Body of the admin page at `path`.
    ///
    /// # Panics
    /// Where admin does not answer 200.
    pub fn admin(&self, path: &str) -> String {
        let response = client::get(&self.admin, path, Duration::from_secs(10)).expect("admin accepts connections");
        assert_eq!(response.status, 200, "admin {path}: {}\n{}", response.text(), self.program.output());
        response.text()
    }

    /// Sends an empty POST to the admin page at `path` and returns the reply.
    ///
    /// # Panics
    /// Where admin does not accept connections.
    pub fn admin_post(&self, path: &str) -> client::Response {
        let mut connection =
            client::Connection::open(&self.admin, Duration::from_secs(10)).expect("admin accepts connections");
        let request = format!("POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        connection.send(request.as_bytes()).expect("admin reads requests");
        connection.response("POST")
    }

    /// Counters and gauges of `/stats` by name; histograms and texts are left out.
    pub fn stats(&self) -> std::collections::BTreeMap<String, u64> {
        let text = self.admin("/stats");
        let number = |line: &str| {
            let (name, value) = line.rsplit_once(": ")?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        text.lines().filter_map(number).collect()
    }
}
