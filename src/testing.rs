//! What tests of all parts share.

use std::time::Duration;

/// The processor time that this thread has used: how much work something is, however busy the machine.
pub fn cpu_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}
