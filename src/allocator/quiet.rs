//! Whether giving memory back is worth its work, from one minute to the next. Pure.
//!
//! An idle daemon has the same pages in memory all the time, and to take them away costs more than all else
//! that it does.

/// What was in memory when nothing happened.
#[derive(Debug, Default)]
pub struct Quiet {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// Nothing was given back yet.
    #[default]
    Start,
    /// What a start leaves for the moment after it is still there.
    Started,
    /// So many minutes ago: what comes back in the first few is needed.
    Lately { minutes: u32 },
    /// What was needed, and for how many minutes more than a little came.
    Since { bytes: usize, minutes: u32 },
}

impl Quiet {
    /// Work that comes every three minutes has its pages again.
    const BACK: u32 = 4;
    /// What comes with a few requests, and with what is done every five minutes only. To have less would cost
    /// several hundred page faults each time.
    const LITTLE: usize = 8 << 20;
    /// Free pages that others' pages lie between do not show: they go after this at last.
    const LONGEST: u32 = 15;

    /// `resident`: bytes in memory now, if that is known.
    pub fn is_over(&mut self, resident: Option<usize>) -> bool {
        let (now, over) = match (&self.state, resident) {
            (State::Start, _) => (State::Started, true),
            (State::Started, _) | (_, None) => (State::Lately { minutes: 0 }, true),
            (State::Lately { minutes }, Some(bytes)) => match minutes + 1 < Self::BACK {
                true => (
                    State::Lately {
                        minutes: minutes + 1,
                    },
                    false,
                ),
                false => (State::Since { bytes, minutes: 0 }, false),
            },
            (State::Since { bytes, minutes }, Some(resident)) => {
                let minutes = minutes + 1;
                match resident > bytes + Self::LITTLE || minutes >= Self::LONGEST {
                    true => (State::Lately { minutes: 0 }, true),
                    false => {
                        let bytes = resident.min(*bytes);
                        (State::Since { bytes, minutes }, false)
                    }
                }
            }
        };
        self.state = now;
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_idle_daemon_needs_is_left_to_it() {
        const MB: usize = 1 << 20;
        let mut quiet = Quiet::default();
        let mut minutes = |resident: &[usize]| -> Vec<bool> {
            let is_over = |mb: &usize| quiet.is_over(Some(mb * MB));
            resident.iter().map(is_over).collect()
        };
        // The start; what came back in a few minutes is the quiet, and stays so for long.
        assert_eq!(
            minutes(&[40, 30, 24, 27, 27, 30]),
            [true, true, false, false, false, false]
        );
        assert_eq!(minutes(&[30, 31, 38]), [false; 3]);
        // Much more came: it goes, and what comes back then is looked at anew.
        assert_eq!(
            minutes(&[39, 40, 31, 31, 29]),
            [true, false, false, false, false]
        );
        assert_eq!(minutes(&[38]), [true]);
        // In the longest quiet something may have become free.
        let mut after = minutes(&[31; 19]);
        assert_eq!(after.pop(), Some(true));
        assert_eq!(after, [false; 18]);
        // Nobody knows how much there is.
        assert!(quiet.is_over(None));
    }
}
