//! Daemon sets.

use serde_json::{Value, json};

use super::replicas;
use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource,
    Subresource::Status,
    kinds::{
        cells::{containers, images, int, labels},
        names,
        pods::{
            self, defaults,
            template::{Restarts, validate_with_selector},
        },
        row::{self, AGE, column, count, wide},
        value::{default_text, default_to, set, text},
    },
};

pub const ROW: Resource = Resource {
    short_names: &["ds"],
    categories: &["all"],
    subresources: &[Status],
    columns: &[
        count("Desired", |object| {
            int(object, "status.desiredNumberScheduled")
        }),
        count("Current", |object| {
            int(object, "status.currentNumberScheduled")
        }),
        count("Ready", |object| int(object, "status.numberReady")),
        count("Up-to-date", |object| {
            int(object, "status.updatedNumberScheduled")
        }),
        count("Available", |object| int(object, "status.numberAvailable")),
        column("Node Selector", |object| {
            labels(object, "spec.template.spec.nodeSelector")
        }),
        AGE,
        wide("Containers", containers),
        wide("Images", images),
        replicas::SELECTOR,
    ],
    behaviour: Behaviour {
        warnings: |new, old| pods::warnings::template("spec.template", new, old),
        default,
        prepare_create: |object| {
            set(
                object,
                "status",
                json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}),
            );
        },
        validate,
        validate_update: replicas::selector_is_fixed,
        generation: true,
        ..PLAIN
    },
    ..row::namespaced(
        "apps",
        "v1",
        "DaemonSet",
        "daemonsets",
        "daemonset",
        "io.k8s.api.apps.v1.DaemonSet",
    )
};

fn default(object: &mut Value) {
    default_text(object, "spec.updateStrategy.type", "RollingUpdate");
    if text(object, "spec.updateStrategy.type") == "RollingUpdate" {
        default_to(
            object,
            "spec.updateStrategy.rollingUpdate.maxUnavailable",
            1,
        );
        default_to(object, "spec.updateStrategy.rollingUpdate.maxSurge", 0);
    }
    default_to(object, "spec.revisionHistoryLimit", 10);
    defaults::template(object, "spec.template");
}

fn validate(object: &Value, causes: &mut Causes) {
    names::object_name(object, names::dns_subdomain, causes);
    names::not_negative(object, "spec.minReadySeconds", causes);
    names::not_negative(object, "spec.revisionHistoryLimit", causes);
    match text(object, "spec.updateStrategy.type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let unavailable = "spec.updateStrategy.rollingUpdate.maxUnavailable";
            let surge = "spec.updateStrategy.rollingUpdate.maxSurge";
            replicas::check_int_or_percent(object, unavailable, true, causes);
            replicas::check_int_or_percent(object, surge, true, causes);
            match (
                replicas::is_zero(object, unavailable),
                replicas::is_zero(object, surge),
            ) {
                (true, true) => causes.required(
                    "spec.updateStrategy.rollingUpdate",
                    "cannot be 0 when maxSurge is 0",
                ),
                (false, false) => causes.invalid(
                    surge,
                    super::super::value::at(object, surge),
                    "may not be set when maxUnavailable is non-zero",
                ),
                _ => {}
            }
        }
        other => causes.unsupported(
            "spec.updateStrategy.type",
            other,
            &["RollingUpdate", "OnDelete"],
        ),
    }
    validate_with_selector(object, Restarts::Always, causes);
}
