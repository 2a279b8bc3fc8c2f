//! The proxy that is measured, what loads it, and the table that figures go into.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use torus_tests::binaries;
use torus_tests::client::{self, Connection, End, Target};
use torus_tests::ports::free_port;
use torus_tests::program::Program;
use torus_tests::proxy::Kind;

use crate::resources;

pub const PATIENCE: Duration = Duration::from_secs(30);

/// Whether the runs are as long as what is claimed of them.
pub fn is_long() -> bool {
    std::env::var_os("TORUS_XDS_LONG").is_some()
}

/// Who goes through the runs. Real Envoy takes as long again, so that it waits for the long form.
pub fn subjects() -> Vec<Kind> {
    if is_long() && binaries::envoy().is_some_and(|path| path.exists()) {
        vec![Kind::Torus, Kind::Envoy]
    } else {
        vec![Kind::Torus]
    }
}

/// A proxy that follows the control plane.
pub struct Subject {
    pub program: Program,
    pub admin: u16,
    _folder: tempfile::TempDir,
}

/// What the process has used so far.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub resident_kib: u64,
    pub cpu: Duration,
}

impl Subject {
    /// Starts it on a core of its own in the long form, where there is one; does not wait for anything.
    pub fn start(kind: Kind, plane: u16, arguments: &[&str]) -> Self {
        let binary = match kind {
            Kind::Torus => binaries::torus_proxy(),
            Kind::Envoy => binaries::envoy().expect("Envoy is installed; try: scripts/install-test-tools.sh"),
        };
        let folder = tempfile::tempdir().expect("a scratch folder");
        let (admin, file) = (free_port(), folder.path().join("bootstrap.json"));
        let mut bootstrap = resources::bootstrap(plane, admin);
        if kind == Kind::Envoy {
            // How long turns of its loop take.
            bootstrap["enable_dispatcher_stats"] = Value::Bool(true);
        }
        std::fs::write(&file, bootstrap.to_string()).expect("the scratch folder is writable");
        let mut command = on_core(1, binary.as_os_str());
        command.arg("-c").arg(&file).args(["--concurrency", "1", "--disable-hot-restart", "--drain-time-s", "2"]);
        command.args(["-l", "warning"]).args(arguments);
        let program = Program::start(&format!("{kind:?}"), command);
        Self { program, admin, _folder: folder }
    }

    pub fn usage(&self) -> Usage {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", self.program.id())).unwrap();
        let status = read("status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        // Source: proc(5); the kernel shows hundredths of a second.
        let cpu = Duration::from_millis(ticks * 10);
        Usage { resident_kib: resident.trim().trim_end_matches(" kB").parse().unwrap(), cpu }
    }

    /// Body of an admin page.
    pub fn page(&self, path: &str) -> String {
        let target = Target::Tcp(format!("127.0.0.1:{}", self.admin));
        client::get(&target, path, PATIENCE).map_or_else(|_| String::new(), |reply| reply.text())
    }

    /// A counter or gauge; 0 where there is none.
    pub fn stat(&self, name: &str) -> u64 {
        let page = self.page(&format!("/stats?filter=^{name}$"));
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }

    /// The highest value of a histogram since the start, rounded to its two digits.
    pub fn highest(&self, histogram: &str) -> Option<f64> {
        // P100(interval, since the start).
        let page = self.page(&format!("/stats?filter=^{histogram}$"));
        let summary = page.lines().find_map(|line| line.strip_prefix(&format!("{histogram}: ")))?.to_owned();
        let (_, last) = summary.split_once("P100(")?;
        let (_, since_start) = last.trim_end().trim_end_matches(')').rsplit_once(',')?;
        since_start.parse().ok()
    }

    /// Waits until `done`, and fails with what the program printed where that takes too long or it ends.
    pub fn wait_for(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        let waited = self.program.wait_until(what, PATIENCE, || done().then_some(()));
        waited.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// `program`, in the long form on core number `core` where the machine has it: nobody is measured by what others leave of a core.
pub fn on_core(core: usize, program: &std::ffi::OsStr) -> Command {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if !is_long() || cores <= core {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.arg("-c").arg(core.to_string()).arg(program);
    command
}

/// A connection that asks one thing after another.
pub struct Client {
    target: Target,
    connection: Option<Connection>,
}

impl Client {
    pub fn new(port: u16) -> Self {
        Self { target: Target::Tcp(format!("127.0.0.1:{port}")), connection: None }
    }

    /// The reply to a GET of `path` with `fields`, each ended by CRLF; an error where there is none.
    pub fn get(&mut self, path: &str, fields: &str) -> Result<client::Response, String> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.target, PATIENCE).map_err(|error| error.to_string())?,
        };
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        connection.send(request.as_bytes()).map_err(|error| error.to_string())?;
        let reply = connection.response("GET");
        if reply.end != End::Complete {
            return Err(format!("{:?}", reply.end));
        }
        if reply.headers.get("connection") != Some("close") {
            self.connection = Some(connection);
        }
        Ok(reply)
    }

    /// Whether a GET of `path` with `fields` is answered with 200 now.
    pub fn is_served(&mut self, path: &str, fields: &str) -> bool {
        self.get(path, fields).is_ok_and(|reply| reply.status == 200)
    }
}

/// `torus-load serve` on all loopback addresses, for as long as the value lives.
pub struct Server {
    pub port: u16,
    _program: Program,
}

impl Server {
    pub fn start() -> Self {
        let port = free_port();
        let mut command = on_core(0, binaries::torus_load().as_os_str());
        command.args(["serve", "--threads", "1", "--listen", &format!("0.0.0.0:{port}")]);
        let mut program = Program::start("torus-load serve", command);
        let mut client = Client::new(port);
        let waited = program.wait_until("reply", PATIENCE, || client.is_served("/fixed", "").then_some(()));
        waited.unwrap_or_else(|error| panic!("{error}"));
        Self { port, _program: program }
    }
}

/// A running `torus-load run`.
pub struct Load(Program);

/// What it reports.
#[derive(Clone, Debug)]
pub struct Report {
    pub succeeded: u64,
    pub failed: u64,
    /// Which the schedule wanted and for which no connection was free in time.
    pub unsent: u64,
    /// Requests a second.
    pub rate: f64,
    pub p99: Duration,
    pub errors: String,
}

impl Load {
    pub fn start(port: u16, duration: Duration, arguments: &[&str]) -> Self {
        let mut command = on_core(0, binaries::torus_load().as_os_str());
        let duration = format!("{}ms", duration.as_millis());
        command.args([
            "run",
            "-q",
            "--json",
            "-",
            "-d",
            &duration,
            "--warmup",
            "500ms",
            "-c",
            "32",
            "--timeout",
            "30s",
        ]);
        command.args(arguments).arg(format!("http://127.0.0.1:{port}/fixed"));
        Self(Program::start("torus-load run", command))
    }

    /// Waits for its end.
    pub fn report(mut self, patience: Duration) -> Report {
        assert!(self.0.wait(patience).is_some(), "the load does not end:\n{}", self.0.output());
        // Its last lines may still be on the way.
        let deadline = Instant::now() + PATIENCE;
        let report: Value = loop {
            match serde_json::from_str(&self.0.output()) {
                Ok(report) => break report,
                Err(error) => assert!(Instant::now() < deadline, "{error}: {}", self.0.output()),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let requests = &report["requests"];
        let count = |name: &str| requests[name].as_u64().unwrap_or(0);
        let causes = requests["errors"].as_array().into_iter().flatten();
        let causes =
            causes.filter(|cause| cause["count"] != 0).map(|cause| format!("{} {}", cause["count"], cause["cause"]));
        let percentiles = report["response_time"]["percentiles"].as_array().into_iter().flatten();
        let p99 = percentiles.filter(|pair| pair[0] == 99.0).find_map(|pair| pair[1].as_u64()).unwrap_or(0);
        Report {
            succeeded: count("succeeded"),
            failed: count("failed"),
            unsent: count("unsent"),
            rate: report["rates"]["completed"].as_f64().unwrap_or(0.0),
            p99: Duration::from_nanos(p99),
            errors: causes.collect::<Vec<_>>().join(", "),
        }
    }
}

/// Figures of each subject beside each other.
pub struct Table {
    title: String,
    subjects: Vec<String>,
    rows: Vec<(String, &'static str, Vec<String>)>,
}

impl Table {
    pub fn new(title: String) -> Self {
        Self { title, subjects: Vec::new(), rows: Vec::new() }
    }

    /// The next figures are of this one.
    pub fn begin(&mut self, kind: Kind) {
        self.subjects.push(if kind == Kind::Torus { "torus-proxy" } else { "Envoy" }.to_owned());
    }

    pub fn add(&mut self, figure: &str, goal: &'static str, value: impl Into<String>) {
        let subjects = self.subjects.len();
        let row = match self.rows.iter_mut().find(|(known, ..)| known == figure) {
            Some(row) => row,
            None => {
                self.rows.push((figure.to_owned(), goal, Vec::new()));
                self.rows.last_mut().unwrap()
            }
        };
        row.2.resize(subjects.saturating_sub(1), "-".to_owned());
        row.2.push(value.into());
    }

    pub fn print(mut self) {
        println!("\n{}\n\n| | goal | {} |", self.title, self.subjects.join(" | "));
        println!("|---|---|{}", "---|".repeat(self.subjects.len()));
        for (figure, goal, values) in &mut self.rows {
            values.resize(self.subjects.len(), "-".to_owned());
            println!("| {figure} | {goal} | {} |", values.join(" | "));
        }
        println!();
    }
}

/// The middle one.
pub fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

pub fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// Sleeps until `moment` after `start`.
pub fn sleep_until(start: Instant, moment: Duration) {
    std::thread::sleep(moment.saturating_sub(start.elapsed()));
}
