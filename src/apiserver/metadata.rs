//! The rules of `metadata`, the same for every kind. Pure but for the clock and chance.

use rand::Rng;
use serde_json::{Map, Value, json};

use super::{
    registry::{Causes, Resource, Scope},
    status::Status,
};

/// The alphabet of generated names: no vowels, so that no words appear.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const GENERATED_BASE: usize = 58;
const MAX_ANNOTATIONS_BYTES: usize = 256 << 10;

/// Gives `object` a metadata map and returns it.
pub fn of(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = json!({});
    }
    match metadata {
        Value::Object(map) => map,
        _ => unreachable!("made an object two lines above"),
    }
}

pub fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object
        .get("metadata")
        .and_then(|metadata| metadata.get(name))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Seconds of the clock as the API writes them.
pub fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// Makes the metadata of a new object: what the server owns is set, whatever the client sent.
pub fn prepare_create(row: &Resource, namespace: &str, object: &mut Value) -> Result<(), Status> {
    let metadata = of(object);
    // Who sends one has read the object before, and means another verb.
    if metadata
        .get("resourceVersion")
        .and_then(Value::as_str)
        .is_some_and(|version| !matches!(version, "" | "0"))
    {
        return Err(Status::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    for name in [
        "resourceVersion",
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ] {
        metadata.remove(name);
    }
    namespaced(row, namespace, metadata)?;
    let generate = metadata
        .get("generateName")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let name = metadata
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if name.is_empty() && !generate.is_empty() {
        metadata.insert("name".to_owned(), json!(generated(&generate)));
    }
    metadata.insert("uid".to_owned(), json!(uuid::Uuid::new_v4().to_string()));
    metadata.insert("creationTimestamp".to_owned(), json!(now()));
    if row.behaviour.generation {
        metadata.insert("generation".to_owned(), json!(1));
    }
    Ok(())
}

pub fn generated(base: &str) -> String {
    let cut = base
        .char_indices()
        .map(|(at, _)| at)
        .take_while(|at| *at <= GENERATED_BASE)
        .last()
        .unwrap_or(0);
    let base = if base.len() <= GENERATED_BASE {
        base
    } else {
        base.get(..cut).unwrap_or(base)
    };
    let mut rng = rand::rng();
    let suffix: String = (0..5)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect();
    format!("{base}{suffix}")
}

/// The namespace comes from the URL; a body may repeat it, not contradict it.
pub fn namespaced(
    row: &Resource,
    namespace: &str,
    metadata: &mut Map<String, Value>,
) -> Result<(), Status> {
    if row.scope == Scope::Cluster {
        metadata.remove("namespace");
        return Ok(());
    }
    match metadata.get("namespace").and_then(Value::as_str) {
        None | Some("") => {
            metadata.insert("namespace".to_owned(), json!(namespace));
            Ok(())
        }
        Some(given) if given == namespace => Ok(()),
        Some(_) => Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
    }
}

/// What is written over an object must have that object's name and namespace, those of the URL. A
/// namespace that is missing is filled in.
pub fn check_address(
    row: &Resource,
    (namespace, name): (&str, &str),
    object: &mut Value,
) -> Result<(), Status> {
    let given = text(object, "name");
    if given.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    if given != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let given = text(object, "namespace");
    if row.scope == Scope::Namespaced && !given.is_empty() && given != namespace {
        return Err(Status::bad_request(format!(
            "the namespace of the object ({given}) does not match the namespace on the request ({namespace})"
        )));
    }
    namespaced(row, namespace, of(object))
}

/// What of metadata a write may not change, where it does not just stay as it was.
pub fn check_immutable(new: &Value, old: &Value, causes: &mut Causes) {
    let (new, old) = (&new["metadata"], &old["metadata"]);
    let uid = &new["uid"];
    if uid.as_str().is_some_and(|uid| !uid.is_empty()) && *uid != old["uid"] {
        causes.invalid("metadata.uid", uid, "field is immutable");
    }
    // Only a DELETE begins these; once begun, they stay as they are.
    for name in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        if old[name].is_null() && !new[name].is_null() {
            causes.invalid(format!("metadata.{name}"), &new[name], "field is immutable");
        }
    }
}

/// Keeps what clients may not change through an update.
pub fn prepare_update(new: &mut Value, old: &Value) {
    let old_metadata = old.get("metadata").cloned().unwrap_or_default();
    let metadata = of(new);
    for name in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ] {
        match old_metadata.get(name) {
            Some(value) => metadata.insert(name.to_owned(), value.clone()),
            None => metadata.remove(name),
        };
    }
    metadata.remove("selfLink");
}

/// Rules for names, labels, annotations, finalizers and owners.
pub fn validate(row: &Resource, object: &Value, causes: &mut Causes) {
    let name = text(object, "name");
    if name.is_empty() {
        causes.required("metadata.name", "name or generateName is required");
    } else if let Some(problem) = name_problem(row, name) {
        causes.invalid("metadata.name", name, &problem);
    }
    let metadata = object.get("metadata").unwrap_or(&Value::Null);
    for (key, value) in metadata
        .get("labels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let value = value.as_str().unwrap_or_default();
        if let Some(problem) = qualified_name_problem(key) {
            causes.invalid("metadata.labels", key, &problem);
        }
        if let Some(problem) = label_value_problem(value) {
            causes.invalid("metadata.labels", value, &problem);
        }
    }
    let annotations = metadata.get("annotations").and_then(Value::as_object);
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        if let Some(problem) = qualified_name_problem(&key.to_lowercase()) {
            causes.invalid("metadata.annotations", key, &problem);
        }
        size += key.len() + value.as_str().unwrap_or_default().len();
    }
    if size > MAX_ANNOTATIONS_BYTES {
        let message = format!("Too long: may not be more than {MAX_ANNOTATIONS_BYTES} bytes");
        causes.push(
            super::status::CauseType::FieldValueTooLong,
            "metadata.annotations",
            message,
        );
    }
    validate_owners(metadata, causes);
}

fn validate_owners(metadata: &Value, causes: &mut Causes) {
    const PATH: &str = "metadata.ownerReferences";
    let owners = metadata.get("ownerReferences").unwrap_or(&Value::Null);
    let mut controllers = Vec::new();
    for owner in owners.as_array().into_iter().flatten() {
        let field = |name: &str| owner.get(name).and_then(Value::as_str).unwrap_or_default();
        let version = field("apiVersion");
        let (_, number) = version.rsplit_once('/').unwrap_or(("", version));
        for (name, is_empty, detail) in [
            ("apiVersion", number.is_empty(), "version must not be empty"),
            ("kind", field("kind").is_empty(), "must not be empty"),
            ("name", field("name").is_empty(), "must not be empty"),
            ("uid", field("uid").is_empty(), "must not be empty"),
        ] {
            if is_empty {
                causes.invalid(format!("{PATH}.{name}"), field(name), detail);
            }
        }
        if (version, field("kind")) == ("v1", "Event") {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            causes.invalid(PATH, owner, detail);
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            controllers.push(format!("{}/{}", field("kind"), field("name")));
        }
    }
    if let [first, second, ..] = &*controllers {
        let detail = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        causes.invalid(PATH, owners, &detail);
    }
}

fn name_problem(row: &Resource, name: &str) -> Option<String> {
    match row.plural {
        "namespaces" | "services" => label_problem(name),
        "roles"
        | "rolebindings"
        | "clusterroles"
        | "clusterrolebindings"
        | "certificatesigningrequests"
        | "ipaddresses" => {
            let bad = name == "." || name == ".." || name.contains(['/', '%']);
            bad.then(|| "may not be '.' or '..' or contain '/' or '%'".to_owned())
        }
        _ => subdomain_problem(name),
    }
}

/// RFC 1123 label.
pub fn label_problem(name: &str) -> Option<String> {
    let good = (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    (!good).then(|| {
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')".to_owned()
    })
}

/// RFC 1123 subdomain.
pub fn subdomain_problem(name: &str) -> Option<String> {
    let part = |part: &str| {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        edge(part.bytes().next())
            && edge(part.bytes().last())
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let good = name.len() <= 253 && name.split('.').all(part);
    (!good).then(|| {
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".to_owned()
    })
}

fn is_name(name: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    name.len() <= 63
        && edge(name.bytes().next())
        && edge(name.bytes().last())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn qualified_name_problem(key: &str) -> Option<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if let Some(prefix) = prefix
        && let Some(problem) = subdomain_problem(prefix)
    {
        return Some(format!("prefix part {problem}"));
    }
    (!is_name(name)).then(|| {
        "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')".to_owned()
    })
}

fn label_value_problem(value: &str) -> Option<String> {
    (!value.is_empty() && !is_name(value)).then(|| {
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, label, subdomain) in [
            ("a", true, true),
            ("a.b", false, true),
            ("-a", false, false),
            ("A", false, false),
            ("a..b", false, false),
            ("1a", true, true),
        ] {
            assert_eq!(
                (
                    label_problem(name).is_none(),
                    subdomain_problem(name).is_none()
                ),
                (label, subdomain),
                "{name}"
            );
        }
        assert!(label_problem(&"a".repeat(64)).is_some());
    }

    #[test]
    fn who_may_own_an_object() {
        let owner = |version: &str, kind: &str, uid: &str| json!({"apiVersion": version, "kind": kind, "name": "a", "uid": uid, "controller": true});
        for (owners, want) in [
            (json!([owner("apps/v1", "ReplicaSet", "u")]), ""),
            (
                json!([owner("apps/", "ReplicaSet", "")]),
                "metadata.ownerReferences.apiVersion: Invalid value: \"apps/\": version must not be empty; \
                 metadata.ownerReferences.uid: Invalid value: \"\": must not be empty",
            ),
            (
                json!([owner("v1", "Event", "u")]),
                "/v1, Kind=Event is disallowed from being an owner",
            ),
            (
                json!([owner("v1", "A", "u"), owner("v1", "B", "u")]),
                "Only one reference can have Controller set to true. Found \"true\" in references for A/a and B/a",
            ),
        ] {
            let mut causes = Causes::default();
            validate_owners(&json!({"ownerReferences": owners}), &mut causes);
            let all: Vec<String> = causes
                .0
                .into_iter()
                .map(|cause| format!("{}: {}", cause.field, cause.message))
                .collect();
            let found = all.join("; ");
            assert!(
                found.ends_with(want) && found.is_empty() == want.is_empty(),
                "{found}"
            );
        }
    }

    #[test]
    fn where_an_object_may_be_written() {
        let row = |plural: &str| {
            let rows = super::super::registry::kinds::ALL.iter();
            let mut found = rows.filter(|row| row.plural == plural);
            found.next().expect("a row")
        };
        let pod = |name: &str, namespace: &str| json!({"metadata": {"name": name, "namespace": namespace}});
        for (plural, mut object, want) in [
            ("pods", pod("p", "n"), ""),
            ("pods", pod("p", ""), ""),
            ("nodes", pod("p", "other"), ""), // has none, whatever it says
            (
                "pods",
                pod("p", "other"),
                "the namespace of the object (other) does not match the namespace on the request (n)",
            ),
            (
                "pods",
                pod("q", "n"),
                "the name of the object (q) does not match the name on the URL (p)",
            ),
            (
                "pods",
                json!({}),
                "the name of the object (p based on URL) was undeterminable: name must be provided",
            ),
        ] {
            let got = check_address(row(plural), ("n", "p"), &mut object).err();
            let got = got.map_or(String::new(), |status| status.message);
            assert_eq!(got, want, "{plural} {object}");
            if want.is_empty() {
                let namespace = if plural == "pods" { "n" } else { "" };
                assert_eq!(text(&object, "namespace"), namespace);
            }
        }
    }

    #[test]
    fn what_nobody_changes() {
        let old = json!({"metadata": {"uid": "a"}});
        let deleted = json!({"metadata": {"uid": "a", "deletionTimestamp": "t", "deletionGracePeriodSeconds": 3}});
        for (old, new, field) in [
            (&old, json!({"uid": "a"}), ""),
            (
                &old,
                json!({"creationTimestamp": "x", "generation": 9, "selfLink": "/"}),
                "",
            ), // stay
            (&old, json!({"uid": "b"}), "metadata.uid"),
            (
                &old,
                json!({"deletionTimestamp": "t"}),
                "metadata.deletionTimestamp",
            ),
            (
                &old,
                json!({"deletionGracePeriodSeconds": 0}),
                "metadata.deletionGracePeriodSeconds",
            ),
            (
                &deleted,
                json!({"deletionTimestamp": "u", "deletionGracePeriodSeconds": 0}),
                "",
            ),
            (&deleted, json!({}), ""),
        ] {
            let mut causes = Causes::default();
            check_immutable(&json!({"metadata": new}), old, &mut causes);
            let got = causes.0.first().map_or("", |cause| &*cause.field);
            assert_eq!(got, field, "{new}");
        }
    }

    #[test]
    fn generated_names_fit() {
        let name = generated(&"x".repeat(80));
        assert_eq!(name.len(), 63);
        assert_ne!(generated("a-"), generated("a-"));
        assert!(generated("a-").starts_with("a-"));
    }

    #[test]
    fn keys_and_values() {
        for (key, good) in [
            ("app", true),
            ("kubernetes.io/x", true),
            ("a/b/c", false),
            ("-x", false),
            ("", false),
            ("UPPER.io/x", false),
        ] {
            assert_eq!(qualified_name_problem(key).is_none(), good, "{key}");
        }
        assert!(label_value_problem("").is_none());
        assert!(label_value_problem("a b").is_some());
    }
}
