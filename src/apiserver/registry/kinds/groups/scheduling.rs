//! Priority classes and runtime classes.

use serde_json::Value;

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource,
    kinds::{
        cells::{int, text_or_none},
        names,
        row::{self, AGE, column, count},
        value::{at, default_text, flag, number, text},
    },
};

/// Above this, values are the system's own.
pub const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;
pub const SYSTEM_CLASSES: [(&str, i64); 2] = [
    ("system-cluster-critical", 2_000_000_000),
    ("system-node-critical", 2_000_001_000),
];

pub const PRIORITYCLASS: Resource = Resource {
    short_names: &["pc"],
    columns: &[
        count("Value", |class| int(class, "value")),
        column("Global-Default", |class| {
            flag(class, "globalDefault").into()
        }),
        AGE,
        column("PreemptionPolicy", |class| {
            text_or_none(class, "preemptionPolicy")
        }),
    ],
    behaviour: Behaviour {
        default: |class| {
            default_text(class, "preemptionPolicy", "PreemptLowerPriority");
            super::super::value::default_to(class, "value", 0);
        },
        validate: validate_priority,
        validate_update: |new, old, causes| {
            for field in ["value", "preemptionPolicy"] {
                if at(new, field) != at(old, field) {
                    causes.forbidden(field, "may not be changed in an update.");
                }
            }
        },
        generation: true,
        ..PLAIN
    },
    ..row::cluster(
        "scheduling.k8s.io",
        "v1",
        "PriorityClass",
        "priorityclasses",
        "priorityclass",
        "io.k8s.api.scheduling.v1.PriorityClass",
    )
};

pub const RUNTIMECLASS: Resource = Resource {
    columns: &[column("Handler", |class| row::cell(class, "handler")), AGE],
    behaviour: Behaviour {
        validate: |class, causes| {
            names::object_name(class, names::dns_subdomain, causes);
            let handler = text(class, "handler");
            names::report(names::dns_label(handler), handler, "handler", causes);
        },
        validate_update: |new, old, causes| {
            if at(new, "handler") != at(old, "handler") {
                causes.invalid("handler", text(new, "handler"), "field is immutable");
            }
        },
        ..PLAIN
    },
    ..row::cluster(
        "node.k8s.io",
        "v1",
        "RuntimeClass",
        "runtimeclasses",
        "runtimeclass",
        "io.k8s.api.node.v1.RuntimeClass",
    )
};

fn validate_priority(class: &Value, causes: &mut Causes) {
    names::object_name(class, names::dns_subdomain, causes);
    let (name, value) = (
        text(class, "metadata.name"),
        number(class, "value").unwrap_or_default(),
    );
    let known = SYSTEM_CLASSES.contains(&(name, value));
    if name.starts_with("system-") && !known {
        causes.forbidden("metadata.name", "priority class names with 'system-' prefix are reserved for system use only. error: only system classes are allowed");
    } else if value > HIGHEST_USER_PRIORITY && !known {
        causes.forbidden(
            "value",
            &format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"),
        );
    }
    match text(class, "preemptionPolicy") {
        "Never" | "PreemptLowerPriority" => {}
        other => causes.unsupported(
            "preemptionPolicy",
            other,
            &["Never", "PreemptLowerPriority"],
        ),
    }
}
