//! Rewrites of the proxy's own replies. Source: LocalReplyConfig.

/// `local_reply_config`, compiled.
#[derive(Default)]
pub struct LocalReplyMapper {}
