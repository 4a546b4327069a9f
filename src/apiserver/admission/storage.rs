//! StorageObjectInUseProtection, DefaultStorageClass and PersistentVolumeClaimResize: new claims and
//! volumes are held while they are in use, a claim that names no class gets the default one, and a bound
//! claim grows only where its class lets it.

use std::sync::Arc;

use proto::quantity::Quantity;
use serde_json::{Value, json};

use super::{Operation, Plugin, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::kinds::value::{flag, has, items, set, text},
    status::Status,
};

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_CLASS_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";
const CLASSES: &str = "storageclasses.storage.k8s.io";

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
            let classes = lookup.list(CLASSES, "").await;
            if let Some(class) = default_class(&classes) {
                set(object, "spec.storageClassName", class);
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
        let (Some(new), Some(old)) = (object, request.old) else {
            return Ok(());
        };
        if !request.is(Operation::Update, "", "persistentvolumeclaims")
            || size(new) <= size(old)
            || !text(old, "metadata.deletionTimestamp").is_empty()
        {
            return Ok(());
        }
        if text(old, "status.phase") != "Bound" {
            return Err(request.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let class = text(new, "spec.storageClassName");
        let class = match class {
            "" => None,
            name => lookup.get(CLASSES, "", name).await,
        };
        match class.is_some_and(|class| flag(&class, "allowVolumeExpansion")) {
            true => Ok(()),
            false => Err(request.forbidden(
                "only dynamically provisioned pvc can be resized and the storageclass that \
                 provisions the pvc must support resize",
            )),
        }
    }
}

fn size(claim: &Value) -> Option<Quantity> {
    Quantity::parse(text(claim, "spec.resources.requests.storage")).ok()
}

/// The newest of those that say so; of equally old ones the first by name.
fn default_class(classes: &[Arc<Value>]) -> Option<String> {
    let default = classes.iter().filter(|class| {
        let annotations = &class["metadata"]["annotations"];
        annotations[DEFAULT_CLASS] == "true" || annotations[DEFAULT_CLASS_BETA] == "true"
    });
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
    async fn a_claim_grows_where_its_class_lets_it() {
        let class = |name: &str, grows: bool| {
            (
                CLASSES,
                json!({"metadata": {"name": name}, "allowVolumeExpansion": grows}),
            )
        };
        let memory = Memory::with(&[class("grows", true), class("fixed", false)]);
        let claim = |class: &str, size: &str, phase: &str| {
            json!({"metadata": {"name": "c", "namespace": "n"}, "status": {"phase": phase}, "spec": {
                "storageClassName": class, "resources": {"requests": {"storage": size}}}})
        };
        for (class, phase, to, want) in [
            ("grows", "Bound", "2Gi", ""),
            ("grows", "Bound", "1024Mi", ""),
            ("fixed", "Bound", "1Gi", ""),
            (
                "grows",
                "Pending",
                "2Gi",
                "Only bound persistent volume claims",
            ),
            ("fixed", "Bound", "2Gi", "only dynamically provisioned pvc"),
            ("gone", "Bound", "2Gi", "only dynamically provisioned pvc"),
            ("", "Bound", "2Gi", "only dynamically provisioned pvc"),
        ] {
            let (old, mut new) = (claim(class, "1Gi", phase), claim(class, to, phase));
            let plural = "persistentvolumeclaims";
            let admitted = admit(&Storage, &memory, plural, &mut new, Some(&old)).await;
            match admitted {
                Ok(()) => assert_eq!(want, "", "{class} {phase} {to}"),
                Err(status) => {
                    assert!(
                        !want.is_empty() && status.message.contains(want),
                        "{status:?}"
                    );
                }
            }
        }
    }

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
