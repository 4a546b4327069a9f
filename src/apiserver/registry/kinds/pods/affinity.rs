//! Validation of what a pod wants of nodes and of other pods.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::apiserver::registry::{
    Causes,
    kinds::{
        names, selector,
        value::{at, has, items, number, pairs, text, texts},
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
            if causes.is_full() {
                return;
            }
            node_term(term, Values::Checked, &format!("{path}[{index}]"), causes);
        }
    }
    for (index, wish) in items(affinity, PREFERRED).iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}.{PREFERRED}[{index}]");
        weight(wish, &path, causes);
        let path = format!("{path}.preference");
        node_term(&wish["preference"], Values::Any, &path, causes);
    }
}

/// Whether values are such as labels can have. A wish may be one that no node can grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Values {
    Checked,
    Any,
}

fn node_term(term: &Value, values_are: Values, path: &str, causes: &mut Causes) {
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
        if values_are == Values::Checked {
            for (at, value) in texts(wanted, "values").iter().enumerate() {
                names::label_value(value, &format!("{path}.values[{at}]"), causes);
            }
        }
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
            continue;
        }
        for (at, value) in texts(wanted, "values").iter().enumerate() {
            let own = format!("{path}.values[{at}]");
            names::report(names::dns_subdomain(value), value, &own, causes);
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
    label_keys(term, path, causes);
    let key = text(term, "topologyKey");
    let path = format!("{path}.topologyKey");
    if key.is_empty() {
        causes.required(&path, "can not be empty");
    }
    names::label_key(key, &path, causes);
}

/// `matchLabelKeys` and `mismatchLabelKeys` of a term or constraint. By now what they come to may
/// stand in its selector.
fn label_keys(term: &Value, path: &str, causes: &mut Causes) {
    let selector = at(term, "labelSelector");
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = texts(term, field);
        let own = format!("{path}.{field}");
        if selector.is_none() && !keys.is_empty() {
            causes.forbidden(own, "must not be specified when labelSelector is not set");
            continue;
        }
        for (index, key) in keys.iter().enumerate() {
            if causes.is_full() {
                return;
            }
            names::label_key(key, &format!("{own}[{index}]"), causes);
        }
    }
    let wanted = texts(term, "matchLabelKeys");
    let unwanted: HashSet<&str> = texts(term, "mismatchLabelKeys").into_iter().collect();
    if let Some(selector) = selector {
        let by_key: HashMap<&str, usize> = wanted
            .iter()
            .enumerate()
            .map(|(index, key)| (*key, index))
            .collect();
        let mut seen: HashSet<&str> = pairs(selector, "matchLabels").map(|(key, _)| key).collect();
        for rule in items(selector, "matchExpressions") {
            let key = text(rule, "key");
            if !seen.insert(key)
                && let Some(index) = by_key.get(key)
            {
                let detail = "exists in both matchLabelKeys and labelSelector";
                causes.invalid(format!("{path}[{index}]"), key, detail);
            }
        }
    }
    for (index, key) in wanted.iter().enumerate() {
        if unwanted.contains(key) {
            let own = format!("{path}.matchLabelKeys[{index}]");
            let detail = "exists in both matchLabelKeys and mismatchLabelKeys";
            causes.invalid(own, key, detail);
        }
    }
}

/// `spec.topologySpreadConstraints`, where `path` is that of the spec.
pub fn spread(spec: &Value, path: &str, causes: &mut Causes) {
    let constraints = items(spec, "topologySpreadConstraints");
    let kind = |constraint: &Value| {
        let (key, action) = ("topologyKey", "whenUnsatisfiable");
        (
            text(constraint, key).to_owned(),
            text(constraint, action).to_owned(),
        )
    };
    let last: HashMap<_, usize> = constraints
        .iter()
        .enumerate()
        .map(|(index, constraint)| (kind(constraint), index))
        .collect();
    for (index, constraint) in constraints.iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}.topologySpreadConstraints[{index}]");
        let skew = number(constraint, "maxSkew").unwrap_or_default();
        if skew <= 0 {
            causes.invalid(format!("{path}.maxSkew"), skew, "must be greater than zero");
        }
        let key = text(constraint, "topologyKey");
        if key.is_empty() {
            causes.required(format!("{path}.topologyKey"), "can not be empty");
        }
        let action = text(constraint, "whenUnsatisfiable");
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            causes.unsupported(
                format!("{path}.whenUnsatisfiable"),
                action,
                &["DoNotSchedule", "ScheduleAnyway"],
            );
        }
        if last
            .get(&kind(constraint))
            .is_some_and(|last| *last > index)
        {
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
            if has(constraint, field) && !matches!(policy, "Honor" | "Ignore") {
                causes.unsupported(format!("{path}.{field}"), policy, &["Honor", "Ignore"]);
            }
        }
        label_keys(constraint, &path, causes);
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
            (pod(json!({"topologyKey": "a b"})), vec![format!("{at_pod}.topologyKey: Invalid value: \"a b\": {}", names::qualified_name("a b").join(""))]),
            (pod(json!({"topologyKey": "a", "matchLabelKeys": ["b"]})), vec![format!("{at_pod}.matchLabelKeys: Forbidden: must not be specified when labelSelector is not set")]),
            (pod(json!({"topologyKey": "a", "matchLabelKeys": ["b"], "mismatchLabelKeys": ["b"], "labelSelector": {}})), vec![format!("{at_pod}.matchLabelKeys[0]: Invalid value: \"b\": exists in both matchLabelKeys and mismatchLabelKeys")]),
            (pod(json!({"topologyKey": "a", "matchLabelKeys": ["b"], "labelSelector": {"matchLabels": {"b": "c"}}})), vec![]),
            (pod(json!({"topologyKey": "a", "matchLabelKeys": ["b"], "labelSelector": {"matchLabels": {"b": "c"}, "matchExpressions": [{"key": "b", "operator": "In", "values": ["c"]}]}})), vec![format!("{at_pod}[0]: Invalid value: \"b\": exists in both matchLabelKeys and labelSelector")]),
            (node(json!([{"matchExpressions": [{"key": "a", "operator": "In", "values": ["a", "-"]}]}])), vec![format!("{at_node}[0].matchExpressions[0].values[1]: Invalid value: \"-\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')")]),
            (json!({"affinity": {"nodeAffinity": {PREFERRED: [{"weight": 1, "preference": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["-"]}]}}]}}}), vec![]),
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
                "s.topologySpreadConstraints[0].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{zone, DoNotSchedule}\"",
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
