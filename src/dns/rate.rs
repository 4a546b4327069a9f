//! How many queries a client may ask in a second: a bucket for each. Pure.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

/// A client may ask so often, for good, and so much at once.
const PER_SECOND: f64 = 4000.0;
const BURST: f64 = 8000.0;
/// Clients remembered; those whose bucket is full again go first, then all.
const REMEMBERED: usize = 4096;
const FULL_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub struct Rates(HashMap<IpAddr, (f64, Instant)>);

impl Rates {
    /// Whether the client may ask now; that counts as asking.
    pub fn allow(&mut self, client: IpAddr, now: Instant) -> bool {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&client) {
            self.0
                .retain(|_, (_, at)| now.duration_since(*at) < FULL_AFTER);
            if self.0.len() >= REMEMBERED {
                self.0.clear();
            }
        }
        let (left, at) = self.0.entry(client).or_insert((BURST, now));
        let earned = now.duration_since(*at).as_secs_f64() * PER_SECOND;
        *left = (*left + earned).min(BURST);
        *at = now;
        let allowed = *left >= 1.0;
        if allowed {
            *left -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_leaves_others_alone() {
        let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let (mut rates, start) = (Rates::default(), Instant::now());
        let mut asked = |client, at| (0..20_000).filter(|_| rates.allow(client, at)).count();
        assert_eq!(asked(one, start), 8000);
        assert_eq!(asked(two, start), 8000);
        assert_eq!(asked(one, start + Duration::from_secs(1)), 4000);
        assert_eq!(asked(one, start + Duration::from_secs(60)), 8000);
    }

    #[test]
    fn few_are_remembered() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        for number in 0..100_000u32 {
            assert!(rates.allow(std::net::Ipv4Addr::from(number).into(), start));
        }
        assert!(rates.0.len() <= REMEMBERED);
    }
}
