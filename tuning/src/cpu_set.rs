//! Sets of CPUs in the two spellings of the kernel: lists (`0-3,8`) and hexadecimal masks (`ff,00000003`).

use std::collections::BTreeSet;

/// Some CPUs of this machine, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<usize>);

/// Largest CPU number that is believed; a list such as `0-99999999999` is not a machine.
const CPU_MAX: usize = 8_191;

impl CpuSet {
    /// The set that a list such as `0-3,8` names; `None` for what is no list.
    ///
    /// Source: `Documentation/admin-guide/cputopology.rst`. An empty text is the empty set.
    pub fn from_list(text: &str) -> Option<Self> {
        let mut cpus = BTreeSet::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            if first > last || last > CPU_MAX {
                return None;
            }
            cpus.extend(first..=last);
        }
        Some(Self(cpus))
    }

    /// The set that a mask such as `ff,00000003` names; groups of 32 bits, the highest first.
    pub fn from_mask(text: &str) -> Option<Self> {
        let mut cpus = BTreeSet::new();
        for (group, digits) in text.trim().rsplit(',').enumerate() {
            let bits = u32::from_str_radix(digits, 16).ok()?;
            let base = group.checked_mul(32).filter(|base| *base <= CPU_MAX)?;
            cpus.extend((0..32).filter(|bit| bits & (1 << bit) != 0).map(|bit| base + bit));
        }
        Some(Self(cpus))
    }

    /// The mask as the kernel takes it: no leading zeroes, commas between groups of 32 bits.
    pub fn to_mask(&self) -> String {
        let group_count = self.0.last().map_or(1, |last| last / 32 + 1);
        let mut groups: Vec<String> = Vec::with_capacity(group_count);
        for group in (0..group_count).rev() {
            let bits = (0..32u32).fold(0u32, |bits, bit| {
                if self.0.contains(&(group * 32 + bit as usize)) { bits | (1 << bit) } else { bits }
            });
            groups.push(if groups.is_empty() { format!("{bits:x}") } else { format!("{bits:08x}") });
        }
        groups.join(",")
    }

    /// The list as the kernel prints it: `0-3,8`.
    pub fn to_list(&self) -> String {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for &cpu in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                _ => ranges.push((cpu, cpu)),
            }
        }
        let texts: Vec<String> = ranges
            .iter()
            .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
            .collect();
        texts.join(",")
    }

    /// Number of CPUs in the set.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no CPU is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The CPUs, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().copied()
    }

    /// The `place`-th CPU, counted round and round; `None` in an empty set.
    pub fn nth_around(&self, place: usize) -> Option<usize> {
        self.0.iter().nth(place.checked_rem(self.0.len())?).copied()
    }

    /// The CPUs that are in both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    /// The CPUs of this set that are not in `other`.
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }
}

impl FromIterator<usize> for CpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> Self {
        Self(cpus.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_masks_name_the_same_cpus() {
        for (list, mask) in [
            ("", "0"),
            ("0", "1"),
            ("0-1", "3"),
            ("0-3,8", "10f"),
            ("31-32", "1,80000000"),
            ("64", "1,00000000,00000000"),
            ("0-15,64", "1,00000000,0000ffff"),
        ] {
            let set = CpuSet::from_list(list).unwrap();
            assert_eq!(set.to_mask(), mask, "{list}");
            assert_eq!(set.to_list(), list);
            assert_eq!(CpuSet::from_mask(mask).unwrap(), set, "{mask}");
            assert_eq!(CpuSet::from_mask(&format!("{mask}\n")).unwrap(), set, "{mask}");
        }
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for text in ["x", "3-1", "0-99999999", "1,,x", "-1"] {
            assert_eq!(CpuSet::from_list(text), None, "{text}");
        }
        for text in ["", "xyz", "123456789"] {
            assert_eq!(CpuSet::from_mask(text), None, "{text}");
        }
    }

    #[test]
    fn places_go_round() {
        let set = CpuSet::from_list("2,5").unwrap();
        assert_eq!([0, 1, 2, 3].map(|place| set.nth_around(place)), [Some(2), Some(5), Some(2), Some(5)]);
        assert_eq!(CpuSet::default().nth_around(3), None);
    }
}
