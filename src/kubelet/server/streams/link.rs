//! The life of a client's connection after its upgrade, the same for every protocol.
//!
//! Always true: whoever holds the [`Link`] learns when the client is gone, and ends the connection
//! by closing or dropping it; the protocol's own task ends with it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

/// How long nothing may come or go.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Before the connection is given up.
    idle: Duration,
    /// After our last word, for the client to take what is still under way and to hang up. Closing a
    /// socket with unread bytes would make the kernel reset it, and a slow client lose what it has
    /// not read yet; the kernel holds some megabytes.
    close: Duration,
}

const LIMITS: Limits = Limits {
    idle: Duration::from_secs(4 * 60 * 60),
    close: Duration::from_secs(5 * 60),
};

/// The session's side.
pub struct Link {
    closing: CancellationToken,
    gone: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// The protocol task's side.
#[derive(Clone)]
pub struct Life {
    /// Set once the session has queued its last word.
    pub closing: CancellationToken,
    /// Set by the protocol task once the client does not answer any more.
    pub gone: CancellationToken,
    active: Arc<Mutex<Instant>>,
}

impl Link {
    /// Starts the task that speaks the protocol.
    pub fn start<F: Future<Output = ()> + Send + 'static>(speak: impl FnOnce(Life) -> F) -> Self {
        Self::with(LIMITS, speak)
    }

    fn with<F: Future<Output = ()> + Send + 'static>(
        limits: Limits,
        speak: impl FnOnce(Life) -> F,
    ) -> Self {
        let life = Life {
            closing: CancellationToken::new(),
            gone: CancellationToken::new(),
            active: Arc::new(Mutex::new(Instant::now())),
        };
        let (closing, gone) = (life.closing.clone(), life.gone.clone());
        let speaking = speak(life.clone());
        let task = tokio::spawn(async move {
            tokio::select! {
                () = speaking => {}
                () = life.idle(limits) => {}
            }
            life.gone.cancel();
        });
        Self {
            closing,
            gone,
            task: Some(task),
        }
    }

    /// Resolves when the client is gone.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Sends what is queued and waits until the client has hung up.
    pub async fn close(mut self) {
        self.closing.cancel();
        if let Some(task) = self.task.take() {
            // Its end is bounded: see [`Life::idle`].
            let _ = task.await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl Life {
    /// Something came or went.
    pub fn touch(&self) {
        *self.active.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    async fn idle(&self, limits: Limits) {
        tokio::select! {
            () = self.nothing_for(limits.idle) => return,
            () = self.closing.cancelled() => {}
        }
        self.touch();
        self.nothing_for(limits.close).await;
    }

    async fn nothing_for(&self, long: Duration) {
        loop {
            let active = *self.active.lock().unwrap_or_else(PoisonError::into_inner);
            let end = active + long;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(300);
    const NEVER: Duration = Duration::from_secs(3600);

    /// A link whose client never hangs up, and the means to let something come or go.
    fn silent(limits: Limits) -> (Link, Life) {
        let mut life = None;
        let link = Link::with(limits, |given| {
            life = Some(given);
            std::future::pending()
        });
        (link, life.expect("it was given"))
    }

    async fn took(waiting: impl Future<Output = ()>) -> Duration {
        let begun = Instant::now();
        tokio::time::timeout(20 * SOON, waiting)
            .await
            .expect("its end");
        begun.elapsed()
    }

    #[tokio::test]
    async fn an_idle_connection_is_given_up() {
        let limits = Limits {
            idle: SOON,
            close: NEVER,
        };
        let (link, life) = silent(limits);
        tokio::time::sleep(SOON / 2).await;
        life.touch();
        assert!(took(link.gone()).await >= SOON);
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_more_is_hung_up_on() {
        let limits = Limits {
            idle: NEVER,
            close: SOON,
        };
        let (link, life) = silent(limits);
        let closing = tokio::spawn(link.close());
        // As long as it takes something, it is waited for.
        for _ in 0..4 {
            tokio::time::sleep(SOON / 2).await;
            assert!(!closing.is_finished());
            life.touch();
        }
        let end = async { closing.await.expect("no panic") };
        assert!(took(end).await >= SOON / 2);
    }
}
