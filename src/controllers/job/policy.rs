//! What a Job's `podFailurePolicy` says of a failed pod. Pure.

use k8s_openapi::api::{
    batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule},
    core::v1::{ContainerStatus, Pod},
};
use kube::ResourceExt;

use crate::controllers::pods;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Count,
    Ignore,
    FailIndex,
    FailJob(String),
}

/// The first rule that matches decides; without one the failure counts.
pub fn judge(job: &Job, pod: &Pod) -> Verdict {
    let rules = job
        .spec
        .as_ref()
        .and_then(|spec| spec.pod_failure_policy.as_ref())
        .map(|policy| policy.rules.as_slice())
        .unwrap_or_default();
    for (index, rule) in rules.iter().enumerate() {
        let Some(why) = matches(rule, pod) else {
            continue;
        };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{why} matching FailJob rule at index {index}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    if let Some(codes) = &rule.on_exit_codes {
        let status = pod.status.as_ref()?;
        let all = status.container_statuses.iter().flatten();
        return all
            .chain(status.init_container_statuses.iter().flatten())
            .find_map(|container| {
                let code = exit_code(container, codes)?;
                let container = &container.name;
                Some(format!(
                    "Container {container} for pod {name} failed with exit code {code}"
                ))
            });
    }
    rule.on_pod_conditions.iter().flatten().find_map(|pattern| {
        let held = pods::condition(pod, &pattern.type_)?;
        let wanted = pattern.status.as_deref().unwrap_or("True");
        (held.status == wanted).then(|| format!("Pod {name} has condition {}", pattern.type_))
    })
}

/// The exit code if the requirement is about this container and is met. Success never matches.
fn exit_code(
    container: &ContainerStatus,
    codes: &PodFailurePolicyOnExitCodesRequirement,
) -> Option<i32> {
    if codes
        .container_name
        .as_ref()
        .is_some_and(|name| *name != container.name)
    {
        return None;
    }
    let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
    let listed = codes.values.contains(&code);
    let met = match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    };
    (code != 0 && met).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_matching_rule_decides() {
        let job: Job = serde_json::from_value(json!({"metadata": {"name": "j"}, "spec": {
            "template": {}, "podFailurePolicy": {"rules": [
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]}}}))
        .expect("a Job");
        let pod = |code: i32, disrupted: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"},
                "spec": {"containers": []}, "status": {
                    "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
                        "restartCount": 0, "state": {"terminated": {"exitCode": code}}}],
                    "conditions": [{"type": "DisruptionTarget", "status": disrupted}]}}))
            .expect("a pod")
        };
        let words =
            "Container c for pod n/p failed with exit code 42 matching FailJob rule at index 0";
        for (code, disrupted, want) in [
            (42, "True", Verdict::FailJob(words.into())),
            (1, "True", Verdict::Ignore),
            (1, "False", Verdict::Count),
            (0, "False", Verdict::Count),
        ] {
            assert_eq!(
                judge(&job, &pod(code, disrupted)),
                want,
                "{code} {disrupted}"
            );
        }
    }
}
