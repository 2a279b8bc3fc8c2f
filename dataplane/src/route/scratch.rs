//! Memory that routing reuses from request to request.

/// One a worker. After warm-up, matching and rewriting allocate nothing.
#[derive(Default)]
pub struct Scratch {
    pub(crate) value: Vec<u8>,
    pub(crate) pending: Vec<u8>,
}
