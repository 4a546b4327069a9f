//! Requests in flight: how many, of whom, and what they may take at once.
//!
//! Called by the frontend for each request, after it is known who asks.
//! Always true: what this process asks itself, and administrators, are never held up by others; of
//! all others nobody has more than a part. The service accounts of a namespace are one somebody:
//! who may make one may make a thousand.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use super::{Peer, asked::Asked, path::ResourcePath};
use crate::{
    allocator,
    apiserver::{
        authz::MASTERS,
        request::User,
        status::{Reason, Status},
    },
};

/// A request has this long, but for those that are held open on purpose.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How many requests are answered at once, as in the original, and how many of one user.
const READING: Bound = Bound {
    total: 400,
    each: 100,
};
const WRITING: Bound = Bound {
    total: 200,
    each: 50,
};
const WATCHING: Bound = Bound {
    total: 5000,
    each: 1000,
};
/// KiB of larger bodies and lists in memory, and how much of it one user may have.
const MEMORY_KIB: usize = 64 << 10;
const MEMORY_KIB_EACH: usize = 16 << 10;
/// How long a heavy request waits for another one of the same user.
const OWN_TURN_WITHIN: Duration = Duration::from_secs(10);
/// The nice value of threads with heavy requests: a tenth of the time of one with light ones.
const HEAVY_NICE: i32 = 10;
/// How long a request waits for memory.
const MEMORY_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
struct Bound {
    total: usize,
    each: usize,
}

/// What a request counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Reading,
    Writing,
    Watching,
    /// Streams, and the health checks that say how the server is.
    Free,
}

impl Kind {
    pub fn of(asked: &Asked) -> Self {
        let streams = asked.path().is_some_and(streams);
        match asked.verb() {
            _ if streams => Self::Free,
            "watch" => Self::Watching,
            "create" | "update" | "patch" | "delete" | "deletecollection" | "post" | "put" => {
                Self::Writing
            }
            _ if asked.document().is_some_and(is_health) => Self::Free,
            _ => Self::Reading,
        }
    }
}

fn streams(path: &ResourcePath) -> bool {
    let names = ["log", "exec", "attach", "portforward", "proxy"];
    path.subresource
        .as_deref()
        .is_some_and(|name| names.contains(&name))
}

fn is_health(path: &str) -> bool {
    ["/readyz", "/livez", "/healthz"].iter().any(|health| {
        path.strip_prefix(health)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Who shares limits. `None`: nobody limits them.
pub(super) type Who = Option<Arc<str>>;

pub(super) fn who(user: &User, peer: &Peer) -> Who {
    let exempt =
        matches!(peer, Peer::Internal(_)) || user.groups.iter().any(|group| group == MASTERS);
    if exempt {
        return None;
    }
    let namespace = user
        .name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.rsplit_once(':'))
        .map(|(namespace, _)| format!("system:serviceaccounts:{namespace}"));
    Some(namespace.as_deref().unwrap_or(&user.name).into())
}

/// The limits of one server.
pub struct Inflight {
    reading: Arc<Pool>,
    writing: Arc<Pool>,
    watching: Arc<Pool>,
    memory: Arc<Semaphore>,
    memory_of: Arc<Pool>,
    lane: Lane,
}

impl Default for Inflight {
    fn default() -> Self {
        let memory = Bound {
            total: usize::MAX,
            each: MEMORY_KIB_EACH,
        };
        Self {
            reading: Pool::new(READING),
            writing: Pool::new(WRITING),
            watching: Pool::new(WATCHING),
            memory: Arc::new(Semaphore::new(MEMORY_KIB)),
            memory_of: Pool::new(memory),
            lane: Lane::default(),
        }
    }
}

impl Inflight {
    /// A place among the requests of this kind. `None`: there are too many.
    pub(super) fn enter(&self, kind: Kind, who: &Who) -> Option<Ticket> {
        let pool = match kind {
            Kind::Reading => &self.reading,
            Kind::Writing => &self.writing,
            Kind::Watching => &self.watching,
            Kind::Free => return Some(Ticket(None)),
        };
        match who {
            None => Some(Ticket(None)),
            Some(who) => pool.take(who, 1).map(|taken| Ticket(Some(taken))),
        }
    }

    /// Memory for a large body or answer; what this process asks itself has it in any case.
    pub(super) async fn memory(&self, who: &Who, bytes: usize) -> Result<Option<Memory>, Status> {
        let Some(who) = who else {
            return Ok(None);
        };
        let busy = || {
            let what = "Too many requests, please try again later.";
            Status::new(Reason::TooManyRequests, what)
        };
        let wanted = bytes.div_ceil(1024).min(MEMORY_KIB);
        // Who wants more than a share has it alone.
        let taken = self
            .memory_of
            .take(who, wanted.min(MEMORY_KIB_EACH))
            .ok_or_else(busy)?;
        let permits = u32::try_from(wanted).unwrap_or(u32::MAX);
        let permit = self.memory.clone().acquire_many_owned(permits);
        match timeout(MEMORY_WITHIN, permit).await {
            Ok(Ok(permit)) => Ok(Some(Memory {
                _permit: permit,
                _taken: taken,
            })),
            _ => Err(busy()),
        }
    }

    pub(super) fn lane(&self) -> &Lane {
        &self.lane
    }
}

/// Memory that is counted, until dropped.
#[derive(Debug)]
pub(super) struct Memory {
    _permit: OwnedSemaphorePermit,
    _taken: Taken,
}

/// A request's place, until dropped.
#[derive(Debug)]
pub(super) struct Ticket(#[allow(dead_code, reason = "held for its drop")] Option<Taken>);

/// How much of something is taken, and by whom.
#[derive(Debug)]
struct Pool {
    bound: Bound,
    state: Mutex<(usize, HashMap<Arc<str>, usize>)>,
}

impl Pool {
    fn new(bound: Bound) -> Arc<Self> {
        Arc::new(Self {
            bound,
            state: Mutex::default(),
        })
    }

    fn take(self: &Arc<Self>, who: &Arc<str>, count: usize) -> Option<Taken> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, of) = &mut *state;
        let own = of.get(who).copied().unwrap_or(0);
        if own + count > self.bound.each || all.saturating_add(count) > self.bound.total {
            return None;
        }
        *all += count;
        of.insert(who.clone(), own + count);
        Some(Taken {
            pool: self.clone(),
            who: who.clone(),
            count,
        })
    }
}

#[derive(Debug)]
struct Taken {
    pool: Arc<Pool>,
    who: Arc<str>,
    count: usize,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self
            .pool
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (all, of) = &mut *state;
        *all -= self.count;
        if let Some(own) = of.get_mut(&self.who) {
            *own -= self.count;
            if *own == 0 {
                of.remove(&self.who);
            }
        }
    }
}

/// Where requests are carried out that take long: on threads of their own, so that the small ones
/// are answered meanwhile; few at once, and one of each user.
#[derive(Debug)]
pub(super) struct Lane {
    threads: Arc<Semaphore>,
    of: Mutex<HashMap<Arc<str>, std::sync::Weak<Semaphore>>>,
}

impl Default for Lane {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            threads: Arc::new(Semaphore::new(cores.max(2))),
            of: Mutex::default(),
        }
    }
}

/// On a machine whose cores are all busy with heavy requests the small ones come first. For a thread that
/// ends with its work: not every kernel lets it take that back.
fn yield_to_others() {
    if let Err(error) = rustix::process::setpriority_process(None, HEAVY_NICE) {
        tracing::debug!(%error, "a heavy request is as important as others");
    }
}

impl Lane {
    pub async fn run<T: Send + 'static>(
        &self,
        who: &Who,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        let turn = match who {
            Some(who) => {
                // Who waits for longer may be asked by a webhook of the request that it waits for.
                let own = self.of(who).acquire_owned();
                let own = timeout(OWN_TURN_WITHIN, own).await;
                // Nobody closes the semaphore.
                let thread = self.threads.clone().acquire_owned().await;
                Some((own, thread.map_err(Status::internal)?))
            }
            None => None,
        };
        let runtime = tokio::runtime::Handle::current();
        let (done, worked) = oneshot::channel();
        let thread = std::thread::Builder::new().name("heavy-request".to_owned());
        thread
            .spawn(move || {
                if turn.is_some() {
                    yield_to_others();
                }
                let _held = turn;
                // Who asked may be gone.
                let _ = done.send(runtime.block_on(work));
                allocator::freed_much();
            })
            .map_err(Status::internal)?;
        worked.await.map_err(Status::internal)?
    }

    fn of(&self, who: &Arc<str>) -> Arc<Semaphore> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = of.get(who).and_then(std::sync::Weak::upgrade) {
            return found;
        }
        of.retain(|_, semaphore| semaphore.strong_count() > 0);
        let made = Arc::new(Semaphore::new(1));
        of.insert(who.clone(), Arc::downgrade(&made));
        made
    }
}

/// What `work` comes to, or that it takes longer than `limit`. A write that has begun goes on in any
/// case, whether or not somebody waits for it.
pub(super) async fn in_time<T: Send + 'static>(
    kind: Kind,
    limit: Duration,
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    let timed_out = |_| Err(Status::timed_out());
    match kind {
        Kind::Watching | Kind::Free => work.await,
        Kind::Reading => timeout(limit, work).await.unwrap_or_else(timed_out),
        Kind::Writing => match timeout(limit, tokio::spawn(work)).await {
            Ok(done) => done.map_err(Status::internal)?,
            Err(elapsed) => timed_out(elapsed),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::{aggregation::Remotes, query::Query, registry::custom::Rows};

    #[test]
    fn who_shares_what() {
        let remote = Peer::Remote(None);
        let user = |name: &str, groups: &[&str]| User::internal(name, groups);
        for (name, groups, want) in [
            ("jane", &[][..], Some("jane")),
            ("root", &["system:masters"], None),
            (
                "system:serviceaccount:a:x",
                &[],
                Some("system:serviceaccounts:a"),
            ),
            (
                "system:serviceaccount:a:y",
                &[],
                Some("system:serviceaccounts:a"),
            ),
        ] {
            assert_eq!(who(&user(name, groups), &remote).as_deref(), want, "{name}");
        }
        let internal = Peer::Internal(Arc::new(user("jane", &[])));
        assert_eq!(who(&user("jane", &[]), &internal), None);
    }

    #[test]
    fn nobody_takes_all() {
        let limits = Inflight::default();
        let user = |name: &str| Some(Arc::from(name));
        let enter = |kind, name: &str| limits.enter(kind, &user(name));
        let mut held: Vec<Ticket> = (0..50).filter_map(|_| enter(Kind::Writing, "a")).collect();
        assert_eq!(held.len(), 50);
        assert!(enter(Kind::Writing, "a").is_none());
        assert!(enter(Kind::Reading, "a").is_some());
        assert!(enter(Kind::Free, "a").is_some());
        for other in ["b", "c", "d"] {
            held.extend((0..50).filter_map(|_| enter(Kind::Writing, other)));
        }
        assert_eq!(held.len(), 200);
        assert!(enter(Kind::Writing, "e").is_none());
        assert!(limits.enter(Kind::Writing, &None).is_some());
        held.clear();
        assert!(enter(Kind::Writing, "a").is_some());
    }

    #[tokio::test]
    async fn memory_is_shared() {
        let limits = Inflight::default();
        let user = |name: &str| Some(Arc::from(name));
        let share = MEMORY_KIB_EACH << 10;
        let held = limits.memory(&user("a"), share).await.expect("its share");
        let refused = limits.memory(&user("a"), 1024).await.expect_err("no more");
        assert_eq!(refused.code, 429);
        limits.memory(&user("b"), share).await.expect("its own");
        drop(held);
        limits.memory(&user("a"), share).await.expect("again");
    }

    #[test]
    fn kinds() {
        for (method, uri, want) in [
            ("GET", "/readyz", Kind::Free),
            ("GET", "/livez/ping", Kind::Free),
            ("GET", "/readyzed", Kind::Reading),
            ("GET", "/version", Kind::Reading),
            ("POST", "/healthz", Kind::Writing),
            ("GET", "/api/v1/pods?watch=1", Kind::Watching),
            ("PUT", "/api/v1/namespaces/n/pods/p", Kind::Writing),
            ("GET", "/api/v1/namespaces/n/pods/p/log", Kind::Free),
        ] {
            let uri: http::Uri = uri.parse().expect("a URI");
            let mut query = Query::parse(uri.query().unwrap_or_default());
            let asked = Asked::new(
                &method.parse().expect("a method"),
                &uri,
                &mut query,
                &http::HeaderMap::new(),
                (&Rows::default(), &Remotes::default()),
            );
            assert_eq!(Kind::of(&asked), want, "{method} {uri}");
        }
    }

    #[tokio::test]
    async fn a_request_has_its_time_and_a_write_goes_on() {
        let limit = Duration::from_millis(20);
        for (kind, code, done) in [
            (Kind::Reading, Some(504), false),
            (Kind::Writing, Some(504), true),
            (Kind::Watching, None, true),
            (Kind::Free, None, true),
        ] {
            let (release, released) = oneshot::channel::<()>();
            let (tell, told) = oneshot::channel();
            let work = async move {
                let _ = released.await;
                let _ = tell.send(());
                Ok(())
            };
            let mut answer = Box::pin(in_time(kind, limit, work));
            let early = timeout(5 * limit, &mut answer).await.ok();
            let got = early.map(|answer| answer.expect_err("not done").code);
            assert_eq!(got, code, "{kind:?}");
            let _ = release.send(());
            if code.is_none() {
                answer.await.expect("done");
            }
            let finished = timeout(Duration::from_secs(10), told).await;
            assert_eq!(finished.is_ok_and(|told| told.is_ok()), done, "{kind:?}");
        }
    }
}
