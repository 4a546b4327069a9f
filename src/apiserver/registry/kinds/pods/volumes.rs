//! Volumes: a unique DNS label as name and exactly one source, with that source's own rules.

use serde_json::Value;

use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        value::{has, items, number, text},
    },
};

pub fn validate(spec: &Value, path: &str, causes: &mut Causes) {
    let mut seen = Vec::new();
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let path = format!("{path}.volumes[{index}]");
        let name = text(volume, "name");
        if name.is_empty() {
            causes.required(format!("{path}.name"), "");
        } else {
            names::report(
                names::dns_label(name),
                name,
                &format!("{path}.name"),
                causes,
            );
            if seen.contains(&name) {
                causes.duplicate(format!("{path}.name"), name);
            }
            seen.push(name);
        }
        let sources: Vec<&String> = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| *key != "name" && !value.is_null())
            .map(|(key, _)| key)
            .collect();
        match sources.as_slice() {
            [] => causes.required(&path, "must specify a volume type"),
            [one] => source(volume, one, &path, causes),
            [_, rest @ ..] => {
                for extra in rest {
                    causes.forbidden(
                        format!("{path}.{extra}"),
                        "may not specify more than 1 volume type",
                    );
                }
            }
        }
    }
}

fn source(volume: &Value, kind: &str, path: &str, causes: &mut Causes) {
    let body = &volume[kind];
    let path = format!("{path}.{kind}");
    let mut need = |field: &str| {
        if text(body, field).is_empty() {
            causes.required(format!("{path}.{field}"), "");
        }
    };
    match kind {
        "secret" => need("secretName"),
        "configMap" => need("name"),
        "persistentVolumeClaim" => need("claimName"),
        "hostPath" => need("path"),
        "nfs" => {
            need("server");
            need("path");
        }
        "csi" => need("driver"),
        "image" => need("reference"),
        _ => {}
    }
    match kind {
        "hostPath" => {
            if text(body, "path").split('/').any(|part| part == "..") {
                causes.invalid(
                    format!("{path}.path"),
                    text(body, "path"),
                    "must not contain '..'",
                );
            }
            const TYPES: [&str; 8] = [
                "",
                "BlockDevice",
                "CharDevice",
                "Directory",
                "DirectoryOrCreate",
                "File",
                "FileOrCreate",
                "Socket",
            ];
            if !TYPES.contains(&text(body, "type")) {
                causes.unsupported(format!("{path}.type"), text(body, "type"), &TYPES);
            }
        }
        "secret" | "configMap" | "projected" | "downwardAPI" => {
            mode(body, "defaultMode", &path, causes);
            files(body, &path, kind == "downwardAPI", causes);
            for (index, source) in items(body, "sources").iter().enumerate() {
                projected(source, &format!("{path}.sources[{index}]"), causes);
            }
        }
        _ => {}
    }
}

fn projected(source: &Value, path: &str, causes: &mut Causes) {
    let kinds = [
        "secret",
        "configMap",
        "downwardAPI",
        "serviceAccountToken",
        "clusterTrustBundle",
        "podCertificate",
    ];
    let given: Vec<&str> = kinds.into_iter().filter(|kind| has(source, kind)).collect();
    if given.len() > 1 {
        causes.forbidden(path, "may not specify more than 1 volume type per source");
    }
    for kind in given {
        let body = &source[kind];
        let path = format!("{path}.{kind}");
        if matches!(kind, "secret" | "configMap") && text(body, "name").is_empty() {
            causes.required(format!("{path}.name"), "");
        }
        if kind == "serviceAccountToken" {
            if text(body, "path").is_empty() {
                causes.required(format!("{path}.path"), "");
            }
            if let Some(seconds) =
                number(body, "expirationSeconds").filter(|seconds| *seconds < 600)
            {
                causes.invalid(
                    format!("{path}.expirationSeconds"),
                    seconds,
                    "may not specify a duration less than 10 minutes",
                );
            }
        }
        files(body, &path, kind == "downwardAPI", causes);
    }
}

/// `items[]` of a source that becomes files.
fn files(body: &Value, path: &str, downward: bool, causes: &mut Causes) {
    for (index, item) in items(body, "items").iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        if !downward && text(item, "key").is_empty() {
            causes.required(format!("{path}.key"), "");
        }
        let target = text(item, "path");
        if target.is_empty() {
            causes.required(format!("{path}.path"), "");
        } else if target.starts_with('/') {
            causes.invalid(format!("{path}.path"), target, "must be a relative path");
        } else if target.split('/').any(|part| part == "..") {
            causes.invalid(format!("{path}.path"), target, "must not contain '..'");
        }
        mode(item, "mode", &path, causes);
    }
}

fn mode(body: &Value, field: &str, path: &str, causes: &mut Causes) {
    if let Some(mode) = number(body, field).filter(|mode| !(0..=0o777).contains(mode)) {
        causes.invalid(
            format!("{path}.{field}"),
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        );
    }
}
