//! Servers that others wrote, certificates for them, and runs against them.
#![allow(dead_code, reason = "each test file uses a part")]

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::Value;

/// A program that is ended with the test, and what it serves.
pub(crate) struct Running(pub(crate) Child, pub(crate) Option<tempfile::TempDir>);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn start(command: &mut Command, port: u16) -> Running {
    let running = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap(), None);
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{command:?} does not listen on {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
    running
}

/// Where scripts/install-test-tools.sh puts what is no package of the system.
pub(crate) fn cache() -> PathBuf {
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let shared = || named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
    named("TORUS_CACHE").or_else(|| Some(shared()?.join("torus"))).unwrap_or_default()
}

/// Says that a test is skipped for want of `what`.
///
/// # Panics
/// Where all tools have to be there, as in `.ci/run`: a test that was skipped would be taken for one that passed.
pub(crate) fn missing(what: &str) {
    assert!(
        std::env::var_os("TORUS_TOOLS_REQUIRED").is_none(),
        "{what} is missing; try: scripts/install-test-tools.sh"
    );
    println!("skipped: {what} is missing; try: scripts/install-test-tools.sh");
}

/// The program's path, or `None` with a word about it.
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    let folders =
        ["/usr/sbin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from).into_iter().chain([cache().join("bin")]);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        missing(name);
    }
    found
}

/// An authority with a certificate of `localhost` and one of a client, as PEM files.
pub(crate) struct Certificates {
    pub(crate) folder: tempfile::TempDir,
}

impl Certificates {
    pub(crate) fn new() -> Certificates {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write("ca.pem", &authority.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(authority, key);
        for (name, purpose) in
            [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
        {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            // Issuer and subject of one name would make it a certificate that signs itself.
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![purpose];
            write(&format!("{name}.pem"), &params.signed_by(&key, &issuer).unwrap().pem());
            write(&format!("{name}.key"), &key.serialize_pem());
        }
        Certificates { folder }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

pub(crate) fn torus_load(target: &str, flags: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torus-load"));
    command.args(["run", target, "--json", "-", "-q", "-d", "1s", "--warmup", "100ms", "-c", "4"]);
    if !flags.contains(&"--closed") {
        command.args(["-r", "200"]);
    }
    command.args(flags).output().unwrap()
}

pub(crate) fn run(target: &str, flags: &[&str]) -> Value {
    let output = torus_load(target, flags);
    let report = serde_json::from_slice(&output.stdout);
    report.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

#[track_caller]
pub(crate) fn check_all_succeeded(report: &Value, protocol: &str) {
    assert_eq!(report["load"]["protocol"], protocol);
    assert_eq!(report["requests"]["failed"], 0, "{}", report["requests"]);
    assert!(report["requests"]["succeeded"].as_u64() >= Some(100), "{} {}", report["requests"], report["verdict"]);
}

/// A command of the script beside this file, in the environment called `name`.
pub(crate) fn python(name: &str, arguments: &[&str]) -> Option<Command> {
    let python = cache().join(name).join("bin/python");
    if !python.exists() {
        missing(&python.display().to_string());
        return None;
    }
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers.py")).args(arguments);
    Some(command)
}

/// `torus-load serve` on a free port.
pub(crate) fn serve(flags: &[&str]) -> (Running, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torus-load"));
    let listen = if flags.contains(&"--listen") { &[][..] } else { &["--listen", "127.0.0.1:0"] };
    listening(command.args(["serve", "--threads", "1"]).args(listen).args(flags))
}

/// Starts `command`, which says where it listens.
pub(crate) fn listening(command: &mut Command) -> (Running, String) {
    command.stdout(Stdio::piped());
    let mut running = Running(command.spawn().unwrap(), None);
    let mut line = String::new();
    BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (running, line.trim().rsplit(' ').next().unwrap().to_owned())
}

/// What `command` prints; it must succeed.
#[track_caller]
pub(crate) fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {error}{text}");
    text.into_owned()
}
