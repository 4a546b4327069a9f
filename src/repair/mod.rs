//! Keeps state of ours on the host as it is wanted, whoever changes it.
//!
//! A part that owns such state (tables, links, routes, settings) says what it owns by [`HostState`] and
//! runs [`keep`] beside its work. What the kernel tells of is looked at when it happens, what it tells
//! nobody of every few seconds, and all of it every two minutes.
//! Always true:
//! - What is there is compared with what is wanted: a look that finds nothing changes nothing, so our
//!   own changes start no round of repairs.
//! - A repair that fails is tried again with back-off until it works; one that is undone at once
//!   waits longer each time.
//! - The first look comes after the subscription: nothing is missed in between.
//!
//! `programmer.rs` has what is known of an nf_tables table, `flows.rs` forgets tracked flows that rules
//! no longer say. Used by the kubelet's pod network and by the proxy; knows neither.

pub mod flows;
pub mod programmer;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use netns::monitor::{Changes, Monitor, Subject};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{backoff::Backoff, ticks};

/// How often what the kernel tells nobody of is looked at: a few small files.
const SETTINGS_EVERY: Duration = Duration::from_secs(3);
/// How often everything is compared.
const WHOLE_EVERY: Duration = Duration::from_secs(120);
/// Whoever undoes a repair within this time is an opponent, not an accident.
const CALM: Duration = Duration::from_secs(2);
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_TRUCE: Duration = Duration::from_secs(60);

/// State on the host that is somebody's.
pub trait HostState: Send + Sync + 'static {
    type Error: std::error::Error + Send + Sync + 'static;

    /// What it wants to be told of beside what is always told.
    fn subject(&self) -> Subject {
        Subject::default()
    }

    /// Whether this may have undone something of ours. Called often, on a thread that may wait.
    fn notice(&self, changes: &Changes) -> bool;

    /// Whether there is something at present whose changes the kernel tells nobody of. When that begins,
    /// the owner notifies `again`.
    fn has_silent_settings(&self) -> bool {
        false
    }

    /// Whether something of that kind differs. Must be cheap.
    fn has_drifted(&self) -> bool {
        false
    }

    /// What is wrong with the host after a repair, and is not for us to change: in words, each told once.
    fn complaints(&self) -> Vec<String> {
        Vec::new()
    }

    /// Compares what is there with what is wanted, and restores what differs. Returns what others had
    /// undone, in words.
    fn repair(&self) -> impl Future<Output = Result<Vec<String>, Self::Error>> + Send;
}

/// What the owner should tell.
#[derive(Debug)]
pub enum Told<'a, E> {
    /// What others had undone, and is as wanted again.
    Restored(&'a [String]),
    /// It will be tried again.
    Failed(&'a E),
    /// It is for others to change.
    Wrong(&'a str),
}

/// Reason and message of the event about the node, logged too.
pub fn event<E: std::error::Error>(told: &Told<'_, E>) -> (&'static str, String) {
    match told {
        Told::Restored(what) => {
            let what = what.join(", ");
            tracing::warn!(
                what,
                "restored what something else had changed on this host"
            );
            let message = format!("Something else had changed or removed {what}; it is restored");
            ("HostStateRestored", message)
        }
        Told::Failed(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            tracing::error!(
                error = text,
                "state of this host is not as wanted, will retry"
            );
            ("HostStateNotRestored", format!("Will retry: {text}"))
        }
        Told::Wrong(what) => {
            tracing::warn!(what, "this host does not do for what is wanted");
            ("HostNotFit", (*what).to_owned())
        }
    }
}

/// Until `shutdown`. `own`: the port of the socket by which the owner changes nf_tables. `again` is
/// notified by the owner when a change of its own has failed: it is carried out here then. Without notices
/// of the kernel and without silent settings, this sleeps for [`WHOLE_EVERY`].
pub async fn keep<S: HostState>(
    state: Arc<S>,
    own: u32,
    again: &Notify,
    tell: impl Fn(Told<'_, S::Error>),
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = keep_on(state, own, again, tell) => {}
    }
}

async fn keep_on<S: HostState>(
    state: Arc<S>,
    own: u32,
    again: &Notify,
    tell: impl Fn(Told<'_, S::Error>),
) {
    let mut watch = Watch::open(own, state.subject());
    let mut complaints = Vec::new();
    let mut truce = Truce::default();
    let mut looked = Instant::now();
    let mut whole_due = looked;
    loop {
        let needs_looks = watch.is_closed() || state.has_silent_settings();
        let settings_due = needs_looks.then(|| looked + SETTINGS_EVERY);
        let next = settings_due.map_or(whole_due, |due| due.min(whole_due));
        let due = tokio::select! {
            changes = watch.changes() => notice(&state, changes).await,
            () = again.notified() => true,
            () = tokio::time::sleep_until(next.into()) => {
                looked = Instant::now();
                let is_whole = looked >= whole_due;
                if is_whole {
                    whole_due = ticks::after(WHOLE_EVERY).into_std();
                }
                let reopened = watch.is_closed();
                if reopened {
                    watch = Watch::open(own, state.subject());
                }
                reopened && notice(&state, Changes::unknown()).await || is_whole || state.has_drifted()
            }
        };
        if !due {
            continue;
        }
        tokio::time::sleep(truce.wait(Instant::now())).await;
        if repair(&*state, &tell).await {
            truce.restored(Instant::now());
        }
        let before = std::mem::replace(&mut complaints, state.complaints());
        for new in complaints.iter().filter(|one| !before.contains(one)) {
            tell(Told::Wrong(new));
        }
    }
}

async fn notice<S: HostState>(state: &Arc<S>, changes: Changes) -> bool {
    let state = state.clone();
    let noticed = tokio::task::spawn_blocking(move || state.notice(&changes)).await;
    noticed.unwrap_or(true)
}

/// Until it works; whether others had undone something.
async fn repair<S: HostState>(state: &S, tell: &impl Fn(Told<'_, S::Error>)) -> bool {
    let mut retry = Backoff::new(FIRST_WAIT, LONGEST_RETRY);
    loop {
        match state.repair().await {
            Ok(restored) => {
                if !restored.is_empty() {
                    tell(Told::Restored(&restored));
                }
                return !restored.is_empty();
            }
            Err(error) => {
                tell(Told::Failed(&error));
                tokio::time::sleep(retry.next_wait()).await;
            }
        }
    }
}

/// How long to let an opponent have his way.
#[derive(Debug)]
struct Truce {
    backoff: Backoff,
    last: Option<Instant>,
}

impl Default for Truce {
    fn default() -> Self {
        Self {
            backoff: Backoff::new(FIRST_WAIT, LONGEST_TRUCE),
            last: None,
        }
    }
}

impl Truce {
    fn restored(&mut self, now: Instant) {
        self.last = Some(now);
    }

    fn wait(&mut self, now: Instant) -> Duration {
        match self.last {
            Some(last) if now - last < CALM => self.backoff.next_wait(),
            _ => {
                self.backoff.reset();
                Duration::ZERO
            }
        }
    }
}

/// The kernel's notices. Without any, the looks at regular times remain.
struct Watch(Option<Monitor>);

impl Watch {
    fn open(own: u32, subject: Subject) -> Self {
        let opened = Monitor::open(own, subject);
        let warn = |error: &netns::Error| {
            let error = error as &dyn std::error::Error;
            tracing::warn!(error, "changes of the host's network are noticed late");
        };
        Self(opened.inspect_err(warn).ok())
    }

    fn is_closed(&self) -> bool {
        self.0.is_none()
    }

    async fn changes(&mut self) -> Changes {
        let Some(monitor) = &mut self.0 else {
            return std::future::pending().await;
        };
        monitor.changes().await.unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "notices of the host's network are lost");
            self.0 = None;
            Changes::unknown()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_undoes_at_once_is_made_to_wait() {
        let mut truce = Truce::default();
        let mut now = Instant::now();
        assert_eq!(truce.wait(now), Duration::ZERO);
        let mut waits = Vec::new();
        for after_ms in [10, 10, 10, 3000, 10] {
            truce.restored(now);
            now += Duration::from_millis(after_ms);
            waits.push(truce.wait(now).as_millis());
        }
        assert_eq!(waits, [50, 100, 200, 0, 50]);
    }
}
