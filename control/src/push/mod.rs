//! What changed, who must hear of it, and what each proxy answered.

mod client;
mod hub;
mod mesh_view;

pub use client::{Client, ClientStatus, TypeStatus};
pub use hub::{Change, Generation, Hub, LogControl, View};
pub use mesh_view::{MeshView, line as finding_line};
