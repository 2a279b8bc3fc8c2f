//! An address range, for instance `10.0.0.0/8`.

use std::net::IpAddr;

/// A range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    prefix_bits: u8,
}

impl Cidr {
    /// The range of the addresses that share `prefix_bits` bits with `network`; `None` where the family has fewer bits.
    pub fn new(network: IpAddr, prefix_bits: u8) -> Option<Self> {
        let bits = if network.is_ipv4() { 32 } else { 128 };
        (prefix_bits <= bits).then_some(Self { network, prefix_bits })
    }

    /// The same range with the bits of its network that do not count set to 0: equal ranges are equal values.
    pub fn masked(self) -> Self {
        let network = match self.network {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(u32::from(32 - self.prefix_bits)).unwrap_or(0);
                IpAddr::V4((u32::from(address) & mask).into())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(u32::from(128 - self.prefix_bits)).unwrap_or(0);
                IpAddr::V6((u128::from(address) & mask).into())
            }
        };
        Self { network, ..self }
    }

    /// How many leading bits its addresses share.
    pub fn prefix_bits(&self) -> u8 {
        self.prefix_bits
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => shared(u32::from(a).into(), u32::from(b).into(), 32, self.prefix_bits),
            (IpAddr::V6(a), IpAddr::V6(b)) => shared(a.into(), b.into(), 128, self.prefix_bits),
            _ => false,
        }
    }
}

fn shared(a: u128, b: u128, width: u8, prefix_bits: u8) -> bool {
    let dropped = u32::from(width - prefix_bits);
    a.checked_shr(dropped).unwrap_or(0) == b.checked_shr(dropped).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_their_addresses_only() {
        let check = |range: (&str, u8), address: &str, inside: bool| {
            let range = Cidr::new(range.0.parse().unwrap(), range.1).unwrap();
            assert_eq!(range.contains(address.parse().unwrap()), inside, "{range:?} {address}");
        };
        check(("10.0.0.0", 8), "10.255.0.1", true);
        check(("10.0.0.0", 8), "11.0.0.1", false);
        check(("0.0.0.0", 0), "255.255.255.255", true);
        check(("::1", 128), "::1", true);
        check(("::", 0), "fe80::1", true);
        check(("fd00::", 8), "10.0.0.1", false);
    }

    #[test]
    fn equal_ranges_are_equal_values() {
        let check = |range: (&str, u8), network: &str| {
            let range = Cidr::new(range.0.parse().unwrap(), range.1).unwrap().masked();
            assert_eq!(range, Cidr::new(network.parse().unwrap(), range.prefix_bits()).unwrap());
        };
        check(("10.1.2.3", 8), "10.0.0.0");
        check(("10.1.2.3", 0), "0.0.0.0");
        check(("10.1.2.3", 32), "10.1.2.3");
        check(("fd00::1", 8), "fd00::");
        check(("fd00::1", 0), "::");
    }
}
