//! Validation of what a pod wants of nodes and of other pods.

use serde_json::Value;

use crate::apiserver::registry::{
    Causes,
    kinds::{
        names, selector,
        value::{at, has, items, number, text, texts},
    },
};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// `spec.affinity`, where `path` is that of the spec.
pub fn validate(spec: &Value, path: &str, causes: &mut Causes) {
    let path = format!("{path}.affinity");
    if let Some(affinity) = at(spec, "affinity.nodeAffinity") {
        of_nodes(affinity, &format!("{path}.nodeAffinity"), causes);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = at(spec, &format!("affinity.{kind}")) else {
            continue;
        };
        let path = format!("{path}.{kind}");
        for (index, term) in items(affinity, REQUIRED).iter().enumerate() {
            if causes.is_full() {
                return;
            }
            of_pods(term, &format!("{path}.{REQUIRED}[{index}]"), causes);
        }
        for (index, wish) in items(affinity, PREFERRED).iter().enumerate() {
            if causes.is_full() {
                return;
            }
            let path = format!("{path}.{PREFERRED}[{index}]");
            weight(wish, &path, causes);
            let term = &wish["podAffinityTerm"];
            of_pods(term, &format!("{path}.podAffinityTerm"), causes);
        }
    }
}

fn weight(wish: &Value, path: &str, causes: &mut Causes) {
    let weight = number(wish, "weight").unwrap_or_default();
    if !(1..=100).contains(&weight) {
        causes.invalid(
            format!("{path}.weight"),
            weight,
            "must be in the range 1-100",
        );
    }
}

fn of_nodes(affinity: &Value, path: &str, causes: &mut Causes) {
    if has(affinity, REQUIRED) {
        let terms = items(&affinity[REQUIRED], "nodeSelectorTerms");
        let path = format!("{path}.{REQUIRED}.nodeSelectorTerms");
        if terms.is_empty() {
            causes.required(&path, "must have at least one node selector term");
        }
        for (index, term) in terms.iter().enumerate() {
            node_term(term, &format!("{path}[{index}]"), causes);
        }
    }
    for (index, wish) in items(affinity, PREFERRED).iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}.{PREFERRED}[{index}]");
        weight(wish, &path, causes);
        node_term(&wish["preference"], &format!("{path}.preference"), causes);
    }
}

fn node_term(term: &Value, path: &str, causes: &mut Causes) {
    for (index, wanted) in items(term, "matchExpressions").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}.matchExpressions[{index}]");
        let count = items(wanted, "values").len();
        let values = format!("{path}.values");
        match text(wanted, "operator") {
            "In" | "NotIn" if count == 0 => {
                causes.required(
                    values,
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if count > 0 => causes.forbidden(
                values,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "Gt" | "Lt" if count != 1 => causes.required(
                values,
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => {
                let operator = format!("{path}.operator");
                causes.invalid(operator, other, "not a valid selector operator");
            }
        }
        names::label_key(text(wanted, "key"), &format!("{path}.key"), causes);
    }
    for (index, wanted) in items(term, "matchFields").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}.matchFields[{index}]");
        match text(wanted, "operator") {
            "In" | "NotIn" if items(wanted, "values").len() != 1 => causes.required(
                format!("{path}.values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ),
            "In" | "NotIn" => {}
            other => {
                let operator = format!("{path}.operator");
                causes.invalid(operator, other, "not a valid selector operator");
            }
        }
        let key = text(wanted, "key");
        if key != "metadata.name" {
            causes.invalid(format!("{path}.key"), key, "not a valid field selector key");
        }
    }
}

fn of_pods(term: &Value, path: &str, causes: &mut Causes) {
    for field in ["labelSelector", "namespaceSelector"] {
        if has(term, field) {
            selector::validate(&term[field], &format!("{path}.{field}"), causes);
        }
    }
    for name in texts(term, "namespaces") {
        let path = format!("{path}.namespace");
        names::report(names::dns_label(name), name, &path, causes);
    }
    let key = text(term, "topologyKey");
    let path = format!("{path}.topologyKey");
    match key {
        "" => causes.required(path, "can not be empty"),
        key => names::label_key(key, &path, causes),
    }
}

/// `spec.topologySpreadConstraints`, where `path` is that of the spec.
pub fn spread(spec: &Value, path: &str, causes: &mut Causes) {
    let mut seen = std::collections::HashSet::new();
    for (index, constraint) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}.topologySpreadConstraints[{index}]");
        let skew = number(constraint, "maxSkew").unwrap_or_default();
        if skew <= 0 {
            causes.invalid(format!("{path}.maxSkew"), skew, "must be greater than zero");
        }
        let key = text(constraint, "topologyKey");
        match key {
            "" => causes.required(format!("{path}.topologyKey"), "can not be empty"),
            key => names::label_key(key, &format!("{path}.topologyKey"), causes),
        }
        let action = text(constraint, "whenUnsatisfiable");
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            causes.unsupported(
                format!("{path}.whenUnsatisfiable"),
                action,
                &["DoNotSchedule", "ScheduleAnyway"],
            );
        }
        if !seen.insert((key, action)) {
            causes.duplicate(
                format!("{path}.{{topologyKey, whenUnsatisfiable}}"),
                &format!("{{{key}, {action}}}"),
            );
        }
        if let Some(least) = number(constraint, "minDomains") {
            let path = format!("{path}.minDomains");
            if least <= 0 {
                causes.invalid(&path, least, "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                let detail = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
                );
                causes.invalid(&path, least, &detail);
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let policy = text(constraint, field);
            if !matches!(policy, "" | "Honor" | "Ignore") {
                causes.unsupported(format!("{path}.{field}"), policy, &["Honor", "Ignore"]);
            }
        }
        if has(constraint, "labelSelector") {
            let path = format!("{path}.labelSelector");
            selector::validate(&constraint["labelSelector"], &path, causes);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wishes_that_make_no_sense() {
        let node = |required: Value| json!({"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": required}}}});
        let pod = |term: Value| json!({"affinity": {"podAntiAffinity": {REQUIRED: [term]}}});
        let at_node = "s.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
        let at_pod = "s.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]";
        for (spec, want) in [
            (json!({}), vec![]),
            (node(json!([{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}])), vec![]),
            (node(json!([])), vec![format!("{at_node}: Required value: must have at least one node selector term")]),
            (node(json!([{"matchExpressions": [{"key": "a", "operator": "In"}]}])),
                vec![format!("{at_node}[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'")]),
            (node(json!([{"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]}])),
                vec![format!("{at_node}[0].matchExpressions[0].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'")]),
            (node(json!([{"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1", "2"]}]}])),
                vec![format!("{at_node}[0].matchExpressions[0].values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'")]),
            (node(json!([{"matchExpressions": [{"key": "a", "operator": "Is"}]}])),
                vec![format!("{at_node}[0].matchExpressions[0].operator: Invalid value: \"Is\": not a valid selector operator")]),
            (node(json!([{"matchFields": [{"key": "spec.x", "operator": "In", "values": ["a"]}]}])),
                vec![format!("{at_node}[0].matchFields[0].key: Invalid value: \"spec.x\": not a valid field selector key")]),
            (json!({"affinity": {"nodeAffinity": {PREFERRED: [{"weight": 101, "preference": {}}]}}}),
                vec!["s.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 101: must be in the range 1-100".to_owned()]),
            (pod(json!({"topologyKey": "kubernetes.io/hostname"})), vec![]),
            (pod(json!({})), vec![format!("{at_pod}.topologyKey: Required value: can not be empty")]),
            (json!({"affinity": {"podAffinity": {PREFERRED: [{"weight": 0, "podAffinityTerm": {"topologyKey": "a"}}]}}}),
                vec!["s.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in the range 1-100".to_owned()]),
        ] {
            let mut causes = Causes::default();
            validate(&spec, "s", &mut causes);
            let causes = causes.0.iter();
            let said: Vec<String> = causes.map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
            assert_eq!(said, want, "{spec}");
        }
    }

    #[test]
    fn spreads_that_make_no_sense() {
        let constraint = |more: Value| {
            let mut constraint =
                json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"});
            json_patch::merge(&mut constraint, &more);
            constraint
        };
        for (list, want) in [
            (json!([constraint(json!({}))]), ""),
            (
                json!([constraint(json!({"maxSkew": 0}))]),
                "s.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            ),
            (
                json!([constraint(json!({})), constraint(json!({}))]),
                "s.topologySpreadConstraints[1].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{zone, DoNotSchedule}\"",
            ),
            (
                json!([constraint(json!({"minDomains": 0}))]),
                "s.topologySpreadConstraints[0].minDomains: Invalid value: 0: must be greater than zero",
            ),
            (
                json!([constraint(
                    json!({"minDomains": 2, "whenUnsatisfiable": "ScheduleAnyway"})
                )]),
                "s.topologySpreadConstraints[0].minDomains: Invalid value: 2: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway",
            ),
            (
                json!([constraint(json!({"nodeTaintsPolicy": "Maybe"}))]),
                "s.topologySpreadConstraints[0].nodeTaintsPolicy: Unsupported value: \"Maybe\": supported values: \"Honor\", \"Ignore\"",
            ),
        ] {
            let mut causes = Causes::default();
            spread(
                &json!({"topologySpreadConstraints": list}),
                "s",
                &mut causes,
            );
            let causes = causes.0.iter();
            let said: Vec<String> = causes
                .map(|cause| format!("{}: {}", cause.field, cause.message))
                .collect();
            assert_eq!(said.join("; "), want);
        }
    }
}
