//! What discovery has accepted, told and taken back: a restart goes on where the process before it was.

use std::sync::Arc;
use std::time::Instant;

use torus_xds::subscription::{Resource, Response};

use super::disk::{Kept, KeptResource};
use super::kind::Kind;
use super::source::{Source, SourceIndex};
use super::{Discovery, Followed, lock};
use crate::config::snapshot::Snapshot;

impl Discovery {
    /// What was accepted and serves, but for what is to end by itself. Files are left out: they are on the disk already.
    pub fn kept(&self) -> Vec<Kept> {
        let mut all = Vec::new();
        for ((index, source), channel) in self.context.sources.iter().zip(&self.channels) {
            for kind in KINDS.into_iter().filter(|kind| source.target().is_some() && source.kinds().contains(kind)) {
                let Some(subscription) = channel.stream.subscription(kind.type_url()) else { continue };
                let mut is_whole = true;
                let mut resources = Vec::new();
                for (name, version) in subscription.accepted() {
                    let kept = match version {
                        Some(version) => self.kept_resource(index, kind, name, version),
                        None => None,
                    };
                    is_whole &= kept.is_some();
                    resources.extend(kept);
                }
                let version = if is_whole { subscription.version() } else { "" };
                all.push(Kept { source: words(source), kind, version: version.into(), resources });
            }
        }
        all
    }

    fn kept_resource(&self, source: SourceIndex, kind: Kind, name: &str, version: &str) -> Option<KeptResource> {
        let (version, body) = match kind {
            Kind::Endpoints => (version.into(), self.clusters.assignment(source, name)?),
            _ => {
                let records = lock(&self.records);
                // What waits is not known to be good.
                let config = records.of(kind).get(name)?.active.as_ref()?;
                (config.version.clone(), Arc::clone(&config.body))
            }
        };
        Some(KeptResource { name: name.into(), version, body })
    }

    /// Takes what was kept, as if the servers had sent it before they went away. They are asked for what differs.
    pub fn restore(&mut self, kept: &[Kept], now: Instant, draft: &mut Snapshot) -> Followed {
        let mut followed = Followed::default();
        self.is_restoring = true;
        // What names something comes before it, so that it is asked for by then.
        for kind in KINDS {
            let sources: Vec<(SourceIndex, String)> =
                self.context.sources.iter().map(|(index, source)| (index, words(source))).collect();
            for (index, words) in sources {
                let Some(part) = kept.iter().find(|part| part.kind == kind && part.source == words) else { continue };
                let resource = |it: &KeptResource| Resource {
                    name: it.name.clone(),
                    version: it.version.clone(),
                    type_url: kind.type_url().into(),
                    body: Some(it.body.to_vec()),
                    ..Resource::default()
                };
                let response = Response {
                    version: part.version.clone(),
                    nonce: "".into(),
                    resources: part.resources.iter().map(resource).collect(),
                    removed: Vec::new(),
                };
                self.on_response(index, kind.type_url(), response, now, draft, &mut followed);
                self.ask(now, draft);
            }
        }
        self.is_restoring = false;
        followed
    }
}

/// The source, as it is called in files.
fn words(source: &Source) -> String {
    format!("{source:?}")
}

/// What is kept, each after what names it. Secrets are not.
const KINDS: [Kind; 4] = [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::Routes];
