//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy.

#[cfg(test)]
mod tests;

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{
    BEHAVIOUR, CATEGORIES, GROUP,
    expressions::{expression, match_conditions, variables},
    one_of,
    rules::{Operations, default_match_resources, match_resources},
};
use crate::{
    apiserver::{
        expressions::{Declared, Returns, environment},
        registry::{
            Behaviour, Causes, Resource, Subresource,
            kinds::{
                cells::len,
                names,
                row::{self, AGE, column, count},
                value::{at_mut, default_text, default_to, has, items, remove, text},
            },
        },
    },
    cel::{Environment, Origin},
};

/// As the original, so that a value, which may have twice as much, can be a little longer.
const MAX_VALUE_EXPRESSION: usize = 5 * 1024;
const MAX_AUDIT_ANNOTATIONS: usize = 20;

pub const VALIDATING_POLICY: Resource = Resource {
    categories: CATEGORIES,
    columns: &[
        count("Validations", |all| len(all, "spec.validations").into()),
        column("ParamKind", param_kind_cell),
        AGE,
    ],
    subresources: &[Subresource::Status],
    behaviour: Behaviour {
        default,
        prepare_create: |policy| drop(remove(policy, "status")),
        validate: validate_validating,
        validate_subresource: |_, policy, _, causes| validate_status(policy, causes),
        ..BEHAVIOUR
    },
    ..row::cluster(
        GROUP,
        "v1",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        "validatingadmissionpolicy",
        "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicy",
    )
};

pub const MUTATING_POLICY: Resource = Resource {
    categories: CATEGORIES,
    columns: &[
        count("Mutations", |all| len(all, "spec.mutations").into()),
        column("ParamKind", param_kind_cell),
        AGE,
    ],
    behaviour: Behaviour {
        default,
        validate: validate_mutating,
        ..BEHAVIOUR
    },
    ..row::cluster(
        GROUP,
        "v1",
        "MutatingAdmissionPolicy",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicy",
        "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicy",
    )
};

fn param_kind_cell(policy: &Value) -> Value {
    match has(policy, "spec.paramKind") {
        false => "<unset>".into(),
        true => format!(
            "{}/{}",
            text(policy, "spec.paramKind.apiVersion"),
            text(policy, "spec.paramKind.kind")
        )
        .into(),
    }
}

fn default(policy: &mut Value) {
    if !policy["spec"].is_object() {
        default_to(policy, "spec", json!({}));
    }
    default_text(policy, "spec.failurePolicy", "Fail");
    if let Some(resources) = at_mut(policy, "spec.matchConstraints").filter(|one| one.is_object()) {
        default_match_resources(resources);
    }
}

fn validate_validating(policy: &Value, causes: &mut Causes) {
    let spec = &policy["spec"];
    common(policy, Operations::All, causes);
    let (validations, annotations) = (items(spec, "validations"), items(spec, "auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        let detail = "validations or auditAnnotations must contain at least one item";
        causes.required("spec.validations", detail);
        causes.required("spec.auditAnnotations", detail);
        return;
    }
    let declared = Declared {
        params: has(spec, "paramKind"),
        authorizer: true,
        patches: false,
        variables: !items(spec, "variables").is_empty(),
    };
    let mut full = environment(declared, Origin::New);
    variables(policy, &mut full, causes);
    let declared = Declared {
        authorizer: false,
        ..declared
    };
    let mut plain = environment(declared, Origin::New);
    // The same variables, without being told of them twice.
    variables_again(policy, &full, &mut plain);
    for (index, one) in validations.iter().enumerate() {
        if causes.is_full() {
            return;
        }
        validation(
            one,
            &format!("spec.validations[{index}]"),
            &full,
            &plain,
            causes,
        );
    }
    if annotations.len() > MAX_AUDIT_ANNOTATIONS {
        let detail = format!("must not have more than {MAX_AUDIT_ANNOTATIONS} auditAnnotations");
        causes.invalid("spec.auditAnnotations", annotations, &detail);
        return;
    }
    let mut keys = HashSet::new();
    for (index, one) in annotations.iter().enumerate() {
        let path = format!("spec.auditAnnotations[{index}]");
        let key = text(one, "key");
        annotation(policy, one, &path, &full, causes);
        if !keys.insert(key) {
            causes.duplicate(format!("{path}.key"), key);
        }
    }
}

/// Gives `to` the variables whose types are known in `from`.
fn variables_again(policy: &Value, from: &Environment, to: &mut Environment) {
    for one in items(policy, "spec.variables") {
        let name = text(one, "name");
        let ty = from.composed(name).unwrap_or(crate::cel::Type::Dyn);
        to.compose(name, &ty);
    }
}

/// What both kinds of policy have.
fn common(policy: &Value, allowed: Operations, causes: &mut Causes) {
    names::object_name(policy, names::dns_subdomain, causes);
    let spec = &policy["spec"];
    match text(spec, "failurePolicy") {
        "" => causes.required("spec.failurePolicy", ""),
        _ => one_of(spec, "spec", "failurePolicy", &["Fail", "Ignore"], causes),
    }
    if has(spec, "paramKind") {
        param_kind(&spec["paramKind"], causes);
    }
    if has(spec, "matchConstraints") {
        let constraints = &spec["matchConstraints"];
        match_resources(constraints, "spec.matchConstraints", allowed, causes);
        if items(constraints, "resourceRules").is_empty() {
            causes.required("spec.matchConstraints.resourceRules", "");
        }
    } else {
        causes.required("spec.matchConstraints", "");
    }
    match_conditions(spec, "spec", has(spec, "paramKind"), causes);
}

fn param_kind(kind: &Value, causes: &mut Causes) {
    let path = "spec.paramKind.apiVersion";
    let version = text(kind, "apiVersion");
    match version.split('/').collect::<Vec<_>>()[..] {
        [""] => causes.required(path, ""),
        [version] => names::report(names::dns_1035_label(version), version, path, causes),
        [group, name] => {
            if !group.is_empty() {
                names::report(names::dns_subdomain(group), group, path, causes);
            }
            match name {
                "" => causes.invalid(path, version, "version must be specified"),
                name => names::report(names::dns_1035_label(name), name, path, causes),
            }
        }
        _ => {
            let detail = format!("unexpected GroupVersion string: {version}");
            causes.invalid(path, version, &detail);
        }
    }
    let path = "spec.paramKind.kind";
    match text(kind, "kind") {
        "" => causes.required(path, ""),
        kind => {
            let errors = names::dns_1035_label(&kind.to_lowercase());
            if !errors.is_empty() {
                let detail = format!(
                    "may have mixed case, but should otherwise match: {}",
                    errors.join(",")
                );
                causes.invalid(path, kind, &detail);
            }
        }
    }
}

fn validation(
    one: &Value,
    path: &str,
    full: &Environment,
    plain: &Environment,
    causes: &mut Causes,
) {
    let given = text(one, "expression");
    let at = format!("{path}.expression");
    match given.trim() {
        "" => causes.required(at, "expression is not specified"),
        _ => drop(expression(full, given, Returns::Bool, &at, causes)),
    }
    let words = text(one, "messageExpression");
    let at = format!("{path}.messageExpression");
    if !words.is_empty() && words.trim().is_empty() {
        causes.invalid(at, words, "must be non-empty if specified");
    } else if !words.is_empty() {
        expression(plain, words, Returns::Text, &at, causes);
    }
    let message = text(one, "message");
    let at = format!("{path}.message");
    if !message.is_empty() && message.trim().is_empty() {
        causes.invalid(at, message, "message must be non-empty if specified");
    } else if message.trim().contains(['\n', '\r']) {
        causes.invalid(at, message, "message must not contain line breaks");
    }
    let known = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
    one_of(one, path, "reason", &known, causes);
}

fn annotation(
    policy: &Value,
    one: &Value,
    path: &str,
    environment: &Environment,
    causes: &mut Causes,
) {
    let at = format!("{path}.key");
    let key = text(one, "key");
    match text(policy, "metadata.name") {
        "" => causes.invalid(at, key, "requires metadata.name be non-empty"),
        name => {
            let whole = format!("{name}/{key}");
            names::report(names::qualified_name(&whole), &whole, &at, causes);
        }
    }
    let at = format!("{path}.valueExpression");
    match text(one, "valueExpression").trim() {
        "" => causes.required(at, "valueExpression is not specified"),
        given if given.len() > MAX_VALUE_EXPRESSION => {
            let detail = format!("must not exceed {MAX_VALUE_EXPRESSION} bytes in length");
            causes.required(at, &detail);
        }
        given => drop(expression(
            environment,
            given,
            Returns::TextOrNull,
            &at,
            causes,
        )),
    }
}

fn validate_status(policy: &Value, causes: &mut Causes) {
    let path = "status.typeChecking.expressionWarnings";
    for (index, one) in items(policy, path).iter().enumerate() {
        for field in ["warning", "fieldRef"] {
            if text(one, field).trim().is_empty() {
                causes.required(format!("{path}[{index}].{field}"), "");
            }
        }
    }
}

fn validate_mutating(policy: &Value, causes: &mut Causes) {
    let spec = &policy["spec"];
    common(policy, Operations::NoDelete, causes);
    let declared = Declared {
        params: has(spec, "paramKind"),
        authorizer: true,
        patches: true,
        variables: !items(spec, "variables").is_empty(),
    };
    let mut environment = environment(declared, Origin::New);
    variables(policy, &mut environment, causes);
    let mutations = items(spec, "mutations");
    if mutations.is_empty() {
        causes.required("spec.mutations", "mutations must contain at least one item");
    }
    for (index, one) in mutations.iter().enumerate() {
        if causes.is_full() {
            return;
        }
        mutation(
            one,
            &format!("spec.mutations[{index}]"),
            &environment,
            causes,
        );
    }
    match text(spec, "reinvocationPolicy") {
        "" => causes.required("spec.reinvocationPolicy", ""),
        _ => one_of(
            spec,
            "spec",
            "reinvocationPolicy",
            &["IfNeeded", "Never"],
            causes,
        ),
    }
}

fn mutation(one: &Value, path: &str, environment: &Environment, causes: &mut Causes) {
    let apply = ("applyConfiguration", Returns::ApplyConfiguration);
    let patch = ("jsonPatch", Returns::JsonPatch);
    let kind = text(one, "patchType");
    let ((wanted, returns), (other, _)) = match kind {
        "ApplyConfiguration" => (apply, patch),
        "JSONPatch" => (patch, apply),
        "" => return causes.required(format!("{path}.patchType"), ""),
        _ => {
            let known = ["ApplyConfiguration", "JSONPatch"];
            return causes.unsupported(format!("{path}.patchType"), kind, &known);
        }
    };
    if has(one, other) {
        let detail = format!("must not be specified when patchType is {kind}");
        causes.forbidden(format!("{path}.{other}"), &detail);
    }
    if !has(one, wanted) {
        let detail = format!("must be specified when patchType is {kind}");
        return causes.required(format!("{path}.{wanted}"), &detail);
    }
    let given = text(&one[wanted], "expression");
    let at = format!("{path}.{wanted}.expression");
    match given.trim() {
        "" => causes.required(at, "expression is not specified"),
        _ => drop(expression(environment, given, returns, &at, causes)),
    }
}
