//! Runs the same bootstrap and the same requests through real Envoy and torus-proxy and compares everything observable.
//!
//! A *theme* is a YAML file in `tests/differential/themes/`: what differs from a plain proxy configuration, and a list
//! of requests. Each theme runs twice, on the same ports and against the same backends, first through Envoy and then
//! through torus-proxy. What the client saw, what the backends received, the access-log lines and the counters of both
//! runs are flattened to `field -> text` and compared. A difference must be explained by a row of
//! `tests/differential/differences.yaml`; a row that explains nothing is an error as well.

mod bootstrap;
mod compare;
mod observe;
mod run;
mod theme;

pub use compare::{Difference, Row, Verdict, judge, rows};
pub use run::{Run, run};
pub use theme::{Request, Theme, themes};
