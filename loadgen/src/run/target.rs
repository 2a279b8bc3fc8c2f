//! Where requests go: `http://HOST[:PORT][/PATH]` and its kin.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConnection;

use crate::tls::Tls;

/// What a target is asked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Http,
    WebSocket,
    /// Bytes that come back.
    Tcp,
}

/// A target that can be asked.
#[derive(Clone, Debug)]
pub struct Target {
    pub url: String,
    /// As the Host field says it.
    pub authority: String,
    /// The host alone.
    pub host: String,
    pub kind: Kind,
    pub is_tls: bool,
    /// Path and query.
    pub path: String,
    pub addresses: Arc<[SocketAddr]>,
}

/// Why a target cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("`{0}` is no target; try: http://127.0.0.1:8081/path")]
    NoUrl(String),
    #[error("`{0}`: the scheme is none of: http, https, ws, wss, tcp, tls")]
    Scheme(String),
    #[error("`{0}`: a port is wanted, and nothing behind it; try: tcp://127.0.0.1:9000")]
    Port(String),
    #[error("the target `{0}` holds a space or a control character; write it percent-encoded, as %20")]
    Characters(String),
    #[error("cannot resolve `{authority}`: {source}; check the name, or give an address")]
    Resolve { authority: String, source: io::Error },
    #[error("`{0}` has no address")]
    NoAddress(String),
    #[error("cannot connect to {authority}: {source}; is the target up? try: torus-load serve --listen {address}")]
    Unreachable { authority: String, address: SocketAddr, source: io::Error },
    #[error("TLS with {authority} fails: {reason}; see --cacert, --server-name, --cert, --insecure")]
    Handshake { authority: String, reason: String },
}

impl Target {
    /// The target that `url` names, with the addresses of its host.
    ///
    /// Errors: no URL, a scheme that is not spoken, or a name that does not resolve.
    pub fn parse(url: &str) -> Result<Target, TargetError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| TargetError::NoUrl(url.to_owned()))?;
        let (kind, is_tls) = match scheme {
            "http" => (Kind::Http, false),
            "https" => (Kind::Http, true),
            "ws" => (Kind::WebSocket, false),
            "wss" => (Kind::WebSocket, true),
            "tcp" => (Kind::Tcp, false),
            "tls" => (Kind::Tcp, true),
            _ => return Err(TargetError::Scheme(url.to_owned())),
        };
        if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TargetError::Characters(url.to_owned()));
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        if authority.is_empty() || authority.contains('@') {
            return Err(TargetError::NoUrl(url.to_owned()));
        }
        let has_port = authority.rsplit(']').next().unwrap_or_default().contains(':');
        if kind == Kind::Tcp && (!has_port || path != "/") {
            return Err(TargetError::Port(url.to_owned()));
        }
        let port = if is_tls { 443 } else { 80 };
        let with_port = if has_port { authority.to_owned() } else { format!("{authority}:{port}") };
        let resolved = with_port.to_socket_addrs();
        let resolved = resolved.map_err(|source| TargetError::Resolve { authority: authority.to_owned(), source })?;
        // A name such as localhost may have addresses of both families where the target listens on one.
        let mut addresses: Vec<SocketAddr> = resolved.collect();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(TargetError::NoAddress(authority.to_owned()));
        }
        let host = with_port.rsplit_once(':').map_or(authority, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let (url, authority) = (url.to_owned(), authority.to_owned());
        Ok(Target { url, authority, host, kind, is_tls, path, addresses: addresses.into() })
    }

    /// Tries a connection to each address; those that refuse are dropped while one accepts.
    ///
    /// Errors: none accepts.
    pub fn probe(mut self, timeout: Duration) -> Result<Target, TargetError> {
        let mut failure = None;
        let mut reachable = Vec::new();
        for address in self.addresses.iter() {
            match TcpStream::connect_timeout(address, timeout) {
                Ok(_) => reachable.push(*address),
                Err(source) => failure = Some((*address, source)),
            }
        }
        if let (true, Some((address, source))) = (reachable.is_empty(), failure) {
            return Err(TargetError::Unreachable { authority: self.authority, address, source });
        }
        self.addresses = reachable.into();
        Ok(self)
    }

    /// Shakes hands once: the protocol that the server chose.
    ///
    /// Errors: the certificate is not believed, or the peer does not speak TLS.
    pub fn shake_hands(&self, tls: &Tls, timeout: Duration) -> Result<Option<Vec<u8>>, TargetError> {
        let fail = |reason: String| TargetError::Handshake { authority: self.authority.clone(), reason };
        let address = self.addresses.first().ok_or_else(|| TargetError::NoAddress(self.authority.clone()))?;
        let handshake = || -> io::Result<Option<Vec<u8>>> {
            let mut stream = TcpStream::connect_timeout(address, timeout)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            let config = Arc::clone(&tls.config);
            let mut session = ClientConnection::new(config, tls.name.clone()).map_err(io::Error::other)?;
            while session.is_handshaking() {
                if session.complete_io(&mut stream)? == (0, 0) {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Ok(session.alpn_protocol().map(<[u8]>::to_vec))
        };
        handshake().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => fail("the peer does not answer".to_owned()),
            io::ErrorKind::UnexpectedEof => fail("the peer closed the connection".to_owned()),
            _ if is_no_tls(&error) => fail("the peer does not speak TLS".to_owned()),
            _ => fail(error.to_string()),
        })
    }
}

/// The peer's first bytes were no record of TLS.
fn is_no_tls(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidMessage(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_understood() {
        for (url, authority, path, port) in [
            ("http://127.0.0.1:8081", "127.0.0.1:8081", "/", 8081),
            ("http://127.0.0.1", "127.0.0.1", "/", 80),
            ("http://127.0.0.1:1/a?b=c#d", "127.0.0.1:1", "/a?b=c", 1),
            ("http://127.0.0.1?x", "127.0.0.1", "/?x", 80),
            ("http://[::1]/x", "[::1]", "/x", 80),
            ("https://[::1]/x", "[::1]", "/x", 443),
            ("ws://127.0.0.1/chat", "127.0.0.1", "/chat", 80),
            ("wss://127.0.0.1", "127.0.0.1", "/", 443),
            ("tcp://[::1]:7", "[::1]:7", "/", 7),
            ("tls://127.0.0.1:7", "127.0.0.1:7", "/", 7),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!((&*target.authority, &*target.path), (authority, path), "{url}");
            assert_eq!(target.addresses[0].port(), port, "{url}");
        }
    }

    #[test]
    fn bad_targets_are_told() {
        for (url, expected) in [
            ("localhost:80", "`localhost:80` is no target"),
            ("gopher://x/", "`gopher://x/`: the scheme is none of: http, https, ws, wss, tcp, tls"),
            ("tcp://127.0.0.1", "`tcp://127.0.0.1`: a port is wanted"),
            ("tcp://127.0.0.1:7/x", "`tcp://127.0.0.1:7/x`: a port is wanted, and nothing behind it"),
            ("http:///x", "`http:///x` is no target"),
            ("http://127.0.0.1/a b", "the target `http://127.0.0.1/a b` holds a space"),
            ("http://127.0.0.1:99999/", "cannot resolve `127.0.0.1:99999`"),
        ] {
            let error = Target::parse(url).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{url}: {error}");
        }
        let error =
            Target::parse("http://127.0.0.1:1/").unwrap().probe(Duration::from_secs(1)).unwrap_err().to_string();
        assert!(error.starts_with("cannot connect to 127.0.0.1:1: Connection refused"), "{error}");
    }
}
