//! A started program: its output is kept, and it ends with the value that started it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// A running child process with its output.
pub struct Program {
    name: String,
    child: Child,
    output: Arc<Output>,
}

#[derive(Default)]
struct Output {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

impl Program {
    /// Starts `command` and collects standard output and standard error, line by line, in one list.
    ///
    /// # Panics
    /// Where the program cannot be started.
    pub fn start(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}: {command:?}"));
        let output = Arc::new(Output::default());
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        collect(stdout, Arc::clone(&output));
        collect(stderr, Arc::clone(&output));
        Self { name: name.to_owned(), child, output }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything that the program has printed, in order of arrival.
    pub fn output(&self) -> String {
        self.output.lines.lock().expect("no reader panicked").join("\n")
    }

    /// The first printed line that contains `text`, waiting for it up to `patience`.
    pub fn wait_for_line(&self, text: &str, patience: Duration) -> Option<String> {
        let deadline = Instant::now() + patience;
        let mut lines = self.output.lines.lock().expect("no reader panicked");
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(text)) {
                return Some(line.clone());
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            lines = self.output.grown.wait_timeout(lines, left).expect("no reader panicked").0;
        }
    }

    /// Waits until `ready` gives a value; an error at once where the program ends before, or once `patience` runs out.
    /// The error carries the end of what the program printed.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(value) = ready() {
                return Ok(value);
            }
            let ended = self.child.try_wait().expect("the child can be waited for");
            if ended.is_some() || Instant::now() >= deadline {
                let state = ended.map_or_else(|| format!("still runs after {patience:?}"), |status| status.to_string());
                // The reader threads may still be behind the process that has just ended.
                std::thread::sleep(Duration::from_millis(20));
                return Err(format!("{}: no {what}: {state}; it printed:\n{}", self.name, self.tail()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The lines that say what went wrong, or the last ones where none does.
    fn tail(&self) -> String {
        let output = self.output();
        let telling =
            |line: &&str| ["[critical]", "[error]", "error:", "panicked"].iter().any(|word| line.contains(word));
        let mut lines: Vec<&str> = output.lines().filter(telling).collect();
        if lines.is_empty() {
            lines = output.lines().collect();
            lines.drain(..lines.len().saturating_sub(15));
        }
        let clipped = lines.iter().map(|line| line.chars().take(1_500).collect::<String>());
        clipped.collect::<Vec<_>>().join("\n")
    }

    /// Sends the signal called `signal` (`TERM`, `INT`, `USR1`, ...).
    ///
    /// # Panics
    /// Where there is no such process any more.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.id().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "{}: cannot send SIG{signal}", self.name);
    }

    /// How the program ended, waiting up to `patience`; `None` where it still runs.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.wait(Duration::ZERO).is_none()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Killed and reaped by its own handle, so never another process that took over the number.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(pipe: impl Read + Send + 'static, output: Arc<Output>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            output.lines.lock().expect("no reader panicked").push(text);
            output.grown.notify_all();
            line.clear();
        }
    });
}
