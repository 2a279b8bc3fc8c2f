//! What comes back as it came: raw bytes, and messages of WebSocket (RFC 6455).

use std::rc::Rc;

use super::Local;
use super::connection::{Connection, Ended};
use super::plan::Plan;
use super::request::Head;
use super::stream::Stream;
use crate::websocket::{self, CLOSE, PING, PONG, accept};

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 64 << 10;

/// Sends every piece back as it is read, after the server's delay.
pub(super) async fn bytes(mut stream: Stream, local: Rc<Local>) {
    let plan = Plan::default();
    let mut buffer = Vec::with_capacity(READ_BYTES);
    loop {
        let (read, received) = stream.read(buffer).await;
        if !read.is_ok_and(|length| length > 0) {
            break;
        }
        local.pause(&plan).await;
        let (written, mut sent) = stream.write_all(received).await;
        if written.is_err() {
            return;
        }
        sent.clear();
        buffer = sent;
    }
    stream.shutdown().await;
}

impl Head {
    /// The key of a client that asks for WebSocket (RFC 6455 section 4.2.1).
    pub(super) fn websocket_key(&self) -> Option<&str> {
        let asks =
            self.method == "GET" && self.has_token("upgrade", "websocket") && self.has_token("connection", "upgrade");
        self.values("sec-websocket-key").next().filter(|_| asks)
    }
}

impl Connection {
    /// Agrees to the upgrade and sends every frame back, until either side says goodbye.
    pub(super) async fn echo_messages(&mut self, key: &str, plan: &Plan) -> Result<(), Ended> {
        let reply = format!(
            "HTTP/1.1 101 Switching Protocols\r\nserver: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: {}\r\n\r\n",
            self.local.shared.name,
            accept(key)
        );
        self.out.extend_from_slice(reply.as_bytes());
        loop {
            let head = match websocket::Head::parse(self.unread()) {
                Ok(Some(head)) => head,
                Ok(None) => {
                    self.receive().await?;
                    continue;
                }
                Err(websocket::Malformed) => return self.goodbye(1002),
            };
            // A client always masks (section 5.1).
            let Some(mask) = head.mask else { return self.goodbye(1002) };
            if head.length > self.local.shared.body_bytes_max {
                return self.goodbye(1009);
            }
            let length = usize::try_from(head.length).unwrap_or(usize::MAX);
            let end = head.head_length.saturating_add(length);
            let Some(payload) = self.unread().get(head.head_length..end) else {
                self.receive().await?;
                continue;
            };
            let mut payload = payload.to_vec();
            websocket::apply(&mut payload, mask, 0);
            self.start += end;
            if head.opcode != CLOSE && head.opcode != PING && head.opcode != PONG {
                if self.local.delays(plan) {
                    self.flush().await?;
                    self.local.pause(plan).await;
                }
                websocket::write_piece(&mut self.out, head.is_final, head.opcode, &payload, None);
            } else if head.opcode == PING {
                websocket::write(&mut self.out, PONG, &payload, None);
            } else if head.opcode == CLOSE {
                websocket::write(&mut self.out, CLOSE, &payload, None);
                return Err(Ended);
            }
            self.flush_if_long().await?;
        }
    }

    /// Ends the connection with a reason (section 7.4.1).
    fn goodbye(&mut self, code: u16) -> Result<(), Ended> {
        websocket::write(&mut self.out, CLOSE, &code.to_be_bytes(), None);
        Err(Ended)
    }
}
