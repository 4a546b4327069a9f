//! A thread whose work can wait, until somebody waits for it: then it is as important as others.
//! On a busy machine it would else keep whoever waits for as long as the others are busy.

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::unistd::gettid;
use rustix::{
    io,
    process::{Pid, getpriority_process, setpriority_process},
};

/// Of a thread that gets what others leave.
const NICE: i32 = 19;

enum State {
    /// Nobody waits; the thread, once it has begun.
    Leisurely(Option<Pid>),
    /// Somebody waits, or the thread has come to its end.
    Over,
}

pub(super) struct Leisure {
    state: Mutex<State>,
    /// Of who makes the thread.
    usual: io::Result<i32>,
}

impl Leisure {
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State::Leisurely(None)),
            usual: getpriority_process(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calling thread does the work from now on.
    pub fn begin(&self) {
        let mut state = self.state();
        if let State::Leisurely(thread) = &mut *state {
            // Without a way back it would stay so for those who wait.
            let changed = self.usual.and_then(|_| setpriority_process(None, NICE));
            match changed {
                Ok(()) => *thread = Pid::from_raw(gettid().as_raw()),
                Err(error) => tracing::debug!(%error, "work that can wait is as urgent as others"),
            }
        }
    }

    /// Somebody waits.
    pub fn hurry(&self) {
        let before = std::mem::replace(&mut *self.state(), State::Over);
        if let (State::Leisurely(Some(thread)), Ok(usual)) = (before, self.usual)
            && let Err(error) = setpriority_process(Some(thread), usual)
        {
            tracing::warn!(%error, "what is waited for gets only what others leave");
        }
    }

    /// The thread is about to end: its number may be another's soon.
    pub fn end(&self) {
        *self.state() = State::Over;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// The priorities that a thread has before and after somebody waits.
    fn priorities(hurried_before: bool) -> [i32; 2] {
        let leisure = &Leisure::new();
        let own = || getpriority_process(None).expect("a priority");
        let (ask, asked) = channel();
        let (answer, answered) = channel();
        if hurried_before {
            leisure.hurry();
        }
        std::thread::scope(|scope| {
            scope.spawn(move || {
                leisure.begin();
                while asked.recv().is_ok() {
                    answer.send(own()).expect("somebody listens");
                }
            });
            let found = [(); 2].map(|()| {
                ask.send(()).expect("it runs");
                let found = answered.recv().expect("it answers");
                leisure.hurry();
                found
            });
            drop(ask);
            found
        })
    }

    #[test]
    #[ignore = "needs root"]
    fn who_waits_is_not_kept_by_others() {
        let usual = getpriority_process(None).expect("a priority");
        assert_eq!(priorities(false), [NICE, usual]);
        assert_eq!(priorities(true), [usual, usual]);
    }
}
