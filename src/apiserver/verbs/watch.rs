//! Watching a collection: every change once, in order, or an honest end.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use rand::Rng;
use tokio::time::{Instant, sleep_until};

use super::list::await_revision;
use crate::apiserver::{
    cache::{self, Change, Kind, Object, Past},
    query::{Query, invalid_option, is_true},
    registry::Resource,
    selector::{Selection, Selector},
    server::ApiServer,
    status::{CauseType, Reason, Status},
};

use crate::ticks;

/// Changes taken from the history at once.
const CHUNK: usize = 512;
/// Less than what the history keeps of what has changed: who resumes from the last bookmark finds all of it.
const BOOKMARK_EVERY: Duration = Duration::from_secs(150);
/// A last bookmark this long before the end saves the client a relist.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct WatchOptions {
    pub selector: Selector,
    pub start: Start,
    pub bookmarks: bool,
    pub timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Changes after this revision.
    After(u64),
    /// First an ADDED for each object, of a state at least as new as this; `None`: the latest.
    /// `marked`: a bookmark tells where the initial objects end.
    Everything { at_least: Option<u64>, marked: bool },
}

/// One frame of a watch.
#[derive(Clone, Debug)]
pub enum Event {
    Added(Arc<Object>),
    Modified(Arc<Object>),
    Deleted(Arc<Object>),
    Bookmark { revision: u64, initial_end: bool },
    Error(Status),
}

impl WatchOptions {
    pub fn parse(
        row: &Resource,
        selection: Selection,
        query: &Query,
        name: Option<&str>,
    ) -> Result<Self, Status> {
        let mut selector = Selector::new(row, selection)?;
        if let Some(name) = name {
            match selector.name() {
                Some(other) if other != name => {
                    return Err(Status::bad_request(format!(
                        "field selector metadata.name={other} does not match the name {name} in the path"
                    )));
                }
                _ => selector.only(name),
            }
        }
        let bookmarks = query.flag("allowWatchBookmarks");
        let initial = query.get("sendInitialEvents").map(is_true);
        let matching = query.get("resourceVersionMatch").unwrap_or_default();
        let forbidden = |why: &str| {
            Err(invalid_option(
                "resourceVersionMatch",
                CauseType::FieldValueForbidden,
                format!("Forbidden: {why}"),
            ))
        };
        match (initial, matching) {
            (Some(_), "NotOlderThan") | (None, "") => {}
            (Some(_), _) => {
                return forbidden(
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                );
            }
            (None, _) => {
                return forbidden(
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                );
            }
        }
        let version = match query.get("resourceVersion").unwrap_or_default() {
            "" => None,
            text => Some(text.parse::<u64>().map_err(|_| {
                invalid_option(
                    "resourceVersion",
                    CauseType::FieldValueInvalid,
                    format!("Invalid value: {text:?}: must be an unsigned integer"),
                )
            })?),
        };
        let start = match (initial, version) {
            (Some(true), version) => Start::Everything {
                at_least: version,
                marked: bookmarks,
            },
            (Some(false), None | Some(0)) => Start::After(u64::MAX),
            (None, None) => Start::Everything {
                at_least: None,
                marked: false,
            },
            (None, Some(0)) => Start::Everything {
                at_least: Some(0),
                marked: false,
            },
            (_, Some(revision)) => Start::After(revision),
        };
        let timeout = match query
            .number::<u64>("timeoutSeconds")?
            .filter(|seconds| *seconds > 0)
        {
            Some(seconds) => Duration::from_secs(seconds),
            None => Duration::from_secs(rand::rng().random_range(1800..3600)),
        };
        Ok(Self {
            selector,
            start,
            bookmarks,
            timeout,
        })
    }
}

pub type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// The frames, until the time is over or the watcher has lost its place.
pub async fn watch(
    server: Arc<ApiServer>,
    row: &'static Resource,
    namespace: &str,
    options: WatchOptions,
) -> Result<Events, Status> {
    let kind = server.cache.kind(row.storage);
    let prefix = cache::key(row.storage, namespace, "");
    let (initial, seen, mark) = match options.start {
        Start::After(u64::MAX) => (Vec::new(), server.cache.caught_up().await, false),
        Start::After(revision) => (Vec::new(), revision, false),
        Start::Everything { at_least, marked } => {
            let reached = match at_least {
                None => server.cache.caught_up().await,
                Some(revision) => await_revision(&server, revision).await?,
            };
            // A change that came after the revision was read is in the list, and is no event.
            let (mut objects, last) = kind.snapshot(&prefix, "");
            // Oldest first, like all that follows: who resumes from one of them misses nothing
            // that this watcher gets after it.
            objects.sort_unstable_by_key(|object| object.revision);
            (objects, reached.max(last), marked)
        }
    };
    let watcher = Watcher {
        server,
        row,
        kind,
        prefix,
        selector: options.selector,
        seen,
    };
    Ok(Box::pin(watcher.run(
        initial,
        mark,
        options.bookmarks,
        options.timeout,
    )))
}

struct Watcher {
    server: Arc<ApiServer>,
    row: &'static Resource,
    kind: Arc<Kind>,
    prefix: Arc<str>,
    selector: Selector,
    /// Everything up to this revision was sent or does not concern this watcher.
    seen: u64,
}

impl Watcher {
    fn run(
        mut self,
        initial: Vec<Arc<Object>>,
        mark: bool,
        bookmarks: bool,
        timeout: Duration,
    ) -> impl Stream<Item = Event> + Send {
        async_stream::stream! {
            let initial = match self.server.shown_all(self.row, initial).await {
                Ok(initial) => initial,
                Err(status) => {
                    yield Event::Error(status);
                    return;
                }
            };
            for object in initial {
                if self.selector.matches(self.row, &object) {
                    yield Event::Added(object);
                }
            }
            if mark {
                yield Event::Bookmark { revision: self.seen, initial_end: true };
            }
            let end = Instant::now() + timeout;
            let mut next_bookmark = bookmark_time(end);
            let mut changed = self.kind.changes();
            // Rows of custom resources come and go with their definitions.
            let mut rows = self.server.rows.watch();
            loop {
                changed.borrow_and_update();
                rows.borrow_and_update();
                // Asked before the last changes are: nothing comes after the row is gone.
                let served = self.server.rows.holds(self.row);
                match self.kind.past(self.seen, CHUNK) {
                    Past::Forgotten => {
                        yield Event::Error(Status::new(Reason::Expired, format!("too old resource version: {}", self.seen)));
                        return;
                    }
                    // The client watches again if there is something to be watched.
                    Past::Changes(changes) if changes.is_empty() && !served => return,
                    Past::Changes(changes) if changes.is_empty() => {}
                    Past::Changes(changes) => {
                        for change in changes {
                            self.seen = change.object.revision;
                            match self.event(change).await {
                                Ok(Some(event)) => yield event,
                                Ok(None) => {}
                                Err(status) => {
                                    yield Event::Error(status);
                                    return;
                                }
                            }
                        }
                        continue;
                    }
                }
                tokio::select! {
                    result = changed.changed() => {
                        if result.is_err() {
                            return;
                        }
                    }
                    () = sleep_until(next_bookmark), if bookmarks => {
                        // Nothing of this kind is pending, so all that is applied was seen.
                        let applied = self.server.cache.revision();
                        if matches!(self.kind.past(self.seen, 1), Past::Changes(pending) if pending.is_empty()) {
                            self.seen = self.seen.max(applied);
                            yield Event::Bookmark { revision: self.seen, initial_end: false };
                        }
                        next_bookmark = bookmark_time(end);
                    }
                    result = rows.changed(), if self.row.custom.is_some() => {
                        if result.is_err() {
                            return;
                        }
                    }
                    () = sleep_until(end) => return,
                }
            }
        }
    }

    /// What a change means to this watcher: objects enter and leave its selection.
    async fn event(&self, change: Change) -> Result<Option<Event>, Status> {
        if !change.object.key.starts_with(&*self.prefix) {
            return Ok(None);
        }
        let object = self.server.shown(self.row, change.object).await?;
        let previous = match change.previous {
            Some(previous) => Some(self.server.shown(self.row, previous).await?),
            None => None,
        };
        let was = previous.filter(|previous| self.selector.matches(self.row, previous));
        if change.deleted {
            return Ok(was.map(|_| Event::Deleted(object)));
        }
        Ok(match (was, self.selector.matches(self.row, &object)) {
            (None, true) => Some(Event::Added(object)),
            (Some(_), true) => Some(Event::Modified(object)),
            (None, false) => None,
            (Some(previous), false) => {
                // The last state that matched, at the revision where it stopped to.
                let mut value = (*previous.value()).clone();
                crate::apiserver::metadata::of(&mut value).insert(
                    "resourceVersion".to_owned(),
                    object.revision.to_string().into(),
                );
                Some(Event::Deleted(Arc::new(object.converted(value))))
            }
        })
    }
}

fn bookmark_time(end: Instant) -> Instant {
    let now = Instant::now();
    let last = end.checked_sub(BOOKMARK_BEFORE_END).unwrap_or(now);
    let next = ticks::after(BOOKMARK_EVERY);
    if last > now { next.min(last) } else { next }
}
