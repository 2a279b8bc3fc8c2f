//! Discovered secrets: what listeners and clusters name, compiled anew into each of them when one changes.
//!
//! A secret is tried on everything that names it before it is taken: where one of them cannot use it, all stay as they were.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use torus_xds::subscription::Resource;

use super::clusters::Clusters;
use super::kind::Kind;
use super::listeners::Listeners;
use super::source::SourceIndex;
use super::{Change, read};
use crate::tls::secret::{self, Found, NamesSecrets, SecretKey};

/// Takes a secret. Whether it is another than before.
pub(super) fn put(
    source: SourceIndex,
    resource: &Resource,
    clusters: &mut Clusters,
    listeners: &mut Listeners,
    change: &mut Change<'_>,
) -> Result<bool, String> {
    let body = resource.body.as_deref().unwrap_or_default();
    let key: SecretKey = (source, resource.name.clone());
    if change.context.secrets.found(&key).is_some_and(|known| *known.body == *body) {
        return Ok(false);
    }
    let secret = read(body, change.context, |secret: &Secret, context| {
        if *secret.name != *resource.name {
            return Err(context.reject("name", format!("is `{}`, not `{}`", secret.name, resource.name)));
        }
        secret::check(secret, context).map(|()| Arc::new(secret.clone()))
    })?;
    let before = change.context.secrets.insert(&key, Found { body: body.into(), secret });
    match renew(&key, clusters, listeners, change) {
        Err(reason) => {
            change.context.secrets.restore(&key, before);
            return Err(reason);
        }
        Ok(true) => {
            clusters.distrust(&key, change);
            *change.ends_trust = true;
        }
        Ok(false) => {}
    }
    let config = change.config(resource);
    change.records.activate(Kind::Secret, &resource.name, config);
    change.records.awaited_secrets.remove(&resource.name);
    settle(clusters, listeners, change);
    Ok(true)
}

/// A secret did not come in time: what waits for it goes live without.
pub(super) fn give_up_on(
    source: SourceIndex,
    name: &str,
    clusters: &mut Clusters,
    listeners: &mut Listeners,
    change: &mut Change<'_>,
) {
    change.context.secrets.give_up((source, name.into()));
    settle(clusters, listeners, change);
}

/// Which secrets are needed now, and how long each may be missing at first. Others are forgotten.
pub(super) fn wanted(
    clusters: &Clusters,
    listeners: &Listeners,
    change: &mut Change<'_>,
) -> BTreeMap<SourceIndex, BTreeMap<Box<str>, Duration>> {
    let mut wanted: BTreeMap<SourceIndex, BTreeMap<Box<str>, Duration>> = BTreeMap::new();
    for user in clusters.tls_contexts().chain(listeners.tls_contexts(change.draft)) {
        for key in user.secrets() {
            wanted.entry(key.0).or_default().insert(key.1.clone(), change.context.secrets.limit(key));
        }
    }
    change.context.secrets.retain(&wanted);
    let is_wanted = |name: &str| wanted.values().any(|names| names.contains_key(name));
    change.records.retain_secrets(is_wanted);
    let texts = &mut change.records.texts;
    change.stats.secrets.retain(|name, stats| {
        let stays = is_wanted(name);
        if !stays {
            texts.remove(&format!("{}version_text", stats.prefix()));
        }
        stays
    });
    for name in wanted.values().flat_map(BTreeMap::keys) {
        if let Some(text) = change.stats.follow_secret(name) {
            texts.insert(text, "".into());
            change.records.awaited_secrets.insert(name.clone(), SystemTime::now());
        }
    }
    wanted
}

/// Compiles everything that names the secret, and then gives it to new handshakes. Whether somebody who was believed may not be any
/// more.
fn renew(key: &SecretKey, clusters: &Clusters, listeners: &Listeners, change: &mut Change<'_>) -> Result<bool, String> {
    let users: Vec<&dyn NamesSecrets> = clusters
        .tls_contexts()
        .chain(listeners.tls_contexts(change.draft))
        .filter(|it| it.secrets().contains(key))
        .collect();
    let mut renewed = Vec::with_capacity(users.len());
    for user in users {
        let made = user.renew(change.context);
        let problems = change.context.problems.take();
        renewed.push(made.map_err(|_| problems.first().map_or_else(String::new, ToString::to_string))?);
    }
    let mut ends_trust = false;
    for renewed in renewed {
        ends_trust |= renewed();
    }
    Ok(ends_trust)
}

/// Lets go live what waited for a secret alone.
fn settle(clusters: &mut Clusters, listeners: &mut Listeners, change: &mut Change<'_>) {
    clusters.settle_all(change);
    listeners.promote(change);
}
