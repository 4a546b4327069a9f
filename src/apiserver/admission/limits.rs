//! LimitRanger: defaults and bounds for the resources of containers, pods and claims.

use std::collections::BTreeSet;

use proto::quantity::Quantity;
use serde_json::Value;

use super::{Operation, Plugin, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::kinds::value::{has, items, items_mut, members, object_mut, text},
    status::Status,
};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub struct LimitRanger;

#[async_trait::async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn is_policy(&self) -> bool {
        true
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        pod: &mut Value,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        if request.is(Operation::Create, "", "pods") {
            for range in lookup.list("limitranges", request.namespace).await {
                fill(pod, &range);
            }
        }
        Ok(())
    }

    async fn validate(
        &self,
        request: &mut Request<'_>,
        object: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let create = request.operation == Operation::Create && request.subresource.is_none();
        let watched = matches!(request.resource.plural, "pods" | "persistentvolumeclaims");
        let (true, true, Some(object)) = (create, watched, object) else {
            return Ok(());
        };
        let mut broken = Vec::new();
        for range in lookup.list("limitranges", request.namespace).await {
            for limit in items(&range, "spec.limits") {
                broken.extend(violations(object, limit, request.resource.plural));
            }
        }
        match broken.as_slice() {
            [] => Ok(()),
            [one] => Err(request.forbidden(one)),
            many => Err(request.forbidden(&format!("[{}]", many.join(", ")))),
        }
    }
}

/// Puts a range's defaults into containers that say nothing, and notes it in an annotation.
fn fill(pod: &mut Value, range: &Value) {
    let mut notes = Vec::new();
    for limit in items(range, "spec.limits")
        .iter()
        .filter(|limit| text(limit, "type") == "Container")
    {
        for (list, kind) in [
            ("spec.containers", "container"),
            ("spec.initContainers", "init container"),
        ] {
            for container in items_mut(pod, list) {
                for (from, to, word) in [
                    ("defaultRequest", "requests", "request"),
                    ("default", "limits", "limit"),
                ] {
                    let mut set = Vec::new();
                    for (name, amount) in members(limit, from).into_iter().flatten() {
                        let own = object_mut(container, &format!("resources.{to}"));
                        if !own.contains_key(name) {
                            own.insert(name.clone(), amount.clone());
                            set.push(name.clone());
                        }
                    }
                    if !set.is_empty() {
                        notes.push(format!(
                            "{} {word} for {kind} {}",
                            set.join(", "),
                            text(container, "name")
                        ));
                    }
                }
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        object_mut(pod, "metadata.annotations").insert(ANNOTATION.to_owned(), note.into());
    }
}

fn violations(object: &Value, limit: &Value, plural: &str) -> Vec<String> {
    match (text(limit, "type"), plural) {
        ("Container", "pods") => ["spec.containers", "spec.initContainers"]
            .iter()
            .flat_map(|list| items(object, list))
            .flat_map(|container| {
                bounds(limit, "Container", |list, name| {
                    Quantity::parse(text(&container["resources"][list], name)).ok()
                })
            })
            .collect(),
        ("Pod", "pods") => bounds(limit, "Pod", |list, name| pod_total(object, list, name)),
        ("PersistentVolumeClaim", "persistentvolumeclaims") => {
            bounds(limit, "PersistentVolumeClaim", |_, name| {
                Quantity::parse(text(&object["spec"]["resources"]["requests"], name)).ok()
            })
        }
        _ => Vec::new(),
    }
}

/// The sum over containers, or the largest init container where that is more; None if nobody says.
fn pod_total(pod: &Value, list: &str, name: &str) -> Option<Quantity> {
    let of = |containers: &str| -> Vec<Quantity> {
        items(pod, containers)
            .iter()
            .filter_map(|container| Quantity::parse(text(&container["resources"][list], name)).ok())
            .collect()
    };
    let sum = of("spec.containers")
        .into_iter()
        .reduce(|sum, one| sum + one);
    sum.into_iter()
        .chain(of("spec.initContainers"))
        .reduce(|most, one| if one > most { one } else { most })
}

/// Checks min, max and ratio with `amount(list, resource)`.
fn bounds(
    limit: &Value,
    kind: &str,
    amount: impl Fn(&str, &str) -> Option<Quantity>,
) -> Vec<String> {
    let mut broken = Vec::new();
    let names: BTreeSet<&String> = ["min", "max", "maxLimitRequestRatio"]
        .iter()
        .flat_map(|list| members(limit, list).into_iter().flatten())
        .map(|(name, _)| name)
        .collect();
    for name in names {
        let (request, most) = (amount("requests", name), amount("limits", name));
        let bound = |list: &str| {
            Quantity::parse(text(&limit[list], name))
                .ok()
                .filter(|_| has(limit, list))
        };
        if let Some(min) = bound("min") {
            match request {
                None => broken.push(format!(
                    "minimum {name} usage per {kind} is {min}.  No request is specified"
                )),
                Some(request) if request < min => {
                    broken.push(format!(
                        "minimum {name} usage per {kind} is {min}, but request is {request}"
                    ));
                }
                Some(_) => {}
            }
        }
        if let Some(max) = bound("max") {
            // A claim has no limits: its request is what it takes.
            let most = if kind == "PersistentVolumeClaim" {
                request
            } else {
                most
            };
            match most {
                None => broken.push(format!(
                    "maximum {name} usage per {kind} is {max}.  No limit is specified"
                )),
                Some(most) if most > max => {
                    let word = if kind == "PersistentVolumeClaim" {
                        "request"
                    } else {
                        "limit"
                    };
                    broken.push(format!(
                        "maximum {name} usage per {kind} is {max}, but {word} is {most}"
                    ));
                }
                Some(_) => {}
            }
        }
        if let (Some(ratio), Some(request), Some(most)) =
            (bound("maxLimitRequestRatio"), request, most)
            && !request.is_zero()
            && most.as_f64() / request.as_f64() > ratio.as_f64()
        {
            broken.push(format!(
                "{name} max limit to request ratio per {kind} is {ratio}, but provided ratio is {:.6}",
                most.as_f64() / request.as_f64()
            ));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::admission::testing;

    #[tokio::test]
    async fn defaults_then_bounds() {
        let memory = testing::Memory::with(&[(
            "limitranges",
            json!({"metadata": {"name": "l", "namespace": "a"}, "spec": {"limits": [
            {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "min": {"cpu": "50m"}, "max": {"cpu": "1"}}]}}),
        )]);
        let mut pod = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": [{"name": "c"}]}});
        testing::admit(&LimitRanger, &memory, "pods", &mut pod, None)
            .await
            .unwrap();
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
        );
        let mut pod = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "10m"}, "limits": {"cpu": "2"}}}]}});
        let status = testing::admit(&LimitRanger, &memory, "pods", &mut pod, None)
            .await
            .unwrap_err();
        assert_eq!(
            status.message,
            "pods \"p\" is forbidden: [minimum cpu usage per Container is 50m, but request is 10m, maximum cpu usage per Container is 1, but limit is 2]"
        );
    }
}
