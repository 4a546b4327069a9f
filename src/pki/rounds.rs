//! When certificates in use are looked at: for those that this process issues, and for those that it asks others
//! for.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::clock::Clock;

/// What could not be renewed is tried again after so long; nobody looks sooner.
pub const RETRY: Duration = Duration::from_secs(60);
/// How often somebody looks at least: the clock may have been set unnoticed.
pub const LOOK: Duration = Duration::from_secs(60 * 60);

/// One look after another.
pub struct Rounds(Clock);

impl Rounds {
    /// The clock is watched from here on.
    #[expect(
        clippy::new_without_default,
        reason = "it opens a descriptor, which no default does"
    )]
    pub fn new() -> Self {
        Self(Clock::watch())
    }

    /// Waits until the next look, which is due after `wait` unless somebody sets the clock before; `false` on
    /// `shutdown`.
    pub async fn next(&mut self, wait: Duration, shutdown: &CancellationToken) -> bool {
        tokio::select! {
            () = tokio::time::sleep(rest(wait)) => true,
            () = self.0.set() => {
                tracing::info!("the clock was set");
                true
            }
            () = shutdown.cancelled() => false,
        }
    }
}

/// Neither too soon nor too late.
fn rest(wait: Duration) -> Duration {
    wait.clamp(RETRY, LOOK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn looks_are_neither_too_frequent_nor_too_rare() {
        for (wait, want) in [(0, RETRY), (600, Duration::from_secs(600)), (1 << 30, LOOK)] {
            assert_eq!(rest(Duration::from_secs(wait)), want, "{wait}");
        }
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        assert!(!Rounds::new().next(LOOK, &shutdown).await);
    }
}
