use serde_json::{Value, json};

use super::{Before, schema as check_schema, selectable_fields};
use crate::apiserver::registry::Causes;

fn found(causes: Causes) -> Vec<String> {
    let causes = causes.0.iter();
    causes
        .map(|cause| format!("{}: {}", cause.field, cause.message))
        .collect()
}

fn problems(schema: &Value) -> Vec<String> {
    let mut causes = Causes::default();
    check_schema(schema, "s", false, &Before::default(), false, &mut causes);
    found(causes)
}

fn of(properties: Value) -> Value {
    json!({"type": "object", "properties": properties})
}

#[test]
fn structure() {
    for (schema, want) in [
        (of(json!({"a": {"type": "string"}})), ""),
        (
            json!({"type": "string"}),
            "s.type: Invalid value: \"string\": must be object at the root",
        ),
        (
            json!({}),
            "s.type: Required value: must not be empty at the root",
        ),
        (
            of(json!({"a": {}})),
            "s.properties[a].type: Required value: must not be empty for specified object fields",
        ),
        (
            of(json!({"a": {"type": "array"}})),
            "s.properties[a].items: Required value: must be specified",
        ),
        (
            of(json!({"a": {"type": "array", "items": {}}})),
            "s.properties[a].items.type: Required value: must not be empty for specified array items",
        ),
        (
            of(json!({"a": {"type": "integer", "default": "x"}})),
            "s.properties[a].default: Invalid value: \"string\": s.properties[a].default in body must be of type integer: \"string\"",
        ),
        (
            of(
                json!({"a": {"type": "object", "properties": {"b": {"type": "string"}}, "default": {"c": 1}}}),
            ),
            "s.properties[a].default: Invalid value: {\"c\":1}: must not have unknown fields",
        ),
        (
            of(json!({"a": {"type": "string", "anyOf": [{"type": "string"}]}})),
            "s.properties[a].anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            of(
                json!({"a": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}}),
            ),
            "",
        ),
        (
            of(json!({"a": {"x-kubernetes-int-or-string": true, "allOf": [
                {"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"pattern": "x"}]}})),
            "",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "oneOf": [{"required": ["a"]}, {"properties": {"b": {"minLength": 1}}}]}),
            "s.properties[b]: Required value: because it is defined in s.oneOf[1].properties[b]",
        ),
        (
            of(
                json!({"metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}}}),
            ),
            "",
        ),
        (
            of(
                json!({"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}),
            ),
            "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
        ),
        (
            of(json!({"a": {"type": "object", "x-kubernetes-embedded-resource": true}})),
            "s.properties[a].properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ),
        (
            of(json!({"a": {"type": "array", "uniqueItems": true, "items": {"type": "string"}}})),
            "s.properties[a].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ),
        (
            of(
                json!({"a": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}}}}}),
            ),
            "s.properties[a].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
        ),
    ] {
        assert_eq!(problems(&schema).join("; "), want, "{schema}");
    }
}

fn ruled(rule: Value) -> Value {
    of(json!({"spec": {"type": "object", "properties": {
        "n": {"type": "integer"}, "s": {"type": "string", "maxLength": 10},
        "list": {"type": "array", "items": {"type": "string"}},
        "free": {"x-kubernetes-preserve-unknown-fields": true},
    }, "x-kubernetes-validations": [rule]}}))
}

#[test]
fn rules() {
    let at = "s.properties[spec].x-kubernetes-validations[0]";
    for (rule, want) in [
        (json!({"rule": "self.n > 0"}), String::new()),
        (
            json!({"rule": "self.n > 0", "fieldPath": ".n", "reason": "FieldValueForbidden"}),
            String::new(),
        ),
        (
            json!({"rule": " "}),
            format!("{at}.rule: Required value: rule is not specified"),
        ),
        (
            json!({"rule": "self.n > 0", "message": "a\nb"}),
            format!("{at}.message: Invalid value: \"a\\nb\": must not contain line breaks"),
        ),
        (
            json!({"rule": "self.n >\n0"}),
            format!(
                "{at}.message: Required value: message must be specified if rule contains line breaks"
            ),
        ),
        (
            json!({"rule": "self.n > 0", "reason": "Other"}),
            format!(
                "{at}.reason: Unsupported value: \"Other\": supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\""
            ),
        ),
        (
            json!({"rule": "self.n > 0", "fieldPath": ".gone"}),
            format!("{at}.fieldPath: Invalid value: \".gone\": must be a valid path"),
        ),
        (
            json!({"rule": "self.n"}),
            format!(
                "{at}.rule: Invalid value: apiextensions.ValidationRule{{Rule:\"self.n\", Message:\"\", MessageExpression:\"\", Reason:(*apiextensions.FieldValueErrorReason)(nil), FieldPath:\"\", OptionalOldSelf:(*bool)(nil)}}: cel expression must evaluate to a bool"
            ),
        ),
        (
            json!({"rule": "self.n > 0", "optionalOldSelf": true}),
            format!(
                "{at}.optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule"
            ),
        ),
        (
            json!({"rule": "self.list.all(a, self.list.all(b, a == b))"}),
            format!(
                "{at}.rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared); s.properties[spec].x-kubernetes-validations[0].rule: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema; s: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
            ),
        ),
    ] {
        assert_eq!(problems(&ruled(rule.clone())).join("; "), want, "{rule}");
    }
    let found = problems(&ruled(json!({"rule": "self.gone == 1"})));
    assert!(
        found[0].contains("compilation failed: ERROR: <input>:1:5: undefined field 'gone'"),
        "{found:?}"
    );
    let found = problems(&ruled(
        json!({"rule": "true", "messageExpression": "self.n"}),
    ));
    assert!(
        found[0].ends_with("messageExpression must evaluate to a string"),
        "{found:?}"
    );
    let part = of(
        json!({"a": {"type": "string", "allOf": [{"x-kubernetes-validations": [{"rule": "true"}]}]}}),
    );
    let want = "s.properties[a].allOf[0].x-kubernetes-validations: Forbidden: must be empty to be structural";
    assert_eq!(problems(&part), [want]);
}

#[test]
fn what_was_before_is_known_only_of_some() {
    let rule = json!([{"rule": "self == oldSelf"}]);
    let list = of(
        json!({"l": {"type": "array", "maxItems": 5, "items": {"type": "string",
        "maxLength": 5, "x-kubernetes-validations": rule}}}),
    );
    let want = "s.properties[l].items.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[l]";
    assert_eq!(problems(&list), [want]);
    let keyed = of(
        json!({"l": {"type": "array", "maxItems": 5, "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "required": ["k"],
        "properties": {"k": {"type": "string", "maxLength": 5}}, "x-kubernetes-validations": rule}}}),
    );
    assert_eq!(problems(&keyed), [""; 0]);
}

#[test]
fn rules_that_are_stored_are_taken() {
    let schema = ruled(json!({"rule": "self.list.all(a, self.list.all(b, a == b))"}));
    let mut causes = Causes::default();
    check_schema(&schema, "s", false, &Before::default(), true, &mut causes);
    // The sum of all is not forgiven, as in the original.
    assert!(
        found(causes)
            .iter()
            .all(|one| !one.contains("estimated rule cost exceeds"))
    );
}

#[test]
fn defaults_hold_their_rules() {
    let schema = |default: Value| {
        of(json!({"a": {"type": "integer", "default": default,
        "x-kubernetes-validations": [{"rule": "self > 3", "message": "m"}]}}))
    };
    assert!(problems(&schema(json!(5))).is_empty());
    let want = "s.properties[a].default: Invalid value: 1: m";
    assert_eq!(problems(&schema(json!(1))), [want]);
}

#[test]
fn fields_of_selectors() {
    let version = |paths: &[&str]| {
        let fields: Vec<Value> = paths.iter().map(|path| json!({"jsonPath": path})).collect();
        let names = "abcdefghij"
            .chars()
            .map(|name| (name.to_string(), json!({"type": "string"})));
        let mut all: serde_json::Map<String, Value> = names.collect();
        all.insert("o".into(), json!({"type": "object"}));
        json!({"name": "v1", "selectableFields": fields, "schema": {"openAPIV3Schema":
            of(json!({"spec": {"type": "object", "properties": all}, "metadata": {"type": "object", "properties": {"name": {"type": "string"}}}}))}})
    };
    let at = "v.selectableFields[0].jsonPath";
    for (paths, want) in [
        (&[".spec.a"][..], String::new()),
        (&[""], format!("{at}: Required value")),
        (
            &[".spec.gone"],
            format!(
                "{at}: Invalid value: \".spec.gone\": is an invalid path: does not refer to a valid field"
            ),
        ),
        (
            &[".spec['a']"],
            format!(
                "{at}: Invalid value: \".spec['a']\": is an invalid path: array notation is not allowed"
            ),
        ),
        (
            &[".metadata.name"],
            format!(
                "{at}: Invalid value: \".metadata.name\": must not point to fields in metadata"
            ),
        ),
        (
            &[".spec.o"],
            format!(
                "{at}: Invalid value: \".spec.o\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed."
            ),
        ),
        (
            &[".spec.a", ".spec.a"],
            "v.selectableFields[1].jsonPath: Duplicate value: \".spec.a\"".to_owned(),
        ),
        (
            &[
                ".spec.a", ".spec.b", ".spec.c", ".spec.d", ".spec.e", ".spec.f", ".spec.g",
                ".spec.h", ".spec.i",
            ],
            "v.selectableFields: Too many: 9: must have at most 8 items".to_owned(),
        ),
    ] {
        let mut causes = Causes::default();
        selectable_fields(&version(paths), "v", &Before::default(), &mut causes);
        assert_eq!(found(causes).join("; "), want, "{paths:?}");
    }
}

#[test]
fn hostile_schemas_are_little_work() {
    let begun = crate::testing::cpu_time();
    // As many rules as fit, each with an error; each as dear as it may be.
    let rules: Vec<Value> = (0..50_000)
        .map(|at| json!({"rule": format!("self.n == {at} && [1].all(a, [1].all(b, a == b))")}))
        .collect();
    let mut schema = ruled(json!({"rule": "true"}));
    schema["properties"]["spec"]["x-kubernetes-validations"] = rules.into();
    assert!(!problems(&schema).is_empty());
    // Deep, with a rule at each level.
    let mut deep = json!({"type": "object", "x-kubernetes-validations": [{"rule": "true"}]});
    for _ in 0..100 {
        deep = json!({"type": "object", "properties": {"a": deep}, "x-kubernetes-validations": [{"rule": "has(self.a)"}]});
    }
    problems(&deep);
    let took = crate::testing::cpu_time() - begun;
    assert!(took.as_secs() < 20, "{took:?}");
}
