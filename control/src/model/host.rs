//! Host names with wildcards, as Istio compares them.

use std::cmp::Ordering;

/// True if every name that `inner` stands for is one that `outer` stands for.
pub fn subset_of(inner: &str, outer: &str) -> bool {
    match (inner.strip_prefix('*'), outer.strip_prefix('*')) {
        (Some(inner), Some(outer)) => inner.len() >= outer.len() && inner.ends_with(outer),
        (Some(_), None) => false,
        (None, Some(outer)) => inner.ends_with(outer),
        (None, None) => inner == outer,
    }
}

/// True if some name is covered by both.
pub fn overlap(one: &str, other: &str) -> bool {
    subset_of(one, other) || subset_of(other, one)
}

/// Orders the more specific host first: exact names before wildcards, long wildcards before short ones.
pub fn by_specificity(one: &str, other: &str) -> Ordering {
    let rank = |host: &str| (host.starts_with('*'), usize::MAX - host.len());
    rank(one).cmp(&rank(other)).then_with(|| one.cmp(other))
}

/// `host` as a full name: one without a dot belongs to `namespace`; wildcards and names with a dot stay.
/// `suffix` is what follows the namespace, for instance `.svc.cluster.local`.
pub fn resolve_short_name(host: &str, namespace: &str, suffix: &str) -> String {
    if host.is_empty() || host.starts_with('*') || host.contains('.') || host.contains(':') || namespace.is_empty() {
        return host.to_owned();
    }
    format!("{host}.{namespace}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_what_ends_like_them() {
        for (inner, outer, wanted) in [
            ("a.example.com", "*.example.com", true),
            ("*.a.example.com", "*.example.com", true),
            ("*.example.com", "a.example.com", false),
            ("example.com", "*.example.com", false),
            ("anything", "*", true),
            ("a", "a", true),
            ("*", "*.com", false),
        ] {
            assert_eq!(subset_of(inner, outer), wanted, "{inner} in {outer}");
        }
    }

    #[test]
    fn the_more_specific_host_comes_first() {
        let mut hosts = ["*", "*.com", "b.com", "*.a.com", "a.com"];
        hosts.sort_by(|one, other| by_specificity(one, other));
        assert_eq!(hosts, ["a.com", "b.com", "*.a.com", "*.com", "*"]);
    }

    #[test]
    fn short_names_are_completed() {
        assert_eq!(resolve_short_name("web", "shop", ".svc.cluster.local"), "web.shop.svc.cluster.local");
        assert_eq!(resolve_short_name("web.com", "shop", ".svc.cluster.local"), "web.com");
        assert_eq!(resolve_short_name("*", "shop", ""), "*");
    }
}
