//! How often one object's status is written: changes that come in quick succession are written once,
//! so that a client that reads the object and updates it finds a moment in which nobody else writes.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::informer::Key;

/// Between two writes. A client needs a few milliseconds from its read to its update.
const EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub struct Pace {
    /// When each object may next be written.
    next: Mutex<HashMap<Key, Instant>>,
}

impl Pace {
    /// Takes the turn to write; else how long to wait for it.
    pub fn take(&self, key: &Key) -> Option<Duration> {
        let now = Instant::now();
        let mut next = self.lock();
        match next.get(key) {
            Some(at) if *at > now => Some(*at - now),
            _ => {
                next.insert(key.clone(), now + EVERY);
                None
            }
        }
    }

    pub fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Instant>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_change_is_written_at_once_and_more_together() {
        let (pace, key) = (Pace::default(), Key::new("n", "web"));
        assert_eq!(pace.take(&key), None);
        let wait = pace.take(&key).expect("a wait");
        assert!(wait <= EVERY && pace.take(&key).is_some());
        assert_eq!(pace.take(&Key::new("n", "other")), None);
        tokio::time::sleep(wait).await;
        assert_eq!(pace.take(&key), None);
    }
}
