//! Whole tables: what Envoy 1.40 answered to the same requests.

use envoy_types::pb::envoy::config::route::v3 as proto;
use torus_codec::headers::{HeaderMap, HeaderName, Known};

use super::hash::HashedConnection;
use super::timeout::{EffectiveTimeouts, TimeoutOptions, failed_strict_check};
use super::*;
use crate::cluster::ClusterIndex;
use crate::config::address::Address;
use crate::config::parse::ParseContext;
use crate::telemetry::format::FormatContext;
use crate::telemetry::stream_info::StreamInfo;

fn parsed(yaml: &str) -> Result<RouteTable, Vec<String>> {
    let config = torus_xds::from_yaml::<proto::RouteConfiguration>(yaml)
        .map_err(|problems| problems.iter().map(|problem| format!("{problem:?}")).collect::<Vec<_>>())?;
    let mut context = ParseContext::new(1);
    for (index, name) in ["b0", "b1", "b2"].into_iter().enumerate() {
        context.cluster_by_name.insert(name.into(), ClusterIndex(index as u32));
    }
    RouteTable::parse(&config, &mut context)
        .map_err(|_| context.problems.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn table(yaml: &str) -> RouteTable {
    parsed(yaml).unwrap_or_else(|problems| panic!("{yaml}: {problems:?}"))
}

/// A table with one virtual host for every domain, and these routes.
fn routes(routes: &str) -> RouteTable {
    table(&format!("{{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{routes}]}}]}}"))
}

fn request(path: &str, host: &str, fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::default();
    headers.append_known(Known::Method, b"GET");
    headers.append_known(Known::Scheme, b"http");
    headers.append_known(Known::Authority, host.as_bytes());
    headers.append_known(Known::Path, path.as_bytes());
    headers.append_known(Known::XForwardedProto, b"http");
    for (name, value) in fields {
        let name = HeaderName::new(name).unwrap();
        if name.as_str() == "x-forwarded-proto" {
            headers.set(&name, value.as_bytes());
        } else {
            headers.append(&name, value.as_bytes());
        }
    }
    headers
}

fn matched<'a>(table: &'a RouteTable, request: &HeaderMap) -> Option<Match<'a>> {
    match table.find(request, 0, &mut Scratch::default()) {
        Found::Route(matched) => Some(matched),
        _ => None,
    }
}

fn field(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(&HeaderName::new(name).unwrap())?;
    Some(String::from_utf8_lossy(value).into_owned())
}

#[test]
fn virtual_hosts_are_found_by_domain() {
    let yaml = |extra: &str| {
        format!(
            "{{name: r, {extra} virtual_hosts: [\
             {{name: exact, domains: [a.test], routes: [{{match: {{prefix: /only}}, non_forwarding_action: {{}}}}]}},\
             {{name: suffix, domains: ['*.test'], routes: [{{match: {{prefix: /}}, non_forwarding_action: {{}}}}]}},\
             {{name: tls, domains: [tls.test], require_tls: ALL, routes: []}},\
             {{name: outside, domains: [outside.test], require_tls: EXTERNAL_ONLY, \
               routes: [{{match: {{prefix: /}}, non_forwarding_action: {{}}}}]}}]}}"
        )
    };
    let check = |extra: &str, host: &str, path: &str, fields: &[(&str, &str)], expect: &str| {
        let table = table(&yaml(extra));
        let shown = match table.find(&request(path, host, fields), 0, &mut Scratch::default()) {
            Found::Route(matched) => format!("route in {}", matched.virtual_host.name),
            Found::NeedsTls(host) => format!("tls for {}", host.name),
            Found::NoRoute(host) => format!("no route in {}", host.name),
            Found::NoVirtualHost => "no host".to_owned(),
        };
        assert_eq!(shown, expect, "{extra} {host} {path} {fields:?}");
    };
    check("", "a.test", "/only/this", &[], "route in exact");
    check("", "A.TEST", "/only", &[], "route in exact");
    check("", "a.test", "/other", &[], "no route in exact");
    check("", "a.test:80", "/only", &[], "no host");
    check("ignore_port_in_host_matching: true,", "a.test:80", "/only", &[], "route in exact");
    check("", "b.test", "/", &[], "route in suffix");
    check("", "b.example", "/", &[], "no host");
    check("", "tls.test", "/", &[], "tls for tls");
    check("", "tls.test", "/", &[("x-forwarded-proto", "https")], "no route in tls");
    check("", "outside.test", "/", &[], "tls for outside");
    check("", "outside.test", "/", &[("x-envoy-internal", "true")], "route in outside");
    check("vhost_header: x-host,", "none.example", "/only", &[("x-host", "a.test")], "route in exact");
    check("vhost_header: x-host,", "a.test", "/only", &[], "no host");
}

#[test]
fn paths_match_as_in_envoy() {
    let check = |matcher: &str, path: &str, expect: bool| {
        let table = routes(&format!("{{match: {{{matcher}}}, non_forwarding_action: {{}}}}"));
        assert_eq!(matched(&table, &request(path, "a", &[])).is_some(), expect, "{matcher} {path}");
    };
    check("prefix: /a", "/ab?c", true);
    check("prefix: /a", "/A", false);
    check("prefix: /a, case_sensitive: false", "/A", true);
    check("prefix: '/a?'", "/a?", false);
    check("path: /a", "/a?x=/b", true);
    check("path: /a", "/a/", false);
    check("path: /a, case_sensitive: false", "/A#f", true);
    check("safe_regex: {regex: '/[0-9]+'}", "/12?x", true);
    check("safe_regex: {regex: '/[0-9]+'}", "/12a", false);
    check("path_separated_prefix: /a", "/a", true);
    check("path_separated_prefix: /a", "/a/b", true);
    check("path_separated_prefix: /a", "/a?b", true);
    check("path_separated_prefix: /a", "/ab", false);
    check("connect_matcher: {}", "/", false);
    check("prefix: /, runtime_fraction: {default_value: {numerator: 0}}", "/", false);
    check("prefix: /, runtime_fraction: {default_value: {numerator: 1}}", "/", true);
    check("prefix: /, grpc: {}", "/", false);
    check("prefix: /, tls_context: {presented: true}", "/", false);
    check("prefix: /, tls_context: {presented: false, validated: false}", "/", true);
    check("prefix: /, query_parameters: [{name: k, string_match: {exact: v}}]", "/?k=v", true);
    check("prefix: /, query_parameters: [{name: k, present_match: false}]", "/?k=v", false);
    check("prefix: /, headers: [{name: ':path', string_match: {prefix: /q}}]", "/q", true);
    check("prefix: /, cookies: [{name: c, string_match: {exact: v}, invert_match: true}]", "/", true);
}

#[test]
fn path_parameters_may_be_ignored() {
    let yaml = "{name: r, ignore_path_parameters_in_path_matching: true, virtual_hosts: [{name: v, domains: ['*'], \
                routes: [{match: {path: /a}, non_forwarding_action: {}}]}]}";
    let table = table(yaml);
    assert!(matched(&table, &request("/a;v=1?q", "h", &[])).is_some());
    assert!(matched(&table, &request("/ab;v=1", "h", &[])).is_none());
}

#[test]
fn the_first_route_that_matches_is_taken() {
    let table = routes(
        "{name: one, match: {prefix: /, headers: [{name: x}]}, non_forwarding_action: {}},\
         {name: two, match: {prefix: /a}, non_forwarding_action: {}},\
         {name: three, match: {prefix: /}, non_forwarding_action: {}}",
    );
    let name = |path: &str, fields: &[(&str, &str)]| {
        matched(&table, &request(path, "h", fields)).map(|matched| matched.route.name.to_string()).unwrap()
    };
    assert_eq!(name("/a", &[("x", "")]), "one");
    assert_eq!(name("/a", &[]), "two");
    assert_eq!(name("/b", &[]), "three");
}

fn forwarded(route: &str, path: &str, fields: &[(&str, &str)]) -> HeaderMap {
    let table = routes(route);
    let mut request = request(path, "a.test", fields);
    let found = matched(&table, &request).unwrap_or_else(|| panic!("{route} {path}"));
    let weighted = found.choose_cluster(&request.clone(), 0, None).weighted;
    let mut scratch = Scratch::default();
    found.finalize_request(weighted, true, &StreamInfo::default(), &mut request, &mut scratch);
    found.rewrite_host_for_endpoint("host0.test", true, &mut request, &mut scratch);
    request
}

const TEMPLATE: &str = "path_match_policy: {name: m, typed_config: {'@type': \
    type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '/u/{a}/{b=**}.m'}}";
const TEMPLATE_REWRITE: &str = "path_rewrite_policy: {name: r, typed_config: {'@type': \
    type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig, \
    path_template_rewrite: '/w/{b}/{a}'}}";

#[test]
fn paths_are_rewritten_as_in_envoy() {
    let check = |matcher: &str, action: &str, path: &str, expect: &str| {
        let request = forwarded(&format!("{{match: {{{matcher}}}, route: {{cluster: b0, {action}}}}}"), path, &[]);
        assert_eq!(field(&request, ":path").as_deref(), Some(expect), "{matcher} {action} {path}");
        assert_eq!(field(&request, "x-envoy-original-path").as_deref(), Some(path), "{matcher} {action} {path}");
    };
    check("prefix: /p", "prefix_rewrite: /n", "/p", "/n");
    check("prefix: /p", "prefix_rewrite: /n", "/p/a?x=/p", "/n/a?x=/p");
    check("prefix: /p/", "prefix_rewrite: /", "/p/a", "/a");
    check("path: /e", "prefix_rewrite: '/n?z=1'", "/e?x=1", "/n?z=1?x=1");
    check("safe_regex: {regex: '/r/[0-9]+'}", "prefix_rewrite: /n", "/r/12?x=1", "/n?x=1");
    check("path_separated_prefix: /s", "prefix_rewrite: /n", "/s/a?b", "/n/a?b");
    check("path_separated_prefix: /s", "prefix_rewrite: /n", "/s?b", "/n?b");
    let swap = r"regex_rewrite: {pattern: {regex: '^/g/([^/]+)(/.*)$'}, substitution: '\2/i/\1'}";
    check("prefix: /g", swap, "/g/foo/v1?q=/g/a/b", "/v1/i/foo?q=/g/a/b");
    check("prefix: /g", swap, "/gg", "/gg");
    check("prefix: /G", "regex_rewrite: {pattern: {regex: o}, substitution: ''}", "/Gooo?o", "/G?o");
    check("prefix: /ci, case_sensitive: false", "prefix_rewrite: /n", "/CI/a", "/n/a");
    check("path: /ce, case_sensitive: false", "prefix_rewrite: /n", "/CE?a", "/n?a");
    check("prefix: /", "path_rewrite: '/n/%REQ(:method)%%REQ(none)%'", "/a?q=1", "/n/GET?q=1");
    check(TEMPLATE, TEMPLATE_REWRITE, "/u/x/y/z.m?q=1", "/w/y/z/x?q=1");
}

#[test]
fn hosts_are_rewritten_as_in_envoy() {
    let check = |action: &str,
                 path: &str,
                 fields: &[(&str, &str)],
                 host: &str,
                 original: bool,
                 forwarded_host: Option<&str>| {
        let request = forwarded(&format!("{{match: {{prefix: /}}, route: {{cluster: b0, {action}}}}}"), path, fields);
        assert_eq!(field(&request, ":authority").as_deref(), Some(host), "{action} {fields:?}");
        assert_eq!(field(&request, "x-envoy-original-host").is_some(), original, "{action} {fields:?}");
        assert_eq!(field(&request, "x-forwarded-host").as_deref(), forwarded_host, "{action} {fields:?}");
    };
    check("host_rewrite_literal: new.test", "/", &[], "new.test", true, None);
    check("host_rewrite_header: x-h", "/", &[("x-h", "hh.test")], "hh.test", true, None);
    check("host_rewrite_header: x-h", "/", &[], "a.test", false, None);
    let regex = r"host_rewrite_path_regex: {pattern: {regex: '^/(h3)/(.+)/.+$'}, substitution: '\2'}";
    check(regex, "/h3/envoyproxy.io/some?x", &[], "envoyproxy.io", true, None);
    check(regex, "/h3", &[], "/h3", true, None);
    check("auto_host_rewrite: true", "/", &[], "host0.test", true, None);
    check("host_rewrite: '%REQ(x-h)%.test'", "/", &[("x-h", "hh")], "hh.test", true, None);
    check("host_rewrite: '%REQ(x-h)%.test'", "/", &[], "-.test", true, None);
    let append = "host_rewrite_literal: new.test, append_x_forwarded_host: true";
    check(append, "/", &[], "new.test", true, Some("a.test"));
    check(append, "/", &[("x-forwarded-host", "q.test")], "new.test", true, Some("q.test,a.test"));
    check(append, "/", &[("x-forwarded-host", "q.test,a.test")], "new.test", true, Some("q.test,a.test"));
    check(append, "/", &[("x-forwarded-host", "q.test, a.test")], "new.test", true, Some("q.test, a.test,a.test"));
    check("auto_host_rewrite: true, append_x_forwarded_host: true", "/", &[], "host0.test", true, Some("a.test"));
    let weighted = "weighted_clusters: {clusters: [{name: b0, weight: 1, host_rewrite_literal: w.test}]}";
    let request = forwarded(&format!("{{match: {{prefix: /}}, route: {{{weighted}}}}}"), "/", &[]);
    assert_eq!(field(&request, ":authority").as_deref(), Some("w.test"));
}

#[test]
fn the_wished_level_of_header_changes_wins() {
    let add = |value: &str| {
        format!(
            "request_headers_to_add: [{{header: {{key: x-a, value: {value}}}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}}], \
             response_headers_to_add: [{{header: {{key: x-b, value: '{value} %REQ(x-a)%'}}, \
             append_action: OVERWRITE_IF_EXISTS_OR_ADD}}]"
        )
    };
    let check = |extra: &str, expect: &str| {
        let table = table(&format!(
            "{{name: r, {extra} {}, virtual_hosts: [{{name: v, domains: ['*'], {}, routes: [{{match: {{prefix: /}}, {}, \
             route: {{weighted_clusters: {{clusters: [{{name: b0, weight: 1, {}}}]}}}}}}]}}]}}",
            add("table"),
            add("host"),
            add("route"),
            add("weighted")
        ));
        let mut request = request("/", "h", &[]);
        let found = matched(&table, &request).unwrap();
        let weighted = found.choose_cluster(&request.clone(), 0, None).weighted;
        let (info, mut scratch) = (StreamInfo::default(), Scratch::default());
        found.finalize_request(weighted, true, &info, &mut request, &mut scratch);
        assert_eq!(field(&request, "x-a").as_deref(), Some(expect));
        let mut response = HeaderMap::default();
        found.finalize_response(weighted, &info, &request, &mut response, &mut scratch);
        assert_eq!(field(&response, "x-b"), Some(format!("{expect} {expect}")));
    };
    check("", "table");
    check("most_specific_header_mutations_wins: true,", "route");
}

#[test]
fn redirects_go_where_envoy_sends_them() {
    let check = |matcher: &str, redirect: &str, host: &str, path: &str, expect: &str| {
        let table = routes(&format!("{{match: {{{matcher}}}, redirect: {{{redirect}}}}}"));
        let mut request = request(path, host, &[]);
        let found = matched(&table, &request).unwrap_or_else(|| panic!("{matcher} {path}"));
        let mut location = b"stale".to_vec();
        let status = found.redirect(true, &StreamInfo::default(), &mut request, &mut location, &mut Scratch::default());
        let shown = format!("{status} {}", String::from_utf8(location).unwrap());
        assert_eq!(shown, expect, "{redirect} {host} {path}");
    };
    check("prefix: /a", "https_redirect: true", "a.test", "/a?x", "301 https://a.test/a?x");
    check("prefix: /a", "https_redirect: true", "a.test:80", "/a", "301 https://a.test/a");
    check("prefix: /a", "https_redirect: true", "a.test:8080", "/a", "301 https://a.test:8080/a");
    check("prefix: /a", "https_redirect: true", "a.test:443", "/a", "301 https://a.test:443/a");
    check("prefix: /a", "https_redirect: true", "[::1]:80", "/a", "301 https://[::1]/a");
    let all =
        "scheme_redirect: ftp, host_redirect: h.test, port_redirect: 99, path_redirect: /new, response_code: FOUND";
    check("prefix: /b", all, "a.test:80", "/b?x=1", "302 ftp://h.test:99/new?x=1");
    check("prefix: /c", "port_redirect: 99", "a.test:80", "/c", "301 http://a.test:99/c");
    check("prefix: /c", "port_redirect: 99", "[::1]:80", "/c", "301 http://[::1]:99/c");
    check("prefix: /c", "port_redirect: 99", "[::1]", "/c", "301 http://[::1]:99/c");
    let own_query = "path_redirect: '/new?y=2', strip_query: true";
    check("prefix: /d", own_query, "a.test", "/d?x=1", "301 http://a.test/new?y=2");
    check("prefix: /e", "path_redirect: /new", "a.test", "/e?x=1", "301 http://a.test/new?x=1");
    let format = "path_rewrite: '/n/%REQ(:method)%'";
    check("prefix: /e", format, "a.test", "/e?x=1", "301 http://a.test/n/GET?x=1");
    let format = "path_rewrite: '/n?%REQ(:method)%', strip_query: true";
    check("prefix: /e", format, "a.test", "/e?x=1", "301 http://a.test/n?GET");
    let see_other = "prefix_rewrite: /new, response_code: SEE_OTHER";
    check("prefix: /f", see_other, "a.test", "/f/q?x=1", "303 http://a.test/new/q?x=1");
    let regex =
        r"regex_rewrite: {pattern: {regex: '^/g/(.*)$'}, substitution: '/q/\1'}, response_code: PERMANENT_REDIRECT";
    check("prefix: /g", regex, "a.test", "/g/q?x=1", "308 http://a.test/q/q?x=1");
    check("prefix: /g", regex, "a.test", "/gg", "308 http://a.test/gg");
    let stripped = "prefix_rewrite: /new, strip_query: true, response_code: TEMPORARY_REDIRECT";
    check("prefix: /h", stripped, "a.test", "/h/q?x=1", "307 http://a.test/new/q");
    check("prefix: /i", "host_redirect: h.test, strip_query: true", "a.test:80", "/i/q?x=1", "301 http://h.test/i/q");
    let shouted = "scheme_redirect: HTTPS, port_redirect: 443";
    check("prefix: /j", shouted, "a.test:80", "/j/q?x=1", "301 HTTPS://a.test:443/j/q?x=1");
    check("prefix: /k", "", "a.test:80", "/k/q?x=1", "301 http://a.test:80/k/q?x=1");
    check("path_separated_prefix: /u", "prefix_rewrite: /new", "a.test", "/u/q?x=1", "301 http://a.test/new/q?x=1");
    check("safe_regex: {regex: '/v/.*'}", "prefix_rewrite: /new", "a.test", "/v/q?x=1", "301 http://a.test/new?x=1");
    let mut location = Vec::new();
    rewrite::tls_location(&request("/z?y", "tls.test", &[]), &mut location);
    assert_eq!(location, b"https://tls.test/z?y");
}

#[test]
fn direct_responses_say_what_is_configured() {
    let check = |action: &str, expect: (u16, Option<&str>, &str, &str)| {
        let table = routes(&format!("{{match: {{prefix: /}}, direct_response: {{{action}}}}}"));
        let request = request("/m?x", "a.test", &[]);
        let found = matched(&table, &request).unwrap();
        let (mut body, mut location) = (b"stale".to_vec(), b"stale".to_vec());
        let info = StreamInfo::default();
        let context = FormatContext::new(&info, &request);
        let (status, content_type) = found.direct_response(&context, &mut body, &mut location);
        let (body, location) = (String::from_utf8(body).unwrap(), String::from_utf8(location).unwrap());
        assert_eq!((status, content_type, body.as_str(), location.as_str()), expect, "{action}");
    };
    check("status: 302", (302, None, "", "http://a.test/m?x"));
    check("status: 201, body: {inline_string: b}", (201, None, "b", "http://a.test/m?x"));
    check("status: 404, body: {inline_bytes: Yg==}", (404, None, "b", ""));
    let text = "status: 200, body_format: {text_format_source: {inline_string: '%REQ(:path)% %RESPONSE_CODE%'}}";
    check(text, (200, None, "/m?x 0", ""));
    let json = "status: 200, body: {inline_string: zz}, body_format: {json_format: {b: '%LOCAL_REPLY_BODY%'}}";
    check(json, (200, Some("application/json"), "{\"b\":\"zz\"}\n", ""));
    let own = "status: 200, body_format: {content_type: text/x, text_format_source: {inline_string: q}}";
    check(own, (200, Some("text/x"), "q", ""));
}

#[test]
fn clusters_are_chosen_by_name_header_or_weight() {
    let check = |action: &str, fields: &[(&str, &str)], random: u64, hash: Option<u64>, expect: ClusterTarget<'_>| {
        let table = routes(&format!("{{match: {{prefix: /}}, route: {{{action}}}}}"));
        let request = request("/", "a", fields);
        let choice = matched(&table, &request).unwrap().choose_cluster(&request, random, hash);
        assert_eq!(choice.target, expect, "{action} {fields:?} {random} {hash:?}");
    };
    let index = |index| ClusterTarget::Index(ClusterIndex(index));
    check("cluster: b1", &[], 0, None, index(1));
    check("cluster_header: x-c", &[("x-c", "name"), ("x-c", "other")], 0, None, ClusterTarget::Named(b"name"));
    check("cluster_header: x-c", &[], 0, None, ClusterTarget::Named(b""));
    let weights = "clusters: [{name: b0, weight: 3}, {name: b1, weight: 0}, {name: b2, weight: 2}]";
    for (random, expect) in [(0, 0), (2, 0), (3, 2), (4, 2), (5, 0), (9, 2)] {
        check(&format!("weighted_clusters: {{{weights}}}"), &[], random, Some(4), index(expect));
    }
    let by_header = format!("weighted_clusters: {{header_name: x-r, {weights}}}");
    for (value, expect) in [("3", 2), ("8", 2), (" 5", 0), ("x", 0), ("-1", 0)] {
        check(&by_header, &[("x-r", value)], 0, None, index(expect));
    }
    let by_hash = format!("weighted_clusters: {{use_hash_policy: true, {weights}}}");
    check(&by_hash, &[], 0, Some(4), index(2));
    check(&by_hash, &[], 4, None, index(2));
    let named = "weighted_clusters: {clusters: [{cluster_header: x-c, weight: 1}]}";
    check(named, &[("x-c", "q")], 0, None, ClusterTarget::Named(b"q"));
}

/// The place among 101 equal weights that Envoy 1.40 chose with `use_hash_policy`, which is the hash modulo 101.
#[test]
fn hashes_are_those_of_envoy() {
    let local = Address::Ip("127.0.0.1:10000".parse().unwrap());
    let remote = Address::Ip("127.0.0.1:40000".parse().unwrap());
    let connection = HashedConnection { remote: Some(&remote), direct_remote: Some(&remote), local: Some(&local) };
    let check = |policy: &str, path: &str, fields: &[(&str, &str)], expect: Option<u64>| {
        let table = routes(&format!("{{match: {{prefix: /}}, route: {{cluster: b0, hash_policy: [{policy}]}}}}"));
        let request = request(path, "a.test", fields);
        let hash = matched(&table, &request).unwrap().hash(&request, connection, None, &mut Scratch::default());
        assert_eq!(hash.map(|hash| hash % 101), expect, "{policy} {fields:?}");
    };
    let x = "{header: {header_name: x}}";
    check(x, "/", &[("x", "v")], Some(13));
    check(x, "/", &[("x", "a"), ("x", "b")], Some(13));
    check(x, "/", &[("x", "b"), ("x", "a")], Some(13));
    check(x, "/", &[("x", "a,b")], Some(29));
    check(x, "/", &[("x", "")], Some(27));
    check(x, "/", &[], None);
    let rewritten = "{header: {header_name: x, regex_rewrite: {pattern: {regex: '[0-9]'}, substitution: z}}}";
    check(rewritten, "/", &[("x", "a1b2")], Some(11));
    check(rewritten, "/", &[("x", "azbz")], Some(11));
    check("{cookie: {name: c}}", "/", &[("cookie", "c=v")], Some(13));
    check("{cookie: {name: c}}", "/", &[], None);
    check("{cookie: {name: c, ttl: 10s}}", "/", &[], None);
    check("{connection_properties: {source_ip: true}}", "/", &[], Some(66));
    check("{query_parameter: {name: q}}", "/f?q=val&q=w", &[], Some(35));
    let two = "{header: {header_name: x}}, {header: {header_name: yy}}";
    check(two, "/", &[("x", "v"), ("yy", "w")], Some(47));
    check(two, "/", &[("yy", "w")], Some(49));
    let terminal = "{header: {header_name: x}, terminal: true}, {header: {header_name: yy}}";
    check(terminal, "/", &[("x", "v"), ("yy", "w")], Some(13));
    check(terminal, "/", &[("yy", "w")], Some(49));
    check("{header: {header_name: host}}", "/", &[], Some(18));
    check("{header: {header_name: ':path'}}", "/l", &[], Some(35));
}

#[test]
fn a_cookie_is_made_for_a_client_without_one() {
    let local = Address::Ip("127.0.0.1:10000".parse().unwrap());
    let remote = Address::Ip("127.0.0.1:40000".parse().unwrap());
    let connection = HashedConnection { remote: Some(&remote), direct_remote: Some(&remote), local: Some(&local) };
    let cookie =
        "{cookie: {name: c, ttl: 10.5s, path: /p, attributes: [{name: SameSite, value: Strict}, {name: Secure}]}}";
    let table = routes(&format!("{{match: {{prefix: /}}, route: {{cluster: b0, hash_policy: [{cookie}]}}}}"));
    let plain = request("/", "a.test", &[]);
    let found = matched(&table, &plain).unwrap();
    let mut cookies = Vec::new();
    let made = found.hash(&plain, connection, Some(&mut cookies), &mut Scratch::default());
    let text = String::from_utf8(cookies).unwrap();
    let value = text.strip_prefix("c=\"").and_then(|rest| rest.get(..16)).unwrap();
    assert_eq!(text, format!("c=\"{value}\"; Max-Age=10; Path=/p; SameSite=Strict; Secure; HttpOnly\0"));
    // The client that brings the cookie back goes to the same place.
    let returning = request("/", "a.test", &[("cookie", &format!("c=\"{value}\""))]);
    let mut cookies = Vec::new();
    assert_eq!(found.hash(&returning, connection, Some(&mut cookies), &mut Scratch::default()), made);
    assert!(cookies.is_empty());
}

/// Each row was checked against Envoy 1.40.
#[test]
fn timeouts_come_from_the_route_and_the_request() {
    let options = TimeoutOptions::default();
    let check = |action: &str, options: TimeoutOptions, fields: &[(&str, &str)], expect: (u64, u64, Option<&str>)| {
        let table = routes(&format!("{{match: {{prefix: /}}, route: {{cluster: b0, {action}}}}}"));
        let mut request = request("/", "a", fields);
        let found = matched(&table, &request).unwrap();
        let Action::Forward(forward) = &found.route.action else { panic!("no forward") };
        let taken = EffectiveTimeouts::take(forward, options, &mut request, &mut Scratch::default());
        let count = |time: Option<std::time::Duration>| time.map_or(0, |time| time.as_millis() as u64);
        let expected = field(&request, "x-envoy-expected-rq-timeout-ms");
        let shown = (count(taken.global), count(taken.per_try), expected.as_deref());
        assert_eq!(shown, expect, "{action} {fields:?}");
        for (name, _) in request.iter() {
            assert!(!name.starts_with(b"x-envoy-upstream"), "{}", String::from_utf8_lossy(name));
        }
    };
    let both = "timeout: 2s, retry_policy: {retry_on: 5xx, per_try_timeout: 1s}";
    check("", options, &[], (15_000, 0, Some("15000")));
    check(both, options, &[], (2_000, 1_000, Some("1000")));
    check("timeout: 2s, retry_policy: {per_try_timeout: 3s}", options, &[], (2_000, 0, Some("2000")));
    check("timeout: 0s", options, &[], (0, 0, None));
    check("max_stream_duration: {max_stream_duration: 3s}", options, &[], (0, 0, None));
    check(both, options, &[("x-envoy-upstream-rq-timeout-ms", "700")], (700, 0, Some("700")));
    check(both, options, &[("x-envoy-upstream-rq-timeout-ms", "0")], (0, 1_000, Some("1000")));
    check(both, options, &[("x-envoy-upstream-rq-timeout-ms", "x")], (2_000, 1_000, Some("1000")));
    check(both, options, &[("x-envoy-upstream-rq-timeout-ms", "1.5")], (2_000, 1_000, Some("1000")));
    check(both, options, &[("x-envoy-upstream-rq-per-try-timeout-ms", "100")], (2_000, 100, Some("100")));
    check(both, options, &[("x-envoy-upstream-rq-per-try-timeout-ms", "9999")], (2_000, 0, Some("2000")));
    check(both, options, &[("x-envoy-expected-rq-timeout-ms", "77")], (2_000, 1_000, Some("1000")));
    let respectful = TimeoutOptions { respect_expected_timeout: true, ..options };
    check(both, respectful, &[("x-envoy-expected-rq-timeout-ms", "77")], (77, 0, Some("77")));
    check(both, respectful, &[("x-envoy-upstream-rq-timeout-ms", "700")], (700, 0, Some("700")));
    let quiet = TimeoutOptions { suppress_envoy_headers: true, ..options };
    check(both, quiet, &[], (2_000, 1_000, None));
    check(both, quiet, &[("x-envoy-expected-rq-timeout-ms", "77")], (2_000, 1_000, Some("77")));
    check(
        both,
        options,
        &[("x-envoy-upstream-stream-duration-ms", "5"), ("x-envoy-upstream-alt-stat-name", "z")],
        (2_000, 1_000, Some("1000")),
    );
    let grpc = [("content-type", "application/grpc"), ("grpc-timeout", "3S")];
    check("max_grpc_timeout: 2s", options, &grpc, (2_000, 0, Some("2000")));
    check("max_grpc_timeout: 0s", options, &grpc, (3_000, 0, Some("3000")));
    check("max_grpc_timeout: 0s, grpc_timeout_offset: 1s", options, &grpc, (2_000, 0, Some("2000")));
}

/// Each row was checked against Envoy 1.40.
#[test]
fn strict_checks_find_bad_values() {
    let names = ["x-envoy-upstream-rq-timeout-ms", "x-envoy-max-retries", "x-envoy-retry-on", "x-envoy-retry-grpc-on"];
    let checked: Vec<HeaderName> = names.iter().map(|name| HeaderName::new(name).unwrap()).collect();
    let check = |name: &str, value: &str, valid: bool| {
        let failed = failed_strict_check(&checked, &request("/", "a", &[(name, value)]));
        assert_eq!(failed.map(HeaderName::as_str), (!valid).then_some(name), "{name}: {value}");
    };
    check("x-envoy-upstream-rq-timeout-ms", "700", true);
    check("x-envoy-upstream-rq-timeout-ms", "x", false);
    check("x-envoy-upstream-rq-timeout-ms", "1.5", false);
    check("x-envoy-max-retries", "z", false);
    check("x-envoy-retry-on", "5xx", true);
    check("x-envoy-retry-on", "bogus,5xx", false);
    check("x-envoy-retry-grpc-on", "foo", false);
    check("x-envoy-retry-grpc-on", "unavailable", true);
}

#[test]
fn virtual_clusters_name_requests() {
    let table = table(
        "{name: r, virtual_hosts: [{name: v, domains: ['*'], virtual_clusters: [{name: vc1, headers: [{name: x-vc}]}, \
         {name: vc2, headers: [{name: ':path', string_match: {exact: /2}}]}]}]}",
    );
    let host = &table.virtual_hosts()[0];
    let name = |path: &str, fields: &[(&str, &str)]| {
        host.virtual_cluster(&request(path, "a", fields), &mut Scratch::default()).map(str::to_owned)
    };
    assert_eq!(name("/", &[("x-vc", "1")]).as_deref(), Some("vc1"));
    assert_eq!(name("/2", &[]).as_deref(), Some("vc2"));
    assert_eq!(name("/", &[]), None);
    assert_eq!(host.virtual_cluster_names().collect::<Vec<_>>(), ["vc1", "vc2"]);
}

#[test]
fn tables_that_cannot_work_are_refused_with_the_field() {
    let check = |yaml: &str, expect: &str| {
        let problems = parsed(yaml).map(|_| ()).unwrap_err();
        assert!(problems.iter().any(|problem| problem.contains(expect)), "{yaml}: {problems:?}");
    };
    let with_route = |route: &str| format!("{{virtual_hosts: [{{name: v, domains: ['*'], routes: [{route}]}}]}}");
    check("{virtual_hosts: [{name: v, domains: []}]}", "virtual_hosts[0].domains: must not be empty");
    check("{virtual_hosts: [{domains: ['*']}]}", "virtual_hosts[0].name: must not be empty");
    let twice = "{virtual_hosts: [{name: a, domains: [A.test]}, {name: b, domains: [b, a.test]}]}";
    check(twice, "virtual_hosts[1].domains[1]: another virtual host has the domain `a.test` already");
    check("{virtual_hosts: [{name: a, domains: [a]}, {name: a, domains: [b]}]}", "two virtual hosts are called `a`");
    let unknown = with_route("{match: {prefix: /}, route: {cluster: b9}}");
    check(&unknown, "virtual_hosts[0].routes[0].route.cluster: unknown cluster `b9`; did you mean `b");
    check(&with_route("{match: {}, route: {cluster: b0}}"), "routes[0].match: needs one of prefix");
    check(&with_route("{match: {prefix: /}}"), "routes[0]: needs one of route");
    check(&with_route("{match: {prefix: /}, route: {}}"), "routes[0].route: needs one of cluster");
    let two_rewrites = "{match: {prefix: /}, route: {cluster: b0, prefix_rewrite: /a, regex_rewrite: {pattern: {regex: a}, substitution: b}}}";
    check(&with_route(two_rewrites), "only one of prefix_rewrite");
    let groups =
        r"{match: {prefix: /}, route: {cluster: b0, regex_rewrite: {pattern: {regex: a}, substitution: '\1'}}}";
    check(&with_route(groups), "route.regex_rewrite.substitution: uses group 1 of a pattern that has 0");
    check(
        &with_route("{match: {safe_regex: {regex: '('}}, route: {cluster: b0}}"),
        "match.safe_regex.regex: is no valid",
    );
    check(
        &with_route("{match: {prefix: /}, direct_response: {status: 99}}"),
        "direct_response.status: must be from 200",
    );
    let big = format!(
        "{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: '{}'}}}}}}",
        "x".repeat(4_097)
    );
    check(&with_route(&big), "direct_response.body: has 4097 bytes; max_direct_response_body_size_bytes is 4096");
    let weights = "{match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: b0, weight: 0}]}}}";
    check(&with_route(weights), "weighted_clusters.clusters: the weights must not all be 0");
    let upgrades =
        "{match: {prefix: /}, route: {cluster: b0, upgrade_configs: [{upgrade_type: a}, {upgrade_type: A}]}}";
    check(&with_route(upgrades), "upgrade_configs[1].upgrade_type: `a` occurs twice");
    check(&with_route("{match: {path_separated_prefix: /a/}, route: {cluster: b0}}"), "must not end with /");
    let metadata = "{match: {prefix: /, dynamic_metadata: [{filter: a, path: [{key: k}], value: {present_match: true}}]}, route: {cluster: b0}}";
    check(&with_route(metadata), "match.dynamic_metadata: needs filters");
}

#[test]
fn clusters_that_are_not_there_are_allowed_where_wished() {
    let yaml = "{validate_clusters: false, virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, \
                route: {cluster: later}}]}]}";
    let table = table(yaml);
    let request = request("/", "a", &[]);
    let choice = matched(&table, &request).unwrap().choose_cluster(&request, 0, None);
    assert_eq!(choice.target, ClusterTarget::Named(b"later"));
}
