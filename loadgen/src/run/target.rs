//! Where requests go: `http://HOST[:PORT][/PATH]`.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

/// A target that can be asked.
#[derive(Clone, Debug)]
pub struct Target {
    pub url: String,
    /// As the Host field says it.
    pub authority: String,
    /// Path and query.
    pub path: String,
    pub addresses: Arc<[SocketAddr]>,
}

/// Why a target cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("`{0}` is no target; try: http://127.0.0.1:8081/path")]
    NoUrl(String),
    #[error("`{0}`: this version of torus-load run speaks HTTP/1.1 without TLS; try: an http:// target")]
    Scheme(String),
    #[error("the target `{0}` holds a space or a control character; write it percent-encoded, as %20")]
    Characters(String),
    #[error("cannot resolve `{authority}`: {source}; check the name, or give an address")]
    Resolve { authority: String, source: io::Error },
    #[error("`{0}` has no address")]
    NoAddress(String),
    #[error("cannot connect to {authority}: {source}; is the target up? try: torus-load serve --listen {address}")]
    Unreachable { authority: String, address: SocketAddr, source: io::Error },
}

impl Target {
    /// The target that `url` names, with the addresses of its host.
    ///
    /// Errors: no URL, a scheme that is not spoken, or a name that does not resolve.
    pub fn parse(url: &str) -> Result<Target, TargetError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| TargetError::NoUrl(url.to_owned()))?;
        if scheme != "http" {
            return Err(TargetError::Scheme(url.to_owned()));
        }
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
        let after_host = authority.rsplit(']').next().unwrap_or_default();
        let with_port = if after_host.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
        let resolved = with_port.to_socket_addrs();
        let resolved = resolved.map_err(|source| TargetError::Resolve { authority: authority.to_owned(), source })?;
        // A name such as localhost may have addresses of both families where the target listens on one.
        let mut addresses: Vec<SocketAddr> = resolved.collect();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(TargetError::NoAddress(authority.to_owned()));
        }
        Ok(Target { url: url.to_owned(), authority: authority.to_owned(), path, addresses: addresses.into() })
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
            ("gopher://x/", "`gopher://x/`: this version"),
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
