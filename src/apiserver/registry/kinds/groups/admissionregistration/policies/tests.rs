//! What policies may say.

use super::*;

fn said(causes: &Causes) -> String {
    let each = causes.0.iter();
    let each = each.map(|cause| format!("{}: {}", cause.field, cause.message));
    each.collect::<Vec<_>>().join("; ")
}

fn validating() -> Value {
    json!({"kind": "ValidatingAdmissionPolicy", "metadata": {"name": "p"}, "spec": {
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": ["apps"],
            "apiVersions": ["v1"], "resources": ["deployments"]}]},
        "variables": [{"name": "n", "expression": "object.spec.replicas"}],
        "validations": [{"expression": "variables.n > 1", "messageExpression": "'got ' + string(variables.n)"}],
    }})
}

fn changed(mut policy: Value, pointer: &str, value: Value) -> Value {
    *policy.pointer_mut(pointer).expect("a place") = value;
    default(&mut policy);
    policy
}

#[test]
fn what_a_validating_policy_may_say() {
    for (pointer, value, want) in [
        ("/spec/variables/0/name", json!("n"), ""),
        (
            "/spec/variables/0/name",
            json!("a-b"),
            "name is not a valid CEL identifier",
        ),
        (
            "/spec/variables/0/name",
            json!("in"),
            "name is not a valid CEL identifier",
        ),
        (
            "/spec/variables/0/expression",
            json!(""),
            "spec.variables[0].expression: Required value: expression is not specified",
        ),
        (
            "/spec/validations/0/expression",
            json!("variables.m"),
            "undefined field 'm'",
        ),
        (
            "/spec/validations/0/expression",
            json!("1"),
            "must evaluate to bool but got int",
        ),
        (
            "/spec/validations/0/expression",
            json!("params.x"),
            "undeclared reference to 'params'",
        ),
        (
            "/spec/validations/0/messageExpression",
            json!("authorizer.path('/a').check('get').reason()"),
            "undeclared reference to 'authorizer'",
        ),
        (
            "/spec/validations",
            json!([]),
            "spec.validations: Required value: validations or auditAnnotations must contain at least one item; spec.auditAnnotations",
        ),
        (
            "/spec/validations",
            json!([{"expression": "true", "reason": "Because"}]),
            "spec.validations[0].reason: Unsupported value: \"Because\"",
        ),
        (
            "/spec/validations",
            json!([{"expression": "true", "message": "a\nb"}]),
            "message must not contain line breaks",
        ),
        (
            "/spec/matchConstraints",
            json!({}),
            "spec.matchConstraints.resourceRules: Required value",
        ),
        (
            "/spec/matchConstraints",
            Value::Null,
            "spec.matchConstraints: Required value",
        ),
    ] {
        let policy = changed(validating(), pointer, value);
        let mut causes = Causes::default();
        validate_validating(&policy, &mut causes);
        let said = said(&causes);
        assert!(
            said.contains(want) && want.is_empty() == said.is_empty(),
            "{pointer}: {said}"
        );
    }
}

#[test]
fn what_parameters_may_be() {
    for (kind, want) in [
        (json!({"apiVersion": "v1", "kind": "ConfigMap"}), ""),
        (json!({"apiVersion": "a.example/v1", "kind": "Limits"}), ""),
        (
            json!({"apiVersion": "a/b/c", "kind": "X"}),
            "spec.paramKind.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
        ),
        (
            json!({"apiVersion": "a/", "kind": "X"}),
            "version must be specified",
        ),
        (
            json!({"kind": ""}),
            "spec.paramKind.apiVersion: Required value; spec.paramKind.kind: Required value",
        ),
        (
            json!({"apiVersion": "v1", "kind": "a b"}),
            "may have mixed case, but should otherwise match",
        ),
    ] {
        let mut causes = Causes::default();
        param_kind(&kind, &mut causes);
        let said = said(&causes);
        assert!(
            said.contains(want) && want.is_empty() == said.is_empty(),
            "{kind}: {said}"
        );
    }
}

#[test]
fn what_annotations_may_be() {
    let audited = |key: &str, value: &str| {
        let mut policy = validating();
        policy["spec"]["auditAnnotations"] = json!([{"key": key, "valueExpression": value}]);
        default(&mut policy);
        policy
    };
    for (key, value, want) in [
        ("k", "'v'".to_owned(), ""),
        (
            "k",
            "1".to_owned(),
            "must evaluate to one of [string null_type] but got int",
        ),
        (
            "k/k",
            "'v'".to_owned(),
            "spec.auditAnnotations[0].key: Invalid value: \"p/k/k\"",
        ),
        (
            "k",
            format!("'{}'", "v".repeat(6000)),
            "must not exceed 5120 bytes in length",
        ),
    ] {
        let mut causes = Causes::default();
        validate_validating(&audited(key, &value), &mut causes);
        let said = said(&causes);
        assert!(
            said.contains(want) && want.is_empty() == said.is_empty(),
            "{key}: {said}"
        );
    }
}

#[test]
fn what_a_mutating_policy_may_say() {
    let good = || {
        let mut policy = validating();
        policy["kind"] = "MutatingAdmissionPolicy".into();
        remove(&mut policy, "spec.validations");
        policy["spec"]["reinvocationPolicy"] = "Never".into();
        policy["spec"]["mutations"] = json!([{"patchType": "ApplyConfiguration",
            "applyConfiguration": {"expression": "Object{metadata: Object.metadata{labels: {'a': 'b'}}}"}}]);
        policy
    };
    for (pointer, value, want) in [
        ("/spec/reinvocationPolicy", json!("IfNeeded"), ""),
        (
            "/spec/reinvocationPolicy",
            json!("Always"),
            "spec.reinvocationPolicy: Unsupported value",
        ),
        (
            "/spec/mutations",
            json!([]),
            "spec.mutations: Required value: mutations must contain at least one item",
        ),
        (
            "/spec/mutations/0/patchType",
            json!("JSONPatch"),
            "spec.mutations[0].jsonPatch: Required value",
        ),
        (
            "/spec/mutations/0/patchType",
            json!(""),
            "spec.mutations[0].patchType: Required value",
        ),
        (
            "/spec/mutations/0/applyConfiguration/expression",
            json!("true"),
            "must evaluate to Object but got bool",
        ),
        (
            "/spec/matchConstraints/resourceRules/0/operations",
            json!(["DELETE"]),
            "Unsupported value: \"DELETE\"",
        ),
    ] {
        let policy = changed(good(), pointer, value);
        let mut causes = Causes::default();
        validate_mutating(&policy, &mut causes);
        let said = said(&causes);
        assert!(
            said.contains(want) && want.is_empty() == said.is_empty(),
            "{pointer}: {said}"
        );
    }
}
