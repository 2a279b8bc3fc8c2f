//! Slots with generations: a key of a former tenant finds nothing.

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
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Stores `value`; the key finds it until it is removed.
    pub fn insert(&mut self, value: T) -> SlabKey {
        if let Some(index) = self.free.pop()
            && let Some(slot) = self.slots.get_mut(index as usize)
        {
            slot.value = Some(value);
            return SlabKey { index, generation: slot.generation };
        }
        let index = self.slots.len() as u32;
        self.slots.push(Slot { generation: 0, value: Some(value) });
        SlabKey { index, generation: 0 }
    }

    /// The value at `key`.
    pub fn get_mut(&mut self, key: SlabKey) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation == key.generation { slot.value.as_mut() } else { None }
    }

    /// Takes the value at `key` out; the key is dead from now on.
    pub fn remove(&mut self, key: SlabKey) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1) & GENERATION_MASK;
        self.free.push(key.index);
        Some(value)
    }

    /// How many values are stored.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every key and value.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (SlabKey, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, slot)| {
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
        slab.slots[0].generation = GENERATION_MASK;
        let last = slab.insert(1);
        assert_eq!(last.token() >> 63, 0);
        assert_eq!(slab.remove(SlabKey::from_token(last.token())), Some(1));
        let wrapped = slab.insert(2);
        assert_eq!(slab.get_mut(last), None);
        assert_eq!(slab.get_mut(wrapped), Some(&mut 2));
    }
}
