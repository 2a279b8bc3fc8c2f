//! Small pieces of Envoy's API that every generator needs.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiConfigSource, ApiVersion, ConfigSource, GrpcService, HeaderValue,
    HeaderValueOption, Metadata, Pipe, SocketAddress, address, api_config_source, config_source, grpc_service,
    header_value_option::HeaderAppendAction, socket_address::PortSpecifier,
};
use envoy_types::pb::google::protobuf as google;
use prost::Message;

use crate::model::Origin;

pub(super) fn any<M: Message>(url: &str, message: &M) -> google::Any {
    google::Any { type_url: format!("type.googleapis.com/{url}"), value: message.encode_to_vec() }
}

pub(super) fn span(duration: Duration) -> Option<google::Duration> {
    Some(google::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    })
}

pub(super) fn number(value: u32) -> Option<google::UInt32Value> {
    Some(google::UInt32Value { value })
}

pub(super) fn flag(value: bool) -> Option<google::BoolValue> {
    Some(google::BoolValue { value })
}

pub(super) fn socket(address: &str, port: u32) -> Option<Address> {
    Some(Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..SocketAddress::default()
        })),
    })
}

/// "Ask on the stream that this came on."
pub(super) fn aggregated() -> Option<ConfigSource> {
    Some(ConfigSource {
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        resource_api_version: ApiVersion::V3.into(),
        initial_fetch_timeout: span(Duration::ZERO),
        ..ConfigSource::default()
    })
}

/// The local agent that holds the workload's own certificate.
pub(super) fn agent() -> Option<ConfigSource> {
    let service = GrpcService {
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(grpc_service::EnvoyGrpc {
            cluster_name: "sds-grpc".to_owned(),
            ..grpc_service::EnvoyGrpc::default()
        })),
        ..GrpcService::default()
    };
    Some(ConfigSource {
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource {
            api_type: api_config_source::ApiType::Grpc.into(),
            transport_api_version: ApiVersion::V3.into(),
            grpc_services: vec![service],
            set_node_on_first_message_only: true,
            ..ApiConfigSource::default()
        })),
        resource_api_version: ApiVersion::V3.into(),
        initial_fetch_timeout: span(Duration::ZERO),
        ..ConfigSource::default()
    })
}

pub(super) fn text(value: &str) -> google::Value {
    google::Value { kind: Some(google::value::Kind::StringValue(value.to_owned())) }
}

pub(super) fn fields(list: impl IntoIterator<Item = (&'static str, google::Value)>) -> google::Struct {
    google::Struct { fields: list.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

/// Metadata `istio`: the object behind something generated, under Istio's name `config`, and where it stands as `place`.
pub(super) fn metadata(origin: &Origin, path: &str, mut more: google::Struct) -> Option<Metadata> {
    let place = origin.place_of(path);
    more.fields.insert("config".to_owned(), text(&origin.config_path()));
    more.fields.insert("place".to_owned(), text(&format!("{}:{}:{}", place.file, place.line, place.column)));
    Some(Metadata { filter_metadata: HashMap::from([("istio".to_owned(), more)]), ..Metadata::default() })
}

/// Header changes in Envoy's form: `set` overwrites, `add` appends.
pub(super) fn headers(set: &BTreeMap<String, String>, add: &BTreeMap<String, String>) -> Vec<HeaderValueOption> {
    let option = |name: &String, value: &String, action: HeaderAppendAction| HeaderValueOption {
        header: Some(HeaderValue { key: name.clone(), value: value.clone(), ..HeaderValue::default() }),
        append_action: action.into(),
        ..HeaderValueOption::default()
    };
    let added = add.iter().map(|(name, value)| option(name, value, HeaderAppendAction::AppendIfExistsOrAdd));
    let set = set.iter().filter(|(name, _)| !is_host(name));
    added.chain(set.map(|(name, value)| option(name, value, HeaderAppendAction::OverwriteIfExistsOrAdd))).collect()
}

/// Envoy rewrites the host by a field of its own.
pub(super) fn is_host(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// The address of an endpoint; `unix:///path` is a socket in the file system.
pub(super) fn endpoint_address(address: &str, port: u32) -> Option<Address> {
    match address.strip_prefix("unix://") {
        Some(path) => Some(Address { address: Some(address::Address::Pipe(Pipe { path: path.to_owned(), mode: 0 })) }),
        None => socket(address, port),
    }
}

pub(super) fn integer(value: u32) -> google::Value {
    google::Value { kind: Some(google::value::Kind::NumberValue(f64::from(value))) }
}

/// Istio's list of services in a cluster's metadata: host, name and namespace of each.
pub(super) fn services(list: &[(&str, &str, &str)]) -> google::Value {
    let values = list.iter().map(|(host, name, namespace)| google::Value {
        kind: Some(google::value::Kind::StructValue(fields([
            ("host", text(host)),
            ("name", text(name)),
            ("namespace", text(namespace)),
        ]))),
    });
    google::Value { kind: Some(google::value::Kind::ListValue(google::ListValue { values: values.collect() })) }
}
