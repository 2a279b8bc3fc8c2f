//! Slots with generations: a key of a former tenant finds nothing.
//!
//! Slots stand in pages that never move: growing copies nothing, and leaves no memory behind as a vector would.

/// Where a value lives; packs into the 64-bit token that the ring hands back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlabKey {
    index: u32,
    generation: u32,
}

impl SlabKey {
    /// The key as a token of 63 bits; the top bit is free for the caller.
    pub fn token(self) -> u64 {
        u64::from(self.generation & GENERATION_MASK) << 32 | u64::from(self.index)
    }

    /// The key that [`Self::token`] packed.
    pub fn from_token(token: u64) -> Self {
        Self { index: token as u32, generation: (token >> 32) as u32 & GENERATION_MASK }
    }
}

/// A slab whose removed slots are reused, newest first.
pub struct Slab<T> {
    /// All full but the last.
    pages: Vec<Vec<Slot<T>>>,
    free: Vec<u32>,
    count: usize,
}

/// Slots in one page.
const PAGE_SLOTS: usize = 64;

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), free: Vec::new(), count: 0 }
    }
}

impl<T> Slab<T> {
    /// Stores `value`; the key finds it until it is removed.
    pub fn insert(&mut self, value: T) -> SlabKey {
        self.count += 1;
        if let Some(index) = self.free.pop()
            && let Some(slot) = self.slot_mut(index)
        {
            slot.value = Some(value);
            return SlabKey { index, generation: slot.generation };
        }
        let slot = Slot { generation: 0, value: Some(value) };
        let in_page = match self.pages.last_mut() {
            Some(page) if page.len() < PAGE_SLOTS => {
                page.push(slot);
                page.len() - 1
            }
            _ => {
                let mut page = Vec::with_capacity(PAGE_SLOTS);
                page.push(slot);
                self.pages.push(page);
                0
            }
        };
        let index = (self.pages.len() - 1) * PAGE_SLOTS + in_page;
        SlabKey { index: index as u32, generation: 0 }
    }

    #[inline]
    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot<T>> {
        self.pages.get_mut(index as usize / PAGE_SLOTS)?.get_mut(index as usize % PAGE_SLOTS)
    }

    /// The value at `key`.
    pub fn get_mut(&mut self, key: SlabKey) -> Option<&mut T> {
        let slot = self.slot_mut(key.index)?;
        if slot.generation == key.generation { slot.value.as_mut() } else { None }
    }

    /// Takes the value at `key` out; the key is dead from now on.
    pub fn remove(&mut self, key: SlabKey) -> Option<T> {
        let slot = self.slot_mut(key.index)?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1) & GENERATION_MASK;
        self.free.push(key.index);
        self.count -= 1;
        Some(value)
    }

    /// How many values are stored.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every key and value.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (SlabKey, &mut T)> {
        self.pages.iter_mut().flatten().enumerate().filter_map(|(index, slot)| {
            let key = SlabKey { index: index as u32, generation: slot.generation };
            slot.value.as_mut().map(|value| (key, value))
        })
    }
}

/// Generations have 31 bits, so that a token keeps its top bit free.
const GENERATION_MASK: u32 = 0x7fff_ffff;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_former_tenant_finds_nothing() {
        let mut slab = Slab::default();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(SlabKey::from_token(second.token()), second);
        assert_eq!(slab.get_mut(second), Some(&mut "second"));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn generations_wrap_below_the_top_bit() {
        let mut slab = Slab::default();
        let key = slab.insert(0);
        slab.remove(key);
        slab.pages[0][0].generation = GENERATION_MASK;
        let last = slab.insert(1);
        assert_eq!(last.token() >> 63, 0);
        assert_eq!(slab.remove(SlabKey::from_token(last.token())), Some(1));
        let wrapped = slab.insert(2);
        assert_eq!(slab.get_mut(last), None);
        assert_eq!(slab.get_mut(wrapped), Some(&mut 2));
    }

    #[test]
    fn slots_stay_where_they_are_while_the_slab_grows() {
        let mut slab = Slab::default();
        let first = slab.insert(0);
        let at = std::ptr::from_mut(slab.get_mut(first).unwrap());
        let keys: Vec<SlabKey> = (1..1000).map(|value| slab.insert(value)).collect();
        assert_eq!(std::ptr::from_mut(slab.get_mut(first).unwrap()), at);
        assert!(keys.iter().zip(1..).all(|(key, value)| slab.get_mut(*key) == Some(&mut value.clone())));
        assert_eq!(slab.iter_mut().map(|(_, value)| *value).collect::<Vec<_>>(), (0..1000).collect::<Vec<_>>());
    }
}
