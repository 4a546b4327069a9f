//! How much the store may hold. Pure.

use crate::store::Space;

/// What an entry costs besides its bytes, in the store and in the caches of it.
const ENTRY_OVERHEAD: usize = 1024;
/// What the reserve has at least.
const LEAST_RESERVE: usize = 4 << 20;

/// Bytes that entries may have, and the parts of it that some prefixes may use.
#[derive(Clone, Debug)]
pub struct Quota {
    bytes: usize,
    shares: Vec<Share>,
}

#[derive(Clone, Debug)]
struct Share {
    prefix: String,
    bytes: usize,
    used: usize,
}

impl Default for Quota {
    fn default() -> Self {
        Self::new(Self::DEFAULT)
    }
}

impl Quota {
    /// What a store has that nobody said otherwise about.
    pub const DEFAULT: usize = 256 << 20;

    pub fn new(bytes: usize) -> Self {
        Self {
            bytes,
            shares: Vec::new(),
        }
    }

    /// Keys under `prefix` may use no more than `bytes` of it all.
    pub fn with_share(mut self, prefix: &str, bytes: usize) -> Self {
        self.shares.push(Share {
            prefix: prefix.to_owned(),
            bytes,
            used: 0,
        });
        self
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What an entry counts.
    pub fn cost(key: &str, value: usize) -> usize {
        ENTRY_OVERHEAD + key.len() + value
    }

    pub(super) fn added(&mut self, key: &str, value: usize) {
        for share in self.shares_of(key) {
            share.used += Self::cost(key, value);
        }
    }

    pub(super) fn removed(&mut self, key: &str, value: usize) {
        for share in self.shares_of(key) {
            share.used = share.used.saturating_sub(Self::cost(key, value));
        }
    }

    fn shares_of<'a>(&'a mut self, key: &'a str) -> impl Iterator<Item = &'a mut Share> {
        self.shares
            .iter_mut()
            .filter(move |share| key.starts_with(&share.prefix))
    }

    /// Whether an entry may grow by `growth` bytes when `used` are used.
    pub(super) fn allows(&self, key: &str, growth: usize, used: usize, space: Space) -> bool {
        let limit = match space {
            Space::Ordinary => self.bytes,
            Space::Reserved => self.bytes + LEAST_RESERVE.max(self.bytes / 16),
        };
        growth == 0
            || used.saturating_add(growth) <= limit
                && self
                    .shares
                    .iter()
                    .filter(|share| key.starts_with(&share.prefix))
                    .all(|share| share.used + growth <= share.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_use_what() {
        let mut quota = Quota::new(100 << 20).with_share("/events/", 10 << 20);
        quota.added("/events/a", 9 << 20);
        for (key, growth, used, space, want) in [
            ("/pods/a", 1 << 20, 0, Space::Ordinary, true),
            ("/pods/a", 1 << 20, 100 << 20, Space::Ordinary, false),
            ("/pods/a", 0, 200 << 20, Space::Ordinary, true),
            ("/pods/a", 1 << 20, 100 << 20, Space::Reserved, true),
            ("/pods/a", 1 << 20, 106 << 20, Space::Reserved, false),
            ("/events/b", 1 << 19, 0, Space::Ordinary, true),
            ("/events/b", 1 << 20, 0, Space::Ordinary, false),
        ] {
            assert_eq!(
                quota.allows(key, growth, used, space),
                want,
                "{key} {growth} {used}"
            );
        }
        quota.removed("/events/a", 9 << 20);
        assert!(quota.allows("/events/b", 1 << 20, 0, Space::Ordinary));
    }
}
