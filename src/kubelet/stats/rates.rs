//! Cores in use, from two readings of a counter.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Readings closer to each other say little; the last rate is told again.
const SHORTEST: Duration = Duration::from_secs(1);
/// A reading older than this is of no use any more.
const OLDEST: Duration = Duration::from_secs(600);

/// One reading per name.
#[derive(Debug, Default)]
pub struct Rates {
    last: HashMap<String, Reading>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    cpu_ns: u64,
    rate: Option<u64>,
}

impl Rates {
    /// Nanoseconds of CPU per second since the reading before; `None` for the first one.
    pub fn rate(&mut self, name: &str, cpu_ns: u64, now: Instant) -> Option<u64> {
        let before = self
            .last
            .get(name)
            .filter(|before| before.cpu_ns <= cpu_ns && now.duration_since(before.at) < OLDEST);
        let rate = match before {
            Some(before) if now.duration_since(before.at) < SHORTEST => return before.rate,
            Some(before) => {
                let used = u128::from(cpu_ns - before.cpu_ns) * 1_000_000_000;
                u64::try_from(used / now.duration_since(before.at).as_nanos()).ok()
            }
            None => None,
        };
        let reading = Reading {
            at: now,
            cpu_ns,
            rate,
        };
        self.last.insert(name.to_owned(), reading);
        rate
    }

    /// Forgets what was not read for long.
    pub fn prune(&mut self, now: Instant) {
        self.last
            .retain(|_, reading| now.duration_since(reading.at) < OLDEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_reading_to_reading() {
        let start = Instant::now();
        let mut rates = Rates::default();
        for (seconds, cpu_ms, want) in [
            (0.0, 1000, None),
            (0.5, 1900, None),              // too close
            (2.0, 2000, Some(500_000_000)), // half a core over two seconds
            (2.5, 9000, Some(500_000_000)), // too close: as before
            (4.0, 6000, Some(2_000_000_000)),
            (5.0, 0, None),      // started anew
            (700.0, 1000, None), // too old
        ] {
            let now = start + Duration::from_secs_f64(seconds);
            let got = rates.rate("a", cpu_ms * 1_000_000, now);
            assert_eq!(got, want, "{seconds}");
        }
    }
}
