//! `load_balancing_policy`, or `lb_policy` and its companions, become a [`Policy`].

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3::RuntimeDouble;
use envoy_types::pb::envoy::extensions::load_balancing_policies as extensions;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{Any, UInt32Value, UInt64Value};
use extensions::common::v3 as common;
use prost::Name as _;

use crate::cluster::Policy;
use crate::cluster::policy::{Algorithm, ConsistentHashing, HashFunction, LeastRequest, Maglev, RingHash};
use crate::config::parse::ParseContext;
use crate::config::parse::context::type_name;
use crate::config::reject::Refused;

fn is_original_dst(config: &proto::Cluster) -> bool {
    use proto::cluster::{ClusterDiscoveryType, DiscoveryType};
    config.cluster_discovery_type == Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32))
}

/// Envoy's bounds and defaults.
const POINT_COUNT_MIN: u64 = 1024;
const POINT_COUNT_MAX: u64 = 8 * 1024 * 1024;
const TABLE_SIZE: u64 = 65_537;
const TABLE_SIZE_MAX: u64 = 5_000_011;
const SLOW_START: &str = "slow start is not there yet in this version";

pub(super) fn parse(config: &proto::Cluster, context: &mut ParseContext) -> Result<Policy, Refused> {
    use proto::cluster::LbPolicy;
    let start = context.problems.checkpoint();
    let legacy = LbPolicy::try_from(config.lb_policy).map_err(|_| context.reject("lb_policy", "is no known policy"))?;
    let mut policy = match (&config.load_balancing_policy, legacy) {
        (Some(typed), _) => {
            refuse_companions(config, context);
            context.within("load_balancing_policy", |context| load_balancing_policy(typed, context))
        }
        (None, LbPolicy::LoadBalancingPolicyConfig) => Err(context.reject("load_balancing_policy", "is required")),
        (None, LbPolicy::ClusterProvided) if is_original_dst(config) => Ok(Policy::default()),
        (None, LbPolicy::ClusterProvided) => {
            Err(context.reject("lb_policy", "CLUSTER_PROVIDED does not go with this type of cluster"))
        }
        (None, _) if is_original_dst(config) => {
            Err(context.reject("lb_policy", "must be CLUSTER_PROVIDED in an ORIGINAL_DST cluster"))
        }
        (None, legacy) => lb_policy(config, legacy, context),
    }?;
    let threshold = config.common_lb_config.as_ref().and_then(|common| common.healthy_panic_threshold);
    let threshold = context.within("common_lb_config", |context| percent(threshold, 50, context));
    let threshold = context.runtime.integer("upstream.healthy_panic_threshold", u64::from(threshold?));
    policy.panic_threshold_percent = threshold.min(100) as u32;
    context.problems.clean_since(start).map(|()| policy)
}

/// Settings that Envoy refuses beside `load_balancing_policy`, whose policies have their own.
fn refuse_companions(config: &proto::Cluster, context: &mut ParseContext) {
    if config.lb_subset_config.is_some() {
        let _ = context.reject("lb_subset_config", "cannot stand beside `load_balancing_policy`");
    }
    let common = config.common_lb_config.as_ref();
    if common.is_some_and(|common| common.locality_config_specifier.is_some()) {
        let _ = context.reject("common_lb_config", "localities are configured in `load_balancing_policy`");
    }
    if common.is_some_and(|common| common.consistent_hashing_lb_config.is_some()) {
        let reason = "belongs into the policy in `load_balancing_policy`";
        let _ = context.reject("common_lb_config.consistent_hashing_lb_config", reason);
    }
}

fn lb_policy(
    config: &proto::Cluster,
    legacy: proto::cluster::LbPolicy,
    context: &mut ParseContext,
) -> Result<Policy, Refused> {
    use proto::cluster::common_lb_config::LocalityConfigSpecifier;
    use proto::cluster::{DiscoveryType, LbConfig, LbPolicy, ring_hash_lb_config};
    let common = config.common_lb_config.as_ref();
    let hashing = match common.and_then(|common| common.consistent_hashing_lb_config.as_ref()) {
        None => ConsistentHashing::default(),
        Some(hashing) => {
            let outer = context.problems.enter("common_lb_config");
            let strict_dns = proto::cluster::ClusterDiscoveryType::Type(DiscoveryType::StrictDns.into());
            if hashing.use_hostname_for_hashing && config.cluster_discovery_type.as_ref() != Some(&strict_dns) {
                let reason = "needs a cluster of type STRICT_DNS, or `load_balancing_policy`";
                let _ = context.reject("consistent_hashing_lb_config.use_hostname_for_hashing", reason);
            }
            let factor = context
                .within("consistent_hashing_lb_config", |context| balance_factor(hashing.hash_balance_factor, context));
            context.problems.leave(outer);
            ConsistentHashing { use_hostname: hashing.use_hostname_for_hashing, balance_factor_percent: factor? }
        }
    };
    let algorithm = match (legacy, &config.lb_config) {
        (LbPolicy::RoundRobin, Some(LbConfig::RoundRobinLbConfig(options))) => {
            refuse_slow_start("round_robin_lb_config.slow_start_config", options.slow_start_config.is_some(), context)?;
            Algorithm::RoundRobin
        }
        (LbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(options))) => {
            context.within("least_request_lb_config", |context| {
                refuse_slow_start("slow_start_config", options.slow_start_config.is_some(), context)?;
                least_request(options.choice_count, false, options.active_request_bias.as_ref(), context)
            })?
        }
        (LbPolicy::LeastRequest, _) => least_request(None, false, None, context)?,
        (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(options))) => {
            let function = match options.hash_function() {
                ring_hash_lb_config::HashFunction::XxHash => HashFunction::XxHash,
                ring_hash_lb_config::HashFunction::MurmurHash2 => HashFunction::MurmurHash2,
            };
            context.within("ring_hash_lb_config", |context| {
                ring_hash([options.minimum_ring_size, options.maximum_ring_size], function, hashing, context)
            })?
        }
        (LbPolicy::RingHash, _) => ring_hash([None, None], HashFunction::XxHash, hashing, context)?,
        (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(options))) => {
            context.within("maglev_lb_config", |context| maglev(options.table_size, hashing, context))?
        }
        (LbPolicy::Maglev, _) => maglev(None, hashing, context)?,
        (LbPolicy::Random, _) => Algorithm::Random,
        _ => Algorithm::RoundRobin,
    };
    warn_of_other_config(config, legacy, context);
    let locality = common.and_then(|common| common.locality_config_specifier.as_ref());
    Ok(Policy {
        algorithm,
        locality_weighted: matches!(locality, Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))),
        fail_traffic_on_panic: matches!(
            locality,
            Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) if zone.fail_traffic_on_panic
        ),
        ..Policy::default()
    })
}

/// A policy's options beside another policy do nothing, in Envoy too.
fn warn_of_other_config(config: &proto::Cluster, legacy: proto::cluster::LbPolicy, context: &mut ParseContext) {
    use proto::cluster::{LbConfig, LbPolicy};
    let (field, policy) = match &config.lb_config {
        None | Some(LbConfig::OriginalDstLbConfig(_)) => return,
        Some(LbConfig::RingHashLbConfig(_)) => ("ring_hash_lb_config", LbPolicy::RingHash),
        Some(LbConfig::MaglevLbConfig(_)) => ("maglev_lb_config", LbPolicy::Maglev),
        Some(LbConfig::LeastRequestLbConfig(_)) => ("least_request_lb_config", LbPolicy::LeastRequest),
        Some(LbConfig::RoundRobinLbConfig(_)) => ("round_robin_lb_config", LbPolicy::RoundRobin),
    };
    if policy != legacy {
        context.warn(field, format!("has no effect with lb_policy {}", legacy.as_str_name()));
    }
}

/// The first policy of the list that is known here counts.
fn load_balancing_policy(list: &proto::LoadBalancingPolicy, context: &mut ParseContext) -> Result<Policy, Refused> {
    let mut unknown = Vec::new();
    for (index, entry) in list.policies.iter().enumerate() {
        let Some(packed) = entry.typed_extension_config.as_ref().and_then(|typed| typed.typed_config.as_ref()) else {
            continue;
        };
        let outer = context.problems.enter_item("policies", index);
        let parsed = context.within("typed_extension_config", |context| {
            let inner = context.problems.enter("typed_config");
            let parsed = typed(packed, context);
            context.problems.leave(inner);
            parsed
        });
        context.problems.leave(outer);
        match parsed {
            Some(policy) => return policy,
            None => unknown.push(type_name(&packed.type_url)),
        }
    }
    Err(match unknown.as_slice() {
        [] => context.reject("policies", "names no policy"),
        unknown => context.reject("policies", format!("{} is not there yet in this version", unknown.join(", "))),
    })
}

/// `None` where the type is not known here.
fn typed(packed: &Any, context: &mut ParseContext) -> Option<Result<Policy, Refused>> {
    let name = type_name(&packed.type_url);
    if name == extensions::round_robin::v3::RoundRobin::full_name() {
        Some(context.unpack("", packed).and_then(|config| round_robin_typed(&config, context)))
    } else if name == extensions::least_request::v3::LeastRequest::full_name() {
        Some(context.unpack("", packed).and_then(|config| least_request_typed(&config, context)))
    } else if name == extensions::random::v3::Random::full_name() {
        let parsed = context.unpack::<extensions::random::v3::Random>("", packed);
        Some(parsed.and_then(|config| locality(Algorithm::Random, config.locality_lb_config.as_ref(), context)))
    } else if name == extensions::ring_hash::v3::RingHash::full_name() {
        Some(context.unpack("", packed).and_then(|config| ring_hash_typed(&config, context)))
    } else if name == extensions::maglev::v3::Maglev::full_name() {
        Some(context.unpack("", packed).and_then(|config| maglev_typed(&config, context)))
    } else {
        None
    }
}

fn round_robin_typed(
    config: &extensions::round_robin::v3::RoundRobin,
    context: &mut ParseContext,
) -> Result<Policy, Refused> {
    refuse_slow_start("slow_start_config", config.slow_start_config.is_some(), context)?;
    locality(Algorithm::RoundRobin, config.locality_lb_config.as_ref(), context)
}

fn least_request_typed(
    config: &extensions::least_request::v3::LeastRequest,
    context: &mut ParseContext,
) -> Result<Policy, Refused> {
    use extensions::least_request::v3::least_request::SelectionMethod;
    refuse_slow_start("slow_start_config", config.slow_start_config.is_some(), context)?;
    #[expect(deprecated, reason = "Envoy still honours it")]
    let deprecated_scan = config.enable_full_scan.is_some_and(|flag| flag.value);
    let full_scan = deprecated_scan || config.selection_method() == SelectionMethod::FullScan;
    let algorithm = least_request(config.choice_count, full_scan, config.active_request_bias.as_ref(), context)?;
    locality(algorithm, config.locality_lb_config.as_ref(), context)
}

fn ring_hash_typed(
    config: &extensions::ring_hash::v3::RingHash,
    context: &mut ParseContext,
) -> Result<Policy, Refused> {
    use extensions::ring_hash::v3::ring_hash::HashFunction as Function;
    let function = match config.hash_function() {
        Function::DefaultHash | Function::XxHash => HashFunction::XxHash,
        Function::MurmurHash2 => HashFunction::MurmurHash2,
    };
    #[expect(deprecated, reason = "Envoy still honours them where the newer message is absent")]
    let hashing = match &config.consistent_hashing_lb_config {
        Some(hashing) => consistent_hashing(hashing, context)?,
        None => ConsistentHashing {
            use_hostname: config.use_hostname_for_hashing,
            balance_factor_percent: balance_factor(config.hash_balance_factor, context)?,
        },
    };
    if matches!(config.minimum_ring_size, Some(size) if size.value == 0) {
        return Err(context.reject("minimum_ring_size", "must be at least 1"));
    }
    let algorithm = ring_hash([config.minimum_ring_size, config.maximum_ring_size], function, hashing, context)?;
    Ok(Policy { algorithm, locality_weighted: config.locality_weighted_lb_config.is_some(), ..Policy::default() })
}

fn maglev_typed(config: &extensions::maglev::v3::Maglev, context: &mut ParseContext) -> Result<Policy, Refused> {
    let hashing = match &config.consistent_hashing_lb_config {
        Some(hashing) => consistent_hashing(hashing, context)?,
        None => ConsistentHashing::default(),
    };
    let algorithm = maglev(config.table_size, hashing, context)?;
    Ok(Policy { algorithm, locality_weighted: config.locality_weighted_lb_config.is_some(), ..Policy::default() })
}

fn consistent_hashing(
    config: &common::ConsistentHashingLbConfig,
    context: &mut ParseContext,
) -> Result<ConsistentHashing, Refused> {
    context.within("consistent_hashing_lb_config", |context| {
        if !config.hash_policy.is_empty() {
            return Err(context.reject("hash_policy", "is not there yet in this version; routes have one"));
        }
        Ok(ConsistentHashing {
            use_hostname: config.use_hostname_for_hashing,
            balance_factor_percent: balance_factor(config.hash_balance_factor, context)?,
        })
    })
}

fn locality(
    algorithm: Algorithm,
    config: Option<&common::LocalityLbConfig>,
    context: &mut ParseContext,
) -> Result<Policy, Refused> {
    use common::locality_lb_config::LocalityConfigSpecifier;
    let policy = Policy { algorithm, ..Policy::default() };
    match config.map(|config| config.locality_config_specifier.as_ref()) {
        None => Ok(policy),
        Some(Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))) => {
            Ok(Policy { locality_weighted: true, ..policy })
        }
        // Without a local cluster, zones make no difference; see `cluster_manager.local_cluster_name`.
        Some(Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone))) => {
            Ok(Policy { fail_traffic_on_panic: zone.fail_traffic_on_panic, ..policy })
        }
        Some(None) => Err(context.reject("locality_lb_config", "names no way to treat localities")),
    }
}

fn refuse_slow_start(field: &str, present: bool, context: &mut ParseContext) -> Result<(), Refused> {
    if present { Err(context.reject(field, SLOW_START)) } else { Ok(()) }
}

fn least_request(
    choice_count: Option<UInt32Value>,
    full_scan: bool,
    bias: Option<&RuntimeDouble>,
    context: &mut ParseContext,
) -> Result<Algorithm, Refused> {
    let choice_count = choice_count.map_or(2, |count| count.value);
    if choice_count < 2 {
        return Err(context.reject("choice_count", "must be at least 2"));
    }
    let configured = bias.map_or(1.0, |bias| context.runtime.number(&bias.runtime_key, bias.default_value));
    // Envoy takes 1.0 for a negative bias or none at all.
    let active_request_bias = if configured >= 0.0 { configured } else { 1.0 };
    let choice_count = (!full_scan).then_some(choice_count);
    Ok(Algorithm::LeastRequest(LeastRequest { choice_count, active_request_bias }))
}

fn ring_hash(
    [min, max]: [Option<UInt64Value>; 2],
    function: HashFunction,
    hashing: ConsistentHashing,
    context: &mut ParseContext,
) -> Result<Algorithm, Refused> {
    let point_count_min = min.map_or(POINT_COUNT_MIN, |size| size.value);
    let point_count_max = max.map_or(POINT_COUNT_MAX, |size| size.value);
    for (field, size) in [("minimum_ring_size", point_count_min), ("maximum_ring_size", point_count_max)] {
        if size > POINT_COUNT_MAX {
            return Err(context.reject(field, format!("must be at most {POINT_COUNT_MAX}")));
        }
    }
    if point_count_min > point_count_max {
        let reason = format!("is {point_count_min}, above the maximum of {point_count_max}");
        return Err(context.reject("minimum_ring_size", reason));
    }
    Ok(Algorithm::RingHash(RingHash { point_count_min, point_count_max, function, hashing }))
}

fn maglev(
    table_size: Option<UInt64Value>,
    hashing: ConsistentHashing,
    context: &mut ParseContext,
) -> Result<Algorithm, Refused> {
    let table_size = table_size.map_or(TABLE_SIZE, |size| size.value);
    match u32::try_from(table_size) {
        Ok(size) if table_size <= TABLE_SIZE_MAX && is_prime(size) => {
            Ok(Algorithm::Maglev(Maglev { table_size: size, hashing }))
        }
        _ => Err(context.reject("table_size", format!("must be a prime of at most {TABLE_SIZE_MAX}"))),
    }
}

fn balance_factor(factor: Option<UInt32Value>, context: &mut ParseContext) -> Result<Option<u32>, Refused> {
    match factor {
        Some(factor) if factor.value < 100 => Err(context.reject("hash_balance_factor", "must be at least 100")),
        factor => Ok(factor.map(|factor| factor.value)),
    }
}

/// A percentage rounded to a whole number, as Envoy rounds it.
fn percent(value: Option<Percent>, default: u32, context: &mut ParseContext) -> Result<u32, Refused> {
    match value {
        None => Ok(default),
        Some(percent) if (0.0..=100.0).contains(&percent.value) => Ok(percent.value.round() as u32),
        Some(_) => Err(context.reject("healthy_panic_threshold", "must be from 0 to 100")),
    }
}

fn is_prime(number: u32) -> bool {
    let factors = (2..).take_while(|factor| u64::from(*factor) * u64::from(*factor) <= u64::from(number));
    number >= 2 && factors.into_iter().all(|factor: u32| !number.is_multiple_of(factor))
}
