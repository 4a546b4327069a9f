//! `/containerLogs`: which attempt's file is meant, and its text.
//!
//! `line.rs` is the format, pure; `reader.rs` reads files; `follow.rs` waits for more.

mod follow;
mod line;
mod reader;

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
};

use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio::sync::mpsc;

use self::{follow::Follow, line::Wanted, reader::Reader};
use super::{
    Server,
    answer::{Answer, Body, with_type},
    lookup::{Found, Target},
    query::Query,
    sessions::Sessions,
};
use crate::runtime::Phase;

/// Pieces that wait for a slow client.
const QUEUED_PIECES: usize = 4;

/// One run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attempt {
    number: u32,
    /// Empty once the runtime has forgotten it and only its log is left.
    id: String,
    log: PathBuf,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    NotStarted,
    Running,
    Ended,
}

pub async fn logs(
    server: &Server,
    sessions: &Sessions,
    query: &Query,
    target: &Target,
) -> Result<Response<Body>, Answer> {
    let (wanted, follow, previous) = options(query, Timestamp::now())?;
    let found = server.find(target).await?;
    let place = sessions.take(&found.uid)?;
    if !found.has_container(&target.container) {
        return Err(Answer::not_found(format!(
            "container {:?} not found in pod {:?}",
            target.container, target.pod
        )));
    }
    let attempts = attempts(server, &found, target).await;
    let status = status(&found.pod, &target.container);
    let attempt = choose(&attempts, status, previous, target).map_err(Answer::bad_request)?;
    let unreadable = |error: std::io::Error| {
        tracing::debug!(%error, log = %attempt.log.display(), "read a container's log");
        Answer::bad_request(format!(
            "failed to try resolving symlinks in path {:?}: {error}",
            attempt.log
        ))
    };
    let follow = match follow && attempt.state == State::Running {
        true => {
            let (runtime, id) = (server.runtime.clone(), attempt.id.clone());
            Some(Follow::new(&attempt.log, runtime, found.uid.clone(), id).await)
        }
        false => None,
    };
    let (path, following) = (attempt.log.clone(), follow.is_some());
    let reader = tokio::task::spawn_blocking(move || Reader::open(path, &wanted, following)).await;
    let reader = reader
        .map_err(|error| Answer::internal(error.to_string()))?
        .map_err(unreadable)?;
    let (sender, receiver) = mpsc::channel(QUEUED_PIECES);
    tokio::spawn(async move {
        let _place = place;
        follow::pump(reader, follow, sender).await;
    });
    Ok(with_type(StatusCode::OK, "text/plain", body(receiver)))
}

fn body(receiver: mpsc::Receiver<bytes::Bytes>) -> Body {
    let frames = futures::stream::unfold(receiver, |mut receiver| async {
        let bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), receiver))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// What is wanted, whether to follow, whether of the attempt before.
fn options(query: &Query, now: Timestamp) -> Result<(Wanted, bool, bool), Answer> {
    let invalid = || {
        Answer::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            r#"{"message": "Invalid request."}"#,
        )
    };
    let since_seconds = query.number::<i64>("sinceSeconds")?;
    let since_time = query.get("sinceTime");
    let since = match (since_seconds, since_time) {
        (Some(_), Some(_)) => return Err(invalid()),
        (Some(seconds), None) if seconds < 1 => return Err(invalid()),
        (Some(seconds), None) => {
            let earlier = now.checked_sub(SignedDuration::from_secs(seconds));
            Some(earlier.unwrap_or(Timestamp::MIN))
        }
        (None, Some(time)) => Some(time.parse().map_err(|_| {
            Answer::bad_request(format!("sinceTime: {time:?} is not an RFC 3339 time"))
        })?),
        (None, None) => None,
    };
    let limit_bytes = query.number::<u64>("limitBytes")?;
    if limit_bytes == Some(0) {
        return Err(invalid());
    }
    let wanted = Wanted {
        timestamps: query.flag("timestamps"),
        since,
        tail: query.number("tailLines")?,
        limit_bytes,
    };
    Ok((wanted, query.flag("follow"), query.flag("previous")))
}

/// All attempts of a container, oldest first: what the runtime knows, and logs of what it has
/// already forgotten.
async fn attempts(server: &Server, found: &Found, target: &Target) -> Vec<Attempt> {
    let containers = found.state.iter().flat_map(|state| &state.containers);
    let mut attempts: Vec<Attempt> = containers
        .filter(|one| one.name == target.container)
        .map(|one| Attempt {
            number: one.attempt,
            id: one.id.clone(),
            log: one.log_path.clone(),
            state: match one.phase {
                Phase::Created => State::NotStarted,
                Phase::Running { .. } => State::Running,
                Phase::Exited { started: None, .. } => State::NotStarted,
                Phase::Exited { .. } => State::Ended,
            },
        })
        .collect();
    let folder = format!("{}_{}_{}", target.namespace, target.pod, found.uid);
    let folder = server.log_dir.join(folder).join(&target.container);
    for (number, log) in files(&folder).await {
        if attempts.iter().all(|attempt| attempt.number != number) {
            attempts.push(Attempt {
                number,
                id: String::new(),
                log,
                state: State::Ended,
            });
        }
    }
    attempts.sort_by_key(|attempt| attempt.number);
    attempts
}

async fn files(folder: &Path) -> Vec<(u32, PathBuf)> {
    let mut found = Vec::new();
    let Ok(mut entries) = tokio::fs::read_dir(folder).await else {
        return found;
    };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log"));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            found.push((number, entry.path()));
        }
    }
    found
}

fn status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let kinds = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let mut all = kinds.into_iter().flatten().flatten();
    all.find(|status| status.name == container)
}

/// The attempt whose log is asked for, or why there is none. Pure.
fn choose<'a>(
    attempts: &'a [Attempt],
    status: Option<&ContainerStatus>,
    previous: bool,
    target: &Target,
) -> Result<&'a Attempt, String> {
    let (container, pod) = (&target.container, &target.pod);
    let started: Vec<&Attempt> = attempts
        .iter()
        .filter(|attempt| attempt.state != State::NotStarted)
        .collect();
    let state = status.and_then(|status| status.state.as_ref());
    let waiting = state.and_then(|state| state.waiting.as_ref());
    if previous {
        // One that waits to be started again has its last run behind it.
        let ended = matches!(started.last(), Some(last) if last.state == State::Ended);
        let back = if waiting.is_some() && ended { 1 } else { 2 };
        let found = started.len().checked_sub(back).map(|at| started[at]);
        return found.ok_or_else(|| {
            format!("previous terminated container {container:?} in pod {pod:?} not found")
        });
    }
    if let Some(last) = started.last() {
        return Ok(last);
    }
    let waits = format!("container {container:?} in pod {pod:?} is waiting to start");
    Err(
        match waiting.and_then(|waiting| waiting.reason.as_deref()) {
            Some("ErrImagePull") => format!("{waits}: image can't be pulled"),
            Some("ImagePullBackOff") => format!("{waits}: trying and failing to pull image"),
            Some(reason) => format!("{waits}: {reason}"),
            None => format!("{waits}: ContainerCreating"),
        },
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ContainerState, ContainerStateWaiting};

    use super::*;

    fn attempt(number: u32, state: State) -> Attempt {
        Attempt {
            number,
            id: String::new(),
            log: PathBuf::from(format!("{number}.log")),
            state,
        }
    }

    fn waiting(reason: &str) -> ContainerStatus {
        let waiting = ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: None,
        };
        ContainerStatus {
            state: Some(ContainerState {
                waiting: Some(waiting),
                ..ContainerState::default()
            }),
            ..ContainerStatus::default()
        }
    }

    #[test]
    fn which_attempt() {
        use State::{Ended, NotStarted, Running};
        let target = Target {
            pod: "p".to_owned(),
            container: "c".to_owned(),
            ..Target::default()
        };
        let none = Err("previous terminated container \"c\" in pod \"p\" not found");
        for (states, reason, previous, want) in [
            (&[Running][..], None, false, Ok(0)),
            (&[Ended, Running], None, false, Ok(1)),
            (&[Ended, Running], None, true, Ok(0)),
            (&[Ended, Ended], None, true, Ok(0)),
            (&[Ended, Ended], Some("CrashLoopBackOff"), true, Ok(1)),
            (&[Ended, Ended], Some("CrashLoopBackOff"), false, Ok(1)),
            (&[Ended, NotStarted], None, false, Ok(0)),
            (&[Running], None, true, none),
            (&[], Some("CrashLoopBackOff"), true, none),
            (
                &[],
                None,
                false,
                Err("container \"c\" in pod \"p\" is waiting to start: ContainerCreating"),
            ),
            (
                &[NotStarted],
                Some("ImagePullBackOff"),
                false,
                Err(
                    "container \"c\" in pod \"p\" is waiting to start: trying and failing to pull image",
                ),
            ),
        ] {
            let attempts: Vec<Attempt> = (0..).zip(states).map(|(n, s)| attempt(n, *s)).collect();
            let status = reason.map(waiting);
            let got = choose(&attempts, status.as_ref(), previous, &target);
            let got = got.map(|attempt| attempt.number);
            assert_eq!(
                got,
                want.map_err(str::to_owned),
                "{states:?} {reason:?} {previous}"
            );
        }
    }

    #[test]
    fn options_asked_for() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let minute = now - SignedDuration::from_secs(60);
        for (query, want) in [
            (
                "tailLines=5&follow=true&previous=1",
                Ok((Some(5), None, true, true)),
            ),
            ("sinceSeconds=60", Ok((None, Some(minute), false, false))),
            (
                "sinceTime=2026-01-01T00:00:00Z",
                Ok((None, Some(minute), false, false)),
            ),
            ("sinceTime=2026-01-01T00:00:00Z&sinceSeconds=1", Err(422)),
            ("limitBytes=0", Err(422)),
            ("tailLines=-1", Err(400)),
            ("sinceTime=x", Err(400)),
        ] {
            let got = options(&Query::from_text(query), now);
            let got = got
                .map(|(wanted, follow, previous)| (wanted.tail, wanted.since, follow, previous))
                .map_err(|answer| answer.status.as_u16());
            assert_eq!(got, want, "{query}");
        }
    }
}
