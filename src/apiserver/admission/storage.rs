//! StorageObjectInUseProtection, DefaultStorageClass and PersistentVolumeClaimResize: new claims and
//! volumes are held while they are in use, a claim that names no class gets the default one, and one
//! grows only if its class lets it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Operation, Plugin, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::kinds::value::{has, items, set, text},
    status::Status,
};

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

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
        let by_annotation = !object["metadata"]["annotations"][BETA_CLASS].is_null();
        if claim && !by_annotation && !has(object, "spec.storageClassName") {
            let classes = lookup.list("storageclasses.storage.k8s.io", "").await;
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
        let (true, Some(new), Some(old)) = (
            request.is(Operation::Update, "", "persistentvolumeclaims"),
            object,
            request.old,
        ) else {
            return Ok(());
        };
        let size = |claim: &Value| {
            proto::quantity::Quantity::parse(text(claim, "spec.resources.requests.storage")).ok()
        };
        if size(new) <= size(old) {
            return Ok(());
        }
        if text(old, "status.phase") != "Bound" {
            return Err(request.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let name = text(new, "spec.storageClassName");
        let class = match name {
            "" => None,
            name => lookup.get("storageclasses.storage.k8s.io", "", name).await,
        };
        match class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
            true => Ok(()),
            false => Err(request.forbidden(
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
            )),
        }
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
    async fn a_claim_grows_if_its_class_lets_it() {
        let class = |name: &str, grows: bool| json!({"metadata": {"name": name}, "allowVolumeExpansion": grows});
        let plural = "storageclasses.storage.k8s.io";
        let memory = Memory::with(&[
            (plural, class("grows", true)),
            (plural, class("stays", false)),
        ]);
        let claim = |size: &str, class: &str, phase: &str| {
            json!({"metadata": {"name": "c", "namespace": "n"}, "status": {"phase": phase},
                "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}}})
        };
        for (size, class, phase, want) in [
            ("2Gi", "grows", "Bound", None),
            ("1Gi", "stays", "Bound", None),
            ("2Gi", "grows", "Pending", Some("Only bound")),
            ("2Gi", "stays", "Bound", Some("must support resize")),
            ("2Gi", "", "Bound", Some("must support resize")),
        ] {
            let (mut new, old) = (claim(size, class, phase), claim("1Gi", class, phase));
            let plural = "persistentvolumeclaims";
            let admitted = admit(&Storage, &memory, plural, &mut new, Some(&old)).await;
            let why = admitted.err().map(|status| status.message);
            assert_eq!(why.is_some(), want.is_some(), "{why:?}");
            assert!(why.unwrap_or_default().contains(want.unwrap_or_default()));
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
