//! One connected proxy as the operator sees it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use envoy_types::pb::envoy::config::core::v3::Node;
use torus_xds::serving::Wanted;

use crate::serve::incoming::Peer;

/// A client and what it was sent.
pub struct Client {
    pub node: Node,
    /// The other end of its connection.
    pub peer: Peer,
    pub since: SystemTime,
    status: Mutex<ClientStatus>,
}

/// What a client was sent and answered, by type URL.
#[derive(Clone, Debug, Default)]
pub struct ClientStatus {
    pub types: BTreeMap<String, TypeStatus>,
}

/// One type on one stream.
#[derive(Clone, Debug)]
pub struct TypeStatus {
    pub wanted: Wanted,
    /// Version and nonce of the newest push; empty before the first.
    pub sent_version: String,
    pub sent_nonce: String,
    pub sent_at: Option<SystemTime>,
    /// Version and nonce of the newest push that was accepted.
    pub acked_version: String,
    pub acked_nonce: String,
    /// The client's reason, if it refused the newest push that it answered.
    pub refusal: Option<String>,
}

impl TypeStatus {
    /// A type of which nothing was sent yet.
    pub fn asked(wanted: Wanted) -> Self {
        Self {
            wanted,
            sent_version: String::new(),
            sent_nonce: String::new(),
            sent_at: None,
            acked_version: String::new(),
            acked_nonce: String::new(),
            refusal: None,
        }
    }

    /// `SYNCED`, `NOT SENT`, `STALE` or `ERROR`, as istioctl calls it.
    pub fn word(&self) -> &'static str {
        if self.refusal.is_some() {
            "ERROR"
        } else if self.sent_nonce.is_empty() {
            "NOT SENT"
        } else if self.sent_nonce == self.acked_nonce {
            "SYNCED"
        } else {
            "STALE"
        }
    }
}

impl Client {
    /// A client that was sent nothing.
    pub fn new(node: Node, peer: Peer) -> Self {
        Self { node, peer, since: SystemTime::now(), status: Mutex::default() }
    }

    /// A copy of the state.
    pub fn status(&self) -> ClientStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is known of a type.
    pub fn note(&self, type_url: &str, wanted: impl FnOnce() -> Wanted, change: impl FnOnce(&mut TypeStatus)) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        change(status.types.entry(type_url.to_owned()).or_insert_with(|| TypeStatus::asked(wanted())));
    }
}
