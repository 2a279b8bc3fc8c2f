//! Receive buffers: one mapping per ring, leased out in counted references and returned when the last one is dropped.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::ops::Deref;
use std::ptr;
use std::rc::Rc;
use std::slice;

use crate::sys::Mapping;

/// Received bytes, leased from the ring; the buffer returns when the last chunk on it is dropped.
///
/// A clone shares the buffer and copies nothing. A chunk holds its whole buffer: keep one across a wait only to forward
/// it, and copy out what an unfinished message needs.
pub struct Chunk {
    pool: Rc<Pool>,
    start: *const u8,
    length: u32,
    buffer: u32,
}

impl Chunk {
    /// Leases a buffer that the driver has filled with `length` bytes.
    pub(crate) fn lease(pool: &Rc<Pool>, buffer: u16, length: usize) -> Chunk {
        debug_assert!(length <= pool.buffer_bytes as usize, "a receive fits its buffer");
        let index = u32::from(buffer);
        pool.references[buffer as usize].set(1);
        pool.leased.set(pool.leased.get() + 1);
        Chunk { pool: Rc::clone(pool), start: pool.pointer(buffer), length: length as u32, buffer: index }
    }

    /// Copies bytes into memory of their own, which no lease is taken for.
    pub(crate) fn copied(pool: &Rc<Pool>, bytes: &[u8]) -> Chunk {
        let (buffer, start) = pool.heap.borrow_mut().insert(pool.count, bytes);
        Chunk { pool: Rc::clone(pool), start, length: bytes.len() as u32, buffer }
    }

    /// Bytes in the chunk.
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Drops the first `count` bytes; all of them when there are fewer.
    pub fn advance(&mut self, count: usize) {
        let count = count.min(self.len());
        // SAFETY: `count` is at most the chunk's length, so the result stays within (or one past) the buffer.
        self.start = unsafe { self.start.add(count) };
        self.length -= count as u32;
    }

    /// Splits the first `count` bytes off as a chunk on the same buffer; all of them when there are fewer.
    #[must_use]
    pub fn split_to(&mut self, count: usize) -> Chunk {
        let mut head = self.clone();
        head.truncate(count);
        self.advance(count);
        head
    }

    /// Drops all but the first `count` bytes.
    pub fn truncate(&mut self, count: usize) {
        self.length = count.min(self.len()) as u32;
    }

    /// Moves the bytes to memory of their own, so that the buffer returns to the ring.
    ///
    /// For the few bytes of an unfinished message that must outlive a wait: a peer that sends one byte at a time then
    /// holds one byte and not a buffer.
    pub fn compact(&mut self) {
        if self.buffer < self.pool.count {
            *self = Chunk::copied(&self.pool, self);
        }
    }

    /// Whether the chunk keeps a buffer from the ring.
    pub(crate) fn is_leased(&self) -> bool {
        self.buffer < self.pool.count
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: start and length lie within a buffer that this reference keeps leased, so it is mapped, it was filled
        // before it was leased, and nothing writes to it until the last reference is gone.
        unsafe { slice::from_raw_parts(self.start, self.length as usize) }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Clone for Chunk {
    fn clone(&self) -> Chunk {
        match self.pool.references.get(self.buffer as usize) {
            Some(references) => references.set(references.get() + 1),
            None => self.pool.heap.borrow_mut().retain(self.buffer - self.pool.count),
        }
        Chunk { pool: Rc::clone(&self.pool), start: self.start, length: self.length, buffer: self.buffer }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        match self.pool.references.get(self.buffer as usize) {
            Some(references) => {
                let left = references.get() - 1;
                references.set(left);
                if left == 0 {
                    self.pool.leased.set(self.pool.leased.get() - 1);
                    self.pool.give_back(self.buffer as u16);
                }
            }
            None => self.pool.heap.borrow_mut().release(self.buffer - self.pool.count),
        }
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Chunk({:?})", self.escape_ascii().to_string())
    }
}

/// The buffers of one ring.
pub(crate) struct Pool {
    memory: Mapping,
    buffer_bytes: u32,
    count: u32,
    /// Chunks on each buffer; zero while the buffer is free or the driver's.
    references: Box<[Cell<u32>]>,
    /// Buffers that nobody holds; the last one returned is the next one taken, for it is the one in cache.
    free: RefCell<Vec<u16>>,
    leased: Cell<u32>,
    heap: RefCell<Heap>,
}

impl Pool {
    pub(crate) fn new(count: u16, buffer_bytes: u32) -> io::Result<Pool> {
        let memory = Mapping::new(usize::from(count) * buffer_bytes as usize)?;
        Ok(Pool {
            memory,
            buffer_bytes,
            count: u32::from(count),
            references: (0..count).map(|_| Cell::new(0)).collect(),
            free: RefCell::new((0..count).rev().collect()),
            leased: Cell::new(0),
            heap: RefCell::new(Heap::default()),
        })
    }

    pub(crate) fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    /// Where a buffer starts.
    pub(crate) fn pointer(&self, buffer: u16) -> *mut u8 {
        assert!(u32::from(buffer) < self.count, "a buffer index lies within the pool");
        // SAFETY: the index is below the count, and the mapping holds count times buffer_bytes.
        unsafe { self.memory.pointer().add(usize::from(buffer) * self.buffer_bytes as usize) }
    }

    /// Takes a free buffer for the driver to fill.
    pub(crate) fn take(&self) -> Option<u16> {
        self.free.borrow_mut().pop()
    }

    /// Fills a buffer that was taken, from its start.
    pub(crate) fn fill(&self, buffer: u16, bytes: &[u8]) {
        assert!(bytes.len() <= self.buffer_bytes as usize, "the bytes fit the buffer");
        assert_eq!(self.references[usize::from(buffer)].get(), 0, "nobody refers to the buffer");
        let start = self.pointer(buffer);
        // SAFETY: the buffer is as long as asserted, and no chunk refers to it, so nobody reads it; a mapping of our own
        // does not overlap the caller's slice, which cannot borrow from a buffer that no chunk refers to.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
    }

    /// Returns a buffer that no chunk refers to.
    pub(crate) fn give_back(&self, buffer: u16) {
        debug_assert_eq!(self.references[usize::from(buffer)].get(), 0, "a buffer returns once nobody refers to it");
        self.free.borrow_mut().push(buffer);
    }

    /// Buffers that nobody holds.
    pub(crate) fn free_count(&self) -> usize {
        self.free.borrow().len()
    }

    /// Buffers that chunks refer to.
    pub(crate) fn leased_count(&self) -> u32 {
        self.leased.get()
    }

    /// Whether so few buffers are left that none should be held for long.
    pub(crate) fn is_scarce(&self) -> bool {
        self.leased.get() > self.count / 2
    }

    /// Copies that stand outside the mapping.
    pub(crate) fn copied_count(&self) -> usize {
        let heap = self.heap.borrow();
        heap.slots.len() - heap.vacant.len()
    }
}

/// Bytes outside the mapping: copies of small pieces, so that they do not hold a buffer.
#[derive(Default)]
struct Heap {
    slots: Vec<HeapSlot>,
    vacant: Vec<u32>,
}

struct HeapSlot {
    references: u32,
    bytes: Box<[u8]>,
}

impl Heap {
    fn insert(&mut self, first_index: u32, bytes: &[u8]) -> (u32, *const u8) {
        let slot = HeapSlot { references: 1, bytes: bytes.into() };
        // The bytes are boxed: they stay where they are when the slots move.
        let start = if slot.bytes.is_empty() { ptr::dangling() } else { slot.bytes.as_ptr() };
        let index = match self.vacant.pop() {
            Some(index) => {
                self.slots[index as usize] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
        };
        (first_index + index, start)
    }

    fn retain(&mut self, index: u32) {
        self.slots[index as usize].references += 1;
    }

    fn release(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.references -= 1;
        if slot.references == 0 {
            slot.bytes = Box::default();
            self.vacant.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(pool: &Rc<Pool>, bytes: &[u8]) -> Chunk {
        let buffer = pool.take().unwrap();
        pool.fill(buffer, bytes);
        Chunk::lease(pool, buffer, bytes.len())
    }

    #[test]
    fn a_buffer_returns_with_its_last_chunk() {
        let pool = Rc::new(Pool::new(2, 4096).unwrap());
        let mut whole = filled(&pool, b"hello world");
        assert_eq!((pool.free_count(), pool.leased_count()), (1, 1));
        let head = whole.split_to(6);
        assert_eq!((&head[..], &whole[..]), (&b"hello "[..], &b"world"[..]));
        let copy = whole.clone();
        drop((head, whole));
        assert_eq!(pool.free_count(), 1);
        assert_eq!(&copy[..], b"world");
        drop(copy);
        assert_eq!((pool.free_count(), pool.leased_count()), (2, 0));
    }

    #[test]
    fn cuts_beyond_the_end_are_cut_at_the_end() {
        let pool = Rc::new(Pool::new(1, 4096).unwrap());
        let mut chunk = filled(&pool, b"abc");
        chunk.truncate(10);
        assert_eq!(chunk.len(), 3);
        assert_eq!(&chunk.split_to(10)[..], b"abc");
        chunk.advance(1);
        assert!(chunk.is_empty());
    }

    #[test]
    fn compacting_returns_the_buffer_and_keeps_the_bytes() {
        let pool = Rc::new(Pool::new(1, 4096).unwrap());
        let mut chunk = filled(&pool, b"abcdef");
        chunk.advance(2);
        chunk.compact();
        assert_eq!((pool.free_count(), pool.copied_count()), (1, 1));
        let copy = chunk.clone();
        let other = filled(&pool, b"xxxxxx");
        assert_eq!((&chunk[..], &copy[..], &other[..]), (&b"cdef"[..], &b"cdef"[..], &b"xxxxxx"[..]));
        drop((chunk, copy));
        assert_eq!(pool.copied_count(), 0);
        let mut empty = Chunk::copied(&pool, b"");
        empty.compact();
        assert!(empty.is_empty());
    }
}
