//! Istio's names of generated resources, which its tools, metrics and EnvoyFilters rely on.

pub const BLACK_HOLE: &str = "BlackHoleCluster";
pub const PASSTHROUGH: &str = "PassthroughCluster";
/// No cluster has this name: requests to it fail, as those to a backend that does not exist must.
pub const UNKNOWN: &str = "UnknownService";
pub const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";

/// `outbound|80|v1|web.shop.svc.cluster.local`
pub fn outbound_cluster(port: u32, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// `inbound|8080||`
pub fn inbound_cluster(port: u32) -> String {
    format!("inbound|{port}||")
}

/// `0.0.0.0_80`
pub fn listener(address: &str, port: u32) -> String {
    format!("{address}_{port}")
}

/// `https.443.name.gateway.namespace`
pub fn https_route(port: u32, port_name: &str, gateway: &str, namespace: &str) -> String {
    format!("https.{port}.{port_name}.{gateway}.{namespace}")
}
