//! Slots with generations: a key names one tenancy of a slot, and a slot is given out again only when it was freed.
//!
//! Slots stand in pages that never move: ten thousand connections more cost no copy of those that are there, and no memory
//! that a vector would have left behind or ahead of them.

/// One tenancy of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Bits of a generation that fit a completion's user data beside kind and index.
pub(crate) const GENERATION_MASK: u32 = 0x00ff_ffff;

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// Slots in one page.
const PAGE_SLOTS: usize = 64;

/// A table of slots.
pub(crate) struct Slab<T> {
    /// All full but the last.
    pages: Vec<Vec<Entry<T>>>,
    vacant: Vec<u32>,
    count: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), vacant: Vec::new(), count: 0 }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, value: T) -> Key {
        self.count += 1;
        if let Some(index) = self.vacant.pop()
            && let Some(entry) = self.entry_mut(index)
        {
            entry.value = Some(value);
            return Key { index, generation: entry.generation };
        }
        if self.pages.last().is_none_or(|page| page.len() == PAGE_SLOTS) {
            self.pages.push(Vec::with_capacity(PAGE_SLOTS));
        }
        let full = (self.pages.len() - 1) * PAGE_SLOTS;
        let page = &mut self.pages[full / PAGE_SLOTS];
        page.push(Entry { generation: 1, value: Some(value) });
        Key { index: (full + page.len()) as u32 - 1, generation: 1 }
    }

    #[inline]
    fn entry(&self, index: u32) -> Option<&Entry<T>> {
        self.pages.get(index as usize / PAGE_SLOTS)?.get(index as usize % PAGE_SLOTS)
    }

    #[inline]
    fn entry_mut(&mut self, index: u32) -> Option<&mut Entry<T>> {
        self.pages.get_mut(index as usize / PAGE_SLOTS)?.get_mut(index as usize % PAGE_SLOTS)
    }

    /// Frees a slot and ends its generation.
    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let entry = self.entry_mut(index)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1) & GENERATION_MASK;
        self.vacant.push(index);
        self.count -= 1;
        Some(value)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.entry(index)?.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.entry_mut(index)?.value.as_mut()
    }

    /// The key of a slot in use.
    pub(crate) fn key(&self, index: u32) -> Option<Key> {
        let entry = self.entry(index)?;
        entry.value.as_ref().map(|_| Key { index, generation: entry.generation })
    }

    /// Whether the tenancy that a key names still lasts.
    pub(crate) fn holds(&self, key: Key) -> bool {
        self.entry(key.index).is_some_and(|entry| entry.generation == key.generation && entry.value.is_some())
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Indices of the slots in use.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        let entries = self.pages.iter().flatten().enumerate();
        entries.filter(|(_, entry)| entry.value.is_some()).map(|(index, _)| index as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_with_its_tenancy() {
        let mut slab = Slab::default();
        let first = slab.insert('a');
        assert!(slab.holds(first));
        assert_eq!(slab.remove(first.index), Some('a'));
        assert_eq!(slab.remove(first.index), None);
        let second = slab.insert('b');
        assert_eq!(second.index, first.index);
        assert!(!slab.holds(first) && slab.holds(second));
        assert_eq!((slab.len(), slab.indices().collect::<Vec<_>>()), (1, vec![0]));
    }

    #[test]
    fn slots_stay_where_they_are_while_the_table_grows() {
        let mut slab = Slab::default();
        let first = slab.insert(0);
        let at = std::ptr::from_ref(slab.get(first.index).unwrap());
        let keys: Vec<Key> = (1..1000).map(|value| slab.insert(value)).collect();
        assert_eq!(std::ptr::from_ref(slab.get(first.index).unwrap()), at);
        assert!(keys.iter().zip(1..).all(|(key, value)| slab.get(key.index) == Some(&value)));
        assert_eq!(slab.indices().collect::<Vec<_>>(), (0..1000).collect::<Vec<_>>());
        assert_eq!((slab.remove(500), slab.len()), (Some(500), 999));
        assert_eq!((slab.insert(7).index, slab.len()), (500, 1000));
    }
}
