//! Clusters whose endpoints are where connections were going (ORIGINAL_DST): each core has the endpoints that its own connections
//! went to, and forgets those without a connection.

use std::net::SocketAddr;
use std::time::Duration;

use torus_codec::HeaderMap;
use torus_codec::headers::HeaderName;

use crate::config::address::Address;
use crate::downstream::ConnectionInfo;

/// How the endpoint of a connection or request is found. Source: envoy.config.cluster.v3.Cluster.OriginalDstLbConfig.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginalDst {
    /// The field of a request that names the endpoint, where one does.
    pub header: Option<HeaderName>,
    /// The endpoint's port, whatever port the client wanted.
    pub port: Option<u16>,
    /// Endpoints without a connection are forgotten after this long. Source: Cluster.cleanup_interval, 5 s.
    pub cleanup_interval: Duration,
}

impl OriginalDst {
    /// The endpoint for `client`, and for its request where there is one. A field that is no address gives none.
    pub fn endpoint(&self, client: &ConnectionInfo, request: Option<&HeaderMap>) -> Option<Address> {
        let named = self.header.as_ref().and_then(|header| request?.get(header));
        let address = match named {
            Some(named) => std::str::from_utf8(named).ok()?.parse::<SocketAddr>().ok()?,
            None => client.local.ip().filter(|_| client.is_restored)?,
        };
        Some(Address::Ip(SocketAddr::new(address.ip(), self.port.unwrap_or(address.port()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_where_the_client_wanted_to_go() {
        let address = |text: &str| Address::Ip(text.parse().unwrap());
        let plain = ConnectionInfo::new(address("127.0.0.1:5"), address("10.0.0.1:80"));
        let restored = ConnectionInfo { is_restored: true, ..plain.clone() };
        let by = |header: Option<&str>, port| OriginalDst {
            header: header.map(|name| HeaderName::new(name).unwrap()),
            port,
            cleanup_interval: Duration::from_secs(5),
        };
        let request = |value: &str| {
            let mut headers = HeaderMap::default();
            headers.append_wire(b"x-envoy-original-dst-host", value.as_bytes());
            headers
        };
        let header = Some("x-envoy-original-dst-host");
        assert_eq!(by(None, None).endpoint(&plain, None), None);
        assert_eq!(by(None, None).endpoint(&restored, None), Some(address("10.0.0.1:80")));
        assert_eq!(by(None, Some(8080)).endpoint(&restored, None), Some(address("10.0.0.1:8080")));
        assert_eq!(by(None, None).endpoint(&restored, Some(&request("1.2.3.4:5"))), Some(address("10.0.0.1:80")));
        assert_eq!(by(header, None).endpoint(&plain, Some(&request("1.2.3.4:5"))), Some(address("1.2.3.4:5")));
        assert_eq!(by(header, None).endpoint(&restored, Some(&request("a.test:5"))), None);
        assert_eq!(by(header, None).endpoint(&restored, Some(&HeaderMap::default())), Some(address("10.0.0.1:80")));
    }
}
