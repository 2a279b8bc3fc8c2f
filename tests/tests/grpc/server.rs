//! The methods that `peer.py` serves, served by tonic. On the wire all four kinds of methods are streams, so each is one here.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::server::{Grpc, NamedService};
use tonic::{Code, Request, Response, Status, Streaming};

use super::raw::Raw;

type Replies = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Serves on a thread of its own until the process ends.
pub(super) fn start(port: u16) {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let serve = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let served = tonic::transport::Server::builder().add_service(Interop::default()).serve(address);
        runtime.block_on(served).expect("the port is free");
    };
    std::thread::spawn(serve);
}

#[derive(Clone, Default)]
struct Interop {
    ended: Arc<Notify>,
}

impl NamedService for Interop {
    const NAME: &'static str = "test.Interop";
}

impl Service<http::Request<Body>> for Interop {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let timeout = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let service = Method { method, timeout, ended: Arc::clone(&self.ended) };
        Box::pin(async move {
            let mut grpc = Grpc::new(Raw).max_decoding_message_size(usize::MAX);
            Ok(grpc.streaming(service, request).await)
        })
    }
}

/// One call.
#[derive(Clone)]
struct Method {
    method: String,
    timeout: Option<String>,
    ended: Arc<Notify>,
}

impl Service<Request<Streaming<Bytes>>> for Method {
    type Response = Response<Replies>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(self.clone().serve(request))
    }
}

impl Method {
    async fn serve(self, request: Request<Streaming<Bytes>>) -> Result<Response<Replies>, Status> {
        let asked = request.metadata().get("x-asked").cloned();
        let mut requests = request.into_inner();
        match self.method.as_str() {
            "Chat" => return Ok(Response::new(Box::pin(requests))),
            "Collect" => {
                let mut total = 0;
                while let Some(message) = requests.message().await? {
                    total += message.len();
                }
                return one(total.to_string());
            }
            _ => {}
        }
        let message = requests.message().await?.unwrap_or_default();
        let number = || String::from_utf8_lossy(&message).parse::<f64>().unwrap_or_default();
        match self.method.as_str() {
            "Echo" => {
                let mut trailers = MetadataMap::new();
                trailers.insert("x-trailing", MetadataValue::from_static("t"));
                trailers.insert_bin("x-bin-bin", MetadataValue::from_bytes(&[0, 1, 2, 3, 4, 5, 6, 7]));
                let mut reply = Response::new(with_trailers(message.clone(), trailers));
                let initial = asked.unwrap_or_else(|| MetadataValue::from_static("none"));
                reply.metadata_mut().insert("x-initial", initial);
                Ok(reply)
            }
            "Fail" => Err(Status::new(Code::from(number() as i32), "failed: 100% \u{e4}")),
            "Sleep" => {
                tokio::time::sleep(Duration::from_secs_f64(number())).await;
                one("late".to_owned())
            }
            "Deadline" => one(self.timeout.as_deref().map_or_else(|| "none".to_owned(), seconds)),
            "Expand" => {
                let numbers = (0..number() as u64).map(|number| Ok(Bytes::from(number.to_string())));
                Ok(Response::new(Box::pin(tokio_stream::iter(numbers))))
            }
            "Large" => {
                let piece = Bytes::from(vec![0; 64 * 1024]);
                let pieces = (0..number() as u64 * 16).map(move |_| Ok(piece.clone()));
                Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
            }
            "Partly" => {
                let replies = [Ok(Bytes::from_static(b"first")), Err(Status::aborted("enough"))];
                Ok(Response::new(Box::pin(tokio_stream::iter(replies))))
            }
            "Endless" => Ok(Response::new(Box::pin(Endless::start(Arc::clone(&self.ended))))),
            "Ended" => {
                let ended = tokio::time::timeout(Duration::from_secs(5), self.ended.notified()).await;
                one(if ended.is_ok() { "yes" } else { "no" }.to_owned())
            }
            _ => Err(Status::unimplemented("no such method")),
        }
    }
}

fn one(text: String) -> Result<Response<Replies>, Status> {
    Ok(Response::new(Box::pin(tokio_stream::once(Ok(Bytes::from(text))))))
}

/// tonic sends the metadata of a status as trailers.
fn with_trailers(message: Bytes, trailers: MetadataMap) -> Replies {
    let status = Status::with_metadata(Code::Ok, "", trailers);
    Box::pin(tokio_stream::iter([Ok(message), Err(status)]))
}

/// The value of `grpc-timeout` in seconds.
fn seconds(timeout: &str) -> String {
    let (digits, unit) = timeout.split_at(timeout.len() - 1);
    let per_second = match unit {
        "S" => 1.0,
        "m" => 1e3,
        "u" => 1e6,
        _ => 1e9,
    };
    (digits.parse::<f64>().unwrap_or_default() / per_second).to_string()
}

/// Counts until nobody listens.
struct Endless {
    next: u64,
    timer: Pin<Box<tokio::time::Sleep>>,
    ended: Arc<Notify>,
}

impl Endless {
    fn start(ended: Arc<Notify>) -> Self {
        Self { next: 0, timer: Box::pin(tokio::time::sleep(Duration::ZERO)), ended }
    }
}

impl Stream for Endless {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.timer.as_mut().reset(tokio::time::Instant::now() + Duration::from_millis(10));
        let number = self.next;
        self.next += 1;
        Poll::Ready(Some(Ok(Bytes::from(number.to_string()))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.ended.notify_one();
    }
}
