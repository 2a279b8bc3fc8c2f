//! A backend that answers, dawdles, breaks off, says too much or hangs, as its seed decides.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use torus_codec::{ChunkedDecoder, HeaderMap, RequestHead, RequestOptions, parse_request_from};
use torus_proxy::transport::Transport;
use torus_proxy::wire::{BodyEvent, BodyReader, HeadReader};
use torus_proxy::worker::random::Random;
use torus_ring::{Listener, Ring};

use super::Shared;
use super::client::header;

/// Accepts connections for ever.
pub(crate) async fn serve(ring: Ring, mut listener: Listener, mut random: Random, shared: Rc<Shared>) {
    while let Ok(socket) = listener.accept().await {
        let random = Random::seeded(random.next_u64());
        ring.spawn(connection(ring.clone(), socket.into(), random, Rc::clone(&shared)));
    }
}

async fn connection(ring: Ring, mut socket: Transport, mut random: Random, shared: Rc<Shared>) {
    let options = RequestOptions::default();
    let (mut reader, mut head) = (HeadReader::default(), RequestHead::default());
    loop {
        let read = poll_fn(|context| {
            reader.poll_head(&mut socket, context, |bytes, seen| parse_request_from(bytes, seen, &options, &mut head))
        });
        match read.await {
            Ok(_) => {}
            Err(torus_proxy::wire::HeadError::Malformed(malformed)) => panic!("the proxy forwarded: {malformed}"),
            Err(_) => return,
        }
        let id = header(&head.headers, "x-id").expect("the proxy keeps x-id");
        *shared.seen.borrow_mut().entry(id.parse().expect("a number")).or_default() += 1;
        shared.outcome.borrow_mut().received += 1;
        let temper = random.below(20);
        if temper == 0 {
            return; // closes without a word
        }
        if temper == 1 {
            // Hangs until the proxy gives up.
            while let Ok(Some(_)) = socket.recv().await {}
            return;
        }
        let mut body = BodyReader::new(head.body, ChunkedDecoder::new(&options.limits));
        let (mut trailers, mut received_bytes) = (HeaderMap::default(), 0);
        let early = temper == 2;
        loop {
            if early {
                break;
            }
            match poll_fn(|context| body.poll_next(&mut socket, &mut trailers, context)).await {
                Ok(BodyEvent::Data(data)) => received_bytes += data.len(),
                Ok(BodyEvent::End) => break,
                Err(_) => return,
            }
        }
        if random.below(4) == 0 {
            ring.sleep(Duration::from_micros(random.below(200_000))).await;
        }
        let is_head = header(&head.headers, ":method").is_some_and(|method| method == "HEAD");
        let received_bytes = (!early).then_some(received_bytes);
        let reply = reply(temper, &id, received_bytes, is_head, &mut random);
        socket.write(std::sync::Arc::<[u8]>::from(reply.bytes));
        if early || reply.close {
            socket.close_gracefully(Duration::from_secs(1));
            return;
        }
    }
}

struct Reply {
    bytes: Vec<u8>,
    close: bool,
}

fn reply(temper: u64, id: &str, received_bytes: Option<usize>, is_head: bool, random: &mut Random) -> Reply {
    let size = random.below(9_000) as usize;
    let body = vec![b'b'; if is_head { 0 } else { size }];
    let mut bytes = Vec::new();
    if random.below(6) == 0 {
        bytes.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n");
    }
    if temper == 3 {
        bytes.extend_from_slice(b"HTTP/9.9 what?\r\n\r\n");
        return Reply { bytes, close: true };
    }
    let status = if temper == 4 { "503 Service Unavailable" } else { "200 OK" };
    // A backend that answers early has not read the body.
    let received = received_bytes.map(|bytes| format!("x-received: {bytes}\r\n")).unwrap_or_default();
    let fields = format!("x-id: {id}\r\n{received}x-size: {size}\r\n");
    bytes.extend_from_slice(format!("HTTP/1.1 {status}\r\n{fields}").as_bytes());
    match random.below(3) {
        0 => {
            bytes.extend_from_slice(format!("content-length: {size}\r\n\r\n").as_bytes());
            bytes.extend_from_slice(&body);
        }
        1 => {
            bytes.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
            if !is_head {
                for piece in body.chunks(1_000) {
                    bytes.extend_from_slice(format!("{:X}\r\n", piece.len()).as_bytes());
                    bytes.extend_from_slice(piece);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
            }
        }
        _ => {
            bytes.extend_from_slice(b"connection: close\r\n\r\n");
            bytes.extend_from_slice(&body);
            return Reply { bytes, close: true };
        }
    }
    if temper == 5 && bytes.len() > 100 {
        // Breaks off in the head or the body.
        let keep = 1 + random.below(bytes.len() as u64 - 1) as usize;
        bytes.truncate(keep);
        return Reply { bytes, close: true };
    }
    if temper == 6 {
        bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"); // nobody asked
    }
    Reply { bytes, close: random.below(10) == 0 }
}
