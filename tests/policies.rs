//! Admission policies and match conditions as a person writes them, through stock kubectl. Tests named
//! `conforms_…` follow the conformance test of that name.

mod lab;

use std::{
    io::{BufRead, BufReader},
    process::Output,
    time::{Duration, Instant},
};

use lab::{Cluster, text};
use serde_json::{Value, json};

fn written(cluster: &Cluster, verb: &str, object: &Value, more: &str) -> Output {
    let file = cluster.root.path().join("object.json");
    std::fs::write(&file, object.to_string()).unwrap();
    cluster.kubectl(&format!("{verb} -f {} {more}", file.display()))
}

/// Created; what kubectl said.
fn created(cluster: &Cluster, object: &Value) -> String {
    let output = written(cluster, "create", object, "");
    assert!(output.status.success(), "{object}: {}", text(&output));
    text(&output)
}

/// Refused; the words of the refusal.
fn refused(cluster: &Cluster, object: &Value) -> String {
    let output = written(cluster, "create", object, "");
    let said = text(&output);
    assert!(!output.status.success(), "{object} was taken: {said}");
    said
}

fn read(cluster: &Cluster, what: &str) -> Value {
    serde_json::from_str(&cluster.ok(&format!("get {what} -o json"))).unwrap()
}

const GROUP: &str = "admissionregistration.k8s.io/v1";

fn rules(group: &str, resource: &str, operations: &Value) -> Value {
    json!({"resourceRules": [{"apiGroups": [group], "apiVersions": ["v1"],
        "operations": operations, "resources": [resource]}]})
}

fn validating(name: &str, constraints: &Value, spec: &Value) -> Value {
    policy("ValidatingAdmissionPolicy", name, constraints, spec)
}

fn mutating(name: &str, constraints: &Value, spec: &Value) -> Value {
    policy("MutatingAdmissionPolicy", name, constraints, spec)
}

fn policy(kind: &str, name: &str, constraints: &Value, spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["matchConstraints"] = constraints.clone();
    json!({"apiVersion": GROUP, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn bound(policy: &Value, spec: &Value) -> Value {
    let name = policy["metadata"]["name"].as_str().unwrap();
    let kind = policy["kind"].as_str().unwrap();
    let mut spec = spec.clone();
    spec["policyName"] = name.into();
    if kind == "ValidatingAdmissionPolicy" && spec["validationActions"].is_null() {
        spec["validationActions"] = json!(["Deny"]);
    }
    json!({"apiVersion": GROUP, "kind": format!("{kind}Binding"), "metadata": {"name": name}, "spec": spec})
}

/// Creates a policy, and a binding of its name.
fn in_force(cluster: &Cluster, policy: &Value, binding: &Value) {
    created(cluster, policy);
    created(cluster, &bound(policy, binding));
}

fn deployment(name: &str, replicas: i64) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "nginx"}}, "template": {
            "metadata": {"labels": {"app": "nginx"}},
            "spec": {"containers": [{"name": "nginx", "image": "nginx:latest"}]}}}})
}

fn config_map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// Only in namespaces that are labelled so.
fn selecting(mut constraints: Value) -> Value {
    constraints["namespaceSelector"] = json!({"matchLabels": {"tested": "true"}});
    constraints
}

fn labelled(cluster: &Cluster) {
    cluster.ok("label namespace default tested=true");
}

#[test]
#[ignore = "needs root"]
fn conforms_validating_admission_policy_should_validate_against_a_deployment() {
    let cluster = Cluster::started();
    labelled(&cluster);
    let writes = json!(["CREATE", "UPDATE"]);
    let policy = validating(
        "validate.policy.example.com",
        &selecting(rules("apps", "deployments", &writes)),
        &json!({"validations": [{"expression": "object.spec.replicas > 1",
            "messageExpression": "'wants replicas > 1, got ' + object.spec.replicas"}]}),
    );
    let here =
        json!({"matchResources": {"namespaceSelector": {"matchLabels": {"tested": "true"}}}});
    in_force(&cluster, &policy, &here);
    let said = refused(&cluster, &deployment("marker-deployment", 1));
    // The expression is wrong at run time: a text and a number are not added.
    assert!(
        said.contains("The deployments \"marker-deployment\" is invalid: : ValidatingAdmissionPolicy 'validate.policy.example.com' with binding 'validate.policy.example.com' denied request: failed expression: object.spec.replicas > 1"),
        "{said}"
    );
    created(&cluster, &deployment("replicated", 2));
    let mut replicas = deployment("non-replicated", 1);
    replicas["kind"] = "ReplicaSet".into();
    created(&cluster, &replicas);
    cluster.ok("create namespace elsewhere");
    let output = written(
        &cluster,
        "create",
        &deployment("marker-deployment", 1),
        "-n elsewhere",
    );
    assert!(output.status.success(), "{}", text(&output));
    // As soon as it is unbound, it refuses nothing.
    cluster.ok("delete validatingadmissionpolicybinding validate.policy.example.com");
    created(&cluster, &deployment("marker-deployment", 1));
}

#[test]
#[ignore = "needs root"]
fn conforms_validating_admission_policy_should_allow_expressions_to_refer_variables() {
    let cluster = Cluster::started();
    let policy = validating(
        "variables.policy.example.com",
        &rules("apps", "deployments", &json!(["CREATE", "UPDATE"])),
        &json!({"variables": [
                {"name": "replicas", "expression": "object.spec.replicas"},
                {"name": "oddReplicas", "expression": "variables.replicas % 2 == 1"}],
            "validations": [{"expression": "variables.replicas > 1"}, {"expression": "variables.oddReplicas"}]}),
    );
    in_force(&cluster, &policy, &json!({}));
    let said = refused(&cluster, &deployment("marker-deployment", 1));
    assert!(
        said.contains("denied request: failed expression: variables.replicas > 1"),
        "{said}"
    );
    created(&cluster, &deployment("replicated", 3));
    let said = refused(&cluster, &deployment("replicated-2", 4));
    assert!(
        said.contains("denied request: failed expression: variables.oddReplicas"),
        "{said}"
    );
    // Written in words that kubectl shows.
    let table = cluster.ok("get validatingadmissionpolicies");
    let words: Vec<&str> = table.split_whitespace().collect();
    assert_eq!(words[..4], ["NAME", "VALIDATIONS", "PARAMKIND", "AGE"]);
    assert_eq!(words[5..7], ["2", "<unset>"]);
}

#[test]
#[ignore = "needs root"]
fn conforms_validating_admission_policy_should_type_check_validation_expressions() {
    let cluster = Cluster::started();
    let constraints = rules("apps", "deployments", &json!(["CREATE", "UPDATE"]));
    let right = json!({"validations": [{"expression": "object.spec.replicas > 1"}]});
    created(&cluster, &validating("right", &constraints, &right));
    let wrong = json!({"validations": [{"expression": "object.spec.replicas > '1'",
        "messageExpression": "'wants replicas > 1, got ' + object.spec.replicas"}]});
    created(&cluster, &validating("wrong", &constraints, &wrong));
    cluster.wait(
        "get validatingadmissionpolicy right -o jsonpath={.status.typeChecking}",
        "{}",
    );
    cluster.wait(
        "get validatingadmissionpolicy wrong -o jsonpath={.status.observedGeneration}",
        "1",
    );
    let status = read(&cluster, "validatingadmissionpolicy wrong")["status"].clone();
    let warnings = status["typeChecking"]["expressionWarnings"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    for (at, field, words) in [
        (
            0,
            "expression",
            "found no matching overload for '_>_' applied to '(int, string)'",
        ),
        (
            1,
            "messageExpression",
            "found no matching overload for '_+_' applied to '(string, int)'",
        ),
    ] {
        assert_eq!(
            warnings[at]["fieldRef"],
            format!("spec.validations[0].{field}")
        );
        let said = warnings[at]["warning"].as_str().unwrap();
        assert!(said.contains(words), "{said}");
    }
    // Corrected, it is looked at again.
    let output = written(
        &cluster,
        "apply",
        &validating("wrong", &constraints, &right),
        "",
    );
    assert!(output.status.success(), "{}", text(&output));
    cluster.wait(
        "get validatingadmissionpolicy wrong -o jsonpath={.status}",
        "{\"observedGeneration\":2,\"typeChecking\":{}}",
    );
    assert_eq!(
        read(&cluster, "validatingadmissionpolicy wrong")["metadata"]["generation"],
        2
    );
}

/// Create, read, list, watch, patch, update and delete, one and all.
fn all_operations(cluster: &Cluster, plural: &str, object: &Value) {
    let found = cluster.ok("api-resources --api-group=admissionregistration.k8s.io -o wide");
    let line = found.lines().find(|line| line.starts_with(plural));
    let line = line.unwrap_or_else(|| panic!("{plural} in {found}"));
    for word in [
        "admissionregistration.k8s.io/v1",
        "create,delete,deletecollection,get,list,patch,update,watch",
        "api-extensions",
    ] {
        assert!(line.contains(word), "{line}");
    }
    let mut names = Vec::new();
    for _ in 0..3 {
        let output = written(cluster, "create", object, "-o name");
        assert!(output.status.success(), "{}", text(&output));
        names.push(text(&output).trim().to_owned());
    }
    let one = &names[2];
    let uid = read(cluster, one)["metadata"]["uid"].clone();
    let list = read(cluster, &format!("{plural} -l test=operations"));
    assert_eq!(list["items"].as_array().unwrap().len(), 3);
    assert_eq!(list["items"][0]["kind"], object["kind"]);
    let mut watch = cluster
        .kubectl_command()
        .args([
            "get",
            one,
            "--watch",
            "-o",
            "jsonpath={.metadata.annotations}{\"\\n\"}",
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    // The state it begins with: from here on every change is seen.
    lines.next().unwrap().unwrap();
    let patch = r#"{"metadata":{"annotations":{"patched":"true"}}}"#;
    cluster.ok_with(&["patch", one, "--type=merge", "-p", patch]);
    let mut changed = read(cluster, one);
    assert_eq!(changed["metadata"]["annotations"]["patched"], "true");
    changed["metadata"]["annotations"]["updated"] = "true".into();
    let output = written(cluster, "replace", &changed, "");
    assert!(output.status.success(), "{}", text(&output));
    let seen: Vec<String> = lines.take(2).map(Result::unwrap).collect();
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert!(
        seen[0].contains("patched") && seen[1].contains("updated"),
        "{seen:?}"
    );
    assert_eq!(read(cluster, one)["metadata"]["uid"], uid);
    cluster.ok(&format!("delete {one}"));
    assert!(text(&cluster.kubectl(&format!("get {one}"))).contains("NotFound"));
    let list = read(cluster, &format!("{plural} -l test=operations"));
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    cluster.ok(&format!("delete {plural} -l test=operations"));
    let list = read(cluster, &format!("{plural} -l test=operations"));
    assert_eq!(list["items"], json!([]));
}

/// Named by the server, and found by its label.
fn generated(mut object: Value) -> Value {
    object["metadata"] = json!({"generateName": "e2e-example-", "labels": {"test": "operations"}});
    object
}

#[test]
#[ignore = "needs root"]
fn conforms_admission_policies_and_their_bindings_should_support_api_operations() {
    let cluster = Cluster::started();
    let constraints = rules("apps", "deployments", &json!(["CREATE"]));
    let validates = validating(
        "v",
        &constraints,
        &json!({"validations": [
        {"expression": "object.spec.replicas <= 100", "message": "must not exceed 100 replicas"}]}),
    );
    let mutates = mutating(
        "m",
        &constraints,
        &json!({"reinvocationPolicy": "Never", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
            "Object{metadata: Object.metadata{annotations: {'my-foo-annotation': 'myAnnotationValue'}}}"}}]}),
    );
    for (plural, object) in [
        ("validatingadmissionpolicies", validates.clone()),
        (
            "validatingadmissionpolicybindings",
            bound(&validates, &json!({})),
        ),
        ("mutatingadmissionpolicies", mutates.clone()),
        (
            "mutatingadmissionpolicybindings",
            bound(&mutates, &json!({})),
        ),
    ] {
        all_operations(&cluster, plural, &generated(object));
    }
    // The status has an endpoint of its own.
    created(&cluster, &validates);
    let patch = r#"{"status":{"conditions":[{"type":"PatchStatusFailed","status":"False","reason":"e2e","message":"Set from an e2e test","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}"#;
    cluster.ok_with(&[
        "patch",
        "validatingadmissionpolicy",
        "v",
        "--subresource=status",
        "--type=merge",
        "-p",
        patch,
    ]);
    let status = read(&cluster, "validatingadmissionpolicy v")["status"].clone();
    assert_eq!(
        status["conditions"][0]["type"], "PatchStatusFailed",
        "{status}"
    );
    let explained =
        cluster.ok("explain validatingadmissionpolicy.spec.validations.messageExpression");
    assert!(
        explained.contains("messageExpression <string>"),
        "{explained}"
    );
}

#[test]
#[ignore = "needs root"]
fn conforms_mutating_admission_policy_should_mutate_a_deployment() {
    let cluster = Cluster::started();
    labelled(&cluster);
    let constraints = selecting(rules("apps", "deployments", &json!(["CREATE", "UPDATE"])));
    let policy = mutating(
        "annotate",
        &constraints,
        &json!({"reinvocationPolicy": "Never", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
            "Object{metadata: Object.metadata{annotations: {\"mutated-by\": \"admission-policy\"}}}"}}]}),
    );
    in_force(
        &cluster,
        &policy,
        &json!({"matchResources": {"namespaceSelector": {"matchLabels": {"tested": "true"}}}}),
    );
    let policy = mutating(
        "operate",
        &constraints,
        &json!({"reinvocationPolicy": "Never", "mutations": [
        {"patchType": "JSONPatch", "jsonPatch": {"expression":
            "[JSONPatch{op: 'replace', path: '/spec/replicas', value: 2}, JSONPatch{op: 'add', path: '/metadata/labels', value: {'x': 'y'}}]"}}]}),
    );
    in_force(&cluster, &policy, &json!({}));
    created(&cluster, &deployment("test-deployment", 1));
    let made = read(&cluster, "deployment test-deployment");
    assert_eq!(
        made["metadata"]["annotations"]["mutated-by"],
        "admission-policy"
    );
    assert_eq!(made["metadata"]["labels"]["x"], "y");
    assert_eq!(made["spec"]["replicas"], 2);
    // Also when somebody changes it, and not elsewhere.
    cluster.ok("scale deployment test-deployment --replicas=5");
    cluster.ok("annotate deployment test-deployment mutated-by-");
    let changed = read(&cluster, "deployment test-deployment");
    assert_eq!(
        changed["metadata"]["annotations"]["mutated-by"],
        "admission-policy"
    );
    assert_eq!(changed["spec"]["replicas"], 2);
    cluster.ok("create namespace elsewhere");
    let output = written(
        &cluster,
        "create",
        &deployment("test-deployment", 1),
        "-n elsewhere",
    );
    assert!(output.status.success(), "{}", text(&output));
    let other = read(&cluster, "deployment test-deployment -n elsewhere");
    assert_eq!(
        (
            &other["spec"]["replicas"],
            other["metadata"]["annotations"].get("mutated-by")
        ),
        (&json!(1), None)
    );
}

#[test]
#[ignore = "needs root"]
fn policies_are_applied_again_when_others_have_changed_the_object() {
    let cluster = Cluster::started();
    let constraints = rules("", "configmaps", &json!(["CREATE"]));
    let adds = |name: &str, again: &str, condition: &str, label: &str| {
        mutating(
            name,
            &constraints,
            &json!({"reinvocationPolicy": again,
            "matchConditions": [{"name": "c", "expression": condition}],
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
                format!("Object{{metadata: Object.metadata{{labels: {{'{label}': 'true'}}}}}}")}}]}),
        )
    };
    // What the first waits for is done by the last.
    let has =
        |label: &str| format!("has(object.metadata.labels) && '{label}' in object.metadata.labels");
    in_force(
        &cluster,
        &adds(
            "a-again",
            "IfNeeded",
            &format!("!has(object.metadata.labels) || {}", has("z")),
            "seen",
        ),
        &json!({}),
    );
    in_force(
        &cluster,
        &adds("b-once", "Never", &has("z"), "never"),
        &json!({}),
    );
    in_force(
        &cluster,
        &adds("z-last", "Never", "object.metadata.name == 'web'", "z"),
        &json!({}),
    );
    created(&cluster, &config_map("web", &json!({})));
    let labels = read(&cluster, "configmap web")["metadata"]["labels"].clone();
    assert_eq!(labels, json!({"seen": "true", "z": "true"}));
    // A patch that does not fit refuses, or does not matter.
    let wrong = |name: &str, policy: &str| {
        mutating(
            name,
            &constraints,
            &json!({"reinvocationPolicy": "Never", "failurePolicy": policy,
            "matchConditions": [{"name": "c", "expression": format!("object.metadata.name == '{name}'")}],
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{nothing: 1}"}}]}),
        )
    };
    in_force(&cluster, &wrong("ignored", "Ignore"), &json!({}));
    in_force(&cluster, &wrong("failing", "Fail"), &json!({}));
    created(&cluster, &config_map("ignored", &json!({})));
    let said = refused(&cluster, &config_map("failing", &json!({})));
    assert!(said.contains("policy 'failing' with binding 'failing' denied request: error applying patch: failed to convert patch object to typed object: .nothing: field not declared in schema"), "{said}");
}

#[test]
#[ignore = "needs root"]
fn actions_reasons_conditions_and_failures_of_policies() {
    let cluster = Cluster::started();
    let all = json!(["CREATE", "UPDATE", "DELETE"]);
    let of = |name: &str, spec: Value| {
        let mut spec = spec;
        let mut conditions =
            json!([{"name": "named", "expression": format!("request.name == '{name}'")}]);
        if let Some(more) = spec["matchConditions"].as_array() {
            conditions
                .as_array_mut()
                .unwrap()
                .extend(more.iter().cloned());
        }
        spec["matchConditions"] = conditions;
        validating(name, &rules("", "configmaps", &all), &spec)
    };
    let no = json!([{"expression": "false", "message": "no"}]);
    in_force(
        &cluster,
        &of(
            "forbidden",
            json!({"validations": [{"expression": "false", "message": "not you", "reason": "Forbidden"}]}),
        ),
        &json!({}),
    );
    let said = refused(&cluster, &config_map("forbidden", &json!({})));
    assert!(
        said.starts_with("Error from server (Forbidden): "),
        "{said}"
    );
    assert!(said.contains("configmaps \"forbidden\" is forbidden: ValidatingAdmissionPolicy 'forbidden' with binding 'forbidden' denied request: not you"), "{said}");
    in_force(
        &cluster,
        &of("warned", json!({"validations": no})),
        &json!({"validationActions": ["Warn", "Audit"]}),
    );
    let said = created(&cluster, &config_map("warned", &json!({})));
    assert!(said.contains("Warning: Validation failed for ValidatingAdmissionPolicy 'warned' with binding 'warned': no"), "{said}");
    assert!(
        cluster
            .daemon_log()
            .contains("validation.policy.admission.k8s.io/validation_failure")
    );
    // A deletion has an old object alone.
    in_force(
        &cluster,
        &of(
            "kept",
            json!({"validations": [
        {"expression": "request.operation != 'DELETE' || object == null && !('keep' in oldObject.data)", "messageExpression": "'keep: ' + oldObject.data.keep"}]}),
        ),
        &json!({}),
    );
    created(&cluster, &config_map("kept", &json!({"keep": "me"})));
    let said = text(&cluster.kubectl("delete configmap kept"));
    assert!(said.contains("denied request: keep: me"), "{said}");
    cluster.ok_with(&[
        "patch",
        "configmap",
        "kept",
        "-p",
        r#"{"data":{"keep":null,"a":"b"}}"#,
    ]);
    cluster.ok("delete configmap kept");
    // What fails refuses, unless the policy says otherwise.
    let failing = json!([{"expression": "object.data.nothing == 'a'"}]);
    in_force(
        &cluster,
        &of("fails", json!({"validations": failing})),
        &json!({}),
    );
    let said = refused(&cluster, &config_map("fails", &json!({"a": "b"})));
    assert!(said.contains("denied request: expression 'object.data.nothing == 'a'' resulted in error: no such key: nothing"), "{said}");
    in_force(
        &cluster,
        &of(
            "ignores",
            json!({"validations": failing, "failurePolicy": "Ignore"}),
        ),
        &json!({}),
    );
    created(&cluster, &config_map("ignores", &json!({"a": "b"})));
    // One condition that is false decides, also over one that fails.
    let conditions = |last: &str| json!([{"name": "fails", "expression": "object.data.nothing == 'a'"}, {"name": "last", "expression": last}]);
    in_force(
        &cluster,
        &of(
            "skipped",
            json!({"validations": no, "matchConditions": conditions("false")}),
        ),
        &json!({}),
    );
    created(&cluster, &config_map("skipped", &json!({"a": "b"})));
    in_force(
        &cluster,
        &of(
            "unsure",
            json!({"validations": no, "matchConditions": conditions("true")}),
        ),
        &json!({}),
    );
    let said = refused(&cluster, &config_map("unsure", &json!({"a": "b"})));
    assert!(
        said.contains("denied request: expression 'object.data.nothing == 'a'' resulted in error"),
        "{said}"
    );
    // What is excluded is not judged; policies do not judge policies.
    let mut excluding = of("excluded", json!({"validations": no}));
    excluding["spec"]["matchConstraints"]["excludeResourceRules"] = json!([{"apiGroups": [""], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["*"]}]);
    in_force(&cluster, &excluding, &json!({}));
    created(&cluster, &config_map("excluded", &json!({})));
    let everything = json!({"resourceRules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]}]});
    let own = json!({"matchConditions": [{"name": "own", "expression": "request.userInfo.username == 'kubernetes-admin'"}], "validations": no});
    in_force(
        &cluster,
        &validating("everything", &everything, &own),
        &json!({}),
    );
    let said = refused(&cluster, &config_map("anything", &json!({})));
    assert!(said.contains("'everything'"), "{said}");
    cluster.ok("auth can-i create pods");
    cluster.ok("delete validatingadmissionpolicybinding everything");
    created(&cluster, &config_map("anything", &json!({})));
    // Asked of the authorizer, about the user and about others.
    in_force(
        &cluster,
        &of(
            "asks",
            json!({"validations": [
        {"expression": "authorizer.requestResource.check('create').allowed()", "message": "first"},
        {"expression": "!authorizer.serviceAccount('default', 'default').group('').resource('configmaps').namespace('default').check('create').allowed()", "message": "second"},
        {"expression": "authorizer.path('/healthz').check('get').allowed()", "message": "third"},
        {"expression": "namespaceObject.metadata.name == 'default'", "message": "fourth"}]}),
        ),
        &json!({}),
    );
    created(&cluster, &config_map("asks", &json!({})));
    let said = text(&cluster.kubectl(
        "create configmap asks --dry-run=server --as=system:serviceaccount:default:default",
    ));
    assert!(said.contains("orbidden"), "{said}");
}

#[test]
#[ignore = "needs root"]
fn parameters_of_policies() {
    let cluster = Cluster::started();
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "limits.policies.example"}, "spec": {"group": "policies.example", "scope": "Cluster",
            "names": {"plural": "limits", "singular": "limit", "kind": "Limit", "listKind": "LimitList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "properties": {"most": {"type": "integer"}}}}}]}});
    created(&cluster, &definition);
    cluster.ok("wait crd/limits.policies.example --for=condition=Established --timeout=30s");
    let constraints = rules("apps", "deployments", &json!(["CREATE"]));
    let most = |name: &str, kind: Value, expression: &str| {
        validating(
            name,
            &constraints,
            &json!({"paramKind": kind,
            "matchConditions": [{"name": "named", "expression": format!("object.metadata.name.startsWith('{name}')")}],
            "validations": [{"expression": expression, "messageExpression": "'at most ' + string(params.most)"}]}),
        )
    };
    let limit = json!({"apiVersion": "policies.example/v1", "kind": "Limit"});
    let custom = most("custom", limit, "object.spec.replicas <= params.most");
    in_force(
        &cluster,
        &custom,
        &json!({"paramRef": {"name": "three", "parameterNotFoundAction": "Deny"}}),
    );
    let said = refused(&cluster, &deployment("custom", 2));
    assert!(said.contains("denied request: failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"), "{said}");
    created(
        &cluster,
        &json!({"apiVersion": "policies.example/v1", "kind": "Limit", "metadata": {"name": "three"}, "most": 3}),
    );
    created(&cluster, &deployment("custom", 3));
    let said = refused(&cluster, &deployment("custom-4", 4));
    assert!(said.contains("denied request: at most 3"), "{said}");
    // Custom resources are changed like others.
    let mutates = mutating(
        "grows",
        &rules("policies.example", "limits", &json!(["CREATE"])),
        &json!({"reinvocationPolicy": "Never", "mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{most: object.most + 1}"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression":
                "[JSONPatch{op: 'add', path: '/metadata/labels', value: {'grown': 'true'}}]"}}]}),
    );
    in_force(&cluster, &mutates, &json!({}));
    created(
        &cluster,
        &json!({"apiVersion": "policies.example/v1", "kind": "Limit", "metadata": {"name": "four"}, "most": 3}),
    );
    let grown = read(&cluster, "limit four");
    assert_eq!(
        (&grown["most"], &grown["metadata"]["labels"]["grown"]),
        (&json!(4), &json!("true"))
    );
    // A map in the namespace of the object; one that is missing allows.
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    let near = validating(
        "near",
        &constraints,
        &json!({"paramKind": map,
        "matchConditions": [{"name": "named", "expression": "object.metadata.name.startsWith('near')"}],
        "validations": [{"expression": "params == null || object.spec.replicas <= int(params.data.most)",
            "messageExpression": "'at most ' + params.data.most + ' by ' + params.kind"}]}),
    );
    in_force(
        &cluster,
        &near,
        &json!({"paramRef": {"name": "most", "parameterNotFoundAction": "Allow"}}),
    );
    created(&cluster, &deployment("near", 9));
    created(&cluster, &config_map("most", &json!({"most": "1"})));
    let said = refused(&cluster, &deployment("near-2", 2));
    assert!(
        said.contains("denied request: at most 1 by ConfigMap"),
        "{said}"
    );
    // Those that a selector finds: each must be content.
    let many = validating(
        "many",
        &constraints,
        &json!({"paramKind": map,
        "matchConditions": [{"name": "named", "expression": "object.metadata.name.startsWith('many')"}],
        "validations": [{"expression": "object.spec.replicas % int(params.data.by) == 0",
            "messageExpression": "'not divisible by ' + params.data.by"}]}),
    );
    in_force(
        &cluster,
        &many,
        &json!({"paramRef": {"namespace": "default", "selector": {"matchLabels": {"many": "yes"}}, "parameterNotFoundAction": "Deny"}}),
    );
    for by in ["2", "3"] {
        let mut map = config_map(&format!("by-{by}"), &json!({"by": by}));
        map["metadata"]["labels"] = json!({"many": "yes"});
        created(&cluster, &map);
    }
    created(&cluster, &deployment("many", 6));
    let said = refused(&cluster, &deployment("many-4", 4));
    assert!(said.contains("not divisible by 3"), "{said}");
    // Who may not read parameters may not have them read.
    cluster.ok("create clusterrole policies --verb=create,get,list --resource=validatingadmissionpolicies.admissionregistration.k8s.io,validatingadmissionpolicybindings.admissionregistration.k8s.io");
    cluster.ok("create clusterrolebinding policies --clusterrole=policies --user=jane");
    let secret = json!({"apiVersion": "v1", "kind": "Secret"});
    let peeks = validating(
        "peeks",
        &constraints,
        &json!({"paramKind": secret, "validations": [{"expression": "params.data.a != 'b'"}]}),
    );
    let said = text(&written(&cluster, "create", &peeks, "--as=jane"));
    assert!(said.contains("spec.paramKind: Forbidden: user jane must have \"get\" permission on all objects of the referenced paramKind (kind=Secret, apiVersion=v1)"), "{said}");
    let said = text(&written(
        &cluster,
        "create",
        &bound(
            &near,
            &json!({"paramRef": {"name": "most", "parameterNotFoundAction": "Allow"}}),
        ),
        "--as=jane",
    ));
    assert!(said.contains("spec.paramRef: Forbidden: user jane does not have \"get\" permission on the object referenced by paramRef"), "{said}");
}

fn configuration(kind: &str, conditions: &Value) -> Value {
    json!({"apiVersion": GROUP, "kind": kind, "metadata": {"name": "match"}, "webhooks": [{
        "name": "match.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 1,
        // Nobody answers there: a request that is asked about fails.
        "clientConfig": {"url": "https://127.0.0.1:9/"},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
        "matchConditions": conditions}]})
}

#[test]
#[ignore = "needs root"]
fn conforms_admission_webhook_match_conditions() {
    let cluster = Cluster::started();
    for kind in [
        "MutatingWebhookConfiguration",
        "ValidatingWebhookConfiguration",
    ] {
        // should reject … webhook configurations with invalid match conditions
        let said = refused(
            &cluster,
            &configuration(
                kind,
                &json!([{"name": "invalid-expression-1", "expression": "... [] bad expression"}]),
            ),
        );
        assert!(said.contains("webhooks[0].matchConditions[0].expression: Invalid value: \"... [] bad expression\": compilation failed"), "{said}");
        // should be able to create and update … webhook configurations with match conditions
        let one = json!([{"name": "expression-1", "expression": "object.metadata.namespace == 'production'"}]);
        created(&cluster, &configuration(kind, &one));
        let stored = |want: &Value| {
            let stored = read(&cluster, &format!("{kind} match"));
            assert_eq!(&stored["webhooks"][0]["matchConditions"], want);
        };
        stored(&one);
        created(&cluster, &config_map("skipped", &json!({})));
        cluster.ok("delete configmap skipped");
        let two = json!([{"name": "expression-1", "expression": "object.metadata.name == 'asked'"},
            {"name": "expression-2", "expression": "request.userInfo.username == 'kubernetes-admin'"}]);
        let output = written(&cluster, "apply", &configuration(kind, &two), "");
        assert!(output.status.success(), "{}", text(&output));
        stored(&two);
        let said = refused(&cluster, &config_map("asked", &json!({})));
        assert!(
            said.contains("failed calling webhook \"match.example.com\""),
            "{said}"
        );
        created(&cluster, &config_map("another", &json!({})));
        cluster.ok("delete configmap another");
        // A condition that fails, with one that is true.
        let fails = json!([{"name": "fails", "expression": "object.data.nothing == 'a'"}]);
        let output = written(&cluster, "apply", &configuration(kind, &fails), "");
        assert!(output.status.success(), "{}", text(&output));
        let said = refused(&cluster, &config_map("unsure", &json!({"a": "b"})));
        assert!(said.starts_with("Error from server (Forbidden)") && said.contains("configmaps \"unsure\" is forbidden: expression 'object.data.nothing == 'a'' resulted in error: no such key: nothing"), "{said}");
        let mut ignores = configuration(kind, &fails);
        ignores["webhooks"][0]["failurePolicy"] = "Ignore".into();
        let output = written(&cluster, "apply", &ignores, "");
        assert!(output.status.success(), "{}", text(&output));
        created(&cluster, &config_map("unsure", &json!({"a": "b"})));
        cluster.ok("delete configmap unsure");
        cluster.ok(&format!("delete {kind} match"));
        // What is wrong with names.
        let many: Vec<Value> = (0..65)
            .map(|at| json!({"name": format!("n{at}"), "expression": "true"}))
            .collect();
        for (conditions, want) in [
            (
                json!(many),
                "webhooks[0].matchConditions: Too many: 65: must have at most 64 items",
            ),
            (
                json!([{"name": "a", "expression": "true"}, {"name": "a", "expression": "true"}]),
                "webhooks[0].matchConditions[1].name: Duplicate value: \"a\"",
            ),
            (
                json!([{"name": "a b", "expression": "true"}]),
                "webhooks[0].matchConditions[0].name: Invalid value: \"a b\"",
            ),
            (
                json!([{"name": "a", "expression": "1"}]),
                "must evaluate to bool but got int",
            ),
            (
                json!([{"name": "a", "expression": "params.x"}]),
                "undeclared reference to 'params'",
            ),
        ] {
            let said = refused(&cluster, &configuration(kind, &conditions));
            assert!(said.contains(want), "{said}");
        }
    }
}

/// What would run for long is refused when it is written, or cut off when it runs.
#[test]
#[ignore = "needs root"]
fn hostile_policies_hold_nobody_up() {
    let cluster = Cluster::started();
    let list = format!("[{}]", vec!["1"; 200].join(","));
    let constraints = rules("", "configmaps", &json!(["CREATE"]));
    let deep = format!("{}true{}", "(".repeat(10_000), ")".repeat(10_000));
    let long = format!("'{}' == ''", "a".repeat(1_000_000));
    for expression in [deep.as_str(), long.as_str()] {
        let begun = Instant::now();
        let spec = json!({"validations": [{"expression": expression}]});
        refused(&cluster, &validating("hostile", &constraints, &spec));
        assert!(begun.elapsed() < lab::patiently(Duration::from_secs(5)));
    }
    let slow = format!("{list}.all(a, {list}.all(b, {list}.all(c, a + b + c < 1000)))");
    let spec = json!({"validations": [{"expression": slow}]});
    in_force(
        &cluster,
        &validating("slow", &constraints, &spec),
        &json!({}),
    );
    let begun = Instant::now();
    let said = refused(&cluster, &config_map("any", &json!({})));
    let took = begun.elapsed();
    assert!(
        said.contains("resulted in error: operation cancelled: actual cost limit exceeded"),
        "{said}"
    );
    assert!(took < lab::patiently(Duration::from_secs(5)), "{took:?}");
}
