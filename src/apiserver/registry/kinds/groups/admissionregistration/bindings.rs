//! ValidatingAdmissionPolicyBinding and MutatingAdmissionPolicyBinding.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    BEHAVIOUR, CATEGORIES, GROUP,
    rules::{Operations, default_match_resources, match_resources},
};
use crate::apiserver::registry::{
    Behaviour, Causes, Resource,
    kinds::{
        names,
        row::{self, AGE, cell, column},
        selector,
        value::{at_mut, has, text, texts},
    },
};

pub const VALIDATING_BINDING: Resource = Resource {
    categories: CATEGORIES,
    columns: &[
        column("PolicyName", |one| cell(one, "spec.policyName")),
        column("ParamRef", param_ref_cell),
        AGE,
    ],
    behaviour: Behaviour {
        default,
        validate: |binding, causes| {
            common(binding, Operations::All, causes);
            actions(binding, causes);
        },
        ..BEHAVIOUR
    },
    ..row::cluster(
        GROUP,
        "v1",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        "validatingadmissionpolicybinding",
        "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBinding",
    )
};

pub const MUTATING_BINDING: Resource = Resource {
    categories: CATEGORIES,
    columns: &[
        column("PolicyName", |one| cell(one, "spec.policyName")),
        column("ParamRef", param_ref_cell),
        AGE,
    ],
    behaviour: Behaviour {
        default,
        validate: |binding, causes| common(binding, Operations::NoDelete, causes),
        ..BEHAVIOUR
    },
    ..row::cluster(
        GROUP,
        "v1",
        "MutatingAdmissionPolicyBinding",
        "mutatingadmissionpolicybindings",
        "mutatingadmissionpolicybinding",
        "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicyBinding",
    )
};

fn param_ref_cell(binding: &Value) -> Value {
    let reference = &binding["spec"]["paramRef"];
    let namespace = match text(reference, "namespace") {
        "" => "*",
        namespace => namespace,
    };
    match text(reference, "name") {
        "" if has(reference, "selector") => selector::to_text(&reference["selector"]).into(),
        "" => "<unset>".into(),
        name => format!("{namespace}/{name}").into(),
    }
}

fn default(binding: &mut Value) {
    if let Some(resources) = at_mut(binding, "spec.matchResources").filter(|one| one.is_object()) {
        default_match_resources(resources);
    }
}

fn common(binding: &Value, allowed: Operations, causes: &mut Causes) {
    names::object_name(binding, names::dns_subdomain, causes);
    let spec = &binding["spec"];
    match text(spec, "policyName") {
        "" => causes.required("spec.policyName", ""),
        name => names::report(names::dns_subdomain(name), name, "spec.policyName", causes),
    }
    if has(spec, "paramRef") {
        param_ref(&spec["paramRef"], causes);
    }
    if has(spec, "matchResources") {
        let resources = &spec["matchResources"];
        match_resources(resources, "spec.matchResources", allowed, causes);
    }
}

fn param_ref(reference: &Value, causes: &mut Causes) {
    let (name, selects) = (text(reference, "name"), has(reference, "selector"));
    let both = "name and selector are mutually exclusive";
    if !name.is_empty() {
        names::report(
            names::path_segment(name),
            name,
            "spec.paramRef.name",
            causes,
        );
        if selects {
            causes.forbidden("spec.paramRef.name", both);
        }
    }
    if selects {
        selector::validate(&reference["selector"], "spec.paramRef.selector", causes);
        if !name.is_empty() {
            causes.forbidden("spec.paramRef.selector", both);
        }
    }
    if name.is_empty() && !selects {
        causes.required("spec.paramRef", "one of name or selector must be specified");
    }
    let path = "spec.paramRef.parameterNotFoundAction";
    match text(reference, "parameterNotFoundAction") {
        "" => causes.required(path, ""),
        "Deny" | "Allow" => {}
        other => causes.unsupported(path, other, &["Deny", "Allow"]),
    }
}

fn actions(binding: &Value, causes: &mut Causes) {
    let path = "spec.validationActions";
    let all = texts(binding, path);
    let known = ["Audit", "Deny", "Warn"];
    let mut seen = HashSet::new();
    for (index, action) in all.iter().enumerate() {
        if causes.is_full() {
            return;
        }
        if !known.contains(action) {
            causes.unsupported(format!("{path}[{index}]"), action, &known);
        }
        if !seen.insert(action) {
            causes.duplicate(format!("{path}[{index}]"), action);
        }
    }
    if all.contains(&"Deny") && all.contains(&"Warn") {
        causes.invalid(path, &all, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
    }
    if all.is_empty() {
        causes.required(path, "at least one validation action is required");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_binding_may_say() {
        let base = |extra: Value| {
            let mut spec = json!({"policyName": "p", "validationActions": ["Deny"]});
            for (name, value) in extra.as_object().expect("an object") {
                spec[name] = value.clone();
            }
            let mut binding = json!({"metadata": {"name": "b"}, "spec": spec});
            default(&mut binding);
            binding
        };
        for (extra, want) in [
            (json!({}), ""),
            (json!({"policyName": ""}), "spec.policyName: Required value"),
            (
                json!({"validationActions": []}),
                "spec.validationActions: Required value: at least one validation action is required",
            ),
            (
                json!({"validationActions": ["Deny", "Warn"]}),
                "must not contain both Deny and Warn",
            ),
            (
                json!({"validationActions": ["Audit", "Audit"]}),
                "spec.validationActions[1]: Duplicate value: \"Audit\"",
            ),
            (
                json!({"validationActions": ["Log"]}),
                "spec.validationActions[0]: Unsupported value: \"Log\"",
            ),
            (
                json!({"paramRef": {"name": "x", "parameterNotFoundAction": "Deny"}}),
                "",
            ),
            (
                json!({"paramRef": {"selector": {}, "parameterNotFoundAction": "Allow"}}),
                "",
            ),
            (
                json!({"paramRef": {"name": "x"}}),
                "spec.paramRef.parameterNotFoundAction: Required value",
            ),
            (
                json!({"paramRef": {"parameterNotFoundAction": "Deny"}}),
                "spec.paramRef: Required value: one of name or selector must be specified",
            ),
            (
                json!({"paramRef": {"name": "x", "selector": {}, "parameterNotFoundAction": "Deny"}}),
                "spec.paramRef.name: Forbidden: name and selector are mutually exclusive",
            ),
            (json!({"matchResources": {}}), ""),
            (
                json!({"matchResources": {"matchPolicy": "Some"}}),
                "spec.matchResources.matchPolicy: Unsupported value",
            ),
        ] {
            let mut causes = Causes::default();
            let binding = base(extra.clone());
            (VALIDATING_BINDING.behaviour.validate)(&binding, &mut causes);
            let said: Vec<String> = causes
                .0
                .iter()
                .map(|cause| format!("{}: {}", cause.field, cause.message))
                .collect();
            let said = said.join("; ");
            assert!(
                said.contains(want) && want.is_empty() == said.is_empty(),
                "{extra}: {said}"
            );
        }
    }

    #[test]
    fn what_the_table_shows() {
        for (reference, want) in [
            (Value::Null, "<unset>"),
            (json!({"name": "x"}), "*/x"),
            (json!({"name": "x", "namespace": "n"}), "n/x"),
            (json!({"selector": {"matchLabels": {"a": "b"}}}), "a=b"),
        ] {
            assert_eq!(
                param_ref_cell(&json!({"spec": {"paramRef": reference}})),
                want
            );
        }
    }
}
