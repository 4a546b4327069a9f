//! Controller revisions.

use serde_json::Value;

use crate::apiserver::registry::{
    Behaviour, PLAIN, Resource,
    kinds::{
        cells::int,
        names,
        row::{self, AGE, column, count},
        value::{at, items, text},
    },
};

pub const ROW: Resource = Resource {
    columns: &[
        column("Controller", controller),
        count("Revision", |object| int(object, "revision")),
        AGE,
    ],
    behaviour: Behaviour {
        validate: |object, causes| {
            names::object_name(object, names::dns_subdomain, causes);
            names::not_negative(object, "revision", causes);
        },
        validate_update: |new, old, causes| {
            if at(new, "data") != at(old, "data") {
                causes.invalid("data", at(new, "data"), "field is immutable");
            }
        },
        ..PLAIN
    },
    ..row::namespaced(
        "apps",
        "v1",
        "ControllerRevision",
        "controllerrevisions",
        "controllerrevision",
        "io.k8s.api.apps.v1.ControllerRevision",
    )
};

fn controller(object: &Value) -> Value {
    items(object, "metadata.ownerReferences")
        .iter()
        .find(|owner| owner["controller"] == true)
        .map_or_else(
            || "<none>".into(),
            |owner| {
                let group = text(owner, "apiVersion")
                    .split_once('/')
                    .map_or("", |(group, _)| group);
                let kind = text(owner, "kind").to_lowercase();
                let resource = if group.is_empty() {
                    kind
                } else {
                    format!("{kind}.{group}")
                };
                format!("{resource}/{}", text(owner, "name")).into()
            },
        )
}
