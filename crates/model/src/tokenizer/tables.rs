//! Compact lookup tables: token bytes in one arena, spelling to id, pair to merge. They exist so
//! that a vocabulary loads in milliseconds: nothing is allocated per token.

use std::hash::{BuildHasher, RandomState};

/// No token.
pub(super) const NONE: u32 = u32::MAX;

/// The bytes of each token, by id.
#[derive(Debug, Default)]
pub(super) struct Arena {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Arena {
    pub fn with_capacity(tokens: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(tokens) }
    }

    /// Appends one token; false when the arena is past 4 GiB.
    #[must_use]
    pub fn push(&mut self, bytes: impl IntoIterator<Item = u8>) -> bool {
        self.bytes.extend(bytes);
        match u32::try_from(self.bytes.len()) {
            Ok(end) => self.ends.push(end),
            Err(_) => return false,
        }
        true
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token; empty for ids past the end.
    pub fn get(&self, id: u32) -> &[u8] {
        let index = id as usize;
        let Some(end) = self.ends.get(index) else {
            return &[];
        };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..*end as usize]
    }
}

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

fn fold(x: u64) -> u64 {
    let wide = u128::from(x) * u128::from(MULTIPLIER);
    (wide as u64) ^ ((wide >> 64) as u64)
}

/// A seed of this process: a file cannot be made to collide. Results never depend on it.
fn seed() -> u64 {
    RandomState::new().hash_one(MULTIPLIER)
}

/// From token bytes to id. The bytes stay in the [`Arena`].
#[derive(Debug)]
pub(super) struct Index {
    /// Part of the hash, so that most misses touch no token bytes; and the id.
    slots: Vec<(u32, u32)>,
    seed: u64,
}

impl Index {
    /// An index for up to `len` tokens.
    pub fn new(len: usize) -> Self {
        Self { slots: vec![(0, NONE); (len.max(4) * 2).next_power_of_two()], seed: seed() }
    }

    fn hash(&self, bytes: &[u8]) -> u64 {
        let mut hash = self.seed ^ (bytes.len() as u64).wrapping_mul(MULTIPLIER);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            hash = fold(hash ^ u64::from_le_bytes(*word));
        }
        let mut tail = [0; 8];
        tail[..rest.len()].copy_from_slice(rest);
        fold(hash ^ u64::from_le_bytes(tail))
    }

    /// The slot that holds these bytes, or the empty one where they belong.
    fn slot(&self, arena: &Arena, bytes: &[u8]) -> (usize, u32) {
        let hash = self.hash(bytes);
        let tag = (hash >> 32) as u32;
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let (found, id) = self.slots[at];
            if id == NONE || (found == tag && arena.get(id) == bytes) {
                return (at, tag);
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds a token of the arena. A later token of the same spelling replaces the earlier one.
    pub fn insert(&mut self, arena: &Arena, id: u32) {
        let (at, tag) = self.slot(arena, arena.get(id));
        self.slots[at] = (tag, id);
    }

    /// The token with these bytes.
    pub fn get(&self, arena: &Arena, bytes: &[u8]) -> Option<u32> {
        let (at, _) = self.slot(arena, bytes);
        let (_, id) = self.slots[at];
        (id != NONE).then_some(id)
    }
}

/// From a pair of tokens to the rank of their merge and its result.
#[derive(Debug)]
pub(super) struct Pairs {
    slots: Vec<Pair>,
    seed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Pair {
    left: u32,
    right: u32,
    merge: Merge,
}

/// A merge rule: lower ranks apply first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Merge {
    pub rank: u32,
    pub id: u32,
}

impl Merge {
    pub const NEVER: Self = Self { rank: u32::MAX, id: NONE };
}

impl Pairs {
    /// A table for up to `len` rules.
    pub fn new(len: usize) -> Self {
        let empty = Pair { left: NONE, right: NONE, merge: Merge::NEVER };
        // At most three quarters full.
        Self { slots: vec![empty; (len.max(4) * 4 / 3 + 1).next_power_of_two()], seed: seed() }
    }

    fn slot(&self, left: u32, right: u32) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = fold(self.seed ^ (u64::from(left) << 32 | u64::from(right))) as usize & mask;
        loop {
            let pair = &self.slots[at];
            if pair.merge.id == NONE || (pair.left == left && pair.right == right) {
                return at;
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds a rule; of two rules for the same pair the first counts.
    pub fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        let at = self.slot(left, right);
        if self.slots[at].merge.id == NONE {
            self.slots[at] = Pair { left, right, merge };
        }
    }

    /// The rule for a pair, [`Merge::NEVER`] when there is none.
    pub fn get(&self, left: u32, right: u32) -> Merge {
        self.slots[self.slot(left, right)].merge
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_finds_what_was_put_in_and_the_last_of_equal_spellings() {
        let mut arena = Arena::default();
        let words = ["", "a", "ab", "abcdefgh", "abcdefghi", "a", "\0", "\0\0"];
        let mut index = Index::new(words.len());
        for (id, word) in words.iter().enumerate() {
            assert!(arena.push(word.bytes()));
            index.insert(&arena, id as u32);
        }
        assert_eq!(index.get(&arena, b"a"), Some(5));
        assert_eq!(index.get(&arena, b"abcdefghi"), Some(4));
        assert_eq!(index.get(&arena, b""), Some(0));
        assert_eq!(index.get(&arena, b"\0"), Some(6), "length is part of a spelling");
        assert_eq!(index.get(&arena, b"b"), None);
        assert_eq!(arena.get(99), b"");
    }

    #[test]
    fn of_two_rules_for_a_pair_the_first_counts() {
        let mut pairs = Pairs::new(2);
        pairs.insert(1, 2, Merge { rank: 0, id: 7 });
        pairs.insert(1, 2, Merge { rank: 1, id: 8 });
        assert_eq!(pairs.get(1, 2), Merge { rank: 0, id: 7 });
        assert_eq!(pairs.get(2, 1), Merge::NEVER);
    }
}
