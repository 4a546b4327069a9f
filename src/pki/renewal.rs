//! When a certificate is issued anew. Pure.

use std::time::{Duration, SystemTime};

use super::leaf::Validity;

/// What becomes of a certificate that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Now,
    At(SystemTime),
    /// A new one would last no longer: its authority ends with it.
    Never,
}

/// After two thirds of its life, and up to a tenth of it later: `spread`, of 255, so that not all
/// of a cluster's certificates are renewed at once.
pub fn due(validity: Validity, authority_ends: SystemTime, spread: u8, now: SystemTime) -> Due {
    let life = validity.to.duration_since(validity.from);
    let Ok(life) = life.map(|life| life.as_secs()) else {
        return Due::Now; // it ends before it begins
    };
    // Issued by a clock that was ahead of this one.
    if now < validity.from {
        return Due::Now;
    }
    if validity.to >= authority_ends {
        return Due::Never;
    }
    let age = life * 2 / 3 + life / 10 * u64::from(spread) / 255;
    let at = validity.from + Duration::from_secs(age);
    match now >= at {
        true => Due::Now,
        false => Due::At(at),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn in_good_time() {
        let day = |day: u64| UNIX_EPOCH + Duration::from_secs(day * 86_400);
        for (from, to, authority_ends, spread, now, want) in [
            (100, 400, 4000, 0, 100, Due::At(day(300))),
            (100, 400, 4000, 0, 299, Due::At(day(300))),
            (100, 400, 4000, 0, 300, Due::Now),
            (100, 400, 4000, 255, 300, Due::At(day(330))),
            (100, 400, 4000, 255, 330, Due::Now),
            (100, 400, 4000, 0, 1000, Due::Now), // the machine slept, or the clock was set
            (100, 400, 4000, 0, 99, Due::Now),   // not yet valid
            (100, 400, 400, 0, 399, Due::Never), // as long as its authority
            (100, 400, 400, 0, 99, Due::Now),
            (400, 100, 4000, 0, 200, Due::Now), // nonsense
        ] {
            let validity = Validity {
                from: day(from),
                to: day(to),
            };
            let got = due(validity, day(authority_ends), spread, day(now));
            assert_eq!(got, want, "{from} to {to} of {authority_ends} on {now}");
        }
    }
}
