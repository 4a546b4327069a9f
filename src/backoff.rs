//! How long to wait before the next try: twice as long after each failure, up to a limit.
//!
//! For loops that retry one thing; things with keys go through [`crate::queue`].

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            next: first,
        }
    }

    /// The wait after one more failure.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(self.most);
        wait
    }

    /// It went well: the next failure waits as long as the first one did.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_start_anew() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let waits = |backoff: &mut Backoff| [(); 4].map(|()| backoff.next_wait().as_secs());
        assert_eq!(waits(&mut backoff), [1, 2, 4, 5]);
        backoff.reset();
        assert_eq!(waits(&mut backoff), [1, 2, 4, 5]);
    }
}
