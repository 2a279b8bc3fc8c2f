//! All types of one stream.

use super::{Ask, Outcome, Push, Resource, Scope, Subscription, TypeUrl, Variant, Wanted};

/// The types that the control plane serves.
pub mod url {
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    pub const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
}

/// Make before break: what is referred to comes before what refers to it. Types that are not here come last.
pub const PUSH_ORDER: [&str; 5] = [url::CLUSTER, url::ENDPOINTS, url::LISTENER, url::ROUTES, url::SECRET];

/// One client's stream.
#[derive(Debug)]
pub struct Session {
    variant: Variant,
    /// In push order; few.
    types: Vec<(TypeUrl, Subscription)>,
}

impl Session {
    /// A stream on which nothing was said yet.
    pub fn new(variant: Variant) -> Self {
        Self { variant, types: Vec::new() }
    }

    /// Takes up a request. A stream has at most 32 types; more are not answered.
    pub fn on_request(&mut self, type_url: &str, ask: Ask) -> Outcome {
        if self.get(type_url).is_none() {
            if self.types.len() >= TYPES_MAX {
                return Outcome::Stale;
            }
            let scope = if matches!(type_url, url::CLUSTER | url::LISTENER) { Scope::World } else { Scope::Named };
            self.types.push((type_url.into(), Subscription::new(self.variant, scope)));
            self.types.sort_by_key(|(type_url, _)| rank(type_url));
        }
        self.get_mut(type_url).map_or(Outcome::Stale, |subscription| subscription.on_request(ask))
    }

    /// The resources of the types that `concerns` may be others now.
    pub fn on_change(&mut self, concerns: impl Fn(&str) -> bool) {
        for (_, subscription) in self.types.iter_mut().filter(|(type_url, _)| concerns(type_url)) {
            subscription.on_change();
        }
    }

    /// Of one type, only the resources called `names` may be others now.
    pub fn on_some_changed(&mut self, type_url: &str, names: &[Box<str>]) {
        if let Some(subscription) = self.get_mut(type_url) {
            subscription.on_some_changed(names);
        }
    }

    /// The first type for which something may have to be sent now, and what of it must be known for that.
    pub fn next_due(&self) -> Option<(TypeUrl, Wanted)> {
        let (type_url, subscription) = self.types.iter().find(|(_, subscription)| subscription.is_due())?;
        Some((type_url.clone(), subscription.wanted_now()))
    }

    /// What is to be sent of a type whose wanted `resources` are given.
    pub fn push(&mut self, type_url: &str, resources: Vec<Resource>) -> Option<Push> {
        let push = self.get_mut(type_url)?.push(resources)?;
        let child = match type_url {
            url::CLUSTER => Some(url::ENDPOINTS),
            url::LISTENER => Some(url::ROUTES),
            _ => None,
        };
        if let Some(child) = child.and_then(|child| self.get_mut(child)) {
            child.on_parent_pushed();
        }
        Some(push)
    }

    /// The types that the client spoke of.
    pub fn types(&self) -> impl Iterator<Item = (&str, &Subscription)> {
        self.types.iter().map(|(type_url, subscription)| (&**type_url, subscription))
    }

    /// One of them.
    pub fn get(&self, type_url: &str) -> Option<&Subscription> {
        self.types().find(|(known, _)| *known == type_url).map(|(_, subscription)| subscription)
    }

    fn get_mut(&mut self, type_url: &str) -> Option<&mut Subscription> {
        self.types.iter_mut().find(|(known, _)| &**known == type_url).map(|(_, subscription)| subscription)
    }
}

fn rank(type_url: &str) -> usize {
    PUSH_ORDER.iter().position(|known| *known == type_url).unwrap_or(PUSH_ORDER.len())
}

/// Envoy asks for about ten.
const TYPES_MAX: usize = 32;
