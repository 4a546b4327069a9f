//! Protobuf and JSON forms of real types: vectors written by hand, and generated values there
//! and back.

use proptest::{prelude::*, strategy::BoxedStrategy};
use proto::{Shape, Type, decode, encode, schema};
use serde_json::{Map, Value, json};

fn ty(name: &str) -> &'static Type {
    schema().get(name).expect("the type exists")
}

#[test]
fn a_pod_from_bytes() {
    // metadata{name "p", uid ""}, spec{containers{name "c", resources{}}, restartPolicy ""}, status{}
    let bytes = b"\x0a\x05\x0a\x01p\x2a\x00\x12\x09\x12\x05\x0a\x01c\x42\x00\x1a\x00\x1a\x00";
    let pod = decode(ty("io.k8s.api.core.v1.Pod"), bytes).expect("well formed");
    let want = json!({
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "resources": {}}]},
        "status": {}
    });
    assert_eq!(pod, want);
}

#[test]
fn byte_vectors() {
    for (name, value, bytes) in [
        // A pointer keeps its zero; creationTimestamp{1 seconds, 2 nanos}.
        (
            "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
            json!({"name": "x", "creationTimestamp": "1970-01-01T00:01:40Z", "deletionGracePeriodSeconds": 0}),
            &b"\x0a\x01x\x42\x04\x08\x64\x10\x00\x50\x00"[..],
        ),
        // MicroTime keeps microseconds: nanos 123456000.
        (
            "io.k8s.api.coordination.v1.LeaseSpec",
            json!({"renewTime": "1970-01-01T00:00:01.123456Z"}),
            b"\x22\x07\x08\x01\x10\x80\x94\xef\x3a",
        ),
        // Bytes are base64 in JSON; a map entry is a message.
        (
            "io.k8s.api.core.v1.Secret",
            json!({"data": {"k": "aGk="}, "metadata": {}, "type": "Opaque"}),
            b"\x0a\x00\x12\x07\x0a\x01k\x12\x02hi\x1a\x06Opaque",
        ),
        // IntOrString in both forms, all three members written.
        (
            "io.k8s.api.core.v1.TCPSocketAction",
            json!({"port": 80}),
            b"\x0a\x06\x08\x00\x10\x50\x1a\x00",
        ),
        (
            "io.k8s.api.core.v1.TCPSocketAction",
            json!({"port": "web"}),
            b"\x0a\x09\x08\x01\x10\x00\x1a\x03web",
        ),
        // An inline struct is a message of its own.
        (
            "io.k8s.api.core.v1.Volume",
            json!({"name": "v", "emptyDir": {}}),
            b"\x0a\x01v\x12\x02\x12\x00",
        ),
        // A quantity is a message with a string.
        (
            "io.k8s.api.core.v1.ResourceRequirements",
            json!({"limits": {"cpu": "1"}}),
            b"\x0a\x0a\x0a\x03cpu\x12\x03\x0a\x011",
        ),
        // propagationPolicy is a string, though its tag says varint.
        (
            "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
            json!({"gracePeriodSeconds": 0, "propagationPolicy": "Orphan"}),
            b"\x08\x00\x22\x06Orphan",
        ),
        // A list as map value is a message with items.
        (
            "io.k8s.api.authentication.v1.UserInfo",
            json!({"extra": {"k": ["a", "b"]}}),
            b"\x22\x0b\x0a\x01k\x12\x06\x0a\x01a\x0a\x01b",
        ),
        // JSON stays JSON.
        (
            "io.k8s.apimachinery.pkg.apis.meta.v1.ManagedFieldsEntry",
            json!({"fieldsV1": {"f:a": {}}}),
            b"\x3a\x0d\x0a\x0b{\"f:a\":{}}",
        ),
        // Negative numbers take ten bytes.
        (
            "io.k8s.api.core.v1.PodSpec",
            json!({"priority": -1, "containers": []}),
            b"\xc8\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ),
    ] {
        let bytes = if name.ends_with("ManagedFieldsEntry") {
            // The inner text has ten bytes; lengths are easier to see computed.
            let text = b"{\"f:a\":{}}";
            let mut all = vec![0x3a, text.len() as u8 + 2, 0x0a, text.len() as u8];
            all.extend_from_slice(text);
            all
        } else {
            bytes.to_vec()
        };
        let encoded = encode(ty(name), &value).expect("encodes");
        assert_eq!(encoded, bytes, "{name} {value}");
        let mut expected = value;
        if name.ends_with("PodSpec") {
            // An empty list is no list on the wire.
            expected = json!({"priority": -1});
        }
        assert_eq!(
            decode(ty(name), &bytes).expect("decodes"),
            expected,
            "{name}"
        );
    }
}

#[test]
fn go_writes_more_than_we_do_and_it_means_the_same() {
    // An empty Time message is unset; empty strings of members left out when empty vanish.
    let bytes = b"\x0a\x01x\x12\x00\x1a\x00\x42\x00";
    let meta = decode(ty("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"), bytes);
    assert_eq!(meta.expect("well formed"), json!({"name": "x"}));
    // Unknown fields of newer versions are read over.
    let bytes = b"\x0a\x01x\xfa\xff\x03\x02hi\xf9\xff\x0312345678";
    let meta = decode(ty("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"), bytes);
    assert_eq!(meta.expect("well formed"), json!({"name": "x"}));
}

#[test]
fn lists_and_status() {
    let list = ty("io.k8s.api.core.v1.ConfigMapList");
    let value = json!({"metadata": {"resourceVersion": "5"}, "items": []});
    let bytes = encode(list, &value).expect("encodes");
    assert_eq!(decode(list, &bytes).expect("decodes"), value);
}

#[test]
fn crd_schemas() {
    let props = ty("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps");
    let value = json!({
        "type": "object",
        "default": {"a": [1, null]},
        "minimum": 0.5,
        "additionalProperties": {"type": "string"},
        "items": {"type": "integer"},
        "enum": ["a", 1],
        "properties": {"x": {"additionalProperties": false, "items": [{"type": "string"}]}},
        "dependencies": {"d": ["e", "f"]},
        "x-kubernetes-validations": [{"rule": "self.x > 0"}]
    });
    let bytes = encode(props, &value).expect("encodes");
    assert_eq!(decode(props, &bytes).expect("decodes"), value);
}

#[test]
fn hostile_bytes_are_refused() {
    let pod = ty("io.k8s.api.core.v1.Pod");
    for bad in [
        &b"\x0a"[..],
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x00\x00",
        b"\x0b",
        b"\x08\x01",
    ] {
        assert!(decode(pod, bad).is_err(), "{bad:?}");
    }
}

/// Values that survive the wire unchanged: nothing empty that is left out when empty.
fn of_shape(shape: &'static Shape, depth: u32) -> BoxedStrategy<Value> {
    match shape {
        Shape::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        Shape::Int32 => any::<i32>().prop_map(|n| json!(n)).boxed(),
        Shape::Int64 => any::<i64>().prop_map(|n| json!(n)).boxed(),
        Shape::Double => any::<i32>().prop_map(|n| json!(f64::from(n) / 8.0)).boxed(),
        Shape::String | Shape::Enum(_) => "\\PC{1,8}".prop_map(Value::String).boxed(),
        Shape::Bytes => prop::sample::select(vec!["AA==", "aGVsbG8=", "/+8="])
            .prop_map(|text| json!(text))
            .boxed(),
        Shape::Time => (0u32..60)
            .prop_map(|s| json!(format!("2026-11-23T10:00:{s:02}Z")))
            .boxed(),
        Shape::MicroTime => (0u32..1_000_000)
            .prop_map(|us| json!(format!("2026-11-23T10:00:00.{us:06}Z")))
            .boxed(),
        Shape::Duration => (1i64..60).prop_map(|s| json!(format!("{s}s"))).boxed(),
        Shape::Quantity => (1i64..1000).prop_map(|n| json!(format!("{n}Gi"))).boxed(),
        Shape::IntOrString => prop_oneof![
            (1i32..i32::MAX).prop_map(|n| json!(n)),
            "[a-z]{1,8}".prop_map(Value::String)
        ]
        .boxed(),
        Shape::Raw | Shape::FieldsV1 | Shape::Any => Just(json!({"f:x": {"k": [1]}})).boxed(),
        Shape::SchemaOrArray | Shape::SchemaOrStrings => Just(json!([])).boxed(),
        Shape::SchemaOrBool => any::<bool>().prop_map(Value::Bool).boxed(),
        Shape::Message(_) => of_type(shape.message().expect("known"), depth + 1),
        Shape::List(element) if depth > 6 => {
            let _ = element;
            Just(Value::Null).boxed()
        }
        Shape::List(element) => prop::collection::vec(of_shape(element, depth + 1), 1..3)
            .prop_map(Value::Array)
            .boxed(),
        Shape::Map(element) => {
            prop::collection::btree_map("[a-z]{1,4}", of_shape(element, depth + 1), 1..3)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
                .boxed()
        }
        Shape::NamedList(_) => prop::collection::vec("[a-z]{1,4}".prop_map(Value::String), 1..3)
            .prop_map(Value::Array)
            .boxed(),
    }
}

fn of_type(ty: &'static Type, depth: u32) -> BoxedStrategy<Value> {
    let members: Vec<_> = ty
        .members()
        .into_iter()
        .filter(|field| field.number > 0)
        .map(|field| {
            // The deeper, the fewer members: pod specs are large.
            let odds = if depth > 5 {
                0.0
            } else {
                0.6 / f64::from(depth + 1)
            };
            let value = if odds == 0.0 {
                Just(Value::Null).boxed()
            } else {
                of_shape(&field.shape, depth)
            };
            prop::option::weighted(odds.max(1e-9), value)
                .prop_map(move |value| (field.name, value))
                .boxed()
        })
        .collect();
    members
        .prop_map(|members| {
            let present = members
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?)));
            Value::Object(present.collect::<Map<_, _>>())
        })
        .boxed()
}

fn there_and_back(ty: &'static Type, mut value: Value) -> Result<(), TestCaseError> {
    proto::prune(ty, &mut value);
    proto::normalize(ty, &mut value);
    proto::fill_zeroes(ty, &mut value);
    prop_assert_eq!(proto::type_errors(ty, &value), Vec::<String>::new());
    let bytes = encode(ty, &value).expect("a well-formed value");
    let back = decode(ty, &bytes).expect("our own bytes");
    prop_assert_eq!(&back, &value);
    prop_assert_eq!(encode(ty, &back).expect("again"), bytes);
    Ok(())
}

macro_rules! round_trips {
    ($($test:ident: $name:literal,)*) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(32))]
            $(#[test]
            fn $test(value in of_type(ty($name), 0)) {
                there_and_back(ty($name), value)?;
            })*
        }
    };
}

round_trips! {
    pods: "io.k8s.api.core.v1.Pod",
    deployments: "io.k8s.api.apps.v1.Deployment",
    services: "io.k8s.api.core.v1.Service",
    secrets: "io.k8s.api.core.v1.Secret",
    leases: "io.k8s.api.coordination.v1.Lease",
    events: "io.k8s.api.core.v1.Event",
    webhooks: "io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration",
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(ty("io.k8s.api.core.v1.Pod"), &bytes);
        let _ = proto::unwrap_envelope(&bytes);
    }
}
