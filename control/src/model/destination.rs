//! DestinationRules: which of them a client meets for a host, and the merged policy.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::api::{DestinationRule, MeshConfig, TrafficPolicy};
use super::config::{Config, Origin, Visibility};
use super::host;
use super::mesh::MeshOptions;
use super::proxy::Proxy;
use super::service::Service;

/// Rules of one namespace for one host, merged: the first traffic policy wins, subsets are appended.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) spec: DestinationRule,
    visibility: Visibility,
    pub(crate) origin: Arc<Origin>,
}

#[derive(Debug, Clone, Default)]
struct OfNamespace {
    exact: HashMap<String, Vec<Arc<Rule>>>,
    /// Longest first.
    wildcard: Vec<(String, Vec<Arc<Rule>>)>,
}

/// All rules by namespace.
#[derive(Debug, Clone, Default)]
pub(crate) struct DestinationRules {
    namespaces: HashMap<String, OfNamespace>,
    root: String,
}

impl DestinationRules {
    pub(super) fn merge(rules: Vec<Config<DestinationRule>>, config: &MeshConfig, options: &MeshOptions) -> Self {
        let mut merged: BTreeMap<(String, String), Vec<Rule>> = BTreeMap::new();
        for rule in rules {
            let host = host::resolve_short_name(&rule.spec.host, &rule.namespace, &options.short_name_suffix);
            let visibility =
                Visibility::parse(&rule.spec.export_to, &config.default_destination_rule_export_to, &rule.namespace);
            let list = merged.entry((rule.namespace.clone(), host.clone())).or_default();
            match list.iter_mut().find(|known| {
                known.spec.workload_selector == rule.spec.workload_selector && known.visibility == visibility
            }) {
                Some(known) => {
                    if known.spec.traffic_policy.is_none() {
                        known.spec.traffic_policy = rule.spec.traffic_policy;
                    }
                    for subset in rule.spec.subsets {
                        if !known.spec.subsets.iter().any(|other| other.name == subset.name) {
                            known.spec.subsets.push(subset);
                        }
                    }
                }
                None => list.push(Rule { spec: rule.spec, visibility, origin: rule.origin }),
            }
        }
        let mut namespaces: HashMap<String, OfNamespace> = HashMap::new();
        for ((namespace, host), rules) in merged {
            let rules = rules.into_iter().map(Arc::new).collect();
            let of = namespaces.entry(namespace).or_default();
            if host.starts_with('*') {
                of.wildcard.push((host, rules));
            } else {
                of.exact.insert(host, rules);
            }
        }
        for of in namespaces.values_mut() {
            of.wildcard.sort_by(|one, other| host::by_specificity(&one.0, &other.0));
        }
        Self { namespaces, root: options.root_namespace.clone() }
    }

    /// The rule for `service` that `proxy` obeys: of its own namespace, else of the service's, else of the root namespace.
    pub(crate) fn find(&self, proxy: &Proxy, service: &Service) -> Option<&Arc<Rule>> {
        let namespaces = [proxy.namespace.as_str(), service.namespace.as_str(), self.root.as_str()];
        namespaces.iter().find_map(|namespace| self.in_namespace(namespace, proxy, &service.hostname))
    }

    fn in_namespace(&self, namespace: &str, proxy: &Proxy, hostname: &str) -> Option<&Arc<Rule>> {
        let of = self.namespaces.get(namespace)?;
        let exact = of.exact.get(hostname).into_iter().flatten();
        let wildcard =
            of.wildcard.iter().filter(|(pattern, _)| host::subset_of(hostname, pattern)).flat_map(|(_, rules)| rules);
        let mut fitting = exact.chain(wildcard).filter(|rule| rule.visibility.includes(&proxy.namespace));
        let mut without_selector = None;
        let selected = fitting.find(|rule| match &rule.spec.workload_selector {
            Some(selector) => namespace == proxy.namespace && proxy.matches(&selector.match_labels),
            None => {
                without_selector = without_selector.or(Some(*rule));
                false
            }
        });
        selected.or(without_selector)
    }

    /// True if some namespace has a rule with this subset for `hostname`.
    pub(super) fn knows_subset(&self, hostname: &str, subset: &str) -> bool {
        self.rules(hostname).any(|rule| rule.spec.subsets.iter().any(|known| known.name == subset))
    }

    /// Names of all subsets of `hostname`, whoever may use them.
    pub(super) fn subsets(&self, hostname: &str) -> BTreeSet<&str> {
        self.rules(hostname).flat_map(|rule| &rule.spec.subsets).map(|subset| subset.name.as_str()).collect()
    }

    fn rules(&self, hostname: &str) -> impl Iterator<Item = &Rule> {
        self.namespaces.values().flat_map(move |of| {
            let exact = of.exact.get(hostname).into_iter().flatten();
            let wildcard = of
                .wildcard
                .iter()
                .filter(move |(pattern, _)| host::subset_of(hostname, pattern))
                .flat_map(|(_, rules)| rules);
            exact.chain(wildcard).map(|rule| &**rule)
        })
    }
}

/// The policy for `port`: settings of the port replace the rule's, field by field.
pub(crate) fn for_port(policy: Option<&TrafficPolicy>, port: u32) -> TrafficPolicy {
    let Some(policy) = policy else { return TrafficPolicy::default() };
    let mut result = TrafficPolicy { port_level_settings: Vec::new(), ..policy.clone() };
    let found = policy
        .port_level_settings
        .iter()
        .find(|settings| settings.port.as_ref().is_some_and(|selector| selector.number == port));
    if let Some(settings) = found {
        // Settings of a port are complete: what they leave out is Istio's default, not the rule's.
        result.load_balancer = settings.load_balancer.clone();
        result.connection_pool = settings.connection_pool.clone();
        result.outlier_detection = settings.outlier_detection.clone();
        result.tls = settings.tls.clone();
    }
    result
}

/// `base` with what `over` sets.
pub(crate) fn overlay(base: TrafficPolicy, over: Option<&TrafficPolicy>, port: u32) -> TrafficPolicy {
    let Some(over) = over else { return base };
    let over = for_port(Some(over), port);
    TrafficPolicy {
        load_balancer: over.load_balancer.or(base.load_balancer),
        connection_pool: over.connection_pool.or(base.connection_pool),
        outlier_detection: over.outlier_detection.or(base.outlier_detection),
        tls: over.tls.or(base.tls),
        port_level_settings: Vec::new(),
    }
}
