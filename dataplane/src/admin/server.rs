//! Serving the admin socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request as HttpRequest, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, SERVER, X_CONTENT_TYPE_OPTIONS};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Admin;
use super::access::{self, Began};
use super::endpoints::answer;
use super::request::{Reply, Request, parameters};
use super::socket::{AdminSocket, SocketKind};
use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::{HttpStat, ListenerStat, ResponseClass};

/// Serves until the runtime ends. Runs inside a tokio runtime.
pub async fn serve(socket: AdminSocket, admin: Arc<Admin>) -> io::Result<()> {
    let counts = Arc::new(Counts {
        core: admin.registry.config_core(),
        http: admin.registry.group("http.admin."),
        listener: admin.registry.group("listener.admin."),
    });
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let app = Router::new().fallback(handle).with_state((admin, counts.clone()));
    match socket.kind {
        SocketKind::Tcp(socket) => {
            let socket = TcpListener::from_std(socket)?;
            axum::serve(Limited { socket, permits, counts }, app).await
        }
        SocketKind::Unix(socket) => {
            let socket = UnixListener::from_std(socket)?;
            axum::serve(Limited { socket, permits, counts }, app).await
        }
    }
}

/// Stats of the admin server itself.
struct Counts {
    core: Core,
    http: Arc<Stats<HttpStat>>,
    listener: Arc<Stats<ListenerStat>>,
}

async fn handle(State((admin, counts)): State<(Arc<Admin>, Arc<Counts>)>, request: HttpRequest) -> Response {
    counts.http.increment(counts.core, HttpStat::DownstreamRqTotal);
    let began = Began::now();
    let (head, body) = request.into_parts();
    let reply = reply_to(&admin, &head, body).await;
    access::write(&admin, &head, &reply, &began);
    counts.http.increment(counts.core, HttpStat::DownstreamRqCompleted);
    if let Some(class) = HttpStat::response_class(reply.status) {
        counts.http.increment(counts.core, class);
    }
    let mut response = Response::new(Body::from(reply.body));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(SERVER, HeaderValue::from_static("torus"));
    response
}

async fn reply_to(admin: &Admin, head: &Parts, body: Body) -> Reply {
    let mut asked = Request::new(head.method.as_str(), head.uri.path(), head.uri.query().unwrap_or_default());
    tracing::debug!(target: "admin", "{} {}", head.method, head.uri);
    let body = match tokio::time::timeout(BODY_WAIT_MAX, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return Reply::error(413, "the body is larger than 64 KiB\n"),
        Err(_) => return Reply::error(408, "the body did not arrive within 10 s\n"),
    };
    let form = HeaderValue::from_static("application/x-www-form-urlencoded");
    if head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(form.as_bytes())) {
        // In a form a space is a plus sign.
        let text = String::from_utf8_lossy(&body).replace('+', " ");
        asked.parameters.extend(parameters(&text));
    }
    answer(admin, &asked)
}

/// A listener with an upper bound on open connections.
struct Limited<L> {
    socket: L,
    permits: Arc<Semaphore>,
    counts: Arc<Counts>,
}

/// A connection that gives its place back when it ends.
struct Counted<I> {
    io: I,
    counts: Arc<Counts>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<L: Listener> Listener for Limited<L> {
    type Io = Counted<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed.
        let permit = self.permits.clone().acquire_owned().await.ok();
        let (io, address) = self.socket.accept().await;
        let Counts { core, http, listener } = &*self.counts;
        http.increment(*core, HttpStat::DownstreamCxTotal);
        http.increment(*core, HttpStat::DownstreamCxHttp1Total);
        http.increment(*core, HttpStat::DownstreamCxActive);
        http.increment(*core, HttpStat::DownstreamCxHttp1Active);
        listener.increment(*core, ListenerStat::DownstreamCxTotal);
        listener.increment(*core, ListenerStat::DownstreamCxActive);
        (Counted { io, counts: self.counts.clone(), _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.socket.local_addr()
    }
}

impl<I> Drop for Counted<I> {
    fn drop(&mut self) {
        let Counts { core, http, listener } = &*self.counts;
        http.increment(*core, HttpStat::DownstreamCxDestroy);
        http.decrement(*core, HttpStat::DownstreamCxActive);
        http.decrement(*core, HttpStat::DownstreamCxHttp1Active);
        listener.increment(*core, ListenerStat::DownstreamCxDestroy);
        listener.decrement(*core, ListenerStat::DownstreamCxActive);
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Counted<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Connections to the admin server at once.
const CONNECTIONS_MAX: usize = 256;
/// Bytes of a request's body.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Time for a request's body to arrive.
const BODY_WAIT_MAX: Duration = Duration::from_secs(10);
