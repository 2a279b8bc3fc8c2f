//! Where intent comes from: objects as Kubernetes shapes them, each with the place it was read from.

pub mod folder;
mod object;
mod read;
pub mod status_file;
pub mod watch;

pub use object::{Object, Place, ResourceName};
pub(crate) use read::push_name;
pub use read::{NAMESPACE_DEFAULT, read};
