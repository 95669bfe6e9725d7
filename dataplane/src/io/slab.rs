//! Slots with generations: a stale token finds nothing (invariant 8).

/// Values under `u64` tokens: the slot in the low half, its generation in the high half.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    len: usize,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), len: 0 }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, value: T) -> u64 {
        self.len += 1;
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, value: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[at as usize];
        debug_assert!(slot.value.is_none());
        slot.value = Some(value);
        u64::from(slot.generation) << 32 | u64::from(at)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, token: u64) -> Option<&mut T> {
        let slot = self.slots.get_mut(token as u32 as usize)?;
        if u64::from(slot.generation) == token >> 32 { slot.value.as_mut() } else { None }
    }

    pub(crate) fn remove(&mut self, token: u64) -> Option<T> {
        let slot = self.slots.get_mut(token as u32 as usize)?;
        if u64::from(slot.generation) != token >> 32 {
            return None;
        }
        let value = slot.value.take()?;
        // 24 bits are enough to tell a token from its slot's next sixteen million owners, and leave
        // drivers eight bits to mark their own kinds of token with.
        slot.generation = (slot.generation + 1) & 0x00ff_ffff;
        self.free.push(token as u32);
        self.len -= 1;
        Some(value)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.slots.iter().enumerate().filter_map(|(at, slot)| {
            let token = u64::from(slot.generation) << 32 | at as u64;
            slot.value.as_ref().map(|value| (token, value))
        })
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(at, slot)| {
            let token = u64::from(slot.generation) << 32 | at as u64;
            slot.value.as_mut().map(|value| (token, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_token_finds_nothing() {
        let mut slab = Slab::default();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_eq!(second as u32, first as u32, "the slot is reused");
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'b'));
        assert_eq!((slab.len(), slab.iter().count()), (1, 1));
    }
}
