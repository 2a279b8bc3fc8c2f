//! Which CPU a worker runs on.

use std::collections::BTreeSet;

/// Why a CPU list could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuListError {
    /// The list names nothing.
    #[error("the CPU list is empty; give numbers and ranges, for instance 0-3,5")]
    Empty,
    /// A part is neither a number nor a range.
    #[error("{part:?} in the CPU list is neither a number nor a range; give for instance 0-3,5")]
    Malformed {
        /// The part.
        part: String,
    },
    /// A range runs backwards.
    #[error("the range {part:?} in the CPU list runs backwards")]
    Backwards {
        /// The part.
        part: String,
    },
    /// A CPU number is beyond what the kernel can address.
    #[error("CPU {cpu} in the CPU list is beyond the largest that a set can hold, {CPU_MAX}")]
    TooLarge {
        /// The number.
        cpu: usize,
    },
}

/// Largest CPU number that a `cpu_set_t` can hold (sched_setaffinity(2), CPU_SETSIZE).
pub const CPU_MAX: usize = libc::CPU_SETSIZE as usize - 1;

/// Pins the calling thread to one CPU; `false` when the kernel refuses (not allowed, or no such CPU).
pub fn pin_to(cpu: usize) -> bool {
    cpu <= CPU_MAX && core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
}

/// CPUs that this process may run on, ascending; CPU 0 alone where the kernel does not say.
pub fn allowed_cpus() -> Vec<usize> {
    let mut cpus: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    cpus.sort_unstable();
    if cpus.is_empty() {
        cpus.push(0);
    }
    cpus
}

/// Reads a list such as `0-3,5`, ascending and without duplicates (the format of cpuset(7), "List format").
pub fn parse_cpu_list(text: &str) -> Result<Vec<usize>, CpuListError> {
    let mut cpus = BTreeSet::new();
    for part in text.split(',').map(str::trim) {
        if part.is_empty() {
            return Err(if text.trim().is_empty() {
                CpuListError::Empty
            } else {
                CpuListError::Malformed { part: part.to_owned() }
            });
        }
        let number = |digits: &str| {
            digits.trim().parse::<usize>().map_err(|_| CpuListError::Malformed { part: part.to_owned() })
        };
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => {
                let cpu = number(part)?;
                (cpu, cpu)
            }
        };
        if last > CPU_MAX {
            return Err(CpuListError::TooLarge { cpu: last });
        }
        if first > last {
            return Err(CpuListError::Backwards { part: part.to_owned() });
        }
        cpus.extend(first..=last);
    }
    Ok(cpus.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        let check = |text: &str, expected: Result<Vec<usize>, CpuListError>| {
            assert_eq!(parse_cpu_list(text), expected, "{text:?}");
        };
        check("0", Ok(vec![0]));
        check("0-3,5", Ok(vec![0, 1, 2, 3, 5]));
        check("5, 1-2 ,2", Ok(vec![1, 2, 5]));
        check("", Err(CpuListError::Empty));
        check("1,,2", Err(CpuListError::Malformed { part: String::new() }));
        check("a", Err(CpuListError::Malformed { part: "a".into() }));
        check("3-1", Err(CpuListError::Backwards { part: "3-1".into() }));
        check("0-99999999", Err(CpuListError::TooLarge { cpu: 99_999_999 }));
        check("-1", Err(CpuListError::Malformed { part: "-1".into() }));
    }

    #[test]
    fn a_thread_pins_to_an_allowed_cpu() {
        let cpu = allowed_cpus()[0];
        std::thread::spawn(move || {
            assert!(pin_to(cpu));
            assert_eq!(allowed_cpus(), vec![cpu]);
            assert!(!pin_to(100_000));
        })
        .join()
        .unwrap();
    }
}
