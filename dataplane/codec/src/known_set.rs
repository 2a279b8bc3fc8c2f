//! Sets of known field names.

use crate::Known;

/// Some of the known names; asking for one is asking for a bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownSet(u128);

impl KnownSet {
    /// The set of `names`.
    pub const fn of(mut names: &[Known]) -> Self {
        let mut bits = 0;
        while let Some((first, rest)) = names.split_first() {
            bits |= 1 << *first as u8;
            names = rest;
        }
        Self(bits)
    }

    /// The names that are here, in `other` or in both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether `name` is here.
    #[inline]
    pub const fn has(self, name: Known) -> bool {
        let number = name as u8;
        let half = if number < 64 { self.0 as u64 } else { (self.0 >> 64) as u64 };
        half >> (number % 64) & 1 != 0
    }

    pub(crate) const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u128 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeaderMap;

    const SET: KnownSet = KnownSet::of(&[Known::Via, Known::Accept]).and(KnownSet::of(&[Known::Date]));

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::default();
        for (name, value) in fields {
            headers.append_wire(name.as_bytes(), value.as_bytes());
        }
        headers
    }

    fn shown(headers: &HeaderMap) -> String {
        let line = |(name, value)| format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        headers.iter().map(line).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_set_has_its_names() {
        assert!(SET.has(Known::Via) && SET.has(Known::Date) && !SET.has(Known::Server));
    }

    #[test]
    fn fields_of_a_set_are_removed_together() {
        let mut headers = map(&[("via", "a"), ("x", "b"), ("accept", "c"), ("server", "d"), ("via", "e")]);
        headers.remove_all(SET);
        assert_eq!(shown(&headers), "x=b server=d");
        headers.append_wire(b"via", b"f");
        assert_eq!(shown(&headers), "x=b server=d via=f");
    }

    #[test]
    fn repeated_fields_of_a_set_are_joined() {
        let check = |fields: &[(&str, &str)], expect: &str| {
            let mut headers = map(fields);
            headers.join_repeated(SET);
            assert_eq!(shown(&headers), expect);
        };
        check(&[("via", "a"), ("x", "b"), ("Via", "c"), ("via", "d")], "via=a,c,d x=b");
        check(&[("accept", ""), ("accept", "b"), ("accept", "")], "accept=b,");
        check(&[("server", "a"), ("server", "b"), ("x", "c"), ("x", "d")], "server=a server=b x=c x=d");
        check(&[("date", "a"), ("via", "1"), ("date", "b"), ("via", "2")], "date=a,b via=1,2");
    }
}
