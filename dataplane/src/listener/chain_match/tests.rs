use super::*;

/// Chains by name, each with what its rules are.
type Chains = &'static [(&'static str, fn(&mut ChainCriteria))];

fn matcher(chains: Chains, default: bool) -> Result<ChainMatcher, SameRules> {
    let compiled: Vec<ChainCriteria> = chains
        .iter()
        .map(|(_, rules)| {
            let mut criteria = ChainCriteria::default();
            rules(&mut criteria);
            criteria
        })
        .collect();
    let candidates: Vec<_> = compiled.iter().enumerate().map(|(index, it)| (ChainIndex(index as u32), it)).collect();
    ChainMatcher::new(&candidates, default.then_some(ChainIndex(chains.len() as u32)))
}

fn facts(local: &str, remote: &str, found: Found) -> ConnectionFacts {
    let ip = |text: &str| Address::Ip(text.parse().unwrap());
    ConnectionFacts { local: ip(local), remote: ip(remote), direct_remote: ip(remote), found }
}

fn found(server_name: &str, protocols: &[&str]) -> Found {
    Found {
        is_tls: true,
        server_name: (!server_name.is_empty()).then(|| server_name.into()),
        application_protocols: protocols.iter().map(|name| name.as_bytes().into()).collect(),
    }
}

fn check(chains: Chains, facts: &ConnectionFacts, expect: &str) {
    let chosen = matcher(chains, true).unwrap().find(facts).unwrap();
    let name = chains.get(chosen.0 as usize).map_or("default", |(name, _)| name);
    assert_eq!(name, expect, "{facts:?}");
    let without = matcher(chains, false).unwrap().find(facts);
    assert_eq!(without.is_none(), expect == "default");
}

fn range(network: &str, bits: u8) -> Cidr {
    Cidr::new(network.parse().unwrap(), bits).unwrap()
}

#[test]
fn server_names_are_exact_then_by_the_longest_suffix() {
    let chains: Chains = &[
        ("exact", |it| it.server_names = vec!["a.example.com".into()]),
        ("near", |it| it.server_names = vec![".example.com".into()]),
        ("far", |it| it.server_names = vec![".com".into()]),
    ];
    let at = |name: &str| facts("10.0.0.1:443", "10.0.0.2:1", found(name, &[]));
    check(chains, &at("a.example.com"), "exact");
    check(chains, &at("b.example.com"), "near");
    check(chains, &at("b.a.example.com"), "near");
    check(chains, &at("example.com"), "far");
    check(chains, &at("com"), "default");
    check(chains, &at("example.org"), "default");
    check(chains, &at(""), "default");
}

#[test]
fn an_earlier_step_is_never_undone() {
    // The name leads to the first chain alone, whose protocol does not fit; the second is not asked any more.
    let chains: Chains = &[
        ("name", |it| {
            it.server_names = vec!["a.test".into()];
            it.application_protocols = vec!["h2".into()];
        }),
        ("any", |_| {}),
    ];
    check(chains, &facts("10.0.0.1:443", "10.0.0.2:1", found("a.test", &["h2"])), "name");
    check(chains, &facts("10.0.0.1:443", "10.0.0.2:1", found("a.test", &["http/1.1"])), "default");
    check(chains, &facts("10.0.0.1:443", "10.0.0.2:1", found("b.test", &["http/1.1"])), "any");
}

#[test]
fn ports_come_before_addresses_and_the_longest_prefix_wins() {
    let chains: Chains = &[
        ("port", |it| it.destination_port = Some(8443)),
        ("wide", |it| it.destination_ranges = vec![range("10.0.0.0", 8)]),
        ("narrow", |it| it.destination_ranges = vec![range("10.1.0.0", 16), range("::1", 128)]),
    ];
    let at = |local: &str| facts(local, "10.0.0.2:1", Found::default());
    check(chains, &at("10.1.0.1:8443"), "port");
    check(chains, &at("10.1.0.1:80"), "narrow");
    check(chains, &at("10.2.0.1:80"), "wide");
    check(chains, &at("[::ffff:10.2.0.1]:80"), "wide");
    check(chains, &at("[::1]:80"), "narrow");
    check(chains, &at("192.0.2.1:80"), "default");
}

#[test]
fn the_client_decides_last() {
    let chains: Chains = &[
        ("here", |it| it.source_type = SourceType::SameIpOrLoopback),
        ("office", |it| it.source_ranges = vec![range("192.0.2.0", 24)]),
        ("port", |it| {
            it.source_ranges = vec![range("192.0.2.0", 24)];
            it.source_ports = vec![7, 8];
        }),
        ("outside", |it| it.source_type = SourceType::External),
    ];
    let from = |remote: &str| facts("10.0.0.1:80", remote, Found::default());
    check(chains, &from("127.0.0.1:1"), "here");
    check(chains, &from("10.0.0.1:1"), "here");
    // External has a chain, so those without a source type are not asked.
    check(chains, &from("192.0.2.9:8"), "outside");
    let chains: Chains = &[
        ("office", |it| it.source_ranges = vec![range("192.0.2.0", 24)]),
        ("port", |it| {
            it.source_ranges = vec![range("192.0.2.0", 24)];
            it.source_ports = vec![7, 8];
        }),
    ];
    check(chains, &from("192.0.2.9:8"), "port");
    check(chains, &from("192.0.2.9:9"), "office");
    check(chains, &from("198.51.100.1:7"), "default");
    let direct: Chains = &[("direct", |it| it.direct_source_ranges = vec![range("192.0.2.0", 24)])];
    let mut behind_proxy = from("198.51.100.1:7");
    behind_proxy.direct_remote = Address::Ip("192.0.2.1:1".parse().unwrap());
    check(direct, &behind_proxy, "direct");
    check(direct, &from("198.51.100.1:7"), "default");
}

#[test]
fn protocols_match_in_the_clients_order() {
    let chains: Chains = &[
        ("tls", |it| it.transport_protocol = Some("tls".into())),
        ("plain", |it| it.transport_protocol = Some("raw_buffer".into())),
        ("h2", |it| {
            it.transport_protocol = Some("tls".into());
            it.application_protocols = vec!["h2".into()];
        }),
        ("h1", |it| {
            it.transport_protocol = Some("tls".into());
            it.application_protocols = vec!["http/1.1".into()];
        }),
    ];
    let with = |found: Found| facts("10.0.0.1:80", "10.0.0.2:1", found);
    check(chains, &with(found("", &["x", "http/1.1", "h2"])), "h1");
    check(chains, &with(found("", &["h2", "http/1.1"])), "h2");
    check(chains, &with(found("", &["x"])), "tls");
    check(chains, &with(Found::default()), "plain");
    let sockets = ConnectionFacts {
        local: Address::Pipe(std::path::Path::new("/a").into()),
        remote: Address::Pipe(std::path::Path::new("/a").into()),
        direct_remote: Address::Pipe(std::path::Path::new("/a").into()),
        found: Found::default(),
    };
    check(&[("port", |it| it.destination_port = Some(1))], &sockets, "default");
    check(&[("here", |it| it.source_type = SourceType::SameIpOrLoopback)], &sockets, "here");
}

#[test]
fn chains_with_the_same_rules_are_named() {
    let twice: Chains =
        &[("a", |it| it.source_ports = vec![1, 1]), ("b", |_| {}), ("c", |it| it.source_ports = vec![2, 1])];
    assert_eq!(matcher(twice, false).unwrap_err(), SameRules { first: ChainIndex(0), second: ChainIndex(2) });
    assert_eq!(matcher(&[], true).unwrap().only(), Some(ChainIndex(0)));
    assert_eq!(matcher(&[("a", |_| {})], true).unwrap().only(), Some(ChainIndex(0)));
    assert_eq!(matcher(&[("a", |it| it.source_ports = vec![1])], true).unwrap().only(), None);
}
