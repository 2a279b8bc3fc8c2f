//! Where access-log lines end: files, stdout and stderr, all written by one thread.
//!
//! A path is opened once, whatever number of logs name it. The writer appends, so a rotated file is taken up by reopening
//! (SIGUSR1, `POST /reopen_logs`). A write that fails (no space, no permission) drops its buffer and counts
//! `filesystem.write_failed`; the next one is tried again.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use thiserror::Error;
use torus_ring::Nanos;

use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::{FilesystemStat, TorusStat};
use crate::telemetry::registry::Registry;

/// When buffers are handed to the writer. Source: Envoy, `--file-flush-interval-msec` and `--file-flush-min-size-kb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushOptions {
    /// Age at which a buffer is handed over.
    pub interval: Duration,
    /// Size at which a buffer is handed over at once.
    pub bytes_min: usize,
}

impl Default for FlushOptions {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), bytes_min: 64 << 10 }
    }
}

/// Why an access log's file cannot be used.
#[derive(Debug, Error)]
#[error("cannot open access log `{path}`: {source}; {}", cure(.source))]
pub struct OpenError {
    path: String,
    source: io::Error,
}

fn cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "create its folder first",
        io::ErrorKind::PermissionDenied => "give the proxy's user the right to write there, or log to /dev/stdout",
        io::ErrorKind::IsADirectory => "name a file in that folder",
        io::ErrorKind::StorageFull => "make room on that file system",
        _ => "name a file that can be written",
    }
}

/// Every sink, and the queue to the writer. One for a process.
pub struct LogSinks {
    options: FlushOptions,
    sinks: Mutex<Vec<Arc<Sink>>>,
    full: ArrayQueue<Filled>,
    empty: ArrayQueue<Vec<u8>>,
    /// Known to workers without a lock.
    writer: OnceLock<Thread>,
    handle: Mutex<Option<JoinHandle<()>>>,
    reopen_count: AtomicU64,
    stopping: AtomicBool,
    filesystem: Arc<Stats<FilesystemStat>>,
    torus: Arc<Stats<TorusStat>>,
    writer_core: Core,
}

/// One place that lines go to.
pub struct Sink {
    index: usize,
    target: Target,
    /// `None` until the first write after a failed reopening.
    file: Mutex<Option<File>>,
}

enum Target {
    File(PathBuf),
    Stdout,
    Stderr,
}

/// Lines on their way to a sink.
#[derive(Default)]
pub(super) struct Filled {
    pub(super) sink: usize,
    pub(super) bytes: Vec<u8>,
    pub(super) lines: u64,
    /// When a look at the buffer's age first found lines in it.
    pub(super) seen: Option<Nanos>,
}

impl Filled {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.lines = 0;
        self.seen = None;
    }
}

impl Sink {
    /// The place in each worker's buffers.
    pub(super) fn index(&self) -> usize {
        self.index
    }
}

impl LogSinks {
    /// No sink yet; the writer starts with the first one.
    pub fn new(options: FlushOptions, registry: &Registry) -> Arc<Self> {
        // The writer counts in cells of its own, after those of the config thread.
        let writer_core = Core(registry.core_count() as u16);
        Arc::new(Self {
            options,
            sinks: Mutex::default(),
            full: ArrayQueue::new(QUEUE_BUFFERS_MAX),
            empty: ArrayQueue::new(QUEUE_BUFFERS_MAX),
            writer: OnceLock::new(),
            handle: Mutex::default(),
            reopen_count: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            filesystem: registry.group_for("filesystem.", registry.core_count() + 1),
            torus: registry.group("torus."),
            writer_core,
        })
    }

    /// The sink that appends to the file `path`, which is created where it is not there.
    pub fn open(self: Arc<Self>, path: &str) -> Result<Arc<Sink>, OpenError> {
        match path {
            "/dev/stdout" | "/proc/self/fd/1" | "/dev/fd/1" => return Ok(self.stdout()),
            "/dev/stderr" | "/proc/self/fd/2" | "/dev/fd/2" => return Ok(self.stderr()),
            _ => {}
        }
        let same = |target: &Target| matches!(target, Target::File(known) if known.as_os_str() == path);
        let target = Target::File(path.into());
        self.add(same, target).map_err(|source| OpenError { path: path.to_owned(), source })
    }

    /// The sink that writes to standard output.
    pub fn stdout(self: Arc<Self>) -> Arc<Sink> {
        self.add_stream(Target::Stdout)
    }

    /// The sink that writes to standard error.
    pub fn stderr(self: Arc<Self>) -> Arc<Sink> {
        self.add_stream(Target::Stderr)
    }

    fn add_stream(self: Arc<Self>, target: Target) -> Arc<Sink> {
        let kind = std::mem::discriminant(&target);
        match self.clone().add(|known| std::mem::discriminant(known) == kind, target) {
            Ok(sink) => sink,
            // Streams are not opened; only the writer thread can fail to start, and then lines wait in the queue.
            Err(_) => Arc::new(Sink { index: 0, target: Target::Stderr, file: Mutex::default() }),
        }
    }

    fn add(self: Arc<Self>, same: impl Fn(&Target) -> bool, target: Target) -> io::Result<Arc<Sink>> {
        let mut sinks = lock(&self.sinks);
        if let Some(known) = sinks.iter().find(|sink| same(&sink.target)) {
            return Ok(known.clone());
        }
        let file = match &target {
            Target::File(path) => Some(open_to_append(path)?),
            Target::Stdout | Target::Stderr => None,
        };
        let sink = Arc::new(Sink { index: sinks.len(), target, file: Mutex::new(file) });
        sinks.push(sink.clone());
        drop(sinks);
        self.start_writer()?;
        Ok(sink)
    }

    /// How often workers hand over what they have.
    pub fn flush_interval(&self) -> Duration {
        self.options.interval
    }

    /// Closes and opens every file, so that a rotated one is created anew.
    pub fn reopen(&self) {
        self.reopen_count.fetch_add(1, Ordering::Release);
        self.wake();
    }

    /// Writes what was handed over and ends the writer; `false` if that takes longer than `limit`.
    pub fn shut_down(&self, limit: Duration) -> bool {
        self.stopping.store(true, Ordering::Release);
        self.wake();
        let Some(writer) = lock(&self.handle).take() else { return true };
        let deadline = Instant::now() + limit;
        while !writer.is_finished() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        writer.join().is_ok()
    }

    pub(super) fn flush_bytes_min(&self) -> usize {
        self.options.bytes_min
    }

    pub(super) fn filesystem_stats(&self) -> Arc<Stats<FilesystemStat>> {
        self.filesystem.clone()
    }

    /// `torus.`
    pub fn torus_stats(&self) -> Arc<Stats<TorusStat>> {
        self.torus.clone()
    }

    /// An empty buffer, with memory if one came back from the writer.
    pub(super) fn spare(&self) -> Filled {
        Filled { bytes: self.empty.pop().unwrap_or_default(), ..Filled::default() }
    }

    /// Queues lines for the writer; gives them back where the queue is full.
    pub(super) fn hand_over(&self, filled: Filled) -> Result<(), Filled> {
        self.full.push(filled)?;
        self.wake();
        Ok(())
    }

    /// Waits, not for ever, until the queue has room for a worker's last lines.
    pub(super) fn wait_for_room(&self) {
        let deadline = Instant::now() + LAST_WORDS_WAIT;
        while self.full.len() * 2 > QUEUE_BUFFERS_MAX && Instant::now() < deadline {
            self.wake();
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn wake(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    fn start_writer(self: Arc<Self>) -> io::Result<()> {
        let mut handle = lock(&self.handle);
        if handle.is_none() && !self.stopping.load(Ordering::Acquire) {
            let sinks = self.clone();
            let writer = thread::Builder::new().name("torus-log".into()).spawn(move || sinks.run())?;
            let _ = self.writer.set(writer.thread().clone());
            *handle = Some(writer);
        }
        Ok(())
    }

    /// The writer thread.
    fn run(&self) {
        let mut reopened = 0;
        loop {
            // Read before the queue: what was handed over before the stop is written.
            let stopping = self.stopping.load(Ordering::Acquire);
            let reopen_count = self.reopen_count.load(Ordering::Acquire);
            if reopen_count != reopened {
                reopened = reopen_count;
                self.reopen_files();
            }
            while let Some(filled) = self.full.pop() {
                self.write(filled);
            }
            if stopping {
                return;
            }
            if self.full.is_empty() {
                thread::park_timeout(WRITER_WAIT_MAX);
            }
        }
    }

    fn write(&self, mut filled: Filled) {
        let sink = lock(&self.sinks).get(filled.sink).cloned();
        let written = sink.map_or(Ok(()), |sink| sink.write(&filled.bytes));
        let stat = if written.is_ok() { FilesystemStat::WriteCompleted } else { FilesystemStat::WriteFailed };
        self.filesystem.increment(self.writer_core, stat);
        self.filesystem.subtract(self.writer_core, FilesystemStat::WriteTotalBuffered, filled.bytes.len() as u64);
        filled.clear();
        if filled.bytes.capacity() <= SPARE_BYTES_MAX {
            let _ = self.empty.push(filled.bytes);
        }
    }

    fn reopen_files(&self) {
        let sinks = lock(&self.sinks).clone();
        for sink in sinks {
            let Target::File(path) = &sink.target else { continue };
            let file = open_to_append(path);
            if file.is_err() {
                self.filesystem.increment(self.writer_core, FilesystemStat::ReopenFailed);
            }
            // Without a new file the old one is kept: its lines are not lost.
            if let Ok(file) = file {
                *lock(&sink.file) = Some(file);
            }
        }
    }
}

impl Sink {
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.target {
            Target::Stdout => {
                let mut stream = io::stdout().lock();
                stream.write_all(bytes)?;
                stream.flush()
            }
            Target::Stderr => io::stderr().lock().write_all(bytes),
            Target::File(path) => {
                let mut file = lock(&self.file);
                if file.is_none() {
                    *file = Some(open_to_append(path)?);
                }
                file.as_mut().map_or(Ok(()), |file| file.write_all(bytes))
            }
        }
    }
}

fn open_to_append(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for LogSinks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("LogSinks").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Buffers on their way to the writer, all sinks together: 16 MiB of 64 KiB each.
const QUEUE_BUFFERS_MAX: usize = 256;
/// A buffer that grew beyond this is not used again.
const SPARE_BYTES_MAX: usize = 1 << 20;
/// The writer looks around this often even if nobody wakes it.
const WRITER_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a worker that ends waits for the writer.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(1);
