//! Replication controllers.

use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, PLAIN, Resource,
    Subresource::Status,
    kinds::{
        apps::replicas,
        cells::{containers, images, labels},
        names,
        pods::{
            self, defaults,
            template::{Restarts, validate_template},
        },
        row::{self, AGE, SCALE, field, read, wide},
        selector::matches_map,
        value::{at, default_to, members, set},
    },
};

pub const ROW: Resource = Resource {
    short_names: &["rc"],
    categories: &["all"],
    subresources: &[SCALE, Status],
    columns: &[
        replicas::DESIRED,
        replicas::CURRENT,
        replicas::READY,
        AGE,
        wide("Containers", containers),
        wide("Images", images),
        wide("Selector", |object| labels(object, "spec.selector")),
    ],
    fields: &[field("status.replicas", |object| {
        match read(object, "status.replicas") {
            empty if empty.is_empty() => "0".to_owned(),
            count => count,
        }
    })],
    behaviour: Behaviour {
        warnings: |new, old| pods::warnings::template("spec.template", new, old),
        default,
        prepare_create: |object| set(object, "status", json!({"replicas": 0})),
        validate: |object, causes| {
            names::object_name(object, names::dns_subdomain, causes);
            names::not_negative(object, "spec.replicas", causes);
            let empty = json!({});
            let selector = at(object, "spec.selector").unwrap_or(&empty);
            let labels = at(object, "spec.template.metadata.labels");
            if members(object, "spec.selector").is_none_or(serde_json::Map::is_empty) {
                causes.required("spec.selector", "");
            } else if !matches_map(selector, labels) {
                causes.invalid(
                    "spec.template.metadata.labels",
                    labels,
                    "`selector` does not match template `labels`",
                );
            }
            validate_template(object, "spec.template", Restarts::Always, causes);
        },
        generation: true,
        orphans: true,
        ..PLAIN
    },
    ..row::namespaced(
        "",
        "v1",
        "ReplicationController",
        "replicationcontrollers",
        "replicationcontroller",
        "io.k8s.api.core.v1.ReplicationController",
    )
};

fn default(object: &mut Value) {
    default_to(object, "spec.replicas", 1);
    if let Some(labels) = at(object, "spec.template.metadata.labels").cloned() {
        default_to(object, "spec.selector", labels.clone());
        default_to(object, "metadata.labels", labels);
    }
    defaults::template(object, "spec.template");
}
