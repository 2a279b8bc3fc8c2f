//! What the micro benchmarks measure: the pieces of a request's way that are work of our own. `benches/instructions.rs` counts
//! their instructions, `benches/time.rs` takes their time; both call the functions of this crate.
//!
//! Everything is made by a `new` or a free function, which is not measured, and used by `run`, which is. `run` gives back a
//! number that depends on the work, so that none of it can be left out.

pub mod balance;
pub mod format;
pub mod head;
pub mod mutation;
pub mod publication;
pub mod route;
