//! `pods/eviction`: a delete that asks the disruption budgets first.
//!
//! Always true: a budget's allowance is taken by compare-and-swap on its status before the pod is
//! deleted, so that two evictions never share one. A pod whose loss costs nothing is deleted as it
//! was judged: if it changes meanwhile, it may have become ready, and is judged again.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde_json::{Value, json};

use super::{Call, Special, success};
use crate::apiserver::{
    objects::Named,
    registry::{
        Resource,
        kinds::{
            selector,
            value::{at, items, number, object_mut, set, text},
        },
    },
    status::{Cause, CauseType, Details, Reason, Status},
};

const BUDGETS: &str = "poddisruptionbudgets.policy";
/// A pod that changes all the time is judged so often.
const RETRIES: usize = 16;
/// A budget remembers at most so many pods that are on their way out.
const MOST_DISRUPTED: usize = 2000;

pub struct Eviction;

#[async_trait::async_trait]
impl Special for Eviction {
    fn serves(&self, resource: &Resource, subresource: Option<&str>) -> bool {
        resource.group.is_empty() && resource.plural == "pods" && subresource == Some("eviction")
    }

    async fn create(&self, call: &Call<'_>, body: Value) -> Result<Value, Status> {
        let named = text(&body, "metadata.name");
        if !named.is_empty() && named != call.name {
            return Err(Status::bad_request(
                "name in URL does not match name in Eviction object",
            ));
        }
        let options = at(&body, "deleteOptions")
            .cloned()
            .unwrap_or_else(|| json!({}));
        let dry_run = call.dry_run || !items(&options, "dryRun").is_empty();
        let own_revision = !text(&options, "preconditions.resourceVersion").is_empty();
        let mut last = None;
        for _ in 0..RETRIES {
            let pod = call.objects.get("pods", call.namespace, call.name).await;
            let pod = pod.ok_or_else(|| Status::not_found("", "pods", call.name))?;
            let loss = judged(call, &pod, dry_run).await?;
            if dry_run {
                return Ok(success());
            }
            match evict(call, &pod, loss, options.clone()).await {
                // The pod is not what was judged: it may have become ready.
                Err(status) if status.reason == Reason::Conflict && loss == Loss::None => {
                    if own_revision {
                        return Err(status);
                    }
                    last = Some(status);
                }
                result => return result.map(|()| success()),
            }
        }
        Err(last.unwrap_or_else(|| Status::internal("an eviction was never tried")))
    }
}

/// What the eviction of a pod costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// Nothing, whatever becomes of the pod: it has ended, or no budget counts it.
    Uncounted,
    /// Nothing, as long as the pod is what it was when it was judged.
    None,
    /// One of what a budget allows, which was taken from it.
    Paid,
}

/// Asks the budgets, and takes from the one that the pod counts in.
async fn judged(call: &Call<'_>, pod: &Value, dry_run: bool) -> Result<Loss, Status> {
    if is_over(pod) {
        return Ok(Loss::Uncounted);
    }
    if text(pod, "status.phase") == "Pending" {
        return Ok(Loss::None);
    }
    let budgets = matching(pod, call.objects.list(BUDGETS, call.namespace).await);
    match budgets.as_slice() {
        [] => Ok(Loss::Uncounted),
        [budget] => take(call, pod, budget, dry_run).await,
        _ => Err(Status::internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        )),
    }
}

/// Marks and deletes the pod: the one that was judged, and as it was judged where it cost nothing.
async fn evict(call: &Call<'_>, pod: &Value, loss: Loss, mut options: Value) -> Result<(), Status> {
    let revision = mark(call, pod, loss).await?;
    let target = Named {
        plural: "pods",
        subresource: "",
        namespace: call.namespace,
        name: call.name,
    };
    let mut require = |name: &str, value: &str| {
        let path = format!("preconditions.{name}");
        if !value.is_empty() && text(&options, &path).is_empty() {
            set(&mut options, &path, value);
        }
    };
    require("uid", text(pod, "metadata.uid"));
    if loss == Loss::None {
        require("resourceVersion", &revision);
    }
    let deleted = call
        .objects
        .delete(call.user, target, options, Vec::new())
        .await;
    deleted.map(|_| ())
}

/// Finished, or going already.
fn is_over(pod: &Value) -> bool {
    matches!(text(pod, "status.phase"), "Succeeded" | "Failed")
        || !text(pod, "metadata.deletionTimestamp").is_empty()
}

fn matching(pod: &Value, budgets: Vec<Arc<Value>>) -> Vec<Arc<Value>> {
    budgets
        .into_iter()
        .filter(|budget| {
            at(budget, "spec.selector")
                .is_some_and(|selector| selector::matches(selector, at(pod, "metadata.labels")))
        })
        .collect()
}

/// What a budget says to the eviction of one pod.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The pod is not ready and its loss costs nothing.
    Free,
    /// Take one from the allowance.
    Take,
    Refused(String),
    /// The controller has not seen the budget's newest form.
    Unobserved,
}

fn judge(pod: &Value, budget: &Value) -> Verdict {
    let ready = items(pod, "status.conditions")
        .iter()
        .any(|condition| text(condition, "type") == "Ready" && text(condition, "status") == "True");
    let count = |field: &str| number(&budget["status"], field).unwrap_or_default();
    if !ready {
        let enough =
            count("currentHealthy") >= count("desiredHealthy") && count("desiredHealthy") > 0;
        if text(budget, "spec.unhealthyPodEvictionPolicy") == "AlwaysAllow" || enough {
            return Verdict::Free;
        }
    }
    if count("observedGeneration") < number(budget, "metadata.generation").unwrap_or_default() {
        return Verdict::Unobserved;
    }
    let name = text(budget, "metadata.name");
    if at(budget, "status.disruptedPods")
        .and_then(Value::as_object)
        .is_some_and(|pods| pods.len() > MOST_DISRUPTED)
    {
        return Verdict::Refused(format!(
            "The disruption budget {name} has too many evictions not confirmed by the controller"
        ));
    }
    if count("disruptionsAllowed") < 1 {
        return Verdict::Refused(format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            count("desiredHealthy"),
            count("currentHealthy")
        ));
    }
    Verdict::Take
}

/// Takes one disruption from the budget if the pod counts, or says why there is none.
async fn take(call: &Call<'_>, pod: &Value, budget: &Value, dry_run: bool) -> Result<Loss, Status> {
    let target = Named {
        plural: BUDGETS,
        subresource: "status",
        namespace: call.namespace,
        name: text(budget, "metadata.name"),
    };
    let paid = AtomicBool::new(false);
    let decide = |budget: &mut Value| {
        let verdict = judge(pod, budget);
        paid.store(verdict == Verdict::Take, Ordering::Relaxed);
        match verdict {
            Verdict::Free => Ok(()),
            Verdict::Refused(why) => Err(refused(why, None)),
            Verdict::Unobserved => {
                let name = text(budget, "metadata.name");
                Err(refused(
                    format!("The disruption budget {name} is still being processed by the server."),
                    Some(10),
                ))
            }
            Verdict::Take => {
                let left = number(budget, "status.disruptionsAllowed").unwrap_or_default() - 1;
                set(budget, "status.disruptionsAllowed", left);
                let pods = object_mut(budget, "status.disruptedPods");
                pods.insert(text(pod, "metadata.name").to_owned(), now().into());
                Ok(())
            }
        }
    };
    if dry_run {
        decide(&mut budget.clone())?;
    } else {
        call.objects
            .update(call.user, target, true, &decide)
            .await?;
    }
    Ok(match paid.into_inner() {
        true => Loss::Paid,
        false => Loss::None,
    })
}

fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

fn refused(why: String, retry_after_seconds: Option<u32>) -> Status {
    let mut status = Status::new(
        Reason::TooManyRequests,
        "Cannot evict pod as it would violate the pod's disruption budget.",
    );
    status.details = Some(Details {
        causes: vec![Cause {
            reason: CauseType::DisruptionBudget,
            message: why,
            field: String::new(),
        }],
        retry_after_seconds,
        ..Details::default()
    });
    status
}

/// Tells controllers that the pod goes because it was evicted; answers with the revision it has then.
async fn mark(call: &Call<'_>, pod: &Value, loss: Loss) -> Result<String, Status> {
    let judged = |name: &str| text(pod, &format!("metadata.{name}")).to_owned();
    if text(pod, "spec.nodeName").is_empty() {
        return Ok(judged("resourceVersion"));
    }
    let target = Named {
        plural: "pods",
        subresource: "status",
        namespace: call.namespace,
        name: call.name,
    };
    let (uid, revision) = (judged("uid"), judged("resourceVersion"));
    let change = |pod: &mut Value| {
        check("UID", &uid, text(pod, "metadata.uid"), call.name)?;
        if loss == Loss::None {
            let found = text(pod, "metadata.resourceVersion");
            check("ResourceVersion", &revision, found, call.name)?;
        }
        let mut conditions = items(pod, "status.conditions").to_vec();
        conditions.retain(|condition| text(condition, "type") != "DisruptionTarget");
        conditions.push(
            json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastTransitionTime": now()}),
        );
        set(pod, "status.conditions", conditions);
        Ok(())
    };
    let marked = call
        .objects
        .update(call.user, target, true, &change)
        .await?;
    Ok(text(&marked, "metadata.resourceVersion").to_owned())
}

fn check(what: &str, judged: &str, found: &str, name: &str) -> Result<(), Status> {
    if judged == found {
        return Ok(());
    }
    let why = format!(
        "Precondition failed: {what} in precondition: {judged}, {what} in object meta: {found}"
    );
    Err(Status::conflict("", "pods", name, &why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let unready = json!({});
        let budget = |allowed: i64, policy: &str, observed: i64| {
            json!({"metadata": {"name": "b", "generation": 2}, "spec": {"unhealthyPodEvictionPolicy": policy},
                "status": {"disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 2, "observedGeneration": observed}})
        };
        let short = Verdict::Refused(
            "The disruption budget b needs 2 healthy pods and has 1 currently".to_owned(),
        );
        for (pod, budget, want) in [
            (&ready, budget(1, "", 2), Verdict::Take),
            (&ready, budget(0, "", 2), short),
            (&ready, budget(1, "", 1), Verdict::Unobserved),
            (&unready, budget(0, "AlwaysAllow", 2), Verdict::Free),
            (&unready, budget(1, "IfHealthyBudget", 2), Verdict::Take),
        ] {
            assert_eq!(judge(pod, &budget), want, "{budget}");
        }
    }
}
