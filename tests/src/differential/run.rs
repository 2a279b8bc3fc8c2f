//! One theme through one proxy.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::bootstrap::{self, Places};
use super::observe::{self, Observed};
use super::theme::{BackendKind, Listen, Request, Theme};
use crate::backend::{Backend, Journal};
use crate::client::{Connection, End, Target};
use crate::ports::free_port;
use crate::proxy::Proxy;
use crate::tls;

/// What was seen of one theme: each case, and `(theme)` for what belongs to no single request.
pub type Run = BTreeMap<String, BTreeMap<String, String>>;

/// Where what belongs to the whole theme is kept.
const THEME: &str = "(theme)";
/// Parts of names of stats that are not compared: how bytes were cut into reads is chance, and admin is used by the
/// suite itself. Flow control depends on how fast both ends are.
const NOT_COMPARED: &[&str] = &["_bytes_buffered", "listener.admin.", "_bytes_total", "flow_control"];
/// Beginnings of names of stats that are compared.
const SCOPES: &[&str] =
    &["http.test.", "cluster.", "listener.", "tcp.", "tls_inspector.", "http_inspector.", "proxy_proto."];
/// Bounds each wait of the client for bytes; longer than every timeout in the themes.
const CLIENT_PATIENCE: Duration = Duration::from_secs(3);

/// Runs `theme` through each of `binaries`, one after another on the same ports and against the same backends.
///
/// Errors: the program does not become ready; the text carries the end of what it printed.
///
/// # Panics
/// Where the theme names a backend that it does not have.
pub fn run(theme: &Theme, binaries: &[PathBuf]) -> Vec<Result<Run, String>> {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let journal = Arc::new(Journal::default());
    for (name, text) in &theme.scripts {
        journal.script(name, text.as_bytes());
    }
    tls::write_certificates(folder.path(), &theme.certificates);
    let mut backends = Vec::new();
    let mut ports = BTreeMap::new();
    for (label, kind) in &theme.backends {
        let backend = match kind {
            BackendKind::Tcp => Backend::tcp(label, "127.0.0.1", &journal),
            BackendKind::Tcp6 => Backend::tcp(label, "::1", &journal),
            BackendKind::Unix => Backend::unix(label, folder.path().join(format!("{label}.backend")), &journal),
            BackendKind::Closed => {
                ports.insert(label.clone(), free_port());
                continue;
            }
        };
        ports.insert(label.clone(), backend.port);
        backends.push(backend);
    }
    let port = |listen: &Listen| if *listen == Listen::Unix { 0 } else { free_port() };
    let places = Places {
        listen: theme.listen.iter().map(port).collect(),
        backends: ports,
        folder: bootstrap::folder_text(folder.path()),
    };
    let config = bootstrap::assemble(theme, &places);
    if let Some(keep) = std::env::var_os("TORUS_DIFFERENTIAL_KEEP") {
        let file = Path::new(&keep).join(format!("{}.json", theme.name));
        fs::write(file, serde_json::to_string_pretty(&config).expect("JSON values print")).expect("a writable folder");
    }
    let targets: Vec<Target> =
        theme.listen.iter().enumerate().map(|(at, listen)| target(*listen, at, &places)).collect();
    let admin_port = free_port();
    let mut runs = Vec::new();
    for binary in binaries {
        match Proxy::try_start(binary.clone(), &config, admin_port, &[]) {
            Ok(proxy) => {
                let passage = Passage { theme, proxy, journal: &journal, targets: &targets, folder: folder.path() };
                runs.push(Ok(passage.run()));
            }
            Err(error) => runs.push(Err(format!("{}: {error}", theme.name))),
        }
        for name in ["json.log", "text.log"] {
            let _ = fs::remove_file(folder.path().join(name));
        }
        for index in 0..theme.listen.len() {
            let _ = fs::remove_file(folder.path().join(format!("{index}.listen")));
        }
    }
    runs
}

/// The request that had begun last at `start`, for lines of requests whose fields were not read.
fn in_flight(begun: &[(f64, String)], start: &Value) -> Option<String> {
    let start: f64 = start.as_str()?.parse().ok()?;
    begun.iter().rev().find(|(begin, _)| *begin <= start).map(|(_, case)| case.clone())
}

fn seconds_now() -> f64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_epoch.expect("the clock is past 1970").as_secs_f64()
}

fn target(listen: Listen, index: usize, places: &Places) -> Target {
    let port = places.listen.get(index).copied().unwrap_or_default();
    match listen {
        Listen::Tcp => Target::Tcp(format!("127.0.0.1:{port}")),
        Listen::Tcp6 => Target::Tcp(format!("[::1]:{port}")),
        Listen::Unix => Target::Unix(Path::new(&places.folder).join(format!("{index}.listen"))),
    }
}

struct Passage<'a> {
    theme: &'a Theme,
    proxy: Proxy,
    journal: &'a Journal,
    targets: &'a [Target],
    folder: &'a Path,
}

impl Passage<'_> {
    fn run(self) -> Run {
        let before = self.proxy.stats();
        let mut run = Run::new();
        let mut kept: HashMap<String, Connection> = HashMap::new();
        let mut begun = Vec::new();
        self.journal.take();
        for request in &self.theme.requests {
            let started = Instant::now();
            begun.push((seconds_now(), request.case.clone()));
            run.insert(request.case.clone(), self.send(request, &mut kept));
            if std::env::var_os("TORUS_DIFFERENTIAL_SLOW").is_some() && started.elapsed() > Duration::from_millis(500) {
                println!("slow: {}/{}: {:?}", self.theme.name, request.case, started.elapsed());
            }
        }
        drop(kept);
        let lines = self.quiet_log("json.log");
        let whole = self.whole(&before, &lines, &begun, &mut run);
        run.insert(THEME.into(), whole);
        run
    }

    fn send(&self, request: &Request, kept: &mut HashMap<String, Connection>) -> Observed {
        let mut observed = Observed::new();
        sleep(Duration::from_millis(request.pause_ms.unwrap_or(0)));
        let reused = request.connection.as_ref().and_then(|label| kept.remove(label));
        let target = self.targets.get(request.to).expect("`to` is an index into `listen`");
        let opened = reused.map_or_else(|| Connection::open(target, CLIENT_PATIENCE), Ok);
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(error) => {
                observed.insert("connect".into(), error.kind().to_string());
                return observed;
            }
        };
        if let Some(client) = &request.tls
            && connection.is_plain()
        {
            let (seen, secured) = connection.start_tls(&client.in_folder(self.folder));
            observed.extend(seen.0);
            match secured {
                Some(secured) => connection = secured,
                None => return observed,
            }
        }
        let pieces = request.pieces();
        for (index, piece) in pieces.iter().enumerate() {
            if index > 0 {
                sleep(Duration::from_millis(30));
            }
            // A proxy may answer and close before it has read everything; what it answered is what counts.
            let _ = connection.send(piece);
        }
        if request.finish {
            connection.finish();
        }
        if let Some(delay_ms) = request.abort_ms {
            sleep(Duration::from_millis(delay_ms));
            connection.reset();
        } else {
            self.read(request, connection, kept, &mut observed);
        }
        sleep(Duration::from_millis(request.settle_ms.unwrap_or(0)));
        let records = self.journal.take();
        observed.insert("backend.count".into(), records.len().to_string());
        for (index, record) in records.iter().enumerate() {
            observe::record(&mut observed, index, record);
        }
        observed
    }

    fn read(
        &self,
        request: &Request,
        mut connection: Connection,
        kept: &mut HashMap<String, Connection>,
        observed: &mut Observed,
    ) {
        if request.until_end {
            let (bytes, end) = connection.rest();
            observed.insert("received".into(), observe::clip(&bytes));
            observed.insert("connection".into(), if end == End::Timeout { "open" } else { "closed" }.into());
            return;
        }
        let count = request.responses.unwrap_or(1);
        let mut closing = false;
        for index in 0..count {
            let response = connection.response(&request.method());
            let prefix = if index == 0 { "response".to_owned() } else { format!("response[{index}]") };
            observe::response(observed, &prefix, &response);
            // The backend's script ends what follows a switch.
            closing = matches!(response.status, 0 | 101)
                || response.version == "HTTP/1.0"
                || response.headers.has_token("connection", "close");
        }
        let patience = if closing { Duration::from_secs(3) } else { Duration::from_millis(2) };
        let closed = connection.closes_within(patience);
        observed.insert("connection".into(), if closed { "closed" } else { "open" }.into());
        if !connection.leftover().is_empty() {
            observed.insert("leftover".into(), crate::message::latin1(connection.leftover()));
        }
        if let Some(label) = &request.connection
            && !closed
        {
            kept.insert(label.clone(), connection);
        }
    }

    /// Log lines, stats and everything else that no single request explains.
    fn whole(
        &self,
        before: &BTreeMap<String, u64>,
        lines: &[String],
        begun: &[(f64, String)],
        run: &mut Run,
    ) -> Observed {
        let mut whole = Observed::new();
        let mut seen: HashMap<String, usize> = HashMap::new();
        for line in lines {
            let Ok(mut line) = serde_json::from_str::<Value>(line) else {
                whole.insert(format!("log is not JSON[{}]", whole.len()), line.clone());
                continue;
            };
            let start = line.as_object_mut().and_then(|fields| fields.remove(bootstrap::START));
            let named = line.get("case").and_then(Value::as_str).filter(|case| run.contains_key(*case));
            let case = named.map(str::to_owned).or_else(|| in_flight(begun, start.as_ref()?)).unwrap_or_default();
            let index = seen.entry(case.clone()).or_default();
            let prefix = format!("log[{index}]");
            *index += 1;
            observe::log_line(run.get_mut(&case).unwrap_or(&mut whole), &prefix, &line);
        }
        if let Some(format) = &self.theme.text_log {
            for (index, line) in self.quiet_log("text.log").iter().enumerate() {
                whole.insert(format!("text_log[{index:03}]"), observe::text_line(line, format.is_empty()));
            }
        }
        for (name, value) in self.settled_stats() {
            let delta = i128::from(value) - i128::from(before.get(&name).copied().unwrap_or(0));
            let scoped = SCOPES.iter().any(|scope| name.starts_with(scope));
            if delta != 0 && scoped && !NOT_COMPARED.iter().any(|part| name.contains(part)) {
                whole.insert(format!("stats.{name}"), delta.to_string());
            }
        }
        whole
    }

    /// Stats once nothing is going on any more.
    fn settled_stats(&self) -> BTreeMap<String, u64> {
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            let stats = self.proxy.stats();
            let is_activity = |name: &str| {
                name.starts_with("http.test.")
                    && (name.ends_with("downstream_cx_active") || name.ends_with("rq_active"))
                    || name.starts_with("listener.")
                        && !name.starts_with("listener.admin.")
                        && (name.ends_with(".downstream_cx_active") || name.ends_with(".downstream_pre_cx_active"))
            };
            let idle = stats.iter().all(|(name, value)| *value == 0 || !is_activity(name));
            if idle || Instant::now() >= deadline {
                return stats;
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Lines of a log once it has stopped growing.
    fn quiet_log(&self, name: &str) -> Vec<String> {
        let path = self.folder.join(name);
        let read = || fs::read_to_string(&path).unwrap_or_default();
        let mut text = read();
        let mut quiet_since = Instant::now();
        let deadline = Instant::now() + Duration::from_secs(5);
        while quiet_since.elapsed() < Duration::from_millis(120) && Instant::now() < deadline {
            sleep(Duration::from_millis(15));
            let now = read();
            if now.len() != text.len() {
                text = now;
                quiet_since = Instant::now();
            }
        }
        text.lines().map(str::to_owned).collect()
    }
}
