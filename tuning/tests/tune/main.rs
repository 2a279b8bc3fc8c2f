//! The real program, on real interfaces of its own network namespaces and on recorded trees.

mod bench;
mod killed;
mod machine;
mod namespace;
mod recorded;
mod support;
mod trees;
mod tuned;
