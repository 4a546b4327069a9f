//! Horizontal pod autoscalers, stored as v2.

use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, Causes, Conversion, PLAIN, Resource,
    Subresource::Status,
    kinds::{
        cells::int,
        names,
        row::{self, AGE, column, count},
        value::{at, default_to, items, number, remove, set, text},
    },
};

pub const V2: Resource = Resource {
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[Status],
    columns: &[
        column("Reference", |hpa| {
            format!(
                "{}/{}",
                text(hpa, "spec.scaleTargetRef.kind"),
                text(hpa, "spec.scaleTargetRef.name")
            )
            .into()
        }),
        column("Targets", |hpa| targets(hpa).into()),
        column("MinPods", |hpa| {
            number(hpa, "spec.minReplicas")
                .map_or_else(|| "<unset>".into(), |min| min.to_string().into())
        }),
        count("MaxPods", |hpa| int(hpa, "spec.maxReplicas")),
        count("Replicas", |hpa| int(hpa, "status.currentReplicas")),
        AGE,
    ],
    behaviour: Behaviour {
        default: |hpa| {
            default_to(hpa, "spec.minReplicas", 1);
            default_to(
                hpa,
                "spec.metrics",
                json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
            );
        },
        prepare_create: |hpa| {
            set(
                hpa,
                "status",
                json!({"currentMetrics": null, "desiredReplicas": 0}),
            )
        },
        validate,
        ..PLAIN
    },
    ..row::namespaced(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    )
};

pub const V1: Resource = Resource {
    version: "v1",
    type_name: "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler",
    behaviour: Behaviour {
        default: |hpa| default_to(hpa, "spec.minReplicas", 1),
        prepare_create: |hpa| {
            set(
                hpa,
                "status",
                json!({"currentReplicas": 0, "desiredReplicas": 0}),
            )
        },
        validate,
        ..PLAIN
    },
    convert: Some(Conversion {
        to_stored: to_v2,
        from_stored: from_v2,
    }),
    ..V2
};

fn validate(hpa: &Value, causes: &mut Causes) {
    names::object_name(hpa, names::dns_subdomain, causes);
    let (min, max) = (
        number(hpa, "spec.minReplicas").unwrap_or(1),
        number(hpa, "spec.maxReplicas").unwrap_or_default(),
    );
    if min < 1 {
        causes.invalid(
            "spec.minReplicas",
            min,
            "must be greater than or equal to 1",
        );
    }
    if max < 1 {
        causes.invalid("spec.maxReplicas", max, "must be greater than 0");
    } else if max < min {
        causes.invalid(
            "spec.maxReplicas",
            max,
            "must be greater than or equal to `minReplicas`",
        );
    }
    for name in ["kind", "name"] {
        if text(&hpa["spec"]["scaleTargetRef"], name).is_empty() {
            causes.required(format!("spec.scaleTargetRef.{name}"), "");
        }
    }
}

fn targets(hpa: &Value) -> String {
    let metrics = items(hpa, "spec.metrics");
    if metrics.is_empty() {
        return "<none>".to_owned();
    }
    let current = items(hpa, "status.currentMetrics");
    let shown: Vec<String> = metrics
        .iter()
        .enumerate()
        .map(|(index, metric)| target(metric, current.get(index)))
        .collect();
    match shown.len() {
        0..=2 => shown.join(", "),
        many => format!("{} + {} more...", shown[..2].join(", "), many - 2),
    }
}

fn target(metric: &Value, current: Option<&Value>) -> String {
    let (label, source) = match text(metric, "type") {
        "Resource" => (format!("{}: ", text(metric, "resource.name")), "resource"),
        "ContainerResource" => (
            format!("{}: ", text(metric, "containerResource.name")),
            "containerResource",
        ),
        "Pods" => (String::new(), "pods"),
        "Object" => (String::new(), "object"),
        _ => (String::new(), "external"),
    };
    let now = current
        .map(|current| &current[source]["current"])
        .cloned()
        .unwrap_or_default();
    let wanted = &metric[source]["target"];
    let shown = |value: &Value, unknown: &str| -> String {
        if let Some(percent) = number(value, "averageUtilization") {
            return format!("{percent}%");
        }
        match (text(value, "averageValue"), text(value, "value")) {
            ("", "") => unknown.to_owned(),
            ("", value) => value.to_owned(),
            (average, _) => average.to_owned(),
        }
    };
    format!(
        "{label}{}/{}",
        shown(&now, "<unknown>"),
        shown(wanted, "<auto>")
    )
}

/// v1 knows the cpu target only; more metrics of a v2 object are not shown in v1.
fn to_v2(hpa: &mut Value) {
    if let Some(percent) = remove(hpa, "spec.targetCPUUtilizationPercentage") {
        set(
            hpa,
            "spec.metrics",
            json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}]),
        );
    }
    if let Some(percent) = remove(hpa, "status.currentCPUUtilizationPercentage") {
        set(
            hpa,
            "status.currentMetrics",
            json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent, "averageValue": "0"}}}]),
        );
    }
    set(hpa, "apiVersion", "autoscaling/v2");
}

fn from_v2(hpa: &mut Value) {
    for (list, part, to) in [
        (
            "spec.metrics",
            "target",
            "spec.targetCPUUtilizationPercentage",
        ),
        (
            "status.currentMetrics",
            "current",
            "status.currentCPUUtilizationPercentage",
        ),
    ] {
        let percent = items(hpa, list)
            .iter()
            .find(|metric| text(metric, "resource.name") == "cpu")
            .and_then(|metric| at(&metric["resource"][part], "averageUtilization"))
            .cloned();
        remove(hpa, list);
        if let Some(percent) = percent {
            set(hpa, to, percent);
        }
    }
    for gone in ["spec.behavior", "status.conditions"] {
        remove(hpa, gone);
    }
    set(hpa, "apiVersion", "autoscaling/v1");
}
