//! Namespaces.

use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, PLAIN, Resource, SpecialSubresource,
    Subresource::{Special, Status},
    kinds::{
        names,
        row::{self, AGE, column, field, read, special},
        value::{default_text, keep, object_mut, set, text},
    },
};

const FINALIZE: SpecialSubresource = special("finalize", &["update"], "", "v1", "Namespace");
/// The label every namespace carries with its own name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub const ROW: Resource = Resource {
    short_names: &["ns"],
    verbs: row::NO_COLLECTION_DELETE,
    subresources: &[Special(&FINALIZE), Status],
    columns: &[
        column("Status", |namespace| row::cell(namespace, "status.phase")),
        AGE,
    ],
    fields: &[field("status.phase", |namespace| {
        read(namespace, "status.phase")
    })],
    behaviour: Behaviour {
        default,
        prepare_create: |namespace| {
            set(namespace, "spec", json!({"finalizers": ["kubernetes"]}));
            set(namespace, "status", json!({"phase": "Active"}));
        },
        // Only `/finalize` changes them.
        prepare_update: |new, old| keep(new, old, "spec.finalizers"),
        validate: |namespace, causes| names::object_name(namespace, names::dns_label, causes),
        ..PLAIN
    },
    ..row::cluster(
        "",
        "v1",
        "Namespace",
        "namespaces",
        "namespace",
        "io.k8s.api.core.v1.Namespace",
    )
};

fn default(namespace: &mut Value) {
    default_text(namespace, "status.phase", "Active");
    let name = text(namespace, "metadata.name").to_owned();
    if !name.is_empty() {
        object_mut(namespace, "metadata.labels").insert(NAME_LABEL.to_owned(), name.into());
    }
}
