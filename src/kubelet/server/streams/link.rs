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

/// A connection over which nothing comes or goes for so long is given up.
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);
/// After our last word the client gets this long, from each time that something comes or goes, to take what
/// is still under way and to hang up. Closing a socket with unread bytes would make the kernel reset it, and
/// a slow client lose what it has not read yet; the kernel holds some megabytes.
const CLOSE: Duration = Duration::from_secs(5 * 60);

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
                () = life.idle() => {}
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

    async fn idle(&self) {
        tokio::select! {
            () = self.nothing_for(IDLE) => return,
            () = self.closing.cancelled() => {}
        }
        self.touch();
        self.nothing_for(CLOSE).await;
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
