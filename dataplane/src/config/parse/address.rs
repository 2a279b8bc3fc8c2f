//! `envoy.config.core.v3.Address` becomes an [`Address`].

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use envoy_types::pb::envoy::config::core::v3 as core;

use super::ParseContext;
use crate::config::address::Address;
use crate::config::reject::Refused;

/// The address in a message that must name one; `SocketAddress.address` must be an IP literal.
pub fn parse(address: &core::Address, context: &mut ParseContext) -> Result<Address, Refused> {
    use core::address::Address as Kind;
    match &address.address {
        Some(Kind::SocketAddress(socket)) => context.within("socket_address", |context| {
            let port = port(socket, context);
            let ip = ip(socket, context);
            Ok(Address::Ip(SocketAddr::new(ip?, port?)))
        }),
        Some(Kind::Pipe(pipe)) => context.within("pipe", |context| pipe_path(&pipe.path, context)),
        Some(Kind::EnvoyInternalAddress(_)) => {
            Err(context.reject("envoy_internal_address", "internal listeners are not there yet in this version"))
        }
        None => Err(context.reject("address", "is required")),
    }
}

/// The numeric port of a socket address; UDP and named ports are refused.
pub fn port(socket: &core::SocketAddress, context: &mut ParseContext) -> Result<u16, Refused> {
    use core::socket_address::PortSpecifier;
    if socket.protocol() != core::socket_address::Protocol::Tcp {
        return Err(context.reject("protocol", "UDP is not there yet in this version"));
    }
    match &socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => {
            u16::try_from(*port).map_err(|_| context.reject("port_value", format!("{port} is above 65535")))
        }
        Some(PortSpecifier::NamedPort(_)) => Err(context.reject("named_port", "named ports need a custom resolver")),
        None => Err(context.reject("port_value", "is required")),
    }
}

fn ip(socket: &core::SocketAddress, context: &mut ParseContext) -> Result<IpAddr, Refused> {
    context.non_empty("address", &socket.address)?;
    socket.address.parse::<IpAddr>().map_err(|_| {
        context.reject(
            "address",
            format!("malformed IP address `{}`; a host name works in a STRICT_DNS cluster", socket.address),
        )
    })
}

fn pipe_path(path: &str, context: &mut ParseContext) -> Result<Address, Refused> {
    context.non_empty("path", path)?;
    // sun_path has 108 bytes (unix(7)); an abstract name has no closing NUL, a file name needs one.
    let bytes_max = if path.starts_with('@') { 108 } else { 107 };
    if path.len() > bytes_max {
        return Err(context.reject("path", format!("has {} bytes; the kernel takes {bytes_max}", path.len())));
    }
    if path.contains('\0') {
        return Err(context.reject("path", "must not contain NUL"));
    }
    Ok(Address::Pipe(Path::new(path).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_or_name_the_field() {
        let check = |socket: core::SocketAddress, expect: Result<&str, &str>| {
            let mut context = ParseContext::new(1);
            let address = core::Address { address: Some(core::address::Address::SocketAddress(socket)) };
            let parsed = parse(&address, &mut context).map(|address| address.to_string());
            let shown = context.problems.iter().map(|problem| problem.to_string()).next();
            assert_eq!(parsed.as_deref().map_err(|_| shown.as_deref().unwrap_or_default()), expect);
        };
        let socket = |address: &str, port: u32| core::SocketAddress {
            address: address.into(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        };
        check(socket("127.0.0.1", 80), Ok("127.0.0.1:80"));
        check(socket("::1", 80), Ok("[::1]:80"));
        check(socket("::1", 65536), Err("socket_address.port_value: 65536 is above 65535"));
        check(
            socket("localhost", 80),
            Err("socket_address.address: malformed IP address `localhost`; a host name works in a STRICT_DNS cluster"),
        );
        check(
            core::SocketAddress { address: "::".into(), ..Default::default() },
            Err("socket_address.port_value: is required"),
        );
    }
}
