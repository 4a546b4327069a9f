//! Writes one pod's status to the API: always the newest, one write at a time, never waited for
//! except at the end.
//!
//! Owned by the pod's worker; ends with it.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    backoff::Backoff,
    supervision::{
        Panic, caught,
        steps::{Step, reached},
    },
};

/// A status that hardly says anything yet waits so long for a better one.
const SOON: Duration = Duration::from_millis(100);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// The object that a status is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub namespace: String,
    pub name: String,
    /// Of the API's object, so that a later pod of the same name is not written to.
    pub uid: String,
}

impl Target {
    /// Whether the object is still there: by its name there may be another by now.
    pub async fn is_in(&self, api: &Api<Pod>) -> Result<bool, kube::Error> {
        let found = api.get_opt(&self.name).await?;
        Ok(found.and_then(|pod| pod.metadata.uid).as_ref() == Some(&self.uid))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    Soon,
    Now,
}

#[derive(Clone, Debug)]
struct Report {
    number: u64,
    target: Target,
    status: PodStatus,
    urgency: Urgency,
}

#[derive(Debug)]
pub struct Reporter {
    newest: watch::Sender<Option<Report>>,
    written: watch::Receiver<Written>,
    number: u64,
}

/// How far the writer has come.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    number: u64,
    /// The object's revision after the last write.
    revision: u64,
}

impl Reporter {
    /// `held`: what the API says already.
    pub fn start(client: Client, held: PodStatus) -> Self {
        let (newest, reports) = watch::channel(None);
        let (done, written) = watch::channel(Written::default());
        tokio::spawn(write_all(client, held, reports, done));
        Self {
            newest,
            written,
            number: 0,
        }
    }

    pub fn report(&mut self, target: Target, status: PodStatus, urgency: Urgency) {
        self.number += 1;
        self.newest.send_replace(Some(Report {
            number: self.number,
            target,
            status,
            urgency,
        }));
    }

    /// Resolves when all that was reported so far is written, or its object is gone.
    pub fn flushed(&self) -> impl Future<Output = ()> + Send + 'static {
        let (number, mut written) = (self.number, self.written.clone());
        async move {
            // A writer that has ended will write no more.
            let _ = written.wait_for(|written| written.number >= number).await;
        }
    }

    /// Whether an object of this revision shows all that was reported, unless others changed it.
    pub fn is_shown_by(&self, revision: u64) -> bool {
        let written = *self.written.borrow();
        written.number >= self.number && revision >= written.revision
    }
}

async fn write_all(
    client: Client,
    mut held: PodStatus,
    mut reports: watch::Receiver<Option<Report>>,
    done: watch::Sender<Written>,
) {
    let mut retry = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    while reports.changed().await.is_ok() {
        let mut newest = reports.borrow_and_update().clone();
        if newest
            .as_ref()
            .is_some_and(|report| report.urgency == Urgency::Soon)
        {
            let _ = tokio::time::timeout(SOON, reports.wait_for(is_urgent)).await;
            newest = reports.borrow_and_update().clone();
        }
        let Some(report) = newest else { continue };
        let written = caught(write(&client, &report, &held)).await;
        match written
            .map_err(Failed::Panic)
            .and_then(|written| written.map_err(Failed::Api))
        {
            Ok(revision) => {
                retry.reset();
                held = report.status;
                done.send_modify(|written| {
                    written.number = report.number;
                    written.revision = revision.unwrap_or(written.revision);
                });
                reached(Step::StatusWritten);
            }
            Err(error) => {
                tracing::warn!(pod = report.target.name, %error, "status not written, will retry");
                reports.mark_changed();
                tokio::time::sleep(retry.next_wait()).await;
            }
        }
    }
}

/// Why a status was not written.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Api(kube::Error),
    #[error(transparent)]
    Panic(Panic),
}

fn is_urgent(report: &Option<Report>) -> bool {
    report
        .as_ref()
        .is_some_and(|report| report.urgency == Urgency::Now)
}

/// Returns the object's revision, if it was written.
async fn write(
    client: &Client,
    report: &Report,
    held: &PodStatus,
) -> Result<Option<u64>, kube::Error> {
    let target = &report.target;
    let Some(status) = difference(held, &report.status) else {
        return Ok(None);
    };
    let api: Api<Pod> = Api::namespaced(client.clone(), &target.namespace);
    let patch = json!({"metadata": {"uid": target.uid}, "status": status});
    let params = PatchParams::default();
    let written = api
        .patch_status(&target.name, &params, &Patch::Strategic(patch))
        .await;
    match written {
        // Gone: nobody wants to know.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        // Another pod by now, or so many write this one that the server gave up.
        Err(kube::Error::Api(status)) if status.code == 409 => match target.is_in(&api).await? {
            true => Err(kube::Error::Api(status)),
            false => Ok(None),
        },
        Err(error) => Err(error),
        Ok(pod) => Ok(revision(&pod)),
    }
}

pub fn revision(pod: &Pod) -> Option<u64> {
    pod.metadata.resource_version.as_ref()?.parse().ok()
}

/// The fields that differ, `null` for those that went; `None` if all is the same.
fn difference(held: &PodStatus, wanted: &PodStatus) -> Option<Value> {
    let value = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    };
    let (held, wanted) = (value(held), value(wanted));
    let lists = ["containerStatuses", "initContainerStatuses"];
    let gone = ["reason", "message"]
        .into_iter()
        .chain(lists)
        .filter(|key| held.contains_key(*key) && !wanted.contains_key(*key))
        .map(|key| (key.to_owned(), Value::Null));
    let mut changed: serde_json::Map<String, Value> = wanted
        .iter()
        .filter(|(key, value)| held.get(*key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .chain(gone)
        .collect();
    for list in ["podIPs", "hostIPs"] {
        // They are merged by address: one that the pod has no more would stay.
        if let Some(addresses) = changed.get_mut(list).and_then(Value::as_array_mut) {
            addresses.push(json!({"$patch": "replace"}));
        }
    }
    if let Some(conditions) = changed.get_mut("conditions") {
        drop_stale(held.get("conditions"), conditions);
    }
    (!changed.is_empty()).then_some(Value::Object(changed))
}

/// Conditions are merged by type: what one of them no longer says must be taken away by name.
fn drop_stale(held: Option<&Value>, conditions: &mut Value) {
    let held = held.and_then(Value::as_array);
    for condition in conditions.as_array_mut().into_iter().flatten() {
        let before = held
            .into_iter()
            .flatten()
            .find(|held| held["type"] == condition["type"]);
        for key in ["reason", "message"] {
            let stale = before.is_some_and(|before| before.get(key).is_some());
            if let (true, Some(fields)) = (stale, condition.as_object_mut()) {
                fields.entry(key).or_insert(Value::Null);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[test]
    fn only_what_differs_is_sent() {
        let status = |value: Value| -> PodStatus { serde_json::from_value(value).unwrap() };
        let held = json!({"phase": "Pending", "reason": "x", "hostIP": "1.2.3.4"});
        for (wanted, want) in [
            (held.clone(), None),
            (
                json!({"phase": "Running", "hostIP": "1.2.3.4"}),
                Some(json!({"phase": "Running", "reason": null})),
            ),
            (
                json!({"phase": "Pending", "reason": "x", "hostIP": "1.2.3.4",
                    "conditions": [{"type": "Ready", "status": "True"}]}),
                Some(json!({"conditions": [{"type": "Ready", "status": "True"}]})),
            ),
        ] {
            assert_eq!(difference(&status(held.clone()), &status(wanted)), want);
        }
        // Of a pod that was started anew.
        let at = |ip: &str| json!({"podIP": ip, "podIPs": [{"ip": ip}]});
        assert_eq!(
            difference(&status(at("10.0.0.1")), &status(at("10.0.0.2"))),
            Some(
                json!({"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "replace"}]})
            )
        );
        let not_ready = json!({"conditions": [{"type": "Ready", "status": "False", "reason": "r", "message": "m"}]});
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        assert_eq!(
            difference(&status(not_ready), &status(ready)),
            Some(
                json!({"conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}]})
            )
        );
    }

    /// Answers in this order: a code each; 200 with a pod of that UID.
    fn server(answers: &[(&'static str, u16, &'static str)]) -> (Client, Arc<AtomicUsize>) {
        let (answers, asked) = (answers.to_vec(), Arc::new(AtomicUsize::new(0)));
        let counted = asked.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            let (method, code, uid) = answers.get(number).copied().unwrap_or(("", 500, ""));
            assert_eq!(request.method(), method, "request {number}");
            let reason = if code == 404 { "NotFound" } else { "Conflict" };
            let body = match code {
                200 => json!({"apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": "p", "uid": uid, "resourceVersion": "7"}}),
                code => json!({"apiVersion": "v1", "kind": "Status", "status": "Failure",
                    "message": "m", "reason": reason, "code": code}),
            };
            let body = http_body_util::Full::new(bytes::Bytes::from(body.to_string()));
            let mut response = http::Response::new(body);
            *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
            async { Ok::<_, std::io::Error>(response) }
        });
        (Client::new(service, "default"), asked)
    }

    #[tokio::test]
    async fn a_conflict_is_no_write_while_the_pod_is_there() {
        for (answers, revision) in [
            // Others were always faster: again.
            (
                &[("PATCH", 409, ""), ("GET", 200, "u"), ("PATCH", 200, "u")][..],
                7,
            ),
            // Another pod of that name, or none.
            (&[("PATCH", 409, ""), ("GET", 200, "v")], 0),
            (&[("PATCH", 409, ""), ("GET", 404, "")], 0),
            (&[("PATCH", 404, "")], 0),
        ] {
            let (client, asked) = server(answers);
            let mut reporter = Reporter::start(client, PodStatus::default());
            let target = Target {
                namespace: "n".into(),
                name: "p".into(),
                uid: "u".into(),
            };
            let status = PodStatus {
                phase: Some("Running".into()),
                ..PodStatus::default()
            };
            reporter.report(target, status, Urgency::Now);
            reporter.flushed().await;
            assert_eq!(asked.load(Ordering::SeqCst), answers.len());
            assert_eq!(reporter.written.borrow().revision, revision);
        }
    }
}
