//! ReferenceGrants: who may point into another namespace.

use super::spec;
use crate::model::config::Config;

/// An object that points at another: its kind, in the Gateway API's group, and its namespace.
#[derive(Clone, Copy)]
pub(super) struct Pointing<'a> {
    pub(super) kind: &'a str,
    pub(super) namespace: &'a str,
}

/// All grants.
pub(super) struct Grants {
    pub(super) list: Vec<Config<spec::ReferenceGrant>>,
}

impl Grants {
    /// True if `from` may point at the object of another namespace. `group` is empty for Kubernetes' core.
    pub(super) fn allow(&self, from: Pointing<'_>, group: &str, kind: &str, namespace: &str, name: &str) -> bool {
        self.list.iter().filter(|grant| grant.namespace == namespace).any(|grant| {
            grant.spec.from.iter().any(|entry| {
                entry.group == super::GROUP && entry.kind == from.kind && entry.namespace == from.namespace
            }) && grant.spec.to.iter().any(|entry| {
                entry.group == group
                    && entry.kind == kind
                    && entry.name.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == name)
            })
        })
    }
}
