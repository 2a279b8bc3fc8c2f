//! The user's command line, with istioctl's names: one file for each command.

mod admin;
mod analyze;
mod client;
mod output;
mod proxy_config;
mod proxy_status;
mod wait;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::model::MeshOptions;
pub use client::ClientError;
pub use output::Format;

/// Looks into a Torus mesh, and checks configuration before it is used.
///
/// Exit codes: 0 all is well, 1 there are findings, 2 wrong use, 3 torusd cannot be reached.
#[derive(Parser)]
#[command(name = "torusctl", version)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find mistakes in configuration, each with file, line, column and Istio's message code
    Analyze(analyze::Flags),
    /// Check that files are well-formed objects
    Validate(analyze::Flags),
    /// What each proxy was sent, accepted or refused, and why
    #[command(visible_alias = "ps")]
    ProxyStatus(proxy_status::Flags),
    /// The configuration of one proxy
    #[command(visible_alias = "pc")]
    ProxyConfig(proxy_config::Flags),
    /// Wait until the newest configuration is accepted by every proxy
    Wait(wait::Flags),
    /// What a request meets in the configuration as pushed, or why it fails, with the file and line responsible
    Why(why::Flags),
    /// Change torusd while it runs
    #[command(subcommand, visible_alias = "istiod")]
    Admin(admin::Command),
    /// Print a script that completes commands and flags in a shell: source <(torusctl completion bash)
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Versions of this program and of torusd
    Version(Server),
}

/// Where torusd is.
#[derive(Args, Clone)]
struct Server {
    /// HTTP address of torusd
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15014", env = "TORUSD_HTTP_ADDRESS")]
    http_address: String,
}

/// What does not come from objects.
#[derive(Args, Clone)]
struct MeshFlags {
    /// File with the mesh configuration (MeshConfig as YAML), used where no ConfigMap `istio` is among the objects
    #[arg(long, value_name = "FILE", alias = "meshConfigFile")]
    mesh_config: Option<PathBuf>,
    /// DNS domain of Kubernetes Services
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    domain: String,
    /// Namespace whose configuration holds for the whole mesh
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system")]
    root_namespace: String,
}

impl MeshFlags {
    fn options(&self) -> Result<MeshOptions, CtlError> {
        let mut options = MeshOptions {
            short_name_suffix: format!(".svc.{}", self.domain),
            domain: self.domain.clone(),
            root_namespace: self.root_namespace.clone(),
            ..MeshOptions::default()
        };
        if let Some(path) = &self.mesh_config {
            options.read_mesh_config(path).map_err(|error| CtlError::Use(format!("--mesh-config {error}")))?;
        }
        Ok(options)
    }
}

/// Files to look at.
#[derive(Args, Clone)]
struct Files {
    /// Folders and files of Kubernetes objects
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// A folder or file, as kubectl names it
    #[arg(short, long = "filename", value_name = "PATH")]
    filename: Vec<PathBuf>,
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Use(String),
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

/// How a command ended, if nothing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Well,
    Findings,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let done = match Flags::parse().command {
        Command::Analyze(flags) => analyze::run(&flags, analyze::Depth::Meaning),
        Command::Validate(flags) => analyze::run(&flags, analyze::Depth::Form),
        Command::ProxyStatus(flags) => proxy_status::run(&flags),
        Command::ProxyConfig(flags) => proxy_config::run(&flags),
        Command::Wait(flags) => wait::run(&flags),
        Command::Why(flags) => why::run(&flags),
        Command::Admin(command) => admin::run(&command),
        Command::Completion { shell } => completion(shell),
        Command::Version(server) => version(&server),
    };
    match done {
        Ok(Verdict::Well) => ExitCode::SUCCESS,
        Ok(Verdict::Findings) => ExitCode::from(1),
        // A reader that has seen enough, like `head`.
        Err(CtlError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("torusctl: {error}");
            ExitCode::from(if matches!(error, CtlError::Client(_)) { 3 } else { 2 })
        }
    }
}

fn completion(shell: clap_complete::Shell) -> Result<Verdict, CtlError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Flags::command(), "torusctl", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Verdict::Well)
}

fn version(server: &Server) -> Result<Verdict, CtlError> {
    output::print(&format!("client version: {}\n", env!("CARGO_PKG_VERSION")))?;
    let theirs = client::get(&server.http_address, "/version")?;
    output::print(&format!("control plane version: {theirs}"))?;
    Ok(Verdict::Well)
}
