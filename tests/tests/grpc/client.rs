//! The cases of `peer.py`, with tonic as client.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_stream::{Stream, StreamExt};
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::raw::Raw;

const MEBIBYTE: usize = 1 << 20;
/// Longer than any case takes.
const PATIENCE: Duration = Duration::from_secs(60);

type Checked = Result<(), String>;

#[derive(Clone)]
struct Client {
    channel: Channel,
    large_mebibytes: usize,
}

/// Runs every case against a server at `port`; what failed.
pub(super) fn run(port: u16, large_mebibytes: usize) -> (usize, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let address = format!("http://127.0.0.1:{port}");
        let channel = Channel::from_shared(address).expect("an address").connect().await.expect("the gateway accepts");
        let client = Client { channel, large_mebibytes };
        let mut cases = Cases::default();
        cases.run("an empty message", client.empty_unary()).await;
        cases.run("a message of 4 MiB", client.unary_of_4_mebibytes()).await;
        cases.run("metadata both ways", client.metadata_both_ways()).await;
        cases.run("every status", client.every_status()).await;
        cases.run("an unknown method", client.unknown_method()).await;
        cases.run("a stream of the client", client.client_stream(500)).await;
        cases.run("an empty stream of the client", client.client_stream(0)).await;
        cases.run("a stream of the server", client.server_stream(500)).await;
        cases.run("an empty stream of the server", client.server_stream(0)).await;
        cases.run("both streams in turn", client.both_streams_in_turn()).await;
        cases.run("a status after messages", client.status_after_messages()).await;
        cases.run("a deadline passes", client.deadline_passes()).await;
        cases.run("a deadline is told", client.deadline_is_told()).await;
        cases.run("a cancelled stream ends upstream", client.cancelled_stream_ends_upstream()).await;
        cases.run("a cancelled call", client.cancelled_unary()).await;
        cases.run("a large stream of the server", client.large_server_stream()).await;
        cases.run("a large stream of the client", client.large_client_stream()).await;
        cases.run("many at once", client.many_at_once()).await;
        (cases.count, cases.failed)
    })
}

#[derive(Default)]
struct Cases {
    count: usize,
    failed: Vec<String>,
}

impl Cases {
    async fn run(&mut self, name: &str, case: impl Future<Output = Checked>) {
        self.count += 1;
        match tokio::time::timeout(PATIENCE, case).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => self.failed.push(format!("{name}: {why}")),
            Err(_) => self.failed.push(format!("{name}: nothing after {PATIENCE:?}")),
        }
    }
}

impl Client {
    async fn grpc(&self) -> Result<Grpc<Channel>, String> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        grpc.ready().await.map_err(|error| format!("{error:?}"))?;
        Ok(grpc)
    }

    async fn unary(&self, method: &str, message: impl Into<Bytes>) -> Result<Result<Bytes, Status>, String> {
        let reply = self.grpc().await?.unary(Request::new(message.into()), path(method), Raw).await;
        Ok(reply.map(tonic::Response::into_inner))
    }

    async fn expand(&self, method: &str, message: impl Into<Bytes>) -> Result<Streaming<Bytes>, String> {
        let reply = self.grpc().await?.server_streaming(Request::new(message.into()), path(method), Raw).await;
        reply.map(tonic::Response::into_inner).map_err(|status| format!("{status:?}"))
    }

    async fn collect(&self, messages: impl Stream<Item = Bytes> + Send + 'static) -> Result<Bytes, String> {
        let reply = self.grpc().await?.client_streaming(Request::new(messages), path("Collect"), Raw).await;
        reply.map(tonic::Response::into_inner).map_err(|status| format!("{status:?}"))
    }

    async fn empty_unary(&self) -> Checked {
        same(&ok(self.unary("Echo", "").await?)?, b"")
    }

    async fn unary_of_4_mebibytes(&self) -> Checked {
        let data: Vec<u8> = (0..4 * MEBIBYTE).map(|at| (at * 31 % 251) as u8).collect();
        let echo = ok(self.unary("Echo", data.clone()).await?)?;
        if echo == data { Ok(()) } else { Err(format!("{} other bytes", echo.len())) }
    }

    async fn metadata_both_ways(&self) -> Checked {
        let mut request = Request::new(tokio_stream::once(Bytes::from_static(b"x")));
        request.metadata_mut().insert("x-asked", MetadataValue::from_static("a"));
        request.metadata_mut().insert_bin("x-data-bin", MetadataValue::from_bytes(b"\0\xff"));
        let reply = self.grpc().await?.streaming(request, path("Echo"), Raw).await;
        let reply = ok(reply)?;
        same(reply.metadata().get("x-initial").map_or(b"", MetadataValue::as_bytes), b"a")?;
        let mut replies = reply.into_inner();
        while replies.message().await.map_err(|status| format!("{status:?}"))?.is_some() {}
        let trailers = replies.trailers().await.map_err(|status| format!("{status:?}"))?.ok_or("no trailers")?;
        same(trailers.get("x-trailing").map_or(b"", MetadataValue::as_bytes), b"t")?;
        let binary = trailers.get_bin("x-bin-bin").and_then(|value| value.to_bytes().ok()).unwrap_or_default();
        same(&binary, &[0, 1, 2, 3, 4, 5, 6, 7])
    }

    async fn every_status(&self) -> Checked {
        for number in 1..=16 {
            let status = refused(self.unary("Fail", number.to_string()).await?, &[Code::from(number)])?;
            same(status.message().as_bytes(), "failed: 100% \u{e4}".as_bytes())?;
        }
        Ok(())
    }

    async fn unknown_method(&self) -> Checked {
        refused(self.unary("Nothing", "").await?, &[Code::Unimplemented]).map(drop)
    }

    async fn client_stream(&self, count: usize) -> Checked {
        let messages = tokio_stream::iter(std::iter::repeat_n(Bytes::from(vec![0; 1_000]), count));
        same(&self.collect(messages).await?, (count * 1_000).to_string().as_bytes())
    }

    async fn server_stream(&self, count: usize) -> Checked {
        let mut replies = self.expand("Expand", count.to_string()).await?;
        for number in 0..count {
            let message = replies.message().await.map_err(|status| format!("{status:?}"))?;
            same(&message.unwrap_or_default(), number.to_string().as_bytes())?;
        }
        match replies.message().await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?} in place of the end")),
        }
    }

    async fn both_streams_in_turn(&self) -> Checked {
        let (sender, messages) = tokio::sync::mpsc::channel(1);
        let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
        let mut grpc = self.grpc().await?;
        let reply = grpc.streaming(Request::new(messages), path("Chat"), Raw);
        let first = async { sender.send(Bytes::from_static(b"0")).await };
        let (reply, _) = tokio::join!(reply, first);
        let mut replies = ok(reply)?.into_inner();
        for number in 0..50 {
            let message = replies.message().await.map_err(|status| format!("{status:?}"))?;
            same(&message.unwrap_or_default(), number.to_string().as_bytes())?;
            let next = Bytes::from((number + 1).to_string());
            sender.send(next).await.map_err(|_| "the call is over")?;
        }
        Ok(())
    }

    async fn status_after_messages(&self) -> Checked {
        let mut replies = self.expand("Partly", "").await?;
        let first = replies.message().await.map_err(|status| format!("{status:?}"))?;
        same(&first.unwrap_or_default(), b"first")?;
        let status = refused(replies.message().await, &[Code::Aborted])?;
        same(status.message().as_bytes(), b"enough")
    }

    async fn deadline_passes(&self) -> Checked {
        let started = Instant::now();
        let mut request = Request::new(Bytes::from_static(b"2"));
        request.set_timeout(Duration::from_millis(300));
        let reply = self.grpc().await?.unary(request, path("Sleep"), Raw).await;
        // tonic calls its own timer's end a cancel.
        refused(reply, &[Code::DeadlineExceeded, Code::Cancelled])?;
        if started.elapsed() < Duration::from_millis(1_500) { Ok(()) } else { Err("it ended late".to_owned()) }
    }

    async fn deadline_is_told(&self) -> Checked {
        let mut request = Request::new(Bytes::new());
        request.set_timeout(Duration::from_secs(15));
        let left = ok(self.grpc().await?.unary(request, path("Deadline"), Raw).await)?.into_inner();
        let left: f64 = String::from_utf8_lossy(&left).parse().map_err(|_| format!("{left:?} is told"))?;
        if left > 0.0 && left <= 15.1 { Ok(()) } else { Err(format!("{left} s are told")) }
    }

    async fn cancelled_stream_ends_upstream(&self) -> Checked {
        let mut replies = self.expand("Endless", "").await?;
        for wanted in [b"0", b"1"] {
            same(&replies.message().await.ok().flatten().unwrap_or_default(), wanted)?;
        }
        drop(replies);
        same(&ok(self.unary("Ended", "").await?)?, b"yes")
    }

    async fn cancelled_unary(&self) -> Checked {
        let call = self.unary("Sleep", "1");
        match tokio::time::timeout(Duration::from_millis(100), call).await {
            Err(_) => same(&ok(self.unary("Echo", "x").await?)?, b"x"),
            Ok(reply) => Err(format!("{reply:?} in no time")),
        }
    }

    async fn large_server_stream(&self) -> Checked {
        let mut replies = self.expand("Large", self.large_mebibytes.to_string()).await?;
        let mut total = 0;
        while let Some(message) = replies.message().await.map_err(|status| format!("{status:?}"))? {
            total += message.len();
        }
        same(total.to_string().as_bytes(), (self.large_mebibytes * MEBIBYTE).to_string().as_bytes())
    }

    async fn large_client_stream(&self) -> Checked {
        let pieces = std::iter::repeat_n(Bytes::from(vec![0; 64 * 1024]), self.large_mebibytes * 16);
        let total = self.collect(tokio_stream::iter(pieces)).await?;
        same(&total, (self.large_mebibytes * MEBIBYTE).to_string().as_bytes())
    }

    async fn many_at_once(&self) -> Checked {
        let calls: Vec<_> = (0..300)
            .map(|number: u32| {
                let client = self.clone();
                tokio::spawn(async move {
                    let message = number.to_string();
                    same(&ok(client.unary("Echo", message.clone()).await?)?, message.as_bytes())
                })
            })
            .collect();
        let mut calls = tokio_stream::iter(calls);
        while let Some(call) = calls.next().await {
            call.await.map_err(|error| error.to_string())??;
        }
        Ok(())
    }
}

fn path(method: &str) -> http::uri::PathAndQuery {
    format!("/test.Interop/{method}").parse().expect("a path")
}

fn same(found: &[u8], wanted: &[u8]) -> Checked {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{:?} instead of {:?}", String::from_utf8_lossy(found), String::from_utf8_lossy(wanted)))
}

fn ok<T>(reply: Result<T, Status>) -> Result<T, String> {
    reply.map_err(|status| format!("{status:?}"))
}

fn refused<T>(reply: Result<T, Status>, wanted: &[Code]) -> Result<Status, String> {
    match reply {
        Err(status) if wanted.contains(&status.code()) => Ok(status),
        Err(status) => Err(format!("{status:?} instead of {wanted:?}")),
        Ok(_) => Err(format!("a reply instead of {wanted:?}")),
    }
}
