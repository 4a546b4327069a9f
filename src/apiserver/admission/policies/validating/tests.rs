//! What validating policies say of a request.

use serde_json::json;

use super::*;
use crate::apiserver::{
    admission::{
        Operation, Plugin, Round,
        policies::Policies,
        testing::{Memory, row},
    },
    request::User,
};

/// Message, code and warnings of what becomes of a new ConfigMap `m` in namespace `n`.
async fn verdict(spec: Value, binding: Value) -> (String, u16, Vec<String>) {
    let mut spec = spec;
    spec["matchConstraints"] = json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
        "operations": ["CREATE"], "resources": ["configmaps"]}]});
    let mut bound = binding;
    bound["policyName"] = "p".into();
    let of = |name: &str, spec: Value| json!({"metadata": {"name": name, "uid": name, "generation": 1}, "spec": spec});
    let group = "admissionregistration.k8s.io";
    let memory = Memory::with(&[
        (
            format!("validatingadmissionpolicies.{group}").as_str(),
            of("p", spec),
        ),
        (
            format!("validatingadmissionpolicybindings.{group}").as_str(),
            of("b", bound),
        ),
        ("namespaces", json!({"metadata": {"name": "n"}})),
    ]);
    let policies = Policies::new(memory.late());
    // In memory nothing counts changes.
    let hooks = Hooks::new(
        (1, 1),
        &memory.list(&policies.validating.kinds.policies, "").await,
        &memory.list(&policies.validating.kinds.bindings, "").await,
        &Hooks::default(),
    );
    let user = User::internal("jane", &[]);
    let (mut warnings, mut round) = (Vec::new(), Round::default());
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "m", "namespace": "n"}, "data": {"a": "b"}});
    let mut request = Request {
        user: &user,
        operation: Operation::Create,
        resource: row("configmaps"),
        subresource: None,
        namespace: "n",
        name: "m",
        old: None,
        dry_run: false,
        warnings: &mut warnings,
        round: &mut round,
    };
    let authority = Authority::default();
    let result = apply(&hooks, &mut request, Some(&object), &authority, &*memory).await;
    assert_eq!(policies.name(), "AdmissionPolicy");
    let (message, code) = result.map_or_else(
        |status| {
            let cause = &status.details.as_ref().expect("details").causes[0];
            assert!(status.message.ends_with(&cause.message));
            (status.message, status.code)
        },
        |()| (String::new(), 0),
    );
    (message, code, warnings)
}

#[tokio::test]
async fn what_is_told() {
    let deny = || json!({"validationActions": ["Deny"]});
    let said = |why: &str| {
        format!(
            "configmaps \"m\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: {why}"
        )
    };
    for (validation, why, code) in [
        (json!({"expression": "object.data.a == 'b'"}), "", 0),
        (
            json!({"expression": " object.data.a == 'c' "}),
            "failed expression: object.data.a == 'c'",
            422,
        ),
        (json!({"expression": "false", "message": " no "}), "no", 422),
        (
            json!({"expression": "false", "message": "no", "reason": "Forbidden"}),
            "no",
            403,
        ),
        (
            json!({"expression": "false", "message": "no", "reason": "RequestEntityTooLarge"}),
            "no",
            413,
        ),
        (
            json!({"expression": "false", "message": "no", "messageExpression": "' not ' + object.data.a"}),
            "not b",
            422,
        ),
        (
            json!({"expression": "false", "message": "no", "messageExpression": "object.data.x"}),
            "no",
            422,
        ),
        (
            json!({"expression": "false", "message": "no", "messageExpression": "'a\\nb'"}),
            "no",
            422,
        ),
        (
            json!({"expression": "false", "message": "no", "messageExpression": "' '"}),
            "no",
            422,
        ),
        (
            json!({"expression": "false", "message": "no", "messageExpression": format!("'{}'", "x".repeat(5121))}),
            "no",
            422,
        ),
        (
            json!({"expression": "object.data.x == ''"}),
            "expression 'object.data.x == \'\'' resulted in error: no such key: x",
            422,
        ),
    ] {
        let got = verdict(json!({"validations": [validation]}), deny()).await;
        let want = if code == 0 { String::new() } else { said(why) };
        assert_eq!(
            (got.0, got.1),
            (want.replace("\\'", "'"), code),
            "{validation}"
        );
    }
}

#[tokio::test]
async fn the_first_denial_counts_and_warnings_are_all_told() {
    let two = json!({"validations": [{"expression": "false", "message": "one"},
        {"expression": "false", "message": "two", "reason": "Forbidden"}]});
    let (message, code, warnings) =
        verdict(two.clone(), json!({"validationActions": ["Deny"]})).await;
    assert!(message.ends_with(": one"), "{message}");
    assert_eq!((code, warnings.len()), (422, 0));
    let (message, _, warnings) = verdict(two, json!({"validationActions": ["Warn"]})).await;
    let want = ["one", "two"].map(|why| {
        format!("Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': {why}")
    });
    assert_eq!((message.as_str(), warnings), ("", want.to_vec()));
}

#[tokio::test]
async fn annotations_that_fail_refuse() {
    let annotated = |value: &str, policy: &str| json!({"failurePolicy": policy, "auditAnnotations": [{"key": "k", "valueExpression": value}]});
    for (value, policy, code) in [
        ("'v'", "Fail", 0),
        ("null", "Fail", 0),
        ("object.data.x", "Ignore", 0),
        ("string(object.data.x)", "Fail", 422),
        ("string(object.data.x)", "Ignore", 0),
    ] {
        let spec = annotated(value, policy);
        // Whatever is done about validations.
        let got = verdict(spec, json!({"validationActions": ["Warn"]})).await;
        assert_eq!(got.1, code, "{value}: {}", got.0);
    }
}
