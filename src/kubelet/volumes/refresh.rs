//! Bringing volumes up to date while their pods run: after a change in the API, when a token must be
//! renewed, and from time to time in case something was missed.
//!
//! [`crate::queue`] sees to it that a pod is looked at by one task at a time, and again if something
//! changed meanwhile.

use std::{sync::atomic::Ordering, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;

use super::{
    Volumes,
    pod::{News, PodVolumes, follows_api},
};
use crate::{
    backoff::Backoff,
    causes::causes,
    pki::clock::Clock,
    queue::Taken,
    supervision::{caught, pulse},
};

/// As the original, from 60 to 90 s: what is on disk is compared with what it should be.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const LOOK_SPREAD: Duration = Duration::from_secs(30);
/// A volume that could not be brought up to date is tried again after the first, then twice as long,
/// and at once when something that it is made of has changed.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(122);

pub fn backoff() -> Backoff {
    Backoff::new(FIRST_RETRY, LAST_RETRY)
}

impl Volumes {
    /// Keeps the volumes of all pods up to date until told to stop.
    pub async fn run(&self, shutdown: CancellationToken) {
        let queue = &self.shared.queue;
        let mut looks = FuturesUnordered::new();
        let mut clock = Clock::watch();
        // Kept while others go on: it may have its key already.
        let mut next = std::pin::pin!(queue.next());
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = pulse::asked() => {}
                uid = &mut next => {
                    next.set(queue.next());
                    looks.push(self.look(uid));
                }
                Some(()) = looks.next() => {}
                // Tokens are good from a time to a time.
                () = clock.set() => self.look_at_all(),
            }
        }
    }

    fn look_at_all(&self) {
        let uids: Vec<String> = self.shared.lives().keys().cloned().collect();
        uids.into_iter().for_each(|uid| self.shared.queue.add(uid));
    }

    async fn look(&self, uid: Taken<'_, String>) {
        let life = self.shared.lives().get(&*uid).cloned();
        let Some(pod) = life.map(|life| self.with(life)) else {
            return; // released since
        };
        let next = caught(pod.look()).await.unwrap_or_else(|panic| {
            tracing::error!(pod = *uid, %panic, "bringing volumes up to date");
            Some(LAST_RETRY)
        });
        if let Some(delay) = next {
            self.shared.queue.add_after(uid.clone(), delay);
        }
    }
}

impl PodVolumes {
    pub(super) fn look_again(&self) {
        self.shared().queue.add(self.user().uid().to_owned());
    }

    pub(super) fn look_later(&self) {
        if let Some(delay) = self.next_look() {
            let uid = self.user().uid().to_owned();
            self.shared().queue.add_after(uid, delay);
        }
    }

    /// One look at the pod; when to look again.
    async fn look(&self) -> Option<Duration> {
        let mut backoff = self.life.turn.lock().await;
        let changed = self.user().take_changed();
        if self.user().is_released() {
            return None;
        }
        if !self.life.made.load(Ordering::Acquire) {
            if changed {
                self.life.news.send_replace(News::Changed);
            }
            return None;
        }
        let failed = self.refresh().await;
        let failures: Vec<String> = failed.iter().map(|error| causes(error)).collect();
        let next = match failures.is_empty() {
            true => {
                backoff.reset();
                self.next_look()
            }
            false => Some(backoff.next_wait()),
        };
        if changed || !failures.is_empty() {
            self.life.news.send_replace(News::Refreshed { failures });
        }
        next
    }

    fn next_look(&self) -> Option<Duration> {
        if !follows_api(&self.wanted()) {
            return None;
        }
        let spread = LOOK_SPREAD.mul_f64(rand::random::<f64>());
        let due = self.shared().tokens.due(self.user());
        let next = LOOK_EVERY + spread;
        Some(due.map_or(next, |due| next.min(due)))
    }
}
