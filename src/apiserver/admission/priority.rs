//! Priority: a pod's class becomes its number; at most one class is everyone's default.

use serde_json::{Value, json};

use super::{Operation, Plugin, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::kinds::{
        groups::scheduling::SYSTEM_CLASSES,
        value::{at, default_text, flag, has, number, set, text},
    },
    status::Status,
};

const CLASSES: &str = "priorityclasses.scheduling.k8s.io";

/// The classes that exist in every cluster, for the server to create at its start.
pub fn system_classes() -> Vec<Value> {
    let words = [
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        "Used for system critical pods that must not be moved from their current node.",
    ];
    SYSTEM_CLASSES
        .iter()
        .zip(words)
        .map(|((name, value), words)| {
            json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
                "metadata": {"name": name}, "value": value, "description": words})
        })
        .collect()
}

pub struct Priority;

#[async_trait::async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        pod: &mut Value,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        if request.is(Operation::Update, "", "pods") {
            // Clients that replace a pod from its manifest leave out what was computed here.
            for path in ["spec.priority", "spec.preemptionPolicy"] {
                if let Some(old) = request.old.and_then(|old| at(old, path))
                    && !has(pod, path)
                {
                    set(pod, path, old.clone());
                }
            }
            return Ok(());
        }
        if !request.is(Operation::Create, "", "pods") {
            return Ok(());
        }
        let name = text(pod, "spec.priorityClassName").to_owned();
        let class = if name.is_empty() {
            let all = lookup.list(CLASSES, "").await;
            all.into_iter()
                .filter(|class| flag(class, "globalDefault"))
                .min_by_key(|class| number(class, "value").unwrap_or_default())
        } else {
            let found = lookup.get(CLASSES, "", &name).await;
            let missing =
                || request.forbidden(&format!("no PriorityClass with name {name} was found"));
            Some(found.ok_or_else(missing)?)
        };
        let (value, policy) = match &class {
            Some(class) => {
                default_text(pod, "spec.priorityClassName", text(class, "metadata.name"));
                (
                    number(class, "value").unwrap_or_default(),
                    text(class, "preemptionPolicy"),
                )
            }
            None => (0, ""),
        };
        let policy = if policy.is_empty() {
            "PreemptLowerPriority"
        } else {
            policy
        };
        if let Some(given) = number(pod, "spec.priority").filter(|given| *given != value) {
            return Err(request.forbidden(&format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            )));
        }
        let given = text(pod, "spec.preemptionPolicy");
        if !given.is_empty() && given != policy {
            return Err(request.forbidden(&format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            )));
        }
        set(pod, "spec.priority", value);
        set(pod, "spec.preemptionPolicy", policy);
        Ok(())
    }

    async fn validate(
        &self,
        request: &mut Request<'_>,
        object: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let Some(class) = object.filter(|class| flag(class, "globalDefault")) else {
            return Ok(());
        };
        if request.subresource.is_some() || request.resource.plural != "priorityclasses" {
            return Ok(());
        }
        let name = text(class, "metadata.name");
        let other = lookup
            .list(CLASSES, "")
            .await
            .into_iter()
            .find(|other| flag(other, "globalDefault") && text(other, "metadata.name") != name);
        match other {
            Some(other) => Err(request.forbidden(&format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                text(&other, "metadata.name")
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::admission::testing;

    #[tokio::test]
    async fn classes_become_numbers() {
        let memory = testing::Memory::with(&[(
            CLASSES,
            json!({"metadata": {"name": "high"}, "value": 9, "preemptionPolicy": "Never"}),
        )]);
        for (class, want) in [
            ("", Ok((0, "PreemptLowerPriority"))),
            ("high", Ok((9, "Never"))),
            (
                "gone",
                Err("pods \"p\" is forbidden: no PriorityClass with name gone was found"),
            ),
        ] {
            let mut pod = json!({"metadata": {"name": "p"}, "spec": {"priorityClassName": class}});
            let got = testing::admit(&Priority, &memory, "pods", &mut pod, None).await;
            match want {
                Ok((value, policy)) => {
                    got.unwrap();
                    assert_eq!(
                        (
                            number(&pod, "spec.priority"),
                            text(&pod, "spec.preemptionPolicy")
                        ),
                        (Some(value), policy)
                    );
                }
                Err(message) => assert_eq!(got.unwrap_err().message, message),
            }
        }
    }
}
