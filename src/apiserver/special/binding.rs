//! `pods/binding` and `bindings`: the scheduler says where a pod runs.

use serde_json::{Value, json};

use super::{Call, Special, success};
use crate::apiserver::{
    objects::Named,
    registry::{
        Causes, Resource,
        kinds::{
            core::pod_update,
            value::{items, object_mut, pairs, set, text},
        },
    },
    status::Status,
};

pub struct Binding;

#[async_trait::async_trait]
impl Special for Binding {
    fn serves(&self, resource: &Resource, subresource: Option<&str>) -> bool {
        resource.group.is_empty()
            && matches!(
                (resource.plural, subresource),
                ("pods", Some("binding")) | ("bindings", None)
            )
    }

    async fn create(&self, call: &Call<'_>, body: Value) -> Result<Value, Status> {
        let named = text(&body, "metadata.name");
        let name = if call.name.is_empty() {
            named
        } else {
            call.name
        };
        if !named.is_empty() && named != name {
            return Err(Status::bad_request(
                "name in URL does not match name in Binding object",
            ));
        }
        check(&body, name)?;
        if call.dry_run {
            let pod = call.objects.get("pods", call.namespace, name).await;
            let pod = pod.ok_or_else(|| Status::not_found("", "pods", name))?;
            bind(&mut (*pod).clone(), &body)?;
            return Ok(success());
        }
        let target = Named {
            plural: "pods",
            subresource: "",
            namespace: call.namespace,
            name,
        };
        call.objects
            .update(call.user, target, true, &|pod: &mut Value| bind(pod, &body))
            .await?;
        Ok(success())
    }
}

fn check(body: &Value, name: &str) -> Result<(), Status> {
    let mut causes = Causes::default();
    let kind = text(body, "target.kind");
    if !matches!(kind, "" | "Node") {
        causes.unsupported("target.kind", kind, &["Node", "<empty>"]);
    }
    if text(body, "target.name").is_empty() {
        causes.required("target.name", "");
    }
    // The binding's annotations become the pod's.
    pod_update::validate_annotations(body, &Value::Null, &mut causes);
    match causes.0.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid("", "Binding", name, causes.0)),
    }
}

/// Sets the node, the condition, and what the binding adds to labels and annotations.
fn bind(pod: &mut Value, body: &Value) -> Result<(), Status> {
    let name = text(pod, "metadata.name").to_owned();
    let conflict = |why: String| Err(Status::conflict("", "pods/binding", &name, &why));
    let uid = text(body, "metadata.uid");
    if !uid.is_empty() && uid != text(pod, "metadata.uid") {
        return conflict(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            text(pod, "metadata.uid")
        ));
    }
    if !text(pod, "metadata.deletionTimestamp").is_empty() {
        return conflict(format!(
            "pod {name} is being deleted, cannot be assigned to a host"
        ));
    }
    let node = text(pod, "spec.nodeName");
    if !node.is_empty() {
        return conflict(format!("pod {name} is already assigned to node {node:?}"));
    }
    if !items(pod, "spec.schedulingGates").is_empty() {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    set(pod, "spec.nodeName", text(body, "target.name"));
    for list in ["metadata.labels", "metadata.annotations"] {
        for (key, value) in pairs(body, list) {
            object_mut(pod, list).insert(key.to_owned(), value.into());
        }
    }
    let now = jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string();
    let mut conditions = items(pod, "status.conditions").to_vec();
    conditions.retain(|condition| text(condition, "type") != "PodScheduled");
    conditions.push(json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": now}));
    set(pod, "status.conditions", conditions);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bound_once() {
        let mut pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {}});
        let body = json!({"metadata": {"annotations": {"a": "b"}}, "target": {"kind": "Node", "name": "n"}});
        bind(&mut pod, &body).unwrap();
        assert_eq!(pod["spec"]["nodeName"], "n");
        assert_eq!(pod["metadata"]["annotations"]["a"], "b");
        assert_eq!(pod["status"]["conditions"][0]["status"], "True");
        let status = bind(&mut pod, &body).unwrap_err();
        assert_eq!(status.code, 409);
        assert_eq!(
            status.message,
            "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n\""
        );
        let mut gated =
            json!({"metadata": {"name": "p"}, "spec": {"schedulingGates": [{"name": "g"}]}});
        assert_eq!(bind(&mut gated, &body).unwrap_err().code, 409);
    }
}
