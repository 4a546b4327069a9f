//! The parts of the daemon: each runs until shutdown, and one that ends before is started again.
//!
//! Owns the register of what is down. Parts are started by `cli`, and by those of them that have parts
//! of their own; the API server's health checks and metrics read the register.
//! Always true:
//! - The end of a part, an error or a panic, is logged at once and counted; nobody has to ask for it.
//! - A part that is down says so in [`Parts::report`] until it has run again for a moment.
//! - What must not go on without a part has [`Policy::Exit`], and ends through [`Parts::fatal`].
//! - A part that runs and does nothing any more says so in [`Parts::look`], see [`pulse`].
//!
//! A task that serves one thing only (a key, a connection) is not a part: its panics are
//! [`caught`] where it is started, and are a failure of that thing; one that lasts as long as its thing
//! is run by [`outlast`].

pub mod hooks;
pub mod pulse;
pub mod steps;

use std::{
    any::Any,
    collections::BTreeMap,
    error::Error,
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::FutureExt;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::pulse::Pulse;
use crate::{backoff::Backoff, causes::causes};

/// How parts are started again.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Between the end of a part and its next start; twice as long after each.
    first_wait: Duration,
    longest_wait: Duration,
    /// A part that was started again counts as up after this long.
    settled: Duration,
    /// A part that ran this long waits as shortly as after its first end.
    well: Duration,
    /// A part that has not answered for so long is stalled.
    answer: Duration,
}

/// How long a look waits for answers: health checks are asked by who wants to know soon.
const PATIENCE: Duration = Duration::from_millis(50);

impl Default for Pace {
    fn default() -> Self {
        Self {
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            settled: Duration::from_secs(1),
            well: Duration::from_secs(60),
            answer: Duration::from_secs(10),
        }
    }
}

/// What has not ended this long after it was told to is left behind.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// What happens when a part ends before shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It is started again, after a while.
    Restart,
    /// Going on without it would be wrong: the daemon ends.
    Exit,
}

/// Why a part is not running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It returned, though nobody had told it to.
    Ended,
    /// With all causes.
    Error(String),
    Panic(String),
    /// It runs, but these of its loops do not turn.
    Stalled(Vec<Arc<str>>),
}

impl Reason {
    /// Of an end that nobody had ordered.
    pub fn of<E: Into<BoxError>>(ended: Result<Result<(), E>, Panic>) -> Self {
        match ended {
            Ok(Ok(())) => Self::Ended,
            Ok(Err(error)) => Self::Error(causes(&*error.into())),
            Err(panic) => Self::Panic(panic.0),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("it ended by itself"),
            Self::Error(error) => f.write_str(error),
            Self::Panic(message) => write!(f, "panic: {message}"),
            Self::Stalled(loops) => {
                write!(f, "it is stalled: {} does not answer", loops.join(", "))
            }
        }
    }
}

/// A part that ended before shutdown, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {reason}")]
pub struct Failure {
    pub part: Arc<str>,
    pub reason: Reason,
}

/// How one part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartReport {
    pub name: Arc<str>,
    /// `None`: it runs.
    pub down: Option<Reason>,
    /// How often it has been started again.
    pub restarts: u64,
}

type BoxError = Box<dyn Error + Send + Sync>;

/// Some parts that end together. Cheap to clone; clones are the same parts.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    register: Arc<Register>,
    running: TaskTracker,
    shutdown: CancellationToken,
    /// The latest failure of one of these.
    failed: Arc<watch::Sender<Option<Failure>>>,
    pace: Pace,
}

/// All parts of the process, also those of groups.
#[derive(Debug, Default)]
struct Register {
    parts: Mutex<BTreeMap<Arc<str>, State>>,
    /// The failure that ends the daemon.
    fatal: watch::Sender<Option<Failure>>,
}

#[derive(Debug, Default)]
struct State {
    down: Option<Reason>,
    restarts: u64,
    /// Of its latest run.
    pulse: Option<Pulse>,
    /// It was told that it is stalled.
    stalled: bool,
}

impl Register {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, State>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, name: &Arc<str>, down: Option<Reason>) {
        self.lock().entry(name.clone()).or_default().down = down;
    }

    fn begins(&self, name: &Arc<str>) -> Pulse {
        let pulse = Pulse::new(name.clone());
        let mut parts = self.lock();
        let state = parts.entry(name.clone()).or_default();
        (state.pulse, state.stalled) = (Some(pulse.clone()), false);
        pulse
    }

    /// Whether this run of the part, if it is still that one, is stalled; says so in the log when that
    /// begins and when it ends.
    fn is_stalled(&self, name: &Arc<str>, run: &Pulse, silent: &[Arc<str>]) -> bool {
        let mut parts = self.lock();
        let state = parts.entry(name.clone()).or_default();
        if !state.pulse.as_ref().is_some_and(|pulse| pulse.is(run)) {
            return false;
        }
        let is_stalled = !silent.is_empty();
        match (
            std::mem::replace(&mut state.stalled, is_stalled),
            is_stalled,
        ) {
            (false, true) => tracing::error!(part = &**name, ?silent, "a part is stalled"),
            (true, false) => tracing::info!(part = &**name, "a part that was stalled goes on"),
            _ => {}
        }
        is_stalled
    }

    fn restarts(&self, name: &Arc<str>) {
        self.lock().entry(name.clone()).or_default().restarts += 1;
    }
}

impl Parts {
    /// Parts that end with the token at the latest.
    pub fn until(shutdown: CancellationToken) -> Self {
        Self {
            shutdown,
            ..Self::default()
        }
    }

    /// Parts of the same register that can be ended before these; they end with these at the latest.
    pub fn group(&self) -> Self {
        Self {
            register: self.register.clone(),
            running: TaskTracker::new(),
            shutdown: self.shutdown.child_token(),
            failed: Arc::default(),
            pace: self.pace,
        }
    }

    /// Cancelled when the parts shall end.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Runs what `make` makes until shutdown, which it is told by the token, and makes it anew when it
    /// ends before. The name is that of its health check.
    pub fn start<F, Fut, E>(&self, name: impl Into<Arc<str>>, policy: Policy, make: F)
    where
        F: FnMut(CancellationToken) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        let part = Part {
            name: name.into(),
            policy,
            register: self.register.clone(),
            shutdown: self.shutdown.clone(),
            failed: self.failed.clone(),
            pace: self.pace,
        };
        part.register.set(&part.name, None);
        self.running.spawn(part.keep(make));
    }

    /// As [`Parts::start`], for what knows no end: it is dropped at shutdown.
    pub fn start_endless<F, Fut>(&self, name: impl Into<Arc<str>>, policy: Policy, mut make: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.start(name, policy, move |shutdown| {
            let endless = make();
            async move {
                shutdown.run_until_cancelled(endless).await;
                Ok::<(), BoxError>(())
            }
        });
    }

    /// Every part, in the order of names.
    pub fn report(&self) -> Vec<PartReport> {
        let parts = self.register.lock();
        let report = parts.iter().map(|(name, state)| PartReport {
            name: name.clone(),
            down: state.down.clone(),
            restarts: state.restarts,
        });
        report.collect()
    }

    /// As [`Parts::report`], after all parts that run were asked whether they do something. Who has much
    /// to do answers later: that is not waited for.
    pub async fn look(&self) -> Vec<PartReport> {
        let runs: Vec<(Arc<str>, Pulse)> = {
            let parts = self.register.lock();
            let run =
                |(name, state): (&Arc<str>, &State)| Some((name.clone(), state.pulse.clone()?));
            parts.iter().filter_map(run).collect()
        };
        let asked = runs
            .iter()
            .map(|(_, pulse)| pulse.silent(self.pace.answer, PATIENCE));
        let answers = futures::future::join_all(asked).await;
        let mut report = self.report();
        for ((name, pulse), silent) in runs.iter().zip(answers) {
            let mut running = report.iter_mut().filter(|part| part.down.is_none());
            let Some(part) = running.find(|part| part.name == *name) else {
                continue;
            };
            if self.register.is_stalled(name, pulse, &silent) {
                part.down = Some(Reason::Stalled(silent));
            }
        }
        report
    }

    /// Resolves when a part has ended without which the daemon must not go on.
    pub async fn fatal(&self) -> Failure {
        seen(self.register.fatal.subscribe()).await
    }

    /// Resolves when one of these parts has ever failed: for a start that shall not wait for what
    /// cannot come up.
    pub async fn failed(&self) -> Failure {
        seen(self.failed.subscribe()).await
    }

    /// Ends the parts and waits for them, for a while.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        self.running.close();
        if timeout(STOP_WITHIN, self.running.wait()).await.is_err() {
            let left = self.running.len();
            tracing::warn!(left, "parts of the daemon do not end and are left behind");
        }
    }
}

async fn seen(mut failures: watch::Receiver<Option<Failure>>) -> Failure {
    match failures.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(failure)) => failure.clone(),
        // The register is gone, and with it everything that can fail.
        _ => std::future::pending().await,
    }
}

/// One part for as long as it is wanted.
struct Part {
    name: Arc<str>,
    policy: Policy,
    register: Arc<Register>,
    shutdown: CancellationToken,
    failed: Arc<watch::Sender<Option<Failure>>>,
    pace: Pace,
}

impl Part {
    async fn keep<F, Fut, E>(self, mut make: F)
    where
        F: FnMut(CancellationToken) -> Fut,
        Fut: Future<Output = Result<(), E>>,
        E: Into<BoxError>,
    {
        let mut backoff = Backoff::new(self.pace.first_wait, self.pace.longest_wait);
        loop {
            let begun = Instant::now();
            let pulse = self.register.begins(&self.name);
            let running = caught(async {
                let running = pulse.beat(make(self.shutdown.clone()));
                hooks::unless_provoked(&self.name, running).await
            });
            let reason = Reason::of(self.run(running).await);
            if self.shutdown.is_cancelled() {
                if reason != Reason::Ended {
                    tracing::warn!(part = &*self.name, %reason, "a part failed while it was ended");
                }
                return;
            }
            self.register.set(&self.name, Some(reason.clone()));
            let failure = Failure {
                part: self.name.clone(),
                reason: reason.clone(),
            };
            self.failed.send_replace(Some(failure.clone()));
            if self.policy == Policy::Exit {
                tracing::error!(part = &*self.name, %reason, "a part failed, the daemon ends");
                self.register.fatal.send_replace(Some(failure));
                return;
            }
            if begun.elapsed() >= self.pace.well {
                backoff.reset();
            }
            let wait = backoff.next_wait();
            tracing::error!(part = &*self.name, %reason, ?wait, "a part failed, it starts again");
            if self
                .shutdown
                .run_until_cancelled(sleep(wait))
                .await
                .is_none()
            {
                return;
            }
            self.register.restarts(&self.name);
        }
    }

    /// To the part's end; it counts as up after a while.
    async fn run<T>(&self, running: impl Future<Output = T>) -> T {
        tokio::pin!(running);
        if let Ok(ended) = timeout(self.pace.settled, &mut running).await {
            return ended;
        }
        self.register.set(&self.name, None);
        running.await
    }
}

/// A panic that was kept from going further. The panic hook has told where it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("panic: {0}")]
pub struct Panic(pub String);

/// What the future gives, or the panic that it ends in.
pub async fn caught<F: Future>(future: F) -> Result<F::Output, Panic> {
    let panicked = |panic: Box<dyn Any + Send>| Panic(message(&*panic));
    let future = AssertUnwindSafe(future).catch_unwind();
    future.await.map_err(panicked)
}

/// As [`caught`], for what does not wait.
pub fn caught_here<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    let done = std::panic::catch_unwind(AssertUnwindSafe(work));
    done.map_err(|panic| Panic(message(&*panic)))
}

/// Runs what serves one thing for as long as that is there, anew after each panic.
pub async fn outlast<F: Future>(
    what: &str,
    mut backoff: Backoff,
    mut make: impl FnMut() -> F,
) -> F::Output {
    loop {
        let panic = match caught(async { make().await }).await {
            Ok(done) => return done,
            Err(panic) => panic,
        };
        let wait = backoff.next_wait();
        tracing::error!(%panic, ?wait, "{what} failed, it starts again");
        sleep(wait).await;
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn down(parts: &Parts, name: &str) -> Option<Reason> {
        let report = parts.report();
        let part = report.into_iter().find(|part| &*part.name == name);
        part.expect("a part of that name").down
    }

    /// Fails in each of the three ways, then runs.
    async fn fickle(run: u32, shutdown: CancellationToken) -> Result<(), std::io::Error> {
        match run {
            0 => Ok(()),
            1 => Err(std::io::Error::other("no such device")),
            2 => panic!("index out of bounds"),
            _ => {
                shutdown.cancelled().await;
                Ok(())
            }
        }
    }

    /// Waits until the part is so.
    async fn becomes(parts: &Parts, name: &str, want: Option<Reason>) {
        let within = Instant::now() + Duration::from_secs(10);
        while down(parts, name) != want {
            assert!(Instant::now() < within, "{:?}", parts.report());
            sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_part_that_ends_is_down_and_starts_again() {
        let pace = Pace {
            first_wait: Duration::from_millis(20),
            settled: Duration::from_millis(20),
            ..Pace::default()
        };
        let parts = Parts {
            pace,
            ..Parts::default()
        };
        let runs = Arc::new(AtomicU32::new(0));
        let counted = runs.clone();
        parts.start("fickle", Policy::Restart, move |shutdown| {
            fickle(counted.fetch_add(1, Ordering::Relaxed), shutdown)
        });
        assert_eq!(down(&parts, "fickle"), None);
        let begun = Instant::now();
        for reason in [
            Reason::Ended,
            Reason::Error("no such device".into()),
            Reason::Panic("index out of bounds".into()),
        ] {
            becomes(&parts, "fickle", Some(reason)).await;
        }
        becomes(&parts, "fickle", None).await;
        // Three waits, each twice as long as the one before, and a moment before it counts as up.
        assert!(begun.elapsed() >= 7 * pace.first_wait + pace.settled);
        assert_eq!(runs.load(Ordering::Relaxed), 4);
        assert_eq!(parts.report()[0].restarts, 3);
        parts.stop().await;
        assert_eq!(runs.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn what_serves_one_thing_goes_on_after_panics() {
        let mut runs = 0;
        let moment = Duration::from_millis(1);
        let made = outlast("counting", Backoff::new(moment, moment), || {
            runs += 1;
            let run = runs;
            async move {
                assert!(run > 2, "too early");
                run
            }
        });
        assert_eq!(made.await, 3);
    }

    #[tokio::test]
    async fn a_part_that_does_nothing_any_more_is_named() {
        let pace = Pace {
            answer: Duration::from_secs(1),
            ..Pace::default()
        };
        let parts = Parts {
            pace,
            ..Parts::default()
        };
        let (stall, stalls) = watch::channel(false);
        parts.start_endless("sticks", Policy::Restart, move || {
            let mut stalls = stalls.clone();
            async move {
                loop {
                    tokio::select! {
                        () = pulse::asked() => {}
                        true = async { stalls.wait_for(|stall| *stall).await.is_ok() } => {
                            std::future::pending::<()>().await;
                        }
                    }
                }
            }
        });
        parts.start_endless("idles", Policy::Restart, std::future::pending);
        let found = async || -> Vec<Option<String>> {
            let report = parts.look().await.into_iter();
            let down = report.map(|part| part.down.map(|reason| reason.to_string()));
            down.collect()
        };
        let run = || {
            let parts = parts.register.lock();
            parts.values().all(|state| state.pulse.is_some())
        };
        while !run() {
            tokio::task::yield_now().await;
        }
        assert_eq!(found().await, [None, None]);
        stall.send_replace(true);
        let why = "it is stalled: sticks does not answer";
        let within = Instant::now() + Duration::from_secs(10);
        loop {
            let got = found().await;
            if got == [None, Some(why.to_owned())] {
                break;
            }
            assert!(Instant::now() < within, "{got:?}");
        }
    }

    #[tokio::test]
    async fn a_part_that_cannot_be_missed_ends_the_daemon() {
        let parts = Parts::default();
        parts.start_endless("log", Policy::Exit, || async {});
        let failure = parts.group().fatal().await;
        assert_eq!(failure.to_string(), "log: it ended by itself");
        assert!(down(&parts, "log").is_some());
    }

    #[tokio::test]
    async fn a_group_ends_alone() {
        let parts = Parts::default();
        parts.start_endless("stays", Policy::Restart, std::future::pending);
        let group = parts.group();
        group.start_endless("goes", Policy::Restart, std::future::pending);
        group.stop().await;
        assert_eq!(parts.running.len(), 1);
        assert!(!parts.shutdown().is_cancelled());
        parts.stop().await;
        assert_eq!(parts.running.len(), 0);
    }
}
