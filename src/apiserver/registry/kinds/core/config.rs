//! ConfigMaps and Secrets.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource,
    kinds::{
        cells::len,
        names,
        row::{self, AGE, column, count, field, read},
        value::{at, default_text, flag, has, members, object_mut, remove, same, text},
    },
};

/// The most that data of one ConfigMap or Secret may hold together.
const MAX_SIZE: usize = 1024 * 1024;

pub const CONFIGMAP: Resource = Resource {
    short_names: &["cm"],
    columns: &[
        count("Data", |map| {
            (len(map, "data") + len(map, "binaryData")).into()
        }),
        AGE,
    ],
    behaviour: Behaviour {
        validate: |map, causes| {
            names::object_name(map, names::dns_subdomain, causes);
            keys(map, "data", causes);
            keys(map, "binaryData", causes);
            for (key, _) in members(map, "binaryData").into_iter().flatten() {
                if members(map, "data").is_some_and(|data| data.contains_key(key)) {
                    causes.invalid(
                        format!("data[{key}]"),
                        key,
                        "duplicate of key present in binaryData",
                    );
                }
            }
            // In the original the place has no name.
            size(map, ("data", "binaryData"), "[]", causes);
        },
        validate_update: |new, old, causes| immutable(new, old, &["data", "binaryData"], causes),
        ..PLAIN
    },
    ..row::namespaced(
        "",
        "v1",
        "ConfigMap",
        "configmaps",
        "configmap",
        "io.k8s.api.core.v1.ConfigMap",
    )
};

pub const SECRET: Resource = Resource {
    columns: &[
        column("Type", |secret| row::cell(secret, "type")),
        count("Data", |secret| len(secret, "data").into()),
        AGE,
    ],
    fields: &[field("type", |secret| read(secret, "type"))],
    behaviour: Behaviour {
        default: default_secret,
        validate: validate_secret,
        validate_update: |new, old, causes| {
            immutable(new, old, &["data"], causes);
            if !same(new, old, "type") {
                causes.invalid("type", text(new, "type"), "field is immutable");
            }
        },
        ..PLAIN
    },
    ..row::namespaced(
        "",
        "v1",
        "Secret",
        "secrets",
        "secret",
        "io.k8s.api.core.v1.Secret",
    )
};

/// `stringData` is written over `data` and never stored.
fn default_secret(secret: &mut Value) {
    default_text(secret, "type", "Opaque");
    if let Some(Value::Object(plain)) = remove(secret, "stringData") {
        let data = object_mut(secret, "data");
        for (key, value) in plain {
            let bytes = value.as_str().unwrap_or_default();
            data.insert(key, BASE64_STANDARD.encode(bytes).into());
        }
    }
}

fn validate_secret(secret: &Value, causes: &mut Causes) {
    names::object_name(secret, names::dns_subdomain, causes);
    keys(secret, "data", causes);
    size(secret, ("", "data"), "data", causes);
    let mut need = |key: &str| {
        if members(secret, "data").is_none_or(|data| !data.contains_key(key)) {
            causes.required(format!("data[{key}]"), "");
        }
    };
    match text(secret, "type") {
        "kubernetes.io/service-account-token" => {
            let name = at(secret, "metadata.annotations")
                .and_then(|annotations| annotations.get("kubernetes.io/service-account.name"));
            if name.and_then(Value::as_str).is_none_or(str::is_empty) {
                causes.required(
                    "metadata.annotations[kubernetes.io/service-account.name]",
                    "",
                );
            }
        }
        "kubernetes.io/dockercfg" => need(".dockercfg"),
        "kubernetes.io/dockerconfigjson" => {
            need(".dockerconfigjson");
            let text = at(secret, "data").and_then(|data| data.get(".dockerconfigjson"));
            let bytes = text
                .and_then(Value::as_str)
                .and_then(|text| BASE64_STANDARD.decode(text).ok());
            if bytes.is_some_and(|bytes| serde_json::from_slice::<Value>(&bytes).is_err()) {
                causes.invalid(
                    "data[.dockerconfigjson]",
                    "<secret contents redacted>",
                    "invalid JSON",
                );
            }
        }
        "kubernetes.io/basic-auth" => {
            let data = members(secret, "data");
            let present = |key: &str| data.is_some_and(|data| data.contains_key(key));
            if !present("username") && !present("password") {
                causes.required("data[username]", "");
                causes.required("data[password]", "");
            }
        }
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/tls" => {
            need("tls.crt");
            need("tls.key");
        }
        _ => {}
    }
}

fn keys(object: &Value, field: &str, causes: &mut Causes) {
    for (key, _) in members(object, field).into_iter().flatten() {
        names::report(
            names::config_key(key),
            key,
            &format!("{field}[{key}]"),
            causes,
        );
    }
}

/// Bytes that base64 stands for.
fn decoded_len(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

/// The values of `plain` and those of `encoded`, which are base64, hold no more than they may.
fn size(object: &Value, (plain, encoded): (&str, &str), field: &str, causes: &mut Causes) {
    let values = |field: &str| members(object, field).into_iter().flatten();
    let plain = values(plain).map(|(_, value)| value.as_str().map_or(0, str::len));
    let encoded = values(encoded).map(|(_, value)| value.as_str().map_or(0, decoded_len));
    if plain.sum::<usize>() + encoded.sum::<usize>() > MAX_SIZE {
        causes.push(
            crate::apiserver::status::CauseType::FieldValueTooLong,
            field,
            format!("Too long: may not be more than {MAX_SIZE} bytes"),
        );
    }
}

fn immutable(new: &Value, old: &Value, fields: &[&str], causes: &mut Causes) {
    if !flag(old, "immutable") {
        return;
    }
    if !flag(new, "immutable") {
        causes.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    for field in fields {
        let empty = json!({});
        let part = |object: &Value| at(object, field).unwrap_or(&empty).clone();
        if (has(new, field) || has(old, field)) && part(new) != part(old) {
            causes.forbidden(*field, "field is immutable when `immutable` is set");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_data_becomes_data() {
        let mut secret = json!({"stringData": {"a": "hi"}, "data": {"a": "eA==", "b": "eQ=="}});
        default_secret(&mut secret);
        assert_eq!(
            secret,
            json!({"type": "Opaque", "data": {"a": "aGk=", "b": "eQ=="}})
        );
    }

    #[test]
    fn the_bytes_of_the_values_are_limited() {
        let text = |bytes: usize| "x".repeat(bytes);
        let base64 = |bytes: usize| BASE64_STANDARD.encode(vec![0; bytes]);
        let most = MAX_SIZE;
        for (row, object, field) in [
            (&CONFIGMAP, json!({"data": {"k": text(most)}}), ""),
            (&CONFIGMAP, json!({"data": {"k": text(most + 1)}}), "[]"),
            (&CONFIGMAP, json!({"binaryData": {"k": base64(most)}}), ""),
            (
                &CONFIGMAP,
                json!({"binaryData": {"k": base64(most + 1)}}),
                "[]",
            ),
            (
                &CONFIGMAP,
                json!({"data": {"k": text(most - 4)}, "binaryData": {"b": base64(5)}}),
                "[]",
            ),
            (&SECRET, json!({"data": {"k": base64(most)}}), ""),
            (
                &SECRET,
                json!({"data": {"k": base64(most - 1), "l": base64(1)}}),
                "",
            ),
            (
                &SECRET,
                json!({"data": {"k": base64(most - 1), "l": base64(2)}}),
                "data",
            ),
        ] {
            let mut object = object;
            object["metadata"] = json!({"name": "x"});
            object["type"] = json!("Opaque");
            let mut causes = Causes::default();
            (row.behaviour.validate)(&object, &mut causes);
            let found: Vec<&str> = causes.0.iter().map(|cause| &*cause.field).collect();
            let want: Vec<&str> = [field]
                .into_iter()
                .filter(|field| !field.is_empty())
                .collect();
            assert_eq!(found, want);
            if let Some(cause) = causes.0.first() {
                assert_eq!(
                    cause.message,
                    "Too long: may not be more than 1048576 bytes"
                );
            }
        }
    }

    #[test]
    fn immutable_maps_stay() {
        let old = json!({"immutable": true, "data": {"a": "1"}});
        let mut causes = Causes::default();
        immutable(
            &json!({"immutable": true, "data": {"a": "1"}}),
            &old,
            &["data"],
            &mut causes,
        );
        assert!(causes.0.is_empty());
        immutable(&json!({"data": {"a": "2"}}), &old, &["data"], &mut causes);
        let fields: Vec<&str> = causes.0.iter().map(|cause| &*cause.field).collect();
        assert_eq!(fields, ["immutable", "data"]);
    }
}
