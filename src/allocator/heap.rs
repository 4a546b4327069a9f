//! Whether much was freed since free pages last went back to the kernel. Pure.
//!
//! What is resident does not tell: free blocks lie between others, and the same number of pages may be in
//! use by now, or not at all.

/// What was free when its pages went back.
#[derive(Debug, Default)]
pub struct Heap {
    /// The least since then: what is used again takes free blocks first.
    free: Option<usize>,
}

impl Heap {
    /// What an idle daemon frees in a minute, and takes again in the next.
    const LITTLE: usize = 4 << 20;

    /// Free pages went back to the kernel, `free` bytes of blocks among them.
    pub const fn trimmed(&mut self, free: usize) {
        self.free = Some(free);
    }

    pub fn has_more_free(&mut self, free: usize) -> bool {
        let least = self.free.map_or(free, |least| least.min(free));
        self.free = Some(least);
        free > least + Self::LITTLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: usize = 1 << 20;

    #[test]
    fn what_was_freed_since_the_last_time_goes() {
        let mut heap = Heap::default();
        assert!(!heap.has_more_free(30 * MB), "nothing is known yet");
        heap.trimmed(10 * MB);
        assert!(!heap.has_more_free(14 * MB), "a little more");
        // What was free is used, and freed again: its pages are in memory.
        assert!(!heap.has_more_free(2 * MB));
        assert!(heap.has_more_free(7 * MB));
        heap.trimmed(7 * MB);
        assert!(!heap.has_more_free(7 * MB));
    }
}
