//! `envoy.filters.network.rbac`: which peers may connect, by address, server name and certificate.
//!
//! Rules are judged when the handshake is complete and before an endpoint is connected. A rule that could not be understood never
//! takes part: the configuration that holds it is refused.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::rbac::v3 as proto;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network;
use proto::permission::Rule;
use proto::principal::Identifier;

use super::Admission;
use crate::config::cidr::Cidr;
use crate::config::parse::{ParseContext, cidr};
use crate::config::reject::Refused;
use crate::downstream::ConnectionInfo;
use crate::route::pattern::RegexMemory;
use crate::route::string_match::StringMatcher;
use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::{RbacShadowStat, RbacStat};

/// The filter, compiled. Source: envoy.extensions.filters.network.rbac.v3.RBAC.
pub struct NetworkRbac {
    rules: Option<Rules>,
    /// Judged and counted, and without consequence.
    shadow_rules: Option<Rules>,
    /// A connection that is refused is closed after this long.
    delay: Duration,
    /// `<stat_prefix>rbac.`
    stats: Arc<Stats<RbacStat>>,
    /// The same, with the prefix of the shadow rules.
    shadow_stats: Arc<Stats<RbacShadowStat>>,
}

/// Policies and what they mean together. Source: envoy.config.rbac.v3.RBAC.
struct Rules {
    action: Action,
    policies: Vec<Policy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// Only what some policy matches may pass.
    Allow,
    /// What some policy matches may not pass.
    Deny,
    /// Everything passes.
    Log,
}

/// One permission and one principal must match.
struct Policy {
    permissions: Vec<Condition>,
    principals: Vec<Condition>,
}

/// What is asked of a connection.
#[derive(Debug)]
enum Condition {
    Any,
    All(Vec<Condition>),
    Some(Vec<Condition>),
    Not(Box<Condition>),
    DestinationIp(Cidr),
    /// From the first to before the second.
    DestinationPort(u32, u32),
    ServerName(StringMatcher),
    /// The other end of the socket.
    DirectRemoteIp(Cidr),
    /// The client.
    RemoteIp(Cidr),
    /// A certificate that was checked, with this name where one is given.
    Authenticated(Option<StringMatcher>),
}

impl NetworkRbac {
    /// Compiles `config`.
    pub fn parse(config: &network::Rbac, context: &mut ParseContext) -> Result<Self, Refused> {
        let start = context.problems.checkpoint();
        let prefix = context.non_empty("stat_prefix", &config.stat_prefix);
        let rules = optional("rules", config.rules.as_ref(), context);
        let shadow_rules = optional("shadow_rules", config.shadow_rules.as_ref(), context);
        let delay = context.duration("delay_deny", &config.delay_deny);
        context.problems.clean_since(start)?;
        let prefix = prefix?;
        // Source: Envoy adds the dot where the prefix has none.
        let dot = if prefix.ends_with('.') { "" } else { "." };
        let shadow = &config.shadow_rules_stat_prefix;
        let shadow_dot = if shadow.is_empty() || shadow.ends_with('.') { "" } else { "." };
        Ok(Self {
            rules: rules?,
            shadow_rules: shadow_rules?,
            delay: delay?.unwrap_or_default(),
            stats: context.registry.group(&format!("{prefix}{dot}rbac.")),
            shadow_stats: context.registry.group(&format!("{prefix}{dot}rbac.{shadow}{shadow_dot}")),
        })
    }

    pub(super) fn admit(&self, core: Core, info: &ConnectionInfo) -> Admission {
        if let Some(rules) = &self.shadow_rules {
            let stat = if rules.allow(info) { RbacShadowStat::ShadowAllowed } else { RbacShadowStat::ShadowDenied };
            self.shadow_stats.increment(core, stat);
        }
        let Some(rules) = &self.rules else { return Admission::Pass };
        if rules.allow(info) {
            self.stats.increment(core, RbacStat::Allowed);
            return Admission::Pass;
        }
        self.stats.increment(core, RbacStat::Denied);
        tracing::debug!(target: "connection", "connection {} of {} is refused by rbac", info.id, info.remote);
        Admission::End(self.delay)
    }
}

impl Rules {
    fn allow(&self, info: &ConnectionInfo) -> bool {
        let matches = |policy: &Policy| {
            let mut memory = RegexMemory::default();
            let mut any = |conditions: &[Condition]| conditions.iter().any(|it| it.matches(info, &mut memory));
            any(&policy.permissions) && any(&policy.principals)
        };
        match self.action {
            Action::Allow => self.policies.iter().any(matches),
            Action::Deny => !self.policies.iter().any(matches),
            Action::Log => true,
        }
    }
}

impl Condition {
    fn matches(&self, info: &ConnectionInfo, memory: &mut RegexMemory) -> bool {
        let within = |range: &Cidr, address: &crate::config::address::Address| {
            address.ip().is_some_and(|address| range.contains(address.ip().to_canonical()))
        };
        match self {
            Self::Any => true,
            Self::All(conditions) => conditions.iter().all(|condition| condition.matches(info, memory)),
            Self::Some(conditions) => conditions.iter().any(|condition| condition.matches(info, memory)),
            Self::Not(condition) => !condition.matches(info, memory),
            Self::DestinationIp(range) => within(range, &info.local),
            Self::DestinationPort(from, before) => {
                let port = info.local.ip().map(|local| u32::from(local.port()));
                port.is_some_and(|port| (*from..*before).contains(&port))
            }
            // Without a name the empty text is judged, as in Envoy.
            Self::ServerName(matcher) => matcher.matches(info.server_name().unwrap_or_default().as_bytes(), memory),
            Self::DirectRemoteIp(range) => within(range, &info.direct_remote),
            Self::RemoteIp(range) => within(range, &info.remote),
            Self::Authenticated(name) => {
                let Some(peer) = info.tls.as_ref().filter(|tls| tls.is_verified).and_then(|tls| tls.peer.as_ref())
                else {
                    return false;
                };
                let Some(matcher) = name else { return true };
                let mut test = |name: &str| matcher.matches(name.as_bytes(), memory);
                // The subject counts where the certificate has no other name.
                match (peer.uris.is_empty(), peer.dns_names.is_empty()) {
                    (true, true) => test(&peer.subject),
                    _ => peer.uris.iter().chain(&peer.dns_names).any(|name| test(name)),
                }
            }
        }
    }
}

fn optional(field: &str, config: Option<&proto::Rbac>, context: &mut ParseContext) -> Result<Option<Rules>, Refused> {
    let Some(config) = config else { return Ok(None) };
    context.within(field, |context| rules(config, context)).map(Some)
}

fn rules(config: &proto::Rbac, context: &mut ParseContext) -> Result<Rules, Refused> {
    let start = context.problems.checkpoint();
    let mut policies = Vec::with_capacity(config.policies.len());
    let mut names: Vec<&String> = config.policies.keys().collect();
    names.sort();
    for name in names {
        let Some(policy) = config.policies.get(name) else { continue };
        let parsed = context.within_key("policies", name, |context| {
            for (field, is_empty) in
                [("permissions", policy.permissions.is_empty()), ("principals", policy.principals.is_empty())]
            {
                if is_empty {
                    let _ = context.reject(field, "must hold at least one");
                }
            }
            let permissions = context.each("permissions", &policy.permissions, permission);
            let principals = context.each("principals", &policy.principals, principal);
            Ok::<_, Refused>(Policy { permissions: permissions?, principals: principals? })
        });
        policies.extend(parsed);
    }
    context.problems.clean_since(start)?;
    let action = match config.action() {
        proto::rbac::Action::Allow => Action::Allow,
        proto::rbac::Action::Deny => Action::Deny,
        proto::rbac::Action::Log => Action::Log,
    };
    Ok(Rules { action, policies })
}

fn permission(config: &proto::Permission, context: &mut ParseContext) -> Result<Condition, Refused> {
    match &config.rule {
        None => Err(context.reject("", "needs a rule")),
        Some(Rule::Any(true)) => Ok(Condition::Any),
        Some(Rule::Any(false)) => Err(context.reject("any", "must be true")),
        Some(Rule::AndRules(set)) => {
            context.within("and_rules", |context| context.each("rules", &set.rules, permission)).map(Condition::All)
        }
        Some(Rule::OrRules(set)) => {
            context.within("or_rules", |context| context.each("rules", &set.rules, permission)).map(Condition::Some)
        }
        Some(Rule::NotRule(inner)) => {
            context.within("not_rule", |context| permission(inner, context)).map(|it| Condition::Not(Box::new(it)))
        }
        Some(Rule::DestinationIp(range)) => {
            context.within("destination_ip", |context| cidr::parse(range, context)).map(Condition::DestinationIp)
        }
        Some(Rule::DestinationPort(port)) if *port <= 65_535 => Ok(Condition::DestinationPort(*port, port + 1)),
        Some(Rule::DestinationPort(_)) => Err(context.reject("destination_port", "must be at most 65535")),
        Some(Rule::DestinationPortRange(range)) => {
            match (u32::try_from(range.start).ok(), u32::try_from(range.end).ok()) {
                (Some(start), Some(end)) if start < end && end <= 65_536 => Ok(Condition::DestinationPort(start, end)),
                _ => Err(context.reject("destination_port_range", "must be a range of ports, its end left out")),
            }
        }
        Some(Rule::RequestedServerName(matcher)) => context
            .within("requested_server_name", |context| StringMatcher::parse(matcher, context))
            .map(Condition::ServerName),
        Some(Rule::Header(_) | Rule::UrlPath(_) | Rule::UriTemplate(_)) => Err(context.reject("", NO_REQUEST)),
        Some(_) => Err(context.reject("", "a rule of this kind is not there yet in this version")),
    }
}

fn principal(config: &proto::Principal, context: &mut ParseContext) -> Result<Condition, Refused> {
    let range =
        |field: &str, range, context: &mut ParseContext| context.within(field, |context| cidr::parse(range, context));
    match &config.identifier {
        None => Err(context.reject("", "needs an identifier")),
        Some(Identifier::Any(true)) => Ok(Condition::Any),
        Some(Identifier::Any(false)) => Err(context.reject("any", "must be true")),
        Some(Identifier::AndIds(set)) => {
            context.within("and_ids", |context| context.each("ids", &set.ids, principal)).map(Condition::All)
        }
        Some(Identifier::OrIds(set)) => {
            context.within("or_ids", |context| context.each("ids", &set.ids, principal)).map(Condition::Some)
        }
        Some(Identifier::NotId(inner)) => {
            context.within("not_id", |context| principal(inner, context)).map(|it| Condition::Not(Box::new(it)))
        }
        Some(Identifier::Authenticated(authenticated)) => context.within("authenticated", |context| {
            let name = authenticated.principal_name.as_ref();
            let matcher =
                name.map(|name| context.within("principal_name", |context| StringMatcher::parse(name, context)));
            Ok(Condition::Authenticated(matcher.transpose()?))
        }),
        #[expect(deprecated, reason = "Envoy still honours it")]
        Some(Identifier::SourceIp(source)) => range("source_ip", source, context).map(Condition::RemoteIp),
        Some(Identifier::DirectRemoteIp(source)) => {
            range("direct_remote_ip", source, context).map(Condition::DirectRemoteIp)
        }
        Some(Identifier::RemoteIp(source)) => range("remote_ip", source, context).map(Condition::RemoteIp),
        Some(Identifier::Header(_) | Identifier::UrlPath(_)) => Err(context.reject("", NO_REQUEST)),
        Some(_) => Err(context.reject("", "an identifier of this kind is not there yet in this version")),
    }
}

const NO_REQUEST: &str = "a network filter sees no request; this belongs into the HTTP filter";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::address::Address;
    use crate::tls::Identity;
    use crate::transport::TlsInfo;

    fn info(uri: Option<&str>, verified: bool) -> ConnectionInfo {
        let address = |text: &str| Address::Ip(text.parse().unwrap());
        let peer = uri.map(|uri| Arc::new(Identity { uris: vec![uri.into()], ..Identity::default() }));
        let tls = TlsInfo { peer, is_verified: verified, server_name: Some("a.test".into()), ..TlsInfo::default() };
        ConnectionInfo {
            tls: Some(Arc::new(tls)),
            ..ConnectionInfo::new(address("10.1.2.3:4"), address("127.0.0.1:80"))
        }
    }

    #[test]
    fn conditions_look_at_addresses_names_and_certificates() {
        let range = |text: &str, bits| Cidr::new(text.parse().unwrap(), bits).unwrap();
        let spiffe = || Some(StringMatcher::exact("spiffe://mesh/a"));
        let known = info(Some("spiffe://mesh/a"), true);
        let unproven = info(Some("spiffe://mesh/a"), false);
        let other = info(Some("spiffe://mesh/ab"), true);
        let none = info(None, false);
        let check = |condition: Condition, expect: [bool; 4]| {
            let mut memory = RegexMemory::default();
            let seen = [&known, &unproven, &other, &none].map(|info| condition.matches(info, &mut memory));
            assert_eq!(seen, expect, "{condition:?}");
        };
        check(Condition::Any, [true; 4]);
        check(Condition::All(Vec::new()), [true; 4]);
        check(Condition::Some(Vec::new()), [false; 4]);
        check(Condition::Not(Box::new(Condition::Any)), [false; 4]);
        check(Condition::Authenticated(None), [true, false, true, false]);
        check(Condition::Authenticated(spiffe()), [true, false, false, false]);
        check(Condition::Not(Box::new(Condition::Authenticated(spiffe()))), [false, true, true, true]);
        check(Condition::DestinationPort(80, 81), [true; 4]);
        check(Condition::DestinationPort(81, 90), [false; 4]);
        check(Condition::DestinationIp(range("127.0.0.0", 8)), [true; 4]);
        check(Condition::RemoteIp(range("10.1.0.0", 16)), [true; 4]);
        check(Condition::DirectRemoteIp(range("10.2.0.0", 16)), [false; 4]);
        check(Condition::ServerName(StringMatcher::suffix(".test")), [true; 4]);
        check(Condition::ServerName(StringMatcher::exact("b.test")), [false; 4]);
    }

    #[test]
    fn an_action_says_what_a_match_means() {
        let rules = |action, principals| Rules {
            action,
            policies: vec![Policy { permissions: vec![Condition::Any], principals }],
        };
        let known = info(Some("spiffe://mesh/a"), true);
        let yes = || vec![Condition::Authenticated(None)];
        let no = || vec![Condition::DestinationPort(1, 2)];
        assert!(rules(Action::Allow, yes()).allow(&known));
        assert!(!rules(Action::Allow, no()).allow(&known));
        assert!(!rules(Action::Deny, yes()).allow(&known));
        assert!(rules(Action::Deny, no()).allow(&known));
        assert!(rules(Action::Log, no()).allow(&known));
        assert!(!Rules { action: Action::Allow, policies: Vec::new() }.allow(&known));
    }
}
