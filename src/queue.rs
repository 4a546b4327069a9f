//! A work queue: keys, each at most once, each with one worker at a time.
//!
//! The way in which anything of ours is brought to what is wanted, be it an object, a pod's volumes or
//! a set of rules: who hears of a change adds the key, and a worker takes it with [`Queue::next`],
//! looks at what is wanted **then**, and gives it back by dropping what it was given. So at most one
//! change of a thing is under way, and the newest wish is carried out last.
//! Always true:
//! - A key added while it is being worked on is handed out again afterwards, never beside it.
//! - A key comes back however its worker ends; a worker that panics is a failure of the key.
//! - A key waits for its deadline, not for a tick: an idle queue wakes nobody, but for
//!   [`Queue::look_again`], which brings everything back now and then in case a change was missed.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    hash::Hash,
    ops::Deref,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{supervision::hooks, ticks};

/// Everything that events drive is compared with the whole so often, all the same.
pub const LOOK_AGAIN: Duration = Duration::from_secs(15 * 60);
/// Between two wake-ups of a [`Queue::look_again`].
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// So many keys are one wake-up's work.
const TOGETHER: usize = 16;

/// First retry of a failed key; it doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// The longest wait before a retry.
const LAST_RETRY: Duration = Duration::from_secs(1000);

#[derive(Debug)]
pub struct Queue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<K>,
    /// Keys that must be worked on: in `ready`, or in `processing` and due again.
    dirty: HashSet<K>,
    processing: HashSet<K>,
    delayed: BTreeSet<(Instant, K)>,
    /// The one deadline of each key in `delayed`.
    deadlines: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                processing: HashSet::new(),
                delayed: BTreeSet::new(),
                deadlines: HashMap::new(),
                failures: HashMap::new(),
            }),
            wake: Notify::new(),
        }
    }
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    pub fn add(&self, key: K) {
        if self.lock().add(key) {
            self.wake.notify_one();
        }
    }

    /// Adds the key once `delay` is over; of several deadlines the earliest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.lock().delay(key, Instant::now() + delay);
        self.wake.notify_one();
    }

    /// Adds a key that failed, after a delay that doubles with each failure.
    pub fn retry(&self, key: K) {
        let delay = {
            let mut state = self.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            let delay = backoff(*failures);
            *failures = failures.saturating_add(1);
            delay
        };
        self.add_after(key, delay);
    }

    /// Forgets the failures of a key that went well.
    pub fn forget(&self, key: &K) {
        self.lock().failures.remove(key);
    }

    /// Adds what `keys` tells again and again, all of it within `every` ([`LOOK_AGAIN`]), a few at a
    /// time: a change that nobody noticed has no effect for longer than that. Never ends.
    pub async fn look_again(&self, every: Duration, keys: impl Fn() -> Vec<K>) {
        loop {
            let begun = Instant::now();
            let keys = keys();
            let (share, pause) = portions(keys.len(), every);
            for part in keys.chunks(share) {
                ticks::sleep(pause).await;
                part.iter().for_each(|key| self.add(key.clone()));
            }
            tokio::time::sleep_until(ticks::after(every.saturating_sub(begun.elapsed()))).await;
        }
    }

    /// The next key, marked as being worked on until the answer is dropped. Who gives up waiting takes
    /// none.
    pub async fn next(&self) -> Taken<'_, K> {
        self.next_after(hooks::delay()).await
    }

    async fn next_after(&self, delay: impl Future<Output = ()>) -> Taken<'_, K> {
        let key = self.take().await;
        let mut taken = Taken {
            queue: self,
            key,
            told: false,
        };
        delay.await;
        taken.told = true;
        taken
    }

    async fn take(&self) -> K {
        loop {
            let deadline = {
                let mut state = self.lock();
                state.promote(Instant::now());
                if let Some(key) = state.take() {
                    // Another sleeper looks after what is left, and after its deadlines.
                    if !state.ready.is_empty() || !state.delayed.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.delayed.first().map(|(deadline, _)| *deadline)
            };
            match deadline {
                Some(deadline) => {
                    // Either way the state is looked at again.
                    let _ = tokio::time::timeout_at(deadline, self.wake.notified()).await;
                }
                None => self.wake.notified().await,
            }
        }
    }

    fn done(&self, key: &K) {
        let mut state = self.lock();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            self.wake.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key that is being worked on. Nobody else is given it before this is dropped.
#[derive(Debug)]
pub struct Taken<'a, K: Clone + Eq + Hash + Ord> {
    queue: &'a Queue<K>,
    key: K,
    /// A worker has it. One that is dropped before is another worker's.
    told: bool,
}

impl<K: Clone + Eq + Hash + Ord> Deref for Taken<'_, K> {
    type Target = K;

    fn deref(&self) -> &K {
        &self.key
    }
}

impl<K: Clone + Eq + Hash + Ord> Drop for Taken<'_, K> {
    fn drop(&mut self) {
        if !self.told {
            self.queue.add(self.key.clone());
        } else if std::thread::panicking() {
            self.queue.retry(self.key.clone());
        }
        self.queue.done(&self.key);
    }
}

impl<K: Clone + Eq + Hash + Ord> State<K> {
    /// True if a worker has something new to do.
    fn add(&mut self, key: K) -> bool {
        if !self.dirty.insert(key.clone()) || self.processing.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn delay(&mut self, key: K, deadline: Instant) {
        match self.deadlines.get(&key) {
            Some(earlier) if *earlier <= deadline => return,
            Some(later) => {
                self.delayed.remove(&(*later, key.clone()));
            }
            None => {}
        }
        self.deadlines.insert(key.clone(), deadline);
        self.delayed.insert((deadline, key));
    }

    fn promote(&mut self, now: Instant) {
        while self
            .delayed
            .first()
            .is_some_and(|(deadline, _)| *deadline <= now)
        {
            if let Some((_, key)) = self.delayed.pop_first() {
                self.deadlines.remove(&key);
                self.add(key);
            }
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.processing.insert(key.clone());
        Some(key)
    }
}

/// How many of `count` keys at once, and after which pause, so that all have come within `every`.
fn portions(count: usize, every: Duration) -> (usize, Duration) {
    let most = (every.as_secs() / LEAST_PAUSE.as_secs()).max(1);
    let share = count.div_ceil(usize::try_from(most).unwrap_or(usize::MAX));
    let share = share.max(TOGETHER);
    let parts = u32::try_from(count.div_ceil(share)).unwrap_or(u32::MAX);
    (share, every / parts.max(1))
}

fn backoff(failures: u32) -> Duration {
    FIRST_RETRY
        .saturating_mul(1 << failures.min(20))
        .min(LAST_RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_up_to_the_limit() {
        for (failures, want) in [
            (0, Duration::from_millis(5)),
            (1, Duration::from_millis(10)),
            (10, Duration::from_millis(5120)),
            (17, Duration::from_millis(655_360)),
            (18, LAST_RETRY),
            (u32::MAX, LAST_RETRY),
        ] {
            assert_eq!(backoff(failures), want, "{failures} failures");
        }
    }

    #[tokio::test]
    async fn a_key_in_work_waits_until_it_is_done() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        let a = queue.next().await;
        assert_eq!(*a, "a");
        queue.add("a");
        queue.add("b");
        let b = queue.next().await;
        assert_eq!(*b, "b");
        let next = queue.next();
        let early = tokio::time::timeout(Duration::from_millis(5), next).await;
        assert!(early.is_err());
        drop(a);
        assert_eq!(*queue.next().await, "a");
    }

    #[tokio::test]
    async fn a_key_whose_worker_panics_comes_back_later() {
        let queue = std::sync::Arc::new(Queue::default());
        queue.add("a");
        let begun = Instant::now();
        let waits = [FIRST_RETRY, 3 * FIRST_RETRY]; // 5 ms, then 10 ms more
        for wait in waits {
            let theirs = queue.clone();
            let worker = tokio::spawn(async move {
                let _a = theirs.next().await;
                panic!("a defect");
            });
            assert!(worker.await.is_err());
            let again = queue.next().await;
            assert_eq!(*again, "a");
            assert!(begun.elapsed() >= wait, "{:?}", begun.elapsed());
            queue.add("a"); // for the next round
        }
    }

    #[tokio::test]
    async fn who_gives_up_waiting_takes_no_key() {
        let queue = Queue::default();
        queue.add("a");
        let told_late = queue.next_after(std::future::pending());
        let given_up = tokio::time::timeout(Duration::from_millis(5), told_late).await;
        assert!(given_up.is_err());
        let next = tokio::time::timeout(Duration::from_secs(5), queue.next()).await;
        assert_eq!(*next.unwrap(), "a");
    }

    #[tokio::test]
    async fn of_two_deadlines_the_earlier_counts() {
        let queue = Queue::default();
        queue.add_after("a", Duration::from_secs(3600));
        queue.add_after("a", Duration::from_millis(1));
        queue.add_after("a", Duration::from_secs(7200));
        assert_eq!(*queue.next().await, "a");
        assert!(queue.lock().delayed.is_empty());
    }

    #[test]
    fn many_keys_are_few_wake_ups() {
        let secs = Duration::from_secs;
        for (count, every, want) in [
            (0, 900, (16, secs(900))),
            (3, 900, (16, secs(900))),
            (75, 900, (16, secs(180))),
            (14_400, 900, (16, secs(1))),
            (14_401, 900, (17, secs(900) / 848)),
            (90_000, 900, (100, secs(1))),
            (50, 1, (50, secs(1))),
            (50, 0, (50, secs(0))),
        ] {
            assert_eq!(portions(count, secs(every)), want, "{count} in {every} s");
        }
    }

    #[tokio::test]
    async fn all_keys_come_again_and_again() {
        let queue = Queue::default();
        let every = Duration::from_millis(20);
        let again = queue.look_again(every, || vec!["a", "b", "c"]);
        let mut seen: HashMap<&str, u32> = HashMap::new();
        let works = async {
            while seen.len() < 3 || seen.values().any(|times| *times < 3) {
                *seen.entry(*queue.next().await).or_default() += 1;
            }
        };
        let begun = Instant::now();
        tokio::select! {
            () = again => panic!("it has no end"),
            () = works => {}
        }
        assert!(begun.elapsed() >= 2 * every, "{:?}", begun.elapsed());
    }
}
