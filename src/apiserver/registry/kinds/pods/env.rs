//! Environment variables of containers.

use serde_json::Value;

use super::{
    fields::{self, From},
    paths,
};
use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        value::{at, has, items, text},
    },
};

const SOURCES: [&str; 5] = [
    "fieldRef",
    "resourceFieldRef",
    "configMapKeyRef",
    "secretKeyRef",
    "fileKeyRef",
];

/// `env` of the container at `path`.
pub fn validate(container: &Value, path: &str, causes: &mut Causes) {
    for (index, env) in items(container, "env").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}.env[{index}]");
        let name = text(env, "name");
        if name.is_empty() {
            causes.required(format!("{path}.name"), "");
        } else {
            names::report(names::env_name(name), name, &format!("{path}.name"), causes);
        }
        if let Some(from) = at(env, "valueFrom") {
            let given = text(env, "value");
            value_from(from, given, &format!("{path}.valueFrom"), causes);
        }
    }
}

fn value_from(from: &Value, value: &str, path: &str, causes: &mut Causes) {
    let mut count = 0;
    for source in SOURCES {
        let Some(reference) = at(from, source) else {
            continue;
        };
        count += 1;
        let path = format!("{path}.{source}");
        match source {
            "fieldRef" => fields::field(reference, From::Environment, &path, causes),
            "resourceFieldRef" => fields::resource(reference, From::Environment, &path, causes),
            "fileKeyRef" => file_key(reference, &path, causes),
            _ => object_key(reference, &path, causes),
        }
    }
    if count == 0 {
        causes.invalid(path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`");
    } else if !value.is_empty() {
        causes.invalid(path, "", "may not be specified when `value` is not empty");
    } else if count > 1 {
        let detail = "may not have more than one field specified at a time";
        causes.invalid(path, "", detail);
    }
}

/// A key of a ConfigMap or Secret.
fn object_key(reference: &Value, path: &str, causes: &mut Causes) {
    let (name, key) = (text(reference, "name"), text(reference, "key"));
    let own = format!("{path}.name");
    names::report(names::dns_subdomain(name), name, &own, causes);
    let own = format!("{path}.key");
    if key.is_empty() {
        causes.required(own, "");
    } else {
        names::report(names::config_key(key), key, &own, causes);
    }
}

/// A variable in a file of a volume.
fn file_key(reference: &Value, path: &str, causes: &mut Causes) {
    let member = |name: &str| (text(reference, name), format!("{path}.{name}"));
    let (key, own) = member("key");
    match key {
        "" => causes.required(own, ""),
        key => names::report(names::env_name(key), key, &own, causes),
    }
    let (volume, own) = member("volumeName");
    match volume {
        "" => causes.required(own, ""),
        volume => names::report(names::dns_label(volume), volume, &own, causes),
    }
    let (file, own) = member("path");
    match file {
        "" => causes.required(own, ""),
        file => paths::no_backsteps(file, &own, causes),
    }
}

/// `envFrom` of the container at `path`.
pub fn validate_from(container: &Value, path: &str, causes: &mut Causes) {
    let path = format!("{path}.envFrom");
    for (index, source) in items(container, "envFrom").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let own = format!("{path}[{index}]");
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            let own = format!("{own}.prefix");
            names::report(names::env_name(prefix), prefix, &own, causes);
        }
        let mut count = 0;
        for reference in ["configMapRef", "secretRef"] {
            if !has(source, reference) {
                continue;
            }
            count += 1;
            let own = format!("{own}.{reference}.name");
            match text(&source[reference], "name") {
                "" => causes.required(own, ""),
                name => names::report(names::dns_subdomain_start(name), name, &own, causes),
            }
        }
        if count == 0 {
            let detail = "must specify one of: `configMapRef` or `secretRef`";
            causes.invalid(&path, "", detail);
        } else if count > 1 {
            let detail = "may not have more than one field specified at a time";
            causes.invalid(&path, "", detail);
        }
    }
}

/// The volumes of files with variables: directories of the pod's own.
pub fn validate_files(spec: &Value, path: &str, causes: &mut Causes) {
    let volumes: std::collections::HashMap<&str, &Value> = items(spec, "volumes")
        .iter()
        .map(|volume| (text(volume, "name"), volume))
        .collect();
    for list in super::whole::VISITED {
        for (index, container) in items(spec, list).iter().enumerate() {
            for (at, env) in items(container, "env").iter().enumerate() {
                if causes.is_full() {
                    return;
                }
                if !has(env, "valueFrom.fileKeyRef") {
                    continue;
                }
                let name = text(env, "valueFrom.fileKeyRef.volumeName");
                let own =
                    format!("{path}.{list}[{index}].env[{at}].valueFrom.fileKeyRef.volumeName");
                match volumes.get(name) {
                    None => causes.not_found(own, name),
                    Some(volume) if !has(volume, "emptyDir") => {
                        causes.invalid(own, name, "referenced volume must be of type emptyDir");
                    }
                    Some(_) => {}
                }
            }
        }
    }
}
