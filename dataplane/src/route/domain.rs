//! Which virtual host has a request's domain.
//!
//! An exact domain wins, then `*` with the longest suffix, then `*` with the longest prefix, then `*` alone. Source:
//! envoy.config.route.v3.VirtualHost.domains. Each form is a hash look-up, so ten thousand domains cost as much as ten.

use std::collections::HashMap;

/// Virtual hosts by domain.
#[derive(Debug, Default)]
pub(super) struct DomainIndex {
    exact: Hosts,
    /// Longest first: the length after `*`, and what follows it.
    suffixes: Vec<(usize, Hosts)>,
    /// Longest first: the length before `*`, and what precedes it.
    prefixes: Vec<(usize, Hosts)>,
    any: Option<u32>,
}

/// The place of a virtual host by (part of) its domain.
type Hosts = HashMap<Box<[u8]>, u32>;

/// Another virtual host has the domain already.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Duplicate;

impl DomainIndex {
    /// Adds `domain` for the virtual host at `host`.
    pub(super) fn add(&mut self, domain: &str, host: u32) -> Result<(), Duplicate> {
        let domain = domain.to_ascii_lowercase();
        let previous = if domain == "*" {
            self.any.replace(host)
        } else if let Some(suffix) = domain.strip_prefix('*') {
            by_len(&mut self.suffixes, suffix.len()).and_then(|map| map.insert(suffix.as_bytes().into(), host))
        } else if let Some(prefix) = domain.strip_suffix('*') {
            by_len(&mut self.prefixes, prefix.len()).and_then(|map| map.insert(prefix.as_bytes().into(), host))
        } else {
            self.exact.insert(domain.into_bytes().into(), host)
        };
        if previous.is_some() { Err(Duplicate) } else { Ok(()) }
    }

    /// Whether every request goes to the same virtual host, or to none.
    pub(super) fn is_trivial(&self) -> Option<Option<u32>> {
        let trivial = self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty();
        trivial.then_some(self.any)
    }

    /// The virtual host for `host`, which is in lower case.
    pub(super) fn find(&self, host: &[u8]) -> Option<u32> {
        if let Some(found) = self.exact.get(host) {
            return Some(*found);
        }
        // `*.a` does not take `.a` itself: the star stands for at least one character.
        let longer = |(len, _): &&(usize, Hosts)| *len < host.len();
        let suffix = self.suffixes.iter().filter(longer).find_map(|(len, map)| map.get(host.get(host.len() - len..)?));
        let prefix = || self.prefixes.iter().filter(longer).find_map(|(len, map)| map.get(host.get(..*len)?));
        suffix.or_else(prefix).copied().or(self.any)
    }
}

fn by_len(maps: &mut Vec<(usize, Hosts)>, len: usize) -> Option<&mut Hosts> {
    let at = match maps.binary_search_by(|(other, _)| len.cmp(other)) {
        Ok(at) => at,
        Err(at) => {
            maps.insert(at, (len, HashMap::new()));
            at
        }
    };
    maps.get_mut(at).map(|(_, map)| map)
}

/// `host` without what follows its last colon, unless that colon is inside brackets. As in Envoy, the rest need not be a number.
pub(super) fn without_port(host: &[u8]) -> &[u8] {
    let Some(colon) = memchr::memrchr(b':', host) else { return host };
    let inside_brackets = memchr::memrchr(b']', host).is_some_and(|bracket| bracket > colon);
    if inside_brackets { host } else { host.get(..colon).unwrap_or(host) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_exact_domain_wins() {
        let domains = ["a.test", "*.test", "*.b.test", "*-x.b.test", "a.*", "a.b.*", "*", "[::1]:80"];
        let mut index = DomainIndex::default();
        for (host, domain) in domains.iter().enumerate() {
            assert_eq!(index.add(domain, host as u32), Ok(()));
        }
        let check = |host: &str, expect: &str| {
            let found = index.find(host.as_bytes()).and_then(|found| domains.get(found as usize)).copied();
            assert_eq!(found, Some(expect), "{host}");
        };
        check("a.test", "a.test");
        check("c.test", "*.test");
        check("c.b.test", "*.b.test");
        check("c-x.b.test", "*-x.b.test");
        check("-x.b.test", "*.b.test");
        check(".b.test", "*.test");
        check(".test", "*");
        check("a.example", "a.*");
        check("a.b.example", "a.b.*");
        check("a.b.", "a.*");
        check("a.", "*");
        check("a.b.test", "*.b.test");
        check("[::1]:80", "[::1]:80");
        check("", "*");
    }

    #[test]
    fn a_domain_has_one_virtual_host() {
        let mut index = DomainIndex::default();
        for domain in ["A.test", "*.test", "a.*", "*"] {
            assert_eq!(index.add(domain, 0), Ok(()), "{domain}");
            assert_eq!(index.add(&domain.to_lowercase(), 1), Err(Duplicate), "{domain}");
        }
    }

    #[test]
    fn ports_are_recognised() {
        let check = |host: &str, expect: &str| assert_eq!(without_port(host.as_bytes()), expect.as_bytes(), "{host}");
        check("a:80", "a");
        check("a", "a");
        check("a:", "a");
        check("a:b", "a");
        check("[::1]:80", "[::1]");
        check("[::1]", "[::1]");
    }
}
