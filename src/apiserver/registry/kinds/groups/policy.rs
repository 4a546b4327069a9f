//! Pod disruption budgets.

use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource,
    Subresource::Status,
    kinds::{
        apps::replicas::check_int_or_percent,
        cells::int,
        names,
        row::{self, AGE, column, count},
        selector,
        value::{at, has, set, text},
    },
};

pub const PDB: Resource = Resource {
    short_names: &["pdb"],
    subresources: &[Status],
    columns: &[
        column("Min Available", |pdb| amount(pdb, "spec.minAvailable")),
        column("Max Unavailable", |pdb| amount(pdb, "spec.maxUnavailable")),
        count("Allowed Disruptions", |pdb| {
            int(pdb, "status.disruptionsAllowed")
        }),
        AGE,
    ],
    behaviour: Behaviour {
        prepare_create: |pdb| {
            set(
                pdb,
                "status",
                json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}),
            );
        },
        validate,
        generation: true,
        unconditional_update: false,
        ..PLAIN
    },
    ..row::namespaced(
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        "poddisruptionbudget",
        "io.k8s.api.policy.v1.PodDisruptionBudget",
    )
};

fn amount(pdb: &Value, path: &str) -> Value {
    match at(pdb, path) {
        None => "N/A".into(),
        Some(Value::String(text)) => text.as_str().into(),
        Some(number) => number.to_string().into(),
    }
}

fn validate(pdb: &Value, causes: &mut Causes) {
    names::object_name(pdb, names::dns_subdomain, causes);
    if has(pdb, "spec.minAvailable") && has(pdb, "spec.maxUnavailable") {
        causes.invalid(
            "spec",
            &pdb["spec"],
            "minAvailable and maxUnavailable cannot be both set",
        );
    }
    for path in ["spec.minAvailable", "spec.maxUnavailable"] {
        check_int_or_percent(pdb, path, true, causes);
    }
    if let Some(selector) = at(pdb, "spec.selector") {
        selector::validate(selector, "spec.selector", causes);
    }
    match text(pdb, "spec.unhealthyPodEvictionPolicy") {
        "" | "AlwaysAllow" | "IfHealthyBudget" => {}
        other => causes.unsupported(
            "spec.unhealthyPodEvictionPolicy",
            other,
            &["AlwaysAllow", "IfHealthyBudget"],
        ),
    }
}
