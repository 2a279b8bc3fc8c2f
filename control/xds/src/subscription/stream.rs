//! The subscriptions that share a stream: one for each type in ADS, a single one where a type has a source of its own.

use std::time::Instant;

use super::{Received, Rejection, Request, Response, Subscription};

/// The subscriptions of one stream.
#[derive(Debug)]
pub struct Stream {
    subscriptions: Vec<Subscription>,
    /// Source: ApiConfigSource.set_node_on_first_message_only.
    node_once: bool,
    node_sent: bool,
}

impl Stream {
    /// Requests are made in the order of `subscriptions`.
    pub fn new(subscriptions: Vec<Subscription>, node_once: bool) -> Self {
        Self { subscriptions, node_once, node_sent: false }
    }

    /// The subscription to `type_url`.
    pub fn subscription(&self, type_url: &str) -> Option<&Subscription> {
        self.subscriptions.iter().find(|it| **it.type_url() == *type_url)
    }

    /// The subscription to `type_url`, to change what is asked for.
    pub fn subscription_mut(&mut self, type_url: &str) -> Option<&mut Subscription> {
        self.subscriptions.iter_mut().find(|it| **it.type_url() == *type_url)
    }

    /// Every subscription in order.
    pub fn subscriptions_mut(&mut self) -> impl Iterator<Item = &mut Subscription> {
        self.subscriptions.iter_mut()
    }

    /// The connection is there.
    pub fn open(&mut self, now: Instant) {
        self.node_sent = false;
        self.subscriptions.iter_mut().for_each(|it| it.open(now));
    }

    /// The connection is gone.
    pub fn close(&mut self) {
        self.subscriptions.iter_mut().for_each(Subscription::close);
    }

    /// See [`Subscription::on_response`]; `None` where nobody asked for this type.
    pub fn on_response(
        &mut self,
        type_url: &str,
        response: Response,
        now: Instant,
    ) -> Option<Result<Received, String>> {
        Some(self.subscription_mut(type_url)?.on_response(response, now))
    }

    /// See [`Subscription::conclude`].
    pub fn conclude(&mut self, type_url: &str, rejections: &[Rejection]) {
        if let Some(subscription) = self.subscription_mut(type_url) {
            subscription.conclude(rejections);
        }
    }

    /// The next request that is due.
    pub fn poll_request(&mut self) -> Option<Request> {
        for subscription in &mut self.subscriptions {
            if let Some(ask) = subscription.poll_request() {
                let with_node = !(self.node_once && self.node_sent);
                self.node_sent = true;
                return Some(Request { type_url: subscription.type_url().clone(), with_node, ask });
            }
        }
        None
    }

    /// When a subscription has something that is missing or expired.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.subscriptions.iter().filter_map(Subscription::next_deadline).min()
    }
}
