//! Latency objectives: `p99<1ms,p99.9<5ms,errors<0.01%`.

use std::fmt;

use serde::Serialize;

use crate::quantity;

/// What an objective limits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// A percentile of the response time, 0 to 100.
    Percentile(f64),
    Mean,
    Max,
    /// Share of requests that failed.
    Errors,
}

/// One limit. A time is in nanoseconds, a share between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limit {
    pub measure: Measure,
    pub below: f64,
}

/// All limits, of which each must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Objective {
    pub limits: Vec<Limit>,
}

/// A limit and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judged {
    pub limit: String,
    pub measured: String,
    pub met: bool,
}

/// Where a text is no objective, counted from 1, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {what}; try: p99<1ms,p99.9<5ms,errors<0.01%")]
pub struct BadObjective {
    pub column: usize,
    pub what: String,
}

impl std::str::FromStr for Objective {
    type Err = BadObjective;

    fn from_str(text: &str) -> Result<Objective, BadObjective> {
        let mut limits = Vec::new();
        let mut column = 1;
        for part in text.split(',') {
            limits.push(limit(part.trim()).map_err(|what| BadObjective { column, what })?);
            column += part.chars().count() + 1;
        }
        Ok(Objective { limits })
    }
}

fn limit(text: &str) -> Result<Limit, String> {
    let (name, bound) = text.split_once('<').ok_or_else(|| format!("`{text}` has no `<`"))?;
    let (name, bound) = (name.trim(), bound.trim());
    let measure = match name {
        "mean" => Measure::Mean,
        "max" => Measure::Max,
        "errors" => Measure::Errors,
        _ => {
            let percentile = name.strip_prefix('p').and_then(|digits| {
                let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
                if plain { digits.parse::<f64>().ok() } else { None }
            });
            match percentile {
                Some(percentile) if (0.0..=100.0).contains(&percentile) => Measure::Percentile(percentile),
                Some(percentile) => return Err(format!("p{percentile} is beyond p100")),
                None => return Err(format!("`{name}` is none of p0 to p100, mean, max, errors")),
            }
        }
    };
    let below = if measure == Measure::Errors {
        let share = bound.strip_suffix('%').ok_or_else(|| format!("`{bound}` has no `%`"))?;
        let plain = share.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let share = if plain { share.parse::<f64>().ok() } else { None };
        share.filter(|share| *share <= 100.0).ok_or_else(|| format!("`{bound}` is no percentage"))? / 100.0
    } else {
        quantity::duration(bound).map_err(|error| error.to_string())?.as_nanos() as f64
    };
    Ok(Limit { measure, below })
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let below = self.below;
        match self.measure {
            Measure::Percentile(percentile) => write!(f, "p{percentile}<{}", quantity::nanoseconds(below as u64)),
            Measure::Mean => write!(f, "mean<{}", quantity::nanoseconds(below as u64)),
            Measure::Max => write!(f, "max<{}", quantity::nanoseconds(below as u64)),
            Measure::Errors => write!(f, "errors<{}%", below * 100.0),
        }
    }
}

impl Objective {
    /// Each limit with what was measured; `value` gives nanoseconds, or the share of errors.
    pub fn judge(&self, value: impl Fn(Measure) -> f64) -> Vec<Judged> {
        let judged = |limit: &Limit| {
            let measured = value(limit.measure);
            let text = match limit.measure {
                Measure::Errors => format!("{:.4}%", measured * 100.0),
                _ => quantity::nanoseconds(measured as u64),
            };
            // No errors at all meet even a limit of none.
            let met = measured < limit.below || limit.measure == Measure::Errors && measured == 0.0;
            Judged { limit: limit.to_string(), measured: text, met }
        };
        self.limits.iter().map(judged).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_understood() {
        let objective: Objective = "p99<1ms, p99.9 < 5ms,errors<0.01%,max<1s,mean<50us".parse().unwrap();
        let texts: Vec<_> = objective.limits.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["p99<1.00 ms", "p99.9<5.00 ms", "errors<0.01%", "max<1.00 s", "mean<50.0 us"]);
    }

    #[test]
    fn errors_say_where() {
        for (text, expected) in [
            ("p99<1ms,p101<1ms", "column 9: p101 is beyond p100"),
            ("p99", "column 1: `p99` has no `<`"),
            ("", "column 1: `` has no `<`"),
            ("p99<1ms,q<1s", "column 9: `q` is none of p0 to p100, mean, max, errors"),
            ("errors<1", "column 1: `1` has no `%`"),
            ("errors<inf%", "column 1: `inf%` is no percentage"),
            ("p99<5", "column 1: `5` is no duration"),
        ] {
            let error = text.parse::<Objective>().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn no_errors_meet_a_limit_of_none() {
        let objective: Objective = "errors<0%,max<1ms".parse().unwrap();
        let met = |errors: f64, max: f64| -> Vec<bool> {
            let judged = objective.judge(|measure| if measure == Measure::Errors { errors } else { max });
            judged.into_iter().map(|judged| judged.met).collect()
        };
        assert_eq!(met(0.0, 999_999.0), [true, true]);
        assert_eq!(met(0.1, 1_000_000.0), [false, false]);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "(?s).{0,60}") {
            let _ = text.parse::<Objective>();
        }
    }
}
