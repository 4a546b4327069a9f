use super::{
    defaults::{MAX_DEFAULTED, TooLarge},
    *,
};
use crate::apiserver::registry::Causes;

fn cron() -> Tree {
    Tree::schema(
        &json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["image"],
        "properties": {
            "image": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
            "replicas": {"type": "integer", "minimum": 1, "maximum": 10, "default": 1},
            "port": {INT_OR_STRING: true},
            "free": {"type": "object", PRESERVE: true},
            "tags": {"type": "array", LIST_TYPE: "set", "items": {"type": "string"}},
            "by": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "boolean", "default": true}}}},
        }}}}),
    )
}

#[test]
fn unknown_members_go_and_defaults_come() {
    let mut object = json!({"apiVersion": "a/v1", "kind": "K", "metadata": {"name": "x"}, "junk": 1,
        "spec": {"image": "i", "bogus": {}, "replicas": null, "free": {"any": [1]}, "by": {"x": {"y": 1}}}});
    assert_eq!(
        prune(&cron(), &mut object),
        ["junk", "spec.bogus", "spec.by.x.y"]
    );
    assert_eq!(default(&cron(), &mut object), Ok(()));
    assert_eq!(
        object["spec"],
        json!({"image": "i", "replicas": 1, "free": {"any": [1]}, "by": {"x": {"a": true}}})
    );
}

/// Each of these took minutes, or all memory.
#[test]
fn large_objects_are_little_work() {
    let begun = crate::testing::cpu_time();
    let kind = |properties: Value| json!({"type": "object", "properties": properties});
    let validated = |schema: &Value, object: &Value| {
        let mut causes = Causes::default();
        let schema = Tree::schema(schema);
        validate(&schema, object, None, &mut causes);
        unique(&schema, object, "", &mut causes);
        causes.0
    };
    // Names of 50,000 items, of which the last stands twice, each held against a pattern.
    let list = kind(json!({"list": {"type": "array", LIST_TYPE: "set",
        "items": {"type": "string", "pattern": "^[a-z0-9]{1,63}$"}}}));
    let mut names: Vec<String> = (0..50_000).map(|at| format!("n{at}")).collect();
    names.push("n7".to_owned());
    let causes = validated(&list, &json!({"list": names}));
    assert_eq!(causes.len(), 1);
    assert_eq!(causes[0].field, "list[50000]");
    // Wrong all over.
    let causes = validated(&list, &json!({"list": vec![1; 50_000]}));
    assert_eq!(causes.len(), 101);
    // A name as long as the body stands in all paths below it.
    let map = kind(json!({"map": {"type": "object", "additionalProperties":
        {"type": "array", "items": {"type": "integer"}}}}));
    let object = json!({"map": {"x".repeat(1 << 20): vec![1; 100_000]}});
    assert_eq!(validated(&map, &object), []);
    // Alternatives of alternatives.
    let mut schema = json!({"type": "integer", "minimum": 1});
    for _ in 0..10 {
        schema = json!({"oneOf": [schema.clone(), schema]});
    }
    let deep = json!({"type": "array", "items": {"type": "integer", "not": schema}});
    let causes = validated(
        &kind(json!({"deep": deep})),
        &json!({"deep": vec![1; 2000]}),
    );
    assert!(causes.iter().any(|cause| cause.message.contains("steps")));
    // Defaults in each of many items.
    let large = kind(json!({"list": {"type": "array", "items":
        {"type": "object", "properties": {"a": {"type": "string", "default": "x".repeat(100_000)}}}}}));
    let mut object = json!({"list": vec![json!({}); 10_000]});
    assert_eq!(default(&Tree::schema(&large), &mut object), Err(TooLarge));
    assert!(proto::weight(&object) < 2 * MAX_DEFAULTED);
    let took = crate::testing::cpu_time() - begun;
    assert!(took.as_secs() < 30, "{took:?}");
}

#[test]
fn violations() {
    for (spec, want) in [
        (json!({"image": "abc", "port": 80, "tags": ["a", "b"]}), ""),
        (json!({}), "spec.image: Required value"),
        (
            json!({"image": "ABC"}),
            "spec.image: Invalid value: \"ABC\": spec.image in body should match '^[a-z]+$'",
        ),
        (
            json!({"image": 3}),
            "spec.image: Invalid value: \"integer\": spec.image in body must be of type string: \"integer\"",
        ),
        (
            json!({"image": "a", "replicas": 11}),
            "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10",
        ),
        (
            json!({"image": "a", "port": true}),
            "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
        ),
        (
            json!({"image": "a", "tags": ["x", "x"]}),
            "spec.tags[1]: Duplicate value: \"x\"",
        ),
    ] {
        let mut causes = Causes::default();
        let object = json!({"spec": spec});
        validate(&cron(), &object, None, &mut causes);
        unique(&cron(), &object, "", &mut causes);
        let found: Vec<String> = causes
            .0
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect();
        assert_eq!(found.join("; "), want);
    }
}

#[test]
fn nulls_of_maps_and_lists_become_defaults() {
    let element = json!({"type": "string", "default": "d"});
    let schema = Tree::schema(&json!({"type": "object", "properties": {
        "map": {"type": "object", "additionalProperties": element},
        "list": {"type": "array", "items": element},
        "may": {"type": "array", "items": {"type": "string", "nullable": true, "default": "d"}}}}));
    let mut object = json!({"map": {"a": null, "b": "x"}, "list": [null, "x"], "may": [null]});
    default(&schema, &mut object).expect("it is small");
    let want = json!({"map": {"a": "d", "b": "x"}, "list": ["d", "x"], "may": [null]});
    assert_eq!(object, want);
}

#[test]
fn nulls_that_may_not_be_there() {
    let schema = Tree::schema(&json!({"type": "object", "properties": {
        "plain": {"type": "string"}, "defaulted": {"type": "string", "default": "d"},
        "nullable": {"type": "string", "nullable": true},
        "both": {"type": "string", "nullable": true, "default": "d"},
        "free": {"type": "object", PRESERVE: true},
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
    }}));
    let mut object = json!({"plain": null, "defaulted": null, "nullable": null, "both": null,
        "free": {"x": null}, "map": {"x": null, "y": "z"}, "list": [{"a": null}]});
    assert_eq!(default(&schema, &mut object), Ok(()));
    let want = json!({"defaulted": "d", "nullable": null, "both": null, "free": {"x": null},
        "map": {"y": "z"}, "list": [{}]});
    assert_eq!(object, want);
}

#[test]
fn embedded_objects_have_a_kind() {
    let schema = Tree::schema(
        &json!({"type": "object", "properties": {"t": {"type": "object",
        EMBEDDED: true, PRESERVE: true}}}),
    );
    for (object, want) in [
        (json!({"t": {"apiVersion": "v1", "kind": "Pod"}}), ""),
        (json!({}), ""),
        (
            json!({"t": {}}),
            "t.apiVersion: Required value; t.kind: Required value",
        ),
        (
            json!({"t": {"apiVersion": "", "kind": 3}}),
            "t.apiVersion: Invalid value: \"\": must not be empty; t.kind: Invalid value: 3: must be a string",
        ),
        (
            json!({"t": {"apiVersion": "a/b/c", "kind": "Pod"}}),
            "t.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
        ),
    ] {
        let mut causes = Causes::default();
        embedded(&schema, &object, "", &mut causes);
        let found = causes.0.iter();
        let found: Vec<String> = found
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect();
        assert_eq!(found.join("; "), want);
    }
}

#[test]
fn what_has_not_changed_is_taken_as_it_was() {
    let old = json!({"spec": {"image": "TOO LONG", "tags": ["a"], "replicas": 99}});
    let check = |new: &Value| {
        let mut causes = Causes::default();
        validate(&cron(), new, Some(&old), &mut causes);
        let causes = causes.0.into_iter();
        causes.map(|cause| cause.field).collect::<Vec<_>>()
    };
    let mut new = old.clone();
    assert_eq!(check(&new), [""; 0]);
    new["spec"]["tags"] = json!(["b"]);
    assert_eq!(check(&new), [""; 0]);
    new["spec"]["image"] = json!("OTHER");
    assert_eq!(check(&new), ["spec.image"]);
}
