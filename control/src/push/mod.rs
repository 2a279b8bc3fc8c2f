//! What changed, who must hear of it, and what each proxy answered.

mod client;
mod hub;

pub use client::{Client, ClientStatus, TypeStatus};
pub use hub::{Change, Generation, Hub, View};
