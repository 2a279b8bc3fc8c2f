//! One run of `torus-load`, against a given target or a server of its own.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often a running load is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// The form of the report that is understood.
const SCHEMA: &str = "torus-load.run.v1";

/// Why a run gave no figures.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such program.
    #[error("cannot start {program}: {error}; try: --torus-load PATH")]
    Start {
        /// The program.
        program: String,
        /// What happened.
        error: io::Error,
    },
    /// It ended without a report.
    #[error("the load could not be run: {0}")]
    Failed(String),
    /// The server of our own did not come up.
    #[error("torus-load serve did not say where it listens: {0}")]
    Server(String),
    /// The report makes no sense.
    #[error("the report of torus-load cannot be read: {0}")]
    Report(String),
}

/// Where requests go.
#[derive(Debug, Clone)]
pub enum Goal {
    /// To a server that is there, and whose processor time counts if its process is known.
    Url(String, Option<u32>),
    /// To this path of a `torus-load serve` that is started for each run, so that what a socket takes over when it is made counts.
    Own(String),
}

/// What one run is.
#[derive(Debug, Clone)]
pub struct Load {
    /// `torus-load`.
    pub program: PathBuf,
    /// Where requests go.
    pub goal: Goal,
    /// Flags of `torus-load run`.
    pub arguments: Vec<String>,
}

/// What one run gave.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// What torus-load says of its own run.
    pub verdict: String,
    /// Median of the response time.
    pub p50_us: f64,
    /// 99th percentile of the response time.
    pub p99_us: f64,
    /// Processor time of the target for each request, where its process is known.
    pub cpu_us: Option<f64>,
}

impl Sample {
    /// Whether it says something of the target rather than of the load generator.
    pub fn is_fit(&self) -> bool {
        !matches!(self.verdict.as_str(), "generator-limited" | "invalid")
    }
}

/// A process that ends with this value.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Load {
    /// Runs the load once; ends early, with an error, once `stop` is set.
    pub fn run(&self, stop: &AtomicBool) -> Result<Sample, LoadError> {
        let (_server, url, pid) = match &self.goal {
            Goal::Url(url, pid) => (None, url.clone(), *pid),
            Goal::Own(path) => {
                let (server, address) = self.serve()?;
                let pid = server.0.id();
                (Some(server), format!("http://{address}{path}"), Some(pid))
            }
        };
        let mut command = Command::new(&self.program);
        command.args(["run", &url, "--quiet", "--json", "-"]).args(&self.arguments);
        if let Some(pid) = pid {
            command.args(["--watch-pid", &pid.to_string()]);
        }
        let scratch = |error| LoadError::Failed(format!("no scratch file can be made: {error}"));
        // Pipes could fill up while nobody reads them.
        let report = Scratch::new("report").map_err(scratch)?;
        let complaint = Scratch::new("complaint").map_err(scratch)?;
        command.stdin(Stdio::null());
        command.stdout(report.file.try_clone().map_err(scratch)?);
        command.stderr(complaint.file.try_clone().map_err(scratch)?);
        let mut child = Owned(command.spawn().map_err(|error| self.no_start(error))?);
        let status = loop {
            if stop.load(Ordering::Relaxed) {
                return Err(LoadError::Failed("stopped".to_owned()));
            }
            match child.0.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => std::thread::sleep(LOOK_INTERVAL),
                Err(error) => return Err(LoadError::Failed(error.to_string())),
            }
        };
        let report = report.text().map_err(scratch)?;
        if report.trim().is_empty() {
            let complaint = complaint.text().map_err(scratch)?;
            let complaint = complaint.trim();
            return Err(LoadError::Failed(if complaint.is_empty() {
                status.to_string()
            } else {
                complaint.to_owned()
            }));
        }
        parse(&report)
    }

    fn no_start(&self, error: io::Error) -> LoadError {
        LoadError::Start { program: self.program.display().to_string(), error }
    }

    /// Starts a server on a free port and waits until it says which.
    fn serve(&self) -> Result<(Owned, String), LoadError> {
        let mut command = Command::new(&self.program);
        command.args(["serve", "--listen", "127.0.0.1:0"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut server = Owned(command.spawn().map_err(|error| self.no_start(error))?);
        let mut line = String::new();
        if let Some(output) = server.0.stdout.take() {
            BufReader::new(output).read_line(&mut line).map_err(|error| LoadError::Server(error.to_string()))?;
        }
        match line.trim().strip_prefix("listening on ") {
            Some(address) => Ok((server, address.to_owned())),
            None => Err(LoadError::Server(format!("it said '{}'", line.trim()))),
        }
    }
}

/// A file without a name.
struct Scratch {
    file: File,
}

impl Scratch {
    fn new(name: &str) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("torus-tune-{}-{name}", std::process::id()));
        // What somebody else put there is not followed.
        let _ = std::fs::remove_file(&path);
        let file = File::options().create_new(true).read(true).write(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Self { file })
    }

    fn text(mut self) -> io::Result<String> {
        io::Seek::rewind(&mut self.file)?;
        let mut text = String::new();
        self.file.read_to_string(&mut text)?;
        Ok(text)
    }
}

#[derive(Deserialize)]
struct Report {
    schema: String,
    verdict: Verdict,
    response_time: Distribution,
    target_usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Verdict {
    kind: String,
}

#[derive(Deserialize)]
struct Distribution {
    percentiles: Vec<(f64, f64)>,
}

#[derive(Deserialize)]
struct Usage {
    cpu_us_per_request: f64,
}

fn parse(text: &str) -> Result<Sample, LoadError> {
    let report: Report = serde_json::from_str(text).map_err(|error| LoadError::Report(error.to_string()))?;
    if report.schema != SCHEMA {
        return Err(LoadError::Report(format!("its form is {}, {SCHEMA} is understood", report.schema)));
    }
    let percentile = |wanted: f64| {
        let found = report.response_time.percentiles.iter().find(|(percent, _)| (percent - wanted).abs() < 1e-9);
        found.map_or(0.0, |(_, nanoseconds)| nanoseconds / 1e3)
    };
    Ok(Sample {
        p50_us: percentile(50.0),
        p99_us: percentile(99.0),
        cpu_us: report.target_usage.map(|usage| usage.cpu_us_per_request),
        verdict: report.verdict.kind,
    })
}

/// `torus-load` beside `program` if it is there, else as the search path finds it.
pub fn beside(program: io::Result<PathBuf>) -> PathBuf {
    let neighbour = program.ok().and_then(|path| Some(path.parent()?.join("torus-load")));
    neighbour.filter(|path| path.is_file()).unwrap_or_else(|| Path::new("torus-load").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports() {
        let good = r#"{"schema":"torus-load.run.v1","verdict":{"kind":"valid","reasons":[]},
            "response_time":{"percentiles":[[50.0,142591],[99.0,2158591]]},"target_usage":{"cpu_us_per_request":12.5}}"#;
        let sample = parse(good).unwrap();
        assert!(sample.is_fit());
        assert_eq!((sample.p50_us, sample.p99_us, sample.cpu_us), (142.591, 2158.591, Some(12.5)));
        for (text, said) in [
            (good.replace("run.v1", "run.v9"), "its form is torus-load.run.v9, torus-load.run.v1 is understood"),
            ("{".to_owned(), "cannot be read: EOF"),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
