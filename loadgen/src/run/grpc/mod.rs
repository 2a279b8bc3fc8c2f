//! Messages of gRPC calls from JSON: the method's types come from a descriptor set (`protoc --descriptor_set_out`), or from the server
//! itself where it offers reflection.

mod reflection;

use std::fs;
use std::io;
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};

pub use self::reflection::ask;

/// Messages of one call together, in bytes.
const CALL_BYTES_MAX: usize = 64 << 20;

/// Why no message can be made.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    #[error("{path}: {source}")]
    File { path: String, source: io::Error },
    #[error(
        "{path}: no descriptor set: {reason}; try: protoc --include_imports --descriptor_set_out={path} FILE.proto"
    )]
    Set { path: String, reason: String },
    #[error("`{0}` is no method; the path of the target is /PACKAGE.SERVICE/METHOD")]
    Path(String),
    #[error("no service `{service}` in {origin}; there are: {known}")]
    Service { service: String, origin: String, known: String },
    #[error("no method `{method}` in {service}; there are: {known}")]
    Method { method: String, service: String, known: String },
    #[error("{place}:{line}:{column}: no {name}: {reason}")]
    Json { place: String, line: usize, column: usize, name: String, reason: String },
    #[error("{place}: {name} takes one message, here are {count}; several are for methods that take a stream")]
    Count { place: String, name: String, count: usize },
    #[error("{place}: the messages of a call take more than {} MiB", CALL_BYTES_MAX >> 20)]
    Large { place: String },
    #[error("{target} does not tell of its services by reflection: {reason}; try: --descriptor-set FILE")]
    Reflection { target: String, reason: String },
}

/// A method with the types of its messages.
#[derive(Clone, Debug)]
pub struct Method(MethodDescriptor);

impl Method {
    /// The method that `path` names, as descriptors in the file `set` tell of it.
    pub fn in_file(path: &str, set: &Path) -> Result<Method, GrpcError> {
        let name = set.display().to_string();
        let bytes = fs::read(set).map_err(|source| GrpcError::File { path: name.clone(), source })?;
        let pool = DescriptorPool::decode(bytes.as_slice())
            .map_err(|error| GrpcError::Set { path: name.clone(), reason: error.to_string() })?;
        Method::find(&pool, path, &name)
    }

    /// The method that `path` names, of those that `origin` told of.
    fn find(pool: &DescriptorPool, path: &str, origin: &str) -> Result<Method, GrpcError> {
        let (service, method) = split(path)?;
        let found = pool.get_service_by_name(service).ok_or_else(|| GrpcError::Service {
            service: service.to_owned(),
            origin: origin.to_owned(),
            known: listed(pool.services().map(|service| service.full_name().to_owned())),
        })?;
        let methods = || found.methods();
        methods().find(|known| known.name() == method).map(Method).ok_or_else(|| GrpcError::Method {
            method: method.to_owned(),
            service: service.to_owned(),
            known: listed(methods().map(|method| method.name().to_owned())),
        })
    }

    /// What one call sends: each JSON value of `text` as a message, all of them `times` times over.
    ///
    /// Errors: a value that is none or is not of the method's type, named with `place`; several for a method that takes one.
    pub fn encode(&self, text: &str, times: usize, place: &str) -> Result<Bytes, GrpcError> {
        let input = self.0.input();
        let mut json = serde_json::Deserializer::from_str(text);
        let mut messages = Vec::new();
        while json.end().is_err() {
            let message = DynamicMessage::deserialize(input.clone(), &mut json).map_err(|error| {
                let (line, column) = (error.line(), error.column());
                let text = error.to_string();
                let reason = text.split(" at line ").next().unwrap_or_default().to_owned();
                GrpcError::Json { place: place.to_owned(), line, column, name: input.full_name().to_owned(), reason }
            })?;
            messages.push(message.encode_to_vec());
        }
        let count = messages.len() * times;
        if count != 1 && !self.0.is_client_streaming() {
            return Err(GrpcError::Count { place: place.to_owned(), name: self.0.full_name().to_owned(), count });
        }
        let one = messages.iter().map(|message| message.len() + HEAD_BYTES).sum::<usize>();
        if one.saturating_mul(times) > CALL_BYTES_MAX {
            return Err(GrpcError::Large { place: place.to_owned() });
        }
        let mut out = BytesMut::with_capacity(one * times);
        for message in std::iter::repeat_n(&messages, times).flatten() {
            put(&mut out, message);
        }
        Ok(out.freeze())
    }
}

/// Flag and length before each message (gRPC over HTTP/2, Length-Prefixed-Message).
const HEAD_BYTES: usize = 5;

/// Appends `message`, not compressed.
fn put(out: &mut BytesMut, message: &[u8]) {
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
}

/// One message that is encoded already, as a call sends it.
pub fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + HEAD_BYTES);
    put(&mut out, message);
    out.freeze()
}

fn split(path: &str) -> Result<(&str, &str), GrpcError> {
    let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    let whole = |(service, method): &(&str, &str)| {
        !service.is_empty() && !method.is_empty() && !method.contains(['/', '?']) && !service.contains('?')
    };
    parts.filter(whole).ok_or_else(|| GrpcError::Path(path.to_owned()))
}

fn listed(names: impl Iterator<Item = String>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use prost_reflect::prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
        ServiceDescriptorProto, field_descriptor_proto,
    };

    use super::*;

    /// shop.Cart with Add, which takes one Item, and Fill, which takes a stream of them.
    fn set() -> Vec<u8> {
        let field = |name: &str, number, kind: field_descriptor_proto::Type| FieldDescriptorProto {
            name: Some(name.to_owned()),
            number: Some(number),
            r#type: Some(kind as i32),
            label: Some(field_descriptor_proto::Label::Optional as i32),
            ..FieldDescriptorProto::default()
        };
        let method = |name: &str, client_streaming| MethodDescriptorProto {
            name: Some(name.to_owned()),
            input_type: Some(".shop.Item".to_owned()),
            output_type: Some(".shop.Item".to_owned()),
            client_streaming: Some(client_streaming),
            ..MethodDescriptorProto::default()
        };
        let item = DescriptorProto {
            name: Some("Item".to_owned()),
            field: vec![
                field("name", 1, field_descriptor_proto::Type::String),
                field("count", 2, field_descriptor_proto::Type::Int32),
            ],
            ..DescriptorProto::default()
        };
        let cart = ServiceDescriptorProto {
            name: Some("Cart".to_owned()),
            method: vec![method("Add", false), method("Fill", true)],
            ..ServiceDescriptorProto::default()
        };
        let file = FileDescriptorProto {
            name: Some("shop.proto".to_owned()),
            package: Some("shop".to_owned()),
            syntax: Some("proto3".to_owned()),
            message_type: vec![item],
            service: vec![cart],
            ..FileDescriptorProto::default()
        };
        FileDescriptorSet { file: vec![file] }.encode_to_vec()
    }

    fn encoded(path: &str, text: &str, times: usize) -> Result<Vec<u8>, String> {
        let pool = DescriptorPool::decode(set().as_slice()).unwrap();
        let method = Method::find(&pool, path, "set.pb").map_err(|error| error.to_string())?;
        method.encode(text, times, "--message").map(|bytes| bytes.to_vec()).map_err(|error| error.to_string())
    }

    #[test]
    fn json_becomes_messages() {
        let one = b"\0\0\0\0\x05\x0a\x01a\x10\x02".to_vec();
        let empty = b"\0\0\0\0\0".to_vec();
        for (path, text, times, expected) in [
            ("/shop.Cart/Add", r#"{"name": "a", "count": 2}"#, 1, one.clone()),
            ("/shop.Cart/Add", " {} \n", 1, empty.clone()),
            ("/shop.Cart/Fill", r#"{"name":"a","count":2} {}"#, 2, [&one[..], &empty, &one, &empty].concat()),
            ("/shop.Cart/Fill", "", 1, vec![]),
        ] {
            assert_eq!(encoded(path, text, times).unwrap(), expected, "{path} {text}");
        }
    }

    #[test]
    fn what_is_no_message_is_told_with_its_place() {
        for (path, text, expected) in [
            ("/shop.Cart/Add", "{\n \"colour\": 1}", "--message:2:9: no shop.Item: unrecognized field name 'colour'"),
            ("/shop.Cart/Add", "{\"count\": \"many\"}", "--message:1:16: no shop.Item: invalid digit"),
            ("/shop.Cart/Add", "{", "--message:1:1: no shop.Item: EOF while parsing an object"),
            ("/shop.Cart/Add", "", "--message: shop.Cart.Add takes one message, here are 0"),
            ("/shop.Cart/Add", "{} {}", "--message: shop.Cart.Add takes one message, here are 2"),
            ("/shop.Cart/Pay", "{}", "no method `Pay` in shop.Cart; there are: Add, Fill"),
            ("/shop.Card/Add", "{}", "no service `shop.Card` in set.pb; there are: shop.Cart"),
            ("/shop.Cart", "{}", "`/shop.Cart` is no method"),
            ("/shop.Cart/Add?x=1", "{}", "`/shop.Cart/Add?x=1` is no method"),
        ] {
            let error = encoded(path, text, 1).unwrap_err();
            assert!(error.starts_with(expected), "{path} {text}: {error}");
        }
    }
}
