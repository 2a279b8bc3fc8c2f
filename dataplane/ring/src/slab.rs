//! Slots with generations: a key names one tenancy of a slot, and a slot is given out again only when it was freed.

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

/// A table of slots.
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    vacant: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), vacant: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.vacant.pop()
            && let Some(entry) = self.entries.get_mut(index as usize)
        {
            entry.value = Some(value);
            return Key { index, generation: entry.generation };
        }
        self.entries.push(Entry { generation: 1, value: Some(value) });
        Key { index: self.entries.len() as u32 - 1, generation: 1 }
    }

    /// Frees a slot and ends its generation.
    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let entry = self.entries.get_mut(index as usize)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1) & GENERATION_MASK;
        self.vacant.push(index);
        Some(value)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.entries.get(index as usize)?.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.entries.get_mut(index as usize)?.value.as_mut()
    }

    /// The key of a slot in use.
    pub(crate) fn key(&self, index: u32) -> Option<Key> {
        let entry = self.entries.get(index as usize)?;
        entry.value.as_ref().map(|_| Key { index, generation: entry.generation })
    }

    /// Whether the tenancy that a key names still lasts.
    pub(crate) fn holds(&self, key: Key) -> bool {
        self.entries
            .get(key.index as usize)
            .is_some_and(|entry| entry.generation == key.generation && entry.value.is_some())
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.vacant.len()
    }

    /// Indices of the slots in use.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries.iter().enumerate().filter(|(_, entry)| entry.value.is_some()).map(|(index, _)| index as u32)
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
}
