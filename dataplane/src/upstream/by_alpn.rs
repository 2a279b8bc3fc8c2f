//! Endpoints that choose the version of HTTP in the TLS handshake (`auto_config`, RFC 7301).
//!
//! The first connection to an endpoint offers both; what it chose holds for as long as there are connections to it. Requests that come
//! while nobody knows wait for that first one.

use std::rc::Rc;

use super::http2::Connecting;
use super::pool::{AcquireError, Answer, Carried, Chosen, Lease, PendingPermit, Pools, WaitForConnection};
use crate::cluster::Priority;
use crate::telemetry::names::ClusterStat;

impl Pools {
    pub(super) async fn acquire_by_alpn(
        self: &Rc<Self>,
        chosen: &Chosen,
        priority: Priority,
    ) -> Result<Lease, AcquireError> {
        let mut pending: Option<PendingPermit<'_>> = None;
        loop {
            match self.chosen_version(chosen)? {
                Some(is_http2) => {
                    drop(pending);
                    return match is_http2 {
                        true => self.acquire_http2(chosen, priority).await,
                        false => self.acquire_http1(chosen, priority).await,
                    };
                }
                None if pending.is_none() => {
                    pending = Some(PendingPermit::new(self, chosen.cluster, priority)?);
                }
                None => {}
            }
            if !self.http2_is_connecting(chosen)
                && let Some(counted) = self.may_connect(chosen, priority)?
            {
                let connecting = Connecting::new(self, chosen);
                let mut upstream = self.connect(chosen, priority, counted, Carried::Either).await?;
                let is_http2 = upstream.socket.alpn() == Some(b"h2");
                self.note_version(chosen, is_http2);
                drop(connecting);
                if is_http2 {
                    self.count(&upstream, ClusterStat::UpstreamCxHttp2Total);
                    self.open_http2(chosen, upstream)?;
                    continue;
                }
                self.count(&upstream, ClusterStat::UpstreamCxHttp1Total);
                upstream.must_close = chosen.preamble.is_some();
                drop(pending);
                return self.attach(upstream, priority);
            }
            match WaitForConnection::new(self, chosen)?.await {
                // It speaks HTTP/1.1, as all that are returned.
                Answer::Granted(upstream) => {
                    drop(pending);
                    return self.attach(upstream, priority);
                }
                Answer::TryAgain => {}
            }
        }
    }

    /// Whether the endpoint chose HTTP/2, as far as there is a connection that says so.
    fn chosen_version(&self, chosen: &Chosen) -> Result<Option<bool>, AcquireError> {
        let mut state = self.state.borrow_mut();
        let host = state.host_pool(chosen).ok_or(AcquireError::HostGone)?;
        Ok(host.chose_http2.filter(|_| host.connection_count > 0))
    }

    fn note_version(&self, chosen: &Chosen, is_http2: bool) {
        if let Some(host) = self.state.borrow_mut().host_pool(chosen) {
            host.chose_http2 = Some(is_http2);
        }
    }
}
