//! Stateful sets.

use serde_json::{Value, json};

use super::replicas;
use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource,
    Subresource::Status,
    kinds::{
        cells::{containers, images},
        core::storage::claim_spec,
        names,
        pods::{
            self, defaults,
            template::{Restarts, validate_with_selector},
        },
        row::{self, AGE, SCALE, column, wide},
        value::{default_text, default_to, items, items_mut, keep, set, text},
    },
};

pub const ROW: Resource = Resource {
    short_names: &["sts"],
    categories: &["all"],
    subresources: &[SCALE, Status],
    columns: &[
        column("Ready", replicas::ready_of_desired),
        AGE,
        wide("Containers", containers),
        wide("Images", images),
    ],
    behaviour: Behaviour {
        warnings: |new, old| pods::warnings::template("spec.template", new, old),
        default,
        prepare_create: |object| {
            set(
                object,
                "status",
                json!({"replicas": 0, "availableReplicas": 0}),
            )
        },
        validate,
        validate_update,
        generation: true,
        ..PLAIN
    },
    ..row::namespaced(
        "apps",
        "v1",
        "StatefulSet",
        "statefulsets",
        "statefulset",
        "io.k8s.api.apps.v1.StatefulSet",
    )
};

fn default(object: &mut Value) {
    default_text(object, "spec.podManagementPolicy", "OrderedReady");
    default_text(object, "spec.updateStrategy.type", "RollingUpdate");
    if text(object, "spec.updateStrategy.type") == "RollingUpdate" {
        default_to(object, "spec.updateStrategy.rollingUpdate.partition", 0);
    }
    default_text(
        object,
        "spec.persistentVolumeClaimRetentionPolicy.whenDeleted",
        "Retain",
    );
    default_text(
        object,
        "spec.persistentVolumeClaimRetentionPolicy.whenScaled",
        "Retain",
    );
    default_to(object, "spec.replicas", 1);
    default_to(object, "spec.revisionHistoryLimit", 10);
    for claim in items_mut(object, "spec.volumeClaimTemplates") {
        set(claim, "apiVersion", "v1");
        set(claim, "kind", "PersistentVolumeClaim");
        default_text(claim, "spec.volumeMode", "Filesystem");
        default_to(claim, "spec.resources", json!({}));
        default_text(claim, "status.phase", "Pending");
    }
    defaults::template(object, "spec.template");
}

fn validate(object: &Value, causes: &mut Causes) {
    names::object_name(object, names::dns_subdomain, causes);
    for path in [
        "spec.replicas",
        "spec.minReadySeconds",
        "spec.revisionHistoryLimit",
        "spec.ordinals.start",
    ] {
        names::not_negative(object, path, causes);
    }
    match text(object, "spec.podManagementPolicy") {
        "OrderedReady" | "Parallel" => {}
        other => causes.invalid(
            "spec.podManagementPolicy",
            other,
            "must be 'OrderedReady' or 'Parallel'",
        ),
    }
    match text(object, "spec.updateStrategy.type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            names::not_negative(
                object,
                "spec.updateStrategy.rollingUpdate.partition",
                causes,
            );
            replicas::check_int_or_percent(
                object,
                "spec.updateStrategy.rollingUpdate.maxUnavailable",
                true,
                causes,
            );
        }
        other => causes.invalid(
            "spec.updateStrategy",
            other,
            "must be 'RollingUpdate' or 'OnDelete'",
        ),
    }
    for (index, claim) in items(object, "spec.volumeClaimTemplates")
        .iter()
        .enumerate()
    {
        claim_spec(
            &claim["spec"],
            &format!("spec.volumeClaimTemplates[{index}].spec"),
            causes,
        );
    }
    validate_with_selector(&with_claims(object), Restarts::Always, causes);
}

/// The set with its claims among the template's volumes, as its pods have them: mounts name them.
fn with_claims(object: &Value) -> Value {
    let mut whole = object.clone();
    let names: Vec<&str> = items(object, "spec.template.spec.volumes")
        .iter()
        .map(|volume| text(volume, "name"))
        .collect();
    let claims = items(object, "spec.volumeClaimTemplates").iter();
    let mut volumes: Vec<Value> = items(object, "spec.template.spec.volumes").to_vec();
    volumes.extend(
        claims
            .map(|claim| text(claim, "metadata.name"))
            .filter(|name| !names.contains(name))
            .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}})),
    );
    if !volumes.is_empty() && whole["spec"]["template"]["spec"].is_object() {
        whole["spec"]["template"]["spec"]["volumes"] = Value::Array(volumes);
    }
    whole
}

fn validate_update(new: &Value, old: &Value, causes: &mut Causes) {
    let mut wanted = new.clone();
    for free in [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
        "revisionHistoryLimit",
    ] {
        keep(&mut wanted, old, &format!("spec.{free}"));
    }
    if wanted["spec"] != old["spec"] {
        causes.forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_may_name_a_claim() {
        let set = |mount: &str| {
            let mut set = json!({
                "metadata": {"name": "w", "namespace": "n"},
                "spec": {
                    "serviceName": "s",
                    "selector": {"matchLabels": {"a": "b"}},
                    "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": "1Gi"}}}}],
                    "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{
                        "name": "c", "image": "i",
                        "volumeMounts": [{"name": mount, "mountPath": "/data"}]}]}},
                },
            });
            default(&mut set);
            let mut causes = Causes::default();
            validate(&set, &mut causes);
            let fields: Vec<String> = causes.0.into_iter().map(|cause| cause.field).collect();
            fields
        };
        assert_eq!(set("data"), [""; 0]);
        let field = "spec.template.spec.containers[0].volumeMounts[0].name";
        assert_eq!(set("gone"), [field]);
    }
}
