//! Deployments.

use serde_json::{Value, json};

use super::replicas;
use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource, StatusMetadata,
    Subresource::Status,
    kinds::{
        cells::{containers, images, int},
        names,
        pods::{
            self, defaults,
            template::{Restarts, validate_with_selector},
        },
        row::{self, AGE, SCALE, column, count, wide},
        value::{default_text, default_to, has, number, set, text},
    },
};

pub const ROW: Resource = Resource {
    short_names: &["deploy"],
    categories: &["all"],
    subresources: &[SCALE, Status],
    columns: &[
        column("Ready", replicas::ready_of_desired),
        count("Up-to-date", |object| int(object, "status.updatedReplicas")),
        count("Available", |object| {
            int(object, "status.availableReplicas")
        }),
        AGE,
        wide("Containers", containers),
        wide("Images", images),
        replicas::SELECTOR,
    ],
    behaviour: Behaviour {
        warnings: |new, old| pods::warnings::template("spec.template", new, old),
        status_metadata: StatusMetadata::AllBut("labels"),
        default,
        prepare_create: |object| set(object, "status", json!({})),
        validate,
        validate_update: replicas::selector_is_fixed,
        generation: true,
        ..PLAIN
    },
    ..row::namespaced(
        "apps",
        "v1",
        "Deployment",
        "deployments",
        "deployment",
        "io.k8s.api.apps.v1.Deployment",
    )
};

fn default(object: &mut Value) {
    default_to(object, "spec.replicas", 1);
    default_to(object, "spec.revisionHistoryLimit", 10);
    default_to(object, "spec.progressDeadlineSeconds", 600);
    default_text(object, "spec.strategy.type", "RollingUpdate");
    if text(object, "spec.strategy.type") == "RollingUpdate" {
        default_to(object, "spec.strategy.rollingUpdate.maxUnavailable", "25%");
        default_to(object, "spec.strategy.rollingUpdate.maxSurge", "25%");
    }
    defaults::template(object, "spec.template");
}

fn validate(object: &Value, causes: &mut Causes) {
    names::object_name(object, names::dns_subdomain, causes);
    for path in [
        "spec.replicas",
        "spec.minReadySeconds",
        "spec.revisionHistoryLimit",
        "spec.progressDeadlineSeconds",
    ] {
        names::not_negative(object, path, causes);
    }
    let deadline = number(object, "spec.progressDeadlineSeconds");
    if deadline.is_some_and(|deadline| {
        deadline <= number(object, "spec.minReadySeconds").unwrap_or_default()
    }) {
        causes.invalid(
            "spec.progressDeadlineSeconds",
            deadline,
            "must be greater than minReadySeconds",
        );
    }
    strategy(object, causes);
    validate_with_selector(object, Restarts::Always, causes);
}

fn strategy(object: &Value, causes: &mut Causes) {
    let rolling = "spec.strategy.rollingUpdate";
    match text(object, "spec.strategy.type") {
        "Recreate" if has(object, rolling) => causes.forbidden(
            rolling,
            "may not be specified when strategy `type` is 'Recreate'",
        ),
        "Recreate" => {}
        "RollingUpdate" => {
            let (unavailable, surge) = (
                format!("{rolling}.maxUnavailable"),
                format!("{rolling}.maxSurge"),
            );
            replicas::check_int_or_percent(object, &unavailable, true, causes);
            replicas::check_int_or_percent(object, &surge, false, causes);
            if replicas::is_zero(object, &unavailable) && replicas::is_zero(object, &surge) {
                causes.invalid(
                    unavailable.clone(),
                    super::super::value::at(object, &unavailable),
                    "may not be 0 when `maxSurge` is 0",
                );
            }
        }
        other => causes.unsupported("spec.strategy.type", other, &["Recreate", "RollingUpdate"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> Value {
        let mut object = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        default(&mut object);
        object
    }

    #[test]
    fn complete() {
        let object = deployment();
        assert_eq!(
            object["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        assert_eq!(
            object["spec"]["template"]["spec"]["securityContext"],
            json!({})
        );
        assert!(
            object["spec"]["template"]["spec"]
                .get("enableServiceLinks")
                .is_none(),
            "pods only"
        );
        let mut causes = Causes::default();
        validate(&object, &mut causes);
        assert!(causes.0.is_empty(), "{causes:?}");
    }

    #[test]
    fn refusals() {
        for (path, value, field, message) in [
            (
                "spec.replicas",
                json!(-1),
                "spec.replicas",
                "Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                "spec.template.metadata.labels",
                json!({"a": "c"}),
                "spec.template.metadata.labels",
                "Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
            ),
            (
                "spec.strategy.type",
                json!("Rolling"),
                "spec.strategy.type",
                "Unsupported value: \"Rolling\": supported values: \"Recreate\", \"RollingUpdate\"",
            ),
            (
                "spec.template.spec.restartPolicy",
                json!("Never"),
                "spec.template.spec.restartPolicy",
                "Unsupported value: \"Never\": supported values: \"Always\"",
            ),
            (
                "spec.selector",
                Value::Null,
                "spec.selector",
                "Required value",
            ),
        ] {
            let mut object = deployment();
            set(&mut object, path, value);
            let mut causes = Causes::default();
            validate(&object, &mut causes);
            let got: Vec<_> = causes
                .0
                .iter()
                .map(|cause| (&*cause.field, &*cause.message))
                .collect();
            assert_eq!(got, [(field, message)], "{path}");
        }
    }
}
