//! Earliest deadline first: members take turns by weight, as evenly spaced as their weights allow.
//!
//! A member's deadline is the time of its last turn plus 1/weight; the earliest deadline is next, and time moves to it. A
//! weight may change between turns; it counts from the member's next turn.

/// A schedule; a turn costs O(log members) and allocates nothing.
#[derive(Default)]
pub(super) struct Edf {
    /// A binary heap, the next one first.
    entries: Box<[Entry]>,
    /// Orders equal deadlines: first come, first served.
    order: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    deadline: f64,
    order: u64,
    member: u32,
}

impl Edf {
    /// Members `0..` with `weights`, each above 0. `seed` moves the beginning, so that schedules do not run in step.
    pub(super) fn new(weights: impl Iterator<Item = f64>, seed: u32) -> Self {
        // A random beginning: each member is somewhere within its period.
        let mut phase = u64::from(seed);
        let entry = |(member, weight): (usize, f64)| {
            phase = phase.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x632b_e59b_d9b4_e019);
            let fraction = (phase >> 11) as f64 / (1_u64 << 53) as f64;
            Entry { deadline: fraction / weight, order: member as u64, member: member as u32 }
        };
        let mut entries: Box<[Entry]> = weights.enumerate().map(entry).collect();
        entries.sort_unstable_by(|a, b| a.deadline.total_cmp(&b.deadline).then(a.order.cmp(&b.order)));
        let order = entries.len() as u64;
        Self { entries, order }
    }

    /// The member whose turn it is; `weight` is its weight until its next turn. `None` without members.
    pub(super) fn next(&mut self, weight: impl FnOnce(usize) -> f64) -> Option<usize> {
        let first = self.entries.first_mut()?;
        let member = first.member as usize;
        first.deadline += 1.0 / weight(member);
        first.order = self.order;
        self.order += 1;
        self.sink();
        Some(member)
    }

    /// Moves the first entry down to its place.
    fn sink(&mut self) {
        let mut place = 0;
        loop {
            let (left, right) = (2 * place + 1, 2 * place + 2);
            let mut earliest = place;
            for child in [left, right] {
                if let (Some(a), Some(b)) = (self.entries.get(child), self.entries.get(earliest))
                    && a.is_before(b)
                {
                    earliest = child;
                }
            }
            if earliest == place {
                return;
            }
            self.entries.swap(place, earliest);
            place = earliest;
        }
    }
}

impl Entry {
    fn is_before(&self, other: &Self) -> bool {
        (self.deadline, self.order) < (other.deadline, other.order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_follow_weights_and_are_evenly_spaced() {
        let check = |weights: &[f64], seed: u32| {
            let mut edf = Edf::new(weights.iter().copied(), seed);
            let sum: f64 = weights.iter().sum();
            let rounds = 100;
            let mut counts = vec![0_u32; weights.len()];
            let mut last = vec![None; weights.len()];
            for turn in 0..(sum as u32 * rounds) {
                let member = edf.next(|member| weights[member]).unwrap();
                counts[member] += 1;
                if let Some(last) = last[member].replace(turn) {
                    let gap = f64::from(turn - last);
                    assert!(gap < sum / weights[member] + weights.len() as f64, "{weights:?}: gap {gap}");
                }
            }
            for (count, weight) in counts.iter().zip(weights) {
                let expect = weight * f64::from(rounds);
                assert!((f64::from(*count) - expect).abs() <= 2.0, "{weights:?}: {counts:?}");
            }
        };
        check(&[1.0], 0);
        check(&[1.0, 2.0, 3.0], 7);
        check(&[5.0, 1.0, 1.0, 10.0], 99);
        check(&[128.0, 1.0], 12345);
    }

    #[test]
    fn a_changed_weight_counts_from_the_next_turn() {
        let mut edf = Edf::new([1.0, 1.0].into_iter(), 3);
        let mut counts = [0; 2];
        for _ in 0..300 {
            counts[edf.next(|member| if member == 0 { 2.0 } else { 1.0 }).unwrap()] += 1;
        }
        assert!((counts[0] - 200_i32).abs() <= 2, "{counts:?}");
    }

    #[test]
    fn nobody_has_no_turn() {
        assert_eq!(Edf::default().next(|_| 1.0), None);
    }
}
