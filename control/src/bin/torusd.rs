//! torusd: reads what users write for Istio and Kubernetes, and drives proxies by xDS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use torus_control::daemon::{Options, run};
use torus_control::model::MeshOptions;
use torus_control::serve::tls::{ClientCertificate, TlsFiles};
use tracing_subscriber::EnvFilter;

/// Translation is made of small allocations on many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Control plane of a Torus mesh: Istio and Kubernetes configuration in from a folder, xDS out.
#[derive(Parser)]
#[command(name = "torusd", version)]
struct Flags {
    /// Folder (or one file) of Kubernetes objects as YAML or JSON; it is watched
    #[arg(long, value_name = "PATH")]
    config_folder: PathBuf,
    /// Where the status of the Gateway API's objects is written [default: the folder's name with `.status.yaml`, beside it]
    #[arg(long, value_name = "FILE")]
    status_file: Option<PathBuf>,
    /// Where proxies ask for their configuration (gRPC, plaintext)
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15010")]
    xds_address: SocketAddr,
    /// Where proxies ask for their configuration under TLS (gRPC); needs --tls-cert and --tls-key
    #[arg(long, value_name = "ADDRESS", requires_all = ["tls_cert", "tls_key"])]
    xds_tls_address: Option<SocketAddr>,
    /// Certificate of --xds-tls-address with its chain, as PEM; taken up anew when it changes
    #[arg(long, value_name = "FILE", requires = "xds_tls_address")]
    tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert, as PEM
    #[arg(long, value_name = "FILE", requires = "xds_tls_address")]
    tls_key: Option<PathBuf>,
    /// Authorities that proxies' certificates are verified with, as PEM; without it proxies are asked for none
    #[arg(long, value_name = "FILE", requires = "xds_tls_address")]
    tls_client_ca: Option<PathBuf>,
    /// Whether proxies must show a certificate of --tls-client-ca
    #[arg(long, value_name = "HOW", default_value = "required", requires = "tls_client_ca")]
    tls_client_cert: ClientCertificate,
    /// Where operators look: /ready, /metrics, /debug/syncz, configz, endpointz, registryz, config_dump, push_status
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15014")]
    http_address: SocketAddr,
    /// DNS domain of Kubernetes Services
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    domain: String,
    /// Namespace whose configuration holds for the whole mesh; its ConfigMap `istio` is the mesh configuration
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system")]
    root_namespace: String,
    /// File with the mesh configuration (MeshConfig as YAML), read once, for folders without a ConfigMap `istio`
    #[arg(long, value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    /// Changes of files this close together are taken up as one
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    debounce_ms: u64,
    /// End streams of this age, so that proxies spread over replicas again; 0 is never
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    connection_age_max_s: u64,
    /// What is logged: error, warn, info, debug, or a filter as RUST_LOG takes it
    #[arg(long, value_name = "FILTER", default_value = "info", env = "TORUSD_LOG")]
    log: String,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let filter = match EnvFilter::try_new(&flags.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("torusd: --log {}: {error}; for instance: --log info", flags.log);
            return ExitCode::from(2);
        }
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false)
        .with_filter_reloading();
    let filters = log.reload_handle();
    log.init();
    let control = move |filter: Option<&str>| {
        if let Some(filter) = filter {
            let parsed = EnvFilter::try_new(filter).map_err(|error| format!("level {filter}: {error}"))?;
            filters.reload(parsed).map_err(|error| error.to_string())?;
        }
        filters.with_current(EnvFilter::to_string).map_err(|error| error.to_string())
    };
    let mut mesh = MeshOptions {
        short_name_suffix: format!(".svc.{}", flags.domain),
        domain: flags.domain,
        root_namespace: flags.root_namespace,
        ..MeshOptions::default()
    };
    if let Some(error) = flags.mesh_config.as_deref().and_then(|path| mesh.read_mesh_config(path).err()) {
        eprintln!("torusd: --mesh-config {error}");
        return ExitCode::from(2);
    }
    // Clap has seen to it that they come together.
    let xds_tls = match (flags.xds_tls_address, flags.tls_cert, flags.tls_key) {
        (Some(address), Some(certificate), Some(key)) => Some((
            address,
            TlsFiles {
                certificate,
                key,
                client_authorities: flags.tls_client_ca,
                client_certificate: flags.tls_client_cert,
            },
        )),
        _ => None,
    };
    let options = Options {
        folder: flags.config_folder,
        status_file: flags.status_file,
        xds_address: flags.xds_address,
        xds_tls,
        http_address: flags.http_address,
        mesh,
        debounce: Duration::from_millis(flags.debounce_ms),
        connection_age_max: (flags.connection_age_max_s > 0).then(|| Duration::from_secs(flags.connection_age_max_s)),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("torusd: cannot start threads: {error}; raise the limit of processes (ulimit -u)");
            return ExitCode::FAILURE;
        }
    };
    let ran = runtime.block_on(run(options, Box::new(control), stopped(), |at| {
        if let Some(address) = at.xds_tls {
            tracing::info!("serving: xDS under TLS on {address}");
        }
        tracing::info!("serving: xDS on {}, HTTP on http://{}/", at.xds, at.operator);
    }));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("torusd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns at SIGTERM or SIGINT.
async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        },
        Err(error) => {
            tracing::warn!("SIGTERM cannot be caught: {error}; stop with Ctrl-C");
            drop(tokio::signal::ctrl_c().await);
        }
    }
}
