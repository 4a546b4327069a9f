//! Times that periodic work of all parts shares, so that an idle daemon wakes up once for all of it.
//!
//! Each time that only one part waits for is up to three wake-ups: timers far away come nearer in two steps.
//! Waits of ten seconds and more end together at multiples of ten seconds since the daemon's start; machines
//! start at different times, so that a server does not hear of all of its nodes at once.

use std::{sync::OnceLock, time::Duration};

use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at};

const STEP: Duration = Duration::from_secs(10);

static ORIGIN: OnceLock<Instant> = OnceLock::new();

/// The shared time that is nearest to `wait` from now; a shorter wait than those is itself.
pub fn after(wait: Duration) -> Instant {
    let now = Instant::now();
    shared(*ORIGIN.get_or_init(|| now), now, wait)
}

fn shared(origin: Instant, now: Instant, wait: Duration) -> Instant {
    match wait < STEP {
        true => now + wait,
        false => now.max(origin + nearest((now + wait).saturating_duration_since(origin))),
    }
}

/// As [`tokio::time::sleep`], to a shared time.
pub async fn sleep(wait: Duration) {
    tokio::time::sleep_until(after(wait)).await;
}

fn nearest(time: Duration) -> Duration {
    let steps = (time + STEP / 2).as_nanos() / STEP.as_nanos();
    STEP.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
}

/// Every `period`, from about one period from now.
pub fn every(period: Duration) -> Interval {
    let mut ticks = interval_at(after(period), period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// At once, and then every `period`, the first of them shorter or longer by at most five seconds.
#[derive(Debug)]
pub struct Ticks {
    interval: Interval,
    is_first: bool,
}

impl Ticks {
    pub fn new(period: Duration) -> Self {
        let mut interval = interval(period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self {
            interval,
            is_first: true,
        }
    }

    pub async fn tick(&mut self) {
        self.interval.tick().await;
        if self.is_first {
            self.is_first = false;
            self.interval.reset_at(after(self.interval.period()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_of_the_shared_times() {
        for (time, want) in [(0, 0), (4, 0), (5, 10), (14, 10), (15, 20), (904, 900)] {
            assert_eq!(
                nearest(Duration::from_secs(time)),
                Duration::from_secs(want)
            );
        }
    }

    #[test]
    fn waits_that_begin_at_different_times_end_together() {
        let origin = Instant::now();
        let at = |millis| origin + Duration::from_millis(millis);
        for (now, wait, want) in [
            (0, 10_000, 10_000),
            (10_003, 10_000, 20_000),
            (4_000, 10_000, 10_000),
            (6_000, 10_000, 20_000),
            (3_000, 900_000, 900_000),
            (3_000, 9_999, 12_999), // not so long that it would matter
        ] {
            let end = shared(origin, at(now), Duration::from_millis(wait));
            assert_eq!(end, at(want), "{wait} ms from {now}");
        }
    }

    #[tokio::test]
    async fn the_first_tick_is_at_once() {
        let begun = Instant::now();
        let mut ticks = Ticks::new(STEP);
        ticks.tick().await;
        assert!(begun.elapsed() < STEP / 2);
        let next = tokio::time::timeout(Duration::from_millis(20), ticks.tick());
        assert!(next.await.is_err());
    }
}
