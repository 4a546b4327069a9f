//! Events that components leave on objects.
//!
//! Best effort: recording never waits. Repetitions raise the count of the event that is there, and
//! an object that has had many gets few more. What the API cannot take just now, on a full disk, say, is
//! tried again for a while: then of all times events matter.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{backoff::Backoff, supervision::caught};

/// Events that wait for the API; more are dropped.
const BACKLOG: usize = 1000;
/// Remembered for counting; the older half goes when there are more.
const REMEMBERED: usize = 4096;
/// How many events one object may have at once, and how fast it earns more.
const BURST: f64 = 25.0;
const EARN_AFTER: Duration = Duration::from_secs(300);

/// How long an event is tried again that the API could not take, and how often.
const KEPT: Duration = Duration::from_secs(120);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// An event waits so long for others, and leaves the machine to what it tells of: a pod that starts has
/// four.
const LINGER: Duration = Duration::from_millis(100);

/// How an event shall be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    Normal,
    Warning,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[derive(Debug)]
struct Told {
    about: ObjectReference,
    level: Level,
    reason: Cow<'static, str>,
    message: String,
    annotations: BTreeMap<String, String>,
    at: Timestamp,
}

/// Who tells.
#[derive(Clone, Debug)]
pub struct Source {
    pub component: &'static str,
    pub host: Option<String>,
}

/// A component of the cluster, of no host.
impl From<&'static str> for Source {
    fn from(component: &'static str) -> Self {
        Self {
            component,
            host: None,
        }
    }
}

/// Records in the name of one component. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Told>,
}

impl Recorder {
    /// Writes events until all clones are gone.
    pub fn start(client: Client, source: impl Into<Source>) -> Self {
        let (queue, told) = mpsc::channel(BACKLOG);
        tokio::spawn(write_all(client, source.into(), told));
        Self { queue }
    }

    pub fn record<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        level: Level,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) {
        self.record_ref(about.object_ref(&()), level, reason, message);
    }

    pub fn record_ref(
        &self,
        about: ObjectReference,
        level: Level,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) {
        self.record_annotated(about, level, reason, message, BTreeMap::new());
    }

    pub fn record_annotated(
        &self,
        about: ObjectReference,
        level: Level,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
        annotations: BTreeMap<String, String>,
    ) {
        let told = Told {
            about,
            level,
            reason: reason.into(),
            message: message.into(),
            annotations,
            at: Timestamp::now(),
        };
        if let Err(dropped) = self.queue.try_send(told) {
            let reason = dropped.into_inner().reason;
            tracing::debug!(%reason, "too many events, one is dropped");
        }
    }
}

/// What makes two events the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Same {
    uid: String,
    field: String,
    level: Level,
    reason: Cow<'static, str>,
    message: String,
}

struct Known {
    name: String,
    count: i32,
    last: Instant,
}

struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        let earned = (now - self.at).as_secs_f64() / EARN_AFTER.as_secs_f64();
        self.left = (self.left + earned).min(BURST);
        self.at = now;
        let granted = self.left >= 1.0;
        if granted {
            self.left -= 1.0;
        }
        granted
    }
}

async fn write_all(client: Client, source: Source, mut told: mpsc::Receiver<Told>) {
    let mut memory = Memory::default();
    loop {
        let next = match told.try_recv() {
            Ok(next) => next,
            Err(mpsc::error::TryRecvError::Disconnected) => return,
            Err(mpsc::error::TryRecvError::Empty) => {
                let Some(next) = told.recv().await else {
                    return;
                };
                tokio::time::sleep(LINGER).await;
                next
            }
        };
        let reason = next.reason.clone();
        // What one event cannot be written for, others are.
        if let Err(panic) = caught(memory.write(&client, &source, next)).await {
            tracing::error!(%panic, %reason, "event not recorded");
        }
    }
}

/// What has been written lately.
#[derive(Default)]
struct Memory {
    known: HashMap<Same, Known>,
    allowed: HashMap<String, Allowance>,
}

impl Memory {
    async fn write(&mut self, client: &Client, source: &Source, told: Told) {
        let Self { known, allowed } = self;
        let now = Instant::now();
        let uid = told.about.uid.clone().unwrap_or_default();
        let allowance = allowed.entry(uid.clone()).or_insert(Allowance {
            left: BURST,
            at: now,
        });
        if !allowance.take(now) {
            return;
        }
        let same = Same {
            uid,
            field: told.about.field_path.clone().unwrap_or_default(),
            level: told.level,
            reason: told.reason.clone(),
            message: told.message.clone(),
        };
        let namespace = namespace(&told.about);
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let counted = match known.get_mut(&same) {
            Some(known) => count(&api, known, told.at).await,
            None => false,
        };
        if !counted && let Some(name) = create(&api, source, told).await {
            let new = Known {
                name,
                count: 1,
                last: now,
            };
            known.insert(same, new);
        }
        forget(known, allowed, now);
    }
}

/// For how long, and how often, something is tried again that the API cannot take.
struct Patience {
    end: Instant,
    retry: Backoff,
}

impl Patience {
    fn new() -> Self {
        Self {
            end: Instant::now() + KEPT,
            retry: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
        }
    }

    /// The wait before the next try, if there is one.
    fn after<T>(&mut self, tried: &Result<T, kube::Error>) -> Option<Duration> {
        let error = tried.as_ref().err()?;
        let again = may_pass(error) && Instant::now() < self.end;
        again.then(|| self.retry.next_wait())
    }
}

/// What holds up all events, not this one: a webhook that fails (500) must not keep the others waiting.
fn may_pass(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => matches!(status.code, 429 | 503),
        kube::Error::Service(_) | kube::Error::HyperError(_) => true,
        _ => false,
    }
}

/// One more of the same; false if the event is no more.
async fn count(api: &Api<Event>, known: &mut Known, at: Timestamp) -> bool {
    known.count += 1;
    known.last = Instant::now();
    let patch = json!({"count": known.count, "lastTimestamp": Time(at)});
    let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
    let mut patience = Patience::new();
    let patched = loop {
        let patched = api.patch(&known.name, &params, &patch).await;
        match patience.after(&patched) {
            Some(wait) => tokio::time::sleep(wait).await,
            None => break patched,
        }
    };
    !matches!(patched, Err(kube::Error::Api(status)) if status.code == 404)
}

async fn create(api: &Api<Event>, source: &Source, told: Told) -> Option<String> {
    let event = event(source, told);
    let params = PostParams::default();
    let mut patience = Patience::new();
    let created = loop {
        let created = api.create(&params, &event).await;
        match patience.after(&created) {
            Some(wait) => tokio::time::sleep(wait).await,
            None => break created,
        }
    };
    match created {
        Ok(_) => event.metadata.name,
        // An answer of an earlier try was lost: nobody else has this name.
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => event.metadata.name,
        Err(error) => {
            tracing::debug!(%error, reason = event.reason, "event not recorded");
            None
        }
    }
}

/// Where the event is kept: what is of no namespace has its events in `default`.
fn namespace(about: &ObjectReference) -> String {
    about.namespace.clone().unwrap_or_else(|| "default".into())
}

fn event(source: &Source, told: Told) -> Event {
    let now = told.at;
    let name = told.about.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace(&told.about)),
            annotations: (!told.annotations.is_empty()).then_some(told.annotations),
            ..ObjectMeta::default()
        },
        reason: Some(told.reason.into_owned()),
        message: Some(told.message),
        type_: Some(told.level.name().to_owned()),
        source: Some(EventSource {
            component: Some(source.component.into()),
            host: source.host.clone(),
        }),
        reporting_component: Some(source.component.into()),
        reporting_instance: source.host.clone(),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        involved_object: told.about,
        ..Event::default()
    }
}

fn forget(
    known: &mut HashMap<Same, Known>,
    allowed: &mut HashMap<String, Allowance>,
    now: Instant,
) {
    if known.len() > REMEMBERED {
        let mut ages: Vec<Instant> = known.values().map(|known| known.last).collect();
        ages.sort();
        let middle = ages[ages.len() / 2];
        known.retain(|_, known| known.last > middle);
    }
    if allowed.len() > REMEMBERED {
        // Whoever would be full again needs no record.
        allowed.retain(|_, allowance| now - allowance.at < EARN_AFTER);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use http::{Request, Response};
    use http_body_util::BodyExt;
    use kube::client::Body;

    use super::*;

    /// An API that says `503` so often before it takes anything, and what it took.
    fn api(busy: usize) -> (Client, Arc<Mutex<Vec<Event>>>) {
        let taken: Arc<Mutex<Vec<Event>>> = Arc::default();
        let (left, events) = (Arc::new(AtomicUsize::new(busy)), taken.clone());
        let serve = move |request: Request<Body>| {
            let (left, events) = (left.clone(), events.clone());
            async move {
                let bytes = request.into_body().collect().await?.to_bytes();
                let is_busy = |left: usize| left.checked_sub(1);
                if left.fetch_update(SeqCst, SeqCst, is_busy).is_ok() {
                    let status = json!({"code": 503, "status": "Failure", "message": "full"});
                    let answer = Response::builder().status(503);
                    return Ok::<_, tower::BoxError>(
                        answer.body(Body::from(status.to_string().into_bytes()))?,
                    );
                }
                events.lock().unwrap().push(serde_json::from_slice(&bytes)?);
                Ok(Response::builder().status(201).body(Body::from(bytes))?)
            }
        };
        (Client::new(tower::service_fn(serve), "default"), taken)
    }

    #[tokio::test]
    async fn what_cannot_be_taken_just_now_is_told_later() {
        let (client, taken) = api(2);
        let recorder = Recorder::start(client, "kubelet");
        let about = ObjectReference {
            name: Some("n".into()),
            ..ObjectReference::default()
        };
        let before = Timestamp::now();
        recorder.record_ref(about, Level::Normal, "NodeHasDiskPressure", "first");
        let recorded = Timestamp::now();
        let end = Instant::now() + Duration::from_secs(10);
        while taken.lock().unwrap().is_empty() {
            assert!(Instant::now() < end, "the event was lost");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let taken = taken.lock().unwrap();
        assert_eq!(taken.len(), 1);
        let at = taken[0].first_timestamp.as_ref().unwrap().0;
        // It says when it happened, in seconds.
        let seconds = before.as_second()..=recorded.as_second();
        assert!(seconds.contains(&at.as_second()), "{at}");
    }

    #[test]
    fn one_object_cannot_flood() {
        let start = Instant::now();
        let mut allowance = Allowance {
            left: BURST,
            at: start,
        };
        let granted = (0..100).filter(|_| allowance.take(start)).count();
        assert_eq!(granted, 25);
        assert!(!allowance.take(start + EARN_AFTER / 2));
        assert!(allowance.take(start + EARN_AFTER * 2));
    }
}
