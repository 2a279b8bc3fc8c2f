//! What a busy socket holds: received chunks that wait to be read, and parts that wait to be sent.

use std::collections::VecDeque;
use std::ptr;

use crate::buffer::Chunk;
use crate::part::Part;

/// Parts that one gathered send takes at most.
pub(crate) const GATHER_MAX: usize = 32;
/// A part of at most this many bytes is copied behind a write buffer that has room: the copy costs less than another
/// vector, and gives a lease back at once.
const COPIED_BYTES_MAX: usize = 2048;

/// The queues of a busy socket. They live in a box of their own, so that the kernel may keep pointers into it, and go
/// back to a free list when the socket falls idle.
pub(crate) struct Lanes {
    /// Received and not yet read.
    pub(crate) input: VecDeque<Chunk>,
    /// Written and not yet sent.
    output: VecDeque<Part>,
    /// Bytes of the first output part that are sent already.
    sent_of_front: usize,
    /// Parts at the front that a running send refers to: they neither move nor grow.
    gathered: usize,
    message: libc::msghdr,
    vectors: [libc::iovec; GATHER_MAX],
}

/// Queues that no socket uses.
/// A box moves between this list and a socket as one pointer; its 700 bytes stay in place.
pub(crate) type FreeLanes = Vec<Box<Lanes>>;

/// What one send operation sends.
pub(crate) enum Gathered {
    /// One stretch of bytes.
    One { start: *const u8, length: usize },
    /// Several, by a message header within the lanes.
    Many(*const libc::msghdr),
}

impl Lanes {
    pub(crate) fn new() -> Box<Lanes> {
        let nothing = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        // SAFETY: a message header is integers and pointers, for which all zeroes means none.
        let message = unsafe { std::mem::zeroed::<libc::msghdr>() };
        Box::new(Lanes {
            input: VecDeque::new(),
            output: VecDeque::new(),
            sent_of_front: 0,
            gathered: 0,
            message,
            vectors: [nothing; GATHER_MAX],
        })
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.input.is_empty() && self.output.is_empty()
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    pub(crate) fn output_parts(&self) -> usize {
        self.output.len()
    }

    /// Adds a part behind the others, by copy where that is cheaper.
    pub(crate) fn push(&mut self, part: Part) {
        let bytes = part.bytes();
        if bytes.len() <= COPIED_BYTES_MAX
            && self.output.len() > self.gathered
            && let Some(Part::Buffer(last)) = self.output.back_mut()
            && last.capacity() - last.len() >= bytes.len()
        {
            last.extend_from_slice(bytes);
            return;
        }
        self.output.push_back(part);
    }

    /// Points the next send at the first parts. The pointers stay good until [`Lanes::sent`]: parts keep their bytes
    /// where they are, none is taken out, and a box does not move.
    pub(crate) fn gather(&mut self) -> Gathered {
        debug_assert!(self.gathered == 0 && !self.output.is_empty(), "one send at a time, of something");
        let mut skip = self.sent_of_front;
        if self.output.len() == 1
            && let Some(only) = self.output.front()
        {
            self.gathered = 1;
            let rest = only.bytes().get(skip..).unwrap_or_default();
            return Gathered::One { start: rest.as_ptr(), length: rest.len() };
        }
        self.gathered = self.output.len().min(GATHER_MAX);
        for (vector, part) in self.vectors.iter_mut().zip(&self.output) {
            let rest = part.bytes().get(skip..).unwrap_or_default();
            *vector = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
            skip = 0;
        }
        self.message.msg_iov = self.vectors.as_mut_ptr();
        self.message.msg_iovlen = self.gathered as _;
        Gathered::Many(&raw const self.message)
    }

    /// Ends a send: drops what it has sent.
    pub(crate) fn sent(&mut self, mut bytes: usize) {
        self.gathered = 0;
        while let Some(front) = self.output.front() {
            let rest = front.bytes().len() - self.sent_of_front;
            if bytes < rest {
                self.sent_of_front += bytes;
                return;
            }
            bytes -= rest;
            self.sent_of_front = 0;
            self.output.pop_front();
        }
    }

    /// Drops all output; no send is running.
    pub(crate) fn clear_output(&mut self) {
        debug_assert_eq!(self.gathered, 0, "the kernel does not refer to what is dropped");
        self.sent_of_front = 0;
        self.output.clear();
    }

    /// The header of the running send.
    pub(crate) fn message(&self) -> *const libc::msghdr {
        &raw const self.message
    }

    /// What is left of the first part.
    pub(crate) fn first_unsent(&self) -> &[u8] {
        self.output.front().and_then(|part| part.bytes().get(self.sent_of_front..)).unwrap_or_default()
    }

    /// Visits what the running send sends, in order.
    pub(crate) fn each_unsent(&self, mut visit: impl FnMut(&[u8])) {
        let mut skip = self.sent_of_front;
        for part in self.output.iter().take(self.gathered) {
            visit(part.bytes().get(skip..).unwrap_or_default());
            skip = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::part::{WRITE_BUFFER_BYTES, WritePool};

    fn unsent(lanes: &Lanes) -> Vec<u8> {
        let mut all = Vec::new();
        lanes.each_unsent(|bytes| all.extend_from_slice(bytes));
        all
    }

    #[test]
    fn short_sends_go_on_where_they_stopped() {
        let mut lanes = Lanes::new();
        lanes.push("hello ".into());
        lanes.push("wide ".into());
        lanes.push("world".into());
        let mut seen = Vec::new();
        for step in [1, 5, 0, 7, 3] {
            lanes.gather();
            let left = unsent(&lanes);
            seen.extend_from_slice(&left[..step]);
            lanes.sent(step);
        }
        assert_eq!(seen, b"hello wide world");
        assert!(lanes.is_idle());
    }

    #[test]
    fn small_parts_are_copied_behind_a_buffer_that_does_not_fly() {
        let pool = Rc::new(WritePool::default());
        let mut lanes = Lanes::new();
        let mut head = WritePool::get(&pool);
        head.extend_from_slice(b"head ");
        lanes.push(head.into());
        lanes.push("body".into());
        assert_eq!(lanes.output_parts(), 1);
        assert!(matches!(lanes.gather(), Gathered::One { length: 9, .. }));
        lanes.push("more".into());
        assert_eq!(lanes.output_parts(), 2);
        assert_eq!(unsent(&lanes), b"head body");
        lanes.sent(9);
        lanes.gather();
        assert_eq!(unsent(&lanes), b"more");
    }

    #[test]
    fn a_large_part_is_not_copied() {
        let pool = Rc::new(WritePool::default());
        let mut lanes = Lanes::new();
        lanes.push(WritePool::get(&pool).into());
        const LARGE: &[u8] = &[0; WRITE_BUFFER_BYTES];
        lanes.push(LARGE.into());
        assert_eq!(lanes.output_parts(), 2);
    }

    #[test]
    fn more_parts_than_vectors_leave_in_several_sends() {
        let mut lanes = Lanes::new();
        for _ in 0..GATHER_MAX + 3 {
            lanes.push("ab".into());
        }
        lanes.gather();
        assert_eq!(unsent(&lanes).len(), 2 * GATHER_MAX);
        lanes.sent(2 * GATHER_MAX);
        lanes.gather();
        assert_eq!(unsent(&lanes).len(), 6);
    }
}
