//! What is written: buffers of our own, received chunks, and bytes that live elsewhere.

use std::cell::RefCell;
use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;

use crate::buffer::Chunk;

/// One piece of what a socket writes; pieces leave in order, gathered.
pub enum Part {
    /// Bytes built here.
    Buffer(WriteBuffer),
    /// Bytes as they were received.
    Chunk(Chunk),
    /// Bytes of the program itself.
    Static(&'static [u8]),
    /// Bytes that others hold too, such as a configured body.
    Shared(Arc<[u8]>),
}

impl Part {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Buffer(buffer) => buffer,
            Self::Chunk(chunk) => chunk,
            Self::Static(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

impl From<WriteBuffer> for Part {
    fn from(buffer: WriteBuffer) -> Part {
        Part::Buffer(buffer)
    }
}

impl From<Chunk> for Part {
    fn from(chunk: Chunk) -> Part {
        Part::Chunk(chunk)
    }
}

impl From<&'static [u8]> for Part {
    fn from(bytes: &'static [u8]) -> Part {
        Part::Static(bytes)
    }
}

impl<const N: usize> From<&'static [u8; N]> for Part {
    fn from(bytes: &'static [u8; N]) -> Part {
        Part::Static(bytes)
    }
}

impl From<&'static str> for Part {
    fn from(text: &'static str) -> Part {
        Part::Static(text.as_bytes())
    }
}

impl From<Arc<[u8]>> for Part {
    fn from(bytes: Arc<[u8]>) -> Part {
        Part::Shared(bytes)
    }
}

/// A byte vector of the ring's: it returns to the ring's free list when it has been sent or is dropped.
pub struct WriteBuffer {
    bytes: Vec<u8>,
    home: Rc<WritePool>,
}

impl Deref for WriteBuffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for WriteBuffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for WriteBuffer {
    fn drop(&mut self) {
        self.home.put(mem::take(&mut self.bytes));
    }
}

impl fmt::Debug for WriteBuffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "WriteBuffer({:?})", self.bytes.escape_ascii().to_string())
    }
}

/// Capacity of a new write buffer, in bytes: a response head and a small body.
pub(crate) const WRITE_BUFFER_BYTES: usize = 4096;
/// A vector that grew beyond this is freed and not kept.
const KEPT_BYTES_MAX: usize = 64 * 1024;
/// Vectors that the free list keeps.
const KEPT_COUNT_MAX: usize = 256;

/// The free list of write buffers of one ring.
#[derive(Default)]
pub(crate) struct WritePool {
    free: RefCell<Vec<Vec<u8>>>,
}

impl WritePool {
    pub(crate) fn get(home: &Rc<WritePool>) -> WriteBuffer {
        let bytes = home.free.borrow_mut().pop();
        let bytes = bytes.unwrap_or_else(|| Vec::with_capacity(WRITE_BUFFER_BYTES));
        WriteBuffer { bytes, home: Rc::clone(home) }
    }

    fn put(&self, mut bytes: Vec<u8>) {
        let mut free = self.free.borrow_mut();
        if free.len() < KEPT_COUNT_MAX && bytes.capacity() <= KEPT_BYTES_MAX && bytes.capacity() > 0 {
            bytes.clear();
            free.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_buffer_returns_empty() {
        let home = Rc::new(WritePool::default());
        let mut buffer = WritePool::get(&home);
        buffer.extend_from_slice(b"abc");
        let at = buffer.as_ptr();
        drop(buffer);
        let again = WritePool::get(&home);
        assert!(again.is_empty());
        assert_eq!(again.as_ptr(), at);
    }

    #[test]
    fn a_buffer_that_grew_large_is_freed() {
        let home = Rc::new(WritePool::default());
        let mut buffer = WritePool::get(&home);
        buffer.resize(KEPT_BYTES_MAX + 1, 0);
        drop(buffer);
        assert!(home.free.borrow().is_empty());
    }
}
