//! The PROXY protocol towards endpoints: each connection begins with whom it is for.

use std::sync::Arc;

use crate::downstream::ConnectionInfo;
use crate::listener::filter::KeptTlvs;
use crate::listener::proxy_protocol::{Tlv, Version, encode};

/// What a cluster sends first.
/// Source: envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamProxyProtocol {
    /// In which version.
    pub version: Version,
    /// Which facts of the client's own header go on.
    pub kept: KeptTlvs,
    /// Facts that are added, and replace the client's of the same type.
    pub added: Vec<Tlv>,
}

impl UpstreamProxyProtocol {
    /// The header for a connection that serves this client alone.
    pub fn header(&self, client: &ConnectionInfo) -> Arc<[u8]> {
        let addresses = client.remote.ip().zip(client.local.ip());
        let is_added = |kind: u8| self.added.iter().any(|added| added.kind == kind);
        let passed = client.tlvs.iter().flat_map(|tlvs| tlvs.iter());
        let passed = passed.filter(|tlv| self.kept.includes(tlv.kind) && !is_added(tlv.kind));
        let tlvs: Vec<&Tlv> = self.added.iter().chain(passed).collect();
        encode(self.version, addresses, &tlvs).into()
    }
}
