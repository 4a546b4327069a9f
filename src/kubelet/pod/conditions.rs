//! A pod's conditions. Pure.

use k8s_openapi::api::core::v1::{PodCondition, PodStatus};

use super::{
    Member, Role,
    status::{View, time},
};

pub const SANDBOX: &str = "PodReadyToStartContainers";

/// One condition as it shall be told.
struct Told {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Told {
    fn yes(kind: &'static str) -> Self {
        Self {
            kind,
            holds: true,
            reason: None,
            message: None,
        }
    }

    fn no(kind: &'static str, reason: &'static str, message: Option<String>) -> Self {
        Self {
            kind,
            holds: false,
            reason: Some(reason),
            message,
        }
    }
}

/// Ours only: what others have written is left alone by the merge.
pub fn conditions(
    view: &View<'_>,
    members: &[Member<'_>],
    status: &PodStatus,
) -> Vec<PodCondition> {
    let phase = status.phase.as_deref().unwrap_or_default();
    let containers = containers_ready(view, members, phase);
    let ready = ready(view, &containers);
    let sandbox = Told {
        holds: view.sandbox_ready(),
        ..Told::yes(SANDBOX)
    };
    let all = [
        sandbox,
        initialized(view, members, phase),
        ready,
        containers,
        Told::yes("PodScheduled"),
    ];
    let disrupted = view.observed.marks.disrupted.as_ref().map(|message| Told {
        reason: Some("TerminationByKubelet"),
        message: Some(message.clone()),
        ..Told::yes("DisruptionTarget")
    });
    let all = all.into_iter().chain(disrupted);
    all.map(|told| dated(view, told)).collect()
}

fn initialized(view: &View<'_>, members: &[Member<'_>], phase: &str) -> Told {
    const KIND: &str = "Initialized";
    if phase == "Succeeded" {
        return Told {
            reason: Some("PodCompleted"),
            ..Told::yes(KIND)
        };
    }
    let observed = &view.observed;
    if observed.is_initialized(members) {
        return Told::yes(KIND);
    }
    let waiting = members.iter().filter(|member| match member.role {
        Role::Init => !observed.is_done(member),
        Role::Sidecar => !observed.has_started(member),
        Role::Regular | Role::Ephemeral => false,
    });
    let message = format!("containers with incomplete status: {}", names(waiting));
    Told::no(KIND, "ContainersNotInitialized", Some(message))
}

fn containers_ready(view: &View<'_>, members: &[Member<'_>], phase: &str) -> Told {
    const KIND: &str = "ContainersReady";
    match phase {
        "Succeeded" => return Told::no(KIND, "PodCompleted", None),
        "Failed" => return Told::no(KIND, "PodFailed", None),
        _ => {}
    }
    let unready: Vec<&Member<'_>> = members
        .iter()
        .filter(|member| member.counts() && !view.observed.is_ready(member))
        .collect();
    if unready.is_empty() {
        return Told::yes(KIND);
    }
    let message = format!(
        "containers with unready status: {}",
        names(unready.into_iter())
    );
    Told::no(KIND, "ContainersNotReady", Some(message))
}

fn ready(view: &View<'_>, containers: &Told) -> Told {
    const KIND: &str = "Ready";
    if !containers.holds {
        return Told {
            kind: KIND,
            holds: false,
            reason: containers.reason,
            message: containers.message.clone(),
        };
    }
    let gates = view.observed.pod.spec.as_ref();
    let gates = gates.and_then(|spec| spec.readiness_gates.as_ref());
    let mut messages = Vec::new();
    for gate in gates.into_iter().flatten() {
        let kind = gate.condition_type.as_str();
        match held(view.previous, kind) {
            None => messages.push(format!(
                "corresponding condition of pod readiness gate {kind:?} does not exist."
            )),
            Some(condition) if condition.status != "True" => messages.push(format!(
                "the status of pod readiness gate {kind:?} is not \"True\", but {}",
                condition.status
            )),
            Some(_) => {}
        }
    }
    match messages.is_empty() {
        true => Told::yes(KIND),
        false => Told::no(KIND, "ReadinessGatesNotReady", Some(messages.join(", "))),
    }
}

fn names<'a>(members: impl Iterator<Item = &'a Member<'a>>) -> String {
    let names: Vec<&str> = members.map(|member| member.name()).collect();
    format!("[{}]", names.join(" "))
}

pub fn held<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == kind)
}

/// The time moves only when the status does.
fn dated(view: &View<'_>, told: Told) -> PodCondition {
    let status = match told.holds {
        true => "True",
        false => "False",
    };
    let since = held(view.previous, told.kind)
        .filter(|held| held.status == status)
        .and_then(|held| held.last_transition_time.clone());
    PodCondition {
        type_: told.kind.to_owned(),
        status: status.to_owned(),
        reason: told.reason.map(str::to_owned),
        message: told.message,
        observed_generation: view.observed.taken_up(),
        last_transition_time: since.or_else(|| time(view.observed.now)),
        last_probe_time: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{
            record::{Marks, Record, Sandbox},
            status::status,
            testing::{at, exited, observed, pod, running},
        },
        *,
    };

    /// `Ready=False/ContainersNotReady` and so on, in order.
    fn shown(pod: serde_json::Value, records: &[Record], previous: &PodStatus) -> Vec<String> {
        let (pod, marks) = (self::pod(pod), Marks::default());
        let view = View {
            observed: observed(&pod, records, &marks),
            host_ips: &[],
            pod_ips: &[],
            previous,
            ended: false,
        };
        let conditions = status(&view).conditions.unwrap();
        let line = |c: &PodCondition| {
            let reason = c.reason.as_deref().map(|reason| format!("/{reason}"));
            assert_eq!(c.observed_generation, Some(3));
            format!("{}={}{}", c.type_, c.status, reason.unwrap_or_default())
        };
        conditions.iter().map(line).collect()
    }

    #[test]
    fn conditions_of_a_start() {
        let spec = || json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
        let none = PodStatus::default();
        let got = shown(spec(), &[], &none);
        let want = [
            "PodReadyToStartContainers=True",
            "Initialized=False/ContainersNotInitialized",
            "Ready=False/ContainersNotReady",
            "ContainersReady=False/ContainersNotReady",
            "PodScheduled=True",
        ];
        assert_eq!(got, want);
        let got = shown(spec(), &[exited("i", 0, 0), running("a", 0)], &none);
        let want = [
            "PodReadyToStartContainers=True",
            "Initialized=True",
            "Ready=True",
            "ContainersReady=True",
            "PodScheduled=True",
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn an_eviction_by_the_node_is_a_disruption() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let marks = Marks {
            disrupted: Some("low".into()),
            ..Marks::default()
        };
        let view = View {
            observed: observed(&pod, &[], &marks),
            host_ips: &[],
            pod_ips: &[],
            previous: &PodStatus::default(),
            ended: false,
        };
        let status = status(&view);
        let condition = held(&status, "DisruptionTarget").unwrap();
        assert_eq!(condition.status, "True");
        assert_eq!(condition.reason.as_deref(), Some("TerminationByKubelet"));
        assert_eq!(condition.message.as_deref(), Some("low"));
    }

    #[test]
    fn gates_hold_readiness() {
        let spec =
            || json!({"readinessGates": [{"conditionType": "x/y"}], "containers": [{"name": "a"}]});
        for (held, want) in [
            (None, "Ready=False/ReadinessGatesNotReady"),
            (Some("False"), "Ready=False/ReadinessGatesNotReady"),
            (Some("True"), "Ready=True"),
        ] {
            let condition = |status: &str| PodCondition {
                type_: "x/y".into(),
                status: status.into(),
                ..PodCondition::default()
            };
            let previous = PodStatus {
                conditions: held.map(|status| vec![condition(status)]),
                ..PodStatus::default()
            };
            let got = shown(spec(), &[running("a", 0)], &previous);
            assert!(got.iter().any(|line| line == want), "{got:?}");
        }
    }

    #[test]
    fn the_time_moves_with_the_status() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let (marks, records) = (Marks::default(), [running("a", 0)]);
        let mut view = View {
            observed: observed(&pod, &records, &marks),
            host_ips: &[],
            pod_ips: &[],
            previous: &PodStatus::default(),
            ended: false,
        };
        let first = status(&view);
        view.previous = &first;
        view.observed.now = at(99);
        assert_eq!(status(&view), first);
        view.observed.sandbox = Sandbox::Broken;
        let later = status(&view).conditions.unwrap();
        assert_eq!(later[0].last_transition_time, time(at(99)));
        assert_eq!(later[2].last_transition_time, time(at(10)));
    }
}
