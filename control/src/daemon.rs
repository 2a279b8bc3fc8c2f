//! torusd: from the folder to the proxies, until told to stop.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;

use crate::model::{MeshOptions, Severity};
use crate::push::{Change, Hub, LogControl, MeshView};
use crate::serve::tls::{Tls, TlsError, TlsFiles};
use crate::serve::{self, Ports, ServeError};
use crate::source::folder::{Folder, Scan};
use crate::source::status_file::StatusFile;
use crate::source::watch::Watch;
use crate::validate::validate;

/// How torusd is run.
#[derive(Clone, Debug)]
pub struct Options {
    pub folder: PathBuf,
    /// Where the status of objects is written; beside the folder if `None`.
    pub status_file: Option<PathBuf>,
    pub xds_address: SocketAddr,
    /// xDS under TLS: where, and with which files.
    pub xds_tls: Option<(SocketAddr, TlsFiles)>,
    pub http_address: SocketAddr,
    pub mesh: MeshOptions,
    /// Changes this close together are one.
    pub debounce: Duration,
    pub connection_age_max: Option<Duration>,
}

/// Why torusd does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("--config-folder: {0}; create it, or name another")]
    Folder(String),
    #[error("{flag} {address}: {error}; free the port or choose another with {flag}")]
    Listen { flag: &'static str, address: SocketAddr, error: std::io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// What is served where.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub xds: SocketAddr,
    pub xds_tls: Option<SocketAddr>,
    pub operator: SocketAddr,
}

/// Serves until `stop` is ready, then ends all streams. `log` changes what is logged. `ready` is told the addresses once all ports are open.
pub async fn run(
    options: Options,
    log: LogControl,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(Addresses),
) -> Result<(), DaemonError> {
    if let Err(error) = std::fs::metadata(&options.folder) {
        return Err(DaemonError::Folder(format!("{}: {error}", options.folder.display())));
    }
    let tls = match &options.xds_tls {
        Some((address, files)) => Some((*address, Arc::new(Tls::read(files.clone())?))),
        None => None,
    };
    let xds = listen("--xds-address", options.xds_address).await?;
    let xds_tls = match tls {
        Some((address, tls)) => Some((listen("--xds-tls-address", address).await?, tls)),
        None => None,
    };
    let operator = listen("--http-address", options.http_address).await?;
    // The folder is watched before it is read, so that no change falls between.
    let mut watch = Watch::new();
    let mut folder = Folder::new(&options.folder, |object| validate(object));
    folder.scan();
    watch.set(&options.folder, folder.folders());
    folder.scan();
    let mut status = match &options.status_file {
        Some(path) => StatusFile::at(path.clone()),
        None => StatusFile::beside(&options.folder),
    };
    let first = view(&folder, &options);
    tell_status(&first, &mut status);
    let hub = Arc::new(Hub::new(first.clone()));
    hub.control_log(log);
    let mut newest = first;
    if let (Ok(xds), Ok(operator)) = (xds.local_addr(), operator.local_addr()) {
        ready(Addresses {
            xds,
            xds_tls: xds_tls.as_ref().and_then(|(listener, _)| listener.local_addr().ok()),
            operator,
        });
    }
    let follow = async {
        loop {
            watch.changed(options.debounce).await;
            let change = match folder.scan() {
                Scan::Unchanged => continue,
                Scan::EndpointsChanged => {
                    let (next, change) = newest.with_endpoints(folder.objects(), folder.touched());
                    newest = Arc::new(next);
                    change
                }
                Scan::RoutesChanged { mesh } if folder.touched().is_empty() => {
                    let next = newest.with_routes(folder.objects(), unread(&folder));
                    tell(&next);
                    newest = Arc::new(next);
                    Change::Routes { mesh }
                }
                Scan::RoutesChanged { .. } | Scan::Changed => {
                    newest = view(&folder, &options);
                    tell_status(&newest, &mut status);
                    Change::Anything
                }
            };
            watch.set(&options.folder, folder.folders());
            hub.publish(newest.clone(), change);
            tracing::info!("published version {}: {} objects", hub.current().version(), folder.objects().len());
        }
    };
    let serve = serve::serve(hub.clone(), Ports { xds, xds_tls, operator }, options.connection_age_max);
    tokio::pin!(serve);
    tokio::select! {
        served = &mut serve => return served.map_err(DaemonError::Serve),
        () = follow => {}
        () = stop => {}
    }
    hub.shut_down();
    tracing::info!("stopping: streams are ended, clients go elsewhere");
    // A client that does not hang up is cut off.
    tokio::time::timeout(GRACE, serve).await.map_or(Ok(()), |served| served.map_err(DaemonError::Serve))
}

fn view(folder: &Folder, options: &Options) -> Arc<MeshView> {
    let view = MeshView::build(folder.objects(), unread(folder), &options.mesh);
    tell(&view);
    Arc::new(view)
}

fn unread(folder: &Folder) -> Vec<String> {
    folder.findings().map(|finding| finding.line().to_string()).collect()
}

/// Logs what is wrong.
fn tell(view: &MeshView) {
    for (severity, line) in view.findings() {
        match severity {
            Severity::Error => tracing::error!("{line}"),
            Severity::Warning => tracing::warn!("{line}"),
            Severity::Info => tracing::info!("{line}"),
        }
    }
}

fn tell_status(view: &MeshView, file: &mut StatusFile) {
    let statuses = view.statuses().iter().map(|status| (&status.resource, status.version.as_str(), &status.status));
    if let Err(error) = file.write(statuses, SystemTime::now()) {
        let path = file.path().display();
        tracing::warn!("status cannot be written to {path}: {error}; name a writable file with --status-file");
    }
}

async fn listen(flag: &'static str, address: SocketAddr) -> Result<TcpListener, DaemonError> {
    TcpListener::bind(address).await.map_err(|error| DaemonError::Listen { flag, address, error })
}

const GRACE: Duration = Duration::from_secs(5);
