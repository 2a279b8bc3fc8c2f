use super::sink::FlushOptions;
use super::*;
use crate::telemetry::registry::Registry;

struct Fixture {
    registry: Arc<Registry>,
    sinks: Arc<LogSinks>,
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new(bytes_min: usize) -> Self {
        let registry = Registry::new(2);
        let options = FlushOptions { bytes_min, ..FlushOptions::default() };
        let sinks = LogSinks::new(options, &registry);
        Self { registry, sinks, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn sink(&self, name: &str) -> Arc<Sink> {
        self.sinks.clone().open(&self.path(name)).unwrap()
    }

    fn buffers(&self) -> LogBuffers {
        LogBuffers::new(self.sinks.clone(), Core(0))
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn wait_for(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !done() {
            assert!(std::time::Instant::now() < deadline, "{what}");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn total(&self, stat: FilesystemStat) -> u64 {
        self.sinks.filesystem_stats().total(stat)
    }
}

fn line(text: &str) -> impl FnOnce(&mut Vec<u8>) + '_ {
    move |out| out.extend_from_slice(text.as_bytes())
}

#[test]
fn full_buffers_leave_at_once_and_the_rest_with_the_worker() {
    let fixture = Fixture::new(10);
    let sink = fixture.sink("a.log");
    let mut buffers = fixture.buffers();
    buffers.append(&sink, line("123\n"));
    assert_eq!(fixture.total(FilesystemStat::WriteTotalBuffered), 4);
    buffers.append(&sink, line("456789\n"));
    fixture.wait_for("a full buffer is written", || fixture.read("a.log") == "123\n456789\n");
    buffers.append(&sink, line("x\n"));
    drop(buffers);
    assert!(fixture.sinks.shut_down(std::time::Duration::from_secs(10)));
    assert_eq!(fixture.read("a.log"), "123\n456789\nx\n");
    assert_eq!(fixture.total(FilesystemStat::WriteBuffered), 3);
    assert_eq!(fixture.total(FilesystemStat::WriteCompleted), 2);
    assert_eq!(fixture.total(FilesystemStat::WriteTotalBuffered), 0);
}

#[test]
fn one_path_is_one_sink() {
    let fixture = Fixture::new(10);
    assert_eq!(fixture.sink("a.log").index(), fixture.sink("a.log").index());
    assert_ne!(fixture.sink("a.log").index(), fixture.sink("b.log").index());
    let stdout = fixture.sinks.clone().stdout();
    assert_eq!(fixture.sinks.clone().open("/dev/stdout").unwrap().index(), stdout.index());
}

#[test]
fn a_rotated_file_is_created_anew() {
    let fixture = Fixture::new(1);
    let sink = fixture.sink("a.log");
    let mut buffers = fixture.buffers();
    buffers.append(&sink, line("before\n"));
    fixture.wait_for("written", || fixture.read("a.log") == "before\n");
    std::fs::rename(fixture.path("a.log"), fixture.path("a.log.1")).unwrap();
    fixture.sinks.reopen();
    fixture.wait_for("created", || std::path::Path::new(&fixture.path("a.log")).exists());
    buffers.append(&sink, line("after\n"));
    fixture.wait_for("written to the new file", || fixture.read("a.log") == "after\n");
    assert_eq!(fixture.read("a.log.1"), "before\n");
}

#[test]
fn a_lost_folder_counts_and_keeps_the_old_file() {
    let fixture = Fixture::new(1);
    std::fs::create_dir(fixture.path("logs")).unwrap();
    let sink = fixture.sink("logs/a.log");
    std::fs::rename(fixture.path("logs"), fixture.path("moved")).unwrap();
    fixture.sinks.reopen();
    fixture.wait_for("counted", || fixture.total(FilesystemStat::ReopenFailed) == 1);
    fixture.buffers().append(&sink, line("kept\n"));
    fixture.wait_for("written", || fixture.read("moved/a.log") == "kept\n");
}

#[test]
fn a_full_disk_loses_lines_and_is_counted() {
    let fixture = Fixture::new(1);
    let sink = fixture.sinks.clone().open("/dev/full").unwrap();
    fixture.buffers().append(&sink, line("lost\n"));
    fixture.wait_for("counted", || fixture.total(FilesystemStat::WriteFailed) == 1);
    assert_eq!(fixture.total(FilesystemStat::WriteTotalBuffered), 0);
}

#[test]
fn a_file_that_cannot_be_opened_names_the_cure() {
    let fixture = Fixture::new(1);
    let check = |path: &str, words: &str| {
        let error = fixture.sinks.clone().open(path).err().unwrap().to_string();
        assert!(error.contains(path) && error.contains(words), "{error}");
    };
    check(&fixture.path("no/such/a.log"), "create its folder first");
    check(fixture.folder.path().to_str().unwrap(), "name a file in that folder");
}

#[test]
fn a_writer_that_is_behind_costs_lines_and_no_time() {
    let fixture = Fixture::new(1);
    // A pipe that nobody reads blocks the writer.
    let pipe = fixture.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut reader = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let sink = fixture.sinks.clone().open(&pipe).unwrap();
    let mut buffers = fixture.buffers();
    let text = "x".repeat(32 << 10);
    for _ in 0..400 {
        buffers.append(&sink, line(&text));
    }
    let torus = fixture.registry.group::<TorusStat>("torus.");
    let dropped = torus.total(TorusStat::AccessLogLinesDropped);
    assert!(dropped > 0);
    assert_eq!(torus.total(TorusStat::AccessLogBytesDropped), dropped * text.len() as u64);
    let expected = (400 - dropped) * text.len() as u64;
    let mut received = 0;
    let mut block = vec![0; 1 << 16];
    while received < expected {
        received += std::io::Read::read(&mut reader, &mut block).unwrap() as u64;
    }
    assert_eq!(received, expected);
}

#[test]
fn buffers_come_back() {
    let fixture = Fixture::new(4096);
    let sink = fixture.sink("a.log");
    let mut buffers = fixture.buffers();
    let text = "x".repeat(4096);
    buffers.append(&sink, line(&text));
    fixture.wait_for("written", || fixture.total(FilesystemStat::WriteCompleted) == 1);
    fixture.wait_for("back", || fixture.sinks.spare().bytes.capacity() >= 4096);
}

#[test]
fn old_lines_leave_and_young_ones_stay() {
    let fixture = Fixture::new(4096);
    let sink = fixture.sink("a.log");
    let mut buffers = fixture.buffers();
    let at = |seconds: u64| Nanos::from_nanos(seconds * 1_000_000_000);
    buffers.append(&sink, line("old\n"));
    buffers.flush_aged(at(100));
    buffers.flush_aged(at(109));
    assert_eq!(fixture.total(FilesystemStat::FlushedByTimer), 0);
    buffers.flush_aged(at(110));
    assert_eq!(fixture.total(FilesystemStat::FlushedByTimer), 1);
    fixture.wait_for("written", || fixture.read("a.log") == "old\n");
    buffers.append(&sink, line("young\n"));
    buffers.flush_aged(at(111));
    buffers.flush_aged(at(120));
    assert_eq!(fixture.total(FilesystemStat::FlushedByTimer), 1, "the age begins anew");
}
