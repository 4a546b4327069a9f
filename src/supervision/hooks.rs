//! What only test builds have (the feature `test-hooks`): parts that fail when they are told to, and
//! random delays at the places that everything goes through, so that wrong orders happen often.
//!
//! Without the feature every function here is empty; unit tests have what the feature gives.

#[cfg(any(test, feature = "test-hooks"))]
pub use on::{How, delay, provoke, provoked, provoked_here, unless_provoked};

#[cfg(not(any(test, feature = "test-hooks")))]
pub use off::{delay, provoked, unless_provoked};

#[cfg(not(any(test, feature = "test-hooks")))]
mod off {
    /// Waits at random.
    #[inline]
    pub async fn delay() {}

    /// Does what was ordered for `name` once.
    #[inline]
    pub async fn provoked(_name: &str) {}

    /// Runs `part`, unless something else is ordered for it.
    #[inline]
    pub async fn unless_provoked<F, E>(_name: &str, part: F) -> Result<(), E>
    where
        F: Future<Output = Result<(), E>>,
    {
        part.await
    }
}

#[cfg(any(test, feature = "test-hooks"))]
mod on {
    use std::{
        collections::HashMap,
        sync::{
            LazyLock, Mutex, PoisonError,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    use tokio::sync::Notify;

    /// How a part is made to fail.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
    pub enum How {
        Panic,
        /// As if it had ended by itself.
        End,
        /// It does nothing more, for ever.
        Stall,
        /// The whole daemon goes, by SIGKILL.
        Kill,
    }

    static ORDERS: LazyLock<Mutex<HashMap<String, How>>> = LazyLock::new(Mutex::default);
    static ORDERED: Notify = Notify::const_new();

    /// Orders a failure; who bears the name carries it out once.
    pub fn provoke(name: &str, how: How) {
        let mut orders = ORDERS.lock().unwrap_or_else(PoisonError::into_inner);
        orders.insert(name.to_owned(), how);
        ORDERED.notify_waiters();
    }

    fn order(name: &str) -> Option<How> {
        let mut orders = ORDERS.lock().unwrap_or_else(PoisonError::into_inner);
        orders.remove(name)
    }

    async fn carry_out(how: How, name: &str) {
        match how {
            How::Panic => panic!("ordered for {name}"),
            How::End => {}
            How::Stall => std::future::pending().await,
            How::Kill => kill(),
        }
    }

    /// Does what was ordered for `name` once.
    pub async fn provoked(name: &str) {
        if let Some(how) = order(name) {
            carry_out(how, name).await;
        }
    }

    /// As [`provoked`], for what cannot wait.
    pub fn provoked_here(name: &str) {
        match order(name) {
            Some(How::Kill) => kill(),
            Some(How::Panic) => panic!("ordered for {name}"),
            Some(How::End | How::Stall) | None => {}
        }
    }

    fn kill() {
        use nix::{sys::signal, unistd::Pid};
        let killed = signal::kill(Pid::this(), signal::Signal::SIGKILL);
        unreachable!("{killed:?}");
    }

    /// Runs `part`, unless something else is ordered for it.
    pub async fn unless_provoked<F, E>(name: &str, part: F) -> Result<(), E>
    where
        F: Future<Output = Result<(), E>>,
    {
        let mut part = Box::pin(part);
        let mut stalled = false;
        let how = loop {
            tokio::select! {
                ended = &mut part, if !stalled => return ended,
                how = ordered(name) => match how {
                    // A stalled part keeps what it has; one that fails does not.
                    How::Stall => stalled = true,
                    how => break how,
                }
            }
        };
        drop(part);
        carry_out(how, name).await;
        Ok(())
    }

    /// The next order for that name.
    async fn ordered(name: &str) -> How {
        loop {
            let woken = ORDERED.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            if let Some(how) = order(name) {
                return how;
            }
            woken.await;
        }
    }

    /// `VETCH_TEST_DELAYS=SEED,MOST`: one in four waits up to `MOST` milliseconds.
    struct Delays {
        seed: u64,
        most: Duration,
        count: AtomicU64,
    }

    static DELAYS: LazyLock<Option<Delays>> = LazyLock::new(|| {
        let text = std::env::var("VETCH_TEST_DELAYS").ok()?;
        let (seed, most) = text.split_once(',')?;
        Some(Delays {
            seed: seed.trim().parse().ok()?,
            most: Duration::from_millis(most.trim().parse().ok()?),
            count: AtomicU64::new(0),
        })
    });

    /// Waits at random.
    pub async fn delay() {
        let Some(delays) = &*DELAYS else { return };
        let count = delays.count.fetch_add(1, Ordering::Relaxed);
        if let Some(wait) = wait(delays.seed, count, delays.most) {
            tokio::time::sleep(wait).await;
        }
    }

    fn wait(seed: u64, count: u64, most: Duration) -> Option<Duration> {
        use rand::{Rng, SeedableRng};
        let mut chance = rand::rngs::StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9) ^ count);
        let most_us = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        (chance.random_range(0..4) == 0)
            .then(|| Duration::from_micros(chance.random_range(0..=most_us)))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_seed_gives_the_same_delays_again() {
            let most = Duration::from_millis(20);
            let waits = |seed| (0..64).map(|n| wait(seed, n, most)).collect::<Vec<_>>();
            assert_eq!(waits(1), waits(1));
            assert_ne!(waits(1), waits(2));
            let some = waits(1).into_iter().flatten().collect::<Vec<_>>();
            assert!((4..40).contains(&some.len()), "{some:?}");
            assert!(some.iter().all(|wait| *wait <= most));
        }
    }
}
