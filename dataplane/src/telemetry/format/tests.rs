//! Formats against values recorded from Envoy 1.40.

use std::time::Duration;

use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value};
use torus_codec::headers::{HeaderName, Known};

use super::*;
use crate::config::address::Address;
use crate::telemetry::stream_info::ResponseFlag;

fn info() -> StreamInfo {
    let mut info = StreamInfo {
        start: Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(1_795_458_184_427_122_000)),
        request_complete: Some(Duration::from_micros(100)),
        upstream_first_sent: Some(Duration::from_micros(500)),
        upstream_last_sent: Some(Duration::from_micros(1_500)),
        upstream_first_received: Some(Duration::from_micros(4_000)),
        upstream_last_received: Some(Duration::from_micros(5_000)),
        downstream_last_sent: Some(Duration::from_micros(6_999)),
        complete: Some(Duration::from_micros(7_400)),
        body_bytes_sent: 184,
        protocol: Some("HTTP/1.1"),
        response_code: 200,
        attempt_count: 1,
        cluster_name: "b0".into(),
        upstream_host: Some(Address::Ip("127.0.0.1:38247".parse().unwrap())),
        upstream_host_name: "host0.test".into(),
        downstream_remote: Some(Address::Ip("10.1.254.7:43026".parse().unwrap())),
        downstream_local: Some(Address::Ip("[2001:db8::1]:80".parse().unwrap())),
        connection_id: 5,
        upstream_connection_id: 2,
        ..StreamInfo::default()
    };
    info.response_code_details.push_str("via_upstream");
    info
}

fn request(fields: &[(&str, &[u8])]) -> HeaderMap {
    let mut headers = HeaderMap::default();
    headers.append_known(Known::Method, b"GET");
    headers.append_known(Known::Authority, b"a.test:80");
    headers.append_known(Known::Path, b"/new?a=b%20c&d");
    headers.append_known(Known::XEnvoyOriginalPath, b"/x?a=b%20c&d");
    for (name, value) in fields {
        headers.append(&HeaderName::new(name).unwrap(), value);
    }
    headers
}

fn shown(format: &str, info: &StreamInfo, request: &HeaderMap) -> String {
    let mut context = ParseContext::new(1);
    let format = Format::parse_text("f", format, false, &mut context)
        .unwrap_or_else(|_| panic!("{format}: {:?}", context.problems.take()));
    let mut response = HeaderMap::default();
    response.append_known(Known::Server, b"envoy");
    let context = FormatContext {
        response: Some(&response),
        log_type: LogType::DownstreamEnd,
        now: info.start.unwrap(),
        ..FormatContext::new(info, request)
    };
    let mut out = Vec::new();
    format.write(&context, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn operators_write_what_envoy_writes() {
    let request = request(&[("x", b"123456"), ("content-type", b"text/plain")]);
    let info = info();
    let check = |format: &str, expect: &str| assert_eq!(shown(format, &info, &request), expect, "{format}");
    check("100%% %%", "100% %");
    check("%REQ(x)%|%REQ(X):3%|%REQ(none)%|%REQ(none?x)%|%REQUEST_HEADER(HOST)%", "123456|123|-|123456|a.test:80");
    check("%RESP(server)%|%RESPONSE_HEADER(none):2%|%TRAILER(x)%", "envoy|-|-");
    check("%START_TIME%|%START_TIME(%s.%3f)%", "2026-11-23T18:23:04.427Z|1795458184.427");
    check(
        "%DURATION% %REQUEST_DURATION% %REQUEST_TX_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION%",
        "7 0 1 4 2",
    );
    check("%COMMON_DURATION(DS_RX_BEG:US_RX_END:us)%|%COMMON_DURATION(US_RX_END:DS_RX_END)%", "5000|-");
    check("%COMMON_DURATION(US_TX_BEG:US_TX_END:ns)%|%COMMON_DURATION(DS_RX_BEG:mine)%", "1000000|-");
    check("%PROTOCOL% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS%", "HTTP/1.1 200 via_upstream -");
    check("%UPSTREAM_HOST% %UPSTREAM_CLUSTER% %UPSTREAM_HOST_NAME%", "127.0.0.1:38247 b0 host0.test");
    check("%UPSTREAM_REMOTE_PORT% %UPSTREAM_LOCAL_ADDRESS%", "38247 -");
    check("%DOWNSTREAM_REMOTE_ADDRESS%|%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.1.254.7:43026|10.1.254.7");
    check("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)%", "10.1.0.0/16");
    check("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(17)%", "10.1.128.0/17");
    check("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(99)%", "10.1.254.7/32");
    check("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(0)%", "0.0.0.0/0");
    check("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(x)%", "10.1.254.7");
    check("%DOWNSTREAM_LOCAL_ADDRESS%|%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(32)%", "[2001:db8::1]:80|2001:db8::/32");
    check("%PATH%|%PATH(NQ)%|%PATH(WQ:PATH)%|%PATH(NQ:ORIG)%", "/x?a=b%20c&d|/x|/new?a=b%20c&d|/x");
    check("%QUERY_PARAM(a)%|%QUERY_PARAM(a):2%|%QUERY_PARAM(z)%|%QUERY_PARAMS%", "b c|b |-|a=b%20c&d");
    check("%REQ_WITHOUT_QUERY(:path)%", "/new");
    check("%CONNECTION_ID% %UPSTREAM_CONNECTION_ID% %UPSTREAM_CONNECTION_IDS_ATTEMPTED%", "5 2 2");
    check("%UPSTREAM_HOSTS_ATTEMPTED%|%UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT%", "127.0.0.1:38247|127.0.0.1");
    check("%ACCESS_LOG_TYPE%|%LOCAL_REPLY_BODY%|%CUSTOM_FLAGS%|%ENVIRONMENT(NO_SUCH)%", "DownstreamEnd|||-");
    check("%REQUESTED_SERVER_NAME%|%REQUESTED_SERVER_NAME(HOST_FIRST)%", "-|a.test");
    check(
        "%DOWNSTREAM_TLS_VERSION%|%DYNAMIC_METADATA(a:b):3%|%FILTER_STATE(a:PLAIN)%|%METADATA(ROUTE:a:b)%",
        "-|-|-|-",
    );
    check("%GRPC_STATUS%|%BYTES_SENT%|%DURATION()%", "-|184|7");
    check(
        Format::ENVOY_DEFAULT,
        "[2026-11-23T18:23:04.427Z] \"GET /x?a=b%20c&d HTTP/1.1\" 200 - 0 184 7 - \"-\" \"-\" \"-\" \"a.test:80\" \
         \"127.0.0.1:38247\"\n",
    );
}

#[test]
fn flags_are_joined_by_commas_in_the_order_of_their_setting() {
    let mut info = info();
    info.flags.set(ResponseFlag::UpstreamRetryLimitExceeded);
    info.flags.set(ResponseFlag::UpstreamConnectionTermination);
    assert_eq!(shown("%RESPONSE_FLAGS%", &info, &request(&[])), "URX,UC");
    let long = "UpstreamRetryLimitExceeded,UpstreamConnectionTermination";
    assert_eq!(shown("%RESPONSE_FLAGS_LONG%", &info, &request(&[])), long);
}

#[test]
fn grpc_statuses_have_three_forms() {
    let mut info = info();
    info.response_code = 503;
    let grpc = request(&[("content-type", b"application/grpc")]);
    let formats = "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)% %GRPC_STATUS_NUMBER%";
    assert_eq!(shown(formats, &info, &grpc), "Unavailable UNAVAILABLE 14 14");
}

#[test]
fn ids_are_uuids() {
    let ids = shown("%STREAM_ID%|%STREAM_ID%|%UNIQUE_ID%", &info(), &request(&[]));
    let ids: Vec<&str> = ids.split('|').collect();
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[0], ids[2]);
    for id in ids {
        assert_eq!(id.len(), 36, "{id}");
        assert_eq!(id.as_bytes()[14], b'4', "{id}");
        assert!(b"89ab".contains(&id.as_bytes()[19]), "{id}");
    }
}

#[test]
fn bad_formats_are_refused_as_in_envoy() {
    let refused = [
        "%REQ(%",
        "%NOPE%",
        "%REQ%",
        "%REQ()%",
        "%REQ(a?b?c)%",
        "%RESPONSE_CODE:3%",
        "%",
        "a%",
        "%req(a)%",
        "%REQ(a):x%",
        "%REQ(a b)%",
        "%START_TIME(%s%n)%",
        "%START_TIME(%-3En)%",
        "%START_TIME:3%",
        "%RESPONSE_FLAGS(x)%",
        "%GRPC_STATUS(x)%",
        "%PATH(x)%",
        "%QUERY_PARAM%",
        "%ENVIRONMENT%",
        "%COMMON_DURATION%",
        "%COMMON_DURATION(a)%",
        "%COMMON_DURATION(DS_RX_BEG:DS_RX_END:s)%",
        "%UPSTREAM_HOST(a)%",
        "%DYNAMIC_METADATA%",
        "%REQ(a)",
        "%REQUESTED_SERVER_NAME(x)%",
        "%METADATA(X:a)%",
        "%ROUTE_NAME:4%",
        "%QUERY_PARAMS(x)%",
        "%HOSTNAME(a)%",
        "%LOCAL_REPLY_BODY:3%",
        "%STREAM_ID:3%",
    ];
    for format in refused {
        assert!(Format::parse_text("f", format, false, &mut ParseContext::new(1)).is_err(), "{format}");
    }
    let mut context = ParseContext::new(1);
    assert!(Format::parse_text("text_format", "%RESPONSE_COD%", false, &mut context).is_err());
    let shown: Vec<String> = context.problems.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["text_format: unknown operator `RESPONSE_COD`; did you mean `RESPONSE_CODE`?"]);
}

fn text(text: &str) -> Value {
    Value { kind: Some(value::Kind::StringValue(text.into())) }
}

fn object(fields: Vec<(&str, Value)>) -> Struct {
    Struct { fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

fn json(template: Struct, omit_empty_values: bool, x: &[u8]) -> String {
    let config = core::SubstitutionFormatString {
        omit_empty_values,
        format: Some(core::substitution_format_string::Format::JsonFormat(template)),
        ..Default::default()
    };
    let format = Format::parse(&config, &mut ParseContext::new(1)).unwrap();
    assert_eq!(format.content_type(), "application/json");
    let (info, request) = (info(), request(&[("x", x)]));
    let mut out = b"before ".to_vec();
    format.write(&FormatContext::new(&info, &request), &mut out);
    String::from_utf8(out).unwrap().strip_prefix("before ").unwrap().to_owned()
}

fn template() -> Struct {
    let nested =
        object(vec![("k", text("%REQ(none)%")), ("l", Value { kind: Some(value::Kind::StructValue(object(vec![]))) })]);
    let list =
        ListValue { values: vec![text("%REQ(none)%"), text("a"), Value { kind: Some(value::Kind::NumberValue(5.0)) }] };
    object(vec![
        ("zed", text("%RESPONSE_CODE%")),
        ("a", text("%REQ(x)%")),
        ("b", text("\"%REQ(x)%-%REQ(none)%")),
        ("c", Value { kind: Some(value::Kind::NullValue(0)) }),
        ("j", Value { kind: Some(value::Kind::StructValue(nested)) }),
        ("n", Value { kind: Some(value::Kind::ListValue(list)) }),
        ("o", text("")),
        ("p", text("100%%")),
        ("q\"r", text("\t\u{1}</\u{2028}")),
        ("t", Value { kind: Some(value::Kind::BoolValue(true)) }),
    ])
}

#[test]
fn json_keeps_types_and_sorts_fields() {
    let check = |omit: bool, x: &[u8], expect: &str| assert_eq!(json(template(), omit, x), expect, "{x:?}");
    let tail = r#""o":"","p":"100%","q\"r":"\t\u0001</ ","t":true,"zed":200}"#.replace("</ ", "</\u{2028}") + "\n";
    let nulls = r#""c":null,"j":{"k":null,"l":{}},"n":[null,"a",5],"#;
    check(false, b"v", &format!(r#"{{"a":"v","b":"\"v--",{nulls}{tail}"#));
    check(false, "\u{e9}\"\\/<".as_bytes(), &format!(r#"{{"a":"é\"\\/<","b":"\"é\"\\/<--",{nulls}{tail}"#));
    check(false, b"\xff\"", &format!(r#"{{"a":"\u00ff\u0022","b":"\"\u00ff\u0022--",{nulls}{tail}"#));
    check(true, b"v", &format!(r#"{{"a":"v","b":"\"v-","n":["a",5],{tail}"#));
}

#[test]
fn istio_formats_compile() {
    // Source: Istio, default access-log format of mesh telemetry.
    let text = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
                %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
                \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
                %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
                \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
                %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
                %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";
    let line = shown(text, &info(), &request(&[]));
    assert!(
        line.starts_with("[2026-11-23T18:23:04.427Z] \"GET /x?a=b%20c&d HTTP/1.1\" 200 - via_upstream - \"-\" 0 184 7")
    );
}
