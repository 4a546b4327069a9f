//! StorageObjectInUseProtection and DefaultStorageClass: new claims and volumes are held while
//! they are in use, and a claim that names no class gets the default one.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Operation, Plugin, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::kinds::value::{has, items, set, text},
    status::Status,
};

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

pub struct Storage;

#[async_trait::async_trait]
impl Plugin for Storage {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        object: &mut Value,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let claim = request.is(Operation::Create, "", "persistentvolumeclaims");
        let finalizer = match claim {
            true => "kubernetes.io/pvc-protection",
            false if request.is(Operation::Create, "", "persistentvolumes") => {
                "kubernetes.io/pv-protection"
            }
            false => return Ok(()),
        };
        let mut finalizers = items(object, "metadata.finalizers").to_vec();
        if !finalizers.iter().any(|one| one == finalizer) {
            finalizers.push(json!(finalizer));
            set(object, "metadata.finalizers", finalizers);
        }
        if claim && !has(object, "spec.storageClassName") {
            let classes = lookup.list("storageclasses.storage.k8s.io", "").await;
            if let Some(class) = default_class(&classes) {
                set(object, "spec.storageClassName", class);
            }
        }
        Ok(())
    }
}

/// The newest of those that say so; of equally old ones the first by name.
fn default_class(classes: &[Arc<Value>]) -> Option<String> {
    let default = classes
        .iter()
        .filter(|class| class["metadata"]["annotations"][DEFAULT_CLASS] == "true");
    let age = |class: &Value| text(class, "metadata.creationTimestamp").to_owned();
    let name = |class: &Value| text(class, "metadata.name").to_owned();
    let best = default.min_by(|a, b| age(b).cmp(&age(a)).then(name(a).cmp(&name(b))));
    best.map(|class| name(class))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::admission::testing::{Memory, admit};

    #[tokio::test]
    async fn a_claim_is_completed() {
        let class = |name: &str, default: &str, made: &str| json!({"metadata": {"name": name, "creationTimestamp": made, "annotations": {DEFAULT_CLASS: default}}});
        let memory = Memory::with(&[
            (
                "storageclasses.storage.k8s.io",
                class("old", "true", "2026-01-01T00:00:00Z"),
            ),
            (
                "storageclasses.storage.k8s.io",
                class("new", "true", "2026-02-01T00:00:00Z"),
            ),
            (
                "storageclasses.storage.k8s.io",
                class("no", "false", "2026-03-01T00:00:00Z"),
            ),
        ]);
        for (spec, want) in [
            (json!({}), json!("new")),
            (json!({"storageClassName": ""}), json!("")),
            (json!({"storageClassName": "no"}), json!("no")),
        ] {
            let mut claim = json!({"metadata": {"name": "c", "namespace": "n"}, "spec": spec});
            let admitted = admit(
                &Storage,
                &memory,
                "persistentvolumeclaims",
                &mut claim,
                None,
            )
            .await;
            admitted.expect("admitted");
            assert_eq!(claim["spec"]["storageClassName"], want);
            assert_eq!(
                claim["metadata"]["finalizers"],
                json!(["kubernetes.io/pvc-protection"])
            );
        }
    }
}
