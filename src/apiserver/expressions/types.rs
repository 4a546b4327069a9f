//! Types of `request` and `namespaceObject`.

use std::sync::{Arc, LazyLock};

use crate::cel::{Schema, Type};

type Field = (String, Arc<Schema>);

fn field(name: &str, schema: Arc<Schema>) -> Field {
    (name.to_owned(), schema)
}

fn text(name: &str) -> Field {
    field(name, Schema::scalar(Type::String))
}

fn texts(name: &str) -> Field {
    field(name, Schema::list(Schema::scalar(Type::String)))
}

fn pairs(name: &str) -> Field {
    field(name, Schema::map(Schema::scalar(Type::String)))
}

/// An AdmissionRequest without its uid and its objects, which are variables of their own.
pub fn request() -> &'static Arc<Schema> {
    static REQUEST: LazyLock<Arc<Schema>> = LazyLock::new(|| {
        let named = |ty: &str, what: &str| {
            Schema::object(
                &format!("kubernetes.{ty}"),
                [text("group"), text("version"), text(what)],
            )
        };
        let kind = named("GroupVersionKind", "kind");
        let resource = named("GroupVersionResource", "resource");
        let extra = Schema::map(Schema::list(Schema::scalar(Type::String)));
        let user = Schema::object(
            "kubernetes.UserInfo",
            [
                text("username"),
                text("uid"),
                texts("groups"),
                field("extra", extra),
            ],
        );
        Schema::object(
            "kubernetes.AdmissionRequest",
            [
                field("kind", kind.clone()),
                field("resource", resource.clone()),
                text("subResource"),
                field("requestKind", kind),
                field("requestResource", resource),
                text("requestSubResource"),
                text("name"),
                text("namespace"),
                text("operation"),
                field("userInfo", user),
                field("dryRun", Schema::scalar(Type::Bool)),
                field("options", Schema::scalar(Type::Dyn)),
            ],
        )
    });
    &REQUEST
}

/// A Namespace as far as policies should see it.
pub fn namespace() -> &'static Arc<Schema> {
    static NAMESPACE: LazyLock<Arc<Schema>> = LazyLock::new(|| {
        let time = |name: &str| field(name, Schema::scalar(Type::Timestamp));
        let number = |name: &str| field(name, Schema::scalar(Type::Int));
        let condition = Schema::object(
            "kubernetes.NamespaceCondition",
            [
                text("status"),
                text("type"),
                time("lastTransitionTime"),
                text("message"),
                text("reason"),
            ],
        );
        let metadata = Schema::object(
            "kubernetes.NamespaceMetadata",
            [
                text("name"),
                text("generateName"),
                text("namespace"),
                pairs("labels"),
                pairs("annotations"),
                // Sic.
                text("UID"),
                time("creationTimestamp"),
                number("deletionGracePeriodSeconds"),
                time("deletionTimestamp"),
                number("generation"),
                text("resourceVersion"),
                texts("finalizers"),
            ],
        );
        let status = Schema::object(
            "kubernetes.NamespaceStatus",
            [field("conditions", Schema::list(condition)), text("phase")],
        );
        let spec = Schema::object("kubernetes.NamespaceSpec", [texts("finalizers")]);
        Schema::object(
            "kubernetes.Namespace",
            [
                field("metadata", metadata),
                field("spec", spec),
                field("status", status),
            ],
        )
    });
    &NAMESPACE
}
