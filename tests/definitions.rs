//! Definitions as operators bring them, and their objects, through stock kubectl. The shapes are those
//! of cert-manager, istio, gateway-api, prometheus-operator, cnpg, kyverno, cluster-api and others;
//! the definitions are our own.

mod lab;

use std::time::{Duration, Instant};

use lab::{Cluster, text};
use serde_json::{Value, json};

const GROUP: &str = "shapes.example.com";

/// A definition of one version with a schema, and an object that fits.
struct Shape {
    kind: &'static str,
    version: Value,
    object: Value,
}

/// With its status as a subresource, and what every operator's generator writes.
fn version(spec: Value, more: &Value) -> Value {
    let mut version = json!({"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"jsonPath": ".status.conditions[?(@.type==\"Ready\")].status", "name": "Ready", "type": "string"},
            {"jsonPath": ".metadata.creationTimestamp", "name": "Age", "type": "date", "description": "CreationTimestamp is a timestamp"}],
        "schema": {"openAPIV3Schema": {"description": "Of a shape.", "type": "object", "required": ["spec"], "properties": {
            "apiVersion": {"type": "string", "description": "APIVersion defines the versioned schema"},
            "kind": {"type": "string"}, "metadata": {"type": "object"}, "spec": spec,
            "status": {"type": "object", "properties": {
                "observedGeneration": {"type": "integer", "format": "int64"},
                "conditions": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
                    "items": {"type": "object", "required": ["type", "status"], "properties": {
                        "type": {"type": "string"}, "reason": {"type": "string"},
                        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                        "lastTransitionTime": {"type": "string", "format": "date-time"}}}}}}}}}});
    for (name, value) in more.as_object().into_iter().flatten() {
        version[name] = value.clone();
    }
    version
}

fn shapes() -> Vec<Shape> {
    let none = json!({});
    let int_or_string = json!({"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true});
    let quantity = json!({"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true,
        "pattern": "^(\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))))?$"});
    vec![
        // Issuers: one of several members, secrets by name, defaults below.
        Shape {
            kind: "Issuer",
            version: version(
                json!({"type": "object", "properties": {
                    "acme": {"type": "object", "required": ["server"], "properties": {"server": {"type": "string"},
                        "privateKey": {"type": "object", "properties": {"name": {"type": "string", "default": ""}}, "x-kubernetes-map-type": "atomic"}}},
                    "selfSigned": {"type": "object", "properties": {"urls": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic"}}},
                    "duration": {"type": "string"}, "usages": {"type": "array", "items": {"type": "string", "enum": ["signing", "server auth"]}}}}),
                &json!({"selectableFields": [{"jsonPath": ".spec.acme.server"}]}),
            ),
            object: json!({"acme": {"server": "https://a.example.com", "privateKey": {}}, "usages": ["server auth"]}),
        },
        // Gateways: rules over lists, exactly one of, ports by number.
        Shape {
            kind: "Gateway",
            version: version(
                json!({"type": "object", "required": ["listeners"], "properties": {"listeners": {
                    "type": "array", "minItems": 1, "maxItems": 64, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                    "x-kubernetes-validations": [
                        {"rule": "self.all(l, l.protocol in ['HTTP', 'TCP', 'UDP'] ? !has(l.tls) : true)", "message": "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']"},
                        {"rule": "self.all(l1, self.exists_one(l2, l1.name == l2.name))", "message": "Listener name must be unique within the Gateway"}],
                    "items": {"type": "object", "required": ["name", "port", "protocol"], "properties": {
                        "name": {"type": "string", "minLength": 1, "maxLength": 253, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"},
                        "port": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535},
                        "protocol": {"type": "string", "minLength": 1, "maxLength": 255},
                        "tls": {"type": "object", "properties": {"mode": {"type": "string", "default": "Terminate", "enum": ["Terminate", "Passthrough"]}},
                            "x-kubernetes-validations": [{"rule": "self.mode == 'Terminate' ? true : has(self.mode)", "message": "a mode is wanted"}]}}}}}}),
                &none,
            ),
            object: json!({"listeners": [{"name": "web", "port": 80, "protocol": "HTTP"}]}),
        },
        // Monitors and pod templates: everything of a pod, kept as it comes.
        Shape {
            kind: "Workload",
            version: version(
                json!({"type": "object", "properties": {
                    "template": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "x-kubernetes-embedded-resource": true},
                    "resources": {"type": "object", "additionalProperties": quantity.clone()},
                    "targetPort": int_or_string,
                    "replicas": {"type": "integer", "format": "int32", "default": 1, "minimum": 0},
                    "selector": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}}},
                    "size": quantity}}),
                &json!({"subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.observedGeneration"}}}),
            ),
            object: json!({"template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"anything": [1, {"a": 2}]}},
                "resources": {"cpu": "100m", "memory": 1}, "targetPort": "http", "size": "1Gi", "selector": {"matchLabels": {"a": "b"}}}),
        },
        // Databases: what must not change, what only grows, rules with words of their own.
        Shape {
            kind: "Database",
            version: version(
                json!({"type": "object", "required": ["storage"], "properties": {
                    "storage": {"type": "object", "properties": {"class": {"type": "string", "maxLength": 63}, "gigabytes": {"type": "integer"}}, "x-kubernetes-validations": [
                        {"rule": "!has(oldSelf.class) || has(self.class)", "message": "the class stays"},
                        {"rule": "self.gigabytes >= oldSelf.gigabytes", "messageExpression": "'%d GB is less than %d'.format([self.gigabytes, oldSelf.gigabytes])", "fieldPath": ".gigabytes", "reason": "FieldValueForbidden"}]},
                    "parameters": {"type": "object", "additionalProperties": {"type": "string"}},
                    "backup": {"type": "object", "nullable": true, "properties": {"schedule": {"type": "string"}}}}}),
                &none,
            ),
            object: json!({"storage": {"class": "local", "gigabytes": 5}, "parameters": {"max_connections": "100"}}),
        },
        // Policies: schemas of anything, alternatives, deep nesting.
        Shape {
            kind: "Rule",
            version: version(
                json!({"type": "object", "properties": {
                    "match": {"type": "object", "not": {"required": ["any", "all"]}, "properties": {
                        "any": {"type": "array", "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
                        "all": {"type": "array", "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
                    "pattern": {"x-kubernetes-preserve-unknown-fields": true},
                    "source": {"type": "object", "oneOf": [{"required": ["git"]}, {"required": ["oci"]}], "properties": {
                        "git": {"type": "string", "format": "uri"}, "oci": {"type": "string"}}}}}),
                &none,
            ),
            object: json!({"match": {"any": [{"kinds": ["Pod"]}]}, "pattern": [{"x": ["?*"]}], "source": {"git": "https://a.example.com/b"}}),
        },
    ]
}

fn plural(kind: &str) -> String {
    format!("{}s", kind.to_lowercase()).replace("ys", "ies")
}

fn definition(shape: &Shape) -> Value {
    let plural = plural(shape.kind);
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{GROUP}"), "annotations": {"controller-gen.kubebuilder.io/version": "v0.17.0"}},
        "spec": {"group": GROUP, "scope": "Namespaced", "versions": [shape.version],
            "names": {"kind": shape.kind, "listKind": format!("{}List", shape.kind), "plural": plural, "singular": shape.kind.to_lowercase(), "categories": ["shapes"]}}})
}

fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn apply(cluster: &Cluster, what: &Value, how: &str) -> String {
    let file = cluster.root.path().join("applied.json");
    std::fs::write(&file, what.to_string()).unwrap();
    let said = cluster.ok(&format!("apply {how} -f {}", file.display()));
    said.trim_end().to_owned()
}

/// Revisions of everything of a kind.
fn revisions(cluster: &Cluster, what: &str) -> String {
    let path = "-o jsonpath={range.items[*]}{.metadata.name}={.metadata.resourceVersion},{end}";
    cluster.ok(&format!("get {what} {path}"))
}

#[test]
#[ignore = "needs root"]
fn definitions_and_their_objects_are_applied_read_and_deleted() {
    let cluster = Cluster::started();
    let shapes = shapes();
    let definitions = list(shapes.iter().map(definition).collect());
    apply(&cluster, &definitions, "--server-side");
    cluster.ok("wait --for=condition=Established crd --all --timeout=30s");
    let before = revisions(&cluster, "crd");
    apply(&cluster, &definitions, "--server-side");
    assert_eq!(revisions(&cluster, "crd"), before, "applied twice");
    apply(&cluster, &definitions, "");
    let said = apply(&cluster, &definitions, "");
    for line in said.lines() {
        assert!(line.ends_with(" unchanged"), "{line}");
    }
    for shape in &shapes {
        let resource = format!("{}.{GROUP}", plural(shape.kind));
        let mut object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": shape.kind,
            "metadata": {"name": "one"}, "spec": shape.object});
        assert!(apply(&cluster, &object, "").ends_with(" created"));
        assert!(
            apply(&cluster, &object, "").ends_with(" unchanged"),
            "{object}"
        );
        let read: Value =
            serde_json::from_str(&cluster.ok(&format!("get {resource} one -o json"))).unwrap();
        contains(&read["spec"], &shape.object, shape.kind);
        object["metadata"]["labels"] = json!({"edited": "yes"});
        assert!(apply(&cluster, &object, "").ends_with(" configured"));
        let said = apply(&cluster, &object, "--server-side --force-conflicts");
        assert!(said.ends_with(" serverside-applied"));
        assert!(
            cluster
                .ok(&format!("get {resource} -l edited=yes"))
                .contains("READY")
        );
        cluster.ok(&format!("explain {resource}.spec"));
        cluster.ok(&format!("delete {resource} one"));
    }
    cluster.ok("get shapes");
    cluster.ok("delete crd --all");
    let said = text(&cluster.kubectl("get shapes"));
    assert!(
        said.contains("the server doesn't have a resource type"),
        "{said}"
    );
}

/// Everything of `part` is in `whole`, which may have more members.
fn contains(whole: &Value, part: &Value, what: &str) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (name, part) in part {
                contains(&whole[name], part, what);
            }
        }
        _ => assert_eq!(whole, part, "{what}"),
    }
}

#[test]
#[ignore = "needs root"]
fn changes_that_a_definition_forbids_are_refused_in_its_words() {
    let cluster = Cluster::started();
    let shapes = shapes();
    apply(&cluster, &list(shapes.iter().map(definition).collect()), "");
    cluster.ok("wait --for=condition=Established crd --all --timeout=30s");
    let write = |kind: &str, spec: &Value| {
        let object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": {"name": "one"}, "spec": spec});
        let file = cluster.root.path().join("object.json");
        std::fs::write(&file, object.to_string()).unwrap();
        text(&cluster.kubectl(&format!("apply -f {}", file.display())))
    };
    for shape in &shapes {
        let said = write(shape.kind, &shape.object);
        assert!(said.contains("created"), "{said}");
    }
    for (kind, spec, words) in [
        (
            "Issuer",
            json!({"usages": ["client auth"]}),
            "Unsupported value: \"client auth\": supported values: \"signing\", \"server auth\"",
        ),
        (
            "Gateway",
            json!({"listeners": []}),
            "spec.listeners in body should have at least 1 items",
        ),
        (
            "Gateway",
            json!({"listeners": [{"name": "web", "port": 80, "protocol": "HTTP", "tls": {}}]}),
            "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']",
        ),
        (
            "Gateway",
            json!({"listeners": [{"name": "a", "port": 80, "protocol": "HTTP"}, {"name": "a", "port": 81, "protocol": "HTTP"}]}),
            "spec.listeners[1]: Duplicate value",
        ),
        (
            "Gateway",
            json!({"listeners": [{"name": "A", "port": 80, "protocol": "HTTP"}]}),
            "spec.listeners[0].name in body should match",
        ),
        (
            "Workload",
            json!({"template": {"metadata": {"name": "p"}}}),
            "spec.template.apiVersion: Required value",
        ),
        (
            "Workload",
            json!({"size": "1Gb"}),
            "spec.size in body should match",
        ),
        (
            "Workload",
            json!({"targetPort": 1.5}),
            "spec.targetPort in body must be of type integer,string",
        ),
        (
            "Database",
            json!({"storage": {"class": "local", "gigabytes": 4}}),
            "spec.storage.gigabytes: Forbidden: 4 GB is less than 5",
        ),
        (
            "Database",
            json!({"storage": {"class": null, "gigabytes": 5}}),
            "the class stays",
        ),
        (
            "Rule",
            json!({"source": {"git": "https://a.example.com", "oci": "b"}}),
            "<nil>: Invalid value: \"\": \"spec.source\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
        ),
        (
            "Rule",
            json!({"match": {"any": [], "all": []}}),
            "<nil>: Invalid value: \"\": \"spec.match\" must not validate the schema (not)",
        ),
    ] {
        let said = write(kind, &spec);
        assert!(said.contains(words), "{kind} {spec}: {said}");
    }
}

/// Of a definition whose schema has this rule.
fn with_rule(rule: &str) -> Value {
    let spec = json!({"type": "object", "properties": {"list": {"type": "array", "items": {"type": "string"}}, "text": {"type": "string"}},
        "x-kubernetes-validations": [{"rule": rule}]});
    let version = version(spec, &json!({}));
    definition(&Shape {
        kind: "Hostile",
        version,
        object: Value::Null,
    })
}

#[test]
#[ignore = "needs root"]
fn hostile_rules_are_refused_before_they_run() {
    let cluster = Cluster::started();
    let deep = format!("{}true{}", "(".repeat(5000), ")".repeat(5000));
    let long = format!("self.text == '{}'", "x".repeat(1 << 20));
    let quadratic =
        "self.list.all(a, self.list.all(b, self.list.all(c, self.list.all(d, a + b == c + d))))";
    let wide = vec!["self.list.exists(x, x == self.text)"; 2000].join(" || ");
    for (rule, words) in [
        (deep.as_str(), "spec.validations[0].rule"),
        (&long, "characters together"),
        (quadratic, "exceeds budget by factor"),
        (&wide, "x-kubernetes-validations[0].rule"),
        ("self.list.map(x, self.list)", "must evaluate to a bool"),
        ("self.nothing == 1", "undefined field 'nothing'"),
    ] {
        let words = words.trim_start_matches("spec.validations");
        let file = cluster.root.path().join("hostile.json");
        std::fs::write(&file, with_rule(rule).to_string()).unwrap();
        let begun = Instant::now();
        let said = text(&cluster.kubectl(&format!("create -f {}", file.display())));
        let took = begun.elapsed();
        assert!(said.contains(words), "{rule:.60}: {said:.900}");
        assert!(
            said.contains("is invalid") || said.contains("too large"),
            "{said:.900}"
        );
        // With kubectl's own start, in a debug build, on a busy machine.
        assert!(took < Duration::from_secs(5), "{rule:.60} took {took:?}");
    }
}
