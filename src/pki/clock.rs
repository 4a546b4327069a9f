//! Notices that somebody set the clock, which the kernel tells whoever waits for a time of day.

use std::os::fd::OwnedFd;

use nix::{
    errno::Errno,
    sys::{
        time::{TimeSpec, TimeValLike},
        timer::{Expiration, TimerSetTimeFlags},
        timerfd::{ClockId, TimerFd, TimerFlags},
    },
};
use tokio::io::unix::AsyncFd;

/// A time of day that never comes.
const NEVER: i64 = i64::MAX / 2_000_000_000;

pub struct Clock(Option<AsyncFd<OwnedFd>>);

impl Clock {
    #[expect(
        deprecated,
        reason = "sound here: an OwnedFd stays the same descriptor while it lives"
    )]
    /// Without a timer (there are too many open files) it notices nothing.
    pub fn watch() -> Self {
        Self(timer().ok().and_then(|timer| AsyncFd::new(timer).ok()))
    }

    /// Resolves when the clock was set since the last call, or since the watch began.
    pub async fn set(&mut self) {
        let Some(timer) = &self.0 else {
            return std::future::pending().await;
        };
        loop {
            let Ok(mut ready) = timer.readable().await else {
                return std::future::pending().await;
            };
            match nix::unistd::read(timer.get_ref(), &mut [0; 8]) {
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                // Cancelled; what is set from here on the next timer tells.
                _ => break,
            }
        }
        *self = Self::watch();
    }
}

fn timer() -> nix::Result<OwnedFd> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(ClockId::CLOCK_REALTIME, flags)?;
    timer.set(
        Expiration::OneShot(TimeSpec::seconds(NEVER)),
        TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET,
    )?;
    Ok(timer.into())
}
