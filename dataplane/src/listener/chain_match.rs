//! Which filter chain takes a connection: nine steps, each of which keeps the most specific match and never goes back.
//!
//! Chains are compiled into a tree of the steps that any of them has a rule for. A step that finds nothing more specific falls to
//! the chains without a rule there; where there are none the connection matches nothing, although a chain that an earlier step left
//! behind might have taken it (Source: envoy.config.listener.v3.FilterChainMatch).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::config::address::Address;
use crate::config::cidr::Cidr;

/// The place of a filter chain in its listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainIndex(pub u32);

/// When a chain takes a connection; what is empty matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainCriteria {
    /// Our port.
    pub destination_port: Option<u16>,
    /// Our address.
    pub destination_ranges: Vec<Cidr>,
    /// Server names in lower case; `.example.com` stands for `*.example.com`.
    pub server_names: Vec<Box<str>>,
    /// `tls` or `raw_buffer`.
    pub transport_protocol: Option<Box<str>>,
    /// Application protocols, from ALPN or from the first bytes.
    pub application_protocols: Vec<Box<str>>,
    /// The socket's other end.
    pub direct_source_ranges: Vec<Cidr>,
    /// Whether the client is on this machine.
    pub source_type: SourceType,
    /// The client's address.
    pub source_ranges: Vec<Cidr>,
    /// The client's port.
    pub source_ports: Vec<u16>,
}

/// Whether the client is on this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceType {
    /// It does not matter.
    #[default]
    Any,
    /// A loopback address, our own address, or a unix socket.
    SameIpOrLoopback,
    /// Anything else.
    External,
}

/// What is known of a connection when its chain is chosen.
#[derive(Clone, Debug)]
pub struct ConnectionFacts {
    /// Our end.
    pub local: Address,
    /// The client.
    pub remote: Address,
    /// The other end of the socket.
    pub direct_remote: Address,
    /// What a listener filter found in the first bytes.
    pub found: Found,
}

/// What listener filters found in a connection's first bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The connection begins with a TLS handshake.
    pub is_tls: bool,
    /// The server name that was asked for, in lower case (RFC 6066 §3).
    pub server_name: Option<Arc<str>>,
    /// Application protocols that the client offers (RFC 7301), the preferred one first.
    pub application_protocols: Vec<Box<[u8]>>,
}

/// Two chains with the same rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SameRules {
    /// The one that comes first.
    pub first: ChainIndex,
    /// The one that could never be reached.
    pub second: ChainIndex,
}

/// Finds the chain of a connection.
#[derive(Debug)]
pub struct ChainMatcher {
    root: Option<Node>,
    /// Takes what no other chain takes.
    default: Option<ChainIndex>,
}

/// What is left to decide.
#[derive(Debug)]
enum Node {
    Chain(ChainIndex),
    Step(Box<StepNode>),
}

/// One step: rules that some chain has, and what goes on without any.
#[derive(Debug)]
struct StepNode {
    rules: Rules,
    otherwise: Option<Node>,
}

#[derive(Debug)]
enum Rules {
    DestinationPort(HashMap<u16, Node>),
    Ranges(RangeOf, Vec<(Cidr, Node)>),
    ServerName(HashMap<Box<str>, Node>),
    TransportProtocol(HashMap<Box<str>, Node>),
    ApplicationProtocol(HashMap<Box<str>, Node>),
    SourceType(BTreeMap<SourceType, Node>),
    SourcePort(HashMap<u16, Node>),
}

/// Whose address a step looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RangeOf {
    Destination,
    DirectSource,
    Source,
}

/// The steps in the order of the protocol's definition.
#[derive(Clone, Copy, Debug)]
enum Step {
    DestinationPort,
    Ranges(RangeOf),
    ServerName,
    TransportProtocol,
    ApplicationProtocol,
    SourceType,
    SourcePort,
}

const STEPS: [Step; 9] = [
    Step::DestinationPort,
    Step::Ranges(RangeOf::Destination),
    Step::ServerName,
    Step::TransportProtocol,
    Step::ApplicationProtocol,
    Step::Ranges(RangeOf::DirectSource),
    Step::SourceType,
    Step::Ranges(RangeOf::Source),
    Step::SourcePort,
];

type Candidate<'a> = (ChainIndex, &'a ChainCriteria);

impl ChainMatcher {
    /// Compiles the rules of each chain; `default` takes what is left.
    pub fn new(chains: &[Candidate<'_>], default: Option<ChainIndex>) -> Result<Self, SameRules> {
        Ok(Self { root: compile(chains, &STEPS)?, default })
    }

    /// The chain that takes every connection whatever its facts, where that is so.
    pub fn only(&self) -> Option<ChainIndex> {
        match &self.root {
            Some(Node::Chain(chain)) => Some(*chain),
            Some(Node::Step(_)) => None,
            None => self.default,
        }
    }

    /// The chain of a connection.
    pub fn find(&self, facts: &ConnectionFacts) -> Option<ChainIndex> {
        let mut node = self.root.as_ref();
        while let Some(Node::Step(step)) = node {
            node = step.rules.find(facts).or(step.otherwise.as_ref());
        }
        match node {
            Some(Node::Chain(chain)) => Some(*chain),
            Some(Node::Step(_)) | None => self.default,
        }
    }
}

impl Rules {
    fn find(&self, facts: &ConnectionFacts) -> Option<&Node> {
        match self {
            Self::DestinationPort(by_port) => by_port.get(&facts.local.ip()?.port()),
            Self::SourcePort(by_port) => by_port.get(&facts.remote.ip()?.port()),
            Self::Ranges(of, ranges) => {
                let address = match of {
                    RangeOf::Destination => &facts.local,
                    RangeOf::DirectSource => &facts.direct_remote,
                    RangeOf::Source => &facts.remote,
                };
                let address = address.ip()?.ip().to_canonical();
                ranges.iter().find(|(range, _)| range.contains(address)).map(|(_, node)| node)
            }
            Self::ServerName(by_name) => {
                let name = facts.found.server_name.as_deref()?;
                by_name.get(name).or_else(|| suffixes(name).find_map(|suffix| by_name.get(suffix)))
            }
            Self::TransportProtocol(by_name) => by_name.get(if facts.found.is_tls { TLS } else { RAW_BUFFER }),
            Self::ApplicationProtocol(by_name) => {
                let mut offered = facts.found.application_protocols.iter();
                offered.find_map(|name| by_name.get(std::str::from_utf8(name).ok()?))
            }
            Self::SourceType(by_type) => {
                let wanted = if is_local(facts) { SourceType::SameIpOrLoopback } else { SourceType::External };
                by_type.get(&wanted)
            }
        }
    }
}

/// `.b.example.com`, `.example.com`, `.com` of `a.b.example.com`.
fn suffixes(name: &str) -> impl Iterator<Item = &str> {
    let dots = name.match_indices('.').map(|(place, _)| place);
    dots.filter(|place| *place > 0).filter_map(|place| name.get(place..)).filter(|suffix| suffix.len() > 1)
}

fn is_local(facts: &ConnectionFacts) -> bool {
    let Some(remote) = facts.remote.ip() else { return true };
    let remote = remote.ip().to_canonical();
    remote.is_loopback() || facts.local.ip().is_some_and(|local| local.ip().to_canonical() == remote)
}

/// What decides between `candidates`; `None` where there are none.
fn compile(candidates: &[Candidate<'_>], steps: &[Step]) -> Result<Option<Node>, SameRules> {
    let Some((step, later)) = steps.split_first() else {
        return match candidates {
            [(first, _), (second, _), ..] => Err(SameRules { first: *first, second: *second }),
            [(chain, _)] => Ok(Some(Node::Chain(*chain))),
            [] => Ok(None),
        };
    };
    if candidates.is_empty() {
        return Ok(None);
    }
    match step {
        Step::DestinationPort => {
            let keys = |criteria: &ChainCriteria| criteria.destination_port.into_iter().collect();
            group(candidates, later, keys, |groups| Rules::DestinationPort(groups.into_iter().collect()))
        }
        Step::SourcePort => group(
            candidates,
            later,
            |criteria| criteria.source_ports.clone(),
            |groups| Rules::SourcePort(groups.into_iter().collect()),
        ),
        Step::Ranges(of) => {
            let keys = |criteria: &ChainCriteria| match of {
                RangeOf::Destination => criteria.destination_ranges.clone(),
                RangeOf::DirectSource => criteria.direct_source_ranges.clone(),
                RangeOf::Source => criteria.source_ranges.clone(),
            };
            group(candidates, later, keys, |mut ranges| {
                ranges.sort_by_key(|(range, _)| std::cmp::Reverse(range.prefix_bits()));
                Rules::Ranges(*of, ranges)
            })
        }
        Step::ServerName => group(
            candidates,
            later,
            |criteria| criteria.server_names.clone(),
            |groups| Rules::ServerName(groups.into_iter().collect()),
        ),
        Step::TransportProtocol => {
            let keys = |criteria: &ChainCriteria| criteria.transport_protocol.iter().cloned().collect();
            group(candidates, later, keys, |groups| Rules::TransportProtocol(groups.into_iter().collect()))
        }
        Step::ApplicationProtocol => group(
            candidates,
            later,
            |criteria| criteria.application_protocols.clone(),
            |groups| Rules::ApplicationProtocol(groups.into_iter().collect()),
        ),
        Step::SourceType => {
            let keys = |criteria: &ChainCriteria| match criteria.source_type {
                SourceType::Any => Vec::new(),
                other => vec![other],
            };
            group(candidates, later, keys, |groups| Rules::SourceType(groups.into_iter().collect()))
        }
    }
}

/// Groups chains by their keys for one step. A chain with several keys is in several groups; one without is in the rest.
fn group<K: PartialEq>(
    candidates: &[Candidate<'_>],
    later: &[Step],
    keys: impl Fn(&ChainCriteria) -> Vec<K>,
    rules: impl FnOnce(Vec<(K, Node)>) -> Rules,
) -> Result<Option<Node>, SameRules> {
    let mut groups: Vec<(K, Vec<Candidate<'_>>)> = Vec::new();
    let mut rest = Vec::new();
    for candidate in candidates {
        let found = keys(candidate.1);
        if found.is_empty() {
            rest.push(*candidate);
        }
        for key in found {
            match groups.iter_mut().find(|(known, _)| *known == key) {
                // The same key twice in one chain is no conflict.
                Some((_, members)) if members.last().is_some_and(|last| last.0 == candidate.0) => {}
                Some((_, members)) => members.push(*candidate),
                None => groups.push((key, vec![*candidate])),
            }
        }
    }
    if groups.is_empty() {
        return compile(&rest, later);
    }
    let mut compiled = Vec::with_capacity(groups.len());
    for (key, members) in groups {
        compiled.extend(compile(&members, later)?.map(|node| (key, node)));
    }
    let otherwise = compile(&rest, later)?;
    Ok(Some(Node::Step(Box::new(StepNode { rules: rules(compiled), otherwise }))))
}

const TLS: &str = "tls";
const RAW_BUFFER: &str = "raw_buffer";

#[cfg(test)]
mod tests;
