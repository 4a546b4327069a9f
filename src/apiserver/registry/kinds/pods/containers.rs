//! Containers of all three lists.

use serde_json::Value;

use super::{probes, resources, security};
use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        value::{at, flag, has, items, number, text},
    },
};

/// Which list a container stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    Regular,
    Init,
    Ephemeral,
}

impl List {
    pub fn field(self) -> &'static str {
        match self {
            Self::Regular => "containers",
            Self::Init => "initContainers",
            Self::Ephemeral => "ephemeralContainers",
        }
    }
}

/// Validates `spec.<list>`; `seen` holds the names of the lists before it.
pub fn validate<'a>(
    spec: &'a Value,
    list: List,
    path: &str,
    seen: &mut Vec<&'a str>,
    causes: &mut Causes,
) {
    for (index, container) in items(spec, list.field()).iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let path = format!("{path}.{}[{index}]", list.field());
        let name = text(container, "name");
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
        one(spec, container, list, &path, causes);
    }
}

fn one(spec: &Value, container: &Value, list: List, path: &str, causes: &mut Causes) {
    let image = text(container, "image");
    if image.is_empty() {
        causes.required(format!("{path}.image"), "");
    } else if image.trim() != image {
        causes.invalid(
            format!("{path}.image"),
            image,
            "must not have leading or trailing whitespace",
        );
    }
    for (field, known) in [
        ("imagePullPolicy", &["Always", "IfNotPresent", "Never"][..]),
        (
            "terminationMessagePolicy",
            &["FallbackToLogsOnError", "File"][..],
        ),
    ] {
        let given = text(container, field);
        if !known.contains(&given) {
            causes.unsupported(format!("{path}.{field}"), given, known);
        }
    }
    ports(container, path, causes);
    env(container, path, causes);
    mounts(spec, container, path, causes);
    resources::validate(
        &container["resources"],
        &format!("{path}.resources"),
        causes,
    );
    security_context(spec, container, path, causes);
    let sidecar = text(container, "restartPolicy") == "Always";
    match list {
        List::Regular => probes::validate(container, path, causes),
        List::Init if sidecar => probes::validate(container, path, causes),
        List::Init => {
            for field in [
                "lifecycle",
                "livenessProbe",
                "readinessProbe",
                "startupProbe",
            ] {
                if has(container, field) {
                    causes.forbidden(
                        format!("{path}.{field}"),
                        "may not be set for init containers without restartPolicy=Always",
                    );
                }
            }
        }
        List::Ephemeral => {
            for field in [
                "lifecycle",
                "livenessProbe",
                "readinessProbe",
                "startupProbe",
                "ports",
            ] {
                if has(container, field) {
                    causes.forbidden(
                        format!("{path}.{field}"),
                        "cannot be set for an Ephemeral Container",
                    );
                }
            }
            if !container["resources"]
                .as_object()
                .is_none_or(serde_json::Map::is_empty)
            {
                causes.forbidden(
                    format!("{path}.resources"),
                    "cannot be set for an Ephemeral Container",
                );
            }
        }
    }
}

fn ports(container: &Value, path: &str, causes: &mut Causes) {
    let mut seen = Vec::new();
    for (index, port) in items(container, "ports").iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let path = format!("{path}.ports[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            names::report(
                names::port_name(name),
                name,
                &format!("{path}.name"),
                causes,
            );
            if seen.contains(&name) {
                causes.duplicate(format!("{path}.name"), name);
            }
            seen.push(name);
        }
        match number(port, "containerPort") {
            None | Some(0) => causes.required(format!("{path}.containerPort"), ""),
            Some(number) => names::port(number, &format!("{path}.containerPort"), causes),
        }
        if let Some(host) = number(port, "hostPort").filter(|host| *host != 0) {
            names::port(host, &format!("{path}.hostPort"), causes);
        }
        match text(port, "protocol") {
            "TCP" | "UDP" | "SCTP" => {}
            "" => causes.required(format!("{path}.protocol"), ""),
            other => causes.unsupported(format!("{path}.protocol"), other, &["SCTP", "TCP", "UDP"]),
        }
    }
}

fn env(container: &Value, path: &str, causes: &mut Causes) {
    for (index, env) in items(container, "env").iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let path = format!("{path}.env[{index}]");
        let name = text(env, "name");
        if name.is_empty() {
            causes.required(format!("{path}.name"), "");
        } else {
            names::report(names::env_name(name), name, &format!("{path}.name"), causes);
        }
        let Some(from) = at(env, "valueFrom") else {
            continue;
        };
        let path = format!("{path}.valueFrom");
        if !text(env, "value").is_empty() {
            causes.invalid(&path, "", "may not be specified when `value` is not empty");
        }
        let sources = [
            "fieldRef",
            "resourceFieldRef",
            "configMapKeyRef",
            "secretKeyRef",
            "fileKeyRef",
        ];
        match sources.iter().filter(|source| has(from, source)).count() {
            0 => causes.invalid(&path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"),
            1 => {}
            _ => causes.invalid(&path, "", "may not have more than one field specified at a time"),
        }
        for source in ["configMapKeyRef", "secretKeyRef"] {
            if let Some(reference) = at(from, source) {
                let key = text(reference, "key");
                if key.is_empty() {
                    causes.required(format!("{path}.{source}.key"), "");
                } else {
                    names::report(
                        names::config_key(key),
                        key,
                        &format!("{path}.{source}.key"),
                        causes,
                    );
                }
            }
        }
        if has(from, "fieldRef") {
            field_path(
                text(from, "fieldRef.fieldPath"),
                &format!("{path}.fieldRef.fieldPath"),
                causes,
            );
        }
        if has(from, "resourceFieldRef") && text(from, "resourceFieldRef.resource").is_empty() {
            causes.required(format!("{path}.resourceFieldRef.resource"), "");
        }
    }
    for (index, source) in items(container, "envFrom").iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let path = format!("{path}.envFrom[{index}]");
        match (has(source, "configMapRef"), has(source, "secretRef")) {
            (false, false) => causes.invalid(
                path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            ),
            (true, true) => causes.invalid(
                path,
                "",
                "may not have more than one field specified at a time",
            ),
            _ => {}
        }
    }
}

fn field_path(field: &str, path: &str, causes: &mut Causes) {
    const KNOWN: [&str; 9] = [
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    let by_key = ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .any(|prefix| field.starts_with(prefix) && field.ends_with("']"));
    if field.is_empty() {
        causes.required(path, "");
    } else if !by_key && !KNOWN.contains(&field) {
        causes.unsupported(path, field, &KNOWN);
    }
}

fn mounts(spec: &Value, container: &Value, path: &str, causes: &mut Causes) {
    let mut paths = Vec::new();
    for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let path = format!("{path}.volumeMounts[{index}]");
        let (name, target) = (text(mount, "name"), text(mount, "mountPath"));
        let known = items(spec, "volumes")
            .iter()
            .any(|volume| text(volume, "name") == name);
        if name.is_empty() {
            causes.required(format!("{path}.name"), "");
        } else if !known {
            causes.not_found(format!("{path}.name"), name);
        }
        if target.is_empty() {
            causes.required(format!("{path}.mountPath"), "");
        } else if paths.contains(&target) {
            causes.invalid(format!("{path}.mountPath"), target, "must be unique");
        }
        paths.push(target);
        if !text(mount, "subPath").is_empty() && !text(mount, "subPathExpr").is_empty() {
            causes.invalid(
                format!("{path}.subPathExpr"),
                text(mount, "subPathExpr"),
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        for field in ["subPath", "subPathExpr"] {
            let inner = text(mount, field);
            if inner.starts_with('/') {
                causes.invalid(format!("{path}.{field}"), inner, "must be a relative path");
            }
            if inner.split('/').any(|part| part == "..") {
                causes.invalid(format!("{path}.{field}"), inner, "must not contain '..'");
            }
        }
    }
}

fn security_context(spec: &Value, container: &Value, path: &str, causes: &mut Causes) {
    let Some(context) = at(container, "securityContext") else {
        return;
    };
    let path = format!("{path}.securityContext");
    security::of_container(context, &path, causes);
    let escalates = at(context, "allowPrivilegeEscalation").is_none_or(|value| value == true);
    if flag(context, "privileged") && !escalates {
        causes.invalid(
            &path,
            context,
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        );
    }
    // As the API has always had it: under its other name the capability is let through.
    let adds_admin = items(context, "capabilities.add")
        .iter()
        .any(|name| name == "CAP_SYS_ADMIN");
    if adds_admin && !escalates {
        causes.invalid(
            &path,
            context,
            "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
        );
    }
    let unmasked = text(context, "procMount") == "Unmasked";
    if unmasked && at(spec, "hostUsers").is_none_or(|users| users == true) {
        causes.invalid(
            format!("{path}.procMount"),
            "Unmasked",
            "`hostUsers` must be false to use `Unmasked`",
        );
    }
}
