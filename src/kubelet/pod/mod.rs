//! What a pod's spec says about its containers, and what is to be done about them. Pure.
//!
//! `record.rs` is what is known of containers that ran, `plan.rs` decides the next steps,
//! `status.rs` tells the API. Called by the pod worker, which does the I/O.

pub mod conditions;
pub mod plan;
pub mod record;
pub mod status;
#[cfg(test)]
mod testing;

use std::{borrow::Cow, time::Duration};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

/// Grace period of a pod that names none.
const GRACE_SECONDS: i64 = 30;
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// The action of a restart rule that this node knows.
const RESTART: &str = "Restart";

/// A container's part in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one begins.
    Init,
    /// Begins among the init containers and stays.
    Sidecar,
    Regular,
    Ephemeral,
}

/// One container of a pod, whatever list it stands in.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    pub role: Role,
    pub spec: Cow<'a, Container>,
}

impl Member<'_> {
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// How an event says which container it is about.
    pub fn field_path(&self) -> String {
        let list = match self.role {
            Role::Init | Role::Sidecar => "initContainers",
            Role::Regular => "containers",
            Role::Ephemeral => "ephemeralContainers",
        };
        format!("spec.{list}{{{}}}", self.name())
    }

    /// Whether it counts for the pod's readiness.
    pub fn counts(&self) -> bool {
        matches!(self.role, Role::Regular | Role::Sidecar)
    }
}

/// All containers: init containers, regular ones, ephemeral ones, each in the order of the spec.
pub fn members(pod: &Pod) -> Vec<Member<'_>> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let init = spec.init_containers.iter().flatten().map(|spec| Member {
        role: match spec.restart_policy.as_deref() {
            Some("Always") => Role::Sidecar,
            _ => Role::Init,
        },
        spec: Cow::Borrowed(spec),
    });
    let regular = spec.containers.iter().map(|spec| Member {
        role: Role::Regular,
        spec: Cow::Borrowed(spec),
    });
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let ephemeral = ephemeral.filter_map(|spec| {
        // The same fields, but for the container whose processes it sees.
        let value = serde_json::to_value(spec).ok()?;
        Some(Member {
            role: Role::Ephemeral,
            spec: Cow::Owned(serde_json::from_value(value).ok()?),
        })
    });
    init.chain(regular).chain(ephemeral).collect()
}

pub fn member<'a>(pod: &'a Pod, name: &str) -> Option<Member<'a>> {
    members(pod)
        .into_iter()
        .find(|member| member.name() == name)
}

/// What the container asks for and does not get, each for an event.
pub fn unsupported(pod: &Pod, member: &Member<'_>) -> Vec<String> {
    let mut messages = Vec::new();
    let rules = member.spec.restart_policy_rules.iter().flatten();
    for rule in rules.filter(|rule| rule.action != RESTART) {
        let action = &rule.action;
        messages.push(format!(
            "The restart rule's action {action:?} is not supported: the restart policy decides"
        ));
    }
    if asks_for_selinux(pod, member) {
        let message =
            "seLinuxOptions are not applied: this node's runtime has no support for SELinux";
        messages.push(message.to_owned());
    }
    let spec = pod.spec.as_ref();
    let shared = spec.is_some_and(|spec| spec.share_process_namespace == Some(true));
    let ephemeral = spec.and_then(|spec| spec.ephemeral_containers.as_ref());
    let targeted = ephemeral
        .into_iter()
        .flatten()
        .find(|ephemeral| ephemeral.name == member.name())
        .and_then(|ephemeral| ephemeral.target_container_name.as_ref());
    if let (Some(target), false) = (targeted, shared) {
        messages.push(format!(
            "targetContainerName is not supported: the processes of {target:?} are not shown"
        ));
    }
    messages
}

fn asks_for_selinux(pod: &Pod, member: &Member<'_>) -> bool {
    let whole = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref());
    let own = member.spec.security_context.as_ref();
    own.is_some_and(|context| context.se_linux_options.is_some())
        || whole.is_some_and(|context| context.se_linux_options.is_some())
}

/// The time that the pod's containers have to stop.
pub fn grace(pod: &Pod) -> Duration {
    let spec = pod.spec.as_ref();
    let seconds = pod
        .metadata
        .deletion_grace_period_seconds
        .or_else(|| spec.and_then(|spec| spec.termination_grace_period_seconds))
        .unwrap_or(GRACE_SECONDS);
    // A negative one counts as the shortest.
    Duration::from_secs(u64::try_from(seconds).unwrap_or(1))
}

pub fn host_network(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.host_network)
        .unwrap_or(false)
}

/// Whether the API says that the pod is over.
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// When containers of a pod or list of it start again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    Always,
    OnFailure,
    Never,
}

/// Whether a container that ended with `code` starts again. `by_probe`: it was stopped because a
/// probe failed, so its own rules about exit codes do not apply.
pub fn restarts(pod: &Pod, member: &Member<'_>, code: i32, by_probe: bool) -> bool {
    if member.role == Role::Ephemeral {
        return false;
    }
    let rules = member.spec.restart_policy_rules.iter().flatten();
    let ruled = rules
        .filter(|rule| rule.action == RESTART)
        .filter_map(|rule| rule.exit_codes.as_ref())
        .any(|codes| {
            let listed = codes.values.iter().flatten().any(|value| *value == code);
            listed == (codes.operator == "In")
        });
    if ruled && !by_probe {
        return true;
    }
    match policy(pod.spec.as_ref(), member) {
        Restart::Always => true,
        Restart::OnFailure => code != 0,
        Restart::Never => false,
    }
}

fn policy(spec: Option<&PodSpec>, member: &Member<'_>) -> Restart {
    let of_pod = spec.and_then(|spec| spec.restart_policy.as_deref());
    let named = member.spec.restart_policy.as_deref().or(of_pod);
    match (named, member.role) {
        (Some("Never"), _) => Restart::Never,
        (Some("OnFailure"), _) | (_, Role::Init) => Restart::OnFailure,
        _ => Restart::Always,
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::pod, *};
    use serde_json::json;

    #[test]
    fn what_is_not_given_is_said() {
        let selinux = json!({"seLinuxOptions": {"level": "s0"}});
        for (spec, want) in [
            (json!({"containers": [{"name": "c"}]}), 0),
            (
                json!({"containers": [{"name": "c", "securityContext": selinux}]}),
                1,
            ),
            (
                json!({"containers": [{"name": "c"}], "securityContext": selinux}),
                1,
            ),
        ] {
            let pod = pod(spec.clone());
            let told = unsupported(&pod, &member(&pod, "c").unwrap());
            assert_eq!(told.len(), want, "{spec}");
        }
    }

    #[test]
    fn who_starts_again() {
        let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
        let pod = |policy: &str| {
            pod(json!({
                "restartPolicy": policy,
                "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
                "containers": [
                    {"name": "c"},
                    {"name": "own", "restartPolicy": "Never", "restartPolicyRules": rules},
                ],
                "ephemeralContainers": [{"name": "e"}],
            }))
        };
        for (policy, name, code, want) in [
            ("Always", "c", 0, true),
            ("OnFailure", "c", 0, false),
            ("OnFailure", "c", 1, true),
            ("Never", "c", 1, false),
            ("Always", "i", 0, false),
            ("Always", "i", 1, true),
            ("Never", "i", 1, false),
            ("Never", "s", 0, true),
            ("Always", "own", 1, false),
            ("Always", "own", 42, true),
            ("Always", "e", 1, false),
        ] {
            let pod = pod(policy);
            let member = member(&pod, name).unwrap();
            assert_eq!(
                restarts(&pod, &member, code, false),
                want,
                "{policy} {name} {code}"
            );
        }
        let pod = pod("Never");
        assert!(!restarts(&pod, &member(&pod, "own").unwrap(), 42, true));
    }
}
