use serde_json::{Value, json};

use super::{compile, evaluate};
use crate::apiserver::registry::{Causes, custom::schema::Tree};

/// Violations, and after `!` what is only told.
fn broken(schema: &Value, object: &Value, old: Option<&Value>) -> Vec<String> {
    let rules = compile(schema).expect("there are rules");
    let mut causes = Causes::default();
    let tree = Tree::schema(schema);
    let warnings = evaluate(&rules, &tree, object, old, &mut causes);
    let causes = causes.0.iter();
    let mut found: Vec<String> = causes
        .map(|cause| format!("{:?} {}: {}", cause.reason, cause.field, cause.message))
        .collect();
    found.extend(warnings.into_iter().map(|warning| format!("!{warning}")));
    found
}

fn spec(rules: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "n": {"type": "integer"}, "max": {"type": "integer"}, "s": {"type": "string"},
    }, "x-kubernetes-validations": rules}}})
}

#[test]
fn messages_reasons_and_places() {
    let object = json!({"spec": {"n": 5, "max": 3, "s": "x"}});
    for (rule, want) in [
        (
            json!({"rule": "self.n <= self.max"}),
            "FieldValueInvalid spec: Invalid value: failed rule: self.n <= self.max",
        ),
        (
            json!({"rule": "self.n <= self.max", "message": " too many "}),
            "FieldValueInvalid spec: Invalid value: too many",
        ),
        (
            json!({"rule": "self.n <= self.max", "messageExpression": "string(self.n) + ' is more than ' + string(self.max)"}),
            "FieldValueInvalid spec: Invalid value: 5 is more than 3",
        ),
        // What makes no message leaves the message, or the rule.
        (
            json!({"rule": "self.n <= self.max", "message": "m", "messageExpression": "''"}),
            "FieldValueInvalid spec: Invalid value: m",
        ),
        (
            json!({"rule": "self.n <= self.max", "messageExpression": "string(1 / (self.n - 5))"}),
            "FieldValueInvalid spec: Invalid value: failed rule: self.n <= self.max",
        ),
        (
            json!({"rule": "self.n <= self.max", "reason": "FieldValueRequired", "message": "m"}),
            "FieldValueRequired spec: Required value: m",
        ),
        (
            json!({"rule": "self.n <= self.max", "reason": "FieldValueForbidden", "message": "m"}),
            "FieldValueForbidden spec: Forbidden: m",
        ),
        (
            json!({"rule": "self.n <= self.max", "reason": "FieldValueDuplicate", "message": "m"}),
            "FieldValueDuplicate spec: Duplicate value",
        ),
        (
            json!({"rule": "self.n <= self.max", "fieldPath": ".n", "message": "m"}),
            "FieldValueInvalid spec.n: Invalid value: m",
        ),
        (
            json!({"rule": "1 / (self.n - 5) == 1"}),
            "FieldValueInvalid spec: Invalid value: \"object\": division by zero evaluating rule: 1 / (self.n - 5) == 1",
        ),
        (
            json!({"rule": "self.gone == 1"}),
            "FieldValueInvalid spec: Invalid value: \"object\": rule compile error: compilation failed: ERROR: <input>:1:5: undefined field 'gone'\n | self.gone == 1\n | ....^",
        ),
    ] {
        assert_eq!(
            broken(&spec(json!([rule])), &object, None),
            [want],
            "{rule}"
        );
    }
    let scalar = json!({"type": "object", "properties": {"s": {"type": "string",
        "x-kubernetes-validations": [{"rule": "self == 'a'", "message": "m"}]}}});
    let found = broken(&scalar, &json!({"s": "b"}), None);
    assert_eq!(found, ["FieldValueInvalid s: Invalid value: \"b\": m"]);
    assert!(broken(&scalar, &json!({"s": "a"}), None).is_empty());
    assert!(broken(&scalar, &json!({}), None).is_empty());
}

#[test]
fn the_root_knows_its_names() {
    let schema = json!({"type": "object", "x-kubernetes-validations": [
        {"rule": "self.metadata.name == 'a' || self.metadata.generateName == 'x-'", "message": "m"}]});
    let named = |name: &str| json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": name, "labels": {}}});
    assert!(broken(&schema, &named("a"), None).is_empty());
    let found = broken(&schema, &named("b"), None);
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with("FieldValueInvalid <nil>: "),
        "{found:?}"
    );
    let embedded = json!({"type": "object", "properties": {"t": {"type": "object",
        "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true,
        "x-kubernetes-validations": [{"rule": "self.kind == 'Pod' && self.metadata.name == 'p'"}]}}});
    let of =
        |kind: &str| json!({"t": {"apiVersion": "v1", "kind": kind, "metadata": {"name": "p"}}});
    assert!(broken(&embedded, &of("Pod"), None).is_empty());
    assert_eq!(broken(&embedded, &of("Job"), None).len(), 1);
}

#[test]
fn transitions_are_about_what_was_there() {
    let rules = json!([{"rule": "self.n >= oldSelf.n", "message": "grows"}]);
    let schema = spec(rules);
    let at = |n: i64| json!({"spec": {"n": n}});
    assert!(broken(&schema, &at(1), None).is_empty());
    assert!(broken(&schema, &at(2), Some(&at(1))).is_empty());
    assert_eq!(broken(&schema, &at(1), Some(&at(2))).len(), 1);
    assert!(broken(&schema, &at(1), Some(&json!({}))).is_empty());
    // With an optional `oldSelf` also a new value is looked at.
    let rule = "oldSelf.hasValue() ? self.n >= oldSelf.value().n : self.n == 0";
    let schema = spec(json!([{"rule": rule, "optionalOldSelf": true}]));
    assert!(broken(&schema, &at(0), None).is_empty());
    assert_eq!(broken(&schema, &at(1), None).len(), 1);
    assert!(broken(&schema, &at(5), Some(&at(1))).is_empty());
    assert_eq!(broken(&schema, &at(1), Some(&at(5))).len(), 1);
    // Items are told apart by their keys, and by nothing else.
    let list = |kind: Value| {
        let mut list = json!({"type": "array", "items": {"type": "object", "properties": {
            "k": {"type": "string"}, "v": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.v == oldSelf.v", "message": "fixed"}]}});
        if kind == "map" {
            list["x-kubernetes-list-type"] = kind;
            list["x-kubernetes-list-map-keys"] = json!(["k"]);
        }
        json!({"type": "object", "properties": {"l": list}})
    };
    let items = |items: Value| json!({"l": items});
    let old = items(json!([{"k": "a", "v": 1}, {"k": "b", "v": 2}]));
    let new = items(json!([{"k": "b", "v": 3}, {"k": "a", "v": 1}, {"k": "c", "v": 9}]));
    let found = broken(&list(json!("map")), &new, Some(&old));
    assert_eq!(found, ["FieldValueInvalid l[0]: Invalid value: fixed"]);
    assert!(broken(&list(json!(null)), &new, Some(&old)).is_empty());
}

#[test]
fn what_has_not_changed_is_only_told() {
    let schema = spec(json!([{"rule": "self.n <= 3", "message": "m"}]));
    let at = |n: i64, s: &str| json!({"spec": {"n": n}, "other": s});
    let found = broken(&schema, &at(5, "new"), Some(&at(5, "old")));
    assert_eq!(found, ["!spec: Invalid value: m"]);
    let found = broken(&schema, &at(6, "new"), Some(&at(5, "old")));
    assert_eq!(found, ["FieldValueInvalid spec: Invalid value: m"]);
    // The items of a plain list are as the whole list is.
    let list = json!({"type": "object", "properties": {"l": {"type": "array", "items": {
        "type": "integer", "x-kubernetes-validations": [{"rule": "self < 3", "message": "m"}]}}}});
    let old = json!({"l": [1, 5]});
    assert_eq!(
        broken(&list, &old, Some(&old)),
        ["!l[1]: Invalid value: 5: m"]
    );
    let found = broken(&list, &json!({"l": [1, 5, 2]}), Some(&old));
    assert_eq!(found, ["FieldValueInvalid l[1]: Invalid value: 5: m"]);
}

#[test]
fn an_object_has_one_budget() {
    let rule = "self.all(a, self.all(b, self.all(c, a != b || b != c || a == c)))";
    let list = |rule: &str| {
        json!({"type": "object", "properties": {
            "l": {"type": "array", "items": {"type": "integer"},
                "x-kubernetes-validations": [{"rule": rule, "message": "m"}, {"rule": "false"}]}}})
    };
    let numbers = |count: i64| json!({"l": (0..count).collect::<Vec<_>>()});
    let begun = crate::testing::cpu_time();
    let found = broken(&list(rule), &numbers(1000), None);
    let took = crate::testing::cpu_time() - begun;
    assert_eq!(
        found,
        [
            "FieldValueInvalid l: Invalid value: \"array\": 'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: m"
        ]
    );
    assert!(took.as_secs() < 5, "{took:?}");
    // Many rules share what there is.
    let many: Vec<Value> = (0..40)
        .map(|at| json!({"rule": format!("self.all(a, self.all(b, a != b || a == {at} || b == {at} || true))")}))
        .collect();
    let schema = json!({"type": "object", "properties": {"l": {"type": "array",
        "items": {"type": "integer"}, "x-kubernetes-validations": many}}});
    let found = broken(&schema, &numbers(400), None);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("running out of cost budget") || found[0].contains("cost exceeds limit"),
        "{found:?}"
    );
}
