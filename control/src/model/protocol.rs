//! Which protocol a port speaks.

/// A port's protocol, as declared or guessed from its name and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Http,
    Http2,
    Grpc,
    GrpcWeb,
    Https,
    Tls,
    Tcp,
    Mongo,
    Redis,
    MySql,
    Udp,
    /// Nobody said: the proxy looks at the first bytes.
    Auto,
}

impl Protocol {
    /// The protocol that `name` spells, in any case; anything unknown is to be detected.
    pub fn parse(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "http" => Self::Http,
            "http2" => Self::Http2,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "https" => Self::Https,
            "tls" => Self::Tls,
            "tcp" => Self::Tcp,
            "mongo" => Self::Mongo,
            "redis" => Self::Redis,
            "mysql" => Self::MySql,
            "udp" => Self::Udp,
            _ => Self::Auto,
        }
    }

    /// The protocol of a Kubernetes Service's port: `appProtocol`, else the first part of the port's name, else by number.
    pub fn of_service_port(number: u32, name: &str, transport: &str, app_protocol: Option<&str>) -> Self {
        if transport == "UDP" {
            return Self::Udp;
        }
        let mut name = name;
        if let Some(app) = app_protocol {
            match app {
                "kubernetes.io/h2c" => return Self::Http2,
                "kubernetes.io/ws" => return Self::Http,
                "kubernetes.io/wss" => return Self::Https,
                _ => name = app,
            }
        }
        let lower = name.to_ascii_lowercase();
        let prefix = if lower == "grpc-web" || lower.starts_with("grpc-web-") {
            "grpc-web"
        } else {
            lower.split('-').next().unwrap_or_default()
        };
        match Self::parse(prefix) {
            Self::Auto if matches!(number, 25 | 53 | 3306 | 27017) => Self::Tcp,
            protocol => protocol,
        }
    }

    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// True for protocols that are TLS on the wire.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }
}

#[cfg(test)]
mod tests {
    use super::Protocol::{self, *};

    #[test]
    fn protocol_comes_from_app_protocol_then_name_then_number() {
        for (number, name, transport, app, wanted) in [
            (80, "http", "TCP", None, Http),
            (80, "http-web", "TCP", None, Http),
            (80, "grpc-web-x", "TCP", None, GrpcWeb),
            (80, "grpc-x", "TCP", None, Grpc),
            (80, "web", "TCP", None, Auto),
            (3306, "db", "TCP", None, Tcp),
            (80, "http", "TCP", Some("kubernetes.io/h2c"), Http2),
            (80, "http", "TCP", Some("tcp"), Tcp),
            (53, "dns", "UDP", None, Udp),
        ] {
            assert_eq!(Protocol::of_service_port(number, name, transport, app), wanted, "{number} {name}");
        }
    }
}
