//! Making the pods of a node leave.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{
    Api, Client,
    api::{DeleteParams, EvictParams, Preconditions},
    core::Status,
    runtime::{
        WatchStreamExt, wait,
        wait::{await_condition, conditions::is_deleted},
        watcher,
    },
};

use super::plan::{Leaving, Step};

/// Pods that are made to leave at once.
const AT_ONCE: usize = 8;
/// An eviction that was refused is tried again when a budget changes, and after this: not all that is refused
/// is because of one.
const RETRY: Duration = Duration::from_secs(5);

/// Why a pod did not leave.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing} the pod {pod}")]
    Api {
        doing: &'static str,
        pod: String,
        source: Box<kube::Error>,
    },
    #[error("wait for the pod {pod} to end")]
    Wait {
        pod: String,
        source: Box<wait::Error>,
    },
    #[error("after {waited:?} there are still {pods}")]
    Late { waited: Duration, pods: String },
}

/// What each pod waits for that has not left.
type Waiting = Mutex<BTreeMap<String, String>>;

fn with<T>(waiting: &Waiting, with: impl FnOnce(&mut BTreeMap<String, String>) -> T) -> T {
    with(&mut waiting.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Makes them all leave, and waits until they have: `gone` hears of each. With `Ending::Left` nobody waits for
/// what has been deleted.
pub async fn drain(
    client: &Client,
    leaving: &[Leaving],
    timeout: Duration,
    ending: Ending,
    mut gone: impl FnMut(&str),
) -> Result<(), Error> {
    let waiting = Waiting::default();
    let all = async {
        let leave = |pod| {
            let (client, waiting) = (client.clone(), &waiting);
            async move { leave(client, pod, ending, waiting).await }
        };
        let mut leaves = pin!(stream::iter(leaving).map(leave).buffer_unordered(AT_ONCE));
        while let Some(left) = leaves.next().await {
            gone(&left?);
        }
        Ok(())
    };
    match tokio::time::timeout(timeout, all).await {
        Ok(result) => result,
        Err(_) => Err(Error::Late {
            waited: timeout,
            pods: with(&waiting, |waiting| list(waiting)),
        }),
    }
}

/// Whether somebody ends the node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Awaited,
    /// The machine is away.
    Left,
}

/// The first of those that wait, each with its reason.
fn list(waiting: &BTreeMap<String, String>) -> String {
    const MOST: usize = 5;
    let shown = waiting.iter().take(MOST);
    let mut shown: Vec<String> = shown.map(|(pod, why)| format!("{pod} ({why})")).collect();
    if waiting.len() > MOST {
        shown.push(format!("{} more", waiting.len() - MOST));
    }
    shown.join(", ")
}

/// Makes one leave; its name.
async fn leave(
    client: Client,
    pod: &Leaving,
    ending: Ending,
    waiting: &Waiting,
) -> Result<String, Error> {
    let shown = format!("{}/{}", pod.namespace, pod.name);
    let tell = |why: &str| {
        with(waiting, |waiting| {
            waiting.insert(shown.clone(), why.to_owned());
        });
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    tell("it has not begun to end");
    match pod.step {
        Step::Evict => evict(&client, &pods, pod, &shown, tell).await?,
        Step::Delete => {
            let deleted = pods.delete(&pod.name, &of_uid(pod)).await.map(drop);
            unless_gone(deleted).map_err(|source| api("delete", &shown, source))?;
        }
        Step::Await => {}
    }
    if ending == Ending::Awaited {
        tell("it is ending");
        let gone = await_condition(pods, &pod.name, is_deleted(&pod.uid)).await;
        gone.map_err(|source| Error::Wait {
            pod: shown.clone(),
            source: Box::new(source),
        })?;
    }
    with(waiting, |waiting| waiting.remove(&shown));
    Ok(shown)
}

/// Asks for its eviction until no budget forbids it.
async fn evict(
    client: &Client,
    pods: &Api<Pod>,
    pod: &Leaving,
    shown: &str,
    tell: impl Fn(&str),
) -> Result<(), Error> {
    let params = EvictParams {
        delete_options: Some(of_uid(pod)),
        ..EvictParams::default()
    };
    let mut budgets = None;
    loop {
        match pods.evict(&pod.name, &params).await {
            Err(kube::Error::Api(status)) if status.code == 429 => tell(&why(&status)),
            // It is another pod by now, or this one changes too fast to be judged.
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                let found = pods.get_opt(&pod.name).await;
                let found = found.map_err(|source| api("evict", shown, source))?;
                if found.is_none_or(|found| found.metadata.uid.as_ref() != Some(&pod.uid)) {
                    return Ok(());
                }
                tell(&status.message);
            }
            evicted => {
                let evicted = unless_gone(evicted.map(drop));
                return evicted.map_err(|source| api("evict", shown, source));
            }
        }
        let budgets = budgets.get_or_insert_with(|| {
            let all: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), &pod.namespace);
            let changes = watcher(all, watcher::Config::default());
            changes.default_backoff().touched_objects().boxed()
        });
        tokio::select! {
            _ = budgets.next() => {}
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// What keeps a pod from being evicted: the budget, where one does.
fn why(status: &Status) -> String {
    let details = status.details.as_ref();
    let cause = details.and_then(|details| details.causes.first());
    cause
        .map_or(&status.message, |cause| &cause.message)
        .clone()
}

/// This pod, and none that has its name by now.
fn of_uid(pod: &Leaving) -> DeleteParams {
    DeleteParams::default().preconditions(Preconditions {
        uid: Some(pod.uid.clone()),
        resource_version: None,
    })
}

/// A pod that is gone, or another one by now, has left.
fn unless_gone(done: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match done {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        done => done,
    }
}

fn api(doing: &'static str, pod: &str, source: kube::Error) -> Error {
    Error::Api {
        doing,
        pod: pod.to_owned(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_of_those_that_wait_are_named() {
        let of = |count: u8| {
            (0..count)
                .map(|number| (format!("shop/{number}"), "it is ending".to_owned()))
                .collect()
        };
        assert_eq!(list(&of(1)), "shop/0 (it is ending)");
        let many = list(&of(12));
        assert!(
            many.contains("shop/2 (") && many.ends_with(", 7 more"),
            "{many}"
        );
    }
}
