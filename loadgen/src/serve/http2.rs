//! HTTP/2: the same replies as over HTTP/1.1, and an echo of gRPC messages.

use std::future::poll_fn;
use std::rc::Rc;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};

use super::plan::{Plan, ResetAt};
use super::request::Body;
use super::stream::Polled;
use super::{Local, describe, letters};

/// Requests that a connection may have in flight.
const STREAMS_MAX: u32 = 1024;
/// What a client may send before it is read, in bytes.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Serves connection number `id` until either side ends it.
pub(super) async fn serve(io: Polled, id: u64, local: Rc<Local>) {
    let mut builder = Builder::new();
    builder.max_concurrent_streams(STREAMS_MAX).initial_window_size(STREAM_WINDOW_BYTES);
    builder.initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(io).await else { return };
    let mut count = 0;
    while let Some(Ok((request, respond))) = connection.accept().await {
        count += 1;
        let (local, number) = (Rc::clone(&local), count);
        monoio::spawn(async move {
            // An error is the end of the stream or of its connection: there is nobody left to be told.
            let _ = answer(request, respond, id, number, &local).await;
        });
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    id: u64,
    number: u64,
    local: &Local,
) -> Result<(), h2::Error> {
    let (head, mut incoming) = request.into_parts();
    let plan = Plan::parse(head.uri.query().unwrap_or_default());
    let is_grpc =
        head.headers.get("content-type").is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        return echo(&head, incoming, respond, &plan, local).await;
    }
    let mut body = Body::new();
    if !plan.early && !receive(&mut incoming, &mut body, local).await? {
        let refusal = Response::builder().status(413).body(()).unwrap_or_default();
        respond.send_response(refusal, true)?;
        return Ok(());
    }
    local.pause(&plan).await;
    if plan.hang {
        // Until the client gives up.
        poll_fn(|context| respond.poll_reset(context)).await?;
        return Ok(());
    }
    if plan.garbage || plan.reset == Some(ResetAt::Head) {
        respond.send_reset(if plan.garbage { Reason::PROTOCOL_ERROR } else { Reason::CANCEL });
        return Ok(());
    }
    if let Some(status) = plan.informational {
        let interim = Response::builder().status(status).header("x-torus", "interim").body(()).unwrap_or_default();
        respond.send_informational(interim)?;
    }
    let size = if head.uri.path() == "/fixed" { plan.size.or(Some(1 << 10)) } else { plan.size };
    let (content_type, content) = match size {
        Some(size) => ("text/plain", letters(size).collect::<String>()),
        None => {
            let fields = head.headers.iter();
            let fields =
                fields.map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
            let target = head.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
            let described = describe(
                local,
                head.method.as_str(),
                target,
                "HTTP/2",
                &fields.collect::<Vec<_>>(),
                &body,
                (id, number),
            );
            ("application/json", described)
        }
    };
    let has_body = !matches!(plan.status(), 204 | 304) && head.method != "HEAD" && !content.is_empty();
    let mut reply = Response::builder().status(plan.status()).header("server", local.shared.name.as_str());
    if !matches!(plan.status(), 204 | 304) && !plan.chunked {
        reply = reply.header("content-length", content.len()).header("content-type", content_type);
    }
    for (name, value) in &plan.headers {
        // What is no field of HTTP/2 is left out.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            reply = reply.header(name, value);
        }
    }
    let reply = reply.body(()).unwrap_or_default();
    let mut outgoing = respond.send_response(reply, !has_body && !plan.trailers)?;
    let content = Bytes::from(content);
    if plan.reset == Some(ResetAt::Body) {
        send(&mut outgoing, content.slice(..content.len() / 2), false).await?;
        outgoing.send_reset(Reason::CANCEL);
        return Ok(());
    }
    if has_body {
        send(&mut outgoing, content, !plan.trailers).await?;
    }
    if plan.trailers {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-torus-trailer", HeaderValue::from_static("after the body"));
        outgoing.send_trailers(trailers)?;
    }
    if plan.early {
        receive(&mut incoming, &mut body, local).await?;
    }
    Ok(())
}

/// Sends the messages of a gRPC call back as they come.
async fn echo(
    head: &http::request::Parts,
    mut incoming: RecvStream,
    mut respond: SendResponse<Bytes>,
    plan: &Plan,
    local: &Local,
) -> Result<(), h2::Error> {
    local.pause(plan).await;
    let reply = Response::builder().header("server", local.shared.name.as_str());
    let content_type = head.headers.get("content-type").cloned();
    let reply = reply.header("content-type", content_type.unwrap_or(HeaderValue::from_static("application/grpc")));
    let mut outgoing = respond.send_response(reply.body(()).unwrap_or_default(), false)?;
    while let Some(chunk) = incoming.data().await {
        let chunk = chunk?;
        incoming.flow_control().release_capacity(chunk.len())?;
        send(&mut outgoing, chunk, false).await?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    outgoing.send_trailers(trailers)
}

/// Reads the whole body; false when it is longer than it may be.
async fn receive(incoming: &mut RecvStream, body: &mut Body, local: &Local) -> Result<bool, h2::Error> {
    while let Some(chunk) = incoming.data().await {
        let chunk = chunk?;
        body.add(&chunk);
        if body.length > local.shared.body_bytes_max {
            return Ok(false);
        }
        incoming.flow_control().release_capacity(chunk.len())?;
    }
    for (name, value) in incoming.trailers().await?.iter().flatten() {
        body.trailers.push((name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    }
    Ok(true)
}

/// Sends `bytes` as the client's window allows.
async fn send(outgoing: &mut SendStream<Bytes>, mut bytes: Bytes, is_last: bool) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        outgoing.reserve_capacity(bytes.len());
        while outgoing.capacity() == 0 {
            match poll_fn(|context| outgoing.poll_capacity(context)).await {
                Some(granted) => granted?,
                None => return Err(Reason::CANCEL.into()),
            };
        }
        let piece = bytes.split_to(outgoing.capacity().min(bytes.len()));
        outgoing.send_data(piece, is_last && bytes.is_empty())?;
    }
    Ok(())
}
