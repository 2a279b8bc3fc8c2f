use super::*;
use crate::cluster::HostHealth;

fn follower(clusters: &[&str], path: &std::path::Path) -> Follower {
    let mut context = ParseContext::new(2);
    let parsed = clusters.iter().zip(0..).map(|(name, index)| {
        let source = format!("{{path_config_source: {{path: {}}}, initial_fetch_timeout: 3s}}", path.display());
        let yaml = format!("{{name: {name}, type: EDS, eds_cluster_config: {{eds_config: {source}}}}}");
        let config = torus_xds::from_yaml(&yaml).unwrap();
        let cluster = Cluster::parse(&config, &mut context);
        (ClusterIndex(index), Arc::new(cluster.unwrap_or_else(|_| panic!("{:?}", context.problems))))
    });
    Follower::new(path.to_owned(), parsed.collect(), Core(1), 2, Instant::now())
}

/// `cluster: address...`, each address as `port[!health]`, as the file's text.
fn file(assignments: &[(&str, &[&str])]) -> Result<Vec<u8>, String> {
    let mut text = "version_info: '7'\nresources:\n".to_owned();
    for (cluster, endpoints) in assignments {
        text += "- '@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n";
        text += &format!("  cluster_name: {cluster}\n  endpoints:\n  - lb_endpoints:\n");
        for endpoint in *endpoints {
            let (port, health) = endpoint.split_once('!').unwrap_or((endpoint, "UNKNOWN"));
            text += &format!(
                "    - {{health_status: {health}, endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}\n"
            );
        }
    }
    Ok(text.into_bytes())
}

/// Ports of the clusters that changed.
fn ports(changed: &[(ClusterIndex, Cluster)]) -> Vec<(u32, Vec<u16>)> {
    let port = |host: &crate::cluster::Host| host.address.ip().unwrap().port();
    changed.iter().map(|(index, cluster)| (index.0, cluster.endpoints.hosts.iter().map(port).collect())).collect()
}

#[test]
fn endpoints_follow_the_file_and_keep_what_stays() {
    let place = tempfile::NamedTempFile::new().unwrap();
    let mut follower = follower(&["a", "b"], place.path());
    let now = Instant::now();
    assert_eq!(follower.take_warmed(now), 0);
    let changed = follower.on_content(file(&[("a", &["1", "2", "1"]), ("b", &["3"]), ("c", &["4"])]), now);
    assert_eq!(ports(&changed), [(0, vec![1, 2]), (1, vec![3])], "equal addresses are one host");
    assert_eq!((follower.take_warmed(now), follower.take_warmed(now)), (2, 0));
    let before = changed[0].1.endpoints.hosts.clone();
    let changed = follower.on_content(file(&[("a", &["2!DEGRADED", "5"]), ("b", &["3"])]), now);
    assert_eq!(ports(&changed), [(0, vec![2, 5])], "b is as it was");
    let after = &changed[0].1.endpoints.hosts;
    assert!(after[0].is_same(&before[1]) && after[0].health == HostHealth::Degraded);
    assert!(!after[1].is_same(&before[0]));
    // Absence removes nothing; an empty assignment removes all.
    assert!(follower.on_content(file(&[("b", &["3"])]), now).is_empty());
    let none = b"resources: [{'@type': x/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: a}]";
    assert_eq!(ports(&follower.on_content(Ok(none.to_vec()), now)), [(0, vec![])]);
    let stats = &follower.clusters[0].cluster.stats;
    let counts = [
        (ClusterStat::UpdateAttempt, 4),
        (ClusterStat::UpdateSuccess, 4),
        (ClusterStat::UpdateEmpty, 1),
        (ClusterStat::MembershipChange, 3),
    ];
    for (stat, count) in counts {
        assert_eq!(stats.total(stat), count, "{stat:?}");
    }
}

#[test]
fn what_cannot_be_used_leaves_the_last_good_and_names_the_reason() {
    let place = tempfile::NamedTempFile::new().unwrap();
    let path = place.path().display().to_string();
    let refused = |content: &str, whole: bool, reason: &str| {
        let mut follower = follower(&["a", "b"], place.path());
        let now = Instant::now();
        follower.on_content(file(&[("a", &["1"]), ("b", &["2"])]), now);
        let changed = follower.on_content(Ok(content.as_bytes().to_vec()), now);
        assert!(changed.iter().all(|(index, _)| *index == ClusterIndex(1)), "{content}");
        let stats = &follower.clusters[0].cluster.stats;
        let stat = if whole { ClusterStat::UpdateFailure } else { ClusterStat::UpdateRejected };
        assert_eq!(stats.total(stat), 1, "{content}");
        assert_eq!(follower.clusters[0].cluster.endpoints.hosts.len(), 1, "{content}");
        let found = match read(place.path(), content.as_bytes().to_vec()) {
            Err(found) => found,
            Ok(contents) => match follower.clusters[0].take(&contents, &mut follower.context, now) {
                Err(found) => found,
                Ok(_) => "accepted".to_owned(),
            },
        };
        assert_eq!(found.replace(&path, "F"), reason, "{content}");
    };
    let one = |rest: &str| {
        format!("resources: [{{'@type': x/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: a, {rest}}}]")
    };
    refused("resources: [", true, &read(place.path(), b"resources: [".to_vec()).err().unwrap().replace(&path, "F"));
    refused(
        "resorces: []",
        true,
        "F:1:1: unknown field `resorces` of envoy.service.discovery.v3.DiscoveryResponse; did you mean `resources`?",
    );
    refused(
        "resources: [{'@type': x/envoy.config.core.v3.Node, id: a}]",
        true,
        "F: resources[0]: has type `envoy.config.core.v3.Node` where `envoy.config.endpoint.v3.ClusterLoadAssignment` is needed",
    );
    refused(
        &one("endpoints: [{lb_endpoints: [{endpoint: {}}]}]"),
        false,
        "endpoints[0].lb_endpoints[0].endpoint.address: is required",
    );
    refused(&one("named_endpoints: {x: {}}"), false, "named_endpoints: named endpoints: not there yet in this version");
    let twice = "resources:\n- &a {'@type': x/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: a}\n- {'@type': x/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: a}";
    refused(twice, false, "a: is there twice");
}

#[test]
fn warming_ends_with_the_timeout_or_a_failure() {
    let place = tempfile::NamedTempFile::new().unwrap();
    let now = Instant::now();
    let mut waits = follower(&["a"], place.path());
    assert_eq!(waits.take_warmed(now + Duration::from_secs(2)), 0);
    assert_eq!(waits.take_warmed(now + Duration::from_secs(4)), 1);
    let mut fails = follower(&["a"], place.path());
    fails.on_content(Err("F: cannot be read".to_owned()), now);
    assert_eq!(fails.take_warmed(now), 1);
}
