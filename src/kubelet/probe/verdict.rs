//! From single answers to a verdict: thresholds. Pure.

use super::Kind;

/// How many answers in a row it takes to change one's mind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    pub success: u32,
    pub failure: u32,
}

/// What is believed of one container by one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    thresholds: Thresholds,
    /// `None` until the first answer that counts.
    good: Option<bool>,
    last: bool,
    in_row: u32,
}

impl Verdict {
    /// A container is alive until shown otherwise, and neither ready nor started until shown so.
    pub fn new(kind: Kind, thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            good: (kind == Kind::Liveness).then_some(true),
            last: false,
            in_row: 0,
        }
    }

    /// Takes one answer; the new verdict if it changed.
    pub fn answer(&mut self, good: bool) -> Option<bool> {
        self.in_row = match good == self.last {
            true => self.in_row.saturating_add(1),
            false => 1,
        };
        self.last = good;
        let needed = match good {
            true => self.thresholds.success,
            false => self.thresholds.failure,
        };
        if self.in_row < needed || self.good == Some(good) {
            return None;
        }
        self.good = Some(good);
        Some(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_what_follows() {
        let (t, f) = (true, false);
        for (kind, success, failure, answers, want) in [
            (Kind::Readiness, 1, 3, vec![t], vec![Some(t)]),
            // Said once.
            (Kind::Readiness, 1, 3, vec![t, t], vec![Some(t), None]),
            (
                Kind::Readiness,
                2,
                1,
                vec![t, t, f],
                vec![None, Some(t), Some(f)],
            ),
            (
                Kind::Readiness,
                1,
                3,
                vec![t, f, f, t, f, f, f],
                vec![Some(t), None, None, None, None, None, Some(f)],
            ),
            // Alive without an answer.
            (
                Kind::Liveness,
                1,
                2,
                vec![t, f, f],
                vec![None, None, Some(f)],
            ),
            (Kind::Startup, 1, 2, vec![f, t], vec![None, Some(t)]),
        ] {
            let mut verdict = Verdict::new(kind, Thresholds { success, failure });
            let got: Vec<_> = answers.iter().map(|good| verdict.answer(*good)).collect();
            assert_eq!(got, want, "{kind:?} {answers:?}");
        }
    }
}
