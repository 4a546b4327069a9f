//! The loop that every controller shares: watches give keys, workers sync them.
//!
//! Used by each controller's `start`; knows no kind.
//! Always true:
//! - No key is synced before every watched cache holds its first list.
//! - Every key comes back now and then ([`Queue::look_again`]), so that a change which was missed, or
//!   made by nobody who tells, is not missed for long.
//! - A failed key comes back with back-off; a conflict does so silently, a panic loudly.
//! - No key keeps its worker for ever: what does not end is given up, and is a failure ([`attempt`]).
//! - A loop one of whose tasks has ended ends as a whole, and says so.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use kube::Resource;
use tokio::{
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::error::Error;
use crate::{
    informer::{Change, Informer, Key},
    queue::{LOOK_AGAIN, Queue},
    supervision::{Panic, caught, hooks},
};

/// Work on one key is given up after this. Every request that it makes ends long before.
pub const GIVEN_UP_AFTER: Duration = Duration::from_secs(300);

/// Why the work on a key failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Error(Error),
    #[error("it did not end within {0:?}")]
    Endless(Duration),
    #[error(transparent)]
    Panic(Panic),
}

impl Failure {
    /// Somebody else wrote the object meanwhile.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Error(error) if error.is_conflict())
    }
}

/// What the work on one key comes to.
pub async fn attempt<T>(
    given_up_after: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Failure> {
    match caught(timeout(given_up_after, work)).await {
        Ok(Ok(done)) => done.map_err(Failure::Error),
        Ok(Err(_elapsed)) => Err(Failure::Endless(given_up_after)),
        Err(panic) => Err(Failure::Panic(panic)),
    }
}

/// Why a controller's loop ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    #[error("a watch or a worker of it ended by itself")]
    Ended,
    #[error("a watch or a worker of it failed")]
    Failed(#[source] JoinError),
}

impl Stopped {
    /// Waits for the first of `tasks` that ends, none of which ever should.
    pub async fn first_of(tasks: &mut JoinSet<()>) -> Self {
        match tasks.join_next().await {
            Some(Err(error)) => Self::Failed(error),
            Some(Ok(())) | None => Self::Ended,
        }
    }
}

/// What one sync asks of its loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing until something changes.
    Settled,
    /// Look again then, even if nothing changes.
    After(Duration),
}

impl Next {
    pub fn after(delay: Option<Duration>) -> Self {
        delay.map_or(Self::Settled, Self::After)
    }

    /// Also then, if that is sooner.
    pub fn or_after(self, delay: Option<Duration>) -> Self {
        match (self, delay) {
            (Self::After(own), Some(other)) => Self::After(own.min(other)),
            (next, None) => next,
            (Self::Settled, other) => Self::after(other),
        }
    }
}

/// One controller: brings the object behind a key nearer to what is wanted.
pub trait Controller: Send + Sync + 'static {
    /// As upstream names it, for logs.
    const NAME: &'static str;

    /// Observes from caches, plans, applies. Called for one key at a time, never twice at once.
    fn sync(&self, key: &Key) -> impl Future<Output = Result<Next, Error>> + Send;
}

type AllKeys = Arc<dyn Fn() -> Vec<Key> + Send + Sync>;

/// A controller together with its queue and its watches.
pub struct Loop<C> {
    controller: Arc<C>,
    queue: Arc<Queue<Key>>,
    all: AllKeys,
    /// All keys come back so often.
    every: Duration,
    given_up_after: Duration,
    tasks: JoinSet<()>,
    synced: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<C: Controller> Loop<C> {
    /// `primary` holds the objects whose keys are synced; all of them are after missed changes.
    pub fn new<K>(controller: C, primary: &Informer<K>) -> Self
    where
        K: Resource<DynamicType = ()> + Send + Sync + 'static,
    {
        let informer = primary.clone();
        let mut this = Self {
            controller: Arc::new(controller),
            queue: Arc::default(),
            all: Arc::new(move || {
                informer
                    .list()
                    .iter()
                    .map(|object| Key::of(object.as_ref()))
                    .collect()
            }),
            every: LOOK_AGAIN,
            given_up_after: GIVEN_UP_AFTER,
            tasks: JoinSet::new(),
            synced: Vec::new(),
        };
        this.add_watch(primary, |object| vec![Key::of(object)]);
        this
    }

    /// Syncs the keys that `keys` tells for an object, before and after each of its changes.
    pub fn watch<K>(
        mut self,
        informer: &Informer<K>,
        keys: impl Fn(&K) -> Vec<Key> + Send + 'static,
    ) -> Self
    where
        K: Send + Sync + 'static,
    {
        self.add_watch(informer, keys);
        self
    }

    /// As [`Loop::watch`], but changes between versions that are the `same` to this controller
    /// are passed over.
    pub fn watch_changes<K>(
        mut self,
        informer: &Informer<K>,
        same: impl Fn(&K, &K) -> bool + Send + 'static,
        keys: impl Fn(&K) -> Vec<Key> + Send + 'static,
    ) -> Self
    where
        K: Send + Sync + 'static,
    {
        self.add_filtered_watch(informer, same, keys);
        self
    }

    /// Lets `task`, which must never end, add keys by itself.
    pub fn beside<F>(mut self, task: impl FnOnce(Arc<Queue<Key>>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task(self.queue.clone()));
        self
    }

    fn add_watch<K>(
        &mut self,
        informer: &Informer<K>,
        keys: impl Fn(&K) -> Vec<Key> + Send + 'static,
    ) where
        K: Send + Sync + 'static,
    {
        self.add_filtered_watch(informer, |_, _| false, keys);
    }

    fn add_filtered_watch<K>(
        &mut self,
        informer: &Informer<K>,
        same: impl Fn(&K, &K) -> bool + Send + 'static,
        keys: impl Fn(&K) -> Vec<Key> + Send + 'static,
    ) where
        K: Send + Sync + 'static,
    {
        let mut changes = informer.changes();
        let waiting = informer.clone();
        self.synced
            .push(Box::pin(async move { waiting.synced().await }));
        let (queue, all) = (self.queue.clone(), self.all.clone());
        self.tasks.spawn(async move {
            while let Some(change) = changes.next().await {
                let touched = match &change {
                    Change::Applied {
                        old: Some(old),
                        new,
                    } if same(old, new) => continue,
                    Change::Applied { old, new } => {
                        let mut touched = old.as_deref().map(&keys).unwrap_or_default();
                        touched.extend(keys(new));
                        touched
                    }
                    Change::Deleted(old) => keys(old),
                    Change::Resync => all(),
                };
                for key in touched {
                    queue.add(key);
                }
            }
        });
    }

    /// Works until `shutdown`, with at most `workers` keys at once.
    pub async fn run(mut self, workers: usize, shutdown: CancellationToken) -> Result<(), Stopped> {
        let synced = futures::future::join_all(std::mem::take(&mut self.synced));
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            stopped = Stopped::first_of(&mut self.tasks) => return Err(stopped),
            _ = synced => {}
        }
        for key in (self.all)() {
            self.queue.add(key);
        }
        let (queue, all, every) = (self.queue.clone(), self.all.clone(), self.every);
        self.tasks
            .spawn(async move { queue.look_again(every, || all()).await });
        for _ in 0..workers {
            let (controller, queue) = (self.controller.clone(), self.queue.clone());
            self.tasks
                .spawn(work(controller, queue, self.given_up_after));
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            stopped = Stopped::first_of(&mut self.tasks) => return Err(stopped),
        }
        self.tasks.shutdown().await;
        Ok(())
    }
}

async fn work<C: Controller>(controller: Arc<C>, queue: Arc<Queue<Key>>, given_up_after: Duration) {
    loop {
        let key = queue.next().await;
        let sync = async {
            hooks::provoked(C::NAME).await;
            controller.sync(&key).await
        };
        match attempt(given_up_after, sync).await {
            Ok(next) => {
                queue.forget(&key);
                if let Next::After(delay) = next {
                    queue.add_after(key.clone(), delay);
                }
            }
            Err(failure) => {
                let error = &failure as &dyn std::error::Error;
                match &failure {
                    _ if failure.is_conflict() => {}
                    Failure::Error(_) => {
                        tracing::warn!(controller = C::NAME, key = %*key, error, "sync failed, will retry");
                    }
                    Failure::Endless(_) | Failure::Panic(_) => {
                        tracing::error!(controller = C::NAME, key = %*key, error, "sync failed, will retry");
                    }
                }
                queue.retry(key.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::*;

    /// Tells what it is given.
    struct Tells(mpsc::UnboundedSender<String>);

    impl Controller for Tells {
        const NAME: &'static str = "tells";

        async fn sync(&self, key: &Key) -> Result<Next, Error> {
            let _ = self.0.send(key.name.clone());
            Ok(Next::Settled)
        }
    }

    #[tokio::test]
    async fn what_nobody_told_is_synced_all_the_same() {
        let pods = Informer::<Pod>::by_hand();
        let pod = |name: &str| -> Pod {
            let object = json!({"metadata": {"name": name, "namespace": "n"}});
            serde_json::from_value(object).unwrap()
        };
        pods.slip_in(pod("first"));
        let (told, mut synced) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let mut tells = Loop::new(Tells(told), &pods);
        tells.every = Duration::from_millis(20);
        let running = tokio::spawn(tells.run(2, shutdown.clone()));
        assert_eq!(synced.recv().await.unwrap(), "first");
        pods.slip_in(pod("missed"));
        let mut seen = Vec::new();
        while !(seen.contains(&"missed".to_owned()) && seen.contains(&"first".to_owned())) {
            seen.push(synced.recv().await.unwrap());
        }
        shutdown.cancel();
        running.await.unwrap().unwrap();
    }

    /// Never ends when it is first asked.
    struct Sticks(std::sync::atomic::AtomicU32, mpsc::UnboundedSender<String>);

    impl Controller for Sticks {
        const NAME: &'static str = "sticks";

        async fn sync(&self, key: &Key) -> Result<Next, Error> {
            if self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
                std::future::pending::<()>().await;
            }
            let _ = self.1.send(key.name.clone());
            Ok(Next::Settled)
        }
    }

    #[tokio::test]
    async fn what_does_not_end_is_given_up_and_tried_again() {
        let pods = Informer::<Pod>::by_hand();
        let object = json!({"metadata": {"name": "first", "namespace": "n"}});
        pods.slip_in(serde_json::from_value(object).unwrap());
        let (told, mut synced) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let mut sticks = Loop::new(Sticks(0.into(), told), &pods);
        sticks.given_up_after = Duration::from_millis(20);
        let running = tokio::spawn(sticks.run(1, shutdown.clone()));
        assert_eq!(synced.recv().await.unwrap(), "first");
        shutdown.cancel();
        running.await.unwrap().unwrap();
    }
}
