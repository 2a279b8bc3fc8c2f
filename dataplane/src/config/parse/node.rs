//! Who this proxy is and where it runs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use envoy_types::pb::envoy::config::core::v3 as core;

use super::context::Node;
use crate::config::flags::{IpVersion, Options};

/// The node of the bootstrap; `--service-*` flags fill what it leaves empty.
pub fn parse(config: Option<&core::Node>, options: &Options) -> Node {
    let config = config.cloned().unwrap_or_default();
    let locality = config.locality.unwrap_or_default();
    let or_flag = |text: String, flag: &Option<String>| -> Box<str> {
        if text.is_empty() { flag.clone().unwrap_or_default().into() } else { text.into() }
    };
    Node {
        id: or_flag(config.id, &options.service_node),
        cluster: or_flag(config.cluster, &options.service_cluster),
        region: locality.region.into(),
        zone: or_flag(locality.zone, &options.service_zone),
        sub_zone: locality.sub_zone.into(),
    }
}

/// This machine's own address: that of the interface which the default route takes, else the loopback address.
/// Source: Envoy, `--local-address-ip-version`.
pub fn local_ip(version: IpVersion) -> IpAddr {
    // A documentation address (RFC 5737, RFC 3849); connecting a datagram socket sends nothing.
    let (any, far, fallback): (IpAddr, IpAddr, IpAddr) = match version {
        IpVersion::V4 => {
            (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(198, 51, 100, 1).into(), Ipv4Addr::LOCALHOST.into())
        }
        IpVersion::V6 => (
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
            Ipv6Addr::LOCALHOST.into(),
        ),
    };
    let chosen = UdpSocket::bind(SocketAddr::new(any, 0)).and_then(|socket| {
        socket.connect(SocketAddr::new(far, 9))?;
        socket.local_addr()
    });
    chosen.map_or(fallback, |address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_an_address_of_each_family() {
        assert!(local_ip(IpVersion::V4).is_ipv4());
        assert!(local_ip(IpVersion::V6).is_ipv6());
    }
}
