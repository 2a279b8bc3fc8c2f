//! Distributions with two significant digits: each core counts into buckets of its own, readers merge them.
//!
//! Source: circllhist, as Envoy uses it. A bucket holds the values that share their first two decimal digits and their magnitude:
//! 0, [1.0, 1.1), .. [9.9, 10), [10, 11), .. [99, 100), [100, 110), ..
//! Shape: one page of 90 buckets for each magnitude, made when a value first falls into it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The buckets of one histogram on one core.
#[derive(Default)]
pub(crate) struct HistogramCells {
    pages: [OnceLock<Box<Page>>; MAGNITUDES],
}

/// Buckets of one magnitude by leading two digits less 10, then the number of zeroes and the exact sum.
#[repr(align(64))]
struct Page([AtomicU64; PAGE_CELLS]);

impl Default for Page {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl HistogramCells {
    /// Counts one value. Only the core that owns the cells calls this.
    #[inline]
    pub(crate) fn record(&self, value: u64) {
        let (magnitude, cell) = place(value);
        let Some(page) = self.pages.get(magnitude).map(|page| page.get_or_init(Box::default)) else { return };
        for (cell, amount) in [(cell, 1), (SUM_CELL, value)] {
            if let Some(cell) = page.0.get(cell) {
                cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
            }
        }
    }

    /// Adds what was counted so far to `merged`.
    pub(crate) fn merge_into(&self, merged: &mut Distribution) {
        for (magnitude, page) in self.pages.iter().enumerate() {
            let Some(page) = page.get() else { continue };
            for (cell, count) in page.0.iter().enumerate() {
                match (cell, count.load(Ordering::Relaxed)) {
                    (_, 0) => {}
                    (SUM_CELL, sum) => merged.sum = merged.sum.wrapping_add(sum),
                    (ZERO_CELL, count) => merged.add(Bucket::ZERO, count),
                    (cell, count) => merged.add(Bucket { magnitude: magnitude as u8, digits: cell as u8 + 10 }, count),
                }
            }
        }
    }
}

/// A merged histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// Buckets that are not empty, ascending.
    buckets: Vec<(Bucket, u64)>,
    sum: u64,
}

/// Values that share their first two digits and their magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bucket {
    magnitude: u8,
    /// 10 to 99, 0 for the value 0.
    digits: u8,
}

impl Bucket {
    const ZERO: Self = Self { magnitude: 0, digits: 0 };

    /// The bucket of `value`.
    pub fn of(value: u64) -> Self {
        match place(value) {
            (_, ZERO_CELL) => Self::ZERO,
            (magnitude, cell) => Self { magnitude: magnitude as u8, digits: cell as u8 + 10 },
        }
    }

    /// The smallest value in the bucket.
    pub fn lower(self) -> f64 {
        f64::from(self.digits) * self.width()
    }

    /// The distance to the next bucket, 0 for the bucket of 0.
    pub fn width(self) -> f64 {
        // Division by ten and not a product with 0.1: the result has to be the closest double.
        match (self.digits, self.magnitude) {
            (0, _) => 0.0,
            (_, 0) => 1.0 / 10.0,
            (_, magnitude) => 10f64.powi(i32::from(magnitude) - 1),
        }
    }
}

impl Distribution {
    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// How many values were recorded.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// The exact sum of the values.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Buckets that are not empty, ascending, with how many values are in each.
    pub fn buckets(&self) -> &[(Bucket, u64)] {
        &self.buckets
    }

    /// Counts `count` values of one bucket; the sum is not touched.
    fn add(&mut self, bucket: Bucket, count: u64) {
        match self.buckets.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(place) => {
                if let Some((_, total)) = self.buckets.get_mut(place) {
                    *total += count;
                }
            }
            Err(place) => self.buckets.insert(place, (bucket, count)),
        }
    }

    /// What was recorded here and not yet in `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut rest = Self { buckets: Vec::new(), sum: self.sum.wrapping_sub(earlier.sum) };
        let mut before = earlier.buckets.iter().peekable();
        for &(bucket, count) in &self.buckets {
            while before.next_if(|(other, _)| *other < bucket).is_some() {}
            let known = before.next_if(|(other, _)| *other == bucket).map_or(0, |(_, count)| *count);
            if count > known {
                rest.buckets.push((bucket, count - known));
            }
        }
        rest
    }

    /// The value that `fraction` of the recorded values do not exceed; not a number where nothing was recorded.
    ///
    /// Source: circllhist's approximation as Envoy prints it: the k-th of n values in a bucket stands at k/(n+1) of its width.
    pub fn quantile(&self, fraction: f64) -> f64 {
        let wanted = ((fraction * self.count() as f64).ceil() as u64).max(1);
        let mut below = 0;
        for &(bucket, count) in &self.buckets {
            if wanted <= below + count {
                return bucket.lower() + bucket.width() * (wanted - below) as f64 / (count + 1) as f64;
            }
            below += count;
        }
        f64::NAN
    }

    /// How many values lie in buckets that begin at `bound` or below, as Envoy counts for `le`.
    pub fn count_up_to(&self, bound: f64) -> u64 {
        let inside = self.buckets.iter().take_while(|(bucket, _)| bucket.lower() <= bound);
        inside.map(|(_, count)| count).sum()
    }
}

/// Magnitude and cell of a value.
#[inline]
fn place(value: u64) -> (usize, usize) {
    let Some(magnitude) = value.checked_ilog10() else { return (0, ZERO_CELL) };
    let digits = match magnitude {
        0 => value * 10,
        _ => value / 10u64.pow(magnitude - 1),
    };
    (magnitude as usize, digits as usize - 10)
}

/// Powers of ten that fit into 64 bits.
const MAGNITUDES: usize = 20;
const ZERO_CELL: usize = 90;
const SUM_CELL: usize = 91;
const PAGE_CELLS: usize = 96;
