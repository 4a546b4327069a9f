//! Replica sets.

use serde_json::json;

use super::replicas;
use crate::apiserver::registry::{
    Behaviour, PLAIN, Resource,
    Subresource::Status,
    kinds::{
        cells::{containers, images},
        names,
        pods::{
            self, defaults,
            template::{Restarts, validate_with_selector},
        },
        row::{self, AGE, SCALE, field, read, wide},
        value::{default_to, set},
    },
};

pub const ROW: Resource = Resource {
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[SCALE, Status],
    columns: &[
        replicas::DESIRED,
        replicas::CURRENT,
        replicas::READY,
        AGE,
        wide("Containers", containers),
        wide("Images", images),
        replicas::SELECTOR,
    ],
    fields: &[field("status.replicas", |object| {
        match read(object, "status.replicas") {
            empty if empty.is_empty() => "0".to_owned(),
            count => count,
        }
    })],
    behaviour: Behaviour {
        warnings: |new, old| pods::warnings::template("spec.template", new, old),
        default: |object| {
            default_to(object, "spec.replicas", 1);
            defaults::template(object, "spec.template");
        },
        prepare_create: |object| set(object, "status", json!({"replicas": 0})),
        validate: |object, causes| {
            names::object_name(object, names::dns_subdomain, causes);
            names::not_negative(object, "spec.replicas", causes);
            names::not_negative(object, "spec.minReadySeconds", causes);
            validate_with_selector(object, Restarts::Always, causes);
        },
        validate_update: replicas::selector_is_fixed,
        generation: true,
        ..PLAIN
    },
    ..row::namespaced(
        "apps",
        "v1",
        "ReplicaSet",
        "replicasets",
        "replicaset",
        "io.k8s.api.apps.v1.ReplicaSet",
    )
};
