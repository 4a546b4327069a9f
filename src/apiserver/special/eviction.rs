//! `pods/eviction`: a delete that asks the disruption budgets first.
//!
//! Always true: a budget's allowance is taken by compare-and-swap on its status before the pod is
//! deleted, so that two evictions never share one.

use std::sync::Arc;

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
        let pod = call.objects.get("pods", call.namespace, call.name).await;
        let pod = pod.ok_or_else(|| Status::not_found("", "pods", call.name))?;
        if !is_free(&pod) {
            let budgets = matching(&pod, call.objects.list(BUDGETS, call.namespace).await);
            match budgets.as_slice() {
                [] => {}
                [budget] => take(call, &pod, budget, dry_run).await?,
                _ => {
                    return Err(Status::internal(
                        "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                    ));
                }
            }
        }
        if dry_run {
            return Ok(success());
        }
        mark(call, &pod).await?;
        let target = Named {
            plural: "pods",
            subresource: "",
            namespace: call.namespace,
            name: call.name,
        };
        let mut options = options;
        // Not another pod of the same name.
        if !text(&pod, "metadata.uid").is_empty() && text(&options, "preconditions.uid").is_empty()
        {
            set(
                &mut options,
                "preconditions.uid",
                text(&pod, "metadata.uid"),
            );
        }
        call.objects.delete(call.user, target, options).await?;
        Ok(success())
    }
}

/// Pods that serve nobody are no loss: pending, finished, or going already.
fn is_free(pod: &Value) -> bool {
    matches!(
        text(pod, "status.phase"),
        "Succeeded" | "Failed" | "Pending"
    ) || !text(pod, "metadata.deletionTimestamp").is_empty()
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

/// Takes one disruption from the budget, or says why there is none.
async fn take(call: &Call<'_>, pod: &Value, budget: &Value, dry_run: bool) -> Result<(), Status> {
    let target = Named {
        plural: BUDGETS,
        subresource: "status",
        namespace: call.namespace,
        name: text(budget, "metadata.name"),
    };
    let decide = |budget: &mut Value| match judge(pod, budget) {
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
            let now = jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string();
            let pods = object_mut(budget, "status.disruptedPods");
            pods.insert(text(pod, "metadata.name").to_owned(), now.into());
            Ok(())
        }
    };
    if dry_run {
        return decide(&mut budget.clone());
    }
    call.objects
        .update(call.user, target, true, &decide)
        .await
        .map(|_| ())
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

/// Tells controllers that the pod goes because it was evicted.
async fn mark(call: &Call<'_>, pod: &Value) -> Result<(), Status> {
    if text(pod, "spec.nodeName").is_empty() {
        return Ok(());
    }
    let target = Named {
        plural: "pods",
        subresource: "status",
        namespace: call.namespace,
        name: call.name,
    };
    let change = |pod: &mut Value| {
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        let mut conditions = items(pod, "status.conditions").to_vec();
        conditions.retain(|condition| text(condition, "type") != "DisruptionTarget");
        conditions.push(
            json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastTransitionTime": now}),
        );
        set(pod, "status.conditions", conditions);
        Ok(())
    };
    match call.objects.update(call.user, target, true, &change).await {
        Err(status) if status.reason != Reason::NotFound => Err(status),
        _ => Ok(()),
    }
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
