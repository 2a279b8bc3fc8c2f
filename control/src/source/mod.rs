//! Where intent comes from: objects as Kubernetes shapes them, each with the place it was read from.

mod object;

pub use object::{Object, Place, ResourceName};
