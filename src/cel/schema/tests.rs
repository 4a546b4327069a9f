//! Schemas: which types they give, how values are read, and how large these may be.

use serde_json::{Value as Json, json};

use super::{Schema, escape, unescape};
use crate::cel::testing::rule;

#[test]
fn names_of_properties() {
    for (name, escaped) in [
        ("a", Some("a")),
        ("a.b", Some("a__dot__b")),
        ("a-b/c", Some("a__dash__b__slash__c")),
        ("a__b", Some("a__underscores__b")),
        ("a_b", Some("a_b")),
        ("if", Some("__if__")),
        ("namespace", Some("__namespace__")),
        ("int", Some("int")), // names of types are no reserved words
        ("1a", None),
        ("", None),
        ("a b", None),
        ("a$", None),
        ("é", None),
    ] {
        assert_eq!(escape(name).as_deref(), escaped, "{name}");
        if let Some(escaped) = escaped {
            assert_eq!(unescape(escaped).as_deref(), Some(name), "{escaped}");
        }
    }
    assert_eq!(unescape("a__nothing__b"), None);
}

fn object(properties: Json) -> Json {
    json!({"type": "object", "properties": properties})
}

#[test]
fn values_by_schema() {
    let schema = object(json!({
        "s": {"type": "string"},
        "i": {"type": "integer"},
        "n": {"type": "number"},
        "b": {"type": "boolean"},
        "d": {"type": "string", "format": "duration"},
        "t": {"type": "string", "format": "date-time"},
        "y": {"type": "string", "format": "date"},
        "x": {"type": "string", "format": "byte"},
        "p": {"x-kubernetes-int-or-string": true},
        "u": {"x-kubernetes-preserve-unknown-fields": true},
        "o": {"type": "string", "nullable": true},
        "if": {"type": "string"},
        "a-b": {"type": "string"},
        "list": {"type": "array", "items": {"type": "integer"}},
        "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
        "keyed": {"type": "array", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["k"],
            "items": object(json!({"k": {"type": "string"}, "v": {"type": "integer"}}))},
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "embedded": {"type": "object", "x-kubernetes-embedded-resource": true},
    }));
    let value = json!({
        "s": "a", "i": 1, "n": 2, "b": true, "d": "1h", "t": "2000-01-01T00:00:00Z",
        "y": "2000-01-01", "x": "aGk=", "p": "50%", "u": {"z": 1}, "o": null, "if": "x",
        "a-b": "y", "list": [1, 2], "set": ["a", "b"], "map": {"k-1": "v"},
        "keyed": [{"k": "a", "v": 1}, {"k": "b", "v": 2}],
        "embedded": {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "n"}},
    });
    for (text, want) in [
        (
            "self.s == 'a' && self.i == 1 && self.n == 2.0 && self.b",
            Ok(true),
        ),
        (
            "self.d == duration('60m') && self.t == timestamp('2000-01-01T00:00:00Z')",
            Ok(true),
        ),
        ("self.y.getFullYear() == 2000 && self.x == b'hi'", Ok(true)),
        ("type(self.p) == string && self.p == '50%'", Ok(true)),
        (
            "type(self.p) == int ? self.p > 1 : self.p.endsWith('%')",
            Ok(true),
        ),
        ("self.__if__ == 'x' && self.a__dash__b == 'y'", Ok(true)),
        ("self.`if` == 'x'", Ok(true)),
        ("!has(self.o)", Ok(true)), // null is the same as nothing
        ("self.o == 'a'", Err("no such key: o")),
        ("self.u.z == 1", Err("undefined field 'u'")),
        ("self.z == 1", Err("undefined field 'z'")),
        (
            "self.s == 1",
            Err("found no matching overload for '_==_' applied to '(string, int)'"),
        ),
        (
            "self.list + [3] == [1, 2, 3] && self.list[1] == 2",
            Ok(true),
        ),
        ("self.set == ['b', 'a']", Ok(true)),
        ("self.set + ['b', 'c'] == ['c', 'b', 'a']", Ok(true)),
        ("self.list == [2, 1]", Ok(false)),
        ("self.keyed == [self.keyed[1], self.keyed[0]]", Ok(true)),
        ("self.keyed + [self.keyed[0]] == self.keyed", Ok(true)),
        (
            "self.map['k-1'] == 'v' && 'k-1' in self.map && self.map.all(k, k == 'k-1')",
            Ok(true),
        ),
        ("self.map.?k.orValue('none') == 'none'", Ok(true)),
        (
            "self.embedded.kind == 'Pod' && self.embedded.metadata.name == 'n'",
            Ok(true),
        ),
        ("self == self && self.embedded == self.embedded", Ok(true)),
    ] {
        let found = rule(&schema, &value, text);
        match (&found, want) {
            (Ok(found), Ok(want)) if *found == want => {}
            (Err(found), Err(want)) if found.contains(want) => {}
            _ => panic!("{text}: {found:?}"),
        }
    }
}

/// What does not fit its schema is an error where it is read.
#[test]
fn wrong_values() {
    let schema = object(
        json!({"i": {"type": "integer"}, "l": {"type": "array", "items": {"type": "string"}},
        "t": {"type": "string", "format": "date-time"}, "p": {"x-kubernetes-int-or-string": true}}),
    );
    for (value, text, want) in [
        (
            json!({"i": "a"}),
            "self.i == 1",
            "invalid data, expected int, got string",
        ),
        (
            json!({"i": 1.5}),
            "self.i == 1",
            "invalid data, expected int, got float64",
        ),
        (
            json!({"l": {}}),
            "self.l == []",
            "expected an array for the provided schema",
        ),
        (
            json!({"l": [null]}),
            "self.l[0] == ''",
            "got null for schema with nullable=false",
        ),
        (
            json!({"t": "x"}),
            "self.t == timestamp(0)",
            "Invalid date-time formatted string x",
        ),
        (
            json!({"p": true}),
            "self.p == 1",
            "expected XIntOrString value to be either",
        ),
    ] {
        let found = rule(&schema, &value, text);
        assert!(
            found.as_ref().is_err_and(|found| found.contains(want)),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn sizes() {
    for (schema, elements, bytes) in [
        (json!({"type": "string"}), 3_145_726, 2),
        (json!({"type": "string", "maxLength": 10}), 40, 2),
        (json!({"type": "string", "enum": ["a", "bcd"]}), 3, 2),
        (json!({"type": "string", "format": "date-time"}), 32, 21),
        (
            json!({"type": "string", "format": "byte", "maxLength": 8}),
            8,
            2,
        ),
        (
            json!({"type": "array", "items": {"type": "integer"}}),
            1_572_863,
            2,
        ),
        (
            json!({"type": "array", "maxItems": 5, "items": {"type": "integer"}}),
            5,
            2,
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            393_215,
            2,
        ),
        (json!({"x-kubernetes-int-or-string": true}), 3_145_726, 1),
        (
            json!({"type": "object", "required": ["ab"], "properties": {"ab": {"type": "string"}}}),
            0,
            10, // {"ab":"",}
        ),
    ] {
        let found =
            Schema::from_json(&schema, "t", false).map(|one| (one.max_elements, one.min_size));
        assert_eq!(found, Some((elements, bytes)), "{schema}");
    }
    let object = Schema::from_json(&json!({"type": "object"}), "t", false);
    assert_eq!(object.map(|one| one.max_cardinality()), Some(1_048_576));
}

/// Schemas that say nothing are not seen.
#[test]
fn unseen() {
    for schema in [
        json!({}),
        json!({"x-kubernetes-preserve-unknown-fields": true}),
        json!({"type": "array"}),
        json!({"type": "array", "items": {}}),
        json!({"type": "object", "additionalProperties": {}}),
    ] {
        assert!(Schema::from_json(&schema, "t", false).is_none(), "{schema}");
    }
    // Nested without end.
    let mut deep = json!({"type": "string"});
    for _ in 0..1000 {
        deep = json!({"type": "array", "items": deep});
    }
    assert!(Schema::from_json(&deep, "t", false).is_none());
}
