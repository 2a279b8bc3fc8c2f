//! Memory that routing reuses from request to request.

use super::pattern::RegexMemory;

/// One a worker. After warm-up, matching and rewriting allocate nothing.
#[derive(Default)]
pub struct Scratch {
    /// A value being built or looked at in another form.
    pub(crate) value: Vec<u8>,
    /// A second one, where two are needed at once.
    pub(crate) other: Vec<u8>,
    /// Formatted values that wait until all of their list are formatted.
    pub(crate) pending: Vec<u8>,
    /// What waits: index of the addition, end of its value in `pending`.
    pub(crate) pending_ends: Vec<(usize, usize)>,
    /// Ranges of `value` in an order of their own.
    pub(crate) ranges: Vec<(usize, usize)>,
    /// Search memory of patterns.
    pub(crate) regex: RegexMemory,
}
