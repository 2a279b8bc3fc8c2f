//! A client that sends one request after another and says how each one ended.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use torus_codec::{ChunkedDecoder, HeaderMap, HeaderName, Limits, RequestMethod, ResponseHead, parse_response_from};
use torus_proxy::transport::Transport;
use torus_proxy::wire::{BodyEvent, BodyReader, HeadReader};
use torus_proxy::worker::random::Random;
use torus_ring::{ConnectOptions, Ring};

use super::{Shared, address};

/// A client in progress.
pub(crate) struct Client {
    done: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Client {
    /// Completes when the last request has ended.
    pub(crate) async fn finished(&self) {
        poll_fn(|context| {
            if self.done.get() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Starts client `number`.
pub(crate) fn start(ring: &Ring, number: u32, request_count: u32, random: Random, shared: Rc<Shared>) -> Rc<Client> {
    let client = Rc::new(Client { done: Cell::new(false), waker: RefCell::default() });
    let started = Rc::clone(&client);
    let task_ring = ring.clone();
    ring.spawn(async move {
        let _finish = Finish(started);
        send_all(&task_ring, number, request_count, random, &shared).await;
    });
    client
}

/// Ends the wait for a client, also when it panics.
struct Finish(Rc<Client>);

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.done.set(true);
        if let Some(waker) = self.0.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

enum Ended {
    Answered,
    Refused,
    Broken,
}

async fn send_all(ring: &Ring, number: u32, request_count: u32, mut random: Random, shared: &Shared) {
    let mut socket: Option<Transport> = None;
    for request in 0..request_count {
        let id = u64::from(number) << 32 | u64::from(request);
        let mut connection = match socket.take() {
            Some(connection) => connection,
            None => loop {
                // The simulated network refuses now and then; a client tries again.
                match ring.connect(&address("10.0.0.1:80"), &ConnectOptions::default()).await {
                    Ok(connection) => break connection.into(),
                    Err(_) => ring.sleep(std::time::Duration::from_millis(1)).await,
                }
            },
        };
        let (ended, reusable) = exchange(&mut connection, id, &mut random).await;
        if reusable {
            socket = Some(connection);
        }
        let mut outcome = shared.outcome.borrow_mut();
        match ended {
            Ended::Answered => outcome.answered += 1,
            Ended::Refused => outcome.refused += 1,
            Ended::Broken => outcome.broken += 1,
        }
    }
}

/// One request and its reply; whether the connection can carry another.
async fn exchange(socket: &mut Transport, id: u64, random: &mut Random) -> (Ended, bool) {
    let body: Vec<u8> = (0..random.below(6_000)).map(|at| (at as u8) ^ id as u8).collect();
    let (method, framing) = match random.below(4) {
        0 => ("GET", 0),
        1 => ("HEAD", 0),
        2 => ("POST", 1),
        _ => ("PUT", 2),
    };
    let mut text = format!("{method} /{id} HTTP/1.1\r\nhost: simulated\r\nx-id: {id}\r\n").into_bytes();
    match framing {
        0 => text.extend_from_slice(b"\r\n"),
        1 => {
            text.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
            text.extend_from_slice(&body);
        }
        _ => {
            text.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
            for piece in body.chunks(700) {
                text.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                text.extend_from_slice(piece);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\nx-trailer: yes\r\n\r\n");
        }
    }
    socket.write(std::sync::Arc::<[u8]>::from(text));
    let limits = Limits::default();
    let class = RequestMethod::of(method.as_bytes());
    let (mut reader, mut head) = (HeadReader::default(), ResponseHead::default());
    loop {
        let read = poll_fn(|context| {
            reader.poll_head(socket, context, |bytes, seen| parse_response_from(bytes, seen, class, &limits, &mut head))
        });
        if read.await.is_err() {
            return (Ended::Broken, false);
        }
        if !head.is_informational() {
            break;
        }
    }
    let from_backend = header(&head.headers, "x-id");
    if let Some(answered) = &from_backend {
        assert_eq!(answered, &id.to_string(), "a reply belongs to its request");
    }
    let sent = if framing == 0 { 0 } else { body.len() };
    let mut trailers = HeaderMap::default();
    let mut reader = BodyReader::new(head.body, ChunkedDecoder::new(&limits));
    let mut received_bytes = 0;
    loop {
        match poll_fn(|context| reader.poll_next(socket, &mut trailers, context)).await {
            Ok(BodyEvent::Data(data)) => received_bytes += data.len(),
            Ok(BodyEvent::End) => break,
            Err(_) => return (Ended::Broken, false),
        }
    }
    if from_backend.is_none() {
        return (Ended::Refused, head.keep_alive);
    }
    if let Some(received) = header(&head.headers, "x-received") {
        assert_eq!(received, sent.to_string(), "the backend got the whole body");
    }
    if method != "HEAD" {
        let announced = header(&head.headers, "x-size").and_then(|size| size.parse().ok());
        assert_eq!(announced, Some(received_bytes), "the client got the whole reply");
    }
    (Ended::Answered, head.keep_alive)
}

pub(crate) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let name = HeaderName::new(name)?;
    headers.get(&name).map(|value| String::from_utf8_lossy(value).into_owned())
}
