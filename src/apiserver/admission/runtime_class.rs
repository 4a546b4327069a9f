//! RuntimeClass: a pod's class must exist; its overhead and where it runs come from the class.

use serde_json::Value;

use super::{Operation, Plugin, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::kinds::value::{at, has, items, object_mut, pairs, set, text},
    status::Status,
};

pub struct RuntimeClass;

#[async_trait::async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        pod: &mut Value,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        if !request.is(Operation::Create, "", "pods") {
            return Ok(());
        }
        let name = text(pod, "spec.runtimeClassName").to_owned();
        if name.is_empty() {
            return match has(pod, "spec.overhead") {
                true => Err(request.forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")),
                false => Ok(()),
            };
        }
        let Some(class) = lookup.get("runtimeclasses.node.k8s.io", "", &name).await else {
            return Err(
                request.forbidden(&format!("pod rejected: RuntimeClass {name:?} not found"))
            );
        };
        match (at(&class, "overhead.podFixed"), at(pod, "spec.overhead")) {
            (fixed, Some(given)) if fixed != Some(given) => {
                return Err(request.forbidden(
                    "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
                ));
            }
            (Some(fixed), None) => set(pod, "spec.overhead", fixed.clone()),
            _ => {}
        }
        for (key, value) in pairs(&class, "scheduling.nodeSelector") {
            let selector = object_mut(pod, "spec.nodeSelector");
            match selector.get(key) {
                Some(own) if own != value => {
                    return Err(request.forbidden(&format!("conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {}", own.as_str().unwrap_or_default())));
                }
                _ => drop(selector.insert(key.to_owned(), value.into())),
            }
        }
        let mut tolerations = items(pod, "spec.tolerations").to_vec();
        let more = items(&class, "scheduling.tolerations").iter();
        tolerations.extend(
            more.filter(|toleration| !items(pod, "spec.tolerations").contains(toleration))
                .cloned(),
        );
        if !tolerations.is_empty() {
            set(pod, "spec.tolerations", tolerations);
        }
        Ok(())
    }
}
