//! One run from several machines: `run --workers` coordinates what `torus-load worker` does elsewhere.
//!
//! ```text
//! coordinator                       every worker
//!   run (flags, its place)  ->       opens its connections
//!                           <-       ready
//!   ping                    <->      pong, with its clock: the quickest of many tells how far the clocks are apart
//!   start at (its clock)    ->       sends its part of the one schedule
//!                           <-       an update each second, the whole record at the end
//! ```
//! Histograms are added, never averaged. A worker that is lost leaves a part of the schedule unsent: the run is invalid then.

pub mod coordinator;
mod message;
pub mod worker;

pub use self::coordinator::Remote;

/// The only method.
const PATH: &str = "/torus.load.v1.Worker/Run";
const SERVICE: &str = "torus.load.v1.Worker";
/// Largest message, in bytes: a record has some twenty histograms for each target.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
