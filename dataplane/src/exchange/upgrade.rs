//! A request that asks for another protocol, WebSocket for instance (RFC 9110 §7.8), or for a tunnel (CONNECT): whether it may, and the
//! bytes that follow.
//!
//! ```text
//! `upgrade` ─┬─ not allowed ─ 403, closed
//!            └─ forwarded ─┬─ 101 with a protocol that was asked for ─ bytes both ways ─ both sides ended ─ closed
//!                          ├─ any other 101 ─ 502
//!                          └─ another reply ─ passed on ─ closed
//! ```
//! Over HTTP/2 the request is CONNECT with a protocol and the switch a 2xx (RFC 8441); `wire::http2::message` and `upstream::http2`
//! make one form of the other, so that everything here sees HTTP/1.1's. A CONNECT without a protocol is granted by a 2xx; it is
//! forwarded, or ends here (`connect_config`): then the upstream gets the tunnel's bytes alone.
//!
//! What the client sends behind its request waits for the 101: a backend that does not switch would read it as a request. For the
//! same reason a connection whose upgrade was not granted ends with the reply. Each side's end is passed on alone, so that a
//! half-closed connection stays half-closed; where one side fails, both connections end at once.

use std::future::poll_fn;
use std::task::Poll;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use torus_codec::{BodyLength, HeaderMap, Known, RequestMethod, Version};

use super::attempt::{Failure, Outcome};
use super::client::WhileWaiting;
use super::client_stream::ClientStream;
use super::core_state::CoreState;
use super::deadline::Deadline;
use super::local_reply::Refusal;
use super::relay::Ended;
use super::retry::AttemptFailure;
use super::upload::QUEUED_BYTES_MAX;
use super::{Exchange, Scope};
use crate::route::{Action, Found};
use crate::telemetry::names::HttpStat;
use crate::upstream::Lease;
use crate::wire::{BodyError, BodyEvent, BodyWriter};

impl Exchange {
    /// Lets a request ask for the protocol in its `upgrade`, or refuses it.
    pub(super) fn admit_upgrade(
        &mut self,
        scope: &Scope<'_>,
        found: Option<&Found<'_>>,
    ) -> Result<(), Refusal<'static>> {
        let headers = &mut self.request.headers;
        if self.request.version == Version::Http10 {
            // RFC 9110 §7.8
            headers.remove_known(Known::Upgrade);
            headers.remove_known(Known::Connection);
        }
        // The header rules left `upgrade` only where another protocol is asked for. CONNECT asks for a tunnel by its method.
        let is_connect = headers.get_known(Known::Method) == Some(b"CONNECT");
        let asked = if is_connect { Some(CONNECT) } else { headers.get_known(Known::Upgrade) };
        let Some(token) = asked else { return Ok(()) };
        let by_route: &[_] = match found {
            Some(Found::Route(matched)) => match &matched.route.action {
                Action::Forward(forward) => &forward.upgrades,
                _ => &[],
            },
            _ => &[],
        };
        let stats = &scope.manager.stats;
        if is_allowed(token, by_route, &scope.manager.upgrades) {
            self.asks_upgrade = true;
            stats.increment(scope.core.core, HttpStat::DownstreamCxUpgradesTotal);
            stats.increment(scope.core.core, HttpStat::DownstreamCxUpgradesActive);
            return Ok(());
        }
        // The log says where the request would have gone.
        match found {
            // Nothing is upgraded where there is no route, and that is what Envoy answers.
            None | Some(Found::NoVirtualHost | Found::NoRoute(_)) => {
                if let Some(Found::NoRoute(virtual_host)) = found {
                    self.info.virtual_host_name.push_str(&virtual_host.name);
                }
                stats.increment(scope.core.core, HttpStat::RqTotal);
                stats.increment(scope.core.core, HttpStat::NoRoute);
                return Err(Refusal::NO_ROUTE.closing());
            }
            Some(Found::NeedsTls(virtual_host)) => self.info.virtual_host_name.push_str(&virtual_host.name),
            Some(Found::Route(matched)) => {
                self.info.virtual_host_name.push_str(&matched.virtual_host.name);
                self.info.route_name.push_str(&matched.route.name);
                let random = scope.core.random.borrow_mut().next_u64();
                let choice = matched.choose_cluster(&self.request.headers, random, None);
                if let Some((_, cluster)) = scope.cluster(&choice.target) {
                    self.info.cluster_name.push_str(&cluster.shown_name);
                }
            }
        }
        stats.increment(scope.core.core, HttpStat::DownstreamRqWsOnNonWsRoute);
        Err(Refusal::UPGRADE)
    }

    /// Whether the head in `self.response` switches to a protocol that was asked for, and the request is all sent.
    pub(super) fn is_switched(&self) -> bool {
        if !self.asks_upgrade || !self.upload.is_received() || !self.upload.is_done() {
            return false;
        }
        if self.method() == RequestMethod::Connect {
            return (200..300).contains(&self.response.status);
        }
        let granted = self.response.headers.get_known(Known::Upgrade).unwrap_or_default();
        self.response.status == 101 && is_asked_for(granted, &self.request.headers)
    }

    /// The upstream of a tunnel that ends here is connected.
    pub(super) fn grant_tunnel(&mut self) {
        self.upload.skip();
        self.response.headers.clear();
        self.response.headers.append_known(Known::Status, b"200");
        self.response.status = 200;
        self.response.body = BodyLength::UntilClose;
    }

    /// Waits until the upstream has said whether it takes an upgrade.
    pub(super) async fn await_upgrade_support(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        lease: &mut Lease,
    ) -> Result<(), Outcome> {
        let Some(mut upstream) = lease.stream() else { return Err(Outcome::ClientGone) };
        let deadlines = &mut self.deadlines;
        let takes = poll_fn(|cx| {
            if let Poll::Ready(deadline) = deadlines.poll_expired(scope.core.ring.now(), cx) {
                return Poll::Ready(Err(Outcome::Deadline(deadline)));
            }
            if let Poll::Ready(takes) = upstream.poll_takes_upgrade(cx) {
                return Poll::Ready(Ok(takes));
            }
            client.poll_gone(cx).map(|WhileWaiting::Gone| Err(Outcome::ClientGone))
        })
        .await?;
        client.watch();
        // CONNECT without a protocol needs no leave.
        if takes || self.method() == RequestMethod::Connect {
            return Ok(());
        }
        Err(Outcome::Failed(Failure::new(AttemptFailure::ProtocolError)))
    }

    /// Adds what a WebSocket handshake needs over HTTP/1.1 and does not have over HTTP/2 (RFC 8441 §5).
    pub(super) fn complete_websocket_request(&mut self, core: &CoreState, to_http2: bool) {
        let headers = &mut self.request.headers;
        let is_websocket =
            headers.get_known(Known::Upgrade).is_some_and(|token| token.eq_ignore_ascii_case(b"websocket"));
        if to_http2 || !is_websocket || self.request.version != Version::Http2 {
            return;
        }
        if !headers.iter().any(|(name, _)| name == WEBSOCKET_KEY) {
            // A nonce that no cache has seen; it is no secret (RFC 6455 §4.1).
            let mut random = core.random.borrow_mut();
            let nonce = [random.next_u64().to_ne_bytes(), random.next_u64().to_ne_bytes()].concat();
            headers.append_wire(WEBSOCKET_KEY, STANDARD.encode(nonce).as_bytes());
        }
    }

    /// Makes the head of a switch what the client's version has: the answer to its key over HTTP/1.1, none over HTTP/2
    /// (RFC 8441 §5).
    pub(super) fn complete_websocket_reply(&mut self) {
        let headers = &mut self.response.headers;
        let is_accept = |name: &[u8]| name == WEBSOCKET_ACCEPT;
        if self.request.version == Version::Http2 {
            headers.retain(|name, _| !is_accept(name));
        } else if self.info.upstream_protocol == Some("HTTP/2")
            && !headers.iter().any(|(name, _)| is_accept(name))
            && let Some((_, key)) = self.request.headers.iter().find(|(name, _)| *name == WEBSOCKET_KEY)
        {
            headers.append_wire(WEBSOCKET_ACCEPT, websocket_accept(key).as_bytes());
        }
    }

    /// Passes bytes both ways until both sides have ended, or a limit is reached.
    pub(super) async fn pass_both_ways(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        lease: &mut Lease,
    ) -> Ended {
        let core = scope.core;
        let Some(mut upstream) = lease.stream() else { return Ended::ClientGone };
        // They are for requests and replies; a conversation lasts as long as it is alive.
        for deadline in [Deadline::Route, Deadline::PerTry, Deadline::PerTryIdle] {
            self.deadlines.clear(deadline);
        }
        self.deadlines.set(Deadline::StreamIdle, core.ring.now(), self.idle_timeout);
        client.start_bytes();
        upstream.start_bytes();
        let (mut client_ended, mut upstream_ended) = (false, false);
        let chain = scope.listener.chain(scope.connection.chain);
        poll_fn(|cx| {
            let now = core.ring.now();
            // Nobody wakes this task for it: the next bytes of either side are its end.
            if !chain.is_none_or(|chain| chain.still_believes(scope.connection)) {
                return Poll::Ready(Ended::ClientGone);
            }
            if let Poll::Ready(deadline) = self.deadlines.poll_expired(now, cx) {
                return Poll::Ready(Ended::Deadline(deadline));
            }
            let before_bytes = (self.info.body_bytes_received, self.info.body_bytes_sent);
            while !client_ended {
                match upstream.poll_writable(&core.ring, QUEUED_BYTES_MAX, cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Ended::UpstreamFailed(BodyError::Truncated)),
                    Poll::Pending => break,
                }
                match client.poll_body(&mut self.request_trailers, cx) {
                    Poll::Ready(Ok(BodyEvent::Data(data))) => {
                        self.info.body_bytes_received += data.len() as u64;
                        self.info.downstream_wire_bytes_received += data.len() as u64;
                        let wire_bytes = upstream.send_body(&core.ring, BodyWriter::Plain, data);
                        self.info.upstream_wire_bytes_sent += wire_bytes as u64;
                    }
                    Poll::Ready(Ok(BodyEvent::End)) => {
                        client_ended = true;
                        upstream.end_bytes();
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Ended::ClientGone),
                    Poll::Pending => break,
                }
            }
            if client_ended && client.poll_reset(cx).is_ready() {
                return Poll::Ready(Ended::ClientGone);
            }
            while !upstream_ended {
                match client.poll_writable(&core.ring, cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Ended::ClientGone),
                    Poll::Pending => break,
                }
                match upstream.poll_body(&mut self.response_trailers, cx) {
                    Poll::Ready(Ok(BodyEvent::Data(data))) => {
                        self.info.body_bytes_sent += data.len() as u64;
                        self.info.upstream_wire_bytes_received += data.len() as u64;
                        let wire_bytes = client.send_body(&core.ring, data);
                        self.info.downstream_wire_bytes_sent += wire_bytes as u64;
                    }
                    Poll::Ready(Ok(BodyEvent::End)) => {
                        upstream_ended = true;
                        client.end_bytes();
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Ended::UpstreamFailed(error)),
                    Poll::Pending => break,
                }
            }
            if before_bytes != (self.info.body_bytes_received, self.info.body_bytes_sent) {
                self.deadlines.set(Deadline::StreamIdle, now, self.idle_timeout);
            }
            // The connection to the upstream closes at once: what it has to send leaves first.
            if client_ended && upstream_ended && upstream.poll_writable(&core.ring, 0, cx).is_ready() {
                return Poll::Ready(Ended::Complete);
            }
            Poll::Pending
        })
        .await
    }
}

/// The answer to a key (RFC 6455 §4.2.2).
fn websocket_accept(key: &[u8]) -> String {
    let mut digest = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key);
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest.finish())
}

/// Under which CONNECT stands in `upgrade_configs`.
const CONNECT: &[u8] = b"connect";
const WEBSOCKET_KEY: &[u8] = b"sec-websocket-key";
const WEBSOCKET_ACCEPT: &[u8] = b"sec-websocket-accept";

/// Whether `token` may be asked for. What the route says of it goes before the connection manager's list, as in Envoy.
fn is_allowed(token: &[u8], by_route: &[(Box<str>, bool)], by_manager: &[Box<str>]) -> bool {
    let is_it = |name: &str| token.eq_ignore_ascii_case(name.as_bytes());
    match by_route.iter().find(|(name, _)| is_it(name)) {
        Some((_, is_enabled)) => *is_enabled,
        None => by_manager.iter().any(|name| is_it(name)),
    }
}

/// Whether a reply's `upgrade` is one of the protocols in the request's (RFC 9110 §7.8).
fn is_asked_for(granted: &[u8], request: &HeaderMap) -> bool {
    let asked = request.get_all_known(Known::Upgrade).flat_map(|value| value.split(|byte| *byte == b','));
    asked.map(<[u8]>::trim_ascii).any(|asked| !asked.is_empty() && granted.trim_ascii().eq_ignore_ascii_case(asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_says_more_than_the_connection_manager() {
        let check = |token: &str, by_route: &[(&str, bool)], expected: bool| {
            let by_route: Vec<_> = by_route.iter().map(|(name, enabled)| (Box::from(*name), *enabled)).collect();
            let allowed = is_allowed(token.as_bytes(), &by_route, &["websocket".into()]);
            assert_eq!(allowed, expected, "{token} {by_route:?}");
        };
        check("websocket", &[], true);
        check("WebSocket", &[], true);
        check("other", &[], false);
        check("", &[], false);
        check("other", &[("other", true)], true);
        check("websocket", &[("other", true)], true);
        check("websocket", &[("websocket", false)], false);
        check("websocket, other", &[("other", true)], false);
    }

    #[test]
    fn a_key_has_one_answer() {
        assert_eq!(websocket_accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="); // RFC 6455 §1.3
    }

    #[test]
    fn a_switch_is_to_what_was_asked_for() {
        let check = |asked: &str, granted: &str, expected: bool| {
            let mut request = HeaderMap::default();
            request.append_known(Known::Upgrade, asked.as_bytes());
            assert_eq!(is_asked_for(granted.as_bytes(), &request), expected, "{asked} {granted}");
        };
        check("websocket", "websocket", true);
        check("websocket", "WebSocket", true);
        check("a, b", "b", true);
        check("a, b", "c", false);
        check("websocket", "h2c", false);
        check("websocket", "", false);
        check("a,", "", false);
    }
}
