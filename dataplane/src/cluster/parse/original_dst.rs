//! What an ORIGINAL_DST cluster says of its endpoints.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use proto::cluster::LbConfig;
use torus_codec::headers::HeaderName;

use crate::cluster::original_dst::OriginalDst;
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;

pub(super) fn parse(config: &proto::Cluster, context: &mut ParseContext) -> Result<OriginalDst, Refused> {
    let cleanup_interval = context.duration("cleanup_interval", &config.cleanup_interval)?.unwrap_or(CLEANUP_INTERVAL);
    if cleanup_interval.is_zero() {
        return Err(context.reject("cleanup_interval", "must be greater than 0s"));
    }
    if config.load_assignment.is_some() {
        return Err(context.reject("load_assignment", "an ORIGINAL_DST cluster has no endpoints of its own"));
    }
    let mut parsed = OriginalDst { header: None, port: None, cleanup_interval };
    let Some(LbConfig::OriginalDstLbConfig(options)) = &config.lb_config else { return Ok(parsed) };
    context.within("original_dst_lb_config", |context| {
        if options.use_http_header {
            let name = match options.http_header_name.as_str() {
                "" => HEADER,
                name => name,
            };
            let header = HeaderName::new(name);
            parsed.header = Some(header.ok_or_else(|| context.reject("http_header_name", "is no field name"))?);
        } else if !options.http_header_name.is_empty() {
            return Err(context.reject("http_header_name", "needs use_http_header"));
        }
        if let Some(port) = options.upstream_port_override {
            let port = u16::try_from(port.value).ok().filter(|port| *port > 0);
            let port = port.ok_or_else(|| context.reject("upstream_port_override", "must be from 1 to 65535"))?;
            parsed.port = Some(port);
        }
        Ok(parsed)
    })
}

/// Source: Cluster.cleanup_interval.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(5);
/// Source: Cluster.OriginalDstLbConfig.http_header_name.
const HEADER: &str = "x-envoy-original-dst-host";
